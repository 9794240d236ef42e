"""Checkers of the exercises of the chapter *Depth and time*."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pwl_lib.check._exercise import Case, exercise, harmful, random_tensor

__all__ = [
    "balance",
    "bias_for",
    "cell_path",
    "dead_units",
    "deepest",
    "forget_bias",
    "gain",
    "he_variance",
    "lstm_step",
    "rnn_backward",
    "switches",
]

_random = random.SystemRandom()


# --- depth ----------------------------------------------------------------------------------------


@exercise(
    hint="Of a number and its negative, the activation sees one above 0 and one below. What do the two squares add up to?",
    more="Ask for the factor by which a layer multiplies the mean square, with both slopes in it, and set it to 1.",
)
def gain() -> Iterator[Case]:
    """The gain that keeps the mean square of a signal, for an activation with one slope below 0 and one above."""
    for below, above, where in (
        (0.0, 1.0, "for a ReLU"),
        (1.0, 1.0, "for the identity"),
        (-1.0, 1.0, "for the absolute value"),
        (0.01, 1.0, "for a leaky ReLU"),
        (round(_random.uniform(-0.9, 0.9), 2), round(_random.uniform(0.3, 3), 2), "at random slopes"),
        (round(_random.uniform(1.2, 3), 2), 0.0, "for a unit that is 0 above"),
    ):
        wanted = math.sqrt(2 / (below**2 + above**2))
        wrong = {
            "that is right for slope 1 above 0 alone": math.sqrt(2 / (1 + below**2)),
            "that is the square of the gain": wanted**2,
            "the slopes count by their squares": math.sqrt(2 / abs(below + above)) if below + above else math.inf,
            "each side is seen half of the time": wanted / math.sqrt(2),
            "that is the factor itself, not what makes up for it": 1 / wanted,
        }
        yield Case((below, above), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="How many numbers are added up for one unit? The variance of a weight must get smaller with that number.",
    more="The variance is the square of the gain over the number of inputs. What a function draws with is often the root of it.",
)
def he_variance() -> Iterator[Case]:
    """A random weight matrix that keeps signals through a leaky ReLU; any symmetric distribution."""
    for outputs, inputs, slope, where in (
        (300, 200, 0.0, "for a ReLU"),
        (150, 400, 0.5, "for a leaky ReLU"),
        (400, 200, 1.0, "for the identity"),
    ):
        root = math.sqrt(2 / (1 + slope**2))

        def described(root: float, outputs: int = outputs, inputs: int = inputs) -> Tensor:
            return torch.tensor([outputs, inputs, root, 0.0], dtype=torch.float64)

        wrong = {
            "the variance goes with the number of inputs, not of outputs": described(
                root * math.sqrt(inputs / outputs)
            ),
            "that is the variance where its root, the standard deviation, was wanted": described(
                root**2 / math.sqrt(inputs)
            ),
            "the slope below 0 was forgotten": described(math.sqrt(2)),
            "that is the gain of a linear layer": described(1.0),
            "the bounds of a uniform distribution lie further out than its standard deviation": described(
                root / math.sqrt(3)
            ),
            "the outputs come first in torch's shape": torch.tensor(
                [inputs, outputs, root * math.sqrt(outputs / inputs), 0.0], dtype=torch.float64
            ),
            "numbers between 0 and 1 are not symmetric about 0": torch.tensor(
                [outputs, inputs, root / math.sqrt(12), root / 2], dtype=torch.float64
            ),
        }
        wanted = described(root)
        yield Case(
            (outputs, inputs, slope),
            wanted,
            mistakes={sentence: value for sentence, value in wrong.items() if abs(value[2] - root) > 0.1},
            where=f"{where} (rows, columns, spread and mean in units of one over the root of the inputs)",
            tolerance=0.03,
            measure=_described,
        )


def _described(weight: Any) -> Tensor:
    weight = torch.as_tensor(weight, dtype=torch.float64).detach()
    outputs, inputs = weight.shape
    spread = inputs**0.5 * weight.std()
    return torch.stack([torch.tensor(outputs), torch.tensor(inputs), spread, inputs**0.5 * weight.mean()]).to(
        torch.float64
    )


@exercise(
    hint="By what factor does a layer change the mean square? And fifty layers?",
    more="The power of the factor must stay at or above the share. A factor of at least 1 never falls below any.",
)
def deepest() -> Iterator[Case]:
    """The largest depth at which a share of the mean square is left, for a gain and a slope below 0; or None."""
    for where, low, high in (("for a gain that is too small", 0.4, 1.3), ("for a gain far too small", 0.05, 0.4)):
        for _ in range(3):
            slope, share = round(_random.uniform(0, 0.3), 2), round(_random.uniform(0.001, 0.5), 3)
            yield _deepest_case(round(_random.uniform(low, high), 2), slope, share, where)
    yield _deepest_case(0.5, 0.0, 0.9, "where one layer is too many")
    yield _deepest_case(2.0, 0.0, 0.5, "for a gain that explodes")
    yield _deepest_case(1.5, 0.2, 0.01, "for a gain above the right one")
    yield _deepest_case(1.3, 0.5, 0.01, "where the slope below 0 decides")
    yield _deepest_case(1.0, 0.0, 0.125, "where the share is met exactly")


def _deepest_case(gain: float, slope: float, share: float, where: str) -> Case:
    def deep(factor: float) -> int | None:
        if factor >= 1:
            return None
        depth = 0
        while factor ** (depth + 1) >= share * (1 - 1e-12):
            depth += 1
        return depth

    factor = gain**2 * (1 + slope**2) / 2
    wanted = deep(factor)
    wrong: dict[str, Any] = {
        "the mean square is meant, not its root": deep(math.sqrt(factor)),
        "of the square of a pre-activation an activation keeps a part only": deep(2 * factor),
        "what is below 0 is seen too, with its slope": deep(gain**2 / 2),
    }
    if wanted is not None:
        wrong["one more than wanted: at that depth less than the share is left"] = wanted + 1
        if factor**wanted <= share * (1 + 1e-12):
            wrong["what is left may be exactly the share"] = wanted - 1
        wrong["layers come in whole numbers"] = math.log(share) / math.log(factor)
    else:
        wrong["None is wanted where the share is left at every depth"] = math.inf
        wrong["a signal that grows never falls to the share"] = math.floor(math.log(share) / math.log(factor))
    mistakes = {sentence: value for sentence, value in wrong.items() if value != wanted}
    return Case((gain, slope, share), wanted, mistakes=mistakes, where=where)


@exercise(
    hint="Compute all pre-activations, a row for each example. When does a unit never let anything through?",
    more="Dead is a statement about all examples at once, and a pre-activation of exactly 0 lets nothing through.",
)
def dead_units() -> Iterator[Case]:
    """Which units of a ReLU layer are dead on a batch of inputs."""
    for examples, inputs, units in ((3, 2, 12), (4, 3, 20)):
        X, W, b = random_tensor(examples, inputs), random_tensor(units, inputs), random_tensor(units) - 0.5
        W[0], b[0] = 0, -1
        W[1], b[1] = 0, 1
        yield _dead_case(W, b, X, "at random numbers")
    X, W = random_tensor(3, 2).abs().round(decimals=1) + 0.1, -random_tensor(6, 2).abs()
    W[:3] = 0  # exactly 0 for every example
    W[5] *= -1
    yield _dead_case(W, torch.zeros(6, dtype=torch.float64), X, "with pre-activations of exactly 0")


def _dead_case(W: Tensor, b: Tensor, X: Tensor, where: str) -> Case:
    z = X @ W.T + b
    wanted = (z <= 0).all(0)
    wrong = {
        "those units are off for some example: dead means for all": (z <= 0).any(0),
        "at exactly 0 a ReLU is off too": (z < 0).all(0),
        "those are the units that are not dead": ~wanted,
        "the bias is missing": (X @ W.T <= 0).all(0),
        "the mean over the examples hides the one that is above 0": z.mean(0) <= 0,
        "that asks for each example, not for each unit": (z <= 0).all(1),
    }
    return Case((W, b, X), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="What is the distribution of a pre-activation, for a fixed input and random weights?",
    more="It is normal, and its standard deviation is the gain times the root mean square of the input. Invert the distribution function.",
)
def bias_for() -> Iterator[Case]:
    """The bias with which a given share of the units of a Gaussian layer is active, for a fixed input."""
    for share in (0.5, 0.9, 0.1, round(_random.uniform(0.55, 0.95), 2), round(_random.uniform(0.05, 0.45), 2)):
        inputs = _random.choice((3, 5, 9))
        h, gain = random_tensor(inputs) * _random.uniform(0.3, 3), round(_random.uniform(0.7, 2.5), 2)
        yield _bias_case(share, gain, h, "for one half" if share == 0.5 else "for another share")


def _bias_case(share: float, gain: float, h: Tensor, where: str) -> Case:
    place = torch.special.ndtri(torch.tensor(share, dtype=torch.float64)).item()
    size, n = h.norm().item(), len(h)
    wanted = place * gain * size / math.sqrt(n)
    wrong = {
        "the sign is wrong": -wanted,
        "the variance of a weight has the number of inputs in it": place * gain * size,
        "that is for a standard deviation of 1": place,
        "the gain is missing": place * size / math.sqrt(n),
        "the mean of the input is not taken off: its mean square counts": place * gain * h.std().item(),
        "that is the variance of the pre-activation, where its root was wanted": place * gain**2 * size**2 / n,
        "a share becomes a number of standard deviations by the inverse of the distribution function": share
        * gain
        * size
        / math.sqrt(n),
    }
    return Case((share, gain, h), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="A unit switches between two inputs if its weights have one of them on each side. Only the plane of the two inputs counts.",
    more="In that plane the direction of the weights is uniform. For which part of all directions do the two signs differ?",
)
def switches() -> Iterator[Case]:
    """How many units of a Gaussian layer without biases switch between two inputs, in expectation."""
    for units, inputs in ((64, 3), (10, 5)):
        yield _switches_case(units, random_tensor(inputs), random_tensor(inputs), "at random inputs")
    p = random_tensor(4)
    yield _switches_case(20, p, -2 * p, "at opposite inputs")
    yield _switches_case(20, p, 3 * p, "at inputs in the same direction")
    q = torch.tensor([-p[1].item(), p[0].item(), -p[3].item(), p[2].item()], dtype=torch.float64)
    yield _switches_case(8, p, q, "at a right angle")


def _switches_case(units: int, p: Tensor, q: Tensor, where: str) -> Case:
    cosine = ((p @ q) / (p.norm() * q.norm())).clamp(-1, 1)
    angle = torch.arccos(cosine).item()
    wanted = units * angle / math.pi
    wrong = {
        "the directions fill the whole circle, and there are two arcs on it": wanted / 2,
        "those are degrees": units * math.degrees(angle),
        "the angle is meant, not its cosine": units * (1 - cosine.item()) / 2,
        "those are the units that do not switch": units - wanted,
        "that is the share, not the number": wanted / units,
    }
    # near an angle of 0 or pi the arc cosine has few digits
    return Case((units, p, q), wanted, mistakes=harmful(wrong, wanted), where=where, tolerance=1e-5)


@exercise(
    hint="Multiply all weights of one layer with a number near 1. What does that do to the outputs, and what to the loss?",
    more="Without biases the outputs are multiplied with the same number, whichever layer it was. Differentiate in the number at 1, twice.",
)
def balance() -> Iterator[Case]:
    """The inner product of a layer's weights with their gradient, in a ReLU network without biases, from its outputs."""
    for examples, outputs in ((1, 3), (4, 2), (6, 5)):
        y, g = random_tensor(examples, outputs), random_tensor(examples, outputs)
        wanted = (y * g).sum()
        wrong = {
            "add up over the examples too": (y * g).sum(1),
            "the gradients already hold the mean, if there is one: add up": (y * g).mean(),
            "the inner product has the outputs in it": g.sum(),
            "the sign is wrong": -wanted,
        }
        yield Case((y, g), wanted, mistakes=harmful(wrong, wanted), where="at random outputs and gradients")


