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
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import handle_torch_function, has_torch_function

from pwl_lib import logsumexp as lse  # which hands on the names below: loaded first, and only used when functions run
from pwl_lib._validation import check_finite_number, check_positive

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
    order: Literal["exact", "inner", "tiled", "joined"] = "exact"
    """How C channels lie in a dimension that may be longer. ``inner``: each is repeated, as flattened images are. ``tiled``: their row
    is repeated. ``joined``: two rows, one after the other, if the tensor has two dimensions; else no order is known."""
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
        return max(-float(self.low.min()), float(self.high.max()))

    def hull(self) -> Gap:
        """One interval for all entries: right after any rearrangement, and for any mean."""
        return Gap(self.low.amin()[None], self.high.amax()[None])

    def along(self, count: int) -> Gap:
        """The gap of each of ``count`` features in the last dimension."""
        channels = len(self.low)
        if self.is_uniform or self.dim != -1:
            gap = self.hull()
            return replace(gap, low=gap.low.expand(count), high=gap.high.expand(count))
        if channels == count:
            return replace(self, order="exact")
        if self.order == "inner" and count % channels == 0:
            each = count // channels
            return Gap(self.low.repeat_interleave(each), self.high.repeat_interleave(each), rank=self.rank)
        if self.order == "tiled" and count % channels == 0:
            return Gap(self.low.repeat(count // channels), self.high.repeat(count // channels), rank=self.rank)
        return self.hull().along(count)

    def channels(self, count: int, spatial: int) -> Gap:
        """The gap of each of ``count`` channels before the last ``spatial`` dimensions."""
        if not self.is_uniform and self.dim == -1 - spatial and self.order == "exact" and len(self.low) == count:
            return self
        gap = self.hull()
        return Gap(gap.low.expand(count), gap.high.expand(count), -1 - spatial, rank=spatial + 2)

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
    alike = first.dim == second.dim and first.order == second.order and len(first.low) == len(second.low)
    if alike and first.order != "joined":
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
def smooth_relu(input: Tensor, inplace: bool = False, *, slope_at_zero: float = 0.0, temperature: float) -> Tensor:
    """``LSE_t(0, x)``."""
    if not 1e-30 < temperature < 1e30:  # float32 cannot hold it
        return _lse_over(torch.stack((torch.zeros_like(input), input), -1), -1, temperature)
    # torch's softplus is this function, and a hundred times faster; from t x = 40 on the two are equal in every dtype.
    return F.softplus(input, temperature, 40.0)


def _relu_gap(t: float, gap: Gap, inplace: bool = False, *, slope_at_zero: float = 0.0) -> Gap:
    return _widened(gap, gap.low, _softplus(gap.high, t))


def _two_lines(input: Tensor, slope: Tensor | float, t: float) -> Tensor:
    """Slopes 1 and ``slope``: the smooth maximum of the lines where that is at most 1, the smooth minimum where it is above."""
    sign = torch.where(slope <= 1, 1, -1) if isinstance(slope, Tensor) else 1 if slope <= 1 else -1
    x = sign * input
    other = slope * x
    ahead = (1 - slope) * x
    # Both forms are LSE_t(x, other), and each is exact where the other one would lose digits.
    first, second = x + smooth_relu(-ahead, temperature=t), other + smooth_relu(ahead, temperature=t)
    return sign * torch.where(ahead > 0, first, second)


def _two_lines_gap(t: float, gap: Gap, slope: Tensor) -> Gap:
    """The maximum of the lines e and slope e, over the ends e of the gap, and the least of all four; turned where it is concave."""

    def convex(gap: Gap) -> tuple[Tensor, Tensor]:
        ends = torch.stack((gap.low, gap.high))
        lines = torch.stack((ends, slope * ends))
        # The larger of the two ends has lines of which the larger is not negative: no digits cancel there.
        return lines.amin((0, 1)), _lse(lines, t).amax(0)

    low, high = convex(gap)
    turned_low, turned_high = convex(gap.turned())
    side = slope <= 1
    return _widened(gap, torch.where(side, low, -turned_high), torch.where(side, high, -turned_low))


@_seen_as_one_call
def smooth_leaky_relu(
    input: Tensor, negative_slope: float = 0.01, inplace: bool = False, *, temperature: float
) -> Tensor:
    return _two_lines(input, negative_slope, temperature)


def _leaky_relu_gap(t: float, gap: Gap, negative_slope: float = 0.01, inplace: bool = False) -> Gap:
    check_finite_number("negative_slope", negative_slope)
    return _two_lines_gap(t, gap, torch.tensor(negative_slope, dtype=torch.float64))


@_seen_as_one_call
def smooth_abs(input: Tensor, *, temperature: float) -> Tensor:
    return _two_lines(input, -1.0, temperature)


def _abs_gap(t: float, gap: Gap) -> Gap:
    return _two_lines_gap(t, gap, torch.tensor(-1.0, dtype=torch.float64))


@_seen_as_one_call
def smooth_prelu(input: Tensor, weight: Tensor, *, temperature: float) -> Tensor:
    if weight.numel() > 1:
        weight = weight.reshape(-1, *(1,) * (input.dim() - 2))
    return _two_lines(input, weight, temperature)


def _prelu_gap(t: float, gap: Gap, weight: Tensor) -> Gap:
    slope = _constant(weight).flatten()
    if len(slope) == 1:
        return _two_lines_gap(t, gap, slope)
    # The channels of prelu are dimension 1.
    if gap.rank is not None and gap.dim == 1 - gap.rank and gap.order == "exact" and len(gap.low) == len(slope):
        return _two_lines_gap(t, gap, slope)
    gap = gap.hull()
    every = _two_lines_gap(t, replace(gap, low=gap.low.expand(len(slope)), high=gap.high.expand(len(slope))), slope)
    return every.hull()


@_seen_as_one_call
def smooth_clamp(input: Tensor, min: float | None = None, max: float | None = None, *, temperature: float) -> Tensor:
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


def _clamp_gap(t: float, gap: Gap, min: float | None = None, max: float | None = None) -> Gap:
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
def smooth_hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False, *, temperature: float
) -> Tensor:
    return smooth_clamp(input, min_val, max_val, temperature=temperature)


def _hardtanh_gap(t: float, gap: Gap, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Gap:
    return _clamp_gap(t, gap, min_val, max_val)


@_seen_as_one_call
def smooth_relu6(input: Tensor, inplace: bool = False, *, temperature: float) -> Tensor:
    return smooth_clamp(input, 0.0, 6.0, temperature=temperature)


def _relu6_gap(t: float, gap: Gap, inplace: bool = False) -> Gap:
    return _clamp_gap(t, gap, 0.0, 6.0)


@_seen_as_one_call
def smooth_clamp_min(input: Tensor, min: float, *, temperature: float) -> Tensor:
    return smooth_clamp(input, min, temperature=temperature)


def _clamp_min_gap(t: float, gap: Gap, min: float) -> Gap:
    return _clamp_gap(t, gap, min)


@_seen_as_one_call
def smooth_clamp_max(input: Tensor, max: float, *, temperature: float) -> Tensor:
    return smooth_clamp(input, None, max, temperature=temperature)


def _clamp_max_gap(t: float, gap: Gap, max: float) -> Gap:
    return _clamp_gap(t, gap, None, max)


@_seen_as_one_call
def smooth_maximum(input: Tensor, other: Tensor, *, temperature: float) -> Tensor:
    return _lse_over(torch.stack(torch.broadcast_tensors(input, other), -1), -1, temperature)


def _maximum_gap(t: float, gap: Any, other: Any) -> Gap:
    if not all(isinstance(each, (Gap, Tensor, _Free)) for each in (gap, other)):
        raise _Unknown("over a dimension; give it two tensors")
    pair = _together(*(each if isinstance(each, Gap) else _zero() for each in (gap, other)))
    low = torch.minimum(pair[0].low, pair[1].low)
    return _widened(pair[0], low, _lse(torch.stack((pair[0].high, pair[1].high)), t))


@_seen_as_one_call
def smooth_minimum(input: Tensor, other: Tensor, *, temperature: float) -> Tensor:
    return -smooth_maximum(-input, -other, temperature=temperature)


def _minimum_gap(t: float, gap: Any, other: Any) -> Gap:
    turned = (each.turned() if isinstance(each, Gap) else each for each in (gap, other))
    return _maximum_gap(t, *turned).turned()


@_seen_as_one_call
def smooth_max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    ties: str = "row-major",
    temperature: float,
) -> Tensor:
    return lse.lse_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, temperature=temperature)


