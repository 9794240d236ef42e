"""The checkers of the exercises on convolution: every right answer passes, every known mistake is named, a blank says so."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pwl_lib import check, convolution
from pwl_lib.kronecker import unvec, vec

exercises = check.convolution
Pair = tuple[int, int]
Layers = list[tuple[int, int, int, int]]


def blank(*arguments: Any) -> Any:
    raise NotImplementedError("your answer here")


# --- right answers --------------------------------------------------------------------------------


def size_by_torch(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return F.max_pool2d(torch.zeros(1, size + 2 * padding, 1), (kernel, 1), (stride, 1), 0, (dilation, 1)).shape[1]


def axis(size: int, kernel: int, stride: int, padding: int, dilation: int) -> dict[str, Any]:
    return {"stride": (stride, 1), "padding": (padding, 0), "dilation": (dilation, 1)}


def overlap_by_matrix(size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[int]:
    M = convolution.gather_matrix((1, size, 1), (kernel, 1), **axis(size, kernel, stride, padding, dilation))
    return M.to_dense().sum(0).int().tolist()


def overlap_by_gradient(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    words = axis(size, kernel, stride, padding, dilation)
    one = torch.ones(1, size, 1, requires_grad=True)
    (counts,) = torch.autograd.grad(F.conv2d(one, torch.ones(1, 1, kernel, 1), None, **words).sum(), one)
    return counts.flatten()


def patches_by_torch(x: Tensor, k_h: int, k_w: int) -> Tensor:
    return F.unfold(x.T[None], (k_w, k_h)).T  # row-major of the transpose is column-major


def preimages_by_search(i: int, j: int, size: Pair, kernel: Pair, stride: Pair) -> list[tuple[Any, Any]]:
    count = [(n - k) // s + 1 for n, k, s in zip(size, kernel, stride, strict=True)]
    p, q = torch.arange(count[0] * count[1])[:, None], torch.arange(kernel[0] * kernel[1])
    _, rows, columns = convolution.index_map(p, q, (1, *size), kernel, stride)
    return [(p, q) for p, q in ((rows == i) & (columns == j)).nonzero().flip(0)]


def preimages_by_solving(i: int, j: int, size: Pair, kernel: Pair, stride: Pair, *, swap: bool = False) -> list[Any]:
    rows, columns = ((n - k) // s + 1 for n, k, s in zip(size, kernel, stride, strict=True))
    found = []
    for a, b in itertools.product(range(kernel[0]), range(kernel[1])):
        u, v = i - a, j - b
        if u % stride[0] == v % stride[1] == 0 and 0 <= u // stride[0] < rows and 0 <= v // stride[1] < columns:
            pair = [u // stride[0] + rows * (v // stride[1]), a + kernel[0] * b]
            found.append(pair[::-1] if swap else pair)
    return found


def weight_by_autograd(x: Tensor, upstream: Tensor) -> Tensor:
    kernel = [n - m + 1 for n, m in zip(x.shape[1:], upstream.shape[1:], strict=True)]
    weight = torch.zeros(len(upstream), len(x), *kernel, dtype=x.dtype, requires_grad=True)
    return torch.autograd.grad(F.conv2d(x, weight), weight, upstream)[0]


def weight_by_patches(x: Tensor, upstream: Tensor) -> Tensor:
    kernel = [n - m + 1 for n, m in zip(x.shape[1:], upstream.shape[1:], strict=True)]
    return unvec(vec(upstream, order=2) @ convolution.patches(x, kernel), (len(x), *kernel))


def input_by_autograd(size: Pair, kernel: Tensor, upstream: Tensor, stride: int) -> Tensor:
    image = torch.zeros(1, 1, *size, dtype=kernel.dtype, requires_grad=True)
    return torch.autograd.grad(F.conv2d(image, kernel[None, None], stride=stride), image, upstream[None, None])[0][0, 0]


def input_by_matrix(size: Pair, kernel: Tensor, upstream: Tensor, stride: int) -> Tensor:
    words = (1, *size), kernel[None, None], upstream[None], stride
    return convolution.conv2d_input(*words, form="matrix")[0]


def scatter(size: Pair, kernel: Tensor, upstream: Tensor, stride: int) -> Tensor:
    """Assigns where it should add."""
    gradient = torch.zeros(size, dtype=kernel.dtype)
    for i, j in itertools.product(*map(range, upstream.shape)):
        rows, columns = slice(stride * i, stride * i + len(kernel)), slice(stride * j, stride * j + kernel.shape[1])
        gradient[rows, columns] = upstream[i, j] * kernel
    return gradient


def field(layers: Layers, i: int) -> tuple[int, int]:
    first, size, jump = 0, 1, 1
    for k, s, p, d in layers:
        first, size, jump = first - p * jump, size + d * (k - 1) * jump, jump * s
    return first + jump * i, first + jump * i + size - 1


def field_by_sets(layers: Layers, i: int) -> list[int]:
    rows = {i}
    for k, s, p, d in layers[::-1]:
        rows = {s * row + d * a - p for row in rows for a in range(k)}
    return [min(rows), max(rows)]


def jacobian(kernel: Tensor, size: Pair) -> Tensor:
    return convolution.conv2d_jacobians(torch.zeros(1, *size, dtype=kernel.dtype), kernel[None, None])[0]


def invisible_by_svd(kernel: Tensor, size: Pair) -> Tensor:
    return unvec(torch.linalg.svd(jacobian(kernel, size)).Vh[-1], size)


def invisible_by_projection(kernel: Tensor, size: Pair) -> Tensor:
    J, image = jacobian(kernel, size), 100 * torch.randn(*size, dtype=kernel.dtype)
    return image - unvec(torch.linalg.pinv(J) @ (J @ vec(image)), size)


def merge_by_convolution(first: Tensor, second: Tensor) -> Tensor:
    k_h, k_w = first.shape[2:]
    padded = F.conv2d(
        second, first.transpose(0, 1).flip(2, 3), padding=(k_h - 1, k_w - 1)
    )  # (D', D): sums over the middle channels
    return padded


def merge_by_probing(first: Tensor, second: Tensor) -> Tensor:
    """The response to each unit image is one element of the kernel."""
    shape = first.shape[1], *(k + m - 1 for k, m in zip(first.shape[2:], second.shape[2:], strict=True))
    units = torch.eye(torch.Size(shape).numel(), dtype=first.dtype).reshape(-1, *shape)
    return F.conv2d(F.conv2d(units, first), second)[:, :, 0, 0].T.reshape(-1, *shape)


RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("output_size", lambda n, k, s, p, d: (n + 2 * p - d * (k - 1) - 1) // s + 1),
    ("output_size", lambda n, k, s, p, d: len(range(0, n + 2 * p - d * (k - 1), s))),
    ("output_size", size_by_torch),
    ("overlap", overlap_by_matrix),
    ("overlap", overlap_by_gradient),
    ("patches", patches_by_torch),
    ("patches", lambda x, k_h, k_w: convolution.patches(x[None], (k_h, k_w))),
    ("preimages", preimages_by_search),
    ("preimages", preimages_by_solving),
    ("weight_gradient", weight_by_autograd),
    ("weight_gradient", weight_by_patches),
    ("weight_gradient", lambda x, u: F.conv2d(x[:, None], u[:, None]).transpose(0, 1)),
    ("input_gradient", input_by_autograd),
    ("input_gradient", input_by_matrix),
    ("receptive_field", field),
    ("receptive_field", field_by_sets),
    ("invisible", invisible_by_svd),
    ("invisible", invisible_by_projection),
    ("merge", merge_by_convolution),
    ("merge", merge_by_probing),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{name}-{n}" for n, (name, _) in enumerate(RIGHT)])
def test_every_right_answer_passes(name: str, answer: Callable[..., Any]) -> None:
    for _ in range(3):  # the inputs are fresh each time
        assert getattr(exercises, name)(answer).startswith("right: ")


# --- mistakes -------------------------------------------------------------------------------------


def size(n: int, k: int, s: int, p: int, d: int) -> int:
    return (n + 2 * p - d * (k - 1) - 1) // s + 1


def rows_first(x: Tensor, k_h: int, k_w: int) -> Tensor:
    """Positions column by column, elements row by row."""
    return patches_by_torch(x, k_h, k_w).unflatten(1, (k_w, k_h)).mT.flatten(1)


def positions_first(x: Tensor, k_h: int, k_w: int) -> Tensor:
    """Positions row by row, elements column by column."""
    return F.unfold(x[None], (k_h, k_w)).T.unflatten(1, (k_h, k_w)).mT.flatten(1)


def row_major_p(i: int, j: int, size: Pair, kernel: Pair, stride: Pair) -> list[tuple[int, int]]:
    rows, columns = ((n - k) // s + 1 for n, k, s in zip(size, kernel, stride, strict=True))
    return [(columns * (p % rows) + p // rows, q) for p, q in preimages_by_solving(i, j, size, kernel, stride)]


def row_major_q(i: int, j: int, size: Pair, kernel: Pair, stride: Pair) -> list[tuple[int, int]]:
    pairs = preimages_by_solving(i, j, size, kernel, stride)
    return [(p, kernel[1] * (q % kernel[0]) + q // kernel[0]) for p, q in pairs]


def transpose_kernel(x: Tensor, upstream: Tensor) -> Tensor:
    right = weight_by_autograd(x, upstream)
    return right.mT.reshape(right.shape)


WRONG: list[tuple[str, Callable[..., Any], str]] = [
    ("output_size", lambda *w: size(*w) - 1, "position 0 counts too"),
    ("output_size", lambda n, k, s, p, d: -(-(n + 2 * p - d * (k - 1) - 1) // s) + 1, "rounded up"),
    ("output_size", lambda n, k, s, p, d: size(n, k, s, p, 1), "dilation is missing"),
    ("output_size", lambda n, k, s, p, d: (n + p - d * (k - 1) - 1) // s + 1, "both sides"),
    ("output_size", lambda n, k, s, p, d: (n + 2 * p - d * (k - 1)) // s + 1, "one place more"),
    ("overlap", lambda n, k, s, p, d: overlap_by_matrix(n, k, 1, p, d), "stride is missing"),
    (
        "overlap",
        lambda n, k, s, p, d: overlap_by_gradient(n + 2 * p, k, s, 0, d)[:n] if p else overlap_by_matrix(n, k, s, p, d),
        "",
    ),
    ("overlap", lambda n, k, s, p, d: overlap_by_matrix(n, k, s, p, 1), "dilation is missing"),
    ("overlap", lambda n, k, s, p, d: [k] * n, "the size of the kernel"),
    ("overlap", lambda *w: (overlap_by_gradient(*w) > 0).double(), "counted once"),
    ("patches", lambda *w: patches_by_torch(*w).T, "transpose"),
    ("patches", lambda x, k_h, k_w: F.unfold(x[None], (k_h, k_w)).T, "torch's unfold"),
    ("patches", rows_first, "inside of a window"),
    ("patches", positions_first, "windows follow each other"),
    ("preimages", lambda *w: preimages_by_solving(*w, swap=True), "exchanged"),
    ("preimages", row_major_p, "p is row-major"),
    ("preimages", row_major_q, "q is row-major"),
    ("preimages", lambda i, j, n, k, s: preimages_by_solving(i, j, n, k, (1, 1)), "stride is missing"),
    ("preimages", lambda *w: preimages_by_solving(*w)[:1], "several windows"),
    ("weight_gradient", lambda x, u: weight_by_autograd(x, u).flip(2, 3), "flipped"),
    ("weight_gradient", lambda x, u: weight_by_autograd(x, u).transpose(0, 1), "exchanged"),
    ("weight_gradient", transpose_kernel, "unpacked row by row"),
    ("weight_gradient", lambda x, u: weight_by_autograd(x, u) / u[0].numel(), "mean"),
    ("weight_gradient", lambda x, u: weight_by_autograd(x, torch.ones_like(u)), "upstream gradient is missing"),
    ("input_gradient", scatter, "must be added"),
    ("input_gradient", lambda n, k, u, s: input_by_autograd(n, k.flip(0, 1), u, s), "flipped"),
    (
        "input_gradient",
        lambda n, k, u, s: input_by_autograd(n, k, torch.ones_like(u), s),
        "upstream gradient is missing",
    ),
    (
        "input_gradient",
        lambda n, k, u, s: (
            input_by_autograd(n, k, u, s) / input_by_autograd(n, torch.ones_like(k), torch.ones_like(u), s).clamp(min=1)
        ),
        "mean over the windows",
    ),
    (
        "receptive_field",
        lambda ls, i: (field(ls, i)[0], field(ls, i)[0] + sum(d * (k - 1) for k, _, _, d in ls)),
        "strides",
    ),
    ("receptive_field", lambda ls, i: field(ls[::-1], i), "wrong order"),
    ("receptive_field", lambda ls, i: (field(ls, i)[0], field(ls, i)[1] + 1), "not the one behind"),
    ("receptive_field", lambda ls, i: field([(k, s, 0, d) for k, s, _, d in ls], i), "padding is missing"),
    ("receptive_field", lambda ls, i: field([(k, s, p, 1) for k, s, p, _ in ls], i), "dilation is missing"),
    ("invisible", lambda k, n: torch.zeros(n), "image 0"),
    ("invisible", lambda k, n: torch.ones(n), "constant image"),
    ("invisible", lambda k, n: invisible_by_svd(k, n).T[:-1], ""),
    ("invisible", lambda k, n: invisible_by_svd(k, n) * float("nan"), ""),
    ("merge", lambda a, b: merge_by_convolution(a, b.flip(2, 3)), "flipped"),
    ("merge", lambda a, b: merge_by_convolution(a.flip(2, 3), b), "flipped"),
    ("merge", lambda a, b: merge_by_convolution(a, b).flip(2, 3), "both kernels are flipped"),
    ("merge", lambda a, b: merge_by_convolution(a, b) / len(a), "must be summed"),
]


@pytest.mark.parametrize(("name", "answer", "diagnosis"), WRONG, ids=[f"{w[0]}-{n}" for n, w in enumerate(WRONG)])
def test_every_known_mistake_is_named(name: str, answer: Callable[..., Any], diagnosis: str) -> None:
    for _ in range(3):
        with pytest.raises(check.WrongAnswer) as caught:
            getattr(exercises, name)(answer)
        message = str(caught.value)
        assert message.startswith("not yet, ")
        if diagnosis:
            assert re.search(diagnosis, message), message


@pytest.mark.parametrize("name", exercises.__all__)
def test_there_are_two_hints_and_neither_is_a_program(name: str) -> None:
    first, second = (getattr(exercises, name).hint(level) for level in (1, 2))
    assert len(first) > 20
    assert len(second) > 20
    assert first != second
    for hint in (first, second):
        assert not re.search(r"torch\.|F\.|def |return|lambda|\[.*:.*\]|einsum|svd", hint)


def test_an_image_that_the_kernel_sees_is_refused_however_small_it_is() -> None:
    for scale in (1.0, 1e-12, 1e12):
        with pytest.raises(check.WrongAnswer):
            exercises.invisible(lambda kernel, size, scale=scale: scale * torch.rand(size, dtype=kernel.dtype))
        exercises.invisible(lambda kernel, size, scale=scale: scale * invisible_by_svd(kernel, size))


def test_the_checkers_use_nothing_of_the_module_that_they_teach() -> None:
    names = vars(exercises)
    assert "conv2d" not in names
    assert not any(getattr(value, "__module__", "") == "pwl_lib.convolution" for value in names.values())
