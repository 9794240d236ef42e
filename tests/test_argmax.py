"""The theorems of the chapter *Argmax*, and every property of its module."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import sympy as sp
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

import pwl_lib.functional as PF
import pwl_lib.nn as pnn
from pwl_lib.argmax import soft_argmax, soft_argmax_jacobian, straight_through_argmax
from pwl_lib.losses import softmax_jacobian

D = torch.float64
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
inf, nan = math.inf, math.nan
SCORES = torch.tensor([1, 2, 3, 4, 2], dtype=D)
"""The list of the sources."""

quick = settings(max_examples=40)
seeds = st.integers(0, 2**31 - 1)
temperatures = st.sampled_from([0.01, 0.3, 1.0, 2.0, 10.0])
vectors = st.lists(st.floats(-5, 5), min_size=2, max_size=7).map(lambda numbers: torch.tensor(numbers, dtype=D))
tied = st.lists(st.integers(-2, 2), min_size=2, max_size=7).map(lambda numbers: torch.tensor(numbers, dtype=D))
close = torch.testing.assert_close


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard Gumbel numbers, by the inverse of their distribution function."""
    u = torch.rand(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))
    return -(-u.log()).log()


def weights(x: Tensor, t: float) -> Tensor:
    """softmax(t x) by its definition, for moderate numbers."""
    powers = (t * (x - x.max())).exp()
    return powers / powers.sum()


def expected_index(x: Tensor, t: float) -> float:
    return sum(i * p for i, p in enumerate(weights(x, t).tolist()))


def detached(x: Tensor, t: float = 1.0, dim: int = -1) -> Tensor:
    """Hard value, soft derivative, by moving what has no derivative out of the graph."""
    p = torch.softmax(t * x, dim)
    hard = torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1)
    return (hard - p).detach() + p


def raises(kind: type[Exception], *said: str) -> Any:
    """The error names the argument, what it had and what was wanted."""
    return pytest.raises(kind, match="(?s)" + "".join(f"(?=.*{part})" for part in said))


# --- argmax itself --------------------------------------------------------------------------------


@pytest.mark.theorem("thm-argmax-flat")
@quick
@given(vectors, seeds)
def test_argmax_is_constant_near_every_point_without_a_tie(x: Tensor, seed: int) -> None:
    top = x.topk(2).values
    margin = top[0] - top[1]
    assume(margin > 1e-9)
    for n in range(20):
        near = x + margin * 0.499 * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(seed + n)) - 1)
        assert near.argmax() == x.argmax()


@pytest.mark.theorem("thm-argmax-flat")
@quick
@given(tied)
@example(torch.zeros(3, dtype=D))
def test_at_a_tie_argmax_jumps_and_its_quotients_are_0_or_grow_without_bound(x: Tensor) -> None:
    largest = (x == x.max()).nonzero().flatten().tolist()
    assume(len(largest) > 1)
    first = x.argmax().item()
    assert first == largest[0]
    for h in (1e-1, 1e-4, 1e-8):  # every neighbourhood holds each of the tied values, and points without a tie
        reached = {(x + h * F.one_hot(torch.tensor(i), len(x))).argmax().item() for i in largest}
        assert reached == set(largest)
    for seed in range(5):
        v = randn(len(x), seed=seed)
        winner = max(largest, key=lambda i: v[i].item())
        quotients = [((x + h * v).argmax().item() - first) / h for h in (1e-4, 1e-6)]
        assert quotients == [pytest.approx((winner - first) / h) for h in (1e-4, 1e-6)]


@pytest.mark.theorem("thm-argmax-flat")
@pytest.mark.theorem("thm-argmax-no-subgradient")
@pytest.mark.parametrize("value", range(4))
def test_argmax_has_derivative_0_where_it_has_one_and_no_subgradient_unless_its_value_is_0(value: int) -> None:
    x = randn(4, seed=7)
    x = x.roll(value - int(x.argmax()))
    f = lambda y: y.argmax().item()
    assert f(x) == value
    for i in range(4):  # the derivative
        h = torch.zeros(4, dtype=D)
        h[i] = 1e-6
        assert f(x + h) - f(x - h) == 0

    def supports(g: Tensor) -> bool:
        far = [
            c * direction for c in (1.0, 1e3, 1e6) for direction in (*torch.eye(4, dtype=D), *-torch.eye(4, dtype=D))
        ]
        far += [100 * randn(4, seed=seed) for seed in range(50)] + [1e4 * g]
        return all(f(x + step) >= value + g @ step for step in far)

    assert supports(torch.zeros(4, dtype=D)) == (value == 0)
    for seed in range(20):
        for size in (1e-3, 1.0):
            assert not supports(size * randn(4, seed=seed))


