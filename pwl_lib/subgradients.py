r"""Subdifferentials as sets, and what torch picks from them.

The module of the chapter *Subgradients*.
At a kink a function has no gradient but a set of subgradients. For a convex piecewise linear function it is the convex hull
of the gradients of the pieces that meet there. In one dimension that is an interval, for the L1 norm a box, for a maximum a
polytope. The three classes below answer the same four questions; the functions build them for the functions of the book.

The hardtanh, and the PReLU with a slope above 1, are not convex. For them the functions return Clarke's subdifferential, which is
the same hull and needs no convexity.

Whole networks are not convex either. The functions at the end give gradients that are right at their kinks, and Clarke's set.
"""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pwl_lib._least_norm import nearest_to_origin
from pwl_lib._limiting import clarke_vertices, limiting_gradient
from pwl_lib._trace import Model
from pwl_lib._validation import check_floating

__all__ = [
    "Box",
    "ConvexHull",
    "Interval",
    "KinkChoice",
    "KinkTable",
    "Subdifferential",
    "clarke_vertices",
    "descent_direction",
    "is_subgradient",
    "least_norm_subgradient",
    "limiting_gradient",
    "measure_kinks",
    "subdifferential_absolute",
    "subdifferential_hardtanh",
    "subdifferential_l1_norm",
    "subdifferential_leaky_relu",
    "subdifferential_max",
    "subdifferential_max_affine",
    "subdifferential_prelu",
    "subdifferential_relu",
]

_MOST_VERTICES = 2**16


class Subdifferential(ABC):
    """A compact convex set of subgradients, each of the shape of the variable."""

    @property
    @abstractmethod
    def vertices(self) -> Tensor:
        """The extreme points, ``(k, *shape)``: no one is a mean of others, and the set is their convex hull."""

    @abstractmethod
    def min_norm(self) -> Tensor:
        """The element of least Euclidean norm: 0, up to rounding, exactly where 0 is a subgradient, at a minimum of a convex function."""

    @abstractmethod
    def contains(self, g: Tensor | float, tol: float | None = None) -> bool:
        """Says whether ``g`` lies within a distance ``tol`` of the set, computed in double precision.

        Without ``tol`` it is 1e-9, or the rounding error of ``g`` in its own dtype where that is more.
        Raises ValueError for a ``g`` of another shape.
        """

    @abstractmethod
    def directional_derivative(self, v: Tensor | float) -> Tensor:
        r"""The support function :math:`\max_{g} \langle g, v \rangle`, the slope in direction ``v``, :eq:`eq-support`."""


class Box(Subdifferential):
    """All ``g`` with ``lower <= g <= upper``, coordinate by coordinate.

    Args:
        lower: any shape, floating point, finite.
        upper: the shape of ``lower``, nowhere below it.

    Raises:
        TypeError: a bound is not floating point.
        ValueError: the shapes differ, a bound is not finite, or ``lower`` exceeds ``upper``.

    Example:
        >>> box = Box(torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 1.0]))
        >>> box.contains(torch.tensor([0.5, 1.0])), box.min_norm().tolist()
        (True, [0.0, 1.0])

    Source: the book, :eq:`eq-subdifferential-l1`.
    """

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        _check_finite_tensor("lower", lower)
        _check_finite_tensor("upper", upper)
        if lower.shape != upper.shape:
            raise ValueError(f"upper must have the shape of lower, {tuple(lower.shape)}, got {tuple(upper.shape)}")
        if bool((lower > upper).any()):
            raise ValueError("lower must not exceed upper")
        self.lower, self.upper = lower, upper

    @property
    def vertices(self) -> Tensor:
        lower, upper = self.lower.flatten(), self.upper.flatten()
        free = (lower < upper).nonzero().flatten().tolist()
        if 2 ** len(free) > _MOST_VERTICES:
            raise ValueError(
                f"the box has 2**{len(free)} vertices, which is too many to list; use contains or min_norm"
            )
        ends = torch.arange(2 ** len(free), device=lower.device)[:, None] >> torch.arange(
            len(free) - 1, -1, -1, device=lower.device
        )
        corners = lower.repeat(2 ** len(free), 1)
        corners[:, free] = torch.where((ends & 1).bool(), upper[free], lower[free])
        return corners.reshape(len(corners), *self.lower.shape)

    def min_norm(self) -> Tensor:
        return torch.zeros_like(self.lower).clamp(self.lower, self.upper)

    def contains(self, g: Tensor | float, tol: float | None = None) -> bool:
        lower, upper = self.lower.double(), self.upper.double()
        tol, g = _slack(g, tol), _like("g", g, lower)
        return bool(torch.linalg.vector_norm(g - g.clamp(lower, upper)) <= tol)

    def directional_derivative(self, v: Tensor | float) -> Tensor:
        v = _like("v", v, self.lower)
        return torch.maximum(self.lower * v, self.upper * v).sum()

    def __repr__(self) -> str:
        return f"Box({self.lower.tolist()}, {self.upper.tolist()})"


