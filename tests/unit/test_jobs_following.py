"""What the worker hears, while it draws one job, of the one that comes after it."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.request import GenerationRequest
from server.jobs.database import JobDatabase
from server.jobs.following import FollowingJob
from server.jobs.model import Job, Lane, NewJob
from server.worker.protocol import Prepare

REQUEST = GenerationRequest(model="flux-dev", prompt="p", width=16, height=16, steps=1, guidance=1.0, seed=0)


class Worker:
    """Notes what it is told to prepare."""

    prepares, pid = True, 1

    def __init__(self) -> None:
        self.heard: list[Prepare] = []

    def prepare(self, following: Prepare) -> None:
        self.heard.append(following)

    @property
    def names(self) -> list[str]:
        return [message.job for message in self.heard]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[JobDatabase]:
    made = JobDatabase(tmp_path / "jobs.sqlite3")
    yield made
    made.close()


def submit(database: JobDatabase, name: str, *, lane: Lane = Lane.BATCH, model: str = "flux-dev") -> None:
    request = dataclasses.replace(REQUEST, prompt=f"prompt of {name}", model=model)
    new = NewJob(id=name, owner="ann", lane=lane, attached=False, request=request)
    database.writer.submit(new, now=1.0, queue_limit=9)


def claim(database: JobDatabase) -> Job:
    job = database.writer.claim()
    assert job is not None
    return job


def following(database: JobDatabase, worker: Worker) -> FollowingJob:
    return FollowingJob(database, worker)  # type: ignore[arg-type]


def test_the_next_job_is_named_once_however_many_steps_there_are(database: JobDatabase) -> None:
    worker = Worker()
    announcer = following(database, worker)
    submit(database, "a")
    running = claim(database)
    announcer.announce(running, None)
    assert worker.names == [], "nobody waits"
    submit(database, "b")
    submit(database, "c")
    for _ in range(5):
        announcer.announce(running, None)
    assert worker.heard == [Prepare(job="b", request={**REQUEST.to_json(), "prompt": "prompt of b"})]
    announcer.announce(claim(database), None)
    assert worker.names == ["b", "c"]
    assert database.read.count_queued() == 1, "nothing is claimed"


def test_a_new_worker_is_told_what_the_last_one_knew(database: JobDatabase) -> None:
    worker = Worker()
    announcer = following(database, worker)
    for name in ("a", "b"):
        submit(database, name)
    running = claim(database)
    announcer.announce(running, None)
    worker.pid = 2  # type: ignore[misc]
    announcer.announce(running, None)
    assert worker.names == ["b", "b"]


def test_a_job_that_comes_before_the_named_one_is_named_too(database: JobDatabase) -> None:
    worker = Worker()
    announcer = following(database, worker)
    for name in ("a", "b"):
        submit(database, name)
    running = claim(database)
    announcer.announce(running, None)
    submit(database, "quick", lane=Lane.INTERACTIVE)
    announcer.announce(running, None)
    assert worker.names == ["b", "quick"]


def test_where_models_take_turns_the_next_one_is_of_the_model_on_the_device(database: JobDatabase) -> None:
    worker = Worker()
    for name, model in (("a", "flux-dev"), ("b", "flux-depth-dev"), ("c", "flux-dev")):
        submit(database, name, model=model)
    following(database, worker).announce(claim(database), "flux-dev")
    assert worker.names == ["c"]


@pytest.mark.parametrize("died", ["running", "following"])
def test_where_a_worker_died_nothing_is_prepared(database: JobDatabase, died: str) -> None:
    worker = Worker()
    for name in ("running", "following"):
        submit(database, name)
    claimed = {name: claim(database) for name in ("running", "following")}
    for name, job in claimed.items():
        database.writer.requeue(name, job.attempt, worker_died=name == died)
    announcer, running = following(database, worker), claim(database)
    assert (running.id, running.deaths) == ("running", int(died == "running"))
    announcer.announce(running, None)
    assert worker.names == []


def test_a_worker_that_prepares_nothing_is_told_nothing(database: JobDatabase) -> None:
    worker = Worker()
    worker.prepares = False  # type: ignore[misc]
    for name in ("a", "b"):
        submit(database, name)
    following(database, worker).announce(claim(database), None)
    assert worker.names == []


def test_a_store_that_cannot_be_read_does_not_harm_the_running_job(
    database: JobDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker()
    for name in ("a", "b"):
        submit(database, name)
    running = claim(database)

    def fail(_: Any) -> Job:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(database.read, "peek", fail)
        following(database, worker).announce(running, None)
    assert worker.names == []
