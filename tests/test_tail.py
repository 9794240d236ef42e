"""The tail of a network: its certificate, its true derivatives, and the softmax scores of Grad-CAM++."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pwl_lib.nn as pnn
from pwl_lib import _tail
from pwl_lib._tail import (
    TailCertificate,
    certify,
    log_probability_derivatives,
    softmax_scores_derivatives,
    tail_certificate,
    tail_derivatives,
)
from pwl_lib.gradcam import GradCAMPlusPlus

C, SIDE, CLASSES = 4, 3, 5


# --- nets -----------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class Dense(nn.Module):
    def __init__(self, channels: int, growth: int = 3) -> None:
        super().__init__()
        widths = [channels, channels + growth]
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1) for width in widths)
        self.norm = nn.BatchNorm2d(channels + 2 * growth)

    def forward(self, x: Tensor) -> Tensor:
        for bn, conv in zip(self.bns, self.convs, strict=True):
            x = torch.cat([x, conv(bn(x).relu())], 1)
        return F.relu(self.norm(x), inplace=True)


class InvertedResidual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.body = nn.Sequential(
            *[nn.Conv2d(channels, wide, 1), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True)],
            *[nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True)],
            *[nn.Conv2d(wide, channels, 1), nn.BatchNorm2d(channels)],
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def stem() -> list[nn.Module]:
    """What comes before the target is not piecewise linear, and does not count."""
    return [nn.Conv2d(2, C, 3, padding=1), nn.GELU()]


def pooled(channels: int = C) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


def net(*tail: nn.Module, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(*stem(), *tail)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
        if hasattr(module, "reset_parameters") and not isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.reset_parameters()
    return model.to(dtype).eval()


def images(count: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Attention(nn.Module):
    def __init__(self, weights: bool = True) -> None:
        super().__init__()
        self.mha, self.weights = nn.MultiheadAttention(C, 2, batch_first=True), weights

    def forward(self, x: Tensor) -> Tensor:
        return self.mha(x, x, x, need_weights=self.weights)[0]


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def vgg_head() -> list[nn.Module]:
    return [
        *[nn.Conv2d(C, C, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten()],
        *[nn.Linear(4 * C, 6), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(6, CLASSES)],
    ]


LINEAR: dict[str, Callable[[], list[nn.Module]]] = {
    "resnet": lambda: [Residual(C), *pooled()],
    "vgg": vgg_head,
    "densenet": lambda: [Dense(C), *pooled(C + 6)],
    "mobilenet": lambda: [InvertedResidual(C), *pooled()],
    "gap": pooled,
    "leaky": lambda: [
        nn.LeakyReLU(0.1),
        nn.PReLU(),
        nn.Hardtanh(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(C, 5),
    ],
    "hardsigmoid": lambda: [nn.Hardsigmoid(), *pooled()],
    "ours": lambda: [
        *[
            pnn.Conv2d(C, C, 3, padding=1),
            pnn.ReLU(),
            pnn.MaxPool2d(2, 1),
            pnn.LeakyReLU(0.2),
            pnn.Hardtanh(),
            pnn.Absolute(),
        ],
        *[pnn.AvgPool2d(2), nn.Flatten(), pnn.Maxout(C, 6, 2), pnn.PReLU(), pnn.Linear(6, CLASSES)],
    ],
}

# the tail, and the path and the operation that must be named
CURVED: dict[str, tuple[Callable[[], list[nn.Module]], str, str]] = {
    "gelu": (lambda: [nn.Conv2d(C, C, 1), nn.GELU(), *pooled()], "3", "gelu"),
    "silu": (lambda: [nn.SiLU(inplace=True), *pooled()], "2", "silu"),
    "tanh": (lambda: [*pooled(), nn.Tanh()], "5", "tanh"),
    "sigmoid": (lambda: [nn.ReLU(), nn.Sequential(nn.Conv2d(C, C, 1), nn.Sigmoid()), *pooled()], "3.1", "sigmoid"),
    "hardswish": (lambda: [nn.Hardswish(), *pooled()], "2", "hardswish"),
    "softmax": (lambda: [nn.ReLU(), *pooled(), nn.Softmax(1)], "6", "softmax"),
    "log_softmax": (lambda: [nn.ReLU(), *pooled(), nn.LogSoftmax(1)], "6", "log_softmax"),
    "group_norm": (lambda: [nn.GroupNorm(2, C), *pooled()], "2", "group_norm"),
    "attention": (
        lambda: [Tokens(), Attention(), Mean(), nn.Linear(C, CLASSES)],
        "3.mha",
        "multi_head_attention_forward",
    ),
    "attention without weights": (
        lambda: [Tokens(), Attention(False), Mean(), nn.Linear(C, CLASSES)],
        "3.mha",
        "multi_head_attention_forward",
    ),
    "glu": (lambda: [nn.Conv2d(C, 2 * C, 1), nn.GLU(1), *pooled()], "3", "glu"),
    "our softmax": (lambda: [*pooled(), pnn.Softmax(1, temperature=2.0)], "5", "softmax"),
    "our logsumexp": (
        lambda: [nn.Flatten(2), pnn.LogSumExp(-1, temperature=3.0), nn.Linear(C, CLASSES)],
        "3",
        "logsumexp",
    ),
}
REFUSED: dict[str, tuple[Callable[[], list[nn.Module]], str, str]] = {
    "layer_norm": (lambda: [nn.LayerNorm([C, SIDE, SIDE]), *pooled()], "2", "layer_norm"),
    "layer_norm over channels": (
        lambda: [Tokens(), nn.LayerNorm(C), nn.Flatten(), nn.Linear(36, 5)],
        "3",
        "layer_norm",
    ),
    "instance_norm": (
        lambda: [nn.Conv2d(C, C, 3), nn.Sequential(nn.ReLU(), nn.InstanceNorm2d(C))],
        "3.1",
        "instance_norm",
    ),
    "instance_norm of an image": (lambda: [nn.InstanceNorm2d(C), nn.ReLU(), *pooled()], "2", "instance_norm"),
}
del REFUSED["instance_norm"]  # an instance of one pixel


def build(table: dict[str, Any], name: str, **words: Any) -> nn.Sequential:
    entry = table[name]
    return net(*(entry[0] if isinstance(entry, tuple) else entry)(), **words)


def cut(model: nn.Sequential, count: int = 2) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The tail after the stem, and the feature map."""
    x = images(count, next(model.parameters()).dtype)
    with torch.no_grad():
        A = model[:2](x)
    return lambda A: model[2:](A.clone()), A


