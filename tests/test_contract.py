"""One contract for every layer, from one table. A new layer is a new row of LAYERS.

A row has one input, of any shape. What has more keeps the same contract in a file of its own: the losses in
tests/test_losses.py, the recurrent cells in tests/test_recurrent.py.
"""

from __future__ import annotations

import copy
import math
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
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
from pwl_lib import argmax, convolution, logsumexp, maxout, pooling, rectifiers
from pwl_lib._validation import check_floating
from pwl_lib.kronecker import vec_permutation

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ELEMENTWISE_EMPTY = ((0, 3), (4, 3, 0, 2), (0, 3, 0))


@dataclass(frozen=True)
class Layer:
    """One row: our function, torch's, the matrix, and what is claimed of them."""

    name: str
    module: ModuleType
    """Where it is defined."""
    function_name: str
    """What a mode, a subclass and a tracer see, in one call."""
    ours: Callable[..., Tensor]
    """A function of the input and of the parameters."""
    theirs: Callable[..., Tensor]
    matrices: Callable[..., tuple[Tensor, ...]]
    """The Jacobians in the input and in each parameter, in torch's order of the elements."""
    modules: Callable[[], tuple[nn.Module, nn.Module | None]]
    """Ours and torch's."""
    saved: Callable[[Tensor, Tensor], int]
    """The bytes that it may keep for the backward pass of an input and an output, besides the parameters."""
    parameters: tuple[tuple[int, ...], ...] = ()
    """Their shapes; they fit 3 channels."""
    kinks: tuple[float, ...] = ()
    """Inputs at which an element alone makes a kink."""
    ties: bool = False
    """Whether two equal elements make one."""
    like_torch_at_kinks: bool = True
    steady_at_nan: bool = True
    """Whether torch's slope at NaN is always the same."""
    same_half_gradients: bool = True
    """Whether torch's gradient has the same bits in half precision; not where it rounds a sum term by term, and we once."""
    elementwise: bool = False
    per_sample: bool = True
    """Whether each sample has an output of its own, the first dimension of the output."""
    affine_between_kinks: bool = True
    entry_error: float = 0.0
    """How many units in the last place of 1 an entry of the matrix may be off; 0 where it is a parameter or a constant."""
    rounding: float = 0.0
    """How many units in the last place, of the largest number that comes, it may be off from torch's functions in float64,
    and of the largest input the numbers before them; 0 means the same bits."""
    laid_out_like: Callable[[Tensor], Tensor] | None = None
    """torch's function whose memory format it has, where ``theirs`` makes copies."""
    has_derivative: bool = True
    """Whether the matrix is the derivative; of a surrogate it is not."""
    shape: tuple[int, ...] = (2, 3, 4, 5)
    small_shape: tuple[int, ...] = (2, 3, 2, 2)
    trailing: tuple[int, ...] = ()
    """The generated numbers come in tensors of shape ``(n, *trailing)``."""
    empty: tuple[tuple[int, ...], ...] = ((0, 3, 4, 5),)
    call: Callable[[nn.Module, Tensor], Tensor] = lambda module, x: module(x)


def _one_byte(x: Tensor, y: Tensor) -> int:
    return y.numel()


def _input_itself(x: Tensor, y: Tensor) -> int:
    return x.numel() * x.element_size()


def _nothing(x: Tensor, y: Tensor) -> int:
    return 0


