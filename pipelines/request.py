"""What one generation is asked for and what it gives: plain data, no torch, no HTTP.

A request is complete: seed, size and every default are fixed in it, so that running it twice asks for the same picture.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

OutputFormat = Literal["webp", "jpg", "png"]

SEED_SPACE = 2**32
"""Seeds live modulo 2³²: torch's CPU generator looks at the low 32 bits only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One canonical request.

    model: name of a spec in `pipelines.models`.
    width, height: output size in pixels, multiples of 16.
    steps: denoising steps, at least 1.
    guidance: distilled guidance, an embedding and not classifier-free guidance.
    seed: of image 0, in [0, 2³²). Image i uses `seed_of(i)`.
    control_image: name of a file in the spool's input folder, for depth models only.
    preprocess: False means that the control image already is a depth map (near is bright).
    return_depth: also give back the depth map that steered the picture.
    output_quality: 0–100 for jpg and webp, ignored for png.
    """

    model: str
    prompt: str
    width: int
    height: int
    steps: int
    guidance: float
    seed: int
    num_outputs: int = 1
    control_image: str | None = None
    preprocess: bool = True
    return_depth: bool = False
    output_format: OutputFormat = "png"
    output_quality: int = 80

    def seed_of(self, index: int) -> int:
        """Seed of image `index`; the image can be made again alone by asking for this seed."""
        return (self.seed + index) % SEED_SPACE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GenerationRequest:
        return cls(**data)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """One encoded picture on disk. `index` is the image's place in the request, `seed` the seed it was drawn with."""

    index: int
    seed: int
    file: str
    format: OutputFormat
    width: int
    height: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """What a finished request gave.

    timings_s: seconds per stage (text, depth, control, denoise, decode, encode).
    notes: what the caller should know, such as `unseen_tokens` of a prompt that was too long.
    """

    images: tuple[OutputFile, ...]
    depth_map: OutputFile | None = None
    timings_s: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GenerationResult:
        depth_map = data.get("depth_map")
        return cls(
            images=tuple(OutputFile(**image) for image in data["images"]),
            depth_map=OutputFile(**depth_map) if depth_map else None,
            timings_s=dict(data["timings_s"]),
            notes=dict(data["notes"]),
        )