CLASS_TABLE = torch.tensor([[0, 3], [4, 3]])


def brute_force(tail: Callable[[Tensor], Tensor], A: Tensor, classes: Tensor) -> Tensor:
    """Three nested passes of reverse mode for each sample and class, each entry in a copy of its own: ``(3, B, K, C, h, w)``."""
    entries = A[0].numel()
    places = torch.eye(entries, dtype=A.dtype).reshape(entries, *A.shape[1:])
    found = torch.zeros(3, *classes.shape, *A.shape[1:], dtype=A.dtype)
    for b, k in itertools.product(*map(range, classes.shape)):
        t = torch.zeros(entries, dtype=A.dtype, requires_grad=True)
        value = tail(A[b] + t.reshape(-1, 1, 1, 1) * places)[:, classes[b, k]]
        for order in range(3):
            if value.requires_grad:
                (value,) = torch.autograd.grad(
                    value.sum(), t, create_graph=True, allow_unused=True, materialize_grads=True
                )
            else:
                value = torch.zeros_like(value)
            found[order, b, k] = value.detach().reshape(A.shape[1:])
    return found


# --- the certificate ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LINEAR)
def test_piecewise_linear_tails_are_certified(name: str, dtype: torch.dtype) -> None:
    model = build(LINEAR, name, dtype=dtype)
    certificate = tail_certificate(model, "1", images(dtype=dtype))
    assert certificate, certificate
    assert certificate.residual == 0
    assert certificate.offenders == ()
    assert repr(certificate) == "piecewise linear tail: every Hessian-vector product is 0"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [*CURVED, *REFUSED])
def test_other_tails_are_not_and_the_report_names_the_module(name: str, dtype: torch.dtype) -> None:
    table = CURVED | REFUSED
    model, (_, path, operation) = build(table, name, dtype=dtype), table[name]
    certificate = tail_certificate(model, model[1], images(dtype=dtype))
    assert not certificate
    assert certificate.residual > 0
    first = certificate.offenders[0]
    assert (first.path, first.operation) == (path, operation)
    assert model.get_submodule(path).__class__.__name__ == first.module
    assert f"module '{path}' ({first.module}) applies {operation}" in repr(certificate)
    assert "Hessian-vector product is" in repr(certificate)


