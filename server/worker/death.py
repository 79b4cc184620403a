"""How a process's death is learnt, and nothing but its death."""

from __future__ import annotations

import asyncio
import os

POLL_S = 0.02


async def exit_status(process: asyncio.subprocess.Process) -> int:
    """The status of a process once it is dead. `Process.wait` would also wait for everyone who holds its pipes."""
    if process.returncode is None:
        await _end(process.pid)
    while process.returncode is None:  # noqa: ASYNC110 (asyncio collects the status soon, and has no event for it)
        await asyncio.sleep(POLL_S)
    return process.returncode


async def _end(pid: int) -> None:
    """Returns when the process has ended, at once where the system does not tell (pidfd_open(2) is Linux's).

    pid: of a child whose status has not been collected, so that nobody else can have the number.
    """
    try:
        handle = os.pidfd_open(pid)
    except (AttributeError, OSError):
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)
