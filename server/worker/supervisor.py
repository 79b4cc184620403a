"""Keeps one worker process alive and lets one job at a time run in it.

The parent learns of the child's death from its pipe closing, and of a hang from missing steps. Whatever the child did,
the HTTP side stays up.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

import structlog

from .protocol import Cancel, Done, Failed, Fatal, Load, ProtocolError, Ready, Run, Shutdown, Step, Up, decode, encode

log = structlog.get_logger(__name__)

BACKOFF_S = (0.0, 1.0, 5.0, 30.0)
"""Waits before respawns, by how many times in a row the worker left before it was ready."""

LINE_LIMIT_BYTES = 1024 * 1024
STOP_LIMIT_S = 5.0

DEATH_POLL_S = 0.02
LAST_WORDS_LIMIT_S = 0.1
"""For what a dead worker's pipe still holds."""

COMMAND = (sys.executable, "-P", "-m", "server.worker.main")


class WorkerState(StrEnum):
    STARTING = "starting"  # spawned, loading and warming up
    READY = "ready"  # idle
    BUSY = "busy"  # has a job
    DOWN = "down"  # left, waiting to be respawned
    STOPPED = "stopped"  # for good


class WorkerLost(RuntimeError):
    """The worker process ended while it had a job."""


class WorkerStuck(RuntimeError):
    """The worker made no step for too long and was ended."""


@dataclass(frozen=True, slots=True)
class _Gone:
    """What a job hears when its worker's life has ended."""

    reason: str


