"""What the layers share: the choice between a function and its twin, and exact products with a mask."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def derivative_wanted(*tensors: Tensor) -> bool:
    """Whether anything may ask for a derivative: autograd, forward mode, or a transform of ``torch.func``.

    Where nothing does, a layer is its value alone and no mask is made. A tensor inside a transform does not tell (its
    ``requires_grad`` is False under ``grad(vmap(f))``), so that any active transform counts.
    """
    return (
        torch.compiler.is_compiling()
        or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
    )


class LayerFunction(torch.autograd.Function):
    """What the functions of all layers share: ``vmap`` follows from their forward and backward passes."""

    generate_vmap_rule = True

    def __init_subclass__(cls, **words: Any) -> None:
        super().__init_subclass__(**words)
        # torch asks for the signature in every call, and to work it out takes longer than many a forward pass: 35 us.
        if "forward" in vars(cls):
            cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]


def pick(base: type[torch.autograd.Function], twin: type[torch.autograd.Function]) -> Any:
    """The twin has a ``jvp``, which ``torch.func.jvp`` needs and ``torch.compile`` refuses."""
    if torch.compiler.is_compiling():
        return base
    if torch._C._are_functorch_transforms_active():
        stack = torch._C._functorch.get_interpreter_stack() or []
        if sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1:
            raise NotImplementedError(
                "torch drops a part of the second derivative where forward mode is nested in forward mode over a "
                "torch.autograd.Function; use reverse mode for one of the two, as torch.func.hessian does"
            )
    return twin


# g * mask would do, were it not for 0 * inf = nan and 0 * (-g) = -0. torch.where and masked_fill are right, but branch on
# every element on a CPU: 190 us for 10**5 random ones, against 20 us for the vectorised kernels below, which take an
# integer mask. A layer that returns its mask beside its value switches materialised gradients off, or autograd would
# fill a tensor with zeros for the mask in every backward pass; then g may be None, which stands for zeros.


def keep_where(mask: Tensor, g: Tensor | None) -> Tensor | None:
    """``g`` where ``mask > 0``, and exactly +0 elsewhere."""
    return None if g is None else torch.ops.aten.threshold_backward.default(g, mask, 0)


def keep_or_scale(mask: Tensor, g: Tensor | None, slope: float) -> Tensor | None:
    """``g`` where ``mask > 0``, and ``slope * g`` elsewhere."""
    return None if g is None else torch.ops.aten.leaky_relu_backward.default(g, mask, slope, False)


def give_sign(sign: Tensor, g: Tensor | None) -> Tensor | None:
    """``sign * g``, for a sign of -1, 0 or 1."""
    return None if g is None else sign * g


def save_mask(ctx: Any, mask: Tensor) -> None:
    """Keeps the mask, the second output of a layer's ``forward``, for the backward pass and for forward mode."""
    ctx.mark_non_differentiable(mask)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(mask)
    ctx.save_for_forward(mask)


def sum_of(*parts: Tensor | None) -> Tensor | None:
    """The sum of the tangents that there are."""
    there = [part for part in parts if part is not None]
    return functools.reduce(torch.add, there) if there else None


# A product x * w has the derivative w in x and x in w, so that each factor is kept only for the gradient in the other.


def save_factors(ctx: Any, x: Tensor, weight: Tensor) -> bool:
    """Keeps the factors that the backward pass needs, and both for forward mode; whether both are kept."""
    ctx.save_for_forward(x, weight)
    by_x, by_weight = ctx.needs_input_grad[:2]
    # A transform asks for the gradients one by one, after this; a compiler drops what it does not need.
    both = (by_x and by_weight) or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    ctx.save_for_backward(x if both or by_weight else None, weight if both or by_x else None)
    return both


def autocast_is_on(device: str) -> bool:
    """Whether autocast is switched on for a type of device; of ``meta``, which has none, torch must not be asked."""
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast_as_torch(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the dtype that autocast gives to products, where it is on; they stay as they are where it is not."""
    device = next(tensor.device.type for tensor in tensors if isinstance(tensor, Tensor))
    if not autocast_is_on(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor.to(dtype)
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64
        else tensor
        for tensor in tensors
    )
