"""A piecewise linear network made smooth, with a bound on what that changes: what `pwl_lib.logsumexp.smooth` is made of.

torch.fx writes the model down as a graph. One walk along it does two things at every node: a switch is replaced by its smooth
one, and the gap of the node is found: an interval, for each channel, that contains the value in the smooth network minus the
value in the given one, whatever the input. The first half of this file has the smooth switches and the rules for their
gaps, the second half the affine operations and the walk.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import handle_torch_function, has_torch_function

from pwl_lib import logsumexp as lse  # which hands on the names below: loaded first, and only used when functions run
from pwl_lib._validation import check_number, check_positive

# --- the gap --------------------------------------------------------------------------------------

_UNIT = 2.0**-50  # eight roundings of float64
_TINY = 1e-300  # far above what all underflows of one rule can add up to


@dataclass(frozen=True)
class Gap:
    """Intervals ``[low, high]`` for the values in the smooth network minus those in the given one.

    Each contains 0: the inputs have no gap, and every rule keeps it so. What a rule adds up has therefore one sign, no digits cancel,
    and a sum of n terms in float64 is off by less than the factor by which `_widened` stretches it.
    """

    low: Tensor
    """``(C,)`` float64, at most 0: one for each channel, or one for all."""
    high: Tensor
    """``(C,)`` float64, at least 0."""
    dim: int = -1
    """Along which dimension the channels lie, counted from the end; of no meaning where there is one for all."""
    inner: bool = False
    """Whether each of the channels is repeated in a dimension that is longer, as those of flattened images are."""
    rank: int | None = None
    """How many dimensions the tensor has, where that is clear."""

    @property
    def is_zero(self) -> bool:
        return not bool(self.low.any()) and not bool(self.high.any())

    @property
    def is_uniform(self) -> bool:
        return len(self.low) == 1

    @property
    def size(self) -> float:
        return max(0.0, -float(self.low.min()), float(self.high.max()))

    def hull(self) -> Gap:
        """One interval for all entries: right after any rearrangement, and for any mean."""
        return Gap(self.low.amin()[None], self.high.amax()[None])

    def along(self, count: int) -> Gap:
        """The gap of each of ``count`` features in the last dimension."""
        channels = len(self.low)
        if self.is_uniform or self.dim != -1 or count % channels or not (self.inner or count == channels):
            gap = self.hull()
            return replace(gap, low=gap.low.expand(count), high=gap.high.expand(count))
        each = count // channels
        low, high = self.low.repeat_interleave(each), self.high.repeat_interleave(each)
        return replace(self, low=low, high=high, inner=False)

    def channels(self, count: int, spatial: int) -> Gap:
        """The gap of each of ``count`` channels before the last ``spatial`` dimensions."""
        if not self.is_uniform and self.dim == -1 - spatial and not self.inner and len(self.low) == count:
            return self
        gap = self.hull()
        return Gap(gap.low.expand(count), gap.high.expand(count), -1 - spatial, rank=spatial + 2)

    def second(self, count: int) -> Gap:
        """The gap of each of ``count`` channels in dimension 1, as batch norm and prelu have them; the hull where no rank is known."""
        if self.rank is None or self.rank < 2:
            return self.hull()
        gap = self.along(count) if self.rank == 2 else self.channels(count, self.rank - 2)
        return replace(gap, dim=1 - self.rank, rank=self.rank)

    def within_channels(self, spatial: int) -> Gap:
        """What remains known where entries of the last ``spatial`` dimensions are mixed."""
        return self if self.is_uniform or self.dim < -spatial else self.hull()

    def turned(self) -> Gap:
        return replace(self, low=-self.high, high=-self.low)


def _zero() -> Gap:
    return Gap(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))


def _widened(like: Gap, low: Tensor, high: Tensor, terms: int = 1, **words: Any) -> Gap:
    """Outwards by more than the rounding of ``terms`` terms of one sign; a gap that is exactly 0 stays so."""
    if not bool(low.any()) and not bool(high.any()) and like.is_zero:
        return replace(like, low=low, high=high, **words)
    stretch = 1 + (terms + 16) * _UNIT
    low, high = low * stretch - _TINY, high * stretch + _TINY
    # what overflows may become 0 * inf later: not a number is then no bound
    return replace(
        like, low=low.nan_to_num(-math.inf, neginf=-math.inf), high=high.nan_to_num(math.inf, math.inf), **words
    )


def _together(first: Gap, second: Gap) -> tuple[Gap, Gap]:
    """The two gaps with their channels side by side."""
    if first.is_uniform or second.is_uniform:
        like, other = (second, first) if first.is_uniform else (first, second)
        spread = replace(like, low=other.low.expand(len(like.low)), high=other.high.expand(len(like.high)))
        return (spread, like) if first.is_uniform else (like, spread)
    if first.dim == second.dim and first.inner == second.inner and len(first.low) == len(second.low):
        return first, second
    return first.hull(), second.hull()


def _softplus(x: Tensor, t: float) -> Tensor:
    """In float64, for any number: x plus ``ln(1 + e^(-t x)) / t`` where x is positive."""
    return x.clamp(min=0) + torch.log1p(torch.exp(-t * x.abs())) / t


def _lse(x: Tensor, t: float) -> Tensor:
    """In float64, over the first dimension."""
    largest = x.amax(0)
    return largest + torch.log(torch.exp(t * (x - largest)).sum(0)) / t


def _seen_as_one_call(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """To torch.fx, which traces a graph again when it is unpickled, the function is one call."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        tensors = (*args, *kwargs.values())
        if has_torch_function(tensors):
            return handle_torch_function(call, tensors, *args, **kwargs)
        return function(*args, **kwargs)

    return call


# --- the switches, smooth: the function, and the rule for its gap ---------------------------------


def _lse_over(input: Tensor, dim: int, t: float) -> Tensor:
    return lse.logsumexp(input, dim, temperature=t)


