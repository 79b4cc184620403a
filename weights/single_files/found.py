"""What is said of a recognised file or folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Component = Literal["pipeline", "transformer", "text-encoder", "vae", "lora", "helper", "other"]
"""pipeline: a model folder or file with everything in it. helper: depth estimator or safety checker."""

Part = Literal["transformer", "t5", "clip", "vae"]
"""What a FLUX model consists of beside tokenizers and schedule, by the names of `weights.sources.ModelSources`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One thing that can be imported, or that was recognised and cannot.

    path: file, or folder. form: how it is packed. what: what it is, in words. model: the catalogue's name of the model
    that it is, or is a part of; None for anything else. precision: of most of its values.
    loadable: whether this version can load it. why_not: the reason otherwise, and what helps.
    parts: of a file that can be loaded, the components in it, each with the prefix of its tensors' names.
    """

    path: Path
    form: str
    what: str
    component: Component
    model: str | None = None
    precision: str = ""
    loadable: bool = False
    why_not: str = ""
    parts: Mapping[Part, str] = field(default_factory=dict)