# --- time -----------------------------------------------------------------------------------------


@exercise(
    hint="First go back through the activation, then through the product. What is the slope of tanh, if its value is known?",
    more="One vector, the gradient in the pre-activation, gives both answers: by a product with a transpose, and as a column times a row.",
)
def rnn_backward() -> Iterator[Case]:
    """The gradients of one tanh step in the state before it and in the recurrent weights."""
    for inputs, size, where in (
        (3, 4, "at random numbers"),
        (2, 3, "at random numbers"),
        (3, 2, "at a saturated unit"),
    ):
        W, U, x, before, upstream = (
            random_tensor(*shape) for shape in ((size, inputs), (size, size), (inputs,), (size,), (size,))
        )
        h = torch.tanh(W @ x + U @ before)
        if where == "at a saturated unit":
            h[0] = 1.0
        yield _rnn_case(U, before, h, upstream, where)


def _rnn_case(U: Tensor, before: Tensor, h: Tensor, upstream: Tensor, where: str) -> Case:
    def answer(delta: Tensor) -> tuple[Tensor, Tensor]:
        return U.T @ delta, torch.outer(delta, before)

    delta = (1 - h * h) * upstream
    wanted = answer(delta)
    wrong = {
        "the slope of tanh is missing": answer(upstream),
        "the slope of tanh has the square of its value in it": answer((1 - h) * upstream),
        "the slope belongs to the state after the step, not to the one before": answer(
            (1 - before * before) * upstream
        ),
        "back through a product goes the transpose": (U @ delta, wanted[1]),
        "the slope belongs to the new state: it comes before the product": ((1 - h * h) * (U.T @ upstream), wanted[1]),
        "a row of the gradient belongs to a new number, a column to an old one": (wanted[0], wanted[1].T),
    }
    return Case((U, before, h, upstream), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="Which gates does the cell meet on its way from one step to the last? Count them: no step, no gate.",
    more="Each step multiplies by its own forget gate, entry by entry, and the gate of a step has acted when its cell is there.",
)
def cell_path() -> Iterator[Case]:
    """The diagonal of the derivative of the last cell in an earlier one, with the gates held."""
    for steps, size in ((3, 2), (6, 3)):
        forget = random_tensor(steps, size).sigmoid()
        yield _path_case(forget, _random.randrange(1, steps), "at a step in between")
        yield _path_case(forget, 0, "from the start")
        yield _path_case(forget, steps, "from the last step")


