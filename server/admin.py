"""The operator's door: who can read a secret file in the data folder may act on every caller's jobs.

The file is there while the server runs, readable by its user alone, and new at each start. The door opens only to
programs on the same machine.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import Scope

from .settings import is_loopback

PREFIX = "/admin/"
HEADER = "x-admin-token"
FILE_NAME = "admin.json"


@dataclass(frozen=True, slots=True)
class Pass:
    """What the file says: where the server listens, and the word that opens its door."""

    url: str
    token: str


class AdminDoor:
    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE_NAME
        self._token: str | None = None

    def open(self, host: str, port: int) -> None:
        """Lets programs in from now on. host, port: where the server listens; every address counts as loopback."""
        self._token = secrets.token_hex(32)
        reachable = _reachable(host)
        url = f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}"
        self._path.unlink(missing_ok=True)
        with os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"url": url, "token": self._token}, file)

    def close(self) -> None:
        self._token = None
        self._path.unlink(missing_ok=True)

    def admits(self, headers: Headers, scope: Scope) -> bool:
        """True for a request from this machine that carries the token. Never raises, whatever the header holds."""
        given = headers.get(HEADER, "").encode("utf-8", "surrogateescape")
        right = self._token is not None and hmac.compare_digest(given, self._token.encode())
        return right and _from_here(scope)


def read_pass(data_dir: Path) -> Pass | None:
    """The running server's pass; None when no server runs on this folder, or it has no door."""
    try:
        found = json.loads((data_dir / FILE_NAME).read_text("utf-8"))
        return Pass(str(found["url"]), str(found["token"]))
    except FileNotFoundError:
        return None


def _reachable(host: str) -> str:
    """A server that listens everywhere is reached at loopback."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _from_here(scope: Scope) -> bool:
    client, server = scope.get("client"), scope.get("server")
    if not client:
        return False
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return is_loopback(str(address)) or bool(server and client[0] == server[0])
