"""The theorems of the chapter *Piecewise linear functions*, and every property of its module."""

from __future__ import annotations

import itertools
import math
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pwl_lib import nn as pnn
from pwl_lib.piecewise_linear import (
    AffinePiece,
    Polyhedron,
    activation_pattern,
    active_subnetwork,
    affine_piece,
    is_piecewise_linear,
    polyhedron,
)

D = torch.float64
seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 6)


def randn(*shape, seed=None):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=D, generator=generator)


def mlp(widths, seed=0, activation=nn.ReLU):
    """A chain of Linear and activations, seeded without moving the generator of the process."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = []
        for n, m in itertools.pairwise(widths):
            layers += [nn.Linear(n, m), activation()]
        return nn.Sequential(*layers[:-1]).double()


def rational(net, grid=4):
    """Rounds all weights to multiples of 1 / grid: ties are then met exactly, in floating point too."""
    with torch.no_grad():
        for p in net.parameters():
            p.copy_((p * grid * 2).round() / grid)
    return net


def by_rows(model, x):
    """The Jacobian of each sample by plain backward passes, (B, m, n)."""
    x = x.detach().clone().requires_grad_()
    y = model(x)
    y = y.flatten(1) if y.dim() > 1 else y[:, None]
    rows = [torch.autograd.grad(y[:, j].sum(), x, retain_graph=True)[0].reshape(len(x), -1) for j in range(y.shape[1])]
    return torch.stack(rows, 1)


def same_word(model, x, z):
    return (activation_pattern(model, x) == activation_pattern(model, z)).all(1)


# --- architectures ---


class Residual(nn.Module):
    def __init__(self, n, activation):
        super().__init__()
        self.inner, self.activation = nn.Linear(n, n), activation

    def forward(self, x):
        out = self.inner(x)
        out += x
        return self.activation(out)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 2, 3, padding="same", padding_mode="circular")

    def forward(self, x):
        return torch.cat([F.relu(self.left(x)), F.max_pool2d(self.right(x), 3, 1, 1).abs()], dim=1)


class Maxout(nn.Module):
    def forward(self, x):
        return x.unflatten(1, (-1, 3)).max(dim=2).values


def cnn(relu):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        relu,
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.Dropout2d(),
        nn.Conv2d(4, 4, 3, groups=2, dilation=2, padding=2),
        nn.PReLU(4),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def named_parts():
    yield "mlp", mlp([5, 16, 12, 3]), (5,)
    for name, ours, torchs in [
        ("relu", pnn.ReLU(), nn.ReLU()),
        ("relu_other", pnn.ReLU(slope_at_zero=0.5), nn.ReLU(inplace=True)),
        ("leaky_relu", pnn.LeakyReLU(0.2), nn.LeakyReLU(0.2)),
        ("prelu", pnn.PReLU(6), nn.PReLU(6)),
        ("hardtanh", pnn.Hardtanh(-0.5, 0.7), nn.Hardtanh(-0.5, 0.7)),
    ]:
        for owner, activation in (("ours", ours), ("torch", torchs)):
            yield f"{name}_{owner}", nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 2)), (4,)
    yield "absolute_ours", nn.Sequential(nn.Linear(4, 6), pnn.Absolute(), nn.Linear(6, 2)), (4,)
    yield "maxout_ours", nn.Sequential(pnn.Maxout(4, 6, 3), pnn.Maxout(6, 2, 2, bias=False)), (4,)
    images = pnn.Maxout2d(2, 3, 3, pieces=2, stride=2, padding=1, groups=1), pnn.Maxout2d(3, 3, 1, pieces=2, groups=3)
    yield "maxout2d_ours", nn.Sequential(*images, nn.Flatten()), (2, 5, 5)
    yield "residual_ours", nn.Sequential(Residual(5, pnn.ReLU()), Residual(5, pnn.LeakyReLU()), nn.Linear(5, 2)), (5,)
    yield "residual_torch", nn.Sequential(Residual(5, nn.ReLU()), Residual(5, nn.ReLU6())), (5,)
    yield "cnn_torch", cnn(nn.ReLU(inplace=True)), (1, 8, 8)
    yield "cnn_ours", cnn(pnn.ReLU()), (1, 8, 8)
    yield "branches", nn.Sequential(Branches(), nn.AdaptiveAvgPool2d(2), nn.Flatten()), (2, 5, 5)
    yield "maxout", nn.Sequential(nn.Linear(4, 12), Maxout(), nn.Linear(4, 6), Maxout()), (4,)
    yield (
        "saturating",
        nn.Sequential(nn.Linear(4, 5), nn.Hardsigmoid(), nn.Softshrink(0.2), nn.Threshold(0.3, 0.3)),
        (4,),
    )
    yield "rrelu", nn.Sequential(nn.Linear(4, 5), nn.RReLU()), (4,)
    yield (
        "one_dimension",
        nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.MaxPool1d(2), nn.ConvTranspose1d(4, 2, 2)),
        (2, 9),
    )
    yield (
        "three_dimensions",
        nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU6(), nn.MaxPool3d(2, 1), nn.AdaptiveMaxPool3d(1)),
        (1, 4, 4, 4),
    )
    yield (
        "upsampling",
        nn.Sequential(nn.Upsample(scale_factor=2), nn.ReLU(), nn.AvgPool2d(2), nn.ZeroPad2d(1)),
        (2, 3, 3),
    )
    yield (
        "bilinear",
        nn.Sequential(nn.UpsamplingBilinear2d(scale_factor=2), nn.ReLU(), nn.ReflectionPad2d(1)),
        (1, 3, 3),
    )
    yield (
        "functions",
        lambda x: torch.cat(
            [
                x.max(1).values[:, None],
                torch.maximum(x[:, :3], x[:, 3:]),
                x.abs().amin(1, keepdim=True),
                x.clamp(min=0.1),
                torch.minimum(x, torch.ones(6, dtype=D)),
                x.clamp(-torch.ones(6, dtype=D), torch.ones(6, dtype=D)),
                x.min(dim=1, keepdim=True).values,
                x.view(-1, 2, 3).amax((1, 2))[:, None],
            ],
            dim=1,
        ),
        (6,),
    )
    yield "one_number_each", lambda x: torch.relu(x).sum(1), (4,)
    yield "numbers", torch.relu, ()


def architectures():
    found = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, model, shape in named_parts():
            if isinstance(model, nn.Module):
                model.double()
                for module in model.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        nn.init.normal_(module.running_mean)
                        nn.init.uniform_(module.running_var, 0.5, 2)
                model.eval()
            found.append(pytest.param(model, shape, id=name))
    return found


each_architecture = pytest.mark.parametrize(("model", "shape"), architectures())


@each_architecture
def test_the_piece_agrees_with_the_network_to_rounding_and_with_autograd(model, shape):
    x = randn(20, *shape, seed=1)
    y = model(x.clone())
    y = y.flatten(1) if y.dim() > 1 else y[:, None]
    assert is_piecewise_linear(model, x)
    piece = affine_piece(model, x)
    assert ((piece(x) - y).abs() <= 1e-12 * (1 + y.abs())).all()
    assert torch.allclose(
        piece.A, by_rows(model, x), rtol=1e-7, atol=1e-7
    )  # torch's hardsigmoid slope is single precision
    assert piece.A.dtype == piece.b.dtype == D
    assert not piece.A.requires_grad
    assert not piece.b.requires_grad


@each_architecture
def test_the_open_polyhedron_is_where_the_code_word_is_the_same(model, shape):
    """Random points near an input: all rows strict => same word => all rows hold; and both happen."""
    x = randn(3, *shape, seed=2)
    region, word = polyhedron(model, x), activation_pattern(model, x)
    assert region.contains(x, tol=1e-12).all()
    met = set()
    for seed, scale in enumerate((1e-6, 1e-6, 1e-3, 0.03, 0.3, 3.0, 3.0)):
        z = x + scale * randn(3, *shape, seed=seed)
        same = (activation_pattern(model, z) == word).all(1)
        assert (region.contains(z, tol=-1e-10) <= same).all()
        assert (same <= region.contains(z, tol=1e-10)).all()
        met |= set(same.tolist())
    assert met == {True, False}


@each_architecture
def test_on_its_polyhedron_the_network_is_the_piece(model, shape):
    x = randn(3, *shape, seed=3)
    piece, region = affine_piece(model, x), polyhedron(model, x)
    for scale in (1e-3, 0.03, 0.3):
        z = x + scale * randn(3, *shape, seed=4)
        inside = region.contains(z)
        y = model(z.clone())
        y = y.flatten(1) if y.dim() > 1 else y[:, None]
        assert torch.allclose(piece(z)[inside], y[inside], rtol=1e-12, atol=1e-12)


# --- S0.1: closure ---


def random_cpwl(n, m, seed):
    """A CPWL function made of an affine map, maxima and absolute values."""
    A, b, C, d = randn(m, n, seed=seed), randn(m, seed=seed + 1), randn(m, n, seed=seed + 2), randn(m, seed=seed + 3)
    return lambda x: torch.maximum(x @ A.T + b, x @ C.T + d) - (x @ C.T).abs()


@pytest.mark.theorem("thm-cpwl-closed")
@settings(max_examples=25)
@given(n=sizes, m=sizes, k=sizes, seed=seeds, weights=st.tuples(st.floats(-3, 3), st.floats(-3, 3)))
def test_stacks_compositions_combinations_and_maxima_of_cpwl_functions_are_cpwl(n, m, k, seed, weights):
    f, g, q = random_cpwl(n, m, seed), random_cpwl(n, m, seed + 10), random_cpwl(m, k, seed + 20)
    lam, mu = weights
    made = [
        lambda x: torch.cat([f(x), g(x)], dim=1),
        lambda x: q(f(x)),
        lambda x: lam * f(x) + mu * g(x),
        lambda x: torch.maximum(f(x), g(x)),
        lambda x: torch.minimum(f(x), g(x)),
    ]
    x = randn(8, n, seed=seed)
    for h in made:
        # Affine on the polyhedron of x, checked on the way to its boundary and one step towards other samples.
        piece, region = affine_piece(h, x), polyhedron(h, x)
        d = randn(8, n, seed=seed + 5)
        speed, room = torch.einsum("bkn,bn->bk", region.H, d), region.c - torch.einsum("bkn,bn->bk", region.H, x)
        t = torch.where(speed > 0, room / speed, math.inf).amin(1).clamp(max=10)
        for part in (0.0, 0.5, 1.0):  # 1: on the boundary, where continuity makes the piece hold as well
            z = x + part * t[:, None] * d
            assert torch.allclose(h(z), piece(z), rtol=1e-9, atol=1e-9)


@pytest.mark.theorem("thm-cpwl-closed")
def test_the_preimage_of_a_polyhedron_under_a_piece_is_the_polyhedron_of_the_formula():
    f = random_cpwl(3, 2, 0)
    outer = mlp([2, 5, 1], seed=1)
    x = randn(10, 3, seed=2)
    inner, then = affine_piece(f, x), polyhedron(outer, f(x))
    both = polyhedron(lambda x: outer(f(x)), x)
    rows = polyhedron(f, x).H.shape[1]
    assert torch.allclose(both.H[:, rows:], then.H @ inner.A, atol=1e-12)
    assert torch.allclose(both.c[:, rows:], then.c - torch.einsum("bkn,bn->bk", then.H, inner.b), atol=1e-12)


@pytest.mark.theorem("cor-network-cpwl")
@settings(max_examples=25)
@given(
    depth=st.integers(1, 4),
    width=sizes,
    seed=seeds,
    kind=st.sampled_from([nn.ReLU, nn.LeakyReLU, pnn.Absolute, pnn.Hardtanh]),
)
def test_a_network_is_affine_on_each_region_and_continuous_across_the_boundary(depth, width, seed, kind):
    net = mlp([3, *[width] * depth, 2], seed, kind)
    x, d = randn(1, 3, seed=seed), randn(1, 3, seed=seed + 1)
    H, c = polyhedron(net, x)
    speed, room = H[0] @ d[0], c[0] - H[0] @ x[0]
    t = min((room / speed)[speed > 0].tolist(), default=1.0)
    boundary, beyond = x + t * d, x + (t + 1e-7) * d
    here, there = affine_piece(net, x), affine_piece(net, beyond)
    scale = 1 + net(boundary).abs().max().item()
    assert torch.allclose(here(boundary), net(boundary), atol=1e-9 * scale)
    assert torch.allclose(there(boundary), net(boundary), atol=1e-5 * scale)  # the piece beyond, at the shared boundary


def test_a_piece_is_affine_and_not_linear():
    net = mlp([3, 8, 2], seed=3)
    x = randn(5, 3, seed=1)
    assert affine_piece(net, x).b.abs().min() > 0
    assert not torch.allclose(net(2 * x), 2 * net(x))


# --- S0.3: the formula of the piece ---


@pytest.mark.theorem("thm-affine-piece")
@settings(max_examples=40)
@given(widths=st.lists(st.integers(1, 7), min_size=2, max_size=5), seed=seeds, tie=st.booleans())
def test_the_piece_is_the_product_of_weights_and_masks(widths, seed, tie):
    net = mlp(widths, seed)
    x = randn(widths[0], seed=seed)
    if tie:
        net, x = rational(net), (2 * x).round() / 2
    layers = [module for module in net if isinstance(module, nn.Linear)]
    A, b = layers[0].weight, layers[0].bias
    z, word = A @ x + b, []
    for layer in layers[1:]:
        mask = z > 0
        word.append(mask)
        mixed = layer.weight * mask
        A, b, z = mixed @ A, mixed @ b + layer.bias, layer.weight @ torch.relu(z) + layer.bias
    piece = affine_piece(net, x[None])
    assert torch.allclose(piece.A[0], A, rtol=1e-12, atol=1e-12)
    assert torch.allclose(piece.b[0], b, rtol=1e-12, atol=1e-12)
    found = activation_pattern(net, x[None])[0]
    assert torch.equal(found, torch.cat([*word, torch.zeros(0, dtype=torch.bool)]).long())
    assert torch.allclose(piece.A, by_rows(net, x[None]), rtol=1e-12, atol=1e-12)


def test_the_code_word_of_every_kind_of_switch_is_as_documented():
    x = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0]])
    for f in (torch.relu, F.leaky_relu, torch.abs):
        assert activation_pattern(f, x).tolist() == [[0, 0, 0, 1, 1]]
    assert activation_pattern(F.hardtanh, x).tolist() == [[0, 0, 1, 2, 2]]
    assert activation_pattern(F.relu6, torch.tensor([[0.0, 3.0, 6.0]])).tolist() == [[0, 1, 2]]
    three = torch.tensor([[1.0, 3.0, 3.0]])
    assert activation_pattern(lambda x: x.amax(1, keepdim=True), three).tolist() == [[1]]
    assert activation_pattern(lambda x: F.max_pool1d(x[:, None], 2, 1), three).tolist() == [[1, 0]]
    assert activation_pattern(lambda x: torch.maximum(x, torch.zeros(5)), x).tolist() == [[1, 1, 0, 0, 0]]
    assert activation_pattern(nn.Linear(5, 2), x).shape == (1, 0)


def test_words_stand_in_the_order_in_which_the_model_meets_its_switches():
    net = mlp([2, 3, 4, 1], seed=0)
    x = randn(9, 2, seed=0)
    first = net[0](x) > 0
    second = net[2](torch.relu(net[0](x))) > 0
    assert torch.equal(activation_pattern(net, x), torch.cat([first, second], 1).long())


# --- S0.10: regions and words ---


@pytest.mark.theorem("thm-region")
@settings(max_examples=30)
@given(
    n=st.integers(1, 4),
    width=st.integers(1, 6),
    depth=st.integers(1, 3),
    seed=seeds,
    scale=st.sampled_from([0.01, 0.3, 3.0]),
)
def test_the_region_lies_between_the_open_and_the_closed_polyhedron(n, width, depth, seed, scale):
    net = mlp([n, *[width] * depth, 2], seed)
    x = randn(1, n, seed=seed)
    z = x + scale * randn(200, n, seed=seed + 1)
    H, c = (part[0] for part in polyhedron(net, x))
    slack = c - z @ H.T
    trivial = (H == 0).all(1)
    same = (activation_pattern(net, z) == activation_pattern(net, x)).all(1)
    assert (((slack > 1e-12) | trivial).all(1) <= same).all()
    assert (same <= (slack >= -1e-12).all(1)).all()
    inside = (slack >= 0).all(1)
    A, b = (part[0] for part in affine_piece(net, x))
    assert torch.allclose(net(z)[inside], (z @ A.T + b)[inside], rtol=1e-11, atol=1e-11)


@pytest.mark.theorem("thm-region")
def test_the_piece_holds_on_the_boundary_of_its_polyhedron_where_the_word_has_changed():
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for p, value in zip(net.parameters(), [1.0, -1.0, 3.0, 2.0]):
            p.fill_(value)
    x, tie = torch.tensor([[5.0]], dtype=D), torch.tensor([[1.0]], dtype=D)
    assert activation_pattern(net, x).item() == 1
    assert activation_pattern(net, tie).item() == 0
    assert polyhedron(net, x).contains(tie).item()
    assert affine_piece(net, x)(tie).item() == net(tie).item() == 2
    assert polyhedron(net, tie).H.item() == 1
    assert affine_piece(net, tie).A.item() == 0


def test_a_tie_may_have_a_region_of_one_point():
    def folded(x):
        return torch.relu(x) + torch.relu(-x)

    region = polyhedron(folded, torch.zeros(1, 1, dtype=D))
    assert region.H.flatten().tolist() == [1, -1]
    assert region.c.flatten().tolist() == [0, 0]
    assert [region.contains(torch.tensor([[z]], dtype=D)).item() for z in (-1e-9, 0.0, 1e-9)] == [False, True, False]


@pytest.mark.theorem("prop-code-word")
@settings(max_examples=30)
@given(n=st.integers(1, 4), width=st.integers(1, 5), depth=st.integers(1, 3), seed=seeds)
def test_equal_words_have_one_piece_and_one_convex_region(n, width, depth, seed):
    net = mlp([n, *[width] * depth, 2], seed)
    x = randn(300, n, seed=seed)
    words, number = activation_pattern(net, x).unique(dim=0, return_inverse=True)
    chosen = [torch.where(number == k)[0][:2] for k in range(len(words)) if (number == k).sum() > 1]
    first, second = torch.stack(chosen).T
    one, other = affine_piece(net, x[first]), affine_piece(net, x[second])
    assert torch.allclose(one.A, other.A, rtol=1e-12, atol=1e-12)
    assert torch.allclose(one.b, other.b, rtol=1e-12, atol=1e-12)
    for mine, yours in zip(polyhedron(net, x[first]), polyhedron(net, x[second]), strict=True):
        assert torch.allclose(mine, yours, rtol=1e-12, atol=1e-12)
    for t in (0.001, 0.25, 0.5, 0.75, 0.999):
        between = (1 - t) * x[first] + t * x[second]
        assert torch.equal(activation_pattern(net, between), words[number[first]])


@pytest.mark.theorem("prop-code-word")
def test_a_convex_combination_of_ties_has_their_word():
    net = rational(mlp([2, 3, 1], seed=1))
    with torch.no_grad():
        net[0].weight[0], net[0].bias[0] = torch.tensor([1.0, -1.0], dtype=D), 0
    x, y = torch.tensor([[0.25, 0.25]], dtype=D), torch.tensor([[0.5, 0.5]], dtype=D)
    assert net[0](x)[0, 0] == net[0](y)[0, 0] == 0
    if same_word(net, x, y):
        assert same_word(net, x, (x + y) / 2)
    assert activation_pattern(net, (x + y) / 2)[0, 0] == 0


def test_the_converse_fails_since_two_words_may_share_a_piece():
    def identity(x):
        return torch.relu(x) - torch.relu(-x)

    x = torch.tensor([[1.0], [-1.0]], dtype=D)
    piece = affine_piece(identity, x)
    assert torch.equal(piece.A[0], piece.A[1])
    assert torch.equal(piece.b[0], piece.b[1])
    assert activation_pattern(identity, x).tolist() == [[1, 0], [0, 1]]


# --- S0.2: approximation ---


@pytest.mark.theorem("prop-polygon")
@settings(max_examples=40)
@given(n=st.integers(3, 200), seed=seeds)
def test_a_polygon_stands_in_for_a_disc_with_an_error_of_at_most_its_bound(n, seed):
    angle = 2 * torch.pi * torch.arange(1, n + 1, dtype=D) / n
    u = torch.stack([angle.cos(), angle.sin()])
    x = torch.cat([randn(200, 2, seed=seed), torch.zeros(1, 2, dtype=D)])
    norm, value = x.norm(dim=1), (x @ u).amax(1)
    assert (value <= norm + 1e-12).all()
    assert (value >= math.cos(math.pi / n) * norm - 1e-12).all()
    assert 1 - math.cos(math.pi / n) <= math.pi**2 / (2 * n**2)
    # Both bounds are attained: at a direction, and half way between two.
    half = angle[0] - torch.pi / n
    assert math.isclose((u[:, 0] @ u).max().item(), 1, rel_tol=1e-12)
    assert math.isclose((torch.stack([half.cos(), half.sin()]) @ u).max().item(), math.cos(math.pi / n), rel_tol=1e-12)


def interpolation_error(f, a, b, n):
    fine = np.linspace(a, b, 40_001)
    knots = np.linspace(a, b, n + 1)
    return np.abs(f(fine) - np.interp(fine, knots, f(knots))).max()


@pytest.mark.theorem("thm-interpolation-rate")
@settings(max_examples=40)
@given(
    n=st.integers(1, 60),
    a=st.floats(-3, 3),
    length=st.floats(0.1, 4),
    frequency=st.floats(0.1, 6),
    kind=st.sampled_from(["sin", "exp", "cube"]),
)
def test_the_interpolant_errs_by_at_most_the_bound(n, a, length, frequency, kind):
    b = a + length
    f, steepest = {
        "sin": (lambda x: np.sin(frequency * x), frequency**2),
        "exp": (np.exp, math.exp(b)),
        "cube": (lambda x: x**3, 6 * max(abs(a), abs(b))),
    }[kind]
    assert interpolation_error(f, a, b, n) <= steepest * (length / n) ** 2 / 8 + 1e-11


@pytest.mark.theorem("thm-interpolation-rate")
@pytest.mark.parametrize("n", [1, 2, 5, 32])
def test_for_a_parabola_the_bound_is_attained(n):
    assert math.isclose(interpolation_error(np.square, -1, 1, n), 2 * (2 / n) ** 2 / 8, rel_tol=1e-6)


def test_the_measured_rate_of_a_smooth_function_is_one_over_n_squared():
    counts = np.array([8, 16, 32, 64, 128])
    for f in (np.sin, np.exp, lambda x: 1 / (1 + x**2)):
        error = [interpolation_error(f, 0, 3, n) for n in counts]
        assert abs(np.polyfit(np.log(counts), np.log(error), 1)[0] + 2) < 0.1


# --- S4.6: the thin network ---


@pytest.mark.theorem("prop-thin-network")
@settings(max_examples=40)
@given(widths=st.lists(st.integers(1, 8), min_size=2, max_size=5), seed=seeds, tie=st.booleans(), bias=st.booleans())
def test_the_thin_network_is_the_affine_piece(widths, seed, tie, bias):
    net = mlp(widths, seed, random.Random(seed).choice([nn.ReLU, pnn.ReLU]))
    if not bias:
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.bias = None
    x = randn(widths[0], seed=seed)
    if tie:
        net, x = rational(net), (2 * x).round() / 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thin = active_subnetwork(net, x)
    assert all(type(layer) is nn.Linear for layer in thin)
    active = activation_pattern(net, x[None])[0].split(widths[1:-1]) if len(widths) > 2 else []
    assert [layer.out_features for layer in thin[:-1]] == [int(word.sum()) for word in active]
    A, b = (part[0] for part in affine_piece(net, x[None]))
    for z in (x, randn(widths[0], seed=seed + 1)):
        assert torch.allclose(thin(z), A @ z + b, rtol=1e-11, atol=1e-11)
    assert torch.allclose(thin(x), net(x), rtol=1e-11, atol=1e-11)


def test_a_unit_is_taken_out_for_its_pre_activation_and_no_output_is_negative():
    net = mlp([4, 50, 1], seed=0)
    x = randn(4, seed=1)
    pre = net[0](x)
    assert (torch.relu(pre) >= 0).all()
    assert active_subnetwork(net, x)[0].out_features == int((pre > 0).sum()) < 50


def test_a_network_whose_units_are_all_off_leaves_its_last_bias():
    net = mlp([3, 5, 2], seed=0)
    with torch.no_grad():
        net[0].bias.fill_(-1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thin = active_subnetwork(net, randn(3, seed=0))
    assert torch.equal(thin(randn(3, seed=1)), net[2].bias)


def test_the_thin_network_has_weights_of_its_own():
    net, x = mlp([3, 5, 2], seed=0), randn(3, seed=0)
    thin = active_subnetwork(net, x)
    before = net(x).clone()
    with torch.no_grad():
        for p in thin.parameters():
            p.zero_()
    assert torch.equal(net(x), before)


# --- S4.7: the walk ---


def walk(model, p, q, beyond=1e-9):
    kinks, t, d = [], 0.0, q - p
    while True:
        H, c = polyhedron(model, (p + (t + beyond) * d)[None])
        speed, room = H[0] @ d, c[0] - H[0] @ p
        t = min((room / speed)[speed > 0].tolist(), default=1.0)
        if t >= 1:
            return torch.tensor(kinks, dtype=D)
        kinks.append(t)


@pytest.mark.parametrize("seed", range(4))
def test_a_walk_along_a_line_counts_the_pieces_that_a_dense_grid_finds(seed):
    pixels = torch.as_tensor(load_digits().data, dtype=D) / 16
    net = mlp([64, 24, 24, 10], seed)
    p, q = pixels[seed], pixels[seed + 10]
    kinks = walk(net, p, q)
    assert len(kinks) > 1
    t = torch.linspace(0, 1, 50_001, dtype=D)
    words = activation_pattern(net, p + t[:, None] * (q - p))
    changes = (words[1:] != words[:-1]).any(1)
    assert changes.sum() == len(kinks)
    assert torch.allclose(t[1:][changes], kinks, atol=2e-5)
    # The thin network of one end is wrong at the other: the net is not linear.
    assert not torch.allclose(active_subnetwork(net, p)(q), net(q))


def test_a_walk_finds_kinks_whose_place_is_known():
    def zigzag(x):
        return torch.relu(x - 0.25) + torch.relu(x - 0.5) - 3 * torch.relu(x - 0.75)

    assert torch.allclose(
        walk(zigzag, torch.zeros(1, dtype=D), torch.ones(1, dtype=D)), torch.tensor([0.25, 0.5, 0.75], dtype=D)
    )
    assert len(walk(nn.Linear(2, 1).double(), torch.zeros(2, dtype=D), torch.ones(2, dtype=D))) == 0


# --- S0.4 and S4.4: second derivatives ---


@pytest.mark.theorem("prop-zero-hessian")
@settings(max_examples=20)
@given(n=st.integers(1, 4), width=st.integers(1, 6), seed=seeds)
def test_derivatives_of_order_two_and_three_are_zero_off_the_kinks(n, width, seed):
    net = mlp([n, width, width, 1], seed)
    x = randn(n, seed=seed)
    H, c = (part[0] for part in polyhedron(net, x[None]))
    rows = H.norm(dim=1) > 0
    distance = ((c - H @ x)[rows] / H.norm(dim=1)[rows]).min() if rows.any() else torch.tensor(1.0)
    step = 0.4 * min(float(distance), 1.0)
    v = F.normalize(randn(n, seed=seed + 1), dim=0)
    f = [net(x + k * step * v).item() for k in (-2, -1, 0, 1, 2)]
    scale = 1e-13 * (1 + max(map(abs, f)))
    assert abs(f[1] - 2 * f[2] + f[3]) <= 4 * scale  # second difference, not divided by the step
    assert abs(-f[0] + 2 * f[1] - 2 * f[3] + f[4]) <= 8 * scale
    hessian = torch.autograd.functional.hessian(lambda x: net(x).sum(), x)
    assert (hessian == 0).all()


@pytest.mark.theorem("prop-kink-curvature")
@settings(max_examples=40)
@given(seed=seeds, m=st.integers(1, 8))
def test_the_curvature_against_a_test_function_is_the_sum_of_the_jumps(seed, m):
    kinks = 0.9 * (2 * torch.rand(m, dtype=D, generator=torch.Generator().manual_seed(seed)) - 1).sort().values
    jumps, a, b = randn(m, seed=seed), *randn(2, seed=seed + 1).tolist()
    # phi = (1 - x^2)^3 on [-1, 1]: twice continuously differentiable, 0 outside. Its moments have a closed form.
    phi = np.polynomial.Polynomial([1, 0, -1]) ** 3
    second = phi.deriv(2)

    def integral(p, low, high):
        whole = p.integ()
        return whole(high) - whole(low)

    x = np.polynomial.Polynomial([0, 1])
    left = integral((a + b * x) * second, -1, 1)
    left += sum(j * integral((x - t) * second, t, 1) for j, t in zip(jumps.tolist(), kinks.tolist()))
    right = sum(j * phi(t) for j, t in zip(jumps.tolist(), kinks.tolist()))
    assert math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9)
    # The jumps are what the pieces on both sides say.
    f = lambda x: a + b * x + torch.relu(x - kinks) @ jumps[:, None]
    ends = torch.cat([torch.tensor([-1.0], dtype=D), kinks, torch.tensor([1.0], dtype=D)])
    slopes = affine_piece(f, ((ends[1:] + ends[:-1]) / 2)[:, None]).A.flatten()
    assert torch.allclose(slopes.diff(), jumps, atol=1e-10)


def test_double_backward_is_zero_at_the_kink_and_off_it_without_a_warning():
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=D, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (slope,) = torch.autograd.grad(torch.relu(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(slope.sum(), x)
    assert slope.requires_grad
    assert second.tolist() == [0, 0, 0]


def test_sympy_says_that_the_second_derivative_of_a_relu_is_a_dirac_mass():
    sp = pytest.importorskip("sympy")
    x = sp.Symbol("x", real=True)
    assert sp.diff(sp.Max(x, 0), x) == sp.Heaviside(x)
    assert sp.diff(sp.Max(x, 0), x, 2) == sp.DiracDelta(x)
    phi = sp.cos(x)
    assert sp.integrate(sp.DiracDelta(x) * phi, (x, -1, 1)) == phi.subs(x, 0)


# --- S4.5: what a gradient says about a change ---


@pytest.mark.theorem("prop-affine-in-layer")
@settings(max_examples=30)
@given(widths=st.lists(st.integers(1, 6), min_size=3, max_size=5), seed=seeds, layer=st.integers(0, 3))
def test_the_output_is_exactly_affine_in_the_weights_of_one_layer_near_them(widths, seed, layer):
    net, x = mlp(widths, seed), randn(widths[0], seed=seed)
    linears = [module for module in net if isinstance(module, nn.Linear)]
    layer %= len(linears)
    before, outs, hidden = [], [], x
    for k, module in enumerate(linears):
        before.append(hidden)
        outs.append(module(hidden))
        hidden = torch.relu(outs[-1]) if k < len(linears) - 1 else outs[-1]
    B = torch.eye(widths[-1], dtype=D)
    for k in range(len(linears) - 1, layer, -1):
        B = B @ linears[k].weight * (outs[k - 1] > 0)
    delta = 1e-6 * randn(*linears[layer].weight.shape, seed=seed + 1)
    old = net(x)
    word = activation_pattern(net, x[None])
    with torch.no_grad():
        linears[layer].weight += delta
    if torch.equal(word, activation_pattern(net, x[None])):  # the step stayed in the ball
        new = net(x)
        assert torch.allclose(
            new - old, B @ (delta @ before[layer]), rtol=1e-7, atol=1e-14 * (1 + old.abs().max().item())
        )


@pytest.mark.theorem("prop-affine-in-layer")
def test_the_remainder_is_zero_for_a_score_and_of_second_order_for_a_loss_or_two_layers():
    net, x, target = mlp([6, 9, 7, 2], seed=1), randn(6, seed=1), randn(2, seed=2)
    old = {name: p.detach() for name, p in net.named_parameters()}
    direction = {name: randn(*p.shape, seed=k) for k, (name, p) in enumerate(old.items())}

    def remainder(readout, moved, size):
        f = lambda w: readout(torch.func.functional_call(net, w, (x,)))
        gradient = torch.func.grad(f)(old)
        new = {name: p + size * direction[name] * (name in moved) for name, p in old.items()}
        return (f(new) - f(old) - sum((gradient[n] * size * direction[n]).sum() for n in moved)).item()

    score, loss = (lambda y: y[0]), (lambda y: (y - target).square().mean())
    for one in ("0.weight", "2.weight", "4.weight"):
        assert abs(remainder(score, [one], 1e-3)) < 1e-14
        assert 0.24 < remainder(loss, [one], 5e-4) / remainder(loss, [one], 1e-3) < 0.26
    two = ["2.weight", "4.weight"]
    assert abs(remainder(score, two, 1e-3)) > 1e-9
    assert 0.24 < remainder(score, two, 5e-4) / remainder(score, two, 1e-3) < 0.26


# --- pooling against torch ---


@settings(max_examples=60)
@given(data=st.data())
def test_pooling_of_any_shape_has_the_values_and_gradients_of_torch(data):
    spatial = data.draw(st.integers(1, 3))
    kernel = data.draw(st.tuples(*[st.integers(1, 3)] * spatial))
    stride = data.draw(st.tuples(*[st.integers(1, 3)] * spatial))
    dilation = data.draw(st.tuples(*[st.integers(1, 2)] * spatial))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    size = tuple(d * (k - 1) + 1 + data.draw(st.integers(0, 4)) for k, d in zip(kernel, dilation))
    ceil_mode = data.draw(st.booleans())
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[spatial - 1](
        kernel, stride, padding, dilation, ceil_mode=ceil_mode
    )
    x = randn(2, 2, *size, seed=data.draw(seeds))
    piece = affine_piece(pool, x)
    assert torch.equal(piece(x), pool(x).flatten(1))
    assert torch.equal(piece.A, by_rows(pool, x))
    assert (piece.b == 0).all()


@pytest.mark.parametrize("size", [(5, 7), (3, 3), (1, 4)])
@pytest.mark.parametrize("wanted", [1, 2, (2, 3), (None, 2)])
def test_adaptive_pooling_has_the_values_and_gradients_of_torch(size, wanted):
    pool, x = nn.AdaptiveMaxPool2d(wanted), randn(2, 3, *size, seed=0)
    piece = affine_piece(pool, x)
    assert torch.equal(piece(x), pool(x).flatten(1))
    assert torch.equal(piece.A, by_rows(pool, x))


def test_among_equal_pixels_the_first_wins_as_in_torch():
    x = torch.ones(1, 1, 4, 4, dtype=D)
    assert torch.equal(affine_piece(nn.MaxPool2d(2), x).A, by_rows(nn.MaxPool2d(2), x))
    region = polyhedron(nn.MaxPool2d(2), x)
    assert region.H.shape == (1, 4 * 3, 16)
    assert region.contains(x).all()


def test_padding_never_wins_a_pool_and_makes_no_halfspace_that_excludes():
    x = -5 - randn(1, 1, 3, 3, seed=0).abs()
    pool = nn.MaxPool2d(3, 1, 1)
    assert torch.equal(affine_piece(pool, x)(x), pool(x).flatten(1))
    assert polyhedron(pool, x).contains(x).all()


# --- rounding ---


def test_in_single_precision_the_intercept_keeps_its_digits_for_large_inputs():
    net = mlp([6, 20, 20, 3], seed=0)
    single = mlp([6, 20, 20, 3], seed=0).float()
    x = (1e4 * randn(100, 6, seed=0)).float()
    true, piece = affine_piece(net, x.double()), affine_piece(single, x)
    assert torch.equal(activation_pattern(net, x.double()), activation_pattern(single, x))
    assert piece.A.dtype == piece.b.dtype == torch.float32
    assert (piece.b - true.b).abs().max() < 1e-5
    naive = single(x) - torch.einsum("bmn,bn->bm", piece.A, x)
    assert (naive - true.b).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_piece_has_the_type_of_the_output(dtype):
    net = mlp([4, 8, 2], seed=0).to(dtype)
    x = randn(3, 4, seed=0).to(dtype)
    piece, region = affine_piece(net, x), polyhedron(net, x)
    assert {part.dtype for part in (*piece, *region)} == {dtype}
    assert torch.allclose(piece(x), net(x), atol=8 * torch.finfo(dtype).eps)


# --- sizes, callers, and the state of the model ---


@each_architecture
def test_an_empty_batch_gives_empty_pieces(model, shape):
    x, one = randn(0, *shape), randn(1, *shape, seed=0)
    full, region = affine_piece(model, one), polyhedron(model, one)
    assert activation_pattern(model, x).shape == (0, activation_pattern(model, one).shape[1])
    assert affine_piece(model, x).A.shape == (0, *full.A.shape[1:])
    assert polyhedron(model, x).H.shape == (0, *region.H.shape[1:])
    assert is_piecewise_linear(model, x)


def test_inputs_and_outputs_without_numbers_give_pieces_without_numbers():
    nothing = affine_piece(torch.relu, torch.zeros(3, 0, dtype=D))
    assert nothing.A.shape == (3, 0, 0)
    assert polyhedron(torch.relu, torch.zeros(3, 0, dtype=D)).H.shape == (3, 0, 0)
    assert affine_piece(lambda x: x[:, :0], torch.ones(3, 2, dtype=D)).A.shape == (3, 0, 2)
    assert polyhedron(nn.Linear(2, 2).double(), torch.ones(3, 2, dtype=D)).contains(torch.ones(3, 2, dtype=D)).all()


def test_the_caller_may_have_turned_gradients_off():
    net, x = mlp([4, 8, 2], seed=0), randn(3, 4, seed=0)
    wanted = affine_piece(net, x), polyhedron(net, x)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            got = affine_piece(net, x.clone()), polyhedron(net, x.clone())
            assert not torch.is_grad_enabled()
        for mine, yours in zip(wanted, got, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, yours, strict=True))


def test_frozen_parameters_do_not_matter():
    net, x = mlp([4, 8, 2], seed=0), randn(3, 4, seed=0)
    wanted = affine_piece(net, x)
    net.requires_grad_(False)
    assert torch.equal(affine_piece(net, x).A, wanted.A)
    assert torch.equal(affine_piece(net, x.requires_grad_()).A, wanted.A)


@pytest.mark.parametrize("ask", [is_piecewise_linear, activation_pattern, affine_piece, polyhedron])
def test_asking_changes_nothing_about_the_model_or_the_input_or_the_random_numbers(ask):
    net = cnn(nn.ReLU(inplace=True)).double()
    net.insert(0, nn.ReLU(inplace=True))
    calls = []
    net[1].register_forward_hook(lambda *_: calls.append(1))
    for training in (True, False):
        net.train(training)
        x = randn(4, 1, 8, 8, seed=0)
        kept, state = x.clone(), {name: value.clone() for name, value in net.state_dict().items()}
        torch.manual_seed(5)
        numbers = torch.get_rng_state()
        try:
            ask(net, x)
        except ValueError:
            assert training
        assert torch.equal(x, kept)
        assert x.grad is None
        assert not x.requires_grad
        assert torch.equal(torch.get_rng_state(), numbers)
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
        assert all(p.grad is None for p in net.parameters())
        assert all(module.training is training for module in net.modules())
    assert len(net[1]._forward_hooks) == 1
    assert calls


@pytest.mark.parametrize("ask", [is_piecewise_linear, activation_pattern, affine_piece, polyhedron])
def test_an_exception_inside_the_model_comes_out_and_leaves_no_hook_behind(ask):
    class Broken(nn.Module):
        def forward(self, x):
            raise KeyError("my own mistake")

    def hooks():
        module = torch.nn.modules.module
        return len(module._global_forward_pre_hooks), len(module._global_forward_hooks)

    before = hooks()
    with pytest.raises(KeyError, match="my own mistake"):
        ask(nn.Sequential(nn.Linear(2, 2), Broken()), torch.ones(1, 2))
    assert hooks() == before
    assert activation_pattern(torch.relu, torch.ones(1, 1)).tolist() == [[1]]


def test_a_model_that_torch_compiles_is_watched_uncompiled():
    net, x = mlp([4, 8, 2], seed=0), randn(3, 4, seed=0)
    compiled = torch.compile(net, backend="eager")
    assert torch.equal(affine_piece(compiled, x).A, affine_piece(net, x).A)
    bad = torch.compile(nn.Sequential(nn.Linear(4, 2), nn.GELU()).double(), backend="eager")
    assert repr(is_piecewise_linear(bad, x)) == "not piecewise linear: module '1' (GELU) applies gelu"


# --- refusals ---


class Deep(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), *parts))

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (nn.GELU(), "module 'body.1.1' (GELU) applies gelu"),
        (nn.SiLU(), "module 'body.1.1' (SiLU) applies silu"),
        (nn.ELU(), "module 'body.1.1' (ELU) applies elu"),
        (nn.Hardswish(), "module 'body.1.1' (Hardswish) applies hardswish"),
        (nn.Hardshrink(), "module 'body.1.1' (Hardshrink) applies hardshrink"),
        (nn.Sigmoid(), "module 'body.1.1' (Sigmoid) applies sigmoid"),
        (nn.Tanh(), "module 'body.1.1' (Tanh) applies tanh"),
        (nn.Softplus(), "module 'body.1.1' (Softplus) applies softplus"),
        (nn.LayerNorm(4), "module 'body.1.1' (LayerNorm) applies layer_norm"),
        (nn.Softmax(-1), "module 'body.1.1' (Softmax) applies softmax"),
        (nn.Dropout(), "module 'body.1.1' (Dropout) applies dropout in training mode, which is random"),
        (nn.RReLU(), "module 'body.1.1' (RReLU) applies rrelu in training mode, which is random"),
        (
            nn.BatchNorm1d(4),
            "module 'body.1.1' (BatchNorm1d) applies batch_norm in training mode, which divides by the deviation of the batch",
        ),
        (
            nn.Threshold(0.0, 1.0),
            "module 'body.1.1' (Threshold) applies _threshold with a jump: its threshold and its value differ",
        ),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, nn.Module) else "",
)
def test_a_layer_that_is_not_piecewise_linear_is_named_with_its_path(part, message):
    model, x = Deep(part).double(), randn(3, 4, seed=0)
    answer = is_piecewise_linear(model, x)
    assert not answer
    assert repr(answer) == f"not piecewise linear: {message}"
    assert [offender.path for offender in answer.offenders] == ["body.1.1"]
    for ask in (activation_pattern, affine_piece, polyhedron):
        with pytest.raises(ValueError) as error:
            ask(model, x)
        assert str(error.value) == f"model is not piecewise linear: {message}"


def test_all_offenders_are_named_and_each_once():
    model = nn.Sequential(nn.GELU(), nn.Linear(4, 4), nn.Tanh(), nn.GELU()).double()
    answer = is_piecewise_linear(model, randn(2, 4, seed=0))
    assert [(o.path, o.module, o.operation) for o in answer.offenders] == [
        ("0", "GELU", "gelu"),
        ("2", "Tanh", "tanh"),
        ("3", "GELU", "gelu"),
    ]
    assert repr(is_piecewise_linear(nn.ReLU(), torch.zeros(1, 1))) == "piecewise linear"


@pytest.mark.parametrize(
    ("model", "operation"),
    [
        (lambda x: x * x, "mul to two tensors that depend on the input"),
        (lambda x: x**2, "pow"),
        (lambda x: x / x, "div with an index, a divisor or a size that depends on the input"),
        (lambda x: 1 / x, "__rdiv__|__rtruediv__|reciprocal"),
        (lambda x: x if x.sum() > 0 else -x, "gt.*__bool__"),
        (lambda x: x if x.sum().item() else -x, "item"),
        (lambda x: x * (x > 0), "gt"),
        (lambda x: torch.where(x > 0, x, 0), "where with a condition that depends on the input"),
        (lambda x: x.sign(), "sign"),
        (lambda x: x.round(), "round"),
        (lambda x: x // 2, "__floordiv__|floor_divide"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "div"),
        (lambda x: x.sort(1).values, "sort"),
        (lambda x: x.max(1).indices.double()[:, None], "double to the index of a maximum"),
        (lambda x: x.argmax(1)[:, None].double(), "argmax"),
        (lambda x: x.long().double(), "long"),
        (lambda x: x.to(torch.int64).double(), "to, which gives no floating point numbers"),
        (lambda x: x + x.data, "the property data"),
        (lambda x: torch.zeros_like(x).copy_(x), "copy_"),
        (lambda x: torch.as_tensor(x.tolist()), "tolist"),
        (lambda x: F.linear(x, x[:1]), "linear to two tensors that depend on the input"),
        (
            lambda x: F.batch_norm(x, torch.zeros(4, dtype=D), torch.ones(4, dtype=D), weight=x[0]),
            "batch_norm with a scale or a shift",
        ),
        (lambda x: x.norm(dim=1, keepdim=True), "norm"),
        (lambda x: x + x.max(), "max over the samples of the batch"),
        (lambda x: x.clamp(x.mean(), 2 + x.mean()), "clamp with a bound that depends on the input"),
        (lambda x: torch.ops.aten.gelu(x), "gelu"),
    ],
)
def test_an_operation_that_is_not_piecewise_linear_is_named(model, operation):
    x = randn(3, 4, seed=0)
    with pytest.raises(ValueError, match=operation):
        affine_piece(model, x)
    assert not is_piecewise_linear(model, x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_since_it_cannot_be_watched():
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.GELU()))
    answer = is_piecewise_linear(model, torch.ones(1, 4))
    assert not answer
    assert answer.offenders[0].path == "1"
    assert "TorchScript" in repr(answer)


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x - x.mean(0),
        lambda x: x.flip(0),
        lambda x: x.cumsum(0),
        lambda x: x.mean(0, keepdim=True).expand_as(x),
        lambda x: torch.relu(x.roll(1, 0)),
    ],
)
@pytest.mark.parametrize("same", [False, True], ids=["different", "equal"])
def test_a_model_that_mixes_samples_is_refused_even_when_they_are_equal(model, same):
    x = torch.ones(3, 2, dtype=D) if same else randn(3, 2, seed=0)
    with pytest.raises(ValueError, match=r"each sample of the batch alone|its own sample"):
        affine_piece(model, x)


@pytest.mark.parametrize(
    "model",
    [
        lambda x: torch.relu(x) + torch.relu(-x) - x.abs(),
        lambda x: 1.1 * torch.relu(3 * x) - 0.6 * torch.relu(3 * x) - 0.5 * torch.relu(3 * x),
    ],
)
def test_what_rounding_leaves_of_terms_that_cancel_is_not_taken_for_mixed_samples(model):
    for seed in range(50):
        affine_piece(model, randn(8, 2, seed=seed))


def test_a_switch_that_mixes_samples_is_refused_by_the_polyhedron():
    with pytest.raises(ValueError, match=r"each sample of the batch alone|its own sample"):
        polyhedron(lambda x: torch.relu(x - x.mean(0)), randn(3, 2, seed=0))
    with pytest.raises(ValueError, match="must keep the batch of 3 as its first dimension, got shape"):
        activation_pattern(lambda x: x + torch.relu(x.sum()), randn(3, 2, seed=0))


def test_a_stopped_gradient_and_hidden_randomness_are_refused():
    def stopped(x):
        with torch.no_grad():
            y = 2 * x
        return x + y

    for model in (stopped, lambda x: x + torch.randn(4, dtype=D)):
        with pytest.raises(ValueError, match="must be a fixed function of its own sample, and gradients must flow"):
            affine_piece(model, randn(3, 4, seed=0))


class Reversed(torch.autograd.Function):
    """The value of x, and a gradient that is not its own."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        return -upstream


