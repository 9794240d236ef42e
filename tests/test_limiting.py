"""Limiting gradients and Clarke's set: against the gradients of the pieces around a kink, found by brute force."""

from __future__ import annotations

import copy
import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pwl_lib import _limiting, functional
from pwl_lib.subgradients import (
    ConvexHull,
    clarke_vertices,
    descent_direction,
    is_subgradient,
    least_norm_subgradient,
    limiting_gradient,
)

D = torch.float64
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
NAN, INF = float("nan"), float("inf")
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole(*shape: int, size: int = 2, rng: torch.Generator) -> Tensor:
    return torch.randint(-size, size + 1, shape, generator=rng).to(D)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=draw(seed))


# Each gives its output for one number or a group of four, and where it has kinks.
KINDS = {
    "relu": (torch.relu, [0.0]),
    "leaky": (lambda z: F.leaky_relu(z, 0.25), [0.0]),
    "abs": (torch.abs, [0.0]),
    "hardtanh": (F.hardtanh, [-1.0, 1.0]),
    "relu6": (F.relu6, [0.0, 6.0]),
    "clamp": (lambda z: z.clamp(-2, 1), [-2.0, 1.0]),
    "pool": (lambda z: F.max_pool1d(z[:, None], 2, 1)[:, 0], None),
    "relu and pool": (lambda z: F.max_pool1d(torch.relu(z)[:, None], 3, 2, 1)[:, 0], [0.0]),
    "groups": (lambda z: z.unflatten(1, (2, -1)).amax(2), None),
    "minimum": (lambda z: torch.minimum(z[:, :3], z[:, 3:]), None),
}


class Planted(nn.Module):
    """A net of whole numbers with many exact ties at ``x``, in every layer."""

    def __init__(self, kinds: tuple[str, ...], x: Tensor, seed: int, width: int = 6) -> None:
        super().__init__()
        rng = draw(seed)
        self.kinds, self.layers = kinds, nn.ParameterList()
        h = x[None]
        for kind in kinds:
            W = whole(width, h.shape[1], rng=rng)
            W[1], W[2] = W[0], -W[0]  # two equal rows and an opposite one: their slopes cancel in the next layer
            b = -(h[0] @ W.T)
            kinks = KINDS[kind][1]
            if kinks is None:
                b += whole(1, size=1, rng=rng)  # all equal, but for those moved below
            else:
                b += torch.tensor(kinks, dtype=D)[torch.randint(len(kinks), (width,), generator=rng)]
            free = torch.rand(width, generator=rng) < 0.25
            b[free] += whole(width, size=3, rng=rng)[free]
            self.layers += [nn.Parameter(W), nn.Parameter(b)]
            h = KINDS[kind][0](F.linear(h, W, b))
        self.layers.append(nn.Parameter(whole(1, h.shape[1], rng=rng)))

    def forward(self, x: Tensor) -> Tensor:
        for kind, W, b in zip(self.kinds, self.layers[::2], self.layers[1::2]):
            x = KINDS[kind][0](F.linear(x, W, b))
        return F.linear(x, self.layers[-1])[:, 0]

    def reach(self) -> float:
        """Within this distance of x there is no kink but those through x: numbers that are not tied differ by 1 or more."""
        slope = math.prod(float(torch.linalg.matrix_norm(W.detach(), torch.inf)) for W in self.layers[:-1:2])
        return 0.1 / max(1.0, slope)


def aside(n: int, count: int) -> Tensor:
    """Directions to all sides: evenly spaced in the plane, random in space."""
    if n > 2:
        return F.normalize(randn(count, n, seed=0), dim=1)
    angle = 2 * math.pi * (torch.arange(count, dtype=D) + 0.37) / count
    return torch.stack([angle.cos(), angle.sin()], 1)


def around(net, x: Tensor, reach: float, count: int = 500) -> Tensor:
    """The gradients at points near x on all sides, where autograd is right; duplicates taken out."""
    near = (x + reach * aside(len(x), count)).requires_grad_()
    (gradients,) = torch.autograd.grad(net(near).sum(), near)
    return torch.unique(gradients.round(decimals=6), dim=0)


def among(g: Tensor, gradients: Tensor) -> bool:
    return bool((gradients - g).flatten(1).abs().amax(1).lt(1e-5).any())


