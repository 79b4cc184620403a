"""Depth Anything through transformers, the estimator that FLUX.1-Depth-dev was published with."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from .maps import DepthMap, MapMode, scale_map


class DepthEstimator:
    """Turns a photo into a depth map by an AutoModelForDepthEstimation and its own image processor.

    The photo is first stretched to the output's size with Lanczos, as the reference does, so that map and output line
    up pixel by pixel; the model itself then sees about 518 pixels on the short side.
    """

    def __init__(self, model: Any, processor: Any, mode: MapMode = "bfl-raw") -> None:
        self._model, self._processor, self.mode = model, processor, mode

    def estimate(self, photo: Image.Image, width: int, height: int) -> DepthMap:
        """RGB photo → DepthMap of `width` × `height`, on the estimator's device in float32."""
        stretched = photo.resize((width, height), Image.Resampling.LANCZOS)
        inputs = self._processor(images=stretched, return_tensors="pt")
        pixels = inputs["pixel_values"].to(device=self._model.device, dtype=self._model.dtype)
        disparity: torch.Tensor = self._model(pixels).predicted_depth
        return scale_map(disparity, width, height, self.mode)
