r"""Piecewise linear functions: the affine piece of a network at an input, its region, and its code word.

The module of the chapter *Piecewise linear functions*.
A network made of affine maps and of switches (ReLU and its family, maxima, clamps) is affine on each cell of a finite
partition of its input space into polyhedra. The functions here run a model once, as it is written, and watch every torch call.
An affine call is left alone. A switch is replaced by the affine branch that it takes at the input, so that what remains is the
affine piece itself, with its exact gradient. Any other call is reported by name.

At a tie a switch takes the lower branch (ReLU is off at 0, the absolute value has slope -1 at 0), a maximum its first argument.
The piece so chosen agrees with the function at the input, but its region may then have no interior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pwl_lib._trace import Model, Offender, Trace, per_sample, untouched
from pwl_lib._validation import check_floating

__all__ = [
    "AffinePiece",
    "Offender",
    "PiecewiseLinearity",
    "Polyhedron",
    "activation_pattern",
    "active_subnetwork",
    "affine_piece",
    "is_piecewise_linear",
    "polyhedron",
]


class PiecewiseLinearity:
    """The answer of :func:`is_piecewise_linear`: true or false, with the calls that stand in the way."""

    def __init__(self, offenders: Sequence[Offender]) -> None:
        self.offenders = tuple(offenders)

    def __bool__(self) -> bool:
        return not self.offenders

    def __repr__(self) -> str:
        if self:
            return "piecewise linear"
        return "not piecewise linear: " + "; ".join(_describe(offender) for offender in self.offenders)


class AffinePiece(NamedTuple):
    """The affine map that a model is near an input, one for each sample of a batch; calling it evaluates it."""

    A: Tensor
    """``(B, m, n)``: the Jacobian in numerator layout, for flattened outputs and inputs."""
    b: Tensor
    """``(B, m)``."""

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluates piece ``i`` at ``x[i]``: ``x: (B, n)`` or ``(B, *input_shape)`` gives ``(B, m)``."""
        return torch.einsum("bmn,bn->bm", self.A, _rows("x", x, self.A)) + self.b


class Polyhedron(NamedTuple):
    r"""The halfspaces :math:`H z \le c` of the region of an input, one polyhedron for each sample of a batch."""

    H: Tensor
    """``(B, K, n)``: one row for each comparison that the model makes."""
    c: Tensor
    """``(B, K)``."""

    def contains(self, z: Tensor, tol: float = 0.0) -> Tensor:
        """Says for each sample whether ``z[i]`` lies in polyhedron ``i``: ``z: (B, n)`` gives ``(B,) bool``."""
        z = _rows("z", z, self.H)
        return (torch.einsum("bkn,bn->bk", self.H, z) <= self.c + tol).all(dim=1)


def is_piecewise_linear(model: Model, x: Tensor) -> PiecewiseLinearity:
    r"""Tells whether every operation that ``model`` applies to ``x`` is affine or a known piecewise linear switch.

    The model is run once. The answer is about the operations met at ``x``, all of them, so it holds for every input that takes
    the same way through the model's Python code. A model whose way depends on the values of its input is refused.

    Args:
        model: a module, or any function of one tensor, in the mode (training or evaluation) it is asked about.
        x: ``(B, *input_shape)`` floating point, finite.

    Returns:
        An answer that is true or false, and whose ``repr`` names each module that is not piecewise linear.

    Raises:
        TypeError: ``x`` is not a floating point tensor.
        ValueError: ``x`` has no batch dimension, or holds NaN or an infinity.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, 3)
        >>> is_piecewise_linear(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), x)
        piecewise linear
        >>> is_piecewise_linear(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.GELU()), x)
        not piecewise linear: module '1' (GELU) applies gelu

    Source: the book, :eq:`eq-affine-piece`.
    """
    _check_input(x)
    trace = Trace(model)
    with untouched(model, x), torch.no_grad():
        trace.run(x)
    return PiecewiseLinearity(trace.offenders)


