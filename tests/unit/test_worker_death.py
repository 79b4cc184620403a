"""A process's end is learnt when it ends, whoever still holds its pipes."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

import pytest

from server.worker.death import exit_status

LEAVES_A_HELPER = "import os, sys, time\nif os.fork(): os._exit(7)\ntime.sleep(20)"


async def start(program: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )


def close(process: asyncio.subprocess.Process) -> None:
    process._transport.close()  # type: ignore[attr-defined]


async def status_and_wait_s(program: str) -> tuple[int, float]:
    process = await start(program)
    begun = time.monotonic()
    status = await asyncio.wait_for(exit_status(process), 15)
    close(process)
    return status, time.monotonic() - begun


def test_a_helper_that_holds_the_pipes_does_not_delay_it() -> None:
    status, waited_s = asyncio.run(status_and_wait_s(LEAVES_A_HELPER))
    assert status == 7
    assert waited_s < 10


def test_where_the_system_does_not_tell_it_is_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    assert asyncio.run(status_and_wait_s("raise SystemExit(3)"))[0] == 3


def test_one_that_is_dead_already_is_told_at_once() -> None:
    async def twice() -> tuple[int, int]:
        process = await start("raise SystemExit(4)")
        statuses = await exit_status(process), await exit_status(process)
        close(process)
        return statuses

    assert asyncio.run(twice()) == (4, 4)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="pidfd_open is Linux's")
def test_waiting_for_a_living_process_wakes_the_loop_only_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps: list[float] = []
    real = asyncio.sleep

    async def counted(seconds: float, *rest: Any) -> Any:
        sleeps.append(seconds)
        return await real(seconds, *rest)

    monkeypatch.setattr("server.worker.death.asyncio.sleep", counted)
    asyncio.run(status_and_wait_s("import time; time.sleep(0.5)"))
    assert len(sleeps) < 10


def test_giving_up_the_wait_leaves_no_descriptor() -> None:
    async def wait_and_give_up() -> int:
        process = await start("import time; time.sleep(20)")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(exit_status(process), 0.02)
        left = len(os.listdir("/proc/self/fd")) - before
        process.kill()
        await exit_status(process)
        close(process)
        return left

    assert asyncio.run(wait_and_give_up()) == 0
