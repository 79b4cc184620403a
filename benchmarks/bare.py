"""The engine alone: a call's body in, the bytes of its file out, in the calling thread. All sides are built on it."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.calls import Call, depth_call, dev_call

if TYPE_CHECKING:
    from pipelines.engine import Engine
    from pipelines.source import SourceImage

CALLS = {call.slug: call for call in (dev_call(), depth_call())}
MEDIA_TYPES = {"jpg": "image/jpeg", "webp": "image/webp"}


def media_type(slug: str) -> str:
    return MEDIA_TYPES[CALLS[slug].fields["output_format"]]


class BareEngine:
    """An engine of the demo weights that draws calls and encodes them as the server does. One call at a time."""

    def __init__(self, weights: Path) -> None:
        from pipelines.heap import keep_freed_memory

        self._engine = load_engine(weights)
        keep_freed_memory()  # as our worker does, so that no side has an advantage by it

    def draw(self, call: Call) -> bytes:
        """The encoded picture, its metadata in it, byte for byte what the server answers."""
        return self.draw_body(call.slug, call.body)

    def draw_body(self, slug: str, body: dict[str, Any]) -> bytes:
        from pipelines.encode import describe, encode_image
        from pipelines.request import GenerationRequest

        fields = CALLS[slug].fields | {"steps": body.get("steps", body.get("num_inference_steps"))}
        request = GenerationRequest(**fields)
        generated = self._engine.generate(request, control_image=_source(body.get("control_image")))
        parameters = describe(request, generated.prompt, request.seed)
        pixels = generated.images[0].pixels
        return encode_image(pixels, request.output_format, request.output_quality, parameters)


def load_engine(weights: Path) -> Engine:
    """The demo family on the CPU with all that a server of it loads: both models, depth estimator, safety checkers."""
    import torch

    from pipelines.components import Folders, load_components
    from pipelines.engine import Engine

    folders = Folders(
        models={"flux-dev": weights / "FLUX.1-dev", "flux-depth-dev": weights / "FLUX.1-Depth-dev"},
        depth_estimator=weights / "depth-anything-large-hf",
        safety_concepts=weights / "safety-concepts",
        nsfw_detector=weights / "nsfw-image-detection",
    )
    return Engine(load_components(folders, device=torch.device("cpu"), dtype=torch.float32))


def _source(text: str | None) -> SourceImage | None:
    from pipelines.picture import decode
    from pipelines.source import SourceImage

    if text is None:
        return None
    data = base64.b64decode(text)
    return SourceImage(decode(data), key=hashlib.sha256(data).hexdigest())