def _max_pool_gap(spatial: int) -> Callable[..., Gap]:
    def rule(
        t: float,
        gap: Gap,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
        *,
        ties: str = "row-major",
    ) -> Gap:
        if return_indices:
            raise _Unknown("that returns the places of the winners, which jump")
        gap = gap.within_channels(spatial)
        return _widened(gap, gap.low, gap.high + math.log(_pixels(kernel_size, spatial)) / t)

    return rule


@_seen_as_one_call
def smooth_max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    temperature: float,
) -> Tensor:
    kernel, steps, around, spread = (
        word if word is None else word if isinstance(word, int) else word[0]
        for word in (kernel_size, stride or None, padding, dilation)
    )
    one_row = (1, kernel), (1, kernel if steps is None else steps), (0, around), (1, spread)
    return smooth_max_pool2d(input.unsqueeze(-2), *one_row, ceil_mode, temperature=temperature).squeeze(-2)


@_seen_as_one_call
def smooth_maxout(input: Tensor, weight: Tensor, bias: Tensor | None, pieces: int, *, temperature: float) -> Tensor:
    z = F.linear(input, weight, bias)
    return _lse_over(z.unflatten(-1, (-1, pieces)), -1, temperature)


def _maxout_gap(t: float, gap: Gap, weight: Tensor, bias: Tensor | None, pieces: int) -> Gap:
    return _largest_of_groups(t, _linear(gap, weight, bias), pieces)


