"""The worker's end of the line: its streams, what comes in and goes out, and how the process leaves."""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import IO

from .protocol import Cancel, Down, Fatal, Prepare, ProtocolError, Run, Up, decode, encode

FATAL_EXIT = 70

_PR_SET_PDEATHSIG = 1


class Wire:
    """The child's end: messages in from a reader thread, messages out under a lock, cancels noted as they come.

    on_prepare: hears in the reader thread what may be prepared; until somebody listens nobody does.
    """

    def __init__(self, source: IO[bytes], sink: IO[bytes]) -> None:
        self._source, self._sink = source, sink
        self._write_lock = threading.Lock()
        self._cancelled: set[tuple[str, int]] = set()
        self.on_prepare: Callable[[Prepare], None] = lambda _: None
        self.inbox: queue.SimpleQueue[Down] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="wire", daemon=True).start()

    def send(self, message: Up) -> None:
        with self._write_lock:
            self._sink.write(encode(message))
            self._sink.flush()

    def is_cancelled(self, run: Run) -> bool:
        return (run.job, run.attempt) in self._cancelled

    def forget(self, run: Run) -> None:
        self._cancelled.discard((run.job, run.attempt))

    def _read(self) -> None:
        try:
            for line in self._source:
                message = decode(line)
                if isinstance(message, Cancel):
                    self._cancelled.add((message.job, message.attempt))
                elif isinstance(message, Prepare):
                    self.on_prepare(message)
                else:
                    self.inbox.put(message)
        except ProtocolError as error:
            leave(self, Fatal(reason="protocol", message=str(error)))
        # The parent is gone. Nothing that is computed here can be delivered any more.
        os._exit(0)


def take_streams() -> Wire:
    """Keeps the standard streams for messages and points stdout at stderr, so that a stray print is only a log line."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return Wire(source, sink)


def leave_with_parent() -> None:
    """Ctrl-C, and a service manager's TERM, reach every process; the parent decides when the child leaves."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def leave(wire: Wire, last_words: Fatal) -> None:
    """Ends the process at once: after a CUDA fault even a clean exit can hang in the driver."""
    try:
        wire.send(last_words)
    finally:
        # Also when nobody listens any more.
        os._exit(FATAL_EXIT)
