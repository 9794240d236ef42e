"""A model on a plane: a trace that cuts a subdivision wherever a switch changes, and one that runs a model at given choices.

Both run the model in float64, whatever its dtype.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pwl_lib._subdivision import Subdivision
from pwl_lib._trace import Model, NotPiecewiseLinear, Switch, Trace, _tensors, watching_modules

Integers = NDArray[np.int64]

_CASTS = frozenset({"to", "float", "half", "bfloat16", "type_as"})


class Snapshot:
    """A model as it is now, in float64: what is done to it later is not seen. Of a plain function nothing can be copied."""

    def __init__(self, model: Model) -> None:
        if not callable(model):
            raise TypeError(f"model must be a module or a function of one tensor, got {type(model).__name__}")
        self.model = getattr(model, "_orig_mod", model)  # what torch.compile was given
        self._modes: list[tuple[nn.Module, bool]] = []
        # Where each parameter and each buffer stands, in a dictionary of its module, and what stands there while the model runs.
        self._state: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
        if isinstance(self.model, nn.Module):
            self._modes = [(module, module.training) for module in self.model.modules()]
            copies: dict[int, Tensor] = {}  # one of each tensor, though it may stand in several places
            for module, _ in self._modes:
                for place in cast("tuple[dict[str, Tensor | None], ...]", (module._parameters, module._buffers)):
                    for name, tensor in place.items():
                        if tensor is not None:
                            if id(tensor) not in copies:
                                kept = tensor.detach()
                                copies[id(tensor)] = kept.double() if kept.dtype in _COARSE else kept.clone()
                            self._state.append((place, name, copies[id(tensor)]))

    def __call__(self, x: Tensor) -> Tensor:
        # As torch.func.functional_call does it, in less time.
        now = [place[name] for place, name, _ in self._state]
        try:
            for place, name, tensor in self._state:
                place[name] = tensor
            return self.model(x)
        finally:
            for (place, name, _), before in zip(self._state, now, strict=True):
                place[name] = before

    @contextmanager
    def in_its_modes(self) -> Iterator[None]:
        """Training or evaluation, as each module was then."""
        now = [(module, module.training) for module, _ in self._modes]
        try:
            for module, mode in self._modes:
                module.training = mode
            yield
        finally:
            for module, mode in now:
                module.training = mode


_COARSE = (torch.float32, torch.float16, torch.bfloat16)


class DoubleTrace(Trace):
    """A trace that keeps to float64: casts to a coarser dtype are left out, constants of one are brought up."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(snapshot.model)
        self._model, self.model = snapshot.model, snapshot
        self.adjusted = False  # whether there was anything to keep from rounding

    def _where(self) -> tuple[str, str]:
        module = self._modules[-1] if self._modules else self._model
        return self._names.get(module, ""), type(module).__name__

    def at(self, switches: list[Switch], x: Tensor) -> Tensor:
        """The model at ``x: (B, *shape)`` with the choices of ``switches``, which may be of any integer type."""
        self._recorded, self.with_margins = switches, False
        return self.run(x)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        if not tensors:  # a factory, of what will be a constant
            result = func(*args, **kwargs)
            if isinstance(result, Tensor) and result.dtype in _COARSE:
                self.adjusted, result = True, result.double()
            return result
        if not any(self.depends(tensor) for tensor in tensors):
            return func(*args, **kwargs)
        coarse = {id(tensor): tensor.double() for tensor in tensors if tensor.dtype in _COARSE}
        name = func.__name__
        if coarse:
            self.adjusted = True
            if name == "__setitem__" or (name.endswith("_") and not name.startswith("__")):
                self.offend(f"{name}, which rounds to {tensors[0].dtype}")
            elif name not in _CASTS:
                args, kwargs = _replace(args, coarse), _replace(kwargs, coarse)
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, Tensor) and result.dtype in _COARSE and self.depends(result):
            self.adjusted = True
            if name in _CASTS:
                result = args[0].to(result.device, copy=True)
                self._mark(result)
            else:
                self.offend(f"{name}, which rounds to {result.dtype}")
        return result


