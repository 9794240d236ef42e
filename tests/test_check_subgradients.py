"""The checkers of the chapter *Subgradients*: right answers pass, wrong ones are told why, and no message gives the solution away."""

from __future__ import annotations

import pytest
import torch

from pwl_lib import check
from pwl_lib.subgradients import (
    ConvexHull,
    clarke_vertices,
    limiting_gradient,
    subdifferential_l1_norm,
    subdifferential_relu,
)

checks = check.subgradients
NAMES = [
    *("relu_interval", "one_sided_slopes", "hinge_subgradient", "residual_subgradient"),
    *("soft_threshold", "least_norm", "nested_maximum", "wrong_at_zero"),
    *("directional_mask", "layer_gradient", "backprop_says", "line_set"),
]


def interval_by_sets(x):
    found = subdifferential_relu(x)
    return [found.lower, found.upper]


def slopes_by_search(slopes, breakpoints, x):
    x = torch.tensor(x, dtype=torch.float64)
    sides = [torch.searchsorted(breakpoints, x, right=right) for right in (False, True)]
    return slopes[torch.stack(sides)]


def slopes_by_loop(slopes, breakpoints, x):
    left = right = slopes[0].item()
    for i, t in enumerate(breakpoints.tolist()):
        left = slopes[i + 1].item() if t < x else left
        right = slopes[i + 1].item() if t <= x else right
    return left, right


def hinge(share):
    """Any element: ``share`` of the slope at the kink."""

    def answer(w, x, y):
        margin = y * (w @ x)
        return -y * x * (1.0 if margin < 1 else share if margin == 1 else 0.0)

    return answer


def hinge_by_autograd(w, x, y):
    w = w.clone().requires_grad_()
    return torch.autograd.grad((1 - y * (w @ x)).clamp(min=0), w)[0]


def residual(fill):
    """Any element: ``fill`` where a residual is 0."""
    return lambda A, b, z: A.T @ torch.where(A @ z == b, fill, (A @ z - b).sign())


def residual_by_box(A, b, z):
    box = subdifferential_l1_norm(A @ z - b)
    return (box.lower + 0.3 * (box.upper - box.lower)) @ A


def segment_by_search(a, b):
    low, high = 0.0, 1.0
    for _ in range(100):
        third = (high - low) / 3
        if (a + (low + third) * (b - a)).norm() > (a + (high - third) * (b - a)).norm():
            low += third
        else:
            high -= third
    return a + low * (b - a)


def mask(both):
    """Any mask: ``both`` where z and dz are 0."""
    return lambda z, dz: torch.where((z == 0) & (dz == 0), both, torch.where(z == 0, dz > 0, z > 0).double())


def layer(mask):
    return lambda W, b, a, x, v: W.T @ (mask(W @ x + b, W @ v) * a)


def layer_by_library(W, b, a, x, v):
    return limiting_gradient(lambda x: torch.relu(x @ W.T + b) @ a, x[None], v)[0]


def line(mask):
    """A wrong answer: both ends from the same mask."""
    return lambda w, b, a, x: ((a * w * mask(w * x + b)).sum(),) * 2


def line_slopes(w, b, a, x):
    return [(a * w * mask(0.0)(w * x + b, v * w)).sum().item() for v in (-1, 1)]


def line_by_library(w, b, a, x):
    slopes = clarke_vertices(lambda x: torch.relu(x[:, None] * w + b) @ a, torch.tensor(x, dtype=torch.float64))
    return slopes.amin(), slopes.amax()


def sum_of_intervals(w, b, a, x):
    z, ends = w * x + b, torch.stack([0 * w, a * w])
    sure = (a * w * (z > 0)).sum()
    return [sure + ends.amin(0)[z == 0].sum(), sure + ends.amax(0)[z == 0].sum()]


def identity(x):
    return torch.relu(x) - torch.relu(-x)