class Interval(Box):
    """The closed interval from ``lower`` to ``upper``, the subdifferential of a function of one number.

    Args:
        lower: a number, or a scalar tensor.
        upper: a number, or a scalar tensor, not below ``lower``.

    Raises:
        TypeError: a bound is not floating point.
        ValueError: a bound is not a scalar or not finite, or ``lower`` exceeds ``upper``.

    Example:
        >>> relu_at_zero = Interval(0.0, 1.0)
        >>> relu_at_zero, relu_at_zero.contains(0.3), relu_at_zero.contains(-1.0)
        ([0, 1], True, False)

    Source: the book, :eq:`eq-subdifferential-interval`.
    """

    def __init__(self, lower: Tensor | float, upper: Tensor | float) -> None:
        lower, upper = (b if isinstance(b, Tensor) else torch.tensor(b, dtype=torch.float64) for b in (lower, upper))
        if lower.dim() != 0:
            raise ValueError(f"lower must be a scalar, got shape {tuple(lower.shape)}")
        super().__init__(lower, upper)

    def __repr__(self) -> str:
        return f"[{self.lower.item() + 0.0:g}, {self.upper.item() + 0.0:g}]"  # + 0.0: no -0


class ConvexHull(Subdifferential):
    r"""The convex hull of finitely many gradients: the subdifferential of a maximum of affine functions.

    Args:
        points: ``(k, n)``, floating point, finite, k at least 1.

    Raises:
        TypeError: ``points`` is not floating point.
        ValueError: ``points`` is not ``(k, n)`` with k at least 1, or is not finite.

    Example:
        >>> hull = ConvexHull(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> hull.contains(torch.tensor([0.25, 0.75])), hull.min_norm().tolist()
        (True, [0.5, 0.5])

    Source: the book, :eq:`eq-subdifferential-max`; the least norm by Wolfe (1976).
    """

    def __init__(self, points: Tensor) -> None:
        _check_finite_tensor("points", points)
        if points.dim() != 2 or points.shape[0] == 0:
            raise ValueError(f"points must have shape (k, n) with k at least 1, got {tuple(points.shape)}")
        self.points = points

    @property
    def vertices(self) -> Tensor:
        points = torch.unique(self.points, dim=0)
        edges = (points - points[0]).double()
        unit = edges / edges.abs().amax() if bool(edges.any()) else edges[:1]
        kept = list(range(len(unit)))
        for i in range(len(unit)):  # one at a time: of two points that coincide up to rounding, one stays
            others = [j for j in kept if j != i]
            if others and ConvexHull(unit[others]).contains(unit[i], tol=1e-9):
                kept = others
        return points[kept]

    def min_norm(self) -> Tensor:
        return nearest_to_origin(self.points)

    def contains(self, g: Tensor | float, tol: float | None = None) -> bool:
        points = self.points.double()
        tol, g = _slack(g, tol), _like("g", g, points[0])
        # The distance to a hull is the least norm of the hull moved by -g.
        return bool(torch.linalg.vector_norm(nearest_to_origin(points - g)) <= tol)

    def directional_derivative(self, v: Tensor | float) -> Tensor:
        return (self.points @ _like("v", v, self.points[0])).amax()

    def __repr__(self) -> str:
        return f"ConvexHull({self.points.tolist()})"