def activation_pattern(model: Model, x: Tensor) -> Tensor:
    r"""The code word of the region of each input: the branch that every switch takes.

    Args:
        model: a piecewise linear module or function, see :func:`is_piecewise_linear`.
        x: ``(B, *input_shape)`` floating point, finite.

    Returns:
        ``(B, K) int64``, one entry for each switch, in the order in which the model meets them.
        ReLU, leaky ReLU, PReLU and the absolute value: 1 where the input is positive, else 0.
        Clamps (hardtanh, ReLU6): 0 at or below the lower bound, 1 inside, 2 at or above the upper bound.
        Maxima (pooling, ``max``, ``maximum``): the number of the first argument that attains it.

    Raises:
        TypeError: ``x`` is not a floating point tensor.
        ValueError: the model is not piecewise linear (each module that is not is named), ``x`` has no batch dimension
            or is not finite.

    Example:
        >>> import torch
        >>> activation_pattern(torch.relu, torch.tensor([[2.0, -1.0, 0.0]]))
        tensor([[1, 0, 0]])

    Source: the book, :eq:`eq-activation-pattern`.
    """
    _check_input(x)
    trace = Trace(model)
    with untouched(model, x), torch.no_grad():
        trace.run(x)
    _refuse_offenders(trace)
    words = [per_sample(switch.choice, x.shape[0], switch.path) for switch in trace.switches]
    return torch.cat([x.new_zeros(x.shape[0], 0, dtype=torch.int64), *words], dim=1)


def affine_piece(model: Model, x: Tensor) -> AffinePiece:
    r"""The affine map :math:`A x + b` that ``model`` is on the region of each input.

    With :math:`D_\ell` the 0/1 mask of layer :math:`\ell`, a plain ReLU network has

    .. math:: A = W_L D_{L-1} W_{L-1} \cdots D_1 W_1 ,

    which is :eq:`eq-affine-piece` of the book. ``A`` is found by one backward pass through the model with its switches frozen,
    ``b`` by one forward pass at 0 through the same frozen switches. The difference ``model(x) - A @ x`` would lose the digits of
    ``b`` where ``x`` is large.

    Args:
        model: a piecewise linear module or function, see :func:`is_piecewise_linear`. Its output is ``(B, *output_shape)``,
            and output ``i`` depends on input ``i`` alone.
        x: ``(B, *input_shape)`` floating point, finite.

    Returns:
        ``AffinePiece(A, b)`` with ``A: (B, m, n)`` in numerator layout and ``b: (B, m)``, in the dtype of the output.
        Inputs and outputs are flattened row by row, as torch does.

    Raises:
        TypeError: ``x`` is not a floating point tensor, or the model does not return one.
        ValueError: the model is not piecewise linear (each module that is not is named), mixes the samples of the batch, or stops
            the gradient; ``x`` has no batch dimension or is not finite.

    Example:
        >>> import torch
        >>> x = torch.tensor([[3.0], [-3.0]])
        >>> piece = affine_piece(lambda x: 2 * torch.relu(x) + 1, x)
        >>> piece.A.flatten().tolist(), piece.b.flatten().tolist()
        ([2.0, 0.0], [1.0, 1.0])

    Source: the book, :eq:`eq-affine-piece`.
    """
    _check_input(x)
    with untouched(model, x):
        frozen, leaf, y = _freeze(model, x)
        A = _jacobian(_flat(y), leaf, frozen.eps)
        with torch.no_grad():
            piece = AffinePiece(A, _flat(frozen.replay(torch.zeros_like(x))))
            _verify("output", piece, x, _flat(model(x.clone())), frozen.eps)
            elsewhere = _elsewhere(x)
            _verify("output", piece, elsewhere, _flat(frozen.replay(elsewhere)), frozen.eps)
    return piece


