r"""LogSumExp: the smooth maximum, its gradient softmax, its Hessian, and smooth pooling.

The module of the chapter *LogSumExp*. First the matrices: the Jacobian :math:`p^\top` and the Hessian
:math:`t(\operatorname{diag}(p) - p\,p^\top)`; then the functions; then the modules.

The temperature :math:`t` multiplies: a large one is near the maximum. Where a text divides by a temperature
:math:`\tau`, it is :math:`\tau = 1/t`. Nothing overflows at any finite input and temperature, in any dtype, unless the
result does, and gradients are finite at infinite entries too. Half precision is computed in float32 and rounded once; under
autocast on an accelerator it stays in float32, as in torch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from pwl_lib._autograd import LayerFunction, autocast_is_on, derivative_wanted, pick
from pwl_lib._smooth import Smoothed, smooth
from pwl_lib._validation import check_bool, check_floating, check_temperature
from pwl_lib._windows import Pair
from pwl_lib.pooling import _check_image, _layout, _max_pool, _Windows, _windows

__all__ = [
    "LSEPool2d",
    "LogSumExp",
    "Smoothed",
    "Softmax",
    "logsumexp",
    "logsumexp_hessian",
    "logsumexp_jacobian",
    "lse_pool2d",
    "mellowmax",
    "smooth",
    "softmax",
]


# --- the matrix -----------------------------------------------------------------------------------


def logsumexp_jacobian(input: Tensor, temperature: float = 1.0) -> Tensor:
    r"""The Jacobian of LogSumExp over the last dimension: one row, the softmax of the input times the temperature.

    .. math:: \frac{\partial \operatorname{LSE}_t}{\partial x^\top} = p^\top, \qquad p = \operatorname{softmax}(t x)

    which is :eq:`eq-lse-gradient`. Its entries are not negative and their sum is 1.

    Args:
        input: ``(..., n)``, floating point.
        temperature: :math:`t`, finite and above 0.

    Returns:
        ``(..., 1, n)``, numerator layout: one output, n inputs. Infinite inputs as in :func:`softmax`.

    Raises:
        TypeError: ``input`` is not a floating point tensor, or ``temperature`` is not a number.
        ValueError: ``input`` has no dimension, or ``temperature`` is not finite or not above 0.

    Example:
        >>> logsumexp_jacobian(torch.tensor([0.0, 0.0]), 10.0)
        tensor([[0.5000, 0.5000]])

    Source: the book, :eq:`eq-lse-gradient`.
    """
    _check_vector(input)
    return _softmax(input, -1, check_temperature(temperature)).unsqueeze(-2)


def logsumexp_hessian(input: Tensor, temperature: float = 1.0) -> Tensor:
    r"""The Hessian of LogSumExp over the last dimension.

    .. math:: H = t \, (\operatorname{diag}(p) - p\,p^\top), \qquad p = \operatorname{softmax}(t x)

    which is :eq:`eq-lse-hessian`. It is symmetric and positive semidefinite, its rows sum to 0, and no eigenvalue exceeds
    :math:`t / 2`.

    Args:
        input: ``(..., n)``, floating point.
        temperature: :math:`t`, finite and above 0.

    Returns:
        ``(..., n, n)``.

    Raises:
        TypeError, ValueError: as :func:`logsumexp_jacobian`.

    Example:
        >>> logsumexp_hessian(torch.tensor([0.0, 0.0]), 10.0)
        tensor([[ 2.5000, -2.5000],
                [-2.5000,  2.5000]])

    Source: the book, :eq:`eq-lse-hessian`.
    """
    _check_vector(input)
    t = check_temperature(temperature)
    p = _softmax(_wide(input, t), -1, t)
    return (t * (torch.diag_embed(p) - p[..., :, None] * p[..., None, :])).to(input.dtype)


# --- the stable exponents -------------------------------------------------------------------------


def _wide(x: Tensor, t: float) -> Tensor:
    """``x`` in the dtype of the computation: at least float32, and float64 where float32 has no normal number near t."""
    numbers = torch.finfo(torch.float32)
    if x.dtype != torch.float64 and not numbers.tiny <= t <= numbers.max:
        return x.double()
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _scaled_difference(x: Tensor, top: Tensor, t: float) -> Tensor:
    """t (x - top), a new tensor: :eq:`eq-lse-stable`. Where x - top may overflow and the product not, halves are subtracted."""
    return (x - top) * t if t >= 1 else (x * 0.5 - top * 0.5) * (2 * t)


def _divide(x: Tensor, t: float) -> Tensor:
    """``x / t``; a processor that multiplies by 1 / t must not meet a t whose reciprocal overflows."""
    return x / t if t > 1e-300 else x / (t * 2.0**600) * 2.0**600


def _largest(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The maximum, a constant for derivatives; 0 where there is nothing to take it of."""
    x = x.detach()
    return x.amax(dims, keepdim=True) if x.numel() else x.sum(dims, keepdim=True)


