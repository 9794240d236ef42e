"""One contract for every layer, from one table. A new layer is a new row of LAYERS."""

from __future__ import annotations

import copy
import math
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

import pwl_lib.functional as PF
import pwl_lib.nn as pnn
from pwl_lib import rectifiers

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@dataclass(frozen=True)
class Layer:
    """One row: our function, torch's, the matrix, and what is claimed of them."""

    name: str
    ours: Callable[..., Tensor]
    """A function of the input and of the parameters."""
    theirs: Callable[..., Tensor]
    matrices: Callable[..., tuple[Tensor, ...]]
    """The Jacobians in the input and in each parameter."""
    modules: Callable[[], tuple[nn.Module, nn.Module | None]]
    """Ours and torch's."""
    saved: Callable[[torch.dtype], int]
    """The bytes that it may keep for the backward pass, for each element of the input."""
    parameters: tuple[int, ...] = ()
    """The number of elements of each parameter; 3 is one for each channel of ``shape``."""
    kinks: tuple[float, ...] = (0.0,)
    like_torch_at_kinks: bool = True
    steady_at_nan: bool = True
    """Whether torch's slope at NaN is always the same."""
    shape: tuple[int, ...] = (2, 3, 4, 5)
    function_name: str = ""


def _one_byte(_: torch.dtype) -> int:
    return 1


