"""The module of the chapter on recurrent."""

__all__: list[str] = []