class WorkerSupervisor:
    """Spawns the worker, again whenever it dies, and runs jobs in it."""

    def __init__(
        self, load: Load, *, load_limit_s: float, step_limit_s: float, command: tuple[str, ...] = COMMAND
    ) -> None:
        self._load, self._command = load, command
        self._load_limit_s, self._step_limit_s = load_limit_s, step_limit_s
        self._process: asyncio.subprocess.Process | None = None
        self._ready = asyncio.Event()
        self._messages: asyncio.Queue[Up | _Gone] = asyncio.Queue()
        self._keeper: asyncio.Task[None] | None = None
        self._failures = 0
        self.state = WorkerState.STOPPED
        self.greeting: Ready | None = None
        self._words = ""
        self.last_words = ""
        """Why the last worker ended, until another is ready."""
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep_alive(), name="worker-keeper")

    async def stop(self) -> None:
        """Asks the worker to leave, then makes it."""
        if self._keeper:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        self._enter(WorkerState.STOPPED)
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._send(Shutdown())
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await _exit_status(process)
        except TimeoutError:
            _kill(process)
            await _exit_status(process)
        _close(process)

    async def wait_ready(self) -> None:
        """Returns when a worker has loaded and is idle."""
        await self._ready.wait()

    async def run(self, run: Run, on_step: Callable[[Step], None]) -> Done | Failed:
        """Runs one job in the ready worker.

        Raises WorkerLost when the worker dies, WorkerStuck when it makes no step within the limit and had to be ended.
        """
        self._enter(WorkerState.BUSY)
        self._messages = asyncio.Queue()
        self._send(run)
        while True:
            try:
                async with asyncio.timeout(self._step_limit_s):
                    message = await self._messages.get()
            except TimeoutError:
                await self._end_stuck(run)
                raise WorkerStuck(f"no step within {self._step_limit_s:g} s; the worker was replaced") from None
            if isinstance(message, _Gone):
                raise WorkerLost(message.reason)
            if isinstance(message, Step) and (message.job, message.attempt) == (run.job, run.attempt):
                on_step(message)
            elif isinstance(message, Done | Failed) and (message.job, message.attempt) == (run.job, run.attempt):
                self._enter(WorkerState.READY)
                return message

    def cancel(self, job: str, attempt: int) -> None:
        """Asks the worker to stop this job before its next step."""
        self._send(Cancel(job=job, attempt=attempt))

    async def _end_stuck(self, run: Run) -> None:
        log.error("worker stuck", job=run.job, limit_s=self._step_limit_s)
        if self._process is not None:
            _kill(self._process)
        while not isinstance(await self._messages.get(), _Gone):
            pass

    async def _keep_alive(self) -> None:
        while True:
            delay_s = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
            if delay_s:
                log.warning("worker waits before its next start", delay_s=delay_s, reason=self.last_words)
                await asyncio.sleep(delay_s)
            self._failures += 1
            await self._live()
            self.restarts += 1

    async def _live(self) -> None:
        """One life of a worker: from its spawn to its end."""
        self._enter(WorkerState.STARTING)
        started = time.monotonic()
        self._words = ""
        try:
            process = await self._spawn()
        except OSError as error:
            self.last_words = f"the worker cannot be started: {error}"
            self._enter(WorkerState.DOWN)
            return
        self._process = process
        log.info("worker started", pid=process.pid)
        watchdog = asyncio.get_running_loop().call_later(self._load_limit_s, self._end_unready, process)
        try:
            self._send(self._load)
            await self._listen_while_alive(process)
        finally:
            watchdog.cancel()
            if self.state is not WorkerState.STOPPED:
                self._enter(WorkerState.DOWN)
        _kill(process)
        code = await _exit_status(process)
        _close(process)
        self.last_words = self._words or f"the worker process ended with status {code}"
        self._messages.put_nowait(_Gone(self.last_words))
        log.warning("worker ended", pid=process.pid, status=code, age_s=round(time.monotonic() - started, 3))

    async def _spawn(self) -> asyncio.subprocess.Process:
        """The child's stdin and stdout carry messages; its stderr goes where ours goes."""
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe, limit=LINE_LIMIT_BYTES)

    async def _listen_while_alive(self, process: asyncio.subprocess.Process) -> None:
        """Returns when the worker has no more to say or is dead.

        A pipe alone does not tell death: a helper process that the worker started may hold it open.
        """
        listening = asyncio.ensure_future(self._listen(process))
        dying = asyncio.ensure_future(_exit_status(process))
        try:
            await asyncio.wait({listening, dying}, return_when=asyncio.FIRST_COMPLETED)
            if not listening.done():
                await asyncio.wait({listening}, timeout=LAST_WORDS_LIMIT_S)
        finally:
            listening.cancel()
            dying.cancel()
            await asyncio.gather(listening, dying, return_exceptions=True)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Hands on what the worker says, until its pipe closes, it gives up, or it says something unreadable."""
        assert process.stdout is not None
        async for line in process.stdout:
            try:
                message = decode(line)
            except ProtocolError as error:
                self._words = str(error)
                log.error("worker sent something unreadable", reason=str(error))
                return
            if isinstance(message, Fatal):
                self._words = f"{message.reason}: {message.message}"
                log.error("worker gives up", reason=message.reason, message=message.message)
                return
            if isinstance(message, Ready):
                self._greet(message)
            else:
                self._messages.put_nowait(message)

    def _greet(self, ready: Ready) -> None:
        self.greeting = ready
        self.last_words = ""
        self._failures = 0
        self._enter(WorkerState.READY)
        log.info("worker ready", models=ready.models, device=ready.device, load_s=round(ready.load_s, 3))
        log.info("memory plan", plan=ready.plan_line)

    def _end_unready(self, process: asyncio.subprocess.Process) -> None:
        if self.state is WorkerState.STARTING:
            self._words = f"the models did not load within {self._load_limit_s:g} s"
            _kill(process)

    def _send(self, message: Load | Run | Cancel | Shutdown) -> None:
        """Writes a message. A worker that is gone is noticed by its closed pipe, not here."""
        process = self._process
        if process is not None and process.stdin is not None and process.returncode is None:
            with suppress(ConnectionError, RuntimeError):
                process.stdin.write(encode(message))

    def _enter(self, state: WorkerState) -> None:
        self.state = state
        if state is WorkerState.READY:
            self._ready.set()
        else:
            self._ready.clear()


async def _exit_status(process: asyncio.subprocess.Process) -> int:
    """The status of a process once it is dead. `Process.wait` would also wait for everyone who holds its pipes."""
    while process.returncode is None:  # noqa: ASYNC110 (what would set an event is what is wrong with wait)
        await asyncio.sleep(DEATH_POLL_S)
    return process.returncode


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()


def _close(process: asyncio.subprocess.Process) -> None:
    """Closes the pipes of a dead process, which its helpers may hold open, or which may be full of what nobody read."""
    process._transport.close()  # type: ignore[attr-defined]
