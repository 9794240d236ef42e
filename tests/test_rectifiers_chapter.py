"""The chapter on rectifiers: its propositions on generated inputs and at the kinks, and its claims on real data."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_sample_image
from torch import Tensor

from pwl_lib import rectifiers, subgradients

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"

numbers = st.floats(-1e3, 1e3)
pairs = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8).map(
    lambda rows: torch.tensor(rows, dtype=torch.float64).T
)


def gradient(y: Tensor, x: Tensor, upstream: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, upstream)[0]


# --- the backward pass ----------------------------------------------------------------------------


@pytest.mark.theorem("prop-relu-vjp")
@given(pairs)
def test_the_gradient_before_relu_is_the_mask_times_the_gradient_after_it(pair: Tensor) -> None:
    x, upstream = pair[0].clone(), pair[1]
    assume(bool((x != 0).all()))
    mask = (x > 0).double()
    assert torch.equal(rectifiers.relu_jacobian(x), torch.diag(mask))
    assert torch.equal(torch.func.jacrev(rectifiers.relu)(x), torch.diag(mask))
    x.requires_grad_()
    assert torch.equal(gradient(rectifiers.relu(x), x, upstream), mask * upstream)


@pytest.mark.theorem("prop-relu-vjp")
def test_all_masks_occur_and_each_is_found_from_its_backward_pass() -> None:
    """What is kept for the backward pass of n numbers must tell 2**n masks apart: n bits and no fewer."""
    n = 6
    x = torch.tensor(list(itertools.product((-1.5, 0.5), repeat=n)), dtype=torch.float64, requires_grad=True)
    backward = gradient(rectifiers.relu(x), x, torch.ones_like(x))
    assert len(torch.unique(backward, dim=0)) == 2**n
    louder = (3 * x).detach().requires_grad_()  # other numbers of the same signs
    assert torch.equal(gradient(rectifiers.relu(louder), louder, torch.ones_like(x)), backward)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_at_the_kink_every_slope_from_0_to_1_gives_a_subgradient(slopes: list[float]) -> None:
    for slope in slopes:
        x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        found = gradient(rectifiers.relu(x, slope_at_zero=slope), x, torch.ones_like(x))
        assert subgradients.subdifferential_relu(x).contains(found)


def test_relu_keeps_one_byte_an_element_where_torch_keeps_the_output() -> None:
    def kept(function, dtype: torch.dtype) -> list[Tensor]:
        tensors: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (tensors.append(t), t)[1], lambda t: t):
            function(torch.randn(1000, dtype=dtype, requires_grad=True))
        return tensors

    for dtype, size in ((torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 2)):
        (mask,) = kept(rectifiers.relu, dtype)
        assert mask.nbytes == 1000
        assert set(mask.unique().tolist()) <= {0, 1}
        assert sum(t.nbytes for t in kept(torch.relu, dtype)) == 1000 * size


def test_on_the_digits_the_slope_at_zero_changes_the_first_gradient_of_a_bias() -> None:
    digits = torch.tensor(load_digits().images)[:, None] / 16
    torch.manual_seed(0)
    kernel, bias = torch.randn(4, 1, 3, 3).double(), torch.zeros(4, dtype=torch.float64, requires_grad=True)
    z = torch.nn.functional.conv2d(digits, kernel, bias, padding=1)
    share = (z == 0).double().mean((0, 2, 3))
    assert (share > 0.1).all()
    first, second = (
        torch.autograd.grad(rectifiers.relu(z, slope_at_zero=s).mean(), bias, retain_graph=True)[0] for s in (0, 1)
    )
    torch.testing.assert_close(second - first, share / 4)


# --- the family -----------------------------------------------------------------------------------


@pytest.mark.theorem("prop-prelu-gradient")
@given(pairs, st.floats(-3, 3))
def test_prelu_is_differentiable_in_its_slope_at_kinks_too(pair: Tensor, alpha: float) -> None:
    x, upstream = (
        torch.cat([pair[0], torch.zeros(2, dtype=torch.float64)]),
        torch.cat([pair[1], torch.ones(2).double()]),
    )
    weight = torch.tensor([alpha], dtype=torch.float64, requires_grad=True)
    found = gradient(rectifiers.prelu(x, weight), weight, upstream)
    size = float((x * upstream).abs().sum()) + 1
    assert found.item() == pytest.approx(float(upstream @ x.clamp(max=0)), rel=0, abs=1e-13 * size)
    # affine in alpha: a finite difference of any width is exact
    far, near = (upstream @ rectifiers.prelu(x, weight.detach() + step) for step in (2.0, -1.0))
    assert float(far - near) / 3 == pytest.approx(found.item(), rel=0, abs=1e-12 * size)


@pytest.mark.theorem("prop-prelu-gradient")
@given(pairs, st.floats(-3, 3))
def test_the_slopes_of_the_leaky_rectifier_are_1_and_alpha(pair: Tensor, alpha: float) -> None:
    x, upstream = pair[0].clone().requires_grad_(), pair[1]
    assume(bool((x != 0).all()))
    mask = torch.where(x > 0, 1, alpha)
    torch.testing.assert_close(gradient(rectifiers.leaky_relu(x, alpha), x, upstream), mask * upstream)
    weight = torch.tensor([alpha], dtype=torch.float64)
    torch.testing.assert_close(gradient(rectifiers.prelu(x, weight), x, upstream), mask * upstream)


@pytest.mark.theorem("prop-prelu-gradient")
@given(st.floats(-3, 3), numbers, numbers, st.floats(0, 1))
def test_the_leaky_rectifier_is_convex_up_to_slope_1_and_concave_from_there(
    alpha: float, a: float, b: float, share: float
) -> None:
    z = torch.tensor([a, b, share * a + (1 - share) * b], dtype=torch.float64)
    at_a, at_b, between = rectifiers.leaky_relu(z, alpha).tolist()
    chord = share * at_a + (1 - share) * at_b
    slack = 1e-11 * (1 + abs(a) + abs(b))
    assert between <= chord + slack if alpha <= 1 else between >= chord - slack


@pytest.mark.theorem("prop-prelu-gradient")
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.01, 1.0, 2.5])
def test_the_subdifferential_of_each_relative_is_the_interval_between_its_slopes(alpha: float) -> None:
    interval = subgradients.subdifferential_leaky_relu(0.0, alpha)
    low, high = min(alpha, 1.0), max(alpha, 1.0)
    assert (interval.lower.item(), interval.upper.item()) == (low, high)
    z = torch.linspace(-2, 2, 41, dtype=torch.float64)
    for slope in torch.linspace(-4, 4, 161, dtype=torch.float64):
        if alpha <= 1:  # convex: the definition itself
            below = bool((rectifiers.leaky_relu(z, alpha) >= slope * z - 1e-12).all())
            assert below == interval.contains(slope)
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    one = torch.ones_like(x)
    assert interval.contains(gradient(rectifiers.leaky_relu(x, alpha), x, one))
    assert interval.contains(gradient(rectifiers.prelu(x, one * alpha), x, one))
    if alpha == -1:
        assert interval.contains(gradient(rectifiers.absolute(x), x, one))


@given(pairs, st.floats(-3, 3))
def test_leaky_parametric_and_absolute_are_one_formula(pair: Tensor, alpha: float) -> None:
    x = pair.flatten()
    formula = x.clamp(min=0) + alpha * x.clamp(max=0)
    assert torch.equal(rectifiers.leaky_relu(x, alpha), formula)
    assert torch.equal(rectifiers.prelu(x, torch.tensor([alpha], dtype=torch.float64)), formula)
    assert torch.equal(rectifiers.absolute(x), rectifiers.leaky_relu(x, -1.0))
    assert torch.equal(rectifiers.relu(x), rectifiers.leaky_relu(x, 0.0))


# --- the circuits ---------------------------------------------------------------------------------


def star_outputs(v: list[float]) -> set[float]:
    """All outputs of the star that Ohm's law and ideal diodes allow, by the set of diodes that may carry current."""
    outputs = set()
    for on in itertools.product((False, True), repeat=len(v)):
        voltages = {volts for volts, conducts in zip(v, on, strict=True) if conducts}
        output = voltages.pop() if len(voltages) == 1 else 0.0 if not any(on) else math.nan
        # The currents are not negative, so the output is not; no diode has a forward voltage.
        if output >= 0 and all(volts <= output for volts in v):
            outputs.add(output)
    return outputs


