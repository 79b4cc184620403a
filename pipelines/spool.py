"""A request whose pictures are files: control images in, encoded pictures out.

spool/inputs/<name>                      control images, as the client sent them
spool/outputs/<job>.<attempt>.<i>.<ext>  what was drawn; the reader takes them away
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .encode import encode_image
from .engine import ControlImage, Engine, StepReport
from .faults import BadRequest
from .picture import UnusablePicture, decode_file
from .request import GenerationRequest, GenerationResult, OutputFile, OutputFormat

INPUTS = "inputs"
OUTPUTS = "outputs"


def draw(
    engine: Engine,
    request: GenerationRequest,
    spool: Path,
    *,
    name: str,
    on_step: Callable[[StepReport], None],
    cancelled: Callable[[], bool],
) -> GenerationResult:
    """Computes `request` and writes its pictures to the spool's output folder, their names beginning with `name`.

    Raises what Engine.generate raises, and BadRequest when the control image cannot be read.
    """
    control_image = _control_image(request, spool)
    generated = engine.generate(request, control_image=control_image, on_step=on_step, cancelled=cancelled)
    start = time.perf_counter()
    images = tuple(
        _write(pixels, spool, f"{name}.{index}", index, request.seed_of(index), request)
        for index, pixels in enumerate(generated.images)
    )
    depth_map = None
    if generated.depth_map is not None:
        depth_map = _write_as(generated.depth_map, spool, f"{name}.depth", 0, request.seed, "png", 100)
    timings_s = {**generated.timings_s, "encode": time.perf_counter() - start}
    notes = {"unseen_tokens": generated.unseen_tokens} if generated.unseen_tokens else {}
    return GenerationResult(images=images, depth_map=depth_map, timings_s=timings_s, notes=notes)


def _control_image(request: GenerationRequest, spool: Path) -> ControlImage | None:
    if request.control_image is None:
        return None
    try:
        return ControlImage(decode_file(spool / INPUTS / request.control_image), key=request.control_image)
    except (UnusablePicture, OSError) as error:
        raise BadRequest(f"control_image {error}") from error


def _write(
    pixels: torch.Tensor, spool: Path, name: str, index: int, seed: int, request: GenerationRequest
) -> OutputFile:
    return _write_as(pixels, spool, name, index, seed, request.output_format, request.output_quality)


def _write_as(
    pixels: torch.Tensor, spool: Path, name: str, index: int, seed: int, output_format: OutputFormat, quality: int
) -> OutputFile:
    data = encode_image(pixels, output_format, quality)
    file = f"{name}.{output_format}"
    (spool / OUTPUTS / file).write_bytes(data)
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