RIGHT = {
    "relu_interval": [
        lambda x: (float(x > 0), float(x >= 0)),
        lambda x: [0, 1] if x == 0 else [x > 0, x > 0],
        lambda x: torch.tensor([x > 0, x >= 0]),
        interval_by_sets,
    ],
    "one_sided_slopes": [slopes_by_search, slopes_by_loop],
    "hinge_subgradient": [hinge(0.0), hinge(1.0), hinge(0.3), hinge_by_autograd],
    "residual_subgradient": [residual(0.0), residual(1.0), residual(-0.7), residual_by_box],
    "soft_threshold": [
        lambda y, lam: torch.relu(y - lam) - torch.relu(-y - lam),
        lambda y, lam: y - y.clamp(-lam, lam),
        lambda y, lam: torch.nn.functional.softshrink(y, lam),
    ],
    "least_norm": [
        lambda a, b: ConvexHull(torch.stack([a, b])).min_norm(),
        segment_by_search,
    ],
    "nested_maximum": [
        lambda x: torch.maximum(torch.maximum(torch.maximum(x[0], x[1]), x[2]), x[3]),
        lambda x: torch.maximum(x[3], torch.maximum(x[2], torch.maximum(x[1], x[0]))),
        lambda x: torch.maximum(torch.stack([x[:2].amax(), x[2]]).amax(), x[3]),
    ],
    "wrong_at_zero": [
        lambda x: torch.relu(x) - torch.relu(-x),
        lambda x: 10 * x - 9 * (torch.relu(x) - torch.relu(-x)),
        lambda x: 2 * torch.relu(x) - torch.relu(-x),
        lambda x: x.clamp(min=0) + x.clamp(max=0),
        lambda x: torch.stack([torch.relu(v) - torch.relu(-v) for v in x]),
    ],
    "directional_mask": [mask(0.0), mask(1.0), mask(0.3), lambda z, dz: z.sign() * 4 + dz.sign() > 0],
    "layer_gradient": [layer(mask(0.0)), layer(mask(1.0)), layer_by_library],
    "backprop_says": [
        lambda c: lambda x: c * x + (1 - c) * identity(x),
        lambda c: lambda x: x + (c - 1) * (x - identity(x)),
        lambda c: lambda x: c * x + (1 - c) * (x.clamp(min=0) - torch.relu(-x)) - (1 - c) * (x - identity(x)),
    ],
    "line_set": [
        lambda w, b, a, x: sorted(line_slopes(w, b, a, x)),
        lambda w, b, a, x: torch.tensor(line_slopes(w, b, a, x)).sort().values,
        line_by_library,
    ],
}

