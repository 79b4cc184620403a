"""What a server adds to the engine: ours, LitServe and plain FastAPI around the same engine, and the engine alone.

    python -m benchmarks.overhead [--starts 3] [--rounds 2] [--clients 1,4,16] [--sides server,litserve,fastapi]

All sides get the same body and must answer the same bytes, or the run fails. They take turns, round by round, and those
that wait for their turn are stopped, so that a slow spell of the machine hits all and none takes time from another. The
first call of a turn is not counted. All are started several times, since the very same process computes up to a fifth
faster or slower from one start to the next. Demo weights on the CPU; the peers need the `bench` extra.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks import report
from benchmarks.bare import BareEngine
from benchmarks.calls import Call, depth_call, dev_call
from benchmarks.client import Client, Reply, together
from benchmarks.figures import milliseconds, percentile
from benchmarks.places import HELP, kind_of, weights_folder
from benchmarks.processes import Running, our_server, peer
from benchmarks.rows import OverheadRow, Side

LITSERVE_PATH = "/v1/draw"

CALLS_PER_TURN = {1: 5, 4: 3, 16: 2}
"""By the number of clients; each client makes so many."""


@dataclass
class Measured:
    replies: list[Reply] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


AllMeasured = dict[tuple[str, int, Side], Measured]
"""By the call's name, the number of clients, and the side."""


class ServerSide:
    """A side that is a server process; stopped but for its turns."""

    def __init__(self, name: Side, running: Running, path: str | None) -> None:
        """path: that it takes all calls at; None for one path per model, as ours has them."""
        self.name, self._running, self._path = name, running, path
        running.pause()

    @contextmanager
    def turn(self) -> Iterator[None]:
        self._running.resume()
        try:
            yield
        finally:
            self._running.pause()

    def draw(self, call: Call, times: int) -> list[Reply]:
        with Client(self._running.port) as client:
            return [client.post(self._path or f"/v1/{call.slug}", call.json) for _ in range(times)]


class BareSide:
    """The engine in this process, for one client."""

    name: Side = "bare engine"

    def __init__(self, weights: Path) -> None:
        self._engine = BareEngine(weights)

    @contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def draw(self, call: Call, times: int) -> list[Reply]:
        return [self._draw(call) for _ in range(times)]

    def _draw(self, call: Call) -> Reply:
        start = time.perf_counter()
        data = self._engine.draw(call)
        return Reply(data, time.perf_counter() - start, None)


def main() -> None:
    options = report.arguments(__doc__)
    options.add_argument("--weights", default="demo", help=HELP)
    options.add_argument("--starts", type=int, default=3, help="how often all sides are started anew")
    options.add_argument("--rounds", type=int, default=2, help="turns that each side has in each start")
    options.add_argument("--clients", type=_numbers, default=(1, 4, 16))
    options.add_argument("--sides", type=lambda text: tuple(text.split(",")), default=("server", "litserve", "fastapi"))
    given = options.parse_args()
    given.sides = installed(given.sides)
    if given.quick:
        given.starts, given.rounds, given.clients = 1, 1, (1, 4)
    run = report.Run(given)
    measured: AllMeasured = {}
    with tempfile.TemporaryDirectory() as scratch:
        weights = weights_folder(given.weights, Path(scratch))
        for start in range(given.starts):
            folder = Path(scratch) / str(start)
            folder.mkdir()
            with ExitStack() as stack:
                measure_all(start_sides(stack, weights, folder, given.sides), given, measured)
    rows = [row for call, clients in tasks(given) for row in rows_of(call, clients, measured)]
    run.finish(report.OverheadReport, rows, weights=kind_of(given.weights), device="cpu")


def installed(sides: tuple[str, ...]) -> tuple[str, ...]:
    """The sides that can run here; says which cannot."""
    if "litserve" in sides and find_spec("litserve") is None:
        print("litserve is not installed (pip install -e '.[bench]'), so its rows are missing")
        return tuple(side for side in sides if side != "litserve")
    return sides


def start_sides(stack: ExitStack, weights: Path, folder: Path, names: tuple[Side, ...]) -> list[ServerSide | BareSide]:
    """The sides in the order in which they take turns, the bare engine first."""
    sides: list[ServerSide | BareSide] = [BareSide(weights)]
    for name in names:
        if name == "server":
            running = stack.enter_context(our_server(weights, folder / "data"))
            sides.append(ServerSide(name, running, None))
        else:
            running = stack.enter_context(peer(name, weights))
            sides.append(ServerSide(name, running, LITSERVE_PATH if name == "litserve" else None))
    return sides


def tasks(given: argparse.Namespace) -> list[tuple[Call, int]]:
    """The depth call, which is short, with every number of clients; the dev call, six times as long, with one."""
    short = [(depth_call(), clients) for clients in given.clients]
    return short if given.quick else [*short, (dev_call(), 1)]


def measure_all(sides: list[ServerSide | BareSide], given: argparse.Namespace, into: AllMeasured) -> None:
    for call, clients in tasks(given):
        taking_part = [side for side in sides if clients == 1 or isinstance(side, ServerSide)]
        found = {side.name: into.setdefault((call.name, clients, side.name), Measured()) for side in taking_part}
        times = CALLS_PER_TURN.get(clients, 2)
        for _ in range(given.rounds):
            answers = {side.name: take_turn(side, call, clients, times, found[side.name]) for side in taking_part}
            if len(set(answers.values())) > 1:
                raise SystemExit(f"the sides gave different pictures for {call.name}: {answers}")


def rows_of(call: Call, clients: int, measured: AllMeasured) -> list[OverheadRow]:
    bare = measured.get((call.name, 1, "bare engine"))
    task = (call.name, clients)
    return [row(call, key[2], clients, one, bare) for key, one in measured.items() if key[:2] == task]


def take_turn(side: ServerSide | BareSide, call: Call, clients: int, times: int, measured: Measured) -> str:
    """One turn; its figures go into `measured`. Returns the hash of the picture, which is the same in all replies."""
    with side.turn():
        first = side.draw(call, 1)
        replies, wall_s = together(clients, lambda: side.draw(call, times))
    measured.replies += replies
    measured.rates.append(len(replies) / wall_s)
    hashes = {hashlib.sha256(reply.body).hexdigest() for reply in [*first, *replies]}
    if len(hashes) > 1:
        raise SystemExit(f"{side.name} gave different pictures for the same call {call.name}")
    return hashes.pop()


def row(call: Call, name: Side, clients: int, measured: Measured, bare: Measured | None) -> OverheadRow:
    waits = [reply.wait_s for reply in measured.replies]
    computed = [reply.compute_s for reply in measured.replies if reply.compute_s is not None]
    outside = [reply.wait_s - reply.compute_s for reply in measured.replies if reply.compute_s is not None]
    alone = clients == 1 and bare is not None and name != "bare engine"
    bare_s = statistics.median(reply.wait_s for reply in bare.replies) if bare else 0.0
    return OverheadRow(
        call=call.name,
        side=name,
        clients=clients,
        requests=len(waits),
        median_ms=milliseconds(statistics.median(waits)),
        p99_ms=milliseconds(percentile(waits, 99)),
        requests_per_s=round(statistics.median(measured.rates), 3),
        above_bare_ms=milliseconds(statistics.median(waits) - bare_s) if alone else None,
        compute_ms=milliseconds(statistics.median(computed)) if computed else None,
        outside_the_worker_ms=milliseconds(statistics.median(outside)) if outside and clients == 1 else None,
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
