"""The checkers of the exercises on rectifiers: every right answer passes, every known mistake is named, a blank says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from answers import assert_all_tried, assert_hidden, assert_named, assert_safe_from_writing
from torch import Tensor

from pwl_lib import check, rectifiers

exercises = check.rectifiers


def blank(*arguments: Any) -> Any:
    raise NotImplementedError("your answer here")


# --- right answers --------------------------------------------------------------------------------


def ripple(n: int) -> float:
    low, high = rectifiers.ripple_bounds(n)
    return (high - low) * math.pi / n


def phases_by_tangent(bound: float) -> int:
    n = 2
    while math.pi / (pulses := math.lcm(2, n)) * math.tan(math.pi / (2 * pulses)) > bound:
        n += 1
    return n


def phases_by_measuring(bound: float) -> int:
    t = torch.linspace(0, 2 * math.pi, 5_041, dtype=torch.float64)
    for n in range(2, 100):
        wave = rectifiers.phase_sum(t, n)
        if (wave.max() - wave.min()) / wave[:-1].mean() <= bound:
            return n
    raise ValueError


def diode_by_newton(v: Tensor, resistance: float, current: float, thermal: float) -> Tensor:
    """Newton for y = ln(1 + V / s), in which every term stays finite."""
    s = resistance * current
    y = torch.where(v > 0, torch.log1p(v.clamp(min=0) / s), v / thermal)
    for _ in range(400):
        y = y - (s * y.expm1() + thermal * y - v) / (s * y.exp() + thermal)
    return s * y.expm1()


def units(breakpoints: Tensor, slopes: Tensor, value: float) -> tuple[Any, Tensor, Tensor, Tensor]:
    first = breakpoints[:1]
    a = torch.cat([-torch.ones(1), torch.ones(len(breakpoints))])
    return value, torch.cat([-slopes[:1], slopes[1:2], slopes[1:].diff()]), a, torch.cat([first, -breakpoints])


def units_mirrored(breakpoints: Tensor, slopes: Tensor, value: float) -> tuple[Any, ...]:
    """Begins at the last breakpoint and goes to the left, with units of other sizes."""
    mirrored_value = value + float((slopes[1:-1] * breakpoints.diff()).sum())
    c, w, a, b = units(-breakpoints.flip(0), -slopes.flip(0), mirrored_value)
    return c, w / 2, -2 * a, 2 * b


RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("relu_vjp", lambda x, u: torch.where(x > 0, u, 0)),
    ("relu_vjp", lambda x, u: u * (x >= 0)),
    ("relu_vjp", lambda x, u: u * torch.heaviside(x, torch.tensor(0.5, dtype=x.dtype))),
    ("relu_vjp", lambda x, u: torch.where(x == 0, torch.rand_like(u) * u, u * (x > 0))),
    ("prelu_weight_grad", lambda x, u: (u * x.clamp(max=0)).sum((0, 2))),
    ("prelu_weight_grad", lambda x, u: -torch.einsum("ncl,ncl->c", u, torch.relu(-x))),
    ("relu_form", lambda t, s, v: (s[0], v - s[0] * t[0], s.diff())),
    ("relu_form", lambda t, s, v: [float(s[0]), float(v - s[0] * t[0]), (s[1:] - s[:-1]).tolist()]),
    ("relu_from_leaky", lambda alpha: (1 / (1 - alpha**2), alpha / (1 - alpha**2))),
    (
        "relu_from_leaky",
        lambda alpha: torch.linalg.solve(torch.tensor([[1, -alpha], [-alpha, 1.0]]), torch.tensor([1.0, 0.0])).tolist(),
    ),
    ("phases", phases_by_tangent),
    ("phases", phases_by_measuring),
    ("diode", lambda v, r, i, t: rectifiers.diode(v, r, i, t)),
    ("diode", diode_by_newton),
    ("n_plus_one_units", units),
    ("n_plus_one_units", units_mirrored),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{name}-{n}" for n, (name, _) in enumerate(RIGHT)])
def test_every_right_answer_passes(name: str, answer: Callable[..., Any]) -> None:
    for _ in range(3):  # the inputs are fresh each time
        assert getattr(exercises, name)(answer).startswith("right: ")


# --- mistakes -------------------------------------------------------------------------------------


def least_even(bound: float) -> int:
    return next(n for n in range(2, 1000, 2) if ripple(n) <= bound)


def least_by_swing(bound: float) -> int:
    return next(n for n in range(2, 10**5) if ripple(n) * n / math.pi <= bound)


def literal_diode(v: Tensor, resistance: float, current: float, thermal: float) -> Tensor:
    """The formula with Lambert's W, by Newton on w + ln w = ln y, where y overflows."""
    y = resistance * current / thermal * ((v + resistance * current) / thermal).exp()
    return thermal * rectifiers.wright_omega(y.log()) - resistance * current


