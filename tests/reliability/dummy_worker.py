"""A worker without torch: the real worker's end of the line, grey pictures instead of an engine.

It is there in a tenth of a second, so that deaths can be had by the dozen. A prompt may say `[step_s=0.2]`, or
`[fail]`, `[hang]` or `[exit]`, which it does after the first step, or `[exit when prepared]`.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.request import GenerationRequest, GenerationResult, OutputFile
from server.worker.protocol import (
    PROTOCOL_VERSION,
    Done,
    Failed,
    Hello,
    Load,
    Prepare,
    Ready,
    Run,
    RunTogether,
    Step,
)
from server.worker.wire import Wire, leave_with_parent, take_streams

STEP_S = 0.005


def filled(kind: type[Any], **given: Any) -> Any:
    """A message with what matters here; its other required fields hold something of their type."""
    samples = {"str": "x", "int": 1, "float": 0.0, "bool": False, "dict": {}, "list": []}
    required = [field for field in fields(kind) if field.default is field.default_factory]
    return kind(**{field.name: samples.get(re.split(r"\W", str(field.type))[0], "auto") for field in required} | given)


def main() -> None:
    wire = take_streams()
    leave_with_parent()
    wire.send(Hello(version=PROTOCOL_VERSION))
    load = wire.inbox.get()
    assert isinstance(load, Load)
    wire.on_prepare = prepare
    ready = {
        "prepares": load.prepare_ahead == "on",
        "models": list(load.models),
        "device": "none",
        "max_pixels": 2**24,
        "tiers": ["exact"],
    }
    if load.batching == "on":
        ready |= {"together": 4, "together_tiers": ["exact"]}
    wire.send(filled(Ready, version=PROTOCOL_VERSION, **ready))
    while isinstance(message := wire.inbox.get(), Run | RunTogether):
        runs = message.members if isinstance(message, RunTogether) else [message]
        work = [run(wire, each, Path(load.spool) / "outputs", len(runs)) for each in runs]
        while work:
            work = [job for job in work if next(job, None)]
    os._exit(0)


def prepare(message: Prepare) -> None:
    if "[exit when prepared]" in message.request["prompt"]:
        os._exit(9)


def run(wire: Wire, run: Run, outputs: Path, together: int) -> Iterator[bool]:
    """The work on a job, which stops after each step."""
    request, start = GenerationRequest.from_json(run.request), time.monotonic()
    wanted = re.search(r"\[step_s=([\d.]+)\]", request.prompt)
    for step in range(1, request.steps + 1):
        if wire.is_cancelled(run):
            wire.send(Failed(job=run.job, attempt=run.attempt, kind="cancelled", message=""))
            return
        time.sleep(float(wanted[1]) if wanted else STEP_S)
        wire.send(Step(job=run.job, attempt=run.attempt, step=step, steps=request.steps, step_s=STEP_S))
        if "[fail]" in request.prompt:
            wire.send(Failed(job=run.job, attempt=run.attempt, kind="unknown", message="as it was asked to"))
            return
        if "[hang]" in request.prompt:
            threading.Event().wait()
        if "[exit]" in request.prompt:
            os._exit(9)
        yield True
    images = tuple(draw(request, run, index, outputs) for index in range(request.num_outputs))
    notes = {"together": together} if together > 1 else {}
    result: dict[str, Any] = GenerationResult(images=images, notes=notes).to_json()
    wire.send(Done(job=run.job, attempt=run.attempt, result=result, compute_s=time.monotonic() - start))


def draw(request: GenerationRequest, run: Run, index: int, outputs: Path) -> OutputFile:
    buffer, seed = io.BytesIO(), request.seed_of(index)
    Image.new("RGB", (request.width, request.height), (seed % 256,) * 3).save(buffer, "PNG")
    data, file = buffer.getvalue(), f"{run.job}.{run.attempt}.{index}.png"
    (outputs / file).write_bytes(data)
    return OutputFile(
        index=index,
        seed=seed,
        file=file,
        format="png",
        width=request.width,
        height=request.height,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


if __name__ == "__main__":
    main()
