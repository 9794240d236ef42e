"""The module of the chapter *losses*."""

from __future__ import annotations

__all__: list[str] = []
