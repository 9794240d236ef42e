r"""Rectifiers: ReLU and its family, with derived gradients, and the circuits that the name comes from.

The module of the chapter *Rectifiers*. For each layer there is first the matrix, the Jacobian written down; then the
function, which applies the transpose of that matrix without forming it; then the module.

A rectifier acts entry by entry, so its Jacobian is diagonal, and the backward pass multiplies entry by entry with a
mask of slopes. The mask is all that the backward pass keeps: one byte an element, and never the input.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from pwl_lib._autograd import (
    LayerFunction,
    autocast_as_torch,
    derivative_wanted,
    give_sign,
    keep_or_scale,
    keep_where,
    pick,
    save_mask,
)
from pwl_lib._validation import (
    check_count,
    check_finite_number,
    check_floating,
    check_number,
    check_positive,
    refuse_inplace,
)

__all__ = [
    "Absolute",
    "Hardtanh",
    "LeakyReLU",
    "PReLU",
    "ReLU",
    "SumOfReLUs",
    "absolute",
    "absolute_jacobian",
    "bridge",
    "diode",
    "half_wave",
    "hardtanh",
    "hardtanh_jacobian",
    "leaky_relu",
    "leaky_relu_jacobian",
    "phase_max",
    "phase_sum",
    "prelu",
    "prelu_jacobian",
    "relu",
    "relu_jacobian",
    "ripple_bounds",
    "sigmoid_sum",
    "sum_of_relus",
    "wright_omega",
]


# --- the matrix -----------------------------------------------------------------------------------


def relu_jacobian(input: Tensor, *, slope_at_zero: float = 0.0) -> Tensor:
    r"""The Jacobian of :func:`relu`: the mask :math:`m` on a diagonal.

    .. math::

        \frac{\partial r}{\partial x^\top} = \operatorname{diag}(m), \qquad
        m_i = 1 \text{ where } x_i > 0, \text{ else } 0

    Args:
        input: any shape, n elements in all, floating point.
        slope_at_zero: the entry of :math:`m` where the input is 0, in [0, 1].

    Returns:
        ``(n, n)``, numerator layout; the input is flattened as torch does it.

    Raises:
        TypeError: ``input`` is not a floating point tensor.
        ValueError: ``slope_at_zero`` lies outside [0, 1].

    Example:
        >>> relu_jacobian(torch.tensor([2.0, -3.0]))
        tensor([[1., 0.],
                [0., 0.]])

    Source: the book, :eq:`eq-relu-vjp`.
    """
    check_floating("input", input)
    _check_slope_at_zero(slope_at_zero)
    return torch.diag(_slopes(input.flatten(), 0.0, slope_at_zero, 1.0, at_nan=1.0))


def leaky_relu_jacobian(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    r"""The Jacobian of :func:`leaky_relu`: 1 where the input is positive, ``negative_slope`` elsewhere, on a diagonal.

    Args:
        input: any shape, n elements in all, floating point.
        negative_slope: the slope below 0, and at 0.

    Returns:
        ``(n, n)``, numerator layout.

    Raises:
        TypeError: ``input`` is not a floating point tensor.
        ValueError: ``negative_slope`` is not finite.

    Example:
        >>> leaky_relu_jacobian(torch.tensor([2.0, -3.0]), 0.5).diagonal()
        tensor([1.0000, 0.5000])

    Source: the book, :eq:`eq-leaky-vjp`.
    """
    check_floating("input", input)
    check_finite_number("negative_slope", negative_slope)
    return torch.diag(_slopes(input.flatten(), negative_slope, negative_slope, 1.0, at_nan=negative_slope))


def prelu_jacobian(input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    r"""The two Jacobians of :func:`prelu`, in the input and in the weight.

    The first is diagonal. The second has :math:`\min(0, x)` in the column of the element's channel.

    Args:
        input: ``(N, C, *)``, or any shape where ``weight`` has one element; n elements in all, floating point.
        weight: ``(C,)``, ``(1,)`` or ``()``, the dtype of ``input``.

    Returns:
        ``(n, n)`` and ``(n, C)``, numerator layout.

    Raises:
        TypeError, ValueError: as :func:`prelu`.

    Example:
        >>> by_input, by_weight = prelu_jacobian(torch.tensor([2.0, -3.0]), torch.tensor([0.25]))
        >>> by_input.diagonal().tolist(), by_weight.flatten().tolist()
        ([1.0, 0.25], [0.0, -3.0])

    Source: the book, :eq:`eq-prelu-weight-grad`.
    """
    _check_prelu(input, weight)
    spread = _by_channel(weight, input).expand(input.shape).flatten()
    x = input.flatten()
    channel = torch.arange(weight.numel(), device=x.device)
    own = _by_channel(channel, input).expand(input.shape).reshape(-1, 1) == channel
    return torch.diag(torch.where(x > 0, torch.ones_like(x), spread)), torch.where(own, x.clamp(max=0)[:, None], 0)


def absolute_jacobian(input: Tensor) -> Tensor:
    r"""The Jacobian of :func:`absolute`: the signs of the input on a diagonal, 0 at 0.

    Args:
        input: any shape, n elements in all, floating point.

    Returns:
        ``(n, n)``, numerator layout.

    Raises:
        TypeError: ``input`` is not a floating point tensor.

    Example:
        >>> absolute_jacobian(torch.tensor([2.0, -3.0, 0.0])).diagonal()
        tensor([ 1., -1.,  0.])

    Source: the book, :eq:`eq-absolute-vjp`.
    """
    check_floating("input", input)
    return torch.diag(_slopes(input.flatten(), -1.0, 0.0, 1.0, at_nan=0.0))


def hardtanh_jacobian(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    r"""The Jacobian of :func:`hardtanh`: 1 strictly between the bounds, 0 elsewhere, on a diagonal.

    Args:
        input: any shape, n elements in all, floating point.
        min_val: the lower bound.
        max_val: the upper bound.

    Returns:
        ``(n, n)``, numerator layout.

    Raises:
        TypeError: ``input`` is not a floating point tensor.
        ValueError: ``min_val`` exceeds ``max_val``, or one of them is NaN.

    Example:
        >>> hardtanh_jacobian(torch.tensor([0.5, 1.0, 2.0])).diagonal()
        tensor([1., 0., 0.])

    Source: the book, :eq:`eq-hardtanh-vjp`.
    """
    check_floating("input", input)
    _check_bounds(min_val, max_val)
    return torch.diag(_strictly_between(input.flatten(), min_val, max_val).to(input.dtype))


def _slopes(x: Tensor, below: float, at_zero: float, above: float, *, at_nan: float) -> Tensor:
    slopes = torch.full_like(x, at_nan)
    return slopes.masked_fill(x < 0, below).masked_fill(x == 0, at_zero).masked_fill(x > 0, above)


def _strictly_between(x: Tensor, low: float, high: float) -> Tensor:
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()  # or the bounds would be rounded to the dtype of x before they are compared
    return (x > low).logical_and_(x < high)


# --- the function ---------------------------------------------------------------------------------


class _ReLU(LayerFunction):
    @staticmethod
    def forward(x: Tensor, slope_at_zero: float) -> tuple[Tensor, Tensor]:
        y = torch.relu(x)
        # y is not 0 exactly where x is above 0, or NaN. To read y as bool takes a fifth of the time of comparing x.
        mask = y.bool().to(torch.uint8)
        if slope_at_zero != 0:
            mask = mask + (x < 0).logical_not()  # 0 below the kink, 1 at it, 2 above
        return y, mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.slope_at_zero = inputs[1]
        save_mask(ctx, output[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, None]:
        return _ReLU.times_mask(ctx, upstream), None

    @staticmethod
    def times_mask(ctx: Any, g: Tensor | None) -> Tensor | None:
        (mask,) = ctx.saved_tensors
        if ctx.slope_at_zero not in (0, 1):
            g = keep_or_scale(mask > 1, g, ctx.slope_at_zero)
        return keep_where(mask, g)


class _ReLUForward(_ReLU):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, _: Any) -> tuple[Tensor | None, None]:
        return _ReLU.times_mask(ctx, tangent), None


def relu(input: Tensor, inplace: bool = False, *, slope_at_zero: float = 0.0) -> Tensor:
    r"""The rectified linear unit, with the slope at 0 of your choice.

    .. math:: r = \max(0, x), \qquad \frac{\partial e}{\partial x} = m \odot \frac{\partial e}{\partial r}

    which are :eq:`eq-relu` and :eq:`eq-relu-vjp`; :math:`m` is 1 where :math:`x > 0` and 0 where :math:`x < 0`.

    Args:
        input: any shape, floating point.
        inplace: must be False; the word is here because torch has it.
        slope_at_zero: the subgradient at 0, any number of [0, 1], :eq:`eq-slope-at-zero`. 0, the default, is torch's.

    Returns:
        The shape, dtype, device and memory format of ``input``. NaN gives NaN, and lets the upstream gradient pass,
        as in torch.

    At the kink:
        the value is 0 and the slope is ``slope_at_zero``. The second derivative is 0 everywhere, at the kink too.

    Raises:
        TypeError: ``input`` is not a floating point tensor.
        ValueError: ``slope_at_zero`` lies outside [0, 1], or ``inplace`` is True.

    Example:
        >>> x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
        >>> relu(x, slope_at_zero=0.5).sum().backward()
        >>> x.grad
        tensor([0.0000, 0.5000, 1.0000])

    Source: the book, :eq:`eq-relu-vjp`; Nair and Hinton (2010).
    """
    if has_torch_function_unary(input):
        return handle_torch_function(relu, (input,), input, inplace=inplace, slope_at_zero=slope_at_zero)
    check_floating("input", input)
    refuse_inplace(inplace)
    _check_slope_at_zero(slope_at_zero)
    if not derivative_wanted(input):
        return torch.relu(input)
    return pick(_ReLU, _ReLUForward).apply(input, slope_at_zero)[0]


class _LeakyReLU(LayerFunction):
    @staticmethod
    def forward(x: Tensor, negative_slope: float) -> tuple[Tensor, Tensor]:
        return nn.functional.leaky_relu(x, negative_slope), (x > 0).to(torch.uint8)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.negative_slope = inputs[1]
        save_mask(ctx, output[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, None]:
        (positive,) = ctx.saved_tensors
        return keep_or_scale(positive, upstream, ctx.negative_slope), None


class _LeakyReLUForward(_LeakyReLU):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, _: Any) -> tuple[Tensor | None, None]:
        (positive,) = ctx.saved_tensors
        return keep_or_scale(positive, tangent, ctx.negative_slope), None


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    r"""The leaky ReLU: slope 1 above 0, ``negative_slope`` below.

    .. math::

        r = \max(0, x) + \alpha \min(0, x), \qquad
        \frac{\partial e}{\partial x} = m \odot \frac{\partial e}{\partial r}

    which are :eq:`eq-leaky` and :eq:`eq-leaky-vjp`; :math:`m` is 1 where :math:`x > 0` and :math:`\alpha` elsewhere.

    Args:
        input: any shape, floating point.
        negative_slope: :math:`\alpha`, any finite number; at -1 the function is the absolute value.
        inplace: must be False; the word is here because torch has it.

    Returns:
        The shape, dtype, device and memory format of ``input``. NaN gives NaN, with slope :math:`\alpha`, as in torch.

    At the kink:
        the slope is ``negative_slope``, as in torch.

    Raises:
        TypeError: ``input`` is not a floating point tensor.
        ValueError: ``negative_slope`` is not finite, or ``inplace`` is True.

    Example:
        >>> leaky_relu(torch.tensor([-2.0, 3.0]), 0.5)
        tensor([-1.,  3.])

    Source: the book, :eq:`eq-leaky-vjp`; Maas, Hannun and Ng (2013).
    """
    if has_torch_function_unary(input):
        return handle_torch_function(leaky_relu, (input,), input, negative_slope=negative_slope, inplace=inplace)
    check_floating("input", input)
    check_finite_number("negative_slope", negative_slope)
    refuse_inplace(inplace)
    if not derivative_wanted(input):
        return nn.functional.leaky_relu(input, negative_slope)
    return pick(_LeakyReLU, _LeakyReLUForward).apply(input, negative_slope)[0]


class _PReLU(LayerFunction):
    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return torch.prelu(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        alpha, positive = _by_channel(weight, x), x > 0
        by_input = by_weight = None
        if ctx.needs_input_grad[0]:
            by_input = torch.where(positive, upstream, alpha * upstream)
        if ctx.needs_input_grad[1]:
            by_weight = torch.where(positive, 0, x * upstream).sum_to_size(alpha.shape).reshape(weight.shape)
        return by_input, by_weight


class _PReLUForward(_PReLU):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, weight_tangent: Tensor) -> Tensor:
        x, weight = ctx.saved_tensors
        sideways = torch.where(x > 0, 0, x * _by_channel(weight_tangent, x))
        return torch.where(x > 0, tangent, _by_channel(weight, x) * tangent) + sideways


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    r"""The leaky ReLU whose slope below 0 is learnt, one for all channels or one for each.

    .. math::

        r = \max(0, x) + \alpha \min(0, x), \qquad
        \frac{\partial e}{\partial \alpha} = \sum \frac{\partial e}{\partial r} \min(0, x)

    The first is :eq:`eq-leaky`, whose gradient in :math:`x` is :eq:`eq-leaky-vjp`. The second is
    :eq:`eq-prelu-weight-grad`; the sum runs over the elements that share the weight :math:`\alpha`. It needs the
    input, so that the input is kept, as in torch.

    Args:
        input: ``(N, C, *)``, or any shape where ``weight`` has one element; floating point.
        weight: ``(C,)``, ``(1,)`` or ``()``, the dtype of ``input``. Under autocast both are cast, as torch casts them.

    Returns:
        The shape, dtype and device of ``input``. NaN gives NaN.

    At the kink:
        the slope is ``weight``, as in torch; the weight gets no gradient from there, since :math:`\min(0, 0) = 0`.

    Raises:
        TypeError: ``input`` is not a floating point tensor, or ``weight`` has another dtype.
        ValueError: ``weight`` has more than one dimension, or neither one element nor one for each channel.

    Example:
        >>> weight = torch.tensor([0.5], requires_grad=True)
        >>> prelu(torch.tensor([-2.0, 3.0, -4.0]), weight).sum().backward()
        >>> weight.grad
        tensor([-6.])

    Source: the book, :eq:`eq-prelu-weight-grad`; He, Zhang, Ren and Sun (2015).
    """
    if has_torch_function_variadic(input, weight):
        return handle_torch_function(prelu, (input, weight), input, weight)
    check_floating("input", input)
    check_floating("weight", weight)
    input, weight = autocast_as_torch(input, weight)
    _check_prelu(input, weight)
    if not derivative_wanted(input, weight):
        return torch.prelu(input, weight)
    return pick(_PReLU, _PReLUForward).apply(input, weight)


class _Absolute(LayerFunction):
    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.abs(), x.sgn().to(torch.int8)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        save_mask(ctx, output[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Any) -> Tensor | None:
        (sign,) = ctx.saved_tensors
        return give_sign(sign, upstream)


class _AbsoluteForward(_Absolute):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None) -> tuple[Tensor | None, None]:
        (sign,) = ctx.saved_tensors
        return give_sign(sign, tangent), None


def absolute(input: Tensor) -> Tensor:
    r"""Absolute value rectification.

    .. math::

        r = |x| = \max(0, x) + \max(0, -x), \qquad
        \frac{\partial e}{\partial x} = \operatorname{sign}(x) \odot \frac{\partial e}{\partial r}

    The second is :eq:`eq-absolute-vjp`.

    Args:
        input: any shape, floating point.

    Returns:
        The shape, dtype, device and memory format of ``input``. NaN gives NaN, with slope 0, as in torch.

    At the kink:
        the slope is 0, as in torch: the middle, and the least-norm element, of the subdifferential [-1, 1].

    Raises:
        TypeError: ``input`` is not a floating point tensor.

    Example:
        >>> absolute(torch.tensor([-2.0, 3.0]))
        tensor([2., 3.])

    Source: the book, :eq:`eq-absolute-vjp`; Jarrett, Kavukcuoglu, Ranzato and LeCun (2009).
    """
    if has_torch_function_unary(input):
        return handle_torch_function(absolute, (input,), input)
    check_floating("input", input)
    if not derivative_wanted(input):
        return input.abs()
    return pick(_Absolute, _AbsoluteForward).apply(input)[0]


class _Hardtanh(LayerFunction):
    @staticmethod
    def forward(x: Tensor, min_val: float, max_val: float) -> tuple[Tensor, Tensor]:
        return nn.functional.hardtanh(x, min_val, max_val), _strictly_between(x, min_val, max_val).to(torch.uint8)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: tuple[Tensor, Tensor]) -> None:
        save_mask(ctx, output[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, None, None]:
        (inside,) = ctx.saved_tensors
        return keep_where(inside, upstream), None, None


class _HardtanhForward(_Hardtanh):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
        (inside,) = ctx.saved_tensors
        return keep_where(inside, tangent), None


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    r"""The identity between two bounds, constant beyond them.

    .. math:: r = \min(\max(x, a), b), \qquad \frac{\partial e}{\partial x} = m \odot \frac{\partial e}{\partial r}

    which are :eq:`eq-hardtanh` and :eq:`eq-hardtanh-vjp`; :math:`m` is 1 where :math:`a < x < b` and 0 elsewhere.

    Args:
        input: any shape, floating point.
        min_val: the lower bound :math:`a`; may be infinite.
        max_val: the upper bound :math:`b`, at least ``min_val``; may be infinite.
        inplace: must be False; the word is here because torch has it.

    Returns:
        The shape, dtype, device and memory format of ``input``. NaN gives NaN, with slope 0. (The slope that torch
        gives a NaN on a CPU is 0 or 1, by the position of the element in memory.)

    At the kinks:
        the slope is 0 at both, as in torch.

    Raises:
        TypeError: ``input`` is not a floating point tensor.
        ValueError: ``min_val`` exceeds ``max_val``, one of them is NaN, or ``inplace`` is True.

    Example:
        >>> hardtanh(torch.tensor([-2.0, 0.5, 3.0]))
        tensor([-1.0000,  0.5000,  1.0000])

    Source: the book, :eq:`eq-hardtanh-vjp`; Collobert (2004).
    """
    if has_torch_function_unary(input):
        return handle_torch_function(hardtanh, (input,), input, min_val=min_val, max_val=max_val, inplace=inplace)
    check_floating("input", input)
    _check_bounds(min_val, max_val)
    refuse_inplace(inplace)
    if not derivative_wanted(input):
        return nn.functional.hardtanh(input, min_val, max_val)
    return pick(_Hardtanh, _HardtanhForward).apply(input, min_val, max_val)[0]


def _by_channel(weight: Tensor, x: Tensor) -> Tensor:
    """Gives ``weight`` the dimensions of ``x``, so that it broadcasts along the channels, dimension 1."""
    return weight.reshape(1, -1, *[1] * (x.dim() - 2)) if x.dim() > 1 else weight.reshape([1] * x.dim())


def _check_slope_at_zero(slope: float) -> None:
    check_number("slope_at_zero", slope)
    if not 0 <= slope <= 1:
        raise ValueError(f"slope_at_zero must lie in [0, 1], the subdifferential of relu at 0, got {slope}")


def _check_bounds(min_val: float, max_val: float) -> None:
    check_number("min_val", min_val)
    check_number("max_val", max_val)
    if not min_val <= max_val:
        raise ValueError(f"min_val must not exceed max_val, got min_val={min_val} and max_val={max_val}")


def _check_prelu(input: Tensor, weight: Tensor) -> None:
    check_floating("input", input)
    check_floating("weight", weight)
    if weight.dtype != input.dtype:
        raise TypeError(f"weight must have the dtype of input, {input.dtype}, got {weight.dtype}")
    if weight.dim() > 1:
        raise ValueError(f"weight must have shape () or (C,), got {tuple(weight.shape)}")
    channels = input.shape[1] if input.dim() > 1 else 1
    if weight.numel() not in (1, channels):
        raise ValueError(
            f"weight must have 1 element or one for each of the {channels} channels of input, whose shape is "
            f"{tuple(input.shape)}, got {weight.numel()}"
        )


# --- the module -----------------------------------------------------------------------------------


class ReLU(nn.Module):
    """:func:`relu` as a module; ``torch.nn.ReLU`` with ``slope_at_zero``.

    Args:
        inplace: must be False.
        slope_at_zero: the subgradient at 0, in [0, 1].

    Shapes:
        any, and the same.

    Raises:
        ValueError: ``inplace`` is True, or ``slope_at_zero`` lies outside [0, 1].

    Example:
        >>> ReLU()(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])

    Source: the book, :eq:`eq-relu`.
    """

    def __init__(self, inplace: bool = False, *, slope_at_zero: float = 0.0) -> None:
        super().__init__()
        refuse_inplace(inplace)
        _check_slope_at_zero(slope_at_zero)
        self.slope_at_zero = slope_at_zero

    def forward(self, input: Tensor) -> Tensor:
        return relu(input, slope_at_zero=self.slope_at_zero)

    def extra_repr(self) -> str:
        return f"slope_at_zero={self.slope_at_zero}" if self.slope_at_zero else ""


class LeakyReLU(nn.Module):
    """:func:`leaky_relu` as a module, with the words of ``torch.nn.LeakyReLU``.

    Args:
        negative_slope: the slope below 0, and at 0.
        inplace: must be False.

    Shapes:
        any, and the same.

    Raises:
        ValueError: ``negative_slope`` is not finite, or ``inplace`` is True.

    Example:
        >>> LeakyReLU(0.5)(torch.tensor([-2.0, 2.0]))
        tensor([-1.,  2.])

    Source: the book, :eq:`eq-leaky`.
    """

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__()
        refuse_inplace(inplace)
        check_finite_number("negative_slope", negative_slope)
        self.negative_slope = negative_slope

    def forward(self, input: Tensor) -> Tensor:
        return leaky_relu(input, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class PReLU(nn.Module):
    """:func:`prelu` with a learnt ``weight``; the words and the ``state_dict`` of ``torch.nn.PReLU``.

    Args:
        num_parameters: 1, or the number of channels.
        init: what the weight begins with.
        device: of the weight.
        dtype: of the weight.

    Shapes:
        ``(N, C, *)``, or any with one parameter, and the same.

    Raises:
        TypeError: ``num_parameters`` is not an int, or ``init`` not a number.
        ValueError: ``num_parameters`` is below 1, or ``init`` is not finite.

    Example:
        >>> PReLU()(torch.tensor([-2.0, 2.0])).tolist()
        [-0.5, 2.0]

    Source: the book, :eq:`eq-prelu-weight-grad`; He, Zhang, Ren and Sun (2015).
    """

    def __init__(
        self,
        num_parameters: int = 1,
        init: float = 0.25,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("num_parameters", num_parameters, 1)
        check_finite_number("init", init)
        self.num_parameters = num_parameters
        self.init = init
        self.weight = nn.Parameter(torch.empty(num_parameters, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.init)

    def forward(self, input: Tensor) -> Tensor:
        return prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class Absolute(nn.Module):
    """:func:`absolute` as a module.

    Shapes:
        any, and the same.

    Example:
        >>> Absolute()(torch.tensor([-2.0, 2.0]))
        tensor([2., 2.])

    Source: the book, :eq:`eq-absolute-vjp`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return absolute(input)


