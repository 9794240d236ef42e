"""Checkers of the exercises of the chapter *Argmax*."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pwl_lib.check._exercise import Case, exercise, harmful, random_tensor

__all__ = [
    "first_two",
    "heat_map_peak",
    "local_soft_argmax",
    "sharp_enough",
    "soft_argmax_vjp",
    "straight_through_bias",
]

_random = random.SystemRandom()


def _index(x: Tensor) -> Tensor:
    return torch.arange(len(x), dtype=x.dtype)


@exercise(
    hint="Which entries of a row raise its soft index, and which lower it? The formula of the gradient has a factor for that.",
    more="The soft index of a row is a sum of products, of weights and indices; each row has its own entry of the upstream gradient.",
)
def soft_argmax_vjp() -> Iterator[Case]:
    """The gradient in the scores, from the gradient in their soft indices."""
    for shape, t in (((3, 4), 1.0), ((2, 6), 0.3), ((4, 3), 5.0), ((1, 2), 2.0)):
        yield _vjp_case(random_tensor(*shape), t, "at a random input")
    yield _vjp_case(torch.zeros(2, 5, dtype=torch.float64), 2.0, "where all scores are equal")
    yield _vjp_case(1000 + random_tensor(2, 3), 1.5, "at large scores")


def _vjp_case(x: Tensor, t: float, where: str) -> Case:
    upstream = random_tensor(len(x))
    p, index = torch.softmax(t * x, 1), torch.arange(x.shape[1], dtype=x.dtype)
    s, g = (p @ index)[:, None], upstream[:, None]
    flat = torch.softmax(x, 1)
    wanted = t * p * (index - s) * g
    wrong = {
        "the temperature is missing as a factor": wanted / t,
        "the temperature is missing in the weights": t * flat * (index - (flat @ index)[:, None]) * g,
        "the weights change too when a score does: that is the gradient for weights that stay in proportion": t
        * p
        * index
        * g,
        "the upstream gradient is missing": t * p * (index - s),
        "the weights are missing as a factor": t * (index - s) * g,
    }
    return Case((x, t, upstream), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="Over how many numbers do the weights sum to 1? What is the total weight of a row?",
    more="Exponentials of large scores overflow unless the largest score is subtracted first, and the library's softmax does that.",
)
def heat_map_peak() -> Iterator[Case]:
    """The expected row and column of the peak of a heat map."""
    for shape, t in (((3, 5), 1.0), ((4, 2), 0.4), ((3, 3), 3.0), ((1, 4), 1.0)):
        yield _peak_case(random_tensor(*shape), t, "at a random input")
    yield _peak_case(torch.zeros(3, 4, dtype=torch.float64), 1.0, "where all scores are equal")
    yield _peak_case(1000 + random_tensor(4, 3), 2.0, "at large scores")


def _peak_case(x: Tensor, t: float, where: str) -> Case:
    rows, columns = (torch.arange(size, dtype=x.dtype) for size in x.shape)

    def means(p: Tensor) -> Tensor:
        return torch.stack([p.sum(1) @ rows, p.sum(0) @ columns])

    p = torch.softmax(t * x.flatten(), 0).reshape(x.shape)
    pixel = int(x.argmax())
    wanted = means(p)
    wrong = {
        "the row comes first, then the column": wanted.flip(0),
        "indices count from 0": wanted + 1,
        "the temperature is missing": means(torch.softmax(x.flatten(), 0).reshape(x.shape)),
        "the weights of each row sum to 1 in yours; those of the whole image must": means(torch.softmax(t * x, 1)),
        "the weights of each column sum to 1 in yours; those of the whole image must": means(torch.softmax(t * x, 0)),
        "that is the hard argmax": torch.tensor([pixel // x.shape[1], pixel % x.shape[1]], dtype=x.dtype),
        "the coordinates are means, weighted by numbers that sum to 1: divide by no size": wanted / x.numel(),
    }
    return Case((x, t), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="The proof of the error bound ends with a single exponential. At which temperature does it equal the tolerance?",
    more="The distances of the other indices sum to at most n (n - 1) / 2. The least gap is that between the two largest scores.",
)
def sharp_enough() -> Iterator[Case]:
    """A temperature at which the soft argmax is within a tolerance of the argmax, and no more than the bound asks for."""
    for n, gap, tolerance in ((5, 0.4, 1e-3), (3, 2.5, 1e-5), (4, 0.1, 1e-4), (6, 7.0, 0.01)):
        x = torch.full((n,), -gap, dtype=torch.float64)
        x[0] = 0
        x[1] -= gap  # so that the least gap is not the largest
        yield _sharp_case(x, tolerance, "where the bound is nearly tight")
    for n, tolerance in ((2, 0.5), (5, 0.25), (8, 1e-6)):
        yield _sharp_case(_untied(n), tolerance, "at a random input")


def _untied(n: int) -> Tensor:
    return torch.tensor(_random.sample(range(10 * n), n), dtype=torch.float64) / 7


def _sharp_case(x: Tensor, tolerance: float, where: str) -> Case:
    n, best = len(x), int(x.argmax())
    gaps = (x[best] - x)[torch.arange(n) != best]
    least = gaps.min().item()
    limit = math.log(n * (n - 1) / (2 * tolerance)) / least

    def accept(t: Any) -> bool:
        t = float(t)
        if not 0 < t <= limit * (1 + 1e-9):
            return False
        s = torch.softmax(t * (x - x[best]), 0) @ _index(x)
        return abs(s.item() - best) <= tolerance * (1 + 1e-6)

    wrong = {
        "divide by the gap, do not multiply": limit * least**2,
        "the gap is missing": limit * least,
        "the least gap counts, not the largest": limit * least / gaps.max().item(),
        "the tolerance is missing": math.log(n * (n - 1)) / least,
        "sharper than the bound asks for": 2 * limit,
        "the logarithm has the wrong sign": -limit,
    }
    mistakes = {sentence: t for sentence, t in wrong.items() if not accept(t)}
    text = f"a number above 0 and at most {limit:.6g}, at which the error is at most {tolerance:g}"
    return Case((x, tolerance), text, accept=accept, mistakes=mistakes, where=where)


@exercise(
    hint="What weight does softmax give to a score that is very low? How low must it be for the weight 0?",
    more="Softmax of the scores in the window alone has the right proportions. The index of an entry is its place in the whole vector.",
)
def local_soft_argmax() -> Iterator[Case]:
    """The soft argmax in a window around the argmax."""
    for n, radius, t in ((9, 2, 1.0), (12, 1, 0.5), (7, 3, 2.0), (6, 10, 1.0)):
        yield _local_case(_untied(n), radius, t, "at a random input")
    two = torch.tensor([0.0, 1, 3, 1, 0, 0, 0, 1, 2.9, 1, 0], dtype=torch.float64)
    yield _local_case(two, 2, 3.0, "at two peaks")
    yield _local_case(two.flip(0), 2, 0.2, "at two peaks")
    yield _local_case(torch.tensor([2.0, 1, 0, -3, -1, -2], dtype=torch.float64), 2, 0.7, "where the window is cut off")
    tied = torch.tensor([0.0, 3, 0, -1, -1, 0, 3, 1], dtype=torch.float64)
    yield _local_case(tied, 1, 1.0, "at a tie")


def _local_case(x: Tensor, radius: int, t: float, where: str) -> Case:
    x = x.requires_grad_()
    index = _index(x)

    def measure(s: Tensor) -> tuple[Tensor, Tensor]:
        if s.shape != ():
            raise ValueError(f"one number was wanted, of shape (), got shape {tuple(s.shape)}")
        return s.detach(), torch.autograd.grad(s, x, retain_graph=True)[0]

    def windowed(width: int, best: Tensor) -> Tensor:
        far = (index - best).abs() > width
        return torch.softmax((t * x).masked_fill(far, -math.inf), 0)

    best = x.argmax()
    far = (index - best).abs() > radius
    whole = torch.softmax(t * x, 0)
    wanted = measure(windowed(radius, best) @ index)
    first = max(int(best) - radius, 0)
    last = len(x) - 1 - x.flip(0).argmax()
    wrong = {
        "the weights outside the window are not 0": whole @ index,
        "the window is one too wide: an index at the distance of radius is in, the next is out": windowed(
            radius + 1, best
        )
        @ index,
        "the window is one too narrow: an index at the distance of radius is in": windowed(radius - 1, best) @ index,
        "the weights in the window must sum to 1": whole.masked_fill(far, 0) @ index,
        "a score of 0 does not have the weight 0": torch.softmax((t * x).masked_fill(far, 0), 0) @ index,
        "yours counts from the first index of the window, not from 0": windowed(radius, best) @ index - first,
        "at a tie the window is around the first of the largest": windowed(radius, last) @ index,
        "the temperature is missing": torch.softmax(x.masked_fill(far, -math.inf), 0) @ index,
    }
    mistakes = {sentence: measure(s) for sentence, s in wrong.items()}
    return Case((x, radius, t), wanted, mistakes=harmful(mistakes, wanted), where=where, measure=measure)


@exercise(
    hint="The theorem asks for a symmetric matrix. Which symmetric matrix gives the same function?",
    more="The Jacobian of softmax times a vector: subtract from the vector its mean under p, then multiply entry by entry.",
)
def straight_through_bias() -> Iterator[Case]:
    """The bias of the mean straight-through gradient for a quadratic function."""
    for n, t in ((2, 1.0), (4, 0.5), (3, 2.0)):
        Q = random_tensor(n, n)
        yield _bias_case(random_tensor(n), t, Q + Q.T, "at a symmetric matrix")
        yield _bias_case(random_tensor(n), t, Q, "at a random input")
    yield _bias_case(random_tensor(3), 1.5, torch.eye(3, dtype=torch.float64), "at the identity matrix")
    skew = random_tensor(3, 3)
    yield _bias_case(random_tensor(3), 1.0, skew - skew.T, "at a skew matrix")


def _bias_case(x: Tensor, t: float, Q: Tensor, where: str) -> Case:
    p, flat = torch.softmax(t * x, 0), torch.softmax(x, 0)

    def times(p: Tensor, v: Tensor) -> Tensor:
        return p * (v - p @ v)

    b = (Q + Q.T) @ p / 2 - Q.diagonal() / 2
    wanted = t * times(p, b)
    wrong = {
        "the matrix is not symmetric, and yours takes it as if it were": t * times(p, Q @ p - Q.diagonal() / 2),
        "the matrix is not symmetric, and yours takes it as if it were, transposed": t
        * times(p, Q.T @ p - Q.diagonal() / 2),
        "the half is missing at the diagonal": t * times(p, (Q + Q.T) @ p / 2 - Q.diagonal()),
        "the true gradient is missing: that is the mean of the straight-through gradient": t
        * times(p, (Q + Q.T) @ p / 2),
        "the temperature is missing as a factor": times(p, b),
        "the temperature is missing in the weights": t * times(flat, (Q + Q.T) @ flat / 2 - Q.diagonal() / 2),
        "the Jacobian of softmax is missing": b,
        "the true gradient minus the mean: the other way round": -wanted,
    }
    return Case((x, t, Q), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="Given that i is first, with what probability is j the largest of the others?",
    more="The quotient is itself a softmax, of the scores without one of them, and no difference from 1 is needed.",
)
def first_two() -> Iterator[Case]:
    """The probabilities of the two largest scores under Gumbel noise."""
    for n in (2, 3, 5):
        yield _two_case(2 * random_tensor(n), "at a random input")
    yield _two_case(torch.zeros(4, dtype=torch.float64), "where all scores are equal")
    yield _two_case(torch.tensor([0.0, 60, 1], dtype=torch.float64), "where one score is far above")
    yield _two_case(torch.tensor([30.0, 0, 1, -800], dtype=torch.float64), "where one score is far above")


def _two_case(x: Tensor, where: str) -> Case:
    p = torch.softmax(x, 0)
    others = torch.softmax(x.repeat(len(x), 1).fill_diagonal_(-math.inf), 1)
    wanted = p[:, None] * others

    def accept(value: Any) -> bool:
        value = torch.as_tensor(value, dtype=torch.float64)
        return value.shape == wanted.shape and torch.allclose(value, wanted, rtol=1e-6, atol=1e-300)

    pairs = torch.outer(p, p)
    wrong = {
        "that is for draws with putting back: two winners can be the same": pairs,
        "the first and the second must differ: the diagonal is 0, and the rest grows": pairs.clone().fill_diagonal_(0),
        "that is for two draws with putting back that happen to differ": pairs.clone().fill_diagonal_(0)
        / (pairs.sum() - pairs.trace()),
        "the row is the first and the column the second, in yours it is the other way round": wanted.T,
        "that is the probability of the second, given the first": others,
    }
    mistakes = {sentence: value for sentence, value in wrong.items() if not accept(value)}
    return Case((x,), wanted, accept=accept, mistakes=mistakes, where=where)
