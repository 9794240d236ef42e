"""The module of the chapter *pooling*."""

from __future__ import annotations

__all__: list[str] = []
