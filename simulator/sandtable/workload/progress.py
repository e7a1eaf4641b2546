"""Which step of how many goes on, in work that tells somebody of its progress."""

from __future__ import annotations


class Step(str):
    """What goes on now, as a text that knows its place: ``done`` of ``total`` steps came before it."""

    __slots__ = ("done", "total")
    done: int
    total: int

    def __new__(cls, text: str, done: int, total: int) -> Step:
        """Return the text with its place."""
        made = super().__new__(cls, text)
        made.done, made.total = done, total
        return made
