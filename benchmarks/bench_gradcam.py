"""Class activation maps of torchcam, grad-cam, captum and this library: time, memory, error, half types, habits.

    python benchmarks/bench_gradcam.py [--device cpu] [--alternations 15] [--threads 1]

All of them take turns in one process on copies of one net, and each ratio is that of the medians, as in bench_layers.py,
whose clock this is. They are measured against a *floor*: the forward pass to the target layer without autograd, the rest
of the net with it, and the gradient of one score in the target's output. No method that takes a gradient does with less.
The results go to benchmarks/results/bench_gradcam-<device>.json, from which the book takes its numbers.

The others come with the extra `bench`: python -m pip install -c constraints.txt -e '.[bench]'. One that is missing, or
that cannot be imported, is left out, and the results say so. grad-cam imports torchvision, whose wheel may be made for
another build of torch than the one at hand (CUDA and CPU, say): then torchvision does not find its own operators, of
which nothing here calls any, and this program declares two of them so that the import passes. Where pip finds no
torchvision that suits the torch at hand, install grad-cam without what it asks for:

    python -m pip install -c constraints.txt torchcam captum scikit-learn
    python -m pip install -c constraints.txt --no-deps grad-cam ttach opencv-python-headless torchvision
"""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib
import importlib.metadata
import io
import json
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import torch
import torch.nn.functional as F
from bench_layers import RESULTS, machine, medians, rounded, saved_bytes
from torch import Tensor, nn
from tqdm import tqdm

from pwl_lib.gradcam import GradCAM, GradCAMPlusPlus

SIDE = 96  # pixels of an image
WIDTH = 24  # channels of the first stage
SCORES = 100  # classes that the nets tell apart
BATCHES = (1, 16)
CLASSES = (1, 10)
CLASS = 7  # where one class is asked for
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
EARLY = {"ResNet": "trunk.4", "VGG": "trunk.3", "DenseNet": "trunk.2"}  # early layers, after a ReLU
LARGE = 224  # pixels of an image for them


# The nets: `trunk` is the target layer, `tail` leads from its output to the scores.
class Block(nn.Module):
    """Two convolutions and a shortcut, as in ResNet-18."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        same = channels == out and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


class DenseLayer(nn.Module):
    """Adds `growth` channels to those it is given, as in DenseNet."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, growth, 3, 1, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


class Net(nn.Module):
    def __init__(self, trunk: list[nn.Module], tail: list[nn.Module]) -> None:
        super().__init__()
        self.trunk, self.tail = nn.Sequential(*trunk), nn.Sequential(*tail)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.trunk(x))


def _stem(width: int) -> list[nn.Module]:
    return [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def _average_head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, SCORES)]


def resnet(width: int = WIDTH) -> Net:
    """Eight blocks in four stages. The target is the output of the last one, after its ReLU."""
    blocks, channels = [], width
    for stage in range(4):
        for n in range(2):
            out = width * 2**stage
            blocks.append(Block(channels, out, 2 if n == 0 and stage else 1))
            channels = out
    return Net([*_stem(width), *blocks], _average_head(channels))


def vgg(width: int = WIDTH) -> Net:
    """Eight convolutions, four max poolings, three linear layers. The target is the output of the last pooling."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in range(4):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width * 2**stage, 3, 1, 1), nn.ReLU(inplace=True)]
            channels = width * 2**stage
        layers.append(nn.MaxPool2d(2))
    flat = channels * 36
    hidden = [nn.Linear(flat, 256), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(256, 256), nn.ReLU(inplace=True)]
    return Net(layers, [nn.AdaptiveAvgPool2d(6), nn.Flatten(), *hidden, nn.Linear(256, SCORES)])


def densenet(width: int = WIDTH, in_place: bool = True) -> Net:
    """Four dense stages. The target is the last normalisation, which a ReLU in place follows, as in torchvision's."""
    layers, channels, growth = _stem(width), width, width // 2
    for stage in range(4):
        for _ in range(4):
            layers.append(DenseLayer(channels, growth))
            channels += growth
        if stage < 3:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, channels // 2, 1)]
            layers.append(nn.AvgPool2d(2))
            channels //= 2
    return Net([*layers, nn.BatchNorm2d(channels)], [nn.ReLU(inplace=in_place), *_average_head(channels)])


