"""The regions of a network on a plane: this library, regioncam, and the forward pass of as many points; then the scaling.

    python benchmarks/bench_regions.py [--alternations 9] [--seconds 10] [--threads 1] [--no-exact]

All of them take turns in one process on the same float32 weights, and each ratio is that of the medians, as in
bench_layers.py, whose clock this is. Small nets take `--alternations` turns; large ones as many as fit into `--seconds`,
three at least. What a net is compared with is one forward pass, without autograd and in float64, of as many points as it has
regions. The time of a size up to a million regions, and each peak of memory, is taken in a process of its own, which this
program starts by itself. How many regions there are is counted a third time in exact arithmetic, by tests/exact_regions.py.
The results go to benchmarks/results/bench_regions-cpu.json, from which the book takes its numbers.

regioncam comes with the extra `bench`: python -m pip install -c constraints.txt -e '.[bench]'. If it is missing it is left
out, and the results say so.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib
import importlib.metadata
import itertools
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_layers import RESULTS, clock_name, machine, medians, rounded
from torch import Tensor, nn
from tqdm import tqdm

from pwl_lib.piecewise_linear import activation_pattern
from pwl_lib.regions import Regions, segments, slice_regions

NETS = (
    "2-16-16-1",
    "2-64-64-1",
    "2-32-32-32-1",
    "2-128-128-1",
    "2-64-64-64-64-1",
    "2-256-256-1",
    "784-512-512-10",
)
LINES = ("2-64-64-1", "2-256-256-1", "784-512-512-10")
EXACT = 6_000  # regions that exact arithmetic is asked to count, at most
LARGE = 15_000  # regions of a net whose peak of memory is measured, at least
DEEP = "2" + 14 * "-128" + "-1"  # the net whose box grows until it has a million regions
SIDES = (0.04, 0.06, 0.1, 0.2, 0.4, 1.0)  # half the side of that box
THEIRS = 80_000  # regions up to which regioncam takes part there: it keeps every activation of every layer
A_BYTES = 2**28  # the matrices A of all regions are made where they take no more than this
SLIVER = 1e-9  # the area of a small region
SAMPLE = 2**16  # points of the forward pass there, at most; its time is multiplied up
CHUNK = 4096  # points of a forward pass that is made in parts

Plane = tuple[Tensor, Tensor, Tensor]


def network(name: str) -> nn.Sequential:
    """Weights after He, biases uniform in ±1/sqrt(inputs), in float32."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(map(int, name.split("-"))):
        layer = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.uniform_(layer.bias, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def plane(name: str) -> Plane:
    """The plane itself, or the one through three points near one another: (0, 0), (1, 0) and (0, 1) in its coordinates."""
    inputs = int(name.split("-")[0])
    if inputs == 2:
        return torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    point, *others = torch.randn(3, inputs, generator=torch.Generator().manual_seed(1))
    return point, (others[0] - point) / 4, (others[1] - point) / 4


def on_plane(where: Plane, coordinates: Tensor) -> Tensor:
    origin, u, v = (part.double() for part in where)
    return origin + coordinates[:, :1] * u + coordinates[:, 1:] * v


class Regioncam:
    """The peer, which knows float32 alone."""

    def __init__(self) -> None:
        self.package = importlib.import_module("regioncam")

    def through(self, cam: Any, model: nn.Sequential, start: tuple[Tensor, Tensor]) -> Any:
        weight, bias = start
        if not torch.equal(weight, torch.eye(len(bias))[: len(weight)]) or bool(bias.any()):
            cam.linear(weight.numpy(), bias.numpy())  # the plane in the input space, or the line
        for layer in model:
            if isinstance(layer, nn.Linear):
                cam.linear(layer.weight.detach().T.contiguous().numpy(), layer.bias.detach().numpy())
            else:
                cam.relu()
        return cam

    def regions(self, model: nn.Sequential, where: Plane, side: float = 1.0) -> Any:
        origin, u, v = where
        return self.through(self.package.Regioncam(size=side), model, (torch.stack([u, v]), origin))

    def segments(self, model: nn.Sequential, start: Tensor, end: Tensor) -> Any:
        return self.through(self.package.Regioncam1D(size=2), model, ((end - start)[None] / 2, (start + end) / 2))


def peer() -> tuple[Regioncam | None, str]:
    try:
        return Regioncam(), importlib.metadata.version("regioncam")
    except ImportError as error:
        return None, f"left out: {type(error).__name__}"


# Time


def in_turn(calls: dict[str, Callable[[], object]], alternations: int, seconds: float) -> dict[str, float]:
    """As `medians`, which see; of calls that take long there are fewer turns, and one before them."""
    clock = time.process_time if clock_name("cpu") == "cpu time" else time.perf_counter

    def one_turn() -> dict[str, float]:
        found = {}
        for name, call in calls.items():
            start = clock()
            call()
            found[name] = clock() - start
        return found

    first = sum(one_turn().values())
    if first * (alternations + 4) < seconds:
        return medians(calls, alternations, "cpu")
    turns = [one_turn() for _ in range(max(3, min(alternations, int(seconds / first))))]
    return {name: statistics.median(turn[name] for turn in turns) for name in calls}


def forward(model: nn.Module, x: Tensor, chunk: int | None = None) -> Callable[[], object]:
    @torch.no_grad()
    def call() -> object:
        return model(x) if chunk is None else [model(part) for part in x.split(chunk)]

    return call


def milliseconds(seconds: dict[str, float]) -> dict[str, float]:
    return {name: rounded(s * 1e3) for name, s in seconds.items()}


def measure_net(name: str, theirs: Regioncam | None, arguments: argparse.Namespace) -> dict[str, Any]:
    model, where = network(name), plane(name)
    found = slice_regions(model, *where)
    number = len(found)
    x = on_plane(where, found.centroid)
    half, double = copy.deepcopy(model), copy.deepcopy(model).double()
    calls: dict[str, Callable[[], object]] = {"ours": lambda: slice_regions(model, *where)}
    if theirs is not None:
        calls["regioncam"] = lambda: theirs.regions(model, where)
    calls["forward"] = forward(double, x)
    calls["forward in parts"] = forward(double, x, CHUNK)
    calls["forward, float32"] = forward(half, x.float())
    seconds = in_turn(calls, arguments.alternations, arguments.seconds)
    row: dict[str, Any] = {
        "net": name,
        "regions": {"ours": number},
        "counts": found.counts._asdict(),
        "check": check(model, where, found),
        "ms": milliseconds(seconds),
        "us_per_region": {who: rounded(seconds[who] / number * 1e6) for who in seconds},
        "over_forward": {
            who: rounded(seconds[who] / seconds["forward"]) for who in ("ours", "regioncam") if who in seconds
        },
    }
    if theirs is not None:
        cam = theirs.regions(model, where)
        row["regions"]["regioncam"] = cam.num_faces
        row["over_regioncam"] = rounded(seconds["ours"] / seconds["regioncam"])
    if number <= EXACT and arguments.exact:
        row["regions"]["exact"] = exact_count(model, where)
    # What is asked of the regions once they are there: each on a fresh copy, since they are kept.
    bytes_of_A = 8 * number * x.shape[1] * found.slope.shape[1]
    asked: dict[str, Callable[[Regions], object]] = {
        "slope and offset": lambda regions: (regions.slope, regions.offset),
        "counts": lambda regions: regions.counts,
    }
    if bytes_of_A <= A_BYTES:
        asked["A and b"] = lambda regions: (regions.A, regions.b)
    row["ms_asked"] = {}
    for what, ask in asked.items():
        samples = []
        for _ in range(3):
            fresh = slice_regions(model, *where)
            start = time.process_time()
            ask(fresh)
            samples.append(time.process_time() - start)
        row["ms_asked"][what] = rounded(statistics.median(samples) * 1e3)
    return row


def check(model: nn.Module, where: Plane, found: Regions) -> dict[str, Any]:
    """What proves the list right: each pattern once, each at a point of its region, and no area left over."""
    patterns = found.pattern
    distinct = len({row.tobytes() for row in patterns.to(torch.uint8).numpy()})
    x = on_plane(where, found.centroid)
    double = copy.deepcopy(model).double()
    parts = zip(x.split(CHUNK), patterns.split(CHUNK))
    agree = sum(int((activation_pattern(double, part) == rows).all(1).sum()) for part, rows in parts)
    return {
        "distinct_patterns": distinct,
        "centroids_with_their_pattern": agree,
        "area_missing": rounded(abs(found.area.sum().item() / 4 - 1)),
        "smallest_area": rounded(found.area.min().item()),
        "slivers": int((found.area < SLIVER).sum()),
    }


def exact_count(model: nn.Module, where: Plane) -> int:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    return len(importlib.import_module("exact_regions").exact_regions(model, *where))


def measure_lines(theirs: Regioncam | None, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name in LINES:
        model, (origin, u, v) = network(name), plane(name)
        start, end = origin - u - v / 3, origin + u + v / 3
        found = segments(model, start, end)
        x = start.double() + found.t[1:, None] * (end - start).double()
        calls: dict[str, Callable[[], object]] = {"ours": lambda m=model, a=start, b=end: segments(m, a, b)}
        if theirs is not None:
            calls["regioncam"] = lambda m=model, a=start, b=end: theirs.segments(m, a, b)
        calls["forward"] = forward(copy.deepcopy(model).double(), x)
        seconds = in_turn(calls, arguments.alternations, arguments.seconds)
        row: dict[str, Any] = {"net": name, "segments": {"ours": len(found)}, "ms": milliseconds(seconds)}
        row["over_forward"] = rounded(seconds["ours"] / seconds["forward"])
        if theirs is not None:
            row["segments"]["regioncam"] = theirs.segments(model, start, end).num_edges
            row["over_regioncam"] = rounded(seconds["ours"] / seconds["regioncam"])
        rows.append(row)
    return rows


# Each in a process of its own: time once, and the peak of memory


def peak_MB() -> float:
    """The most memory that this process has held. What the system tells of a process may count those before it in its place."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def alone(who: str, name: str, side: float) -> dict[str, Any]:
    """What a process does that is asked for one net: a small one first, so that what every call needs is there."""
    calls: dict[str, Callable[[str, float], Any]] = {
        "ours": lambda name, side: slice_regions(network(name), *plane(name), (-side, side)),
        "regioncam": lambda name, side: Regioncam().regions(network(name), plane(name), side),
        "forward": lambda name, side: forward(network(name).double(), torch.rand(int(side), int(name.split("-")[0])).double())(),
    }  # fmt: skip
    calls[who](NETS[0], 1.0)
    before, start = peak_MB(), time.process_time()
    found = calls[who](name, side)
    seconds = time.process_time() - start
    answer = {"seconds": rounded(seconds), "peak_MB": rounded(peak_MB() - before)}
    if who == "ours":
        number = len(found)
        some = torch.linspace(0, number - 1, min(number, SAMPLE)).long()
        pass_of_some = forward(network(name).double(), on_plane(plane(name), found.centroid[some]))
        pass_of_some()
        start = time.process_time()
        pass_of_some()
        answer |= {"forward_seconds": rounded((time.process_time() - start) * number / len(some))}
        answer |= {"area_missing": rounded(abs(found.area.sum().item() / (2 * side) ** 2 - 1))}
    elif who == "regioncam":
        number = found.num_faces
    else:
        number = int(side)
    return answer | {"regions": number, "us_per_region": rounded(seconds / number * 1e6)}


def in_a_process(who: str, name: str, side: float) -> dict[str, Any]:
    words = [sys.executable, __file__, "--alone", who, name, str(side), "--threads", str(torch.get_num_threads())]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def measure_memory(rows: list[dict[str, Any]], theirs: Regioncam | None) -> None:
    for row in (row for row in rows if row["regions"]["ours"] >= LARGE):
        row["peak_MB"] = {"ours": in_a_process("ours", row["net"], 1.0)["peak_MB"]}
        if theirs is not None:
            row["peak_MB"]["regioncam"] = in_a_process("regioncam", row["net"], 1.0)["peak_MB"]
        row["peak_MB"]["forward"] = in_a_process("forward", row["net"], row["regions"]["ours"])["peak_MB"]


def measure_scaling(theirs: Regioncam | None, bar: tqdm[Any]) -> dict[str, Any]:
    rows = []
    for side in SIDES:
        row = {"side": side, "ours": in_a_process("ours", DEEP, side)}
        if theirs is not None and row["ours"]["regions"] <= THEIRS:
            row["regioncam"] = in_a_process("regioncam", DEEP, side)
        rows.append(row)
        bar.update()
    return {"net": DEEP, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="the geometry is made on the processor")
    parser.add_argument("--alternations", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=10.0, help="that the turns of one large net may take")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--exact", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--alone", nargs=3, metavar=("WHO", "NET", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.alone:
        who, name, side = arguments.alone
        print(json.dumps(alone(who, name, float(side))))
        return
    theirs, version = peer()
    with tqdm(total=len(NETS) + len(SIDES) + 2, desc="regions on cpu") as bar:
        nets = []
        for name in NETS:
            nets.append(measure_net(name, theirs, arguments))
            bar.update()
        lines = measure_lines(theirs, arguments)
        bar.update()
        measure_memory(nets, theirs)
        bar.update()
        scaling = measure_scaling(theirs, bar)
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": machine("cpu"),
        "packages": {"pwl_lib": importlib.metadata.version("pwl_lib"), "regioncam": version},
        "alternations": arguments.alternations,
        "nets": nets,
        "lines": lines,
        "scaling": scaling,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bench_regions-cpu.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
