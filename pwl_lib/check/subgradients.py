"""Checkers of the exercises of the chapter *Subgradients*."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pwl_lib.check._exercise import Case, exercise, harmful, random_tensor
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


@exercise(
    hint="Where the pre-activation is not 0, its sign decides, as ever. Where it is 0, what is it a little further along the direction?",
    more="Just behind x the unit has the value z + t dz with a small t above 0: at z = 0 the sign of dz decides.",
)
def directional_mask() -> Iterator[Case]:
    """``directional_mask(z, dz)``: which ReLU units are on just behind x in a direction."""
    numbers = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    for repeat in range(3):
        z, dz = torch.cartesian_prod(numbers, numbers).T[:, torch.randperm(9, generator=_generator())]
        if repeat == 2:  # no tie of both
            z, dz = z[(z != 0) | (dz != 0)], dz[(z != 0) | (dz != 0)]
        # The derivatives are larger than the numbers, so that a step of length 1 always goes too far.
        z, dz = z / (1 + random_tensor(len(z)).abs()), dz * (1 + random_tensor(len(z)).abs())
        sure = (z != 0) | (dz != 0)
        right = torch.where(z == 0, dz > 0, z > 0).double()

        def accept(value: Any, sure: Tensor = sure, right: Tensor = right) -> bool:
            value = torch.as_tensor(value, dtype=torch.float64)
            between = bool(((value >= 0) & (value <= 1)).all())
            return value.shape == right.shape and between and torch.equal(value[sure], right[sure])

        mistakes = {
            "every tie is off, as autograd has it: at z = 0 the derivative decides": (z > 0).double(),
            "every tie is on: at z = 0 the derivative decides": (z >= 0).double(),
            "one half at every tie: a mean belongs to no piece": torch.where(z == 0, 0.5, (z > 0).double()),
            "ties go to the wrong side: a positive derivative turns the unit on": torch.where(
                z == 0, dz < 0, z > 0
            ).double(),
            "the derivative decides everywhere, but it is for ties alone": (dz > 0).double(),
            "the sum of both numbers: the derivative is taken for a step that is not small": (z + dz > 0).double(),
        }
        mistakes = {text: value for text, value in mistakes.items() if not accept(value)}
        text = f"{_numbers(right)}" + (
            ", and anything of [0, 1] where z and dz are both 0" if not bool(sure.all()) else ""
        )
        yield Case((z, dz), text, accept, mistakes, "with ties" if repeat < 2 else "with ties that dz breaks")


@exercise(
    hint="Which units are on just behind x? Then the layer is linear, and its gradient is a product of a matrix and a vector.",
    more="Break ties of the pre-activation by its derivative along v. What is left is the sum of the rows of W that are on, times their a.",
)
def layer_gradient() -> Iterator[Case]:
    """``layer_gradient(W, b, a, x, v)``: the limiting gradient of one hidden layer along v."""
    for m, n, tied in ((5, 3, 0), (4, 4, 2), (6, 2, 4), (5, 3, 5), (1, 1, 1)):
        # Halves, whose products and sums are exact, so that the ties are.
        W, x = (random_tensor(m, n) * 4).round() / 2 + 0.5, (random_tensor(n) * 4).round() / 2
        a, v, gap = random_tensor(m), random_tensor(n), random_tensor(m).sign()
        gap[:tied] = 0
        if tied > 1:
            W[1] = -W[0]  # two units whose slopes cancel or add up, but never halve
        b = gap - W @ x
        dz = W @ v
        on = torch.where(gap == 0, dz > 0, gap > 0).double()
        right = W.T @ (on * a)
        wrong = {
            "every tied unit is off, as autograd has it": W.T @ ((gap > 0) * a),
            "every tied unit is on": W.T @ ((gap >= 0) * a),
            "one half for every tied unit: a mean belongs to no piece": W.T
            @ (torch.where(gap == 0, 0.5, (gap > 0).double()) * a),
            "ties go to the wrong side: that is the limit along -v": W.T @ (torch.where(gap == 0, dz < 0, gap > 0) * a),
            "the mask is missing": W.T @ a,
            "the factors a are missing": W.T @ on,
        }
        yield Case((W, b, a, x, v), right, None, _unlike(wrong, right), "with ties" if tied else "without ties")


@exercise(
    hint="You know a program for x to which backprop gives 0 at 0, and one to which it gives 1. What of a mixture of both?",
    more="c times the one that is right, and 1 - c times the one that is wrong, is still the function x.",
)
def backprop_says() -> Iterator[Case]:
    """``backprop_says(c)``: a program for the function x for which backprop returns c at 0."""
    x = torch.tensor([-2.0, -0.5, 0.0, 0.25, 3.0], dtype=torch.float64)
    for c in (0.0, 1.0, *(5 * random_tensor(3)).tolist(), -100.0):

        def measure(program: Any) -> tuple[Tensor, Tensor]:
            leaf = x.clone().requires_grad_()
            value = program(leaf)
            return value.detach(), _gradient(value.sum(), leaf)

        def gradients(at_zero: float) -> tuple[Tensor, Tensor]:
            return x, torch.where(x == 0, at_zero, 1.0)

        mistakes = {
            "backprop is right about this program: it returns 1 at 0": gradients(1.0),
            "backprop returns 0 at 0, whatever c is": gradients(0.0),
            "1 - c and c are exchanged": gradients(1 - c),
            "that is c times x, a different function": (c * x, torch.full_like(x, c)),
            "twice c: the two halves of the program both pay": gradients(2 * c),
        }
        wanted = gradients(c)
        yield Case((c,), wanted, None, harmful(mistakes, wanted), "at a random c", measure=measure)


@exercise(
    hint="There are two pieces at most, one on each side. Which units are on just right of x, and which just left of it?",
    more="The slope on a side is the sum of a w over the units that are on there; a tied unit is on to the right if its w is positive.",
)
def line_set() -> Iterator[Case]:
    """``line_set(w, b, a, x)``: the ends of Clarke's subdifferential of a hidden layer on the line."""
    for m, tied in ((3, 0), (4, 1), (4, 2), (6, 4), (5, 5), (2, 2)):
        w, x = (random_tensor(m) * 4).round() / 2, (random_tensor(1) * 4).round()[0].item() / 2
        w = torch.where(w == 0, 1.0, w)
        a, gap = random_tensor(m), random_tensor(m).sign()
        gap[:tied] = 0
        if tied > 1:
            w[1], a[1] = -w[0], -a[0]  # the kinks of these two cancel
        b = gap - w * x
        right, left = ((a * w * torch.where(gap == 0, v * w > 0, gap > 0)).sum() for v in (1, -1))
        loose = torch.stack([(a * w)[:tied].clamp(max=0).sum(), (a * w)[:tied].clamp(min=0).sum()])
        rest = (a * w * (gap > 0)).sum()
        wanted = (min(left, right), max(left, right))
        mistakes: dict[str, Any] = {
            "the sum of the intervals of the units: it holds what backprop may return, and is too large": tuple(
                rest + loose
            ),
            "every tied unit is off, at both ends": (rest, rest),
            "every tied unit is on, at both ends": ((a * w * (gap >= 0)).sum(),) * 2,
            "the upper end comes first": wanted[::-1],
            "the ends of the pieces where tied units are all off or all on, which are no pieces": tuple(
                sorted((rest, (a * w * (gap >= 0)).sum()))
            ),
        }
        where = "with ties" if tied else "without ties"
        yield Case((w, b, a, x), wanted, None, harmful(mistakes, wanted), where, measure=tuple)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(random.SystemRandom().getrandbits(63))


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
