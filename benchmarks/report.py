"""One report per run: the figures, and everything around them that a reader has to know. One JSON file each.

    python -m benchmarks.report > benchmarks/schema.json     # the schema of all reports, checked in

Reports that are kept lie in results/ as <benchmark>-<date>-<machine>.json; a second run of a day replaces the first.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from benchmarks.environment import Environment, Part, environment, load_average
from benchmarks.places import Weights
from benchmarks.rows import (
    ColdStartRow,
    LatencyRow,
    LeverRow,
    LoadRow,
    OverheadRow,
    PollsRow,
    QualityRow,
    ThroughputRow,
)

RESULTS = Path(__file__).parent / "results"


class Report(Part):
    """What all reports share.

    command: the arguments it was run with. device: where the pictures were computed. quick: few repetitions, to see
    that the benchmark runs; such figures say little and are not kept. load_average_before, _after: see `load_average`;
    a value before the run well above 0 says that other programs shared the machine.
    """

    benchmark: str
    date: datetime
    command: tuple[str, ...]
    weights: Weights
    device: str
    quick: bool
    load_average_before: float | None
    load_average_after: float | None
    environment: Environment


class OverheadReport(Report):
    benchmark: Literal["overhead"] = "overhead"
    rows: tuple[OverheadRow, ...] = Field(min_length=1)


class PollsReport(Report):
    benchmark: Literal["polls"] = "polls"
    rows: tuple[PollsRow, ...] = Field(min_length=1)


class LatencyReport(Report):
    benchmark: Literal["latency"] = "latency"
    rows: tuple[LatencyRow, ...] = Field(min_length=1)


class ThroughputReport(Report):
    benchmark: Literal["throughput"] = "throughput"
    rows: tuple[ThroughputRow, ...] = Field(min_length=1)


class LeversReport(Report):
    benchmark: Literal["levers"] = "levers"
    rows: tuple[LeverRow, ...] = Field(min_length=1)


class ColdStartReport(Report):
    benchmark: Literal["cold_start"] = "cold_start"
    rows: tuple[ColdStartRow, ...] = Field(min_length=1)


class LoadReport(Report):
    benchmark: Literal["load"] = "load"
    rows: tuple[LoadRow, ...] = Field(min_length=1)


class QualityReport(Report):
    benchmark: Literal["quality"] = "quality"
    rows: tuple[QualityRow, ...] = Field(min_length=1)


AnyReport = Annotated[
    OverheadReport
    | PollsReport
    | LatencyReport
    | ThroughputReport
    | LeversReport
    | ColdStartReport
    | LoadReport
    | QualityReport,
    Field(discriminator="benchmark"),
]

REPORT: TypeAdapter[AnyReport] = TypeAdapter(AnyReport)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="few repetitions, only to see that it runs")
    options.add_argument("--save", action="store_true", help="keep the report in benchmarks/results")
    options.add_argument("--output", type=Path, help="write the report to this file")
    return options


class Run:
    """One run of a benchmark, from its arguments to its report. Create it before anything is measured."""

    def __init__(self, given: argparse.Namespace) -> None:
        if given.quick and given.save:
            raise SystemExit("the figures of a quick run are not kept: leave out --quick, or write them by --output")
        self._given = given
        self._load_before = load_average()
        self._environment = environment()  # now, since the working tree may change while it runs

    def finish(self, kind: type[Any], rows: Sequence[Part], *, weights: Weights, device: str) -> None:
        """Prints the rows, and writes the report where the arguments say. Raises ValidationError for a wrong report."""
        report = kind(
            date=datetime.now(UTC).replace(microsecond=0),
            command=tuple(sys.argv[1:]),
            weights=weights,
            device=device,
            quick=self._given.quick,
            load_average_before=self._load_before,
            load_average_after=load_average(),
            environment=self._environment,
            rows=tuple(rows),
        )
        print_rows(rows)
        if self._given.output:
            write(report, self._given.output)
        if self._given.save:
            write(report, RESULTS / file_name(report))


def write(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.model_dump_json(indent=2) + "\n", "utf-8")


def file_name(report: Report) -> str:
    """<benchmark>-<date>-<card or cpu>.json."""
    cards = report.environment.hardware.cards if report.device.startswith("cuda") else ()
    machine = re.sub(r"[^a-z0-9]+", "-", cards[0].name.lower()).strip("-") if cards else "cpu"
    return f"{report.benchmark}-{report.date:%Y-%m-%d}-{machine}.json"


def print_rows(rows: Sequence[Part]) -> None:
    for row in rows:
        print()
        for name, value in row.model_dump(mode="json").items():
            if value not in (None, {}):
                print(f"  {name:34} {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {part}" for name, part in value.items())
    return str(value)


if __name__ == "__main__":
    print(json.dumps(REPORT.json_schema(), indent=2))
