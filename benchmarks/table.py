"""The README's table of results, made from the kept reports and from nothing else.

python -m benchmarks.table          # prints it; a test compares the README with it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.report import REPORT, RESULTS, AnyReport

HEAD = "| what | result | machine | date, commit |\n|---|---|---|---|"
MISSING = "not yet measured"

CARD_ROWS = (
    "one picture, each model, 1024×1024, 28 steps, on a card",
    "pictures a second, full queue, on a card",
    "start to first picture, on a card",
)
"""What is said to be missing until a report from a card is kept."""


def markdown() -> str:
    reports = [REPORT.validate_json(path.read_bytes()) for path in sorted(RESULTS.glob("*.json"))]
    lines = [HEAD, *(line for report in reports for line in _lines(report))]
    if not any(report.device.startswith("cuda") for report in reports):
        lines += [f"| {what} | {MISSING} | – | – |" for what in CARD_ROWS]
    if not any(report.device == "cpu" for report in reports):
        lines.append(f"| the server's own cost, on the CPU with demo weights | {MISSING} on a quiet machine | – | – |")
    return "\n".join(lines)


def _lines(report: AnyReport) -> Iterator[str]:
    hardware = report.environment.hardware
    card = hardware.cards[0].name if hardware.cards and report.device.startswith("cuda") else None
    machine = card or f"{hardware.cores} cores of {hardware.processor}"
    when = f"{report.date:%Y-%m-%d}, {(report.environment.code.commit or 'no commit')[:7]}"
    when += " with changes" if report.environment.code.dirty else ""
    for row in report.rows:
        if said := SAYINGS[report.benchmark](row):
            yield f"| {said[0]} | {said[1]} | {machine}, {report.weights} weights | {when} |"


def _latency(row: Any) -> tuple[str, str] | None:
    if not row.offered:
        return None
    mode = "compiled" if row.compiled else "eager"
    beside = [f"stock diffusers {name} {value} s" for name, value in _stock(row) if value is not None]
    what = f"one picture: {row.model}, {row.tier}, {mode}, {row.width}×{row.height}, {row.steps} steps"
    return what, "; ".join([f"{row.warm_s} s", *beside])


def _stock(row: Any) -> tuple[tuple[str, float | None], ...]:
    return ("eager", row.stock_eager_s), ("compiled", row.stock_compiled_s)


def _overhead(row: Any) -> tuple[str, str]:
    result = f"median {row.median_ms} ms, p99 {row.p99_ms} ms, {row.requests_per_s}/s"
    return f"{row.side}, {row.clients} clients: {row.call}", result


def _polls(row: Any) -> tuple[str, str]:
    result = f"{row.polls_per_s}/s, p99 {row.poll_p99_ms} ms; the job takes {row.slowed:+.1%}"
    return "status polls beside a running job", result


def _throughput(row: Any) -> tuple[str, str]:
    result = f"{row.pictures_per_s} pictures/s, computing {row.computed_share:.1%} of the time"
    return f"full queue: {row.model}, {row.width}×{row.height}, {row.steps} steps", result


def _lever(row: Any) -> tuple[str, str]:
    result = f"{row.ratio} times the pictures/s ({row.off_pictures_per_s} off, {row.on_pictures_per_s} on)"
    return f"`{row.setting}`, full queue: {row.model}, {row.width}×{row.height}, {row.steps} steps", result


def _cold_start(row: Any) -> tuple[str, str]:
    return f"start {row.start}: ready, first picture", f"{row.ready_s} s, {row.first_picture_s} s"


def _load(row: Any) -> tuple[str, str] | None:
    """The bounds and the whole; the phases between them are in the report."""
    if row.phase == "until ready":
        return "loading: from process start to ready", f"{row.median_s} s"
    if row.phase.startswith(("plain read", "pinned host")):
        return f"loading: {row.phase}", f"{row.bytes_per_s / 1e9:.2f} GB/s"
    return None


def _quality(row: Any) -> tuple[str, str] | None:
    if not row.offered:
        return None
    return (
        f"likeness: {row.model}, {row.tier}",
        f"SSIM median {row.ssim_median}, {row.identical} of {row.pictures} equal",
    )


SAYINGS: dict[str, Callable[[Any], tuple[str, str] | None]] = {
    "latency": _latency,
    "overhead": _overhead,
    "polls": _polls,
    "throughput": _throughput,
    "levers": _lever,
    "cold_start": _cold_start,
    "load": _load,
    "quality": _quality,
}


if __name__ == "__main__":
    print(markdown())
