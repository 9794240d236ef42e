"""The theorems of the chapter *Convolution*, and what its module does beyond the layer contract."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import sympy as sp
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.signal import convolve2d, correlate2d
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.func import jacrev
from torch.utils.flop_counter import FlopCounterMode

import pwl_lib.nn as pnn
from pwl_lib import convolution
from pwl_lib.convolution import (
    conv2d,
    conv2d_input,
    conv2d_jacobians,
    conv2d_weight,
    gather_matrix,
    index_map,
    kernel_matrix,
    linear,
    linear_jacobians,
    patches,
)
from pwl_lib.kronecker import kron, unvec, vec, vec_permutation

D = torch.float64
A = torch.tensor([[1, 3, 1, 4], [2, 8, 5, 1], [3, 2, 0, 3]], dtype=D)
K = torch.tensor([[1, 0], [-1, 1]], dtype=D)
SOBEL = torch.tensor([[1, 2, 1], [0, 0, 0], [-1, -2, -1]], dtype=D)
FORMS = ("kernel", "matrix", "index", "fold")

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's, of speed

quick = settings(max_examples=40)
seeds = st.integers(0, 2**31 - 1)


@st.composite
def layers(draw: Any, *, grouped: bool = True) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Sizes of an image (D, H, W) and of a weight, and words of conv2d that fit them; every pair is unequal now and then."""
    size, kernel = [], []
    words: dict[str, Any] = {"stride": [], "padding": [], "dilation": []}
    for _ in range(2):
        k, d, p = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(0, 3))
        for word, value in zip(words.values(), (draw(st.integers(1, 4)), p, d), strict=True):
            word.append(value)
        least = max(1, d * (k - 1) + 1 - 2 * p)
        size.append(draw(st.integers(least, max(7, least))))
        kernel.append(k)
    groups = draw(st.integers(1, 3)) if grouped else 1
    per_group, kernels = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    words["groups"] = groups
    padding = draw(st.sampled_from(["numbers", "numbers", "same", "valid"]))
    if padding != "numbers":
        words["padding"] = padding
    if padding == "same":
        words["stride"] = [1, 1]
    if padding == "valid":
        size = [max(n, d * (k - 1) + 1) for n, d, k in zip(size, words["dilation"], kernel, strict=True)]
    return (groups * per_group, *size), (groups * kernels, per_group, *kernel), words


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int, seed: int = 0) -> Tensor:
    """Whole numbers, so that sums are exact whatever their order."""
    return torch.randint(-5, 6, shape, generator=torch.Generator().manual_seed(seed)).to(D)


def geometry(words: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in words.items() if name != "groups"}


def sides(size: tuple[int, ...], kernel: tuple[int, ...], padding: Any, dilation: Any) -> list[tuple[int, int]]:
    """Zeros before and behind, for rows and columns."""
    if padding == "valid":
        return [(0, 0), (0, 0)]
    if padding == "same":
        return [((d * (k - 1)) // 2, (d * (k - 1) + 1) // 2) for d, k in zip(dilation, kernel, strict=True)]
    return [(p, p) for p in padding]


def starts(size: int, kernel: int, stride: int, before: int, behind: int, dilation: int) -> list[int]:
    """Where the kernel can stand, by trying."""
    found = [
        start
        for start in range(0, size + before + behind, stride)
        if start + dilation * (kernel - 1) < size + before + behind
    ]
    return [start - before for start in found]


def literal(x: Tensor, weight: Tensor, bias: Tensor | None, words: dict[str, Any]) -> Tensor:
    """The definition, term by term."""
    (channels, height, width), (kernels, per_group, k_h, k_w) = x.shape, weight.shape
    stride, dilation = words["stride"], words["dilation"]
    (top, bottom), (left, right) = sides(x.shape[1:], (k_h, k_w), words["padding"], dilation)
    rows = starts(height, k_h, stride[0], top, bottom, dilation[0])
    columns = starts(width, k_w, stride[1], left, right, dilation[1])
    y = x.new_zeros(kernels, len(rows), len(columns))
    for e, (u, row), (v, column) in itertools.product(range(kernels), enumerate(rows), enumerate(columns)):
        total = 0.0 if bias is None else bias[e].item()
        first = e // (kernels // words["groups"]) * per_group
        for c, a, b in itertools.product(range(per_group), range(k_h), range(k_w)):
            i, j = row + a * dilation[0], column + b * dilation[1]
            if 0 <= i < height and 0 <= j < width:
                total += (weight[e, c, a, b] * x[first + c, i, j]).item()
        y[e, u, v] = total
    assert first + per_group <= channels
    return y


# --- what is computed -----------------------------------------------------------------------------


def test_the_3_by_4_example_is_a_cross_correlation_and_the_flipped_kernel_gives_another_result() -> None:
    y = conv2d(A[None], K[None, None])[0]
    assert y.tolist() == [[7, 0, -3], [1, 6, 8]]
    assert torch.equal(y, torch.from_numpy(correlate2d(A, K, "valid")))
    flipped = conv2d(A[None], K.flip(0, 1)[None, None])[0]
    assert torch.equal(flipped, torch.from_numpy(convolve2d(A, K, "valid")))
    assert flipped.tolist() == [[6, 7, -2], [-4, 3, 7]]


@given(layers(), st.booleans(), seeds)
@settings(max_examples=25)
def test_every_word_of_conv2d_means_what_the_definition_says(
    layer: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], with_bias: bool, seed: int
) -> None:
    size, shape, words = layer
    x, weight = integers(*size, seed=seed), integers(*shape, seed=seed + 1)
    bias = integers(shape[0], seed=seed + 2) if with_bias else None
    y = conv2d(x, weight, bias, **words)
    assert torch.equal(y, literal(x, weight, bias, words))
    assert torch.equal(y, F.conv2d(x, weight, bias, **words))


def test_a_stride_is_rows_first_then_columns() -> None:
    y = conv2d(A[None], K[None, None])
    assert torch.equal(conv2d(A[None], K[None, None], stride=(1, 2)), y[:, :, ::2])
    assert torch.equal(conv2d(A[None], K[None, None], stride=(2, 1)), y[:, ::2])
    assert conv2d(A[None], K[None, None], stride=(1, 2)).shape == (1, 2, 2)
    assert conv2d(A[None], K[None, None], stride=(2, 1)).shape == (1, 1, 3)


@pytest.mark.parametrize("word", ["padding", "dilation"])
def test_padding_and_dilation_are_rows_first_too(word: str) -> None:
    x, weight = integers(1, 6, 6), integers(1, 1, 2, 2, seed=1)
    tall = conv2d(x, weight, **{word: (2, 1)})
    assert torch.equal(tall.mT, conv2d(x.mT, weight.mT, **{word: (1, 2)}))
    assert tall.shape[1] != tall.shape[2]


def test_one_channel_each_is_added_up_and_the_map_shrinks_by_the_kernel_less_one() -> None:
    x, weight = integers(3, 6, 7), integers(2, 3, 3, 2, seed=1)
    y = conv2d(x, weight)
    assert y.shape == (2, 6 - 3 + 1, 7 - 2 + 1)
    for e in range(2):
        parts = [torch.from_numpy(correlate2d(x[d], weight[e, d], "valid")) for d in range(3)]
        assert torch.equal(y[e], sum(parts))
    assert conv2d(x, weight, padding="same").shape == (2, 6, 7)


@pytest.mark.theorem("prop-conv-size")
@given(
    st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3), st.integers(1, 3)
)
@example(5, 5, 3, 0, 0, 1)  # one position
@example(6, 3, 2, 0, 0, 1)  # the last row is read by nobody
def test_the_number_of_positions_is_the_formula(
    size: int, kernel: int, stride: int, before: int, behind: int, dilation: int
) -> None:
    reach = size + before + behind - dilation * (kernel - 1) - 1
    found = starts(size, kernel, stride, before, behind, dilation)
    if reach < 0:
        assert found == []
        return
    assert len(found) == reach // stride + 1
    padded = torch.zeros(1, size + before + behind, 1)
    assert conv2d(padded, torch.zeros(1, 1, kernel, 1), stride=(stride, 1), dilation=(dilation, 1)).shape[1] == len(
        found
    )
    assert (len(starts(size, kernel, 1, before, behind, dilation)) == size) == (
        before + behind == dilation * (kernel - 1)
    )


