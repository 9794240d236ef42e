"""The theorems of the chapter *Maxout*, and every property of its module."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pwl_lib.nn as pnn
from pwl_lib import rectifiers
from pwl_lib.convolution import linear, linear_jacobians
from pwl_lib.maxout import (
    DifferenceOfMaxouts,
    Maxout,
    Maxout2d,
    as_maxout,
    convex_interpolant,
    difference_of_maxouts,
    maxout,
    maxout2d,
    maxout_jacobians,
    winner_matrix,
)
from pwl_lib.subgradients import subdifferential_max_affine

D = torch.float64
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

quick = settings(max_examples=40)
seeds = st.integers(0, 2**31 - 1)
layer_sizes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))  # d, m, k


def whole(*shape: int, seed: int = 0, dtype: torch.dtype = D, size: int = 3) -> Tensor:
    """Small whole numbers: products are exact, and ties are frequent."""
    return torch.randint(-size, size + 1, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def same_bits(a: Tensor, b: Tensor) -> bool:
    equal = (a == b) & (a.signbit() == b.signbit())
    return a.shape == b.shape and a.dtype == b.dtype and bool((equal | (a.isnan() & b.isnan())).all())


def raises(kind: type[Exception], *said: str) -> Any:
    """The error names the argument, what it had and what was wanted."""
    return pytest.raises(kind, match="(?s)" + "".join(f"(?=.*{part})" for part in said))


def run(function: Any, *tensors: Tensor | None, seed: int = 0) -> list[Tensor]:
    """The value, and the gradients for an upstream gradient of whole numbers."""
    inputs = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    y = function(*inputs)
    upstream = whole(*y.shape, seed=seed, dtype=y.dtype, size=9)
    return [y.detach(), *torch.autograd.grad(y, [t for t in inputs if t is not None], upstream)]


def lines(unit: Maxout) -> tuple[Tensor, Tensor]:
    return unit.weight.detach()[:, 0], unit.bias.detach()


def at(unit: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return unit(x[:, None])[:, 0]


# --- the layer ------------------------------------------------------------------------------------


@quick
@given(layer_sizes, seeds)
def test_a_unit_takes_the_largest_of_its_group_of_neighbouring_rows(sizes: Any, seed: int) -> None:
    d, m, k = sizes
    x, weight, bias = whole(3, d, seed=seed), whole(m * k, d, seed=seed + 1), whole(m * k, seed=seed + 2)
    y = maxout(x, weight, bias, k)
    for n, i in itertools.product(range(3), range(1, m + 1)):
        group = range((i - 1) * k + 1, i * k + 1)  # numbered from 1, as on the page
        assert y[n, i - 1] == max(weight[j - 1] @ x[n] + bias[j - 1] for j in group)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_values_and_gradients_are_torchs_bit_for_bit(dtype: torch.dtype, with_bias: bool, pieces: int) -> None:
    x, weight = randn(2, 5, 4, seed=1).to(dtype), whole(3 * pieces, 4, dtype=dtype)
    x[0, 0, 0], x[0, 1], x[1, 2, 3] = math.nan, 0, math.inf  # NaN, ties, and infinities of both signs
    bias = whole(3 * pieces, seed=2, dtype=dtype) if with_bias else None
    theirs = run(lambda *t: F.linear(*t).unflatten(-1, (3, pieces)).max(-1).values, x, weight, bias)
    ours = run(lambda x, weight, bias: maxout(x, weight, bias, pieces), x, weight, bias)
    assert all(same_bits(*pair) for pair in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels"])
@pytest.mark.parametrize("words", [(), (2, 1, 1, 2), ((1, 2), (2, 0), (2, 1), 1)], ids=str)
def test_maxout_of_images_is_torchs_bit_for_bit(dtype: torch.dtype, layout: Any, words: Any) -> None:
    groups = words[3] if words else 1
    x = whole(2, 4, 7, 6, seed=1, dtype=dtype).contiguous(memory_format=layout)
    weight, bias = whole(6, 4 // groups, 3, 2, seed=2, dtype=dtype), whole(6, seed=3, dtype=dtype)
    for pieces in (1, 2, 3):
        theirs = run(lambda *t, k=pieces: F.conv2d(*t, *words).unflatten(1, (6 // k, k)).max(2).values, x, weight, bias)
        ours = run(lambda *t, k=pieces: maxout2d(*t, k, *words), x, weight, bias)
        assert all(same_bits(*pair) for pair in zip(ours, theirs, strict=True))
        assert [t.stride() for t in ours[:2]] == [t.stride() for t in theirs[:2]]
    assert same_bits(maxout2d(x[0], weight, bias, 2, *words), maxout2d(x[:1], weight, bias, 2, *words)[0])


def test_maxout_of_images_with_kernels_of_one_pixel_is_maxout_at_each_pixel() -> None:
    x, weight, bias = whole(2, 3, 4, 5), whole(6, 3, seed=1), whole(6, seed=2)
    by_pixel = maxout(x.movedim(1, -1), weight, bias, 2).movedim(-1, 1)
    assert torch.equal(maxout2d(x, weight[:, :, None, None], bias, 2), by_pixel)


def test_one_piece_is_the_linear_layer() -> None:
    x, weight, bias = randn(5, 3), randn(4, 3, seed=1), randn(4, seed=2)
    for a, b in zip(run(lambda *t: maxout(*t, 1), x, weight, bias), run(linear, x, weight, bias), strict=True):
        assert same_bits(a, b)


def test_the_first_of_the_tied_pieces_gets_the_whole_gradient() -> None:
    x, weight = torch.zeros(1, dtype=D, requires_grad=True), torch.tensor([[-1.0], [3.0], [2.0]], dtype=D)
    assert torch.autograd.grad(maxout(x, weight, None, 3).sum(), x)[0].item() == -1
    assert torch.autograd.grad(maxout(x, weight.flip(0), None, 3).sum(), x)[0].item() == 2


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_first_nan_of_a_group_wins(place: int) -> None:
    bias = torch.tensor([math.inf, 1.0, 2.0], dtype=D)
    bias[place] = bias[2] = math.nan
    _, _, by_bias = run(lambda w, b: maxout(torch.ones(1, dtype=D), w, b, 3), torch.ones(3, 1, dtype=D), bias)
    assert by_bias.nonzero().flatten().tolist() == [place]


def test_the_backward_pass_keeps_one_byte_an_output_and_not_the_pieces() -> None:
    x, weight, bias = (t.requires_grad_() for t in (randn(50, 6), randn(20, 6), randn(20)))
    image, kernels = randn(2, 3, 9, 9).requires_grad_(), randn(20, 3, 2, 2).requires_grad_()

    def kept(function: Any) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        seen: list[tuple[torch.dtype, tuple[int, ...]]] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: seen.append((t.dtype, tuple(t.shape))) or t, lambda t: t
        ):
            function()
        return seen

    winners = (torch.uint8, (50, 4))
    assert sorted(kept(lambda: maxout(x, weight, bias, 5)), key=str) == sorted(
        [(D, (50, 6)), (D, (20, 6)), winners], key=str
    )
    assert sorted(kept(lambda: maxout(x.detach(), weight, bias, 5)), key=str) == sorted(
        [(D, (50, 6)), winners], key=str
    )
    assert (torch.uint8, (2, 4, 8, 8)) in kept(lambda: maxout2d(image, kernels, bias, 5))
    assert len(kept(lambda: maxout2d(image, kernels, bias, 5))) == 3


def test_more_pieces_than_a_byte_can_number() -> None:
    for pieces, dtype in ((256, torch.uint8), (257, torch.int32)):
        weight, bias = torch.zeros(pieces, 1, dtype=D), torch.arange(pieces, dtype=D)
        seen: list[torch.dtype] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, seen=seen: seen.append(t.dtype) or t, lambda t: t):
            y = maxout(torch.ones(1, 1, dtype=D), weight, bias.requires_grad_(), pieces)
        assert seen == [dtype]
        assert torch.autograd.grad(y.sum(), bias)[0].argmax() == pieces - 1


@settings(max_examples=8)
@given(layer_sizes, st.booleans(), seeds)
def test_the_jacobians_are_autograds_at_ties_too(sizes: Any, with_bias: bool, seed: int) -> None:
    d, m, k = sizes
    x, weight = whole(d, seed=seed, size=1), whole(m * k, d, seed=seed + 1, size=1)
    inputs = (x, weight, whole(m * k, seed=seed + 2, size=1)) if with_bias else (x, weight)
    numbers = tuple(range(len(inputs)))
    f = lambda x, weight, bias=None: maxout(x, weight, bias, k)
    ours = maxout_jacobians(*inputs, *[None] * (not with_bias), k)
    assert len(ours) == len(inputs)
    for reverse, forward, matrix in zip(
        torch.func.jacrev(f, numbers)(*inputs), torch.func.jacfwd(f, numbers)(*inputs), ours, strict=True
    ):
        assert matrix.shape == (m, reverse[0].numel())
        assert torch.equal(reverse.reshape(matrix.shape), matrix)
        assert torch.equal(forward.reshape(matrix.shape), matrix)


@quick
@given(layer_sizes, seeds)
def test_the_winner_matrix_selects_and_its_product_with_the_weight_is_the_jacobian(sizes: Any, seed: int) -> None:
    d, m, k = sizes
    x, weight, bias = whole(d, seed=seed), whole(m * k, d, seed=seed + 1), whole(m * k, seed=seed + 2)
    S = winner_matrix(x, weight, bias, k)
    assert torch.equal(S @ (weight @ x + bias), maxout(x, weight, bias, k))
    assert torch.equal(S.sum(1), torch.ones(m, dtype=D))
    for i in range(m):
        assert S[i, i * k : (i + 1) * k].sum() == 1  # in its own group
    by_input, by_weight, by_bias = maxout_jacobians(x, weight, bias, k)
    assert torch.equal(by_input, S @ weight)
    assert torch.equal(by_weight, torch.kron(S, x[None]))
    assert torch.equal(by_bias, S)


@pytest.mark.theorem("prop-maxout-gradient")
@quick
@given(layer_sizes, seeds)
def test_the_row_of_the_gradient_is_in_the_subdifferential_of_its_unit(sizes: Any, seed: int) -> None:
    d, m, k = sizes
    x, weight, bias = (
        whole(d, seed=seed, size=1),
        whole(m * k, d, seed=seed + 1, size=1),
        whole(m * k, seed=seed + 2, size=1),
    )
    by_input = maxout_jacobians(x, weight, bias, k)[0]
    z = (weight @ x + bias).reshape(m, k)
    for i in range(m):
        own = slice(i * k, (i + 1) * k)
        assert subdifferential_max_affine(x, weight[own], bias[own]).contains(by_input[i], tol=1e-9)
        tied = [j for j in range(k) if z[i, j] == z[i].max()]
        assert torch.equal(by_input[i], weight[own][tied[0]])
        if len(tied) == 1:  # near x nothing changes, and the layer is affine
            step = 1e-3 * randn(d, seed=seed)
            moved = maxout(x + step, weight, bias, k)[i] - maxout(x, weight, bias, k)[i]
            torch.testing.assert_close(moved, by_input[i] @ step, rtol=0, atol=1e-12)


def test_a_partial_derivative_is_zero_or_a_weight_and_in_a_weight_zero_or_an_input() -> None:
    x, weight, bias = randn(5), randn(12, 5, seed=4), randn(12, seed=2)
    weight[::3], bias[::3] = 0, 0  # one piece of each unit is 0, as in a ReLU
    by_input, by_weight, by_bias = maxout_jacobians(x, weight, bias, 3)
    z = (weight @ x + bias).reshape(4, 3)
    assert z.argmax(1).unique().tolist() == [0, 1, 2]
    for i, row in enumerate(by_input):
        assert torch.equal(row, weight[3 * i + int(z[i].argmax())])
        assert torch.equal(row, torch.zeros(5, dtype=D)) == (z[i].argmax() == 0)
    assert set(by_bias.unique().tolist()) == {0, 1}
    for entries in by_weight.reshape(4, 12, 5).unbind(2):
        assert len(entries.unique()) == 2
    assert torch.equal(by_weight.reshape(4, 12, 5).sum(1), x.expand(4, 5))


def test_gradcheck_to_second_order_in_every_mode() -> None:
    x, weight, bias = (t.requires_grad_() for t in (randn(3, 4), randn(6, 4, seed=1), randn(6, seed=2)))
    image, kernels = randn(1, 2, 3, 3, seed=3).requires_grad_(), randn(6, 2, 2, 2, seed=4).requires_grad_()
    for function, inputs in (
        (lambda *t: maxout(*t, 3), (x, weight, bias)),
        (lambda *t: maxout2d(*t, 3, 1, 1), (image, kernels, bias)),
    ):
        assert torch.autograd.gradcheck(
            function, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True
        )
        assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True, fast_mode=True)


def test_the_second_order_gradient_with_whole_numbers_is_that_of_torch() -> None:
    x, weight = whole(3, 4).requires_grad_(), whole(6, 4, seed=1).requires_grad_()
    results = []
    for function in (
        lambda: maxout(x, weight, None, 3),
        lambda: F.linear(x, weight).unflatten(-1, (2, 3)).max(-1).values,
    ):
        (by_input,) = torch.autograd.grad(function().pow(2).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(by_input.pow(2).sum(), (x, weight)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- modules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_the_modules_begin_as_torchs_linear_layer_and_convolution(bias: bool) -> None:
    pairs = [
        (lambda: Maxout(5, 3, 4, bias), lambda: nn.Linear(5, 12, bias)),
        (
            lambda: Maxout2d(4, 3, (2, 3), 2, 2, 1, 1, 2, bias),
            lambda: nn.Conv2d(4, 6, (2, 3), 2, 1, 1, 2, bias),
        ),
    ]
    for ours, theirs in pairs:
        states = []
        for make in (ours, theirs):
            torch.manual_seed(0)
            states.append(make().state_dict())
        assert list(states[0]) == list(states[1])
        assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_the_modules_are_the_functions_and_say_what_they_are() -> None:
    layer, image_layer = Maxout(4, 2, 3, dtype=D), Maxout2d(4, 2, 3, 3, stride=2, padding="valid", groups=2, dtype=D)
    x, image = randn(5, 4), randn(2, 4, 6, 6)
    assert torch.equal(layer(x), maxout(x, layer.weight, layer.bias, 3))
    wanted = maxout2d(image, image_layer.weight, image_layer.bias, 3, 2, "valid", 1, 2)
    assert torch.equal(image_layer(image), wanted)
    assert repr(layer) == "Maxout(in_features=4, out_features=2, pieces=3, bias=True)"
    assert repr(image_layer) == "Maxout2d(4, 2, kernel_size=(3, 3), pieces=3, stride=2, padding='valid', groups=2)"
    assert repr(Maxout2d(1, 1, 1, 1, bias=False)).endswith("pieces=1, bias=False)")
    assert pnn.Maxout is Maxout
    assert pnn.Maxout2d is Maxout2d


@pytest.mark.theorem("prop-maxout-parameters")
@pytest.mark.parametrize(("d", "m", "k", "q"), [(64, 15, 4, 10), (7, 1, 5, 3), (3, 4, 1, 2)])
def test_the_next_layer_has_k_times_fewer_weights(d: int, m: int, k: int, q: int) -> None:
    count = lambda module: sum(p.numel() for p in module.parameters())
    wide, narrow = nn.Linear(m * k, q), nn.Linear(m, q)  # after m * k rectified filters, and after m units of k filters
    assert count(Maxout(d, m, k)) == count(nn.Linear(d, m * k)) == m * k * (d + 1)
    assert wide.weight.numel() == k * narrow.weight.numel()
    with_relu = nn.Sequential(nn.Linear(d, m * k), nn.ReLU(), wide)
    with_maxout = nn.Sequential(Maxout(d, m, k), narrow)
    assert count(with_relu) == m * k * (d + 1) + q * (m * k + 1)
    assert count(with_maxout) == m * k * (d + 1) + q * (m + 1)
    assert count(with_relu) - count(with_maxout) == q * m * (k - 1)


def test_equal_budgets_are_equal() -> None:
    count = lambda *layers: sum(p.numel() for layer in layers for p in layer.parameters())
    assert count(nn.Linear(64, 56), nn.Linear(56, 10)) == count(Maxout(64, 30, 2), nn.Linear(30, 10)) == 4210


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: maxout(torch.ones(2, 3), torch.ones(4, 3), None, 3), ("pieces", "4 rows", "got 3")),
        (lambda: maxout(torch.ones(2, 3), torch.ones(4, 3), None, 0), ("pieces", "at least 1", "got 0")),
        (lambda: maxout(torch.ones(2, 3), torch.ones(4, 2), None, 2), ("input", r"\(\*, 2\)", r"\(2, 3\)")),
        (lambda: maxout(torch.ones(2, 3), torch.ones(4, 3), torch.ones(2), 2), ("bias", r"\(4,\)", r"\(2,\)")),
        (lambda: maxout2d(torch.ones(1, 2, 2), torch.ones(4, 1, 1, 1), None, 3), ("pieces", "4 rows", "got 3")),
        (lambda: maxout2d(torch.ones(2, 2), torch.ones(4, 1, 1, 1), None, 2), ("input", r"\(N, C, H, W\)")),
        (lambda: winner_matrix(torch.ones(2, 3), torch.ones(4, 3), None, 2), ("input", "one sample", r"\(2, 3\)")),
        (lambda: maxout_jacobians(torch.ones(3), torch.ones(4, 3), None, 3), ("pieces", "4 rows", "got 3")),
        (lambda: Maxout(0, 1, 1), ("in_features", "at least 1", "got 0")),
        (lambda: Maxout(1, 0, 1), ("out_features", "at least 1", "got 0")),
        (lambda: Maxout(1, 1, -1), ("pieces", "at least 1", "got -1")),
        (lambda: Maxout2d(3, 4, 1, 2, groups=2), ("groups", "in_channels", "3", "got 2")),
        (lambda: Maxout2d(4, 3, 1, 1, groups=2), ("groups", "out_channels", "3", "got 2")),
        (lambda: Maxout2d(1, 1, 0, 1), ("kernel_size", "at least 1")),
        (lambda: difference_of_maxouts(torch.ones(1), torch.ones(1)), ("breakpoints", "at least 2", r"\(1,\)")),
        (lambda: difference_of_maxouts(torch.tensor([0.0, 0.0]), torch.ones(2)), ("breakpoints", "strictly rising")),
        (lambda: difference_of_maxouts(torch.tensor([0.0, 1.0]), torch.ones(3)), ("values", r"\(2,\)", r"\(3,\)")),
        (lambda: difference_of_maxouts(torch.tensor([0.0, math.inf]), torch.ones(2)), ("breakpoints", "finite")),
        (lambda: difference_of_maxouts(torch.arange(2.0), torch.full((2,), math.nan)), ("values", "finite", "nan")),
        (
            lambda: difference_of_maxouts(
                torch.tensor([0.0, 1e-300, 1.0], dtype=D), torch.tensor([0.0, 1e10, 0.0], dtype=D)
            ),
            ("breakpoints and values", "finite in torch.float64", "inf"),
        ),
        (
            lambda: difference_of_maxouts(torch.tensor([0.0, 1e-30, 1.0]), torch.tensor([0.0, 1e10, 0.0])),
            ("breakpoints and values", "finite in torch.float32", "slopes up to 1e\\+40"),
        ),
        (
            lambda: difference_of_maxouts(
                torch.tensor([0.0, 1e30]), torch.tensor([0.0, 3e38])[[1, 0]] * torch.tensor([1, -1.0])
            ),
            ("breakpoints and values", "finite in torch.float32"),
        ),
        (
            lambda: difference_of_maxouts(torch.tensor([-1e308, 1e308], dtype=D), torch.tensor([0.0, 1.0], dtype=D)),
            ("breakpoints", "differences", "1e\\+308"),
        ),
        (
            lambda: difference_of_maxouts(
                torch.tensor([-1e308, 0.0, 1e308], dtype=D), torch.tensor([0.0, 0.0, 1.0], dtype=D)
            ),
            ("breakpoints", "differences", "1e\\+308"),
        ),
        (
            lambda: difference_of_maxouts(
                torch.tensor([0.0, 1.0], dtype=D), torch.tensor([-1.7e308, 1.7e308], dtype=D)
            ),
            ("values", "differences", "1.7e\\+308"),
        ),
        (lambda: Maxout2d(1, 1, 1, 1, stride=0), ("stride", "at least 1", "got 0")),
        (lambda: Maxout2d(1, 1, 1, 1, dilation=(1, 0)), ("dilation", "at least 1")),
        (lambda: Maxout2d(1, 1, 1, 1, padding=-1), ("padding", "at least 0", "got -1")),
        (lambda: Maxout2d(1, 1, 1, 1, padding="full"), ("padding", "same", "valid", "full")),
        (lambda: Maxout2d(1, 1, 1, 1, 2, "same"), ("stride must be 1", "same", "got 2")),
        (
            lambda: DifferenceOfMaxouts(Maxout(1, 1, 2), Maxout(1, 3, 2)),
            ("negative must have the inputs and outputs of positive", "1 and 1", "got 1 and 3"),
        ),
        (
            lambda: convex_interpolant(lambda x: -(x - 5).log(), 20, (5 + 1e-15, 6.0)),
            ("f must be one that float64 resolves", "20 pieces", "could not be made equal", "between"),
        ),
        (
            lambda: convex_interpolant(lambda x: 1 / x, 3, (1e-160, 1.0)),
            ("f must be one", "slopes", "not finite", "inf"),
        ),
        (lambda: convex_interpolant(torch.square, 0, (0.0, 1.0)), ("pieces", "at least 1", "got 0")),
        (lambda: convex_interpolant(torch.square, 1, (1.0, 1.0)), ("interval", "smaller first", "1.0")),
        (lambda: convex_interpolant(torch.square, 1, (0.0, math.inf)), ("interval", "finite", "inf")),
        (lambda: convex_interpolant(torch.square, 1, (0.0,)), ("interval", "two numbers")),
        (lambda: convex_interpolant(torch.sin, 2, (0.0, 1.0)), ("f must be convex", "above its chord")),
        (lambda: convex_interpolant(lambda x: -x.abs(), 2, (-1.0, 1.0)), ("f must be convex", "at 0 ")),
        (lambda: convex_interpolant(lambda x: -x.log(), 2, (0.0, 1.0)), ("f must be finite", "inf")),
        (lambda: convex_interpolant(lambda x: x.sum(), 2, (0.0, 1.0)), ("f must give one number",)),
    ],
)
def test_bad_numbers_and_shapes_are_named(call: Any, said: tuple[str, ...]) -> None:
    with raises(ValueError, *said):
        call()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: maxout(torch.ones(2, 3).int(), torch.ones(4, 3), None, 2), ("input", "floating point", "int32")),
        (lambda: maxout(torch.ones(2, 3), torch.ones(4, 3).double(), None, 2), ("weight", "float32", "float64")),
        (lambda: maxout(torch.ones(2, 3), torch.ones(4, 3), None, 2.0), ("pieces", "int", "float")),
        (lambda: winner_matrix([1.0], torch.ones(4, 1), None, 2), ("input", "torch tensor", "list")),
        (lambda: Maxout(1, 1, True), ("pieces", "int", "bool")),
        (lambda: as_maxout(nn.Tanh()), ("ReLU, LeakyReLU, PReLU, Absolute", "got Tanh")),
        (lambda: as_maxout(nn.Sequential(nn.Linear(2, 2), nn.Tanh())), ("got Tanh",)),
        (lambda: as_maxout(nn.Linear(2, 2)), ("got Linear",)),
        (lambda: difference_of_maxouts([0.0, 1.0], torch.ones(2)), ("breakpoints", "torch tensor", "list")),
        (lambda: difference_of_maxouts(torch.arange(2.0), torch.ones(2, dtype=D)), ("values", "float32", "float64")),
        (lambda: difference_of_maxouts(*torch.eye(2).half()), ("breakpoints", "half precision", "cancel", "float16")),
        (lambda: difference_of_maxouts(*torch.eye(2).bfloat16()), ("breakpoints", "float32 or float64", "bfloat16")),
        (lambda: Maxout2d(1, 1, 1, 1, stride=1.0), ("stride", "int", "float")),
        (lambda: convex_interpolant(torch.square, 2, ("0", 1.0)), ("interval", "number", "str")),
    ],
)
def test_arguments_of_another_kind_are_named(call: Any, said: tuple[str, ...]) -> None:
    with raises(TypeError, *said):
        call()


# --- what a unit is -------------------------------------------------------------------------------


def visible(slopes: Tensor, intercepts: Tensor) -> list[float]:
    """The slopes of a maximum of lines from left to right, by walking from crossing to crossing."""
    order = sorted(zip(slopes.tolist(), intercepts.tolist(), strict=True))
    shown = [max((line for line in order if line[0] == order[0][0]), key=lambda line: line[1])]
    while steeper := [line for line in order if line[0] > shown[-1][0]]:
        m, b = shown[-1]
        crossing = lambda line, m=m, b=b: (b - line[1]) / (line[0] - m)
        first = min(map(crossing, steeper))
        shown.append(max(line for line in steeper if crossing(line) == first))
    return [m for m, _ in shown]


@pytest.mark.theorem("thm-maxout-convex")
@quick
@given(st.integers(1, 3), st.integers(1, 5), seeds)
def test_a_unit_is_convex_and_affine_on_a_polyhedron_for_each_piece(d: int, k: int, seed: int) -> None:
    weight, bias = whole(k, d, seed=seed), whole(k, seed=seed + 1)
    x, y = whole(60, d, seed=seed + 2, size=8), whole(60, d, seed=seed + 3, size=8)
    f = lambda x: maxout(x, weight, bias, k)[:, 0]
    assert (2 * f((x + y) / 2) <= f(x) + f(y)).all()
    z = x @ weight.T + bias
    for j in range(k):
        inside = ((weight - weight[j]) @ x.T <= (bias[j] - bias)[:, None]).all(0)  # the polyhedron of the piece
        assert torch.equal(f(x)[inside], z[inside, j])
        assert (f(x)[~inside] > z[~inside, j]).all()
    steps = (f(x) - f(y)).abs()
    assert (steps <= weight.norm(dim=1).max() * (x - y).norm(dim=1) * (1 + 1e-12)).all()  # continuous


@pytest.mark.theorem("thm-maxout-convex")
@quick
@given(st.integers(1, 6), seeds)
def test_at_most_k_pieces_show_and_k_can(k: int, seed: int) -> None:
    unit = visible(whole(k, seed=seed), whole(k, seed=seed + 1))
    assert 1 <= len(unit) <= k
    points = torch.arange(k, dtype=D)
    assert visible(2 * points, -points.square()) == (2 * points).tolist()  # tangents of a parabola


@pytest.mark.theorem("lem-convex-pwl")
@quick
@given(st.integers(1, 3), st.integers(1, 4), seeds)
def test_a_convex_piecewise_linear_function_is_the_maximum_of_its_pieces(d: int, count: int, seed: int) -> None:
    weight, bias = whole(count, d, seed=seed), whole(count, seed=seed + 1)
    scale = whole(count, seed=seed + 2).abs()
    f = lambda x: (scale * (x @ weight.T + bias).abs()).sum(-1)  # convex, and not written as a maximum
    pieces = [
        ((signs * scale) @ weight, (signs * scale) @ bias)
        for signs in map(torch.tensor, itertools.product((1.0, -1.0), repeat=count))
        for signs in [signs.double()]
    ]
    x = whole(50, d, seed=seed + 3, size=9)
    slopes, offsets = (torch.stack(part) for part in zip(*pieces, strict=True))
    assert torch.equal(f(x), maxout(x, slopes, offsets, len(pieces))[:, 0])
    near = x + 1e-3 * randn(50, d, seed=seed)  # off the kinks: the gradient there is the slope of a piece
    near.requires_grad_()
    (gradient,) = torch.autograd.grad(f(near).sum(), near)
    tangents = f(near).detach() - (gradient * near.detach()).sum(1)
    torch.testing.assert_close(maxout(near.detach(), gradient, tangents, 50)[:, 0], f(near).detach(), rtol=0, atol=1e-9)


# --- rectifiers as units --------------------------------------------------------------------------

inputs = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, 1.0, -1.0]), min_size=1, max_size=9).map(
    lambda values: torch.tensor(values, dtype=D)[:, None]
)
ACTIVATIONS = [
    nn.ReLU(),
    rectifiers.ReLU(),
    rectifiers.ReLU(slope_at_zero=0.5),
    nn.LeakyReLU(0.3),
    rectifiers.LeakyReLU(-0.7),
    nn.LeakyReLU(1.0),
    rectifiers.LeakyReLU(-3.0),
    rectifiers.Absolute(),
    nn.PReLU(dtype=D),
    rectifiers.PReLU(init=-1.5, dtype=D),
]


@pytest.mark.theorem("prop-as-maxout")
@pytest.mark.parametrize("module", ACTIVATIONS, ids=str)
def test_two_pieces_and_not_two_layers_are_each_rectifier_exactly(module: nn.Module) -> None:
    unit = as_maxout(module, dtype=D)
    assert isinstance(unit, Maxout)
    assert (unit.in_features, unit.out_features, unit.pieces) == (1, 1, 2)

    @quick
    @given(inputs)
    def equal(x: Tensor) -> None:
        assert torch.equal(unit(x), module(x))

    equal()
    if isinstance(module, rectifiers.Absolute) or getattr(module, "slope_at_zero", 0):
        return
    slopes = []
    for function in (unit, module):  # the first piece wins the tie, so that the slope at 0 is torch's
        zero = torch.zeros(1, 1, dtype=D, requires_grad=True)
        slopes.append(torch.autograd.grad(function(zero).sum(), zero)[0].item())
    assert slopes[0] == slopes[1]


@pytest.mark.theorem("prop-as-maxout")
@pytest.mark.parametrize("activation", [nn.PReLU, rectifiers.PReLU])
def test_a_prelu_of_many_channels_acts_on_the_last_dimension(activation: Any) -> None:
    module = activation(4, dtype=D)
    nn.init.uniform_(module.weight, -2, 1)
    unit = as_maxout(module)
    assert (unit.in_features, unit.out_features) == (4, 4)
    x = torch.cat([randn(30, 4), torch.zeros(1, 4, dtype=D)])
    assert torch.equal(unit(x), module(x))


@pytest.mark.theorem("prop-as-maxout")
@pytest.mark.parametrize("make", [nn.Linear, pnn.Linear])
@pytest.mark.parametrize("activation", [*ACTIVATIONS, nn.PReLU(3, dtype=D)], ids=str)
def test_a_linear_layer_with_a_rectifier_is_one_maxout_layer(make: Any, activation: nn.Module) -> None:
    for bias in (True, False):
        pair = nn.Sequential(make(4, 3, bias=bias, dtype=D), activation)
        unit, x = as_maxout(pair), randn(40, 4)
        assert (unit.in_features, unit.out_features, unit.pieces, unit.bias is not None) == (4, 3, 2, bias)
        torch.testing.assert_close(unit(x), pair(x), rtol=1e-14, atol=1e-14)
        before = pair[0].weight.clone()
        nn.init.zeros_(unit.weight)
        assert torch.equal(pair[0].weight, before)  # the unit has copies


def test_the_parameters_of_a_unit_have_the_dtype_that_was_asked_for_or_the_modules() -> None:
    assert as_maxout(nn.ReLU()).weight.dtype == torch.get_default_dtype()
    assert as_maxout(nn.LeakyReLU(0.1), dtype=D).weight[0].item() == 0.1
    assert as_maxout(nn.PReLU(dtype=torch.float16)).weight.dtype == torch.float16
    assert as_maxout(nn.Sequential(nn.Linear(2, 2, dtype=D), nn.ReLU())).weight.dtype == D


@pytest.mark.theorem("prop-as-maxout")
@pytest.mark.parametrize("alpha", [1.0 + 2**-20, 1.5, 3.0])
def test_a_slope_above_one_is_concave_and_needs_a_difference(alpha: float) -> None:
    module = nn.LeakyReLU(alpha)
    x, y = torch.tensor([-1.0], dtype=D), torch.tensor([1.0], dtype=D)
    assert module((x + y) / 2) > (module(x) + module(y)) / 2  # strictly above its chord
    t = torch.linspace(-3, 3, 61, dtype=D)
    assert torch.equal(module(t), torch.minimum(t, alpha * t))
    for wrong in (module, nn.PReLU(init=alpha), nn.PReLU(3, init=alpha), nn.Sequential(nn.Linear(2, 3), module)):
        with raises(ValueError, "at most 1", f"{alpha:g}", "concave", "difference_of_maxouts"):
            as_maxout(wrong)
    points = torch.tensor([-1.0, 0.0, 1.0], dtype=D)
    both = difference_of_maxouts(points, module(points))
    assert (both.positive.pieces, both.negative.pieces) == (1, 2)
    torch.testing.assert_close(at(both, t), module(t), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "module", [nn.Hardtanh(), nn.ReLU6(), rectifiers.Hardtanh(), nn.Softshrink(), nn.Hardsigmoid()]
)
def test_a_rectifier_that_is_not_convex_is_refused_with_the_reason(module: nn.Module) -> None:
    for wrong in (module, nn.Sequential(nn.Linear(1, 1), module)):
        with raises(ValueError, type(module).__name__, "not convex", "difference_of_maxouts"):
            as_maxout(wrong)


def test_slopes_that_are_not_finite_and_counts_that_do_not_fit_are_refused() -> None:
    with raises(ValueError, "LeakyReLU", "finite", "nan"):
        as_maxout(nn.LeakyReLU(math.nan))
    with raises(ValueError, "PReLU", "finite", "inf"):
        as_maxout(nn.PReLU(init=-math.inf))
    with raises(ValueError, "PReLU", "3 outputs", "got 2"):
        as_maxout(nn.Sequential(nn.Linear(1, 3), nn.PReLU(2)))


def test_a_subclass_with_a_forward_of_its_own_is_refused_and_one_without_is_taken() -> None:
    class Named(nn.ReLU):
        pass

    class Shifted(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    class Doubled(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    class Plain(nn.Sequential):
        pass

    assert as_maxout(Named()).weight.flatten().tolist() == [0, 1]
    assert as_maxout(Plain(nn.Linear(2, 3), nn.ReLU())).pieces == 2
    replaced = nn.ReLU()
    replaced.forward = torch.neg
    for wrong in (Shifted(), nn.Sequential(nn.Linear(2, 3), Shifted())):
        with raises(TypeError, "their own forward", "got Shifted"):
            as_maxout(wrong)
    with raises(TypeError, "their own forward", "got Doubled"):
        as_maxout(Doubled(nn.Linear(2, 3), nn.ReLU()))
    with raises(TypeError, "their own forward", "got ReLU"):
        as_maxout(replaced)


@pytest.mark.parametrize("place", ["pair", "linear", "activation", "alone"])
@pytest.mark.parametrize(
    "register", ["forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook"]
)
def test_a_module_with_a_hook_is_refused(place: str, register: str) -> None:
    pair = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    hooked = {"pair": pair, "linear": pair[0], "activation": pair[1], "alone": pair[1]}[place]
    handle = getattr(hooked, f"register_{register}")(lambda *_: None)
    taken = pair[1] if place == "alone" else pair
    with raises(TypeError, "without hooks"):
        as_maxout(taken)
    handle.remove()
    assert as_maxout(taken).pieces == 2


@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
def test_a_leaky_slope_that_float32_has_not_is_that_of_the_module_too(dtype: torch.dtype) -> None:
    x = torch.cat([randn(300), -randn(300, seed=1) * 1e6]).to(dtype)[:, None]
    for alpha in (0.01, 0.3, -0.7):
        module = nn.LeakyReLU(alpha)
        assert torch.equal(as_maxout(module, dtype=dtype)(x), module(x))


def test_at_zero_the_unit_of_a_relu_has_slope_zero_whatever_its_slope_there_is() -> None:
    for slope in (0.0, 0.5, 1.0):
        zero = torch.zeros(1, 1, dtype=D, requires_grad=True)
        unit = as_maxout(rectifiers.ReLU(slope_at_zero=slope), dtype=D)
        assert torch.autograd.grad(unit(zero).sum(), zero)[0].item() == 0


# --- approximation --------------------------------------------------------------------------------

CONVEX = {
    "square": (torch.square, (-1.0, 1.0)),
    "exp": (torch.exp, (-2.0, 3.0)),
    "fourth": (lambda x: x**4, (-1.0, 1.0)),
    "logarithm": (lambda x: -torch.log(x), (1e-3, 1.0)),
    "root": (lambda x: -torch.sqrt(x), (0.0, 1.0)),
    "kinks": (lambda x: x.abs() + x**2 + 2 * (x - 0.37).abs(), (-1.0, 1.0)),
    "huber": (lambda x: F.huber_loss(x, torch.zeros_like(x), reduction="none", delta=0.3), (-1.0, 2.0)),
    "lines": (lambda x: sum((x - c).abs() for c in (-0.7, -0.3, 0.01, 0.22, 0.4, 0.9)), (-1.0, 1.0)),
}
each_convex = pytest.mark.parametrize("name", CONVEX)


@pytest.mark.theorem("prop-best-tangents")
@each_convex
@pytest.mark.parametrize("pieces", [1, 2, 5, 16])
def test_the_errors_at_both_ends_and_at_all_breakpoints_are_equal(name: str, pieces: int) -> None:
    f, (a, b) = CONVEX[name]
    best = convex_interpolant(f, pieces, (a, b))
    assert best.unit.pieces == len(best.points) == len(best.breakpoints) + 1 == pieces
    assert {best.unit.weight.dtype, best.points.dtype, best.breakpoints.dtype} == {D}
    ends = torch.cat([torch.tensor([a], dtype=D), best.breakpoints, torch.tensor([b], dtype=D)])
    gaps = f(ends) - at(best.unit, ends)
    assert (gaps.diff().abs() <= 1e-9 * best.error + 1e-14).all()
    x = torch.linspace(a, b, 20001, dtype=D)
    errors = f(x) - at(best.unit, x)
    assert errors.min() > -1e-12  # the lines lie below
    assert errors.max() <= best.error * (1 + 1e-9) + 1e-14
    slopes, intercepts = lines(best.unit)
    torch.testing.assert_close(slopes * best.points + intercepts, f(best.points), rtol=1e-12, atol=1e-12)
    assert (best.points.diff() >= 0).all()
    if best.error > 1e-12:  # between two breakpoints the slope is that of the chord
        torch.testing.assert_close(f(ends).diff() / ends.diff(), slopes, rtol=1e-7, atol=1e-9)


@pytest.mark.theorem("prop-best-tangents")
@each_convex
@settings(max_examples=25)
@given(pieces=st.integers(1, 5), seed=seeds)
def test_no_other_tangents_do_better(name: str, pieces: int, seed: int) -> None:
    f, (a, b) = CONVEX[name]
    error = _known_error(name, pieces)
    x = torch.cat([torch.linspace(a, b, 2001, dtype=D)])
    at_random = torch.rand(pieces, dtype=D, generator=torch.Generator().manual_seed(seed)) * (b - a) + a
    points = at_random.clamp(a + 1e-6, b - 1e-6).requires_grad_()
    (slopes,) = torch.autograd.grad(f(points).sum(), points)
    intercepts = (f(points) - slopes * points).detach()
    for scale in (1.0, 1.1, 0.9):  # other slopes too, each line as high as it may be
        lowest = (f(x) - scale * slopes[:, None] * x).amin(1)
        other = maxout(x[:, None], scale * slopes[:, None], lowest, pieces)[:, 0]
        assert (f(x) - other).max() >= error * (1 - 1e-4) - 1e-12
    assert (f(x) - maxout(x[:, None], slopes[:, None], intercepts, pieces)[:, 0]).max() >= error * (1 - 1e-4) - 1e-12


_ERRORS: dict[tuple[str, int], float] = {}


def _known_error(name: str, pieces: int) -> float:
    if (name, pieces) not in _ERRORS:
        _ERRORS[name, pieces] = convex_interpolant(CONVEX[name][0], pieces, CONVEX[name][1]).error
    return _ERRORS[name, pieces]


@pytest.mark.theorem("prop-best-tangents")
def test_lifted_by_half_it_is_the_best_of_all_maxima_of_lines() -> None:
    best = convex_interpolant(torch.exp, 4, (-1.0, 2.0))
    x = torch.linspace(-1, 2, 2001, dtype=D)
    slopes, intercepts = (part.clone().requires_grad_() for part in lines(best.unit))
    lifted = at(best.unit, x) + best.error / 2
    assert math.isclose((torch.exp(x) - lifted).abs().max(), best.error / 2, rel_tol=1e-6)
    optimiser = torch.optim.Adam([slopes, intercepts], lr=1e-3)  # descent from there finds nothing lower
    for _ in range(150):
        worst = (torch.exp(x) - maxout(x[:, None], slopes[:, None], intercepts, 4)[:, 0]).abs().max()
        assert worst >= best.error / 2 * (1 - 1e-6)
        optimiser.zero_grad()
        worst.backward()
        optimiser.step()


@pytest.mark.theorem("thm-maxout-rate")
@settings(max_examples=15)
@given(st.integers(1, 20), st.floats(-3, 3), st.floats(0.1, 5))
@example(3, -1.0, 2.0)
def test_the_square_has_exactly_the_error_of_the_bound(pieces: int, a: float, length: float) -> None:
    best = convex_interpolant(torch.square, pieces, (a, a + length))
    wanted = (length / (2 * pieces)) ** 2
    assert math.isclose(best.error, wanted, rel_tol=1e-9)
    middles = a + length * (torch.arange(pieces, dtype=D) + 0.5) / pieces
    torch.testing.assert_close(best.points, middles, rtol=0, atol=1e-6)


@pytest.mark.theorem("thm-maxout-rate")
@pytest.mark.parametrize(
    ("f", "interval", "bound"),
    [
        (torch.exp, (-2.0, 1.0), math.exp(1)),
        (torch.cosh, (-1.0, 2.0), math.cosh(2)),
        (lambda x: x**4, (-1.0, 1.0), 12.0),
        (F.softplus, (-4.0, 4.0), 0.25),
    ],
)
def test_the_error_of_tangents_falls_as_one_over_k_squared(f: Any, interval: Any, bound: float) -> None:
    a, b = interval
    errors = {k: convex_interpolant(f, k, interval).error for k in (1, 2, 4, 8, 16, 32)}
    for k, error in errors.items():
        assert error <= bound * (b - a) ** 2 / (8 * k**2)
    assert 3.5 < errors[16] / errors[32] < 4.1
    x = torch.linspace(a, b, 2001, dtype=D)
    for k in (1, 3, 7):  # equal parts and the tangents in their middles are enough for the bound
        points = (a + (b - a) * (torch.arange(k, dtype=D) + 0.5) / k).requires_grad_()
        (slopes,) = torch.autograd.grad(f(points).sum(), points)
        unit = maxout(x[:, None], slopes[:, None], (f(points) - slopes * points).detach(), k)[:, 0]
        assert (f(x) - unit).max() <= bound * (b - a) ** 2 / (8 * k**2)


@pytest.mark.theorem("thm-maxout-universal")
@settings(max_examples=8)
@given(st.integers(1, 3), seeds, st.sampled_from([0.5, 0.1]))
def test_finitely_many_tangents_come_as_near_as_one_likes_to_a_convex_function(d: int, seed: int, eps: float) -> None:
    centres = randn(3, d, seed=seed)
    f = lambda x: torch.logsumexp(x @ centres.T, -1) + (x - 0.3).norm(dim=-1)
    side = torch.linspace(-1, 1, {1: 101, 2: 17, 3: 7}[d], dtype=D)
    x = torch.cartesian_prod(*[side] * d).reshape(-1, d)
    points = torch.empty(0, d, dtype=D)
    g = torch.full((len(x),), -math.inf, dtype=D)
    while (f(x) - g).max() > eps:  # where the maximum of tangents is too low, add the tangent there
        worst = x[(f(x) - g).argmax()][None].requires_grad_()
        (slope,) = torch.autograd.grad(f(worst).sum(), worst)
        tangent = f(worst).detach() + (x - worst.detach()) @ slope[0]
        assert (tangent <= f(x) + 1e-9).all()
        g, points = torch.maximum(g, tangent), torch.cat([points, worst.detach()])
        assert len(points) <= 400
    assert (g <= f(x) + 1e-9).all()


@pytest.mark.theorem("thm-maxout-universal")
@pytest.mark.parametrize("eps", [0.1, 0.01])
def test_a_function_without_a_tangent_at_the_end_is_a_limit_too(eps: float) -> None:
    f = lambda x: -torch.sqrt(x)  # its slope at 0 is infinite
    best = convex_interpolant(f, math.ceil(0.6 / math.sqrt(eps)) + 1, (0.0, 1.0))
    x = torch.linspace(0, 1, 2001, dtype=D)
    assert (f(x) - at(best.unit, x)).abs().max() <= eps
    shrunk = lambda x: f(0.5 + (1 - eps**2) * (x - 0.5))  # the device of the proof
    assert (shrunk(x) - f(x)).abs().max() <= eps


@pytest.mark.parametrize("name", ["lines", "huber"])
def test_a_function_of_few_pieces_is_found_exactly(name: str) -> None:
    if name == "lines":
        f, interval, enough = CONVEX["lines"][0], (-1.0, 1.0), 7
    else:
        f, interval, enough = (lambda x: torch.relu(x) + torch.relu(3 * x - 1)), (-2.0, 2.0), 3
    for pieces in (enough, enough + 1, 40):
        best = convex_interpolant(f, pieces, interval)
        x = torch.linspace(*interval, 997, dtype=D)
        assert best.error <= 1e-14
        torch.testing.assert_close(at(best.unit, x), f(x), rtol=0, atol=1e-13)
        assert len(set(zip(*(part.tolist() for part in lines(best.unit)), strict=True))) == enough
    assert convex_interpolant(f, enough - 1, interval).error > 1e-3


@pytest.mark.parametrize("pieces", [1, 2, 9])
def test_an_affine_function_needs_one_piece(pieces: int) -> None:
    for f in (lambda x: 3 * x - 1, lambda x: 0 * x + 2, torch.zeros_like):
        best = convex_interpolant(f, pieces, (-1.0, 4.0))
        assert best.error == 0
        assert len(set(best.unit.weight.flatten().tolist())) == 1


def test_kinks_where_autograd_gives_a_slope_between_are_no_trouble() -> None:
    best = convex_interpolant(torch.abs, 2, (-1.0, 1.0))  # the middle of the interval is the kink
    assert (best.error, best.breakpoints.item()) == (0.0, 0.0)
    assert sorted(best.unit.weight.flatten().tolist()) == [-1, 1]
    best = convex_interpolant(lambda x: x.abs() + (x - 0.5).abs() + (x + 0.5).abs(), 4, (-1.0, 1.0))
    assert best.error <= 1e-15
    assert best.breakpoints.tolist() == [-0.5, 0.0, 0.5]


def test_sixty_four_pieces_of_a_hard_function() -> None:
    f, interval = CONVEX["root"]
    best = convex_interpolant(f, 64, interval)
    # -sqrt has E(l, r) = (sqrt r - sqrt l)^2 / (4 (sqrt r + sqrt l)), which is solved by x_i = (i (i + 1))^2 * const
    ends = torch.tensor([(i * (i + 1)) ** 2 for i in range(65)], dtype=D) / (64 * 65) ** 2
    roots = ends.sqrt()
    errors = roots.diff().square() / (4 * (roots[1:] + roots[:-1]))
    torch.testing.assert_close(best.breakpoints, ends[1:-1], rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(errors, torch.full((64,), best.error, dtype=D), rtol=1e-9, atol=0)


def _equal_ratios(k: int, decades: int) -> tuple[Tensor, float]:
    """For -log on (10^-decades, 1): where the best lines meet, and their error, which depends on r / l alone."""
    step = decades * math.log(10) / k
    quotient = step / math.expm1(step)  # log(q) / (q - 1)
    return torch.exp(step * torch.arange(1 - k, 0, dtype=D)), quotient - 1 - math.log(quotient)


@pytest.mark.theorem("prop-best-tangents")
@pytest.mark.parametrize("decades", [1, 6, 10, 30, 100, 300])
@pytest.mark.parametrize("pieces", [1, 2, 5, 16])
def test_steep_ends_are_resolved(decades: int, pieces: int) -> None:
    end = 10.0**-decades
    best = convex_interpolant(lambda x: -x.log(), pieces, (end, 1.0))
    breakpoints, error = _equal_ratios(pieces, decades)
    assert math.isclose(best.error, error, rel_tol=1e-9)
    torch.testing.assert_close(best.breakpoints.log(), breakpoints.log(), rtol=1e-6, atol=0)
    mirrored = convex_interpolant(lambda x: -(-x).log(), pieces, (-1.0, -end))
    assert math.isclose(mirrored.error, error, rel_tol=1e-9)
    torch.testing.assert_close(-mirrored.breakpoints.flip(0), best.breakpoints, rtol=1e-6, atol=0)


def test_bends_much_narrower_than_the_samples_are_found() -> None:
    soft = lambda x: F.softplus(1e8 * x) / 1e8  # two lines, but for 1e-7 about 0
    assert math.isclose(convex_interpolant(soft, 2, (-1.0, 1.0)).error, math.log(2) / 1e8, rel_tol=1e-5)
    narrower = lambda x: F.softplus(1e11 * (x - 0.1)) / 1e11
    for pieces in (3, 5):  # the same bend a thousand times narrower has a thousandth of the error
        wide, narrow = (convex_interpolant(f, pieces, (-1.0, 1.0)).error for f in (soft, narrower))
        assert math.isclose(narrow, wide / 1000, rel_tol=1e-2)
    for pieces in (2, 4, 5):  # two parabolas of 4e-8 f'' = 2e-8; a fifth line at the kink gains next to nothing
        best = convex_interpolant(lambda x: x.abs() + 1e-8 * x**2, pieces, (-1.0, 1.0))
        assert math.isclose(best.error, 1e-8 / (2 * (pieces // 2)) ** 2, rel_tol=1e-5)


def test_many_pieces_are_quick() -> None:
    began = time.process_time()
    best = convex_interpolant(CONVEX["root"][0], 300, (0.0, 1.0))
    assert time.process_time() - began < 6  # it takes 1.3
    assert math.isclose(best.error, 1 / (2 * 300 * 301), rel_tol=1e-6)


# --- differences ----------------------------------------------------------------------------------

paths = st.lists(st.tuples(st.integers(1, 9), st.integers(-9, 9)), min_size=2, max_size=9)


@pytest.mark.theorem("thm-difference-of-maxouts")
@given(paths)
@example([(1, 0), (1, 5), (1, 0)])
@example([(1, 0), (1, 1), (1, 2)])
def test_every_path_of_lines_is_one_unit_minus_another(path: list[tuple[int, int]]) -> None:
    steps, values = (torch.tensor(part, dtype=D) for part in zip(*path, strict=True))
    t = steps.cumsum(0)
    both = difference_of_maxouts(t, values)
    slopes = values.diff() / t.diff()
    torch.testing.assert_close(at(both, t), values, rtol=0, atol=1e-11)
    middles = (t[1:] + t[:-1]) / 2
    torch.testing.assert_close(at(both, middles), (values[1:] + values[:-1]) / 2, rtol=0, atol=1e-11)
    outside = torch.stack([t[0] - 7, t[-1] + 5])
    wanted = torch.stack([values[0] - 7 * slopes[0], values[-1] + 5 * slopes[-1]])
    torch.testing.assert_close(at(both, outside), wanted, rtol=0, atol=1e-10)
    bends = slopes.diff()
    assert both.positive.pieces == 1 + int((bends > 0).sum())
    assert both.negative.pieces == 1 + int((bends < 0).sum())
    for unit in (both.positive, both.negative):  # no line is spare
        assert len(visible(*lines(unit))) == unit.pieces or unit.pieces == 1 or bends.abs().min() < 1e-9


@pytest.mark.theorem("thm-difference-of-maxouts")
@quick
@given(st.integers(1, 3), st.integers(2, 5), seeds)
def test_adding_the_folds_makes_any_piecewise_linear_function_convex(d: int, count: int, seed: int) -> None:
    slopes, offsets = whole(count, d, seed=seed), whole(count, seed=seed + 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()

    def f(x: Tensor) -> Tensor:  # minima and maxima in turn: every piece is one of the affine functions
        z = x @ slopes.T + offsets
        y = z[..., order[0]]
        for n, j in enumerate(order[1:]):
            y = torch.minimum(y, z[..., j]) if n % 2 == 0 else torch.maximum(y, z[..., j])
        return y

    def folds(x: Tensor) -> Tensor:  # the pieces meet on hyperplanes u_i = u_j, and the gradient jumps by u_i - u_j
        z = x @ slopes.T + offsets
        return (
            sum(
                ((z[..., i] - z[..., j]).abs() for i, j in itertools.combinations(range(count), 2)), start=0 * z[..., 0]
            )
            / 2
        )

    x, v = whole(80, d, seed=seed + 2, size=9), whole(80, d, seed=seed + 3, size=5)
    h = lambda x: f(x) + folds(x)
    assert (2 * h(x) <= h(x - v) + h(x + v)).all()
    assert (2 * folds(x) <= folds(x - v) + folds(x + v)).all()


@pytest.mark.theorem("thm-difference-of-maxouts")
@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
@pytest.mark.parametrize(
    ("count", "first", "width"), [(500, 0.0, 1.0), (50, 1000.0, 1.0), (40, -1e-3, 1e6), (2, 7.0, 1.0)]
)
def test_a_difference_is_wrong_by_rounding_alone(dtype: torch.dtype, count: int, first: float, width: float) -> None:
    generator = torch.Generator().manual_seed(count)
    for _ in range(5):
        t = (first + width * torch.rand(count, dtype=D, generator=generator)).to(dtype).unique()
        y = torch.randn(len(t), dtype=D, generator=generator).to(dtype)
        both = difference_of_maxouts(t, y)
        slopes = y.double().diff() / t.double().diff()
        steep = slopes[(len(t) - 2) // 2].abs() + slopes.diff().abs().sum()
        eps = torch.finfo(dtype).eps * (5 if dtype == torch.float32 else len(t) + 10)
        bound = eps * (y.abs().max() + steep * t.abs().max()).item()
        x = torch.cat([t, (t[1:] + t[:-1]) / 2])
        left = (torch.searchsorted(t, x, right=True) - 1).clamp(max=len(t) - 2)
        wanted = y.double()[left] + slopes[left] * (x.double() - t.double()[left])
        assert (at(both, x).double() - wanted).abs().max() <= bound


def test_the_lines_start_in_the_middle_so_that_less_cancels() -> None:
    t = torch.arange(101, dtype=D)
    both = difference_of_maxouts(t, (t % 2))  # slopes 1 and -1 in turn
    for unit in (both.positive, both.negative):
        weight, bias = lines(unit)
        assert weight.abs().max() <= 52  # from an end: 101
        assert bias.abs().max() <= 4000  # from an end: 5000


@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
def test_bends_that_are_rounding_are_none(dtype: torch.dtype) -> None:
    for count in (11, 100, 1000):
        t = torch.linspace(0, 1, count, dtype=dtype)
        for f in (lambda t: 3 * t, lambda t: 0.1 - t / 3, lambda t: 7 * (t - 0.5), torch.zeros_like):
            both = difference_of_maxouts(t, f(t))
            assert (both.positive.pieces, both.negative.pieces) == (1, 1)
        bent = difference_of_maxouts(t, (3 * t).maximum(1 + 0 * t))
        assert bent.positive.pieces <= 3  # the kink lies between two breakpoints
        assert bent.negative.pieces == 1
        curve = difference_of_maxouts(t, t * t)  # true bends, however small, are kept as far as the values show them
        assert (at(curve, t) - t * t).abs().max() <= 8 * torch.finfo(dtype).eps
    small = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0], dtype=dtype)
    tiny = torch.tensor([0.0, 0.0, 1e-20, 0.0, 0.0], dtype=dtype)
    hat = difference_of_maxouts(small, tiny)
    assert (hat.positive.pieces, hat.negative.pieces) == (3, 2)
    torch.testing.assert_close(at(hat, small), tiny, rtol=0, atol=1e-25)


def test_a_difference_keeps_the_dtype_and_is_a_module() -> None:
    for dtype in (torch.float32, torch.float64):
        both = difference_of_maxouts(
            torch.tensor([0.0, 1.0, 3.0], dtype=dtype), torch.tensor([1.0, 0.0, 5.0], dtype=dtype)
        )
        assert isinstance(both, DifferenceOfMaxouts)
        assert {p.dtype for p in both.parameters()} == {dtype}
        assert both(torch.ones(2, 3, 1, dtype=dtype)).shape == (2, 3, 1)
    assert list(both.state_dict()) == ["positive.weight", "positive.bias", "negative.weight", "negative.bias"]


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.theorem("prop-two-parametrisations")
def test_the_same_function_in_other_parameters_has_other_gradients() -> None:
    torch.manual_seed(0)
    x, upstream = randn(30, 4), randn(30, 3, seed=1)
    pair = nn.Sequential(nn.Linear(4, 3, dtype=D), nn.ReLU())
    unit = as_maxout(pair)
    torch.testing.assert_close(pair(x), unit(x), rtol=1e-14, atol=1e-15)
    pair(x).backward(upstream)
    unit(x).backward(upstream)
    by_piece, by_bias = unit.weight.grad.reshape(3, 2, 4), unit.bias.grad.reshape(3, 2)
    torch.testing.assert_close(by_piece[:, 1], pair[0].weight.grad)
    torch.testing.assert_close(by_bias[:, 1], pair[0].bias.grad)
    z = pair[0](x)
    torch.testing.assert_close(by_piece[:, 0], ((z <= 0) * upstream).T @ x)  # where the ReLU is off
    assert by_piece[:, 0].abs().min() > 1e-3
    of_linear = linear_jacobians(x[0], pair[0].weight)[1]  # the pieces together get what a linear unit gets
    assert of_linear.shape == (3, 12)
    torch.testing.assert_close(by_piece.sum(1), upstream.T @ x)
    with torch.no_grad():
        for p in [*pair.parameters(), *unit.parameters()]:
            p -= 0.1 * p.grad
    assert (pair(x) - unit(x)).abs().max() > 1e-3  # after one step they are two functions


def test_a_dead_relu_stays_dead_and_the_same_maxout_unit_learns() -> None:
    x = randn(40, 2)
    pair = nn.Sequential(nn.Linear(2, 1, dtype=D), nn.ReLU())
    with torch.no_grad():
        pair[0].bias.fill_(-50)
    unit, target = as_maxout(pair), x[:, :1].abs()
    losses = {}
    for name, net in (("relu", pair), ("maxout", unit)):
        for _ in range(100):
            loss = (net(x) - target).square().mean()
            net.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in net.parameters():
                    p -= 0.1 * p.grad
        losses[name] = loss.item()
    assert losses["relu"] == target.square().mean()
    assert losses["maxout"] < 0.7 * losses["relu"]


Parameters = list[Tensor]


def _digits(seeds: int, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    data = load_digits()
    x, y = torch.tensor(data.data) / 16, torch.tensor(data.target)
    order = torch.stack([torch.randperm(len(x), generator=generator) for _ in range(seeds)])
    return x[order[:, :count]], y[order[:, :count]], x[order[:, -797:]], y[order[:, -797:]]


def _networks(seeds: int, units: int, pieces: int, generator: torch.Generator) -> Parameters:
    sizes = ((64, (64, units * pieces)), (64, (1, units * pieces)), (units, (units, 10)), (units, (1, 10)))
    return [
        ((2 * torch.rand(seeds, *shape, generator=generator, dtype=D) - 1) / fan**0.5).requires_grad_()
        for fan, shape in sizes
    ]


def _scores(net: Parameters, x: Tensor, pieces: int, mask: Tensor | None = None) -> Tensor:
    z = torch.baddbmm(net[1], x, net[0])
    h = z.relu() if pieces == 1 else z.unflatten(2, (-1, pieces)).amax(3)
    return torch.baddbmm(net[3], h if mask is None else h * mask, net[2])


def _train(
    net: Parameters, x: Tensor, y: Tensor, pieces: int, steps: int, *, decay: float = 0.0, dropout: Any = None
) -> None:
    optimiser = torch.optim.Adam(net, 0.02)
    for _ in range(steps):
        mask = None
        if dropout is not None:
            mask = (torch.rand(*x.shape[:2], net[2].shape[1], generator=dropout, dtype=D) > 0.5) * 2.0
        loss = F.cross_entropy(_scores(net, x, pieces, mask).flatten(0, 1), y.flatten(), reduction="sum") / x.shape[1]
        loss = loss + decay * (net[0].square().sum() + net[2].square().sum())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _accuracy(net: Parameters, x: Tensor, y: Tensor, pieces: int) -> float:
    with torch.no_grad():
        return (_scores(net, x, pieces).argmax(2) == y).double().mean().item()


def test_on_wrong_labels_more_pieces_memorise_more_and_weight_decay_helps_them_more() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, unseen, truth = _digits(3, 600, generator)
    wrong = torch.rand(y.shape, generator=generator) < 0.2
    y = torch.where(wrong, torch.randint(0, 10, y.shape, generator=generator), y)
    memory, gain = {}, {}
    for pieces in (1, 4):
        scores = {}
        for decay in (0.0, 0.01):
            net = _networks(3, 16, pieces, torch.Generator().manual_seed(1))
            _train(net, x, y, pieces, 70, decay=decay)
            scores[decay] = _accuracy(net, unseen, truth, pieces)
            if decay == 0:
                memory[pieces] = _accuracy(net, x, y, pieces)
        gain[pieces] = scores[0.01] - scores[0.0]
    assert memory[4] > memory[1] + 0.03
    assert gain[4] > gain[1] + 0.02
    assert gain[1] > 0


def test_training_on_a_second_task_alone_forgets_the_first() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, unseen, truth = _digits(3, 300, generator)
    shuffle = torch.randperm(64, generator=generator)
    for pieces, units in ((1, 56), (2, 30)):
        net = _networks(3, units, pieces, torch.Generator().manual_seed(1))
        _train(net, x, y, pieces, 60)
        before = _accuracy(net, unseen, truth, pieces)
        _train(net, x[..., shuffle], y, pieces, 60)
        after = _accuracy(net, unseen, truth, pieces)
        assert before > 0.9
        assert _accuracy(net, unseen[..., shuffle], truth, pieces) > 0.85
        assert after < before - 0.2