def subdifferential_relu(x: Tensor | float) -> Box:
    """The subdifferential of ``relu``: {0} below 0, {1} above, [0, 1] at 0.

    Args:
        x: a number, or a tensor of any shape; then the function is the sum of ``relu`` over its elements.

    Returns:
        An :class:`Interval` for a scalar, a :class:`Box` of the shape of ``x`` otherwise.

    Raises:
        TypeError: ``x`` is an integer tensor.
        ValueError: ``x`` holds NaN or an infinity.

    Example:
        >>> subdifferential_relu(0.0), subdifferential_relu(-2.0)
        ([0, 1], [0, 0])

    Source: the book, :eq:`eq-subdifferential-interval`.
    """
    return _slopes_by_sign(x, 0.0)


def subdifferential_leaky_relu(x: Tensor | float, negative_slope: float = 0.01) -> Box:
    """The subdifferential of ``leaky_relu``: at 0 the interval between ``negative_slope`` and 1.

    Args:
        x: a number, or a tensor of any shape; then the function is the sum over its elements.
        negative_slope: the slope below 0. Above 1 the function is concave at 0, and the set is Clarke's.

    Returns:
        An :class:`Interval` for a scalar, a :class:`Box` otherwise.

    Raises:
        TypeError: ``x`` is an integer tensor.
        ValueError: ``x`` or ``negative_slope`` is NaN or infinite.

    Example:
        >>> subdifferential_leaky_relu(0.0, 0.1)
        [0.1, 1]

    Source: the book, :eq:`eq-subdifferential-interval`.
    """
    _check_finite("negative_slope", torch.tensor(negative_slope))
    return _slopes_by_sign(x, negative_slope)


def subdifferential_prelu(x: Tensor | float, weight: Tensor | float) -> Box:
    """The subdifferential of ``prelu`` in ``x``, at fixed ``weight``.

    Args:
        x: a number, or a tensor ``(N, C, *)``; then the function is the sum over its elements.
        weight: a number, or one for each of the C channels. Where it exceeds 1 the set is Clarke's.

    Returns:
        An :class:`Interval` for a scalar, a :class:`Box` otherwise.

    Raises:
        TypeError: ``x`` is an integer tensor.
        ValueError: ``x`` or ``weight`` is not finite, or ``weight`` has neither one number nor one for each channel.

    Example:
        >>> subdifferential_prelu(0.0, 0.25)
        [0.25, 1]

    Source: the book, :eq:`eq-subdifferential-interval`.
    """
    x, weight = _point(x), torch.as_tensor(weight)
    _check_finite("weight", weight)
    if weight.numel() == 1:
        weight = weight.reshape(())
    else:
        channels = x.shape[1] if x.dim() > 1 else 1
        if weight.shape != (channels,):
            raise ValueError(f"weight must have 1 or {channels} numbers, got shape {tuple(weight.shape)}")
        weight = weight.reshape(-1, *[1] * (x.dim() - 2))
    return _slopes_by_sign(x, weight)


def subdifferential_absolute(x: Tensor | float) -> Box:
    """The subdifferential of the absolute value: the sign of ``x``, and [-1, 1] at 0.

    Args:
        x: a number, or a tensor of any shape; then the function is the sum over its elements.

    Returns:
        An :class:`Interval` for a scalar, a :class:`Box` otherwise.

    Raises:
        TypeError, ValueError: as :func:`subdifferential_relu`.

    Example:
        >>> subdifferential_absolute(0.0)
        [-1, 1]

    Source: the book, :eq:`eq-subdifferential-interval`.
    """
    return _slopes_by_sign(x, -1.0)


