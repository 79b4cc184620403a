"""Idempotency-Key: however often, and however fast, the same request comes, it is one job."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

KEY, OTHER_KEY = "SG_0123456789abcdef", "SG_fedcba9876543210"
RANDOM = {"prompt": "x", "steps": 1, "seed": -1}
SLOW = {"prompt": "x", "steps": 40}
SMALL = {"megapixels": "match_input", "num_inference_steps": "1"}


def until(condition: Callable[[], Any], limit_s: float, what: str) -> Any:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {limit_s} s")


@pytest.fixture(scope="module")
def own(run_server: Any) -> Iterator[Any]:
    with run_server(dummy=True, api_keys=f"{KEY},{OTHER_KEY}", drain_limit_s="0") as running:
        yield running


def post(server: Any, name: str, body: dict[str, Any], version: str = "v2", **options: Any) -> Any:
    return server.post(f"/{version}/flux-dev", json=body, headers={"idempotency-key": name}, **options)


def queued_and_running(server: Any) -> int:
    ready = server.get("/health/ready").json()
    return int(ready["queued"]) + (ready["worker"] == "busy")


def test_fifty_at_once_are_one_job_also_after_a_restart(own: Any) -> None:
    with ThreadPoolExecutor(50) as callers:
        replies = list(callers.map(lambda _: post(own, "fifty", RANDOM), range(50)))
    assert {reply.status_code for reply in replies} == {200}
    ids = {reply.json()["request_id"] for reply in replies}
    assert len(ids) == 1
    assert len({json.dumps(reply.json()) for reply in replies}) == 1
    other = post(own, "fifty", {**RANDOM, "prompt": "y"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert "Idempotency-Key" in other.json()["error"]
    seed = own.finish(ids.copy().pop())["seed"]
    own.kill()
    own.start()
    again = post(own, "fifty", RANDOM)
    assert {again.json()["request_id"]} == ids
    assert own.finish(again.json()["request_id"])["seed"] == seed
    assert post(own, "fifty", {**RANDOM, "prompt": "y"}).status_code == 422
    started = set(re.findall(r"job started.*?job=(\S+)", own.log()))
    print(f"50 posts at once, then one after a kill: {len(ids)} id, {len(started)} job started")
    assert started == ids


def test_a_key_belongs_to_its_caller(own: Any) -> None:
    ids = [post(own, "shared", RANDOM, key=key).json()["request_id"] for key in (KEY, OTHER_KEY, KEY, OTHER_KEY)]
    assert ids[:2] == ids[2:]
    assert len(set(ids)) == 2
    assert post(own, "shared", {**RANDOM, "steps": 2}, key=OTHER_KEY).status_code == 422


def test_a_blocking_call_sent_again_gets_the_same_picture_and_v2_its_id(own: Any) -> None:
    first, second = (post(own, "blocking", RANDOM, "v1") for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json()["image"] == second.json()["image"]
    assert first.headers["x-request-id"] == second.headers["x-request-id"]
    assert first.headers["x-seed-value"] == second.headers["x-seed-value"]
    polled = post(own, "blocking", RANDOM, "v2")
    assert polled.json()["request_id"] == first.headers["x-request-id"]


def test_uploads_count_by_their_content(own: Any, photo: bytes) -> None:
    def upload(name: str, picture: bytes) -> Any:
        return own.post(
            "/v2/flux-depth-dev",
            data={"prompt": "x", **SMALL},
            files={"control_image": (name, picture)},
            headers={"idempotency-key": "upload"},
        )

    first, renamed = upload("a.jpg", photo), upload("b.jpg", photo)
    assert first.status_code == 200
    assert first.json()["request_id"] == renamed.json()["request_id"]
    assert upload("a.jpg", photo + b"\0").status_code == 422
    own.finish(first.json()["request_id"])


@pytest.mark.parametrize(
    ("name", "status"),
    [("k" * 255, 200), ("k" * 256, 400), ("", 400), ("a\tb", 400), ("é", 400), ('"quoted, and \\ odd"', 200)],
)
def test_a_key_is_printable_and_at_most_255_long(own: Any, name: str, status: int) -> None:
    reply = own.post("/v2/flux-dev", json=RANDOM, headers={"idempotency-key": name.encode("latin-1")})
    assert reply.status_code == status, reply.text
    if status == 400:
        assert reply.json()["parameter"] == "Idempotency-Key"


def test_two_keys_are_400(own: Any) -> None:
    headers = [("x-api-key", KEY), ("idempotency-key", "a"), ("idempotency-key", "b")]
    import httpx2

    reply = httpx2.post(f"{own.base}/v2/flux-dev", json=RANDOM, headers=headers, timeout=30, trust_env=False)
    assert reply.status_code == 400


def hang_up_while_drawing(server: Any, name: str, body: dict[str, Any]) -> None:
    """Sends a blocking call under this key and leaves when the worker has it."""
    host, port = server.base.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/flux-dev HTTP/1.1\r\nhost: {host}:{port}\r\nx-api-key: {KEY}\r\nidempotency-key: {name}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + content)
        until(lambda: server.get("/health/ready").json()["worker"] == "busy", 60, "the job runs")


def test_a_caller_that_hung_up_comes_back_for_its_picture(own: Any) -> None:
    until(lambda: queued_and_running(own) == 0, 60, "the queue is empty")
    hang_up_while_drawing(own, "hung up", SLOW)
    again = post(own, "hung up", SLOW, "v1")
    assert again.status_code == 200
    assert again.json()["metrics"].get("retry_count") is None
    assert f"job={again.headers['x-request-id']} " in own.log()
    assert len(re.findall(rf"job started.*job={again.headers['x-request-id']}", own.log())) == 1


def test_a_blocking_call_outlives_a_polite_stop_and_its_waiter_is_told_to_come_back(own: Any) -> None:
    until(lambda: queued_and_running(own) == 0, 60, "the queue is empty")
    assert own.process is not None
    with ThreadPoolExecutor(1) as caller:
        waiting = caller.submit(post, own, "stopped", SLOW, "v1")
        until(lambda: own.get("/health/ready").json()["worker"] == "busy", 60, "the job runs")
        os.kill(own.process.pid, signal.SIGTERM)
        told = waiting.result(60)
    assert (told.status_code, "same Idempotency-Key" in told.json()["error"]) == (503, True), told.text
    assert int(told.headers["retry-after"]) > 0
    assert own.process.wait(60) == 0
    own.start()
    again = post(own, "stopped", SLOW, "v1")
    assert again.status_code == 200
    assert again.json()["metrics"]["retry_count"] == 1


def test_a_blocking_call_outlives_a_kill(own: Any, tmp_path: Path) -> None:
    hang_up_while_drawing(own, "killed", SLOW)
    own.kill()
    own.start()
    again = post(own, "killed", SLOW, "v1")
    assert again.status_code == 200
    assert len(set(re.findall(rf"job started.*job=({again.headers['x-request-id']})", own.log()))) == 1
