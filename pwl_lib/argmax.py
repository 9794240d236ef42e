r"""Argmax: why it has no useful derivative, the soft argmax, and the straight-through estimator.

The module of the chapter *Argmax*. First the matrix, the derivative of the soft argmax written down; then the two
functions, which give argmax a derivative in two ways: the soft argmax changes the value, the straight-through argmax
keeps it and takes the derivative of another function; then the modules.

Indices start at 0. The temperature :math:`t` multiplies, :math:`p = \operatorname{softmax}(t x)`: large is near the
maximum. For the backward pass both functions keep the input and nothing else. Under autocast on an accelerator half
precision becomes float32, as torch's softmax has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from pwl_lib._autograd import LayerFunction, derivative_wanted, pick
from pwl_lib._validation import check_floating, check_temperature
from pwl_lib.logsumexp import _as_float32_under_autocast, _dimensions, _weights, _wide

__all__ = [
    "SoftArgmax",
    "StraightThroughArgmax",
    "soft_argmax",
    "soft_argmax_jacobian",
    "straight_through_argmax",
]

Dims = int | Sequence[int]


@dataclass(frozen=True)
class _Over:
    """Over which dimensions the weights sum to 1, and how sharp they are. To a transform of torch it is one leaf."""

    dims: tuple[int, ...]
    t: float
    joint: bool
    """Whether the dimensions came as a sequence, so that the result has one for the coordinates."""


# --- the matrix -----------------------------------------------------------------------------------


def soft_argmax_jacobian(input: Tensor, temperature: float = 1.0) -> Tensor:
    r"""The derivative of :func:`soft_argmax` over the last dimension.

    .. math:: \frac{\partial s}{\partial x_i} = t\, p_i\, (i - s), \qquad p = \operatorname{softmax}(t x)

    which is :eq:`eq-soft-argmax-gradient`. The entries sum to 0. Those below the soft index are at most 0, those above
    it at least 0.

    Args:
        input: ``(..., n)``, floating point.
        temperature: :math:`t`, a number above 0.

    Returns:
        ``(..., n)``: for each vector the row :math:`\partial s / \partial x^\top`.

    Raises:
        TypeError, ValueError, IndexError: as :func:`soft_argmax`.

    Example:
        >>> soft_argmax_jacobian(torch.zeros(3))
        tensor([-0.3333,  0.0000,  0.3333])

    Source: the book, :eq:`eq-soft-argmax-gradient`.
    """
    over = _checked(input, -1, temperature)
    upstream = input.new_ones(input.shape[:-1])
    return _soft_argmax_vjp(input, upstream, over)


# --- the function ---------------------------------------------------------------------------------


def _soft(x: Tensor, over: _Over) -> Tensor:
    """The weights, in the shape of ``x``; half precision is computed in float32, and stays there."""
    return _weights(_wide(x, over.t), over.dims, over.t)


def _coordinate(x: Tensor, dim: int) -> Tensor:
    """0, 1, 2, ... along one dimension, ready to broadcast."""
    shape = [1] * x.dim()
    shape[dim] = x.shape[dim]
    return torch.arange(x.shape[dim], device=x.device, dtype=x.dtype).reshape(shape)


def _coordinates(p: Tensor, over: _Over) -> Tensor:
    """The sum of ``p`` times the coordinate, for each dimension: the expected coordinates, if ``p`` are weights."""
    sums = [(p * _coordinate(p, dim)).sum(over.dims) for dim in over.dims]
    return torch.stack(sums, -1) if over.joint else sums[0]


def _times_jacobian(x: Tensor, g: Tensor, over: _Over) -> Tensor:
    """t (diag(p) - p p') g in the dtype of the computation. The matrix is symmetric: one product serves both modes."""
    p = _soft(x, over)
    if len(over.dims) == 1:
        product = torch.ops.aten._softmax_backward_data.default(g.to(p.dtype), p, over.dims[0], p.dtype)
    else:
        weighted = p * g
        product = weighted - p * weighted.sum(over.dims, keepdim=True)
    return product if over.t == 1 else over.t * product


def _soft_argmax_vjp(x: Tensor, upstream: Tensor, over: _Over) -> Tensor:
    """The Jacobian of the weights, times the sum of coordinate and upstream entry over the dimensions."""
    shape = [1 if dim in over.dims else size for dim, size in enumerate(x.shape)]
    parts = upstream.unbind(-1) if over.joint else [upstream]
    like = _wide(x, over.t)
    pull = [_coordinate(like, dim) * g.reshape(shape) for dim, g in zip(over.dims, parts, strict=True)]
    return _times_jacobian(x, sum(pull[1:], pull[0]), over).to(x.dtype)


class _KeepsInput(LayerFunction):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Over], output: Tensor) -> None:
        x, ctx.over = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)