@pytest.mark.theorem("thm-argmax-no-subgradient")
def test_argmax_is_neither_convex_nor_concave() -> None:
    left, right = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    between = lambda share: ((1 - share) * left + share * right).argmax().item()
    chord = lambda share: (1 - share) * left.argmax() + share * right.argmax()
    assert between(0.75) > chord(0.75)
    assert between(0.25) < chord(0.25)


# --- the soft argmax ------------------------------------------------------------------------------


@quick
@given(vectors, temperatures)
def test_the_soft_argmax_is_the_expected_index(x: Tensor, t: float) -> None:
    assert soft_argmax(x, temperature=t).item() == pytest.approx(expected_index(x, t), rel=1e-12, abs=1e-12)


def test_the_sources_soft_argmax_is_2_613_and_a_factor_brings_it_to_3() -> None:
    p = torch.softmax(SCORES, 0)
    wanted = torch.tensor([0.02948882, 0.08015893, 0.21789455, 0.5922988, 0.08015893], dtype=D)
    close(p, wanted, rtol=0, atol=1e-7)
    assert soft_argmax(SCORES).item() == pytest.approx(2.61348015, abs=1e-7)
    found = [round(soft_argmax(SCORES, temperature=t).item(), 4) for t in (1, 2, 4, 10)]
    assert found == [2.6135, 2.8628, 2.9817, 3.0]
    gaps = [3 - soft_argmax(SCORES, temperature=t).item() for t in (1, 2, 4, 8, 16)]
    assert gaps == sorted(gaps, reverse=True)


@pytest.mark.theorem("prop-soft-argmax-gradient")
@quick
@given(vectors, temperatures)
@example(torch.zeros(4, dtype=D), 1.0)
def test_the_gradient_is_t_p_times_the_distance_from_the_soft_index(x: Tensor, t: float) -> None:
    p, s = weights(x, t), expected_index(x, t)
    wanted = t * p * (torch.arange(len(x), dtype=D) - s)
    close(soft_argmax_jacobian(x, t), wanted, rtol=1e-10, atol=1e-13)
    close(jacrev(lambda x: soft_argmax(x, temperature=t))(x), wanted, rtol=1e-10, atol=1e-13)
    close(jacfwd(lambda x: soft_argmax(x, temperature=t))(x), wanted, rtol=1e-10, atol=1e-13)
    by_torch = jacrev(lambda x: torch.softmax(t * x, 0) @ torch.arange(len(x), dtype=D))(x)
    close(wanted, by_torch, rtol=1e-8, atol=1e-12)
    assert abs(wanted.sum().item()) < 1e-12
    assert wanted[: math.ceil(s - 1e-9)].le(1e-12).all()  # a larger score pulls the index to itself
    assert wanted[math.floor(s + 1e-9) + 1 :].ge(-1e-12).all()
    assert wanted.abs().sum() <= t * (len(x) - 1) / 2 + 1e-12


@pytest.mark.theorem("prop-soft-argmax-gradient")
def test_the_bound_on_the_gradient_is_attained_by_two_equal_ends() -> None:
    for n, t in ((2, 1.0), (5, 3.0)):
        x = torch.full((n,), -inf, dtype=D)
        x[0] = x[-1] = 1.0
        assert soft_argmax_jacobian(x, t).abs().sum().item() == pytest.approx(t * (n - 1) / 2)


@pytest.mark.theorem("prop-soft-argmax-gradient")
def test_sympy_has_the_same_gradient_for_three_entries() -> None:
    x, t = sp.symbols("x0:3", real=True), sp.Symbol("t", positive=True)
    powers = [sp.exp(t * each) for each in x]
    p = [power / sum(powers) for power in powers]
    s = p[1] + 2 * p[2]
    assert all(sp.simplify(sp.diff(s, x[i]) - t * p[i] * (i - s)) == 0 for i in range(3))


def gaps_bound(x: Tensor, t: float) -> float:
    best = int(x.argmax())
    return sum(abs(j - best) * math.exp(-t * (x[best] - x[j]).item()) for j in range(len(x)) if j != best)


