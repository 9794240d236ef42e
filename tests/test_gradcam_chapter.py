"""The chapter on Grad-CAM++: its theorems on generated inputs and at the edges, and its claims on a trained network."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import sympy as sp
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pwl_lib import nn as book
from pwl_lib.gradcam import (
    GradCAM,
    GradCAMPlusPlus,
    LayerCAM,
    gradcam_plusplus_weights,
    gradcam_plusplus_weights_exact,
    gradcam_weights,
    tail_certificate,
    weighted_map,
)

numbers = st.floats(-2, 2, allow_subnormal=False)
positive = st.floats(0.1, 3)


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def maps(*shape: int, low: float = -2.0) -> st.SearchStrategy[Tensor]:
    count = math.prod(shape)
    entry = st.floats(low, 2, allow_subnormal=False)
    return st.lists(entry, min_size=count, max_size=count).map(lambda row: tensor(row).reshape(shape))


def nested(value: Tensor, t: Tensor, order: int) -> list[Tensor]:
    """The derivatives of each row, one after another."""
    found = []
    for _ in range(order):
        if not value.requires_grad:
            found.append(torch.zeros_like(t))
            continue
        (value,) = torch.autograd.grad(value.sum(), t, create_graph=True, materialize_grads=True)
        found.append(value.detach())
    return found


def brute_force(
    tail: Callable[[Tensor], Tensor], A: Tensor, c: int, smooth: Callable[[Tensor], Tensor] = torch.exp
) -> Tensor:
    """The paper's weights over Y, for one feature map: every entry moves on its own."""
    moves = torch.eye(A.numel(), dtype=A.dtype).reshape(-1, *A.shape)
    t = torch.zeros(len(moves), dtype=A.dtype, requires_grad=True)
    Y = smooth(tail(A + t[:, None, None, None] * moves))[:, c]
    first, second, third = nested(Y, t, 3)
    total = A.sum((1, 2))[:, None].expand(-1, A[0].numel()).flatten()
    alpha = torch.where(first > 0, second / (2 * second + total * third), 0)
    return (alpha * first.relu() / Y.detach()).unflatten(0, (len(A), -1)).sum(1)


def direction_error(w: Tensor, wanted: Tensor) -> float:
    return float((w / w.norm() - wanted / wanted.norm()).norm())


# --- the derivatives of the exponential -----------------------------------------------------------


def bell(s: list[Any]) -> Any:
    found: list[Any] = [1]
    for n in range(len(s)):
        found.append(sum(math.comb(n, k) * found[n - k] * s[k] for k in range(n + 1)))
    return found[-1]


@pytest.mark.theorem("thm-exp-derivatives")
def test_the_derivatives_of_an_exponential_in_symbols() -> None:
    t, g, b = sp.symbols("t g b", real=True)
    S = sp.Function("S")(t)
    for n in range(1, 6):
        wanted = sp.expand(bell([S.diff(t, k) for k in range(1, n + 1)]))
        assert sp.expand(sp.exp(S).diff(t, n) / sp.exp(S) - wanted) == 0
        assert sp.simplify(sp.exp(g * t + b).diff(t, n) / sp.exp(g * t + b) - g**n) == 0
        assert sp.expand(bell([g, *[0] * (n - 1)]) - g**n) == 0
    s = sp.symbols("s1:4")
    assert sp.expand(bell(list(s)) - (s[0] ** 3 + 3 * s[0] * s[1] + s[2])) == 0


@pytest.mark.theorem("thm-exp-derivatives")
@given(st.lists(numbers, min_size=4, max_size=4), st.floats(-1, 1))
def test_the_derivatives_of_the_exponential_of_a_polynomial_by_nested_autograd(s: list[float], start: float) -> None:
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    S = start + sum(x * t ** (k + 1) / math.factorial(k + 1) for k, x in enumerate(s))
    found = nested(S.exp(), t, 4)
    for n in range(1, 5):
        assert torch.isclose(found[n - 1], tensor(bell(s[:n])) * math.exp(start), rtol=1e-10, atol=1e-10)


