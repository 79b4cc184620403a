"""From an estimator's raw output to the map that the model sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..depth_catalogue import MapMode

__all__ = ["DepthMap", "MapMode", "scale_map"]

FLAT = 1e-5
"""A map whose spread is less than this part of its largest value says nothing: resizing alone rounds by about 1e-6."""

LARGEST = 1e30
"""Values beyond are taken for infinite, so that sums of them stay finite."""

MIDDLE = 127.5
"""The raw value that bfl-raw maps to middle grey."""


@dataclass(frozen=True, slots=True)
class DepthMap:
    """A depth map float32 [1, 3, H, W] in about −1…1, near is bright, as the VAE reads it."""

    picture: torch.Tensor


def scale_map(disparity: torch.Tensor, width: int, height: int, mode: MapMode) -> DepthMap:
    """Raw disparity [1, h, w] of any float type, near is large → DepthMap of `width` × `height`, always finite.

    Resized with antialiased bicubic, as the reference does, then scaled as `mode` says. bfl-raw is not clamped, as in
    the reference; whoever makes 8-bit pixels of it clamps. minmax gives exactly −1…1, and a constant map becomes middle
    grey. Values that are not finite become the nearest (+∞) or farthest (−∞, NaN) of the others; without any others the
    map is middle grey in both modes.
    """
    raw = _without_gaps(disparity.float())
    large = torch.nn.functional.interpolate(raw[:, None], size=(height, width), mode="bicubic", antialias=True)
    scaled = large / 127.5 - 1 if mode == "bfl-raw" else _stretch(large, raw.abs().amax())
    return DepthMap(scaled.expand(-1, 3, -1, -1).contiguous())


def _without_gaps(raw: torch.Tensor) -> torch.Tensor:
    usable = raw.abs() < LARGEST
    if usable.all():
        return raw
    if not usable.any():
        return torch.full_like(raw, MIDDLE)
    low, high = raw[usable].aminmax()
    return raw.nan_to_num(nan=float(low)).clamp(low, high)


def _stretch(large: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    low, high = large.aminmax()
    span = high - low
    return torch.where(span > FLAT * magnitude, (large - low) / span * 2 - 1, 0.0)
