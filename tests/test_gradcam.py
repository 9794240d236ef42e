"""Class activation maps: the formulas against nested autograd, the methods on every kind of model, the measures of maps."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap

from pwl_lib import gradcam as gc_module
from pwl_lib.gradcam import (
    ClassActivationMaps,
    GradCAM,
    GradCAMPlusPlus,
    LayerCAM,
    average_drop,
    average_increase,
    box_energy,
    deletion_curve,
    gradcam_plusplus_weights,
    gradcam_plusplus_weights_exact,
    gradcam_weights,
    insertion_curve,
    layercam_map,
    pointing_game,
    tail_certificate,
    weighted_map,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
METHODS = [GradCAM, GradCAMPlusPlus, LayerCAM]
HALVES = [torch.float16, torch.bfloat16]

each_device = pytest.mark.parametrize("device", DEVICES)
each_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Residual(nn.Module):
    """The sum is taken in place, as ResNet takes it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y += x
        return self.relu(y)


class Dense(nn.Module):
    """Concatenates, as DenseNet does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x), inplace=True))], 1)


def scrambled(module: nn.Module) -> nn.Module:
    """Batch norms with statistics and scales that are not those of a new one."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            nn.init.normal_(m.weight, 1)
            nn.init.normal_(m.bias)
    return module


def linear(features: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(features, 6)]


def pooled(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 6)]


# What may follow a feature map of 4 channels and 4 by 4 pixels.
PIECEWISE_LINEAR: dict[str, Callable[[], list[nn.Module]]] = {
    "pooled": lambda: pooled(4),
    "linear": lambda: linear(64),
    "vgg": lambda: [
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.ReLU(True),
        nn.Linear(8, 6),
    ],
    "resnet": lambda: [Residual(4), Residual(4), *pooled(4)],
    "densenet": lambda: [Dense(4), nn.AvgPool2d(2), nn.BatchNorm2d(7), nn.ReLU(True), *pooled(7)],
    "squeezenet": lambda: [nn.Dropout(), nn.Conv2d(4, 6, 1), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
    "leaky": lambda: [nn.Conv2d(4, 3, 3), nn.LeakyReLU(0.1), nn.PReLU(3), nn.Hardtanh(), nn.ReLU6(), *linear(12)],
}
CURVED: dict[str, Callable[[], list[nn.Module]]] = {
    "gelu": lambda: [nn.Conv2d(4, 2, 2), nn.GELU(), *linear(18)],
    "silu": lambda: [nn.Conv2d(4, 2, 2), nn.SiLU(), *linear(18)],
    "softmax": lambda: [*linear(64), nn.Softmax(1)],
}
TAILS = PIECEWISE_LINEAR | CURVED


def network(tail: str, *, double: bool = True, positive: bool = True) -> nn.Sequential:
    first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU() if positive else nn.Identity())
    model = scrambled(nn.Sequential(first, nn.Sequential(*TAILS[tail]()))).eval()
    return model.double() if double else model  # type: ignore[return-value]


def digits(batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, 1, 6, 6, dtype=dtype)


def brute_weights(
    tail: Callable[[Tensor], Tensor], A: Tensor, classes: Tensor, smooth: Callable[[Tensor], Tensor] = torch.exp
) -> Tensor:
    """The paper's weights over Y, word by word: Y' , Y'' and Y''' of each entry by nested reverse mode."""
    weights = torch.zeros(*classes.shape, A.shape[1], dtype=A.dtype)
    for b, (a, row) in enumerate(zip(A, classes, strict=True)):
        for k, c in enumerate(row.tolist()):
            x = a.detach().clone().requires_grad_()
            Y = smooth(tail(x.clone()[None]))[0, c]
            (first,) = torch.autograd.grad(Y, x, create_graph=True)
            for channel, i, j in itertools.product(*map(range, a.shape)):
                d1 = first[channel, i, j]
                (second,) = torch.autograd.grad(d1, x, create_graph=True)
                d2 = second[channel, i, j]
                (third,) = torch.autograd.grad(d2, x, retain_graph=True)
                d3 = third[channel, i, j]
                if d1 > 0:
                    alpha = d2 / (2 * d2 + a[channel].sum() * d3)
                    weights[b, k, channel] += (alpha * d1 / Y).item()
    return weights


def vanilla(model: nn.Sequential, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The feature map and the gradients, one class after another."""
    A = model[0](images).detach().requires_grad_()
    scores = model[1](A.clone())
    gradients = [
        torch.autograd.grad(scores.gather(1, classes[:, k : k + 1]).sum(), A, retain_graph=True)[0]
        for k in range(classes.shape[1])
    ]
    return A.detach(), torch.stack(gradients, 1)


def expected(method: type, A: Tensor, g: Tensor) -> tuple[Tensor, Tensor | None]:
    """Maps and weights as the papers write them, in loops over nothing."""
    if method is LayerCAM:
        return (g.clamp(min=0) * A[:, None]).sum(2).clamp(min=0), None
    p = g.clamp(min=0)
    w = g.mean((-2, -1))
    if method is GradCAMPlusPlus:
        w = (p / (2 + p * A[:, None].sum((-2, -1), keepdim=True))).sum((-2, -1))
    return torch.einsum("bkc,bchw->bkhw", w, A).clamp(min=0), w


def assert_same(result: ClassActivationMaps, maps: Tensor, weights: Tensor | None, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(result.maps, maps, rtol=tolerance, atol=tolerance)
    if weights is None:
        assert result.weights is None
    else:
        torch.testing.assert_close(result.weights, weights, rtol=tolerance, atol=tolerance)


def assert_equal(a: ClassActivationMaps, b: ClassActivationMaps, tolerance: float = 0.0) -> None:
    assert_same(a, b.maps, b.weights, tolerance)
    torch.testing.assert_close(a.scores, b.scores, rtol=tolerance, atol=tolerance)
    assert torch.equal(a.classes, b.classes)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The calls of torch.autograd.grad in here."""
    calls: list[dict[str, Any]] = []
    real = torch.autograd.grad

    def grad(*args: Any, **words: Any) -> Any:
        calls.append(words)
        return real(*args, **words)

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", grad)
        yield calls


# --- the formulas ---------------------------------------------------------------------------------

entries = st.lists(st.floats(-3, 3, allow_subnormal=False), min_size=4, max_size=4)


@given(entries, entries)
def test_the_stable_form_is_the_papers_wherever_that_has_no_zero_over_zero(a: list[float], g: list[float]) -> None:
    A = torch.tensor(a, dtype=torch.float64).abs().reshape(1, 2, 2)
    G = torch.tensor(g, dtype=torch.float64).reshape(1, 2, 2)
    G = torch.where(G.abs() < 1e-3, 0, G)
    alpha = G**2 / (2 * G**2 + A.sum() * G**3)
    alpha = torch.where(G > 0, alpha, 0)
    torch.testing.assert_close(gradcam_plusplus_weights(A, G), (alpha * G.relu()).sum((-2, -1)), rtol=1e-12, atol=0)
    nothing = torch.zeros_like(G)
    exact = gradcam_plusplus_weights_exact(A, G, nothing, nothing)
    torch.testing.assert_close(exact, gradcam_plusplus_weights(A, G), rtol=1e-12, atol=0)


@given(entries, entries, entries, entries)
def test_the_exact_form_is_the_quotient_of_the_derivatives_of_the_exponential(
    a: list[float], x: list[float], y: list[float], z: list[float]
) -> None:
    A, s1, s2, s3 = (torch.tensor(v, dtype=torch.float64).reshape(1, 2, 2) for v in (a, x, y, z))
    second, third = s1**2 + s2, s1**3 + 3 * s1 * s2 + s3
    denominator = 2 * second + A.sum() * third
    alpha = torch.where(s1 > 0, second / denominator, 0)
    if (denominator.abs() < 1e-3)[s1 > 0].any() or (s1.abs() < 1e-6).any():
        return
    weights = gradcam_plusplus_weights_exact(A, s1, s2, s3)
    torch.testing.assert_close(weights, (alpha * s1.relu()).sum((-2, -1)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1e-6, 1e-15, 1e-25, 1e-37, 1e10])
def test_no_gradient_is_too_small_or_too_large_for_the_formulas(size: float) -> None:
    A, g = torch.rand(3, 4, 4), torch.randn(3, 4, 4) * size
    wanted = gradcam_plusplus_weights(A.double(), g.double())
    nothing = torch.zeros_like(g)
    for weights in (gradcam_plusplus_weights(A, g), gradcam_plusplus_weights_exact(A, g, nothing, nothing)):
        torch.testing.assert_close(weights.double(), wanted, rtol=1e-6, atol=0)
    # and with second and third derivatives of the size that belongs to them
    x, y, z = g, torch.randn_like(g) * size**2, torch.randn_like(g) * size**3
    weights = gradcam_plusplus_weights_exact(torch.zeros_like(A), x, y, z)
    kept = (y.double() != 0) & (y.abs() > 1e-37)
    if kept.all():
        torch.testing.assert_close(weights, x.relu().sum((-2, -1)) / 2, rtol=1e-5, atol=0)


def test_zero_gradients_give_zero_weights_and_nothing_that_is_not_a_number() -> None:
    A, nothing = torch.rand(2, 3, 3), torch.zeros(2, 3, 3)
    for weights in (
        gradcam_weights(nothing),
        gradcam_plusplus_weights(A, nothing),
        gradcam_plusplus_weights_exact(A, nothing, nothing, nothing),
        gradcam_plusplus_weights_exact(A, nothing, A, A),  # a positive part that is 0 has no share, whatever its alpha
        gradcam_plusplus_weights_exact(A, -A, A, A),
    ):
        assert torch.equal(weights, torch.zeros(2))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_formulas_take_half_precision_as_float32(dtype: torch.dtype) -> None:
    A, g, w = torch.rand(3, 20, 20).to(dtype), torch.randn(3, 20, 20).to(dtype), torch.randn(3).to(dtype)
    for ours, wanted in (
        (gradcam_weights(g), gradcam_weights(g.float())),
        (gradcam_plusplus_weights(A, g), gradcam_plusplus_weights(A.float(), g.float())),
        (
            gradcam_plusplus_weights_exact(A, g, g, g),
            gradcam_plusplus_weights_exact(*(x.float() for x in (A, g, g, g))),
        ),
        (weighted_map(A, w), weighted_map(A.float(), w.float())),
        (layercam_map(A, g), layercam_map(A.float(), g.float())),
    ):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, wanted)
    with torch.autocast("cpu", torch.bfloat16):  # which would take the product in half precision
        assert torch.equal(weighted_map(A.float(), w.float()), weighted_map(A, w))