@functools.cache
def planted(index: int) -> tuple[Planted, Tensor]:
    """The nets of the tests: every kind alone, every pair of kinds, and three layers."""
    names = [
        *((k,) for k in KINDS),
        *itertools.product(KINDS, repeat=2),
        *itertools.permutations(["relu", "abs", "pool"]),
    ]
    x = whole(3 if index % 4 == 3 else 2, rng=draw(index))
    return Planted(names[index % len(names)], x, index), x


@functools.cache
def pieces_around(index: int) -> Tensor:
    net, x = planted(index)
    return around(net, x, net.reach())


@functools.cache
def all_gradients(index: int) -> Tensor:
    return clarke_vertices(*planted(index))


def touches(g: Tensor, index: int) -> bool:
    """Whether g is the gradient of a piece nearby; thin pieces take more points to be found."""
    net, x = planted(index)
    return among(g, pieces_around(index)) or among(g, around(net, x, net.reach(), 50_000))


NETS = range(240)


@pytest.mark.theorem("thm-limiting-gradient")
def test_on_240_nets_with_planted_kinks_it_is_the_gradient_of_a_piece_nearby():
    wrong = []
    for index in NETS:
        net, x = planted(index)
        g = limiting_gradient(net, x[None])[0]
        assert touches(g, index), (index, net.kinds, g)
        leaf = x[None].clone().requires_grad_()
        wrong.append(not among(torch.autograd.grad(net(leaf).sum(), leaf)[0][0], pieces_around(index)))
    assert sum(wrong) > 60  # where autograd is wrong, so that the test tells the two apart


@pytest.mark.theorem("thm-limiting-gradient")
def test_its_product_with_a_direction_is_the_derivative_in_that_direction():
    for index in NETS[::3]:
        net, x = planted(index)
        for v in (randn(len(x), seed=index), whole(len(x), rng=draw(index + 1)), torch.eye(len(x), dtype=D)[0]):
            g = limiting_gradient(net, x[None], v)[0]
            step = net.reach() / max(1.0, float(v.norm()))
            slope = (net((x + step * v)[None]) - net(x[None])) / step
            assert torch.isclose(g @ v, slope.squeeze(), atol=1e-8), (index, net.kinds, v)


@pytest.mark.theorem("prop-generic-direction")
def test_a_direction_in_a_fold_is_no_danger_for_a_second_one_breaks_what_it_leaves():
    for index in NETS[::4]:
        net, x = planted(index)
        with torch.no_grad():
            row = net.layers[0][0]  # the first unit is tied at x, and stays so along its own kink
        v = torch.stack([-row[1], row[0], *[torch.zeros((), dtype=D)] * (len(x) - 2)])
        for direction in (v, -v, 0 * v):
            assert touches(limiting_gradient(net, x[None], direction)[0], index), (index, net.kinds, direction)


@pytest.mark.theorem("prop-generic-direction")
@settings(max_examples=15, deadline=None)
@given(seeds)
def test_a_random_direction_leaves_no_tie_but_between_functions_that_are_equal_near_by(seed):
    net, x = planted(seed % 240)
    frozen = _limiting._AlongDirections(net, with_margins=True, asks=True)
    leaf = x[None].clone().requires_grad_()
    frozen.along(leaf, randn(1, len(x), seed=seed))
    margins = frozen.margins(leaf)[0]
    tied = (margins == 0).nonzero().flatten().tolist()
    slopes = [torch.autograd.grad(margins[i], leaf, retain_graph=True, allow_unused=True)[0] for i in tied]
    beside = torch.cat([frozen._beside[switch.margin].flatten() for switch in frozen.switches])[tied]
    for slope, number in zip(slopes, beside):
        zero = slope is None or not bool(slope.any())
        assert number.abs() < 1e-9 if zero else number > 0


def test_programs_that_compute_x_have_the_gradient_1_at_0():
    r = torch.relu
    programs = [
        lambda x: r(x) - r(-x),
        lambda x: r(r(x)) - r(-x),
        lambda x: 10 * x - 9 * (r(x) - r(-x)),
        lambda x: x.clamp(min=0) + x.clamp(max=0),
        lambda x: torch.maximum(x, 0 * x) + torch.minimum(x, 0 * x),
        lambda x: (x + x.abs()) / 2 + (x - x.abs()) / 2,
        lambda x: r(x) + x.abs() - r(-x) - torch.maximum(x, -x),
        lambda x: torch.stack([x, x, x + r(x - x)], 1).amax(1),
        lambda x: F.leaky_relu(F.leaky_relu(x, 0.5), 2.0),
    ]
    zero = torch.zeros(2, dtype=D)
    for program in programs:
        assert torch.equal(program(zero), zero)
        for direction in (None, torch.tensor(1.0), torch.tensor(-1.0), torch.tensor(0.0)):
            assert torch.equal(limiting_gradient(program, zero, direction), torch.ones(2, dtype=D))