def _without_infinity(top: Tensor) -> Tensor:
    return top.masked_fill(top.isinf(), 0)


def _possible(mask: Tensor) -> bool:
    """False if no entry is True; where it would cost a synchronisation, or cannot be asked, any may be."""
    asked = type(mask) is Tensor and mask.device.type == "cpu" and not torch.compiler.is_compiling()
    return not asked or torch._C._are_functorch_transforms_active() or bool(mask.any())


def _weights(x: Tensor, dims: tuple[int, ...], t: float) -> Tensor:
    """softmax(t x) over ``dims``, in differentiable operations: shared by the entries at infinity, 0 in rows of -infinity."""
    if len(dims) > 1:
        exponentials, total = _exponentials(x, dims, t)
        return exponentials / total
    top = _largest(x, dims)
    exponents = x if t == 1 else _scaled_difference(x, top, t)
    if not _possible(top.isinf()):
        return torch.softmax(exponents, dims[0])
    return torch.softmax(_at_infinity(x, top, exponents), dims[0]).masked_fill(top == -math.inf, 0)


def _exponentials(x: Tensor, dims: tuple[int, ...], t: float) -> tuple[Tensor, Tensor]:
    """e^(t (x - max)) and its sum over ``dims``: the weights before they are divided."""
    top = _largest(x, dims)
    exponents = _scaled_difference(x, top, t)
    if not _possible(top.isinf()):
        exponentials = exponents.exp()
        return exponentials, exponentials.sum(dims, keepdim=True)
    exponentials = _at_infinity(x, top, exponents).exp()
    return exponentials.masked_fill(top == -math.inf, 0), exponentials.sum(dims, keepdim=True)


def _at_infinity(x: Tensor, top: Tensor, exponents: Tensor) -> Tensor:
    """Where the maximum is infinite, the entries that attain it share the weight."""
    return torch.where(top.isinf(), torch.where(x == top, 0.0, -math.inf).to(x.dtype), exponents)


