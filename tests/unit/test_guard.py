"""The door: who passes, in which order things are said, and how long a body may take."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.accounts import Accounts
from server.api.refusals import refuse
from server.app import create_app
from server.errors import RequestTimeout
from server.guard import Guard, is_public
from server.rates import RateLimits
from server.settings import Settings

KEY = "SG_0123456789abcdef"
LIMIT_S = 20.0

Message = dict[str, Any]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Inner:
    """The application behind the door: remembers what reached it and answers 200."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        headers = [(b"x-frame-options", b"SAMEORIGIN")] if scope["path"] == "/own" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"inside"})


def guard_of(app: Any, *keys: str, body_limit_s: float = 30.0) -> Guard:
    return Guard(app, accounts=Accounts(Settings(api_keys=keys)), body_limit_s=body_limit_s, refuse=refuse)


def whole(body: bytes = b"") -> Callable[[], Awaitable[Message]]:
    """A client that has sent its whole body, and stays."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        message = next(messages, None)
        if message is None:
            await asyncio.Event().wait()
        assert message is not None
        return message

    return receive


async def never() -> Message:
    raise AssertionError("the body was asked for")


async def ask(
    app: Any,
    path: str,
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
    receive: Callable[[], Awaitable[Message]] | None = None,
) -> Reply:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": raw,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }
    async with asyncio.timeout(LIMIT_S):
        await app(scope, receive or whole(), send)
    start = next(message for message in sent if message["type"] == "http.response.start")
    body = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
    return Reply(start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, body)


def run_ask(app: Any, path: str, **options: Any) -> Reply:
    return asyncio.run(ask(app, path, **options))


# Keys.


@pytest.mark.parametrize(
    "path", ["/v1/flux-dev", "/v2/requests/1/status", "/no/such/path", "/upload-asset", "/openapi"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "BREW"])
def test_nothing_behind_the_door_is_reached_without_a_key(path: str, method: str) -> None:
    inner = Inner()
    refused = run_ask(guard_of(inner, KEY), path, method=method, receive=never)
    assert refused.status == 401
    assert refused.json()["error"] == "Missing Authorization or x-api-key in header"
    assert refused.json()["code"] == "unauthorized"
    wrong = run_ask(guard_of(inner, KEY), path, method=method, headers=[("x-api-key", "SG_wrong")], receive=never)
    assert wrong.status == 401
    assert "invalid" in wrong.json()["error"]
    assert not inner.scopes


def test_401_comes_before_404_405_and_a_bad_body() -> None:
    app = create_app(Settings(api_keys=(KEY,)))
    for path, method in (("/no/such/path", "GET"), ("/v1/flux-dev", "GET"), ("/v2/flux-dev", "POST")):
        assert run_ask(app, path, method=method, receive=never).status == 401
    known = [("x-api-key", KEY)]
    assert run_ask(app, "/no/such/path", headers=known).status == 404
    assert run_ask(app, "/v1/flux-dev", headers=known).status == 405


@pytest.mark.parametrize("headers", [[("x-api-key", KEY)], [("authorization", f"Bearer {KEY}")], [("X-API-Key", KEY)]])
def test_a_key_opens_the_door_and_the_caller_is_known_behind_it(headers: list[tuple[str, str]]) -> None:
    inner = Inner()
    assert run_ask(guard_of(inner, KEY), "/v1/flux-dev", headers=headers).body == b"inside"
    caller = inner.scopes[0]["state"]["caller"]
    assert caller == Accounts(Settings(api_keys=(KEY,))).identify(KEY, None)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health/live",
        "/health/ready/",
        "/files/0123456789abcdef0123456789abcdef.png",
        "/openapi.json",
        "/inference-model-information/list",
    ],
)
def test_some_paths_need_no_key(path: str) -> None:
    inner = Inner()
    assert run_ask(guard_of(inner, KEY), path).status == 200
    assert inner.scopes


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/healthy",
        "/Health/live",
        "//health/live",
        "/v1/../health/live",
        "/v1/health/live",
        "/files",
        "/filesystem",
        "/openapi.json/x",
        "/inference-model-information",
        "/inference-model-information/list/x",
        "",
        "*",
    ],
)
def test_paths_that_look_like_them_need_one(path: str) -> None:
    assert not is_public(path)


# Addresses.


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        ("/v1/flux-dev", "/v1/flux-dev"),
        ("/v1/flux-dev/", "/v1/flux-dev"),
        ("/v1/flux-dev///", "/v1/flux-dev"),
        ("/", "/"),
        ("//", "/"),
        ("", "/"),
    ],
)
def test_a_slash_at_the_end_makes_no_difference(asked: str, seen: str) -> None:
    inner = Inner()
    run_ask(guard_of(inner, KEY), asked, headers=[("x-api-key", KEY)])
    assert inner.scopes[0]["path"] == seen


OWN_HOSTS = ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:8000", "[::1]", "[::1]:8000", "127.8.9.1:80"]
FOREIGN_HOSTS = [
    "evil.example",
    "127.0.0.1.evil.example",
    "127.0.0.1.evil.example:8000",
    "localhost.evil.example",
    "evil-localhost",
    "127.0.0.1@evil.example",
    "127.0.0.1#.evil.example",
    "localhost@evil.example:8000",
    "evil.example:127",
    "192.168.1.5:8000",
    "0.0.0.0:8000",
    "[::]:8000",
    "[fe80::1]:8000",
    "[::1",
    "[::1].evil.example",
    "127.1",
    "2130706433",
    "0x7f000001",
    "ⓛocalhost".encode().decode("latin-1"),
    "//",
    ":8000",
]


@pytest.mark.parametrize("path", ["/v1/flux-dev", "/health/live", "/", "/files/x"])
@pytest.mark.parametrize("host", OWN_HOSTS)
def test_an_open_server_answers_this_machine(path: str, host: str) -> None:
    for headers in ([("host", host)], [("host", host), ("origin", f"http://{host}")]):
        assert run_ask(guard_of(Inner()), path, headers=headers).status == 200


def test_an_open_server_answers_programs_that_send_neither_host_nor_origin() -> None:
    assert run_ask(guard_of(Inner()), "/v1/flux-dev").status == 200


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
@pytest.mark.parametrize("path", ["/v1/flux-dev", "/health/live", "/"])
def test_an_open_server_refuses_names_that_another_machine_may_own(path: str, host: str) -> None:
    inner = Inner()
    refused = run_ask(guard_of(inner), path, method="POST", headers=[("host", host)], receive=never)
    assert refused.status == 403
    assert "FLUX_API_KEYS" in refused.json()["error"]
    assert not inner.scopes


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "file://",
        "chrome-extension://abcdef",
        *(f"http://{host}" for host in FOREIGN_HOSTS[:12]),
        "https://e.example",
    ],
)
def test_an_open_server_refuses_pages_of_others_even_at_its_own_address(origin: str) -> None:
    inner = Inner()
    headers = [("host", "127.0.0.1:8000"), ("origin", origin)]
    assert run_ask(guard_of(inner), "/v1/flux-dev", method="POST", headers=headers, receive=never).status == 403
    assert not inner.scopes


@pytest.mark.parametrize("origin", ["http://127.0.0.1:3000", "http://localhost", "https://[::1]:5173"])
def test_an_open_server_answers_pages_of_this_machine(origin: str) -> None:
    headers = [("host", "127.0.0.1:8000"), ("origin", origin)]
    assert run_ask(guard_of(Inner()), "/v1/flux-dev", method="POST", headers=headers).status == 200


@pytest.mark.parametrize("host", FOREIGN_HOSTS[:4])
def test_a_server_with_keys_may_have_any_name(host: str) -> None:
    headers = [("host", host), ("origin", f"https://{host}"), ("x-api-key", KEY)]
    assert run_ask(guard_of(Inner(), KEY), "/v1/flux-dev", headers=headers).status == 200


def test_pages_elsewhere_may_call_a_server_with_keys_and_not_an_open_one() -> None:
    asks = [("origin", "https://app.example"), ("access-control-request-method", "POST"), ("host", "127.0.0.1")]
    asks += [("access-control-request-headers", "x-api-key,content-type")]
    keyed = run_ask(create_app(Settings(api_keys=(KEY,))), "/v1/flux-dev", method="OPTIONS", headers=asks)
    assert keyed.status == 200
    assert keyed.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in keyed.headers
    refused = run_ask(create_app(Settings()), "/v1/flux-dev", method="OPTIONS", headers=asks)
    assert refused.status == 403
    assert "access-control-allow-origin" not in refused.headers


# Headers.


def test_every_answer_has_an_id_and_the_security_headers() -> None:
    guard = guard_of(Inner(), KEY)
    answers = [run_ask(guard, "/v1/flux-dev"), run_ask(guard, "/health/live"), run_ask(guard, "/health/live")]
    assert [answer.status for answer in answers] == [401, 200, 200]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3


def test_what_the_application_says_itself_stays() -> None:
    answer = run_ask(guard_of(Inner(), KEY), "/own", headers=[("x-api-key", KEY)])
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"


def test_the_id_is_the_same_in_the_answer_and_behind_the_door() -> None:
    inner = Inner()
    answer = run_ask(guard_of(inner), "/v1/flux-dev")
    assert inner.scopes[0]["state"]["request_id"] == answer.headers["x-request-id"]


def test_other_kinds_of_scope_pass_untouched() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    scope, parts = {"type": "lifespan"}, (object(), object())
    asyncio.run(guard_of(app, KEY)(scope, *parts))  # type: ignore[arg-type]
    assert seen == [(scope, *parts)]


# Bodies.


async def drip(pieces: int, every_s: float, first: bytes) -> AsyncIterator[Message]:
    for index in range(pieces):
        await asyncio.sleep(every_s)
        yield {"type": "http.request", "body": b"x" if index else first, "more_body": index < pieces - 1}


def slow(pieces: int, every_s: float, first: bytes = b"x") -> Callable[[], Awaitable[Message]]:
    """A client that sends its body piece by piece."""
    messages = drip(pieces, every_s, first)

    async def receive() -> Message:
        async for message in messages:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    return receive


class Reader:
    """An application that reads its request's body, and then waits for the caller to leave when it shall."""

    def __init__(self, *, then_wait: bool = False) -> None:
        self.body, self.error, self.last, self._then_wait = b"", "", {}, then_wait

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            more = True
            while more:
                message = await receive()
                self.body += message.get("body", b"")
                more = message.get("more_body", False)
        except RequestTimeout as error:
            self.error = error.message
        if self._then_wait:
            self.last = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def test_a_body_in_time_arrives_whole() -> None:
    reader = Reader()
    run_ask(guard_of(reader), "/x", receive=slow(5, 0.001))
    assert (reader.body, reader.error) == (b"xxxxx", "")


