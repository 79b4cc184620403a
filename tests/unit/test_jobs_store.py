"""What every job store must do, and what the one on SQLite does besides.

Another implementation takes part in the first half by one more entry in STORES.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.request import GenerationRequest, GenerationResult, OutputFile
from server.errors import InsufficientStorage, KeyReused
from server.jobs import queries
from server.jobs.model import Ending, Expiry, Idempotency, IllegalTransition, Job, Lane, NewJob, State
from server.jobs.sqlite_store import SqliteStore
from server.jobs.store import CannotPay, QueueFull, TooManyQueued

STORES: dict[str, Callable[[Path], Any]] = {"sqlite": lambda folder: SqliteStore(folder / "jobs.sqlite3")}

LIMIT = 1000
"""A queue limit that is not reached."""


@pytest.fixture(params=sorted(STORES))
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Opens a store on the test's data, as often as asked; all are closed in the end."""
    opened: list[Any] = []

    def open_one() -> Any:
        opened.append(STORES[request.param](tmp_path))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], Any]) -> Any:
    return open_store()


def request_of(**changes: Any) -> GenerationRequest:
    values: dict[str, Any] = {"model": "flux-dev", "prompt": "a cat", "width": 64, "height": 64, "steps": 4}
    return GenerationRequest(**{**values, "guidance": 3.5, "seed": 7, **changes})


def new_job(job_id: str, **changes: Any) -> NewJob:
    values: dict[str, Any] = {"owner": "ann", "lane": Lane.BATCH, "attached": False, "request": request_of()}
    return NewJob(id=job_id, **{**values, **changes})


def submit(store: Any, job_id: str, *, now: float = 100.0, **changes: Any) -> Job:
    job: Job = store.submit(new_job(job_id, **changes), now=now, queue_limit=LIMIT)
    return job


def ending(state: State = State.SUCCEEDED, **changes: Any) -> Ending:
    return Ending(state=state, **{"queue_s": 1.0, "compute_s": 2.0, "total_s": 3.0, **changes})


def claim_all(store: Any) -> list[str]:
    ids = []
    while job := store.claim():
        ids.append(job.id)
    return ids


# Acceptance and order.


def test_jobs_are_claimed_by_lane_and_then_first_come_first_served(store: Any) -> None:
    for job_id, lane in (("b1", Lane.BATCH), ("i1", Lane.INTERACTIVE), ("b2", Lane.BATCH), ("i2", Lane.INTERACTIVE)):
        submit(store, job_id, lane=lane)
    assert claim_all(store) == ["i1", "i2", "b1", "b2"]
    assert store.claim() is None


def test_peeking_shows_what_a_claim_would_take_and_changes_nothing(store: Any) -> None:
    assert store.peek() is None
    assert store.peek("flux-dev") is None
    for job_id, lane, model in (
        ("b1", Lane.BATCH, "flux-dev"),
        ("b2", Lane.BATCH, "flux-depth-dev"),
        ("i1", Lane.INTERACTIVE, "flux-dev"),
    ):
        submit(store, job_id, lane=lane, request=request_of(model=model))
    for preferred in (None, "flux-depth-dev", "flux-depth-dev", "flux-depth-dev"):
        seen = store.peek(preferred)
        assert store.peek(preferred) == seen
        claimed = store.claim(preferred)
        assert claimed == (seen and dataclasses.replace(seen, state=State.RUNNING, attempt=1))


def test_order_follows_acceptance_and_not_ids_or_clocks(store: Any) -> None:
    for index, job_id in enumerate(["z", "m", "a"]):
        submit(store, job_id, now=300.0 - index * 100)
    assert claim_all(store) == ["z", "m", "a"]


def test_a_job_that_goes_back_keeps_its_place(store: Any) -> None:
    first, second = submit(store, "first"), submit(store, "second")
    assert first.seq < second.seq
    store.claim()
    assert store.requeue("first", 1, worker_died=False)
    assert claim_all(store) == ["first", "second"]


def test_mates_are_claimed_with_their_head_as_it_was(store: Any) -> None:
    submit(store, "head")
    waiting = {name: submit(store, name) for name in ("a", "b", "c")}
    submit(store, "larger", request=request_of(width=80))
    submit(store, "depth", request=request_of(model="flux-depth-dev"))
    head = store.claim()
    mates = store.claim_mates(head, limit=2)
    assert mates == [dataclasses.replace(waiting[name], state=State.RUNNING, attempt=1) for name in ("a", "b")]
    assert [store.get(job.id) for job in mates] == mates
    assert claim_all(store) == ["c", "larger", "depth"]
    assert store.claim_mates(head, limit=3) == []