@_seen_as_one_call
def smooth_relu(input: Tensor, *, temperature: float) -> Tensor:
    """``LSE_t(0, x)``."""
    if not 1e-30 < temperature < 1e30:  # float32 cannot hold it
        return _lse_over(torch.stack((torch.zeros_like(input), input), -1), -1, temperature)
    # torch's softplus is this function, and a hundred times faster; from t x = 40 on the two are equal in every dtype.
    return F.softplus(input, temperature, 40.0)


def _relu_gap(t: float, gap: Gap) -> Gap:
    return _widened(gap, gap.low, _softplus(gap.high, t))


@_seen_as_one_call
def smooth_leaky_relu(input: Tensor, slope: Tensor | float, *, temperature: float) -> Tensor:
    """Slopes 1 and ``slope``: the smooth maximum of the lines where that is at most 1, the smooth minimum where it is above."""
    if isinstance(slope, Tensor) and slope.numel() > 1:
        slope = slope.reshape(-1, *(1,) * (input.dim() - 2))  # of prelu: one for each channel
    sign = torch.where(slope <= 1, 1, -1) if isinstance(slope, Tensor) else 1 if slope <= 1 else -1
    x = sign * input
    other = slope * x
    ahead = (1 - slope) * x
    # Both forms are LSE_t(x, other), and each is exact where the other one would lose digits.
    first = x + smooth_relu(-ahead, temperature=temperature)
    second = other + smooth_relu(ahead, temperature=temperature)
    return sign * torch.where(ahead > 0, first, second)


def _leaky_relu_gap(t: float, gap: Gap, slope: Tensor | float) -> Gap:
    """The maximum of the lines e and slope e, over the ends e of the gap, and the least of all four; turned where it is concave."""
    slope = _constant(slope)

    def convex(gap: Gap) -> tuple[Tensor, Tensor]:
        ends = torch.stack((gap.low, gap.high))
        lines = torch.stack((ends, slope * ends))
        # The larger of the two ends has lines of which the larger is not negative: no digits cancel there.
        return lines.amin((0, 1)), _lse(lines, t).amax(0)

    low, high = convex(gap)
    turned_low, turned_high = convex(gap.turned())
    side = slope <= 1
    return _widened(gap, torch.where(side, low, -turned_high), torch.where(side, high, -turned_low))


def _prelu_gap(t: float, gap: Gap, weight: Tensor) -> Gap:
    slope = _constant(weight).flatten()
    if len(slope) == 1:
        return _leaky_relu_gap(t, gap, slope)
    gap = gap.second(len(slope))
    every = replace(gap, low=gap.low.expand(len(slope)), high=gap.high.expand(len(slope)))
    result = _leaky_relu_gap(t, every, slope)
    return result.hull() if gap.rank is None else result


@_seen_as_one_call
def smooth_clamp(input: Tensor, min: float | None, max: float | None, *, temperature: float) -> Tensor:
    """``a + LSE_t(0, x - a) - LSE_t(0, x - b)``, or the one of the two that there is."""
    low, high = _bounds(min, max)
    if low == high:
        return torch.full_like(input, low)
    if high == math.inf:
        return input if low == -math.inf else low + smooth_relu(input - low, temperature=temperature)
    if low == -math.inf:
        return high - smooth_relu(high - input, temperature=temperature)
    # Below the middle the ReLUs are small and are subtracted; above it the same is done from the other end.
    above = input > (low + high) / 2
    x = torch.where(above, low + high - input, input)
    y = smooth_relu(x - low, temperature=temperature) - smooth_relu(x - high, temperature=temperature)
    return torch.where(above, high - y, low + y)


def _clamp_gap(t: float, gap: Gap, min: float | None, max: float | None) -> Gap:
    low, high = _bounds(min, max)
    if low == high:
        return replace(gap, low=torch.zeros_like(gap.low), high=torch.zeros_like(gap.high))
    if high == math.inf:
        return gap if low == -math.inf else _relu_gap(t, gap)
    if low == -math.inf:
        return _relu_gap(t, gap.turned()).turned()
    return _widened(gap, -_rise(-gap.low, high - low, t), _rise(gap.high, high - low, t))


def _rise(x: Tensor, width: float, t: float) -> Tensor:
    """``softplus(x) - softplus(x - width)`` for x >= 0, without cancellation."""
    least = x.clamp(max=width)
    share = -math.expm1(-t * width) / (1 + torch.exp(-t * (x - width).abs()))
    small = torch.log1p(share * torch.exp((t * least).clamp(max=1))) / t
    return torch.where(t * least <= 1, small, least + torch.log(torch.exp(-t * least) + share) / t)


def _bounds(low: Any, high: Any) -> tuple[float, float]:
    for bound in (low, high):
        if bound is not None and not isinstance(bound, (int, float)):
            raise _Unknown("with a bound that is not a number")
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    if not low <= high:
        raise _Unknown("with a lower bound above the upper one")
    if low == math.inf or high == -math.inf:
        raise _Unknown("with bounds that are not finite")
    return low, high


@_seen_as_one_call
def smooth_maximum(input: Tensor, other: Tensor, sign: int, *, temperature: float) -> Tensor:
    """Of the two; with sign -1 their minimum."""
    both = torch.stack(torch.broadcast_tensors(sign * input, sign * other), -1)
    return sign * _lse_over(both, -1, temperature)


def _maximum_gap(t: float, gap: Any, other: Any, sign: int) -> Gap:
    if not all(isinstance(each, (Gap, Tensor, _Free)) for each in (gap, other)):
        raise _Unknown("over a dimension; give it two tensors")
    gaps = (each if isinstance(each, Gap) else _zero() for each in (gap, other))
    first, second = _together(*(each if sign > 0 else each.turned() for each in gaps))
    low = torch.minimum(first.low, second.low)
    largest = _widened(first, low, _lse(torch.stack((first.high, second.high)), t))
    return largest if sign > 0 else largest.turned()


