"""What the API's description says beyond the routes: errors by status, keys, how requests follow each other."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from server.errors import (
    Conflict,
    Forbidden,
    InsufficientCredits,
    InsufficientStorage,
    InvalidInput,
    KeyReused,
    ModelFailed,
    NotFound,
    PayloadTooLarge,
    RequestTimeout,
    ServerError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    WaitTimeout,
    WorkerCrashed,
)
from server.guard import is_public

from .segmind.reply_types import ErrorBody

Responses = dict[int | str, dict[str, Any]]

READING = (Unauthorized, Forbidden, NotFound, Unavailable)
BODY = (InvalidInput, RequestTimeout, PayloadTooLarge)
SUBMITTING = (*READING, *BODY, InsufficientCredits, KeyReused, TooManyRequests, InsufficientStorage)
WAITING = (*SUBMITTING, Conflict, ModelFailed, WorkerCrashed, WaitTimeout)
UPLOADING = (Unauthorized, Forbidden, Unavailable, *BODY, TooManyRequests, InsufficientStorage)

SECURITY = {
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "bearer": {"type": "http", "scheme": "bearer", "description": "The same key; off with FLUX_ALLOW_BEARER=false."},
}


def errors(*kinds: type[ServerError]) -> Responses:
    """The refusals of an operation, each status with the text of its error."""
    return {
        kind.http_status: {"model": ErrorBody, "description": (kind.__doc__ or "").strip()}
        for kind in sorted(kinds, key=lambda kind: kind.http_status)
    }


def success(model: Any, text: str = "", **more: Any) -> Responses:
    """more: what else OpenAPI has for a response, such as `content` of other kinds or `links`."""
    return {HTTPStatus.OK.value: {"model": model, "description": text or "OK", **more}}


def follow_ups(*operation_ids: str) -> dict[str, Any]:
    """OpenAPI links from a submission's answer to the operations that take its id."""
    return {
        name: {"operationId": name, "parameters": {"request_id": "$response.body#/request_id"}}
        for name in operation_ids
    }


def complete(app: FastAPI) -> None:
    """Makes the description say which operations want a key, by the guard's own rule, and drops FastAPI's own 422.

    That one stands for values of the wrong type in a path, of which this API has none.
    """
    bare: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        described = bare()
        described["components"]["securitySchemes"] = SECURITY
        for name in ("HTTPValidationError", "ValidationError"):
            described["components"]["schemas"].pop(name, None)
        for path, operations in described["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if is_public(path) else [{name: []} for name in SECURITY]
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
        return described

    app.openapi = openapi  # type: ignore[method-assign]
