"""The base of every URL in a reply: where the client itself would say that this server is."""

from __future__ import annotations

from starlette.requests import Request

from server.guard import client_is_trusted
from server.settings import Settings


def public_base(request: Request, settings: Settings) -> str:
    """Scheme, host and prefix without a trailing slash.

    `public_url` when it is set; else X-Forwarded-Proto, -Host and -Prefix when the peer is a trusted proxy; else the
    request's own Host header.
    """
    if settings.public_url:
        return settings.public_url
    scheme, host, prefix = str(request.scope["scheme"]), request.headers.get("host") or _own_address(request), ""
    if client_is_trusted(request, settings.trusted_proxies):
        scheme = _first(request.headers.get("x-forwarded-proto")) or scheme
        host = _first(request.headers.get("x-forwarded-host")) or host
        prefix = (_first(request.headers.get("x-forwarded-prefix")) or "").strip("/")
    return f"{scheme}://{host}/{prefix}".rstrip("/")


def _first(value: str | None) -> str | None:
    return value.split(",")[0].strip() if value else None


def _own_address(request: Request) -> str:
    host, port = request.scope.get("server") or ("127.0.0.1", 80)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
