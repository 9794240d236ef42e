"""A network on a line: its breakpoints, the affine map between each two of them, and exact integrals along the line.

A probe is one input on the line. Its frozen pass gives every comparison of the network as an affine function of t, so that the
whole segment around the probe is known from two passes. What is left of the line are gaps, which are probed next, all in one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pwl_lib._trace import Model, Switch, per_sample, untouched
from pwl_lib._validation import check_count, check_floating
from pwl_lib._walk import DoubleTrace, Snapshot
from pwl_lib.piecewise_linear import AffinePiece, _flat, _jacobian, _refuse_offenders

__all__ = ["Segments", "integrate_along", "segments"]

_TOL = 1e-12
_SHORT = 1e-6  # of the line: what rounding may cut out of a segment, see `_assemble`
_MOST_COMPARISONS = 2**20  # in one batch: bounds the memory, and keeps it near the processor
_FEW_COMPARISONS = 2**15  # a batch of fewer takes no more time
_FIRST_PROBES = 16


class Segments:
    r"""A model on the line from ``start`` to ``end``, cut where a switch changes; made by :func:`segments`.

    On segment ``i``, for t between ``t[i]`` and ``t[i + 1]``, the model is ``slope[i] * t + offset[i]``, :eq:`eq-segments`.
    """

    def __init__(
        self, snapshot: Snapshot, start: Tensor, end: Tensor, t: Tensor, pattern: Tensor, slope: Tensor, offset: Tensor
    ) -> None:
        self._snapshot, self._pattern = snapshot, pattern
        self._inside = 0.0  # the largest comparison: what cancels inside of the model leaves an error of this scale
        self.start, self.end = start, end
        self.t = t
        """``(S + 1,)``: the breakpoints in order, 0 and 1 included."""
        self.slope = slope
        """``(S, m)``: the derivative by t, for flattened outputs."""
        self.offset = offset
        """``(S, m)``."""

    def __len__(self) -> int:
        return len(self.t) - 1

    @property
    def pattern(self) -> Tensor:
        """``(S, K) int64``: the code word inside each segment, as :func:`~pwl_lib.piecewise_linear.activation_pattern` has it."""
        return self._pattern.long()

    @property
    def midpoints(self) -> Tensor:
        """``(S, *input_shape)``: the input in the middle of each segment."""
        return self.input((self.t[1:] + self.t[:-1]) / 2)

    def _piece(self, rows: slice) -> AffinePiece:
        """``A`` and ``b`` of some segments, on the device of the model."""
        x = self.midpoints[rows].requires_grad_()
        with untouched(self._snapshot.model, x), self._snapshot.in_its_modes():
            trace = DoubleTrace(self._snapshot)
            with torch.enable_grad():
                A = _jacobian(_flat(trace.run(x)), x, trace.eps)
            with torch.no_grad():
                return AffinePiece(A, _flat(trace.replay(torch.zeros_like(x))))

    @cached_property
    def _pieces(self) -> AffinePiece:
        width = self._pattern.shape[1] + self.slope.shape[1] * self.start.numel()
        parts = [self._piece(rows) for rows in _chunks(len(self), width)]
        A, b = (torch.cat(matrices).cpu() for matrices in zip(*parts, strict=True))
        return AffinePiece(A, b)

    @property
    def A(self) -> Tensor:
        """``(S, m, n)``: the Jacobian of each segment in all directions. Computed when first asked for."""
        return self._pieces.A

    @property
    def b(self) -> Tensor:
        """``(S, m)``: with ``A``, the affine map of each segment on the whole input space."""
        return self._pieces.b

    @property
    def kinks(self) -> Tensor:
        """The breakpoints at which the map changes, 0 and 1 excluded.

        They part affine pieces; the others part activation patterns alone. Two slopes count as one if they differ by at most
        1e-10 of the largest slope or value that this output has along the line, or by what rounding inside of the model leaves.
        """
        if len(self) == 1:
            return self.t[1:1]
        scale = self.slope.abs().amax(0) + self(self.t).abs().amax(0)
        jump = (self.slope[1:] - self.slope[:-1]).abs()
        return self.t[1:-1][(jump > 1e-10 * scale + 1e-13 * self._inside).any(1)]

    def input(self, t: Tensor | float) -> Tensor:
        """The inputs ``start + t (end - start)``: ``(P,)`` gives ``(P, *input_shape)``, a number gives ``input_shape``."""
        return _on_line(self.start, self.end, torch.as_tensor(t, dtype=self.start.dtype, device=self.start.device))

    def __call__(self, t: Tensor | float) -> Tensor:
        """The output at ``t`` by the map of its segment: ``(P,)`` gives ``(P, m)``, a number gives ``(m,)``."""
        t = torch.as_tensor(t, dtype=self.t.dtype, device="cpu")
        if t.dim() > 1 or not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"t must be one number or a vector of numbers from 0 to 1, got {t!r}")
        segment = torch.searchsorted(self.t[1:-1].contiguous(), t)
        return self.slope[segment] * t[..., None] + self.offset[segment]

    def __repr__(self) -> str:
        n, m = self.start.numel(), self.slope.shape[1]
        return f"Segments({len(self)} activation segments, {len(self.kinks) + 1} affine pieces on a line, {n} -> {m})"


def segments(model: Model, start: Tensor, end: Tensor) -> Segments:
    r"""Every breakpoint of a model on the line from ``start`` to ``end``, and the affine map of each segment.

    .. math:: f(x_0 + t \, (x_1 - x_0)) = s_i t + o_i \quad \text{for } t_i \le t \le t_{i+1}

    which is :eq:`eq-segments`. At one input all switches are frozen, and each comparison that they make is then affine in t:
    the nearest root on either side ends the segment, exactly. The same two passes through the model give pattern, slope and offset.
    The parts of the line that are not known yet are probed next, so that every segment costs two rows of a batch.

    Args:
        model: a piecewise linear module or function, see :func:`~pwl_lib.piecewise_linear.is_piecewise_linear`. It is run in
            double precision whatever its dtype, in its current mode; a plain function is given a float64 input.
        start: ``(*input_shape)``, without a batch dimension, floating point, finite.
        end: the same shape, another input.

    Returns:
        A :class:`Segments` with ``t``, ``pattern``, ``slope``, ``offset``, ``kinks`` and lazily ``A`` and ``b``, in float64 on the
        CPU. It is a function of t, too. Its inputs are on the device of ``start``, where the model is run.

    At ties:
        A comparison that is a tie all along the line makes no breakpoint, and its switch takes the branch of
        :func:`~pwl_lib.piecewise_linear.activation_pattern`. Ties are meant up to rounding: 1e-12 of the largest comparison of the
        same switch. Breakpoints closer together than 1e-12, or than the rounding of the inputs on the line, are one.

    Raises:
        TypeError: ``start`` or ``end`` is not a floating point tensor; the model is not callable or does not return one tensor.
        ValueError: the model is not piecewise linear (each module that is not is named), the shapes differ, ``start`` equals
            ``end``, or one of them is not finite.

    Example:
        >>> line = segments(lambda x: torch.relu(x).sum(1), torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 1.0]))
        >>> line
        Segments(3 activation segments, 3 affine pieces on a line, 2 -> 1)
        >>> line.t.tolist(), line.slope.flatten().round(decimals=9).tolist()
        ([0.0, 0.5, 0.75, 1.0], [0.0, 2.0, 6.0])

    Source: the book, :eq:`eq-segments`.
    """
    start, end = _check_ends(start, end)
    snapshot = Snapshot(model)
    with untouched(snapshot.model, start), torch.no_grad():
        probe = _Probe(snapshot, start, end)
        line = Segments(snapshot, start, end, *_assemble(probe))
        line._inside = probe.inside
        _verify(line)
    return line


class _Probe:
    """Asks the model at places on the line: how far the segment around each reaches, and its pattern, slope and offset."""

    def __init__(self, snapshot: Snapshot, start: Tensor, end: Tensor) -> None:
        self.snapshot, self.start, self.end = snapshot, start, end
        self.rounding = torch.finfo(torch.float64).eps * float(torch.maximum(start.abs(), end.abs()).max())
        # No finer than the inputs on the line are rounded.
        self.tol = min(1e-3, max(_TOL, 16 * self.rounding / float((end - start).abs().max())))
        self.rows, self.at_least = _FIRST_PROBES, _FIRST_PROBES
        self.inside = 0.0

    def __call__(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, Tensor, Tensor, Tensor]:
        away, toward, *parts = zip(*map(self._ask, np.split(at, range(self.rows, len(at), self.rows))), strict=True)
        pattern, slope, offset = (torch.cat(part) for part in parts)
        return np.concatenate(away), np.concatenate(toward), pattern, slope, offset

    def _ask(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, Tensor, Tensor, Tensor]:
        t = torch.from_numpy(at).to(self.start.device)
        at_end = (t < 0.5).reshape(
            -1, *[1] * self.start.dim()
        )  # the farther end: the map is known well between two far points
        trace = DoubleTrace(self.snapshot)
        here = _flat(trace.run(_on_line(self.start, self.end, t)))
        _refuse_offenders(trace)
        switches = trace.switches
        there = _flat(trace.replay(torch.where(at_end, self.end, self.start)))
        if not bool(torch.isfinite(here).all() and torch.isfinite(there).all()):
            raise ValueError("model must give finite numbers on the line, got NaN or an infinity")
        step = at_end.reshape(-1).to(t) - t
        slope = (there - here) / step[:, None]
        offset = torch.where(at_end.reshape(-1, 1), here - t[:, None] * slope, there)
        least, most = torch.ones_like(t), torch.ones_like(t)
        for near, far in zip(switches, trace.switches, strict=True):
            margins = (per_sample(each.margin, len(at), each.path) for each in (near, far))
            lower, upper = self._ratios(*margins)
            least, most = torch.minimum(least, lower), torch.maximum(most, upper)
        pattern = self._pattern(switches, len(at))
        width = max(1, sum(switch.margin.numel() for switch in switches) // len(at), self.start.numel())
        self.rows, self.at_least = max(1, _MOST_COMPARISONS // width), min(256, _FEW_COMPARISONS // width)
        reach = step.abs() / torch.stack([most - 1, 1 - least])
        away, toward = reach.cpu().numpy()
        return away, toward, pattern.cpu(), slope.cpu(), offset.cpu()

    def _ratios(self, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest of the margins at the far end by those at the probe.

        Below 1 there is a root on this way, above 1 on the other.
        """
        if not near.numel():
            return near.new_ones(len(near)), near.new_ones(len(near))
        ratio = far / near
        smallest, largest = torch.aminmax(near)
        self.inside = max(self.inside, float(largest))
        tie = max(self.tol * float(largest), 4 * self.rounding)
        if float(smallest) <= tie:
            ratio = torch.where((near <= tie) & (far.abs() <= tie), 1.0, ratio)
        least, most = torch.aminmax(ratio, dim=1)
        if (
            float(smallest) == 0
        ):  # a probe on a breakpoint may stand for either side: it is left out, and others are asked around it
            on = ((near == 0) & (ratio != 1)).any(1)
            least, most = least.masked_fill(on, -math.inf), most.masked_fill(on, math.inf)
        return least, most

    def _pattern(self, switches: list[Switch], batch: int) -> Tensor:
        words = [per_sample(switch.choice, batch, switch.path) for switch in switches]
        most = max((switch.margin.numel() // max(1, switch.choice.numel()) for switch in switches), default=0)
        small = torch.uint8 if most < 256 else torch.int32
        return torch.cat(
            [torch.zeros(batch, 0, dtype=small, device=self.start.device), *(w.to(small) for w in words)], 1
        )


def _assemble(probe: _Probe) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probes until nothing of the line is left; returns t, pattern, slope and offset."""
    low, high = np.zeros(0), np.zeros(0)
    found: list[list[Tensor]] = []
    at = (np.arange(_FIRST_PROBES) + 0.4877) / _FIRST_PROBES  # ties are at round numbers
    gap_low, gap_high = np.zeros(len(at)), np.ones(len(at))
    while len(at):
        away, toward, *parts = probe(at)
        before, after = np.where(at < 0.5, [away, toward], [toward, away])
        new_low, new_high = np.maximum(at - before, gap_low), np.minimum(at + after, gap_high)
        # Of several probes in one segment the first is kept.
        kept = np.flatnonzero(np.concatenate([[True], at[1:] > new_high[:-1]]))
        new_low, new_high = new_low[kept], new_high[kept]
        new_low[1:] = np.maximum(new_low[1:], new_high[:-1])
        rows = torch.from_numpy(kept)
        found.append([part[rows] for part in parts])
        low, high = np.concatenate([low, new_low]), np.concatenate([high, new_high])
        gap_low, gap_high, at = _gaps(np.sort(low), np.sort(high), probe)
    order = np.argsort(low, kind="stable")
    order = order[high[order] - low[order] > probe.tol]  # a probe at a tie has no length
    low, high, rows = low[order], high[order], torch.from_numpy(order)
    pattern, slope, offset = (torch.cat(parts)[rows] for parts in zip(*found, strict=True))
    # The inputs of one pattern are convex: what lies between two pieces of it is of it too, or rounding at a breakpoint.
    noise = torch.zeros(len(low), dtype=torch.bool)
    noise[1:-1] = (pattern[2:] == pattern[:-2]).all(1) & torch.from_numpy(high - low < _SHORT)[1:-1]
    if bool(noise.any()):
        low, high = low[~noise.numpy()], high[~noise.numpy()]
        pattern, slope, offset = pattern[~noise], slope[~noise], offset[~noise]
    # Where rounding has cut a segment into two, they become one again.
    new = (pattern[1:] != pattern[:-1]).any(1)
    first = torch.cat([new.new_ones(1), new])
    inner = ((high[:-1] + low[1:]) / 2)[new.numpy()]
    t = torch.from_numpy(np.concatenate([[0.0], inner, [1.0]]))
    return t, pattern[first], slope[first], offset[first]


def _gaps(low: np.ndarray, high: np.ndarray, probe: _Probe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gaps between what is known, and places in them to look at next: several where many segments are to be expected."""
    gap_low, gap_high = np.concatenate([[0.0], high]), np.concatenate([low, [1.0]])
    length = gap_high - gap_low
    here = length > probe.tol
    gap_low, gap_high, length = gap_low[here], gap_high[here], length[here]
    typical = max(float((high - low).mean()), probe.tol)
    count = np.clip((length / (2 * typical)).astype(int), max(1, probe.at_least // max(1, len(length))), 64)
    gap = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(gap)) - np.repeat(np.cumsum(count) - count, count)
    at = gap_low[gap] + (place + 0.4877) / count[gap] * length[gap]
    return gap_low[gap], gap_high[gap], at


def _verify(line: Segments) -> None:
    """The maps must reproduce the model at some places, run in another batch than before."""
    t = (torch.arange(32, dtype=line.t.dtype) + 0.618) / 32
    trace = DoubleTrace(line._snapshot)
    value, expected = _flat(trace.run(line.input(t))).cpu(), line(t)
    scale = value.abs() + line.slope.abs().amax(0) + line.offset.abs().amax(0)
    error = (value - expected).abs()
    if not bool((error <= 1e-6 * (scale + line._inside)).all()):
        raise ValueError(
            "each output of the model must be a fixed function of its own sample; "
            f"here the maps of the segments miss the model's value by up to {error.max().item():.3g}"
        )


def _on_line(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    return torch.lerp(start, end, t.reshape(*t.shape, *[1] * start.dim()))


def _check_ends(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    for name, value in (("start", start), ("end", end)):
        check_floating(name, value)
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} must be finite, got NaN or an infinity")
    if start.shape != end.shape or start.numel() == 0:
        raise ValueError(
            f"end must have the shape of start, one input with at least one number; got {tuple(start.shape)} and {tuple(end.shape)}"
        )
    if start.device != end.device:
        raise ValueError(f"end must be on the device of start, {start.device}, got {end.device}")
    start, end = start.detach().double(), end.detach().double()
    if torch.equal(start, end):
        raise ValueError("end must differ from start, got the same input twice")
    return start, end


def integrate_along(
    model: Model,
    start: Tensor,
    end: Tensor,
    g: Literal["gradient"] | Callable[[Tensor, Tensor, Tensor], Tensor] = "gradient",
    *,
    output: int | None = None,
    order: int = 8,
) -> Tensor:
    r"""The exact integral along the line from ``start`` to ``end`` of what depends on the input and on its affine piece.

    Each segment carries one affine map, so that an integral is a finite sum, :eq:`eq-line-integral`. With ``g = "gradient"`` it is

    .. math:: (x_1 - x_0) \odot \int_0^1 \nabla f(x_0 + t (x_1 - x_0)) \, dt = (x_1 - x_0) \odot \sum_i (t_{i+1} - t_i) \, a_i ,

    the integrated gradients, whose entries sum to :math:`f(x_1) - f(x_0)` up to rounding.

    Args:
        model, start, end: as :func:`segments`.
        g: ``"gradient"``, or a function ``g(x, A, b)`` whose integral by t over [0, 1] is wanted. It is given P points ``x:
            (P, *input_shape)`` with the affine piece of each, ``A: (P, m, n)`` and ``b: (P, m)``, and returns ``(P, *shape)``.
        output: which of the flattened outputs is differentiated; needed if there are several, and by ``"gradient"`` alone.
        order: with a function, how many points of Gauss and Legendre a segment has. Where g is a polynomial of degree
            ``2 * order - 1`` in x the integral is exact.

    Returns:
        In float64: the shape of ``start`` for ``"gradient"``, and ``shape`` for a function.

    At ties:
        a switch that is a tie all along the line takes its branch of :func:`~pwl_lib.piecewise_linear.activation_pattern`. The sum
        of the integrated gradients does not depend on it, the single entries do.

    Raises:
        TypeError: as :func:`segments`; ``g`` is neither ``"gradient"`` nor a function, or does not return a tensor.
        ValueError: as :func:`segments`; ``output`` is missing, or is no output of the model; ``order`` is below 1; ``g`` does not
            return one value for each point.

    Example:
        >>> start, end = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0])
        >>> integrate_along(lambda x: torch.relu(x).sum(1), start, end).tolist()
        [1.0, 3.0]
        >>> squared_norm = integrate_along(lambda x: torch.relu(x).sum(1), start, end, lambda x, A, b: (A**2).sum((1, 2)))
        >>> round(squared_norm.item(), 9)  # of the gradient: 1 on the first half of the line, 2 on the second
        1.5

    Source: the book, :eq:`eq-line-integral`; integrated gradients: Sundararajan, Taly and Yan (2017).
    """
    line = segments(model, start, end)
    if not callable(g):
        if g != "gradient":
            raise TypeError(f"g must be 'gradient' or a function of x, A and b, got {g!r}")
        return _integrated_gradients(line, _which(output, line.slope.shape[1]))
    if output is not None:
        raise ValueError(f"output belongs to g='gradient', a function is given all outputs; got {output}")
    check_count("order", order, 1)
    nodes, weights = np.polynomial.legendre.leggauss(order)
    # On each segment, from -1 to 1; the weights of all points sum to 1.
    low, high = line.t[:-1, None], line.t[1:, None]
    t = (low + high) / 2 + (high - low) / 2 * torch.from_numpy(nodes).to(line.t)
    weight = (high - low) / 2 * torch.from_numpy(weights).to(line.t)
    parts = []
    for rows in _chunks(len(line), line._pattern.shape[1] + line.slope.shape[1] * line.start.numel() * order):
        x, piece = line.input(t[rows].flatten()), line._piece(rows)
        value = g(x, piece.A.repeat_interleave(order, 0), piece.b.repeat_interleave(order, 0))
        if not isinstance(value, Tensor):
            raise TypeError(f"g must return a tensor, got {type(value).__name__}")
        if value.dim() == 0 or len(value) != len(x):
            raise ValueError(f"g must return one value for each of the {len(x)} points, got shape {tuple(value.shape)}")
        parts.append(torch.tensordot(weight[rows].flatten().to(value.device), value.to(weight.dtype), dims=1))
    return torch.stack(parts).sum(0)


def _integrated_gradients(line: Segments, output: int) -> Tensor:
    total = torch.zeros_like(line.start)
    length = (line.t[1:] - line.t[:-1]).to(line.start.device)
    with untouched(line._snapshot.model, line.start), torch.enable_grad():
        for rows in _chunks(len(line), line._pattern.shape[1] + line.start.numel()):
            x = line.midpoints[rows].requires_grad_()
            y = _flat(DoubleTrace(line._snapshot).run(x))[:, output]
            if y.requires_grad:
                (gradient,) = torch.autograd.grad(y @ length[rows], x, allow_unused=True, materialize_grads=True)
                total += gradient.sum(0)
    return (line.end - line.start) * total


def _which(output: int | None, m: int) -> int:
    if output is None:
        if m != 1:
            raise ValueError(f"output must say which of the {m} outputs is differentiated, got None")
        return 0
    if not isinstance(output, int) or isinstance(output, bool):
        raise TypeError(f"output must be an int, got {type(output).__name__}")
    if not -m <= output < m:
        raise ValueError(f"output must be one of the {m} outputs, 0 to {m - 1}, got {output}")
    return output


def _chunks(count: int, width: int) -> Iterator[slice]:
    rows = max(1, _MOST_COMPARISONS // max(1, width))
    return (slice(first, first + rows) for first in range(0, count, rows))
