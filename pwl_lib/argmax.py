r"""Argmax: why it has no useful derivative, the soft argmax, and the straight-through estimator.

The module of the chapter *Argmax*.
"""

from __future__ import annotations

__all__: list[str] = []
