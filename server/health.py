"""Is the process alive; can it draw."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from .api import description
from .errors import Forbidden
from .services import Services, services_of
from .worker.supervisor import WorkerState

router = APIRouter(prefix="/health", tags=["health"])


@with_config(ConfigDict(extra="forbid"))
class Live(TypedDict):
    status: Literal["live"]


@with_config(ConfigDict(extra="forbid"))
class Health(TypedDict):
    """`detail` says why it is not ready; what only a ready worker knows is null until then."""

    status: Literal["ready", "not ready"]
    worker: WorkerState
    models: list[str]
    device: str | None
    memory_plan: str | None
    tiers: list[str]
    safety_checker: bool | None
    queued: int
    demo_weights: bool
    problems: list[str]
    detail: str | None


@router.get(
    "/live",
    summary="The process answers",
    responses={**description.success(Live), **description.errors(Forbidden)},
)
async def live() -> dict[str, str]:
    return {"status": "live"}


@router.get(
    "/ready",
    summary="A worker has loaded the models and drawn a small picture",
    responses={
        **description.success(Health),
        **description.errors(Forbidden),
        503: {"model": Health, "description": "Not yet, or not any more; `detail` says why"},
    },
)
async def ready(request: Request) -> JSONResponse:
    services = services_of(request)
    worker = services.worker
    greeting = worker.greeting
    is_ready = services.ready
    body: Health = {
        "status": "ready" if is_ready else "not ready",
        "worker": worker.state,
        "models": list(services.models),
        "device": greeting.device if greeting and is_ready else None,
        "memory_plan": worker.plan if greeting and is_ready else None,
        "tiers": greeting.tiers if greeting and is_ready else [],
        "safety_checker": greeting.safety_checker if greeting and is_ready else None,
        "queued": services.jobs.count_queued(),
        "demo_weights": services.demo,
        "problems": list(services.weights.problems),
        "detail": None if is_ready else _why_not(services),
    }
    return JSONResponse(body, 200 if is_ready else 503)


def _why_not(services: Services) -> str:
    if not services.jobs.accepting:
        return "the server is shutting down"
    worker = services.worker
    return worker.alarm or worker.last_words or worker.doing or "the models are loading"
