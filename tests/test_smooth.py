"""`smooth`: the bound holds at whatever input is found, is attained where it can be, and follows from the right rules."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pwl_lib._smooth as smoothing
import pwl_lib.nn as pnn
from pwl_lib.logsumexp import LSEPool2d, Smoothed, logsumexp, smooth
from pwl_lib.maxout import Maxout, Maxout2d, difference_of_maxouts

DOUBLE = torch.float64
SCALES = (0.1, 1.0, 10.0, 1000.0)


def _gap(model: nn.Module, net: nn.Module, x: Tensor) -> float:
    """The largest distance at some inputs, less what rounding of either network can make of it."""
    with torch.no_grad():
        f, f_t = model(x), net(x)
        slack = 1e-11 * (1 + float(x.abs().max()) + float(f.abs().max()))
        return float((f_t - f).abs().max()) - slack


def _search(model: nn.Module, net: nn.Module, x: Tensor, steps: int = 60, rate: float = 0.3) -> float:
    """Climbs the distance, up and down, for every output, from many starts at once. The largest that was met."""
    with torch.no_grad():
        outputs = model(x[:1]).numel()
    pick = torch.arange(len(x)) % outputs
    up = torch.where((torch.arange(len(x)) // outputs) % 2 == 0, 1.0, -1.0).to(x.dtype)
    scale = x.flatten(1).abs().amax(1).clamp(min=1e-3).reshape(-1, *(1,) * (x.dim() - 1))
    x = x.clone().requires_grad_()
    optimiser = torch.optim.Adam([x], lr=1.0)
    largest = 0.0
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        difference = (net(x) - model(x)).flatten(1)
        largest = max(largest, _gap(model, net, x.detach()))
        loss = -(up * difference.gather(1, pick[:, None])[:, 0]).sum()
        (gradient,) = torch.autograd.grad(loss, x)
        x.grad = gradient * scale  # the far starts move far
        optimiser.step()
    return max(largest, _gap(model, net, x.detach()))


def _starts(shape: tuple[int, ...], count: int = 48) -> Tensor:
    """Random inputs of every scale, zero, and inputs that are 0 or constant in parts."""
    x = torch.randn(count, *shape, dtype=DOUBLE)
    x = x * torch.tensor(SCALES, dtype=DOUBLE).repeat(count)[:count].reshape(-1, *(1,) * len(shape))
    x[0] = 0
    x[1] = x[1].flatten()[0]
    x[2] = torch.where(torch.rand(shape) < 0.5, 0.0, x[2])
    return x


def _planted(first: nn.Linear, count: int) -> Tensor:
    """Inputs that put as many units of the first layer on their kinks as there are inputs to choose."""
    weight, bias = first.weight.detach(), first.bias.detach()
    rows = torch.stack([torch.randperm(len(weight))[: weight.shape[1]] for _ in range(count)])
    return torch.linalg.lstsq(weight[rows], -bias[rows][..., None]).solution[..., 0]


class Residual(nn.Module):
    def __init__(self, features: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(3, features)
        self.inner = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, features))
        self.last = nn.Linear(2 * features, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        g = h - 0.5 * self.inner(h)
        g = torch.maximum(g, -h / 3)
        return self.last(torch.cat([torch.abs(g), h], dim=-1))


class Images(nn.Module):
    """Every operation on images, once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.PReLU(3)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.units = Maxout2d(6, 4, 1, pieces=3)
        self.grouped = pnn.Conv2d(4, 4, 2, groups=2)
        self.drop = nn.Dropout2d(0.5)
        self.linear = nn.Linear(4 * 4, 3)
        self.register_buffer("mix", torch.randn(4, 3))
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.weight.normal_()
            self.act.weight.copy_(torch.tensor([0.25, 2.0, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm(self.conv(x)))
        h = torch.cat([self.pool(h), F.avg_pool2d(h, 2)], dim=1)
        h = self.drop(self.grouped(self.units(h)))
        h = F.hardtanh(h, -0.3, 0.4) + F.pad(h, (0, 0, 0, 0)) / 2
        return self.linear(torch.flatten(h, 1)) + h.mean((2, 3)) @ self.mix


class OldStyle(nn.Module):
    """As networks were written: shapes by hand, operations in place, one module in several places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(12, 4)
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.randn(4))
        with torch.no_grad():
            self.norm.weight.normal_()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.conv1(x))
        g = self.conv2(h)
        g += h
        g = self.relu(g)
        g = F.max_pool2d(g, 2)
        g = self.fc(g.view(x.size(0), -1))
        g = self.norm(g).clamp(min=-0.5) * self.scale
        return torch.minimum(g.relu_(), self.scale.abs() * 3)


def _mlp(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(sizes):
        layers += [nn.Linear(n, m), act()]
    return nn.Sequential(*layers[:-1])


def _maxout_net() -> nn.Sequential:
    return nn.Sequential(Maxout(3, 4, 3), Maxout(4, 3, 2), nn.Linear(3, 2))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (lambda: _mlp(3, 6, 5, 2), (3,)),
    "ours": (
        lambda: nn.Sequential(pnn.Linear(3, 5), pnn.ReLU(), pnn.Linear(5, 4), pnn.LeakyReLU(0.2), pnn.Linear(4, 2)),
        (3,),
    ),
    "leaky": (lambda: _mlp(3, 5, 4, 2, act=lambda: nn.LeakyReLU(0.3)), (3,)),
    "steep": (lambda: _mlp(3, 5, 4, 2, act=lambda: pnn.LeakyReLU(1.7)), (3,)),
    "falling": (lambda: _mlp(3, 5, 4, 2, act=lambda: nn.PReLU(init=-0.6)), (3,)),
    "absolute": (lambda: _mlp(3, 5, 4, 2, act=pnn.Absolute), (3,)),
    "hardtanh": (lambda: _mlp(3, 5, 4, 2, act=lambda: nn.Hardtanh(-0.2, 0.5)), (3,)),
    "relu6": (lambda: _mlp(3, 5, 4, 2, act=nn.ReLU6), (3,)),
    "maxout": (_maxout_net, (3,)),
    "residual": (Residual, (3,)),
    "images": (Images, (2, 6, 6)),
    "old style": (OldStyle, (1, 6, 6)),
    "images in a row": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)
        ),
        (2, 7),
    ),
}


def _build(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    build, shape = MODELS[name]
    torch.manual_seed(seed)
    model = build().double().eval()
    return model, _starts(shape)


# --- the bound is never violated ------------------------------------------------------------------


@pytest.mark.theorem("thm-smooth-bound")
@pytest.mark.parametrize("name", MODELS)
def test_no_input_that_a_search_finds_violates_the_bound(name: str) -> None:
    for seed, t in ((0, 0.5), (1, 20.0)):
        model, x = _build(name, seed)
        net, bound = smooth(model, t)
        assert 0 < bound < math.inf
        found = _search(model, net, x, steps=12)
        assert 0 < found <= bound


@pytest.mark.theorem("thm-smooth-bound")
@given(seed=st.integers(0, 2**31), t=st.floats(0.05, 500), depth=st.integers(1, 3), width=st.integers(1, 5))
@settings(max_examples=25)
def test_no_input_at_planted_kinks_violates_the_bound(seed: int, t: float, depth: int, width: int) -> None:
    torch.manual_seed(seed)
    act = [nn.ReLU, nn.LeakyReLU, pnn.Absolute, lambda: nn.Hardtanh(-0.1, 0.1), lambda: nn.PReLU(init=3.0)][seed % 5]
    model = _mlp(2, *[width] * depth, 2, act=act).double()
    net, bound = smooth(model, t)
    near = _planted(model[0], 32)
    x = torch.cat([near, near + torch.randn(32, 2, dtype=DOUBLE) / t, 100 * torch.randn(32, 2, dtype=DOUBLE)])
    assert _gap(model, net, x) <= bound


SWITCHES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[..., Tensor], Callable[..., Any]]] = {
    "relu": (torch.relu, smoothing.smooth_relu, smoothing._relu_gap),
    "abs": (
        torch.abs,
        lambda x, temperature: smoothing.smooth_leaky_relu(x, -1.0, temperature=temperature),
        lambda t, gap: smoothing._leaky_relu_gap(t, gap, -1.0),
    ),
    **{
        f"leaky {slope}": (
            lambda x, slope=slope: torch.where(x > 0, x, slope * x),
            lambda x, slope=slope, **words: smoothing.smooth_leaky_relu(x, slope, **words),
            lambda t, gap, slope=slope: smoothing._leaky_relu_gap(t, gap, slope),
        )
        for slope in (0.0, 0.3, 2.5, -0.4, -3.0)
    },
    **{
        f"clamp {low} {high}": (
            lambda x, low=low, high=high: x.clamp(low, high),
            lambda x, low=low, high=high, **words: smoothing.smooth_clamp(x, low, high, **words),
            lambda t, gap, low=low, high=high: smoothing._clamp_gap(t, gap, low, high),
        )
        for low, high in ((-1.0, 1.0), (0.0, 0.01), (-30.0, 50.0), (None, 0.5), (-0.5, None))
    },
}


@pytest.mark.theorem("prop-smooth-switch")
@pytest.mark.parametrize("name", SWITCHES)
@given(t=st.floats(0.1, 50), low=st.floats(0, 5), high=st.floats(0, 5))
@settings(max_examples=10)
def test_the_interval_of_a_switch_of_one_input_is_exact(name: str, t: float, low: float, high: float) -> None:
    f, f_t, rule = SWITCHES[name]
    low = -low
    one = torch.ones(1, dtype=DOUBLE)
    gap = rule(t, smoothing.Gap(low * one, high * one))
    scale = torch.cat([torch.linspace(-1, 1, 2001, dtype=DOUBLE) * width for width in (1 / t, 1.0, 60.0, 1000.0)])
    corners = torch.tensor([0.0, -1.0, 1.0, 0.01, -30.0, 50.0, 0.5, -0.5], dtype=DOUBLE)
    x = torch.cat([scale, corners])
    e = torch.linspace(low, high, 9, dtype=DOUBLE)[:, None]
    difference = f_t(x + e, temperature=t) - f(x)
    tolerance = 1e-11 * (1 + 3000 / 1)
    assert float(gap.low) - tolerance <= float(difference.min()) <= float(gap.low) + tolerance
    assert float(gap.high) - tolerance <= float(difference.max()) <= float(gap.high) + tolerance


@pytest.mark.theorem("thm-smooth-bound")
@given(t=st.floats(0.1, 50), ends=st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3)), min_size=2, max_size=5))
def test_the_interval_of_a_maximum_is_exact(t: float, ends: list[tuple[float, float]]) -> None:
    low, high = -torch.tensor(ends, dtype=DOUBLE)[:, 0], torch.tensor(ends, dtype=DOUBLE)[:, 1]
    gap = smoothing._maxout_gap(t, smoothing.Gap(low, high), torch.eye(len(ends)), None, len(ends))
    # all equal, at the upper ends; and one entry far above the others, at its lower end
    at_top = float(logsumexp(high, 0, temperature=t))
    at_bottom = min(float(logsumexp(far + low, 0, temperature=t) - far.max()) for far in 1e4 * torch.eye(len(ends)))
    assert math.isclose(float(gap.high), at_top, rel_tol=1e-12)
    assert math.isclose(float(gap.low), at_bottom, rel_tol=1e-9, abs_tol=1e-9)
    x = torch.randn(500, len(ends), dtype=DOUBLE) * 3 / t
    e = low + (high - low) * torch.rand(500, len(ends), dtype=DOUBLE)
    difference = logsumexp(x + e, 1, temperature=t) - x.amax(1)
    assert bool((difference <= gap.high + 1e-12).all() & (difference >= gap.low - 1e-12).all())


# --- the bound is tight where it can be -----------------------------------------------------------


def _one_layer(kind: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A network with one switch layer, and inputs at which the distance comes near its supremum."""
    sign = torch.tensor([1.0, -2.0, 0.5, -0.25], dtype=DOUBLE)
    if kind == "relu":
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)).double()
        wanted = torch.stack([torch.where(sign > 0, 0.0, 500.0), torch.where(sign < 0, 0.0, 500.0)])
    elif kind == "absolute":
        model = nn.Sequential(nn.Linear(4, 4), pnn.Absolute(), nn.Linear(4, 1)).double()
        wanted = torch.stack([torch.where(sign > 0, 0.0, 500.0), torch.where(sign < 0, 0.0, 500.0)])
    else:
        model = nn.Sequential(nn.Linear(4, 4), nn.Hardtanh(), nn.Linear(4, 1)).double()
        wanted = torch.stack([torch.where(sign > 0, -1.0, 1.0), torch.where(sign < 0, -1.0, 1.0)])
    with torch.no_grad():
        model[2].weight.copy_(sign[None])
    weight, bias = model[0].weight.detach(), model[0].bias.detach()
    return model, lambda _: torch.linalg.solve(weight, (wanted.to(DOUBLE) - bias).T).T