def test_a_module_before_the_target_does_not_count_and_one_in_a_branch_beside_it_does_not_either() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.target, self.other, self.head = nn.Conv2d(2, C, 1), nn.Conv2d(2, C, 1), nn.Sequential(*pooled())

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.target(x)) + F.gelu(self.other(x)))

    model = Beside().double()
    assert tail_certificate(model, "target", images())
    assert tail_certificate(model, "other", images()).offenders == (("", "Beside", "gelu"),)
    assert "the model (Beside) applies gelu" in repr(tail_certificate(model, "other", images()))


def test_the_model_is_asked_about_in_evaluation_mode_and_left_as_it_was() -> None:
    for name in ("resnet", "vgg"):
        model = build(LINEAR, name).train()
        model[0].eval()
        assert tail_certificate(model, "1", images())
        assert model.training
        assert not model[0].training
    model = net(nn.BatchNorm2d(C, track_running_stats=False), *pooled())  # the statistics of the batch, always
    certificate = tail_certificate(model, "1", images())
    assert certificate.residual > 0
    assert certificate.offenders[0].path == "2"


def test_nothing_is_left_on_the_model() -> None:
    model = build(LINEAR, "resnet").train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    with torch.no_grad():
        tail_certificate(model, "1", images())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("this one")

    model = net(Fails())
    with pytest.raises(KeyError, match="this one"):
        tail_certificate(model, "1", images())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off_and_parameters_frozen(mode: Callable[[], Any]) -> None:
    linear, curved = build(LINEAR, "densenet").requires_grad_(False), build(CURVED, "gelu").requires_grad_(False)
    with mode():
        assert tail_certificate(linear, "1", images())
        assert tail_certificate(curved, "1", images()).residual > 0


def test_a_target_in_a_no_grad_of_the_model_is_asked_as_its_plain_twin() -> None:
    class Net(nn.Module):
        def __init__(self, mode: Callable[[], Any], curve: nn.Module) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.mode = mode
            self.body = nn.Sequential(nn.Conv2d(2, C, 1), nn.ReLU(), nn.Conv2d(C, C, 1), curve)
            self.head = nn.Sequential(*pooled())

        def forward(self, x: Tensor) -> Tensor:
            with self.mode():
                x = self.body(x)
            return self.head(x)

    for curve in (nn.GELU(), nn.SiLU()):
        found, derivatives = [], []
        for mode in (torch.no_grad, torch.enable_grad):
            model = Net(mode, curve).double().eval()
            found.append(tail_certificate(model, "body.1", images()))
            tail = _tail._tail(model, model.body[1], images(2))
            A = _tail._feature_map(model, model.body[1], images(2), "body.1")
            derivatives.append(torch.stack(tail_derivatives(tail, A, CLASS_TABLE)))
            with torch.no_grad():
                tail(A)
                assert not torch.is_grad_enabled()
        assert found[0] == found[1]
        assert found[0].residual > 0
        assert torch.equal(*derivatives)
        assert derivatives[0][2].abs().max() > 0
    assert tail_certificate(Net(torch.no_grad, nn.ReLU()).double(), "body.1", images())


def test_the_answer_is_the_same_for_the_same_seed() -> None:
    model = build(CURVED, "gelu")
    residuals = [tail_certificate(model, "1", images(), seed=seed, probes=2).residual for seed in (0, 0, 1)]
    assert residuals[0] == residuals[1] != residuals[2]


@pytest.mark.theorem("thm-tail")
def test_a_hessian_that_vanishes_at_the_images_alone_does_not_certify() -> None:
    """GELU far from 0 and a saturated softmax have a Hessian that is 0 in floating point; tanh at 0 has one that is 0, and S''' = -2."""
    far = net(Call(lambda x: 1e3 + 0 * x + x), nn.GELU(), *pooled())
    saturated = net(*pooled(), Call(lambda s: 1e6 * s), nn.Softmax(1))
    flat = net(Call(lambda x: 0 * x.detach() + x - x.detach()), nn.Tanh(), *pooled())
    for model in (far, saturated, flat):
        certificate = tail_certificate(model, "1", images())
        assert certificate.residual == 0
        assert not certificate
        assert "says nothing about others" in repr(certificate)
    _, second, third = tail_derivatives(*cut(flat), CLASS_TABLE)
    assert second.abs().max() == 0 < third.abs().max()


