"""Slow, endless and too many connections: none of them holds the server up, and all of them end."""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

KEY = "SG_0123456789abcdef"
HEAD_LIMIT_S, BODY_LIMIT_S, CONNECTIONS = 1.0, 2.0, 260
GRACE_S = 2.0
"""What a busy machine may add to a limit."""

GET = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def own(run_server: Any) -> Iterator[Any]:
    settings = {"head_limit_s": str(HEAD_LIMIT_S), "body_limit_s": str(BODY_LIMIT_S)}
    with run_server(wait_ready=True, max_connections=str(CONNECTIONS), **settings) as running:
        yield running


def connect(server: Any) -> socket.socket:
    host, port = server.base.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.settimeout(20)
    return connection


def ask(connection: socket.socket) -> bool:
    """Asks once for the process's life on a connection that stays open."""
    connection.sendall(GET)
    said = b""
    while b'"live"}' not in said:
        piece = connection.recv(65536)
        if not piece:
            return False
        said += piece
    return said.startswith(b"HTTP/1.1 200 ")


def post_head(length: int | str, *headers: str) -> bytes:
    size = f"content-length: {length}" if isinstance(length, int) else length
    lines = ["POST /v2/flux-dev HTTP/1.1", "host: localhost", f"x-api-key: {KEY}", "content-type: application/json"]
    return "\r\n".join([*lines, size, *headers, "", ""]).encode()


def rest(connection: socket.socket) -> bytes:
    """What the server still says until it closes."""
    said = b""
    try:
        while piece := connection.recv(65536):
            said += piece
    except ConnectionResetError:
        pass
    return said


def closed_after_s(connection: socket.socket) -> tuple[float, bytes]:
    start = time.monotonic()
    said = rest(connection)
    return time.monotonic() - start, said


def envelope(said: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said.rpartition(b"\r\n\r\n")[2])
    assert found["error"] == found["message"]
    return found


def drip_until_closed(connection: socket.socket, piece: bytes, every_s: float, limit_s: float) -> float:
    """Sends the piece again and again. Seconds until the server had enough."""
    start = time.monotonic()
    connection.settimeout(every_s)
    while time.monotonic() - start < limit_s:
        try:
            connection.sendall(piece)
            if not connection.recv(65536):
                break
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            break
    return time.monotonic() - start


# Time.


@pytest.mark.parametrize("sent", [b"G", b"GET /health/live HTTP/1.1\r\nhost: loc"], ids=["one byte", "half a head"])
def test_half_a_head_is_told_so_and_closed_in_time(own: Any, sent: bytes) -> None:
    with connect(own) as connection:
        connection.sendall(sent)
        took_s, said = closed_after_s(connection)
    print(f"closed after {took_s:.2f} s, limit {HEAD_LIMIT_S} s")
    assert took_s <= HEAD_LIMIT_S + GRACE_S
    assert said.startswith(b"HTTP/1.1 408 ")
    assert envelope(said)["code"] == "request_timeout"


def test_a_silent_connection_is_closed_in_time(own: Any) -> None:
    with connect(own) as connection:
        took_s, said = closed_after_s(connection)
    assert HEAD_LIMIT_S * 0.9 <= took_s <= HEAD_LIMIT_S + GRACE_S
    assert said == b""


@pytest.mark.parametrize("piece", [b"x-a: b\r\n", b"\r\n"], ids=["headers", "blank lines"])
@pytest.mark.parametrize("first", [False, True], ids=["new", "kept alive"])
def test_dripping_does_not_keep_a_connection(own: Any, first: bool, piece: bytes) -> None:
    with connect(own) as connection:
        if first:
            assert ask(connection)
        connection.sendall(b"GET /health/live HTTP/1.1\r\n" if piece.strip() else piece)
        took_s = drip_until_closed(connection, piece, 0.1, 10)
    assert took_s <= HEAD_LIMIT_S + GRACE_S


def test_a_body_that_nobody_asked_for_does_not_keep_a_connection(own: Any) -> None:
    with connect(own) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n")
        took_s = drip_until_closed(connection, b"x", 0.1, 10)
    assert took_s <= HEAD_LIMIT_S + GRACE_S


@pytest.mark.parametrize("length", [100, "transfer-encoding: chunked"], ids=["with length", "chunked"])
def test_half_a_body_is_408_in_time(own: Any, length: int | str) -> None:
    with connect(own) as connection:
        connection.sendall(post_head(length) + (b'{"prompt"' if length == 100 else b'2\r\n{"\r\n'))
        took_s, said = closed_after_s(connection)
    print(f"408 after {took_s:.2f} s, limit {BODY_LIMIT_S} s")
    assert took_s <= BODY_LIMIT_S + GRACE_S
    assert said.startswith(b"HTTP/1.1 408 ")


def test_a_connection_in_use_outlives_the_limit(own: Any) -> None:
    with connect(own) as connection:
        start = time.monotonic()
        while time.monotonic() - start < 1.5 * HEAD_LIMIT_S:
            assert ask(connection)


