"""The supervisor over real child processes that speak the protocol and misbehave on demand."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from importlib import util
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog
from proofs.worker_runs import run_alone

from server.worker import record as record_module
from server.worker import spare as spare_module
from server.worker import supervisor as supervisor_module
from server.worker.protocol import PROTOCOL_VERSION, Done, Failed, Load, Prepare, Run, Step, encode
from server.worker.supervisor import (
    WorkerLost,
    WorkerNotReady,
    WorkerStarted,
    WorkerState,
    WorkerStuck,
    WorkerSupervisor,
)

LONG_S = 10.0
"""For what should happen soon: only a failing test waits this long."""


def filled(kind: type[Any], **given: Any) -> Any:
    """A message with what matters here; its other required fields hold something of their type."""
    samples = {"str": "x", "int": 1, "float": 0.5, "bool": True, "dict": {}, "list": [], "Switch": "auto"}
    required = [field for field in dataclasses.fields(kind) if field.default is field.default_factory]
    return kind(**{field.name: samples.get(re.split(r"\W", str(field.type))[0], "auto") for field in required} | given)


IMPORTS = f"""
import dataclasses, os, re, subprocess, sys, threading, time
from typing import Any
from server.worker.protocol import *

{inspect.getsource(filled)}
"""

# A worker without an engine. How it starts is in Load.device, what a job does in Run.request["do"]. It notes each start
# and its polite end in the spool folder.
CHILD = r"""
source, sink = sys.stdin.buffer, sys.stdout.buffer


def say(message):
    sink.write(encode(message))
    sink.flush()


def note(name, text):
    with open(os.path.join(load.spool, name), "a") as file:
        file.write(text + "\n")


def step(run, number, attempt=None):
    say(Step(job=run.job, attempt=attempt or run.attempt, step=number, steps=3, step_s=0.5))


def done(run, attempt=None, job=None):
    say(Done(job=job or run.job, attempt=attempt or run.attempt, result={"by": os.getpid()}, compute_s=1.5))


def for_ever():
    threading.Event().wait()


def draw(run):
    do = run.request["do"]
    if do == "draw":
        for number in (1, 2, 3):
            step(run, number)
        done(run)
    elif do == "fail":
        say(Failed(job=run.job, attempt=run.attempt, kind="input", message="no such size", compute_s=0.25))
    elif do == "wait for cancel":
        step(run, 1)
        cancel = decode(source.readline())
        assert isinstance(cancel, Cancel), cancel
        say(Failed(job=cancel.job, attempt=cancel.attempt, kind="cancelled", message="as asked"))
    elif do == "hang":
        step(run, 1)
        for_ever()
    elif do == "die":
        step(run, 1)
        os._exit(9)
    elif do == "junk":
        sink.write(b"this is no message\n")
        sink.flush()
        for_ever()
    elif do == "deep junk":
        sink.write(b"[" * 100_000 + b"\n")
        sink.flush()
        for_ever()
    elif do == "endless line":
        while True:
            sink.write(b"x" * 65536)
    elif do == "fatal":
        say(Fatal(reason="device", message="illegal memory access", job=run.job))
        os._exit(70)
    elif do == "fatal, but stays":
        say(Fatal(reason="device", message="illegal memory access", job=run.job))
        for_ever()
    elif do == "die and leave a helper":
        helper = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
        note("helpers", str(helper.pid))
        os._exit(9)
    elif do == "out of memory":
        say(Failed(job=run.job, attempt=run.attempt, kind="out_of_memory", message="2 GiB"))
    elif do == "write":
        for number in range(1000):
            print(f"line {number} of {run.request['prompt']} in /srv/secret/place", file=sys.stderr)
        sys.stderr.flush()
        done(run)
    elif do == "speak of other attempts":
        step(run, 90, attempt=run.attempt - 1)
        done(run, attempt=run.attempt - 1)
        done(run, attempt=run.attempt + 1)
        done(run, job="other")
        say(Failed(job="other", attempt=run.attempt, kind="input", message="of another job"))
        step(run, 1)
        done(run)
        step(run, 91)
        done(run)
    else:
        raise AssertionError(do)


say(Hello(version=PROTOCOL_VERSION))
line = source.readline()
if not line:
    os._exit(0)