WRONG = {
    "relu_interval": [
        (lambda x: (float(x > 0),) * 2, "only the slope on the left"),
        (lambda x: (float(x >= 0),) * 2, "only the slope on the right"),
        (lambda x: (0.5, 0.5) if x == 0 else (float(x > 0),) * 2, "one element of the set"),
        (lambda x: (-1.0, 1.0) if x == 0 else (float(x > 0),) * 2, "that is the set of the absolute value"),
        (lambda x: (float(x >= 0), float(x > 0)), "the ends are in the wrong order"),
        (lambda x: (0.0, 1.0), "the interval of the kink"),
        (lambda x: (float(x < 0), float(x <= 0)), "the slopes of the two sides are exchanged"),
        (lambda x: float(x > 0), "TypeError"),
        (lambda x: (0.0, float("nan")), "it holds NaN"),
    ],
    "one_sided_slopes": [
        (lambda s, t, x: slopes_by_loop(s, t, x)[::-1], "the two sides are exchanged"),
        (lambda s, t, x: (slopes_by_loop(s, t, x)[0],) * 2, "the left slope twice"),
        (lambda s, t, x: (slopes_by_loop(s, t, x)[1],) * 2, "the right slope twice"),
        (lambda s, t, x: (sum(slopes_by_loop(s, t, x)) / 2,) * 2, "the mean of both sides"),
        (
            lambda s, t, x: slopes_by_loop(s, t, x) if x in t else (s[min(int((t < x).sum()) + 1, len(t))],) * 2,
            "that is the slope of the next piece",
        ),
        (
            lambda s, t, x: slopes_by_loop(s, t, x) if x in t else (s[max(int((t < x).sum()) - 1, 0)],) * 2,
            "that is the slope of the piece before",
        ),
        (
            lambda s, t, x: (s[(t < x).sum()], s[min(int((t < x).sum()) + 1, len(t))]),
            "the right slope is that of the next piece",
        ),
    ],
    "hinge_subgradient": [
        (lambda w, x, y: -hinge(1.0)(w, x, y), "the sign is wrong"),
        (lambda w, x, y: y * hinge(1.0)(w, x, y), "the sign is wrong"),
        (lambda w, x, y: -y * x, "the mask is missing"),
        (lambda w, x, y: y * x if y * (w @ x) > 1 else hinge(1.0)(w, x, y), "the mask is missing.*sign is wrong"),
        (lambda w, x, y: -y * x if y * (w @ x) > 1 else 0 * x, "the comparison turned around"),
        (hinge(1.5), "t times .* for any t between 0 and 1"),
        (hinge(-0.1), "t times .* for any t between 0 and 1"),
        (lambda w, x, y: hinge(1.0)(w, x, y) + torch.nan, "it holds NaN"),
    ],
    "residual_subgradient": [
        (lambda A, b, z: A @ (A @ z - b).sign() if A.shape[0] == A.shape[1] else residual(0.0)(A, b, z), "instead of its transpose"),
        (lambda A, b, z: residual(0.0)(A, b, z) / len(b), "the mean instead of the sum"),
        (lambda A, b, z: -residual(0.0)(A, b, z), "the sign is wrong"),
        (lambda A, b, z: A.T @ (A @ z - b), "the gradient of the squared norm"),
        (lambda A, b, z: 2 * A.T @ (A @ z - b), "twice the residual"),
        (lambda A, b, z: (A @ z - b).sign(), "it is still to be carried back to z"),
        (residual(1.5), "plus anything of"),
        (residual(torch.nan), "plus anything of|it holds NaN"),
        (lambda A, b, z: residual(0.0)(A, b, z)[:, None], "the shape is"),
    ],
    "soft_threshold": [
        (lambda y, lam: y - lam * y.sign(), "every entry moved by lam"),
        (lambda y, lam: torch.where(y.abs() > lam, y, 0.0), "hard thresholding"),
        (lambda y, lam: torch.relu(y - lam), "negative entries are lost"),
        (lambda y, lam: y.clamp(-lam, lam), "a clamp: that is what has to be taken away"),
        (lambda y, lam: torch.nn.functional.softshrink(y, 2 * lam), "the step is 2 lam"),
        (lambda y, lam: -torch.nn.functional.softshrink(y, lam), "the sign is wrong"),
    ],
    "least_norm": [
        (lambda a, b: a - (a @ (b - a)) / ((b - a) @ (b - a)) * (b - a) if (a != b).any() else a, "outside of the segment"),
        (lambda a, b: (a + b) / 2, "the middle of the segment"),
        (lambda a, b: min(a, b, key=torch.norm), "the shorter of the two ends"),
        (lambda a, b: max(a, b, key=torch.norm), "the longer of the two ends"),
        (lambda a, b: a - ((a @ (b - a)) / ((b - a) @ (b - a))).clamp(-1, 0) * (b - a), "it holds NaN"),
    ],
    "nested_maximum": [
        (lambda x: x.amax(), "equal shares"),
        (lambda x: torch.maximum(torch.maximum(x[0], x[1]), torch.maximum(x[2], x[3])), "equal shares"),
        (lambda x: torch.maximum(x[0], torch.maximum(x[1], torch.maximum(x[2], x[3]))), "nested the other way round"),
        (lambda x: x.max(dim=0).values, "the first index takes it all"),
        (lambda x: x @ torch.tensor([0.125, 0.125, 0.25, 0.5], dtype=x.dtype), "but this is not a maximum"),
        (lambda x: torch.minimum(torch.minimum(torch.minimum(x[0], x[1]), x[2]), x[3]), "the minimum"),
        (lambda x: x.detach().amax(), "RuntimeError"),
        (lambda x: 3.0, "AttributeError"),
    ],
    "wrong_at_zero": [
        (torch.relu, r"backprop is right about relu\(x\)"),
        (torch.abs, "backprop is right about the absolute value"),
        (lambda x: x, "backprop is right about x"),
        (lambda x: -torch.relu(x), r"backprop is right about -relu\(x\)"),
        (lambda x: 0 * x, "backprop is right about a constant"),
        (lambda x: x.clamp(min=0), "the third not between the other two"),
        (lambda x: x.square(), "not piecewise linear near 0"),
        (torch.sqrt, "not piecewise linear near 0"),
        (lambda x: (x * x).sqrt(), "the gradient at 0 is NaN"),
        (lambda x: (x - 7.0).detach() + 0 * x, "away from 0, too"),
        (lambda x: torch.relu(x).sum(), "the function must work on every entry"),
        (lambda x: x.detach(), "RuntimeError"),
    ],
    "directional_mask": [
        (lambda z, dz: (z > 0).double(), "every tie is off"),
        (lambda z, dz: (z >= 0).double(), "every tie is on"),
        (lambda z, dz: torch.where(z == 0, 0.5, (z > 0).double()), "one half at every tie"),
        (lambda z, dz: torch.where(z == 0, dz < 0, z > 0).double(), "ties go to the wrong side"),
        (lambda z, dz: (dz > 0).double(), "the derivative decides everywhere"),
        (lambda z, dz: (z + dz > 0).double(), "the sum of both numbers"),
        (lambda z, dz: mask(2.0)(z, dz), "not yet"),
        (lambda z, dz: mask(0.0)(z, dz)[:, None], "not yet"),
    ],
    "layer_gradient": [
        (layer(lambda z, dz: (z > 0).double()), "every tied unit is off"),
        (layer(lambda z, dz: (z >= 0).double()), "every tied unit is on|every tied unit is off"),
        (layer(lambda z, dz: torch.where(z == 0, 0.5, (z > 0).double())), "one half for every tied unit"),
        (layer(lambda z, dz: mask(0.0)(z, -dz)), "ties go to the wrong side"),
        (lambda W, b, a, x, v: W.T @ a, "the mask is missing"),
        (lambda W, b, a, x, v: W.T @ mask(0.0)(W @ x + b, W @ v), "the factors a are missing"),
        (lambda W, b, a, x, v: W @ a, "RuntimeError"),
    ],
    "backprop_says": [
        (lambda c: lambda x: 1.0 * x, "backprop is right about this program"),
        (lambda c: identity, "backprop returns 0 at 0, whatever c is"),
        (lambda c: lambda x: (1 - c) * x + c * identity(x), "1 - c and c are exchanged"),
        (lambda c: lambda x: c * x, "that is c times x"),
        (lambda c: lambda x: 2 * c * x + (1 - 2 * c) * identity(x), "twice c"),
        (lambda c: c, "TypeError"),
    ],
    "line_set": [
        (sum_of_intervals, "the sum of the intervals"),
        (line(lambda z: z > 0), "every tied unit is off, at both ends"),
        (line(lambda z: z >= 0), "every tied unit is on, at both ends"),
        (lambda w, b, a, x: sorted(line_slopes(w, b, a, x))[::-1], "the upper end comes first"),
        (
            lambda w, b, a, x: sorted([line(lambda z: z > 0)(w, b, a, x)[0], line(lambda z: z >= 0)(w, b, a, x)[0]]),
            "no pieces",
        ),
    ],
}  # fmt: skip


