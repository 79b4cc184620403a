"""What every estimator has in common: photo in, disparity out, near is large."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from PIL import Image

from ..depth_catalogue import Polarity

NEAREST_M, FARTHEST_M = 0.1, 250.0
"""Metres outside are taken for these before they are inverted (apple/ml-depth-pro, `depth_pro/cli/run.py`): without
that, one pixel close to 0 m would leave everything else black."""

LARGEST_ASPECT = 16
"""A photo longer than this is shown to the estimator as if it were this long. Beyond about 74:1 the resizers of Depth
Anything and DPT round the short side to nothing."""


class DisparityModel(Protocol):
    """An estimator of whatever family."""

    @property
    def modules(self) -> tuple[Any, ...]:
        """The networks that it computes with."""

    def disparity(self, photo: Image.Image, width: int, height: int) -> torch.Tensor:
        """An RGB photo that will steer `width` × `height` pixels → float32 [1, h, w] of any size and scale, on any
        device; near is large. Single values may be infinite or NaN."""


def stretch_photo(photo: Image.Image, width: int, height: int) -> Image.Image:
    """The photo at the output's size, by Lanczos and without a crop, so that map and output line up pixel by pixel
    (black-forest-labs/flux, `prepare_control`). An aspect beyond LARGEST_ASPECT is evened out to it."""
    least = -(-max(width, height) // LARGEST_ASPECT)
    return photo.resize((max(width, least), max(height, least)), Image.Resampling.LANCZOS)


def near_large(raw: torch.Tensor, polarity: Polarity) -> torch.Tensor:
    """Raw output of any shape → float32, near is large. Metres become 1/metre, between 1/FARTHEST_M and 1/NEAREST_M."""
    values = raw.float()
    return values if polarity == "near-large" else 1 / values.clamp(NEAREST_M, FARTHEST_M)
