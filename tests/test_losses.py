"""The losses: their gradients against the proofs, against torch and against their matrices, at kinks and in corner cases."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.overrides import TorchFunctionMode

import pwl_lib.functional as PF
import pwl_lib.nn as pnn
from pwl_lib import losses

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
REDUCTIONS = ["none", "mean", "sum"]
PAIRS = [(losses.l1_loss, F.l1_loss), (losses.mse_loss, F.mse_loss), (losses.cross_entropy, F.cross_entropy)]

each_device = pytest.mark.parametrize("device", DEVICES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
by_difference = pytest.mark.parametrize(("ours", "theirs"), PAIRS[:2], ids=["l1", "mse"])

numbers = st.floats(-20, 20, allow_subnormal=False)
logits = st.lists(numbers, min_size=1, max_size=8).map(lambda xs: torch.tensor(xs, dtype=torch.float64))


def gradient(loss: Callable[..., Tensor], x: Tensor, *arguments: Any, **words: Any) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(x, *arguments, **words).sum(), x)[0]


def same_bits(a: Tensor, b: Tensor) -> bool:
    equal = (a == b) | (a.isnan() & b.isnan())
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and bool(equal.all())


def one_hot(target: Tensor, like: Tensor) -> Tensor:
    return F.one_hot(target, like.shape[-1]).to(like.dtype)


# --- the theorems ---------------------------------------------------------------------------------


@pytest.mark.theorem("thm-softmax-jacobian")
@given(logits)
def test_softmax_jacobian_is_diag_p_minus_p_pt(x: Tensor) -> None:
    p, J = x.softmax(0), losses.softmax_jacobian(x)
    torch.testing.assert_close(J, jacrev(lambda x: x.softmax(0))(x))
    assert torch.equal(J, J.T)
    assert J.sum(1).abs().max() < 1e-14
    values = torch.linalg.eigvalsh(J)
    assert values.min() > -1e-14
    assert values.max() <= 0.5 + 1e-14
    v = torch.randn_like(x)
    torch.testing.assert_close(v @ J @ v, (p * (v - p @ v) ** 2).sum(), rtol=1e-9, atol=1e-12)  # a variance


@pytest.mark.theorem("thm-softmax-jacobian")
def test_softmax_jacobian_has_the_constants_as_its_kernel_and_one_half_as_its_largest_norm() -> None:
    for C in (2, 5):
        values = torch.linalg.eigvalsh(losses.softmax_jacobian(torch.randn(C, dtype=torch.float64)))
        assert (values > 1e-4).sum() == C - 1
    x = torch.tensor([0.0, 0.0, -math.inf], dtype=torch.float64)  # two classes share all probability
    torch.testing.assert_close(torch.linalg.eigvalsh(losses.softmax_jacobian(x)).max().item(), 0.5)
    assert losses.softmax_jacobian(torch.zeros(4, 2, 3)).shape == (4, 2, 3, 3)
    assert torch.equal(losses.softmax_jacobian(torch.randn(1)), torch.zeros(1, 1))


@pytest.mark.theorem("prop-log-softmax")
@given(logits, st.floats(-1e6, 1e6))
def test_log_softmax_stays_finite_under_any_shift_and_its_backward_is_u_minus_p_times_the_sum(
    x: Tensor, c: float
) -> None:
    log_p = x.log_softmax(0)
    shifted = (x + c).log_softmax(0)
    assert shifted.isfinite().all()
    assert (shifted - log_p).abs().max() <= 4 * torch.finfo(x.dtype).eps * (abs(c) + 20) + 1e-13
    top = x.max()
    assert top <= x.logsumexp(0) + 1e-14
    assert x.logsumexp(0) <= top + math.log(len(x)) + 1e-14
    u = torch.randn_like(x)
    x.requires_grad_()
    (back,) = torch.autograd.grad(x.log_softmax(0), x, u)
    torch.testing.assert_close(back, u - log_p.exp().detach() * u.sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.theorem("prop-log-softmax")
def test_the_naive_logarithm_of_softmax_fails_at_a_thousand_and_the_loss_does_not() -> None:
    x = torch.tensor([1000.0, 0.0])
    assert (x.exp() / x.exp().sum())[0].isnan()
    assert x.softmax(0).log()[1] == -math.inf
    assert losses.cross_entropy(x, torch.tensor(1)) == 1000
    assert gradient(losses.cross_entropy, x, torch.tensor(1)).tolist() == [1, -1]


@pytest.mark.theorem("thm-cross-entropy-grad")
@given(logits, st.integers(0, 7))
def test_cross_entropy_gradient_is_softmax_minus_onehot(x: Tensor, t: int) -> None:
    target = torch.tensor(t % len(x))
    ours = gradient(losses.cross_entropy, x, target)
    p = x.softmax(0)
    torch.testing.assert_close(ours, p - one_hot(target, x), rtol=1e-10, atol=1e-15)
    assert ours.sum().abs() < 1e-14
    torch.testing.assert_close(ours.abs().sum(), 2 * (1 - p[target]), rtol=1e-9, atol=1e-14)
    value = losses.cross_entropy(x, target)
    assert value >= 0
    torch.testing.assert_close(value, x.logsumexp(0) - x[target], rtol=1e-12, atol=1e-13)


@pytest.mark.theorem("prop-mse-grad")
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6))
def test_mse_gradient_is_twice_the_difference_over_n(pairs: list[tuple[float, float]]) -> None:
    x, t = torch.tensor(pairs, dtype=torch.float64).T
    n = len(pairs)
    for reduction, factor in (("none", 2), ("sum", 2), ("mean", 2 / n)):
        loss = partial(losses.mse_loss, reduction=reduction)
        torch.testing.assert_close(gradient(loss, x, t), factor * (x - t))
        torch.testing.assert_close(gradient(lambda t, x=x, loss=loss: loss(x, t), t), -factor * (x - t))
    torch.testing.assert_close(gradient(lambda x: losses.mse_loss(x, t, reduction="sum") / 2, x), x - t)
    H = hessian(lambda x: losses.mse_loss(x, t, reduction="sum"))(x)
    assert torch.equal(H, 2 * torch.eye(n, dtype=torch.float64))


def test_the_last_layer_has_no_parameters_and_sends_back_y_minus_t_or_softmax_minus_onehot() -> None:
    for module in (pnn.MSELoss(), pnn.L1Loss(), pnn.CrossEntropyLoss(), pnn.CrossEntropyLoss(torch.ones(4))):
        assert not list(module.parameters())
    for _ in range(20):
        y, t = torch.randn(2, 5, 4, dtype=torch.float64)
        back = gradient(partial(losses.mse_loss, reduction="sum"), y, t)
        torch.testing.assert_close(back, 2 * (y - t))
        classes = torch.randint(4, (5,))
        back = gradient(partial(losses.cross_entropy, reduction="sum"), y, classes)
        torch.testing.assert_close(back, y.softmax(1) - one_hot(classes, y))
        assert back.shape == y.shape


@pytest.mark.theorem("prop-l1-subdifferential")
@given(st.lists(st.tuples(numbers, numbers | st.none()), min_size=1, max_size=6), st.sampled_from(REDUCTIONS))
def test_l1_gradient_is_a_subgradient_and_zero_at_the_kink(
    pairs: list[tuple[float, float | None]], reduction: str
) -> None:
    x = torch.tensor([x for x, _ in pairs], dtype=torch.float64)
    t = torch.tensor([x if t is None else t for x, t in pairs], dtype=torch.float64)
    loss = partial(losses.l1_loss, reduction=reduction)
    g = gradient(loss, x, t)
    size = 1 / len(pairs) if reduction == "mean" else 1
    torch.testing.assert_close(g, size * (x - t).sign())
    for y in x + torch.randn(20, len(pairs), dtype=torch.float64):
        assert loss(y, t).sum() >= loss(x, t).sum() + g @ (y - x) - 1e-9


@pytest.mark.theorem("prop-l1-subdifferential")
def test_at_the_kink_of_l1_the_subgradients_are_the_interval_from_minus_one_to_one() -> None:
    x = t = torch.tensor([0.3], dtype=torch.float64)
    y = torch.linspace(-3, 3, 61, dtype=torch.float64)
    for g in torch.linspace(-2, 2, 41, dtype=torch.float64):
        supports = ((y - t).abs() >= g * (y - x) - 1e-12).all()
        assert supports == (g.abs() <= 1 + 1e-9)
    assert gradient(losses.l1_loss, x, t).tolist() == [0]
    assert torch.equal(gradient(losses.l1_loss, x, t), gradient(F.l1_loss, x, t))


@pytest.mark.theorem("prop-cross-entropy-convex")
@given(logits, st.integers(0, 7))
def test_cross_entropy_is_convex_with_hessian_diag_p_minus_p_pt(x: Tensor, t: int) -> None:
    target = torch.tensor(t % len(x))
    loss = lambda x: losses.cross_entropy(x, target)
    J = losses.softmax_jacobian(x)
    torch.testing.assert_close(hessian(loss)(x), J, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(jacrev(jacrev(loss))(x), J, rtol=1e-8, atol=1e-12)
    y = x + torch.randn_like(x)
    assert loss((x + y) / 2) <= (loss(x) + loss(y)) / 2 + 1e-12
    torch.testing.assert_close(loss(x + 3), loss(x), rtol=1e-9, atol=1e-12)  # flat along the constants


@pytest.mark.theorem("prop-cross-entropy-smoothing")
@given(st.data())
def test_general_cross_entropy_gradient(data: st.DataObject) -> None:
    N, C = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    seed = data.draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(N, C, generator=generator, dtype=torch.float64)
    w = torch.rand(C, generator=generator, dtype=torch.float64) + 0.1
    target = torch.randint(-1, C, (N,), generator=generator)
    epsilon = data.draw(st.sampled_from([0.0, 0.1, 0.7, 1.0]))
    reduction = data.draw(st.sampled_from(REDUCTIONS))
    words = {"ignore_index": -1, "label_smoothing": epsilon, "reduction": reduction}
    counts = (target >= 0).double()[:, None]
    v = counts * w * ((1 - epsilon) * one_hot(target.clamp(min=0), x) + epsilon / C)
    size = (w[target.clamp(min=0)] * counts[:, 0]).sum() if reduction == "mean" else 1
    wanted = (x.softmax(1) * v.sum(1, keepdim=True) - v) / size
    ours = gradient(losses.cross_entropy, x, target, w, **words)
    torch.testing.assert_close(ours, torch.where(counts > 0, wanted, 0), rtol=1e-9, atol=1e-12)
    # probabilities: any nonnegative rows, which need not sum to 1
    q = torch.rand(N, C, generator=generator, dtype=torch.float64)
    words.pop("ignore_index")
    v = w * ((1 - epsilon) * q + epsilon / C)
    size = N if reduction == "mean" else 1
    ours = gradient(losses.cross_entropy, x, q, w, **words)
    torch.testing.assert_close(ours, (x.softmax(1) * v.sum(1, keepdim=True) - v) / size, rtol=1e-9, atol=1e-12)
    by_target = gradient(lambda q: losses.cross_entropy(x, q, w, **words), q)
    torch.testing.assert_close(by_target, -(1 - epsilon) * w * x.log_softmax(1) / size, rtol=1e-9, atol=1e-12)


@pytest.mark.theorem("prop-smoothing-optimum")
@pytest.mark.parametrize("C", [2, 3, 10])
@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.5, 0.9, 1.0])
def test_smoothing_puts_the_optimum_at_a_finite_gap_of_the_logits(C: int, epsilon: float) -> None:
    gap = math.log1p(C * (1 - epsilon) / epsilon)
    x = torch.randn((), dtype=torch.float64) + torch.tensor([gap] + [0.0] * (C - 1), dtype=torch.float64)
    target = torch.tensor(0)
    loss = partial(losses.cross_entropy, label_smoothing=epsilon)
    assert gradient(loss, x, target).abs().max() < 1e-15
    q = torch.full((C,), epsilon / C, dtype=torch.float64)
    q[0] += 1 - epsilon
    torch.testing.assert_close(loss(x, target), -(q * q.log()).sum())
    for _ in range(20):
        assert loss(x + torch.randn_like(x), target) > loss(x, target) - 1e-12


@pytest.mark.theorem("thm-mean-median")
@given(st.lists(numbers, min_size=1, max_size=9), numbers)
def test_the_mean_minimises_the_squares_and_exactly_the_medians_minimise_l1(values: list[float], c: float) -> None:
    t = torch.tensor(values, dtype=torch.float64)
    squares = lambda c: losses.mse_loss(c.expand_as(t), t)
    total = lambda c: losses.l1_loss(c.expand_as(t), t, reduction="sum")
    mean, c_ = t.mean(), torch.tensor(c, dtype=torch.float64)
    torch.testing.assert_close(squares(c_), squares(mean) + (c_ - mean) ** 2, rtol=1e-9, atol=1e-9)
    ordered = t.sort().values
    low, high = ordered[(len(t) - 1) // 2], ordered[len(t) // 2]
    least = total(low)
    torch.testing.assert_close(total(high), least)
    for point in [c_, *t, (low + high) / 2]:
        if low <= point <= high:
            torch.testing.assert_close(total(point), least)
        else:
            assert total(point) > least - 1e-12
            assert total(point) - least >= 0.999 * torch.minimum((point - low).abs(), (point - high).abs()) - 1e-12


@pytest.mark.theorem("prop-slow-squares")
@given(st.floats(0, 40), st.sampled_from([0.0, 1.0]))
def test_squares_of_a_sigmoid_learn_exponentially_slowly_when_wrong_and_cross_entropy_does_not(
    m: float, t: float
) -> None:
    wrong = torch.tensor(m if t == 0 else -m, dtype=torch.float64)  # the logit, on the wrong side
    target = torch.tensor(t, dtype=torch.float64)
    squares = gradient(lambda x: losses.mse_loss(x.sigmoid(), target), wrong)
    s = wrong.sigmoid()
    torch.testing.assert_close(squares, 2 * (s - target) * s * (1 - s), rtol=1e-6, atol=1e-15)
    assert squares.abs() <= 2 * math.exp(-m) * (1 + 1e-6) + 1e-15  # 1 - s has rounding errors
    two = torch.stack([torch.zeros_like(wrong), wrong])  # the softmax of (0, x) is the sigmoid of x
    entropy = gradient(losses.cross_entropy, two, torch.tensor(int(t)))[1]
    torch.testing.assert_close(entropy, s - target)
    assert entropy.abs() >= 0.5
    assert squares.sign() == entropy.sign() or squares == 0


@pytest.mark.theorem("prop-slow-squares")
def test_no_slope_of_the_squared_sigmoid_exceeds_eight_twentysevenths() -> None:
    x = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    slopes = gradient(partial(losses.mse_loss, reduction="sum"), x.sigmoid(), torch.zeros_like(x)) * (
        x.sigmoid() * (1 - x.sigmoid())
    )
    assert slopes.max() <= 8 / 27
    torch.testing.assert_close(slopes.max().item(), 8 / 27, rtol=1e-6, atol=0)
    torch.testing.assert_close(x[slopes.argmax()].item(), math.log(2), rtol=0, atol=1e-3)


# --- against torch --------------------------------------------------------------------------------


@by_difference
@each_dtype
@each_device
@each_reduction
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_of_a_difference_equal_torchs(
    ours: Any, theirs: Any, dtype: torch.dtype, device: str, reduction: str, weighted: bool
) -> None:
    for shape in ((), (5,), (3, 4), (2, 3, 4, 5), (0, 3)):
        x, t = torch.randn(2, *shape, device=device).to(dtype)
        x.view(-1)[:1] = t.view(-1)[:1]  # a tie
        weight = torch.rand(shape, device=device).to(dtype).requires_grad_() if weighted else None
        upstream = torch.randn(shape if reduction == "none" else (), device=device).to(dtype)
        results = []
        for loss in (ours, theirs):
            leaves = [x.clone().requires_grad_(), t.clone().requires_grad_(), *([weight] if weighted else [])]
            value = loss(leaves[0], leaves[1], reduction=reduction, weight=weight)
            results.append([value.detach(), *torch.autograd.grad(value, leaves, upstream)])
        assert same_bits(results[0][0], results[1][0])
        error = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).tiny}
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True, **error)


SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 5e-324, 1e-45, 65504.0, 3e38]


@by_difference
@given(
    st.lists(st.tuples(*[st.sampled_from(SPECIAL) | st.floats(-4, 4)] * 3), min_size=1, max_size=40),
    st.sampled_from(DTYPES),
    st.sampled_from(REDUCTIONS),
)
def test_losses_of_a_difference_equal_torchs_bit_for_bit(
    ours: Any, theirs: Any, rows: list[tuple[float, ...]], dtype: torch.dtype, reduction: str
) -> None:
    x, t, u = torch.tensor(rows, dtype=torch.float64).to(dtype).T
    upstream = u if reduction == "none" else u[0]
    results = []
    for loss in (ours, theirs):
        leaves = [x.clone().requires_grad_(), t.clone().requires_grad_()]
        value = loss(*leaves, reduction=reduction)
        results.append([value.detach(), *torch.autograd.grad(value, leaves, upstream)])
    if reduction == "mean" and dtype.itemsize == 2 and ours is losses.mse_loss:
        results = [[value] for value, *_ in results]  # torch rounds the factor 2/n to half precision, we do not
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@given(st.lists(st.sampled_from(SPECIAL) | st.floats(-40, 40), min_size=1, max_size=6), st.integers(0, 5))
def test_cross_entropy_of_special_logits_equals_torchs(values: list[float], t: int) -> None:
    x, target = torch.tensor(values, dtype=torch.float64), torch.tensor(t % len(values))
    assert same_bits(losses.cross_entropy(x.requires_grad_(), target), F.cross_entropy(x, target))
    ours, theirs = (gradient(loss, x, target) for loss in (losses.cross_entropy, F.cross_entropy))
    torch.testing.assert_close(ours, theirs, equal_nan=True)


SETTINGS = [
    {"reduction": reduction, "label_smoothing": smoothing, "weighted": weighted}
    for reduction, smoothing, weighted in itertools.product(REDUCTIONS, (0.0, 0.1, 1.0), (False, True))
]
SHAPES = [(5,), (3, 4), (0, 4), (3, 4, 5), (2, 3, 2, 2)]


def _example(
    shape: tuple[int, ...], kind: str, dtype: torch.dtype, device: str, seed: int = 0
) -> tuple[Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(seed)
    x = (2 * torch.randn(shape, generator=generator)).to(device, dtype)
    classes = shape[0] if len(shape) == 1 else shape[1]
    places = () if len(shape) == 1 else (shape[0], *shape[2:])
    target = torch.randint(classes, places, generator=generator).to(device)
    if kind == "probabilities":
        return x, torch.rand(shape, generator=generator).to(device, dtype), -100
    if kind == "bytes":
        return x, target.byte(), -100
    if kind == "some ignored":
        return x, torch.where(torch.rand(places, generator=generator).to(device) < 0.4, -7, target), -7
    if kind == "a class ignored":
        return x, target, 1
    if kind == "all ignored":
        return x, torch.full_like(target, 1), 1
    return x, target, -100


KINDS = ["indices", "probabilities", "bytes", "some ignored", "a class ignored", "all ignored"]


@pytest.mark.parametrize("kind", KINDS)
@each_dtype
@each_device
def test_cross_entropy_equals_torchs(kind: str, dtype: torch.dtype, device: str) -> None:
    for shape, setting in itertools.product(SHAPES, SETTINGS):
        words = dict(setting)
        weighted = words.pop("weighted")
        if kind == "bytes" and words["reduction"] == "mean" and weighted and words["label_smoothing"]:
            continue  # torch itself fails there
        if kind == "bytes" and len(shape) > 2:
            continue  # and there
        x, target, words["ignore_index"] = _example(shape, kind, dtype, device)
        words["weight"] = (
            torch.linspace(0.5, 1.5, shape[0] if len(shape) == 1 else shape[1]).to(x) if weighted else None
        )
        upstream = None
        results = []
        for loss in (losses.cross_entropy, F.cross_entropy):
            leaves = [x.clone().requires_grad_()]
            given = target
            if kind == "probabilities":
                given = target.clone().requires_grad_()
                leaves.append(given)
            value = loss(leaves[0], given, **words)
            upstream = torch.randn_like(value) if upstream is None else upstream
            results.append([value.detach(), *torch.autograd.grad(value, leaves, upstream)])
        if not (weighted and words["label_smoothing"]) or device == "cpu":
            torch.testing.assert_close(results[0][0], results[1][0], equal_nan=True)
        if not words["label_smoothing"]:
            assert same_bits(results[0][0], results[1][0])
        # in half precision torch rounds after each of its steps: what is asked is the error of one such step
        size = max([1.0, *(float(u.abs().max()) for u in (upstream,) if u.numel())])
        error = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 16 * size * torch.finfo(dtype).eps}
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True, **error)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_gradients_are_as_near_to_the_truth_as_torchs(kind: str) -> None:
    ours = theirs = 0.0
    for seed in range(20):
        x, target, ignored = _example((16, 10), kind, torch.bfloat16, "cpu", seed)
        words = {"ignore_index": ignored, "label_smoothing": 0.1, "reduction": "sum"}
        truth = gradient(
            F.cross_entropy, x.double(), target.double() if target.is_floating_point() else target, **words
        )
        ours += float((gradient(losses.cross_entropy, x, target, **words) - truth).abs().sum())
        theirs += float((gradient(F.cross_entropy, x, target, **words) - truth).abs().sum())
    assert ours <= 1.05 * theirs


def test_everything_ignored_is_nan_with_gradient_zero_under_the_mean_and_zero_under_the_sum() -> None:
    x, target = torch.randn(3, 4), torch.full((3,), -100)
    for smoothing in (0.0, 0.2):
        words = {"label_smoothing": smoothing}
        assert losses.cross_entropy(x, target, **words).isnan()
        assert losses.cross_entropy(x.requires_grad_(), target, **words).isnan()
        assert not gradient(losses.cross_entropy, x, target, **words).any()
        assert not losses.cross_entropy_jacobian(x.detach(), target, **words).any()
        assert losses.cross_entropy(x, target, reduction="sum", **words) == 0


def test_an_empty_batch_has_a_mean_of_nan_and_a_sum_of_zero() -> None:
    for empty, target in (
        (torch.empty(0, 4), torch.empty(0, dtype=torch.int64)),
        (torch.empty(0, 4), torch.empty(0, 4)),
    ):
        for x in (empty, empty.clone().requires_grad_()):
            assert losses.cross_entropy(x, target).isnan()
            assert losses.cross_entropy(x, target, reduction="sum") == 0
            assert losses.cross_entropy(x, target, reduction="none").shape == (0,)
    assert gradient(losses.cross_entropy, empty, target).shape == (0, 4)
    assert losses.cross_entropy_jacobian(empty, target, reduction="none").shape == (0, 0)
    for loss in (losses.l1_loss, losses.mse_loss):
        assert loss(empty, empty).isnan()
        assert loss(empty, empty, reduction="sum") == 0
        assert gradient(loss, empty, empty).shape == (0, 4)


def test_the_mean_of_weighted_indices_divides_by_the_weights_of_the_targets() -> None:
    x, target, w = torch.randn(3, 4).double(), torch.tensor([0, 2, -100]), torch.tensor([1.0, 5.0, 3.0, 7.0]).double()
    each = losses.cross_entropy(x, target, reduction="none")
    assert each[2] == 0
    torch.testing.assert_close(losses.cross_entropy(x, target, w), (1 * each[0] + 3 * each[1]) / (1 + 3))
    q = torch.rand(3, 4).double()
    torch.testing.assert_close(losses.cross_entropy(x, q, w), losses.cross_entropy(x, q, w, reduction="sum") / 3)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_infinite_logits_switch_a_class_off(requires_grad: bool) -> None:
    x = torch.tensor([[1.0, -math.inf, 2.0]], requires_grad=requires_grad)
    for loss in (losses.cross_entropy, F.cross_entropy):
        assert loss(x, torch.tensor([0])).isfinite()
        assert loss(x, torch.tensor([1])) == math.inf
    assert torch.equal(gradient(losses.cross_entropy, x, torch.tensor([0]))[:, 1], torch.zeros(1))


@by_difference
@each_reduction
def test_mixed_dtypes_promote_as_in_torch(ours: Any, theirs: Any, reduction: str) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    for target in (torch.randn(3, 4).double(), torch.randn(3, 4).bfloat16(), torch.ones(3, 4, dtype=torch.int64)):
        assert same_bits(ours(x, target, reduction=reduction), theirs(x, target, reduction=reduction))
        g = gradient(partial(ours, reduction=reduction), x, target)
        assert g.dtype == torch.float32
        wide = gradient(partial(theirs, reduction=reduction), x.double(), target.double())  # torch 2.9 needs one dtype
        torch.testing.assert_close(g, wide.float())
    half = torch.randn(3, 4, dtype=torch.float16)
    assert ours(half, half.bfloat16()).dtype == torch.float32


def test_mixed_dtypes_of_cross_entropy() -> None:
    x, q = torch.randn(3, 4), torch.rand(3, 4).double()
    value = losses.cross_entropy(x.requires_grad_(), q)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, F.cross_entropy(x, q), rtol=1e-6, atol=0)
    assert gradient(losses.cross_entropy, x, q).dtype == torch.float32


# --- every way to differentiate -------------------------------------------------------------------


def _modes(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    leaves = tuple(x.detach().clone().requires_grad_() for x in inputs)
    words = {"check_batched_grad": True}
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, check_batched_forward_grad=True, **words)
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True, check_rev_over_rev=True, **words)


@each_device
@each_reduction
def test_gradcheck_in_every_mode_of_differentiation(reduction: str, device: str) -> None:
    x, t, w = torch.randn(3, 2, 3, dtype=torch.float64, device=device)
    classes = torch.tensor([1, -100], device=device)
    for loss in (losses.l1_loss, losses.mse_loss):
        _modes(partial(loss, reduction=reduction), x, t)
        _modes(lambda x, t, w, loss=loss: loss(x, t, reduction=reduction, weight=w), x, t, w)
    for weight, smoothing in ((None, 0.0), (w[0].abs(), 0.1)):
        words = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
        _modes(lambda x, words=words: losses.cross_entropy(x, classes, **words), x)
        _modes(lambda x, q, words=words: losses.cross_entropy(x, q, **words), x, t.abs())


@pytest.mark.parametrize("kind", KINDS)
def test_torch_func_gives_the_matrix_and_the_hessian(kind: str) -> None:
    for shape, setting in itertools.product([(5,), (3, 4), (2, 3, 2)], SETTINGS[::2]):
        x, target, ignored = _example(shape, kind, torch.float64, "cpu")
        words: dict[str, Any] = {**setting, "ignore_index": ignored}
        weighted = words.pop("weighted")
        words["weight"] = (
            torch.linspace(0.5, 1.5, shape[0] if len(shape) == 1 else shape[1]).double() if weighted else None
        )
        f = lambda x, target=target, words=words: losses.cross_entropy(x, target, **words)
        J = losses.cross_entropy_jacobian(x, target, **words)
        torch.testing.assert_close(jacrev(f)(x).reshape(J.shape), J)
        if f(x).isnan().any():
            continue  # everything is ignored, and what forward mode says of a NaN is NaN, in torch too
        torch.testing.assert_close(jacfwd(f)(x).reshape(J.shape), J)
        tangent = torch.randn_like(x)
        torch.testing.assert_close(jvp(f, (x,), (tangent,))[1].flatten(), J @ tangent.flatten())
        if kind != "bytes":  # torch has no second derivative there
            g = lambda x, target=target, words=words: F.cross_entropy(x, target, **words).square().sum()
            torch.testing.assert_close(hessian(lambda x, f=f: f(x).square().sum())(x), hessian(g)(x))


@by_difference
@each_reduction
@pytest.mark.parametrize("weighted", [False, True])
def test_matrices_of_the_losses_of_a_difference(ours: Any, theirs: Any, reduction: str, weighted: bool) -> None:
    matrix = losses.l1_jacobian if ours is losses.l1_loss else losses.mse_jacobian
    x, t, w = torch.randn(3, 2, 3, dtype=torch.float64)
    x[0, 0] = t[0, 0]
    words = {"reduction": reduction, "weight": w if weighted else None}
    J = matrix(x, t, **words)
    assert J.shape == ((6, 6) if reduction == "none" else (1, 6))
    torch.testing.assert_close(jacrev(partial(ours, **words))(x, t).reshape(J.shape), J)
    torch.testing.assert_close(jacfwd(partial(ours, **words))(x, t).reshape(J.shape), J)
    torch.testing.assert_close(jacfwd(partial(ours, **words), argnums=1)(x, t).reshape(J.shape), -J)


def test_a_batch_of_samples_by_vmap() -> None:
    x, q = torch.randn(2, 6, 4, dtype=torch.float64)
    q = q.softmax(1)
    target, w = torch.tensor([0, 1, 2, 3, -100, 1]), torch.rand(6, 4, dtype=torch.float64)
    each = {"reduction": "none"}
    alone = losses.cross_entropy(x, target, **each)
    torch.testing.assert_close(vmap(lambda x, t: losses.cross_entropy(x, t, **each))(x, target), alone)
    rows = losses.cross_entropy_jacobian(x, target, **each).reshape(6, 6, 4)
    torch.testing.assert_close(
        vmap(jacrev(lambda x, t: losses.cross_entropy(x, t, **each)))(x, target),
        torch.stack([rows[i, i] for i in range(6)]),
    )
    weighted = vmap(lambda x, t, w: losses.cross_entropy(x, t, w, label_smoothing=0.1, **each))
    wanted = [F.cross_entropy(a, t, b, label_smoothing=0.1, **each) for a, t, b in zip(x, target, w, strict=True)]
    torch.testing.assert_close(weighted(x, target, w), torch.stack(wanted))
    H = vmap(hessian(losses.cross_entropy))(x, q)
    torch.testing.assert_close(H, losses.softmax_jacobian(x))
    by_both = vmap(grad(losses.cross_entropy, argnums=(0, 1)))(x, q)
    torch.testing.assert_close(by_both[0], x.softmax(1) - q)
    torch.testing.assert_close(by_both[1], -x.log_softmax(1))
    for loss in (losses.l1_loss, losses.mse_loss):
        torch.testing.assert_close(vmap(loss)(x, q), loss(x, q, reduction="none").mean(1))


def test_forward_mode_nested_in_forward_mode_is_refused_since_torch_drops_a_part_of_it() -> None:
    x, t = torch.randn(2, 3, dtype=torch.float64)
    for loss, target in ((losses.l1_loss, t), (losses.mse_loss, t), (losses.cross_entropy, torch.tensor(1))):
        f = lambda x, loss=loss, target=target: (loss(x * x, target, reduction="none") * x).sum()
        with pytest.raises(NotImplementedError, match="use reverse mode for one of the two"):
            jacfwd(jacfwd(f))(x)
        torch.testing.assert_close(hessian(f)(x), jacrev(jacrev(f))(x))


def test_no_derivative_in_the_class_weights() -> None:
    x, target, w = torch.randn(2, 3), torch.tensor([0, 2]), torch.ones(3)
    with pytest.raises(ValueError, match="weight must not require a gradient"):
        losses.cross_entropy(x, target, w.clone().requires_grad_())
    with pytest.raises((ValueError, NotImplementedError), match="no derivative in weight"):
        grad(lambda w: losses.cross_entropy(x, target, w))(w)
    with pytest.raises(NotImplementedError, match="no derivative in weight"):
        jvp(lambda w: losses.cross_entropy(x, target, w), (w,), (w,))
    with pytest.raises(NotImplementedError, match="no derivative in weight"):  # in here no tensor tells beforehand
        grad(lambda w: vmap(losses.cross_entropy)(x, target, w).sum())(torch.ones(2, 3))


# --- the rest of torch ----------------------------------------------------------------------------


def _all_at_once(
    x: Tensor, t: Tensor, q: Tensor, classes: Tensor, w: Tensor, reductions: tuple[str, ...]
) -> list[Tensor]:
    found = []
    for reduction in reductions:
        words = {"reduction": reduction}
        found += [
            losses.l1_loss(x, t, **words),
            losses.mse_loss(x, t, **words),
            losses.mse_loss(x, t, weight=t.abs(), **words),  # weights whose sum is near 0 would magnify every rounding
        ]
        found += [losses.cross_entropy(x, target, w, label_smoothing=0.1, **words) for target in (classes, q)]
        found += [losses.cross_entropy(x, classes, **words)]
    return found


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(
                not (shutil.which("g++") or shutil.which("clang++")) or " " in torch.__file__,
                reason="inductor needs a C++ compiler, and does not quote a path with a space",
            ),
        ),
    ],
)
def test_compiles_whole(backend: str) -> None:
    x, t = torch.randn(2, 3, 4)
    arguments = (t, t.softmax(1), torch.tensor([0, 3, -100]), torch.arange(1.0, 5.0))
    arguments += (("mean",) if backend == "inductor" else tuple(REDUCTIONS),)
    results = []
    for function in (torch.compile(_all_at_once, fullgraph=True, backend=backend), _all_at_once):
        leaf = x.clone().requires_grad_()
        values = function(leaf, *arguments)
        results.append([*values, *(torch.autograd.grad(v.sum(), leaf, retain_graph=True)[0] for v in values)])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


@each_dtype
@each_device
@pytest.mark.parametrize("requires_grad", [False, True])
def test_autocast_as_torch(dtype: torch.dtype, device: str, requires_grad: bool) -> None:
    x, t = (tensor.clone() for tensor in torch.randn(2, 3, 4, device=device).to(dtype))
    x.requires_grad_(requires_grad)
    classes = torch.tensor([0, 3, 1], device=device)
    with torch.autocast(device, torch.bfloat16):
        for ours, theirs in PAIRS[:2]:
            assert same_bits(ours(x, t), theirs(x, t))
        assert same_bits(losses.mse_loss(x, t, weight=t.abs()), F.mse_loss(x, t, weight=t.abs())) or device == "cuda"
        for target in (classes, t.softmax(1)):
            ours_, theirs_ = losses.cross_entropy(x, target), F.cross_entropy(x, target)
            assert ours_.dtype == theirs_.dtype
            torch.testing.assert_close(ours_, theirs_, rtol=0, atol=1e-6)


def _kept(function: Callable[[], Any]) -> int:
    kept: dict[int, int] = {}
    note = lambda tensor: kept.update({tensor.data_ptr(): tensor.nbytes}) or tensor
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        function()
    return sum(kept.values())


@each_dtype
@each_reduction
def test_what_is_kept_for_the_backward_pass(dtype: torch.dtype, reduction: str) -> None:
    x = torch.randn(1000, 10).to(dtype).requires_grad_()
    t, classes = torch.randn(1000, 10).to(dtype), torch.randint(10, (1000,))
    words = {"reduction": reduction}
    assert _kept(lambda: losses.l1_loss(x, t, **words)) == 10_000
    assert _kept(lambda: losses.mse_loss(x, t, **words)) == 10_000 * dtype.itemsize
    assert _kept(lambda: F.mse_loss(x, t, **words)) == 2 * 10_000 * dtype.itemsize
    for smoothing in (0.0, 0.1):
        ours = _kept(lambda s=smoothing: losses.cross_entropy(x, classes, label_smoothing=s, **words))
        assert ours == 10_000 * dtype.itemsize + 8000
    assert _kept(lambda: losses.cross_entropy(x, t, **words)) == 2 * 10_000 * dtype.itemsize


def test_saves_nothing_where_no_derivative_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    x, t, classes = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0, 1, 2])
    monkeypatch.setattr(losses, "pick", None)  # any use of autograd.Function would fail
    for loss, theirs in PAIRS:
        target = classes if loss is losses.cross_entropy else t
        assert same_bits(loss(x, target), theirs(x, target))
        with torch.no_grad():
            assert same_bits(loss(x.clone().requires_grad_(), target), theirs(x, target))
    for loss, target in ((losses.mse_loss, t), (losses.cross_entropy, classes)):
        with pytest.raises(TypeError):
            loss(x.clone().requires_grad_(), target)


@each_device
def test_deterministic(device: str) -> None:
    x, classes = torch.randn(64, 10, device=device), torch.randint(10, (64,), device=device)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [gradient(losses.cross_entropy, x, classes, label_smoothing=0.1) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert same_bits(*runs)


def test_layouts_other_than_contiguous() -> None:
    x, t = torch.randn(2, 4, 3, 5, 2)
    classes = torch.randint(3, (4, 5, 2))
    last = x.contiguous(memory_format=torch.channels_last)
    for view in (last, x.flip(0), x.transpose(2, 3).contiguous().transpose(2, 3)):
        for loss, theirs in PAIRS:
            target = classes if loss is losses.cross_entropy else t
            torch.testing.assert_close(loss(view.requires_grad_(), target), theirs(view, target))
            torch.testing.assert_close(gradient(loss, view, target), gradient(theirs, view, target))
    assert losses.mse_loss(last, last, reduction="none").is_contiguous(memory_format=torch.channels_last)


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func.__name__, kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("loss", "name"), [(PF.l1_loss, "l1_loss"), (PF.mse_loss, "mse_loss")])
def test_one_call_for_torch_function_modes_with_every_argument(loss: Any, name: str) -> None:
    x, t, w = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), torch.rand(3, 4)
    wanted = loss(x, t, reduction="sum", weight=w)
    with _Watch() as outer, _Watch() as inner:
        value = loss(x, t, reduction="sum", weight=w)
    assert [call for call, _ in outer.calls] == [call for call, _ in inner.calls] == [name]
    assert outer.calls[0][1]["weight"] is w
    assert same_bits(value, wanted)


def test_one_call_for_torch_function_modes_of_cross_entropy() -> None:
    x, classes, w = torch.randn(3, 4, requires_grad=True), torch.tensor([0, 1, 7]), torch.rand(4)
    words = {"ignore_index": 7, "reduction": "none", "label_smoothing": 0.2}
    wanted = losses.cross_entropy(x, classes, w, **words)
    with _Watch() as outer, _Watch() as inner:
        value = losses.cross_entropy(x, classes, w, **words)
    assert [call for call, _ in outer.calls] == [call for call, _ in inner.calls] == ["cross_entropy"]
    assert same_bits(value, wanted)


class _Tagged(Tensor):
    """A subclass, as users write them."""


MODULES = [
    (pnn.L1Loss, nn.L1Loss, {}),
    (pnn.L1Loss, nn.L1Loss, {"reduction": "none"}),
    (pnn.MSELoss, nn.MSELoss, {"reduction": "sum"}),
    (pnn.CrossEntropyLoss, nn.CrossEntropyLoss, {}),
    (pnn.CrossEntropyLoss, nn.CrossEntropyLoss, {"ignore_index": 1, "reduction": "sum", "label_smoothing": 0.1}),
    (pnn.CrossEntropyLoss, nn.CrossEntropyLoss, {"weight": torch.tensor([1.0, 2.0, 3.0, 4.0])}),
]


@pytest.mark.parametrize(("ours", "theirs", "words"), MODULES)
def test_modules_change_places_with_torchs(ours: Any, theirs: Any, words: dict[str, Any]) -> None:
    one, other = ours(**words), theirs(**words)
    x = torch.randn(3, 4, requires_grad=True)
    target = torch.tensor([0, 1, 3]) if theirs is nn.CrossEntropyLoss else torch.randn(3, 4)
    torch.testing.assert_close(one(x, target), other(x, target))
    torch.testing.assert_close(gradient(one, x, target), gradient(other, x, target))
    assert repr(one) == repr(other)
    assert isinstance(one, theirs)
    assert list(one.state_dict()) == list(other.state_dict())
    one.load_state_dict(other.state_dict())
    other.load_state_dict(one.state_dict())
    for twin in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert same_bits(twin(x, target).detach(), one(x, target).detach())
    assert type(one(x.detach().as_subclass(_Tagged), target)) is _Tagged
    traced = torch.fx.symbolic_trace(one)
    calls = [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"]
    assert calls == [{"L1Loss": "l1_loss", "MSELoss": "mse_loss"}.get(ours.__name__, "cross_entropy")]
    assert same_bits(traced(x, target).detach(), one(x, target).detach())


def test_the_public_names_stand_in_functional_and_nn() -> None:
    for name in ("l1_loss", "mse_loss", "cross_entropy"):
        assert getattr(PF, name) is getattr(losses, name)
        assert name in PF.__all__
    assert {"L1Loss", "MSELoss", "CrossEntropyLoss"} <= set(pnn.__all__)


# --- bad input ------------------------------------------------------------------------------------


BAD_DIFFERENCES = [
    ((torch.ones(3, dtype=torch.int64), torch.ones(3)), {}, TypeError, "input must be floating point, got torch.int64"),
    (([1.0], torch.ones(1)), {}, TypeError, "input must be a torch tensor, got list"),
    ((torch.ones(1), 1.0), {}, TypeError, "target must be a torch tensor, got float"),
    ((torch.ones(1), torch.ones(1, dtype=torch.complex64)), {}, TypeError, "target must be .* got torch.complex64"),
    ((torch.ones(1), torch.ones(1, dtype=torch.bool)), {}, TypeError, "target must be .* got torch.bool"),
    ((torch.ones(3, 1), torch.ones(3)), {}, ValueError, r"target must have the shape of input, \(3, 1\), got \(3,\)"),
    (
        (torch.ones(3), torch.ones(3)),
        {"weight": torch.ones(1)},
        ValueError,
        r"weight must have the shape .* got \(1,\)",
    ),
    ((torch.ones(3), torch.ones(3)), {"weight": 2.0}, TypeError, "weight must be a torch tensor, got float"),
    ((torch.ones(3), torch.ones(3)), {"reduction": "batchmean"}, ValueError, "reduction must be one of .* 'batchmean'"),
    (
        (torch.ones(3), torch.ones(3)),
        {"size_average": False},
        ValueError,
        "size_average must be None, .* for reduction",
    ),
    ((torch.ones(3), torch.ones(3)), {"reduce": True}, ValueError, "reduce must be None, got True"),
]


@pytest.mark.parametrize("function", [losses.l1_loss, losses.mse_loss, losses.l1_jacobian, losses.mse_jacobian])
@pytest.mark.parametrize(("arguments", "words", "error", "message"), BAD_DIFFERENCES)
def test_bad_input_of_the_losses_of_a_difference(
    function: Any, arguments: Any, words: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(*arguments, **words)


X, T = torch.ones(3, 4), torch.tensor([0, 1, 2])
BAD_CLASSES = [
    ((torch.ones(3, 4, dtype=torch.int64), T), {}, TypeError, "input must be floating point, got torch.int64"),
    ((torch.ones(()), torch.tensor(0)), {}, ValueError, r"input must have shape \(C,\), .* got \(\)"),
    ((X, [0, 1, 2]), {}, TypeError, "target must be a torch tensor, got list"),
    (
        (X, T.float()),
        {},
        TypeError,
        "target of torch.float32 holds probabilities .*: class indices must be int64 or uint8",
    ),
    ((X, T.int()), {}, TypeError, "target must be int64 or uint8, class indices, or floating point, got torch.int32"),
    (
        (X, T[:2]),
        {},
        ValueError,
        r"class indices and must have shape \(3,\), for an input of shape \(3, 4\), got \(2,\)",
    ),
    ((X[0], T[:1]), {}, ValueError, r"class indices and must have shape \(\)"),
    ((X, torch.ones(3, 4, dtype=torch.int64)), {}, ValueError, r"class indices and must have shape \(3,\)"),
    (
        (X, torch.ones(4, 3)),
        {},
        ValueError,
        r"holds probabilities and must have the shape of input, \(3, 4\), got \(4, 3\)",
    ),
    ((X, X), {"ignore_index": 2}, ValueError, "ignore_index must be negative where target holds probabilities, got 2"),
    ((X, T), {"ignore_index": 2.0}, TypeError, "ignore_index must be an int, got float"),
    ((X, T), {"weight": torch.ones(3)}, ValueError, r"weight must have shape \(4,\), one for each class, got \(3,\)"),
    ((X, T), {"weight": torch.ones(4).double()}, TypeError, "weight must have the dtype of input, torch.float32, got"),
    ((X, T), {"weight": [1.0] * 4}, TypeError, "weight must be a torch tensor, got list"),
    ((X, T), {"label_smoothing": 1.5}, ValueError, r"label_smoothing must lie in \[0, 1\], got 1.5"),
    ((X, T), {"label_smoothing": -0.1}, ValueError, r"label_smoothing must lie in \[0, 1\], got -0.1"),
    ((X, T), {"label_smoothing": "a"}, TypeError, "label_smoothing must be a number, got str"),
    ((X, T), {"reduction": "batchmean"}, ValueError, "reduction must be one of .* got 'batchmean'"),
    ((X, T), {"size_average": True}, ValueError, "size_average must be None, got True: .* reduction"),
    ((X, T), {"reduce": False}, ValueError, "reduce must be None, got False: .* reduction"),
]


@pytest.mark.parametrize("function", [losses.cross_entropy, losses.cross_entropy_jacobian])
@pytest.mark.parametrize(("arguments", "words", "error", "message"), BAD_CLASSES)
def test_bad_input_of_cross_entropy(
    function: Any, arguments: Any, words: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(*arguments, **words)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("wrong", [4, -1, -101])
def test_a_target_out_of_range_is_named(wrong: int, requires_grad: bool) -> None:
    target = torch.tensor([0, wrong, 2])
    with pytest.raises(
        IndexError, match=rf"target must hold classes from 0 to 3, or ignore_index, -100: Target {wrong} is"
    ):
        losses.cross_entropy(torch.ones(3, 4, requires_grad=requires_grad), target)


def test_bad_input_of_the_rest() -> None:
    with pytest.raises(TypeError, match="input must be floating point"):
        losses.softmax_jacobian(torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"input must have shape \(\.\.\., C\), got \(\)"):
        losses.softmax_jacobian(torch.ones(()))
    for module in (pnn.L1Loss, pnn.MSELoss, pnn.CrossEntropyLoss):
        with pytest.raises(ValueError, match="reduction must be one of"):
            module(reduction="average")
        with pytest.raises(ValueError, match="size_average must be None"):
            module(size_average=True)


def test_the_matrix_names_a_class_out_of_range_and_the_loss_wants_a_class() -> None:
    with pytest.raises(IndexError, match="target must hold classes from 0 to 2"):
        losses.cross_entropy_jacobian(torch.zeros(1, 3), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"input must have at least one class, got shape \(2, 0\)"):
        losses.cross_entropy(torch.zeros(2, 0), torch.zeros(2, 0))
