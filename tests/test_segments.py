"""A network on a line: every breakpoint, the map of each segment, and integrals along it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pwl_lib.nn as pnn
from pwl_lib import _segments
from pwl_lib._segments import Segments, integrate_along, segments
from pwl_lib.piecewise_linear import activation_pattern, affine_piece

D = torch.float64
quick = settings(max_examples=25)
seeds = st.integers(0, 2**31 - 1)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def mlp(*widths: int, seed: int = 0, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=bias, dtype=D), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """A residual sum, a concatenation, and three kinds of switches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6, dtype=D), nn.Linear(6, 6, dtype=D)
        self.prelu, self.last = nn.PReLU(6, dtype=D), nn.Linear(12, 2, dtype=D)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.a(x), 0.1)
        h = h + F.hardtanh(self.b(h))
        return self.last(torch.cat([self.prelu(h), (h - 0.3).abs()], dim=1))


class BatchSecond(nn.Module):
    """Asks for the batch before its switches, writes in place, and works with the batch as second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 5, dtype=D), nn.Linear(5, 5, dtype=D)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        h = F.relu(self.a(x), inplace=True).reshape(batch, 5)
        h = self.b(h.t().t()).relu_()
        h += x.sum(1, keepdim=True)
        return h.abs().t().contiguous().t().sum(1).view(batch)


def image_net(pooling: type[nn.Module] = nn.MaxPool2d) -> nn.Sequential:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        pooling(2),
        nn.Conv2d(3, 4, 2),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
    norm = net[1]
    norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.0]))
    return net.eval()


def maxout_net() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(pnn.Maxout(3, 4, 3), nn.Linear(4, 4), pnn.Maxout(4, 2, 2)).double()


MODELS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(3, 8, 8, 2), (3,)),
    "residual": (Residual, (3,)),
    "batch second": (BatchSecond, (3,)),
    "max pooling": (image_net, (1, 6, 6)),
    "average pooling": (lambda: image_net(nn.AvgPool2d), (1, 6, 6)),
    "maxout": (maxout_net, (3,)),
    "function": (lambda: lambda x: F.relu6(4 * x).cumsum(1).max(1).values, (3,)),
    "affine": (lambda: nn.Linear(3, 2).double(), (3,)),
    "clamped": (lambda: lambda x: x.clamp(min=torch.tensor([-0.5, -torch.inf, 0.1])), (3,)),
}
each_model = pytest.mark.parametrize("name", MODELS)


def line_of(name: str, seed: int = 0) -> tuple[Any, Segments]:
    make, shape = MODELS[name]
    torch.manual_seed(7)
    model = make().double() if isinstance(make(), nn.Module) else make()
    return model, segments(model, 2 * randn(*shape, seed=seed), 2 * randn(*shape, seed=seed + 1))


def assert_exact(model: Any, line: Segments) -> None:
    """All that must hold of segments: order, map, continuity, pattern, and that each comparison keeps its side throughout."""
    length = line.t[1:] - line.t[:-1]
    assert line.t[0] == 0
    assert line.t[-1] == 1
    assert bool((length > 0).all())
    assert len(line) == len(line.slope) == len(line.offset) == len(line.pattern) == len(line.midpoints)
    value = model(line.input(line.t)).detach().reshape(len(line) + 1, -1)
    scale = 1 + value.abs().max() + line.slope.abs().max()
    for ends, place in (
        (value[:-1], line.t[:-1]),
        (value[1:], line.t[1:]),
    ):  # f at both ends: continuous, and no kink missed
        assert bool(((line.slope * place[:, None] + line.offset - ends).abs() <= 1e-12 * scale).all())
    assert torch.equal(line.pattern, activation_pattern(model, line.midpoints))
    for share in (1e-6, 0.37, 1 - 1e-6):  # a segment has one pattern
        inside = line.t[:-1] + share * length
        wide = length > 1e-7
        assert torch.equal(line.pattern[wide], activation_pattern(model, line.input(inside[wide])))
    assert bool((line.pattern[1:] != line.pattern[:-1]).any(1).all())  # and its neighbours others


@each_model
@pytest.mark.parametrize("seed", [0, 10])
def test_segments_are_exact(name: str, seed: int) -> None:
    model, line = line_of(name, seed)
    assert_exact(model, line)
    assert name == "affine" or len(line) > 1


@each_model
def test_the_affine_map_of_a_segment_is_the_piece_at_its_middle(name: str) -> None:
    model, line = line_of(name)
    A, b = affine_piece(model, line.midpoints)
    torch.testing.assert_close(line.A, A, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(line.b, b, rtol=1e-12, atol=1e-12)
    slope = (A @ (line.end - line.start).flatten()[:, None]).squeeze(2)
    offset = (A @ line.start.flatten()[:, None]).squeeze(2) + b
    torch.testing.assert_close(line.slope, slope, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(line.offset, offset, rtol=1e-11, atol=1e-11)


# --- an exact walk in rational numbers ---


def exact_walk(
    layers: list[tuple[Any, Any]], start: list[int], end: list[int]
) -> tuple[list[Fraction], list[Fraction]]:
    """The breakpoints of a ReLU network of whole numbers on a line, in exact arithmetic, and its values there."""
    knots = [Fraction(0), Fraction(1)]
    rows = [[Fraction(v) for v in start], [Fraction(v) for v in end]]
    for number, (W, b) in enumerate(layers):
        rows = [[sum(Fraction(w) * h for w, h in zip(line, row)) + c for line, c in zip(W, b)] for row in rows]
        if number == len(layers) - 1:
            break
        finer, values = [knots[0]], [rows[0]]
        for low, high, left, right in zip(knots, knots[1:], rows, rows[1:]):
            roots = {low + (high - low) * u / (u - v) for u, v in zip(left, right) if u * v < 0}
            for t in sorted(roots):
                share = (t - low) / (high - low)
                finer.append(t)
                values.append([u + share * (v - u) for u, v in zip(left, right)])
            finer.append(high)
            values.append(right)
        # A sign that changes at a knot is a breakpoint that is there already; a knot at which none changes is none.
        knots, rows = finer, [[max(v, Fraction(0)) for v in row] for row in values]
    return knots, [row[0] for row in rows]


@quick
@given(seeds, st.sampled_from([[2, 5, 1], [2, 4, 4, 1], [3, 3, 3, 3, 1]]), st.booleans())
def test_whole_weights_give_the_breakpoints_of_exact_arithmetic(seed: int, widths: list[int], bias: bool) -> None:
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape, generator=generator)

    layers = [(whole(b, a), whole(b) * bias) for a, b in itertools.pairwise(widths)]
    start, end = whole(widths[0]), whole(widths[0])
    if torch.equal(start, end):
        end = end + 1
    knots, values = exact_walk([(W.tolist(), b.tolist()) for W, b in layers], start.tolist(), end.tolist())

    def net(x: Tensor) -> Tensor:
        for W, b in layers[:-1]:
            x = torch.relu(F.linear(x, W.double(), b.double()))
        return F.linear(x, layers[-1][0].double(), layers[-1][1].double())

    line = segments(net, start.float(), end.float())
    torch.testing.assert_close(line.t, torch.tensor([float(t) for t in knots], dtype=D), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        line(line.t)[:, 0], torch.tensor([float(v) for v in values], dtype=D), rtol=1e-13, atol=1e-11
    )


def saw(x: Tensor, teeth: int) -> Tensor:
    kinks = torch.arange(teeth, dtype=D) / teeth
    heights = torch.where(torch.arange(teeth) % 2 == 0, 2.0, -2.0).to(D) * teeth
    heights[0] = teeth
    return torch.relu(x - kinks) @ heights[:, None]


def test_a_saw_of_a_thousand_teeth_has_each_breakpoint_where_it_belongs() -> None:
    def net(x: Tensor) -> Tensor:
        for _ in range(5):
            x = saw(x, 4)
        return x

    line = segments(net, torch.zeros(1), torch.ones(1))
    assert len(line) == 1024
    torch.testing.assert_close(line.t, torch.arange(1025, dtype=D) / 1024, rtol=0, atol=1e-15)
    torch.testing.assert_close(line.slope.abs(), torch.full((1024, 1), 1024.0, dtype=D), rtol=1e-11, atol=0)


# --- degenerate lines and networks ---


def test_a_line_along_a_kink_has_the_piece_that_a_tie_takes() -> None:
    line = segments(lambda x: torch.relu(x).sum(1), torch.tensor([0.0, -1.0]), torch.tensor([0.0, 1.0]))
    assert line.t.tolist() == [0, 0.5, 1]
    assert line.pattern.tolist() == [[0, 0], [0, 1]]
    # The same turned, so that the pre-activation is 0 only up to rounding.
    w = torch.tensor([0.1, 0.2, -0.3], dtype=D)
    along = torch.tensor([3.0, 0.0, 1.0], dtype=D)
    line = segments(lambda x: torch.relu(x @ w) + torch.relu(x[:, 0]), -along, along)
    assert line.t.tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("widths", [(2, 6, 1), (2, 6, 6, 1), (3, 5, 5, 5, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_without_biases_a_line_through_0_breaks_there_alone(widths: tuple[int, ...], seed: int) -> None:
    net, end = mlp(*widths, seed=seed, bias=False), randn(widths[0], seed=seed)
    for start, place in ((-end, 1 / 2), (-3 * end, 3 / 4), (-end / 2, 1 / 3)):
        line = segments(net, start, end)
        torch.testing.assert_close(line.t, torch.tensor([0, place, 1], dtype=D), rtol=0, atol=1e-15)
        assert_exact(net, line)
    assert len(segments(net, end, 5 * end)) == 1  # a ray keeps its pattern
    assert_exact(net, segments(net, randn(widths[0], seed=9), end))


@pytest.mark.parametrize("seed", range(3))
def test_units_that_are_there_twice_break_the_line_once(seed: int) -> None:
    net = mlp(3, 7, 5, 1, seed=seed)
    twice = mlp(3, 14, 10, 1, seed=seed)
    with torch.no_grad():
        for plain, double in ((net[0], twice[0]), (net[2], twice[2]), (net[4], twice[4])):
            rows = plain.weight.repeat(2, 1) if double is not twice[4] else plain.weight
            double.weight.copy_(rows if double is twice[0] else rows.repeat(1, 2) / 2)
            double.bias.copy_(plain.bias.repeat(2) if double is not twice[4] else plain.bias)
        twice[0].weight[7:] *= 3  # the same hyperplane, another scale
        twice[0].bias[7:] *= 3
        twice[2].weight[:, 7:] /= 3
    start, end = 2 * randn(3, seed=seed), 2 * randn(3, seed=seed + 5)
    one, other = segments(net, start, end), segments(twice, start, end)
    torch.testing.assert_close(one.t, other.t, rtol=0, atol=1e-13)
    torch.testing.assert_close(one.slope, other.slope, rtol=1e-10, atol=1e-10)


def test_switches_without_effect_make_segments_but_no_kinks() -> None:
    line = segments(
        lambda x: F.relu(x[:, 0]) - F.relu(-x[:, 0]) + F.relu(x[:, 1]), -torch.ones(2), torch.tensor([1.0, 3.0])
    )
    assert line.t.tolist() == [0, 0.25, 0.5, 1]
    assert line.kinks.tolist() == [0.25]
    assert repr(line) == "Segments(3 activation segments, 2 affine pieces on a line, 2 -> 1)"


def test_pooling_hides_switches() -> None:
    net = image_net()
    line = segments(net, 2 * randn(1, 6, 6, seed=3), 2 * randn(1, 6, 6, seed=4))
    jump = (line.A[1:] - line.A[:-1]).abs().amax((1, 2)) > 1e-9
    assert len(line.kinks) == int(jump.sum()) < len(line) - 1
    assert torch.equal(line.kinks, line.t[1:-1][jump])


def test_a_dead_network_is_one_segment() -> None:
    line = segments(lambda x: F.relu(-x.abs() - 1).sum(1) + 2, -torch.ones(3), torch.ones(3))
    assert len(line.kinks) == 0
    assert line.slope.abs().max() < 1e-15
    assert len(segments(lambda x: torch.full((len(x), 2), 3.0), torch.zeros(1), torch.ones(1))) == 1


def test_a_short_line_far_out_has_no_breakpoint_that_rounding_made() -> None:
    net = mlp(4, 30, 30, 1, seed=3)
    with torch.no_grad():
        net[0].bias.copy_(1e-4 * net[0].bias - net[0].weight.sum(1) * 1e4)  # all units kink near 1e4 (1, 1, 1, 1)
    centre = torch.full((4,), 1e4, dtype=D)
    step = 1e-3 * randn(4)
    line = segments(net, centre - step, centre + step)
    shifted = mlp(4, 30, 30, 1, seed=3)
    with torch.no_grad():
        shifted[0].bias.copy_(1e-4 * shifted[0].bias)
    near = segments(shifted, -step, step)
    assert len(line) == len(near)
    torch.testing.assert_close(line.t, near.t, rtol=0, atol=1e-6)


def test_an_output_that_cancels_to_0_has_no_kinks() -> None:
    W, b = randn(30, 3), randn(30)

    def net(x: Tensor) -> Tensor:
        h = torch.relu(F.linear(x, W, b))
        return 0.1 * h.sum(1) - (0.1 * h.flip(1)).sum(1)

    line = segments(net, -2 * torch.ones(3), torch.tensor([1.0, 2.0, 3.0]))
    assert len(line) > 5
    assert len(line.kinks) == 0


def test_breakpoints_at_the_ends_are_none() -> None:
    line = segments(lambda x: torch.relu(x).sum(1), torch.zeros(2), torch.ones(2))
    assert line.t.tolist() == [0, 1]
    assert line.pattern.tolist() == [[1, 1]]
    line = segments(lambda x: torch.relu(x).sum(1), torch.zeros(2), -torch.ones(2))
    assert line.t.tolist() == [0, 1]
    assert line.pattern.tolist() == [[0, 0]]


def test_breakpoints_close_together_are_several() -> None:
    for apart in (1e-6, 1e-10):
        kinks = torch.tensor([0.3, 0.3 + apart], dtype=D)
        line = segments(lambda x, kinks=kinks: torch.relu(x - kinks), torch.zeros(1), torch.ones(1))
        assert line.pattern.tolist() == [[0, 0], [1, 0], [1, 1]]
        torch.testing.assert_close(line.t[1:-1], kinks, rtol=0, atol=1e-15)


def test_a_breakpoint_where_the_model_is_asked_is_no_segment() -> None:
    asked = (torch.arange(16, dtype=D) + 0.4877) / 16
    line = segments(lambda x: torch.relu(x - asked), torch.zeros(1), torch.ones(1))
    torch.testing.assert_close(line.t[1:-1], asked, rtol=0, atol=1e-15)
    assert line.pattern.sum(1).tolist() == list(range(17))


def test_more_candidates_than_a_byte_holds() -> None:
    a, c = randn(400, seed=1), randn(400, seed=2)
    line = segments(lambda x: (x * a + c).amax(1), torch.tensor([-9.0]), torch.tensor([9.0]))
    assert len(line) > 3
    assert int(line.pattern.max()) > 255
    assert bool((line.slope[1:] > line.slope[:-1]).all())  # a maximum is convex
    assert_exact(lambda x: (x * a + c).amax(1), line)


# --- what a line can be asked ---


def test_a_line_is_a_function_of_t() -> None:
    model, line = line_of("residual")
    t = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=D)
    torch.testing.assert_close(line(t), model(line.input(t)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(line(0.25), model(line.input(0.25)[None])[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(line.input(0.0), line.start)
    assert torch.equal(line.input(1), line.end)
    for bad in (-0.1, 1.5, torch.zeros(2, 2), torch.nan):
        with pytest.raises(ValueError, match="t must be one number or a vector of numbers from 0 to 1"):
            line(bad)


def test_a_model_is_run_in_double_precision_and_left_as_it_was() -> None:
    net = mlp(3, 8, 8, 2).float()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    start, end = randn(3, seed=1).float(), randn(3, seed=2).float()
    line = segments(net, start, end)
    exact = segments(mlp(3, 8, 8, 2).float().double(), start, end)
    assert line.t.dtype == line.slope.dtype == line.A.dtype == D
    assert torch.equal(line.t, exact.t)
    assert torch.equal(line.slope, exact.slope)
    assert all(
        torch.equal(value, before[name]) and value.dtype == torch.float32 for name, value in net.state_dict().items()
    )
    with torch.no_grad():
        net[0].weight.zero_()
    torch.testing.assert_close(line.A, exact.A)  # asked later, the line is still the one that was


def test_batches_of_any_size_give_the_same_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model, line = line_of("max pooling")
    monkeypatch.setattr(_segments, "_MOST_COMPARISONS", 1000)
    monkeypatch.setattr(_segments, "_FEW_COMPARISONS", 1)
    _, small = line_of("max pooling")
    torch.testing.assert_close(line.t, small.t, rtol=0, atol=1e-14)
    assert torch.equal(line.pattern, small.pattern)
    g = integrate_along(model, line.start, line.end, lambda x, A, b: A)
    monkeypatch.undo()
    torch.testing.assert_close(
        g, integrate_along(model, line.start, line.end, lambda x, A, b: A), rtol=1e-12, atol=1e-12
    )


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 3), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: segments(torch.relu, ones(2), ones(2)), ValueError, "end must differ from start"),
        (
            lambda: segments(torch.relu, ones(2), ones(3)),
            ValueError,
            r"end must have the shape of start.*\(2,\) and \(3,\)",
        ),
        (lambda: segments(torch.relu, ones(0), ones(0)), ValueError, "at least one number"),
        (
            lambda: segments(torch.relu, ones(2).long(), ones(2)),
            TypeError,
            "start must be floating point, got torch.int64",
        ),
        (lambda: segments(torch.relu, ones(2), [1.0, 2.0]), TypeError, "end must be a torch tensor, got list"),
        (lambda: segments(torch.relu, ones(2), ones(2) / 0), ValueError, "end must be finite"),
        (lambda: segments(Named(), ones(2), 0 * ones(2)), ValueError, r"module 'body.1' \(Tanh\) applies tanh"),
        (lambda: segments(lambda x: x * x, ones(2), 0 * ones(2)), ValueError, "not piecewise linear"),
        (lambda: segments(nn.BatchNorm1d(2), ones(2), 0 * ones(2)), ValueError, r"\(BatchNorm1d\).*training mode"),
        (lambda: segments(lambda x: x.sum(), ones(2), 0 * ones(2)), ValueError, "one output for each"),
        (
            lambda: segments(lambda x: x / torch.zeros(2), ones(2), 0 * ones(2)),
            ValueError,
            "finite numbers on the line",
        ),
        (lambda: segments(lambda x: x - x.mean(0), ones(2), 0 * ones(2)), ValueError, "function of its own sample"),
        (lambda: integrate_along(torch.relu, ones(2), -ones(2)), ValueError, "which of the 2 outputs"),
        (lambda: integrate_along(torch.relu, ones(2), -ones(2), output=2), ValueError, "0 to 1, got 2"),
        (
            lambda: integrate_along(torch.relu, ones(2), -ones(2), output=0.5),
            TypeError,
            "output must be an int, got float",
        ),
        (
            lambda: integrate_along(torch.relu, ones(2), -ones(2), "value"),
            TypeError,
            "g must be 'gradient' or a function",
        ),
        (
            lambda: integrate_along(torch.relu, ones(2), -ones(2), lambda x, A, b: 1),
            TypeError,
            "g must return a tensor",
        ),
        (
            lambda: integrate_along(torch.relu, ones(2), -ones(2), lambda x, A, b: A[0]),
            ValueError,
            "each of the 16 points",
        ),
        (
            lambda: integrate_along(torch.relu, ones(2), -ones(2), lambda x, A, b: x, order=0),
            ValueError,
            "order must be",
        ),
        (
            lambda: integrate_along(torch.relu, ones(2), -ones(2), lambda x, A, b: x, output=0),
            ValueError,
            "output belongs to",
        ),
        (
            lambda: segments(3, ones(2), -ones(2)),
            TypeError,
            "model must be a module or a function of one tensor, got int",
        ),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        call()


# --- integrals ---


@pytest.mark.theorem("thm-line-integral")
@each_model
def test_integrated_gradients_are_complete(name: str) -> None:
    model, line = line_of(name)
    ends = model(torch.stack([line.start, line.end])).detach().reshape(2, -1)
    for output in range(ends.shape[1]):
        total = integrate_along(model, line.start, line.end, output=output)
        change, scale = ends[1, output] - ends[0, output], total.abs().sum() + ends[:, output].abs().max()
        assert total.shape == line.start.shape
        assert abs(total.sum() - change) <= 1e-12 * scale


@pytest.mark.theorem("thm-line-integral")
@quick
@given(seeds)
def test_integrated_gradients_of_random_networks_are_complete_and_the_mean_of_the_pieces(seed: int) -> None:
    net = mlp(4, 9, 9, 1, seed=seed)
    start, end = 3 * randn(4, seed=seed), 3 * randn(4, seed=seed + 1)
    total = integrate_along(net, start, end)
    change = (net(end[None]) - net(start[None])).item()
    assert abs(total.sum().item() - change) <= 1e-12 * (total.abs().sum().item() + abs(change))
    line = segments(net, start, end)
    mean = ((line.t[1:] - line.t[:-1])[:, None] * line.A[:, 0]).sum(0)
    torch.testing.assert_close(total, mean * (end - start), rtol=1e-11, atol=1e-12)


def test_the_sum_of_riemann_comes_near_to_the_integral_from_far() -> None:
    model, line = line_of("max pooling")
    exact = integrate_along(model, line.start, line.end, output=1)
    t = (torch.arange(4000, dtype=D) + 0.5) / 4000
    x = line.input(t).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    sampled = gradient.mean(0) * (line.end - line.start)
    error = (sampled - exact).abs().max()
    assert 1e-12 < error < 1e-2


@pytest.mark.theorem("thm-line-integral")
@pytest.mark.parametrize("order", [1, 2, 4])
def test_polynomials_of_twice_the_order_less_one_are_integrated_exactly(order: int) -> None:
    model, line = line_of("mlp")
    degree = 2 * order - 1

    def power(x: Tensor, A: Tensor, b: Tensor) -> Tensor:
        return (torch.einsum("bmn,bn->bm", A, x) + b) ** degree

    value = integrate_along(model, line.start, line.end, power, order=order)
    low, high = line.slope * line.t[:-1, None] + line.offset, line.slope * line.t[1:, None] + line.offset
    # The integral of (s t + o)^d is a mean of products of the two ends, without a division by s.
    terms = sum(low**k * high ** (degree - k) for k in range(degree + 1)) / (degree + 1)
    expected = ((line.t[1:] - line.t[:-1])[:, None] * terms).sum(0)
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-11)


def test_a_function_may_return_any_shape_and_sees_inputs_as_they_are() -> None:
    model, line = line_of("max pooling")

    def g(x: Tensor, A: Tensor, b: Tensor) -> Tensor:
        assert x.shape[1:] == (1, 6, 6)
        assert A.shape[1:] == (3, 36)
        assert b.shape[1:] == (3,)
        return x

    mean = integrate_along(model, line.start, line.end, g, order=2)
    torch.testing.assert_close(mean, (line.start + line.end) / 2, rtol=1e-12, atol=1e-12)
    ones_ = integrate_along(model, line.start, line.end, lambda x, A, b: x.new_ones(len(x)), order=3)
    torch.testing.assert_close(ones_, torch.tensor(1.0, dtype=D), rtol=1e-13, atol=0)


def test_every_public_name_is_used_here() -> None:
    assert all(name in globals() for name in _segments.__all__)