def test_nested_ties_whose_slopes_cancel():
    def net(x):
        a, b = torch.relu(x[:, 0]), torch.relu(-x[:, 0])
        tie = torch.relu(a - b - x[:, 0])  # relu(0), everywhere
        return torch.relu(a - x[:, 1]) + 3 * tie + torch.relu(tie)

    found = clarke_vertices(net, torch.zeros(2, dtype=D)).tolist()
    assert sorted(found) == [[0.0, -1.0], [0.0, 0.0], [1.0, -1.0]]
    for seed in range(20):
        assert limiting_gradient(net, torch.zeros(1, 2, dtype=D), randn(2, seed=seed))[0].tolist() in found


@pytest.mark.parametrize(("at", "slopes"), [(-1.0, {0.0, 1.0}), (1.0, {0.0, 1.0}), (0.0, {1.0}), (2.0, {0.0})])
def test_clamps_at_both_bounds_and_between(at, slopes):
    for f in (F.hardtanh, lambda x: x.clamp(-1, 1), lambda x: torch.clamp(x, torch.tensor(-1.0), torch.tensor(1.0))):
        x = torch.tensor(at, dtype=D)
        assert set(clarke_vertices(f, x).tolist()) == slopes
        left, right = (limiting_gradient(f, x[None], torch.tensor(d)).item() for d in (-1.0, 1.0))
        assert {left, right} == slopes
        if len(slopes) == 2:
            assert right == (at < 0)


def test_a_clamp_between_equal_bounds_is_constant():
    assert clarke_vertices(lambda x: x.clamp(1, 1), torch.tensor(1.0)).tolist() == [0.0]


def test_maxout_and_pooling_of_images_at_ties():
    x = torch.zeros(1, 1, 4, 4, dtype=D)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False, dtype=D), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(1))
    net = nn.Sequential(net, nn.Linear(8, 1, bias=False, dtype=D))
    g = limiting_gradient(net, x)
    near = (1e-3 * randn(3000, 1, 4, 4, seed=0)).requires_grad_()
    near = (torch.cat([_limiting._generic(x) * 1e-3, near.detach()])).requires_grad_()
    (gradients,) = torch.autograd.grad(net(near).sum(), near)
    assert torch.allclose(g[0], gradients[0])
    assert net(x) == 0

    weight, bias = whole(6, 2, rng=draw(3)), torch.zeros(6, dtype=D)
    maxout = lambda x: functional.maxout(x, weight, bias, 3).sum(1)
    hull = clarke_vertices(maxout, torch.zeros(2, dtype=D))
    assert {tuple(g) for g in hull.tolist()} == {
        tuple(g) for g in around(maxout, torch.zeros(2, dtype=D), 1.0).tolist()
    }


def test_away_from_kinks_it_is_the_gradient_of_autograd():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)),
        *(nn.Conv2d(4, 4, 3), nn.LeakyReLU(), nn.AdaptiveMaxPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(16, 3)),
    )
    net = net.eval().to(D)
    x = randn(5, 2, 9, 9, seed=1)
    for output in (0, 2, -1):
        leaf = x.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(net(leaf)[:, output].sum(), leaf)
        assert torch.allclose(limiting_gradient(net, x, output=output), wanted)
    one = clarke_vertices(net, x[0], output=1)
    assert one.shape == (1, 2, 9, 9)
    assert torch.allclose(one, limiting_gradient(net, x[:1], output=1))


def test_each_input_of_a_batch_is_as_it_is_alone():
    net, x = planted(17)
    batch = torch.stack([x, x + 1, x, -x])
    together = limiting_gradient(net, batch)
    for row, g in zip(batch, together):
        assert torch.allclose(limiting_gradient(net, row[None])[0], g)
    assert limiting_gradient(net, batch[:0]).shape == (0, len(x))
    directions = randn(4, len(x), seed=0)
    alone = [limiting_gradient(net, row[None], v)[0] for row, v in zip(batch, directions)]
    assert torch.allclose(limiting_gradient(net, batch, directions), torch.stack(alone))
    assert torch.allclose(limiting_gradient(net, batch, 7 * directions), torch.stack(alone))


