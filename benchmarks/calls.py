"""The calls that servers are measured with: the body that every side gets, and what it means to the engine."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

SEED = 46588
PROMPT = "a red fox in snow"

Megapixels = Literal["0.25", "1"]
DEPTH_SIZES: dict[Megapixels, tuple[int, int]] = {"0.25": (608, 416), "1": (1248, 832)}
"""What the photo's shape gives."""


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


def depth_call(steps: int = 4, megapixels: Megapixels = "0.25") -> Call:
    picture = base64.b64encode(photo()).decode()
    width, height = DEPTH_SIZES[megapixels]
    body = {"prompt": PROMPT, "num_inference_steps": steps, "megapixels": megapixels, "guidance": 10.0, "seed": SEED}
    fields = {"steps": steps, "width": width, "height": height, "guidance": 10.0, "output_format": "jpg"}
    name = f"flux-depth-dev {width}×{height}, {steps} steps, photo in, JPEG out"
    return Call(
        name=name,
        slug="flux-depth-dev",
        body={**body, "control_image": picture},
        fields={"model": "flux-depth-dev", **_common(), **fields},
    )


def variant(call: Call, number: int) -> Call:
    """The same work with another prompt and, where there is one, another photo, for which no cache has anything."""
    body = call.body | {"prompt": f"{PROMPT}, number {number}"}
    if "control_image" in body:
        body["control_image"] = base64.b64encode(photo(number)).decode()
    return replace(call, body=body, fields=call.fields | {"prompt": body["prompt"]})


@cache
def photo(number: int = 0) -> bytes:
    """A real photograph, 600×400, as JPEG. number: of the rows that are moved from its top to its bottom."""
    import numpy as np
    from PIL import Image
    from skimage import data

    buffer = io.BytesIO()
    Image.fromarray(np.roll(data.coffee(), -number, axis=0)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _common() -> dict[str, Any]:
    return {"prompt": PROMPT, "seed": SEED, "output_quality": 80}
