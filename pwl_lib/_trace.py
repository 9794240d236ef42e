"""Running a model with its switches frozen: what `piecewise_linear` is made of.

A `Trace` is a torch function mode. It sees every torch call of a model, torch's own and those of `pwl_lib` alike, and knows which
tensors depend on the input. An affine call goes through; a switch is replaced by the affine branch that it takes, by one of the
rules at the end of this file; any other call is noted as an offender.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from pwl_lib._windows import output_size, positions

Model = Callable[[Tensor], Tensor]

# Every argument may depend on the input: these are sums and rearrangements.
_AFFINE_IN_ALL = frozenset(
    "add sub subtract rsub __add__ __radd__ __sub__ __rsub__ cat concat concatenate stack hstack vstack column_stack "
    "expand_as view_as reshape_as type_as".split()
)
# The first argument alone may depend on the input.
_AFFINE_IN_FIRST = frozenset(
    "neg negative __neg__ __getitem__ view reshape flatten unflatten ravel transpose permute squeeze unsqueeze contiguous clone "
    "expand repeat repeat_interleave tile chunk split unbind narrow select index_select gather take_along_dim movedim moveaxis "
    "swapaxes swapdims t adjoint flip fliplr flipud roll rot90 diagonal tril triu "
    "sum mean cumsum diff trace to float double half bfloat16 cpu cuda div divide true_divide __div__ __truediv__ "
    "unfold fold pad pixel_shuffle pixel_unshuffle channel_shuffle "
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample "
    "masked_fill requires_grad_ retain_grad".split()
)
# Products: at most one argument may depend on the input.
_AFFINE_IN_ONE = frozenset(
    "mul multiply __mul__ __rmul__ matmul __matmul__ __rmatmul__ mm bmm mv dot inner outer einsum tensordot kron linear "
    "addmm baddbmm addmv conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split()
)
_AFFINE = _AFFINE_IN_ALL | _AFFINE_IN_FIRST | _AFFINE_IN_ONE
_SHAPE_QUERIES = frozenset(
    "dim ndimension size stride numel nelement storage_offset is_contiguous is_floating_point is_complex is_signed get_device "
    "element_size __len__ __format__ __repr__ __hash__".split()
)
_CONSTANTS = frozenset("zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full".split())
_AFFINE_PROPERTIES = frozenset({"T", "mT", "H", "mH"})


class Offender(NamedTuple):
    """A call that keeps a model from being piecewise linear: where it is and what it applies."""

    path: str
    """The dotted name of the module, as in ``model.named_modules()``; empty for the model itself."""
    module: str
    """The type of that module."""
    operation: str
    """The torch function, with a reason where its name does not say enough."""


@dataclass
class Switch:
    """What one switch chose, and by how much: ``margin >= 0`` says that the choice holds."""

    path: str
    choice: Tensor
    margin: Tensor


@contextmanager
def untouched(model: Model, x: Tensor) -> Iterator[None]:
    """What the model does to its buffers and to the random numbers in here is undone; gradients can be had, code runs uncompiled."""
    buffers = [b for b in model.buffers() if not b.is_inference()] if isinstance(model, nn.Module) else []
    before = [b.detach().clone() for b in buffers]
    compiled = "torch._dynamo" in sys.modules
    with (
        torch.random.fork_rng([x.device] if x.is_cuda else []),
        torch.inference_mode(False),
        torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
    ):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(buffers, before, strict=True):
                    if not torch.equal(buffer, value):  # batch norm writes without a new version
                        buffer.copy_(value)


@contextmanager
def watching_modules(enter: Callable[[nn.Module], None], leave: Callable[[], None]) -> Iterator[None]:
    """Calls the two around each module that runs in this thread; torch has such hooks for all threads alone."""
    owner = threading.get_ident()

    def before(module: nn.Module, _: Any) -> None:
        if threading.get_ident() == owner:
            enter(module)

    def after(*_: Any) -> None:
        if threading.get_ident() == owner:
            leave()

    handles = register_module_forward_pre_hook(before), register_module_forward_hook(after, always_call=True)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Trace(TorchFunctionMode):
    """Runs a model with its switches frozen: at their own choices the first time, at the recorded ones in a replay."""

    with_margins = True
    """Whether the switches tell by how much their choices hold; else their margins mean nothing."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        model = getattr(model, "_orig_mod", model)  # what torch.compile was given
        self.model = model
        self.offenders: list[Offender] = []
        self.switches: list[Switch] = []
        self._names: dict[Any, str] = {}
        if isinstance(model, nn.Module):
            self._names = {module: name for name, module in model.named_modules()}
        self._recorded: list[Switch] | None = None

    def run(self, x: Tensor) -> Tensor:
        # The tensors that depend on x, by identity. They are kept alive, so that no id is used twice.
        self._dependent: dict[int, Tensor] = {}
        self._winners: dict[int, Tensor] = {}
        self._modules: list[nn.Module] = []
        self.switches, self.offenders = [], []
        self.eps = 0.0  # of the coarsest dtype that a dependent tensor has: the model rounds as it does
        x = x.clone()  # the model may write into its input
        self._mark(x)
        with watching_modules(self._enter, self._leave), self:
            y = self.model(x)
        if not isinstance(y, Tensor):
            raise TypeError(f"model must return one tensor, got {type(y).__name__}")
        if y.dim() == 0 or y.shape[0] != x.shape[0]:
            raise ValueError(
                f"model must return one output for each of the {x.shape[0]} samples, got shape {tuple(y.shape)}"
            )
        return y

    def replay(self, x: Tensor) -> Tensor:
        self._recorded = list(self.switches)
        return self.run(x)

    def margins(self, x: Tensor) -> Tensor:
        """All margins of the last run, ``(B, K)``, in the order of the switches."""
        parts = [per_sample(switch.margin, x.shape[0], switch.path) for switch in self.switches]
        return torch.cat([x.new_zeros(x.shape[0], 0), *parts], dim=1)

    def _enter(self, module: nn.Module) -> None:
        self._modules.append(module)
        if isinstance(module, torch.jit.ScriptModule):
            self.offend("TorchScript, which cannot be watched")

    def _leave(self) -> None:
        self._modules.pop()

    def _mark(self, result: Any) -> None:
        for tensor in _tensors(result):
            self._dependent[id(tensor)] = tensor
            if tensor.is_floating_point():
                self.eps = max(self.eps, torch.finfo(tensor.dtype).eps)
            if tensor._base is not None:  # writing into a view changes its base
                self._dependent[id(tensor._base)] = tensor._base

    def depends(self, tensor: Tensor) -> bool:
        return id(tensor) in self._dependent or (tensor._base is not None and id(tensor._base) in self._dependent)

    def mark_winners(self, index: Tensor) -> None:
        """An index of a maximum is piecewise constant and jumps: nothing that is made from it is continuous."""
        self._winners[id(index)] = index

    def _where(self) -> tuple[str, str]:
        module = self._modules[-1] if self._modules else self.model
        return self._names.get(module, ""), type(module).__name__

    def offend(self, operation: str) -> None:
        offender = Offender(*self._where(), operation)
        if offender not in self.offenders:
            self.offenders.append(offender)

    def freeze(self, choose: Callable[[], Tensor], apply: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """Takes the recorded choice, or makes one, and returns the output of the frozen branch."""
        if self._recorded is None:
            with torch.no_grad():
                choice = choose()
        else:
            choice = self._recorded[len(self.switches)].choice
        output, margin = apply(choice)
        self.switches.append(Switch(self._where()[0], choice, margin))
        return output

    # The three kinds of switches, of which the rules below make all others.

    def two_slopes(self, z: Tensor, below: Tensor | float) -> Tensor:
        """Slope 1 where z > 0, slope ``below`` elsewhere."""

        def apply(choice: Tensor) -> tuple[Tensor, Tensor]:
            on = choice == 1
            return torch.where(on, z, below * z), torch.where(on, z, -z) if self.with_margins else z

        return self.freeze(lambda: self.choose_slope(z), apply)

    def clamp_between(self, z: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
        low, high = (torch.as_tensor(bound, dtype=z.dtype, device=z.device) for bound in (low, high))
        if bool((low > high).any()):
            raise NotPiecewiseLinear("with a lower bound above the upper one")

        def apply(choice: Tensor) -> tuple[Tensor, Tensor]:
            output = torch.where(choice == 1, z, torch.where(choice == 0, low, high))
            if not self.with_margins:
                return output, output
            # An infinite bound makes no comparison: its margin is the constant 1.
            above_low = torch.where(low.isinf(), 1, torch.where(choice == 0, low - z, z - low))
            below_high = torch.where(high.isinf(), 1, torch.where(choice == 2, z - high, high - z))
            return output, torch.stack([above_low, below_high], dim=-1)

        return self.freeze(lambda: self.choose_side(z, low, high), apply)

    def largest(self, candidates: Tensor, exists: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The maximum over the last dimension and the index of its first winner; ``exists`` is false at padding."""
        count = candidates.shape[-1]
        here = torch.ones(count, dtype=torch.bool, device=candidates.device) if exists is None else exists

        def apply(choice: Tensor) -> tuple[Tensor, Tensor]:
            winner = choice[..., None]
            output = candidates.gather(-1, winner)
            if not self.with_margins:
                return output.squeeze(-1), output
            others = (winner + torch.arange(1, count, device=candidates.device)) % count
            compared = here.expand(candidates.shape).gather(-1, others)
            return output.squeeze(-1), torch.where(compared, output - candidates.gather(-1, others), 1)

        output = self.freeze(lambda: self.choose_winner(candidates, here), apply)
        return output, self.switches[-1].choice

    def largest_at(self, input: Tensor, index: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
        """The same for several maxima, each over its row of ``index`` in the last dimension of ``input``."""
        return self.largest(input.index_select(-1, index.flatten()).unflatten(-1, index.shape), exists)

    # How they choose, and what they do at a tie.

    def choose_slope(self, z: Tensor) -> Tensor:
        return (z > 0).long()

    def choose_side(self, z: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return 1 + (z >= high).long() - ((z <= low) & (z < high)).long()

    def choose_winner(self, candidates: Tensor, exists: Tensor) -> Tensor:
        return candidates.masked_fill(~exists, -math.inf).argmax(-1)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        if any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors):
            # A transform hands on tensors of its own, which do not tell whether they depend on the input.
            self.offend(f"{func.__name__} inside a transform of torch.func, which cannot be watched")
            return func(*args, **kwargs)
        dependent = [tensor for tensor in tensors if self.depends(tensor)]
        if not dependent:
            return func(*args, **kwargs)
        name = func.__name__
        base = name if name.startswith("__") else name.rstrip("_")  # add_ is add, in place
        if any(id(tensor) in self._winners for tensor in tensors):
            self.offend(f"{name} to the index of a maximum")
        elif name == "__get__":
            self._judge_property(func.__self__.__name__, func(*args))
        elif base in _RULES:
            try:
                return self._apply_rule(_RULES[base], name, args, kwargs)
            except NotPiecewiseLinear as reason:
                self.offend(f"{name} {reason}")
        elif name == "__setitem__":
            self._judge_dependence(name, [args[0], args[2]], dependent)
        elif base in _AFFINE_IN_FIRST and kwargs.get("rounding_mode") is None:
            first = args[:1] or (kwargs.get("input"),)
            self._judge_dependence(name, _tensors(first), dependent)
        elif base in _AFFINE_IN_ONE:
            if len(dependent) > 1:
                self.offend(f"{name} to two tensors that depend on the input")
        elif base not in _AFFINE_IN_ALL and name not in _SHAPE_QUERIES and name not in _CONSTANTS:
            self.offend(name)
        result = func(*args, **kwargs)
        if name not in _CONSTANTS:
            self._mark(args[0] if name == "__setitem__" else result)
            if base in _AFFINE and any(not tensor.is_floating_point() for tensor in _tensors(result)):
                self.offend(f"{name}, which gives no floating point numbers")
        return result

    def _judge_property(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and name not in _AFFINE_PROPERTIES:
            self.offend(f"the property {name}")

    def _judge_dependence(self, name: str, allowed: Sequence[Any], dependent: Sequence[Tensor]) -> None:
        # Tensors are compared by identity, and x / x holds the same one twice.
        if any(all(tensor is not good for good in allowed) for tensor in dependent) or len(dependent) > len(allowed):
            self.offend(f"{name} with an index, a divisor or a size that depends on the input")

    def _apply_rule(self, rule: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        try:
            bound = _signature(rule).bind(self, *args, **kwargs)
        except TypeError as error:
            raise NotPiecewiseLinear(f"with arguments that are not known here ({error})") from None
        result = rule(*bound.args, **bound.kwargs)
        if bound.arguments.get("inplace") or (name.endswith("_") and not name.startswith("__")):
            result = self.write(args[0], result)
        self._mark(result)
        return result

    def write(self, target: Tensor, result: Tensor) -> Tensor:
        """What a switch that works in place leaves behind."""
        return target.copy_(result)


_signature = functools.cache(inspect.signature)


class NotPiecewiseLinear(Exception):
    """Raised by a rule: these arguments of its function are not affine, nor a switch."""


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    found: list[Tensor] = []
    for item in value:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (tuple, list, dict)):
            found += _tensors(item)
    return found


def per_sample(value: Tensor, batch: int, path: str) -> Tensor:
    if value.dim() == 0 or value.shape[0] != batch:
        raise ValueError(
            f"the switch in module '{path}' must keep the batch of {batch} as its first dimension, got shape {tuple(value.shape)}"
        )
    return value.reshape(batch, math.prod(value.shape[1:]))


# --- the switches: each rule freezes one torch function at the branch it takes ---


def _relu(trace: Trace, input: Tensor, inplace: bool = False, *, slope_at_zero: float = 0.0) -> Tensor:
    return trace.two_slopes(input, 0.0)


def _leaky_relu(trace: Trace, input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    return trace.two_slopes(input, negative_slope)


def _prelu(trace: Trace, input: Tensor, weight: Tensor) -> Tensor:
    if trace.depends(weight):
        raise NotPiecewiseLinear("with a weight that depends on the input")
    if weight.numel() > 1:
        weight = weight.reshape(-1, *[1] * (input.dim() - 2))
    return trace.two_slopes(input, weight)


def _rrelu(
    trace: Trace,
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    if training:
        raise NotPiecewiseLinear("in training mode, which is random")
    return trace.two_slopes(input, (lower + upper) / 2)


def _absolute(trace: Trace, input: Tensor) -> Tensor:
    return trace.two_slopes(input, -1.0)


def _hardtanh(
    trace: Trace, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    return trace.clamp_between(input, min_val, max_val)


def _relu6(trace: Trace, input: Tensor, inplace: bool = False) -> Tensor:
    return trace.clamp_between(input, 0.0, 6.0)


def _hardsigmoid(trace: Trace, input: Tensor, inplace: bool = False) -> Tensor:
    return trace.clamp_between(input / 6 + 0.5, 0.0, 1.0)


def _softshrink(trace: Trace, input: Tensor, lambd: float = 0.5) -> Tensor:
    return input - trace.clamp_between(input, -lambd, lambd)


def _threshold(trace: Trace, input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    if threshold != value:
        raise NotPiecewiseLinear("with a jump: its threshold and its value differ")
    return trace.clamp_between(input, threshold, math.inf)


def _clamp(trace: Trace, input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    if any(trace.depends(bound) for bound in _tensors((min, max))):
        raise NotPiecewiseLinear("with a bound that depends on the input")
    return trace.clamp_between(input, -math.inf if min is None else min, math.inf if max is None else max)


def _clamp_min(trace: Trace, input: Tensor, min: Any) -> Tensor:
    return _clamp(trace, input, min)


def _clamp_max(trace: Trace, input: Tensor, max: Any) -> Tensor:
    return _clamp(trace, input, None, max)


def _maximum(trace: Trace, input: Tensor, other: Tensor) -> Tensor:
    return trace.largest(torch.stack(torch.broadcast_tensors(input, other), dim=-1))[0]


def _minimum(trace: Trace, input: Tensor, other: Tensor) -> Tensor:
    return -_maximum(trace, -input, -other)


def _amax(trace: Trace, input: Tensor, dim: int | Sequence[int] = (), keepdim: bool = False) -> Tensor:
    dims = sorted(d % input.dim() for d in ([dim] if isinstance(dim, int) else dim)) or list(range(input.dim()))
    if 0 in dims:
        raise NotPiecewiseLinear("over the samples of the batch")
    output = trace.largest(input.movedim(dims, list(range(-len(dims), 0))).flatten(-len(dims)))[0]
    for d in dims if keepdim else ():
        output = output.unsqueeze(d)
    return output


def _amin(trace: Trace, input: Tensor, dim: int | Sequence[int] = (), keepdim: bool = False) -> Tensor:
    return -_amax(trace, -input, dim, keepdim)


def _max(
    trace: Trace, input: Tensor, dim: int | Tensor | None = None, keepdim: bool = False, *, other: Tensor | None = None
) -> Any:
    if isinstance(dim, Tensor) or other is not None:  # max(input, other)
        return _maximum(trace, input, dim if isinstance(dim, Tensor) else other)  # type: ignore[arg-type]
    if dim is None or dim % input.dim() == 0:
        raise NotPiecewiseLinear("over the samples of the batch")
    values, winner = trace.largest(input.movedim(dim, -1))
    if keepdim:
        values, winner = values.unsqueeze(dim), winner.unsqueeze(dim)
    trace.mark_winners(winner)
    return torch.return_types.max((values, winner))


def _min(
    trace: Trace, input: Tensor, dim: int | Tensor | None = None, keepdim: bool = False, *, other: Tensor | None = None
) -> Any:
    if isinstance(dim, Tensor) or other is not None:
        return _minimum(trace, input, dim if isinstance(dim, Tensor) else other)  # type: ignore[arg-type]
    values, winner = _max(trace, -input, dim, keepdim)
    return torch.return_types.min((-values, winner))


def _maxout(trace: Trace, input: Tensor, weight: Tensor, bias: Tensor | None, pieces: int) -> Tensor:
    _refuse_dependent(trace, weight, bias)
    return trace.largest(F.linear(input, weight, bias).unflatten(-1, (-1, pieces)))[0]


def _maxout2d(
    trace: Trace,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pieces: int,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    _refuse_dependent(trace, weight, bias)
    z = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return trace.largest(z.unflatten(1, (-1, pieces)).movedim(2, -1))[0]


def _refuse_dependent(trace: Trace, *parameters: Tensor | None) -> None:
    if any(trace.depends(parameter) for parameter in _tensors(parameters)):
        raise NotPiecewiseLinear("with a weight or a bias that depends on the input")


def _pool_windows(scans: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Combines the positions ``(outputs, window)`` of each dimension, -1 outside, into flat ones, and says which exist."""
    index = torch.zeros(1, 1, dtype=torch.int64)
    exists = torch.ones(1, 1, dtype=torch.bool)
    for position, size in zip(scans, sizes, strict=True):
        index = (index[:, None, :, None] * size + position.clamp(min=0)[None, :, None, :]).flatten(2).flatten(0, 1)
        exists = (exists[:, None, :, None] & (position >= 0)[None, :, None, :]).flatten(2).flatten(0, 1)
    return index, exists


def _pool(
    trace: Trace, input: Tensor, scans: Sequence[Tensor], return_indices: bool, *, columns_first: bool = False
) -> Any:
    spatial = len(scans)
    index, exists = (part.to(input.device) for part in _pool_windows(scans, input.shape[-spatial:]))
    if columns_first:  # the first of several winners is then the one in the smallest column
        order = torch.arange(index.shape[1]).reshape(-1, scans[1].shape[1]).T.flatten()
        index, exists = index[:, order], exists[:, order]
    values, winner = trace.largest_at(input.flatten(-spatial), index, exists)
    outputs = [scan.shape[0] for scan in scans]
    if not return_indices:
        return values.unflatten(-1, outputs)
    chosen = index.expand(*winner.shape, -1).gather(-1, winner[..., None]).squeeze(-1).unflatten(-1, outputs)
    trace.mark_winners(chosen)
    return values.unflatten(-1, outputs), chosen


def _each(value: Any, count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value) * (count if len(value) == 1 else 1)


def _max_pool(spatial: int, with_indices: bool) -> Callable[..., Any]:
    def rule(
        trace: Trace,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = with_indices,
        *,
        ties: str = "row-major",
    ) -> Any:
        # torch takes an empty stride for "the kernel size"
        words = (_each(word, spatial) for word in (kernel_size, stride or kernel_size, padding, dilation))
        scans = []
        for size, k, s, p, d in zip(input.shape[-spatial:], *words, strict=True):
            position = positions(output_size(size, k, s, p, p, d, ceil_mode=ceil_mode), k, s, p, d)
            scans.append(torch.where((position >= 0) & (position < size), position, -1))
        return _pool(trace, input, scans, return_indices, columns_first=ties == "column-major")

    return rule


def _adaptive_max_pool(spatial: int, with_indices: bool) -> Callable[..., Any]:
    def rule(trace: Trace, input: Tensor, output_size: Any, return_indices: bool = with_indices) -> Any:
        scans = []
        for size, wanted in zip(input.shape[-spatial:], _each(output_size, spatial), strict=True):
            outputs = torch.arange(size if wanted is None else wanted)
            start, end = outputs * size // len(outputs), -(-(outputs + 1) * size // len(outputs))
            position = start[:, None] + torch.arange(int((end - start).max()))
            scans.append(torch.where(position < end[:, None], position, -1))
        return _pool(trace, input, scans, return_indices)

    return rule


def _dropout(trace: Trace, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if training and p > 0:
        raise NotPiecewiseLinear("in training mode, which is random")
    return input.clone()


def _batch_norm(
    trace: Trace,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training:
        raise NotPiecewiseLinear("in training mode, which divides by the deviation of the batch")
    if any(trace.depends(tensor) for tensor in _tensors((running_mean, running_var, weight, bias))):
        raise NotPiecewiseLinear("with a scale or a shift that depends on the input")
    return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)


def _where(trace: Trace, condition: Tensor, input: Any, other: Any) -> Tensor:
    if trace.depends(condition):
        raise NotPiecewiseLinear("with a condition that depends on the input")
    return torch.where(condition, input, other)


def _detach(trace: Trace, input: Tensor) -> Tensor:
    return input.clone()  # the value is wanted here, and its dependence on the input with it


_RULES: dict[str, Callable[..., Any]] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "rrelu": _rrelu,
    "abs": _absolute,
    "absolute": _absolute,
    "__abs__": _absolute,
    "hardtanh": _hardtanh,
    "relu6": _relu6,
    "hardsigmoid": _hardsigmoid,
    "softshrink": _softshrink,
    "threshold": _threshold,
    "_threshold": _threshold,  # the name that nn.Threshold calls
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp_min,
    "clamp_max": _clamp_max,
    "maximum": _maximum,
    "minimum": _minimum,
    "amax": _amax,
    "amin": _amin,
    "max": _max,
    "min": _min,
    "maxout": _maxout,
    "maxout2d": _maxout2d,
    "batch_norm": _batch_norm,
    "where": _where,
    "detach": _detach,
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"), _dropout
    ),
    **{f"max_pool{d}d": _max_pool(d, False) for d in (1, 2, 3)},
    **{f"max_pool{d}d_with_indices": _max_pool(d, True) for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d": _adaptive_max_pool(d, False) for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d_with_indices": _adaptive_max_pool(d, True) for d in (1, 2, 3)},
}
