"""The cells of a small piecewise linear network on a piece of a plane, in exact arithmetic.

An independent answer to compare `pwl_lib.regions.slice_regions` with: nothing of the library is used, not even its names of
modules, and nothing is rounded. A float is a fraction whose denominator is a power of two, so a network is a list of exact
maps. They are brought to whole numbers: an affine function a s + b t + c of the plane is the triple (a, b, c), a point
(s, t) = (X/W, Y/W) the triple (X, Y, W) with W > 0, the sign of the function at the point that of the scalar product, the
line through two points and the point on two lines a vector product. Each cell is a convex polygon with the affine functions
that the units are on it; it goes through the network switch by switch, and a switch that decides both ways on it cuts it in
two. This is slow, in plain Python, and right: a zero is a zero.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

Triple = tuple[int, int, int]
Box = tuple[float, float] | tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Cell:
    """A convex polygon, counterclockwise, and what the network is on it: `values` over the scale of all cells."""

    polygon: tuple[Triple, ...]
    values: np.ndarray  # (*shape, 3) of Python's whole numbers
    pattern: tuple[int, ...] = ()
    saved: tuple[np.ndarray, ...] = field(default=())  # of the shortcuts that are open

    @property
    def corners(self) -> list[tuple[Fraction, Fraction]]:
        return [(Fraction(x, w), Fraction(y, w)) for x, y, w in self.polygon]

    @property
    def area(self) -> Fraction:
        points = self.corners
        return sum((p[0] * q[1] - q[0] * p[1] for p, q in zip(points, points[1:] + points[:1])), Fraction(0)) / 2


class Counts(NamedTuple):
    activation_patterns: int
    affine_maps: int
    connected_pieces: int


@dataclass
class ExactRegions:
    cells: list[Cell]
    scale: int

    def __len__(self) -> int:
        return len(self.cells)

    def affine(self, cell: Cell) -> list[list[Fraction]]:
        """For each output the slope in s, the slope in t, and the value at (0, 0)."""
        return [[Fraction(number, self.scale) for number in row] for row in cell.values.reshape(-1, 3)]

    def neighbours(self) -> set[frozenset[int]]:
        """Pairs of cells that share more than a point."""
        sides: dict[Triple, list[tuple[Fraction, Fraction, int]]] = defaultdict(list)
        for number, cell in enumerate(self.cells):
            for (px, py, pw), (qx, qy, qw) in zip(cell.polygon, cell.polygon[1:] + cell.polygon[:1]):
                line = _reduced(_cross((px, py, pw), (qx, qy, qw)))
                line = max(line, (-line[0], -line[1], -line[2]))
                ends = [Fraction(px, pw), Fraction(qx, qw)] if line[1] else [Fraction(py, pw), Fraction(qy, qw)]
                sides[line].append((min(ends), max(ends), number))
        return {
            frozenset((i, j))
            for on_one_line in sides.values()
            for (low, high, i), (low2, high2, j) in itertools.combinations(on_one_line, 2)
            if i != j and max(low, low2) < min(high, high2)
        }

    def counts(self) -> Counts:
        maps = [tuple(cell.values.flatten()) for cell in self.cells]
        leader = list(range(len(self)))

        def find(i: int) -> int:
            while leader[i] != i:
                i = leader[i]
            return i

        for i, j in self.neighbours():
            if maps[i] == maps[j]:
                leader[find(i)] = find(j)
        return Counts(len({cell.pattern for cell in self.cells}), len(set(maps)), len({find(i) for i in leader}))


def exact_regions(model: nn.Module, origin: Tensor, u: Tensor, v: Tensor, box: Box = (-1.0, 1.0)) -> ExactRegions:
    """The cells of the model on the points origin + s u + t v with (s, t) in the box.

    The model is a Sequential, which may be nested, of the modules of `_STEPS` and of `Residual`; a module is known by the
    name of its class, so that torch's and the library's are the same. The switches are numbered, and their choices too, as
    `pwl_lib.piecewise_linear.activation_pattern` does it.
    """
    (s0, s1), (t0, t1) = (tuple(map(Fraction, side)) for side in (box if isinstance(box[0], tuple) else (box, box)))
    corners = [(s0, t0), (s1, t0), (s1, t1), (s0, t1)]
    polygon = tuple(_homogeneous(s, t) for s, t in corners)
    start, scale = _whole([u, v, origin])
    cells, scale = _through(model, [Cell(polygon, np.moveaxis(start, 0, -1))], scale)
    return ExactRegions(cells, scale)


class Residual(nn.Module):
    """x + inner(x): a shortcut, which the list of modules cannot say."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


# Whole numbers, points and lines


def _whole(numbers: Sequence[Tensor]) -> tuple[np.ndarray, int]:
    """Tensors of one shape as one array of whole numbers over a common denominator."""
    flat = [[Fraction(float(number)) for number in tensor.detach().flatten()] for tensor in numbers]
    scale = math.lcm(*(number.denominator for row in flat for number in row), 1)
    array = np.empty((len(flat), len(flat[0])), dtype=object)
    for i, row in enumerate(flat):
        array[i] = [int(number * scale) for number in row]
    return array.reshape(len(flat), *numbers[0].shape), scale