def test_an_output_is_named_by_an_index_of_the_shape_that_a_sample_gives():
    images = lambda x: torch.relu(x[:, :, None, None] - torch.arange(4, dtype=D).reshape(2, 2))
    x = torch.tensor([[1.0, 5.0, 0.0]], dtype=D)
    assert images(x).shape == (1, 3, 2, 2)
    assert limiting_gradient(images, x, output=(1, 1, -1)).tolist() == [[0.0, 1.0, 0.0]]
    assert limiting_gradient(images, x, output=(0, 1, 0)).tolist() == [[0.0, 0.0, 0.0]]
    for side in (0.0, 1.0):  # the first number is tied with 1
        assert limiting_gradient(images, x, torch.tensor([2 * side - 1, 0, 0], dtype=D), (0, 0, 1)).tolist() == [
            [side, 0, 0]
        ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("device", DEVICES)
def test_every_floating_point_type_and_device(dtype, device):
    for index in range(20):
        net, x = planted(index)
        g = limiting_gradient(copy.deepcopy(net).to(device, dtype), x[None].to(device, dtype))
        assert (g.dtype, g.device.type) == (dtype, device)
        assert touches(g[0].cpu().to(D), index)


def test_nothing_of_the_model_the_input_or_the_seed_is_touched():
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 1)).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.zeros(3, 2, requires_grad=True)
    state = torch.get_rng_state()
    with torch.no_grad():
        first = limiting_gradient(net, x)
    with torch.inference_mode():
        second = limiting_gradient(net, torch.zeros(3, 2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert x.grad is None
    assert not x.detach().any()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not first.requires_grad


def test_writing_in_place_is_followed_beside_as_well():
    def net(x):
        y = torch.zeros(x.shape[0], 3, dtype=x.dtype)
        y[:, 0] = x[:, 0]
        y[:, 1:].add_(x[:, 1:]).mul_(2)
        y.relu_()
        return y[:, 0] - y[:, 1] + y[:, 2] - torch.relu(-x[:, 0])

    x = torch.zeros(1, 3, dtype=D)
    for v in map(torch.tensor, itertools.product([-1.0, 1.0], repeat=3)):
        wanted = [1.0, -2.0 * (v[1] > 0), 2.0 * (v[2] > 0)]
        assert limiting_gradient(net, x, v)[0].tolist() == wanted


def test_a_switch_in_place_hides_nothing_from_the_second_direction():
    # In these one unit is tied along each direction, so that the first one is asked again when its numbers have changed.
    def net(x):
        return F.relu(torch.stack([x, 0 * x, -x], 1), inplace=True) @ torch.tensor([1.0, 1.0, -2.0], dtype=D)

    for v, slope in ((-1.0, 2.0), (1.0, 1.0)):
        assert limiting_gradient(net, torch.zeros(1, dtype=D), torch.tensor(v)).item() == slope
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(inplace=True), nn.Linear(2, 1)).to(D)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), ([[1.0], [0.0]], [0.0, 0.0], [[1.0, 1.0]], [0.0])):
            parameter.copy_(torch.tensor(value))
    for v in (-1.0, 1.0):
        assert limiting_gradient(module, torch.zeros(1, 1, dtype=D), torch.tensor([v])).item() == (v > 0)


def test_views_of_a_constant_that_is_written_into():
    def part_by_part(x):
        y = torch.zeros(x.shape[0], 2, dtype=x.dtype)
        y[:, 0].add_(x)
        part = y[:, 1]
        part.view(-1, 1).sub_(x[:, None])
        return torch.relu(y)[:, 0] + 3 * torch.relu(part)

    def taken_before(x):
        y = torch.zeros(x.shape[0], 2, dtype=x.dtype)
        part = y[:, 1]
        y[:, 0] = x
        y[:, 1] = -x
        return torch.relu(y[:, 0]) + 3 * torch.relu(part)

    for net in (part_by_part, taken_before):
        for v, slope in ((-1.0, -3.0), (1.0, 1.0)):
            assert limiting_gradient(net, torch.zeros(2, dtype=D), torch.tensor(v)).tolist() == [slope] * 2


