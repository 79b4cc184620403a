"""Output sizes, as the public FLUX services compute them (replicate/cog-flux), with guards where those crash.

flux-dev has a fixed table from aspect ratio to size; the depth model's size follows the control image.
"""

from __future__ import annotations

import math
from typing import Literal

Megapixels = Literal["1", "0.25", "match_input"]

ASPECT_SIZES: dict[str, tuple[int, int]] = {
    "1:1": (1024, 1024),
    "16:9": (1344, 768),
    "21:9": (1536, 640),
    "2:3": (832, 1216),
    "3:2": (1216, 832),
    "4:5": (896, 1088),
    "5:4": (1088, 896),
    "9:16": (768, 1344),
    "9:21": (640, 1536),
    "3:4": (896, 1152),
    "4:3": (1152, 896),
}
"""Width and height in pixels at one megapixel; a quarter of the area is half of each side."""

MATCH_INPUT_LIMIT = 1440
"""Longest side in pixels that `match_input` gives."""

CONTROL_CELL = 32
"""The control model's sides are floored to multiples of this."""

MAX_ASPECT = 8.0
"""A control image whose long side is more than this many times its short side is refused: the area rule would otherwise
ask for sides like 64×11424."""


class UnusableSize(ValueError):
    """A picture's size that no output size can be derived from. The text says the size and the limit."""


def aspect_size(aspect_ratio: str, megapixels: Literal["1", "0.25"] = "1") -> tuple[int, int]:
    """Width and height in pixels of a text-to-image output. Raises KeyError for a ratio that is not in the table."""
    width, height = ASPECT_SIZES[aspect_ratio]
    return (width, height) if megapixels == "1" else (width // 2, height // 2)


def control_size(width: int, height: int, megapixels: Megapixels = "1") -> tuple[int, int]:
    """Output size in pixels for a control image of `width` × `height` pixels (after its EXIF turn).

    "1" and "0.25" scale to that area, up or down; "match_input" only scales down, to at most 1440 a side. Each side is
    then cut to a multiple of 32 and is at least 32. Raises UnusableSize beyond an aspect of 8:1.
    """
    _check_aspect(width, height)
    if megapixels == "match_input":
        scale = min(MATCH_INPUT_LIMIT / width, MATCH_INPUT_LIMIT / height, 1.0)
        if scale < 1.0:
            width, height = int(width * scale), int(height * scale)
    else:
        scale = math.sqrt(int(float(megapixels) * 1024 * 1024) / (width * height))
        width, height = int(width * scale), int(height * scale)
    return _cells(width), _cells(height)


def init_size(width: int, height: int) -> tuple[int, int]:
    """Output size in pixels for an init image of `width` × `height` pixels: its own, at most 1440 a side.

    Sides are rounded to the nearest multiple of 16 and are at least 32. Raises UnusableSize beyond an aspect of 8:1.
    """
    _check_aspect(width, height)
    scale = min(MATCH_INPUT_LIMIT / width, MATCH_INPUT_LIMIT / height, 1.0)
    return _nearest(width * scale), _nearest(height * scale)


def _check_aspect(width: int, height: int) -> None:
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnusableSize(
            f"is {width}×{height} pixels; its long side may be at most {MAX_ASPECT:g} times its short side"
        )


def _cells(side: int) -> int:
    return max(side // CONTROL_CELL, 1) * CONTROL_CELL


def _nearest(side: float) -> int:
    return max(math.floor(side / 16 + 0.5) * 16, CONTROL_CELL)


def sequence_length(width: int, height: int) -> int:
    """Image tokens of an output: one per 16×16 pixels."""
    return (width // 16) * (height // 16)
