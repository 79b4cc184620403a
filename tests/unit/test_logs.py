"""Logs: one form for everything, and nothing secret in it, wherever in an event it stands."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from server.logs import LONGEST_VALUE, describe_prompt, redact, set_up_logs
from server.settings import Settings

KEY = "SG_0123456789abcdef"
URL = "https://pictures.example/a.png?X-Signature=s3cr3tsignature&user=1"
URI = "data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUgAA" * 40
SECRETS = (KEY, "s3cr3tsignature", "iVBORw0KGgoAAAANSUhEUgAAiVBORw0KGgo")

EVERYTHING = f"key {KEY}, url {URL} and picture {URI}"


@pytest.fixture(autouse=True)
def _put_logging_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level, config = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers, root.level = handlers, level
    structlog.configure(**config)
    structlog.contextvars.clear_contextvars()


@pytest.fixture(params=["text", "json"])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Sets logging up in one of its forms; returns what one action wrote."""

    def write(action: Callable[[Any], Any], **settings: Any) -> str:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        set_up_logs(Settings(log_format=request.param, log_level="debug", **settings))
        action(structlog.get_logger("test"))
        return stream.getvalue()

    return write


def assert_clean(text: str) -> None:
    for secret in SECRETS:
        assert secret not in text


# The text function.


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        f"x-api-key: {KEY}",
        f"Bearer {KEY}.",
        f'{{"key":"{KEY}"}}',
        f"sg_{KEY[3:]}",
        f"({KEY})",
        f"{KEY}\n{KEY}",
        "SG_" + "Ab1" * 40,
    ],
)
def test_keys_are_cut(text: str) -> None:
    cut = redact(text)
    assert KEY[3:] not in cut
    assert "Ab1" not in cut
    assert "SG_…" in cut


@pytest.mark.parametrize(
    "text", ["SG_", "SG_short", "the MSG_0123456789 field", "SGX_0123456789abcdef", "a 640×480 cat"]
)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        (URL, "https://pictures.example/a.png"),
        ("http://h.example?token=s3cr3tsignature", "http://h.example"),
        ("http://h.example/#s3cr3tsignature", "http://h.example/"),
        ("HTTPS://H.EXAMPLE/A.PNG?sig=s3cr3tsignature", "HTTPS://H.EXAMPLE/A.PNG"),
        ("https://user:s3cr3tsignature@h.example/a.png", "h.example/a.png"),
        ("two http://a.example/x?s3cr3tsignature=1 http://b.example/y?s3cr3tsignature=2", "http://b.example/y"),
    ],
)
def test_addresses_lose_what_may_be_secret_in_them(url: str, kept: str) -> None:
    cut = redact(f"fetching {url} failed")
    assert "s3cr3tsignature" not in cut
    assert kept in cut
    assert "failed" in cut


def test_an_address_without_a_query_stays() -> None:
    assert redact("see http://127.0.0.1:8000/health/ready now") == "see http://127.0.0.1:8000/health/ready now"


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;base64,",
        "data:;base64,",
        "data:,",
        "data:image/svg+xml;charset=utf-8,",
        "DATA:image/png;BASE64,",
    ],
)
def test_the_insides_of_data_uris_are_cut(head: str) -> None:
    cut = redact(f"got {head}{'iVBORw0KGgo' * 30} here")
    assert "iVBOR" not in cut
    assert cut.startswith("got data:…")
    assert cut.endswith(" here")


def test_long_values_are_cut_at_the_limit_and_say_how_long_they_were() -> None:
    assert redact("ä" * LONGEST_VALUE) == "ä" * LONGEST_VALUE
    cut = redact("ä" * (LONGEST_VALUE + 1))
    assert cut.startswith("ä" * LONGEST_VALUE + "…")
    assert str(LONGEST_VALUE + 1) in cut
    assert len(cut) < LONGEST_VALUE + 40


