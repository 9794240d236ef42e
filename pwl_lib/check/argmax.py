"""Checkers of the exercises of the chapter *Argmax*."""

from __future__ import annotations