@pytest.mark.theorem("thm-smooth-bound")
@pytest.mark.parametrize("kind", ["relu", "absolute", "hardtanh"])
@pytest.mark.parametrize("t", [1.0, 10.0, 100.0])
def test_with_one_layer_of_independent_units_the_bound_is_attained(kind: str, t: float) -> None:
    torch.manual_seed(3)
    model, inputs = _one_layer(kind)
    net, bound = smooth(model, t)
    found = _gap(model, net, inputs(torch.zeros(0)))
    assert 0.99 * bound <= found <= bound


@pytest.mark.theorem("thm-smooth-bound")
def test_one_maxout_or_pooling_layer_attains_the_bound_where_its_pieces_meet() -> None:
    for model, x, n in (
        (Maxout(3, 2, 4).double(), torch.zeros(1, 3, dtype=DOUBLE), 4),
        (nn.MaxPool2d((3, 2)), torch.full((1, 2, 6, 6), 7.0, dtype=DOUBLE), 6),
        (nn.MaxPool1d(5), torch.full((1, 2, 10), 7.0, dtype=DOUBLE), 5),
    ):
        if isinstance(model, Maxout):
            nn.init.zeros_(model.bias)
        net, bound = smooth(model, 3.0)
        assert math.isclose(bound, math.log(n) / 3, rel_tol=1e-12)
        assert math.isclose(_gap(model, net, x), bound, rel_tol=1e-9)


