"""What the tests of the checkers share: a mistake is named, nothing gives a solution away, no argument is written into."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor

from pwl_lib import check


def assert_named(exercise: check.Exercise, answer: Callable[..., Any], said: str) -> None:
    """The inputs are random: the mistake must be named each time."""
    for _ in range(3):
        with pytest.raises(check.WrongAnswer, match=said):
            exercise(answer)


def assert_all_tried(exercises: ModuleType, mistakes: Sequence[tuple[str, Any, str]]) -> None:
    """Every mistake that a checker of a chapter knows is among those that its tests try."""
    for name in exercises.__all__:
        tried = [said for exercise, _, said in mistakes if exercise == name]
        for sentence in {sentence for case in getattr(exercises, name)._cases() for sentence in case.mistakes}:
            assert any(re.search(said, sentence) for said in tried), sentence


def assert_blank_is_told(exercise: check.Exercise) -> None:
    """A student who has not begun is told so."""

    def blank(*arguments: Any) -> Any:
        raise NotImplementedError

    with pytest.raises(check.WrongAnswer, match="still blank"):
        exercise(blank)


def assert_hidden(exercise: check.Exercise, wrong: Any, codes: Sequence[str]) -> None:
    """Neither the hints nor the report of a wrong answer hold code of a solution."""
    with pytest.raises(check.WrongAnswer) as failure:
        exercise(lambda *arguments: wrong)
    shown = " ".join([exercise.hint(1), exercise.hint(2), str(failure.value)])
    for code in codes:
        assert code not in shown


def assert_safe_from_writing(exercise: check.Exercise, right: Callable[..., Any]) -> None:
    """An answer that writes into its arguments is compared with what it was given."""

    def answer(*arguments: Any) -> Any:
        value = right(*[a.clone() if isinstance(a, Tensor) else a for a in arguments])
        for argument in arguments:
            for part in argument if isinstance(argument, list) else [argument]:
                if isinstance(part, Tensor):
                    part.zero_()
        return value

    assert exercise(answer).startswith("right: ")
