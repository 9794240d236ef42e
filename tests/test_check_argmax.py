"""The checkers of the exercises on argmax: every right answer passes, every known mistake is named, a blank says so."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from answers import assert_all_tried, assert_hidden, assert_named, assert_safe_from_writing
from torch import Tensor

from pwl_lib import check
from pwl_lib.argmax import soft_argmax, soft_argmax_jacobian
from pwl_lib.losses import softmax_jacobian

exercises = check.argmax
D = torch.float64


def index(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], dtype=D)


# --- right answers --------------------------------------------------------------------------------


def vjp_by_formula(x: Tensor, t: float, g: Tensor) -> Tensor:
    return g[:, None] * soft_argmax_jacobian(x, t)


def vjp_by_autograd(x: Tensor, t: float, g: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(torch.softmax(t * x, 1) @ index(x), x, g)[0]


def vjp_row_by_row(x: Tensor, t: float, g: Tensor) -> Tensor:
    return torch.stack([t * softmax_jacobian(t * row) @ index(row) * g[n] for n, row in enumerate(x)])


def peak_by_library(x: Tensor, t: float) -> Tensor:
    return soft_argmax(x, (0, 1), t)


def peak_by_marginals(x: Tensor, t: float) -> Tensor:
    weights = (t * (x - x.max())).exp()
    weights = weights / weights.sum()
    return torch.stack([(weights.sum(1) * index(x.T)).sum(), (weights.sum(0) * index(x)).sum()])


def limit(x: Tensor, tolerance: float) -> float:
    top, second = x.topk(2).values
    return math.log(len(x) * (len(x) - 1) / (2 * tolerance)) / float(top - second)


def sharp_by_bisection(x: Tensor, tolerance: float) -> float:
    low, high = 0.0, limit(x, tolerance)
    best = int(x.argmax())
    for _ in range(60):
        middle = (low + high) / 2
        good = abs(float(soft_argmax(x, temperature=middle)) - best) <= tolerance
        low, high = (low, middle) if good else (middle, high)
    return high


def local_by_mask(x: Tensor, radius: int, t: float) -> Tensor:
    far = (index(x) - x.argmax()).abs() > radius
    return soft_argmax(x.masked_fill(far, -math.inf), temperature=t)


def local_by_slice(x: Tensor, radius: int, t: float) -> Tensor:
    best = int(x.argmax())
    low = max(best - radius, 0)
    part = x[low : best + radius + 1]
    return low + torch.softmax(t * part, 0) @ index(part)


def bias_by_formula(x: Tensor, t: float, Q: Tensor) -> Tensor:
    Q = (Q + Q.T) / 2
    return t * softmax_jacobian(t * x) @ (Q @ torch.softmax(t * x, 0) - Q.diagonal() / 2)


def bias_by_enumeration(x: Tensor, t: float, Q: Tensor) -> Tensor:
    f, corners = (lambda y: y @ Q @ y / 2), torch.eye(len(x), dtype=D)
    J, p = t * softmax_jacobian(t * x), torch.softmax(t * x, 0)
    slopes = torch.stack([(Q + Q.T) @ corner / 2 for corner in corners])
    return J @ (p @ slopes) - J @ torch.stack([f(corner) for corner in corners])


def two_by_rows(x: Tensor) -> Tensor:
    p, rows = torch.softmax(x, 0), torch.zeros(len(x), len(x), dtype=D)
    for i in range(len(x)):
        others = torch.arange(len(x)) != i
        rows[i, others] = p[i] * torch.softmax(x[others], 0)
    return rows


def two_by_mask(x: Tensor) -> Tensor:
    others = x.repeat(len(x), 1).masked_fill(torch.eye(len(x), dtype=torch.bool), -math.inf)
    return (x.log_softmax(0)[:, None] + others.log_softmax(1)).exp()


RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("soft_argmax_vjp", vjp_by_formula),
    ("soft_argmax_vjp", vjp_by_autograd),
    ("soft_argmax_vjp", vjp_row_by_row),
    ("heat_map_peak", peak_by_library),
    ("heat_map_peak", peak_by_marginals),
    ("sharp_enough", limit),
    ("sharp_enough", sharp_by_bisection),
    ("sharp_enough", lambda x, tolerance: torch.tensor(limit(x, tolerance) * (1 - 1e-9), dtype=D)),
    ("local_soft_argmax", local_by_mask),
    ("local_soft_argmax", local_by_slice),
    ("straight_through_bias", bias_by_formula),
    ("straight_through_bias", bias_by_enumeration),
    ("first_two", two_by_rows),
    ("first_two", two_by_mask),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{name}-{n}" for n, (name, _) in enumerate(RIGHT)])
def test_every_right_answer_passes(name: str, answer: Callable[..., Any]) -> None:
    for _ in range(3):
        assert getattr(exercises, name)(answer).startswith("right: ")


def test_every_exercise_has_a_right_answer_here() -> None:
    assert {name for name, _ in RIGHT} == set(exercises.__all__)


# --- mistakes -------------------------------------------------------------------------------------


def vjp_with(weights_at: float, factor: bool, centre: bool) -> Callable[..., Tensor]:
    """The vjp at temperature t, with the weights at temperature t ** weights_at."""

    def vjp(x: Tensor, t: float, g: Tensor) -> Tensor:
        p = torch.softmax(t**weights_at * x, 1)
        s = (p @ index(x))[:, None] if centre else 0
        return (t if factor else 1) * p * (index(x) - s) * g[:, None]

    return vjp


def unweighted(x: Tensor, t: float, g: Tensor) -> Tensor:
    return t * (index(x) - (torch.softmax(t * x, 1) @ index(x))[:, None]) * g[:, None]


def means(p: Tensor) -> Tensor:
    return torch.stack([p.sum(1) @ index(p.T), p.sum(0) @ index(p)])


def hard_peak(x: Tensor, t: float) -> Tensor:
    return torch.tensor(divmod(int(x.argmax()), x.shape[1]), dtype=D)


def overflowing(x: Tensor, t: float) -> Tensor:
    powers = (t * x).exp()
    return means(powers / powers.sum())


def largest_gap(x: Tensor, tolerance: float) -> float:
    top, second = x.topk(2).values
    return limit(x, tolerance) * float((top - second) / (top - x.min()))


def gap(x: Tensor) -> float:
    top, second = x.topk(2).values
    return float(top - second)


def local(widen: int = 0, filler: float = -math.inf, last: bool = False, sharp: bool = True) -> Callable[..., Tensor]:
    def answer(x: Tensor, radius: int, t: float) -> Tensor:
        best = len(x) - 1 - x.flip(0).argmax() if last else x.argmax()
        far = (index(x) - best).abs() > radius + widen
        return torch.softmax((t * x if sharp else x).masked_fill(far, filler), 0) @ index(x)

    return answer


def local_not_normalised(x: Tensor, radius: int, t: float) -> Tensor:
    far = (index(x) - x.argmax()).abs() > radius
    return torch.softmax(t * x, 0).masked_fill(far, 0) @ index(x)


def local_from_its_own_0(x: Tensor, radius: int, t: float) -> Tensor:
    return local_by_slice(x, radius, t) - max(int(x.argmax()) - radius, 0)


def bias_with(Q_of: Callable[[Tensor], Tensor], half: float = 0.5, sharp: bool = True) -> Callable[..., Tensor]:
    def bias(x: Tensor, t: float, Q: Tensor) -> Tensor:
        Q, p = Q_of(Q), torch.softmax(t * x if sharp else x, 0)
        b = Q @ p - half * Q.diagonal()
        return t * p * (b - p @ b)

    return bias


def half_sum(Q: Tensor) -> Tensor:
    return (Q + Q.T) / 2


def bias_without_jacobian(x: Tensor, t: float, Q: Tensor) -> Tensor:
    return half_sum(Q) @ torch.softmax(t * x, 0) - Q.diagonal() / 2


def pairs(x: Tensor) -> Tensor:
    p = torch.softmax(x, 0)
    return torch.outer(p, p)


def pairs_that_differ(x: Tensor) -> Tensor:
    return pairs(x).fill_diagonal_(0)


def by_quotient(x: Tensor) -> Tensor:
    p = torch.softmax(x, 0)
    return (torch.outer(p, p) / (1 - p)[:, None]).fill_diagonal_(0)


MISTAKES: list[tuple[str, Callable[..., Any], str]] = [
    ("soft_argmax_vjp", vjp_with(1, False, True), "the temperature is missing as a factor"),
    (
        "soft_argmax_vjp",
        vjp_with(0, True, True),
        "the temperature is missing in the weights",
    ),
    ("soft_argmax_vjp", vjp_with(1, True, False), "stay in proportion"),
    ("soft_argmax_vjp", lambda x, t, g: soft_argmax_jacobian(x, t), "the upstream gradient is missing"),
    ("soft_argmax_vjp", unweighted, "the weights are missing as a factor"),
    ("soft_argmax_vjp", lambda *a: -vjp_by_formula(*a), "the sign is wrong"),
    ("heat_map_peak", lambda x, t: peak_by_library(x, t).flip(0), "the row comes first"),
    ("heat_map_peak", lambda x, t: peak_by_library(x, t) + 1, "count from 0"),
    ("heat_map_peak", lambda x, t: peak_by_library(x, 1.0), "the temperature is missing"),
    ("heat_map_peak", lambda x, t: means(torch.softmax(t * x, 1)), "of each row sum to 1"),
    ("heat_map_peak", lambda x, t: means(torch.softmax(t * x, 0)), "of each column sum to 1"),
    ("heat_map_peak", hard_peak, "the hard argmax"),
    ("heat_map_peak", lambda x, t: peak_by_library(x, t) / x.numel(), "divide by no size"),
    ("heat_map_peak", overflowing, "at large scores(?s:.*)NaN"),
    ("sharp_enough", lambda x, tolerance: limit(x, tolerance) * gap(x) ** 2, "do not multiply"),
    ("sharp_enough", lambda x, tolerance: limit(x, tolerance) * gap(x), "the gap is missing"),
    ("sharp_enough", largest_gap, "the least gap counts"),
    ("sharp_enough", lambda x, tolerance: limit(x, 0.5), "the tolerance is missing"),
    ("sharp_enough", lambda x, tolerance: 2 * limit(x, tolerance), "sharper than the bound"),
    ("sharp_enough", lambda x, tolerance: -limit(x, tolerance), "wrong sign"),
    ("sharp_enough", lambda x, tolerance: math.nan, "not yet"),
    ("local_soft_argmax", lambda x, radius, t: soft_argmax(x, temperature=t), "outside the window are not 0"),
    ("local_soft_argmax", local(widen=1), "one too wide"),
    ("local_soft_argmax", local(widen=-1), "one too narrow"),
    ("local_soft_argmax", local_not_normalised, "must sum to 1"),
    ("local_soft_argmax", local(filler=0.0), "a score of 0"),
    ("local_soft_argmax", local_from_its_own_0, "from the first index of the window"),
    ("local_soft_argmax", local(last=True), "around the first of the largest"),
    ("local_soft_argmax", local(sharp=False), "the temperature is missing"),
    ("local_soft_argmax", lambda x, radius, t: local_by_mask(x, radius, t).detach(), "does not require grad"),
    ("straight_through_bias", bias_with(lambda Q: Q), "takes it as if it were"),
    ("straight_through_bias", bias_with(lambda Q: Q.T), "transposed"),
    ("straight_through_bias", bias_with(half_sum, half=1.0), "the half is missing"),
    ("straight_through_bias", bias_with(half_sum, half=0.0), "the true gradient is missing"),
    ("straight_through_bias", lambda x, t, Q: bias_by_formula(x, t, Q) / t, "missing as a factor"),
    ("straight_through_bias", bias_with(half_sum, sharp=False), "missing in the weights"),
    ("straight_through_bias", bias_without_jacobian, "the Jacobian of softmax is missing"),
    ("straight_through_bias", lambda *a: -bias_by_formula(*a), "the other way round"),
    ("first_two", pairs, "two winners can be the same"),
    ("first_two", pairs_that_differ, "the rest grows"),
    ("first_two", lambda x: pairs_that_differ(x) / pairs_that_differ(x).sum(), "happen to differ"),
    ("first_two", lambda x: two_by_rows(x).T, "the other way round"),
    ("first_two", lambda x: two_by_rows(x) / torch.softmax(x, 0)[:, None], "given the first"),
    ("first_two", by_quotient, "where one score is far above"),
]


@pytest.mark.parametrize(
    ("name", "answer", "said"), MISTAKES, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(MISTAKES)]
)
def test_every_mistake_fails_and_is_named(name: str, answer: Callable[..., Any], said: str) -> None:
    assert_named(getattr(exercises, name), answer, said)


def test_every_mistake_that_a_checker_knows_is_tried_here() -> None:
    assert_all_tried(exercises, MISTAKES)


def test_the_probabilities_of_the_first_two_are_those_of_sorted_noise() -> None:
    """The exercise *Who comes second*, against draws."""
    x, count = torch.tensor([0.5, -0.3, 1.0], dtype=D), 100_000
    wanted = two_by_rows(x)
    assert wanted.sum().item() == pytest.approx(1)
    u = torch.rand(count, 3, dtype=D, generator=torch.Generator().manual_seed(0))
    order = (x - (-u.log()).log()).argsort(1, descending=True)
    for i, j in itertools.permutations(range(3), 2):
        share = ((order[:, 0] == i) & (order[:, 1] == j)).double().mean()
        assert abs(share - wanted[i, j]) < 4.5 * math.sqrt(0.25 / count)


# --- blanks, reports and hints --------------------------------------------------------------------


@pytest.mark.parametrize("name", exercises.__all__)
def test_neither_hints_nor_reports_hold_the_code_of_a_solution(name: str) -> None:
    codes = ("torch.", "masked_fill", "-inf", "softmax(", "math.", "(index", "log(", "/ (1 - p")
    assert_hidden(getattr(exercises, name), torch.tensor(0.0), codes)


@pytest.mark.parametrize("name", exercises.__all__)
def test_an_answer_that_writes_into_its_arguments_is_compared_with_what_it_was_given(name: str) -> None:
    right = dict(reversed(RIGHT))[name]
    assert_safe_from_writing(getattr(exercises, name), right)
