"""Checkers of the exercises of the chapter *Maxout*."""

from __future__ import annotations