def test_a_search_comes_near_the_bound_of_a_deep_narrow_network() -> None:
    """One positive unit a layer: every kink can be met at once, up to the shift that the layers before make."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.fill_(1.5)
            layer.bias.zero_()
    net, bound = smooth(model, 5.0)
    assert _gap(model, net, torch.zeros(1, 1, dtype=DOUBLE)) >= 0.99 * bound


@pytest.mark.theorem("thm-smooth-bound")
@pytest.mark.parametrize("name", ["relu", "leaky", "absolute", "maxout", "residual", "falling", "images in a row"])
def test_the_bound_of_maxima_is_proportional_to_one_over_t(name: str) -> None:
    model, _ = _build(name, 5)
    bounds = [smooth(model, t).bound for t in (0.25, 1.0, 2.0, 1024.0)]
    for t, bound in zip((0.25, 1.0, 2.0, 1024.0), bounds, strict=True):
        assert math.isclose(t * bound, bounds[1], rel_tol=1e-12)


def test_the_bound_of_a_clamp_is_at_most_one_over_t_and_saturates() -> None:
    """A clamp between -1 and 1 cannot be off by more than its width, so that its bound is not proportional to 1/t."""
    one = torch.ones(1, dtype=DOUBLE)
    assert float(smoothing._clamp_gap(1e-9, smoothing.Gap(-one, one), -1, 1).high) <= 2
    assert float(smoothing._clamp_gap(5.0, smoothing.Gap(-1e9 * one, 1e9 * one), -1, 1).high) <= 2 + 1e-12
    assert math.isclose(smooth(nn.Hardtanh(), 50.0).bound, math.log(2) / 50, rel_tol=1e-9)


def test_an_affine_network_has_the_bound_zero() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.AvgPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(8, 3)
    ).eval()
    net, bound = smooth(model, 1.0)
    assert math.copysign(1, bound) == 1
    assert bound == 0
    x = torch.randn(3, 1, 6, 6)
    assert torch.equal(net(x), model(x))


def test_the_bound_of_a_known_network_by_hand() -> None:
    """Two layers: gaps [0, c] after the first, c = ln(2)/t; weights 2 and -3 make [-3c, 2c]; the second ReLU follows."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[2.0, -3.0]]))
        model[4].weight.fill_(-1.0)
    for t in (0.5, 20.0):
        c = math.log(2) / t
        upper = math.log1p(math.exp(t * 2 * c)) / t  # ln 5 / t
        assert math.isclose(upper, math.log(5) / t)
        assert math.isclose(smooth(model, t).bound, max(upper, 3 * c), rel_tol=1e-12)


@pytest.mark.theorem("thm-smooth-bound")
@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda r, x: torch.relu(-r), 2),
        (lambda r, x: torch.relu(x - 2 * r), 4),
        (lambda r, x: torch.relu(2 * r - x), 5),
        (lambda r, x: torch.relu(r - r), 3),
        (lambda r, x: torch.relu(1 - r), 2),
        (lambda r, x: torch.relu(r / -0.5), 4),
        (lambda r, x: torch.relu(r + r + x), 5),
        (lambda r, x: torch.maximum(r, r), 4),
        (lambda r, x: torch.maximum(-3 * r, r), 8),
        (lambda r, x: torch.maximum(x, -3 * r), 8),
        (lambda r, x: torch.minimum(r, r), 2),
        (lambda r, x: torch.minimum(-2 * r, x), 5),
        (lambda r, x: torch.relu(torch.minimum(-2 * r, x)), 5),
        (lambda r, x: r.clamp(max=1), 2),
        (lambda r, x: (-r).clamp(max=1), 3),
        (lambda r, x: torch.abs(-3 * r), 8 + 1 / 8),
        (lambda r, x: F.leaky_relu(r, 2.0), 4),
        (lambda r, x: F.leaky_relu(-r, 2.0), 4 + 2),
        (lambda r, x: F.leaky_relu(r, 0.5), 2 + math.sqrt(2)),
        (lambda r, x: torch.relu(r * torch.tensor([[2.0], [-3.0]])), 8),  # the larger of 3 ln 2 and ln(1 + 2^2)
        (lambda r, x: torch.relu(r * torch.tensor([[3.0], [-1.0]])), 9),
        (lambda r, x: torch.relu(r * torch.tensor([[3.0], [2.0]])), 9),
        (lambda r, x: F.avg_pool1d(r, 2), 2),
        (lambda r, x: F.avg_pool2d(r, (1, 2), divisor_override=1), 4),
        (lambda r, x: F.max_pool1d(F.pad(r, (1, 1)), 3), 6),
    ],
)
def test_the_bound_of_two_steps_by_hand(function: Callable[[Tensor, Tensor], Tensor], wanted: float) -> None:
    """After r = relu(x) the gap is in [0, ln 2] at t = 1, and e to the power of the next bound is a whole number, or nearly."""

    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(torch.relu(x), x)

    model = Two()
    net, bound = smooth(model, 1.0)
    assert math.isclose(math.exp(bound), wanted, rel_tol=1e-12)
    assert _gap(model, net, torch.linspace(-30, 30, 121, dtype=DOUBLE).reshape(11, 1, 11)) <= bound