def test_formulas_have_vmap_and_broadcast() -> None:
    A, g = torch.rand(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 6, 3, 4, 5, dtype=torch.float64)
    w = gradcam_plusplus_weights(A[:, None], g)
    assert torch.equal(vmap(lambda a, g: vmap(gradcam_plusplus_weights, (None, 0))(a, g))(A, g), w)
    exact = gradcam_plusplus_weights_exact(A[:, None], g, g, g)
    torch.testing.assert_close(
        vmap(lambda a, g: vmap(lambda g: gradcam_plusplus_weights_exact(a, g, g, g))(g))(A, g), exact
    )
    assert torch.equal(vmap(vmap(gradcam_weights))(g), gradcam_weights(g))
    maps = weighted_map(A[:, None], w)
    assert maps.shape == (2, 6, 4, 5)
    torch.testing.assert_close(vmap(vmap(weighted_map, (None, 0)))(A, w), maps)
    torch.testing.assert_close(vmap(vmap(layercam_map, (None, 0)))(A, g), layercam_map(A[:, None], g))


def test_formulas_have_the_gradients_that_differences_show() -> None:
    A = (0.5 + torch.rand(2, 2, 3, dtype=torch.float64)).requires_grad_()
    g, s, t = (x.sign() * (0.2 + x.abs()) for x in torch.randn(3, 2, 2, 3, dtype=torch.float64).unbind())
    for x in (g, s, t):
        x.requires_grad_()
    w = torch.tensor([1.0, -0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gradcam_plusplus_weights, (A, g))
    assert torch.autograd.gradcheck(gradcam_plusplus_weights_exact, (A, g, s, t))
    assert torch.autograd.gradcheck(weighted_map, (A, w))
    assert torch.autograd.gradcheck(layercam_map, (A, g))


def test_formulas_say_what_is_wrong() -> None:
    A = torch.rand(2, 3, 3)
    with pytest.raises(TypeError, match="gradients must"):
        gradcam_weights(torch.ones(2, 3, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"gradients must be \(..., C, h, w\), got shape \(3, 3\)"):
        gradcam_weights(A[0])
    with pytest.raises(ValueError, match=r"gradients must match activations of shape \(2, 3, 3\), got \(2, 4, 3\)"):
        gradcam_plusplus_weights(A, torch.rand(2, 4, 3))
    with pytest.raises(ValueError, match="third must match"):
        gradcam_plusplus_weights_exact(A, A, A, torch.rand(5, 3, 3))
    with pytest.raises(ValueError, match=r"each of the 2 channels, got shape \(3,\)"):
        weighted_map(A, torch.rand(3))
    with pytest.raises(ValueError, match="gradients must match"):
        layercam_map(A, torch.rand(2, 4, 3))


# --- the methods against brute force --------------------------------------------------------------


@pytest.mark.parametrize("tail", PIECEWISE_LINEAR)
def test_gradcam_plusplus_is_the_papers_by_nested_autograd(tail: str) -> None:
    model, images = network(tail), digits()
    classes = torch.tensor([[1, 4], [3, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = GradCAMPlusPlus(model, "0")(images, classes)
    A = model[0](images).detach()
    weights = brute_weights(model[1], A, classes)
    assert_same(result, weighted_map(A[:, None], weights), weights)
    torch.testing.assert_close(result.scores, model(images).gather(1, classes).detach())


@pytest.mark.filterwarnings("ignore:target_layer '0'. alpha is negative")  # alphas of curved tails are of either sign
@pytest.mark.parametrize("tail", CURVED)
def test_a_tail_that_is_not_piecewise_linear_is_warned_about_and_has_its_true_derivatives(tail: str) -> None:
    model, images = network(tail), digits()
    classes = torch.tensor([[1, 4], [3, 0]])
    with pytest.warns(
        UserWarning, match=f"{type(model[1][1 if tail != 'softmax' else 2]).__name__}.*each of its 64 entries"
    ) as said:
        result = GradCAMPlusPlus(model, "0")(images, classes)
    assert all(word.filename == __file__ for word in said if "target_layer" in str(word.message))
    A = model[0](images).detach()
    weights = brute_weights(model[1], A, classes)
    assert_same(result, weighted_map(A[:, None], weights), weights)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_equal(GradCAMPlusPlus(model, "0", higher_derivatives="exact")(images, classes), result)
        assumed = GradCAMPlusPlus(model, "0", higher_derivatives="piecewise_linear")(images, classes)
    assert not any("is slow" in str(word.message) for word in caught)
    assert_same(assumed, *expected(GradCAMPlusPlus, *vanilla(model, images, classes)))
    assert (assumed.weights - result.weights).abs().max() > 1e-4


@pytest.mark.parametrize("tail", [*PIECEWISE_LINEAR, "gelu"])
def test_softmax_scores_are_the_papers_by_nested_autograd(tail: str) -> None:
    model, images = network(tail), digits()
    classes = torch.tensor([[1, 4], [3, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = GradCAMPlusPlus(model, "0", smooth_score="softmax")(images, classes)
    A = model[0](images).detach()
    weights = brute_weights(model[1], A, classes, lambda scores: scores.softmax(1))
    assert_same(result, weighted_map(A[:, None], weights), weights)
    torch.testing.assert_close(result.scores, model(images).gather(1, classes).detach())


@pytest.mark.parametrize("tail", PIECEWISE_LINEAR)
def test_true_derivatives_of_a_piecewise_linear_tail_make_no_difference(tail: str) -> None:
    model, images = network(tail), digits()
    exact = GradCAMPlusPlus(model, "0", higher_derivatives="exact")(images, [0, 5])
    assert_equal(exact, GradCAMPlusPlus(model, "0")(images, [0, 5]), 1e-12)


@each_method
@pytest.mark.parametrize("tail", PIECEWISE_LINEAR)
def test_methods_are_their_formulas_on_gradients_of_one_class_after_another(method: type, tail: str) -> None:
    model, images = network(tail), digits(3)
    classes = torch.tensor([[1, 4, 1], [3, 0, 2], [5, 5, 0]])
    assert_same(method(model, model[0])(images, classes), *expected(method, *vanilla(model, images, classes)))


@each_method
@pytest.mark.parametrize("tail", ["pooled", "resnet", "vgg"])
def test_float32_is_exact_to_one_in_a_million(method: type, tail: str) -> None:
    model, images = network(tail), digits(4)
    wanted = method(model, "0")(images, range(6))
    ours = method(model.float(), "0")(images.float(), range(6))
    error = (ours.maps - wanted.maps).abs().amax((-2, -1)) / wanted.maps.amax((-2, -1)).clamp(min=1e-30)
    assert ours.maps.dtype == torch.float32
    assert error[wanted.maps.amax((-2, -1)) > 1e-6].max() < 1e-5
    assert error.median() < 1e-6


# --- which classes --------------------------------------------------------------------------------


@each_method
def test_classes_come_in_every_form(method: type) -> None:
    model, images = network("vgg"), digits(2)
    cam = method(model, "0")
    rows = cam(images, torch.tensor([[2, 3], [2, 3]]))
    assert rows.classes.tolist() == [[2, 3], [2, 3]]
    for classes in (
        [2, 3],
        (2, 3),
        torch.tensor([2, 3]),
        [[2, 3], [2, 3]],
        torch.tensor([2, 3], dtype=torch.uint8),
        range(2, 4),
    ):
        assert_equal(cam(images, classes), rows)
    for one in (4, torch.tensor(4), [4], [[4], [4]]):
        result = cam(images, one)
        assert result.classes.tolist() == [[4], [4]]
        assert result.maps.shape == (2, 1, 4, 4)
    top = cam(images)
    assert torch.equal(top.classes, model(images).argmax(1, keepdim=True))
    assert_equal(top, cam(images, top.classes))
    torch.testing.assert_close(top.scores, model(images).amax(1, keepdim=True).detach())
    assert cam(images, [3] * 5).maps.shape[1] == 5  # a class may be asked about twice


@each_method
def test_every_class_and_image_is_taken_as_if_it_were_alone(method: type) -> None:
    model, images = network("resnet"), digits(3)
    cam = method(model, "0")
    whole = cam(images, range(6))
    for b, k in itertools.product(range(3), range(6)):
        alone = cam(images[b : b + 1], k)
        torch.testing.assert_close(alone.maps[0, 0], whole.maps[b, k], rtol=1e-12, atol=1e-12)


def test_all_classes_take_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = network("vgg"), digits(2)
    with counted(monkeypatch) as calls:
        whole = GradCAMPlusPlus(model, "0")(images, range(6))
    assert [call["is_grads_batched"] for call in calls] == [True]
    with counted(monkeypatch) as calls:
        GradCAMPlusPlus(model, "0")(images, 1)
    assert [call["is_grads_batched"] for call in calls] == [False]
    monkeypatch.setattr(gc_module, "_MOST_NUMBERS", 4 * 2 * 4 * 16)  # four classes at a time
    with counted(monkeypatch) as calls:
        assert_equal(GradCAMPlusPlus(model, "0")(images, range(6)), whole, 1e-14)
    assert len(calls) == 2


class Unbatched(torch.autograd.Function):
    """Its backward pass looks at numbers, which vmap forbids."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return 2 * upstream if upstream.sum().item() < math.inf else upstream


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Unbatched.apply(x)


@each_method
def test_an_operation_that_cannot_be_batched_is_taken_class_by_class(
    method: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = nn.Linear(64, 6)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), Doubled(), head).double()
    images = digits()
    words = {"higher_derivatives": "piecewise_linear"} if method is GradCAMPlusPlus else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with counted(monkeypatch) as calls:
            ours = method(model, "0", **words)(images, [1, 2, 3])
        assert [call["is_grads_batched"] for call in calls] == [True, False, False, False]
        plain = nn.Sequential(model[0], nn.Flatten(), copy.deepcopy(head))
        with torch.no_grad():
            plain[2].weight *= 2
        wanted = method(plain, "0")(images, [1, 2, 3])
    assert_same(ours, wanted.maps, wanted.weights)


# --- the mean of each channel and a linear layer --------------------------------------------------


class Head(nn.Module):
    def __init__(self, pool: Callable[[Tensor], Tensor], *, bias: bool = True) -> None:
        super().__init__()
        self.pool, self.fc = pool, nn.Linear(4, 6, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(x))


RECOGNISED = {
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "mean": lambda x: x.mean((2, 3)),
    "mean, negative dimensions": lambda x: x.mean((-1, -2)),
    "mean, kept": lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1),
    "average": lambda x: F.avg_pool2d(x, 4).view(-1, 4),
    "dropout": lambda x: F.dropout(x.mean((2, 3)), training=False),
}
SIMILAR = {
    "relu": lambda x: x.relu().mean((2, 3)),
    "relu behind": lambda x: x.mean((2, 3)).relu(),
    "another mean": lambda x: x.mean((1, 2)),
    "part": lambda x: x[:, :, 1:].mean((2, 3)),
    "twice": lambda x: x.mean((2, 3)) * 2,
    "sum": lambda x: x.sum((2, 3)),
    "two paths": lambda x: x.mean((2, 3)) + x[:, :, 0, 0],
    "transposed": lambda x: x.transpose(1, 2).mean((2, 3)),
    "smaller average": lambda x: F.avg_pool2d(x, 3).flatten(1),
    "divisor": lambda x: F.avg_pool2d(x, 4, divisor_override=3).flatten(1),
    "batch": lambda x: x.mean((2, 3)).flip(1),
}


@each_method
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pool", RECOGNISED)
def test_a_pooled_head_needs_no_backward_pass_and_gives_the_same(
    method: type, pool: str, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), Head(RECOGNISED[pool], bias=bias)).double()
    images, classes = digits(3), [[1, 2], [0, 5], [3, 3]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the feature map is negative
        with counted(monkeypatch) as calls:
            short = method(model, "0")(images, classes)
        assert not calls
        monkeypatch.setattr(gc_module, "_pooled_head", lambda *_: None)
        with counted(monkeypatch) as calls:
            long = method(model, "0")(images, classes)
        assert len(calls) == 1
    assert_equal(short, long, 1e-13)


@each_method
@pytest.mark.parametrize("pool", SIMILAR)
def test_a_head_that_only_looks_like_a_pooled_one_is_not_taken_for_it(method: type, pool: str) -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), Head(SIMILAR[pool])).double()
    images, classes = digits(3), torch.tensor([[1, 2], [0, 5], [3, 3]])
    assert_same(method(model, "0")(images, classes), *expected(method, *vanilla(model, images, classes)))


@pytest.mark.parametrize("form", ["softmax", "scaled", "bias depends"])
def test_what_follows_the_linear_layer_counts_too(form: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            a = self.conv(x).relu()
            y = self.fc(a.mean((2, 3)))
            if form == "bias depends":
                return torch.addmm(y, a.mean((2, 3)), self.fc.weight.T)
            return y * 3 if form == "scaled" else y.log_softmax(1)

    model, images = Model().double(), digits()
    cam = GradCAM(model, "conv")
    A = model.conv(images).detach().requires_grad_()
    x = A.relu().mean((2, 3))
    y = model.fc(x)
    scores = {"softmax": y.log_softmax(1), "scaled": 3 * y, "bias depends": y + x @ model.fc.weight.T}[form]
    (g,) = torch.autograd.grad(scores[:, 2].sum(), A)
    torch.testing.assert_close(cam(images, 2).weights[:, 0], g.mean((2, 3)))


# --- what the tail is -----------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "abs": torch.abs,
    "max": lambda x: x.amax((2, 3), keepdim=True) + x,
    "max with index": lambda x: x.max(2, keepdim=True).values + x,
    "clamp": lambda x: x.clamp(-0.1, 0.2),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "maximum": lambda x: torch.maximum(x, x.flip(1)),
    "quotient by a constant": lambda x: x / 3,
    "pool": lambda x: F.interpolate(F.max_pool2d(x, 2), scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, 4, mode="bilinear"),
    "norm": lambda x: F.batch_norm(x, torch.zeros(4).to(x), torch.ones(4).to(x)),
    "square": lambda x: x * x,
    "power": lambda x: x**2,
    "quotient": lambda x: 1 / (3 + x),
    "own quotient": lambda x: x / (3 + x.mean()),
    "attention": lambda x: x @ x.mT,
    "gate": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "gate by itself": lambda x: x * x.mean((2, 3), keepdim=True),
    "convolution with itself": lambda x: F.conv2d(x, x[:1, :, :1, :1].expand(4, -1, -1, -1)),
    "batch statistics": lambda x: F.batch_norm(x, None, None, training=True),
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "layer norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "prelu with itself": lambda x: F.prelu(x, x[0, :, 0, 0].sigmoid()),
    "normalized": lambda x: F.normalize(x.flatten(1)).reshape(x.shape),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_operation_with_a_second_derivative_is_taken_for_a_piecewise_linear_one(name: str) -> None:
    A = torch.randn(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    onward = A.clone()
    W = torch.randn(64, 6, dtype=torch.float64)
    scores = OPERATIONS[name](onward).flatten(1) @ W
    known = gc_module._known_piecewise_linear(scores, onward.grad_fn)
    (g,) = torch.autograd.grad(scores, A, torch.randn_like(scores), create_graph=True)
    curvature = torch.zeros(())
    if g.requires_grad:
        (product,) = torch.autograd.grad(g, A, torch.randn_like(g), allow_unused=True, materialize_grads=True)
        curvature = product.abs().max()
    assert known == (curvature == 0)


def test_an_unknown_operation_is_asked_about() -> None:
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x / 2

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Tensor:
            return upstream / 2

    A = torch.randn(1, 1, 2, 2, requires_grad=True)
    onward = A.clone()
    assert not gc_module._known_piecewise_linear(Halved.apply(onward).flatten(1), onward.grad_fn)


def test_the_library_hands_the_certificate_on() -> None:
    model, images = network("vgg"), digits()
    assert tail_certificate(model, "0", images)
    assert not tail_certificate(network("gelu"), "0", images)


# --- the pole -------------------------------------------------------------------------------------


def one_channel(weight: float) -> nn.Sequential:
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(4, 2, bias=False)).double()
    with torch.no_grad():
        model[2].weight[0] = weight
        model[2].weight[1] = 0
    return model


@pytest.mark.parametrize("weight", [0.5, 2.0, 4.0])
def test_a_negative_channel_is_warned_about_with_its_place(weight: float) -> None:
    images = torch.tensor([1.0, 1.0, 1.0, -1.0]).double().reshape(1, 1, 2, 2).repeat(3, 1, 1, 1)
    images[2] = -0.25  # the sum is -1: the pole is at a gradient of 2
    model = one_channel(weight)
    denominator = 2 - weight
    with pytest.warns(UserWarning, match="in 4 places") as said:
        result = GradCAMPlusPlus(model, "0")(images, [1, 0])
    message = str(said[0].message)
    assert f"least, {denominator:.3g}, in image 2 for class 0, channel 0, row 0, column 0" in message
    assert ("at its pole at 0 or beyond it" in message) == (denominator <= 0)
    assert said[0].filename == __file__
    wanted = 4 * weight / denominator if denominator else math.inf
    assert result.weights[2, 1, 0].item() == pytest.approx(wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradCAMPlusPlus(model, "0")(images[:2], [1, 0])  # the sum of a channel counts, not each entry
        GradCAMPlusPlus(model, "0")(images, 1)  # nor a class whose gradient is 0
        GradCAM(model, "0")(images, 0)
        LayerCAM(model, "0")(images, 0)


def test_a_pooled_head_and_true_derivatives_warn_of_poles_too() -> None:
    model = nn.Sequential(nn.Identity(), *pooled(2)).double()
    nn.init.ones_(model[3].weight)
    images = torch.stack([torch.ones(2, 4, 4), -3 * torch.ones(2, 4, 4)]).double()
    with pytest.warns(UserWarning, match=r"least, -1, in image 1 for class 3, channel 0"):
        GradCAMPlusPlus(model, "0")(images, 3)
    with pytest.warns(
        UserWarning, match=r"alpha is negative or infinite, in 32 places.*in image 1 for class 3, channel 0"
    ):
        GradCAMPlusPlus(model, "0", higher_derivatives="exact")(images, 3)


# --- the model is as it was -----------------------------------------------------------------------


def state(model: nn.Module) -> list[Any]:
    return [
        [
            (name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in model.named_modules()
        ],
        [
            (name, p.requires_grad, p.grad if p.grad is None else p.grad.clone(), p.detach().clone())
            for name, p in model.named_parameters()
        ],
        [(name, b.clone()) for name, b in model.named_buffers()],
        torch.random.get_rng_state(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    ]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@each_method
@pytest.mark.parametrize("tail", ["resnet", "pooled", "squeezenet", "gelu"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_nothing_of_the_model_changes(method: type, tail: str, create_graph: bool) -> None:
    model = network(tail).train()
    model[1][0].eval()
    next(model[1].parameters()).requires_grad_(False)
    for p in model[0].parameters():
        p.grad = torch.randn_like(p)
    images = digits().requires_grad_()
    images.grad = torch.ones_like(images)
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            before = state(model)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                method(model, "0")(images, create_graph=create_graph)
                with method(model, "0") as cam:
                    assert same(state(model), before)
                    cam(images, [1, 2], create_graph=create_graph)
                    assert same(state(model), before)
            assert same(state(model), before)
            assert torch.equal(images.grad, torch.ones_like(images))


@each_method
def test_maps_are_those_of_eval_mode(method: type) -> None:
    model, images = network("squeezenet"), digits()
    wanted = method(model, "0")(images, [1, 2])
    assert_equal(method(model.train(), "0")(images, [1, 2]), wanted)


@each_method
def test_frozen_models_and_callers_without_gradients_get_the_same(method: type) -> None:
    model, images = network("resnet"), digits()
    wanted = method(model, "0")(images, [1, 2])
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert_equal(method(model, "0")(images, [1, 2]), wanted)
            assert_equal(method(model, "0")(images + 0, [1, 2]), wanted)  # a tensor of inference mode
            graph = method(model, "0")(images + 0, torch.tensor([1, 2]), create_graph=True)
            assert graph.scores.requires_grad
            assert not graph.classes.is_inference()
            assert_equal(graph, wanted, 1e-14)
    model.requires_grad_(False)
    assert_equal(method(model, "0")(images, [1, 2]), wanted)
    assert not wanted.maps.requires_grad
    assert not wanted.scores.requires_grad


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError("in the tail")


@each_method
def test_an_exception_leaves_nothing_behind(method: type) -> None:
    model, images = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Fails()).train(), digits()
    before = state(model)
    with pytest.raises(ZeroDivisionError, match="in the tail"):
        method(model, "0")(images.float())
    assert same(state(model), before)
    with pytest.raises(IndexError, match="mine"), method(model, "0"):
        raise IndexError("mine")
    good = network("resnet").train()
    before = state(good)
    with pytest.raises(ValueError, match="classes must lie"):
        method(good, "0")(images, 6)
    assert same(state(good), before)


@each_device
@each_method
def test_a_relu_in_place_behind_the_layer_does_not_change_what_is_seen(method: type, device: str) -> None:
    head = nn.Linear(64, 6)
    images = digits().to(device)
    first = nn.Conv2d(1, 4, 3)
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for relu in (nn.ReLU(inplace=True), nn.ReLU()):
            model = nn.Sequential(first, relu, nn.Flatten(), head).double().to(device)
            for create_graph in (False, True):
                results.append(method(model, "0")(images, [1, 2], create_graph=create_graph))
    for result in results[1:]:
        torch.testing.assert_close(result.maps, results[0].maps)
    A = first(images)
    assert (A < 0).any()
    if method is GradCAM:
        torch.testing.assert_close(results[0].maps, weighted_map(A[:, None], results[0].weights))


@each_method
@pytest.mark.parametrize("named", [True, False])
def test_a_layer_in_place_is_seen_as_it_put_out(method: type, named: bool) -> None:
    class Careless(nn.Module):
        """What it pools is written over later, under another name."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.fc = nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Linear(64, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            y = self.relu(input=x) if named else self.relu(x)
            scores = self.fc(y.flatten(1))
            x.zero_()
            return scores

    model, images = Careless().double(), digits()
    A = model.conv(images).relu().detach()
    with torch.no_grad():
        assert_same(
            method(model, "relu")(images, [1, 4]),
            *expected(method, A, model.fc.weight[[1, 4]].reshape(1, 2, 4, 4, 4).expand(2, -1, -1, -1, -1)),
        )


@each_method
def test_a_layer_inside_no_grad_is_cut_all_the_same(method: type) -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)), nn.Linear(64, 6)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.body(x)
            return self.head(x.relu().flatten(1))

    model, images = Backbone().double(), digits()
    plain = nn.Sequential(model.body, nn.ReLU(), nn.Flatten(), model.head)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for ours, theirs in (("body.1", "0.1"), ("body", "0")):
            assert_equal(method(model, ours)(images, [0, 1]), method(plain, theirs)(images, [0, 1]), 1e-14)


# --- the cut --------------------------------------------------------------------------------------


@contextmanager
def saved() -> Iterator[dict[int, int]]:
    """Bytes of the storages that are saved for a backward pass in here."""
    kept: dict[int, int] = {}
    keep: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        keep.append(x)
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield kept


class Inception(nn.Module):
    """Branches beside the layer, which need no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (
            nn.Conv2d(1, 2, 3),
            nn.Sequential(*(nn.Conv2d(n, 8, 3, padding=p) for n, p in [(1, 0), (8, 1), (8, 1)])),
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(160, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x)], 1))


@each_method
@pytest.mark.parametrize("kind", ["resnet", "vgg", "densenet", "inception"])
def test_what_is_saved_is_what_the_tail_needs(method: type, kind: str) -> None:
    images = digits(4)
    if kind == "inception":
        model, layer = Inception().double().eval(), "a"
        A = model.a(images).detach()
        rest = model.b(images).detach()
        tail = lambda A: model.head(torch.cat([A, rest], 1))
    else:
        before = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 1), nn.ReLU()]
        model, layer = nn.Sequential(nn.Sequential(*before), network(kind)[1]).double().eval(), "0"
        A, tail = model[0](images).detach(), model[1]
    parameters = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def total(kept: dict[int, int]) -> int:
        return sum(size for place, size in kept.items() if place not in parameters)

    with saved() as floor:  # the graph of the tail alone
        scores = tail(A.requires_grad_().clone())
    with saved() as ours, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method(model, layer)(images, 1)
    with saved() as everything:
        scores = model(images)
    assert scores.requires_grad
    assert total(ours) <= total(floor)
    assert total(floor) < total(everything)


class Watched(nn.Module):
    """Knows whether what it was given is still alive."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = weakref.ref(x)
        return 1 * x


@each_method
@pytest.mark.parametrize("pooled", [True, False])
def test_nothing_of_a_call_stays_alive(method: type, pooled: bool) -> None:
    watched = Watched()
    model = nn.Sequential(nn.Conv2d(1, 4, 3), watched, *(PIECEWISE_LINEAR["pooled" if pooled else "linear"]()))
    gc.disable()  # without a cycle, memory is free at once
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = method(model, "0")(digits(dtype=torch.float32), [1, 2])
        assert watched.seen() is None
        assert found.maps.grad_fn is None
        maps = weakref.ref(found.maps)
        del found
        assert maps() is None
    finally:
        gc.enable()


# --- several layers -------------------------------------------------------------------------------


@each_method
def test_several_layers_are_had_in_one_run(method: type, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = network("resnet"), digits(3)
    names = ["1.1", "0", model[1][0].conv, "0.0", "1"][:4]
    runs = []
    handle = model.register_forward_hook(lambda *_: runs.append(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with counted(monkeypatch) as calls:
            results = method(model, names)(images, [1, 2])
        assert len(calls) == 1
        assert len(runs) == 1
        assert isinstance(results, tuple)
        for name, result in zip(names, results, strict=True):
            assert_equal(result, method(model, name)(images, [1, 2]), 1e-13)
        again, one = method(model, ["0", "0"])(images, 3), method(model, ("0",))(images, 3)
        assert len(one) == 1
        assert_equal(again[0], again[1])
        assert_equal(again[0], one[0])
    handle.remove()


@each_method
def test_layers_inside_one_another_and_side_by_side(method: type) -> None:
    model, images = Inception().double().eval(), digits()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for names in (["a", "b"], ["b", "a"], ["b.2", "b", "b.0"]):
            for name, result in zip(names, method(model, names)(images, [0, 1]), strict=True):
                assert_equal(result, method(model, name)(images, [0, 1]), 1e-13)


def test_one_of_several_layers_may_be_followed_by_a_curve() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Conv2d(2, 2, 3), nn.ReLU(), *linear(8)).double()
    images = digits()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        early, late = GradCAMPlusPlus(model, ["0", "3"])(images, [1, 2])
    assert [str(w.message).split("target_layer ")[1][:3] for w in said if "slow" in str(w.message)] == ["'0'"]
    assert_equal(late, GradCAMPlusPlus(model, "3")(images, [1, 2]), 1e-14)
    A = model[0](images).detach()
    torch.testing.assert_close(early.weights, brute_weights(model[1:], A, early.classes), rtol=1e-11, atol=1e-12)


# --- compiled, half, autocast ---------------------------------------------------------------------


@each_method
@pytest.mark.parametrize("how", ["whole", "in place", "part"])
def test_compiled_models_are_taken_as_they_are_written(method: type, how: str) -> None:
    plain, images = network("resnet"), digits()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = method(plain, "1.0.conv")(images, [1, 2])
    model = copy.deepcopy(plain)
    if how == "whole":
        model = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    else:
        model[1][0] = torch.compile(model[1][0], backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(images)  # compiled by now
        assert_equal(method(model, "1.0.conv")(images, [1, 2]), wanted, 1e-14)
        layer = getattr(model, "_orig_mod", model)[1][0]
        assert_equal(method(model, layer.conv)(images, [1, 2]), wanted, 1e-14)
        assert_equal(method(model, layer)(images, 1), method(plain, "1.0")(images, 1), 1e-14)
        if how == "part":
            assert_equal(method(model, "1.0._orig_mod.conv")(images, [1, 2]), wanted, 1e-14)
    torch.compiler.reset()


@each_device
@each_method
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("tail", ["vgg", "pooled", "resnet"])
def test_models_in_half_precision(method: type, dtype: torch.dtype, tail: str, device: str) -> None:
    model, images = network(tail).to(device, dtype), digits(3, dtype).to(device)
    result = method(model, "0")(images, range(6))
    assert result.maps.dtype == result.scores.dtype == torch.float32
    assert result.maps.isfinite().all()
    wanted = method(model.double(), "0")(images.double(), range(6))
    scale = wanted.maps.amax()
    assert (result.maps - wanted.maps).abs().max() < 50 * torch.finfo(dtype).eps * scale


@each_method
def test_small_gradients_survive_in_float16(method: type) -> None:
    model, images = network("vgg"), digits()
    with torch.no_grad():
        model[1][-1].weight *= 2.0**-14  # gradients that are subnormal in float16, or 0
        model[1][-1].bias.zero_()
    wanted = method(model, "0")(images, range(6))
    result = method(model.half(), "0")(images.half(), range(6))
    assert (result.maps - wanted.maps).abs().max() < 0.02 * wanted.maps.amax()
    with torch.no_grad():
        model[1][-1].weight *= 2.0**26  # and large ones do not overflow because small ones are lifted
    large = method(model, "0")(images.half(), range(6))
    assert large.maps.isfinite().all()
    if method is not GradCAMPlusPlus:
        assert (large.maps / 2.0**26 - wanted.maps).abs().max() < 0.02 * wanted.maps.amax()


@each_device
@each_method
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast_of_the_caller_holds_for_the_model_alone(method: type, dtype: torch.dtype, device: str) -> None:
    model, images = network("resnet", double=False).to(device), digits(3, torch.float32).to(device)
    wanted = method(model, "0")(images, range(6))
    with torch.autocast(device, dtype):
        out = model(images)
        result = method(model, "0")(images, range(6))
        (seen,) = method(model, ["0"])(images, 2)
        assert model(images).dtype == out.dtype == dtype
    assert result.maps.dtype == seen.maps.dtype == torch.float32
    assert (result.maps - wanted.maps).abs().max() < 20 * torch.finfo(dtype).eps * wanted.maps.amax()
    if result.weights is not None:  # the sum over channels is not rounded to half precision
        A = torch.zeros(3, 4, 4, 4)
        handle = model[0].register_forward_hook(lambda m, a, out: A.copy_(out))
        with torch.autocast(device, dtype):
            model(images)
        handle.remove()
        torch.testing.assert_close(
            result.maps.cpu(), weighted_map(A[:, None], result.weights.cpu()), rtol=1e-5, atol=1e-6
        )
    out.sum().backward()  # the weights that autocast keeps were not spoiled
    assert all(p.grad is not None for p in model.parameters())


# --- differentiable -------------------------------------------------------------------------------


@each_method
@pytest.mark.parametrize("tail", ["vgg", "resnet", "pooled"])
def test_maps_are_differentiable_when_asked(method: type, tail: str) -> None:
    model, images = network(tail), digits(1).requires_grad_()

    def maps(images: Tensor) -> Tensor:
        return method(model, "0")(images, [1, 2], create_graph=True).maps

    assert torch.autograd.gradcheck(maps, images, atol=1e-6)
    result = method(model, "0")(images, [1, 2], create_graph=True)
    assert_equal(method(model, "0")(images, [1, 2]), result, 1e-13)
    (result.maps.sum() + result.scores.sum()).backward()
    assert all(p.grad is not None for p in model[0].parameters())
    assert (model[0][0].weight.grad != 0).any()


@pytest.mark.parametrize("smooth", ["exponential", "softmax"])
def test_true_derivatives_are_differentiable_when_asked(smooth: Any) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.GELU() if smooth == "exponential" else nn.Identity(), *linear(8)
    ).double()
    images = torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    cam = GradCAMPlusPlus(model, "0", higher_derivatives="auto", smooth_score=smooth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.autograd.gradcheck(lambda x: cam(x, [1, 2], create_graph=True).weights, images, atol=1e-5)
        assert_equal(cam(images, [1, 2]), cam(images, [1, 2], create_graph=True), 1e-12)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("words", [{"smooth_score": "softmax"}, {"higher_derivatives": "exact"}], ids=str)
def test_the_other_forms_take_half_precision(dtype: torch.dtype, words: dict[str, Any]) -> None:
    model, images = network("linear").to(dtype), digits(2).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = GradCAMPlusPlus(model, "0", **words)(images, [1, 2])
        wanted = GradCAMPlusPlus(model.double(), "0", **words)(images.double(), [1, 2])
    assert ours.maps.dtype == ours.weights.dtype == torch.float32
    error = (ours.weights - wanted.weights).abs() / wanted.weights.abs()
    assert error.median() < 5 * torch.finfo(dtype).eps  # near a pole it is large


def test_small_gradients_of_all_scores_survive_in_half_precision() -> None:
    model, images = network("linear"), digits(2)
    with torch.no_grad():
        model[1][1].weight *= 1e-3  # their cubes are 0 in float16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = GradCAMPlusPlus(model.half().double(), "0", smooth_score="softmax")(images.half().double(), [1, 2])
        ours = GradCAMPlusPlus(model.half(), "0", smooth_score="softmax")(images.half(), [1, 2])
    error = (ours.weights - wanted.weights).abs() / wanted.weights.abs()
    assert error.median() < 0.05


def test_the_graph_is_made_even_where_the_caller_has_none() -> None:
    model, images = network("vgg"), digits()
    with torch.no_grad():
        assert GradCAM(model, "0")(images, create_graph=True).maps.requires_grad
    model.requires_grad_(False)
    assert_equal(GradCAM(model, "0")(images, 1, create_graph=True), GradCAM(model, "0")(images, 1), 1e-14)


# --- errors ---------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A model with layers of which no map can be had."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused, self.twice = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.pair, self.flat, self.cut, self.inplace = Pair(), nn.Flatten(), nn.Identity(), nn.ReLU(inplace=True)
        self.index, self.fc = Index(), nn.Linear(64, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.conv(x)))
        x = self.pair(x)[0]
        self.index(x)
        x = x + self.cut(x).detach()
        self.inplace(x)
        return self.fc(self.flat(x))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Index(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1, keepdim=True)


@each_method
@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        ("unused", ValueError, "'unused' must run when the model runs"),
        ("twice", ValueError, "'twice' must run once .* runs twice"),
        ("pair", TypeError, "'pair' must put out one floating point tensor .*, got tuple"),
        ("index", TypeError, "'index' must put out one floating point tensor .* tensor of torch.int64"),
        ("flat", ValueError, r"'flat' must put out \(B, C, h, w\) with B = 2, got shape \(2, 64\)"),
        ("cut", ValueError, "must depend on what target_layer 'cut' puts out"),
        ("inplace", ValueError, "'inplace' puts out, and they do not: the model detaches it, or ignores"),
    ],
)
def test_layers_of_which_no_map_can_be_had(method: type, layer: str, error: type, message: str) -> None:
    model, images = Odd(), digits(dtype=torch.float32)
    before = state(model)
    with pytest.raises(error, match=message):
        method(model, layer)(images, 1)
    assert same(state(model), before)


@pytest.mark.parametrize("words", [{"smooth_score": "softmax"}, {"higher_derivatives": "exact"}], ids=str)
def test_a_layer_that_does_not_matter_has_no_derivatives_either(words: dict[str, Any]) -> None:
    for layer in ("cut", "inplace"):
        with pytest.raises(ValueError, match=f"must depend on what target_layer '{layer}' puts out"):
            GradCAMPlusPlus(Odd(), layer, **words)(digits(dtype=torch.float32), 1)


def test_true_derivatives_that_torch_cannot_give_are_refused_with_a_way_out() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4, track_running_stats=False), *linear(64))
    with (
        pytest.warns(UserWarning, match="BatchNorm2d"),
        pytest.raises(NotImplementedError, match=r"BatchNorm2d.*higher_derivatives='piecewise_linear'"),
    ):
        GradCAMPlusPlus(model, "1")(digits(dtype=torch.float32))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused() -> None:
    inner = torch.jit.script(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()))
    model = nn.Sequential(inner, *linear(64))
    for layer in ("0", "0.1", model[0]):
        with pytest.raises(ValueError, match="must not be TorchScript"):
            GradCAM(model, layer)


def test_layers_of_this_library_are_taken() -> None:
    import pwl_lib.nn as pnn

    plain, images = network("vgg"), digits()
    tail = [pnn.ReLU(), pnn.MaxPool2d(2), nn.Flatten(), pnn.Linear(16, 8), pnn.ReLU(), pnn.Linear(8, 6)]
    ours = nn.Sequential(plain[0], nn.Sequential(*tail)).double()
    ours.load_state_dict(plain.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in METHODS:
            assert_equal(method(ours, "0")(images, [1, 2]), method(plain, "0")(images, [1, 2]), 1e-13)


@each_method
def test_unknown_layers_are_refused_and_near_names_named(method: type) -> None:
    model = network("resnet")
    with pytest.raises(ValueError, match=r"got '1.0.cnv'; near it: '1.0.conv'"):
        method(model, "1.0.cnv")
    with pytest.raises(ValueError, match=r"got 'zzzzzz'$"):
        method(model, "zzzzzz")
    with pytest.raises(ValueError, match="got a Conv2d that is not in it"):
        method(model, nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match="target_layer must be a module or its dotted name, got int"):
        method(model, 3)
    with pytest.raises(TypeError, match="target_layer must be a module or its dotted name, got int"):
        method(model, ["0", 3])
    with pytest.raises(ValueError, match="at least one layer"):
        method(model, [])
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function"):
        method(lambda x: x, "0")


@each_method
@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        (6, ValueError, "between 0 and 5, got 6 for image 0"),
        (-1, ValueError, "between 0 and 5, got -1 for image 0"),
        ([[1, 2], [3, 17]], ValueError, "got 17 for image 1"),
        ([[1, 2]], ValueError, "one row for each of the 2 images, got 1 rows"),
        ([[1], [2], [3]], ValueError, "one row for each of the 2 images, got 3 rows"),
        ([[1, 2], [3]], TypeError, "nested lists of one length"),
        ([1.0], TypeError, "integers, got torch.float32"),
        (True, TypeError, "integers, got torch.bool"),
        ("cat", TypeError, "classes must be integers"),
        ([], ValueError, "at least one class"),
        (torch.zeros(2, 0, dtype=torch.long), ValueError, "at least one class"),
        (torch.zeros(2, 1, 1, dtype=torch.long), ValueError, r"got shape \(2, 1, 1\)"),
    ],
)
def test_wrong_classes(method: type, classes: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        method(network("vgg"), "0")(digits(), classes)


@each_method
def test_wrong_images_scores_and_words(method: type) -> None:
    cam = method(network("vgg"), "0")
    with pytest.raises(TypeError, match="images must be a tensor, got list"):
        cam([[1.0]])
    for images in (torch.tensor(1.0), torch.zeros(0, 1, 6, 6)):
        with pytest.raises(ValueError, match="at least one image"):
            cam(images)
    with pytest.raises(TypeError, match="create_graph"):
        cam(digits(), create_graph=1)
    for tail, error, message in (
        (Pair(), TypeError, "model must return one floating point tensor of scores .* got tuple"),
        (nn.Identity(), ValueError, r"scores \(B, n\) with B = 2, got shape \(2, 4, 4, 4\)"),
        (nn.Flatten(0), ValueError, r"scores \(B, n\) with B = 2, got shape \(128,\)"),
        (Index(), TypeError, "model must return one floating point tensor of scores .* torch.int64"),
    ):
        with pytest.raises(error, match=message):
            method(nn.Sequential(nn.Conv2d(1, 4, 3), tail).double(), "0")(digits())
    with pytest.raises(ValueError, match="higher_derivatives must be one of"):
        GradCAMPlusPlus(network("vgg"), "0", higher_derivatives="none")
    with pytest.raises(ValueError, match="smooth_score must be one of"):
        GradCAMPlusPlus(network("vgg"), "0", smooth_score="none")
    assert repr(method(network("vgg"), ["0", "1.0"])) == f"{method.__name__}(Sequential, '0', '1.0')"


# --- the result -----------------------------------------------------------------------------------


def result(maps: Tensor) -> ClassActivationMaps:
    shape = maps.shape[:2]
    return ClassActivationMaps(maps, None, torch.zeros(shape), torch.zeros(shape, dtype=torch.long))


def test_normalized_maps_reach_one_and_zero_stays_zero() -> None:
    maps = torch.rand(2, 3, 4, 5) * 1e-20
    maps[0, 1] = 0
    ours = result(maps.requires_grad_()).normalized().maps
    assert torch.equal(ours[0, 1], torch.zeros(4, 5))
    rest = torch.tensor([[True, False, True], [True] * 3])
    assert torch.equal(ours.amax((-2, -1))[rest], torch.ones(5))
    torch.testing.assert_close(ours[rest], (maps / maps.amax((-2, -1), keepdim=True))[rest])
    (g,) = torch.autograd.grad(ours.sum(), maps)
    assert g.isfinite().all()


def test_upsampled_maps_are_bilinear() -> None:
    maps = torch.rand(2, 3, 4, 5)
    ours = result(maps).upsample((8, 12))
    assert torch.equal(ours.maps, F.interpolate(maps, (8, 12), mode="bilinear", align_corners=False))
    assert result(maps).upsample(7).maps.shape == (2, 3, 7, 7)
    assert result(maps).upsample((4, 5)).maps is maps
    for wrong in ((1, 2, 3), (0, 4), 0):
        with pytest.raises(ValueError, match="size must"):
            result(maps).upsample(wrong)
    assert repr(ours).startswith("ClassActivationMaps(maps=(2, 3, 8, 12), classes=[[0, 0, 0]")


def test_overlays_lie_over_their_images() -> None:
    maps, image = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 8, 10)
    found = result(maps)
    ours = found.overlay(image)
    assert ours.shape == (2, 3, 3, 8, 10)
    assert ours.min() >= 0
    assert ours.max() <= 1
    assert torch.equal(found.overlay(image, 0)[:, 1], image)
    heat = found.overlay(image, 1)
    torch.testing.assert_close(ours, 0.5 * image[:, None] + 0.5 * heat)
    torch.testing.assert_close(found.overlay(image[0], 1), heat)
    grey = found.overlay(image[:, :1], 0)
    assert torch.equal(grey[:, 0], image[:, :1].expand(-1, 3, -1, -1))
    assert result(maps.double()).overlay(image.half()).dtype == torch.float64
    zero = result(torch.zeros(1, 1, 2, 2)).overlay(torch.rand(3, 2, 2), 1)
    torch.testing.assert_close(zero[0, 0, :, 0, 0], torch.tensor([0x44, 0x01, 0x54]) / 255)
    for wrong in (torch.rand(3, 3, 8, 8), torch.rand(2, 2, 8, 8), torch.rand(8, 8), torch.rand(2, 3, 8, 8) * 3):
        with pytest.raises(ValueError, match="image must"):
            found.overlay(wrong)
    for alpha in (-0.1, 1.1, "a", True):
        with pytest.raises(ValueError, match="alpha must"):
            found.overlay(image, alpha)


def test_colours_grow_evenly_lighter() -> None:
    ramp = gc_module._coloured(torch.linspace(0, 1, 256, dtype=torch.float64)[None])[:, 0].T
    linear_light = torch.where(ramp <= 0.04045, ramp / 12.92, ((ramp + 0.055) / 1.055) ** 2.4)
    Y = linear_light @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)
    lightness = 116 * Y.pow(1 / 3) - 16
    steps = lightness.diff()
    assert (steps > 0).all()
    assert steps.max() < 3 * steps.median()
    assert torch.equal(ramp[-1], torch.tensor([0xFD, 0xE7, 0x25], dtype=torch.float64) / 255)


@each_device
@each_method
def test_results_stay_on_their_device(method: type, device: str) -> None:
    model, images = network("resnet").to(device), digits().to(device)
    found = method(model, "0")(images, [1, 2])
    for x in (
        found.maps,
        found.scores,
        found.classes,
        found.normalized().upsample(6).maps,
        found.overlay(images.sigmoid()),
    ):
        assert x.device.type == device


# --- measures -------------------------------------------------------------------------------------


class Mean(nn.Module):
    """The scores are the mean of the image and 0."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([mean, torch.zeros_like(mean)], 1)


def test_average_drop_and_increase_are_those_of_the_papers_definition() -> None:
    model, images, maps = network("vgg", double=False), digits(4, torch.float32), torch.rand(4, 3, 3, 3)
    classes = torch.tensor([[0, 1, 2], [3, 4, 5], [5, 5, 0], [1, 2, 3]])
    drops, rises = [], []
    for b, k in itertools.product(range(4), range(3)):
        heat = F.interpolate(maps[b : b + 1, k : k + 1], (6, 6), mode="bilinear", align_corners=False)
        y = model(images[b : b + 1]).softmax(1)[0, classes[b, k]].item()
        o = model(images[b : b + 1] * heat / heat.max()).softmax(1)[0, classes[b, k]].item()
        drops.append(max(y - o, 0) / y)
        rises.append(o > y)
    assert average_drop(model, images, maps, classes).item() == pytest.approx(sum(drops) / 12, rel=1e-5)
    assert average_increase(model, images, maps, classes).item() == pytest.approx(sum(rises) / 12)
    found = GradCAM(model, "0")(images, [1, 2])
    assert torch.equal(average_drop(model, images, found), average_drop(model, images, found.maps, [1, 2]))
    assert average_drop(model, images, torch.ones(4, 1, 2, 2)) == 0
    assert not average_drop(model, images, maps, classes).requires_grad


def test_curves_take_the_largest_values_first() -> None:
    images = torch.tensor([[4.0, 1.0], [2.0, 3.0]]).reshape(1, 1, 2, 2)
    maps = torch.stack([images[0], -images[0] + 5], 1)  # one map in the order of the pixels, one against it
    fractions, values, area = deletion_curve(Mean(), images, maps, [0, 0], steps=4)
    assert torch.equal(fractions, torch.linspace(0, 1, 5))
    wanted = torch.tensor([[10, 6, 3, 1, 0], [10, 9, 7, 4, 0]]) / 4
    torch.testing.assert_close(values[0], wanted.sigmoid())
    torch.testing.assert_close(area[0], torch.trapezoid(wanted.sigmoid(), fractions))
    inserted = insertion_curve(Mean(), images, maps, [0, 0], steps=4)
    torch.testing.assert_close(inserted.values[0], (2.5 - wanted).sigmoid())
    assert inserted.area[0, 0] > inserted.area[0, 1]
    three = deletion_curve(Mean(), images, maps, [0, 0], steps=3, baseline=7.0)
    assert three.values.shape == (1, 2, 4)
    torch.testing.assert_close(three.values[0, :, -1], torch.full((2,), 7.0).sigmoid())
    base = torch.full((1, 1, 2, 2), 7.0)
    assert torch.equal(deletion_curve(Mean(), images, maps, [0, 0], steps=3, baseline=base).values, three.values)
    equal = deletion_curve(Mean(), images, torch.ones(1, 1, 2, 2), 0, steps=4).values  # row by row
    torch.testing.assert_close(equal[0, 0], (torch.tensor([10.0, 6, 5, 3, 0]) / 4).sigmoid())


def test_curves_are_batched_over_images_and_classes() -> None:
    model, images, maps = network("vgg", double=False), digits(3, torch.float32), torch.rand(3, 2, 4, 4)
    classes = torch.tensor([[0, 1], [2, 3], [4, 5]])
    for curve in (deletion_curve, insertion_curve):
        whole = curve(model, images, maps, classes, steps=5)
        for b, k in itertools.product(range(3), range(2)):
            one = curve(model, images[b : b + 1], maps[b : b + 1, k : k + 1], classes[b, k].item(), steps=5)
            torch.testing.assert_close(whole.values[b, k], one.values[0, 0])
            torch.testing.assert_close(whole.area[b, k], one.area[0, 0])
    whole_image = model(images).softmax(1).gather(1, classes)
    torch.testing.assert_close(deletion_curve(model, images, maps, classes).values[..., 0], whole_image.detach())
    torch.testing.assert_close(insertion_curve(model, images, maps, classes).values[..., -1], whole_image.detach())


def test_measures_leave_the_model_as_it_was_and_say_what_is_wrong() -> None:
    model, images, maps = network("squeezenet", double=False).train(), digits(2, torch.float32), torch.rand(2, 3, 4, 4)
    before = state(model)
    for measure in (average_drop, average_increase, deletion_curve, insertion_curve):
        measure(model, images, maps, [1, 2, 3])
        assert same(state(model), before)
        with pytest.raises(ValueError, match="one for each of the 3 maps of an image, got 1"):
            measure(model, images, maps)
        with pytest.raises(ValueError, match="one for each of the 3 maps of an image, got 2"):
            measure(model, images, maps, [1, 2])
        with pytest.raises(ValueError, match=r"maps must be \(B, K, h, w\)"):
            measure(model, images, maps[0])
        with pytest.raises(ValueError, match="maps must be of the 2 images, got 1"):
            measure(model, images, maps[:1])
        with pytest.raises(ValueError, match="images must be"):
            measure(model, images[0], maps)
        with pytest.raises(ValueError, match="between 0 and 5"):
            measure(model, images, maps, [1, 2, 6])
        with pytest.raises(TypeError, match="model must be"):
            measure(lambda x: x, images, maps, [1, 2, 3])
        assert same(state(model), before)
    with pytest.raises(ValueError, match="steps must"):
        deletion_curve(model, images, maps, [1, 2, 3], steps=0)


def test_pointing_game_and_energy_are_those_of_the_definitions() -> None:
    maps = torch.rand(5, 3, 7, 9)
    maps[0, 0] = 0
    boxes = torch.tensor([[0, 0, 9, 7], [2, 1, 5, 6], [4, 4, 5, 5], [3, 3, 3, 3], [0, 2, 9, 3]])
    hits, energy = pointing_game(maps, boxes), box_energy(maps, boxes)
    for b, k in itertools.product(range(5), range(3)):
        x0, y0, x1, y1 = boxes[b].tolist()
        top = maps[b, k].argmax().item()
        row, column = divmod(top, 9)
        inside = y0 <= row < y1 and x0 <= column < x1
        assert hits[b, k] == (inside and maps[b, k].sum() > 0)
        whole = maps[b, k].sum()
        share = maps[b, k, y0:y1, x0:x1].sum() / whole if whole else torch.tensor(0.0)
        torch.testing.assert_close(energy[b, k], share)
    assert torch.equal(pointing_game(result(maps), boxes), hits)
    assert torch.equal(box_energy(result(maps), boxes.double()), energy)


def test_several_boxes_count_as_their_union() -> None:
    maps = torch.ones(1, 1, 4, 4)
    boxes = torch.tensor([[[0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 0, 0]]])
    assert box_energy(maps, boxes).item() == 7 / 16
    assert pointing_game(maps, boxes).item()
    maps[0, 0, 3, 3] = 2
    assert not pointing_game(maps, boxes).item()


def test_wrong_boxes() -> None:
    maps = torch.rand(2, 1, 4, 4)
    for measure in (pointing_game, box_energy):
        with pytest.raises(ValueError, match="bring the maps to the size of the image"):
            measure(maps, torch.tensor([[0, 0, 2, 2], [0, 0, 2, 5]]))
        with pytest.raises(ValueError, match="one row for each of the 2 images"):
            measure(maps, torch.tensor([[0, 0, 2, 2]]))
        with pytest.raises(TypeError, match="boxes must be a tensor"):
            measure(maps, [[0, 0, 2, 2]] * 2)
        with pytest.raises(ValueError, match="maps must be"):
            measure(maps[0], torch.tensor([[0, 0, 2, 2]]))


# --- models that do unusual things ----------------------------------------------------------------


class _Named(nn.Module):
    """A function of a user, whose node in the graph may be called as one of torch's own."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)


class Mul(torch.autograd.Function):  # as torch calls the product
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * g * ctx.saved_tensors[0] ** 2


class View(torch.autograd.Function):  # as torch calls a change of shape
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 5 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 5 * g


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def _small(*tail: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), *tail).double().eval()


