"""Checkers of the exercises of the chapter *Pooling*."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pwl_lib.check._exercise import Case, exercise, harmful, near, random_tensor
from pwl_lib.pooling import max_pool2d

__all__ = ["average_vjp", "column_winners", "max_pool_vjp", "one_order", "two_passes"]

_random = random.SystemRandom()


@exercise(
    hint="Every pixel lies in exactly one tile. With which factor does it enter the mean of that tile?",
    more="A tile hands the same number to all of its pixels, and neighbours in a tile are neighbours in the image.",
)
def average_vjp() -> Iterator[Case]:
    """The gradient before an average over tiles, from the gradient after it."""
    for k, shape in ((2, (2, 3)), (3, (3, 2)), (4, (1, 2)), (1, (2, 2))):
        upstream = random_tensor(*shape)
        spread = torch.kron(upstream, torch.ones(k, k, dtype=upstream.dtype))
        wrong = {
            "the factor of the mean is missing": spread,
            "the mean is over k * k pixels, not over k": spread / k,
            "that is the factor of the mean squared": spread / k**4,
            "the pixels of a tile must lie side by side: yours repeats the whole image": upstream.repeat(k, k) / k**2,
        }
        wanted = spread / k**2
        yield Case((upstream, k), wanted, mistakes=harmful(wrong, wanted))


@exercise(
    hint="For each window: which pixel was its largest? That pixel gets the upstream entry of the window.",
    more="With a stride smaller than the window one pixel can win more than once. What happens to several gradients in one variable?",
)
def max_pool_vjp() -> Iterator[Case]:
    """The gradient before max pooling, from the image and the gradient after it; at a tie any subgradient."""
    for size, k, s in (((5, 6), 3, 1), ((6, 4), 2, 2), ((7, 5), 3, 2)):
        x = _without_ties(*size)
        yield _vjp_case(x, k, s, "at a random image")
    # The largest pixel stands in the middle and wins in all windows.
    x = _without_ties(3, 3)
    x[1, 1] = x.max() + 1
    yield _vjp_case(x, 2, 1, "where one pixel wins in every window")
    yield _vjp_case(x - x.max() - 1, 2, 1, "where all numbers are negative")
    x = torch.tensor([[2.0, 2, 1, 0], [0, 2, 3, 3], [0, 0, 4, 1], [0, 0, 1, 1]], dtype=torch.float64)
    upstream = random_tensor(2, 2)
    yield Case(
        (x, 2, 2, upstream),
        "0 off the largest pixels of a window, and on them parts of the upstream entry that add up to it",
        accept=lambda value: _shares(value, x, upstream),
        mistakes={
            "each of several largest pixels got the whole gradient: the parts must add up to it": _whole(x, upstream)
        },
        where="where windows have ties",
    )


def _vjp_case(x: Tensor, k: int, s: int, where: str) -> Case:
    winners = F.max_pool2d(x[None], k, s, return_indices=True)[1][0]
    upstream = random_tensor(*winners.shape)
    wanted, overwritten = torch.zeros(x.numel(), dtype=x.dtype), torch.zeros(x.numel(), dtype=x.dtype)
    wanted.index_add_(0, winners.flatten(), upstream.flatten())
    everywhere = torch.zeros_like(x)
    for n, (place, g) in enumerate(zip(winners.flatten().tolist(), upstream.flatten())):
        overwritten[place] = g
        i, j = s * (n // winners.shape[1]), s * (n % winners.shape[1])
        everywhere[i : i + k, j : j + k] += g
    wanted = wanted.reshape(x.shape)
    wrong = {
        "a pixel that wins in several windows gets the sum of their gradients: yours keeps the last": overwritten.reshape(
            x.shape
        ),
        "every pixel of a window got its gradient; only the largest one may": everywhere,
        "that is the gradient of a mean": everywhere / k**2,
        "the upstream gradient is missing: that counts the windows a pixel won": winners.flatten()
        .bincount(minlength=x.numel())
        .reshape(x.shape)
        .double(),
        "multiplied by the image": wanted * x,
    }
    return Case((x, k, s, upstream), wanted, mistakes=harmful(wrong, wanted), where=where)


def _tiles(image: Tensor) -> Tensor:
    """The 2 by 2 tiles of an image of 4 by 4, one a row."""
    return image.unfold(0, 2, 2).unfold(1, 2, 2).reshape(4, 4)


def _shares(value: Any, x: Tensor, upstream: Tensor) -> bool:
    value = torch.as_tensor(value, dtype=torch.float64)
    if value.shape != x.shape:
        return False
    parts, numbers, whole = _tiles(value), _tiles(x), upstream.reshape(4, 1)
    largest = numbers == numbers.amax(1, keepdim=True)
    share = parts / whole
    right = torch.where(largest, share > -1e-9, parts.abs() < 1e-9).all()
    return bool(right) and near(share.sum(1), torch.ones(4))


def _whole(x: Tensor, upstream: Tensor) -> Tensor:
    spread = torch.kron(upstream, torch.ones(2, 2, dtype=x.dtype))
    highest = torch.kron(x.unfold(0, 2, 2).unfold(1, 2, 2).amax((2, 3)), torch.ones(2, 2, dtype=x.dtype))
    return torch.where(x == highest, spread, 0)


@exercise(
    hint="What does the row-major rule do on the transposed image?",
    more="The transposed image has H columns, so that its winners are numbered in another way. Take the number apart into row and "
    "column, then build the number that is asked for.",
)
def column_winners() -> Iterator[Case]:
    """The winners of max pooling under the column-major rule."""
    for size, k, s in (((5, 6), 2, 1), ((4, 7), 3, 2), ((6, 5), 2, 2)):
        yield _winners_case(_image_with_ties(*size), k, s, "at an image with many ties")
    yield _winners_case(_without_ties(5, 4), 3, 1, "at an image without ties")
    yield _winners_case(_chessboard(4, 5), 2, 1, "at a chessboard")
    yield _winners_case(torch.zeros(4, 5, dtype=torch.float64), 3, 1, "where all pixels are equal")


def _winners_case(x: Tensor, k: int, s: int, where: str) -> Case:
    row, wanted = (
        max_pool2d(x[None], k, s, return_indices=True, ties=ties)[1][0] for ties in ("row-major", "column-major")
    )
    turned = F.max_pool2d(x.T[None], k, s, return_indices=True)[1][0]
    height, width = x.shape
    wrong = {
        "that is the row-major rule": row,
        "these numbers count down the columns; row times W plus column was asked for": turned.T,
        "the result is that of the transposed image: transpose it back": turned % height * width + turned // height,
        "the last of the tied pixels instead of the first": x.numel() - 1 - _flipped_winners(x, k) if s == 1 else row,
    }
    return Case((x, k, s), wanted, mistakes=harmful(wrong, wanted), where=where)


def _flipped_winners(x: Tensor, k: int) -> Tensor:
    return max_pool2d(x.flip(0, 1)[None], k, 1, return_indices=True, ties="column-major")[1][0].flip(0, 1)


@exercise(
    hint="There are two orders of the two passes. Try both on an image of 2 by 2 pixels with equal numbers in two corners.",
    more="The second pass chooses among the winners of the first. If it chooses a row, the row decides before the column does.",
)
def two_passes() -> Iterator[Case]:
    """Max pooling in two passes of one row and one column, with the gradient of a given rule for ties."""
    for size, k, s in (((5, 6), 3, 1), ((6, 7), 2, 2), ((6, 5), 2, 1)):
        for ties in ("row-major", "column-major"):
            yield _passes_case(_image_with_ties(*size), k, s, ties)
    for ties in ("row-major", "column-major"):
        yield _passes_case(_chessboard(4, 5), 2, 1, ties)


def _passes_case(x: Tensor, k: int, s: int, ties: Any) -> Case:
    x = x.requires_grad_()
    upstream = random_tensor(*max_pool2d(x[None], k, s)[0].shape)

    def measure(y: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = torch.autograd.grad((y * upstream).sum(), x)
        return y.detach(), gradient

    wanted = measure(max_pool2d(x[None], k, s, ties=ties)[0])
    other = measure(max_pool2d(x[None], k, s, ties="row-major" if ties == "column-major" else "column-major")[0])
    equal = measure(x.unfold(0, k, s).unfold(1, k, s).amax((2, 3)))
    wrong = {
        "the value is right, and the gradient follows the other rule": other,
        "equal weights for all tied pixels: a valid subgradient, but not the rule that was asked for": equal,
    }
    return Case((x, k, s, ties), wanted, mistakes=harmful(wrong, wanted), where=f"for the {ties} rule", measure=measure)


@exercise(
    hint="A winner must come before every other largest pixel of its window. Write these demands down as arrows from pixel to pixel.",
    more="An order that meets all demands exists unless some of them lead round in a circle.",
)
def one_order() -> Iterator[Case]:
    """Whether the winners of all windows come from one order of the pixels."""
    for _ in range(4):
        x = _image_with_ties(4, 5)
        yield _order_case(x, 2, _ordered_winners(x, 2), "at the winners of a random order")
    for _ in range(4):
        x = torch.ones(3, 4, dtype=torch.float64)
        yield _order_case(x, 2, _drawn_winners(x, 2), "at winners drawn one by one")
    flat = torch.zeros(3, 4, dtype=torch.float64)
    yield _order_case(flat, 3, torch.tensor([[5, 6]]), "at two windows that contradict each other")
    ring = torch.zeros(3, 3, dtype=torch.float64)
    ring[1, 1] = -1  # the middle is in all windows, and never wins; the four neighbours make a ring
    yield _order_case(ring, 2, torch.tensor([[1, 5], [3, 7]]), "at windows that form a ring")
    yield _order_case(ring, 2, torch.tensor([[1, 1], [3, 5]]), "at windows that form a ring")
    x = _without_ties(3, 4)
    winners = F.max_pool2d(x[None], 2, 1, return_indices=True)[1][0]
    yield _order_case(x, 2, winners, "without a tie")
    wrong = winners.clone()
    wrong[0, 0] = next(n for n in (0, 1, 4, 5) if n != int(winners[0, 0]))
    yield _order_case(x, 2, wrong, "at a winner that is not the largest")


def _order_case(x: Tensor, k: int, winners: Tensor, where: str) -> Case:
    largest = _largest(x, k)
    attains = all(w in pixels for w, pixels in zip(winners.flatten().tolist(), largest))
    before = {(w, n) for w, pixels in zip(winners.flatten().tolist(), largest) for n in pixels if n != w}
    pairs = attains and not any((b, a) in before for a, b in before)
    wanted = attains and not _has_circle(before)
    wrong = {
        "it is not enough that each winner is largest in its window: two windows can contradict each other": attains,
        "it is not enough to look at pairs of windows: demands can lead round in a longer circle": pairs,
        "a winner must be one of the largest pixels of its window": not _has_circle(before),
    }
    mistakes = {sentence: value for sentence, value in wrong.items() if value != wanted}
    return Case(
        (x, k, winners),
        wanted,
        accept=lambda value: isinstance(value, bool) and value is wanted,
        mistakes=mistakes,
        where=where,
    )


def _largest(x: Tensor, k: int) -> list[list[int]]:
    """The largest pixels of every window, row by row, as row times W plus column."""
    numbers = torch.arange(x.numel()).reshape(x.shape).unfold(0, k, 1).unfold(1, k, 1).flatten(0, 1).flatten(1)
    windows = x.unfold(0, k, 1).unfold(1, k, 1).flatten(0, 1).flatten(1)
    return [n[w == w.amax()].tolist() for n, w in zip(numbers, windows)]


def _has_circle(before: set[tuple[int, int]]) -> bool:
    while before:
        follow = {b for _, b in before}
        rest = {(a, b) for a, b in before if a in follow}
        if rest == before:
            return True
        before = rest
    return False


def _ordered_winners(x: Tensor, k: int) -> Tensor:
    order = _random.sample(range(x.numel()), x.numel())
    return _shaped([min(pixels, key=order.index) for pixels in _largest(x, k)], x, k)


def _drawn_winners(x: Tensor, k: int) -> Tensor:
    return _shaped([_random.choice(pixels) for pixels in _largest(x, k)], x, k)


def _shaped(winners: list[int], x: Tensor, k: int) -> Tensor:
    return torch.tensor(winners).reshape(x.shape[0] - k + 1, x.shape[1] - k + 1)


def _without_ties(height: int, width: int) -> Tensor:
    return torch.tensor(_random.sample(range(height * width), height * width)).double().reshape(height, width) - 7.5


def _image_with_ties(height: int, width: int) -> Tensor:
    return random_tensor(height, width).clamp(-1, 1).round()


def _chessboard(height: int, width: int) -> Tensor:
    """In every window of 2 by 2 the two rules for ties differ."""
    return (torch.arange(height)[:, None] + torch.arange(width)).remainder(2).double()
