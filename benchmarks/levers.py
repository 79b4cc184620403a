"""What a lever of the server brings: pictures a second from a full queue with it off and on.

    python -m benchmarks.levers --weights demo|random [--levers batching,prepare_ahead] [--rounds 3] [--jobs 16]

Each round starts the server twice, with the lever's setting off and then on and all else by default, and keeps its
queue full. The rates are medians over the rounds. Every job has a prompt and a photo of its own, so no cache helps it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.calls import Megapixels, depth_call, variant
from benchmarks.places import HELP, kind_of, weights_folder
from benchmarks.processes import our_server
from benchmarks.rows import LeverRow, ThroughputRow
from benchmarks.throughput import measure


@dataclass(frozen=True, slots=True)
class Lever:
    """setting: its name in lower case without FLUX_. megapixels: of the depth pictures that are asked for. off, on: the
    setting's values that are compared.
    """

    setting: str
    megapixels: Megapixels
    off: str = "off"
    on: str = "on"


LEVERS = {
    "batching": Lever("batching", "0.25"),
    "prepare_ahead": Lever("prepare_ahead", "1"),
    "compile": Lever("compile", "1"),
    "attention": Lever("attention", "1", off="native", on="auto"),
}


def main() -> None:
    options = report.arguments(__doc__)
    options.add_argument("--weights", required=True, help=HELP)
    options.add_argument("--levers", type=_names, default=("batching", "prepare_ahead"), help=f"of {', '.join(LEVERS)}")
    options.add_argument("--jobs", type=int, default=16)
    options.add_argument("--steps", type=int, default=28)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    if given.quick:
        given.levers, given.jobs, given.steps, given.rounds = ("batching",), 4, 2, 1
    run = report.Run(given)
    with tempfile.TemporaryDirectory() as scratch:
        weights = weights_folder(given.weights, Path(scratch))
        rows, device = [], ""
        for name in given.levers:
            row, device = compare(LEVERS[name], weights, Path(scratch) / name, given)
            rows.append(row)
    run.finish(report.LeversReport, rows, weights=kind_of(given.weights), device=device)


def compare(lever: Lever, weights: Path, folder: Path, given: argparse.Namespace) -> tuple[LeverRow, str]:
    """The lever's row, and the device."""
    folder.mkdir()
    call = depth_call(given.steps, lever.megapixels)
    first, *others = (variant(call, number) for number in range(given.jobs + 1))
    measured: dict[str, list[ThroughputRow]] = {lever.off: [], lever.on: []}
    for number in range(given.rounds):
        for switch, rows in measured.items():
            setting: dict[str, Any] = {lever.setting: switch}
            with our_server(weights, folder / f"{switch}{number}", **setting) as running:
                device = running.get("/health/ready").json()["device"]
                rows.append(measure(running, first, others))
    return row_of(lever, measured, given.rounds), device


def row_of(lever: Lever, measured: dict[str, list[ThroughputRow]], rounds: int) -> LeverRow:
    off, on = (statistics.median(row.pictures_per_s for row in rows) for rows in measured.values())
    one = measured[lever.on][0]
    return LeverRow(
        setting=f"FLUX_{lever.setting.upper()}",
        model=one.model,
        width=one.width,
        height=one.height,
        steps=one.steps,
        jobs=one.jobs,
        rounds=rounds,
        off_pictures_per_s=round(off, 4),
        on_pictures_per_s=round(on, 4),
        ratio=round(on / off, 4),
        together_mean=one.together_mean,
    )


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(LEVERS):
        raise argparse.ArgumentTypeError(f"no such lever: {', '.join(unknown)}; there are {', '.join(LEVERS)}")
    return names


if __name__ == "__main__":
    main()
