"""Checkers of the exercises of the chapter *Maxout*."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from pwl_lib.check._exercise import Case, exercise, harmful, near, random_tensor

__all__ = ["maxout_vjp", "sum_of_units", "two_halves", "two_pieces", "visible"]

_random = random.SystemRandom()


@exercise(
    hint="The maximum passes the upstream entry of a unit to one of its pieces. Which one, and what do the others get?",
    more="First find the gradient in the pre-activations. From there on the layer is linear, with the weight W and the bias b.",
)
def maxout_vjp() -> Iterator[Case]:
    """The gradients of a maxout layer in the input, the weight and the bias; at a tie any subgradient."""
    for d, m, k in ((3, 2, 3), (2, 3, 2), (4, 2, 4)):
        x, W, b, upstream = random_tensor(d), random_tensor(m * k, d), random_tensor(m * k), random_tensor(m)
        yield _vjp_case(x, W, b, k, upstream, "at a random input")
    x, W, upstream = random_tensor(2), random_tensor(6, 2), random_tensor(2)
    b = -3 - W @ x - torch.rand(6, dtype=x.dtype)  # every piece below 0
    yield _vjp_case(x, W, b, 3, upstream, "where all pieces are negative")
    yield _vjp_case(random_tensor(3), random_tensor(2, 3), random_tensor(2), 1, random_tensor(2), "with one piece")
    x = torch.tensor([float(_random.choice((-2, -1, 1, 2))), 1.0], dtype=torch.float64)
    W = torch.tensor([[1.0, 0], [2, 0], [0, 0], [0, 3], [0, 1], [1, 0]], dtype=torch.float64)
    b = torch.stack([0 * x[0], -x[0], x[0] - 5, x[0] - 3, x[0] - 1, 0 * x[0]])  # ties of two, and of three
    upstream = random_tensor(2)
    yield Case(
        (x, W, b, 3, upstream),
        "gradients whose part of each unit goes to the tied pieces, in parts that add up to the upstream entry",
        accept=lambda value: _shares(value, x, W, b, upstream),
        mistakes={
            "each of several tied pieces got the whole gradient: the parts must add up to it": _whole(x, W, b, upstream)
        },
        where="where pieces are tied",
    )


def _vjp_case(x: Tensor, W: Tensor, b: Tensor, k: int, upstream: Tensor, where: str) -> Case:
    z = W @ x + b

    def from_z(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return W.T @ g, torch.outer(g, x), g

    def routed(groups: Tensor, u: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(groups.argmax(1), groups.shape[1]) * u[:, None]

    by_z = routed(z.reshape(-1, k), upstream).flatten()
    spread = upstream[:, None].expand(-1, k).flatten()
    clipped = torch.where(z.reshape(-1, k).amax(1) > 0, upstream, 0)
    wrong = {
        "every piece of a unit got its gradient; only the winner may": from_z(spread),
        "that is the gradient of a mean over the pieces": from_z(spread / k),
        "the pieces of a unit are neighbouring rows; yours are rows at a distance": from_z(
            routed(z.reshape(k, -1).T, upstream).T.flatten()
        ),
        "the upstream gradient is missing": from_z(routed(z.reshape(-1, k), torch.ones_like(upstream)).flatten()),
        "a unit whose largest piece is negative passes its gradient too: that is not a ReLU": from_z(
            routed(z.reshape(-1, k), clipped).flatten()
        ),
    }
    wanted = from_z(by_z)
    return Case((x, W, b, k, upstream), wanted, mistakes=harmful(wrong, wanted), where=where)


def _tied(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    z = (W @ x + b).reshape(2, 3)
    return z == z.amax(1, keepdim=True)


def _shares(value: Any, x: Tensor, W: Tensor, b: Tensor, upstream: Tensor) -> bool:
    by_x, by_W, by_b = (torch.as_tensor(part, dtype=torch.float64) for part in value)
    parts, tied = by_b.reshape(2, 3) / upstream[:, None], _tied(x, W, b)
    right = torch.where(tied, parts > -1e-9, parts.abs() < 1e-9).all()
    return (
        bool(right)
        and near(parts.sum(1), torch.ones(2))
        and near(by_x, W.T @ by_b)
        and near(by_W, torch.outer(by_b, x))
    )


def _whole(x: Tensor, W: Tensor, b: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    by_b = (_tied(x, W, b) * upstream[:, None]).flatten()
    return W.T @ by_b, torch.outer(by_b, x), by_b


@exercise(
    hint="Draw the two half lines of the neuron, and prolong both. For which slopes is the larger of the two lines the graph?",
    more="One piece is the neuron where it is positive, the other where it is negative. Each needs a weight and a bias.",
)
def two_pieces() -> Iterator[Case]:
    """A neuron with a leaky ReLU as a maxout unit of two pieces, where there is one."""
    slopes = [0.0, -1.0, 1.0, _random.uniform(0.1, 0.9), _random.uniform(-3, -0.1), 1 + _random.uniform(0.1, 2)]
    for alpha in (_random.uniform(0.1, 0.9), *_random.sample(slopes, len(slopes))):
        d = _random.randint(1, 3)
        w, b, points = random_tensor(d), float(random_tensor(1)), random_tensor(12, d) * 3
        yield _neuron_case(w, b, alpha, points)


def _neuron_case(w: Tensor, b: float, alpha: float, points: Tensor) -> Case:
    def measure(value: Any) -> Tensor | None:
        if value is None:
            return None
        weight, bias = (torch.as_tensor(part, dtype=torch.float64) for part in value)
        if weight.shape != (2, len(w)) or bias.shape != (2,):
            shapes = tuple(weight.shape), tuple(bias.shape)
            raise ValueError(
                f"weight and bias must have shapes {(2, len(w))} and (2,), got {shapes[0]} and {shapes[1]}"
            )
        return (points @ weight.T + bias).amax(1)

    z = points @ w + b
    neuron = torch.where(z > 0, z, alpha * z)
    if alpha > 1:
        none = "with a slope above 1 the neuron is the smaller of the two lines, and no unit is that"
        return Case(
            (w, b, alpha),
            None,
            mistakes={none: torch.maximum(z, alpha * z)},
            where="for a slope above 1",
            measure=measure,
        )
    wrong = {
        "the slope multiplies the bias too": torch.maximum(z, alpha * z + (1 - alpha) * b),
        "with this slope the second piece is not 0: that is the plain ReLU": z.clamp(min=0),
    }
    mistakes: dict[str, Any] = harmful(wrong, neuron)
    mistakes["there is such a unit for every slope that is at most 1"] = None
    return Case((w, b, alpha), neuron, mistakes=mistakes, where="for a slope of at most 1", measure=measure)


@exercise(
    hint="Far to the left the line with the least slope is on top. Which line takes over, and where?",
    more="A line may lie below the others everywhere, touch the maximum in a single point, or stand in the list twice.",
)
def visible() -> Iterator[Case]:
    """The number of affine pieces of a maximum of lines."""
    for k in (1, 2, 4, 6, 8):
        slopes, intercepts = ([_random.randint(-4, 4) for _ in range(k)] for _ in range(2))
        yield _visible_case(slopes, intercepts, "at random lines")
    at = _random.sample(range(-5, 6), 4)
    yield _visible_case([2 * t for t in at], [-t * t for t in at], "at tangents of a parabola")
    p, q = _random.randint(-3, 3), _random.randint(-3, 3)
    turned = _random.sample(range(-4, 5), 4)
    yield _visible_case(turned, [q - m * p for m in turned], "at lines through one point")
    yield _visible_case([1, 1, 1], [0, 3, 3], "at parallel lines")
    yield _visible_case([-2, 2, 0, 0], [0, 0, -1, -5], "at lines that lie below")


def _visible_case(slopes: list[int], intercepts: list[int], where: str) -> Case:
    lines = list(zip(slopes, intercepts, strict=True))
    crossings = sorted({Fraction(c - e, n - m) for m, c in lines for n, e in lines if n != m})
    beyond = [crossings[0] - 1, crossings[-1] + 1] if crossings else [Fraction(0)]
    between = [(p + q) / 2 for p, q in zip(crossings, crossings[1:])]  # noqa: RUF007
    value: Callable[[tuple[int, int], Fraction], Fraction] = lambda line, x: line[0] * x + line[1]  # noqa: E731
    top = lambda x: {line for line in lines if value(line, x) == max(value(other, x) for other in lines)}  # noqa: E731
    wanted = len(set().union(*map(top, [*beyond, *between])))
    wrong = {
        "a line that touches the maximum in a single point is no piece": len(
            set().union(*map(top, [*beyond, *crossings]))
        ),
        "not every line shows": len(lines),
        "equal lines are one piece, and some lines may lie below the others everywhere": len(set(lines)),
        "of parallel lines the highest counts, and of the others not each one shows": len(set(slopes)),
    }
    mistakes = {sentence: number for sentence, number in wrong.items() if number != wanted}
    arguments = tuple(torch.tensor(part, dtype=torch.float64) for part in (slopes, intercepts))
    return Case(arguments, wanted, mistakes=mistakes, where=where)


@exercise(
    hint="Look at the kinks. Where the line bends upwards, one unit must bend; where it bends downwards, the other.",
    more="Each new piece of a unit is steeper than the one before by the bend, and meets it at the breakpoint.",
)
def two_halves() -> Iterator[Case]:
    """A line through given points as a difference of two maxima of lines."""
    for n in (2, 3, 6, 9):
        yield _halves_case(random_tensor(n).sort().values, random_tensor(n), "at random points")
    t = torch.arange(4.0, dtype=torch.float64) + float(random_tensor(1))
    yield _halves_case(t, t.square(), "at a convex line")
    yield _halves_case(t, -t.square(), "at a concave line")
    yield _halves_case(t, 2 * t + 1, "at a straight line")


def _halves_case(t: Tensor, y: Tensor, where: str) -> Case:
    gaps = t.diff()
    t = torch.cat([t[:1], t[:1] + (gaps.clamp(min=0.2)).cumsum(0)])  # not too steep
    slopes = y.diff() / t.diff()
    x = torch.cat([t[:1] - 1, t, (t[1:] + t[:-1]) / 2, t[-1:] + 1])
    bends = slopes.diff()[:, None] * (x - t[1:-1, None]).clamp(min=0)
    first = y[0] + slopes[0] * (x - t[0]) + bends.clamp(min=0).sum(0)
    second = (-bends).clamp(min=0).sum(0)

    def measure(value: Any) -> Tensor:
        halves = [[torch.as_tensor(part, dtype=torch.float64) for part in half] for half in value]
        if len(halves) != 2 or any(
            len(half) != 2 or half[0].dim() != 1 or half[0].shape != half[1].shape for half in halves
        ):
            raise ValueError("two pairs of slopes and intercepts are wanted, the two of a pair of the same shape")
        upper, lower = ((x[:, None] * a + b).amax(1) for a, b in halves)
        return upper - lower

    wanted = first - second
    wrong = {
        "the two units are exchanged": second - first,
        "the second unit is taken away: yours bends in the wrong direction": first + second,
        "the bends downwards are missing": first,
        "the bends upwards are missing": wanted - bends.clamp(min=0).sum(0),
    }
    return Case((t, y), wanted, mistakes=harmful(wrong, wanted), where=where, measure=measure)


@exercise(
    hint="Where can the sum have a kink? Between two neighbouring kinks it is one line of the first unit plus one of the second.",
    more="A point between two neighbouring kinks, and one beyond each end, show which two lines to add.",
)
def sum_of_units() -> Iterator[Case]:
    """The sum of two maxout units of one number, as one unit of at most k + l - 1 pieces."""
    for sizes in ((2, 2), (3, 2), (4, 4), (1, 3), (1, 1)):
        yield _sum_case([random_tensor(n) for n in sizes for _ in range(2)], "at random units")
    for sizes in ((3, 3), (4, 2)):  # parallel lines, hidden ones, kinks in the same place
        whole = [[float(_random.randint(-2, 2)) for _ in range(n)] for n in sizes for _ in range(2)]
        yield _sum_case([torch.tensor(part, dtype=torch.float64) for part in whole], "at units with whole numbers")
    a = 2 * torch.arange(-1.0, 2.0, dtype=torch.float64)
    yield _sum_case([a, -a.square() / 4, a / 2, -a.square() / 8], "at units with the same kinks")


def _sum_case(units: list[Tensor], where: str) -> Case:
    a, b, c, d = units
    allowed = len(a) + len(c) - 1
    crossings = [
        float((n[j] - n[i]) / (m[i] - m[j]))
        for m, n in ((a, b), (c, d))
        for i in range(len(m))
        for j in range(i)
        if m[i] != m[j]
    ]
    near_kinks = torch.tensor([at + step for at in crossings for step in (-0.1, 0.0, 0.1)], dtype=torch.float64)
    reach = 1 + max(map(abs, crossings), default=0.0)
    x = torch.cat([torch.linspace(-2 * reach, 2 * reach, 41, dtype=torch.float64), near_kinks])

    def unit(m: Tensor, n: Tensor) -> Tensor:
        return (x[:, None] * m + n).amax(1)

    def measure(value: Any) -> tuple[Tensor, int]:
        m, n = (torch.as_tensor(part, dtype=torch.float64) for part in value)
        if m.dim() != 1 or m.shape != n.shape or not len(m):
            raise ValueError(
                f"slopes and intercepts must have one shape (n,), got {tuple(m.shape)} and {tuple(n.shape)}"
            )
        return unit(m, n), max(0, len(m) - allowed)

    total = unit(a, b) + unit(c, d)
    wrong: dict[str, Any] = {
        "the larger of the two units, not their sum": (torch.maximum(unit(a, b), unit(c, d)), 1),
    }
    if len(a) > 1 and len(c) > 1:
        wrong["the function is right, and has more lines than k + l - 1"] = (total, len(a) * len(c) - allowed)
    if len(a) == len(c):
        wrong["the units do not change their pieces in step"] = (unit(a + c, b + d), max(0, len(a) - allowed))
    wanted = (total, 0)
    mistakes = {sentence: value for sentence, value in wrong.items() if not near(value, wanted)}
    return Case((a, b, c, d), wanted, mistakes=mistakes, where=where, measure=measure)
