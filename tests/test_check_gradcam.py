"""The checkers of the exercises on Grad-CAM++: every right answer passes, every known mistake is named, a blank says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from answers import assert_all_tried, assert_blank_is_told, assert_hidden, assert_named, assert_safe_from_writing
from torch import Tensor

from pwl_lib.check import gradcam as exercises
from pwl_lib.gradcam import gradcam_plusplus_weights

# --- right answers --------------------------------------------------------------------------------


def weights(A: Tensor, g: Tensor) -> Tensor:
    p = g.clamp(min=0)
    return (p / (2 + p * A.sum((1, 2), keepdim=True))).sum((1, 2))


def weights_by_inverse(A: Tensor, g: Tensor) -> Tensor:
    found = torch.zeros(len(A), dtype=A.dtype)
    for k in range(len(A)):
        for x in g[k][g[k] > 0]:
            found[k] += 1 / (2 / x + A[k].sum())
    return found


def bell(s: list[float]) -> float:
    found = [1.0]
    for n in range(len(s)):
        found.append(sum(math.comb(n, k) * found[n - k] * s[k] for k in range(n + 1)))
    return found[-1]


def bell_by_autograd(s: list[float]) -> float:
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    S: Any = sum(x * t ** (k + 1) / math.factorial(k + 1) for k, x in enumerate(s))
    y = S.exp()
    for _ in s:
        (y,) = torch.autograd.grad(y, t, create_graph=True)
    return y.item()


def head(W: Tensor, A: Tensor) -> Tensor:
    p = W.clamp(min=0)
    return p / (2 + p * A.mean((1, 2)))


def head_by_gradients(W: Tensor, A: Tensor) -> Tensor:
    g = W[:, :, None, None].expand(-1, *A.shape) / A[0].numel()
    return gradcam_plusplus_weights(A, g)


def pole(A: Tensor, g: Tensor) -> float:
    product = (g.clamp(min=0) * A.sum((1, 2), keepdim=True)).min().item()
    return -2 / product if product < 0 else math.inf


def pole_by_list(A: Tensor, g: Tensor) -> float:
    poles = [-2 / (x * A[k].sum().item()) for k in range(len(A)) for x in g[k].flatten().tolist() if x > 0]
    return min((tau for tau in poles if tau > 0), default=math.inf)


def sigmoid(Y: float, g: float, T: float) -> float:
    second, third = 1 - 2 * Y, 1 - 6 * Y + 6 * Y**2
    return second / (2 * second + g * T * third)


def sigmoid_by_symmetry(Y: float, g: float, T: float) -> float:
    odd, spread = 1 - 2 * Y, Y * (1 - Y)
    return odd / (2 * odd + g * T * (odd**2 - 2 * spread))


RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("plusplus_weights", weights),
    ("plusplus_weights", weights_by_inverse),
    ("plusplus_weights", gradcam_plusplus_weights),
    ("bell", bell),
    ("bell", bell_by_autograd),
    ("head_weights", head),
    ("head_weights", head_by_gradients),
    ("first_pole", pole),
    ("first_pole", pole_by_list),
    ("first_pole", lambda A, g: torch.tensor(pole(A, g))),
    ("sigmoid_alpha", sigmoid),
    ("sigmoid_alpha", sigmoid_by_symmetry),
    ("smooth_function", lambda n: lambda score: score**n),
    ("smooth_function", lambda n: lambda score: -7 * (3 * score) ** n),
    ("smooth_function", lambda n: lambda score: (n * score.log()).exp()),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{name}-{n}" for n, (name, _) in enumerate(RIGHT)])
def test_every_right_answer_passes(name: str, answer: Callable[..., Any]) -> None:
    for _ in range(3):
        assert getattr(exercises, name)(answer).startswith("right: ")


def test_every_exercise_has_a_right_answer_here() -> None:
    assert {name for name, _ in RIGHT} == set(exercises.__all__)


# --- mistakes -------------------------------------------------------------------------------------


def total(A: Tensor) -> Tensor:
    return A.sum((1, 2), keepdim=True)


def by_powers(A: Tensor, g: Tensor) -> Tensor:
    alpha = torch.where(g**2 > 0, g**2 / (2 * g**2 + total(A) * g**3), 0)
    return (alpha * g.relu()).sum((1, 2))


def entry_by_entry(A: Tensor, g: Tensor) -> Tensor:
    p = g.clamp(min=0)
    return (p / (2 + total(A * p))).sum((1, 2))


def bell_without_binomials(s: list[float]) -> float:
    found = [1.0]
    for n in range(len(s)):
        found.append(sum(found[n - k] * s[k] for k in range(n + 1)))
    return found[-1]


def last_pole(A: Tensor, g: Tensor) -> float:
    product = g.clamp(min=0) * total(A)
    return -2 / product[product < 0].max().item() if (product < 0).any() else math.inf


def least(product: Tensor, two: float = 2.0) -> float:
    return -two / product.min().item() if (product < 0).any() else math.inf


MISTAKES: list[tuple[str, Callable[..., Any], str]] = [
    ("plusplus_weights", by_powers, "the powers of the gradient underflow"),
    ("plusplus_weights", entry_by_entry, "yours multiplies entry by entry"),
    ("plusplus_weights", lambda A, g: (g / (2 + g * total(A))).sum((1, 2)), "negative gradients have no share"),
    ("plusplus_weights", lambda A, g: (1 / (2 + g.relu() * total(A))).sum((1, 2)), "that is the sum of alpha"),
    ("plusplus_weights", lambda A, g: weights(A, g) / g[0].numel(), "not their mean"),
    ("plusplus_weights", lambda A, g: (g.relu() ** 3).sum((1, 2)), "those are the cubes"),
    ("plusplus_weights", lambda A, g: weights(A / A[0].numel(), g), "the sum of the channel is meant, not its mean"),
    ("plusplus_weights", lambda A, g: (g**2 / (2 * g**2 + total(A) * g**3) * g.relu()).sum((1, 2)), "it holds NaN"),
    ("bell", bell_without_binomials, "binomial coefficients"),
    ("bell", lambda s: s[0] ** len(s), "that holds where S is affine"),
    ("bell", lambda s: bell(s[:-1]), "the derivative before"),
    ("bell", lambda s: s[-1], "last derivative of S alone|that holds where S is affine"),
    ("head_weights", lambda W, A: weights_of_whole(W, A), "is the weight over the number of entries"),
    ("head_weights", lambda W, A: W / (2 + W * A.mean((1, 2))), "negative weights have no share"),
    ("head_weights", lambda W, A: head(W, A) / A[0].numel(), "the sum over the entries is missing"),
    ("head_weights", lambda W, A: W / A[0].numel(), "those are the weights of Grad-CAM"),
    ("head_weights", lambda W, A: W / (2 + W.relu() * A.mean((1, 2))), "positive part is missing"),
    ("first_pole", last_pole, "the first pole was wanted"),
    ("first_pole", lambda A, g: least(g * total(A)), "negative gradients are cut off"),
    ("first_pole", lambda A, g: least(g.relu() * A), "the sum of the whole channel counts"),
    ("first_pole", lambda A, g: least(g.relu() * total(A), 1.0), "begins with 2"),
    ("sigmoid_alpha", lambda Y, g, T: 1 / (2 + g * T), "that is for exp"),
    ("sigmoid_alpha", lambda Y, g, T: 1 / (2 + g * T * (1 - 2 * Y)), "is no slope"),
    ("sigmoid_alpha", lambda Y, g, T: sigmoid(Y, 1, T), "the slope of S is missing"),
    ("sigmoid_alpha", lambda Y, g, T: sigmoid(Y, g, 1), "the sum of the channel is missing"),
    ("sigmoid_alpha", lambda Y, g, T: (1 - 2 * Y) / (1 - 2 * Y + g * T * (1 - 6 * Y + 6 * Y**2)), "the 2 of the"),
    ("sigmoid_alpha", lambda Y, g, T: 1 / (2 + g * T * (1 - Y)), "the factor 1 - Y"),
    ("smooth_function", lambda n: torch.exp, "that is the exponential"),
    ("smooth_function", lambda n: lambda score: score ** (1 / n), "the inverse of n is alpha"),
    ("smooth_function", lambda n: lambda score: 3.0, "not yet"),
    ("smooth_function", lambda n: lambda score: score**n + score + 5, "not yet"),
]


def weights_of_whole(W: Tensor, A: Tensor) -> Tensor:
    p = W.relu()
    return A[0].numel() * p / (2 + p * A.sum((1, 2)))


@pytest.mark.parametrize(
    ("name", "answer", "said"), MISTAKES, ids=[f"{name}-{n}" for n, (name, _, _) in enumerate(MISTAKES)]
)
def test_every_mistake_is_named(name: str, answer: Callable[..., Any], said: str) -> None:
    assert_named(getattr(exercises, name), answer, said)


def test_every_known_mistake_is_tried() -> None:
    assert_all_tried(exercises, MISTAKES)


# --- blanks, hints and writing --------------------------------------------------------------------


@pytest.mark.parametrize("name", exercises.__all__)
def test_a_blank_says_so(name: str) -> None:
    assert_blank_is_told(getattr(exercises, name))


HIDDEN = {
    "plusplus_weights": ["p / (2", "clamp", ".sum((1, 2)"],
    "bell": ["math.comb", "found["],
    "head_weights": ["p / (2", "clamp", ".mean("],
    "first_pole": ["-2 /", "clamp", ".min()"],
    "sigmoid_alpha": ["1 - 6", "6 * Y"],
    "smooth_function": ["score**n", "**n", "lambda score"],
}


@pytest.mark.parametrize("name", exercises.__all__)
def test_nothing_gives_the_solution_away(name: str) -> None:
    assert_hidden(getattr(exercises, name), None, HIDDEN[name])
    exercise = getattr(exercises, name)
    assert exercise.hint(1) != exercise.hint(2)


@pytest.mark.parametrize("name", ["plusplus_weights", "head_weights", "first_pole"])
def test_an_answer_that_writes_into_its_arguments_is_compared_with_what_it_was_given(name: str) -> None:
    assert_safe_from_writing(getattr(exercises, name), dict(RIGHT)[name])
