"""Every exception that leaves a route, as an HTTP reply in the dialect's error body."""

from __future__ import annotations

import errno
import sqlite3

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server.errors import (
    InsufficientStorage,
    InvalidInput,
    MethodNotAllowed,
    NotFound,
    RequestTimeout,
    ServerError,
    Unavailable,
)

from .segmind.models import MODELS
from .segmind.replies import error_body

log = structlog.get_logger(__name__)


def install(app: FastAPI) -> None:
    """Errors of these kinds are answered where they leave a route; the guard answers every other."""
    for kind in (ServerError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, refuse)


async def refuse(request: Request, error: Exception) -> Response:
    """The reply to a failed request. Nothing of an unexpected error's text leaves the server; the log has it."""
    failure = _as_server_error(request, error)
    if app := request.scope.get("app"):
        app.state.metrics.rejected(failure.code)
    _log(request, failure, error)
    body = error_body(failure.message, _details(request, failure))
    return JSONResponse(body, failure.http_status, _headers(failure, error))


def _log(request: Request, failure: ServerError, error: Exception) -> None:
    told = {"path": request.url.path, "status": failure.http_status, "code": failure.code}
    if failure.http_status >= 500 and not isinstance(error, ServerError):
        log.error("request failed", **told, exc_info=error)
    elif failure.http_status >= 500:  # raised on purpose: the message says it all
        log.warning("request failed", **told, reason=failure.message)
    elif isinstance(failure, InvalidInput):  # its text repeats what the client sent, which may be a prompt gone astray
        log.info("request refused", **told, parameter=failure.parameter)
    else:
        log.info("request refused", **told, reason=failure.message)


def _as_server_error(request: Request, error: Exception) -> ServerError:
    if isinstance(error, ServerError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InsufficientStorage(retry_after_s=60)
    if isinstance(error, sqlite3.OperationalError):
        return Unavailable("The server's job database cannot be read at the moment. Try again.", retry_after_s=10)
    if isinstance(error, ClientDisconnect):
        return RequestTimeout("The connection was closed before the whole body had come.")
    if isinstance(error, HTTPException) and error.status_code == 404:
        return NotFound(f"Model or endpoint not found: {request.url.path[:200]}. Models: {', '.join(MODELS)}.")
    if isinstance(error, HTTPException) and error.status_code == 405:
        return MethodNotAllowed(f"{request.method} is not allowed on {request.url.path[:200]}.")
    if isinstance(error, HTTPException | RequestValidationError):
        return InvalidInput(str(getattr(error, "detail", "The request cannot be read.")))
    return ServerError()


def _details(request: Request, failure: ServerError) -> dict[str, str]:
    details = {"code": failure.code}
    if isinstance(failure, InvalidInput) and failure.parameter:
        details["parameter"] = failure.parameter
    if failure.http_status >= 500:
        details["incident"] = request.scope.get("state", {}).get("request_id", "")
    return details


def _headers(failure: ServerError, error: Exception) -> dict[str, str]:
    headers = dict(getattr(error, "headers", None) or {})
    if failure.retry_after_s is not None:
        headers["retry-after"] = str(failure.retry_after_s)
    if isinstance(failure, RequestTimeout):
        headers["connection"] = "close"
    return headers
