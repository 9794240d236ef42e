r"""Losses: the last layer, which makes one number of the output and of what was wanted. The backward pass begins here.

The module of the chapter *Losses*. For each loss there is first the matrix, the Jacobian written down; then the
function, which applies its transpose without forming it; then the module. A loss has no parameters. Its gradient has the
shape of its input: the sign of the difference for L1, twice the difference for the squared error, and softmax minus
target for the cross entropy.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

from pwl_lib._autograd import LayerFunction, autocast_is_on, derivative_wanted, pick, sum_of
from pwl_lib._validation import check_floating, check_number, check_one_of, check_same_kind
from pwl_lib.rectifiers import absolute

__all__ = [
    "CrossEntropyLoss",
    "L1Loss",
    "MSELoss",
    "cross_entropy",
    "cross_entropy_jacobian",
    "l1_jacobian",
    "l1_loss",
    "mse_jacobian",
    "mse_loss",
    "softmax_jacobian",
]


# --- the matrix -----------------------------------------------------------------------------------


def softmax_jacobian(input: Tensor) -> Tensor:
    r"""The Jacobian of the softmax of the last dimension. It is also the Hessian of the log of the sum of exponentials.

    .. math:: \frac{\partial p}{\partial x^\top} = \operatorname{diag}(p) - p\,p^\top, \qquad p = \operatorname{softmax}(x)

    which is :eq:`eq-softmax-jacobian`. It is symmetric and positive semidefinite, and its rows sum to 0.

    Args:
        input: ``(..., C)``, floating point.

    Returns:
        ``(..., C, C)``.

    Raises:
        TypeError: ``input`` is not a floating point tensor.
        ValueError: ``input`` has no dimension.

    Example:
        >>> softmax_jacobian(torch.zeros(2))
        tensor([[ 0.2500, -0.2500],
                [-0.2500,  0.2500]])

    Source: the book, :eq:`eq-softmax-jacobian`.
    """
    check_floating("input", input)
    if input.dim() == 0:
        raise ValueError("input must have shape (..., C), got ()")
    p = input.softmax(-1)
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


def l1_jacobian(
    input: Tensor,
    target: Tensor,
    size_average: None = None,
    reduce: None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""The Jacobian of :func:`l1_loss` in its input: the signs of the differences, 0 at 0.

    They stand on a diagonal for the reduction "none", and in one row otherwise. The Jacobian in the target is its
    negative.

    Args:
        input: any shape, n elements in all, floating point.
        target, size_average, reduce, reduction, weight: as for :func:`l1_loss`.

    Returns:
        ``(n, n)`` for the reduction "none", else ``(1, n)``; numerator layout, flattened as torch does it.

    Raises:
        TypeError, ValueError: as :func:`l1_loss`.

    Example:
        >>> l1_jacobian(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 2.0, 0.0]), reduction="sum")
        tensor([[-1.,  0.,  1.]])

    Source: the book, :eq:`eq-l1-vjp`.
    """
    difference, weight = _difference(input, target, size_average, reduce, reduction, weight)
    return _reduced_diagonal(difference.sign(), reduction, weight)


