"""Published pictures, by their unguessable names. No key: clients download results without one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from server.api import description
from server.errors import Forbidden, NotFound
from server.media.results import MEDIA_TYPES
from server.services import services_of

router = APIRouter(prefix="/files", tags=["files"])

PICTURES = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in sorted(set(MEDIA_TYPES.values()))}
RANGES: description.Responses = {
    400: {"description": "The Range header cannot be read", "content": {"text/plain": {}}},
    206: {"description": "The part that a Range header asks for", "content": {**PICTURES, "multipart/byteranges": {}}},
    304: {"description": "Not changed since the condition that was sent"},
    416: {"description": "The Range header asks for what is not there", "content": {"text/plain": {}}},
}


@router.head("/{name}", include_in_schema=False)
@router.get(
    "/{name}",
    summary="A generated or uploaded picture",
    response_class=Response,
    responses={
        200: {"description": "The picture", "content": PICTURES},
        **RANGES,
        **description.errors(Forbidden, NotFound),
    },
)
async def file(request: Request, name: str) -> Response:
    path = services_of(request).results.find(name)
    if path is None:
        raise NotFound("File not found; generated and uploaded files are kept for a limited time.")
    return FileResponse(
        path,
        media_type=MEDIA_TYPES[path.suffix[1:]],
        headers={"cache-control": "private, max-age=31536000, immutable", "access-control-allow-origin": "*"},
    )
