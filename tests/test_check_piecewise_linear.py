"""The checkers of the chapter *Piecewise linear functions*: right answers pass, known mistakes are named."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import nn

from pwl_lib import check
from pwl_lib.check import piecewise_linear as checks

D = torch.float64


def piece(W1, b1, W2, b2, x):
    mask = torch.diag((W1 @ x + b1 > 0).to(D))
    return W2 @ mask @ W1, W2 @ mask @ b1 + b2


def piece_with_units_on_at_ties(W1, b1, W2, b2, x):
    mask = torch.diag((W1 @ x + b1 >= 0).to(D))
    return W2 @ mask @ W1, W2 @ mask @ b1 + b2


def piece_by_autograd(W1, b1, W2, b2, x):
    f = lambda x: W2 @ torch.relu(W1 @ x + b1) + b2
    A = torch.autograd.functional.jacobian(f, x)
    return [A, f(x) - A @ x]


def halfspaces(W, b, x):
    sign = torch.where(W @ x + b > 0, -1.0, 1.0)
    return sign[:, None] * W, -sign * b


def halfspaces_with_unit_normals(W, b, x):
    H, c = halfspaces(W, b, x)
    return H / H.norm(dim=1, keepdim=True), c / H.norm(dim=1)


def exit_time(H, c, p, d):
    return min(((c - H @ p) / (H @ d))[H @ d > 0].tolist(), default=math.inf)


def exit_time_as_a_tensor(H, c, p, d):
    speed, room = H @ d, c - H @ p
    return torch.where(speed > 0, room / speed, math.inf).min()


def hinges(knots, values):
    slopes = values.diff() / knots.diff()
    return torch.cat([slopes[:1], slopes.diff()])


def hinges_by_solving(knots, values):
    return torch.linalg.solve(torch.relu(knots[1:, None] - knots[None, :-1]), values[1:] - values[0])


def hinges_as_a_list(knots, values):
    return hinges(knots, values).tolist()


def pieces_needed(bound, length, eps):
    return max(1, math.ceil(length * math.sqrt(bound / (8 * eps))))


def pieces_needed_by_counting(bound, length, eps):
    n = 1
    while bound * (length / n) ** 2 / 8 > eps:
        n += 1
    return n


def twins():
    one = torch.tensor([1.0])
    return torch.tensor([[1.0], [-1.0]]), torch.zeros(2), torch.tensor([[1.0, -1.0]]), torch.zeros(1), one, -one


def twins_in_the_plane():
    W1 = torch.tensor([[1.0, 2.0], [-2.0, -4.0], [1.0, 1.0]])
    W2 = torch.tensor([[2.0, -1.0, 0.5]])
    return W1, torch.tensor([1.0, -2.0, 100.0]), W2, torch.ones(1), torch.tensor([1.0, 1.0]), torch.tensor([-3.0, -3.0])


def chain(*layers):
    made = []
    for weight, bias in layers:
        weight, bias = torch.tensor(weight, dtype=D), torch.tensor(bias, dtype=D)
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=D)
        layer.weight.data, layer.bias.data = weight, bias
        made += [layer, nn.ReLU()]
    return nn.Sequential(*made[:-1])


def folds():
    tent = ([[2.0, -4.0], [2.0, -4.0]], [0.0, -0.5])
    return chain(([[1.0], [1.0]], [0.0, -0.5]), tent, tent, tent, ([[2.0, -4.0]], [0.0]))


def folds_in_single_precision():
    return folds().float()


RIGHT = {
    "piece": [piece, piece_with_units_on_at_ties, piece_by_autograd],
    "halfspaces": [halfspaces, halfspaces_with_unit_normals],
    "exit_time": [exit_time, exit_time_as_a_tensor],
    "hinges": [hinges, hinges_by_solving, hinges_as_a_list],
    "pieces_needed": [pieces_needed, pieces_needed_by_counting],
    "twins": [twins, twins_in_the_plane],
    "folds": [folds, folds_in_single_precision],
}


def mask(W1, b1, x):
    return (W1 @ x + b1 > 0).to(D)


def flat_net():
    return chain(([[1.0]] * 8, [-k / 8 for k in range(8)]), ([[1.0] * 8], [0.0]))


def too_many_units():
    return chain(([[1.0]] * 20, [-k / 20 for k in range(20)]), ([[1.0] * 20], [0.0]))


WRONG = [
    ("piece", lambda W1, b1, W2, b2, x: (W2 @ W1, W2 @ b1 + b2), "the mask is missing"),
    (
        "piece",
        lambda W1, b1, W2, b2, x: (piece(W1, b1, W2, b2, x)[0], W2 @ b1 + b2),
        "must pass through the mask as well",
    ),
    ("piece", lambda W1, b1, W2, b2, x: (piece(W1, b1, W2, b2, x)[0], b2), "the hidden bias is missing from b"),
    (
        "piece",
        lambda W1, b1, W2, b2, x: (piece(W1, b1, W2, b2, x)[0], W2 @ torch.relu(W1 @ x + b1) + b2),
        "b is the value at x",
    ),
    (
        "piece",
        lambda W1, b1, W2, b2, x: (piece(W1, b1, W2, b2, x)[0].T, piece(W1, b1, W2, b2, x)[1]),
        "A is transposed",
    ),
    (
        "piece",
        lambda W1, b1, W2, b2, x: (W2 * (1 - mask(W1, b1, x)) @ W1, W2 * (1 - mask(W1, b1, x)) @ b1 + b2),
        "the mask is 1 where the unit is off",
    ),
    (
        "piece",
        lambda W1, b1, W2, b2, x: (W2 * torch.relu(W1 @ x + b1) @ W1, W2 * torch.relu(W1 @ x + b1) @ b1 + b2),
        "activations in place of the mask",
    ),
    ("halfspaces", lambda W, b, x: (W, -b), "for the units that are off alone"),
    ("halfspaces", lambda W, b, x: tuple(-part for part in halfspaces(W, b, x)), "look the wrong way"),
    ("halfspaces", lambda W, b, x: (halfspaces(W, b, x)[0], -halfspaces(W, b, x)[1]), "the bias has the wrong sign"),
    (
        "halfspaces",
        lambda W, b, x: (W * (W @ x + b > 0)[:, None], halfspaces(W, b, x)[1]),
        "one row for each unit",
    ),
    (
        "exit_time",
        lambda H, c, p, d: max(((c - H @ p) / (H @ d))[H @ d > 0].tolist(), default=math.inf),
        "the last row that is met",
    ),
    ("exit_time", lambda H, c, p, d: (c - H @ p).min(), "a time is not a distance"),
    ("exit_time", lambda H, c, p, d: ((c - H @ p) / (H @ d)).abs().min(), "rows that are left behind"),
    ("exit_time", lambda H, c, p, d: ((c - H @ p) / (H @ d)).min(), "rows that are left behind"),
    ("hinges", lambda knots, values: values.diff() / knots.diff(), "these are the slopes"),
    (
        "hinges",
        lambda knots, values: torch.cat([values.diff()[:1], values.diff().diff()]),
        "must be divided by the lengths",
    ),
    (
        "hinges",
        lambda knots, values: torch.cat([hinges(knots, values)[:1], hinges(knots, values)[1:] / knots.diff()[1:]]),
        "divided by a length once too often",
    ),
    (
        "hinges",
        lambda knots, values: hinges(knots, values) * (torch.arange(len(values) - 1) > 0),
        "the first slope is missing",
    ),
    ("pieces_needed", lambda bound, length, eps: int(length * math.sqrt(bound / (8 * eps))), "round up"),
    ("pieces_needed", lambda bound, length, eps: math.ceil(length * math.sqrt(bound / eps)), "the 8 of the bound"),
    ("pieces_needed", lambda bound, length, eps: math.ceil(length**2 * bound / (8 * eps)), "like the root of 1 / eps"),
    ("pieces_needed", lambda bound, length, eps: math.ceil(math.sqrt(bound / (8 * eps))), "the length counts as well"),
]

NO_SUCH_NET = [
    ("twins", lambda: (*twins()[:4], torch.tensor([1.0]), torch.tensor([2.0]))),  # one word
    ("twins", lambda: (torch.ones(2, 1), torch.tensor([0.0, -1.0]), *twins()[2:])),  # two pieces
    (
        "twins",
        lambda: (
            torch.eye(2),
            torch.zeros(2),
            torch.tensor([[0.0, 1.0]]),
            torch.zeros(1),
            -torch.ones(2),
            torch.ones(2),
        ),
    ),
    (
        "twins",
        lambda: (
            torch.ones(2, 1),
            torch.zeros(2),
            torch.tensor([[1.0, 0.0]]),
            torch.zeros(1),
            torch.ones(1),
            -torch.ones(1),
        ),
    ),
    ("twins", lambda: twins()[:4]),
    ("twins", lambda: (torch.ones(3, 1), *twins()[1:])),
    ("folds", flat_net),
    ("folds", too_many_units),
    ("folds", lambda: nn.Sequential(nn.Linear(1, 1), nn.Tanh())),
    ("folds", lambda: nn.Linear(1, 1)),
    ("folds", lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))),
]


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name, all_of in RIGHT.items() for answer in all_of])
def test_every_right_answer_passes_each_time(name, answer):
    for _ in range(5):
        assert getattr(checks, name)(answer).startswith("right: ")


def repeat(name, answer, times):
    for _ in range(times):
        getattr(checks, name)(answer)


@pytest.mark.parametrize(("name", "answer", "diagnosis"), WRONG)
def test_every_known_mistake_fails_and_is_named(name, answer, diagnosis):
    said = []
    for _ in range(40):  # an input may hide a mistake, and then the next one must not
        with pytest.raises(check.WrongAnswer) as error:
            repeat(name, answer, 20)
        said.append(str(error.value))
        if diagnosis in said[-1]:
            break
    assert any(diagnosis in text for text in said), said[-1]


@pytest.mark.parametrize(("name", "answer"), NO_SUCH_NET)
def test_a_net_that_does_not_do_what_was_asked_fails(name, answer):
    with pytest.raises(check.WrongAnswer, match="not yet, for your net"):
        getattr(checks, name)(answer)


def test_there_are_exactly_as_many_pieces_as_the_folds_make():
    from pwl_lib.check.piecewise_linear import _pieces_on_unit_interval

    assert _pieces_on_unit_interval(folds()) == 16
    assert _pieces_on_unit_interval(flat_net()) == 8
    assert _pieces_on_unit_interval(nn.Sequential(nn.Linear(1, 1)).double()) == 1


@pytest.mark.parametrize("name", RIGHT)
def test_hints_exist_and_neither_they_nor_a_failure_show_the_solution(name):
    exercise = getattr(checks, name)
    assert exercise.__doc__.startswith(f"``{name}(")
    with pytest.raises(check.WrongAnswer) as error:
        exercise(lambda *_: None)
    shown = exercise.hint(1) + exercise.hint(2) + str(error.value)
    assert len(exercise.hint(1)) > 20 < len(exercise.hint(2))
    assert exercise.hint(1) != exercise.hint(2)
    for answer in RIGHT[name]:
        body = [line.strip() for line in inspect.getsource(answer).splitlines()[1:]]
        assert not [line for line in body if line in shown and len(line) > 3]
    assert not any(code in shown for code in ("torch.", "return", "lambda", ".diff()", "@ W1", "math.", "nn.Linear("))


def test_a_checker_does_not_move_the_readers_seed():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for name, (answer, *_) in RIGHT.items():
        if name != "folds":  # that answer makes layers, which draws numbers
            getattr(checks, name)(answer)
    assert torch.equal(torch.get_rng_state(), before)
