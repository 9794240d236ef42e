"""Checkers of the exercises of the chapter *LogSumExp*."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pwl_lib.check._exercise import Case, exercise, harmful, random_tensor
from pwl_lib.logsumexp import logsumexp, softmax

__all__ = ["least_temperature", "masked_vjp", "network_bound", "one_pass", "point_of", "quadratic_maximum", "stable"]

_random = random.SystemRandom()


def _temperature(low: float = 0.2, high: float = 5.0) -> float:
    """Away from 1, where a forgotten factor would not show."""
    t = math.exp(_random.uniform(math.log(low), math.log(high)))
    return t if abs(t - 1) > 0.2 else t + 0.7


@exercise(
    hint="For which shift of the numbers is no exponential larger than 1, and one of them equal to 1?",
    more="Numbers that are all shifted by c have a result that is shifted by c. Shift by the largest number, and back at the end.",
)
def stable() -> Iterator[Case]:
    """LogSumExp of a vector at a temperature, without overflow."""
    for size in (1, 3, 6):
        yield _value_case(random_tensor(size), _temperature(), "at random numbers")
    for shift in (1e4, -1e4, 1e300, -1e300):
        spread = random_tensor(4) * (1 if abs(shift) < 1e5 else 1e299)
        yield _value_case(spread + shift, _temperature(), "at numbers that are large in size")
    for t in (1e-3, 1e3):
        yield _value_case(random_tensor(4), t, "at extreme temperatures")


def _value_case(x: Tensor, t: float, where: str) -> Case:
    wanted = logsumexp(x, 0, temperature=t)
    naive = (t * x).exp().sum().log() / t
    wrong = {
        "an exponential overflows, or all of them are 0": naive if naive.isinf() else x.new_tensor(math.nan),
        "the division by the temperature is missing": (t * x).logsumexp(0),
        "the temperature divides; it must multiply": logsumexp(x, 0, temperature=1 / t),
        "that is the maximum alone": x.max(),
        "that is the logarithm of the mean: a sum was wanted": wanted - math.log(len(x)) / t,
        "the shift is not added again": wanted - x.max(),
        "the shift is added before the division by the temperature": x.max() / t + wanted - x.max(),
    }
    return Case((x, t), wanted, mistakes=harmful(wrong, wanted), where=where, tolerance=1e-9)


@exercise(
    hint="Which numbers have the largest gap, and what is it there? Which values does the gap take over all inputs?",
    more="Without a shift the gap fills an interval from 0 on. A constant moves the interval; where must its middle be?",
)
def least_temperature() -> Iterator[Case]:
    """The smallest temperature at which LogSumExp is near enough to the maximum, without and with a constant shift."""
    for n in (2, _random.randrange(3, 9), _random.randrange(20, 1000)):
        error = _random.uniform(0.01, 0.5)
        wanted = math.log(n) / error
        wrong = {
            "the logarithm is the natural one": math.log2(n) / error,
            "that is for the smallest n, two numbers": math.log(2) / error,
            "the gap falls with the temperature: yours rises with the error allowed": math.log(n) * error,
            "where are all n numbers? one of them leads in your estimate": math.log(n - 1) / error
            if n > 2
            else math.nan,
            "that is the shifted one": wanted / 2,
        }
        yield Case((n, error), wanted, mistakes=harmful(wrong, wanted), where="without a shift")
        wrong = {
            "that is without a shift: subtract half of the largest gap, and half of it remains": wanted,
            "the best shift halves the gap once": wanted / 4,
        }
        yield Case((n, error, True), wanted / 2, mistakes=harmful(wrong, wanted / 2), where="with a shift")


@exercise(
    hint="The weights of a row are not negative and add up to 1. What are the exponentials of a row of nothing but minus infinity?",
    more="Infinity minus infinity has no value: for a row without a finite entry shift by something finite, and do not divide by 0.",
)
def masked_vjp() -> Iterator[Case]:
    """The gradient in the rows of a matrix, some of whose entries are minus infinity."""
    for masked in (0, 3, 6):
        x, upstream, t = random_tensor(4, 5), random_tensor(4), _temperature()
        for place in _random.sample(range(20), masked):
            x[place // 5, place % 5] = -math.inf
        x[:, 0] = random_tensor(4)  # no row is masked whole
        yield _vjp_case(x, t, upstream, "at random numbers" if not masked else "with masked entries")
    yield _vjp_case(random_tensor(3, 4) + 2000, 3.0, random_tensor(3), "at large numbers")
    x = random_tensor(3, 4)
    x[1] = -math.inf
    yield _vjp_case(x, _temperature(), random_tensor(3), "with a row of nothing but minus infinity")


def _vjp_case(x: Tensor, t: float, upstream: Tensor, where: str) -> Case:
    p = softmax(x, 1, temperature=t)
    wanted = p * upstream[:, None]
    wrong = {
        "the factor t cancels": t * wanted,
        "the temperature is missing in the weights": softmax(x, 1) * upstream[:, None],
        "the upstream gradient is missing": p,
        "the sums run over the wrong dimension": softmax(x, 0, temperature=t) * upstream[:, None],
        "that is the gradient of the maximum: every entry of a row has a share": torch.where(
            x == x.amax(1, keepdim=True), upstream[:, None], 0
        ),
        "a row without a finite entry has no weights to share: its gradient is 0": torch.where(
            x.amax(1, keepdim=True).isinf(), upstream[:, None] / x.shape[1], wanted
        ),
    }
    return Case((x, t, upstream), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="Write down that weight i of softmax is q_i, and solve for x_i. What may be chosen freely?",
    more="Exponentials that add up to 1 are their own weights.",
)
def point_of() -> Iterator[Case]:
    """An input at which the gradient of LogSumExp is a given vector; any right one."""
    for size in (1, 2, 3, 6):
        q, t = torch.softmax(random_tensor(size).clamp(-2, 2), 0), _temperature(0.4, 2.0)
        wrong = {
            "a factor of the temperature is on the wrong side": softmax(q.log() * t, 0, temperature=t),
            "the temperature is missing": softmax(q.log(), 0, temperature=t),
            "those are the weights of q, not the point whose weights are q": softmax(q, 0, temperature=t),
        }
        yield Case(
            (q, t),
            q,
            mistakes=harmful(wrong, q),
            measure=functools.partial(_weights_at, size, t),
            where="(compared by the gradient at your point)",
        )


def _weights_at(size: int, t: float, value: Any) -> Tensor:
    x = torch.as_tensor(value, dtype=torch.float64).detach()
    if x.shape != (size,):
        raise ValueError(f"x must have shape {(size,)}, got {tuple(x.shape)}")
    return softmax(x, 0, temperature=t)


@exercise(
    hint="Carry two vectors from layer to layer, the least and the largest gap of each entry. What does a matrix do to them? And a ReLU?",
    more="An entry of a matrix that is negative takes the other end of the interval. A ReLU puts the largest gap through its smooth "
    "twin, and leaves the least one as it is.",
)
def network_bound() -> Iterator[Case]:
    """The certified bound of a smoothed ReLU network, from its matrices."""
    for sizes, where in (
        ((3, 4, 2), "with one layer of ReLUs"),
        ((2, 3, 3, 1), "with two layers of ReLUs"),
        ((2, 4, 3, 4, 2), "with three layers of ReLUs"),
    ):
        weights = [random_tensor(m, n) for n, m in itertools.pairwise(sizes)]
        t = _temperature()
        wanted = _bound(weights, t)
        wrong = {
            "the temperature is missing": _bound(weights, 1.0),
            "an entry that is negative takes the other end of the interval": _bound(weights, t, signs=False),
            "gaps below 0 count too: the sign of an output's gap may be either": _bound(weights, t, below=False),
            "a ReLU adds less than ln 2 / t to a gap that is positive": _bound(weights, t, add=True),
            "there is no ReLU before the first matrix": _bound([torch.eye(sizes[0]).double(), *weights], t),
            "there is no ReLU after the last matrix": _bound([*weights, torch.eye(sizes[-1]).double()], t),
        }
        yield Case((weights, t), wanted, mistakes=harmful(wrong, wanted), where=where, tolerance=1e-9)
    signs = [torch.tensor([[1.0]]), torch.tensor([[-2.0]])]
    yield Case(([w.double() for w in signs], 1.0), 2 * math.log(2), where="where the gap of the output is negative")
    flat = [torch.ones(2, 2).double()]
    yield Case((flat, 1.0), 0.0, where="without a ReLU")


def _bound(weights: list[Tensor], t: float, *, signs: bool = True, below: bool = True, add: bool = False) -> float:
    low = up = weights[0].new_zeros(len(weights[0]))
    for W in weights[1:]:
        zero = torch.zeros_like(up)
        up = up + math.log(2) / t if add else logsumexp(torch.stack([zero, up]), 0, temperature=t)
        if signs:
            plus, minus = W.clamp(min=0), W.clamp(max=0)
            low, up = plus @ low + minus @ up, plus @ up + minus @ low
        else:
            low, up = W @ low, W @ up
    ends = [up.max().item(), *([-low.min().item()] if below else [])]
    return max(ends)


class _Stream:
    """An iterator that can be read once, and is no list."""

    def __init__(self, numbers: list[float]) -> None:
        self.numbers, self.count = numbers, len(numbers)

    def __iter__(self) -> Iterator[float]:
        return self

    def __next__(self) -> float:
        if not self.numbers:
            raise StopIteration
        return self.numbers.pop(0)

    def __repr__(self) -> str:
        return f"an iterator over {self.count} numbers"


@exercise(
    hint="Keep the largest number so far, and the sum of the exponentials relative to it. What changes when a larger one comes?",
    more="The sum so far has to be brought to the new shift. That is one factor, and it is at most 1.",
)
def one_pass() -> Iterator[Case]:
    """LogSumExp of an iterator, in one pass."""
    mixed = random_tensor(30)
    yield _stream_case(mixed.tolist(), "at random numbers")
    for numbers, where in (
        (mixed.sort().values, "where the numbers rise"),
        (mixed.sort(descending=True).values, "where the numbers fall"),
        (mixed + 1e4, "at large numbers"),
        (mixed - 1e6, "at very negative numbers"),
        (torch.cat([mixed[:5], mixed[5:10] + 5000, mixed[10:]]), "where the largest comes in the middle"),
        (mixed[:1], "at one number"),
    ):
        yield _stream_case(numbers.tolist(), where)
    yield _call_case([], 2.0, -math.inf, {}, "where no number comes")


def _stream_case(numbers: list[float], where: str) -> Case:
    t, x = _temperature(), torch.tensor(numbers, dtype=torch.float64)
    wanted = logsumexp(x, 0, temperature=t).item()
    first = (t * (x - x[0])).clamp(max=700).exp().sum().log().item() / t + numbers[0]
    top, total = -math.inf, 0.0
    for number in numbers:
        top = max(top, number)
        total += math.exp(t * (number - top))
    wrong = {
        "when a larger number comes, the sum so far belongs to the old shift": top + math.log(total) / t,
        "the division by the temperature is missing": (t * x).logsumexp(0).item(),
        "that is the maximum alone": x.max().item(),
        "a shift by the first number overflows when a much larger one comes": first,
    }
    return _call_case(numbers, t, wanted, harmful(wrong, wanted), where)


def _call_case(numbers: list[float], t: float, wanted: float, wrong: dict[str, Any], where: str) -> Case:
    accept: Callable[[Any], bool] | None = None
    if not numbers:
        accept = lambda value: torch.as_tensor(value).shape == () and float(value) == -math.inf  # noqa: E731
    return Case((_Stream(list(numbers)), t), wanted, accept=accept, mistakes=wrong, where=where, tolerance=1e-9)


@exercise(
    hint="For n = 2 the weights are (1/2 + s, 1/2 - s). Which function of s is to be made large, and over which interval?",
    more="A parabola that opens downward is largest at its top, or, if the top lies outside, at the end of the interval nearest to it.",
)
def quadratic_maximum() -> Iterator[Case]:
    """The smooth maximum of two numbers that a square makes, in closed form."""
    for scale, where in ((0.3, "where the two numbers are near each other"), (10.0, "where they are far apart")):
        mu = _temperature()
        middle, half = random_tensor(6), (random_tensor(6).abs() * 0.3 + 0.1) * scale * mu * random_tensor(6).sign()
        if scale > 1:
            half = half + half.sign() * mu
        yield _quadratic_case(torch.stack([middle + half, middle - half], 1), mu, where)
    mu = _temperature()
    d = mu * torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    yield _quadratic_case(torch.stack([d, torch.zeros_like(d)], 1), mu, "at ties and at the ends of the interval")
    yield _quadratic_case(random_tensor(50, 2), _temperature(), "at random numbers")


def _quadratic_case(x: Tensor, mu: float, where: str) -> Case:
    d, mean = x[:, 0] - x[:, 1], x.mean(1)
    s = (d / (2 * mu)).clamp(-0.5, 0.5)
    wanted = mean + s * d - mu * (0.25 + s**2)
    free = d / (2 * mu)
    wrong = {
        "the weights must stay between 0 and 1": mean + free * d - mu * (0.25 + free**2),
        "the square of the weights is missing where both numbers have a part": mean + s * d,
        "a constant is missing: the squares of equal weights add up to 1/2": mean + s * d - mu * s**2,
        "the half before mu is missing": mean
        + (d / (4 * mu)).clamp(-0.5, 0.5) * d
        - mu * (0.5 + 2 * (d / (4 * mu)).clamp(-0.5, 0.5) ** 2),
        "that is the maximum": x.amax(1),
        "that is the maximum minus a constant: near a tie the weights are shared": x.amax(1) - mu / 2,
        "that is LogSumExp": logsumexp(x, 1, temperature=1 / mu),
    }
    return Case((x, mu), wanted, mistakes=harmful(wrong, wanted), where=where)
