r"""Recurrent cells: one step in time as a function, with derived gradients.

The module of the chapter *Depth and time*, of its half on time. First the matrices: the Jacobian of a step in the state
before it, whose product over the steps is what a gradient goes through, and the product of the forget gates, which is
what it goes through along the cell; then the functions with their backward passes; then the modules.

The state has :math:`m` numbers and the input of a step :math:`n`. As in torch, ``weight_ih`` acts on the input and
``weight_hh`` on the state before, there are two biases, of which only the sum matters, and the four blocks of an LSTM
stand below one another in the order input gate, forget gate, candidate, output gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

from pwl_lib._autograd import LayerFunction, autocast_as_torch, autocast_is_on, derivative_wanted, pick, sum_of
from pwl_lib._validation import check_floating, check_one_of, check_same_kind

__all__ = [
    "Gates",
    "LSTMCell",
    "RNNCell",
    "cell_path",
    "lstm_cell",
    "lstm_gates",
    "lstm_jacobian",
    "rnn_cell",
    "rnn_jacobian",
]

Nonlinearity = Literal["tanh", "relu"]


class Gates(NamedTuple):
    """The four blocks of an LSTM step, after their activations; each ``(N, m)`` or ``(m,)``."""

    input: Tensor
    """:math:`i`, in (0, 1): how much of the candidate is added."""
    forget: Tensor
    """:math:`f`, in (0, 1): how much of the cell is kept."""
    candidate: Tensor
    """:math:`g`, in (-1, 1): what may be added."""
    output: Tensor
    """:math:`o`, in (0, 1): how much of the cell is shown."""


# --- the matrix -----------------------------------------------------------------------------------


def rnn_jacobian(h_next: Tensor, weight: Tensor, nonlinearity: Nonlinearity = "tanh") -> Tensor:
    r"""The Jacobian of one step of :func:`rnn_cell`, in the state before it or in its input.

    .. math::

        \frac{\partial h_t}{\partial h_{t-1}^\top} = D_t U, \qquad \frac{\partial h_t}{\partial x_t^\top} = D_t W, \qquad
        D_t = \operatorname{diag} \varphi'(z_t)

    which is :eq:`eq-rnn-jacobian`. The slope follows from the state after the step: :math:`1 - h_t^2` for tanh, and 1
    where :math:`h_t > 0` and 0 elsewhere for ReLU, whose slope at its kink is taken as 0.

    Args:
        h_next: the state after the step, ``(*, m)``, floating point.
        weight: ``weight_hh`` for the Jacobian in the state before, ``weight_ih`` for the one in the input; ``(m, k)``.
        nonlinearity: ``"tanh"`` or ``"relu"``.

    Returns:
        ``(*, m, k)``.

    Raises:
        TypeError: a tensor is not floating point, or the dtypes differ.
        ValueError: a shape does not fit, or another nonlinearity.

    Example:
        >>> rnn_jacobian(torch.tensor([0.0, 2.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "relu")
        tensor([[0., 0.],
                [3., 4.]])

    Source: the book, :eq:`eq-rnn-jacobian`.
    """
    check_floating("h_next", h_next)
    check_same_kind("weight", weight, "h_next", h_next)
    check_one_of("nonlinearity", nonlinearity, ("tanh", "relu"))
    if h_next.dim() < 1:
        raise ValueError("h_next must have shape (*, m), got ()")
    if weight.dim() != 2 or weight.shape[0] != h_next.shape[-1]:
        raise ValueError(f"weight must have shape ({h_next.shape[-1]}, k), got {tuple(weight.shape)}")
    slope = 1 - h_next.square() if nonlinearity == "tanh" else (h_next > 0).to(h_next.dtype)
    return slope[..., None] * weight


def lstm_gates(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Gates:
    r"""The gates and the candidate of one step of :func:`lstm_cell`, to look at.

    .. math:: i = \sigma(z^i), \qquad f = \sigma(z^f), \qquad g = \tanh z^g, \qquad o = \sigma(z^o), \qquad z = W x + U h + b

    which is the first line of :eq:`eq-lstm-cell`. torch's own functions compute them, and autograd goes through.

    Args:
        input, hx, weight_ih, weight_hh, bias_ih, bias_hh: as :func:`lstm_cell`.

    Returns:
        :class:`Gates`, each ``(N, m)`` or ``(m,)``.

    Raises:
        TypeError, ValueError: as :func:`lstm_cell`.

    Example:
        >>> gates = lstm_gates(torch.ones(3), None, torch.zeros(8, 3), torch.zeros(8, 2))
        >>> gates.forget, gates.candidate
        (tensor([0.5000, 0.5000]), tensor([0., 0.]))

    Source: the book, :eq:`eq-lstm-cell`.
    """
    check_floating("input", input)
    h, _ = _states(input, hx, weight_hh)
    input, h, weight_ih, weight_hh, bias_ih, bias_hh = autocast_as_torch(
        input, h, weight_ih, weight_hh, bias_ih, bias_hh
    )
    _check_cell(input, h, weight_ih, weight_hh, bias_ih, bias_hh, blocks=4)
    i, f, g, o = _pre_activation(input, h, weight_ih, weight_hh, bias_ih, bias_hh).chunk(4, -1)
    return Gates(i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid())


def lstm_jacobian(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Tensor:
    r"""The Jacobian of one step of :func:`lstm_cell` in the state before it, :math:`(h, c)` one below the other.

    .. math::

        \frac{\partial (h_t, c_t)}{\partial (h_{t-1}, c_{t-1})^\top} =
        \begin{pmatrix} R_t + S_t K_t & S_t F_t \\ K_t & F_t \end{pmatrix}, \qquad F_t = \operatorname{diag} f_t

    which is :eq:`eq-lstm-jacobian`: :math:`F_t` is the step along the cell, :math:`K_t` leads from the hidden state into
    the cell, through the gates, :math:`S_t` from the cell to the hidden state, :math:`R_t` through the output gate alone.

    Args:
        input, hx, weight_ih, weight_hh, bias_ih, bias_hh: as :func:`lstm_cell`.

    Returns:
        ``(2m, 2m)``, or ``(N, 2m, 2m)`` for a batch.

    Raises:
        TypeError, ValueError: as :func:`lstm_cell`.

    Example:
        >>> J = lstm_jacobian(torch.ones(3), None, torch.zeros(8, 3), torch.zeros(8, 2))
        >>> J[2:, 2:]
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])

    Source: the book, :eq:`eq-lstm-jacobian`.
    """
    i, f, g, o = lstm_gates(input, hx, weight_ih, weight_hh, bias_ih, bias_hh)
    c = torch.zeros_like(f) if hx is None else hx[1]
    t = (f * c + i * g).tanh()
    by_i, by_f, by_g, by_o = weight_hh.chunk(4)
    into_cell = (g * i * (1 - i))[..., None] * by_i
    into_cell = into_cell + (c * f * (1 - f))[..., None] * by_f + (i * (1 - g * g))[..., None] * by_g
    shown = (o * (1 - t * t))[..., None]
    along = torch.diag_embed(f)
    above = torch.cat([(t * o * (1 - o))[..., None] * by_o + shown * into_cell, shown * along], -1)
    return torch.cat([above, torch.cat([into_cell, along], -1)], -2)


def cell_path(forget_gates: Tensor) -> Tensor:
    r"""What a gradient is multiplied by along the cell of an LSTM, from the last step back to each earlier one.

    .. math:: \frac{\partial c_T}{\partial c_t^\top} \Big|_{\text{gates held}} = \operatorname{diag} \prod_{k=t+1}^T f_k

    which is :eq:`eq-cell-path`; what the whole derivative adds to it is in :prf:ref:`thm-cell-path`.

    Args:
        forget_gates: :math:`f_1, \dots, f_T` along the first dimension, ``(T, *)``, floating point.

    Returns:
        ``(T + 1, *)``: row :math:`t` is the diagonal for :math:`c_t`, and the last row is ones.

    Raises:
        TypeError: not floating point.
        ValueError: a tensor without a dimension.

    Example:
        >>> cell_path(torch.tensor([0.5, 1.0, 0.25]))
        tensor([0.1250, 0.2500, 0.2500, 1.0000])

    Source: the book, :eq:`eq-cell-path`; Hochreiter and Schmidhuber (1997).
    """
    check_floating("forget_gates", forget_gates)
    if forget_gates.dim() < 1:
        raise ValueError("forget_gates must have shape (T, *), got ()")
    last = (
        torch.ones_like(forget_gates[:1]) if len(forget_gates) else forget_gates.new_ones((1, *forget_gates.shape[1:]))
    )
    return torch.cat([forget_gates, last]).flip(0).cumprod(0).flip(0)


# --- the function ---------------------------------------------------------------------------------


def _states(input: Tensor, hx: tuple[Tensor, Tensor] | None, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
    """The two states of an LSTM; zeros where there are none."""
    if hx is None:
        return _zero_state(input, weight_hh), _zero_state(input, weight_hh)
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        what = f"{type(hx).__name__} of {len(hx)}" if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise TypeError(f"hx must be a tuple of two tensors, (h, c), or None, got {what}")
    h, c = hx
    check_floating("hx[0]", h)
    check_floating("hx[1]", c)
    if h.shape != c.shape:
        raise ValueError(f"hx must hold two tensors of one shape, got {tuple(h.shape)} and {tuple(c.shape)}")
    if h.device != c.device:
        raise ValueError(f"hx must hold two tensors on one device, got {h.device} and {c.device}")
    if c.dtype != h.dtype and not autocast_is_on(c.device.type):
        raise TypeError(f"hx must hold two tensors of one dtype, got {h.dtype} and {c.dtype}")
    return h, c


def _zero_state(input: Tensor, weight_hh: Tensor) -> Tensor:
    size = weight_hh.shape[-1] if isinstance(weight_hh, Tensor) and weight_hh.dim() else 0
    return torch.zeros(*input.shape[:-1], size, dtype=input.dtype, device=input.device)


def _apart(*tensors: Tensor | None) -> tuple[Any, ...]:
    """No tensor twice, as the compiler wants the inputs of a function: ``(zeros, zeros)`` is a usual first state."""
    if not torch.compiler.is_compiling():
        return tensors
    return tuple(
        tensor.clone() if tensor is not None and any(tensor is other for other in tensors[:index]) else tensor
        for index, tensor in enumerate(tensors)
    )


def _check_cell(
    input: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    *,
    blocks: int,
) -> None:
    if input.dim() not in (1, 2):
        raise ValueError(f"input must have shape (N, n) or (n,), got {tuple(input.shape)}")
    times = f"{blocks} * " if blocks > 1 else ""
    check_same_kind("weight_hh", weight_hh, "input", input)
    if weight_hh.dim() != 2 or weight_hh.shape[0] != blocks * weight_hh.shape[1]:
        raise ValueError(f"weight_hh must have shape ({times}m, m), got {tuple(weight_hh.shape)}")
    rows, size = weight_hh.shape
    check_same_kind("weight_ih", weight_ih, "input", input)
    if tuple(weight_ih.shape) != (rows, input.shape[-1]):
        raise ValueError(f"weight_ih must have shape {(rows, input.shape[-1])}, got {tuple(weight_ih.shape)}")
    for name, bias in (("bias_ih", bias_ih), ("bias_hh", bias_hh)):
        if bias is not None:
            check_same_kind(name, bias, "input", input)
            if tuple(bias.shape) != (rows,):
                raise ValueError(f"{name} must have shape {(rows,)}, got {tuple(bias.shape)}")
    check_same_kind("hx", h, "input", input)
    if tuple(h.shape) != (*input.shape[:-1], size):
        raise ValueError(f"hx must have shape {(*input.shape[:-1], size)}, got {tuple(h.shape)}")


def _pre_activation(
    x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> Tensor:
    return F.linear(h, weight_hh, bias_hh) + F.linear(x, weight_ih, bias_ih)


def _save(ctx: Any, factors: tuple[Tensor, ...], rest: tuple[Tensor, ...], wanted: tuple[bool, ...]) -> None:
    """Keeps ``rest``, and of the input, the state and their weights each only if the gradient in its partner is wanted."""
    ctx.set_materialize_grads(False)
    ctx.save_for_forward(*factors, *rest)
    by_x, by_h, by_weight_ih, by_weight_hh = wanted
    needed = by_weight_ih, by_weight_hh, by_x, by_h
    # A transform asks for the gradients one by one, after this; a compiler drops what it does not need.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        needed = True, True, True, True
    kept = (factor if need else None for factor, need in zip(factors, needed, strict=True))
    ctx.save_for_backward(*kept, *rest)


def _product_gradients(dz: Tensor, factors: tuple[Tensor, ...], wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of z = W x + U h + b: in x, h, W, U and in the two biases, which are one. A factor may be None."""
    x, h, weight_ih, weight_hh = factors
    by_x, by_h, by_weight_ih, by_weight_hh, by_bias_ih, by_bias_hh = wanted
    bias = dz.sum(0) if by_bias_ih or by_bias_hh else None
    return (
        dz @ weight_ih if by_x else None,
        dz @ weight_hh if by_h else None,
        dz.T @ x if by_weight_ih else None,
        dz.T @ h if by_weight_hh else None,
        bias if by_bias_ih else None,
        bias if by_bias_hh else None,
    )


