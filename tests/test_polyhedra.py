"""The polyhedron of one input: facets, boundedness and the largest ball, compared with SciPy's linear programs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial import ConvexHull
from torch import Tensor, nn

import pwl_lib.piecewise_linear as pl
from pwl_lib import _polyhedra
from pwl_lib._polyhedra import RegionPolyhedron, polyhedron
from pwl_lib.piecewise_linear import activation_pattern

D = torch.float64
quick = settings(max_examples=12)
seeds = st.integers(0, 2**31 - 1)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def mlp(*widths: int, seed: int = 0, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=bias, dtype=D), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def of_rows(H: Any, c: Any) -> Callable[[Tensor], Tensor]:
    """A model whose region around an input with ``H x < c`` is all of ``H z <= c``."""
    H, c = torch.as_tensor(H, dtype=D), torch.as_tensor(c, dtype=D)
    return lambda x: torch.relu(c - x @ H.T)


def needed_by_programs(H: np.ndarray, c: np.ndarray) -> list[int]:
    """Rows that a linear program says are not implied by the others, one after the other, from the last one on."""
    kept = [k for k in range(len(H)) if np.abs(H[k]).max() > 0]
    for k in reversed(kept.copy()):
        others = [i for i in kept if i != k]
        bound = linprog(-H[k], A_ub=H[[*others, k]], b_ub=[*c[others], c[k] + 1], bounds=(None, None))
        if bound.status == 0 and -bound.fun <= c[k] + 1e-8:
            kept = others
    return kept


def ball_by_a_program(H: np.ndarray, c: np.ndarray) -> float:
    rows = np.column_stack([H, np.linalg.norm(H, axis=1)])
    ball = linprog([0] * H.shape[1] + [-1], A_ub=rows, b_ub=c, bounds=[(None, None)] * H.shape[1] + [(0, None)])
    assert ball.status in (0, 3, 4)
    return -ball.fun if ball.status == 0 else math.inf


def bounded_by_programs(H: np.ndarray, c: np.ndarray) -> bool:
    axes = [sign * axis for axis in np.eye(H.shape[1]) for sign in (1, -1)]
    # The cone of directions that stay inside, cut at length 1, is the point 0 alone.
    return all(-linprog(-axis, A_ub=H, b_ub=np.zeros(len(H)), bounds=(-1, 1)).fun < 1e-9 for axis in axes)


def assert_right(region: RegionPolyhedron, H: Tensor, c: Tensor) -> None:
    rows, bounds = H.numpy(), c.numpy()
    assert region.rows.tolist() == needed_by_programs(rows, bounds)
    assert torch.equal(region.H, H[region.rows])
    assert torch.equal(region.c, c[region.rows])
    assert region.is_bounded() == bounded_by_programs(rows, bounds)
    centre, radius = region.chebyshev_centre()
    assert radius == pytest.approx(ball_by_a_program(rows, bounds), rel=1e-7)
    room = (c - H @ centre.flatten())[H.abs().amax(1) > 0] / torch.linalg.vector_norm(H, dim=1)[H.abs().amax(1) > 0]
    if math.isinf(radius):
        assert room.min() > 0
    else:
        assert room.min() == pytest.approx(radius, rel=1e-9)


# --- networks ---


@pytest.mark.theorem("prop-redundant-polar")
@quick
@given(seeds, st.sampled_from([(1, 6, 1), (2, 9, 1), (2, 6, 6, 1), (3, 6, 6, 1), (4, 8, 1)]), st.booleans())
def test_facets_ball_and_boundedness_of_networks_are_those_of_linear_programs(
    seed: int, widths: tuple[int, ...], boxed: bool
) -> None:
    net, x = mlp(*widths, seed=seed), randn(widths[0], seed=seed + 1)
    piece = pl.polyhedron(net, x[None])
    H, c = piece.H[0], piece.c[0]
    if boxed:
        eye = torch.eye(len(x), dtype=D)
        H, c = torch.cat([H, eye, -eye]), torch.cat([c, torch.full((2 * len(x),), 9.0, dtype=D)])
    region = polyhedron(net, x, box=(-9.0, 9.0) if boxed else None)
    torch.testing.assert_close(region.H, H[region.rows], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(region.c, c[region.rows], rtol=1e-12, atol=1e-12)
    assert region.rows.tolist() == needed_by_programs(H.numpy(), c.numpy())
    assert region.is_bounded() == bounded_by_programs(H.numpy(), c.numpy())
    assert region.chebyshev_centre()[1] == pytest.approx(ball_by_a_program(H.numpy(), c.numpy()), rel=1e-7)
    if boxed:
        assert region.is_bounded()


@pytest.mark.parametrize("seed", range(4))
def test_without_the_redundant_rows_the_region_is_the_same(seed: int) -> None:
    net, x = mlp(2, 12, 12, 1, seed=seed), randn(2, seed=seed)
    region = polyhedron(net, x)
    z = x + 0.5 * randn(2000, 2, seed=seed + 9)
    full = pl.polyhedron(net, x.expand(2000, 2)).contains(z)
    assert torch.equal(region.contains(z), full)
    assert 0 < int(full.sum()) < 2000
    assert len(region) < 24
    # What lies inside has the code word of x.
    words = activation_pattern(net, z[region.contains(z, tol=-1e-9)])
    assert bool((words == activation_pattern(net, x[None])).all())
    assert region.contains(x).item() is True
    assert region.contains(region.chebyshev_centre()[0]).item() is True


def test_an_image_net_and_a_model_in_single_precision() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 2), nn.ReLU())
    x = torch.randn(1, 3, 3)
    region = polyhedron(net, x)
    full = pl.polyhedron(net.double(), x.double()[None])
    assert_right(region, full.H[0] + 0.0, full.c[0])
    assert region.contains(x).item() is True
    assert region.contains(x.flatten()).item() is True
    assert region.contains(x[None]).tolist() == region.contains(x.reshape(1, 9)).tolist() == [True]
    assert region.chebyshev_centre()[0].shape == x.shape
    assert region.H.dtype == region.c.dtype == D


# --- rows of every kind ---


@pytest.mark.theorem("prop-redundant-polar")
@pytest.mark.parametrize("seed", range(6))
def test_facets_are_the_vertices_of_the_polar_hull(seed: int) -> None:
    H, c = randn(15, 3, seed=seed), 1 + randn(15, seed=seed + 1).abs()
    points = np.vstack([(H / c[:, None]).numpy(), np.zeros((1, 3))])
    vertices = [int(k) for k in sorted(ConvexHull(points).vertices) if k < 15]
    assert polyhedron(of_rows(H, c), torch.zeros(3)).rows.tolist() == vertices


@pytest.mark.theorem("prop-bounded")
@pytest.mark.theorem("prop-chebyshev")
@quick
@given(seeds, st.integers(1, 4), st.integers(1, 9))
def test_rows_of_whole_numbers_with_ties_of_all_kinds(seed: int, n: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    H = torch.randint(-2, 3, (count, n), generator=generator).to(D)
    H = torch.cat([H, H[:2], 2 * H[:1]])  # repeated, and scaled
    c = torch.randint(1, 4, (len(H),), generator=generator).to(D)
    region = polyhedron(of_rows(H, c), torch.zeros(n))
    rows, bounds = H.numpy(), c.numpy()
    kept = region.rows.numpy()
    assert len(kept) == len(needed_by_programs(rows, bounds))
    assert needed_by_programs(rows[kept], bounds[kept]) == list(range(len(kept)))  # none too many
    for k in set(range(len(H))) - set(kept.tolist()):  # none too few
        if np.abs(rows[k]).max() > 0:
            reach = linprog(-rows[k], A_ub=rows[kept], b_ub=bounds[kept], bounds=(None, None))
            assert -reach.fun <= bounds[k] + 1e-8
    assert region.is_bounded() == bounded_by_programs(rows, bounds)
    assert region.chebyshev_centre()[1] == pytest.approx(ball_by_a_program(rows, bounds), rel=1e-7)


@pytest.mark.theorem("prop-bounded")
@pytest.mark.parametrize(
    ("H", "bounded", "radius"),
    [
        ([[1.0, 0.0]], False, math.inf),  # a halfspace
        ([[1.0, 0.0], [-1.0, 0.0]], False, 1.0),  # a strip: balls are bounded, the region is not
        ([[1.0, 0.0], [0.0, 1.0]], False, math.inf),  # a cone
        ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], False, 1.0),
        ([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], True, 3 / (2 + math.sqrt(2))),  # a triangle
        ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], True, 1.0),
        ([[0.0, 0.0]], False, math.inf),  # nothing is said
    ],
)
def test_the_ends_of_simple_regions(H: list[list[float]], bounded: bool, radius: float) -> None:
    region = polyhedron(of_rows(H, [1.0] * len(H)), torch.tensor([0.25, 0.5]))
    assert region.is_bounded() is bounded
    centre, found = region.chebyshev_centre()
    assert found == pytest.approx(radius, rel=1e-12)
    assert region.contains(centre).item() is True


@pytest.mark.theorem("prop-chebyshev")
@pytest.mark.parametrize("seed", range(3))
def test_the_largest_ball_touches_rows_that_hold_it(seed: int) -> None:
    n = 3
    H, c = randn(12, n, seed=seed), 1 + randn(12, seed=seed + 1).abs()
    centre, radius = polyhedron(of_rows(H, c), torch.zeros(n), box=(-5, 5)).chebyshev_centre()
    eye = torch.eye(n, dtype=D)
    H, c = torch.cat([H, eye, -eye]), torch.cat([c, torch.full((2 * n,), 5.0, dtype=D)])
    norm = torch.linalg.vector_norm(H, dim=1)
    room = (c - H @ centre) / norm
    touched = room < radius + 1e-9
    assert room.min() >= radius - 1e-12
    # No move makes room at all rows that are touched: 0 is a mean of their normals.
    normals = (H / norm[:, None])[touched].numpy()
    mean = linprog(np.zeros(len(normals)), A_eq=np.vstack([normals.T, np.ones(len(normals))]), b_eq=[0] * n + [1])
    assert mean.status == 0


def test_rows_of_zeros_and_repeated_rows_are_left_out() -> None:
    H = [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [3.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 1.0]]
    region = polyhedron(of_rows(H, [1.0, 1.0, 1.0, 3.0, 1.0, 1.0, 1.0, 2.0]), torch.zeros(2))
    assert region.rows.tolist() == [1, 4, 5, 6]  # the last one touches the square at a corner alone
    assert repr(region) == "RegionPolyhedron(4 facets in 2 dimensions, bounded)"
    nothing = polyhedron(lambda x: 2 * x, torch.zeros(3))
    assert len(nothing) == 0
    assert nothing.contains(torch.randn(5, 3)).all()
    assert repr(nothing) == "RegionPolyhedron(0 facets in 3 dimensions, unbounded)"


def test_an_input_on_a_facet_has_the_region_of_the_branch_that_it_takes() -> None:
    H, c = randn(8, 2, seed=3), torch.ones(8, dtype=D)
    inside = polyhedron(of_rows(H, c), torch.zeros(2))
    on = H[inside.rows[0]] / H[inside.rows[0]].square().sum()  # the foot of 0 on a facet
    on = on if inside.contains(on, tol=1e-9).item() else None
    # At a tie the unit is off: the region lies on the other side of the facet, which is one of its own.
    assert on is not None
    other = polyhedron(lambda x: torch.relu(x @ H.T - c), on * (1 - 1e-12))
    assert other.rows.tolist() == inside.rows.tolist()
    torch.testing.assert_close(other.chebyshev_centre()[1], inside.chebyshev_centre()[1], rtol=1e-9, atol=0)
    corner = polyhedron(of_rows(-torch.eye(3), torch.zeros(3)), torch.zeros(3))  # all three are ties, and off
    assert corner.rows.tolist() == [0, 1, 2]
    assert bool((corner.chebyshev_centre()[0] < 0).all())


def test_a_region_without_interior_says_so() -> None:
    point = polyhedron(lambda x: torch.relu(x) + torch.relu(-x), torch.zeros(2))
    assert not point.has_interior
    assert point.chebyshev_centre()[1] == 0
    assert point.chebyshev_centre()[0].tolist() == [0, 0]
    assert point.is_bounded()
    assert point.rows.tolist() == [0, 1, 2, 3]
    assert point.contains(torch.tensor([[0.0, 0.0], [0.0, 1e-9]])).tolist() == [True, False]
    assert repr(point) == "RegionPolyhedron(4 rows, no interior in 2 dimensions, bounded)"


def test_without_biases_the_region_of_an_input_is_a_cone() -> None:
    region = polyhedron(mlp(3, 12, 12, 1, bias=False), randn(3, seed=4))
    assert not region.is_bounded()
    assert region.chebyshev_centre()[1] == math.inf
    assert region.c.abs().max() == 0
    boxed = polyhedron(mlp(3, 12, 12, 1, bias=False), randn(3, seed=4), box=(-3, 3))
    assert boxed.is_bounded()
    assert set(boxed.rows[boxed.rows < 24].tolist()) <= set(region.rows.tolist())


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_a_region_of_any_size_has_the_same_facets(scale: float) -> None:
    net, x = mlp(3, 15, 1, seed=2), randn(3, seed=2)
    plain = polyhedron(net, x)
    with torch.no_grad():
        net[0].weight /= scale
    scaled = polyhedron(net, scale * x)
    assert scaled.rows.tolist() == plain.rows.tolist()
    assert scaled.chebyshev_centre()[1] == pytest.approx(scale * plain.chebyshev_centre()[1], rel=1e-9)


def test_more_inputs_than_rows_need_no_program() -> None:
    region = polyhedron(mlp(300, 40, 1), randn(300))
    assert region.rows.tolist() == list(range(40))
    assert not region.is_bounded()
    assert region.chebyshev_centre()[1] == math.inf


def test_a_prism_has_more_rows_than_dimensions_and_no_end() -> None:
    square = [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]
    region = polyhedron(of_rows(square, [1.0] * 4), torch.zeros(3))
    assert len(region) == 4
    assert not region.is_bounded()
    assert region.chebyshev_centre()[1] == pytest.approx(1.0, rel=1e-12)


def test_hundreds_of_rows_take_few_linear_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = []
    simplex = _polyhedra._simplex
    monkeypatch.setattr(_polyhedra, "_simplex", lambda *arguments: programs.append(1) or simplex(*arguments))
    region = polyhedron(mlp(100, 120, 1), randn(100).clamp(-0.9, 0.9), box=(-1.0, 1.0))
    assert len(region) == 320  # all of them
    assert len(programs) <= 2


@pytest.mark.parametrize("seed", range(4))
def test_the_simplex_method_agrees_with_that_of_scipy(seed: int) -> None:
    generator = np.random.default_rng(seed)
    columns, cost = generator.normal(size=(4, 12)), generator.uniform(0, 1, 12)
    rhs = columns @ generator.uniform(0, 1, 12)
    weight, y = _polyhedra._simplex(cost, columns, rhs)
    expected = linprog(cost, A_eq=columns, b_eq=rhs)
    assert weight is not None
    np.testing.assert_allclose(columns @ weight, rhs, atol=1e-7)
    assert y @ rhs == pytest.approx(expected.fun, rel=1e-9)
    assert (y @ columns <= cost + 1e-9).all()
    none, ray = _polyhedra._simplex(cost, np.abs(columns), -np.ones(4))
    assert none is None
    assert (ray @ np.abs(columns) <= 1e-9).all()
    assert ray @ -np.ones(4) > 0


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: polyhedron(torch.relu, torch.ones(2).long()), TypeError, "x must be floating point"),
        (lambda: polyhedron(torch.relu, torch.ones(2) / 0), ValueError, "x must be finite"),
        (lambda: polyhedron(torch.relu, torch.ones(0)), ValueError, "at least one number"),
        (lambda: polyhedron(nn.Sequential(nn.Tanh()), torch.ones(2)), ValueError, r"module '0' \(Tanh\) applies tanh"),
        (lambda: polyhedron(torch.relu, torch.ones(2), box=(-1, 0)), ValueError, "x must lie in box"),
        (lambda: polyhedron(torch.relu, torch.ones(2), box=(2, 0)), ValueError, "box must have its low end below"),
        (
            lambda: polyhedron(torch.relu, torch.ones(2), box=(0, math.inf)),
            ValueError,
            r"box\[1\] must be a finite number",
        ),
        (lambda: polyhedron(torch.relu, torch.ones(2), box=3), TypeError, r"box must be a pair \(low, high\), got 3"),
        (
            lambda: polyhedron(torch.relu, torch.ones(2)).contains(torch.ones(3)),
            ValueError,
            r"z must be one input of shape \(2,\)",
        ),
        (lambda: polyhedron(torch.relu, torch.ones(2)).contains(1.0), TypeError, "z must be a torch tensor"),
        (
            lambda: polyhedron(3, torch.ones(2)),
            TypeError,
            "model must be a module or a function of one tensor, got int",
        ),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        call()