def _single(matrix: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    return lambda x: (matrix(x),)


def _relu(slope: float) -> Layer:
    return Layer(
        f"relu-{slope}",
        partial(PF.relu, slope_at_zero=slope),
        F.relu,
        _single(partial(rectifiers.relu_jacobian, slope_at_zero=slope)),
        lambda: (pnn.ReLU(slope_at_zero=slope), nn.ReLU()),
        _one_byte,
        like_torch_at_kinks=slope == 0,
        function_name="relu",
    )


def _leaky(slope: float) -> Layer:
    return Layer(
        f"leaky_relu-{slope}",
        partial(PF.leaky_relu, negative_slope=slope),
        partial(F.leaky_relu, negative_slope=slope),
        _single(partial(rectifiers.leaky_relu_jacobian, negative_slope=slope)),
        lambda: (pnn.LeakyReLU(slope), nn.LeakyReLU(slope)),
        _one_byte,
        function_name="leaky_relu",
    )


def _prelu(count: int) -> Layer:
    return Layer(
        f"prelu-{count}",
        PF.prelu,
        F.prelu,
        rectifiers.prelu_jacobian,
        lambda: (pnn.PReLU(count), nn.PReLU(count)),
        lambda dtype: dtype.itemsize,
        parameters=(count,),
        function_name="prelu",
    )


def _hardtanh(low: float, high: float) -> Layer:
    return Layer(
        f"hardtanh-{low}-{high}",
        partial(PF.hardtanh, min_val=low, max_val=high),
        partial(F.hardtanh, min_val=low, max_val=high),
        _single(partial(rectifiers.hardtanh_jacobian, min_val=low, max_val=high)),
        lambda: (pnn.Hardtanh(low, high), nn.Hardtanh(low, high)),
        _one_byte,
        kinks=(low, high),
        steady_at_nan=False,
        function_name="hardtanh",
    )


LAYERS = [
    _relu(0.0),
    _relu(0.5),
    _relu(1.0),
    _leaky(0.01),
    _leaky(-0.5),
    _prelu(1),
    _prelu(3),
    Layer(
        "absolute",
        PF.absolute,
        torch.abs,
        _single(rectifiers.absolute_jacobian),
        lambda: (pnn.Absolute(), None),
        _one_byte,
        function_name="absolute",
    ),
    _hardtanh(-1.0, 1.0),
    _hardtanh(-0.1, 0.7),  # numbers that bfloat16 rounds
]

each_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
each_device = pytest.mark.parametrize("device", DEVICES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


# --- what the tests share -------------------------------------------------------------------------


def parameters_of(layer: Layer, like: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.linspace(0.25, 0.75, count).to(like) for count in layer.parameters)


def sample(layer: Layer, dtype: torch.dtype = torch.float64, device: str = "cpu", *, kinks: bool = True) -> Tensor:
    """Random numbers at least 0.1 away from every kink, and on request a few exactly at the kinks."""
    generator = torch.Generator().manual_seed(0)
    x = 1.5 * torch.randn(layer.shape, generator=generator, dtype=torch.float64)
    for kink in layer.kinks:
        x = torch.where((x - kink).abs() < 0.1, kink + 0.15, x)
    if kinks:
        x.view(-1)[::7][: 2 * len(layer.kinks)] = torch.tensor(layer.kinks * 2, dtype=torch.float64)
    return x.to(device, dtype)


def same_bits(a: Tensor | None, b: Tensor | None) -> bool:
    """Equal shapes, types and bits, signs of zeros included; any NaN equals any NaN."""
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    return bool((((a == b) & (a.signbit() == b.signbit())) | (a.isnan() & b.isnan())).all())


def value_and_gradients(
    function: Callable[..., Tensor], x: Tensor, parameters: tuple[Tensor, ...], upstream: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    inputs = tuple(tensor.detach().clone().requires_grad_() for tensor in (x, *parameters))
    y = function(*inputs)
    return y.detach(), torch.autograd.grad(y, inputs, upstream.to(y))


def assert_like_torch(layer: Layer, x: Tensor, upstream: Tensor) -> None:
    parameters = parameters_of(layer, x)
    ours, our_gradients = value_and_gradients(layer.ours, x, parameters, upstream)
    theirs, their_gradients = value_and_gradients(layer.theirs, x, parameters, upstream)
    assert same_bits(ours, theirs)
    by_input, *by_parameters = zip(our_gradients, their_gradients, strict=True)
    judged = torch.ones_like(x, dtype=torch.bool)
    if not layer.like_torch_at_kinks:
        judged &= (x != 0) & ~x.isnan()
    if not layer.steady_at_nan:
        judged &= ~x.isnan()
    assert same_bits(by_input[0][judged], by_input[1][judged])
    assert all(same_bits(a, b) for a, b in by_parameters)


# --- value and gradient ---------------------------------------------------------------------------


@each_layer
@each_dtype
@each_device
def test_equals_torch_on_every_dtype(layer: Layer, dtype: torch.dtype, device: str) -> None:
    x = sample(layer, dtype, device)
    assert_like_torch(layer, x, torch.linspace(-2, 2, x.numel()).reshape(x.shape).to(x))


_SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 5e-324, 1e-45, -1e-45, 65504.0, 3e38]


@each_layer
@given(
    st.lists(st.tuples(*[st.sampled_from(_SPECIAL) | st.floats(-4, 4)] * 2), max_size=70),
    st.sampled_from(DTYPES),
    st.integers(1, 3),
)
def test_equals_torch_bit_for_bit(
    layer: Layer, pairs: list[tuple[float, float]], dtype: torch.dtype, step: int
) -> None:
    columns = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2).to(dtype)
    kinks = torch.tensor(layer.kinks, dtype=dtype)
    x = torch.cat([columns[:, 0], kinks, -kinks, torch.nextafter(kinks, kinks + 1), torch.nextafter(kinks, kinks - 1)])
    upstream = torch.cat(
        [columns[:, 1], torch.tensor([-3.0, math.inf, math.nan, -0.0], dtype=dtype).repeat(len(kinks))]
    )
    if 3 in layer.parameters:
        x, upstream = x[: len(x) // 3 * 3].reshape(-1, 3), upstream[: len(x) // 3 * 3].reshape(-1, 3)
    assert_like_torch(layer, x[::step], upstream[::step])


@each_layer
@each_device
def test_equals_its_matrix_at_kinks_too(layer: Layer, device: str) -> None:
    x = sample(layer, device=device)
    inputs = (x, *parameters_of(layer, x))
    upstream = torch.randn(x.shape, dtype=x.dtype, device=device)
    for index, matrix in enumerate(layer.matrices(*inputs)):
        _, back = vjp(lambda tensor, i=index: layer.ours(*inputs[:i], tensor, *inputs[i + 1 :]), inputs[index])
        # A sum of k products may be off by k units in the last place of the sum of their sizes, in any order.
        terms = (matrix != 0).sum(0) * torch.finfo(x.dtype).eps
        bound = terms * (matrix.T.abs() @ upstream.flatten().abs())
        assert ((back(upstream)[0].flatten() - matrix.T @ upstream.flatten()).abs() <= bound).all()


@each_layer
@each_device
def test_gradcheck_in_every_mode_of_differentiation(layer: Layer, device: str) -> None:
    x = sample(layer, device=device, kinks=False)[:, :, :2, :2].contiguous()
    inputs = tuple(tensor.requires_grad_() for tensor in (x, *parameters_of(layer, x)))
    assert torch.autograd.gradcheck(
        layer.ours, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(
        layer.ours, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True
    )


@each_layer
def test_forward_mode_nested_in_forward_mode_is_refused_since_torch_drops_a_part_of_it(layer: Layer) -> None:
    x = sample(layer)[:1, :, :2, :1]
    parameters = parameters_of(layer, x)
    f = lambda x: (layer.ours(x * x, *parameters) * x).sum()
    with pytest.raises(NotImplementedError, match="use reverse mode for one of the two"):
        jacfwd(jacfwd(f))(x)
    torch.testing.assert_close(hessian(f)(x), jacrev(jacrev(f))(x))


@each_layer
def test_torch_func_gives_the_matrix(layer: Layer) -> None:
    x = sample(layer)[:, :, :2, :2]
    parameters = parameters_of(layer, x)
    wanted = layer.matrices(x, *parameters)[0]
    n = x.numel()
    f = lambda x: layer.ours(x, *parameters)
    torch.testing.assert_close(jacrev(f)(x).reshape(n, n), wanted, rtol=0, atol=0)
    torch.testing.assert_close(jacfwd(f)(x).reshape(n, n), wanted, rtol=0, atol=0)
    tangent = torch.randn_like(x)
    torch.testing.assert_close(jvp(f, (x,), (tangent,))[1].flatten(), wanted @ tangent.flatten(), rtol=0, atol=1e-14)
    # derivatives of a vmapped function: inside, no tensor tells that one is wanted
    batched = jvp(vmap(lambda row: f(row[None])[0]), (x,), (tangent,))[1]
    torch.testing.assert_close(batched.flatten(), wanted @ tangent.flatten(), rtol=0, atol=1e-14)
    _, back = vjp(vmap(lambda row: f(row[None])[0]), x)
    torch.testing.assert_close(back(tangent)[0].flatten(), wanted.T @ tangent.flatten(), rtol=0, atol=1e-14)
    torch.testing.assert_close(vmap(lambda row: f(row[None])[0])(x), f(x), rtol=0, atol=0)
    each = vmap(jacrev(lambda row: f(row[None])[0]))(x).reshape(len(x), n // len(x), n // len(x))
    torch.testing.assert_close(torch.block_diag(*each), wanted, rtol=0, atol=0)
    # the slope is constant between kinks, so that the Hessian of |f|^2 / 2 has the matrix alone
    second = hessian(lambda x: f(x).square().sum() / 2)(x).reshape(n, n)
    torch.testing.assert_close(second, wanted.T @ wanted, rtol=0, atol=1e-14)


@each_layer
def test_forward_mode_without_torch_func(layer: Layer) -> None:
    x = sample(layer)
    parameters = parameters_of(layer, x)
    tangent = torch.randn_like(x)
    with torch.no_grad(), forward_ad.dual_level():
        y = forward_ad.unpack_dual(layer.ours(forward_ad.make_dual(x, tangent), *parameters))
    wanted = layer.matrices(x, *parameters)[0] @ tangent.flatten()
    torch.testing.assert_close(y.tangent.flatten(), wanted, rtol=0, atol=1e-14)


# --- shapes and layouts ---------------------------------------------------------------------------


@each_layer
@each_device
@pytest.mark.parametrize("shape", [(0, 3), (4, 3, 0, 2), (0, 3, 0)], ids=str)
def test_empty(layer: Layer, shape: tuple[int, ...], device: str) -> None:
    x = torch.empty(shape, device=device)
    y, gradients = value_and_gradients(layer.ours, x, parameters_of(layer, x), torch.empty(shape))
    assert y.shape == shape
    assert gradients[0].shape == shape
    assert all(not gradient.any() for gradient in gradients)


@each_layer
@each_device
def test_layouts_are_kept(layer: Layer, device: str) -> None:
    x = sample(layer, torch.float32, device)
    parameters = parameters_of(layer, x)
    wanted, _ = value_and_gradients(layer.ours, x, parameters, x.cos())
    last = x.contiguous(memory_format=torch.channels_last)
    y, (gradient, *_) = value_and_gradients(layer.ours, last, parameters, last.cos())
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert same_bits(y, wanted)
    for view in (x.transpose(2, 3), x[..., ::2], x.expand(2, *x.shape)[:, 0], x.flip(0)):
        assert_like_torch(layer, view, view.cos())
        assert layer.ours(view, *parameters).stride() == layer.theirs(view, *parameters).stride()


@pytest.mark.parametrize(
    "layer", [layer for layer in LAYERS if 3 not in layer.parameters], ids=lambda layer: layer.name
)
def test_scalar(layer: Layer) -> None:
    x = torch.tensor(-0.5)
    assert_like_torch(layer, x, torch.tensor(2.0))


# --- the rest of torch ----------------------------------------------------------------------------


def _all_at_once(x: Tensor, weights: tuple[Tensor, ...]) -> list[Tensor]:
    return [layer.ours(x, *weights[: len(layer.parameters)]) for layer in LAYERS if layer.parameters != (3,)]


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(
                not (shutil.which("g++") or shutil.which("clang++")) or " " in torch.__file__,
                reason="inductor needs a C++ compiler, and does not quote a path with a space",
            ),
        ),
    ],
)
def test_compiles_whole(backend: str) -> None:
    compiled = torch.compile(_all_at_once, fullgraph=True, backend=backend)
    x = sample(LAYERS[0], torch.float32)
    x.view(-1)[:3] = torch.tensor([1.0, -1.0, 0.0])
    results = []
    for function in (compiled, _all_at_once):
        leaf, weight = x.clone().requires_grad_(), torch.tensor([0.25], requires_grad=True)
        values = function(leaf, (weight,))
        gradients = [torch.autograd.grad(y.sum(), leaf, retain_graph=True)[0] for y in values]
        results.append([*values, *gradients, torch.autograd.grad(values[5].sum(), weight)[0]])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


@each_layer
@each_device
@each_dtype
def test_autocast_as_torch(layer: Layer, device: str, dtype: torch.dtype) -> None:
    x = sample(layer, dtype, device)
    parameters = parameters_of(layer, x)
    with torch.autocast(device, torch.bfloat16):
        assert_like_torch(layer, x, torch.ones_like(x))
        if dtype == torch.float32:  # a module's weight stays in float32 while its input arrives in bfloat16
            assert same_bits(layer.ours(x.bfloat16(), *parameters), layer.theirs(x.bfloat16(), *parameters))


@each_layer
@each_device
def test_deterministic(layer: Layer, device: str) -> None:
    x = sample(layer, torch.float32, device)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [value_and_gradients(layer.ours, x, parameters_of(layer, x), x.cos()) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert same_bits(runs[0][0], runs[1][0])
    assert all(same_bits(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


@each_layer
@each_dtype
def test_saved_for_backward(layer: Layer, dtype: torch.dtype) -> None:
    x = sample(layer, dtype).repeat(4, 1, 8, 8).requires_grad_()
    parameters = parameters_of(layer, x)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel() * t.element_size()) or t, lambda t: t
    ):
        layer.ours(x, *parameters)
    allowed = x.numel() * layer.saved(dtype) + sum(p.numel() * p.element_size() for p in parameters)
    assert 0 < sum(sizes) <= allowed


@each_layer
def test_saves_nothing_where_no_derivative_is_wanted(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    x = sample(layer)
    parameters = parameters_of(layer, x)
    wanted = layer.ours(x.clone().requires_grad_(), *parameters)
    monkeypatch.setattr(rectifiers, "pick", None)  # any use of autograd.Function would fail
    with torch.no_grad():
        assert same_bits(layer.ours(x.clone().requires_grad_(), *parameters), wanted.detach())
    with torch.inference_mode():
        assert same_bits(layer.ours(x, *parameters), wanted.detach())
    assert same_bits(layer.ours(x, *parameters), wanted.detach())
    with pytest.raises(TypeError):
        layer.ours(x.clone().requires_grad_(), *parameters)


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@each_layer
def test_one_call_for_torch_function_modes(layer: Layer) -> None:
    x = sample(layer).requires_grad_()
    parameters = parameters_of(layer, x)
    wanted = layer.ours(x, *parameters)
    with _Watch() as outer, _Watch() as inner:
        y = layer.ours(x, *parameters)
    assert outer.names == inner.names == [layer.function_name]
    assert same_bits(y, wanted)
    assert same_bits(*(torch.autograd.grad(out.sum(), x)[0] for out in (y, wanted)))
    module = layer.modules()[0].double()
    with _Watch() as watch:
        module(x)
    assert layer.function_name in watch.names
    assert set(watch.names) <= {layer.function_name, "__get__"}


class _Tagged(Tensor):
    """A subclass, as users write them."""


@each_layer
def test_subclasses_and_fx_see_one_call(layer: Layer) -> None:
    x = sample(layer, torch.float32)
    assert type(layer.ours(x.as_subclass(_Tagged), *parameters_of(layer, x))) is _Tagged
    net = nn.Sequential(nn.Conv2d(3, 3, 1), layer.modules()[0])
    traced = torch.fx.symbolic_trace(net)
    calls = [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"]
    assert calls == [layer.function_name]
    assert same_bits(traced(x).detach(), net(x).detach())


# --- the module -----------------------------------------------------------------------------------


@each_layer
def test_module_is_the_function_and_changes_places_with_torchs(layer: Layer) -> None:
    ours, theirs = layer.modules()
    x = sample(layer, torch.float32)
    assert same_bits(ours(x).detach(), layer.ours(x, *ours.parameters()).detach())
    if theirs is None:
        assert not ours.state_dict()
        return
    for parameter in ours.parameters():
        nn.init.uniform_(parameter, 0, 1)
    theirs.load_state_dict(ours.state_dict())
    assert same_bits(theirs(x).detach(), ours(x).detach())
    for parameter in theirs.parameters():
        nn.init.uniform_(parameter, 0, 1)
    ours.load_state_dict(theirs.state_dict())
    assert same_bits(theirs(x).detach(), ours(x).detach())
    assert list(ours.state_dict()) == list(theirs.state_dict())


@each_layer
def test_module_survives_copying_and_pickling(layer: Layer, tmp_path: Path) -> None:
    module = layer.modules()[0]
    x = sample(layer, torch.float32)
    torch.save(module, tmp_path / "module.pt")
    for twin in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(tmp_path / "module.pt", weights_only=False),
    ):
        assert repr(twin) == repr(module)
        assert same_bits(twin(x).detach(), module(x).detach())


@pytest.fixture
def process_group(tmp_path: Path) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_distributed_gradients(process_group: None) -> None:
    layers = [layer.modules()[0] for layer in LAYERS]
    net = nn.Sequential(nn.Conv2d(3, 3, 1), *layers)
    x = sample(LAYERS[0], torch.float32)
    net(x).square().sum().backward()
    wanted = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    DistributedDataParallel(net)(x).square().sum().backward()
    assert all(same_bits(parameter.grad, grad) for parameter, grad in zip(net.parameters(), wanted, strict=True))


# --- bad input ------------------------------------------------------------------------------------


@each_layer
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_other_dtypes_are_refused(layer: Layer, dtype: torch.dtype) -> None:
    x = torch.ones(2, 3, dtype=dtype)
    parameters = parameters_of(layer, torch.ones(1))
    with pytest.raises(TypeError, match=rf"input must be floating point, got {dtype}"):
        layer.ours(x, *parameters)
    with pytest.raises(TypeError, match="input must be floating point"):
        layer.matrices(x, *parameters)


@each_layer
def test_what_is_no_tensor_is_refused(layer: Layer) -> None:
    with pytest.raises(TypeError, match="input must be a torch tensor, got list"):
        layer.ours([1.0], *parameters_of(layer, torch.ones(1)))