@pytest.mark.parametrize("ask", [affine_piece, lambda model, x: polyhedron(lambda x: torch.relu(model(x)), x)])
def test_a_wrong_gradient_is_refused_at_zero_too_where_it_does_not_show_in_the_value(ask):
    def stopped(x):
        with torch.no_grad():
            return 2 * x

    for model in (stopped, Reversed.apply):
        with pytest.raises(ValueError, match="must be a fixed function of its own sample, and gradients must flow"):
            ask(model, torch.zeros(3, 4, dtype=D))


@pytest.mark.parametrize("function", [torch.sin, torch.relu])
def test_a_transform_inside_the_model_is_refused_since_its_tensors_cannot_be_watched(function):
    def model(x):
        return x + torch.vmap(function)(x)

    x = torch.zeros(3, 4, dtype=D)
    assert "inside a transform of torch.func, which cannot be watched" in repr(is_piecewise_linear(model, x))
    for ask in (affine_piece, polyhedron, activation_pattern):
        with pytest.raises(ValueError, match=r"inside a transform of torch\.func, which cannot"):
            ask(model, x)


def test_a_model_that_rounds_to_another_type_inside_is_checked_to_the_digits_of_that_type():
    net = mlp([4, 8, 2], seed=0).float()
    x = randn(3, 4, seed=0)
    inner = [polyhedron(lambda x: net(x.float()).double(), x), polyhedron(lambda x: net(x.float()), x)]
    alone = polyhedron(net, x.float())
    assert all(torch.allclose(region.H.float(), alone.H) and region.H.dtype == D for region in inner)
    piece = affine_piece(lambda x: net(x.float()).double(), x)
    assert torch.allclose(piece.A.float(), affine_piece(net, x.float()).A)
    assert piece.A.dtype == D