@_seen_as_one_call
def smooth_max_pool(input: Tensor, spatial: int, *words: Any, temperature: float) -> Tensor:
    if spatial == 2:
        return lse.lse_pool2d(input, *words[:5], temperature)  # type: ignore[call-arg]
    kernel, steps, *others = ((word[0] if isinstance(word, (tuple, list)) else word) for word in words[:4])
    shape = (1, kernel), (1, steps or kernel), (0, others[0]), (1, others[1])
    return lse.lse_pool2d(input.unsqueeze(-2), *shape, words[4], temperature=temperature).squeeze(-2)


def _max_pool_gap(t: float, gap: Gap, spatial: int, kernel_size: Any, *words: Any) -> Gap:
    if words[-1]:
        raise _Unknown("that returns the places of the winners, which jump")
    gap = gap.within_channels(spatial)
    return _widened(gap, gap.low, gap.high + math.log(_pixels(kernel_size, spatial)) / t)


@_seen_as_one_call
def smooth_maxout(
    input: Tensor, weight: Tensor, bias: Tensor | None, pieces: int, *words: Any, temperature: float
) -> Tensor:
    """Of a linear layer, and of images with the other words of a convolution."""
    z = F.conv2d(input, weight, bias, *words) if words else F.linear(input, weight, bias)
    dim = -3 if words else -1
    return _lse_over(z.unflatten(dim, (-1, pieces)), dim, temperature)


def _maxout_gap(t: float, gap: Gap, weight: Tensor, bias: Tensor | None, pieces: int, *words: Any) -> Gap:
    """Each unit takes the gaps of its own pieces."""
    gap = _convolution(gap, weight, bias, *words) if words else _linear(gap, weight, bias)
    low, high = (each.reshape(-1, pieces).T for each in (gap.low, gap.high))
    return _widened(gap, low.amin(0), _lse(high, t), pieces)


class _Switch(NamedTuple):
    smooth: Callable[..., Tensor]
    gap: Callable[..., Gap]
    words: Callable[..., tuple[Any, ...]]
    """From the arguments under which the switch is known to those of the two functions."""


def _pool_words(
    spatial: int, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False, *, ties: str = "row-major",
) -> tuple[Any, ...]:  # fmt: skip
    return input, spatial, kernel_size, stride, padding, dilation, ceil_mode, return_indices


_CLAMP = smooth_clamp, _clamp_gap
_LEAKY_RELU = smooth_leaky_relu, _leaky_relu_gap
_MAXIMUM = smooth_maximum, _maximum_gap
_MAXOUT = smooth_maxout, _maxout_gap
_SWITCHES: dict[str, _Switch] = {
    "relu": _Switch(smooth_relu, _relu_gap, lambda input, inplace=False, *, slope_at_zero=0.0: (input,)),
    "leaky_relu": _Switch(*_LEAKY_RELU, lambda input, negative_slope=0.01, inplace=False: (input, float(negative_slope))),
    **dict.fromkeys(("abs", "absolute"), _Switch(*_LEAKY_RELU, lambda input: (input, -1.0))),
    "prelu": _Switch(smooth_leaky_relu, _prelu_gap, lambda input, weight: (input, weight)),
    **dict.fromkeys(("clamp", "clip"), _Switch(*_CLAMP, lambda input, min=None, max=None: (input, min, max))),
    "clamp_min": _Switch(*_CLAMP, lambda input, min: (input, min, None)),
    "clamp_max": _Switch(*_CLAMP, lambda input, max: (input, None, max)),
    "hardtanh": _Switch(*_CLAMP, lambda input, min_val=-1.0, max_val=1.0, inplace=False: (input, min_val, max_val)),
    "relu6": _Switch(*_CLAMP, lambda input, inplace=False: (input, 0.0, 6.0)),
    **dict.fromkeys(("maximum", "max"), _Switch(*_MAXIMUM, lambda input, other=None: (input, other, 1))),
    **dict.fromkeys(("minimum", "min"), _Switch(*_MAXIMUM, lambda input, other=None: (input, other, -1))),
    "max_pool1d": _Switch(smooth_max_pool, _max_pool_gap, functools.partial(_pool_words, 1)),
    "max_pool2d": _Switch(smooth_max_pool, _max_pool_gap, functools.partial(_pool_words, 2)),
    "maxout": _Switch(*_MAXOUT, lambda input, weight, bias, pieces: (input, weight, bias, pieces)),
    "maxout2d": _Switch(
        *_MAXOUT,
        lambda input, weight, bias, pieces, stride=1, padding=0, dilation=1, groups=1:
            (input, weight, bias, pieces, stride, padding, dilation, groups),
    ),
}  # fmt: skip


class SmoothSwitch(nn.Module):
    """A switch of a network made smooth: a function of the input, of parameters under their old names, and of other words."""

    def __init__(
        self, name: str, parameters: dict[str, nn.Parameter | None], words: dict[str, Any], temperature: float
    ) -> None:
        super().__init__()
        self.name = name
        self.words = words
        self.temperature = temperature
        for key, parameter in parameters.items():
            self.register_parameter(key, parameter)

    def forward(self, input: Tensor) -> Tensor:
        switch = _SWITCHES[self.name]
        return switch.smooth(*switch.words(input, **self._parameters, **self.words), temperature=self.temperature)

    def extra_repr(self) -> str:
        words = {**self.words, "temperature": self.temperature}
        return ", ".join([self.name, *(f"{key}={value}" for key, value in words.items())])


# --- what is affine: the rules for the gap --------------------------------------------------------


class _Unknown(Exception):
    """Raised by a rule: this use of an operation is not one that it knows; the message says which."""


class _Free:
    """A value that is the same in both networks, since it depends on shapes alone, and is not known before they run."""


FREE = _Free()


def _constant(value: Any) -> Tensor:
    """A number, or a tensor that does not depend on the input, in float64."""
    if not isinstance(value, (int, float, Tensor)):
        raise _Unknown("with a factor or parameter that depends on the input or is not known before it is run")
    tensor = torch.as_tensor(value).detach()
    if tensor.is_complex():
        raise _Unknown("with complex numbers")
    tensor = tensor.to("cpu", torch.float64)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError("parameters of the model must be finite, got NaN or an infinity")
    return tensor


