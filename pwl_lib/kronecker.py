"""Vec and the Kronecker product. The module of the chapter *Kronecker*."""

from __future__ import annotations

__all__: list[str] = []
