r"""Vec and the Kronecker product, the language in which the gradients of the layers are written.

The module of the chapter *Vec and Kronecker products*. ``vec`` stacks the columns of a matrix, the row index runs
fastest; torch stores matrices row by row, and ``flatten`` lets the column index run fastest. Everything here is made
of torch's own differentiable functions: derivatives of any order, ``vmap`` and ``torch.compile`` need nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pwl_lib._validation import check_count, check_same_kind

__all__ = ["commutation_matrix", "kron", "kron_matvec", "unvec", "vec", "vec_permutation"]


# --- vec ------------------------------------------------------------------------------------------


def vec(x: Tensor, order: int | None = None) -> Tensor:
    r"""The columns of a matrix below one another, as one vector.

    .. math::

        \operatorname{vec}(X)_{i + m j} = X_{ij} \quad (X \in \mathbb{R}^{m \times n},\; i, j \text{ from } 0), \qquad
        \operatorname{vec}(x) = \begin{pmatrix} \operatorname{vec}(x_0) \\ \operatorname{vec}(x_1) \\ \vdots \end{pmatrix}

    which are :eq:`eq-vec` for a matrix and :eq:`eq-vec-tensor` for a tensor of a higher order, whose first index
    numbers the tensors :math:`x_0, x_1, \dots` of one order less. A vector is its own vec.

    Args:
        x: ``(..., *shape)``, any dtype.
        order: how many dimensions at the end make up one tensor; those before them are a batch. None: all of them.

    Returns:
        ``(..., n)`` with n the product of ``shape``. As with ``flatten``, a view of ``x`` where the layout allows it.

    Raises:
        TypeError: ``x`` is not a tensor, or ``order`` is not an int.
        ValueError: ``x`` has no dimension, or ``order`` is below 1 or more than ``x`` has.

    Example:
        >>> vec(torch.tensor([[1, 3, 1, 4], [2, 8, 5, 1], [3, 2, 0, 3]]))
        tensor([1, 2, 3, 3, 8, 2, 1, 5, 0, 4, 1, 3])

    Source: the book, :eq:`eq-vec-tensor`.
    """
    _check_tensor("x", x)
    order = x.dim() if order is None else order
    check_count("order", order, 1)
    if order > x.dim():
        raise ValueError(f"order must be at most the number of dimensions of x, {x.dim()}, got {order}")
    return x if order == 1 else x.transpose(-2, -1).flatten(-order)


def unvec(v: Tensor, shape: Sequence[int]) -> Tensor:
    r"""The inverse of :func:`vec`: a vector, or a batch of them, back in the shape of the tensor.

    Args:
        v: ``(..., n)``, any dtype.
        shape: the shape of one tensor, at least one dimension, with the product n.

    Returns:
        ``(..., *shape)``, so that ``vec(unvec(v, shape), len(shape))`` is ``v``.

    Raises:
        TypeError: ``v`` is not a tensor, or ``shape`` is not a sequence of ints.
        ValueError: ``shape`` has no dimension or one below 0, or its product is not n.

    Example:
        >>> unvec(torch.tensor([1, 2, 3, 3, 8, 2]), (3, 2))
        tensor([[1, 3],
                [2, 8],
                [3, 2]])

    Source: the book, :eq:`eq-vec-tensor`.
    """
    _check_tensor("v", v)
    shape = _check_shape(shape)
    if v.dim() == 0 or v.shape[-1] != math.prod(shape):
        raise ValueError(f"v must have shape (..., {math.prod(shape)}) for the shape {shape}, got {tuple(v.shape)}")
    if len(shape) == 1:
        return v
    return v.unflatten(-1, (*shape[:-2], shape[-1], shape[-2])).transpose(-2, -1)


def vec_permutation(shape: Sequence[int], *, device: torch.device | str | None = None) -> Tensor:
    r"""The permutation :math:`\pi` between torch's row-major ``flatten`` and the column-major :func:`vec`.

    .. math:: \operatorname{vec}(x)_k = \operatorname{flatten}(x)_{\pi(k)}

    which is :eq:`eq-vec-permutation`.

    Args:
        shape: the shape of one tensor, at least one dimension; n is its product.
        device: where the result lies.

    Returns:
        ``(n,)`` int64, with ``vec(x) == x.flatten()[permutation]`` for any ``x`` of this shape; its ``argsort`` leads back.

    Raises:
        TypeError: ``shape`` is not a sequence of ints.
        ValueError: ``shape`` has no dimension or one below 0.

    Example:
        >>> vec_permutation((2, 3))
        tensor([0, 3, 1, 4, 2, 5])

    Source: the book, :eq:`eq-vec-permutation`.
    """
    shape = _check_shape(shape)
    return vec(torch.arange(math.prod(shape), device=device).reshape(shape)).contiguous()


def commutation_matrix(
    rows: int, columns: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    r"""The permutation matrix that turns the vec of a matrix into the vec of its transpose.

    .. math:: K_{mn} \operatorname{vec}(A) = \operatorname{vec}(A^\top) \qquad (A \in \mathbb{R}^{m \times n})

    which is :eq:`eq-commutation`.

    Args:
        rows: m, of the matrix before it is transposed.
        columns: n.
        dtype: of the result; None is torch's default.
        device: where the result lies.

    Returns:
        ``(m n, m n)``, dense: a single 1 in every row and every column.

    Raises:
        TypeError: ``rows`` or ``columns`` is not an int.
        ValueError: one of them is below 0.

    Example:
        >>> commutation_matrix(2, 3) @ vec(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
        tensor([1., 2., 3., 4., 5., 6.])

    Source: the book, :eq:`eq-commutation`; Magnus and Neudecker (2019).
    """
    check_count("rows", rows, 0)
    check_count("columns", columns, 0)
    places = unvec(torch.arange(rows * columns, device=device), (rows, columns))
    return torch.eye(rows * columns, dtype=dtype, device=device)[vec(places.T)]


# --- the Kronecker product ------------------------------------------------------------------------


def kron(A: Tensor, B: Tensor) -> Tensor:
    r"""The Kronecker product: each entry of ``A`` times the whole of ``B``, in blocks.

    .. math::

        A \otimes B = \begin{pmatrix} a_{00} B & a_{01} B & \cdots \\ a_{10} B & a_{11} B & \cdots \\
        \vdots & \vdots & \ddots \end{pmatrix}

    which is :eq:`eq-kron`.

    Args:
        A: ``(..., m, n)``, any dtype that can be multiplied.
        B: ``(..., r, s)``, the dtype of ``A``, with the batch dimensions of ``A``; one of the two may have none.

    Returns:
        ``(..., m r, n s)``.

    Raises:
        TypeError: one of them is not a tensor, or the dtypes differ.
        ValueError: one of them has fewer than two dimensions, or the batch dimensions or the devices differ.

    Example:
        >>> kron(torch.eye(2, dtype=torch.int64), torch.tensor([[1, 0], [-1, 1]]))
        tensor([[ 1,  0,  0,  0],
                [-1,  1,  0,  0],
                [ 0,  0,  1,  0],
                [ 0,  0, -1,  1]])

    Source: the book, :eq:`eq-kron`.
    """
    _check_matrices(A, B)
    blocks = A[..., :, None, :, None] * B[..., None, :, None, :]  # (..., m, r, n, s)
    return blocks.flatten(-4, -3).flatten(-2, -1)


def kron_matvec(A: Tensor, B: Tensor, v: Tensor) -> Tensor:
    r"""A Kronecker product times a vector; the product itself is never formed.

    .. math:: (A \otimes B)\, v = \operatorname{vec}(B V A^\top), \qquad \operatorname{vec}(V) = v

    which is :eq:`eq-kron-matvec`. Of the two orders in which the three matrices can be multiplied it takes the cheaper one.

    Args:
        A: ``(..., m, n)``.
        B: ``(..., r, s)``, the dtype of ``A``.
        v: ``(..., n s)``, the dtype of ``A``. The batch dimensions of the three are equal where there are any.

    Returns:
        ``(..., m r)``, equal to ``kron(A, B)`` times ``v`` to rounding.

    Raises:
        TypeError: one of them is not a tensor, or the dtypes differ.
        ValueError: ``A`` or ``B`` has fewer than two dimensions, ``v`` has another length, or the batch dimensions or
            the devices differ.

    Example:
        >>> A, B = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
        >>> kron_matvec(A, B, torch.tensor([1.0, 2.0, 3.0, 4.0]))
        tensor([7., 3.])

    Source: the book, :eq:`eq-kron-matvec`.
    """
    _check_matrices(A, B)
    check_same_kind("v", v, "A", A)
    (m, n), (r, s) = A.shape[-2:], B.shape[-2:]
    if v.dim() == 0 or v.shape[-1] != n * s:
        raise ValueError(
            f"v must have shape (..., {n * s}), one entry for each column of A times B, got {tuple(v.shape)}"
        )
    _check_batch("v", v.shape[:-1], "A and B", max(A.shape[:-2], B.shape[:-2], key=len))
    V = unvec(v, (s, n))
    left_first = r * n * (s + m) <= s * m * (n + r)
    return vec((B @ V) @ A.mT if left_first else B @ (V @ A.mT), order=2)


# --- checks ---------------------------------------------------------------------------------------


def _check_tensor(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(value).__name__}")
    if value.dim() == 0:
        raise ValueError(f"{name} must have at least one dimension, got shape ()")


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(f"shape must be a sequence of ints, got {type(shape).__name__}")
    for size in shape:
        check_count("every size in shape", size, 0)
    if len(shape) == 0:
        raise ValueError("shape must have at least one dimension, got ()")
    return tuple(shape)


def _check_batch(name: str, batch: Sequence[int], other: str, wanted: Sequence[int]) -> None:
    if batch and wanted and tuple(batch) != tuple(wanted):
        raise ValueError(
            f"{name} must have the batch dimensions of {other}, {tuple(wanted)}, or none, got {tuple(batch)}"
        )


def _check_matrices(A: Tensor, B: Tensor) -> None:
    _check_tensor("A", A)
    check_same_kind("B", B, "A", A)
    for name, matrix in (("A", A), ("B", B)):
        if matrix.dim() < 2:
            raise ValueError(f"{name} must have shape (..., rows, columns), got {tuple(matrix.shape)}")
    _check_batch("B", B.shape[:-2], "A", A.shape[:-2])