def test_detach_is_looked_through_since_the_value_depends_on_the_input_all_the_same():
    x = randn(3, 4, seed=0)
    piece = affine_piece(lambda x: x + x.detach(), x)
    assert torch.equal(piece.A[0], 2 * torch.eye(4, dtype=D))


def test_writing_in_place_and_into_a_part_is_followed():
    def model(x):
        y = torch.zeros(len(x), 5, dtype=D)
        y[:, 1:3] = 2 * x[:, :2]
        y[:, 0] += x[:, 3]
        view = y[:, 4]
        view.add_(x[:, 2])
        return torch.relu_(y)

    x = randn(20, 4, seed=0)
    piece = affine_piece(model, x)
    assert torch.equal(piece(x), model(x))
    assert torch.equal(piece.A, by_rows(model, x))


@pytest.mark.parametrize("ask", [is_piecewise_linear, activation_pattern, affine_piece, polyhedron])
@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (torch.ones(2, 2, dtype=torch.int64), TypeError, "x must be floating point, got torch.int64"),
        (torch.ones(2, 2, dtype=torch.complex64), TypeError, "x must be floating point, got torch.complex64"),
        ([[1.0]], TypeError, "x must be a torch tensor, got list"),
        (np.ones((2, 2)), TypeError, "x must be a torch tensor, got ndarray"),
        (torch.tensor(1.0), ValueError, r"x must have a batch dimension, \(B, \*input_shape\), got a scalar"),
        (torch.tensor([[math.nan]]), ValueError, "x must be finite, got NaN or an infinity"),
        (torch.tensor([[math.inf]]), ValueError, "x must be finite, got NaN or an infinity"),
    ],
)
def test_bad_input_is_refused_with_what_it_was_and_what_was_wanted(ask, x, kind, message):
    with pytest.raises(kind, match=message):
        ask(torch.relu, x)