def polyhedron(model: Model, x: Tensor) -> Polyhedron:
    r"""The halfspaces :math:`H z \le c` of the region of each input: every switch may choose there as it does at ``x``.

    Each switch compares affine functions of the input, and each comparison is one halfspace, :eq:`eq-region-polyhedron`.
    A ReLU gives one row, a clamp two, a maximum of k arguments k - 1. The region is closed: it contains the ties on its boundary.
    Rows that say nothing new are kept.

    Args:
        model: a piecewise linear module or function, see :func:`is_piecewise_linear`.
        x: ``(B, *input_shape)`` floating point, finite.

    Returns:
        ``Polyhedron(H, c)`` with ``H: (B, K, n)`` and ``c: (B, K)``. It unpacks, and ``.contains(z)`` tests points.

    Raises:
        TypeError: ``x`` is not a floating point tensor.
        ValueError: as :func:`affine_piece`.

    Example:
        >>> import torch
        >>> H, c = polyhedron(lambda x: torch.relu(x - 1), torch.tensor([[3.0]]))
        >>> H.tolist(), c.tolist()  # -z <= -1
        ([[[-1.0]]], [[-1.0]])

    Source: the book, :eq:`eq-region-polyhedron`.
    """
    _check_input(x)
    with untouched(model, x):
        frozen, leaf, _ = _freeze(model, x)
        margin = frozen.margins(x)
        slope = _jacobian(margin, leaf, frozen.eps)
        with torch.no_grad():
            frozen.replay(torch.zeros_like(x))
            at_zero = frozen.margins(x)
            _verify("switch", AffinePiece(slope, at_zero), x, margin, frozen.eps)
            elsewhere = _elsewhere(x)
            frozen.replay(elsewhere)
            _verify("switch", AffinePiece(slope, at_zero), elsewhere, frozen.margins(x), frozen.eps)
    return Polyhedron(-slope, at_zero)


def active_subnetwork(model: nn.Sequential, x: Tensor) -> nn.Sequential:
    r"""The thinner linear network that is left of a ReLU network at one input, once its inactive units are taken out.

    A unit whose pre-activation is not positive sends 0 to the next layer: its row leaves the weight before it, its column
    the weight after it, and no ReLU is needed any more. The result has the value and the gradient of ``model`` at ``x``.

    Args:
        model: ``nn.Linear`` and ReLU modules in turn, torch's or ours.
        x: ``(n,)`` floating point, finite: one input.

    Returns:
        ``nn.Sequential`` of ``nn.Linear`` alone, with as many rows in each hidden layer as the model has active units there.

    Raises:
        TypeError: ``model`` is not an ``nn.Sequential``, or holds another module than ``nn.Linear`` and ReLU; ``x`` is not a
            floating point tensor.
        ValueError: ``x`` is not one finite vector of the model's input size, two ``nn.Linear`` do not have a ReLU between them,
            or the model does not end with ``nn.Linear``.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> x = torch.tensor([1.0, -1.0])
        >>> thin = active_subnetwork(model, x)
        >>> bool(torch.isclose(thin(x), model(x))), len(thin)
        (True, 2)

    Source: the book, :eq:`eq-thin-network`.
    """
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"model must be an nn.Sequential of nn.Linear and ReLU, got {type(model).__name__}")
    check_floating("x", x)
    if x.dim() != 1:
        raise ValueError(f"x must be one input of shape (n,), got shape {tuple(x.shape)}")
    _check_input(x[None])
    layers: list[nn.Linear] = []
    is_relu = False
    hidden, alive = x, torch.ones_like(x, dtype=torch.bool)
    for position, (name, module) in enumerate(model.named_children()):
        is_relu = type(module).__name__ == "ReLU"
        if not (is_relu or isinstance(module, nn.Linear)):
            raise TypeError(
                f"model must hold nn.Linear and ReLU alone, got module '{name}' of type {type(module).__name__}"
            )
        if is_relu != (position % 2 == 1):
            raise ValueError(
                f"nn.Linear and ReLU must take turns, nn.Linear first; module '{name}' is {type(module).__name__}"
            )
        if isinstance(module, nn.Linear):
            if hidden.shape[0] != module.in_features:
                raise ValueError(
                    f"x must have the {module.in_features} numbers that module '{name}' takes, got {hidden.shape[0]}"
                )
            layers.append(_linear(module.weight[:, alive], module.bias))
            hidden = module(hidden)
        else:
            alive = hidden > 0
            last = layers[-1]
            layers[-1] = _linear(last.weight[alive], None if last.bias is None else last.bias[alive])
            hidden = torch.where(alive, hidden, 0)
    if is_relu:
        raise ValueError(
            f"model must end with nn.Linear, since the last ReLU cannot be taken out; it ends with module '{name}'"
        )
    return nn.Sequential(*layers)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.no_grad():
        # Its sizes and numbers come below: nn.Linear itself warns of a layer without units.
        linear = nn.Linear(1, 1, bias=bias is not None, device="meta")
        linear.out_features, linear.in_features = weight.shape
        linear.weight = nn.Parameter(weight.detach().clone())
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach().clone())
    return linear


