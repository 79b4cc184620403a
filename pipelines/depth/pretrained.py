"""Estimators of transformers: Depth Anything, DPT and ZoeDepth, each with its own image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from weights.completeness import classifier_problem

from ..depth_catalogue import EstimatorSpec, Polarity
from .disparity import near_large, stretch_photo


class PretrainedDisparity:
    """An AutoModelForDepthEstimation with its image processor: Depth Anything v1, v2 and metric.

    Its processor leaves about 518 pixels on the short side, in patches of 14.
    """

    def __init__(self, model: Any, processor: Any, polarity: Polarity) -> None:
        self._model, self._processor, self._polarity = model, processor, polarity

    @property
    def modules(self) -> tuple[Any, ...]:
        return (self._model,)

    def disparity(self, photo: Image.Image, width: int, height: int) -> torch.Tensor:
        seen = stretch_photo(photo, width, height)
        inputs = self._processor(images=seen, return_tensors="pt", **self._processor_options())
        outputs = self._model(inputs["pixel_values"].to(device=self._model.device, dtype=self._model.dtype))
        outputs.predicted_depth = near_large(outputs.predicted_depth, self._polarity)
        return self._whole_photo(outputs, seen)

    def _processor_options(self) -> dict[str, Any]:
        return {}

    def _whole_photo(self, outputs: Any, seen: Image.Image) -> torch.Tensor:
        """The part of the output [1, h, w] that shows the photo and nothing else."""
        depth: torch.Tensor = outputs.predicted_depth
        return depth


class DptDisparity(PretrainedDisparity):
    """DPT. It takes squares of its training size only, so the photo is squeezed into one, as its processor does too
    where that was published with the model."""

    def _processor_options(self) -> dict[str, Any]:
        side = self._model.config.image_size
        return {"size": {"height": side, "width": side}, "keep_aspect_ratio": False, "ensure_multiple_of": 1}


class ZoeDepthDisparity(PretrainedDisparity):
    """ZoeDepth. Its processor pads the photo by reflection; the padding is cut off again here.

    The cut is made in disparity, not in metres: resizing metres can undershoot 0 beside an edge.
    """

    def _whole_photo(self, outputs: Any, seen: Image.Image) -> torch.Tensor:
        (found,) = self._processor.post_process_depth_estimation(outputs, source_sizes=[(seen.height, seen.width)])
        depth: torch.Tensor = found["predicted_depth"]
        return depth[None]


_FAMILIES: dict[str, type[PretrainedDisparity]] = {
    "depth-anything": PretrainedDisparity,
    "dpt": DptDisparity,
    "zoedepth": ZoeDepthDisparity,
}


def load_pretrained(spec: EstimatorSpec, folder: Path, device: torch.device) -> PretrainedDisparity:
    """The model in float32 and its processor from `folder`. Raises FileNotFoundError that names a missing file."""
    if problem := classifier_problem(folder):
        raise FileNotFoundError(f"{folder}: {problem}")
    model = AutoModelForDepthEstimation.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    # The PIL backend is pinned because the torchvision one resizes differently, which would change every depth map.
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    return _FAMILIES[spec.family](model.to(device).eval().requires_grad_(False), processor, spec.polarity)