def test_an_operation_that_hides_is_found_by_its_hessian() -> None:
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return torch.from_numpy(x.detach().numpy() ** 2)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return 2 * g * ctx.saved_tensors[0]

    model = net(Call(Hidden.apply), *pooled())
    certificate = tail_certificate(model, "1", images())
    assert certificate.residual > 0
    assert not certificate
    assert "Hessian-vector product is" in repr(certificate)


def test_an_operation_without_a_second_derivative_gives_no_residual() -> None:
    model = net(Call(lambda x: torch.cdist(x, x)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, CLASSES))
    certificate = tail_certificate(model, "1", images())
    assert math.isnan(certificate.residual)
    assert not certificate
    assert certificate.offenders[0].operation == "cdist"
    assert not TailCertificate(math.nan, ())


def test_the_arguments_are_checked() -> None:
    model = build(LINEAR, "vgg")
    for words, error, message in [
        ({"target_layer": "nowhere"}, ValueError, "got 'nowhere'$"),
        ({"target_layer": nn.ReLU()}, ValueError, "a ReLU that is not in it"),
        ({"target_layer": 1}, TypeError, "int"),
        ({"target_layer": "10x"}, ValueError, "got '10x'; near it: '10'"),
        ({"model": model.forward}, TypeError, "model must be a torch.nn.Module, got method"),
        ({"model": None}, TypeError, "model must be a torch.nn.Module, got NoneType"),
        ({"target_layer": "8"}, ValueError, r"\(B, C, h, w\), got shape \(3, 6\)"),
        ({"images": [1.0]}, TypeError, "images"),
        ({"images": torch.zeros(3, 2, 3, 3, dtype=torch.int64)}, TypeError, "images"),
        ({"probes": 0}, ValueError, "probes"),
        ({"probes": 1.0}, TypeError, "probes"),
        ({"seed": "0"}, TypeError, "seed"),
    ]:
        with pytest.raises(error, match=message):
            tail_certificate(**({"model": model, "target_layer": "1", "images": images()} | words))
    twice = nn.ReLU()
    model = net(twice, nn.Conv2d(C, C, 1), twice, *pooled())
    with pytest.raises(ValueError, match=r"target_layer '2' must run once in a call of the model, it ran 2 times$"):
        tail_certificate(model, twice, images())
    model.idle = nn.Module()
    model.idle.layer = nn.ReLU()
    model.idle.forward = lambda x: x
    with pytest.raises(ValueError, match=r"target_layer 'idle.layer' must run once .* it ran 0 times \(in eval mode"):
        tail_certificate(model, "idle.layer", images())
    model = net(nn.AdaptiveAvgPool2d(1))
    with pytest.raises(ValueError, match=r"the scores must be \(3, n\)"):
        tail_certificate(model, "1", images())


@pytest.mark.parametrize("curve", [nn.ReLU, nn.GELU])
def test_scores_that_do_not_depend_on_the_layer_are_refused(curve: type[nn.Module]) -> None:
    class Ignores(nn.Module):
        def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
            super().__init__()
            self.target, self.head = nn.Conv2d(2, C, 1), nn.Sequential(curve(), *pooled())
            self.skip, self.function = nn.Conv2d(2, C, 1), function

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.function(self.skip(x), self.target(x)))

    for function in (lambda skip, z: skip, lambda skip, z: skip + z.detach()):
        with pytest.raises(ValueError, match="the scores must depend on what target_layer 'target' puts out"):
            tail_certificate(Ignores(function).double(), "target", images())
    frozen = Ignores(lambda skip, z: skip + z).double().requires_grad_(False)
    assert bool(tail_certificate(frozen, "target", images())) == (curve is nn.ReLU)


def test_a_compiled_model_is_asked_as_it_is_written() -> None:
    model = torch.compile(build(CURVED, "gelu"), backend="eager")
    assert tail_certificate(model, "1", images()).offenders[0].path == "3"


