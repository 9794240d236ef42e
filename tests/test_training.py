"""The chapter on training: its theorems on generated inputs and at their edges, and its claims on the digits."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.func import hessian, jacrev
from torch.nn import Flatten, Module, Sequential, Sigmoid

import pwl_lib.functional as F
from pwl_lib import nn
from pwl_lib.convolution import conv2d_jacobians, gather_matrix, kernel_matrix
from pwl_lib.kronecker import kron, kron_matvec, unvec, vec, vec_permutation
from pwl_lib.losses import softmax_jacobian
from pwl_lib.pooling import selection_matrix

BATCH = 50
_digits = load_digits()
X = torch.tensor(_digits.images / 16)[:, None]
Y = torch.tensor(_digits.target)

numbers = st.floats(-1e3, 1e3)
seeds = st.integers(0, 2**32 - 1)
few = st.integers(1, 3)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    w = w.detach().requires_grad_()
    return torch.autograd.grad(f(w), w)[0]


# --- paths ----------------------------------------------------------------------------------------


def small_net(seed: int) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """An image, the Jacobians of convolution, ReLU, max pooling and linear layer, the gradient in the logits, and that in the image."""
    x = normal(1, 3, 4, seed=seed).requires_grad_()
    kernels, W = normal(2, 1, 2, 2, seed=seed + 1), normal(3, 4, seed=seed + 2)
    y = F.conv2d(x, kernels)
    h = F.max_pool2d(F.relu(y), 2, stride=1)
    logits = F.linear(vec(h), W)
    z = F.cross_entropy(logits, torch.tensor(seed % 3))
    by_logits, by_image = torch.autograd.grad(z, (logits, x))
    chain = [
        conv2d_jacobians(x.detach(), kernels)[0],
        vec(y.detach() > 0).double().diag(),
        selection_matrix(F.relu(y).detach(), 2, stride=1).to_dense(),
        W,
    ]
    return x.detach(), chain, by_logits, by_image


def weights_of_paths(chain: list[Tensor], pixel: int) -> Iterator[tuple[int, float]]:
    """The output and the weight of every path from a pixel, one by one; a path ends where an edge is 0."""
    paths: list[tuple[int, float]] = [(pixel, 1.0)]
    for J in chain:
        paths = [
            (to, weight * J[to, unit].item())
            for unit, weight in paths
            for to in range(len(J))
            if J[to, unit].item() != 0
        ]
    yield from paths


@pytest.mark.theorem("prop-path-sum")
@given(seeds)
def test_the_gradient_of_a_pixel_is_the_sum_over_its_open_paths(seed: int) -> None:
    x, chain, by_logits, by_image = small_net(seed)
    counts = torch.eye(x.numel(), dtype=torch.float64)
    for J in chain:
        counts = (J != 0).double() @ counts
    for pixel in range(x.numel()):
        paths = list(weights_of_paths(chain, pixel))
        total = sum(weight * by_logits[c].item() for c, weight in paths)
        assert math.isclose(total, vec(by_image)[pixel].item(), rel_tol=1e-9, abs_tol=1e-12)
        assert counts[:, pixel].tolist() == [sum(c == k for c, _ in paths) for k in range(3)]


@pytest.mark.theorem("prop-path-sum")
def test_at_kinks_and_ties_the_sum_over_paths_is_what_backprop_computes() -> None:
    x = torch.ones(1, 3, 4, dtype=torch.float64, requires_grad=True)  # every window of the pooling is a tie
    kernels = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]], [[[1.0, 0.0], [0.0, 1.0]]]], dtype=torch.float64)
    y = F.conv2d(x, kernels)
    assert (y[0] == 0).all()  # and every unit of the first channel is at its kink
    h = F.max_pool2d(F.relu(y), 2, stride=1)
    (by_image,) = torch.autograd.grad(h.sum(), x)
    chain = [conv2d_jacobians(x.detach(), kernels)[0], vec(y > 0).double().diag()]
    chain.append(selection_matrix(F.relu(y).detach(), 2, stride=1).to_dense())
    for pixel in range(12):
        assert sum(weight for _, weight in weights_of_paths(chain, pixel)) == vec(by_image)[pixel]


def test_the_traced_gradient_of_the_example_has_the_numbers_of_the_chapter() -> None:
    A = torch.tensor([[1.0, 3, 1, 4], [2, 8, 5, 1], [3, 2, 0, 3]], dtype=torch.float64)
    kernels = torch.tensor([[[[1.0, 0], [-1, 1]]], [[[0, 2], [-1, 0]]]], dtype=torch.float64)
    W = torch.tensor([[1.0, 0, -1, 1], [-1, 1, 0, 1], [0, -1, 1, 0]], dtype=torch.float64) / 10
    target = torch.tensor(2)

    def loss(x: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(F.conv2d(x, kernels)), 2, stride=1)
        return F.cross_entropy(F.linear(h.flatten(), W), target)

    y = F.conv2d(A[None], kernels)
    assert y.tolist() == [[[7, 0, -3], [1, 6, 8]], [[4, -6, 3], [13, 8, 2]]]
    M = gather_matrix((1, 3, 4), 2, dtype=torch.float64).to_dense()
    D, S = vec(y > 0).double().diag(), selection_matrix(F.relu(y), 2, stride=1).to_dense()
    logits = W @ S @ D @ vec(y)
    t = torch.eye(3, dtype=torch.float64)[target]
    p = logits.softmax(0)
    torch.testing.assert_close(softmax_jacobian(logits).T @ (-t / p), p - t, rtol=0, atol=1e-15)
    traced = M.T @ kron(kernel_matrix(kernels), torch.eye(6).double()) @ D @ S.T @ W.T @ (p - t)
    by_autograd = gradient(loss, A[None])
    torch.testing.assert_close(unvec(traced, (1, 3, 4)), by_autograd, rtol=0, atol=1e-12)
    by_hand = (W[:, 0] * 1 + W[:, 2] * 2) @ (p - t)  # two open starts, with the weights 1 and 2
    assert abs(by_autograd[0, 1, 1] - by_hand) < 1e-12
    step = 1e-5
    for i, j in itertools.product(range(3), range(4)):  # the image is on a kink, which no window selects
        nudge = torch.zeros(1, 3, 4, dtype=torch.float64)
        nudge[0, i, j] = step
        difference = (loss(A[None] + nudge) - loss(A[None] - nudge)) / (2 * step)
        assert abs(difference - by_autograd[0, i, j]) < 1e-9


def test_the_gradient_of_a_digit_goes_through_the_matrices_of_the_whole_network() -> None:
    torch.manual_seed(1)
    net, x, target = convolutional().double(), X[7].clone().requires_grad_(), Y[7]
    y1 = net[0](x)
    y2 = net[2](F.relu(y1))
    h = F.max_pool2d(F.relu(y2), 2)
    logits = net[6](h.flatten())
    (by_autograd,) = torch.autograd.grad(F.cross_entropy(logits, target), x)
    first, second, W = (net[n].weight.detach() for n in (0, 2, 6))
    M1, M2 = (gather_matrix((d, 8, 8), 3, padding=1, dtype=torch.float64) for d in (1, 16))
    S, one = selection_matrix(F.relu(y2).detach(), 2), torch.eye(64, dtype=torch.float64)

    def back(g: Tensor) -> Tensor:
        g = M2.T @ kron_matvec(kernel_matrix(second), one, vec(y2 > 0) * (S.T @ g))
        return unvec(M1.T @ kron_matvec(kernel_matrix(first), one, vec(y1 > 0) * g), (1, 8, 8))

    g = W.T @ (logits.softmax(0).detach() - torch.eye(10).double()[target])
    torch.testing.assert_close(back(g[vec_permutation(h.shape)]), by_autograd, rtol=0, atol=1e-12)
    assert not torch.allclose(back(g), by_autograd, rtol=0.1)  # torch's order taken for vec's


# --- steps ----------------------------------------------------------------------------------------


@pytest.mark.theorem("thm-descent-step")
@given(seeds, st.integers(1, 4), st.floats(1e-3, 3))
def test_a_step_lowers_the_loss_by_eta_times_the_squared_gradient_up_to_a_second_order_term(
    seed: int, n: int, share: float
) -> None:
    root = normal(n, n, seed=seed)
    H, b, w = root + root.T, normal(n, seed=seed + 1), normal(n, seed=seed + 2)  # saddles as well as bowls
    beta = torch.linalg.eigvalsh(H).abs().max()
    curved = normal(n, seed=seed + 3)
    for z, bound in (
        (lambda w: w @ H @ w / 2 - b @ w, beta),
        (lambda w: (curved * w).cos().sum() + b @ w, curved.square().max()),
    ):
        eta, g = share / bound, gradient(z, w)
        fall = z(w) - z(w - eta * g)
        square = g @ g
        room = 1e-9 * (1 + abs(z(w)) + eta * square)
        assert abs(fall - eta * square) <= bound * eta**2 / 2 * square + room
        assert fall >= eta * (1 - bound * eta / 2) * square - room
        assert z(w) - z(w - g / bound) >= square / (2 * bound) - room


@pytest.mark.theorem("thm-descent-step")
@given(st.floats(1e-2, 1e2), st.floats(0.1, 10))
def test_no_longer_step_than_two_over_beta_is_safe_for_all(beta: float, w: float) -> None:
    z = lambda w: beta * w**2 / 2
    for share, rises in ((1.9, False), (2.1, True)):
        after = w - share / beta * beta * w
        assert (z(after) > z(w)) == rises
    assert math.isclose(z(w - 2 / beta * beta * w), z(w), rel_tol=1e-12)  # equality in the theorem
    for eta in (0.5 / beta, 1 / beta, 3 / beta):
        fall = z(w) - z(w - eta * beta * w)
        assert math.isclose(fall, eta * (1 - beta * eta / 2) * (beta * w) ** 2, rel_tol=1e-9, abs_tol=1e-9 * z(w))


@pytest.mark.theorem("cor-descent-run")
@given(seeds, st.integers(1, 4), st.integers(1, 40))
def test_after_k_steps_the_smallest_gradient_is_bounded(seed: int, n: int, steps: int) -> None:
    a, w = normal(n, seed=seed), 3 * normal(n, seed=seed + 1)
    z, beta, least = (lambda w: (a * w).cos().sum()), a.square().max(), -float(n)
    start, squares = z(w), []
    for _ in range(steps):
        g = gradient(z, w)
        squares.append((g @ g).item())
        w = w - g / beta
    assert min(squares) <= 2 * beta * (start - least) / steps * (1 + 1e-12)


@pytest.mark.theorem("prop-linear-smooth")
@given(seeds, st.integers(2, 4), st.integers(1, 3), st.integers(1, 5), st.floats(0.1, 20))
def test_the_gradient_of_a_linear_classifier_is_lipschitz(
    seed: int, classes: int, inputs: int, samples: int, size: float
) -> None:
    x = normal(samples, inputs, seed=seed)
    targets = torch.arange(samples) % classes
    z = lambda W: F.cross_entropy(F.linear(x, W), targets)
    beta = torch.linalg.eigvalsh(x.T @ x / samples).max() / 2
    V, W = (size * normal(classes, inputs, seed=seed + k) for k in (1, 2))
    assert (gradient(z, V) - gradient(z, W)).norm() <= beta * (V - W).norm() * (1 + 1e-9)
    values = torch.linalg.eigvalsh(hessian(z)(W).reshape(W.numel(), W.numel()))
    assert values.min() >= -1e-9 * beta
    assert values.max() <= beta * (1 + 1e-9)


@pytest.mark.theorem("prop-linear-smooth")
def test_the_constant_of_a_linear_classifier_is_attained() -> None:
    x = normal(4, 3, seed=0)
    z = lambda W: F.cross_entropy(F.linear(x, W), torch.zeros(4, dtype=torch.long))
    beta = torch.linalg.eigvalsh(x.T @ x / 4).max() / 2
    H = hessian(z)(torch.zeros(2, 3, dtype=torch.float64)).reshape(6, 6)  # two classes, all logits 0
    torch.testing.assert_close(torch.linalg.eigvalsh(H).max(), beta)


def test_steps_of_one_over_beta_keep_the_promise_on_the_digits() -> None:
    images = X.flatten(1)
    beta = torch.linalg.eigvalsh(images.T @ images / len(images)).max() / 2
    z = lambda W: F.cross_entropy(F.linear(images, W), Y)
    W = torch.zeros(10, 64, dtype=torch.float64)
    for _ in range(30):
        g = gradient(z, W)
        assert z(W) - z(W - g / beta) >= g.square().sum() / (2 * beta)
        W = W - g / beta


def test_a_short_step_of_the_whole_network_lowers_the_loss_by_eta_times_the_squared_gradient() -> None:
    torch.manual_seed(0)
    net = convolutional().double()
    start = F.cross_entropy(net(X[:64]), Y[:64])
    gradients = torch.autograd.grad(start, list(net.parameters()))
    square = sum(g.square().sum().item() for g in gradients)
    eta = 1e-4
    with torch.no_grad():
        for w, g in zip(net.parameters(), gradients, strict=True):
            w -= eta * g
    fall = start.item() - F.cross_entropy(net(X[:64]), Y[:64]).item()
    assert abs(fall / (eta * square) - 1) < 1e-3


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
def test_the_step_by_hand_is_that_of_sgd_and_the_first_step_of_adam_is_the_sign(optimiser: Any) -> None:
    torch.manual_seed(0)
    net = convolutional().double()
    before = [w.detach().clone() for w in net.parameters()]
    steps = optimiser(net.parameters(), lr=0.01)
    F.cross_entropy(net(X[:64]), Y[:64]).backward()
    steps.step()
    for w, old in zip(net.parameters(), before, strict=True):
        assert w.grad is not None
        large = w.grad.abs() > 1e-4
        wanted = w.grad if optimiser is torch.optim.SGD else w.grad.sign()
        torch.testing.assert_close(w.detach()[large], (old - 0.01 * wanted)[large], rtol=0, atol=1e-5)


# --- depth ----------------------------------------------------------------------------------------


@pytest.mark.theorem("thm-sigmoid-quarter")
@given(st.floats(-700, 700))
def test_the_slope_of_the_sigmoid_is_at_most_a_quarter_and_falls_exponentially(value: float) -> None:
    x = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    y = x.sigmoid()
    (slope,) = torch.autograd.grad(y, x)
    rest = (-x).detach().sigmoid()  # 1 - y without cancellation
    torch.testing.assert_close(
        y.detach() * rest, math.exp(-abs(value)) / (1 + torch.tensor(math.exp(-abs(value))).double()) ** 2
    )
    assert 0 <= slope <= 0.25
    assert y.detach() * rest <= math.exp(-abs(value)) * (1 + 1e-12)
    if abs(value) > 1e-6:
        assert slope < 0.25


@pytest.mark.theorem("thm-sigmoid-quarter")
def test_the_slope_of_the_sigmoid_is_a_quarter_at_zero_alone() -> None:
    x = torch.tensor([0.0, -1e-3, 1e-3, 40.0, -40.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(x.sigmoid().sum(), x)
    assert slope[0] == 0.25
    assert (slope[1:] < 0.25).all()
    assert (slope[3:] < 1e-16).all()


@pytest.mark.theorem("cor-sigmoid-chain")
@given(
    seeds, st.lists(st.integers(1, 4), min_size=1, max_size=7), st.floats(0.1, 10), st.sampled_from(["sigmoid", "relu"])
)
def test_a_chain_of_layers_keeps_the_bound_on_its_gradient(seed: int, sizes: list[int], gain: float, name: str) -> None:
    activation, factor = {"sigmoid": (torch.sigmoid, 0.25), "relu": (torch.relu, 1.0)}[name]
    first = normal(sizes[0], seed=seed).requires_grad_()
    z, bound = first, 1.0
    for k, (n, m) in enumerate(itertools.pairwise(sizes)):
        W = gain * normal(m, n, seed=seed + 2 * k + 1)
        z = W @ activation(z) + normal(m, seed=seed + 2 * k + 2)
        bound *= factor * torch.linalg.matrix_norm(W, 2).item()
    upstream = normal(sizes[-1], seed=seed + 99)
    (g,) = torch.autograd.grad(z, first, upstream)
    assert g.norm() <= bound * upstream.norm() * (1 + 1e-9)


@pytest.mark.theorem("cor-sigmoid-chain")
@pytest.mark.parametrize("layers", [1, 2, 5, 12])
def test_the_bound_of_a_chain_of_sigmoids_is_attained_where_all_pre_activations_are_zero(layers: int) -> None:
    first = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    z = first
    for _ in range(layers - 1):
        z = 3 * z.sigmoid() - 1.5
    (g,) = torch.autograd.grad(z, first)
    assert math.isclose(g.item(), (3 / 4) ** (layers - 1), rel_tol=1e-12)
    (through_relu,) = torch.autograd.grad((first + 1).relu().relu(), first)
    assert through_relu.item() == 1  # an active path
    assert torch.autograd.grad((first - 1).relu(), first)[0].item() == 0  # a closed one


@pytest.mark.theorem("prop-random-layer")
@given(seeds, few, few, st.floats(0.1, 3))
def test_random_weights_change_the_squared_norm_by_the_variance_times_the_squared_slopes(
    seed: int, m: int, n: int, deviation: float
) -> None:
    g, d = normal(m, seed=seed), normal(n, seed=seed + 1)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=m * n)), dtype=torch.float64)
    W = deviation * signs.reshape(-1, m, n)  # all matrices of equally likely signs: the mean is exact
    mean = (d * (W.mT @ g)).square().sum(1).mean()
    torch.testing.assert_close(mean, deviation**2 * g.square().sum() * d.square().sum())


@pytest.mark.theorem("prop-random-layer")
def test_with_variance_two_over_n_half_a_mask_keeps_the_norm_and_sigmoids_lose_an_eighth_root() -> None:
    n, g = 64, normal(48, seed=0)
    W = normal(2_000, 48, n, seed=1).mul_((2 / n) ** 0.5)
    passed = W.mT @ g
    half = torch.arange(n) % 2
    for slopes, wanted in ((half.double(), 1.0), (torch.full((n,), 0.25, dtype=torch.float64), 1 / 8)):
        mean = (slopes * passed).square().sum(1).mean() / g.square().sum()
        assert abs(mean / wanted - 1) < 0.04


def deep(activation: Any, depth: int, gain: float, width: int = 32) -> Sequential:
    sizes = [64, *[width] * depth, 10]
    layers: list[Module] = []
    for n, m in itertools.pairwise(sizes):
        layers += [nn.Linear(n, m, dtype=torch.float64), activation()]
        torch.nn.init.normal_(layers[-2].weight, std=gain / n**0.5)
        torch.nn.init.zeros_(layers[-2].bias)
    return Sequential(Flatten(), *layers[:-1])


def shrinking(activation: Any, depth: int, gain: float, seed: int) -> float:
    torch.manual_seed(seed)
    net = deep(activation, depth, gain)
    rows = torch.randperm(len(X))[:64]
    h, kept = X[rows], []
    for layer in net:
        h = layer(h)
        if isinstance(layer, nn.Linear):
            kept.append(h)
    first, last = torch.autograd.grad(F.cross_entropy(h, Y[rows]), [kept[0], kept[-2]])
    return math.log10(first.norm() / last.norm())


def test_gradients_vanish_through_sigmoids_at_every_scale_of_the_weights() -> None:
    for gain in (1.0, 2**0.5, 4.0):
        for depth in (5, 10, 20):
            sigmoid = [shrinking(Sigmoid, depth, gain, seed) for seed in range(3)]
            relu = [shrinking(nn.ReLU, depth, gain, seed) for seed in range(3)]
            assert max(sigmoid) < -0.1 * (depth - 1)
            assert max(sigmoid) < min(relu)


def test_relu_keeps_gradients_at_one_scale_of_the_weights_only() -> None:
    per_layer = {gain: sum(shrinking(nn.ReLU, 20, gain, seed) for seed in range(3)) / 57 for gain in (1.0, 2**0.5, 4.0)}
    assert per_layer[1.0] < -0.1
    assert abs(per_layer[2**0.5]) < 0.05
    assert per_layer[4.0] > 0.3


def test_about_half_of_the_relus_of_a_random_network_are_active() -> None:
    torch.manual_seed(0)
    h = X
    for layer in deep(nn.ReLU, 20, 2**0.5):
        h = layer(h)
        if isinstance(layer, nn.ReLU):
            assert 0.25 < (h > 0).double().mean() < 0.75


def test_eight_layers_of_sigmoids_do_not_learn_where_eight_of_relus_do() -> None:
    right = {}
    for activation in (Sigmoid, nn.ReLU):
        torch.manual_seed(0)
        net = deep(activation, 8, 2**0.5)
        for _ in range(300):
            i = torch.randint(len(Y), (64,))
            gradients = torch.autograd.grad(F.cross_entropy(net(X[i]), Y[i]), list(net.parameters()))
            with torch.no_grad():
                for w, g in zip(net.parameters(), gradients, strict=True):
                    w -= 0.1 * g
        right[activation] = (net(X).argmax(1) == Y).double().mean()
    assert right[Sigmoid] < 0.2
    assert right[nn.ReLU] > 0.8


# --- the digits -----------------------------------------------------------------------------------


def convolutional(first: int = 16, second: int = 16, layers: Any = nn) -> Sequential:
    return Sequential(
        layers.Conv2d(1, first, 3, padding=1),
        layers.ReLU(),
        layers.Conv2d(first, second, 3, padding=1),
        layers.ReLU(),
        layers.MaxPool2d(2),
        Flatten(),
        layers.Linear(16 * second, 10),
    )


def dense(width: int) -> Sequential:
    return Sequential(Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def split(seed: int) -> tuple[Tensor, Tensor]:
    train_rows, test_rows = train_test_split(torch.arange(len(Y)), test_size=0.25, stratify=Y, random_state=seed)
    return train_rows, test_rows


def train(net: Module, loss: Module, rows: Tensor, epochs: int, x: Tensor = X) -> Iterator[float]:
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    shorter = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0, epochs * -(-len(rows) // BATCH))
    for _ in range(epochs):
        for i in rows[torch.randperm(len(rows))].split(BATCH):
            optimiser.zero_grad()
            z = loss(net(x[i]), Y[i])
            z.backward()
            optimiser.step()
            shorter.step()
            yield z.item()


@torch.no_grad()
def accuracy(net: Module, rows: Tensor, x: Tensor = X) -> float:
    return float((net(x[rows]).argmax(1) == Y[rows]).double().mean())


def test_a_network_of_our_layers_is_right_on_97_percent_of_held_out_digits_in_under_20_seconds() -> None:
    train_rows, test_rows = split(0)
    torch.manual_seed(0)
    net = convolutional().double()
    begin = time.process_time()
    losses = list(train(net, nn.CrossEntropyLoss(), train_rows, 15))
    assert (time.process_time() - begin) / torch.get_num_threads() < 20
    assert accuracy(net, test_rows) >= 0.97
    assert accuracy(net, train_rows) > 0.99
    assert losses[-1] < losses[0] / 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_same_run_with_torchs_layers_has_the_same_losses_for_50_steps(dtype: torch.dtype) -> None:
    losses = []
    for layers in (nn, torch.nn):
        torch.manual_seed(0)
        net = convolutional(layers=layers).to(dtype)
        run = train(net, layers.CrossEntropyLoss(), split(0)[0], 15, X.to(dtype))
        losses.append(torch.tensor(list(itertools.islice(run, 50)), dtype=torch.float64))
    ours, theirs = losses
    assert (ours - theirs).abs().max() < 1e-5
    assert ours[-1] < ours[0] / 2


def test_weights_go_from_torchs_layers_to_ours_and_back() -> None:
    torch.manual_seed(0)
    ours, theirs, again = convolutional(), convolutional(layers=torch.nn), convolutional()
    theirs.load_state_dict(ours.state_dict())
    again.load_state_dict(theirs.state_dict())
    x = X[:100].float()
    with torch.no_grad():
        assert torch.equal(again(x), ours(x))
        torch.testing.assert_close(theirs(x), ours(x))
    assert list(theirs.state_dict()) == list(ours.state_dict())


def test_small_kernels_against_full_connections_at_equal_parameters_and_at_equal_multiplications() -> None:
    nets = {"kernels": lambda: convolutional(8, 8), "dense": lambda: dense(26), "wide": lambda: dense(578)}
    parameters = {name: sum(w.numel() for w in make().parameters()) for name, make in nets.items()}
    kernels = 64 * 8 * 9 + 64 * 8 * 8 * 9 + 128 * 10
    assert abs(parameters["dense"] / parameters["kernels"] - 1) < 0.01
    assert abs((64 + 10) * 578 / kernels - 1) < 0.01
    framed = torch.nn.functional.pad(X, (1, 1, 1, 1)).float()
    shifted = [framed[..., i : i + 8, j : j + 8] for i, j in ((0, 1), (2, 1), (1, 0), (1, 2))]
    centred: dict[str, list[float]] = {name: [] for name in nets}
    moved: dict[str, list[float]] = {name: [] for name in nets}
    for seed in range(5):
        rows, held_out = split(seed)
        for name, make in nets.items():
            torch.manual_seed(seed)
            net = make()
            list(train(net, nn.CrossEntropyLoss(), rows, 10, X.float()))
            centred[name].append(accuracy(net, held_out, X.float()))
            moved[name].append(sum(accuracy(net, held_out, x) for x in shifted) / 4)
    mean = {name: sum(values) / 5 for name, values in centred.items()}
    assert mean["kernels"] > mean["dense"] + 0.005
    assert mean["wide"] > mean["kernels"] - 0.005
    shifted_mean = {name: sum(values) / 5 for name, values in moved.items()}
    assert shifted_mean["kernels"] > max(shifted_mean["dense"], shifted_mean["wide"]) + 0.05
    assert max(moved["kernels"]) < 0.75


# --- what goes wrong ------------------------------------------------------------------------------


def test_gradients_add_up_until_they_are_cleared() -> None:
    torch.manual_seed(0)
    net = dense(8).double()
    for _ in range(2):
        F.cross_entropy(net(X[:32]), Y[:32]).backward()
    twice = net[1].weight.grad.clone()
    net.zero_grad()
    F.cross_entropy(net(X[:32]), Y[:32]).backward()
    torch.testing.assert_close(twice, 2 * net[1].weight.grad)


def test_units_that_begin_equal_stay_equal() -> None:
    net = dense(6).double()
    for w in net.parameters():
        torch.nn.init.constant_(w, 0.1)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(5):
        optimiser.zero_grad()
        F.cross_entropy(net(X[:32]), Y[:32]).backward()
        optimiser.step()
    units = net[1].weight.detach()
    torch.testing.assert_close(units, units[:1].expand_as(units), rtol=0, atol=1e-12)
    assert (units - 0.1).abs().max() > 1e-4


@given(seeds)
def test_the_two_sides_of_a_relu_unit_have_equal_products_of_weights_and_gradients(seed: int) -> None:
    W1, b1, W2, x = (normal(*shape, seed=seed + k) for k, shape in enumerate(((4, 3), (4,), (2, 4), (5, 3))))
    z = lambda W1, b1, W2: F.linear(F.relu(F.linear(x, W1, b1)), W2).sin().sum()
    g1, gb, g2 = jacrev(z, (0, 1, 2))(W1, b1, W2)
    torch.testing.assert_close((W1 * g1).sum(1) + b1 * gb, (W2 * g2).sum(0))
