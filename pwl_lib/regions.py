"""The module of the chapter on regions."""

__all__: list[str] = []
