r"""Class activation maps: where in an image a network sees a class. Grad-CAM, Grad-CAM++ and LayerCAM.

The module of the chapter *Grad-CAM++*. First the formulas, as functions of a feature map and its gradients; then the
methods, which run a model; then what measures a map.

A method runs the model once, and cuts its graph at the target layer: what comes before the layer keeps nothing for the
backward pass, and what comes after gives the gradients of all classes in one batched vector-Jacobian product. Half
precision is computed with in float32. No formula has an epsilon.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwl_lib._tail import (
    TailCertificate,
    _evaluating,
    _find,
    _hooked,
    _independent,
    _tail,
    _uncompiled,
    certify,
    log_probability_derivatives,
    tail_certificate,
    tail_derivatives,
)
from pwl_lib._trace import _tensors
from pwl_lib._validation import check_bool, check_count, check_floating, check_one_of

__all__ = [
    "ClassActivationMaps",
    "Curve",
    "GradCAM",
    "GradCAMPlusPlus",
    "LayerCAM",
    "TailCertificate",
    "average_drop",
    "average_increase",
    "box_energy",
    "deletion_curve",
    "gradcam_plusplus_weights",
    "gradcam_plusplus_weights_exact",
    "gradcam_weights",
    "insertion_curve",
    "layercam_map",
    "pointing_game",
    "tail_certificate",
    "weighted_map",
]

Layer: TypeAlias = nn.Module | str
Classes: TypeAlias = Tensor | int | Sequence[Any]
HigherDerivatives = Literal["auto", "exact", "piecewise_linear"]
SmoothScore = Literal["exponential", "softmax"]


# --- the formulas ---------------------------------------------------------------------------------


def gradcam_weights(gradients: Tensor) -> Tensor:
    r"""The weights of Grad-CAM: the mean of each channel's gradient.

    .. math:: w_k = \frac{1}{hw} \sum_{ij} g_{kij}, \qquad g_{kij} = \frac{\partial S}{\partial A_{kij}}

    which is :eq:`eq-gradcam-weights`.

    Args:
        gradients: ``(..., C, h, w)``, of a score with respect to the feature map, floating point.

    Returns:
        ``(..., C)``; float32 for a half precision.

    Raises:
        TypeError, ValueError: ``gradients`` is not a floating point tensor, or has fewer than three dimensions.

    Example:
        >>> gradcam_weights(torch.tensor([[[1.0, 2.0], [3.0, 6.0]]]))
        tensor([3.])

    Source: Selvaraju et al. (2017); the book, :eq:`eq-gradcam-weights`.
    """
    _check_maps("gradients", gradients)
    return _at_least_single(gradients).mean((-2, -1))


def gradcam_plusplus_weights(activations: Tensor, gradients: Tensor) -> Tensor:
    r"""The weights of Grad-CAM++ where the score is piecewise linear in the feature map.

    .. math:: w_k = \sum_{ij} \frac{p_{kij}}{2 + p_{kij} \sum_{ab} A_{kab}}, \qquad p = \max(g, 0)

    which is :eq:`eq-gradcampp-stable`: the paper's weights :eq:`eq-gradcampp-weights` with its alpha, :eq:`eq-gradcam-alpha`,
    without the powers of the gradient, and so without their underflow, and without the factor :math:`e^S`, one positive number
    an image and class.

    Args:
        activations: the feature map :math:`A`, ``(..., C, h, w)``, floating point.
        gradients: :math:`g`, of a score with respect to it, of a shape that broadcasts with it.

    Returns:
        ``(..., C)``; float32 for a half precision.

    At the pole:
        a feature map with :math:`\sum A_k < 0` has one at :math:`p = -2 / \sum A_k`. There the weight is infinite, beyond it negative.

    Raises:
        TypeError, ValueError: an argument is not a floating point tensor, has fewer than three dimensions, or the two do not match.

    Example:
        >>> gradcam_plusplus_weights(torch.ones(1, 2, 2), torch.tensor([[[0.5, -1.0], [1.0, 0.0]]]))
        tensor([0.2917])

    Source: Chattopadhyay et al. (2018), eqs. 5 and 19; the book, :eq:`eq-gradcampp-stable`.
    """
    _check_maps("activations", activations)
    _check_maps("gradients", gradients, activations)
    p = _at_least_single(gradients).relu()
    return (p / (2 + p * _total(activations))).sum((-2, -1))


def gradcam_plusplus_weights_exact(activations: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    r"""The weights of Grad-CAM++ for any score that is three times differentiable.

    .. math::
        w_k = \sum_{ij} \alpha_{kij} \max(S_1, 0), \qquad
        \alpha = \frac{S_1^2 + S_2}{2 (S_1^2 + S_2) + (S_1^3 + 3 S_1 S_2 + S_3) \sum_{ab} A_{kab}}

    which is :eq:`eq-gradcam-exact`, with the derivatives :math:`S_n = \partial^n S / \partial A_{kij}^n` of the score along each
    single entry. For :math:`S_2 = S_3 = 0` it is :func:`gradcam_plusplus_weights`. Each quotient is taken of numbers that were
    brought to the size of 1, so that no power underflows.

    Args:
        activations: the feature map :math:`A`, ``(..., C, h, w)``, floating point.
        first, second, third: :math:`S_1, S_2, S_3`, of a shape that broadcasts with it.

    Returns:
        ``(..., C)``; float32 for a half precision.

    At the pole:
        where the denominator is 0 the weight is infinite, or NaN if the numerator is 0 too.

    Raises:
        TypeError, ValueError: as :func:`gradcam_plusplus_weights`.

    Example:
        >>> A, g = torch.ones(1, 2, 2), torch.tensor([[[0.5, -1.0], [1.0, 0.0]]])
        >>> gradcam_plusplus_weights_exact(A, g, torch.zeros_like(g), torch.zeros_like(g))
        tensor([0.2917])

    Source: the book, :eq:`eq-gradcam-exact`.
    """
    _check_maps("activations", activations)
    for name, derivative in (("first", first), ("second", second), ("third", third)):
        _check_maps(name, derivative, activations)
    alpha = _alpha_exact(activations, first, second, third)[0]
    return (alpha * _at_least_single(first).relu()).sum((-2, -1))


def _alpha_exact(activations: Tensor, first: Tensor, second: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha where the first derivative is positive, 0 elsewhere; and its denominator, over the square of the derivatives' size."""
    s_1, s_2, s_3 = (_at_least_single(s) for s in (first, second, third))
    # exp(S) scales with S_n -> S_n / m^n as if A were measured in another unit; alpha is free of m.
    m = torch.maximum(s_1.abs(), torch.maximum(s_2.abs().sqrt(), s_3.abs().pow(1 / 3))).detach()
    on = s_1 > 0
    m = torch.where(on, m, 1)
    s_1, s_2, s_3 = torch.where(on, s_1, 1) / m, torch.where(on, s_2, 0) / m / m, torch.where(on, s_3, 0) / m / m / m
    numerator = s_1 * s_1 + s_2
    denominator = 2 * numerator + m * _total(activations) * (s_1 * (s_1 * s_1 + 3 * s_2) + s_3)
    denominator = torch.where(on, denominator, 1)
    return torch.where(on, numerator, 0) / denominator, denominator


