"""Checkers of the exercises of the chapter *Vec and Kronecker products*."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pwl_lib.check._exercise import Case, exercise, harmful, random_tensor
from pwl_lib.kronecker import commutation_matrix, kron, kron_matvec, unvec, vec

__all__ = [
    "fixed_entries",
    "gram_jacobian",
    "kron_solve",
    "row_major_jacobian",
    "sylvester_matrix",
    "trace_gradient",
    "vec_by_hand",
]

_random = random.SystemRandom()


def _case(arguments: tuple[object, ...], wanted: Tensor, mistakes: dict[str, Tensor], where: str) -> Case:
    return Case(arguments, wanted, mistakes=harmful(mistakes, wanted), where=where)


def _eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


@exercise(
    hint="Which of the three indices runs fastest in vec, which one next, and which one last?",
    more="The channels stand one after the other, as they do in memory. Only inside a channel is the order another one.",
)
def vec_by_hand() -> Iterator[Case]:
    """The vec of an image: channel after channel, each column by column."""
    shapes = {(2, 3, 4): "at a random image", (3, 4, 2): "at a random image", (1, 3, 5): "at a single channel"}
    for shape, where in (shapes | {(2, 1, 4): "at a single row", (3, 2, 2): "at square channels"}).items():
        x = random_tensor(*shape)
        mistakes = {
            "that is row by row, as torch stores it; vec goes down the columns": x.flatten(),
            "the channels are mixed: that is Fortran's order, in which all indices are turned around": x.permute(
                2, 1, 0
            ).flatten(),
            "the channel runs faster than the row; a channel ends before the next begins": x.permute(1, 2, 0).flatten(),
        }
        yield _case((x,), vec(x), mistakes, where)


@exercise(
    hint="Write z as the inner product of X with AX. The variable occurs twice.",
    more="Change X by a small H: two terms are linear in H. One of them brings A, and what does the other bring?",
)
def trace_gradient() -> Iterator[Case]:
    """The gradient of the trace of X^T A X, in the shape of X."""
    for n, p in ((3, 2), (2, 4), (3, 3)):
        yield _trace_case(random_tensor(n, n), random_tensor(n, p), "at a random matrix A")
    A = random_tensor(3, 3)
    yield _trace_case(A + A.T, random_tensor(3, 2), "at a symmetric matrix A")
    yield _trace_case(A - A.T, random_tensor(3, 2), "at A = -A^T, where z is 0 for every X")


def _trace_case(A: Tensor, X: Tensor, where: str) -> Case:
    mistakes = {
        "that is right for a symmetric A alone": 2 * A @ X,
        "only one of the two occurrences of X was differentiated": A @ X,
        "only the other of the two occurrences of X was differentiated": A.T @ X,
        "a factor is missing: each of the two occurrences of X counts whole": (A + A.T) @ X / 2,
    }
    return _case((A, X), (A + A.T) @ X, mistakes, where)


@exercise(
    hint="The map is a sum of two products. Take the vec of each on its own, with a suitable identity as the third factor.",
    more="In vec(AXB) the right factor comes first, and transposed. Which sizes must the two identities have?",
)
def sylvester_matrix() -> Iterator[Case]:
    """The matrix that takes vec(X) to vec(AX + XB)."""
    for m, n in ((2, 3), (3, 2), (2, 2), (1, 3)):
        A, B = random_tensor(m, m), random_tensor(n, n)
        wanted = kron(_eye(n), A) + kron(B.T, _eye(m))
        mistakes = {
            "B must be transposed": kron(_eye(n), A) + kron(B, _eye(m)),
            "that is the matrix for torch's row-major order": kron(A, _eye(n)) + kron(_eye(m), B.T),
            "the factors stand in the wrong order": kron(A, _eye(n)) + kron(_eye(m), B),
            "that is the matrix of X -> AXB: a product where a sum was wanted": kron(B.T, A),
            "the term with B is missing": kron(_eye(n), A),
            "the term with A is missing": kron(B.T, _eye(m)),
        }
        where = "at square matrices of one size" if m == n else "at random matrices"
        yield _case((A, B), wanted, mistakes, where)


@exercise(
    hint="Flatten goes along the rows, and each row of Y is a row of W times X. Which entries of W does row i of Y know?",
    more="Write WX as a product of three factors, one of them an identity, and use the rule for row-major order.",
)
def row_major_jacobian() -> Iterator[Case]:
    """The Jacobian of Y = WX in W, both flattened row by row."""
    for m, n, p in ((2, 3, 4), (3, 2, 2), (2, 2, 2), (1, 3, 2), (3, 2, 1)):
        X = random_tensor(n, p)
        mistakes = {
            "that is the Jacobian for column-major vec": kron(X.T, _eye(m)),
            "X must be transposed": kron(_eye(m), X),
            "that is the Jacobian in X for another order, with X in place of W": kron(X, _eye(m)),
        }
        where = {1: "at one sample"}.get(p, "at one output" if m == 1 else "at random inputs")
        yield _case((X, m), kron(_eye(m), X.T), mistakes, where)


@exercise(
    hint="Turn the vectors into matrices. Which equation between matrices is it, and what are their shapes?",
    more="The unknown stands between two known matrices. Free it from one side, then from the other.",
)
def kron_solve() -> Iterator[Case]:
    """The solution of a system whose matrix is a Kronecker product."""
    for m, r in ((2, 3), (3, 2), (3, 3), (1, 4), (20, 30)):
        # Far from singular, and without symmetry.
        A = random_tensor(m, m) / m + 2 * _eye(m)
        B = random_tensor(r, r) / r + 2 * _eye(r)
        v = random_tensor(m * r)
        V = unvec(v, (r, m))
        left, right = torch.linalg.inv(B), torch.linalg.inv(A)
        mistakes = {
            "that is the product with the matrix; the solution was wanted": kron_matvec(A, B, v),
            "A must be transposed": vec(left @ V @ right),
            "the factors are exchanged: that solves with B times A": kron_matvec(left, right, v),
        }
        if m == r:
            mistakes["the vector was read row by row, where vec goes down the columns"] = vec(left @ V.T @ right.T)
        where = {1: "where A is a number", 20: "at matrices of common size"}.get(m, "at random matrices")
        yield _case((A, B, v), vec(left @ V @ right.T), mistakes, where)


@exercise(
    hint="Change X by a small H. Which two terms of the change of the product are linear in H?",
    more="The two terms are transposes of each other. What turns the vec of a matrix into the vec of its transpose?",
)
def gram_jacobian() -> Iterator[Case]:
    """The Jacobian of vec(X^T X) in vec(X)."""
    for m, n in ((3, 2), (2, 3), (2, 2), (1, 3), (3, 1)):
        X = random_tensor(m, n)
        half = kron(_eye(n), X.T)
        K = commutation_matrix(n, n, dtype=torch.float64)
        mistakes = {
            "one of the two terms is missing": half,
            "one of the two terms is missing: the other one": K @ half,
            "the two terms are not equal: one is the transpose of the other": 2 * half,
            "the commutation matrix must stand on the left, where the product is": half
            + half @ commutation_matrix(m, n, dtype=torch.float64),
            "the inputs are in row-major order": (half + K @ half) @ commutation_matrix(m, n, dtype=torch.float64).T,
        }
        where = {1: "at a single column"}.get(n, "at a single row" if m == 1 else "at a random matrix")
        yield _case((X,), half + K @ half, mistakes, where)


@exercise(
    hint="At which place does entry (i, j) stand in each of the two orders? Set them equal, and simplify.",
    more="One multiple of m - 1 equals one multiple of n - 1. Which multiples are common to both, and how many fit into the matrix?",
)
def fixed_entries() -> Iterator[Case]:
    """How many entries of a matrix have the same place in column-major and in row-major order."""
    # First sizes at which no two of the answers are the same number, then any.
    told_apart = [(m, n) for m in range(2, 60) for n in range(2, 60) if len(set(_fixed_answers(m, n).values())) == 6]
    sizes = [(pair, "at a random size") for pair in _random.sample(told_apart, 3)]
    sizes += [((_random.randint(2, 12), _random.randint(2, 12)), "at a random size") for _ in range(4)]
    sizes += [(pair, "at a square matrix") for pair in [(2, 2), (4, 4)]]
    sizes += [(pair, "at a single row or column") for pair in [(1, 1), (1, 6), (5, 1)]]
    step = _random.randint(10**5, 10**6)
    sizes.append(
        ((step * _random.randint(10**6, 10**7) + 1, step * _random.randint(10**6, 10**7) + 1), "at a great size")
    )
    for (m, n), where in sizes:
        wanted = math.gcd(m - 1, n - 1) + 1
        answers = _fixed_answers(m, n)
        mistakes = {sentence: value for sentence, value in answers.items() if value != wanted}
        yield Case((m, n), wanted, accept=_equals(wanted), mistakes=mistakes, where=where)


def _fixed_answers(m: int, n: int) -> dict[str, int]:
    return {
        "right": math.gcd(m - 1, n - 1) + 1,
        "both ends count: there is one more": math.gcd(m - 1, n - 1),
        "the two ends are not always all: other entries may stay too": 2,
        "the divisor of the sizes themselves does not matter; look at the last indices": math.gcd(m, n),
        "the divisor of the sizes themselves does not matter; look at the last indices, and begin at 0": math.gcd(m, n)
        + 1,
        "the diagonal stays in a square matrix alone": min(m, n),
    }


def _equals(wanted: int) -> Callable[[Any], bool]:
    """Whole numbers of this size have no room for a tolerance."""
    return lambda value: int(value) == value == wanted
