"""Is the process alive; can it draw."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from .services import Services, services_of

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live", summary="The process answers")
async def live() -> dict[str, str]:
    return {"status": "live"}


@router.get(
    "/ready",
    summary="A worker has loaded the models and drawn a small picture",
    responses={503: {"description": "Not yet, or not any more; `detail` says why"}},
)
async def ready(request: Request) -> JSONResponse:
    services = services_of(request)
    worker = services.worker
    greeting = worker.greeting
    is_ready = services.ready
    body: dict[str, Any] = {
        "status": "ready" if is_ready else "not ready",
        "worker": worker.state.value,
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
