"""The theorems of the chapter *Vec and Kronecker products*, and every property of its module."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from pwl_lib import kronecker
from pwl_lib.kronecker import commutation_matrix, kron, kron_matvec, unvec, vec, vec_permutation

D = torch.float64
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
A34 = torch.tensor([[1, 3, 1, 4], [2, 8, 5, 1], [3, 2, 0, 3]])

quick = settings(max_examples=30)
seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 4)
shapes = st.lists(st.integers(0, 4), min_size=1, max_size=5).map(tuple)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Small whole numbers in float64, whose sums and products are exact."""
    return torch.randint(-5, 6, shape, generator=torch.Generator().manual_seed(seed)).to(D)


def symbols(name: str, rows: int, columns: int) -> sp.Matrix:
    return sp.Matrix(rows, columns, lambda i, j: sp.Symbol(f"{name}{i}{j}"))


def vec_by_the_definition(x: Tensor) -> Tensor:
    """The recursion of the chapter, word for word."""
    if x.dim() == 1:
        return x
    if x.dim() == 2:
        return torch.cat([x[:, j] for j in range(x.shape[1])] or [x.flatten()])
    return torch.cat([vec_by_the_definition(part) for part in x] or [x.flatten()])


def raises(kind: type[Exception], *said: str) -> Any:
    """The error names the argument, what it had and what was wanted."""
    return pytest.raises(kind, match="(?s)" + "".join(f"(?=.*{part})" for part in said))


# --- layouts and the chain rule -------------------------------------------------------------------


@quick
@given(sizes, sizes, seeds)
def test_a_gradient_is_a_column_and_a_jacobian_has_numerator_layout(m: int, n: int, seed: int) -> None:
    W, x = randn(m, n, seed=seed), randn(n, seed=seed + 1)
    jacobian = jacrev(lambda x: torch.tanh(W @ x))(x)
    assert jacobian.shape == (m, n)
    for i, j in itertools.product(range(m), range(n)):
        step = torch.zeros(n, dtype=D)
        step[j] = 1e-6
        difference = (torch.tanh(W @ (x + step))[i] - torch.tanh(W @ (x - step))[i]) / 2e-6
        torch.testing.assert_close(jacobian[i, j], difference, rtol=1e-6, atol=1e-8)
    u = randn(m, seed=seed + 2)
    gradient = jacrev(lambda x: u @ torch.tanh(W @ x))(x)
    assert gradient.shape == x.shape
    torch.testing.assert_close(gradient, jacobian.T @ u)


@pytest.mark.theorem("thm-chain-rule")
@quick
@given(sizes, sizes, sizes, seeds)
def test_the_jacobian_of_a_composition_is_the_product_of_jacobians(n: int, m: int, k: int, seed: int) -> None:
    V, W, x = randn(m, n, seed=seed), randn(k, m, seed=seed + 1), randn(n, seed=seed + 2)
    f, g = (lambda x: torch.sin(V @ x) + x.sum() ** 2), (lambda y: torch.exp(W @ y / 4) * y.sum())
    inner, outer = jacrev(f)(x), jacrev(g)(f(x))
    torch.testing.assert_close(jacrev(lambda x: g(f(x)))(x), outer @ inner)
    # The vector form for a scalar end, and the sum with the index j over the middle.
    u = randn(k, seed=seed + 3)
    gradient = jacrev(lambda x: u @ g(f(x)))(x)
    by_y = jacrev(lambda y: u @ g(y))(f(x))
    torch.testing.assert_close(gradient, inner.T @ by_y)
    torch.testing.assert_close(gradient[0], sum(by_y[j] * inner[j, 0] for j in range(m)))


