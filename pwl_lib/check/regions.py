"""Checkers of the exercises of the chapter *regions*."""