def test_the_nth_derivative_of_the_exponential_of_a_relu_network_is_a_power_of_its_gradient() -> None:
    """S0.5"""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    x = torch.randn(20, 5, dtype=torch.float64)
    for i in range(5):
        t = torch.zeros(20, dtype=torch.float64, requires_grad=True)
        S = net(x + t[:, None] * torch.eye(5, dtype=torch.float64)[i])[:, 0]
        (g,) = torch.autograd.grad(S.sum(), t, create_graph=True)
        g = g.detach()
        for n, found in enumerate(nested(S.exp(), t, 5), 1):
            torch.testing.assert_close(found, S.detach().exp() * g**n, rtol=1e-12, atol=1e-14)
        assert all(not bool(found.any()) for found in nested(S, t, 3)[1:])


# --- the ansatz of alpha --------------------------------------------------------------------------


@pytest.mark.theorem("thm-gradcam-alpha")
def test_alpha_follows_from_the_ansatz_once_mixed_derivatives_are_dropped() -> None:
    """Two channels of two entries, in symbols."""
    x = sp.symbols("a b c d", positive=True)
    alpha = sp.symbols("alpha0:4")
    Y = sp.Function("Y")(*x)
    totals = [x[0] + x[1]] * 2 + [x[2] + x[3]] * 2
    ansatz = sum(alpha[n] * Y.diff(x[n]) * totals[n] for n in range(4))
    twice = sp.expand((ansatz - Y).diff(x[0], 2))
    mixed = [part for part in twice.atoms(sp.Derivative) if set(part.variables) != {x[0]}]
    assert mixed  # there is something to drop, in the channel and in the other
    assert any(x[2] in part.variables for part in mixed)
    (found,) = sp.solve(twice.subs(dict.fromkeys(mixed, 0)), alpha[0])
    second, third = Y.diff(x[0], 2), Y.diff(x[0], 3)
    assert sp.simplify(found - second / (2 * second + totals[0] * third)) == 0


@pytest.mark.theorem("thm-gradcam-alpha")
@given(st.lists(st.tuples(st.floats(1.2, 5), st.floats(0.2, 3), positive), min_size=1, max_size=4))
def test_the_ansatz_holds_for_powers_of_channels_of_one_entry(rows: list[tuple[float, float, float]]) -> None:
    n, c, start = tensor(rows).T
    t = torch.zeros(len(rows), dtype=torch.float64, requires_grad=True)
    A = start + t
    powers = c * A**n
    first, second, third = nested(powers, t, 3)
    alpha = second / (2 * second + start * third)
    torch.testing.assert_close(alpha, 1 / n, rtol=1e-9, atol=0)
    torch.testing.assert_close((alpha * first * start).sum(), powers.detach().sum(), rtol=1e-9, atol=0)


@pytest.mark.theorem("thm-gradcam-alpha")
@given(st.lists(numbers, min_size=2, max_size=4), positive)
def test_the_ansatz_does_not_hold_for_the_exponential_of_an_affine_score(g: list[float], start: float) -> None:
    assume(max(map(abs, g)) > 0.1)
    slopes, A = tensor(g), torch.full((len(g),), start, dtype=torch.float64).requires_grad_()
    Y = (slopes @ A).exp()
    hessian = torch.autograd.functional.hessian(lambda A: (slopes @ A).exp(), A.detach())
    mixed = hessian - hessian.diagonal().diag()
    if (slopes.abs() > 1e-3).sum() > 1:
        assert mixed.abs().max() > 0
    # with one slope alone mixed derivatives vanish, and alpha g T = 1 would have to hold for all T
    one = slopes.abs().max()
    shares = [(1 / (2 + one * x)) * one * x for x in (start, start + 1)]
    assert all(abs(share - 1) > 1e-3 for share in shares)
    assert Y > 0


# --- the stable form ------------------------------------------------------------------------------


