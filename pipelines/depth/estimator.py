"""A depth estimator: any disparity model, and how its output becomes a map."""

from __future__ import annotations

from typing import Any

from PIL import Image

from .disparity import DisparityModel
from .maps import DepthMap, MapMode, scale_map


class DepthEstimator:
    """Turns photos into depth maps, near is bright."""

    def __init__(self, model: DisparityModel, mode: MapMode) -> None:
        self.model, self.mode = model, mode

    @property
    def modules(self) -> tuple[Any, ...]:
        """The networks that it computes with."""
        return self.model.modules

    def estimate(self, photo: Image.Image, width: int, height: int) -> DepthMap:
        """RGB photo of any size → DepthMap of `width` × `height`, finite. Raises what the model raises."""
        return scale_map(self.model.disparity(photo, width, height), width, height, self.mode)
