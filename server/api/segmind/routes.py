"""Segmind's v1 and v2 endpoints for the FLUX.1 models, and the small ones around them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from server.accounts import MICRO
from server.api import description
from server.api.public_url import public_base
from server.errors import (
    Conflict,
    Forbidden,
    InsufficientCredits,
    InvalidInput,
    NotFound,
    Unauthorized,
    Unavailable,
    WaitTimeout,
    job_error,
)
from server.jobs.model import Job, State
from server.media.results import MEDIA_TYPES
from server.services import Services, caller_of, services_of

from . import replies, reply_types
from .accept import wants_image
from .body import read_body
from .catalogue import model_information_list, request_body_openapi
from .idempotency import HEADER_OPENAPI
from .intake import accept, check_disk, take_picture
from .models import MODELS, SegmindCall

MOST_UPLOADS = 16

PICTURES = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in sorted(set(MEDIA_TYPES.values()))}
RESPONSES = {
    "v1": {
        **description.success(reply_types.Drawn, "The picture, as JSON or as its bytes", content=PICTURES),
        **description.errors(*description.WAITING),
    },
    "v2": {
        **description.success(
            reply_types.Submitted, "Accepted and on disk", links=description.follow_ups("v2_status", "v2_result")
        ),
        **description.errors(*description.SUBMITTING),
        402: {
            "model": reply_types.ErrorBody,
            "description": "Insufficient credits, where FLUX_NO_CREDITS_STATUS_V2=402.",
        },
    },
    "status": {
        **description.success(reply_types.STATUS, "Its state"),
        **description.errors(*description.READING),
        422: {"model": reply_types.FailedJob, "description": "It failed or was cancelled."},
    },
    "result": {
        **description.success(reply_types.RESULT, "Its result; its state until there is one"),
        **description.errors(*description.READING),
        422: {"model": reply_types.FailedJob, "description": "It failed or was cancelled."},
    },
}
"""What the operations answer, for the API's description."""

router = APIRouter(tags=["segmind"])


async def run_blocking(request: Request, slug: str) -> Response:
    """v1: answered when the picture is there. Hanging up cancels the job, unless it has an idempotency key."""
    services = services_of(request)
    job, call = await accept(request, services, slug, waits=True)
    job = await _wait_or_cancel(request, services, job)
    if job.state is State.CANCELLED and services.jobs.accepting:
        raise Conflict(replies.CANCELLED_TEXT)
    if job.state is State.CANCELLED:
        raise Unavailable("The request was cancelled, as the server is shutting down.", retry_after_s=10)
    if job.state is State.FAILED:
        raise job_error(job.error_code or "", replies.error_text(job))
    return await _success(request, services, job, call)


async def submit(request: Request, slug: str) -> Response:
    """v2: accepts the call and says where to ask for it."""
    services = services_of(request)
    try:
        job, _ = await accept(request, services, slug, waits=False)
    except InsufficientCredits as error:
        error.http_status = services.settings.no_credits_status_v2
        raise
    return JSONResponse(replies.submit_body(job, public_base(request, services.settings)))


def _bind(handler: Callable[[Request, str], Awaitable[Response]], slug: str) -> Callable[..., Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await handler(request, slug)

    return endpoint


for _slug, _model in MODELS.items():
    for _version, _handler in (("v1", run_blocking), ("v2", submit)):
        router.add_api_route(
            f"/{_version}/{_slug}",
            _bind(_handler, _slug),
            methods=["POST"],
            name=f"{_version} {_slug}",
            operation_id=f"{_version}_{_slug.replace('-', '_')}",
            summary=f"{_model.title} ({'blocking' if _version == 'v1' else 'submit'})",
            description=_model.description,
            responses=RESPONSES[_version],
            openapi_extra={"requestBody": request_body_openapi(_slug), "parameters": [HEADER_OPENAPI]},
        )


@router.get(
    "/v2/requests/{request_id}/status",
    operation_id="v2_status",
    summary="State of a v2 request; 422 when it FAILED",
    responses=RESPONSES["status"],
)
async def status(request: Request, request_id: str) -> Response:
    services = services_of(request)
    job = _find(request, services, request_id)
    base, balance = public_base(request, services.settings), _balance(request, services)
    body = replies.status_body(job, base, balance, services.jobs.progress(job.id))
    return JSONResponse(body, replies.status_code(job))


@router.get(
    "/v2/requests/{request_id}",
    operation_id="v2_result",
    summary="Result of a v2 request; its state until there is one",
    responses=RESPONSES["result"],
)
async def result(request: Request, request_id: str) -> Response:
    services = services_of(request)
    return _result(request, services, _find(request, services, request_id))


@router.get(
    "/v1/requests/{request_id}",
    operation_id="v1_result",
    summary="The same, under its older address",
    responses=RESPONSES["result"],
)
async def legacy_result(request: Request, request_id: str) -> Response:
    services = services_of(request)
    missing = f"Output for this request ID {request_id[:100]} Not Found"
    return _result(request, services, _find(request, services, request_id, missing))


@router.get(
    "/v1/get-user-credits",
    summary="Balance of the caller in USD",
    responses={
        **description.success(reply_types.Credits),
        **description.errors(Unauthorized, Forbidden, Unavailable),
    },
)
async def credits(request: Request) -> dict[str, float]:
    return {"credits": _balance(request, services_of(request)) / MICRO, "free-credits": 0.0}


@router.post(
    "/upload-asset",
    summary="Keep pictures, given as data URIs or multipart files, and get URLs to pass as control_image",
    responses={**description.success(reply_types.Uploaded), **description.errors(*description.UPLOADING)},
    openapi_extra={
        "requestBody": {
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": {"data_urls": {"type": "array", "items": {"type": "string"}}},
                        "required": ["data_urls"],
                    }
                },
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
                },
            }
        }
    },
)
async def upload_asset(request: Request) -> dict[str, Any]:
    services = services_of(request)
    services.rates.take(caller_of(request).id)
    check_disk(services)
    body = await read_body(request, max_bytes=services.settings.max_body_bytes)
    base = public_base(request, services.settings)
    urls = []
    for value in _uploads(body):
        data, info = await take_picture(request, services, value, "data_urls")
        urls.append(f"{base}/files/{await services.results.keep_upload(data, info.format)}")
    return {"file_urls": urls, "message": "Files uploaded successfully"}