class Hardtanh(nn.Module):
    """:func:`hardtanh` as a module, with the words of ``torch.nn.Hardtanh``.

    Args:
        min_val: the lower bound.
        max_val: the upper bound, above ``min_val``. (The function allows them to be equal, the module does not; so
            does torch.)
        inplace: must be False.

    Shapes:
        any, and the same.

    Raises:
        ValueError: ``min_val`` is not below ``max_val``, or ``inplace`` is True.

    Example:
        >>> Hardtanh(0.0, 6.0)(torch.tensor([-2.0, 2.0, 7.0]))
        tensor([0., 2., 6.])

    Source: the book, :eq:`eq-hardtanh`.
    """

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        refuse_inplace(inplace)
        if not min_val < max_val:
            raise ValueError(f"min_val must be below max_val, got min_val={min_val} and max_val={max_val}")
        self.min_val = min_val
        self.max_val = max_val

    def forward(self, input: Tensor) -> Tensor:
        return hardtanh(input, self.min_val, self.max_val)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}"


# --- the circuits ---------------------------------------------------------------------------------


def half_wave(voltage: Tensor) -> Tensor:
    r"""One ideal diode: the input passes where it is positive. It is :func:`relu`, :eq:`eq-relu`.

    Args:
        voltage: any shape, floating point.

    Returns:
        The shape of ``voltage``.

    Raises:
        TypeError: ``voltage`` is not a floating point tensor.

    Example:
        >>> half_wave(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])

    Source: the book, :eq:`eq-relu`.
    """
    return relu(voltage)


