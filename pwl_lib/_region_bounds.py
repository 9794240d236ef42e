"""How many regions a network can have at most, and how many some network of its shape has: exact integers from its widths alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, prod

from pwl_lib._validation import check_count

__all__ = ["montufar_lower_bound", "montufar_upper_bound", "serra_upper_bound", "zaslavsky_bound"]


def zaslavsky_bound(hyperplanes: int, dimension: int) -> int:
    r"""The largest number of regions into which hyperplanes cut a space; those in general position reach it.

    .. math:: \sum_{j=0}^{n} \binom{k}{j}

    which is :eq:`eq-zaslavsky`, for :math:`k` hyperplanes in :math:`n` dimensions. It bounds the activation patterns of one
    layer of :math:`k` ReLU units. A box, or any convex set with an interior, is cut into no more regions than the whole space.

    Args:
        hyperplanes: how many, 0 or more.
        dimension: of the space, 0 or more.

    Returns:
        An int of any size.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is negative.

    Example:
        >>> [zaslavsky_bound(lines, 2) for lines in range(5)]
        [1, 2, 4, 7, 11]

    Source: the book, :eq:`eq-zaslavsky`; Zaslavsky (1975).
    """
    check_count("hyperplanes", hyperplanes, 0)
    check_count("dimension", dimension, 0)
    return sum(comb(hyperplanes, j) for j in range(min(hyperplanes, dimension) + 1))


def montufar_lower_bound(widths: Sequence[int], dimension: int) -> int:
    r"""A number of linear regions that some ReLU network of these widths has: layers that fold the space onto itself.

    .. math:: \prod_{l=1}^{L-1} \left\lfloor \frac{n_l}{n_0} \right\rfloor^{n_0} \; \sum_{j=0}^{n_0} \binom{n_L}{j}

    which is :eq:`eq-montufar`. Each layer but the last folds :math:`\lfloor n_l / n_0 \rfloor` times in each of the
    :math:`n_0` coordinates, and what the last layer draws is copied into every fold. It says what is possible:
    one network of this shape, trained or at random, may have far fewer regions.

    Args:
        widths: of the hidden layers, the first one first, each at least ``dimension``.
        dimension: :math:`n_0`, of the input, 1 or more.

    Returns:
        An int of any size.

    Raises:
        TypeError: ``dimension`` or a width is not an int, ``widths`` is not a sequence.
        ValueError: there is no width, or one is below ``dimension``.

    Example:
        >>> montufar_lower_bound([16, 16], 2), montufar_lower_bound([32], 2)
        (8768, 529)

    Source: the book, :eq:`eq-montufar`; Montúfar, Pascanu, Cho and Bengio (2014).
    """
    check_count("dimension", dimension, 1)
    _check_widths(widths, dimension)
    folds = prod((width // dimension) ** dimension for width in widths[:-1])
    return folds * zaslavsky_bound(widths[-1], dimension)


def montufar_upper_bound(widths: Sequence[int], dimension: int) -> int:
    r"""No ReLU network of these widths has more activation regions; simple, and above :func:`serra_upper_bound`.

    .. math:: \prod_{l=1}^{L} \sum_{j=0}^{d_l} \binom{n_l}{j}, \qquad d_l = \min(n_0, n_1, \dots, n_{l-1})

    Inside a region of the layers before it, layer :math:`l` sees an affine image of the input, of dimension :math:`d_l` at most.

    Args:
        widths: of the hidden layers, the first one first, each 1 or more.
        dimension: :math:`n_0`, of the input, 1 or more; of a slice, the dimension of the slice.

    Returns:
        An int of any size.

    Raises:
        TypeError: ``dimension`` or a width is not an int, ``widths`` is not a sequence.
        ValueError: there is no width, or one is below 1; ``dimension`` is below 1.

    Example:
        >>> montufar_upper_bound([16, 16], 2)
        18769

    Source: Montúfar (2017).
    """
    check_count("dimension", dimension, 1)
    _check_widths(widths, 1)
    before = [dimension, *widths]
    return prod(zaslavsky_bound(width, min(before[: layer + 1])) for layer, width in enumerate(widths))


def serra_upper_bound(widths: Sequence[int], dimension: int) -> int:
    r"""No ReLU network of these widths has more activation regions: an upper bound that counts how many units are on.

    .. math:: \sum_{(j_1, \dots, j_L) \in J} \; \prod_{l=1}^{L} \binom{n_l}{j_l}, \qquad
       J = \{ 0 \le j_l \le \min(n_0, n_1 - j_1, \dots, n_{l-1} - j_{l-1}, n_l) \}

    which is :eq:`eq-serra`. A unit that is off sends the constant 0: where few are on, later layers see a space of few
    dimensions. For one input it is reached.

    Args:
        widths: of the hidden layers, the first one first, each 1 or more.
        dimension: :math:`n_0`, of the input, 1 or more; of a slice, the dimension of the slice.

    Returns:
        An int of any size.

    Raises:
        TypeError: ``dimension`` or a width is not an int, ``widths`` is not a sequence.
        ValueError: there is no width, or one is below 1; ``dimension`` is below 1.

    Example:
        >>> serra_upper_bound([16, 16], 2), serra_upper_bound([3, 3], 2)
        (18769, 40)

    Source: the book, :eq:`eq-serra`; Serra, Tjandraatmadja and Ramalingam (2018).
    """
    check_count("dimension", dimension, 1)
    _check_widths(widths, 1)

    # How many regions the layers from this one on have, where the layers before leave 0, 1, ... dimensions.
    regions = [1] * (dimension + 1)
    for width in reversed(widths):
        chosen = [comb(width, j) for j in range(min(dimension, width) + 1)]
        regions = [
            sum(ways * regions[min(room, width - j)] for j, ways in enumerate(chosen[: room + 1]))
            for room in range(dimension + 1)
        ]
    return regions[dimension]


def _check_widths(widths: Sequence[int], least: int) -> None:
    if not isinstance(widths, Sequence) or isinstance(widths, str):
        raise TypeError(f"widths must be a sequence of ints, got {type(widths).__name__}")
    if not widths:
        raise ValueError("widths must name at least one hidden layer, got none")
    for layer, width in enumerate(widths):
        check_count(f"widths[{layer}]", width, least)