def _cross(p: Triple, q: Triple) -> Triple:
    return p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]


def _reduced(triple: Triple) -> Triple:
    divisor = math.gcd(*triple)
    return triple[0] // divisor, triple[1] // divisor, triple[2] // divisor


def _point(x: int, y: int, w: int) -> Triple:
    return _reduced((x, y, w) if w > 0 else (-x, -y, -w))


def _homogeneous(s: Fraction, t: Fraction) -> Triple:
    return _point(s.numerator * t.denominator, t.numerator * s.denominator, s.denominator * t.denominator)


def _sides(polygon: tuple[Triple, ...], line: Triple) -> tuple[tuple[Triple, ...], tuple[Triple, ...]]:
    """The part where the affine function is at most 0 and the part where it is at least 0; a part without interior is ()."""
    a, b, c = line
    at = [a * x + b * y + c * w for x, y, w in polygon]
    if not any(value > 0 for value in at):
        return polygon, ()
    if not any(value < 0 for value in at):
        return (), polygon
    below, above = [], []
    for i, (p, here) in enumerate(zip(polygon, at)):
        if here <= 0:
            below.append(p)
        if here >= 0:
            above.append(p)
        q, there = polygon[(i + 1) % len(polygon)], at[(i + 1) % len(polygon)]
        if (here < 0 < there) or (there < 0 < here):
            crossing = _point(*_cross(_cross(p, q), line))
            below.append(crossing)
            above.append(crossing)
    return tuple(below), tuple(above)


# The way through the network


def _through(model: nn.Module, cells: list[Cell], scale: int) -> tuple[list[Cell], int]:
    name = type(model).__name__
    if name == "Sequential":
        for module in model:  # a module that stands twice in it is used twice
            cells, scale = _through(module, cells, scale)
        return cells, scale
    if name == "Residual":
        inner, larger = _through(
            model.inner, [replace(cell, saved=(*cell.saved, cell.values)) for cell in cells], scale
        )  # type: ignore[arg-type]
        factor = larger // scale
        return [replace(c, values=c.values + factor * c.saved[-1], saved=c.saved[:-1]) for c in inner], larger
    return _STEPS[name](model, cells, scale)


def _linear(module: Any, cells: list[Cell], scale: int) -> tuple[list[Cell], int]:
    weight, factor = _affine_parameters(module)
    return [replace(cell, values=_product(weight, cell.values, scale)) for cell in cells], factor * scale


def _affine_parameters(module: Any) -> tuple[np.ndarray, int]:
    """The weight, one row for each output, with the bias as its last column, in whole numbers."""
    weight = module.weight.detach().flatten(1)
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach()
    return _whole([torch.cat([row, b[None]]) for row, b in zip(weight, bias)])


def _product(weight: np.ndarray, values: np.ndarray, scale: int) -> np.ndarray:
    found = weight[:, :-1].dot(values)
    found[:, 2] += weight[:, -1] * scale
    return found


def _conv2d(module: Any, cells: list[Cell], scale: int) -> tuple[list[Cell], int]:
    assert module.groups == 1
    assert module.dilation in (1, (1, 1))
    weight, factor = _affine_parameters(module)
    stride, padding = (n if isinstance(n, tuple) else (n, n) for n in (module.stride, module.padding))

    def of_one(values: np.ndarray) -> np.ndarray:
        windows = _windows(values, module.weight.shape[2:], stride, padding, fill=0)  # (C, H', W', kh, kw, 3)
        patches = windows.transpose(0, 3, 4, 1, 2, 5).reshape(weight.shape[1] - 1, -1, 3)
        found = np.stack([_product(weight, patches[:, n], scale) for n in range(patches.shape[1])], axis=1)
        return found.reshape(len(weight), *windows.shape[1:3], 3)

    return [replace(cell, values=of_one(cell.values)) for cell in cells], factor * scale


