"""The polyhedron of one input: its halfspaces without the redundant ones, whether it is bounded, and its largest ball."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pwl_lib._trace import Model, untouched
from pwl_lib._validation import check_finite_number, check_floating
from pwl_lib._walk import DoubleTrace, Snapshot
from pwl_lib.piecewise_linear import AffinePiece, _elsewhere, _flat, _jacobian, _refuse_offenders, _verify

__all__ = ["RegionPolyhedron", "polyhedron"]

Floats = NDArray[np.float64]

_TOL = 1e-9


class RegionPolyhedron:
    r"""The region of one input as halfspaces :math:`H z \le c`, none of which says what the others say; made by :func:`polyhedron`."""

    def __init__(self, H: Tensor, c: Tensor, rows: Tensor, x: Tensor, ball: tuple[Tensor, float]) -> None:
        self.H = H
        """``(k, n)``: one row for each facet."""
        self.c = c
        """``(k,)``."""
        self.rows = rows
        """``(k,) int64``: the number of each row among those of :func:`pwl_lib.piecewise_linear.polyhedron`, the box after them."""
        self.x = x
        """The input whose region it is."""
        self._ball = ball

    def __len__(self) -> int:
        return len(self.c)

    @property
    def has_interior(self) -> bool:
        """Whether a ball fits in. The region of an input on a kink may be a point or a part of a hyperplane."""
        return self._ball[1] > 0

    def contains(self, z: Tensor, tol: float = 0.0) -> Tensor:
        """Says whether points lie in the region: ``(*input_shape)`` or ``(n,)`` gives ``()``, with P of them first ``(P,) bool``."""
        check_floating("z", z)
        shape = tuple(self.x.shape)
        single = z.shape in (self.x.shape, (self.x.numel(),))
        if not single and z.shape[1:] not in (self.x.shape, (self.x.numel(),)):
            raise ValueError(f"z must be one input of shape {shape} or a batch of them, got shape {tuple(z.shape)}")
        points = z.detach().cpu().double().reshape(1 if single else len(z), self.x.numel())
        inside = (points @ self.H.T <= self.c + tol).all(1)
        return inside[0] if single else inside

    @cached_property
    def _bounded(self) -> bool:
        H = _unit_rows(self.H.numpy())
        if len(H) <= H.shape[1] or np.linalg.matrix_rank(H) < H.shape[1]:
            return False
        return _simplex(np.zeros(len(H)), H.T, -H.sum(0))[0] is not None

    def is_bounded(self) -> bool:
        """Whether the region has an end in every direction: the rows span the space, and 0 is a positive combination of them all."""
        return self._bounded

    def chebyshev_centre(self) -> tuple[Tensor, float]:
        r"""The centre of the largest ball in the region and its radius, by a linear program, :eq:`eq-chebyshev`.

        .. math:: \max r \quad \text{such that} \quad h_k z + \lVert h_k \rVert r \le c_k \text{ for all } k

        Where balls of any size fit the radius is infinite, and the centre is some point inside. There may be several centres.
        """
        return self._ball

    def __repr__(self) -> str:
        n = self.H.shape[1]
        facets = f"{len(self)} facet{'s' * (len(self) != 1)}" if self.has_interior else f"{len(self)} rows, no interior"
        return f"RegionPolyhedron({facets} in {n} dimensions, {'' if self.is_bounded() else 'un'}bounded)"


def polyhedron(model: Model, x: Tensor, box: tuple[float, float] | None = None) -> RegionPolyhedron:
    r"""The region of one input, described by its facets alone.

    :func:`pwl_lib.piecewise_linear.polyhedron` has a row for each comparison of the model, and most of them say nothing new. With
    a point of the interior moved to 0, row :math:`k` is a facet if and only if :math:`h_k / c_k` is a vertex of the hull of these
    points and 0, :eq:`eq-polar`. Rows of which a point is known that they alone cut off are kept at once; of the others, a linear
    program over the rows kept so far says whether they are needed (Clarkson's algorithm).

    Args:
        model: a piecewise linear module or function, see :func:`~pwl_lib.piecewise_linear.is_piecewise_linear`. It is run in
            double precision whatever its dtype.
        x: ``(*input_shape)``, one input without a batch dimension, floating point, finite.
        box: ``(low, high)``: the region is cut to the inputs with all numbers between these two. For n inputs that adds 2 n rows
            after the others, first the upper bounds, then the lower ones.

    Returns:
        A :class:`RegionPolyhedron` with ``H``, ``c`` and ``rows`` in float64 on the CPU, ``contains``, ``is_bounded`` and
        ``chebyshev_centre``.

    At ties:
        The region is the one of the branch that a tie takes, see :func:`~pwl_lib.piecewise_linear.activation_pattern`; an ``x`` on
        one of its facets is as good as any other. Where the ties leave it no interior, no row is redundant in the sense above: all
        rows but zeros and repetitions are kept, and ``has_interior`` is false.
        A row counts as redundant if leaving it out moves the region by no more than 1e-9 of its own size.

    Raises:
        TypeError: ``x`` is not a floating point tensor, ``box`` is no pair of numbers, the model is not callable or does not return
            one tensor.
        ValueError: the model is not piecewise linear (each module that is not is named), ``x`` is not finite or lies outside
            of ``box``.

    Example:
        >>> region = polyhedron(lambda x: torch.relu(torch.stack([x[:, 0], x[:, 1], x.sum(1) + 1], 1)), torch.tensor([1.0, 2.0]))
        >>> region
        RegionPolyhedron(2 facets in 2 dimensions, unbounded)
        >>> region.rows.tolist(), region.contains(torch.tensor([0.0, -1.0])).item()
        ([0, 1], False)

    Source: the book, :eq:`eq-polar` and :eq:`eq-chebyshev`; Clarkson (1994).
    """
    check_floating("x", x)
    if x.numel() == 0:
        raise ValueError(f"x must be one input with at least one number, got shape {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x must be finite, got NaN or an infinity")
    x = x.detach().double()
    H, c, slack = _comparisons(model, x)
    if box is not None:
        low, high = _check_box(box, x)
        eye, flat = np.eye(x.numel()), x.cpu().numpy().reshape(-1)
        H = np.concatenate([H, eye, -eye])
        c = np.concatenate([c, np.full(len(eye), high), np.full(len(eye), -low)])
        slack = np.concatenate([slack, high - flat, flat - low])
    kept, ball = _facets(H, slack)
    centre = (x.cpu().reshape(-1) + torch.from_numpy(ball[0])).reshape(x.shape)
    rows = torch.from_numpy(kept)
    return RegionPolyhedron(torch.from_numpy(H)[rows], torch.from_numpy(c)[rows], rows, x.cpu(), (centre, ball[1]))


def _comparisons(model: Model, x: Tensor) -> tuple[Floats, Floats, Floats]:
    """All rows of the polyhedron of ``x``, and how far ``x`` is from giving them up."""
    snapshot = Snapshot(model)
    with untouched(snapshot.model, x):
        trace = DoubleTrace(snapshot)
        leaf = x[None].clone().requires_grad_()
        with torch.enable_grad():
            trace.run(leaf)
            _refuse_offenders(trace)
            margin = trace.margins(leaf)
        slope = _jacobian(margin, leaf, trace.eps)
        with torch.no_grad():
            for_zero = torch.zeros_like(x)[None]
            trace.replay(for_zero)
            at_zero = trace.margins(for_zero)
            elsewhere = _elsewhere(x[None])
            trace.replay(elsewhere)
            _verify("switch", AffinePiece(slope, at_zero), elsewhere, trace.margins(elsewhere), trace.eps)
    rows = (-slope[0]).cpu().numpy() + 0.0, at_zero[0].cpu().numpy(), _flat(margin.detach())[0].cpu().numpy()
    return rows[0], rows[1], np.maximum(rows[2], 0.0)


def _check_box(box: tuple[float, float], x: Tensor) -> tuple[float, float]:
    if not isinstance(box, (tuple, list)) or len(box) != 2:
        raise TypeError(f"box must be a pair (low, high), got {box!r}")
    low, high = box
    check_finite_number("box[0]", low)
    check_finite_number("box[1]", high)
    if not low < high:
        raise ValueError(f"box must have its low end below its high end, got {box!r}")
    if not bool(((x >= low) & (x <= high)).all()):
        raise ValueError(f"x must lie in box, {box!r}, got numbers from {float(x.min())} to {float(x.max())}")
    return float(low), float(high)


def _unit_rows(H: Floats) -> Floats:
    return H / np.maximum(np.linalg.norm(H, axis=1, keepdims=True), 1e-300)


def _facets(H: Floats, slack: Floats) -> tuple[NDArray[np.int64], tuple[Floats, float]]:
    """The rows that are facets of ``H d <= slack``, and the centre and the radius of a largest ball."""
    norm = np.linalg.norm(H, axis=1)
    size = norm.max(initial=0)
    proper = np.flatnonzero(norm > 1e-13 * size)  # a row of zeros says nothing
    A, s = H[proper] / norm[proper, None], slack[proper] / norm[proper]
    if not len(proper):
        return proper, (np.zeros(H.shape[1]), math.inf)
    unit = s.max() if s.max() > 0 else 1.0
    # Of rows that are repeated the first stays.
    first = np.sort(np.unique(np.round(np.column_stack([A, s / unit]), 11), axis=0, return_index=True)[1])
    proper, A, s = proper[first], A[first], s[first] / unit
    # Few rows leave most directions free, and say nothing outside of the space that they span.
    span = np.linalg.qr(A.T)[0] if len(A) < H.shape[1] else np.eye(H.shape[1])
    A = A @ span
    inside, radius = np.zeros(A.shape[1]), float(s.min())
    if radius <= 1e-6:  # on a facet, or near to one
        inside, radius = _largest_ball(A, s, cap=1.0)
    if radius <= 1e-12:
        return proper, (np.zeros(H.shape[1]), 0.0)
    kept = _irredundant(A, np.maximum(s - A @ inside, radius) / radius)
    A, s, proper = A[kept], s[kept], proper[kept]
    centre, radius = _largest_ball(A, s)
    return proper, (unit * (span @ (inside if math.isinf(radius) else centre)), unit * radius)


def _largest_ball(A: Floats, s: Floats, cap: float = math.inf) -> tuple[Floats, float]:
    """The largest ball in ``A z <= s``, its radius at most ``cap``; unit rows. The program solved is the dual one:

    the least value of ``s @ weight`` for weights whose combination of the rows is 0 and whose sum is 1.
    """
    columns, cost = np.vstack([A.T, np.ones(len(A))]), s
    if math.isinf(cap) and len(A) <= A.shape[1] and np.linalg.matrix_rank(A) == len(A):
        return np.zeros(A.shape[1]), math.inf  # independent rows have no combination that is 0
    if math.isfinite(cap):
        columns, cost = np.column_stack([columns, np.eye(len(columns))[-1]]), np.append(s, cap)
    weight, point = _simplex(cost, columns, np.eye(len(columns))[-1])
    if weight is None:  # 0 is no combination of the rows: there is a direction in which all have room
        return point[:-1], math.inf
    # The radius is what the rows leave around this centre, to the last digit.
    return point[:-1], float(np.minimum(s - A @ point[:-1], cap).min().clip(min=0))


def _irredundant(A: Floats, c: Floats) -> NDArray[np.int64]:
    """The facets of ``A z <= c`` with unit rows and ``c >= 1``, so that the unit ball about 0 is inside."""
    needed = _seen(A, c)
    sure = needed.copy()
    for k in np.flatnonzero(~needed):
        while not needed[k]:
            reach, point = _support(A[needed], c[needed], A[k])
            if reach <= c[k] + _TOL * (c[k] + np.linalg.norm(point)):
                break
            # This point is beyond row k, and on the way to it from 0 the first row that ends the region is a facet.
            speed = A @ point
            way = np.where(speed > 0, c / np.where(speed > 0, speed, 1.0), np.inf)
            first = int(np.argmin(way))
            sure[first] |= np.count_nonzero(way <= (1 + 1e-6) * way[first]) == 1
            needed[k if needed[first] else first] = True
    for k in np.flatnonzero(needed & ~sure):  # where rows meet in one place, one too many may have come in
        others = needed.copy()
        others[k] = False
        reach, point = _support(A[others], c[others], A[k])
        needed[k] = reach > c[k] + _TOL * (c[k] + np.linalg.norm(point))
    return np.flatnonzero(needed)


def _seen(A: Floats, c: Floats) -> NDArray[np.bool_]:
    """Rows of which a point is found that lies on them and inside all others: they are facets, and no program is needed."""
    seen = np.zeros(len(A), dtype=bool)
    point = c[:, None] * A  # the foot of 0 on each row
    rows = np.arange(len(A))
    for _ in range(150):  # hundreds of rows take some ten; each that is not found here costs a linear program
        excess = point @ A.T - c
        excess[np.arange(len(rows)), rows] = -np.inf
        worst = excess.argmax(1)
        most = excess[np.arange(len(rows)), worst]
        inside = most < -1e-6 * (c[rows] + np.linalg.norm(point, axis=1))
        seen[rows[inside]] = True
        rows, point, worst, most = rows[~inside], point[~inside], worst[~inside], most[~inside]
        if not len(rows):
            break
        # A step along row k, back behind the row that was passed most.
        cosine = (A[worst] * A[rows]).sum(1, keepdims=True)
        back = A[worst] - cosine * A[rows]
        square = (back**2).sum(1)
        going = square > 1e-12
        step = (2.0 * most + 0.01 * c[worst]) / np.where(going, square, 1.0)
        point = (point - step[:, None] * back)[going]
        rows = rows[going]
    return seen


def _support(A: Floats, c: Floats, direction: Floats) -> tuple[float, Floats]:
    """How far ``A z <= c`` reaches in a direction and where; infinity comes with a way on which it goes on for ever."""
    if not len(A):
        return math.inf, direction
    weight, point = _simplex(c, A.T, direction)
    return (math.inf if weight is None else float(direction @ point)), point


def _simplex(cost: Floats, columns: Floats, rhs: Floats) -> tuple[Floats | None, Floats]:
    """The weights of least ``cost @ weight`` with ``columns @ weight == rhs``, none negative, and the multipliers of the rows.

    The simplex method in two phases. Where there are no such weights, the multipliers ``y`` have ``y @ columns <= 0 < y @ rhs``.
    The cost is bounded below wherever this is used.
    """
    m, k = columns.shape
    sign = np.where(rhs < 0, -1.0, 1.0)
    full = np.column_stack([sign[:, None] * columns, np.eye(m)])  # the last m columns are artificial
    # A little more on the right side, all different, so that no step has length 0; the multipliers do not see it.
    size = np.abs(rhs).max() or 1.0
    target = sign * rhs + 1e-9 * size * np.random.default_rng(0).uniform(0.5, 1.0, m)
    basis, inverse, level = np.arange(k, k + m), np.eye(m), target.copy()
    price = np.concatenate([np.zeros(k), np.ones(m)])
    for phase in (1, 2):
        for turn in range(200 + 50 * (m + k)):
            if turn % 50 == 49:
                inverse = np.linalg.inv(full[:, basis])
                level = np.maximum(inverse @ target, 0.0)
            y = price[basis] @ inverse
            gain = y @ full[:, :k] - price[:k]
            gain[basis[basis < k]] = 0.0
            enter = int(gain.argmax())
            if gain[enter] <= 1e-11 * (np.abs(price).max() + np.linalg.norm(y)):
                break
            move = inverse @ full[:, enter]
            blocks = move > 1e-10
            if phase == 2:  # an artificial one that is left over stays at 0
                blocks |= (basis >= k) & (np.abs(move) > 1e-9)
            if not blocks.any():
                raise RuntimeError("the linear program has no least value")
            ratio = np.where(blocks, np.where(move > 1e-10, level / np.where(blocks, move, 1.0), 0.0), np.inf)
            leave = int(ratio.argmin())
            step = ratio[leave]
            level = np.maximum(level - step * move, 0.0)
            level[leave], basis[leave] = step, enter
            row = inverse[leave] / move[leave]
            inverse = inverse - np.outer(move, row)
            inverse[leave] = row
        else:
            raise RuntimeError("the linear program takes too many steps: its rows are nearly dependent")
        if phase == 1:
            if level[basis >= k].sum() > 1e-7 * size * max(1, math.isqrt(m)):
                return None, sign * y
            price = np.concatenate([cost, np.zeros(m)])
    weight = np.zeros(k + m)
    weight[basis] = level
    return weight[:k], sign * y