def test_a_function_of_a_user_is_not_taken_for_one_of_torchs_with_its_name() -> None:
    x = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    curved = _small(_Named(Mul), nn.Flatten(), nn.Linear(48, 4))
    assert not tail_certificate(curved, "1", x)
    with pytest.raises(NotImplementedError):  # torch cannot nest forward mode through it, and says so
        GradCAMPlusPlus(curved, "1")(x, 1)
    scaled = _small(_Mean(), _Named(View), nn.Linear(3, 4))
    plain = _small(_Mean(), nn.Linear(3, 4))
    plain[-1].weight.data = 5 * scaled[-1].weight.data
    torch.testing.assert_close(GradCAM(scaled, "1")(x, 1).weights, GradCAM(plain, "1")(x, 1).weights)


class _WithoutGrad(nn.Module):
    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.body, self.head = net[:2], net[2:]

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.body(x)
        return self.head(x)


def test_a_curved_tail_behind_a_layer_in_no_grad_is_differentiated() -> None:
    net = _small(nn.GELU(), nn.Flatten(), nn.Linear(48, 4))
    x = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    words = {"higher_derivatives": "exact"}
    ours = GradCAMPlusPlus(_WithoutGrad(net), "body.1", **words)(x, 1)
    torch.testing.assert_close(ours.weights, GradCAMPlusPlus(net, "1", **words)(x, 1).weights)