@pytest.mark.parametrize("ask", [is_piecewise_linear, activation_pattern, affine_piece, polyhedron])
def test_an_output_that_is_no_batch_is_refused(ask):
    x = torch.ones(3, 2)
    with pytest.raises(TypeError, match="model must return one tensor, got tuple"):
        ask(lambda x: (x, x), x)
    with pytest.raises(ValueError, match=r"model must return one output for each of the 3 samples, got shape \(\)"):
        ask(lambda x: x.sum(), x)


def test_pieces_and_polyhedra_refuse_points_of_another_shape_or_type():
    piece, region = (
        AffinePiece(torch.ones(2, 1, 3), torch.ones(2, 1)),
        Polyhedron(torch.ones(2, 1, 3), torch.ones(2, 1)),
    )
    for call, name in ((piece, "x"), (region.contains, "z")):
        with pytest.raises(ValueError, match=rf"{name} must have 2 samples of 3 numbers, got shape \(2, 4\)"):
            call(torch.ones(2, 4))
        with pytest.raises(ValueError, match=rf"{name} must have 2 samples of 3 numbers, got shape \(3,\)"):
            call(torch.ones(3))
        with pytest.raises(TypeError, match=rf"{name} must be torch.float32, got torch.float64"):
            call(torch.ones(2, 3, dtype=D))
    assert region.contains(torch.zeros(2, 3)).tolist() == [True, True]
    assert region.contains(torch.ones(2, 3)).tolist() == [False, False]
    assert region.contains(torch.ones(2, 3), tol=2.0).tolist() == [True, True]