def test_each_maxout_unit_takes_the_gaps_of_its_own_pieces() -> None:
    """Rows 1 and 2 are unit 1, rows 3 and 4 unit 2: gaps 2c and 0 make ln(4 + 1), gaps c and c make ln(2 + 2)."""
    for unit, x in ((Maxout(1, 2, 2), torch.zeros(1, 1)), (Maxout2d(1, 2, 1, 2), torch.zeros(1, 1, 1, 1))):
        with torch.no_grad():
            unit.weight.copy_(torch.tensor([2.0, 0.0, 1.0, 1.0]).reshape(unit.weight.shape))
            unit.bias.zero_()
        model = nn.Sequential(nn.ReLU(), unit)
        net, bound = smooth(model, 1.0)
        assert math.isclose(math.exp(bound), 5, rel_tol=1e-12)
        assert math.isclose(_gap(model, net, x), bound, rel_tol=1e-6)


def test_batch_norm_by_hand() -> None:
    for norm, x in (
        (nn.BatchNorm2d(2, eps=3.0), torch.zeros(1, 2, 2, 2)),
        (nn.BatchNorm1d(2, eps=3.0), torch.zeros(1, 2)),
    ):
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([-3.0, 4.0]))
            norm.running_var.copy_(torch.tensor([1.0, 1.0]))
        first = nn.Conv2d(2, 2, 1) if x.dim() == 4 else nn.Linear(2, 2)
        with torch.no_grad():
            first.bias.zero_()
        model = nn.Sequential(first, nn.ReLU(), norm, nn.ReLU()).eval()
        net, bound = smooth(model, 1.0)
        assert math.isclose(math.exp(bound), 1 + 4, rel_tol=1e-12)  # channels [-1.5 ln 2, 0] and [0, 2 ln 2]
        assert math.isclose(_gap(model, net, x), bound, rel_tol=1e-6)


def test_padding_and_channels_of_a_convolution_by_hand() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, (1, 2), padding=(0, 1), bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]], [[[1.0, 1.0]], [[-2.0, -5.0]]]]))
    assert math.isclose(smooth(model, 1.0).bound, 7 * math.log(2), rel_tol=1e-12)


def test_flattened_channels_meet_their_own_weights() -> None:
    """A large gap in one channel must not be taken for one in another: the bound by hand, channel by channel."""

    class Scaled(nn.Module):
        def __init__(self, way: str) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1, groups=2, bias=False)
            self.linear = nn.Linear(8, 1, bias=False)
            self.way = way

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(torch.relu(x))
            h = {
                "flatten": lambda: h.flatten(1),
                "view": lambda: h.view(h.size(0), -1),
                "reshape": lambda: torch.reshape(h, (x.shape[0], 8)),
                "rows": lambda: h.view(-1, 8),
                "two steps": lambda: h.flatten(2).flatten(1),
            }[self.way]()
            return self.linear(h)

    for way in ("flatten", "view", "reshape", "rows", "two steps"):
        model = Scaled(way)
        with torch.no_grad():
            model.conv.weight.copy_(torch.tensor([1.0, 100.0]).reshape(2, 1, 1, 1))
            model.linear.weight.copy_(torch.tensor([[10.0] * 4 + [0.01] * 4]))
        net, bound = smooth(model, 1.0)
        assert math.isclose(bound, (4 * 10 + 4 * 100 * 0.01) * math.log(2), rel_tol=1e-6)
        assert _gap(model, net, torch.zeros(1, 2, 2, 2)) >= 0.99 * bound


def test_features_meet_their_own_weights_where_that_is_certain() -> None:
    """Joined along their own dimension they do. Where (N, T, d) are flattened, or joined in time, every interval is the largest."""

    class Features(nn.Module):
        def __init__(self, join: Callable[[Tensor, Tensor], Tensor], count: int) -> None:
            super().__init__()
            self.join = join
            self.last = nn.Linear(count, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(F.linear(x, torch.eye(2)))
            return self.last(self.join(h, 100 * h))

    row = torch.zeros(1, 2)
    for join, weight, x, exact in (
        (lambda h, g: torch.cat([h, g], -1), [10.0, 10.0, 0.01, 0.01], row, 2 * 10 + 2),
        (lambda h, g: torch.cat([h, g], 1), [10.0, 0.01], row[None], 100 * 10 + 1),
        (lambda h, g: (h * torch.tensor([1.0, 100.0])).flatten(1), [10.0, 0.01] * 3, row.repeat(1, 3, 1), 3 * 11),
    ):
        model = Features(join, len(weight))
        with torch.no_grad():
            model.last.weight.copy_(torch.tensor([weight]))
        net, bound = smooth(model, 1.0)
        assert math.isclose(_gap(model, net, x), exact * math.log(2), rel_tol=1e-6)
        assert bound >= exact * math.log(2) * (1 - 1e-6)
        if x is row:
            assert bound <= exact * math.log(2) * (1 + 1e-6)


def test_batch_norm_after_a_linear_layer_asks_for_a_batch_of_vectors() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(3, 1)).eval()
    net, _ = smooth(model, 1.0)
    assert net(torch.zeros(4, 2)).shape == (4, 1)
    model(torch.zeros(4, 3, 2))  # the channels are now dimension 1, and the bound is another
    with pytest.raises(
        ValueError, match=r"a tensor of 2 dimensions here, the first of them the batch, got shape \(4, 3, 3\)"
    ):
        net(torch.zeros(4, 3, 2))


