"""Checkers of the exercises of the chapter *Piecewise linear functions*."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pwl_lib.check._exercise import Case, exercise, near, random_tensor
from pwl_lib.piecewise_linear import activation_pattern, affine_piece, polyhedron


@exercise(
    hint="At x the net is a product of matrices. Which of them depends on x, and how?",
    more="Multiply by the 0/1 mask of the hidden layer between the two weights; the hidden bias passes through the same mask.",
)
def piece(*, rounds: int = 6) -> Iterator[Case]:
    """``piece(W1, b1, W2, b2, x)`` returns the affine piece ``(A, b)`` of ``W2 relu(W1 x + b1) + b2`` at ``x``."""
    for number in range(rounds):
        n, hidden, m = random.randint(2, 4), random.randint(3, 6), random.randint(2, 3)
        W1, b1, W2, b2, x = (random_tensor(*s) for s in ((hidden, n), (hidden,), (m, hidden), (m,), (n,)))
        where = "at a random input"
        if number >= rounds - 2:  # small whole numbers, so that the pre-activation is exactly 0
            W1, x = (3 * W1).round(), (3 * x).round()
            b1 = (3 * b1).round() + 0.5  # the other units are not at theirs
            b1[0] = -(W1[0] @ x)
            where = "where unit 1 is exactly at its kink"
        mask = (W1 @ x + b1 > 0).double()
        A, b = W2 @ torch.diag(mask) @ W1, W2 @ (mask * b1) + b2
        right = [(A, b)]
        if where != "at a random input":  # on both sides of a kink the piece agrees with the net at x
            other = mask.clone()
            other[0] = 1
            right.append((W2 @ torch.diag(other) @ W1, W2 @ (other * b1) + b2))
        value = W2 @ torch.relu(W1 @ x + b1) + b2
        yield Case(
            (W1, b1, W2, b2, x),
            (A, b),
            accept=partial(_is_one_of, right),
            mistakes={
                "the mask is missing: inactive units pass too": (W2 @ W1, W2 @ b1 + b2),
                "the hidden bias must pass through the mask as well": (A, W2 @ b1 + b2),
                "the hidden bias is missing from b": (A, b2),
                "b is the value at x: what A x gives must be taken away": (A, value),
                "A is transposed: one row for each output was wanted": (A.T, b),
                "the mask is 1 where the unit is off": (W2 @ torch.diag(1 - mask) @ W1, W2 @ ((1 - mask) * b1) + b2),
                "these are the activations in place of the mask": (
                    W2 @ torch.diag(torch.relu(W1 @ x + b1)) @ W1,
                    W2 @ (torch.relu(W1 @ x + b1) * b1) + b2,
                ),
            },
            where=where,
        )


@exercise(
    hint="Write down when unit i keeps its state: w z + b > 0 if it is on at x, w z + b <= 0 if it is off.",
    more="Only one of the two has the direction H z <= c: multiply the other by -1.",
)
def halfspaces(*, rounds: int = 6) -> Iterator[Case]:
    """``halfspaces(W, b, x)`` returns ``(H, c)``: where every unit of ``relu(W z + b)`` keeps the state it has at ``x``."""
    for number in range(rounds):
        n, units = random.randint(1, 3), random.randint(2, 4)
        W, b, x = random_tensor(units, n), random_tensor(units), random_tensor(n)
        where = "at a random input"
        if number == rounds - 1:
            W, x = (3 * W).round() + 0.5, (2 * x).round()
            b[0] = -(W[0] @ x)
            where = "where unit 1 is exactly at its kink, and so is off"
        sign = 1 - 2 * (W @ x + b > 0).double()
        H, c = sign[:, None] * W, -sign * b
        yield Case(
            (W, b, x),
            (H, c),
            accept=partial(_same_halfspaces, H, c),
            mistakes={
                "these halfspaces hold for the units that are off alone": (W, -b),
                "all of these look the wrong way: x itself does not satisfy them": (-H, -c),
                "the bias has the wrong sign on the right side": (H, -c),
                "H must keep one row for each unit; these are masked": ((sign < 0).double()[:, None] * W, -sign * b),
            },
            where=where,
        )


@exercise(
    hint="Along p + t d every row of H z <= c is an inequality for one number, t.",
    more="A row whose left side falls, or stays, as t grows is never violated. The others each have a time: take the earliest.",
)
def exit_time(*, rounds: int = 6) -> Iterator[Case]:
    """``exit_time(H, c, p, d)`` returns the largest ``t`` for which ``p + t d`` lies in ``H z <= c``; ``inf`` if there is none."""
    for number in range(rounds):
        n, rows = random.randint(2, 4), random.randint(5, 9)
        H, p, d = random_tensor(rows, n), random_tensor(n), random_tensor(n)
        c = H @ p + random_tensor(rows).abs() + 0.1
        where = "from a random inner point"
        H[0] = d + 0.0  # at least one row is met
        c[0] = H[0] @ p + 1 + random_tensor(1).abs().item()
        if number == rounds - 3:
            H = torch.cat([H, torch.zeros(1, n, dtype=H.dtype)])
            c = torch.cat([c, torch.ones(1, dtype=c.dtype)])
            where = "with a row that the direction is parallel to"
        if number == rounds - 2:
            H = -torch.sign(H @ d)[:, None] * H
            c = H @ p + 1
            where = "in a direction in which the polyhedron has no end"
        if number == rounds - 1:
            c[0] = H[0] @ p
            where = "from a point on the boundary, straight out"
        speed, room = H @ d, c - H @ p
        times = (room / speed)[speed > 0].tolist()
        wanted = min(times, default=math.inf)
        mistakes = {
            "this is the time of the last row that is met, not of the first": max(times, default=math.nan),
            "a time is not a distance along d: divide by how fast the row is approached": float(room.min()),
            "rows that are left behind, with H d < 0, do not count": float(
                (room / speed).abs().nan_to_num(math.inf).min()
            ),
            "rows that are left behind, with H d < 0, must not count": float((room / speed).nan_to_num(math.inf).min()),
        }
        yield Case(
            (H, c, p, d),
            wanted,
            mistakes={sentence: wrong for sentence, wrong in mistakes.items() if not near(wrong, wanted)},
            where=where,
        )


@exercise(
    hint="Left of the second knot only one hinge is not 0. What must its coefficient be?",
    more="Each further hinge changes the slope at its own knot, by its coefficient, and nothing before it.",
)
def hinges(*, rounds: int = 5) -> Iterator[Case]:
    """``hinges(knots, values)`` returns the ``c`` for which ``values[0] + sum(c[k] * relu(x - knots[k]))`` meets all values."""
    for number in range(rounds):
        n = 1 if number == rounds - 1 else random.randint(2, 6)
        knots = random_tensor(n + 1).abs().add(0.2).cumsum(0) - 2
        values = random_tensor(n + 1)
        slopes = values.diff() / knots.diff()
        wanted = torch.cat([slopes[:1], slopes.diff()])
        mistakes = {}
        if n > 1:
            mistakes = {
                "these are the slopes: a hinge adds the change of the slope at its knot": slopes,
                "these are the differences of the values; they must be divided by the lengths of the pieces": torch.cat(
                    [values.diff()[:1], values.diff().diff()]
                ),
                "these are changes of the slope divided by a length once too often": torch.cat(
                    [slopes[:1], slopes.diff() / knots.diff()[1:]]
                ),
                "the first slope is missing": torch.cat([torch.zeros_like(slopes[:1]), slopes.diff()]),
            }
        yield Case(
            (knots, values), wanted, mistakes=mistakes, where="at random knots" if n > 1 else "with a single piece"
        )


@exercise(
    hint="Set the error bound of the interpolation theorem equal to eps, and solve for n.",
    more="Round up, and think of the least number of pieces that a function can have.",
)
def pieces_needed(*, rounds: int = 6) -> Iterator[Case]:
    """``pieces_needed(bound, length, eps)`` returns the least ``n`` that guarantees an error of at most ``eps``."""
    for number in range(rounds):
        bound, length = math.exp(random.gauss(0, 1)), math.exp(random.gauss(0, 1))
        eps = 10 ** random.uniform(-6, -2)
        where = "for random numbers"
        if number == rounds - 1:
            eps, where = bound * length**2, "where one piece is enough"
        if abs((exact := length * math.sqrt(bound / (8 * eps))) - round(exact)) < 1e-6:
            exact += 1e-5  # rounding would decide
            eps = bound * (length / exact) ** 2 / 8
        wanted = max(1, math.ceil(exact))
        mistakes = {
            "one piece more would be needed: round up": math.floor(exact),
            "the 8 of the bound is missing": math.ceil(length * math.sqrt(bound / eps)),
            "the error falls like 1 / n^2, so n grows like the root of 1 / eps": math.ceil(
                length**2 * bound / (8 * eps)
            ),
            "the length counts as well as the curvature": math.ceil(math.sqrt(bound / (8 * eps))),
        }
        yield Case(
            (bound, length, eps),
            wanted,
            mistakes={sentence: wrong for sentence, wrong in mistakes.items() if wrong != wanted},
            where=where,
            tolerance=1e-12,
        )


@exercise(
    hint="Two units can switch at the same place. What if one goes off just where the other goes on?",
    more="Look for a sum of two hinges that has no kink at all.",
)
def twins() -> Iterator[Case]:
    """``twins()`` returns ``(W1, b1, W2, b2, x, y)``: two inputs with one affine piece but different code words."""
    yield Case(
        (),
        "W1 (k, n), b1 (k,), W2 (m, k), b2 (m,), x (n,), y (n,): no weight is 0, the patterns differ, the pieces agree",
        accept=_are_twins,
        where="for your net",
    )


@exercise(
    hint="A tent, up and down again on [0, 1], takes two units. What is the tent of a tent?",
    more="Each further layer can double the number of pieces that the layers before it made.",
)
def folds() -> Iterator[Case]:
    """``folds()`` returns an ``nn.Sequential`` of Linear and ReLU, one number to one, with at most 8 units and 16 pieces on [0, 1]."""
    yield Case(
        (),
        "an nn.Sequential of nn.Linear and nn.ReLU in double precision, with at most 8 ReLU units and at least 16 pieces on [0, 1]",
        accept=_folds_enough,
        where="for your net",
    )


def _is_one_of(right: list[tuple[Tensor, Tensor]], got: Any) -> bool:
    return any(near(got, one) for one in right)


def _same_halfspaces(H: Tensor, c: Tensor, got: Any) -> bool:
    """Row by row the same halfspace: equal up to a positive factor."""
    mine = torch.cat([torch.as_tensor(got[0], dtype=H.dtype), torch.as_tensor(got[1], dtype=c.dtype)[:, None]], dim=1)
    want = torch.cat([H, c[:, None]], dim=1)
    if len(got) != 2 or mine.shape != want.shape:
        return False
    lengths = mine.norm(dim=1, keepdim=True), want.norm(dim=1, keepdim=True)
    return bool((lengths[0] > 0).all()) and near(mine / lengths[0], want / lengths[1])


def _are_twins(got: Any) -> bool:
    W1, b1, W2, b2, x, y = (torch.as_tensor(part, dtype=torch.float64) for part in got)
    if W1.shape != (len(b1), len(x)) or W2.shape != (len(b2), len(b1)) or x.shape != y.shape:
        return False
    if bool((W1 == 0).any()) or bool((W2 == 0).any()):
        return False

    def model(z: Tensor) -> Tensor:
        return torch.relu(z @ W1.T + b1) @ W2.T + b2

    both = torch.stack([x, y])
    A, b = affine_piece(model, both)
    words = activation_pattern(model, both)
    return near(A[0], A[1]) and near(b[0], b[1]) and not torch.equal(words[0], words[1])


def _folds_enough(got: Any) -> bool:
    if not isinstance(got, nn.Sequential):
        return False
    units, width = 0, 1
    for module in got:
        if isinstance(module, nn.Linear):
            width = module.out_features
        elif isinstance(module, nn.ReLU):
            units += width
        else:
            return False
    return units <= 8 and _pieces_on_unit_interval(got.double()) >= 16


def _pieces_on_unit_interval(model: Callable[[Tensor], Tensor]) -> int:
    """Walks from 0 to 1 and counts how often the slope changes."""
    slopes: list[float] = []
    t = 0.0
    while t < 1 and len(slopes) < 1000:
        x = torch.tensor([[t + 1e-9]], dtype=torch.float64)
        H, c = polyhedron(model, x)
        slope = affine_piece(model, x).A.item()
        if not slopes or abs(slope - slopes[-1]) > 1e-6:
            slopes.append(slope)
        speed = H[0, :, 0]
        t = max(t + 1e-9, min((c[0] / speed)[speed > 0].tolist(), default=1.0))
    return len(slopes)
