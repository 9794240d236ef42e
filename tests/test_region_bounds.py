"""Bounds on the number of regions: against what can be counted by hand, and by brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from math import comb, prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pwl_lib import _region_bounds
from pwl_lib._region_bounds import montufar_lower_bound, montufar_upper_bound, serra_upper_bound, zaslavsky_bound
from pwl_lib._segments import segments

quick = settings(max_examples=30)
D = torch.float64
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3)


def serra_by_the_definition(widths: Sequence[int], dimension: int) -> int:
    total = 0
    for on in itertools.product(*(range(width + 1) for width in widths)):
        room = dimension
        for width, j in zip(widths, on, strict=True):
            if j > min(room, width):
                break
            room = min(room, width - j)
        else:
            total += prod(comb(width, j) for width, j in zip(widths, on, strict=True))
    return total


@pytest.mark.theorem("thm-zaslavsky")
@quick
@given(st.integers(1, 40), st.integers(1, 12))
def test_a_new_hyperplane_is_cut_by_the_others_as_a_space_of_one_dimension_less(k: int, n: int) -> None:
    assert zaslavsky_bound(k, n) == zaslavsky_bound(k - 1, n) + zaslavsky_bound(k - 1, n - 1)
    assert zaslavsky_bound(0, n) == zaslavsky_bound(k, 0) == 1
    assert zaslavsky_bound(k, 1) == k + 1
    if k <= n:
        assert zaslavsky_bound(k, n) == 2**k  # each new plane cuts all regions


@pytest.mark.theorem("thm-zaslavsky")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("planes", "dimension"), [(5, 2), (4, 3)])
def test_hyperplanes_in_general_position_cut_out_as_many_regions_as_the_formula_says(
    planes: int, dimension: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    W, b = (
        torch.randn(planes, dimension, dtype=D, generator=generator),
        torch.randn(planes, dtype=D, generator=generator),
    )
    # At every vertex, where n of the planes meet, all sign vectors of those n appear: this finds the regions with a
    # vertex, and points far out in many directions find the others.
    found = set()
    for chosen in map(list, itertools.combinations(range(planes), dimension)):
        vertex = torch.linalg.solve(W[chosen], -b[chosen])
        for signs in itertools.product([-1.0, 1.0], repeat=dimension):
            step = torch.linalg.solve(W[chosen], torch.tensor(signs, dtype=D))
            found.add(tuple((W @ (vertex + 1e-7 * step) + b > 0).tolist()))
    assert len(found) == zaslavsky_bound(planes, dimension)  # in general position, every region has a vertex


def test_more_hyperplanes_than_dimensions_of_any_size_are_counted_exactly() -> None:
    assert zaslavsky_bound(1000, 500) == sum(comb(1000, j) for j in range(501)) > 10**300
    assert zaslavsky_bound(3, 10) == 8


@quick
@given(shapes, st.integers(1, 4))
def test_the_bound_of_serra_is_the_sum_of_its_definition(widths: list[int], dimension: int) -> None:
    assert serra_upper_bound(widths, dimension) == serra_by_the_definition(widths, dimension)


@quick
@given(shapes, st.integers(1, 4))
def test_the_bounds_are_in_order_and_agree_for_one_layer(widths: list[int], dimension: int) -> None:
    upper = serra_upper_bound(widths, dimension)
    assert upper <= montufar_upper_bound(widths, dimension) <= 2 ** sum(widths)
    assert serra_upper_bound(widths[:1], dimension) == zaslavsky_bound(widths[0], dimension)
    assert montufar_upper_bound(widths[:1], dimension) == zaslavsky_bound(widths[0], dimension)
    assert upper <= serra_upper_bound([*widths, 1], dimension)
    if min(widths) >= dimension:
        assert montufar_lower_bound(widths, dimension) <= upper
        assert montufar_lower_bound(widths[:1], dimension) == zaslavsky_bound(widths[0], dimension)


@quick
@given(st.lists(st.integers(2, 9), min_size=1, max_size=4))
def test_of_one_input_a_network_has_at_most_the_product_of_its_widths_plus_one(widths: list[int]) -> None:
    assert serra_upper_bound(widths, 1) == prod(width + 1 for width in widths)


def test_a_hundred_layers_are_no_trouble() -> None:
    assert serra_upper_bound([3] * 2000, 1) == 4**2000


def saw(x: Tensor, teeth: int) -> Tensor:
    """A layer of ``teeth`` ReLU units whose sum with signs folds [0, 1] onto itself ``teeth`` times."""
    kinks = torch.arange(teeth, dtype=D) / teeth
    heights = torch.where(torch.arange(teeth) % 2 == 0, 2.0, -2.0).to(D) * teeth
    heights[0] = teeth
    return torch.relu(x - kinks) @ heights[:, None]


@pytest.mark.theorem("thm-montufar-folding")
@pytest.mark.parametrize("widths", [[2], [3], [2, 2], [4, 3], [3, 2, 4], [2, 2, 2, 2, 2]])
def test_a_network_that_folds_has_as_many_pieces_as_the_lower_bound_says(widths: list[int]) -> None:
    def net(x: Tensor) -> Tensor:
        for teeth in widths[:-1]:
            x = saw(x, teeth)
        last = (torch.arange(widths[-1], dtype=D) + 0.5) / widths[-1]  # kinks strictly inside
        return torch.relu(x - last).sum(1)

    folded = segments(net, torch.zeros(1, dtype=D), torch.ones(1, dtype=D))
    # All of the line beside [0, 1] adds no piece to the product, so the bound is met inside.
    assert len(folded.kinks) + 1 >= montufar_lower_bound(widths, 1) - prod(widths[:-1]) + 1
    assert len(folded) == prod(widths[:-1]) * (widths[-1] + 1)
    assert len(folded) == montufar_lower_bound(widths, 1)


@pytest.mark.parametrize("seed", range(4))
def test_a_random_network_on_a_line_keeps_below_the_upper_bounds(seed: int) -> None:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Linear(1, 6), torch.nn.ReLU(), torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1)
    )
    count = len(segments(net, torch.tensor([-50.0]), torch.tensor([50.0])))
    assert 1 < count <= serra_upper_bound([6, 5], 1) == 42


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: zaslavsky_bound(-1, 2), ValueError, "hyperplanes must be at least 0, got -1"),
        (lambda: zaslavsky_bound(2, 2.0), TypeError, "dimension must be an int, got float"),
        (lambda: montufar_lower_bound([4, 1], 2), ValueError, r"widths\[1\] must be at least 2, got 1"),
        (lambda: montufar_lower_bound([4], 0), ValueError, "dimension must be at least 1, got 0"),
        (lambda: montufar_upper_bound([], 2), ValueError, "widths must name at least one hidden layer"),
        (lambda: montufar_upper_bound(4, 2), TypeError, "widths must be a sequence of ints, got int"),
        (lambda: serra_upper_bound([3, 0], 2), ValueError, r"widths\[1\] must be at least 1, got 0"),
        (lambda: serra_upper_bound([3, True], 2), TypeError, r"widths\[1\] must be an int, got bool"),
        (lambda: serra_upper_bound("33", 2), TypeError, "widths must be a sequence of ints, got str"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        call()


def test_every_public_name_is_used_here() -> None:
    assert all(name in globals() for name in _region_bounds.__all__)