def bridge(voltage: Tensor) -> Tensor:
    r"""Four ideal diodes, a full-wave rectifier: one pair conducts for each polarity.

    .. math:: \operatorname{relu}(v) + \operatorname{relu}(-v) = |v|

    which is :eq:`eq-bridge`.

    Args:
        voltage: any shape, floating point.

    Returns:
        The shape of ``voltage``. At 0 both the value and the slope are 0.

    Raises:
        TypeError: ``voltage`` is not a floating point tensor.

    Example:
        >>> bridge(torch.tensor([-1.0, 2.0]))
        tensor([1., 2.])

    Source: the book, :eq:`eq-bridge`.
    """
    check_floating("voltage", voltage)
    return relu(voltage) + relu(-voltage)


def phase_sum(t: Tensor, phases: int) -> Tensor:
    r"""The sum of ``phases`` half-wave rectified sines, shifted evenly over one period: nearly a constant.

    .. math:: \sum_{k=0}^{n-1} \operatorname{relu}\!\left(\sin\!\left(t + \tfrac{2 \pi k}{n}\right)\right)

    which is :eq:`eq-phase-sum`. :func:`ripple_bounds` says between which numbers it swings.

    Args:
        t: the angle in radians, any shape, floating point.
        phases: n, at least 1.

    Returns:
        The shape of ``t``.

    Raises:
        TypeError: ``t`` is not a floating point tensor, or ``phases`` is not an int.
        ValueError: ``phases`` is below 1.

    Example:
        >>> phase_sum(torch.tensor([0.0, 0.2, 0.4], dtype=torch.float64), 8).round(decimals=4).tolist()
        [2.4142, 2.5648, 2.6131]

    Source: the book, :eq:`eq-phase-sum`.
    """
    return relu(_phases(t, phases)).sum(-1)


