"""Checkers of the exercises of the chapter *Convolution*. They sum term by term, and use nothing of the module they teach."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pwl_lib.check._exercise import Case, exercise, harmful, random_tensor

__all__ = [
    "input_gradient",
    "invisible",
    "merge",
    "output_size",
    "overlap",
    "patches",
    "preimages",
    "receptive_field",
    "weight_gradient",
]

_random = random.SystemRandom()


# --- one axis -------------------------------------------------------------------------------------


def _reads(size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[list[int]]:
    """For each position of the kernel the places that it reads, padding too; counted, not calculated."""
    padded, found = size + 2 * padding, []
    for start in range(0, padded, stride):
        places = [start + dilation * a for a in range(kernel)]
        if places[-1] < padded:
            found.append([place - padding for place in places])
    return found


@exercise(
    hint="Where does the last element of the kernel stand when the kernel stands at position i'? Where must it not stand?",
    more="Positions are counted from 0: the largest that fits is a quotient, rounded down, and there is one more than that.",
)
def output_size() -> Iterator[Case]:
    """How many positions a kernel has along one axis."""
    for words, where in (
        ((7, 3, 1, 0, 1), "without stride, padding and dilation"),
        ((8, 3, 2, 0, 1), "where the stride leaves a rest"),
        ((5, 5, 1, 0, 1), "where the kernel just fits"),
        ((6, 3, 1, 2, 1), "with padding"),
        ((9, 3, 1, 0, 3), "with dilation"),
    ):
        yield _size_case(*words, where)
    for _ in range(3):
        kernel, dilation = _random.randint(2, 4), _random.randint(2, 3)
        stride, padding = _random.randint(2, 4), _random.randint(1, 2)
        yield _size_case(
            dilation * kernel + _random.randint(5, 15), kernel, stride, padding, dilation, "at random numbers"
        )


def _size_case(size: int, kernel: int, stride: int, padding: int, dilation: int, where: str) -> Case:
    wanted = len(_reads(size, kernel, stride, padding, dilation))
    reach = size + 2 * padding - dilation * (kernel - 1) - 1
    wrong = {
        "one too few: the position 0 counts too": reach // stride,
        "rounded up: a position that reaches beyond the end does not count": -(-reach // stride) + 1,
        "the dilation is missing": (size + 2 * padding - kernel) // stride + 1,
        "the padding lies on both sides": (reach - padding) // stride + 1,
        "the kernel, spread by its dilation, covers one place more than the distance of its ends": (reach + 1) // stride
        + 1,
    }
    return Case(
        (size, kernel, stride, padding, dilation),
        wanted,
        mistakes={k: v for k, v in wrong.items() if v != wanted},
        where=where,
    )


@exercise(
    hint="Go through all positions of the kernel and all its elements. Which place does each of them read?",
    more="A place gets one count for each pair (position, element) that reads it. Reads in the padding count for nobody.",
)
def overlap() -> Iterator[Case]:
    """How often each place of one axis is read."""
    for words, where in (
        ((7, 3, 1, 0, 1), "with stride 1"),
        ((4, 4, 1, 0, 1), "where the kernel has one position"),
        ((8, 3, 2, 0, 1), "with stride 2, where the last place is read by nobody"),
        ((6, 3, 1, 1, 1), "with padding"),
        ((9, 3, 1, 0, 2), "with dilation"),
        ((7, 2, 3, 0, 1), "where the stride is larger than the kernel"),
        ((11, 3, 2, 2, 3), "with all of them"),
    ):
        yield _overlap_case(*words, where)
    for _ in range(2):
        numbers = _random.randint(2, 4), _random.randint(1, 3), _random.randint(0, 2), _random.randint(1, 2)
        yield _overlap_case(10 + _random.randint(0, 4), *numbers, "at random numbers")


def _counts(size: int, *words: int) -> Tensor:
    counts = torch.zeros(size, dtype=torch.float64)
    for place in itertools.chain(*_reads(size, *words)):
        if 0 <= place < size:
            counts[place] += 1
    return counts


def _overlap_case(size: int, kernel: int, stride: int, padding: int, dilation: int, where: str) -> Case:
    wanted = _counts(size, kernel, stride, padding, dilation)
    wrong = {
        "the stride is missing": _counts(size, kernel, 1, padding, dilation),
        "the padding is missing": _counts(size, kernel, stride, 0, dilation)
        if dilation * (kernel - 1) < size
        else wanted,
        "the dilation is missing": _counts(size, kernel, stride, padding, 1),
        "each place gets the size of the kernel: that is so far from the ends, with stride 1": torch.full_like(
            wanted, kernel
        ),
        "a place that is read is counted once, however often it is read": (wanted > 0).double(),
    }
    return Case((size, kernel, stride, padding, dilation), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="Which rows of the layer before does one row of the last layer read? The smallest and the largest of them are enough.",
    more="Go back layer by layer: the first row u becomes s u - P, the last row v becomes s v - P + dilation (k - 1).",
)
def receptive_field() -> Iterator[Case]:
    """The first and the last input row that an output of a stack of convolutions depends on."""
    for layers, i, where in (
        ([(3, 1, 0, 1)], 4, "for one layer"),
        ([(3, 1, 0, 1)] * 3, 2, "for three equal layers"),
        ([(2, 2, 0, 1), (5, 3, 0, 1)], 3, "with strides"),
        ([(3, 1, 0, 1), (3, 2, 0, 1)], 3, "with a stride in the last layer alone"),
        ([(3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 3)], 0, "where the field begins in the padding"),
        ([], 5, "for no layer at all"),
    ):
        yield _field_case(layers, i, where)
    for _ in range(2):
        stack = [
            (_random.randint(2, 5), _random.randint(2, 3), _random.randint(1, 2), _random.randint(1, 3))
            for _ in range(3)
        ]
        yield _field_case(stack, _random.randint(1, 6), "for a random stack")


def _field(layers: Sequence[tuple[int, int, int, int]], i: int) -> tuple[int, int]:
    rows = {i}
    for kernel, stride, padding, dilation in reversed(layers):
        rows = {stride * row - padding + dilation * a for row in rows for a in range(kernel)}
    return min(rows), max(rows)


def _field_case(layers: list[tuple[int, int, int, int]], i: int, where: str) -> Case:
    wanted = _field(layers, i)
    size = 1 + sum(dilation * (kernel - 1) for kernel, _, _, dilation in layers)
    start = wanted[0]
    wrong = {
        "the strides do not widen the field in yours: a step in a late layer is several steps in the input": (
            start,
            start + size - 1,
        ),
        "the layers are taken in the wrong order: go back from the last one": _field(layers[::-1], i),
        "the last row is the last that is read, not the one behind it": (start, wanted[1] + 1),
        "the padding is missing": _field([(k, s, 0, d) for k, s, _, d in layers], i),
        "the dilation is missing": _field([(k, s, p, 1) for k, s, p, _ in layers], i),
    }
    return Case((layers, i), wanted, mistakes={k: v for k, v in wrong.items() if v != wanted}, where=where)


# --- one image ------------------------------------------------------------------------------------


@exercise(
    hint="One row for each position of the kernel, one column for each of its elements. "
    "Which of the two indices of a position runs fastest?",
    more="Column-major, twice: down first, then to the right, for the positions and inside of each window.",
)
def patches() -> Iterator[Case]:
    """The matrix of all patches of one image, column-major."""
    A = torch.tensor([[1.0, 3, 1, 4], [2, 8, 5, 1], [3, 2, 0, 3]], dtype=torch.float64)
    yield _patches_case(A, 2, 2, "at the 3 x 4 example")
    yield _patches_case(random_tensor(4, 6), 3, 2, "at a random image and a kernel that is no square")
    yield _patches_case(random_tensor(3, 2), 3, 2, "where the kernel covers the image")
    yield _patches_case(random_tensor(2, 3), 1, 1, "at a 1 x 1 kernel")


def _patches_case(x: Tensor, k_h: int, k_w: int, where: str) -> Case:
    windows = x.unfold(0, k_h, 1).unfold(1, k_w, 1)  # (H', W', k_h, k_w)
    wanted = windows.permute(1, 0, 3, 2).flatten(2).flatten(0, 1)
    wrong = {
        "that is im2col, the transpose: the positions must be the rows": wanted.T,
        "both orders are row-major; that is torch's unfold, transposed": windows.flatten(2).flatten(0, 1),
        "inside of a window yours goes to the right first; go down first": windows.permute(1, 0, 2, 3)
        .flatten(2)
        .flatten(0, 1),
        "the windows follow each other to the right in yours; go down first": windows.permute(0, 1, 3, 2)
        .flatten(2)
        .flatten(0, 1),
    }
    return Case((x, k_h, k_w), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="Which positions (i', j') of the kernel have the pixel (i, j) in their window? Solve i = s i' + a for i' and a.",
    more="Each element (a, b) of the kernel gives at most one position. p is column-major in (i', j'), q is column-major in (a, b).",
)
def preimages() -> Iterator[Case]:
    """All places of a pixel in the matrix of patches."""
    for size, kernel, stride, where in (
        ((3, 4), (2, 2), (1, 1), "at the 3 x 4 example"),
        ((5, 6), (3, 2), (2, 1), "with unequal strides"),
        ((4, 7), (1, 3), (1, 2), "with a kernel of one row"),
    ):
        for i, j in itertools.product(range(size[0]), range(size[1])):
            yield _preimages_case(i, j, size, kernel, stride, where)
    yield _preimages_case(2, 2, (6, 6), (2, 2), (3, 3), "where no window has the pixel")


def _pairs(
    i: int, j: int, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int]
) -> list[tuple[int, int, int, int]]:
    """All positions (i', j') and elements (a, b) that read the pixel."""
    rows, columns = (_reads(n, k, s, 0, 1) for n, k, s in zip(size, kernel, stride, strict=True))
    return [
        (i_out, j_out, down.index(i), right.index(j))
        for i_out, down in enumerate(rows)
        for j_out, right in enumerate(columns)
        if i in down and j in right
    ]


def _preimages_case(
    i: int, j: int, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], where: str
) -> Case:
    rows, columns = (len(_reads(n, k, s, 0, 1)) for n, k, s in zip(size, kernel, stride, strict=True))
    pairs = _pairs(i, j, size, kernel, stride)
    wanted = sorted((u + rows * v, a + kernel[0] * b) for u, v, a, b in pairs)
    dense = _pairs(i, j, size, kernel, (1, 1))
    wrong: dict[str, list[tuple[int, int]]] = {
        "the two are exchanged: p is the row, q the column": sorted((q, p) for p, q in wanted),
        "p is row-major in yours; the rows of the matrix go down the image first": sorted(
            (columns * u + v, a + kernel[0] * b) for u, v, a, b in pairs
        ),
        "q is row-major in yours; the columns of the matrix go down the kernel first": sorted(
            (u + rows * v, kernel[1] * a + b) for u, v, a, b in pairs
        ),
        "the stride is missing": sorted((u + (size[0] - kernel[0] + 1) * v, a + kernel[0] * b) for u, v, a, b in dense),
        "not all of them: a pixel can be in several windows": wanted[:1],
        "not all of them: a pixel can be in several windows, and yours is the last": wanted[-1:],
    }
    return Case(
        (i, j, size, kernel, stride),
        wanted,
        accept=lambda value: value == wanted,
        mistakes={k: v for k, v in wrong.items() if v != wanted},
        where=where,
        measure=lambda value: sorted((int(p), int(q)) for p, q in value),
    )


# --- the gradients --------------------------------------------------------------------------------


def _correlate(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Cross-correlation, (D, H, W) with (D', D, k_h, k_w), window by window."""
    k_h, k_w = weight.shape[-2:]
    windows = x.unfold(1, k_h, stride).unfold(2, k_w, stride)  # (D, H', W', k_h, k_w)
    return torch.einsum("dijab,edab->eij", windows, weight)