@router.get(
    "/inference-model-information/list",
    summary="The models of this server and their parameters",
    responses={**description.success(reply_types.ModelList), **description.errors(Forbidden)},
)
async def models(request: Request) -> dict[str, Any]:
    present = services_of(request).models
    return model_information_list(slug for slug, model in MODELS.items() if model.engine_model in present)


def _uploads(body: dict[str, Any]) -> list[str | bytes]:
    """The pictures of an upload: `data_urls` of a JSON body, else every file of a form."""
    listed = body.get("data_urls", [value for value in body.values() if isinstance(value, bytes)])
    values = [listed] if isinstance(listed, str) else listed
    if not isinstance(values, list) or not values or not all(isinstance(value, str | bytes) for value in values):
        raise InvalidInput(
            "data_urls should be a list of data URIs (data:image/png;base64,…); or send multipart files",
            parameter="data_urls",
        )
    if len(values) > MOST_UPLOADS:
        raise InvalidInput(f"data_urls should hold at most {MOST_UPLOADS} pictures; got {len(values)}")
    return values


async def _wait_or_cancel(request: Request, services: Services, job: Job) -> Job:
    """The final job. An attached one is cancelled when its caller hangs up, or waits longer than a call may."""
    limit_s = services.settings.wait_limit_s
    waiting = asyncio.ensure_future(services.jobs.wait(job, limit_s))
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            await _hung_up(services, job)
        return await waiting
    except TimeoutError:
        if not job.attached:
            raise WaitTimeout(
                f"The picture was not ready within {limit_s:g} s; ask again with the same Idempotency-Key."
            ) from None
        await services.jobs.cancel(job)
        raise WaitTimeout(
            f"The picture was not ready within {limit_s:g} s and was cancelled; submit it to /v2 and poll instead."
        ) from None
    finally:
        leaving.cancel()
        waiting.cancel()


async def _hung_up(services: Services, job: Job) -> None:
    """Cancels a job that nobody can ask for again. One with an idempotency key goes on; only its reply is given up."""
    if not job.attached:
        raise ClientDisconnect
    await services.jobs.cancel(job)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _success(request: Request, services: Services, job: Job, call: SegmindCall) -> Response:
    assert job.result is not None
    base, balance = public_base(request, services.settings), _balance(request, services)
    demo = services.demo
    rate_full_in_s = services.rates.full_in_s(caller_of(request).id)
    head = replies.headers(job, base, balance, demo=demo, rate_full_in_s=rate_full_in_s)
    if _wants_bytes(request, services, call):
        first = job.result.images[0]
        return Response(await _read(services, first.file), headers=head, media_type=MEDIA_TYPES[first.format])
    encoded = [base64.b64encode(await _read(services, image.file)).decode() for image in job.result.images]
    return JSONResponse(replies.json_body(job, base, balance, encoded, demo=demo), headers=head)


def _wants_bytes(request: Request, services: Services, call: SegmindCall) -> bool:
    if call.wants_base64:
        return False
    by_default = services.settings.flux_dev_reply if call.slug == "flux-dev" else MODELS[call.slug].v1_reply
    return by_default == "image" or wants_image(request.headers.get("accept"))


async def _read(services: Services, name: str) -> bytes:
    path = services.results.find(name)
    if path is None:
        raise NotFound(f"The file {name} of this request is gone from the server's disk.")
    return await asyncio.to_thread(path.read_bytes)


def _result(request: Request, services: Services, job: Job) -> Response:
    base, balance = public_base(request, services.settings), _balance(request, services)
    body = replies.result_body(job, base, balance, demo=services.demo)
    return JSONResponse(body, replies.status_code(job))


def _find(request: Request, services: Services, request_id: str, missing: str | None = None) -> Job:
    job = services.jobs.get(request_id, caller_of(request).id)
    if job is None:
        raise NotFound(missing or f"Request {request_id[:100]} not found")
    return job


def _balance(request: Request, services: Services) -> int:
    caller = caller_of(request)
    return services.accounts.balance_micro_usd(caller, services.jobs.spent_micro_usd(caller.id))