@pytest.mark.theorem("prop-conv-size")
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
@quick
def test_same_keeps_the_size_and_puts_the_odd_row_below_and_to_the_right(
    height: int, width: int, k_h: int, k_w: int, d_h: int, d_w: int
) -> None:
    x, weight = numbers(2, height, width), numbers(3, 2, k_h, k_w, seed=1)
    y = conv2d(x, weight, padding="same", dilation=(d_h, d_w))
    assert y.shape == (3, height, width)
    rows, columns = d_h * (k_h - 1), d_w * (k_w - 1)
    around = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    assert around.shape[1:] == (height + rows, width + columns)
    assert torch.allclose(y, conv2d(around, weight, dilation=(d_h, d_w)))


# --- Sobel ----------------------------------------------------------------------------------------


def filtered(image: Tensor) -> tuple[Tensor, Tensor]:
    horizontal, vertical = conv2d(image[None], torch.stack([SOBEL, SOBEL.T])[:, None])
    return horizontal, vertical


@pytest.mark.theorem("prop-sobel")
@given(st.integers(3, 9), st.integers(3, 9), seeds)
def test_an_image_of_rows_is_seen_by_sobels_kernel_and_not_by_its_transpose(height: int, width: int, seed: int) -> None:
    f = integers(height, seed=seed)
    horizontal, vertical = filtered(f[:, None].expand(-1, width))
    assert torch.equal(horizontal, (4 * (f[:-2] - f[2:]))[:, None].expand(-1, width - 2))
    assert not vertical.any()


@pytest.mark.theorem("prop-sobel")
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), seeds)
@quick
def test_the_transpose_of_a_cross_correlation_is_that_of_the_transposes(
    height: int, width: int, k_h: int, k_w: int, seed: int
) -> None:
    image, kernel = integers(height + k_h, width + k_w, seed=seed), integers(k_h, k_w, seed=seed + 1)
    whole = conv2d(image[None], kernel[None, None])[0]
    assert torch.equal(whole.T, conv2d(image.T[None], kernel.T[None, None])[0])


def test_sobels_kernel_finds_the_horizontal_edges_of_a_photograph_and_its_transpose_the_vertical_ones() -> None:
    photo = torch.tensor(load_sample_image("china.jpg")).double().mean(-1)
    horizontal, vertical = (response.abs() for response in filtered(photo))
    terrace, columns = (slice(232, 238), slice(100, 300)), (slice(205, 225), slice(100, 300))
    assert horizontal[terrace].mean() > 4 * vertical[terrace].mean()
    assert vertical[columns].mean() > 1.2 * horizontal[columns].mean()
    lying = filtered(photo.T)
    assert torch.allclose(lying[1].abs(), horizontal.T)
    assert torch.allclose(lying[0].abs(), vertical.T)


# --- patches and kernels --------------------------------------------------------------------------


def test_im2col_of_the_example_is_the_4_by_6_matrix_and_its_transpose_times_vec_k_is_vec_of_the_result() -> None:
    B = patches(A[None], 2).T
    assert B.tolist() == [[1, 2, 3, 8, 1, 5], [2, 3, 8, 2, 5, 0], [3, 8, 1, 5, 4, 1], [8, 2, 5, 0, 1, 3]]
    assert vec(K).tolist() == [1, -1, 0, 1]
    assert (B.T @ vec(K)).tolist() == [7, 1, 0, 6, -3, 8]
    assert torch.equal(B.T @ vec(K), vec(conv2d(A[None], K[None, None])[0]))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        B.T @ vec(K)[None]


def test_the_identity_of_im2col_holds_with_letters() -> None:
    a, k = (sp.Matrix(*size, lambda i, j, n=n: sp.Symbol(f"{n}{i}{j}")) for n, size in (("a", (3, 4)), ("k", (2, 2))))
    phi = sp.Matrix.vstack(*(a[i : i + 2, j : j + 2].vec().T for j in range(3) for i in range(2)))
    y = sp.Matrix(2, 3, lambda i, j: sum(a[i + u, j + v] * k[u, v] for u in range(2) for v in range(2)))
    assert sp.expand(phi * k.vec() - y.vec()).is_zero_matrix
    assert y.vec().jacobian(k.vec()) == phi


@pytest.mark.theorem("thm-conv-patches")
@given(layers(), st.integers(0, 3), st.booleans(), seeds)
@quick
@example(((1, 1, 1), (1, 1, 1, 1), {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}), 1, True, 0)
@example(((2, 3, 2), (2, 2, 3, 2), {"stride": [4, 4], "padding": "valid", "dilation": [1, 1], "groups": 1}), 2, True, 0)
@example(((1, 1, 2), (1, 1, 2, 3), {"stride": [1, 1], "padding": [3, 2], "dilation": [3, 2], "groups": 1}), 1, False, 0)
def test_vec_of_patches_times_kernels_is_vec_of_the_output(
    layer: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], batch: int, with_bias: bool, seed: int
) -> None:
    size, shape, words = layer
    x, weight, bias = (
        integers(batch, *size, seed=seed),
        integers(*shape, seed=seed + 1),
        integers(shape[0], seed=seed + 2),
    )
    y = F.conv2d(x, weight, bias if with_bias else None, **words)
    phi, C = patches(x, shape[2:], **geometry(words)), kernel_matrix(weight, words["groups"])
    assert phi.shape == (batch, y.shape[2] * y.shape[3], math.prod(shape[2:]) * size[0])
    assert C.shape == (phi.shape[2], shape[0])
    assert torch.equal(vec(phi @ C + (bias if with_bias else 0), order=2), vec(y, order=3))


