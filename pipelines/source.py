"""A picture that a request brings, as the engine takes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from .picture import decode_file


class Source(Protocol):
    """Its picture is asked for only where nothing that was computed from it is kept."""

    @property
    def picture(self) -> Image.Image:
        """Decoded, RGB."""

    @property
    def key(self) -> str:
        """Names the content."""


@dataclass(frozen=True, slots=True)
class SourceImage:
    """A picture in memory."""

    picture: Image.Image
    key: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file whose name is its key. Each look at `picture` decodes it and may raise UnusablePicture and OSError."""

    path: Path

    @property
    def picture(self) -> Image.Image:
        return decode_file(self.path)

    @property
    def key(self) -> str:
        return self.path.name
