"""Every limit at the limit and one beyond it: taken, and refused with the right status."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from proofs.clients import GREY_PNG, depth
from proofs.waiting import until

DUMMY = (str(Path(__file__).parents[1] / "reliability" / "dummy_server.py"),)
BODY_BYTES, PICTURE_BYTES, WAIT_S, QUEUE = 3_000_000, 1_000_000, 2.0, 3

MARKS, FILES, FIELDS, UPLOADS = 100_000, 8, 200, 16
DATA_URI = f"data:image/png;base64,{GREY_PNG}"


@pytest.fixture(scope="module")
def own(run_server: Any) -> Iterator[Any]:
    bounds = {"max_body_bytes": str(BODY_BYTES), "max_picture_bytes": str(PICTURE_BYTES), "wait_limit_s": str(WAIT_S)}
    with run_server(program=DUMMY, **bounds) as running:
        yield running


def flux(server: Any, **body: Any) -> Any:
    return server.post("/v2/flux-dev", json={"prompt": "x", "steps": 1, **body})


def picture(server: Any, width: int, height: int) -> Any:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    return server.post("/v2/flux-depth-dev", json={**depth(), "control_image": text})


def sized_picture(server: Any, size_bytes: int) -> Any:
    """Readers of PNG stop at its end, so the rest of the file is of no matter."""
    data = base64.b64decode(GREY_PNG).ljust(size_bytes, b"\0")
    fields = {"prompt": "x", "megapixels": "match_input", "num_inference_steps": "1"}
    return server.post("/v2/flux-depth-dev", data=fields, files={"control_image": data})


def sized_body(server: Any, size_bytes: int, *, announced: bool) -> Any:
    bare = json.dumps({"prompt": "x", "steps": 1, "ignored": ""}).encode()
    body = bare[:-2] + b"y" * (size_bytes - len(bare)) + bare[-2:]
    content: Any = body if announced else iter([body[:1000], body[1000:]])
    return server.post("/v2/flux-dev", content=content, headers={"content-type": "application/json"})


def marks(server: Any, count: int) -> Any:
    bare = '{"prompt": "x", "steps": 1, "ignored": []}'
    values = ",".join("1" * (count - sum(map(bare.count, ",[{")) + 1))
    content = bare.replace("[]", f"[{values}]")
    assert sum(map(content.count, ",[{")) == count
    return server.post("/v2/flux-dev", content=content.encode(), headers={"content-type": "application/json"})


def form(server: Any, pairs: int, *, files: bool) -> Any:
    """A form of so many text fields, or of its prompt and so many files."""
    if files:
        many = {f"file{number}": b"x" for number in range(pairs)}
        return server.post("/v2/flux-dev", data={"prompt": "x", "steps": "1"}, files=many)
    return server.post("/v2/flux-dev", data={"prompt": "x", "steps": "1", **{f"f{n}": "1" for n in range(pairs - 2)}})


def uploads(server: Any, count: int) -> Any:
    return server.post("/upload-asset", json={"data_urls": [DATA_URI] * count})


LIMITS: dict[str, tuple[Callable[[Any, Any], Any], Any, Any, int]] = {
    "prompt, characters": (lambda server, n: flux(server, prompt="x" * n), 10_000, 10_001, 400),
    "steps": (lambda server, n: flux(server, steps=n), 50, 51, 400),
    "fewest steps": (lambda server, n: flux(server, steps=n), 1, 0, 400),
    "images": (lambda server, n: flux(server, samples=n), 4, 5, 400),
    "guidance": (lambda server, n: flux(server, guidance=n), 10, 10.001, 400),
    "seed": (lambda server, n: flux(server, seed=n), 2**63 - 1, 2**63, 400),
    "picture, pixels": (lambda server, size: picture(server, *size), (4096, 4096), (4097, 4096), 400),
    "picture, side": (lambda server, size: picture(server, *size), (8192, 2048), (8193, 2047), 400),
    "picture, bytes": (sized_picture, PICTURE_BYTES, PICTURE_BYTES + 1, 400),
    "body, bytes": (lambda server, n: sized_body(server, n, announced=True), BODY_BYTES, BODY_BYTES + 1, 413),
    "body in chunks": (lambda server, n: sized_body(server, n, announced=False), BODY_BYTES, BODY_BYTES + 1, 413),
    "values in JSON": (marks, MARKS, MARKS + 1, 400),
    "fields of a form": (lambda server, n: form(server, n, files=False), FIELDS, FIELDS + 1, 400),
    "files of a form": (lambda server, n: form(server, n, files=True), FILES, FILES + 1, 400),
    "uploads at once": (uploads, UPLOADS, UPLOADS + 1, 400),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_held_to_the_last_one(own: Any, name: str) -> None:
    ask, at_limit, beyond, status = LIMITS[name]
    taken, refused = ask(own, at_limit), ask(own, beyond)
    print(f"R21: {name}: {at_limit} is {taken.status_code}, {beyond} is {refused.status_code}")
    assert taken.status_code == 200, taken.text
    assert refused.status_code == status, refused.text
    assert refused.json()["error"]


def test_a_blocking_call_waits_so_long_and_no_longer(own: Any) -> None:
    quick, slow = (own.post("/v1/flux-depth-dev", json=depth(f"[step_s={step_s}]", 10)) for step_s in (0.05, 0.3))
    print(f"R21: waiting at most {WAIT_S} s: a job of 0.5 s is {quick.status_code}, one of 3 s {slow.status_code}")
    assert (quick.status_code, slow.status_code) == (200, 504)
    assert slow.json()["code"] == "timeout"


def test_a_queue_holds_so_many_and_no_more(run_server: Any) -> None:
    with run_server(program=DUMMY, queue_limit=str(QUEUE), drain_limit_s="0") as server:
        server.submit("flux-depth-dev", depth("[step_s=60]"))
        until(lambda: server.get("/health/ready").json()["queued"] == 0, 20, "the worker has taken it")
        replies = [server.post("/v2/flux-depth-dev", json=depth()) for _ in range(QUEUE + 1)]
        server.kill()  # nobody waits for that step
    statuses = [reply.status_code for reply in replies]
    print(f"R21: {QUEUE} may wait: {statuses}")
    assert statuses == [200] * QUEUE + [429]
    assert (replies[-1].json()["code"], int(replies[-1].headers["retry-after"]) > 0) == ("queue_full", True)
