"""The recurrent cells: the theorems on products over time, torch's cells beside ours, every way to differentiate, bad input.

The table of tests/test_contract.py has one input a row, of any shape; a cell has a state beside it. The same contract is
asked here.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import hessian, jacfwd, jacrev, jvp, vmap
from torch.overrides import TorchFunctionMode

import pwl_lib.functional as PF
import pwl_lib.nn as pnn
from pwl_lib import recurrent

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
KINDS = ["tanh", "relu", "lstm"]

each_device = pytest.mark.parametrize("device", DEVICES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_kind = pytest.mark.parametrize("kind", KINDS)
seeds = st.integers(0, 2**32 - 1)


def cells(kind: str, inputs: int = 5, size: int = 4, **words: Any) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's with the same parameters."""
    if kind == "lstm":
        ours, theirs = pnn.LSTMCell(inputs, size, **words), nn.LSTMCell(inputs, size, **words)
    else:
        words["nonlinearity"] = kind
        ours, theirs = pnn.RNNCell(inputs, size, **words), nn.RNNCell(inputs, size, **words)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def function_of(kind: str) -> Callable[..., Any]:
    """Our function of tensors alone: input, hidden state, of an LSTM the cell, and the four parameters."""
    if kind == "lstm":
        return lambda x, h, c, *parameters: PF.lstm_cell(x, (h, c), *parameters)
    return lambda x, h, *parameters: PF.rnn_cell(x, h, *parameters, nonlinearity=kind)


def theirs_of(kind: str) -> Callable[..., Any]:
    if kind == "lstm":
        return lambda x, h, c, *parameters: torch.lstm_cell(x, (h, c), *parameters)
    return getattr(torch, f"rnn_{kind}_cell")