def test_the_sum_of_the_chain_rule_runs_over_the_entries_of_the_layer_between() -> None:
    """The misprint sums over i, the index of the weight: then what is left depends on j, and is another number."""
    w = sp.symbols("w0:3")
    x = sp.Matrix([w[0] * w[1] + w[2], w[1] ** 2 - w[2]])  # l = 2 entries of 3 weights
    y = sp.symbols("x0:2")
    z = y[0] ** 2 * y[1]
    jacobian, by_x = x.jacobian(w), sp.Matrix([z.diff(v) for v in y])
    at = dict(zip(y, x, strict=True))
    right = [sp.expand(sum(by_x[j].subs(at) * jacobian[j, i] for j in range(2))) for i in range(3)]
    printed = [sp.expand(sum(by_x[j].subs(at) * jacobian[j, i] for i in range(2))) for j in range(2)]
    assert right == [sp.expand(z.subs(at).diff(v)) for v in w]
    assert len(printed) != len(right)
    assert not {sp.simplify(value - good) for value in printed for good in right} & {0}


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_two_chain_rules_repeated_give_the_gradients_of_every_layer(depth: int) -> None:
    weights = [randn(3, 3, seed=k) for k in range(depth)]
    xs = [randn(3, seed=99)]
    layer = lambda x, w: torch.tanh(w @ x)
    for w in weights:
        xs.append(layer(xs[-1], w))
    upstream, gradients = 2 * xs[-1], []  # z is the sum of the squares
    for x, w in zip(reversed(xs[:-1]), reversed(weights), strict=True):
        by_w = jacrev(lambda v, x=x: layer(x, unvec(v, (3, 3))))(vec(w))
        gradients.append(unvec(by_w.T @ upstream, (3, 3)))
        upstream = jacrev(layer)(x, w).T @ upstream

    def loss(x: Tensor, weights: list[Tensor]) -> Tensor:
        for w in weights:
            x = layer(x, w)
        return (x**2).sum()

    by_x, by_weights = torch.func.grad(loss, argnums=(0, 1))(xs[0], weights)
    torch.testing.assert_close(upstream, by_x)
    torch.testing.assert_close(gradients[::-1], by_weights)


@pytest.mark.theorem("prop-gradient-step")
@quick
@given(sizes, seeds)
def test_a_short_step_against_the_gradient_lowers_the_loss(n: int, seed: int) -> None:
    Q, w = randn(n, n, seed=seed), randn(n, seed=seed + 1)
    z = lambda w: (torch.sin(Q @ w) ** 2).sum() + (w**2).sum()
    gradient = jacrev(z)(w)
    alpha = 1.0
    while z(w - alpha * gradient) >= z(w):
        alpha /= 2
    assert alpha > 1e-9
    for _ in range(5):  # and all shorter ones, to first order by alpha times the square of the norm
        alpha /= 8
        assert z(w - alpha * gradient) < z(w)
    fall = (z(w) - z(w - 1e-6 * gradient)) / 1e-6
    torch.testing.assert_close(fall, gradient @ gradient, rtol=1e-3, atol=1e-6)


def test_at_a_point_without_slope_the_gradient_step_stays() -> None:
    w = torch.zeros(3, dtype=D)
    assert torch.equal(w - 0.1 * jacrev(lambda w: -(w**2).sum())(w), w)  # a maximum, even


# --- vec ------------------------------------------------------------------------------------------


@given(shapes)
@example((3, 4))
@example((1,))
@example((2, 0, 3))
def test_vec_follows_its_recursive_definition(shape: tuple[int, ...]) -> None:
    x = torch.arange(math.prod(shape)).reshape(shape)
    assert torch.equal(vec(x), vec_by_the_definition(x))
    assert torch.equal(unvec(vec(x), shape), x)


def test_the_vec_of_the_books_example_is_its_columns() -> None:
    assert vec(A34).tolist() == [1, 2, 3, 3, 8, 2, 1, 5, 0, 4, 1, 3]
    assert vec(A34).tolist() == [int(a) for a in sp.Matrix(A34.tolist()).vec()]


def test_vec_stacks_the_channels_of_an_image() -> None:
    x = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal(vec(x), torch.cat([vec(x[0]), vec(x[1])]))
    batch = torch.arange(48).reshape(2, 2, 3, 4)
    assert torch.equal(vec(batch), torch.cat([vec(batch[0]), vec(batch[1])]))


@pytest.mark.theorem("prop-vec-permutation")
@given(shapes)
@example((3, 4))
@example((1, 5))
@example((2, 3, 4))
def test_vec_is_torchs_flatten_with_the_permutation_between_them(shape: tuple[int, ...]) -> None:
    x = torch.randint(-9, 10, shape)
    permutation = vec_permutation(shape)
    assert permutation.dtype == torch.int64
    assert torch.equal(vec(x), x.flatten()[permutation])
    assert torch.equal(vec(x)[permutation.argsort()], x.flatten())
    assert torch.equal(permutation.sort().values, torch.arange(math.prod(shape)))


