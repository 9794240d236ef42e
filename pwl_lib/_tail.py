r"""The tail of a network, from a feature map to the scores: is it piecewise linear, and if not, its true derivatives.

Grad-CAM++ needs the first, second and third derivative of a score along each single entry of the feature map. Where the
tail is piecewise linear the last two are 0. `tail_certificate` tells whether it is. `tail_derivatives` takes them from
three nested passes of forward mode, `softmax_scores_derivatives` those of a softmax on a piecewise linear tail from
gradients alone.
"""

from __future__ import annotations

import difflib
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from pwl_lib._trace import Offender, Trace, _tensors, untouched, watching_modules
from pwl_lib._validation import check_count, check_floating
from pwl_lib.piecewise_linear import PiecewiseLinearity

Tail = Callable[[Tensor], Tensor]


# --- the certificate ------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class TailCertificate:
    """The answer of :func:`tail_certificate`: true or false, with the calls that stand in the way."""

    residual: float
    """The largest entry of a Hessian-vector product, in absolute value: exactly 0 for a piecewise linear tail, NaN if it cannot be had."""
    offenders: tuple[Offender, ...]
    """The calls that are not piecewise linear: path of the module in the model, its type, the operation."""

    def __bool__(self) -> bool:
        return self.residual == 0 and not self.offenders

    def __repr__(self) -> str:
        if self:
            return "piecewise linear tail: every Hessian-vector product is 0"
        found = f"the largest entry of a Hessian-vector product is {self.residual:.3g}"
        if self.residual == 0:
            found = "the Hessian-vector products are 0 at these images, which says nothing about others"
        if self.offenders:
            return f"the tail is {PiecewiseLinearity(self.offenders)!r}; {found}"
        return f"the tail is not piecewise linear, and no call that could be watched is to blame; {found}"


def tail_certificate(
    model: nn.Module, target_layer: nn.Module | str, images: Tensor, *, probes: int = 4, seed: int = 0
) -> TailCertificate:
    r"""Tells whether the scores are a piecewise linear function of the feature map that a layer puts out.

    Only the tail counts, from the layer to the scores: what comes before it may be anything. Two things are asked. Is every
    operation of the tail affine or a known switch, as :func:`pwl_lib.piecewise_linear.is_piecewise_linear` asks? And is

    .. math:: \nabla_A^2 \Big(\sum_{b,c} u_{bc} S_{bc}\Big)\, v = 0

    exactly, for random :math:`u` and :math:`v`? This is :eq:`eq-tail-certificate`. Weights :math:`u` that are drawn at random
    do not cancel, so that one product asks about all classes and all images. Either question alone can be answered wrongly:
    an operation can hide in code that torch does not show, and a Hessian can vanish at these images and not elsewhere (GELU
    far from 0, a softmax that has saturated, tanh at 0, whose third derivative is not 0). A false certificate needs both.

    Args:
        model: gives scores ``(B, n)``. It is asked about in evaluation mode, in which class activation maps are made.
        target_layer: the module that puts out the feature map :math:`A`, ``(B, C, h, w)``, or its dotted name.
        images: what the model takes, ``(B, ...)``, floating point.
        probes: how many random vectors, at least 1.
        seed: of the random vectors.

    Returns:
        an answer that is true or false, with ``residual`` and ``offenders``; its ``repr`` names each module that is not
        piecewise linear.

    At kinks:
        an operation that is piecewise linear stays so; which of its slopes a derivative takes there is a convention.

    Raises:
        TypeError: ``images``, the feature map or the scores are not floating point tensors, or another argument has another type.
        ValueError: the model has no such layer, the layer does not run exactly once, the feature map is not
            ``(B, C, h, w)``, or the scores are not ``(B, n)`` or do not depend on the layer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> head = [nn.Flatten(), nn.Linear(18, 4), nn.ReLU(), nn.Linear(4, 3)]
        >>> images = torch.randn(2, 1, 5, 5)
        >>> tail_certificate(nn.Sequential(nn.Conv2d(1, 2, 3), *head), "0", images)
        piecewise linear tail: every Hessian-vector product is 0
        >>> report = tail_certificate(nn.Sequential(nn.Conv2d(1, 2, 3), *head, nn.Softmax(1)), "0", images)
        >>> bool(report), report.offenders[0]
        (False, Offender(path='5', module='Softmax', operation='softmax'))

    Source: the book, :eq:`eq-tail-certificate`.
    """
    check_floating("images", images)
    check_count("probes", probes, 1)
    check_count("seed", seed, 0)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    model = _uncompiled(model)
    name, layer = _find(model, target_layer)
    with untouched(model, images), _evaluating(model):
        A, tail = _feature_map(model, layer, images, name), _tail(model, layer, images)
        return certify(tail, A, model, probes=probes, seed=seed, layer=name)