def test_an_image_without_a_batch_is_refused_where_it_would_be_flattened_wrongly() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
    net, _ = smooth(model, 1.0)
    model(torch.zeros(1, 4, 4))
    with pytest.raises(
        ValueError, match=r"a tensor of 4 dimensions here, the first of them the batch, got shape \(2, 2, 2\)"
    ):
        net(torch.zeros(1, 4, 4))


def test_the_channels_of_prelu_are_the_second_dimension() -> None:
    for first, x, wrong in (
        (nn.Linear(2, 2), torch.zeros(1, 2), torch.zeros(1, 2, 2)),
        (nn.Conv2d(2, 2, 1), torch.zeros(1, 2, 2, 2), torch.zeros(2, 2, 2)),
    ):
        nn.init.zeros_(first.bias)
        act = nn.PReLU(2)
        with torch.no_grad():
            act.weight.copy_(torch.tensor([0.5, 2.0]))  # gaps [0, ln 2] and [-ln 2, 0]
        last = nn.Linear(2, 1, bias=False) if x.dim() == 2 else nn.Conv2d(2, 1, 1, bias=False)
        with torch.no_grad():
            last.weight.copy_(torch.tensor([1.0, -1.0]).reshape(last.weight.shape))
        model = nn.Sequential(first, act, last)
        net, bound = smooth(model, 1.0)
        assert math.isclose(bound, 2 * math.log(2), rel_tol=1e-12)
        assert math.isclose(_gap(model, net, x), bound, rel_tol=1e-6)
        model(wrong)  # torch takes rows for channels
        with pytest.raises(ValueError, match="the first of them the batch"):
            net(wrong)


def test_rows_that_are_no_samples_are_refused() -> None:
    model = Function(lambda x, w: torch.relu(F.conv1d(x, w[:, None, :1])).view(-1, 3) @ torch.eye(3))
    net, _ = smooth(model, 1.0)
    with pytest.raises(
        ValueError, match=r"one row for each of the 2 samples here, got 4 rows of a tensor of shape \(2, 2, 3\)"
    ):
        net(torch.ones(2, 1, 3))


# --- where a gap lies -----------------------------------------------------------------------------


class Uneven(nn.Module):
    """One channel with a gap a hundred times that of the other: in dimension 1 of images, or in the last dimension."""

    def __init__(self, after: Callable[[Tensor], Tensor], last: bool = False) -> None:
        super().__init__()
        self.after = after
        self.register_buffer("factor", torch.tensor([1.0, 100.0], dtype=DOUBLE))
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        if self.last:
            h = F.linear(torch.relu(F.linear(x, torch.eye(2, dtype=DOUBLE))), torch.diag(self.factor))
        else:
            h = F.conv2d(torch.relu(x), torch.diag(self.factor)[:, :, None, None])
        return self.after(h)


