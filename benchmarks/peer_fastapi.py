"""The engine behind plain FastAPI: one process, the engine in a thread, a lock so that it has one call at a time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Body, FastAPI, Response

from benchmarks.bare import BareEngine, media_type


def serve(weights: Path, port: int) -> None:
    app = create_app(BareEngine(weights))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def create_app(engine: BareEngine) -> FastAPI:
    app, lock = FastAPI(), asyncio.Lock()

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/v1/{slug}")
    async def draw(slug: str, body: dict[str, Any] = Body()) -> Response:  # noqa: B008
        async with lock:
            data = await asyncio.to_thread(engine.draw_body, slug, body)
        return Response(data, media_type=media_type(slug))

    return app
