r"""LogSumExp: the smooth maximum, its gradient softmax, its Hessian, and smooth pooling.

The module of the chapter *LogSumExp*.
"""

from __future__ import annotations

__all__: list[str] = []
