"""What the server's log says, in its JSON form (FLUX_LOG_FORMAT=json): when things happened, on the machine's clock."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class WorkSpan:
    """One job in the worker: handed to it at started_s (seconds since the epoch), computed for computed_s."""

    job: str
    started_s: float
    computed_s: float

    @property
    def ended_s(self) -> float:
        return self.started_s + self.computed_s


def events(log: Path) -> Iterator[dict[str, Any]]:
    """The log's events in order; lines of other programs that share the file are passed over."""
    for line in log.read_text("utf-8", "replace").splitlines():
        with suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and "event" in event:
                yield event


def when_s(event: Mapping[str, Any]) -> float:
    """Seconds since the epoch at which the event was logged."""
    return datetime.fromisoformat(event["timestamp"]).timestamp()


def work_spans(log: Path, computed_s: Mapping[str, float]) -> list[WorkSpan]:
    """The spans of these jobs in the order of their start. computed_s: the worker's own figure, by job.

    Raises LookupError for a job that the log does not know.
    """
    started = {event["job"]: when_s(event) for event in events(log) if event["event"] == "job started"}
    return sorted((WorkSpan(job, started[job], computed_s[job]) for job in computed_s), key=lambda span: span.started_s)


def worker_pid(log: Path) -> int:
    """Process id of the worker that became ready last. Raises LookupError while there was none."""
    ready = [event["pid"] for event in events(log) if event["event"] == "worker ready"]
    if not ready:
        raise LookupError("no worker has been ready yet")
    return int(ready[-1])


def spare_waits(log: Path) -> bool:
    """Whether the spare worker of the present one has imported its libraries and waits."""
    said = [event["event"] for event in events(log) if event["event"] in ("worker ready", "spare worker waits")]
    return said[-1:] == ["spare worker waits"]
