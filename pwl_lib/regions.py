r"""Exact regions: the polygons of a network on a plane, its segments on a line, the polyhedron of an input, and bounds on their number.

The module of the chapter *Regions*.
A network made of affine maps and of switches is affine on each cell of a finite partition of its input space. On a plane the cells
are convex polygons, and all of them can be found: every switch compares functions that are affine on the polygons found so far,
so each polygon that has vertices on both sides of a comparison is cut in two along it. Nothing is sampled.
All numbers are float64, whatever the model's dtype.

`_walk` runs the model at the vertices and cuts at its switches, `_subdivision` is the plane that is cut; `_segments`, `_polyhedra`
and `_region_bounds` hold what else is handed on here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pwl_lib._polyhedra import RegionPolyhedron, polyhedron
from pwl_lib._region_bounds import montufar_lower_bound, montufar_upper_bound, serra_upper_bound, zaslavsky_bound
from pwl_lib._segments import Segments, integrate_along, segments
from pwl_lib._subdivision import Subdivision, components, ranges
from pwl_lib._trace import Model, Switch, untouched
from pwl_lib._validation import check_finite_number, check_floating
from pwl_lib._walk import Choice, DoubleTrace, Snapshot, TooLarge, Walk
from pwl_lib.piecewise_linear import AffinePiece, _flat, _jacobian, _refuse_offenders

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "RegionCounts",
    "RegionPolyhedron",
    "Regions",
    "Segments",
    "integrate_along",
    "montufar_lower_bound",
    "montufar_upper_bound",
    "polyhedron",
    "segments",
    "serra_upper_bound",
    "slice_regions",
    "zaslavsky_bound",
]

Box = tuple[tuple[float, float], tuple[float, float]]
Integers = NDArray[np.int64]

_SAME_MAP = 1e-10
_NUMBERS_AT_ONCE = 2**20  # of one chunk of polygons that go through the model: what a cache holds
_NUMBERS_OF_A_CUT = 2**27  # a box whose cuts give more is taken in parts, for the same reason
_DEEPEST = 4  # so many times a part is taken in parts


class RegionCounts(NamedTuple):
    """Three counts that are not the same, of the part of a plane that lies in a box.

    Patterns are at least as many as connected pieces, and these at least as many as maps: neighbours with different patterns may carry one
    map, and so may pieces far apart.
    """

    activation_patterns: int
    """The polygons: switches choose alike on one, and no two have the same choices."""
    affine_maps: int
    """The different affine maps of (s, t) that they carry."""
    connected_pieces: int
    """The connected sets that are left when neighbours that carry the same map are joined."""


def slice_regions(
    model: Model, origin: Tensor, u: Tensor, v: Tensor, box: Sequence[float] | Sequence[Sequence[float]] = (-1.0, 1.0)
) -> Regions:
    r"""All regions of ``model`` on the plane :math:`x = o + s\,u + t\,v`, :eq:`eq-slice`, with (s, t) in a box: exact convex polygons.

    The model is run once, at the vertices of the polygons found so far. At a switch, each polygon that has vertices on
    both sides of a comparison is cut, :eq:`eq-crossing`; a new vertex gets its activations by interpolation along its edge,
    :eq:`eq-edge-vertex`, and both polygons at that edge get the same one. Then the switch takes its affine branch.
    All arithmetic is float64, whatever dtype the model has. The model itself is left untouched.

    A comparison that is 0 on a whole polygon cuts nothing there: the switch takes its lower branch, a maximum its first argument,
    as in :func:`~pwl_lib.piecewise_linear.activation_pattern`. The pattern of a polygon is that of its interior.
    Values within 1e-12 of 0, relative to the largest value of the same comparison, count as 0, so that several lines through one
    point meet in one vertex. Where all folds lie in a millionth of the box, or the box is a millionth of what the model computes
    with, rounding in the model may exceed that: lines that should meet may then leave polygons of next to no area.

    Args:
        model: a piecewise linear module or function of ``(B, *input_shape)``, see
            :func:`~pwl_lib.piecewise_linear.is_piecewise_linear`; it treats each sample alone. A module is used as it is
            now: in its mode, with its present weights.
        origin: ``(*input_shape)``, without a batch dimension, floating point.
        u: as ``origin``, the first direction.
        v: as ``origin``, the second direction, not a multiple of ``u``.
        box: ``(low, high)`` for both s and t, or ``((s_low, s_high), (t_low, t_high))``.

    Returns:
        :class:`Regions`: the polygons with their areas, patterns, affine maps and neighbours, and three counts of them.

    Raises:
        TypeError: ``origin``, ``u`` or ``v`` is not a floating point tensor, ``box`` holds something other than numbers,
            the model is not callable or does not return one tensor.
        ValueError: the model is not piecewise linear (each module that is not is named), mixes the samples of the batch or is not
            finite on the box; the shapes of ``origin``, ``u`` and ``v`` differ, or ``u`` and ``v`` span no plane;
            ``box`` is empty.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> _ = torch.nn.init.eye_(model[0].weight), torch.nn.init.zeros_(model[0].bias)
        >>> regions = slice_regions(model, torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        >>> regions
        Regions(4 activation patterns on [-1, 1] x [-1, 1], 2 -> 2)
        >>> regions.area.tolist()
        [1.0, 1.0, 1.0, 1.0]

    Source: the book, :eq:`eq-slice` and :prf:ref:`thm-subdivision`.
    """
    box = _check_box(box)
    with torch.inference_mode(False), torch.no_grad():  # so that gradients can be had later
        snapshot, plane = Snapshot(model), _Plane(origin, u, v)
    with untouched(model, plane.origin), torch.no_grad():
        cells = _find(snapshot, plane, box)
    return Regions(snapshot, plane, box, cells)


class _Plane:
    """Origin and two directions, checked, in float64."""

    def __init__(self, origin: Tensor, u: Tensor, v: Tensor) -> None:
        for name, value in (("origin", origin), ("u", u), ("v", v)):
            check_floating(name, value)
            if value.shape != origin.shape:
                raise ValueError(
                    f"{name} must have the shape of origin, {tuple(origin.shape)}, got {tuple(value.shape)}"
                )
            if value.device != origin.device:
                raise ValueError(f"{name} must be on the device of origin, {origin.device}, got {value.device}")
        self.shape = origin.shape
        both = torch.stack([value.detach().double().flatten() for value in (origin, u, v)])
        self.origin, self.directions = both[0], both[1:]
        size = both.abs().amax(1).tolist() if both.numel() else [0.0] * 3
        for name, largest in zip(("origin", "u", "v"), size, strict=True):
            if not math.isfinite(largest):
                raise ValueError(f"{name} must be finite, got NaN or an infinity")
            if largest == 0 and name != "origin":
                raise ValueError(f"{name} must not be 0")
        first, second = both[1] / size[1], both[2] / size[2]
        one, two, product = float(first @ first), float(second @ second), float(first @ second)
        across = second - first * (product / one)  # what u does not explain of v
        if float(across @ across) <= 1e-24 * two:
            raise ValueError("u and v must span a plane, but v is a multiple of u")

    def __call__(self, points: NDArray[np.float64]) -> Tensor:
        """``(P, 2)`` gives the inputs ``(P, *shape)``."""
        at = torch.from_numpy(points).to(self.origin.device)
        return (self.origin + at @ self.directions).reshape(len(points), *self.shape)


class _NotItself(Exception):
    """What came out of the model is not the model: its batch must not grow."""


class _Cells(NamedTuple):
    """What is found in a box."""

    mesh: Subdivision
    values: Tensor
    choices: list[Choice]
    parents: list[Integers]
    size: float
    """Of the numbers that switches compare: what cancels inside of the model leaves an error of this scale."""


def _find(snapshot: Snapshot, plane: _Plane, box: Box, depth: int = 0) -> _Cells:
    try:
        walk = _walk(snapshot, plane, box, growing=True, most=_NUMBERS_OF_A_CUT if depth < _DEEPEST else math.inf)
    except TooLarge as much:
        return _in_parts(snapshot, plane, box, much.parts, depth)
    except _NotItself:
        walk = _walk(snapshot, plane, box, growing=False)
    if walk.merges:  # what comparisons of a maximum have cut that do not decide it
        walk.mesh.merge(_words(walk.choices, walk.parents))
        walk.parents.append(walk.mesh.parent)
    return _Cells(walk.mesh, walk.output.cpu(), walk.choices, walk.parents, walk.size)


def _in_parts(snapshot: Snapshot, plane: _Plane, box: Box, parts: int, depth: int) -> _Cells:
    """Finds the cells of one small box after the other, and joins those that the lines between the boxes have cut."""
    count = max(2, math.ceil(math.sqrt(parts)))
    for attempt in range(3):
        # The lines are where no edge of a model is likely to lie, and an attempt that did not work is not made again.
        shift = (0.0381966 + 0.0618034 * attempt) / count
        lines = []
        for low, high in box:
            inner = [low + (high - low) * (k / count + shift) for k in range(1, count)]
            lines.append([low, *inner, high])
        columns = [
            [_packed_cells(_find(snapshot, plane, (s, t), depth + 1)) for t in itertools.pairwise(lines[1])]
            for s in itertools.pairwise(lines[0])
        ]
        joined = _joined(columns, lines)
        if joined is not None:
            return joined
    raise RuntimeError("the regions of the parts of the box do not fit together; a smaller box, or another one, may do")


def _packed_cells(cells: _Cells) -> _Cells:
    """The choices of the polygons that there are at last; vertices that are no corner are left out, but those of the box."""
    mesh, values, choices, parents, size = cells
    packed = _packed(choices, parents, np.arange(len(mesh)))
    choices = [choice._replace(packed=rows, stage=0) for choice, rows in zip(choices, packed, strict=True)]
    start, index = mesh.polygons
    used = np.zeros(len(mesh.vertices), dtype=bool)
    used[index] = used[:4] = True
    if not used.all():
        mesh = _mesh(mesh.vertices[used], start, (np.cumsum(used) - 1)[index])
        values = values[torch.from_numpy(used)]
    return _Cells(mesh, values, choices, [], size)


def _mesh(vertices: NDArray[np.float64], start: Integers, index: Integers) -> Subdivision:
    """A subdivision, not to be cut again, of polygons that are given; the first four vertices are the corners of its box."""
    mesh = Subdivision(((0.0, 1.0), (0.0, 1.0)))
    mesh.vertices = vertices
    mesh._rebuild(start, index)
    return mesh


def _joined(columns: list[list[_Cells]], lines: list[list[float]]) -> _Cells | None:
    """One set of cells of those of small boxes; None where the vertices on both sides of a line do not fit."""
    tiles = [tile for column in columns for tile in column]
    height = len(columns[0])
    first = np.cumsum([0, *(len(tile.mesh.vertices) for tile in tiles)])
    one, two = [], []
    for number, tile in enumerate(tiles):
        i, j = divmod(number, height)
        for axis, other, line in ((0, number + height, lines[0][i + 1]), (1, number + 1, lines[1][j + 1])):
            if (i + 1 if axis == 0 else j + 1) < (len(columns) if axis == 0 else height):
                here, there = (_on_line(t.mesh, axis, line) for t in (tile, tiles[other]))
                if len(here) != len(there):
                    return None
                along = tile.mesh.vertices[here, 1 - axis] - tiles[other].mesh.vertices[there, 1 - axis]
                if np.abs(along).max() > 1e-8 * (lines[1 - axis][-1] - lines[1 - axis][0]):
                    return None
                one.append(first[number] + here)
                two.append(first[other] + there)
    root = components(first[-1], np.concatenate(one), np.concatenate(two))
    corners = [first[0], first[-1 - height] + 1, first[-2] + 2, first[height - 1] + 3]
    keep = np.unique(root)
    keep = np.concatenate([corners, keep[~np.isin(keep, root[corners])]])
    name = np.empty(first[-1], dtype=np.int64)
    name[root[keep]] = np.arange(len(keep))
    vertices = np.concatenate([tile.mesh.vertices for tile in tiles])[keep]
    index = np.concatenate([tile.mesh.polygons[1] + at for tile, at in zip(tiles, first[:-1], strict=True)])
    sides = np.concatenate([np.diff(tile.mesh.polygons[0]) for tile in tiles])
    mesh = _mesh(vertices, np.concatenate([[0], np.cumsum(sides)]), name[root[index]])
    values = torch.cat([tile.values for tile in tiles])[torch.from_numpy(keep)]
    choices = [
        choice[0]._replace(packed=np.concatenate([part.packed for part in choice]))
        for choice in zip(*(tile.choices for tile in tiles), strict=True)
    ]
    mesh.merge(_words(choices, []) if choices else np.zeros(len(mesh), dtype=np.int64))
    return _Cells(mesh, values, choices, [mesh.parent], max(tile.size for tile in tiles))


def _on_line(mesh: Subdivision, axis: int, line: float) -> Integers:
    """The vertices on a line along a side of the box, in order."""
    near = np.abs(mesh.vertices[:, axis] - line) <= 1e-15 * np.abs(mesh.vertices[:4, axis]).max()
    found = np.flatnonzero(near)
    return found[np.argsort(mesh.vertices[found, 1 - axis])]


def _packed(choices: Sequence[Choice], parents: Sequence[Integers], polygons: Integers) -> list[NDArray[Any]]:
    """The rows of each choice for some of the polygons that there are at last."""
    rows = []
    stage = len(parents)
    for choice in reversed(choices):
        while stage > choice.stage:
            stage -= 1
            polygons = parents[stage][polygons]
        rows.append(choice.packed[polygons])
    return rows[::-1]


def _walk(snapshot: Snapshot, plane: _Plane, box: Box, *, growing: bool, most: float = math.inf) -> Walk:
    walk = Walk(snapshot, plane, Subdivision(box), growing=growing, most=most)
    try:
        with np.errstate(all="ignore"):  # what is not finite is refused by name
            walk.output = _flat(walk.walk())
    except TooLarge:
        raise
    except Exception as error:
        _refuse_offenders(walk)
        if growing:
            raise _NotItself from error
        raise
    _refuse_offenders(walk)
    if not bool(torch.isfinite(walk.output).all()):
        raise ValueError("model must be finite on the whole box, but its output is not")
    missed = _sample_error(snapshot, plane, walk)
    if missed:
        if growing:
            raise _NotItself
        raise ValueError(
            "model must be a fixed function of each sample alone, made of operations that torch shows; "
            f"within a polygon it misses the affine map found there by up to {missed:.3g}"
        )
    return walk


def _sample_error(snapshot: Snapshot, plane: _Plane, walk: Walk) -> float:
    """By how much the model misses the mean of three of its corners in the middle of a few polygons; 0 where it is rounding."""
    start, index = walk.mesh.polygons
    some = np.arange(0, len(walk.mesh), max(1, len(walk.mesh) // 32))
    corners = np.stack([index[start[some] + (start[some + 1] - start[some]) * k // 3] for k in range(3)])
    x = plane(walk.mesh.vertices[corners].mean(axis=0))
    y = walk.output
    first, second, third = y[torch.from_numpy(corners).to(y.device)]
    expected = (first + second + third) / 3
    error = (_flat(DoubleTrace(snapshot).run(x) if walk.adjusted else snapshot(x)) - expected).abs()
    allowed = 1e-6 * y.abs().amax() + 1e-9 * walk.size if y.numel() else 0
    return 0.0 if bool((error <= allowed).all()) else float(error.max())


def _words(choices: Sequence[Choice], parents: Sequence[Integers]) -> Integers:
    """A number for the pattern of each polygon, a random sum of its choices: two patterns share theirs by a chance of about 2^-64."""
    random = np.random.default_rng(0)
    word = np.zeros(1, dtype=np.uint64)
    for stage in range(len(parents) + 1):
        for choice in choices:
            if choice.stage == stage:
                factor = random.integers(2**64, size=choice.packed.shape[1], dtype=np.uint64) | np.uint64(1)
                word = word + (choice.packed * factor).sum(axis=1)
        if stage < len(parents):
            word = word[parents[stage]]
    return word.view(np.int64)


class Regions:
    """The polygons of a model on a box of a plane, made by :func:`slice_regions`. What is costly is found when it is first asked for.

    Every number is float64, and points of the plane are given by (s, t).
    The model is the one that :func:`slice_regions` was given, as it was then; a plain function cannot be copied, and must not change.
    """

    def __init__(self, snapshot: Snapshot, plane: _Plane, box: Box, cells: _Cells) -> None:
        self._snapshot, self._plane = snapshot, plane
        self._mesh, values, self._choices, self._parents, self._inside = cells
        vertices, (self._offsets, index) = self._mesh.vertices, self._mesh.polygons
        used = np.zeros(len(vertices), dtype=bool)
        used[index] = True
        if not used.all():  # after a merge
            index = (np.cumsum(used) - 1)[index]
            vertices, values = vertices[used], values[torch.from_numpy(used)]
        self._index = index
        self.box = box
        """``((s_low, s_high), (t_low, t_high))``."""
        self.vertices: Tensor = torch.from_numpy(vertices)
        """``(V, 2)``: each corner once; polygons that meet there share it."""
        self.values: Tensor = values
        """``(V, m)``: the output of the model at the vertices, flattened."""

    def __len__(self) -> int:
        """How many polygons, which is how many activation patterns."""
        return len(self._offsets) - 1

    def __repr__(self) -> str:
        (s0, s1), (t0, t1) = self.box
        patterns = f"{len(self)} activation pattern{'s' * (len(self) != 1)}"
        sizes = f"{self._plane.origin.numel()} -> {self.values.shape[1]}"
        return f"Regions({patterns} on [{s0:g}, {s1:g}] x [{t0:g}, {t1:g}], {sizes})"

    @property
    def corners(self) -> tuple[Tensor, Tensor]:
        """``(R + 1,)`` and ``(N,) int64``: polygon i has the vertices ``number[start[i]:start[i + 1]]``, counterclockwise."""
        return torch.from_numpy(self._offsets), torch.from_numpy(self._index)

    @cached_property
    def polygons(self) -> list[Tensor]:
        """One ``(k, 2)`` tensor for each polygon: its corners (s, t), counterclockwise."""
        start, index = self.corners
        return list(self.vertices[index].split(start.diff().tolist()))

    @cached_property
    def _fan(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Area and centroid, summed over triangles that share the first corner, from which all is measured."""
        start, index = self._offsets[:-1], self._index
        vertices = self.vertices.numpy()
        following = np.roll(index, -1)
        following[self._offsets[1:] - 1] = index[start]
        first = vertices[index[start]]
        origin = np.repeat(first, np.diff(self._offsets), axis=0)
        a, b = vertices[index] - origin, vertices[following] - origin
        twice = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
        area = np.add.reduceat(twice, start)
        moment = np.add.reduceat(twice[:, None] * (a + b), start, axis=0)
        middle = np.add.reduceat(a, start, axis=0) / np.diff(self._offsets)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            centroid = moment / (3 * area[:, None])
        # The centroid of a sliver is lost in rounding; the mean of the corners lies in it too.
        size = np.maximum.reduceat(np.abs(a).max(axis=1), start)
        thin = ~(area > 1e-12 * size**2)
        centroid[thin] = middle[thin]
        return area / 2, first + centroid

    @property
    def area(self) -> Tensor:
        """``(R,)``, in the units of s times t; the areas sum to that of the box."""
        return torch.from_numpy(self._fan[0])

    @property
    def centroid(self) -> Tensor:
        """``(R, 2)``: a point in the middle of each polygon."""
        return torch.from_numpy(self._fan[1])

    @cached_property
    def neighbours(self) -> Tensor:
        """``(E, 2) int64``: the pairs i < j of polygons that share an edge, in order."""
        return torch.from_numpy(self._mesh.neighbours()[0])

    def input(self, points: Tensor) -> Tensor:
        """The inputs of the model at points (s, t): ``(P, 2)`` gives ``(P, *input_shape)``."""
        return self._plane(_check_points(points))

    @cached_property
    def pattern(self) -> Tensor:
        """``(R, K) int64``: the choice of every switch on each polygon, as :func:`~pwl_lib.piecewise_linear.activation_pattern` has it."""
        words = [_flat(switch.choice).long() for switch in self._choices_of(np.arange(len(self)))]
        return torch.cat([torch.zeros(len(self), 0, dtype=torch.int64), *words], dim=1)

    def _choices_of(self, polygons: Integers) -> list[Switch]:
        switches = []
        for choice, rows in zip(self._choices, _packed(self._choices, self._parents, polygons), strict=True):
            # On or off, a byte each; others are indices.
            rows = rows.astype(np.int64) if choice.width is None else np.unpackbits(rows, axis=1, count=choice.width)
            word = torch.from_numpy(rows).reshape(len(rows), *choice.shape)
            switches.append(Switch(choice.path, word, word))
        return switches

    def _chunks(self, polygons: Integers, numbers: int) -> Iterator[tuple[DoubleTrace, list[Switch], int]]:
        """A trace and the choices of a few polygons at a time, of which each takes up that many numbers."""
        numbers += self._plane.origin.numel() + sum(math.prod(choice.shape) for choice in self._choices)
        with untouched(self._snapshot.model, self._plane.origin), self._snapshot.in_its_modes():
            for part in np.array_split(polygons, max(1, math.ceil(len(polygons) * numbers / _NUMBERS_AT_ONCE))):
                switches = self._choices_of(part)
                for switch in switches:
                    switch.choice = switch.choice.to(self._plane.origin.device)
                yield DoubleTrace(self._snapshot), switches, len(part)

    def piece(self, polygons: Tensor | Sequence[int]) -> AffinePiece:
        r"""The affine map :math:`A x + b` of the model on each of the polygons with these numbers, in x (and not in s, t).

        One forward pass at 0 with the choices of the polygon gives ``b``, a backward pass through it ``A``.

        Args:
            polygons: ``(P,) int64``, numbers from 0 to ``len() - 1``.

        Returns:
            ``AffinePiece(A, b)`` with ``A: (P, m, n)`` and ``b: (P, m)``, on the device of the model.
        """
        numbers = self._check_numbers(polygons)
        inputs, outputs = self._plane.origin.numel(), self.values.shape[1]
        A, b = [], []
        for trace, switches, count in self._chunks(numbers, inputs * outputs):
            leaf = self._plane.origin.new_zeros(count, *self._plane.shape).requires_grad_()
            with torch.enable_grad():
                y = _flat(trace.at(switches, leaf))
            A.append(_jacobian(y, leaf, trace.eps))
            b.append(y.detach())
        return AffinePiece(torch.cat(A), torch.cat(b))

    @cached_property
    def _pieces(self) -> AffinePiece:
        return self.piece(torch.arange(len(self)))

    @property
    def A(self) -> Tensor:
        """``(R, m, n)``: the Jacobian on each polygon by the model's input, all n numbers of it; see :meth:`piece` for a few polygons."""
        return self._pieces.A

    @property
    def b(self) -> Tensor:
        """``(R, m)``: the model is ``A x + b`` on each polygon."""
        return self._pieces.b

    @cached_property
    def _at_corners(self) -> Tensor:
        """The affine maps of all polygons at three corners of the box, ``(3, R, m)``: they tell a map on the plane."""
        (s0, s1), (t0, t1) = self.box
        corners = self._plane(np.array([[s0, t0], [s1, t0], [s0, t1]]))
        parts = []
        for trace, switches, count in self._chunks(np.arange(len(self)), self.values.shape[1]):
            with torch.no_grad():
                at = [_flat(trace.at(switches, corner.expand(count, *corner.shape))) for corner in corners]
            parts.append(torch.stack(at).cpu())
        return torch.cat(parts, dim=1)

    @cached_property
    def slope(self) -> Tensor:
        """``(R, m, 2)``: the derivative of the model by s and by t on each polygon."""
        (s0, s1), (t0, t1) = self.box
        here, right, above = self._at_corners
        return torch.stack([(right - here) / (s1 - s0), (above - here) / (t1 - t0)], dim=-1)

    @cached_property
    def offset(self) -> Tensor:
        """``(R, m)``: the model is ``slope @ (s, t) + offset`` on each polygon."""
        (s0, _), (t0, _) = self.box
        return self._at_corners[0] - self.slope @ torch.tensor([s0, t0], dtype=torch.float64)

    @cached_property
    def affine_map(self) -> Tensor:
        """``(R,) int64``: polygons with the same number carry the same affine map of (s, t).

        Two maps count as one up to 1e-10 of the largest value, or up to what rounding inside of the model leaves of values that cancel.
        """
        corners = self._at_corners.movedim(0, 1).flatten(1).numpy()  # (R, 3 m)
        return torch.from_numpy(_clusters(corners, _SAME_MAP * np.abs(corners).max(initial=0) + 1e-13 * self._inside))

    @cached_property
    def connected_piece(self) -> Tensor:
        """``(R,) int64``: polygons with the same number are joined by a chain of neighbours that carry the same map."""
        same = self.neighbours[self.affine_map[self.neighbours].diff(dim=1)[:, 0] == 0].numpy()
        return torch.from_numpy(np.unique(components(len(self), same[:, 0], same[:, 1]), return_inverse=True)[1])

    @cached_property
    def counts(self) -> RegionCounts:
        """How many activation patterns, different affine maps and connected affine pieces: :eq:`eq-three-counts`.

        They are counts of the plane, not of the whole input space: maps are compared as maps of (s, t), by ``slope`` and ``offset``.
        Two maps of the whole space may agree on the plane, and a region that does not meet the box is not counted.
        """
        return RegionCounts(len(self), int(self.affine_map.max()) + 1, int(self.connected_piece.max()) + 1)

    def find(self, points: Tensor) -> Tensor:
        """The number of the polygon in which each point (s, t) lies, -1 outside the box.

        A point on an edge is given to one of the polygons there.

        Args:
            points: ``(P, 2)`` floating point.

        Returns:
            ``(P,) int64``.
        """
        return torch.from_numpy(self._locate(_check_points(points)))

    @cached_property
    def _locate(self) -> Callable[[NDArray[np.float64]], Integers]:
        return _Locator(self.vertices.numpy(), self._offsets, self._index, self.box)

    def plot(self, ax: Axes | None = None, color: str = "slope", output: int = 0) -> Axes:
        """Draws the polygons, see :func:`pwl_lib.plot.draw_regions`; needs the extra ``pwl_lib[plot]``.

        Args:
            ax: where to draw; a new figure without it.
            color: what a colour stands for: ``"slope"``, ``"pattern"``, ``"map"``, ``"piece"``, ``"value"`` or ``"none"``.
            output: whose slope or value is shown, of several outputs.

        Returns:
            The axes.
        """
        from pwl_lib import plot

        return plot.draw_regions(self, ax, color, output)

    def _check_numbers(self, polygons: Tensor | Sequence[int]) -> Integers:
        numbers = torch.as_tensor(polygons)
        if numbers.is_floating_point() or numbers.dtype == torch.bool or numbers.dim() != 1:
            raise TypeError(
                f"polygons must be a row of whole numbers, got {numbers.dtype} of shape {tuple(numbers.shape)}"
            )
        if numbers.numel() and (int(numbers.min()) < 0 or int(numbers.max()) >= len(self)):
            raise ValueError(f"polygons must be numbers from 0 to {len(self) - 1}, got {polygons}")
        return numbers.long().cpu().numpy()


class _Locator:
    """Finds polygons by a grid of boxes, each with the polygons that may reach into it."""

    def __init__(self, vertices: NDArray[np.float64], start: Integers, index: Integers, box: Box) -> None:
        self.vertices, self.start, self.index = vertices, start, index
        self.low, self.high = np.array(box).T
        self.side = max(1, int(math.sqrt(len(start) - 1)))
        corners = vertices[index]
        least = self._cell(np.minimum.reduceat(corners, start[:-1], axis=0))
        most = self._cell(np.maximum.reduceat(corners, start[:-1], axis=0))
        wide, tall = (most - least + 1).T
        polygon, place = ranges(wide * tall)
        cell = (least[polygon, 1] + place // wide[polygon]) * self.side + least[polygon, 0] + place % wide[polygon]
        order = np.argsort(cell, kind="stable")
        self.polygon = polygon[order]
        self.bounds = np.searchsorted(cell[order], np.arange(self.side**2 + 1))

    def _cell(self, points: NDArray[np.float64]) -> Integers:
        part = (points - self.low) / (self.high - self.low) * self.side
        return np.clip(part.astype(np.int64), 0, self.side - 1)

    def __call__(self, points: NDArray[np.float64]) -> Integers:
        found = np.full(len(points), -1)
        inside = np.flatnonzero(((points >= self.low) & (points <= self.high)).all(axis=1))
        for part in np.array_split(inside, max(1, len(inside) // 2**14)):
            found[part] = self._of(points[part])
        return found

    def _of(self, points: NDArray[np.float64]) -> Integers:
        """Of the polygons that may reach there, the one that the point is deepest in."""
        if not len(points):
            return np.zeros(0, dtype=np.int64)
        across, up = self._cell(points).T
        first = self.bounds[up * self.side + across]
        point, place = ranges(self.bounds[up * self.side + across + 1] - first)
        polygon = self.polygon[first[point] + place]
        pair, corner = ranges(self.start[polygon + 1] - self.start[polygon])
        here = self.start[polygon[pair]] + corner
        last = here + 1 == self.start[polygon[pair] + 1]
        a = self.vertices[self.index[here]]
        b = self.vertices[
            self.index[np.where(last, self.start[polygon[pair]], np.minimum(here + 1, len(self.index) - 1))]
        ]
        edge, to = b - a, points[point[pair]] - a
        length = np.maximum(np.hypot(edge[:, 0], edge[:, 1]), 1e-300)
        left = (edge[:, 0] * to[:, 1] - edge[:, 1] * to[:, 0]) / length  # the distance from the edge's line, inwards
        sides = self.start[polygon + 1] - self.start[polygon]
        depth = np.minimum.reduceat(left, np.cumsum(sides) - sides)
        order = np.lexsort((polygon, -depth, point))
        of = point[order]
        return polygon[order][np.concatenate([[True], of[1:] != of[:-1]])]


def _clusters(rows: NDArray[np.float64], tol: float) -> Integers:
    """Numbers rows so that those which differ by no more than ``tol`` in any column get the same number."""
    label = np.zeros(len(rows), dtype=np.int64)
    if rows.shape[1] == 0:
        return label
    # A random mixture first: where all groups are then single rows, no column needs to be looked at.
    mixture = np.random.default_rng(0).uniform(0.5, 1, rows.shape[1]) / rows.shape[1]
    for column in [rows @ mixture, *rows.T]:
        order = np.lexsort((column, label))
        apart = (np.diff(label[order]) != 0) | (np.diff(column[order]) > tol)
        label[order] = np.concatenate([[0], np.cumsum(apart)])
        if label.max() + 1 == len(rows):
            break
    # Numbered in the order of their first rows.
    _, first, label = np.unique(label, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[label]


def _check_points(points: Tensor) -> NDArray[np.float64]:
    check_floating("points", points)
    if points.dim() != 2 or points.shape[1] != 2:
        raise ValueError(f"points must have shape (P, 2), got {tuple(points.shape)}")
    return points.detach().double().cpu().numpy()


def _check_box(box: Any) -> Box:
    if not isinstance(box, (tuple, list)) or len(box) != 2:
        raise ValueError(f"box must be (low, high) or ((s_low, s_high), (t_low, t_high)), got {box!r}")
    pairs = box if isinstance(box[0], (tuple, list)) else (box, box)
    checked = []
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"box must be (low, high) or ((s_low, s_high), (t_low, t_high)), got {box!r}")
        for bound in pair:
            check_finite_number("box", bound)
        if not pair[0] < pair[1]:
            raise ValueError(f"box must have each low below its high, got {box!r}")
        checked.append((float(pair[0]), float(pair[1])))
    return checked[0], checked[1]
