"""What a gradient that is right at kinks costs, beside one of autograd.

    python benchmarks/bench_subgradients.py [--device cpu] [--alternations 25] [--threads 1]

Both are gradients of one output in the input, of nets with torch's own layers and random weights, and take turns in one
process; the ratio is that of the medians, as in bench_layers.py, whose clock this is. With ties means: images that are
blank but for a square in the middle, and convolutions without bias, so that most pre-activations are exactly 0.
The results go to benchmarks/results/bench_subgradients-<device>.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable
from typing import Any

import torch
from bench_layers import RESULTS, machine, medians, rounded
from torch import Tensor, nn
from tqdm import tqdm

from pwl_lib.subgradients import limiting_gradient


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def convolutional() -> nn.Module:
    trunk: list[nn.Module] = []
    for channels, out in ((3, 32), (32, 64)):
        trunk += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*trunk, nn.Flatten(), nn.Linear(64 * 64, 10))


def blank(batch: int, *shape: int) -> Tensor:
    x = torch.zeros(batch, *shape)
    x[..., 12:20, 12:20] = torch.randn(batch, shape[0], 8, 8)
    return x


CASES: list[tuple[str, Callable[[], nn.Module], Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = [
    ("784-512-512-10", dense, torch.randn, (784,), (1, 32, 128, 512)),
    ("two convolutions and poolings", convolutional, torch.randn, (3, 32, 32), (1, 16, 64)),
    ("two convolutions and poolings, with ties", convolutional, blank, (3, 32, 32), (1, 16, 64)),
]


def by_autograd(net: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)[0]


def measure(device: str, alternations: int) -> list[dict[str, Any]]:
    rows = []
    for name, make, draw, shape, batches in tqdm(CASES, desc=f"limiting gradients on {device}"):
        torch.manual_seed(0)
        net = make().to(device)
        for batch in batches:
            x = draw(batch, *shape).to(device)
            calls = {
                "autograd": lambda net=net, x=x: by_autograd(net, x),
                "limiting_gradient": lambda net=net, x=x: limiting_gradient(net, x, output=0),
            }
            seconds = medians(calls, alternations, device)
            row = {"net": name, "input": list(shape), "batch": batch}
            row |= {f"{call} ms": rounded(1e3 * time) for call, time in seconds.items()}
            rows.append(row | {"ratio": rounded(seconds["limiting_gradient"] / seconds["autograd"])})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="all that there are by default")
    parser.add_argument("--alternations", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    devices = [arguments.device] if arguments.device else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        results = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(device),
            "dtype": "float32",
            "alternations": arguments.alternations,
            "times": measure(device, arguments.alternations),
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"bench_subgradients-{device}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