@exercise(
    hint="The derivative of one output in one weight is one number of x. Which?",
    more="The gradient of the weight (d', d, a, b) is a sum over all positions: what comes from upstream there, "
    "times the pixel that met the weight.",
)
def weight_gradient() -> Iterator[Case]:
    """The gradient of a loss in the kernels of a convolution with stride 1."""
    for channels, size, kernels, kernel, where in (
        (1, (3, 4), 1, (2, 2), "at one channel and one kernel"),
        (2, (4, 5), 3, (2, 3), "at several channels and kernels"),
        (2, (3, 3), 2, (3, 3), "where the kernel covers the image"),
        (3, (2, 4), 2, (1, 1), "at a 1 x 1 kernel"),
    ):
        x = random_tensor(channels, *size)
        upstream = random_tensor(kernels, size[0] - kernel[0] + 1, size[1] - kernel[1] + 1)
        wanted = _weight_gradient(x, upstream, kernel)
        wrong = {
            "yours is flipped: the derivative of a cross-correlation in its kernel is not": wanted.flip(-1, -2),
            "the channels and the kernels are exchanged": wanted.transpose(0, 1),
            "rows and columns of the kernel are exchanged: the result was unpacked row by row": wanted.mT.reshape(
                wanted.shape
            ),
            "a mean over the positions where a sum was wanted": wanted / upstream[0].numel(),
            "the upstream gradient is missing": _weight_gradient(x, torch.ones_like(upstream), kernel),
        }
        yield Case((x, upstream), wanted, mistakes=harmful(wrong, wanted), where=where)