def mse_jacobian(
    input: Tensor,
    target: Tensor,
    size_average: None = None,
    reduce: None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""The Jacobian of :func:`mse_loss` in its input: twice the differences.

    They stand on a diagonal for the reduction "none", and in one row otherwise. The Jacobian in the target is its
    negative.

    Args:
        input: any shape, n elements in all, floating point.
        target, size_average, reduce, reduction, weight: as for :func:`mse_loss`.

    Returns:
        ``(n, n)`` for the reduction "none", else ``(1, n)``; numerator layout, flattened as torch does it.

    Raises:
        TypeError, ValueError: as :func:`mse_loss`.

    Example:
        >>> mse_jacobian(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 2.0, 0.0]), reduction="sum")
        tensor([[-8.,  0.,  6.]])

    Source: the book, :eq:`eq-mse-vjp`.
    """
    difference, weight = _difference(input, target, size_average, reduce, reduction, weight)
    return _reduced_diagonal(2 * difference, reduction, weight)


def cross_entropy_jacobian(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""The Jacobian of :func:`cross_entropy` in its input: softmax minus target, in the columns of the sample.

    Args:
        input: ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, n elements in all, floating point.
        target, weight, size_average, ignore_index, reduce, reduction, label_smoothing: as for :func:`cross_entropy`.

    Returns:
        ``(n / C, n)`` for the reduction "none", else ``(1, n)``; numerator layout, both sides flattened as torch does it.

    Raises:
        TypeError, ValueError: as :func:`cross_entropy`.

    Example:
        >>> cross_entropy_jacobian(torch.zeros(1, 4), torch.tensor([2]))
        tensor([[ 0.2500,  0.2500, -0.7500,  0.2500]])

    Source: the book, :eq:`eq-cross-entropy-weighted`.
    """
    _check_cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    input, target, weight = _in_one_dtype(input, target, weight)
    dim = _class_dimension(input)
    x = input.movedim(dim, -1)
    classes = x.shape[-1]
    weights = x.new_ones(classes) if weight is None else weight
    by_index = target.shape != input.shape
    if by_index:
        counts = target != ignore_index
        index = target.masked_fill(~counts, 0)
        if bool(((index < 0) | (index >= classes)).any()):
            raise IndexError(f"target must hold classes from 0 to {classes - 1}, or ignore_index, {ignore_index}")
        hot = F.one_hot(index, classes).to(x.dtype)
        shares = (hot @ weights) * counts
    else:
        counts = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        hot = target.movedim(dim, -1)
        shares = counts
    wanted = weights * ((1 - label_smoothing) * hot + label_smoothing / classes)
    slopes = torch.where(counts[..., None], x.softmax(-1) * wanted.sum(-1, keepdim=True) - wanted, 0)
    # One row a loss, and one column an input: the slopes of a loss stand where its sample and its place are.
    samples, classes, places = _as_three(input)
    jacobian = x.new_zeros(samples, places, samples, classes, places)
    n, d = torch.arange(samples, device=x.device)[:, None], torch.arange(places, device=x.device)
    jacobian[n, d, n, :, d] = slopes.reshape(samples, places, classes)
    jacobian = jacobian.reshape(samples * places, input.numel())
    if reduction == "none":
        return jacobian
    row = jacobian.sum(0, keepdim=True)
    return row if reduction == "sum" or not counts.any() else row / shares.sum()


def _reduced_diagonal(slopes: Tensor, reduction: str, weight: Tensor | None) -> Tensor:
    row = slopes.flatten() if weight is None else slopes.flatten() * weight.flatten()
    if reduction == "none":
        return torch.diag(row)
    return (row if reduction == "sum" else row / (row.numel() if weight is None else weight.sum()))[None]


