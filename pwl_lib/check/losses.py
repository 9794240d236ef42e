"""Checkers of the exercises of the chapter *Losses*."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pwl_lib.check._exercise import Case, exercise, harmful, random_tensor

__all__ = [
    "made_to_order",
    "mse_gradient",
    "smoothing_for_gap",
    "softmax_twice",
    "softmax_vjp",
    "stable_cross_entropy",
    "weighted_gradient",
    "weighted_median",
]

_random = random.SystemRandom()


@exercise(
    hint="Write the mean as a sum over all entries. In how many of its terms does one entry of y stand?",
    more="The derivative of a square brings a factor, and the mean brings another. The mean is over entries, not over samples.",
)
def mse_gradient() -> Iterator[Case]:
    """The gradient of the mean squared error in its input."""
    for shape in ((5,), (3, 4), (2, 3, 2)):
        y, t = random_tensor(*shape), random_tensor(*shape)
        wanted = 2 * (y - t) / y.numel()
        wrong = {
            "the factor 2 of the square is missing": wanted / 2,
            "that is the gradient of the sum; the mean divides by the number of entries": 2 * (y - t),
            "the difference alone: the factor of the square and the mean are missing": y - t,
            "the mean is over all entries, and not over the samples alone": 2 * (y - t) / len(y),
            "that is the gradient in the target": -wanted,
        }
        yield Case((y, t), wanted, mistakes=harmful(wrong, wanted))
    y = random_tensor(4)
    yield Case((y, y.clone()), torch.zeros_like(y), where="where the output is the target")


@exercise(
    hint="The Jacobian is symmetric: a diagonal matrix minus a matrix of rank one. What does each do to u?",
    more="The part of rank one needs a single number for each row: the inner product of that row of p with that row of u.",
)
def softmax_vjp() -> Iterator[Case]:
    """The gradient before a softmax, from its output and the gradient after it."""
    for shape in ((1, 4), (3, 5), (4, 2)):
        p, u = random_tensor(*shape).softmax(1), random_tensor(*shape)
        yield _softmax_case(p, u, "at a random input")
    sure = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    yield _softmax_case(sure, random_tensor(1, 3), "where one class has all the probability")


def _softmax_case(p: Tensor, u: Tensor, where: str) -> Case:
    wanted = p * u - p * (p * u).sum(1, keepdim=True)
    wrong = {
        "the part of rank one is missing: every output depends on every logit": p * u,
        "that is the rule of the sigmoid: the entries off the diagonal are missing": p * (1 - p) * u,
        "that is the gradient through the logarithm of softmax": u - p * u.sum(1, keepdim=True),
        "the sum runs over the batch too: the samples do not know of each other": p * u - p * (p * u).sum(),
        "the sum of u must be weighted with p": p * (u - u.sum(1, keepdim=True)),
    }
    return Case((p, u), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="What may be added to all logits without a change of the probabilities?",
    more="Shift the logits so that the largest is 0. The shift comes back outside the logarithm.",
)
def stable_cross_entropy() -> Iterator[Case]:
    """The cross entropy of logits and a class, for logits of any size."""
    for size, where in ((1.0, "at random logits"), (1000.0, "where exp overflows"), (10_000.0, "where exp overflows")):
        for classes in (2, 5):
            x = size * random_tensor(classes)
            x[_random.randrange(classes)] = 2 * size
            yield _stable_case(x, int(x.argmin()), where)  # far below the largest, where exp underflows too
    low = -1e4 - random_tensor(3).abs()
    yield _stable_case(low, 1, "where every exp is 0")


def _stable_case(x: Tensor, t: int, where: str) -> Case:
    wanted = x.logsumexp(0) - x[t]
    wrong = {
        "the shift is inside the logarithm and does not come back outside": (x - x.max()).logsumexp(0) - x[t],
        "that is the probability, not its logarithm": x.softmax(0)[t],
        "the sign is wrong: a loss is not negative": -wanted,
        "the logit of the class is missing": x.logsumexp(0),
        "that is the largest logit minus the right one; the logarithm of the sum is more": x.max() - x[t],
    }
    # At large logits the maximum is the whole logarithm, and the mistake does no harm.
    return Case((x, t), wanted, mistakes=harmful(wrong, wanted), where=where, tolerance=1e-9)


@exercise(
    hint="Which weight does a sample have, and which has an ignored one? What is the sum that the mean divides by?",
    more="The gradient of a sample is its weight times softmax minus one-hot: one weight for the whole row, that of its target.",
)
def weighted_gradient() -> Iterator[Case]:
    """The gradient of the mean cross entropy with class weights and an ignored index."""
    for ignored, where in ((-100, "at random logits"), (-1, "at random logits"), (1, "where a class is ignored")):
        x, w = 2 * random_tensor(5, 3), random_tensor(3).abs() + 0.2
        target = torch.tensor([0, 2, 1, 2, ignored])[torch.tensor(_random.sample(range(5), 5))]
        yield _weighted_case(x, target, w, ignored, where)
    x, w = random_tensor(3, 4), random_tensor(4).abs() + 0.2
    yield _weighted_case(x, torch.tensor([3, 0, 3]), w, -100, "where nothing is ignored")


def _weighted_case(x: Tensor, target: Tensor, w: Tensor, ignored: int, where: str) -> Case:
    counts = target != ignored
    index = torch.where(counts, target, 0)
    hot = torch.nn.functional.one_hot(index, x.shape[1]).double()
    difference = x.softmax(1) - hot
    share = torch.where(counts, w[index], 0)[:, None]
    wanted = share * difference / share.sum()
    wrong = {
        "the mean divides by the sum of the weights of the targets, not by the number of samples": share
        * difference
        / len(x),
        "the mean divides by the sum of the weights of the targets, not by the number of those that count": share
        * difference
        / counts.sum(),
        "the mean divides by the weights of those samples that count": share * difference / w[index].sum(),
        "an ignored sample has the gradient 0": w[index][:, None] * difference / share.sum(),
        "the weight belongs to the sample, by its target, and not to the column": counts[:, None]
        * difference
        * w
        / share.sum(),
        "the weights are missing": counts[:, None] * difference / counts.sum(),
        "that is the gradient of the sum": share * difference,
    }
    return Case((x, target, w, ignored), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="The function is convex and piecewise linear. Where is its slope on the left at most 0, and that on the right at least 0?",
    more="Sort the targets and add up their weights from the left. At which target is half of the whole weight reached?",
)
def weighted_median() -> Iterator[Case]:
    """Any minimiser of a weighted sum of absolute differences."""
    for n in (1, 4, 7):
        yield _median_case(3 * random_tensor(n), random_tensor(n).abs() + 0.1, "at random targets")
    yield _median_case(random_tensor(4), torch.ones(4, dtype=torch.float64), "where an interval of numbers is right")
    t = random_tensor(3)[torch.tensor([0, 1, 0, 2, 1])]
    yield _median_case(t, random_tensor(5).abs() + 0.1, "where targets are equal")
    # Fixed in their order, so that no mistake is right by chance in both; fresh in their place and size.
    for targets, weights, where in (
        ([9.0, 1.0, 2.0], [5.0, 1.0, 1.0], "where one weight is more than half"),
        ([3.0, 0.0, 1.0, 2.0], [2.0, 3.0, 2.0, 2.0], "where the largest weight is less than half"),
    ):
        t = float(random_tensor(1)) + (1 + float(random_tensor(1).abs())) * torch.tensor(targets, dtype=torch.float64)
        yield _median_case(t, torch.tensor(weights, dtype=torch.float64), where, shuffle=False)


def _median_case(t: Tensor, w: Tensor, where: str, shuffle: bool = True) -> Case:
    if shuffle:
        order = torch.tensor(_random.sample(range(len(t)), len(t)))
        t, w = t[order], w[order]

    def total(c: Tensor) -> float:
        return float((w * (c - t).abs()).sum())

    least = min(total(c) for c in t)

    def accept(value: Any) -> bool:
        c = torch.as_tensor(value, dtype=torch.float64)
        return c.dim() == 0 and total(c) <= least + 1e-9 * (1 + least)

    wrong = {
        "that is the weighted mean, which minimises the squares": (w * t).sum() / w.sum(),
        "that is the median without the weights": t.sort().values[(len(t) - 1) // 2],
        "that is the target with the largest weight": t[w.argmax()],
        "the weights are not sorted along with the targets": t.sort().values[
            int((w.cumsum(0) < w.sum() / 2).sum().clamp(max=len(t) - 1))
        ],
    }
    return Case(
        (t, w),
        f"a number at which the sum is {least:.6g}, the least there is",
        accept=accept,
        mistakes={sentence: value for sentence, value in wrong.items() if not accept(value)},
        where=where,
    )


@exercise(
    hint="At the optimum the probabilities are the smoothed target. What is the quotient of its two different entries?",
    more="The quotient is the exponential of the gap. Solve that equation for the smoothing.",
)
def smoothing_for_gap() -> Iterator[Case]:
    """The label smoothing with which the optimum has a given gap of the logits."""
    for classes in (3, 10, _random.randrange(4, 1000)):
        yield _gap_case(_random.uniform(0.5, 3.0), classes, "at a random gap")
    yield _gap_case(0.0, 5, "at the gap 0, where the target is uniform")


def _gap_case(gap: float, classes: int, where: str) -> Case:
    wanted = classes / (classes + math.expm1(gap))
    grown = math.exp(gap)
    wrong = {
        "the uniform part goes to the right class too": (classes - 1) / (classes - 1 + grown),
        "that is 1 minus the smoothing": 1 - wanted,
        "that is the probability of one of the other classes": wanted / classes,
        "the 1 in the logarithm is missing": classes / (classes + grown),
        "the number of classes is missing": 1 / grown,
    }
    return Case((gap, classes), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="What goes into the second softmax lies between 0 and 1. Which of these vectors is best for the loss?",
    more="Even a perfect first softmax gives logits that are only 1 apart. Write down the loss there.",
)
def softmax_twice() -> Iterator[Case]:
    """The infimum of a cross entropy whose logits are the output of a softmax."""
    for classes in (2, 3, 10, _random.randrange(11, 2000)):
        wanted = math.log1p((classes - 1) / math.e)
        wrong = {
            "that would be the infimum if the logits could grow without bound": 0.0,
            "that is the loss of a network that knows nothing": math.log(classes),
            "that is the probability; the loss is minus its logarithm": math.exp(-wanted),
            "all classes contribute to the sum, the right one too": math.log((classes - 1) / math.e),
            "that is right for two classes": math.log1p(1 / math.e),
            "the logit of the right class is not subtracted": math.log(math.e + classes - 1),
        }
        yield Case((classes,), wanted, mistakes=harmful(wrong, wanted), where="at a number of classes")


@exercise(
    hint="The slope in x is the slope in s times that of the sigmoid, s (1 - s). Which slope in s makes the product s - t?",
    more="Split the slope into a part with 1 / s and a part with 1 / (1 - s). Both have an integral you know.",
)
def made_to_order() -> Iterator[Case]:
    """A loss of a probability and a target whose gradient in the logit is their difference."""
    for shape in ((6,), (2, 3)):
        yield _order_case(2 * random_tensor(*shape), random_tensor(*shape).sigmoid(), "at random probabilities")
    x = 3 * random_tensor(6)
    yield _order_case(x, (random_tensor(6) > 0).double(), "at targets 0 and 1")
    yield _order_case(x, x.sigmoid(), "where the probability is the target")


def _order_case(x: Tensor, t: Tensor, where: str) -> Case:
    x = x.clone().requires_grad_()
    s = x.sigmoid()
    r = (s - t).detach()
    slope = (s * (1 - s)).detach()
    wrong = {
        "that is the gradient of the squared error": 2 * r * slope,
        "that is the gradient of half the squared error: its slope in s is s - t, and that in x was to be": r * slope,
        "the part with 1 - t is missing": -(t * (1 - s)).detach(),
        "the part with t is missing": ((1 - t) * s).detach(),
        "that is the gradient of the absolute error": r.sign() * slope,
        "the sign is wrong: descent would move away from the target": -r,
    }
    return Case(
        (s, t),
        r,
        measure=lambda value: torch.autograd.grad(value.sum(), x, retain_graph=True)[0],
        mistakes=harmful(wrong, r),
        where=where,
    )
