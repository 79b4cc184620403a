"""Shared by all tests: the demo weights, built once, and real server processes that use them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

# Before torch is imported anywhere: waiting threads that spin make tests several times slower on shared cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A run that a shell has put into the background ignores Ctrl-C, and would hand that on to the processes it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

KEY = "SG_0123456789abcdef"
OTHER_KEY = "SG_fedcba9876543210"
POOR_KEY = "SG_00000000000000aa"

DUMMY = Path(__file__).parent / "reliability" / "dummy_server.py"

START_LIMIT_S = 120.0

# One for all, since making one takes longer than most requests; each request has a connection of its own.
_client = httpx2.Client(timeout=120, trust_env=False, limits=httpx2.Limits(max_keepalive_connections=0))


def until(condition: Callable[[], Any], limit_s: float = 60.0, what: str = "condition") -> Any:
    """The condition's first truthy value. Fails the test when there is none within the limit."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {limit_s} s")


class ServerProcess:
    """One real `flux-server serve` process in a process group of its own, and its data folder."""

    def __init__(
        self, weights: Path, data_dir: Path, *, program: tuple[str, ...] = ("-m", "server"), **settings: str
    ) -> None:
        self._weights, self.data_dir, self._settings, self._program = weights, data_dir, settings, program
        self.environment: dict[str, str] = {}
        """Further variables for the next start."""
        self.log_path = data_dir.with_suffix(".log")
        self.process: subprocess.Popen[str] | None = None
        self.base = ""

    def start(self, *, wait_ready: bool = True) -> None:
        if self.process is not None and self.process.stdout:
            self.process.stdout.close()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUX_")}
        environment["FLUX_WEIGHTS_DIR"] = str(self._weights)
        # Most tests end before a spare would help them, and on two cores its imports slow what they measure.
        environment["FLUX_SPARE_WORKER"] = "false"
        environment |= {f"FLUX_{name.upper()}": value for name, value in self._settings.items()}
        environment |= self.environment
        command = [sys.executable, "-P", *self._program, "serve", "--port", "0"]
        command += ["--data-dir", str(self.data_dir)]
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                cwd=self.data_dir.parent,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"listening on (http://\S+)", line)
        assert found, f"the server did not start: {line}\n{self.log()}"
        self.base = found.group(1)
        until(self._answers, START_LIMIT_S, "server answers")
        if wait_ready:
            self.wait_ready()

    def wait_ready(self) -> None:
        until(lambda: self.get("/health/ready").status_code == 200, START_LIMIT_S, "server ready")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the server ended: {self.log()}"
        try:
            return bool(self.get("/health/live").status_code == 200)
        except httpx2.TransportError:
            return False

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx2.Response:
        return self.request("POST", path, **options)

    def request(self, method: str, path: str, *, key: str | None = KEY, **options: Any) -> httpx2.Response:
        """One request with the test's key; `key=None` sends none."""
        headers = {**({"x-api-key": key} if key else {}), **options.pop("headers", {})}
        url = path if path.startswith("http") else self.base + path
        return _client.request(method, url, headers=headers, **options)

    def submit(self, slug: str, body: dict[str, Any], **options: Any) -> str:
        reply = self.post(f"/v2/{slug}", json=body, **options)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["request_id"])

    def status(self, request_id: str, **options: Any) -> dict[str, Any]:
        body: dict[str, Any] = self.get(f"/v2/requests/{request_id}/status", **options).json()
        return body

    def finish(self, request_id: str, limit_s: float = 120.0) -> dict[str, Any]:
        """The result body of a request once it is COMPLETED or FAILED."""
        until(lambda: self.status(request_id)["status"] in ("COMPLETED", "FAILED"), limit_s, f"{request_id} ends")
        body: dict[str, Any] = self.get(f"/v2/requests/{request_id}").json()
        return body

    def worker_pid(self) -> int:
        """Process id of the worker that became ready last. The server's children are it and perhaps a spare."""
        pid = int(re.findall(r"worker ready .*?pid=(\d+)", self.log())[-1])
        assert pid in self.children(), "the worker that was ready last is gone"
        return pid

    def children(self) -> list[int]:
        assert self.process is not None
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in listed]

    def wait_spare(self) -> None:
        """Waits until the present worker has a spare that has imported its libraries."""
        until(lambda: self.log().rfind("spare worker waits") > self.log().rfind("worker ready"), 60, "a spare waits")

    def kill(self) -> None:
        """Ends the server, and only it, as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def stop(self) -> int:
        """Ends the server politely and returns its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            if self.process.stdout:
                self.process.stdout.close()

    def log(self) -> str:
        return self.log_path.read_text()


@pytest.fixture(scope="session")
def demo_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo family's folder, built once per run in a process of its own."""
    folder = tmp_path_factory.mktemp("weights")
    command = [sys.executable, "-P", "-m", "weights.demo", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(built.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def run_server(demo_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A context manager that runs a server of its own with the settings given; `program` stands for `-m server`.

    data_dir: the server's folder, a new one without it. dummy: with a worker that needs no torch and draws grey, where
    pictures do not matter.
    """

    @contextmanager
    def run(*, wait_ready: bool = True, data_dir: Path | None = None, **settings: Any) -> Iterator[ServerProcess]:
        settings.setdefault("api_keys", KEY)
        settings.setdefault("min_free_bytes", "0")
        if settings.pop("dummy", False):
            settings["program"] = (str(DUMMY),)
        server = ServerProcess(demo_weights, data_dir or tmp_path_factory.mktemp("server") / "data", **settings)
        try:
            server.start(wait_ready=wait_ready)
            yield server
        finally:
            server.stop()
        # Over the whole run of the tests: whatever they do, no key comes into a log.
        assert not [key for key in (KEY, OTHER_KEY, POOR_KEY) if key in server.log()]

    return run


@pytest.fixture(scope="session")
def server(run_server: Any, picture_host: str) -> Iterator[ServerProcess]:
    """A ready server that most tests share; they must leave it as they found it."""
    with run_server(
        api_keys=f"{KEY},{OTHER_KEY},{POOR_KEY}",
        credits=f'{{"{POOR_KEY}": 0.05}}',
        fetch_private_hosts=picture_host.removeprefix("http://"),
    ) as running:
        yield running


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A real photograph, 600×400, as JPEG."""
    import io

    from PIL import Image
    from skimage import data

    buffer = io.BytesIO()
    Image.fromarray(data.coffee()).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def picture_host(photo: bytes) -> Iterator[str]:
    """A web server on this machine that has the photograph at /photo.jpg."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Host(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/photo.jpg"
            self.send_response(200 if found else 404)
            self.send_header("content-type", "image/jpeg")
            self.send_header("content-length", str(len(photo) if found else 0))
            self.end_headers()
            if found:
                self.wfile.write(photo)

        def log_message(self, *_: Any) -> None:
            pass

    host = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{host.server_port}"
    host.shutdown()
    host.server_close()
