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

# name: (ours, torch's), functions of the input and, for prelu, of a weight
LAYERS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "relu": (PF.relu, F.relu),
    "leaky_relu": (PF.leaky_relu, F.leaky_relu),
    "prelu": (PF.prelu, F.prelu),
    "absolute": (PF.absolute, torch.abs),
    "hardtanh": (PF.hardtanh, F.hardtanh),
}
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
    return lambda: torch.autograd.grad(function(*inputs), inputs, upstream)


def saved_bytes(function: Callable[..., Tensor], inputs: list[Tensor]) -> dict[str, float]:
    """Bytes an element kept for the backward pass: all, and those that neither the input nor the output holds anyway."""
    kept: dict[int, tuple[int, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.element_size()
        kept[tensor.untyped_storage().data_ptr()] = (size, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = function(*inputs)
    n = inputs[0].numel()
    ends = {tensor.untyped_storage().data_ptr() for tensor in (*inputs, y)}
    large = {key: size for key, (size, count) in kept.items() if count == n}
    return {
        "all": sum(large.values()) / n,
        "beyond_input_and_output": sum(size for key, size in large.items() if key not in ends) / n,
    }


def rounded(number: float) -> float:
    return float(f"{number:.4g}")


def measure_layers(device: str, alternations: int, bar: tqdm[Any]) -> list[dict[str, Any]]:
    rows = []
    for name, peers in LAYERS.items():
        for n in SIZES:
            x = torch.randn(n, device=device, requires_grad=True)
            inputs = [x, torch.full((1,), WEIGHT, device=device, requires_grad=True)] if name == "prelu" else [x]
            upstream = torch.randn(n, device=device)
            named = dict(zip(("ours", "torch"), peers, strict=True))
            row: dict[str, Any] = {"layer": name, "elements": n}
            for mode, prepare in (
                ("forward", forward),
                ("forward_backward", partial(forward_backward, upstream=upstream)),
            ):
                seconds = medians({who: prepare(f, inputs) for who, f in named.items()}, alternations, device)
                row[mode] = {
                    "ours_us": rounded(seconds["ours"] * 1e6),
                    "torch_us": rounded(seconds["torch"] * 1e6),
                    "ratio": rounded(seconds["ours"] / seconds["torch"]),
                }
                bar.update()
            row["saved_bytes_per_element"] = {who: saved_bytes(f, inputs) for who, f in named.items()}
            rows.append(row)
    return rows


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
        with tqdm(total=2 * len(SIZES) * (len(LAYERS) + 1), desc=f"layers on {device}") as bar:
            results = {
                "date": datetime.date.today().isoformat(),
                "machine": machine(device),
                "dtype": "float32",
                "alternations": arguments.alternations,
                "layers": measure_layers(device, arguments.alternations, bar),
                "activations": measure_activations(device, arguments.alternations, bar),
            }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"bench_layers-{device}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
