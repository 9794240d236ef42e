"""The theorems of the chapter *LogSumExp*, and every property of its module but `smooth`."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import mpmath
import pytest
import sympy as sp
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import hessian, jacrev, vmap

import pwl_lib.nn as pnn
from pwl_lib import logsumexp as module
from pwl_lib.logsumexp import logsumexp, logsumexp_hessian, logsumexp_jacobian, lse_pool2d, mellowmax, softmax
from pwl_lib.losses import softmax_jacobian
from pwl_lib.pooling import max_pool2d

D = torch.float64
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INF, NAN = math.inf, math.nan
SOURCE = (1.0, 2.0, 3.0, 4.0, 2.0)

quick = settings(max_examples=30)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
entries = st.floats(-50, 50)
vectors = st.lists(entries, min_size=1, max_size=6)
temperatures = st.floats(-3, 3).map(lambda e: 10.0**e)
seeds = st.integers(0, 2**31 - 1)


def f64(x: Sequence[float]) -> Tensor:
    return torch.tensor(x, dtype=D)


def lse(x: Tensor, t: float) -> float:
    return logsumexp(x, -1, temperature=t).item()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def raises(kind: type[Exception], *said: str) -> Any:
    """The error names the argument, what it had and what was wanted."""
    return pytest.raises(kind, match="(?s)" + "".join(f"(?=.*{part})" for part in said))


def slack(x: Tensor, t: float) -> float:
    """What rounding may do to a value."""
    return 8 * torch.finfo(x.dtype).eps * (x.abs().max().item() + (1 + math.log(x.numel())) / t)


# --- exactly, by arbitrary precision ---------------------------------------------------------------


def exact(x: Sequence[float], t: float) -> tuple[mpmath.mpf, list[mpmath.mpf]]:
    """The value and the gradient, to 60 digits."""
    with mpmath.workdps(60):
        numbers, t = [mpmath.mpf(number) for number in x], mpmath.mpf(t)
        top = max(numbers)
        powers = [mpmath.exp(t * (number - top)) for number in numbers]
        total = mpmath.fsum(powers)
        return top + mpmath.log(total) / t, [power / total for power in powers]


any_finite = st.floats(-4, 4) | st.floats(allow_nan=False, allow_infinity=False, width=64)
any_temperature = (
    st.floats(0.01, 100)
    | st.floats(-307, 308).map(lambda e: 10.0**e)
    | st.sampled_from([5e-324, 1e-310, 1.7e308, 1.0, 0.3])
)


@pytest.mark.theorem("prop-lse-stable")
@settings(max_examples=120)
@given(st.lists(any_finite, min_size=1, max_size=5), any_temperature, st.sampled_from(DTYPES))
@example([1e8, 1e8 - 8], 0.3, torch.float32)
@example([-1.7e308, 1.7e308], 1e-308, D)
@example([1.0], 1e-300, torch.float32)
@example([1.0, 0.0], 1e300, torch.float32)
@example([60000.0, -60000.0], 1e-5, torch.float16)
def test_value_and_gradient_are_right_at_every_finite_input_and_temperature(
    x: list[float], t: float, dtype: torch.dtype
) -> None:
    limits = torch.finfo(dtype)
    given = torch.tensor(x, dtype=D).clamp(limits.min, limits.max).to(dtype)
    value, gradient = exact(given.tolist(), t)
    with mpmath.workdps(60):
        scale = mpmath.fsum(p * abs(n) for p, n in zip(gradient, given.tolist(), strict=True)) + (
            1 + mpmath.log(len(x))
        ) / mpmath.mpf(t)
        given = given.requires_grad_()
        y = logsumexp(given, 0, temperature=t)
        assert not y.isnan()
        if y.isinf():  # the rounded result is infinite
            assert abs(value) * (1 + limits.eps) >= mpmath.mpf(limits.max)
        else:
            assert abs(mpmath.mpf(y.item()) - value) <= 8 * limits.eps * scale + limits.tiny
    for ours in (torch.autograd.grad(y, given)[0], softmax(given.detach(), 0, temperature=t)):
        for mine, p in zip(ours.tolist(), gradient, strict=True):
            assert abs(mine - p) <= 8 * limits.eps
        assert abs(math.fsum(ours.tolist()) - 1) <= 8 * limits.eps


@settings(max_examples=50)
@given(st.lists(any_finite, min_size=1, max_size=5), any_temperature, st.sampled_from([torch.float32, D]))
@example([1.0, 2.0, 6.0], 5e-324, D)
@example([1.0, 2.0, 6.0], 1e-12, D)
@example([1.7e308, 1.7e308], 1e-310, D)
@example([1e-300, 3e-300], 1.0, D)
def test_mellowmax_is_right_at_every_finite_input_and_temperature(x: list[float], t: float, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    given = torch.tensor(x, dtype=D).clamp(limits.min, limits.max).to(dtype)
    with mpmath.workdps(700):  # the logarithm of the mean may be as small as the temperature
        numbers, tt = [mpmath.mpf(number) for number in given.tolist()], mpmath.mpf(t)
        top = max(numbers)
        mean = mpmath.fsum(mpmath.exp(tt * (number - top)) for number in numbers) / len(numbers)
        value = top + mpmath.log(mean) / tt
        scale = max(map(abs, numbers)) if max(numbers) - min(numbers) < 1000 / tt else abs(top) + 1 / tt
    y = mellowmax(given, 0, temperature=t).item()
    assert abs(y - value) <= 16 * limits.eps * scale + limits.tiny


# --- the source's numbers ---------------------------------------------------------------------------


def test_the_sources_numbers_come_out() -> None:
    assert round(lse(f64(SOURCE), 1.0), 6) == 4.523744
    assert (
        round(lse(f64(SOURCE), 10.0), 7) == 4.0000045
    )  # 4.0000046 in the source, whose last digits are those of float32
    x = torch.tensor(SOURCE)
    in_float32 = (10 * x).exp().sum().log()
    assert round(in_float32.item(), 6) == 40.000046
    assert abs(in_float32 / 10 - 4.0000046) < 3e-7
    assert round(x.exp().sum().item(), 4) == 92.1801


def test_the_exponentials_at_temperature_ten_and_where_each_dtype_overflows() -> None:
    printed = f64([2.7182817, 7.389056, 20.085537, 54.59815, 7.389056])
    assert torch.allclose(f64(SOURCE).exp(), printed, rtol=1e-6)
    right = (10 * f64(SOURCE)).exp()
    assert [f"{number:.4e}" for number in right.tolist()] == [
        "2.2026e+04",
        "4.8517e+08",
        "1.0686e+13",
        "2.3539e+17",
        "4.8517e+08",
    ]
    assert f"{right.sum():.4e}" == "2.3540e+17"
    for dtype, last in ((torch.float16, 11.089), (torch.float32, 88.722), (D, 709.782)):
        assert round(math.log(torch.finfo(dtype).max), 3) in (last, round(last + 0.001, 3))
        assert torch.tensor(last, dtype=D).to(dtype).exp().isfinite()
        assert torch.tensor(last + 0.02, dtype=D).to(dtype).exp().isinf()
    assert (22.19 * torch.tensor(SOURCE)).exp().sum().log().isinf()
    assert lse(torch.tensor(SOURCE), 22.19) == 4.0


# --- bounds, limit, order ---------------------------------------------------------------------------


@pytest.mark.theorem("thm-lse-bounds")
@quick
@given(vectors, temperatures)
def test_the_maximum_is_a_lower_bound_and_ln_n_over_t_the_largest_gap(x: list[float], t: float) -> None:
    n, top, rounding = len(x), max(x), slack(f64(x), t)
    gap = lse(f64(x), t) - top
    assert -rounding <= gap <= math.log(n) / t + rounding
    formula = math.log1p(sum(math.exp(-t * (top - number)) for number in x) - 1) / t
    assert abs(gap - formula) <= rounding
    assert (
        abs(lse(torch.full((n,), top, dtype=D), t) - top - math.log(n) / t) <= rounding
    )  # attained where all are equal


@pytest.mark.theorem("thm-lse-bounds")
@quick
@given(st.integers(2, 6), temperatures, st.floats(0.1, 5))
def test_the_upper_bound_is_attained_only_where_all_are_equal_and_the_lower_one_only_approached(
    n: int, t: float, lag: float
) -> None:
    behind = torch.zeros(n, dtype=D)
    behind[0] = -lag / t
    assert math.log(n) / t - lse(behind, t) > 1e-3 / t / n  # one entry behind: below the bound
    one = torch.full((n,), -lag / t, dtype=D)
    one[0] = 0
    exact_gap = math.log1p((n - 1) * math.exp(-lag)) / t
    assert lse(one, t) > 0  # never attained
    assert math.isclose(lse(one, t), exact_gap, rel_tol=1e-9)
    gaps = [lse(torch.cat([f64([0.0]), torch.full((n - 1,), -far / t, dtype=D)]), t) for far in (1, 10, 30)]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < n * 1e-13 / t


@pytest.mark.theorem("thm-lse-bounds")
def test_an_unstable_formula_would_break_the_bounds() -> None:
    naive = (100 * torch.tensor(SOURCE)).exp().sum().log() / 100
    assert naive.isinf()
    assert 4 <= lse(torch.tensor(SOURCE), 100.0) <= 4 + math.log(5) / 100


@pytest.mark.theorem("thm-lse-uniform")
@quick
@given(st.integers(1, 6), temperatures, seeds)
def test_the_largest_distance_to_the_maximum_over_all_inputs_is_ln_n_over_t(n: int, t: float, seed: int) -> None:
    x = 100 * randn(200, n, seed=seed)
    x[0] = 3.0  # the worst: all equal
    gaps = logsumexp(x, 1, temperature=t) - x.amax(1)
    assert abs(gaps.max().item() - math.log(n) / t) <= slack(x, t)
    assert gaps.argmax() == 0 or n == 1 or t < 0.05


def test_equality_with_the_maximum_holds_only_in_the_limit() -> None:
    x = f64(SOURCE)
    gaps = [mpmath_gap(SOURCE, t) for t in (1, 10, 100)]
    assert all(gap > 0 for gap in gaps)
    assert gaps == sorted(gaps, reverse=True)
    assert lse(x, 1.0) > 4 < lse(x, 10.0)
    assert lse(x, 1e6) == 4.0  # by rounding


def mpmath_gap(x: Sequence[float], t: float) -> mpmath.mpf:
    with mpmath.workdps(60):
        return exact(x, t)[0] - max(x)


@pytest.mark.theorem("prop-lse-monotone")
@quick
@given(vectors, st.floats(0.001, 0.1), st.floats(1.01, 10))  # 60 digits tell e^-100 from 0
def test_it_falls_with_the_temperature_strictly_for_two_entries_or_more(
    x: list[float], t: float, factor: float
) -> None:
    near, far = exact(x, t)[0], exact(x, factor * t)[0]
    with mpmath.workdps(60):
        assert near > far if len(x) > 1 else abs(near - far) < mpmath.mpf(10) ** -50
    assert lse(f64(x), t) >= lse(f64(x), factor * t) - slack(f64(x), t)


@pytest.mark.theorem("prop-lse-monotone")
@quick
@given(vectors, st.floats(0.1, 3))
def test_its_derivative_in_the_temperature_is_the_negative_entropy_over_t_squared(x: list[float], t: float) -> None:
    p = exact(x, t)[1]
    with mpmath.workdps(60):
        entropy = -mpmath.fsum(q * mpmath.log(q) for q in p)
        h = mpmath.mpf(10) ** -20
        slope = (exact(x, mpmath.mpf(t) + h)[0] - exact(x, mpmath.mpf(t) - h)[0]) / (2 * h)
        assert abs(slope + entropy / mpmath.mpf(t) ** 2) < 1e-15


# --- shift, stability, precision --------------------------------------------------------------------


@pytest.mark.theorem("prop-lse-stable")
@quick
@given(vectors, temperatures, st.floats(-100, 100))
def test_a_shift_of_the_input_shifts_the_value_and_not_the_gradient(x: list[float], t: float, c: float) -> None:
    a = f64(x)
    rounding = slack(a, t) + 1e-13
    assert abs(lse(a + c, t) - lse(a, t) - c) <= rounding
    p, q = (logsumexp_jacobian(each, t) for each in (a, a + c))
    assert (p - q).abs().max() <= 8 * torch.finfo(D).eps * (1 + 200 * t)


@each_dtype
def test_at_temperature_one_values_are_torchs_bit_for_bit(dtype: torch.dtype) -> None:
    x = (4 * randn(3, 5, 7)).to(dtype)
    wide = x if dtype in (torch.float32, D) else x.float()  # in half precision torch rounds after every step
    for dim in (0, 1, 2, -1):
        assert torch.equal(logsumexp(x, dim), torch.logsumexp(wide, dim).to(dtype))
        assert torch.equal(softmax(x, dim), torch.softmax(x, dim))
    for dims in ((0, 1), [2], (-1, 0)):
        assert torch.equal(logsumexp(x, dims, True), torch.logsumexp(wide, dims, True).to(dtype))
    assert torch.equal(softmax(x, 1, D), torch.softmax(x, 1, D))
    upstream = torch.linspace(-1, 1, x.numel()).reshape(x.shape).to(dtype)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours = torch.autograd.grad(softmax(a, 1), a, upstream)[0]
    assert torch.equal(ours, torch.autograd.grad(torch.softmax(b, 1), b, upstream)[0])


def test_the_gradient_is_right_where_torchs_is_too_large_by_the_number_of_ties() -> None:
    x = torch.full((4,), 1e8, requires_grad=True)
    ours, theirs = (torch.autograd.grad(y, x)[0] for y in (logsumexp(x, 0), torch.logsumexp(x, 0)))
    assert ours.tolist() == [0.25] * 4
    assert theirs.tolist() == [1.0] * 4


@each_dtype
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = (3 * randn(200, 64)).to(dtype)
    if dtype in (torch.float16, torch.bfloat16):  # one rounding, at the end
        for t in (0.3, 3.0):
            for f in (logsumexp, mellowmax):
                assert torch.equal(f(x, 1, temperature=t), f(x.float(), 1, temperature=t).to(dtype))
            assert torch.equal(softmax(x, 1, temperature=t), softmax(x.float(), 1, temperature=t).to(dtype))
    x = torch.linspace(-3, 3, 64).to(dtype)
    for t in (1e-45, 1e300):  # no normal number of float32
        assert softmax(x, 0, temperature=t).isfinite().all()
    assert logsumexp(x, 0, temperature=1e300) == 3
    assert mellowmax(torch.tensor([1.0, 2.0, 6.0], dtype=dtype), 0, temperature=1e-45) == 3


def test_a_result_beyond_the_dtype_is_infinite_and_one_within_is_not() -> None:
    x = torch.zeros(3, dtype=torch.float16)
    assert logsumexp(x, 0, temperature=1e-6).item() == INF  # ln 3 / t is 1.1e6
    assert logsumexp(x.float(), 0, temperature=1e-6).isfinite()
    assert logsumexp(torch.zeros(1, dtype=D), 0, temperature=5e-324).item() == 0
    many = torch.zeros(70_000, dtype=torch.float16)  # more than the largest float16
    assert torch.logsumexp(many, 0).item() == INF
    for t in (1.0, 2.0):
        assert abs(logsumexp(many, 0, temperature=t) - math.log(70_000) / t) < 0.01


# --- gradient ---------------------------------------------------------------------------------------


@pytest.mark.theorem("thm-lse-gradient")
@quick
@given(vectors, temperatures)
def test_the_gradient_is_softmax_of_the_input_times_the_temperature(x: list[float], t: float) -> None:
    a = f64(x).requires_grad_()
    wanted = torch.softmax(t * a.detach(), 0)
    tolerance = 1e-14 * (1 + 100 * t)
    for got in (
        torch.autograd.grad(logsumexp(a, 0, temperature=t), a)[0],
        torch.autograd.grad(mellowmax(a, 0, temperature=t), a)[0],
        jacrev(lambda a: logsumexp(a, 0, temperature=t))(a.detach()),
        logsumexp_jacobian(a.detach(), t)[0],
        softmax(a.detach(), 0, temperature=t),
    ):
        assert (got - wanted).abs().max() <= tolerance
        assert abs(got.sum() - 1) < 1e-14
        assert (got >= 0).all()


@pytest.mark.theorem("thm-lse-gradient")
def test_sympy_finds_the_same_gradient_and_hessian_for_two_and_three_entries() -> None:
    t = sp.Symbol("t", positive=True)
    for n in (2, 3):
        names = sp.symbols(f"x1:{n + 1}", real=True)
        y = sp.log(sum(sp.exp(t * name) for name in names)) / t
        p = sp.Matrix([sp.exp(t * name) for name in names]) / sum(sp.exp(t * name) for name in names)
        gradient = sp.Matrix([sp.diff(y, name) for name in names])
        assert sp.simplify(gradient - p).is_zero_matrix
        H = sp.hessian(y, names)
        assert sp.simplify(H - t * (sp.diag(*p) - p * p.T)).is_zero_matrix
        at = dict(zip(names, (sp.Rational(1, 2), -1, sp.Rational(1, 3)), strict=False)) | {t: 2}
        point = f64([0.5, -1, 1 / 3][:n])
        assert torch.allclose(logsumexp_hessian(point, 2.0), f64([float(v) for v in H.subs(at)]).reshape(n, n))


@pytest.mark.theorem("thm-lse-gradient")
def test_as_the_temperature_grows_the_gradient_goes_to_the_mean_of_the_tied_unit_vectors() -> None:
    x = f64([1, 3, 3, 0])
    assert torch.allclose(logsumexp_jacobian(x, 1e3)[0], f64([0, 0.5, 0.5, 0]), atol=1e-12)
    assert torch.allclose(logsumexp_jacobian(x, 1e-9)[0], f64([0.25] * 4), atol=1e-8)


@pytest.mark.theorem("thm-lse-gradient")
@pytest.mark.parametrize("t", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("dim", [0, -1, (0, 2), (1,)], ids=str)
def test_derivatives_of_both_orders_agree_with_finite_differences(dim: Any, t: float) -> None:
    x = randn(2, 3, 2).requires_grad_()
    words = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    functions = [lambda x: logsumexp(x, dim, temperature=t), lambda x: mellowmax(x, dim, True, temperature=t)]
    if isinstance(dim, int):
        functions.append(lambda x: softmax(x, dim, temperature=t))
    for f in functions:
        assert torch.autograd.gradcheck(f, (x,), **words)
        assert torch.autograd.gradgradcheck(f, (x,), check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("dim", [0, 1, -1, (0, 1), (-1, 0)], ids=str)
@pytest.mark.parametrize("keepdim", [False, True])
def test_the_gradient_has_the_shape_of_the_input_for_every_dimension(dim: Any, keepdim: bool) -> None:
    x = randn(2, 3, 4).requires_grad_()
    y, wanted = logsumexp(x, dim, keepdim, 3.0), torch.logsumexp(3 * x, dim, keepdim) / 3
    assert torch.allclose(y, wanted)
    g = randn(*y.shape, seed=1)
    assert torch.allclose(*(torch.autograd.grad(out, x, g)[0] for out in (y, wanted)), rtol=1e-13)
    inner = vmap(lambda row: logsumexp(row, -1, keepdim, 3.0))
    assert torch.allclose(inner(x), torch.logsumexp(3 * x, -1, keepdim) / 3)


# --- Hessian, convexity -----------------------------------------------------------------------------


@pytest.mark.theorem("thm-lse-hessian")
@quick
@given(vectors, st.floats(0.01, 100), seeds)
def test_the_hessian_is_positive_semidefinite_and_at_most_half_the_temperature(
    x: list[float], t: float, seed: int
) -> None:
    a = f64(x)
    H = logsumexp_hessian(a, t)
    p = torch.softmax(t * a, 0)
    assert torch.allclose(H, t * (torch.diag(p) - torch.outer(p, p)), atol=1e-11 * t)
    assert torch.equal(H, H.T)
    assert (H @ torch.ones_like(a)).abs().max() <= 1e-14 * t
    eigenvalues = torch.linalg.eigvalsh(H)
    assert eigenvalues.min() >= -1e-13 * t
    assert eigenvalues.max() <= t / 2 + 1e-13 * t
    v = randn(len(x), seed=seed)
    spread = v.max() - v.min()
    mean = p @ v
    assert torch.allclose(v @ H @ v, t * (p * (v - mean) ** 2).sum(), atol=1e-11 * t)
    assert v @ H @ v <= t * spread**2 / 4 + 1e-12 * t


@pytest.mark.theorem("thm-lse-hessian")
@quick
@given(vectors, st.floats(0.05, 20))
def test_the_hessian_is_that_of_autograd_and_of_the_chapter_on_losses(x: list[float], t: float) -> None:
    a = f64(x)
    H = logsumexp_hessian(a, t)
    assert torch.allclose(hessian(lambda a: logsumexp(a, 0, temperature=t))(a), H, atol=1e-12 * t)
    assert torch.allclose(jacrev(lambda a: softmax(a, 0, temperature=t))(a), H, atol=1e-12 * t)
    assert torch.allclose(t * softmax_jacobian(t * a), H, atol=1e-11 * t)


@pytest.mark.theorem("thm-lse-hessian")
@quick
@given(st.integers(2, 6), st.floats(0.1, 10))
def test_half_the_temperature_is_attained_for_two_equal_entries_and_only_approached_for_more(n: int, t: float) -> None:
    largest = []
    for far in (2.0, 8.0, 30.0):
        x = torch.full((n,), -far / t, dtype=D)
        x[:2] = 0
        largest.append(torch.linalg.eigvalsh(logsumexp_hessian(x, t)).max().item() / t)
    assert abs(largest[-1] - 0.5) < 1e-11
    if n == 2:
        assert all(abs(value - 0.5) < 1e-14 for value in largest)
        apart = logsumexp_hessian(f64([0.0, 1 / t]), t)
        assert torch.linalg.eigvalsh(apart).max() < 0.45 * t
    else:
        assert largest[0] < largest[1] < 0.5


@pytest.mark.theorem("thm-lse-convex")
@quick
@given(st.integers(1, 5), temperatures, st.floats(0, 1), seeds)
def test_it_is_convex_and_affine_only_along_the_vector_of_ones(n: int, t: float, share: float, seed: int) -> None:
    a, b = randn(2, n, seed=seed)
    chord = share * lse(a, t) + (1 - share) * lse(b, t)
    assert lse(share * a + (1 - share) * b, t) <= chord + slack(torch.cat([a, b]), t)
    middle = lse((a + b) / 2, 1.0)
    strict = lse(a, 1.0) / 2 + lse(b, 1.0) / 2 - middle
    if n > 1:
        assert strict > 0
    assert abs(lse(a, 1.0) / 2 + lse(a + 3, 1.0) / 2 - lse(a + 1.5, 1.0)) < 1e-13


@pytest.mark.theorem("thm-lse-convex")
@quick
@given(vectors, temperatures, st.floats(0, 5), seeds)
def test_it_grows_with_every_entry_and_by_at_most_the_largest_change(
    x: list[float], t: float, size: float, seed: int
) -> None:
    a = f64(x)
    up = size * torch.rand(len(x), dtype=D, generator=torch.Generator().manual_seed(seed))
    change = lse(a + up, t) - lse(a, t)
    assert -slack(a, t) <= change <= up.max().item() + slack(a + up, t)
    other = a + size * randn(len(x), seed=seed)
    assert abs(lse(other, t) - lse(a, t)) <= (other - a).abs().max().item() + slack(other, t)


@pytest.mark.theorem("thm-lse-hessian")
@quick
@given(vectors, st.floats(0.05, 20), seeds)
def test_the_gradient_is_lipschitz_with_half_the_temperature(x: list[float], t: float, seed: int) -> None:
    a = f64(x)
    b = a + randn(len(x), seed=seed) / t
    change = (logsumexp_jacobian(b, t) - logsumexp_jacobian(a, t)).norm()
    assert change <= t / 2 * (b - a).norm() + 1e-12


# --- the conjugate ----------------------------------------------------------------------------------


def negative_entropy(q: Tensor, t: float) -> Tensor:
    return torch.xlogy(q, q).sum() / t


@pytest.mark.theorem("thm-lse-conjugate")
@quick
@given(vectors, st.floats(0.05, 20), seeds)
def test_the_conjugate_on_the_simplex_is_the_negative_entropy_over_t(x: list[float], t: float, seed: int) -> None:
    a = f64(x)
    q = torch.softmax(3 * randn(len(x), seed=seed), 0)
    bound = negative_entropy(q, t)
    rounding = slack(a, t)
    assert q @ a - lse(a, t) <= bound + rounding  # Fenchel and Young
    best = q.log() / t
    assert abs(q @ best - lse(best, t) - bound) <= 1e-12 * (1 + 1 / t)  # attained
    p = logsumexp_jacobian(a, t)[
        0
    ]  # and the other way round: LSE is the largest <q, x> minus the conjugate, at softmax
    assert abs(p @ a - negative_entropy(p, t) - lse(a, t)) <= rounding


@pytest.mark.theorem("thm-lse-conjugate")
@quick
@given(st.integers(1, 5), st.floats(0.1, 10), st.integers(0, 4))
def test_the_conjugate_is_approached_on_the_faces_and_infinite_outside_the_simplex(n: int, t: float, k: int) -> None:
    corner = torch.zeros(n, dtype=D)
    corner[k % n] = 1
    far = torch.where(corner > 0, 0.0, -40 / t).to(D)
    assert abs(corner @ far - lse(far, t)) < 1e-15 * n / t + 1e-15  # the entropy of a corner is 0
    for q in (corner * 1.5, corner * 0.5, corner - 0.25 * torch.eye(n, dtype=D)[(k + 1) % n]):
        rises = []
        for size in (1e3, 1e6):
            directions = [torch.ones(n, dtype=D), -torch.ones(n, dtype=D), *-torch.eye(n, dtype=D)]
            rises.append(max((q @ (size * v) - lse(size * v, t)).item() for v in directions))
        assert rises[1] > 100 * rises[0] > 0


# --- mellowmax --------------------------------------------------------------------------------------


@pytest.mark.theorem("prop-mellowmax")
@quick
@given(vectors, temperatures, st.floats(1.01, 10))
def test_mellowmax_lies_between_the_mean_and_the_maximum_and_grows_with_the_temperature(
    x: list[float], t: float, factor: float
) -> None:
    a = f64(x)
    value, larger = (mellowmax(a, 0, temperature=each).item() for each in (t, factor * t))
    rounding = slack(a, 1.0)
    assert a.mean().item() - rounding <= value <= larger + rounding
    assert larger <= max(x) + rounding
    assert value >= max(x) - math.log(len(x)) / t - rounding
    assert abs(value - lse(a, t) + math.log(len(x)) / t) <= slack(a, t)


@pytest.mark.theorem("prop-mellowmax")
def test_mellowmax_goes_to_the_mean_and_to_the_maximum() -> None:
    x = f64(SOURCE)
    assert abs(mellowmax(x, 0, temperature=1e-12) - 2.4) < 1e-11
    assert abs(mellowmax(x, 0, temperature=1e-320) - 2.4) < 1e-15
    assert abs(mellowmax(x, 0, temperature=1e6) - 4) < 2e-6
    assert torch.equal(mellowmax(torch.full((7,), 3.5), 0), torch.tensor(3.5))
    leader = torch.zeros(10**6, dtype=D)
    leader[0] = 1e5
    assert abs(mellowmax(leader, 0, temperature=0.01) - (1e5 - 100 * math.log(10**6))) < 1e-10  # the mean is 10^-6


@pytest.mark.theorem("prop-mellowmax")
@quick
@given(vectors, temperatures, seeds)
def test_mellowmax_is_a_non_expansion_and_the_mean_weighted_by_softmax_is_not(
    x: list[float], t: float, seed: int
) -> None:
    a = f64(x)
    b = a + 3 * randn(len(x), seed=seed)
    change = abs(mellowmax(a, 0, temperature=t) - mellowmax(b, 0, temperature=t))
    assert change <= (a - b).abs().max() + 1e-12
    boltzmann = lambda x: softmax(x, 0) @ x
    a, b = f64([0.0, 4.0]), f64([0.0, 3.0])
    assert boltzmann(a) - boltzmann(b) > (a - b).abs().max()


# --- infinite entries, NaN, nothing -----------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("t", [1.0, 0.25, 4.0, 1e-320, 1e300])
@pytest.mark.parametrize("f", [logsumexp, mellowmax])
def test_infinite_entries_and_nan(f: Any, t: float, dtype: torch.dtype) -> None:
    rows = torch.tensor(
        [[-INF, -INF, -INF], [INF, 1, INF], [INF, INF, -INF], [-INF, 2, -INF], [NAN, 1, 2], [NAN, INF, -INF]],
        dtype=dtype,
    ).requires_grad_()
    y = f(rows, 1, temperature=t)
    assert y[:3].tolist() == [-INF, INF, INF]
    if f is logsumexp:
        assert y[3] == 2
    assert y[4:].isnan().all()
    gradient = torch.autograd.grad(y.sum(), rows)[0]
    wanted = torch.tensor([[0, 0, 0], [0.5, 0, 0.5], [0.5, 0.5, 0], [0, 1, 0]], dtype=dtype)
    assert torch.equal(gradient[:4], wanted)
    assert gradient[4:].isnan().all()
    assert torch.equal(softmax(rows.detach(), 1, temperature=t)[:4], wanted)
    assert softmax(rows.detach(), 1, temperature=t)[4:].isnan().all()


def test_torch_has_nan_where_a_row_holds_nothing_but_minus_infinity() -> None:
    x = torch.full((2, 3), -INF, requires_grad=True)
    assert torch.autograd.grad(torch.logsumexp(x, 1).sum(), x)[0].isnan().all()
    assert torch.softmax(x.detach(), 1).isnan().all()
    for f in (lambda x: logsumexp(x, 1), lambda x: softmax(x, 1), lambda x: logsumexp(x, (0, 1), temperature=2.0)):
        gradient = torch.autograd.grad(f(x).sum(), x, create_graph=True)[0]
        assert not gradient.any()
        if gradient.requires_grad:
            assert not torch.autograd.grad(gradient.sum(), x)[0].any()


def test_gradients_at_infinity_are_the_same_in_every_mode() -> None:
    x = torch.tensor([[-INF, -INF], [INF, 3.0], [1.0, 1.0]])
    f = lambda row: logsumexp(row, 0, temperature=2.0)
    wanted = torch.tensor([[0.0, 0], [1, 0], [0.5, 0.5]])
    assert torch.equal(vmap(jacrev(f))(x), wanted)
    assert torch.equal(vmap(torch.func.jacfwd(f))(x), wanted)
    H = vmap(hessian(f))(x)
    assert not H[:2].any()
    assert torch.equal(H[2], torch.tensor([[0.5, -0.5], [-0.5, 0.5]]))


@pytest.mark.parametrize("n", [3, 63, 64, 200])
def test_the_gradient_of_short_rows_and_of_long_ones(n: int) -> None:
    x = randn(5, n)
    x[1] = -INF
    x[2, :2] = INF
    x[3, ::2] = -INF
    x.requires_grad_()
    for t in (0.5, 1.0, 4.0):
        gradient = torch.autograd.grad(logsumexp(x, 1, temperature=t).sum(), x, create_graph=True)[0]
        wanted = torch.softmax(t * x.detach(), 1)
        wanted[1], wanted[2] = 0, torch.where(x[2] == INF, 0.5, 0.0)
        assert torch.allclose(gradient, wanted, rtol=1e-13)
        v = randn(5, n, seed=1)
        second = torch.autograd.grad(gradient, x, v)[0]
        p = wanted[[0, 3, 4]]
        v = v[[0, 3, 4]]
        assert torch.allclose(second[[0, 3, 4]], t * p * (v - (p * v).sum(1, keepdim=True)), atol=1e-14)
        assert second.isfinite().all()


def test_nothing_to_sum() -> None:
    for shape, dim in (((2, 0), 1), ((0, 3), 1), ((0,), 0), ((2, 0, 3), (1, 2))):
        x = torch.zeros(shape, requires_grad=True)
        for t in (1.0, 2.0):
            y = logsumexp(x, dim, temperature=t)
            assert torch.equal(y, torch.logsumexp(x, dim))
            assert torch.autograd.grad(y.sum(), x)[0].shape == shape
    assert softmax(torch.zeros(2, 0), 1, temperature=2.0).shape == (2, 0)
    with raises(ValueError, "input must have at least one entry along dim", "1", r"\(2, 0\)"):
        mellowmax(torch.zeros(2, 0), 1)
    assert mellowmax(torch.zeros(0, 2), 1).shape == (0,)


def test_a_number_is_its_own_smooth_maximum() -> None:
    x = torch.tensor(1.7, requires_grad=True)
    for f in (logsumexp, mellowmax):
        for t in (0.1, 1.0, 7.0):
            y = f(x, 0, temperature=t)
            assert y.shape == ()
            assert y.item() == x.item()
            assert torch.autograd.grad(y, x)[0] == 1
    assert softmax(x, -1, temperature=3.0) == 1


# --- what the backward pass keeps -------------------------------------------------------------------


@pytest.mark.parametrize(
    "f",
    [
        lambda x: logsumexp(x, 1, temperature=2.0),
        lambda x: mellowmax(x, 1),
        lambda x: softmax(x, 1, temperature=2.0),
        lambda x: lse_pool2d(x[None], 2, temperature=2.0),
    ],
)
def test_one_tensor_of_the_size_of_the_input_is_kept(f: Any) -> None:
    x = torch.randn(8, 10, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        f(x)
    assert sum(sizes) == x.numel()


def test_nothing_is_made_where_no_derivative_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "pick", None)
    x = torch.randn(2, 4, 4)
    with torch.no_grad():
        for f in (logsumexp, mellowmax, softmax):
            assert f(x.requires_grad_(), 1).isfinite().all()
        assert lse_pool2d(x, 2).isfinite().all()
    with pytest.raises(TypeError):
        logsumexp(x, 1)


# --- pooling ----------------------------------------------------------------------------------------


@st.composite
def pools(draw: Any) -> tuple[tuple[int, int], dict[str, Any]]:
    """The size of an image, and words of a pooling function that fit it."""
    size, words = [], {"kernel_size": [], "stride": [], "padding": [], "dilation": []}
    for _ in range(2):
        k = draw(st.integers(1, 3))
        p, d = draw(st.integers(0, k // 2)), draw(st.integers(1, 2))
        for word, value in zip(words.values(), (k, draw(st.integers(1, 3)), p, d), strict=True):
            word.append(value)
        least = max(1, d * (k - 1) + 1 - 2 * p, d if p else 1)
        size.append(draw(st.integers(least, max(6, least))))
    return (size[0], size[1]), words | {"ceil_mode": draw(st.booleans())}


def pooled_by_the_definition(x: Tensor, words: dict[str, Any], t: float) -> Tensor:
    """Window by window, of images ``(D, H, W)``, by torch's operations."""
    shape = F.max_pool2d(x, **words).shape
    k, s, p, d = (words[word] for word in ("kernel_size", "stride", "padding", "dilation"))
    outputs = []
    for i in range(shape[1]):
        for j in range(shape[2]):
            rows = [s[0] * i - p[0] + d[0] * a for a in range(k[0]) if 0 <= s[0] * i - p[0] + d[0] * a < x.shape[1]]
            columns = [s[1] * j - p[1] + d[1] * a for a in range(k[1]) if 0 <= s[1] * j - p[1] + d[1] * a < x.shape[2]]
            outputs.append(torch.logsumexp(t * x[:, rows][:, :, columns].flatten(1), 1) / t)
    return torch.stack(outputs, 1).reshape(shape)