def _product_tangent(factors: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]) -> Tensor | None:
    """The tangent of z = W x + U h + b."""
    x, h, weight_ih, weight_hh = factors
    dx, dh, dweight_ih, dweight_hh, *dbiases = tangents
    return sum_of(
        None if dx is None else F.linear(dx, weight_ih),
        None if dh is None else F.linear(dh, weight_hh),
        None if dweight_ih is None else F.linear(x, dweight_ih),
        None if dweight_hh is None else F.linear(h, dweight_hh),
        *(None if dbias is None else dbias.expand(len(x), -1) for dbias in dbiases),
    )


def _times_slope(g: Tensor, h_next: Tensor, nonlinearity: Nonlinearity) -> Tensor:
    """:math:`D g`, exactly +0 where a ReLU is off."""
    if nonlinearity == "tanh":
        return torch.ops.aten.tanh_backward.default(g, h_next)
    return torch.ops.aten.threshold_backward.default(g, h_next, 0)


class _RNNCell(LayerFunction):
    @staticmethod
    def forward(
        x: Tensor,
        h: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        nonlinearity: Nonlinearity,
    ) -> Tensor:
        z = _pre_activation(x, h, weight_ih, weight_hh, bias_ih, bias_hh)
        return z.tanh() if nonlinearity == "tanh" else z.relu()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *factors, _, _, ctx.nonlinearity = inputs
        _save(ctx, tuple(factors), (output,), ctx.needs_input_grad[:4])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 7
        *factors, h_next = ctx.saved_tensors
        dz = _times_slope(upstream, h_next, ctx.nonlinearity)
        return *_product_gradients(dz, tuple(factors), ctx.needs_input_grad[:6]), None