@pytest.mark.theorem("prop-soft-argmax-error")
@quick
@given(vectors, st.floats(0.01, 50))
def test_the_error_of_the_soft_argmax_is_within_the_bound_by_the_gaps(x: Tensor, t: float) -> None:
    best = x.argmax().item()
    assert abs(soft_argmax(x, temperature=t).item() - best) <= gaps_bound(x, t) + 1e-12
    n, gap = len(x), (x.topk(2).values[0] - x.topk(2).values[1]).item()
    if gap > 1e-3:
        sharp = 1.000001 * math.log(n * (n - 1)) / gap
        assert abs(soft_argmax(x, temperature=sharp).item() - best) < 0.5
        slope = soft_argmax_jacobian(x, sharp * 40)
        assert slope.abs().max() <= sharp * 40 * n * (n - 1) * math.exp(-40 * sharp * gap)


@pytest.mark.theorem("prop-soft-argmax-error")
def test_the_bound_by_the_gaps_becomes_the_error_as_t_grows() -> None:
    x = torch.tensor([3.0, 1, 2, 0], dtype=D)  # all other indices on one side, so that nothing cancels
    shares = [soft_argmax(x, temperature=t).item() / gaps_bound(x, t) for t in (1, 4, 16)]
    assert shares == sorted(shares)
    assert shares[-1] > 1 - 1e-5


def test_rounding_the_soft_argmax_need_not_give_the_argmax() -> None:
    x = torch.tensor([4.0, 3, 3, 3, 3], dtype=D)
    assert round(soft_argmax(x).item()) == 1
    assert x.argmax() == 0
    assert round(soft_argmax(x, temperature=math.log(20) + 0.01).item()) == 0


@pytest.mark.theorem("prop-soft-argmax-ties")
@quick
@given(tied, st.sampled_from([0.5, 2.0, 40.0]))
def test_at_a_tie_the_soft_argmax_tends_to_the_mean_of_the_tied_indices(x: Tensor, t: float) -> None:
    largest = (x == x.max()).nonzero().flatten().double()
    mean = largest.mean().item()
    others = [j for j in range(len(x)) if x[j] < x.max()]
    bound = sum(abs(j - mean) * math.exp(-t * (x.max() - x[j]).item()) for j in others) / len(largest)
    assert abs(soft_argmax(x, temperature=t).item() - mean) <= bound + 1e-12
    assert soft_argmax(x, temperature=1e4).item() == pytest.approx(mean, abs=1e-12)


@pytest.mark.theorem("prop-soft-argmax-ties")
def test_scores_with_two_peaks_give_an_index_between_them_at_every_temperature() -> None:
    x = torch.tensor([0, 4, 0, 0, 0, 0, 0, 4, 0], dtype=D)
    for t in (0.1, 1.0, 10.0, 1e3):
        assert soft_argmax(x, temperature=t).item() == pytest.approx(4)
        assert x[4] == x.min()
    pair = torch.full((9,), -inf, dtype=D)
    pair[1], pair[7] = 4.0, 3.75
    for t in (0.1, 1.0, 10.0):
        wanted = 1 + 6 / (1 + math.exp(t * 0.25))
        assert soft_argmax(pair, temperature=t).item() == pytest.approx(wanted)


# --- several dimensions ---------------------------------------------------------------------------


@quick
@given(st.permutations(range(3)), st.integers(1, 3), temperatures, seeds)
def test_over_several_dimensions_the_weights_are_joint_and_coordinates_come_in_the_order_of_dim(
    order: list[int], count: int, t: float, seed: int
) -> None:
    x, dims = randn(2, 3, 4, seed=seed), tuple(order[:count])
    rest = [d for d in range(3) if d not in dims]
    y = soft_argmax(x, dims, t)
    assert y.shape == (*(x.shape[d] for d in rest), count)
    for place in itertools.product(*(range(x.shape[d]) for d in rest)):
        part = x
        for d, at in sorted(zip(rest, place, strict=True), reverse=True):
            part = part.select(d, at)
        p = weights(part.flatten(), t).reshape(part.shape)
        kept = sorted(dims)
        means = [
            sum(i * q for i, q in enumerate(p.movedim(kept.index(d), 0).reshape(x.shape[d], -1).sum(1).tolist()))
            for d in dims
        ]
        close(y[place], torch.tensor(means, dtype=D).reshape(count))
    negative = tuple(d - 3 for d in dims)
    assert torch.equal(soft_argmax(x, negative, t), y)
    assert torch.equal(soft_argmax(x, list(dims), t), y)


def test_two_coordinates_are_not_two_soft_argmaxes_of_one_dimension_each() -> None:
    heat = torch.tensor([[0.0, 3.0], [2.9, 2.9]], dtype=D)
    joint = soft_argmax(heat, (0, 1), 50.0)
    close(joint, torch.tensor([0.0, 1.0], dtype=D), rtol=0, atol=0.02)
    by_rows = soft_argmax(heat.sum(1), temperature=50.0)
    assert by_rows > 0.99  # the row of the largest sum is not that of the largest entry


