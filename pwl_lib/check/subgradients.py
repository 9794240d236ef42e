"""Checkers of the exercises of the chapter *Subgradients*."""

from __future__ import annotations

from collections.abc import Iterator

from pwl_lib.check._exercise import Case, exercise, random_tensor
