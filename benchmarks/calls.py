"""The calls that servers are measured with: the body that every side gets, and what it means to the engine."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

SEED = 46588
PROMPT = "a red fox in snow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """body: as Segmind's API takes it. fields: of the GenerationRequest that means the same, except its picture."""

    name: str
    slug: str
    body: dict[str, Any]
    fields: dict[str, Any]

    @property
    def json(self) -> bytes:
        return json.dumps(self.body).encode()


def dev_call(steps: int = 4) -> Call:
    body = {"prompt": PROMPT, "steps": steps, "aspect_ratio": "1:1", "guidance": 3.0, "seed": SEED}
    fields = {"steps": steps, "width": 1024, "height": 1024, "guidance": 3.0, "output_format": "webp"}
    name = f"flux-dev 1024×1024, {steps} steps, JSON in, WebP out"
    return Call(name=name, slug="flux-dev", body=body, fields={"model": "flux-dev", **_common(), **fields})


def depth_call(steps: int = 4) -> Call:
    picture = base64.b64encode(photo()).decode()
    body = {"prompt": PROMPT, "num_inference_steps": steps, "megapixels": "0.25", "guidance": 10.0, "seed": SEED}
    fields = {"steps": steps, "width": 608, "height": 416, "guidance": 10.0, "output_format": "jpg"}
    name = f"flux-depth-dev 608×416, {steps} steps, photo in, JPEG out"
    return Call(
        name=name,
        slug="flux-depth-dev",
        body={**body, "control_image": picture},
        fields={"model": "flux-depth-dev", **_common(), **fields},
    )


@cache
def photo() -> bytes:
    """A real photograph, 600×400, as JPEG."""
    from PIL import Image
    from skimage import data

    buffer = io.BytesIO()
    Image.fromarray(data.coffee()).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _common() -> dict[str, Any]:
    return {"prompt": PROMPT, "seed": SEED, "output_quality": 80}