# --- the function ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sum:
    """Over which dimensions the sum runs, and at which temperature. To a transform of torch it is one leaf."""

    dims: tuple[int, ...]
    keepdim: bool
    t: float
    mean: bool

    def reduced(self, y: Tensor) -> Tensor:
        return y if self.keepdim else y.squeeze(self.dims)

    def spread(self, g: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`reduced`."""
        if not self.keepdim and like.dim():
            for dim in sorted(self.dims):
                g = g.unsqueeze(dim)
        return g


def _value(x: Tensor, how: _Sum) -> Tensor:
    """LogSumExp, or its mean: :eq:`eq-lse-stable`."""
    wide = _wide(x, how.t)
    if how.t == 1 and not how.mean:
        return torch.logsumexp(wide, how.dims, how.keepdim).to(x.dtype)
    top = _without_infinity(_largest(wide, how.dims))
    exponents = _scaled_difference(wide, top, how.t)
    if how.mean:
        return how.reduced(_mean(wide, top, exponents, how)).to(x.dtype)
    total = exponents.exp_().sum(how.dims, keepdim=True)
    return how.reduced(top + _divide(total.log(), how.t)).to(x.dtype)


def _mean(x: Tensor, top: Tensor, exponents: Tensor, how: _Sum) -> Tensor:
    """The logarithm of the mean of the exponentials, without the difference of LogSumExp and ln n / t, which cancels."""
    count = math.prod([x.shape[dim] for dim in how.dims]) if x.dim() else 1  # a list: compilers know no generators
    beyond_one = torch.expm1(exponents).sum(how.dims, keepdim=True) / count
    mean = exponents.exp().sum(how.dims, keepdim=True) / count
    log_mean = torch.where(beyond_one > -0.5, torch.log1p(beyond_one), mean.log())
    # With exponents this near to 0 the exponential is 1 + exponent, to rounding, and the whole is the arithmetic mean.
    near = exponents.amin(how.dims, keepdim=True) > -torch.finfo(x.dtype).eps
    return torch.where(near, (x / count).sum(how.dims, keepdim=True), top + _divide(log_mean, how.t))


def _weigh(g: Tensor, x: Tensor, how: _Sum) -> Tensor:
    """``g`` times the weights. On a CPU torch's softmax is the fastest way to them for long rows, and the slowest for short ones."""
    wide = _wide(x, how.t)
    if len(how.dims) == 1 and x.dim() and x.shape[how.dims[0]] >= 64:
        return g * _weights(wide, how.dims, how.t)
    exponentials, total = _exponentials(wide, how.dims, how.t)
    return exponentials * (g / total)


class _LogSumExp(LayerFunction):
    @staticmethod
    def forward(x: Tensor, how: _Sum) -> Tensor:
        return _value(x, how)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Sum], output: Tensor) -> None:
        x, ctx.how = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (x,), how = ctx.saved_tensors, ctx.how
        return _weigh(how.spread(upstream, x), x, how).to(x.dtype), None


class _LogSumExpForward(_LogSumExp):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        (x,), how = ctx.saved_tensors, ctx.how
        return how.reduced(_weigh(tangent, x, how).sum(how.dims, keepdim=True)).to(x.dtype)


