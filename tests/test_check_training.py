"""The checkers of the exercises on training: every right answer passes, every known mistake is named, a blank says so."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from answers import assert_all_tried, assert_hidden, assert_named, assert_safe_from_writing
from sklearn.metrics import confusion_matrix
from torch import Tensor

import pwl_lib.functional as F
from pwl_lib import check
from pwl_lib.convolution import conv2d_input, conv2d_jacobians
from pwl_lib.kronecker import unvec, vec, vec_permutation

exercises = check.training


def blank(*arguments: Any) -> Any:
    raise NotImplementedError("your answer here")


# --- right answers --------------------------------------------------------------------------------


def count_one_by_one(truth: Tensor, answers: Tensor, classes: int) -> list[list[int]]:
    table = [[0] * classes for _ in range(classes)]
    for true, answer in zip(truth.tolist(), answers.tolist(), strict=True):
        table[true][answer] += 1
    return table


def by_sklearn(truth: Tensor, answers: Tensor, classes: int) -> Any:
    if len(truth) == 0:
        return torch.zeros(classes, classes)
    return torch.as_tensor(confusion_matrix(truth, answers, labels=range(classes)))


def by_one_hot(truth: Tensor, answers: Tensor, classes: int) -> Tensor:
    return torch.eye(classes)[truth].T @ torch.eye(classes)[answers]


def gradient_with(
    mask: Callable[[Tensor], Tensor] = lambda y: (y > 0).double(),
    difference: Callable[[Tensor, Tensor], Tensor] = lambda p, t: p - t,
    turn: bool = False,
    by_columns: bool = False,
) -> Callable[..., Tensor]:
    """The gradient of an image by the library's formulas, with parts of it done otherwise."""

    def answer(x: Tensor, kernels: Tensor, W: Tensor, t: int) -> Tensor:
        y = F.conv2d(x, kernels)
        p = F.linear(F.relu(y).flatten(), W).softmax(0)
        g = W.T @ difference(p, torch.eye(len(W), dtype=torch.float64)[t])
        upstream = (unvec(g, y.shape) if by_columns else g.reshape(y.shape)) * mask(y)
        return conv2d_input(x.shape, kernels.flip(-1, -2) if turn else kernels, upstream)

    return answer


def gradient_by_autograd(x: Tensor, kernels: Tensor, W: Tensor, t: int) -> Tensor:
    x = x.requires_grad_()
    z = F.cross_entropy(F.linear(F.relu(F.conv2d(x, kernels)).flatten(), W), torch.tensor(t))
    return torch.autograd.grad(z, x)[0]


def gradient_by_matrices(x: Tensor, kernels: Tensor, W: Tensor, t: int) -> Tensor:
    y = F.conv2d(x, kernels)
    by_image = conv2d_jacobians(x, kernels)[0]
    W = W[:, vec_permutation(y.shape)]
    p = (W @ vec(y).relu()).softmax(0)
    p[t] -= 1
    return unvec(by_image.T @ ((vec(y) > 0) * (W.T @ p)), x.shape)


def paths_by_walking(jacobians: list[Tensor]) -> Tensor:
    n = jacobians[0].shape[1]
    counts = torch.zeros(len(jacobians[-1]), n)

    def walk(layer: int, unit: int, start: int) -> None:
        if layer == len(jacobians):
            counts[unit, start] += 1
            return
        for to, weight in enumerate(jacobians[layer][:, unit].tolist()):
            if weight != 0:
                walk(layer + 1, to, start)

    for start in range(n):
        walk(0, start, start)
    return counts


def product(jacobians: list[Tensor], change: Callable[[Tensor], Tensor] = lambda J: J) -> Tensor:
    return functools.reduce(lambda total, J: change(J) @ total, jacobians[1:], change(jacobians[0]))


def ones(J: Tensor) -> Tensor:
    return (J != 0).double()


def step_by_search(H: Tensor, b: Tensor, w: Tensor) -> float:
    """The minimum of a parabola through three points."""
    z = lambda eta: (w - eta * (H @ w - b)) @ H @ (w - eta * (H @ w - b)) / 2 - b @ (w - eta * (H @ w - b))
    first, second, third = z(0.0), z(1.0), z(2.0)
    return float((3 * first - 4 * second + third) / (2 * (first - 2 * second + third)))