def test_a_direction_in_a_fold_does_not_leave_it_by_rounding():
    W = torch.tensor([[-2.0, -1.0], [0.0, 2.0], [0.0, 2.0]], dtype=D)
    b = torch.tensor([0.0, -4.0, -4.0], dtype=D)

    def net(x):
        z = F.linear(x, W, b)
        z = F.max_pool2d(z[:, None, :, None] + z[:, None, None, :], 3, 2, 1).flatten(1)
        return z @ torch.tensor([-1.0, 2.0, -1.0, 2.0], dtype=D)

    x = torch.tensor([-1.0, 2.0], dtype=D)
    pieces = clarke_vertices(net, x)
    assert len(pieces) == 2
    fold = torch.tensor([-1.5, 1.0], dtype=D)  # in which all three are equal
    along = torch.arange(1, 200, dtype=D)[:, None] / 256 * fold
    for g in limiting_gradient(net, x.expand(199, 2), torch.cat([along[::2], -along[1::2]])):
        assert among(g, pieces)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_direction_shorter_or_longer_than_its_dtype_can_tell(dtype):
    net = lambda x: x[:, 0].abs() + 2 * x[:, 1].abs()
    for length in (5e-324, 1e-200, 1e-44, 1e-7, 1e7, 1e44, 1e200):
        v = torch.tensor([-1.0, 1.0], dtype=D) * length
        assert limiting_gradient(net, torch.zeros(1, 2, dtype=dtype), v).tolist() == [[-1.0, 2.0]]
    short = torch.tensor([-1.0, 1.0], dtype=dtype) * torch.finfo(dtype).smallest_normal / 4
    assert limiting_gradient(net, torch.zeros(3, 2, dtype=dtype), short).tolist() == [[-1.0, 2.0]] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_input_near_the_largest_number_of_its_dtype(dtype):
    far = torch.full((1, 2), 0.9 * torch.finfo(dtype).max, dtype=dtype)
    for v, g in (([1.0, 0.0], [1.0, -1.0]), ([0.0, 1.0], [0.0, 0.0])):
        assert limiting_gradient(lambda x: torch.relu(x[:, 0] - x[:, 1]), far, torch.tensor(v)).tolist() == [g]


def test_an_input_without_numbers_has_a_gradient_without_numbers():
    assert limiting_gradient(lambda x: x.sum(1) + 1, torch.zeros(2, 0)).shape == (2, 0)
    assert clarke_vertices(lambda x: x.sum(1) + 1, torch.zeros(0)).shape == (1, 0)


def test_an_input_far_away_and_a_direction_of_any_length_lose_nothing():
    for scale in (1.0, 2.0**20, 2.0**-20):
        for length in (1.0, 1e-200, 1e200):
            x = torch.full((1, 2), scale, dtype=D)
            net = lambda x: torch.relu(x[:, 0] - x[:, 1]) - torch.relu(x[:, 1] - x[:, 0])
            g = limiting_gradient(net, x, torch.tensor([3.0, 1.0], dtype=D) * length)
            assert g.tolist() == [[1.0, -1.0]]


# Clarke's set


def test_all_limiting_gradients_of_60_nets_are_those_of_the_pieces_around():
    several = 0
    for index in NETS[::4]:  # in the plane, where the points around find every piece
        net, x = planted(index)
        found, vertices = pieces_around(index), all_gradients(index)
        if len(vertices) != len(found):
            found = around(net, x, net.reach(), 50_000)
        assert len(vertices) == len(found), (index, net.kinds)
        assert all(among(g, found) for g in vertices)
        assert torch.allclose(vertices[0], limiting_gradient(net, x[None])[0])
        several += len(found) > 2
    assert several > 20


def test_in_space_no_piece_around_is_missing():
    for index in NETS[3::40]:
        vertices = all_gradients(index)
        assert all(among(g, vertices) for g in pieces_around(index)), index


