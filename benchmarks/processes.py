"""Servers as processes of their own: our server and its peers, started, waited for, paused and stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.logs import spare_waits

START_LIMIT_S = 1800.0
STOP_LIMIT_S = 60.0


class Running:
    """A server process and all processes that it has started. started_mono_s: when it was started, monotonic."""

    def __init__(
        self, process: subprocess.Popen[str], base: str, started_mono_s: float, log: Path | None = None
    ) -> None:
        self.process, self.base, self.started_mono_s = process, base, started_mono_s
        self.log = log or Path(os.devnull)
        """Of our server, in JSON; empty for others."""

    @property
    def port(self) -> int:
        return int(self.base.rsplit(":", 1)[1])

    def pause(self) -> None:
        """Stops the whole group where it is, so that it takes no time from what is measured."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(self.base + path, timeout=60, trust_env=False)


@contextmanager
def our_server(
    weights: Path,
    data_dir: Path,
    *,
    wait_ready: bool = True,
    cores: set[int] | None = None,
    **settings: str,
) -> Iterator[Running]:
    """The real server with these settings (`FLUX_…`, lower-case, without the prefix), and no others.

    cores: those that it and its workers may use, from their start on; all where it is None. wait_ready: return when it
    can draw and its spare worker has imported its libraries, which would else take time from what is measured.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUX_")}
    environment |= {f"FLUX_{name.upper()}": value for name, value in settings.items()}
    environment |= {"FLUX_MIN_FREE_BYTES": "0", "FLUX_LOG_FORMAT": "json"}
    log = data_dir.with_suffix(".log")
    command = [sys.executable, "-P", "-m", "server", "serve", "--port", "0"]
    command += ["--weights", str(weights), "--data-dir", str(data_dir)]
    with _process(command, environment, log, cores=cores) as (process, started):
        assert process.stdout is not None
        line = process.stdout.readline()
        base = next((word for word in line.split() if word.startswith("http://")), None)
        if base is None:
            raise RuntimeError(f"the server did not start; it said {line!r}")
        running = Running(process, base, started, log)
        if wait_ready:
            wait_for(lambda: answers(running, "/health/ready"), process)
            wait_for(lambda: spare_waits(log), process)
        yield running


@contextmanager
def peer(kind: str, weights: Path) -> Iterator[Running]:
    """One of `benchmarks.peers`, ready."""
    port = _free_port()
    command = [sys.executable, "-P", "-m", "benchmarks.peers", kind, "--weights", str(weights), "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": _python_path()}
    with _process(command, environment, None, stdout=subprocess.DEVNULL) as (process, started):
        running = Running(process, f"http://127.0.0.1:{port}", started)
        wait_for(lambda: answers(running, "/health"), process)
        yield running


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], poll_s: float = 0.02) -> None:
    """Returns when the condition holds. Raises RuntimeError when the process ends first, or after START_LIMIT_S."""
    until = time.monotonic() + START_LIMIT_S
    while not condition():
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode} before it was ready")
        if time.monotonic() > until:
            raise RuntimeError(f"the server was not ready within {START_LIMIT_S:g} s")
        time.sleep(poll_s)


def answers(running: Running, path: str) -> bool:
    """Whether the server answers 200 there."""
    with suppress(httpx2.TransportError):
        return running.get(path).status_code == 200
    return False


@contextmanager
def _process(
    command: list[str],
    environment: dict[str, str],
    log: Path | None,
    *,
    stdout: int = subprocess.PIPE,
    cores: set[int] | None = None,
) -> Iterator[tuple[subprocess.Popen[str], float]]:
    """The process in a group of its own, and when it was started. The group is stopped at the end, by force at last."""
    errors: Any = log.open("a") if log else subprocess.DEVNULL
    own = os.sched_getaffinity(0) if cores else set()
    started = time.monotonic()
    if cores:
        os.sched_setaffinity(0, cores)  # inherited by the child, and so by all that it starts
    try:
        process = subprocess.Popen(
            command, env=environment, stdout=stdout, stderr=errors, text=True, start_new_session=True
        )
    finally:
        if cores:
            os.sched_setaffinity(0, own)
    try:
        yield process, started
    finally:
        _stop(process)
        if log:
            errors.close()


def _stop(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGCONT)
        process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_LIMIT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _python_path() -> str:
    """So that a child finds this package from any folder."""
    root = str(Path(__file__).parents[1])
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
