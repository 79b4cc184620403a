"""The worker process: loads the models, runs a job or a batch at a time, speaks `protocol` over its standard streams.

It is the one file of this package that may import the engine, and it does so after its streams are in place, so that
imports cannot write into the message stream. It leaves when the parent's pipe closes.
"""

from __future__ import annotations

import gc
import os
import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weights.demo import is_demo
from weights.sources import ModelSources

from .hiding import hide
from .preparing import Preparer
from .protocol import (
    PROTOCOL_VERSION,
    Done,
    Down,
    Drawn,
    Failed,
    Fatal,
    Hello,
    Load,
    Loading,
    Ready,
    Run,
    RunTogether,
    Shutdown,
)
from .steps import Steps
from .wire import Wire, leave, leave_with_parent, take_streams

if TYPE_CHECKING:
    from pipelines.attempt import Fault
    from pipelines.engine import Engine
    from pipelines.order import Asked, Generated
    from pipelines.request import GenerationRequest
    from pipelines.spool import Spool

IDLE_S = 5.0
"""Without work for so long, the worker gives freed memory back to the system."""

LONGEST_KEPT_S = 60.0
"""Between two jobs it does so after this time: small tensors that the caches keep would else pin more and more."""


def main() -> None:
    wire = take_streams()
    leave_with_parent()
    try:
        _import_libraries()
    except Exception as error:
        leave(wire, Fatal(reason="load", message=hide(f"{type(error).__name__}: {error}")))
    wire.send(Hello(version=PROTOCOL_VERSION))
    load = wire.inbox.get()
    if not isinstance(load, Load) or load.version != PROTOCOL_VERSION:
        leave(wire, Fatal(reason="protocol", message=f"expected Load of protocol {PROTOCOL_VERSION}, got {load}"))
        return
    try:
        engine = _load(wire, load)
    except Exception as error:
        leave(wire, Fatal(reason="load", message=hide(f"{type(error).__name__}: {error}")))
        return
    from pipelines.spool import Spool

    _serve(wire, engine, Spool(folder=Path(load.spool), metadata=load.metadata))
    # All is said and written; taking the libraries down in order would take half a second of the server's stop.
    os._exit(0)


def _import_libraries() -> None:
    """Imports what drawing needs, which touches no device.

    The collector would walk the same hundred thousands of long-lived objects again and again, now and at each later
    collection; without it the import takes a fifth less time.
    """
    # Set before the libraries are imported, since they read them then: no hub is asked, no bars are drawn, shards are
    # read in parallel, and threads that wait for each other sleep instead of spinning, which costs several times the
    # time when cores are shared.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_ENABLE_PARALLEL_LOADING": "1"}
    # Memory that models of several sizes take and give back would else end up in pieces that fit none of them.
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    gc.disable()
    from pipelines import assembly, attempt, spool  # noqa: F401

    gc.freeze()
    gc.enable()


def _load(wire: Wire, load: Load) -> Engine:
    from pipelines.assembly import Wishes, assemble
    from pipelines.components import Folders

    # What the compiler makes is kept for the next start; it looks here when it begins to compile.
    os.environ |= {
        "TORCHINDUCTOR_CACHE_DIR": f"{load.compile_cache}/inductor",
        "TRITON_CACHE_DIR": f"{load.compile_cache}/triton",
    }
    wishes = Wishes(
        device=load.device,
        dtype=load.dtype,
        memory_plan=load.memory_plan,
        memory_limit_bytes=load.memory_limit_bytes,
        fast_tiers=load.fast_tiers,
        compiled=load.compiled,
        attention=load.attention,
        prepare_ahead=load.prepare_ahead,
        batching=load.batching,
        depth_estimator=load.depth_estimator_name,
        depth_map_mode=load.depth_map_mode,
    )
    ready = assemble(
        Folders.from_json(asdict(load)),
        wishes,
        engine_type=_engine_type(load),
        tell=lambda doing: wire.send(Loading(doing=doing)),
    )
    wire.send(
        Ready(
            version=PROTOCOL_VERSION,
            models=list(ready.engine.model_names),
            device=ready.device,
            safety_checker=ready.engine.checks_safety,
            load_s=ready.load_s,
            warmup_s=ready.warmup_s,
            plan=ready.plan.name,
            plan_line=ready.plan.line(),
            max_pixels=ready.plan.max_pixels,
            takes_turns=ready.plan.recipe.transformers == "turns",
            tiers=list(ready.engine.tiers),
            graphs=ready.graphs,
            prepares=ready.engine.prepares,
            together=ready.together,
            together_tiers=list(ready.together_tiers),
        )
    )
    return ready.engine


def _engine_type(load: Load) -> type[Engine]:
    """The engine, or the one that fails on demand where that is asked for and the weights are the demo ones."""
    from pipelines.engine import Engine

    homes = [ModelSources.from_json(model).home for model in load.models.values()]
    if load.fault_switches and all(is_demo(home.parent) for home in homes):
        from pipelines.fault_switches import FaultyEngine

        return FaultyEngine
    return Engine


