"""What one generation is asked for and what it gives: plain data, no torch, no HTTP.

A request is complete: seed, size and every default are fixed in it, so that running it twice asks for the same picture.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

OutputFormat = Literal["webp", "jpg", "png"]

SEED_SPACE = 2**32
"""Seeds live modulo 2³²: torch's CPU generator looks at the low 32 bits only."""


DEFAULT_SAFETY_TOLERANCE = 2
"""Where a request does not say: the reference's thresholds (replicate/cog-flux)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """One adapter: its file's name in the configured folder, without extension, and its scale (1 is as trained)."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One canonical request.

    model: name of a spec in `pipelines.models`.
    width, height: output size in pixels, multiples of 16.
    steps: denoising steps, at least 1.
    guidance: distilled guidance, an embedding and not classifier-free guidance.
    seed: of image 0, in [0, 2³²). Image i uses `seed_of(i)`.
    control_image: name of a file in the spool's input folder, for depth models only.
    init_image: name of a file there that the picture starts from (image-to-image), for text-to-image models only.
    strength: 0–1, how much of the init image is replaced; without one it has no meaning.
    preprocess: False means that the control image already is a depth map (near is bright).
    return_depth: also give back the depth map that steered the picture.
    check_safety: drop pictures that the safety classifiers flag.
    safety_tolerance: 1 (strict) to 6 (permissive); see `pipelines.safety`.
    upsample_prompt: let the configured rewriter make the prompt richer first.
    loras: adapters by name in the configured folder, each with its scale.
    output_quality: 0–100 for jpg and webp, ignored for png.
    tier: of `pipelines.speed.tiers`, "" for the server's default. prefer_fast: the fast tier, where it is offered.
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
    init_image: str | None = None
    strength: float = 1.0
    preprocess: bool = True
    return_depth: bool = False
    check_safety: bool = True
    safety_tolerance: int = DEFAULT_SAFETY_TOLERANCE
    upsample_prompt: bool = False
    loras: tuple[Lora, ...] = ()
    output_format: OutputFormat = "png"
    output_quality: int = 80
    tier: str = ""
    prefer_fast: bool = False

    def seed_of(self, index: int) -> int:
        """Seed of image `index`; the image can be made again alone by asking for this seed."""
        return (self.seed + index) % SEED_SPACE

    @property
    def first_step(self) -> int:
        """The step that an init image enters at: 0 replaces it wholly, `steps` leaves it as it is.

        diffusers' rule (FluxImg2ImgPipeline.get_timesteps), which also gives what exact arithmetic would: strength 0.8
        of 25 steps starts at 5.
        """
        if self.init_image is None:
            return 0
        return int(max(self.steps - min(self.steps * self.strength, self.steps), 0))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GenerationRequest:
        loras = tuple(Lora(**lora) for lora in data.get("loras", ()))
        return cls(**{**data, "loras": loras})


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
    notes: what the caller should know: `unseen_tokens` of a prompt that was too long, `prompt` when it was rewritten,
        `flagged` (indexes of dropped pictures), `safety` (how they were checked), `together` (how many requests were
        drawn in one batch, when this was not the only one).
    """

    images: tuple[OutputFile, ...]
    depth_map: OutputFile | None = None
    timings_s: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def outputs(self) -> list[OutputFile]:
        """The images in order, then the depth map where there is one."""
        return [*self.images, *([self.depth_map] if self.depth_map else [])]

    def files(self) -> list[str]:
        """The names of `outputs`."""
        return [output.file for output in self.outputs()]

    def renamed(self, names: list[str]) -> GenerationResult:
        """The same result with other file names, in the order of `files`."""
        outputs = [replace(output, file=name) for output, name in zip(self.outputs(), names, strict=True)]
        images, rest = outputs[: len(self.images)], outputs[len(self.images) :]
        return replace(self, images=tuple(images), depth_map=rest[0] if rest else None)

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
