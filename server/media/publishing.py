"""Notes of results that are being published, so that a start after a crash can take back what no job's row names.

A note is a file of names. It is there before the first file gets its public name and goes once the row is committed.
A power cut may lose one, as it is not synced; such pictures go with age, as all do.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

POINTS = ("drawn", "noted", "checked", "placed", "synced", "committed")
"""What publishing goes through, in order. `placed` comes once per file."""


class PublishingNotes:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def write(self, names: list[str]) -> None:
        if names:
            self._note(names).write_text(json.dumps(names), "utf-8")

    def remove(self, names: list[str]) -> None:
        if names:
            self._note(names).unlink(missing_ok=True)

    def take_all(self) -> list[str]:
        """Every noted name; the notes are gone then. A torn note is from before its first file was placed."""
        names: list[str] = []
        for note in self._folder.iterdir():
            with suppress(ValueError):
                names += json.loads(note.read_text("utf-8"))
            note.unlink()
        return names

    def _note(self, names: list[str]) -> Path:
        return self._folder / f"{names[0]}.json"
