"""Structured logs with a request id, and nothing secret in them."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from typing import Any

import structlog

from .settings import Settings

LONGEST_VALUE = 500
_QUERY = re.compile(r"(https?://[^\s?#]+)[?#][^\s]*")
_DATA_URI = re.compile(r"data:[\w/+.-]*(?:;[\w=-]+)*,[A-Za-z0-9+/=_%-]{32,}")
_KEY = re.compile(r"\b(?:SG|sg)_[A-Za-z0-9]{8,}\b")


def redact(text: str) -> str:
    """Cuts what must not be logged: keys, queries of URLs, the insides of data URIs, and anything very long."""
    text = _DATA_URI.sub(lambda match: f"data:…({len(match.group())} characters)", text)
    text = _KEY.sub("SG_…", _QUERY.sub(r"\1?…", text))
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}… ({len(text)} characters)"


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
    last: list[Any] = (
        [structlog.processors.format_exc_info, _redact_all, structlog.processors.JSONRenderer()]
        if settings.log_format == "json"
        else [_redact_all, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
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
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for noisy in ("uvicorn.access", "httpx2", "httpcore2", "python_multipart", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _redact_all(_: Any, __: str, event: Any) -> Any:
    return {key: redact(value) if isinstance(value, str) else value for key, value in event.items()}
