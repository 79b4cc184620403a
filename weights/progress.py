"""How long work on files tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told by the functions that move or read many bytes, from several threads at once. Counts are bytes."""

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Work of `total` bytes begins, `done` of which were there before."""

    def advance(self, count: int) -> None:
        """`count` more bytes are done; negative where some have to be done again."""

    def say(self, text: str) -> None:
        """One line about what happens."""


class Silent:
    """A Progress that tells nobody."""

    def begin(self, title: str, total: int, done: int = 0) -> None: ...

    def advance(self, count: int) -> None: ...

    def say(self, text: str) -> None: ...
