"""Checkers of the exercises of the chapter *Training*."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pwl_lib.check._exercise import Case, exercise, harmful, random_tensor

__all__ = ["behind", "best_step", "confusion", "depth_limit", "image_gradient", "open_paths"]

_random = random.SystemRandom()


@exercise(
    hint="Each sample adds 1 to a single place of the table. Which row is it, and which column?",
    more="Number the places of the table along its rows. A sample then has one whole number, and you count how often each occurs.",
)
def confusion() -> Iterator[Case]:
    """Counts of true classes against answers."""
    for classes, samples in ((3, 30), (5, 40)):
        truth, answers = (torch.tensor(_random.choices(range(classes), k=samples)) for _ in range(2))
        yield _confusion_case(truth, answers, classes, "at random answers")
    truth = torch.tensor([0, 0, 2, 0, 2])
    yield _confusion_case(truth, torch.tensor([2, 2, 2, 0, 2]), 4, "where a class never occurs")
    yield _confusion_case(truth, truth, 3, "where all answers are right")
    yield _confusion_case(truth[:0], truth[:0], 2, "without any sample")


def _confusion_case(truth: Tensor, answers: Tensor, classes: int, where: str) -> Case:
    wanted = torch.zeros(classes, classes, dtype=torch.float64)
    once = torch.zeros_like(wanted)
    for true, answer in zip(truth.tolist(), answers.tolist(), strict=True):
        wanted[true, answer] += 1
        once[true, answer] = 1
    wrong = {
        "rows and columns are exchanged: a row is a true class": wanted.T,
        "a pair that occurs more than once counts more than once": once,
        "counts were wanted, not shares of the class": wanted / wanted.sum(1, keepdim=True).clamp(min=1),
    }
    return Case((truth, answers, classes), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="Go backward layer by layer: loss, linear layer, flatten, ReLU, convolution. Each has its gradient in this part.",
    more="After the linear layer the gradient is a vector in torch's order: bring it into the shape of the convolution's output, "
    "then mask it by the sign of that output, then send it back through the kernels.",
)
def image_gradient() -> Iterator[Case]:
    """The gradient of the cross entropy in the pixels of an image."""
    for size, kernel, channels, classes in (((4, 5), (2, 2), 2, 3), ((5, 4), (3, 2), 3, 4), ((3, 3), (1, 2), 1, 2)):
        x, kernels = random_tensor(1, *size), random_tensor(channels, 1, *kernel)
        rows, columns = size[0] - kernel[0] + 1, size[1] - kernel[1] + 1
        features = channels * rows * columns
        W = random_tensor(classes, features) / features**0.5  # so that no class is certain
        yield _gradient_case(x, kernels, W, _random.randrange(classes), "at a random image")
    # A pre-activation that is exactly 0: the slope there is 0, as everywhere in the book.
    x = torch.tensor([[[1.0, 1.0, 3.0], [2.0, 5.0, 4.0]]], dtype=torch.float64)
    kernels = torch.tensor([[[[1.0, -1.0]]]], dtype=torch.float64)
    yield _gradient_case(x, kernels, random_tensor(3, 4), 1, "where an output of the convolution is 0")
    yield _gradient_case(-x, kernels.abs(), random_tensor(3, 4), 0, "where no unit is active")


def _gradient_case(x: Tensor, kernels: Tensor, W: Tensor, t: int, where: str) -> Case:
    y = F.conv2d(x, kernels)
    p = (W @ y.relu().flatten()).softmax(0)
    hot = F.one_hot(torch.tensor(t), len(W)).double()

    def back(p_minus_t: Tensor, mask: Tensor, kernels: Tensor = kernels, by_columns: bool = False) -> Tensor:
        g = W.T @ p_minus_t
        g = g.reshape(y.shape[0], y.shape[2], y.shape[1]).mT if by_columns else g.reshape(y.shape)
        return F.conv_transpose2d((g * mask)[None], kernels)[0]

    mask = (y > 0).double()
    wanted = back(p - hot, mask)
    wrong = {
        "the mask of the ReLU is missing": back(p - hot, torch.ones_like(mask)),
        "the target is missing: the gradient in the logits is softmax minus one-hot": back(p, mask),
        "the sign is wrong: it is softmax minus one-hot": -wanted,
        "the kernel is turned around once too often": back(p - hot, mask, kernels.flip(-1, -2)),
        "the columns of W are in torch's order, and not in that of vec": back(p - hot, mask, by_columns=True),
        "the slope of ReLU at 0 is 0 here": back(p - hot, (y >= 0).double()),
    }
    return Case((x, kernels, W, t), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="The product of the Jacobians is the sum of the weights of all paths. What must the weight of an open path become?",
    more="Put 1 wherever an entry is not 0, whatever its sign, and multiply. The last layer stands on the left.",
)
def open_paths() -> Iterator[Case]:
    """The number of open paths from each input to each output."""
    for sizes in ((3, 4, 2), (2, 3, 3, 4), (4, 2), (3, 3, 3)):
        chain = [random_tensor(m, n) * (random_tensor(m, n) > -0.5) for n, m in itertools.pairwise(sizes)]
        yield _paths_case(chain, "at random matrices")
    cancel = [torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)]
    yield _paths_case(cancel, "where the weights of two paths cancel")
    closed = [torch.ones(2, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)]
    yield _paths_case(closed, "where no path is open")


def _paths_case(chain: list[Tensor], where: str) -> Case:
    def product(matrices: list[Tensor]) -> Tensor:
        total = matrices[0]
        for J in matrices[1:]:
            total = J @ total
        return total

    wanted = product([(J != 0).double() for J in chain])
    wrong = {
        "those are the sums of the weights of the paths, not their number": product(chain),
        "that says whether there is a path, not how many": (wanted > 0).double(),
        "that says where the product of the Jacobians is not 0": (product(chain) != 0).double(),
        "a path with a negative weight is open too": product([(J > 0).double() for J in chain]),
        "inputs and outputs are exchanged": wanted.T,
    }
    return Case((chain,), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="Along the line the loss is a quadratic function of one number. Which two coefficients does it have?",
    more="The slope at the start is the squared norm of the gradient, and the curvature is that of H in the direction of the gradient.",
)
def best_step() -> Iterator[Case]:
    """The length of the step against the gradient that makes a quadratic loss smallest."""
    for n in (2, 3, 5):
        axes = torch.linalg.qr(random_tensor(n, n)).Q
        curvatures = torch.linspace(0.5, 3, n, dtype=torch.float64) + 0.1 * random_tensor(n).abs()
        yield _step_case(axes * curvatures @ axes.T, random_tensor(n), random_tensor(n))
    round_bowl = (0.5 + abs(float(random_tensor(1)))) * torch.eye(3, dtype=torch.float64)
    yield _step_case(round_bowl, random_tensor(3), random_tensor(3), "where the gradient points at the minimum")
    yield _step_case(torch.tensor([[4.0]], dtype=torch.float64), random_tensor(1), random_tensor(1), "in one dimension")


def _step_case(H: Tensor, b: Tensor, w: Tensor, where: str = "at a random quadratic") -> Case:
    g = H @ w - b
    wanted = (g @ g) / (g @ H @ g)
    values = torch.linalg.eigvalsh(H)
    wrong = {
        "that is the safe step for any gradient; this one may go further": 1 / values.max(),
        "that is twice the best step: there the loss is back at its value": 2 * wanted,
        "that is half the best step": wanted / 2,
        "that is the curvature along the gradient; the step is its inverse": 1 / wanted,
        "the gradient is H w - b, and here b is missing": (H @ w @ H @ w) / (H @ w @ H @ H @ w),
        "the gradient must be divided by its own curvature, not by that of w": (g @ g) / (w @ H @ w),
        "that is the longest step that lowers the loss for any gradient": 2 / values.max(),
    }
    return Case((H, b, w), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="Write the bound for L layers of equal norm. How many factors has it, and when is a factor below 1?",
    more="One layer has no factor at all, and L layers have one fewer than L. Each is the norm times the largest slope of the sigmoid.",
)
def depth_limit() -> Iterator[Case]:
    """How many sigmoid layers make the bound on the gradient small."""
    for low, high in ((1.5, 3.5), (0.5, 0.9), (1.5, 3.5), (0.5, 0.9)):
        yield _depth_case(_random.uniform(low, high), 10 ** _random.uniform(-6, -1), "at random weights")
    yield _depth_case(2.0, 0.25, "where the bound meets the share exactly")
    yield _depth_case(1.0, 1 / 64, "where the bound meets the share exactly")
    yield _depth_case(0.001, 0.5, "where one factor is enough")
    yield _depth_case(4.0, 0.5, "where the weights make up for the slope")
    yield _depth_case(7.0, 0.01, "where the bound grows")


def _depth_case(s: float, share: float, where: str) -> Case:
    wanted: int | None = None
    if s < 4:
        wanted = 1
        while (s / 4) ** (wanted - 1) > share * (1 + 1e-12):
            wanted += 1
    wrong: dict[str, Any] = {"the weights stand in the bound too: their norm times a quarter": _first(0.25, share)}
    if s < 1:
        wrong["the quarter of the sigmoid's slope is missing"] = _first(s, share)
    if wanted is not None:
        wrong |= {
            "L layers have one factor fewer than L": wanted - 1,
            "one layer too many: at most the share, so equality is enough": wanted + 1,
            "the bound does reach this share": None,
        }
    wrong = {sentence: value for sentence, value in wrong.items() if value != wanted}
    return Case((s, share), wanted, mistakes=wrong, where=where)


def _first(factor: float, share: float) -> int:
    depth = 1
    while factor ** (depth - 1) > share:
        depth += 1
    return depth


@exercise(
    hint="The scaled network is the same function for every c > 0. What is then the derivative of its loss in c?",
    more="By the chain rule that derivative is a sum over all weights that c touches: those before the unit, its bias, those behind it.",
)
def behind() -> Iterator[Case]:
    """A number about the weights behind each hidden unit, from what is before it."""
    for sizes in ((3, 4, 2, 6), (2, 5, 3, 1), (4, 2, 1, 8)):
        yield _sides_case(sizes, "at a random network")
    yield _sides_case((2, 3, 2, 4), "where no unit is active", shift=-50.0)


def _sides_case(sizes: tuple[int, int, int, int], where: str, shift: float = 0.0) -> Case:
    n, hidden, out, samples = sizes
    x, b2 = random_tensor(samples, n), random_tensor(out)
    W1, b1, W2 = (
        part.requires_grad_()
        for part in (random_tensor(hidden, n), random_tensor(hidden) + shift, random_tensor(out, hidden))
    )
    with torch.enable_grad():
        z = F.linear(F.linear(x, W1, b1).relu(), W2, b2).sin().sum()
        g1, gb, g2 = torch.autograd.grad(z, (W1, b1, W2))
    W1, b1, W2 = W1.detach(), b1.detach(), W2.detach()
    wanted = (W2 * g2).sum(0)
    wrong = {
        "the bias of the unit is scaled too, and its term is missing": (W1 * g1).sum(1),
        "the term of the bias alone; the weights before the unit are scaled too": b1 * gb,
        "the sign is wrong: the two sides are equal": -wanted,
        "one number for each hidden unit was wanted, not their sum": wanted.sum(),
        "the term of the bias has the other sign": (W1 * g1).sum(1) - b1 * gb,
    }
    return Case((W1, b1, g1, gb), wanted, mistakes=harmful(wrong, wanted), where=where)
