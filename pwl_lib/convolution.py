"""The module of the chapter *convolution*."""

from __future__ import annotations

__all__: list[str] = []