def certify(
    tail: Tail,
    activations: Tensor,
    model: nn.Module | None = None,
    *,
    probes: int = 4,
    seed: int = 0,
    layer: str | None = None,
) -> TailCertificate:
    """The certificate of a tail that stands as a function of ``activations``; ``model`` gives the modules their names.

    With the name of a ``layer``, scores that do not depend on ``activations`` are refused.
    """
    offenders = _offenders(tail, activations, _names(model))
    A = activations.detach().clone().requires_grad_()
    generator = torch.Generator().manual_seed(seed)

    def random(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    residual = 0.0
    with torch.enable_grad():
        scores = _watched(tail, model, forward=False)(A)
        _check_scores(scores, A)
        if layer is not None and not _depends(scores, A):
            raise _independent(layer)
        try:
            for _ in range(probes):
                gradient = _gradient((scores * random(scores)).sum(), A)
                product = _gradient((gradient * random(gradient)).sum(), A, create_graph=False)
                residual = max(residual, product.abs().max().item()) if not product.isnan().any() else math.nan
                if math.isnan(residual):
                    break
        except RuntimeError as error:
            if "not implemented" not in str(error):
                raise
            residual = math.nan  # torch does not know the second derivative of some operation
    return TailCertificate(residual, offenders)


def _depends(y: Tensor, x: Tensor) -> bool:
    """Whether the graph of ``y`` reaches ``x``, a leaf."""
    known: set[Any] = set()
    stack = [y.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in known:
            continue
        if getattr(node, "variable", None) is x:
            return True
        known.add(node)
        stack += [inner for inner, _ in node.next_functions]
    return False


def _gradient(y: Tensor, x: Tensor, create_graph: bool = True) -> Tensor:
    """Zeros where ``y`` does not depend on ``x``."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(
        y, x, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return gradient


def _offenders(tail: Tail, activations: Tensor, names: dict[nn.Module, str]) -> tuple[Offender, ...]:
    trace = Trace(tail)
    trace._names = names
    with torch.no_grad():
        scores = trace.run(activations.detach())
    _check_scores(scores, activations)
    return tuple(trace.offenders)


def _names(model: nn.Module | None) -> dict[nn.Module, str]:
    if model is None:
        return {}
    return {module: _plain(name) for name, module in _uncompiled(model).named_modules()}


# --- the cut --------------------------------------------------------------------------------------


def _uncompiled(module: nn.Module) -> nn.Module:
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):  # what torch.compile was given
        module = inner
    return module


def _find(model: nn.Module, layer: nn.Module | str) -> tuple[str, nn.Module]:
    names: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(_plain(name), _uncompiled(module))
    if isinstance(layer, nn.Module):
        layer = _uncompiled(layer)
        for name, module in names.items():
            if module is layer:
                return name, module
        raise ValueError(f"target_layer must be a module of the model, got a {type(layer).__name__} that is not in it")
    if not isinstance(layer, str):
        raise TypeError(f"target_layer must be a module or its dotted name, got {type(layer).__name__}")
    if (name := _plain(layer)) in names:
        return name, names[name]
    near = difflib.get_close_matches(layer, [name for name in names if name], n=3, cutoff=0.4)
    hint = f"; near it: {', '.join(map(repr, near))}" if near else ""
    raise ValueError(f"target_layer must be the name of a module of the model, got {layer!r}{hint}")


def _plain(name: str) -> str:
    """The name of a module in the model as it is written, without what torch.compile adds."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _feature_map(model: nn.Module, layer: nn.Module, images: Tensor, name: str) -> Tensor:
    seen: list[Any] = []

    def keep(module: nn.Module, args: Any, named: Any, output: Any) -> None:
        seen.append(output.detach().clone() if isinstance(output, Tensor) else output)  # a later call may write into it

    with _hooked([layer], keep), torch.no_grad():
        model(images.clone())
    if len(seen) != 1:
        inside = "" if seen else " (in eval mode; inside TorchScript no layer is seen)"
        raise ValueError(
            f"target_layer {name!r} must run once in a call of the model, it ran {len(seen)} times{inside}"
        )
    check_floating(f"the output of target_layer {name!r}", seen[0])
    if seen[0].dim() != 4:
        raise ValueError(f"the output of target_layer {name!r} must be (B, C, h, w), got shape {tuple(seen[0].shape)}")
    return seen[0]


def _tail(model: nn.Module, layer: nn.Module, images: Tensor, dtype: torch.dtype | None = None) -> Tail:
    """The scores as a function of what the layer puts out, in ``dtype``: the model runs anew, with its output replaced."""

    def tail(activations: Tensor) -> Tensor:
        def instead(*_: Any) -> Tensor:
            torch.set_grad_enabled(True)  # the layer may stand in a torch.no_grad() of the model
            return activations.to(dtype or activations.dtype, copy=True)  # the model may write into it

        with _hooked([layer], instead), torch.set_grad_enabled(torch.is_grad_enabled()):  # and back again
            return model(images.clone())  # the model may write into it

    return tail


_ONE_AT_A_TIME = threading.RLock()
"""For two threads with one model: each would restore what the other has set."""


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In here the model is in evaluation mode."""
    with _ONE_AT_A_TIME:
        training = [module for module in model.modules() if module.training]
        for module in training:
            module.training = False  # not eval(): a train() of the module's own may do more
        try:
            yield
        finally:
            for module in training:
                module.training = True


@contextmanager
def _hooked(layers: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """``hook(module, inputs, named inputs, output)`` after each layer, in this thread alone."""
    owner = threading.get_ident()

    def of_this_thread(*words: Any) -> Any:
        return hook(*words) if threading.get_ident() == owner else None

    handles = [layer.register_forward_hook(of_this_thread, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _independent(layer: str) -> ValueError:
    return ValueError(
        f"the scores must depend on what target_layer {layer!r} puts out, and they do not: the model detaches it, "
        "or ignores what a layer in place returns"
    )


def _check_scores(scores: Tensor, activations: Tensor) -> None:
    check_floating("the scores", scores)
    if scores.dim() != 2 or scores.shape[0] != activations.shape[0]:
        raise ValueError(f"the scores must be ({activations.shape[0]}, n), got shape {tuple(scores.shape)}")


# --- the derivatives of a tail that is not piecewise linear ---------------------------------------


class Derivatives(NamedTuple):
    """Along each single entry of a feature map, ``(B, K, C, h, w)`` each."""

    first: Tensor
    second: Tensor
    third: Tensor


def tail_derivatives(
    tail: Tail,
    activations: Tensor,
    classes: Tensor,
    *,
    chunk: int | None = None,
    model: nn.Module | None = None,
    create_graph: bool = False,
    verify: bool = True,
) -> Derivatives:
    r"""The first three derivatives of scores along each single entry of the feature map, exactly.

    .. math::

        \frac{\partial S_c}{\partial A_{kij}}, \qquad \frac{\partial^2 S_c}{\partial A_{kij}^2}, \qquad
        \frac{\partial^3 S_c}{\partial A_{kij}^3}

    which :eq:`eq-gradcam-exact` needs, by forward mode nested three times. One direction serves all samples and all
    classes at once, and ``vmap`` takes several.

    Args:
        tail: gives scores ``(B, n)`` for a feature map; those of one sample depend on that sample alone.
        activations: the feature map, ``(B, C, h, w)``, floating point.
        classes: ``(B, K)`` int64.
        chunk: how many directions at once, of the :math:`C h w` that there are; bounds the memory.
        model: gives the modules of the tail their names in messages.
        create_graph: whether the derivatives can be differentiated again, in ``activations``.
        verify: whether nested reverse mode is asked about one random direction.

    Raises:
        NotImplementedError: nested forward mode of an operation is wrong in torch, or missing, or the operation is random, or
            vmap does not take it, as it takes no choice that hangs on the numbers: it and its module are named, as far as torch
            shows them. Or forward and reverse mode disagree, which shows also where samples of the batch are mixed.
    """
    shape = activations.shape[1:]
    entries = math.prod(shape)
    if chunk is None:
        chunk = max(1, 2**22 // max(1, activations.numel()))
    check_count("chunk", chunk, 1)
    zero, one = activations.new_zeros(()), activations.new_ones(())
    watched = _watched(tail, model, forward=True)

    def along(direction: Tensor) -> Tensor:
        def score(t: Tensor) -> Tensor:
            # 0 t^2 + 0 t^3 makes every tangent a tensor of zeros: torch refuses to write in place where there is none
            moved = activations + (t + 0 * t**2 + 0 * t**3) * direction
            return watched(moved).gather(1, classes)

        return torch.stack(_three(score, zero, one))

    parts = []
    # grad mode decides which formulas torch takes: without it the derivative of SiLU has none of its own
    with untouched(tail if model is None else model, activations), torch.enable_grad():
        if verify:
            _verify(watched, activations.detach(), classes)
        for start in range(0, entries, chunk):
            index = torch.arange(start, min(start + chunk, entries), device=activations.device)
            directions = F.one_hot(index, entries).to(activations.dtype).unflatten(1, shape)
            part = vmap(along)(directions)
            parts.append(part if create_graph else part.detach())
    derivatives = torch.cat(parts).movedim(0, -1).unflatten(-1, shape)
    return Derivatives(*derivatives.unbind(0))


def _three(score: Tail, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The derivatives of ``score`` at ``x`` along ``v``."""

    def first(x: Tensor) -> Tensor:
        return jvp(score, (x,), (v,))[1]

    def second(x: Tensor) -> Any:
        return jvp(first, (x,), (v,))

    values: Any = jvp(second, (x,), (v,))
    (s1, s2), (_, s3) = values
    return s1, s2, s3


def _verify(tail: Tail, activations: Tensor, classes: Tensor) -> None:
    """Nested reverse mode along one random direction: an operation that is wrong under nested forward mode shows here."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(activations.shape, generator=generator).to(activations)
    direction = direction / direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    weights = torch.rand(classes.shape, generator=generator).to(activations) + 0.5

    def score(t: Tensor, direction: Tensor) -> Tensor:
        moved = activations + (t + 0 * t**2 + 0 * t**3).reshape(-1, 1, 1, 1) * direction
        return (weights * tail(moved).gather(1, classes)).sum(1)

    def along(direction: Tensor) -> Tensor:
        zero = activations.new_zeros(())
        return torch.stack(_three(lambda t: score(t, direction), zero, torch.ones_like(zero)))

    forward = vmap(along)(direction[None])[0]  # what depends on the feature map is known by its batch
    backward = []
    with torch.enable_grad():
        t = activations.new_zeros(activations.shape[0]).requires_grad_()
        value = score(t, direction)
        try:
            for _ in range(3):
                value = _gradient(value.sum(), t)
                backward.append(value.detach())
        except RuntimeError as error:
            if "not implemented" in str(error):
                return  # nothing to compare with
            raise
    eps = torch.finfo(activations.dtype).eps
    scale = torch.stack(backward).abs().amax()
    for order, (ours, theirs) in enumerate(zip(forward, backward, strict=True), 1):
        if bool(((ours - theirs).abs() > eps**0.4 * theirs.abs().amax() + 1e4 * eps * scale).any()):
            raise NotImplementedError(
                f"forward and reverse mode disagree on derivative {order} of the scores along a random direction, by up to "
                f"{(ours - theirs).abs().max().item():.3g}: torch is wrong about some operation under nested forward mode, or "
                "the scores of one sample depend on another sample"
            )


# --- operations as nested forward mode can take them ----------------------------------------------


class _Elementary(TorchFunctionMode):
    """Replaces operations whose higher derivatives torch lacks by others of the same value, and refuses those it gets wrong."""

    def __init__(self, names: dict[nn.Module, str], forward: bool) -> None:
        super().__init__()
        self.names, self.forward = names, forward
        self.modules: list[nn.Module] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").split(".")[0]
        ours = (getattr(func, "__module__", None) or "").startswith("pwl_lib.")
        if self.forward and torch._C._are_functorch_transforms_active():
            tensors = _tensors((args, kwargs))
            if tensors and not any(_batched(tensor) for tensor in tensors):
                # it does not depend on the feature map, and no transform need see it
                args, kwargs = tree_map_only(Tensor, _unwrapped, (args, kwargs))
                with temporarily_clear_interpreter_stack():
                    return func(*args, **kwargs)
            if name in _REFUSED and (why := _REFUSED[name](*args, **kwargs)):
                raise NotImplementedError(f"{self._where()} applies {name}, {why}")
            if ours and name in _OURS:
                return _OURS[name](*args, **kwargs)
            if ours:
                raise NotImplementedError(
                    f"{self._where()} applies {func.__module__}.{name}, whose gradient is a torch.autograd.Function, and torch "
                    "drops a part of the second derivative where forward mode is nested in forward mode over one of these; "
                    "use torch's own operations in its place"
                )
            if kwargs.get("inplace"):  # forward mode of some operations in place is missing
                return args[0].copy_(self.__torch_function__(func, types, args, kwargs | {"inplace": False}))
            if name.endswith("_") and name[:-1] in _ELEMENTWISE:
                return args[0].copy_(getattr(torch, name[:-1])(*args, **kwargs))
        if not ours and name in _REPLACED:
            func = _REPLACED[name]
        try:
            return func(*args, **kwargs)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"{self._where()} applies {name}, which torch cannot differentiate here: {error}"
            ) from error
        except RuntimeError as error:
            if not self._nested(error):
                raise
            raise NotImplementedError(
                f"{self._where()} applies {name}, which torch cannot take through nested forward mode and vmap: {error}"
            ) from error

    def _nested(self, error: RuntimeError) -> bool:
        """Whether it is an error of the nested forward mode, as far as can be known, and has no better message yet."""
        if isinstance(error, (NotImplementedError, torch.OutOfMemoryError)):
            return False
        return self.forward and torch._C._are_functorch_transforms_active()

    def _where(self) -> str:
        if not self.modules:
            return "the tail"
        module = self.modules[-1]
        path, kind = self.names.get(module, ""), type(module).__name__
        return f"module '{path}' ({kind})" if path else f"the model ({kind})" if module in self.names else f"a {kind}"


def _batched(tensor: Tensor) -> bool:
    """Whether vmap hands it on, at any level: the feature map moves along a batch of directions."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False


def _unwrapped(tensor: Tensor) -> Tensor:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _watched(tail: Tail, model: nn.Module | None, forward: bool) -> Tail:
    """The same function, with its operations as `_Elementary` has them; ``forward`` is for nested forward mode."""
    names = _names(model)

    def watched(activations: Tensor) -> Tensor:
        mode = _Elementary(names, forward)
        failed: list[tuple[BaseException, str]] = []  # the last error, and the innermost module that it left

        def leave() -> None:
            error = sys.exception()
            if error is not None and not any(error is known for known, _ in failed):
                failed[:] = [(error, mode._where())]
            mode.modules.pop()

        try:
            # the fused kernels of attention have no second derivative
            with watching_modules(mode.modules.append, leave), sdpa_kernel(SDPBackend.MATH), mode:
                return tail(activations)
        except RuntimeError as error:
            if not mode._nested(error):
                raise
            where = next((place for known, place in failed if known is error), mode._where())
            raise NotImplementedError(
                f"{where} does what torch cannot take through nested forward mode and vmap: {error}"
            ) from error

    return watched


# Measured on torch 2.9 and 2.13, in float64, against three nested passes of reverse mode: along a random direction these give
# a right first derivative, a second one that is wrong by 2 to 30 %, and a third one that is wrong by about half. Right to
# rounding: group_norm, rms_norm, softmax, log_softmax, logsumexp, gelu, silu, mish, tanh, sigmoid, hardswish, softplus, elu,
# var, var_mean, normalize, convolutions, pooling, attention by its math kernel, and batch_norm and instance_norm with given
# statistics.
_WRONG = "and nested forward mode of its fused kernel is wrong in torch from the second derivative on; "


def _layer_norm(*args: Any, **kwargs: Any) -> str:
    return _WRONG + "write it with mean and var, whose derivatives are right"


def _sixth(name: str, args: Sequence[Any], words: dict[str, Any], default: bool) -> bool:
    """torch has several functions of a name, and this flag stands sixth in all of them."""
    return bool(args[5] if len(args) > 5 else words.get(name, default))


def _instance_norm(*args: Any, **words: Any) -> str:
    if not _sixth("use_input_stats", args, words, True):
        return ""
    return _WRONG + "F.group_norm with one group a channel is the same, and its derivatives are right"


def _batch_norm(*args: Any, **words: Any) -> str:
    if not _sixth("training", args, words, False):
        return ""
    return _WRONG + "in training mode it also mixes the samples of the batch: call model.eval()"


def _dropout(input: Any, p: float = 0.5, training: bool = True, *_: Any, **__: Any) -> str:
    return "in training mode, which is random: call model.eval()" if training and p > 0 else ""


_REFUSED: dict[str, Callable[..., str]] = {
    "layer_norm": _layer_norm,
    "native_layer_norm": _layer_norm,
    "instance_norm": _instance_norm,
    "batch_norm": _batch_norm,
    "native_batch_norm": _batch_norm,
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"), _dropout
    ),
}


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    value = F.relu6(input + 3) / 6
    return input.copy_(value) if inplace else value


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    a, b = input.chunk(2, dim)
    return a * b.sigmoid()


_ELEMENTWISE = frozenset(
    "silu sigmoid tanh exp log sqrt rsqrt reciprocal square relu sin cos expm1 log1p erf atan".split()
)
_REPLACED: dict[str, Callable[..., Tensor]] = {"hardsigmoid": _hardsigmoid, "glu": _glu}


def _relu(input: Tensor, inplace: bool = False, *, slope_at_zero: float = 0.0) -> Tensor:
    return torch.where(input == 0, slope_at_zero * input, F.relu(input))


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    ties: str = "row-major",
) -> Any:
    pool: Any = F.max_pool2d
    words = kernel_size, stride, padding, dilation
    if ties == "row-major":
        return pool(input, *words, ceil_mode, return_indices)
    if return_indices:
        raise NotImplementedError("max_pool2d with ties in columns and with indices has no nested forward mode")
    return pool(input.mT, *(word[::-1] if isinstance(word, tuple) else word for word in words), ceil_mode).mT