def test_the_columns_of_the_kernel_matrix_are_the_vecs_of_the_kernels() -> None:
    weight = numbers(3, 2, 2, 4)
    assert all(torch.equal(kernel_matrix(weight)[:, e], vec(weight[e])) for e in range(3))
    assert torch.equal(vec(kernel_matrix(weight)), vec(weight))


@given(layers(grouped=False), seeds)
@quick
def test_patches_are_torchs_unfold_transposed_with_both_indices_permuted(
    layer: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], seed: int
) -> None:
    size, shape, words = layer
    words = geometry(words)
    if isinstance(words["padding"], str):  # unfold knows numbers alone
        words["padding"] = [d * (k - 1) for d, k in zip(words["dilation"], shape[2:], strict=True)]
    x = numbers(2, *size, seed=seed)
    U, phi = F.unfold(x, shape[2:], **{k: tuple(v) for k, v in words.items()}), patches(x, shape[2:], **words)
    outputs = F.conv2d(x, torch.zeros(shape, dtype=D), **words).shape[2:]
    sigma, tau = vec_permutation(outputs), vec_permutation((size[0], *shape[2:]))
    assert torch.equal(phi, U[:, tau][:, :, sigma].mT)
    k_h, k_w = shape[2:]
    for d, i, j in itertools.product(range(size[0]), range(k_h), range(k_w)):
        assert tau[k_h * k_w * d + k_h * j + i] == k_h * k_w * d + k_w * i + j
    for i, j in itertools.product(range(outputs[0]), range(outputs[1])):
        assert sigma[i + outputs[0] * j] == outputs[1] * i + j


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, D, torch.int64, torch.bool, torch.cfloat]
)
def test_patches_take_any_dtype_and_layout(dtype: torch.dtype) -> None:
    x = torch.arange(120).reshape(2, 3, 4, 5).to(dtype)
    phi = patches(x, (2, 3), padding=1)
    assert phi.dtype == dtype
    assert torch.equal(patches(x.to(memory_format=torch.channels_last), (2, 3), padding=1), phi)
    assert torch.equal(patches(x.mT.contiguous().mT, (2, 3), padding=1), phi)
    assert torch.equal(patches(x[1], (2, 3), padding=1), phi[1])
    assert patches(x[:0], (2, 3), padding=1).shape == (0, *phi.shape[1:])


def test_the_matrices_can_be_differentiated_and_vmapped() -> None:
    x, weight = numbers(2, 4, 5).requires_grad_(), numbers(4, 1, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: patches(x, (2, 3), 2, 1), (x,))
    assert torch.autograd.gradcheck(lambda w: kernel_matrix(w, 2), (weight,))
    batch = numbers(3, 2, 4, 5)
    assert torch.equal(torch.func.vmap(lambda x: patches(x, 2))(batch), patches(batch, 2))


# --- the index map --------------------------------------------------------------------------------

SMALL = [
    (size, kernel, words)
    for size in ((1, 1, 1), (2, 3, 4), (1, 5, 2))
    for kernel in ((1, 1), (2, 3), (3, 1))
    for stride in ((1, 1), (2, 1), (1, 3))
    for padding in ((0, 0), (1, 2), "same")
    for dilation in ((1, 1), (2, 1))
    if not (padding == "same" and stride != (1, 1))
    for words in [{"stride": stride, "padding": padding, "dilation": dilation}]
    if all(
        starts(n, k, 1, *side, d)
        for n, k, side, d in zip(size[1:], kernel, sides(size, kernel, padding, dilation), dilation)
    )
]


def reads(
    size: tuple[int, ...], kernel: tuple[int, ...], words: dict[str, Any]
) -> dict[tuple[int, int], tuple[int, ...]]:
    """What stands at each (p, q), by walking the kernel over the image: the order of the walk is the numbering."""
    (top, bottom), (left, right) = sides(size[1:], kernel, words["padding"], words["dilation"])
    rows = starts(size[1], kernel[0], words["stride"][0], top, bottom, words["dilation"][0])
    columns = starts(size[2], kernel[1], words["stride"][1], left, right, words["dilation"][1])
    return {
        (p, q): (d, row + words["dilation"][0] * a, column + words["dilation"][1] * b)
        for p, (column, row) in enumerate(itertools.product(columns, rows))
        for q, (d, b, a) in enumerate(itertools.product(range(size[0]), range(kernel[1]), range(kernel[0])))
    }


@pytest.mark.theorem("prop-index-map")
def test_the_index_map_is_right_at_every_index_of_all_small_shapes() -> None:
    assert len(SMALL) > 40
    for size, kernel, words in SMALL:
        walked = reads(size, kernel, words)
        p, q = (torch.tensor(part) for part in zip(*walked, strict=True))
        found = torch.stack(index_map(p, q, size, kernel, **words), 1).tolist()
        assert [tuple(place) for place in found] == list(walked.values())


@pytest.mark.theorem("prop-index-map")
@pytest.mark.theorem("thm-gather")
def test_p_and_q_fix_the_pixel_and_a_pixel_stands_at_as_many_places_as_rows_times_columns_say() -> None:
    for size, kernel, words in SMALL:
        walked = list(reads(size, kernel, words).values())
        M = gather_matrix(size, kernel, dtype=D, **words).to_dense()
        counts = unvec((M.T @ M).diagonal(), size)
        by_axis = []
        for axis in (1, 2):
            side = sides(size[1:], kernel, words["padding"], words["dilation"])[axis - 1]
            first = starts(size[axis], kernel[axis - 1], words["stride"][axis - 1], *side, words["dilation"][axis - 1])
            met = [start + words["dilation"][axis - 1] * a for start in first for a in range(kernel[axis - 1])]
            by_axis.append(torch.tensor([met.count(n) for n in range(size[axis])], dtype=D))
        for d, i, j in itertools.product(*map(range, size)):
            assert counts[d, i, j] == walked.count((d, i, j)) == by_axis[0][i] * by_axis[1][j]


def test_a_pixel_may_stand_at_several_places_and_with_a_stride_as_large_as_the_kernel_it_does_not() -> None:
    d, i, j = index_map(torch.arange(6)[:, None], torch.arange(4), (1, 3, 4), 2)
    assert ((i == 1) & (j == 1)).nonzero().tolist() == [[0, 3], [1, 2], [2, 1], [3, 0]]
    assert not d.any()
    once = gather_matrix((2, 6, 6), (2, 3), stride=(2, 3)).to_dense()
    assert torch.equal(once.T @ once, torch.eye(72))