def _single(matrix: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    return lambda x: (matrix(x),)


def _rectifier(name: str, function_name: str, *row: Any, **words: Any) -> Layer:
    settings = {"elementwise": True, "kinks": (0.0,), "empty": ELEMENTWISE_EMPTY} | words
    return Layer(name, rectifiers, function_name, *row, **settings)


def _relu(slope: float) -> Layer:
    return _rectifier(
        f"relu-{slope}",
        "relu",
        partial(PF.relu, slope_at_zero=slope),
        F.relu,
        _single(partial(rectifiers.relu_jacobian, slope_at_zero=slope)),
        lambda: (pnn.ReLU(slope_at_zero=slope), nn.ReLU()),
        _one_byte,
        like_torch_at_kinks=slope == 0,
    )


def _leaky(slope: float) -> Layer:
    return _rectifier(
        f"leaky_relu-{slope}",
        "leaky_relu",
        partial(PF.leaky_relu, negative_slope=slope),
        partial(F.leaky_relu, negative_slope=slope),
        _single(partial(rectifiers.leaky_relu_jacobian, negative_slope=slope)),
        lambda: (pnn.LeakyReLU(slope), nn.LeakyReLU(slope)),
        _one_byte,
    )


def _prelu(count: int) -> Layer:
    return _rectifier(
        f"prelu-{count}",
        "prelu",
        PF.prelu,
        F.prelu,
        rectifiers.prelu_jacobian,
        lambda: (pnn.PReLU(count), nn.PReLU(count)),
        _input_itself,
        parameters=((count,),),
        trailing=(3,) if count == 3 else (),
    )


def _hardtanh(low: float, high: float) -> Layer:
    return _rectifier(
        f"hardtanh-{low}-{high}",
        "hardtanh",
        partial(PF.hardtanh, min_val=low, max_val=high),
        partial(F.hardtanh, min_val=low, max_val=high),
        _single(partial(rectifiers.hardtanh_jacobian, min_val=low, max_val=high)),
        lambda: (pnn.Hardtanh(low, high), nn.Hardtanh(low, high)),
        _one_byte,
        kinks=(low, high),
        steady_at_nan=False,
    )


def in_torchs_order(matrix: Tensor, rows: tuple[int, ...], columns: tuple[int, ...]) -> Tensor:
    """A Jacobian between column-major vecs of tensors of these shapes, as one between flattened tensors."""
    back = torch.argsort(vec_permutation(rows)), torch.argsort(vec_permutation(columns))
    return matrix[back[0]][:, back[1]]


def _conv_matrices(words: dict[str, Any]) -> Callable[..., tuple[Tensor, ...]]:
    def matrices(x: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor, ...]:
        samples = x if isinstance(x, Tensor) and x.dim() == 4 else [x]
        parts = [convolution.conv2d_jacobians(sample, weight, *bias, **words) for sample in samples]
        y = F.conv2d(x, weight, *bias, **words)
        sizes = tuple(x.shape[1:]), tuple(weight.shape), (weight.shape[0],)
        by_input, *by_parameters = (
            [in_torchs_order(matrix, tuple(y.shape[1:]), size) for matrix in each]
            for each, size in zip(zip(*parts, strict=True), sizes, strict=False)
        )
        return torch.block_diag(*by_input), *(torch.cat(each) for each in by_parameters)

    return matrices


def _conv(name: str, weight: tuple[int, ...], *, bias: bool = True, backward: str = "kernel", **words: Any) -> Layer:
    module_words = {"in_channels": 3, "out_channels": weight[0], "kernel_size": weight[2:], "bias": bias} | words
    ours = partial(PF.conv2d, backward=backward) if backward != "kernel" else PF.conv2d
    return Layer(
        name,
        convolution,
        "conv2d",
        lambda x, w, b=None: ours(x, w, b, **words),
        lambda x, w, b=None: F.conv2d(x, w, b, **words),
        _conv_matrices(words),
        lambda: (pnn.Conv2d(**module_words), nn.Conv2d(**module_words)),
        _input_itself,
        parameters=(weight, weight[:1]) if bias else (weight,),
        small_shape=(2, 3, 3, 2),
        trailing=(3, 3, 3),
    )


def _linear_matrices(x: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor, ...]:
    rows = x.reshape(-1, weight.shape[1]) if isinstance(x, Tensor) else [x]
    parts = [convolution.linear_jacobians(row, weight, *bias) for row in rows]
    by_input, *by_parameters = zip(*parts, strict=True)
    sizes = tuple(weight.shape), (weight.shape[0],)
    return torch.block_diag(*by_input), *(
        torch.cat([in_torchs_order(matrix, (weight.shape[0],), size) for matrix in each])
        for each, size in zip(by_parameters, sizes, strict=False)
    )


def _linear(bias: bool) -> Layer:
    return Layer(
        f"linear-{bias}",
        convolution,
        "linear",
        PF.linear,
        F.linear,
        _linear_matrices,
        lambda: (pnn.Linear(5, 4, bias=bias), nn.Linear(5, 4, bias=bias)),
        _input_itself,
        parameters=((4, 5), (4,)) if bias else ((4, 5),),
        small_shape=(2, 1, 2, 5),
        trailing=(5,),
        empty=((0, 5), (2, 0, 5)),
    )


def _pool_matrix(layer: Callable[..., Tensor], matrix: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor]]:
    return lambda x: (in_torchs_order(matrix(x).to_dense(), tuple(layer(x).shape), tuple(x.shape)),)


def _max_pool(name: str, *, overlap: bool, **words: Any) -> Layer:
    return Layer(
        name,
        pooling,
        "max_pool2d",
        partial(PF.max_pool2d, **words),
        partial(F.max_pool2d, **words),
        _pool_matrix(partial(PF.max_pool2d, **words), partial(pooling.selection_matrix, **words)),
        lambda: (pnn.MaxPool2d(**words), nn.MaxPool2d(**words)),
        _one_byte,
        ties=True,
        same_half_gradients=not overlap,
        small_shape=(2, 3, 3, 2),
        trailing=(3, 4, 5),
    )


def _avg_pool(name: str, **words: Any) -> Layer:
    return Layer(
        name,
        pooling,
        "avg_pool2d",
        partial(PF.avg_pool2d, **words),
        partial(F.avg_pool2d, **words),
        _pool_matrix(
            partial(PF.avg_pool2d, **words), lambda x: pooling.averaging_matrix(x.shape, **words, dtype=x.dtype)
        ),
        lambda: (pnn.AvgPool2d(**words), nn.AvgPool2d(**words)),
        _nothing,
        entry_error=1.0,
        small_shape=(2, 3, 3, 2),
        trailing=(3, 4, 5),
    )


