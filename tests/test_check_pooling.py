"""The checkers of the exercises on pooling: every right answer passes, every known mistake is named, a blank says so."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from answers import assert_all_tried, assert_hidden, assert_named, assert_safe_from_writing
from torch import Tensor

from pwl_lib import check, pooling

exercises = check.pooling


def blank(*arguments: Any) -> Any:
    raise NotImplementedError("your answer here")


# --- right answers --------------------------------------------------------------------------------


def average_by_matrix(upstream: Tensor, k: int) -> Tensor:
    height, width = upstream.shape
    matrix = pooling.averaging_matrix((1, k * height, k * width), k, dtype=upstream.dtype)
    return (matrix.T @ upstream.T.flatten()).reshape(k * width, k * height).T


def loop(choose: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A backward pass window by window; ``choose`` gives the weights of the tied pixels."""

    def vjp(x: Tensor, k: int, s: int, upstream: Tensor) -> Tensor:
        gradient = torch.zeros_like(x)
        for i, j in itertools.product(*map(range, upstream.shape)):
            window = slice(s * i, s * i + k), slice(s * j, s * j + k)
            largest = (x[window] == x[window].amax()).to(x)
            gradient[window] += choose(largest, x[window]) * upstream[i, j]
        return gradient

    return vjp


def last_of(largest: Tensor, _: Tensor) -> Tensor:
    place = int(largest.flatten().nonzero()[-1])
    return F.one_hot(torch.tensor(place), largest.numel()).reshape(largest.shape).to(largest)


def by_autograd(x: Tensor, k: int, s: int, upstream: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.max_pool2d(x[None], k, s)[0], x, upstream)[0]


def columns_by_turning(x: Tensor, k: int, s: int) -> Tensor:
    height, width = x.shape
    turned = F.max_pool2d(x.T[None], k, s, return_indices=True)[1][0].T
    return turned % height * width + turned // height


def columns_by_library(x: Tensor, k: int, s: int) -> Tensor:
    return pooling.max_pool2d(x[None], k, s, return_indices=True, ties="column-major")[1][0]


def passes(x: Tensor, k: int, s: int, ties: str) -> Tensor:
    along_rows, along_columns = ((1, k), (1, s)), ((k, 1), (s, 1))
    first, second = (along_rows, along_columns) if ties == "row-major" else (along_columns, along_rows)
    return F.max_pool2d(F.max_pool2d(x[None], *first), *second)[0]


def demands(x: Tensor, k: int, winners: Tensor) -> set[tuple[int, int]] | None:
    numbers, pairs = torch.arange(x.numel()).reshape(x.shape), set()
    for i, j in itertools.product(*map(range, winners.shape)):
        window = slice(i, i + k), slice(j, j + k)
        largest = numbers[window][x[window] == x[window].amax()].tolist()
        if int(winners[i, j]) not in largest:
            return None
        pairs |= {(int(winners[i, j]), n) for n in largest if n != int(winners[i, j])}
    return pairs


def order_by_reach(x: Tensor, k: int, winners: Tensor) -> bool:
    """No pixel may come before itself, over any number of demands."""
    pairs = demands(x, k, winners)
    if pairs is None:
        return False
    reach = torch.zeros(x.numel(), x.numel(), dtype=torch.bool)
    for a, b in pairs:
        reach[a, b] = True
    for middle in range(x.numel()):
        reach |= reach[:, middle, None] & reach[middle]
    return not bool(reach.diagonal().any())


def order_by_taking_away(x: Tensor, k: int, winners: Tensor) -> bool:
    pairs = demands(x, k, winners)
    if pairs is None:
        return False
    left = set(range(x.numel()))
    while free := {n for n in left if not any(b == n and a in left for a, b in pairs)}:
        left -= free
    return not left


RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("average_vjp", lambda g, k: g.repeat_interleave(k, 0).repeat_interleave(k, 1) / k**2),
    ("average_vjp", average_by_matrix),
    ("max_pool_vjp", by_autograd),
    ("max_pool_vjp", loop(lambda largest, _: largest / largest.sum())),
    ("max_pool_vjp", loop(last_of)),
    ("column_winners", columns_by_turning),
    ("column_winners", columns_by_library),
    ("two_passes", passes),
    ("two_passes", lambda x, k, s, ties: pooling.max_pool2d(x[None], k, s, ties=ties)[0]),
    ("one_order", order_by_reach),
    ("one_order", order_by_taking_away),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{name}-{n}" for n, (name, _) in enumerate(RIGHT)])
def test_every_right_answer_passes(name: str, answer: Callable[..., Any]) -> None:
    for _ in range(3):
        assert getattr(exercises, name)(answer).startswith("right: ")


def test_every_exercise_has_a_right_answer_here() -> None:
    assert {name for name, _ in RIGHT} == set(exercises.__all__)


# --- mistakes -------------------------------------------------------------------------------------


def assigned(x: Tensor, k: int, s: int, upstream: Tensor) -> Tensor:
    gradient = torch.zeros(x.numel(), dtype=x.dtype)
    winners = F.max_pool2d(x[None], k, s, return_indices=True)[1].flatten()
    for place, g in zip(winners.tolist(), upstream.flatten(), strict=True):
        gradient[place] = g
    return gradient.reshape(x.shape)