def bridge_outputs(a: float, b: float) -> set[float]:
    """The same for the bridge: which upper and which lower diodes may carry current."""
    outputs = set()
    for upper, lower in itertools.product(((), (a,), (b,), (a, b)), repeat=2):
        if len(set(upper)) > 1 or len(set(lower)) > 1:
            continue  # two conducting diodes join potentials that differ
        if upper and lower:
            p, q = upper[0], lower[0]
            if p - q >= 0 and p >= max(a, b) and q <= min(a, b):
                outputs.add(p - q)
        elif max(a, b) <= min(a, b):  # no current: p = q, above both and below both
            outputs.add(0.0)
    return outputs


voltages = st.lists(st.integers(-4, 4).map(float) | numbers, min_size=1, max_size=5)


@pytest.mark.theorem("prop-ideal-circuits")
@given(voltages)
def test_the_star_has_one_output_and_it_is_the_largest_voltage_or_0(v: list[float]) -> None:
    assert star_outputs(v) == {max(0.0, *v)}
    if max(v) >= 0:
        assert star_outputs(v) == {max(v)}


@pytest.mark.theorem("prop-ideal-circuits")
@given(numbers)
def test_one_diode_is_relu(v: float) -> None:
    assert star_outputs([v]) == {rectifiers.half_wave(torch.tensor(v, dtype=torch.float64)).item()}


