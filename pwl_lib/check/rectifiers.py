"""Checkers of the exercises of the chapter *Rectifiers*."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pwl_lib.check._exercise import Case, exercise, near, random_tensor

__all__ = [
    "diode",
    "n_plus_one_units",
    "phases",
    "prelu_weight_grad",
    "relu_form",
    "relu_from_leaky",
    "relu_vjp",
]

_random = random.SystemRandom()


@exercise(
    hint="The Jacobian is diagonal. What is its entry where x is positive, and where x is negative?",
    more="Nothing but the mask of x is needed. It is the sign of x that decides, not the sign of what comes from upstream.",
)
def relu_vjp() -> Iterator[Case]:
    """The gradient before a ReLU, from its input and the gradient after it; at 0 any valid subgradient."""
    for shape in ((5,), (2, 3), (4,)):
        # All four combinations of signs occur, so that no two mistakes look alike.
        size = math.prod(shape)
        order = torch.tensor(_random.sample(range(size), size))
        x, upstream = (
            ((random_tensor(size).abs() + 0.1) * (torch.arange(size) // step % 2 * 2 - 1))[order].reshape(shape)
            for step in (1, 2)
        )
        yield Case((x, upstream), torch.where(x > 0, upstream, 0), mistakes=_vjp_mistakes(x, upstream))
    x = torch.tensor([0.0, 0.0, 0.0, -1.0, 2.0], dtype=torch.float64)
    upstream = (random_tensor(5).abs() + 0.1) * torch.tensor([1, -1, 1, 1, -1])
    yield Case(
        (x, upstream),
        "0 where x < 0, upstream where x > 0, anything from 0 to upstream where x = 0",
        accept=lambda value: _is_relu_vjp(value, x, upstream),
        mistakes=_vjp_mistakes(x, upstream),
        where="at the kink x = 0",
    )


def _vjp_mistakes(x: Tensor, upstream: Tensor) -> dict[str, Any]:
    return {
        "the mask is missing": upstream,
        "the upstream gradient is missing: that is the mask alone": (x > 0).double(),
        "the mask is made of the upstream gradient; it must be made of x": upstream.clamp(min=0),
        "multiplied by relu(x) instead of by its slope": x.clamp(min=0) * upstream,
    }


def _is_relu_vjp(value: Any, x: Tensor, upstream: Tensor) -> bool:
    value = torch.as_tensor(value, dtype=torch.float64)
    low = torch.where(x > 0, upstream, torch.where(x < 0, 0, upstream.clamp(max=0)))
    high = torch.where(x > 0, upstream, torch.where(x < 0, 0, upstream.clamp(min=0)))
    return value.shape == x.shape and bool(((value >= low - 1e-9) & (value <= high + 1e-9)).all())


@exercise(
    hint="Write PReLU as relu(x) + alpha * min(0, x). Which part knows alpha?",
    more="The derivative of each output in its alpha is min(0, x). One alpha serves every sample and place of its channel: "
    "what do contributions to one variable do?",
)
def prelu_weight_grad() -> Iterator[Case]:
    """The gradient of PReLU in its slopes, one for each channel."""
    for shape in ((3, 2, 4), (2, 1, 5), (1, 3, 2)):
        yield _prelu_case(random_tensor(*shape), "at a random input")
    x = random_tensor(3, 2, 4)
    yield _prelu_case(torch.where(x > 0.5, x, 0.0), "where no input is negative and many are 0")
    yield _prelu_case(random_tensor(0, 2, 4), "at an empty batch")


def _prelu_case(x: Tensor, where: str) -> Case:
    upstream = random_tensor(*x.shape)
    parts = upstream * x.clamp(max=0)
    wanted = parts.sum((0, 2))
    wrong = {
        "the sum runs over the channels too: each has its own slope": parts.sum(),
        "a mean over samples and places where a sum was wanted": parts.mean((0, 2)) if len(x) else wanted + 1,
        "summed over the batch alone: all places of a channel share its slope": parts.sum(0),
        "that is the positive part: the slope acts where x is negative": (upstream * x.clamp(min=0)).sum((0, 2)),
        "the upstream gradient is missing": x.clamp(max=0).sum((0, 2)),
        "that is the slope's mask; the derivative in the slope is the input itself": (upstream * (x < 0)).sum((0, 2)),
    }
    # A mistake that does no harm at this input is none here.
    return Case((x, upstream), wanted, mistakes={k: v for k, v in wrong.items() if not near(v, wanted)}, where=where)


@exercise(
    hint="Left of every breakpoint all the ReLUs are 0. What is left of the formula there?",
    more="Passing a breakpoint from left to right switches one ReLU on. By how much does the slope of f change there?",
)
def relu_form() -> Iterator[Case]:
    """A piecewise linear function of one variable as an affine function plus one ReLU for each breakpoint."""
    for n in (1, 2, 5):
        yield _form_case(*_random_cpwl(n), "at a random function")
    breakpoints, slopes, value = _random_cpwl(3)
    slopes[2] = slopes[1]
    yield _form_case(breakpoints, slopes, value, "where one breakpoint is no kink")


def _random_cpwl(n: int) -> tuple[Tensor, Tensor, float]:
    breakpoints = random_tensor(n) + 3 * torch.arange(n, dtype=torch.float64)
    return breakpoints.sort().values, random_tensor(n + 1), float(random_tensor(1))


def _form_case(breakpoints: Tensor, slopes: Tensor, value: float, where: str) -> Case:
    a, jumps = float(slopes[0]), slopes.diff()
    c = value - a * float(breakpoints[0])
    return Case(
        (breakpoints, slopes, value),
        (a, c, jumps),
        mistakes={
            "the weights are the slopes themselves; they must be the changes of slope": (a, c, slopes[1:]),
            "the constant is the value at the first breakpoint; it must be the value of the affine part at 0": (
                a,
                value,
                jumps,
            ),
            "the weights have the wrong sign": (a, c, -jumps),
        },
        where=where,
    )


@exercise(
    hint="Look at z = 1 and at z = -1. Two numbers are sought, and that gives two equations.",
    more="At z = -1 the two terms must cancel. That fixes one of the numbers as a multiple of the other.",
)
def relu_from_leaky() -> Iterator[Case]:
    """ReLU made of two leaky ReLUs: the weights of g(z) and of g(-z)."""
    for low, high in ((0.01, 0.9), (1.1, 3.0), (-0.9, -0.1)):
        yield _leaky_case(_random.uniform(low, high), "at a random slope")
    yield _leaky_case(0.0, "at alpha = 0, where g is ReLU itself")


def _leaky_case(alpha: float, where: str) -> Case:
    scale = 1 / (1 - alpha**2)
    wrong = {
        "the two terms do not cancel for negative z: look at their signs": (scale, -alpha * scale),
        "that gives the absolute value": (1 / (1 - alpha), 1 / (1 - alpha)),
        "the shape is right, and the size is not: at z = 1 the sum must be 1": (1.0, alpha),
        "the two weights are exchanged: that gives relu(-z)": (alpha * scale, scale),
    }
    wanted = (scale, alpha * scale)
    return Case((alpha,), wanted, mistakes={k: v for k, v in wrong.items() if not near(v, wanted)}, where=where)


@exercise(
    hint="Tabulate the ripple of 2, 3, 4, 5, 6 phases. Is it a falling sequence?",
    more="What counts is the number of pulses in one period, which is not always the number of phases.",
)
def phases() -> Iterator[Case]:
    """The least number of phases, two or more, whose rectified sum has at most a given ripple."""
    for least in (2, 3, 5, *_random.sample(range(7, 42, 2), 3)):
        # Between the ripple of this number and the least ripple of all smaller ones, well away from both.
        best_before = min((_ripple(n) for n in range(2, least)), default=3.0)
        share = _random.uniform(0.3, 0.7)
        bound = _ripple(least) ** share * best_before ** (1 - share)
        even = next(n for n in range(2, 1000, 2) if _ripple(n) <= bound)
        absolute = next(n for n in range(2, 100_000) if _ripple(n) * n / math.pi <= bound)
        wrong = {
            "that is the least even number: odd ones count too": even,
            "the ripple is relative: divide the peak-to-peak value by the mean": absolute,
            "that is the number of pulses in a period, not the number of phases": math.lcm(2, least),
            "one phase too many": least + 1,
        }
        yield Case(
            (bound,), least, mistakes={k: v for k, v in wrong.items() if v != least}, where="at a random tolerance"
        )


def _ripple(n: int) -> float:
    pulses = math.lcm(2, n)
    return math.pi / pulses * math.tan(math.pi / (2 * pulses))


@exercise(
    hint="The same current runs through diode and resistor, and their voltages add up to v. Which unknown keeps every term finite?",
    more="With V the voltage of the resistor, V + V_T ln(1 + V / (R I_s)) grows with V. "
    "A growing function can be bisected, or solved by Newton.",
)
def diode() -> Iterator[Case]:
    """The voltage at the resistor behind a Shockley diode, for any input voltage."""
    moderate = tuple(_random.uniform(0.5, 2.0) for _ in range(3))
    silicon = (1000.0, 1e-12, 0.02585)
    for v, (resistance, current, thermal), where in (
        (3 * random_tensor(5), moderate, "at random voltages"),
        (torch.zeros(1, dtype=torch.float64), moderate, "at 0 volts"),
        (2 * random_tensor(5), silicon, "for a silicon diode"),
        (torch.tensor([30.0, 300.0, -300.0], dtype=torch.float64), silicon, "where the exponential overflows"),
    ):
        wanted = _resistor_voltage(v, resistance * current, thermal)
        wrong = {
            "that is the current: multiply it by the resistance": wanted / resistance,
            "that is the voltage of the diode; the resistor has the rest": v - wanted,
            "that is the ideal diode": v.clamp(min=0),
            "that is softplus": thermal * torch.nn.functional.softplus(v / thermal),
            "the saturation current is missing: without it the voltage at 0 is not 0": wanted + resistance * current,
        }
        yield Case(
            (v, resistance, current, thermal),
            wanted,
            mistakes={k: w for k, w in wrong.items() if not near(w, wanted)},
            where=where,
        )


def _resistor_voltage(v: Tensor, leak: float, thermal: float) -> Tensor:
    """Bisection between -leak, where the logarithm falls to minus infinity, and the ideal diode."""
    low, high = torch.full_like(v, -leak), v.clamp(min=0)
    for _ in range(200):
        middle = (low + high) / 2
        above = middle + thermal * torch.log1p(middle / leak) > v
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


@exercise(
    hint="A ReLU may also look to the left: relu(b - x) is 0 on the right of b. What is f left of its first breakpoint?",
    more="Start at the first breakpoint: the constant is the value there. One unit goes down to the left, one to the right; every further "
    "breakpoint costs one.",
)
def n_plus_one_units() -> Iterator[Case]:
    """A piecewise linear function with n breakpoints as a constant plus n + 1 ReLUs, without a linear term."""
    for n in (1, 2, 5):
        breakpoints, slopes, value = _random_cpwl(n)
        yield _units_case(breakpoints, slopes, value, "at a random function")
    breakpoints, slopes, value = _random_cpwl(2)
    yield _units_case(breakpoints, torch.ones_like(slopes), value, "at a function without a kink")


def _units_case(breakpoints: Tensor, slopes: Tensor, value: float, where: str) -> Case:
    span = torch.linspace(float(breakpoints[0]) - 5, float(breakpoints[-1]) + 5, 41, dtype=torch.float64)
    x = torch.cat([span, breakpoints])
    left = (breakpoints[0] - x).clamp(min=0)
    wanted = value - slopes[0] * left + slopes[1] * (x - breakpoints[0]).clamp(min=0)
    wanted = wanted + (x[:, None] - breakpoints[1:]).clamp(min=0) @ slopes[1:].diff()

    def accept(answer: Any) -> bool:
        constant, *units = (torch.as_tensor(part, dtype=torch.float64) for part in answer)
        w, a, b = units
        if constant.dim() != 0 or any(part.shape != slopes.shape for part in units):
            return False
        return near(constant + torch.relu(x[:, None] * a + b) @ w, wanted)

    first = breakpoints[:1]
    a = torch.cat([-first.new_ones(1), torch.ones_like(breakpoints)])
    b = torch.cat([first, -breakpoints])
    w = torch.cat([-slopes[:1], slopes[1:2], slopes[1:].diff()])
    flipped = torch.cat([-w[:1], w[1:]])
    jump = torch.cat([w[:1], slopes[1:2] - slopes[:1], w[2:]])
    wrong = {
        "the unit that looks to the left has the wrong sign": (value, flipped, a, b),
        "to the right of the first breakpoint the slope starts from 0, not from the slope on the left": (
            value,
            jump,
            a,
            b,
        ),
    }
    return Case(
        (breakpoints, slopes, value),
        f"(c, w, a, b) with {len(slopes)} units, and c + sum of w * relu(a * x + b) equal to f",
        accept=accept,
        mistakes={k: v for k, v in wrong.items() if not accept(v)},
        where=where,
    )