def subdifferential_hardtanh(x: Tensor | float, min_val: float = -1.0, max_val: float = 1.0) -> Box:
    """Clarke's subdifferential of ``hardtanh``, which is not convex: [0, 1] at both ends.

    Args:
        x: a number, or a tensor of any shape; then the function is the sum over its elements.
        min_val: the lower kink.
        max_val: the upper kink, above ``min_val``.

    Returns:
        An :class:`Interval` for a scalar, a :class:`Box` otherwise.

    Raises:
        TypeError: ``x`` is an integer tensor.
        ValueError: ``x`` is not finite, or ``min_val`` is not below ``max_val``.

    Example:
        >>> subdifferential_hardtanh(1.0), subdifferential_hardtanh(0.0)
        ([0, 1], [1, 1])

    Source: the book, :eq:`eq-subdifferential-interval`; Clarke (1983).
    """
    if not min_val < max_val:
        raise ValueError(f"min_val must be below max_val, got {min_val} and {max_val}")
    x = _point(x)
    inside = ((x > min_val) & (x < max_val)).to(x.dtype)
    return _box(inside, ((x >= min_val) & (x <= max_val)).to(x.dtype))


def subdifferential_l1_norm(x: Tensor) -> Box:
    """The subdifferential of the L1 norm: a box, free in the coordinates that are 0.

    Args:
        x: any shape, floating point, finite.

    Returns:
        A :class:`Box` of the shape of ``x``.

    Raises:
        TypeError, ValueError: as :func:`subdifferential_relu`.

    Example:
        >>> subdifferential_l1_norm(torch.tensor([3.0, 0.0]))
        Box([1.0, -1.0], [1.0, 1.0])

    Source: the book, :eq:`eq-subdifferential-l1`.
    """
    return _slopes_by_sign(x, -1.0)


def subdifferential_max(x: Tensor, tol: float = 0.0) -> ConvexHull:
    r"""The subdifferential of :math:`\max_i x_i`: the hull of the unit vectors of the entries that attain it.

    Args:
        x: ``(n,)`` floating point, finite, n at least 1.
        tol: entries within ``tol`` of the maximum attain it.

    Returns:
        A :class:`ConvexHull` in n dimensions.

    Raises:
        TypeError: ``x`` is an integer tensor.
        ValueError: ``x`` is not a vector, is empty or not finite, or ``tol`` is negative.

    Example:
        >>> subdifferential_max(torch.tensor([2.0, 1.0, 2.0])).vertices.tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]

    Source: the book, :eq:`eq-subdifferential-max`.
    """
    x = _point(x)
    if x.dim() != 1 or x.numel() == 0:
        raise ValueError(f"x must have shape (n,) with n at least 1, got {tuple(x.shape)}")
    return ConvexHull(torch.eye(x.numel(), dtype=x.dtype, device=x.device)[_active(x, tol)])


def subdifferential_max_affine(
    x: Tensor | float, slopes: Tensor, intercepts: Tensor, tol: float = 0.0
) -> Interval | ConvexHull:
    r"""The subdifferential of :math:`\max_i (a_i \cdot x + b_i)`: the hull of the slopes of the active pieces.

    Args:
        x: a number, or ``(n,)``.
        slopes: ``(k,)`` for a number ``x``, ``(k, n)`` for a vector.
        intercepts: ``(k,)``.
        tol: pieces within ``tol`` of the maximum are active.

    Returns:
        An :class:`Interval` for a number ``x``, a :class:`ConvexHull` for a vector.

    Raises:
        TypeError: ``x``, ``slopes`` or ``intercepts`` is an integer tensor.
        ValueError: the shapes do not fit, something is not finite, or ``tol`` is negative.

    Example:
        >>> slopes, intercepts = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, -1.0])
        >>> subdifferential_max_affine(1.0, slopes, intercepts)
        [0, 2]

    Source: the book, :eq:`eq-subdifferential-max`.
    """
    x = _point(x)
    _check_finite_tensor("slopes", slopes)
    _check_finite_tensor("intercepts", intercepts)
    if (
        x.dim() > 1
        or slopes.shape != (intercepts.numel(), *x.shape)
        or intercepts.dim() != 1
        or intercepts.numel() == 0
    ):
        raise ValueError(
            f"slopes must have shape {('k', *x.shape)} and intercepts ('k',) with k at least 1, "
            f"for x of shape {tuple(x.shape)}; got {tuple(slopes.shape)} and {tuple(intercepts.shape)}"
        )
    # In double precision: a product rounded to float16 would make ties that are none.
    value = torch.tensordot(slopes.double(), x.double(), dims=x.dim()) + intercepts.double()
    active = slopes[_active(value, tol)]
    return ConvexHull(active) if x.dim() else Interval(active.amin(), active.amax())


