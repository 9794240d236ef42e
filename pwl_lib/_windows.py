"""Windows that slide over an image: the arithmetic that convolution and pooling share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Pair = int | Sequence[int]


def check_pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """Two ints of at least ``least``, for rows and columns; one int stands for both, as in torch."""
    sizes = (value,) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise TypeError(f"{name} must be an int or two ints, got {type(value).__name__}")
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        raise TypeError(f"{name} must be an int or two ints, got {value!r}")
    if len(sizes) not in (1, 2):
        raise ValueError(f"{name} must be an int or two ints, got {len(sizes)} of them")
    if min(sizes) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return sizes[0], sizes[-1]


def check_image(name: str, value: Tensor) -> None:
    """Raises ValueError unless ``value`` is an image ``(C, H, W)``, or a batch of them."""
    if value.dim() not in (3, 4):
        raise ValueError(f"{name} must have shape (N, C, H, W) or (C, H, W), got {tuple(value.shape)}")


def output_size(
    size: int, kernel: int, stride: int, before: int, after: int, dilation: int, *, ceil_mode: bool = False
) -> int:
    """How many windows fit: :eq:`eq-conv-size`, and with ``ceil_mode`` the last may reach beyond the end."""
    reach = size + before + after - dilation * (kernel - 1) - 1
    outputs = (-(-reach // stride) if ceil_mode else reach // stride) + 1
    if ceil_mode and (outputs - 1) * stride >= size + before:  # a window begins inside the input or before it
        outputs -= 1
    return outputs


def positions(outputs: int, kernel: int, stride: int, before: int, dilation: int) -> Tensor:
    """``(outputs, kernel)`` int64: where each element of each window lies; below 0 or beyond the end is padding."""
    return torch.arange(outputs)[:, None] * stride - before + torch.arange(kernel) * dilation