def _groups_of_torch(product: Callable[..., Tensor], pieces: int) -> Callable[..., Tensor]:
    """torch's product, and the largest of each group of ``pieces`` neighbours in the dimension that it made."""
    dim = -1 if product is F.linear else -3
    return lambda x, *parameters: product(x, *parameters).unflatten(dim, (-1, pieces)).max(dim).values


class _MaxoutOfTorch(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return _groups_of_torch(F.linear, 3)(x, self.weight, self.bias)


class _Maxout2dOfTorch(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return _groups_of_torch(super().forward, 2)(x)


def _maxout_matrices(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    rows = x.reshape(-1, weight.shape[1]) if isinstance(x, Tensor) else [x]
    by_input, *by_parameters = zip(*(maxout.maxout_jacobians(row, weight, bias, 3) for row in rows), strict=True)
    return torch.block_diag(*by_input), *(torch.cat(each) for each in by_parameters)


def _maxout2d_matrices(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """The rows of the convolution's Jacobians that belong to the winners."""
    z = PF.conv2d(x, weight, bias)
    winner = z.unflatten(1, (-1, 2)).max(2, keepdim=True).indices
    chosen = torch.zeros_like(z.unflatten(1, (-1, 2)), dtype=torch.bool).scatter(2, winner, True)
    # a group's two members stand in rows that are an image apart, and the kept ones come in the order of the outputs
    place = torch.arange(z.numel()).reshape(z.shape).unflatten(1, (-1, 2)).gather(2, winner).flatten()
    assert chosen.flatten()[place].all()
    return tuple(matrix[place] for matrix in _conv_matrices({})(x, weight, bias))


def _rows(matrix: Callable[[Tensor], Tensor], dim: int) -> Callable[[Tensor], tuple[Tensor]]:
    """The Jacobian of what is done to each row along ``dim``, from that of one row; numerator layout, torch's order."""

    def whole(x: Tensor) -> tuple[Tensor]:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return (matrix(x),)
        rows = x.movedim(dim, -1)
        blocks = [matrix(row).reshape(-1, len(row)) for row in rows.reshape(-1, rows.shape[-1])]
        columns = torch.arange(x.numel(), device=x.device).reshape(x.shape).movedim(dim, -1).flatten()
        outputs = len(blocks[0])
        order = torch.arange(len(blocks) * outputs, device=x.device)
        if outputs > 1:
            order = columns  # an output for each input, at its place
        jacobian = x.new_zeros(len(order), x.numel())
        jacobian[order[:, None], columns] = torch.block_diag(*blocks)
        return (jacobian,)

    return whole


def _smooth(name: str, module: ModuleType, function_name: str, *row: Any, **words: Any) -> Layer:
    settings = {
        "rounding": 16.0,
        "entry_error": 16.0,
        "affine_between_kinks": False,
        "small_shape": (2, 3, 2, 2),
    } | words
    return Layer(name, module, function_name, *row, **settings)


def _lse(dim: int, temperature: float) -> Layer:
    return _smooth(
        f"logsumexp-{dim}-{temperature}",
        logsumexp,
        "logsumexp",
        partial(PF.logsumexp, dim=dim, temperature=temperature),
        partial(_shifted_lse, dim=dim, temperature=temperature),
        _rows(partial(logsumexp.logsumexp_jacobian, temperature=temperature), dim),
        lambda: (pnn.LogSumExp(dim, temperature=temperature), None),
        _input_itself,
        trailing=(4,),
    )


def _softmax(dim: int, temperature: float) -> Layer:
    return _smooth(
        f"softmax-{dim}-{temperature}",
        logsumexp,
        "softmax",
        partial(PF.softmax, dim=dim, temperature=temperature),
        lambda x: torch.softmax(temperature * x, dim),
        _rows(lambda x: logsumexp.logsumexp_hessian(x, temperature), dim),
        lambda: (pnn.Softmax(dim, temperature=temperature), None),
        lambda x, y: y.numel() * y.element_size(),
        trailing=(4,),
    )


def _square_windows(x: Tensor, size: int, stride: int, padding: int, outside: float) -> Tensor:
    """A copy of each window, flattened, at the end."""
    return F.pad(x, [padding] * 4, value=outside).unfold(-2, size, stride).unfold(-2, size, stride).flatten(-2)


def _shifted_lse(rows: Tensor, dim: int, temperature: float) -> Tensor:
    """LogSumExp whose gradient is accurate; that of torch's function is off where numbers are large beside 1 / t."""
    top = rows.detach().amax(dim, keepdim=True)
    return (top + (temperature * (rows - top)).exp().sum(dim, keepdim=True).log() / temperature).squeeze(dim)


def _unfolded_lse(x: Tensor, temperature: float, **words: int) -> Tensor:
    return _shifted_lse(_square_windows(x, outside=-math.inf, **words), -1, temperature)


def _lse_pool_matrix(x: Tensor, temperature: float, **words: int) -> tuple[Tensor]:
    """A row for each window: the softmax of its pixels, at their places."""
    check_floating("input", x)
    weights = logsumexp.logsumexp_jacobian(_square_windows(x, outside=-math.inf, **words), temperature).flatten(0, -2)
    numbers = torch.arange(1.0, x.numel() + 1, device=x.device).reshape(x.shape)  # 0 is for the padding
    places = _square_windows(numbers, outside=0.0, **words).flatten(0, -2).long()
    return (x.new_zeros(len(places), x.numel() + 1).scatter_add(1, places, weights)[:, 1:],)


def _lse_pool(name: str, temperature: float, size: int, stride: int, padding: int) -> Layer:
    words = {"kernel_size": size, "stride": stride, "padding": padding, "temperature": temperature}
    window = {"temperature": temperature, "size": size, "stride": stride, "padding": padding}
    return _smooth(
        name,
        logsumexp,
        "lse_pool2d",
        partial(PF.lse_pool2d, **words),
        partial(_unfolded_lse, **window),
        partial(_lse_pool_matrix, **window),
        lambda: (pnn.LSEPool2d(**words), None),
        _input_itself,
        laid_out_like=partial(F.max_pool2d, kernel_size=size, stride=stride, padding=padding),
        small_shape=(2, 3, 3, 2),
        trailing=(3, 4, 5),
    )


def _expected_index(x: Tensor, temperature: float) -> Tensor:
    return (torch.softmax(temperature * x, -1) * torch.arange(x.shape[-1]).to(x)).sum(-1)


def _places(x: Tensor) -> Tensor:
    """Row and column of each pixel, ``(H * W, 2)``."""
    return torch.cartesian_prod(*(torch.arange(size, device=x.device) for size in x.shape[-2:])).to(x.dtype)


def _expected_place(x: Tensor, temperature: float) -> Tensor:
    return (torch.softmax(temperature * x.flatten(-2), -1)[..., None] * _places(x)).sum(-2)


def _expected_place_matrix(x: Tensor, temperature: float) -> tuple[Tensor]:
    """For each image two rows: t p (i - s), with the row and with the column of a pixel as i."""
    check_floating("input", x)
    places = _places(x).T
    p = logsumexp.logsumexp_jacobian(x.flatten(-2), temperature)
    means = (p * places).sum(-1, keepdim=True)
    return (torch.block_diag(*(temperature * p * (places - means)).flatten(0, -3)),)


LAYERS = [
    _relu(0.0),
    _relu(0.5),
    _relu(1.0),
    _leaky(0.01),
    _leaky(-0.5),
    _prelu(1),
    _prelu(3),
    _rectifier(
        "absolute",
        "absolute",
        PF.absolute,
        torch.abs,
        _single(rectifiers.absolute_jacobian),
        lambda: (pnn.Absolute(), None),
        _one_byte,
    ),
    _hardtanh(-1.0, 1.0),
    _hardtanh(-0.1, 0.7),  # numbers that bfloat16 rounds
    _conv("conv2d", (4, 3, 2, 2)),
    _conv("conv2d-words", (6, 1, 2, 3), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=3),
    _conv("conv2d-same", (2, 3, 2, 3), bias=False, padding="same", dilation=(1, 2)),
    _linear(True),
    _linear(False),
    _max_pool("max_pool2d", kernel_size=2, overlap=False),
    _max_pool(
        "max_pool2d-words",
        kernel_size=(2, 1),
        stride=(4, 2),
        padding=(1, 0),
        dilation=(3, 1),
        ceil_mode=True,
        overlap=False,
    ),
    _max_pool("max_pool2d-overlap", kernel_size=3, stride=1, padding=1, overlap=True),
    _avg_pool("avg_pool2d", kernel_size=2),
    _avg_pool("avg_pool2d-words", kernel_size=3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    _avg_pool("avg_pool2d-divisor", kernel_size=(2, 3), stride=1, padding=(0, 1), divisor_override=5),
    Layer(
        "maxout",
        maxout,
        "maxout",
        partial(PF.maxout, pieces=3),
        _groups_of_torch(F.linear, 3),
        _maxout_matrices,
        lambda: (pnn.Maxout(5, 2, 3), _MaxoutOfTorch(5, 6)),
        lambda x, y: _input_itself(x, y) + _one_byte(x, y),
        parameters=((6, 5), (6,)),
        small_shape=(2, 1, 2, 5),
        trailing=(5,),
        empty=((0, 5), (2, 0, 5)),
    ),
    Layer(
        "maxout2d",
        maxout,
        "maxout2d",
        partial(PF.maxout2d, pieces=2),
        _groups_of_torch(F.conv2d, 2),
        _maxout2d_matrices,
        lambda: (pnn.Maxout2d(3, 2, 2, pieces=2), _Maxout2dOfTorch(3, 4, 2)),
        lambda x, y: _input_itself(x, y) + _one_byte(x, y),
        parameters=((4, 3, 2, 2), (4,)),
        small_shape=(2, 3, 3, 2),
        trailing=(3, 3, 3),
    ),
    _lse(-1, 1.0),
    _lse(1, 3.0),
    _softmax(-1, 1.0),
    _softmax(1, 0.5),
    _lse_pool("lse_pool2d", 1.0, 2, 2, 0),
    _lse_pool("lse_pool2d-overlap", 4.0, 3, 1, 1),
    _smooth(
        "soft_argmax",
        argmax,
        "soft_argmax",
        partial(PF.soft_argmax, temperature=2.0),
        partial(_expected_index, temperature=2.0),
        _rows(partial(argmax.soft_argmax_jacobian, temperature=2.0), -1),
        lambda: (pnn.SoftArgmax(temperature=2.0), None),
        _input_itself,
    ),
    _smooth(
        "soft_argmax-joint",
        argmax,
        "soft_argmax",
        partial(PF.soft_argmax, dim=(-2, -1), temperature=2.0),
        partial(_expected_place, temperature=2.0),
        partial(_expected_place_matrix, temperature=2.0),
        lambda: (pnn.SoftArgmax((-2, -1), temperature=2.0), None),
        _input_itself,
        trailing=(3, 4, 5),
    ),
    _smooth(
        "straight_through_argmax",
        argmax,
        "straight_through_argmax",
        partial(PF.straight_through_argmax, temperature=0.5),
        lambda x: (F.one_hot(x.argmax(-1), x.shape[-1]) - (p := torch.softmax(0.5 * x, -1))).detach() + p,
        _rows(lambda x: logsumexp.logsumexp_hessian(x, 0.5), -1),
        lambda: (pnn.StraightThroughArgmax(temperature=0.5), None),
        _input_itself,
        has_derivative=False,
    ),
]

each_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
each_device = pytest.mark.parametrize("device", DEVICES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


# --- what the tests share -------------------------------------------------------------------------


def parameters_of(layer: Layer, like: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.linspace(0.25, 0.75, math.prod(shape)).reshape(shape).to(like) for shape in layer.parameters)


def sample(
    layer: Layer,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    *,
    kinks: bool = True,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Random numbers at least 0.1 away from every kink, and on request a few exactly at the kinks."""
    generator = torch.Generator().manual_seed(0)
    x = 1.5 * torch.randn(shape or layer.shape, generator=generator, dtype=torch.float64)
    for kink in layer.kinks:
        x = torch.where((x - kink).abs() < 0.1, kink + 0.15, x)
    if kinks:
        some = x.view(-1)[::7][: 2 * len(layer.kinks)]
        some.copy_(torch.tensor(layer.kinks * 2, dtype=torch.float64)[: len(some)])
    if kinks and layer.ties:
        x = x.round()
    return x.to(device, dtype)


def cosines(layer: Layer, like: Tensor) -> Tensor:
    """An upstream gradient for the output ``like``, in its layout."""
    return torch.empty_like(like).copy_(torch.arange(like.numel()).cos().reshape(like.shape))


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


def assert_near_torch(layer: Layer, x: Tensor, upstream: Tensor) -> None:
    """Against torch's functions in float64, so that their own rounding in half precision does not count."""
    ours, (ours_back,) = value_and_gradients(layer.ours, x, (), upstream)
    theirs, (theirs_back,) = value_and_gradients(layer.theirs, x.double(), (), upstream)
    assert (ours.dtype, ours_back.dtype) == (layer.theirs(x).dtype, x.dtype)
    for value, wanted, dtype in ((ours, theirs, ours.dtype), (ours_back, theirs_back, x.dtype)):
        assert value.shape == wanted.shape
        allowed = (
            layer.rounding
            * torch.finfo(dtype).eps
            * max(1.0, *(float(t.abs().max()) for t in (x, upstream, wanted) if t.numel()))
        )
        assert ((value.double() - wanted).abs() <= allowed).all()


def assert_like_torch(layer: Layer, x: Tensor, upstream: Tensor) -> None:
    if layer.rounding:
        return assert_near_torch(layer, x, upstream)
    parameters = parameters_of(layer, x)
    ours, our_gradients = value_and_gradients(layer.ours, x, parameters, upstream)
    theirs, their_gradients = value_and_gradients(layer.theirs, x, parameters, upstream)
    assert same_bits(ours, theirs)
    by_input, *by_parameters = zip(our_gradients, their_gradients, strict=True)
    judged = torch.ones_like(x, dtype=torch.bool)
    if not layer.like_torch_at_kinks:
        judged &= torch.stack([x != kink for kink in layer.kinks]).all(0) & ~x.isnan()
    if not layer.steady_at_nan:
        judged &= ~x.isnan()
    if not layer.same_half_gradients and x.dtype in (torch.float16, torch.bfloat16):
        judged[...] = False
    assert same_bits(by_input[0][judged], by_input[1][judged])
    assert all(same_bits(a, b) for a, b in by_parameters)


# --- value and gradient ---------------------------------------------------------------------------


@each_layer
@each_dtype
@each_device
def test_equals_torch_on_every_dtype(layer: Layer, dtype: torch.dtype, device: str) -> None:
    x = sample(layer, dtype, device)
    y = layer.theirs(x, *parameters_of(layer, x))
    assert_like_torch(layer, x, torch.linspace(-2, 2, y.numel()).reshape(y.shape).to(y))


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
    columns = torch.tensor([*pairs, (1.0, 1.0)], dtype=torch.float64)
    if layer.rounding:  # torch has no float64 to stand beside here: what infinities and NaN give has tests of its own
        columns = columns.nan_to_num(1.0).clamp(-10, 10)
    columns = columns.to(dtype)
    kinks = torch.tensor(layer.kinks, dtype=dtype)
    x = torch.cat([columns[:, 0], kinks, -kinks, torch.nextafter(kinks, kinks + 1), torch.nextafter(kinks, kinks - 1)])
    upstream = torch.cat(
        [columns[:, 1], torch.tensor([-3.0, math.inf, math.nan, -0.0], dtype=dtype).repeat(len(kinks))]
    )
    size = math.prod(layer.trailing)
    x = x.repeat(-(-size // max(len(x), 1)))
    x = x[: len(x) // size * size].reshape(-1, *layer.trailing)[::step]
    y = layer.theirs(x, *parameters_of(layer, x))
    assert_like_torch(layer, x, upstream.repeat(-(-y.numel() // len(upstream)))[: y.numel()].reshape(y.shape))


@each_layer
@each_device
def test_equals_its_matrix_at_kinks_too(layer: Layer, device: str) -> None:
    x = sample(layer, device=device)
    inputs = (x, *parameters_of(layer, x))
    upstream = torch.randn(layer.ours(*inputs).shape, dtype=x.dtype, device=device)
    for index, matrix in enumerate(layer.matrices(*inputs)):
        _, back = vjp(lambda tensor, i=index: layer.ours(*inputs[:i], tensor, *inputs[i + 1 :]), inputs[index])
        # A sum of k products may be off by k units in the last place of the sum of their sizes, in any order.
        terms = (matrix != 0).sum(0) * torch.finfo(x.dtype).eps
        bound = terms * (matrix.T.abs() @ upstream.flatten().abs())
        bound += layer.entry_error * torch.finfo(x.dtype).eps * upstream.abs().sum()
        assert ((back(upstream)[0].flatten() - matrix.T @ upstream.flatten()).abs() <= bound).all()


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer.has_derivative], ids=lambda layer: layer.name)
@each_device
def test_gradcheck_in_every_mode_of_differentiation(layer: Layer, device: str) -> None:
    x = sample(layer, device=device, kinks=False, shape=layer.small_shape)
    inputs = tuple(tensor.requires_grad_() for tensor in (x, *parameters_of(layer, x)))
    assert torch.autograd.gradcheck(
        layer.ours, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(
        layer.ours, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True
    )


@each_layer
def test_forward_mode_nested_in_forward_mode_is_refused_since_torch_drops_a_part_of_it(layer: Layer) -> None:
    x = sample(layer, shape=(1, *layer.small_shape[1:]))
    parameters = parameters_of(layer, x)
    f = lambda x: layer.ours(x * x, *parameters).pow(2).sum()
    with pytest.raises(NotImplementedError, match="use reverse mode for one of the two"):
        jacfwd(jacfwd(f))(x)
    torch.testing.assert_close(hessian(f)(x), jacrev(jacrev(f))(x))


@each_layer
def test_torch_func_gives_the_matrix(layer: Layer) -> None:
    x = sample(layer, shape=layer.small_shape)
    parameters = parameters_of(layer, x)
    wanted = layer.matrices(x, *parameters)[0]
    m, n = wanted.shape
    close = partial(torch.testing.assert_close, rtol=0, atol=layer.entry_error * torch.finfo(x.dtype).eps)
    near = partial(torch.testing.assert_close, rtol=0, atol=2e-14)
    f = lambda x: layer.ours(x, *parameters)
    close(jacrev(f)(x).reshape(m, n), wanted)
    close(jacfwd(f)(x).reshape(m, n), wanted)
    tangent, upstream = torch.randn_like(x), torch.randn_like(f(x))
    near(jvp(f, (x,), (tangent,))[1].flatten(), wanted @ tangent.flatten())
    # a vmapped function, and its derivatives: inside, no tensor tells that one is wanted
    stack = torch.stack([x, 2 * x])
    near(vmap(f)(stack), torch.stack([f(x), f(2 * x)]))
    near(vmap(jacrev(f))(stack)[0].reshape(m, n), wanted)
    near(jvp(vmap(f), (x[None],), (tangent[None],))[1].flatten(), wanted @ tangent.flatten())
    near(vjp(vmap(f), x[None])[1](upstream[None])[0].flatten(), wanted.T @ upstream.flatten())
    if layer.per_sample:
        row = lambda row: f(row[None])[0]
        near(vmap(row)(x), f(x))
        near(vjp(vmap(row), x)[1](upstream)[0].flatten(), wanted.T @ upstream.flatten())
        near(torch.block_diag(*vmap(jacrev(row))(x).reshape(len(x), m // len(x), n // len(x))), wanted)
    energy = lambda f: lambda x: f(x).square().sum() / 2
    second = hessian(energy(f))(x).reshape(n, n)
    if layer.affine_between_kinks:  # the Hessian of |f|^2 / 2 has the matrix alone
        torch.testing.assert_close(second, wanted.T @ wanted, rtol=1e-14, atol=1e-14)
    else:
        theirs = hessian(energy(lambda x: layer.theirs(x, *parameters)))(x).reshape(n, n)
        torch.testing.assert_close(second, theirs, rtol=1e-12, atol=1e-14)


@each_layer
def test_forward_mode_without_torch_func(layer: Layer) -> None:
    x = sample(layer)
    parameters = parameters_of(layer, x)
    tangent = torch.randn_like(x)
    with torch.no_grad(), forward_ad.dual_level():
        y = forward_ad.unpack_dual(layer.ours(forward_ad.make_dual(x, tangent), *parameters))
    wanted = layer.matrices(x, *parameters)[0] @ tangent.flatten()
    torch.testing.assert_close(y.tangent.flatten(), wanted, rtol=0, atol=2e-14)


# --- shapes and layouts ---------------------------------------------------------------------------


@each_layer
@each_device
def test_empty(layer: Layer, device: str) -> None:
    for shape in layer.empty:
        x = torch.empty(shape, device=device)
        wanted = layer.theirs(x, *parameters_of(layer, x))
        y, gradients = value_and_gradients(layer.ours, x, parameters_of(layer, x), torch.zeros(wanted.shape))
        assert same_bits(y, wanted)
        assert gradients[0].shape == shape
        assert all(not gradient.any() for gradient in gradients)


@each_layer
@each_device
def test_layouts_are_kept(layer: Layer, device: str) -> None:
    x = sample(layer, torch.float32, device, shape=(2, 3, 5, 5))
    parameters = parameters_of(layer, x)
    last = x.contiguous(memory_format=torch.channels_last)
    for view in (last, x.transpose(2, 3), x.repeat(1, 1, 1, 2)[..., ::2], x.expand(2, *x.shape)[:, 0], x.flip(0)):
        upstream = cosines(layer, layer.theirs(view, *parameters))
        assert_like_torch(layer, view, upstream)
        like = layer.laid_out_like or layer.theirs
        ours, theirs = (value_and_gradients(f, view, parameters, upstream) for f in (layer.ours, like))
        assert ours[0].stride() == theirs[0].stride()
        if view is last and not layer.rounding:  # over one dimension torch's smooth functions keep it, over another not
            assert ours[1][0].stride() == theirs[1][0].stride()


@pytest.mark.parametrize(
    "layer",
    [layer for layer in LAYERS if layer.elementwise and not layer.trailing],
    ids=lambda layer: layer.name,
)
def test_scalar(layer: Layer) -> None:
    x = torch.tensor(-0.5)
    assert_like_torch(layer, x, torch.tensor(2.0))


@each_layer
def test_on_the_meta_device_it_has_torchs_shape(layer: Layer) -> None:
    x = sample(layer, torch.float32).to("meta")
    parameters = parameters_of(layer, x)
    ours, theirs = layer.ours(x.requires_grad_(), *parameters), layer.theirs(x, *parameters)
    assert ours.device.type == "meta"
    assert ours.shape == theirs.shape


# --- the rest of torch ----------------------------------------------------------------------------


def _all_at_once(layers: list[Layer], inputs: list[tuple[Tensor, ...]]) -> list[Tensor]:
    return [layer.ours(*each) for layer, each in zip(layers, inputs, strict=True)]


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
    # Machine code takes a while to make: it is made of one row for each function.
    layers = LAYERS if backend == "aot_eager" else list({layer.function_name: layer for layer in LAYERS}.values())
    eager = partial(_all_at_once, layers)
    # Scalar code is made in two thirds of the time of vector code, and of the same graphs.
    options = {"cpp.simdlen": 1} if backend == "inductor" else None
    compiled = torch.compile(eager, fullgraph=True, backend=backend, options=options)
    results = []
    for function in (compiled, eager):
        inputs = [
            tuple(tensor.requires_grad_() for tensor in (x, *parameters_of(layer, x)))
            for layer in layers
            for x in [sample(layer, torch.float32)]
        ]
        values = function(inputs)
        torch.autograd.backward([y.sum() for y in values])
        results.append([*values, *(tensor.grad for each in inputs for tensor in each)])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted)


@each_layer
@each_device
@each_dtype
def test_autocast_as_torch(layer: Layer, device: str, dtype: torch.dtype) -> None:
    x = sample(layer, dtype, device)
    parameters = parameters_of(layer, x)
    with torch.autocast(device, torch.bfloat16):
        assert_like_torch(layer, x, torch.ones_like(layer.theirs(x, *parameters)))
        if (
            dtype == torch.float32 and not layer.rounding
        ):  # a module's weight stays in float32 while its input arrives in bfloat16
            assert same_bits(layer.ours(x.bfloat16(), *parameters), layer.theirs(x.bfloat16(), *parameters))


@each_layer
@each_device
def test_deterministic(layer: Layer, device: str) -> None:
    x = sample(layer, torch.float32, device)
    torch.use_deterministic_algorithms(True)
    try:
        parameters = parameters_of(layer, x)
        upstream = cosines(layer, layer.ours(x, *parameters))
        runs = [value_and_gradients(layer.ours, x, parameters, upstream) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert same_bits(runs[0][0], runs[1][0])
    assert all(same_bits(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


@each_layer
@each_dtype
def test_saved_for_backward(layer: Layer, dtype: torch.dtype) -> None:
    x = sample(layer, dtype, shape=(8, *layer.shape[1:])).requires_grad_()
    parameters = parameters_of(layer, x)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel() * t.element_size()) or t, lambda t: t
    ):
        y = layer.ours(x, *parameters)
    allowed = layer.saved(x, y) + sum(p.numel() * p.element_size() for p in parameters)
    assert sum(sizes) <= allowed
    assert sizes or not allowed


@each_layer
def test_saves_nothing_where_no_derivative_is_wanted(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    x = sample(layer)
    parameters = parameters_of(layer, x)
    wanted = layer.ours(x.clone().requires_grad_(), *parameters)
    monkeypatch.setattr(layer.module, "pick", None)  # any use of autograd.Function would fail
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
        layer.call(module, x)
    assert layer.function_name in watch.names
    assert set(watch.names) <= {layer.function_name, "__get__"}


class _Tagged(Tensor):
    """A subclass, as users write them."""


class _Called(nn.Module):
    """A model with one layer."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


@each_layer
def test_subclasses_and_fx_see_one_call(layer: Layer) -> None:
    x = sample(layer, torch.float32)
    assert type(layer.ours(x.as_subclass(_Tagged), *parameters_of(layer, x))) is _Tagged
    net = _Called(layer.modules()[0], layer.call)
    traced = torch.fx.symbolic_trace(net)
    calls = [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"]
    assert calls == [layer.function_name]
    assert same_bits(traced(x).detach(), net(x).detach())


# --- the module -----------------------------------------------------------------------------------


@each_layer
def test_module_is_the_function_and_changes_places_with_torchs(layer: Layer) -> None:
    ours, theirs = layer.modules()
    x = sample(layer, torch.float32)
    assert same_bits(layer.call(ours, x).detach(), layer.ours(x, *ours.parameters()).detach())
    if theirs is None:
        assert not ours.state_dict()
        return
    for parameter in ours.parameters():
        nn.init.uniform_(parameter, 0, 1)
    theirs.load_state_dict(ours.state_dict())
    assert same_bits(layer.call(theirs, x).detach(), layer.call(ours, x).detach())
    for parameter in theirs.parameters():
        nn.init.uniform_(parameter, 0, 1)
    ours.load_state_dict(theirs.state_dict())
    assert same_bits(layer.call(theirs, x).detach(), layer.call(ours, x).detach())
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
        assert same_bits(layer.call(twin, x).detach(), layer.call(module, x).detach())


@pytest.fixture
def process_group(tmp_path: Path) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class _SideBySide(nn.Module):
    """Every layer, fed by one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.layers = nn.ModuleList(layer.modules()[0] for layer in LAYERS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return sum(row.call(layer, h).square().sum() for row, layer in zip(LAYERS, self.layers, strict=True))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_distributed_gradients(process_group: None) -> None:
    net = _SideBySide()
    x = sample(LAYERS[0], torch.float32)
    net(x).backward()
    wanted = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    DistributedDataParallel(net)(x).backward()
    assert all(same_bits(parameter.grad, grad) for parameter, grad in zip(net.parameters(), wanted, strict=True))


# --- bad input ------------------------------------------------------------------------------------


@each_layer
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_other_dtypes_are_refused(layer: Layer, dtype: torch.dtype) -> None:
    x = torch.ones(layer.shape, dtype=dtype)
    parameters = parameters_of(layer, torch.ones(1))
    with pytest.raises(TypeError, match=rf"input must be floating point, got {dtype}"):
        layer.ours(x, *parameters)
    with pytest.raises(TypeError, match=r"(input|dtype) must be floating point"):
        layer.matrices(x, *parameters)


@each_layer
def test_what_is_no_tensor_is_refused(layer: Layer) -> None:
    with pytest.raises(TypeError, match="input must be a torch tensor, got list"):
        layer.ours([1.0], *parameters_of(layer, torch.ones(1)))