@pytest.mark.theorem("prop-vec-permutation")
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple))
def test_an_entry_stands_in_vec_at_its_place_with_the_last_two_indices_exchanged(shape: tuple[int, ...]) -> None:
    x = torch.arange(math.prod(shape)).reshape(shape)
    *_, m, n = shape
    for index in itertools.product(*map(range, shape)):
        block = 0
        for i, size in zip(index[:-2], shape[:-2], strict=True):
            block = block * size + i
        assert vec(x)[block * m * n + index[-1] * m + index[-2]] == x[index]


def test_the_order_of_fortran_is_vec_for_matrices_alone() -> None:
    x = np.arange(24).reshape(4, 6)
    assert vec(torch.tensor(x)).tolist() == x.flatten(order="F").tolist()
    x = x.reshape(2, 3, 4)
    assert vec(torch.tensor(x)).tolist() != x.flatten(order="F").tolist()


@quick
@given(sizes, sizes, seeds)
def test_vec_keeps_inner_products(m: int, n: int, seed: int) -> None:
    X, Y = randn(m, n, seed=seed), randn(m, n, seed=seed + 1)
    torch.testing.assert_close(vec(X) @ vec(Y), (X.T @ Y).trace())


@given(shapes, st.integers(0, 2), st.data())
def test_order_says_how_many_dimensions_make_one_tensor(shape: tuple[int, ...], batch: int, data: Any) -> None:
    x = torch.randint(-9, 10, (2,) * batch + shape)
    got = vec(x, order=len(shape))
    assert got.shape == (2,) * batch + (math.prod(shape),)
    for index in itertools.product(range(2), repeat=batch):
        assert torch.equal(got[index], vec(x[index]))
    assert torch.equal(unvec(got, shape), x)


def test_vec_copies_only_where_it_must() -> None:
    x = torch.arange(12).reshape(3, 4)
    assert vec(x.T).data_ptr() == x.data_ptr()
    assert vec(x[0]).data_ptr() == x.data_ptr()
    assert unvec(x.flatten(), (4, 3)).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("device", DEVICES)
def test_dtype_and_device_are_those_of_the_input(dtype: torch.dtype, device: str) -> None:
    x = torch.ones(2, 3, dtype=dtype, device=device)
    for value in (vec(x), unvec(vec(x), (2, 3)), kron(x, x)):
        assert value.dtype == dtype
        assert value.device == x.device
    assert vec_permutation((2, 3), device=device).device == x.device
    K = commutation_matrix(2, 3, dtype=dtype, device=device)
    assert (K.dtype, K.device) == (dtype, x.device)
    if dtype != torch.bool and not (device == "cuda" and not (dtype.is_floating_point or dtype.is_complex)):
        value = kron_matvec(x, x, x.new_ones(9))
        assert (value.dtype, value.device) == (dtype, x.device)
        assert torch.equal(value, x.new_full((4,), 9))


# --- the Kronecker product ------------------------------------------------------------------------


@given(sizes, sizes, sizes, sizes, seeds)
def test_kron_follows_its_definition(m: int, n: int, r: int, s: int, seed: int) -> None:
    A, B = whole(m, n, seed=seed), whole(r, s, seed=seed + 1)
    product = kron(A, B)
    assert torch.equal(product, torch.kron(A, B))
    for i, j in itertools.product(range(m), range(n)):
        assert torch.equal(product[i * r : (i + 1) * r, j * s : (j + 1) * s], A[i, j] * B)


@pytest.mark.theorem("thm-kron-transpose")
@given(sizes, sizes, sizes, sizes, seeds)
def test_the_transpose_of_a_kronecker_product_is_the_product_of_transposes(
    m: int, n: int, r: int, s: int, seed: int
) -> None:
    A, B = whole(m, n, seed=seed), whole(r, s, seed=seed + 1)
    assert torch.equal(kron(A, B).T, kron(A.T, B.T))