def test_the_index_map_takes_ints_and_broadcasts() -> None:
    assert [int(part) for part in index_map(4, 2, (1, 3, 4), 2)] == [0, 0, 3]
    d, i, j = index_map(torch.arange(6)[:, None], torch.arange(8), (2, 3, 4), 2)
    assert d.shape == i.shape == j.shape == (6, 8)
    assert {part.dtype for part in (d, i, j)} == {torch.int64}
    assert index_map(0, 0, (1, 2, 2), 3, padding=1)[1:] == (torch.tensor(-1), torch.tensor(-1))


# --- the gather matrix ----------------------------------------------------------------------------


@pytest.mark.theorem("thm-gather")
def test_the_gather_matrix_has_one_1_in_a_row_or_none_in_the_padding() -> None:
    for size, kernel, words in SMALL:
        M = gather_matrix(size, kernel, dtype=D, **words)
        assert M.is_coalesced()
        assert M.layout == torch.sparse_coo
        dense = M.to_dense()
        walked = reads(size, kernel, words)
        assert dense.shape == (len(walked), math.prod(size))
        assert ((dense == 0) | (dense == 1)).all()
        inside = unvec_rows(walked, size)
        assert torch.equal(dense.sum(1), inside)
        if words["padding"] == (0, 0):
            assert inside.all()
        product = dense.T @ dense
        assert torch.equal(product, torch.diag(product.diagonal()))


def unvec_rows(walked: dict[tuple[int, int], tuple[int, ...]], size: tuple[int, ...]) -> Tensor:
    """1 for each (p, q) that is a pixel, in the order of vec: p fastest."""
    order = sorted(walked, key=lambda place: (place[1], place[0]))
    return torch.tensor(
        [float(all(0 <= n < s for n, s in zip(walked[place], size, strict=True))) for place in order], dtype=D
    )


@pytest.mark.theorem("thm-gather")
@given(layers(grouped=False), seeds)
@quick
def test_the_gather_matrix_times_vec_of_the_image_is_vec_of_the_patches(
    layer: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], seed: int
) -> None:
    size, shape, words = layer
    x = numbers(*size, seed=seed)
    M = gather_matrix(size, shape[2:], dtype=D, **geometry(words))
    assert torch.equal(M @ vec(x), vec(patches(x, shape[2:], **geometry(words))))


def test_the_overlap_counts_of_the_example() -> None:
    M = gather_matrix((1, 3, 4), 2)
    assert unvec(M.to_dense().sum(0), (3, 4)).tolist() == [[1, 2, 2, 1], [2, 4, 4, 2], [1, 2, 2, 1]]


def test_fold_after_unfold_multiplies_with_the_overlap() -> None:
    for words in ({}, {"stride": 2}, {"dilation": 2}, {"padding": 1}):
        x = numbers(1, 1, 9, 9)
        counts = unvec(gather_matrix((1, 9, 9), 3, dtype=D, **words).to_dense().sum(0), (9, 9))
        assert torch.allclose(F.fold(F.unfold(x, 3, **words), 9, 3, **words), counts * x)


def test_the_gather_matrix_has_the_dtype_and_device_that_are_asked_for() -> None:
    assert gather_matrix((1, 2, 2), 1).dtype == torch.get_default_dtype()
    M = gather_matrix((1, 2, 2), 1, dtype=torch.float16, device="cpu")
    assert M.dtype == torch.float16
    assert M.device.type == "cpu"


# --- Jacobians ------------------------------------------------------------------------------------


@pytest.mark.theorem("thm-conv-kron")
@given(layers(grouped=False), seeds)
@settings(max_examples=25)
@example(((1, 1, 1), (1, 1, 1, 1), {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}), 0)
def test_both_ways_to_write_the_output_and_both_jacobians(
    layer: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], seed: int
) -> None:
    size, shape, words = layer
    x, weight, bias = integers(*size, seed=seed), integers(*shape, seed=seed + 1), integers(shape[0], seed=seed + 2)
    phi, C = patches(x, shape[2:], **geometry(words)), kernel_matrix(weight)
    M = gather_matrix(size, shape[2:], dtype=D, **geometry(words)).to_dense()
    by_weight, by_patches = kron(torch.eye(shape[0], dtype=D), phi), kron(C.T, torch.eye(len(phi), dtype=D))
    y = vec(F.conv2d(x, weight, **words))
    assert torch.equal(by_weight @ vec(weight), y)
    assert torch.equal(by_weight @ vec(C), y)
    assert torch.equal(by_patches @ vec(phi), y)
    assert torch.equal(by_patches @ M @ vec(x), y)
    by_bias = kron(torch.eye(shape[0], dtype=D), torch.ones(len(phi), 1, dtype=D))
    ours = conv2d_jacobians(x, weight, bias, **words)
    assert all(torch.equal(a, b) for a, b in zip(ours, (by_patches @ M, by_weight, by_bias), strict=True))


@pytest.mark.theorem("thm-conv-kron")
@given(layers(), seeds)
@settings(max_examples=15)
def test_the_jacobians_are_those_of_automatic_differentiation(
    layer: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], seed: int
) -> None:
    size, shape, words = layer
    parts = integers(*size, seed=seed), integers(*shape, seed=seed + 1), integers(shape[0], seed=seed + 2)
    # A function of vec that gives vec: its Jacobian has rows and columns in the order of vec.
    for n, ours in enumerate(conv2d_jacobians(*parts, **words)):

        def flat(v: Tensor, n: int = n) -> Tensor:
            return vec(F.conv2d(*parts[:n], unvec(v, parts[n].shape), *parts[n + 1 :], **words))

        assert torch.equal(ours, jacrev(flat)(vec(parts[n])))
    assert len(conv2d_jacobians(*parts[:2], **words)) == 2


def test_the_jacobians_hold_with_letters() -> None:
    letters = lambda n, *size: sp.Matrix(*size, lambda i, j: sp.Symbol(f"{n}{i}{j}"))
    a, kernels = letters("a", 2, 3), [letters("k", 2, 2), letters("l", 2, 2)]
    phi = sp.Matrix.vstack(*(a[:, j : j + 2].vec().T for j in range(2)))
    C = sp.Matrix.hstack(*(k.vec() for k in kernels))
    y = (phi * C).vec()
    assert y.jacobian(C.vec()) == sp.kronecker_product(sp.eye(2), phi)
    M = phi.vec().jacobian(a.vec())
    assert y.jacobian(a.vec()) == sp.kronecker_product(C.T, sp.eye(2)) * M
    assert M.tolist() == gather_matrix((1, 2, 3), 2).to_dense().int().tolist()


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.theorem("thm-conv-weight-grad")
@given(layers(grouped=False), st.integers(1, 3), seeds)
@quick
def test_the_gradient_in_the_kernels_is_patches_transposed_times_upstream_and_in_the_bias_its_column_sums(
    layer: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], batch: int, seed: int
) -> None:
    size, shape, words = layer
    x = integers(batch, *size, seed=seed)
    weight, bias = integers(*shape, seed=seed + 1).requires_grad_(), integers(shape[0], seed=seed + 2).requires_grad_()
    y = F.conv2d(x, weight, bias, **words)
    upstream = integers(*y.shape, seed=seed + 3)
    by_weight, by_bias = torch.autograd.grad(y, (weight, bias), upstream)
    G = vec(upstream, order=2).mT
    by_kernels = sum(patches(x[n], shape[2:], **geometry(words)).T @ G[n] for n in range(batch))
    assert torch.equal(by_kernels, kernel_matrix(by_weight))
    assert torch.equal(sum(g.T @ torch.ones(len(g), dtype=D) for g in G), by_bias)