def test_a_layer_in_a_compiled_module_is_found_by_its_name() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(2, C, 1), nn.ReLU(), nn.GELU()), *pooled()).double()
    plain, layer = tail_certificate(model, "0.0", images()), model[0][0]
    model[0] = torch.compile(model[0], backend="eager")
    model[0](images())  # compiled without a hook
    for name in ("0.0", "0._orig_mod.0", layer):
        assert tail_certificate(model, name, images()) == plain
    assert plain.offenders == (("0.2", "GELU", "gelu"),)
    with pytest.raises(ValueError, match=r"got '0.1x'; near it: '0.1'"):
        tail_certificate(model, "0.1x", images())


# --- the derivatives ------------------------------------------------------------------------------


@pytest.mark.theorem("prop-gradcam-exact")
@pytest.mark.parametrize("name", CURVED)
def test_derivatives_of_curved_tails_are_those_of_nested_reverse_mode(name: str) -> None:
    model = build(CURVED, name)
    tail, A = cut(model)
    ours = torch.stack(tail_derivatives(tail, A, CLASS_TABLE, model=model))
    assert ours.shape == (3, 2, 2, C, SIDE, SIDE)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = brute_force(tail, A, CLASS_TABLE)
    for order in range(3):
        torch.testing.assert_close(
            ours[order], expected[order], rtol=1e-10, atol=1e-10 * expected[order].abs().max().item()
        )
    assert expected[1].abs().max() > 0


@pytest.mark.parametrize("name", LINEAR)
def test_derivatives_of_piecewise_linear_tails_are_the_gradient_and_zeros(name: str) -> None:
    model = build(LINEAR, name)
    tail, A = cut(model)
    first, second, third = tail_derivatives(tail, A, CLASS_TABLE)
    A = A.clone().requires_grad_()
    scores = tail(A).gather(1, CLASS_TABLE)
    for k in range(2):
        torch.testing.assert_close(first[:, k], torch.autograd.grad(scores[:, k].sum(), A, retain_graph=True)[0])
    assert torch.equal(second, torch.zeros_like(second))
    assert torch.equal(third, torch.zeros_like(third))


@pytest.mark.parametrize("name", ["gelu", "silu", "softmax", "our softmax"])
def test_any_chunk_gives_the_same_and_float32_is_close(name: str) -> None:
    tail, A = cut(build(CURVED, name))
    whole = torch.stack(tail_derivatives(tail, A, CLASS_TABLE))
    for chunk in (20, 1000):
        torch.testing.assert_close(torch.stack(tail_derivatives(tail, A, CLASS_TABLE, chunk=chunk)), whole)
    tail, A = cut(build(CURVED, name, dtype=torch.float32))
    single = torch.stack(tail_derivatives(tail, A, CLASS_TABLE))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), whole, rtol=1e-4, atol=1e-5)


def test_the_derivatives_can_be_differentiated() -> None:
    tail, A = cut(build(CURVED, "gelu"))
    A.requires_grad_()
    second = tail_derivatives(tail, A, CLASS_TABLE, create_graph=True).second
    third = tail_derivatives(tail, A, CLASS_TABLE).third
    assert not third.requires_grad
    place = (0, 0, 1, 2, 1)
    (found,) = torch.autograd.grad(second[place], A)
    torch.testing.assert_close(found[(0, *place[2:])], third[place])


@pytest.mark.parametrize("name", REFUSED)
def test_operations_that_torch_gets_wrong_are_refused(name: str) -> None:
    model, (_, path, operation) = build(REFUSED, name), REFUSED[name]
    tail, A = cut(model)
    with pytest.raises(
        NotImplementedError, match=rf"module '{path}' \(\w+\) applies {operation}, and nested forward mode"
    ):
        tail_derivatives(tail, A, CLASS_TABLE, model=model)
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_what_is_refused_in_training_mode() -> None:
    model = net(nn.BatchNorm2d(C, track_running_stats=False), *pooled())
    tail, A = cut(model)
    with pytest.raises(NotImplementedError, match=r"module '2' \(BatchNorm2d\) applies batch_norm.*mixes the samples"):
        tail_derivatives(tail, A, CLASS_TABLE, model=model)
    model = build(LINEAR, "vgg").train()
    tail, A = cut(model)
    with pytest.raises(NotImplementedError, match=r"module '9' \(Dropout\).*random"):
        tail_derivatives(tail, A, CLASS_TABLE, model=model)


