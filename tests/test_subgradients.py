"""The theorems of the chapter *Subgradients*, and every property of its module."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import sympy as sp
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pwl_lib import subgradients
from pwl_lib.subgradients import (
    Box,
    ConvexHull,
    Interval,
    KinkTable,
    measure_kinks,
    subdifferential_absolute,
    subdifferential_hardtanh,
    subdifferential_l1_norm,
    subdifferential_leaky_relu,
    subdifferential_max,
    subdifferential_max_affine,
    subdifferential_prelu,
    subdifferential_relu,
)

D = torch.float64
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NAN, INF = float("nan"), float("inf")

quick = settings(max_examples=30)
seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 5)
# Eighths: sums and products of them are exact, so ties are met exactly.
eighths = st.integers(-40, 40).map(lambda i: i / 8)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def grid(*shape: int, seed: int, size: int = 2) -> Tensor:
    """Small integers: many ties, many equal rows, many degenerate faces."""
    return torch.randint(-size, size + 1, shape, generator=torch.Generator().manual_seed(seed)).to(D)


def backprop(f, x) -> Tensor:
    x = torch.as_tensor(x, dtype=D).clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


def max_affine(slopes: Tensor, intercepts: Tensor):
    """The function x -> max_i (a_i x + b_i) on the last dimension of x."""
    return lambda x: (x @ slopes.T + intercepts).amax(-1)


def convex_functions(n: int, seed: int):
    """Finite convex functions of n variables, smooth and not, by name."""
    slopes, intercepts = randn(6, n, seed=seed), randn(6, seed=seed + 1)
    return {
        "max of affine": max_affine(slopes, intercepts),
        "L1": lambda x: x.abs().sum(-1),
        "Euclidean norm": lambda x: torch.linalg.vector_norm(x, dim=-1),
        "square": lambda x: x.square().sum(-1),
        "exponential": lambda x: torch.logsumexp(x @ slopes.T, -1),
        "square plus max": lambda x: x.square().sum(-1) + max_affine(slopes, intercepts)(x),
    }


# The definition and its theorems


@pytest.mark.theorem("lem-quotient")
@quick
@given(sizes, seeds)
def test_difference_quotients_of_convex_functions_do_not_decrease_and_their_limit_is_sublinear(n, seed):
    x, v, w = randn(n, seed=seed), randn(n, seed=seed + 1), randn(n, seed=seed + 2)
    if seed % 2:
        x = torch.zeros(n, dtype=D)  # a kink of several of them
    steps = torch.logspace(-4, 1, 30, dtype=D)[:, None]
    for name, f in convex_functions(n, seed).items():
        quotient = (f(x + steps * v) - f(x)) / steps[:, 0]
        assert (quotient.diff() >= -1e-9).all(), name
        backward = (f(x) - f(x - 0.1 * v)) / 0.1
        assert (quotient >= backward - 1e-9).all(), name  # the bound of the proof

        def slope(direction, f=f):
            return (f(x + 1e-7 * direction) - f(x)) / 1e-7

        assert torch.isclose(slope(3 * v), 3 * slope(v), atol=1e-4), name
        assert slope(v + w) <= slope(v) + slope(w) + 1e-4, name


@pytest.mark.theorem("thm-support")
@quick
@given(sizes, sizes, seeds)
def test_a_vector_is_a_subgradient_exactly_if_no_directional_derivative_falls_below_it(n, k, seed):
    slopes, x = grid(k, n, seed=seed), grid(n, seed=seed + 1)
    intercepts = -slopes @ x  # every piece is active at x
    f, hull = max_affine(slopes, intercepts), subdifferential_max_affine(x, slopes, intercepts)
    directions = torch.cat([randn(200, n, seed=seed + 2), grid(50, n, seed=seed + 3)])
    vertices = hull.vertices
    derivative = f(x + directions)  # f(x) is 0, and f is positively homogeneous around x
    for v, expected in zip(directions[::10], derivative[::10], strict=True):
        assert torch.isclose(hull.directional_derivative(v), expected)  # the support function, attained by a vertex
        assert torch.isclose((vertices @ v).amax(), expected)
    for g in torch.cat([vertices, vertices.mean(0, keepdim=True), randn(3, n, seed=seed + 4)]):
        supports = bool((directions @ g <= derivative + 1e-9).all())
        if hull.contains(g):
            assert supports
            assert (f(x + directions) >= directions @ g - 1e-9).all()  # the definition itself
        else:
            v = g - nearest(hull, g)  # the separating direction
            assert g @ v > f(x + v) + 1e-12


@pytest.mark.theorem("thm-support")
@quick
@given(sizes, seeds)
def test_the_slope_of_a_norm_at_zero_is_attained_by_a_subgradient_that_is_no_vertex(n, seed):
    # The subdifferential of the Euclidean norm at 0 is the unit ball: v / |v| attains the slope |v|.
    v = randn(n, seed=seed)
    g, y = v / v.norm(), randn(100, n, seed=seed + 1)
    assert torch.isclose(g @ v, v.norm())
    assert (y.norm(dim=1) >= y @ g - 1e-12).all()


@pytest.mark.theorem("thm-subdifferential")
@quick
@given(sizes, sizes, seeds)
def test_the_subdifferential_is_not_empty_convex_closed_and_bounded(n, k, seed):
    slopes, x = grid(k, n, seed=seed), grid(n, seed=seed + 1)
    hull = subdifferential_max_affine(x, slopes, grid(k, seed=seed + 2))
    vertices = hull.vertices
    assert len(vertices) >= 1
    members = torch.softmax(3 * randn(5, len(vertices), seed=seed + 3), 1) @ vertices
    assert all(hull.contains(g) for g in members)
    f = max_affine(slopes, grid(k, seed=seed + 2))
    y = x + 5 * randn(200, n, seed=seed + 4)
    for g in members:  # every member supports the function
        assert (f(y) >= f(x) + (y - x) @ g - 1e-9).all()
    unit = torch.eye(n, dtype=D)
    upper = torch.stack([hull.directional_derivative(e) for e in unit])
    lower = -torch.stack([hull.directional_derivative(-e) for e in unit])
    assert (members <= upper + 1e-9).all()
    assert (members >= lower - 1e-9).all()
    assert not hull.contains(members[0] + (upper - lower + 1))


@pytest.mark.theorem("thm-subdifferential")
def test_at_the_end_of_its_domain_a_convex_function_may_have_no_subgradient():
    y = torch.logspace(-30, 0, 61, dtype=D)  # f(y) = -sqrt(y) on y >= 0, at x = 0
    for g in (0.0, -1.0, -1e6):
        assert not (-y.sqrt() >= g * y).all()


@pytest.mark.theorem("cor-gradient")
@quick
@given(sizes, seeds)
def test_where_a_convex_function_has_a_gradient_it_lies_above_its_tangent_and_above_no_other_plane(n, seed):
    x, y = randn(n, seed=seed), 3 * randn(200, n, seed=seed + 1)
    for name, f in convex_functions(n, seed).items():
        gradient = backprop(f, x)
        assert (f(y) >= f(x) + (y - x) @ gradient - 1e-9).all(), name
        other = gradient + 0.01 * randn(n, seed=seed + 2)
        d = (other - gradient) * torch.logspace(-9, 1, 60, dtype=D)[:, None]  # the direction of the proof
        assert (f(x + d) < f(x) + d @ other - 1e-16).any(), name


@pytest.mark.theorem("prop-one-dimension")
@quick
@given(st.lists(st.tuples(eighths, eighths), min_size=1, max_size=5), eighths)
@example([(0.0, 0.0), (1.0, 0.0)], 0.0)
@example([(-1.0, 0.0), (1.0, 0.0)], 0.0)
def test_on_the_line_the_subdifferential_is_the_interval_of_the_one_sided_derivatives(pieces, x):
    slopes, intercepts = (torch.tensor(part, dtype=D) for part in zip(*pieces, strict=True))
    f = max_affine(slopes[:, None], intercepts)
    at = torch.tensor([x], dtype=D)
    interval = subdifferential_max_affine(x, slopes, intercepts)
    step = 2.0**-10  # smaller than the distance of two kinks, exact
    left, right = (f(at) - f(at - step)) / step, (f(at + step) - f(at)) / step
    assert isinstance(interval, Interval)
    assert (interval.lower, interval.upper) == (left, right)
    y = torch.cat([torch.linspace(x - 8, x + 8, 401, dtype=D), at - step, at + step])[:, None]
    for g in (left, right, (left + right) / 2, left - 0.125, right + 0.125):
        supports = bool((f(y) >= f(at) + g * (y[:, 0] - x) - 1e-12).all())
        assert supports == interval.contains(g)


# S1.1 to S1.3: ReLU at its kink


def test_relu_is_continuous_at_0_and_its_one_sided_derivatives_0_and_1_differ():
    h = sp.symbols("h", real=True)
    relu = sp.Max(h, 0)
    assert [sp.limit(relu, h, 0, side) for side in "-+"] == [0, 0] == [relu.subs(h, 0)] * 2
    assert [sp.limit(relu / h, h, 0, side) for side in "-+"] == [0, 1]
    steps = torch.tensor([1e-300, 1e-10, 1e-3], dtype=D)
    assert torch.equal(torch.relu(steps) / steps, torch.ones(3, dtype=D))
    assert torch.equal(torch.relu(-steps) / -steps, torch.zeros(3, dtype=D))


def test_the_subdifferential_of_relu_at_0_is_the_closed_interval_from_0_to_1():
    at_zero = subdifferential_relu(0.0)
    assert isinstance(at_zero, Interval)
    assert (at_zero.lower, at_zero.upper) == (0, 1)
    assert all(at_zero.contains(g) for g in (0.0, 1e-300, 0.3, 1.0))
    assert not any(at_zero.contains(g) for g in (-1e-6, 1 + 1e-6, -1.0, 2.0))
    y = torch.linspace(-5, 5, 1001, dtype=D)
    for g in torch.linspace(-1, 2, 301, dtype=D):
        assert bool((torch.relu(y) >= g * y - 1e-12).all()) == at_zero.contains(g)
    assert at_zero.min_norm() == 0


# The families of the rectifiers

KINKED = {
    "relu": (torch.relu, subdifferential_relu, (0.0,)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.1), lambda x: subdifferential_leaky_relu(x, 0.1), (0.0,)),
    "leaky_relu above 1": (lambda x: F.leaky_relu(x, 3.0), lambda x: subdifferential_leaky_relu(x, 3.0), (0.0,)),
    "prelu": (
        lambda x: F.prelu(x, torch.tensor([0.25], dtype=x.dtype)),
        lambda x: subdifferential_prelu(x, 0.25),
        (0.0,),
    ),
    "absolute": (torch.abs, subdifferential_absolute, (0.0,)),
    "hardtanh": (F.hardtanh, subdifferential_hardtanh, (-1.0, 1.0)),
    "hardtanh(-2, 5)": (lambda x: F.hardtanh(x, -2, 5), lambda x: subdifferential_hardtanh(x, -2, 5), (-2.0, 5.0)),
}


@pytest.mark.parametrize("name", KINKED)
@quick
@given(x=st.one_of(eighths, st.floats(-100, 100)))
def test_the_interval_of_a_rectifier_is_the_hull_of_its_one_sided_slopes(name, x):
    f, subdifferential, kinks = KINKED[name]
    assume(x in kinks or min(abs(x - kink) for kink in kinks) > 1e-3)
    at, h = torch.tensor(x, dtype=D), 1e-5
    left, right = (f(at) - f(at - h)) / h, (f(at + h) - f(at)) / h
    interval = subdifferential(x)
    assert torch.isclose(interval.lower, torch.minimum(left, right), atol=1e-8)
    assert torch.isclose(interval.upper, torch.maximum(left, right), atol=1e-8)
    assert interval.contains(backprop(f, x))
    assert (x in kinks) == bool(interval.lower < interval.upper)


@pytest.mark.parametrize("name", KINKED)
@pytest.mark.parametrize("dtype", FLOATS)
def test_of_a_tensor_it_is_the_box_of_the_intervals_in_the_dtype_of_the_tensor(name, dtype):
    f, subdifferential, kinks = KINKED[name]
    x = torch.tensor([[-3.0, *kinks, 7.0]], dtype=dtype)
    box = subdifferential(x)
    assert type(box) is Box
    assert box.lower.dtype == dtype
    assert box.lower.shape == x.shape
    picked = torch.autograd.grad(
        f(x.clone().requires_grad_()).sum(), y := x.clone().requires_grad_(), allow_unused=True
    )
    assert picked[0] is None  # another leaf: the box is about x, not about a graph
    g = torch.autograd.grad(f(y).sum(), y)[0]
    assert box.contains(g, tol=1e-3)
    for i in range(x.numel()):
        assert box.lower.flatten()[i] == subdifferential(x.flatten()[i]).lower


def test_the_absolute_value_and_the_l1_loss_at_0_have_minus_1_to_1_and_torch_picks_0():
    interval = subdifferential_absolute(0.0)
    assert (interval.lower, interval.upper) == (-1, 1)
    assert not interval.contains(1.01)
    for f in (torch.abs, lambda x: F.l1_loss(x, torch.zeros_like(x)), lambda x: torch.linalg.vector_norm(x, 1)):
        assert backprop(f, 0.0) == 0
        assert interval.contains(backprop(f, 0.0))


@pytest.mark.theorem("prop-separable")
@quick
@given(st.lists(eighths | st.just(0.0), min_size=1, max_size=6), seeds)
def test_the_subdifferential_of_the_l1_norm_is_the_product_of_those_of_its_entries(entries, seed):
    x = torch.tensor(entries, dtype=D)
    box = subdifferential_l1_norm(x)
    for i, entry in enumerate(entries):
        one = subdifferential_absolute(entry)
        assert (box.lower[i], box.upper[i]) == (one.lower, one.upper)
    member = box.lower + torch.rand(len(x), dtype=D, generator=torch.Generator().manual_seed(seed)) * (
        box.upper - box.lower
    )
    y = torch.cat([x + randn(100, len(x), seed=seed), x + 1e-3 * grid(100, len(x), seed=seed)])
    assert box.contains(member)
    assert (y.abs().sum(1) >= x.abs().sum() + (y - x) @ member - 1e-9).all()
    # One coordinate outside of its interval, and one coordinate of y shows it.
    i = seed % len(x)
    member[i] = box.upper[i] + 0.25
    assert not box.contains(member)
    along = x + torch.linspace(0, 10, 200, dtype=D)[:, None] * torch.eye(len(x), dtype=D)[i]
    assert (along.abs().sum(1) < x.abs().sum() + (along - x) @ member - 1e-9).any()


@quick
@given(st.lists(eighths | st.just(0.0), min_size=1, max_size=4), seeds)
def test_a_box_answers_as_the_hull_of_its_vertices_does(entries, seed):
    box = subdifferential_l1_norm(torch.tensor(entries, dtype=D))
    hull, v = ConvexHull(box.vertices), randn(len(entries), seed=seed)
    assert len(box.vertices) == 2 ** entries.count(0.0)
    assert torch.isclose(box.directional_derivative(v), hull.directional_derivative(v))
    assert torch.allclose(box.min_norm(), hull.min_norm(), atol=1e-12)
    for g in (v, 0.3 * v, box.vertices.mean(0)):
        assert box.contains(g) == hull.contains(g)


# Hulls: separation and the least norm


def nearest(hull: ConvexHull, g: Tensor) -> Tensor:
    return g + ConvexHull(hull.points.double() - g).min_norm()


def least_norm_by_faces(points: np.ndarray) -> np.ndarray:
    """Every subset of at most n + 1 points: the nearest point of its plane, if its weights are not negative."""
    k, n = points.shape
    best = points[np.argmin((points**2).sum(1))]
    for size in range(2, min(k, n + 1) + 1):
        for subset in itertools.combinations(range(k), size):
            Q = points[list(subset)]
            edges = (Q[1:] - Q[0]).T
            rest = np.linalg.lstsq(edges, -Q[0], rcond=None)[0]
            if (rest >= 0).all() and rest.sum() <= 1:
                candidate = Q[0] + edges @ rest
                best = min(best, candidate, key=np.linalg.norm)
    return best


def least_norm_by_nnls(points: np.ndarray) -> np.ndarray:
    """Lawson and Hanson: non-negative least squares for [points.T; 1] w = (0, ..., 0, 1), then scaled to sum 1."""
    scale = np.abs(points).max() or 1.0
    A = np.vstack([points.T / scale, np.ones(len(points))])
    w, _ = scipy.optimize.nnls(A, np.append(np.zeros(points.shape[1]), 1.0))
    return (w / w.sum()) @ points


def clouds(kind: str, k: int, n: int, seed: int) -> Tensor:
    points = randn(k, n, seed=seed)
    return {
        "random": points,
        "integers": grid(k, n, seed=seed),
        "duplicates": points[grid(k, seed=seed).long() % k],
        "one point many times": points[:1].repeat(k, 1),
        "on a plane": points[:, :1] * randn(1, n, seed=seed + 1) + randn(1, n, seed=seed + 2),
        "through the origin": torch.cat([points, -points[:1]]),
        "large": 1e6 * points,
        "huge": 1e200 * points,
        "tiny": 1e-8 * points,
        "denormal sizes": 1e-200 * points,
        "far away": points + 1e4,
        "two sizes": torch.cat([1e6 * points, 1e-3 * points + 1]),
    }[kind]


CLOUDS = [
    *("random", "integers", "duplicates", "one point many times", "on a plane", "through the origin"),
    *("large", "huge", "tiny", "denormal sizes", "far away", "two sizes"),
]


@pytest.mark.parametrize("kind", CLOUDS)
@settings(max_examples=25)
@given(k=st.integers(1, 7), n=st.integers(1, 4), seed=seeds)
def test_the_least_norm_element_is_that_of_two_independent_methods(kind, k, n, seed):
    points = clouds(kind, k, n, seed)
    found, size = ConvexHull(points).min_norm().numpy(), float(points.abs().amax()) or 1.0
    for reference in (least_norm_by_faces, least_norm_by_nnls):
        expected = reference(points.numpy() / size)
        np.testing.assert_allclose(found / size, expected, atol=1e-9, err_msg=reference.__name__)


@settings(max_examples=60)
@given(k=st.integers(1, 12), n=st.integers(1, 6), seed=seeds, kind=st.sampled_from(CLOUDS))
def test_no_point_of_the_hull_is_nearer_to_the_origin_by_the_condition_of_optimality(kind, k, n, seed):
    points = clouds(kind, k, n, seed)
    points = points / (points.abs().amax() or 1.0)
    g = ConvexHull(points).min_norm()
    assert (points @ g >= g @ g - 1e-14).all()
    assert ConvexHull(points).contains(g)


def test_degenerate_faces_do_not_stop_the_search_early():
    # Here the minimiser of a plane has two weights that vanish together, one of them by rounding alone.
    points = [[-2, -2, 1], [-1, 1, 1], [2, -2, -2], [2, 0, 2], [-1, 0, 1], [1, 1, 1], [2, 0, 1]]
    assert ConvexHull(torch.tensor(points, dtype=D)).min_norm().norm() < 1e-14
    for seed in range(300):
        points = grid(1 + seed % 13, 1 + seed % 6, seed=seed, size=1 + seed % 3)
        g = ConvexHull(points).min_norm()
        assert (points @ g >= g @ g - 1e-12).all(), seed


@pytest.mark.parametrize(
    ("k", "n", "shift"), [(500, 50, 0.0), (500, 50, 1.0), (3000, 3, 3.0), (60, 59, 0.0), (40, 200, 0.0)]
)
def test_the_least_norm_is_found_in_large_clouds_too(k, n, shift):
    points = randn(k, n, seed=0) + shift
    g = ConvexHull(points).min_norm()
    assert (points @ g >= g @ g - 1e-11).all()
    np.testing.assert_allclose(g, least_norm_by_nnls(points.numpy()), atol=1e-8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_least_norm_keeps_dtype_and_device_and_is_right_to_the_last_place(dtype, device):
    for seed in range(20):
        points = randn(6, 3, seed=seed).to(device, dtype)
        g = ConvexHull(points).min_norm()
        assert (g.dtype, g.device) == (points.dtype, points.device)
        expected = least_norm_by_nnls(points.double().cpu().numpy())
        np.testing.assert_allclose(g.double().cpu(), expected, atol=2 * torch.finfo(dtype).eps + 1e-8)
        assert ConvexHull(points).contains(g)


@pytest.mark.parametrize("spacing", [1e-2, 1e-4, 1e-6])
def test_the_least_norm_is_found_between_points_that_lie_close_together(spacing):
    t = spacing * (torch.arange(-5, 5, dtype=D) + 0.5)
    points = torch.stack([1 + t**2, t], 1)  # a parabola: the nearest point lies between its two lowest points
    assert torch.allclose(ConvexHull(points).min_norm(), torch.tensor([1 + spacing**2 / 4, 0.0], dtype=D), atol=1e-10)


def test_the_least_norm_of_a_set_with_the_origin_is_zero_up_to_rounding():
    for seed in range(50):
        points = randn(8, 3, seed=seed)
        hull = ConvexHull(points - torch.softmax(randn(8, seed=seed + 99), 0) @ points)
        assert hull.min_norm().norm() < 1e-14
        assert hull.contains(torch.zeros(3))
    assert ConvexHull(torch.zeros(4, 3)).min_norm().tolist() == [0, 0, 0]
    assert ConvexHull(torch.zeros(1, 0)).min_norm().shape == (0,)


@pytest.mark.theorem("lem-separation")
@quick
@given(st.integers(1, 7), st.integers(1, 4), seeds, st.sampled_from(["random", "integers", "duplicates", "on a plane"]))
def test_the_nearest_point_of_a_hull_separates_it_from_a_point_outside(k, n, seed, kind):
    hull = ConvexHull(clouds(kind, k, n, seed))
    g = 2 * randn(n, seed=seed + 5)
    p = nearest(hull, g)
    v = g - p
    assert hull.contains(p)
    assert (hull.points @ v <= p @ v + 1e-9).all()
    assert hull.contains(g) == bool(v.norm() <= 1e-9)
    if not hull.contains(g):
        assert p @ v < g @ v
        assert hull.directional_derivative(v) < g @ v


@quick
@given(st.integers(1, 8), st.integers(1, 4), seeds)
def test_means_of_the_points_are_members_and_points_beyond_a_supporting_plane_are_not(k, n, seed):
    hull = ConvexHull(clouds("integers" if seed % 2 else "random", k, n, seed))
    assert hull.contains(torch.softmax(3 * randn(k, seed=seed + 1), 0) @ hull.points)
    assert all(hull.contains(point) for point in hull.points)
    v = randn(n, seed=seed + 2)
    top = hull.points[(hull.points @ v).argmax()]
    assert not hull.contains(top + 1e-6 * v / v.norm())
    assert hull.contains(top + 1e-6 * v / v.norm(), tol=2e-6)


@quick
@given(st.integers(1, 9), st.integers(1, 3), seeds, st.sampled_from(CLOUDS))
def test_the_vertices_span_the_hull_and_none_is_a_mean_of_the_others(k, n, seed, kind):
    points = clouds(kind, k, n, seed)
    size = float(points.abs().amax()) or 1.0
    hull = ConvexHull(points / size)
    vertices = hull.vertices
    assert 1 <= len(vertices) <= len(points)
    assert all(ConvexHull(vertices).contains(point, tol=1e-8) for point in hull.points)
    if len(vertices) > 1:
        spread = float((hull.points - hull.points[0]).abs().amax())
        for i in range(len(vertices)):
            others = torch.cat([vertices[:i], vertices[i + 1 :]])
            assert not ConvexHull(others).contains(vertices[i], tol=1e-10 * spread)


@pytest.mark.parametrize("size", [1e-250, 1e-30, 1e-12, 1.0, 1e12, 1e250])
def test_vertices_do_not_depend_on_the_size_of_the_points(size):
    points = size * torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [1.0, 1.0], [2.0, 2.0], [4.0, 0.0]], dtype=D)
    vertices = ConvexHull(points).vertices
    assert torch.equal(vertices, size * torch.tensor([[0.0, 0.0], [0.0, 4.0], [4.0, 0.0]], dtype=D))


def test_two_points_that_differ_by_rounding_alone_leave_one_vertex():
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1e-16], [0.0, 1.0]], dtype=D)
    assert len(ConvexHull(points).vertices) == 3


# Maxima


@pytest.mark.theorem("thm-max-rule")
@quick
@given(st.integers(1, 6), sizes, seeds)
def test_the_subdifferential_of_a_maximum_is_the_hull_of_the_active_slopes(k, n, seed):
    slopes, intercepts, x = grid(k, n, seed=seed), grid(k, seed=seed + 1), grid(n, seed=seed + 2)
    f, hull = max_affine(slopes, intercepts), subdifferential_max_affine(x, slopes, intercepts)
    value = slopes @ x + intercepts
    assert torch.equal(hull.points, slopes[value == value.max()])  # integers: ties are exact
    for v in torch.cat([randn(20, n, seed=seed + 3), grid(20, n, seed=seed + 4)]):
        h = 2.0**-12  # no inactive piece catches up
        assert torch.isclose(hull.directional_derivative(v), (f(x + h * v) - f(x)) / h, atol=1e-8)
    y = x + 4 * randn(300, n, seed=seed + 5)
    for g in hull.points:
        assert (f(y) >= f(x) + (y - x) @ g - 1e-9).all()
    g = randn(n, seed=seed + 6)
    if not hull.contains(g):
        v = g - nearest(hull, g)
        h = 2.0**-12
        assert f(x + h * v) < f(x) + h * v @ g


@pytest.mark.theorem("cor-max-differentiable")
@quick
@given(st.integers(1, 5), sizes, seeds)
def test_a_maximum_is_differentiable_exactly_where_its_active_slopes_are_equal(k, n, seed):
    slopes, intercepts, x = grid(k, n, seed=seed, size=1), grid(k, seed=seed + 1, size=1), grid(n, seed=seed + 2)
    f, hull = max_affine(slopes, intercepts), subdifferential_max_affine(x, slopes, intercepts)
    h, differentiable = 2.0**-12, True
    for v in torch.cat([torch.eye(n, dtype=D), randn(20, n, seed=seed + 3)]):
        forward, backward = (f(x + h * v) - f(x)) / h, (f(x) - f(x - h * v)) / h
        differentiable &= bool(torch.isclose(forward, backward, atol=1e-8))
    assert differentiable == (len(hull.vertices) == 1)


@pytest.mark.theorem("cor-max-differentiable")
@quick
@given(eighths, eighths)
@example(0.0, 0.0)
@example(1.0, 1.0)
def test_the_maximum_of_two_has_derivative_1_in_the_larger_and_0_in_the_smaller_and_none_at_a_tie(x, y):
    pair = torch.tensor([x, y], dtype=D)
    hull = subdifferential_max(pair)
    if x == y:
        assert hull.vertices.tolist() == [[0, 1], [1, 0]]
    else:
        expected = torch.tensor([float(x > y), float(y > x)], dtype=D)
        assert torch.equal(hull.vertices, expected[None])
        assert torch.equal(backprop(lambda p: torch.maximum(p[0], p[1]), pair), expected)
        assert torch.equal(backprop(torch.amax, pair), expected)


@quick
@given(eighths, st.floats(0, 1))
def test_at_a_tie_of_two_the_set_is_the_segment_of_shares_and_minus_1_is_outside(value, share):
    segment = subdifferential_max(torch.full((2,), value, dtype=D))
    assert segment.contains(torch.tensor([share, 1 - share]), tol=1e-7)
    for g in [(-1.0, 0.0), (0.0, -1.0), (-1.0, -1.0), (-1.0, 2.0), (-1.0, 1.0), (0.0, 0.0), (1.0, 1.0)]:
        assert not segment.contains(torch.tensor(g))
    assert torch.allclose(segment.min_norm(), torch.full((2,), 0.5, dtype=D))


@pytest.mark.theorem("prop-max-abs")
@quick
@given(st.fractions(), st.fractions())
def test_maximum_and_minimum_are_half_the_sum_plus_and_minus_half_the_distance(x, y):
    assert max(x, y) == (x + y + abs(x - y)) / 2
    assert min(x, y) == (x + y - abs(x - y)) / 2


@pytest.mark.theorem("prop-max-abs")
def test_sympy_proves_the_formula_with_the_absolute_value_by_cases():
    x, y = sp.symbols("x y", real=True)
    d = sp.symbols("d", positive=True)
    form = (x + y + sp.Abs(x - y)) / 2
    assert sp.simplify(form.subs(x, y + d)) == y + d
    assert sp.simplify(form.subs(y, x + d)) == x + d
    assert form.subs(y, x) == x
    assert sp.simplify(sp.Max(x, y).rewrite(sp.Abs) - form) == 0


@pytest.mark.parametrize(
    ("dtype", "x", "y", "wrong"),
    [
        (torch.float16, 4e4, 4e4, INF),
        (torch.float32, 3e38, 1e38, INF),
        (torch.float32, -1e8, 1.0, 0.0),
        (torch.float64, -INF, 1.0, NAN),
        (torch.float64, INF, INF, NAN),
    ],
)
def test_the_formula_with_the_absolute_value_overflows_and_rounds_where_the_maximum_does_not(dtype, x, y, wrong):
    a, b = torch.tensor([x, y], dtype=dtype)
    assert torch.maximum(a, b) == torch.tensor(max(x, y), dtype=dtype)
    rounded = ((a + b + (a - b).abs()) / 2).item()
    assert rounded == wrong or (math.isnan(rounded) and math.isnan(wrong))


def nest(leaves: list[Tensor], shares: st.DrawFn | None, data) -> Tensor:
    """A tree of maxima whose shape is drawn."""
    if len(leaves) == 1:
        return leaves[0]
    cut = data.draw(st.integers(1, len(leaves) - 1))
    return torch.maximum(nest(leaves[:cut], shares, data), nest(leaves[cut:], shares, data))


@pytest.mark.theorem("prop-nesting")
@quick
@given(st.lists(st.integers(0, 2), min_size=1, max_size=7), st.data())
def test_every_nesting_has_the_value_of_the_maximum_and_a_gradient_in_its_subdifferential(entries, data):
    x = torch.tensor(entries, dtype=D, requires_grad=True)
    order = data.draw(st.permutations(range(len(entries))))
    value = nest([x[i] for i in order], None, data)
    assert value == x.amax()
    (g,) = torch.autograd.grad(value, x)
    assert g.sum() == 1
    assert (g >= 0).all()
    assert (g[x < x.amax()] == 0).all()
    assert subdifferential_max(x).contains(g)


@pytest.mark.theorem("prop-nesting")
@quick
@given(st.lists(st.integers(0, 1), min_size=2, max_size=6), st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_any_split_of_the_gradient_at_a_tie_is_a_subgradient_too(entries, shares):
    # A chain max(x1, max(x2, ...)) whose node i keeps shares[i] of its gradient for its own entry at a tie.
    g, upstream = torch.zeros(len(entries), dtype=D), 1.0
    for i, entry in enumerate(entries[:-1]):
        rest = max(entries[i + 1 :])
        kept = 1.0 if entry > rest else 0.0 if entry < rest else shares[i]
        g[i], upstream = upstream * kept, upstream * (1 - kept)
    g[-1] = upstream
    assert subdifferential_max(torch.tensor(entries, dtype=D)).contains(g)


def test_the_gradient_of_nested_maxima_at_a_tie_depends_on_the_nesting():
    m, x = torch.maximum, torch.ones(3, dtype=D)
    assert backprop(lambda x: m(x[0], m(x[1], x[2])), x).tolist() == [0.5, 0.25, 0.25]
    assert backprop(lambda x: m(m(x[0], x[1]), x[2]), x).tolist() == [0.25, 0.25, 0.5]
    assert torch.allclose(backprop(torch.amax, x), torch.full((3,), 1 / 3, dtype=D))
    assert backprop(lambda x: x.max(dim=0).values, x).tolist() == [1, 0, 0]


def test_a_tolerance_says_which_entries_and_pieces_are_active():
    x = torch.tensor([0.1 + 0.2, 0.3], dtype=D)
    assert len(subdifferential_max(x).vertices) == 1
    assert len(subdifferential_max(x, tol=1e-12).vertices) == 2
    slopes, intercepts = torch.tensor([1.0, 2.0], dtype=D), torch.tensor([0.0, -1e-9], dtype=D)
    assert repr(subdifferential_max_affine(0.0, slopes, intercepts)) == "[1, 1]"
    assert repr(subdifferential_max_affine(0.0, slopes, intercepts, tol=1e-8)) == "[1, 2]"


def test_pieces_are_compared_in_double_precision_whatever_their_dtype():
    # In float16 both products round to the same number, and the first piece would seem active as well.
    slopes, x = torch.tensor([2 - 2 / 1024, 2 - 1 / 1024], dtype=torch.float16), torch.tensor(1.25, dtype=torch.float16)
    assert slopes[0] < slopes[1]
    assert slopes[0] * x == slopes[1] * x
    found = subdifferential_max_affine(x, slopes, torch.zeros(2, dtype=torch.float16))
    assert found.lower == found.upper == slopes[1]
    # A number x is not rounded to the dtype of the slopes.
    found = subdifferential_max_affine(1e-9, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]))
    assert repr(found) == "[1, 1]"


# What torch picks


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_operation_of_torch_picks_a_valid_element_and_two_compositions_do_not(dtype, device):
    table = measure_kinks(dtype, device)
    assert [row.operation for row in table if not row.valid] == ["sqrt(x * x)", "relu(x) - relu(-x)"]
    assert all(row.picked.dtype == dtype for row in table)


def test_the_choices_of_torch_are_those_of_the_claim():
    picked = {row.operation: row.picked.tolist() for row in measure_kinks()}
    assert picked["relu(x)"] == 0
    assert picked["clamp(x, min=0)"] == 1
    assert picked["maximum(x, 0)"] == 0.5
    assert picked["leaky_relu(x, 0.01)"] == 0.01
    assert picked["abs(x)"] == picked["l1_loss(x, 0)"] == 0
    assert picked["hardtanh(x)"] == 0
    assert picked["maximum(x[0], x[1])"] == [0.5, 0.5]
    assert picked["amax(x)"] == pytest.approx([1 / 3] * 3)
    assert picked["max(x, dim=0)"] == picked["max_pool1d(x, 3)"] == [1, 0, 0]
    assert math.isnan(picked["sqrt(x * x)"])


def test_the_table_shows_itself_as_text_and_as_html():
    table = measure_kinks()
    assert isinstance(table, KinkTable)
    lines = repr(table).splitlines()
    assert len(lines) == len(table) + 1
    assert lines[0].split("  ")[0] == "operation"
    assert lines[-1].endswith("no")
    html = table._repr_html_()
    assert html.count("<tr>") == len(table) + 1
    assert "<tr><td><code>relu(x)</code></td><td>0</td><td>0</td><td>yes</td></tr>" in html
    assert "where(x &gt; 0, x, 0)" in html


def test_measuring_leaves_the_seed_alone():
    before = torch.get_rng_state()
    measure_kinks()
    assert torch.equal(torch.get_rng_state(), before)


# The chain rule


@pytest.mark.theorem("prop-sum-rule")
@quick
@given(sizes, st.integers(1, 4), seeds, eighths.map(abs), eighths.map(abs))
def test_sums_with_weights_that_are_not_negative_and_affine_maps_carry_the_whole_set(n, m, seed, a, b):
    P, Q, A = grid(4, n, seed=seed), grid(3, n, seed=seed + 1), grid(n, m, seed=seed + 2)
    # f and h are maxima whose pieces all meet at x = 0, so the sets are the hulls of P and of Q.
    total = ConvexHull((a * P[:, None] + b * Q[None]).reshape(-1, n))
    zero = torch.zeros(n, dtype=D)
    f, h = max_affine(P, torch.zeros(4, dtype=D)), max_affine(Q, torch.zeros(3, dtype=D))
    for v in randn(10, n, seed=seed + 3):  # equal support functions, hence equal sets
        assert torch.isclose(total.directional_derivative(v), a * f(zero + v) + b * h(zero + v), atol=1e-9)
    s = torch.softmax(randn(4, seed=seed + 4), 0) @ P
    t = torch.softmax(randn(3, seed=seed + 5), 0) @ Q
    assert total.contains(a * s + b * t)
    pulled = subdifferential_max_affine(torch.zeros(m, dtype=D), P @ A, torch.zeros(4, dtype=D))
    assert pulled.contains(A.T @ s)
    for g in pulled.vertices:  # and back: every subgradient of the composition is the image of one
        assert any(torch.allclose(A.T @ p, g) for p in P)


@pytest.mark.theorem("prop-sum-rule")
@quick
@given(st.integers(1, 6), st.integers(1, 4), seeds)
def test_backprop_through_the_absolute_residuals_of_a_linear_model_gives_a_subgradient(m, n, seed):
    A, z = grid(m, n, seed=seed), grid(n, seed=seed + 1)
    b = A @ z - grid(m, seed=seed + 2, size=1)
    g = backprop(lambda z: (A @ z - b).abs().sum(), z)
    y = z + 3 * randn(300, n, seed=seed + 3)
    assert ((y @ A.T - b).abs().sum(1) >= (A @ z - b).abs().sum() + (y - z) @ g - 1e-9).all()


def test_backprop_through_a_difference_of_relus_gives_no_subgradient():
    def identity(x):
        return torch.relu(x) - torch.relu(-x)

    x = torch.linspace(-2, 2, 9, dtype=D)
    assert torch.equal(identity(x), x)
    assert backprop(identity, 0.0) == 0
    assert not Interval(1.0, 1.0).contains(0.0)
    assert backprop(identity, 0.5) == backprop(identity, -0.5) == 1

    def amplified(x):
        return 10 * x - 9 * (torch.relu(x) - torch.relu(-x))

    assert torch.allclose(amplified(x), x)
    assert backprop(amplified, 0.0) == 10


class ReLUWithSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, c):
        ctx.save_for_backward(x, c)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, upstream):
        x, c = ctx.saved_tensors
        return upstream * torch.where(x == 0, c, (x > 0).to(x.dtype)), None


@pytest.mark.theorem("prop-no-slope")
@quick
@given(st.floats(-3, 3) | st.sampled_from([0.0, 0.5, 1.0, (math.sqrt(5) - 1) / 2]))
def test_no_slope_of_relu_at_0_makes_backprop_right_for_both_programs(c):
    def relu(x):
        return ReLUWithSlope.apply(x, torch.tensor(c, dtype=D))

    x = torch.linspace(-2, 2, 9, dtype=D)
    first, second = (lambda x: relu(x) - relu(-x)), (lambda x: relu(relu(x)) - relu(-x))
    assert torch.equal(first(x), x)
    assert torch.equal(second(x), x)
    a, b = backprop(first, 0.0).item(), backprop(second, 0.0).item()
    assert a == pytest.approx(2 * c)
    assert b == pytest.approx(c * c + c)
    assert max(abs(a - 1), abs(b - 1)) > 0.1


# Descent


@pytest.mark.theorem("prop-steepest-descent")
@quick
@given(st.integers(1, 6), sizes, seeds)
def test_minus_the_least_norm_subgradient_is_the_steepest_direction(k, n, seed):
    hull = ConvexHull(clouds("integers" if seed % 2 else "random", k, n, seed))
    g = hull.min_norm()
    directions = F.normalize(torch.cat([randn(300, n, seed=seed + 1), -hull.points, -g[None]]), dim=1)
    directions = directions[directions.norm(dim=1) > 0.5]
    slopes = (directions @ hull.points.T).amax(1)
    assert (slopes >= -g.norm() - 1e-12).all()
    if g.norm() > 1e-9:
        d = -g / g.norm()
        assert torch.isclose(hull.directional_derivative(d), -g.norm())
        for other in directions:  # no other is as steep
            if (other - d).norm() > 1e-3:
                assert hull.directional_derivative(other) > -g.norm() + 1e-8 * g.norm()
    else:
        assert (slopes >= -1e-12).all()


@pytest.mark.theorem("prop-steepest-descent")
@quick
@given(sizes, seeds)
def test_a_point_is_a_minimum_exactly_if_zero_is_a_subgradient(n, seed):
    slopes, intercepts = grid(2 * n + 2, n, seed=seed), grid(2 * n + 2, seed=seed + 1)
    f, x = max_affine(slopes, intercepts), grid(n, seed=seed + 2)
    hull = subdifferential_max_affine(x, slopes, intercepts)
    # The minimum of f by a linear program: least t with slopes x + intercepts <= t.
    A = np.hstack([slopes.numpy(), -np.ones((len(slopes), 1))])
    program = scipy.optimize.linprog(np.append(np.zeros(n), 1.0), A, -intercepts.numpy(), bounds=(None, None))
    is_minimum = program.status == 0 and float(f(x)) <= program.fun + 1e-9
    assert is_minimum == hull.contains(torch.zeros(n))
    if not is_minimum:
        g = hull.min_norm()
        assert f(x - 2.0**-12 * g) < f(x)


def test_the_negative_of_some_subgradients_leads_uphill():
    slopes = torch.tensor([[1.0, 2.0], [1.0, -2.0], [-1.0, 2.0], [-1.0, -2.0]], dtype=D)
    hull = subdifferential_max_affine(torch.tensor([1.0, 0.0], dtype=D), slopes, torch.zeros(4, dtype=D))
    assert hull.vertices.tolist() == [[1, -2], [1, 2]]
    assert hull.directional_derivative(torch.tensor([-1.0, -2.0])) == 3
    assert hull.min_norm().tolist() == [1, 0]


@pytest.mark.theorem("thm-subgradient-method")
@settings(max_examples=25)
@given(st.integers(1, 4), seeds, st.sampled_from(["fixed", "root", "harmonic"]))
def test_the_subgradient_method_keeps_its_bound(n, seed, rule):
    A, best = randn(8, n, seed=seed), randn(n, seed=seed + 1)
    b = A @ best  # the minimum is 0, at best, and a kink
    x, eta, gaps, G = torch.zeros(n, dtype=D), [], [], 0.0
    for k in range(200):
        gap = (A @ x - b).abs().sum()
        g = A.T @ (A @ x - b).sign()
        G = max(G, float(g.norm()))
        gaps.append(float(gap))
        eta.append({"fixed": 0.05, "root": 0.3 / math.sqrt(k + 1), "harmonic": 0.5 / (k + 1)}[rule])
        x = x - eta[-1] * g
        bound = (float(best.norm()) ** 2 + G**2 * sum(e * e for e in eta)) / (2 * sum(eta))
        assert min(gaps) <= bound + 1e-9


@pytest.mark.theorem("thm-subgradient-method")
def test_shrinking_steps_converge_where_a_fixed_step_never_settles():
    fixed, shrinking, path = 1.0, 1.0, []
    for k in range(20000):
        fixed -= 0.3 * math.copysign(1, fixed)
        shrinking -= 0.3 / math.sqrt(k + 1) * math.copysign(1, shrinking)
        path.append(abs(fixed))
    assert min(path) > 0.09
    assert abs(shrinking) < 0.01


# The classes


def test_an_interval_takes_numbers_and_scalar_tensors():
    assert repr(Interval(0, 1)) == "[0, 1]"
    assert repr(Interval(-1.0, -0.0)) == "[-1, 0]"
    assert Interval(0.0, 1.0).lower.dtype == D
    assert Interval(torch.tensor(0.0), torch.tensor(1.0)).lower.dtype == torch.float32
    assert Interval(2.0, 2.0).vertices.tolist() == [2]
    assert Interval(-3.0, -2.0).min_norm() == -2
    assert Interval(-3.0, 2.0).directional_derivative(-2.0) == 6


def test_the_sets_describe_themselves():
    assert repr(Box(torch.tensor([-1.0]), torch.tensor([1.0]))) == "Box([-1.0], [1.0])"
    assert repr(ConvexHull(torch.tensor([[1.0, 0.0]]))) == "ConvexHull([[1.0, 0.0]])"


def test_a_box_lists_its_vertices_in_order_unless_they_are_too_many():
    box = Box(torch.tensor([[0.0, 2.0], [5.0, -1.0]]), torch.tensor([[1.0, 2.0], [6.0, 1.0]]))
    corners = {tuple(v.flatten().tolist()) for v in box.vertices}
    assert box.vertices.shape == (8, 2, 2)
    assert corners == set(itertools.product((0.0, 1.0), (2.0,), (5.0, 6.0), (-1.0, 1.0)))
    assert len(Box(torch.zeros(16), torch.ones(16)).vertices) == 2**16
    big = Box(torch.zeros(17), torch.ones(17))
    with pytest.raises(
        ValueError, match=r"the box has 2\*\*17 vertices, which is too many to list; use contains or min_norm"
    ):
        big.vertices
    assert big.contains(torch.full((17,), 0.5))


def test_the_tolerance_of_a_box_is_a_distance():
    box = Box(torch.zeros(4, dtype=D), torch.ones(4, dtype=D))
    outside = torch.full((4,), 1 + 1e-3, dtype=D)  # at the distance 2e-3
    assert not box.contains(outside, tol=1.9e-3)
    assert box.contains(outside, tol=2.1e-3)


def test_an_empty_tensor_has_the_box_with_one_empty_vertex():
    box = subdifferential_relu(torch.zeros(2, 0))
    assert box.vertices.shape == (1, 2, 0)
    assert box.contains(torch.zeros(2, 0))
    assert box.min_norm().shape == (2, 0)
    assert box.directional_derivative(torch.zeros(2, 0)) == 0


@pytest.mark.parametrize(
    "answer",
    [
        subdifferential_relu(torch.zeros(2, 3)),
        subdifferential_hardtanh(torch.ones(1)),
        subdifferential_max(torch.zeros(3)),
        Interval(0.0, 1.0),
    ],
)
def test_all_sets_answer_the_same_questions_about_their_own_vertices(answer):
    vertices = answer.vertices
    assert all(answer.contains(v) for v in vertices)
    assert answer.contains(answer.min_norm())
    assert answer.min_norm().norm() <= min(v.norm() for v in vertices) + 1e-6
    v = torch.randn(vertices.shape[1:], generator=torch.Generator().manual_seed(0)).to(vertices.dtype)
    assert torch.isclose(
        answer.directional_derivative(v), (vertices * v).flatten(1).sum(1).amax() if v.dim() else (vertices * v).amax()
    )


def test_a_point_that_needs_a_gradient_gives_a_set_that_does_not():
    x = torch.zeros(3, requires_grad=True)
    for found in (subdifferential_l1_norm(x), subdifferential_max(x)):
        assert not found.min_norm().requires_grad
        assert not found.vertices.requires_grad


def test_prelu_takes_one_weight_or_one_for_each_channel():
    x = torch.zeros(2, 3, 4)
    box = subdifferential_prelu(x, torch.tensor([0.0, 0.5, 2.0]))
    assert box.lower[1, :, 2].tolist() == [0.0, 0.5, 1.0]
    assert box.upper[1, :, 2].tolist() == [1.0, 1.0, 2.0]
    assert repr(subdifferential_prelu(0.0, torch.tensor([0.25]))) == "[0.25, 1]"
    assert subdifferential_prelu(torch.zeros(2, 3), torch.tensor([0.1, 0.2, 0.3])).lower[0].tolist() == pytest.approx(
        [0.1, 0.2, 0.3]
    )
    for weight in (torch.tensor([0.5]), torch.tensor([0.0, 0.5, 2.0])):
        y = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.prelu(y, weight).sum(), y)
        assert subdifferential_prelu(x, weight).contains(g)


# Bad input

INTEGERS = torch.tensor([1, 2])
of_pieces = subdifferential_max_affine
SHAPES = r"slopes must have shape \('k',\) and intercepts \('k',\) with k at least 1, for x of shape \(\); got \(3, 1\) and \(3,\)"
FUNCTIONS = [
    subdifferential_relu,
    subdifferential_leaky_relu,
    lambda x: subdifferential_prelu(x, 0.1),
    subdifferential_absolute,
    subdifferential_hardtanh,
    subdifferential_l1_norm,
    subdifferential_max,
    lambda x: subdifferential_max_affine(x, torch.zeros(3, 2), torch.zeros(3)),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_integer_tensors_are_refused(function):
    with pytest.raises(TypeError, match=r"x must be floating point, got torch.int64"):
        function(INTEGERS)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_points_that_are_not_finite_are_refused(function, bad):
    with pytest.raises(ValueError, match=r"x must be finite, got NaN or an infinity"):
        function(torch.tensor([1.0, bad]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Box(torch.zeros(2), torch.zeros(3)), ValueError, r"upper must have the shape of lower, \(2,\), got \(3,\)"),
        (lambda: Box(torch.ones(2), torch.zeros(2)), ValueError, r"lower must not exceed upper"),
        (lambda: Box(torch.tensor([NAN]), torch.zeros(1)), ValueError, r"lower must be finite, got NaN or an infinity"),
        (lambda: Box(torch.zeros(1), torch.tensor([INF])), ValueError, r"upper must be finite, got NaN or an infinity"),
        (lambda: Box(INTEGERS, torch.ones(2)), TypeError, r"lower must be floating point, got torch.int64"),
        (lambda: Interval(torch.zeros(1), torch.ones(1)), ValueError, r"lower must be a scalar, got shape \(1,\)"),
        (lambda: Interval(1.0, 0.0), ValueError, r"lower must not exceed upper"),
        (lambda: Interval(torch.tensor(0), 1.0), TypeError, r"lower must be floating point, got torch.int64"),
        (lambda: ConvexHull(torch.zeros(3)), ValueError, r"points must have shape \(k, n\) with k at least 1, got \(3,\)"),
        (lambda: ConvexHull(torch.zeros(0, 3)), ValueError, r"points must have shape \(k, n\) with k at least 1, got \(0, 3\)"),
        (lambda: ConvexHull(torch.tensor([[NAN]])), ValueError, r"points must be finite, got NaN or an infinity"),
        (lambda: ConvexHull(INTEGERS[None]), TypeError, r"points must be floating point, got torch.int64"),
        (lambda: Interval(0.0, 1.0).contains(torch.zeros(2)), ValueError, r"g must have shape \(\), got \(2,\)"),
        (lambda: Interval(0.0, 1.0).contains(NAN), ValueError, r"g must be finite, got NaN or an infinity"),
        (lambda: subdifferential_max(torch.zeros(3)).contains(torch.zeros(2)), ValueError, r"g must have shape \(3,\), got \(2,\)"),
        (lambda: subdifferential_max(torch.zeros(3)).directional_derivative(1.0), ValueError, r"v must have shape \(3,\), got \(\)"),
        (lambda: Box(torch.zeros(3), torch.ones(3)).directional_derivative(torch.zeros(3, 1)), ValueError, r"v must have shape \(3,\)"),
        (lambda: subdifferential_max(torch.zeros(2, 2)), ValueError, r"x must have shape \(n,\) with n at least 1, got \(2, 2\)"),
        (lambda: subdifferential_max(torch.zeros(0)), ValueError, r"x must have shape \(n,\) with n at least 1, got \(0,\)"),
        (lambda: subdifferential_max(torch.zeros(2), tol=-1), ValueError, r"tol must not be negative, got -1"),
        (lambda: Interval(0.0, 1.0).contains(0.5, tol=-1), ValueError, r"tol must not be negative, got -1"),
        (lambda: ConvexHull(torch.zeros(1, 1)).contains(torch.zeros(1), tol=NAN), ValueError, r"tol must not be negative, got nan"),
        (lambda: Box([0.0], [1.0]), TypeError, r"lower must be a torch tensor, got list"),
        (lambda: ConvexHull([[1.0]]), TypeError, r"points must be a torch tensor, got list"),
        (lambda: of_pieces(0.0, [1.0], torch.zeros(1)), TypeError, r"slopes must be a torch tensor, got list"),
        (lambda: of_pieces(0.0, torch.zeros(1), [1.0]), TypeError, r"intercepts must be a torch tensor, got list"),
        (lambda: subdifferential_max(torch.zeros(2), tol=NAN), ValueError, r"tol must not be negative, got nan"),
        (lambda: of_pieces(0.0, torch.zeros(3, 1), torch.zeros(3)), ValueError, SHAPES),
        (lambda: of_pieces(torch.zeros(2), torch.zeros(3, 2), torch.zeros(4)), ValueError, r"got \(3, 2\) and \(4,\)"),
        (lambda: of_pieces(torch.zeros(2, 2), torch.zeros(3, 2, 2), torch.zeros(3)), ValueError, r"for x of shape \(2, 2\)"),
        (lambda: of_pieces(0.0, torch.zeros(0), torch.zeros(0)), ValueError, r"with k at least 1"),
        (lambda: of_pieces(0.5, INTEGERS, torch.zeros(2)), TypeError, r"slopes must be floating point, got torch.int64"),
        (lambda: of_pieces(0.5, torch.zeros(2), INTEGERS), TypeError, r"intercepts must be floating point, got torch.int64"),
        (lambda: of_pieces(0.5, torch.tensor([NAN]), torch.zeros(1)), ValueError, r"slopes must be finite"),
        (lambda: subdifferential_leaky_relu(0.0, NAN), ValueError, r"negative_slope must be finite, got NaN or an infinity"),
        (lambda: subdifferential_prelu(0.0, INF), ValueError, r"weight must be finite, got NaN or an infinity"),
        (lambda: subdifferential_prelu(torch.zeros(2, 3), torch.ones(2)), ValueError, r"weight must have 1 or 3 numbers, got shape \(2,\)"),
        (lambda: subdifferential_prelu(0.0, torch.zeros(0)), ValueError, r"weight must have 1 or 1 numbers, got shape \(0,\)"),
        (lambda: subdifferential_hardtanh(0.0, 1.0, 1.0), ValueError, r"min_val must be below max_val, got 1.0 and 1.0"),
        (lambda: subdifferential_hardtanh(0.0, NAN, 1.0), ValueError, r"min_val must be below max_val, got nan and 1.0"),
        (lambda: measure_kinks(torch.int64), TypeError, r"dtype must be floating point, got torch.int64"),
    ],
)  # fmt: skip
def test_an_error_names_the_argument_what_it_had_and_what_was_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_every_public_name_is_exercised_here():
    text = Path(__file__).read_text(encoding="utf-8")
    text += Path(__file__).with_name("test_limiting.py").read_text(encoding="utf-8")
    abstract = {"Subdifferential", "KinkChoice"}
    assert all(name in text for name in set(subgradients.__all__) - abstract)
