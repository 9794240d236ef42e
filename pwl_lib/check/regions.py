"""Checkers of the exercises of the chapter *Regions*."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from pwl_lib.check._exercise import Case, exercise, harmful, near, random_tensor

__all__ = ["crossed", "cut", "facet", "integrated_gradients", "line_regions", "serra", "three_numbers"]

_random = random.SystemRandom()


@exercise(
    hint="An affine function on a convex polygon takes its largest and its smallest value at corners.",
    more="What do you know if one corner lies on the left of the fold and another on the right? And a corner on the fold itself?",
)
def crossed() -> Iterator[Case]:
    """``crossed(values)`` says for each of K affine functions whether it has both signs on a polygon, from its corners."""
    for corners in (3, 5, 8):
        yield _crossed_case(random_tensor(corners, 6), "at random corners")
    yield _crossed_case(random_tensor(4, 6).abs() * torch.tensor([1.0, -1, 1, -1, 1, -1]), "where no function changes")
    touching = torch.tensor([[0.0, 0, 0, 1, 0], [1, -1, 0, 0, 0], [2, -1, 0, -1, 0], [1, -2, 0, 0, -3]])
    yield _crossed_case(touching.double(), "where a fold runs through corners or along a side")


def _crossed_case(values: Tensor, where: str) -> Case:
    high, low = values.amax(0), values.amin(0)
    wanted = (high > 0) & (low < 0)
    wrong = {
        "a fold that only touches a corner or a side does not cut the polygon": (high >= 0) & (low <= 0),
        "a corner on the fold is on neither side of it": (high > 0) & (low <= 0),
        "corners that are not neighbours may lie on both sides too: compare all of them": (
            values * values.roll(1, 0) < 0
        ).any(0),
        "this says where the function does not change its sign": ~wanted,
        "the value in the middle says nothing about the corners": values.mean(0) > 0,
    }
    return Case((values,), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="Go round the polygon. Which corners belong to the positive part, and what happens on a side whose ends differ in sign?",
    more="A side with one end on each side of the fold gives one new corner, where the interpolated value is 0, to both parts.",
)
def cut() -> Iterator[Case]:
    """``cut(polygon, values)`` returns the parts of a convex polygon where an affine function is positive and where it is negative."""
    for corners in (3, 4, 7):
        polygon = _random_polygon(corners)
        direction = random_tensor(2)
        values = (polygon - polygon.mean(0)) @ direction  # the centre lies on the fold
        yield _cut_case(polygon, values, "at a random polygon")
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    yield _cut_case(square, square[:, 0] - square[:, 1], "where the fold runs through two corners")
    yield _cut_case(square, 3 * square[:, 0] - square[:, 1] - 2, "where the fold runs through one corner")


def _cut_case(polygon: Tensor, values: Tensor, where: str) -> Case:
    wanted = _halves(polygon, values)
    middle = _halves(polygon, values.sign())
    wrong = {
        "the two parts are exchanged: the positive one comes first": wanted[::-1],
        "the new corners are missing: the fold cuts two sides": (polygon[values >= 0], polygon[values <= 0]),
        "the fold does not cut a side in its middle: interpolate by the values at its ends": middle,
        "a corner on the fold belongs to both parts": _halves(polygon, values, strict=True),
        "the new corner is nearer to the end whose value is nearer to 0: exchange the weights": _halves(
            polygon, values, exchanged=True
        ),
    }
    return Case(
        (polygon, values),
        wanted,
        accept=partial(_same_parts, wanted),
        mistakes={sentence: parts for sentence, parts in wrong.items() if not _same_parts(wanted, parts)},
        where=where,
    )


def _halves(polygon: Tensor, values: Tensor, strict: bool = False, exchanged: bool = False) -> tuple[Tensor, Tensor]:
    def part(values: Tensor) -> Tensor:
        corners: list[Tensor] = []
        for p, q, g, h in zip(polygon, polygon.roll(-1, 0), values.tolist(), values.roll(-1).tolist()):
            if g > 0 or (g == 0 and not strict):
                corners.append(p)
            if g * h < 0:
                tau = h / (h - g) if exchanged else g / (g - h)
                corners.append(p + (q - p) * tau)
        return torch.stack(corners)

    return part(values), part(-values)


def _same_parts(wanted: Sequence[Tensor], value: Any) -> bool:
    """Two lists of corners, each up to where it starts, its direction, and a corner that is named twice."""
    return len(value) == len(wanted) and all(_same_polygon(one, other) for one, other in zip(wanted, value))


def _same_polygon(wanted: Tensor, value: Any) -> bool:
    value = torch.as_tensor(value, dtype=torch.float64)
    value = value[(value - value.roll(1, 0)).norm(dim=1) > 1e-9]
    turned = [w.roll(k, 0) for w in (wanted, wanted.flip(0)) for k in range(len(wanted))]
    return any(near(value, one) for one in turned)


def _random_polygon(corners: int) -> Tensor:
    angle = torch.linspace(0, 2 * math.pi, corners + 1, dtype=torch.float64)[:-1] + 0.3 * random_tensor(1)
    return torch.stack([2 * angle.cos(), angle.sin()], 1) + random_tensor(2)


@exercise(
    hint="Each fold that meets the inside of the square adds a region. When does it add more than one?",
    more="Walk along a new fold through the square: each region that you pass is cut in two. Where do you leave one region for the next?",
)
def line_regions() -> Iterator[Case]:
    """``line_regions(W, b)`` counts the regions into which the folds of ``relu(W x + b)`` cut the square [-1, 1] x [-1, 1]."""
    for units in (1, 3, 6):
        W = torch.nn.functional.normalize(random_tensor(units, 2), dim=1)
        yield _lines_case(W, 0.4 * random_tensor(units).tanh(), "for random folds through the square")
    W = torch.nn.functional.normalize(random_tensor(5, 2), dim=1)
    yield _lines_case(W, 3 + random_tensor(5).abs(), "for folds that miss the square")
    W, b = torch.tensor([[1.0, 0], [1, 0], [0, 2], [1, 1], [1, 1.5]]), torch.tensor([0.5, -0.5, 0.4, -1.7, -5])
    yield _lines_case(W.double(), b.double() + 0.01 * random_tensor(5).tanh(), "for parallel folds, and one outside")
    W, b = torch.tensor([[0.2, 1.0], [-0.2, 1.0], [0.3, -1.0]]), torch.tensor([0.5, -0.5, 0.05])
    yield _lines_case(
        W.double(), b.double() + 0.01 * random_tensor(3).tanh(), "for folds that meet outside of the square"
    )
    W = torch.tensor([[1.0, 0.3], [-0.4, 1.0], [0.7, 0.8]], dtype=torch.float64)
    b = -W @ (0.3 * random_tensor(2).tanh()) + torch.tensor([0, 0, 1e-4], dtype=torch.float64)  # nearly one point
    yield _lines_case(
        W, b, "where one region is too small for a grid", "a region may lie between the points of any grid"
    )


def _lines_case(W: Tensor, b: Tensor, where: str, one_less: str = "without a fold there is one region already") -> Case:
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    polygons = [square]
    for w, offset in zip(W, b):
        parts: list[Tensor] = []
        for polygon in polygons:
            values = polygon @ w + offset
            values = torch.where(values.abs() < 1e-12, 0, values)
            both = bool((values > 0).any() and (values < 0).any())
            parts += _halves(polygon, values) if both else [polygon]
        polygons = parts
    inside = sum(
        bool(((square @ w + offset).amax() > 0) & ((square @ w + offset).amin() < 0)) for w, offset in zip(W, b)
    )
    crossings = sum(abs(float(torch.linalg.det(W[[i, j]]))) > 1e-12 for i in range(len(W)) for j in range(i))
    wrong = {
        "that is the bound for the whole plane and folds in general position": 1 + len(W) + math.comb(len(W), 2),
        "a fold that misses the square adds no region": len(polygons) + len(W) - inside,
        "folds may cross outside of the square": 1 + inside + crossings,
        "folds that cross inside add a region for each crossing": 1 + inside,
        one_less: len(polygons) - 1,
        "patterns without a point in the square do not count": 2 ** len(W),
    }
    return Case(
        (W, b),
        len(polygons),
        mistakes={sentence: n for sentence, n in wrong.items() if n != len(polygons)},
        where=where,
        tolerance=1e-12,
    )


@exercise(
    hint="Let F(l, d) bound the regions that the layers from l on cut out of one piece, when the inputs of layer l span d dimensions.",
    more="Sort the pieces of a layer by how many units are off: with j units off there are no more pieces than choices of j units.",
)
def serra() -> Iterator[Case]:
    """``serra(widths, dimension)`` returns the upper bound of Serra et al. for hidden layers of these widths."""
    fixed = [
        ((4, 4), 2, "for a known net"),
        ((5,), 3, "with one hidden layer"),
        ((2, 3, 8), 4, "behind a narrow layer"),
    ]
    for _ in range(3):
        widths = tuple(_random.randint(2, 7) for _ in range(_random.randint(2, 4)))
        fixed.append((widths, _random.randint(1, 4), "for random widths"))
    for widths, dimension, where in fixed:
        wanted = _serra(widths, dimension)
        narrow, bottleneck = dimension, 1
        for n in widths:
            narrow = min(narrow, n)
            bottleneck *= sum(math.comb(n, j) for j in range(narrow + 1))
        wrong = {
            "a unit that is off lowers the dimension of what comes after its layer": bottleneck,
            "the dimension is bounded by the units that are on in all layers before, not in the last alone": _forgetful(
                widths, dimension
            ),
            "j units are off: how many of the layer are left?": _serra_of_on(widths, dimension),
            "a layer behind a narrow one has fewer dimensions than there are inputs": math.prod(
                sum(math.comb(n, j) for j in range(min(n, dimension) + 1)) for n in widths
            ),
            "with that many patterns every one would have a point": 2 ** sum(widths),
            "that is the bound for one layer with all units": sum(
                math.comb(sum(widths), j) for j in range(dimension + 1)
            ),
            "the sum starts with no unit off": _serra(widths, dimension, start=1),
        }
        yield Case(
            (widths, dimension),
            wanted,
            mistakes={sentence: n for sentence, n in wrong.items() if n != wanted},
            where=where,
            tolerance=1e-12,
        )


@cache
def _serra(widths: tuple[int, ...], d: int, start: int = 0) -> int:
    if not widths:
        return 1
    n, *rest = widths
    return sum(math.comb(n, j) * _serra(tuple(rest), min(d, n - j), start) for j in range(start, min(d, n) + 1))


def _serra_of_on(widths: tuple[int, ...], d: int) -> int:
    if not widths:
        return 1
    n, *rest = widths
    return sum(math.comb(n, j) * _serra_of_on(tuple(rest), min(d, j)) for j in range(min(d, n) + 1))


def _forgetful(widths: tuple[int, ...], dimension: int, alive: int | None = None) -> int:
    if not widths:
        return 1
    n, *rest = widths
    d = dimension if alive is None else min(dimension, alive)
    return sum(math.comb(n, j) * _forgetful(tuple(rest), dimension, n - j) for j in range(min(d, n) + 1))


@exercise(
    hint="On the facet both maps give the same value. Subtract them.",
    more="The difference of the matrices has rank one: each of its rows is a multiple of the normal. Not every row need be useful.",
)
def facet() -> Iterator[Case]:
    """``facet(A, b, A2, b2)`` returns ``(h, c)``: two neighbouring pieces agree where ``h @ z == c``, and ``h`` has length 1."""
    for m, n in ((1, 2), (2, 3), (3, 5)):
        yield _facet_case(random_tensor(m), random_tensor(n), "between random pieces")
    yield _facet_case(torch.tensor([0.0, 1.5, -2.0]).double(), random_tensor(4), "where the first output has no kink")
    yield _facet_case(random_tensor(2), torch.tensor([0.0, -1.0, 0.0]).double(), "where the facet is parallel to axes")


def _facet_case(r: Tensor, normal: Tensor, where: str) -> Case:
    h, c = normal / normal.norm(), float(random_tensor(1)) + 2.0
    c = c if c > 0.1 else 0.5
    A, b = random_tensor(len(r), len(h)), random_tensor(len(r))
    A2, b2 = A + torch.outer(r, h), b - c * r
    wrong = {
        "the offset has the wrong sign: put a point of the facet into your equation": (h, -c),
        "b must be compared too: the facet does not pass through 0": (h, 0.0),
        "c has to be divided by the length of the difference, too": (h, float(c * r.norm())) if len(r) == 1 else (h, c),
        "h was wanted with length 1, and c to go with it": (r[0].abs() * h, float(r[0].abs() * c)),
    }
    return Case(
        (A, b, A2, b2), (h, c), mistakes=harmful(wrong, (h, c)), where=where, measure=partial(_on_the_side_of, h)
    )


def _on_the_side_of(h: Tensor, value: Any) -> tuple[Tensor, Tensor]:
    """Both signs of ``(h, c)`` are right: the one that looks where ``h`` does."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError("the pair (h, c) was wanted")
    normal, offset = (torch.as_tensor(part, dtype=torch.float64).detach() for part in value)
    sign = -1 if float(normal.flatten() @ h) < 0 else 1
    return sign * normal, sign * offset


