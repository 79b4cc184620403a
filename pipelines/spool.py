"""A request whose pictures are files: pictures of clients in, encoded pictures out.

spool/inputs/<name>                      control and init images, as the client sent them
spool/outputs/<job>.<attempt>.<i>.<ext>  what was drawn; the reader takes them away
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
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
from .watch import StepReport

INPUTS = "inputs"
OUTPUTS = "outputs"

_encoders = ThreadPoolExecutor(4, thread_name_prefix="encode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spool:
    """The folder, and whether pictures carry how they were made."""

    folder: Path
    metadata: bool = True

    def draw(self, engine: Engine, request: GenerationRequest, *, name: str) -> GenerationResult:
        """`compute` and `write`, one after the other."""
        return self.write(self.compute(engine, request), request, name=name)

    def compute(
        self,
        engine: Engine,
        request: GenerationRequest,
        *,
        on_step: Callable[[StepReport], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generated:
        """Computes `request`, after which the device is free.

        Raises what Engine.generate raises.
        """
        return engine.generate(
            request,
            control_image=self._source(request.control_image),
            init_image=self._source(request.init_image),
            on_step=on_step,
            cancelled=cancelled,
        )

    def compute_together(self, engine: Engine, asked: Sequence[Asked]) -> list[Generated | Exception]:
        """Computes several requests, given without their pictures, in one batch, as Engine.generate_together."""
        return engine.generate_together(
            [
                replace(
                    each,
                    control_image=self._source(each.request.control_image),
                    init_image=self._source(each.request.init_image),
                )
                for each in asked
            ]
        )

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
        """Encodes the pictures into the output folder, their names beginning with `name`. Raises OSError."""
        start = time.perf_counter()
        # Several pictures are encoded at once, in threads: Pillow's encoders let go of the interpreter.
        images = tuple(_encoders.map(lambda drawn: self._image(drawn, generated, request, name), generated.images))
        depth_map = None
        if generated.depth_map is not None:
            depth_map = self._write(generated.depth_map, f"{name}.depth", 0, request.seed, "png", 100, None)
        timings_s = {**generated.timings_s, "encode": time.perf_counter() - start}
        return GenerationResult(
            images=images, depth_map=depth_map, timings_s=timings_s, notes=_notes(request, generated)
        )

    def _source(self, name: str | None) -> SourceFile | None:
        return None if name is None else SourceFile(self.folder / INPUTS / name)

    def _image(self, drawn: Drawn, generated: Generated, request: GenerationRequest, name: str) -> OutputFile:
        seed = request.seed_of(drawn.index)
        parameters = describe(request, generated.prompt, seed, generated.tier) if self.metadata else None
        return self._write(
            drawn.pixels,
            f"{name}.{drawn.index}",
            drawn.index,
            seed,
            request.output_format,
            request.output_quality,
            parameters,
        )

    def _write(
        self,
        pixels: torch.Tensor,
        name: str,
        index: int,
        seed: int,
        output_format: OutputFormat,
        quality: int,
        parameters: str | None,
    ) -> OutputFile:
        data = encode_image(pixels, output_format, quality, parameters)
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