def _windows(
    values: np.ndarray, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], fill: Any
) -> np.ndarray:
    """(C, H, W, 3) as (C, H', W', kh, kw, 3); outside stands `fill`."""
    channels, height, width, _ = values.shape
    framed = np.full((channels, height + 2 * padding[0], width + 2 * padding[1], 3), fill, dtype=object)
    framed[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = values
    tops = range(0, framed.shape[1] - kernel[0] + 1, stride[0])
    lefts = range(0, framed.shape[2] - kernel[1] + 1, stride[1])
    rows = [[framed[:, top : top + kernel[0], left : left + kernel[1]] for left in lefts] for top in tops]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def _pool2d(module: Any, cells: list[Cell], scale: int) -> tuple[list[Cell], int]:
    kernel, stride, padding = (
        n if isinstance(n, tuple) else (n, n)
        for n in (module.kernel_size, module.stride or module.kernel_size, module.padding)
    )
    cut = []
    for cell in cells:
        windows = _windows(cell.values, kernel, stride, padding, fill=None)
        cut += _largest(replace(cell, values=windows.reshape(*windows.shape[:3], -1, 3)))
    return cut, scale


def _maxout(module: Any, cells: list[Cell], scale: int) -> tuple[list[Cell], int]:
    cells, scale = _linear(module, cells, scale)
    grouped = [replace(cell, values=cell.values.reshape(-1, module.pieces, 3)) for cell in cells]
    return [piece for cell in grouped for piece in _largest(cell)], scale


def _largest(cell: Cell) -> Iterator[Cell]:
    """The maxima over the last dimension of `values`; a candidate None is no candidate."""
    shape = cell.values.shape[:-2]
    groups = cell.values.reshape(-1, *cell.values.shape[-2:])

    def choices(polygon: tuple[Triple, ...], group: np.ndarray) -> Iterator[tuple[int, tuple[Triple, ...], Triple]]:
        there = [(k, tuple(row)) for k, row in enumerate(group) if row[0] is not None]
        for k, mine in there:
            part = polygon
            for j, other in there:
                if mine == other and j < k:  # the first of several winners is named
                    part = ()
                if part and mine != other:
                    part = _sides(part, _difference(mine, other))[1]
            if part:
                yield k, part, mine

    yield from _each_unit(cell, groups, choices, shape)


def _difference(p: Triple, q: Triple) -> Triple:
    return p[0] - q[0], p[1] - q[1], p[2] - q[2]


def _each_unit(cell: Cell, units: Iterable[Any], choices: Any, shape: tuple[int, ...]) -> Iterator[Cell]:
    """Cuts a cell by one switch after the other: `choices` gives the parts of a polygon on which a switch decides one way."""
    parts: list[tuple[tuple[Triple, ...], tuple[int, ...], tuple[Triple, ...]]] = [(cell.polygon, (), ())]
    for unit in units:
        parts = [
            (smaller, (*pattern, choice), (*values, value))
            for polygon, pattern, values in parts
            for choice, smaller, value in choices(polygon, unit)
        ]
    for polygon, pattern, values in parts:
        array = np.empty((len(values), 3), dtype=object)
        array[:] = values
        yield replace(cell, polygon=polygon, values=array.reshape(*shape, 3), pattern=cell.pattern + pattern)


def _two_slopes(slope: Fraction, cells: list[Cell], scale: int) -> tuple[list[Cell], int]:
    factor, below = slope.denominator, slope.numerator

    def choices(polygon: tuple[Triple, ...], z: Triple) -> Iterator[tuple[int, tuple[Triple, ...], Triple]]:
        negative, positive = _sides(polygon, z)
        if negative:
            yield 0, negative, (below * z[0], below * z[1], below * z[2])
        if positive:
            yield 1, positive, (factor * z[0], factor * z[1], factor * z[2])

    cut = []
    for cell in cells:
        units = [tuple(row) for row in cell.values.reshape(-1, 3)]
        cut += _each_unit(cell, units, choices, cell.values.shape[:-1])
    return cut, factor * scale


def _hardtanh(module: Any, cells: list[Cell], scale: int) -> tuple[list[Cell], int]:
    low, high = (Fraction(bound) for bound in (module.min_val, module.max_val))
    factor = math.lcm(low.denominator, high.denominator)
    low_level, high_level = ((0, 0, int(bound * factor * scale)) for bound in (low, high))

    def choices(polygon: tuple[Triple, ...], unit: Triple) -> Iterator[tuple[int, tuple[Triple, ...], Triple]]:
        z = (factor * unit[0], factor * unit[1], factor * unit[2])
        under, rest = _sides(polygon, _difference(z, low_level))
        if under:
            yield 0, under, low_level
        if rest:
            over, inside = _sides(rest, _difference(high_level, z))
            if inside:
                yield 1, inside, z
            if over:
                yield 2, over, high_level

    cut = []
    for cell in cells:
        units = [tuple(row) for row in cell.values.reshape(-1, 3)]
        cut += _each_unit(cell, units, choices, cell.values.shape[:-1])
    return cut, factor * scale


def _reshaped(module: Any, cells: list[Cell], scale: int) -> tuple[list[Cell], int]:
    size = (-1,) if type(module).__name__ == "Flatten" else tuple(module.unflattened_size)
    return [replace(cell, values=cell.values.reshape(*size, 3)) for cell in cells], scale


_STEPS: dict[str, Any] = {
    "Linear": _linear,
    "Conv2d": _conv2d,
    "ReLU": lambda module, cells, scale: _two_slopes(Fraction(0), cells, scale),
    "LeakyReLU": lambda module, cells, scale: _two_slopes(Fraction(module.negative_slope), cells, scale),
    "Absolute": lambda module, cells, scale: _two_slopes(Fraction(-1), cells, scale),
    "Hardtanh": _hardtanh,
    "Maxout": _maxout,
    "MaxPool2d": _pool2d,
    "Flatten": _reshaped,
    "Unflatten": _reshaped,
}
