r"""Convolution and fully connected layers as matrix products, with derived gradients.

The module of the chapter *Convolution*. First the matrices: the patches :math:`\varphi(x)`, the kernels as columns
:math:`C`, the 0/1 matrix :math:`M` that gathers the patches; then the functions, whose backward passes are products
with these matrices, formed or not; then the modules.

Coordinates of images, kernels and windows start at 0. As in torch, *convolution* is cross-correlation: the kernel is
not flipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

from pwl_lib._autograd import LayerFunction, autocast_as_torch, derivative_wanted, pick, save_factors, sum_of
from pwl_lib._validation import check_count, check_floating, check_one_of, check_same_kind
from pwl_lib._windows import Pair, check_image, check_pair, output_size, positions
from pwl_lib.kronecker import kron, unvec, vec

__all__ = [
    "Conv2d",
    "Linear",
    "conv2d",
    "conv2d_input",
    "conv2d_jacobians",
    "conv2d_weight",
    "gather_matrix",
    "index_map",
    "kernel_matrix",
    "linear",
    "linear_jacobians",
    "patches",
]

Padding = Pair | Literal["same", "valid"]
InputForm = Literal["kernel", "matrix", "index", "fold"]
WeightForm = Literal["kernel", "patches"]


@dataclass(frozen=True)  # not a tuple, which vmap would take apart
class _Scan:
    """How a kernel scans an image; every pair is for rows and columns."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def outputs(self) -> tuple[int, int]:
        words = self.size, self.kernel, self.stride, self.before, self.after, self.dilation
        rows, columns = (output_size(*numbers) for numbers in zip(*words, strict=True))
        return rows, columns

    @property
    def padded(self) -> tuple[int, int]:
        rows, columns = (s + b + a for s, b, a in zip(self.size, self.before, self.after, strict=True))
        return rows, columns

    def even(self) -> _Scan:
        """The same scan of an image that has the odd row and column of padding already, so that both sides are equal."""
        rows, columns = (s + a - b for s, a, b in zip(self.size, self.after, self.before, strict=True))
        return replace(self, size=(rows, columns), after=self.before)

    def positions(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of every window in the padded image."""
        rows, columns = (
            positions(n, k, s, 0, d)
            for n, k, s, d in zip(self.outputs, self.kernel, self.stride, self.dilation, strict=True)
        )
        return rows, columns

    def source(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The index map m(p, q): channel, row and column in the image."""
        (out_height, _), (k_h, k_w) = self.outputs, self.kernel
        i = p % out_height * self.stride[0] + q % k_h * self.dilation[0] - self.before[0]
        j = p // out_height * self.stride[1] + q // k_h % k_w * self.dilation[1] - self.before[1]
        d, i, j = torch.broadcast_tensors(q // (k_h * k_w), i, j)
        return d, i, j


def _scan(size: Sequence[int], kernel_size: Pair, stride: Pair, padding: Padding, dilation: Pair) -> _Scan:
    height, width = size
    if min(height, width) < 1:
        raise ValueError(f"the image must have at least one row and one column, got {(height, width)}")
    kernel = check_pair("kernel_size", kernel_size, 1)
    steps = check_pair("stride", stride, 1)
    spread = check_pair("dilation", dilation, 1)
    if isinstance(padding, str):
        check_one_of("padding", padding, ("same", "valid"), "or an int or two ints")
        if padding == "same" and steps != (1, 1):
            raise ValueError(f"stride must be 1 where padding is 'same', got {stride!r}")
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, spread, strict=True)]
        before, after = (total[0] // 2, total[1] // 2), (total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        before = after = check_pair("padding", padding, 0)
    scan = _Scan((height, width), kernel, steps, before, after, spread)
    if min(scan.outputs) < 1:
        raise ValueError(
            f"kernel_size {kernel} with dilation {spread} must fit into the padded image, got one of {scan.padded}"
        )
    return scan


# --- the matrix -----------------------------------------------------------------------------------


def patches(input: Tensor, kernel_size: Pair, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1) -> Tensor:
    r"""The matrix :math:`\varphi(x)` of all patches: one row for each position of the kernel.

    .. math:: \varphi(x)_{p, q} = x_{m(p, q)}

    which is :eq:`eq-patches`, with the index map :math:`m` of :eq:`eq-index-map`. It is the transpose of Octave's
    ``im2col``. :func:`torch.nn.functional.unfold` has the same numbers in another order, :eq:`eq-unfold`.

    Args:
        input: ``(N, D, H, W)`` or ``(D, H, W)``, any dtype.
        kernel_size: rows and columns of the kernel.
        stride: steps of the kernel, down and to the right.
        padding: rows and columns of zeros on each side; ``'same'`` keeps the size, ``'valid'`` is 0.
        dilation: distance of two neighbours in the kernel.

    Returns:
        ``(N, H'W', k_h k_w D)`` or without N. Row :math:`p = i' + H' j'` is the position :math:`(i', j')`, column
        :math:`q = k_h k_w d + k_h j'' + i''` the element :math:`(i'', j'')` of the kernel in channel :math:`d`.

    Raises:
        TypeError: an argument has another type.
        ValueError: another shape, a number out of its range, or a kernel that does not fit.

    Example:
        >>> A = torch.tensor([[1, 3, 1, 4], [2, 8, 5, 1], [3, 2, 0, 3]])
        >>> patches(A[None], 2).T
        tensor([[1, 2, 3, 8, 1, 5],
                [2, 3, 8, 2, 5, 0],
                [3, 8, 1, 5, 4, 1],
                [8, 2, 5, 0, 1, 3]])

    Source: the book, :eq:`eq-patches`; Wu (2017).
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a torch tensor, got {type(input).__name__}")
    check_image("input", input)
    scan = _scan(input.shape[-2:], kernel_size, stride, padding, dilation)
    rows, columns = (part.to(input.device) for part in scan.positions())
    padded = F.pad(input, (scan.before[1], scan.after[1], scan.before[0], scan.after[0]))
    windows = padded[..., rows[:, None, :, None], columns[None, :, None, :]]  # (..., D, H', W', k_h, k_w)
    windows = windows.movedim((-3, -4, -5, -1, -2), (-5, -4, -3, -2, -1))  # (..., W', H', D, k_w, k_h)
    return windows.flatten(-3).flatten(-3, -2)


def index_map(
    p: Tensor | int,
    q: Tensor | int,
    input_size: Sequence[int],
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Where the element :math:`(p, q)` of the patches comes from: :math:`m(p, q) = (d, i, j)`.

    .. math::

        d = \lfloor q / (k_h k_w) \rfloor, \qquad i = s_h i' + \delta_h i'' - P_h, \qquad j = s_w j' + \delta_w j'' - P_w

    with :math:`p = i' + H' j'` and :math:`q = k_h k_w d + k_h j'' + i''`, which is :eq:`eq-index-map`. The map is not
    one to one: a pixel is in many patches.

    Args:
        p: rows of :func:`patches`, from 0; an int or an integer tensor of any shape.
        q: columns, likewise; ``p`` and ``q`` broadcast against each other.
        input_size: ``(D, H, W)``.
        kernel_size, stride, padding, dilation: as :func:`patches`.

    Returns:
        The channel, the row and the column, int64. A row or a column outside the image lies in the padding.

    Raises:
        TypeError: an argument has another type.
        ValueError: a number out of its range, or a kernel that does not fit.

    Example:
        >>> [int(part) for part in index_map(4, 2, (1, 3, 4), 2)]
        [0, 0, 3]

    Source: the book, :eq:`eq-index-map`; Wu (2017).
    """
    channels, height, width = _check_size(input_size)
    scan = _scan((height, width), kernel_size, stride, padding, dilation)
    p = _check_index("p", p, math.prod(scan.outputs))
    q = _check_index("q", q, math.prod(scan.kernel) * channels)
    try:
        return scan.source(p, q)
    except RuntimeError:
        raise ValueError(f"p and q must broadcast, got shapes {tuple(p.shape)} and {tuple(q.shape)}") from None


def gather_matrix(
    input_size: Sequence[int],
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""The 0/1 matrix :math:`M` that gathers the patches from the image.

    .. math:: \operatorname{vec} \varphi(x) = M \operatorname{vec} x

    which is :eq:`eq-gather-matrix`. A row has one 1, or none where the patch reaches into the padding.
    :math:`M^\top M` is diagonal and counts in how many patches a pixel is, :eq:`eq-overlap`.

    Args:
        input_size: ``(D, H, W)``.
        kernel_size, stride, padding, dilation: as :func:`patches`.
        dtype: of the entries; torch's default dtype if it is not given.
        device: of the matrix.

    Returns:
        ``(H'W' k_h k_w D, D H W)``, sparse COO, coalesced.

    Raises:
        TypeError: an argument has another type.
        ValueError: a number out of its range, or a kernel that does not fit.

    Example:
        >>> M = gather_matrix((1, 3, 4), 2).to_dense()
        >>> M.shape, (M.T @ M).diagonal().reshape(4, 3).T
        (torch.Size([24, 12]), tensor([[1., 2., 2., 1.],
                [2., 4., 4., 2.],
                [1., 2., 2., 1.]]))

    Source: the book, :eq:`eq-gather-matrix`; Wu (2017).
    """
    channels, height, width = _check_size(input_size)
    scan = _scan((height, width), kernel_size, stride, padding, dilation)
    count = math.prod(scan.outputs), math.prod(scan.kernel) * channels
    d, i, j = (part.flatten() for part in scan.source(torch.arange(count[0]), torch.arange(count[1])[:, None]))
    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
    at = torch.arange(len(d))[inside], ((d * width + j) * height + i)[inside]
    return torch.sparse_coo_tensor(
        torch.stack(at),
        torch.ones(len(at[0]), dtype=dtype),
        (count[0] * count[1], channels * height * width),
        device=device,
        check_invariants=True,
    ).coalesce()


def kernel_matrix(weight: Tensor, groups: int = 1) -> Tensor:
    r"""The matrix :math:`C`, whose columns are the kernels.

    .. math:: C = (\operatorname{vec} \kappa_0, \dots, \operatorname{vec} \kappa_{D'-1})

    which is :eq:`eq-kernel-matrix`. With groups a kernel sees a part of the channels, and its column has zeros for the
    others: :math:`C` has blocks, :eq:`eq-conv-groups`.

    Args:
        weight: ``(D', D / groups, k_h, k_w)``.
        groups: a divisor of :math:`D'`.

    Returns:
        ``(k_h k_w D, D')``.

    Raises:
        TypeError: ``weight`` is not a tensor.
        ValueError: another shape, or ``groups`` does not divide :math:`D'`.

    Example:
        >>> kernel_matrix(torch.tensor([[[[1, 0], [-1, 1]]]])).T
        tensor([[ 1, -1,  0,  1]])

    Source: the book, :eq:`eq-kernel-matrix`; Wu (2017).
    """
    _check_weight(weight, groups)
    columns = vec(weight, order=3).T
    return columns if groups == 1 else _spread_groups(columns, groups)


def conv2d_jacobians(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> tuple[Tensor, ...]:
    r"""The Jacobians of :func:`conv2d` in the input, in the weight and in the bias, for one sample.

    .. math::

        \frac{\partial \operatorname{vec} y}{\partial (\operatorname{vec} x)^\top} = (C^\top \otimes I) M, \qquad
        \frac{\partial \operatorname{vec} y}{\partial (\operatorname{vec} \kappa)^\top} = I \otimes \varphi(x), \qquad
        \frac{\partial \operatorname{vec} y}{\partial b^\top} = I \otimes \mathbf 1

    which are :eq:`eq-conv-kron-input`, :eq:`eq-conv-kron-weight` and :eq:`eq-conv-bias-grad`. They are dense and
    large: for small shapes.

    Args:
        input: ``(D, H, W)``, floating point.
        weight, bias, stride, padding, dilation, groups: as :func:`conv2d`.

    Returns:
        Two matrices, or three with a bias. Rows and columns in the order of :func:`pwl_lib.kronecker.vec`. With groups
        the second has the patches of each kernel's own channels in its block.

    Raises:
        TypeError, ValueError: as :func:`conv2d`, and for a batch.

    Example:
        >>> by_input, by_weight = conv2d_jacobians(torch.ones(1, 3, 4), torch.ones(1, 1, 2, 2))
        >>> by_input.shape, by_weight.shape
        (torch.Size([6, 12]), torch.Size([6, 4]))

    Source: the book, :eq:`eq-conv-kron-input` and :eq:`eq-conv-kron-weight`.
    """
    check_floating("input", input)
    _check_conv2d(input, weight, bias, groups)
    if input.dim() != 3:
        raise ValueError(f"input must be one sample, (D, H, W), got shape {tuple(input.shape)}")
    words = weight.shape[-2:], stride, padding, dilation
    gather = gather_matrix(input.shape, *words, dtype=input.dtype, device=input.device).to_dense()
    each = [patches(part, *words) for part in input.chunk(groups)]
    count, kernels = each[0].shape[0], weight.shape[0]
    one = torch.eye(count, dtype=input.dtype, device=input.device)
    by_input = kron(kernel_matrix(weight, groups).T, one) @ gather
    by_weight = torch.block_diag(*(own for own in each for _ in range(kernels // groups)))
    if bias is None:
        return by_input, by_weight
    return by_input, by_weight, kron(torch.eye(kernels, dtype=input.dtype, device=input.device), one.new_ones(count, 1))


def linear_jacobians(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    r"""The Jacobians of :func:`linear` in the input, in the weight and in the bias, for one sample.

    .. math::

        \frac{\partial y}{\partial x^\top} = W, \qquad
        \frac{\partial y}{\partial (\operatorname{vec} W)^\top} = x^\top \otimes I, \qquad
        \frac{\partial y}{\partial b^\top} = I

    which are :eq:`eq-linear-vjp`.

    Args:
        input: ``(n,)``, floating point.
        weight: ``(m, n)``.
        bias: ``(m,)`` or None.

    Returns:
        ``(m, n)``, ``(m, mn)`` and, with a bias, ``(m, m)``.

    Raises:
        TypeError, ValueError: as :func:`linear`, and for a batch.

    Example:
        >>> by_input, by_weight = linear_jacobians(torch.tensor([2.0, 3.0]), torch.ones(1, 2))
        >>> by_input.tolist(), by_weight.tolist()
        ([[1.0, 1.0]], [[2.0, 3.0]])

    Source: the book, :eq:`eq-linear-vjp`.
    """
    check_floating("input", input)
    _check_linear(input, weight, bias)
    if input.dim() != 1:
        raise ValueError(f"input must be one sample, (n,), got shape {tuple(input.shape)}")
    one = torch.eye(weight.shape[0], dtype=input.dtype, device=input.device)
    return (weight, kron(input[None], one)) if bias is None else (weight, kron(input[None], one), one)


def _spread_groups(columns: Tensor, groups: int) -> Tensor:
    """Columns ``(Q / groups, D')`` of the kernels become ``(Q, D')``, with zeros for the channels that they do not see."""
    own = columns.unflatten(-1, (groups, -1)).movedim(-2, 0)  # (groups, Q / groups, D' / groups)
    here = torch.eye(groups, dtype=columns.dtype, device=columns.device)
    return (here[:, None, :, None] * own[:, :, None, :]).flatten(2).flatten(0, 1)


def _gather_groups(columns: Tensor, groups: int) -> Tensor:
    """The transpose of :func:`_spread_groups`: the blocks on the diagonal."""
    blocks = columns.unflatten(0, (groups, -1)).unflatten(-1, (groups, -1))
    return blocks.diagonal(dim1=0, dim2=2).movedim(-1, 1).flatten(1)


def _check_index(name: str, value: Tensor | int, below: int) -> Tensor:
    if not isinstance(value, (int, Tensor)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int or a tensor of them, got {type(value).__name__}")
    index = torch.as_tensor(value)
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"{name} must be an int or a tensor of them, got {index.dtype}")
    index = index.to(torch.int64)  # a byte cannot count to 256
    if bool(((index < 0) | (index >= below)).any()):
        raise ValueError(f"{name} must lie in 0, ..., {below - 1}, got {value!r}")
    return index


def _check_size(input_size: Sequence[int]) -> tuple[int, int, int]:
    if not isinstance(input_size, Sequence) or len(input_size) != 3:
        raise ValueError(f"input_size must be (D, H, W), got {input_size!r}")
    for size in input_size:
        check_count("input_size", size, 1)
    return input_size[0], input_size[1], input_size[2]


def _check_weight(weight: Tensor, groups: int) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch tensor, got {type(weight).__name__}")
    _check_weight_size("weight", weight.shape, groups)


def _check_weight_size(name: str, size: Sequence[int], groups: int) -> None:
    check_count("groups", groups, 1)
    if len(size) != 4:
        raise ValueError(f"{name} must have shape (D', D / groups, k_h, k_w), got {tuple(size)}")
    if size[0] < 1:
        raise ValueError(f"{name} must have at least one kernel, got shape {tuple(size)}")
    if size[0] % groups:
        raise ValueError(f"groups must divide the {size[0]} kernels of {name}, got {groups}")


def _check_channels(name: str, size: Sequence[int], weight_size: Sequence[int], groups: int) -> None:
    if size[-3] != weight_size[1] * groups:
        raise ValueError(
            f"{name} must have {weight_size[1]} * {groups} channels for weight {tuple(weight_size)} in groups of "
            f"{groups}, got shape {tuple(size)}"
        )


def _check_sizes(name: str, value: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or not all(isinstance(size, int) for size in value):
        raise TypeError(f"{name} must be a sequence of ints, got {value!r}")
    return tuple(value)


def _check_upstream(upstream: Tensor, shape: Sequence[int]) -> None:
    if upstream.shape != torch.Size(shape):
        raise ValueError(f"upstream must have the shape of the output, {tuple(shape)}, got {tuple(upstream.shape)}")


def _check_bias(bias: Tensor | None, outputs: int, like: Tensor) -> None:
    if bias is None:
        return
    check_same_kind("bias", bias, "input", like)
    if bias.shape != (outputs,):
        raise ValueError(f"bias must have shape ({outputs},), got {tuple(bias.shape)}")


def _check_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    check_image("input", input)
    check_same_kind("weight", weight, "input", input)
    _check_weight(weight, groups)
    _check_channels("input", input.shape, weight.shape, groups)
    _check_bias(bias, weight.shape[0], input)


def _check_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_same_kind("weight", weight, "input", input)
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape (m, n), got {tuple(weight.shape)}")
    if input.dim() == 0 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"input must have shape (*, {weight.shape[1]}) for weight {tuple(weight.shape)}, got {tuple(input.shape)}"
        )
    _check_bias(bias, weight.shape[0], input)


# --- the function ---------------------------------------------------------------------------------


def conv2d_input(
    input_size: Sequence[int],
    weight: Tensor,
    upstream: Tensor,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    form: InputForm = "kernel",
) -> Tensor:
    r"""The gradient of a loss :math:`z` in the input of :func:`conv2d`, in one of four forms that are equal.

    With :math:`T = G C^\top`, the gradient in the patches:

    * ``'matrix'``: :math:`\operatorname{vec} \frac{\partial z}{\partial x} = M^\top \operatorname{vec} T`, with the
      sparse matrix, :eq:`eq-conv-input-grad`;
    * ``'index'``: :math:`\left(\frac{\partial z}{\partial x}\right)_{d, i, j} = \sum_{m(p, q) = (d, i, j)} T_{p, q}`,
      :eq:`eq-conv-index-sum`;
    * ``'fold'``: each patch is added where it came from, :eq:`eq-conv-fold`;
    * ``'kernel'``: the index sum, regrouped so that :math:`T` is never formed, :eq:`eq-conv-transposed`: a transposed
      convolution, by torch's own kernel. It is the fast one.

    Args:
        input_size: the shape of the input, ``(N, D, H, W)`` or ``(D, H, W)``.
        weight: ``(D', D / groups, k_h, k_w)``, floating point.
        upstream: :math:`G = \partial z / \partial y`, the shape and dtype of the output.
        stride, padding, dilation, groups: as :func:`conv2d`.
        form: see above.

    Returns:
        ``input_size``. Differentiable in ``weight`` and ``upstream``; ``'matrix'`` in reverse mode only and without
        ``vmap``, as are torch's sparse products.

    Raises:
        TypeError, ValueError: as :func:`conv2d`; another shape of ``upstream``, an unknown ``form``.

    Example:
        >>> weight = torch.tensor([[[[1.0, 0.0], [-1.0, 1.0]]]])
        >>> conv2d_input((1, 3, 4), weight, torch.ones(1, 2, 3), form="index")
        tensor([[[ 1.,  1.,  1.,  0.],
                 [ 0.,  1.,  1.,  1.],
                 [-1.,  0.,  0.,  1.]]])

    Source: the book, :eq:`eq-conv-input-grad` to :eq:`eq-conv-transposed`; Wu (2017).
    """
    check_floating("weight", weight)
    _check_weight(weight, groups)
    check_same_kind("upstream", upstream, "weight", weight)
    check_one_of("form", form, get_args(InputForm))
    size = _check_sizes("input_size", input_size)
    if len(size) == 3:
        return conv2d_input((1, *size), weight, upstream[None], stride, padding, dilation, groups, form=form)[0]
    if len(size) != 4:
        raise ValueError(f"input_size must be (N, D, H, W) or (D, H, W), got {size}")
    _check_channels("input_size", size, weight.shape, groups)
    scan = _scan(size[-2:], tuple(weight.shape[-2:]), stride, padding, dilation)
    _check_upstream(upstream, (size[0], weight.shape[0], *scan.outputs))
    even = scan.even()
    gradient = _input_gradient((*size[:2], *even.size), weight, upstream, even, groups, form)
    return gradient[..., : size[2], : size[3]]


def conv2d_weight(
    input: Tensor,
    weight_size: Sequence[int],
    upstream: Tensor,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    form: WeightForm = "kernel",
) -> Tensor:
    r"""The gradient of a loss :math:`z` in the weight of :func:`conv2d`.

    .. math:: \frac{\partial z}{\partial C} = \sum_{n} \varphi(x_n)^\top G_n

    which is :eq:`eq-conv-weight-grad`.

    Args:
        input: ``(N, D, H, W)`` or ``(D, H, W)``, floating point.
        weight_size: ``(D', D / groups, k_h, k_w)``.
        upstream: :math:`G = \partial z / \partial y`, the shape and dtype of the output.
        stride, padding, dilation, groups: as :func:`conv2d`.
        form: ``'patches'`` forms :math:`\varphi(x)`; ``'kernel'``, the fast one, leaves the sum to torch's own kernel.

    Returns:
        ``weight_size``. Differentiable in ``input`` and ``upstream``.

    Raises:
        TypeError, ValueError: as :func:`conv2d`; another shape of ``upstream``, an unknown ``form``.

    Example:
        >>> A = torch.tensor([[1.0, 3.0, 1.0, 4.0], [2.0, 8.0, 5.0, 1.0], [3.0, 2.0, 0.0, 3.0]])
        >>> conv2d_weight(A[None], (1, 1, 2, 2), torch.ones(1, 2, 3), form="patches")
        tensor([[[[20., 22.],
                  [20., 19.]]]])

    Source: the book, :eq:`eq-conv-weight-grad`; Wu (2017).
    """
    check_floating("input", input)
    check_image("input", input)
    size = _check_sizes("weight_size", weight_size)
    _check_weight_size("weight_size", size, groups)
    check_same_kind("upstream", upstream, "input", input)
    check_one_of("form", form, get_args(WeightForm))
    if input.dim() == 3:
        return conv2d_weight(input[None], size, upstream[None], stride, padding, dilation, groups, form=form)
    _check_channels("input", input.shape, size, groups)
    scan = _scan(input.shape[-2:], size[-2:], stride, padding, dilation)
    _check_upstream(upstream, (input.shape[0], size[0], *scan.outputs))
    return _weight_gradient(_pad_unevenly(input, scan), size, upstream, scan.even(), groups, form)


def _pad_unevenly(x: Tensor, scan: _Scan) -> Tensor:
    """Zeros below and to the right, where ``'same'`` wants more of them than above and to the left; as torch does it."""
    (top, left), (bottom, right) = scan.before, scan.after
    return F.pad(x, (0, right - left, 0, bottom - top)) if (top, left) != (bottom, right) else x


def _by_position(upstream: Tensor) -> Tensor:
    """``(N, D', H', W')`` to :math:`G`, ``(N, H'W', D')``, the layout of the product of patches and kernels."""
    return vec(upstream, order=2).mT


def _input_gradient(
    size: Sequence[int], weight: Tensor, upstream: Tensor, scan: _Scan, groups: int, form: InputForm
) -> Tensor:
    if form == "kernel":
        image = upstream.new_empty(1).expand(size)  # only its size is read
        return _kernel_backward(upstream, image, weight, scan, groups, (True, False, False))[0]
    in_patches = _by_position(upstream) @ kernel_matrix(weight, groups).mT  # T, (N, H'W', k_h k_w D)
    padded = _SCATTER[form](in_patches, (*size[:2], *scan.padded), scan)
    top, left = scan.before
    return padded[..., top : top + size[2], left : left + size[3]]


def _scatter_by_matrix(in_patches: Tensor, padded: Sequence[int], scan: _Scan) -> Tensor:
    gather = gather_matrix(
        padded[1:], scan.kernel, scan.stride, 0, scan.dilation, dtype=in_patches.dtype, device=in_patches.device
    )
    return unvec((gather.T @ vec(in_patches, order=2).T).T, tuple(padded[1:]))


def _scatter_by_index(in_patches: Tensor, padded: Sequence[int], scan: _Scan) -> Tensor:
    samples, channels, height, width = padded
    _, positions, elements = in_patches.shape
    unpadded = replace(scan, size=scan.padded, before=(0, 0), after=(0, 0))
    d, i, j = unpadded.source(torch.arange(positions)[:, None], torch.arange(elements))
    target = ((d * height + i) * width + j).flatten().to(in_patches.device)
    sums = in_patches.new_zeros(samples, channels * height * width)
    return sums.index_add(1, target, in_patches.flatten(1)).unflatten(1, (channels, height, width))


def _scatter_by_fold(in_patches: Tensor, padded: Sequence[int], scan: _Scan) -> Tensor:
    (rows, columns), (k_h, k_w) = scan.outputs, scan.kernel
    blocks = in_patches.unflatten(2, (padded[1], k_w, k_h)).unflatten(1, (columns, rows))
    row_by_row = blocks.permute(0, 3, 5, 4, 2, 1).flatten(4).flatten(1, 3)  # torch's order, (N, D k_h k_w, H'W')
    return F.fold(row_by_row, scan.padded, scan.kernel, scan.dilation, 0, scan.stride)


_SCATTER: dict[str, Callable[[Tensor, Sequence[int], _Scan], Tensor]] = {
    "matrix": _scatter_by_matrix,
    "index": _scatter_by_index,
    "fold": _scatter_by_fold,
}


def _weight_gradient(
    x: Tensor, size: Sequence[int], upstream: Tensor, scan: _Scan, groups: int, form: WeightForm
) -> Tensor:
    if form == "kernel":
        kernels = x.new_empty(1).expand(size)  # only its size is read
        return _kernel_backward(upstream, x, kernels, scan, groups, (False, True, False))[1]
    by_patches = patches(x, scan.kernel, scan.stride, scan.before, scan.dilation)
    columns = (by_patches.mT @ _by_position(upstream)).sum(0)
    return unvec((columns if groups == 1 else _gather_groups(columns, groups)).T, tuple(size[1:]))


def _kernel_backward(
    upstream: Tensor, x: Tensor, weight: Tensor, scan: _Scan, groups: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in input, weight and bias by torch's own kernels; None for one that is not wanted."""
    geometry = list(scan.stride), list(scan.before), list(scan.dilation)
    return torch.ops.aten.convolution_backward.default(
        upstream, x, weight, [weight.shape[0]], *geometry, False, [0, 0], groups, list(wanted)
    )


class _Conv2d(LayerFunction):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, scan: _Scan, groups: int, backward: InputForm
    ) -> Tensor:
        return F.conv2d(x, weight, bias, scan.stride, scan.before, scan.dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.scan, ctx.groups, ctx.form = inputs
        ctx.all_saved = save_factors(ctx, x, weight)
        if not ctx.all_saved:
            ctx.layouts = (x.shape, x.stride()), (weight.shape, weight.stride())

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if not ctx.all_saved:
            # Of a factor that is not needed torch's kernel reads the layout, and none of its numbers.
            x, weight = (
                upstream.new_empty_strided(*layout) if factor is None else factor
                for factor, layout in zip((x, weight), ctx.layouts, strict=True)
            )
        by_input, by_weight, by_bias = wanted = ctx.needs_input_grad[:3]
        if ctx.form == "kernel":
            return *_kernel_backward(upstream, x, weight, ctx.scan, ctx.groups, wanted), None, None, None
        words = upstream, ctx.scan, ctx.groups
        return (
            _input_gradient(x.shape, weight, *words, ctx.form) if by_input else None,
            _weight_gradient(x, weight.shape, *words, "patches") if by_weight else None,
            upstream.sum((0, 2, 3)) if by_bias else None,
            *(None, None, None),
        )


class _Conv2dForward(_Conv2d):
    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, *_: Any) -> Tensor | None:
        x, weight = ctx.saved_tensors
        geometry = ctx.scan.stride, ctx.scan.before, ctx.scan.dilation, ctx.groups
        return sum_of(
            None if dx is None else F.conv2d(dx, weight, None, *geometry),
            None if dweight is None else F.conv2d(x, dweight, None, *geometry),
            None if dbias is None else dbias[:, None, None].expand(x.shape[0], -1, *ctx.scan.outputs),
        )


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    backward: InputForm = "kernel",
) -> Tensor:
    r"""Two-dimensional convolution; the kernel is not flipped.

    .. math:: \operatorname{vec} y = \operatorname{vec}(\varphi(x) C + \mathbf 1 b^\top)

    which is :eq:`eq-conv-forward`. The gradients are :eq:`eq-conv-input-grad`, :eq:`eq-conv-weight-grad` and
    :eq:`eq-conv-bias-grad`. The value is torch's, bit for bit, and with the default ``backward`` so are the gradients.

    For the backward pass it keeps the input only if the gradient in the weight is wanted, and the weight only if the
    one in the input is. torch keeps both.

    Args:
        input: ``(N, D, H, W)`` or ``(D, H, W)``, floating point.
        weight: ``(D', D / groups, k_h, k_w)``, the dtype of ``input``.
        bias: ``(D',)`` or None.
        stride: steps of the kernel, an int or two, rows first.
        padding: rows and columns of zeros on each side, an int or two; ``'valid'`` is 0; ``'same'`` keeps the size,
            with the odd row or column below and to the right, and wants stride 1.
        dilation: distance of two neighbours in the kernel, an int or two.
        groups: into how many parts the channels are divided; each part has kernels of its own.
        backward: how the gradient in the input is computed, one of the forms of :func:`conv2d_input`. The default is
            the fast one. The others are for reading: with them the gradient in the weight is formed by patches, and
            batched gradients (``is_grads_batched``) are not to be had; ``'matrix'`` does without ``torch.func`` and
            forward mode over the backward pass, and without ``torch.compile``, too.

    Returns:
        ``(N, D', H', W')`` or without N, :eq:`eq-conv-size`.

    Raises:
        TypeError: a tensor is not floating point, or the dtypes differ.
        ValueError: a shape does not fit, a number is out of its range.

    Example:
        >>> A = torch.tensor([[1.0, 3.0, 1.0, 4.0], [2.0, 8.0, 5.0, 1.0], [3.0, 2.0, 0.0, 3.0]])
        >>> K = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
        >>> conv2d(A[None], K[None, None])
        tensor([[[ 7.,  0., -3.],
                 [ 1.,  6.,  8.]]])

    Source: the book, :eq:`eq-conv-forward`; Wu (2017).
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if has_torch_function_variadic(*tensors):
        words = {"backward": backward} if backward != "kernel" else {}
        return handle_torch_function(conv2d, tensors, input, weight, bias, stride, padding, dilation, groups, **words)
    check_floating("input", input)
    input, weight, bias = autocast_as_torch(input, weight, bias)
    _check_conv2d(input, weight, bias, groups)
    check_one_of("backward", backward, get_args(InputForm))
    # torch.jit.trace hands on sizes as tensors
    scan = _scan(input.shape[-2:], tuple(int(n) for n in weight.shape[-2:]), stride, padding, dilation)
    x = _pad_unevenly(input, scan)
    even = scan.even()
    if not derivative_wanted(*tensors):
        return F.conv2d(x, weight, bias, even.stride, even.before, even.dilation, groups)
    if x.dim() == 3:
        return pick(_Conv2d, _Conv2dForward).apply(x[None], weight, bias, even, groups, backward)[0]
    return pick(_Conv2d, _Conv2dForward).apply(x, weight, bias, even, groups, backward)


def _rows(x: Tensor) -> Tensor:
    """``(*, n)`` to ``(N, n)``; -1 would not do where n is 0."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


class _Linear(LayerFunction):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        save_factors(ctx, inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors  # either is None where it is not needed
        by_input, by_weight, by_bias = ctx.needs_input_grad
        rows = _rows(upstream)
        return (
            upstream @ weight if by_input else None,
            rows.T @ _rows(x) if by_weight else None,
            rows.sum(0) if by_bias else None,
        )


class _LinearForward(_Linear):
    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None) -> Tensor | None:
        x, weight = ctx.saved_tensors
        return sum_of(
            None if dx is None else F.linear(dx, weight),
            None if dweight is None else F.linear(x, dweight),
            None if dbias is None else dbias.expand(*x.shape[:-1], -1),
        )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""The fully connected layer: a convolution whose kernel covers the whole map.

    .. math::

        y = W x + b, \qquad \frac{\partial z}{\partial x} = W^\top \frac{\partial z}{\partial y}, \qquad
        \frac{\partial z}{\partial W} = \frac{\partial z}{\partial y} x^\top, \qquad
        \frac{\partial z}{\partial b} = \frac{\partial z}{\partial y}

    which are :eq:`eq-linear` and :eq:`eq-linear-vjp`, summed over the samples for W and b. For the backward pass it
    keeps the input only if the gradient in the weight is wanted, and the weight only if the one in the input is.

    Args:
        input: ``(*, n)``, floating point.
        weight: ``(m, n)``, the dtype of ``input``.
        bias: ``(m,)`` or None.

    Returns:
        ``(*, m)``.

    Raises:
        TypeError: a tensor is not floating point, or the dtypes differ.
        ValueError: a shape does not fit.

    Example:
        >>> linear(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0]]), torch.tensor([0.5]))
        tensor([11.5000])

    Source: the book, :eq:`eq-linear-vjp`.
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(linear, tensors, input, weight, bias)
    check_floating("input", input)
    input, weight, bias = autocast_as_torch(input, weight, bias)
    _check_linear(input, weight, bias)
    if not derivative_wanted(*tensors):
        return F.linear(input, weight, bias)
    return pick(_Linear, _LinearForward).apply(input, weight, bias)


# --- the module -----------------------------------------------------------------------------------


class Conv2d(nn.Conv2d):
    """:func:`conv2d` as a module; ``torch.nn.Conv2d`` in every word, parameter and key of the state.

    Args:
        in_channels: D.
        out_channels: D'.
        kernel_size, stride, padding, dilation, groups: as :func:`conv2d`.
        bias: whether there is one.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        device, dtype: of the parameters.

    Shapes:
        ``(N, D, H, W)`` or ``(D, H, W)`` to ``(N, D', H', W')`` or ``(D', H', W')``.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> Conv2d(3, 8, kernel_size=3, padding="same")(torch.ones(2, 3, 5, 5)).shape
        torch.Size([2, 8, 5, 5])

    Source: the book, :eq:`eq-conv-forward`.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class Linear(nn.Linear):
    """:func:`linear` as a module; ``torch.nn.Linear`` in every word, parameter and key of the state.

    Args:
        in_features: n.
        out_features: m.
        bias: whether there is one.
        device, dtype: of the parameters.

    Shapes:
        ``(*, n)`` to ``(*, m)``.

    Example:
        >>> Linear(3, 2)(torch.ones(5, 3)).shape
        torch.Size([5, 2])

    Source: the book, :eq:`eq-linear`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