class _RNNCellForward(_RNNCell):
    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        *factors, h_next = ctx.saved_tensors
        dz = _product_tangent(tuple(factors), tangents[:6])
        return None if dz is None else _times_slope(dz, h_next, ctx.nonlinearity)


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    nonlinearity: Nonlinearity = "tanh",
) -> Tensor:
    r"""One step of a recurrent network: the new state from an input and the state before.

    .. math:: h_t = \varphi(z_t), \qquad z_t = W x_t + U h_{t-1} + b

    which is :eq:`eq-rnn-cell`, with :math:`W` = ``weight_ih``, :math:`U` = ``weight_hh`` and :math:`b` the sum of the two
    biases. With :math:`\delta_t = \varphi'(z_t) \odot \partial L / \partial h_t` the gradients of the step are

    .. math::

        \frac{\partial L}{\partial h_{t-1}} = U^\top \delta_t, \qquad \frac{\partial L}{\partial x_t} = W^\top \delta_t, \qquad
        \frac{\partial L}{\partial W} = \delta_t x_t^\top, \qquad \frac{\partial L}{\partial U} = \delta_t h_{t-1}^\top, \qquad
        \frac{\partial L}{\partial b} = \delta_t

    which is :eq:`eq-rnn-backward`, the last three summed over the samples. Values are those of :func:`torch.rnn_tanh_cell`
    and :func:`torch.rnn_relu_cell`, bit for bit. The backward pass keeps the new state, which the next step has anyway, and
    the input, the state before and the weights, each only if it is needed.

    Args:
        input: ``(N, n)`` or ``(n,)``, floating point.
        hx: the state before, ``(N, m)`` or ``(m,)``, the dtype of ``input``; None for zeros.
        weight_ih: ``(m, n)``.
        weight_hh: ``(m, m)``.
        bias_ih: ``(m,)`` or None.
        bias_hh: ``(m,)`` or None.
        nonlinearity: ``"tanh"`` or ``"relu"``; the slope of ReLU at its kink is 0.

    Returns:
        the new state, ``(N, m)`` or ``(m,)``.

    Raises:
        TypeError: a tensor is not floating point, or the dtypes differ.
        ValueError: a shape does not fit, or another nonlinearity.

    Example:
        >>> x, h = torch.tensor([1.0]), torch.tensor([0.5, -2.0])
        >>> rnn_cell(x, h, torch.ones(2, 1), torch.eye(2), nonlinearity="relu")
        tensor([1.5000, 0.0000])

    Source: the book, :eq:`eq-rnn-cell` and :eq:`eq-rnn-backward`.
    """
    given = input, hx, weight_ih, weight_hh, bias_ih, bias_hh
    tensors = tuple(tensor for tensor in given if tensor is not None)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(rnn_cell, tensors, *given, nonlinearity)
    check_floating("input", input)
    check_one_of("nonlinearity", nonlinearity, ("tanh", "relu"))
    h = _zero_state(input, weight_hh) if hx is None else hx
    x, h, *found = _apart(*autocast_as_torch(input, h, weight_ih, weight_hh, bias_ih, bias_hh))
    parameters = found[0], found[1], found[2], found[3]
    _check_cell(x, h, *parameters, blocks=1)
    if not derivative_wanted(*tensors):
        return _RNNCell.forward(x, h, *parameters, nonlinearity)
    apply = pick(_RNNCell, _RNNCellForward).apply
    if x.dim() == 1:
        return apply(x[None], h[None], *parameters, nonlinearity)[0]
    return apply(x, h, *parameters, nonlinearity)