def test_the_sets_of_functions_that_are_known():
    zero = torch.zeros(3, dtype=D)
    corners = sorted(map(list, itertools.product([-1.0, 1.0], repeat=3)))
    assert sorted(clarke_vertices(lambda x: x.abs().sum(1), zero).tolist()) == corners
    assert sorted(clarke_vertices(lambda x: x.amax(1), zero).tolist()) == torch.eye(3).flip(0).tolist()
    assert clarke_vertices(lambda x: x.sum(1), zero).tolist() == [[1.0, 1.0, 1.0]]
    assert clarke_vertices(lambda x: 0 * x.sum(1) + 1, zero).tolist() == [[0.0, 0.0, 0.0]]
    assert sorted(clarke_vertices(lambda x: torch.relu(x) - 3 * torch.relu(-x), torch.tensor(0.0)).tolist()) == [
        1.0,
        3.0,
    ]
    assert len(clarke_vertices(lambda x: x.abs().sum(1), torch.zeros(8, dtype=D))) == 256


@pytest.mark.parametrize(("dtype", "angle"), [(torch.float32, 1e-3), (D, 1e-6)])
def test_thin_pieces_and_numbers_of_small_slope_are_found(dtype, angle):
    A = torch.tensor([[1.0, 0.0], [1.0, angle], [1.0, 2 * angle]], dtype=dtype)
    thin = lambda x: torch.relu(x @ A.T) @ torch.tensor([1.0, 2.0, 4.0], dtype=dtype)
    assert len(clarke_vertices(thin, torch.zeros(2, dtype=dtype))) == 6  # three folds through a point
    small = lambda x: torch.relu(angle * x[:, 0]) / angle + torch.relu(x[:, 1])
    assert len(clarke_vertices(small, torch.zeros(2, dtype=dtype))) == 4


def test_a_maximum_of_more_candidates_than_a_byte_can_count():
    slopes = torch.arange(300, dtype=D) - 7.5
    for v in (-1.0, 1.0):
        g = limiting_gradient(lambda x: (x[:, None] * slopes).amax(1), torch.zeros(1, dtype=D), torch.tensor(v))
        assert g.item() == (291.5 if v > 0 else -7.5)


def test_too_many_pieces_are_refused(monkeypatch):
    monkeypatch.setattr(_limiting, "_MOST_CELLS", 16)
    assert len(clarke_vertices(lambda x: x.abs().sum(1), torch.zeros(4))) == 16
    with pytest.raises(
        ValueError, match="model has more than 16 affine pieces that touch x, which is too many to list"
    ):
        clarke_vertices(lambda x: x.abs().sum(1), torch.zeros(5))


def test_membership_is_that_of_the_convex_hull():
    net, zero = (lambda x: torch.relu(x).sum(1) - torch.relu(-x).sum(1) + x.amax(1)), torch.zeros(2, dtype=D)
    assert is_subgradient(net, zero, torch.tensor([1.5, 1.5], dtype=D))
    assert is_subgradient(net, zero, torch.tensor([2.0, 1.0], dtype=D))
    assert not is_subgradient(net, zero, torch.tensor([0.5, 0.5], dtype=D))
    assert not is_subgradient(net, zero, torch.tensor([2.1, 0.9], dtype=D))
    assert is_subgradient(net, zero, torch.tensor([2.1, 0.9], dtype=D), tol=0.2)
    assert is_subgradient(
        lambda x: net(x)[:, None] * torch.tensor([1.0, 2.0], dtype=D),
        zero,
        2 * limiting_gradient(net, zero[None])[0],
        output=1,
    )
    assert is_subgradient(torch.abs, torch.tensor(0.0), 0.3)


@pytest.mark.theorem("prop-clarke-descent")
def test_the_net_falls_along_minus_the_least_norm_element():
    falls = 0
    for index in NETS[::20]:
        net, x = planted(index)
        g, d = least_norm_subgradient(net, x), descent_direction(net, x)
        assert ConvexHull(all_gradients(index)).contains(g)
        if g.norm() < 1e-9:
            assert not d.any()
            continue
        falls += 1
        assert torch.allclose(d, -g / g.norm())
        step = net.reach()
        assert net((x + step * d)[None]) - net(x[None]) <= -step * g.norm() + 1e-9
    assert falls > 3


@pytest.mark.theorem("prop-clarke-descent")
def test_a_minimum_has_0_in_its_set_and_so_has_a_maximum():
    for f in (torch.abs, lambda x: -x.abs(), lambda x: x.abs() - 2 * torch.relu(x)):
        here = f(torch.zeros(1)) == 0
        assert here
        zero = is_subgradient(f, torch.tensor(0.0), torch.tensor(0.0))
        assert zero == (descent_direction(f, torch.tensor(0.0)) == 0)
    assert least_norm_subgradient(lambda x: -x.abs(), torch.tensor(0.0)) == 0
    assert descent_direction(lambda x: 3 * x, torch.tensor(5.0)) == -1


