"""The job store on SQLite: write-ahead log, synchronous=FULL, one connection that writes.

A commit is on disk when it returns, but for those whose loss in a power cut changes nothing: that a job was begun, and
that somebody waits on a connection, which the cut ends as well. A killed process loses none of them. Readers use a
connection of their own that never writes or checkpoints: with two writing connections some SQLite releases before
3.51.3 can corrupt the log.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.request import GenerationRequest, GenerationResult
from server.errors import InsufficientStorage

from . import queries
from .company import may_join
from .migrations import migrate
from .model import Ending, Expiry, IllegalTransition, Job, Lane, NewJob, State, check_transition
from .store import CannotPay, Published, QueueFull, TooManyQueued, check_same


class SqliteStore:
    """JobStore on one SQLite file. Not safe for several threads at once; `JobDatabase` gives each its own."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        # Opened for reading only, a connection does not checkpoint when it is closed either.
        place = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        self._connection = sqlite3.connect(place, uri=True, isolation_level=None, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA busy_timeout = 10000")
        if read_only:
            self._connection.execute("PRAGMA query_only = ON")
            self._connection.execute("PRAGMA wal_autocheckpoint = 0")
        else:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            migrate(self._connection)

    def close(self) -> None:
        self._connection.close()

    def submit(
        self,
        new: NewJob,
        *,
        now: float,
        queue_limit: int,
        owner_limit: int | None = None,
        expiry: Expiry | None = None,
    ) -> Job:
        with self._transaction(synced=not new.attached):
            if same := self._same(new, expiry):
                return same
            self._check_room(new.owner, queue_limit, owner_limit)
            self._reserve(new)
            self._connection.execute(queries.INSERT, _insert_values(new, now))
            return _job(self._connection.execute(queries.GET, (new.id,)).fetchone())

    def get(self, job_id: str) -> Job | None:
        row = self._connection.execute(queries.GET, (job_id,)).fetchone()
        return _job(row) if row else None

    def get_by_key(self, owner: str, idempotency_key: str) -> Job | None:
        row = self._connection.execute(queries.GET_BY_KEY, (owner, idempotency_key)).fetchone()
        return _job(row) if row else None

    def latest(self, *, state: State | None, limit: int) -> list[Job]:
        rows = self._connection.execute(queries.LIST, {"state": state.value if state else None, "limit": limit})
        return [_job(row) for row in rows]

    def claim(self, preferred_model: str | None = None) -> Job | None:
        query = queries.CLAIM_PREFERRED if preferred_model else queries.CLAIM
        with self._transaction(synced=False):
            row = self._connection.execute(query, {"model": preferred_model}).fetchone()
        return _job(row) if row else None

    def peek(self, preferred_model: str | None = None) -> Job | None:
        query = queries.PEEK_PREFERRED if preferred_model else queries.PEEK
        row = self._connection.execute(query, {"model": preferred_model}).fetchone()
        return _job(row) if row else None

    def claim_mates(self, head: Job, *, limit: int) -> list[Job]:
        with self._transaction(synced=False):
            waiting = map(_job, self._connection.execute(queries.AHEAD).fetchall())
            mates = [job for job in waiting if may_join(job, head)][:limit]
            return [_job(self._connection.execute(queries.CLAIM_ONE, (job.seq,)).fetchone()) for job in mates]

    def finish(self, job_id: str, attempt: int, ending: Ending, *, now: float) -> Job | None:
        check_transition(State.RUNNING, ending.state)
        if not ending.state.final:
            raise IllegalTransition(f"a job cannot end in {ending.state}")
        with self._transaction():
            row = self._connection.execute(queries.FINISH, _finish_values(job_id, attempt, ending, now)).fetchone()
            if row is None:
                return None
            job = _job(row)
            if job.state is not State.SUCCEEDED:
                self._refund(job)
        return job

    def cancel_queued(self, job_id: str, *, now: float) -> Job | None:
        with self._transaction():
            before = self.get(job_id)
            if before is None:
                return None
            values = {"id": job_id, "finished_at": now, "queue_s": max(now - before.submitted_at, 0.0)}
            row = self._connection.execute(queries.CANCEL_QUEUED, values).fetchone()
            if row is None:
                return None
            job = _job(row)
            self._refund(job)
        return job

    def fail_queued(self, *, submitted_before: float, now: float, error_code: str, error_text: str) -> list[Job]:
        values = {"submitted_before": submitted_before, "now": now, "error_code": error_code, "error_text": error_text}
        with self._transaction():
            failed = [_job(row) for row in self._connection.execute(queries.FAIL_QUEUED, values)]
            for job in failed:
                self._refund(job)
        return failed

    def unclaim(self, job_id: str, attempt: int) -> bool:
        with self._transaction(synced=False):
            return self._connection.execute(queries.UNCLAIM, {"id": job_id, "attempt": attempt}).rowcount == 1

    def requeue(self, job_id: str, attempt: int, *, worker_died: bool) -> bool:
        values = {"id": job_id, "attempt": attempt, "deaths": int(worker_died)}
        with self._transaction():
            return self._connection.execute(queries.REQUEUE, values).rowcount == 1

    def published(self) -> list[Published]:
        return [
            Published(
                row["id"], row["finished_at"], tuple(GenerationResult.from_json(json.loads(row["result"])).files())
            )
            for row in self._connection.execute(queries.SUCCEEDED)
        ]

    def recover(self, *, now: float, lost: Iterable[str] = ()) -> list[Job]:
        with self._transaction():
            self._connection.executemany(queries.REOPEN, [(job_id,) for job_id in lost])
            cancelled = [_job(row) for row in self._connection.execute(queries.RECOVER_ATTACHED, {"now": now})]
            for job in cancelled:
                self._refund(job)
            self._connection.execute(queries.RECOVER_RUNNING)
        return cancelled

    def clamp_times(self, *, now: float) -> None:
        with self._transaction():
            self._connection.execute(queries.CLAMP_TIMES, {"now": now})

    def delete_expired(self, *, submitted_before: float, finished_before: float, limit: int) -> int:
        values = {"submitted_before": submitted_before, "finished_before": finished_before, "limit": limit}
        with self._transaction():
            return self._connection.execute(queries.DELETE_EXPIRED, values).rowcount

    def count_queued(self) -> int:
        return int(self._connection.execute(queries.COUNT_QUEUED).fetchone()[0])

    def counts(self) -> dict[tuple[State, Lane], int]:
        rows = self._connection.execute(queries.COUNT_BY_STATE_AND_LANE)
        return {(State(state), Lane(lane)): count for state, lane, count in rows}

    def inputs_in_use(self) -> set[str]:
        return {row[0] for row in self._connection.execute(queries.INPUTS_IN_USE)}

    def spent_micro_usd(self, owner: str) -> int:
        row = self._connection.execute(queries.SPENT, (owner,)).fetchone()
        return int(row[0]) if row else 0

    def _same(self, new: NewJob, expiry: Expiry | None) -> Job | None:
        """The job that already has this one's idempotency key. One whose time is over gives its key away."""
        if new.idempotency is None or (job := self.get_by_key(new.owner, new.idempotency.key)) is None:
            return None
        if expiry is not None and expiry.covers(job):
            self._connection.execute(queries.FORGET_KEY, (job.id,))
            return None
        check_same(job, new.idempotency)
        return job

    def _check_room(self, owner: str, queue_limit: int, owner_limit: int | None) -> None:
        if self.count_queued() >= queue_limit:
            raise QueueFull(
                f"The queue is full: {queue_limit} jobs are waiting. Try again in a minute.", retry_after_s=60
            )
        if owner_limit is None:
            return
        waiting = int(self._connection.execute(queries.COUNT_QUEUED_OF, (owner,)).fetchone()[0])
        if waiting >= owner_limit:
            raise TooManyQueued(
                f"{waiting} jobs of this key are waiting, and {owner_limit} may. Try again when some have run.",
                retry_after_s=10,
            )

    def _reserve(self, new: NewJob) -> None:
        if new.budget_micro_usd is not None:
            balance = new.budget_micro_usd - self.spent_micro_usd(new.owner)
            if balance < new.price_micro_usd:
                raise CannotPay(balance, new.price_micro_usd)
        self._connection.execute(queries.SPEND, {"owner": new.owner, "micro_usd": new.price_micro_usd})

    def _refund(self, job: Job) -> None:
        self._connection.execute(queries.SPEND, {"owner": job.owner, "micro_usd": -job.price_micro_usd})

    @contextmanager
    def _transaction(self, *, synced: bool = True) -> Iterator[None]:
        """synced: on disk afterwards. Else the next commit that is takes it there as well."""
        if not synced:
            self._connection.execute("PRAGMA synchronous = NORMAL")
        try:
            with self._committed():
                yield
        finally:
            if not synced:
                self._connection.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def _committed(self) -> Iterator[None]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except BaseException as error:
            # SQLite itself has rolled back after some errors, a full disk among them.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error) and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise InsufficientStorage from error
            raise


def _insert_values(new: NewJob, now: float) -> dict[str, Any]:
    return {
        "id": new.id,
        "owner": new.owner,
        "lane": int(new.lane),
        "attached": int(new.attached),
        "request": json.dumps(new.request.to_json()),
        "input_name": new.request.control_image or new.request.init_image,
        "dialect": json.dumps(new.dialect),
        "price_micro_usd": new.price_micro_usd,
        "submitted_at": now,
        "idempotency_key": new.idempotency.key if new.idempotency else None,
        "fingerprint": new.idempotency.fingerprint if new.idempotency else None,
    }


def _finish_values(job_id: str, attempt: int, ending: Ending, now: float) -> dict[str, Any]:
    return {
        "id": job_id,
        "attempt": attempt,
        "state": ending.state.value,
        "queue_s": ending.queue_s,
        "compute_s": ending.compute_s,
        "total_s": ending.total_s,
        "finished_at": now,
        "result": json.dumps(ending.result.to_json()) if ending.result else None,
        "error_code": ending.error_code,
        "error_text": ending.error_text,
    }


def _job(row: sqlite3.Row) -> Job:
    fields = dict(row)
    fields["lane"] = Lane(fields["lane"])
    fields["state"] = State(fields["state"])
    fields["attached"] = bool(fields["attached"])
    fields["request"] = GenerationRequest.from_json(json.loads(fields["request"]))
    fields["dialect"] = json.loads(fields["dialect"])
    fields["result"] = GenerationResult.from_json(json.loads(fields["result"])) if fields["result"] else None
    return Job(**fields)