def test_what_does_not_depend_on_the_map_is_neither_refused_nor_differentiated() -> None:
    """The whole model runs, with the output of the target replaced: what comes before it, and what stands beside it."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Sequential(
                nn.Conv2d(2, C, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(C, track_running_stats=False)
            )
            self.target = nn.Conv2d(C, C, 1)
            self.beside = nn.Sequential(
                nn.LayerNorm([C, SIDE, SIDE]), pnn.LSEPool2d(3, 1, 1), pnn.ReLU(), nn.InstanceNorm2d(C)
            )
            self.head = nn.Sequential(nn.SiLU(inplace=True), *pooled())

        def forward(self, x: Tensor) -> Tensor:
            x = self.before(x)
            out = self.target(x)
            out += self.beside(x)
            return self.head(out)

    model, x = Beside().double(), images(2)
    A = _tail._feature_map(model, model.target, x, "target")
    ours = torch.stack(tail_derivatives(_tail._tail(model, model.target, x), A, CLASS_TABLE, model=model))
    beside = model.beside(model.before(x)).detach()
    for b in range(2):
        expected = brute_force(lambda A, b=b: model.head(A + beside[b : b + 1]), A[b : b + 1], CLASS_TABLE[b : b + 1])
        torch.testing.assert_close(ours[:, b : b + 1], expected, rtol=1e-10, atol=1e-12)


def test_what_is_refused_would_have_been_wrong() -> None:
    """If this fails, torch has been put right, and the refusal can go."""
    wrong = {
        "layer_norm": lambda z: F.layer_norm(z, z.shape[1:]),
        "instance_norm": F.instance_norm,
        "batch_norm": lambda z: F.batch_norm(z, None, None, training=True),
    }
    right = {
        "group_norm": lambda z: F.group_norm(z, 2),
        "softmax": lambda z: z.softmax(1),
        "gelu": F.gelu,
        "silu": F.silu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "hardswish": F.hardswish,
        "by hand": lambda z: (z - z.mean((1, 2, 3), keepdim=True)) / (z.var((1, 2, 3), keepdim=True) + 1e-5).sqrt(),
    }
    A = torch.randn(2, C, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = torch.randn(A.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(C * 25, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for name, operation in (wrong | right).items():
        score = lambda t, operation=operation: (operation(A + t * v).flatten(1) @ weights).sum()
        t = torch.zeros((), dtype=torch.float64)
        forward = _tail._three(score, t, torch.ones_like(t))
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        value, errors = score(t), []
        for each in forward:
            value = _tail._gradient(value, t)
            errors.append(((each - value).abs() / (value.abs() + 1e-3)).item())
        assert errors[0] < 1e-11
        assert (max(errors) > 1e-3) == (name in wrong), (name, errors)


def test_a_custom_function_that_forward_mode_gets_wrong_does_not_pass_unseen() -> None:
    class Square(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x * x

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return 2 * g * ctx.saved_tensors[0]

        @staticmethod
        def jvp(ctx: Any, t: Tensor) -> Tensor:
            return 2 * t * ctx.saved_tensors[0]

    tail, A = cut(net(Call(Square.apply), *pooled()))
    with pytest.raises(NotImplementedError, match="disagree on derivative 2"):
        tail_derivatives(tail, A, CLASS_TABLE)


def test_samples_that_mix_do_not_pass_unseen() -> None:
    tail, A = cut(net(Call(lambda x: x.tanh() * x.sum(0, keepdim=True)), *pooled()))
    with pytest.raises(NotImplementedError, match="depend on another sample"):
        tail_derivatives(tail, A, CLASS_TABLE)


def test_our_layers_that_have_no_twin_in_torch_are_refused() -> None:
    model = net(pnn.LSEPool2d(2), *pooled())
    tail, A = cut(model)
    with pytest.raises(NotImplementedError, match=r"module '2' \(LSEPool2d\) applies pwl_lib.logsumexp.lse_pool2d"):
        tail_derivatives(tail, A, CLASS_TABLE, model=model)


def test_an_operation_that_torch_cannot_differentiate_is_named() -> None:
    model = net(Call(lambda x: torch.cdist(x, x)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, CLASSES))
    tail, A = cut(model)
    with pytest.raises(
        NotImplementedError, match=r"module '2' \(Call\) applies cdist, which torch cannot differentiate here"
    ):
        tail_derivatives(tail, A, CLASS_TABLE, model=model)
    with pytest.raises(ValueError, match="chunk"):
        tail_derivatives(tail, A, CLASS_TABLE, chunk=0)


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0]


@pytest.mark.parametrize(
    ("function", "does", "message"),
    [
        (lambda z: OldStyle.apply(z), "does what", "must override the setup_context"),
        (lambda z: z.tanh() if z.max() > 0 else z, "applies __bool__, which", "data-dependent control flow"),
        (lambda z: z.tanh() * z.max().item(), "applies item, which", "item"),
        (lambda z: z * z[z > 0].mean(), "applies __getitem__, which", "dynamic shape"),
    ],
    ids=["old-style Function", "if", "item", "mask"],
)
def test_what_vmap_and_nested_forward_mode_do_not_take_is_named(function: Any, does: str, message: str) -> None:
    model = net(nn.Sequential(nn.ReLU(), Call(function)), *pooled())
    tail, A = cut(model)
    with pytest.raises(NotImplementedError, match=message) as raised:
        tail_derivatives(tail, A, CLASS_TABLE, model=model)
    text = str(raised.value)
    assert text.startswith(f"module '2.1' (Call) {does} torch cannot take"), text
    assert type(raised.value.__cause__) is RuntimeError
    assert str(raised.value.__cause__) in text
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch._C._are_functorch_transforms_active()
    with pytest.raises(NotImplementedError, match=r"the tail (does|applies)"):
        tail_derivatives(lambda A: function(A).mean((2, 3)), A, CLASS_TABLE % C)
    with pytest.raises(NotImplementedError, match=r"module '2\.1' .*higher_derivatives='piecewise_linear' takes"):
        GradCAMPlusPlus(model, "1", higher_derivatives="exact")(images(2), CLASS_TABLE)


def test_an_error_of_the_memory_stays_what_it_is() -> None:
    def full(z: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    tail, A = cut(net(Call(full), *pooled()))
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        tail_derivatives(tail, A, CLASS_TABLE)


def test_in_place_operations_are_taken_as_they_are_written() -> None:
    def body(x: Tensor) -> Tensor:
        x = x * 1
        F.silu(x, inplace=True)
        x += 1
        x *= torch.ones_like(x) * 2
        x.mul_(x.sigmoid())
        F.hardsigmoid(x, inplace=True)
        return x * x

    tail, A = cut(net(Call(body), *pooled()))
    ours = torch.stack(tail_derivatives(tail, A, CLASS_TABLE))
    plain = lambda x: (F.relu6(2 * (F.silu(x) + 1) * (2 * (F.silu(x) + 1)).sigmoid() + 3) / 6) ** 2
    model = net(Call(plain), *pooled())
    expected = brute_force(cut(model)[0], A, CLASS_TABLE)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


# --- softmax scores -------------------------------------------------------------------------------


@pytest.mark.theorem("prop-gradcam-softmax")
def test_softmax_derivatives_in_symbols() -> None:
    """The closed forms against sympy's derivatives, and against the product rule, which is how the paper writes them."""
    t = sp.symbols("t")
    g, b = sp.symbols("g0:3"), sp.symbols("b0:3")
    S = [gj * t + bj for gj, bj in zip(g, b, strict=True)]
    total = sum(map(sp.exp, S))
    Y = [sp.exp(s) / total for s in S]
    m = sum(y * gj for y, gj in zip(Y, g, strict=True))
    v = sum(y * (gj - m) ** 2 for y, gj in zip(Y, g, strict=True))
    s = sum(y * (gj - m) ** 3 for y, gj in zip(Y, g, strict=True))
    d = g[0] - m
    closed = [Y[0] * d, Y[0] * (d**2 - v), Y[0] * (d**3 - 3 * d * v - s)]
    first = [y * (gj - m) for y, gj in zip(Y, g, strict=True)]
    slope = sum(f * gj for f, gj in zip(first, g, strict=True))
    second = [f * (gj - m) - y * slope for f, y, gj in zip(first, Y, g, strict=True)]
    bend = sum(f * gj for f, gj in zip(second, g, strict=True))
    paper = [first[0], second[0], second[0] * d - 2 * first[0] * slope - Y[0] * bend]
    x = sp.symbols("x0:3", positive=True)  # the exponentials
    for order in range(3):
        for form in (closed[order], paper[order]):
            difference = (sp.diff(Y[0], t, order + 1) - form).subs(t, 0)
            assert sp.simplify(difference.subs({sp.exp(bj): xj for bj, xj in zip(b, x, strict=True)})) == 0
    logarithm = sp.log(Y[0])
    for order, form in enumerate([d, -v, -s], 1):
        difference = (sp.diff(logarithm, t, order) - form).subs(t, 0)
        assert sp.simplify(difference.subs({sp.exp(bj): xj for bj, xj in zip(b, x, strict=True)})) == 0