load = decode(line)
note("starts", f"{os.getpid()} {time.monotonic()}")
starts = len(open(os.path.join(load.spool, "starts")).readlines())
if load.device == "broken" or (load.device == "broken twice" and starts <= 2):
    say(Fatal(reason="load", message="no weights here"))
    os._exit(70)
if load.device == "other version":
    say(filled(Ready, version=load.version + 1))
    for_ever()
if load.device == "never ready":
    for_ever()
say(filled(Ready, version=load.version, models=["flux-dev"]))
for line in source:
    message = decode(line)
    if isinstance(message, Run):
        draw(message)
    elif isinstance(message, Prepare):
        print(f"I prepared {message.request['prompt']}", file=sys.stderr, flush=True)
    elif isinstance(message, Shutdown) and load.device != "deaf":
        note("farewells", str(os.getpid()))
        sys.exit(0)
if load.device == "deaf":
    for_ever()
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_kind(request: pytest.FixtureRequest) -> str:
    """The server runs on uvloop where there is one, which does child processes its own way; elsewhere on asyncio."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return str(request.param)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Path]:
    """The children's folder. No process that is named there outlives the test."""
    (tmp_path / "child.py").write_text(IMPORTS + CHILD)
    yield tmp_path
    kill_children(tmp_path)


def kill_children(spool: Path) -> None:
    for pid in noted(spool, "starts") + noted(spool, "helpers"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def noted(spool: Path, name: str) -> list[int]:
    path = spool / name
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def starts(spool: Path) -> list[tuple[int, float]]:
    """Process id and moment of every start so far."""
    path = spool / "starts"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(int(pid), float(moment)) for pid, moment in lines]


def load_message(spool: Path, mode: str = "ready") -> Any:
    return filled(Load, version=PROTOCOL_VERSION, spool=str(spool), device=mode)


def job(do: str, *, name: str = "a", attempt: int = 1) -> Run:
    return Run(job=name, attempt=attempt, request={"do": do})


def is_gone(pid: int) -> bool:
    """True when no such process runs; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until(condition: Callable[[], Any], limit_s: float = LONG_S) -> Any:
    """The condition's first truthy value, which must come within the limit."""
    async with asyncio.timeout(limit_s):
        while not (value := condition()):
            await asyncio.sleep(0.005)
        return value


@asynccontextmanager
async def supervised(
    spool: Path, mode: str = "ready", *, spare: bool = False, **limits: float
) -> AsyncIterator[WorkerSupervisor]:
    worker = WorkerSupervisor(
        load_message(spool, mode),
        load_limit_s=limits.get("load_limit_s", LONG_S),
        step_limit_s=limits.get("step_limit_s", LONG_S),
        spare=spare,
        command=(sys.executable, "-P", str(spool / "child.py")),
    )
    await worker.start()
    try:
        yield worker
    except BaseException:
        # The test has failed already: whatever stands in the way of a stop goes first, so that it fails soon.
        kill_children(spool)
        raise
    finally:
        await stop(worker)


async def stop(worker: WorkerSupervisor) -> None:
    try:
        async with asyncio.timeout(LONG_S):
            await worker.stop()
    except Exception as error:
        # Without its traceback, which may be that of a recursion too deep for the report.
        raise AssertionError(f"stop() failed: {type(error).__name__}") from None


async def ready(worker: WorkerSupervisor) -> int:
    """Process id of the worker once it is ready."""
    async with asyncio.timeout(LONG_S):
        await worker.wait_ready()
    assert worker.state is WorkerState.READY
    assert worker.pid
    return worker.pid


async def run_job(worker: WorkerSupervisor, run: Run, steps: list[Step] | None = None) -> Done | Failed:
    async with asyncio.timeout(LONG_S):
        return await run_alone(worker, run, (steps if steps is not None else []).append)


async def assert_replaced(worker: WorkerSupervisor, old_pid: int) -> None:
    """A new worker comes up, and it works."""
    assert await ready(worker) != old_pid
    assert is_gone(old_pid)
    assert worker.restarts.total() == 1
    outcome = await run_job(worker, job("draw", name="next"))
    assert isinstance(outcome, Done)
    assert outcome.result == {"by": worker.pid}


def run(test: Awaitable[None]) -> None:
    on_loop("asyncio" if util.find_spec("uvloop") is None else "uvloop", test)