@_seen_as_one_call
def smooth_maxout2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pieces: int,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    temperature: float,
) -> Tensor:
    z = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return _lse_over(z.unflatten(-3, (-1, pieces)), -3, temperature)


def _maxout2d_gap(
    t: float,
    gap: Gap,
    weight: Tensor,
    bias: Tensor | None,
    pieces: int,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Gap:
    return _largest_of_groups(t, _convolution(gap, weight, bias, stride, padding, dilation, groups), pieces)


def _largest_of_groups(t: float, gap: Gap, pieces: int) -> Gap:
    low, high = (each.reshape(-1, pieces).T for each in (gap.low, gap.high))
    return _widened(gap, low.amin(0), _lse(high, t), pieces)


_SWITCHES: dict[str, tuple[Callable[..., Tensor], Callable[..., Gap]]] = {
    "relu": (smooth_relu, _relu_gap),
    "leaky_relu": (smooth_leaky_relu, _leaky_relu_gap),
    "prelu": (smooth_prelu, _prelu_gap),
    **dict.fromkeys(("abs", "absolute"), (smooth_abs, _abs_gap)),
    "hardtanh": (smooth_hardtanh, _hardtanh_gap),
    "relu6": (smooth_relu6, _relu6_gap),
    **dict.fromkeys(("clamp", "clip"), (smooth_clamp, _clamp_gap)),
    "clamp_min": (smooth_clamp_min, _clamp_min_gap),
    "clamp_max": (smooth_clamp_max, _clamp_max_gap),
    **dict.fromkeys(("maximum", "max"), (smooth_maximum, _maximum_gap)),
    **dict.fromkeys(("minimum", "min"), (smooth_minimum, _minimum_gap)),
    "max_pool1d": (smooth_max_pool1d, _max_pool_gap(1)),
    "max_pool2d": (smooth_max_pool2d, _max_pool_gap(2)),
    "maxout": (smooth_maxout, _maxout_gap),
    "maxout2d": (smooth_maxout2d, _maxout2d_gap),
}


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
        return _SWITCHES[self.name][0](input, **self._parameters, **self.words, temperature=self.temperature)

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
    tensor = torch.as_tensor(value).detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError("parameters of the model must be finite, got NaN or an infinity")
    return tensor


def _linear(gap: Gap, weight: Tensor, bias: Any = None) -> Gap:
    """Each weight takes the end of the interval that its sign picks. The bias is the same in both networks."""
    _no_gap(weight, bias)
    matrix = _constant(weight)
    if matrix.dim() != 2:
        raise _Unknown("with a weight that is not a matrix")
    gap = gap.along(matrix.shape[1])
    return _matrix_times(gap, matrix.clamp(min=0)[None], matrix.clamp(max=0)[None], matrix.shape[1], dim=-1)


def _convolution(
    gap: Gap,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Gap:
    """As a matrix, over all places of the window; a place in the padding has no gap, and 0 lies in every interval."""
    _no_gap(weight, bias)
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
    return _widened(gap, lower.flatten(), upper.flatten(), 2 * terms, order="exact", **words)


def _no_gap(*values: Any) -> None:
    if any(isinstance(value, Gap) for value in values):
        raise _Unknown("with a weight or bias that depends on the input")


def _matmul(input: Any, other: Any) -> Gap:
    if not (isinstance(input, Gap) and isinstance(other, Tensor)):
        raise _Unknown("other than by a constant matrix from the right")
    return _linear(input, other.mT if other.dim() > 1 else other)


def _times(gap: Gap, factor: Tensor) -> Gap:
    """``factor`` holds one number, or one for each channel."""
    ends = torch.stack((gap.low * factor, gap.high * factor))
    return _widened(gap, ends.amin(0), ends.amax(0))


def _multiplied(gap: Gap, factor: Tensor) -> Gap:
    if factor.numel() == 0:
        raise _Unknown("by an empty tensor")
    if factor.numel() == 1:
        return _times(gap, factor.reshape(1))
    channels = len(gap.low)
    if (
        gap.order == "exact"
        and not gap.is_uniform
        and factor.numel() == channels
        and -gap.dim <= factor.dim()
        and factor.shape[gap.dim] == channels
    ):
        return _times(gap, factor.flatten())
    gap = gap.hull()
    ends = torch.stack((factor.amin(), factor.amax()))
    return _times(replace(gap, low=gap.low.expand(2), high=gap.high.expand(2)), ends).hull()


def _mul(input: Any, other: Any) -> Gap:
    if isinstance(input, Gap) and isinstance(other, Gap):
        raise _Unknown("of two tensors that depend on the input")
    gap, factor = (input, other) if isinstance(input, Gap) else (other, input)
    return _multiplied(gap, _constant(factor))


def _div(input: Any, other: Any) -> Gap:
    if not isinstance(input, Gap):
        raise _Unknown("by a tensor that depends on the input")
    divisor = _constant(other)
    if not bool(divisor.all()):
        raise _Unknown("by 0")
    return _multiplied(input, 1 / divisor)


def _add(input: Any, other: Any) -> Gap:
    if isinstance(input, Gap) and isinstance(other, Gap):
        input, other = _together(input, other)
        return _widened(input, input.low + other.low, input.high + other.high)
    return input if isinstance(input, Gap) else other  # a constant cancels


def _sub(input: Any, other: Any) -> Gap:
    return _add(input, other.turned() if isinstance(other, Gap) else other)


def _neg(gap: Gap) -> Gap:
    return gap.turned()


def _batch_norm(
    gap: Gap,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Gap:
    if training or running_var is None:
        raise _Unknown("with the mean and the deviation of the batch; call model.eval() first")
    _no_gap(running_mean, running_var, weight, bias)
    scale = 1 / torch.sqrt(_constant(running_var) + eps)
    if not bool(torch.isfinite(scale).all()):
        raise _Unknown("with a variance that is not positive")
    scale = scale if weight is None else scale * _constant(weight)
    if not gap.is_uniform and gap.rank is not None and gap.dim == 1 - gap.rank:
        gap = gap.along(len(scale)) if gap.dim == -1 else gap
        if gap.order == "exact" and len(gap.low) == len(scale):
            return _times(gap, scale)
    if gap.is_uniform and gap.rank is not None:
        spread = replace(gap, low=gap.low.expand(len(scale)), high=gap.high.expand(len(scale)), dim=1 - gap.rank)
        return _times(spread, scale)
    return _multiplied(gap.hull(), scale)


def _dropout(gap: Gap, p: float = 0.5, training: bool = True, inplace: bool = False) -> Gap:
    if training and p > 0:
        raise _Unknown("in training mode, which is random; call model.eval() first")
    return gap


def _average_pool(spatial: int) -> Callable[..., Gap]:
    def rule(
        gap: Gap,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Gap:
        gap = gap.within_channels(spatial)
        if not divisor_override:
            return gap  # a mean of entries and zeros, each of them in the interval
        return _times(gap, torch.tensor([_pixels(kernel_size, spatial) / divisor_override], dtype=torch.float64))

    return rule


def _adaptive_average_pool(spatial: int) -> Callable[..., Gap]:
    def rule(gap: Gap, output_size: Any) -> Gap:
        return gap.within_channels(spatial)

    return rule


def _pixels(kernel_size: Any, spatial: int) -> int:
    sizes = (kernel_size,) * spatial if isinstance(kernel_size, int) else tuple(kernel_size)
    if not all(isinstance(size, int) for size in sizes):
        raise _Unknown("with a window whose size is not known before it is run")
    return math.prod(sizes * spatial if len(sizes) == 1 else sizes)


def _cat(tensors: Sequence[Any], dim: int = 0) -> Gap:
    parts = [part if isinstance(part, Gap) else None for part in ([tensors] if isinstance(tensors, Gap) else tensors)]
    ranks = {part.rank for part in parts if part is not None and part.rank is not None}
    gaps = [part for part in parts if part is not None]
    hull = Gap(
        torch.stack([gap.low.amin() for gap in gaps]).amin()[None],
        torch.stack([gap.high.amax() for gap in gaps]).amax()[None],
        rank=ranks.pop() if len(ranks) == 1 else None,
    )
    first = gaps[0]
    if (
        len(gaps) < len(parts)
        or not isinstance(dim, int)
        or any(gap.is_uniform or gap.dim != first.dim or gap.order != "exact" for gap in gaps)
    ):
        return hull
    whole = replace(first, low=torch.cat([gap.low for gap in gaps]), high=torch.cat([gap.high for gap in gaps]))
    if dim == first.dim or (hull.rank is not None and dim == hull.rank + first.dim):
        return whole
    # (N, d) and (N, T, d) are both possible: what is next tells.
    return replace(whole, order="joined") if dim == 1 and first.dim == -1 and hull.rank is None else hull


def _mean(gap: Gap, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Gap:
    dims = (dim,) if isinstance(dim, int) else dim
    if gap.is_uniform or dims is None or gap.order != "exact":
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
    last = end_dim == -1 or (gap.rank is not None and end_dim == gap.rank - 1)
    if not last or gap.order == "joined":
        return gap.hull()
    if start_dim == 1 and gap.dim == -1:
        if gap.rank == 2:
            return gap
        return replace(gap, order="tiled", rank=2) if gap.order == "exact" else gap.hull()
    if start_dim == 1 and gap.rank is not None and gap.dim == 1 - gap.rank:
        return replace(gap, dim=-1, order="inner", rank=2)
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
    if len(shape) == 2:
        flat = _flatten(gap, 1)
        return flat if flat.rank == 2 else gap.hull()
    return gap.hull()


def _rearranged(gap: Gap, *words: Any, **others: Any) -> Gap:
    return gap.hull()


def _padded(gap: Gap, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Gap:
    return gap.within_channels(len(pad) // 2)


def _converted(gap: Gap, *words: Any, **others: Any) -> Gap:
    for word in (*words, *others.values()):
        if isinstance(word, torch.dtype) and not word.is_floating_point:
            raise _Unknown("to a dtype that is not floating point")
        if not isinstance(word, (torch.dtype, torch.device, str, bool)):
            raise _Unknown("by arguments that are not a dtype or a device")
    return gap


def _kept(gap: Gap, *words: Any, **others: Any) -> Gap:
    return gap


def _item(gap: Any, index: Any) -> Any:
    return gap.hull()


_AFFINE: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "__matmul__", "mm"), _matmul),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    "batch_norm": _batch_norm,
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"), _dropout),
    **{f"avg_pool{d}d": _average_pool(d) for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": _adaptive_average_pool(d) for d in (1, 2, 3)},
    **dict.fromkeys(("add", "iadd"), _add),
    **dict.fromkeys(("sub", "isub", "subtract"), _sub),
    **dict.fromkeys(("mul", "imul", "multiply"), _mul),
    **dict.fromkeys(("truediv", "itruediv", "div", "divide", "true_divide"), _div),
    **dict.fromkeys(("neg", "negative"), _neg),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "mean": _mean,
    "flatten": _flatten,
    **dict.fromkeys(("view", "reshape"), _reshape),
    **dict.fromkeys(
        ("permute", "transpose", "t", "squeeze", "unsqueeze", "unflatten", "expand", "repeat", "chunk", "split", "unbind",
         "flip", "movedim", "narrow", "select", "index_select"), _rearranged
    ),
    **dict.fromkeys(("contiguous", "clone", "identity", "float", "double", "detach"), _kept),
    "to": _converted,
    "pad": _padded,
    "getitem": _item,
}  # fmt: skip

# Rules that ask how many dimensions there are, or which of them is the batch.
_RANKED = frozenset({"batch_norm", "prelu", "flatten", "view", "reshape", "mean", "cat", "concat", "concatenate"})
_IN_PLACE = frozenset({"iadd", "isub", "imul", "itruediv"})
_VIEWS = frozenset(
    "flatten view reshape permute transpose t squeeze unsqueeze unflatten expand chunk split unbind movedim narrow select "
    "contiguous identity float double to detach getitem dropout dropout1d dropout2d dropout3d alpha_dropout "
    "feature_alpha_dropout expect_shape".split()
)
_FROM_SHAPES = frozenset(
    "size dim numel zeros ones full arange zeros_like ones_like full_like new_zeros new_ones new_full getitem add sub mul "
    "floordiv truediv mod neg".split()
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
    **{f"AvgPool{d}d": (f"avg_pool{d}d", "", "kernel_size divisor_override") for d in (2, 3)},
    **{f"AdaptiveAvgPool{d}d": (f"adaptive_avg_pool{d}d", "", "output_size") for d in (1, 2, 3)},
    **{f"Conv{d}d": (f"conv{d}d", "weight bias", "groups") for d in (1, 2, 3)},
    **{f"BatchNorm{d}d": ("batch_norm", "running_mean running_var weight bias", "training eps") for d in (1, 2, 3)},
    **{f"Dropout{d}d": ("dropout", "", "p training") for d in (1, 2, 3)},
}


@_seen_as_one_call
def expect_shape(input: Tensor, rank: int | None, sizes: Sequence[int] = ()) -> Tensor:
    """The input, once it is seen to have the batch as its first dimension, and to keep it there, as the bound takes for granted."""
    if rank is not None and input.dim() != rank:
        raise ValueError(
            f"the bound of this network is for a tensor of {rank} dimensions here, the first of them the batch, got shape "
            f"{tuple(input.shape)}"
        )
    if sizes:
        rows = input.numel() // sizes[1] if sizes[0] == -1 else sizes[0]
        if rows != input.shape[0]:
            raise ValueError(
                f"the bound of this network is for one row for each of the {input.shape[0]} samples here, got {rows} rows of a "
                f"tensor of shape {tuple(input.shape)}"
            )
    return input


# --- the walk -------------------------------------------------------------------------------------


class _Proxy(fx.Proxy):
    """Keeps `x += y` apart from `x = x + y`, since it changes what other names see."""

    def _in_place(self, operation: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    def __iadd__(self, other: Any) -> Any:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place(operator.itruediv, other)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_known(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _is_known(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__module__.startswith(("torch.nn.modules.", "pwl_lib.")) and kind.__name__ in _MODULES


def _trace(root: nn.Module) -> fx.Graph:
    """The graph of a module. Constants that its code makes become attributes of the module."""
    again = copy.deepcopy(root)
    try:
        with torch.no_grad():
            graph = _Tracer().trace(root)
            second = _Tracer().trace(again)
    except Exception as error:
        raise TypeError(f"model must be a module that torch.fx can trace: {error}") from error
    for node, twin in itertools.zip_longest(graph.nodes, second.nodes):
        alike = node is not None and twin is not None and (node.op, node.target) == (twin.op, twin.target)
        if alike and node.op == "get_attr":
            alike = torch.equal(
                *(operator.attrgetter(str(each.target))(of) for each, of in ((node, root), (twin, again)))
            )
        if not alike:
            raise TypeError(
                "model must be a function of its input, but its code does something else when it runs again"
            )
    return graph


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
            if node.op == "output":
                gaps = [value for value in self.inputs(node) if isinstance(value, Gap)]
                return max((gap.size for gap in gaps), default=0.0)
            self.values[node] = self.visit(node)
        raise AssertionError("a graph ends with its output")

    def inputs(self, node: fx.Node) -> Iterator[Any]:
        return (self.values[each] for each in node.all_input_nodes)

    def visit(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return _zero()
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        try:
            if node.op == "call_module":
                return self.visit_module(node)
            return self.visit_function(node)
        except _Unknown as reason:
            raise TypeError(f"{self.refusal(node)} {reason}".rstrip()) from None

    def refusal(self, node: fx.Node) -> str:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        path, kind = stack[-1] if stack else ("", type(self.root))
        if node.op == "call_module":
            path, kind = node.target, type(self.root.get_submodule(str(node.target)))
        where = f"module '{path}' ({kind.__name__})" if path else f"the model ({kind.__name__})"
        if node.op != "call_module":
            applied = (
                node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
            )
        else:
            applied = (
                _MODULES[kind.__name__][0] if _is_known(self.root.get_submodule(str(node.target))) else kind.__name__
            )
        return f"model must be made of affine maps and of switches that smooth knows; {where} applies {applied}"

    def visit_module(self, node: fx.Node) -> Any:
        module = self.root.get_submodule(str(node.target))
        if not _is_known(module):
            raise _Unknown("")
        name, parameters, words = _MODULES[type(module).__name__]
        given = {key: getattr(module, key) for key in (*parameters.split(), *words.split())}
        gap = self.values[node.args[0]] if len(node.args) == 1 and not node.kwargs else None  # type: ignore[index]
        if not isinstance(gap, Gap):
            raise _Unknown("to something else than one tensor that depends on the input")
        if getattr(module, "inplace", False):
            self.check_alone(node)
        result = self.apply(name, node, (gap,), given)
        if name == "max_pool2d":
            given.pop("return_indices")
            self.smooth[str(node.target)] = lse.LSEPool2d(**given, temperature=self.temperature)
        elif name in _SWITCHES:
            own = {key: given.pop(key) for key in parameters.split()}
            self.smooth[str(node.target)] = SmoothSwitch(name, own, given, self.temperature)
        return result

    def visit_function(self, node: fx.Node) -> Any:
        target = node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        home = None if isinstance(target, str) else getattr(target, "__module__", None)
        if home is not None and home.partition(".")[0] not in ("torch", "_operator", "builtins", "pwl_lib"):
            raise _Unknown("which is no function of torch or of pwl_lib")
        base = name if name.startswith("__") else name.rstrip("_")
        in_place = name in _IN_PLACE or base != name
        inputs = list(self.inputs(node))
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
            raise _Unknown("")
        result = self.apply(base, node, args, kwargs)
        if in_place:
            self.check_alone(node)
        if base in _SWITCHES:
            node.op, node.target = "call_function", _SWITCHES[base][0]
            node.kwargs = {**node.kwargs, "temperature": self.temperature}
        return result

    def visit_constant(
        self, node: fx.Node, base: str, in_place: bool, inputs: list[Any], args: Any, kwargs: Any
    ) -> Any:
        if in_place and not all(isinstance(value, _Free) for value in inputs):
            raise _Unknown("in place to what does not depend on the input")
        if any(isinstance(value, _Free) for value in inputs):
            if base not in _FROM_SHAPES and base not in _IN_PLACE:
                raise _Unknown("to shapes")
            return FREE
        call = (lambda: getattr(args[0], base)(*args[1:], **kwargs)) if node.op == "call_method" else None
        with torch.no_grad(), torch.random.fork_rng([]):
            once, again = (call() if call else node.target(*args, **kwargs) for _ in range(2))  # type: ignore[operator]
        if isinstance(once, Tensor) and not torch.equal(once, again):
            raise _Unknown("which is random")
        return once

    def apply(self, base: str, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The rule of an operation. Where it asks for the dimensions of its input, these are seen to when the network runs."""
        rule = _SWITCHES[base][1] if base in _SWITCHES else _AFFINE[base]
        words = (self.temperature, *args) if base in _SWITCHES else tuple(args)
        try:
            bound = inspect.signature(rule).bind(*words, **kwargs)
        except TypeError as error:
            raise _Unknown(f"with arguments that are not known here ({error})") from None
        if bound.arguments.get("inplace"):
            self.check_alone(node)
        if base in _RANKED:
            self.assume(base, node, bound.arguments)
        return rule(*bound.args, **bound.kwargs)

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
                words["gap"] = gap = replace(gap, order="exact", rank=2)  # (N, d), and not (N, T, d) with T = d
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
            readers = [
                user for user in each.users if _name(self.root, user) not in (*_SHAPES, "size", "dim", "getattr")
            ]
            if len(readers) > 1 or each.op == "get_attr":
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

    which is :eq:`eq-smooth-bound`. The bound is derived layer by layer: for each channel an interval that contains the
    value in the smooth copy minus the value in the network. An affine map takes it to an interval by the signs of its
    weights, and a switch by the rule :eq:`eq-smooth-interval`, which is exact for each switch by itself.
    The bound is about real numbers; what rounding does when either network is run comes on top, and grows with the numbers
    that occur. Its own computation, in float64, is rounded upwards: what a layer adds up has one sign, so that the error
    of a sum of n terms is less than (n + 16) times :math:`2^{-50}` of it, by which each interval is stretched.

    What becomes smooth: ReLU is :math:`\operatorname{LSE}_t(0, x)`. Leaky ReLU and PReLU with
    :math:`\alpha \le 1` are :math:`\operatorname{LSE}_t(x, \alpha x)`, with :math:`\alpha > 1` the negative of that of the
    negatives, and the absolute value is :math:`\operatorname{LSE}_t(x, -x)`. Hardtanh, ReLU6 and clamps are made of two ReLUs.
    Max pooling (1-D and 2-D) is :func:`lse_pool2d`; maxout takes LogSumExp over its pieces, ``torch.maximum`` and
    ``torch.minimum`` over their two arguments.

    Args:
        model: a module that ``torch.fx`` can trace, in evaluation mode: of the switches above, torch's and ours, as modules
            or as functions; of linear layers, convolutions, batch norm, average pooling, dropout, sums, differences,
            products with constants, concatenations, means, and changes of shape. Its input is a batch.
        temperature: t, finite and above 0. The bound of a network whose switches are ReLU, leaky ReLU, the absolute value,
            maxima, max pooling and maxout is exactly proportional to 1/t.

    Returns:
        :class:`Smoothed`: the copy, with copies of the parameters under their names, and the bound. ``model`` is not
        changed. A network without switches has the bound 0. Where numbers overflow the bound is infinite.

    At kinks:
        the copy has none: it has all derivatives everywhere.

    Raises:
        TypeError: ``model`` is not a module, torch.fx cannot trace it, or it holds another operation; the message names the
            module and the operation. Batch norm and dropout are refused in training mode, modules with forward hooks always,
            and operations in place where something else reads what they overwrite.
        ValueError: ``temperature`` is not finite and above 0, or a parameter is not finite. The copy raises it where a tensor
            does not have the dimensions that the bound takes for granted, a batch of images say.

    Example:
        >>> net, bound = smooth(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), 10.0)
        >>> round(bound, 6)  # ln(2) / 10
        0.069315

    Source: the book, :eq:`eq-smooth-bound`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {type(model).__name__}")
    check_finite_number("temperature", temperature)
    check_positive("temperature", temperature)
    model = getattr(model, "_orig_mod", model)  # what torch.compile was given
    for path, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            where = f"module '{path}'" if path else "the model"
            raise TypeError(
                f"model must compute what its classes say, but {where} ({type(module).__name__}) has forward hooks or a "
                "forward of its own; remove them first"
            )
    root = copy.deepcopy(model)
    alone = _is_known(root)
    if alone:
        root = nn.Sequential(root)
    graph = _trace(root)
    walk = _Walk(root, graph, temperature)
    with torch.no_grad():
        bound = walk.run()
    for path, module in walk.smooth.items():
        parent, _, name = path.rpartition(".")
        module.train(root.get_submodule(path).training)
        setattr(root.get_submodule(parent), name, module)
    for node in graph.nodes:
        node.type = None  # an annotation that is a string cannot be pickled
    net: nn.Module = fx.GraphModule(root, graph, type(model).__name__)
    if alone:
        net = net.get_submodule("0")
    return Smoothed(net, bound)
