r"""Maxout: the largest of k affine maps, the convex functions it makes, and the differences of two.

The module of the chapter *Maxout*.
"""

from __future__ import annotations

__all__: list[str] = []
