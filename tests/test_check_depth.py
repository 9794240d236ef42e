"""The checkers of the exercises on depth: every right answer passes, every known mistake is named, a blank says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from answers import assert_all_tried, assert_blank_is_told, assert_hidden, assert_named, assert_safe_from_writing
from torch import Tensor

from pwl_lib.check import depth as exercises

# --- right answers --------------------------------------------------------------------------------


def gain(below: float, above: float) -> float:
    return math.sqrt(2 / (below**2 + above**2))


def uniform(outputs: int, inputs: int, slope: float) -> Tensor:
    bound = math.sqrt(6 / (1 + slope**2) / inputs)
    return (2 * torch.rand(outputs, inputs) - 1) * bound


def normal(outputs: int, inputs: int, slope: float) -> Tensor:
    return torch.randn(outputs, inputs) * math.sqrt(2 / (1 + slope**2) / inputs)


def coins(outputs: int, inputs: int, slope: float) -> Tensor:
    return (2 * torch.randint(2, (outputs, inputs)) - 1) * math.sqrt(2 / (1 + slope**2) / inputs)


def kaiming(outputs: int, inputs: int, slope: float) -> Tensor:
    return torch.nn.init.kaiming_normal_(torch.empty(outputs, inputs), a=slope)


def deepest(gain: float, slope: float, share: float) -> int | None:
    factor = gain**2 * (1 + slope**2) / 2
    return None if factor >= 1 else math.floor(math.log(share) / math.log(factor) + 1e-9)


def deepest_by_steps(gain: float, slope: float, share: float) -> int | None:
    factor, left, depth = gain * gain * (1 + slope * slope) / 2, 1.0, 0
    if factor >= 1:
        return None
    while left * factor >= share - 1e-12:
        left, depth = left * factor, depth + 1
    return depth


def dead_units(W: Tensor, b: Tensor, X: Tensor) -> Tensor:
    return (X @ W.T + b <= 0).all(0)


def dead_by_the_largest(W: Tensor, b: Tensor, X: Tensor) -> Tensor:
    return torch.relu(W @ X.T + b[:, None]).amax(1) == 0


def bias_for(share: float, gain: float, h: Tensor) -> Tensor:
    return gain * h.norm() / len(h) ** 0.5 * torch.special.ndtri(torch.tensor(share, dtype=torch.float64))


def bias_by_halving(share: float, gain: float, h: Tensor) -> float:
    s = gain * h.square().mean().sqrt().item()
    low, high = -20 * s, 20 * s
    for _ in range(200):
        middle = (low + high) / 2
        active = (1 + math.erf(middle / s / 2**0.5)) / 2
        low, high = (middle, high) if active < share else (low, middle)
    return low


def switches(units: int, p: Tensor, q: Tensor) -> Tensor:
    return units * torch.arccos((p @ q / (p.norm() * q.norm())).clamp(-1, 1)) / math.pi


def switches_by_chord(units: int, p: Tensor, q: Tensor) -> float:
    chord = (p / p.norm() - q / q.norm()).norm().item() / 2
    return units * 2 * math.asin(min(chord, 1.0)) / math.pi


def balance(y: Tensor, g: Tensor) -> Tensor:
    return (y * g).sum()


def rnn_backward(U: Tensor, before: Tensor, h: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    delta = (1 - h**2) * upstream
    return delta @ U, delta[:, None] * before


def rnn_of(delta: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The answer with another vector in place of the gradient in the pre-activation; of state before, after, upstream."""

    def answer(U: Tensor, before: Tensor, h: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
        own = delta(before, h, upstream)
        return U.T @ own, torch.outer(own, before)

    return answer


def path_by_steps(f: Tensor, s: int) -> Tensor:
    kept = torch.ones_like(f[0])
    for gate in f[s:]:
        kept = kept * gate
    return kept


def lstm_like(
    W: Tensor, U: Tensor, b: Tensor, x: Tensor, h: Tensor, c: Tensor, order: str = "ifgo", **words: Any
) -> tuple[Tensor, Tensor]:
    z = dict(zip(order, (W @ x + U @ h + b).chunk(4), strict=True))
    f = z["f"].sigmoid()
    f = 1 - f if words.get("forget_closed") else f
    g = z["g"].sigmoid() if words.get("positive") else z["g"].tanh()
    c = f * c + z["i"].sigmoid() * g
    return z["o"].sigmoid() * (c if words.get("plain") else c.tanh()), c


def lstm_of_torch(W: Tensor, U: Tensor, b: Tensor, x: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
    return [part[0] for part in torch.lstm_cell(x[None], (h[None], c[None]), W, U, b, 0 * b)]


def logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("gain", gain),
    ("gain", lambda below, above: torch.tensor(2.0).double().sqrt() / math.hypot(below, above)),
    ("he_variance", uniform),
    ("he_variance", normal),
    ("he_variance", coins),
    ("he_variance", kaiming),
    ("deepest", deepest),
    ("deepest", deepest_by_steps),
    ("dead_units", dead_units),
    ("dead_units", dead_by_the_largest),
    ("bias_for", bias_for),
    ("bias_for", bias_by_halving),
    ("switches", switches),
    ("switches", switches_by_chord),
    ("balance", balance),
    ("balance", lambda y, g: (y.T @ g).trace().item()),
    ("rnn_backward", rnn_backward),
    ("rnn_backward", rnn_of(lambda before, h, upstream: upstream - h.square() * upstream)),
    ("cell_path", path_by_steps),
    ("cell_path", lambda f, s: f[s:].log().sum(0).exp()),
    ("lstm_step", lstm_like),
    ("lstm_step", lstm_of_torch),
    ("forget_bias", lambda steps, share: logit(share ** (1 / steps))),
    ("forget_bias", lambda steps, share: -math.log(math.expm1(-math.log(share) / steps))),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{name}-{n}" for n, (name, _) in enumerate(RIGHT)])
def test_every_right_answer_passes(name: str, answer: Callable[..., Any]) -> None:
    for _ in range(3):
        assert getattr(exercises, name)(answer).startswith("right: ")


def test_every_exercise_has_a_right_answer_here() -> None:
    assert {name for name, _ in RIGHT} == set(exercises.__all__)


# --- mistakes -------------------------------------------------------------------------------------


def drawn(spread: Callable[[int, int, float], float]) -> Callable[..., Tensor]:
    """Normal weights with this standard deviation, of outputs, inputs and the root gain."""

    def answer(outputs: int, inputs: int, slope: float) -> Tensor:
        return torch.randn(outputs, inputs) * spread(outputs, inputs, math.sqrt(2 / (1 + slope**2)))

    return answer


def deepest_of(factor: float, share: float) -> int | None:
    if factor >= 1:
        return None
    depth = 0
    while factor ** (depth + 1) >= share * (1 - 1e-12):
        depth += 1
    return depth


def strictly(gain: float, slope: float, share: float) -> int | None:
    found, factor = deepest(gain, slope, share), gain**2 * (1 + slope**2) / 2
    return found - 1 if found and abs(factor**found - share) < 1e-12 else found


def angle(p: Tensor, q: Tensor) -> float:
    return torch.arccos((p @ q / (p.norm() * q.norm())).clamp(-1, 1)).item()


def shows_the_old(W: Tensor, U: Tensor, b: Tensor, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return (W @ x + U @ h + b).chunk(4)[3].sigmoid() * c.tanh(), lstm_like(W, U, b, x, h, c)[1]


MISTAKES: list[tuple[str, Callable[..., Any], str]] = [
    ("gain", lambda a, c: math.sqrt(2 / (1 + a * a)), "slope 1 above 0 alone"),
    ("gain", lambda a, c: 2 / (a * a + c * c), "that is the square of the gain"),
    ("gain", lambda a, c: math.sqrt(2 / abs(a + c)) if a + c else math.inf, "count by their squares"),
    ("gain", lambda a, c: 1 / math.hypot(a, c), "half of the time"),
    ("gain", lambda a, c: math.hypot(a, c) / 2**0.5, "that is the factor itself"),
    ("he_variance", drawn(lambda m, n, root: root / m**0.5), "not of outputs"),
    ("he_variance", drawn(lambda m, n, root: root**2 / n), "the standard deviation, was wanted"),
    ("he_variance", drawn(lambda m, n, root: (2 / n) ** 0.5), "the slope below 0 was forgotten"),
    ("he_variance", drawn(lambda m, n, root: n**-0.5), "gain of a linear layer"),
    ("he_variance", drawn(lambda m, n, root: root / (3 * n) ** 0.5), "the bounds of a uniform"),
    ("he_variance", lambda m, n, a: normal(m, n, a).T, "the outputs come first"),
    ("he_variance", lambda m, n, a: torch.rand(m, n) * (2 / (1 + a * a) / n) ** 0.5, "not symmetric about 0"),
    ("he_variance", lambda m, n, a: normal(m, n, a).abs(), "not yet"),
    ("deepest", lambda g, a, share: deepest_of(g * (1 + a * a) ** 0.5 / 2**0.5, share), "not its root"),
    ("deepest", lambda g, a, share: deepest_of(g * g * (1 + a * a), share), "keeps a part only"),
    ("deepest", lambda g, a, share: deepest_of(g * g / 2, share), "below 0 is seen too"),
    ("deepest", lambda g, a, share: None if deepest(g, a, share) is None else deepest(g, a, share) + 1, "one more"),
    ("deepest", strictly, "may be exactly the share"),
    ("deepest", lambda g, a, share: math.log(share) / math.log(g * g * (1 + a * a) / 2), "in whole numbers"),
    (
        "deepest",
        lambda g, a, share: math.inf if deepest(g, a, share) is None else deepest(g, a, share),
        "None is wanted",
    ),
    (
        "deepest",
        lambda g, a, share: math.floor(math.log(share) / math.log(g * g * (1 + a * a) / 2) + 1e-9),
        "that grows",
    ),
    ("dead_units", lambda W, b, X: (X @ W.T + b <= 0).any(0), "dead means for all"),
    ("dead_units", lambda W, b, X: (X @ W.T + b < 0).all(0), "at exactly 0"),
    ("dead_units", lambda W, b, X: (X @ W.T + b > 0).any(0), "that are not dead"),
    ("dead_units", lambda W, b, X: (X @ W.T <= 0).all(0), "the bias is missing"),
    ("dead_units", lambda W, b, X: (X @ W.T + b).mean(0) <= 0, "the mean over the examples"),
    ("dead_units", lambda W, b, X: (X @ W.T + b <= 0).all(1), "not for each unit"),
    ("bias_for", lambda share, g, h: -bias_for(share, g, h), "the sign is wrong"),
    ("bias_for", lambda share, g, h: bias_for(share, g, h) * len(h) ** 0.5, "the number of inputs in it"),
    ("bias_for", lambda share, g, h: bias_for(share, 1, torch.ones(1)), "standard deviation of 1"),
    ("bias_for", lambda share, g, h: bias_for(share, 1, h), "the gain is missing"),
    ("bias_for", lambda share, g, h: bias_for(share, g, torch.ones(1)) * h.std(), "is not taken off"),
    ("bias_for", lambda share, g, h: bias_for(share, 1, torch.ones(1)) * (g * h.norm()) ** 2 / len(h), "its root was"),
    ("bias_for", lambda share, g, h: share * g * h.norm() / len(h) ** 0.5, "by the inverse of the distribution"),
    ("switches", lambda n, p, q: switches(n, p, q) / 2, "two arcs"),
    ("switches", lambda n, p, q: n * math.degrees(angle(p, q)), "those are degrees"),
    ("switches", lambda n, p, q: n * (1 - math.cos(angle(p, q))) / 2, "not its cosine"),
    ("switches", lambda n, p, q: n - switches(n, p, q), "that do not switch"),
    ("switches", lambda n, p, q: angle(p, q) / math.pi, "not the number"),
    ("balance", lambda y, g: (y * g).sum(1), "over the examples too"),
    ("balance", lambda y, g: (y * g).mean(), "already hold the mean"),
    ("balance", lambda y, g: g.sum(), "has the outputs in it"),
    ("balance", lambda y, g: -(y * g).sum(), "the sign is wrong"),
    ("rnn_backward", rnn_of(lambda before, h, upstream: upstream), "slope of tanh is missing"),
    ("rnn_backward", rnn_of(lambda before, h, upstream: (1 - h) * upstream), "the square of its value"),
    ("rnn_backward", rnn_of(lambda before, h, upstream: (1 - before**2) * upstream), "the state after the step"),
    ("rnn_backward", lambda U, *rest: (rnn_backward(U.T, *rest)[0], rnn_backward(U, *rest)[1]), "goes the transpose"),
    ("rnn_backward", lambda U, b, h, g: ((1 - h * h) * (U.T @ g), rnn_backward(U, b, h, g)[1]), "before the product"),
    ("rnn_backward", lambda *each: (rnn_backward(*each)[0], rnn_backward(*each)[1].T), "a column to an old one"),
    ("cell_path", lambda f, s: f[max(s - 1, 0) :].prod(0), "has acted already"),
    ("cell_path", lambda f, s: f[s + 1 :].prod(0), "a gate is missing"),
    ("cell_path", lambda f, s: f[:s].prod(0), "from the start to the step"),
    ("cell_path", lambda f, s: f[s:].sum(0), "each step multiplies"),
    ("cell_path", lambda f, s: f[s:].prod(0).diag(), "its diagonal was wanted"),
    ("cell_path", lambda f, s: f[s:].prod(), "do not mix"),
    ("lstm_step", lambda *each: lstm_like(*each, order="ifog"), "the candidate is the third"),
    ("lstm_step", lambda *each: lstm_like(*each, order="figo"), "the forget gate is the second"),
    ("lstm_step", lambda *each: lstm_like(*each, positive=True), "either sign"),
    ("lstm_step", lambda *each: lstm_like(*each, forget_closed=True), "an open forget gate keeps"),
    ("lstm_step", lambda *each: lstm_like(*each, plain=True), "is squeezed before"),
    ("lstm_step", lambda W, U, b, *rest: lstm_like(W, U, 0 * b, *rest), "the bias is missing"),
    ("lstm_step", lambda *each: lstm_like(*each)[::-1], "the cell comes second"),
    ("lstm_step", shows_the_old, "not the one before"),
    ("forget_bias", lambda steps, share: share ** (1 / steps), "that is the gate"),
    ("forget_bias", lambda steps, share: -logit(share ** (1 / steps)), "the sign is wrong"),
    ("forget_bias", lambda steps, share: math.exp(logit(share ** (1 / steps))), "not their logarithm"),
    ("forget_bias", lambda steps, share: logit(1 - (1 - share) / steps), "of what is left"),
    ("forget_bias", lambda steps, share: logit(share), "for one step"),
]


@pytest.mark.parametrize(
    ("name", "answer", "said"), MISTAKES, ids=[f"{name}-{n}" for n, (name, _, _) in enumerate(MISTAKES)]
)
def test_every_mistake_is_named(name: str, answer: Callable[..., Any], said: str) -> None:
    assert_named(getattr(exercises, name), answer, said)


def test_every_known_mistake_is_tried() -> None:
    assert_all_tried(exercises, MISTAKES)


# --- blanks, hints and writing --------------------------------------------------------------------


@pytest.mark.parametrize("name", exercises.__all__)
def test_a_blank_says_so(name: str) -> None:
    assert_blank_is_told(getattr(exercises, name))


HIDDEN = {
    "gain": ["below**2", "sqrt(2", "** 0.5"],
    "he_variance": ["sqrt(2", "/ inputs", "randn"],
    "deepest": ["math.log", "gain**2", "while"],
    "dead_units": ["<= 0", ".all(", "@ W.T"],
    "bias_for": ["ndtri", "h.norm", "erf"],
    "switches": ["arccos", "/ math.pi", "/ torch.pi"],
    "balance": ["y * g", ".sum("],
    "rnn_backward": ["h**2", "h * h", "U.T", "outer"],
    "cell_path": [".prod(", "[s:]", "cumprod"],
    "lstm_step": ["chunk", "sigmoid(", "f * c"],
    "forget_bias": ["log(", "1 / steps", "logit"],
}


@pytest.mark.parametrize("name", exercises.__all__)
def test_nothing_gives_the_solution_away(name: str) -> None:
    assert_hidden(getattr(exercises, name), None if name != "deepest" else -1, HIDDEN[name])
    exercise = getattr(exercises, name)
    assert exercise.hint(1) != exercise.hint(2)


@pytest.mark.parametrize(
    "name", ["dead_units", "bias_for", "switches", "balance", "rnn_backward", "cell_path", "lstm_step"]
)
def test_an_answer_that_writes_into_its_arguments_is_compared_with_what_it_was_given(name: str) -> None:
    assert_safe_from_writing(getattr(exercises, name), dict(RIGHT)[name])
