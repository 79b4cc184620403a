"""The schedule of noise levels: numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from weights.full_size import SCHEDULER


def load_scheduler_config(folder: Path | None) -> Mapping[str, Any]:
    """The configuration in `folder`, or for None the published one. Raises OSError where the folder lacks it."""
    if folder is None:
        return SCHEDULER
    config: Mapping[str, Any] = FlowMatchEulerDiscreteScheduler.load_config(folder, local_files_only=True)
    return config
