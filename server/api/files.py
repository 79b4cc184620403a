"""Published pictures, by their unguessable names. No key: clients download results without one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from server.errors import NotFound
from server.media.results import MEDIA_TYPES
from server.services import services_of

router = APIRouter(prefix="/files", tags=["files"])


@router.head("/{name}", include_in_schema=False)
@router.get("/{name}", summary="A generated or uploaded picture")
async def file(request: Request, name: str) -> Response:
    path = services_of(request).results.find(name)
    if path is None:
        raise NotFound("File not found; generated and uploaded files are kept for a limited time.")
    return FileResponse(
        path,
        media_type=MEDIA_TYPES[path.suffix[1:]],
        headers={"cache-control": "private, max-age=31536000, immutable", "access-control-allow-origin": "*"},
    )