@pytest.mark.theorem("prop-gradcam-softmax")
@pytest.mark.parametrize("name", ["resnet", "vgg", "densenet", "gap"])
def test_softmax_derivatives_are_those_of_nested_reverse_mode(name: str) -> None:
    tail, A = cut(build(LINEAR, name))
    leaf = A.clone().requires_grad_()
    scores = tail(leaf)
    for chunk in (None, 2):
        ours = torch.stack(softmax_scores_derivatives(scores, leaf, CLASS_TABLE, chunk=chunk))
        expected = brute_force(lambda A: tail(A).softmax(1), A, CLASS_TABLE)
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)
        logs = torch.stack(log_probability_derivatives(scores, leaf, CLASS_TABLE, chunk=chunk))
        expected = brute_force(lambda A: tail(A).log_softmax(1), A, CLASS_TABLE)
        torch.testing.assert_close(logs, expected, rtol=1e-10, atol=1e-14)
    assert not ours.requires_grad
    d, v, _ = logs
    Y = scores.detach().softmax(1).gather(1, CLASS_TABLE)[..., None, None, None]
    torch.testing.assert_close(ours[1], Y * (d**2 + v))


def test_softmax_derivatives_stay_finite_where_a_probability_underflows() -> None:
    tail, A = cut(net(*pooled(), Call(lambda s: 2000 * s), dtype=torch.float32))
    A.requires_grad_()
    scores = tail(A)
    worst = scores.argmin(1, keepdim=True)
    assert (scores.softmax(1).gather(1, worst) == 0).all()
    logs = log_probability_derivatives(scores, A, worst)
    assert all(each.isfinite().all() for each in logs)
    assert (logs.first != 0).any()