def test_a_large_job_has_no_mates_and_one_that_died_is_none(store: Any) -> None:
    for name in ("large", "as large"):
        submit(store, name, request=request_of(width=1024, height=1024))
    assert store.claim_mates(store.claim(), limit=3) == []
    for name in ("unlucky", "head"):
        submit(store, name, lane=Lane.INTERACTIVE)
    unlucky, head = store.claim(), store.claim()
    store.requeue(unlucky.id, unlucky.attempt, worker_died=True)
    assert store.claim_mates(head, limit=3) == []
    assert store.claim().id == "unlucky"


def test_a_submitted_job_waits_and_a_claimed_one_runs_under_a_new_attempt(store: Any) -> None:
    submitted = submit(store, "a", now=123.5)
    assert (submitted.state, submitted.attempt, submitted.deaths) == (State.QUEUED, 0, 0)
    assert submitted.submitted_at == 123.5
    assert store.get("a") == submitted
    claimed = store.claim()
    assert claimed == dataclasses.replace(submitted, state=State.RUNNING, attempt=1)
    assert store.get("a") == claimed


def test_an_unknown_job_is_none(store: Any) -> None:
    assert store.get("nobody") is None
    assert store.claim() is None
    assert store.cancel_queued("nobody", now=1.0) is None
    assert store.finish("nobody", 1, ending(), now=1.0) is None
    assert store.requeue("nobody", 1, worker_died=True) is False


def test_the_queue_takes_as_many_as_its_limit_and_not_one_more(store: Any) -> None:
    for index in range(3):
        store.submit(new_job(f"job{index}"), now=1.0, queue_limit=3)
    with pytest.raises(QueueFull) as refused:
        store.submit(new_job("late", price_micro_usd=5), now=1.0, queue_limit=3)
    assert (refused.value.code, refused.value.http_status) == ("queue_full", 429)
    assert refused.value.retry_after_s
    assert store.get("late") is None
    assert store.spent_micro_usd("ann") == 0
    assert store.count_queued() == 3


def test_only_waiting_jobs_count_against_the_limit(store: Any) -> None:
    store.submit(new_job("runs"), now=1.0, queue_limit=1)
    store.claim()
    assert store.count_queued() == 0
    store.submit(new_job("waits"), now=1.0, queue_limit=1)
    with pytest.raises(QueueFull):
        store.submit(new_job("late"), now=1.0, queue_limit=1)
    store.cancel_queued("waits", now=2.0)
    store.submit(new_job("then"), now=3.0, queue_limit=1)


def test_two_dispatchers_never_get_the_same_job(open_store: Callable[[], Any]) -> None:
    stores = [open_store(), open_store()]
    for index in range(40):
        submit(stores[0], f"job{index}")
    claimed: list[list[str]] = [[], []]
    threads = [
        threading.Thread(target=lambda one=one, ids=ids: ids.extend(claim_all(one)))  # type: ignore[misc]
        for one, ids in zip(stores, claimed, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed[0] + claimed[1]) == sorted(f"job{index}" for index in range(40))


# Attempts.


def test_messages_of_an_old_attempt_change_nothing(store: Any) -> None:
    submit(store, "a", price_micro_usd=10)
    store.claim()
    store.requeue("a", 1, worker_died=True)
    running = store.claim()
    assert running.attempt == 2
    for stale in (0, 1, 3):
        for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
            assert store.finish("a", stale, ending(state), now=9.0) is None
        assert store.requeue("a", stale, worker_died=True) is False
    assert store.get("a") == running
    assert store.spent_micro_usd("ann") == 10
    assert store.finish("a", 2, ending(), now=9.0).state is State.SUCCEEDED


def test_a_waiting_job_cannot_be_ended_by_the_attempt_that_lost_it(store: Any) -> None:
    submit(store, "a")
    store.claim()
    store.requeue("a", 1, worker_died=False)
    waiting = store.get("a")
    assert store.finish("a", 1, ending(), now=9.0) is None
    assert store.requeue("a", 1, worker_died=True) is False
    assert store.get("a") == waiting


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_a_final_job_never_changes_again(store: Any, state: State) -> None:
    submit(store, "a", price_micro_usd=10)
    store.claim()
    final = store.finish("a", 1, ending(state), now=5.0)
    spent = store.spent_micro_usd("ann")
    for other in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
        assert store.finish("a", 1, ending(other, total_s=99.0), now=6.0) is None
    assert store.requeue("a", 1, worker_died=True) is False
    assert store.cancel_queued("a", now=6.0) is None
    assert store.recover(now=6.0) == []
    assert store.claim() is None
    assert store.get("a") == final
    assert store.spent_micro_usd("ann") == spent


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING])
def test_a_job_cannot_end_in_a_state_that_is_not_final(store: Any, state: State) -> None:
    submit(store, "a")
    running = store.claim()
    with pytest.raises(IllegalTransition):
        store.finish("a", 1, ending(state), now=5.0)
    assert store.get("a") == running


