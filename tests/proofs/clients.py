"""Clients on plain connections: quick ones that keep theirs, and rude ones that hang up."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

KEY = "SG_0123456789abcdef"

GREY_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAYElEQVR4nO3PQQ0AIBDAMED5SUcEj4ZkVbDtmVk/OzrgVQNaA1oDWg"
    "NaA1oDWgNaA1oDWgNaA1oDWgNaA1oDWgNaA1oDWgNaA1oDWgNaA1oDWgNaA1oDWgNaA1oDWgPaBaIsAgBhHc02AAAAAElFTkSuQmCC"
)
"""A grey picture of 64×64."""


def depth(prompt: str = "a fox", steps: int = 1, **more: Any) -> dict[str, Any]:
    """A body for flux-depth-dev whose picture is 64×64, so that drawing and keeping it costs little."""
    small = {"control_image": GREY_PNG, "megapixels": "match_input", "num_inference_steps": steps}
    return {"prompt": prompt, **small, **more}


class Caller:
    """One connection that is kept, for one thread. Each call returns status, headers, body and seconds."""

    def __init__(self, server: Any, key: str | None = KEY) -> None:
        host, port = server.base.removeprefix("http://").split(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=60)
        self._headers = {"x-api-key": key} if key else {}

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self._connection.close()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes, float]:
        headers, content = dict(self._headers), None
        if body is not None:
            headers["content-type"], content = "application/json", json.dumps(body).encode()
        start = time.monotonic()
        self._connection.request(method, path, content, headers)
        reply = self._connection.getresponse()
        said = reply.read()
        named = {name.lower(): value for name, value in reply.getheaders()}
        return reply.status, named, said, time.monotonic() - start


def send_and_stay(server: Any, path: str, body: dict[str, Any], *, key: str = KEY) -> socket.socket:
    """The connection of a POST that was sent whole and whose answer is not read."""
    host, port = server.base.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\nx-api-key: {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(head.encode() + content)
    return connection


def hang_up(connection: socket.socket) -> float:
    """Leaves without a word. Returns the time, in seconds since 1970."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
    return time.time()


def jobs_in_log(log: str, event: str, **values: str) -> dict[str, float]:
    """The jobs that lines of this event with these values name, with the time of the last such line since 1970."""
    from datetime import datetime

    found = {}
    for line in log.splitlines():
        if event in line and all(f"{name}={value}" in line for name, value in values.items()):
            found[re.search(r"\bjob=(\S+)", line)[1]] = datetime.fromisoformat(line.split()[0]).timestamp()  # type: ignore[index]
    return found