@pytest.mark.theorem("thm-kron-transpose")
def test_sympy_proves_the_transpose_with_symbolic_entries() -> None:
    for (m, n), (r, s) in [((2, 2), (2, 2)), ((1, 3), (2, 1)), ((2, 3), (3, 2))]:
        A, B = symbols("a", m, n), symbols("b", r, s)
        assert sp.kronecker_product(A.T, B.T) == sp.kronecker_product(A, B).T


@pytest.mark.theorem("thm-mixed-product")
@given(sizes, sizes, sizes, sizes, sizes, sizes, seeds)
def test_the_product_of_kronecker_products_is_the_kronecker_product_of_products(
    m: int, n: int, p: int, r: int, s: int, t: int, seed: int
) -> None:
    A, B = whole(m, n, seed=seed), whole(r, s, seed=seed + 1)
    C, E = whole(n, p, seed=seed + 2), whole(s, t, seed=seed + 3)
    assert torch.equal(kron(A, B) @ kron(C, E), kron(A @ C, B @ E))


@pytest.mark.theorem("thm-mixed-product")
def test_sympy_proves_the_mixed_product_with_symbolic_entries() -> None:
    A, B, C, E = symbols("a", 2, 3), symbols("b", 2, 1), symbols("c", 3, 2), symbols("d", 1, 2)
    left = sp.kronecker_product(A, B) * sp.kronecker_product(C, E)
    assert (left - sp.kronecker_product(A * C, B * E)).expand() == sp.zeros(4, 4)


@pytest.mark.theorem("cor-kron-inverse")
@quick
@given(sizes, sizes, seeds)
def test_the_inverse_of_a_kronecker_product_is_the_product_of_inverses(m: int, r: int, seed: int) -> None:
    A = randn(m, m, seed=seed) + 4 * torch.eye(m, dtype=D)
    B = randn(r, r, seed=seed + 1) + 4 * torch.eye(r, dtype=D)
    assert torch.allclose(kron(A, B) @ kron(A.inverse(), B.inverse()), torch.eye(m * r, dtype=D), atol=1e-8)
    Q, P = torch.linalg.qr(A).Q, torch.linalg.qr(B).Q
    assert torch.allclose(kron(Q, P) @ kron(Q, P).T, torch.eye(m * r, dtype=D), atol=1e-12)


@given(seeds)
def test_kron_is_associative_and_not_commutative(seed: int) -> None:
    A, B, C = whole(2, 3, seed=seed), whole(3, 2, seed=seed + 1), whole(1, 2, seed=seed + 2)
    assert torch.equal(kron(kron(A, B), C), kron(A, kron(B, C)))
    E, F = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert not torch.equal(kron(E, F), kron(F, E))


