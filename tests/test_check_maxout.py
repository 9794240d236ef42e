"""The checkers of the exercises on maxout: every right answer passes, every known mistake is named, a blank says so."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from answers import assert_all_tried, assert_hidden, assert_named, assert_safe_from_writing
from torch import Tensor

from pwl_lib import check
from pwl_lib.maxout import difference_of_maxouts, maxout

exercises = check.maxout
Lines = tuple[Tensor, Tensor]

# --- right answers --------------------------------------------------------------------------------


def routed(choose: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The backward pass; ``choose`` gives the weights of the pieces of each unit, from their values."""

    def vjp(x: Tensor, W: Tensor, b: Tensor, k: int, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g = (choose((W @ x + b).reshape(-1, k)) * upstream[:, None]).flatten()
        return W.T @ g, torch.outer(g, x), g

    return vjp


def largest(z: Tensor) -> Tensor:
    return (z == z.amax(1, keepdim=True)).to(z)


def equal_parts(z: Tensor) -> Tensor:
    return largest(z) / largest(z).sum(1, keepdim=True)


def last_winner(z: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(z.shape[1] - 1 - z.flip(1).argmax(1), z.shape[1])


def by_autograd(x: Tensor, W: Tensor, b: Tensor, k: int, upstream: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in (x, W, b)]
    return torch.autograd.grad(maxout(*leaves, k), leaves, upstream)


def neuron(w: Tensor, b: float, alpha: float) -> Any:
    return (torch.stack([alpha * w, w]), torch.tensor([alpha * b, b])) if alpha <= 1 else None


def neuron_turned(w: Tensor, b: float, alpha: float) -> Any:
    return None if alpha > 1 else ([w.tolist(), (alpha * w).tolist()], [b, alpha * b])


def walk(slopes: Tensor, intercepts: Tensor) -> int:
    lines = list(zip(slopes.tolist(), intercepts.tolist(), strict=True))
    m, c = max(lines, key=lambda line: (-line[0], line[1]))
    shown = 1
    while steeper := [((c - e) / (n - m), -n, -e) for n, e in lines if n > m]:
        _, m, c = min((round(at, 9), n, e) for at, n, e in steeper)
        m, c, shown = -m, -c, shown + 1
    return shown


def by_slopes_on_a_fine_grid(slopes: Tensor, intercepts: Tensor) -> int:
    crossings = [
        ((intercepts[j] - intercepts[i]) / (slopes[i] - slopes[j])).item()
        for i, j in itertools.combinations(range(len(slopes)), 2)
        if slopes[i] != slopes[j]
    ]
    places = torch.tensor(sorted(crossings) or [0.0], dtype=torch.float64)
    x = torch.cat([places[:1] - 1, places[-1:] + 1, ((places[1:] + places[:-1]) / 2)[places.diff() > 1e-9]])
    return len(slopes[(x[:, None] * slopes + intercepts).argmax(1)].unique())


def halves(t: Tensor, y: Tensor, keep: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Lines, Lines]:
    slopes = y.diff() / t.diff()
    up, down = keep(slopes.diff())

    def bent(start: tuple[Tensor, Tensor], bends: Tensor) -> Lines:
        m, c = start
        return torch.cat([m, m + bends.cumsum(0)]), torch.cat([c, c - (bends * t[1:-1]).cumsum(0)])

    zero = slopes.new_zeros(1)
    return bent((slopes[:1], y[:1] - slopes[:1] * t[:1]), up), bent((zero, zero), down)


def split(bends: Tensor) -> tuple[Tensor, Tensor]:
    return bends.clamp(min=0), (-bends).clamp(min=0)


def generous(bends: Tensor) -> tuple[Tensor, Tensor]:
    """More bends than needed, the same in both."""
    return bends.clamp(min=0) + 1, (-bends).clamp(min=0) + 1


def by_library(t: Tensor, y: Tensor) -> Any:
    both = difference_of_maxouts(t, y)
    return [[p.detach().flatten().tolist() for p in unit.parameters()] for unit in (both.positive, both.negative)]


def top_line(x: Tensor, m: Tensor, c: Tensor) -> Tensor:
    return (x[:, None] * m + c).argmax(1)


def sum_by_kinks(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Lines:
    kinks = sorted(
        ((n[j] - n[i]) / (m[i] - m[j])).item()
        for m, n in ((a, b), (c, d))
        for i, j in itertools.combinations(range(len(m)), 2)
        if m[i] != m[j]
    )
    places = [
        (p + q) / 2 for p, q in itertools.pairwise([*kinks[:1], *kinks, *kinks[-1:]] or [0.0, 0.0]) if q - p > 1e-9
    ]
    ends = [kinks[0] - 1, kinks[-1] + 1] if kinks else [0.0]
    x = torch.tensor([*places, *ends], dtype=torch.float64)
    i, j = top_line(x, a, b), top_line(x, c, d)
    kept = torch.stack([a[i] + c[j], b[i] + d[j]], 1).mul(1e9).round().div(1e9).unique(dim=0)
    return kept[:, 0], kept[:, 1]


def sum_by_pruning(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[list[float], list[float]]:
    """All k l sums, without those that are never strictly on top of the others."""
    lines = {}
    for (m, p), (n, q) in itertools.product(zip(a.tolist(), b.tolist()), zip(c.tolist(), d.tolist())):
        lines[m + n] = max(p + q, lines.get(m + n, p + q))
    hull: list[tuple[float, float]] = []
    for m, p in sorted(lines.items()):
        while len(hull) > 1:
            (m0, p0), (m1, p1) = hull[-2:]
            if (p0 - p) * (m1 - m0) <= (p0 - p1) * (m - m0) + 1e-12:
                hull.pop()
            else:
                break
        hull.append((m, p))
    return [m for m, _ in hull], [p for _, p in hull]


RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("maxout_vjp", routed(equal_parts)),
    ("maxout_vjp", routed(last_winner)),
    ("maxout_vjp", by_autograd),
    ("two_pieces", neuron),
    ("two_pieces", neuron_turned),
    ("visible", walk),
    ("visible", by_slopes_on_a_fine_grid),
    ("two_halves", lambda t, y: halves(t, y, split)),
    ("two_halves", lambda t, y: halves(t, y, generous)),
    ("two_halves", by_library),
    ("sum_of_units", sum_by_kinks),
    ("sum_of_units", sum_by_pruning),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{name}-{n}" for n, (name, _) in enumerate(RIGHT)])
def test_every_right_answer_passes(name: str, answer: Callable[..., Any]) -> None:
    for _ in range(3):
        assert getattr(exercises, name)(answer).startswith("right: ")


def test_every_exercise_has_two_right_answers_here() -> None:
    assert {name for name, _ in RIGHT} == set(exercises.__all__)
    assert min([name for name, _ in RIGHT].count(name) for name in exercises.__all__) >= 2


# --- mistakes -------------------------------------------------------------------------------------


def at_a_distance(x: Tensor, W: Tensor, b: Tensor, k: int, upstream: Tensor) -> Any:
    z = (W @ x + b).reshape(k, -1).T
    g = (equal_parts(z) * upstream[:, None]).T.flatten()
    return W.T @ g, torch.outer(g, x), g


def as_relu(z: Tensor) -> Tensor:
    return equal_parts(z) * (z.amax(1, keepdim=True) > 0)


def all_sums(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Lines:
    return (a[:, None] + c).flatten(), (b[:, None] + d).flatten()


def in_step(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Any:
    return (a + c, b + d) if len(a) == len(c) else sum_by_kinks(a, b, c, d)


def touching(slopes: Tensor, intercepts: Tensor) -> int:
    lines = set(zip(slopes.tolist(), intercepts.tolist(), strict=True))
    at = [(c - e) / (n - m) for (m, c), (n, e) in itertools.permutations(lines, 2) if m != n]
    places = [*at, min(at, default=0.0) - 1, max(at, default=0.0) + 1]
    on_top = lambda line, x: line[0] * x + line[1] >= max(m * x + c for m, c in lines) - 1e-9
    return sum(any(on_top(line, x) for x in places) for line in lines)


MISTAKES: list[tuple[str, Callable[..., Any], str]] = [
    ("maxout_vjp", routed(torch.ones_like), "only the winner may"),
    ("maxout_vjp", routed(lambda z: torch.ones_like(z) / z.shape[1]), "gradient of a mean"),
    ("maxout_vjp", at_a_distance, "rows at a distance"),
    (
        "maxout_vjp",
        lambda x, W, b, k, g: routed(equal_parts)(x, W, b, k, torch.ones_like(g)),
        "upstream gradient is missing",
    ),
    ("maxout_vjp", routed(as_relu), "that is not a ReLU"),
    ("maxout_vjp", routed(largest), "each of several tied pieces got the whole gradient"),
    ("maxout_vjp", lambda *a: tuple(-part for part in by_autograd(*a)), "not yet"),
    (
        "two_pieces",
        lambda w, b, alpha: (torch.stack([alpha * w, w]), torch.tensor([alpha * b, b])),
        "smaller of the two lines",
    ),
    (
        "two_pieces",
        lambda w, b, alpha: (torch.stack([alpha * w, w]), torch.tensor([b, b])) if alpha <= 1 else None,
        "multiplies the bias too",
    ),
    (
        "two_pieces",
        lambda w, b, alpha: (torch.stack([0 * w, w]), torch.tensor([0, b])) if alpha <= 1 else None,
        "plain ReLU",
    ),
    ("two_pieces", lambda w, b, alpha: neuron(w, b, alpha) if alpha < 0 else None, "every slope that is at most 1"),
    ("two_pieces", lambda w, b, alpha: (w, torch.tensor([b])), "must have shapes"),
    ("visible", lambda slopes, _: len(slopes), "not every line shows|single point"),
    (
        "visible",
        lambda *lines: len(set(zip(*(part.tolist() for part in lines)))),
        "equal lines are one piece|not every line|single point",
    ),
    (
        "visible",
        lambda slopes, _: len(slopes.unique()),
        "parallel lines the highest counts|equal lines|not every line|single point",
    ),
    ("visible", touching, "single point is no piece"),
    ("two_halves", lambda t, y: halves(t, y, split)[::-1], "exchanged"),
    ("two_halves", lambda t, y: halves(t, y, lambda bends: (bends.abs(), bends[:0])), "wrong direction|not yet"),
    (
        "two_halves",
        lambda t, y: halves(t, y, lambda bends: (split(bends)[0], 0 * bends)),
        "bends downwards are missing",
    ),
    ("two_halves", lambda t, y: halves(t, y, lambda bends: (0 * bends, split(bends)[1])), "bends upwards are missing"),
    ("two_halves", lambda t, y: halves(t, y, split)[0], "not yet"),
    ("sum_of_units", lambda a, b, c, d: (torch.cat([a, c]), torch.cat([b, d])), "the larger of the two units"),
    ("sum_of_units", all_sums, "more lines than k \\+ l - 1"),
    ("sum_of_units", in_step, "in step"),
]


@pytest.mark.parametrize(
    ("name", "answer", "said"), MISTAKES, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(MISTAKES)]
)
def test_every_mistake_fails_and_is_named(name: str, answer: Callable[..., Any], said: str) -> None:
    assert_named(getattr(exercises, name), answer, said)


def test_every_mistake_that_a_checker_knows_is_tried_here() -> None:
    assert_all_tried(exercises, MISTAKES)


def test_the_two_ways_to_count_pieces_agree() -> None:
    for slopes in itertools.product((-1.0, 0.0, 1.0), repeat=3):
        for intercepts in itertools.product((-1.0, 0.0, 1.0), repeat=3):
            lines = torch.tensor(slopes, dtype=torch.float64), torch.tensor(intercepts, dtype=torch.float64)
            assert walk(*lines) == by_slopes_on_a_fine_grid(*lines)


# --- reports and hints ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", exercises.__all__)
def test_neither_hints_nor_reports_hold_the_code_of_a_solution(name: str) -> None:
    codes = ("torch.", "argmax", "clamp", ".T", "@", "cumsum", "diff", "unique", "stack", "outer")
    assert_hidden(getattr(exercises, name), torch.tensor(0.5), codes)


@pytest.mark.parametrize("name", exercises.__all__)
def test_an_answer_that_writes_into_its_arguments_is_compared_with_what_it_was_given(name: str) -> None:
    right = dict(reversed(RIGHT))[name]
    assert_safe_from_writing(getattr(exercises, name), right)