def phase_max(t: Tensor, phases: int = 3) -> Tensor:
    r"""The star rectifier: each phase has a diode to one common output, which takes the largest voltage.

    It is a maxout unit.

    .. math:: \max_{0 \le k < n} \sin\!\left(t + \tfrac{2 \pi k}{n}\right)

    which is :eq:`eq-phase-max`. From three phases on it swings between :math:`\cos(\pi / n)` and 1.

    Args:
        t: the angle in radians, any shape, floating point.
        phases: n, at least 1.

    Returns:
        The shape of ``t``. Where two phases are equal they share the gradient.

    Raises:
        TypeError: ``t`` is not a floating point tensor, or ``phases`` is not an int.
        ValueError: ``phases`` is below 1.

    Example:
        >>> phase_max(torch.tensor([math.pi / 6, math.pi / 2], dtype=torch.float64)).round(decimals=4).tolist()
        [0.5, 1.0]

    Source: the book, :eq:`eq-phase-max`.
    """
    return _phases(t, phases).amax(-1)


def ripple_bounds(phases: int) -> tuple[float, float]:
    r"""The exact smallest and largest value of :func:`phase_sum`; its mean is n / pi.

    .. math::

        \left[\cot \tfrac{\pi}{n}, \csc \tfrac{\pi}{n}\right] \text{ for even } n, \qquad
        \left[\tfrac12 \cot \tfrac{\pi}{2n}, \tfrac12 \csc \tfrac{\pi}{2n}\right] \text{ for odd } n \ge 3, \qquad
        [0, 1] \text{ for } n = 1

    which is :eq:`eq-ripple`. An odd number of phases ripples as little as twice as many.

    Args:
        phases: n, at least 1.

    Returns:
        ``(smallest, largest)``.

    Raises:
        TypeError: ``phases`` is not an int.
        ValueError: ``phases`` is below 1.

    Example:
        >>> [round(bound, 4) for bound in ripple_bounds(8)]
        [2.4142, 2.6131]

    Source: the book, :eq:`eq-ripple`.
    """
    check_count("phases", phases, 1)
    if phases <= 2:
        return 0.0, 1.0
    pulses = phases if phases % 2 == 0 else 2 * phases
    scale = phases / pulses
    return scale / math.tan(math.pi / pulses), scale / math.sin(math.pi / pulses)