@pytest.mark.parametrize("batches", [((2, 3), (2, 3)), ((2, 3), ()), ((), (2,)), ((0,), (0,)), ((0,), ())])
def test_kron_multiplies_sample_by_sample(batches: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    A, B = whole(*batches[0], 2, 3), whole(*batches[1], 4, 1, seed=1)
    batch = max(batches, key=len)
    product = kron(A, B)
    assert product.shape == (*batch, 8, 3)
    for index in itertools.product(*map(range, batch)):
        one, two = (X[index] if X.dim() > 2 else X for X in (A, B))
        assert torch.equal(product[index], torch.kron(one, two))


def test_torchs_kron_takes_a_batch_for_a_dimension_of_the_product() -> None:
    A, B = whole(5, 2, 3), whole(5, 4, 1, seed=1)
    assert torch.kron(A, B).shape == (25, 8, 3)
    assert kron(A, B).shape == (5, 8, 3)


# --- the vec of a product -------------------------------------------------------------------------


@pytest.mark.theorem("thm-vec-axb")
@given(sizes, sizes, sizes, sizes, seeds)
def test_the_vec_of_a_product_of_three_matrices(m: int, n: int, p: int, q: int, seed: int) -> None:
    A, X, B = whole(m, n, seed=seed), whole(n, p, seed=seed + 1), whole(p, q, seed=seed + 2)
    assert torch.equal(vec(A @ X @ B), kron(B.T, A) @ vec(X))


@pytest.mark.theorem("thm-vec-axb")
def test_sympy_proves_the_vec_of_a_product_with_symbolic_entries() -> None:
    for m, n, p, q in [(2, 2, 2, 2), (2, 3, 2, 1), (1, 3, 1, 3), (3, 1, 2, 2)]:
        A, X, B = symbols("a", m, n), symbols("x", n, p), symbols("b", p, q)
        difference = (A * X * B).vec() - sp.kronecker_product(B.T, A) * X.vec()
        assert difference.expand() == sp.zeros(m * q, 1)


@pytest.mark.theorem("cor-vec-two")
@given(sizes, sizes, sizes, seeds)
def test_the_vec_of_a_product_of_two_matrices_is_linear_in_either(m: int, n: int, p: int, seed: int) -> None:
    A, X = whole(m, n, seed=seed), whole(n, p, seed=seed + 1)
    assert torch.equal(vec(A @ X), kron(torch.eye(p, dtype=D), A) @ vec(X))
    assert torch.equal(vec(A @ X), kron(X.T, torch.eye(m, dtype=D)) @ vec(A))


@pytest.mark.theorem("cor-vec-outer")
@given(sizes, sizes, seeds)
def test_the_vec_of_an_outer_product_is_a_kronecker_product_of_vectors(m: int, n: int, seed: int) -> None:
    x, y = whole(m, seed=seed), whole(n, seed=seed + 1)
    assert torch.equal(vec(torch.outer(x, y)), kron(y[:, None], x[:, None])[:, 0])
    a, b = sp.Matrix(sp.symbols(f"a0:{m}")), sp.Matrix(sp.symbols(f"b0:{n}"))
    assert (a * b.T).vec() == sp.kronecker_product(b, a)


@pytest.mark.theorem("prop-row-major")
@given(sizes, sizes, sizes, sizes, seeds)
def test_in_torchs_order_the_factors_change_places(m: int, n: int, p: int, q: int, seed: int) -> None:
    A, X, B = whole(m, n, seed=seed), whole(n, p, seed=seed + 1), whole(p, q, seed=seed + 2)
    assert torch.equal((A @ X @ B).flatten(), kron(A, B.T) @ X.flatten())


@pytest.mark.theorem("prop-row-major")
def test_the_column_formula_on_a_row_major_vector_is_wrong_and_of_the_right_shape() -> None:
    A, X, B = whole(3, 3), whole(3, 3, seed=1), whole(3, 3, seed=2)
    wrong = kron(B.T, A) @ X.flatten()
    assert wrong.shape == (A @ X @ B).flatten().shape
    assert not torch.equal(wrong, (A @ X @ B).flatten())
    assert not torch.equal(wrong, vec(A @ X @ B))


# --- the product that is never formed -------------------------------------------------------------


@pytest.mark.theorem("prop-kron-matvec")
@given(sizes, sizes, sizes, sizes, seeds)
def test_kron_matvec_is_the_kronecker_product_times_the_vector(m: int, n: int, r: int, s: int, seed: int) -> None:
    A, B, v = whole(m, n, seed=seed), whole(r, s, seed=seed + 1), whole(n * s, seed=seed + 2)
    assert torch.equal(kron_matvec(A, B, v), kron(A, B) @ v)


@pytest.mark.theorem("prop-kron-matvec")
@given(*[st.integers(1, 9)] * 4)
@example(9, 1, 1, 9)
@example(1, 9, 9, 1)
def test_kron_matvec_multiplies_as_often_as_the_proposition_says(m: int, n: int, r: int, s: int) -> None:
    A, B, v = whole(m, n), whole(r, s), whole(n * s)
    with FlopCounterMode(display=False) as counter:
        kron_matvec(A, B, v)
    # torch counts a multiplication and an addition for each term
    assert counter.get_total_flops() == 2 * min(n * r * (s + m), m * s * (n + r))
    assert min(n * r * (s + m), m * s * (n + r)) <= 2 * m * n * r * s


@pytest.mark.parametrize(
    "batches", [((), (), ()), ((), (), (2, 3)), ((4,), (), ()), ((4,), (4,), (4,)), ((), (4,), (4,)), ((0,), (), (0,))]
)
def test_kron_matvec_takes_batches(batches: tuple[tuple[int, ...], ...]) -> None:
    A, B, v = whole(*batches[0], 2, 3), whole(*batches[1], 4, 5, seed=1), whole(*batches[2], 15, seed=2)
    got = kron_matvec(A, B, v)
    wanted = (kron(A, B) @ v[..., None])[..., 0]
    assert got.shape == (*max(batches, key=len), 8)
    assert torch.equal(got, wanted)


def test_kron_matvec_needs_no_room_for_the_product() -> None:
    n = 400  # the product would have 2.6e10 entries, 200 GB
    A, B = randn(n, n), randn(n, n, seed=1)
    x, y = randn(n, seed=2), randn(n, seed=3)
    v = kron(x[:, None], y[:, None])[:, 0]
    torch.testing.assert_close(kron_matvec(A, B, v), kron((A @ x)[:, None], (B @ y)[:, None])[:, 0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_kron_matvec_in_every_precision(dtype: torch.dtype) -> None:
    A, B, v = (X.to(dtype) for X in (randn(3, 4), randn(2, 5, seed=1), randn(20, seed=2)))
    wanted = (kron(A.double(), B.double()) @ v.double()).to(dtype)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(kron_matvec(A, B, v), wanted, rtol=8 * eps, atol=32 * eps)


def test_complex_numbers_are_transposed_and_not_conjugated() -> None:
    A, B, v = (torch.complex(whole(*s), whole(*s, seed=9)) for s in ((2, 3), (3, 2), (6,)))
    assert torch.equal(kron_matvec(A, B, v), kron(A, B) @ v)
    X = unvec(v, (2, 3))
    assert torch.equal(vec(B @ X @ A.T), kron(A, B) @ vec(X))


# --- the commutation matrix -----------------------------------------------------------------------


@pytest.mark.theorem("thm-commutation")
@given(st.integers(0, 5), st.integers(0, 5), seeds)
@example(1, 4, 0)
@example(3, 3, 0)
def test_the_commutation_matrix_transposes(m: int, n: int, seed: int) -> None:
    A, K = whole(m, n, seed=seed), commutation_matrix(m, n, dtype=D)
    assert torch.equal(K @ vec(A), vec(A.T))
    assert torch.equal(K.T, commutation_matrix(n, m, dtype=D))
    assert torch.equal(K @ K.T, torch.eye(m * n, dtype=D))
    assert torch.equal(K.sum(0), torch.ones(m * n, dtype=D))
    assert torch.equal(K.sum(1), torch.ones(m * n, dtype=D))
    assert torch.equal(K @ A.T.flatten(), A.flatten())  # flatten of a matrix is the vec of its transpose


@pytest.mark.theorem("thm-commutation")
@given(sizes, sizes, sizes, sizes, seeds)
def test_the_commutation_matrix_exchanges_the_factors(m: int, n: int, r: int, s: int, seed: int) -> None:
    A, B = whole(m, n, seed=seed), whole(r, s, seed=seed + 1)
    left, right = commutation_matrix(r, m, dtype=D), commutation_matrix(s, n, dtype=D)
    assert torch.equal(left @ kron(A, B), kron(B, A) @ right)


@given(st.integers(1, 5), st.integers(1, 5))
def test_the_permutation_to_row_major_is_the_commutation_matrix(m: int, n: int) -> None:
    K = commutation_matrix(m, n)
    assert torch.equal(torch.eye(m * n)[vec_permutation((n, m))], K)
    assert torch.equal(torch.eye(m * n)[vec_permutation((m, n))], K.T)
    assert int(K.trace()) == math.gcd(m - 1, n - 1) + 1


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.theorem("prop-matrix-jacobians")
@given(sizes, sizes, sizes, sizes, seeds)
@quick
def test_the_jacobians_of_a_product_of_three_matrices_are_those_of_autograd(
    m: int, n: int, p: int, q: int, seed: int
) -> None:
    A, X, B = whole(m, n, seed=seed), whole(n, p, seed=seed + 1), whole(p, q, seed=seed + 2)
    f = lambda a, x, b: vec(unvec(a, (m, n)) @ unvec(x, (n, p)) @ unvec(b, (p, q)))
    by_a, by_x, by_b = jacrev(f, argnums=(0, 1, 2))(vec(A), vec(X), vec(B))
    assert torch.equal(by_a, kron((X @ B).T, torch.eye(m, dtype=D)))
    assert torch.equal(by_x, kron(B.T, A))
    assert torch.equal(by_b, kron(torch.eye(q, dtype=D), A @ X))
    transposed = jacrev(lambda x: vec(unvec(x, (n, p)).T))(vec(X))
    assert torch.equal(transposed, commutation_matrix(n, p, dtype=D))


@pytest.mark.theorem("prop-least-squares")
@given(sizes, sizes, sizes, sizes, seeds)
@quick
def test_the_gradients_of_the_square_of_a_residual_are_those_of_autograd(
    m: int, n: int, p: int, q: int, seed: int
) -> None:
    A, X, B = whole(m, n, seed=seed), whole(n, p, seed=seed + 1), whole(p, q, seed=seed + 2)
    Y = whole(m, q, seed=seed + 3)
    gradients = torch.func.grad(lambda A, X, B: ((A @ X @ B - Y) ** 2).sum(), argnums=(0, 1, 2))(A, X, B)
    R = A @ X @ B - Y
    assert torch.equal(gradients[0], 2 * R @ (X @ B).T)
    assert torch.equal(gradients[1], 2 * A.T @ R @ B.T)
    assert torch.equal(gradients[2], 2 * (A @ X).T @ R)
    assert torch.equal(vec(gradients[1]), kron(B.T, A).T @ (2 * vec(R)))


def test_everything_is_differentiable_to_second_order() -> None:
    A, B, v, x = (X.requires_grad_() for X in (randn(2, 3), randn(2, 2), randn(6), randn(2, 3, 2)))
    functions = [
        (lambda x: vec(x).sin(), (x,)),
        (lambda v: unvec(v, (3, 2)).sin(), (v,)),
        (kron, (A, B)),
        (kron_matvec, (A, B, v)),
    ]
    for function, arguments in functions:
        assert torch.autograd.gradcheck(
            function, arguments, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
        )
        assert torch.autograd.gradgradcheck(function, arguments)


def test_transforms_of_torch_func_agree_with_batches() -> None:
    A, B, v = randn(4, 2, 3), randn(4, 2, 2, seed=1), randn(4, 6, seed=2)
    torch.testing.assert_close(vmap(kron)(A, B), kron(A, B))
    torch.testing.assert_close(vmap(kron_matvec)(A, B, v), kron_matvec(A, B, v))
    assert torch.equal(vmap(vec)(A), vec(A, 2))
    assert torch.equal(vmap(lambda v: unvec(v, (3, 2)))(v), unvec(v, (3, 2)))
    torch.testing.assert_close(vmap(jacrev(kron_matvec, argnums=2))(A, B, v), kron(A, B))
    torch.testing.assert_close(jacfwd(kron_matvec, argnums=2)(A[0], B[0], v[0]), kron(A[0], B[0]))
    _, tangent = jvp(lambda v: kron_matvec(A, B, v), (v,), (torch.ones_like(v),))
    torch.testing.assert_close(tangent, kron_matvec(A, B, torch.ones_like(v)))
    second = hessian(lambda v: (kron_matvec(A[0], B[0], v) ** 2).sum())(v[0])
    torch.testing.assert_close(second, 2 * kron(A[0], B[0]).T @ kron(A[0], B[0]))


def test_the_functions_compile_to_one_graph() -> None:
    def everything(A: Tensor, B: Tensor, v: Tensor) -> Tensor:
        K = commutation_matrix(2, 2, dtype=A.dtype)
        return K @ kron_matvec(A, B, v)[vec_permutation((2, 2))] + vec(unvec(kron(A, B).sum(1), (2, 2)))

    arguments = randn(2, 3), randn(2, 2, seed=1), randn(6, seed=2)
    compiled = torch.compile(everything, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*arguments), everything(*arguments))


def test_layouts_in_memory_do_not_matter() -> None:
    x = whole(4, 3, 2).permute(2, 0, 1)
    assert torch.equal(vec(x), vec(x.contiguous()))
    image = whole(1, 3, 4, 5).to(memory_format=torch.channels_last)
    assert torch.equal(vec(image), vec(image.contiguous()))
    A, B, v = whole(6, 4)[::2, ::2], whole(3, 2, seed=1).T, whole(2, 6, seed=2).T[:, 0]
    assert torch.equal(kron(A, B), torch.kron(A.contiguous(), B.contiguous()))
    assert torch.equal(kron_matvec(A, B, v), torch.kron(A.contiguous(), B.contiguous()) @ v)


# --- bad input ------------------------------------------------------------------------------------


def test_vec_names_what_is_wrong() -> None:
    with raises(TypeError, "x must be a torch tensor", "got list"):
        vec([1.0])  # type: ignore[arg-type]
    with raises(ValueError, "x must have at least one dimension", r"got shape \(\)"):
        vec(torch.tensor(1.0))
    with raises(TypeError, "order must be an int", "got float"):
        vec(torch.ones(2), 1.0)  # type: ignore[arg-type]
    with raises(ValueError, "order must be at least 1", "got 0"):
        vec(torch.ones(2), 0)
    with raises(ValueError, "order must be at most the number of dimensions of x, 2", "got 3"):
        vec(torch.ones(2, 2), 3)


def test_unvec_and_the_permutation_name_what_is_wrong() -> None:
    with raises(TypeError, "v must be a torch tensor", "got ndarray"):
        unvec(np.ones(4), (2, 2))  # type: ignore[arg-type]
    with raises(ValueError, r"v must have shape \(..., 6\) for the shape \(2, 3\)", r"got \(5,\)"):
        unvec(torch.ones(5), (2, 3))
    with raises(ValueError, "v must have at least one dimension", r"got shape \(\)"):
        unvec(torch.tensor(1.0), (1,))
    for function in (lambda shape: unvec(torch.ones(4), shape), vec_permutation):
        with raises(TypeError, "shape must be a sequence of ints", "got int"):
            function(4)
        with raises(TypeError, "shape must be a sequence of ints", "got str"):
            function("4")
        with raises(TypeError, "every size in shape must be an int", "got float"):
            function((2.0, 2))
        with raises(ValueError, "every size in shape must be at least 0", "got -1"):
            function((2, -1))
        with raises(ValueError, "shape must have at least one dimension", r"got \(\)"):
            function(())


def test_kron_and_kron_matvec_name_what_is_wrong() -> None:
    A, B, v = torch.ones(2, 3), torch.ones(4, 5), torch.ones(15)
    for function in (kron, lambda A, B: kron_matvec(A, B, v)):
        with raises(TypeError, "A must be a torch tensor", "got list"):
            function([[1.0]], B)
        with raises(TypeError, "B must be a torch tensor", "got float"):
            function(A, 2.0)
        with raises(TypeError, "B must have the dtype of A, torch.float32", "got torch.float64"):
            function(A, B.double())
        with raises(ValueError, r"A must have shape \(..., rows, columns\)", r"got \(3,\)"):
            function(A[0], B)
        with raises(ValueError, r"B must have shape \(..., rows, columns\)", r"got \(5,\)"):
            function(A, B[0])
        with raises(ValueError, r"B must have the batch dimensions of A, \(2,\), or none", r"got \(3,\)"):
            function(A.expand(2, 2, 3), B.expand(3, 4, 5))
    with raises(TypeError, "v must have the dtype of A, torch.float32", "got torch.int64"):
        kron_matvec(A, B, v.long())
    with raises(ValueError, r"v must have shape \(..., 15\)", r"got \(14,\)"):
        kron_matvec(A, B, v[1:])
    with raises(ValueError, r"v must have shape \(..., 15\)", r"got \(\)"):
        kron_matvec(A, B, v[0])
    with raises(ValueError, r"v must have the batch dimensions of A and B, \(2,\), or none", r"got \(3,\)"):
        kron_matvec(A.expand(2, 2, 3), B, v.expand(3, 15))


def test_the_commutation_matrix_names_what_is_wrong() -> None:
    with raises(TypeError, "rows must be an int", "got float"):
        commutation_matrix(2.0, 3)  # type: ignore[arg-type]
    with raises(ValueError, "columns must be at least 0", "got -3"):
        commutation_matrix(2, -3)


def test_the_public_names_are_those_of_the_chapter() -> None:
    assert kronecker.__all__ == ["commutation_matrix", "kron", "kron_matvec", "unvec", "vec", "vec_permutation"]


def test_the_batch_of_either_matrix_must_be_that_of_the_vector() -> None:
    with pytest.raises(ValueError, match=r"v must have the batch dimensions of A and B, \(7,\), or none, got \(6,\)"):
        kron_matvec(torch.ones(2, 3), torch.ones(7, 4, 5), torch.ones(6, 15))
