"""The rectifiers beyond the layer contract: choices at the kink, bad input, circuits and sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import pwl_lib.nn as pnn
from pwl_lib import rectifiers
from pwl_lib.rectifiers import (
    absolute,
    bridge,
    diode,
    half_wave,
    hardtanh,
    leaky_relu,
    phase_max,
    phase_sum,
    prelu,
    prelu_jacobian,
    relu,
    ripple_bounds,
    sigmoid_sum,
    sum_of_relus,
    wright_omega,
)

vectors = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, 1.0, -1.0]), min_size=1, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def slope(function: Callable[[Tensor], Tensor], at: float) -> float:
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(x), x)
    return gradient.item()


# --- the layers -----------------------------------------------------------------------------------


@given(vectors)
def test_the_family_is_made_of_two_relus(x: Tensor) -> None:
    assert torch.equal(relu(x) - relu(-x), x)
    assert torch.equal(absolute(x), relu(x) + relu(-x))
    assert torch.equal(leaky_relu(x, 0.125), relu(x) - 0.125 * relu(-x))
    assert torch.equal(prelu(x, x.new_tensor([0.125])), leaky_relu(x, 0.125))
    assert torch.equal(leaky_relu(x, -1.0), absolute(x))
    assert torch.equal(hardtanh(x, -math.inf, math.inf), x)
    assert torch.equal(hardtanh(x, 0.0, math.inf), relu(x))


@given(st.floats(0, 1), st.floats(-4, 4))
def test_slope_at_zero_is_chosen_and_nothing_else_moves(chosen: float, x: float) -> None:
    assert slope(lambda x: relu(x, slope_at_zero=chosen), 0.0) == chosen
    assert slope(lambda x: relu(x, slope_at_zero=chosen), -0.0) == chosen
    if x != 0:
        assert slope(lambda x: relu(x, slope_at_zero=chosen), x) == float(x > 0)


@pytest.mark.parametrize("chosen", [0.0, 0.25, 1.0])
def test_relu_passes_the_upstream_gradient_at_nan(chosen: float) -> None:
    x = torch.full((9,), math.nan, requires_grad=True)
    y = relu(x, slope_at_zero=chosen)
    y.backward(torch.full((9,), 2.0))
    assert y.isnan().all()
    assert x.grad.tolist() == [2.0] * 9


def test_an_infinite_upstream_gradient_does_not_leak_through_a_closed_unit() -> None:
    for function in (relu, lambda x: relu(x, slope_at_zero=0.5), lambda x: hardtanh(x, 0.0, 1.0)):
        x = torch.full((40,), -1.0, requires_grad=True)
        function(x).backward(torch.full((40,), math.inf))
        assert x.grad.tolist() == [0.0] * 40


def test_hardtanh_has_slope_zero_at_nan_wherever_it_stands() -> None:
    x = torch.full((45,), math.nan, requires_grad=True)
    hardtanh(x).sum().backward()
    assert x.grad.tolist() == [0.0] * 45


def test_hardtanh_with_equal_bounds_is_constant() -> None:
    x = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    y = hardtanh(x, 1.0, 1.0)
    y.sum().backward()
    assert y.tolist() == [1.0] * 3
    assert x.grad.tolist() == [0.0] * 3


def test_prelu_leaves_a_frozen_weight_alone() -> None:
    weight = torch.tensor([0.25])
    x = torch.tensor([-2.0, 2.0], requires_grad=True)
    prelu(x, weight).sum().backward()
    assert x.grad.tolist() == [0.25, 1.0]
    assert weight.grad is None
    weight.requires_grad_()
    prelu(x.detach(), weight).sum().backward()
    assert weight.grad.tolist() == [-2.0]


def test_prelu_jacobian_puts_each_element_in_the_column_of_its_channel() -> None:
    x = torch.arange(-12.0, 12.0).reshape(2, 3, 4)
    weight = torch.tensor([0.1, 0.2, 0.3])
    by_input, by_weight = prelu_jacobian(x, weight)
    wanted = torch.func.jacrev(F.prelu, argnums=1)(x, weight).reshape(24, 3)
    assert by_input.shape == (24, 24)
    assert torch.equal(by_weight, wanted)


REFUSED = [
    (lambda: relu(torch.ones(1), slope_at_zero=1.5), ValueError, r"slope_at_zero must lie in \[0, 1\].* got 1.5"),
    (lambda: relu(torch.ones(1), slope_at_zero=-0.1), ValueError, "slope_at_zero"),
    (lambda: relu(torch.ones(1), slope_at_zero=math.nan), ValueError, "slope_at_zero"),
    (lambda: pnn.ReLU(slope_at_zero=2.0), ValueError, "slope_at_zero"),
    (lambda: rectifiers.relu_jacobian(torch.ones(1), slope_at_zero=2.0), ValueError, "slope_at_zero"),
    (lambda: relu(torch.ones(1), True), ValueError, "inplace must be False, got True"),
    (lambda: leaky_relu(torch.ones(1), inplace=True), ValueError, "inplace must be False"),
    (lambda: hardtanh(torch.ones(1), inplace=True), ValueError, "inplace must be False"),
    (lambda: pnn.ReLU(True), ValueError, "inplace must be False"),
    (lambda: pnn.LeakyReLU(0.1, True), ValueError, "inplace must be False"),
    (lambda: pnn.Hardtanh(inplace=True), ValueError, "inplace must be False"),
    (lambda: leaky_relu(torch.ones(1), math.inf), ValueError, "negative_slope must be a finite number, got inf"),
    (lambda: leaky_relu(torch.ones(1), math.nan), ValueError, "negative_slope"),
    (lambda: pnn.LeakyReLU(math.nan), ValueError, "negative_slope"),
    (lambda: hardtanh(torch.ones(1), 2.0, 1.0), ValueError, "got min_val=2.0 and max_val=1.0"),
    (lambda: hardtanh(torch.ones(1), math.nan, 1.0), ValueError, "got min_val=nan and max_val=1.0"),
    (lambda: pnn.Hardtanh(1.0, 1.0), ValueError, "min_val must be below max_val, got min_val=1.0 and max_val=1.0"),
    (lambda: prelu(torch.ones(4, 2), torch.ones(3)), ValueError, r"the 2 channels .* \(4, 2\), got 3"),
    (lambda: prelu(torch.ones(4), torch.ones(4)), ValueError, "the 1 channels"),
    (
        lambda: prelu(torch.ones(4, 2), torch.ones(2, 1)),
        ValueError,
        r"weight must have shape \(\) or \(C,\), got \(2, 1\)",
    ),
    (lambda: prelu(torch.ones(4, 2), torch.ones(0)), ValueError, "got 0"),
    (
        lambda: prelu(torch.ones(2), torch.ones(1).double()),
        TypeError,
        "weight must have the dtype of input, torch.float32",
    ),
    (lambda: prelu(torch.ones(2), torch.ones(1).long()), TypeError, "weight must be floating point"),
    (lambda: prelu(torch.ones(2), 0.25), TypeError, "weight must be a torch tensor, got float"),
    (
        lambda: relu(torch.ones(1), slope_at_zero=torch.tensor(0.5)),
        TypeError,
        "slope_at_zero must be a number, got Tensor",
    ),
    (lambda: leaky_relu(torch.ones(1), torch.tensor(0.5)), TypeError, "negative_slope must be a number, got Tensor"),
    (lambda: leaky_relu(torch.ones(1), None), TypeError, "negative_slope must be a number, got NoneType"),
    (lambda: hardtanh(torch.ones(1), "0"), TypeError, "min_val must be a number, got str"),
    (lambda: hardtanh(torch.ones(1), 0, None), TypeError, "max_val must be a number, got NoneType"),
    (lambda: pnn.PReLU(init=math.nan), ValueError, "init must be a finite number, got nan"),
    (lambda: pnn.PReLU(0), ValueError, "num_parameters must be at least 1, got 0"),
    (lambda: pnn.PReLU(1.0), TypeError, "num_parameters must be an int, got float"),
    (lambda: half_wave(torch.ones(1).long()), TypeError, "floating point"),
    (lambda: bridge(torch.ones(1).long()), TypeError, "voltage must be floating point"),
    (lambda: phase_sum(torch.ones(1), 0), ValueError, "phases must be at least 1, got 0"),
    (lambda: phase_max(torch.ones(1), True), TypeError, "phases must be an int, got bool"),
    (lambda: phase_sum([0.0], 2), TypeError, "t must be a torch tensor"),
    (lambda: ripple_bounds(2.5), TypeError, "phases must be an int, got float"),
    (lambda: ripple_bounds(0), ValueError, "phases must be at least 1"),
    (lambda: wright_omega(torch.ones(1).long()), TypeError, "z must be floating point"),
    (lambda: diode(torch.ones(1), resistance=0.0), ValueError, "resistance must be finite and above 0, got 0.0"),
    (lambda: diode(torch.ones(1), saturation_current=math.nan), ValueError, "saturation_current"),
    (lambda: diode(torch.ones(1), thermal_voltage=torch.tensor([-1.0])), ValueError, "thermal_voltage"),
    (lambda: diode(torch.ones(1).int()), TypeError, "voltage must be floating point"),
    (lambda: sum_of_relus(torch.ones(0), torch.ones(0), 0.0, 1.0), ValueError, r"breakpoints must have shape \(n,\)"),
    (lambda: sum_of_relus(torch.ones(2), torch.ones(2), 0.0, 1.0), ValueError, "breakpoints must increase"),
    (lambda: sum_of_relus(torch.ones(1), torch.ones(2), 0.0, 1.0), ValueError, r"values must have shape \(1,\)"),
    (lambda: sum_of_relus(torch.ones(1) * math.nan, torch.ones(1), 0.0, 1.0), ValueError, "must be finite"),
    (lambda: sum_of_relus(torch.ones(1), torch.ones(1), math.inf, 1.0), ValueError, "left_slope"),
    (lambda: sum_of_relus(torch.ones(1), torch.ones(1), 1.0, math.nan), ValueError, "right_slope"),
    (lambda: sum_of_relus(torch.ones(1).long(), torch.ones(1), 1.0, 1.0), TypeError, "breakpoints must be floating"),
    (lambda: sigmoid_sum(torch.ones(1), -1), ValueError, "terms must be at least 0, got -1"),
    (lambda: sigmoid_sum(torch.ones(1).long(), 1), TypeError, "x must be floating point"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_bad_input_is_named(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# --- the circuits ---------------------------------------------------------------------------------


@given(vectors)
def test_bridge_is_the_absolute_value(v: Tensor) -> None:
    assert torch.equal(bridge(v), v.abs())
    assert torch.equal(half_wave(v), v.clamp(min=0))


def test_bridge_has_slope_zero_at_zero() -> None:
    assert slope(bridge, 0.0) == 0.0


def _one_period(n: int) -> Tensor:
    """Angles that hold every minimum and maximum of the sum of n phases, with many between."""
    return torch.arange(0, 4 * n * 50, dtype=torch.float64) * (math.pi / (2 * n * 50))


@pytest.mark.theorem("thm-ripple")
@pytest.mark.parametrize("n", [*range(1, 20), 64, 101])
def test_ripple_is_exact_and_attained(n: int) -> None:
    y = phase_sum(_one_period(n), n)
    low, high = ripple_bounds(n)
    assert y.min().item() == pytest.approx(low, abs=1e-12 * n)
    assert y.max().item() == pytest.approx(high, abs=1e-12 * n)
    assert y.mean().item() == pytest.approx(n / math.pi, rel=1e-3)
    assert low <= n / math.pi <= high


@pytest.mark.theorem("thm-ripple")
@given(st.integers(1, 60), st.floats(-20, 20))
def test_ripple_bounds_hold_everywhere(n: int, t: float) -> None:
    y = phase_sum(torch.tensor(t, dtype=torch.float64), n).item()
    low, high = ripple_bounds(n)
    assert low - 1e-12 * n <= y <= high + 1e-12 * n


@pytest.mark.theorem("thm-ripple")
def test_ripple_of_eight_phases_and_of_odd_numbers() -> None:
    assert ripple_bounds(8) == pytest.approx((1 + math.sqrt(2), math.sqrt(4 + 2 * math.sqrt(2))))
    for n in range(3, 40, 2):  # an odd number of phases ripples as twice as many, relative to the mean
        assert [2 * bound for bound in ripple_bounds(n)] == pytest.approx(ripple_bounds(2 * n))


@pytest.mark.parametrize("n", [3, 4, 5, 12])
def test_star_rectifier_swings_between_cosine_and_one(n: int) -> None:
    t = _one_period(n)
    y = phase_max(t, n)
    assert y.min().item() == pytest.approx(math.cos(math.pi / n), abs=1e-12)
    assert y.max().item() == pytest.approx(1.0, abs=1e-12)
    assert y.mean().item() == pytest.approx(n / math.pi * math.sin(math.pi / n), rel=1e-3)


def test_three_phases_are_the_maximum_of_three_sines() -> None:
    t = torch.linspace(0, 7, 500, dtype=torch.float64)
    a, b, c = (torch.sin(t + shift) for shift in (0, 2 * math.pi / 3, 4 * math.pi / 3))
    assert torch.equal(phase_max(t), torch.maximum(a, torch.maximum(b, c)))


# --- the diode ------------------------------------------------------------------------------------


def test_wright_omega_solves_its_equation_for_every_argument() -> None:
    z = torch.cat([torch.linspace(-700, 750, 30_001).double(), torch.logspace(-300, 300, 2001, dtype=torch.float64)])
    w = wright_omega(z)
    eps = torch.finfo(torch.float64).eps
    assert bool(((w + w.log() - z).abs() <= 4 * eps * (1 + z.abs())).all())
    assert bool((w.diff()[:30_000] >= 0).all())


def test_wright_omega_equals_scipys() -> None:
    z = torch.linspace(-700, 700, 20_001, dtype=torch.float64)
    w = wright_omega(z).numpy()
    np.testing.assert_allclose(w, scipy.special.wrightomega(z.numpy()), rtol=2e-13)
    small = z.numpy() < 700  # where exp does not overflow, Lambert's W itself
    np.testing.assert_allclose(w[small], scipy.special.lambertw(np.exp(z.numpy()[small])).real, rtol=2e-13)


def test_wright_omega_at_the_ends() -> None:
    z = torch.tensor([-math.inf, -1e4, math.inf, math.nan], dtype=torch.float64, requires_grad=True)
    w = wright_omega(z)
    w[:3].sum().backward()
    assert w[:3].tolist() == [0.0, 0.0, math.inf]
    assert w[3].isnan()
    assert z.grad[:3].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_wright_omega_in_few_digits(dtype: torch.dtype) -> None:
    z = torch.linspace(-8, 60, 2001).to(dtype)
    wanted = torch.from_numpy(scipy.special.wrightomega(z.double().numpy()))
    assert wright_omega(z).dtype == dtype
    torch.testing.assert_close(wright_omega(z).double(), wanted, rtol=12 * torch.finfo(dtype).eps, atol=1e-7)


def test_wright_omega_has_the_derivative_of_the_implicit_function() -> None:
    z = torch.linspace(-30, 60, 25, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(wright_omega, z, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(wright_omega, z, check_fwd_over_rev=True)
    w = wright_omega(z).detach()
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(wright_omega))(z.detach()), w / (1 + w))


@given(
    st.floats(-1e3, 1e3),
    st.floats(-3, 6).map(lambda e: 10**e),
    st.floats(-15, -3).map(lambda e: 10**e),
    st.floats(0.005, 0.1),
)
def test_diode_obeys_shockleys_equation(v: float, resistance: float, saturation: float, thermal: float) -> None:
    u = diode(torch.tensor(v, dtype=torch.float64), resistance, saturation, thermal).item()
    leak = saturation * resistance
    # in logarithms: log(1 + u / leak) = (v - u) / thermal
    slack = 1e-12 * (1 + abs(v) + leak)
    assert u <= max(v, 0.0) + slack
    assert u >= -leak - slack
    if u > -0.9 * leak:
        # both sides as voltages; an error du of u counts du * (1 + thermal / (u + leak))
        assert abs(thermal * math.log1p(u / leak) - (v - u)) <= slack * (1 + thermal / (u + leak))


def test_diode_is_a_smooth_half_wave_rectifier() -> None:
    v = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    u = diode(v)
    assert u[500].abs().item() < 1e-15
    assert bool((u.diff() >= 0).all())
    assert bool((u <= half_wave(v) + 1e-12).all())
    assert bool((half_wave(v) - u <= 0.6).all())
    # at small thermal voltage and leak only the corner is round, and the ideal diode is left
    ideal = diode(v, saturation_current=1e-9, thermal_voltage=1e-6)
    assert (ideal - half_wave(v)).abs().max().item() < 2e-5


def test_diode_is_differentiable_in_every_argument() -> None:
    arguments = [
        torch.tensor([-0.3, 0.1, 0.6, 2.0], dtype=torch.float64, requires_grad=True),
        *(torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (3.0, 0.2, 0.5)),
    ]
    assert torch.autograd.gradcheck(diode, arguments)
    assert torch.autograd.gradgradcheck(diode, arguments)
    v = arguments[0].detach()
    w = (diode(v) + 1e-9) / 0.02585  # W, from the output; the slope is W / (1 + W)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(diode))(v), w / (1 + w))


def test_diode_at_infinity() -> None:
    u = diode(torch.tensor([-math.inf, math.inf, math.nan, 1e6], dtype=torch.float64))
    assert u[0].item() == -1e-9
    assert u[1].item() == math.inf
    assert u[2].isnan()
    assert 1e6 - 1 < u[3].item() < 1e6


# --- sums -----------------------------------------------------------------------------------------

dyadic = st.integers(-64, 64).map(lambda k: k / 8)


@st.composite
def piecewise_linear(draw: st.DrawFn) -> tuple[list[float], list[float], float, float]:
    """Breakpoints a power of two apart, so that every slope is a dyadic number and float64 makes no error."""
    gaps = draw(st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0]), max_size=7))
    first = draw(dyadic)
    breakpoints = [first + sum(gaps[:k]) for k in range(len(gaps) + 1)]
    values = draw(st.lists(dyadic, min_size=len(breakpoints), max_size=len(breakpoints)))
    return breakpoints, values, draw(dyadic), draw(dyadic)


def _interpolate(breakpoints: list[float], values: list[float], left: float, right: float, x: float) -> Fraction:
    t, v, z = [Fraction(b) for b in breakpoints], [Fraction(b) for b in values], Fraction(x)
    if z <= t[0]:
        return v[0] + Fraction(left) * (z - t[0])
    if z >= t[-1]:
        return v[-1] + Fraction(right) * (z - t[-1])
    k = max(i for i in range(len(t)) if t[i] <= z)
    return v[k] + (v[k + 1] - v[k]) / (t[k + 1] - t[k]) * (z - t[k])


@pytest.mark.theorem("thm-cpwl-relus")
@given(piecewise_linear(), st.lists(dyadic.map(lambda d: 4 * d), min_size=1, max_size=10))
def test_n_breakpoints_need_n_relus_and_no_rounding(
    f: tuple[list[float], list[float], float, float], points: list[float]
) -> None:
    breakpoints, values, left, right = f
    relus = sum_of_relus(torch.tensor(breakpoints).double(), torch.tensor(values).double(), left, right)
    assert relus.weights.shape == (len(breakpoints),)
    x = torch.tensor([*points, *breakpoints], dtype=torch.float64)
    assert [Fraction(y) for y in relus(x).tolist()] == [_interpolate(*f, point) for point in x.tolist()]


@pytest.mark.theorem("thm-cpwl-relus")
@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=8, unique=True).map(sorted),
    st.data(),
    st.floats(-10, 10),
    st.floats(-10, 10),
)
def test_any_breakpoints_within_rounding(
    breakpoints: list[float], data: st.DataObject, left: float, right: float
) -> None:
    assume(all(b - a > 1e-2 for a, b in pairwise(breakpoints)))
    values = data.draw(st.lists(st.floats(-100, 100), min_size=len(breakpoints), max_size=len(breakpoints)))
    t, v = torch.tensor([breakpoints, values], dtype=torch.float64)
    relus = sum_of_relus(t, v, left, right)
    x = torch.cat([torch.linspace(-150, 150, 61, dtype=torch.float64), t])
    wanted = [float(_interpolate(breakpoints, values, left, right, point)) for point in x.tolist()]
    size = 300 * (1 + abs(left) + relus.weights.abs().sum().item())  # of the terms that are added
    assert relus(x).tolist() == pytest.approx(wanted, rel=0, abs=1e-14 * size)


@pytest.mark.theorem("thm-cpwl-relus")
def test_the_weights_are_unique() -> None:
    """A breakpoint where the slope does not change gets weight 0; every other weight is the change of slope."""
    relus = sum_of_relus(torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([1.0, 0.0, 2.0]), -1.0, 3.0)
    assert relus.weights.tolist() == [0.0, 2.0, 2.0]
    assert (relus.slope.item(), relus.intercept.item()) == (-1.0, 0.0)


def test_sum_of_relus_has_the_slopes_of_its_pieces() -> None:
    hat = sum_of_relus(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0]), 0.0, 0.0)
    x = torch.tensor([-2.0, -0.5, 0.5, 2.0])
    assert torch.func.vmap(torch.func.grad(lambda x: hat(x)))(x).tolist() == [0.0, 1.0, -1.0, 0.0]


@pytest.mark.theorem("thm-sigmoid-sum")
@given(st.floats(-40, 200), st.integers(0, 120))
def test_sigmoids_sum_to_a_softplus(x: float, terms: int) -> None:
    z = torch.tensor(x, dtype=torch.float64)
    wanted = F.softplus(z) - F.softplus(z - terms)
    assert abs(sigmoid_sum(z, terms) - wanted).item() <= 1 / 32 + 1e-12


@pytest.mark.theorem("thm-sigmoid-sum")
def test_the_infinite_sum_lies_close_to_softplus_and_within_log_two_of_relu() -> None:
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    gap = sigmoid_sum(x, 80) - F.softplus(x)  # the terms beyond 80 sum to less than e^(20 - 80)
    assert gap.abs().max().item() <= 1 / 32
    assert 0.0104 < gap.abs().max().item() < 0.0107  # what it comes to: about 1 / 95
    assert (sigmoid_sum(x, 80) - relu(x)).abs().max().item() <= math.log(2) + 1 / 32


def test_no_sigmoids_sum_to_zero() -> None:
    assert sigmoid_sum(torch.ones(2, 3), 0).tolist() == [[0.0] * 3] * 2
    assert sigmoid_sum(torch.ones(0, 3), 5).shape == (0, 3)