def step(H: Tensor, b: Tensor, w: Tensor) -> Tensor:
    g = H @ w - b
    return (g @ g) / (g @ H @ g)


def limit_by_loop(s: float, share: float) -> int | None:
    if s >= 4:
        return None
    depth, bound = 1, 1.0
    while bound > share:
        depth, bound = depth + 1, bound * s / 4
    return depth


def limit_by_logarithm(s: float, share: float) -> float | None:
    return 1 + math.ceil(math.log(share) / math.log(s / 4) - 1e-9) if s < 4 else None


RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("confusion", lambda t, a, n: (n * t + a).bincount(minlength=n * n).reshape(n, n)),
    ("confusion", count_one_by_one),
    ("confusion", by_sklearn),
    ("confusion", by_one_hot),
    ("image_gradient", gradient_with()),
    ("image_gradient", gradient_by_autograd),
    ("image_gradient", gradient_by_matrices),
    ("open_paths", lambda chain: product(chain, ones)),
    ("open_paths", paths_by_walking),
    ("open_paths", lambda chain: product(chain, ones).int()),
    ("best_step", step),
    ("best_step", step_by_search),
    ("best_step", lambda H, b, w: float(step(H, b, w))),
    ("depth_limit", limit_by_loop),
    ("depth_limit", limit_by_logarithm),
    ("behind", lambda W, b, g, gb: (W * g).sum(1) + b * gb),
    ("behind", lambda W, b, g, gb: (torch.cat([W, b[:, None]], 1) * torch.cat([g, gb[:, None]], 1)).sum(1)),
    ("behind", lambda W, b, g, gb: torch.diag(W @ g.T) + b * gb),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{name}-{n}" for n, (name, _) in enumerate(RIGHT)])
def test_every_right_answer_passes(name: str, answer: Callable[..., Any]) -> None:
    for _ in range(3):  # the inputs are fresh each time
        assert getattr(exercises, name)(answer).startswith("right: ")


# --- mistakes -------------------------------------------------------------------------------------


def limit_with(factor: Callable[[float], float], more: int = 0, strict: bool = False) -> Callable[..., Any]:
    def answer(s: float, share: float) -> int | None:
        if factor(s) >= 1:
            return None
        depth = 1
        while factor(s) ** (depth - 1) > share or (strict and factor(s) ** (depth - 1) == share):
            depth += 1
        return depth + more

    return answer


