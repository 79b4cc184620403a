"""No order of calls and events is bad: each call of the supervisor works or raises its named error.

The child is played here, at the far end of real messages, and time is virtual, so the real waits and limits apply.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from proofs.worker_runs import run_alone

from server.worker.child import Child
from server.worker.job import HandedOver
from server.worker.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    Done,
    Drawn,
    Failed,
    Fatal,
    Hello,
    Load,
    Prepare,
    Ready,
    Run,
    RunTogether,
    Shutdown,
    Step,
    Up,
    decode,
    encode,
)
from server.worker.supervisor import (
    WorkerLost,
    WorkerNotReady,
    WorkerStarted,
    WorkerState,
    WorkerStuck,
    WorkerSupervisor,
)

STEPS = 30
SHORT_SEQUENCES = 100
FULL_SEQUENCES = 2000
STEP_LIMIT_S = 60.0
LOAD_LIMIT_S = 600.0
ENDS = {"cancelled", "Done", "Failed", "WorkerLost", "WorkerLostAfterDrawing", "WorkerNotReady", "WorkerStuck"}
SETTLE_S = 0.5
"""Virtual; longer than it takes to notice a death."""


def filled(kind: type[Any], **given: Any) -> Any:
    """A message with what matters here; its other required fields hold something of their type."""
    samples = {"str": "x", "int": 1, "float": 0.0, "bool": False, "dict": {}, "list": []}
    required = [field for field in fields(kind) if field.default is field.default_factory]
    return kind(**{field.name: samples.get(re.split(r"\W", str(field.type))[0], "auto") for field in required} | given)


LOAD = filled(Load, version=PROTOCOL_VERSION)


class VirtualTime(asyncio.SelectorEventLoop):
    """A loop that never waits: where nothing is ready, its clock jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s, select = 0.0, self._selector.select  # type: ignore[attr-defined]

        def jump(timeout_s: float | None) -> Any:
            self._now_s += timeout_s or 0.0
            return select(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now_s


class PlayedProcess:
    """What `Child` holds instead of a process. Notes what it is told and checks that it makes sense."""

    _pids = itertools.count(1)

    def __init__(self) -> None:
        self.pid = next(self._pids)
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = self, asyncio.StreamReader(), asyncio.StreamReader()
        self._transport = self
        self.loaded = False
        self.greeted = False
        self.polite = False
        """Leaves when it is asked to."""
        self.runs: list[Run] = []
        """What it draws: a job, or those of a batch that are not drawn yet."""
        self.encoding: list[Run] = []
        self.prepared = 0

    def write(self, line: bytes) -> None:
        message = decode(line)
        if isinstance(message, Load):
            assert not self.loaded, "loaded twice"
            self.loaded = True
        elif isinstance(message, Run | RunTogether):
            assert self.greeted, "a job for a worker that is not ready"
            assert not self.runs, "a second job at once"
            self.runs = message.members if isinstance(message, RunTogether) else [message]
        elif isinstance(message, Prepare):
            assert self.greeted, "a job to prepare for a worker that is not ready"
            assert self.runs, "a job to prepare beside none"
            self.prepared += 1
        elif isinstance(message, Shutdown) and self.polite:
            self.exit(0)
        else:
            assert isinstance(message, Cancel | Shutdown)

    def say(self, message: Up) -> None:
        self.stdout.feed_data(encode(message))

    def junk(self) -> None:
        self.stdout.feed_data(b"no message\n")

    def exit(self, status: int) -> None:
        if self.returncode is None:
            self.returncode = status
            self.stdout.feed_eof()
            self.stderr.feed_eof()

    def kill(self) -> None:
        self.exit(-9)

    def close(self) -> None:
        """As a transport."""


class Orders(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTime()
        self.processes: list[PlayedProcess] = []
        self.calls: list[tuple[Run, asyncio.Task[Any]]] = []
        self.number = itertools.count(1)
        self.started = False
        self.cannot_spawn = False

    @initialize(spare=st.booleans(), ready=st.booleans())
    def make(self, spare: bool, ready: bool) -> None:
        self.worker = WorkerSupervisor(
            LOAD, load_limit_s=LOAD_LIMIT_S, step_limit_s=STEP_LIMIT_S, spare=spare, start_child=self.spawn
        )
        self.most = 2 if spare else 1
        if ready:
            self.start()
            self.time_passes(1.0)
            self.become_ready(PROTOCOL_VERSION)

    async def spawn(self) -> Child:
        await asyncio.sleep(0.001)
        if self.cannot_spawn:
            raise OSError("no more processes")
        self.processes.append(PlayedProcess())
        self.processes[-1].polite = len(self.processes) % 2 == 0
        return Child(self.processes[-1])  # type: ignore[arg-type]

    def do(self, call: Callable[[], Any]) -> None:
        """Makes the call inside the loop and lets what follows from it happen."""

        async def settled() -> None:
            call()
            await asyncio.sleep(SETTLE_S)

        self.loop.run_until_complete(settled())

    def live(self) -> list[PlayedProcess]:
        return [process for process in self.processes if process.returncode is None]

    def loaded(self) -> PlayedProcess | None:
        return next((process for process in self.live() if process.loaded), None)

    # Calls.

    @rule()
    def start(self) -> None:
        if self.started:
            with pytest.raises(WorkerStarted):
                self.loop.run_until_complete(self.worker.start())
        else:
            self.loop.run_until_complete(self.worker.start())
            self.started = True

    @rule()
    def stop(self) -> None:
        self.loop.run_until_complete(asyncio.wait_for(self.worker.stop(), 30))
        self.started = False
        assert self.worker.state is WorkerState.STOPPED
        assert not self.live()

    @rule()
    def run(self) -> None:
        run = Run(job=f"job {next(self.number)}", attempt=1, request={"prompt": "x", "width": 64, "height": 64})

        def call() -> None:
            self.calls.append((run, asyncio.ensure_future(run_alone(self.worker, run))))

        self.do(call)

    @rule(count=st.integers(2, 4))
    def run_together(self, count: int) -> None:
        numbers = list(itertools.islice(self.number, count))
        request = {"prompt": "x", "width": 64, "height": 64}
        runs = [Run(job=f"job {number}", attempt=1, request=request) for number in numbers]

        def call() -> None:
            try:
                outcomes = self.worker.run_together([HandedOver(run, lambda _: None) for run in runs])
            except WorkerNotReady:
                assert self.worker.state is not WorkerState.READY or not self.live()
            else:
                self.calls += [(run, waiting(outcome)) for run, outcome in zip(runs, outcomes, strict=True)]

        self.do(call)

    @rule()
    def wait_ready(self) -> None:
        async def wait() -> bool:
            try:
                async with asyncio.timeout(0.1):
                    await self.worker.wait_ready()
            except TimeoutError:
                return False
            return True

        is_ready = self.worker.state is WorkerState.READY
        assert self.loop.run_until_complete(wait()) or not is_ready

    @rule(name=st.sampled_from(["job 1", "job 2", "unknown"]))
    def cancel(self, name: str) -> None:
        self.do(lambda: self.worker.cancel(name, 1))

    @rule()
    def prepare(self) -> None:
        """Heard by a worker that has a job, and by no other."""
        heard = sum(process.prepared for process in self.processes)
        busy = self.worker.state is WorkerState.BUSY
        self.do(lambda: self.worker.prepare(Prepare(job="next", request={"prompt": "y"})))
        assert sum(process.prepared for process in self.processes) == heard + busy

    @rule()
    def abandon(self) -> None:
        """Whoever waits for the last job goes away."""
        if self.calls:
            self.do(self.calls[-1][1].cancel)

    # What happens.

    @rule(seconds=st.sampled_from([1.0, 40.0, STEP_LIMIT_S + 1, LOAD_LIMIT_S + 1]))
    def time_passes(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @rule(cannot=st.booleans())
    def processes_run_out(self, cannot: bool) -> None:
        self.cannot_spawn = cannot

    @rule(version=st.sampled_from([PROTOCOL_VERSION] * 5 + [PROTOCOL_VERSION + 1]))
    def become_ready(self, version: int) -> None:
        process = self.loaded()
        if process and not process.greeted:
            process.greeted = version == PROTOCOL_VERSION
            ready = filled(Ready, version=version, warmup_s=0.1, prepares=True)
            self.do(lambda: process.say(ready))

    @rule()
    def warm_up_the_spare(self) -> None:
        for process in self.live():
            if not process.loaded:
                self.do(partial(process.say, Hello(version=PROTOCOL_VERSION)))

    @rule(attempt=st.sampled_from([1, 1, 1, 0, 2]), job=st.sampled_from(["", "", "other"]))
    def step(self, attempt: int, job: str) -> None:
        process = self.loaded()
        if process and process.runs:
            name = job or process.runs[-1].job
            self.do(lambda: process.say(Step(job=name, attempt=attempt, step=1, steps=9, step_s=0.1)))

    @rule()
    def finish(self) -> None:
        process = self.loaded()
        if process and process.runs:
            run = process.runs.pop()
            self.do(lambda: process.say(Done(job=run.job, attempt=1, result={"by": process.pid}, compute_s=1.0)))

    @rule()
    def draw(self) -> None:
        """The device is done with a job, whose pictures are encoded beside the next; free after the last of a batch."""
        process = self.loaded()
        if process and process.runs:
            run = process.runs.pop(0)
            process.encoding.append(run)
            self.do(lambda: process.say(Drawn(job=run.job, attempt=1)))
            wanted = WorkerState.BUSY if process.runs else WorkerState.READY
            assert self.worker.state is wanted or process.returncode is not None

    @rule(fails=st.booleans())
    def encode(self, fails: bool) -> None:
        process = self.loaded()
        if process and process.encoding:
            run = process.encoding.pop(0)
            if fails:
                self.do(lambda: process.say(Failed(job=run.job, attempt=1, kind="unknown", message="disk")))
            else:
                self.do(lambda: process.say(Done(job=run.job, attempt=1, result={}, compute_s=1.0)))

    @rule(
        together=st.integers(1, 4),
        how=st.sampled_from(["finish", "draw", "draw", "out_of_memory", "input", "abandon", "die", "hang"]),
    )
    def work(self, together: int, how: str) -> None:
        """A job or a batch and what becomes of it, in one: by chance alone these seldom follow each other."""
        if self.worker.state is WorkerState.STARTING:
            self.become_ready(PROTOCOL_VERSION)
        if together > 1:
            self.run_together(together)
        else:
            self.run()
        acts: dict[str, Callable[[], None]] = {
            "finish": self.finish,
            "draw": self.draw,
            "abandon": self.abandon,
            "die": partial(self.die, 0, "kill"),
            "hang": partial(self.time_passes, STEP_LIMIT_S + 1),
        }
        for _ in range(together):
            acts.get(how, partial(self.fail, how))()

    @rule(kind=st.sampled_from(["input", "cancelled", "unknown", "out_of_memory", "out_of_memory", "out_of_memory"]))
    def fail(self, kind: str) -> None:
        process = self.loaded()
        if process and process.runs:
            run = process.runs.pop()
            self.do(lambda: process.say(Failed(job=run.job, attempt=1, kind=kind, message="x")))

    @rule()
    def say_what_nobody_waits_for(self) -> None:
        for process in self.live():
            self.do(partial(process.say, Done(job="job 1", attempt=7, result={}, compute_s=1.0)))

    @rule(which=st.integers(0, 1), how=st.sampled_from(["exit", "kill", "fatal", "junk"]))
    def die(self, which: int, how: str) -> None:
        for process in self.live()[which : which + 1]:
            acts: dict[str, Callable[[], None]] = {
                "exit": partial(process.exit, 0),
                "kill": process.kill,
                "fatal": partial(process.say, Fatal(reason="device", message="illegal memory access")),
                "junk": process.junk,
            }
            self.do(acts[how])

    # What is always so.

    @invariant()
    def no_more_processes_than_wanted(self) -> None:
        assert len(self.live()) <= getattr(self, "most", 0)
        assert sum(process.loaded for process in self.live()) <= 1

    @invariant()
    def ready_means_a_live_worker(self) -> None:
        if self.processes and self.worker.state in (WorkerState.READY, WorkerState.BUSY):
            process = self.loaded()
            assert process is not None
            assert process.greeted
            assert self.worker.pid == process.pid

    @invariant()
    def every_call_ends_as_it_should(self) -> None:
        for run, call in self.calls:
            if not call.done():
                process = self.loaded()
                assert process is not None
                if run not in process.encoding:
                    assert run in process.runs, "somebody waits for a job that nobody has"
                    assert self.worker.state is WorkerState.BUSY
            elif not call.cancelled() and (error := call.exception()):
                assert isinstance(error, WorkerNotReady | WorkerLost | WorkerStuck)
            elif not call.cancelled():
                assert (call.result().job, call.result().attempt) == (run.job, run.attempt)

    def teardown(self) -> None:
        self.cannot_spawn = False
        self.stop()
        self.loop.run_until_complete(asyncio.sleep(1))
        assert all(call.done() for _, call in self.calls)
        left = asyncio.all_tasks(self.loop)
        self.loop.close()
        assert not left


async def waiting_for(outcome: asyncio.Future[Any]) -> Any:
    return await outcome


def waiting(outcome: asyncio.Future[Any]) -> asyncio.Task[Any]:
    return asyncio.ensure_future(waiting_for(outcome))


def play(sequences: int) -> set[str]:
    """The ends that calls came to in this many random sequences; which of them a few sequences meet is chance."""
    seen: Counter[str] = Counter()

    class Counted(Orders):
        def teardown(self) -> None:
            super().teardown()
            seen["sequences"] += 1
            seen.update(outcome(call) for _, call in self.calls)

    with structlog.testing.capture_logs():
        run_many(Counted, sequences)
    print(f"R19: of at most {STEPS} calls and events each, 0 violations; {dict(seen)}")
    assert seen.pop("sequences") >= sequences
    assert set(seen) <= ENDS
    return set(seen)


def outcome(call: asyncio.Task[Any]) -> str:
    if call.cancelled():
        return "cancelled"
    return type(call.exception() or call.result()).__name__


def run_many(machine: type[Orders], sequences: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=sequences,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def test_a_worker_that_draws_one_of_a_batch_is_not_stuck_with_the_others() -> None:
    """Where a batch failed as a whole, each of its jobs is drawn alone, and the last hears nothing for long."""
    machine = Orders()
    machine.make(spare=False, ready=True)
    machine.run_together(3)
    for _ in range(3):
        machine.time_passes(STEP_LIMIT_S - 1)
        machine.step(1, "")
    machine.time_passes(STEP_LIMIT_S - 1)
    machine.draw()
    assert not [call for _, call in machine.calls if call.done()]
    machine.time_passes(STEP_LIMIT_S + 1)
    assert {outcome(call) for _, call in machine.calls} <= {"WorkerStuck", "WorkerLostAfterDrawing"}
    machine.teardown()


def test_no_order_of_calls_and_events_is_bad() -> None:
    assert play(SHORT_SEQUENCES)


@pytest.mark.soak
def test_no_order_of_calls_and_events_is_bad_in_two_thousand_sequences() -> None:
    assert play(FULL_SEQUENCES) == ENDS