@exercise(
    hint="On a segment the gradient is constant, so its share of the integral is a product.",
    more="Long segments count more than short ones. Which factor do all gradients share, and is it one number or one for each input?",
)
def integrated_gradients() -> Iterator[Case]:
    """``integrated_gradients(t, A, start, end)`` returns the integral of the gradient along a line, times ``end - start``."""
    for segments, n in ((4, 3), (7, 5), (1, 2)):
        t = torch.cat([torch.zeros(1), random_tensor(segments).abs().add(0.1).cumsum(0)])
        t, A = t / t[-1], random_tensor(segments, n)
        start, end = random_tensor(n), random_tensor(n)
        way = end - start
        wanted = (t.diff() @ A) * way
        wrong = {
            "that is the mean over the segments, and long segments count more than short ones": A.mean(0) * way,
            "multiply with the way from start to end": t.diff() @ A,
            "the way begins at start: it is end - start": (t.diff() @ A) * end,
            "that is the gradient at the end, times the way": A[-1] * way,
            "that is the sum over the inputs: one number for each of them was wanted": wanted.sum(),
            "the ends of the segments are no lengths": (t[1:] @ A) * way,
        }
        where = "with one segment" if segments == 1 else "along a random line"
        yield Case((t, A, start, end), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="A net with three kinks can rise, fall and be flat again. How many maps has it? Then add a kink that nobody sees.",
    more="Two units that switch at the same place can cancel there, on both sides or in the change of slope alone.",
)
def three_numbers() -> Iterator[Case]:
    """``three_numbers()`` returns ``(w, b, v)`` for which ``v @ relu(w x + b)`` on [-1, 1] has more patterns than pieces than maps."""
    yield Case(
        (),
        "(activation patterns, connected pieces, distinct maps), each larger than the next",
        accept=lambda counts: counts[0] > counts[1] > counts[2],
        mistakes={
            "every kink shows: let the kinks of two units cancel": (4, 4, 3),
            "every map has one place: let one come back": (4, 3, 3),
            "each piece has its own pattern and its own map": (2, 2, 2),
        },
        where="for your net",
        measure=_three_counts,
    )


def _three_counts(net: Any) -> tuple[int, int, int]:
    w, b, v = (torch.as_tensor(part, dtype=torch.float64).detach().flatten() for part in net)
    if not 1 <= len(w) == len(b) == len(v) <= 5:
        raise ValueError(f"w, b and v must have the same length, at most 5, got {len(w)}, {len(b)} and {len(v)}")
    if not ((w != 0).all() and (v != 0).all()):
        raise ValueError("no entry of w and v may be 0")
    kinks = sorted({t for t in (-b / w).tolist() if -1 < t < 1} | {-1.0, 1.0})
    ends = [kinks[0], *(t for s, t in itertools.pairwise(kinks) if t - s > 1e-12)]
    middles = torch.tensor([(s + t) / 2 for s, t in itertools.pairwise(ends)], dtype=torch.float64)
    on = (middles[:, None] * w + b > 0).double()
    maps = torch.stack([on @ (v * w), on @ (v * b)], 1)
    pieces = 1 + sum(not near(one, other, 1e-9) for one, other in itertools.pairwise(maps))
    distinct: list[Tensor] = []
    for one in maps:
        if not any(near(one, other, 1e-9) for other in distinct):
            distinct.append(one)
    return len(on.unique(dim=0)), pieces, len(distinct)
