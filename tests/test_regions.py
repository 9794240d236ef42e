"""The polygons of a network on a plane: that they are all there, fit together, and carry the right maps."""

from __future__ import annotations

import copy
import itertools
import math
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pwl_lib import nn as pnn
from pwl_lib import plot
from pwl_lib import regions as regions_module
from pwl_lib.maxout import maxout
from pwl_lib.piecewise_linear import activation_pattern, affine_piece
from pwl_lib.regions import RegionCounts, Regions, slice_regions, zaslavsky_bound

D = torch.float64
ORIGIN, U, V = torch.zeros(2, dtype=D), torch.tensor([1.0, 0.0], dtype=D), torch.tensor([0.0, 1.0], dtype=D)


def seeded(make, seed=0):
    """A model with weights of that seed, in float64 and evaluation mode; the generator of the process is not moved."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double().eval()


def mlp(*widths, activation=nn.ReLU, bias=True):
    layers = []
    for n, m in itertools.pairwise(widths):
        layers += [nn.Linear(n, m, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


def plane(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, dtype=D, generator=generator) for _ in range(3)]


def linear_net(rows, shifts, last=None, final=nn.ReLU):
    """One layer with these weights, a switch, and a sum or given weights behind it."""
    layer = nn.Linear(2, len(rows), dtype=D)
    out = nn.Linear(len(rows), 1, bias=False, dtype=D)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows, dtype=D))
        layer.bias.copy_(torch.tensor(shifts, dtype=D))
        out.weight.copy_(torch.tensor([last or [1.0] * len(rows)], dtype=D))
    return nn.Sequential(layer, final(), out)


def holds(model, regions: Regions, points=300, tol=1e-9):
    """Every invariant of a subdivision by a model. ``model`` is in float64."""
    (s0, s1), (t0, t1) = regions.box
    count, scale = len(regions), max(1.0, float(regions.values.abs().max())) if regions.values.numel() else 1.0
    size = max(s1 - s0, t1 - t0)
    # The areas make up the box, and none is empty.
    assert float(regions.area.sum()) == pytest.approx((s1 - s0) * (t1 - t0), rel=1e-12)
    assert float(regions.area.min()) > 0
    assert len(regions.polygons) == count == len(regions.area) == len(regions.centroid) == len(regions.pattern)
    # Convex, counterclockwise.
    start, number = regions.corners
    assert len(regions.vertices) == len(number.unique())
    for polygon in regions.polygons[:200]:
        edge = polygon.roll(-1, 0) - polygon
        after = edge.roll(-1, 0)
        assert float((edge[:, 0] * after[:, 1] - edge[:, 1] * after[:, 0]).min()) > -1e-9 * size**2
    # Every edge belongs to two polygons, or lies on the border of the box; then Euler's formula: no vertex is there twice.
    sides = {}
    for i in range(count):
        cycle = number[start[i] : start[i + 1]].tolist()
        for a, b in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            assert (a, b) not in sides
            sides[a, b] = i
    twins = {(min(i, sides[b, a]), max(i, sides[b, a])) for (a, b), i in sides.items() if (b, a) in sides}
    assert sorted(twins) == [tuple(pair) for pair in regions.neighbours.tolist()]
    for a, b in sides:
        if (b, a) not in sides:
            p, q = regions.vertices[a], regions.vertices[b]
            gaps = [max(abs(float(p[k]) - bound), abs(float(q[k]) - bound)) for k in (0, 1) for bound in regions.box[k]]
            assert min(gaps) <= 1e-14 * size
    edges = {(min(pair), max(pair)) for pair in sides}
    assert len(regions.vertices) - len(edges) + count == 1
    # Continuous: at the ends of an edge both maps are the value of its vertices.
    owner = torch.repeat_interleave(torch.arange(count), start.diff())
    at = torch.einsum("nmk,nk->nm", regions.slope[owner], regions.vertices[number]) + regions.offset[owner]
    torch.testing.assert_close(at, regions.values[number], rtol=0, atol=tol * scale)
    # The map in x, at vertices and centroids.
    x = regions.input(regions.vertices)
    y = model(x).reshape(len(x), -1).detach()
    torch.testing.assert_close(regions.values, y, rtol=0, atol=tol * scale)
    some = torch.linspace(0, count - 1, min(count, 40)).long()
    piece = regions.piece(some)
    x = regions.input(regions.centroid[some])
    truth = affine_piece(model, x)
    torch.testing.assert_close(piece(x), model(x).reshape(len(x), -1).detach(), rtol=0, atol=tol * scale)
    if float(regions.area[some].min()) > 1e-9:
        torch.testing.assert_close(piece.A, truth.A, rtol=0, atol=1e-9 * max(1.0, float(truth.A.abs().amax())))
        torch.testing.assert_close(piece.b, truth.b, rtol=0, atol=1e-9 * max(1.0, float(truth.b.abs().amax())))
    # Each pattern once; a random point lies in one polygon, and has its pattern.
    assert len(regions.pattern.unique(dim=0)) == count
    generator = torch.Generator().manual_seed(1)
    low, high = torch.tensor(regions.box, dtype=D).T
    p = low + (high - low) * torch.rand(points, 2, dtype=D, generator=generator)
    found = regions.find(p)
    assert int(found.min()) >= 0
    assert torch.equal(regions.pattern[found], activation_pattern(model, regions.input(p)))
    inside = torch.stack([contains(polygon, p[:20]) for polygon in regions.polygons])
    assert inside.sum(0).tolist() == [1] * 20
    assert torch.equal(inside.int().argmax(0), found[:20])
    # A dense grid, off the symmetric places, finds no pattern that is missing.
    step = torch.arange(40, dtype=D) / 40
    grid = low + (high - low) * torch.cartesian_prod(step + 0.4871 / 40, step + 0.5236 / 40)
    words = activation_pattern(model, regions.input(grid)).unique(dim=0)
    assert len(torch.cat([regions.pattern, words]).unique(dim=0)) == count


def contains(polygon: Tensor, points: Tensor) -> Tensor:
    edge = polygon.roll(-1, 0) - polygon
    to = points[:, None] - polygon
    return (edge[:, 0] * to[..., 1] - edge[:, 1] * to[..., 0] > 0).all(1)


# --- architectures ---


class Residual(nn.Module):
    """The sum is written into one of its parts."""

    def __init__(self, n):
        super().__init__()
        self.first, self.second = nn.Linear(n, n), nn.Linear(n, n)

    def forward(self, x):
        out = self.second(F.relu(self.first(x)))
        out += x
        return F.relu(out) + x


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.join = nn.Linear(2, 4), nn.Linear(2, 3), nn.Linear(9, 2)

    def forward(self, x):
        left = F.relu(self.left(x))
        return self.join(torch.cat([left, x, self.right(x).abs()], dim=1))


class Recurrent(nn.Module):
    """One layer, three times."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        h = F.pad(x, (0, 2))
        for _ in range(3):
            h = F.relu(self.layer(h))
        return h.sum(1)


