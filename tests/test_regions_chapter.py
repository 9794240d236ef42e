"""The theorems of the chapter *Regions*, on generated networks and at their edge cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, nnls
from torch import nn

from pwl_lib.piecewise_linear import activation_pattern, affine_piece
from pwl_lib.piecewise_linear import polyhedron as halfspaces
from pwl_lib.regions import (
    integrate_along,
    montufar_lower_bound,
    polyhedron,
    segments,
    serra_upper_bound,
    slice_regions,
    zaslavsky_bound,
)

D = torch.float64
PLANE = torch.zeros(2, dtype=D), torch.tensor([1.0, 0.0], dtype=D), torch.tensor([0.0, 1.0], dtype=D)
SQUARE = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=D)
seeds = st.integers(0, 2**31 - 1)


def chain(*widths, dtype=D):
    layers = []
    for n, m in itertools.pairwise(widths):
        layers += [nn.Linear(n, m, dtype=dtype), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def one_layer(W, b):
    """relu(W x + b)."""
    layer = nn.Linear(W.shape[1], W.shape[0], dtype=D)
    layer.weight.data, layer.bias.data = W.to(D).clone(), b.to(D).clone()
    return nn.Sequential(layer, nn.ReLU())


def random_polygon(corners):
    angle = (torch.arange(corners, dtype=D) + 0.8 * torch.rand(corners, dtype=D)) * 2 * math.pi / corners
    return torch.stack([2 * angle.cos(), angle.sin()], 1) + torch.randn(2, dtype=D)


def inside_of(polygon, points=400):
    weights = -torch.rand(points, len(polygon), dtype=D).log()
    return (weights / weights.sum(1, keepdim=True)) @ polygon


@pytest.mark.theorem("thm-slice-convex")
@settings(max_examples=8, deadline=None)
@given(seeds)
def test_a_region_of_a_slice_is_the_polyhedron_of_its_inputs_cut_by_the_plane(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(chain(7, 9, 6), nn.Hardtanh(), nn.Linear(6, 6, dtype=D), nn.MaxPool1d(2))
    o, u, v = torch.randn(3, 7, dtype=D)
    regions = slice_regions(model, o, u, v)
    assert abs(regions.area.sum() - 4) < 1e-12
    for k in torch.randperm(len(regions))[:5].tolist():
        H, c = (part[0] for part in halfspaces(model, regions.input(regions.centroid[k : k + 1])))
        st = torch.cat([2 * torch.rand(300, 2, dtype=D) - 1, inside_of(regions.polygons[k], 50)])
        inside = (st @ torch.stack([H @ u, H @ v]) <= c - H @ o).all(1)
        assert inside[300:].all()
        assert torch.equal(inside, regions.find(st) == k)


@pytest.mark.theorem("lem-crossing")
@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(3, 8), st.sampled_from([-1.0, 0.0, 0.3, 1.0]))
def test_an_affine_function_has_both_signs_inside_if_and_only_if_corners_have(seed, corners, lift):
    torch.manual_seed(seed)
    polygon, w = random_polygon(corners), torch.randn(2, dtype=D)
    values = polygon @ w
    offset = -values.mean() + lift * (values.max() - values.min())
    values = values + offset
    points = inside_of(polygon, 3000)
    inner = points @ w + offset
    crossed = bool(values.min() < 0 < values.max())
    assert crossed == bool((inner < 0).any() and (inner > 0).any())
    if crossed:
        other = torch.randn(2, dtype=D)
        for g, h, p, q in zip(values, values.roll(-1), polygon, polygon.roll(-1, 0)):
            if g * h < 0:
                tau = g / (g - h)
                corner = (1 - tau) * p + tau * q
                assert 0 < tau < 1
                assert abs(corner @ w + offset) < 1e-12 * values.abs().max()
                assert abs(corner @ other - ((1 - tau) * (p @ other) + tau * (q @ other))) < 1e-12


@pytest.mark.theorem("lem-crossing")
def test_a_function_that_touches_a_corner_or_a_side_or_is_0_has_one_sign_inside():
    inner = inside_of(SQUARE)
    for w, offset in (((1.0, 1.0), 2.0), ((1.0, 0.0), 1.0), ((0.0, 0.0), 0.0)):
        w = torch.tensor(w, dtype=D)
        corners, inside = SQUARE @ w + offset, inner @ w + offset
        assert corners.min() == 0
        assert not (corners < 0).any()
        assert (inside > 0).all() or (inside == 0).all()
    diagonal = slice_regions(lambda x: torch.relu(x.sum(1, keepdim=True) - 2), *PLANE)
    assert len(diagonal) == 1


@pytest.mark.theorem("thm-subdivision")
@settings(max_examples=10, deadline=None)
@given(seeds)
def test_every_region_is_found_and_each_random_point_has_the_pattern_of_its_polygon(seed):
    torch.manual_seed(seed)
    model = chain(2, 8, 8, 1)
    regions = slice_regions(model, *PLANE)
    points = 2 * torch.rand(2000, 2, dtype=D) - 1
    found = regions.find(points)
    assert torch.equal(regions.pattern[found], activation_pattern(model, points))
    assert len(regions.pattern.unique(dim=0)) == len(regions)


@pytest.mark.theorem("prop-euler")
@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(1, 3))
def test_the_polygons_of_a_network_have_four_corners_on_average(seed, depth):
    torch.manual_seed(seed)
    regions = slice_regions(chain(2, *[9] * depth, 1), *PLANE)
    V, R = len(regions.vertices), len(regions)
    border = int((regions.vertices.abs().amax(1) == 1).sum())
    assert V - (len(regions.neighbours) + border) + R == 1
    assert sum(map(len, regions.polygons)) == 4 * R


@pytest.mark.theorem("prop-euler")
def test_folds_through_a_common_corner_leave_fewer_than_four_corners_on_average():
    W = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1]])
    regions = slice_regions(one_layer(W, torch.zeros(4)), *PLANE)
    assert len(regions) == 8
    assert sum(map(len, regions.polygons)) == 24  # eight triangles
    assert len(regions.vertices) - (len(regions.neighbours) + 8) + 8 == 1


@pytest.mark.theorem("prop-euler")
def test_regions_that_were_put_together_after_cutting_may_have_more_than_four_corners_on_average():
    angle = 2 * math.pi * torch.arange(3, dtype=D) / 3 + 0.4
    rows = torch.stack([angle.cos(), angle.sin()])
    star = slice_regions(lambda x: (x @ rows).amax(1, keepdim=True), *PLANE)
    assert sorted(map(len, star.polygons)) == [4, 4, 5]  # three rays from 0 to the border, and the corners of the box


def three_counts(model):
    patterns, maps, pieces = slice_regions(model, *PLANE).counts
    return patterns, pieces, maps


@pytest.mark.theorem("prop-three-counts")
@settings(max_examples=10, deadline=None)
@given(seeds)
def test_there_are_at_least_as_many_patterns_as_pieces_as_maps(seed):
    torch.manual_seed(seed)
    model = chain(2, 6, 6, 1)
    with torch.no_grad():  # few values, so that maps coincide
        for part in model.parameters():
            part.copy_((2 * part).round())
    patterns, pieces, maps = three_counts(model)
    assert patterns >= pieces >= maps >= 1


@pytest.mark.theorem("prop-three-counts")
def test_the_three_counts_may_all_differ_and_a_piece_need_not_be_convex():
    ridge = lambda x: torch.relu(x[:, :1] + 0.5) - 2 * torch.relu(x[:, :1]) + torch.relu(x[:, :1] - 0.5)
    assert three_counts(ridge) == (4, 4, 3)
    unseen = lambda x: torch.relu(x[:, 1:] + 0.2) - torch.relu(x[:, 1:] + 0.2)
    assert three_counts(lambda x: ridge(x) + unseen(x)) == (8, 4, 3)
    bent = lambda x: torch.relu(torch.minimum(x[:, :1], x[:, 1:]))
    regions = slice_regions(bent, *PLANE)
    assert tuple(regions.counts) == (4, 3, 3)
    zero = regions.connected_piece == regions.connected_piece[regions.find(torch.tensor([[-0.5, 0.5]], dtype=D))]
    assert abs(regions.area[zero].sum() - 3) < 1e-12  # an L of three quadrants


@pytest.mark.theorem("prop-three-counts")
@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(2, 7))
def test_a_convex_slice_has_one_piece_for_each_map(seed, units):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, units, dtype=D), nn.ReLU(), nn.MaxPool1d(units))
    patterns, pieces, maps = three_counts(model)
    assert patterns >= pieces == maps <= units + 1


@pytest.mark.theorem("prop-rank-one")
@settings(max_examples=8, deadline=None)
@given(seeds)
def test_across_a_facet_the_matrix_changes_by_a_column_times_the_row_of_the_unit(seed):
    torch.manual_seed(seed)
    model = chain(2, 7, 6, 3)
    first, second, third = (layer for layer in model if isinstance(layer, nn.Linear))
    regions = slice_regions(model, *PLANE)
    for i, j in regions.neighbours[:40].tolist():
        before, after = regions.pattern[i], regions.pattern[j]
        (unit,) = (before != after).nonzero().flatten().tolist()
        if before[unit] == 1:
            i, j, before, after = j, i, after, before
        masks = torch.diag(before[:7].to(D)), torch.diag(before[7:].to(D))
        if unit < 7:
            row, offset = first.weight[unit], first.bias[unit]
            column = third.weight @ masks[1] @ second.weight[:, unit]
        else:
            row = second.weight[unit - 7] @ masks[0] @ first.weight
            offset = second.weight[unit - 7] @ masks[0] @ first.bias + second.bias[unit - 7]
            column = third.weight[:, unit - 7]
        assert torch.allclose(regions.A[j] - regions.A[i], torch.outer(column, row), atol=1e-12)
        assert torch.allclose(regions.b[j] - regions.b[i], column * offset, atol=1e-12)


@pytest.mark.theorem("prop-rank-one")
def test_across_any_facet_of_maxima_and_clamps_the_jump_has_rank_one_along_the_normal():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8, dtype=D), nn.MaxPool1d(2), nn.Hardtanh(-0.3, 0.3), nn.Linear(4, 3, dtype=D))
    regions = slice_regions(model, *PLANE)
    i, j = regions.neighbours.T
    jump, shift = regions.A[j] - regions.A[i], regions.b[j] - regions.b[i]
    assert (torch.linalg.svdvals(jump)[:, 1] < 1e-12).all()
    for k in range(len(i)):  # the shared side is where both maps agree
        corners = [tuple(p) for p in regions.polygons[i[k]].tolist()]
        shared = [p for p in regions.polygons[j[k]].tolist() if tuple(p) in corners]
        for corner in torch.tensor(shared, dtype=D):
            assert torch.allclose(jump[k] @ corner, -shift[k], atol=1e-12)


@pytest.mark.theorem("prop-rank-one")
@settings(max_examples=6, deadline=None)
@given(seeds)
def test_a_fold_of_a_random_network_is_hidden_only_where_all_units_of_a_later_layer_are_off(seed):
    torch.manual_seed(seed)
    model = chain(2, 5, 3, 1)
    with torch.no_grad():
        model[2].bias.sub_(0.3)  # so that such places are met
    regions = slice_regions(model, *PLANE, box=(-3.0, 3.0))
    i, j = regions.neighbours.T
    hidden = ((regions.A[i] - regions.A[j]).abs() < 1e-12).flatten(1).all(1)
    off = (regions.pattern[:, 5:] == 0).all(1)
    assert torch.equal(hidden, off[i] & off[j])


@pytest.mark.theorem("thm-zaslavsky")
@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(0, 7))
def test_folds_near_the_centre_reach_the_number_of_zaslavsky_and_others_do_not_exceed_it(seed, units):
    torch.manual_seed(seed)
    angle = (torch.arange(units) + 0.6 * torch.rand(units)) * math.pi / max(units, 1)
    W = torch.stack([angle.cos(), angle.sin()], 1).reshape(units, 2)
    if units:
        assert len(slice_regions(one_layer(W, 0.01 * torch.randn(units)), *PLANE)) == zaslavsky_bound(units, 2)
        assert len(slice_regions(one_layer(W, torch.randn(units)), *PLANE)) <= zaslavsky_bound(units, 2)
    for d in range(1, 5):
        right = zaslavsky_bound(units, d) + zaslavsky_bound(units, d - 1)
        assert zaslavsky_bound(units + 1, d) == right
    assert zaslavsky_bound(0, 3) == zaslavsky_bound(units, 0) == 1


def zigzag(x, p):
    return p * torch.relu(x) + 2 * p * sum((-1) ** i * torch.relu(x - i / p) for i in range(1, p))


@pytest.mark.theorem("thm-montufar-folding")
@pytest.mark.parametrize("p", [1, 2, 3, 5, 8])
def test_the_zigzag_maps_each_of_its_intervals_onto_the_whole(p):
    for i in range(p):
        x = torch.linspace(i / p, (i + 1) / p, 11, dtype=D)
        up = torch.linspace(0, 1, 11, dtype=D)
        assert torch.allclose(zigzag(x, p), up if i % 2 == 0 else 1 - up, atol=1e-12)


@pytest.mark.theorem("thm-montufar-folding")
@pytest.mark.parametrize(("folds", "last"), [((2,), 3), ((3, 2), 4), ((2, 2, 2), 2)])
def test_folding_layers_copy_what_the_last_layer_draws_into_every_box(folds, last):
    angle = torch.arange(last, dtype=D) * math.pi / last + 0.3
    W = torch.stack([angle.cos(), angle.sin()], 1)
    b = -W @ torch.tensor([0.5, 0.5], dtype=D) + 0.03 * torch.tensor([1.0, -1, 0.4, 0.7], dtype=D)[:last]

    def model(x):
        for p in folds:
            x = zigzag(x, p)
        return torch.relu(x @ W.T + b)

    regions = slice_regions(model, *PLANE, box=(0.0, 1.0))
    assert len(regions) == math.prod(p**2 for p in folds) * zaslavsky_bound(last, 2)
    assert len(regions) == montufar_lower_bound([2 * p for p in folds] + [last], 2)


@pytest.mark.theorem("thm-serra")
@settings(max_examples=10, deadline=None)
@given(seeds, st.lists(st.integers(1, 5), min_size=1, max_size=3))
@example(seed=0, widths=[1, 5])
def test_no_slice_has_more_patterns_than_the_upper_bound(seed, widths):
    torch.manual_seed(seed)
    model = chain(6, *widths, 1)
    o, u, v = torch.randn(3, 6, dtype=D)
    for size in (1.0, 30.0):
        assert len(slice_regions(model, o, u, v, (-size, size))) <= serra_upper_bound(widths, 2)
    for d in (1, 2, 3):
        assert serra_upper_bound(widths, d) <= serra_upper_bound(widths, d + 1)  # G does not fall with the dimension
        assert serra_upper_bound(widths[:1], d) == zaslavsky_bound(widths[0], d)


@pytest.mark.theorem("thm-serra")
def test_a_folded_line_stays_below_the_upper_bound_which_is_small_behind_a_narrow_layer():
    tent = lambda x: 2 * torch.relu(x) - 4 * torch.relu(x - 0.5)
    line = segments(lambda x: tent(tent(tent(x))), torch.zeros(1, dtype=D), torch.ones(1, dtype=D))
    assert len(line) == 8 <= serra_upper_bound([2, 2, 2], 1)
    assert serra_upper_bound([1, 9], 2) == 1 * (1 + 9) + 1 * 1  # on: one dimension is left; off: none


def region_of(H, c):
    """The polyhedron H z <= c, with c > 0, as the region of 0 of a network: all units of relu(c - H z) are on there."""
    return polyhedron(one_layer(-H, c), torch.zeros(H.shape[1], dtype=D))


def in_hull(point, others):
    """Whether a point is a combination of the others and of 0 with weights of sum at most 1."""
    columns = np.vstack([np.column_stack([others.T, np.zeros(len(point))]), np.ones(len(others) + 1)])
    return nnls(columns, np.append(point, 1.0))[1] < 1e-9


@pytest.mark.theorem("prop-redundant-polar")
@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(2, 4), st.integers(3, 10))
def test_a_row_is_redundant_if_and_only_if_its_pole_lies_in_the_hull_of_the_others_and_0(seed, n, rows):
    torch.manual_seed(seed)
    H, c = torch.randn(rows, n, dtype=D), torch.rand(rows, dtype=D) + 0.2
    kept = set(region_of(H, c).rows.tolist())
    poles = (H / c[:, None]).numpy()
    for k in range(rows):
        others = np.arange(rows) != k
        free = linprog(-H[k].numpy(), H[others].numpy(), c[others].numpy(), bounds=(None, None))
        redundant = free.status == 0 and -free.fun <= c[k] + 1e-9
        assert in_hull(poles[k], poles[others]) == redundant == (k not in kept)


@pytest.mark.theorem("prop-redundant-polar")
def test_rows_that_repeat_touch_a_corner_or_are_weaker_are_redundant():
    H = torch.cat([torch.eye(2, dtype=D), -torch.eye(2, dtype=D), torch.tensor([[1.0, 1], [2, 0], [1, 0]], dtype=D)])
    c = torch.tensor([1.0, 1, 1, 1, 2, 2, 3], dtype=D)  # a square; a corner; one of its sides again; a weaker side
    region = region_of(H, c)
    assert len(region.rows) == 4
    assert {1, 2, 3} < set(region.rows.tolist()) <= {0, 1, 2, 3, 5}


@pytest.mark.theorem("prop-bounded")
@settings(max_examples=12, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(1, 9))
@example(seed=0, n=1, rows=1)
def test_a_region_is_bounded_if_and_only_if_0_is_inside_of_the_hull_of_the_rows(seed, n, rows):
    torch.manual_seed(seed)
    H, c = torch.randn(rows, n, dtype=D), torch.rand(rows, dtype=D) + 0.2
    bounds = [(-1, 1)] * n
    directions = np.vstack([np.eye(n), -np.eye(n)])
    escapes = max(-linprog(-e, H.numpy(), np.zeros(rows), bounds=bounds).fun for e in directions) > 1e-9
    positive = linprog(np.zeros(rows), A_eq=H.T.numpy(), b_eq=np.zeros(n), bounds=(1, None)).status == 0
    inside = positive and np.linalg.matrix_rank(H.numpy()) == n
    assert region_of(H, c).is_bounded() == inside == (not escapes)
    if rows <= n:
        assert not inside


@pytest.mark.theorem("prop-bounded")
def test_a_prism_without_ends_is_unbounded_although_0_is_a_positive_combination_of_its_rows():
    H = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], dtype=D)
    assert not region_of(H, torch.ones(4, dtype=D)).is_bounded()
    ends = torch.tensor([[0.0, 0, 1], [0, 0, -1]], dtype=D)
    assert not region_of(torch.cat([H, ends[:1]]), torch.ones(5, dtype=D)).is_bounded()
    assert region_of(torch.cat([H, ends]), torch.ones(6, dtype=D)).is_bounded()


@pytest.mark.theorem("prop-chebyshev")
@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(2, 4))
def test_the_largest_ball_lies_inside_and_the_normals_where_it_touches_have_0_in_their_hull(seed, n):
    torch.manual_seed(seed)
    box = torch.cat([torch.eye(n, dtype=D), -torch.eye(n, dtype=D)])
    H = torch.cat([box, torch.randn(5, n, dtype=D)])
    c = torch.rand(len(H), dtype=D) + 0.3
    centre, radius = region_of(H, c).chebyshev_centre()
    room = (c - H @ centre) / H.norm(dim=1)
    assert abs(room.min() - radius) < 1e-9
    touching = H[room < radius + 1e-9] / H[room < radius + 1e-9].norm(dim=1, keepdim=True)
    assert nnls(np.vstack([touching.T.numpy(), np.ones(len(touching))]), np.append(np.zeros(n), 1.0))[1] < 1e-7
    shell = centre + radius * torch.nn.functional.normalize(torch.randn(200, n, dtype=D))
    assert (shell @ H.T <= c + 1e-9).all()


@pytest.mark.theorem("prop-chebyshev")
def test_a_long_box_has_many_centres_and_one_radius():
    H = torch.cat([torch.eye(2, dtype=D), -torch.eye(2, dtype=D)])
    centre, radius = region_of(H, torch.tensor([3.0, 1, 3, 1], dtype=D)).chebyshev_centre()
    assert abs(radius - 1) < 1e-9
    assert abs(centre[1]) < 1e-9
    assert abs(centre[0]) <= 2 + 1e-9


@pytest.mark.theorem("thm-line-integral")
@settings(max_examples=8, deadline=None)
@given(seeds)
def test_integrated_gradients_are_a_finite_sum_and_complete(seed):
    torch.manual_seed(seed)
    model = chain(8, 12, 12, 3)
    x0, x1 = 3 * torch.randn(2, 8, dtype=D)
    line = segments(model, x0, x1)
    by_hand = (x1 - x0) * (line.t.diff()[:, None] * line.A[:, 1]).sum(0)
    exact = integrate_along(model, x0, x1, output=1)
    rise = (model(x1) - model(x0))[1].detach()
    assert torch.allclose(exact, by_hand, atol=1e-12)
    assert abs(exact.sum() - rise) < 1e-12 * (1 + exact.abs().sum())
    assert torch.allclose(line.slope, line.A @ (x1 - x0), atol=1e-11)
    square = integrate_along(model, x0, x1, lambda x, A, b: (torch.einsum("bmn,bn->bm", A, x) + b) ** 2, order=2)
    ends = line(line.t)
    left, right = ends[:-1], ends[1:]
    simpson = ((left**2 + left * right + right**2) / 3 * line.t.diff()[:, None]).sum(0)
    assert torch.allclose(square, simpson, rtol=1e-11)


@pytest.mark.theorem("thm-line-integral")
def test_along_a_fold_the_sum_is_complete_although_there_is_no_gradient():
    model = lambda x: torch.relu(x[:, :1]) + 2 * torch.relu(-x[:, :1]) + x[:, 1:] + torch.relu(x[:, 1:] - 0.5)
    ends = torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=D)
    assert integrate_along(model, *ends).tolist() == pytest.approx([0.0, 1.5])


def frozen_bound(model, word, u):
    """The right side of the bound, for one hidden word of each row."""
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    M, start = layers[0].bias.double().abs().expand(len(word), -1), 0
    for layer in layers[1:]:
        mask = word[:, start : start + M.shape[1]]
        start += M.shape[1]
        M = (mask * M) @ layer.weight.double().abs().T + layer.bias.double().abs()
    width = max(layer.in_features for layer in layers) + 1
    gamma = width * u / (1 - width * u)
    return ((1 + gamma) ** len(layers) - 1) * M


@pytest.mark.theorem("prop-frozen-bias")
@settings(max_examples=10, deadline=None)
@given(seeds, st.sampled_from([1.0, 1e4, 1e6]))
def test_the_intercept_of_a_frozen_pass_keeps_its_digits_whatever_the_size_of_the_input(seed, size):
    torch.manual_seed(seed)
    single = chain(5, 16, 16, 2, dtype=torch.float32)
    x = size * torch.randn(20, 5)
    _, b = affine_piece(single, x)
    word = activation_pattern(single, x)
    with torch.no_grad():
        double = chain(5, 16, 16, 2)
        double.load_state_dict(single.state_dict())
        layers = [layer for layer in double if isinstance(layer, nn.Linear)]
        first = word[:, :16] * layers[0].bias
        true = (word[:, 16:] * layers[1](first)) @ layers[2].weight.T + layers[2].bias
        assert ((b - true).abs() <= frozen_bound(single, word, 2.0**-24)).all()
    assert (b - true).abs().max() < 1e-6 * (1 + true.abs().max())


@pytest.mark.theorem("prop-frozen-bias")
@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(-3, 20), st.sampled_from([(torch.float32, 24), (torch.float64, 53)]))
def test_a_difference_of_large_numbers_is_a_multiple_of_their_unit(seed, e, kind):
    dtype, p = kind
    torch.manual_seed(seed)
    y, w = (2.0**e * (1 + 3 * torch.rand(2, 200, dtype=dtype)) * torch.randn(2, 200).sign()).to(dtype)
    multiple = (y - w).double() / 2.0 ** (e - p + 1)
    assert torch.equal(multiple, multiple.round())


@pytest.mark.theorem("prop-frozen-bias")
def test_the_difference_loses_the_digits_that_the_frozen_pass_keeps():
    torch.manual_seed(0)
    single = chain(6, 32, 32, 1, dtype=torch.float32)
    double = chain(6, 32, 32, 1)
    double.load_state_dict(single.state_dict())
    x = 1e4 * torch.randn(100, 6)
    true = affine_piece(double, x.double()).b
    A, b = affine_piece(single, x)
    naive = single(x) - torch.einsum("bmn,bn->bm", A, x)
    assert (b - true).abs().max() < 1e-6 * true.abs().max()
    assert (naive - true).abs().max() > 1e-4


# What the book owes its sources, seen on a plane and on a line.


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_on_each_polygon_of_a_slice_the_network_is_one_affine_map_and_neighbours_agree_on_their_side(seed):
    torch.manual_seed(seed)
    model = chain(5, 8, 8, 2)
    o, u, v = torch.randn(3, 5, dtype=D)
    regions = slice_regions(model, o, u, v)
    for k in range(0, len(regions), 5):
        inputs = regions.input(torch.cat([regions.polygons[k], inside_of(regions.polygons[k], 20)]))
        with torch.no_grad():
            assert torch.allclose(model(inputs), inputs @ regions.A[k].T + regions.b[k], atol=1e-11)


def test_the_matrix_of_each_region_is_the_product_of_weights_and_masks():
    torch.manual_seed(1)
    model = chain(2, 6, 5, 3)
    W1, W2, W3 = (layer.weight.detach() for layer in model if isinstance(layer, nn.Linear))
    regions = slice_regions(model, *PLANE)
    for word, A in zip(regions.pattern.to(D), regions.A):
        assert torch.allclose(A, W3 @ torch.diag(word[6:]) @ W2 @ torch.diag(word[:6]) @ W1, atol=1e-13)


def test_the_on_and_off_states_of_the_units_name_the_region_and_no_two_regions_share_them():
    torch.manual_seed(2)
    model = chain(2, 10, 10, 1)
    regions = slice_regions(model, *PLANE)
    assert len(regions.pattern.unique(dim=0)) == len(regions) > 30
    for k in range(0, len(regions), 7):
        words = activation_pattern(model, inside_of(regions.polygons[k], 30))
        assert (words == regions.pattern[k]).all()


def test_the_affine_maps_change_along_a_line_and_every_change_is_counted():
    torch.manual_seed(3)
    model = chain(9, 20, 20, 1)
    x0, x1 = 2 * torch.randn(2, 9, dtype=D)
    line = segments(model, x0, x1)
    assert len(line) > 5
    t = torch.linspace(0, 1, 4001, dtype=D)
    words = activation_pattern(model, x0 + t[:, None] * (x1 - x0))
    assert (words[1:] != words[:-1]).any(1).sum() <= len(line) - 1
    slopes = line.slope[:, 0]
    assert len(line.kinks) == len(line) - 1 == int((slopes.diff().abs() > 1e-10).sum())