@pytest.mark.theorem("prop-ideal-circuits")
@given(st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_the_bridge_has_one_output_and_it_is_the_absolute_value(a: int, b: int) -> None:
    assert bridge_outputs(a, b) == {abs(a - b)}
    assert bridge_outputs(a, b) == {rectifiers.bridge(torch.tensor(float(a - b))).item()}


@pytest.mark.theorem("prop-phase-max")
@given(st.integers(2, 40), st.floats(-20, 20))
def test_the_star_of_n_phases_stays_between_its_bounds_and_is_the_circuit(n: int, t: float) -> None:
    angle = torch.tensor(t, dtype=torch.float64)
    top = rectifiers.phase_max(angle, n).item()
    assert math.cos(math.pi / n) - 1e-12 <= top <= 1
    v = [math.sin(t + 2 * math.pi * k / n) for k in range(min(n, 6))]
    if n <= 6:
        assert top == pytest.approx(max(v), abs=1e-12)
        assert max(star_outputs(v)) == pytest.approx(max(top, 0.0), abs=1e-12)


@pytest.mark.theorem("prop-phase-max")
@pytest.mark.parametrize("n", [2, 3, 4, 5, 12])
def test_the_bounds_of_the_star_are_attained_and_its_mean_is_known(n: int) -> None:
    period = 2 * math.pi / n
    lowest = torch.tensor(math.pi / 2 + math.pi / n, dtype=torch.float64)
    assert rectifiers.phase_max(lowest, n).item() == pytest.approx(math.cos(math.pi / n), abs=1e-12)
    assert rectifiers.phase_max(lowest - math.pi / n, n).item() == pytest.approx(1.0, abs=1e-12)
    middle = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * period
    assert rectifiers.phase_max(middle, n).mean().item() == pytest.approx(n / math.pi * math.sin(math.pi / n), abs=1e-8)


@pytest.mark.theorem("thm-ripple")
@given(st.integers(2, 60), st.floats(0, 1))
def test_the_sum_of_phases_has_its_closed_form_and_its_period(n: int, share: float) -> None:
    pulses = math.lcm(2, n)
    t = share * 2 * math.pi / pulses
    closed = n / pulses * math.cos(t - math.pi / pulses) / math.sin(math.pi / pulses)
    for turns in (0, 1, 5):
        moved = torch.tensor(t + turns * 2 * math.pi / pulses, dtype=torch.float64)
        assert rectifiers.phase_sum(moved, n).item() == pytest.approx(closed, abs=1e-11 * n)


@pytest.mark.theorem("thm-ripple")
def test_the_ripple_is_a_tangent_and_falls_like_the_square() -> None:
    for n in range(2, 200):
        low, high = rectifiers.ripple_bounds(n)
        pulses = math.lcm(2, n)
        ripple = (high - low) * math.pi / n
        assert ripple == pytest.approx(math.pi / pulses * math.tan(math.pi / (2 * pulses)), rel=1e-8)
        if n > 20:
            assert ripple == pytest.approx(math.pi**2 / (2 * pulses**2), rel=1e-2)
    assert rectifiers.ripple_bounds(1) == (0.0, 1.0)


# --- the diode ------------------------------------------------------------------------------------

positive = st.floats(-3, 1).map(lambda power: 10.0**power)


@pytest.mark.theorem("prop-shockley")
@given(st.floats(-50, 50), positive, positive)
def test_the_shockley_rectifier_solves_its_equation_and_stays_below_relu(v: float, leak: float, thermal: float) -> None:
    out = rectifiers.diode(torch.tensor(v, dtype=torch.float64), 1.0, leak, thermal).item()
    gap = max(v, 0.0) - out
    assert -1e-12 <= gap <= max(leak, thermal * math.log1p(max(v, 0.0) / leak)) + 1e-12
    if out > -leak * (1 - 1e-6):  # closer to the floor, the logarithm has no digits left
        assert out + thermal * math.log1p(out / leak) == pytest.approx(v, abs=1e-6 * (1 + abs(v)))


@pytest.mark.theorem("prop-shockley")
@given(st.floats(-10, 10), positive, positive)
def test_the_shockley_rectifier_is_increasing_and_convex_with_the_stated_slope(
    v: float, leak: float, thermal: float
) -> None:
    points = torch.tensor([v - thermal, v, v + thermal], dtype=torch.float64, requires_grad=True)
    out = rectifiers.diode(points, 1.0, leak, thermal)
    slopes = gradient(out, points, torch.ones_like(points))
    stated = (out + leak) / (out + leak + thermal)
    torch.testing.assert_close(slopes, stated.detach(), rtol=1e-6, atol=1e-12)
    assert 0 <= slopes[0] <= slopes[1] <= slopes[2] < 1
    zero = torch.zeros((), dtype=torch.float64)
    assert abs(rectifiers.diode(zero, 1.0, leak, thermal)) < 1e-12


@pytest.mark.theorem("prop-shockley")
def test_the_limits_of_the_shockley_rectifier_are_relu_and_a_shifted_relu() -> None:
    v = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    errors = [
        float((rectifiers.diode(v, 1.0, T, T) - v.clamp(min=0)).abs().max()) for T in (1.0, 0.1, 0.01, 1e-3, 1e-4)
    ]
    assert all(later < earlier / 5 for earlier, later in itertools.pairwise(errors[1:]))
    assert errors[-1] < 2e-3
    # A fixed leak: the kink moves to minus R I_s.
    for leak in (0.5, 2.0):
        assert (rectifiers.diode(v, 1.0, leak, 1e-5) - v.clamp(min=-leak)).abs().max() < 1e-3


def test_softplus_lies_above_relu_and_the_diode_below_and_through_the_origin() -> None:
    v = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    diode, softplus = rectifiers.diode(v, 1.0, 0.5, 0.5), 0.5 * torch.nn.functional.softplus(v / 0.5)
    assert (diode <= torch.relu(v) + 1e-12).all()
    assert (softplus > torch.relu(v)).all()
    assert abs(diode[500]) < 1e-12
    assert softplus[500].item() == pytest.approx(0.5 * math.log(2))


# --- sums -----------------------------------------------------------------------------------------


@pytest.mark.theorem("thm-cpwl-relus")
def test_fewer_relus_than_kinks_cannot_be_enough() -> None:
    """An affine function and m ReLUs have at most m kinks, whatever their weights."""
    torch.manual_seed(0)
    x = torch.linspace(-20, 20, 200_001, dtype=torch.float64)
    for m in (1, 2, 4):
        w, a, b = torch.randn(3, m, dtype=torch.float64)
        y = torch.relu(x[:, None] * a + b) @ w + 0.3 * x
        bends = (y.diff().diff().abs() > 1e-9).nonzero().flatten()
        assert int((bends.diff() > 2).sum()) + 1 <= m


def test_a_sum_of_relus_with_weights_1_is_convex_and_cannot_make_a_hat() -> None:
    torch.manual_seed(0)
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    a, b = torch.randn(2, 50, dtype=torch.float64)
    y = torch.relu(x[:, None] * a + b).sum(-1)
    assert (y >= 0).all()
    assert (y.diff().diff() >= -1e-11).all()
    t, v = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    hat = rectifiers.sum_of_relus(t, v, 0.0, 0.0)
    assert (hat.weights < 0).any()
    assert torch.allclose(hat(x), (1 - x.abs()).clamp(min=0))


@pytest.mark.theorem("thm-sigmoid-sum")
@given(st.floats(-30, 30), st.floats(0.1, 100))
def test_scaled_sums_of_sigmoids_tend_to_relu(x: float, scale: float) -> None:
    scaled = torch.tensor(min(x, 600 / scale) * scale, dtype=torch.float64)
    total = rectifiers.sigmoid_sum(scaled, 700).item() / scale
    assert abs(total - max(scaled.item() / scale, 0.0)) <= (math.log(2) + 1 / 32) / scale + 1e-12


@pytest.mark.theorem("thm-sigmoid-sum")
def test_the_infinite_sum_of_sigmoids_is_not_softplus() -> None:
    zero = torch.zeros((), dtype=torch.float64)
    step = rectifiers.sigmoid_sum(zero, 60) - rectifiers.sigmoid_sum(zero - 1, 60)
    softplus = torch.nn.functional.softplus(zero) - torch.nn.functional.softplus(zero - 1)
    assert step.item() == pytest.approx(1 / (1 + math.exp(0.5)), abs=1e-12)
    assert softplus - step > 1e-3


# --- claims on real data, and on files ------------------------------------------------------------

SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=torch.float64)
integers = st.integers(-50, 50)


