"""Our layers beside torch's, and ReLU beside the smooth activations: time, and bytes kept for the backward pass.

    python benchmarks/bench_layers.py [--device cpu] [--alternations 30] [--threads 1]

The peers take turns in one process, and each ratio is that of the medians, so that a slow minute of the machine hits both.
On the CPU one thread is the default, and its CPU time is taken: on a machine with other work, several threads wait for
one another, and a clock on the wall measures the neighbours. With more threads, and on a GPU, it is the clock on the wall.
The results go to benchmarks/results/bench_layers-<device>.json, from which the book takes its numbers.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import pwl_lib.functional as PF

SIZES = [10**3, 10**4, 10**5, 10**6, 10**7]
RESULTS = Path(__file__).parent / "results"
WEIGHT = 0.25


def _with_classes(function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x, torch.arange(len(x), device=x.device) % x.shape[1])


# name: (ours, torch's), functions of the input and, for prelu, of a weight
LAYERS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "relu": (PF.relu, F.relu),
    "leaky_relu": (PF.leaky_relu, F.leaky_relu),
    "prelu": (PF.prelu, F.prelu),
    "absolute": (PF.absolute, torch.abs),
    "hardtanh": (PF.hardtanh, F.hardtanh),
}


def _largest_of_groups(product: Callable[..., Tensor], pieces: int, dim: int) -> Callable[..., Tensor]:
    """Maxout of torch's functions."""
    return lambda *inputs: product(*inputs).unflatten(dim, (-1, pieces)).max(dim if dim < 0 else dim + 1).values


def _unfolded_lse(kernel_size: int, stride: int, padding: int = 0) -> Callable[[Tensor], Tensor]:
    """LogSumExp pooling of torch's functions, which copies the windows."""

    def pool(x: Tensor) -> Tensor:
        framed = F.pad(x, [padding] * 4, value=-torch.inf)
        return torch.logsumexp(framed.unfold(2, kernel_size, stride).unfold(3, kernel_size, stride), (4, 5))

    return pool


def _one_step(cell: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """A step of an LSTM from the hidden state and the cell, as one tensor."""
    return lambda x, h, c, *parameters: torch.cat(cell(x, (h, c), *parameters), 1)


# What changes the shape. name: (ours, torch's, the shape of the input, the shapes of the parameters). The parameters of a
# name with "frozen" want no gradient, and the input of one with "channels last" has that layout.
BLOCKS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[int, ...], tuple[tuple[int, ...], ...]]] = {
    "conv2d, small": (PF.conv2d, F.conv2d, (1, 1, 28, 28), ((8, 1, 5, 5), (8,))),
    "conv2d, middle": (PF.conv2d, F.conv2d, (8, 16, 32, 32), ((32, 16, 3, 3), (32,))),
    "conv2d, large": (PF.conv2d, F.conv2d, (16, 32, 56, 56), ((64, 32, 3, 3), (64,))),
    "conv2d, middle, frozen": (PF.conv2d, F.conv2d, (8, 16, 32, 32), ((32, 16, 3, 3), (32,))),
    "linear": (PF.linear, F.linear, (64, 784), ((128, 784), (128,))),
    "max_pool2d, 2": (partial(PF.max_pool2d, kernel_size=2), partial(F.max_pool2d, kernel_size=2), (8, 16, 64, 64), ()),
    "max_pool2d, 3, overlapping": (
        partial(PF.max_pool2d, kernel_size=3, stride=2, padding=1),
        partial(F.max_pool2d, kernel_size=3, stride=2, padding=1),
        (8, 16, 64, 64),
        (),
    ),
    "max_pool2d, 2, channels last": (
        partial(PF.max_pool2d, kernel_size=2),
        partial(F.max_pool2d, kernel_size=2),
        (8, 16, 64, 64),
        (),
    ),
    "avg_pool2d, 2": (partial(PF.avg_pool2d, kernel_size=2), partial(F.avg_pool2d, kernel_size=2), (8, 16, 64, 64), ()),
    "maxout, 4 pieces": (
        partial(PF.maxout, pieces=4),
        _largest_of_groups(F.linear, 4, -1),
        (64, 784),
        ((512, 784), (512,)),
    ),
    "maxout2d, 2 pieces": (
        partial(PF.maxout2d, pieces=2),
        _largest_of_groups(F.conv2d, 2, 1),
        (8, 16, 32, 32),
        ((64, 16, 3, 3), (64,)),
    ),
    "logsumexp, 10 numbers": (*(partial(f, dim=1) for f in (PF.logsumexp, torch.logsumexp)), (4096, 10), ()),
    "logsumexp, 1,000 numbers": (*(partial(f, dim=1) for f in (PF.logsumexp, torch.logsumexp)), (1024, 1000), ()),
    "softmax, 1,000 numbers": (*(partial(f, dim=1) for f in (PF.softmax, F.softmax)), (1024, 1000), ()),
    "lse_pool2d, 2": (partial(PF.lse_pool2d, kernel_size=2), _unfolded_lse(2, 2), (8, 16, 64, 64), ()),
    "lse_pool2d, 3, overlapping": (
        partial(PF.lse_pool2d, kernel_size=3, stride=2, padding=1),
        _unfolded_lse(3, 2, 1),
        (8, 16, 64, 64),
        (),
    ),
    # the state before is among the parameters: it wants a gradient as they do
    "rnn_cell": (PF.rnn_cell, torch.rnn_tanh_cell, (64, 128), ((64, 256), (256, 128), (256, 256), (256,), (256,))),
    "lstm_cell": (
        *(_one_step(f) for f in (PF.lstm_cell, torch.lstm_cell)),
        (64, 128),
        ((64, 256), (64, 256), (1024, 128), (1024, 256), (1024,), (1024,)),
    ),
    "l1_loss": (*(lambda x, f=f: f(x, torch.zeros_like(x)) for f in (PF.l1_loss, F.l1_loss)), (10**6,), ()),
    "mse_loss": (*(lambda x, f=f: f(x, torch.zeros_like(x)) for f in (PF.mse_loss, F.mse_loss)), (10**6,), ()),
    "cross_entropy, 10 classes": (*(_with_classes(f) for f in (PF.cross_entropy, F.cross_entropy)), (4096, 10), ()),
    "cross_entropy, 1,000 classes": (*(_with_classes(f) for f in (PF.cross_entropy, F.cross_entropy)), (128, 1000), ()),
}
# The smooth maximum beside the maximum: what it is taken of, our LogSumExp, torch's maximum, the shape of the input.
MAXIMA: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[int, ...]]] = {
    "10 numbers": (partial(PF.logsumexp, dim=1), partial(torch.amax, dim=1), (4096, 10)),
    "1,000 numbers": (partial(PF.logsumexp, dim=1), partial(torch.amax, dim=1), (1024, 1000)),
    "windows of 2×2": (partial(PF.lse_pool2d, kernel_size=2), partial(F.max_pool2d, kernel_size=2), (8, 16, 64, 64)),
    "windows of 3×3": (partial(PF.lse_pool2d, kernel_size=3), partial(F.max_pool2d, kernel_size=3), (8, 16, 64, 64)),
}
# The four ways to the gradient in the input, beside torch's convolution.
FORMS = ("kernel", "fold", "index", "matrix")
FORM_SHAPES = ((8, 8, 16, 16), (16, 8, 3, 3))
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "copy": torch.clone,  # reads and writes as much as an activation, and computes nothing
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
}