def test_deaths_are_counted_apart_from_attempts(store: Any) -> None:
    submit(store, "a")
    counts = []
    for died in (False, True, True):
        job = store.claim()
        assert store.requeue("a", job.attempt, worker_died=died) is True
        back = store.get("a")
        assert back.state is State.QUEUED
        counts.append((back.attempt, back.deaths))
    assert counts == [(1, 0), (2, 1), (3, 2)]


def test_cancelling_takes_a_job_that_waits_and_no_other(store: Any) -> None:
    submit(store, "waits", now=100.0)
    cancelled = store.cancel_queued("waits", now=107.0)
    assert (cancelled.state, cancelled.finished_at) == (State.CANCELLED, 107.0)
    assert (cancelled.queue_s, cancelled.compute_s, cancelled.total_s) == (7.0, 0.0, 7.0)
    assert store.get("waits") == cancelled
    assert store.cancel_queued("waits", now=108.0) is None
    submit(store, "runs")
    running = store.claim()
    assert running.id == "runs"
    assert store.cancel_queued("runs", now=108.0) is None
    assert store.get("runs") == running


def test_a_clock_that_went_back_gives_no_negative_times(store: Any) -> None:
    submit(store, "a", now=1000.0)
    cancelled = store.cancel_queued("a", now=10.0)
    assert (cancelled.queue_s, cancelled.total_s) == (0.0, 0.0)


# Money.


def test_a_balance_that_is_just_enough_pays(store: Any) -> None:
    submit(store, "a", price_micro_usd=100, budget_micro_usd=100)
    assert store.spent_micro_usd("ann") == 100


def test_one_micro_less_than_the_price_does_not_pay_and_leaves_nothing(store: Any) -> None:
    with pytest.raises(CannotPay, match=r"\$0\.000099.*\$0\.000100") as refused:
        submit(store, "a", price_micro_usd=100, budget_micro_usd=99)
    assert refused.value.code == "insufficient_credits"
    assert store.get("a") is None
    assert store.count_queued() == 0
    assert store.spent_micro_usd("ann") == 0


def test_what_is_reserved_cannot_be_spent_again(store: Any) -> None:
    submit(store, "a", price_micro_usd=40, budget_micro_usd=100)
    submit(store, "b", price_micro_usd=40, budget_micro_usd=100)
    with pytest.raises(CannotPay):
        submit(store, "c", price_micro_usd=21, budget_micro_usd=100)
    submit(store, "d", price_micro_usd=20, budget_micro_usd=100)
    assert store.spent_micro_usd("ann") == 100


def test_each_owner_has_a_budget_of_its_own(store: Any) -> None:
    submit(store, "a", price_micro_usd=100, budget_micro_usd=100)
    submit(store, "b", owner="ben", price_micro_usd=100, budget_micro_usd=100)
    assert (store.spent_micro_usd("ann"), store.spent_micro_usd("ben")) == (100, 100)
    assert store.spent_micro_usd("cleo") == 0


def test_a_caller_without_a_budget_is_counted_but_never_refused(store: Any) -> None:
    submit(store, "a", price_micro_usd=10**12)
    submit(store, "b", price_micro_usd=1)
    assert store.spent_micro_usd("ann") == 10**12 + 1


@pytest.mark.parametrize(
    ("state", "left"), [(State.SUCCEEDED, 100), (State.FAILED, 0), (State.CANCELLED, 0)], ids=lambda value: str(value)
)
def test_only_success_costs(store: Any, state: State, left: int) -> None:
    submit(store, "other", owner="ben", price_micro_usd=7)
    store.claim()
    submit(store, "a", price_micro_usd=100)
    store.claim()
    assert store.spent_micro_usd("ann") == 100
    store.finish("a", 1, ending(state), now=5.0)
    assert store.spent_micro_usd("ann") == left
    assert store.spent_micro_usd("ben") == 7


def test_a_cancelled_waiting_job_is_refunded_once(store: Any) -> None:
    submit(store, "a", price_micro_usd=100)
    store.cancel_queued("a", now=5.0)
    store.cancel_queued("a", now=6.0)
    assert store.spent_micro_usd("ann") == 0


def test_a_requeued_job_is_neither_refunded_nor_charged_again(store: Any) -> None:
    submit(store, "a", price_micro_usd=100)
    store.claim()
    store.requeue("a", 1, worker_died=True)
    assert store.spent_micro_usd("ann") == 100
    store.claim()
    assert store.spent_micro_usd("ann") == 100


# After a restart.