def _maxout(input: Tensor, weight: Tensor, bias: Tensor | None, pieces: int) -> Tensor:
    return F.linear(input, weight, bias).unflatten(-1, (-1, pieces)).max(-1).values


def _maxout2d(input: Tensor, weight: Tensor, bias: Tensor | None, pieces: int, *words: Any, **named: Any) -> Tensor:
    return F.conv2d(input, weight, bias, *words, **named).unflatten(1, (-1, pieces)).max(2).values


def _logsumexp(input: Tensor, dim: Any, keepdim: bool = False, temperature: float = 1.0) -> Tensor:
    return (temperature * input).logsumexp(dim, keepdim) / temperature


def _softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None, temperature: float = 1.0) -> Tensor:
    return (temperature * input).softmax(dim, dtype)


# Our layers have their own gradients, in functions that nested forward mode must not meet. torch's own have the same values.
_OURS: dict[str, Callable[..., Any]] = {
    "relu": _relu,
    "leaky_relu": lambda input, negative_slope=0.01, inplace=False: F.leaky_relu(input, negative_slope),
    "prelu": F.prelu,
    "absolute": torch.abs,
    "hardtanh": lambda input, min_val=-1.0, max_val=1.0, inplace=False: F.hardtanh(input, min_val, max_val),
    "linear": F.linear,
    "conv2d": F.conv2d,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": F.avg_pool2d,
    "maxout": _maxout,
    "maxout2d": _maxout2d,
    "logsumexp": _logsumexp,
    "softmax": _softmax,
}


