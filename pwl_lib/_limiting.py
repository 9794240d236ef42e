r"""Limiting gradients: the gradients of those affine pieces of a model that touch an input.

`subgradients` hands these functions on. They run a model as `piecewise_linear` does, with its switches frozen, but a tie is broken
by what the compared numbers do a little further on, along a direction: the piece so chosen is met by a ray from the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pwl_lib._least_norm import nearest_to_origin
from pwl_lib._trace import Model, Trace, _tensors, per_sample, untouched
from pwl_lib._validation import check_floating
from pwl_lib.piecewise_linear import _check_input, _flat, _jacobian, _refuse_offenders

__all__ = ["clarke_vertices", "limiting_gradient"]

_MOST_CELLS = 4096
_AT_ONCE = 256  # cells that one run of the model visits


class _Beside(TorchFunctionMode):
    """Below a `Trace` it computes of a second input what the model computes of the first, through the same frozen branches."""

    def __init__(self, x: Tensor, second: Tensor) -> None:
        super().__init__()
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}  # by the identity of the first, which is kept alive
        self.paused = False
        self._pair(x, second)

    def __getitem__(self, tensor: Tensor) -> Tensor:
        """What stands in the place of ``tensor`` beside; a tensor that does not depend on the input stands there itself."""
        pair = self._pairs.get(id(tensor))
        if pair is not None:
            return pair[1]
        return self._view_beside(tensor) if self._is_view_of_pair(tensor) else tensor.detach()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused or not any(self._stands_in(tensor) for tensor in _tensors((args, kwargs))):
            return func(*args, **kwargs)
        name = func.__name__
        if name in ("requires_grad_", "retain_grad") or (name == "__get__" and func.__self__.__name__ == "_base"):
            return func(*args, **kwargs)
        with torch.no_grad():
            others = [self._other(argument) for argument in args]
            if (name.endswith("_") or name == "__setitem__") and others[0] is args[0]:
                # A constant, which becomes two different tensors; of a view, the whole that it is a part of.
                whole = args[0] if args[0]._base is None else args[0]._base
                self._pair(whole, whole.clone())
                others[0] = self[args[0]]
            beside = func(*others, **{key: self._other(value) for key, value in kwargs.items()})
        result = func(*args, **kwargs)
        for tensor, other in zip(_tensors(result), _tensors(beside), strict=True):
            if tensor.is_floating_point():
                self._pair(tensor, other)
        return result

    def _pair(self, tensor: Tensor, other: Tensor) -> None:
        self._pairs[id(tensor)] = (tensor, other)

    def _is_view_of_pair(self, tensor: Tensor) -> bool:
        return tensor._base is not None and id(tensor._base) in self._pairs

    def _stands_in(self, tensor: Tensor) -> bool:
        return id(tensor) in self._pairs or self._is_view_of_pair(tensor)

    def _view_beside(self, tensor: Tensor) -> Tensor:
        """A view that was taken before its base was first written into."""
        base, other = self._pairs[id(tensor._base)]
        offset = tensor.storage_offset() - base.storage_offset() + other.storage_offset()
        self._pair(tensor, other.as_strided(tensor.size(), tensor.stride(), offset))
        return self._pairs[id(tensor)][1]

    def _other(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self[value] if self._stands_in(value) else value
        return type(value)(map(self._other, value)) if type(value) in (tuple, list) else value


class _AlongDirections(Trace):
    """Breaks a tie by what the compared numbers are along directions from the input, the first that tells them apart.

    The frozen model is affine, so that its numbers at ``x + direction`` are those at ``x`` plus their derivatives, and of two
    that are equal at ``x`` the one with the larger derivative is larger there. Each run carries one direction; what earlier runs
    found along theirs is kept. A tie that a direction leaves has no part in what is found along it, so that this stays as it is
    when the tie is broken later.
    """

    def __init__(self, model: Model, *, with_margins: bool = False, asks: bool = False) -> None:
        super().__init__(model)
        self._earlier: list[list[Tensor]] = []
        self.with_margins = with_margins
        self._asks = asks  # whether a tie is left

    def along(self, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and that of the frozen model at ``self.second``, which lies in ``direction`` from ``x``."""
        self._current: list[Tensor] = []
        self.undecided = False
        with torch.no_grad():
            # As far away as x is large: nearer, rounding takes digits from the differences; farther, from the numbers.
            size = _size(x)
            size = torch.minimum(size.clamp(min=1), (torch.finfo(x.dtype).max - size) / 2)
            # Neighbours not equally far, so that a model that mixes samples is found out. All factors have few digits: then
            # x + direction is exact where both have few, and a direction that lies in a fold does not leave it by rounding.
            uneven = 1 - torch.arange(x.shape[0], device=x.device).remainder(16).to(x.dtype) / 32
            scale = uneven.reshape(size.shape) * _power_of_two(size)
            self.second = x + direction / _power_of_two(_size(direction)) * scale
        self._beside = _Beside(x, self.second.clone())
        with self._beside:
            y = self.run(x)
        self._earlier.append(self._current)
        return y, self._beside[y]

    # The margins of a choice are not needed for a gradient, and take as long as the rest.

    def two_slopes(self, z: Tensor, below: Tensor | float) -> Tensor:
        if self.with_margins:
            return super().two_slopes(z, below)
        # A product is several times as fast as a choice.
        on = self._quietly(self._is_above, z)
        return z * (
            on.to(z.dtype) if isinstance(below, float) and below == 0 else torch.where(on, 1, below).to(z.dtype)
        )

    def largest(self, candidates: Tensor, exists: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.with_margins:
            return super().largest(candidates, exists)
        winner = self._quietly(
            self.choose_winner, candidates, candidates.new_tensor(True) if exists is None else exists
        )
        return candidates.gather(-1, winner[..., None]).squeeze(-1), winner

    def largest_at(self, input: Tensor, index: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
        if self.with_margins:
            return super().largest_at(input, index, exists)
        winner = self._quietly(self._winner_at, input, index, exists)
        chosen = index.expand(*winner.shape, -1).gather(-1, winner[..., None]).squeeze(-1)
        return input.gather(-1, chosen), winner

    def freeze(self, choose: Callable[[], Tensor], apply: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        return super().freeze(lambda: self._quietly(choose), apply)

    def choose_slope(self, z: Tensor) -> Tensor:
        return self._is_above(z).long()

    def _is_above(self, z: Tensor) -> Tensor:
        above, tied = z > 0, z == 0
        for beside in self._numbers_beside(self._beside[z]):
            if not bool(tied.any()):
                return above
            above = above | (tied & (beside > 0))
            if self._asks or self._earlier:
                tied = tied & (beside == 0)
        self._note(tied)
        return above

    def choose_side(self, z: Tensor, low: Tensor, high: Tensor) -> Tensor:
        passed_low, passed_high = (z - low).sign(), (z - high).sign()
        for beside in self._numbers_beside(self._beside[z]):
            passed_low = torch.where(passed_low == 0, (beside - low).sign(), passed_low)
            passed_high = torch.where(passed_high == 0, (beside - high).sign(), passed_high)
        self._note((passed_low == 0) | (passed_high == 0))
        return (passed_low > 0).long() + (passed_high > 0).long()

    def choose_winner(self, candidates: Tensor, exists: Tensor) -> Tensor:
        return self._winner(candidates, self._beside[candidates], exists, -1)

    def _winner_at(self, input: Tensor, index: Tensor, exists: Tensor) -> Tensor:
        # One candidate of all maxima after another: so what is compared lies side by side in memory.
        order = index.T.flatten().expand(*input.shape[:-1], -1)
        candidates, beside = (
            part.gather(-1, order).unflatten(-1, index.T.shape) for part in (input, self._beside[input])
        )
        return self._winner(candidates, beside, exists.T, -2)

    def _winner(self, candidates: Tensor, beside: Tensor, exists: Tensor, dim: int) -> Tensor:
        """A knockout: in each round the first half of those that are left meets the second."""
        if not bool(exists.all()):
            candidates = candidates.masked_fill(~exists, -math.inf)
        keys = [candidates, *self._numbers_beside(beside)]
        count = candidates.shape[dim]
        shape = [count if d == dim % candidates.dim() else 1 for d in range(candidates.dim())]
        small = torch.uint8 if count < 256 else torch.int64
        index = torch.arange(count, dtype=small, device=candidates.device).reshape(shape).expand(candidates.shape)
        while count > 1:
            pairs = count // 2
            first, second = ([key.narrow(dim, start, pairs) for key in keys] for start in (0, count - pairs))
            wins, equal = second[0] > first[0], second[0] == first[0]
            for number, (one, other) in enumerate(zip(first[1:], second[1:], strict=True), 2):
                wins = wins | (equal & (other > one))
                if self._asks or number < len(keys):
                    equal = equal & (other == one)
            self._note(equal)
            winner = torch.where(wins, index.narrow(dim, count - pairs, pairs), index.narrow(dim, 0, pairs))
            if count > 2:
                left = [torch.where(wins, other, one) for one, other in zip(first, second, strict=True)]
                if count % 2:  # the one in the middle meets nobody
                    left = [torch.cat([k, key.narrow(dim, pairs, 1)], dim) for k, key in zip(left, keys, strict=True)]
                    winner = torch.cat([winner, index.narrow(dim, pairs, 1)], dim)
                keys = left
            index, count = winner, count - pairs
        return index.squeeze(dim).long()

    def _numbers_beside(self, beside: Tensor) -> list[Tensor]:
        """The compared numbers along each direction so far, the last of which is given."""
        number = len(self._current)
        # What a later run asks for is kept apart from an operation that works in place.
        self._current.append(beside.clone() if self._asks else beside)
        return [*(run[number] for run in self._earlier), beside]

    def _quietly(self, choose: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        self._beside.paused = True
        with torch.no_grad():
            choice = choose(*arguments)
        self._beside.paused = False
        return choice

    def _note(self, tied: Tensor) -> None:
        if self._asks:
            self.undecided = self.undecided or bool(tied.any())


def limiting_gradient(
    model: Model, x: Tensor, direction: Tensor | None = None, output: int | tuple[int, ...] | None = None
) -> Tensor:
    r"""A gradient that is right at kinks: that of an affine piece of ``model`` which touches ``x``.

    Autograd puts one slope for each operation into the chain rule, and at a kink the product may be no slope of the function at all.
    Here every number of the program is carried with its derivative along one direction :math:`v`, and each tie between numbers is
    broken by their derivatives. The choices are then those that the program makes at :math:`x + tv` for all small :math:`t > 0`,
    and one backward pass through them gives the limit

    .. math:: A = \lim_{t \downarrow 0} \nabla f(x + tv) ,

    which is :eq:`eq-limiting-gradient` of the book: an element of Bouligand's, hence of Clarke's subdifferential.
    Where ``model`` is differentiable this is its gradient.

    Args:
        model: a piecewise linear module or function, see :func:`~pwl_lib.piecewise_linear.is_piecewise_linear`, whose output ``i``
            depends on input ``i`` alone.
        x: ``(B, *input_shape)`` floating point, finite.
        direction: of the shape of ``x``, or of one input for all of them. Without it, a fixed direction of random numbers, the same
            for all inputs.
        output: the index of the number to differentiate among the outputs of one input; not needed where there is only one.

    Returns:
        The gradients, of the shape and dtype of ``x``. With a ``direction`` their inner product with it is the derivative of the
        output in that direction, from the one side.

    Ties are those of the model's own arithmetic: two numbers tie when they are equal to the last digit. A given direction may lie
    in a fold and leave a tie as it is; then it is broken along a second, random direction :math:`w`, as it would be at
    :math:`x + tv + t^2 w`. A direction of 0 thus decides nothing. A tie that no direction breaks is one between functions that
    are equal near that point, and the first of them is taken.

    Raises:
        TypeError: ``x`` or ``direction`` is not a floating point tensor; ``output`` is neither an int nor a tuple of them.
        ValueError: the model is not piecewise linear (each module that is not is named), mixes the samples of the batch or stops
            the gradient; ``x`` has no batch dimension or is not finite; ``direction`` has another shape or is not finite;
            ``output`` names no one number.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, requires_grad=True)
        >>> model = lambda x: torch.relu(x) - torch.relu(-x)  # this is x
        >>> torch.autograd.grad(model(x).sum(), x)[0], limiting_gradient(model, x)
        (tensor([0.]), tensor([1.]))

    Source: the book, :prf:ref:`thm-limiting-gradient`; after Kakade and Lee (2018).
    """
    _check_input(x)
    direction, given = _direction(x, direction)
    with untouched(model, x):
        # The numbers of half precision are too coarse for one direction to tell all apart that differ.
        frozen = _AlongDirections(model, asks=given or x.element_size() < 4)
        leaf = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            y, beside = frozen.along(leaf, direction)
            _refuse_offenders(frozen)
            if frozen.undecided:
                y, beside = frozen.along(leaf, _generic(x, seed=1))
        chosen = _pick(y, output)
        gradient = _gradient(chosen, leaf)
        _verify(frozen, x, chosen, gradient, _pick(beside, output))
    return gradient


def clarke_vertices(model: Model, x: Tensor, output: int | tuple[int, ...] | None = None) -> Tensor:
    r"""All limiting gradients of ``model`` at one input: the gradients of all its affine pieces that touch ``x``.

    They are Bouligand's subdifferential, :eq:`eq-bouligand`, and Clarke's is their convex hull, :eq:`eq-clarke`. All vertices
    of the hull are among them; some may lie inside.
    Near ``x`` the pieces are cones. One of them is met along a random direction, and tells which comparisons are tied there, in
    the order in which the program makes them. Turning round one comparison, under all that come before it, leads to another cone,
    or to none: by Gordan's theorem a cone is empty if and only if 0 lies in the convex hull of the gradients that bound it.
    So each cone is visited once.
    Two things are beyond the digits of the arithmetic. Numbers whose slopes are smaller than the largest by a factor of
    :math:`10^{-5}` in float32, :math:`10^{-12}` in float64, count as constants, and cones as thin as an angle of about
    :math:`10^{-4}` in float32, :math:`10^{-7}` in float64, are left out.

    Args:
        model: a piecewise linear module or function; small, or with few ties at ``x``.
        x: ``input_shape``, one input without a batch dimension, floating point, finite.
        output: as for :func:`limiting_gradient`.

    Returns:
        ``(k, *input_shape)``, no two of them equal up to rounding. The first is :func:`limiting_gradient` of ``x``.

    Raises:
        TypeError, ValueError: as :func:`limiting_gradient`.
        ValueError: more than 4096 cones meet at ``x``.

    Example:
        >>> import torch
        >>> sorted(clarke_vertices(lambda x: x.abs()[:, 0] + x.amin(1), torch.zeros(2)).tolist())
        [[-1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [2.0, 0.0]]

    Source: the book, :eq:`eq-clarke`.
    """
    check_floating("x", x)
    _check_input(x[None])
    found: list[Tensor] = []
    cells = 0
    waiting = [
        (_generic(x[None])[0], 0)
    ]  # a direction into a cone, and how many of its decisions are no longer to be turned round
    while waiting:
        now, waiting = waiting[:_AT_ONCE], waiting[_AT_ONCE:]
        gradients, decisions = _cones(model, x, torch.stack([direction for direction, _ in now]), output)
        for gradient, decided, (_, settled) in zip(gradients, decisions, now, strict=True):
            cells += 1
            scale = 1e-9 + (gradient.abs().amax() if gradient.numel() else 0)
            if not found or float(_flat(torch.stack(found) - gradient).abs().amax(1).min()) > _rounding(x) * scale:
                found.append(gradient)
            waiting += _neighbours(decided, settled, x)
            if cells + len(waiting) > _MOST_CELLS:
                raise ValueError(
                    f"model has more than {_MOST_CELLS} affine pieces that touch x, which is too many to list; "
                    "limiting_gradient gives one of them"
                )
    return torch.stack(found)


def _cones(
    model: Model, x: Tensor, directions: Tensor, output: int | tuple[int, ...] | None
) -> tuple[Tensor, list[list[Tensor]]]:
    """The gradient near ``x`` along each direction, and the decisions taken at ties there, in the order of the program.

    A decision is the gradients ``(ties, n)`` of the comparisons that it won; those that are 0 say nothing and are left out.
    """
    leaf = x.detach().expand(directions.shape).clone().requires_grad_()
    with untouched(model, leaf):
        frozen = _AlongDirections(model, with_margins=True)
        with torch.enable_grad():
            y, beside = frozen.along(leaf, directions.to(leaf))
        _refuse_offenders(frozen)
        chosen = _pick(y, output)
        gradient = _gradient(chosen, leaf)
        units, margins = [], []
        for number, switch in enumerate(frozen.switches):
            margin = per_sample(switch.margin, len(leaf), switch.path)
            comparisons = 1 if switch.margin.dim() == switch.choice.dim() else switch.margin.shape[-1]
            tied = (margin == 0).any(0).nonzero().flatten()
            units += [(number, column // comparisons) for column in tied.tolist()]
            margins.append(margin[:, tied])
        margin = torch.cat([y.new_zeros(len(leaf), 0), *margins], dim=1)
        rows = _jacobian(margin, leaf, frozen.eps).double().cpu()
        _verify(frozen, leaf, chosen, gradient, _pick(beside, output))
    norm = torch.linalg.vector_norm(rows, dim=2)
    says = (margin == 0).cpu() & (norm > _rounding(x) * norm.amax(1, keepdim=True)) if units else norm.bool()
    decisions = []
    for sample in range(len(leaf)):
        groups: dict[tuple[int, int], list[int]] = {}
        for column in says[sample].nonzero().flatten().tolist():
            groups.setdefault(units[column], []).append(column)
        decisions.append([rows[sample, columns] for columns in groups.values()])
    return gradient, decisions


def _neighbours(decisions: list[Tensor], settled: int, x: Tensor) -> list[tuple[Tensor, int]]:
    """The cones that take another decision somewhere after ``settled``, and the same ones before it: a direction into each."""
    found = []
    for number in range(settled, len(decisions)):
        before, rows = decisions[:number], decisions[number]
        kept: list[Tensor] = []
        for row in rows:
            small = _rounding(x) * torch.linalg.vector_norm(rows, dim=1).amax()
            if any(float(torch.linalg.vector_norm(row - other)) <= small for other in kept):
                continue  # two that lose by the same function are one
            kept.append(row)
            differences = rows - row
            differences = differences[torch.linalg.vector_norm(differences, dim=1) > small]
            direction = _inside(torch.cat([*before, -row[None], differences]), x)
            if direction is not None:
                found.append((direction, number + 1))
    return found


def _inside(rows: Tensor, x: Tensor) -> Tensor | None:
    """A vector whose products with all ``rows`` are positive, with nothing special about it; None where there is none."""
    rows = torch.nn.functional.normalize(rows, dim=1)
    nearest = nearest_to_origin(rows)
    length = float(torch.linalg.vector_norm(nearest))
    if length <= 10 * _rounding(x):
        return None
    # The products are at least length**2. Less than that is added, so that later comparisons are not tied as well.
    aside = torch.nn.functional.normalize(_generic(rows[:1], seed=rows.shape[0])[0], dim=0)
    return (nearest / length + 0.5 * length * aside).reshape(x.shape)


def _direction(x: Tensor, direction: Tensor | None) -> tuple[Tensor, bool]:
    if direction is None:
        return _generic(x), False
    check_floating("direction", direction)
    if direction.shape not in (x.shape, x.shape[1:]):
        raise ValueError(
            f"direction must have the shape of x, {tuple(x.shape)}, or of one input, {tuple(x.shape[1:])}, "
            f"got {tuple(direction.shape)}"
        )
    if not bool(torch.isfinite(direction).all()):
        raise ValueError("direction must be finite, got NaN or an infinity")
    batch = direction.detach() if direction.shape == x.shape else direction.detach()[None]
    # Of length 1 or so before it is rounded to the dtype of x, in which it may not be 0 nor infinite.
    return (batch / _power_of_two(_size(batch))).to(x), True


def _size(x: Tensor) -> Tensor:
    """The largest number of each sample, of a shape that fits ``x``."""
    parts = _flat(x).abs()
    size = parts.amax(1) if parts.shape[1] else parts.sum(1)
    return size.reshape(-1, *[1] * (x.dim() - 1))


def _power_of_two(size: Tensor) -> Tensor:
    """The largest power of 2 that is not above ``size``; 1 for 0."""
    # In float32 at least: not every device takes numbers of half precision apart.
    wide = torch.where(size > 0, size, 1).to(torch.promote_types(size.dtype, torch.float32))
    return (wide / (2 * torch.frexp(wide).mantissa)).to(size.dtype)


def _generic(x: Tensor, seed: int = 0) -> Tensor:
    """``(1, *input_shape)`` random numbers, the same each time, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *x.shape[1:], dtype=torch.float64, generator=generator).to(x)


def _rounding(x: Tensor) -> float:
    """What counts as 0 beside 1 where numbers of the dtype of ``x`` were multiplied and added a few times."""
    return torch.finfo(x.dtype).eps ** 0.75


def _pick(y: Tensor, output: int | tuple[int, ...] | None) -> Tensor:
    """``(B, *output_shape)`` to ``(B,)``."""
    shape = tuple(y.shape[1:])
    if output is None:
        if math.prod(shape) != 1:
            raise ValueError(
                f"output must name one of the numbers that the model returns for an input, whose shape is {shape}"
            )
        return y.reshape(y.shape[0])
    index: tuple[int, ...] = output if isinstance(output, tuple) else (output,)
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in index):
        raise TypeError(f"output must be an int or a tuple of ints, got {output!r}")
    if len(index) != len(shape) or not all(-size <= i < size for i, size in zip(index, shape, strict=True)):
        raise ValueError(f"output must be an index of one number among outputs of shape {shape}, got {output!r}")
    for i in index:
        y = y[:, i]
    return y


def _gradient(chosen: Tensor, leaf: Tensor) -> Tensor:
    if not chosen.requires_grad or chosen.numel() == 0:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(chosen.sum(), leaf, retain_graph=True, allow_unused=True, materialize_grads=True)
    return gradient


def _verify(frozen: _AlongDirections, x: Tensor, value: Tensor, gradient: Tensor, beside: Tensor) -> None:
    """The frozen model must be affine with this gradient; if not, samples are mixed or a gradient is stopped or not its own."""
    with torch.no_grad():
        wide = torch.promote_types(x.dtype, torch.float32)
        slope, step = _flat(gradient).to(wide), _flat(frozen.second - x).to(wide)
        missed = (beside - value - torch.linalg.vecdot(slope, step)).abs()
        # The step is scaled, for its square may be too large a number; too small a one does no harm.
        unit = _power_of_two(_size(step))
        scale = torch.linalg.vector_norm(slope, dim=1) * torch.linalg.vector_norm(step / unit, dim=1) * unit[:, 0]
        scale = scale + value.abs() + beside.abs() + 1
    if not bool((missed <= math.sqrt(frozen.eps) * scale).all()):
        raise ValueError(
            "each output of the model must be a fixed function of its own sample, and gradients must flow through it; "
            f"here the piece misses the model's value by up to {missed.max().item():.3g}"
        )