def test_recovery_requeues_what_ran_and_cancels_what_was_attached(store: Any) -> None:
    for job_id, attached in (("ran", False), ("ran-attached", True), ("waits", False), ("waits-attached", True)):
        submit(store, job_id, attached=attached, price_micro_usd=10)
    assert [store.claim().id for _ in range(2)] == ["ran", "ran-attached"]
    waiting = store.get("waits")
    cancelled = store.recover(now=500.0)
    assert {job.id for job in cancelled} == {"ran-attached", "waits-attached"}
    for job in cancelled:
        assert (job.state, job.finished_at) == (State.CANCELLED, 500.0)
        assert store.get(job.id) == job
    assert (store.get("ran").state, store.get("ran").attempt, store.get("ran").deaths) == (State.QUEUED, 1, 0)
    assert store.get("waits") == waiting
    assert store.spent_micro_usd("ann") == 20
    assert store.recover(now=501.0) == []
    assert store.spent_micro_usd("ann") == 20


def test_a_recovered_job_ignores_the_worker_from_before(store: Any) -> None:
    submit(store, "a")
    store.claim()
    store.recover(now=5.0)
    assert store.finish("a", 1, ending(), now=6.0) is None
    assert store.claim().attempt == 2
    assert store.finish("a", 1, ending(), now=6.0) is None


# Forgetting.


def finished_job(store: Any, job_id: str, *, submitted: float, finished: float) -> None:
    submit(store, job_id, now=submitted)
    assert store.claim().id == job_id
    assert store.finish(job_id, 1, ending(), now=finished)


@pytest.mark.parametrize(
    ("submitted", "finished", "deleted"),
    [(10.0, 20.0, 1), (10.001, 20.0, 0), (10.0, 20.001, 0), (9.0, 19.0, 1), (0.0, 30.0, 0), (15.0, 16.0, 0)],
)
def test_a_job_is_deleted_when_it_is_old_on_both_counts(
    store: Any, submitted: float, finished: float, deleted: int
) -> None:
    finished_job(store, "a", submitted=submitted, finished=finished)
    assert store.delete_expired(submitted_before=10.0, finished_before=20.0, limit=100) == deleted
    assert (store.get("a") is None) == bool(deleted)


def test_unfinished_jobs_are_never_deleted(store: Any) -> None:
    submit(store, "runs", now=1.0)
    store.claim()
    submit(store, "waits", now=1.0)
    assert store.delete_expired(submitted_before=1e12, finished_before=1e12, limit=100) == 0
    assert store.get("runs").state is State.RUNNING
    assert store.get("waits").state is State.QUEUED


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_every_final_state_is_deleted_in_time(store: Any, state: State) -> None:
    submit(store, "a", now=1.0)
    store.claim()
    store.finish("a", 1, ending(state), now=2.0)
    assert store.delete_expired(submitted_before=1.0, finished_before=2.0, limit=100) == 1


def test_jobs_cancelled_while_waiting_or_at_a_restart_are_deleted_in_time(store: Any) -> None:
    submit(store, "waited", now=1.0)
    store.cancel_queued("waited", now=2.0)
    submit(store, "attached", now=1.0, attached=True)
    store.recover(now=2.0)
    assert store.delete_expired(submitted_before=1.0, finished_before=2.0, limit=100) == 2


def test_deletion_goes_in_batches_and_says_how_many(store: Any) -> None:
    for index in range(5):
        finished_job(store, f"old{index}", submitted=1.0, finished=2.0)
    finished_job(store, "young", submitted=50.0, finished=51.0)
    batches = [store.delete_expired(submitted_before=10.0, finished_before=10.0, limit=2) for _ in range(4)]
    assert batches == [2, 2, 1, 0]
    assert store.get("young") is not None


def test_what_was_spent_outlives_the_job(store: Any) -> None:
    submit(store, "a", now=1.0, price_micro_usd=100)
    store.claim()
    store.finish("a", 1, ending(), now=2.0)
    store.delete_expired(submitted_before=9.0, finished_before=9.0, limit=9)
    assert store.spent_micro_usd("ann") == 100


def test_a_new_job_never_takes_the_place_of_a_deleted_one(store: Any) -> None:
    finished_job(store, "a", submitted=1.0, finished=2.0)
    before = store.get("a").seq
    store.delete_expired(submitted_before=9.0, finished_before=9.0, limit=9)
    assert submit(store, "b").seq > before


@pytest.mark.parametrize("ahead", [300.0, 7200.0])
def test_times_from_before_the_machines_clock_was_set_back_become_now(store: Any, ahead: float) -> None:
    finished_job(store, "done", submitted=1000.0 + ahead, finished=1010.0 + ahead)
    finished_job(store, "old", submitted=900.0, finished=990.0)
    submit(store, "waits", now=1000.0 + ahead)
    store.clamp_times(now=1000.0)
    assert (store.get("done").submitted_at, store.get("done").finished_at) == (1000.0, 1000.0)
    assert (store.get("old").submitted_at, store.get("old").finished_at) == (900.0, 990.0)
    assert (store.get("waits").submitted_at, store.get("waits").finished_at) == (1000.0, None)


