"""A box that is cut into convex polygons: what every cut keeps, degenerate cuts, and what polygons inherit."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pwl_lib import _subdivision
from pwl_lib._subdivision import Subdivision

SQUARE = ((-1.0, 1.0), (-1.0, 1.0))
KINDS = ["generic", "through 0", "integer", "repeated", "thirds"]

quick = settings(max_examples=20)
seeds = st.integers(0, 2**31 - 1)
each_kind = pytest.mark.parametrize("kind", KINDS)
Layers = list[tuple[Any, Any]]


def layers(kind: str, widths: list[int], seed: int) -> Layers:
    """Weights and biases of a network that sends the plane through layers of these widths."""
    rng = np.random.default_rng(seed)
    made: Layers = []
    for before, width in itertools.pairwise([2, *widths]):
        weight, bias = rng.normal(size=(before, width)), 0.3 * rng.normal(size=width)
        if kind == "through 0":
            bias = np.zeros(width)
        elif kind in ("integer", "thirds"):
            weight = rng.integers(-2, 3, size=(before, width)) / (1 if kind == "integer" else 3)
            bias = rng.integers(-2, 3, size=width) / (1 if kind == "integer" else 3)
        elif kind == "repeated":  # also with the other sign, another scale, and as a function that is 0
            of = rng.integers(0, width, size=width)
            scale = rng.choice([1.0, -1.0, 2.0, 0.0], size=width)
            weight, bias = weight[:, of] * scale, bias[of] * scale
        made.append((weight, bias))
    return made


def subdivide(net: Layers, box: Any = SQUARE) -> tuple[Subdivision, list[tuple[Any, Any]]]:
    """The subdivision, and for each layer what was cut with: at the vertices of then, and at those after the cut."""
    mesh = Subdivision(box)
    x, seen = mesh.vertices, []
    for weight, bias in net:
        z = x @ weight + bias
        cut = mesh.cut(z)
        seen.append((z, cut))
        x = np.maximum(cut, 0)
    return mesh, seen


def lists(mesh: Subdivision) -> list[list[int]]:
    start, index = mesh.polygons
    return [index[i:j].tolist() for i, j in itertools.pairwise(start)]


def signs(mesh: Subdivision, values: Any) -> tuple[Any, Any]:
    """Whether some corner of a polygon is positive, and whether some is negative, ``(R, K)`` each."""
    corners = [values[polygon] for polygon in lists(mesh)]
    return np.array([(z > 0).any(axis=0) for z in corners]), np.array([(z < 0).any(axis=0) for z in corners])


def assert_sound(mesh: Subdivision) -> None:
    """Convex polygons, counterclockwise, that fill the box; an edge in it has two polygons, and one on its boundary one."""
    low, high = mesh.vertices[:4].min(axis=0), mesh.vertices[:4].max(axis=0)
    polygons = lists(mesh)
    sides = [side for polygon in polygons for side in zip(polygon, polygon[1:] + polygon[:1], strict=True)]
    assert len(set(sides)) == len(sides)
    edges = Counter((min(side), max(side)) for side in sides)
    used = {v for polygon in polygons for v in polygon}
    assert all(len(set(polygon)) == len(polygon) >= 3 for polygon in polygons)
    assert len(used) - len(edges) + len(polygons) == 1  # Euler
    for (a, b), times in edges.items():
        one, two = mesh.vertices[a], mesh.vertices[b]
        assert times == 2 - (((one == two) & ((one == low) | (one == high))).any())
    size = np.prod(high - low)
    assert mesh.turns().min() >= -1e-13 * size
    assert mesh.area().min() > 0
    assert abs(mesh.area().sum() - size) <= 1e-14 * size * len(mesh)


@each_kind
@quick
@given(seed=seeds, widths=st.lists(st.integers(1, 8), min_size=1, max_size=3))
def test_cuts_leave_convex_polygons_that_fill_the_box_and_share_their_edges(
    kind: str, seed: int, widths: list[int]
) -> None:
    mesh, seen = subdivide(layers(kind, widths, seed))
    assert_sound(mesh)
    positive, negative = signs(mesh, seen[-1][1])
    assert not (positive & negative).any()
    assert (mesh.positive(seen[-1][1]) == positive).all()


@quick
@given(seed=seeds)
def test_the_box_may_lie_anywhere(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, size = 100 * rng.normal(size=2), 10.0 ** rng.uniform(-4, 4, size=2)
    weight = rng.normal(size=(2, 7)) / size[:, None]
    mesh, _ = subdivide(
        [(weight, -(low + 0.5 * size) @ weight + 0.2 * rng.normal(size=7))], tuple(zip(low, low + size, strict=True))
    )
    assert len(mesh) > 7
    assert_sound(mesh)


@each_kind
def test_there_are_as_many_cells_as_patterns_in_a_fine_grid_and_more_only_where_they_are_small(kind: str) -> None:
    net = layers(kind, [6, 5], seed=3)
    mesh, seen = subdivide(net)
    step = 1 / 60
    grid = np.stack(np.meshgrid(*2 * [np.arange(-1 + step / 3, 1, step)]), axis=-1).reshape(-1, 2)
    patterns, x = [], grid
    for weight, bias in net:
        z = x @ weight + bias
        patterns.append(z > 1e-9)
        x = np.maximum(z, 0)
    found = {row.tobytes() for row in np.concatenate(patterns, axis=1)}
    ours = np.concatenate([mesh.positive(mesh.extend(cut)) for _, cut in seen], axis=1)
    cells = [row.tobytes() for row in ours]
    assert len(set(cells)) == len(cells)
    assert found <= set(cells)
    missed = [area for area, cell in zip(mesh.area(), cells, strict=True) if cell not in found]
    assert max(missed, default=0) < 0.02


@each_kind
@quick
@given(seed=seeds)
def test_values_are_those_of_the_functions_at_the_vertices(kind: str, seed: int) -> None:
    net = layers(kind, [6, 6], seed)
    mesh, seen = subdivide(net)
    x = mesh.vertices
    for (weight, bias), (before, cut) in zip(net, seen, strict=True):
        z = x @ weight + bias
        scale = np.abs(z).max(initial=1)
        assert np.abs(mesh.extend(cut) - z).max() <= 1e-11 * scale
        assert np.abs(mesh.extend(before) - z).max() <= 1e-11 * scale
        assert (np.abs(cut[: len(before)] - before) <= 1e-12 * scale).all()
        x = np.maximum(z, 0)


def test_vertices_keep_their_rows_and_values_of_older_vertices_are_extended() -> None:
    net = layers("generic", [9], seed=0)
    mesh = Subdivision(SQUARE)
    first = mesh.vertices
    mesh.cut(first @ net[0][0][:, :5] + net[0][1][:5])
    second = mesh.vertices
    mesh.cut(second @ net[0][0][:, 5:] + net[0][1][5:])
    assert len(first) < len(second) < len(mesh.vertices)
    assert (mesh.vertices[: len(second)] == second).all()
    affine = lambda at: np.stack([at @ [[1.0], [2.0]] + 3, at @ [[-1.0], [1.0]]], axis=-1)
    for rows in (affine(first), affine(second)):
        assert mesh.extend(rows).shape == (len(mesh.vertices), 1, 2)
        assert np.abs(mesh.extend(rows) - affine(mesh.vertices)).max() < 1e-14
    assert mesh.extend(mesh.vertices) is mesh.vertices
    assert mesh.extend(np.zeros((4, 0))).shape == (len(mesh.vertices), 0)


@each_kind
def test_every_polygon_lies_in_its_parent(kind: str) -> None:
    net = layers(kind, [5, 5], seed=1)
    mesh = Subdivision(SQUARE)
    x = mesh.vertices
    for weight, bias in net:
        before, corners = len(mesh), lists(mesh)
        x = np.maximum(mesh.cut(x @ weight + bias), 0)
        assert set(mesh.parent) == set(range(before))
        for parent, centre in zip(mesh.parent, [mesh.vertices[p].mean(axis=0) for p in lists(mesh)], strict=True):
            ring = mesh.vertices[corners[parent]]
            side, to = np.roll(ring, -1, axis=0) - ring, centre - ring
            assert (side[:, 0] * to[:, 1] - side[:, 1] * to[:, 0] > -1e-12).all()


LINES = {
    "nothing": (np.zeros((2, 0)), np.zeros(0), 1),
    "a function that is 0": (np.zeros((2, 1)), np.zeros(1), 1),
    "a function with one sign": (np.zeros((2, 1)), np.ones(1), 1),
    "beside the box": (np.array([[1.0], [0.0]]), np.array([3.0]), 1),
    "the edges of the box": (np.array([[1.0, 1, 0, 0], [0, 0, 1, 1]]), np.array([1.0, -1, 1, -1]), 1),
    "a corner of the box": (np.array([[1.0], [1.0]]), np.array([2.0]), 1),
    "a diagonal": (np.array([[1.0], [1.0]]), np.zeros(1), 2),
    "both diagonals": (np.array([[1.0, 1], [1, -1]]), np.zeros(2), 4),
    "both diagonals and both axes": (np.array([[1.0, 1, 1, 0], [1, -1, 0, 1]]), np.zeros(4), 8),
    "one line three times": (np.array([[1.0, -1, 0.3], [2, -2, 0.6]]), np.array([0.5, -0.5, 0.15]), 2),
    "three lines through one point": (np.array([[1.0, 1, 2], [1, -1, 1]]), np.array([-0.5, 0.1, -0.7]), 6),
    "three lines through a point of the boundary": (np.array([[1.0, 1, 1], [0.0, 1, -1]]), np.array([0.3, 1.3, -0.7]), 4),
    "parallel lines": (np.array([[1.0, 1, 1], [1, 1, 1]]), np.array([0.0, 0.5, 1e-9]), 4),
    "a grid": (np.repeat(np.eye(2), 3, axis=1), np.array([0.5, 0, -0.5, 0.5, 0, -0.5]), 16),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_lines_in_special_places(name: str) -> None:
    weight, bias, cells = LINES[name]
    orders = itertools.islice(itertools.permutations(range(len(bias))), 24)
    for order in map(list, orders):
        at_once, _ = subdivide([(weight[:, order], bias[order])])
        assert len(at_once) == cells
        assert_sound(at_once)
        in_turn = Subdivision(SQUARE)
        for k in order:
            in_turn.cut(in_turn.vertices @ weight[:, [k]] + bias[k])
        assert len(in_turn) == cells
        assert_sound(in_turn)


def test_many_lines_through_one_point_and_one_beside_it() -> None:
    angle = np.linspace(0, np.pi, 12, endpoint=False) + 0.1
    weight = np.stack([np.cos(angle), np.sin(angle)])
    bias = -np.array([0.25, -0.125]) @ weight
    mesh, _ = subdivide([(weight, bias)])
    assert len(mesh) == 24
    assert_sound(mesh)
    bias[3] += 1e-6
    mesh, _ = subdivide([(weight, bias)])
    assert len(mesh) == 22 + 12
    assert_sound(mesh)


@each_kind
def test_functions_in_turn_give_as_many_polygons_as_all_at_once(kind: str) -> None:
    for seed in range(5):
        weight, bias = layers(kind, [9], seed)[0]
        at_once, _ = subdivide([(weight, bias)])
        in_turn = Subdivision(SQUARE)
        for k in range(9):
            in_turn.cut(in_turn.vertices @ weight[:, [k]] + bias[k])
        assert len(at_once) == len(in_turn)
        assert np.allclose(np.sort(at_once.area()), np.sort(in_turn.area()), rtol=0, atol=1e-13)


def test_the_number_of_cells_of_lines_with_integer_coefficients_by_exact_arithmetic() -> None:
    # In the open box: 1 + lines + for each crossing one less than the lines that meet there.
    for seed in range(8):
        weight, bias = layers("integer", [8], seed)[0]
        columns = zip(*weight.astype(int).tolist(), bias.astype(int).tolist(), strict=True)
        lines: set[tuple[Fraction, ...]] = set()
        for a, b, c in columns:
            lead = a or b
            if lead and abs(c) < abs(a) + abs(b):
                lines.add((Fraction(a, lead), Fraction(b, lead), Fraction(c, lead)))
        at: dict[tuple[Fraction, Fraction], set[Any]] = {}
        for one, two in itertools.combinations(sorted(lines), 2):
            det = one[0] * two[1] - one[1] * two[0]
            if det:
                point = (one[1] * two[2] - two[1] * one[2]) / det, (two[0] * one[2] - one[0] * two[2]) / det
                if max(map(abs, point)) < 1:
                    at.setdefault(point, set()).update((one, two))
        mesh, _ = subdivide([(weight, bias)])
        assert len(mesh) == 1 + len(lines) + sum(len(meeting) - 1 for meeting in at.values())


def test_a_value_within_the_tolerance_counts_as_0() -> None:
    mesh = Subdivision(SQUARE)
    values = np.array([[0.5e-12, 1.0], [1.0, 0.5], [0.5, 2e-12], [-0.5e-12, 1.0]])
    assert mesh.cut(values)[:, 0].tolist() == [0, 1, 0.5, 0]
    assert len(mesh) == 1
    assert mesh.cut(values)[:, 1].tolist() == values[:, 1].tolist()


@quick
@given(seed=seeds, noise=st.integers(-15, -6))
@example(seed=17, noise=-9)
@example(seed=29, noise=-9)  # three chords whose crossings are in no order that fits in the plane
def test_noise_above_the_tolerance_leaves_sound_polygons_of_one_sign(seed: int, noise: int) -> None:
    # Values of functions that are not quite affine any more, and lines that nearly meet or agree.
    rng = np.random.default_rng(seed)
    mesh = Subdivision(SQUARE)
    x = mesh.vertices
    for weight, bias in layers("integer", [5, 5, 3], seed):
        z = x @ weight + bias
        cut = mesh.cut(z + 10.0**noise * rng.normal(size=z.shape))
        positive, negative = signs(mesh, cut)
        assert not (positive & negative).any()
        assert abs(mesh.area().sum() - 4) < 1e-12
        sides = Counter(frozenset(s) for p in lists(mesh) for s in zip(p, p[1:] + p[:1], strict=True))
        assert set(sides.values()) <= {1, 2}
        x = np.maximum(cut, 0)


@pytest.mark.parametrize("kind", ["generic", "integer"])
def test_polygons_cut_one_function_after_the_other_are_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The way that is taken where it is not clear which chords meet: here everywhere.
    net = layers(kind, [6, 5], seed=2)
    mesh, seen = subdivide(net)
    taken = []

    def refuse(cut: Any) -> bool:
        if not taken or taken[-1] is not cut:
            taken.append(cut)
            return cut.leave_out(np.arange(len(cut.start)))
        return bool(plain(cut))

    plain = _subdivision._Cut.find_faces
    monkeypatch.setattr(_subdivision._Cut, "find_faces", refuse)
    slow, slowly = subdivide(net)
    assert len(taken) == 2
    assert_sound(slow)
    assert np.allclose(np.sort(mesh.area()), np.sort(slow.area()), rtol=0, atol=1e-14)
    order, other = np.lexsort(mesh.vertices.round(9).T), np.lexsort(slow.vertices.round(9).T)
    assert np.abs(mesh.vertices[order] - slow.vertices[other]).max() < 1e-12
    assert np.abs(seen[-1][1][order] - slowly[-1][1][other]).max() < 1e-12


def test_numbers_that_agree_after_rounding_are_sorted_all_the_same() -> None:
    line = np.array([10**6, 10**6, 3, 10**6])
    weight = np.array([0.5 + 2e-15, 0.5 + 1e-15, 0.9, 0.5])
    assert _subdivision._along(line, weight).tolist() == [2, 3, 1, 0]


@each_kind
@quick
@given(seed=seeds)
def test_neighbours_are_the_pairs_that_share_an_edge(kind: str, seed: int) -> None:
    mesh, _ = subdivide(layers(kind, [5, 4], seed))
    pairs, ends = mesh.neighbours()
    of: dict[frozenset[int], list[int]] = {}
    for number, polygon in enumerate(lists(mesh)):
        for side in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            of.setdefault(frozenset(side), []).append(number)
    expected = {tuple(sorted(two)): edge for edge, two in of.items() if len(two) == 2}
    assert [tuple(pair) for pair in pairs.tolist()] == sorted(expected)
    assert [frozenset(edge) for edge in ends.tolist()] == [expected[pair] for pair in sorted(expected)]


def test_polygons_that_share_two_edges_in_a_row_are_neighbours_once() -> None:
    mesh = Subdivision(SQUARE)
    mesh.vertices = np.array([*mesh.vertices.tolist(), [0, -1], [0, 1], [0, -0.5], [0, 0.3]])
    mesh._rebuild(np.array([0, 6, 12]), np.array([0, 4, 6, 7, 5, 3, 4, 1, 2, 5, 7, 6]))
    assert_sound(mesh)
    pairs, ends = mesh.neighbours()
    assert pairs.tolist() == [[0, 1]]
    assert sorted(ends[0].tolist()) == [4, 5]


def test_signs_that_are_left_over_by_rounding_are_taken_away() -> None:
    mesh, seen = subdivide([(np.eye(2), np.zeros(2))])
    values = seen[0][1]
    crossing = np.flatnonzero((values == 0).all(axis=1))
    planted = values.copy()
    planted[crossing] = [1e-15, -1e-15]
    cut = object.__new__(_subdivision._Cut)
    cut.mesh, cut.values = mesh, planted
    cut.settle()
    assert (cut.values == values).all()


@each_kind
@quick
@given(seed=seeds)
def test_polygons_that_were_cut_too_often_are_merged(kind: str, seed: int) -> None:
    weight, bias = layers(kind, [9], seed)[0]
    plain, _ = subdivide([(weight[:, :4], bias[:4])])
    mesh = Subdivision(SQUARE)
    mesh.cut(mesh.vertices @ weight[:, 4:] + bias[4:])
    values = mesh.cut(mesh.vertices @ weight[:, :4] + bias[:4])
    label = mesh.positive(values) @ (1 << np.arange(4))
    before, rows = len(mesh), len(mesh.vertices)
    mesh.merge(label)
    assert_sound(mesh)
    assert len(mesh) == len(plain)
    assert len(mesh.vertices) == rows
    assert np.allclose(np.sort(mesh.area()), np.sort(plain.area()), rtol=0, atol=1e-13)
    assert sorted(map(len, lists(mesh))) == sorted(map(len, lists(plain)))
    assert len(set(label[mesh.parent])) == len(mesh)
    assert len(mesh.neighbours()[0]) == len(plain.neighbours()[0])
    again = mesh.cut(mesh.vertices @ weight[:, 4:] + bias[4:])
    assert len(mesh) == before
    assert_sound(mesh)
    assert not np.logical_and(*signs(mesh, again)).any()


def test_labels_that_no_neighbours_share_merge_nothing() -> None:
    mesh, _ = subdivide([LINES["a grid"][:2]])
    before = lists(mesh)
    mesh.merge(np.arange(16))
    assert lists(mesh) == before
    assert mesh.parent.tolist() == list(range(16))


def test_a_merge_that_is_not_convex_is_refused() -> None:
    mesh, _ = subdivide([LINES["a grid"][:2]])
    centre = np.array([mesh.vertices[polygon].mean(axis=0) for polygon in lists(mesh)])
    bend = (centre < 0).any(axis=1)
    cross = (np.abs(centre) < 0.5).any(axis=1)
    ring = (np.abs(centre) > 0.5).any(axis=1)
    for label in (bend, cross, ring):
        with pytest.raises(ValueError, match="label must be the same only on polygons whose union is convex"):
            subdivide([LINES["a grid"][:2]])[0].merge(np.where(label, 0, np.arange(1, 17)))


def test_more_functions_than_a_word_has_bits() -> None:
    weight, bias = layers("generic", [150], seed=0)[0]
    mesh, seen = subdivide([(weight, bias)])
    assert_sound(mesh)
    positive = mesh.positive(seen[0][1])
    assert positive.shape == (len(mesh), 150)
    assert (positive == signs(mesh, seen[0][1])[0]).all()
    few = np.random.default_rng(0).random((7, 150)) < 0.02
    row, number = _subdivision._bits(_subdivision._pack(few))
    assert np.array_equal([row, number], np.nonzero(few))


def test_time_and_memory_go_with_the_number_of_polygons() -> None:
    # Not a clock: what is stored for each polygon stays the same while there are more of them.
    sizes = []
    for width in (20, 40, 80):
        mesh, _ = subdivide(layers("generic", [width], seed=0))
        stored = [
            mesh.vertices,
            mesh._tail,
            mesh._sides,
            mesh._start,
            *[array for wave in mesh._waves for array in wave[1:]],
        ]
        sizes.append(sum(array.nbytes for array in stored) / len(mesh))
    assert max(sizes) < 220