# --- the function ---------------------------------------------------------------------------------


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: None = None,
    reduce: None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""The absolute error, entry by entry or its mean or sum.

    .. math:: \ell_i = |x_i - t_i|, \qquad \frac{\partial z}{\partial x} = \operatorname{sign}(x - t) \odot \frac{\partial z}{\partial \ell}

    which are :eq:`eq-l1` and :eq:`eq-l1-vjp`. The signs are all that the backward pass keeps, one byte an element.

    Args:
        input: :math:`x`, any shape, floating point.
        target: :math:`t`, the shape of ``input``, real. It is differentiable too.
        size_average, reduce: must be None; the words are here because torch has them.
        reduction: "mean" of the :math:`\ell_i`, their "sum", or "none".
        weight: :math:`w`, the shape of ``input``; the losses are :math:`w_i \ell_i`, and the mean is their sum over that of
            the weights.

    Returns:
        a number, or the shape of ``input`` for the reduction "none"; in the wider dtype of the two. The mean of an empty
        batch is NaN, as in torch.

    At the kink:
        the slope at :math:`x_i = t_i` is 0, as in torch: the middle of the subdifferential :math:`[-1, 1]`.

    Raises:
        TypeError: ``input`` is not a floating point tensor, or ``target`` or ``weight`` is not a real one.
        ValueError: the shapes differ (nothing is broadcast), ``reduction`` is none of the three, or a word that must be None
            is not.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
        >>> l1_loss(x, torch.tensor([5.0, 2.0, 0.0, 3.0])).backward()
        >>> x.grad
        tensor([-0.2500,  0.0000,  0.2500,  0.2500])

    Source: the book, :eq:`eq-l1-vjp`.
    """
    if has_torch_function_variadic(input, target, weight):
        words: dict[str, Any] = {
            "size_average": size_average,
            "reduce": reduce,
            "reduction": reduction,
            "weight": weight,
        }
        return handle_torch_function(l1_loss, (input, target, weight), input, target, **words)
    if weight is None:
        input, target = _as_float32_under_autocast(input, target)
    difference, weight = _difference(input, target, size_average, reduce, reduction, weight)
    return _reduced(absolute(difference), reduction, weight)


class _SquaredError(LayerFunction):
    @staticmethod
    def forward(difference: Tensor, reduction: str) -> Tensor:
        return _reduced(difference * difference, reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        difference, ctx.reduction = inputs
        ctx.save_for_backward(difference)
        ctx.save_for_forward(difference)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        count = max(difference.numel(), 1) if ctx.reduction == "mean" else 1
        return difference * (
            2 / count
        ) * upstream, None  # in torch's order, for torch's bits; it rounds 2 / count in half precision


class _SquaredErrorForward(_SquaredError):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        (difference,) = ctx.saved_tensors
        return _reduced(2 * difference * tangent, ctx.reduction)


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: None = None,
    reduce: None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""The squared error, entry by entry or its mean or sum.

    .. math:: \ell_i = (x_i - t_i)^2, \qquad \frac{\partial z}{\partial x} = 2 (x - t) \odot \frac{\partial z}{\partial \ell}

    which are :eq:`eq-mse` and :eq:`eq-mse-vjp`. The backward pass keeps the difference :math:`x - t`, and neither of the two.

    Args:
        input: :math:`x`, any shape, floating point.
        target: :math:`t`, the shape of ``input``, real. It is differentiable too.
        size_average, reduce: must be None; the words are here because torch has them.
        reduction: "mean" of the :math:`\ell_i`, their "sum", or "none".
        weight: :math:`w`, the shape of ``input``; the losses are :math:`w_i \ell_i`, and the mean is their sum over that of
            the weights.

    Returns:
        a number, or the shape of ``input`` for the reduction "none"; in the wider dtype of the two. The mean of an empty
        batch is NaN, as in torch.

    Raises:
        TypeError: ``input`` is not a floating point tensor, or ``target`` or ``weight`` is not a real one.
        ValueError: the shapes differ (nothing is broadcast), ``reduction`` is none of the three, or a word that must be None
            is not.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
        >>> mse_loss(x, torch.tensor([5.0, 2.0, 0.0, 3.0])).backward()
        >>> x.grad
        tensor([-2.0000,  0.0000,  1.5000,  0.5000])

    Source: the book, :eq:`eq-mse-vjp`.
    """
    if has_torch_function_variadic(input, target, weight):
        words: dict[str, Any] = {
            "size_average": size_average,
            "reduce": reduce,
            "reduction": reduction,
            "weight": weight,
        }
        return handle_torch_function(mse_loss, (input, target, weight), input, target, **words)
    if weight is None:
        input, target = _as_float32_under_autocast(input, target)
    difference, weight = _difference(input, target, size_average, reduce, reduction, weight)
    if not derivative_wanted(difference):
        return _reduced(difference * difference, reduction, weight)
    square = pick(_SquaredError, _SquaredErrorForward).apply
    return square(difference, reduction) if weight is None else _reduced(square(difference, "none"), reduction, weight)


