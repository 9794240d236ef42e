r"""Maxout: the largest of k affine maps, the convex functions it makes, and the differences of two.

The module of the chapter *Maxout*. First the matrices: :math:`S`, which selects the winning piece of each unit, and the
Jacobians that follow from it; then the functions, which apply the transpose of :math:`S` without forming it; then the
modules; then what a unit can be: a rectifier, the best convex interpolant, one half of any piecewise linear function.

The pieces of a unit are neighbours: rows :math:`ik, \dots, ik + k - 1` of the weight, counted from 0, belong to unit i.
For the backward pass a layer keeps the winner of each unit, one byte an output, beside what the affine map keeps.
"""

from __future__ import annotations

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
from pwl_lib._validation import check_count, check_finite_number, check_floating, check_same_kind
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
        TypeError, ValueError: a number is not an int, or out of its range; ``groups`` does not divide the channels.

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
        parameters are copies. On finite inputs the values of an activation are equal; after a linear layer
        :math:`\alpha w` is rounded once more.

    At the kink:
        the piece with slope :math:`\alpha` is the first, so that the gradient there is that of ReLU, leaky ReLU and PReLU. The
        absolute value has slope 0 there, and its unit -1.

    Raises:
        TypeError: another module, or one whose ``forward`` is not that of the class it derives from.
        ValueError: :math:`\alpha > 1`, where the function is the smaller of the two lines, or a module that is known not
            to be convex.

    Example:
        >>> unit = as_maxout(nn.LeakyReLU(0.25))
        >>> unit(torch.tensor([[-2.0], [3.0]])).flatten().tolist(), unit.weight.tolist()
        ([-0.5, 3.0], [[0.25], [1.0]])

    Source: the book, :eq:`eq-as-maxout`; Goodfellow et al. (2013).
    """
    if isinstance(module, nn.Sequential) and len(module) == 2 and _is_one_of(module[0], _LINEAR):
        first, activation = module
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
    """Whether a module is one of the known ones, or derives from one and leaves its ``forward`` alone."""
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
            f"their own forward, got {name}"
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

    The function is sampled, the samples are solved for equal errors exactly, and sampled again near the solution, until
    nothing changes.

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
            finite, or is seen not to be convex.

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
    values, at = samples(np.concatenate([points, [a, *breakpoints, b]])), np.array([a, *breakpoints, b])
    intercepts = values[:pieces] - slopes * points
    highest = (slopes[:, None] * at + intercepts[:, None]).max(0)
    error = max(0.0, float((values[pieces:] - highest).max()))
    as_tensor = torch.from_numpy
    unit = _unit(as_tensor(slopes), as_tensor(intercepts))
    return ConvexInterpolant(unit, as_tensor(points), as_tensor(breakpoints), error)


class _Samples:
    """A convex function at points of an interval, in rising order; more points are added as they are needed."""

    def __init__(self, f: Callable[[Tensor], Tensor], a: float, b: float) -> None:
        self.f, self.a, self.b = f, a, b
        self.x = np.linspace(a, b, 1025)
        self.y = self(self.x)
        self.noise = 16 * np.finfo(float).eps * max(float(np.abs(self.y).max()), np.finfo(float).tiny)
        rises = np.diff(self.y[::8]) / np.diff(self.x[::8])
        falls = np.flatnonzero(np.diff(rises) * (self.x[8] - self.x[0]) < -4 * self.noise)
        if len(falls):
            left, middle, right = (float(self.x[8 * (falls[0] + step)]) for step in range(3))
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

    def add(self, x: np.ndarray) -> None:
        more = np.unique(np.clip(x, self.a, self.b))
        more = more[~np.isin(more, self.x)]
        order = np.argsort(every := np.concatenate([self.x, more]))
        self.x, self.y = every[order], np.concatenate([self.y, self(more)])[order]


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


def _equal_errors(samples: _Samples, pieces: int) -> Lines:
    """The tangents whose errors at both ends and at all breakpoints are equal."""
    error = math.nan
    offsets = (samples.b - samples.a) / 1024 * 4.0 ** -np.arange(10)
    offsets = np.concatenate([-offsets, [0], offsets])
    samples.add((np.array([[samples.a], [samples.b]]) + offsets).ravel())
    for _ in range(8):
        before, error = error, _solve(samples, pieces, error)
        slopes, points, breakpoints, _ = _march(samples, pieces, error)
        if abs(error - before) <= 1e-13 * error:
            break
        near = np.concatenate([points, breakpoints, _touch(samples, slopes)])
        samples.add((near[:, None] + offsets).ravel())
    return slopes, _touch(samples, slopes), breakpoints


def _touch(samples: _Samples, slopes: np.ndarray) -> np.ndarray:
    """Where the lines with these slopes touch from below: 16 parts of what is left at a time."""
    lowest = (samples.y - slopes[:, None] * samples.x).argmin(1)
    last = len(samples.x) - 1
    left, right = samples.x[np.maximum(lowest - 1, 0)], samples.x[np.minimum(lowest + 1, last)]
    rows = np.arange(len(slopes))
    for _ in range(12):
        x = np.linspace(left, right, 33, axis=1)
        lowest = (samples(x.ravel()).reshape(x.shape) - slopes[:, None] * x).argmin(1)
        left, right = x[rows, np.maximum(lowest - 1, 0)], x[rows, np.minimum(lowest + 1, 32)]
    return x[rows, lowest]


def _solve(samples: _Samples, pieces: int, guess: float) -> float:
    """The error for which the last of the pieces has the same: the only root of a falling function."""
    low, high = 0.0, _march(samples, 1, 0.0)[3]
    if pieces == 1 or high <= 0:
        return high
    excess_low, excess_high = high, -high  # only their signs and sizes steer the search
    error = guess if 0 < guess < high else high / pieces**2
    for _ in range(100):
        excess = _march(samples, pieces, error)[3] - error
        if excess > 0:
            low, excess_low, excess_high = error, excess, excess_high / 2
        else:
            high, excess_high, excess_low = error, excess, excess_low / 2
        if excess == 0 or high - low <= 4 * np.finfo(float).eps * high:
            break
        error = low + (high - low) * excess_low / (excess_low - excess_high)
        if not low < error < high:
            error = (low + high) / 2
    return error


def _march(samples: _Samples, pieces: int, error: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """From the left end, each line as steep as it can be: slopes, points, breakpoints, and the error of the last piece.

    A line begins below the graph by the error. It touches where it is steepest, and ends where it is below by as much again.
    """
    xs, ys = samples.x, samples.y
    left, value = xs[0], ys[0]
    slopes, points, breakpoints = np.zeros(pieces), np.full(pieces, xs[-1]), np.full(pieces - 1, xs[-1])
    for piece in range(pieces - 1):
        start = int(np.searchsorted(xs, left, "right"))
        if start == len(xs):
            slopes[piece:] = slopes[piece - 1]
            return slopes, points, breakpoints, 0.0
        x, y = xs[start:], ys[start:]
        steepness = (y - (value - error)) / (x - left)
        touch = int(steepness.argmin())
        slopes[piece], points[piece] = slope, _ = steepness[touch], x[touch]
        gap = y[touch:] - (value - error) - slope * (x[touch:] - left)
        end = touch + int(np.searchsorted(gap, error, "right"))
        if end == len(x):
            slopes[piece + 1 :] = slope
            return slopes, points, breakpoints, 0.0
        share = (error - gap[end - touch - 1]) / (gap[end - touch] - gap[end - touch - 1]) if end > touch else 0.0
        before = (left, value) if end == 0 else (x[end - 1], y[end - 1])
        left, value = before[0] + share * (x[end] - before[0]), before[1] + share * (y[end] - before[1])
        breakpoints[piece] = left
    slopes[-1] = slope = (ys[-1] - value) / (xs[-1] - left)
    inside = slice(int(np.searchsorted(xs, left, "right")), None)
    below = value + slope * (xs[inside] - left) - ys[inside]
    points[-1] = xs[inside][below.argmax()]
    return slopes, points, breakpoints, max(0.0, float(below.max()))


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

    Example:
        >>> ramp = difference_of_maxouts(torch.tensor([-1.0, 0.0, 1.0, 2.0]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
        >>> ramp(torch.tensor([[-3.0], [0.5], [7.0]])).flatten().tolist()
        [0.0, 0.5, 1.0]

    Source: the book, :eq:`eq-difference-of-maxouts`; Goodfellow et al. (2013).
    """

    def __init__(self, positive: nn.Module, negative: nn.Module) -> None:
        super().__init__()
        self.positive, self.negative = positive, negative

    def forward(self, input: Tensor) -> Tensor:
        return self.positive(input) - self.negative(input)


