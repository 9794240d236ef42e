"""The checkers of the exercises on LogSumExp: every right answer passes, every known mistake is named, a blank says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from answers import assert_all_tried, assert_hidden, assert_named, assert_safe_from_writing
from torch import Tensor, nn

from pwl_lib import check
from pwl_lib.logsumexp import logsumexp, smooth, softmax

exercises = check.logsumexp


# --- right answers --------------------------------------------------------------------------------


def shifted(x: Tensor, t: float) -> Tensor:
    m = x.max()
    return m + (t * (x - m)).exp().sum().log() / t


def shifted_by_logaddexp(x: Tensor, t: float) -> Tensor:
    y = t * x[0]
    for entry in x[1:]:
        y = torch.logaddexp(y, t * entry)
    return y / t


def temperature(n: int, error: float, shifted: bool = False) -> float:
    return math.log(n) / error / (2 if shifted else 1)


def vjp(x: Tensor, t: float, upstream: Tensor) -> Tensor:
    m = x.amax(1, keepdim=True)
    m = torch.where(m.isinf(), 0, m)
    powers = (t * (x - m)).exp()
    total = powers.sum(1, keepdim=True)
    return upstream[:, None] * powers / torch.where(total == 0, 1, total)


def vjp_by_softmax(x: Tensor, t: float, upstream: Tensor) -> Tensor:
    return torch.softmax(t * x, 1).nan_to_num(0) * upstream[:, None]


def running(numbers: Iterator[float], t: float, *, rescale: bool = True) -> float:
    top, total = -math.inf, 0.0
    for number in numbers:
        if number > top:
            total *= math.exp(t * (top - number)) if rescale else 1
            top = number
        total += math.exp(t * (number - top))
    return top + math.log(total) / t if total else -math.inf


def pairwise(numbers: Iterator[float], t: float) -> float:
    y = -math.inf
    for number in numbers:
        low, high = sorted((y, number))
        y = high + math.log1p(math.exp(t * (low - high))) / t
    return y


def from_the_first(numbers: Iterator[float], t: float) -> float:
    shift = next(numbers, None)
    if shift is None:
        return -math.inf
    rest = torch.tensor([shift, *numbers], dtype=torch.float64)
    return (t * (rest - shift)).clamp(max=700).exp().sum().log().item() / t + shift


def quadratic(x: Tensor, mu: float) -> Tensor:
    d = x[:, 0] - x[:, 1]
    s = (d / (2 * mu)).clamp(-0.5, 0.5)
    return x.mean(1) + s * d - mu * (0.25 + s**2)


def quadratic_by_cases(x: Tensor, mu: float) -> Tensor:
    d = (x[:, 0] - x[:, 1]).abs()
    return torch.where(d < mu, x.mean(1) + d**2 / (4 * mu) - mu / 4, x.amax(1) - mu / 2)


def quadratic_by_search(x: Tensor, mu: float) -> Tensor:
    s = torch.linspace(-0.5, 0.5, 100001, dtype=torch.float64)
    d = x[:, :1] - x[:, 1:]
    return (x.mean(1, keepdim=True) + s * d - mu * (0.25 + s**2)).amax(1)


def bound(weights: list[Tensor], t: float) -> float:
    low = up = weights[0].new_zeros(len(weights[0]))
    for W in weights[1:]:
        up = torch.nn.functional.softplus(up, beta=t, threshold=1e3)
        plus, minus = W.clamp(min=0), W.clamp(max=0)
        low, up = plus @ low + minus @ up, plus @ up + minus @ low
    return max(-low.min().item(), up.max().item())


def bound_by_library(weights: list[Tensor], t: float) -> float:
    layers: list[nn.Module] = []
    for W in weights:
        layers += [nn.Linear(W.shape[1], W.shape[0]).double(), nn.ReLU()]
        layers[-2].weight = nn.Parameter(W.clone())
    return smooth(nn.Sequential(*layers[:-1]), t).bound


def bound_with(
    weights: list[Tensor],
    t: float,
    matrix: Callable[..., Any] | None = None,
    relu: Callable[[Tensor], Tensor] | None = None,
    end: Callable[[Tensor, Tensor], Tensor] = lambda low, up: torch.maximum(-low, up),
) -> float:
    """The same with a part exchanged."""
    low = up = weights[0].new_zeros(len(weights[0]))
    for W in weights[1:]:
        up = relu(up) if relu else logsumexp(torch.stack([0 * up, up]), 0, temperature=t)
        plus, minus = W.clamp(min=0), W.clamp(max=0)
        low, up = matrix(W, low, up) if matrix else (plus @ low + minus @ up, plus @ up + minus @ low)
    return end(low, up).max().item()


def identity(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("stable", shifted),
    ("stable", shifted_by_logaddexp),
    ("stable", lambda x, t: logsumexp(x, 0, temperature=t)),
    ("least_temperature", temperature),
    ("least_temperature", lambda n, e, shifted=False: torch.tensor(n).double().log() / ((1 + shifted) * e)),
    ("masked_vjp", vjp),
    ("masked_vjp", vjp_by_softmax),
    ("masked_vjp", lambda x, t, g: softmax(x, 1, temperature=t) * g[:, None]),
    ("point_of", lambda q, t: q.log() / t),
    ("point_of", lambda q, t: (q / q[0]).log() / t + 1000),
    ("network_bound", bound),
    ("network_bound", bound_by_library),
    ("network_bound", bound_with),
    ("one_pass", running),
    ("one_pass", pairwise),
    ("quadratic_maximum", quadratic),
    ("quadratic_maximum", quadratic_by_cases),
    ("quadratic_maximum", quadratic_by_search),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{name}-{n}" for n, (name, _) in enumerate(RIGHT)])
def test_every_right_answer_passes(name: str, answer: Callable[..., Any]) -> None:
    for _ in range(3):
        assert getattr(exercises, name)(answer).startswith("right: ")


def test_every_exercise_has_a_right_answer_here() -> None:
    assert {name for name, _ in RIGHT} == set(exercises.__all__)


# --- mistakes -------------------------------------------------------------------------------------


def free_quadratic(x: Tensor, mu: float) -> Tensor:
    s = (x[:, 0] - x[:, 1]) / (2 * mu)
    return x.mean(1) + s * (x[:, 0] - x[:, 1]) - mu * (0.25 + s**2)


def part_of_quadratic(x: Tensor, mu: float, constant: float, square: float) -> Tensor:
    d = x[:, 0] - x[:, 1]
    s = (d / (2 * mu)).clamp(-0.5, 0.5)
    return x.mean(1) + s * d - mu * (constant + square * s**2)


def uniform_where_masked(x: Tensor, t: float, g: Tensor) -> Tensor:
    p = torch.softmax(t * x, 1)
    return torch.where(p.isnan(), 1 / x.shape[1], p) * g[:, None]


def drained(of: Callable[[Tensor, float], Tensor]) -> Callable[..., float]:
    """An answer that makes a list of the numbers."""

    def answer(numbers: Iterator[float], t: float) -> float:
        listed = list(numbers)
        return of(torch.tensor(listed, dtype=torch.float64), t).item() if listed else -math.inf

    return answer


MISTAKES: list[tuple[str, Callable[..., Any], str]] = [
    ("stable", lambda x, t: (t * x).exp().sum().log() / t, "an exponential overflows"),
    ("stable", lambda x, t: torch.logsumexp(t * x, 0), "division by the temperature is missing"),
    ("stable", lambda x, t: shifted(x, 1 / t), "the temperature divides"),
    ("stable", lambda x, t: x.max(), "the maximum alone|division by the temperature is missing"),
    ("stable", lambda x, t: shifted(x, t) - math.log(len(x)) / t, "the logarithm of the mean|maximum alone"),
    ("stable", lambda x, t: shifted(x - x.max(), t), "not added again"),
    ("stable", lambda x, t: x.max() / t + shifted(x - x.max(), t), "before the division by the temperature"),
    ("least_temperature", lambda n, e, s=False: math.log2(n) / e, "the natural one"),
    ("least_temperature", lambda n, e, s=False: math.log(2) / e, "two numbers|without a shift"),
    ("least_temperature", lambda n, e, s=False: math.log(n) * e, "rises with the error allowed"),
    ("least_temperature", lambda n, e, s=False: math.log(max(n - 1, 1.5)) / e, "one of them leads|not yet"),
    ("least_temperature", lambda n, e, s=False: math.log(n) / e / 2, "that is the shifted one"),
    ("least_temperature", lambda n, e, s=False: math.log(n) / e, "that is without a shift"),
    ("least_temperature", lambda n, e, s=False: math.log(n) / e / (4 if s else 1), "halves the gap once"),
    ("masked_vjp", lambda x, t, g: t * vjp(x, t, g), "the factor t cancels"),
    ("masked_vjp", lambda x, t, g: vjp(x, 1.0, g), "the temperature is missing in the weights"),
    ("masked_vjp", lambda x, t, g: vjp(x, t, torch.ones_like(g)), "upstream gradient is missing"),
    ("masked_vjp", lambda x, t, g: torch.softmax(t * x, 0) * g[:, None], "wrong dimension"),
    ("masked_vjp", lambda x, t, g: (x == x.amax(1, keepdim=True)) * g[:, None], "gradient of the maximum"),
    ("masked_vjp", uniform_where_masked, "its gradient is 0"),
    ("masked_vjp", lambda x, t, g: torch.softmax(t * x, 1) * g[:, None], "it holds NaN"),
    ("point_of", lambda q, t: t * q.log(), "wrong side|not yet"),
    ("point_of", lambda q, t: q.log(), "the temperature is missing"),
    ("point_of", lambda q, t: q, "weights of q"),
    ("network_bound", lambda w, t: bound(w, 1.0), "the temperature is missing"),
    ("network_bound", lambda w, t: bound_with(w, t, lambda W, a, b: (W @ a, W @ b)), "takes the other end|not yet"),
    ("network_bound", lambda w, t: bound_with(w, t, end=lambda low, up: up), "gaps below 0 count|not yet"),
    ("network_bound", lambda w, t: bound_with(w, t, relu=lambda u: u + math.log(2) / t), "adds less than"),
    ("network_bound", lambda w, t: bound([identity(w[0].shape[1]), *w], t), "before the first matrix"),
    ("network_bound", lambda w, t: bound([*w, identity(len(w[-1]))], t), "after the last matrix|not yet"),
    ("one_pass", lambda numbers, t: running(numbers, t, rescale=False), "belongs to the old shift"),
    ("one_pass", drained(lambda x, t: torch.logsumexp(t * x, 0)), "division by the temperature is missing"),
    ("one_pass", lambda numbers, t: max(numbers, default=-math.inf), "the maximum alone"),
    ("one_pass", from_the_first, "overflows when a much larger one comes"),
    ("one_pass", lambda numbers, t: math.log(sum(math.exp(min(t * n, 700)) for n in numbers)) / t, "not yet"),
    ("one_pass", lambda numbers, t: running(iter([next(numbers), *numbers]), t), "StopIteration"),
    ("quadratic_maximum", free_quadratic, "between 0 and 1"),
    ("quadratic_maximum", lambda x, mu: part_of_quadratic(x, mu, 0, 0), "square of the weights is missing"),
    ("quadratic_maximum", lambda x, mu: part_of_quadratic(x, mu, 0, 1), "a constant is missing"),
    ("quadratic_maximum", lambda x, mu: quadratic(x, 2 * mu), "the half before mu is missing"),
    ("quadratic_maximum", lambda x, mu: x.amax(1), "that is the maximum"),
    ("quadratic_maximum", lambda x, mu: x.amax(1) - mu / 2, "near a tie the weights are shared"),
    ("quadratic_maximum", lambda x, mu: logsumexp(x, 1, temperature=1 / mu), "that is LogSumExp"),
]


@pytest.mark.parametrize(
    ("name", "answer", "said"), MISTAKES, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(MISTAKES)]
)
def test_every_mistake_fails_and_is_named(name: str, answer: Callable[..., Any], said: str) -> None:
    assert_named(getattr(exercises, name), answer, said)


def test_every_mistake_that_a_checker_knows_is_tried_here() -> None:
    assert_all_tried(exercises, MISTAKES)


def test_a_point_that_has_the_wrong_shape_is_no_point() -> None:
    with pytest.raises(check.WrongAnswer, match="x must have shape"):
        exercises.point_of(lambda q, t: (q.log() / t)[None])


# --- blanks, reports and hints --------------------------------------------------------------------


@pytest.mark.parametrize("name", exercises.__all__)
def test_neither_hints_nor_reports_hold_the_code_of_a_solution(name: str) -> None:
    codes = ("torch.", ".exp()", ".log()", ".max()", "math.", "clamp", "softmax(t", "log(n)", "ln n")
    assert_hidden(getattr(exercises, name), torch.tensor(0.125), codes)


@pytest.mark.parametrize("name", [name for name in exercises.__all__ if name != "one_pass"])
def test_an_answer_that_writes_into_its_arguments_is_compared_with_what_it_was_given(name: str) -> None:
    assert_safe_from_writing(getattr(exercises, name), dict(RIGHT)[name])


def test_the_report_of_one_pass_says_how_many_numbers_there_were() -> None:
    with pytest.raises(check.WrongAnswer, match="an iterator over 30 numbers"):
        exercises.one_pass(lambda numbers, t: sum(numbers))
