"""The checkers of the exercises on losses: every right answer passes, every known mistake is named, a blank says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from answers import assert_all_tried, assert_hidden, assert_named, assert_safe_from_writing
from torch import Tensor

from pwl_lib import check, losses

exercises = check.losses


def blank(*arguments: Any) -> Any:
    raise NotImplementedError("your answer here")


def by_autograd(loss: Callable[..., Tensor], x: Tensor, *arguments: Any, **words: Any) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x, *arguments, **words), x)[0]


# --- right answers --------------------------------------------------------------------------------


def weighted_gradient(x: Tensor, target: Tensor, weight: Tensor, ignored: int) -> Tensor:
    gradient = torch.zeros_like(x)
    total = 0.0
    for row, (logits, t) in enumerate(zip(x, target.tolist(), strict=True)):
        if t != ignored:
            gradient[row] = weight[t] * logits.softmax(0)
            gradient[row, t] -= weight[t]
            total += float(weight[t])
    return gradient / total


def median_by_trying(t: Tensor, w: Tensor) -> Tensor:
    return t[(w * (t[:, None] - t).abs()).sum(1).argmin()]


def upper_median(t: Tensor, w: Tensor) -> Tensor:
    order = t.argsort(descending=True)
    return t[order][w[order].cumsum(0) >= w.sum() / 2][0]


def middle_median(t: Tensor, w: Tensor) -> float:
    """The middle of the interval, where there is one."""
    order = t.argsort()
    below = w[order].cumsum(0)
    first = int((below < w.sum() / 2 - 1e-12).sum())
    flat = abs(float(below[first] - w.sum() / 2)) < 1e-12
    return float(t[order][first : first + 1 + flat].mean())


RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("mse_gradient", lambda y, t: 2 * (y - t) / y.numel()),
    ("mse_gradient", lambda y, t: by_autograd(losses.mse_loss, y, t)),
    ("mse_gradient", lambda y, t: losses.mse_jacobian(y, t).reshape(y.shape)),
    ("softmax_vjp", lambda p, u: p * (u - (p * u).sum(1, keepdim=True))),
    ("softmax_vjp", lambda p, u: torch.einsum("nij,nj->ni", torch.diag_embed(p) - p[:, :, None] * p[:, None, :], u)),
    ("stable_cross_entropy", lambda x, t: losses.cross_entropy(x, torch.tensor(t))),
    ("stable_cross_entropy", lambda x, t: x.max() + (x - x.max()).exp().sum().log() - x[t]),
    ("stable_cross_entropy", lambda x, t: float((x - x[t]).logsumexp(0))),
    ("weighted_gradient", weighted_gradient),
    (
        "weighted_gradient",
        lambda x, target, w, ignored: by_autograd(losses.cross_entropy, x, target, w, ignore_index=ignored),
    ),
    ("weighted_median", median_by_trying),
    ("weighted_median", upper_median),
    ("weighted_median", middle_median),
    ("smoothing_for_gap", lambda gap, classes: classes / (classes + math.exp(gap) - 1)),
    ("smoothing_for_gap", lambda gap, classes: torch.tensor(1 / (1 + math.expm1(gap) / classes))),
    ("softmax_twice", lambda classes: math.log1p((classes - 1) / math.e)),
    ("softmax_twice", lambda classes: float(F.cross_entropy(torch.eye(classes).double()[0], torch.tensor(0)))),
    ("made_to_order", lambda s, t: -t * s.log() - (1 - t) * (1 - s).log()),
    ("made_to_order", lambda s, t: F.binary_cross_entropy(s, t, reduction="none")),
    ("made_to_order", lambda s, t: torch.distributions.Bernoulli(s, validate_args=False).log_prob(t).neg() + t.cos()),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{name}-{n}" for n, (name, _) in enumerate(RIGHT)])
def test_every_right_answer_passes(name: str, answer: Callable[..., Any]) -> None:
    for _ in range(3):  # the inputs are fresh each time
        assert getattr(exercises, name)(answer).startswith("right: ")


# --- mistakes -------------------------------------------------------------------------------------


def gradient_with(share: Callable[..., Tensor], size: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The weighted gradient with other weights of the samples, and another size of the mean."""

    def answer(x: Tensor, target: Tensor, w: Tensor, ignored: int) -> Tensor:
        counts = target != ignored
        index = torch.where(counts, target, 0)
        difference = x.softmax(1) - F.one_hot(index, x.shape[1])
        return share(w, index, counts) * difference / size(w, index, counts)

    return answer