def row_winners(x: Tensor, k: int, s: int) -> Tensor:
    return F.max_pool2d(x[None], k, s, return_indices=True)[1][0]


def turned_winners(x: Tensor, k: int, s: int) -> Tensor:
    return F.max_pool2d(x.T[None], k, s, return_indices=True)[1][0]


def last_winners(x: Tensor, k: int, s: int) -> Tensor:
    if s != 1:
        return columns_by_library(x, k, s)
    return x.numel() - 1 - columns_by_library(x.flip(0, 1), k, 1).flip(0, 1)


def equal_weights(x: Tensor, k: int, s: int, ties: str) -> Tensor:
    return x.unfold(0, k, s).unfold(1, k, s).amax((2, 3))


def attains(x: Tensor, k: int, winners: Tensor) -> bool:
    return demands(x, k, winners) is not None


def no_pairs(x: Tensor, k: int, winners: Tensor) -> bool:
    pairs = demands(x, k, winners)
    return pairs is not None and not any((b, a) in pairs for a, b in pairs)


def order_alone(x: Tensor, k: int, winners: Tensor) -> bool:
    return attains(x, k, winners) == order_by_reach(x, k, winners)


MISTAKES: list[tuple[str, Callable[..., Any], str]] = [
    ("average_vjp", lambda g, k: torch.kron(g, torch.ones(k, k)), "the factor of the mean is missing"),
    ("average_vjp", lambda g, k: torch.kron(g, torch.ones(k, k)) / k, "not over k"),
    ("average_vjp", lambda g, k: torch.kron(g, torch.ones(k, k)) / k**4, "the mean squared"),
    ("average_vjp", lambda g, k: g.repeat(k, k) / k**2, "side by side"),
    ("average_vjp", lambda g, k: average_by_matrix(g, k).T, "transpose|shape"),
    ("max_pool_vjp", assigned, "yours keeps the last"),
    ("max_pool_vjp", loop(lambda largest, _: torch.ones_like(largest)), "only the largest one may"),
    ("max_pool_vjp", loop(lambda largest, _: torch.ones_like(largest) / largest.numel()), "the gradient of a mean"),
    ("max_pool_vjp", lambda x, k, s, g: by_autograd(x, k, s, torch.ones_like(g)), "upstream gradient is missing"),
    ("max_pool_vjp", lambda x, k, s, g: x * by_autograd(x, k, s, g), "multiplied by the image"),
    ("max_pool_vjp", loop(lambda largest, _: largest), "each of several largest pixels got the whole gradient"),
    ("max_pool_vjp", loop(lambda largest, window: largest * (window > 0)), "not yet"),
    ("column_winners", row_winners, "row-major rule"),
    ("column_winners", lambda x, k, s: turned_winners(x, k, s).T, "count down the columns"),
    (
        "column_winners",
        lambda x, k, s: turned_winners(x, k, s) % len(x) * x.shape[1] + turned_winners(x, k, s) // len(x),
        "transpose it back",
    ),
    ("column_winners", last_winners, "the last of the tied pixels"),
    ("two_passes", lambda x, k, s, t: passes(x, k, s, "row-major"), "the other rule"),
    ("two_passes", lambda x, k, s, t: passes(x, k, s, "column-major"), "the other rule"),
    ("two_passes", equal_weights, "equal weights for all tied pixels"),
    ("one_order", attains, "two windows can contradict each other|longer circle"),
    ("one_order", no_pairs, "contradict each other|longer circle"),
    ("one_order", order_alone, "must be one of the largest pixels"),
    ("one_order", lambda *a: True, "not yet"),
    ("one_order", lambda *a: False, "not yet"),
]


@pytest.mark.parametrize(
    ("name", "answer", "said"), MISTAKES, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(MISTAKES)]
)
def test_every_mistake_fails_and_is_named(name: str, answer: Callable[..., Any], said: str) -> None:
    assert_named(getattr(exercises, name), answer, said)


def test_every_mistake_that_a_checker_knows_is_tried_here() -> None:
    assert_all_tried(exercises, MISTAKES)


def test_the_checker_of_orders_agrees_with_all_orders_of_the_pixels() -> None:
    for winners in itertools.product((0, 1, 2, 3, 4, 5), (1, 2, 4, 5)):
        x = torch.ones(2, 3, dtype=torch.float64)
        places = torch.tensor([winners])
        windows = ((0, 1, 3, 4), (1, 2, 4, 5))
        possible = any(
            all(min(w, key=order.index) == p for w, p in zip(windows, winners, strict=True))
            for order in itertools.permutations(range(6))
        )
        assert order_by_reach(x, 2, places) == order_by_taking_away(x, 2, places) == possible


# --- blanks, reports and hints --------------------------------------------------------------------


@pytest.mark.parametrize("name", exercises.__all__)
def test_neither_hints_nor_reports_hold_the_code_of_a_solution(name: str) -> None:
    codes = ("torch.", "repeat_interleave", "kron", "max_pool2d", ".T", "//", "index_add", "argmax")
    assert_hidden(getattr(exercises, name), torch.tensor(0.0), codes)


@pytest.mark.parametrize("name", exercises.__all__)
def test_an_answer_that_writes_into_its_arguments_is_compared_with_what_it_was_given(name: str) -> None:
    right = dict(RIGHT)[name]
    assert_safe_from_writing(getattr(exercises, name), right)