@pytest.mark.theorem("prop-polarity")
@given(st.lists(st.tuples(integers, integers), min_size=1, max_size=9), integers, integers)
def test_only_without_a_bias_does_the_absolute_value_ignore_polarity(
    rows: list[tuple[int, int]], bias: int, shift: int
) -> None:
    w, x = torch.tensor(rows, dtype=torch.float64).T
    assume(bool(w.any()))
    assert (w @ x).abs() == (w @ -x).abs()
    # the x of the proof
    assert ((w @ w + bias).abs() == (-(w @ w) + bias).abs()) == (bias == 0)
    if shift and w.sum() == 0:
        assert (w @ x).abs() == (w @ (shift - x)).abs()
    if shift and w.sum() != 0:
        tries = [x, w, torch.zeros_like(w), 2 * w]
        assert any((w @ z).abs() != (w @ (shift - z)).abs() for z in tries)


@pytest.mark.theorem("prop-polarity")
@given(st.floats(-3, 3) | st.just(-1.0), st.floats(0.5, 100))
def test_of_the_leaky_rectifiers_only_the_absolute_value_is_even(alpha: float, z: float) -> None:
    one = torch.tensor(1.0, dtype=torch.float64)
    even = rectifiers.leaky_relu(one, alpha) == rectifiers.leaky_relu(-one, alpha)
    assert even == (alpha == -1)
    if alpha == -1:
        assert rectifiers.leaky_relu(z * one, alpha) == rectifiers.leaky_relu(-z * one, alpha)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_edges_of_a_photograph_and_of_its_negative_are_equal_without_a_bias(name: str) -> None:
    photo = torch.from_numpy(load_sample_image(name)[..., 1].astype("float64"))

    def edges(image: Tensor, bias: float = 0.0) -> Tensor:
        response = torch.nn.functional.conv2d(image[None, None], SOBEL[None, None], torch.tensor([bias]).double())
        return rectifiers.absolute(response)

    assert torch.equal(edges(photo), edges(255 - photo))
    assert not torch.allclose(edges(photo, 40.0), edges(255 - photo, 40.0))


def test_the_benchmark_measured_relu_beside_the_smooth_activations() -> None:
    results = json.loads((RESULTS / "bench_layers-cpu.json").read_text())
    assert results["machine"]["cpu"]
    assert results["alternations"] >= 10
    rows = {row["elements"]: row for row in results["activations"]}
    assert max(rows) >= 10**6
    for row in rows.values():
        for mode in ("forward", "forward_backward"):
            assert row[mode]["over_relu"]["relu"] == 1
            assert all(row[mode]["over_relu"][name] > 0 for name in ("copy", "sigmoid", "tanh", "softplus"))
