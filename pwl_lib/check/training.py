"""Checkers of the chapter *Training*."""

from __future__ import annotations

__all__: list[str] = []