def difference_of_maxouts(breakpoints: Tensor, values: Tensor) -> DifferenceOfMaxouts:
    r"""Any continuous piecewise linear function of one number, as one maxout unit minus another.

    .. math:: f = \max_i (a_i x + b_i) - \max_j (c_j x + d_j)

    which is :eq:`eq-difference-of-maxouts`: the first unit bends where f bends upwards, the second where it bends
    downwards, by as much.

    Args:
        breakpoints: ``(n,)`` with n at least 2, floating point, strictly rising. Before the first and behind the last, f
            goes on with its first and its last slope.
        values: ``(n,)``, those of f at the breakpoints, the dtype of ``breakpoints``.

    Returns:
        A :class:`DifferenceOfMaxouts` of shapes ``(*, 1)`` to ``(*, 1)``, in the dtype of ``breakpoints``. ``positive`` has a piece more
        than f has upward bends, ``negative`` one more than it has downward bends.

    Raises:
        TypeError: a tensor is not floating point, or the dtypes differ.
        ValueError: another shape, fewer than two breakpoints, breakpoints that do not rise, or a number that is not finite.

    Example:
        >>> hat = difference_of_maxouts(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0]))
        >>> hat(torch.tensor([[-0.5], [0.0], [3.0]])).flatten().tolist()
        [0.5, 1.0, -2.0]

    Source: the book, :eq:`eq-difference-of-maxouts`; Goodfellow et al. (2013).
    """
    check_floating("breakpoints", breakpoints)
    check_same_kind("values", values, "breakpoints", breakpoints)
    if breakpoints.dim() != 1 or len(breakpoints) < 2:
        raise ValueError(f"breakpoints must have shape (n,) with n at least 2, got {tuple(breakpoints.shape)}")
    if values.shape != breakpoints.shape:
        raise ValueError(
            f"values must have the shape of breakpoints, {tuple(breakpoints.shape)}, got {tuple(values.shape)}"
        )
    for name, numbers in (("breakpoints", breakpoints), ("values", values)):
        if not bool(torch.isfinite(numbers).all()):
            raise ValueError(f"{name} must be finite, got {numbers.tolist()}")
    t, y = breakpoints.detach().double(), values.detach().double()
    if not bool((t.diff() > 0).all()):
        raise ValueError(f"breakpoints must be strictly rising, got {breakpoints.tolist()}")
    slopes = y.diff() / t.diff()
    bends = slopes.diff()  # at t[1:-1]
    zero = slopes.new_zeros(1)
    positive = _bending_line(slopes[:1], y[:1] - slopes[:1] * t[:1], t[1:-1], bends.clamp(min=0))
    negative = _bending_line(zero, zero, t[1:-1], (-bends).clamp(min=0))
    return DifferenceOfMaxouts(*(_unit(*(part.to(values) for part in lines)) for lines in (positive, negative)))


def _bending_line(slope: Tensor, intercept: Tensor, at: Tensor, bends: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes and intercepts of the pieces of a line that bends upwards; where it does not bend, no piece begins."""
    at, bends = at[bends > 0], bends[bends > 0]
    return torch.cat([slope, slope + bends.cumsum(0)]), torch.cat([intercept, intercept - (bends * at).cumsum(0)])