def _linear(gap: Gap, weight: Tensor, bias: Any = None) -> Gap:
    """Each weight takes the end of the interval that its sign picks. The bias is the same in both networks."""
    matrix = _constant(weight)
    if matrix.dim() != 2:
        raise _Unknown("with a weight that is not a matrix")
    gap = gap.along(matrix.shape[1])
    return _matrix_times(gap, matrix.clamp(min=0)[None], matrix.clamp(max=0)[None], matrix.shape[1], dim=-1)


def _convolution(
    gap: Gap, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Gap:
    """As a matrix, over all places of the window; a place in the padding has no gap, and 0 lies in every interval."""
    kernel = _constant(weight)
    spatial = kernel.dim() - 2
    gap = gap.channels(kernel.shape[1] * groups, spatial)
    positive, negative = (
        part.flatten(2).sum(2).reshape(groups, -1, kernel.shape[1])
        for part in (kernel.clamp(min=0), kernel.clamp(max=0))
    )
    return _matrix_times(gap, positive, negative, kernel[0].numel(), dim=-1 - spatial, rank=spatial + 2)


def _matrix_times(gap: Gap, positive: Tensor, negative: Tensor, terms: int, **words: Any) -> Gap:
    """``(groups, out, in)`` matrices of one sign each, times the channels of each group."""
    low, high = (each.reshape(len(positive), -1, 1) for each in (gap.low, gap.high))
    lower, upper = positive @ low + negative @ high, positive @ high + negative @ low
    return _widened(gap, lower.flatten(), upper.flatten(), 2 * terms, inner=False, **words)


def _matmul(input: Any, other: Any) -> Gap:
    if not (isinstance(input, Gap) and isinstance(other, Tensor)):
        raise _Unknown("other than by a constant matrix from the right")
    return _linear(input, other.mT if other.dim() > 1 else other)


def _times(gap: Gap, factor: Tensor) -> Gap:
    """``factor`` holds one number, or one for each channel."""
    ends = torch.stack((gap.low * factor, gap.high * factor))
    return _widened(gap, ends.amin(0), ends.amax(0))


def _mul(input: Any, other: Any) -> Gap:
    if isinstance(input, Gap) and isinstance(other, Gap):
        raise _Unknown("of two tensors that depend on the input")
    gap, factor = (input, _constant(other)) if isinstance(input, Gap) else (other, _constant(input))
    if factor.numel() == 0:
        raise _Unknown("by an empty tensor")
    if factor.numel() == 1:
        return _times(gap, factor.reshape(1))
    channels = len(gap.low)
    if channels == factor.numel() and not gap.inner and -gap.dim <= factor.dim() and factor.shape[gap.dim] == channels:
        return _times(gap, factor.flatten())
    gap = gap.hull()
    ends = torch.stack((factor.amin(), factor.amax()))
    return _times(replace(gap, low=gap.low.expand(2), high=gap.high.expand(2)), ends).hull()


def _div(input: Any, other: Any) -> Gap:
    if not isinstance(input, Gap):
        raise _Unknown("by a tensor that depends on the input")
    divisor = _constant(other)
    if not bool(divisor.all()):
        raise _Unknown("by 0")
    return _mul(input, 1 / divisor)


def _add(input: Any, other: Any) -> Gap:
    if isinstance(input, Gap) and isinstance(other, Gap):
        input, other = _together(input, other)
        return _widened(input, input.low + other.low, input.high + other.high)
    gap, constant = (input, other) if isinstance(input, Gap) else (other, input)
    if not isinstance(constant, _Free):
        _constant(constant)  # is finite, and cancels
    return gap


def _sub(input: Any, other: Any) -> Gap:
    return _add(input, other.turned() if isinstance(other, Gap) else other)


def _batch_norm(
    gap: Gap, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Gap:  # fmt: skip
    if training or running_var is None:
        raise _Unknown("with the mean and the deviation of the batch; call model.eval() first")
    scale = 1 / torch.sqrt(_constant(running_var) + eps)
    if not bool(torch.isfinite(scale).all()):
        raise _Unknown("with a variance that is not positive")
    scale = scale if weight is None else scale * _constant(weight)
    gap = gap.second(len(scale))
    return _mul(gap, scale) if gap.rank is None else _times(gap, scale)


def _dropout(gap: Gap, p: float = 0.5, training: bool = True, inplace: bool = False) -> Gap:
    if training and p > 0:
        raise _Unknown("in training mode, which is random; call model.eval() first")
    return gap


def _average_pool(
    spatial: int, gap: Gap, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Gap:  # fmt: skip
    gap = gap.within_channels(spatial)
    if divisor_override is None:
        return gap  # a mean of entries and zeros, each of them in the interval
    return _times(gap, torch.tensor([_pixels(kernel_size, spatial) / divisor_override], dtype=torch.float64))


def _pixels(kernel_size: Any, spatial: int) -> int:
    sizes = tuple(kernel_size) if isinstance(kernel_size, (tuple, list)) else (kernel_size,) * spatial
    if not all(isinstance(size, int) for size in sizes):
        raise _Unknown("with a window whose size is not known before it is run")
    return math.prod(sizes * spatial if len(sizes) == 1 else sizes)


def _cat(tensors: Sequence[Any], dim: int = 0) -> Gap:
    parts = [tensors] if isinstance(tensors, Gap) else tensors
    gaps = [part for part in parts if isinstance(part, Gap)]
    ranks = {gap.rank for gap in gaps} - {None}
    hulls = [gap.hull() for gap in gaps]
    low, high = torch.cat([gap.low for gap in hulls]), torch.cat([gap.high for gap in hulls])
    hull = replace(Gap(low, high).hull(), rank=ranks.pop() if len(ranks) == 1 else None)
    first = gaps[0]
    if len(gaps) < len(parts) or any(gap.is_uniform or gap.dim != first.dim or gap.inner for gap in gaps):
        return hull
    if dim != first.dim and (hull.rank is None or dim != hull.rank + first.dim):
        return hull
    return replace(first, low=torch.cat([gap.low for gap in gaps]), high=torch.cat([gap.high for gap in gaps]))


def _mean(gap: Gap, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Gap:
    dims = (dim,) if isinstance(dim, int) else dim
    if gap.is_uniform or not dims or gap.inner:  # no dimension, or an empty list of them, is all of them
        return gap.hull()
    if any(each >= 0 for each in dims) and gap.rank is None:
        return gap.hull()
    gone = {each if each < 0 else each - gap.rank for each in dims}  # type: ignore[operator]
    if gap.dim in gone:
        return gap.hull()
    if keepdim:
        return gap
    after = sum(each > gap.dim for each in gone)
    return replace(gap, dim=gap.dim + after, rank=None if gap.rank is None else gap.rank - len(gone))


def _flatten(gap: Gap, start_dim: int = 0, end_dim: int = -1) -> Gap:
    if gap.is_uniform:
        return replace(gap, rank=2 if (start_dim, end_dim) == (1, -1) else None)
    if end_dim != -1 and (gap.rank is None or end_dim != gap.rank - 1):
        return gap.hull()
    if start_dim == 1 and gap.rank is not None and gap.dim == 1 - gap.rank:
        return gap if gap.dim == -1 else replace(gap, dim=-1, inner=True, rank=2)
    start = start_dim if start_dim < 0 else start_dim - gap.rank if gap.rank is not None else None
    if start is not None and gap.dim < start:  # what is flattened lies behind the channels
        return replace(gap, dim=gap.dim - start - 1, rank=None if gap.rank is None else gap.rank + start + 1)
    return gap.hull()


def _reshape(gap: Gap, *shape: Any) -> Gap:
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    if not all(isinstance(size, (int, _Free)) for size in shape):
        raise _Unknown("into another dtype")
    # That the first dimension stays the batch is seen to when the network runs, see `expect_shape`.
    flat = _flatten(gap, 1)
    return flat if len(shape) == 2 and flat.rank == 2 else gap.hull()


def _padded(gap: Gap, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Gap:
    _constant(value or 0.0)  # is finite
    return gap.within_channels(len(pad) // 2)


def _converted(gap: Gap, *words: Any, **others: Any) -> Gap:
    for word in (*words, *others.values()):
        real = word.is_floating_point if isinstance(word, torch.dtype) else isinstance(word, (torch.device, str, bool))
        if not real:
            raise _Unknown("by arguments that are not a floating point dtype or a device")
    return gap


_AFFINE: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "__matmul__", "mm"), _matmul),
    **dict.fromkeys(("conv1d", "conv2d"), _convolution),
    "batch_norm": _batch_norm,
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), _dropout),
    **{f"avg_pool{d}d": functools.partial(_average_pool, d) for d in (1, 2)},
    "adaptive_avg_pool2d": lambda gap, output_size: gap.within_channels(2),
    **dict.fromkeys(("add", "iadd"), _add),
    **dict.fromkeys(("sub", "isub", "subtract"), _sub),
    **dict.fromkeys(("mul", "imul", "multiply"), _mul),
    **dict.fromkeys(("truediv", "itruediv", "div", "divide", "true_divide"), _div),
    **dict.fromkeys(("neg", "negative"), Gap.turned),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "mean": _mean,
    "flatten": _flatten,
    **dict.fromkeys(("view", "reshape"), _reshape),
    **dict.fromkeys(
        ("permute transpose t squeeze unsqueeze unflatten expand repeat chunk split unbind flip movedim narrow select "
         "index_select getitem").split(), lambda gap, *words, **others: gap.hull()
    ),
    **dict.fromkeys(("contiguous", "clone", "identity", "float", "double", "detach"), lambda gap, *words, **others: gap),
    "to": _converted,
    "pad": _padded,
}  # fmt: skip

# Rules that ask how many dimensions there are, or which of them is the batch.
_RANKED = frozenset({"batch_norm", "prelu", "flatten", "view", "reshape", "mean", "cat", "concat", "concatenate"})
_OF_TWO = frozenset({_add, _sub, _mul, _div, _matmul, _cat, _MAXIMUM[0]})
_IN_PLACE = frozenset({"iadd", "isub", "imul", "itruediv"})
_VIEWS = frozenset(
    "flatten view reshape permute transpose t squeeze unsqueeze unflatten expand chunk split unbind movedim narrow select "
    "contiguous identity float double to detach getitem dropout dropout1d dropout2d dropout3d expect_shape".split()
)
_FROM_SHAPES = frozenset(
    "size dim numel zeros ones arange zeros_like ones_like new_zeros new_ones getitem add sub mul floordiv truediv mod neg".split()
)
_SHAPES = frozenset({"shape", "ndim", "dtype", "device"})

# Modules of torch and of this library that are taken as they are: the function, the parameters, and the other words.
_POOL_WORDS = "kernel_size stride padding dilation ceil_mode return_indices"
_MODULES: dict[str, tuple[str, str, str]] = {
    "ReLU": ("relu", "", ""),
    "LeakyReLU": ("leaky_relu", "", "negative_slope"),
    "PReLU": ("prelu", "weight", ""),
    "Absolute": ("abs", "", ""),
    "Hardtanh": ("hardtanh", "", "min_val max_val"),
    "ReLU6": ("relu6", "", ""),
    "MaxPool1d": ("max_pool1d", "", _POOL_WORDS),
    "MaxPool2d": ("max_pool2d", "", _POOL_WORDS),
    "Maxout": ("maxout", "weight bias", "pieces"),
    "Maxout2d": ("maxout2d", "weight bias", "pieces stride padding dilation groups"),
    "Linear": ("linear", "weight bias", ""),
    "Flatten": ("flatten", "", "start_dim end_dim"),
    "Unflatten": ("unflatten", "", ""),
    "Identity": ("identity", "", ""),
    "Dropout": ("dropout", "", "p training"),
    "AvgPool1d": ("avg_pool1d", "", "kernel_size"),
    "AvgPool2d": ("avg_pool2d", "", "kernel_size divisor_override"),
    "AdaptiveAvgPool2d": ("adaptive_avg_pool2d", "", "output_size"),
    **{f"Conv{d}d": (f"conv{d}d", "weight bias", "groups") for d in (1, 2)},
    **{f"BatchNorm{d}d": ("batch_norm", "running_mean running_var weight bias", "training eps") for d in (1, 2)},
    **{f"Dropout{d}d": ("dropout", "", "p training") for d in (1, 2, 3)},
}


@_seen_as_one_call
def expect_shape(input: Tensor, rank: int | None, sizes: Sequence[int] = ()) -> Tensor:
    """The input, once it is seen to have the batch as its first dimension, and to keep it there, as the bound takes for granted."""
    if rank is not None and input.dim() != rank:
        wanted = f"a tensor of {rank} dimensions here, the first of them the batch"
        raise ValueError(f"the bound of this network is for {wanted}, got shape {tuple(input.shape)}")
    if sizes:
        rows = input.numel() // sizes[1] if sizes[0] == -1 else sizes[0]
        if rows != input.shape[0]:
            wanted = f"one row for each of the {input.shape[0]} samples here"
            got = f"{rows} rows of a tensor of shape {tuple(input.shape)}"
            raise ValueError(f"the bound of this network is for {wanted}, got {got}")
    return input


# --- the walk -------------------------------------------------------------------------------------


class _Untyped:
    """Traced code does not see what a tensor or a size is. Code that asks would go another way than at a run, so it may not."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # what `isinstance` asks for
        asks = sys._getframe(1)
        inside = str(asks.f_globals.get("__name__")).startswith("torch") and asks.f_code.co_name != "is_tensor"
        # torch's code in C asks in the name of its caller, which may not ask itself
        if inside or not {"isinstance", "__class__"} & set(asks.f_code.co_names):
            return type(self)
        raise TypeError("its code asks for the type of a tensor or of a size, which is not known when it is traced")


class _Attribute(_Untyped, fx.proxy.Attribute):
    pass


def _in_place(operation: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", operation, (self, other), {})


class _Proxy(_Untyped, fx.Proxy):
    """Keeps `x += y` apart from `x = x + y`, since it changes what other names see."""

    __iadd__ = _in_place(operator.iadd)
    __isub__ = _in_place(operator.isub)
    __imul__ = _in_place(operator.imul)
    __itruediv__ = _in_place(operator.itruediv)

    def __getattr__(self, name: str) -> Any:
        if not hasattr(Tensor, name):
            raise AttributeError(f"'Tensor' object has no attribute '{name}'")
        return _Attribute(self, name)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_known(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Arguments that have defaults are left at them, since code may branch on them; the copy does not take them."""
        words = list(inspect.signature(root_fn).parameters.values())[1:]
        names = [word.name for word in words if word.kind <= word.POSITIONAL_OR_KEYWORD and word.default is word.empty]
        if not names:
            raise TypeError("its forward has no argument that must be given")
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]