NETS: dict[str, Callable[..., Net]] = {"ResNet": resnet, "VGG": vgg, "DenseNet": densenet}


def prepared(make: Callable[..., Net], device: str, **settings: Any) -> Net:
    """A net that nobody trained, with weights after He and normalisations that fit the images."""
    torch.manual_seed(0)
    net = make(**settings)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    net.train()
    with torch.no_grad():
        net(pictures(16, "cpu"))
    return net.eval().to(device)


def pictures(number: int, device: str, side: int = SIDE) -> Tensor:
    """Smooth noise: blobs of random colours."""
    generator = torch.Generator().manual_seed(1)
    blobs = F.interpolate(torch.randn(number, 3, 9, 9, generator=generator), (side, side), mode="bicubic")
    return (blobs + 0.3 * torch.randn(number, 3, side, side, generator=generator)).to(device)


# Those who compete. Each has a copy of the net, since some leave their hooks on it. Called with images and classes it
# gives maps, in the way that is its own; `raw` gives weights (None where it tells none) and maps for one class, as they
# are before they are normalised and enlarged.
Raw = tuple[Tensor | None, Tensor]


class Contestant:
    package, exponential = "", True  # of Grad-CAM++, or else of Grad-CAM

    def __init__(self, net: Net, layer: str = "trunk") -> None:
        self.net, self.layer = copy.deepcopy(net), layer
        self.target = self.net.get_submodule(layer)
        self.prepare()

    def prepare(self) -> None:
        raise NotImplementedError

    def __call__(self, images: Tensor, classes: list[int]) -> Any:
        raise NotImplementedError

    def raw(self, images: Tensor, k: int) -> Raw:
        raise NotImplementedError

    def short_of_targets(self, images: Tensor, k: int) -> Tensor:
        """The maps of two images with a list of classes that is long enough for one."""
        raise NotImplementedError


class Ours(Contestant):
    package = "pwl_lib"
    method: Any = GradCAMPlusPlus

    def prepare(self) -> None:
        self.cam = self.method(self.net, self.layer)

    def __call__(self, images: Tensor, classes: list[int]) -> Tensor:
        return self.cam(images, classes).maps

    def raw(self, images: Tensor, k: int) -> Raw:
        found = self.cam(images, k)
        return found.weights[:, 0], found.maps[:, 0]

    def short_of_targets(self, images: Tensor, k: int) -> Tensor:
        return self.cam(images, [[k]]).maps[:, 0]


class OursGradCAM(Ours):
    method, exponential = GradCAM, False


class Torchcam(Contestant):
    package = "torchcam"

    def prepare(self) -> None:
        self.cam = importlib.import_module("torchcam.methods").GradCAMpp(self.net, self.layer)

    def __call__(self, images: Tensor, classes: list[int]) -> Tensor:
        scores = self.net(images)
        again = [True] * (len(classes) - 1) + [False]
        return torch.stack(
            [self.cam(k, scores, normalized=False, retain_graph=keep)[0] for k, keep in zip(classes, again)], 1
        )

    def raw(self, images: Tensor, k: int) -> Raw:
        scores = self.net(images)
        weights = self.cam._get_weights(k, scores, retain_graph=True)[0]
        return weights, self.cam(k, scores, normalized=False)[0]

    def short_of_targets(self, images: Tensor, k: int) -> Tensor:
        return self.cam([k], self.net(images), normalized=False)[0]


