"""Checkers of the book's exercises: ``check.<chapter>.<exercise>(answer)``.

A checker calls the answer on fresh random inputs and at kinks, and accepts any right value. Where a set of values is right, as at a
kink, every element of it passes. A wrong answer raises :class:`WrongAnswer`, which shows the input, what came, what was wanted,
and the likely mistake. ``check.<chapter>.<exercise>.hint(1)`` and ``.hint(2)`` help a little, and a little more.

Example:
    >>> import torch
    >>> from pwl_lib import check
    >>> check.subgradients.relu_interval.hint(1)[:20] != ""
    True
"""

from __future__ import annotations

import importlib
from types import ModuleType

from pwl_lib.check._exercise import Exercise, WrongAnswer

__all__ = [
    "Exercise",
    "WrongAnswer",
    "argmax",
    "convolution",
    "depth",
    "gradcam",
    "kronecker",
    "logsumexp",
    "losses",
    "maxout",
    "piecewise_linear",
    "pooling",
    "rectifiers",
    "regions",
    "subgradients",
    "training",
]

_CHAPTERS = frozenset(__all__) - {"Exercise", "WrongAnswer"}


def __getattr__(name: str) -> ModuleType:
    if name in _CHAPTERS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; its chapters are {', '.join(sorted(_CHAPTERS))}"
    )


def __dir__() -> list[str]:
    return sorted(__all__)