def weighted_map(activations: Tensor, weights: Tensor) -> Tensor:
    r"""The map of Grad-CAM and of Grad-CAM++: the positive part of the weighted sum of the channels.

    .. math:: L_{ij} = \max\Big(\sum_k w_k A_{kij},\, 0\Big)

    which is :eq:`eq-gradcam-map`.

    Args:
        activations: ``(..., C, h, w)``, floating point.
        weights: ``(..., C)``, floating point.

    Returns:
        ``(..., h, w)``; float32 for a half precision.

    Raises:
        TypeError, ValueError: an argument is not a floating point tensor, or the two do not match.

    Example:
        >>> weighted_map(torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]]), torch.tensor([1.0, -0.5]))
        tensor([[0., 2.]])

    Source: Selvaraju et al. (2017); the book, :eq:`eq-gradcam-map`.
    """
    _check_maps("activations", activations)
    check_floating("weights", weights)
    if weights.dim() == 0 or weights.shape[-1] != activations.shape[-3]:
        raise ValueError(
            f"weights must have one number for each of the {activations.shape[-3]} channels, got shape {tuple(weights.shape)}"
        )
    A, w = _at_least_single(activations), _at_least_single(weights)
    dtype = torch.promote_types(A.dtype, w.dtype)
    with _full_precision(A):
        flat = w.to(dtype).unsqueeze(-2) @ A.to(dtype).flatten(-2)
    return flat.squeeze(-2).unflatten(-1, A.shape[-2:]).relu()


def layercam_map(activations: Tensor, gradients: Tensor) -> Tensor:
    r"""The map of LayerCAM: each entry of the feature map times the positive part of its own gradient.

    .. math:: L_{ij} = \max\Big(\sum_k \max(g_{kij}, 0)\, A_{kij},\, 0\Big)

    which is :eq:`eq-layercam`.

    Args:
        activations: ``(..., C, h, w)``, floating point.
        gradients: of a shape that broadcasts with it.

    Returns:
        ``(..., h, w)``; float32 for a half precision.

    Raises:
        TypeError, ValueError: as :func:`gradcam_plusplus_weights`.

    Example:
        >>> layercam_map(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), torch.tensor([[[1.0, -1.0]], [[1.0, 0.5]]]))
        tensor([[4., 2.]])

    Source: Jiang et al. (2021); the book, :eq:`eq-layercam`.
    """
    _check_maps("activations", activations)
    _check_maps("gradients", gradients, activations)
    return (_at_least_single(gradients).relu() * _at_least_single(activations)).sum(-3).relu()


def _weighted(activations: Tensor, weights: Tensor) -> Tensor:
    """:func:`weighted_map` of ``(B, C, h, w)`` and ``(B, K, C)`` in one matrix product an image, with no copy for each class."""
    return (weights @ activations.flatten(-2)).unflatten(-1, activations.shape[-2:]).relu()


def _total(activations: Tensor) -> Tensor:
    return _at_least_single(activations).sum((-2, -1), keepdim=True)


def _at_least_single(x: Tensor) -> Tensor:
    """Half precisions as float32."""
    return x.float() if x.dtype.itemsize < 4 else x


def _full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast would take a matrix product in half precision."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()


# --- the result -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class ClassActivationMaps:
    """What a method found: one map for each image and each class that was asked about. Tensors, on the device of the model."""

    maps: Tensor
    """``(B, K, h, w)``, raw: after the ReLU of the method, before any scaling; never negative. float32 for a half precision."""
    weights: Tensor | None
    """``(B, K, C)``: of the channels; None for LayerCAM, which has none."""
    scores: Tensor
    """``(B, K)``: what the model gave to these classes."""
    classes: Tensor
    """``(B, K)``, int64."""

    def __repr__(self) -> str:
        return f"ClassActivationMaps(maps={tuple(self.maps.shape)}, classes={self.classes.tolist()})"

    def normalized(self) -> ClassActivationMaps:
        """Each map divided by its maximum, so that it reaches from 0 to 1; a map that is 0 stays 0."""
        return replace(self, maps=_normalized(self.maps))

    def upsample(self, size: int | Sequence[int]) -> ClassActivationMaps:
        """The maps in another size, ``(H, W)`` or one number for both: bilinear, corners are not aligned."""
        return replace(self, maps=_upsampled(self.maps, _size("size", size)))

    def overlay(self, image: Tensor, alpha: float = 0.5) -> Tensor:
        """Each map, from 0 to 1, in the size and over the colours of its image.

        Args:
            image: ``(B, 3, H, W)`` or ``(3, H, W)``, or grey with one channel; from 0 to 1, any floating point dtype.
            alpha: how much of the map, from 0 to 1; the image has the rest.

        Returns:
            ``(B, K, 3, H, W)`` from 0 to 1, in the dtype of the maps. The colours run from dark violet through green to yellow, evenly
            to the eye.

        Raises:
            TypeError, ValueError: an image of another type or shape, or with numbers outside of 0 to 1; ``alpha`` outside.
        """
        check_floating("image", image)
        batch = self.maps.shape[0]
        pictures = image if image.dim() == 4 else image[None]
        if pictures.dim() != 4 or pictures.shape[0] not in (1, batch) or pictures.shape[1] not in (1, 3):
            raise ValueError(
                f"image must be (B, 3, H, W) with B = {batch}, or (3, H, W), or have one channel; got shape {tuple(image.shape)}"
            )
        if pictures.numel() and not bool(((pictures >= 0) & (pictures <= 1)).all()):
            raise ValueError(
                f"image must lie between 0 and 1, got numbers from {pictures.min():.3g} to {pictures.max():.3g}: undo its normalization"
            )
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be a number from 0 to 1, got {alpha!r}")
        heat = _coloured(_normalized(_upsampled(self.maps, (pictures.shape[-2], pictures.shape[-1]))))
        return (1 - alpha) * pictures.to(heat)[:, None] + alpha * heat


def _normalized(maps: Tensor) -> Tensor:
    top = maps.amax((-2, -1), keepdim=True)
    return maps / torch.where(top > 0, top, 1)