class _CrossEntropy(LayerFunction):
    """Two outputs, the loss and the log-probabilities: a derivative may keep outputs, and be differentiated through them."""

    @staticmethod
    def forward(x: Tensor, target: Tensor, weight: Tensor | None, *words: Any) -> tuple[Tensor, Tensor]:
        log_p = F.log_softmax(x, _class_dimension(x))
        return _loss_of(log_p, target, weight, *words), log_p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, target, weight, *ctx.words = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], target, weight)
        ctx.save_for_forward(output[1], target, weight)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, sideways: Tensor | None) -> tuple[Tensor | None, ...]:
        log_p, target, weight = ctx.saved_tensors
        if ctx.needs_input_grad[2]:
            raise NotImplementedError(_NO_GRADIENT_IN_WEIGHT)
        by_input = by_target = None
        p = _wide(log_p).exp()
        if upstream is not None:
            by_input, by_target = _softmax_minus_target(p, log_p, target, weight, upstream, *ctx.words)
        if sideways is not None:
            total = sideways.sum(_class_dimension(p), keepdim=True)
            by_input = sum_of(by_input, sideways - p * total)
        by_input = None if by_input is None else by_input.to(log_p.dtype)
        return by_input, by_target if ctx.needs_input_grad[1] else None, *[None] * (len(ctx.words) + 1)


