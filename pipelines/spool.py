"""A request whose pictures are files: pictures of clients in, encoded pictures out.

spool/inputs/<name>                      control and init images, as the client sent them
spool/outputs/<job>.<attempt>.<i>.<ext>  what was drawn; the reader takes them away
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .encode import describe, encode_image
from .engine import Engine
from .faults import BadRequest
from .order import Asked, Drawn, Generated
from .picture import UnusablePicture
from .request import GenerationRequest, GenerationResult, OutputFile, OutputFormat
from .source import SourceFile

INPUTS = "inputs"
OUTPUTS = "outputs"

_encoders = ThreadPoolExecutor(4, thread_name_prefix="encode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spool:
    """The folder, and whether pictures carry how they were made."""

    folder: Path
    metadata: bool = True

    def compute(self, engine: Engine, asked: Asked) -> Generated:
        """Computes a request that is given without its pictures, after which the device is free.

        Its pictures are being encoded from the moment that there are pixels. Raises what Engine.generate raises.
        """
        return engine.generate_one(self._complete(asked))

    def compute_together(self, engine: Engine, asked: Sequence[Asked]) -> list[Generated | Exception]:
        """Computes several in one batch, as Engine.generate_together."""
        return engine.generate_together([self._complete(each) for each in asked])

    def prepare(self, engine: Engine, request: GenerationRequest) -> None:
        """Lets the engine prepare `request`, where it does that. What is wrong with a request is said when it runs.

        Raises what else Engine.prepare raises.
        """
        if not engine.prepares:
            return
        with suppress(BadRequest, UnusablePicture):
            engine.prepare(
                request,
                control_image=self._source(request.control_image),
                init_image=self._source(request.init_image),
            )

    def write(self, generated: Generated, request: GenerationRequest, *, name: str) -> GenerationResult:
        """Puts what `compute` gave into the output folder, in files whose names begin with `name`. Raises OSError."""
        start = time.perf_counter()
        images = tuple(self._image(drawn, request, name) for drawn in generated.images)
        depth_map = None
        if generated.depth_map is not None:
            data = encode_image(generated.depth_map, "png", 100)
            depth_map = self._file(f"{name}.depth", data, generated.depth_map, 0, request.seed, "png")
        timings_s = {**generated.timings_s, "encode": time.perf_counter() - start}
        return GenerationResult(
            images=images, depth_map=depth_map, timings_s=timings_s, notes=_notes(request, generated)
        )

    def _complete(self, asked: Asked) -> Asked:
        return replace(
            asked,
            control_image=self._source(asked.request.control_image),
            init_image=self._source(asked.request.init_image),
            encode=partial(self._encode, asked.request),
        )

    def _encode(
        self, request: GenerationRequest, generated: Generated, index: int, pixels: torch.Tensor
    ) -> Future[bytes]:
        """Goes on beside the safety check and the next image: Pillow's encoders let go of the interpreter."""
        seed = request.seed_of(index)
        parameters = describe(request, generated.prompt, seed, generated.tier) if self.metadata else None
        return _encoders.submit(encode_image, pixels, request.output_format, request.output_quality, parameters)

    def _source(self, name: str | None) -> SourceFile | None:
        return None if name is None else SourceFile(self.folder / INPUTS / name)

    def _image(self, drawn: Drawn, request: GenerationRequest, name: str) -> OutputFile:
        assert drawn.encoded is not None
        index, data = drawn.index, drawn.encoded.result()
        return self._file(f"{name}.{index}", data, drawn.pixels, index, request.seed_of(index), request.output_format)

    def _file(
        self, name: str, data: bytes, pixels: torch.Tensor, index: int, seed: int, output_format: OutputFormat
    ) -> OutputFile:
        file = f"{name}.{output_format}"
        (self.folder / OUTPUTS / file).write_bytes(data)
        height, width, _ = pixels.shape
        return OutputFile(
            index=index,
            seed=seed,
            file=file,
            format=output_format,
            width=width,
            height=height,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )


def _notes(request: GenerationRequest, generated: Generated) -> dict[str, Any]:
    notes: dict[str, Any] = {"safety": generated.safety, "tier": generated.tier}
    if generated.together > 1:
        notes["together"] = generated.together
    if generated.unseen_tokens:
        notes["unseen_tokens"] = generated.unseen_tokens
    if generated.prompt != request.prompt:
        notes["prompt"] = generated.prompt
    if generated.lora_notes:
        notes["loras"] = list(generated.lora_notes)
    if generated.flagged:
        notes["flagged"] = list(generated.flagged)
    return notes
