r"""A box of the plane, cut into convex polygons along the zeros of functions that are affine on every polygon.

Numbers decide only where new vertices lie, and in which order they follow each other on a line. All else is told by the signs of
the functions at the vertices and by the order of the vertices around a polygon. One cut has four steps, each for all functions and
all polygons at once:

1. An edge whose ends have opposite signs gets a vertex, :eq:`eq-edge-vertex`, which both of its polygons share.
2. A function with both signs on a polygon, :eq:`eq-crossing`, is 0 at two vertices on its boundary: the ends of its chord.
3. Two chords whose ends alternate around the polygon cross in a vertex.
4. The faces are the cycles of the map from each side to the next one, which turns left. Around a vertex chords stand in the order in
   which they end on the boundary.

Chords that cross in one point, up to rounding, share the vertex. Where it is not clear whether they do, and where a function is
not affine because its values are rounding errors, that polygon alone is cut along one function after the other.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TOLERANCE = 1e-12
"""A value of at most this part of its function's largest value counts as 0."""

_NOT_CONVEX = "label must be the same only on polygons whose union is convex"
_AT_ONCE = 2**15  # numbers


class Subdivision:
    """A box cut into convex polygons that share their vertices.

    ``vertices`` has a row ``(s, t)`` for each vertex, which stays that of the vertex; there may be some that no polygon has any more.
    ``polygons`` is ``(start, index)``: the vertices of polygon ``i``, counterclockwise, are ``index[start[i]:start[i + 1]]``.
    A vertex may lie in the middle of a straight side, where another polygon has a corner. After a cut or a merge ``parent`` has for
    each polygon the number of the one from which it comes.
    """

    def __init__(self, box: tuple[tuple[float, float], tuple[float, float]]) -> None:
        (s0, s1), (t0, t1) = box
        self.vertices: Floats = np.array([[s0, t0], [s1, t0], [s1, t1], [s0, t1]], dtype=np.float64)
        self.parent: Integers = np.zeros(1, dtype=np.int64)
        # Edge e goes from vertex tail[2 e] to tail[2 e + 1]. Its sides 2 e and 2 e + 1 are named after where they start.
        self._tail: Integers = np.array([0, 1, 1, 2, 2, 3, 3, 0])
        self._start: Integers = np.array([0, 4])
        self._sides: Integers = np.array([0, 2, 4, 6])
        # The vertices from number `first` on were made on the lines a - b, at a + weight (b - a): (first, a, b, weight).
        self._waves: list[tuple[int, Integers, Integers, Floats]] = []
        self._polygons: tuple[Integers, Integers] | None = None

    def __len__(self) -> int:
        return len(self._start) - 1

    @property
    def polygons(self) -> tuple[Integers, Integers]:
        if self._polygons is None:
            self._polygons = self._start, self._tail.take(self._sides)
        return self._polygons

    def cut(self, values: Floats) -> Floats:
        """Cuts every polygon along the zeros of functions, of which each is affine on each polygon.

        Afterwards no polygon has a vertex where a function is positive and another one where it is negative.

        Args:
            values: ``(V, K)``, the K functions at the vertices.

        Returns:
            ``(V', K)``, the functions at all vertices, also at the new ones. What counts as 0 is exactly 0 there: see `TOLERANCE`.
        """
        values = np.ascontiguousarray(values, dtype=np.float64)
        self.parent = np.arange(len(self))
        if values.shape[1] == 0:
            return values
        return _Cut(self, values).values

    def extend(self, rows: Array) -> Array:
        """Rows for all vertices: those of newer vertices are interpolated along the lines on which they were made."""
        count = len(rows)
        if count == len(self.vertices):
            return rows
        full = np.empty((len(self.vertices), *rows.shape[1:]), dtype=rows.dtype)
        full[:count] = rows
        for wave in self._waves:
            if wave[0] >= count:
                _interpolate(full, *wave)
        return full

    def positive(self, values: Floats) -> NDArray[np.bool_]:
        """Whether each of K functions, none of which has both signs on a polygon, is positive there: ``(R, K)``."""
        bits = np.bitwise_or.reduceat(_pack(values > 0).take(self.polygons[1], axis=0), self._start[:-1], axis=0)
        return np.unpackbits(bits.view(np.uint8), axis=1, count=values.shape[1], bitorder="little").view(bool)

    def neighbours(self) -> tuple[Integers, Integers]:
        """The pairs ``i < j`` of polygons that share an edge, sorted, and the two vertices of that edge: ``(E, 2)`` each."""
        pairs = self._left().reshape(-1, 2)
        inner = np.flatnonzero((pairs >= 0).all(axis=1))
        pairs, ends = np.sort(pairs[inner], axis=1), self._tail.reshape(-1, 2)[inner]
        order = np.argsort(pairs[:, 0] * len(self) + pairs[:, 1], kind="stable")
        pairs, ends = pairs[order], ends[order]
        new = np.ones(len(pairs), dtype=bool)
        new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
        for last in np.flatnonzero(~new)[::-1]:  # edges in a row are one: its ends are those that only one of them has
            ends[last - 1] = np.setxor1d(ends[last - 1], ends[last])
        return pairs[new], ends[new]

    def _left(self) -> Integers:
        """The polygon to the left of each side, -1 outside of the box."""
        left = np.full(len(self._tail), -1)
        left[self._sides] = np.repeat(np.arange(len(self)), np.diff(self._start))
        return left

    def merge(self, label: Integers) -> None:
        """Polygons that share an edge and a label become one; ``parent`` is one of them.

        A vertex in the middle of a straight line, where no other line ends any more, is dropped from the polygons. Its row stays.
        Raises ValueError if a polygon is not convex afterwards.
        """
        left = self._left()
        one, two = left[0::2], left[1::2]
        gone = (one >= 0) & (two >= 0)
        gone[gone] = label[one[gone]] == label[two[gone]]
        self.parent = np.arange(len(self))
        if not gone.any():
            return
        self.parent, group = np.unique(components(len(self), one[gone], two[gone]), return_inverse=True)
        kept = np.flatnonzero((left >= 0) & ~np.repeat(gone, 2))
        tail, head, owner = self._tail[kept], self._tail[kept ^ 1], group[left[kept]]
        # In how many edges a vertex lies, twice: an edge of the box has one side, another has two.
        twice = np.where(left[kept ^ 1] < 0, 2, 1)
        degree = np.bincount(tail, twice, len(self.vertices)) + np.bincount(head, twice, len(self.vertices))
        needed = degree > 4
        needed[:4] = True
        # The sides that are left of a group are a cycle; with several ones it would have a hole, or two parts that meet in a point.
        order = np.lexsort((tail, owner))
        owner, tail, head = owner[order], tail[order], head[order]
        place = owner * len(self.vertices) + tail
        turn, first = _cycles(np.searchsorted(place, owner * len(self.vertices) + head))
        if len(first) != len(self.parent) or (place[1:] == place[:-1]).any():
            raise ValueError(_NOT_CONVEX)
        turn = turn[np.argsort(owner[turn], kind="stable")]
        owner, tail = owner[turn], tail[turn]
        if self._turns(_starts(owner, len(self.parent)), tail).min() < -1e-9 * np.ptp(self.vertices, axis=0).prod():
            raise ValueError(_NOT_CONVEX)
        owner, tail = owner[needed[tail]], tail[needed[tail]]
        self._rebuild(_starts(owner, len(self.parent)), tail)

    def _rebuild(self, start: Integers, index: Integers) -> None:
        """Edges and sides of polygons that are given by their vertices."""
        following = index[_after(start)]
        low, high = np.minimum(index, following), np.maximum(index, following)
        edges, edge = np.unique(low * len(self.vertices) + high, return_inverse=True)
        self._tail = np.stack(np.divmod(edges, len(self.vertices)), axis=1).ravel()
        self._start, self._sides, self._polygons = start, 2 * edge + (index > following), None

    def turns(self) -> Floats:
        """The cross product of the side before and the one after each corner, in the order of ``polygons``: at least 0, up to rounding."""
        return self._turns(*self.polygons)

    def _turns(self, start: Integers, index: Integers) -> Floats:
        following = _after(start)
        side = self.vertices[index[following]] - self.vertices[index]
        turns = np.empty(len(index))
        turns[following] = side[:, 0] * side[following, 1] - side[:, 1] * side[following, 0]
        return turns

    def area(self) -> Floats:
        """The area of every polygon, ``(R,)``."""
        start, index = self.polygons
        x, y = (self.vertices[index] - np.repeat(self.vertices[index[start[:-1]]], np.diff(start), axis=0)).T
        following = _after(start)
        return np.add.reduceat(x * y[following] - y * x[following], start[:-1]) / 2