def test_a_body_that_stops_arriving_is_given_up() -> None:
    async def stuck() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    reader = Reader()
    run_ask(guard_of(reader, body_limit_s=0.05), "/x", receive=stuck)
    assert "within 0.05 s" in reader.error


def test_the_limit_is_for_the_whole_body_and_not_for_each_piece() -> None:
    reader = Reader()
    run_ask(guard_of(reader, body_limit_s=0.2), "/x", receive=slow(1000, 0.02))
    assert "within 0.2 s" in reader.error
    assert 0 < len(reader.body) < 20


def test_waiting_for_a_caller_to_leave_has_no_limit() -> None:
    async def receive() -> Message:
        if not reader.body:
            return {"type": "http.request", "body": b"x", "more_body": False}
        await asyncio.sleep(0.15)
        return {"type": "http.disconnect"}

    reader = Reader(then_wait=True)
    run_ask(guard_of(reader, body_limit_s=0.05), "/x", receive=receive)
    assert reader.last == {"type": "http.disconnect"}
    assert not reader.error


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("application/json", b'{"prompt": "'),
        ("application/x-www-form-urlencoded", b"prompt="),
        ("multipart/form-data; boundary=b", b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n'),
    ],
)
def test_a_slow_body_is_answered_with_408_and_the_connection_is_closed(kind: str, first: bytes) -> None:
    settings = Settings(body_limit_s=0.1)
    app = create_app(settings)
    app.state.services = SimpleNamespace(settings=settings, rates=RateLimits(per_minute=None, burst=1))
    headers = [("content-type", kind), ("content-length", "1000")]
    answer = run_ask(app, "/v2/flux-dev", method="POST", headers=headers, receive=slow(1000, 0.02, first))
    assert answer.status == 408
    assert answer.json()["code"] == "request_timeout"
    assert answer.headers["connection"] == "close"


