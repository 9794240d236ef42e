"""The regions of a network on a plane beside those found in exact arithmetic, on generic nets and on degenerate ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from exact_regions import Box, Counts, ExactRegions, Residual, exact_regions
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pwl_lib.nn as pnn
from pwl_lib.piecewise_linear import activation_pattern, affine_piece
from pwl_lib.regions import slice_regions

D = torch.float64
PLANE = (torch.zeros(2, dtype=D), torch.tensor([1, 0], dtype=D), torch.tensor([0, 1], dtype=D))
Slice = tuple[Tensor, Tensor, Tensor]


def linear(weight: Tensor | list[list[float]], bias: Tensor | list[float] | None = None) -> nn.Linear:
    weight = torch.as_tensor(weight, dtype=D)
    module = nn.Linear(weight.shape[1], weight.shape[0], dtype=D)
    with torch.no_grad():
        module.weight.copy_(weight)
        module.bias.copy_(torch.zeros(len(weight)) if bias is None else torch.as_tensor(bias, dtype=D))
    return module


def network(*widths: int, seed: int = 0, bias: bool = True, switch: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Weights after He."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        weight = torch.randn(outputs, inputs, dtype=D, generator=generator) * math.sqrt(2 / inputs)
        offsets = (2 * torch.rand(outputs, dtype=D, generator=generator) - 1) / math.sqrt(inputs)
        layers += [linear(weight, offsets if bias else None), switch()]
    return nn.Sequential(*layers[:-1])


def whole_network(
    *widths: int, seed: int = 0, largest: int = 2, switch: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Small whole numbers, so that units coincide, meet in points and vanish."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        weight = torch.randint(-largest, largest + 1, (outputs, inputs + 1), generator=generator).to(D)
        layers += [linear(weight[:, :-1], weight[:, -1]), switch()]
    return nn.Sequential(*layers[:-1])


def through(n: int, seed: int = 0) -> Slice:
    origin, u, v = torch.randn(3, n, dtype=D, generator=torch.Generator().manual_seed(seed))
    return origin, u, v


def filled(*shape: int, seed: int, whole: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if whole:
        return torch.randint(-2, 3, shape, generator=generator).to(D)
    return torch.randn(shape, dtype=D, generator=generator)


def small_cnn(seed: int = 0, whole: bool = False) -> tuple[nn.Sequential, Slice]:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2)
    ).to(D)  # fmt: skip
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(filled(*parameter.shape, seed=100 * seed + number, whole=whole))
    origin, u, v = (filled(1, 4, 4, seed=100 * seed + 90 + k, whole=whole) for k in range(3))
    return model, (origin, u, v)


def assert_same(model: nn.Module, plane: Slice = PLANE, box: Box = (-1.0, 1.0)) -> ExactRegions:
    """The same cells: their patterns, corners, areas, affine maps, neighbours, and the three counts."""
    exact, found = exact_regions(model, *plane, box), slice_regions(model, *plane, box)
    where = {tuple(pattern): number for number, pattern in enumerate(found.pattern.tolist())}
    assert len(where) == len(found)
    assert where.keys() == {cell.pattern for cell in exact.cells}
    assert len(found) == len(exact)
    order = torch.tensor([where[cell.pattern] for cell in exact.cells])
    sides = box if isinstance(box[0], tuple) else (box, box)
    whole = math.prod(high - low for low, high in sides)  # type: ignore[operator]
    areas = torch.tensor([float(cell.area) for cell in exact.cells], dtype=D)
    assert (found.area[order] - areas).abs().max() <= 1e-12 * whole
    assert abs(found.area.sum().item() - whole) <= 1e-12 * whole
    maps = torch.tensor([[list(map(float, row)) for row in exact.affine(cell)] for cell in exact.cells], dtype=D)
    ours = torch.cat([found.slope, found.offset[..., None]], dim=2)[order]
    torch.testing.assert_close(ours, maps, rtol=0, atol=1e-11 * max(1.0, maps.abs().max().item()))
    size = max(abs(end) for side in sides for end in side)
    for cell, number in zip(exact.cells, order.tolist()):
        corners = torch.tensor([[float(s), float(t)] for s, t in cell.corners], dtype=D)
        assert torch.cdist(corners, found.polygons[number]).amin(1).max() <= 1e-10 * size
    ours_of = {number: k for k, number in enumerate(order.tolist())}
    assert {frozenset((ours_of[i], ours_of[j])) for i, j in found.neighbours.tolist()} == exact.neighbours()
    assert tuple(found.counts) == tuple(exact.counts())
    return exact


# The exact method itself


def test_lines_make_as_many_cells_as_can_be_counted_by_hand() -> None:
    one = nn.Sequential(linear([[1.0, 0.0]]), nn.ReLU())
    cross = nn.Sequential(linear([[1.0, 0.0], [0.0, 1.0]]), nn.ReLU())
    star = nn.Sequential(linear([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), nn.ReLU())
    triangle = nn.Sequential(linear([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0.0, 0.0, 0.5]), nn.ReLU())
    assert [len(exact_regions(model, *PLANE)) for model in (one, cross, star, triangle)] == [2, 4, 6, 7]
    assert len(exact_regions(one, *PLANE).neighbours()) == 1
    assert len(exact_regions(cross, *PLANE).neighbours()) == 4  # across the point there is none
    assert {cell.area for cell in exact_regions(cross, *PLANE).cells} == {Fraction(1)}
    assert Fraction(1, 8) in {cell.area for cell in exact_regions(triangle, *PLANE).cells}


def test_patterns_maps_and_pieces_are_three_numbers() -> None:
    """Two hats over the line, and a unit that the last layer does not listen to."""
    kinks = [0.75, 0.5, 0.25, -0.25, -0.5, -0.75]
    hats = linear([[1.0, -2.0, 1.0, 1.0, -2.0, 1.0, 0.0]])
    model = nn.Sequential(linear([[1.0, 0.0]] * 6 + [[0.0, 1.0]], [*kinks, 0.0]), nn.ReLU(), hats)
    # 0, up, down, 0, up, down, 0: three maps, seven pieces; the unheard unit cuts each in two
    assert exact_regions(model, *PLANE).counts() == Counts(14, 5, 7)
    assert_same(model)


@pytest.mark.parametrize("seed", range(3))
def test_a_grid_of_points_finds_no_pattern_that_the_exact_method_misses(seed: int) -> None:
    axis = torch.linspace(-1, 1, 60, dtype=D) * 0.997 + 0.0003  # off the lines that go through 0
    s, t = torch.cartesian_prod(axis, axis).T
    for model, plane in ((network(2, 8, 8, 1, seed=seed), PLANE), small_cnn(seed), (whole_network(2, 8, 8, 1), PLANE)):
        exact = exact_regions(model, *plane)
        origin, u, v = (part.reshape(1, *part.shape) for part in plane)
        shape = (-1, *[1] * (origin.dim() - 1))
        points = origin + s.reshape(shape) * u + t.reshape(shape) * v
        patterns = activation_pattern(model, points).unique(dim=0).tolist()
        assert {tuple(pattern) for pattern in patterns} <= {cell.pattern for cell in exact.cells}
        assert len(patterns) > 0.7 * len(exact)
        assert sum(cell.area for cell in exact.cells) == 4
        middles = [[sum(axis) / len(axis) for axis in zip(*cell.corners)] for cell in exact.cells]
        s_middle, t_middle = torch.tensor([[float(s), float(t)] for s, t in middles], dtype=D).T
        inside = origin + s_middle.reshape(shape) * u + t_middle.reshape(shape) * v
        maps = [(exact.affine(cell), middle) for cell, middle in zip(exact.cells, middles)]
        values = [[float(a * s + b * t + c) for a, b, c in rows] for rows, (s, t) in maps]
        ours = affine_piece(model, inside)(inside.flatten(1))
        torch.testing.assert_close(ours, torch.tensor(values, dtype=D), rtol=1e-12, atol=1e-11)


# Generic nets


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("widths", [(2, 16, 16, 1), (2, 6, 6, 6, 3), (5, 10, 8, 2)], ids=str)
def test_a_relu_network(widths: tuple[int, ...], seed: int) -> None:
    plane = PLANE if widths[0] == 2 else through(widths[0], seed)
    counts = assert_same(network(*widths, seed=seed), plane).counts()
    assert counts.activation_patterns >= counts.connected_pieces >= counts.affine_maps > 20


@pytest.mark.parametrize(
    "switch", [lambda: nn.LeakyReLU(0.1), pnn.Absolute, lambda: pnn.Hardtanh(-0.5, 0.75)], ids=["leaky", "abs", "hardtanh"]
)  # fmt: skip
def test_other_switches(switch: Callable[[], nn.Module]) -> None:
    assert_same(network(2, 7, 6, 2, switch=switch))
    assert_same(network(4, 6, 5, 1, switch=switch), through(4), ((-1.0, 0.5), (-0.25, 2.0)))


@pytest.mark.parametrize("seed", range(2))
def test_maxout(seed: int) -> None:
    def layer(inputs: int, outputs: int, pieces: int, number: int) -> nn.Module:
        module = pnn.Maxout(inputs, outputs, pieces).to(D)
        with torch.no_grad():
            module.weight.copy_(filled(*module.weight.shape, seed=number + 10 * seed))
            module.bias.copy_(filled(*module.bias.shape, seed=number + 10 * seed + 5))
        return module

    assert_same(nn.Sequential(layer(2, 5, 3, 0), layer(5, 4, 2, 1), linear([[1.0, -1.0, 0.5, 2.0]])))


@pytest.mark.parametrize("seed", range(3))
def test_a_small_convolutional_network_whose_pooling_hides_switches(seed: int) -> None:
    model, plane = small_cnn(seed)
    counts = assert_same(model, plane).counts()
    assert counts.activation_patterns > counts.connected_pieces


def test_overlapping_windows_with_padding_have_no_candidates_outside() -> None:
    pool = nn.Sequential(nn.Unflatten(1, (1, 3, 3)), nn.MaxPool2d(2, 1, padding=1), nn.Flatten())
    assert_same(nn.Sequential(linear(filled(9, 2, seed=1), filled(9, seed=2)), *pool))
    assert_same(nn.Sequential(linear(filled(9, 2, seed=1, whole=True)), *pool))


def test_a_shortcut() -> None:
    inner = network(4, 6, 4, seed=2)
    assert_same(
        nn.Sequential(network(2, 4, seed=1), nn.ReLU(), Residual(*inner), nn.ReLU(), linear([[1.0, 1, -1, -1]]))
    )


def test_the_model_may_be_of_float32() -> None:
    model, plane = network(2, 12, 8, 1, seed=3).float(), PLANE
    assert_same(model, plane)


# Degenerate nets


@pytest.mark.parametrize("seed", range(8))
def test_zero_biases(seed: int) -> None:
    """All lines go through one point, in every layer: the cells are sectors."""
    exact = assert_same(network(2, 16, 16, 1, seed=seed, bias=False))
    assert 40 < len(exact) < 100
    assert exact.counts().activation_patterns == len(exact)


def test_zero_biases_off_the_middle_of_the_box_and_without_it() -> None:
    model = network(2, 16, 16, 1, bias=False)
    assert_same(model, box=((-0.3, 1.0), (-2.0, 0.1)))
    assert_same(model, box=(0.0, 1.0))  # the point is a corner
    assert_same(model, box=(0.25, 1.0))
    assert_same(model, box=((0.0, 1.0), (-1.0, 1.0)))


def test_equal_opposite_multiplied_and_vanishing_units() -> None:
    rows = filled(4, 3, seed=1)
    rows = torch.cat([rows, rows, -rows, 2 * rows, 0 * rows, 0 * rows + torch.tensor([0, 0, 1.0])])
    for switch in (nn.ReLU(), pnn.Absolute(), nn.LeakyReLU(0.25), pnn.Hardtanh()):
        second = filled(6, 24, seed=2)
        model = nn.Sequential(
            linear(rows[:, :2], rows[:, 2] / 2), switch, linear(torch.cat([second, second])), switch, linear(filled(1, 12, seed=3))
        )  # fmt: skip
        assert_same(model)


def test_a_linear_network_a_constant_one_and_a_dead_one() -> None:
    constant = nn.Sequential(linear([[0.0, 0.0]] * 3, [1.0, 0.0, -1.0]), nn.ReLU(), linear([[1.0, 2.0, 3.0]], [5.0]))
    dead = nn.Sequential(linear(filled(5, 2, seed=1), [-20.0] * 5), nn.ReLU(), linear(filled(1, 5, seed=2)))
    for model in (linear([[1.0, 2.0]]), constant, dead):
        assert assert_same(nn.Sequential(model)).counts() == Counts(1, 1, 1)


def test_lines_along_the_edges_and_through_the_corners_of_the_box() -> None:
    edges = linear([[1.0, 0], [1.0, 0], [0, 1.0], [0, -1.0]], [-1.0, 1.0, -1.0, -1.0])
    assert len(assert_same(nn.Sequential(edges, nn.ReLU(), linear([[1.0, 1.0, 1.0, 1.0]])))) == 1
    corners = linear([[1.0, 1], [1.0, -1], [1.0, 1], [1.0, -2]], [0.0, 0.0, -2.0, 1.0])
    assert len(assert_same(nn.Sequential(corners, nn.ReLU(), linear([[1.0, 1.0, 1.0, -1.0]])))) == 6


def test_several_lines_through_one_point_that_is_no_corner() -> None:
    slopes = filled(7, 2, seed=4)
    point = torch.tensor([0.25, -0.5], dtype=D)
    slopes = (slopes * 8).round()  # whole numbers: the lines meet exactly
    model = nn.Sequential(
        linear(slopes, -slopes @ point), nn.ReLU(), linear(filled(6, 7, seed=5, whole=True)), nn.ReLU()
    )
    assert_same(nn.Sequential(*model, linear(filled(1, 6, seed=6))))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("switch", [nn.ReLU, pnn.Absolute], ids=["relu", "abs"])
def test_whole_weights_with_many_coincidences(switch: Callable[[], nn.Module], seed: int) -> None:
    """Lines meet at points whose coordinates are no floats: thirds, sevenths. What is 0 there is not 0 in floats."""
    assert_same(whole_network(2, 8, 6, 1, seed=seed, switch=switch))
    assert_same(whole_network(2, 5, 5, 4, 1, seed=seed, largest=1, switch=switch), box=(-3.0, 2.0))


def test_whole_weights_in_an_image_network() -> None:
    model, plane = small_cnn(1, whole=True)
    assert_same(model, plane)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3]), st.sampled_from([nn.ReLU, pnn.Absolute, pnn.Hardtanh]))
def test_small_networks_of_whole_numbers(seed: int, largest: int, switch: Callable[[], nn.Module]) -> None:
    assert_same(whole_network(2, 5, 4, 2, seed=seed, largest=largest, switch=switch), box=(-2.0, 1.5))


def test_lines_that_miss_one_another_by_a_rounding_lose_no_area() -> None:
    """Here the exact cells have slivers that floats cannot hold: they may be missed, nothing else."""
    slopes, point = filled(6, 2, seed=7), torch.tensor([1 / 3, -0.1], dtype=D)
    model = nn.Sequential(linear(slopes, -slopes @ point), nn.ReLU(), linear(filled(1, 6, seed=8)))
    exact, found = exact_regions(model, *PLANE), slice_regions(model, *PLANE)
    areas = {cell.pattern: float(cell.area) for cell in exact.cells}
    ours = dict(zip(map(tuple, found.pattern.tolist()), found.area.tolist()))
    assert ours.keys() <= areas.keys()
    assert all(abs(area - ours.get(pattern, 0.0)) < 1e-12 for pattern, area in areas.items())
    assert len(ours) >= 12