def test_a_tuple_of_one_dimension_keeps_the_dimension_of_coordinates() -> None:
    x = randn(3, 4)
    assert torch.equal(soft_argmax(x, (1,)), soft_argmax(x, 1)[:, None])


def test_the_peak_of_a_heat_map_is_found_between_pixels() -> None:
    rows, columns = torch.arange(15, dtype=D), torch.arange(11, dtype=D)
    heat = -((rows[:, None] - 6.3) ** 2 + (columns - 4.6) ** 2) / 2  # softmax of it is a Gaussian
    close(soft_argmax(heat, (0, 1)), torch.tensor([6.3, 4.6], dtype=D), rtol=0, atol=1e-4)
    close(soft_argmax(heat, (1, 0)), torch.tensor([4.6, 6.3], dtype=D), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dims", [1, -1, (2, 0), (0, 1, 2), (1,)], ids=str)
def test_the_soft_argmax_passes_gradcheck_in_every_mode(dims: Any) -> None:
    x = randn(2, 3, 2).requires_grad_()
    f = lambda x: soft_argmax(x, dims, 1.7)
    words = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(f, x, **words)
    assert torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=True, check_batched_grad=True)
    stack = randn(4, 2, 3, 2, seed=1)
    close(vmap(f)(stack), torch.stack([f(each) for each in stack]))
    close(vmap(jacrev(f))(stack), torch.stack([jacrev(f)(each) for each in stack]))
    close(vmap(jacfwd(f))(stack), vmap(jacrev(f))(stack))


# --- straight through -----------------------------------------------------------------------------


@quick
@given(tied, temperatures, seeds)
def test_the_straight_through_value_is_exactly_one_hot_at_the_first_maximum(x: Tensor, t: float, seed: int) -> None:
    y = straight_through_argmax(x.requires_grad_(), temperature=t)
    assert y.tolist() == [float(i == x.argmax()) for i in range(len(x))]
    rows = randn(3, 5, 2, seed=seed)
    for dim in (0, 1, -1):
        wanted = F.one_hot(rows.argmax(dim), rows.shape[dim]).movedim(-1, dim).to(D)
        assert torch.equal(straight_through_argmax(rows, dim, t), wanted)
        assert torch.equal(straight_through_argmax(rows.clone().requires_grad_(), dim, t), wanted)