# One request sent several times.


def keyed(job_id: str, key: str = "k", fingerprint: str = "f", **changes: Any) -> NewJob:
    return new_job(job_id, idempotency=Idempotency(key, fingerprint), **changes)


def test_the_same_key_and_request_are_one_job_and_are_paid_once(store: Any) -> None:
    first = store.submit(keyed("a", price_micro_usd=5), now=1.0, queue_limit=1)
    for state in (State.QUEUED, State.RUNNING, State.SUCCEEDED):
        again = store.submit(keyed("b", price_micro_usd=5), now=2.0, queue_limit=1)
        assert (again.id, again.seq, again.state) == ("a", first.seq, state)
        store.claim()
        if state is State.RUNNING:
            store.finish("a", 1, ending(), now=3.0)
    assert store.get("b") is None
    assert store.spent_micro_usd("ann") == 5
    assert store.get_by_key("ann", "k").id == "a"


def test_the_same_key_for_another_request_is_refused(store: Any) -> None:
    store.submit(keyed("a"), now=1.0, queue_limit=LIMIT)
    with pytest.raises(KeyReused) as refused:
        store.submit(keyed("b", fingerprint="g", price_micro_usd=5), now=2.0, queue_limit=LIMIT)
    assert refused.value.http_status == 422
    assert store.spent_micro_usd("ann") == 0


def test_keys_are_apart_by_owner_and_jobs_without_a_key_are_never_the_same(store: Any) -> None:
    for new in (keyed("a"), keyed("b", owner="ben"), keyed("c", key="l"), new_job("d"), new_job("e")):
        assert store.submit(new, now=1.0, queue_limit=LIMIT).id == new.id
    assert store.get_by_key("ben", "k").id == "b"
    assert store.get_by_key("cleo", "k") is None


def test_a_job_whose_time_is_over_gives_its_key_away(store: Any) -> None:
    store.submit(keyed("a"), now=1.0, queue_limit=LIMIT)
    store.claim()
    store.finish("a", 1, ending(), now=2.0)
    kept, over = Expiry(0.5, 9.0), Expiry(1.0, 2.0)
    assert store.submit(keyed("b"), now=3.0, queue_limit=LIMIT, expiry=kept).id == "a"
    assert store.submit(keyed("b", fingerprint="g"), now=3.0, queue_limit=LIMIT, expiry=over).id == "b"
    assert store.get_by_key("ann", "k").id == "b"
    assert store.get("a") is not None


def test_a_caller_may_queue_as_many_as_its_limit_and_not_one_more(store: Any) -> None:
    for index in range(2):
        store.submit(new_job(f"a{index}"), now=1.0, queue_limit=LIMIT, owner_limit=2)
    with pytest.raises(TooManyQueued) as refused:
        store.submit(new_job("a2", price_micro_usd=5), now=1.0, queue_limit=LIMIT, owner_limit=2)
    assert (refused.value.http_status, refused.value.code) == (429, "too_many_queued")
    assert refused.value.retry_after_s
    assert store.spent_micro_usd("ann") == 0
    store.submit(new_job("b", owner="ben"), now=1.0, queue_limit=LIMIT, owner_limit=2)
    store.claim()
    store.submit(new_job("a2"), now=1.0, queue_limit=LIMIT, owner_limit=2)


# Deadlines, claims taken back, and what the operator sees.


def test_what_waited_too_long_fails_and_is_refunded(store: Any) -> None:
    for job_id, now in (("went-back", 1.0), ("old", 2.0), ("older", 1.0), ("young", 3.0)):
        submit(store, job_id, now=now, price_micro_usd=5)
    store.claim()
    store.requeue("went-back", 1, worker_died=True)
    failed = store.fail_queued(submitted_before=2.0, now=10.0, error_code="queue_timeout", error_text="late")
    assert {job.id for job in failed} == {"old", "older"}
    old = store.get("old")
    assert (old.state, old.error_code, old.error_text) == (State.FAILED, "queue_timeout", "late")
    assert (old.queue_s, old.compute_s, old.total_s, old.finished_at) == (8.0, 0.0, 8.0, 10.0)
    assert store.spent_micro_usd("ann") == 10
    assert claim_all(store) == ["went-back", "young"]


def test_a_claim_taken_back_leaves_no_trace(store: Any) -> None:
    waiting = submit(store, "a")
    store.claim()
    assert store.unclaim("a", 2) is False
    assert store.unclaim("a", 1) is True
    assert store.get("a") == waiting
    assert store.unclaim("a", 1) is False
    assert store.claim().attempt == 1