@pytest.mark.theorem("thm-gradcampp-stable")
@given(maps(2, 2, 2, low=0.0), maps(2, 2, 2), st.floats(-3, 3))
def test_the_stable_form_is_eq_19_and_the_factor_of_the_exponential_cancels(A: Tensor, g: Tensor, S: float) -> None:
    g = torch.where(g.abs() < 1e-3, 0, g)
    Y = [math.exp(S) * g**n for n in (1, 2, 3)]
    alpha = Y[1] / (2 * Y[1] + A.sum((1, 2), keepdim=True) * Y[2])
    for whatever in (0.0, 1.0, -7.0):  # the value where it is 0 / 0
        weights = (alpha.nan_to_num(whatever) * Y[0].relu()).sum((1, 2))
        wanted = math.exp(S) * gradcam_plusplus_weights(A, g)
        torch.testing.assert_close(weights, wanted, rtol=1e-12, atol=0)
        ours, theirs = (weighted_map(A, w) for w in (wanted, weights))
        if ours.max() > 0:
            torch.testing.assert_close(theirs / theirs.max(), ours / ours.max(), rtol=1e-10, atol=0)
    exact = gradcam_plusplus_weights_exact(A, g, torch.zeros_like(g), torch.zeros_like(g))
    torch.testing.assert_close(exact, gradcam_plusplus_weights(A, g), rtol=1e-12, atol=0)


@pytest.mark.theorem("thm-gradcampp-stable")
@given(maps(3, 2, 2, low=0.0), maps(3, 2, 2))
def test_a_channel_that_is_not_negative_bounds_every_term(A: Tensor, g: Tensor) -> None:
    p, total = g.relu(), A.sum((1, 2))
    weights = gradcam_plusplus_weights(A, g)
    assert (weights >= 0).all()
    assert (weights <= p.sum((1, 2)) / 2 * (1 + 1e-15)).all()
    some = (p > 0).any(-1).any(-1) & (total > 0)
    count = (p > 0).sum((1, 2))
    assert (weights[some] * total[some] <= count[some] * (1 + 1e-12)).all()


@pytest.mark.theorem("thm-gradcampp-stable")
@given(st.floats(0.1, 10))
def test_the_pole_lies_at_minus_two_over_the_sum_of_a_negative_channel(size: float) -> None:
    A = torch.full((1, 1, 2), -size / 2, dtype=torch.float64)
    pole = 2 / size
    for factor, sign in ((0.5, 1), (0.999, 1), (1.001, -1), (3.0, -1)):
        g = tensor([[[factor * pole, -1.0]]])
        assert gradcam_plusplus_weights(A, g).sign() == sign
    near = gradcam_plusplus_weights(A, tensor([[[(1 - 1e-9) * pole, 0.0]]]))
    assert near > 1e8 * pole / 2 * 0.9
    A = tensor([[[-1.0, -1.0]]])
    assert gradcam_plusplus_weights(A, tensor([[[1.0, 0.0]]])).isinf()


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.theorem("prop-gradcampp-limits")
@given(maps(2, 2, 2, low=0.0), maps(2, 2, 2))
def test_small_scores_give_gradcam_of_positive_gradients_and_large_ones_count_them(A: Tensor, g: Tensor) -> None:
    g = torch.where(g.abs() < 1e-2, 0, g)
    A = A + 0.01
    small, large = 1e-9, 1e9
    weights = gradcam_plusplus_weights(A, small * g)
    torch.testing.assert_close(2 * weights / small, g.relu().sum((1, 2)), rtol=1e-6, atol=0)
    torch.testing.assert_close(2 * weights / small, 4 * gradcam_weights(g.relu()), rtol=1e-6, atol=0)
    counted = (g > 0).sum((1, 2)) / A.sum((1, 2))
    torch.testing.assert_close(gradcam_plusplus_weights(A, large * g), counted, rtol=1e-4, atol=0)


@pytest.mark.theorem("prop-gradcampp-limits")
@given(maps(2, 2, 2, low=0.0), maps(2, 2, 2), st.floats(0.01, 100))
def test_a_channel_in_other_units_changes_nothing(A: Tensor, g: Tensor, s: float) -> None:
    before = gradcam_plusplus_weights(A, g)[:, None, None] * A
    after = gradcam_plusplus_weights(s * A, g / s)[:, None, None] * (s * A)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-300)