def _serve(wire: Wire, engine: Engine, spool: Spool) -> None:
    from pipelines.heap import give_back_freed_memory

    runner = Runner(wire, engine, spool)
    kept_since: float | None = time.monotonic()
    while True:
        message = _next(wire, IDLE_S if kept_since is not None else None)
        if isinstance(message, Shutdown):
            runner.finish()
            return
        if isinstance(message, Run | RunTogether):
            runner.run(message.members if isinstance(message, RunTogether) else [message])
            kept_since = time.monotonic() if kept_since is None else kept_since
        if kept_since is not None and (message is None or time.monotonic() - kept_since > LONGEST_KEPT_S):
            give_back_freed_memory()
            kept_since = None


def _next(wire: Wire, limit_s: float | None) -> Down | None:
    """The next message, or None when there is none within the limit."""
    try:
        return wire.inbox.get(timeout=limit_s)
    except queue.Empty:
        return None


class Runner:
    """Draws one job or batch after the other in this thread; a second one prepares the next, a third encodes what was
    drawn."""

    def __init__(self, wire: Wire, engine: Engine, spool: Spool) -> None:
        from pipelines.figures import Figures

        self._wire, self._engine, self._spool = wire, engine, spool
        self._figures = Figures(engine)
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._preparer = Preparer(self._prepare)
        wire.on_prepare = self._preparer.take

    def run(self, runs: list[Run]) -> None:
        """Draws one job, or several together, and says of each when it did. Its Done or Failed may come later."""
        from pipelines.attempt import Fault

        self._preparer.drop()
        start, told = time.monotonic(), False
        asked = [self._asked(run) for run in runs]
        for run, each, outcome in zip(runs, asked, self._outcomes(asked), strict=True):
            if isinstance(outcome, Fault):
                self._end(run, _failure(self._wire, runs, run, outcome, time.monotonic() - start))
                continue
            figures = self._figures.take()
            if told:  # the peak is the whole batch's, and was told with its first job
                figures["memory_bytes"] = {}
            told = True
            self._wire.send(Drawn(job=run.job, attempt=run.attempt))
            self._encoder.submit(self._write, run, each.request, outcome, start, figures)

    def finish(self) -> None:
        """Waits for what is still being encoded."""
        self._encoder.shutdown(wait=True)

    def _outcomes(self, asked: list[Asked]) -> Iterator[Generated | Fault]:
        from pipelines.attempt import attempt, attempt_together

        alone = [partial(self._compute, each) for each in asked]
        if len(asked) == 1:
            return iter([attempt(self._engine, alone[0])])
        return attempt_together(self._engine, lambda: self._spool.compute_together(self._engine, asked), alone)

    def _compute(self, asked: Asked) -> Generated:
        return self._spool.compute(self._engine, asked)

    def _asked(self, run: Run) -> Asked:
        from pipelines.order import Asked
        from pipelines.request import GenerationRequest

        request, steps = GenerationRequest.from_json(run.request), Steps(run, self._wire.send)
        return Asked(request=request, on_step=steps.report, cancelled=lambda: self._wire.is_cancelled(run))

    def _prepare(self, request: dict[str, Any]) -> None:
        from pipelines.request import GenerationRequest

        self._spool.prepare(self._engine, GenerationRequest.from_json(request))

    def _write(
        self, run: Run, request: GenerationRequest, generated: Generated, start: float, figures: dict[str, Any]
    ) -> None:
        from pipelines.attempt import Fault, describe
        from pipelines.faults import classify

        try:
            result = self._spool.write(generated, request, name=f"{run.job}.{run.attempt}")
        except Exception as error:
            fault = Fault(classify(error), describe(error))
            self._end(run, _failure(self._wire, [run], run, fault, time.monotonic() - start))
            return
        compute_s = time.monotonic() - start
        done = Done(job=run.job, attempt=run.attempt, result=result.to_json(), compute_s=compute_s, **figures)
        self._end(run, done)

    def _end(self, run: Run, message: Done | Failed) -> None:
        self._wire.send(message)
        self._wire.forget(run)


def _failure(wire: Wire, runs: list[Run], run: Run, fault: Fault, compute_s: float) -> Failed:
    """The failure to report, or the end of this process when the device cannot be used any more.

    runs: what was drawn together with it, of which no prompt may be said.
    """
    from pipelines.attempt import FOR_CLIENTS

    text = fault.text if fault.kind in FOR_CLIENTS else hide(fault.text, *_prompts(runs))
    if fault.kind == "fatal":
        leave(wire, Fatal(reason="device", message=text, job=run.job))
    return Failed(job=run.job, attempt=run.attempt, kind=fault.kind, message=text, compute_s=compute_s)


def _prompts(runs: list[Run]) -> list[str]:
    return [str(run.request.get("prompt", "")) for run in runs]


if __name__ == "__main__":
    main()