class _Overwriting(nn.Module):
    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        x -= 1
        return self.net(x)


def test_a_model_that_writes_into_its_input_changes_nothing_outside() -> None:
    net = _small(nn.GELU(), nn.Flatten(), nn.Linear(48, 4))
    x = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    before, model = x.clone(), _Overwriting(net)
    found = GradCAMPlusPlus(model, "net.1")(x, 1)
    assert torch.equal(x, before)
    torch.testing.assert_close(found.maps, GradCAMPlusPlus(net, "1")(x - 1, 1).maps)
    maps = found.normalized()
    torch.testing.assert_close(average_drop(model, x, maps), average_drop(model, x.clone(), maps))
    deletion_curve(model, x, maps)
    assert torch.equal(x, before)


class _InList(nn.Module):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return xs[0].relu_()


class _Wiping(nn.Module):
    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.conv, self.layer, self.head = net[0], _InList(), net[2:]

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        scores = self.head(self.layer([h]))
        h.zero_()
        return scores


def test_a_layer_in_place_whose_input_comes_in_a_list_is_seen_as_it_put_out() -> None:
    net = _small(_Mean(), nn.Linear(3, 4))
    x = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(GradCAM(_Wiping(net), "layer")(x, 1).maps, GradCAM(net, "1")(x, 1).maps)