def _activate(z: Tensor) -> Tensor:
    """The gates and the candidate, in place of ``z``, which nobody else has."""
    i, f, g, o = z.chunk(4, -1)
    (
        i.sigmoid_(),
        f.sigmoid_(),
        g.tanh_(),
        o.sigmoid_(),
    )  # block by block: two at once may differ from torch's in the last bit
    return z


def _times_gate_slopes(parts: Sequence[Tensor], gates: Tensor) -> Tensor:
    """The four gradients, or tangents, of the gates, each times the slope of its activation, side by side."""
    i, f, g, o = gates.chunk(4, -1)
    d_i, d_f, d_g, d_o = (part.to(gates.dtype) for part in parts)
    sigmoid, tanh = torch.ops.aten.sigmoid_backward.default, torch.ops.aten.tanh_backward.default
    return torch.cat([sigmoid(d_i, i), sigmoid(d_f, f), tanh(d_g, g), sigmoid(d_o, o)], -1)


class _LSTMCell(LayerFunction):
    """The gates are a third output, so that a second derivative goes through what is kept of them."""

    @staticmethod
    def forward(
        x: Tensor,
        h: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        c: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        gates = _activate(_pre_activation(x, h, weight_ih, weight_hh, bias_ih, bias_hh))
        i, f, g, o = gates.chunk(4, -1)
        c_next = (f * c).add_(i * g)
        return o * c_next.tanh(), c_next, gates

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *factors, _, _, c = inputs
        _, c_next, gates = output
        _save(ctx, tuple(factors), (c, c_next, gates), ctx.needs_input_grad[:4])

    @staticmethod
    def backward(
        ctx: Any, by_h_next: Tensor | None, by_c_next: Tensor | None, by_gates: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *factors, c, c_next, gates = ctx.saved_tensors
        i, f, g, o = gates.chunk(4, -1)
        dc_next = by_c_next
        if by_h_next is not None:
            t = c_next.tanh()
            dc_next = sum_of(by_c_next, torch.ops.aten.tanh_backward.default(by_h_next * o, t))
        if dc_next is None:  # in a second derivative the gates alone may have one
            dc_next = torch.zeros_like(c_next)
        parts = [dc_next * g, dc_next * c, dc_next * i, torch.zeros_like(o) if by_h_next is None else by_h_next * t]
        if by_gates is not None:
            parts = [part + own for part, own in zip(parts, by_gates.chunk(4, -1), strict=True)]
        dz = _times_gate_slopes(parts, gates)
        dc = (dc_next * f).to(c.dtype) if ctx.needs_input_grad[6] else None
        return *_product_gradients(dz, tuple(factors), ctx.needs_input_grad[:6]), dc


class _LSTMCellForward(_LSTMCell):
    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        *factors, c, c_next, gates = ctx.saved_tensors
        i, f, g, o = gates.chunk(4, -1)
        *of_product, dc = tangents
        dz = _product_tangent(tuple(factors), tuple(of_product))
        dgates = torch.zeros_like(gates) if dz is None else _times_gate_slopes(dz.chunk(4, -1), gates)
        d_i, d_f, d_g, d_o = dgates.chunk(4, -1)
        dc_next = d_f * c + d_i * g + i * d_g
        if dc is not None:
            dc_next = dc_next + f * dc
        t = c_next.tanh()
        return d_o * t + torch.ops.aten.tanh_backward.default(o * dc_next, t), dc_next, dgates


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""One step of a long short-term memory: the new hidden state and the new cell.

    .. math::

        i = \sigma(z^i), \quad f = \sigma(z^f), \quad g = \tanh z^g, \quad o = \sigma(z^o), \quad z = W x_t + U h_{t-1} + b

        c_t = f \odot c_{t-1} + i \odot g, \qquad h_t = o \odot \tanh c_t

    which is :eq:`eq-lstm-cell`. With :math:`\bar h = \partial L / \partial h_t` and
    :math:`\delta = \partial L / \partial c_t + \bar h \odot o \odot (1 - \tanh^2 c_t)` the gradients of the step are

    .. math::

        \frac{\partial L}{\partial c_{t-1}} = f \odot \delta, \qquad
        \frac{\partial L}{\partial z} = \begin{pmatrix} \delta \odot g \odot i \odot (1 - i) \\
        \delta \odot c_{t-1} \odot f \odot (1 - f) \\ \delta \odot i \odot (1 - g^2) \\
        \bar h \odot \tanh c_t \odot o \odot (1 - o) \end{pmatrix}

    which is :eq:`eq-lstm-backward`; from :math:`z` on they are those of :func:`rnn_cell`. Values on the CPU are those of
    :func:`torch.lstm_cell`, bit for bit; on a GPU, where torch has one kernel for all of it, up to rounding. The backward
    pass keeps the gates and the two cells, and computes :math:`\tanh c_t` again, which torch keeps: over a sequence, where
    the new cell is the next step's cell, that is a seventh less. The two results are results of one function, as on a GPU
    in torch, so that autograd has no derivative of the new hidden state in the new cell.

    Args:
        input: ``(N, n)`` or ``(n,)``, floating point.
        hx: the hidden state and the cell before, each ``(N, m)`` or ``(m,)``, the dtype of ``input``; None for zeros.
        weight_ih: ``(4m, n)``, the blocks of i, f, g and o below one another.
        weight_hh: ``(4m, m)``.
        bias_ih: ``(4m,)`` or None.
        bias_hh: ``(4m,)`` or None.

    Returns:
        the new hidden state and the new cell, each ``(N, m)`` or ``(m,)``.

    Raises:
        TypeError: a tensor is not floating point, the dtypes differ, or ``hx`` is no pair.
        ValueError: a shape does not fit.

    Example:
        >>> hx = torch.zeros(2), torch.tensor([2.0, -2.0])
        >>> h, c = lstm_cell(torch.ones(3), hx, torch.zeros(8, 3), torch.zeros(8, 2))
        >>> c
        tensor([ 1., -1.])

    Source: the book, :eq:`eq-lstm-cell` and :eq:`eq-lstm-backward`; Hochreiter and Schmidhuber (1997).
    """
    parameters: tuple[Any, Any, Any, Any] = weight_ih, weight_hh, bias_ih, bias_hh
    state = tuple(hx) if isinstance(hx, (tuple, list)) else ()
    tensors = tuple(tensor for tensor in (input, *state, *parameters) if tensor is not None)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(lstm_cell, tensors, input, hx, *parameters)
    check_floating("input", input)
    h, c = _states(input, hx, weight_hh)
    x, h, *found = autocast_as_torch(input, h, *parameters)
    x, h, c, *found = _apart(x, h, c, *found)
    parameters = found[0], found[1], found[2], found[3]
    _check_cell(x, h, *parameters, blocks=4)
    if not derivative_wanted(*tensors):
        return _LSTMCell.forward(x, h, *parameters, c)[:2]
    apply = pick(_LSTMCell, _LSTMCellForward).apply
    if x.dim() == 1:
        h, c, _ = apply(x[None], h[None], *parameters, c[None])
        return h[0], c[0]
    h, c, _ = apply(x, h, *parameters, c)
    return h, c


# --- the module -----------------------------------------------------------------------------------


class RNNCell(nn.RNNCell):
    """:func:`rnn_cell` as a module; ``torch.nn.RNNCell`` in every word, parameter and key of the state.

    Args:
        input_size: n.
        hidden_size: m.
        bias: whether there are the two biases.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        device, dtype: of the parameters.

    Shapes:
        ``(N, n)`` and ``(N, m)`` to ``(N, m)``, or each without N. Without the state it is zeros.

    Raises:
        ValueError: another nonlinearity.

    Example:
        >>> cell, h = RNNCell(3, 2), None
        >>> for x in torch.ones(7, 5, 3):  # 7 steps of 5 sequences
        ...     h = cell(x, h)
        >>> h.shape
        torch.Size([5, 2])

    Source: the book, :eq:`eq-rnn-cell`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Nonlinearity = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_one_of("nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(input_size, hidden_size, bias, nonlinearity, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        nonlinearity: Any = self.nonlinearity
        parameters = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        return rnn_cell(input, hx, *parameters, nonlinearity)


class LSTMCell(nn.LSTMCell):
    """:func:`lstm_cell` as a module; ``torch.nn.LSTMCell`` in every word, parameter and key of the state.

    Args:
        input_size: n.
        hidden_size: m.
        bias: whether there are the two biases.
        device, dtype: of the parameters.

    Shapes:
        ``(N, n)`` and a pair of ``(N, m)`` to a pair of ``(N, m)``, or each without N. Without the state it is zeros.

    Example:
        >>> cell, state = LSTMCell(3, 2), None
        >>> for x in torch.ones(7, 5, 3):  # 7 steps of 5 sequences
        ...     state = cell(x, state)
        >>> [part.shape for part in state]
        [torch.Size([5, 2]), torch.Size([5, 2])]

    Source: the book, :eq:`eq-lstm-cell`.
    """

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        return lstm_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
