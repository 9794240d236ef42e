"""Checkers of the exercises of the chapter *LogSumExp*."""

from __future__ import annotations