@pytest.mark.theorem("prop-gradcampp-limits")
def test_a_number_that_is_added_to_the_scores_changes_nothing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    images = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    before = GradCAMPlusPlus(net, "1")(images, [0, 1, 2])
    with torch.no_grad():
        net[3].bias += torch.tensor([100.0, -3, 7])
    after = GradCAMPlusPlus(net, "1")(images, [0, 1, 2])
    torch.testing.assert_close(after.weights, before.weights, rtol=1e-13, atol=0)


# --- a mean and a linear layer --------------------------------------------------------------------


@pytest.mark.theorem("prop-gap-head")
@given(maps(2, 3, 2, 3, low=0.0), maps(4, 3))
def test_of_a_mean_and_a_linear_layer_the_weights_can_be_read_off(A: Tensor, W: Tensor) -> None:
    count, total = 6, A.sum((2, 3))[:, None]
    leaf = A.clone().requires_grad_()
    scores = leaf.mean((2, 3)) @ W.T
    for c in range(4):
        (g,) = torch.autograd.grad(scores[:, c].sum(), leaf, retain_graph=True)
        w = W[c].relu()
        torch.testing.assert_close(gradcam_weights(g), (W[c] / count).expand(2, -1), rtol=1e-12, atol=1e-15)
        wanted = w / (2 + w * total[:, 0] / count)
        torch.testing.assert_close(gradcam_plusplus_weights(A, g), wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.theorem("prop-gap-head")
@pytest.mark.parametrize("double", [True, False])
def test_the_methods_give_these_weights_on_such_a_head(double: bool) -> None:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)]
    net = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), *head).to(torch.float64 if double else torch.float32)
    W = net[4].weight.detach()
    images = torch.randn(4, 1, 7, 6, dtype=W.dtype)
    A = net[1](net[0](images)).detach()
    plus, mean = W.relu(), A.mean((2, 3))[:, None]
    everything = [0, 1, 2]
    tolerance = {"rtol": 1e-12 if double else 1e-5, "atol": 1e-15 if double else 1e-7}
    wanted = (W / 20).expand(4, -1, -1)
    torch.testing.assert_close(GradCAM(net, "1")(images, everything).weights, wanted, **tolerance)
    result = GradCAMPlusPlus(net, "1")(images, everything)
    torch.testing.assert_close(result.weights, plus / (2 + plus * mean), **tolerance)
    heat = torch.einsum("nk,bkhw->bnhw", plus / 20, A).relu()
    torch.testing.assert_close(LayerCAM(net, "1")(images, everything).maps, heat, **tolerance)


# --- claims on a trained network ------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network of the layers of the book, and the digits it was not trained on."""
    torch.manual_seed(0)
    data = load_digits()
    images, labels = tensor(data.images)[:, None] / 16, torch.tensor(data.target)
    net = nn.Sequential(
        *(book.Conv2d(1, 8, 3, padding=1), book.ReLU(), book.Conv2d(8, 8, 3, padding=1), book.ReLU()),
        *(book.Conv2d(8, 16, 3, padding=1), book.ReLU(), book.MaxPool2d(4), nn.Flatten(), book.Linear(64, 10)),
    ).double()
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        batch = torch.randint(1200, (64,))
        optimiser.zero_grad()
        F.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimiser.step()
    net.eval().requires_grad_(False)
    images, labels = images[1200:], labels[1200:]
    right = net(images).argmax(1) == labels
    assert right.double().mean() > 0.75
    return net, images[right], labels[right]


