"""The engine as LitServe's own pages would have it: one API class, one worker process. Needs the `bench` extra."""

# Without postponed annotations: LitServe reads decode_request's to know how to take the body.
from pathlib import Path
from typing import Any

import litserve
from fastapi import Request, Response

from benchmarks.bare import BareEngine, media_type

PATH = "/v1/draw"


class Drawing(litserve.LitAPI):  # type: ignore[misc]
    """A module-level class: LitServe pickles it into its worker."""

    def __init__(self, weights: Path) -> None:
        super().__init__(api_path=PATH)
        self._weights = weights

    def setup(self, device: str) -> None:
        self._engine = BareEngine(self._weights)

    def decode_request(self, request: Request) -> Any:
        """Is annotated with the type that takes any JSON, and given what it parsed to."""
        return request

    def predict(self, body: dict[str, Any]) -> tuple[str, bytes]:
        slug = "flux-depth-dev" if "control_image" in body else "flux-dev"
        return slug, self._engine.draw_body(slug, body)

    def encode_response(self, drawn: tuple[str, bytes]) -> Response:
        return Response(drawn[1], media_type=media_type(drawn[0]))


def serve(weights: Path, port: int) -> None:
    server = litserve.LitServer(Drawing(weights), accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
