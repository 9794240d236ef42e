"""The checkers of the exercises on vec and Kronecker products: right answers pass, known mistakes are named, a blank says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from answers import assert_all_tried, assert_hidden, assert_named, assert_safe_from_writing
from torch import Tensor
from torch.func import grad, jacrev

from pwl_lib import check, kronecker
from pwl_lib.kronecker import commutation_matrix, kron, unvec, vec

exercises = check.kronecker
D = torch.float64


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=D)


def swap(m: int, n: int) -> Tensor:
    return commutation_matrix(m, n, dtype=D)


def blank(*arguments: Any) -> Any:
    raise NotImplementedError("your answer here")


def count_fixed(m: int, n: int) -> int:
    """By counting where that is possible, and by Euclid where it is not."""
    if m * n < 1000:
        return sum(i + m * j == n * i + j for i in range(m) for j in range(n))
    a, b = m - 1, n - 1
    while b:
        a, b = b, a % b
    return a + 1


def gram(X: Tensor) -> Tensor:
    return kron(eye(X.shape[1]), X.T)


# --- right answers --------------------------------------------------------------------------------

RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("vec_by_hand", lambda x: torch.cat([column for channel in x for column in channel.T])),
    ("vec_by_hand", lambda x: x.mT.flatten()),
    ("vec_by_hand", kronecker.vec),
    ("trace_gradient", lambda A, X: A @ X + A.T @ X),
    ("trace_gradient", lambda A, X: grad(lambda X: (X.T @ A @ X).trace())(X)),
    ("sylvester_matrix", lambda A, B: kron(eye(len(B)), A) + kron(B.T, eye(len(A)))),
    (
        "sylvester_matrix",
        lambda A, B: torch.stack(
            [vec(A @ (X := unvec(e, (len(A), len(B)))) + X @ B) for e in eye(len(A) * len(B))], dim=1
        ),
    ),
    ("row_major_jacobian", lambda X, m: torch.block_diag(*[X.T] * m)),
    (
        "row_major_jacobian",
        lambda X, m: jacrev(lambda w: (w.reshape(m, -1) @ X).flatten())(torch.zeros(m * len(X), dtype=D)),
    ),
    ("kron_solve", lambda A, B, v: torch.linalg.solve(kron(A, B), v)),
    ("kron_solve", lambda A, B, v: vec(B.inverse() @ unvec(v, (len(B), len(A))) @ A.inverse().T)),
    ("gram_jacobian", lambda X: (eye(X.shape[1] ** 2) + swap(X.shape[1], X.shape[1])) @ gram(X)),
    ("gram_jacobian", lambda X: gram(X) + kron(X.T, eye(X.shape[1])) @ swap(*X.shape)),
    ("gram_jacobian", lambda X: jacrev(lambda v: vec(unvec(v, X.shape).T @ unvec(v, X.shape)))(vec(X))),
    ("fixed_entries", lambda m, n: math.gcd(m - 1, n - 1) + 1),
    ("fixed_entries", count_fixed),
    ("fixed_entries", lambda m, n: torch.tensor(math.gcd(m - 1, n - 1) + 1)),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{name}-{n}" for n, (name, _) in enumerate(RIGHT)])
def test_every_right_answer_passes(name: str, answer: Callable[..., Any]) -> None:
    for _ in range(3):  # the inputs are fresh each time
        assert getattr(exercises, name)(answer).startswith("right: ")


# --- mistakes -------------------------------------------------------------------------------------


def solve_by(inverse: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """From B's inverse, the matrix of v, and A's inverse."""
    return lambda A, B, v: vec(inverse(B.inverse(), unvec(v, (len(B), len(A))), A.inverse()))


def row_major_solve(A: Tensor, B: Tensor, v: Tensor) -> Tensor:
    return vec(B.inverse() @ v.reshape(len(B), len(A)) @ A.inverse().T)


MISTAKES: list[tuple[str, Callable[..., Any], str]] = [
    ("vec_by_hand", lambda x: x.flatten(), "row by row"),
    ("vec_by_hand", lambda x: x.permute(2, 1, 0).flatten(), "Fortran's order"),
    ("vec_by_hand", lambda x: x.permute(1, 2, 0).flatten(), "the channel runs faster"),
    ("vec_by_hand", lambda x: x.mT.flatten(1), "the shape is"),
    ("trace_gradient", lambda A, X: 2 * A @ X, "right for a symmetric A alone"),
    ("trace_gradient", lambda A, X: A @ X, "only one of the two"),
    ("trace_gradient", lambda A, X: A.T @ X, "only the other of the two"),
    ("trace_gradient", lambda A, X: (A + A.T) @ X / 2, "a factor is missing"),
    ("trace_gradient", lambda A, X: -(A + A.T) @ X, "the sign is wrong"),
    ("trace_gradient", lambda A, X: ((A + A.T) @ X).T, "transpose"),
    ("sylvester_matrix", lambda A, B: kron(eye(len(B)), A) + kron(B, eye(len(A))), "B must be transposed"),
    ("sylvester_matrix", lambda A, B: kron(A, eye(len(B))) + kron(eye(len(A)), B.T), "torch's row-major order"),
    ("sylvester_matrix", lambda A, B: kron(A, eye(len(B))) + kron(eye(len(A)), B), "in the wrong order"),
    ("sylvester_matrix", lambda A, B: kron(B.T, A), "a product where a sum was wanted"),
    ("sylvester_matrix", lambda A, B: kron(eye(len(B)), A), "the term with B is missing"),
    ("sylvester_matrix", lambda A, B: kron(B.T, eye(len(A))), "the term with A is missing"),
    ("sylvester_matrix", lambda A, B: (kron(eye(len(B)), A) + kron(B.T, eye(len(A)))).T, "transpose"),
    ("row_major_jacobian", lambda X, m: kron(X.T, eye(m)), "column-major vec"),
    ("row_major_jacobian", lambda X, m: kron(eye(m), X), "X must be transposed|transpose"),
    ("row_major_jacobian", lambda X, m: kron(X, eye(m)), "with X in place of W"),
    ("kron_solve", lambda A, B, v: kron(A, B) @ v, "the solution was wanted"),
    ("kron_solve", solve_by(lambda left, V, right: left @ V @ right), "A must be transposed"),
    ("kron_solve", lambda A, B, v: kron(B, A).inverse() @ v, "the factors are exchanged"),
    ("kron_solve", row_major_solve, "read row by row|not yet"),
    ("kron_solve", solve_by(lambda left, V, right: -left @ V @ right.T), "the sign is wrong"),
    ("gram_jacobian", gram, "one of the two terms is missing$"),
    ("gram_jacobian", lambda X: swap(X.shape[1], X.shape[1]) @ gram(X), "the other one"),
    ("gram_jacobian", lambda X: 2 * gram(X), "the two terms are not equal"),
    ("gram_jacobian", lambda X: gram(X) + gram(X) @ swap(*X.shape), "must stand on the left"),
    ("gram_jacobian", lambda X: jacrev(lambda X: X.T @ X)(X).reshape(X.shape[1] ** 2, -1), "row-major order"),
    ("fixed_entries", lambda m, n: math.gcd(m - 1, n - 1), "both ends count"),
    ("fixed_entries", lambda m, n: 2, "the two ends are not always all"),
    ("fixed_entries", lambda m, n: math.gcd(m, n), "the divisor of the sizes themselves.*indices$"),
    ("fixed_entries", lambda m, n: math.gcd(m, n) + 1, "and begin at 0"),
    ("fixed_entries", lambda m, n: min(m, n), "the diagonal stays"),
    ("fixed_entries", lambda m, n: math.gcd(m - 1, n - 1) + 1 + (m > 1000), "at a great size"),
]


@pytest.mark.parametrize(
    ("name", "answer", "said"), MISTAKES, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(MISTAKES)]
)
def test_every_mistake_fails_and_is_named(name: str, answer: Callable[..., Any], said: str) -> None:
    assert_named(getattr(exercises, name), answer, said)


def test_every_mistake_that_a_checker_knows_is_tried_here() -> None:
    assert_all_tried(exercises, MISTAKES)


# --- blanks, reports and hints --------------------------------------------------------------------


@pytest.mark.parametrize("name", exercises.__all__)
def test_neither_hints_nor_reports_hold_the_code_of_a_solution(name: str) -> None:
    codes = ("torch.", "kron(", "eye(", ".T", "solve(", "gcd", "flatten(", "@", "commutation_matrix")
    assert_hidden(getattr(exercises, name), torch.tensor(0.0), codes)


@pytest.mark.parametrize("name", exercises.__all__)
def test_an_answer_that_writes_into_its_arguments_is_compared_with_what_it_was_given(name: str) -> None:
    right = dict(RIGHT)[name]
    assert_safe_from_writing(getattr(exercises, name), right)