def test_counts_and_the_latest_jobs(store: Any) -> None:
    assert store.counts() == {}
    assert store.latest(state=None, limit=5) == []
    for job_id, lane in (("a", Lane.BATCH), ("b", Lane.INTERACTIVE), ("c", Lane.BATCH), ("d", Lane.BATCH)):
        submit(store, job_id, lane=lane)
    store.claim()
    assert store.counts() == {(State.QUEUED, Lane.BATCH): 3, (State.RUNNING, Lane.INTERACTIVE): 1}
    assert [job.id for job in store.latest(state=None, limit=3)] == ["d", "c", "b"]
    assert [job.id for job in store.latest(state=State.RUNNING, limit=3)] == ["b"]


# Reading back.


def picture(index: int, **changes: Any) -> OutputFile:
    values: dict[str, Any] = {"file": f"f{index}.png", "format": "png", "width": 64, "height": 48}
    return OutputFile(index=index, seed=7 + index, size_bytes=1234, sha256="ab" * 32, **{**values, **changes})


FULL_REQUEST = GenerationRequest(
    model="flux-depth-dev",
    prompt="eine Katze 🐈 \u2028 'quoted' \"twice\" \\ \n\x00 end",
    width=1360,
    height=768,
    steps=17,
    guidance=3.3000000000000003,
    seed=2**32 - 1,
    num_outputs=2,
    control_image="c0ffee.webp",
    preprocess=False,
    return_depth=True,
    output_format="webp",
    output_quality=91,
)
FULL_RESULT = GenerationResult(
    images=(picture(0), picture(1, format="webp")),
    depth_map=picture(0, file="depth.png"),
    timings_s={"text": 0.25, "denoise": 1.5},
    notes={"unseen_tokens": 3, "list": [1, 2]},
)


def test_every_field_of_a_job_is_read_back_as_it_was_written(store: Any) -> None:
    dialect = {"slug": "flux-depth-dev", "nested": {"a": [1, None, True, "ü"]}}
    submit(
        store,
        "full",
        now=1700000000.123456,
        owner="zoë",
        lane=Lane.INTERACTIVE,
        attached=True,
        request=FULL_REQUEST,
        dialect=dialect,
        price_micro_usd=39_200,
    )
    store.claim()
    store.requeue("full", 1, worker_died=True)
    store.claim()
    how = Ending(
        state=State.SUCCEEDED,
        queue_s=1.125,
        compute_s=2.25,
        total_s=4.5,
        result=FULL_RESULT,
        error_code="code",
        error_text="text ü",
    )
    written = store.finish("full", 2, how, now=1700000009.987654)
    read = store.get("full")
    assert read == written
    assert read == Job(
        id="full",
        seq=read.seq,
        owner="zoë",
        lane=Lane.INTERACTIVE,
        attached=True,
        state=State.SUCCEEDED,
        attempt=2,
        deaths=1,
        request=FULL_REQUEST,
        dialect=dialect,
        price_micro_usd=39_200,
        submitted_at=1700000000.123456,
        queue_s=1.125,
        compute_s=2.25,
        total_s=4.5,
        finished_at=1700000009.987654,
        result=FULL_RESULT,
        error_code="code",
        error_text="text ü",
    )
    kinds = {field.name: type(getattr(read, field.name)) for field in dataclasses.fields(read)}
    assert (kinds["lane"], kinds["state"], kinds["attached"]) == (Lane, State, bool)
    assert isinstance(read.result.images, tuple)


def test_a_plain_job_has_none_where_nothing_is_known(store: Any) -> None:
    job = submit(store, "a")
    unknown = (job.queue_s, job.compute_s, job.total_s, job.finished_at, job.result, job.error_code, job.error_text)
    assert unknown == (None,) * 7
    assert (job.attached, job.dialect, job.price_micro_usd) == (False, {}, 0)


def test_control_images_are_in_use_while_their_jobs_are_unfinished(store: Any) -> None:
    for job_id, name in (("done", "1.png"), ("runs", "2.png"), ("waits", "3.png"), ("plain", None), ("twin", "3.png")):
        submit(store, job_id, request=request_of(control_image=name))
    for _ in range(2):
        store.claim()
    assert store.inputs_in_use() == {"1.png", "2.png", "3.png"}
    store.finish("done", 1, ending(), now=5.0)
    store.cancel_queued("twin", now=5.0)
    assert store.inputs_in_use() == {"2.png", "3.png"}
    store.cancel_queued("waits", now=5.0)
    assert store.inputs_in_use() == {"2.png"}