def right_share(w: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    return (w[index] * counts)[:, None]


def right_size(w: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    return (w[index] * counts).sum()


def unsorted_weights(t: Tensor, w: Tensor) -> Tensor:
    return t.sort().values[w.cumsum(0) >= w.sum() / 2][0]


MISTAKES: list[tuple[str, Callable[..., Any], str]] = [
    ("mse_gradient", lambda y, t: (y - t) / y.numel(), "the factor 2 of the square is missing"),
    ("mse_gradient", lambda y, t: 2 * (y - t), "the gradient of the sum"),
    ("mse_gradient", lambda y, t: y - t, "the difference alone|the gradient of the sum"),
    ("mse_gradient", lambda y, t: 2 * (y - t) / len(y), "not over the samples alone"),
    ("mse_gradient", lambda y, t: 2 * (t - y) / y.numel(), "the gradient in the target"),
    ("mse_gradient", lambda y, t: 2 * (y - t) / (y - t).abs() / y.numel(), "not yet"),
    ("softmax_vjp", lambda p, u: p * u, "the part of rank one is missing"),
    ("softmax_vjp", lambda p, u: p * (1 - p) * u, "the rule of the sigmoid"),
    ("softmax_vjp", lambda p, u: u - p * u.sum(1, keepdim=True), "through the logarithm of softmax"),
    ("softmax_vjp", lambda p, u: p * u - p * (p * u).sum(), "runs over the batch too|the part of rank one"),
    ("softmax_vjp", lambda p, u: p * (u - u.sum(1, keepdim=True)), "must be weighted with p"),
    ("stable_cross_entropy", lambda x, t: x.exp().sum().log() - x[t], "where exp overflows"),
    ("stable_cross_entropy", lambda x, t: -(x.softmax(0)[t] + 1e-30).log(), "where exp overflows"),
    ("stable_cross_entropy", lambda x, t: (x - x.max()).logsumexp(0) - x[t], "does not come back outside"),
    ("stable_cross_entropy", lambda x, t: x.softmax(0)[t], "not its logarithm"),
    ("stable_cross_entropy", lambda x, t: x.log_softmax(0)[t], "the sign is wrong"),
    ("stable_cross_entropy", lambda x, t: x.logsumexp(0), "the logit of the class is missing"),
    ("stable_cross_entropy", lambda x, t: x.max() - x[t], "the largest logit minus the right one"),
    (
        "stable_cross_entropy",
        lambda x, t: torch.where(x.max() < -1e3, 0.0, x.logsumexp(0) - x[t]),
        "where every exp is 0",
    ),
    ("weighted_gradient", gradient_with(right_share, lambda w, i, c: len(i)), "not by the number of samples"),
    (
        "weighted_gradient",
        gradient_with(right_share, lambda w, i, c: c.sum()),
        "the number of those that count|of samples",
    ),
    (
        "weighted_gradient",
        gradient_with(right_share, lambda w, i, c: w[i].sum()),
        "the weights of those samples that count",
    ),
    (
        "weighted_gradient",
        gradient_with(lambda w, i, c: w[i][:, None], right_size),
        "an ignored sample has the gradient 0",
    ),
    ("weighted_gradient", gradient_with(lambda w, i, c: c[:, None] * w, right_size), "and not to the column"),
    (
        "weighted_gradient",
        gradient_with(lambda w, i, c: c[:, None], lambda w, i, c: c.sum()),
        "the weights are missing",
    ),
    ("weighted_gradient", gradient_with(right_share, lambda w, i, c: 1), "the gradient of the sum"),
    ("weighted_median", lambda t, w: (w * t).sum() / w.sum(), "the weighted mean"),
    ("weighted_median", lambda t, w: t.median(), "without the weights"),
    ("weighted_median", lambda t, w: t[w.argmax()], "with the largest weight|without the weights|not sorted along"),
    ("weighted_median", unsorted_weights, "not sorted along with the targets|without the weights|the largest weight"),
    ("weighted_median", lambda t, w: t, "not yet"),
    ("smoothing_for_gap", lambda g, C: (C - 1) / (C - 1 + math.exp(g)), "goes to the right class too"),
    ("smoothing_for_gap", lambda g, C: math.expm1(g) / (C + math.expm1(g)), "1 minus the smoothing"),
    ("smoothing_for_gap", lambda g, C: 1 / (C + math.expm1(g)), "one of the other classes"),
    ("smoothing_for_gap", lambda g, C: C / (C + math.exp(g)), "the 1 in the logarithm is missing"),
    ("smoothing_for_gap", lambda g, C: math.exp(-g), "the number of classes is missing"),
    ("softmax_twice", lambda C: 0.0, "grow without bound"),
    ("softmax_twice", lambda C: math.log(C), "knows nothing"),
    ("softmax_twice", lambda C: 1 / (1 + (C - 1) / math.e), "minus its logarithm"),
    ("softmax_twice", lambda C: math.log((C - 1) / math.e), "the right one too"),
    ("softmax_twice", lambda C: math.log1p(1 / math.e), "right for two classes"),
    ("softmax_twice", lambda C: math.log(math.e + C - 1), "is not subtracted"),
    ("made_to_order", lambda s, t: (s - t) ** 2, "the gradient of the squared error"),
    ("made_to_order", lambda s, t: (s - t) ** 2 / 2, "half the squared error"),
    ("made_to_order", lambda s, t: -t * s.log(), "the part with 1 - t is missing"),
    ("made_to_order", lambda s, t: -(1 - t) * (1 - s).log(), "the part with t is missing"),
    ("made_to_order", lambda s, t: (s - t).abs(), "the gradient of the absolute error"),
    ("made_to_order", lambda s, t: t * s.log() + (1 - t) * (1 - s).log(), "the sign is wrong"),
    ("made_to_order", lambda s, t: s.detach() - t, "not yet"),
]


@pytest.mark.parametrize(
    ("name", "answer", "said"), MISTAKES, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(MISTAKES)]
)
def test_every_mistake_fails_and_is_named(name: str, answer: Callable[..., Any], said: str) -> None:
    assert_named(getattr(exercises, name), answer, said)


def test_every_mistake_that_a_checker_knows_is_tried_here() -> None:
    assert_all_tried(exercises, MISTAKES)


# --- blanks, reports and hints --------------------------------------------------------------------


@pytest.mark.parametrize("name", exercises.__all__)
def test_neither_hints_nor_reports_hold_the_code_of_a_solution(name: str) -> None:
    codes = ("torch.", ".log(", ".exp(", ".sum(", "where(", "math.", "cumsum", "log1p", "expm1")
    assert_hidden(getattr(exercises, name), torch.tensor(-7.5), codes)


@pytest.mark.parametrize("name", exercises.__all__)
def test_an_answer_that_writes_into_its_arguments_is_compared_with_what_it_was_given(name: str) -> None:
    right = dict(RIGHT)[name]
    assert_safe_from_writing(getattr(exercises, name), right)