def _hull(model: Model, x: Tensor, output: int | tuple[int, ...] | None) -> ConvexHull:
    gradients = clarke_vertices(model, x, output)
    return ConvexHull(gradients.reshape(len(gradients), x.numel()))


def is_subgradient(
    model: Model, x: Tensor, g: Tensor, tol: float | None = None, output: int | tuple[int, ...] | None = None
) -> bool:
    r"""Says whether ``g`` is an element of Clarke's subdifferential of ``model`` at one input.

    Args:
        model: a piecewise linear module or function; small, or with few ties at ``x``.
        x: ``input_shape``, one input without a batch dimension, floating point, finite.
        g: of the shape of ``x``, finite.
        tol: how far from the set ``g`` may lie. Without it, 1e-9, or the rounding error of ``g`` where that is more.
        output: as for :func:`limiting_gradient`.

    Returns:
        Whether ``g`` lies in the convex hull of the gradients of the pieces that touch ``x``, :eq:`eq-clarke`.

    Raises:
        TypeError, ValueError: as :func:`clarke_vertices`.
        ValueError: ``g`` has another shape than ``x`` or is not finite; ``tol`` is negative.

    Example:
        >>> model, zero = lambda x: torch.relu(x) - torch.relu(-x), torch.zeros(())
        >>> is_subgradient(model, zero, torch.tensor(1.0)), is_subgradient(model, zero, torch.tensor(0.0))
        (True, False)

    Source: the book, :eq:`eq-clarke`.
    """
    check_floating("x", x)
    g = _like("g", g, x)
    return _hull(model, x, output).contains(g.flatten(), tol)


def least_norm_subgradient(model: Model, x: Tensor, output: int | tuple[int, ...] | None = None) -> Tensor:
    r"""The element of least Euclidean norm of Clarke's subdifferential of ``model`` at one input.

    It is 0, up to rounding, where 0 is such a subgradient: at each local minimum, and at maxima and saddles, too.

    Args:
        model: a piecewise linear module or function; small, or with few ties at ``x``.
        x: ``input_shape``, one input without a batch dimension, floating point, finite.
        output: as for :func:`limiting_gradient`.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Raises:
        TypeError, ValueError: as :func:`clarke_vertices`.

    Example:
        >>> model = lambda x: x[:, 0].abs() + 2 * x[:, 1].abs()
        >>> least_norm_subgradient(model, torch.tensor([1.0, 0.0]))
        tensor([1., 0.])

    Source: the book, :prf:ref:`prop-clarke-descent`; the least norm by Wolfe (1976).
    """
    return _hull(model, x, output).min_norm().reshape(x.shape)


def descent_direction(model: Model, x: Tensor, output: int | tuple[int, ...] | None = None) -> Tensor:
    r"""A direction of length 1 in which ``model`` falls; 0 where Clarke's subdifferential holds 0.

    With :math:`g` the least-norm element of that set it is :math:`d = -g / \lVert g \rVert`, and the slope in this direction
    is :math:`f'(x; d) \le -\lVert g \rVert`. Where the function is convex near ``x``, no direction is steeper. Where it is not,
    one may be, and a point at which this function returns 0 need not be a minimum.

    Args:
        model: a piecewise linear module or function; small, or with few ties at ``x``.
        x: ``input_shape``, one input without a batch dimension, floating point, finite.
        output: as for :func:`limiting_gradient`.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Raises:
        TypeError, ValueError: as :func:`clarke_vertices`.

    Example:
        >>> model = lambda x: x[:, 0].abs() + 2 * x[:, 1].abs()
        >>> descent_direction(model, torch.tensor([1.0, 0.0])).tolist()
        [-1.0, 0.0]

    Source: the book, :prf:ref:`prop-clarke-descent`.
    """
    hull = _hull(model, x, output)
    g = hull.min_norm()
    length, size = torch.linalg.vector_norm(g), torch.linalg.vector_norm(hull.points, dim=1).amax()
    if bool(length <= torch.finfo(g.dtype).eps ** 0.5 * size):
        return torch.zeros_like(x)
    return (0.0 - g / length).reshape(x.shape)  # 0.0 -: no -0