def test_softmax_derivatives_can_be_differentiated() -> None:
    tail, A = cut(build(LINEAR, "vgg"))
    A.requires_grad_()
    first, second, _ = softmax_scores_derivatives(tail(A), A, CLASS_TABLE, create_graph=True)
    place = (1, 0, 2, 1, 1)
    (found,) = torch.autograd.grad(first[place], A)
    torch.testing.assert_close(found[(1, *place[2:])], second[place].detach())


def test_scores_that_do_not_depend_on_the_map_have_no_derivatives() -> None:
    A = torch.randn(2, C, SIDE, SIDE, requires_grad=True)
    scores = torch.randn(2, CLASSES)
    for derivatives in (
        log_probability_derivatives(scores, A, CLASS_TABLE),
        tail_derivatives(lambda A: scores + 0 * A.sum(), A, CLASS_TABLE),
    ):
        assert all(each.shape == (2, 2, C, SIDE, SIDE) and (each == 0).all() for each in derivatives)
    assert certify(lambda A: scores, A)


@pytest.mark.theorem("prop-gradcam-softmax")
@pytest.mark.parametrize("lead", [5.0, 10.0, 15.0, 30.0])
def test_a_class_that_is_almost_certain_loses_no_digits(lead: float) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    head[1].bias.data[2] += lead
    A = torch.rand(2, 3, 2, 2)
    classes = torch.full((2, 1), 2)
    found = []
    for dtype in (torch.float32, torch.float64):
        entry = A.to(dtype).requires_grad_()
        found.append(log_probability_derivatives(head.to(dtype)(entry), entry, classes))
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=0)


def test_a_run_of_the_model_in_another_thread_is_not_seen_by_the_certificate() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).double()
    x = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        plain = net(x)
    wrong: list[str] = []

    def run() -> None:
        for _ in range(200):
            with torch.no_grad():
                y = net(x)
            if y.requires_grad or not torch.equal(y, plain):
                wrong.append("a plain run")

    thread = threading.Thread(target=run)
    thread.start()
    assert all(tail_certificate(net, "1", x) for _ in range(10))
    thread.join()
    assert wrong == []