MISTAKES: list[tuple[str, Callable[..., Any], str]] = [
    ("confusion", lambda t, a, n: by_one_hot(a, t, n), "rows and columns are exchanged"),
    ("confusion", lambda t, a, n: (by_one_hot(t, a, n) > 0).double(), "occurs more than once"),
    (
        "confusion",
        lambda t, a, n: by_one_hot(t, a, n) / by_one_hot(t, a, n).sum(1, keepdim=True).clamp(min=1),
        "not shares",
    ),
    (
        "confusion",
        lambda t, a, n: by_one_hot(t, a, int(t.max()) + 1),
        "a class never occurs|without any sample|not yet",
    ),
    ("image_gradient", gradient_with(mask=torch.ones_like), "the mask of the ReLU is missing"),
    ("image_gradient", gradient_with(difference=lambda p, t: p), "the target is missing"),
    ("image_gradient", gradient_with(difference=lambda p, t: t - p), "the sign is wrong"),
    ("image_gradient", gradient_with(turn=True), "turned around once too often"),
    ("image_gradient", gradient_with(by_columns=True), "in torch's order, and not in that of vec"),
    ("image_gradient", gradient_with(mask=lambda y: (y >= 0).double()), "the slope of ReLU at 0 is 0"),
    ("image_gradient", lambda x, kernels, W, t: gradient_with()(x, kernels, W, t).flatten(), "the shape is"),
    ("open_paths", product, "the sums of the weights"),
    (
        "open_paths",
        lambda chain: product(chain, lambda J: (J > 0).double()),
        "a negative weight is open too|not how many|where the product",
    ),
    ("open_paths", lambda chain: (product(chain, ones) > 0).double(), "not how many|where the product"),
    ("open_paths", lambda chain: (product(chain) != 0).double(), "where the product of the Jacobians|not how many"),
    ("open_paths", lambda chain: product(chain, ones).T, "inputs and outputs are exchanged|transpose"),
    ("best_step", lambda H, b, w: 1 / torch.linalg.eigvalsh(H).max(), "the safe step for any gradient"),
    ("best_step", lambda H, b, w: 2 / torch.linalg.eigvalsh(H).max(), "the longest step|twice the best"),
    ("best_step", lambda H, b, w: 2 * step(H, b, w), "twice the best step|the longest step"),
    ("best_step", lambda H, b, w: step(H, b, w) / 2, "half the best step"),
    ("best_step", lambda H, b, w: 1 / step(H, b, w), "the curvature along the gradient"),
    ("best_step", lambda H, b, w: step(H, 0 * b, w), "here b is missing|the safe step|the longest step"),
    (
        "best_step",
        lambda H, b, w: (H @ w - b) @ (H @ w - b) / (w @ H @ w),
        "by its own curvature",
    ),
    ("depth_limit", limit_with(lambda s: s / 4, more=-1), "one factor fewer|the weights stand"),
    ("depth_limit", limit_with(lambda s: s / 4, more=1), "one layer too many|the weights stand|the quarter"),
    ("depth_limit", limit_with(lambda s: s / 4, strict=True), "one layer too many|the weights stand|the quarter"),
    ("depth_limit", limit_with(lambda s: 0.25), "the weights stand in the bound too"),
    (
        "depth_limit",
        lambda s, share: limit_by_loop(s, share) or limit_with(lambda s: 0.25)(s, share),
        "the weights stand",
    ),
    ("depth_limit", limit_with(lambda s: s), "does reach this share"),
    ("depth_limit", lambda s, share: None, "does reach this share"),
    (
        "depth_limit",
        lambda s, share: limit_by_loop(s, share) if s >= 1 else limit_with(lambda s: s)(s, share),
        "the quarter of the sigmoid's slope",
    ),
    ("behind", lambda W, b, g, gb: (W * g).sum(1), "its term is missing"),
    ("behind", lambda W, b, g, gb: b * gb, "the term of the bias alone"),
    ("behind", lambda W, b, g, gb: -(W * g).sum(1) - b * gb, "the sign is wrong"),
    ("behind", lambda W, b, g, gb: (W * g).sum() + b @ gb, "one number for each hidden unit"),
    ("behind", lambda W, b, g, gb: (W * g).sum(1) - b * gb, "the term of the bias has the other sign"),
]


@pytest.mark.parametrize(
    ("name", "answer", "said"), MISTAKES, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(MISTAKES)]
)
def test_every_mistake_fails_and_is_named(name: str, answer: Callable[..., Any], said: str) -> None:
    assert_named(getattr(exercises, name), answer, said)


def test_every_mistake_that_a_checker_knows_is_tried_here() -> None:
    assert_all_tried(exercises, MISTAKES)


def test_the_wanted_values_are_those_of_the_chapter_and_not_only_of_the_checker() -> None:
    for case in exercises.image_gradient._cases():
        torch.testing.assert_close(case.wanted, gradient_by_autograd(*(case.arguments[0].clone(), *case.arguments[1:])))
    for case in exercises.behind._cases():
        W1, b1, g1, gb = case.arguments
        torch.testing.assert_close((W1 * g1).sum(1) + b1 * gb, case.wanted)  # the theorem of the exercise
    for case in exercises.open_paths._cases():
        assert torch.equal(paths_by_walking(case.arguments[0]).double(), case.wanted)


# --- blanks, reports and hints --------------------------------------------------------------------


@pytest.mark.parametrize("name", exercises.__all__)
def test_neither_hints_nor_reports_hold_the_code_of_a_solution(name: str) -> None:
    codes = ("torch.", ".sum(", "bincount", "math.", " @ ", "softmax(", "!= 0", "reshape", "** (")
    assert_hidden(getattr(exercises, name), torch.tensor(-7.5), codes)


@pytest.mark.parametrize("name", exercises.__all__)
def test_an_answer_that_writes_into_its_arguments_is_compared_with_what_it_was_given(name: str) -> None:
    right = next(answer for exercise, answer in RIGHT if exercise == name)
    assert_safe_from_writing(getattr(exercises, name), right)