def test_a_secret_across_the_cut_does_not_show_its_beginning() -> None:
    assert "SG_0123" not in redact("x " * (LONGEST_VALUE // 2 - 4) + KEY)


@pytest.mark.parametrize(
    "piece", ["http://", "https://a?", "data:", "data:;a", ";a=b", "SG_", "data:image/png;base64,", "=,"]
)
def test_no_text_takes_long_to_redact(piece: str) -> None:
    # Any caller can have its path logged, and it is done between other callers' requests.
    began = time.perf_counter()
    redact(piece * (60_000 // len(piece)))
    assert time.perf_counter() - began < 0.5


def test_a_prompt_is_described_by_length_and_hash() -> None:
    described = describe_prompt("a secret cat")
    assert "12 characters" in described
    assert "secret" not in described
    assert described == describe_prompt("a secret cat") != describe_prompt("a secret dog")
    assert describe_prompt("\ud800")


# Events.


@pytest.mark.parametrize(
    "log_it",
    [
        lambda log: log.info(EVERYTHING),
        lambda log: log.info("fetched", source=EVERYTHING),
        lambda log: log.info("refused", reason=ValueError(EVERYTHING)),
        lambda log: log.info("headers", headers={"x-api-key": KEY, "referer": [URL, {"deeper": URI}]}),
        lambda log: log.info("bytes", body=EVERYTHING.encode()),
        lambda log: log.bind(bound=EVERYTHING).warning("bound"),
        lambda log: logging.getLogger("library").error("a library says %s", EVERYTHING),
        lambda log: logging.getLogger("library").error(EVERYTHING),
    ],
    ids=["event", "value", "exception as value", "nested", "bytes", "bound", "library's arguments", "library's text"],
)
def test_no_secret_is_logged_wherever_it_stands(written: Callable[..., str], log_it: Callable[[Any], Any]) -> None:
    text = written(log_it)
    assert text.strip()
    assert_clean(text)


def test_no_secret_of_the_context_is_logged(written: Callable[..., str]) -> None:
    structlog.contextvars.bind_contextvars(request=EVERYTHING)
    assert_clean(written(lambda log: log.info("hello")))


def fail(log: Callable[..., Any], prompt: str) -> None:
    """Logs an exception with a secret in its text, in its cause, and in the variables around it."""
    headers = {"x-api-key": KEY}
    try:
        try:
            raise KeyError(EVERYTHING)
        except KeyError as error:
            raise RuntimeError(f"while fetching {EVERYTHING} for {len(headers)} headers") from error
    except RuntimeError:
        log("it broke", length=len(prompt))


@pytest.mark.parametrize("library", [False, True], ids=["our own", "a library's"])
def test_no_secret_of_an_exception_is_logged(written: Callable[..., str], library: bool) -> None:
    def log_it(log: Any) -> None:
        own = log.exception
        fail((lambda event, **_: logging.getLogger("library").exception(event)) if library else own, "a secret prompt")

    text = written(log_it)
    assert_clean(text)
    assert "a secret prompt" not in text
    assert "RuntimeError" in text
    assert "KeyError" in text
    assert "test_logs.py" in text


def test_the_end_of_a_long_traceback_is_there(written: Callable[..., str]) -> None:
    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        raise ValueError("the reason at the end")

    def log_it(log: Any) -> None:
        try:
            deep(40)
        except ValueError:
            log.exception("it broke")

    assert "the reason at the end" in written(log_it)


def test_a_configured_key_of_any_form_is_cut(written: Callable[..., str]) -> None:
    text = written(
        lambda log: log.info("odd", got="key correct-horse-battery!"), api_keys=("correct-horse-battery!", KEY)
    )
    assert "correct-horse" not in text


def test_a_callers_text_cannot_forge_a_line(written: Callable[..., str]) -> None:
    forged = "/x\n2026-01-01T00:00:00Z [info     ] all is well\x1b[31m\r"
    for text in (
        written(lambda log: log.info("request refused", path=forged)),
        written(lambda _: logging.getLogger("library").info("refused %s", forged)),
    ):
        assert len(text.splitlines()) == 1
        assert "\x1b[31m" not in text


def test_json_lines_are_json_with_time_level_and_request(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_logs(Settings(log_format="json", log_level="info"))
    structlog.contextvars.bind_contextvars(request="abc")
    structlog.get_logger("test").warning("it happened", count=3, ratio=0.5, none=None, flag=True)
    logging.getLogger("library").info("told by %s", "another")
    structlog.get_logger("test").debug("too quiet")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "it happened",
        "level": "warning",
        "request": "abc",
        "count": 3,
        "ratio": 0.5,
        "none": None,
        "flag": True,
    }
    assert (second["event"], second["level"], second["request"]) == ("told by another", "info", "abc")


def test_access_lines_and_chatty_libraries_are_quiet(written: Callable[..., str]) -> None:
    def log_it(_: Any) -> None:
        for name in ("uvicorn.access", "httpx2", "asyncio"):
            logging.getLogger(name).info("GET /v2/requests/1/status")

    assert written(log_it) == ""