def test_a_second_connection_sees_every_commit_at_once(open_store: Callable[[], Any]) -> None:
    writer, other = open_store(), open_store()
    for step in range(3):
        submit(writer, f"job{step}", price_micro_usd=5)
        assert other.get(f"job{step}").state is State.QUEUED
        assert other.count_queued() == 1
        writer.claim()
        assert other.get(f"job{step}").state is State.RUNNING
        writer.finish(f"job{step}", 1, ending(State.FAILED), now=9.0)
        assert other.get(f"job{step}").state is State.FAILED
        assert other.spent_micro_usd("ann") == 0


def test_jobs_survive_closing_and_opening(open_store: Callable[[], Any]) -> None:
    before = open_store()
    submit(before, "done", price_micro_usd=9, request=FULL_REQUEST)
    before.claim()
    done = before.finish("done", 1, ending(result=FULL_RESULT), now=5.0)
    waiting = submit(before, "waits", price_micro_usd=1)
    before.close()
    after = open_store()
    assert after.get("done") == done
    assert after.get("waits") == waiting
    assert after.spent_micro_usd("ann") == 10
    assert after.claim().id == "waits"


# SQLite alone.


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "jobs.sqlite3")
    yield opened
    opened.close()


def pragma(store: SqliteStore, name: str) -> Any:
    return store._connection.execute(f"PRAGMA {name}").fetchone()[0]


def test_commits_are_synced_to_a_write_ahead_log(sqlite: SqliteStore) -> None:
    assert pragma(sqlite, "journal_mode") == "wal"
    assert pragma(sqlite, "synchronous") == 2
    assert pragma(sqlite, "busy_timeout") >= 5000
    assert pragma(sqlite, "query_only") == 0


def test_only_what_a_power_cut_may_take_is_not_synced_by_itself(sqlite: SqliteStore) -> None:
    said: list[str] = []
    sqlite._connection.set_trace_callback(said.append)

    def synced(call: Callable[[], object]) -> bool:
        said.clear()
        assert call()
        (commit,) = (number for number, text in enumerate(said) if text == "COMMIT")
        modes = [text.rsplit(" ", 1)[1] for text in said[:commit] if text.startswith("PRAGMA synchronous")]
        return modes in ([], ["FULL"])

    assert synced(lambda: submit(sqlite, "on disk"))
    assert not synced(lambda: submit(sqlite, "waited for", attached=True))
    assert synced(lambda: submit(sqlite, "next"))
    assert not synced(sqlite.claim)
    assert not synced(lambda: sqlite.unclaim("on disk", 1))
    assert not synced(sqlite.claim)
    assert synced(lambda: sqlite.requeue("on disk", 1, worker_died=True))
    assert not synced(sqlite.claim)
    assert synced(lambda: sqlite.finish("on disk", 2, ending(result=FULL_RESULT), now=5.0))
    assert pragma(sqlite, "synchronous") == 2


def test_a_reading_store_cannot_write_and_never_checkpoints(sqlite: SqliteStore, tmp_path: Path) -> None:
    reader = SqliteStore(tmp_path / "jobs.sqlite3", read_only=True)
    try:
        assert pragma(reader, "journal_mode") == "wal"
        assert pragma(reader, "wal_autocheckpoint") == 0
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            submit(reader, "a")
        submit(sqlite, "b")
        assert reader.get("a") is None
        assert reader.get("b") is not None
    finally:
        reader.close()