def logsumexp(input: Tensor, dim: int | Sequence[int], keepdim: bool = False, temperature: float = 1.0) -> Tensor:
    r"""The smooth maximum: the logarithm of the sum of exponentials, at a temperature.

    .. math::

        \operatorname{LSE}_t(x) = \frac1t \ln \sum_{i=1}^n e^{t x_i}, \qquad
        \frac{\partial z}{\partial x} = \frac{\partial z}{\partial y} \operatorname{softmax}(t x)

    which are :eq:`eq-lse` and :eq:`eq-lse-vjp`. It is computed by :eq:`eq-lse-stable`, so that no finite input and no
    temperature make it overflow. The backward pass keeps the input.

    Args:
        input: any shape, floating point.
        dim: the dimension, or dimensions, over which the sum runs.
        keepdim: whether they stay, with size 1.
        temperature: :math:`t`, finite and above 0; the value is at most :math:`\ln n / t` above the maximum, :eq:`eq-lse-bounds`.

    Returns:
        the shape of ``input`` without ``dim``, in its dtype. At temperature 1 the value is torch's, bit for bit; in half
        precision it is torch's in float32, rounded. A value that the dtype cannot hold is infinite by rounding. Where all
        entries are :math:`-\infty`, or there is none, the value is :math:`-\infty`, and :math:`\infty` where one is
        :math:`\infty`. NaN gives NaN.

    At infinite entries:
        the gradient is 0 where all entries are :math:`-\infty`, and shared equally by the entries at :math:`\infty`.
        torch's is NaN there.

    Raises:
        TypeError: ``input`` is not a floating point tensor, or another argument has another type.
        ValueError: ``temperature`` is not finite or not above 0, or ``dim`` is empty or names a dimension twice.
        IndexError: ``input`` has no dimension ``dim``.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0, 2.0])
        >>> [round(logsumexp(x, 0, temperature=t).item(), 4) for t in (1, 10, 1000)]
        [4.5237, 4.0, 4.0]

    Source: the book, :eq:`eq-lse-vjp`.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(logsumexp, (input,), input, dim, keepdim=keepdim, temperature=temperature)
    return _reduce(input, dim, keepdim, temperature, mean=False)


def mellowmax(input: Tensor, dim: int | Sequence[int], keepdim: bool = False, temperature: float = 1.0) -> Tensor:
    r"""LogSumExp of the mean of the exponentials: a smooth maximum from below, never outside the range of the numbers.

    .. math:: \operatorname{mm}_t(x) = \frac1t \ln \frac1n \sum_{i=1}^n e^{t x_i} = \operatorname{LSE}_t(x) - \frac{\ln n}{t}

    which is :eq:`eq-mellowmax`. It lies between the mean and the maximum, and goes to the one as :math:`t \to 0` and to the
    other as :math:`t \to \infty`. The gradient is that of :func:`logsumexp`.

    Args:
        input: any shape, floating point, with at least one entry along ``dim``.
        dim, keepdim, temperature: as :func:`logsumexp`.

    Returns:
        the shape of ``input`` without ``dim``, in its dtype. It is computed without the difference above, which cancels
        where :math:`t` is small. Infinite entries and NaN as in :func:`logsumexp`.

    Raises:
        TypeError, ValueError, IndexError: as :func:`logsumexp`; ValueError also if there is no entry along ``dim``.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0, 2.0])
        >>> [round(mellowmax(x, 0, temperature=t).item(), 4) for t in (1e-9, 1, 1000)]
        [2.4, 2.9143, 3.9984]

    Source: the book, :eq:`eq-mellowmax`; Asadi and Littman (2017).
    """
    if has_torch_function_unary(input):
        return handle_torch_function(mellowmax, (input,), input, dim, keepdim=keepdim, temperature=temperature)
    return _reduce(input, dim, keepdim, temperature, mean=True)


def _reduce(input: Tensor, dim: int | Sequence[int], keepdim: bool, temperature: float, *, mean: bool) -> Tensor:
    check_floating("input", input)
    check_bool("keepdim", keepdim)
    how = _Sum(_dimensions(dim, input), keepdim, check_temperature(temperature), mean)
    if mean and input.dim() and 0 in (input.shape[d] for d in how.dims):
        raise ValueError(f"input must have at least one entry along dim, {dim!r}, got shape {tuple(input.shape)}")
    input = _as_float32_under_autocast(input)
    if not derivative_wanted(input):
        return _value(input, how)
    return pick(_LogSumExp, _LogSumExpForward).apply(input, how)


class _Softmax(LayerFunction):
    @staticmethod
    def forward(x: Tensor, dim: int, t: float) -> Tensor:
        return _softmax(x, dim, t)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, float], output: Tensor) -> None:
        _, *ctx.words = inputs
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return _times_softmax_jacobian(ctx, upstream), None, None


class _SoftmaxForward(_Softmax):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _times_softmax_jacobian(ctx, tangent)


def _softmax(x: Tensor, dim: int, t: float) -> Tensor:
    return _weights(x if t == 1 else _wide(x, t), (dim,), t).to(x.dtype)


def _times_softmax_jacobian(ctx: Any, g: Tensor) -> Tensor:
    """The Jacobian is symmetric, so that one product serves both modes; it is done by torch's kernel."""
    ((p,), (dim, t)) = ctx.saved_tensors, ctx.words
    if t == 1:
        return torch.ops.aten._softmax_backward_data.default(g, p, dim, p.dtype)
    wide, g = _wide(p, t), _wide(g, t)
    return (t * torch.ops.aten._softmax_backward_data.default(g, wide, dim, wide.dtype)).to(p.dtype)


