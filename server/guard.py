"""The door: what every request passes before any route sees it.

Order matters. A caller without a valid key learns nothing but that: 401 comes before 404, 405 and validation.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import uuid
from collections.abc import Awaitable, Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .accounts import Accounts
from .admin import PREFIX, AdminDoor
from .errors import Forbidden, RequestTimeout
from .settings import is_loopback

PUBLIC_PREFIXES = ("/health/", "/files/")
PUBLIC_PATHS = frozenset({"/", "/openapi.json", "/inference-model-information/list"})

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::\d*)?")
_ORIGIN = re.compile(rf"https?://{_HOST.pattern}")


class Guard:
    """ASGI middleware: request id, key, address spelling, body deadline, security headers."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        accounts: Accounts,
        body_limit_s: float,
        refuse: Callable[[Request, Exception], Awaitable[Response]],
        admin: AdminDoor | None = None,
    ) -> None:
        self._app, self._accounts, self._refuse, self._admin = app, accounts, refuse, admin
        self._body_limit_s = body_limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = str(uuid.uuid4())
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request=request_id)
        scope.setdefault("state", {})["request_id"] = request_id
        scope["path"] = _one_spelling(scope["path"])
        reply = _Reply(send, request_id)
        try:
            self._admit(scope)
            await self._app(scope, _Deadline(receive, self._body_limit_s).receive, reply.send)
        except Exception as error:
            if reply.begun:
                raise
            response = await self._refuse(Request(scope), error)
            await response(scope, receive, reply.send)

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._accounts.open:
            _refuse_strangers(headers)
        if self._admin and scope["path"].startswith(PREFIX) and self._admin.admits(headers, scope):
            scope["state"]["admin"] = True
        elif not is_public(scope["path"]):
            caller = self._accounts.identify(headers.get("x-api-key"), headers.get("authorization"))
            scope["state"]["caller"] = caller


def is_public(path: str) -> bool:
    """True for what needs no key: health, published files, the model list, the API's own description."""
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIXES)


def _refuse_strangers(headers: Headers) -> None:
    """A server without keys is for this machine's own programs: not for web pages of others that a browser here shows.

    A page can send requests to 127.0.0.1, and by DNS rebinding even under its own name; both show in these headers.
    """
    for name, form in (("host", _HOST), ("origin", _ORIGIN)):
        value = headers.get(name)
        if value and not is_loopback(_host_in(value, form)):
            raise Forbidden(
                f"This server has no API keys set, so it answers programs on its own machine only; {name} was"
                f" {value[:100]!r}. Set FLUX_API_KEYS to use it under other names."
            )


def _host_in(value: str, form: re.Pattern[str]) -> str:
    found = form.fullmatch(value.strip())
    return found.group("host").strip("[]").lower() if found else ""


def _one_spelling(path: str) -> str:
    """Without trailing slashes: a redirect there would break clients that do not follow it."""
    return path.rstrip("/") or "/"


class _Reply:
    """Adds the headers that every reply has, and knows whether it has begun."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._headers = send, {"x-request-id": request_id, **SECURITY_HEADERS}
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(scope=message)
            for name, value in self._headers.items():
                headers.setdefault(name, value)
        await self._send(message)


class _Deadline:
    """Gives up on a body that arrives too slowly. After the body, waiting for the disconnect has no limit."""

    def __init__(self, receive: Receive, limit_s: float) -> None:
        self._receive = receive
        self._until = asyncio.get_running_loop().time() + limit_s
        self._limit_s = limit_s
        self._complete = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout(f"The request's body did not arrive within {self._limit_s:g} s.") from None
        self._complete = not message.get("more_body", False)
        return message


def client_is_trusted(request: Request, networks: tuple[str, ...]) -> bool:
    """True when the request's peer is one of the proxies whose forwarding headers are believed."""
    if request.client is None:
        return False
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    # An IPv4 peer of a socket that takes both kinds.
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in ipaddress.ip_network(network, strict=False) for network in networks)