class Anything(dict[str, None]):
    """A value for every named parameter of a statement that is only explained."""

    def __missing__(self, name: str) -> None:
        return None


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        ("CLAIM", "jobs_by_turn"),
        ("PEEK", "jobs_by_turn"),
        ("COUNT_QUEUED", "jobs_by_turn"),
        ("INPUTS_IN_USE", "jobs_by_turn"),
        ("RECOVER_ATTACHED", "jobs_by_turn"),
        ("RECOVER_RUNNING", "jobs_by_turn"),
        ("DELETE_EXPIRED", "jobs_by_end"),
        ("GET", "sqlite_autoindex_jobs_1"),
        ("FINISH", "sqlite_autoindex_jobs_1"),
        ("REQUEUE", "sqlite_autoindex_jobs_1"),
        ("UNCLAIM", "sqlite_autoindex_jobs_1"),
        ("FAIL_QUEUED", "jobs_by_turn"),
        ("AHEAD", "jobs_by_turn"),
        ("GET_BY_KEY", "jobs_by_idempotency_key"),
        ("COUNT_QUEUED_OF", "jobs_waiting_by_owner"),
        ("CANCEL_QUEUED", "sqlite_autoindex_jobs_1"),
        ("SPENT", "sqlite_autoindex_spending_1"),
    ],
)
def test_no_statement_looks_at_every_row(sqlite: SqliteStore, statement: str, index: str) -> None:
    sql: str = getattr(queries, statement)
    values: Any = (None,) * sql.count("?") or Anything()
    plan = [row["detail"] for row in sqlite._connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    assert any(f"USING INDEX {index} " in line or f"USING COVERING INDEX {index} " in line for line in plan), plan
    assert not any(line.startswith("SCAN") for line in plan), plan
    if statement in ("CLAIM", "PEEK", "AHEAD"):
        assert not any("TEMP B-TREE" in line for line in plan), plan


def test_a_job_is_accepted_whole_or_not_at_all(sqlite: SqliteStore) -> None:
    submit(sqlite, "a", price_micro_usd=10)
    with pytest.raises(sqlite3.IntegrityError):
        submit(sqlite, "a", price_micro_usd=10)
    assert sqlite.spent_micro_usd("ann") == 10
    assert submit(sqlite, "b").state is State.QUEUED


def fill(store: SqliteStore) -> None:
    """From here on the database's file cannot grow, as on a full disk."""
    store._connection.execute(f"PRAGMA max_page_count = {pragma(store, 'page_count')}")


LARGE = request_of(prompt="x" * 200_000)


def test_a_full_disk_refuses_a_job_by_name(sqlite: SqliteStore) -> None:
    fill(sqlite)
    with pytest.raises(InsufficientStorage):
        submit(sqlite, "large", request=LARGE)


def test_a_full_disk_spoils_nothing(sqlite: SqliteStore) -> None:
    submit(sqlite, "before", price_micro_usd=10)
    fill(sqlite)
    with pytest.raises((InsufficientStorage, sqlite3.Error)):
        submit(sqlite, "large", price_micro_usd=10, request=LARGE)
    assert sqlite.get("large") is None
    assert sqlite.spent_micro_usd("ann") == 10
    sqlite._connection.execute("PRAGMA max_page_count = 1000000")
    submit(sqlite, "after", price_micro_usd=10)
    assert claim_all(sqlite) == ["before", "after"]


# A process that ends at the very moment at which it would commit: argv is the file, and what to do.
DYING = """
import os, sys
from pathlib import Path
from pipelines.request import GenerationRequest
from server.jobs.model import Ending, Lane, NewJob, State
from server.jobs.sqlite_store import SqliteStore

request = GenerationRequest(model="m", prompt="p", width=16, height=16, steps=1, guidance=1.0, seed=0)
new = NewJob(id="new", owner="ann", lane=Lane.BATCH, attached=False, request=request, price_micro_usd=5)
end = Ending(state=State.FAILED, queue_s=0.0, compute_s=0.0, total_s=0.0)
store = SqliteStore(Path(sys.argv[1]))
if sys.argv[3] == "before the commit":
    store._connection.set_trace_callback(lambda sql: os._exit(9) if sql.startswith("COMMIT") else None)
{
    "submit": lambda: store.submit(new, now=1.0, queue_limit=99),
    "claim": lambda: store.claim(),
    "finish": lambda: store.finish("runs", 1, end, now=9.0),
    "recover": lambda: store.recover(now=9.0),
}[sys.argv[2]]()
os._exit(9)
"""


def everything(path: Path) -> list[tuple[Any, ...]]:
    store = SqliteStore(path)
    try:
        assert pragma(store, "integrity_check") == "ok"
        rows = store._connection.execute("SELECT * FROM jobs ORDER BY seq").fetchall()
        return [tuple(row) for row in rows] + [
            tuple(row) for row in store._connection.execute("SELECT * FROM spending")
        ]
    finally:
        store.close()


@pytest.mark.parametrize("action", ["submit", "claim", "finish", "recover"])
@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
def test_a_process_killed_in_a_change_leaves_the_old_state_or_the_new(tmp_path: Path, action: str, moment: str) -> None:
    path = tmp_path / "jobs.sqlite3"
    store = SqliteStore(path)
    submit(store, "runs", attached=True, price_micro_usd=3)
    store.claim()
    submit(store, "waits", price_micro_usd=3)
    store.close()
    before = everything(path)
    dead = subprocess.run([sys.executable, "-P", "-c", DYING, str(path), action, moment], check=False, timeout=60)
    assert dead.returncode == 9
    assert (everything(path) == before) == (moment == "before the commit")


def test_claim_prefers_a_model_within_the_lane(store: Any) -> None:
    wanted = [("flux-dev", Lane.BATCH), ("flux-depth-dev", Lane.BATCH), ("flux-dev", Lane.INTERACTIVE)]
    for number, (model, lane) in enumerate(wanted):
        new = new_job(f"job-{number}", lane=lane)
        asked = dataclasses.replace(new.request, model=model)
        store.submit(dataclasses.replace(new, request=asked), now=1.0, queue_limit=10)
    claimed = [store.claim("flux-depth-dev") for _ in range(4)]
    assert [job and job.id for job in claimed] == ["job-2", "job-1", "job-0", None]
