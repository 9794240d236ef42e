"""Checkers of the chapter *Losses*."""

from __future__ import annotations

__all__: list[str] = []