class _Cut:
    """One cut. ``values`` is its result.

    Places are numbers of sides on the boundaries of the polygons that are cut, one polygon after the other: ``sides``. A vertex of the
    boundary has the place of the side that starts there.
    """

    def __init__(self, mesh: Subdivision, values: Floats) -> None:
        self.mesh, self.values = mesh, values
        self.old, self.functions = values.shape
        self.small = TOLERANCE * np.maximum(np.maximum.reduce(values), -np.minimum.reduce(values))
        above, below = values > self.small, values < -self.small
        positive = _pack(above)
        signs = positive.take(mesh._tail, axis=0)
        self.zero: Array | None = None  # where a value counts as 0, and the functions with both signs on each polygon
        if np.count_nonzero(above) + np.count_nonzero(below) < values.size:
            negative = _pack(below)
            other = negative.take(mesh._tail, axis=0)
            crossed = (signs[0::2] & other[1::2]) | (other[0::2] & signs[1::2])
            either = above | below
            self.values = np.where(either, values, 0.0)
            self.zero = _pack(~either)
            index, start = mesh.polygons[1], mesh._start[:-1]
            self.mixed = np.bitwise_or.reduceat(positive.take(index, axis=0), start, axis=0)
            self.mixed &= np.bitwise_or.reduceat(negative.take(index, axis=0), start, axis=0)
            if not self.mixed.any():
                return
        else:
            crossed = signs[0::2] ^ signs[1::2]
            if not crossed.any():
                return
        self.cut_edges(crossed)
        self.open_boundaries()
        self.find_chords()
        self.grow_edges()
        while not self.find_faces():
            pass
        self.store()

    def cut_edges(self, crossed: Array) -> None:
        edge, function = _bits(crossed)
        tail, flat = self.mesh._tail, self.values.ravel()
        a, b = tail.take(2 * edge), tail.take(2 * edge + 1)
        near, far = flat.take(a * self.functions + function), flat.take(b * self.functions + function)
        slope = near - far
        weight = near / slope
        new_edge = np.ones(len(edge), dtype=bool)
        new_edge[1:] = edge[1:] != edge[:-1]
        first = new_edge
        if np.count_nonzero(new_edge) < len(edge):  # several functions cross one edge
            order = _along(edge, weight)
            function, weight = function.take(order), weight.take(order)
            reach = self.small.take(function) / np.abs(slope.take(order))
            first = new_edge.copy()
            first[1:] |= weight[1:] - weight[:-1] > np.maximum(reach[1:], reach[:-1])
        # Crossing i makes function[i] 0 at new vertex number made[i].
        self.crossing_function = function
        self.made = first.cumsum() - 1
        self.merged = np.count_nonzero(first) < len(first)  # whether chords may share ends
        if self.merged:
            edge, a, b, weight, new_edge = edge[first], a[first], b[first], weight[first], new_edge[first]
        self.on_edges = self.old, a, b, weight  # as a wave of `Subdivision`
        self.edge, self.new_edge = edge, new_edge.nonzero()[0]

    def open_boundaries(self) -> None:
        """The sides of all polygons that are cut, with those of the new vertices, and where functions are 0 on them."""
        mesh, edge, first = self.mesh, self.edge, self.new_edge
        edges, made = len(mesh._tail) // 2, len(edge)
        last = np.empty_like(first)
        last[:-1], last[-1:] = first[1:] - 1, made - 1
        count, begin = np.zeros(edges, dtype=np.int64), np.empty(edges, dtype=np.int64)
        begun = edge.take(first)
        count[begun], begin[begun] = last - first + 1, first
        # New vertex i starts the new edge `edges + i`, which ends in the next one, or where the old edge did.
        self.tail = tail = np.empty(2 * (edges + made), dtype=np.int64)
        tail[: 2 * edges] = mesh._tail
        tail[2 * edges :: 2] = vertex = np.arange(self.old, self.old + made)
        tail[2 * edges + 1 :: 2] = vertex + 1
        tail[2 * (edges + last) + 1] = self.on_edges[2].take(last)
        tail[2 * begun + 1] = self.old + first
        # Which polygons.
        starts, lengths = mesh._start[:-1], mesh._start[1:] - mesh._start[:-1]
        inserted = count.take(mesh._sides >> 1)
        active = np.add.reduceat(inserted, starts) > 0
        if self.zero is not None:
            active |= self.mixed.any(axis=1)
        self.cut_polygons, self.rest = active.nonzero()[0], (~active).nonzero()[0]
        cut = active.repeat(lengths)
        self.rest_sides, self.rest_lengths = mesh._sides[~cut], lengths.take(self.rest)
        sides, inserted, lengths = mesh._sides[cut], inserted[cut], lengths.take(self.cut_polygons)
        # Each side in as many pieces as it has new vertices, and one.
        pieces = inserted + 1
        ends = pieces.cumsum()
        broken = inserted.nonzero()[0]
        number, side = inserted.take(broken), sides.take(broken)
        owner = np.arange(len(lengths)).repeat(lengths).take(broken)
        place = ends.take(broken) - number
        back = side & 1
        new = begin.take(side >> 1)
        if len(number) and number.max() > 1:
            which, step = ranges(number)
            new += back * (number - 1)
            place, back, owner, new = place[which] + step, back[which], owner[which], new[which]
            new += step * (1 - 2 * back)
        self.sides = sides.repeat(pieces)
        self.sides[place - back] = 2 * (edges + new) + back
        self.start = np.zeros(len(lengths), dtype=np.int64)
        ends = ends.take(lengths.cumsum() - 1)
        self.start[1:] = ends[:-1]
        self.lengths = ends - self.start
        if self.merged:
            times = np.bincount(self.made, minlength=made)
            which, step = ranges(times[new])
            function = self.crossing_function[(times.cumsum() - times)[new][which] + step]
            place, owner = place[which], owner[which]
        else:
            function = self.crossing_function.take(new)
        if self.zero is not None:
            every = np.arange(len(lengths)).repeat(self.lengths)
            at = tail[self.sides]
            old = (at < self.old).nonzero()[0]
            which, more = _bits(self.zero[at[old]] & self.mixed[self.cut_polygons][every[old]])
            self.merged |= len(which) > 0
            place = np.concatenate([place, old[which]])
            owner = np.concatenate([owner, every[old[which]]])
            function = np.concatenate([function, more])
        # At this place of this polygon this function, which has both signs there, is 0.
        self.zeros = place, owner, function

    def find_chords(self) -> None:
        """Chord x goes from place r[x] to s[x] > r[x] in a polygon, along the zeros of a function; they are sorted by r."""
        place, owner, function = self.zeros
        bits = len(self.sides).bit_length()
        mask = (1 << bits) - 1
        packed = ((owner * self.functions + function) << bits) | place
        packed.sort()
        key = packed >> bits
        self.bad = np.zeros(len(self.start), dtype=bool)  # polygons that will be cut along one function after the other
        if len(key) % 2 or np.count_nonzero(key[::2] != key[1::2]) or np.count_nonzero(key[2::2] == key[:-2:2]):
            number, times = np.unique(key, return_counts=True)
            self.bad[number[times != 2] // self.functions] = True
            good = ~self.bad[key // self.functions]
            packed, key = packed[good], key[good]
        r, s, key = packed[0::2] & mask, packed[1::2] & mask, key[::2]
        if self.merged:
            order = np.lexsort((s, r))
        else:
            packed = (r << bits) | np.arange(len(r))
            packed.sort()
            order = packed & mask
        r, s, key = r.take(order), s.take(order), key.take(order)
        owner, function = np.divmod(key, self.functions)
        self.twins = order[:0], order[:0]  # chords, and other functions that are 0 there
        if self.merged:
            new = np.ones(len(r), dtype=bool)
            new[1:] = (r[1:] != r[:-1]) | (s[1:] != s[:-1])
            self.twins = (new.cumsum() - 1)[~new], function[~new]
            r, s, owner, function = r[new], s[new], owner[new], function[new]
        self.chords = r, s, owner, function

    def grow_edges(self) -> None:
        """The values at the new vertices of the edges; there is room for those within the polygons."""
        r, s, _, _ = self.chords
        # Chords that start after r[x] and before s[x], in the same polygon.
        x, step = ranges(r.searchsorted(s) - np.arange(1, len(r) + 1))
        y = x + step + 1
        cross = s.take(y) > s.take(x)
        if self.merged:
            cross &= r.take(y) > r.take(x)
        self.x, self.y = x[cross], y[cross]
        made = len(self.edge)
        values = np.empty((self.old + made + len(self.x), self.functions))
        values[: self.old] = self.values
        _interpolate(values, *self.on_edges)
        values.ravel()[(self.old + self.made) * self.functions + self.crossing_function] = 0
        self.values = values

    def find_faces(self) -> bool:
        """Chords, their crossings and faces; False if some polygons had to be left out, which are bad now."""
        r, s, owner, function = self.chords
        x, y, flat = self.x, self.y, self.values.ravel()
        points, chords = len(x), len(r)
        start, finish = self.tail.take(self.sides.take(r)), self.tail.take(self.sides.take(s))
        # Crossing i lies on chord x[i], and again, as number i + points, on chord y[i].
        line, other = np.concatenate([x, y]), function.take(np.concatenate([y, x]))
        near = flat.take(start.take(line) * self.functions + other)
        far = flat.take(finish.take(line) * self.functions + other)
        slope = near - far
        with np.errstate(invalid="ignore", divide="ignore"):
            weight = near / slope
            reach = self.small.take(other) / np.abs(slope)
        right = near * far < 0
        # A function has opposite signs at the ends of a chord that its own chord crosses; where it has not, it is rounding.
        dirty = line[:0] if np.count_nonzero(right) == len(right) else owner[line[~right]]
        order = _along(line, weight)
        point = np.where(order < points, order, order - points)
        line_, weight_, reach_ = line.take(order), weight.take(order), reach.take(order)
        same = line_[1:] == line_[:-1]
        close = same & (weight_[1:] - weight_[:-1] <= np.maximum(reach_[1:], reach_[:-1]))
        vertex, made, self.clusters = np.arange(points), points, np.count_nonzero(close) > 0
        if self.clusters:
            # Crossings in one vertex: those of all pairs of some chords, side by side on each of them.
            label = components(points, point[1:][close], point[:-1][close])
            _, first, vertex, size = np.unique(label, return_index=True, return_inverse=True, return_counts=True)
            made = len(first)
            members = np.unique(np.concatenate([vertex, vertex]) * chords + line)
            number = np.bincount(members // chords, minlength=made)
            leads = np.ones(2 * points, dtype=bool)
            leads[1:] = ~same | (vertex[point[1:]] != vertex[point[:-1]])
            runs = np.bincount(vertex[point[leads]], minlength=made)
            # Clear is a vertex where every two of its chords cross, and which each of them meets once.
            unclear = (size != number * (number - 1) // 2) | (runs != number)
            dirty = np.concatenate([dirty, owner[x[unclear[vertex]]]])
            line_, point = line_[leads], point[leads]
        if len(dirty):
            return self.leave_out(dirty)
        # A chord has a piece more than vertices. Piece p has the sides 2 p, forwards, and 2 p + 1.
        on = np.bincount(line_, minlength=chords)
        last = (on + 1).cumsum() - 1
        first_piece = last - on
        after = np.arange(1, len(line_) + 1) + line_  # the piece that starts at a vertex of a chord
        # Runs of sides on the boundary, from the end of a chord, or the start of the polygon, to the next one.
        is_break = np.zeros(len(self.sides), dtype=bool)
        is_break[r] = is_break[s] = is_break[self.start] = True
        breaks = is_break.nonzero()[0]
        count, pieces = len(breaks), chords + len(line_)
        run = np.empty(len(self.sides), dtype=np.int64)
        run[breaks] = np.arange(count)
        begin = run.take(self.start)
        end = np.empty_like(begin)
        end[:-1], end[-1] = begin[1:] - 1, count - 1
        before = np.arange(-1, count - 1)
        before[begin] = end
        following = np.empty(count + 2 * pieces, dtype=np.int64)
        following[before] = np.arange(count)
        if self.merged or self.clusters:
            node, target = np.empty(2 * pieces, dtype=np.int64), np.empty(2 * pieces, dtype=np.int64)
            node[2 * after] = node[2 * after - 1] = len(self.sides) + vertex[point]
            target[0::2], target[1::2] = s.repeat(on + 1), r.repeat(on + 1)
            # From a place on the boundary, other places are counted from there.
            node[2 * first_piece], node[2 * last + 1] = r, s
            target[2 * first_piece], target[2 * last + 1] = s - r, self.lengths[owner] - (s - r)
            self._turn_left(following, node, target, run, before, count)
        else:
            X, Y = count + 2 * first_piece, count + 2 * last
            at_r, at_s = run.take(r), run.take(s)
            following[X + 1], following[before.take(at_r)] = at_r, X
            following[Y], following[before.take(at_s)] = at_s, Y + 1
            place = np.empty(2 * points, dtype=np.int64)
            place[order] = count + 2 * after
            X, Y = place[:points], place[points:]
            following[X - 2], following[Y - 2], following[X + 1], following[Y + 1] = Y, X - 1, Y - 1, X
        cycles, start_of_face = _cycles(following)
        leader = cycles.take(start_of_face)
        polygon = np.empty(count + 2 * pieces, dtype=np.int64)
        polygon[:count] = np.arange(len(begin)).repeat(end - begin + 1)
        polygon[count:] = owner.repeat(2 * (on + 1))
        polygon = polygon.take(leader)
        if len(polygon) != len(begin) + chords + len(line_) - made:  # Euler's formula
            expected = 1 + np.bincount(owner, minlength=len(begin)) + np.bincount(owner[line_], minlength=len(begin))
            if self.clusters:
                expected -= np.bincount(owner[x[first]], minlength=len(begin))
            else:
                expected -= np.bincount(owner[x], minlength=len(begin))
            return self.leave_out(np.flatnonzero(np.bincount(polygon, minlength=len(begin)) != expected))
        # All is well: vertices, edges and faces.
        self.polygon = polygon
        inside = self.old + len(self.edge)
        on_line, at = (x[first], weight[first]) if self.clusters else (x, weight[:points])
        self.on_chords = inside, start.take(on_line), finish.take(on_line), at
        edges = len(self.tail)
        tail = np.empty(edges + 2 * pieces, dtype=np.int64)
        tail[:edges] = self.tail
        tail[edges + 2 * first_piece], tail[edges + 2 * last + 1] = start, finish
        new = inside + vertex.take(point)
        tail[edges + 2 * after] = tail[edges - 1 + 2 * after] = new
        self.new_tail = tail
        self.zero_at = inside + vertex, made
        self.on_vertices = line_, new
        size = np.ones(count + 2 * pieces, dtype=np.int64)
        size[: count - 1], size[count - 1] = breaks[1:] - breaks[:-1], len(self.sides) - breaks[-1]
        length = size.take(cycles)
        ends = length.cumsum()
        source = np.concatenate([breaks, np.arange(len(self.sides), len(self.sides) + 2 * pieces)])
        source = (source.take(cycles) - ends + length).repeat(length)
        source += np.arange(len(source))
        self.face_sides = np.concatenate([self.sides, np.arange(edges, edges + 2 * pieces)]).take(source)
        self.face_lengths = np.add.reduceat(length, start_of_face)
        return True

    @staticmethod
    def _turn_left(
        following: Integers, node: Integers, target: Integers, run: Integers, before: Integers, runs: int
    ) -> None:
        """Around a node sides stand in the order of their targets; after the reverse of a side comes the one before it."""
        if not len(node):
            return
        order = np.argsort(node * (len(run) + 1) + target)
        node = node[order]
        new = np.ones(len(node), dtype=bool)
        new[1:] = node[1:] != node[:-1]
        first = new.nonzero()[0]
        last = np.append(first[1:], len(node)) - 1
        one_before = np.empty_like(order)
        one_before[1:] = runs + order[:-1]
        one_before[first] = runs + order[last]
        boundary = node[first] < len(run)
        here = run[node[first[boundary]]]
        one_before[first[boundary]] = here
        following[runs + (order ^ 1)] = one_before
        following[before[here]] = runs + order[last[boundary]]

    def leave_out(self, polygons: Integers) -> bool:
        self.bad[polygons] = True
        r, s, owner, function = self.chords
        stays = ~self.bad[owner]
        number = stays.cumsum() - 1
        self.chords = r[stays], s[stays], owner[stays], function[stays]
        both = stays[self.x]
        self.x, self.y = number[self.x[both]], number[self.y[both]]
        chord, other = self.twins
        self.twins = number[chord[stays[chord]]], other[stays[chord]]
        return False

    def store(self) -> None:
        mesh, function = self.mesh, self.chords[3]
        vertex, made = self.zero_at
        self.values = self.values[: self.old + len(self.edge) + made]
        _interpolate(self.values, *self.on_chords)
        flat = self.values.ravel()
        flat[vertex * self.functions + function.take(self.y)] = 0
        if self.clusters:
            flat[vertex * self.functions + function[self.x]] = 0
        chord, other = self.twins
        if len(chord):
            line, vertex = self.on_vertices
            low, high = np.searchsorted(line, chord), np.searchsorted(line, chord, side="right")
            which, step = ranges(high - low)
            flat[vertex[low[which] + step] * self.functions + other[which]] = 0
        mesh._tail = self.new_tail
        mesh._sides = np.concatenate([self.rest_sides, self.face_sides])
        mesh._start = np.zeros(len(self.rest) + len(self.polygon) + 1, dtype=np.int64)
        np.cumsum(np.concatenate([self.rest_lengths, self.face_lengths]), out=mesh._start[1:])
        mesh.parent = np.concatenate([self.rest, self.cut_polygons.take(self.polygon)])
        mesh._polygons = None
        self.grow_mesh(self.on_edges, self.on_chords)
        if np.count_nonzero(self.bad):
            self.cut_one_by_one((len(self.rest) + self.bad[self.polygon].nonzero()[0]).tolist())
        if self.merged or self.clusters or np.count_nonzero(self.bad):
            self.settle()

    def grow_mesh(self, *waves: tuple[int, Integers, Integers, Floats]) -> None:
        mesh = self.mesh
        vertices = np.empty((waves[-1][0] + len(waves[-1][1]), 2))
        vertices[: len(mesh.vertices)] = mesh.vertices
        for wave in waves:
            _interpolate(vertices, *wave)
        mesh.vertices = vertices
        mesh._waves += waves

    def settle(self) -> None:
        """Where a function still has both signs on a polygon, by no more than rounding, those of the smaller values become 0."""
        start, index = self.mesh.polygons
        while True:
            flags = (_pack(self.values > 0), _pack(self.values < 0))
            above, below = (np.bitwise_or.reduceat(flag.take(index, axis=0), start[:-1], axis=0) for flag in flags)
            polygons, functions = _bits(above & below)
            if not len(polygons):
                return
            for polygon, function in zip(polygons, functions, strict=True):
                corners = index[start[polygon] : start[polygon + 1]]
                z = self.values[corners, function]
                self.values[corners[z < 0 if z.max() > -z.min() else z > 0], function] = 0

    def cut_one_by_one(self, polygons: list[int]) -> None:
        """Cuts polygons on whose edges every zero is a vertex already."""
        mesh = self.mesh
        tail, rows = mesh._tail.tolist(), list(self.values)
        parts_of = [part.tolist() for part in np.split(mesh._sides, mesh._start[1:-1])]
        sides, parents = [], []
        for polygon, part in enumerate(parts_of):
            parts = [part]
            if polygon in polygons:
                corners = self.values[[tail[side] for side in part]]
                for k in np.flatnonzero((corners > 0).any(axis=0) & (corners < 0).any(axis=0)).tolist():
                    parts = self.cut_parts(parts, k, tail, rows)
            sides += parts
            parents += [mesh.parent[polygon]] * len(parts)
        mesh._tail, mesh.parent = np.array(tail), np.array(parents)
        mesh._sides, mesh._start = np.concatenate(sides).astype(np.int64), np.cumsum([0, *map(len, sides)])
        mesh._polygons = None
        self.values = np.array(rows)

    def cut_parts(self, parts: list[list[int]], k: int, tail: list[int], rows: list[Floats]) -> list[list[int]]:
        for part in parts:  # around a polygon stand positive values, zeros, negative values, zeros; else it is rounding
            z = [float(rows[tail[side]][k]) for side in part]
            runs: list[list[int]] = []
            for place, number in enumerate(z):
                if number != 0:
                    if not runs or (number > 0) != (z[runs[-1][-1]] > 0):
                        runs.append([])
                    runs[-1].append(place)
            if len(runs) % 2 and len(runs) > 1:
                runs[0] += runs.pop()
            largest = [max(runs[sign::2], key=lambda run: max(abs(z[i]) for i in run), default=[]) for sign in (0, 1)]
            for run in runs:
                for place in run if run not in largest else []:
                    rows[tail[part[place]]][k] = 0
        result: list[list[int]] = []
        first, ends, weights = len(rows), [], []
        made: dict[int, int] = {}
        for part in parts:
            z = [float(rows[tail[side]][k]) for side in part]
            if not min(z) < 0 < max(z):
                result.append(part)
                continue
            sides: list[int] = []
            for side, near, far in zip(part, z, z[1:] + z[:1], strict=True):
                edge = side >> 1
                if edge not in made and near * far < 0:
                    low, high = tail[2 * edge], tail[2 * edge + 1]
                    weight = rows[low][k] / (rows[low][k] - rows[high][k])
                    made[edge] = len(tail) // 2
                    ends.append((low, high))
                    weights.append(weight)
                    tail[2 * edge + 1] = len(rows)
                    tail += [len(rows), high]
                    rows.append(rows[low] + (rows[high] - rows[low]) * weight)
                    rows[-1][k] = 0
                if edge not in made:
                    sides.append(side)
                else:
                    sides += [2 * made[edge] + 1, side] if side & 1 else [side, 2 * made[edge]]
            z = [float(rows[tail[side]][k]) for side in sides]
            # From the zero before the negative values on.
            turn = next(i for i in range(len(z)) if z[i] < 0 and z[i - 1] == 0) - 1
            sides, z = sides[turn:] + sides[:turn], z[turn:] + z[:turn]
            turn = z.index(0, 1)
            result += [[*sides[:turn], len(tail) + 1], [len(tail), *sides[turn:]]]
            tail += [tail[sides[0]], tail[sides[turn]]]
        if ends:
            low, high = np.array(ends, dtype=np.int64).T
            self.grow_mesh((first, low, high, np.array(weights)))
        return result


def _cycles(following: Integers) -> tuple[Integers, Integers]:
    """The cycles of a permutation, one after the other, each from its smallest member on, and where each starts."""
    here = np.arange(len(following))
    previous = np.empty_like(following)
    previous[following] = here
    leader = ((following >= here) & (previous >= here)).nonzero()[0]
    cycles, starts, count, steps = [], [], 0, 16 if len(leader) < 1000 else 8
    while len(leader):
        # All walk around at once. Who meets a smaller member is no leader; who is not back yet has to walk longer.
        walk = np.empty((steps, len(leader)), dtype=np.int64)
        walk[0] = leader
        for step in range(1, steps):
            following.take(walk[step - 1], out=walk[step], mode="clip")
        back = walk[1:] == leader
        length = back.argmax(axis=0) + 1
        length[~np.logical_or.reduce(back, axis=0)] = steps
        leads = np.minimum.reduce(walk, axis=0) == leader
        whole = (leads & (length < steps)).nonzero()[0]
        length = length.take(whole)
        cycles.append(walk.take(whole, axis=1).T[np.arange(steps) < length[:, None]])
        ends = length.cumsum()
        starts.append(ends - length + count)
        count += len(cycles[-1])
        leads[whole] = False
        leader = leader[leads]
        steps *= 4
    return np.concatenate(cycles), np.concatenate(starts)


def _along(line: Integers, weight: Floats) -> Integers:
    """The order by line, and on a line by weight, which is from 0 to 1."""
    order = np.argsort(line + weight)
    line, weight = line.take(order), weight.take(order)
    if ((weight[1:] < weight[:-1]) & (line[1:] == line[:-1])).any() or (
        line[1:] < line[:-1]
    ).any():  # rounding of the sum
        order = order[np.lexsort((weight, line))]
    return order


def _starts(owner: Integers, count: int) -> Integers:
    """Where each of ``count`` owners, who are sorted, starts, and the end."""
    return np.searchsorted(owner, np.arange(count + 1))


def _after(start: Integers) -> Integers:
    """The place of the next corner of the same polygon."""
    following = np.arange(1, start[-1] + 1)
    following[start[1:] - 1] = start[:-1]
    return following


def ranges(counts: Integers) -> tuple[Integers, Integers]:
    """For counts 2, 3: which of them, 0 0 1 1 1, and the place within it, 0 1 0 1 2."""
    ends = counts.cumsum()
    which = np.arange(len(counts)).repeat(counts)
    return which, np.arange(len(which)) - (ends - counts).repeat(counts)


def _interpolate(rows: Array, first: int, a: Integers, b: Integers, weight: Floats) -> None:
    """Rows from number ``first`` on, between rows a and b. Where both of these have no two signs, neither has the new one."""
    count, width = len(a), math.prod(rows.shape[1:])
    weight = weight.reshape(count, *[1] * (rows.ndim - 1))
    step = max(16, _AT_ONCE // max(1, width))  # what is at work stays in the cache
    for begin in range(0, count, step):
        end = min(begin + step, count)
        new = rows[first + begin : first + end]
        rows.take(a[begin:end], axis=0, out=new, mode="clip")
        change = rows.take(b[begin:end], axis=0)
        change -= new
        change *= weight[begin:end]
        new += change


def _pack(flags: NDArray[np.bool_]) -> Array:
    """The columns as bits of words, ``(rows, words)``."""
    octets = np.packbits(flags, axis=1, bitorder="little")
    width = octets.shape[1]
    size = min(8, 1 << (width - 1).bit_length())
    if width % size:
        wide = np.zeros((len(octets), -(-width // size) * size), dtype=np.uint8)
        wide[:, :width] = octets
        octets = wide
    return octets.view(f"u{size}")


def _bits(words: Array) -> tuple[Integers, Integers]:
    """Row and number of every bit that is set, sorted."""
    rows = np.flatnonzero(words if words.shape[1] == 1 else words.any(axis=1))
    octets = words.take(rows, axis=0).view(np.uint8)
    width = octets.shape[1]
    octets = octets.ravel()
    some = octets.nonzero()[0]
    bits = np.flatnonzero(np.unpackbits(octets.take(some), bitorder="little").view(bool))
    some = some.take(bits >> 3)
    row = some // width
    return rows.take(row), ((some - row * width) << 3) + (bits & 7)


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