class PytorchGradCAM(Contestant):
    package = "grad-cam"

    def prepare(self) -> None:
        package = gradcam_package()
        self.cam = package.GradCAMPlusPlus(self.net, [self.target])
        self.score = importlib.import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget

    def __call__(self, images: Tensor, classes: list[int]) -> list[Any]:
        return [self.cam(images, [self.score(k)] * len(images)) for k in classes]

    def raw(self, images: Tensor, k: int) -> Raw:
        targets = [self.score(k)] * len(images)
        self.cam(images, targets)
        seen = self.cam.activations_and_grads
        maps = [part[0].numpy() for part in (seen.activations, seen.gradients)]
        weights = self.cam.get_cam_weights(images, self.target, targets, *maps)
        found = self.cam.get_cam_image(images, self.target, targets, *maps)
        return torch.from_numpy(weights), torch.from_numpy(found).relu()

    def short_of_targets(self, images: Tensor, k: int) -> Tensor:
        return torch.from_numpy(self.cam(images, [self.score(k)]))


class Captum(Contestant):
    package, exponential = "captum", False

    def prepare(self) -> None:
        self.cam = importlib.import_module("captum.attr").LayerGradCam(self.net, self.target)

    def __call__(self, images: Tensor, classes: list[int]) -> Tensor:
        return torch.cat([self.cam.attribute(images, target=k, relu_attributions=True) for k in classes], 1)

    def raw(self, images: Tensor, k: int) -> Raw:
        return None, self(images, [k])[:, 0].detach()

    def short_of_targets(self, images: Tensor, k: int) -> Tensor:
        return self.cam.attribute(images, target=[k], relu_attributions=True)[:, 0].detach()


CONTESTANTS: dict[str, type[Contestant]] = {
    "ours": Ours,
    "torchcam": Torchcam,
    "grad-cam": PytorchGradCAM,
    "ours, Grad-CAM": OursGradCAM,
    "captum, Grad-CAM": Captum,
}


def gradcam_package() -> Any:
    """grad-cam, with the operators declared that a torchvision for another build of torch does not find."""
    try:
        return importlib.import_module("pytorch_grad_cam")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] in ("torchvision", "pytorch_grad_cam")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    return importlib.import_module("pytorch_grad_cam")


_declared: list[torch.library.Library] = []  # a library that nobody holds is taken back


def at_hand() -> tuple[dict[str, type[Contestant]], dict[str, str]]:
    """Those who can be imported, and for each package its version, or why it is left out."""
    there, packages = {}, {}
    small = Net([nn.Conv2d(3, 4, 1)], _average_head(4))
    for name, contestant in CONTESTANTS.items():
        try:
            contestant(small)
            packages[contestant.package] = importlib.metadata.version(contestant.package)
            there[name] = contestant
        except (ImportError, OSError, RuntimeError) as error:
            packages[contestant.package] = f"left out: {type(error).__name__}"
    return there, packages


# Time and memory
def floor(net: Net, images: Tensor) -> Callable[[], Tensor]:
    in_place = isinstance(net.tail[0], nn.ReLU) and net.tail[0].inplace  # which autograd allows on no leaf

    def call() -> Tensor:
        with torch.no_grad():
            a = net.trunk(images)
        a.requires_grad_()
        score = net.tail(a.clone() if in_place else a)[:, CLASS].sum()
        return torch.autograd.grad(score, a)[0]

    return call