def test_a_probability_that_underflows_has_a_drop() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    model[2].weight.data.zero_()
    model[2].bias.data = torch.tensor([0.0, 200.0])
    assert average_drop(model, torch.rand(3, 1, 4, 4), torch.ones(3, 1, 4, 4), 0) == 0
    assert average_increase(model, torch.rand(3, 1, 4, 4), torch.ones(3, 1, 4, 4), 0) == 0


def test_the_fractions_of_a_curve_are_those_of_the_pixels_when_the_steps_do_not_divide_them() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)).double()
    x, maps = torch.ones(1, 1, 2, 2, dtype=torch.float64), torch.arange(4.0).double().reshape(1, 1, 2, 2)
    curve = deletion_curve(model, x, maps, 0, steps=3)
    assert curve.fractions.tolist() == [0, 0.25, 0.75, 1]
    for fraction, value in zip(curve.fractions, curve.values[0, 0], strict=True):
        wanted = model(x * (1 - fraction)).softmax(1)[0, 0]  # the mean is all that this model sees
        torch.testing.assert_close(value, wanted.detach())


def test_threads_do_not_see_each_other() -> None:
    net = nn.Sequential(_small(_Mean(), nn.Linear(3, 4)), nn.Identity()).train()
    x = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    wanted, plain = GradCAM(net, "0.1")(x, 1).maps, net(x).detach()
    wrong: list[str] = []

    def call() -> None:
        for _ in range(20):
            if not torch.equal(GradCAM(net, "0.1")(x, 1).maps, wanted):
                wrong.append("a map")

    def run() -> None:
        for _ in range(100):
            with torch.no_grad():
                y = net(x)
            if y.requires_grad or not torch.equal(y, plain):
                wrong.append("a plain run")

    threads = [threading.Thread(target=target) for target in (call, call, run)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert net.training
