"""What every exercise checker is made of: cases, a comparison that accepts any right answer, and an honest report.

A checker is a generator of `Case`. Each case is one input, with a test that says whether an answer is right, and with the answers
that common mistakes would give there. The report of a wrong answer shows the input, what came and what was wanted, and names the mistake
when the answer is one of those. It never shows how to write the solution.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

CheckFunction = Callable[[], Iterator["Case"]]


class WrongAnswer(AssertionError):
    """The answer to an exercise is missing or wrong; the message says where, and what was wanted."""

    def _render_traceback_(self) -> list[str]:
        # IPython shows this instead of a traceback: the reader's code did not crash, and the frames of a checker teach nothing.
        return str(self).splitlines()


@dataclass(frozen=True)
class Case:
    """One input of an exercise.

    Args:
        arguments: what the answer is called with.
        wanted: the right value, when there is one, or a sentence that describes all right values.
        accept: says whether a value is right; when it is not given, a value near ``wanted`` in shape and numbers is.
        mistakes: the values that known mistakes give here, by a sentence that names the mistake.
        where: what is special about the input, such as "at the kink x = 0".
        tolerance: relative and absolute, for the comparison with ``wanted``.
        measure: what is compared, and shown, in place of the value itself, such as its gradient.
    """

    arguments: tuple[Any, ...]
    wanted: Any
    accept: Callable[[Any], bool] | None = None
    mistakes: Mapping[str, Any] = field(default_factory=dict)
    where: str = "at a random input"
    tolerance: float = 1e-6
    measure: Callable[[Any], Any] | None = None

    def accepts(self, value: Any) -> bool:
        if self.accept is not None:
            return bool(self.accept(value))
        return near(value, self.wanted, self.tolerance)


class Exercise:
    """A checker: call it with your answer; ask it for ``hint(1)``, then ``hint(2)``.

    Calling it returns a sentence when the answer is right at every input, and raises :class:`WrongAnswer` otherwise.
    """

    def __init__(self, cases: CheckFunction, hints: tuple[str, str]) -> None:
        functools.update_wrapper(self, cases)
        self._cases = cases
        self._hints = hints

    def __call__(self, answer: Callable[..., Any]) -> str:
        if not callable(answer):
            raise TypeError(f"answer must be a function, got {type(answer).__name__}; pass it without calling it")
        tried: dict[str, int] = {}
        for case in self._cases():
            self._try(answer, case)
            tried[case.where] = tried.get(case.where, 0) + 1
        return "right: " + ", ".join(f"{count} {where}" for where, count in tried.items())

    def hint(self, level: int = 1) -> str:
        """A hint: level 1 says where to look, level 2 names the idea. Raises ValueError for another level."""
        if level not in (1, 2):
            raise ValueError(f"level must be 1 or 2, got {level}")
        return self._hints[level - 1]

    def __repr__(self) -> str:
        return f"<exercise {self.__name__}: {(self.__doc__ or '').splitlines()[0]}>"  # type: ignore[attr-defined]

    def _try(self, answer: Callable[..., Any], case: Case) -> None:
        # The answer gets copies: one that writes into its arguments must not change what it is compared with.
        arguments = tuple(argument.clone() if isinstance(argument, Tensor) else argument for argument in case.arguments)
        try:
            value = answer(*arguments)
            if case.measure is not None:
                value = case.measure(value)
        except NotImplementedError:
            raise WrongAnswer("the answer is still blank") from None
        except Exception as error:
            raise WrongAnswer(_report(case, f"{type(error).__name__}: {error}", None)) from error
        try:
            right = case.accepts(value)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
            right = False  # a value of the wrong kind or shape
        if not right:
            raise WrongAnswer(_report(case, _show(value), _diagnose(value, case)))


def exercise(*, hint: str, more: str) -> Callable[[CheckFunction], Exercise]:
    """Makes a checker of a generator of cases; ``hint`` and ``more`` are its two hints."""
    return lambda cases: Exercise(cases, (hint, more))


def near(value: Any, wanted: Any, tolerance: float = 1e-6) -> bool:
    """Compares numbers, tensors, and tuples or lists of them: the same shape, and equal to ``tolerance``."""
    if isinstance(wanted, (tuple, list)):
        return (
            isinstance(value, (tuple, list))
            and len(value) == len(wanted)
            and all(near(v, w, tolerance) for v, w in zip(value, wanted, strict=True))
        )
    if isinstance(wanted, (bool, str)) or wanted is None:
        return type(value) is type(wanted) and bool(value == wanted)
    value, wanted = _tensor(value), _tensor(wanted)
    return value.shape == wanted.shape and torch.allclose(value, wanted, rtol=tolerance, atol=tolerance)


def harmful(mistakes: Mapping[str, Any], wanted: Any) -> dict[str, Any]:
    """The mistakes whose values differ from ``wanted``: one that does no harm at an input is none there."""
    return {sentence: value for sentence, value in mistakes.items() if not near(value, wanted)}


def random_tensor(*shape: int) -> Tensor:
    """Fresh normal numbers in double precision, from their own generator: a checker does not move the reader's seed."""
    generator = torch.Generator().manual_seed(random.SystemRandom().getrandbits(63))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).detach()


def _diagnose(value: Any, case: Case) -> str | None:
    likely = []
    for sentence, wrong in case.mistakes.items():
        try:
            if near(value, wrong, case.tolerance):
                likely.append(sentence)
        except (TypeError, ValueError, RuntimeError):
            continue  # a value of another kind
    if likely:
        return "; or ".join(likely)  # at some inputs two mistakes come to the same
    try:
        got, wanted = _tensor(value), _tensor(case.wanted)
    except (TypeError, ValueError, RuntimeError):
        return None
    if got.isnan().any():
        return "it holds NaN: look for 0 / 0 or 0 times infinity"
    if got.shape != wanted.shape:
        if got.dim() == 2 and got.T.shape == wanted.shape and near(got.T, wanted, case.tolerance):
            return "yours is the transpose: denominator layout instead of numerator layout"
        return f"the shape is {tuple(got.shape)}, and {tuple(wanted.shape)} was wanted"
    if got.dim() == 2 and near(got.T, wanted, case.tolerance):
        return "yours is the transpose: denominator layout instead of numerator layout"
    if near(-got, wanted, case.tolerance):
        return "the sign is wrong"
    for axis, size in enumerate(wanted.shape):
        if size > 1 and near(got * size, wanted, case.tolerance):
            return f"it is {size} times too small: a mean over dimension {axis} where a sum was wanted"
        if size > 1 and near(got / size, wanted, case.tolerance):
            return f"it is {size} times too large: a sum over dimension {axis} where a mean was wanted"
    return None


def _report(case: Case, came: str, mistake: str | None) -> str:
    lines = [
        f"not yet, {case.where}",
        f"  tried:  {', '.join(_show(argument) for argument in case.arguments)}",
        f"  came:   {came}",
        f"  wanted: {_show(case.wanted)}",
    ]
    if mistake:
        lines.append(f"  likely: {mistake}")
    return "\n".join(lines)


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        value = value.detach()
        if value.numel() > 24:
            return f"a tensor of shape {tuple(value.shape)}"
        if value.is_floating_point():
            value = (value.double() * 1e4).round() / 1e4
        return str(value.tolist())
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(_show(item) for item in value) + ")"
    if callable(value) and not isinstance(value, type):
        return getattr(value, "__name__", type(value).__name__)
    return str(value)
