"""Structured logs with a request id, on one line each, and nothing secret in them."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from .settings import Settings

LONGEST_VALUE = 500
LONGEST_TRACEBACK = 8000

_ADDRESS = re.compile(r"(https?://)([^\s?#]*)([?#]?)\S*", re.IGNORECASE)
_DATA_URI = re.compile(r"\bdata:[^\s,]{0,100},[A-Za-z0-9+/=_%-]{32,}", re.IGNORECASE)
_KEY = re.compile(r"\b(?:SG|sg)_[A-Za-z0-9]{8,}\b")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def redact(text: str, keys: tuple[str, ...] = ()) -> str:
    """Cuts what must not be logged: keys, names and queries of URLs, the insides of data URIs, anything very long.

    keys: texts to cut wherever they stand, beside everything that looks like a key.
    """
    text = _without_secrets(text, keys)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}… ({len(text)} characters)"


def _without_secrets(text: str, keys: tuple[str, ...]) -> str:
    text = _DATA_URI.sub(lambda match: f"data:…({len(match.group())} characters)", text)
    text = _KEY.sub("SG_…", _ADDRESS.sub(_address, text))
    for key in keys:
        text = text.replace(key, "SG_…")
    return text


def _address(match: re.Match[str]) -> str:
    scheme, place, query = match.groups()
    return f"{scheme}{place.rpartition('@')[2]}{'?…' if query else ''}"


def printable(text: str) -> str:
    """A text on one line, its control characters written out."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)


def describe_prompt(prompt: str) -> str:
    """A prompt as it may be logged: its length and the beginning of its hash."""
    return f"{len(prompt)} characters, sha256 {hashlib.sha256(prompt.encode('utf-8', 'replace')).hexdigest()[:12]}"


def set_up_logs(settings: Settings) -> None:
    """Everything that is logged, by libraries too, goes to stderr in one form, redacted."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # Plain tracebacks: the console renderer's own would show the variables of every frame.
                structlog.processors.format_exc_info,
                _redactor(settings.api_keys),
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for noisy in ("uvicorn.access", "httpx2", "httpcore2", "python_multipart", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _redactor(keys: tuple[str, ...]) -> Callable[[Any, str, Any], Any]:
    """The processor that cleans every value of an event, however deep."""

    def clean(value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return {str(clean(name)): clean(entry) for name, entry in value.items()}
        if isinstance(value, list | tuple | set):
            return [clean(entry) for entry in value]
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        return printable(redact(text, keys))

    def process(_: Any, __: str, event: Any) -> Any:
        traceback = event.pop("exception", None)
        cleaned = {name: clean(value) for name, value in event.items()}
        if traceback is not None:
            cleaned["exception"] = _without_secrets(str(traceback), keys)[-LONGEST_TRACEBACK:]
        return cleaned

    return process
