"""Loading an estimator by its name, from a folder on disk and from nowhere else."""

from __future__ import annotations

from pathlib import Path

import torch

from ..depth_catalogue import EstimatorSpec, find_estimator
from .disparity import DisparityModel
from .estimator import DepthEstimator
from .maps import MapMode


def load_estimator(name: str, folder: Path, device: torch.device, mode: MapMode | None = None) -> DepthEstimator:
    """The estimator called `name`, from its repository's files in `folder`, in float32 on `device`.

    mode: how its output becomes a map; None takes the estimator's own. Raises UnknownEstimator, FileNotFoundError that
    names the first missing file, ValueError for a checkpoint that is another model's, and whatever loading raises.
    """
    spec = find_estimator(name)
    return DepthEstimator(_load_model(spec, folder, device), mode or spec.default_mode)


def _load_model(spec: EstimatorSpec, folder: Path, device: torch.device) -> DisparityModel:
    # Each where it is needed: controlnet-aux takes seconds to import and brings thousands of modules.
    if spec.family == "annotator":
        from .annotators import load_annotator

        return load_annotator(spec, folder, device)
    from .pretrained import load_pretrained

    return load_pretrained(spec, folder, device)
