"""A stand-in for the Hugging Face hub on this machine: listings, redirects to a storage of another origin, faults."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

TOKEN = "hf_standin"
Files = dict[str, bytes]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_large(path: str) -> bool:
    """Whether the hub keeps the file outside git, under its sha256."""
    return path.endswith((".safetensors", ".pt", ".pth", ".bin", ".gguf"))


def etag(path: str, content: bytes) -> str:
    return sha256(content) if is_large(path) else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    files: Files
    commit: str = "c" * 40
    gated: bool = False


@dataclass
class Fault:
    """What goes wrong with the next `times` requests for the bytes of a file.

    cut_after: the connection breaks after so many bytes of the answer. status: the answer instead. content: other bytes
    than the listing says. ignore_range: all bytes although some were asked for.
    """

    cut_after: int | None = None
    status: int | None = None
    content: bytes | None = None
    ignore_range: bool = False
    times: int = 1


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    token: str | None
    sent: int = 0


@dataclass
class StandIn:
    """The hub, and its storage on another port, as one set of repositories.

    gate: what a gated file is answered with where a token is sent that is not TOKEN.
    """

    url: str = ""
    storage: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    gate: int = 403

    def publish(self, name: str, files: Files, *, commit: str = "c" * 40, gated: bool = False) -> None:
        self.repositories[name] = Repository(files, commit, gated)

    def fail(self, path: str, **how: Any) -> None:
        """Makes requests for the bytes of the file at `path` go wrong, as Fault says."""
        self.faults[path] = Fault(**how)

    def bytes_of(self, path: str) -> int:
        """Bytes that were sent of files whose path ends so."""
        return sum(request.sent for request in self.log if request.method == "GET" and request.path.endswith(path))

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of each request for the bytes of a file, in order."""
        return [request.range for request in self.log if request.path.endswith(path) and "/storage/" in request.path]

    def fetched(self) -> list[str]:
        return [request.path for request in self.log if request.method == "GET" and request.sent]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandIn

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
        self.request_log = Request(self.command, path, self.headers.get("range"), token)
        self.hub.log.append(self.request_log)
        if found := re.fullmatch(r"/api/models/(.+?)/revision/(.+)", path):
            self._listing(*found.groups(), token)
        elif found := re.fullmatch(r"/(.+?)/resolve/(.+?)/(.+)", path):
            self._resolve(*found.groups(), token)
        elif found := re.fullmatch(r"/storage/(.+?)//(.+)", path):
            self._content(*found.groups())
        else:
            self._send(404, {})

    def _listing(self, name: str, revision: str, token: str | None) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._send(404 if token else 401, {"x-error-code": "RepoNotFound"})
        elif revision not in ("main", repository.commit):
            self._send(404, {"x-error-code": "RevisionNotFound"})
        else:
            siblings = [self._sibling(path, content) for path, content in repository.files.items()]
            info = {"id": name, "sha": repository.commit, "siblings": siblings, "gated": repository.gated and "auto"}
            self._send(200, {"content-type": "application/json"}, json.dumps(info).encode())

    def _sibling(self, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": "b" * 40}
        if is_large(path):
            entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
        else:
            entry["blobId"] = etag(path, content)
        return entry

    def _resolve(self, name: str, revision: str, path: str, token: str | None) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None or path not in repository.files:
            self._send(404, {"x-error-code": "EntryNotFound" if repository else "RepoNotFound"})
        elif repository.gated and token != TOKEN:
            self._send(self.hub.gate if token else 401, {"x-error-code": "GatedRepo"})
        else:
            content = repository.files[path]
            headers = {
                "x-repo-commit": repository.commit,
                "x-linked-etag": f'"{etag(path, content)}"',
                "x-linked-size": str(len(content)),
                "location": f"{self.hub.storage}/storage/{name}//{path}",
            }
            self._send(302, headers)

    def _content(self, name: str, path: str) -> None:
        content = self.hub.repositories[name].files[path]
        fault = self.hub.faults.get(path)
        if fault is None or fault.times == 0:
            fault = Fault()
        else:
            fault.times -= 1
        if fault.status:
            self._send(fault.status, {})
            return
        content = content if fault.content is None else fault.content
        start = 0 if fault.ignore_range else int(re.findall(r"\d+", self.headers.get("range") or "0")[0])
        body = content[start:]
        if self.command == "HEAD":
            body = b""
        part = {"content-range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        headers = {"content-length": str(len(content) - start), "etag": f'"{etag(path, content)}"', **part}
        self._send(206 if start else 200, headers, body if fault.cut_after is None else body[: fault.cut_after])
        if fault.cut_after is not None:
            self.close_connection = True

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.request_log.sent = len(body)


@pytest.fixture
def hub() -> Iterator[StandIn]:
    """An empty hub. Its storage has another origin, as the real one's has, so that a token must not travel there."""
    standin = StandIn()
    handler = type("BoundHandler", (Handler,), {"hub": standin})
    with ExitStack() as stack:
        for name in ("url", "storage"):
            server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            setattr(standin, name, f"http://127.0.0.1:{server.server_port}")
        yield standin


@pytest.fixture
def hub_here(hub: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StandIn:
    """The hub, also for the hub's client in this process, which has no token of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return hub


@pytest.fixture
def filled(hub: StandIn, samples: Any) -> StandIn:
    """The hub with one repository for each model of the small catalogue."""
    hub.publish("black-forest-labs/FLUX.1-dev", samples.flux_files(), gated=True)
    depth = samples.flux_files(in_channels=128, seed=2)
    hub.publish("black-forest-labs/FLUX.1-Depth-dev", depth, commit="d" * 40, gated=True)
    hub.publish(
        "black-forest-labs/FLUX.1-Depth-dev-lora", {"flux1-depth-dev-lora.safetensors": samples.safetensors({})}
    )
    hub.publish("someone/estimator-hf", samples.helper_files())
    hub.publish("someone/annotators", {"known.pt": samples.known_pickle, "unknown.pt": b"\x80\x04unknown."})
    return hub


@pytest.fixture
def hub_environment(filled: StandIn, tmp_path: Path) -> dict[str, str]:
    """The environment of a process that finds this hub, no token and no settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FLUX_", "HF_"))}
    return environment | {"HF_ENDPOINT": filled.url, "HF_HOME": str(tmp_path / "hf"), "COLUMNS": "200"}


@pytest.fixture
def command_line(table: Path) -> Any:
    """The words that run `flux-server weights` with the small catalogue in a process of its own."""
    start = [sys.executable, "-P", "-m", "server", "weights"]
    return lambda *words: [*start, *map(str, words), "--catalogue", str(table)]


@pytest.fixture
def pull_command(hub_environment: dict[str, str], command_line: Any, tmp_path: Path) -> Any:
    """Runs `flux-server weights` in a process of its own, in `tmp_path` and without a terminal."""

    def run(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command_line(*arguments),
            env=hub_environment | settings,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            timeout=60,
        )

    return run