def _path_case(forget: Tensor, start: int, where: str) -> Case:
    kept = forget[start:]
    wanted = kept.prod(0)
    wrong = {
        "the gate of the first step has acted already": forget[max(start - 1, 0) :].prod(0),
        "a gate is missing": forget[start + 1 :].prod(0),
        "that is the way from the start to the step": forget[:start].prod(0),
        "a sum of gates is no derivative here: each step multiplies": kept.sum(0),
        "a matrix came, where its diagonal was wanted": wanted.diag(),
        "the numbers of the cell do not mix: entry by entry": kept.prod(),
    }
    return Case((forget, start), wanted, mistakes=harmful(wrong, wanted), where=where)


@exercise(
    hint="One product gives all four blocks. Three of them are shares, between 0 and 1, and one may have either sign.",
    more="The blocks: input, forget, candidate, output. The new cell is a sum; the hidden state shows a part of it, squeezed.",
)
def lstm_step() -> Iterator[Case]:
    """One step of an LSTM: the new hidden state and the new cell."""
    for inputs, size, where in ((3, 2, "at random numbers"), (2, 4, "at random numbers"), (3, 1, "with one unit")):
        shapes = ((4 * size, inputs), (4 * size, size), (4 * size,), (inputs,), (size,), (size,))
        yield _lstm_case(tuple(random_tensor(*shape) for shape in shapes), where)
    W, U, b, x, h, c = (random_tensor(*shape) for shape in ((8, 3), (8, 2), (8,), (3,), (2,), (2,)))
    yield _lstm_case((W, U, b, x, h, torch.zeros_like(c)), "with an empty cell")