def change(part: int, by: Callable[[Any], Any]) -> Callable[..., Any]:
    """The right form with one of its parts changed."""

    def answer(t: Tensor, s: Tensor, v: float) -> Any:
        form = [s[0], v - s[0] * t[0], s.diff()]
        form[part] = by((t, s, v))
        return tuple(form)

    return answer


def flipped_left_unit(t: Tensor, s: Tensor, v: float) -> Any:
    c, w, a, b = units(t, s, v)
    return c, torch.cat([-w[:1], w[1:]]), a, b


def jump_at_the_first(t: Tensor, s: Tensor, v: float) -> Any:
    c, w, a, b = units(t, s, v)
    return c, torch.cat([w[:1], s[1:2] - s[:1], w[2:]]), a, b


def one_unit_more(t: Tensor, s: Tensor, v: float) -> Any:
    one = torch.ones(1, dtype=t.dtype)
    w = torch.cat([s[:1], -s[:1], s.diff()])
    a, b = torch.cat([one, -one, torch.ones_like(t)]), torch.cat([0 * one, 0 * one, -t])
    return v - s[0] * t[0], w, a, b


MISTAKES: list[tuple[str, Callable[..., Any], str]] = [
    ("relu_vjp", lambda x, u: u, "the mask is missing"),
    ("relu_vjp", lambda x, u: (x > 0).double(), "the upstream gradient is missing"),
    ("relu_vjp", lambda x, u: u.clamp(min=0), "made of the upstream gradient"),
    ("relu_vjp", lambda x, u: torch.relu(x) * u, "instead of by its slope"),
    ("relu_vjp", lambda x, u: -u * (x > 0), "the sign is wrong"),
    ("relu_vjp", lambda x, u: torch.where(x == 0, 2 * u, u * (x > 0)), "at the kink x = 0"),
    ("relu_vjp", lambda x, u: torch.where(x == 0, -u, u * (x > 0)), "at the kink x = 0"),
    # out of the interval on one side alone, for upstream gradients of one sign alone
    ("relu_vjp", lambda x, u: torch.where((x == 0) & (u > 0), -u / 2, u * (x > 0)), "at the kink x = 0"),
    ("relu_vjp", lambda x, u: torch.where((x == 0) & (u > 0), 2 * u, u * (x > 0)), "at the kink x = 0"),
    ("relu_vjp", lambda x, u: torch.where((x == 0) & (u < 0), -u / 2, u * (x > 0)), "at the kink x = 0"),
    ("relu_vjp", lambda x, u: torch.where((x == 0) & (u < 0), 2 * u, u * (x > 0)), "at the kink x = 0"),
    ("relu_vjp", lambda x, u: u * x / x.clamp(min=0), "NaN|came:.*inf"),
    ("relu_vjp", lambda x, u: (u * (x > 0)).flatten()[:1], "the shape is"),
    ("prelu_weight_grad", lambda x, u: (u * x.clamp(max=0)).sum(), "runs over the channels too"),
    ("prelu_weight_grad", lambda x, u: (u * x.clamp(max=0)).mean((0, 2)), "a mean over samples and places"),
    ("prelu_weight_grad", lambda x, u: (u * x.clamp(max=0)).sum(0), "summed over the batch alone"),
    ("prelu_weight_grad", lambda x, u: (u * x.clamp(min=0)).sum((0, 2)), "the positive part"),
    ("prelu_weight_grad", lambda x, u: x.clamp(max=0).sum((0, 2)), "the upstream gradient is missing"),
    ("prelu_weight_grad", lambda x, u: (u * (x < 0)).sum((0, 2)), "the slope's mask"),
    ("prelu_weight_grad", lambda x, u: (u * torch.relu(-x)).sum((0, 2)), "the sign is wrong"),
    ("relu_form", change(2, lambda f: f[1][1:]), "the weights are the slopes themselves"),
    ("relu_form", change(1, lambda f: f[2]), "the constant is the value at the first breakpoint"),
    ("relu_form", change(2, lambda f: -f[1].diff()), "the weights have the wrong sign"),
    ("relu_form", change(2, lambda f: f[1]), "not yet"),
    ("relu_from_leaky", lambda a: (1 / (1 - a**2), -a / (1 - a**2)), "do not cancel"),
    ("relu_from_leaky", lambda a: (1 / (1 - a), 1 / (1 - a)), "that gives the absolute value"),
    ("relu_from_leaky", lambda a: (1.0, a), "at z = 1 the sum must be 1"),
    ("relu_from_leaky", lambda a: (a / (1 - a**2), 1 / (1 - a**2)), "exchanged"),
    ("phases", least_even, "the least even number"),
    ("phases", least_by_swing, "divide the peak-to-peak value by the mean"),
    ("phases", lambda bound: math.lcm(2, phases_by_tangent(bound)), "the number of pulses|the least even number"),
    ("phases", lambda bound: phases_by_tangent(bound) + 1, "one phase too many|the least even number"),
    ("diode", lambda v, r, i, t: rectifiers.diode(v, r, i, t) / r, "that is the current"),
    ("diode", lambda v, r, i, t: v - rectifiers.diode(v, r, i, t), "the voltage of the diode"),
    ("diode", lambda v, r, i, t: v.clamp(min=0), "the ideal diode"),
    ("diode", lambda v, r, i, t: t * torch.nn.functional.softplus(v / t), "that is softplus"),
    ("diode", lambda v, r, i, t: rectifiers.diode(v, r, i, t) + r * i, "the saturation current is missing"),
    ("diode", literal_diode, "where the exponential overflows"),
    ("n_plus_one_units", flipped_left_unit, "looks to the left has the wrong sign"),
    ("n_plus_one_units", jump_at_the_first, "starts from 0"),
    ("n_plus_one_units", one_unit_more, "not yet"),
]


@pytest.mark.parametrize(
    ("name", "answer", "said"), MISTAKES, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(MISTAKES)]
)
def test_every_mistake_fails_and_is_named(name: str, answer: Callable[..., Any], said: str) -> None:
    assert_named(getattr(exercises, name), answer, said)


def test_every_mistake_that_a_checker_knows_is_tried_here() -> None:
    assert_all_tried(exercises, MISTAKES)


# --- blanks, reports and hints --------------------------------------------------------------------


@pytest.mark.parametrize("name", exercises.__all__)
def test_neither_hints_nor_reports_hold_the_code_of_a_solution(name: str) -> None:
    codes = ("torch.", ".diff(", ".clamp(", ".sum(", "where(", "math.", "1 - alpha**2", "log1p")
    assert_hidden(getattr(exercises, name), torch.tensor(0.0), codes)


@pytest.mark.parametrize("name", exercises.__all__)
def test_an_answer_that_writes_into_its_arguments_is_compared_with_what_it_was_given(name: str) -> None:
    right = dict(RIGHT)[name]
    assert_safe_from_writing(getattr(exercises, name), right)