def _upsampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _size(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    if not isinstance(size, (int, Sequence)):
        raise TypeError(f"{name} must be one number or (H, W), got {size!r}")
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2:
        raise ValueError(f"{name} must be one number or (H, W), got {size!r}")
    for number in pair:
        check_count(name, number, 1)
    return pair


# The colour map viridis by Smith and van der Walt (CC0), at 18 of its 256 numbers; between them, straight lines.
_COLOURS = "440154 481769 472a7a 433d84 3d4e8a 355e8d 2e6d8e 297b8e 23898e 1f978b 21a585 2eb37c 46c06f 65cb5e 89d548 b0dd2f d8e219 fde725"


def _coloured(values: Tensor) -> Tensor:
    """``(..., H, W)`` from 0 to 1 -> ``(..., 3, H, W)``."""
    table = torch.tensor([list(bytes.fromhex(colour)) for colour in _COLOURS.split()]).to(values) / 255
    place = values.clamp(0, 1) * (len(table) - 1)
    below = place.detach().floor().clamp(max=len(table) - 2)
    low = below.nan_to_num().long()
    part = (place - below)[..., None]
    return (table[low] + part * (table[low + 1] - table[low])).movedim(-1, -3)


# --- running a model, cut at a layer --------------------------------------------------------------

# (name of the layer, classes (B, K), feature map (B, 1, C, h, w), gradients (B, K, C, h, w)) -> (maps, weights)
Combine: TypeAlias = Callable[[str, Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]


class _Cut(NamedTuple):
    """One layer in one run."""

    name: str
    layer: nn.Module
    output: Tensor
    """What the layer put out, in float32 or better: gradients are taken with respect to it."""
    dtype: torch.dtype
    """In which the layer put it out."""
    entry: Any
    """The node of the graph through which it goes on."""


class _ClassActivationMethod:
    """What the methods share: finding the layers, running the model, the gradients."""

    def __init__(self, model: nn.Module, target_layer: Layer | Sequence[Layer]) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.model = _uncompiled(model)
        self._several = isinstance(target_layer, (list, tuple))
        layers: list[Any] = list(target_layer) if isinstance(target_layer, (list, tuple)) else [target_layer]
        if not layers:
            raise ValueError("target_layer must name at least one layer, got none")
        self._layers = [_find(self.model, layer) for layer in layers]
        for name, layer in self._layers:
            if isinstance(layer, torch.jit.ScriptModule):
                raise ValueError(
                    f"target_layer {name!r} must not be TorchScript, which hides what it puts out: give the model uncompiled"
                )

    def __repr__(self) -> str:
        names = [repr(name) for name, _ in self._layers]
        return f"{type(self).__name__}({type(self.model).__name__}, {', '.join(names)})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to undo: between calls nothing is on the model."""

    def __call__(self, images: Tensor, classes: Classes | None = None, *, create_graph: bool = False) -> Any:
        """The maps of some classes in each image.

        Args:
            images: what the model takes, ``(B, ...)``.
            classes: ``(B, K)``, or ``(K,)`` for every image, a tensor of integers or nested lists; one integer; or None, for the
                class of each image with the largest score.
            create_graph: whether the result can be differentiated, with respect to the images and the parameters. The graph
                of the model is then not cut.

        Returns:
            :class:`ClassActivationMaps`; for a list of layers a tuple of them, in its order.

        Raises:
            TypeError: an argument, an output of a layer or of the model has another type than it must have.
            ValueError: a class out of range; classes of another number of images; a layer that did not run, or twice, or did
                not put out ``(B, C, h, w)``; scores that are not ``(B, n)`` or do not depend on the layer.
        """
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor, got {type(images).__name__}")
        if images.dim() == 0 or len(images) == 0:
            raise ValueError(f"images must be a batch of at least one image, got shape {tuple(images.shape)}")
        check_bool("create_graph", create_graph)
        asked = None if classes is None else _check_classes(classes, len(images))
        with _prepared(self.model, freeze=not create_graph):
            if not create_graph:
                images = images.detach()
            if images.is_inference():
                images = images.clone()
            scores, cuts = self._run(images.clone(), create_graph)
            picked = scores.argmax(1, keepdim=True) if asked is None else _in_range(asked, scores)
            results = self._explain(images, scores, picked, cuts, create_graph)
        return tuple(results) if self._several else results[0]

    def _run(self, images: Tensor, create_graph: bool) -> tuple[Tensor, list[_Cut]]:
        """Scores, and at each layer its output; behind the first of them a graph is made, and before it with ``create_graph``."""
        cuts: dict[nn.Module, _Cut] = {}
        names = {layer: name for name, layer in self._layers}

        def cut(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
            name = names[layer]
            if layer in cuts:
                raise ValueError(
                    f"target_layer {name!r} must run once for one run of the model, but runs twice: it has no single feature map"
                )
            _check_feature_map(name, output, len(images))
            if any(_share_memory(x, output) for x in _tensors((inputs, named))):
                output = output.clone()  # a layer in place: what has its input has its output
            torch.set_grad_enabled(True)  # the layer may stand in a torch.no_grad() of the model
            dtype, attached = output.dtype, output.requires_grad and (create_graph or cuts)
            output = _at_least_single(output) if attached else _at_least_single(output.detach()).requires_grad_()
            onward = output.to(dtype, copy=True)  # the next layer may write into it
            cuts[layer] = _Cut(name, layer, output, dtype, onward.grad_fn)
            return onward

        with _hooked(names, cut):
            scores = self.model(images)
        for name, layer in self._layers:
            if layer not in cuts:
                raise ValueError(
                    f"target_layer {name!r} must run when the model runs, but does not (in eval mode; inside TorchScript no layer is seen)"
                )
        _check_scores(scores, len(images))
        return scores, [cuts[layer] for _, layer in self._layers]

    def _explain(
        self, images: Tensor, scores: Tensor, classes: Tensor, cuts: list[_Cut], create_graph: bool
    ) -> list[ClassActivationMaps]:
        raise NotImplementedError

    def _from_gradients(
        self,
        scores: Tensor,
        classes: Tensor,
        cuts: list[_Cut],
        create_graph: bool,
        combine: Combine,
    ) -> list[ClassActivationMaps]:
        """One result a layer, of what ``combine`` makes of its ``(B, 1, C, h, w)`` and gradients ``(B, K, C, h, w)``."""
        parts: list[list[tuple[Tensor, Tensor | None]]] = [[] for _ in cuts]
        activations = [(cut.output if create_graph else cut.output.detach())[:, None] for cut in cuts]
        step = max(1, _MOST_NUMBERS // max(cut.output.numel() for cut in cuts))
        for some in classes.split(step, dim=1):
            gradients = self._gradients(scores, some, cuts, create_graph)
            with torch.set_grad_enabled(create_graph), _full_precision(scores):
                for part, cut, A, gradient in zip(parts, cuts, activations, gradients, strict=True):
                    part.append(combine(cut.name, some, A, gradient))
        return [_result(part, scores, classes, create_graph) for part in parts]

    def _gradients(self, scores: Tensor, classes: Tensor, cuts: list[_Cut], create_graph: bool) -> list[Tensor]:
        """``(B, K, C, h, w)`` for each layer: of each image's own score of each of its classes, in float32 or better."""
        upstream = torch.zeros((classes.shape[1], *scores.shape), dtype=scores.dtype, device=scores.device)
        upstream.scatter_(2, classes.T[..., None], 1)
        outputs = [cut.output for cut in cuts]
        # Small gradients are 0 in float16. A power of two costs no digits; where it is too large, it is left out.
        lift = 1024 if torch.float16 in (scores.dtype, *(cut.dtype for cut in cuts)) else 1
        gradients = _vjp(scores, outputs, upstream * lift, create_graph)
        if lift != 1 and not all(bool(g.isfinite().all()) for g in gradients if g is not None):
            lift, gradients = 1, _vjp(scores, outputs, upstream, create_graph)
        found = []
        for cut, gradient in zip(cuts, gradients, strict=True):
            if gradient is None:
                raise _independent(cut.name)
            gradient = gradient.transpose(0, 1)
            found.append(gradient if lift == 1 else gradient / lift)
        return found


_MOST_NUMBERS = 2**26
"""Of gradients in one batched product: more classes are taken in turns."""


def _vjp(scores: Tensor, outputs: list[Tensor], upstream: Tensor, create_graph: bool) -> Sequence[Tensor | None]:
    """The gradients for each upstream gradient ``upstream[k]``, stacked."""

    def grad(given: Tensor, batched: bool) -> Sequence[Tensor | None]:
        return torch.autograd.grad(
            scores,
            outputs,
            given,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            is_grads_batched=batched,
        )

    if not scores.requires_grad:
        return [None] * len(outputs)
    if len(upstream) > 1:
        try:
            return grad(upstream, True)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
    singles = [grad(given, False) for given in upstream]  # also where an operation cannot be batched
    if len(singles) == 1:
        return [None if found is None else found[None] for found in singles[0]]
    return [None if part[0] is None else torch.stack(part) for part in zip(*singles, strict=True)]


def _result(
    parts: Sequence[tuple[Tensor, Tensor | None]], scores: Tensor, classes: Tensor, create_graph: bool
) -> ClassActivationMaps:
    weights = [weight for _, weight in parts if weight is not None]
    picked = _at_least_single((scores if create_graph else scores.detach()).gather(1, classes))
    return ClassActivationMaps(
        torch.cat([maps for maps, _ in parts], 1),
        torch.cat(weights, 1) if weights else None,
        picked,
        classes,
    )


@contextmanager
def _prepared(model: nn.Module, *, freeze: bool) -> Iterator[None]:
    """In here the model is in eval mode and runs uncompiled; with ``freeze`` its parameters ask for no gradients."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    compiled = "torch._dynamo" in sys.modules
    with (
        _evaluating(model),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
    ):
        learned: list[Tensor] = []
        for module in model.modules() if freeze else ():  # model.parameters() is slower, which shows on a small network
            parameters = (p for p in module._parameters.values() if p is not None)
            learned += [p for p in parameters if p.requires_grad and p.is_leaf and not p.is_inference()]
        try:
            for parameter in learned:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in learned:
                parameter.requires_grad_(True)


def _share_memory(x: Tensor, y: Tensor) -> bool:
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


# --- reading the tail from its graph --------------------------------------------------------------

# Nodes of torch's graph, without "Backward" and the number behind it. Each is affine in one input, if it has but one that
# depends on the feature map ...
_AFFINE_IN_ONE = frozenset(
    "Mul Mm Bmm Addmm Baddbmm Addmv Mv Dot Linear MkldnnLinear Convolution MkldnnConvolution CudnnConvolution Div Lerp "
    "PreluKernel".split()
)
# ... affine in all its inputs, or a switch.
_AFFINE_OR_SWITCH = frozenset(
    "Add Sub Rsub Neg Cat Stack Sum Mean Cumsum Clone ToCopy View ReshapeAlias UnsafeView Squeeze Unsqueeze Permute "
    "Transpose T Expand Slice Select Split SplitWithSizes Unbind Narrow Alias Repeat Flip Index IndexSelect Gather Diagonal "
    "ConstantPadNd ReflectionPad2D ReplicationPad2D AvgPool2D AdaptiveAvgPool2D MkldnnAdaptiveAvgPool2D UpsampleNearest2D "
    "UpsampleBilinear2D PixelShuffle PixelUnshuffle Relu LeakyRelu Hardtanh Threshold Abs Maximum Minimum Amax Amin Clamp ClampMin "
    "Max Min Where MaskedFill ClampMax MaxPool2DWithIndices AdaptiveMaxPool2D Hardsigmoid Softshrink".split()
)


def _operation(node: Any) -> str:
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return ""  # of a user, who may call it as torch calls one of its own
    name = node.name().removeprefix("torch::autograd::")
    return name.rstrip("0123456789").removesuffix("Backward")


def _tail_nodes(scores: Tensor, entry: Any) -> dict[Any, list[Any]]:
    """The nodes between the scores and the feature map, each with its inputs that depend on the feature map."""
    below: dict[Any, list[Any]] = {entry: []}
    known: set[Any] = {entry}
    stack: list[Any] = [scores.grad_fn]
    while stack:
        node = stack[-1]
        nexts = [inner for inner, _ in node.next_functions if inner is not None] if node not in below else []
        new = [inner for inner in nexts if inner not in known]
        if node not in known and new:
            known.add(node)
            stack += new
            continue
        known.add(node)
        stack.pop()
        if node is not entry and node not in below and (inner := [n for n in nexts if n in below]):
            below[node] = inner
    return below


def _known_piecewise_linear(scores: Tensor, entry: Any) -> bool:
    """Whether every operation of the tail is known to be piecewise linear; False says nothing."""
    for node, inputs in _tail_nodes(scores, entry).items():
        operation = _operation(node)
        if operation in ("NativeBatchNorm", "CudnnBatchNorm") and not node._saved_training and len(inputs) == 1:
            continue
        if operation in _AFFINE_IN_ONE and len(inputs) == 1 and (operation != "Div" or _is_first(node, inputs[0])):
            continue
        if operation not in _AFFINE_OR_SWITCH:
            return False
    return True


def _check_dependence(scores: Tensor, cut: _Cut) -> None:
    if scores.grad_fn is None or (scores.grad_fn is not cut.entry and len(_tail_nodes(scores, cut.entry)) == 1):
        raise _independent(cut.name)


def _is_first(node: Any, input: Any) -> bool:
    return node.next_functions[0][0] is input


def _pooled_head(scores: Tensor, cut: _Cut) -> Tensor | None:
    """``(n, C)``: the weight of the linear layer, if the scores are that layer of the mean of the feature map; else None."""
    channels, height, width = cut.output.shape[1:]
    node: Any = scores.grad_fn
    if node is None or (operation := _operation(node)) not in ("Addmm", "Mm"):
        return None
    if operation == "Addmm" and (node._saved_alpha != 1 or node.next_functions[2][0] is not None):
        return None
    weight, inputs = node._saved_mat2, [inner for inner, _ in node.next_functions if inner is not None]
    if weight is None or weight.shape[0] != channels or len(inputs) != 1:
        return None
    (node,) = inputs
    while (operation := _operation(node)) in ("View", "ReshapeAlias", "UnsafeView", "Squeeze"):
        node = node.next_functions[0][0]
    if operation == "Mean":  # the last two dimensions, as torch stores negative numbers
        dims = {dim - 2**64 if dim >= 2**63 else dim for dim in getattr(node, "_saved_dim", None) or ()}
        if {dim % 4 for dim in dims} != {2, 3} or tuple(node._saved_self_sym_sizes) != tuple(cut.output.shape):
            return None
    elif operation == "AvgPool2D":
        whole = node._saved_kernel_size == (height, width) and node._saved_padding == (0, 0)
        if not whole or node._saved_divisor_override is not None:
            return None
    else:
        return None
    return weight.detach().mT if node.next_functions[0][0] is cut.entry else None


# --- the methods ----------------------------------------------------------------------------------


class _WithPooledHead(_ClassActivationMethod):
    """The methods that need nothing but gradients: of the mean of each channel and a linear layer they are known."""

    def _explain(
        self, images: Tensor, scores: Tensor, classes: Tensor, cuts: list[_Cut], create_graph: bool
    ) -> list[ClassActivationMaps]:
        head = _pooled_head(scores, cuts[0]) if len(cuts) == 1 and not create_graph else None
        if head is None:
            return self._from_gradients(scores, classes, cuts, create_graph, self._combine)
        with torch.no_grad(), _full_precision(scores):
            A = cuts[0].output.detach()
            part = self._combine_pooled(cuts[0].name, classes, A, _at_least_single(head)[classes])
        return [_result([part], scores, classes, create_graph)]

    def _combine(
        self, name: str, classes: Tensor, activations: Tensor, gradients: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def _combine_pooled(
        self, name: str, classes: Tensor, activations: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """From ``(B, C, h, w)`` and the rows of the linear layer, ``(B, K, C)``."""
        raise NotImplementedError


class GradCAM(_WithPooledHead):
    r"""Grad-CAM: the channels of a feature map, weighted with the means of their gradients.

    .. math:: L = \max\Big(\sum_k w_k A_k,\, 0\Big), \qquad w_k = \frac{1}{hw} \sum_{ij} \frac{\partial S}{\partial A_{kij}}

    which is :eq:`eq-gradcam-map` with :eq:`eq-gradcam-weights`.

    Args:
        model: gives scores ``(B, n)`` to a batch of images. While it is called here it is in eval mode, and its parameters
            ask for no gradients; then it is as it was.
        target_layer: the layer that puts out the feature map ``(B, C, h, w)``: a module of the model, or its dotted name; or a
            list of them, for a tuple of results. What the layer puts out is what counts, whatever writes into it later.

    Calling it with images and classes returns :class:`ClassActivationMaps`. Nothing stays on the model between calls, with or
    without ``with``. All classes are taken in one batched product; where the backward pass of an operation knows no batching, torch
    takes the classes one after another, and may warn that it is slow. A mean of each channel with a linear layer behind it
    is recognised, and needs no backward pass, :eq:`eq-gap-head`. A model must not let the images of one batch influence
    each other.

    Raises:
        TypeError: ``model`` or ``target_layer`` has another type.
        ValueError: the model has no such layer.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
        >>> result = GradCAM(model, "1")(torch.randn(2, 1, 8, 8), [3, 7, 9])
        >>> result.maps.shape, result.classes.tolist()
        (torch.Size([2, 3, 6, 6]), [[3, 7, 9], [3, 7, 9]])

    Source: Selvaraju et al. (2017); the book, :eq:`eq-gradcam-map`.
    """

    def _combine(
        self, name: str, classes: Tensor, activations: Tensor, gradients: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        weights = gradcam_weights(gradients)
        return _weighted(activations[:, 0], weights), weights

    def _combine_pooled(
        self, name: str, classes: Tensor, activations: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        weights = rows / activations[0, 0].numel()
        return _weighted(activations, weights), weights


class LayerCAM(_WithPooledHead):
    r"""LayerCAM: each entry of a feature map, times the positive part of its own gradient.

    .. math:: L_{ij} = \max\Big(\sum_k \max\Big(\frac{\partial S}{\partial A_{kij}}, 0\Big) A_{kij},\, 0\Big)

    which is :eq:`eq-layercam`. Its result has no ``weights``.

    Args:
        model, target_layer: as :class:`GradCAM`.

    Raises:
        TypeError, ValueError: as :class:`GradCAM`.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        >>> fine, coarse = LayerCAM(model, ["0", "1"])(torch.randn(2, 1, 8, 8), 3)
        >>> coarse.maps.shape
        torch.Size([2, 1, 6, 6])

    Source: Jiang et al. (2021); the book, :eq:`eq-layercam`.
    """

    def _combine(
        self, name: str, classes: Tensor, activations: Tensor, gradients: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return layercam_map(activations, gradients), None

    def _combine_pooled(
        self, name: str, classes: Tensor, activations: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return _weighted(activations, rows.relu() / activations[0, 0].numel()), None


class GradCAMPlusPlus(_WithPooledHead):
    r"""Grad-CAM++ as the paper defines it: the channels weighted with the positive gradients, each with its alpha.

    .. math:: L = \max\Big(\sum_k w_k A_k,\, 0\Big), \qquad w_k = \sum_{ij} \alpha_{kij} \max(g_{kij}, 0)

    with the alpha of :eq:`eq-gradcam-exact`, or, where the tail of the network, from the layer to the score, is piecewise linear,
    of :eq:`eq-gradcam-alpha`, in the form :eq:`eq-gradcampp-stable`. The paper's factor :math:`e^S`, one positive number an image
    and class, is left out: it does not change the map that is divided by its maximum.

    Args:
        model, target_layer: as :class:`GradCAM`.
        higher_derivatives: ``"piecewise_linear"`` takes the second and third derivatives of the score as 0; ``"exact"``
            computes them, by nested forward mode, for each entry of the feature map: slow; ``"auto"`` looks whether the tail is
            piecewise linear, at its operations and, where one is not known, by :func:`tail_certificate`. If it is not, it
            warns and takes the exact ones.
        smooth_score: the function :math:`Y` of the scores which the paper differentiates: ``"exponential"`` is :math:`Y_c = e^{S_c}`;
            ``"softmax"`` is :math:`Y = \operatorname{softmax}(S)`, the paper's equations 21 to 24, :eq:`eq-gradcam-softmax`, which need
            the gradients of all :math:`n` scores.

    At the pole:
        a denominator :math:`2 + g \sum A_k` is less than 2 where a channel has a negative sum, and 0 at the pole. It warns,
        and says how many there are and where the least is.

    Raises:
        TypeError, ValueError: as :class:`GradCAM`; ``higher_derivatives`` is another word.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        >>> with GradCAMPlusPlus(model, "1") as cam:
        ...     result = cam(torch.randn(2, 1, 8, 8))
        >>> result.normalized().upsample(8).maps.shape
        torch.Size([2, 1, 8, 8])

    Source: Chattopadhyay et al. (2018); the book, :eq:`eq-gradcampp-stable`.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: Layer | Sequence[Layer],
        *,
        higher_derivatives: HigherDerivatives = "auto",
        smooth_score: SmoothScore = "exponential",
    ) -> None:
        super().__init__(model, target_layer)
        check_one_of("smooth_score", smooth_score, get_args(SmoothScore))
        self.smooth_score = smooth_score
        check_one_of("higher_derivatives", higher_derivatives, get_args(HigherDerivatives))
        self.higher_derivatives = higher_derivatives

    def _explain(
        self, images: Tensor, scores: Tensor, classes: Tensor, cuts: list[_Cut], create_graph: bool
    ) -> list[ClassActivationMaps]:
        exact = [self._wants_exact(images, scores, cut) for cut in cuts]
        if not any(exact) and self.smooth_score == "exponential":
            return super()._explain(images, scores, classes, cuts, create_graph)
        results = []
        for wanted, cut in zip(exact, cuts, strict=True):
            if wanted or self.smooth_score == "softmax":
                part = self._from_derivatives(images, scores, classes, cut, wanted, create_graph)
                results.append(_result([part], scores, classes, create_graph))
            else:
                results += self._from_gradients(scores, classes, [cut], create_graph, self._combine)
        return results

    def _wants_exact(self, images: Tensor, scores: Tensor, cut: _Cut) -> bool:
        if self.higher_derivatives != "auto":
            return self.higher_derivatives == "exact"
        if not scores.requires_grad or _known_piecewise_linear(scores, cut.entry):
            return False
        certificate = certify(
            _tail(self.model, cut.layer, images.detach(), cut.dtype), cut.output.detach(), self.model, probes=1
        )
        if certificate:
            return False
        _warn(
            f"the scores are not piecewise linear in what target_layer {cut.name!r} puts out ({certificate!r}); their second and "
            f"third derivatives are computed for each of its {cut.output[0].numel()} entries, which is slow; "
            "higher_derivatives='piecewise_linear' takes them as 0, 'exact' does not warn"
        )
        return True

    def _from_derivatives(
        self, images: Tensor, scores: Tensor, classes: Tensor, cut: _Cut, exact: bool, create_graph: bool
    ) -> tuple[Tensor, Tensor]:
        """Of exp(S), or of the softmax, which is exp of its logarithm; ``exact``: where S is not piecewise linear."""
        _check_dependence(scores, cut)
        A = cut.output if create_graph else cut.output.detach()
        if exact:
            tail = _tail(self.model, cut.layer, images, cut.dtype)
            score = (lambda A: tail(A).log_softmax(1)) if self.smooth_score == "softmax" else tail
            try:
                derivatives = tail_derivatives(
                    score, A.to(cut.dtype), classes, model=self.model, create_graph=create_graph
                )
            except NotImplementedError as error:
                raise NotImplementedError(
                    f"{error}; higher_derivatives='piecewise_linear' takes the second and third derivatives as 0"
                ) from error
        else:
            with _full_precision(scores):
                derivatives = log_probability_derivatives(
                    _at_least_single(scores), cut.output, classes, create_graph=create_graph
                )
        first, second, third = derivatives
        with torch.set_grad_enabled(create_graph), _full_precision(A):
            alpha, denominator = _alpha_exact(A[:, None], first, second, third)
            weights = (alpha * _at_least_single(first).relu()).sum((-2, -1))
            _warn_where(
                (alpha < 0) | (denominator == 0), alpha, cut.name, classes, "alpha is negative or infinite", "alpha"
            )
            return _weighted(A, weights), weights

    def _combine(
        self, name: str, classes: Tensor, activations: Tensor, gradients: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        weights = gradcam_plusplus_weights(activations, gradients)
        _warn_of_poles(name, classes, activations, gradients)
        return _weighted(activations[:, 0], weights), weights

    def _combine_pooled(
        self, name: str, classes: Tensor, activations: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        means, p = activations.mean((-2, -1))[:, None], rows.relu()
        weights = p / (2 + p * means)
        _warn_of_poles(name, classes, means[..., None, None], rows[..., None, None])
        return _weighted(activations, weights), weights


def _warn_of_poles(name: str, classes: Tensor, activations: Tensor, gradients: Tensor) -> None:
    """Where a channel has a negative sum and a positive gradient, the denominator of alpha falls below 2, and has a pole at 0."""
    total = _total(activations.detach())
    if not bool((total < 0).any()):
        return
    denominator = 2 + gradients.detach().relu() * total
    beyond = int((denominator <= 0).sum())
    what = "channels have negative sums, so that the denominator of alpha, 2 + g ΣA, is less than 2"
    poles = (
        f"{beyond} of them at its pole at 0 or beyond it, where weights are infinite or negative; " if beyond else ""
    )
    _warn_where(denominator < 2, denominator, name, classes, what, "the denominator", poles)


def _warn_where(bad: Tensor, values: Tensor, name: str, classes: Tensor, what: str, which: str, more: str = "") -> None:
    if not (count := int(bad.sum())):
        return
    flat = int(torch.where(bad, values, torch.inf).argmin())
    place = []
    for size in reversed(bad.shape):
        flat, index = divmod(flat, size)
        place.append(index)
    column, row, channel, k, image = place
    _warn(
        f"target_layer {name!r}: {what}, in {count} places, {more}"
        f"{which} is least, {values[image, k, channel, row, column].item():.3g}, in image {image} for class "
        f"{int(classes[image, k])}, channel {channel}, row {row}, column {column}"
    )


def _warn(message: str) -> None:
    """A warning that names the line that called this library."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("pwl_lib."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


# --- how good a map is ----------------------------------------------------------------------------


class Curve(NamedTuple):
    """How the probability of a class changes while pixels are taken away, or put in."""

    fractions: Tensor
    """``(steps + 1,)``: of the pixels that were taken away, or put in, from 0 to 1."""
    values: Tensor
    """``(B, K, steps + 1)``: the probabilities."""
    area: Tensor
    """``(B, K)``: under the curve, by trapezoids."""


def average_drop(
    model: nn.Module, images: Tensor, maps: Tensor | ClassActivationMaps, classes: Classes | None = None
) -> Tensor:
    r"""How much of a class's probability is lost when an image is multiplied with its map. Less is better.

    .. math:: \frac{1}{BK} \sum_{b,c} \frac{\max(Y_{bc} - O_{bc},\, 0)}{Y_{bc}}

    which is :eq:`eq-average-drop`: :math:`Y` is the softmax probability of the image, and :math:`O` of the image times its map,
    which is brought to its size and to the range from 0 to 1.

    Args:
        model: gives scores ``(B, n)``; it runs in eval mode, without a graph.
        images: ``(B, D, H, W)``, floating point.
        maps: ``(B, K, h, w)``, or a :class:`ClassActivationMaps`.
        classes: as a method takes them; None for those of the :class:`ClassActivationMaps`, or for the top one of each image.

    Returns:
        a number from 0 to 1; the paper gives it in percent.

    Raises:
        TypeError, ValueError: tensors of other types or shapes, classes out of range.

    Example:
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> average_drop(model, torch.rand(3, 1, 4, 4), torch.ones(3, 1, 2, 2), 0)
        tensor(0.)

    Source: Chattopadhyay et al. (2018), section 4.1; the book, :eq:`eq-average-drop`.
    """
    before, after = _explained(model, images, maps, classes)
    return (1 - (after - before).clamp(max=0).exp()).mean()


def average_increase(
    model: nn.Module, images: Tensor, maps: Tensor | ClassActivationMaps, classes: Classes | None = None
) -> Tensor:
    """For how many images and classes the probability is larger when the image is multiplied with its map. More is better.

    Args:
        model, images, maps, classes: as :func:`average_drop`.

    Returns:
        a number from 0 to 1; the paper gives it in percent.

    Raises:
        TypeError, ValueError: as :func:`average_drop`.

    Example:
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> average_increase(model, torch.rand(3, 1, 4, 4), torch.ones(3, 1, 2, 2), 0)
        tensor(0.)

    Source: Chattopadhyay et al. (2018), section 4.1; the book, :eq:`eq-average-drop`.
    """
    before, after = _explained(model, images, maps, classes)
    return (after > before).to(before).mean()


def _explained(
    model: nn.Module, images: Tensor, maps: Tensor | ClassActivationMaps, classes: Classes | None
) -> tuple[Tensor, Tensor]:
    heat, asked = _maps_of_images(images, maps, classes)
    heat = _normalized(_upsampled(heat, (images.shape[-2], images.shape[-1]))).to(images)
    with _prepared(model, freeze=False), torch.no_grad():
        before, picked = _log_probabilities(model, images, asked, heat.shape[1])
        after = [
            _log_probabilities(model, images * heat[:, k : k + 1], picked[:, k : k + 1], 1)[0]
            for k in range(heat.shape[1])
        ]
    return before, torch.cat(after, 1)


def deletion_curve(
    model: nn.Module,
    images: Tensor,
    maps: Tensor | ClassActivationMaps,
    classes: Classes | None = None,
    *,
    steps: int = 20,
    baseline: Tensor | float = 0.0,
) -> Curve:
    """The probability of a class while the pixels where its map is largest are taken away first. A small area is good.

    Args:
        model, images, maps, classes: as :func:`average_drop`.
        steps: how many, at least 1; in each as many pixels, to rounding.
        baseline: what stands where a pixel is away: a number, or images that broadcast with ``images``.

    Returns:
        :class:`Curve`.

    At ties:
        equal values of a map go row by row.

    Raises:
        TypeError, ValueError: as :func:`average_drop`; ``steps`` is no count.

    Example:
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> deletion_curve(model, torch.rand(3, 1, 4, 4), torch.rand(3, 1, 2, 2), 0, steps=4).fractions
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000])

    Source: Petsiuk et al. (2018).
    """
    return _curve(model, images, maps, classes, steps, baseline, insert=False)


def insertion_curve(
    model: nn.Module,
    images: Tensor,
    maps: Tensor | ClassActivationMaps,
    classes: Classes | None = None,
    *,
    steps: int = 20,
    baseline: Tensor | float = 0.0,
) -> Curve:
    """The probability of a class while the pixels where its map is largest are put in first. A large area is good.

    Args:
        model, images, maps, classes, steps, baseline: as :func:`deletion_curve`; it begins with the baseline.

    Returns:
        :class:`Curve`.

    At ties:
        equal values of a map go row by row.

    Raises:
        TypeError, ValueError: as :func:`deletion_curve`.

    Example:
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> insertion_curve(model, torch.rand(3, 1, 4, 4), torch.rand(3, 1, 2, 2), 0, steps=4).values.shape
        torch.Size([3, 1, 5])

    Source: Petsiuk et al. (2018).
    """
    return _curve(model, images, maps, classes, steps, baseline, insert=True)


def _curve(
    model: nn.Module,
    images: Tensor,
    maps: Tensor | ClassActivationMaps,
    classes: Classes | None,
    steps: int,
    baseline: Tensor | float,
    *,
    insert: bool,
) -> Curve:
    check_count("steps", steps, 1)
    heat, asked = _maps_of_images(images, maps, classes)
    heat = _upsampled(heat, (images.shape[-2], images.shape[-1])).flatten(-2)
    order = heat.sort(dim=-1, descending=True, stable=True).indices
    pixels = heat.shape[-1]
    counts = [round(step * pixels / steps) for step in range(steps + 1)]
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(pixels, device=order.device).expand_as(order))
    rank = rank.unflatten(-1, images.shape[-2:])
    base = _baseline(baseline, images)
    rows = []
    with _prepared(model, freeze=False), torch.no_grad():
        _, picked = _log_probabilities(model, images, asked, heat.shape[1])
        for count in counts:
            taken = rank < count
            for k in range(heat.shape[1]):
                shown = taken[:, k : k + 1] == insert
                mixed = torch.where(shown, images, base)
                rows.append(_log_probabilities(model, mixed, picked[:, k : k + 1], 1)[0])
    values = torch.cat(rows, 1).exp().unflatten(1, (steps + 1, heat.shape[1])).transpose(1, 2).contiguous()
    fractions = torch.tensor(counts, dtype=values.dtype, device=values.device) / pixels
    return Curve(fractions, values, torch.trapezoid(values, fractions))


def _baseline(baseline: Tensor | float, images: Tensor) -> Tensor:
    if not isinstance(baseline, (Tensor, int, float)):
        raise TypeError(f"baseline must be a number or a tensor, got {type(baseline).__name__}")
    base = torch.as_tensor(baseline, dtype=images.dtype, device=images.device)
    try:
        return base.expand_as(images)
    except RuntimeError:
        raise ValueError(
            f"baseline must fit images of shape {tuple(images.shape)}, got shape {tuple(base.shape)}"
        ) from None


def _maps_of_images(
    images: Tensor, maps: Tensor | ClassActivationMaps, classes: Classes | None
) -> tuple[Tensor, Tensor | None]:
    check_floating("images", images)
    if images.dim() != 4 or len(images) == 0:
        raise ValueError(f"images must be (B, D, H, W), got shape {tuple(images.shape)}")
    if isinstance(maps, ClassActivationMaps):
        classes = maps.classes if classes is None else classes
        maps = maps.maps
    _check_stack(maps)
    if len(maps) != len(images):
        raise ValueError(f"maps must be of the {len(images)} images, got {len(maps)}")
    return maps.detach(), None if classes is None else _check_classes(classes, len(images))


def _log_probabilities(model: nn.Module, images: Tensor, classes: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    scores = _uncompiled(model)(images.clone())
    _check_scores(scores, len(images))
    picked = scores.argmax(1, keepdim=True) if classes is None else _in_range(classes, scores)
    if picked.shape[1] != count:
        raise ValueError(f"classes must have one for each of the {count} maps of an image, got {picked.shape[1]}")
    return _at_least_single(scores).log_softmax(1).gather(1, picked), picked


def pointing_game(maps: Tensor | ClassActivationMaps, boxes: Tensor) -> Tensor:
    """Whether the largest value of each map lies in a box of its image.

    Args:
        maps: ``(B, K, H, W)`` in the size of the image, or a :class:`ClassActivationMaps` after ``upsample``.
        boxes: ``(B, 4)``, or ``(B, N, 4)`` for several in an image: x0, y0, x1, y1 in pixels, x to the right and y down, x1 and
            y1 outside. A box without a pixel is none.

    Returns:
        ``(B, K)``, bool. A map that is 0 points nowhere.

    At ties:
        the first of the largest values, row by row.

    Raises:
        TypeError, ValueError: tensors of other types or shapes; a box that reaches out of its map.

    Example:
        >>> pointing_game(torch.tensor([[[[0.0, 1.0], [0.5, 0.0]]]]), torch.tensor([[1, 0, 2, 1]]))
        tensor([[True]])

    Source: Zhang et al. (2018); the book, :eq:`eq-box-energy`.
    """
    heat, inside = _maps_in_boxes(maps, boxes)
    flat = heat.flatten(-2)
    hit = inside.flatten(-2).expand(flat.shape).gather(-1, flat.argmax(-1, keepdim=True)).squeeze(-1)
    return hit & (flat.amax(-1) > 0)


def box_energy(maps: Tensor | ClassActivationMaps, boxes: Tensor) -> Tensor:
    r"""How much of each map lies in the boxes of its image.

    .. math:: \frac{\sum_{(i,j) \in \text{box}} L_{ij}}{\sum_{ij} L_{ij}}

    which is :eq:`eq-box-energy`.

    Args:
        maps, boxes: as :func:`pointing_game`. Where boxes overlap, a pixel counts once.

    Returns:
        ``(B, K)``, from 0 to 1. A map that is 0 has nothing there.

    Raises:
        TypeError, ValueError: as :func:`pointing_game`.

    Example:
        >>> box_energy(torch.tensor([[[[0.0, 1.0], [3.0, 0.0]]]]), torch.tensor([[1, 0, 2, 1]]))
        tensor([[0.2500]])

    Source: Wang et al. (2020); the book, :eq:`eq-box-energy`.
    """
    heat, inside = _maps_in_boxes(maps, boxes)
    heat = _at_least_single(heat)
    whole = heat.sum((-2, -1))
    return (heat * inside).sum((-2, -1)) / torch.where(whole > 0, whole, 1)


def _maps_in_boxes(maps: Tensor | ClassActivationMaps, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The maps, and ``(B, 1, H, W)``: whether a pixel lies in a box."""
    heat = maps.maps if isinstance(maps, ClassActivationMaps) else maps
    _check_stack(heat)
    if not isinstance(boxes, Tensor) or boxes.is_complex() or boxes.dtype == torch.bool:
        raise TypeError("boxes must be a tensor of real numbers")
    if boxes.dim() not in (2, 3) or boxes.shape[-1] != 4 or len(boxes) != len(heat):
        raise ValueError(
            f"boxes must be (B, 4) or (B, N, 4) with one row for each of the {len(heat)} images, got shape {tuple(boxes.shape)}"
        )
    height, width = heat.shape[-2:]
    x_0, y_0, x_1, y_1 = boxes.to(heat.device).reshape(len(heat), -1, 4, 1, 1).unbind(2)
    row = torch.arange(height, device=heat.device)[:, None]
    column = torch.arange(width, device=heat.device)
    out = (x_0 < 0) | (y_0 < 0) | (x_1 > width) | (y_1 > height)
    if bool(out.any()):
        raise ValueError(
            f"boxes must lie in the maps of {height} by {width} pixels: bring the maps to the size of the image"
        )
    inside = (row >= y_0) & (row < y_1) & (column >= x_0) & (column < x_1)
    return heat, inside.any(1, keepdim=True)


# --- what must hold of arguments ------------------------------------------------------------------


def _check_maps(name: str, x: Any, like: Tensor | None = None) -> None:
    check_floating(name, x)
    if x.dim() < 3:
        raise ValueError(f"{name} must be (..., C, h, w), got shape {tuple(x.shape)}")
    if like is not None:
        try:
            torch.broadcast_shapes(x.shape, like.shape)
        except RuntimeError:
            raise ValueError(
                f"{name} must match activations of shape {tuple(like.shape)}, got {tuple(x.shape)}"
            ) from None


def _check_stack(maps: Any) -> None:
    check_floating("maps", maps)
    if maps.dim() != 4:
        raise ValueError(f"maps must be (B, K, h, w), got shape {tuple(maps.shape)}")


def _check_feature_map(name: str, output: Any, batch: int) -> None:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        what = f"a tensor of {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(f"target_layer {name!r} must put out one floating point tensor (B, C, h, w), got {what}")
    if output.dim() != 4 or output.shape[0] != batch or output.numel() == 0:
        raise ValueError(
            f"target_layer {name!r} must put out (B, C, h, w) with B = {batch}, got shape {tuple(output.shape)}"
        )


def _check_scores(scores: Any, batch: int) -> None:
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        what = f"a tensor of {scores.dtype}" if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"model must return one floating point tensor of scores (B, n), got {what}")
    if scores.dim() != 2 or scores.shape[0] != batch or scores.shape[1] == 0:
        raise ValueError(f"model must return scores (B, n) with B = {batch}, got shape {tuple(scores.shape)}")


def _check_classes(classes: Any, batch: int) -> Tensor:
    """``(B, K)``, int64; whether they are in range is known when the model has run."""
    try:
        found = torch.as_tensor(classes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"classes must be integers: (B, K), (K,), one, nested lists of one length, or None; got {classes!r}"
        ) from error
    if found.numel() == 0:
        raise ValueError(f"classes must name at least one class, got shape {tuple(found.shape)}")
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"classes must be integers, got {found.dtype}")
    if found.dim() > 2:
        raise ValueError(f"classes must be (B, K), (K,) or one integer, got shape {tuple(found.shape)}")
    if found.dim() == 2 and found.shape[0] != batch:
        raise ValueError(f"classes must have one row for each of the {batch} images, got {found.shape[0]} rows")
    found = found.detach().to(torch.int64).reshape(-1, found.shape[-1] if found.dim() else 1)
    return found.expand(batch, -1)


def _in_range(classes: Tensor, scores: Tensor) -> Tensor:
    n = scores.shape[1]
    wrong = (classes < 0) | (classes >= n)
    if bool(wrong.any()):
        image, k = wrong.nonzero()[0].tolist()
        raise ValueError(f"classes must lie between 0 and {n - 1}, got {int(classes[image, k])} for image {image}")
    return classes.clone().to(scores.device)  # here, and not where the caller may be in inference mode
