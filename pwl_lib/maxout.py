r"""Maxout: the largest of k affine maps, the convex functions it makes, and the differences of two.

The module of the chapter *Maxout*. First the matrices: :math:`S`, which selects the winning piece of each unit, and the
Jacobians that follow from it; then the functions, which apply the transpose of :math:`S` without forming it; then the
modules; then what a unit can be: a rectifier, the best convex interpolant, one half of any piecewise linear function.

The pieces of a unit are neighbours: rows :math:`ik, \dots, ik + k - 1` of the weight, counted from 0, belong to unit i.
For the backward pass a layer keeps the winner of each unit, one byte an output, beside what the affine map keeps.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

from pwl_lib import rectifiers
from pwl_lib._autograd import LayerFunction, derivative_wanted, pick, save_mask
from pwl_lib._validation import check_count, check_finite_number, check_floating, check_one_of, check_same_kind
from pwl_lib._windows import Pair, check_pair
from pwl_lib.convolution import Linear, Padding, conv2d, linear

__all__ = [
    "ConvexInterpolant",
    "DifferenceOfMaxouts",
    "Maxout",
    "Maxout2d",
    "as_maxout",
    "convex_interpolant",
    "difference_of_maxouts",
    "maxout",
    "maxout2d",
    "maxout_jacobians",
    "winner_matrix",
]


# --- the matrix -----------------------------------------------------------------------------------


def winner_matrix(input: Tensor, weight: Tensor, bias: Tensor | None, pieces: int) -> Tensor:
    r"""The matrix :math:`S` that selects the winning piece of each unit, for one sample.

    .. math:: y = S z, \qquad z = W x + b

    which is :eq:`eq-winner-matrix`. Each row has a single 1. Where no unit has a tie, :math:`S W` is the Jacobian of
    :func:`maxout`.

    Args:
        input: ``(d,)``, floating point.
        weight, bias, pieces: as :func:`maxout`.

    Returns:
        ``(m, m * pieces)``, in the dtype of ``input``.

    At ties:
        the first of the tied pieces wins.

    Raises:
        TypeError, ValueError: as :func:`maxout`, and for a batch.

    Example:
        >>> winner_matrix(torch.tensor([2.0]), torch.tensor([[0.0], [1.0], [3.0], [1.0]]), None, 2)
        tensor([[0., 1., 0., 0.],
                [0., 0., 1., 0.]])

    Source: the book, :eq:`eq-winner-matrix`.
    """
    winner = _winners(input, weight, bias, pieces)
    return nn.functional.one_hot(winner, weight.shape[0]).to(input.dtype)


def maxout_jacobians(input: Tensor, weight: Tensor, bias: Tensor | None, pieces: int) -> tuple[Tensor, ...]:
    r"""The Jacobians of :func:`maxout` in the input, in the weight and in the bias, for one sample.

    .. math::

        \frac{\partial y}{\partial x^\top} = S W, \qquad
        \frac{\partial y}{\partial (\operatorname{vec}_r W)^\top} = S \otimes x^\top, \qquad
        \frac{\partial y}{\partial b^\top} = S

    which are :eq:`eq-maxout-jacobian`.

    Args:
        input: ``(d,)``, floating point.
        weight, bias, pieces: as :func:`maxout`.

    Returns:
        ``(m, d)``, ``(m, m * pieces * d)`` and, with a bias, ``(m, m * pieces)``. The columns of the second are in
        torch's order of the elements of ``weight``, row by row.

    At ties:
        those of the first of the tied pieces.

    Raises:
        TypeError, ValueError: as :func:`maxout`, and for a batch.

    Example:
        >>> by_input, by_weight = maxout_jacobians(torch.tensor([2.0]), torch.tensor([[0.0], [1.0]]), None, 2)
        >>> by_input, by_weight
        (tensor([[1.]]), tensor([[0., 2.]]))

    Source: the book, :eq:`eq-maxout-jacobian`.
    """
    winner = _winners(input, weight, bias, pieces)
    S = nn.functional.one_hot(winner, weight.shape[0]).to(input.dtype)
    by_weight = torch.where(S[:, :, None] > 0, input, 0).flatten(1)
    return (weight[winner], by_weight) if bias is None else (weight[winner], by_weight, S)


def _winners(input: Tensor, weight: Tensor, bias: Tensor | None, pieces: int) -> Tensor:
    """The row of the weight that wins in each unit, ``(m,)`` int64."""
    check_floating("input", input)
    if input.dim() != 1:
        raise ValueError(f"input must be one sample, (d,), got shape {tuple(input.shape)}")
    z = linear(input.detach(), weight, bias)
    _check_pieces(weight, pieces)
    winner = _group_max(z, pieces, -1)[1]
    return winner + pieces * torch.arange(len(winner), device=z.device)


# --- the function ---------------------------------------------------------------------------------


# ``dim`` counts from the end: it is the dimension of all rows of z, and, after they are grouped, that of the pieces.


def _grouped(z: Tensor, pieces: int, dim: int) -> Tensor:
    before, after = z.shape[:dim], z.shape[dim:]
    return z.reshape(*before, after[0] // pieces, pieces, *after[1:])


def _group_max(z: Tensor, pieces: int, dim: int) -> tuple[Tensor, Tensor]:
    """Values and winners of groups of neighbours."""
    return _grouped(z, pieces, dim).max(dim)


class _GroupMax(LayerFunction):
    @staticmethod
    def forward(z: Tensor, pieces: int, dim: int) -> tuple[Tensor, Tensor]:
        y, winner = _group_max(z, pieces, dim)
        return y, winner.to(torch.uint8 if pieces <= 256 else torch.int32)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: tuple[Tensor, Tensor]) -> None:
        _, ctx.pieces, ctx.dim = inputs
        save_mask(ctx, output[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, None, None]:
        (winner,) = ctx.saved_tensors
        return (None if upstream is None else _to_winners(upstream, winner, ctx.pieces, ctx.dim)), None, None


class _GroupMaxForward(_GroupMax):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
        (winner,) = ctx.saved_tensors
        return (None if tangent is None else _of_winners(tangent, winner, ctx.pieces, ctx.dim)), None


def _to_winners(upstream: Tensor, winner: Tensor, pieces: int, dim: int) -> Tensor:
    """The transpose of S: each entry of the upstream gradient goes to the winner of its group."""
    g = upstream.unsqueeze(dim)
    shape = list(g.shape)
    shape[dim] = pieces
    routed = g.new_zeros(shape).scatter(dim, winner.to(torch.int64).unsqueeze(dim), g)
    return routed.reshape(*shape[: dim - 1], shape[dim - 1] * pieces, *shape[dim:][1:])


def _of_winners(z: Tensor, winner: Tensor, pieces: int, dim: int) -> Tensor:
    """S: the entries of z at the winners of another."""
    return _grouped(z, pieces, dim).gather(dim, winner.to(torch.int64).unsqueeze(dim)).squeeze(dim)


def maxout(input: Tensor, weight: Tensor, bias: Tensor | None, pieces: int) -> Tensor:
    r"""The maxout layer: the largest of ``pieces`` affine maps in each unit.

    .. math::

        y_i = \max_{j \in G(i)} z_j, \quad z = W x + b, \qquad
        \frac{\partial e}{\partial z} = S^\top \frac{\partial e}{\partial y}

    which are :eq:`eq-maxout` and :eq:`eq-maxout-vjp`: the winner of a group gets the whole upstream gradient, the others
    get 0. For the backward pass the winner is kept, one byte an output (four where ``pieces`` exceeds 256), with what
    :func:`pwl_lib.convolution.linear` keeps. :math:`z` is not kept.

    Args:
        input: ``(*, d)``, floating point.
        weight: ``(m * pieces, d)``, the dtype of ``input``; the pieces of unit i, counted from 0, are the rows
            ``i * pieces`` to ``i * pieces + pieces - 1``.
        bias: ``(m * pieces,)`` or None.
        pieces: k, at least 1; with 1 the layer is linear.

    Returns:
        ``(*, m)``. Of a group with NaN the value is NaN, and its first NaN wins, as in torch.

    At ties:
        the first of the tied pieces wins, as in ``torch.max``. Its row of the weight is an element of the
        subdifferential of the unit.

    Raises:
        TypeError: a tensor is not floating point, the dtypes differ, or ``pieces`` is not an int.
        ValueError: a shape does not fit, or ``pieces`` does not divide the rows of ``weight``.

    Example:
        >>> weight = torch.tensor([[-1.0], [1.0]])  # |x|
        >>> maxout(torch.tensor([[-3.0], [2.0]]), weight, None, 2)
        tensor([[3.],
                [2.]])

    Source: the book, :eq:`eq-maxout-vjp`; Goodfellow et al. (2013).
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(maxout, tensors, input, weight, bias, pieces)
    z = linear(input, weight, bias)
    _check_pieces(weight, pieces)
    wanted = derivative_wanted(*tensors)
    return pick(_GroupMax, _GroupMaxForward).apply(z, pieces, -1)[0] if wanted else _group_max(z, pieces, -1)[0]