class _SoftArgmax(_KeepsInput):
    @staticmethod
    def forward(x: Tensor, over: _Over) -> Tensor:
        return _coordinates(_soft(x, over), over).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _soft_argmax_vjp(x, upstream, ctx.over), None


class _SoftArgmaxForward(_SoftArgmax):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (x,), over = ctx.saved_tensors, ctx.over
        return _coordinates(_times_jacobian(x, tangent, over), over).to(x.dtype)


def soft_argmax(input: Tensor, dim: Dims = -1, temperature: float = 1.0) -> Tensor:
    r"""The expected index under softmax, the soft argmax.

    .. math::

        s_t(x) = \sum_i i\, p_i, \qquad p = \operatorname{softmax}(t x), \qquad
        \frac{\partial z}{\partial x_i} = t\, p_i\, (i - s)\, \frac{\partial z}{\partial s}

    which are :eq:`eq-soft-argmax` and :eq:`eq-soft-argmax-gradient`. Over several dimensions at once the softmax is
    over all their entries together, and the result has one expected coordinate for each, :eq:`eq-soft-argmax-2d`. For
    the backward pass the input is kept, and the weights are computed again.

    Args:
        input: :math:`x`, at least one dimension, floating point.
        dim: an int, over which dimension; or several ints, over which dimensions jointly.
        temperature: :math:`t`, a number above 0. The limit for large :math:`t` is the argmax where it is unique.

    Returns:
        the shape of ``input`` without ``dim``. For several dimensions there is one more at the end, which holds the
        coordinates in the order of ``dim``. In the dtype of ``input``; half precision is computed in float32.

    At ties:
        the limit for large :math:`t` is the mean of the tied indices, which need not be one of them.

    At infinities:
        entries at :math:`-\infty` have weight 0. Where all are, so is every weight: value and gradient are 0. Entries
        at :math:`+\infty` share the weight equally. A NaN makes its whole result NaN.

    Raises:
        TypeError: ``input`` is not a floating point tensor, ``dim`` is not made of ints, or ``temperature`` is not a number.
        ValueError: ``input`` has no dimension or no entry along ``dim``, ``dim`` is empty or names a dimension twice, or
            ``temperature`` is not finite or not above 0.
        IndexError: ``input`` has no dimension ``dim``.

    Example:
        >>> soft_argmax(torch.tensor([1.0, 2.0, 3.0, 4.0, 2.0]))
        tensor(2.6135)
        >>> soft_argmax(torch.eye(3)[1].outer(torch.eye(4)[2]), dim=(0, 1), temperature=20.0)
        tensor([1., 2.])

    Source: the book, :eq:`eq-soft-argmax`.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(soft_argmax, (input,), input, dim, temperature)
    over = _checked(input, dim, temperature)
    input = _as_float32_under_autocast(input)
    if not derivative_wanted(input):
        return _coordinates(_soft(input, over), over).to(input.dtype)
    return pick(_SoftArgmax, _SoftArgmaxForward).apply(input, over)


def _one_hot(x: Tensor, over: _Over) -> Tensor:
    """1 at the first maximum, 0 elsewhere."""
    (dim,) = over.dims
    return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1.0)


class _StraightThroughArgmax(_KeepsInput):
    @staticmethod
    def forward(x: Tensor, over: _Over) -> Tensor:
        return _one_hot(x, over)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _times_jacobian(x, upstream, ctx.over).to(x.dtype), None


class _StraightThroughArgmaxForward(_StraightThroughArgmax):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return _times_jacobian(x, tangent, ctx.over).to(x.dtype)


def straight_through_argmax(input: Tensor, dim: int = -1, temperature: float = 1.0) -> Tensor:
    r"""The one-hot vector of the argmax, with the derivative of softmax: the straight-through estimator.

    .. math::

        y = e_{\operatorname{argmax} x}, \qquad
        \frac{\partial z}{\partial x} \leftarrow t\,(\operatorname{diag} p - p\,p^\top)\,\frac{\partial z}{\partial y},
        \qquad p = \operatorname{softmax}(t x)

    which are :eq:`eq-straight-through` and :eq:`eq-straight-through-vjp`. The second is not the derivative of the
    first, which is 0 almost everywhere. Value and all derivatives are those of ``(hard - soft).detach() + soft``.
    For the backward pass the input is kept.

    Args:
        input: :math:`x`, at least one dimension, floating point.
        dim: over which dimension.
        temperature: :math:`t`, a number above 0, of the softmax in the derivative. The value does not depend on it.

    Returns:
        the shape and dtype of ``input``.

    At ties:
        the 1 stands at the first of the largest entries, as ``torch.argmax`` has it. A NaN counts as largest.

    At infinities:
        the weights :math:`p` are those of :func:`soft_argmax`.

    Raises:
        TypeError, ValueError, IndexError: as :func:`soft_argmax`.

    Example:
        >>> x = torch.tensor([1.0, 3.0, 2.0], requires_grad=True)
        >>> y = straight_through_argmax(x)
        >>> y.detach()
        tensor([0., 1., 0.])
        >>> y[1].backward()
        >>> x.grad
        tensor([-0.0599,  0.2227, -0.1628])

    Source: the book, :eq:`eq-straight-through-vjp`.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(straight_through_argmax, (input,), input, dim, temperature)
    _check_int(dim)
    over = _checked(input, dim, temperature)
    input = _as_float32_under_autocast(input)
    if not derivative_wanted(input):
        return _one_hot(input, over)
    return pick(_StraightThroughArgmax, _StraightThroughArgmaxForward).apply(input, over)


