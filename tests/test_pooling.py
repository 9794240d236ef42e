"""The theorems of the chapter *Pooling*, and every property of its module."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import sympy as sp
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import hessian, jacfwd, jacrev, vmap

import pwl_lib.nn as pnn
from pwl_lib import pooling
from pwl_lib.convolution import gather_matrix
from pwl_lib.kronecker import kron, unvec, vec, vec_permutation
from pwl_lib.pooling import averaging_matrix, avg_pool2d, max_pool2d, selection_matrix
from pwl_lib.subgradients import ConvexHull, subdifferential_max

D = torch.float64
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
RULES = ["row-major", "column-major"]
A = torch.tensor([[1, 3, 1, 4], [2, 8, 5, 1], [3, 2, 0, 3]], dtype=D)

quick = settings(max_examples=40)
seeds = st.integers(0, 2**31 - 1)
each_rule = pytest.mark.parametrize("ties", RULES)


@st.composite
def scans(draw: Any, *, dilated: bool = True) -> tuple[tuple[int, int], dict[str, Any]]:
    """The size of an image, and words of a pooling function that fit it."""
    size, words = [], {"kernel_size": [], "stride": [], "padding": [], "dilation": []}
    for _ in range(2):
        k = draw(st.integers(1, 4))
        p, d = draw(st.integers(0, k // 2)), draw(st.integers(1, 3)) if dilated else 1
        for word, value in zip(words.values(), (k, draw(st.integers(1, 4)), p, d), strict=True):
            word.append(value)
        least = max(1, d * (k - 1) + 1 - 2 * p, d if p else 1)  # for one window, and for a pixel in each
        size.append(draw(st.integers(least, max(8, least))))
    words["ceil_mode"] = draw(st.booleans())
    if not dilated:
        del words["dilation"]
    return (size[0], size[1]), words


def image(*shape: int, seed: int = 0, dtype: torch.dtype = D) -> Tensor:
    """Different numbers: no window has a tie."""
    order = torch.randperm(math.prod(shape), generator=torch.Generator().manual_seed(seed))
    return (order.reshape(shape) - order.numel() / 2).to(dtype)


def tied_image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed)).to(D)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def whole_like(y: Tensor, seed: int = 0) -> Tensor:
    """Small whole numbers, whose sums are exact in any order."""
    return torch.randint(-9, 10, y.shape, generator=torch.Generator().manual_seed(seed)).to(y)


def windows_by_the_definition(
    size: tuple[int, int], words: dict[str, Any]
) -> tuple[list[tuple[int, int]], dict[tuple[int, int], list[tuple[int, int]]]]:
    """Output positions, and the pixels of each window, word for word as in the chapter."""
    k, s, p = words["kernel_size"], words["stride"], words["padding"]
    d, axes = words.get("dilation", (1, 1)), []
    for axis in (0, 1):
        n = size[axis]
        quotient = (n + 2 * p[axis] - d[axis] * (k[axis] - 1) - 1) / s[axis]
        count = (math.ceil(quotient) if words["ceil_mode"] else math.floor(quotient)) + 1
        if words["ceil_mode"] and (count - 1) * s[axis] >= n + p[axis]:
            count -= 1
        reached = [[s[axis] * o + d[axis] * c - p[axis] for c in range(k[axis])] for o in range(count)]
        axes.append([[place for place in window if 0 <= place < n] for window in reached])
    rows, columns = axes
    positions = list(itertools.product(range(len(rows)), range(len(columns))))
    return positions, {(i, j): list(itertools.product(rows[i], columns[j])) for i, j in positions}


def winner_by_the_definition(x: Tensor, window: list[tuple[int, int]], ties: str) -> tuple[int, int]:
    largest = max(x[place].item() for place in window)
    order = (lambda place: place) if ties == "row-major" else (lambda place: place[::-1])
    return min((place for place in window if x[place] == largest), key=order)


def raises(kind: type[Exception], *said: str) -> Any:
    """The error names the argument, what it had and what was wanted."""
    return pytest.raises(kind, match="(?s)" + "".join(f"(?=.*{part})" for part in said))


# --- windows --------------------------------------------------------------------------------------


@quick
@given(scans(), seeds)
@example(
    ((3, 4), {"kernel_size": [2, 2], "stride": [2, 2], "padding": [0, 0], "dilation": [1, 1], "ceil_mode": True}), 0
)
@example(
    ((2, 2), {"kernel_size": [2, 2], "stride": [3, 3], "padding": [1, 1], "dilation": [1, 1], "ceil_mode": True}), 0
)
def test_shapes_and_values_are_those_of_the_definition(scan: Any, seed: int) -> None:
    size, words = scan
    x = tied_image(*size, seed=seed)
    positions, windows = windows_by_the_definition(size, words)
    y = max_pool2d(x[None], **words)[0]
    assert tuple(y.shape) == tuple(n + 1 for n in positions[-1])
    assert torch.equal(y, F.max_pool2d(x[None], **words)[0])
    for position in positions:
        assert y[position] == max(x[place] for place in windows[position])


def test_tiles_divide_the_size_by_the_kernel() -> None:
    for k, H, W in ((1, 3, 4), (2, 4, 6), (3, 9, 3)):
        assert max_pool2d(image(5, H, W), k).shape == (5, H // k, W // k)
        tiles = image(5, H, W).reshape(5, H // k, k, W // k, k)
        assert torch.equal(max_pool2d(image(5, H, W), k), tiles.amax((2, 4)))


# --- the selection matrix -------------------------------------------------------------------------


@pytest.mark.theorem("thm-selection")
@quick
@given(scans(), st.sampled_from(RULES), seeds)
def test_max_pooling_is_a_selection_with_a_single_one_in_each_row(scan: Any, ties: str, seed: int) -> None:
    size, words = scan
    for x in (image(2, 3, *size, seed=seed), tied_image(2, 3, *size, seed=seed)):
        S = selection_matrix(x, **words, ties=ties)
        assert S.is_sparse
        assert S.is_coalesced()
        assert S.values().eq(1).all()
        assert torch.equal(S.indices()[0], torch.arange(S.shape[0]))
        assert torch.equal(S @ vec(x), vec(F.max_pool2d(x, **words)))
        other = randn(*x.shape, seed=seed)
        change = max_pool2d(x, **words, ties=ties) - max_pool2d(other, **words, ties=ties)
        assert change.abs().max() <= (x - other).abs().max()


@pytest.mark.theorem("thm-selection")
@quick
@given(scans(), seeds)
def test_the_selection_matrix_is_the_jacobian_and_constant_near_an_image_without_ties(scan: Any, seed: int) -> None:
    size, words = scan
    x = image(2, *size, seed=seed)
    S = selection_matrix(x, **words)
    for f in (max_pool2d, F.max_pool2d):
        jacobian = jacrev(lambda v, f=f: vec(f(unvec(v, x.shape), **words)))(vec(x))
        assert torch.equal(jacobian, S.to_dense())
    # numbers are at least 1 apart, so a change below 1/2 moves no winner
    nearby = x + randn(*x.shape, seed=seed).clamp(-0.49, 0.49)
    assert torch.equal(selection_matrix(nearby, **words).indices(), S.indices())
    assert torch.equal(S @ vec(nearby), vec(max_pool2d(nearby, **words)))


def test_one_row_of_the_matrix_is_the_one_hot_vector_of_the_maximum_of_a_list() -> None:
    x = randn(1, 1, 7).requires_grad_()
    w = selection_matrix(x, (1, 7)).to_dense()
    y = max_pool2d(x, (1, 7))
    assert torch.equal(y.flatten(), w @ x.detach().flatten())
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0].flatten(), w[0])
    assert torch.equal(w[0], F.one_hot(x.argmax(), 7).to(D))


def test_the_example_image() -> None:
    S = selection_matrix(A[None], 2, stride=1)
    assert S.indices()[1].tolist() == [4, 4, 4, 4, 7, 7]
    assert max_pool2d(A[None], 2, 1).tolist() == [[[8, 8, 5], [8, 8, 5]]]
    assert max_pool2d(A[None], 2, 2, ceil_mode=True).tolist() == [[[8, 5], [3, 3]]]
    X = sp.Matrix(3, 4, lambda i, j: sp.Symbol(f"x{i}{j}", real=True))
    outputs = sp.Matrix([sp.Max(*X[i : i + 2, j : j + 2]) for j in range(3) for i in range(2)])
    numbers = {X[i, j]: int(A[i, j]) for i in range(3) for j in range(4)}
    symbolic = outputs.jacobian(sp.Matrix(list(X.T))).subs(numbers)
    assert symbolic == sp.Matrix(S.to_dense().int().tolist())


# --- ties -----------------------------------------------------------------------------------------


@pytest.mark.theorem("prop-ties")
@quick
@given(scans(), st.sampled_from(RULES), seeds)
def test_each_rule_takes_the_winner_that_the_definition_names(scan: Any, ties: str, seed: int) -> None:
    size, words = scan
    x = tied_image(*size, seed=seed)
    positions, windows = windows_by_the_definition(size, words)
    winners = [winner_by_the_definition(x, windows[position], ties) for position in positions]
    _, index = max_pool2d(x[None], **words, return_indices=True, ties=ties)
    assert index.dtype == torch.int64
    assert index.flatten().tolist() == [i * size[1] + j for i, j in winners]
    if ties == "row-major":
        assert torch.equal(index, F.max_pool2d(x[None], **words, return_indices=True)[1])
    column = torch.tensor([j * size[0] + i for i, j in winners]).reshape(index.shape[1:])
    assert torch.equal(selection_matrix(x[None], **words, ties=ties).indices()[1], vec(column))


@pytest.mark.theorem("prop-ties")
@quick
@given(scans(), st.sampled_from(RULES), seeds)
def test_at_ties_each_row_is_a_subgradient_of_its_output(scan: Any, ties: str, seed: int) -> None:
    size, words = scan
    x = tied_image(*size, seed=seed)
    positions, windows = windows_by_the_definition(size, words)
    rows = unvec(selection_matrix(x[None], **words, ties=ties).to_dense(), size)
    out_rows = positions[-1][0] + 1
    for i, j in positions[:: max(1, len(positions) // 5)]:
        mine = rows[j * out_rows + i]
        inside = torch.stack([mine[place] for place in windows[i, j]])
        assert mine.sum() == inside.sum() == 1
        assert subdifferential_max(torch.stack([x[place] for place in windows[i, j]])).contains(inside)


@pytest.mark.theorem("prop-ties")
@quick
@given(scans(), st.sampled_from([*RULES, "any order"]), seeds)
def test_winners_of_one_order_are_a_limit_of_jacobians(scan: Any, rule: str, seed: int) -> None:
    size, words = scan
    x = tied_image(1, *size, seed=seed)
    n = x.numel()
    order = {
        "row-major": torch.arange(n).reshape(size),
        "column-major": torch.arange(n).reshape(size[::-1]).T,
        "any order": torch.randperm(n, generator=torch.Generator().manual_seed(seed)).reshape(size),
    }[rule]
    positions, windows = windows_by_the_definition(size, words)
    picks = []
    for position in positions:
        top = max(x[0][place] for place in windows[position])
        picks.append(min((place for place in windows[position] if x[0][place] == top), key=lambda place: order[place]))
    for k in (1e3, 1e6):
        y, index = max_pool2d(x - order / (k * n), **words, return_indices=True)
        assert index.flatten().tolist() == [i * size[1] + j for i, j in picks]
    if rule != "any order":
        assert torch.equal(index, max_pool2d(x, **words, return_indices=True, ties=rule)[1])
    assert torch.isclose(y, max_pool2d(x, **words), atol=1e-5).all()


@pytest.mark.theorem("prop-ties")
@settings(max_examples=10)
@given(seeds)
@example(0)
def test_what_backprop_returns_at_ties_is_in_clarkes_set_of_the_loss(seed: int) -> None:
    x = torch.randint(0, 2, (1, 2, 3), generator=torch.Generator().manual_seed(seed)).to(D)
    target = randn(1, 1, 2, seed=seed)
    loss = lambda x, pool: (pool(x) * target - pool(x) ** 2 / 3).sum()  # no convex function
    limits = []
    for order in itertools.permutations(range(6)):
        nearby = (x - 1e-9 * torch.tensor(order).reshape(1, 2, 3)).requires_grad_()
        limits.append(torch.autograd.grad(loss(nearby, lambda x: F.max_pool2d(x, 2, 1)), nearby)[0].flatten())
    clarke = ConvexHull(torch.stack(limits).unique(dim=0))
    pools = [lambda x, t=t: max_pool2d(x, 2, 1, ties=t) for t in RULES]
    pools.append(lambda x: x.unfold(1, 2, 1).unfold(2, 2, 1).amax((3, 4)))  # equal weights, part 3
    for pool in pools:
        at = x.clone().requires_grad_()
        assert clarke.contains(torch.autograd.grad(loss(at, pool), at)[0].flatten(), tol=1e-6)


def test_winners_drawn_one_by_one_can_leave_clarkes_set() -> None:
    limits = set()
    for order in itertools.permutations(range(4)):
        first, second = (min(window, key=order.index) for window in ((0, 1, 2), (1, 2, 3)))
        limits.add(tuple(float((n == first) - (n == second)) for n in range(4)))
    clarke = ConvexHull(torch.tensor(sorted(limits), dtype=D))
    assert not clarke.contains(torch.tensor([0.0, 1, -1, 0], dtype=D))
    x = torch.ones(1, 1, 4, dtype=D, requires_grad=True)
    for ties in RULES:
        y = max_pool2d(x, (1, 3), 1, ties=ties)
        assert clarke.contains(torch.autograd.grad(y[0, 0, 0] - y[0, 0, 1], x)[0].flatten())


def test_the_two_rules_differ_on_the_same_image_and_agree_without_ties() -> None:
    x = torch.tensor([[[1.0, 3, 3, 0], [3, 2, 0, 3], [0, 3, 3, 1]]], requires_grad=True)
    rows, columns = (torch.autograd.grad(max_pool2d(x, 2, 1, ties=ties).sum(), x)[0][0] for ties in RULES)
    assert rows.int().tolist() == [[0, 2, 1, 0], [1, 0, 0, 1], [0, 1, 0, 0]]
    assert columns.int().tolist() == [[0, 1, 1, 0], [2, 0, 0, 0], [0, 1, 1, 0]]
    assert torch.equal(rows, torch.autograd.grad(F.max_pool2d(x, 2, 1).sum(), x)[0][0])
    assert rows.sum() == columns.sum() == 6
    without = image(2, 5, 6)
    assert torch.equal(*(selection_matrix(without, 3, 2, 1, ties=ties).to_dense() for ties in RULES))


def test_sympys_derivative_of_a_maximum_is_no_subgradient_where_three_are_equal() -> None:
    names = sp.symbols("a b c", real=True)
    at_tie = sp.Matrix([sp.Max(*names)]).jacobian(names).subs(dict.fromkeys(names, 1))
    assert not subdifferential_max(torch.ones(3, dtype=D)).contains(torch.tensor([float(g) for g in at_tie], dtype=D))


# --- the backward pass ----------------------------------------------------------------------------


@pytest.mark.theorem("thm-overlap")
@quick
@given(scans(), st.sampled_from(RULES), seeds)
@example(
    ((4, 4), {"kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "ceil_mode": False}),
    "row-major",
    0,
)
def test_a_pixel_gets_the_sum_over_the_outputs_that_picked_it(scan: Any, ties: str, seed: int) -> None:
    size, words = scan
    x = tied_image(2, *size, seed=seed).requires_grad_()
    y, index = max_pool2d(x, **words, return_indices=True, ties=ties)
    g = whole_like(y, seed)
    (gradient,) = torch.autograd.grad(y, x, g)
    wanted = torch.zeros(2, x[0].numel(), dtype=D)
    for d in range(2):
        for place, upstream in zip(index[d].flatten().tolist(), g[d].flatten(), strict=True):
            wanted[d, place] += upstream
    assert torch.equal(gradient.flatten(1), wanted)
    S = selection_matrix(x, **words, ties=ties)
    assert torch.equal(vec(gradient), S.T @ vec(g))
    assert gradient.sum() == g.sum()
    counts = S.to_dense().T @ S.to_dense()
    assert torch.equal(counts, torch.diag(counts.diagonal()))
    picked = torch.stack([index[d].flatten().bincount(minlength=x[0].numel()) for d in range(2)]).to(D)
    assert torch.equal(counts.diagonal(), vec(picked.reshape(2, *size)))
    bound = math.prod(
        -(-k // (s // math.gcd(s, d)))
        for k, s, d in zip(words["kernel_size"], words["stride"], words["dilation"], strict=True)
    )
    assert picked.max() <= bound
    assert gradient.norm() <= math.sqrt(picked.max()) * g.norm() * (1 + 1e-12)


@pytest.mark.theorem("thm-overlap")
def test_the_bound_on_the_windows_that_share_a_pixel_is_attained() -> None:
    for k, s, d in ((3, 1, 1), (3, 2, 1), (4, 3, 1), (2, 2, 1), (3, 1, 2), (3, 2, 2), (3, 2, 3), (4, 6, 4)):
        most = 0
        for place in range(12, 18):
            x = torch.zeros(1, 30, 30, dtype=D)
            x[0, place, place] = 1
            most = max(most, int(selection_matrix(x, k, s, 0, d).to_dense().sum(0)[place * 31]))
        assert most == (-(-k // (s // math.gcd(s, d)))) ** 2


def test_a_backward_pass_that_assigns_loses_gradient_where_windows_overlap() -> None:
    x = A[None].clone().requires_grad_()
    y, index = max_pool2d(x, 2, 1, return_indices=True)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assigned = torch.zeros(12, dtype=D)
    assigned[index.flatten()] = 1
    assert gradient[0, 1, 1] == 4
    assert assigned[5] == 1
    step = torch.zeros_like(x)
    step[0, 1, 1] = 0.5
    assert (max_pool2d(x + step, 2, 1).sum() - y.sum()) / 0.5 == gradient[0, 1, 1]


@pytest.mark.theorem("prop-disjoint")
@quick
@given(st.tuples(*[st.integers(1, 3)] * 4), st.tuples(st.integers(0, 2), st.integers(0, 2)), st.booleans(), seeds)
def test_of_disjoint_windows_a_pixel_wins_at_most_once(
    kd: tuple[int, ...], more: tuple[int, int], ceil_mode: bool, seed: int
) -> None:
    k, d = kd[:2], kd[2:]
    stride = [dd * (kk - 1) + 1 + m for kk, dd, m in zip(k, d, more, strict=True)]
    words = {"kernel_size": k, "stride": stride, "dilation": d, "ceil_mode": ceil_mode}
    x = tied_image(2, 9, 8, seed=seed).requires_grad_()
    S = selection_matrix(x, **words)
    assert S.to_dense().sum(0).max() <= 1
    assert torch.equal(S.to_dense() @ S.to_dense().T, torch.eye(S.shape[0], dtype=D))
    y, index = max_pool2d(x, **words, return_indices=True)
    g = randn(*y.shape, seed=seed)
    (gradient,) = torch.autograd.grad(y, x, g)
    assert torch.equal(gradient.flatten(1), torch.zeros(2, 72, dtype=D).scatter(1, index.flatten(1), g.flatten(1)))
    torch.testing.assert_close(gradient.norm(), g.norm())


@quick
@given(scans(), st.sampled_from(DTYPES), st.booleans(), seeds)
def test_value_winner_and_gradient_are_torchs_bit_for_bit(
    scan: Any, dtype: torch.dtype, channels_last: bool, seed: int
) -> None:
    size, words = scan
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 2.0])
    pick = torch.randint(0, 8 if seed % 2 else 3, (2, 5, *size), generator=torch.Generator().manual_seed(seed))
    x = special[pick].to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    results = []
    for pool in (max_pool2d, F.max_pool2d):
        at = x.clone().requires_grad_()
        y, index = pool(at, **words, return_indices=True)
        g = randn(*y.shape, seed=seed).to(dtype)
        results.append((y.detach(), index, torch.autograd.grad(y, at, g)[0]))
    if dtype in (torch.float16, torch.bfloat16):  # torch rounds after each addition, we round the sum
        (*_, ours), (*_, theirs) = (result for result in results)
        exact = torch.zeros(2, 5, x[0, 0].numel(), dtype=D).scatter_add(
            2, results[0][1].flatten(2), g.double().flatten(2)
        )
        assert (
            torch.equal(ours, exact.to(dtype).reshape(x.shape))
            or (ours - exact.reshape(x.shape)).abs().max() <= (theirs - exact.reshape(x.shape)).abs().max()
        )
        results = [result[:2] for result in results]
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.stride() == theirs.stride()
        assert (((ours == theirs) & (ours.signbit() == theirs.signbit())) | (ours.isnan() & theirs.isnan())).all()


@pytest.mark.parametrize("shape", [(1, 64, 80, 90), (2, 5, 300, 70)])
def test_large_images_and_wide_windows(shape: tuple[int, ...]) -> None:
    x = randn(*shape).float()
    for words in [(2,), (3, 2, 1), ((17, 16), 5), ((16, 16), 4), (3, 1, 0, 20), ((shape[2], shape[3]),)]:
        results = []
        for pool in (max_pool2d, F.max_pool2d):
            at = x.clone().requires_grad_()
            y, index = pool(at, *words, return_indices=True)
            results.append((y.detach(), index, torch.autograd.grad(y, at, whole_like(y))[0]))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shape", [(1, 1, 2, 2_000_000), (1, 1, 3_000_000, 2), (1, 1, 2100, 2100)])
def test_images_with_millions_of_pixels(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    x.view(-1)[::97] = torch.rand(len(x.view(-1)[::97]))
    for words in [((2, 2), (2, 1)), ((2, 2), 1)]:
        at = x.clone().requires_grad_()
        y, index = max_pool2d(at, *words, return_indices=True)
        assert torch.equal(index, F.max_pool2d(x, *words, return_indices=True)[1])
        assert torch.equal(
            torch.autograd.grad(y.sum(), at)[0].flatten(), index.flatten().bincount(minlength=x.numel()).float()
        )


def test_each_place_in_an_image_and_in_a_window_is_found_again() -> None:
    for width in range(1, 260):
        x = torch.zeros(1, 20, width, requires_grad=True)
        _, index = max_pool2d(x, 1, return_indices=True)
        assert torch.equal(index.flatten(), torch.arange(20 * width))
    for height, width in [*((240 // n, n) for n in range(1, 60)), (3, 100), (30, 41), (12, 55)]:
        one_hot = F.pad(torch.eye(height * width).reshape(-1, 1, height, width), (0, 1)).requires_grad_()
        y, index = max_pool2d(one_hot, (height, width), 2, return_indices=True)  # one window, and a column beside it
        assert torch.equal(index.flatten(), torch.arange(height * (width + 1)).reshape(height, -1)[:, :-1].flatten())
        assert torch.equal(torch.autograd.grad(y.sum(), one_hot)[0], one_hot.detach())


def test_an_image_with_more_pixels_than_float32_can_count() -> None:
    x = torch.zeros(1, 1, 2, 10_000_001, dtype=torch.float16)
    x[..., 1, 2::1000] = 1  # odd places, which float32 does not have there
    at = x.clone().requires_grad_()
    y, index = max_pool2d(at, (2, 3), (2, 1000), return_indices=True)
    assert torch.equal(index, F.max_pool2d(x, (2, 3), (2, 1000), return_indices=True)[1])
    assert torch.equal(torch.autograd.grad(y.sum(), at)[0], x)


# --- what is kept ---------------------------------------------------------------------------------


def kept(layer: Any, x: Tensor, *words: Any) -> int:
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel() * t.element_size()) or t, lambda t: t
    ):
        layer(x.clone().requires_grad_(), *words)
    return sum(sizes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_byte_an_output_is_kept_where_torch_keeps_winners_of_eight_and_the_input(dtype: torch.dtype) -> None:
    x = randn(2, 3, 40, 44).to(dtype)
    for words in [(2,), (3, 2, 1), (3, 1, 1, 2), (16,), ((1, 40),)]:
        outputs = F.max_pool2d(x, *words).numel()
        assert kept(max_pool2d, x, *words) == outputs
        assert kept(F.max_pool2d, x, *words) == 8 * outputs + x.numel() * x.element_size()
    outputs = F.max_pool2d(x, 17).numel()
    assert kept(max_pool2d, x, 17) == 4 * outputs  # 289 pixels


def test_average_pooling_keeps_nothing() -> None:
    x = randn(2, 3, 8, 8)
    assert kept(avg_pool2d, x, 3, 2, 1) == 0
    assert kept(F.avg_pool2d, x, 3, 2, 1) == 8 * x.numel()


# --- average pooling ------------------------------------------------------------------------------


@pytest.mark.theorem("thm-avg-pool")
@quick
@given(scans(dilated=False), st.booleans(), st.none() | st.integers(-3, -1) | st.integers(1, 9), seeds)
@example(((3, 4), {"kernel_size": [2, 2], "stride": [2, 2], "padding": [1, 0], "ceil_mode": True}), True, None, 0)
@example(((3, 4), {"kernel_size": [2, 2], "stride": [2, 2], "padding": [1, 0], "ceil_mode": True}), False, None, 0)
def test_average_pooling_is_a_constant_matrix(scan: Any, count: bool, divisor: int | None, seed: int) -> None:
    size, words = scan
    words = words | {"count_include_pad": count, "divisor_override": divisor}
    x = randn(2, 3, *size, seed=seed).requires_grad_()
    M = averaging_matrix(x.shape, **words, dtype=D)
    assert M.is_sparse
    assert M.is_coalesced()
    y = avg_pool2d(x, **words)
    assert torch.equal(y, F.avg_pool2d(x, **words))
    torch.testing.assert_close(M @ vec(x), vec(y), rtol=1e-13, atol=1e-13)
    g = randn(*y.shape, seed=seed)
    (ours,), (theirs,) = (torch.autograd.grad(f(x, **words), x, g) for f in (avg_pool2d, F.avg_pool2d))
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(vec(ours), M.T @ vec(g), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(jacfwd(lambda x: avg_pool2d(x, **words))(x.detach()[:1]).sum(), M.sum().to_dense() / 2)
    # the Kronecker product of what averages rows and what averages columns, the same block for each channel
    one = averaging_matrix((1, *size), **words, dtype=D).to_dense()
    assert torch.equal(M.to_dense(), kron(torch.eye(6, dtype=D), one))
    if divisor is None:
        alone = {"ceil_mode": words["ceil_mode"], "count_include_pad": count, "dtype": D}
        S_h, S_w = (
            averaging_matrix(
                (1, size[0], 1) if axis == 0 else (1, 1, size[1]),
                tuple(words["kernel_size"][axis] if a == axis else 1 for a in (0, 1)),
                tuple(words["stride"][axis] if a == axis else 1 for a in (0, 1)),
                tuple(words["padding"][axis] if a == axis else 0 for a in (0, 1)),
                **alone,
            ).to_dense()
            for axis in (0, 1)
        )
        torch.testing.assert_close(one, kron(S_w, S_h), rtol=1e-15, atol=0)
        full = one.sum(1).sub(1).abs() < 1e-12
        assert full.all() or (count and max(words["padding"]) > 0)


@pytest.mark.theorem("thm-avg-pool")
def test_the_means_of_the_example_with_symbols() -> None:
    X = sp.Matrix(3, 4, lambda i, j: sp.Symbol(f"x{i}{j}"))
    means = sp.Matrix([sum(X[i : i + 2, j : j + 2]) / 4 for j in range(3) for i in range(2)])
    half = sp.Rational(1, 2)
    S_h = sp.Matrix(2, 3, lambda i, k: half if 0 <= k - i < 2 else 0)
    S_w = sp.Matrix(3, 4, lambda j, k: half if 0 <= k - j < 2 else 0)
    jacobian = means.jacobian(sp.Matrix(list(X.T)))
    assert jacobian == sp.kronecker_product(S_w, S_h)
    ours = averaging_matrix((1, 3, 4), 2, 1, dtype=D).to_dense()
    assert sp.Matrix((4 * ours).int().tolist()) == 4 * jacobian
    assert avg_pool2d(A[None], 2, 2, ceil_mode=True).tolist() == [[[3.5, 2.75], [2.5, 1.5]]]


@quick
@given(scans(dilated=False), seeds)
def test_without_cut_windows_the_mean_is_a_convolution(scan: Any, seed: int) -> None:
    size, words = scan
    x = randn(2, 3, *size, seed=seed)
    k = words["kernel_size"]
    kernel = torch.full((3, 1, *k), 1 / math.prod(k), dtype=D)
    wanted = F.conv2d(x, kernel, stride=words["stride"], padding=words["padding"], groups=3)
    torch.testing.assert_close(avg_pool2d(x, **words | {"ceil_mode": False}), wanted)
    # and the gathered patches, averaged
    gathered = gather_matrix((1, *size), k, words["stride"], words["padding"], dtype=D) @ vec(x[0, 0])
    outputs = wanted.shape[2] * wanted.shape[3]
    torch.testing.assert_close(gathered.reshape(-1, outputs).mean(0), vec(wanted[0, 0]))


# --- what goes wrong, and the rest of the module ---------------------------------------------------


def test_padding_with_zeros_is_wrong_on_negative_maps() -> None:
    x = -torch.ones(1, 2, 2)
    assert F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 2).eq(0).all()
    assert max_pool2d(x, 2, padding=1).eq(-1).all()


@each_rule
def test_nan_and_infinity(ties: str) -> None:
    nan, inf = math.nan, math.inf
    x = torch.tensor([[[nan, 1.0, nan], [2.0, 3.0, 4.0]]], requires_grad=True)
    y, index = max_pool2d(x, (2, 3), return_indices=True, ties=ties)
    assert y.isnan().all()
    assert index.item() == 2
    low = torch.full((1, 3, 3), -inf, requires_grad=True)
    y, index = max_pool2d(low, 2, 1, 1, return_indices=True, ties=ties)
    assert y.eq(-inf).all()
    assert ((index >= 0) & (index < 9)).all()
    assert torch.autograd.grad(y.sum(), low)[0].sum() == y.numel()


@each_rule
def test_upstream_infinities_reach_the_winner_alone(ties: str) -> None:
    x = image(1, 4, 4, dtype=torch.float32).requires_grad_()
    y = max_pool2d(x, 2, ties=ties)
    (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, math.inf))
    assert gradient.isinf().sum() == 4
    assert not gradient.isnan().any()


@each_rule
def test_the_gradient_of_the_gradient_is_zero_at_ties_too(ties: str) -> None:
    x = tied_image(1, 4, 4).requires_grad_()
    y = max_pool2d(x, 2, 1, ties=ties)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert not gradient.requires_grad or torch.autograd.grad(gradient.sum(), x, allow_unused=True)[0] is None
    (first,) = torch.autograd.grad(max_pool2d(x, 2, 1, ties=ties).square().sum(), x, create_graph=True)
    S = selection_matrix(x, 2, 1, ties=ties).to_dense()
    (second,) = torch.autograd.grad(vec(first) @ torch.arange(16, dtype=D), x)
    assert torch.equal(vec(second), 2 * S.T @ S @ torch.arange(16, dtype=D))


def test_indices_serve_torchs_max_unpool() -> None:
    x = image(1, 2, 4, 6)
    y, index = max_pool2d(x.requires_grad_(), 2, return_indices=True)
    assert not index.requires_grad
    assert torch.equal(F.max_unpool2d(y, index, 2), F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2))


@pytest.mark.parametrize("pool", [max_pool2d, avg_pool2d])
def test_an_image_without_a_batch_and_an_empty_batch(pool: Any) -> None:
    x = randn(3, 5, 4).requires_grad_()
    assert torch.equal(pool(x, 2), pool(x[None], 2)[0])
    empty = torch.empty(0, 3, 5, 4, requires_grad=True)
    y = pool(empty, 2)
    assert y.shape == (0, 3, 2, 2)
    y.sum().backward()
    assert empty.grad.shape == empty.shape


def test_the_fast_way_through_channels_has_the_same_bits_as_torchs() -> None:
    for channels in (1, 3, 4, 7, 16, 33):
        x = torch.randn(2, channels, 9, 11)
        for words in [(2,), (3, 2, 1), (3, 1, 1, 1, True)]:
            for ours, theirs in zip(
                max_pool2d(x, *words, return_indices=True), F.max_pool2d(x, *words, return_indices=True), strict=True
            ):
                assert torch.equal(ours, theirs)
                assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("words", [(3, 2, 1, 1, True), ((3, 2), 1, 1, 2), (2,)], ids=str)
def test_the_column_major_rule_and_the_indices_in_every_mode_of_differentiation(words: tuple[Any, ...]) -> None:
    f = lambda x: max_pool2d(x, *words, return_indices=True, ties="column-major")[0]
    x = tied_image(2, 3, 5, 6)
    S = unvec_rows(selection_matrix(x, *words, ties="column-major").to_dense(), f(x).shape, x.shape)
    assert torch.equal(jacrev(f)(x).reshape(S.shape), S)
    assert torch.equal(jacfwd(f)(x).reshape(S.shape), S)
    assert torch.equal(vmap(lambda row: f(row[None])[0])(x), f(x))
    assert torch.equal(vmap(jacrev(f))(torch.stack([x, x]))[1].reshape(S.shape), S)
    assert torch.equal(hessian(lambda x: f(x).square().sum() / 2)(x).reshape(S.shape[1], -1), S.T @ S)
    x = image(1, 2, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(f, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=True)
    compiled = torch.compile(
        lambda x: max_pool2d(x, *words, return_indices=True, ties="column-major"), fullgraph=True, backend="aot_eager"
    )
    for ours, eager in zip(compiled(x), max_pool2d(x, *words, return_indices=True, ties="column-major"), strict=True):
        assert torch.equal(ours, eager)
    assert torch.equal(*(torch.autograd.grad(each.sum(), x)[0] for each in (compiled(x)[0], f(x))))


def unvec_rows(S: Tensor, rows: Any, columns: Any) -> Tensor:
    """A matrix between vecs as one between flattened tensors."""
    return S[torch.argsort(vec_permutation(rows))][:, torch.argsort(vec_permutation(columns))]


# --- modules --------------------------------------------------------------------------------------


def test_modules_take_torchs_words_and_say_so() -> None:
    x = tied_image(2, 3, 7, 8)
    ours = pnn.MaxPool2d(3, 2, 1, 1, return_indices=True, ceil_mode=True)
    theirs = nn.MaxPool2d(3, 2, 1, 1, return_indices=True, ceil_mode=True)
    assert repr(ours) == repr(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours(x), theirs(x), strict=True))
    other = pnn.MaxPool2d(2, ties="column-major")
    assert repr(other).endswith("ties='column-major')")
    grads = []
    for layer in (other, pnn.MaxPool2d(2)):
        at = x.clone().requires_grad_()
        layer(at).sum().backward()
        grads.append(at.grad)
    assert not torch.equal(*grads)
    words = {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}
    ours, theirs = pnn.AvgPool2d(**words), nn.AvgPool2d(**words)
    assert repr(ours) == repr(theirs)
    assert torch.equal(ours(x), theirs(x))
    assert not ours.state_dict()


# --- bad input ------------------------------------------------------------------------------------

x34 = torch.ones(1, 3, 4)


@pytest.mark.parametrize(
    "function", [max_pool2d, selection_matrix, avg_pool2d], ids=["max_pool2d", "selection_matrix", "avg_pool2d"]
)
def test_bad_input_is_named(function: Any) -> None:
    with raises(TypeError, "input must be a torch tensor", "list"):
        function([1.0], 2)
    with raises(TypeError, "input must be floating point", "int64"):
        function(x34.long(), 2)
    with raises(ValueError, r"input must have shape \(N, C, H, W\) or \(C, H, W\)", r"\(3, 4\)"):
        function(x34[0], 2)
    with raises(ValueError, "input must have at least one channel, row and column", r"\(1, 0, 4\)"):
        function(x34[:, :0], 2)
    with raises(TypeError, "kernel_size must be an int or two ints", "float"):
        function(x34, 2.0)
    with raises(ValueError, "kernel_size must be at least 1", "0"):
        function(x34, 0)
    with raises(ValueError, "kernel_size must be an int or two ints", "3"):
        function(x34, (1, 2, 3))
    with raises(ValueError, "stride must be at least 1", "0"):
        function(x34, 2, 0)
    with raises(ValueError, "padding must be at least 0", "-1"):
        function(x34, 2, 1, -1)
    with raises(ValueError, "padding must be at most half of kernel_size, 2", "got 2"):
        function(x34, 2, 1, 2)
    with raises(ValueError, "must fit into the padded image", r"\(4, 4\)", r"\(3, 4\)"):
        function(x34, 4)


def test_bad_words_of_max_pooling_are_named() -> None:
    for function in (max_pool2d, selection_matrix):
        with raises(ValueError, "ties must be one of 'row-major', 'column-major'", "'last'"):
            function(x34, 2, ties="last")
        with raises(ValueError, "dilation must be at least 1", "0"):
            function(x34, 2, dilation=0)
        with raises(ValueError, "dilation must leave each window a pixel of the image", "3", "2 by 2"):
            function(torch.ones(1, 2, 2), 2, 1, 1, 3)
    with raises(ValueError, "ties must be one of", "None"):
        pnn.MaxPool2d(2, ties=None)


def test_where_torch_returns_an_index_outside_the_image_the_layer_refuses() -> None:
    refused = 0
    for k, s, p, d, n in itertools.product(range(1, 5), range(1, 4), range(3), range(1, 5), range(1, 7)):
        if 2 * p > k or d * (k - 1) >= n + 2 * p:
            continue
        x = -torch.ones(1, n, n)
        value, index = F.max_pool2d(x, k, s, p, d, return_indices=True)
        if value.isinf().any():
            refused += 1
            with raises(ValueError, "dilation must leave each window a pixel"):
                max_pool2d(x, k, s, p, d)
        else:
            assert torch.equal(max_pool2d(x, k, s, p, d, return_indices=True)[1], index)
    assert refused


def test_bad_words_of_average_pooling_are_named() -> None:
    for call in (avg_pool2d, lambda x, *words, **more: averaging_matrix(x.shape, *words, **more)):
        with raises(ValueError, "divisor_override must not be 0"):
            call(x34, 2, divisor_override=0)
        with raises(TypeError, "divisor_override must be an int or None", "float"):
            call(x34, 2, divisor_override=2.0)
    with raises(ValueError, r"input_size must be \(D, H, W\) or \(N, D, H, W\)", r"\(3, 4\)"):
        averaging_matrix((3, 4), 2)
    with raises(ValueError, "every size in input_size must be at least 1", "0"):
        averaging_matrix((1, 0, 4), 2)
    with raises(TypeError, "every size in input_size must be an int", "float"):
        averaging_matrix((1, 3.0, 4), 2)
    with raises(ValueError, "padding must be at most half of kernel_size"):
        averaging_matrix((1, 3, 4), 2, padding=2)


def test_what_torch_refuses_is_refused_and_what_it_takes_is_taken() -> None:
    generator = random.Random(0)
    taken = 0
    for _ in range(400):
        k, s, p, d, n = (generator.randint(*bounds) for bounds in ((1, 4), (1, 4), (0, 3), (1, 3), (1, 6)))
        words, x = (k, s, p, d, generator.random() < 0.5), torch.zeros(1, n, n)
        try:
            theirs = F.max_pool2d(x, *words)
        except RuntimeError:
            with pytest.raises(ValueError, match=r"must"):
                max_pool2d(x, *words)
            continue
        if theirs.isfinite().all():
            taken += 1
            assert torch.equal(max_pool2d(x, *words), theirs)
    assert taken > 50


def test_the_matrices_take_dtype_and_device() -> None:
    assert averaging_matrix((1, 2, 2), 2).dtype == torch.float32
    assert averaging_matrix((1, 2, 2), 2, dtype=torch.float16, device="cpu").dtype == torch.float16
    assert selection_matrix(x34.half(), 2).dtype == torch.float16
    assert not selection_matrix(x34.clone().requires_grad_(), 2).requires_grad
    assert set(pooling.__all__) == {
        "AvgPool2d",
        "MaxPool2d",
        "averaging_matrix",
        "avg_pool2d",
        "max_pool2d",
        "selection_matrix",
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: avg_pool2d(x, 2, 2, 0, False, 3), "count_include_pad must be a bool, got int"),
        (lambda x: max_pool2d(x, 2, ceil_mode="no"), "ceil_mode must be a bool, got str"),
        (lambda x: max_pool2d(x, 2, return_indices=1), "return_indices must be a bool, got int"),
        (lambda x: averaging_matrix((1, 4, 4), 2, count_include_pad=1), "count_include_pad must be a bool, got int"),
        (lambda x: averaging_matrix((1, 4, 4), 2, dtype=torch.int64), "dtype must be floating point, got torch.int64"),
    ],
)
def test_truth_values_and_dtypes_are_checked(call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(torch.ones(1, 4, 4))


@pytest.mark.parametrize("stride", [(), []])
def test_an_empty_stride_is_the_kernel_size_as_in_torch(stride: Any) -> None:
    x = torch.randn(1, 4, 6)
    assert torch.equal(max_pool2d(x, 2, stride), F.max_pool2d(x, 2, stride))
    assert torch.equal(avg_pool2d(x, (2, 3), stride), F.avg_pool2d(x, (2, 3), stride))