def _replace(value: Any, by: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return by.get(id(value), value)
    if isinstance(value, dict):
        return {key: _replace(item, by) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)([_replace(item, by) for item in value])
    return value


class Choice(NamedTuple):
    """What one switch chose on every polygon that there was after a number of cuts."""

    path: str
    packed: NDArray[Any]
    """``(R, ceil(K / 8)) uint8``, bits, where ``width`` is not None; else ``(R, K)`` whole numbers."""
    width: int | None
    shape: tuple[int, ...]
    """Of one sample."""
    stage: int


class Restart(Exception):
    """The rows of two tensors do not fit, so that no tensor may get new rows while the model runs."""


class TooLarge(Exception):
    """A cut would give more numbers than are wanted at once; ``parts`` is in how many parts the box had better be taken."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts


class _Again(Exception):
    """There are new vertices: the model is run again, at all of them."""


class Walk(DoubleTrace):
    """Runs a model at the vertices of a subdivision, which every switch cuts.

    A tensor has one row for each vertex that there was when it was made. When an old tensor meets a new one, it gets rows for
    the newer vertices, by interpolation, which is exact: it is affine on the edge in which a vertex was put.
    Should a model not bear that its batch grows (it may have kept its size), ``growing`` is false: then the model
    is started again after each cut, at all vertices, and each comparison made so far keeps its values.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        inputs: Callable[[NDArray[np.float64]], Tensor],
        mesh: Subdivision,
        *,
        growing: bool,
        most: float = math.inf,
    ) -> None:
        super().__init__(snapshot)
        self.mesh, self.inputs, self.growing, self.most = mesh, inputs, growing, most
        self.output = torch.empty(0)  # at the vertices, flattened
        self._cuts: list[NDArray[np.float64]] = []  # of a model that is started again

    def walk(self) -> Tensor:
        """The model's output at the vertices, once no switch changes within a polygon."""
        while True:
            try:
                return self._attempt()
            except _Again:
                pass

    def _attempt(self) -> Tensor:
        # Of the dependent tensors by identity; nothing is kept alive, and what dies is forgotten.
        self._alive: dict[int, weakref.ref[Tensor]] = {}
        self._dependent, self._winners, self._modules = cast("dict[int, Tensor]", self._alive), {}, []
        self.switches, self.offenders = [], []
        self._rows: dict[int, int] = {}
        self._became: dict[int, Tensor] = {}  # tensors that were written into, and grew
        self._grown: dict[int, tuple[int, Tensor]] = {}  # with the version that they were of
        self.choices: list[Choice] = []
        self.parents: list[Integers] = []
        self.merges = False  # whether a maximum was cut along comparisons that do not decide it
        self.size = 0.0  # of the numbers that are compared, in a few rows
        self._cut_count = 0
        x = self.inputs(self.mesh.vertices)
        self._now = x.shape[0]
        self._mark(x)
        with watching_modules(self._enter, self._leave), self:
            y = self.model(x)
        if not isinstance(y, Tensor):
            raise TypeError(f"model must return one tensor, got {type(y).__name__}")
        if self.offenders:
            return y
        y = self._became.get(id(y), y)
        rows = self._rows_of(y) if self.depends(y) else len(self.mesh.vertices)
        if y.dim() == 0 or y.shape[0] != rows:
            if self.growing:
                raise Restart
            raise ValueError(f"model must return one output for each of the {rows} samples, got shape {tuple(y.shape)}")
        return self._grow(y)

    def _mark(self, result: Any) -> None:
        for tensor in _tensors(result):
            self._know(tensor)
            if tensor._base is not None:
                self._know(tensor._base)

    def _know(self, tensor: Tensor) -> None:
        key = id(tensor)
        self._rows[key] = self._now
        if key not in self._alive:
            books = self._alive, self._rows, self._became, self._grown

            def forget(_: Any) -> None:
                for book in books:
                    book.pop(key, None)

            self._alive[key] = weakref.ref(tensor, forget)

    def _rows_of(self, tensor: Tensor) -> int:
        rows = self._rows.get(id(tensor))
        return self._rows[id(tensor._base)] if rows is None else rows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        if self._became and any(id(tensor) in self._became for tensor in tensors):
            args, kwargs = _replace(args, self._became), _replace(kwargs, self._became)
            tensors = _tensors((args, kwargs))
        dependent = [tensor for tensor in tensors if self.depends(tensor)]
        if dependent:
            rows = [self._rows_of(tensor) for tensor in dependent]
            self._now = max(rows)
            if min(rows) < self._now:
                name = func.__name__
                in_place = name == "__setitem__" or (name.endswith("_") and not name.startswith("__"))
                if in_place and self.depends(tensors[0]) and self._rows_of(tensors[0]) < self._now:
                    raise Restart  # what is written into would have to grow
                old = {id(t): self._grow(t) for t, r in zip(dependent, rows, strict=True) if r < self._now}
                args, kwargs = _replace(args, old), _replace(kwargs, old)
        return super().__torch_function__(func, types, args, kwargs)

    def _grow(self, tensor: Tensor) -> Tensor:
        """Rows for all vertices; a result of it is younger than all others, and is not grown again."""
        count = len(self.mesh.vertices)
        if not self.depends(tensor) or self._rows_of(tensor) == count:
            return tensor
        if not self.growing or tensor.dim() == 0 or tensor.shape[0] != self._rows_of(tensor):
            raise Restart
        version, grown = self._grown.get(id(tensor), (-1, tensor))
        if version != tensor._version:
            grown = tensor
        if grown.shape[0] < count:
            grown = self._extend(grown)
            self._now = count
            self._mark(grown)
            self._grown[id(tensor)] = tensor._version, grown
        return grown

    def _extend(self, tensor: Tensor) -> Tensor:
        return torch.from_numpy(self.mesh.extend(tensor.contiguous().cpu().numpy())).to(tensor.device)

    def write(self, target: Tensor, result: Tensor) -> Tensor:
        if target.shape == result.shape:
            return super().write(target, result)
        if target._base is not None or any(self._is_view(alive(), target) for alive in list(self._alive.values())):
            raise Restart
        self._became[id(target)] = result
        return result

    @staticmethod
    def _is_view(tensor: Tensor | None, base: Tensor) -> bool:
        return tensor is not None and tensor._base is base

    # The switches.

    def two_slopes(self, z: Tensor, below: Tensor | float) -> Tensor:
        if self.offenders:
            return super().two_slopes(z, below)
        z = self._cut(z)
        self._choose(self._positive(z), z.shape[1:])
        return z.relu_() if isinstance(below, float) and below == 0 else torch.where(z > 0, z, below * z)

    def clamp_between(self, z: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
        low, high = (torch.as_tensor(bound, dtype=z.dtype, device=z.device) for bound in (low, high))
        if self.offenders or bool((low > high).any()):
            return super().clamp_between(z, low, high)
        z = self._at_all(z)
        # An infinite bound makes no comparison: it is never near.
        above_low, below_high = torch.where(low.isinf(), 1.0, z - low), torch.where(high.isinf(), 1.0, high - z)
        both = self._cut(torch.stack([above_low, below_high], dim=1))
        above_low, below_high = both[:, 0], both[:, 1]
        inside_low, inside_high = self._positive(above_low), self._positive(below_high)
        self._choose(np.where(inside_high, inside_low.astype(np.uint8), np.uint8(2)), z.shape[1:])
        z = self._at_all(z)
        return torch.where(below_high <= 0, high, torch.where(above_low <= 0, low, z))

    def largest(self, candidates: Tensor, exists: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.offenders:
            return super().largest(candidates, exists)
        count = candidates.shape[-1]
        shape = candidates.shape[1:-1]
        names = torch.arange(count).expand(*shape, count)
        if exists is not None:
            # In the place of what does not exist stands the first that does, a second time.
            here = exists.expand(*shape, count)
            names = torch.where(here.cpu(), names, here.int().argmax(-1, keepdim=True).cpu())
            candidates = candidates.gather(-1, names.to(candidates.device).expand(candidates.shape))
        kind = np.uint8 if count <= 256 else np.int64
        winner = names.reshape(1, -1, count).numpy().astype(kind)  # on every polygon, or on each one
        while count > 1:
            # A tournament of neighbours: at a tie the left one stays.
            left, right = candidates[..., 0 : count - 1 : 2], candidates[..., 1:count:2]
            before = len(self.parents)
            ahead = self._cut(right - left)
            candidates = self._at_all(candidates)
            left = candidates[..., 0 : count - 1 : 2] + ahead.clamp(min=0)
            candidates = left if count % 2 == 0 else torch.cat([left, candidates[..., -1:]], dim=-1)
            if len(winner) > 1:
                for parent in self.parents[before:]:
                    winner = winner[parent]
            won = self._positive(ahead).reshape(len(self.mesh), -1, count // 2)
            best = np.where(won, winner[..., 1:count:2], winner[..., 0 : count - 1 : 2])
            if count % 2:
                last = np.broadcast_to(winner[..., -1:], (len(best), *winner.shape[1:-1], 1))
                best = np.concatenate([best, last], axis=-1)
            winner = best
            self.merges |= count > 2
            count = (count + 1) // 2
        output = candidates.squeeze(-1)
        winner = np.broadcast_to(winner[..., 0], (len(self.mesh), winner.shape[1]))
        self._choose(np.ascontiguousarray(winner), shape)
        return output, torch.zeros((), dtype=torch.int64, device=output.device).expand(output.shape)

    def _at_all(self, tensor: Tensor) -> Tensor:
        """As `_grow`, of a tensor that a rule made."""
        if tensor.shape[0] == len(self.mesh.vertices):
            return tensor
        if not self.growing:
            raise Restart
        self._now = len(self.mesh.vertices)
        return self._extend(tensor)

    def _cut(self, z: Tensor) -> Tensor:
        """Cuts all polygons along the zeros of the functions ``z: (V, *shape)``, and returns their values at all vertices."""
        if z.dim() == 0 or z.shape[0] != self._now:
            raise (
                Restart
                if self.growing
                else NotPiecewiseLinear(f"to a tensor of shape {tuple(z.shape)}, not one row for each sample")
            )
        z = self._at_all(z)
        shape = z.shape[1:]
        number, self._cut_count = self._cut_count, self._cut_count + 1
        if number < len(self._cuts):
            self._cuts[number] = self.mesh.extend(self._cuts[number])
            values = self._cuts[number].copy()  # what is returned is written into
        else:
            values = z.reshape(z.shape[0], math.prod(shape)).cpu().numpy()
            self.size = max(self.size, float(np.abs(values[:16]).max(initial=0)))
            with np.errstate(all="ignore"):
                finite = math.isfinite(values.sum())
            if not finite:
                raise ValueError("model must be finite on the whole box, but a number that a switch compares is not")
            if self.growing:
                self._refuse_large(values)
            values = self.mesh.cut(values)
            if self.growing:
                self.parents.append(self.mesh.parent)
            else:
                self._cuts.append(values.copy())
                if len(values) > z.shape[0]:
                    raise _Again
        self._now = len(values)
        return torch.from_numpy(values).to(z.device).reshape(len(values), *shape)

    def _refuse_large(self, values: NDArray[np.float64]) -> None:
        """Raises `TooLarge` where the cut looks as if it gave more than ``most`` numbers, by what a few polygons say."""
        count, functions = values.shape
        polygons = len(self.mesh)
        if (count + polygons * functions * (1 + functions / 4)) * functions <= self.most:
            return
        start, index = self.mesh.polygons
        some = np.arange(0, polygons, max(1, polygons // 64))
        corners = start[some + 1] - start[some]
        first = np.cumsum(corners) - corners
        sign = values[index[np.repeat(start[some] - first, corners) + np.arange(corners.sum())]]
        crossed = (np.maximum.reduceat(sign, first) > 0) & (np.minimum.reduceat(sign, first) < 0)
        lines = crossed.sum(axis=1)
        # A line has two ends, each on an edge of two polygons; of the pairs of lines about half meet within the polygon.
        numbers = (count + polygons * float((lines * (1 + lines / 4)).mean())) * functions
        if numbers > self.most:
            raise TooLarge(math.ceil(numbers / self.most))

    def _positive(self, z: Tensor) -> NDArray[np.bool_]:
        return self.mesh.positive(z.reshape(z.shape[0], math.prod(z.shape[1:])).cpu().numpy())

    def _choose(self, choice: NDArray[Any], shape: Sequence[int]) -> None:
        width = None
        if choice.dtype == np.bool_:
            width, choice = choice.shape[1], np.packbits(choice, axis=1)
        self.choices.append(Choice(self._where()[0], choice, width, tuple(shape), len(self.parents)))
