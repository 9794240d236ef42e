"""Checks of arguments. Every message names the argument, what it had and what was wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def check_floating(name: str, value: Tensor) -> None:
    """Raises TypeError unless ``value`` is a real floating point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}")


def check_number(name: str, value: float) -> None:
    """Raises TypeError unless ``value`` is a Python number."""
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def check_finite_number(name: str, value: float) -> None:
    """Raises TypeError unless ``value`` is a number, and ValueError unless it is finite."""
    check_number(name, value)
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an int beyond all floating point numbers
        finite = False
    if not finite:
        raise ValueError(f"{name} must be a finite number, got {value}")


def check_positive(name: str, value: Tensor | float) -> None:
    """Raises ValueError unless ``value`` is finite and above 0, entry by entry."""
    # No tensor is made of a number, so that a compiler can follow.
    positive = (torch.isfinite(value) & (value > 0)).all() if isinstance(value, Tensor) else 0 < value < math.inf
    if not positive:
        raise ValueError(f"{name} must be finite and above 0, got {value}")


def check_temperature(value: float) -> float:
    """The temperature as a float. Raises TypeError unless it is a number, and ValueError unless it is finite and above 0."""
    if isinstance(value, bool):
        raise TypeError("temperature must be a number, got bool")
    check_finite_number("temperature", value)
    check_positive("temperature", value)
    return float(value)


def check_count(name: str, value: int, least: int) -> None:
    """Raises TypeError unless ``value`` is an int, and ValueError if it is below ``least``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_bool(name: str, value: bool) -> None:
    """Raises TypeError unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def refuse_inplace(inplace: bool) -> None:
    """Raises ValueError for ``inplace=True``, which torch's layers have and the derived ones do not need."""
    if inplace:
        raise ValueError(
            "inplace must be False, got True: the backward pass keeps one byte an element and not the input, "
            "so that writing over the input saves nothing that autograd holds"
        )


def check_one_of(name: str, value: object, allowed: Sequence[object], otherwise: str = "") -> None:
    """Raises ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name} must be one of {choices}{' ' * bool(otherwise)}{otherwise}, got {value!r}")


def check_same_kind(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """Raises TypeError unless ``value`` is a tensor of the dtype of ``like``, and ValueError unless it is on its device."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(value).__name__}")
    if value.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of {like_name}, {like.dtype}, got {value.dtype}")
    if value.device != like.device:
        raise ValueError(f"{name} must be on the device of {like_name}, {like.device}, got {value.device}")
