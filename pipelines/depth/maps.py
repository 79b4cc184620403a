"""From an estimator's raw output to the map that the model sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

MapMode = Literal["bfl-raw", "minmax"]
"""bfl-raw: value / 127.5 − 1, made for Depth Anything v1 Large, whose output lives in 0…255 (black-forest-labs/flux
`DepthImageEncoder`). minmax: stretched to the full range, for every other estimator (diffusers' documented recipe)."""


@dataclass(frozen=True, slots=True)
class DepthMap:
    """A depth map [1, 3, H, W] in about −1…1, near is bright, as the VAE reads it."""

    picture: torch.Tensor


def scale_map(disparity: torch.Tensor, width: int, height: int, mode: MapMode) -> DepthMap:
    """Raw disparity [1, h, w], near is large → DepthMap of `width` × `height`.

    bfl-raw is not clamped, as in the reference. A constant map under minmax becomes middle grey rather than NaN.
    """
    large = torch.nn.functional.interpolate(
        disparity[:, None].float(), size=(height, width), mode="bicubic", antialias=True
    )
    if mode == "bfl-raw":
        scaled = large / 127.5 - 1
    else:
        low, high = large.amin(), large.amax()
        span = high - low
        scaled = torch.where(span > 1e-6 * high.abs().clamp(min=1e-6), (large - low) / span * 2 - 1, 0.0)
    return DepthMap(scaled.expand(-1, 3, -1, -1).contiguous())
