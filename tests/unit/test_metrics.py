"""The figures: named and labelled as Prometheus wants them, and true."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from pipelines.request import GenerationRequest, GenerationResult
from server.jobs.model import Job, Lane, State
from server.metrics import Metrics, Moment
from server.worker.protocol import Done
from server.worker.supervisor import WorkerState

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

MOMENT = Moment(
    jobs={(State.QUEUED, Lane.BATCH): 3, (State.QUEUED, Lane.INTERACTIVE): 1, (State.SUCCEEDED, Lane.BATCH): 7},
    worker=WorkerState.BUSY,
    ready=True,
    alarm=True,
    restarts={"crash": 2, "stuck": 1},
    disk_bytes={"files": 10, "spool": 20, "database": 30},
    free_bytes=1000,
)


def samples_of(metrics: Metrics, moment: Moment = MOMENT) -> Samples:
    families = list(text_string_to_metric_families(metrics.render(moment).decode()))
    assert all(family.documentation and family.type != "unknown" for family in families)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def job(state: State = State.SUCCEEDED, **changes: Any) -> Job:
    request = GenerationRequest(model="flux-dev", prompt="secret", width=16, height=16, steps=1, guidance=1.0, seed=0)
    values: dict[str, Any] = {
        "id": "an-id", "seq": 1, "owner": "ann", "lane": Lane.BATCH, "attached": False, "attempt": 1, "deaths": 0,
        "request": request, "dialect": {}, "price_micro_usd": 1, "submitted_at": 1.0,
        "queue_s": 0.5, "compute_s": 2.0, "total_s": 2.6,
        "result": GenerationResult(images=(), timings_s={"denoise": 1.5, "text": 0.25}),
    }  # fmt: skip
    return Job(state=state, **{**values, **changes})


def test_the_moment_is_told(metrics: Metrics) -> None:
    samples = samples_of(metrics)
    assert value(samples, "flux_queue_jobs", lane="batch") == 3
    assert value(samples, "flux_queue_jobs", lane="interactive") == 1
    assert {state.value: value(samples, "flux_jobs", state=state.value) for state in State} == {
        "queued": 4, "running": 0, "succeeded": 7, "failed": 0, "cancelled": 0,
    }  # fmt: skip
    states = {state: value(samples, "flux_worker_state", state=state.value) for state in WorkerState}
    assert states.pop(WorkerState.BUSY) == 1
    assert set(states.values()) == {0}
    assert value(samples, "flux_worker_restarts_total", reason="crash") == 2
    assert value(samples, "flux_ready") == 1
    assert value(samples, "flux_worker_alarm") == 1
    assert [value(samples, "flux_disk_bytes", kind=kind) for kind in ("files", "spool", "database")] == [10, 20, 30]
    assert value(samples, "flux_disk_free_bytes") == 1000


def test_a_later_moment_leaves_nothing_of_an_earlier_one(metrics: Metrics) -> None:
    samples_of(metrics)
    empty = Moment(
        jobs={}, worker=WorkerState.DOWN, ready=False, alarm=False, restarts={}, disk_bytes={"files": 0}, free_bytes=0
    )
    samples = samples_of(metrics, empty)
    assert value(samples, "flux_queue_jobs", lane="batch") == 0
    assert value(samples, "flux_worker_state", state="busy") == 0
    assert value(samples, "flux_ready") == 0
    assert value(samples, "flux_worker_alarm") == 0


def test_a_succeeded_job_is_counted_with_its_stages(metrics: Metrics) -> None:
    for _ in range(2):
        metrics.job_ended(job())
    samples = samples_of(metrics)
    assert value(samples, "flux_jobs_ended_total", state="succeeded", error="") == 2
    sums = {
        stage: value(samples, "flux_job_stage_seconds_sum", stage=stage, model="flux-dev")
        for stage in ("text", "denoise", "queue", "compute", "total")
    }
    assert sums == pytest.approx({"text": 0.5, "denoise": 3.0, "queue": 1.0, "compute": 4.0, "total": 5.2})


def test_a_failed_job_is_counted_by_its_error_and_times_nothing(metrics: Metrics) -> None:
    metrics.job_ended(job(State.FAILED, result=None, error_code="out_of_memory", error_text="secret"))
    samples = samples_of(metrics)
    assert value(samples, "flux_jobs_ended_total", state="failed", error="out_of_memory") == 1
    assert not any(name.startswith("flux_job_stage_seconds") for name, _ in samples)


def test_requests_and_refusals_are_counted(metrics: Metrics) -> None:
    metrics.request_answered("/v2/flux-dev", "POST", 200, 0.03)
    metrics.request_answered("/v2/flux-dev", "BREW\n", 405, 0.03)
    metrics.rejected("invalid_input")
    samples = samples_of(metrics)
    assert value(samples, "flux_http_requests_total", route="/v2/flux-dev", method="POST", status="200") == 1
    assert value(samples, "flux_http_requests_total", route="/v2/flux-dev", method="other", status="405") == 1
    buckets = {bound: value(samples, "flux_http_request_seconds_bucket", route="/v2/flux-dev", method="POST", le=bound)
               for bound in ("0.02", "0.05", "+Inf")}  # fmt: skip
    assert buckets == {"0.02": 0, "0.05": 1, "+Inf": 1}
    assert value(samples, "flux_rejected_total", code="invalid_input") == 1


def test_what_the_worker_reports_is_told(metrics: Metrics) -> None:
    done = Done(job="a", attempt=1, result={}, compute_s=1.0, recompiles=3, memory_bytes={"allocated": 5_000_000_000})
    metrics.worker_reported(replace(done, hits={"text": 2}, misses={"text": 1}))
    metrics.worker_reported(replace(done, hits={"text": 1}, misses={"text": 0}))
    samples = samples_of(metrics)
    assert value(samples, "flux_gpu_memory_bytes", kind="allocated") == 5e9
    assert value(samples, "flux_recompiles") == 3
    assert value(samples, "flux_cache_requests_total", cache="text", outcome="hit") == 3
    assert value(samples, "flux_cache_requests_total", cache="text", outcome="miss") == 1


def test_no_text_of_a_caller_is_told(metrics: Metrics) -> None:
    metrics.job_ended(job())
    metrics.job_ended(job(State.FAILED, error_code="model_failed", error_text="secret"))
    told = metrics.render(MOMENT).decode()
    assert not [word for word in ("secret", "an-id", "ann") if word in told]


def test_two_servers_in_one_process_do_not_share_figures(metrics: Metrics) -> None:
    metrics.rejected("invalid_input")
    assert value(samples_of(Metrics()), "flux_rejected_total", code="invalid_input") is None
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("flux_")]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()
