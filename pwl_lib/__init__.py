"""The library of the book *Piecewise Linear Networks*: one module a chapter.

``pwl_lib.functional`` and ``pwl_lib.nn`` hand on the layers of all chapters. ``pwl_lib.check`` and ``pwl_lib.plot``
load when they are first used; ``plot`` needs the extra ``pwl_lib[plot]``.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from pwl_lib import (
    argmax,
    convolution,
    functional,
    gradcam,
    kronecker,
    logsumexp,
    losses,
    maxout,
    nn,
    piecewise_linear,
    pooling,
    rectifiers,
    recurrent,
    regions,
    subgradients,
)

if TYPE_CHECKING:
    from pwl_lib import check, plot

__version__ = "0.1.0"

__all__ = [
    "argmax",
    "check",
    "convolution",
    "functional",
    "gradcam",
    "kronecker",
    "logsumexp",
    "losses",
    "maxout",
    "nn",
    "piecewise_linear",
    "plot",
    "pooling",
    "rectifiers",
    "recurrent",
    "regions",
    "subgradients",
]

_LOADED_WHEN_USED = frozenset({"check", "plot"})


def __getattr__(name: str) -> ModuleType:
    if name in _LOADED_WHEN_USED:
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != "matplotlib":
                raise
            raise ModuleNotFoundError("pwl_lib.plot needs matplotlib: install pwl_lib[plot]", name=error.name) from None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