def maxout2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pieces: int,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    r"""The maxout layer of images: a convolution, then the largest of ``pieces`` neighbouring channels.

    .. math:: y_{d' i' j'} = \max_{j \in G(d')} (\kappa * x + b)_{j i' j'}

    which is :eq:`eq-maxout-conv`. The gradient goes to the winning channel, pixel by pixel, and from there through the
    convolution. The winner is kept, one byte an output, and the convolved image is not.

    Args:
        input: ``(N, D, H, W)`` or ``(D, H, W)``, floating point.
        weight: ``(D' * pieces, D / groups, k_h, k_w)``, the dtype of ``input``.
        bias: ``(D' * pieces,)`` or None.
        pieces: k, at least 1.
        stride, padding, dilation, groups: as :func:`pwl_lib.convolution.conv2d`.

    Returns:
        ``(N, D', H', W')`` or without N.

    At ties:
        the first of the tied channels wins, as in ``torch.max``.

    Raises:
        TypeError, ValueError: as :func:`pwl_lib.convolution.conv2d`, and if ``pieces`` does not divide the kernels.

    Example:
        >>> edges = torch.tensor([[[[-1.0, 1.0]]], [[[1.0, -1.0]]]])  # from dark to light, from light to dark
        >>> maxout2d(torch.tensor([[[0.0, 3.0, 1.0, 1.0]]]), edges, None, 2)
        tensor([[[3., 2., 0.]]])

    Source: the book, :eq:`eq-maxout-conv`; Goodfellow et al. (2013).
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if has_torch_function_variadic(*tensors):
        words = stride, padding, dilation, groups
        return handle_torch_function(maxout2d, tensors, input, weight, bias, pieces, *words)
    z = conv2d(input, weight, bias, stride, padding, dilation, groups)
    _check_pieces(weight, pieces)
    wanted = derivative_wanted(*tensors)
    return pick(_GroupMax, _GroupMaxForward).apply(z, pieces, -3)[0] if wanted else _group_max(z, pieces, -3)[0]


def _check_pieces(weight: Tensor, pieces: int) -> None:
    check_count("pieces", pieces, 1)
    if int(weight.shape[0]) % pieces:
        raise ValueError(f"pieces must divide the {int(weight.shape[0])} rows of weight, got {pieces}")


# --- the module -----------------------------------------------------------------------------------


class Maxout(nn.Module):
    """:func:`maxout` as a module: m units of k pieces.

    Args:
        in_features: d.
        out_features: m.
        pieces: k.
        bias: whether there is one.
        device, dtype: of the parameters.

    Shapes:
        ``(*, d)`` to ``(*, m)``. ``weight`` is ``(m * k, d)`` and ``bias`` ``(m * k,)``; they begin as those of
        ``torch.nn.Linear(d, m * k)``.

    Raises:
        TypeError, ValueError: a number is not an int, or below 1.

    Example:
        >>> Maxout(3, 2, pieces=4)(torch.ones(5, 3)).shape
        torch.Size([5, 2])

    Source: the book, :eq:`eq-maxout`; Goodfellow et al. (2013).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pieces: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, count in (("in_features", in_features), ("out_features", out_features), ("pieces", pieces)):
            check_count(name, count, 1)
        self.in_features, self.out_features, self.pieces = in_features, out_features, pieces
        rows = out_features * pieces
        self.weight = nn.Parameter(torch.empty(rows, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.Linear.reset_parameters(self)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        return maxout(input, self.weight, self.bias, self.pieces)

    def extra_repr(self) -> str:
        words = f"in_features={self.in_features}, out_features={self.out_features}, pieces={self.pieces}"
        return f"{words}, bias={self.bias is not None}"


class Maxout2d(nn.Module):
    """:func:`maxout2d` as a module: D' channels of k pieces.

    Args:
        in_channels: D.
        out_channels: D'.
        kernel_size: rows and columns of the kernels.
        pieces: k.
        stride, padding, dilation, groups: as :func:`pwl_lib.convolution.conv2d`.
        bias: whether there is one.
        device, dtype: of the parameters.

    Shapes:
        ``(N, D, H, W)`` or ``(D, H, W)`` to ``(N, D', H', W')`` or ``(D', H', W')``. The parameters begin as those of
        ``torch.nn.Conv2d(D, D' * k, kernel_size)``.

    Raises:
        TypeError, ValueError: a number is not an int, or out of its range; ``groups`` does not divide the channels; ``stride``
            is not 1 and ``padding`` is ``'same'``.

    Example:
        >>> Maxout2d(3, 8, kernel_size=3, pieces=2, padding="same")(torch.ones(2, 3, 5, 5)).shape
        torch.Size([2, 8, 5, 5])

    Source: the book, :eq:`eq-maxout-conv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        pieces: int,
        stride: Pair = 1,
        padding: Padding = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        counts = {"in_channels": in_channels, "out_channels": out_channels, "pieces": pieces, "groups": groups}
        for name, count in counts.items():
            check_count(name, count, 1)
        for name, count in (("in_channels", in_channels), ("out_channels * pieces", out_channels * pieces)):
            if count % groups:
                raise ValueError(f"groups must divide {name}, {count}, got {groups}")
        self.in_channels, self.out_channels, self.pieces = in_channels, out_channels, pieces
        self.kernel_size = check_pair("kernel_size", kernel_size, 1)
        steps, _ = check_pair("stride", stride, 1), check_pair("dilation", dilation, 1)
        if not isinstance(padding, str):
            check_pair("padding", padding, 0)
        else:
            check_one_of("padding", padding, ("same", "valid"), "or an int or two ints")
            if padding == "same" and steps != (1, 1):
                raise ValueError(f"stride must be 1 where padding is 'same', got {stride!r}")
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        kernels = out_channels * pieces
        self.weight = nn.Parameter(
            torch.empty(kernels, in_channels // groups, *self.kernel_size, device=device, dtype=dtype)
        )
        self.bias = nn.Parameter(torch.empty(kernels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.Conv2d.reset_parameters(self)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        words = self.stride, self.padding, self.dilation, self.groups
        return maxout2d(input, self.weight, self.bias, self.pieces, *words)

    def extra_repr(self) -> str:
        said = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, pieces={self.pieces}"
        for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)):
            if getattr(self, name) != usual:
                said += f", {name}={getattr(self, name)!r}"
        return said + (", bias=False" if self.bias is None else "")


# --- what a unit can be ---------------------------------------------------------------------------


def _unit(slopes: Tensor, intercepts: Tensor) -> Maxout:
    """The unit of one input with these lines; the dtype and the device are theirs."""
    unit = Maxout(1, 1, len(slopes), device=slopes.device, dtype=slopes.dtype)
    with torch.no_grad():
        unit.weight.copy_(slopes[:, None])
        unit.bias.copy_(intercepts)  # type: ignore[union-attr]
    return unit


_LINEAR: tuple[type[nn.Module], ...] = (nn.Linear, Linear)
_ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    rectifiers.ReLU,
    nn.LeakyReLU,
    rectifiers.LeakyReLU,
    nn.PReLU,
    rectifiers.PReLU,
    rectifiers.Absolute,
)
_NOT_CONVEX: tuple[type[nn.Module], ...] = (
    nn.Hardtanh,  # and ReLU6
    rectifiers.Hardtanh,
    nn.Hardsigmoid,
    nn.Softshrink,
)


def as_maxout(module: nn.Module, *, dtype: torch.dtype | None = None) -> Maxout:
    r"""A rectifier, or a linear layer with one, as maxout units of two pieces: the same function.

    .. math:: \max(0, x) + \alpha \min(0, x) = \max(\alpha x, x) \quad \text{if } \alpha \le 1

    which is :eq:`eq-as-maxout`; :math:`\alpha` is 0 for ReLU and -1 for the absolute value. After a linear layer the two
    pieces of unit i are :math:`\alpha (w_i \cdot x + b_i)` and :math:`w_i \cdot x + b_i`.

    Args:
        module: ``ReLU``, ``LeakyReLU`` or ``PReLU`` of torch or of :mod:`pwl_lib.rectifiers`, ``Absolute``, or
            ``nn.Sequential(linear, activation)`` with one of these.
        dtype: of the parameters, where ``module`` has none of its own; torch's default dtype if it is not given.

    Returns:
        ``Maxout(1, 1, 2)`` for an activation without parameters or with one, which acts on ``(*, 1)``; ``Maxout(C, C, 2)``
        for a ``PReLU`` with C, which acts on ``(*, C)``; ``Maxout(d, m, 2)`` for a linear layer with an activation. The
        parameters are copies. On finite inputs in float32 or float64 the values of an activation are equal. In half
        precision :math:`\alpha` of ``LeakyReLU`` is rounded to the dtype first, and after a linear layer :math:`\alpha w` is
        rounded once more.

    At the kink:
        the piece with slope :math:`\alpha` is the first, so that the gradient there is that of torch's ReLU, leaky ReLU and
        PReLU. The unit of a ``ReLU`` of :mod:`pwl_lib.rectifiers` has slope 0 there whatever its ``slope_at_zero`` is. The
        absolute value has slope 0 there, and its unit -1.

    Raises:
        TypeError: another module, one whose ``forward`` is not that of the class it derives from, or one with hooks.
        ValueError: :math:`\alpha > 1`, where the function is the smaller of the two lines, or a module that is known not
            to be convex.

    Example:
        >>> unit = as_maxout(nn.LeakyReLU(0.25))
        >>> unit(torch.tensor([[-2.0], [3.0]])).flatten().tolist(), unit.weight.tolist()
        ([-0.5, 3.0], [[0.25], [1.0]])

    Source: the book, :eq:`eq-as-maxout`; Goodfellow et al. (2013).
    """
    pair = isinstance(module, nn.Sequential) and _is_one_of(module, (nn.Sequential,)) and len(module) == 2
    if pair and _is_one_of(module[0], _LINEAR):  # type: ignore[index]
        first, activation = module.children()
        weight: Tensor = first.weight.detach()  # type: ignore[operator]
        bias: Any = first.bias
        alpha = _lower_slopes(activation, len(weight)).to(weight)
        unit = Maxout(weight.shape[1], len(weight), 2, bias=bias is not None, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            unit.weight.copy_(torch.stack([alpha[:, None] * weight, weight], dim=1).flatten(0, 1))
            if bias is not None:
                unit.bias.copy_(torch.stack([alpha * bias, bias], dim=1).flatten())  # type: ignore[union-attr]
        return unit
    alpha = _lower_slopes(module, None)
    if not isinstance(module, (nn.PReLU, rectifiers.PReLU)):
        alpha = alpha.to(dtype or torch.get_default_dtype())
    identity = torch.eye(len(alpha), dtype=alpha.dtype, device=alpha.device)
    unit = Maxout(len(alpha), len(alpha), 2, device=alpha.device, dtype=alpha.dtype)
    with torch.no_grad():
        unit.weight.copy_(torch.stack([alpha[:, None] * identity, identity], dim=1).flatten(0, 1))
        nn.init.zeros_(unit.bias)  # type: ignore[arg-type]
    return unit


def _is_one_of(module: nn.Module, known: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module is one of the known ones, or derives from one and leaves its ``forward`` alone, without hooks."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    if "forward" in vars(module) or any(getattr(module, name) for name in hooks):
        return False
    return any(isinstance(module, one) and type(module).forward is one.forward for one in known)


def _lower_slopes(module: nn.Module, count: int | None) -> Tensor:
    """The slope below 0 of each unit of an activation, ``(count,)``, or one for each of its parameters."""
    name = type(module).__name__
    if not _is_one_of(module, _ACTIVATIONS):
        if isinstance(module, _NOT_CONVEX):
            raise ValueError(
                f"{name} is not convex: its graph bends downwards, and a maxout unit bends only upwards; "
                "difference_of_maxouts makes piecewise linear functions of every kind"
            )
        raise TypeError(
            "module must be ReLU, LeakyReLU, PReLU, Absolute, or nn.Sequential of a linear layer and one of them, with "
            f"their own forward and without hooks, got {name}"
        )
    if isinstance(module, (nn.PReLU, rectifiers.PReLU)):
        alpha = module.weight.detach()
        if count is not None and len(alpha) not in (1, count):
            raise ValueError(f"PReLU must have 1 parameter or one for each of the {count} outputs, got {len(alpha)}")
    else:
        known = {nn.ReLU: 0.0, rectifiers.ReLU: 0.0, rectifiers.Absolute: -1.0}
        slopes = [slope for one, slope in known.items() if isinstance(module, one)]
        alpha = torch.tensor(slopes or [module.negative_slope], dtype=torch.float64)
    if not bool(torch.isfinite(alpha).all()):
        raise ValueError(f"{name} must have finite slopes below 0, got {alpha.tolist()}")
    if bool((alpha > 1).any()):
        raise ValueError(
            f"{name} must have slopes of at most 1 below 0, got {alpha.max().item():g}: with a larger one it is concave, the "
            "smaller of the two lines, and no maximum of affine functions; difference_of_maxouts makes it of two units"
        )
    return alpha if count is None or len(alpha) == count else alpha.expand(count)


class ConvexInterpolant(NamedTuple):
    """What :func:`convex_interpolant` returns."""

    unit: Maxout
    """``Maxout(1, 1, pieces)`` in float64: the tangents."""
    points: Tensor
    """``(pieces,)``, where the tangents touch the function, in rising order."""
    breakpoints: Tensor
    """``(pieces - 1,)``, where neighbouring tangents meet, in rising order."""
    error: float
    """The largest error on the interval; it is attained at both ends and at all breakpoints."""


def convex_interpolant(f: Callable[[Tensor], Tensor], pieces: int, interval: tuple[float, float]) -> ConvexInterpolant:
    r"""The best maximum of tangents: of all maxima of ``pieces`` lines below a convex function the nearest to it.

    .. math:: g(x) = \max_{1 \le i \le k} \bigl( f(t_i) + m_i (x - t_i) \bigr), \qquad m_i \in \partial f(t_i)

    which is :eq:`eq-max-of-tangents`. Its largest error, :eq:`eq-tangent-error`, is the same at both ends of the interval
    and at all breakpoints. Between two breakpoints the slope is that of the chord of f, so that the breakpoints are
    those of the best interpolation by chords too, which lies above f by as much.

    The function is sampled evenly and, in geometric steps, towards both ends. The convex polygon of the samples is solved
    for equal errors, and the function is sampled again near the solution, until the errors of the function are equal.

    Args:
        f: convex on the interval; takes and gives a float64 tensor of any one-dimensional shape, element by element. It may have
            kinks, and may be affine.
        pieces: k, at least 1.
        interval: its two ends, finite, the smaller first.

    Returns:
        A :class:`ConvexInterpolant`. Where fewer lines are f itself, the error is 0 to rounding, the last line stands
        several times, and the breakpoints that are left over are at the right end.

    Raises:
        TypeError: ``pieces`` is not an int, or an end not a number.
        ValueError: ``pieces`` is below 1, the interval is empty or not finite, f gives another shape or something that is not
            finite, or is seen not to be convex; or the errors could not be made equal to a millionth, beside the rounding of f,
            because f bends within less than the samples or the numbers of float64 resolve.

    Example:
        >>> best = convex_interpolant(torch.square, 4, (-1.0, 1.0))
        >>> best.points.round(decimals=6).tolist(), round(best.error, 6)
        ([-0.75, -0.25, 0.25, 0.75], 0.0625)

    Source: the book, :eq:`eq-tangent-error`.
    """
    check_count("pieces", pieces, 1)
    a, b = _check_interval(interval)
    samples = _Samples(f, a, b)
    lines = _own_lines(f, samples, pieces)
    slopes, points, breakpoints = _equal_errors(samples, pieces) if lines is None else lines
    values, _, gaps = _gaps(samples, slopes, points, breakpoints)
    error = max(0.0, float(gaps.max()))
    if not float(np.ptp(gaps)) <= 1e-6 * error + samples.noise:  # not a number either
        raise ValueError(
            f"f must be one that float64 resolves with {pieces} pieces, and on [{a:g}, {b:g}] the errors at both ends and "
            f"at all breakpoints could not be made equal: they lie between {gaps.min():.6g} and {gaps.max():.6g}"
        )
    as_tensor = torch.from_numpy
    unit = _unit(as_tensor(slopes), as_tensor(values - slopes * points))
    return ConvexInterpolant(unit, as_tensor(points), as_tensor(breakpoints), error)


class _Samples:
    """A convex function at points of an interval: evenly spaced ones, and towards each end ever closer ones."""

    def __init__(self, f: Callable[[Tensor], Tensor], a: float, b: float) -> None:
        self.f, self.a, self.b = f, a, b
        even = np.linspace(a, b, 1025)
        coarse = np.unique(even[::8])
        rises = np.diff(self(coarse)) / np.diff(coarse)
        closer = (b - a) * 0.5 ** np.arange(1, 1001)
        self.x = np.unique(np.concatenate([even, a + closer, b - closer]).clip(a, b))
        self.y = self(self.x)
        self.noise = 16 * np.finfo(float).eps * max(float(np.abs(self.y).max()), np.finfo(float).tiny)
        falls = np.flatnonzero(np.diff(rises) * np.diff(coarse)[1:] < -4 * self.noise)
        if len(falls):
            left, middle, right = (float(coarse[falls[0] + step]) for step in range(3))
            raise ValueError(
                f"f must be convex on the interval, and at {middle:.6g} it lies above its chord from {left:.6g} to {right:.6g}"
            )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            y = self.f(torch.from_numpy(np.ascontiguousarray(x)))
        if not isinstance(y, Tensor) or y.shape != x.shape:
            came = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"f must give one number for each of its arguments, {x.shape}, got {came}")
        values = y.detach().to(torch.float64).numpy()
        if not np.isfinite(values).all():
            raise ValueError(f"f must be finite on the interval, got {values[~np.isfinite(values)][0]}")
        return values

    def around(self, points: np.ndarray) -> np.ndarray:
        """The samples, and more on both sides of some points, ever closer to them."""
        right = np.searchsorted(self.x, points).clip(1, len(self.x) - 1)
        steps = (self.x[right] - self.x[right - 1])[:, None] * 8.0 ** -np.arange(11)
        near = np.concatenate([points[:, None] - steps, points[:, None], points[:, None] + steps], 1)
        return np.unique(np.concatenate([self.x, near.ravel().clip(self.a, self.b)]))


Lines = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Slopes, points and breakpoints."""


def _own_lines(f: Callable[[Tensor], Tensor], samples: _Samples, pieces: int) -> Lines | None:
    """The lines that a piecewise linear f with at most so many pieces consists of; None where it is another function.

    Two tangents meet at a point of the graph, or another line has a part between them.
    """

    def tangents(at: np.ndarray) -> list[tuple[float, float, float]]:
        x = torch.from_numpy(at).requires_grad_()
        with torch.enable_grad():
            y = f(x)
            slope = torch.autograd.grad(y.sum(), x)[0] if y.requires_grad else torch.zeros_like(x)
        return list(zip(at.tolist(), y.tolist(), slope.tolist()))

    def crossing(left: tuple[float, float, float], right: tuple[float, float, float]) -> float:
        (s, p, m), (t, q, n) = left, right
        return s if m == n else min(max((p - q + n * t - m * s) / (n - m), s), t)

    def missed(left: tuple[float, float, float], right: tuple[float, float, float], at: float, value: float) -> bool:
        return bool(value - max(p + m * (at - t) for t, p, m in (left, right)) > samples.noise)

    lines = tangents(np.array([samples.a, samples.b]))
    if not all(math.isfinite(slope) for _, _, slope in lines):
        return None
    settled: set[tuple[float, float]] = set()
    while True:
        pairs = [(u, v) for u, v in itertools.pairwise(lines) if (u[0], v[0]) not in settled]
        if not pairs or len(lines) > 2 * pieces + 8:
            break
        at = np.array([crossing(u, v) for u, v in pairs])
        open_pairs = [missed(u, v, x, y) for (u, v), x, y in zip(pairs, at.tolist(), samples(at).tolist())]
        settled |= {(u[0], v[0]) for (u, v), is_open in zip(pairs, open_pairs) if not is_open}
        lines = sorted({*lines, *tangents(at[np.array(open_pairs)])}) if any(open_pairs) else lines
    place = 1
    while place < len(lines) - 1:  # a line that only touches a kink is none of the function's own
        u, v = lines[place - 1], lines[place + 1]
        x = crossing(u, v)
        if missed(u, v, x, float(samples(np.array([x]))[0])):
            place += 1
        else:
            del lines[place]
    if len(lines) == 2 and not missed(lines[0], lines[0], lines[1][0], lines[1][1]):
        del lines[1]
    found = np.array(lines)
    if len(lines) > pieces:
        return None
    above = (found[:, 1:2] + found[:, 2:] * (samples.x - found[:, :1])).max(0)
    if np.abs(above - samples.y).max() > 4 * samples.noise:
        return None
    corners = [crossing(u, v) for u, v in itertools.pairwise(lines)]
    rest = pieces - len(lines)
    found = np.concatenate([found, np.repeat(found[-1:], rest, 0)])
    return found[:, 2].copy(), found[:, 0].copy(), np.array(corners + [samples.b] * rest)


class _Polygon:
    """The lower hull of a function at some points: a convex polygon, whose slopes rise also where the values are rounded."""

    def __init__(self, samples: _Samples, at: np.ndarray) -> None:
        self.x, self.y, self.slope = x, y, slope = [], [], []  # type: tuple[list[float], list[float], list[float]]
        for t, value in zip(at.tolist(), samples(at).tolist(), strict=True):
            while x:
                rise = (value - y[-1]) / (t - x[-1])
                if not slope or rise > slope[-1]:
                    slope.append(rise)
                    break
                slope.pop(), x.pop(), y.pop()
            x.append(t)
            y.append(value)

    def march(self, pieces: int, error: float) -> tuple[Lines, float]:
        """From the left end, each line as steep as it can be: the lines, and the error of the last.

        A line begins below the graph by the error. It touches where it is steepest, and ends where it is below by as
        much again.
        """
        x, y, rise = self.x, self.y, self.slope
        last = len(x) - 1
        left, value, slope, next_corner = x[0], y[0], 0.0, 1
        slopes: list[float] = []
        points: list[float] = []
        breakpoints: list[float] = []

        def below(corner: int) -> float:  # the line through a corner and the next, at the left end of the piece
            return (value - error) - (y[corner] - rise[corner] * (x[corner] - left))

        def gap(corner: int) -> float:
            return y[corner] - (value - error + slope * (x[corner] - left))

        while len(slopes) < pieces - 1 and next_corner <= last:
            touch = bisect.bisect_left(range(last), 0.0, next_corner, last, key=below)
            slope = (y[touch] - (value - error)) / (x[touch] - left)
            slopes.append(slope)
            points.append(x[touch])
            next_corner = bisect.bisect_right(range(last + 1), error, touch + 1, last + 1, key=gap)
            if next_corner <= last:
                before, after = gap(next_corner - 1), gap(next_corner)
                share = (error - before) / (after - before)
                left, value = (
                    each[next_corner - 1] + share * (each[next_corner] - each[next_corner - 1]) for each in (x, y)
                )
                next_corner += left >= x[next_corner]
            breakpoints.append(left if next_corner <= last else x[last])
        if next_corner > last:  # so large an error needs fewer pieces
            rest = pieces - len(slopes)
            slopes, points = slopes + slopes[-1:] * rest, points + x[last:] * rest
            return (np.array(slopes), np.array(points), np.array(breakpoints + x[last:] * (rest - 1))), 0.0
        slope = (y[last] - value) / (x[last] - left)
        touch = bisect.bisect_left(rise, slope, next_corner, last)
        lines = np.array([*slopes, slope]), np.array([*points, x[touch]]), np.array(breakpoints)
        return lines, max(0.0, value + slope * (x[touch] - left) - y[touch])

    def solve(self, pieces: int, guess: float) -> float:
        """The error for which the last of the pieces has the same: the only root of a falling function."""
        low, high = 0.0, self.march(1, 0.0)[1]
        if pieces == 1 or high <= 0:
            return high
        excess_low, excess_high = high, -high  # only their signs and sizes steer the search
        error = guess if 0 < guess < high else high / pieces**2
        for _ in range(100):
            excess = self.march(pieces, error)[1] - error
            if excess > 0:
                low, excess_low, excess_high = error, excess, excess_high / 2
            else:
                high, excess_high, excess_low = error, excess, excess_low / 2
            if excess == 0 or high - low <= 2 * np.finfo(float).eps * high:
                break
            error = low + (high - low) * excess_low / (excess_low - excess_high)
            if not low < error < high:
                error = (low + high) / 2
        return high


def _equal_errors(samples: _Samples, pieces: int) -> Lines:
    """The tangents whose errors at both ends and at all breakpoints are equal, or as nearly as it was possible."""
    near, error = np.array([samples.a, samples.b]), math.nan
    best, smallest = None, math.inf
    for _ in range(20):
        polygon, before = _Polygon(samples, samples.around(near)), error
        error = polygon.solve(pieces, error)
        (slopes, _, breakpoints), _ = polygon.march(pieces, error)
        if not np.isfinite(slopes).all():
            raise ValueError(
                f"f must be one that float64 resolves, and on [{samples.a:g}, {samples.b:g}] the slopes of its best lines are "
                f"not finite, got {slopes[~np.isfinite(slopes)][0]}"
            )
        points = _touch(samples, polygon, slopes)
        _, meet, gaps = _gaps(samples, slopes, points, breakpoints)
        spread = float(np.ptp(gaps))
        if best is None or spread < smallest:
            best, smallest = (slopes, points, breakpoints), spread
        if abs(error - before) <= 1e-13 * error and spread <= 1e-9 * error + samples.noise:
            break
        near = np.concatenate([points, meet])
    assert best is not None
    return best


def _gaps(samples: _Samples, slopes: np.ndarray, points: np.ndarray, breakpoints: np.ndarray) -> tuple[np.ndarray, ...]:
    """Values at the points, where neighbouring lines meet, and the errors there, at both ends and at the breakpoints."""
    values = samples(points)
    rows, turns = np.arange(len(points)), np.diff(slopes)
    heights = values[:, None] + slopes[:, None] * (breakpoints - points[:, None])
    ahead = heights[rows[:-1], rows[:-1]] - heights[rows[1:], rows[:-1]]
    meet = (breakpoints + np.where(turns > 0, ahead, 0) / np.where(turns > 0, turns, 1)).clip(samples.a, samples.b)
    at = np.concatenate([[samples.a], meet, breakpoints, [samples.b]])
    return values, meet, samples(at) - (values[:, None] + slopes[:, None] * (at - points[:, None])).max(0)


def _touch(samples: _Samples, polygon: _Polygon, slopes: np.ndarray) -> np.ndarray:
    """Where the lines with these slopes touch from below: 16 parts of what is left at a time."""
    corners, last = np.array(polygon.x), len(polygon.x) - 1
    lowest = np.searchsorted(polygon.slope, slopes)
    left, right = corners[np.maximum(lowest - 1, 0)], corners[np.minimum(lowest + 1, last)]
    rows = np.arange(len(slopes))
    for _ in range(12):
        x = np.linspace(left, right, 33, axis=1)
        lowest = (samples(x.ravel()).reshape(x.shape) - slopes[:, None] * x).argmin(1)
        left, right = x[rows, np.maximum(lowest - 1, 0)], x[rows, np.minimum(lowest + 1, 32)]
    return x[rows, lowest]


def _check_interval(interval: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(interval, (tuple, list)) or len(interval) != 2:
        raise ValueError(f"interval must be two numbers, the smaller first, got {interval!r}")
    a, b = interval
    check_finite_number("each end of interval", a)
    check_finite_number("each end of interval", b)
    if not a < b or not math.isfinite(b - a):
        raise ValueError(f"interval must be two numbers, the smaller first, got {interval!r}")
    return float(a), float(b)


class DifferenceOfMaxouts(nn.Module):
    """One maxout layer minus another.

    Args:
        positive: what is added.
        negative: what is taken away; of the same shapes.

    Shapes:
        those of ``positive``.

    Raises:
        ValueError: the two layers have other numbers of inputs or of outputs.

    Example:
        >>> ramp = difference_of_maxouts(torch.tensor([-1.0, 0.0, 1.0, 2.0]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
        >>> ramp(torch.tensor([[-3.0], [0.5], [7.0]])).flatten().tolist()
        [0.0, 0.5, 1.0]

    Source: the book, :eq:`eq-difference-of-maxouts`; Goodfellow et al. (2013).
    """

    def __init__(self, positive: Maxout, negative: Maxout) -> None:
        super().__init__()
        sizes = [(layer.in_features, layer.out_features) for layer in (positive, negative)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"negative must have the inputs and outputs of positive, {sizes[0][0]} and {sizes[0][1]}, "
                f"got {sizes[1][0]} and {sizes[1][1]}"
            )
        self.positive, self.negative = positive, negative

    def forward(self, input: Tensor) -> Tensor:
        return self.positive(input) - self.negative(input)


def difference_of_maxouts(breakpoints: Tensor, values: Tensor) -> DifferenceOfMaxouts:
    r"""Any continuous piecewise linear function of one number, as one maxout unit minus another.

    .. math:: f = \max_i (a_i x + b_i) - \max_j (c_j x + d_j)

    which is :eq:`eq-difference-of-maxouts`: the first unit bends where f bends upwards, the second where it bends
    downwards, by as much.

    The lines start from the piece of f in the middle and bend away from it on both sides. A unit is evaluated in its dtype
    as :math:`\max (w x + b)`, so that the values are those of f to within

    .. math:: 5 \operatorname{eps} \Bigl( \max |f| + \bigl( |s| + \sum |\text{bends}| \bigr) \max |x| \Bigr)

    for x between the first and the last breakpoint, the maxima over them, and s the slope in the middle; in float64, in which
    the lines are computed, :math:`(n + 10) \operatorname{eps}`. Far from 0, or with steep pieces, float32 is too coarse: shift
    x, or take float64.

    Args:
        breakpoints: ``(n,)`` with n at least 2, float32 or float64, strictly rising. Before the first and behind the last, f
            goes on with its first and its last slope.
        values: ``(n,)``, those of f at the breakpoints, the dtype of ``breakpoints``.

    Returns:
        A :class:`DifferenceOfMaxouts` of shapes ``(*, 1)`` to ``(*, 1)``, in the dtype of ``breakpoints``. ``positive`` has a piece more
        than f has upward bends, ``negative`` one more than it has downward bends. Neighbouring breakpoints whose values lie on
        one line to within 2 eps, as rounding leaves them, are one piece.

    Raises:
        TypeError: a tensor is neither float32 nor float64, or the dtypes differ.
        ValueError: another shape, fewer than two breakpoints, breakpoints that do not rise, a number that is not finite, or
            lines that overflow in the dtype.

    Example:
        >>> hat = difference_of_maxouts(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0]))
        >>> hat(torch.tensor([[-0.5], [0.0], [3.0]])).flatten().tolist()
        [0.5, 1.0, -2.0]

    Source: the book, :eq:`eq-difference-of-maxouts`; Goodfellow et al. (2013).
    """
    _check_path(breakpoints, values)
    t, y = breakpoints.detach().double(), values.detach().double()
    corners = _corners(t.tolist(), y.tolist(), torch.finfo(values.dtype).eps)
    t, y = t[corners], y[corners]
    slopes = y.diff() / t.diff()
    bends, at, middle = slopes.diff(), t[1:-1], (len(t) - 1) // 2  # the piece in the middle is before at[middle]
    up = _bending_line(slopes[middle], y[middle] - slopes[middle] * t[middle], at, bends.clamp(min=0), middle)
    down = _bending_line(0 * t[0], 0 * t[0], at, (-bends).clamp(min=0), middle)
    for weight, bias in (up, down):
        largest = (weight.abs() * t.abs().max() + bias.abs()).max()
        if not largest <= torch.finfo(values.dtype).max:
            raise ValueError(
                f"breakpoints and values must give lines that are finite in {values.dtype}, got slopes up to "
                f"{slopes.abs().max().item():g} and breakpoints up to {t.abs().max().item():g}"
            )
    return DifferenceOfMaxouts(*(_unit(*(part.to(values) for part in lines)) for lines in (up, down)))


def _check_path(breakpoints: Tensor, values: Tensor) -> None:
    check_floating("breakpoints", breakpoints)
    check_same_kind("values", values, "breakpoints", breakpoints)
    if breakpoints.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            "breakpoints must be float32 or float64: a line is a slope and an intercept, which in half precision are too "
            f"coarse for lines that cancel, got {breakpoints.dtype}"
        )
    if breakpoints.dim() != 1 or len(breakpoints) < 2:
        raise ValueError(f"breakpoints must have shape (n,) with n at least 2, got {tuple(breakpoints.shape)}")
    if values.shape != breakpoints.shape:
        raise ValueError(
            f"values must have the shape of breakpoints, {tuple(breakpoints.shape)}, got {tuple(values.shape)}"
        )
    for name, numbers in (("breakpoints", breakpoints), ("values", values)):
        if not bool(torch.isfinite(numbers).all()):
            raise ValueError(f"{name} must be finite, got {numbers.tolist()}")
        if not math.isfinite(numbers.max().item() - numbers.min().item()):
            raise ValueError(f"{name} must have differences that are finite in float64, got {numbers.tolist()}")
    if not bool((breakpoints.diff() > 0).all()):
        raise ValueError(f"breakpoints must be strictly rising, got {breakpoints.tolist()}")


def _corners(t: list[float], y: list[float], eps: float) -> list[int]:
    """The first, the last, and those between at which the path is not straight to within rounding.

    A piece goes on as long as its chord passes by all points in it, each moved by at most 2 eps of its value or the first.
    """
    corners, flattest, steepest = [0], -math.inf, math.inf
    for j in range(1, len(t)):
        slope = (y[j] - y[corners[-1]]) / (t[j] - t[corners[-1]])
        if not flattest <= slope <= steepest:
            corners.append(j - 1)
            flattest, steepest = -math.inf, math.inf
            slope = (y[j] - y[j - 1]) / (t[j] - t[j - 1])
        first = corners[-1]
        slack = 2 * eps * max(abs(y[j]), abs(y[first])) / (t[j] - t[first])
        flattest, steepest = max(flattest, slope - slack), min(steepest, slope + slack)
    return [*corners, len(t) - 1]


def _bending_line(slope: Tensor, intercept: Tensor, at: Tensor, bends: Tensor, middle: int) -> tuple[Tensor, Tensor]:
    """Slopes and intercepts of the pieces of a convex function with these bends, from left to right.

    Before ``at[middle]`` it is a given line. Where it does not bend, no piece begins.
    """
    parts = []
    for side, sign in ((slice(0, middle), -1), (slice(middle, None), 1)):
        some = bends[side] > 0
        by, where = sign * bends[side][some], at[side][some]
        if sign < 0:  # from the middle to the left
            by, where = by.flip(0), where.flip(0)
        parts.append((slope + by.cumsum(0), intercept - (by * where).cumsum(0)))
    (left, left_at), (right, right_at) = parts
    return torch.cat([left.flip(0), slope[None], right]), torch.cat([left_at.flip(0), intercept[None], right_at])