@pytest.mark.theorem("prop-lse-pool")
@settings(max_examples=40)
@given(pools(), st.sampled_from([0.2, 1.0, 5.0]), seeds)
def test_pooling_is_logsumexp_of_each_window_with_the_windows_of_max_pooling(pool: Any, t: float, seed: int) -> None:
    size, words = pool
    x = randn(2, *size, seed=seed).requires_grad_()
    y, wanted = lse_pool2d(x, **words, temperature=t), pooled_by_the_definition(x, words, t)
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    g = randn(*y.shape, seed=seed + 1)
    ours, theirs = (torch.autograd.grad(out, x, g, create_graph=True)[0] for out in (y, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert abs(ours.sum() - g.sum()) < 1e-12  # what arrives is shared out
    v = randn(*x.shape, seed=seed + 2)
    second = (torch.autograd.grad(each, x, v, retain_graph=True)[0] for each in (ours, theirs))
    torch.testing.assert_close(*second, rtol=1e-11, atol=1e-11)
    top = max_pool2d(x, **words)
    gap = y - top
    assert (gap >= -1e-14).all()
    assert (gap <= math.log(math.prod(words["kernel_size"])) / t + 1e-14).all()


@pytest.mark.theorem("prop-lse-pool")
def test_where_no_window_has_a_tie_the_gradient_of_pooling_goes_to_that_of_max_pooling() -> None:
    x = torch.randperm(30, generator=torch.Generator().manual_seed(0)).to(D).reshape(1, 5, 6).requires_grad_()
    g = randn(1, 4, 5)
    smooth = torch.autograd.grad(lse_pool2d(x, 2, 1, temperature=200.0), x, g)[0]
    hard = torch.autograd.grad(max_pool2d(x, 2, 1), x, g)[0]
    assert torch.allclose(smooth, hard, atol=1e-14)


@pytest.mark.parametrize("t", [0.25, 3.0])
def test_pooling_in_every_mode_of_differentiation(t: float) -> None:
    x = randn(2, 1, 3, 3).requires_grad_()
    f = lambda x: lse_pool2d(x, 2, 1, (1, 0), temperature=t)
    assert torch.autograd.gradcheck(f, (x,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, (x,), check_fwd_over_rev=True, check_batched_grad=True)
    torch.testing.assert_close(vmap(lambda x: f(x))(x[:, None])[:, 0], f(x))
    energy = lambda x: f(x).square().sum()  # in a transform the mending of infinite pixels is always on
    by_transform, by_autograd = hessian(energy)(x), torch.autograd.functional.hessian(energy, x)
    torch.testing.assert_close(by_transform, by_autograd)


@each_dtype
def test_pooling_at_extreme_pixels_and_temperatures(dtype: torch.dtype) -> None:
    big = torch.finfo(dtype).max
    x = torch.tensor(
        [[-INF, -INF, INF, INF], [-INF, -INF, INF, 1], [big, -big, 3, 3], [-big, -INF, 3, 3]], dtype=dtype
    )[None].requires_grad_()
    for t in (1e-3, 1.0, 30.0, 1e300):
        y = lse_pool2d(x, 2, temperature=t)
        assert y[0, 0].tolist() == [-INF, INF]
        assert y[0, 1, 0] == big
        gradient = torch.autograd.grad(y.sum(), x)[0]
        assert not gradient[0, :2, :2].any()
        third = torch.ones((), dtype=dtype) / 3
        assert torch.equal(gradient[0, :2, 2:], torch.stack([third, third, third, 0 * third]).reshape(2, 2))
        assert torch.allclose(gradient[0, 2:, 2:], torch.full((2, 2), 0.25, dtype=dtype))
    assert lse_pool2d(torch.tensor([[[NAN, 1.0]]], dtype=dtype), (1, 2)).isnan().all()
    equal = torch.full((1, 2, 2), 1e4, dtype=dtype).requires_grad_()
    for t in (0.3, 1.0, 1e4):
        assert torch.autograd.grad(lse_pool2d(equal, 2, temperature=t).sum(), equal)[0].eq(0.25).all()


def test_pooling_keeps_the_layout() -> None:
    x = randn(2, 5, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = lse_pool2d(x, 3, 2, 1)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.autograd.grad(y.sum(), x)[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, lse_pool2d(x.contiguous(), 3, 2, 1))


# --- modules ----------------------------------------------------------------------------------------


def test_modules_are_their_functions() -> None:
    x = randn(2, 3, 4, 4)
    cases = (
        (pnn.LogSumExp(-1, temperature=3.0), logsumexp(x, -1, temperature=3.0)),
        (pnn.LogSumExp((1, 2), True), logsumexp(x, (1, 2), True)),
        (pnn.Softmax(1, 3.0), softmax(x, 1, temperature=3.0)),
        (pnn.Softmax(dim=-1), nn.Softmax(dim=-1)(x)),
        (pnn.LSEPool2d(2, temperature=3.0), lse_pool2d(x, 2, temperature=3.0)),
        (pnn.LSEPool2d(3, 1, 1, 1, True, 0.5), lse_pool2d(x, 3, 1, 1, 1, True, 0.5)),
    )
    for layer, wanted in cases:
        assert torch.equal(layer(x), wanted)
        twin = pickle.loads(pickle.dumps(layer))
        assert repr(twin) == repr(layer)
        assert f"temperature={layer.temperature}" in repr(layer)
        assert not layer.state_dict()


def test_softmax_without_a_dimension_takes_torchs_and_warns() -> None:
    for dims in range(1, 5):
        x = randn(*range(2, 2 + dims))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = nn.Softmax()(x)
        with pytest.warns(UserWarning, match="dim of softmax should be given"):
            assert torch.equal(pnn.Softmax()(x), wanted)


# --- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "f",
    [
        lambda t: logsumexp(torch.ones(2), 0, temperature=t),
        lambda t: mellowmax(torch.ones(2), 0, temperature=t),
        lambda t: softmax(torch.ones(2), 0, temperature=t),
        lambda t: lse_pool2d(torch.ones(1, 2, 2), 2, temperature=t),
        lambda t: logsumexp_jacobian(torch.ones(2), t),
        lambda t: logsumexp_hessian(torch.ones(2), t),
        lambda t: pnn.LogSumExp(0, temperature=t),
        lambda t: pnn.Softmax(0, t),
        lambda t: pnn.LSEPool2d(2, temperature=t),
    ],
)
def test_a_temperature_must_be_a_finite_number_above_0(f: Any) -> None:
    for t in (0, -1.0):
        with raises(ValueError, "temperature must be finite and above 0", str(t)):
            f(t)
    for t in (INF, NAN, 10**400):
        with raises(ValueError, "temperature must be a finite number", str(t)):
            f(t)
    for t in ("1", None, True, torch.tensor(1.0)):
        with raises(TypeError, "temperature must be a number", type(t).__name__):
            f(t)


def test_all_functions_compile_whole() -> None:
    # What is computed from a temperature, a number, must not make a tensor of it: torch 2.9 cannot follow that.
    def together(x: Tensor) -> list[Tensor]:
        images = x.unflatten(1, (4, 4))[:, None]
        return [
            logsumexp(x, 1, temperature=3.0),
            softmax(x, 1),
            mellowmax(x, 1),
            lse_pool2d(images, 2, temperature=2.0),
        ]

    x = randn(3, 16)
    for ours, eager in zip(torch.compile(together, fullgraph=True, backend="aot_eager")(x), together(x), strict=True):
        torch.testing.assert_close(ours, eager)


def test_bad_dimensions_and_tensors_are_refused_with_what_was_wanted() -> None:
    x = torch.ones(2, 3)
    for f in (logsumexp, mellowmax):
        with raises(IndexError, "dim must lie from -2 to 1", r"\(2, 3\)", "got 2"):
            f(x, 2)
        with raises(ValueError, "dim must name at least one dimension, and each once", r"\(0, -2\)"):
            f(x, (0, -2))
        with raises(ValueError, "dim must name at least one dimension"):
            f(x, ())
        with raises(TypeError, "dim must be an int or several", "1.0"):
            f(x, 1.0)
        with raises(TypeError, "keepdim must be a bool", "int"):
            f(x, 1, 1)
    with raises(IndexError, "dim must lie from -1 to 0", "got 1"):
        softmax(torch.tensor(1.0), 1)
    with raises(TypeError, "dim must be an int or None", "tuple"):
        softmax(x, (0, 1))
    with raises(TypeError, "dtype must be a floating point dtype", "int64"):
        softmax(x, 1, torch.int64)
    assert torch.equal(softmax(torch.arange(3), 0, D), torch.softmax(torch.arange(3), 0, D))
    for f in (logsumexp_jacobian, logsumexp_hessian):
        with raises(ValueError, r"input must have shape \(\.\.\., n\)", r"got \(\)"):
            f(torch.tensor(1.0))
    for f in (lambda x: logsumexp(x, 0), lambda x: softmax(x, 0), logsumexp_hessian, lambda x: lse_pool2d(x, 1)):
        with raises(TypeError, "input must be floating point", "int64"):
            f(torch.ones(1, 2, 2, dtype=torch.int64))
        with raises(TypeError, "input must be a torch tensor", "list"):
            f([1.0])
    with raises(ValueError, r"input must have shape \(N, C, H, W\)", r"\(2, 3\)"):
        lse_pool2d(x, 2)
    with raises(ValueError, "padding must be at most half of kernel_size"):
        lse_pool2d(x[None], 2, padding=2)


def test_matrices_of_a_batch_are_those_of_its_rows() -> None:
    x = randn(2, 3, 4)
    J, H = logsumexp_jacobian(x, 2.0), logsumexp_hessian(x, 2.0)
    assert J.shape == (2, 3, 1, 4)
    assert H.shape == (2, 3, 4, 4)
    for i in range(2):
        for j in range(3):
            assert torch.allclose(J[i, j], logsumexp_jacobian(x[i, j], 2.0), rtol=1e-15)
            assert torch.allclose(H[i, j], logsumexp_hessian(x[i, j], 2.0), rtol=1e-14)