def on_loop(kind: str, test: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(2 * LONG_S):
            await test

    factory = None
    if kind == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(limited())


# Jobs.


def test_a_worker_becomes_ready_and_draws(loop_kind: str, spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            pid = await ready(worker)
            assert worker.greeting is not None
            assert worker.greeting.models == ["flux-dev"]
            steps: list[Step] = []
            outcome = await run_job(worker, job("draw"), steps)
            assert outcome == Done(job="a", attempt=1, result={"by": pid}, compute_s=1.5)
            assert [(step.job, step.attempt, step.step, step.steps, step.step_s) for step in steps] == [
                ("a", 1, number, 3, 0.5) for number in (1, 2, 3)
            ]
            assert worker.state is WorkerState.READY
            assert worker.restarts.total() == 0

    on_loop(loop_kind, test())


def test_a_failed_job_leaves_the_worker_ready_for_the_next(spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            pid = await ready(worker)
            failed = await run_job(worker, job("fail"))
            assert failed == Failed(job="a", attempt=1, kind="input", message="no such size", compute_s=0.25)
            assert isinstance(await run_job(worker, job("draw", name="b")), Done)
            assert (worker.pid, worker.restarts.total()) == (pid, 0)

    run(test())


def test_a_worker_with_a_job_is_busy_and_hears_its_cancel(spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            await ready(worker)
            steps: list[Step] = []
            running = asyncio.create_task(run_job(worker, job("wait for cancel", attempt=4), steps))
            await until(lambda: steps)
            assert worker.state is WorkerState.BUSY
            waiting = asyncio.create_task(worker.wait_ready())
            await asyncio.sleep(0)
            assert not waiting.done()
            worker.cancel("a", 4)
            assert await running == Failed(job="a", attempt=4, kind="cancelled", message="as asked")
            await waiting
            assert worker.state is WorkerState.READY

    run(test())


def test_messages_of_other_attempts_and_jobs_are_dropped(spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            pid = await ready(worker)
            steps: list[Step] = []
            outcome = await run_job(worker, job("speak of other attempts", attempt=2), steps)
            assert outcome == Done(job="a", attempt=2, result={"by": pid}, compute_s=1.5)
            assert [(step.attempt, step.step) for step in steps] == [(2, 1)]
            # What the worker still had to say of the first job does not disturb the second.
            steps.clear()
            later = await run_job(worker, job("draw", name="b"), steps)
            assert (later.job, later.attempt) == ("b", 1)
            assert [(step.job, step.step) for step in steps] == [("b", 1), ("b", 2), ("b", 3)]

    run(test())


# Deaths.


def test_a_killed_worker_is_noticed_at_once_and_replaced(loop_kind: str, spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            pid = await ready(worker)
            steps: list[Step] = []
            running = asyncio.create_task(run_job(worker, job("hang"), steps))
            await until(lambda: steps)
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            with pytest.raises(WorkerLost):
                await running
            assert time.monotonic() - killed <= 0.5
            assert worker.state is not WorkerState.READY
            await assert_replaced(worker, pid)

    on_loop(loop_kind, test())


def test_the_death_of_an_idle_worker_is_noticed_at_once(spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            pid = await ready(worker)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: worker.state is not WorkerState.READY, 0.25)
            await assert_replaced(worker, pid)

    run(test())


@pytest.mark.parametrize("do", ["die", "fatal", "junk", "deep junk", "endless line"])
def test_a_worker_that_dies_or_babbles_is_lost_and_replaced(loop_kind: str, spool: Path, do: str) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            pid = await ready(worker)
            with pytest.raises(WorkerLost) as lost:
                await run_job(worker, job(do))
            assert do != "fatal" or "illegal memory access" in str(lost.value)
            assert str(lost.value)
            await assert_replaced(worker, pid)

    on_loop(loop_kind, test())


def test_a_worker_that_gives_up_but_stays_is_ended(loop_kind: str, spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            pid = await ready(worker)
            with pytest.raises(WorkerLost, match="illegal memory access"):
                async with asyncio.timeout(2):
                    await run_alone(worker, job("fatal, but stays"))
            await assert_replaced(worker, pid)

    on_loop(loop_kind, test())


def test_a_helper_that_a_dead_worker_left_behind_does_not_hide_its_death(loop_kind: str, spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            pid = await ready(worker)
            try:
                with pytest.raises(WorkerLost):
                    async with asyncio.timeout(2):
                        await run_alone(worker, job("die and leave a helper"))
                await assert_replaced(worker, pid)
            finally:
                for helper in noted(spool, "helpers"):
                    os.kill(helper, signal.SIGKILL)

    on_loop(loop_kind, test())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files by /proc")
@pytest.mark.parametrize("do", ["die", "endless line", "die and leave a helper"])
def test_a_lost_worker_leaves_no_pipe_open(
    loop_kind: str, spool: Path, do: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_module, "BACKOFF_S", (0.0,))

    def count_open() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def test() -> None:
        async with supervised(spool) as worker:
            await ready(worker)
            at_first = count_open()
            for attempt in range(3):
                with pytest.raises(WorkerLost):
                    await run_job(worker, job(do, attempt=attempt))
                await ready(worker)
            await until(lambda: count_open() <= at_first, 2.0)

    on_loop(loop_kind, test())


def test_a_stuck_worker_is_ended_within_its_limit_and_replaced(loop_kind: str, spool: Path) -> None:
    async def test() -> None:
        limit_s = 0.4
        async with supervised(spool, step_limit_s=limit_s) as worker:
            pid = await ready(worker)
            began = time.monotonic()
            with pytest.raises(WorkerStuck, match=r"0\.4 s"):
                await run_job(worker, job("hang"))
            took_s = time.monotonic() - began
            assert limit_s <= took_s <= limit_s * 1.5 + 1.0
            assert is_gone(pid)
            await assert_replaced(worker, pid)

    on_loop(loop_kind, test())


def test_cancelling_when_nothing_runs_does_no_harm(spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            worker.cancel("a", 1)
            pid = await ready(worker)
            worker.cancel("a", 1)
            os.kill(pid, signal.SIGKILL)
            worker.cancel("a", 1)
            await until(lambda: worker.state is not WorkerState.READY)
            worker.cancel("a", 1)
            await assert_replaced(worker, pid)

    run(test())


# Calls at the wrong time.


def test_a_job_for_a_worker_that_is_not_ready_is_refused(spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            await until(lambda: worker.state is WorkerState.STARTING)
            with pytest.raises(WorkerNotReady, match="starting"):
                await run_alone(worker, job("draw"))
            await ready(worker)
            running = asyncio.create_task(run_job(worker, job("wait for cancel")))
            await until(lambda: worker.state is WorkerState.BUSY)
            with pytest.raises(WorkerNotReady, match="busy"):
                await run_alone(worker, job("draw", name="b"))
            worker.cancel("a", 1)
            assert isinstance(await running, Failed)
        with pytest.raises(WorkerNotReady, match="stopped"):
            await run_alone(worker, job("draw"))

    run(test())


def test_a_second_start_is_refused_and_one_after_a_stop_is_not(spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            pid = await ready(worker)
            with pytest.raises(WorkerStarted):
                await worker.start()
            await stop(worker)
            await worker.start()
            assert await ready(worker) != pid

    run(test())


def test_a_stop_during_a_job_loses_it_at_once(loop_kind: str, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "STOP_LIMIT_S", 0.3)

    async def test() -> None:
        async with supervised(spool) as worker:
            await ready(worker)
            steps: list[Step] = []
            running = asyncio.create_task(run_job(worker, job("hang"), steps))
            await until(lambda: steps)
            await stop(worker)
            with pytest.raises(WorkerLost):
                async with asyncio.timeout(0.5):
                    await running

    on_loop(loop_kind, test())


def test_a_call_that_is_cancelled_asks_the_worker_to_stop_and_leaves_it_usable(spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            pid = await ready(worker)
            steps: list[Step] = []
            running = asyncio.create_task(run_job(worker, job("wait for cancel"), steps))
            await until(lambda: steps)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert await ready(worker) == pid
            assert isinstance(await run_job(worker, job("draw", name="b")), Done)

    run(test())


# Faults.


def test_three_jobs_in_a_row_without_memory_replace_the_worker(spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            pid = await ready(worker)
            for do in ("out of memory", "out of memory", "draw", "out of memory", "fail", "out of memory"):
                await run_job(worker, job(do))
                assert await ready(worker) == pid
            outcome = await run_job(worker, job("out of memory"))
            assert isinstance(outcome, Failed)
            await until(lambda: worker.pid != pid)
            await ready(worker)
            assert worker.restarts == {"out_of_memory": 1}

    run(test())


def test_lives_are_counted_by_how_they_ended(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "BACKOFF_S", (0.0,))

    async def test() -> None:
        async with supervised(spool, step_limit_s=0.3) as worker:
            for do in ("die", "fatal", "junk", "hang"):
                await ready(worker)
                with pytest.raises(WorkerLost if do != "hang" else WorkerStuck):
                    await run_job(worker, job(do))
            await until(lambda: worker.restarts.total() == 4)
            assert worker.restarts == {"crashed": 1, "device": 1, "protocol": 1, "stuck": 1}

    run(test())


def test_five_failures_raise_an_alarm_that_a_picture_ends(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "BACKOFF_S", (0.0,))

    async def test() -> None:
        async with supervised(spool) as worker:
            for number in range(5):
                await ready(worker)
                assert (worker.alarm, worker.can_draw) == ("", True)
                with pytest.raises(WorkerLost):
                    await run_job(worker, job("fatal", attempt=number))
            await ready(worker)
            assert not worker.can_draw
            assert "5 times" in worker.alarm
            assert "doctor" in worker.alarm
            await run_job(worker, job("draw"))
            assert (worker.alarm, worker.can_draw) == ("", True)

    with structlog.testing.capture_logs() as logs:
        run(test())
    assert [line["log_level"] for line in logs if line["event"] == "the worker keeps failing"] == ["error"]


def test_a_worker_of_another_version_is_refused_with_what_to_do(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "BACKOFF_S", (1000.0,))

    async def test() -> None:
        async with supervised(spool, "other version") as worker:
            await until(lambda: worker.state is WorkerState.DOWN and worker.last_words)
            version = PROTOCOL_VERSION
            assert f"speaks protocol {version + 1} and this server {version}" in worker.last_words
            assert "Install the package again" in worker.last_words
            assert worker.greeting is None
            assert worker.restarts == {"protocol": 1}

    run(test())


def test_what_a_worker_writes_is_logged_without_prompt_and_folders_and_not_without_end(spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            await ready(worker)
            prompt = "a secret fox"
            await run_job(worker, Run(job="a", attempt=1, request={"do": "write", "prompt": prompt}))
            await run_job(worker, job("draw", name="b"))

    with structlog.testing.capture_logs() as logs:
        run(test())
    texts = [line["text"] for line in logs if line["event"] == "worker wrote"]
    assert 0 < len(texts) <= 20
    assert all("fox" not in text and "/srv" not in text for text in texts)
    assert any("line 0 of" in text for text in texts)


def test_the_prompt_of_a_prepared_job_is_not_logged_either(spool: Path) -> None:
    def written() -> list[str]:
        return [line["text"] for line in logs if line["event"] == "worker wrote"]

    async def test() -> None:
        async with supervised(spool) as worker:
            await ready(worker)
            prepared = Prepare(job="b", request={"prompt": "a secret fox"})
            await run_alone(worker, job("draw"), lambda _: worker.prepare(prepared))
            await until(written)

    with structlog.testing.capture_logs() as logs:
        run(test())
    assert set(written()) == {"I prepared (prompt of 12 characters)"}


# The spare.


def test_a_spare_waits_and_takes_over(loop_kind: str, spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool, spare=True) as worker:
            pid = await ready(worker)
            await until(lambda: worker.spare_is_warm)
            spare = worker.spare_pid
            assert spare not in (None, pid)
            assert noted(spool, "starts") == [pid]
            os.kill(pid, signal.SIGKILL)
            await until(lambda: worker.pid != pid)
            assert await ready(worker) == spare
            assert worker.spare_pid != spare
            assert isinstance(await run_job(worker, job("draw")), Done)
            await until(lambda: worker.spare_is_warm)
            last = worker.spare_pid
        assert last
        assert is_gone(last)

    on_loop(loop_kind, test())


def test_no_spare_is_kept_before_the_first_worker_is_ready_or_unless_wanted(spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool, "never ready", spare=True) as worker:
            await until(lambda: starts(spool))
            assert worker.spare_pid is None
        async with supervised(spool) as worker:
            await ready(worker)
            await run_job(worker, job("draw"))
            assert worker.spare_pid is None

    run(test())


def test_a_spare_that_died_is_replaced_and_does_not_stand_in_the_way(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare_module, "RETRY_S", 0.3)

    async def test() -> None:
        async with supervised(spool, spare=True) as worker:
            pid = await ready(worker)
            await until(lambda: worker.spare_is_warm)
            spare = worker.spare_pid
            assert spare
            os.kill(spare, signal.SIGKILL)
            await until(lambda: worker.spare_pid != spare)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: worker.pid != pid)
            assert await ready(worker) not in (pid, spare)
            await until(lambda: worker.spare_is_warm)
            second = worker.spare_pid
            assert second
            os.kill(second, signal.SIGKILL)
            await until(lambda: worker.spare_is_warm and worker.spare_pid != second)
            assert worker.restarts.total() == 1

    run(test())


# Loading.


def test_a_worker_that_cannot_load_is_tried_again_after_growing_waits(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_module, "BACKOFF_S", (0.0, 0.05, 0.15, 0.25))

    async def test() -> None:
        async with supervised(spool, "broken") as worker:
            await until(lambda: worker.state is WorkerState.DOWN and worker.last_words)
            assert worker.last_words == "load: no weights here"
            await until(lambda: len(starts(spool)) >= 5)
            moments = [moment for _, moment in starts(spool)]
            gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
            for gap, wait_s in zip(gaps, (0.0, 0.05, 0.15, 0.25), strict=False):
                assert wait_s <= gap <= wait_s + 3.0
            assert worker.greeting is None

    run(test())


def test_a_worker_that_drew_something_is_replaced_without_waiting(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "BACKOFF_S", (0.0, 0.01, 1000.0))

    async def test() -> None:
        async with supervised(spool, "broken twice") as worker:
            pid = await ready(worker)
            assert len(starts(spool)) == 3
            await run_job(worker, job("draw"))
            os.kill(pid, signal.SIGKILL)
            await until(lambda: worker.state is not WorkerState.READY)
            assert await ready(worker) != pid
            assert len(starts(spool)) == 4

    run(test())


def test_a_worker_that_does_not_load_in_time_is_ended_and_tried_again(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_module, "BACKOFF_S", (1000.0,))

    async def test() -> None:
        async with supervised(spool, "never ready", load_limit_s=0.5) as worker:
            await until(lambda: worker.state is WorkerState.DOWN and worker.last_words)
            assert "did not load within 0.5 s" in worker.last_words
            await until(lambda: worker.pid is None and all(is_gone(pid) for pid, _ in starts(spool)), 1.0)
            assert worker.state is WorkerState.DOWN

    run(test())


def test_a_worker_that_loaded_in_time_outlives_the_limit(spool: Path) -> None:
    async def test() -> None:
        began = time.monotonic()
        async with supervised(spool, load_limit_s=2.0) as worker:
            pid = await ready(worker)
            await until(lambda: time.monotonic() - began > 2.2)
            assert (await ready(worker), worker.restarts.total()) == (pid, 0)

    run(test())


def test_a_worker_that_cannot_even_be_spawned_is_tried_again(
    loop_kind: str, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_module, "BACKOFF_S", (0.05,))
    program = spool / "program"

    async def test() -> None:
        command = (str(program), "-P", str(spool / "child.py"))
        worker = WorkerSupervisor(load_message(spool), load_limit_s=LONG_S, step_limit_s=LONG_S, command=command)
        await worker.start()
        try:
            await until(lambda: worker.last_words, 2)
            assert worker.state is WorkerState.DOWN
            new = program.with_suffix(".new")
            new.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
            new.chmod(0o755)
            new.rename(program)
            await ready(worker)
        finally:
            await stop(worker)

    on_loop(loop_kind, test())


# Leaving.


def test_a_stopped_worker_is_asked_to_leave_and_is_not_replaced(spool: Path) -> None:
    async def test() -> None:
        async with supervised(spool) as worker:
            pid = await ready(worker)
        assert noted(spool, "farewells") == [pid]
        assert is_gone(pid)
        assert worker.state is WorkerState.STOPPED
        assert worker.pid is None
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await worker.stop()

    run(test())


def test_stopping_ends_a_worker_that_does_not_listen(
    loop_kind: str, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "STOP_LIMIT_S", 0.3)

    async def test() -> None:
        async with supervised(spool, "deaf") as worker:
            pid = await ready(worker)
            began = time.monotonic()
            await worker.stop()
            assert 0.3 <= time.monotonic() - began <= 0.3 + 1.0
            assert is_gone(pid)
            assert worker.state is WorkerState.STOPPED
            assert not noted(spool, "farewells")

    on_loop(loop_kind, test())


def test_stopping_while_the_models_load_ends_the_worker(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "STOP_LIMIT_S", 0.3)

    async def test() -> None:
        async with supervised(spool, "never ready") as worker:
            await until(lambda: starts(spool))
            assert worker.state is WorkerState.STARTING
        assert is_gone(starts(spool)[0][0])
        assert worker.state is WorkerState.STOPPED

    run(test())


def test_stopping_during_a_wait_before_a_new_start_is_immediate(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "BACKOFF_S", (1000.0,))

    async def test() -> None:
        async with supervised(spool, "broken") as worker:
            await until(lambda: worker.state is WorkerState.DOWN)
            began = time.monotonic()
            await worker.stop()
            assert time.monotonic() - began <= 1.0
        assert len(starts(spool)) == 1

    run(test())


def test_a_supervisor_that_never_started_can_be_stopped(spool: Path) -> None:
    async def test() -> None:
        worker = WorkerSupervisor(load_message(spool), load_limit_s=1.0, step_limit_s=1.0)
        await worker.stop()
        assert worker.state is WorkerState.STOPPED

    run(test())


# The real worker's two ways to learn that its parent is gone, each alone.

BY_PIPE = """
from server.worker.wire import Wire

wire = Wire(sys.stdin.buffer, sys.stdout.buffer)
wire.inbox.get()
wire.send(filled(Ready, version=PROTOCOL_VERSION))
threading.Event().wait()
"""
BY_SIGNAL = """
from server.worker.wire import leave_with_parent

leave_with_parent()
sys.stdout.buffer.write(encode(filled(Ready, version=PROTOCOL_VERSION)))
sys.stdout.buffer.flush()
threading.Event().wait()
"""
PARENT = """
import asyncio
from server.worker.supervisor import WorkerSupervisor

async def main():
    command = (sys.executable, "-P", sys.argv[1])
    worker = WorkerSupervisor(filled(Load), load_limit_s=60, step_limit_s=60, command=command)
    await worker.start()
    await worker.wait_ready()
    print(worker.pid, file=sys.stderr, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def wait_until(condition: Callable[[], Any], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
@pytest.mark.parametrize("child", [BY_PIPE, BY_SIGNAL], ids=["by its closed pipe", "by the parent-death signal"])
def test_a_worker_leaves_when_its_parent_is_killed(tmp_path: Path, child: str) -> None:
    (tmp_path / "orphan.py").write_text(IMPORTS + child)
    command = [sys.executable, "-P", "-c", IMPORTS + PARENT, str(tmp_path / "orphan.py")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stderr is not None
        pid = int(parent.stderr.readline())
        try:
            assert not is_gone(pid)
            parent.kill()
            parent.wait()
            assert wait_until(lambda: is_gone(pid), 2.0)
        finally:
            parent.kill()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def lone_worker(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The real worker's end of the line in a process without an engine, which has had its first message."""
    (tmp_path / "child.py").write_text(IMPORTS + BY_PIPE)
    command = [sys.executable, "-P", str(tmp_path / "child.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        tell(child, encode(load_message(tmp_path)))
        assert child.stdout is not None
        assert child.stdout.readline()
        yield child
        child.kill()


def tell(child: subprocess.Popen[bytes], text: bytes) -> None:
    assert child.stdin is not None
    child.stdin.write(text)
    child.stdin.flush()


def test_a_worker_that_hears_junk_leaves_rather_than_go_deaf(lone_worker: subprocess.Popen[bytes]) -> None:
    tell(lone_worker, b"this is no message\n")
    assert wait_until(lambda: lone_worker.poll() is not None, 2.0)


def test_a_worker_whose_parent_dies_in_the_middle_of_a_message_leaves(lone_worker: subprocess.Popen[bytes]) -> None:
    tell(lone_worker, encode(job("draw"))[:20])
    assert lone_worker.stdin is not None
    assert lone_worker.stdout is not None
    lone_worker.stdout.close()
    lone_worker.stdin.close()
    assert wait_until(lambda: lone_worker.poll() is not None, 2.0)