def _weights(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


@pytest.mark.theorem("thm-smooth-bound")
@pytest.mark.parametrize(
    ("model", "least"),
    [
        (Uneven(lambda h: F.linear(h, _weights(1, 0)[None])), 100),  # over the width, which is 2 too
        (Uneven(lambda h: h.mean(())), 50.5),
        (Uneven(lambda h: h.mean([])), 50.5),
        (Uneven(lambda h: F.linear(h.mean(()).expand(1, 2), _weights(1, 0)[None])), 50.5),
        (Uneven(lambda h: F.linear(h.mean([]).expand(1, 2), _weights(1, 0)[None])), 50.5),
        (Uneven(lambda h: h.mean((), keepdim=True) * _weights(1, 0)[:, None, None]), 50.5),
        (Uneven(lambda h: h.mean([], keepdim=True) * _weights(1, 0)[:, None, None]), 50.5),
        (Uneven(lambda h: h.mean(1, keepdim=True) * _weights(1, 0)[:, None, None]), 50.5),
        (Uneven(lambda h: F.conv2d(h.mean(1), _weights(1, 0).reshape(1, 2, 1, 1))), 50.5),
        (Uneven(lambda h: h * _weights(1, 0.001)), 100),
        (Uneven(lambda h: h * _weights(1, 0.001).reshape(1, 1, 1, 2)), 100),
        (Uneven(lambda h: h * _weights(1, 0.001)[:, None]), 100),
        (Uneven(lambda h: F.prelu(-h.mean(0), _weights(3, 0.5))), 300),
        (Uneven(lambda h: F.linear(F.prelu(-h[:, 1], _weights(3, 0.5)), _weights(0, 1)[None])), 300),
        (Uneven(lambda h: F.linear(F.max_pool2d(h, 3, 1, 1), _weights(1, 0)[None]), last=True), 100),
        (Uneven(lambda h: F.linear(F.max_pool1d(h[0], 3, 1, 1), _weights(1, 0)[None]), last=True), 100),
        (Uneven(lambda h: F.linear(F.avg_pool2d(h, 3, 1, 1), _weights(1, 0)[None]), last=True), 202 / 9),
        (Uneven(lambda h: F.linear(F.avg_pool1d(h[0], 3, 1, 1), _weights(1, 0)[None]), last=True), 101 / 3),
        (Uneven(lambda h: F.adaptive_avg_pool2d(h, 1) * _weights(1, 0), last=True), 50.5),
        (Uneven(lambda h: F.linear(F.pad(h, (-1, 1)), _weights(1, 0)[None]), last=True), 100),
        (Uneven(lambda h: F.linear(torch.cat([h, h], 2).flatten(1), torch.eye(16, dtype=DOUBLE)[8:9])), 100),
    ],
)
def test_gaps_that_lie_elsewhere_than_the_weights_are_not_taken_for_them(model: nn.Module, least: float) -> None:
    """With channels, height, width and samples all 2, a wrong dimension is no error, and the bound would be violated at 0."""
    net, bound = smooth(model, 1.0)
    x = torch.zeros(2, 2, 2, 2, dtype=DOUBLE)
    assert _gap(model, net, x) >= least * math.log(2) * (1 - 1e-9)
    assert _gap(model, net, x) <= bound


def test_the_bound_is_rounded_upwards() -> None:
    torch.manual_seed(0)
    weight = torch.randn(60, 7, dtype=DOUBLE)
    high = torch.rand(7, dtype=DOUBLE)
    gap = smoothing._linear(smoothing.Gap(-high.flip(0), high), weight)
    for row, low, up in zip(weight.tolist(), gap.low.tolist(), gap.high.tolist(), strict=True):
        ends = [
            (-Fraction(v) * Fraction(w), Fraction(u) * Fraction(w))
            for w, v, u in zip(row, high.flip(0).tolist(), high.tolist(), strict=True)
        ]
        assert Fraction(low) <= sum(map(min, ends))
        assert sum(map(max, ends)) <= Fraction(up)
    one = torch.linspace(0, 30, 61, dtype=DOUBLE)
    for t, rule in itertools.product(
        (0.1, 1.0, 7.0), (smoothing._relu_gap, lambda t, gap: smoothing._leaky_relu_gap(t, gap, 0.3))
    ):
        certified = rule(t, smoothing.Gap(-one, one)).high
        slope = 0 if rule is smoothing._relu_gap else Fraction(0.3)
        for e, up in zip(one.tolist(), certified.tolist(), strict=True):
            with mpmath.workdps(40):
                exact = (
                    mpmath.log(mpmath.exp(t * mpmath.mpf(e)) + mpmath.exp(t * mpmath.mpf(float(slope)) * mpmath.mpf(e)))
                    / t
                )
                assert exact <= mpmath.mpf(up)


# --- a wrong rule is seen -------------------------------------------------------------------------


def _violated(model: nn.Module, x: Tensor, t: float = 2.0) -> bool:
    net, bound = smooth(model, t)
    return _gap(model, net, x) > bound


def test_a_bound_without_the_negative_weights_is_seen_to_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        model[0].bias.zero_()
        model[2].weight.fill_(-1.0)
    x = torch.zeros(1, 1, dtype=DOUBLE)
    assert not _violated(model, x)
    right = smoothing._matrix_times

    def without(gap: Any, positive: Tensor, negative: Tensor, *rest: Any, **words: Any) -> Any:
        return right(gap, positive, torch.zeros_like(negative), *rest, **words)

    monkeypatch.setattr(smoothing, "_matrix_times", without)
    assert _violated(model, x)


def test_a_bound_that_forgets_what_came_before_is_seen_to_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _mlp(1, 1, 1, 1).double()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.fill_(2.0)
            layer.bias.zero_()
    x = torch.zeros(1, 1, dtype=DOUBLE)
    assert not _violated(model, x)
    right = smoothing._SWITCHES["relu"]
    forgets = right._replace(gap=lambda t, gap: right.gap(t, smoothing._zero()))
    monkeypatch.setitem(smoothing._SWITCHES, "relu", forgets)
    assert _violated(model, x)


# --- what the copy is -----------------------------------------------------------------------------


def test_the_answer_unpacks_and_the_model_is_left_as_it_was() -> None:
    model, x = _build("old style", 0)
    before = copy.deepcopy(model.state_dict())
    text, y = repr(model), model(x.clone())
    result = smooth(model, 3.0)
    net, bound = result
    assert isinstance(result, Smoothed)
    assert isinstance(bound, float)
    assert repr(model) == text
    assert torch.equal(model(x.clone()), y)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        next(iter(net.parameters())).add_(1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_the_copy_keeps_the_names_of_parameters_and_is_copied_and_pickled(name: str) -> None:
    model, x = _build(name, 0)
    net, _ = smooth(model, 3.0)
    assert {key: value.shape for key, value in net.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    y = net(x.clone())
    assert torch.equal(copy.deepcopy(net)(x.clone()), y)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x.clone()), y)


@pytest.mark.parametrize("name", MODELS)
def test_the_copy_is_smooth_and_its_gradients_reach_input_and_parameters(name: str) -> None:
    model, x = _build(name, 1)
    net, _ = smooth(model, 1.0)
    assert torch.autograd.gradcheck(net, x[3:4].clone().requires_grad_())
    net(x[3:5].clone()).sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert bool(torch.isfinite(parameter.grad).all())


@pytest.mark.parametrize("name", MODELS)
def test_in_float32_the_copy_is_the_same_network(name: str) -> None:
    model, x = _build(name, 2)
    x = x[3:].clamp(-3, 3)
    wide = smooth(model, 7.0)
    narrow = smooth(copy.deepcopy(model).float(), 7.0)
    assert math.isclose(wide.bound, narrow.bound, rel_tol=1e-5)
    y = narrow.model(x.float())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), wide.model(x.clone()), rtol=1e-4, atol=1e-4)


def test_each_switch_becomes_its_smooth_one() -> None:
    x = torch.linspace(-4, 4, 41, dtype=DOUBLE)
    zero, t = torch.zeros_like(x), 1.5

    def lse(*pieces: Tensor) -> Tensor:
        return torch.logsumexp(t * torch.stack(pieces), 0) / t

    for module, wanted in (
        (nn.ReLU(), lse(zero, x)),
        (nn.LeakyReLU(0.25), lse(x, x / 4)),
        (nn.LeakyReLU(3.0), -lse(-x, -3 * x)),
        (pnn.Absolute(), lse(x, -x)),
        (nn.PReLU(init=-2.0).double(), lse(x, -2 * x)),
        (nn.Hardtanh(-1, 2), -1 + lse(zero, x + 1) - lse(zero, x - 2)),
        (nn.ReLU6(), lse(zero, x) - lse(zero, x - 6)),
    ):
        torch.testing.assert_close(smooth(module, t).model(x), wanted, rtol=1e-12, atol=1e-12)
    assert isinstance(smooth(nn.MaxPool2d(2), t).model, LSEPool2d)
    image = torch.randn(2, 3, 9, dtype=DOUBLE)
    for words in ((2,), (3, 2, 1), (2, 1, 0, 3), ((3,), (2,), (1,), (2,), False, True)):
        module = nn.MaxPool1d(*words[:4], ceil_mode=words[-1] is True)
        torch.testing.assert_close(smooth(module, 1e6).model(image), module(image), rtol=0, atol=2e-6)


def test_it_is_stable_at_every_scale() -> None:
    for dtype in (torch.float32, torch.float64):
        top = torch.finfo(dtype).max
        x = torch.tensor([-top, -1.0, 0.0, 1.0, top], dtype=dtype)
        for t in (1e-6, 1.0, 1e6, 1e300):
            for module in (nn.ReLU(), nn.LeakyReLU(), nn.Hardtanh(), pnn.Absolute()):
                net, bound = smooth(module, t)
                assert bool(torch.isfinite(net(x)).all())
                assert bool(((net(x) - module(x)).abs().double() <= bound * (1 + 1e-6) + 1e-6).all())