@pytest.mark.parametrize(
    ("model", "x", "kind", "message"),
    [
        (nn.Linear(2, 1), torch.ones(2), TypeError, "model must be an nn.Sequential of nn.Linear and ReLU, got Linear"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Tanh()),
            torch.ones(2),
            TypeError,
            "model must hold nn.Linear and ReLU alone, got module '1' of type Tanh",
        ),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
            torch.ones(2),
            ValueError,
            "nn.Linear and ReLU must take turns, nn.Linear first; module '1' is Linear",
        ),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(2), ValueError, "model must end with nn.Linear"),
        (
            nn.Sequential(nn.Linear(2, 2)),
            torch.ones(1, 2),
            ValueError,
            r"x must be one input of shape \(n,\), got shape \(1, 2\)",
        ),
        (
            nn.Sequential(nn.Linear(2, 2)),
            torch.ones(3),
            ValueError,
            "x must have the 2 numbers that module '0' takes, got 3",
        ),
        (nn.Sequential(nn.Linear(2, 2)), torch.tensor([1.0, math.nan]), ValueError, "x must be finite"),
        (nn.Sequential(nn.Linear(2, 2)), torch.ones(2, dtype=torch.int64), TypeError, "x must be floating point"),
        (nn.Sequential(nn.Linear(2, 2)), [1.0, 2.0], TypeError, "x must be a torch tensor, got list"),
    ],
)
def test_the_thin_network_refuses_what_it_cannot_thin(model, x: Tensor, kind, message):
    with pytest.raises(kind, match=message):
        active_subnetwork(model, x)
