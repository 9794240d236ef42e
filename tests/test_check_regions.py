"""The checkers of the chapter *Regions*: right answers pass, known mistakes are named."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from answers import assert_all_tried, assert_hidden, assert_safe_from_writing

from pwl_lib import check
from pwl_lib.check import regions as checks

D = torch.float64


def crossed(values):
    return (values > 0).any(0) & (values < 0).any(0)


def crossed_by_pairs(values):
    return (values[:, None] * values[None] < 0).any(0).any(0).tolist()


def part(polygon, values, strict=False, middle=False, exchanged=False):
    corners = []
    for p, q, g, h in zip(polygon, polygon.roll(-1, 0), values.tolist(), values.roll(-1).tolist()):
        if g > 0 or (g == 0 and not strict):
            corners.append(p)
        if g * h < 0:
            there = (h * q - g * p) / (h - g) if exchanged else (g * q - h * p) / (g - h)
            corners.append((p + q) / 2 if middle else there)
    return torch.stack(corners)


def cut(polygon, values):
    return part(polygon, values), part(polygon, -values)


def cut_clockwise_with_corners_named_twice(polygon, values):
    parts = []
    for sign in (1, -1):
        corners = part(polygon, sign * values).flip(0).roll(1, 0)
        parts.append(torch.cat([corners, corners[-1:]]))
    return parts


def line_regions(W, b):
    def sides(points):
        values = points @ W.T + b
        return (values.amax(0) > 0) & (values.amin(0) < 0)

    W, b = W.double(), b.double()
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=D)
    keep = torch.where(sides(square))[0].tolist()
    count = 1 + len(keep)
    for i, j in itertools.combinations(keep, 2):
        if abs(torch.linalg.det(W[[i, j]])) > 1e-12:
            count += int((torch.linalg.solve(W[[i, j]], -b[[i, j]]).abs() < 1).all())
    return count


def line_regions_by_cutting(W, b):
    polygons = [torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=D)]
    for w, offset in zip(W, b):
        polygons = [
            piece
            for polygon in polygons
            for piece in (
                cut(polygon, polygon @ w + offset) if crossed((polygon @ w + offset)[:, None]).item() else [polygon]
            )
        ]
    return torch.tensor(len(polygons))


def serra(widths, d):
    if not widths:
        return 1
    n = widths[0]
    return sum(math.comb(n, j) * serra(widths[1:], min(d, n - j)) for j in range(min(n, d) + 1))


def serra_as_printed(widths, dimension):
    total = 0
    for J in itertools.product(*(range(n + 1) for n in widths)):
        room = [min([dimension, *(n - j for n, j in zip(widths[:k], J))]) for k in range(len(widths))]
        if all(j <= r for j, r in zip(J, room)):
            total += math.prod(math.comb(n, j) for n, j in zip(widths, J))
    return float(total)


def facet(A, b, A2, b2):
    row = (A2 - A).norm(dim=1).argmax()
    h, c = (A2 - A)[row], -(b2 - b)[row]
    return h / h.norm(), c / h.norm()


def facet_from_the_other_side(A, b, A2, b2):
    U, S, V = torch.linalg.svd(A2 - A)
    return -V[0], float((b2 - b) @ U[:, 0] / S[0])


def integrated_gradients(t, A, start, end):
    return (t.diff()[:, None] * A * (end - start)).sum(0)


def three_numbers():
    return torch.ones(5), torch.tensor([0.5, 0.0, -0.5, 0.75, 0.75]), torch.tensor([1.0, -2.0, 1.0, 1.0, -1.0])


def three_numbers_by_opposite_units():
    return [1.0, 1, 1, 1, -1], [0.5, 0, -0.5, -0.75, 0.75], [1.0, -2, 1, 3, -3]


RIGHT = {
    "crossed": [crossed, crossed_by_pairs],
    "cut": [cut, cut_clockwise_with_corners_named_twice],
    "line_regions": [line_regions, line_regions_by_cutting],
    "serra": [serra, serra_as_printed],
    "facet": [facet, facet_from_the_other_side],
    "integrated_gradients": [integrated_gradients],
    "three_numbers": [three_numbers, three_numbers_by_opposite_units],
}


def lines_inside(W, b):
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=D)
    return int(crossed(square @ W.T + b).sum())


def narrowed(widths, d):
    product = 1
    for n in widths:
        d = min(d, n)
        product *= sum(math.comb(n, j) for j in range(d + 1))
    return product


def forgetful(widths, dimension, alive=99):
    if not widths:
        return 1
    n = widths[0]
    room = min(dimension, alive, n)
    return sum(math.comb(n, j) * forgetful(widths[1:], dimension, n - j) for j in range(room + 1))


def serra_of_units_that_are_on(widths, d):
    if not widths:
        return 1
    n = widths[0]
    return sum(math.comb(n, j) * serra_of_units_that_are_on(widths[1:], min(d, j)) for j in range(min(n, d) + 1))


def without_narrowing(widths, d):
    return math.prod(sum(math.comb(n, j) for j in range(min(n, d) + 1)) for n in widths)


def serra_from_one(widths, d):
    if not widths:
        return 1
    n = widths[0]
    return sum(math.comb(n, j) * serra_from_one(widths[1:], min(d, n - j)) for j in range(1, min(n, d) + 1))


def parallel(W):
    return sum(abs(float(torch.linalg.det(W[[i, j]]))) < 1e-12 for i, j in itertools.combinations(range(len(W)), 2))


def all_crossings(W, b):
    return 1 + lines_inside(W, b) + math.comb(len(W), 2) - parallel(W)


def by_grid(W, b):
    side = torch.linspace(-1, 1, 250, dtype=D)
    return len(((torch.cartesian_prod(side, side) @ W.to(D).T + b) > 0).unique(dim=0))


WRONG = [
    ("crossed", lambda v: (v.amax(0) >= 0) & (v.amin(0) <= 0), "only touches a corner or a side"),
    ("crossed", lambda v: (v.amax(0) > 0) & (v.amin(0) <= 0), "a corner on the fold is on neither side"),
    ("crossed", lambda v: (v * v.roll(1, 0) < 0).any(0), "corners that are not neighbours"),
    ("crossed", lambda v: ~crossed(v), "does not change its sign"),
    ("crossed", lambda v: v.mean(0) > 0, "the value in the middle"),
    ("cut", lambda p, v: cut(p, v)[::-1], "exchanged"),
    ("cut", lambda p, v: (p[v >= 0], p[v <= 0]), "the new corners are missing"),
    ("cut", lambda p, v: (part(p, v, middle=True), part(p, -v, middle=True)), "in its middle"),
    ("cut", lambda p, v: (part(p, v, strict=True), part(p, -v, strict=True)), "belongs to both parts"),
    ("cut", lambda p, v: (part(p, v, exchanged=True), part(p, -v, exchanged=True)), "exchange the weights"),
    ("line_regions", lambda W, b: 1 + len(W) + math.comb(len(W), 2), "the bound for the whole plane"),
    ("line_regions", lambda W, b: line_regions(W, b) + len(W) - lines_inside(W, b), "misses the square adds no region"),
    ("line_regions", all_crossings, "folds may cross outside"),
    ("line_regions", lambda W, b: 1 + lines_inside(W, b), "add a region for each crossing"),
    ("line_regions", lambda W, b: line_regions(W, b) - 1, "there is one region already"),
    ("line_regions", by_grid, "between the points of any grid"),
    ("line_regions", lambda W, b: 2 ** len(W), "patterns without a point"),
    ("serra", narrowed, "a unit that is off lowers the dimension"),
    ("serra", forgetful, "in all layers before"),
    ("serra", serra_of_units_that_are_on, "how many of the layer are left"),
    ("serra", without_narrowing, "behind a narrow one"),
    ("serra", lambda widths, d: 2 ** sum(widths), "every one would have a point"),
    ("serra", lambda widths, d: sum(math.comb(sum(widths), j) for j in range(d + 1)), "one layer with all units"),
    ("serra", serra_from_one, "starts with no unit off"),
    ("facet", lambda *two: (facet(*two)[0], -facet(*two)[1]), "the offset has the wrong sign"),
    ("facet", lambda *two: (facet(*two)[0], 0.0), "b must be compared too"),
    ("facet", lambda A, b, A2, b2: ((A2 - A)[0], (b - b2)[0]), "with length 1"),
    ("facet", lambda A, b, A2, b2: (facet(A, b, A2, b2)[0], (b - b2)[0]), "c has to be divided"),
    ("integrated_gradients", lambda t, A, p, q: A.mean(0) * (q - p), "the mean over the segments"),
    ("integrated_gradients", lambda t, A, p, q: t.diff() @ A, "multiply with the way"),
    ("integrated_gradients", lambda t, A, p, q: (t.diff() @ A) * q, "the way begins at start"),
    ("integrated_gradients", lambda t, A, p, q: A[-1] * (q - p), "the gradient at the end"),
    ("integrated_gradients", lambda t, A, p, q: ((t.diff() @ A) * (q - p)).sum(), "one number for each"),
    ("integrated_gradients", lambda t, A, p, q: (t[1:] @ A) * (q - p), "are no lengths"),
    ("three_numbers", lambda: ([1.0] * 3, [0.5, 0, -0.5], [1.0, -2, 1]), "every kink shows"),
    ("three_numbers", lambda: ([1.0] * 4, [0.5, 0, -0.5, -0.5], [1.0, 1, 1, -1]), "let one come back"),
    ("three_numbers", lambda: ([1.0], [0.0], [1.0]), "its own pattern and its own map"),
]


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name, all_of in RIGHT.items() for answer in all_of])
def test_every_right_answer_passes_each_time(name, answer):
    for _ in range(4):
        assert getattr(checks, name)(answer).startswith("right: ")


def repeat(name, answer, times):
    for _ in range(times):
        getattr(checks, name)(answer)


@pytest.mark.parametrize(("name", "answer", "said"), WRONG)
def test_every_known_mistake_fails_and_is_named(name, answer, said):
    seen = []
    for _ in range(30):  # an input may hide a mistake, or give it another name
        with pytest.raises(check.WrongAnswer) as failure:
            repeat(name, answer, 20)
        seen.append(str(failure.value))
        if said in seen[-1]:
            break
    assert any(said in text for text in seen), seen[-1]


def test_every_mistake_that_a_checker_knows_is_tried():
    assert_all_tried(checks, WRONG)


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (([1.0] * 6, [0.0] * 6, [1.0] * 6), "at most 5, got 6"),
        (([1.0, 0.0], [0.0, 1.0], [1.0, 1.0]), "may be 0"),
        (([1.0, 1.0], [0.0], [1.0, 1.0]), "the same length"),
    ],
)
def test_a_net_against_the_rules_is_refused_with_the_rule(net, said):
    with pytest.raises(check.WrongAnswer, match=said):
        checks.three_numbers(lambda: net)


def test_a_normal_without_its_offset_is_refused_with_what_was_wanted():
    with pytest.raises(check.WrongAnswer, match=r"the pair \(h, c\) was wanted"):
        checks.facet(lambda *maps: facet(*maps)[0])


def test_the_three_numbers_of_a_net_are_counted_exactly():
    from pwl_lib.check.regions import _three_counts

    assert _three_counts(three_numbers()) == (5, 4, 3)
    assert _three_counts(([1.0], [2.0], [1.0])) == (1, 1, 1)  # the kink is outside
    assert _three_counts(([1.0, -1.0], [0.0, 0.0], [1.0, -1.0])) == (2, 1, 1)
    assert _three_counts(([1.0, 2.0], [0.3, 0.6], [1.0, 1.0])) == (2, 2, 2)  # two units, one place


def test_folds_in_general_position_reach_the_number_of_zaslavsky_where_all_meet_inside():
    angle = torch.arange(5, dtype=D)
    W = torch.stack([angle.cos(), angle.sin()], 1)
    b = 0.05 * torch.tensor([1.0, -1, 0.5, -0.3, 0.9], dtype=D)
    assert line_regions(W, b) == line_regions_by_cutting(W, b) == 16


@pytest.mark.parametrize("name", checks.__all__)
def test_hints_exist_and_neither_they_nor_a_failure_show_the_solution(name):
    exercise = getattr(checks, name)
    assert exercise.__doc__.startswith(f"``{name}(")
    assert len(exercise.hint(1)) > 20 < len(exercise.hint(2))
    assert exercise.hint(1) != exercise.hint(2)
    assert_hidden(exercise, None, ["torch.", "return", "lambda", "math.", ".diff()", "roll(", "(g - h)", ".any("])


@pytest.mark.parametrize("name", checks.__all__)
def test_a_blank_and_a_wrong_kind_of_value_fail(name):
    def blank(*_):
        raise NotImplementedError

    with pytest.raises(check.WrongAnswer, match="still blank"):
        getattr(checks, name)(blank)
    for value in (None, "text", (), torch.zeros(7, 7)):
        with pytest.raises(check.WrongAnswer):
            getattr(checks, name)(lambda *_, value=value: value)


@pytest.mark.parametrize("name", [name for name in checks.__all__ if name not in ("three_numbers", "serra")])
def test_an_answer_that_writes_into_its_arguments_is_compared_with_what_it_was_given(name):
    assert_safe_from_writing(getattr(checks, name), RIGHT[name][0])


def test_a_checker_does_not_move_the_readers_seed():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for name, (answer, *_) in RIGHT.items():
        getattr(checks, name)(answer)
    assert torch.equal(torch.get_rng_state(), before)
