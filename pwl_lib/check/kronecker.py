"""Checkers of the chapter *Kronecker*."""

from __future__ import annotations

__all__: list[str] = []