class KinkChoice(NamedTuple):
    """What torch returns for one operation at one kink."""

    operation: str
    at: str
    """The input, as written."""
    picked: Tensor
    """The gradient that autograd returned there."""
    subdifferential: Subdifferential
    valid: bool
    """Whether ``picked`` lies in ``subdifferential``."""


class KinkTable(tuple[KinkChoice, ...]):
    """The rows that :func:`measure_kinks` measured; shown as a table."""

    def _cells(self) -> list[list[str]]:
        head = ["operation", "at", "torch picks", "valid"]
        return [head] + [[row.operation, row.at, _show(row.picked), "yes" if row.valid else "no"] for row in self]

    def __repr__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        )

    def _repr_html_(self) -> str:
        head, *rows = self._cells()
        lines = ["<tr>" + "".join(f'<th scope="col">{cell}</th>' for cell in head) + "</tr>"]
        for name, *cells in rows:
            code = f"<td><code>{html.escape(name)}</code></td>"
            lines.append("<tr>" + code + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        return '<table class="table">\n' + "\n".join(lines) + "\n</table>"


def measure_kinks(dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> KinkTable:
    """Runs torch's operations at their kinks, and says which element of the subdifferential each returns.

    Nothing here is looked up: every row is one backward pass. Most rows are valid subgradients. The last two are compositions
    at which the chain rule, applied to one choice for each operation, gives something that is not one.

    Args:
        dtype: a floating point type.
        device: where to measure.

    Returns:
        A tuple of :class:`KinkChoice`, which shows itself as a table.

    Raises:
        TypeError: ``dtype`` is not floating point.

    Example:
        >>> table = {row.operation: row for row in measure_kinks()}
        >>> table["relu(x)"].picked.item(), table["clamp(x, min=0)"].picked.item()
        (0.0, 1.0)

    Source: the book, :ref:`sec-torch-choices`.
    """
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating point, got {dtype}")
    weight = torch.tensor([0.25], dtype=dtype, device=device)
    tie = [1.0, 1.0, 1.0]
    top = subdifferential_max(torch.tensor(tie, dtype=torch.float64))
    one_slope = Interval(torch.tensor(1.0), torch.tensor(1.0))
    operations: list[tuple[str, Callable[[Tensor], Tensor], float | list[float], Subdifferential]] = [
        ("relu(x)", torch.relu, 0.0, subdifferential_relu(0.0)),
        ("clamp(x, min=0)", lambda x: x.clamp(min=0), 0.0, subdifferential_relu(0.0)),
        ("where(x > 0, x, 0)", lambda x: torch.where(x > 0, x, 0), 0.0, subdifferential_relu(0.0)),
        ("threshold(x, 0, 0)", lambda x: F.threshold(x, 0, 0), 0.0, subdifferential_relu(0.0)),
        ("maximum(x, 0)", lambda x: torch.maximum(x, torch.zeros_like(x)), 0.0, subdifferential_relu(0.0)),
        ("leaky_relu(x, 0.01)", lambda x: F.leaky_relu(x, 0.01), 0.0, subdifferential_leaky_relu(0.0, 0.01)),
        ("prelu(x, 0.25)", lambda x: F.prelu(x, weight), 0.0, subdifferential_prelu(0.0, 0.25)),
        ("abs(x)", torch.abs, 0.0, subdifferential_absolute(0.0)),
        ("l1_loss(x, 0)", lambda x: F.l1_loss(x, torch.zeros_like(x)), 0.0, subdifferential_absolute(0.0)),
        ("vector_norm(x, 1)", lambda x: torch.linalg.vector_norm(x, 1), 0.0, subdifferential_absolute(0.0)),
        ("hardtanh(x)", F.hardtanh, -1.0, subdifferential_hardtanh(-1.0)),
        ("hardtanh(x)", F.hardtanh, 1.0, subdifferential_hardtanh(1.0)),
        ("clamp(x, -1, 1)", lambda x: x.clamp(-1, 1), 1.0, subdifferential_hardtanh(1.0)),
        ("relu6(x)", F.relu6, 0.0, subdifferential_hardtanh(0.0, 0.0, 6.0)),
        ("relu6(x)", F.relu6, 6.0, subdifferential_hardtanh(6.0, 0.0, 6.0)),
        (
            "maximum(x[0], x[1])",
            lambda x: torch.maximum(x[0], x[1]),
            [1.0, 1.0],
            subdifferential_max(torch.ones(2, dtype=torch.float64)),
        ),
        ("max(x, dim=0)", lambda x: x.max(dim=0).values, tie, top),
        ("max(x)", torch.max, tie, top),
        ("amax(x)", torch.amax, tie, top),
        ("max_pool1d(x, 3)", lambda x: F.max_pool1d(x[None], 3).sum(), tie, top),
        ("vector_norm(x, inf)", lambda x: torch.linalg.vector_norm(x, torch.inf), tie, top),
        ("maximum(x[0], maximum(x[1], x[2]))", lambda x: torch.maximum(x[0], torch.maximum(x[1], x[2])), tie, top),
        ("sqrt(x * x)", lambda x: (x * x).sqrt(), 0.0, subdifferential_absolute(0.0)),
        ("relu(x) - relu(-x)", lambda x: torch.relu(x) - torch.relu(-x), 0.0, one_slope),
    ]
    return KinkTable(
        _measure(name, function, torch.tensor(at, dtype=dtype, device=device), expected)
        for name, function, at, expected in operations
    )


def _measure(name: str, function: Callable[[Tensor], Tensor], at: Tensor, expected: Subdifferential) -> KinkChoice:
    x = at.clone().requires_grad_()
    (picked,) = torch.autograd.grad(function(x), x)
    finite = bool(torch.isfinite(picked).all())
    valid = finite and expected.contains(picked.cpu())
    return KinkChoice(name, _show(at), picked, expected, valid)


def _show(value: Tensor) -> str:
    numbers = [f"{number:.3g}" for number in value.reshape(-1).tolist()]
    return numbers[0] if value.dim() == 0 else f"({', '.join(numbers)})"


def _slopes_by_sign(x: Tensor | float, below: Tensor | float) -> Box:
    """The hull of the slopes on both sides: ``below`` left of 0, 1 right of it."""
    x = _point(x)
    below = torch.as_tensor(below, dtype=x.dtype, device=x.device).expand(x.shape)
    left, right = torch.where(x > 0, 1, below), torch.where(x < 0, below, 1)
    return _box(torch.minimum(left, right), torch.maximum(left, right))


def _box(lower: Tensor, upper: Tensor) -> Box:
    return Box(lower, upper) if lower.dim() else Interval(lower, upper)


def _check_tol(tol: float) -> None:
    if not tol >= 0:
        raise ValueError(f"tol must not be negative, got {tol}")


def _active(value: Tensor, tol: float) -> Tensor:
    _check_tol(tol)
    return value >= value.amax() - tol


def _slack(g: Tensor | float, tol: float | None) -> float:
    if tol is not None:
        _check_tol(tol)
        return tol
    if not isinstance(g, Tensor) or not g.is_floating_point():
        return 1e-9
    return max(1e-9, torch.finfo(g.dtype).eps * float(g.double().norm()))


def _point(x: Tensor | float) -> Tensor:
    if not isinstance(x, Tensor):
        x = torch.tensor(x, dtype=torch.float64)
    _check_finite_tensor("x", x)
    return x.detach()


def _check_finite_tensor(name: str, value: Tensor) -> None:
    check_floating(name, value)
    _check_finite(name, value)


def _check_finite(name: str, value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} must be finite, got NaN or an infinity")


def _like(name: str, value: Tensor | float, reference: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=reference.dtype, device=reference.device)
    if value.shape != reference.shape:
        raise ValueError(f"{name} must have shape {tuple(reference.shape)}, got {tuple(value.shape)}")
    _check_finite(name, value)
    return value