@given(layers(), st.integers(0, 2), seeds)
@quick
def test_both_forms_of_the_gradient_in_the_weight_are_torchs(
    layer: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], batch: int, seed: int
) -> None:
    size, shape, words = layer
    x, weight = integers(batch, *size, seed=seed), integers(*shape, seed=seed + 1).requires_grad_()
    y = F.conv2d(x, weight, **words)
    upstream = integers(*y.shape, seed=seed + 3)
    (wanted,) = torch.autograd.grad(y, weight, upstream)
    for form in ("kernel", "patches"):
        assert torch.equal(conv2d_weight(x, shape, upstream, **words, form=form), wanted)
        if batch:
            one = conv2d_weight(x[0], shape, upstream[0], **words, form=form)
            assert torch.equal(one, conv2d_weight(x[:1], shape, upstream[:1], **words, form=form))


@pytest.mark.theorem("thm-conv-input-grad")
@pytest.mark.theorem("prop-conv-transposed")
@given(layers(), st.integers(0, 2), seeds)
@quick
@example(((1, 3, 4), (1, 1, 2, 2), {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}), 1, 0)
@example(((1, 7, 7), (1, 1, 2, 2), {"stride": [4, 3], "padding": [0, 0], "dilation": [1, 1], "groups": 1}), 1, 0)
@example(((1, 1, 1), (1, 1, 1, 1), {"stride": [2, 2], "padding": [3, 3], "dilation": [1, 1], "groups": 1}), 1, 0)
def test_all_forms_of_the_gradient_in_the_input_are_equal(
    layer: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], batch: int, seed: int
) -> None:
    size, shape, words = layer
    x, weight = integers(batch, *size, seed=seed).requires_grad_(), integers(*shape, seed=seed + 1)
    y = F.conv2d(x, weight, **words)
    upstream = integers(*y.shape, seed=seed + 3)
    (wanted,) = torch.autograd.grad(y, x, upstream)
    for form in FORMS:
        assert torch.equal(conv2d_input(x.shape, weight, upstream, **words, form=form), wanted)
        if batch:
            assert torch.equal(conv2d_input(x[0].shape, weight, upstream[0], **words, form=form), wanted[0])


@pytest.mark.theorem("thm-conv-input-grad")
@given(layers(grouped=False), seeds)
@settings(max_examples=25)
def test_the_three_forms_written_out_are_the_gradient_of_autograd(
    layer: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], seed: int
) -> None:
    size, shape, words = layer
    x, weight = integers(*size, seed=seed).requires_grad_(), integers(*shape, seed=seed + 1)
    y = F.conv2d(x, weight, **words)
    upstream = integers(*y.shape, seed=seed + 3)
    (wanted,) = torch.autograd.grad(y, x, upstream)
    T = vec(upstream, order=2).T @ kernel_matrix(weight).T
    M = gather_matrix(size, shape[2:], dtype=D, **geometry(words)).to_dense()
    assert torch.equal(unvec(M.T @ vec(T), size), wanted)
    walked = reads(size, shape[2:], words)
    by_index, by_fold = torch.zeros(size, dtype=D), torch.zeros(size, dtype=D)
    for d, i, j in itertools.product(*map(range, size)):  # stands at a pixel, and asks who has seen it
        by_index[d, i, j] = sum(T[place].item() for place, pixel in walked.items() if pixel == (d, i, j))
    for place, pixel in walked.items():  # stands at a window, and hands out
        if all(0 <= n < s for n, s in zip(pixel, size, strict=True)):
            by_fold[pixel] += T[place]
    assert torch.equal(by_index, wanted)
    assert torch.equal(by_fold, wanted)


@pytest.mark.theorem("prop-conv-transposed")
@given(layers(grouped=False), seeds)
@settings(max_examples=25)
def test_the_index_sum_regrouped_has_at_most_one_term_for_each_element_of_the_kernel(
    layer: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], seed: int
) -> None:
    size, shape, words = layer
    weight, (s_h, s_w), (u, v) = integers(*shape, seed=seed + 1), words["stride"], words["dilation"]
    (top, _), (left, _) = sides(size[1:], shape[2:], words["padding"], words["dilation"])
    y = F.conv2d(torch.zeros(1, *size, dtype=D), weight, **words)[0]
    upstream, gradient = integers(*y.shape, seed=seed + 3), torch.zeros(size, dtype=D)
    for i, j, a, b in itertools.product(range(size[1]), range(size[2]), range(shape[2]), range(shape[3])):
        (up, rest), (across, other) = divmod(i + top - u * a, s_h), divmod(j + left - v * b, s_w)
        if rest == other == 0 and 0 <= up < y.shape[1] and 0 <= across < y.shape[2]:
            gradient[:, i, j] += weight[:, :, a, b].T @ upstream[:, up, across]
    assert torch.equal(gradient, conv2d_input(size, weight, upstream, **words))


@pytest.mark.theorem("prop-conv-transposed")
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.data())
@quick
def test_with_stride_1_it_is_a_cross_correlation_with_the_flipped_kernels(
    k_h: int, k_w: int, u: int, v: int, data: Any
) -> None:
    P, Q = data.draw(st.integers(0, u * (k_h - 1))), data.draw(st.integers(0, v * (k_w - 1)))
    weight = integers(3, 2, k_h, k_w)
    size = (2, 1 + u * (k_h - 1) + data.draw(st.integers(0, 3)), 1 + v * (k_w - 1) + data.draw(st.integers(0, 3)))
    y = F.conv2d(torch.zeros(size, dtype=D), weight, padding=(P, Q), dilation=(u, v))
    upstream = integers(*y.shape, seed=1)
    wanted = conv2d_input(size, weight, upstream, padding=(P, Q), dilation=(u, v))
    flipped = weight.flip(2, 3).transpose(0, 1)
    assert torch.equal(
        F.conv2d(upstream, flipped, padding=(u * (k_h - 1) - P, v * (k_w - 1) - Q), dilation=(u, v)), wanted
    )
    assert torch.equal(F.conv_transpose2d(upstream, weight, padding=(P, Q), dilation=(u, v)), wanted)