# --- the module -----------------------------------------------------------------------------------


class SoftArgmax(nn.Module):
    """:func:`soft_argmax` as a module.

    Args:
        dim, temperature: as :func:`soft_argmax`.

    Shapes:
        any to the same without ``dim``; for several dimensions with one more at the end, of their number.

    Raises:
        TypeError, ValueError: a ``temperature`` that :func:`soft_argmax` would refuse.

    Example:
        >>> SoftArgmax((-2, -1), temperature=4.0)(torch.zeros(2, 3, 5, 7)).shape
        torch.Size([2, 3, 2])

    Source: the book, :eq:`eq-soft-argmax`.
    """

    def __init__(self, dim: Dims = -1, temperature: float = 1.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.dim = tuple(dim) if isinstance(dim, list) else dim
        self.temperature = temperature

    def forward(self, input: Tensor) -> Tensor:
        return soft_argmax(input, self.dim, self.temperature)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, temperature={self.temperature}"


class StraightThroughArgmax(nn.Module):
    """:func:`straight_through_argmax` as a module.

    Args:
        dim, temperature: as :func:`straight_through_argmax`.

    Shapes:
        any to the same.

    Raises:
        TypeError, ValueError: a ``temperature`` that :func:`straight_through_argmax` would refuse.

    Example:
        >>> StraightThroughArgmax()(torch.tensor([[0.5, 0.1], [0.2, 0.9]]))
        tensor([[1., 0.],
                [0., 1.]])

    Source: the book, :eq:`eq-straight-through`.
    """

    def __init__(self, dim: int = -1, temperature: float = 1.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.dim = dim
        self.temperature = temperature

    def forward(self, input: Tensor) -> Tensor:
        return straight_through_argmax(input, self.dim, self.temperature)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, temperature={self.temperature}"


# --- checks ---------------------------------------------------------------------------------------


def _check_int(dim: object) -> None:
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"dim must be an int, got {type(dim).__name__}")


def _checked(input: Tensor, dim: Dims, temperature: float) -> _Over:
    check_floating("input", input)
    t = check_temperature(temperature)
    if input.dim() == 0:
        raise ValueError("input must have at least one dimension, got shape ()")
    dims = _dimensions(dim, input)
    if any(input.shape[d] == 0 for d in dims):
        raise ValueError(f"input must have at least one entry along dim {dim!r}, got shape {tuple(input.shape)}")
    return _Over(dims, t, not isinstance(dim, int))
