"""What a monitoring system scrapes. The same keys as everywhere open it."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.api import description
from server.errors import Forbidden, Unauthorized, Unavailable
from server.metrics import Moment
from server.services import Services, services_of

router = APIRouter(tags=["operations"])


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Prometheus' text form", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **description.errors(Unauthorized, Forbidden, Unavailable),
    },
)
async def metrics(request: Request) -> Response:
    services = services_of(request)
    disk_bytes = await asyncio.to_thread(services.disk_bytes)
    return Response(services.metrics.render(_moment(services, disk_bytes)), media_type=CONTENT_TYPE_LATEST)


def _moment(services: Services, disk_bytes: dict[str, int]) -> Moment:
    return Moment(
        jobs=services.jobs.counts(),
        worker=services.worker.state,
        ready=services.ready,
        alarm=bool(services.worker.alarm),
        restarts=services.worker.restarts,
        disk_bytes=disk_bytes,
        free_bytes=services.results.free_bytes(),
    )