class _CrossEntropyForward(_CrossEntropy):
    @staticmethod
    def jvp(
        ctx: Any, tangent: Tensor | None, target_tangent: Tensor | None, weight_tangent: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, Tensor]:
        log_p, target, weight = ctx.saved_tensors
        ignore_index, reduction, smoothing = ctx.words
        if weight_tangent is not None:
            raise NotImplementedError(_NO_GRADIENT_IN_WEIGHT)
        by_input = by_target = None
        along = torch.zeros_like(log_p)
        if tangent is not None:
            along = tangent - (log_p.exp() * tangent).sum(_class_dimension(log_p), keepdim=True)
            by_input = _loss_of(along, target, weight, *ctx.words)
        if target_tangent is not None and target.is_floating_point():
            by_target = _loss_of(log_p, (1 - smoothing) * target_tangent, weight, ignore_index, reduction, 0.0)
        return sum_of(by_input, by_target), along


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""The cross entropy of the softmax of the input with the target, sample by sample or its mean or sum.

    .. math::

        \ell = -\sum_c q_c \ln p_c, \quad p = \operatorname{softmax}(x), \qquad
        \frac{\partial \ell}{\partial x} = p - q

    which are :eq:`eq-cross-entropy` and :eq:`eq-cross-entropy-vjp`, for a target :math:`q` that sums to 1, such as the
    indicator of a class; with weights, smoothing and ignored samples :eq:`eq-cross-entropy-weighted`. The backward pass
    keeps the logarithms of :eq:`eq-log-softmax` and the target.

    Args:
        input: :math:`x`, the logits, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, floating point.
        target: the indices of the classes, int64 or uint8, of the shape of ``input`` without C; or the probabilities
            :math:`q`, floating point, of the shape of ``input``, and differentiable.
        weight: ``(C,)``, one weight a class, in the dtype of ``input``. It gets no gradient.
        size_average, reduce: must be None; the words are here because torch has them.
        ignore_index: a target index whose samples count for nothing; not for probabilities.
        reduction: "mean", "sum" or "none". The mean of indices divides by the sum of the weights of the targets that are
            not ignored, the mean of probabilities by the number of samples and places.
        label_smoothing: :math:`\epsilon` in [0, 1]: the target becomes :math:`(1 - \epsilon) q + \epsilon / C`.

    Returns:
        a number, or ``()``, ``(N,)``, ``(N, d1, ...)`` for the reduction "none". The mean over nothing is NaN, with a
        gradient of 0, as in torch: of an empty batch, and where every target is ignored.

    Raises:
        TypeError: ``input`` is not a floating point tensor, ``target`` has another dtype than those above, or ``weight``
            another than ``input``.
        ValueError: a shape is none of those above, ``weight`` requires a gradient, ``label_smoothing`` lies outside [0, 1],
            ``ignore_index`` is a class and ``target`` holds probabilities, ``reduction`` is none of the three, or a word that
            must be None is not.
        IndexError: a target is neither a class nor ``ignore_index``.

    Example:
        >>> x = torch.zeros(2, 4, requires_grad=True)
        >>> cross_entropy(x, torch.tensor([2, 0]), reduction="sum").backward()
        >>> x.grad
        tensor([[ 0.2500,  0.2500, -0.7500,  0.2500],
                [-0.7500,  0.2500,  0.2500,  0.2500]])

    Source: the book, :eq:`eq-cross-entropy-vjp`.
    """
    if has_torch_function_variadic(input, target, weight):
        words: dict[str, Any] = {
            "size_average": size_average,
            "ignore_index": ignore_index,
            "reduce": reduce,
            "reduction": reduction,
        }
        words |= {"weight": weight, "label_smoothing": label_smoothing}
        return handle_torch_function(cross_entropy, (input, target, weight), input, target, **words)
    input, target, weight = _as_float32_under_autocast(input, target, weight)
    _check_cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    input, target, weight = _in_one_dtype(input, target, weight)
    arguments = (input, target, weight, ignore_index, reduction, label_smoothing)
    if torch.compiler.is_compiling():
        return _CrossEntropy.apply(*arguments)[0]
    try:
        return _cross_entropy(*arguments)
    except IndexError as error:  # looked at after the kernel has found it: a check before would cost a pass
        raise IndexError(
            f"target must hold classes from 0 to {input.shape[_class_dimension(input)] - 1}, or ignore_index, "
            f"{ignore_index}: {error}"
        ) from None


def _cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, label_smoothing: float
) -> Tensor:
    if not derivative_wanted(input, target):
        return F.cross_entropy(
            input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
        )
    function = pick(_CrossEntropy, _CrossEntropyForward)
    return function.apply(input, target, weight, ignore_index, reduction, label_smoothing)[0]


def _softmax_minus_target(
    p: Tensor,
    log_p: Tensor,
    target: Tensor,
    weight: Tensor | None,
    upstream: Tensor,
    ignore_index: int,
    reduction: str,
    smoothing: float,
) -> tuple[Tensor, Tensor | None]:
    """The gradients in the input and, for probabilities, in the target: :eq:`eq-cross-entropy-weighted`."""
    dim = _class_dimension(p)
    classes = p.shape[dim]
    upstream = _wide(upstream)
    weights = None if weight is None else _along(_wide(weight), p)
    if target.shape == p.shape:
        if reduction == "mean":
            upstream = upstream / max(p.numel() // max(classes, 1), 1)
        if reduction == "none":
            upstream = upstream.unsqueeze(dim)
        scale = upstream if weights is None else upstream * weights
        wanted = scale * ((1 - smoothing) * _wide(target) + smoothing / classes)
        by_target = (-(1 - smoothing) * scale * log_p).to(target.dtype)
        return (p * wanted.sum(dim, keepdim=True)).sub_(wanted), by_target
    counts = target != ignore_index
    index = target.masked_fill(~counts, 0)
    shares = counts if weight is None else torch.where(counts, _weight_of(target, _wide(weight), counts), 0)
    if reduction == "mean":
        upstream = upstream / shares.sum()
    each = torch.where(counts, upstream, 0)
    hit = each * shares * (1 - smoothing)
    if smoothing == 0:
        slopes = p * hit.unsqueeze(dim)
    else:
        spread = (each * (smoothing / classes)).unsqueeze(dim)
        spread = spread.expand_as(p) if weights is None else spread * weights
        slopes = p * (hit.unsqueeze(dim) + spread.sum(dim, keepdim=True)) - spread
    return slopes.scatter_add_(dim, index.unsqueeze(dim), -hit.unsqueeze(dim)), None


def _loss_of(
    log_p: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, smoothing: float
) -> Tensor:
    """The loss as a function of the log-probabilities, in which it is linear; by the kernels, and in the order, of torch."""
    dim = _class_dimension(log_p)
    classes = log_p.shape[dim]
    weighted = log_p if weight is None else log_p * _along(weight, log_p)
    if target.shape == log_p.shape:
        if smoothing > 0:
            target = target * (1 - smoothing) + smoothing / classes
        products = log_p * target if weight is None else log_p * target * _along(weight, log_p)
        if reduction == "none":
            return -products.sum(dim)
        count = products.numel() // max(classes, 1)
        return -products.sum() if reduction == "sum" else -products.sum() / count
    own = F.nll_loss(log_p, target, weight, ignore_index=ignore_index, reduction=reduction)
    if smoothing == 0:
        return own
    counts = target != ignore_index
    others = torch.where(counts, -weighted.sum(dim), 0)
    if reduction != "none":
        others = others.sum()
    if reduction == "mean":
        shares = counts if weight is None else torch.where(counts, _weight_of(target, weight, counts), 0)
        others = others / shares.sum()
    return (1 - smoothing) * own + others * (smoothing / classes)


_NO_GRADIENT_IN_WEIGHT = "cross_entropy has no derivative in weight, which is a constant of the loss"


def _wide(x: Tensor) -> Tensor:
    """1 - p cancels where p is near 1, so that half precision is left for float32, as torch's kernels do inside."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _class_dimension(x: Tensor) -> int:
    return 0 if x.dim() == 1 else 1


