r"""Max pooling and average pooling as matrices, with derived gradients.

The module of the chapter *Pooling*. First the matrices: :math:`S`, which selects the largest pixel of each window, and
:math:`\bar S`, which averages; then the functions, which apply the two and their transposes without forming them; then
the modules.

Coordinates of images and windows start at 0. For the backward pass max pooling keeps the place of the winner in its
window, one byte an output, and average pooling keeps nothing: its matrix is a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from pwl_lib._autograd import LayerFunction, derivative_wanted, pick, save_mask
from pwl_lib._validation import check_bool, check_count, check_floating, check_one_of
from pwl_lib._windows import Pair, check_image, check_pair, output_size, positions
from pwl_lib.kronecker import vec

__all__ = ["AvgPool2d", "MaxPool2d", "averaging_matrix", "avg_pool2d", "max_pool2d", "selection_matrix"]

Ties = Literal["row-major", "column-major"]


@dataclass(frozen=True)
class _Windows:
    """How windows lie on an image; every pair is for rows and columns. To a transform of torch it is one leaf."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool

    @property
    def words(self) -> tuple[Any, ...]:
        """What torch's functions want to know after the image."""
        return self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode

    @property
    def outputs(self) -> tuple[int, int]:
        rows, columns = (
            output_size(n, k, s, p, p, d, ceil_mode=self.ceil_mode)
            for n, k, s, p, d in zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )
        return rows, columns

    @property
    def span(self) -> tuple[int, int]:
        """How many rows and columns a window reaches over, the gaps of a dilated one included."""
        rows, columns = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        return rows, columns

    def corners(self, width: int, like: Tensor) -> Tensor:
        """``(H', W')``: row times ``width`` plus column of the first pixel of every window; padding counts below 0."""
        rows, columns = (
            torch.arange(-p, n * s - p, s, device=like.device, dtype=like.dtype)
            for n, s, p in zip(self.outputs, self.stride, self.padding, strict=True)
        )
        return torch.add(columns, rows[:, None], alpha=width)

    def turned(self) -> _Windows:
        """The same windows on the transposed image."""
        pairs = self.size, self.kernel, self.stride, self.padding, self.dilation
        size, kernel, stride, padding, dilation = ((columns, rows) for rows, columns in pairs)
        return _Windows(size, kernel, stride, padding, dilation, self.ceil_mode)