def tensors_of(
    kind: str,
    batch: tuple[int, ...] = (3,),
    inputs: int = 5,
    size: int = 4,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> tuple[Tensor, ...]:
    """Input, state and parameters, of normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    rows = 4 * size if kind == "lstm" else size
    states = 2 if kind == "lstm" else 1
    shapes = [(*batch, inputs), *[(*batch, size)] * states, (rows, inputs), (rows, size), (rows,), (rows,)]
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype) for s in shapes)


def as_tuple(y: Any) -> tuple[Tensor, ...]:
    return (y,) if isinstance(y, Tensor) else tuple(y)


def packed(kind: str, states: tuple[Tensor, ...]) -> Any:
    return states if kind == "lstm" else states[0]


def values_and_gradients(function: Callable[..., Any], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    values = as_tuple(function(*leaves))
    upstream = [torch.arange(v.numel()).cos().reshape(v.shape).to(v) for v in values]
    return [*(v.detach() for v in values), *torch.autograd.grad(values, leaves, upstream)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    equal = (a == b) | (a.isnan() & b.isnan())
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and bool(equal.all())


def run(cell: nn.Module, xs: Tensor, state: Any) -> list[Any]:
    states = [state]
    for x in xs:
        states.append(cell(x, states[-1]))
    return states


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return jacrev(function)(x)


# --- the theorems ---------------------------------------------------------------------------------


def example(kind: str, seed: int, steps: int, size: int = 4, scale: float = 1.0) -> tuple[nn.Module, Tensor, Tensor]:
    """A cell whose recurrent weights are scaled, a sequence, a state."""
    torch.manual_seed(seed)
    cell = cells(kind, 3, size, dtype=torch.float64)[0].requires_grad_(False)
    cell.weight_hh *= scale
    return cell, torch.randn(steps, 3, dtype=torch.float64), torch.randn(size, dtype=torch.float64)


@pytest.mark.theorem("thm-rnn-product")
@settings(max_examples=15)
@given(st.sampled_from(["tanh", "relu"]), seeds, st.integers(0, 12), st.floats(0.1, 4))
def test_the_gradient_through_time_is_a_product_of_jacobians_bounded_by_the_norm_and_the_slopes(
    kind: str, seed: int, steps: int, scale: float
) -> None:
    cell, xs, h0 = example(kind, seed, steps, scale=scale)
    states = run(cell, xs, h0)
    U = cell.weight_hh
    product, slopes = torch.eye(4, dtype=torch.float64), 1.0
    for h in states[1:]:
        J = recurrent.rnn_jacobian(h, U, kind)
        product = J @ product
        slopes *= (1 - h * h if kind == "tanh" else (h > 0).double()).abs().max().item()
    whole = jacobian(lambda h: run(cell, xs, h)[-1], h0)
    size = torch.linalg.matrix_norm(U, 2).item()
    torch.testing.assert_close(product, whole, rtol=1e-10, atol=1e-13 * max(1, size**steps))
    norm = torch.linalg.matrix_norm(whole, 2).item()
    assert norm <= size**steps * slopes * (1 + 1e-9) + 1e-300
    assert slopes <= 1
    if size < 1:
        assert norm <= size**steps * (1 + 1e-9)


@pytest.mark.theorem("thm-rnn-product")
def test_below_norm_one_the_gradient_vanishes_whatever_the_inputs_are() -> None:
    for kind in ("tanh", "relu"):
        cell, xs, h0 = example(kind, 0, 100)
        cell.weight_hh *= 0.9 / torch.linalg.matrix_norm(cell.weight_hh, 2)
        for scale in (0.0, 1.0, 100.0):
            whole = jacobian(lambda h, xs=scale * xs, cell=cell: run(cell, xs, h)[-1], h0)
            assert torch.linalg.matrix_norm(whole, 2) <= 0.9**100 * (1 + 1e-9)


@pytest.mark.theorem("thm-rnn-product")
@pytest.mark.parametrize("radius", [0.8, 1.0, 1.2])
def test_where_every_slope_is_one_the_spectral_radius_decides_in_the_long_run(radius: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for size in (1, 2, 5):
        U = torch.randn(size, size, generator=generator, dtype=torch.float64)
        U *= radius / torch.linalg.eigvals(U).abs().max()
        for k in (1, 10, 200):
            norm = torch.linalg.matrix_norm(torch.linalg.matrix_power(U, k), 2).item()
            assert norm >= radius**k * (1 - 1e-9)
        assert norm ** (1 / k) <= radius + 0.05  # k = 200: the constant hardly counts


@pytest.mark.theorem("thm-rnn-product")
def test_a_gradient_may_grow_for_a_while_before_it_vanishes() -> None:
    # every ReLU is on: the states are large, and the weights positive
    cell = pnn.RNNCell(1, 2, bias=False, nonlinearity="relu", dtype=torch.float64).requires_grad_(False)
    cell.weight_hh.copy_(torch.tensor([[0.9, 2.0], [0.0, 0.9]]))
    h0, norms = torch.ones(2, dtype=torch.float64), {}
    for k in (1, 5, 100):
        xs = torch.zeros(k, 1, dtype=torch.float64)
        whole = jacobian(lambda h, xs=xs: run(cell, xs, h)[-1], h0)
        torch.testing.assert_close(whole, torch.linalg.matrix_power(cell.weight_hh, k))
        norms[k] = torch.linalg.matrix_norm(whole, 2)
    assert norms[5] > norms[1] > 1 > norms[100]


@pytest.mark.theorem("prop-identity-rnn")
@settings(max_examples=15)
@given(seeds, st.integers(0, 15), st.sampled_from([1.0, 0.5, 1.25]))
def test_an_identity_relu_network_keeps_each_entry_of_the_gradient_or_drops_it(
    seed: int, steps: int, alpha: float
) -> None:
    cell, xs, h0 = example("relu", seed, steps)
    cell.weight_hh.copy_(alpha * torch.eye(4))
    h0 = h0.abs() + 1
    states = run(cell, 0.7 * xs, h0)
    on = torch.stack([torch.ones(4, dtype=torch.bool), *(h > 0 for h in states[1:])]).all(0)
    whole = jacobian(lambda h: run(cell, 0.7 * xs, h)[-1], h0)
    torch.testing.assert_close(whole, alpha**steps * on.double().diag(), rtol=1e-13, atol=0)
    if alpha == 1:
        assert torch.equal(whole, on.double().diag())  # exactly
        added = (0.7 * xs @ cell.weight_ih.T + cell.bias_ih + cell.bias_hh).sum(0)
        torch.testing.assert_close(states[-1][on], (h0 + added)[on])


@pytest.mark.theorem("prop-identity-rnn")
def test_an_identity_network_that_is_fed_nothing_holds_its_state_and_its_gradient_for_ever() -> None:
    cell = pnn.RNNCell(1, 3, nonlinearity="relu", bias=False).requires_grad_(False)
    cell.weight_hh.copy_(torch.eye(3))
    h0 = torch.tensor([1.0, 2.0, 0.0])  # the last unit sits at the kink, where the slope is taken as 0
    xs = torch.zeros(200, 1)
    assert torch.equal(run(cell, xs, h0)[-1], h0)
    assert torch.equal(jacobian(lambda h: run(cell, xs, h)[-1], h0), torch.diag(torch.tensor([1.0, 1.0, 0.0])))


def along_the_cell(cell: nn.Module, xs: Tensor, h: Tensor, c: Tensor, *, held: bool) -> tuple[Tensor, Tensor]:
    """The last cell and the forget gates; the gates are cut off the graph on request."""
    forget = []
    for x in xs:
        gates = recurrent.lstm_gates(x, (h, c), *cell.parameters())
        i, f, g, o = (gate.detach() for gate in gates) if held else gates
        c = f * c + i * g
        h = o * c.tanh()
        forget.append(f)
    return c, torch.stack(forget) if forget else c.new_empty(0, len(c))


@pytest.mark.theorem("thm-cell-path")
@settings(max_examples=15)
@given(seeds, st.integers(1, 12), st.floats(0.1, 5))
def test_with_the_gates_held_the_derivative_along_the_cell_is_the_product_of_the_forget_gates(
    seed: int, steps: int, scale: float
) -> None:
    cell, xs, h = example("lstm", seed, steps, scale=scale)
    c = torch.randn(4, dtype=torch.float64).requires_grad_()
    end, forget = along_the_cell(cell, xs, h, c, held=True)
    held = torch.stack([torch.autograd.grad(part, c, retain_graph=True)[0] for part in end])
    torch.testing.assert_close(held, forget.prod(0).diag(), rtol=1e-12, atol=0)
    torch.testing.assert_close(held, recurrent.cell_path(forget)[0].diag(), rtol=1e-12, atol=0)
    assert ((held.diagonal() > 0) & (held.diagonal() < 1)).all()
    torch.testing.assert_close(end.detach(), run(cell, xs, (h, c.detach()))[-1][1])  # held gates change no value
    # the sum: what was there is kept by the product, and each candidate by the gates after it
    states = run(cell, xs, (h, c.detach()))
    gates = [recurrent.lstm_gates(x, state, *cell.parameters()) for x, state in zip(xs, states[:-1], strict=True)]
    added = torch.stack([gate.input * gate.candidate for gate in gates])
    kept = recurrent.cell_path(forget)
    torch.testing.assert_close(end.detach(), kept[0] * c.detach() + (kept[1:] * added).sum(0))


def whole_by_theorem(cell: nn.Module, xs: Tensor, h: Tensor, c: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    """The path along the cell, and the sum that the theorem adds to it, term by term."""
    m = len(c)
    P = torch.eye(m, dtype=torch.float64)
    terms: list[Tensor] = []
    path = P
    U_i, U_f, U_g, U_o = cell.weight_hh.chunk(4)
    for x in xs:
        i, f, g, o = recurrent.lstm_gates(x, (h, c), *cell.parameters())
        K = (g * i * (1 - i)).diag() @ U_i + (c * f * (1 - f)).diag() @ U_f + (i * (1 - g * g)).diag() @ U_g
        h, c = cell(x, (h, c))
        S, R = (o * (1 - c.tanh() ** 2)).diag(), (c.tanh() * o * (1 - o)).diag() @ U_o
        terms = [f.diag() @ term for term in terms] + [K @ Q]
        path = f.diag() @ path
        P = path + sum(terms)
        Q = S @ P + R @ Q
    return path, sum(terms)


@pytest.mark.theorem("thm-cell-path")
@settings(max_examples=15)
@given(seeds, st.integers(1, 8), st.floats(0, 4), st.booleans())
def test_the_whole_derivative_of_the_cell_adds_the_paths_through_the_hidden_state(
    seed: int, steps: int, scale: float, follows: bool
) -> None:
    cell, xs, h = example("lstm", seed, steps, scale=scale)
    c, o = torch.randn(2, 4, dtype=torch.float64)
    o = o.sigmoid()
    start = (lambda c: (o * c.tanh(), c)) if follows else (lambda c: (h, c))
    Q = (o * (1 - c.tanh() ** 2)).diag() if follows else torch.zeros(4, 4, dtype=torch.float64)
    path, added = whole_by_theorem(cell, xs, *start(c), Q)
    whole = jacobian(lambda c: run(cell, xs, start(c))[-1][1], c)
    torch.testing.assert_close(path + added, whole, rtol=1e-9, atol=1e-11)
    if scale == 0:
        assert not added.any()
    if steps == 1 and not follows:
        assert torch.equal(added, torch.zeros_like(added))


@pytest.mark.theorem("thm-cell-path")
def test_where_no_gate_sees_the_hidden_state_the_path_along_the_cell_is_all() -> None:
    cell, xs, h = example("lstm", 0, 60)
    cell.weight_hh[:12] = 0  # the output gate may see it
    c = torch.randn(4, dtype=torch.float64)
    whole = jacobian(lambda c: run(cell, xs, (h, c))[-1][1], c)
    _, forget = along_the_cell(cell, xs, h, c, held=True)
    torch.testing.assert_close(whole, recurrent.cell_path(forget)[0].diag(), rtol=1e-12, atol=0)


def test_the_cell_keeps_one_part_in_e_if_the_forget_bias_is_the_logarithm_of_the_steps() -> None:
    for T in (10, 100, 1000):
        gate = torch.tensor(math.log(T - 1), dtype=torch.float64).sigmoid()
        torch.testing.assert_close(gate.item(), 1 - 1 / T)
        kept = recurrent.cell_path(gate.expand(T))
        assert kept.shape == (T + 1,)
        assert 0.9 / math.e < kept[0] < 1 / math.e
    half = recurrent.cell_path(torch.full((100,), 0.5, dtype=torch.float64))
    assert half[0] == 2.0**-100


def norms_back_in_time(cell: nn.Module, xs: Tensor) -> Tensor:
    """Norms of the gradient in the state, the last one first, relative to it."""
    states = [as_tuple(state) for state in run(cell, xs, None)[1:]]
    last = states[-1][0]
    every = [part for state in states for part in state]
    upstream = torch.randn_like(last)
    grads = torch.autograd.grad(last, every, upstream, allow_unused=True, materialize_grads=True)
    squares = torch.stack([grad.square().sum() for grad in grads]).unflatten(0, (len(xs), -1)).sum(1)
    return (squares.sqrt() / upstream.norm()).flip(0)


def test_over_a_hundred_steps_the_tanh_gradient_vanishes_and_the_identity_and_an_open_lstm_keep_theirs() -> None:
    torch.manual_seed(0)
    xs, m = torch.randn(101, 8, 4, dtype=torch.float64), 16
    norms = {}
    for name in ("tanh", "relu", "identity", "lstm", "lstm 1", "lstm open"):
        kind = "relu" if name == "identity" else name.split()[0]
        cell = cells(kind, 4, m, dtype=torch.float64)[0]
        with torch.no_grad():
            if name == "identity":
                cell.weight_hh.copy_(torch.eye(m))
                cell.weight_ih.normal_(0, 0.3)
                cell.bias_ih.zero_()
                cell.bias_hh.zero_()
            if " " in name:
                cell.bias_ih[m : 2 * m] = 1.0 if name == "lstm 1" else math.log(100)
                cell.bias_hh[m : 2 * m] = 0
        norms[name] = norms_back_in_time(cell, xs)[100].item()
    assert max(norms["tanh"], norms["relu"], norms["lstm"]) < 1e-14
    assert norms["lstm"] < norms["lstm 1"] < 1e-3
    assert norms["identity"] > 0.03
    assert norms["lstm open"] > 0.01


# --- the matrices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tanh", "relu"])
@pytest.mark.parametrize("batch", [(), (3,), (0,)])
def test_the_jacobian_of_a_step_is_that_of_autograd(kind: str, batch: tuple[int, ...]) -> None:
    tensors = tensors_of(kind, batch)
    h_next = function_of(kind)(*tensors)
    for index, weight in ((0, tensors[2]), (1, tensors[3])):
        f = lambda part, i=index: function_of(kind)(*tensors[:i], part, *tensors[i + 1 :])
        wanted = jacobian(f, tensors[index])
        if batch:
            wanted = (
                torch.stack([wanted[k, :, k] for k in range(batch[0])]) if batch[0] else wanted[:, :, 0:0].flatten(2)
            )
        J = recurrent.rnn_jacobian(h_next, weight, kind)
        assert J.shape == (*batch, *weight.shape)
        torch.testing.assert_close(J, wanted.reshape(J.shape))


@pytest.mark.parametrize("batch", [(), (3,), (0,)])
def test_the_jacobian_of_a_step_of_an_lstm_is_that_of_autograd(batch: tuple[int, ...]) -> None:
    x, h, c, *parameters = tensors_of("lstm", batch)
    J = recurrent.lstm_jacobian(x, (h, c), *parameters)
    assert J.shape == (*batch, 8, 8)
    f = lambda x, both: torch.cat(PF.lstm_cell(x, tuple(both.chunk(2)), *parameters))
    for k in range(batch[0] if batch else 1):
        at = (k,) if batch else ()
        torch.testing.assert_close(J[at], jacobian(partial(f, x[at]), torch.cat([h[at], c[at]])))
    zeros = recurrent.lstm_jacobian(x, None, *parameters)
    torch.testing.assert_close(zeros, recurrent.lstm_jacobian(x, (0 * h, 0 * c), *parameters))


def test_the_gates_are_those_of_the_step() -> None:
    x, h, c, *parameters = tensors_of("lstm")
    gates = recurrent.lstm_gates(x, (h, c), *parameters)
    assert all(((gate > 0) & (gate < 1)).all() for gate in (gates.input, gates.forget, gates.output))
    assert (gates.candidate.abs() < 1).all()
    c_next = gates.forget * c + gates.input * gates.candidate
    torch.testing.assert_close(PF.lstm_cell(x, (h, c), *parameters), (gates.output * c_next.tanh(), c_next))


def test_the_path_along_the_cell_counts_from_each_step_to_the_last() -> None:
    forget = torch.rand(5, 2, 3, dtype=torch.float64)
    path = recurrent.cell_path(forget)
    assert path.shape == (6, 2, 3)
    for t in range(6):
        torch.testing.assert_close(path[t], forget[t:].prod(0))
    assert torch.equal(recurrent.cell_path(forget[:0]), torch.ones(1, 2, 3, dtype=torch.float64))


# --- against torch --------------------------------------------------------------------------------


@each_kind
@each_dtype
@each_device
def test_values_equal_torchs_bit_for_bit_and_gradients_too_on_the_cpu(
    kind: str, dtype: torch.dtype, device: str
) -> None:
    # sizes around the width of the processor's vectors, whose ends are computed by other code
    for size, batch in ((1, 1), (4, 3), (8, 2), (33, 7), (16, 0)):
        tensors = tensors_of(kind, (batch,), 5, size, dtype, device)
        with torch.no_grad():
            ours, theirs = (as_tuple(f(*tensors)) for f in (function_of(kind), theirs_of(kind)))
        results = [values_and_gradients(f, tensors) for f in (function_of(kind), theirs_of(kind))]
        assert all(same_bits(a, b) for a, b in zip(ours, results[0], strict=False))  # with gradients and without
        if device == "cpu":
            assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True))
        error = {} if device == "cpu" else {"rtol": 0, "atol": 64 * torch.finfo(dtype).eps}
        if device == "cpu":
            error = {"rtol": 0, "atol": 16 * torch.finfo(dtype).eps * math.sqrt(size + batch)}
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, **error)


SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 5e-324, 1e-45, 65504.0, 3e38]


@each_kind
@settings(max_examples=25)
@given(st.lists(st.sampled_from(SPECIAL) | st.floats(-4, 4), min_size=6, max_size=6), st.sampled_from(DTYPES))
def test_special_numbers_give_torchs_values_and_gradients(kind: str, numbers: list[float], dtype: torch.dtype) -> None:
    x, *rest = tensors_of(kind, (3,), 2, 2, dtype)
    x = torch.tensor(numbers, dtype=torch.float64).to(dtype).reshape(3, 2)
    results = [values_and_gradients(f, (x, *rest)) for f in (function_of(kind), theirs_of(kind))]
    count = 2 if kind == "lstm" else 1
    assert all(same_bits(a, b) for a, b in zip(results[0][:count], results[1][:count], strict=True))
    for a, b in zip(results[0][count:], results[1][count:], strict=True):
        torch.testing.assert_close(
            a, b, rtol=16 * torch.finfo(dtype).eps, atol=64 * torch.finfo(dtype).eps, equal_nan=True
        )


@each_kind
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (3,), (0,)])
@pytest.mark.parametrize("with_state", [True, False])
@each_device
def test_modules_take_batches_single_inputs_and_no_state_as_torchs(
    kind: str, bias: bool, batch: tuple[int, ...], with_state: bool, device: str
) -> None:
    ours, theirs = cells(kind, bias=bias, device=device)
    x, *states = tensors_of(kind, batch, dtype=torch.float32, device=device)[: 3 if kind == "lstm" else 2]
    given = (packed(kind, tuple(states)),) if with_state else ()
    values = [as_tuple(module(x, *given)) for module in (ours, theirs)]
    for a, b in zip(*values, strict=True):
        assert same_bits(a.detach(), b.detach()) if device == "cpu" or kind != "lstm" else a.shape == b.shape
    grads = [
        torch.autograd.grad([v.sum() for v in value], list(module.parameters()))
        for value, module in zip(values, (ours, theirs), strict=True)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@each_kind
def test_each_bias_may_be_missing(kind: str) -> None:
    *tensors, bias_ih, bias_hh = tensors_of(kind)
    for pair in ((bias_ih, None), (None, bias_hh), (None, None), ()):
        ours = as_tuple(function_of(kind)(*tensors, *pair))
        wanted = as_tuple(theirs_of(kind)(*tensors, *(0 * bias_ih if b is None else b for b in pair)))
        for a, b in zip(ours, wanted, strict=True):
            torch.testing.assert_close(a, b)
    leaf = bias_hh.requires_grad_()
    (by_bias,) = torch.autograd.grad(as_tuple(function_of(kind)(*tensors, None, leaf))[0].sum(), leaf)
    (wanted,) = torch.autograd.grad(as_tuple(theirs_of(kind)(*tensors, 0 * bias_ih, leaf))[0].sum(), leaf)
    torch.testing.assert_close(by_bias, wanted)


@each_kind
def test_each_gradient_comes_alone_too(kind: str) -> None:
    tensors = tensors_of(kind)
    wanted = values_and_gradients(function_of(kind), tensors)[2 if kind == "lstm" else 1 :]
    for index, gradient in enumerate(wanted):
        leaf = tensors[index].clone().requires_grad_()
        values = as_tuple(function_of(kind)(*tensors[:index], leaf, *tensors[index + 1 :]))
        upstream = [torch.arange(v.numel()).cos().reshape(v.shape).to(v) for v in values]
        assert same_bits(torch.autograd.grad(values, leaf, upstream)[0], gradient)


def test_of_an_lstm_either_output_may_go_unused_and_the_new_cell_is_no_input_of_the_new_hidden_state() -> None:
    tensors = tuple(tensor.requires_grad_() for tensor in tensors_of("lstm"))
    for index in (0, 1):
        ours, theirs = (
            torch.autograd.grad(f(*tensors)[index].sum(), tensors, allow_unused=True, materialize_grads=True)
            for f in (function_of("lstm"), theirs_of("lstm"))
        )
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
    h, c = function_of("lstm")(*tensors)  # as in torch's kernel for a GPU: two outputs of one function
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(h.sum(), c)


@each_kind
def test_a_training_over_many_steps_is_torchs(kind: str) -> None:
    torch.manual_seed(0)
    ours, theirs = cells(kind, 3, 6, dtype=torch.float64)
    xs = torch.randn(12, 4, 3, dtype=torch.float64)
    for _ in range(3):
        for module in (ours, theirs):
            module.zero_grad()
            as_tuple(run(module, xs, None)[-1])[0].square().sum().backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= 0.05 * parameter.grad
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


# --- every way to differentiate -------------------------------------------------------------------


@each_kind
@each_device
def test_gradcheck_in_every_mode_of_differentiation(kind: str, device: str) -> None:
    tensors = tuple(t.requires_grad_() for t in tensors_of(kind, (2,), 2, 2, device=device, seed=3))
    function, words = function_of(kind), {"check_batched_grad": True}
    assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True, check_batched_forward_grad=True, **words)
    assert torch.autograd.gradgradcheck(function, tensors, check_fwd_over_rev=True, check_rev_over_rev=True, **words)


@each_kind
def test_gradcheck_of_a_sequence_of_one_sample(kind: str) -> None:
    tensors = tuple(t.requires_grad_() for t in tensors_of(kind, (), 2, 2, seed=3))
    states = 2 if kind == "lstm" else 1

    def two_steps(x: Tensor, *rest: Tensor) -> Any:
        for _ in range(2):
            rest = (*as_tuple(function_of(kind)(x, *rest)), *rest[states:])
        return rest[:states]

    assert torch.autograd.gradcheck(two_steps, tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(two_steps, tensors)


@each_kind
def test_torch_func_agrees_with_torchs_own_cells(kind: str) -> None:
    tensors = tensors_of(kind)
    ours, theirs = function_of(kind), theirs_of(kind)
    every = tuple(range(len(tensors)))
    for index in every:
        f, g = (
            lambda part, i=index, f=f: torch.cat(as_tuple(f(*tensors[:i], part, *tensors[i + 1 :])), -1)
            for f in (ours, theirs)
        )
        wanted = jacrev(g)(tensors[index])
        torch.testing.assert_close(jacrev(f)(tensors[index]), wanted)
        torch.testing.assert_close(jacfwd(f)(tensors[index]), wanted)
        tangent = torch.randn_like(tensors[index])
        push = jvp(f, (tensors[index],), (tangent,))[1]
        torch.testing.assert_close(push, (wanted.flatten(2) @ tangent.flatten()).reshape(push.shape))
        energy = lambda part, f: f(part).square().sum()
        if index in (0, 1):
            second = hessian(partial(energy, f=f))(tensors[index])
            torch.testing.assert_close(second, hessian(partial(energy, f=g))(tensors[index]))


@each_kind
def test_a_batch_by_vmap_is_the_batch(kind: str) -> None:
    *rows, W, U, b, d = tensors_of(kind)
    f = lambda *row: function_of(kind)(*row, W, U, b, d)
    wanted = as_tuple(f(*rows))
    for a, b_ in zip(as_tuple(vmap(f)(*rows)), wanted, strict=True):
        torch.testing.assert_close(a, b_)
    each = as_tuple(vmap(jacrev(f, argnums=1))(*rows))
    together = as_tuple(jacrev(f, argnums=1)(*rows))
    for a, b_ in zip(each, together, strict=True):
        torch.testing.assert_close(a, torch.stack([b_[k, :, k] for k in range(3)]))
    # one state for all inputs, one input for all states, and many sets of weights
    alone = as_tuple(vmap(f, in_dims=(0, *[None] * (len(rows) - 1)))(rows[0], *(row[0] for row in rows[1:])))
    torch.testing.assert_close(alone[0][0], wanted[0][0])
    alone = as_tuple(vmap(f, in_dims=(None, *[0] * (len(rows) - 1)))(rows[0][0], *rows[1:]))
    torch.testing.assert_close(alone[-1][0], wanted[-1][0])
    many = as_tuple(vmap(lambda W: function_of(kind)(*rows, W, U, b, d))(torch.stack([W, 2 * W])))
    torch.testing.assert_close(many[0][0], wanted[0])
    per_sample = vmap(
        jacrev(lambda U, *row: as_tuple(function_of(kind)(*row, W, U, b, d))[0].sum()), (None, *[0] * len(rows))
    )
    assert per_sample(U, *rows).shape == (3, *U.shape)
    if kind == "lstm":
        only_c = vmap(f, in_dims=(None, None, 0))(rows[0][0], rows[1][0], rows[2])
        torch.testing.assert_close(only_c[1][0], wanted[1][0])


@each_kind
def test_forward_mode_without_torch_func(kind: str) -> None:
    tensors = tensors_of(kind)
    for index in range(len(tensors)):
        tangent = torch.randn_like(tensors[index])
        with forward_ad.dual_level():
            duals = [*tensors[:index], forward_ad.make_dual(tensors[index], tangent), *tensors[index + 1 :]]
            ours = [forward_ad.unpack_dual(y).tangent for y in as_tuple(function_of(kind)(*duals))]
            wanted = [forward_ad.unpack_dual(y).tangent for y in as_tuple(theirs_of(kind)(*duals))]
        for a, b in zip(ours, wanted, strict=True):
            torch.testing.assert_close(a, b)


@each_kind
def test_forward_mode_nested_in_forward_mode_is_refused_since_torch_drops_a_part_of_it(kind: str) -> None:
    x, *rest = tensors_of(kind, (1,))
    f = lambda x: as_tuple(function_of(kind)(x * x, *rest))[0].square().sum()
    with pytest.raises(NotImplementedError, match="use reverse mode for one of the two"):
        jacfwd(jacfwd(f))(x)
    torch.testing.assert_close(hessian(f)(x), jacrev(jacrev(f))(x))


# --- the rest of torch ----------------------------------------------------------------------------


def _in_several_ways(inputs: dict[str, tuple[Tensor, ...]]) -> list[Tensor]:
    """Each cell; without a state; one sample alone; one tensor as both states."""
    x, *_, W, U, b, d = inputs["relu"]
    found = [PF.rnn_cell(x, None, W, U, b, d, "relu"), function_of("tanh")(*inputs["tanh"])]
    x, h, c, *parameters = inputs["lstm"]
    zeros = torch.zeros_like(h)
    for each, state in ((x, (h, c)), (x[0], (h[0], c[0])), (x, (zeros, zeros))):
        found += PF.lstm_cell(each, state, *parameters)
    return found


def test_compiles_whole() -> None:
    results = []
    for function in (torch.compile(_in_several_ways, fullgraph=True, backend="aot_eager"), _in_several_ways):
        inputs = {kind: tuple(t.requires_grad_() for t in tensors_of(kind, dtype=torch.float32)) for kind in KINDS}
        values = function(inputs)
        torch.autograd.backward([y.square().sum() for y in values])
        results.append([*values, *(t.grad for each in inputs.values() for t in each if t.grad is not None)])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted)


@each_kind
@each_dtype
@each_device
@pytest.mark.parametrize("requires_grad", [False, True])
def test_autocast_as_torch(kind: str, dtype: torch.dtype, device: str, requires_grad: bool) -> None:
    ours, theirs = cells(kind, device=device, dtype=dtype)
    x, *states = tensors_of(kind, dtype=dtype, device=device)[: 3 if kind == "lstm" else 2]
    for module in (ours, theirs):
        module.requires_grad_(requires_grad)
    mixed = [None, packed(kind, tuple(states))]
    if dtype != torch.float64:  # a state that comes from another step, in half precision
        mixed.append(packed(kind, tuple(state.bfloat16() for state in states)))
    if kind == "lstm" and dtype == torch.float32:
        mixed.append((states[0].bfloat16(), states[1]))
    for state in mixed:
        with torch.autocast(device, torch.bfloat16):
            a, b = (as_tuple(module(x, state)) for module in (ours, theirs))
        for y, z in zip(a, b, strict=True):
            assert y.dtype == z.dtype
            if device == "cpu":
                assert same_bits(y.detach(), z.detach())
        if requires_grad:
            grads = [
                torch.autograd.grad(sum(y.sum() for y in v), list(m.parameters())) for v, m in ((a, ours), (b, theirs))
            ]
            for g, wanted in zip(*grads, strict=True):
                assert g.dtype == dtype
                torch.testing.assert_close(g, wanted, rtol=0.02, atol=0.05 if dtype != torch.float64 else 1e-12)


def kept_bytes(function: Callable[[], Any], *parameters: Tensor) -> int:
    """Bytes of the storages that the backward pass keeps, besides the parameters."""
    kept: dict[int, int] = {}
    note = lambda t: kept.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        value = function()
    for parameter in parameters:
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    del value
    return sum(kept.values())


@each_dtype
def test_what_is_kept_for_the_backward_pass_beside_torchs(dtype: torch.dtype) -> None:
    N, n, m = 100, 16, 8
    one = N * m * dtype.itemsize  # a state
    for kind, ours, theirs in (("tanh", 2, 2), ("relu", 2, 2), ("lstm", 7, 7)):
        tensors = tensors_of(kind, (N,), n, m, dtype)
        states, parameters = tensors[1 : 3 if kind == "lstm" else 2], [p.requires_grad_() for p in tensors[-4:]]
        leaves = [state.requires_grad_() for state in states]
        a = kept_bytes(lambda k=kind, x=tensors[0], s=leaves, p=parameters: function_of(k)(x, *s, *p), *parameters)
        b = kept_bytes(lambda k=kind, x=tensors[0], s=leaves, p=parameters: theirs_of(k)(x, *s, *p), *parameters)
        assert a == ours * one + N * n * dtype.itemsize
        assert b == theirs * one + N * n * dtype.itemsize
        # frozen weights: neither the input nor the state is needed
        frozen = [p.detach() for p in parameters]
        assert (
            kept_bytes(lambda k=kind, x=tensors[0], s=leaves, p=frozen: function_of(k)(x, *s, *p), *frozen)
            == (1 if kind != "lstm" else 6) * one
        )


def test_over_a_sequence_an_lstm_keeps_a_seventh_less_than_torchs() -> None:
    N, n, m, T = 10, 3, 8, 20
    one = N * m * 4
    xs = torch.randn(T, N, n)
    sizes = []
    for module in cells("lstm", n, m):
        state = tuple(torch.zeros(N, m) for _ in range(2))
        sizes.append(kept_bytes(lambda module=module, state=state: run(module, xs, state), *module.parameters()))
    inputs = xs.nbytes
    assert sizes[0] - inputs == (6 * T + 1) * one  # h, c and four gates a step, and the last cell
    assert sizes[1] - inputs == 7 * T * one


@each_kind
def test_saves_nothing_where_no_derivative_is_wanted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = tensors_of(kind)
    wanted = as_tuple(function_of(kind)(tensors[0].clone().requires_grad_(), *tensors[1:]))
    monkeypatch.setattr(recurrent, "pick", None)  # any use of autograd.Function would fail
    with torch.no_grad():
        ours = as_tuple(function_of(kind)(tensors[0].clone().requires_grad_(), *tensors[1:]))
    assert all(same_bits(a, b.detach()) for a, b in zip(ours, wanted, strict=True))
    ours = as_tuple(function_of(kind)(*tensors))
    assert all(same_bits(a, b.detach()) for a, b in zip(ours, wanted, strict=True))
    with pytest.raises(TypeError):
        function_of(kind)(tensors[0].clone().requires_grad_(), *tensors[1:])


@each_kind
def test_no_input_is_written_over(kind: str) -> None:
    tensors = tensors_of(kind)
    before = [tensor.clone() for tensor in tensors]
    function_of(kind)(*tensors)
    values_and_gradients(function_of(kind), tensors)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@each_kind
@each_device
def test_deterministic(kind: str, device: str) -> None:
    tensors = tensors_of(kind, (64,), 10, 8, torch.float32, device)
    torch.use_deterministic_algorithms(device == "cpu")
    try:
        runs = [values_and_gradients(function_of(kind), tensors) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(same_bits(a, b) for a, b in zip(*runs, strict=True))


@each_kind
def test_layouts_other_than_contiguous(kind: str) -> None:
    tensors = tensors_of(kind)
    views = tuple(t.mT.contiguous().mT if t.dim() == 2 else t.repeat(2)[::2] for t in tensors)
    views = tuple(v if v.dim() == 2 else t for v, t in zip(views, tensors, strict=True))
    for a, b in zip(*(values_and_gradients(function_of(kind), t) for t in (views, tensors)), strict=True):
        torch.testing.assert_close(a, b)
    expanded = (tensors[0][:1].expand(3, -1), *tensors[1:])
    for a, b in zip(*(as_tuple(f(*expanded)) for f in (function_of(kind), theirs_of(kind))), strict=True):
        torch.testing.assert_close(a, b)


@each_kind
def test_on_the_meta_device_it_has_torchs_shape(kind: str) -> None:
    tensors = [tensor.to("meta").requires_grad_() for tensor in tensors_of(kind)]
    ours, theirs = (as_tuple(f(*tensors)) for f in (function_of(kind), theirs_of(kind)))
    assert [(y.shape, y.device.type) for y in ours] == [(y.shape, "meta") for y in theirs]


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


class _Tagged(Tensor):
    """A subclass, as users write them."""


@each_kind
def test_one_call_for_torch_function_modes_subclasses_and_fx(kind: str) -> None:
    name = "lstm_cell" if kind == "lstm" else "rnn_cell"
    tensors = tensors_of(kind)
    wanted = as_tuple(function_of(kind)(*tensors))
    with _Watch() as outer, _Watch() as inner:
        ours = as_tuple(function_of(kind)(*tensors))
    assert outer.names == inner.names == [name]
    assert all(same_bits(a, b) for a, b in zip(ours, wanted, strict=True))
    for index in range(len(tensors)):  # whichever argument is the subclass, the cell of an LSTM too
        tagged = [t.as_subclass(_Tagged) if i == index else t for i, t in enumerate(tensors)]
        assert all(type(y) is _Tagged for y in as_tuple(function_of(kind)(*tagged)))
    module = cells(kind, dtype=torch.float64)[0]
    traced = torch.fx.symbolic_trace(module)
    calls = [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"]
    assert calls == [name]
    for state in (None, packed(kind, tensors[1 : 3 if kind == "lstm" else 2])):
        for a, b in zip(as_tuple(traced(tensors[0], state)), as_tuple(module(tensors[0], state)), strict=True):
            assert same_bits(a.detach(), b.detach())


# --- the modules ----------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("bias", [True, False])
def test_modules_change_places_with_torchs_by_their_state(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    ours, _ = cells(kind, bias=bias)
    torch.manual_seed(0)
    words = {} if kind == "lstm" else {"nonlinearity": kind}
    theirs = (nn.LSTMCell if kind == "lstm" else nn.RNNCell)(5, 4, bias=bias, **words)
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if bias else [])]
    assert list(ours.state_dict()) == list(theirs.state_dict()) == names
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))  # drawn alike
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, type(theirs))
    x = torch.randn(3, 5)
    for source, target in ((ours, theirs), (theirs, ours)):
        for parameter in source.parameters():
            nn.init.uniform_(parameter, -1, 1)
        target.load_state_dict(source.state_dict())
        for a, b in zip(as_tuple(ours(x)), as_tuple(theirs(x)), strict=True):
            assert same_bits(a.detach(), b.detach())


@each_kind
def test_modules_survive_copying_and_pickling(kind: str, tmp_path: Path) -> None:
    module = cells(kind)[0]
    x = torch.randn(3, 5)
    torch.save(module, tmp_path / "module.pt")
    for twin in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(tmp_path / "module.pt", weights_only=False),
    ):
        assert repr(twin) == repr(module)
        for a, b in zip(as_tuple(twin(x)), as_tuple(module(x)), strict=True):
            assert same_bits(a.detach(), b.detach())


def test_the_public_names_stand_in_functional_and_nn() -> None:
    assert PF.rnn_cell is recurrent.rnn_cell
    assert PF.lstm_cell is recurrent.lstm_cell
    assert pnn.RNNCell is recurrent.RNNCell
    assert pnn.LSTMCell is recurrent.LSTMCell


# --- bad input ------------------------------------------------------------------------------------

X, H, W, U, B = torch.ones(3, 5), torch.ones(3, 4), torch.ones(4, 5), torch.ones(4, 4), torch.ones(4)
BAD_RNN = [
    (([1.0], H, W, U), TypeError, "input must be a torch tensor, got list"),
    ((X.long(), H, W, U), TypeError, "input must be floating point, got torch.int64"),
    ((X[None], H, W, U), ValueError, r"input must have shape \(N, n\) or \(n,\), got \(1, 3, 5\)"),
    ((X[0, 0], None, W, U), ValueError, r"input must have shape \(N, n\) or \(n,\), got \(\)"),
    ((X, 1.0, W, U), TypeError, "hx must be a torch tensor, got float"),
    ((X, H.double(), W, U), TypeError, "hx must have the dtype of input, torch.float32, got torch.float64"),
    ((X, H[:1], W, U), ValueError, r"hx must have shape \(3, 4\), got \(1, 4\)"),
    ((X, H[0], W, U), ValueError, r"hx must have shape \(3, 4\), got \(4,\)"),
    ((X[0], H, W, U), ValueError, r"hx must have shape \(4,\), got \(3, 4\)"),
    ((X, H, W[:, :3], U), ValueError, r"weight_ih must have shape \(4, 5\), got \(4, 3\)"),
    ((X, H, None, U), TypeError, "weight_ih must be a torch tensor, got NoneType"),
    ((X, H, W.double(), U), TypeError, "weight_ih must have the dtype of input"),
    ((X, H, W, U[:2]), ValueError, r"weight_hh must have shape \(m, m\), got \(2, 4\)"),
    ((X, None, W, U[0]), ValueError, r"weight_hh must have shape \(m, m\), got \(4,\)"),
    ((X, None, W, None), TypeError, "weight_hh must be a torch tensor, got NoneType"),
    ((X, H, W, U, B[:3]), ValueError, r"bias_ih must have shape \(4,\), got \(3,\)"),
    ((X, H, W, U, None, B.half()), TypeError, "bias_hh must have the dtype of input"),
    ((X, H, W, U, B, B, "sigmoid"), ValueError, "nonlinearity must be one of 'tanh', 'relu', got 'sigmoid'"),
]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD_RNN)
def test_bad_input_of_the_rnn_cell(
    arguments: tuple[Any, ...], error: type[Exception], message: str, requires_grad: bool
) -> None:
    with pytest.raises(error, match=message), torch.set_grad_enabled(requires_grad):
        PF.rnn_cell(*arguments)


W4, U4, B4 = torch.ones(16, 5), torch.ones(16, 4), torch.ones(16)
BAD_LSTM = [
    ((X.long(), None, W4, U4), TypeError, "input must be floating point, got torch.int64"),
    ((None, None, W4, U4), TypeError, "input must be a torch tensor, got NoneType"),
    ((X, H, W4, U4), TypeError, r"hx must be a tuple of two tensors, \(h, c\), or None, got Tensor"),
    ((X, (H,), W4, U4), TypeError, "hx must be a tuple of two tensors, .* got tuple of 1"),
    ((X, (H, 2.0), W4, U4), TypeError, r"hx\[1\] must be a torch tensor, got float"),
    ((X, (H.long(), H), W4, U4), TypeError, r"hx\[0\] must be floating point, got torch.int64"),
    ((X, (H, H[:2]), W4, U4), ValueError, r"hx must hold two tensors of one shape, got \(3, 4\) and \(2, 4\)"),
    ((X, (H, H.to("meta")), W4, U4), ValueError, "hx must hold two tensors on one device, got cpu and meta"),
    ((X, (H, H.double()), W4, U4), TypeError, "hx must hold two tensors of one dtype, got torch.float32 and"),
    ((X, (H[:, :2],) * 2, W4, U4), ValueError, r"hx must have shape \(3, 4\), got \(3, 2\)"),
    ((X, None, W, U4), ValueError, r"weight_ih must have shape \(16, 5\), got \(4, 5\)"),
    ((X, None, W4, U), ValueError, r"weight_hh must have shape \(4 \* m, m\), got \(4, 4\)"),
    ((X, None, W4, U4, B), ValueError, r"bias_ih must have shape \(16,\), got \(4,\)"),
    ((X[None], None, W4, U4), ValueError, r"input must have shape \(N, n\) or \(n,\), got \(1, 3, 5\)"),
]


@pytest.mark.parametrize("function", [recurrent.lstm_cell, recurrent.lstm_gates, recurrent.lstm_jacobian])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD_LSTM)
def test_bad_input_of_the_lstm_cell(
    function: Callable[..., Any], arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(*arguments)


def test_bad_input_of_the_rest() -> None:
    with pytest.raises(TypeError, match="h_next must be floating point"):
        recurrent.rnn_jacobian(H.long(), U)
    with pytest.raises(TypeError, match="weight must have the dtype of h_next"):
        recurrent.rnn_jacobian(H, U.double())
    with pytest.raises(ValueError, match=r"weight must have shape \(4, k\), got \(5, 4\)"):
        recurrent.rnn_jacobian(H, torch.ones(5, 4))
    with pytest.raises(ValueError, match=r"h_next must have shape \(\*, m\), got \(\)"):
        recurrent.rnn_jacobian(torch.ones(()), U)
    with pytest.raises(ValueError, match="nonlinearity must be one of"):
        recurrent.rnn_jacobian(H, U, "gelu")
    with pytest.raises(ValueError, match="nonlinearity must be one of 'tanh', 'relu', got 'x'"):
        pnn.RNNCell(2, 3, nonlinearity="x")
    with pytest.raises(TypeError, match="forget_gates must be floating point"):
        recurrent.cell_path(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"forget_gates must have shape \(T, \*\), got \(\)"):
        recurrent.cell_path(torch.ones(()))


def test_a_second_derivative_of_the_cell_alone_goes_through_the_gates() -> None:
    found = []
    for cell in cells("lstm", dtype=torch.float64):
        x = torch.ones(3, 5, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(cell(x)[1].sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), x)[0])
    assert found[1].any()
    torch.testing.assert_close(*found)