# Bouligand, Clarke and conservative fields


@pytest.mark.theorem("prop-bouligand-pieces")
@settings(max_examples=10, deadline=None)
@given(st.sampled_from(NETS[::4]))
def test_limits_of_gradients_are_the_slopes_of_the_pieces_and_there_are_finitely_many(index):
    net, x = planted(index)
    vertices = all_gradients(index)
    for shrink in (1.0, 1e-2, 1e-4):  # points that tend to x have no other gradients
        for g in around(net, x, shrink * net.reach(), 50):
            assert among(g, vertices)


def by_backprop(net: Planted, x: Tensor, share: float) -> Tensor:
    """Backprop with the slope ``share`` of the way between the slopes on both sides, at every kink of every layer."""

    class Kink(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z, kind):
            ctx.save_for_backward(z)
            ctx.kind = kind
            return KINDS[kind][0](z)

        @staticmethod
        def backward(ctx, upstream):
            (z,) = ctx.saved_tensors
            sides = []
            for side in (-1e-6, 1e-6):
                with torch.enable_grad():
                    leaf = (z + side).requires_grad_()
                    sides.append(torch.autograd.grad(KINDS[ctx.kind][0](leaf).sum(), leaf)[0])
            return upstream * (sides[0] + share * (sides[1] - sides[0])), None

    leaf = x.clone().requires_grad_()
    h = leaf
    for kind, W, b in zip(net.kinds, net.layers[::2], net.layers[1::2]):
        h = Kink.apply(F.linear(h, W, b), kind)
    return torch.autograd.grad(F.linear(h, net.layers[-1]).sum(), leaf)[0]


POINTWISE = ["relu", "leaky", "abs", "hardtanh", "clamp"]


