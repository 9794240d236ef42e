"""A box of the plane, cut into convex polygons along the zeros of functions that are affine on every polygon."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TOLERANCE = 1e-12
"""A value of at most this part of its function's largest value counts as 0."""


class Subdivision:
    """A box cut into convex polygons that share their vertices."""

    def __init__(self, box: tuple[tuple[float, float], tuple[float, float]]) -> None:
        (s0, s1), (t0, t1) = box
        self.vertices: Floats = np.array([[s0, t0], [s1, t0], [s1, t1], [s0, t1]], dtype=np.float64)
        self.polygons: tuple[Integers, Integers] = np.array([0, 4]), np.arange(4)
        self.parent: Integers = np.zeros(1, dtype=np.int64)
        self._ends = np.zeros((4, 2), dtype=np.int64)
        self._weight = np.zeros(4)
        self._waves = [4]

    def __len__(self) -> int:
        return len(self.polygons[0]) - 1

    def cut(self, values: Floats) -> Floats:
        """Cuts every polygon along the zeros of the functions whose values at the vertices are the columns of ``values``."""
        values = np.array(values, dtype=np.float64)
        small = TOLERANCE * np.abs(values).max(axis=0, initial=0)
        values[np.abs(values) <= small] = 0
        start, index = self.polygons
        lists = [index[i:j].tolist() for i, j in zip(start[:-1], start[1:], strict=True)]
        parents = list(range(len(lists)))
        for k in range(values.shape[1]):
            sign = np.sign(values[:, k]).tolist()
            made: dict[tuple[int, int], int] = {}
            ends: list[tuple[int, int]] = []
            cut_lists, cut_parents = [], []
            for polygon, parent in zip(lists, parents, strict=True):
                signs = {sign[v] for v in polygon}
                if not {-1, 1} <= signs:
                    cut_lists.append(polygon)
                    cut_parents.append(parent)
                    # An edge of it may be cut: only the edges of which the function has two signs, of which it has none.
                    continue
                above, below = [], []
                for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True):
                    if sign[a] >= 0:
                        above.append(a)
                    if sign[a] <= 0:
                        below.append(a)
                    if sign[a] * sign[b] < 0:
                        edge = (min(a, b), max(a, b))
                        if edge not in made:
                            made[edge] = len(sign) + len(ends)
                            ends.append(edge)
                        above.append(made[edge])
                        below.append(made[edge])
                cut_lists += [above, below]
                cut_parents += [parent, parent]
            lists, parents = cut_lists, cut_parents
            if ends:
                pairs = np.array(ends, dtype=np.int64)
                near, far = values[pairs[:, 0], k], values[pairs[:, 1], k]
                self._add(pairs, near / (near - far))
                values = self.extend(values)
                new = values[-len(pairs) :]
                new[:, k] = 0
                new[np.abs(new) <= small] = 0
        lengths = [len(polygon) for polygon in lists]
        self.polygons = np.cumsum([0, *lengths]), np.concatenate([np.array(polygon) for polygon in lists])
        self.parent = np.array(parents)
        return values

    def _add(self, pairs: Integers, weight: Floats) -> None:
        self._ends = np.concatenate([self._ends, pairs])
        self._weight = np.concatenate([self._weight, weight])
        self._waves.append(len(self._weight))
        self.vertices = self.extend(self.vertices)

    def extend(self, rows: np.ndarray) -> np.ndarray:
        """Rows for all vertices: those of newer vertices are interpolated along the edges on which they were made."""
        if len(rows) == self._waves[-1]:
            return rows
        full = np.empty((self._waves[-1], *rows.shape[1:]), dtype=rows.dtype)
        full[: len(rows)] = rows
        for first, last in zip(self._waves[:-1], self._waves[1:], strict=True):
            if last > len(rows):
                a, b = self._ends[first:last].T
                weight = self._weight[first:last].reshape(-1, *[1] * (rows.ndim - 1))
                full[first:last] = full[a] * (1 - weight) + full[b] * weight
        return full

    def positive(self, values: Floats) -> NDArray[np.bool_]:
        """Whether each function is positive on each polygon, ``(R, K)``."""
        start, index = self.polygons
        return np.logical_or.reduceat((values > 0)[index], start[:-1], axis=0)

    def _half_edges(self) -> tuple[Integers, Integers, Integers]:
        """Polygon, first and second vertex of every side."""
        start, index = self.polygons
        following = np.empty_like(index)
        following[:-1] = index[1:]
        following[start[1:] - 1] = index[start[:-1]]
        return np.repeat(np.arange(len(start) - 1), np.diff(start)), index, following

    def _inner_edges(self) -> tuple[Integers, Integers]:
        """The two sides, as rows of `_half_edges`, of every edge that two polygons share."""
        _, a, b = self._half_edges()
        key = np.minimum(a, b) * np.int64(len(self.vertices)) + np.maximum(a, b)
        order = np.argsort(key, kind="stable")
        same = np.flatnonzero(key[order[1:]] == key[order[:-1]])
        return order[same], order[same + 1]

    def neighbours(self) -> tuple[Integers, Integers]:
        """The pairs ``i < j`` of polygons that share an edge, and the two vertices of that edge, ``(E, 2)`` each."""
        polygon, a, b = self._half_edges()
        one, two = self._inner_edges()
        pairs = np.stack([polygon[one], polygon[two]], axis=1)
        pairs.sort(axis=1)
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        return pairs[order], np.stack([a[one], b[one]], axis=1)[order]

    def merge(self, label: Integers) -> None:
        """Polygons that share an edge and a label become one.

        Vertices at which then no two polygons' corners meet (in the middle of a straight side) are dropped from the polygons;
        their rows stay.
        """
        polygon, a, b = self._half_edges()
        one, two = self._inner_edges()
        same = label[polygon[one]] == label[polygon[two]]
        inner = np.zeros(len(a), dtype=bool)
        inner[one[same]] = inner[two[same]] = True
        group = components(len(self), polygon[one[same]], polygon[two[same]])
        keep = np.flatnonzero(~inner)
        # Vertices where only two edges end, and that are no corner of the box.
        low, high = np.minimum(a, b)[keep], np.maximum(a, b)[keep]
        edges = np.unique(low * np.int64(len(self.vertices)) + high)
        degree = np.bincount(edges // len(self.vertices), minlength=len(self.vertices))
        degree += np.bincount(edges % len(self.vertices), minlength=len(self.vertices))
        needed = degree > 2
        needed[:4] = True
        # The cycle of the sides that are left of every group.
        numbers, group = np.unique(group, return_inverse=True)
        key = group[polygon[keep]] * np.int64(len(self.vertices)) + a[keep]
        order = np.argsort(key)
        successor = np.searchsorted(key[order], (group[polygon[keep]] * np.int64(len(self.vertices)) + b[keep])[order])
        owner, vertex = group[polygon[keep]][order], a[keep][order]
        first = np.searchsorted(owner, np.arange(len(numbers)))
        current, place, rank = first.copy(), 0, np.empty(len(owner), dtype=np.int64)
        running = np.arange(len(numbers))
        while len(running):
            rank[current] = place
            place += 1
            current = successor[current]
            going = current != first[running]
            current, running = current[going], running[going]
        in_turn = np.lexsort((rank, owner))
        in_turn = in_turn[needed[vertex[in_turn]]]
        lengths = np.bincount(owner[in_turn], minlength=len(numbers))
        self.polygons = np.concatenate([[0], np.cumsum(lengths)]), vertex[in_turn]
        self.parent = numbers
        if len(numbers) and self.turns().min() < -1e-9 * np.ptp(self.vertices, axis=0).prod():
            raise ValueError("label must be the same only on polygons whose union is convex")

    def turns(self) -> Floats:
        """Twice the signed area of the triangle at every corner, in the order of ``polygons[1]``: none is below 0 but for rounding."""
        start, index = self.polygons
        _, here, after = self._half_edges()
        before = np.empty_like(index)
        before[1:] = index[:-1]
        before[start[:-1]] = index[start[1:] - 1]
        (x0, y0), (x1, y1), (x2, y2) = (self.vertices[i].T for i in (before, here, after))
        return (x1 - x0) * (y2 - y1) - (y1 - y0) * (x2 - x1)

    def area(self) -> Floats:
        """The area of every polygon, ``(R,)``."""
        start, _ = self.polygons
        _, a, b = self._half_edges()
        corner = np.repeat(self.vertices[a[start[:-1]]], np.diff(start), axis=0)
        (x0, y0), (x1, y1) = (self.vertices[a] - corner).T, (self.vertices[b] - corner).T
        return np.add.reduceat(x0 * y1 - x1 * y0, start[:-1]) / 2


def components(count: int, one: Integers, two: Integers) -> Integers:
    """The smallest member of the connected component of each of ``count`` nodes, joined by the edges ``one`` - ``two``."""
    root = np.arange(count)
    while True:
        low, high = np.minimum(root[one], root[two]), np.maximum(root[one], root[two])
        if (low == high).all():
            return root
        np.minimum.at(root, high, low)
        while (root[root] != root).any():
            root = root[root]
