"""Acknowledged means on disk: between a job's way into the write-ahead log and its answer lies a sync of that log.

Killing a process does not show this, since the kernel keeps what it was given. So strace watches the server's system
calls: the log's frame with the job's id, the sync, and the answer with the same id have to come in this order.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from proofs.clients import Caller, depth
from proofs.waiting import until

CALLS = "pwrite64,write,writev,sendto,sendmsg,fsync,fdatasync,sync_file_range"
CLIENTS = 4

_LINE = re.compile(r"(?P<thread>\d+) +(?:<\.\.\. (?P<resumed>\w+) resumed>|(?P<call>\w+)\()(?P<rest>.*)")
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_ID = re.compile(_UUID)
_ANSWERED = re.compile(rf'request_id\\":\s?\\"({_UUID})')
"""As strace spells it; the header x-request-id names the request, not the job."""


@contextmanager
def traced(pid: int, output: Path) -> Iterator[None]:
    """Notes what all threads of a process write and sync. Skips the test where that is not let."""
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed; on Debian: apt-get install strace")
    command = [program, "-f", "-y", "-s", "5000", "-o", str(output), "-e", f"trace={CALLS}", "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        if "attached" not in said:
            strace.wait()
            pytest.skip(f"strace may not look at another process here: {said.strip()}")
        rest = threading.Thread(target=strace.stderr.read)
        rest.start()
        yield
        strace.terminate()
        rest.join()


@dataclass
class Order:
    """What a trace says of each job: in which order its frame was written, the log was synced and it was answered."""

    written: set[str] = field(default_factory=set)
    synced: set[str] = field(default_factory=set)
    in_time: set[str] = field(default_factory=set)
    too_early: set[str] = field(default_factory=set)
    syncs: int = 0

    def take(self, call: str, arguments: str) -> None:
        """One call that has returned; of a write, only that it has begun matters."""
        if call == "pwrite64" and "jobs.sqlite3-wal>" in arguments:
            self.written |= set(_ID.findall(arguments))
        elif call in ("fsync", "fdatasync") and "jobs.sqlite3-wal>" in arguments:
            self.syncs += 1
            self.synced |= self.written
        elif call.startswith(("write", "send")):
            answered = set(_ANSWERED.findall(arguments)) - self.in_time - self.too_early
            self.in_time |= answered & self.synced
            self.too_early |= answered - self.synced


def order_in(trace: Path) -> Order:
    order, begun = Order(), {}
    for line in trace.read_text(errors="replace").splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        thread, rest = found["thread"], found["rest"]
        if found["call"] and rest.endswith("<unfinished ...>"):
            begun[thread] = (found["call"], rest)
            if found["call"] not in ("fsync", "fdatasync"):
                order.take(found["call"], rest)
        elif found["call"]:
            order.take(found["call"], rest)
        elif found["resumed"] in ("fsync", "fdatasync"):
            order.take(*begun.pop(thread))
    return order


def submit(server: Any, count: int) -> list[str]:
    """So many submissions from several clients at once, while the worker draws others."""
    accepted: list[str] = []

    def run(client: int) -> None:
        with Caller(server) as caller:
            for number in range(count // CLIENTS):
                status, _, said, _ = caller.call("POST", "/v2/flux-depth-dev", depth(f"{client}, {number}"))
                assert status == 200, said
                accepted.append(json.loads(said)["request_id"])

    threads = [threading.Thread(target=run, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return accepted


def prove(server: Any, trace: Path, *, count: int) -> None:
    with traced(server.process.pid, trace):
        accepted = submit(server, count)
        last = accepted[-1]
        until(lambda: last in trace.read_text(errors="replace"), 30, "the trace has the last answer")
    order = order_in(trace)
    good = len(order.in_time & set(accepted))
    print(
        f"R2: {good} of {len(accepted)} submissions answered after their frame of the log was synced"
        f" ({order.syncs} syncs seen by strace), {len(order.too_early)} before"
    )
    assert len(accepted) == count
    assert order.too_early == set()
    assert good == count


def test_what_is_acknowledged_is_on_disk(dummy_server: Any, tmp_path: Path) -> None:
    prove(dummy_server, tmp_path / "trace", count=100)


@pytest.mark.soak
def test_a_thousand_acknowledged_jobs_are_on_disk(dummy_server: Any, tmp_path: Path) -> None:
    prove(dummy_server, tmp_path / "trace", count=1000)
