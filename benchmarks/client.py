"""Clients that cost little, so that a server that shares its cores with them is not measured by their weight."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Reply:
    """wait_s: from the first byte sent to the last one read. compute_s: the worker's part, where the server says it."""

    body: bytes
    wait_s: float
    compute_s: float | None


class Client:
    """One keep-alive connection. Raises RuntimeError for any answer but 200."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        self._connection.connect()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def post(self, path: str, body: bytes) -> Reply:
        return self._ask("POST", path, body)

    def get(self, path: str) -> Reply:
        return self._ask("GET", path, None)

    def _ask(self, method: str, path: str, body: bytes | None) -> Reply:
        headers = {"content-type": "application/json", "accept": "image/*"} if body is not None else {}
        start = time.perf_counter()
        self._connection.request(method, path, body, headers)
        reply = self._connection.getresponse()
        data = reply.read()
        wait_s = time.perf_counter() - start
        if reply.status != 200:
            raise RuntimeError(f"{method} {path} was answered {reply.status}: {data[:300]!r}")
        computed = reply.headers.get("x-generation-time")
        return Reply(data, wait_s, float(computed) if computed else None)


def together(clients: int, work: Callable[[], list[Reply]]) -> tuple[list[Reply], float]:
    """Runs `work` in so many threads that begin at once. Returns all replies and the time until the last one.

    Raises the first exception of any of them.
    """
    replies: list[Reply] = []
    errors: list[BaseException] = []
    barrier = threading.Barrier(clients + 1)

    def run() -> None:
        barrier.wait()
        try:
            replies.extend(work())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return replies, time.perf_counter() - start
