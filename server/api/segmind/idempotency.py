"""The Idempotency-Key header: what it may be, and what makes two calls under one key the same call.

IETF draft-ietf-httpapi-idempotency-key-header-07, taken widely: any key of 1 to 255 printable ASCII characters.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from typing import Any

from starlette.requests import Request

from server.errors import InvalidInput

from .models import SegmindCall

HEADER = "Idempotency-Key"
MOST_CHARACTERS = 255

HEADER_OPENAPI = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "Any text of your own: the same request sent again under it gives the same job, not a second one.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MOST_CHARACTERS},
}

_KEY = re.compile(rf"[\x20-\x7e]{{1,{MOST_CHARACTERS}}}")


def idempotency_key(request: Request) -> str | None:
    """The request's key, or None without one. Raises InvalidInput for one that cannot be used."""
    keys = request.headers.getlist(HEADER)
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise InvalidInput(
            f"{HEADER} should be one text of 1 to {MOST_CHARACTERS} printable ASCII characters", parameter=HEADER
        )
    return keys[0]


def fingerprint(call: SegmindCall, *, drew_seed: bool) -> str:
    """SHA-256, in hex, of what a call asks for: its parameters as they were understood, pictures by their content.

    drew_seed: the call's seed was drawn at random, so every call that asks for a random one is alike. The address (v1
    or v2) does not count, nor does the price. Pictures count as they were sent: the same one under another URL differs.
    """
    asked = {name: value for name, value in asdict(call).items() if name != "price_micro_usd"}
    if drew_seed:
        asked["seed"] = "random"
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=_content).encode()).hexdigest()


def _content(value: Any) -> str:
    assert isinstance(value, bytes), type(value)
    return f"sha256:{hashlib.sha256(value).hexdigest()}"