# --- the derivatives of a softmax on a piecewise linear tail --------------------------------------


def log_probability_derivatives(
    scores: Tensor, activations: Tensor, classes: Tensor, *, chunk: int | None = None, create_graph: bool = False
) -> Derivatives:
    r"""The first three derivatives of :math:`\ln Y_c`, :math:`Y = \operatorname{softmax}(S)`, where S is piecewise linear.

    With :math:`g_j = \partial S_j / \partial A_{kij}` and the cumulants of these numbers under the weights Y,

    .. math::

        m = \sum_j Y_j g_j, \quad v = \sum_j Y_j (g_j - m)^2, \quad s = \sum_j Y_j (g_j - m)^3,
        \qquad (\ln Y_c)' = g_c - m, \quad (\ln Y_c)'' = -v, \quad (\ln Y_c)''' = -s ,

    which is :eq:`eq-gradcam-softmax`. They go into :eq:`eq-gradcam-exact`, which is about exp of a score: here that is Y.
    No product of small probabilities is formed.

    Args:
        scores: ``(B, n)``, computed from ``activations``, with its graph.
        activations: ``(B, C, h, w)``; requires a gradient.
        classes: ``(B, K)`` int64.
        chunk: how many classes are differentiated at once.
        create_graph: whether the result can be differentiated again.
    """
    count = scores.shape[1]
    if chunk is None:
        chunk = max(1, 2**25 // max(1, activations.numel()))
    weights = scores.softmax(1) if create_graph else scores.detach().softmax(1)

    def gradients(cotangents: Tensor) -> Tensor:
        """``(m, B, n)`` gives ``(B, m, C, h, w)``."""
        if not scores.requires_grad:
            return activations.new_zeros(len(cotangents), *activations.shape).movedim(0, 1)
        (found,) = torch.autograd.grad(
            scores,
            activations,
            cotangents,
            retain_graph=True,
            create_graph=create_graph,
            is_grads_batched=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return found.movedim(0, 1)

    mean = gradients(weights[None])
    # g_c - m is the sum of Y_j (g_c - g_j) over the other classes: no digits cancel where one class is almost certain.
    chosen = F.one_hot(classes, count).to(scores.dtype).movedim(1, 0)
    others = weights * (1 - chosen)
    away_from_mean = chosen * others.sum(-1, keepdim=True) - others
    first = torch.cat([gradients(part) for part in away_from_mean.split(chunk)], dim=1)
    variance, skew = torch.zeros_like(mean), torch.zeros_like(mean)
    for index in torch.arange(count, device=scores.device).split(chunk):
        cotangents = F.one_hot(index, count).to(scores.dtype)[:, None].expand(-1, len(scores), -1)
        away = gradients(cotangents) - mean
        share = weights[:, index, None, None, None]
        variance = variance + (share * away**2).sum(1, keepdim=True)
        skew = skew + (share * away**3).sum(1, keepdim=True)
    return Derivatives(first, -variance.expand_as(first), -skew.expand_as(first))


def softmax_scores_derivatives(
    scores: Tensor, activations: Tensor, classes: Tensor, *, chunk: int | None = None, create_graph: bool = False
) -> Derivatives:
    r"""The first three derivatives of :math:`Y_c`, where :math:`Y = \operatorname{softmax}(S)` and S is piecewise linear.

    .. math:: Y' = Y d, \qquad Y'' = Y (d^2 - v), \qquad Y''' = Y (d^3 - 3 d v - s), \qquad d = g_c - m,

    with the sums of :func:`log_probability_derivatives`: the paper's equations 21 to 23, in closed form, :eq:`eq-gradcam-softmax`.
    Arguments as there.
    """
    d, v, s = log_probability_derivatives(scores, activations, classes, chunk=chunk, create_graph=create_graph)
    Y = (scores if create_graph else scores.detach()).softmax(1).gather(1, classes)[..., None, None, None]
    return Derivatives(Y * d, Y * (d**2 + v), Y * (d**3 + 3 * d * v + s))  # v and s come with their signs
