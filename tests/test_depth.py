"""The chapter on depth: its theorems on generated inputs and at the edges, and its claims on small networks and the digits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, leaky_relu

from pwl_lib import nn as book
from pwl_lib.piecewise_linear import activation_pattern
from pwl_lib.regions import segments

slopes = st.sampled_from([0.0, 0.01, 0.3, 1.0, -1.0, -0.5])
seeds = st.integers(0, 2**31)
few = settings(max_examples=15)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=random(seed))


def activate(z: Tensor, slope: float) -> Tensor:
    return torch.where(z > 0, z, slope * z)


def slope_at(z: Tensor, slope: float) -> Tensor:
    return torch.where(z > 0, 1.0, slope).to(z.dtype)


def signs(rows: int, columns: int) -> Tensor:
    """All matrices of the shape with entries 1 and -1: (2 ** (rows * columns), rows, columns)."""
    every = torch.tensor(list(itertools.product((1.0, -1.0), repeat=rows * columns)), dtype=torch.float64)
    return every.reshape(-1, rows, columns)


# --- half of a Gaussian ---------------------------------------------------------------------------


@pytest.mark.theorem("lem-half-gaussian")
def test_half_of_a_gaussian_in_symbols() -> None:
    t, alpha = sp.symbols("t alpha", real=True)
    s = sp.Symbol("s", positive=True)
    density = sp.exp(-(t**2) / (2 * s**2)) / (s * sp.sqrt(2 * sp.pi))
    moment = [sp.integrate(t**k * density, (t, 0, sp.oo)) for k in (1, 2, 4)]
    for found, wanted in zip(moment, (s / sp.sqrt(2 * sp.pi), s**2 / 2, 3 * s**4 / 2), strict=True):
        assert sp.simplify(found - wanted) == 0
    below = sp.integrate((alpha * t) ** 2 * density, (t, -sp.oo, 0))
    assert sp.simplify(moment[1] + below - (1 + alpha**2) * s**2 / 2) == 0


@pytest.mark.theorem("lem-half-gaussian")
@given(slopes, st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=6))
@few
def test_half_of_any_symmetric_variable(slope: float, pairs: list[tuple[float, float]]) -> None:
    z, y = torch.tensor([*pairs, *[(-z, -y) for z, y in pairs]], dtype=torch.float64).T  # all equally likely
    half = (1 + slope**2) / 2
    assert torch.allclose(activate(z, slope).square().mean(), half * z.square().mean())
    z, y = z[z != 0], y[z != 0]
    if len(z):
        assert torch.allclose((slope_at(z, slope) * y).square().mean(), half * y.square().mean())


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.theorem("thm-he")
@given(slopes, st.floats(0.2, 3), st.lists(st.floats(-3, 3), min_size=3, max_size=3))
@few
def test_the_mean_square_over_all_signs_of_two_layers_is_exact(slope: float, gain: float, x: list[float]) -> None:
    h = torch.tensor(x, dtype=torch.float64)
    first = activate(gain / 3**0.5 * signs(2, 3) @ h, slope)  # (64, 2)
    second = activate(gain / 2**0.5 * torch.einsum("sij,tj->sti", signs(2, 2), first), slope)
    factor = gain**2 * (1 + slope**2) / 2
    assert torch.allclose(first.square().mean(), factor * h.square().mean())
    assert torch.allclose(second.square().mean(), factor**2 * h.square().mean())


@pytest.mark.theorem("thm-he")
@pytest.mark.parametrize("draw", ["normal", "uniform"])
@pytest.mark.parametrize("gain", [1.0, 2**0.5, 2.0])
def test_signals_vanish_hold_or_explode_with_the_gain_at_any_widths(gain: float, draw: str) -> None:
    widths, networks = (7, 40, 15, 30, 25), 4000
    h = normal(widths[0]).expand(networks, -1)[..., None]
    start = h[0].square().mean()
    generator = random(1)
    for n, m in itertools.pairwise(widths):
        if draw == "normal":
            W = torch.randn(networks, m, n, dtype=torch.float64, generator=generator)
        else:
            W = 3**0.5 * (2 * torch.rand(networks, m, n, dtype=torch.float64, generator=generator) - 1)
        h = (gain / n**0.5 * W @ h).relu()
    assert math.isclose(h.square().mean() / start, (gain**2 / 2) ** 4, rel_tol=0.08)


def test_a_constant_bias_or_weights_that_are_not_symmetric_keep_no_mean_square() -> None:
    h, generator = normal(50), random(0)
    W = (2 / 50) ** 0.5 * torch.randn(4000, 50, dtype=torch.float64, generator=generator)
    half = h.square().mean()
    assert math.isclose((W @ h).relu().square().mean(), half, rel_tol=0.1)
    assert (W @ h + 1).relu().square().mean() > 1.5 * half
    rising = (W + 0.3) @ h.abs()  # a mean that is not 0
    assert rising.relu().square().mean() > 5 * half


@pytest.mark.theorem("prop-leaky-gain")
@given(st.floats(-3, 3), st.floats(0.1, 3))
@few
def test_the_gain_of_two_slopes_keeps_the_mean_square(below: float, above: float) -> None:
    gain = math.sqrt(2 / (below**2 + above**2))
    z = gain / 3**0.5 * signs(1, 3) @ torch.tensor([1.0, -0.3, 2.0], dtype=torch.float64)
    y = torch.where(z > 0, above * z, below * z)
    assert math.isclose(y.square().mean(), (1 + 0.09 + 4) / 3, rel_tol=1e-12)


@pytest.mark.theorem("prop-leaky-gain")
def test_the_leaky_gain_falls_from_root_two_to_one_and_is_torchs() -> None:
    alpha = sp.Symbol("alpha", real=True)
    gain = sp.sqrt(2 / (1 + alpha**2))
    assert [gain.subs(alpha, value) for value in (0, 1, -1)] == [sp.sqrt(2), 1, 1]
    values = [float(gain.subs(alpha, k / 10)) for k in range(11)]
    assert values == sorted(values, reverse=True)
    for slope in (0, 0.01, 0.5, 1):
        assert math.isclose(float(gain.subs(alpha, slope)), nn.init.calculate_gain("leaky_relu", slope))


@pytest.mark.theorem("prop-he-spread")
def test_factors_of_layers_are_independent_and_their_second_moment_has_five_over_n() -> None:
    n, networks, gain = 10, 60_000, 1.3
    generator = random(2)
    h, factors = normal(n).expand(networks, -1)[..., None], []
    for _ in range(2):
        W = gain / n**0.5 * torch.randn(networks, n, n, dtype=torch.float64, generator=generator)
        z = W @ h
        factors.append(z.relu().square().sum((1, 2)) / h.square().sum((1, 2)))
        h = z.relu()
    for factor in factors:
        factor = factor[factor.isfinite()]
        assert math.isclose(factor.mean(), gain**2 / 2, rel_tol=0.02)
        assert math.isclose(factor.square().mean() / factor.mean() ** 2, 1 + 5 / n, rel_tol=0.03)
    alive = factors[1].isfinite()
    assert abs(torch.corrcoef(torch.stack(factors)[:, alive])[0, 1]) < 0.02
    q = factors[0][alive] * factors[1][alive]
    assert math.isclose(q.square().mean() / q.mean() ** 2, (1 + 5 / n) ** 2, rel_tol=0.1)


def test_most_networks_are_below_the_mean_that_the_gain_keeps() -> None:
    forward, _ = fifty(torch.relu, 2**0.5, networks=40)
    assert (forward[50] < forward[0]).double().mean() > 0.7


# --- gradients ------------------------------------------------------------------------------------


def fifty(
    activation: Callable[[Tensor], Tensor], gain: float, networks: int = 20, n: int = 64
) -> tuple[Tensor, Tensor]:
    """Mean squares of signals and squared norms of gradients in fifty layers, for one digit."""
    generator = random(0)
    x = torch.tensor(load_digits().data[0] / 16).requires_grad_()
    h = [x.expand(networks, n)[..., None]]
    for _ in range(50):
        W = torch.randn(networks, n, n, dtype=torch.float64, generator=generator)
        h.append(activation(gain / n**0.5 * W @ h[-1]))
    c = torch.randn(networks, n, 1, dtype=torch.float64, generator=generator) / n**0.5
    gradients = torch.autograd.grad((c * h[-1]).sum(), h)
    forward = torch.stack([each.detach().square().mean((1, 2)) for each in h])
    return forward, torch.stack([each.square().sum((1, 2)) for each in gradients])


def factor_of_a_layer(activation: Callable[[Tensor], Tensor], gain: float, **more: int) -> float:
    """By what a layer multiplies the norm of a gradient, in the geometric mean of the middle forty."""
    _, backward = fifty(activation, gain, **more)
    return float((backward[5] / backward[45]).log().mean().div(80).exp())


@pytest.mark.theorem("prop-backward-variance")
@given(slopes, seeds)
@few
def test_signs_of_rows_prove_the_half_although_masks_and_weights_depend_on_each_other(slope: float, seed: int) -> None:
    W, h, u = normal(5, 4, seed=seed), normal(4, seed=seed + 1), normal(4, seed=seed + 2)
    flips = torch.tensor(list(itertools.product((1.0, -1.0), repeat=5)), dtype=torch.float64)
    z, y = flips * (W @ h), flips * (W @ u)
    found = (slope_at(z, slope) * y).square().sum(1).mean()
    assert torch.allclose(found, (1 + slope**2) / 2 * (W @ u).square().sum())
    same = (slope_at(flips * (W @ h), slope) * flips * (W @ h)).square().sum(1).mean()  # u = h, as dependent as can be
    assert torch.allclose(same, (1 + slope**2) / 2 * (W @ h).square().sum())


@pytest.mark.theorem("prop-backward-variance")
@pytest.mark.parametrize(("gain", "slope"), [(1.0, 0.0), (2**0.5, 0.0), (1.7, 0.3)])
def test_the_gradient_of_a_random_score_has_the_factor_of_the_signal_at_any_widths(gain: float, slope: float) -> None:
    widths, networks, generator = (6, 30, 12, 25), 4000, random(3)
    h, W = [normal(6).requires_grad_().expand(networks, -1)[..., None]], []
    for n, m in itertools.pairwise(widths):
        W.append(gain / n**0.5 * torch.randn(networks, m, n, dtype=torch.float64, generator=generator))
        h.append(leaky_relu(W[-1].requires_grad_() @ h[-1], slope))
    c = torch.randn(networks, 25, 1, dtype=torch.float64, generator=generator) / 5
    by_h, by_W = (torch.autograd.grad((c * h[-1]).sum(), each, retain_graph=True) for each in (h, W))
    factor = gain**2 * (1 + slope**2) / 2
    for k, gradient in enumerate(by_h):
        assert math.isclose(gradient.square().sum((1, 2)).mean(), factor ** (3 - k), rel_tol=0.08)
    for n, gradient in zip(widths, by_W, strict=False):  # the same power in every layer
        wanted = n * h[0][0].detach().square().mean() * factor**3 / gain**2
        assert math.isclose(gradient.square().sum((1, 2)).mean(), wanted, rel_tol=0.12)


@pytest.mark.parametrize("gain", [1.0, 2**0.5, 2.0])
def test_fifty_layers_of_relus_vanish_hold_or_explode_with_the_gain(gain: float) -> None:
    forward, backward = fifty(torch.relu, gain)
    wanted = gain / 2**0.5
    assert math.isclose((forward[50] / forward[0]).log().mean().div(100).exp(), wanted, rel_tol=0.04)
    assert math.isclose((backward[0] / backward[50]).log().mean().div(100).exp(), wanted, rel_tol=0.04)
    if gain == 1.0:
        assert backward[0].max() < 1e-10
    if gain == 2.0:
        assert backward[0].min() > 1e8


@given(seeds)
@few
def test_without_biases_weights_and_gradients_have_one_product_in_all_layers(seed: int) -> None:
    net = nn.Sequential(
        *(layer for n, m in ((5, 7), (7, 6), (6, 3)) for layer in (nn.Linear(n, m, bias=False), nn.ReLU()))
    )
    net = net[:-1].double()
    with torch.no_grad():
        for k, w in enumerate(net.parameters()):
            w.copy_(normal(*w.shape, seed=seed + k))
    y = net(normal(8, 5, seed=seed + 9))
    z = cross_entropy(y, torch.arange(8) % 3)
    g, *rest = torch.autograd.grad(z, [y, *net.parameters()])
    for w, by_w in zip(net.parameters(), rest, strict=True):
        assert torch.allclose((w * by_w).sum(), (y * g).sum(), rtol=1e-10, atol=1e-10)


# --- other activations ----------------------------------------------------------------------------


@pytest.mark.theorem("prop-sigmoid-vanishes")
@given(seeds, st.floats(0.1, 20))
@few
def test_every_path_through_sigmoids_has_a_quarter_for_each_layer(seed: int, scale: float) -> None:
    W = [scale * normal(3, 3, seed=seed + k) for k in range(3)]
    z = [normal(3, seed=seed + 5)]
    for w in W:
        z.append(w @ z[-1].sigmoid())
    for path in itertools.product(range(3), repeat=4):
        weight, bound = 1.0, 1.0
        for w, before, i, j in zip(W, z, path, path[1:], strict=False):
            slope = before[i].sigmoid() * (1 - before[i].sigmoid())
            weight, bound = weight * float(slope * w[j, i]), bound * float(w[j, i].abs()) / 4
        assert abs(weight) <= bound * (1 + 1e-12)


@pytest.mark.theorem("prop-sigmoid-vanishes")
@pytest.mark.parametrize(("activation", "kappa"), [(torch.sigmoid, 0.25), (torch.tanh, 1.0)])
@given(st.floats(0.1, 8), st.lists(st.floats(-4, 4), min_size=8, max_size=8))
@few
def test_slopes_below_a_bound_shrink_the_mean_square_over_all_signs(
    activation: Callable[[Tensor], Tensor], kappa: float, gain: float, numbers: list[float]
) -> None:
    h, u, bias = torch.tensor(numbers, dtype=torch.float64).split((3, 3, 2))
    W = gain / 3**0.5 * signs(2, 3)
    z = (W @ h + bias).requires_grad_()
    (slope,) = torch.autograd.grad(activation(z).sum(), z)
    found = (slope * (W @ u)).square().mean()
    assert found <= (kappa * gain) ** 2 * u.square().mean() + 1e-12
    at_zero = (kappa * (W @ u)).square().mean()  # attained where all pre-activations are 0
    assert torch.allclose(at_zero, (kappa * gain) ** 2 * u.square().mean())


@pytest.mark.parametrize("gain", [1.0, 2.0, 3.9])
def test_gradients_vanish_through_fifty_layers_of_sigmoids_at_every_gain_below_four(gain: float) -> None:
    assert factor_of_a_layer(torch.sigmoid, gain, networks=4) < gain / 4


def test_each_activation_holds_gradients_at_a_gain_of_its_own() -> None:
    def measured(activation: Callable[[Tensor], Tensor], gain: float) -> float:
        return factor_of_a_layer(activation, gain, networks=6, n=64)

    assert abs(measured(torch.relu, 2**0.5) - 1) < 0.05
    assert abs(measured(lambda z: leaky_relu(z, 0.2), (2 / 1.04) ** 0.5) - 1) < 0.05
    assert measured(torch.tanh, 0.9) < 0.95 < 1.05 < measured(torch.tanh, 2.0) < 2
    assert measured(torch.sigmoid, 8.0) < 0.95 < 1 < measured(torch.sigmoid, 16.0)


@pytest.mark.theorem("prop-angle")
def test_the_angle_behind_a_layer_in_symbols_and_by_sampling() -> None:
    theta, omega = sp.symbols("theta omega", positive=True)
    inner = sp.integrate(sp.cos(omega) * sp.cos(omega - theta), (omega, theta - sp.pi / 2, sp.pi / 2)) / (2 * sp.pi)
    wanted = sp.cos(theta) + (sp.sin(theta) - theta * sp.cos(theta)) / sp.pi
    assert sp.simplify(4 * inner - wanted) == 0  # each mean square is one half
    W = normal(200_000, 2, seed=4)
    for angle in (0.0, 0.3, 1.5, 3.0, math.pi):
        p, q = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
        found = 2 * ((W @ p).relu() * (W @ q).relu()).mean()
        assert math.isclose(found, float(wanted.subs(theta, angle)), abs_tol=0.02)


@pytest.mark.theorem("prop-angle")
def test_angles_close_and_only_zero_stays() -> None:
    angle = np.linspace(1e-3, np.pi, 2000)
    cosine = np.cos(angle) + (np.sin(angle) - angle * np.cos(angle)) / np.pi
    assert (cosine > np.cos(angle)).all()
    small = angle[angle < 0.05]
    after = np.arccos(cosine[: len(small)])
    assert np.abs(after - (small - small**2 / (3 * np.pi))).max() < 0.05**2 * 0.05
    assert math.isclose(math.cos(0) + (math.sin(0) - 0) / math.pi, 1)


# --- linear units ---------------------------------------------------------------------------------


def unit_loss(activation: Callable[[Tensor], Tensor], X: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return (activation(X @ w) - y).square().mean() / 2


def derivatives(
    activation: Callable[[Tensor], Tensor], X: Tensor, y: Tensor, w: Tensor
) -> tuple[float, Tensor, Tensor]:
    w = w.clone().requires_grad_()
    z = unit_loss(activation, X, y, w)
    (g,) = torch.autograd.grad(z, w, create_graph=True)
    H = torch.stack([torch.autograd.grad(each, w, retain_graph=True)[0] for each in g])
    return z.item(), g.detach(), H


def least_squares(X: Tensor, y: Tensor) -> float:
    w = torch.linalg.lstsq(X, y[:, None], driver="gelsd").solution[:, 0]
    return unit_loss(lambda z: z, X, y, w).item()


def smallest_positive(H: Tensor) -> float:
    values = torch.linalg.eigvalsh(H)
    return values[values > 1e-9 * values[-1]].min().item()


@pytest.mark.theorem("prop-linear-unit")
@given(seeds, st.integers(1, 5))
@few
def test_a_linear_unit_has_one_slope_one_curvature_and_no_plateau(seed: int, rank: int) -> None:
    X, y = normal(20, rank, seed=seed) @ normal(rank, 5, seed=seed + 1), normal(20, seed=seed + 2)
    wanted = X.T @ X / 20
    largest = torch.linalg.eigvalsh(wanted)[-1]
    for k in range(4):
        w = 10.0**k * normal(5, seed=seed + 3 + k)
        (slope,) = torch.autograd.grad(X[0] @ w.requires_grad_(), w)
        assert torch.equal(slope, X[0])
        z, g, H = derivatives(lambda z: z, X, y, w.detach())
        assert torch.allclose(H, wanted)
        gap = z - least_squares(X, y)
        assert g.square().sum() >= 2 * smallest_positive(wanted) * gap * (1 - 1e-6) - 1e-12
        assert unit_loss(lambda z: z, X, y, w.detach() - g / largest) <= z * (1 + 1e-12)


@pytest.mark.theorem("prop-linear-unit")
@given(seeds)
@few
def test_a_relu_unit_has_it_on_each_piece_and_never_more_curvature(seed: int) -> None:
    X, y = normal(20, 4, seed=seed), normal(20, seed=seed + 1)
    for k in range(4):
        w = normal(4, seed=seed + 2 + k)
        z, g, H = derivatives(torch.relu, X, y, w)
        on = X @ w > 0
        assert torch.allclose(H, X[on].T @ X[on] / 20, atol=1e-12)
        assert torch.linalg.eigvalsh(X.T @ X / 20 - H)[0] > -1e-12
        assert torch.linalg.eigvalsh(H)[0] > -1e-12
        lowest = least_squares(X[on], y[on]) * on.sum().item() / 20 + y[~on].square().sum().item() / 40
        assert g.square().sum() >= 2 * smallest_positive(H) * (z - lowest) * (1 - 1e-6) - 1e-12
    dead = -X.mean(0).abs()
    _, g, _ = derivatives(torch.relu, X.abs(), y, dead)
    assert not g.any()


@pytest.mark.theorem("prop-linear-unit")
def test_a_saturated_sigmoid_has_a_large_loss_and_no_gradient() -> None:
    X, y = normal(30, 3).abs() + 0.5, torch.ones(30, dtype=torch.float64)
    for scale in (1.0, 5.0, 20.0, 60.0):
        w = -scale * torch.ones(3, dtype=torch.float64)
        z, g, _ = derivatives(torch.sigmoid, X, y, w)
        m = (X @ w).abs().min()
        assert g.norm() <= torch.exp(-m) * X.norm(dim=1).max()
        assert z > 0.4
    assert g.norm() < 1e-30


@pytest.mark.theorem("prop-convex-pieces")
@pytest.mark.parametrize("slope", [0.0, 0.2])
@given(seeds, st.sampled_from([0, 1, 2]))
@few
def test_a_loss_is_convex_in_one_layer_where_the_pattern_stays(slope: float, seed: int, layer: int) -> None:
    weights = [normal(6, 4, seed=seed), normal(5, 6, seed=seed + 1), normal(3, 5, seed=seed + 2)]
    biases = [normal(len(w), seed=seed + 3 + k) for k, w in enumerate(weights)]
    X, direction = normal(4, 4, seed=seed + 7), normal(*weights[layer].shape, seed=seed + 8)

    def outputs(t: float) -> tuple[Tensor, list[bool]]:
        h, pattern = X, []
        for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
            z = h @ (w + t * direction if k == layer else w).T + b
            if k < 2:
                pattern += (z > 0).flatten().tolist()
            h = activate(z, slope) if k < 2 else z
        return h, pattern

    here = outputs(0.0)[1]
    times = [t for t in np.linspace(-3, 3, 301) if outputs(t)[1] == here]
    steps = np.diff(times)
    assert len(times) == 1 or steps.max() < 1.5 * 6 / 300  # one interval, without gaps
    low, high = times[0], times[-1]
    (a, _), (b, _), (middle, _) = outputs(low), outputs(high), outputs((low + high) / 2)
    assert torch.allclose(middle, (a + b) / 2, atol=1e-9)
    for loss in (lambda y: y.square().sum(), lambda y: y.logsumexp(1).sum() - y[:, 0].sum()):
        assert loss(middle) <= (loss(a) + loss(b)) / 2 + 1e-9


@pytest.mark.theorem("prop-convex-pieces")
def test_two_linear_layers_together_are_convex_near_no_origin() -> None:
    w = sp.symbols("w_1 w_2", real=True)
    loss = (w[0] * w[1] - 1) ** 2 / 2
    assert sp.hessian(loss, w).subs({w[0]: 0, w[1]: 0}).eigenvals() == {-1: 1, 1: 1}


# --- dead units -----------------------------------------------------------------------------------


def two_layers(seed: int, bias: float = 0.0) -> Any:
    net = nn.Sequential(book.Linear(4, 12), book.ReLU(), book.Linear(12, 10), book.ReLU(), book.Linear(10, 3)).double()
    with torch.no_grad():
        for k, w in enumerate(net.parameters()):
            w.copy_(normal(*w.shape, seed=seed + k) if w.dim() > 1 else torch.full_like(w, bias))
    return net


def dead(net: Any, X: Tensor) -> list[Tensor]:
    found, h = [], X
    for layer in net:
        h = layer(h)
        if isinstance(layer, (book.ReLU, book.LeakyReLU)):
            found.append((h <= 0).all(0))
    return found


@pytest.mark.theorem("prop-dead-unit")
@given(seeds)
@few
def test_a_dead_unit_has_no_gradient_before_or_behind_it(seed: int) -> None:
    net, X = two_layers(seed, bias=-2.0), normal(6, 4, seed=seed + 20)
    with torch.no_grad():
        net[0].weight[0], net[0].bias[0] = 0, 0  # a pre-activation of exactly 0 is dead too
    first, second = dead(net, X)
    assert first[0]
    for loss in (lambda y: cross_entropy(y, torch.arange(6) % 3), lambda y: (y**3).sum()):
        net.zero_grad()
        loss(net(X)).backward()
        for (before, behind), off in (((net[0], net[2]), first), ((net[2], net[4]), second)):
            assert not before.weight.grad[off].any()
            assert not before.bias.grad[off].any()
            assert not behind.weight.grad[:, off].any()


@pytest.mark.theorem("prop-dead-unit")
@given(seeds)
@few
def test_a_dead_unit_of_the_first_layer_stays_as_it_is_for_ever(seed: int) -> None:
    net, X = two_layers(seed, bias=-1.0), normal(6, 4, seed=seed + 20)
    off = dead(net, X)[0]
    rows = net[0].weight.detach().clone()[off]
    for step in range(10):
        i = torch.randperm(6, generator=random(step))[:3]
        g = torch.autograd.grad(net(X[i]).square().sum(), list(net.parameters()))
        with torch.no_grad():
            for w, by_w in zip(net.parameters(), g, strict=True):
                w -= 0.03 * (step + 1) * by_w.clamp(-1, 1)
    assert torch.equal(net[0].weight[off], rows)
    assert dead(net, X)[0][off].all()


@pytest.mark.theorem("prop-dead-unit")
def test_a_dead_unit_above_the_first_layer_can_come_back() -> None:
    w = torch.tensor(1.0, requires_grad=True)
    inner = torch.tensor([[-1.0], [1.0]], requires_grad=True)
    bias = torch.tensor([0.5, 0.0], requires_grad=True)
    for step in range(30):
        h = w.relu()
        z = inner[:, 0] * h + bias
        if step == 0:
            assert z[0] < 0
            own = inner[0].detach().clone(), bias[0].detach().clone()
        if z[0] > 0:
            break
        (by_w,) = torch.autograd.grad(z.relu().sum() ** 2 / 2, w)
        with torch.no_grad():
            w -= 0.1 * by_w
    assert z[0] > 0
    assert torch.equal(inner[0], own[0])
    assert torch.equal(bias[0], own[1])


def test_momentum_moves_a_unit_that_has_just_died_and_decay_of_weights_alone_can_wake_one() -> None:
    w = torch.tensor([1.0], requires_grad=True)
    optimiser = torch.optim.SGD([w], lr=1.0, momentum=0.9)
    path = []
    for _ in range(4):
        optimiser.zero_grad()
        ((w * 1.0).relu() * 2).sum().backward()
        optimiser.step()
        path.append(w.item())
    assert path[0] < 0  # dead after one step, without a gradient
    assert path[3] < path[2] < path[1] < path[0]
    weight, bias, x = -1.0, 0.5, 1.0
    assert weight * x + bias < 0
    for _ in range(10):
        weight *= 0.9
    assert weight * x + bias > 0


def test_a_unit_that_is_off_for_one_example_learns_from_the_others_and_not_from_that_one() -> None:
    w = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    on, off = torch.tensor([2.0, 1.0]).double(), torch.tensor([1.0, 2.0]).double()
    assert not torch.autograd.grad((w @ off).relu(), w)[0].any()
    assert torch.equal(torch.autograd.grad((w @ on).relu() + (w @ off).relu(), w)[0], on)
    leaky = torch.autograd.grad(leaky_relu(w @ off, 0.1), w)[0]
    assert torch.allclose(leaky, 0.1 * off)


# --- on the digits --------------------------------------------------------------------------------

digits = load_digits()
X_DIGITS, Y_DIGITS = torch.tensor(digits.data) / 16, torch.tensor(digits.target)


def deep(depth: int, bias: float = 0.0, slope: float | None = None, seed: int = 0, gain: float = 2**0.5) -> Any:
    layers: list[nn.Module] = []
    for k in range(depth + 1):
        width = 10 if k == depth else 64
        layer = book.Linear(64, width).double()
        with torch.no_grad():
            layer.weight.copy_((1 if k == depth else gain) / 8 * normal(width, 64, seed=100 * seed + k))
            layer.bias.fill_(0 if k == depth else bias)
        layers += [layer, book.ReLU() if slope is None else book.LeakyReLU(slope)]
    return nn.Sequential(*layers[:-1])


def descend(net: Any, eta: float, steps: int, seed: int = 0, longest: float = math.inf) -> Iterator[int]:
    generator = random(seed)
    for k in range(steps):
        yield k
        i = torch.randint(1200, (64,), generator=generator)
        gradients = torch.autograd.grad(cross_entropy(net(X_DIGITS[i]), Y_DIGITS[i]), list(net.parameters()))
        size = torch.stack([g.norm() for g in gradients]).norm()
        with torch.no_grad():
            for w, g in zip(net.parameters(), gradients, strict=True):
                w -= eta * g * (longest / size).clamp(max=1)


def test_long_steps_kill_units_and_short_or_clipped_ones_do_not() -> None:
    share = {}
    for name, eta, longest in (("long", 0.8, math.inf), ("short", 0.1, math.inf), ("clipped", 0.8, 1.0)):
        net = deep(3)
        assert len(list(descend(net, eta, 100, longest=longest))) == 100
        share[name] = torch.cat(dead(net, X_DIGITS)).double().mean().item()
    assert share["long"] > 0.2 > 0.12 > max(share["short"], share["clipped"])


def test_of_the_units_that_start_dead_the_first_layer_wakes_none_the_second_some_and_a_leak_moves_all() -> None:
    for slope in (None, 0.1):
        net = deep(2, bias=-0.5, slope=slope)
        before, rows = dead(net, X_DIGITS), net[0].weight.detach().clone()
        assert min(map(torch.sum, before)) >= 5
        assert len(list(descend(net, 0.1, 150))) == 150
        after = dead(net, X_DIGITS)
        stayed = (net[0].weight[before[0]] == rows[before[0]]).all(1)
        assert stayed.all() if slope is None else not stayed.any()
        woken = [int((b & ~a).sum()) for b, a in zip(before, after, strict=True)]
        assert woken[1] > 3
        if slope is None:
            assert woken[0] == 0


# --- biases ---------------------------------------------------------------------------------------


@pytest.mark.theorem("prop-bias-active")
@pytest.mark.parametrize("bias", [0.0, 0.1, -0.4, 1.0])
def test_the_share_of_active_units_is_that_of_a_normal_number(bias: float) -> None:
    gain, h, u = 1.3, normal(6, seed=1), normal(6, seed=2)
    u = u - (u @ h) / (h @ h) * h
    W = gain / 6**0.5 * normal(200_000, 6, seed=3)
    z = W @ h + bias
    s = gain * h.norm() / 6**0.5
    share = torch.special.ndtr(bias / s)
    assert math.isclose((z > 0).double().mean(), share, abs_tol=5e-3)
    assert math.isclose(((z > 0) * (W @ u)).square().mean(), share * gain**2 * u.square().mean(), rel_tol=0.02)


@pytest.mark.theorem("prop-bias-active")
def test_the_share_grows_from_one_half_like_the_bias_over_the_scale() -> None:
    x = sp.Symbol("x")
    series = sp.series((1 + sp.erf(x / sp.sqrt(2))) / 2, x, 0, 3).removeO()
    assert sp.simplify(series - sp.Rational(1, 2) - x / sp.sqrt(2 * sp.pi)) == 0


def test_a_bias_of_a_tenth_makes_a_small_majority_active_on_the_digits() -> None:
    for bias, low, high in ((0.0, 0.47, 0.53), (0.1, 0.53, 0.59), (1.0, 0.9, 0.95)):
        W = (2 / 64) ** 0.5 * normal(2000, 64)
        found = (X_DIGITS @ W.T + bias > 0).double().mean()
        theory = torch.special.ndtr(bias / (2**0.5 * X_DIGITS.norm(dim=1) / 8)).mean()
        assert abs(found - theory) < 0.03
        assert low < theory < high


def test_a_bias_of_a_tenth_gives_a_head_start_that_a_longer_step_gives_too() -> None:
    def losses(bias: float, eta: float) -> list[float]:
        net = deep(2, bias)
        held_out = lambda: cross_entropy(net(X_DIGITS[1200:]), Y_DIGITS[1200:]).item()
        return [held_out() for k in descend(net, eta, 151) if k in (50, 150)]

    plain, biased, longer = losses(0.0, 0.05), losses(0.1, 0.05), losses(0.0, 0.06)
    assert biased[0] < plain[0]
    assert longer[0] < plain[0]
    assert abs(biased[0] - longer[0]) < 0.1
    assert abs(biased[1] - plain[1]) < 0.15


# --- pieces ---------------------------------------------------------------------------------------


@pytest.mark.theorem("prop-pieces-growth")
@given(seeds, st.lists(st.integers(1, 4), min_size=1, max_size=3))
@few
def test_a_line_has_at_most_the_product_of_the_widths_plus_one_segments(seed: int, widths: list[int]) -> None:
    layers: list[nn.Module] = []
    for k, (n, m) in enumerate(itertools.pairwise([2, *widths])):
        layer = nn.Linear(n, m).double()
        with torch.no_grad():
            layer.weight.copy_(normal(m, n, seed=seed + k)), layer.bias.copy_(normal(m, seed=seed + 10 + k))
        layers += [layer, nn.ReLU()]
    net = nn.Sequential(*layers)
    p, q = 5 * normal(2, 2, seed=seed + 20)
    found = segments(net, p, q)
    assert len(found) <= math.prod(n + 1 for n in widths)
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    words = activation_pattern(net, p + grid * (q - p))
    assert len(found) >= (words[1:] != words[:-1]).any(1).sum() + 1


@pytest.mark.theorem("prop-pieces-growth")
@given(seeds)
@settings(max_examples=5)
def test_a_unit_switches_between_two_inputs_with_the_share_of_their_angle(seed: int) -> None:
    p, q = normal(2, 3, seed=seed)
    W = normal(40_000, 3, seed=seed + 1)
    share = ((W @ p > 0) != (W @ q > 0)).double().mean()
    angle = torch.arccos(p @ q / (p.norm() * q.norm()))
    assert abs(share - angle / torch.pi) < 0.015
    assert ((W @ p > 0) != (W @ -p > 0)).all()


def test_training_lowers_the_pieces_of_a_shallow_network_and_deep_ones_have_more() -> None:
    ends = [(X_DIGITS[i], X_DIGITS[i + 1]) for i in range(0, 6, 2)]

    def pieces(net: Any) -> float:
        return sum(len(segments(net, p, q)) for p, q in ends) / len(ends)

    shallow, deeper = deep(1), deep(4)
    start = pieces(shallow)
    assert 12 < start < 28
    assert pieces(deeper) > 2.5 * start
    assert len(list(descend(shallow, 0.1, 150))) == 150
    assert pieces(shallow) < 0.85 * start