def _is_known(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__module__.startswith(("torch.nn.modules.", "pwl_lib.")) and kind.__name__ in _MODULES


def _where(path: str, kind: type) -> str:
    return f"module '{path}' ({kind.__name__})" if path else f"the model ({kind.__name__})"


def _trace(root: nn.Module) -> fx.Graph:
    """The graph of a module. Constants that its code makes become attributes of the module."""
    tracer = _Tracer()
    try:
        with torch.enable_grad():  # code may ask, and this is the answer that most runs give
            return tracer.trace(root)
    except Exception as error:
        where = _where(*next(reversed(tracer.module_stack.values()), ("", type(root))))
        raise TypeError(f"model must be a module that torch.fx can trace, but {where} stops it: {error}") from error


class _Walk:
    """One walk along the graph: what each node is, and which switches are to be replaced."""

    def __init__(self, root: nn.Module, graph: fx.Graph, temperature: float) -> None:
        self.root = root
        self.graph = graph
        self.temperature = temperature
        self.values: dict[fx.Node, Any] = {}
        self.smooth: dict[str, nn.Module] = {}

    def run(self) -> float:
        """The largest gap of any output."""
        for node in list(self.graph.nodes):
            if node.op != "output":
                self.values[node] = self.visit(node)
        gaps = [value for value in self.inputs(node) if isinstance(value, Gap)]
        return max((gap.size for gap in gaps), default=0.0)

    def inputs(self, node: fx.Node) -> list[Any]:
        return [self.values[each] for each in node.all_input_nodes]

    def visit(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return _zero()
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.root)
            if issubclass(type(value), fx.Proxy):
                path, _, name = str(node.target).rpartition(".")
                where = _where(path, type(self.root.get_submodule(path)))
                raise TypeError(f"model must keep no state, but {where} assigns to its buffer {name} when it runs")
            return value
        try:
            if node.op == "call_module":
                return self.visit_module(node)
            return self.visit_function(node)
        except _Unknown as reason:
            raise TypeError(f"{self.refusal(node)} {reason}".rstrip()) from None
        except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError) as error:
            raise TypeError(f"{self.refusal(node)} with arguments that are not known here ({error})") from error

    def refusal(self, node: fx.Node) -> str:
        path, kind = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("", type(self.root)))
        if node.op == "call_module":
            path, kind = str(node.target), type(self.root.get_submodule(str(node.target)))
        applied = _name(self.root, node)
        grows = applied.lower().replace("_", "").startswith(("adaptivemaxpool", "amax", "amin"))
        hint = ", whose gap grows with the size of its input; use MaxPool2d with the size of the image" if grows else ""
        known = "model must be made of affine maps and of switches that smooth knows"
        return f"{known}; {_where(path, kind)} applies {applied}{hint}"

    def visit_module(self, node: fx.Node) -> Any:
        module = self.root.get_submodule(str(node.target))
        if not _is_known(module):
            raise _Unknown()
        name, parameters, words = _MODULES[type(module).__name__]
        given = {key: getattr(module, key) for key in (*parameters.split(), *words.split())}
        if len(node.args) != 1 or node.kwargs:
            raise _Unknown("to something else than one tensor")
        if getattr(module, "inplace", False):
            self.check_alone(node)
        result = self.apply(name, node, (self.values[node.args[0]],), given)  # type: ignore[index]
        if name == "max_pool2d":
            given.pop("return_indices")
            self.smooth[str(node.target)] = lse.LSEPool2d(**given, temperature=self.temperature)
        elif name in _SWITCHES:
            own = {key: given.pop(key) for key in parameters.split()}
            self.smooth[str(node.target)] = SmoothSwitch(name, own, given, self.temperature)
        return result

    def visit_function(self, node: fx.Node) -> Any:
        target = node.target
        name = _name(self.root, node)
        home = None if isinstance(target, str) else getattr(target, "__module__", None)
        if home is not None and home.partition(".")[0] not in ("torch", "_operator", "builtins", "pwl_lib"):
            raise _Unknown("which is no function of torch or of pwl_lib")
        base = name if name.startswith("__") else name.rstrip("_")
        in_place = name in _IN_PLACE or base != name
        inputs = self.inputs(node)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        if name == "getattr" and args[1] in _SHAPES:
            return FREE
        if name in ("size", "dim", "numel", "zeros_like", "ones_like", "new_zeros", "new_ones"):
            return FREE
        if not any(isinstance(value, Gap) for value in inputs):
            return self.visit_constant(node, base, in_place, inputs, args, kwargs)
        if "input" in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop("input"), *args)
        if base not in _SWITCHES and base not in _AFFINE:
            raise _Unknown()
        result = self.apply(base, node, args, kwargs)
        if in_place:
            self.check_alone(node)
        if base in _SWITCHES:
            switch = _SWITCHES[base]
            node.op, node.target = "call_function", switch.smooth
            node.args, node.kwargs = switch.words(*node.args, **node.kwargs), {"temperature": self.temperature}
        return result

    def visit_constant(
        self, node: fx.Node, base: str, in_place: bool, inputs: list[Any], args: Any, kwargs: Any
    ) -> Any:
        free = [isinstance(value, _Free) for value in inputs]
        if in_place and not all(free):
            raise _Unknown("in place to what does not depend on the input")
        if any(free):
            if base not in _FROM_SHAPES and base not in _IN_PLACE:
                raise _Unknown("to shapes")
            return FREE
        if node.op == "call_method":
            return getattr(args[0], base)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def apply(self, base: str, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The rule of an operation. Where it asks for the dimensions of its input, these are seen to when the network runs."""
        switch = _SWITCHES.get(base)
        try:
            bound = inspect.signature(switch.words if switch else _AFFINE[base]).bind(*args, **kwargs)
        except TypeError as error:
            raise _Unknown(f"with arguments that are not known here ({error})") from None
        leaves: list[Any] = []
        fx.node.map_aggregate((bound.args, bound.kwargs), leaves.append)
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                _constant(leaf)  # is finite
        if (switch.smooth if switch else _AFFINE[base]) not in _OF_TWO:
            if not isinstance(bound.args[0], Gap):
                raise _Unknown("to something that does not depend on the input")
            if sum(isinstance(leaf, Gap) for leaf in leaves) > 1:
                raise _Unknown("with an argument, beside the first, that depends on the input")
        if bound.arguments.get("inplace"):
            self.check_alone(node)
        if base in _RANKED:
            self.assume(base, node, bound.arguments)
        if switch:
            return switch.gap(self.temperature, *switch.words(*bound.args, **bound.kwargs))
        return _AFFINE[base](*bound.args, **bound.kwargs)

    def assume(self, base: str, node: fx.Node, words: dict[str, Any]) -> None:
        sources = [each for each in node.all_input_nodes if isinstance(self.values[each], Gap)]
        source = next((each for each in sources if self.values[each].rank is not None), sources[0])
        gap = self.values[source]
        if base != "prelu" and all(self.values[each].is_zero for each in sources):
            return  # nothing is claimed of a single entry; prelu makes gaps that differ from channel to channel
        sizes: Any = ()
        if base in ("batch_norm", "prelu"):
            channels = words["weight" if base == "prelu" else "running_var"]
            count = channels.numel() if isinstance(channels, Tensor) else 0
            if count == 1:
                return
            if gap.rank is None and gap.dim == -1 and len(gap.low) == count:
                gap = replace(gap, inner=False, rank=2)  # (N, d), and not (N, T, d) with T = d
                words[next(iter(words))] = gap
        elif base in ("view", "reshape"):
            shape = node.args[1:]
            sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
            if len(sizes) != 2 or gap.is_uniform:
                return
        elif gap.is_uniform or not _counts_from_the_front(base, words):
            return
        if gap.rank is not None or sizes:
            with self.graph.inserting_before(node):
                seen = self.graph.call_function(expect_shape, (source, gap.rank, sizes))
            node.replace_input_with(source, seen)
            self.values[seen] = gap

    def check_alone(self, node: fx.Node) -> None:
        """Raises unless nothing else sees what is written over: neither the tensor, nor a view of it, nor what it is a view of."""
        each = node.args[0] if node.args else node.kwargs.get("input")
        while isinstance(each, fx.Node):
            if (
                sum(_name(self.root, user) not in ("size", "dim", "getattr") for user in each.users) > 1
                or each.op == "get_attr"
            ):
                raise _Unknown("in place to a tensor that is used elsewhere too")
            if _name(self.root, each) not in _VIEWS:
                return
            each = each.args[0]


def _counts_from_the_front(base: str, words: dict[str, Any]) -> bool:
    dims = (words.get("start_dim", 0), words.get("end_dim", -1)) if base == "flatten" else words.get("dim", 0)
    return any(isinstance(dim, int) and dim >= 0 for dim in (dims if isinstance(dims, (tuple, list)) else (dims,)))


def _name(root: nn.Module, node: fx.Node) -> str:
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return _MODULES[type(module).__name__][0] if _is_known(module) else type(module).__name__
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


# --- the function ---------------------------------------------------------------------------------


class Smoothed(NamedTuple):
    """What :func:`smooth` returns: a smooth copy of a network, and how far it can be from the network. It unpacks."""

    model: nn.Module
    """The copy, a ``torch.fx.GraphModule``."""
    bound: float
    """At least the supremum, over all inputs and outputs, of the distance of the two."""


def smooth(model: nn.Module, temperature: float) -> Smoothed:
    r"""A copy of a piecewise linear network with every maximum replaced by LogSumExp, and a bound on what that changes.

    .. math:: |f_t(x) - f(x)| \le \beta \quad \text{for all } x

    which is :eq:`eq-smooth-bound`, with both networks in evaluation mode. The bound is derived layer by layer: for each channel
    an interval that contains the value in the smooth copy minus the value in the network. An affine map takes it to an interval
    by the signs of its weights, and a switch by the rule :eq:`eq-smooth-interval`, which is exact for each switch by itself.
    The bound is about real numbers; what rounding does when either network is run comes on top, and grows with the numbers
    that occur. Its own computation, in float64, is rounded upwards: what a layer adds up has one sign, so that the error
    of a sum of n terms is less than (n + 16) times :math:`2^{-50}` of it, by which each interval is stretched.

    What becomes smooth: ReLU is :math:`\operatorname{LSE}_t(0, x)`. Leaky ReLU and PReLU with
    :math:`\alpha \le 1` are :math:`\operatorname{LSE}_t(x, \alpha x)`, with :math:`\alpha > 1` the negative of that of the
    negatives, and the absolute value is :math:`\operatorname{LSE}_t(x, -x)`. Hardtanh, ReLU6 and clamps are made of two ReLUs.
    Max pooling (1-D and 2-D) is :func:`lse_pool2d`; maxout takes LogSumExp over its pieces, ``torch.maximum`` and
    ``torch.minimum`` over their two arguments.

    The network is what ``torch.fx`` records of one call: arguments of ``forward`` that have defaults stay at them, gradients are
    enabled, and code that asks ``isinstance`` is refused. Other code of Python is not seen, and must not matter: ``type(x) is``
    and branches on what the network is not given, such as files, counters of its calls, or whether gradients are enabled.

    Args:
        model: a module that ``torch.fx`` can trace: of the switches above, torch's and ours, as modules or as functions; of
            linear layers, 1-D and 2-D convolutions, batch norm, average pooling, dropout, tensors added to and subtracted from
            each other, products with constants, concatenations, means, and changes of shape. Its inputs are batches.
        temperature: t, finite and above 0. The bound of a network whose switches are ReLU, leaky ReLU, the absolute value,
            maxima, max pooling and maxout is exactly proportional to 1/t.

    Returns:
        :class:`Smoothed`: the copy, in evaluation mode, and the bound. The copy has copies of the parameters that are used, under
        their names, and under the first of them where a module stands in several places. ``model`` is not changed. A network
        without switches has the bound 0. Where numbers overflow the bound is infinite.

    At kinks:
        the copy has none: it has all derivatives everywhere.

    Raises:
        TypeError: ``model`` is not a module, torch.fx cannot trace it, or it holds another operation; the message names the
            module and the operation. The largest entry of a whole image is one: its gap grows with the number of pixels, so
            give the size to ``MaxPool2d``. Batch norm and dropout are refused in training mode; forward hooks, random numbers and
            buffers that a call replaces always; operations in place where something else reads what they overwrite.
        ValueError: ``temperature`` is not finite and above 0, or a parameter or a constant is not finite. The copy raises it
            where a tensor does not have the dimensions that the bound takes for granted, a batch of images say.

    Example:
        >>> net, bound = smooth(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), 10.0)
        >>> round(bound, 6)  # ln(2) / 10
        0.069315

    Source: the book, :eq:`eq-smooth-bound`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {type(model).__name__}")
    if isinstance(temperature, bool):
        raise TypeError("temperature must be a number, got bool")
    check_number("temperature", temperature)
    try:
        temperature = float(temperature)
    except OverflowError:
        raise ValueError("temperature must be finite and above 0, got an int that no float64 can hold") from None
    check_positive("temperature", temperature)
    model = getattr(model, "_orig_mod", model)  # what torch.compile was given
    hooks = nn.modules.module
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        raise TypeError(
            "model must compute what its classes say, but there are forward hooks for all modules; remove them first"
        )
    for path, module in model.named_modules():
        kind = type(module)
        called = kind.__call__ is not nn.Module.__call__ and not isinstance(module, fx.GraphModule)
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) or called:
            raise TypeError(
                f"model must compute what its classes say, but {_where(path, kind)} has forward hooks, or a forward or "
                "__call__ of its own; remove them first"
            )
        if module.training and kind.__name__.startswith(("BatchNorm", "Dropout")) and getattr(module, "p", 1) > 0:
            raise TypeError(
                f"model must be in evaluation mode, but {_where(path, kind)} trains; call model.eval() first"
            )
    root = copy.deepcopy(model).eval()
    alone = _is_known(root)
    if alone:
        root = nn.Sequential(root)
    with torch.random.fork_rng([]), torch.no_grad():
        state = torch.get_rng_state()
        graph = _trace(root)
        walk = _Walk(root, graph, temperature)
        bound = walk.run()
        if not torch.equal(state, torch.get_rng_state()):
            raise TypeError("model must be a function of its input, but its code draws random numbers")
    for path, module in walk.smooth.items():
        parent, _, name = path.rpartition(".")
        setattr(root.get_submodule(parent), name, module)
    for node in graph.nodes:
        node.type = None  # an annotation that is a string cannot be pickled
    net: nn.Module = fx.GraphModule(root, graph, type(model).__name__)
    return Smoothed((net.get_submodule("0") if alone else net).eval(), bound)