@quick
@given(vectors, temperatures, seeds)
def test_the_straight_through_argmax_has_the_hard_value_and_the_gradient_of_softmax(
    x: Tensor, t: float, seed: int
) -> None:
    g = randn(len(x), seed=seed)
    p = weights(x, t)
    wanted = t * (torch.diag(p) - torch.outer(p, p)) @ g
    for f in (lambda x: straight_through_argmax(x, temperature=t), lambda x: detached(x, t)):
        leaf = x.clone().requires_grad_()
        y = f(leaf)
        close(y, F.one_hot(x.argmax(), len(x)).to(D), rtol=0, atol=1e-15)
        close(torch.autograd.grad(y, leaf, g)[0], wanted, rtol=1e-9, atol=1e-13)
    soft = jvp(lambda x: torch.softmax(t * x, 0), (x,), (g,))[1]
    close(jvp(lambda x: straight_through_argmax(x, temperature=t), (x,), (g,))[1], soft, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_one_minus_p_plus_p_is_1_for_every_number_in_half_precision(dtype: torch.dtype) -> None:
    p = torch.arange(2**15, dtype=torch.int16).view(dtype)
    p = p[(p >= 0) & (p <= 1)]
    assert len(p) > 10_000
    assert ((1 - p) + p).eq(1).all()
    assert ((0 - p) + p).eq(0).all()


@given(st.floats(0, 1))
@example(0.1)
@example(2**-54)
def test_one_minus_p_plus_p_is_1_in_double_precision(p: float) -> None:
    assert (1 - p) + p == 1
    assert (0 - p) + p == 0


def test_second_derivatives_of_the_straight_through_argmax_are_those_of_the_detached_form() -> None:
    x, w, Q = randn(5), randn(5, seed=1), randn(5, 5, seed=2)
    energy = lambda f: lambda x: (w @ f(x)) ** 2 + f(x) @ Q @ f(x)
    ours = hessian(energy(lambda x: straight_through_argmax(x, temperature=1.5)))(x)
    close(ours, hessian(energy(lambda x: detached(x, 1.5)))(x))
    assert ours.abs().max() > 0.01


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_straight_through_along_any_dimension_and_under_vmap(dim: int) -> None:
    x, g = randn(3, 4, 2), randn(3, 4, 2, seed=1)
    ours, theirs = (
        torch.func.vjp(f, x)[1](g)[0]
        for f in (lambda x: straight_through_argmax(x, dim, 0.8), lambda x: torch.softmax(0.8 * x, dim))
    )
    close(ours, theirs)
    f = lambda row: straight_through_argmax(row, dim=0, temperature=0.8)
    close(vmap(jacrev(f))(x), torch.stack([jacrev(lambda r: torch.softmax(0.8 * r, 0))(row) for row in x]))
    close(vmap(jacfwd(f))(x), vmap(jacrev(f))(x))


# --- the bias -------------------------------------------------------------------------------------


def mean_straight_through(x: Tensor, t: float, f: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean over one-hot D of law p of the straight-through gradient, by autograd, D by D."""
    p = torch.softmax(t * x, 0)
    total = torch.zeros_like(x)
    for i, share in enumerate(p):
        leaf = x.clone().requires_grad_()
        soft = torch.softmax(t * leaf, 0)
        drawn = (F.one_hot(torch.tensor(i), len(x)) - soft).detach() + soft
        total += share * torch.autograd.grad(f(drawn), leaf)[0]
    return total


def true_gradient(x: Tensor, t: float, f: Callable[[Tensor], Tensor]) -> Tensor:
    values = torch.stack([f(e) for e in torch.eye(len(x), dtype=D)])
    return jacrev(lambda x: torch.softmax(t * x, 0) @ values)(x)


@pytest.mark.theorem("thm-straight-through-bias")
@quick
@given(st.integers(2, 6), st.sampled_from([0.5, 1.0, 3.0]), seeds)
def test_the_mean_straight_through_gradient_is_right_for_affine_f_and_biased_by_the_formula_for_quadratic_f(
    n: int, t: float, seed: int
) -> None:
    x, a, c = randn(n, seed=seed), randn(n, seed=seed + 1), randn(1, seed=seed + 2)[0]
    Q = randn(n, n, seed=seed + 3)
    Q = Q + Q.T
    affine = lambda y: c + a @ y
    close(mean_straight_through(x, t, affine), true_gradient(x, t, affine))
    quadratic = lambda y: affine(y) + y @ Q @ y / 2
    J, p = t * softmax_jacobian(t * x), torch.softmax(t * x, 0)
    mean = mean_straight_through(x, t, quadratic)
    close(mean - true_gradient(x, t, quadratic), J @ (Q @ p - Q.diagonal() / 2), rtol=1e-9, atol=1e-12)
    close(mean, jacrev(lambda x: quadratic(torch.softmax(t * x, 0)))(x), rtol=1e-9, atol=1e-12)
    cubic = lambda y: (a @ y) ** 3 + y.exp().sum()
    slopes = torch.stack([jacrev(cubic)(e) for e in torch.eye(n, dtype=D)])
    values = torch.stack([cubic(e) for e in torch.eye(n, dtype=D)])
    bias = mean_straight_through(x, t, cubic) - true_gradient(x, t, cubic)
    close(bias, J @ (p @ slopes - values), rtol=1e-8, atol=1e-11)


@pytest.mark.theorem("thm-straight-through-bias")
def test_of_the_deterministic_argmax_the_whole_straight_through_gradient_is_bias() -> None:
    x, a = randn(5), randn(5, seed=1)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(a @ straight_through_argmax(leaf), leaf)
    assert g.abs().max() > 0.05
    close(g, softmax_jacobian(x) @ a)
    hard = lambda x: a @ F.one_hot(x.argmax(), 5).to(D)
    for i in range(5):
        h = 1e-4 * F.one_hot(torch.tensor(i), 5)
        assert hard(x + h) == hard(x - h)


@pytest.mark.theorem("thm-straight-through-bias")
def test_a_descent_where_straight_through_helps() -> None:
    cost, x = torch.tensor([3.0, 1, 2, 4], dtype=D), torch.tensor([2.0, 0, 1, 0], dtype=D)
    assert cost[x.argmax()] == 3
    for _ in range(60):
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(cost @ straight_through_argmax(x), x)
        x = x - 0.5 * g
    assert x.argmax() == cost.argmin()


@pytest.mark.theorem("thm-straight-through-bias")
def test_a_descent_where_straight_through_misleads() -> None:
    target = 0.45  # of the two values 0 and 1, 0 is nearer
    x, visited = torch.tensor([1.0, 0], dtype=D), []
    for _ in range(200):
        x = x.detach().requires_grad_()
        y = straight_through_argmax(x)[1]
        visited.append(y.item())
        (g,) = torch.autograd.grad((y - target) ** 2, x)
        x = x - 0.5 * g
    assert {0.0, 1.0} <= set(visited[-20:])  # it begins at the best value, leaves it, and never settles
    assert visited[0] == 0.0
    for p in torch.linspace(0.05, 0.4, 8, dtype=D):
        logits = torch.stack([torch.zeros_like(p), (p / (1 - p)).log()])
        f = lambda y: (y[1] - target) ** 2
        assert mean_straight_through(logits, 1.0, f)[1] < 0 < true_gradient(logits, 1.0, f)[1]


# --- Gumbel ---------------------------------------------------------------------------------------


@pytest.mark.theorem("thm-gumbel-max")
@pytest.mark.parametrize("t", [0.5, 1.0, 3.0])
def test_the_argmax_of_scores_with_gumbel_noise_has_the_law_of_softmax(t: float) -> None:
    x, count = torch.tensor([0.3, -1.0, 1.2, 0.0], dtype=D), 200_000
    noisy = t * x + noise(count, 4)
    shares = noisy.argmax(1).bincount(minlength=4) / count
    p = weights(x, t)
    deviation = (p * (1 - p) / count).sqrt()
    assert ((shares - p).abs() < 4.5 * deviation).all()
    # the largest number is independent of who has it, and it is LogSumExp and a Gumbel number
    level = torch.logsumexp(t * x, 0)
    for quantile in (0.2, 0.5, 0.9):
        u = level - math.log(-math.log(quantile))
        below = noisy.amax(1) <= u
        assert abs(below.double().mean() - quantile) < 4.5 * math.sqrt(quantile * (1 - quantile) / count)
        joint = (below & (noisy.argmax(1) == 2)).double().mean()
        assert abs(joint - quantile * p[2]) < 4.5 * math.sqrt(0.25 / count)


@pytest.mark.theorem("thm-gumbel-max")
def test_the_integral_of_the_proof_is_the_softmax() -> None:
    v, u, z, e = sp.Symbol("v", real=True), sp.Symbol("u", real=True), *sp.symbols("Z E", positive=True)
    density = e * sp.exp(-v) * sp.exp(-z * sp.exp(-v))
    primitive = e / z * sp.exp(-z * sp.exp(-v))
    assert sp.simplify(sp.diff(primitive, v) - density) == 0
    assert sp.limit(primitive.subs({z: 2, e: 1}), v, -sp.oo) == 0
    assert sp.limit(primitive, v, sp.oo) == e / z
    assert sp.simplify(primitive.subs(v, u) / (e / z) - sp.exp(-sp.exp(-(u - sp.log(z))))) == 0


@pytest.mark.theorem("prop-gumbel-straight-through")
@pytest.mark.parametrize("tau", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_torchs_hard_gumbel_softmax_is_straight_through_of_the_noisy_scores(tau: float, dim: int) -> None:
    x, upstream = randn(6, 5), randn(6, 5, seed=1)
    theirs = x.clone().requires_grad_()
    torch.manual_seed(3)
    value = F.gumbel_softmax(theirs, tau, hard=True, dim=dim)
    torch.manual_seed(3)
    g = -torch.empty_like(x).exponential_().log()
    ours = x.clone().requires_grad_()
    y = straight_through_argmax(ours + g, dim, 1 / tau)
    close(y, value, rtol=0, atol=1e-15)
    close(torch.autograd.grad(y, ours, upstream), torch.autograd.grad(value, theirs, upstream), rtol=1e-9, atol=1e-13)


@pytest.mark.theorem("prop-gumbel-straight-through")
def test_the_mean_of_the_gumbel_straight_through_gradient_is_two_thirds_of_the_true_one_for_two_equal_scores() -> None:
    a, x = torch.tensor([0.0, 1.0], dtype=D), torch.zeros(100_000, 2, dtype=D, requires_grad=True)
    y = straight_through_argmax(x + noise(100_000, 2))
    each = torch.autograd.grad((y @ a).sum(), x)[0][:, 1]
    assert abs(each.mean() - 1 / 6) < 4.5 * each.std() / math.sqrt(len(each))
    u = sp.Symbol("u")
    assert sp.integrate(u * (1 - u), (u, 0, 1)) == sp.Rational(1, 6)
    assert soft_argmax_jacobian(torch.zeros(2, dtype=D))[1] == 0.25


# --- numbers at the edge --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("t", [1e-300, 1e-3, 1.0, 7.0, 1e300])
def test_every_finite_input_and_temperature_gives_finite_values_and_weights_without_nan(
    dtype: torch.dtype, t: float
) -> None:
    top = torch.finfo(dtype).max
    rows = [[top, -top, 0.0], [-top, -top, -top], [top, top, 1.0], [1e-5, 2.0, -3.0], [0.0, 0.0, 0.0]]
    for row in rows:
        x = torch.tensor(row, dtype=D).clamp(-top, top).to(dtype).requires_grad_()
        s, hot = soft_argmax(x, temperature=t), straight_through_argmax(x, temperature=t)
        assert 0 <= s <= 2
        for y in (s, hot.float() @ torch.tensor([1.0, 2.0, 4.0])):
            assert not torch.autograd.grad(y, x)[0].isnan().any()
    assert soft_argmax(torch.tensor([top, -top, -top], dtype=dtype), temperature=max(t, 1.0)) == 0


def test_entries_at_minus_infinity_have_weight_0_and_a_row_of_them_has_value_and_gradient_0() -> None:
    x = torch.tensor([[-inf, 2.0, 1.0], [-inf, -inf, -inf]], dtype=D, requires_grad=True)
    y = soft_argmax(x)
    assert y[0].item() == pytest.approx(1 + 1 / (1 + math.e))
    assert y[1] == 0
    (g,) = torch.autograd.grad(y.sum(), x)
    assert g[0, 0] == 0
    assert not g[1].any()
    hot = straight_through_argmax(x)
    assert hot.tolist() == [[0, 1, 0], [1, 0, 0]]
    (h,) = torch.autograd.grad((hot @ torch.tensor([1.0, 2, 4], dtype=D)).sum(), x)
    assert h[0, 0] == 0
    assert h[0].abs().max() > 0.1
    assert not h[1].any()
    second = hessian(lambda row: soft_argmax(row) ** 2)
    assert not second(x[1].detach()).any()
    assert not second(x[0].detach()).isnan().any()


def test_entries_at_plus_infinity_share_the_weight_and_nan_stays_in_its_row() -> None:
    x = torch.tensor([[inf, 1.0, inf], [0.0, inf, 5.0], [0.0, nan, 9.0], [0.0, 0.0, 0.0]], requires_grad=True)
    y = soft_argmax(x)
    assert y[:2].tolist() == [1, 1]
    assert y[2].isnan()
    assert y[3] == 1
    assert straight_through_argmax(x).argmax(1).tolist() == [0, 1, 1, 0]
    (g,) = torch.autograd.grad(y.sum(), x)
    assert not g[[0, 1, 3]].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    x = (3 * randn(4, 50)).to(dtype).requires_grad_()
    exact = x.detach().float().requires_grad_()
    y, wanted = soft_argmax(x, temperature=2.0), soft_argmax(exact, temperature=2.0)
    assert y.dtype == dtype
    assert torch.equal(y, wanted.to(dtype))
    ours, theirs = torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(wanted.sum(), exact)[0]
    assert torch.equal(ours, theirs.to(dtype))


def test_the_value_has_the_bits_of_torchs_softmax_times_the_indices() -> None:
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(soft_argmax(x), (x.softmax(-1) * torch.arange(30.0)).sum(-1))


def test_under_autocast_on_a_cpu_the_dtype_stays_as_for_softmax() -> None:
    x = torch.randn(2, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert soft_argmax(x).dtype == straight_through_argmax(x).dtype == torch.softmax(x, -1).dtype
        assert soft_argmax(x.double()).dtype == D


def test_only_the_input_is_kept_for_the_backward_pass() -> None:
    x = torch.randn(100, 50, requires_grad=True)
    for f in (soft_argmax, straight_through_argmax, lambda x: soft_argmax(x, (0, 1))):
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            f(x)
        assert [t.data_ptr() for t in kept] == [x.data_ptr()]


def test_an_empty_batch_is_allowed() -> None:
    x = torch.zeros(0, 4, requires_grad=True)
    assert soft_argmax(x).shape == (0,)
    assert soft_argmax(torch.zeros(0, 3, 4), (1, 2)).shape == (0, 2)
    assert straight_through_argmax(x).shape == (0, 4)
    assert torch.autograd.grad(soft_argmax(x).sum(), x)[0].shape == (0, 4)


def test_the_modules_are_the_functions() -> None:
    x = randn(2, 3, 4)
    for dims in (1, (2, 0)):
        module = pnn.SoftArgmax(dims, 2.5)
        assert torch.equal(module(x), PF.soft_argmax(x, dims, 2.5))
        assert repr(module) == f"SoftArgmax(dim={dims}, temperature=2.5)"
        assert not module.state_dict()
    assert repr(pnn.SoftArgmax([2, 0])) == "SoftArgmax(dim=(2, 0), temperature=1.0)"
    with raises(TypeError, "dim must be an int or several, got None"):
        pnn.SoftArgmax(None)(x)
    leaf = x.clone().requires_grad_()
    module = pnn.StraightThroughArgmax(1, temperature=0.3)
    (ours,) = torch.autograd.grad(module(leaf), leaf, x)
    close(ours, torch.func.vjp(lambda x: torch.softmax(0.3 * x, 1), x)[1](x)[0])
    assert repr(module) == "StraightThroughArgmax(dim=1, temperature=0.3)"


def test_both_compile_whole() -> None:
    def both(x: Tensor) -> Tensor:
        return soft_argmax(x, (1, 2), 2.0).sum() + (straight_through_argmax(x, 1, 0.5) * x.detach()).sum()

    gradients = []
    for f in (both, torch.compile(both, fullgraph=True, backend="aot_eager")):
        x = randn(2, 3, 4).requires_grad_()
        gradients.append(torch.autograd.grad(f(x), x)[0])
    close(*gradients)


# --- bad input ------------------------------------------------------------------------------------

BOTH = [soft_argmax, straight_through_argmax]


@pytest.mark.parametrize("function", [*BOTH, lambda x: soft_argmax_jacobian(x)])
def test_only_floating_tensors_with_a_dimension_are_taken(function: Callable[..., Tensor]) -> None:
    with raises(TypeError, "input must be a torch tensor", "got list"):
        function([1.0])
    with raises(TypeError, "input must be floating point", "torch.int64"):
        function(torch.arange(3))
    with raises(ValueError, "input must have at least one dimension", r"\(\)"):
        function(torch.tensor(1.0))
    with raises(ValueError, "input must have at least one entry along dim -1", r"\(2, 0\)"):
        function(torch.zeros(2, 0))


@pytest.mark.parametrize("function", [*BOTH, pnn.SoftArgmax, pnn.StraightThroughArgmax, soft_argmax_jacobian])
@pytest.mark.parametrize(
    ("temperature", "kind", "said"),
    [
        (0.0, ValueError, "finite and above 0, got 0.0"),
        (-1, ValueError, "finite and above 0, got -1"),
        (inf, ValueError, "a finite number, got inf"),
        (nan, ValueError, "a finite number, got nan"),
        ("1", TypeError, "a number, got str"),
        (torch.tensor(1.0), TypeError, "a number, got Tensor"),
    ],
    ids=str,
)
def test_the_temperature_is_a_finite_number_above_0(function: Any, temperature: Any, kind: Any, said: str) -> None:
    module = isinstance(function, type)
    with raises(kind, f"temperature must be {said}"):
        function(temperature=temperature) if module else function(torch.zeros(2), temperature=temperature)


@pytest.mark.parametrize(
    ("dim", "kind", "said"),
    [
        (2, IndexError, r"dim must lie from -2 to 1 for an input of shape \(2, 3\), got 2"),
        (-3, IndexError, "dim must lie from -2 to 1"),
        ((0, 2), IndexError, r"dim must lie from -2 to 1.*got \(0, 2\)"),
        ((0, -2), ValueError, r"dim must name at least one dimension, and each once, got \(0, -2\)"),
        ((), ValueError, r"dim must name at least one dimension, and each once, got \(\)"),
        (None, TypeError, "dim must be an int or several, got None"),
        (True, TypeError, "dim must be an int or several, got True"),
        ((0, 1.0), TypeError, r"dim must be an int or several, got \(0, 1.0\)"),
        ("01", TypeError, "dim must be an int or several, got '01'"),
    ],
    ids=str,
)
def test_dim_names_dimensions_of_the_input(dim: Any, kind: type[Exception], said: str) -> None:
    with raises(kind, said):
        soft_argmax(torch.zeros(2, 3), dim)


def test_straight_through_takes_one_dimension() -> None:
    for dim in ((0, 1), None, True):
        with raises(TypeError, f"dim must be an int, got {type(dim).__name__}"):
            straight_through_argmax(torch.zeros(2, 3), dim)
    with raises(IndexError, "dim must lie from -2 to 1"):
        straight_through_argmax(torch.zeros(2, 3), 2)