def test_infinite_inputs_give_what_the_switch_gives_and_finite_gradients() -> None:
    for module in (nn.ReLU(), nn.LeakyReLU(0.1), pnn.Absolute(), nn.PReLU(init=2.0), nn.Hardtanh(), nn.ReLU6()):
        x = torch.tensor([-math.inf, math.inf], requires_grad=True)
        y = smooth(module, 2.0).model(x)
        assert torch.equal(y, module(x))
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert bool(torch.isfinite(gradient).all())


def test_whatever_is_a_difference_of_maxouts_can_be_smoothed() -> None:
    model = difference_of_maxouts(
        torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=DOUBLE), torch.tensor([0.0, 1.0, -1.0, 0.5], dtype=DOUBLE)
    )

    net, bound = smooth(model, 8.0)
    x = torch.linspace(-4, 4, 801, dtype=DOUBLE)[:, None]
    assert 0 < _gap(model, net, x) <= bound


# --- what is refused ------------------------------------------------------------------------------


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def _reads_what_was_overwritten(x: Tensor, w: Tensor) -> Tensor:
    h = x @ w
    return F.relu(h, inplace=True) + h


def _adds_in_place_to_what_has_two_names(x: Tensor, w: Tensor) -> Tensor:
    h = x @ w
    other = h
    h += torch.relu(x)
    return h + other