def test_these_are_all_the_exercises_of_the_chapter():
    public = [name for name, value in vars(checks).items() if isinstance(value, check.Exercise)]
    assert sorted(public) == sorted(NAMES) == sorted(RIGHT) == sorted(WRONG)


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name, answers in RIGHT.items() for answer in answers])
def test_every_right_answer_passes_each_time(name, answer):
    for _ in range(1 if answer is segment_by_search else 10):
        assert getattr(checks, name)(answer).startswith("right: ")


@pytest.mark.parametrize(
    ("name", "answer", "diagnosis"), [(name, *case) for name, cases in WRONG.items() for case in cases]
)
def test_every_common_mistake_fails_with_its_diagnosis(name, answer, diagnosis):
    for _ in range(10):
        with pytest.raises(check.WrongAnswer, match=f"(?s){diagnosis}"):
            getattr(checks, name)(answer)


@pytest.mark.parametrize("name", NAMES)
def test_hints_exist_differ_and_hold_no_code_of_the_solution(name):
    exercise = getattr(checks, name)
    first, second = exercise.hint(1), exercise.hint(2)
    assert 20 < len(first) < 200
    assert 20 < len(second) < 200
    assert first != second
    code = ("torch.", "return", "lambda", "clamp", ".sign(", ".T", "@", "relu(", "maximum(", "softshrink", "float(")
    for text in (first, second):
        assert not any(part in text for part in code), text


@pytest.mark.parametrize(("name", "answer"), [(name, case[0]) for name, cases in WRONG.items() for case in cases])
def test_no_message_shows_code_of_the_solution(name, answer):
    with pytest.raises(check.WrongAnswer) as caught:
        getattr(checks, name)(answer)
    assert not any(part in str(caught.value) for part in ("return ", "lambda", "A.T", "A.mT", "softshrink", "clamp("))


@pytest.mark.parametrize("name", NAMES)
def test_checking_does_not_move_the_seed(name):
    before = torch.get_rng_state()
    getattr(checks, name)(RIGHT[name][0])
    assert torch.equal(torch.get_rng_state(), before)