@pytest.mark.theorem("prop-autograd-conservative")
@pytest.mark.theorem("lem-still")
@settings(max_examples=10, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.3, 1.0]))
def test_what_backprop_returns_integrates_to_the_change_of_the_function_along_curves(seed, share):
    kinds = tuple(POINTWISE[i] for i in (seed % 5, seed // 5 % 5))
    x = whole(2, rng=draw(seed))
    net = Planted(kinds, x, seed)
    # A path whose first leg runs inside the kink of the first unit, where all choices at 0 count for a positive time.
    row = net.layers[0][0].detach()
    along = torch.stack([-row[1], row[0]])
    corners = [x, x + along, x + along + randn(2, seed=seed), x]
    total = 0.0
    count = 4000
    for start, end in itertools.pairwise(corners):
        t = (torch.arange(count, dtype=D) + 0.5) / count
        points = start + t[:, None] * (end - start)
        total += (by_backprop(net, points, share) @ (end - start)).mean()
    assert abs(total) < 0.2 * (1 + net.reach() ** -1 * 0.01)
    first = x + torch.linspace(0, 1, 50, dtype=D)[:, None] * along
    rate = by_backprop(net, first, share) @ along
    change = (net(first[1:]) - net(first[:-1])) * 49
    inside = torch.isclose(rate[1:], rate[:-1])
    assert torch.allclose(change[inside], rate[1:][inside], atol=1e-6) or inside.sum() < 10


@pytest.mark.theorem("thm-conservative")
@settings(max_examples=8, deadline=None)
@given(seeds)
def test_a_conservative_field_is_the_gradient_almost_everywhere_and_its_hull_holds_clarkes_set(seed):
    kinds = tuple(POINTWISE[i] for i in (seed % 5, seed // 5 % 5))
    x = whole(2, rng=draw(seed))
    net = Planted(kinds, x, seed)
    points = x + randn(200, 2, seed=seed)
    leaf = points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf).sum(), leaf)
    for share in (0.0, 0.5, 1.0):
        assert torch.allclose(by_backprop(net, points, share), gradient)
    # By a closed graph: at points that tend to x the field holds the gradients, so at x their limits.
    vertices = clarke_vertices(net, x)
    assert all(among(g, vertices) for g in around(net, x, net.reach(), 100))


def test_backprop_can_stand_still_where_the_function_is_not_stationary():
    net = lambda x: torch.relu(x) - torch.relu(-x)
    stuck, moving = torch.zeros(1, dtype=D), torch.zeros(1, dtype=D)
    for _ in range(5):
        leaf = stuck.clone().requires_grad_()
        stuck = stuck - 0.1 * torch.autograd.grad(net(leaf).sum(), leaf)[0]
        moving = moving - 0.1 * limiting_gradient(net, moving)
    assert stuck == 0
    assert torch.allclose(moving, torch.tensor(-0.5, dtype=D))
    assert not is_subgradient(net, torch.tensor(0.0), torch.tensor(0.0))


# Bad input

X = torch.zeros(2, 3)
TWO = lambda x: torch.relu(x[:, :2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: limiting_gradient(TWO, [0.0]), TypeError, "x must be a torch tensor, got list"),
        (lambda: limiting_gradient(TWO, X.long()), TypeError, "x must be floating point, got torch.int64"),
        (lambda: limiting_gradient(TWO, X * NAN), ValueError, "x must be finite, got NaN or an infinity"),
        (lambda: limiting_gradient(torch.relu, torch.tensor(0.0)), ValueError, "x must have a batch dimension"),
        (lambda: limiting_gradient(TWO, X), ValueError, r"output must name one of the numbers .* whose shape is \(2,\)"),
        (lambda: limiting_gradient(TWO, X, output=2), ValueError, r"output must be an index .* of shape \(2,\), got 2"),
        (lambda: limiting_gradient(TWO, X, output=(0, 0)), ValueError, r"of shape \(2,\), got \(0, 0\)"),
        (lambda: limiting_gradient(TWO, X, output=True), TypeError, "output must be an int or a tuple of ints, got True"),
        (lambda: limiting_gradient(TWO, X, output="a"), TypeError, "output must be an int or a tuple of ints, got 'a'"),
        (lambda: limiting_gradient(TWO, X, X[:, :2], 0), ValueError, r"direction must .* \(2, 3\), or of one input, \(3,\), got \(2, 2\)"),
        (lambda: limiting_gradient(TWO, X, X.long(), 0), TypeError, "direction must be floating point, got torch.int64"),
        (lambda: limiting_gradient(TWO, X, X / 0, 0), ValueError, "direction must be finite, got NaN or an infinity"),
        (lambda: limiting_gradient(torch.tanh, X, output=0), ValueError, r"not piecewise linear: the model .* applies tanh"),
        (lambda: limiting_gradient(lambda x: x - x.mean(0), X, output=0), ValueError, "must be a fixed function of its own sample"),
        (lambda: clarke_vertices(torch.tanh, X[0], 0), ValueError, "applies tanh"),
        (lambda: clarke_vertices(TWO, X[0]), ValueError, "output must name one of the numbers"),
        (lambda: clarke_vertices(TWO, [0.0]), TypeError, "x must be a torch tensor, got list"),
        (lambda: clarke_vertices(TWO, X[0] + INF, 0), ValueError, "x must be finite"),
        (lambda: is_subgradient(TWO, X[0], X, output=0), ValueError, r"g must have shape \(3,\), got \(2, 3\)"),
        (lambda: is_subgradient(TWO, X[0], X[0] * NAN, output=0), ValueError, "g must be finite"),
        (lambda: is_subgradient(TWO, X[0], X[0], tol=-1, output=0), ValueError, "tol must not be negative, got -1"),
        (lambda: least_norm_subgradient(TWO, X[0].long(), 0), TypeError, "x must be floating point"),
        (lambda: descent_direction(TWO, X[0]), ValueError, "output must name one of the numbers"),
    ],
)  # fmt: skip
def test_an_error_names_the_argument_what_it_had_and_what_was_wanted(call, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        call()


def test_samples_that_mix_and_functions_that_hide_are_found_out():
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, upstream):
            return 3 * upstream * ctx.saved_tensors[0] ** 2

    x = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    for net in (
        lambda x: x[:, 0] + x.flip(0)[:, 1],
        lambda x: Hidden.apply(x).sum(1),
        lambda x: x.sum(1) + Hidden.apply(x)[:, 0],
    ):
        with pytest.raises(
            ValueError, match=r"must be a fixed function of its own sample|not piecewise linear: .* applies pow"
        ):
            limiting_gradient(net, x)