def measure_times(
    nets: dict[str, Net], there: dict[str, type[Contestant]], alternations: int, device: str, bar: tqdm[Any]
) -> list[dict[str, Any]]:
    """Over the floor of one class. Those who take more than three times the floor take fewer turns, with it, apart."""
    rows = []
    for net_name, net in nets.items():
        who = {name: contestant(net) for name, contestant in there.items()}
        for batch in BATCHES:
            images = pictures(batch, device)
            lowest = floor(net, images)
            for number in CLASSES:
                classes = list(range(CLASS, CLASS + number))
                calls = {name: lambda c=c, k=classes, x=images: c(x, k) for name, c in who.items()}
                first = {}
                for name, call in {"floor": lowest, **calls}.items():
                    call()
                    start = time.perf_counter()
                    call()
                    first[name] = time.perf_counter() - start
                slow = {name: call for name, call in calls.items() if first[name] > 3 * first["floor"]}
                fast = {name: call for name, call in calls.items() if name not in slow}
                seconds: dict[str, float] = {}
                over: dict[str, float] = {}
                for group, turns in ((slow, max(2, alternations // 5)), (fast, alternations)):
                    found = medians({"floor": lowest, **group}, turns, device)
                    seconds |= found
                    over |= {name: rounded(found[name] / found["floor"]) for name in group}
                rows.append(
                    {
                        "net": net_name,
                        "batch": batch,
                        "classes": number,
                        "ms": {name: rounded(s * 1e3) for name, s in seconds.items()},
                        "over_floor": {name: over[name] for name in who},
                    }
                )
                bar.update()
    return rows


def measure_memory(nets: dict[str, Net], there: dict[str, type[Contestant]], device: str) -> list[dict[str, Any]]:
    """Bytes that autograd keeps in a call for one class, besides the parameters, and what the tail alone keeps."""
    rows = []
    for net_name, net in nets.items():
        for batch in BATCHES:
            images = pictures(batch, device)
            found = {}
            for name, contestant in there.items():
                who = contestant(net)

                def call(x: Tensor, *_: Tensor, who: Contestant = who) -> Tensor:
                    maps = who(x, [CLASS])
                    return maps if isinstance(maps, Tensor) else torch.from_numpy(maps[0])

                found[name] = saved_bytes(call, [images, *who.net.parameters()])["all"]
            with torch.no_grad():
                a = net.trunk(images)
            tail = saved_bytes(lambda a, *_, net=net: net.tail(a.clone()), [a.requires_grad_(), *net.tail.parameters()])
            rows.append({"net": net_name, "batch": batch, "tail_alone": tail["all"], "saved_bytes": found})
    return rows


# Error
def brute_force(tail: nn.Module, a: Tensor, k: int, chunk: int = 1024) -> Tensor:
    """Weights of Grad-CAM++ of one image by its definition: nested autograd of exp(S), one entry of the map at a time.

    The weights hold a factor exp(S), the first derivative of Y = exp(S) over that of S. It is divided out: neither
    the order of the channels nor a normalised map depends on it.
    """
    (c, h, w), parts = a.shape, []
    for entries in torch.arange(a.numel(), device=a.device).split(chunk):
        copies = a.expand(len(entries), c, h, w).clone().requires_grad_()
        derivatives = []
        y = tail(copies.clone())[:, k].exp()
        value = y.detach()
        for _ in range(3):
            y = torch.autograd.grad(y.sum(), copies, create_graph=True)[0].flatten(1).gather(1, entries[:, None])[:, 0]
            derivatives.append(y.detach())
        first, second, third = derivatives
        total = a.sum((1, 2))[entries // (h * w)]
        share = torch.where(second == 0, 0, second / (2 * second + total * third))
        parts.append(share * first.relu() / value)
    return torch.cat(parts).view(c, h * w).sum(1)


def equation_19(a: Tensor, g: Tensor) -> Tensor:
    """The same by the paper's equation 19, as it stands."""
    share = g**2 / (2 * g**2 + a.sum((-2, -1), keepdim=True) * g**3)
    return (torch.where(g == 0, 0, share) * g.relu()).sum((-2, -1))


def seen(net: Net, images: Tensor, k: int, layer: str = "trunk") -> tuple[Tensor, Tensor]:
    """What the layer puts out, as the net computes it, and the gradient of the score in it, in float64 from there on."""
    modules = [*net.trunk, *net.tail]
    cut = len(net.trunk) if layer == "trunk" else int(layer.split(".")[1]) + 1
    with torch.no_grad():
        a = nn.Sequential(*modules[:cut])(images).double()
    with torch.autocast(images.device.type, enabled=False):
        rest = copy.deepcopy(nn.Sequential(*modules[cut:])).double()
        (g,) = torch.autograd.grad(rest(a.requires_grad_().clone())[:, k].sum(), a)
    return a.detach(), g


def weighted(weights: Tensor, a: Tensor) -> Tensor:
    return torch.einsum("bc,bchw->bhw", weights, a).relu()


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest error of an image, over the largest entry of that image; infinite if anything is not a number."""
    found, wanted = (t.detach().cpu().double().flatten(1) for t in (found, wanted))
    there = wanted.abs().amax(1) > 0
    errors = (found - wanted).abs().amax(1)[there] / wanted.abs().amax(1)[there]
    return rounded(errors.max().item()) if found.isfinite().all() else float("inf")


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference of two maps that are normalized."""
    return rounded((normalized(found.cpu().double()) - normalized(wanted.cpu())).abs().max().item())


def normalized(maps: Tensor) -> Tensor:
    top = maps.amax((1, 2), keepdim=True)
    return torch.where(top > 0, maps / top, 0)


def peaks_agree(found: Tensor, wanted: Tensor) -> float:
    """The share of maps whose largest entry is where it belongs."""
    return (found.cpu().flatten(1).argmax(1) == wanted.cpu().flatten(1).argmax(1)).double().mean().item()


def measure_errors(
    nets: dict[str, Net], there: dict[str, type[Contestant]], device: str, bar: tqdm[Any]
) -> list[dict[str, Any]]:
    """In float32, against float64: one class by brute force, five by equation 19.

    The output of the target layer is taken as the net has it, in float32: its error is the net's, and no method's.
    """
    rows = []
    for net_name, net in nets.items():
        images, classes = pictures(8, device), range(CLASS, CLASS + 5)
        exact: dict[bool, list[tuple[Tensor, Tensor]]] = {True: [], False: []}
        for k in classes:
            a, g = seen(net, images, k)
            for exponential, weights in ((True, equation_19(a, g)), (False, g.mean((2, 3)))):
                exact[exponential].append((weights, weighted(weights, a)))
        tail = copy.deepcopy(net.tail).double()
        forced = torch.stack([brute_force(tail, one, CLASS) for one in a[:2]])
        row: dict[str, Any] = {"net": net_name, "target": list(a.shape[1:]), "maps": len(images) * len(classes)}
        row["equation_19_against_brute_force"] = relative(exact[True][0][0][:2], forced)
        for name, contestant in there.items():
            who, wanted = contestant(net), exact[contestant.exponential]
            found = [who.raw(images, k) for k in classes]
            maps, right = torch.cat([m for _, m in found]), torch.cat([m for _, m in wanted])
            row[name] = {"normalized_map": apart(maps, right), "peaks_agree": rounded(peaks_agree(maps, right))}
            if (weights := found[0][0]) is not None:
                reference = forced if contestant.exponential else wanted[0][0][:2]
                row[name]["weights"] = relative(weights[:2], reference)
        rows.append(row)
        bar.update()
    return rows


# Half types
def outcome(call: Callable[[], Raw], wanted: Tensor) -> dict[str, Any]:
    """What came of a call: the error and how many maps are lost, or the exception."""
    try:
        _, maps = call()
    except Exception as error:
        return {"state": "raises", "what": f"{type(error).__name__}: {error}".split("\n")[0][:80]}
    maps = maps.detach().cpu().double()
    broken = maps.isnan().flatten(1).any(1).double().mean().item()
    lost = ((maps == 0).flatten(1).all(1) & (wanted.cpu() > 0).flatten(1).any(1)).double().mean().item()
    found: dict[str, Any] = {"state": "not a number" if broken else "zero" if lost else "ok"}
    found |= {"share_not_a_number": broken, "share_zero": lost}
    if not broken:
        found["normalized_map"] = apart(maps, wanted)
    return found


def measure_half(
    nets: dict[str, Net], there: dict[str, type[Contestant]], device: str, bar: tqdm[Any]
) -> list[dict[str, Any]]:
    """Nets of a half type, at a late layer and an early one, and nets under autocast, against float64 from the layer on."""
    rows = []
    for net_name, net in nets.items():
        for type_name, dtype in HALF.items():
            for layer, autocast in (("trunk", False), ("trunk", True), (EARLY[net_name], False)):
                half = net if autocast else copy.deepcopy(net).to(dtype)
                images = (pictures(2, device) if layer == "trunk" else pictures(1, device, LARGE)).to(
                    torch.float32 if autocast else dtype
                )
                row: dict[str, Any] = {"net": net_name, "layer": layer, "dtype": type_name, "autocast": autocast}
                with torch.autocast(device, dtype, enabled=autocast):
                    a, g = seen(half, images, CLASS, layer)
                    right = {True: weighted(equation_19(a, g), a), False: weighted(g.mean((2, 3)), a)}
                    for name, contestant in there.items():
                        who = contestant(half, layer)
                        row[name] = outcome(lambda who=who, x=images: who.raw(x, CLASS), right[contestant.exponential])
                rows.append(row)
                bar.update()
    return rows


# Habits
def kept(change: Callable[[], Any]) -> str:
    """The answer of a check, or the exception that it ended in."""
    try:
        return str(change())
    except Exception as error:
        return f"raises {type(error).__name__}"


def gradients_stay(contestant: type[Contestant], net: Net, images: Tensor) -> str:
    who = contestant(net)
    for parameter in who.net.parameters():
        parameter.grad = torch.ones_like(parameter)
    who(images, [CLASS])
    same = all(p.grad is not None and bool((p.grad == 1).all()) for p in who.net.parameters())
    return "untouched" if same else "overwritten"


def mode_stays(contestant: type[Contestant], net: Net, images: Tensor) -> str:
    who = contestant(copy.deepcopy(net).train())
    who(images, [CLASS])
    return "train" if all(module.training for module in who.net.modules()) else "eval"


def hooks_left(contestant: type[Contestant], net: Net, images: Tensor) -> int:
    who = contestant(net)
    who(images, [CLASS])
    return sum(len(module._forward_hooks) + len(module._backward_hooks) for module in who.net.modules())


def frozen(contestant: type[Contestant], net: Net, images: Tensor) -> str:
    contestant(copy.deepcopy(net).requires_grad_(False))(images, [CLASS])
    return "ok"


def without_grad(contestant: type[Contestant], net: Net, images: Tensor) -> str:
    with torch.no_grad():
        contestant(net)(images, [CLASS])
    return "ok"


def index_error(contestant: type[Contestant], net: Net, images: Tensor) -> str:
    who: Any = contestant(net)
    if not hasattr(who.cam, "__exit__"):
        return "no context manager"
    try:
        with redirect_stdout(io.StringIO()), who.cam:  # which one of them prints
            raise IndexError("from the caller")
    except IndexError:
        return "reaches the caller"
    return "swallowed"


def one_target(contestant: type[Contestant], net: Net, images: Tensor) -> str:
    maps = contestant(net).short_of_targets(images[:2], CLASS)
    empty = [bool((one == 0).all()) for one in maps]
    return "zero map" if len(empty) > 1 and empty[1] and not empty[0] else f"{len(empty)} maps"


def in_place_relu(contestant: type[Contestant], net: Net, images: Tensor, device: str) -> float:
    """How far the map moves when the ReLU after the target works in place."""
    aside, inside = (
        contestant(prepared(densenet, device, in_place=flag)).raw(images, CLASS)[1].double() for flag in (False, True)
    )
    return apart(inside, aside)


def measure_habits(there: dict[str, type[Contestant]], device: str) -> dict[str, dict[str, str]]:
    net, images = prepared(densenet, device), pictures(4, device)
    checks: dict[str, Callable[..., Any]] = {
        "p.grad": gradients_stay,
        "mode after a call in train mode": mode_stays,
        "hooks after a call": hooks_left,
        "frozen parameters": frozen,
        "caller without grad": without_grad,
        "IndexError in a with block": index_error,
        "one class for two images": one_target,
        "map moved by a ReLU in place": lambda *given: in_place_relu(*given, device),
    }
    return {
        question: {name: kept(lambda c=c, check=check: check(c, net, images)) for name, c in there.items()}
        for question, check in checks.items()
    }


# Where the others' weights come from
def measure_faults(nets: dict[str, Net], there: dict[str, type[Contestant]], device: str) -> list[dict[str, Any]]:
    """The weights of torchcam and grad-cam beside what their code amounts to, in float64; no ReLU works in place."""
    rows = []
    for net_name, net in (nets | {"DenseNet": prepared(densenet, device, in_place=False)}).items():
        images = pictures(8, device)
        a, g = seen(net, images, CLASS)
        right, total = equation_19(a, g), a.sum((2, 3), keepdim=True)
        denominator = (2 * g**2 + total * g**3)[g != 0]
        row: dict[str, Any] = {"net": net_name, "median_denominator": rounded(denominator.abs().median().item())}
        cubes = (g.relu() ** 3).sum((2, 3))
        by_position = 2 * g**2 + (g**3 * a).sum((2, 3), keepdim=True)
        other_index = (torch.where(g > 0, g**2 / (by_position + 1e-8), 0) * g.relu()).sum((2, 3))
        epsilon = (g**2 / (2 * g**2 + total * g**3 + 1e-6) * g.relu()).sum((2, 3))
        if "torchcam" in there:
            weights, _ = there["torchcam"](net).raw(images, CLASS)
            row["torchcam"] = {
                "against_sum_of_cubes": relative(weights, cubes),
                "against_equation_19": relative(weights, right),
                "map_against_equation_19": apart_by_weights(cubes, right, a),
                "other_index_against_equation_19": relative(other_index, right),
                "map_of_other_index": apart_by_weights(other_index, right, a),
            }
        if "grad-cam" in there:
            weights, _ = there["grad-cam"](net).raw(images, CLASS)
            row["grad-cam"] = {
                "against_epsilon": relative(weights, epsilon),
                "against_equation_19": relative(weights, right),
                "map_against_equation_19": apart_by_weights(epsilon, right, a),
            }
        rows.append(row)
    return rows


def apart_by_weights(weights: Tensor, right: Tensor, a: Tensor) -> float:
    return apart(weighted(weights, a), weighted(right, a))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="all that there are by default")
    parser.add_argument("--alternations", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    there, packages = at_hand()
    devices = [arguments.device] if arguments.device else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        nets = {name: prepared(make, device) for name, make in NETS.items()}
        steps = len(nets) * (len(BATCHES) * len(CLASSES) + 1 + 3 * len(HALF))
        with tqdm(total=steps, desc=f"class activation maps on {device}") as bar:
            results = {
                "date": datetime.date.today().isoformat(),
                "machine": machine(device),
                "packages": packages,
                "dtype": "float32",
                "alternations": arguments.alternations,
                "image": [3, SIDE, SIDE],
                "parameters": {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()},
                "errors": measure_errors(nets, there, device, bar),
                "faults": measure_faults(nets, there, device),
                "habits": measure_habits(there, device),
                "half": measure_half(nets, there, device, bar),
                "memory": measure_memory(nets, there, device),
                "times": measure_times(nets, there, arguments.alternations, device, bar),
            }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"bench_gradcam-{device}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