def _weight_gradient(x: Tensor, upstream: Tensor, kernel: tuple[int, int]) -> Tensor:
    rows, columns = upstream.shape[1:]
    wanted = x.new_zeros(len(upstream), len(x), *kernel)
    for a, b in itertools.product(range(kernel[0]), range(kernel[1])):
        wanted[:, :, a, b] = torch.einsum("eij,dij->ed", upstream, x[:, a : a + rows, b : b + columns])
    return wanted


@exercise(
    hint="Each output hands its upstream gradient back to all pixels of its window, each times one weight. A pixel is in several windows.",
    more="Start with zeros, and add a multiple of the kernel for each position.",
)
def input_gradient() -> Iterator[Case]:
    """The gradient of a loss in the image of a convolution with a stride, one channel."""
    for size, kernel, stride, where in (
        ((3, 4), (2, 2), 1, "at the shapes of the 3 x 4 example"),
        ((5, 6), (3, 2), 1, "at a kernel that is no square"),
        ((6, 7), (3, 3), 2, "with stride 2, where the last row is in no window"),
        ((4, 5), (2, 2), 3, "where the stride is larger than the kernel"),
    ):
        weight = random_tensor(*kernel)
        rows, columns = ((n - k) // stride + 1 for n, k in zip(size, kernel, strict=True))
        upstream = random_tensor(rows, columns)
        wanted = _scatter(size, weight, upstream, stride)
        counts = _scatter(size, torch.ones_like(weight), torch.ones_like(upstream), stride)
        wrong = {
            "a later window overwrites an earlier one: the contributions must be added": _scatter(
                size, weight, upstream, stride, overwrite=True
            ),
            "the kernel is flipped in yours": _scatter(size, weight.flip(0, 1), upstream, stride),
            "a mean over the windows of a pixel where a sum was wanted": wanted / counts.clamp(min=1),
            "the upstream gradient is missing": _scatter(size, weight, torch.ones_like(upstream), stride),
        }
        yield Case((size, weight, upstream, stride), wanted, mistakes=harmful(wrong, wanted), where=where)


def _scatter(
    size: tuple[int, int], weight: Tensor, upstream: Tensor, stride: int, *, overwrite: bool = False
) -> Tensor:
    gradient = weight.new_zeros(size)
    for i, j in itertools.product(*map(range, upstream.shape)):
        window = gradient[stride * i :, stride * j :][: weight.shape[0], : weight.shape[1]]
        window.copy_(upstream[i, j] * weight + (0 if overwrite else window))
    return gradient


# --- what a layer does not see, and two layers in one ---------------------------------------------


@exercise(
    hint="The layer is linear: vec(A * K) = J vec(A). Compare the number of rows of J with the number of its columns.",
    more="A matrix with fewer rows than columns has a null space. The last right singular vector of J lies in it.",
)
def invisible() -> Iterator[Case]:
    """An image, not 0, that a kernel maps to 0."""
    for kernel, size, where in (
        (random_tensor(2, 2), (3, 4), "at a random 2 x 2 kernel"),
        (random_tensor(3, 2), (5, 5), "at a random kernel that is no square"),
        (torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]], dtype=torch.float64), (4, 4), "at Sobel's kernel"),
    ):
        yield _invisible_case(kernel, size, where)