def softmax(input: Tensor, dim: int | None, dtype: torch.dtype | None = None, temperature: float = 1.0) -> Tensor:
    r"""The gradient of LogSumExp: weights that are not negative and sum to 1, largest where the input is.

    .. math::

        p_i = \frac{e^{t x_i}}{\sum_j e^{t x_j}}, \qquad
        \frac{\partial z}{\partial x} = t \, \bigl( p \odot g - (p^\top g) \, p \bigr), \quad
        g = \frac{\partial z}{\partial p}

    The first is :eq:`eq-softmax-temperature`, the second follows from its Jacobian, :eq:`eq-lse-hessian`. The backward pass
    keeps the result.

    Args:
        input: any shape, floating point; with ``dtype`` any real dtype.
        dim: the dimension along which the weights sum to 1; None is torch's old choice, 0 for an input of 0, 1 or 3
            dimensions and 1 for any other, with a warning.
        dtype: to which the input is cast first.
        temperature: :math:`t`, finite and above 0.

    Returns:
        the shape and dtype of ``input``, or ``dtype``. At temperature 1 it is torch's, bit for bit, on finite input.

    At infinite entries:
        entries at :math:`\infty` share the weight equally, and where all are :math:`-\infty` every weight is 0; torch has NaN
        in both. NaN gives NaN.

    Raises:
        TypeError: ``input`` is not a floating point tensor, or another argument has another type.
        ValueError: ``temperature`` is not finite or not above 0.
        IndexError: ``input`` has no dimension ``dim``.

    Example:
        >>> softmax(torch.tensor([0.0, 1.0]), 0, temperature=2.0)
        tensor([0.1192, 0.8808])

    Source: the book, :eq:`eq-softmax-temperature`.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(softmax, (input,), input, dim, dtype=dtype, temperature=temperature)
    if dtype is not None:
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating point dtype, got {dtype!r}")
        if isinstance(input, Tensor) and not input.is_complex():
            input = input.to(dtype)
    check_floating("input", input)
    t = check_temperature(temperature)
    if dim is None:
        dim = 0 if input.dim() in (0, 1, 3) else 1
        warnings.warn(f"dim of softmax should be given; {dim} is taken, as torch does", stacklevel=2)
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"dim must be an int or None, got {type(dim).__name__}")
    (dim,) = _dimensions(dim, input)
    if dtype is None:
        input = _as_float32_under_autocast(input)
    if not derivative_wanted(input):
        return _softmax(input, dim, t)
    return pick(_Softmax, _SoftmaxForward).apply(input, dim, t)


# --- smooth pooling -------------------------------------------------------------------------------


class _Scan:
    """The windows of an image, one element of all of them at a time: no unfolded copy is made."""

    def __init__(self, x: Tensor, windows: _Windows, t: float) -> None:
        self.windows, self.t, self.like = windows, t, x
        wide = _wide(x, t)
        top = _max_pool(wide.detach(), windows, "row-major")[0]
        self.top = top.masked_fill(top == -math.inf, 0)
        self.mend = _possible(self.top == math.inf)
        axes = zip(windows.size, windows.outputs, windows.stride, windows.span, windows.padding, strict=True)
        rows, columns = ([p, (o - 1) * s + span - n - p] for n, o, s, span, p in axes)
        self.border = [*columns, *rows]  # in the order of torch.nn.functional.pad
        self.image = self.framed(wide, -math.inf)

    def framed(self, image: Tensor, value: float) -> Tensor:
        """What the windows reach over, and no more."""
        return F.pad(image, self.border, value=value) if any(self.border) else image

    def unframed(self, image: Tensor) -> Tensor:
        return F.pad(image, [-n for n in self.border]) if any(self.border) else image

    def places(self) -> Iterator[tuple[Any, ...]]:
        (rows, columns), (k_h, k_w), (s_h, s_w), (d_h, d_w) = (
            self.windows.outputs,
            self.windows.kernel,
            self.windows.stride,
            self.windows.dilation,
        )
        for i in range(0, k_h * d_h, d_h):
            for j in range(0, k_w * d_w, d_w):
                yield ..., slice(i, i + (rows - 1) * s_h + 1, s_h), slice(j, j + (columns - 1) * s_w + 1, s_w)

    def exponential(self, place: tuple[Any, ...]) -> Tensor:
        """e^(t (x - top)) of one element of every window, at most 1; where the top is infinite, 1 for those at infinity."""
        element = self.image[place]
        exponents = _scaled_difference(element, self.top, self.t)
        if self.mend:
            exponents = exponents.masked_fill((element == self.top) & self.top.isinf(), 0)
        return exponents.exp_()

    def total(self) -> Tensor:
        """At least 1; and 1 where a window holds nothing but -infinity, so that its weights are 0."""
        total = self.sum(self.exponential)
        return total.masked_fill(total == 0, 1)

    def sum(self, term: Callable[[tuple[Any, ...]], Tensor]) -> Tensor:
        first, *others = self.places()
        total = term(first)
        for place in others:
            total = total + term(place)
        return total


def _lse_pool(x: Tensor, windows: _Windows, t: float) -> Tensor:
    scan = _Scan(x, windows, t)
    y = scan.top + _divide(scan.sum(scan.exponential).log(), t)
    return y.to(x.dtype).contiguous(memory_format=_layout(x))


class _LSEPool2d(LayerFunction):
    @staticmethod
    def forward(x: Tensor, windows: _Windows, t: float) -> Tensor:
        return _lse_pool(x, windows, t)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Windows, float], output: Tensor) -> None:
        x, *ctx.words = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        scan = _Scan(x, *ctx.words)
        ratio = upstream / scan.total()
        gradient = None
        for place in scan.places():
            part = scan.exponential(place) * ratio
            if gradient is None:  # zeros that a transform knows to be as batched as the parts
                size = zip(scan.image.shape[-2:], part.shape[-2:], strict=True)
                rows, columns = (large - small for large, small in size)
                gradient = F.pad(torch.zeros_like(part), [0, columns, 0, rows])
            gradient[place] += part
        assert gradient is not None  # a window has at least one element
        return scan.unframed(gradient).to(x.dtype).contiguous(memory_format=_layout(x)), None, None


class _LSEPool2dForward(_LSEPool2d):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        scan = _Scan(x, *ctx.words)
        along = scan.framed(tangent, 0)
        return (scan.sum(lambda place: scan.exponential(place) * along[place]) / scan.total()).to(x.dtype)


def lse_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    temperature: float = 1.0,
) -> Tensor:
    r"""The smooth maximum of each window: max pooling without kinks, and with a gradient for every pixel.

    .. math::

        y_o = \frac1t \ln \sum_{q \in \mathcal W_o} e^{t x_q}, \qquad
        \frac{\partial z}{\partial x_q} = \sum_{o \,:\, q \in \mathcal W_o}
        \frac{e^{t x_q}}{\sum_{r \in \mathcal W_o} e^{t x_r}} \frac{\partial z}{\partial y_o}

    which are :eq:`eq-lse-pool` and :eq:`eq-lse-pool-vjp`; :math:`\mathcal W_o` are the pixels of the window of output
    :math:`o`. For the backward pass the input is kept, and the weights are made anew.

    Args:
        input: ``(N, D, H, W)`` or ``(D, H, W)``, floating point.
        kernel_size, stride, padding, dilation, ceil_mode: as :func:`pwl_lib.pooling.max_pool2d`; padding is :math:`-\infty`
            and adds nothing to a sum.
        temperature: :math:`t`, finite and above 0.

    Returns:
        ``(N, D, H', W')`` or without N, :eq:`eq-pool-size`. It exceeds the maximum by at most :math:`\ln n / t`, where
        n is the number of pixels of a window. Infinite pixels and NaN as in :func:`logsumexp`.

    Raises:
        TypeError: ``input`` is not a floating point tensor, or another argument has another type.
        ValueError: another shape, a number out of its range, or windows that do not fit, as :func:`pwl_lib.pooling.max_pool2d`.

    Example:
        >>> A = torch.tensor([[1.0, 3.0, 1.0, 4.0], [2.0, 8.0, 5.0, 1.0], [3.0, 2.0, 0.0, 3.0]])
        >>> lse_pool2d(A[None], 2, stride=1, temperature=1.0)
        tensor([[[8.0101, 8.0558, 5.3397],
                 [8.0116, 8.0513, 5.1488]]])

    Source: the book, :eq:`eq-lse-pool-vjp`.
    """
    if has_torch_function_unary(input):
        words = kernel_size, stride, padding, dilation, ceil_mode, temperature
        return handle_torch_function(lse_pool2d, (input,), input, *words)
    _check_image(input)
    t = check_temperature(temperature)
    windows = _windows(input.shape[-2:], kernel_size, stride, padding, dilation, ceil_mode)
    if not derivative_wanted(input):
        return _lse_pool(input, windows, t)
    return pick(_LSEPool2d, _LSEPool2dForward).apply(input, windows, t)


# --- the module -----------------------------------------------------------------------------------


class LogSumExp(nn.Module):
    """:func:`logsumexp` as a module.

    Args:
        dim, keepdim, temperature: as :func:`logsumexp`.

    Raises:
        TypeError, ValueError: an unusable ``temperature``.

    Example:
        >>> LogSumExp(-1, temperature=10.0)(torch.zeros(2, 3)).shape
        torch.Size([2])

    Source: the book, :eq:`eq-lse`.
    """

    def __init__(self, dim: int | Sequence[int], keepdim: bool = False, temperature: float = 1.0) -> None:
        check_bool("keepdim", keepdim)
        super().__init__()
        self.dim, self.keepdim, self.temperature = dim, keepdim, check_temperature(temperature)

    def forward(self, input: Tensor) -> Tensor:
        return logsumexp(input, self.dim, self.keepdim, self.temperature)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, keepdim={self.keepdim}, temperature={self.temperature}"


class Softmax(nn.Softmax):
    """:func:`softmax` as a module; ``torch.nn.Softmax`` in its word, and ``temperature``.

    Args:
        dim, temperature: as :func:`softmax`.

    Raises:
        TypeError, ValueError: an unusable ``temperature``.

    Example:
        >>> Softmax(dim=-1, temperature=10.0)(torch.zeros(2))
        tensor([0.5000, 0.5000])

    Source: the book, :eq:`eq-softmax-temperature`.
    """

    def __init__(self, dim: int | None = None, temperature: float = 1.0) -> None:
        super().__init__(dim)
        self.temperature = check_temperature(temperature)

    def forward(self, input: Tensor) -> Tensor:
        return softmax(input, self.dim, temperature=self.temperature)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}"


class LSEPool2d(nn.Module):
    """:func:`lse_pool2d` as a module.

    Args:
        kernel_size, stride, padding, dilation, ceil_mode, temperature: as :func:`lse_pool2d`.

    Shapes:
        ``(N, D, H, W)`` or ``(D, H, W)`` to ``(N, D, H', W')`` or ``(D, H', W')``.

    Raises:
        TypeError, ValueError: an unusable ``temperature``.

    Example:
        >>> LSEPool2d(3, stride=2, padding=1, temperature=10.0)(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 3, 4, 4])

    Source: the book, :eq:`eq-lse-pool`.
    """

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        dilation: Pair = 1,
        ceil_mode: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode
        self.temperature = check_temperature(temperature)

    def forward(self, input: Tensor) -> Tensor:
        words = self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        return lse_pool2d(input, *words, self.temperature)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"ceil_mode={self.ceil_mode}, temperature={self.temperature}"
        )


# --- what the arguments must be -------------------------------------------------------------------


def _check_vector(input: Tensor) -> None:
    check_floating("input", input)
    if input.dim() == 0:
        raise ValueError("input must have shape (..., n), got ()")


def _dimensions(dim: int | Sequence[int], input: Tensor) -> tuple[int, ...]:
    """The dimensions from 0 on, in the order given."""
    dims = dim if isinstance(dim, Sequence) and not isinstance(dim, str) else (dim,)
    if not all(isinstance(d, int) and not isinstance(d, bool) for d in dims):
        raise TypeError(f"dim must be an int or several, got {dim!r}")
    count = max(input.dim(), 1)
    if not all(-count <= d < count for d in dims):
        raise IndexError(
            f"dim must lie from {-count} to {count - 1} for an input of shape {tuple(input.shape)}, got {dim!r}"
        )
    counted = tuple(d % count for d in dims)
    if not counted or len(set(counted)) < len(counted):
        raise ValueError(f"dim must name at least one dimension, and each once, got {dim!r}")
    return counted


def _as_float32_under_autocast(x: Tensor) -> Tensor:
    """On accelerators autocast runs both functions in float32; on a CPU it leaves them as they are."""
    device = x.device.type
    half = x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if half and device != "cpu" and autocast_is_on(device) else x