def gradient(net: nn.Sequential, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    A = net[:4](images).requires_grad_()
    scores = net[4:](A).gather(1, classes[:, None])
    return A.detach(), torch.autograd.grad(scores.sum(), A)[0]


def undivided(A: Tensor, g: Tensor) -> Tensor:
    alpha = g**2
    below = 2 * alpha + A.sum((-2, -1), keepdim=True) * g**3
    used = alpha > 0
    alpha[used].div_(below[used])
    return (alpha * g.relu()).sum((-2, -1))


def wrong_index(A: Tensor, g: Tensor) -> Tensor:
    below = 2 * g**2 + (A * g**3).sum((-2, -1), keepdim=True)
    return torch.where(g > 0, g**3 / below, 0).sum((-2, -1))


def test_the_brute_force_on_a_trained_network_agrees_to_twelve_digits(
    trained: tuple[nn.Sequential, Tensor, Tensor],
) -> None:
    """S0.5, S0.8: exp(S) three times differentiated at each entry, in float64."""
    net, images, labels = trained
    assert tail_certificate(net, "3", images[:4])
    result = GradCAMPlusPlus(net, "3")(images[:6], labels[:6, None])
    for n, c in enumerate(labels[:6].tolist()):
        A = net[:4](images[n : n + 1])[0]
        wanted = brute_force(net[4:], A, c)
        assert (result.weights[n, 0] - wanted).norm() <= 1e-12 * wanted.norm()


def test_scores_that_rank_alike_have_other_maps(trained: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    """S0.6: neither a factor of the scores nor another smooth function keeps the map."""
    net, images, labels = trained
    images, labels = images[:60], labels[:60, None]
    scores = net(images)
    assert torch.equal(scores.exp().argsort(1), scores.argsort(1))
    assert torch.equal(scores.softmax(1).argsort(1), scores.argsort(1))
    plain = GradCAMPlusPlus(net, "3")(images, labels).normalized().maps
    A, g = gradient(net, images, labels[:, 0])
    for tau in (0.01, 100.0):
        heat = weighted_map(A, gradcam_plusplus_weights(A, tau * g))
        heat = heat / heat.amax((1, 2), keepdim=True)
        assert (heat - plain[:, 0]).abs().amax((1, 2)).median() > 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a probability near 1 alpha is negative
        soft = GradCAMPlusPlus(net, "3", smooth_score="softmax")(images, labels).normalized().maps
    assert (soft - plain).abs().amax((1, 2, 3)).median() > 0.2


def test_the_softmax_variant_is_its_brute_force_on_a_trained_network(
    trained: tuple[nn.Sequential, Tensor, Tensor],
) -> None:
    """S0.6: the paper's equations 21 to 24."""
    net, images, labels = trained
    for n in range(3):
        c = labels[n].item()
        wanted = brute_force(net[4:], net[:4](images[n : n + 1])[0], c, lambda scores: scores.softmax(1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = GradCAMPlusPlus(net, "3", smooth_score="softmax")(images[n : n + 1], c).weights[0, 0]
        assert (ours - wanted).norm() < 1e-8 * wanted.norm()


def test_both_faults_of_the_power_form_are_large_on_a_trained_network(
    trained: tuple[nn.Sequential, Tensor, Tensor],
) -> None:
    """S0.7: a division into a copy, and a sum of products where a product of sums is meant."""
    net, images, labels = trained
    A, g = gradient(net, images, labels)
    assert torch.equal(undivided(A, g), undivided(1000 * A, g))
    torch.testing.assert_close(undivided(A, g), (g.relu() ** 3).sum((-2, -1)), rtol=1e-12, atol=0)
    true = weighted_map(A, gradcam_plusplus_weights(A, g)).flatten(1).argmax(1)
    for fault in (undivided, wrong_index):
        for n in range(3):
            wanted = brute_force(net[4:], A[n], int(labels[n]))
            assert direction_error(gradcam_plusplus_weights(A[n], g[n]), wanted) < 1e-12
            assert direction_error(fault(A[n], g[n]), wanted) > 0.05
        brightest = weighted_map(A, fault(A, g)).flatten(1).argmax(1)
        assert (brightest == true).double().mean() < 0.9


@given(maps(2, 3, low=0.0), st.floats(0.1, 2))
def test_equal_gradients_of_a_channel_hide_the_wrong_index(A: Tensor, g: float) -> None:
    """S0.7"""
    same = torch.full((1, 2, 3), g, dtype=torch.float64)
    torch.testing.assert_close(wrong_index(A[None], same), gradcam_plusplus_weights(A[None], same), rtol=1e-12, atol=0)


def test_an_in_place_division_of_a_masked_copy_is_a_no_op() -> None:
    """S0.7"""
    x, used = torch.ones(3), torch.tensor([True, False, True])
    x[used].div_(2)
    assert x.tolist() == [1, 1, 1]
    x[used] /= 2
    assert x.tolist() == [0.5, 1, 0.5]


def test_powers_and_an_epsilon_lose_digits_where_the_stable_form_does_not(
    trained: tuple[nn.Sequential, Tensor, Tensor],
) -> None:
    """S0.8: in float32, bfloat16 and float16."""

    def powers(A: Tensor, g: Tensor, epsilon: float = 0.0) -> Tensor:
        below = 2 * g**2 + A.sum((-2, -1), keepdim=True) * g**3 + epsilon
        return (g**2 / below * g.relu()).nan_to_num(0).sum((-2, -1))

    def error(w: Tensor, wanted: Tensor) -> float:
        return float((w.double() - wanted).norm() / wanted.norm())

    net, images, labels = trained
    A, g = gradient(net, images, labels)
    for dtype, small, most in ((torch.float16, 1e-2, 1e-3), (torch.bfloat16, 1e-2, 1e-3), (torch.float32, 1e-22, 1e-2)):
        a, b = A.to(dtype), (small * g).to(dtype)
        wanted = gradcam_plusplus_weights(a.double(), b.double())
        assert error(powers(a, b), wanted) > most
        assert error(gradcam_plusplus_weights(a, b), wanted) < 1e-6
    losses = [error(powers(A, s * g, 1e-6), gradcam_plusplus_weights(A, s * g)) for s in (1.0, 1e-3, 1e-4)]
    assert losses[0] < 0.05
    assert losses[1] > 0.3
    assert losses[2] > 0.9


@pytest.mark.parametrize("curve", [nn.GELU, nn.SiLU, lambda: nn.Softmax(1)], ids=["GELU", "SiLU", "Softmax"])
def test_the_shortcut_is_wrong_on_a_curved_tail_and_the_certificate_says_so(curve: Callable[[], nn.Module]) -> None:
    """S0.9"""
    torch.manual_seed(1)
    front = [nn.Conv2d(1, 3, 3), nn.GELU()]  # what comes before does not count
    last = curve()
    if isinstance(last, nn.Softmax):
        tail = [nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), last]
    else:
        tail = [nn.Conv2d(3, 3, 3), last, nn.Flatten(), nn.Linear(12, 4)]
    net = nn.Sequential(*front, *tail).double()
    images = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    straight = nn.Sequential(*front, nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).double()
    assert tail_certificate(straight, "1", images)
    certificate = tail_certificate(net, "1", images)
    assert not certificate
    assert certificate.residual > 0
    assert certificate.offenders[0].module == type(last).__name__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact = GradCAMPlusPlus(net, "1", higher_derivatives="exact")(images, 1).weights[:, 0]
        short = GradCAMPlusPlus(net, "1", higher_derivatives="piecewise_linear")(images, 1).weights[:, 0]
    for n in range(2):
        wanted = brute_force(net[2:], net[:2](images[n : n + 1])[0].detach(), 1)
        torch.testing.assert_close(exact[n], wanted, rtol=1e-9, atol=1e-12)
    assert (exact - short).norm() > 1e-3 * exact.norm()


def test_a_probability_of_one_half_makes_gradcam_plusplus_black() -> None:
    """The exercise on the sigmoid: alpha is 0 there, has poles above, and is that of the exponential far below."""
    t, g, S = sp.symbols("t g S", real=True)
    Y = 1 / (1 + sp.exp(-(S + g * t)))
    y = Y.subs(t, 0)
    wanted = [y * (1 - y) * g, y * (1 - y) * (1 - 2 * y) * g**2, y * (1 - y) * (1 - 6 * y + 6 * y**2) * g**3]
    for n, form in enumerate(wanted, 1):
        assert sp.simplify(Y.diff(t, n).subs(t, 0) - form) == 0
    for probability, slope, total in itertools.product((0.5, 1e-12), (0.3, 2.0), (0.5, 4.0)):
        second, third = 1 - 2 * probability, 1 - 6 * probability + 6 * probability**2
        alpha = second / (2 * second + slope * total * third)
        assert math.isclose(alpha, 0.0 if probability == 0.5 else 1 / (2 + slope * total), abs_tol=1e-9)