def _phases(t: Tensor, phases: int) -> Tensor:
    check_floating("t", t)
    check_count("phases", phases, 1)
    return torch.sin(t[..., None] + torch.arange(phases, dtype=t.dtype, device=t.device) * (2 * math.pi / phases))


class _WrightOmega(LayerFunction):
    @staticmethod
    def forward(z: Tensor) -> Tensor:
        # With y = ln w the equation is exp(y) + y = z, whose left side is convex and increasing. Both starts lie
        # above the root, so Newton's method comes down to it monotonically, whatever z is.
        y = torch.where(z <= 1, z, z.clamp(min=1).log())
        for _ in range(_NEWTON_STEPS):
            w = y.exp()
            y = y - (w + (y - z)) / (w + 1)
        w = torch.where(z <= 1, y.exp(), z - y)
        return torch.where(z.isinf(), z.clamp(min=0), w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return upstream * _omega_slope(w)


class _WrightOmegaForward(_WrightOmega):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return tangent * _omega_slope(w)


_NEWTON_STEPS = 6  # in float64 five reach the last digit, and four do not


def _omega_slope(w: Tensor) -> Tensor:
    return torch.where(w < 1, w / (1 + w), 1 - 1 / (1 + w))  # exact at 0 and at infinity


def wright_omega(z: Tensor) -> Tensor:
    r"""The solution :math:`\omega > 0` of :math:`\omega + \ln \omega = z`: Lambert's W of :math:`e^z`.

    By the implicit function theorem :math:`\omega' = \omega / (1 + \omega)`. It is what :eq:`eq-diode` needs, where
    :math:`e^z` itself would overflow.

    Args:
        z: any shape, floating point.

    Returns:
        The shape and dtype of ``z``. Minus infinity gives 0, infinity gives infinity, NaN gives NaN.

    Raises:
        TypeError: ``z`` is not a floating point tensor.

    Example:
        >>> wright_omega(torch.tensor([1.0, 1 + math.e]))
        tensor([1.0000, 2.7183])

    Source: the book, :eq:`eq-diode`; Corless and Jeffrey (2002).
    """
    check_floating("z", z)
    return pick(_WrightOmega, _WrightOmegaForward).apply(z)


def diode(
    voltage: Tensor,
    resistance: Tensor | float = 1000.0,
    saturation_current: Tensor | float = 1e-12,
    thermal_voltage: Tensor | float = 0.02585,
) -> Tensor:
    r"""The real half-wave rectifier: a Shockley diode in series with a resistor, whose voltage is the output.

    The current :math:`i = I_s \left(e^{(v - iR) / V_T} - 1\right)` makes the output :math:`u = iR`

    .. math:: u = V_T \, W\!\left(\frac{I_s R}{V_T} \, e^{(v + I_s R) / V_T}\right) - I_s R

    which is :eq:`eq-diode`. It is smooth, with slope :math:`W / (1 + W)`, and lies below :func:`half_wave` by the
    drop at the diode.

    Args:
        voltage: :math:`v` in volts, any shape, floating point; float64 where small currents matter.
        resistance: :math:`R` in ohms, above 0.
        saturation_current: :math:`I_s` in amperes, above 0.
        thermal_voltage: :math:`V_T` in volts, above 0.

    Returns:
        The shape of ``voltage``; differentiable in every argument that is a tensor. Minus infinity gives
        :math:`-I_s R`.

    Raises:
        TypeError: ``voltage`` is not a floating point tensor.
        ValueError: another argument is not finite or not above 0.

    Example:
        >>> diode(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)).round(decimals=3).abs().tolist()
        [0.0, 0.0, 0.483]

    Source: the book, :eq:`eq-diode`; Shockley (1949).
    """
    check_floating("voltage", voltage)
    check_positive("resistance", resistance)
    check_positive("saturation_current", saturation_current)
    check_positive("thermal_voltage", thermal_voltage)
    leak = torch.as_tensor(saturation_current * resistance, dtype=voltage.dtype, device=voltage.device)
    z = (leak / thermal_voltage).log() + (voltage + leak) / thermal_voltage
    return thermal_voltage * wright_omega(z) - leak


# --- sums -----------------------------------------------------------------------------------------


class SumOfReLUs(NamedTuple):
    """A continuous piecewise linear function of one variable, as an affine function plus ReLUs. Call it to evaluate."""

    slope: Tensor
    """``()``: of the affine part."""
    intercept: Tensor
    """``()``: of the affine part."""
    weights: Tensor
    """``(n,)``: by how much the slope changes at each breakpoint."""
    breakpoints: Tensor
    """``(n,)``, increasing."""

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluates the function at ``x``, of any shape, with n ReLUs."""
        check_floating("x", x)
        return self.slope * x + self.intercept + relu(x[..., None] - self.breakpoints) @ self.weights


def sum_of_relus(breakpoints: Tensor, values: Tensor, left_slope: float, right_slope: float) -> SumOfReLUs:
    r"""Writes a continuous piecewise linear function as an affine function plus one ReLU for each breakpoint.

    .. math:: f(x) = \gamma_0 x + \left(v_1 - \gamma_0 t_1\right) + \sum_{k=1}^{n} (\gamma_k - \gamma_{k-1}) \operatorname{relu}(x - t_k)

    which is :eq:`eq-cpwl-relus`. :math:`\gamma_0` is the slope on the left, :math:`\gamma_n` the one on the right, and
    :math:`\gamma_k` the slope of the chord from :math:`(t_k, v_k)` to the next point.

    Args:
        breakpoints: ``(n,)``, n at least 1, floating point, finite, increasing.
        values: ``(n,)``, the values there.
        left_slope: the slope before the first breakpoint.
        right_slope: the slope after the last.

    Returns:
        :class:`SumOfReLUs`, which is the function and carries its coefficients.

    Raises:
        TypeError: ``breakpoints`` or ``values`` is not a floating point tensor.
        ValueError: the shapes are not ``(n,)`` and equal, a number is not finite, or the breakpoints do not increase.

    Example:
        >>> hat = sum_of_relus(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0]), 0.0, 0.0)
        >>> hat.weights.tolist(), hat(torch.tensor([-2.0, 0.5, 3.0])).tolist()
        ([1.0, -2.0, 1.0], [0.0, 0.5, 0.0])

    Source: the book, :eq:`eq-cpwl-relus`.
    """
    check_floating("breakpoints", breakpoints)
    check_floating("values", values)
    if breakpoints.dim() != 1 or breakpoints.numel() == 0:
        raise ValueError(f"breakpoints must have shape (n,) with n at least 1, got {tuple(breakpoints.shape)}")
    if values.shape != breakpoints.shape:
        raise ValueError(
            f"values must have shape {tuple(breakpoints.shape)}, as breakpoints, got {tuple(values.shape)}"
        )
    if not bool(torch.isfinite(breakpoints).all() & torch.isfinite(values).all()):
        raise ValueError("breakpoints and values must be finite, got NaN or an infinity")
    if not bool((breakpoints.diff() > 0).all()):
        raise ValueError(f"breakpoints must increase, got {breakpoints.tolist()}")
    check_finite_number("left_slope", left_slope)
    check_finite_number("right_slope", right_slope)
    left, right = breakpoints.new_tensor([left_slope]), breakpoints.new_tensor([right_slope])
    slopes = torch.cat([left, values.diff() / breakpoints.diff(), right])
    return SumOfReLUs(left[0], values[0] - left[0] * breakpoints[0], slopes.diff(), breakpoints)


def sigmoid_sum(x: Tensor, terms: int) -> Tensor:
    r"""A sum of sigmoids with shifted biases, which tends to the softplus, a smooth ReLU.

    .. math:: \sum_{i=1}^{N} \sigma\!\left(x - i + \tfrac12\right)

    which is :eq:`eq-sigmoid-sum`. It is the midpoint rule for the integral of the sigmoid, and differs from
    :math:`\operatorname{softplus}(x) - \operatorname{softplus}(x - N)` by at most 1/32.

    Args:
        x: any shape, floating point.
        terms: N, at least 0.

    Returns:
        The shape of ``x``.

    Raises:
        TypeError: ``x`` is not a floating point tensor, or ``terms`` is not an int.
        ValueError: ``terms`` is below 0.

    Example:
        >>> x = torch.tensor([-2.0, 0.0, 5.0])
        >>> gap = sigmoid_sum(x, 50) - torch.nn.functional.softplus(x)
        >>> bool((gap.abs() <= 1 / 32).all())
        True

    Source: the book, :eq:`eq-sigmoid-sum`; Nair and Hinton (2010).
    """
    check_floating("x", x)
    check_count("terms", terms, 0)
    return torch.sigmoid(x[..., None] - (torch.arange(terms, dtype=x.dtype, device=x.device) + 0.5)).sum(-1)