def _invisible_case(kernel: Tensor, size: tuple[int, int], where: str) -> Case:
    def accept(value: Any) -> bool:
        image = torch.as_tensor(value, dtype=torch.float64).detach()
        if image.shape != torch.Size(size) or not bool(torch.isfinite(image).all()) or not bool(image.abs().amax() > 0):
            return False
        image = image / image.abs().amax()
        return bool(_correlate(image[None], kernel[None, None]).abs().amax() < 1e-8 * kernel.abs().sum())

    ones = torch.ones(size, dtype=torch.float64)
    wrong = {
        "that is the image 0, which every linear map takes to 0": 0 * ones,
        "a constant image gives the sum of the kernel, which is not 0 here": ones,
    }
    return Case(
        (kernel, size),
        f"an image of shape {size}, not 0, whose cross-correlation with the kernel is 0",
        accept=accept,
        mistakes={k: v for k, v in wrong.items() if not accept(v)},
        where=where,
    )


@exercise(
    hint="Write both sums out. Which elements of the two kernels multiply the same pixel?",
    more="The element (a, b) of the first kernel and (a', b') of the second meet at the pixel (a + a', b + b'). "
    "And what lies between the two layers is summed over.",
)
def merge() -> Iterator[Case]:
    """One kernel that does what two convolutions do, one after the other."""
    for channels, (k_h, k_w), middle, (l_h, l_w), kernels, where in (
        (1, (2, 2), 1, (2, 2), 1, "at one channel"),
        (1, (3, 2), 1, (1, 3), 1, "at kernels that are no squares"),
        (2, (2, 3), 3, (3, 2), 2, "at several channels"),
        (3, (1, 1), 2, (3, 3), 1, "at a 1 x 1 kernel first"),
    ):
        first, second = random_tensor(middle, channels, k_h, k_w), random_tensor(kernels, middle, l_h, l_w)
        wanted = _merged(first, second)
        wrong = {
            "one of the two is flipped in yours": _merged(first, second.flip(-1, -2)),
            "one of the two is flipped in yours, the first": _merged(first.flip(-1, -2), second),
            "both kernels are flipped in yours": wanted.flip(-1, -2),
            "the middle channels are averaged where they must be summed": wanted / middle,
        }
        yield Case((first, second), wanted, mistakes=harmful(wrong, wanted), where=where)


def _merged(first: Tensor, second: Tensor) -> Tensor:
    (_, channels, k_h, k_w), (kernels, _, l_h, l_w) = first.shape, second.shape
    merged = first.new_zeros(kernels, channels, k_h + l_h - 1, k_w + l_w - 1)
    for a, b in itertools.product(range(l_h), range(l_w)):
        merged[:, :, a : a + k_h, b : b + k_w] += torch.einsum("em,mdij->edij", second[:, :, a, b], first)
    return merged
