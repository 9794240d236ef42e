"""Checkers of the exercises of the chapter *Grad-CAM++*."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pwl_lib.check._exercise import Case, exercise, harmful, random_tensor
from pwl_lib.gradcam import gradcam_plusplus_weights

__all__ = ["bell", "first_pole", "head_weights", "plusplus_weights", "sigmoid_alpha", "smooth_function"]

_random = random.SystemRandom()


@exercise(
    hint="Divide the numerator and the denominator of alpha by the square of the gradient. Which entries have a share at all?",
    more="Where the gradient is positive, each entry adds one quotient, whose denominator holds the sum of the whole channel.",
)
def plusplus_weights() -> Iterator[Case]:
    """The weights of Grad-CAM++ in the stable form, for a batch of channels."""
    for shape in ((1, 2, 2), (3, 4, 5)):
        yield _weights_case(random_tensor(*shape).abs(), random_tensor(*shape), "at random numbers")
    g = random_tensor(2, 3, 3)
    g[0] = 0
    g[1, 1] = 0
    yield _weights_case(random_tensor(2, 3, 3).abs(), g, "with gradients that are 0")
    yield _weights_case(
        random_tensor(2, 3, 3).abs(), 1e-170 * random_tensor(2, 3, 3), "with gradients whose square underflows"
    )


def _weights_case(A: Tensor, g: Tensor, where: str) -> Case:
    p, total = g.clamp(min=0), A.sum((-2, -1), keepdim=True)
    wanted = gradcam_plusplus_weights(A, g)
    size = p.max().item() or 1.0
    powers = torch.where((g > 0) & (g**2 > 0), g**2 / (2 * g**2 + total * g**3), 0)
    wrong = {
        "the powers of the gradient underflow: simplify the quotient first": (powers * p).sum((-2, -1)) / size,
        "the sum of the channel is multiplied with the gradient of one entry; yours multiplies entry by entry, then sums": (
            p / (2 + (A * p).sum((-2, -1), keepdim=True))
        ).sum((-2, -1))
        / size,
        "negative gradients have no share": (g / (2 + g * total)).sum((-2, -1)) / size,
        "that is the sum of alpha: each alpha is multiplied with its gradient": (1 / (2 + p * total)).sum((-2, -1))
        / size,
        "a sum over the entries was wanted, not their mean": wanted / g[0].numel() / size,
        "those are the cubes, without the division": (p**3).sum((-2, -1)) / size,
        "the sum of the channel is meant, not its mean": (p / (2 + p * total / g[0].numel())).sum((-2, -1)) / size,
    }
    # compared in units of the largest gradient, so that a weight of 1e-170 must be right too
    return Case(
        (A, g),
        wanted / size,
        mistakes=harmful(wrong, wanted / size),
        where=where,
        measure=functools.partial(_over, size),
    )


def _over(size: float, value: Any) -> Any:
    return torch.as_tensor(value, dtype=torch.float64).detach() / size


@exercise(
    hint="Differentiate the product of the first derivative of S and exp(S), n times, with Leibniz' rule.",
    more="Each derivative of exp(S) over exp(S) is a sum of the earlier ones, times derivatives of S, with binomial coefficients.",
)
def bell() -> Iterator[Case]:
    """The n-th derivative of exp(S), over exp(S), from the first n derivatives of S."""
    for n in (1, 2, 3, 4, 6):
        yield _bell_case([round(x, 2) for x in random_tensor(n).tolist()], "at random numbers")
    slope = round(_random.uniform(0.5, 2), 2)
    yield _bell_case([slope, 0.0, 0.0, 0.0, 0.0], "where S is affine")


def _bell_case(s: list[float], where: str) -> Case:
    def derivative(s: list[float], coefficient: Callable[[int, int], int]) -> float:
        found = [1.0]
        for n in range(len(s)):
            found.append(sum(coefficient(n, k) * found[n - k] * s[k] for k in range(n + 1)))
        return found[-1]

    wanted = derivative(s, math.comb)
    wrong = {
        "the binomial coefficients of Leibniz' rule are missing": derivative(s, lambda n, k: 1),
        "that holds where S is affine; here it has higher derivatives": s[0] ** len(s),
        "that is the derivative before": derivative(s[:-1], math.comb),
        "that is the last derivative of S alone": s[-1],
    }
    return Case((s,), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="What is the gradient of a score with respect to one entry of a channel, if the score sees the mean of the channel alone?",
    more="All entries of a channel have the same gradient. Put it into the stable form; the number of entries cancels in the denominator.",
)
def head_weights() -> Iterator[Case]:
    """The weights of Grad-CAM++ for means of channels with a linear layer behind them, without a backward pass."""
    for classes, channels, side in ((1, 2, 2), (3, 4, 3), (5, 2, 4)):
        W, A = random_tensor(classes, channels), random_tensor(channels, side, side + 1).abs()
        yield _head_case(W, A, "at random numbers")
    W = -random_tensor(2, 3).abs()
    yield _head_case(W, random_tensor(3, 2, 3).abs(), "with negative weights alone")
    A = random_tensor(3, 2, 3).abs()
    A[1] = 0
    yield _head_case(random_tensor(2, 3), A, "with a channel that is 0")


def _head_case(W: Tensor, A: Tensor, where: str) -> Case:
    count, total = A[0].numel(), A.sum((-2, -1))
    p = W.clamp(min=0)
    wanted = p / (2 + p * total / count)
    wrong = {
        "the gradient of one entry is the weight over the number of entries": count * p / (2 + p * total),
        "negative weights have no share": W / (2 + W * total / count),
        "the sum over the entries is missing": wanted / count,
        "those are the weights of Grad-CAM": W / count,
        "the positive part is missing in the numerator": W / (2 + p * total / count),
    }
    return Case((W, A), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="Scores that are multiplied by a number have gradients that are. Which denominators get smaller as that number grows?",
    more="Only a positive gradient in a channel with a negative sum comes to a pole. Of several the first is wanted; of none, infinity.",
)
def first_pole() -> Iterator[Case]:
    """The least factor of the scores at which a weight of Grad-CAM++ has a pole."""
    for shape in ((2, 2, 2), (3, 3, 4)):
        A, g = random_tensor(*shape), random_tensor(*shape)
        A[0] -= 1 + A[0].mean()  # one channel with a negative sum, at least
        g[0, 0, 0] = g[0, 0, 0].abs() + 0.1
        yield _pole_case(A, g, "with a negative channel")
    yield _pole_case(random_tensor(2, 3, 3).abs(), random_tensor(2, 3, 3), "without a negative channel")
    yield _pole_case(-random_tensor(2, 3, 3).abs(), -random_tensor(2, 3, 3).abs(), "without a positive gradient")


def _pole_case(A: Tensor, g: Tensor, where: str) -> Case:
    total = A.sum((-2, -1), keepdim=True)

    def least(product: Tensor) -> float:
        poles = (-2 / product)[product < 0]
        return poles.min().item() if poles.numel() else math.inf

    p = g.clamp(min=0)
    wanted = least(p * total)
    poles = (-2 / (p * total))[p * total < 0]
    wrong = {
        "the first pole was wanted, not the last": poles.max().item() if poles.numel() else math.nan,
        "negative gradients are cut off before they reach a pole": least(g * total),
        "the sum of the whole channel counts, not the entry": least(p * A),
        "a weight has a pole where its denominator is 0, and that begins with 2": wanted / 2
        if math.isfinite(wanted)
        else math.nan,
    }
    return Case((A, g), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="Differentiate the sigmoid three times along the entry: the derivative of Y is Y (1 - Y) times the slope.",
    more="All three derivatives have the factor Y (1 - Y), which cancels. Two powers of the slope cancel too.",
)
def sigmoid_alpha() -> Iterator[Case]:
    """Alpha for Y = sigmoid(S) instead of exp(S), from Y, the slope of S and the sum of the channel."""
    for where, low, high in (("at random numbers", 0.05, 0.45), ("at a probability above one half", 0.55, 0.99)):
        for _ in range(3):
            yield _sigmoid_case(_random.uniform(low, high), _random.uniform(0.2, 2), _random.uniform(0.5, 3), where)
    yield _sigmoid_case(0.5, _random.uniform(0.2, 2), _random.uniform(0.5, 3), "at one half")
    yield _sigmoid_case(1e-9, _random.uniform(0.2, 2), _random.uniform(0.5, 3), "at a very small probability")


def _sigmoid_case(Y: float, g: float, total: float, where: str) -> Case:
    second, third = 1 - 2 * Y, 1 - 6 * Y + 6 * Y**2
    wanted = second / (2 * second + g * total * third)
    wrong = {
        "that is for exp(S): differentiate the sigmoid": 1 / (2 + g * total),
        "the factor 1 - 2 Y is no slope: it changes with Y, and its derivative counts": 1 / (2 + g * total * second),
        "the slope of S is missing in the denominator": second / (2 * second + total * third),
        "the sum of the channel is missing": second / (2 * second + g * third),
        "the 2 of the denominator is missing": second / (second + g * total * third),
        "the factor 1 - Y of the first derivative changes too": (1 - Y) / (2 * (1 - Y) + g * total * (1 - Y) ** 2),
    }
    return Case((Y, g, total), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="For one entry the claim is Y = alpha Y' A with alpha = 1/n. As an equation for the function Y of A it has few solutions.",
    more="The logarithm of Y has the derivative n / A. Which functions are those?",
)
def smooth_function() -> Iterator[Case]:
    """A function Y of a positive score with alpha = 1/n for every slope; any right one."""
    for n in (3.0, 4.0, 1.5, round(_random.uniform(2.2, 6), 2)):
        points = random_tensor(2, 5).abs() + 0.3
        wanted = torch.full((2, 5), 1 / n, dtype=torch.float64)
        yield Case(
            (n,),
            wanted,
            mistakes=harmful(
                {
                    "that is the exponential, whose alpha depends on the score": _two_quotients(points, torch.exp),
                    "the inverse of n is alpha: yours is n": torch.full_like(wanted, n),
                },
                wanted,
            ),
            measure=functools.partial(_two_quotients, points),
            where="(compared by Y / (Y' a) and by alpha, at five slopes and entries)",
            tolerance=1e-6,
        )


def _two_quotients(points: Tensor, smooth: Callable[[Tensor], Tensor]) -> Tensor:
    """Y / (Y' a), and alpha, of Y = smooth(g a), one entry a with slope g, by nested autograd.

    Both are the same constant for the right functions. Alpha alone would not see an affine part of Y.
    """
    g, a = points[0], points[1].clone().requires_grad_()
    derivatives = [smooth(g * a)]
    for _ in range(3):
        derivatives.append(torch.autograd.grad(derivatives[-1].sum(), a, create_graph=True)[0])
    y, first, second, third = (derivative.detach() for derivative in derivatives)
    a = a.detach()
    return torch.stack([y / (first * a), second / (2 * second + a * third)])
