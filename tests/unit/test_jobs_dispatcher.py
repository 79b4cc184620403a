"""The dispatcher when the store or a result fails it: no job hangs, nothing inner is told, nothing piles up."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.request import GenerationRequest, GenerationResult, OutputFile
from server.errors import InsufficientStorage
from server.jobs import endings as endings_module
from server.jobs.database import JobDatabase
from server.jobs.dispatcher import Dispatcher
from server.jobs.model import Job, Lane, NewJob, State
from server.jobs.service import JobService
from server.media.results import ResultFiles
from server.worker.job import HandedOver
from server.worker.protocol import Done, Failed, Run
from server.worker.supervisor import WorkerState

LIMIT_S = 5.0
ABSENT = OutputFile(index=0, seed=0, file="gone.png", format="png", width=1, height=1, size_bytes=1, sha256="ab" * 32)


class Worker:
    """A worker that is always ready and answers every job at once."""

    state = WorkerState.READY
    greeting = None

    def __init__(self, answer: Callable[[Run], Done | Failed]) -> None:
        self._answer = answer

    async def wait_ready(self) -> None:
        pass

    def run_together(self, jobs: list[HandedOver]) -> list[asyncio.Future[Done | Failed]]:
        outcomes = [asyncio.get_running_loop().create_future() for _ in jobs]
        for job, outcome in zip(jobs, outcomes, strict=True):
            outcome.set_result(self._answer(job.run))
        return outcomes


def failed(run: Run) -> Failed:
    return Failed(job=run.job, attempt=run.attempt, kind="input", message="no such size")


def done_with(result: dict[str, Any]) -> Callable[[Run], Done]:
    return lambda run: Done(job=run.job, attempt=run.attempt, result=result, compute_s=1.0)


def final_job(
    folder: Path, answer: Callable[[Run], Done | Failed], spoil: Callable[[Any], None] = lambda _: None
) -> Job:
    """How a job ends with such a worker, after `spoil` had its way with the writing store."""

    async def run() -> Job:
        results = ResultFiles(folder)
        results.prepare()
        database = JobDatabase(folder / "jobs.sqlite3")
        spoil(database.writer)
        service = JobService(database, queue_limit=9, result_ttl_s=3600.0)
        dispatcher = Dispatcher(database, service, Worker(answer), results)  # type: ignore[arg-type]
        await dispatcher.start()
        request = GenerationRequest(model="m", prompt="p", width=16, height=16, steps=1, guidance=1.0, seed=0)
        try:
            new = NewJob(id="a", owner="ann", lane=Lane.BATCH, attached=False, request=request)
            return await service.wait(await service.submit(new), LIMIT_S)
        finally:
            await dispatcher.stop(0.0)
            database.close()

    return asyncio.run(run())


@pytest.mark.parametrize("method", ["claim", "finish"])
@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), InsufficientStorage()])
def test_a_store_that_fails_for_a_while_costs_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
) -> None:
    monkeypatch.setattr(endings_module, "RETRY_S", 0.01)

    def spoil(writer: Any) -> None:
        troubles, true = iter([error, error]), getattr(writer, method)

        def fail_twice(*arguments: Any, **named: Any) -> Any:
            if trouble := next(troubles, None):
                raise trouble
            return true(*arguments, **named)

        monkeypatch.setattr(writer, method, fail_twice)

    assert final_job(tmp_path, failed, spoil).error_code == "invalid_input"


@pytest.mark.parametrize(
    "result", [{}, {"images": None}, {"images": [{}]}, GenerationResult(images=(ABSENT,)).to_json()]
)
def test_a_result_that_cannot_be_published_fails_its_job_and_shows_no_folder(
    tmp_path: Path, result: dict[str, Any]
) -> None:
    job = final_job(tmp_path, done_with(result))
    assert (job.state, job.error_code) == (State.FAILED, "model_failed")
    assert str(tmp_path) not in (job.error_text or "")


def test_pictures_that_cannot_be_published_do_not_pile_up(tmp_path: Path) -> None:
    """One is published while the next is drawn; a kill costs no more than these two."""
    drawn: list[str] = []

    def draw(run: Run) -> Done:
        drawn.append(run.job)
        return Done(
            job=run.job, attempt=run.attempt, result=GenerationResult(images=(ABSENT,)).to_json(), compute_s=1.0
        )

    async def run() -> None:
        database = JobDatabase(tmp_path / "jobs.sqlite3")
        service = JobService(database, queue_limit=9, result_ttl_s=3600.0)
        go = asyncio.Event()
        results = ResultFiles(tmp_path)
        results.prepare()
        results.publish = lambda _: go.wait()  # type: ignore[method-assign,assignment,return-value]
        request = GenerationRequest(model="m", prompt="p", width=16, height=16, steps=1, guidance=1.0, seed=0)
        for job in "abcdefgh":
            await service.submit(NewJob(id=job, owner="ann", lane=Lane.BATCH, attached=False, request=request))
        dispatcher = Dispatcher(database, service, Worker(draw), results)  # type: ignore[arg-type]
        await dispatcher.start()
        try:
            async with asyncio.timeout(LIMIT_S):
                while len(drawn) < 2:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)  # time enough for a third
        finally:
            dispatcher._task.cancel()  # type: ignore[union-attr]
            for ending in dispatcher._attempts:
                ending.cancel()
            await asyncio.gather(*dispatcher._attempts, return_exceptions=True)
            database.close()

    asyncio.run(run())
    assert drawn == ["a", "b"]