def _windows(
    size: Sequence[int],
    kernel_size: Pair,
    stride: Pair | None,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
) -> _Windows:
    kernel = check_pair("kernel_size", kernel_size, 1)
    # an empty stride is another of torch's words for the kernel size
    steps = kernel if stride is None or stride in ([], ()) else check_pair("stride", stride, 1)
    around = check_pair("padding", padding, 0)
    spread = check_pair("dilation", dilation, 1)
    check_bool("ceil_mode", ceil_mode)
    height, width = size
    windows = _Windows((height, width), kernel, steps, around, spread, ceil_mode)
    axes = zip(size, kernel, steps, around, spread, windows.outputs, strict=True)
    for n, k, s, p, d, outputs in axes:
        if 2 * p > k:
            raise ValueError(f"padding must be at most half of kernel_size, {kernel_size!r}, got {padding!r}")
        if outputs < 1:
            raise ValueError(
                f"kernel_size {kernel} with dilation {spread} must fit into the padded image, got one of "
                f"{(height + 2 * around[0], width + 2 * around[1])}"
            )
        if any((s * o - p) % d >= n for o in range(-(-p // s))):  # from there on windows begin in the image
            raise ValueError(
                f"dilation must leave each window a pixel of the image, got {dilation!r} on one of {height} by {width} pixels"
            )
    return windows


# --- the matrix -----------------------------------------------------------------------------------


def selection_matrix(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    *,
    ties: Ties = "row-major",
) -> Tensor:
    r"""The matrix :math:`S` that selects the largest pixel of each window.

    .. math:: \operatorname{vec} y = S \operatorname{vec} x

    which is :eq:`eq-max-pool-forward`. Each row has a single 1, in the column of the winner, :eq:`eq-selection`.
    :math:`S` depends on the input, and where no window has a tie it is the Jacobian of :func:`max_pool2d`.

    Args:
        input: ``(D, H, W)`` or ``(N, D, H, W)``, floating point.
        kernel_size, stride, padding, dilation, ceil_mode, ties: as :func:`max_pool2d`.

    Returns:
        ``(outputs, inputs)``, sparse COO, coalesced, in the dtype of ``input``. Rows and columns in the order of
        :func:`pwl_lib.kronecker.vec`.

    At ties:
        the winner is the one that ``ties`` names. Either choice makes a subgradient of every output.

    Raises:
        TypeError, ValueError: as :func:`max_pool2d`.

    Example:
        >>> A = torch.tensor([[1.0, 3.0, 1.0, 4.0], [2.0, 8.0, 5.0, 1.0], [3.0, 2.0, 0.0, 3.0]])
        >>> selection_matrix(A[None], 2, stride=1).indices()
        tensor([[0, 1, 2, 3, 4, 5],
                [4, 4, 4, 4, 7, 7]])

    Source: the book, :eq:`eq-selection`.
    """
    _check_image(input)
    check_one_of("ties", ties, get_args(Ties))
    windows = _windows(input.shape[-2:], kernel_size, stride, padding, dilation, ceil_mode)
    (height, width), winner = windows.size, _max_pool(input.detach(), windows, ties)[1]
    images = torch.arange(input.shape[:-2].numel(), device=input.device).reshape(*input.shape[:-2], 1, 1)
    column = vec(images * height * width + winner % width * height + winner // width)
    outputs = torch.arange(len(column), device=input.device)
    return _sparse(outputs, column, input.new_ones(len(column)), (len(column), input.numel()))


def averaging_matrix(
    input_size: Sequence[int],
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""The matrix :math:`\bar S` of average pooling, a constant.

    .. math:: \operatorname{vec} y = \bar S \operatorname{vec} x, \qquad \bar S = I \otimes \bar S_w \otimes \bar S_h

    which is :eq:`eq-averaging`: a window is a set of rows times a set of columns, so that :math:`\bar S_h` averages rows
    and :math:`\bar S_w` columns.

    Args:
        input_size: ``(D, H, W)`` or ``(N, D, H, W)``.
        kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override: as :func:`avg_pool2d`.
        dtype: of the entries; torch's default dtype if it is not given.
        device: of the matrix.

    Returns:
        ``(outputs, inputs)``, sparse COO, coalesced. Rows and columns in the order of :func:`pwl_lib.kronecker.vec`.

    Raises:
        TypeError: an argument has another type.
        ValueError: a number out of its range, or windows that do not fit.

    Example:
        >>> averaging_matrix((1, 2, 2), 2).to_dense()
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])

    Source: the book, :eq:`eq-averaging`.
    """
    if not isinstance(input_size, Sequence) or len(input_size) not in (3, 4):
        raise ValueError(f"input_size must be (D, H, W) or (N, D, H, W), got {input_size!r}")
    for size in input_size:
        check_count("every size in input_size", size, 1)
    check_bool("count_include_pad", count_include_pad)
    _check_divisor(divisor_override)
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating point, got {dtype}")
    windows = _windows(input_size[-2:], kernel_size, stride, padding, 1, ceil_mode)
    by_rows, by_columns = (_averages(windows, axis, count_include_pad, divisor_override) for axis in (0, 1))
    i, j = by_rows.nonzero(as_tuple=True), by_columns.nonzero(as_tuple=True)
    images = torch.Size(input_size[:-2]).numel()
    image = torch.arange(images)[:, None, None]
    row, column = (
        (image * width + j[side][:, None]) * height + i[side]
        for side, (height, width) in enumerate((windows.outputs, windows.size))
    )
    values = (by_columns[j][:, None] * by_rows[i]).expand(row.shape)
    shape = images * by_rows.shape[0] * by_columns.shape[0], images * by_rows.shape[1] * by_columns.shape[1]
    return _sparse(row, column, values, shape).to(device=device, dtype=dtype or torch.get_default_dtype())


def _averages(windows: _Windows, axis: int, count_include_pad: bool, divisor: int | None) -> Tensor:
    """``(outputs, size)``: the mean over each window along one axis; the divisor, where it is given, divides rows alone."""
    size, stride, padding = windows.size[axis], windows.stride[axis], windows.padding[axis]
    places = positions(windows.outputs[axis], windows.kernel[axis], stride, padding, 1)
    inside = (places >= 0) & (places < size)
    if divisor is not None:
        count = torch.full((len(places), 1), divisor if axis == 0 else 1)
    else:  # a window of ceil_mode that reaches beyond the padding is cut there
        counted = places < size + padding if count_include_pad else inside
        count = counted.sum(1, keepdim=True)
    window, element = inside.nonzero(as_tuple=True)
    means = torch.zeros(len(places), size, dtype=torch.float64)
    means[window, places[window, element]] = 1 / count[window, 0].double()
    return means


def _sparse(row: Tensor, column: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    places = torch.stack([row.flatten(), column.flatten()])
    return torch.sparse_coo_tensor(places, values.flatten(), shape, check_invariants=True).coalesce()


# --- the function ---------------------------------------------------------------------------------


def _max_pool(x: Tensor, windows: _Windows, ties: Ties) -> tuple[Tensor, Tensor]:
    """Values and winners, as torch numbers them: row times width plus column, in each image."""
    layout = _layout(x)
    if ties == "column-major":  # torch takes the first winner, row by row; so the image is turned
        y, winner = (each.mT for each in _max_pool(x.mT, windows.turned(), "row-major"))
        height, width = windows.size
        winner = winner % height * width + winner // height
    elif layout is torch.contiguous_format and _pays_by_channels(x):
        by_channels = x.contiguous(memory_format=torch.channels_last)
        y, winner = F.max_pool2d(by_channels, *windows.words, return_indices=True)
    else:
        return F.max_pool2d(x, *windows.words, return_indices=True)
    return y.clone(memory_format=layout), winner.clone(memory_format=layout)


def _pays_by_channels(x: Tensor) -> bool:
    """Whether torch's kernel is so much faster on channels that lie side by side that two copies pay.

    On a CPU it then compares many channels at once; otherwise it branches at every pixel. The numbers are the same bits.
    """
    inside = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return not inside and x.device.type == "cpu" and x.dim() == 4 and x.shape[1] >= 4


def _layout(x: Tensor) -> torch.memory_format:
    """The memory format that torch gives to what it makes of ``x``."""
    if x.dim() != 4 or torch._C._are_functorch_transforms_active() or x.is_contiguous():
        return torch.contiguous_format
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


# The place of a winner in its window is a small number, its place in the image a large one; both numberings go row by
# row. The arithmetic is done on floating point numbers, whose whole values are exact: a CPU divides integers many times
# slower. With 1/2 added a quotient is further from the next integer than it is rounded.


def _place_in_window(winner: Tensor, windows: _Windows) -> Tensor:
    """From row times width plus column, in the image, to row times width plus column, in what the window spans."""
    (_, width), (k_h, k_w) = windows.size, windows.span
    winner = _exact(winner, windows)
    row = winner.add(0.5).mul_(1 / width).floor_()
    place = winner.add_(row, alpha=k_w - width).sub_(windows.corners(k_w, winner))
    return place.to(torch.uint8 if k_h * k_w <= 256 else torch.int32)


def _place_in_image(place: Tensor, windows: _Windows) -> Tensor:
    """The inverse of :func:`_place_in_window`, int64."""
    (_, width), (_, k_w) = windows.size, windows.span
    place = _exact(place, windows)
    row = place.add(0.5).mul_(1 / k_w).floor_()
    return place.add_(row, alpha=width - k_w).add_(windows.corners(width, place)).to(torch.int64)


def _exact(numbers: Tensor, windows: _Windows) -> Tensor:
    """A copy in floating point, wide enough for the number of pixels."""
    (height, width), (k_h, k_w) = windows.size, windows.span
    return numbers.to(torch.float32 if max(height, k_h) * max(width, k_w) < 2**21 else torch.float64)


class _MaxPool2d(LayerFunction):
    @staticmethod
    def forward(x: Tensor, windows: _Windows, ties: Ties) -> tuple[Tensor, Tensor]:
        y, winner = _max_pool(x, windows, ties)
        return y, _place_in_window(winner, windows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Windows, Ties], output: tuple[Tensor, Tensor]) -> None:
        ctx.windows, ctx.layout = inputs[1], _layout(inputs[0])
        save_mask(ctx, output[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, None, None]:
        (place,) = ctx.saved_tensors
        g = None if upstream is None else _send_back(upstream, place, ctx.windows, ctx.layout)
        return g, None, None


class _MaxPool2dForward(_MaxPool2d):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
        (place,) = ctx.saved_tensors
        return None if tangent is None else _select(tangent, place, ctx.windows), None


def _send_back(upstream: Tensor, place: Tensor, windows: _Windows, layout: torch.memory_format) -> Tensor:
    """The transpose of S: each entry of the upstream gradient is added to the winner of its window."""
    winner = _place_in_image(place, windows)
    (height, width), (rows, columns), lead = windows.size, windows.outputs, upstream.shape[:-2]
    if layout is torch.channels_last:
        samples, channels = lead
        g, at = (each.permute(0, 2, 3, 1).reshape(samples, rows * columns, channels) for each in (upstream, winner))
        sums = _add_at(1, at, g, (samples, height * width, channels))
        return sums.reshape(samples, height, width, channels).permute(0, 3, 1, 2)
    g, at = (each.reshape(*lead, rows * columns) for each in (upstream, winner))
    return _add_at(-1, at, g, (*lead, height * width)).reshape(*lead, height, width)


def _add_at(dim: int, places: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    sums = values.new_zeros(shape)
    # vmap cannot write into a tensor that is not batched yet
    add = sums.scatter_add if torch._C._are_functorch_transforms_active() else sums.scatter_add_
    return add(dim, places, values)


def _select(image: Tensor, place: Tensor, windows: _Windows) -> Tensor:
    """S: the entries of an image at the winners of another."""
    winner = _place_in_image(place, windows)
    (height, width), (rows, columns), lead = windows.size, windows.outputs, image.shape[:-2]
    chosen = image.reshape(*lead, height * width).gather(-1, winner.reshape(*lead, rows * columns))
    return chosen.reshape(winner.shape)


def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    ties: Ties = "row-major",
) -> Any:
    r"""The largest pixel of each window.

    .. math::

        y_{d i' j'} = \max_{i'', j''} x_{d,\, s_h i' + \delta_h i'' - P_h,\, s_w j' + \delta_w j'' - P_w}, \qquad
        \frac{\partial z}{\partial \operatorname{vec} x} = S^\top \frac{\partial z}{\partial \operatorname{vec} y}

    which are :eq:`eq-max-pool` and :eq:`eq-max-pool-vjp`: each upstream entry is added to the winner of its window,
    :eq:`eq-max-pool-overlap`. For the backward pass one byte an output is kept, the place of the winner in its window
    (four where a window spans more than 256 pixels), and not the input.

    Args:
        input: ``(N, D, H, W)`` or ``(D, H, W)``, floating point.
        kernel_size: rows and columns of a window, an int or two.
        stride: steps of the window, an int or two, rows first; None is ``kernel_size``.
        padding: rows and columns of :math:`-\infty` on each side, at most half of ``kernel_size``.
        dilation: distance of two neighbours in a window, an int or two.
        ceil_mode: whether the last windows may reach beyond the padded image, :eq:`eq-pool-size`.
        return_indices: whether the winners are returned too.
        ties: which of several largest pixels wins: ``'row-major'``, torch's rule, takes the one in the smallest row,
            and of those in the smallest column, :eq:`eq-ties-row`; ``'column-major'`` the one in the smallest column, and of
            those in the smallest row, :eq:`eq-ties-column`.

    Returns:
        ``(N, D, H', W')`` or without N, :eq:`eq-pool-size`; with ``return_indices`` also the winners, row times W plus
        column, int64, of the same shape. Of a window with NaN the value is NaN, and its last NaN, in the order of ``ties``, wins,
        as in torch.

    At ties:
        the gradient goes to one winner, the one that ``ties`` names. It is a subgradient of each output. The second
        derivative is 0 everywhere.

    Raises:
        TypeError: ``input`` is not a floating point tensor, or another argument has another type.
        ValueError: another shape, a number out of its range, windows that do not fit, or one that lies in the padding
            alone, for which torch returns an index outside the image.

    Example:
        >>> A = torch.tensor([[1.0, 3.0, 1.0, 4.0], [2.0, 8.0, 5.0, 1.0], [3.0, 2.0, 0.0, 3.0]])
        >>> max_pool2d(A[None], 2, stride=1)
        tensor([[[8., 8., 5.],
                 [8., 8., 5.]]])

    Source: the book, :eq:`eq-max-pool-vjp`.
    """
    if has_torch_function_unary(input):
        words = {"ties": ties} if ties != "row-major" else {}
        return handle_torch_function(
            max_pool2d, (input,), input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, **words
        )
    _check_image(input)
    check_one_of("ties", ties, get_args(Ties))
    check_bool("return_indices", return_indices)
    windows = _windows(input.shape[-2:], kernel_size, stride, padding, dilation, ceil_mode)
    if not derivative_wanted(input):
        y, winner = _max_pool(input, windows, ties)
        return (y, winner) if return_indices else y
    y, place = pick(_MaxPool2d, _MaxPool2dForward).apply(input, windows, ties)
    return (y, _place_in_image(place, windows)) if return_indices else y


class _AvgPool2d(LayerFunction):
    @staticmethod
    def forward(x: Tensor, windows: _Windows, count_include_pad: bool, divisor: int | None) -> Tensor:
        return _average(x, windows, count_include_pad, divisor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Windows, bool, int | None], output: Tensor) -> None:
        x, *ctx.words = inputs
        ctx.layout = x.shape, x.stride()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        windows, *divisor = ctx.words
        size, stride = ctx.layout
        image = upstream.new_empty_strided(size, stride)  # only its size and its layout are read
        words = windows.kernel, windows.stride, windows.padding, windows.ceil_mode, *divisor
        return torch.ops.aten.avg_pool2d_backward.default(upstream, image, *words), None, None, None


class _AvgPool2dForward(_AvgPool2d):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _average(tangent, *ctx.words)


def _average(x: Tensor, windows: _Windows, count_include_pad: bool, divisor: int | None) -> Tensor:
    words = windows.kernel, windows.stride, windows.padding, windows.ceil_mode
    return F.avg_pool2d(x, *words, count_include_pad, divisor)


def avg_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    r"""The mean of each window.

    .. math::

        \operatorname{vec} y = \bar S \operatorname{vec} x, \qquad
        \frac{\partial z}{\partial \operatorname{vec} x} = \bar S^\top \frac{\partial z}{\partial \operatorname{vec} y}

    which are :eq:`eq-averaging` and :eq:`eq-avg-pool-vjp`. The matrix is a constant, and nothing is kept for the
    backward pass. torch keeps the input.

    Args:
        input: ``(N, D, H, W)`` or ``(D, H, W)``, floating point.
        kernel_size: rows and columns of a window, an int or two.
        stride: steps of the window, an int or two, rows first; None is ``kernel_size``.
        padding: rows and columns of zeros on each side, at most half of ``kernel_size``.
        ceil_mode: whether the last windows may reach beyond the padded image, :eq:`eq-pool-size`; they are cut there.
        count_include_pad: whether pixels of the padding count in the mean.
        divisor_override: divides the sum in place of the number of pixels; not 0.

    Returns:
        ``(N, D, H', W')`` or without N, :eq:`eq-pool-size`.

    Raises:
        TypeError: ``input`` is not a floating point tensor, or another argument has another type.
        ValueError: another shape, a number out of its range, or windows that do not fit.

    Example:
        >>> A = torch.tensor([[1.0, 3.0, 1.0, 4.0], [2.0, 8.0, 5.0, 1.0], [3.0, 2.0, 0.0, 3.0]])
        >>> avg_pool2d(A[None], 2, stride=1)
        tensor([[[3.5000, 4.2500, 2.7500],
                 [3.7500, 3.7500, 2.2500]]])

    Source: the book, :eq:`eq-averaging`.
    """
    if has_torch_function_unary(input):
        words = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        return handle_torch_function(avg_pool2d, (input,), input, *words)
    _check_image(input)
    check_bool("count_include_pad", count_include_pad)
    _check_divisor(divisor_override)
    windows = _windows(input.shape[-2:], kernel_size, stride, padding, 1, ceil_mode)
    if not derivative_wanted(input):
        return _average(input, windows, count_include_pad, divisor_override)
    return pick(_AvgPool2d, _AvgPool2dForward).apply(input, windows, count_include_pad, divisor_override)


# --- the module -----------------------------------------------------------------------------------


class MaxPool2d(nn.MaxPool2d):
    """:func:`max_pool2d` as a module; ``torch.nn.MaxPool2d`` in every word, and ``ties``.

    Args:
        kernel_size, stride, padding, dilation, return_indices, ceil_mode, ties: as :func:`max_pool2d`.

    Shapes:
        ``(N, D, H, W)`` or ``(D, H, W)`` to ``(N, D, H', W')`` or ``(D, H', W')``.

    Raises:
        ValueError: an unknown ``ties``.

    Example:
        >>> MaxPool2d(3, stride=2, padding=1)(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 3, 4, 4])

    Source: the book, :eq:`eq-max-pool`.
    """

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        dilation: Pair = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        ties: Ties = "row-major",
    ) -> None:
        check_one_of("ties", ties, get_args(Ties))
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)  # type: ignore[arg-type]
        self.ties = ties

    def forward(self, input: Tensor) -> Any:
        words = self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        return max_pool2d(input, *words, ties=self.ties)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", ties={self.ties!r}" if self.ties != "row-major" else "")


class AvgPool2d(nn.AvgPool2d):
    """:func:`avg_pool2d` as a module; ``torch.nn.AvgPool2d`` in every word.

    Args:
        kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override: as :func:`avg_pool2d`.

    Shapes:
        ``(N, D, H, W)`` or ``(D, H, W)`` to ``(N, D, H', W')`` or ``(D, H', W')``.

    Example:
        >>> AvgPool2d(2)(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 3, 4, 4])

    Source: the book, :eq:`eq-averaging`.
    """

    def forward(self, input: Tensor) -> Tensor:
        words = self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        return avg_pool2d(input, *words, self.divisor_override)


# --- checks ---------------------------------------------------------------------------------------


def _check_image(input: Tensor) -> None:
    check_floating("input", input)
    check_image("input", input)
    if 0 in input.shape[-3:]:
        raise ValueError(f"input must have at least one channel, row and column, got {tuple(input.shape)}")


def _check_divisor(divisor: int | None) -> None:
    if divisor is None:
        return
    if not isinstance(divisor, int) or isinstance(divisor, bool):
        raise TypeError(f"divisor_override must be an int or None, got {type(divisor).__name__}")
    if divisor == 0:
        raise ValueError("divisor_override must not be 0")