def machine(device: str) -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    facts = {
        "cpu": model,
        "architecture": platform.machine(),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "clock": clock_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def clock_name(device: str) -> str:
    return "cpu time" if device == "cpu" and torch.get_num_threads() == 1 else "wall time"


def medians(calls: dict[str, Callable[[], object]], alternations: int, device: str) -> dict[str, float]:
    """Seconds for one call of each, which take turns; a turn repeats short calls until it lasts about a millisecond."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    clock = time.process_time if clock_name(device) == "cpu time" else time.perf_counter
    repeats = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        wait()
        start = clock()
        call()
        wait()
        repeats[name] = max(1, min(200, int(1e-3 / (clock() - start))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(alternations):
        for name, call in calls.items():
            start = clock()
            for _ in range(repeats[name]):
                call()
            wait()
            samples[name].append((clock() - start) / repeats[name])
    return {name: statistics.median(times) for name, times in samples.items()}


def forward(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    inputs = [tensor.detach() for tensor in inputs]
    return lambda: function(*inputs)


def forward_backward(function: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor) -> Callable[[], object]:
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    return lambda: torch.autograd.grad(function(*inputs), wanted, upstream)


def saved_bytes(function: Callable[..., Tensor], inputs: list[Tensor]) -> dict[str, int]:
    """Bytes kept for the backward pass besides the parameters: all, and those that neither the input nor the output holds anyway."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = function(*inputs)
    for parameter in inputs[1:]:
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    ends = {tensor.untyped_storage().data_ptr() for tensor in (inputs[0], y)}
    return {
        "all": sum(kept.values()),
        "beyond_input_and_output": sum(size for key, size in kept.items() if key not in ends),
    }


def rounded(number: float) -> float:
    return float(f"{number:.4g}")


def compare(
    peers: dict[str, Callable[..., Tensor]],
    inputs: list[Tensor],
    upstream: Tensor,
    alternations: int,
    device: str,
    bar: tqdm[Any],
) -> dict[str, dict[str, float]]:
    """Ours beside torch's, the value alone and with its gradients."""
    found = {}
    for mode, prepare in (("forward", forward), ("forward_backward", partial(forward_backward, upstream=upstream))):
        seconds = medians({who: prepare(f, inputs) for who, f in peers.items()}, alternations, device)
        found[mode] = {
            "ours_us": rounded(seconds["ours"] * 1e6),
            "torch_us": rounded(seconds["torch"] * 1e6),
            "ratio": rounded(seconds["ours"] / seconds["torch"]),
        }
        bar.update()
    return found


def measure_layers(device: str, alternations: int, bar: tqdm[Any]) -> list[dict[str, Any]]:
    rows = []
    for name, (ours, theirs) in LAYERS.items():
        peers = {"ours": ours, "torch": theirs}
        for n in SIZES:
            x = torch.randn(n, device=device, requires_grad=True)
            inputs = [x, torch.full((1,), WEIGHT, device=device, requires_grad=True)] if name == "prelu" else [x]
            upstream = torch.randn(n, device=device)
            kept = {who: {what: size / n for what, size in saved_bytes(f, inputs).items()} for who, f in peers.items()}
            rows.append(
                {
                    "layer": name,
                    "elements": n,
                    **compare(peers, inputs, upstream, alternations, device, bar),
                    "saved_bytes_per_element": kept,
                }
            )
    return rows


def measure_blocks(device: str, alternations: int, bar: tqdm[Any]) -> list[dict[str, Any]]:
    rows = []
    for name, (ours, theirs, shape, parameters) in BLOCKS.items():
        peers = {"ours": ours, "torch": theirs}
        layout = torch.channels_last if "channels last" in name else torch.contiguous_format
        x = torch.randn(shape, device=device).contiguous(memory_format=layout).requires_grad_()
        inputs = [x, *(torch.randn(size, device=device, requires_grad="frozen" not in name) for size in parameters)]
        upstream = torch.randn_like(theirs(*inputs))
        rows.append(
            {
                "layer": name,
                "input": list(shape),
                "parameters": [list(size) for size in parameters],
                **compare(peers, inputs, upstream, alternations, device, bar),
                "saved_bytes": {who: saved_bytes(f, inputs) for who, f in peers.items()},
            }
        )
    return rows


def measure_maxima(device: str, alternations: int, bar: tqdm[Any]) -> list[dict[str, Any]]:
    """The smooth maximum, ours, over torch's maximum."""
    rows = []
    for name, (smooth, largest, shape) in MAXIMA.items():
        x = torch.randn(shape, device=device, requires_grad=True)
        upstream = torch.randn_like(largest(x))
        row: dict[str, Any] = {"of": name, "input": list(shape)}
        for mode, prepare in (("forward", forward), ("forward_backward", partial(forward_backward, upstream=upstream))):
            calls = {"smooth": prepare(smooth, [x]), "largest": prepare(largest, [x])}
            seconds = medians(calls, alternations, device)
            row[mode] = {
                **{f"{which}_us": rounded(s * 1e6) for which, s in seconds.items()},
                "ratio": rounded(seconds["smooth"] / seconds["largest"]),
            }
            bar.update()
        rows.append(row)
    return rows


def measure_forms(device: str, alternations: int, bar: tqdm[Any]) -> dict[str, Any]:
    """Each form of the backward pass of a convolution, over torch's convolution."""
    inputs = [torch.randn(size, device=device, requires_grad=True) for size in FORM_SHAPES]
    upstream = torch.randn_like(F.conv2d(*inputs))
    calls = {"torch": F.conv2d, **{form: partial(PF.conv2d, backward=form) for form in FORMS}}
    seconds = medians({name: forward_backward(f, inputs, upstream) for name, f in calls.items()}, alternations, device)
    bar.update()
    return {
        "shapes": [list(shape) for shape in FORM_SHAPES],
        "us": {name: rounded(s * 1e6) for name, s in seconds.items()},
        "over_torch": {name: rounded(seconds[name] / seconds["torch"]) for name in FORMS},
    }


def measure_activations(device: str, alternations: int, bar: tqdm[Any]) -> list[dict[str, Any]]:
    rows = []
    for n in SIZES:
        x, upstream = torch.randn(n, device=device, requires_grad=True), torch.randn(n, device=device)
        row: dict[str, Any] = {"elements": n}
        for mode, prepare in (("forward", forward), ("forward_backward", partial(forward_backward, upstream=upstream))):
            seconds = medians({name: prepare(f, [x]) for name, f in ACTIVATIONS.items()}, alternations, device)
            row[mode] = {
                "us": {name: rounded(s * 1e6) for name, s in seconds.items()},
                "over_relu": {name: rounded(s / seconds["relu"]) for name, s in seconds.items()},
            }
            bar.update()
        # a float32 is read and one is written
        row["relu_forward_gigabytes_per_second"] = rounded(8 * n / row["forward"]["us"]["relu"] / 1e3)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="all that there are by default")
    parser.add_argument("--alternations", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    devices = [arguments.device] if arguments.device else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        steps = 2 * len(SIZES) * (len(LAYERS) + 1) + 2 * len(BLOCKS) + 2 * len(MAXIMA) + 1
        with tqdm(total=steps, desc=f"layers on {device}") as bar:
            results = {
                "date": datetime.date.today().isoformat(),
                "machine": machine(device),
                "dtype": "float32",
                "alternations": arguments.alternations,
                "layers": measure_layers(device, arguments.alternations, bar),
                "blocks": measure_blocks(device, arguments.alternations, bar),
                "maxima": measure_maxima(device, arguments.alternations, bar),
                "forms": measure_forms(device, arguments.alternations, bar),
                "activations": measure_activations(device, arguments.alternations, bar),
            }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"bench_layers-{device}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