class Alias(nn.Module):
    """The ReLU writes into a tensor that is used again, under its old name."""

    def __init__(self):
        super().__init__()
        self.layer, self.relu, self.out = nn.Linear(2, 5), nn.ReLU(inplace=True), nn.Linear(5, 5)

    def forward(self, x):
        h = self.layer(x)
        y = self.out(self.relu(h))
        return F.relu(y) + h


class OldSize(nn.Module):
    """Keeps the size of the batch, and makes constants of it."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(2, 6), nn.Linear(6, 3)

    def forward(self, x):
        batch = x.shape[0]
        h = torch.zeros(batch, 6, dtype=x.dtype)
        h[:, :2] += x
        h = h + F.relu(self.layer(x))
        y = F.relu(self.out(h).view(batch, 3, 1)).view(batch, -1)
        return y.T.reshape(3, batch).T + torch.ones(batch, 1)


class Transposed(nn.Module):
    """The batch is the last dimension for a while; both are 4 at first."""

    def __init__(self):
        super().__init__()
        self.widen, self.layer = nn.Linear(2, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = self.widen(x)
        turned = h.T
        return (turned + F.relu(self.layer(h)).T).T


class Shrink(nn.Module):
    def forward(self, x):
        return F.softshrink(x @ torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=D), 0.3) + F.hardsigmoid(3 * x)


class Rewritten(nn.Module):
    """Doubles in place what it has already added to a younger tensor."""

    def forward(self, x):
        h = x + 0.1
        y = F.relu(h[:, :1] - h[:, 1:]) + h
        h.mul_(2)
        return y + h


class Views(nn.Module):
    """Writes into a view of the input, after a switch."""

    def forward(self, x):
        y = F.relu(x + 0.25)
        half = x[:, :1]
        half.relu_()
        return x + y


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(3, 2, 2, bias=False),
        nn.PReLU(2),
        nn.AvgPool2d(2, 1),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def lively(make):
    """With statistics and slopes that are not those of a fresh model."""

    def build():
        model = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias, 0, 0.3)
            if isinstance(module, nn.PReLU):
                nn.init.uniform_(module.weight, -0.5, 0.5)
        return model

    return build


class Maxouts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(15, 2)), nn.Parameter(torch.randn(15))
        self.out = nn.Linear(3, 1)

    def forward(self, x):
        return self.out(maxout(x, self.weight, self.bias, 5))


class Extremes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 6), nn.Linear(2, 6)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        low = torch.minimum(a, b).amin(1, keepdim=True)
        return low + a.clamp(min=-0.5).max(dim=1, keepdim=True).values + b.clamp_max(0.3)


ACTIVATIONS = [nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.ReLU6, nn.RReLU, pnn.ReLU, pnn.LeakyReLU]
MODELS = {
    **{
        f"{a.__module__.split('.')[0]} {a.__name__}": (lambda a=a: mlp(2, 6, 5, 2, activation=a), (2,))
        for a in ACTIVATIONS
    },
    "residual": (lambda: Residual(3), (3,)),
    "branches": (Branches, (2,)),
    "shared layer": (Recurrent, (2,)),
    "alias": (Alias, (2,)),
    "old size": (OldSize, (2,)),
    "transposed": (Transposed, (2,)),
    "shrink": (Shrink, (2,)),
    "views": (Views, (2,)),
    "rewritten": (Rewritten, (2,)),
    "image": (lively(cnn), (1, 7, 6)),
    "maxout": (Maxouts, (2,)),
    "extremes": (Extremes, (2,)),
    "ceil pooling": (
        lambda: nn.Sequential(nn.MaxPool1d(3, 2, 1, ceil_mode=True), nn.Flatten(), nn.Linear(5, 2), nn.ReLU()),
        (1, 8),
    ),
    "adaptive pooling": (lambda: nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4, 2)), (1, 5, 3)),
    "relu and pooling": (lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2)), (1, 5, 5)),
}


def walks(monkeypatch):
    """Notes for each walk whether the batch could grow while the model ran."""
    seen = []
    walk = regions_module._walk
    monkeypatch.setattr(
        regions_module,
        "_walk",
        lambda *args, growing, **words: (seen.append(growing), walk(*args, growing=growing, **words))[1],
    )
    return seen


@pytest.mark.theorem("thm-subdivision")
@pytest.mark.theorem("thm-slice-convex")
@pytest.mark.parametrize("name", MODELS)
def test_the_polygons_of_each_architecture_fit_together_and_carry_its_maps(name, monkeypatch):
    seen = walks(monkeypatch)
    make, shape = MODELS[name]
    model = seeded(make, seed=3)
    origin, u, v = (ORIGIN, 2 * U, V) if shape == (2,) else plane(*shape)
    box = ((-0.2, 0.3), (-0.3, 0.25)) if name == "image" else ((-1.5, 1), (-1, 1.25))
    regions = slice_regions(model, origin, u, v, box=box)
    assert len(regions) > 1
    holds(model, regions)
    # Those alone are started again after each cut that do not bear a growing batch.
    assert seen == ([True, False] if name in ("old size", "transposed", "shrink", "views") else [True])


@pytest.mark.theorem("thm-subdivision")
@settings(max_examples=6)
@given(st.integers(0, 2**31 - 1), st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(2, 4))
def test_random_nets_of_any_input_size_hold_the_invariants(seed, widths, n):
    model = seeded(lambda: mlp(n, *widths, 2), seed)
    holds(model, slice_regions(model, *plane(n, seed=seed)), points=60)


@pytest.mark.parametrize(
    "name", ["torch ReLU", "torch Hardtanh", "image", "maxout", "relu and pooling", "shared layer"]
)
def test_a_box_that_is_taken_in_parts_gives_the_same_regions(name, monkeypatch):
    make, shape = MODELS[name]
    model = seeded(make, seed=3)
    origin, u, v = (ORIGIN, 2 * U, V) if shape == (2,) else plane(*shape)
    box = ((-0.2, 0.3), (-0.3, 0.25)) if name == "image" else ((-1.5, 1), (-1, 1.25))
    whole = slice_regions(model, origin, u, v, box=box)
    tiles = []
    found = regions_module._in_parts
    monkeypatch.setattr(regions_module, "_in_parts", lambda *args: (tiles.append(args[2]), found(*args))[1])
    monkeypatch.setattr(regions_module, "_NUMBERS_OF_A_CUT", {"image": 60_000, "relu and pooling": 4000}.get(name, 100))
    parts = slice_regions(model, origin, u, v, box=box)
    assert tiles
    assert len(parts) == len(whole)
    assert len(parts.vertices) == len(whole.vertices)
    i = whole.find(parts.centroid)
    assert torch.equal(i.sort().values, torch.arange(len(whole)))
    assert torch.equal(whole.pattern[i], parts.pattern)
    torch.testing.assert_close(whole.area[i], parts.area, rtol=1e-9, atol=1e-13)
    assert torch.equal(i[parts.neighbours].sort(1).values.unique(dim=0), whole.neighbours)
    holds(model, parts, points=40)


# --- degenerate nets ---


@pytest.mark.parametrize("seed", range(3))
def test_without_biases_all_lines_of_the_first_layer_meet_in_one_vertex(seed):
    model = seeded(lambda: mlp(2, 6, bias=False), seed)
    regions = slice_regions(nn.Sequential(model, nn.ReLU()), ORIGIN, U, V)
    assert len(regions) == 12
    assert int((regions.vertices.abs().amax(1) < 1e-12).sum()) == 1
    deep = seeded(lambda: mlp(2, 6, 6, 1, bias=False), seed)
    regions = slice_regions(deep, ORIGIN, U, V)
    holds(deep, regions)
    # All regions are sectors around the origin.
    assert bool((torch.stack([polygon.abs().amax(1).amin() for polygon in regions.polygons]) < 1e-12).all())
    # As many as there are different words on a circle around it.
    angle = torch.linspace(0, 2 * math.pi, 20_001, dtype=D)[:-1] + 1e-5
    words = activation_pattern(deep, 0.5 * torch.stack([angle.cos(), angle.sin()], 1))
    assert len(regions) == len(words.unique(dim=0))


def test_whole_numbers_as_weights_give_lines_that_meet_in_shared_vertices():
    # The lines s = 0, t = 0, s = t and s = -t, each of them three times, once along the diagonal of the box.
    rows = [[1.0, 0.0], [0.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    model = linear_net(rows + [[3 * a, 3 * b] for a, b in rows] + [[-a, -b] for a, b in rows], [0.0] * 12)
    regions = slice_regions(model, ORIGIN, U, V)
    assert len(regions) == 8
    assert len(regions.vertices) == 9
    assert regions.area.tolist() == pytest.approx([0.5] * 8, abs=1e-14)
    holds(model, regions)
    # A grid of lines s = k / 2 and t = k / 2, the outer ones along the border of the box.
    shifts = [k / 2 for k in range(-2, 3)]
    model = linear_net([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5, shifts * 2)
    regions = slice_regions(model, ORIGIN, U, V)
    assert (len(regions), len(regions.vertices), len(regions.neighbours)) == (16, 25, 24)
    assert regions.area.tolist() == [0.25] * 16
    holds(model, regions)


def test_a_unit_that_is_0_everywhere_on_the_plane_is_off_and_cuts_nothing():
    model = linear_net([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]], [0.0, 0.0, 1.0])
    regions = slice_regions(model, ORIGIN, U, V)
    assert sorted(regions.pattern.tolist()) == [[0, 0, 1], [0, 1, 1]]
    holds(model, regions)
    # A switch at 0 on a whole polygon, since the one before it is off there.
    deeper = nn.Sequential(linear_net([[1.0, 0.0]], [0.0]), nn.ReLU()).double()
    assert sorted(slice_regions(deeper, ORIGIN, U, V).pattern.tolist()) == [[0, 0], [1, 1]]
    # Clamps at a bound, and maxima of equal arguments, choose as everywhere.
    clamp = slice_regions(lambda x: F.hardtanh(F.relu(x[:, :1]), 0.0, 1.0), ORIGIN, U, V)
    assert sorted(clamp.pattern.tolist()) == [[0, 0], [1, 1]]
    top = slice_regions(lambda x: F.hardtanh(-F.relu(x[:, :1]), -1.0, 0.0), ORIGIN, U, V)
    assert sorted(top.pattern.tolist()) == [[0, 2], [1, 1]]
    same = slice_regions(lambda x: torch.stack([x[:, 0], x[:, 0], x[:, 1], x[:, 1]], 1).amax(1), ORIGIN, U, V)
    assert sorted(same.pattern.flatten().tolist()) == [0, 2]


@pytest.mark.parametrize("shift", [0.0, 1.0, -1.0])
def test_a_line_along_the_border_of_the_box_cuts_nothing(shift):
    model = linear_net([[1.0, 0.0], [0.0, 1.0]], [shift, shift])
    assert len(slice_regions(model, ORIGIN, U, V, box=(-1, 1))) == (4 if shift == 0 else 1)
    corner = slice_regions(linear_net([[1.0, 1.0]], [2.0]), ORIGIN, U, V)  # through one corner of it
    assert len(corner) == 1


def test_a_model_that_does_not_depend_on_the_plane_has_one_region():
    model = seeded(lambda: mlp(4, 5, 2))
    with torch.no_grad():
        model[0].weight[:, 2:] = 0
    u, v = torch.eye(4, dtype=D)[2:]
    for net in (model, lambda x: torch.ones(x.shape[0], 2, dtype=D), lambda x: torch.ones(x.shape[0], 2)):
        regions = slice_regions(net, torch.ones(4, dtype=D), u, v)
        assert regions.counts == (1, 1, 1)
        assert regions.area.tolist() == [4.0]
        assert not regions.slope.any()
        assert regions.neighbours.shape == (0, 2)
        assert not regions.A[:, :, 2:].any()
        torch.testing.assert_close(regions.offset[0], net(torch.ones(1, 4, dtype=D))[0].double())


# --- the three counts ---


@pytest.mark.theorem("prop-three-counts")
def test_units_that_cancel_make_patterns_and_no_maps():
    # Six lines through the origin. On three of them a unit and its mirror image add up to an affine function.
    angles = [k * math.pi / 6 + 0.1 for k in range(6)]
    rows = [[math.cos(a), math.sin(a)] for a in angles]
    model = linear_net(
        rows + [[-a, -b] for a, b in rows[3:]], [0.0] * 9, [1.0, 2.0, 4.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0]
    )
    assert slice_regions(model, ORIGIN, U, V).counts == RegionCounts(12, 6, 6)
    # Duplicated units: two patterns fewer than one would think, since both switch at once.
    twice = linear_net(rows[:3] + rows[:3], [0.0] * 6)
    assert slice_regions(twice, ORIGIN, U, V).counts == RegionCounts(6, 6, 6)


@pytest.mark.theorem("prop-three-counts")
def test_maps_are_the_same_up_to_rounding_and_no_further():
    # 0.1 + 0.2 is not 0.3: the unit and its mirror image cancel but for the last digit.
    rounded = linear_net([[0.7, 0.2], [-0.7, -0.2]], [0.1, -0.1], [0.3, -(0.1 + 0.2)])
    assert slice_regions(rounded, ORIGIN, U, V).counts == RegionCounts(2, 1, 1)
    for step in (1e-3, 1e-8):
        different = linear_net([[0.7, 0.2], [-0.7, -0.2]], [0.1, -0.1], [0.3, -0.3 + step])
        assert slice_regions(different, ORIGIN, U, V).counts == RegionCounts(2, 2, 2)


def test_an_output_that_cancels_but_for_rounding_is_one_map(monkeypatch):
    weight, bias = torch.randn(12, 2, dtype=D), torch.randn(12, dtype=D)

    def zero(x):
        h = F.relu(F.linear(x, weight, bias))
        return 0.1 * h.sum(1) - (0.1 * h.flip(1)).sum(1)

    for most in (2**27, 200):
        monkeypatch.setattr(regions_module, "_NUMBERS_OF_A_CUT", most)  # whole, and in parts
        regions = slice_regions(zero, ORIGIN, U, V)
        assert regions.counts == RegionCounts(len(regions), 1, 1)
        assert len(regions) > 12


def test_maps_that_a_mixture_of_their_numbers_does_not_tell_apart_are_several():
    mixture = np.random.default_rng(0).uniform(0.5, 1, 2)
    rows = np.array([[1 / mixture[0], 0], [0, 1 / mixture[1]], [1 / mixture[0], 0]])
    assert regions_module._clusters(rows, 1e-9).tolist() == [0, 1, 0]


@pytest.mark.theorem("prop-three-counts")
def test_pieces_far_apart_may_carry_one_map():
    hat = linear_net([[1.0, 0.0]] * 3, [0.5, 0.0, -0.5], [1.0, -2.0, 1.0])
    regions = slice_regions(hat, ORIGIN, U, V)
    assert regions.counts == RegionCounts(activation_patterns=4, affine_maps=3, connected_pieces=4)
    outer = regions.find(torch.tensor([[-0.9, 0.0], [0.9, 0.3]]))
    assert outer[0] != outer[1]
    assert regions.affine_map[outer[0]] == regions.affine_map[outer[1]]
    assert regions.connected_piece[outer[0]] != regions.connected_piece[outer[1]]


@pytest.mark.theorem("prop-three-counts")
def test_pooling_hides_the_switches_of_units_that_do_not_win():
    model = lambda x: F.max_pool1d(F.relu(x @ MIX)[:, None] + SHIFT, 3)[:, 0]
    regions = slice_regions(model, ORIGIN, U, V)
    counts = regions.counts
    assert counts.activation_patterns > counts.connected_pieces >= counts.affine_maps > 1
    holds(model, regions)
    # The maps by brute force, from every polygon's own.
    rows = torch.cat([regions.slope.flatten(1), regions.offset], 1).mul(1e6).round().unique(dim=0)
    assert counts.affine_maps == len(rows)


MIX = torch.tensor([[1.0, -2.0, 0.5, 1.5, -1.0, 0.25], [0.5, 1.0, -1.5, 1.0, 2.0, -0.75]], dtype=D)
SHIFT = torch.tensor([0.1, 0.2, 0.4, 0.0, 0.3, 0.15], dtype=D)


@pytest.mark.theorem("thm-zaslavsky")
@settings(max_examples=5)
@given(st.integers(0, 2**31 - 1), st.integers(0, 9))
def test_one_layer_cuts_no_more_regions_than_zaslavsky_allows_and_as_many_on_a_large_box(seed, units):
    model = seeded(lambda: nn.Sequential(nn.Linear(2, max(units, 1)), nn.ReLU()), seed)
    if not units:
        model = nn.Sequential(nn.Identity())
    assert len(slice_regions(model, ORIGIN, U, V)) <= zaslavsky_bound(units, 2)
    # In general position all vertices of the lines lie in a box that is large enough.
    assert len(slice_regions(model, ORIGIN, U, V, box=(-1e6, 1e6))) in (
        zaslavsky_bound(units, 2),
        *range(zaslavsky_bound(units, 2) - units, zaslavsky_bound(units, 2)),
    )


# --- maps and numbers ---


def test_b_keeps_its_digits_where_the_input_is_large():
    model = seeded(lambda: mlp(40, 24, 24, 1), 5).float()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(math.sqrt(6))  # He's size
    exact = copy.deepcopy(model).double()
    origin, u, v = (1e4 * part for part in plane(40, seed=2))
    regions = slice_regions(model, origin.float(), u.float(), v.float())
    x = regions.input(regions.centroid)
    truth = affine_piece(exact, x)
    scale = float(truth.b.abs().max())
    assert float((regions.b - truth.b).abs().max()) <= 1e-9 * scale
    # In float32 a frozen forward pass at 0 keeps them too, and the difference f(x) - A x does not.
    piece = affine_piece(model, x.float())
    same = (activation_pattern(model, x.float()) == regions.pattern).all(1)
    assert float((piece.b - truth.b)[same].abs().max()) <= 1e-6 * scale
    naive = model(x.float()) - torch.einsum("bmn,bn->bm", piece.A, x.float())
    assert float((naive - truth.b)[same].detach().abs().max()) > 3e-3 * scale


def test_slope_and_offset_are_the_map_of_the_plane():
    model = seeded(lambda: mlp(5, 8, 8, 3), 1)
    origin, u, v = plane(5)
    regions = slice_regions(model, origin, u, v, box=((0.5, 3), (-4, -0.5)))
    torch.testing.assert_close(regions.slope, regions.A @ torch.stack([u, v], 1))
    torch.testing.assert_close(regions.offset, regions.A @ origin + regions.b)
    assert (regions.A.shape, regions.b.shape) == ((len(regions), 3, 5), (len(regions), 3))
    some = regions.piece([2, 0])
    torch.testing.assert_close(some.A, regions.A[[2, 0]], rtol=0, atol=0)
    torch.testing.assert_close(some.b, regions.b[[2, 0]], rtol=0, atol=0)


def test_chunks_do_not_change_the_maps(monkeypatch):
    model = seeded(lambda: mlp(2, 8, 8, 2), 2)
    whole = slice_regions(model, ORIGIN, U, V)
    monkeypatch.setattr(regions_module, "_NUMBERS_AT_ONCE", 150)
    parts = slice_regions(model, ORIGIN, U, V)
    for name in ("A", "b", "slope", "offset"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-13, atol=1e-13)


def test_finding_gives_minus_1_outside_and_a_polygon_at_each_vertex_and_edge():
    model = seeded(lambda: mlp(2, 9, 9, 1), 4)
    regions = slice_regions(model, ORIGIN, U, V, box=((-1, 2), (0, 0.5)))
    points = torch.tensor([[-1.001, 0.2], [0.0, 0.6], [2.0, 0.5], [math.nan, 0.0], [-1.0, 0.0]])
    assert (regions.find(points) < 0).tolist() == [True, True, False, True, False]
    start, number = regions.corners
    for i, vertex in zip(regions.find(regions.vertices).tolist(), regions.vertices, strict=True):
        assert float((regions.vertices[number[start[i] : start[i + 1]]] - vertex).abs().amax(1).min()) < 1e-9
    assert torch.equal(regions.find(regions.centroid), torch.arange(len(regions)))
    assert regions.find(torch.zeros(0, 2)).shape == (0,)


def test_scale_and_place_of_the_plane_do_not_change_the_regions():
    model = seeded(lambda: mlp(2, 7, 7, 1), 6)
    here = slice_regions(model, ORIGIN, U, V)
    for factor in (1e-9, 1e9):
        there = slice_regions(model, ORIGIN, U / factor, V / factor, box=(-factor, factor))
        assert there.counts == here.counts
        torch.testing.assert_close(there.area.sort().values / factor**2, here.area.sort().values)
    far = slice_regions(model, torch.tensor([-500.0, 200.0], dtype=D), U, V, box=((499, 501), (-201, -199)))
    assert far.counts == here.counts
    torch.testing.assert_close(far.area.sort().values, here.area.sort().values, rtol=1e-6, atol=1e-9)


# --- how models are run ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_model_of_a_coarser_dtype_is_run_in_float64_with_its_own_weights(dtype):
    model = seeded(lambda: nn.Sequential(Residual(3), mlp(3, 4, 2))).to(dtype)
    exact = copy.deepcopy(model).double()
    before = copy.deepcopy(model.state_dict())
    origin, u, v = plane(3)
    regions = slice_regions(model, origin.to(dtype), u, v)
    holds(exact, regions)
    same = slice_regions(exact, origin.to(dtype), u, v)
    assert torch.equal(same.vertices, regions.vertices)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(model.parameters()).dtype == dtype
    assert regions.A.dtype == regions.slope.dtype == regions.values.dtype == D


def test_casts_and_float32_constants_inside_a_model_round_nothing():
    scale = torch.tensor([[1.0, 0.1]])

    class Casts(nn.Module):
        def forward(self, x):
            h = F.relu(x.float() @ torch.eye(2) + scale).half()
            return F.relu(h.to(torch.float32) - torch.full((x.shape[0], 2), 0.7))

    def exact(x):
        return F.relu(F.relu(x + scale.double()) - torch.full((2,), 0.7).double())

    model, truth = slice_regions(Casts(), ORIGIN, U, V), slice_regions(exact, ORIGIN, U, V)
    torch.testing.assert_close(model.area, truth.area, rtol=1e-12, atol=0)
    torch.testing.assert_close(model.b, truth.b, rtol=1e-12, atol=1e-15)

    class Rounds(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = torch.zeros(4, 2)

        def forward(self, x):
            return self.kept.zero_().copy_(F.relu(x[:4]))

    with pytest.raises(ValueError, match=r"the model \(Rounds\) applies copy_, which rounds to torch.float32"):
        slice_regions(Rounds(), ORIGIN, U, V)


def test_what_is_done_to_the_model_later_is_not_seen():
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)))
    now, regions = slice_regions(model, ORIGIN, U, V), slice_regions(model, ORIGIN, U, V)
    A = now.A
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model.train()
    assert torch.equal(regions.A, A)
    assert model[1].training
    assert model.training


def test_a_model_of_views_hooks_and_no_gradients_is_left_untouched():
    model = seeded(lambda: mlp(2, 5, 1)).requires_grad_(False)
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    state = torch.random.get_rng_state()
    with torch.no_grad():
        regions = slice_regions(model, ORIGIN, U, V)
        assert regions.A.shape == (len(regions), 1, 2)
    with torch.inference_mode():
        inside = slice_regions(model, ORIGIN.clone(), U.clone(), V.clone())
        torch.testing.assert_close(inside.b, regions.b)
    assert calls
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not regions.A.requires_grad
    assert model[0].weight.grad is None


def test_outputs_of_no_and_of_several_dimensions_are_flattened():
    scalar = slice_regions(lambda x: F.relu(x).sum(1), ORIGIN, U, V)
    assert (scalar.slope.shape, scalar.A.shape) == ((4, 1, 2), (4, 1, 2))
    square = slice_regions(lambda x: F.relu(x)[:, :, None] * torch.ones(1, 1, 3, dtype=D), ORIGIN, U, V)
    assert square.offset.shape == (4, 6)
    nothing = slice_regions(lambda x: F.relu(x)[:, :0], ORIGIN, U, V)
    assert (nothing.A.shape, nothing.counts) == ((4, 0, 2), (4, 1, 1))


def test_a_model_in_training_mode_is_refused_for_its_batch_norm_alone():
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.BatchNorm1d(3))).train()
    with pytest.raises(ValueError, match=r"module '2' \(BatchNorm1d\) applies batch_norm in training mode"):
        slice_regions(model, ORIGIN, U, V)
    assert len(slice_regions(model[:2], ORIGIN, U, V)) > 1


# --- refusals ---


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.Tanh()), r"model is not piecewise linear: module '1' \(Tanh\) applies tanh"),
        (
            nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.ReLU(), nn.Softmax(1)),
            r"module '1' .GELU. applies gelu; module '3' .Softmax.",
        ),
        (nn.Sequential(nn.LayerNorm(2), nn.ReLU()), r"module '0' \(LayerNorm\) applies layer_norm"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train(),
            r"module '1' \(Dropout\) applies dropout in training mode",
        ),
        (lambda x: x * x, r"the model \(function\) applies mul to two tensors"),
        (lambda x: x if x.sum() > 0 else -x, r"applies gt"),
        (
            lambda x: F.relu(x.reshape(-1)).reshape(-1, 2),
            r"applies relu to a tensor of shape \(8,\), not one row for each sample",
        ),
        (lambda x: x - x.mean(0), r"model must be a fixed function of each sample alone"),
        (lambda x: F.relu(x).flip(0), r"model must be a fixed function of each sample alone"),
        (lambda x: F.relu(x).sum(), r"model must return one output for each of the \d+ samples, got shape \(\)"),
        (lambda x: F.relu(x)[:3], r"model must return one output for each of the \d+ samples, got shape \(3, 2\)"),
        (lambda x: F.relu(x / 0), r"model must be finite on the whole box"),
        (lambda x: F.relu(x * 1e200) * 1e200, r"model must be finite on the whole box"),
    ],
)
def test_everything_else_is_refused_by_name(model, message):
    if isinstance(model, nn.Module):
        model = model.double()
    with pytest.raises(ValueError, match=message):
        slice_regions(model, ORIGIN, U, V)


def test_the_error_of_a_model_is_its_own():
    def broken(x):
        raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        slice_regions(broken, ORIGIN, U, V)
    with pytest.raises(TypeError, match="model must return one tensor, got tuple"):
        slice_regions(lambda x: (x, x), ORIGIN, U, V)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        slice_regions(seeded(lambda: mlp(3, 2)), ORIGIN, U, V)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be a module or a function of one tensor, got int"),
        ({"origin": [0.0, 0.0]}, TypeError, "origin must be a torch tensor, got list"),
        ({"u": torch.tensor([1, 0])}, TypeError, "u must be floating point, got torch.int64"),
        ({"v": torch.zeros(1, 2)}, ValueError, r"v must have the shape of origin, \(2,\), got \(1, 2\)"),
        ({"origin": torch.tensor([math.nan, 0.0])}, ValueError, "origin must be finite, got NaN or an infinity"),
        ({"u": torch.zeros(2)}, ValueError, "u must not be 0"),
        ({"v": torch.zeros(2)}, ValueError, "v must not be 0"),
        ({"v": -3 * U}, ValueError, "u and v must span a plane, but v is a multiple of u"),
        ({"box": 1.0}, ValueError, r"box must be \(low, high\) or .* got 1.0"),
        ({"box": (1.0, 2.0, 3.0)}, ValueError, r"box must be \(low, high\)"),
        ({"box": ((0.0, 1.0), 1.0)}, ValueError, r"box must be \(low, high\)"),
        ({"box": ("a", "b")}, TypeError, "box must be a number, got str"),
        ({"box": (0.0, math.inf)}, ValueError, "box must be a finite number, got inf"),
        ({"box": (1.0, 1.0)}, ValueError, r"box must have each low below its high, got \(1.0, 1.0\)"),
        ({"box": ((0.0, 1.0), (2.0, 1.0))}, ValueError, "box must have each low below its high"),
    ],
)
def test_bad_input_is_named(change, error, message):
    words = {"model": nn.ReLU(), "origin": ORIGIN, "u": U, "v": V, "box": (-1.0, 1.0), **change}
    with pytest.raises(error, match=message):
        slice_regions(**words)


def test_directions_that_are_multiples_but_for_rounding_span_no_plane():
    u = torch.tensor([0.1, 0.7, 0.3], dtype=D)
    with pytest.raises(ValueError, match="v is a multiple of u"):
        slice_regions(torch.relu, torch.zeros(3, dtype=D), u, 0.3 * u + 0.4 * u)
    near = u + torch.tensor([1e-9, 0, 0], dtype=D)
    assert len(slice_regions(torch.relu, torch.zeros(3, dtype=D), u, near)) > 1


def test_bad_points_and_numbers_are_named():
    regions = slice_regions(torch.relu, ORIGIN, U, V)
    with pytest.raises(ValueError, match=r"points must have shape \(P, 2\), got \(2,\)"):
        regions.find(torch.zeros(2))
    with pytest.raises(TypeError, match="points must be floating point"):
        regions.input(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"polygons must be numbers from 0 to 3, got \[4\]"):
        regions.piece([4])
    with pytest.raises(TypeError, match=r"polygons must be a row of whole numbers, got torch\.float32"):
        regions.piece([0.5])
    with pytest.raises(ValueError, match="color must be one of 'slope'"):
        regions.plot(color="red")
    with pytest.raises(ValueError, match="output must be a number below the 2 outputs of the model, got 2"):
        regions.plot(output=2)


def test_the_repr_says_how_many_and_where():
    regions = slice_regions(nn.Flatten(), *plane(1, 2, 3), box=((0, 1), (-2, 0.5)))
    assert repr(regions) == "Regions(1 activation pattern on [0, 1] x [-2, 0.5], 6 -> 6)"
    assert len(regions) == 1


# --- drawing ---


@pytest.mark.parametrize("color", ["slope", "pattern", "map", "piece", "value", "none"])
def test_a_plot_has_one_path_for_each_polygon(color):
    regions = slice_regions(seeded(lambda: mlp(2, 5, 5, 2)), ORIGIN, U, V)
    figure, ax = plt.subplots()
    assert regions.plot(ax, color, output=1) is ax
    (collection,) = ax.collections
    assert len(collection.get_paths()) == len(regions)
    assert ax.get_xlim() == (-1, 1)
    colours = collection.get_facecolor()
    assert len(colours) == (0 if color == "none" else len(regions))
    plt.close(figure)


def test_the_colours_of_a_plot_tell_maps_and_slopes_apart():
    hat = slice_regions(linear_net([[1.0, 0.0]] * 3, [0.5, 0.0, -0.5], [1.0, -2.0, 1.0]), ORIGIN, U, V)
    for color, different in (("slope", 3), ("pattern", 4), ("map", 3), ("piece", 4)):
        ax = hat.plot(color=color)
        colours = ax.collections[0].get_facecolor()
        assert len(np.unique(colours, axis=0)) == different
        plt.close(ax.figure)
    flat = hat.slope.abs().amax((1, 2)) == 0
    grey = hat.plot().collections[0].get_facecolor()[flat.numpy()]
    assert (grey[:, 0] == grey[:, 1]).all()
    plt.close("all")


def test_the_surface_has_one_facet_for_each_polygon():
    regions = slice_regions(seeded(lambda: mlp(2, 4, 1)), ORIGIN, U, V)
    figure = plt.figure()
    facets = plot.draw_surface(regions, figure.add_subplot(projection="3d"))
    figure.canvas.draw()
    assert len(facets.get_facecolor()) == len(regions)
    plt.close(figure)
    constant = slice_regions(lambda x: 0 * x[:, :1] + 2, ORIGIN, U, V)
    figure = plt.figure()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot.draw_surface(constant, figure.add_subplot(projection="3d"))
    plt.close(figure)
