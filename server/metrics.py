"""What the server counts and measures, in Prometheus' form.

Labels are words of the program: route templates, states, error codes, stages. Never a prompt, a key, an id or a URL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from .jobs.model import Job, Lane, State
from .worker.protocol import Done
from .worker.supervisor import WorkerState

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"
"""The route of a request that no route took, or that was refused at the door."""

REQUEST_S = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
STAGE_S = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """How things stand at one scrape. Sizes in bytes; restarts by reason, counted since the server's start."""

    jobs: Mapping[tuple[State, Lane], int]
    worker: WorkerState
    ready: bool
    alarm: bool
    restarts: Mapping[str, int]
    disk_bytes: Mapping[str, int]
    free_bytes: int


class Metrics:
    """One server's figures, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._restarts = _Restarts()
        self._registry.register(self._restarts)
        self._define_requests()
        self._define_jobs()
        self._define_worker()

    def _define_requests(self) -> None:
        labels = ("route", "method", "status")
        self._requests = self._counter("flux_http_requests", "HTTP requests answered.", *labels)
        self._request_s = self._histogram("flux_http_request_seconds", "Time to answer.", REQUEST_S, "route", "method")
        self._rejected = self._counter("flux_rejected", "Requests refused, by error code.", "code")

    def _define_jobs(self) -> None:
        self._queued = self._gauge("flux_queue_jobs", "Jobs that wait, by lane.", "lane")
        self._jobs = self._gauge("flux_jobs", "Jobs that are kept, by state.", "state")
        self._ended = self._counter("flux_jobs_ended", "Jobs that became final.", "state", "error")
        self._together = self._counter("flux_jobs_drawn_together", "Succeeded jobs that were drawn in a batch.")
        self._stage_s = self._histogram(
            "flux_job_stage_seconds", "Stages of succeeded jobs.", STAGE_S, "stage", "model"
        )
        self._disk = self._gauge("flux_disk_bytes", "Bytes on disk.", "kind")
        self._free = self._gauge("flux_disk_free_bytes", "Bytes free in the data folder's file system.")

    def _define_worker(self) -> None:
        self._ready = self._gauge("flux_ready", "1 while the server can draw and takes work.")
        self._alarm = self._gauge(
            "flux_worker_alarm", "1 while the worker keeps failing, so that somebody has to look."
        )
        self._worker = self._gauge("flux_worker_state", "1 for the worker's state.", "state")
        self._gpu = self._gauge("flux_gpu_memory_bytes", "GPU memory as the worker last reported it.", "kind")
        self._recompiles = self._gauge("flux_recompiles", "Compilations since the worker became ready.")
        self._cache = self._counter("flux_cache_requests", "Look-ups in the worker's caches.", "cache", "outcome")

    def request_answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """route: the template, or UNMATCHED."""
        method = method if method in METHODS else "other"
        self._requests.labels(route, method, str(status)).inc()
        self._request_s.labels(route, method).observe(seconds)

    def rejected(self, code: str) -> None:
        """code: of a ServerError, or of what the wire refuses."""
        self._rejected.labels(code).inc()

    def job_ended(self, job: Job) -> None:
        self._ended.labels(job.state.value, job.error_code or "").inc()
        if job.state is not State.SUCCEEDED or job.result is None:
            return
        self._together.inc(job.result.notes.get("together", 1) > 1)
        whole = {"queue": job.queue_s, "compute": job.compute_s, "total": job.total_s}
        for stage, seconds in {**job.result.timings_s, **whole}.items():
            if seconds is not None:
                self._stage_s.labels(stage, job.request.model).observe(seconds)

    def worker_reported(self, done: Done) -> None:
        """What the worker says of itself with each picture."""
        self._recompiles.set(done.recompiles)
        for kind, size_bytes in done.memory_bytes.items():
            self._gpu.labels(kind).set(size_bytes)
        for outcome, counts in (("hit", done.hits), ("miss", done.misses)):
            for cache, count in counts.items():
                self._cache.labels(cache, outcome).inc(count)

    def render(self, moment: Moment) -> bytes:
        """Prometheus' text form."""
        for lane in Lane:
            self._queued.labels(lane.name.lower()).set(moment.jobs.get((State.QUEUED, lane), 0))
        for state in State:
            self._jobs.labels(state.value).set(sum(moment.jobs.get((state, lane), 0) for lane in Lane))
        for worker in WorkerState:
            self._worker.labels(worker.value).set(worker is moment.worker)
        for kind, size in moment.disk_bytes.items():
            self._disk.labels(kind).set(size)
        self._free.set(moment.free_bytes)
        self._ready.set(moment.ready)
        self._alarm.set(moment.alarm)
        self._restarts.by_reason = moment.restarts
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)


class _Restarts(Collector):
    """The worker's restarts, which its supervisor counts."""

    def __init__(self) -> None:
        self.by_reason: Mapping[str, int] = {}

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily("flux_worker_restarts", "Workers that had to be replaced.", labels=["reason"])
        for reason, count in self.by_reason.items():
            family.add_metric([reason], count)
        yield family