def _overwrites_a_view(x: Tensor, w: Tensor) -> Tensor:
    h = x @ w
    h.view(-1, 2).relu_()
    return h


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, w: torch.sigmoid(x), r"the model \(Function\) applies sigmoid"),
        (lambda x, w: torch.relu(x) * torch.relu(x), "applies mul of two tensors that depend on the input"),
        (lambda x, w: 1 / x, "applies truediv by a tensor that depends on the input"),
        (lambda x, w: x / 0, "applies truediv by 0"),
        (lambda x, w: torch.relu(x) * x.size(1), "applies mul with a factor or parameter that depends on the input"),
        (lambda x, w: x @ x.t(), "applies matmul other than by a constant matrix"),
        (lambda x, w: F.linear(torch.ones(2), x), "applies linear to something that does not depend on the input"),
        (lambda x, w: x.sum(1), "applies sum"),
        (lambda x, w: torch.add(x, x, alpha=2), "applies add with arguments that are not known here"),
        (lambda x, w: x.max(1)[0], "applies max over a dimension"),
        (lambda x, w: x.clamp(w, None), "applies clamp with a bound that is not a number"),
        (lambda x, w: x.clamp(2, 1), "applies clamp with a lower bound above the upper one"),
        (lambda x, w: x.to(torch.int32), "applies to by arguments that are not a floating point dtype"),
        (lambda x, w: x.view(torch.int32), "applies view into another dtype"),
        (lambda x, w: F.dropout(x), "applies dropout in training mode"),
        (lambda x, w: x + F.dropout(w), "its code draws random numbers"),
        (lambda x, w: x + torch.rand_like(x), "applies rand_like"),
        (lambda x, w: x + torch.rand(2), "its code draws random numbers"),
        (lambda x, w: x + torch.rand((x.size(0), 2)), "applies rand to shapes"),
        (lambda x, w: F.max_pool2d(x, 2, return_indices=True)[0], "applies max_pool2d_with_indices|applies boolean"),
        (_reads_what_was_overwritten, "applies relu in place to a tensor that is used elsewhere too"),
        (_adds_in_place_to_what_has_two_names, "applies iadd in place to a tensor that is used elsewhere too"),
        (_overwrites_a_view, "applies relu_ in place to a tensor that is used elsewhere too"),
        (lambda x, w: x + w.mul_(2), "applies mul_ in place to what does not depend on the input"),
        (lambda x, w: x if x.sum() > 0 else -x, r"torch.fx can trace, but the model \(Function\) stops it"),
        (
            lambda x, w: F.max_pool2d(x, x.shape[2:]),
            r"\(Function\) applies max_pool2d with a window whose size is not known",
        ),
        (
            lambda x, w: F.max_pool2d(x, x.size(2)),
            r"\(Function\) applies max_pool2d with a window whose size is not known",
        ),
        (
            lambda x, w: F.avg_pool2d(x, 2, divisor_override=x.size(2)),
            "applies avg_pool2d with arguments that are not known",
        ),
        (lambda x, w: w[x], r"\(Function\) applies getitem to something that does not depend on the input"),
        (lambda x, w: w.index_select(0, x), r"\(Function\) applies index_select to something that does not depend"),
        (lambda x, w: x[x], "applies getitem with an argument, beside the first, that depends on the input"),
        (lambda x, w: F.prelu(x, x), "applies prelu with an argument, beside the first, that depends on the input"),
        (lambda x, w: x * torch.tensor(1 + 2j), "applies mul with complex numbers"),
        (lambda x, w: F.adaptive_max_pool2d(x, 1), "grows with the size of its input; use MaxPool2d"),
        (
            lambda x, w: x.amax((2, 3)),
            r"\(Function\) applies amax, whose gap grows with the size of its input; use MaxPool2d",
        ),
        (lambda x, w: 2 * x if isinstance(x, Tensor) else x, "asks for the type of a tensor or of a size"),
        (lambda x, w: 2 * x if torch.is_tensor(x) else x, "asks for the type of a tensor or of a size"),
        (lambda x, w: 2 * x if isinstance(x.size(0), int) else x, "asks for the type of a tensor or of a size"),
        (lambda x, w: 2 * x if isinstance(x.shape, tuple) else x, "asks for the type of a tensor or of a size"),
        (lambda x, w: 2 * x if x.__class__ is Tensor else x, "asks for the type of a tensor or of a size"),
    ],
)
def test_what_is_not_known_is_refused_by_name(function: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        smooth(Function(function), 1.0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.GELU())), r"module '1\.0' \(GELU\) applies GELU"),
        (nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)), r"module '1' \(Softmax\)"),
        (
            nn.Sequential(nn.BatchNorm1d(2)),
            r"module '0' \(BatchNorm1d\) trains; call model\.eval\(\) first",
        ),
        (nn.Sequential(nn.Dropout()), r"module '0' \(Dropout\) trains; call model\.eval\(\) first"),
        (nn.Sequential(nn.MaxPool2d(2, return_indices=True)), r"module '0' \(MaxPool2d\) .* winners"),
        (nn.Sequential(nn.AdaptiveMaxPool2d(1)), r"module '0' \(AdaptiveMaxPool2d\) .* use MaxPool2d with the size"),
        (nn.GELU(), r"the model \(GELU\) applies gelu"),
        (torch.relu, "model must be a torch module, got builtin_function_or_method"),
    ],
)
def test_modules_that_are_not_known_are_refused_by_path(model: nn.Module, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        smooth(model, 1.0)


def test_hooks_are_refused_since_they_may_change_what_a_module_computes() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    handle = model[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(TypeError, match=r"module '1' \(ReLU\) has forward hooks"):
        smooth(model, 1.0)
    handle.remove()
    assert smooth(model, 1.0).bound > 0


def test_hooks_of_all_modules_are_refused() -> None:
    hooks = torch.nn.modules.module
    for register in (hooks.register_module_forward_hook, hooks.register_module_forward_pre_hook):
        handle = register(lambda *_: None)
        try:
            with pytest.raises(TypeError, match="forward hooks for all modules"):
                smooth(nn.ReLU(), 1.0)
        finally:
            handle.remove()
    assert smooth(nn.ReLU(), 1.0).bound > 0


def test_a_call_of_its_own_is_refused() -> None:
    class Doubles(nn.Linear):
        def __call__(self, *inputs: Any) -> Any:
            return 2 * super().__call__(*inputs)

    with pytest.raises(
        TypeError, match=r"module '0' \(Doubles\) has forward hooks, or a forward or __call__ of its own"
    ):
        smooth(nn.Sequential(Doubles(1, 1)), 1.0)


def test_code_takes_the_way_that_it_takes_with_one_input_and_gradients() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor, flag: Any = None, *rest: Any, scale: float = 3.0) -> Tensor:
            y = 5 * torch.relu(x) if flag is None else x
            y = y * scale if torch.is_grad_enabled() else y
            return y if hasattr(x, "no_such_name") or not hasattr(x, "relu") or rest else 2 * y

    model = Branches()
    net, bound = smooth(model, 1.0)
    assert math.isclose(bound, 30 * math.log(2), rel_tol=1e-12)
    x = torch.zeros(3, dtype=DOUBLE)
    assert torch.allclose(net(x) - model(x), torch.full_like(x, bound))
    with pytest.raises(TypeError):
        net(x, True)
    with pytest.raises(TypeError, match="no argument that must be given"):
        smooth(type("Nothing", (nn.Module,), {"forward": lambda self: None})(), 1.0)


def test_code_that_keeps_a_state_is_refused() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("c", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.c = self.c + 1
            return x * self.c

    with pytest.raises(TypeError, match=r"module '1' \(Counts\) assigns to its buffer c when it runs"):
        smooth(nn.Sequential(nn.ReLU(), Counts()), 1.0)


def test_the_copy_and_its_bound_are_those_of_evaluation_mode() -> None:
    class Mode(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 7 * x if self.training else torch.relu(F.dropout(x, training=self.training))

    model = nn.Sequential(Mode())
    net, bound = smooth(model, 1.0)
    assert model.training
    assert not any(module.training for module in net.modules())
    assert math.isclose(bound, math.log(2), rel_tol=1e-12)
    assert not smooth(nn.ReLU(), 1.0).model.training
    x = torch.zeros(2, 3, dtype=DOUBLE)
    assert _gap(model.eval(), net, x) <= bound


def test_a_module_in_several_places_keeps_its_first_name() -> None:
    linear, relu = nn.Linear(2, 2), nn.ReLU()
    model = nn.Sequential(linear, relu, linear, relu)
    net, bound = smooth(model, 1.0)
    assert list(net.state_dict()) == ["0.weight", "0.bias"]
    x = torch.randn(5, 2)
    assert _gap(model, net, x) <= bound


@pytest.mark.parametrize("temperature", [True, False])
def test_a_temperature_that_is_a_bool_is_refused(temperature: bool) -> None:
    with pytest.raises(TypeError, match="temperature must be a number, got bool"):
        smooth(nn.ReLU(), temperature)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan, 10**400])
def test_the_temperature_must_be_finite_and_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be"):
        smooth(nn.ReLU(), temperature)


def test_the_temperature_must_be_a_number() -> None:
    with pytest.raises(TypeError, match="temperature must be a number"):
        smooth(nn.ReLU(), torch.tensor(1.0))  # type: ignore[arg-type]


def _with(module: nn.Module, name: str, value: float) -> nn.Module:
    with torch.no_grad():
        getattr(module, name).fill_(value)
    return module.eval()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "build",
    [
        lambda value: _with(nn.Linear(1, 1), "weight", value),
        lambda value: _with(nn.Linear(1, 1), "bias", value),
        lambda value: _with(nn.Conv2d(1, 1, 1), "bias", value),
        lambda value: _with(Maxout(1, 1, 2), "bias", value),
        lambda value: _with(nn.BatchNorm1d(1), "bias", value),
        lambda value: _with(nn.BatchNorm1d(1), "running_mean", value),
        lambda value: Function(lambda x, w: x + value),
        lambda value: Function(lambda x, w: value - x),
        lambda value: Function(lambda x, w: x + torch.full((2,), value)),
        lambda value: Function(lambda x, w: torch.cat([x, torch.full((2,), value)])),
        lambda value: Function(lambda x, w: torch.maximum(x, torch.full((2,), value))),
        lambda value: Function(lambda x, w: F.pad(x, (1, 1), value=value)),
    ],
)
def test_parameters_and_constants_must_be_finite(build: Callable[[float], nn.Module], value: float) -> None:
    with pytest.raises(ValueError, match="parameters of the model must be finite"):
        smooth(nn.Sequential(nn.ReLU(), build(value)), 1.0)


def test_a_bound_that_overflows_is_infinite() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    for layer in model[1::2]:
        nn.init.constant_(layer.weight, 1e200)
    with torch.no_grad():
        model[5].weight[0, 0] = 0
    assert smooth(model, 1.0).bound == math.inf
    assert smooth(nn.ReLU(), 5e-324).bound == math.inf
    assert smooth(nn.Sequential(*model, nn.Hardtanh()), 1.0).bound <= 2 + 1e-9