def test_a_blocking_call_may_take_longer_than_a_head(own: Any) -> None:
    start = time.monotonic()
    reply = own.post("/v1/flux-dev", json={"prompt": "x", "steps": 50})
    assert reply.status_code == 200
    print(f"a call of {time.monotonic() - start:.1f} s was answered, head limit {HEAD_LIMIT_S} s")


# Size.


@pytest.mark.parametrize("whole", [True, False], ids=["one header", "many headers"])
def test_a_head_over_the_limit_is_refused_and_one_under_it_is_not(own: Any, whole: bool) -> None:
    def said_to(size: int) -> bytes:
        extra = b"x-a: " + b"b" * size if whole else b"\r\n".join([b"x-a: bbbbbbb"] * (size // 14))
        with connect(own) as connection:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" + extra)
            connection.sendall(b"\r\n\r\n") if size < 64 * 1024 else None
            return rest(connection)

    assert said_to(60 * 1024).startswith(b"HTTP/1.1 200 ")
    refused = said_to(2 * 1024 * 1024)
    assert refused == b"" or b"larger than 65536" in refused


@pytest.mark.parametrize("piece", [b"1;" + b"e" * 30_000 + b"\r\n{\r\n", b"x-trailer: " + b"t" * 30_000 + b"\r\n"])
def test_endless_framing_of_a_body_is_refused(own: Any, piece: bytes) -> None:
    with connect(own) as connection:
        begin = b"1\r\n{\r\n" + (b"0\r\n" if piece.startswith(b"x") else b"")
        connection.sendall(post_head("transfer-encoding: chunked") + begin)
        took_s = drip_until_closed(connection, piece, 0.01, 10)
    assert took_s < BODY_LIMIT_S


def test_a_body_in_chunks_of_one_byte_arrives(own: Any) -> None:
    body = json.dumps({"prompt": "x" * 4000, "steps": 1}).encode()
    chunks = b"".join(b"1\r\n" + body[index : index + 1] + b"\r\n" for index in range(len(body))) * 1
    with connect(own) as connection:
        connection.sendall(post_head("transfer-encoding: chunked", "connection: close") + chunks + b"0\r\n\r\n")
        assert rest(connection).startswith(b"HTTP/1.1 200 ")


def test_a_large_body_and_the_next_head_in_one_piece_are_both_read(own: Any) -> None:
    body = json.dumps({"prompt": "x", "steps": 1, "ignored": "y" * 200_000}).encode()
    with connect(own) as connection:
        connection.sendall(post_head(len(body)) + body + GET[:-2] + b"connection: close\r\n\r\n")
        assert rest(connection).count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize(("ahead", "passes"), [(16, True), (400, False)])
def test_requests_sent_ahead_are_bounded(own: Any, ahead: int, passes: bool) -> None:
    with connect(own) as connection:
        connection.sendall(GET * ahead)
        said = rest(connection)
    assert said.count(b"HTTP/1.1 200 ") == ahead if passes else said.count(b"HTTP/1.1 200 ") <= 17


# Number.


def test_two_hundred_slow_connections_leave_health_quick(own: Any) -> None:
    """The best of three rounds counts, for other programs on a busy machine take their share of each."""
    p99s_ms = []
    for _ in range(3):
        p99s_ms.append(p99_ms_with_slow_connections(own, 200))
        if p99s_ms[-1] <= 200:
            break
    assert min(p99s_ms) <= 200


def p99_ms_with_slow_connections(server: Any, count: int) -> float:
    """Of health beside so many half-sent heads and bodies, all of which are then seen to be closed in time."""

    def slow(index: int) -> socket.socket:
        connection = connect(server)
        connection.sendall(GET[:20] if index % 2 else post_head(1000) + b"{")
        return connection

    took_ms: list[float] = []
    with ExitStack() as stack:
        open_ = [stack.enter_context(slow(index)) for index in range(count)]
        probe = stack.enter_context(connect(server))
        assert ask(probe)  # those before it are accepted
        for _ in range(400):
            start = time.monotonic()
            assert ask(probe)
            took_ms.append((time.monotonic() - start) * 1000)
        start = time.monotonic()
        replies = [rest(connection) for connection in open_]
        closed_s = time.monotonic() - start
    p99_ms = statistics.quantiles(took_ms, n=100)[98]
    print(f"health beside {count} slow connections: median {statistics.median(took_ms):.1f} ms, p99 {p99_ms:.1f} ms")
    print(f"all were closed {closed_s:.1f} s later")
    assert closed_s <= BODY_LIMIT_S + GRACE_S
    assert all(said.startswith(b"HTTP/1.1 408 ") for said in replies)
    return p99_ms


def test_one_connection_too_many_is_503_and_room_comes_back(own: Any) -> None:
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(connect(own)).sendall(b"G")
        late = stack.enter_context(connect(own))
        said = rest(late)
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in said
        assert envelope(said)["code"] == "too_many_connections"
    until(lambda: _answers(own), 10, "room comes back")


def _answers(server: Any) -> bool:
    with connect(server) as connection:
        return ask(connection)


def until(condition: Callable[[], Any], limit_s: float, what: str) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {limit_s} s")