def test_a_caller_that_hangs_up_midway_is_no_fault_of_the_server() -> None:
    settings = Settings()
    app = create_app(settings)
    app.state.services = SimpleNamespace(settings=settings, rates=RateLimits(per_minute=None, burst=1))
    messages: list[Message] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0) if len(messages) > 1 else messages[0]

    headers = [("content-type", "application/json")]
    answer = run_ask(app, "/v2/flux-dev", method="POST", headers=headers, receive=receive)
    assert answer.status < 500


def test_an_unexpected_error_says_nothing_of_itself_and_has_an_id() -> None:
    app = create_app(Settings())

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("inner secret")

    answers: list[Reply] = []

    async def test() -> None:
        sent: list[Message] = []

        async def record(message: Message) -> None:
            sent.append(message)

        async def app_without_its_last_cry(scope: Any, receive: Any, send: Any) -> None:
            # The outermost layer of an application may raise the error once more, for the server's log.
            with suppress(RuntimeError):
                await app(scope, receive, send)

        answers.append(await ask(app_without_its_last_cry, "/broken"))

    asyncio.run(test())
    (answer,) = answers
    assert answer.status == 500
    assert "inner secret" not in answer.body.decode()
    assert answer.json()["incident"] == answer.headers["x-request-id"]
    assert answer.headers["x-content-type-options"] == "nosniff"
