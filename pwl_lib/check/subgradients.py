"""Checkers of the exercises of the chapter *Subgradients*."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pwl_lib.check._exercise import Case, exercise, random_tensor
from pwl_lib.subgradients import Box, ConvexHull, Subdifferential


@exercise(
    hint="Left of 0, at 0 and right of 0 are three cases. What are the slopes of the graph on both sides of x?",
    more="The ends are the one-sided derivatives: the slope just left of x, then the slope just right of x.",
)
def relu_interval() -> Iterator[Case]:
    """``relu_interval(x)``: the two ends of the subdifferential of ReLU at a number."""
    kink = {
        "only the slope on the left: the set at 0 is an interval": (0.0, 0.0),
        "only the slope on the right: the set at 0 is an interval": (1.0, 1.0),
        "one element of the set, the middle: both ends are wanted": (0.5, 0.5),
        "that is the set of the absolute value": (-1.0, 1.0),
        "the ends are in the wrong order": (1.0, 0.0),
    }
    for zero in (0.0, -0.0):
        yield Case((zero,), (0.0, 1.0), mistakes=kink, where="at the kink", measure=tuple)
    for size in (*random_tensor(4).abs().tolist(), 1e-300):
        beside = {"the interval of the kink: away from 0 the set is a single number": (0.0, 1.0)}
        swapped = "the slopes of the two sides are exchanged"
        yield Case((size,), (1.0, 1.0), mistakes={**beside, swapped: (0.0, 0.0)}, where="right of 0", measure=tuple)
        yield Case((-size,), (0.0, 0.0), mistakes={**beside, swapped: (1.0, 1.0)}, where="left of 0", measure=tuple)


@exercise(
    hint="Between two breakpoints both sides see the same piece. At a breakpoint they see neighbours.",
    more="The number of a piece is the number of breakpoints to its left. Count them twice: without those at x, and with them.",
)
def one_sided_slopes() -> Iterator[Case]:
    """``one_sided_slopes(slopes, breakpoints, x)``: the derivatives from the left and from the right."""
    for k in (1, 2, 5):
        slopes, breakpoints = random_tensor(k + 1), random_tensor(k).sort().values
        for i, at in enumerate(breakpoints.tolist()):
            left, right = slopes[i].item(), slopes[i + 1].item()
            mistakes = {
                "the two sides are exchanged": (right, left),
                "the left slope twice: x lies on a breakpoint, where the two differ": (left, left),
                "the right slope twice: x lies on a breakpoint, where the two differ": (right, right),
                "the mean of both sides, as a central difference gives": ((left + right) / 2,) * 2,
            }
            yield Case((slopes, breakpoints, at), (left, right), None, mistakes, "at a breakpoint", measure=tuple)
        ends = torch.cat([breakpoints[:1] - 2, breakpoints, breakpoints[-1:] + 2])
        for i, at in enumerate(((ends[1:] + ends[:-1]) / 2).tolist()):
            slope = slopes[i].item()
            mistakes = {}
            if i < k:
                mistakes["that is the slope of the next piece"] = (slopes[i + 1].item(),) * 2
                mistakes["the right slope is that of the next piece, but x is not a breakpoint"] = (
                    slope,
                    slopes[i + 1].item(),
                )
            if i > 0:
                mistakes["that is the slope of the piece before"] = (slopes[i - 1].item(),) * 2
            yield Case((slopes, breakpoints, at), (slope, slope), None, mistakes, "inside a piece", measure=tuple)


@exercise(
    hint="The loss is a maximum of two affine functions of w. Which one is active, and what is its slope with respect to w?",
    more="The slopes are the zero vector and the gradient of 1 - y <w, x>. Where both are active, every mean of them is right.",
)
def hinge_subgradient() -> Iterator[Case]:
    """``hinge_subgradient(w, x, y)``: any subgradient of the hinge loss with respect to w."""
    for n in (1, 3, 6):
        for y in (1, -1):
            x, w = random_tensor(n), random_tensor(n)
            # Move w along x, so that the margin y <w, x> is what the case needs.
            for margin, where in ((0.3, "with a loss"), (-2.0, "with a loss"), (1.7, "without a loss")):
                yield _hinge(w + (y * margin - w @ x) / (x @ x) * x, x, y, margin, where)
            # Powers of two, and zeros elsewhere: the margin is exactly 1.
            x, w = torch.zeros(n, dtype=torch.float64), random_tensor(n)
            x[0], w[0] = 2.0, 0.5 * y
            yield _hinge(w, x, y, 1.0, "at the kink")


def _hinge(w: Tensor, x: Tensor, y: int, margin: float, where: str) -> Case:
    slope, nothing = -y * x, torch.zeros_like(x)
    if margin > 1:
        masked = "the mask is missing: where the loss is 0, and not only touching it, so is the gradient"
        return Case(
            (w, x, y), nothing, mistakes={masked: slope, masked + ", and the sign is wrong": -slope}, where=where
        )
    mistakes = {"the sign is wrong: where do the minus and the label y go?": -slope}
    if margin == 1:
        wanted = f"t times {_numbers(slope)} for any t between 0 and 1"
        return Case((w, x, y), wanted, _member(ConvexHull(torch.stack([nothing, slope]))), mistakes, where)
    mistakes["0, but the loss is positive here: is the comparison turned around?"] = nothing
    return Case((w, x, y), slope, mistakes=mistakes, where=where)


@exercise(
    hint="First a subgradient of the L1 norm at the residual r = A z - b, with the shape of r. Then carry it back to z.",
    more="The sign of each residual, and any number of [-1, 1] where it is 0. What carries a gradient back through z -> A z?",
)
def residual_subgradient() -> Iterator[Case]:
    """``residual_subgradient(A, b, z)``: any subgradient of the L1 norm of A z - b with respect to z."""
    for m, n, zeros in ((4, 2, 0), (3, 3, 0), (2, 5, 0), (4, 3, 1), (3, 3, 2), (2, 2, 2), (1, 3, 1)):
        # Small integers and halves: a residual of 0 is exactly 0.
        A, z = (random_tensor(m, n) * 4).round() / 2, (random_tensor(n) * 4).round() / 2
        gap = random_tensor(m).sign() * (0.5 + (random_tensor(m).abs() * 4).round() / 2)
        gap[:zeros] = 0
        b, sign = A @ z - gap, gap.sign()
        free = Box(-torch.ones(zeros, dtype=torch.float64), torch.ones(zeros, dtype=torch.float64))
        hull = ConvexHull(sign @ A + free.vertices @ A[:zeros])
        right = A.T @ sign
        mistakes: dict[str, Any] = {
            "the mean instead of the sum over the residuals": right / m,
            "the sign is wrong": -right,
            "the gradient of the squared norm: of an absolute value it is the sign alone": A.T @ gap,
            "twice the residual: that is the gradient of the squared norm": 2 * A.T @ gap,
            "the gradient with respect to the residual: it is still to be carried back to z": sign,
        }
        if m == n:
            mistakes["A times the signs instead of its transpose: denominator and numerator layout are exchanged"] = (
                A @ sign
            )
        wrong = {
            text: value for text, value in mistakes.items() if value.shape != (n,) or not hull.contains(value, 1e-6)
        }
        if zeros:
            wanted = f"{_numbers(right)} plus anything of [-1, 1] times {'each of ' * (zeros > 1)}{_numbers(A[:zeros])}"
            yield Case((A, b, z), wanted, _member(hull), wrong, "with residuals of 0")
        else:
            yield Case((A, b, z), right, mistakes=wrong)


@exercise(
    hint="Take one entry. Assume that x is positive, solve for x, and see for which y the assumption holds. Then negative, then 0.",
    more="At x = 0 the condition is that y lies in lam times [-1, 1]: for all of these y the minimiser is 0.",
)
def soft_threshold() -> Iterator[Case]:
    """``soft_threshold(y, lam)``: the minimiser of half the squared distance to y plus lam times the L1 norm."""
    for n, lam in ((12, 0.5), (4, 1.0), (1, 0.3), (3, 0.0)):
        yield _threshold(3 * random_tensor(n), lam, "at a random input" if lam else "with lam = 0")
    for lam in (0.5, 2.0):
        yield _threshold(
            torch.tensor([lam, -lam, 0.0, lam / 2, -lam / 2, 2 * lam], dtype=torch.float64), lam, "at the kinks"
        )


def _threshold(y: Tensor, lam: float, where: str) -> Case:
    right = y.sign() * (y.abs() - lam).clamp(min=0)
    mistakes = {
        "every entry moved by lam, also those that are nearer to 0: they have to stop at 0": y - lam * y.sign(),
        "hard thresholding: what is left has to move by lam as well": torch.where(y.abs() > lam, y, 0.0),
        "negative entries are lost: they move up by lam": torch.relu(y - lam),
        "a clamp: that is what has to be taken away from y": y.clamp(-lam, lam),
        "the step is 2 lam: mind the factor one half of the square": y.sign() * (y.abs() - 2 * lam).clamp(min=0),
    }
    return Case((y, lam), right, mistakes=_unlike(mistakes, right), where=where)


@exercise(
    hint="Write the points of the segment with one number t. Their squared norm is a parabola in t.",
    more="The parabola may have its minimum outside of [0, 1]; what is the least value on the interval then? And if a = b?",
)
def least_norm() -> Iterator[Case]:
    """``least_norm(a, b)``: the point of least norm on the segment between two vectors."""
    for n in (1, 2, 5):
        for _ in range(2):
            a, b = random_tensor(n), random_tensor(n)
            yield _segment(a, b, "at a random input")
            yield _segment(a, -0.5 * a, "with 0 inside the segment")
            yield _segment(a, 3 * a, "with the nearest point at an end")
            yield _segment(3 * a, a, "with the nearest point at an end")
        yield _segment(a, a.clone(), "with a = b")


def _segment(a: Tensor, b: Tensor, where: str) -> Case:
    right = ConvexHull(torch.stack([a, b])).min_norm()
    edge = b - a
    line = a - (a @ edge) / (edge @ edge) * edge if bool(edge.any()) else a
    mistakes = {
        "on the line through a and b, but outside of the segment": line,
        "the middle of the segment, which is not always the nearest point": (a + b) / 2,
        "the shorter of the two ends: the inside of the segment may be nearer": a if a.norm() < b.norm() else b,
        "the longer of the two ends": b if a.norm() < b.norm() else a,
    }
    return Case((a, b), right, mistakes=_unlike(mistakes, right), where=where)


@exercise(
    hint="How much does an argument receive that passes one maximum, two, three?",
    more="One argument stands outermost, and two of them meet in the innermost maximum.",
)
def nested_maximum() -> Iterator[Case]:
    """``nested_maximum(x)``: the maximum of four numbers, nested so that a tie of all gives (1/8, 1/8, 1/4, 1/2)."""
    weights = torch.tensor([0.125, 0.125, 0.25, 0.5], dtype=torch.float64)
    others = {
        "equal shares: torch.maximum takes two arguments at a time": (0.25, 0.25, 0.25, 0.25),
        "nested the other way round: who stands outermost?": (0.5, 0.25, 0.125, 0.125),
        "the first index takes it all: that is max with a dim": (1.0, 0.0, 0.0, 0.0),
    }
    for value in (0.0, *random_tensor(2).tolist()):
        x = torch.full((4,), value, dtype=torch.float64)
        mistakes = {text: (value, torch.tensor(wrong)) for text, wrong in others.items()}
        yield _with_gradient(x, (value, weights), mistakes, "at a tie of all")
    for _ in range(4):
        x = random_tensor(4)
        one_hot = torch.nn.functional.one_hot(x.argmax(), 4)
        mistakes = {
            "the right gradient at a tie, but this is not a maximum": (x @ weights, weights),
            "the minimum": (x.amin(), torch.nn.functional.one_hot(x.argmin(), 4)),
        }
        yield _with_gradient(x, (x.amax(), one_hot), mistakes, "at a random input")


def _with_gradient(x: Tensor, wanted: tuple[Any, Tensor], mistakes: dict[str, Any], where: str) -> Case:
    x.requires_grad_()
    return Case((x,), wanted, None, mistakes, where, measure=lambda value: (value.detach(), _gradient(value, x)))


@exercise(
    hint="Look for two kinks at 0 that cancel in the function, but not in what the program adds up.",
    more="The sum rule holds for weights that are not negative. Write a function that is smooth at 0 as a difference.",
)
def wrong_at_zero() -> Iterator[Case]:
    """``wrong_at_zero(x)``: a piecewise linear function whose gradient by backprop is wrong at 0, and only there."""
    wanted = "(slope left of 0, slope right of 0, gradient by backprop at 0), the third not between the other two"
    innocent = {
        "relu(x)": (0, 1, 0),
        "the absolute value": (-1, 1, 0),
        "x": (1, 1, 1),
        "-relu(x)": (0, -1, 0),
        "a constant": (0, 0, 0),
    }
    mistakes = {
        f"backprop is right about {name}: it returns an element of the interval": kink
        for name, kink in innocent.items()
    }
    for size in (1e-3, *(1e-3 * (0.5 + random_tensor(2).abs())).tolist()):
        x = size * torch.tensor([0.0, 1.0, 2.0, -1.0, -2.0], dtype=torch.float64)
        x.requires_grad_()

        def measure(value: Tensor, x: Tensor = x, size: float = size) -> tuple[float, float, float]:
            return _slopes_and_gradient(value, x, size)

        yield Case((x,), wanted, _caught, mistakes, "at 0 and near it", measure=measure)


def _slopes_and_gradient(value: Tensor, x: Tensor, size: float) -> tuple[float, float, float]:
    if value.shape != x.shape:
        raise ValueError(f"the function must work on every entry of x: {tuple(x.shape)} became {tuple(value.shape)}")
    picked, f = _gradient(value.sum(), x), value.detach()
    right, left = (f[1] - f[0]) / size, (f[0] - f[3]) / size
    measured = torch.stack([right, (f[2] - f[1]) / size, left, (f[3] - f[4]) / size])
    if not torch.allclose(measured, torch.stack([right, right, left, left]), rtol=1e-6, atol=1e-6):
        raise ValueError("the function is not piecewise linear near 0, with one slope on each side")
    if not torch.allclose(picked[1:], measured, rtol=1e-6, atol=1e-6):
        raise ValueError("away from 0, too, the gradient by backprop is not the slope")
    if bool(picked[0].isnan()):
        raise ValueError("the gradient at 0 is NaN, which is no number")
    return left.item(), right.item(), picked[0].item()


def _caught(measured: tuple[float, float, float]) -> bool:
    left, right, picked = measured
    return not min(left, right) - 1e-6 <= picked <= max(left, right) + 1e-6


def _gradient(value: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(value, x)[0]


def _member(values: Subdifferential) -> Callable[[Any], bool]:
    return lambda value: values.contains(torch.as_tensor(value, dtype=torch.float64).detach(), tol=1e-6)


def _unlike(mistakes: dict[str, Tensor], right: Tensor) -> dict[str, Tensor]:
    """Without those that are right by chance."""
    return {text: wrong for text, wrong in mistakes.items() if not torch.allclose(wrong, right, rtol=1e-5, atol=1e-5)}


def _numbers(value: Tensor) -> str:
    return str(((value * 1e4).round() / 1e4).add(0.0).tolist())