def test_the_default_calls_torchs_kernel_and_never_forms_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("formed")

    x, weight = numbers(2, 3, 6, 6).requires_grad_(), numbers(4, 3, 3, 3).requires_grad_()
    for name in ("patches", "kernel_matrix", "gather_matrix", "index_map"):
        monkeypatch.setattr(convolution, name, refuse)
    conv2d(x, weight).sum().backward()
    with pytest.raises(AssertionError, match="formed"):
        conv2d(x, weight, backward="fold").sum().backward()


@pytest.mark.parametrize("backward", FORMS)
def test_every_form_of_the_backward_pass_is_differentiable_twice(backward: str) -> None:
    parts = [numbers(*shape).requires_grad_() for shape in ((2, 2, 4, 3), (2, 1, 2, 2), (2,))]
    words = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2, "backward": backward}
    assert torch.autograd.gradcheck(lambda *p: conv2d(*p, **words), parts)
    assert torch.autograd.gradgradcheck(lambda *p: conv2d(*p, **words), parts)


@given(layers(), st.sampled_from(FORMS[1:]), seeds)
@quick
def test_the_forms_for_reading_train_as_torch_does(
    layer: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], backward: str, seed: int
) -> None:
    size, shape, words = layer
    parts = [integers(*s, seed=seed + n).requires_grad_() for n, s in enumerate(((2, *size), shape, shape[:1]))]
    y = F.conv2d(*parts, **words)
    upstream = integers(*y.shape, seed=seed + 3)
    wanted = torch.autograd.grad(y, parts, upstream)
    ours = torch.autograd.grad(conv2d(*parts, **words, backward=backward), parts, upstream)
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


def test_the_gradient_of_the_example() -> None:
    image = A.clone().requires_grad_()
    y = conv2d(image[None], K[None, None])
    (gradient,) = torch.autograd.grad(y, image, y)
    assert gradient.tolist() == [[7, 0, -3, 0], [-6, 13, 11, -3], [-1, -5, -2, 8]]


def test_the_gradients_hold_with_letters() -> None:
    letters = lambda n, *size: sp.Matrix(*size, lambda i, j: sp.Symbol(f"{n}{i}{j}"))
    a, k, g = letters("a", 3, 4), letters("k", 2, 2), letters("g", 2, 3)
    phi = sp.Matrix.vstack(*(a[i : i + 2, j : j + 2].vec().T for j in range(3) for i in range(2)))
    z = (g.vec().T * phi * k.vec())[0]
    assert sp.expand(sp.Matrix([z.diff(s) for s in k.vec()]) - phi.T * g.vec()).is_zero_matrix
    M = sp.Matrix(gather_matrix((1, 3, 4), 2).to_dense().int().tolist())
    assert sp.expand(sp.Matrix([z.diff(s) for s in a.vec()]) - M.T * (g.vec() * k.vec().T).vec()).is_zero_matrix


# --- groups ---------------------------------------------------------------------------------------


@pytest.mark.theorem("prop-conv-groups")
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), seeds)
@quick
@example(3, 1, 1, 0)  # depthwise
def test_groups_are_blocks_of_the_kernel_matrix(groups: int, per_group: int, kernels: int, seed: int) -> None:
    x = integers(groups * per_group, 4, 5, seed=seed)
    weight = integers(groups * kernels, per_group, 2, 3, seed=seed + 1).requires_grad_()
    C, own = kernel_matrix(weight, groups), [kernel_matrix(part) for part in weight.chunk(groups)]
    assert torch.equal(C, torch.block_diag(*own))
    parts = [patches(part, (2, 3)) for part in x.chunk(groups)]
    phi = patches(x, (2, 3))
    assert torch.equal(phi, torch.cat(parts, 1))
    y = conv2d(x, weight, groups=groups)
    assert torch.equal(y, F.conv2d(x, weight, groups=groups))
    assert torch.equal(vec(phi @ C), vec(y))
    upstream = integers(*y.shape, seed=seed + 2)
    (by_weight,) = torch.autograd.grad(y, weight, upstream)
    G = vec(upstream, order=2).T
    each = [phi_g.T @ G_g for phi_g, G_g in zip(parts, G.chunk(groups, 1), strict=True)]
    assert torch.equal(kernel_matrix(by_weight), torch.cat(each, 1))
    by_input = conv2d_input(x.shape, weight.detach(), upstream, groups=groups)
    M = gather_matrix(x.shape, (2, 3), dtype=D).to_dense()
    assert torch.equal(vec(by_input), M.T @ vec(G @ C.detach().T))
    assert weight.numel() * groups == len(weight) * x.shape[0] * 6


# --- fully connected ------------------------------------------------------------------------------


@pytest.mark.theorem("prop-linear-is-conv")
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), seeds)
@quick
def test_a_fully_connected_layer_is_a_convolution_whose_kernel_covers_the_map(
    channels: int, height: int, width: int, outputs: int, batch: int, seed: int
) -> None:
    shapes = (batch, channels, height, width), (outputs, channels, height, width), (outputs,)
    parts = [integers(*shape, seed=seed + n).requires_grad_() for n, shape in enumerate(shapes)]
    x, weight, bias = parts
    y = conv2d(x, weight, bias)
    flat = linear(x.flatten(1), weight.flatten(1), bias)
    assert y.shape == (batch, outputs, 1, 1)
    assert torch.equal(y.flatten(1), flat)
    upstream = integers(batch, outputs, seed=seed + 3)
    ours = torch.autograd.grad(y.flatten(1), parts, upstream)
    assert all(torch.equal(a, b) for a, b in zip(ours, torch.autograd.grad(flat, parts, upstream), strict=True))
    C = kernel_matrix(weight)
    assert torch.equal(patches(x, (height, width))[:, 0], vec(x, order=3))
    assert torch.equal(gather_matrix(x.shape[1:], (height, width)).to_dense(), torch.eye(channels * height * width))
    assert torch.equal(flat, vec(x, order=3) @ C + bias)
    assert torch.equal(vec(ours[0], order=3), upstream @ C.T)
    assert torch.equal(kernel_matrix(ours[1]), vec(x, order=3).T @ upstream)
    assert torch.equal(ours[2], upstream.sum(0))


@pytest.mark.theorem("prop-linear-is-conv")
@given(st.integers(1, 5), st.integers(1, 4), seeds)
@quick
def test_every_linear_layer_is_a_1_by_1_convolution_of_one_pixel(n: int, m: int, seed: int) -> None:
    x, weight, bias = integers(n, seed=seed), integers(m, n, seed=seed + 1), integers(m, seed=seed + 2)
    assert torch.equal(conv2d(x[:, None, None], weight[..., None, None], bias).flatten(), linear(x, weight, bias))
    by_input, by_weight, by_bias = linear_jacobians(x, weight, bias)
    conv = conv2d_jacobians(x[:, None, None], weight[..., None, None], bias)
    assert torch.equal(by_input, conv[0])
    assert torch.equal(by_weight @ vec(weight), conv[1] @ vec(weight[..., None, None]))
    assert torch.equal(by_bias, torch.eye(m, dtype=D))
    flat = jacrev(lambda v: unvec(v, (m, n)) @ x)(vec(weight))
    assert torch.equal(by_weight, flat)


