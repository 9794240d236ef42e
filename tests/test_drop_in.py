"""Drop-in: whatever torch accepts, the layer of the same name does with the same numbers, or says that it does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pwl_lib.functional as PF
import pwl_lib.nn as pnn

TORCH_HAS = sorted(set(PF.__all__) & {*dir(F), "logsumexp"})
TORCH_HAS_MODULES = sorted(set(pnn.__all__) & set(dir(nn)))


def torchs(name: str) -> Callable[..., Any]:
    # torch.nn.functional has no logsumexp, and its softmax has a word for its warnings alone.
    return getattr(torch if name in ("logsumexp", "softmax") else F, name)


@pytest.mark.parametrize("name", TORCH_HAS)
def test_a_function_takes_torchs_words_in_torchs_order(name: str) -> None:
    ours = list(inspect.signature(getattr(PF, name)).parameters.values())
    theirs = torchs(name)
    try:
        wanted = list(inspect.signature(theirs).parameters)
    except ValueError:  # built in: its words stand in the first line of its documentation
        words = theirs.__doc__.strip().splitlines()[0].split("(", 1)[1].split(")")[0]
        wanted = [word.split("=")[0].strip() for word in words.split(",") if word.strip() not in ("*", "out=None")]
    if wanted == ["args", "kwargs"]:  # a pooling function that chooses by return_indices
        wanted = list(inspect.signature(getattr(F, f"_{name}")).parameters)
    own = [parameter.name for parameter in ours if parameter.kind is not parameter.KEYWORD_ONLY]
    if own[-1] == "temperature":  # ours, behind all of torch's
        own.pop()
    assert own == wanted[: len(own)]
    assert set(wanted[len(own) :]) <= {"weight"}  # of the l1 and mse losses in newer torch, by its word alone


@pytest.mark.parametrize("name", TORCH_HAS_MODULES)
def test_a_module_takes_torchs_words_in_torchs_order(name: str) -> None:
    ours = [p for p in inspect.signature(getattr(pnn, name)).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    if ours[-1:] and ours[-1].name == "temperature":
        ours.pop()
    wanted = list(inspect.signature(getattr(nn, name)).parameters)
    assert [parameter.name for parameter in ours] == wanted[: len(ours)]
    assert len(wanted) == len(ours) or name == "Hardtanh"  # two names that torch has deprecated


def outcome(function: Callable[..., Any], tensors: tuple[Tensor | None, ...], words: dict[str, Any]) -> Any:
    """The value and the gradients of a function, or the exception that it raises."""
    inputs = [
        tensor.clone().requires_grad_() if tensor is not None and tensor.is_floating_point() else tensor
        for tensor in tensors
    ]
    try:
        result = function(*inputs, **words)
    except Exception as error:
        return error
    y, *rest = result if isinstance(result, tuple) else (result,)
    upstream = torch.arange(y.numel(), dtype=torch.float64).cos().reshape(y.shape).to(y)
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    return [y.detach(), *rest, *torch.autograd.grad(y, wanted, upstream)]


def assert_drop_in(
    name: str, tensors: tuple[Tensor | None, ...], words: dict[str, Any], *, bits: bool, refused: str = ""
) -> None:
    """Equal numbers, or an error where torch has one; torch is not asked where ours refuses with the words ``refused``."""
    ours = outcome(getattr(PF, name), tensors, words)
    if refused and refused in str(ours):
        assert isinstance(ours, ValueError)
        return
    theirs = outcome(torchs(name), tensors, words)
    if isinstance(theirs, Exception):
        assert isinstance(ours, (ValueError, TypeError, IndexError)), (ours, theirs)
        return
    assert not isinstance(ours, Exception), (ours, words)
    for a, b in zip(ours, theirs, strict=True):
        if bits:
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)


def random_tensor(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pairs(low: int, high: int) -> st.SearchStrategy[Any]:
    number = st.integers(low, high)
    return number | st.tuples(number, number) | st.tuples(number).map(list)


@given(st.data())
def test_conv2d(data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 3))
    per_group, kernels = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    size = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    batch = data.draw(st.sampled_from([(), (1,), (2,), (0,)]))
    x = random_tensor(0, *batch, per_group * groups, *size)
    weight = random_tensor(1, kernels * groups, per_group, *kernel)
    bias = random_tensor(2, kernels * groups) if data.draw(st.booleans()) else None
    words = {
        "stride": data.draw(pairs(1, 3)),
        "padding": data.draw(pairs(0, 3) | st.sampled_from(["same", "valid"])),
        "dilation": data.draw(pairs(1, 3)),
        "groups": groups,
    }
    assert_drop_in("conv2d", (x, weight, bias), words, bits=True)


@given(st.lists(st.integers(0, 3), max_size=3), st.integers(0, 4), st.integers(0, 4), st.booleans())
def test_linear(leading: list[int], inputs: int, outputs: int, biased: bool) -> None:
    bias = random_tensor(2, outputs) if biased else None
    assert_drop_in(
        "linear", (random_tensor(0, *leading, inputs), random_tensor(1, outputs, inputs), bias), {}, bits=False
    )


pooled = st.tuples(
    st.sampled_from([(), (1,), (2,)]), st.integers(1, 2), st.integers(1, 8), st.integers(1, 8), st.booleans()
)


def to_pool(drawn: tuple[tuple[int, ...], int, int, int, bool]) -> Tensor:
    batch, channels, height, width, tied = drawn
    x = random_tensor(0, *batch, channels, height, width)
    return x.round() if tied else x


@given(pooled, st.data())
def test_max_pool2d(drawn: Any, data: st.DataObject) -> None:
    words = {
        "kernel_size": data.draw(pairs(1, 4)),
        "stride": data.draw(st.none() | pairs(1, 4)),
        "padding": data.draw(pairs(0, 2)),
        "dilation": data.draw(pairs(1, 3)),
        "ceil_mode": data.draw(st.booleans()),
        "return_indices": data.draw(st.booleans()),
    }
    # For a window in the padding alone torch has an index outside the image, and its backward pass writes there.
    refused = "dilation must leave each window a pixel"
    assert_drop_in("max_pool2d", (to_pool(drawn),), words, bits=False, refused=refused)


@given(pooled, st.data())
def test_avg_pool2d(drawn: Any, data: st.DataObject) -> None:
    words = {
        "kernel_size": data.draw(pairs(1, 4)),
        "stride": data.draw(st.none() | pairs(1, 4)),
        "padding": data.draw(pairs(0, 2)),
        "ceil_mode": data.draw(st.booleans()),
        "count_include_pad": data.draw(st.booleans()),
        "divisor_override": data.draw(st.none() | st.integers(1, 5)),
    }
    assert_drop_in("avg_pool2d", (to_pool(drawn),), words, bits=False)


reductions = st.sampled_from(["none", "mean", "sum"])


@pytest.mark.parametrize("name", ["l1_loss", "mse_loss"])
@given(st.lists(st.integers(0, 3), max_size=3), reductions)
def test_distances(name: str, shape: list[int], reduction: str) -> None:
    x, target = random_tensor(0, *shape).round(), random_tensor(1, *shape).round()
    assert_drop_in(name, (x, target), {"reduction": reduction}, bits=False)


@given(st.data())
def test_cross_entropy(data: st.DataObject) -> None:
    classes = data.draw(st.integers(1, 4))
    outer = data.draw(st.sampled_from([None, (0,), (1,), (3,), (2, 3), (2, 2, 2)]))
    shape = (classes,) if outer is None else (outer[0], classes, *outer[1:])
    x = 3 * random_tensor(0, *shape)
    words: dict[str, Any] = {
        "reduction": data.draw(reductions),
        "label_smoothing": data.draw(st.sampled_from([0.0, 0.1, 1.0])),
        "weight": random_tensor(2, classes).abs() if data.draw(st.booleans()) else None,
    }
    if data.draw(st.booleans()):
        target = random_tensor(1, *shape).softmax(0 if outer is None else 1)
    else:
        ignored = data.draw(st.sampled_from([-100, 0, 1]))
        target = torch.randint(0, classes, () if outer is None else outer, generator=torch.Generator().manual_seed(3))
        words["ignore_index"] = ignored
    assert_drop_in("cross_entropy", (x, target), words, bits=False)


@given(
    st.lists(st.integers(1, 3), max_size=3),
    st.integers(-4, 3) | st.lists(st.integers(-4, 3), max_size=3),
    st.booleans(),
)
def test_logsumexp(shape: list[int], dim: int | list[int], keepdim: bool) -> None:
    refused = "dim must name at least one dimension"  # for none, torch takes all
    assert_drop_in(
        "logsumexp", (random_tensor(0, *shape),), {"dim": dim, "keepdim": keepdim}, bits=False, refused=refused
    )


@given(
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(-4, 3),
    st.sampled_from([None, torch.float32, torch.float64]),
)
def test_softmax(shape: list[int], dim: int, dtype: torch.dtype | None) -> None:
    assert_drop_in("softmax", (random_tensor(0, *shape),), {"dim": dim, "dtype": dtype}, bits=False)


@pytest.mark.parametrize("kind", ["tanh", "relu", "lstm"])
@settings(max_examples=25)
@given(st.sampled_from([0, 1, 4]), st.integers(0, 4), st.integers(0, 9), st.booleans(), st.integers(0, 2**32 - 1))
def test_recurrent_cells(kind: str, batch: int, inputs: int, size: int, biased: bool, seed: int) -> None:
    rows, states = (4 * size, 2) if kind == "lstm" else (size, 1)
    shapes = [(batch, inputs), *[(batch, size)] * states, (rows, inputs), (rows, size), *[(rows,)] * 2 * biased]
    tensors = tuple(random_tensor(seed % 1000 + index, *shape) for index, shape in enumerate(shapes))
    functions = {
        "tanh": (PF.rnn_cell, torch.rnn_tanh_cell),
        "relu": (lambda *each: PF.rnn_cell(*each, nonlinearity="relu"), torch.rnn_relu_cell),
        "lstm": [lambda x, h, c, *rest, f=f: torch.cat(f(x, (h, c), *rest)) for f in (PF.lstm_cell, torch.lstm_cell)],
    }
    ours, theirs = (outcome(function, tensors, {}) for function in functions[kind])
    assert torch.equal(ours[0], theirs[0])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", ["same", 1])
def test_a_convolution_can_be_traced_for_shapes_of_other_sizes(padding: Any) -> None:
    layer = pnn.Conv2d(2, 3, 3, padding=padding)
    with torch.no_grad():
        traced = torch.jit.trace(layer, random_tensor(0, 2, 2, 8, 8).float())
        x = random_tensor(1, 1, 2, 5, 9).float()
        torch.testing.assert_close(traced(x), layer(x))


def _net(layers: Any) -> nn.Sequential:
    return nn.Sequential(
        layers.Conv2d(3, 8, 3, padding="same", padding_mode="reflect"),
        layers.LeakyReLU(0.1),
        layers.MaxPool2d(3, stride=2, padding=1),
        layers.Conv2d(8, 6, (3, 2), stride=(2, 1), dilation=(1, 2), groups=2, bias=False),
        layers.PReLU(6),
        layers.AvgPool2d(2, ceil_mode=True),
        nn.Flatten(),
        layers.Linear(18, 10),
        layers.ReLU(),
        layers.Linear(10, 4),
    )


@pytest.mark.parametrize("loss", ["CrossEntropyLoss", "MSELoss", "L1Loss"])
def test_a_working_net_is_the_same_net_with_our_layers(loss: str) -> None:
    torch.manual_seed(0)
    theirs = _net(nn).double()
    torch.manual_seed(0)
    ours = _net(pnn).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name  # the same numbers are drawn
    x, y = random_tensor(0, 5, 3, 12, 13), random_tensor(1, 5, 4)
    target = y.softmax(1) if loss == "CrossEntropyLoss" else y
    for net, layers in ((ours, pnn), (theirs, nn)):
        getattr(layers, loss)()(net(x), target).backward()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-13, atol=1e-13)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-13)


class _Reader(nn.Module):
    """An embedding of letters, an LSTM over a ReLU network, a linear layer."""

    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.letters = nn.Embedding(7, 3)
        self.below = layers.RNNCell(3, 5, nonlinearity="relu")
        self.above = layers.LSTMCell(5, 4, bias=False)
        self.head = layers.Linear(4, 2)

    def forward(self, text: Tensor) -> Tensor:
        low, high = None, None
        for letter in self.letters(text).unbind(1):
            low = self.below(letter, low)
            high = self.above(low, high)
        return self.head(high[0])


def test_a_working_recurrent_net_is_the_same_net_with_our_cells() -> None:
    torch.manual_seed(0)
    theirs = _Reader(nn).double()
    torch.manual_seed(0)
    ours = _Reader(pnn).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    text = torch.randint(7, (6, 9), generator=torch.Generator().manual_seed(0))
    for net, layers in ((ours, pnn), (theirs, nn)):
        layers.CrossEntropyLoss()(net(text), text[:, 0] % 2).backward()
    torch.testing.assert_close(ours(text), theirs(text), rtol=1e-13, atol=1e-13)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-13)
