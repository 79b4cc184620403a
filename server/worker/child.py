"""One worker process as its parent holds it: what is said to it, what it says, and its end."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import structlog

from .death import exit_status
from .hiding import hide
from .protocol import PROTOCOL_VERSION, Down, Fatal, Hello, ProtocolError, Ready, Up, decode, encode

log = structlog.get_logger(__name__)

COMMAND = (sys.executable, "-P", "-m", "server.worker.main")

LINE_LIMIT_BYTES = 1024 * 1024
LAST_WORDS_LIMIT_S = 0.1
"""For what a dead worker's pipe still holds."""

STDERR_LINES = 20
STDERR_PERIOD_S = 10.0
"""So many of its lines are logged in such a time: a device assert alone writes thousands."""

PREPARED_PROMPTS = 16
"""It does not say when it has prepared one, which takes about a second; within that, so many may follow each other."""


class Child:
    """Reads its process's pipes from the start. To be made inside the event loop, and ended by `end`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._inbox: asyncio.Queue[Up | None] = asyncio.Queue()
        self._fatal: Fatal | None = None
        self._readers = [asyncio.create_task(self._read()), asyncio.create_task(self._read_stderr())]
        self.prompts: tuple[str, ...] = ()
        """What it draws now; never logged."""
        self.prepared: deque[str] = deque(maxlen=PREPARED_PROMPTS)
        """What it was told to prepare lately, and may still be at; never logged."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @property
    def verdict(self) -> Fatal:
        """Why it ended, once it has: its own last words, or how the system describes it."""
        return self._fatal or Fatal(reason="crashed", message=_describe_exit(self._process.returncode))

    def send(self, message: Down) -> None:
        """Writes a message. A process that is gone is noticed by its end, not here."""
        if self._process.stdin is not None and self.alive:
            with suppress(ConnectionError, RuntimeError):
                self._process.stdin.write(encode(message))

    async def messages(self) -> AsyncIterator[Up]:
        """What it says, until it is dead, says Fatal or says something unreadable; `verdict` then tells which."""
        while (message := await self._inbox.get()) is not None:
            yield message

    def kill(self) -> None:
        if self.alive:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def exit_status(self) -> int:
        """Its status once it is dead."""
        return await exit_status(self._process)

    async def end(self) -> int:
        """Kills it where it still lives, reaps it and closes its pipes. Returns its exit status."""
        self.kill()
        status = await self.exit_status()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        # Helpers of a dead process may hold its pipes open, and they may be full of what nobody read.
        self._process._transport.close()  # type: ignore[attr-defined]
        return status

    async def _read(self) -> None:
        """A pipe alone does not tell death: a helper process that the worker started may hold it open."""
        listening = asyncio.create_task(self._listen())
        dying = asyncio.create_task(self.exit_status())
        try:
            await asyncio.wait({listening, dying}, return_when=asyncio.FIRST_COMPLETED)
            if not listening.done():
                await asyncio.wait({listening}, timeout=LAST_WORDS_LIMIT_S)
        finally:
            listening.cancel()
            dying.cancel()
            await asyncio.gather(listening, dying, return_exceptions=True)
            self._inbox.put_nowait(None)

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            async for line in self._process.stdout:
                message = decode(line)
                self._fatal = message if isinstance(message, Fatal) else _refusal(message)
                if self._fatal:
                    return
                self._inbox.put_nowait(message)
        except ProtocolError as error:
            self._fatal = Fatal(reason="protocol", message=hide(str(error), *self.prompts, *self.prepared))
        except ValueError:
            self._fatal = Fatal(reason="protocol", message=f"a message of more than {LINE_LIMIT_BYTES} bytes")

    async def _read_stderr(self) -> None:
        """What libraries, and the device's driver, write there. The worker itself says what it has to in messages."""
        if self._process.stderr is None:
            return
        budget, period_ends = STDERR_LINES, 0.0
        async for line in _lines(self._process.stderr):
            if time.monotonic() > period_ends:
                budget, period_ends = STDERR_LINES, time.monotonic() + STDERR_PERIOD_S
            budget -= 1
            if budget > 0:
                log.warning("worker wrote", pid=self.pid, text=hide(line, *self.prompts, *self.prepared))
            elif budget == 0:
                log.warning("worker writes too much; the rest is left out for a while", pid=self.pid)


async def spawn(command: tuple[str, ...] = COMMAND) -> Child:
    """Starts a worker process, whose stdin and stdout carry messages. Raises OSError.

    Cancelled, it leaves no process behind.
    """
    pipe = asyncio.subprocess.PIPE
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, limit=LINE_LIMIT_BYTES)
    )
    try:
        return Child(await asyncio.shield(starting))
    except asyncio.CancelledError:
        with suppress(OSError):
            await Child(await starting).end()
        raise


Spawn = Callable[[], Awaitable[Child]]


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines as text; of one that is longer than the reader's limit only what comes after it."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            continue
        if not line:
            return
        if text := line.decode("utf-8", "replace").rstrip():
            yield text


def _refusal(message: Up) -> Fatal | None:
    """The reason not to go on with a worker of another version."""
    if not isinstance(message, Hello | Ready) or message.version == PROTOCOL_VERSION:
        return None
    return Fatal(
        reason="protocol",
        message=f"the worker speaks protocol {message.version} and this server {PROTOCOL_VERSION}: they come from"
        " different installations. Install the package again and restart the server.",
    )


def _describe_exit(status: int | None) -> str:
    if status is not None and status < 0:
        with suppress(ValueError):
            return f"the worker process was ended by {signal.Signals(-status).name}"
    return f"the worker process ended with status {status}"