# --- cost and reach -------------------------------------------------------------------------------


def counted(layer: nn.Module, *shape: int) -> tuple[int, int]:
    """Weights, and multiplications of the forward pass as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        layer(torch.empty(*shape, device="meta"))
    return layer.weight.numel(), counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("D_in", "D_out", "size", "kernel", "groups"), [(64, 64, 56, 3, 1), (8, 12, 9, 5, 4), (3, 2, 7, 7, 1)]
)
def test_parameters_and_multiplications_of_a_fully_connected_layer_against_small_kernels(
    D_in: int, D_out: int, size: int, kernel: int, groups: int
) -> None:
    conv = nn.Conv2d(D_in, D_out, kernel, padding=kernel // 2, groups=groups, bias=False, device="meta")
    weights, products = counted(conv, 1, D_in, size, size)
    assert weights == D_out * D_in * kernel**2 // groups
    assert products == size**2 * weights
    whole = nn.Linear(D_in * size**2, D_out * size**2, bias=False, device="meta")
    full_weights, full_products = counted(whole, 1, D_in * size**2)
    assert full_weights == full_products == D_out * size**2 * D_in * size**2
    assert full_weights * kernel**2 == weights * groups * size**4
    assert full_products * kernel**2 == products * groups * size**2


def test_stacked_3_by_3_kernels_have_fewer_weights_than_the_one_kernel_that_sees_as_much() -> None:
    for layers_, single, whole in ((2, 18, 25), (3, 27, 49)):
        stack = [nn.Conv2d(4, 4, 3, bias=False, device="meta") for _ in range(layers_)]
        one = nn.Conv2d(4, 4, 2 * layers_ + 1, bias=False, device="meta")
        assert sum(layer.weight.numel() for layer in stack) == single * 16
        assert one.weight.numel() == whole * 16
        assert (
            nn.Sequential(*stack)(torch.empty(4, 20, 20, device="meta")).shape
            == one(torch.empty(4, 20, 20, device="meta")).shape
        )


def test_the_kronecker_product_of_the_weights_jacobian_would_take_the_bytes_that_the_chapter_says() -> None:
    x, weight = torch.zeros(2, 5, 6), torch.zeros(3, 2, 3, 3)
    _, by_weight = conv2d_jacobians(x, weight, padding=1)
    phi = patches(x, 3, padding=1)
    assert by_weight.numel() == 3**2 * phi.numel()
    assert gather_matrix((2, 5, 6), 3, padding=1)._nnz() == 2 * (3 * 5 - 2) * (3 * 6 - 2)


stacks = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2)), min_size=0, max_size=3
)


@pytest.mark.theorem("prop-receptive-field")
@given(stacks, st.integers(0, 6))
@quick
@example([(3, 1, 0, 1)] * 3, 0)
@example([(3, 2, 1, 1), (3, 2, 1, 1), (3, 2, 1, 1)], 0)
@example([], 2)
def test_the_pixels_that_get_a_gradient_are_the_receptive_field(
    stack: list[tuple[int, int, int, int]], at: int
) -> None:
    jumps = [math.prod(s for _, s, _, _ in stack[:n]) for n in range(len(stack) + 1)]
    size = 1 + sum(d * (k - 1) * jump for (k, _, _, d), jump in zip(stack, jumps))
    first = jumps[-1] * at - sum(p * jump for (_, _, p, _), jump in zip(stack, jumps))
    x = torch.ones(1, 80, 1, dtype=D, requires_grad=True)
    y = x
    for k, s, p, d in stack:
        y = conv2d(y, torch.ones(1, 1, k, 1, dtype=D), None, (s, 1), (p, 0), (d, 1))
    (gradient,) = torch.autograd.grad(y[0, at, 0], x)
    rows = gradient[0, :, 0].nonzero().flatten().tolist()
    assert all(first <= row < first + size for row in rows)
    if all(p == 0 for _, _, p, _ in stack):
        assert (rows[0], rows[-1]) == (first, first + size - 1)
        assert gradient[0, rows[0], 0] == gradient[0, rows[-1], 0] == 1  # one path
    elif first > 0 and _clear(stack, at):
        assert (rows[0], rows[-1]) == (first, first + size - 1)


def _clear(stack: list[tuple[int, int, int, int]], at: int) -> bool:
    """Whether neither of the outermost paths leads through the padding above; below there is room."""
    low = at
    for _, s, p, _ in reversed(stack):
        low = s * low - p
        if low < 0:
            return False
    return True


def test_a_stack_of_3_by_3_layers_sees_2_l_plus_1_rows() -> None:
    for depth in range(1, 5):
        x = torch.ones(1, 21, 21, dtype=D, requires_grad=True)
        y = x
        for _ in range(depth):
            y = conv2d(y, torch.ones(1, 1, 3, 3, dtype=D), padding=1)
        (gradient,) = torch.autograd.grad(y[0, 10, 10], x)
        assert (gradient != 0).sum() == (2 * depth + 1) ** 2


# --- modules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_the_module_has_torchs_padding_modes_and_weights(mode: str) -> None:
    words: dict[str, Any] = {"kernel_size": 3, "padding": (1, 2), "padding_mode": mode, "groups": 2}
    theirs, ours = nn.Conv2d(4, 6, **words), pnn.Conv2d(4, 6, **words)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 6, 7)
    assert torch.equal(ours(x), theirs(x))
    assert repr(ours) == repr(theirs)


# --- bad input ------------------------------------------------------------------------------------

x4, w4 = torch.zeros(1, 2, 4, 5), torch.zeros(3, 2, 2, 2)
up = torch.zeros(1, 3, 3, 4)

REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: conv2d([1.0], w4), TypeError, "input must be a torch tensor, got list"),
    (lambda: conv2d(x4.long(), w4), TypeError, "input must be floating point, got torch.int64"),
    (lambda: conv2d(x4, w4.double()), TypeError, "weight"),
    (lambda: conv2d(x4, None), TypeError, "weight must be a torch tensor, got NoneType"),
    (lambda: conv2d(x4[0, 0], w4), ValueError, r"input must have shape \(N, .*got \(4, 5\)"),
    (lambda: conv2d(x4, w4[0]), ValueError, r"weight must have shape .*got \(2, 2, 2\)"),
    (lambda: conv2d(x4, w4[:, :1]), ValueError, r"channels"),
    (lambda: conv2d(x4, w4, torch.zeros(2)), ValueError, r"bias must have shape \(3,\).*got \(2,\)"),
    (lambda: conv2d(x4, w4, stride=0), ValueError, "stride must be at least 1, got 0"),
    (lambda: conv2d(x4, w4, stride=(1, 2, 3)), ValueError, "stride must be an int or two ints, got 3"),
    (lambda: conv2d(x4, w4, stride=1.0), TypeError, "stride must be an int or two ints, got float"),
    (lambda: conv2d(x4, w4, padding=-1), ValueError, "padding must be at least 0, got -1"),
    (lambda: conv2d(x4, w4, padding="full"), ValueError, "padding must be .*'full'"),
    (lambda: conv2d(x4, w4, stride=2, padding="same"), ValueError, "stride must be 1 where padding is 'same', got 2"),
    (lambda: conv2d(x4, w4, dilation=(0, 1)), ValueError, "dilation must be at least 1"),
    (lambda: conv2d(x4, w4, dilation=9), ValueError, "kernel_size .*must fit into the padded image"),
    (lambda: conv2d(x4, w4, groups=2), ValueError, "groups must divide the 3 kernels of weight, got 2"),
    (lambda: conv2d(x4, w4, groups=0), ValueError, "groups must be at least 1, got 0"),
    (lambda: conv2d(x4, w4, backward="fast"), ValueError, "backward must be .*'fast'"),
    (lambda: patches([[1.0]], 1), TypeError, "input must be a torch tensor, got list"),
    (lambda: patches(torch.zeros(3, 4), 2), ValueError, r"input must have shape .*got \(3, 4\)"),
    (lambda: patches(x4, 0), ValueError, "kernel_size must be at least 1, got 0"),
    (lambda: patches(x4, "2"), TypeError, "kernel_size must be an int or two ints, got str"),
    (lambda: patches(x4, 6), ValueError, r"kernel_size \(6, 6\) .*got one of \(4, 5\)"),
    (lambda: index_map(0, 0, (3, 4), 2), ValueError, r"input_size must be \(D, H, W\), got \(3, 4\)"),
    (lambda: index_map(6, 0, (1, 3, 4), 2), ValueError, r"p must lie in 0, ..., 5, got 6"),
    (lambda: index_map(0, -1, (1, 3, 4), 2), ValueError, r"q must lie in 0, ..., 3, got -1"),
    (lambda: index_map(0.5, 0, (1, 3, 4), 2), TypeError, "p must be an int or a tensor of them, got float"),
    (lambda: gather_matrix((0, 3, 4), 2), ValueError, "input_size must be at least 1, got 0"),
    (lambda: gather_matrix((1, 3, 4.0), 2), TypeError, "input_size must be an int, got float"),
    (lambda: gather_matrix((1, 3, 4), 5), ValueError, "kernel_size"),
    (lambda: kernel_matrix(K), ValueError, r"weight must have shape .*got \(2, 2\)"),
    (lambda: kernel_matrix(w4, 2), ValueError, "groups must divide the 3 kernels of weight, got 2"),
    (lambda: conv2d_jacobians(x4, w4), ValueError, r"input must be one sample, \(D, H, W\), got shape \(1, 2, 4, 5\)"),
    (
        lambda: linear_jacobians(torch.zeros(2, 3), torch.zeros(4, 3)),
        ValueError,
        r"input must be one sample, \(n,\), got",
    ),
    (lambda: linear(torch.zeros(2), torch.zeros(4, 3)), ValueError, "input"),
    (lambda: linear(torch.zeros(3), torch.zeros(3)), ValueError, r"weight must have shape .*got \(3,\)"),
    (
        lambda: linear(torch.zeros(3).long(), torch.zeros(4, 3)),
        TypeError,
        "input must be floating point, got torch.int64",
    ),
    (
        lambda: conv2d_input(x4.shape, w4, up[:, :2]),
        ValueError,
        r"upstream must have the shape of the output, \(1, 3, 3, 4\), got \(1, 2, 3, 4\)",
    ),
    (lambda: conv2d_input((4, 5), w4, up), ValueError, r"input_size must be .*got \(4, 5\)"),
    (lambda: conv2d_input((1, 3, 4, 5), w4, up), ValueError, "channels"),
    (lambda: conv2d_input(x4.shape, w4, up, form="patches"), ValueError, "form must be .*'patches'"),
    (
        lambda: conv2d_weight(x4, w4.shape, up[..., 1:]),
        ValueError,
        r"upstream must have the shape of the output, \(1, 3, 3, 4\), got",
    ),
    (lambda: conv2d_weight(x4, (3, 2, 2), up), ValueError, "weight_size"),
    (lambda: conv2d_weight(x4, w4.shape, up, form="fold"), ValueError, "form must be .*'fold'"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=range(len(REFUSED)))
def test_bad_input_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)


# --- at the edges ---------------------------------------------------------------------------------


def test_the_index_map_counts_in_int64_whatever_integers_it_is_given() -> None:
    small = torch.tensor(0, dtype=torch.uint8)
    d, i, j = index_map(small, small, (1, 3, 4), 2, padding=1)
    assert (d.item(), i.item(), j.item()) == (0, -1, -1)
    assert {part.dtype for part in (d, i, j)} == {torch.int64}
    assert index_map(torch.tensor(200, dtype=torch.uint8), 0, (1, 20, 20), 2)[1].item() == 200 % 19


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: index_map(torch.zeros(2).long(), torch.zeros(3).long(), (1, 3, 4), 2), ValueError, "must broadcast"),
        (lambda: index_map(None, 0, (1, 3, 4), 2), TypeError, "p must be an int or a tensor of them, got NoneType"),
        (
            lambda: conv2d(torch.ones(1, 3, 3), torch.ones(0, 1, 2, 2)),
            ValueError,
            "weight must have at least one kernel",
        ),
        (lambda: conv2d(torch.ones(1, 0, 3), torch.ones(1, 1, 1, 1), padding=1), ValueError, "at least one row"),
        (
            lambda: conv2d_input(3, torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2)),
            TypeError,
            "input_size must be a sequence",
        ),
        (lambda: conv2d_input((1, 3, 3), torch.ones(1, 1, 2, 2), None), TypeError, "upstream must be a torch tensor"),
        (
            lambda: conv2d_weight(torch.ones(1, 3, 3), 5, torch.ones(1, 2, 2)),
            TypeError,
            "weight_size must be a sequence",
        ),
        (lambda: conv2d_weight(torch.ones(1, 3, 3), (1, 1, 2, 2), None), TypeError, "upstream must be a torch tensor"),
    ],
)
def test_what_does_not_fit_is_named(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_under_autocast_a_bias_that_is_no_tensor_is_named() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="bias must be a torch tensor, got list"):
        conv2d(torch.ones(1, 3, 3), torch.ones(1, 1, 2, 2), [1.0])


@pytest.mark.parametrize("form", ["index", "fold"])
def test_two_of_the_forms_for_reading_compile_too(form: str) -> None:
    x, weight = torch.randn(2, 2, 5, 5, requires_grad=True), torch.randn(3, 2, 2, 2, requires_grad=True)
    layer = lambda x, w: conv2d(x, w, padding=1, backward=form)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(f(x, weight).square().sum(), (x, weight)) for f in (compiled, layer)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
