"""Keeps one worker process alive and lets one job at a time, or one batch of small ones, run in it.

The parent learns of the child's death from the process itself, and of a hang from missing steps. Whatever the child
did, the HTTP side stays up.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from functools import partial

import structlog

from .child import COMMAND, Child, Spawn, spawn
from .errors import WorkerLost, WorkerLostAfterDrawing, WorkerNotReady, WorkerStarted, WorkerStuck
from .hiding import hide
from .job import HandedOver, JobInHand, pixels_of
from .protocol import (
    Cancel,
    Done,
    Drawn,
    Failed,
    Fatal,
    Load,
    Loading,
    Prepare,
    Ready,
    Shutdown,
    Step,
    Up,
    together_message,
)
from .record import ALARM_FAILURES, ALARM_WINDOW_S, LifeRecord
from .spare import Spare
from .step_limit import StepLimit

log = structlog.get_logger(__name__)

STOP_LIMIT_S = 5.0
OUT_OF_MEMORY_LIMIT = 3
"""Jobs that run out of memory in a row before the worker is replaced: something holds memory that no job needs."""


class WorkerState(StrEnum):
    STARTING = "starting"  # spawned, loading and warming up
    READY = "ready"  # idle
    BUSY = "busy"  # has a job or a batch
    DOWN = "down"  # left, waiting to be respawned
    STOPPED = "stopped"  # for good


class WorkerSupervisor:
    """Spawns the worker, again whenever it dies, and runs jobs in it.

    load_limit_s: for loading and warm-up. step_limit_s: between two steps, None for the rule of `step_limit`.
    spare: keep a second process that has imported the libraries. To be used inside one event loop.
    """

    def __init__(
        self,
        load: Load,
        *,
        load_limit_s: float,
        step_limit_s: float | None = None,
        spare: bool = False,
        command: tuple[str, ...] = COMMAND,
        start_child: Spawn | None = None,
    ) -> None:
        self._load, self._load_limit_s = load, load_limit_s
        self._spawn = start_child or partial(spawn, command)
        self._spare = Spare(self._spawn, wanted=spare)
        self._steps = StepLimit(step_limit_s)
        self._record = LifeRecord(time.monotonic)
        self._child: Child | None = None
        self._verdict: Fatal | None = None
        """Why this supervisor ended the child, where it did."""
        self._drawing: list[JobInHand] = []
        """The job that the worker has, or the batch, without those of it that are drawn."""
        self._encoding: list[JobInHand] = []
        """Jobs that are drawn; their pictures are being encoded while the next one is drawn."""
        self._out_of_memory = 0
        self._ready = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self.state = WorkerState.STOPPED
        self.greeting: Ready | None = None
        self.last_words = ""
        """Why the last worker ended, until another is ready."""
        self.doing = ""
        """What a worker that is not ready yet is at."""
        self.plan = ""
        """The memory plan that holds, which an out of memory may change."""

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child and self._child.alive else None

    @property
    def spare_pid(self) -> int | None:
        return self._spare.pid

    @property
    def spare_is_warm(self) -> bool:
        return self._spare.warm

    @property
    def restarts(self) -> Counter[str]:
        """How many of its lives have ended, by reason; see `LifeRecord`."""
        return self._record.restarts

    @property
    def alarm(self) -> str:
        """What is wrong and what to do, while five lives in ten minutes ended without a picture; else empty."""
        if not self._record.alarm:
            return ""
        return (
            f"the worker failed {ALARM_FAILURES} times within {ALARM_WINDOW_S / 60:g} minutes without drawing anything"
            f" (last: {self.last_words or 'unknown'}). Look at the log, run `flux-server doctor` and check the card"
            " with `nvidia-smi`; the worker is still started again every 30 s and queued jobs are kept"
        )

    @property
    def can_draw(self) -> bool:
        """A worker is there and nothing says that it cannot be trusted."""
        return self.state in (WorkerState.READY, WorkerState.BUSY) and not self._record.alarm

    async def start(self) -> None:
        """Begins to keep a worker. Raises WorkerStarted when it does already."""
        if self._keeper is not None:
            raise WorkerStarted("the supervisor runs already")
        self._keeper = asyncio.create_task(self._keep_alive(), name="worker-keeper")

    async def stop(self) -> None:
        """Asks the worker to leave, then makes it. Jobs that it had are lost."""
        keeper, self._keeper = self._keeper, None
        may_farewell = self.state in (WorkerState.READY, WorkerState.BUSY)
        self._enter(WorkerState.STOPPED)
        if keeper:
            keeper.cancel()
            await asyncio.wait({keeper})
        await self._spare.stop()
        if self._child is not None:
            if may_farewell:
                await _farewell(self._child)
            await self._child.end()
            self._child = None
        self._lose_jobs(WorkerLost("the worker was stopped"))

    async def wait_ready(self) -> None:
        """Returns when a worker has loaded and its device is idle."""
        await self._ready.wait()

    def run_together(self, jobs: Sequence[HandedOver]) -> list[asyncio.Future[Done | Failed]]:
        """Gives one job, or several of one `pipelines.company` as one batch, to the ready worker.

        Returns what becomes of each, in order. A future may raise WorkerLost when the worker dies, and WorkerStuck when
        it makes no step within the limit and had to be ended. Raises WorkerNotReady when there is no ready worker.
        """
        if self.state is not WorkerState.READY or self._child is None or not self._child.alive:
            raise WorkerNotReady(f"the worker is {self.state.value}; wait_ready() tells when it takes a job")
        pixels = sum(pixels_of(job.run) for job in jobs)
        stuck = partial(self._end, "stuck")
        self._drawing = [JobInHand(job, self._steps, pixels=pixels, on_stuck=stuck) for job in jobs]
        self._enter(WorkerState.BUSY)
        runs = [job.run for job in jobs]
        self._child.prompts = tuple(str(run.request.get("prompt", "")) for run in runs)
        self._child.send(runs[0] if len(runs) == 1 else together_message(runs))
        return [job.outcome for job in self._drawing]

    @property
    def prepares(self) -> bool:
        """Whether the worker draws and, beside that, prepares what comes next."""
        return self.state is WorkerState.BUSY and self.greeting is not None and self.greeting.prepares

    def prepare(self, following: Prepare) -> None:
        """Tells the worker what comes after what it has. Does nothing where that would be of no use."""
        if self.prepares and self._child is not None:
            self._child.prepared.append(str(following.request.get("prompt", "")))
            self._child.send(following)

    def cancel(self, job: str, attempt: int) -> None:
        """Asks the worker to stop this job before its next step. Does nothing where no worker is."""
        if self._child is not None:
            self._child.send(Cancel(job=job, attempt=attempt))

    async def _keep_alive(self) -> None:
        while True:
            if wait_s := self._record.wait_s:
                log.warning("worker waits before its next start", delay_s=wait_s, reason=self.last_words)
                await asyncio.sleep(wait_s)
            self._take_note(await self._live())

    async def _live(self) -> Fatal:
        """One life of a worker: from its spawn to its end. Returns why it ended."""
        self._enter(WorkerState.STARTING)
        self._verdict, self._out_of_memory = None, 0
        started = time.monotonic()
        try:
            self._child = child = await self._spare.take() or await self._spawn()
        except OSError as error:
            self._enter(WorkerState.DOWN)
            return Fatal(reason="spawn", message=hide(f"the worker cannot be started: {error}"))
        log.info("worker started", pid=child.pid)
        await self._converse(child)
        self._enter(WorkerState.DOWN)
        status = await child.end()
        self._child = None
        age_s = round(time.monotonic() - started, 3)
        end = self._verdict or child.verdict
        log.warning("worker ended", pid=child.pid, status=status, age_s=age_s, reason=end.reason, message=end.message)
        return end

    async def _converse(self, child: Child) -> None:
        """Returns when the worker has no more to say."""
        loading = asyncio.get_running_loop().call_later(self._load_limit_s, self._end_unready)
        child.send(self._load)
        try:
            async for message in child.messages():
                self._hear(child, message)
        finally:
            loading.cancel()

    def _hear(self, child: Child, message: Up) -> None:
        if isinstance(message, Loading | Ready):
            if self.state is WorkerState.STARTING:
                self._greet(child, message)
        elif isinstance(message, Step | Drawn | Done | Failed):
            known = (*self._encoding, *self._drawing)
            if job := next((job for job in known if job.concerns(message)), None):
                self._hear_of(child, job, message)

    def _hear_of(self, child: Child, job: JobInHand, message: Step | Drawn | Done | Failed) -> None:
        if job in self._drawing:
            for mate in self._drawing:  # a worker that draws one of them is not stuck with the others
                mate.postpone()
        if isinstance(message, Step):
            job.progress(message)
        elif isinstance(message, Drawn):
            self._set_free(child, job)
        else:
            self._conclude(child, job, message)

    def _set_free(self, child: Child, job: JobInHand) -> None:
        """The device is done with this job, whose pictures are encoded while it draws others."""
        if job in self._drawing:
            self._encoding.append(job)
            self._leave_device(child, job)
            job.drawn()

    def _leave_device(self, child: Child, job: JobInHand) -> None:
        """After the last of a batch the worker takes the next."""
        self._drawing.remove(job)
        if not self._drawing:
            child.prompts = ()
            self._enter(WorkerState.READY)

    def _greet(self, child: Child, ready: Loading | Ready) -> None:
        if isinstance(ready, Loading):
            self.doing = ready.doing
            log.info("worker is loading", doing=ready.doing)
            return
        self.greeting, self.doing = ready, ""
        self.last_words = ""
        self.plan = ready.plan
        self._steps.warmed_up(ready.warmup_s)
        self._enter(WorkerState.READY)
        self._spare.prepare()
        log.info(
            "worker ready",
            pid=child.pid,
            models=ready.models,
            device=ready.device,
            load_s=round(ready.load_s, 3),
            warmup_s=round(ready.warmup_s, 3),
            together=ready.together,
        )
        log.info("memory plan", plan=ready.plan_line)

    def _conclude(self, child: Child, job: JobInHand, message: Done | Failed) -> None:
        if job in self._drawing:
            self._leave_device(child, job)
        else:
            self._encoding.remove(job)
        if isinstance(message, Done):
            if message.plan and message.plan != self.plan:
                log.warning("memory was short: a smaller plan holds until the worker's next start", plan=message.plan)
                self.plan = message.plan
            self._out_of_memory = 0
            self._record.note_picture()
        elif message.kind == "out_of_memory":
            self._out_of_memory += 1
            if self._out_of_memory >= OUT_OF_MEMORY_LIMIT:
                self._end("out_of_memory", f"{OUT_OF_MEMORY_LIMIT} jobs in a row ran out of memory")
        job.conclude(message)

    def _take_note(self, end: Fatal) -> None:
        had_alarm = self._record.alarm
        self.last_words = end.message if end.reason in ("crashed", "spawn") else f"{end.reason}: {end.message}"
        self._record.note_end(end.reason)
        stuck = end.reason == "stuck"
        self._lose_jobs(WorkerStuck(end.message) if stuck else WorkerLost(self.last_words))
        if self.alarm and not had_alarm:
            log.error("the worker keeps failing", advice=self.alarm)

    def _end_unready(self) -> None:
        if self.state is WorkerState.STARTING:
            self._end("load_timeout", f"the models did not load within {self._load_limit_s:g} s")

    def _end(self, reason: str, words: str) -> None:
        """Kills the worker; its life's end then has this reason."""
        jobs = [job.run.job for job in self._drawing]
        log.error("worker is ended", reason=reason, message=words, jobs=jobs)
        self._verdict = Fatal(reason=reason, message=words)
        self._enter(WorkerState.DOWN)
        if self._child is not None:
            self._child.kill()

    def _lose_jobs(self, error: Exception) -> None:
        drawing, self._drawing = self._drawing, []
        encoding, self._encoding = self._encoding, []
        for job in drawing:
            job.lose(error)
        for drawn in encoding:
            drawn.lose(WorkerLostAfterDrawing(str(error)))

    def _enter(self, state: WorkerState) -> None:
        self.state = state
        if state is WorkerState.READY:
            self._ready.set()
        else:
            self._ready.clear()


async def _farewell(child: Child) -> None:
    """Asks an idle worker to leave and waits for that, within a limit."""
    child.send(Shutdown())
    with suppress(TimeoutError):
        async with asyncio.timeout(STOP_LIMIT_S):
            await child.exit_status()
