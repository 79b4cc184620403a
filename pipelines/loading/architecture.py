"""The published networks' configurations, where weights come without one. Never from the hub."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weights.full_size import COMPONENTS
from weights.headers import Tensor

from .refusals import UnusableWeights

Architecture = Mapping[str, Any]
"""What a component's class, or its config class, is called with."""

TRANSFORMERS = {64: "transformer-dev", 128: "transformer-depth-dev"}
"""By the packed channels that the image input reads."""

OTHERS = {384: "FLUX.1-Fill"}
IMAGE_INPUTS = ("img_in.weight", "x_embedder.weight")
GUIDANCE = ("guidance_in.in_layer.weight", "time_text_embed.guidance_embedder.linear_1.weight")


def published(component: str) -> Architecture:
    """The configuration of `weights.full_size.COMPONENTS[component]`."""
    return COMPONENTS[component].config


def transformer_architecture(path: Path, tensors: Mapping[str, Tensor]) -> Architecture:
    """That of FLUX.1-dev or FLUX.1-Depth-dev, whichever the tensors are. Raises UnusableWeights for another's."""
    shape = next((tensors[name].shape for name in IMAGE_INPUTS if name in tensors), ())
    channels = shape[1] if len(shape) == 2 else 0
    if channels not in TRANSFORMERS:
        other = OTHERS.get(channels, "another model")
        raise UnusableWeights(f"{path} is {other}'s: its image input reads {channels} channels, not 64 or 128")
    if not any(name in tensors for name in GUIDANCE):
        raise UnusableWeights(f"{path} has no guidance input: it is FLUX.1-schnell, and this server runs FLUX.1-dev")
    return published(TRANSFORMERS[channels])


@contextmanager
def as_folder(class_name: str, architecture: Architecture) -> Iterator[str]:
    """A folder with the config.json that diffusers wants to read, for as long as it reads it."""
    with tempfile.TemporaryDirectory(prefix="flux-config-") as folder:
        config = {"_class_name": class_name, **architecture}
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield folder