def _check_input(x: Tensor) -> None:
    check_floating("x", x)
    if x.dim() == 0:
        raise ValueError("x must have a batch dimension, (B, *input_shape), got a scalar")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x must be finite, got NaN or an infinity")


def _rows(name: str, x: Tensor, matrices: Tensor) -> Tensor:
    batch, _, features = matrices.shape
    if x.dtype != matrices.dtype:
        raise TypeError(f"{name} must be {matrices.dtype}, got {x.dtype}")
    if x.dim() == 0 or _flat(x).shape != (batch, features):
        raise ValueError(f"{name} must have {batch} samples of {features} numbers, got shape {tuple(x.shape)}")
    return _flat(x)


def _flat(x: Tensor) -> Tensor:
    """``(B, *shape)`` as ``(B, n)``."""
    return x.flatten(1) if x.dim() > 1 else x[:, None]


def _refuse_offenders(trace: Trace) -> None:
    if trace.offenders:
        raise ValueError(f"model is {PiecewiseLinearity(trace.offenders)!r}")


def _describe(offender: Offender) -> str:
    where = f"module '{offender.path}' ({offender.module})" if offender.path else f"the model ({offender.module})"
    return f"{where} applies {offender.operation}"


def _freeze(model: Model, x: Tensor) -> tuple[Trace, Tensor, Tensor]:
    trace = Trace(model)
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        y = trace.run(leaf)
    _refuse_offenders(trace)
    return trace, leaf, y


def _jacobian(y: Tensor, x: Tensor, eps: float) -> Tensor:
    """``(B, m)`` as a function of ``x: (B, *input_shape)``, sample by sample, gives ``(B, m, n)``."""
    batch, m = y.shape
    n = math.prod(x.shape[1:])
    if not y.requires_grad or y.numel() == 0:
        return y.new_zeros(batch, m, n)
    total = y.sum(0)
    chunk = max(1, 2**25 // max(1, batch * n))  # bounds the memory of one batched backward pass
    rows = []
    for part in torch.eye(m, dtype=y.dtype, device=y.device).split(chunk):
        (grad,) = torch.autograd.grad(
            total, x, part, is_grads_batched=True, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(grad.flatten(2) if grad.dim() > 2 else grad[..., None])
    jacobian = torch.cat(rows).movedim(0, 1).to(y.dtype)
    # The sum over the batch is right only where the samples do not mix: then weights that differ between them agree with it.
    weights = torch.arange(1, y.numel() + 1, dtype=y.dtype, device=y.device).cos().reshape(y.shape)
    (together,) = torch.autograd.grad(y, x, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
    apart = torch.einsum("bm,bmn->bn", weights, jacobian)
    scale = torch.einsum("bm,bmn->bn", weights.abs(), jacobian.abs()) + together.abs().reshape(apart.shape)
    # One scale for all entries, and a floor: an entry may be what rounding leaves of terms that cancel.
    allowed = math.sqrt(eps) * (scale.amax() if scale.numel() else 0) + 100 * eps
    if bool(((together.reshape(apart.shape) - apart).abs() > allowed).any()):
        raise ValueError(
            "model must treat each sample of the batch alone, but an output of one depends on the input of another"
        )
    return jacobian


def _elsewhere(x: Tensor) -> Tensor:
    """A second point, with no entry 0 and every sign turned: at 0 alone A x + b is b, and a wrong A does not show."""
    return torch.where(x == 0, torch.arange(x.numel(), device=x.device).cos().reshape(x.shape).to(x.dtype), -x)


def _verify(what: str, piece: AffinePiece, x: Tensor, value: Tensor, eps: float) -> None:
    """The frozen map must reproduce the model's value; if not, samples are mixed or a gradient is stopped or not its own."""
    flat = x.reshape(x.shape[0], piece.A.shape[2]).to(value.dtype)
    scale = torch.einsum("bmn,bn->bm", piece.A.abs(), flat.abs()) + piece.b.abs() + value.abs() + 1
    error = (torch.einsum("bmn,bn->bm", piece.A, flat) + piece.b - value).abs()
    if not bool((error <= math.sqrt(eps) * scale).all()):
        raise ValueError(
            f"each {what} of the model must be a fixed function of its own sample, and gradients must flow through it; "
            f"here A x + b misses the model's value by up to {error.max().item():.3g}"
        )