def _lstm_case(arguments: tuple[Tensor, ...], where: str) -> Case:
    W, U, b, x, h, c = arguments
    z = W @ x + U @ h + b

    def step(i: Tensor, f: Tensor, g: Tensor, o: Tensor, show: Any = torch.tanh) -> tuple[Tensor, Tensor]:
        cell = f * c + i * g
        return o * show(cell), cell

    z_i, z_f, z_g, z_o = z.chunk(4)
    i, f, g, o = z_i.sigmoid(), z_f.sigmoid(), z_g.tanh(), z_o.sigmoid()
    wanted = step(i, f, g, o)
    wrong = {
        "the blocks stand in another order: the candidate is the third": step(i, f, z_o.tanh(), z_g.sigmoid()),
        "the blocks stand in another order: the forget gate is the second": step(f, i, g, o),
        "the candidate may have either sign": step(i, f, z_g.sigmoid(), o),
        "an open forget gate keeps": step(i, 1 - f, g, o),
        "the cell is squeezed before it is shown": step(i, f, g, o, lambda cell: cell),
        "the bias is missing": _lstm_values(z - b, c),
        "the hidden state shows the new cell, not the one before": (o * c.tanh(), wanted[1]),
        "the cell comes second": (wanted[1], wanted[0]),
    }
    return Case(arguments, wanted, mistakes=harmful(wrong, wanted), where=where)


def _lstm_values(z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = z.chunk(4)
    cell = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


@exercise(
    hint="All steps multiply by the same gate. How large must it be, for the given share to be left after the last?",
    more="The gate is a root of the share. The bias is what the sigmoid makes that gate of: invert it.",
)
def forget_bias() -> Iterator[Case]:
    """The bias of the forget gate with which a share of the cell is left after many steps, if the gate sees nothing else."""
    for steps, share, where in (
        (1, 0.5, "for one step"),
        (100, 0.5, "for a half-life"),
        (_random.randrange(20, 400), round(_random.uniform(0.05, 0.95), 2), "for another share"),
        (_random.randrange(2, 9), round(_random.uniform(0.001, 0.01), 4), "for a small share"),
    ):
        gate = share ** (1 / steps)
        wanted = math.log(gate / (1 - gate))
        wrong = {
            "that is the gate, and the bias is wanted": gate,
            "the sign is wrong": -wanted,
            "that is the odds, not their logarithm": gate / (1 - gate),
            "each step loses a part of what is left, not of what there was": math.log(
                (1 + (share - 1) / steps) / ((1 - share) / steps)
            ),
            "that is for one step": math.log(share / (1 - share)),
        }
        yield Case((steps, share), wanted, mistakes=harmful(wrong, wanted), where=where)