def _along(weight: Tensor, x: Tensor) -> Tensor:
    """Gives ``weight`` the dimensions of ``x``, so that it broadcasts along the classes."""
    return weight if x.dim() == 1 else weight.reshape(1, -1, *[1] * (x.dim() - 2))


def _weight_of(target: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    index = target.masked_fill(~counts, 0)
    return weight.index_select(0, index.flatten()).reshape(index.shape)


def _as_three(x: Tensor) -> tuple[int, int, int]:
    """The numbers of samples, of classes and of places."""
    if x.dim() == 1:
        return 1, x.shape[0], 1
    return x.shape[0], x.shape[1], x.shape[2:].numel()


def _reduced(losses: Tensor, reduction: str, weight: Tensor | None = None) -> Tensor:
    if weight is not None:
        losses = losses * weight
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.mean() if weight is None else losses.sum() / weight.sum()


def _as_float32_under_autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Losses are among the functions that autocast runs in float32; it leaves float64 alone, and what is not floating."""
    if not any(isinstance(t, Tensor) and autocast_is_on(t.device.type) for t in tensors):
        return tensors
    return tuple(
        t.float() if isinstance(t, Tensor) and t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors
    )


def _in_one_dtype(input: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    if not target.is_floating_point():
        return input, target.long(), weight  # as a byte, the ignored index -100 would be 156
    if target.dtype == input.dtype:
        return input, target, weight
    dtype = torch.promote_types(input.dtype, target.dtype)
    return input.to(dtype), target.to(dtype), None if weight is None else weight.to(dtype)


# --- what the arguments must be -------------------------------------------------------------------


def _check_words(size_average: object, reduce: object, reduction: str) -> None:
    for name, word in (("size_average", size_average), ("reduce", reduce)):
        if word is not None:
            raise ValueError(f"{name} must be None, got {word!r}: torch has given it up for reduction")
    check_one_of("reduction", reduction, ("none", "mean", "sum"))


def _check_real(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(value).__name__}")
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be floating point or an integer, got {value.dtype}")


def _difference(
    input: Tensor, target: Tensor, size_average: object, reduce: object, reduction: str, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """input - target, once all arguments are checked."""
    check_floating("input", input)
    _check_real("target", target)
    _check_words(size_average, reduce, reduction)
    if weight is not None:
        _check_real("weight", weight)
    for name, value in (("target", target), ("weight", weight)):
        if value is not None and value.shape != input.shape:
            raise ValueError(
                f"{name} must have the shape of input, {tuple(input.shape)}, got {tuple(value.shape)}: nothing is broadcast"
            )
    return input - target, weight


def _check_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    size_average: object,
    ignore_index: int,
    reduce: object,
    reduction: str,
    label_smoothing: float,
) -> None:
    check_floating("input", input)
    _check_words(size_average, reduce, reduction)
    check_number("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    if not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an int, got {type(ignore_index).__name__}")
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch tensor, got {type(target).__name__}")
    if input.dim() == 0:
        raise ValueError("input must have shape (C,), (N, C) or (N, C, d1, ...), got ()")
    if input.shape[_class_dimension(input)] == 0:
        raise ValueError(f"input must have at least one class, got shape {tuple(input.shape)}")
    _check_target(input, target, ignore_index)
    if weight is not None:
        classes = input.shape[_class_dimension(input)]
        check_same_kind("weight", weight, "input", input)
        if weight.shape != (classes,):
            raise ValueError(f"weight must have shape ({classes},), one for each class, got {tuple(weight.shape)}")
        if weight.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"weight must not require a gradient: {_NO_GRADIENT_IN_WEIGHT}")


def _check_target(input: Tensor, target: Tensor, ignore_index: int) -> None:
    indices = (*input.shape[:1], *input.shape[2:]) if input.dim() > 1 else ()
    if target.is_floating_point():
        if target.shape != input.shape:
            like_indices = ": class indices must be int64 or uint8" if target.shape == indices else ""
            raise (TypeError if like_indices else ValueError)(
                f"target of {target.dtype} holds probabilities and must have the shape of input, {tuple(input.shape)}, "
                f"got {tuple(target.shape)}{like_indices}"
            )
        if ignore_index >= 0:
            raise ValueError(f"ignore_index must be negative where target holds probabilities, got {ignore_index}")
        return
    if target.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"target must be int64 or uint8, class indices, or floating point, got {target.dtype}")
    if target.shape != indices:
        raise ValueError(
            f"target of {target.dtype} holds class indices and must have shape {tuple(indices)}, for an input of shape "
            f"{tuple(input.shape)}, got {tuple(target.shape)}"
        )


# --- the module -----------------------------------------------------------------------------------


class L1Loss(nn.L1Loss):
    """:func:`l1_loss` as a module, with the words of ``torch.nn.L1Loss``.

    Args:
        size_average, reduce: must be None.
        reduction: "mean", "sum" or "none".

    Shapes:
        input and target of any shape, the same; a number, or that shape for "none".

    Raises:
        ValueError: ``reduction`` is none of the three, or a word that must be None is not.

    Example:
        >>> L1Loss()(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0]))
        tensor(1.5000)

    Source: the book, :eq:`eq-l1`.
    """

    def __init__(self, size_average: None = None, reduce: None = None, reduction: str = "mean") -> None:
        _check_words(size_average, reduce, reduction)
        super().__init__(reduction=reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return l1_loss(input, target, reduction=self.reduction)


class MSELoss(nn.MSELoss):
    """:func:`mse_loss` as a module, with the words of ``torch.nn.MSELoss``.

    Args:
        size_average, reduce: must be None.
        reduction: "mean", "sum" or "none".

    Shapes:
        input and target of any shape, the same; a number, or that shape for "none".

    Raises:
        ValueError: ``reduction`` is none of the three, or a word that must be None is not.

    Example:
        >>> MSELoss()(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0]))
        tensor(2.5000)

    Source: the book, :eq:`eq-mse`.
    """

    def __init__(self, size_average: None = None, reduce: None = None, reduction: str = "mean") -> None:
        _check_words(size_average, reduce, reduction)
        super().__init__(reduction=reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return mse_loss(input, target, reduction=self.reduction)


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """:func:`cross_entropy` as a module, with the words and the buffer of ``torch.nn.CrossEntropyLoss``.

    Args:
        weight: ``(C,)``, one weight a class.
        size_average, reduce: must be None.
        ignore_index: a target index whose samples count for nothing.
        reduction: "mean", "sum" or "none".
        label_smoothing: in [0, 1].

    Shapes:
        ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, with a target as :func:`cross_entropy` takes it.

    Raises:
        ValueError: ``reduction`` is none of the three, or a word that must be None is not.

    Example:
        >>> CrossEntropyLoss()(torch.zeros(1, 4), torch.tensor([2]))
        tensor(1.3863)

    Source: the book, :eq:`eq-cross-entropy`.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: None = None,
        ignore_index: int = -100,
        reduce: None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        _check_words(size_average, reduce, reduction)
        super().__init__(weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
