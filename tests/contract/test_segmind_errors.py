"""Errors: the envelope, the order of checks, and no 500 for anything that a client sends."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import pytest
from PIL import Image

OTHER_KEY = "SG_fedcba9876543210"
POOR_KEY = "SG_00000000000000aa"


def refused(reply: Any, status: int, *words: str) -> None:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert isinstance(error, str)
    for word in words:
        assert word in error, error


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/flux-dev"),
        ("POST", "/v2/flux-depth-dev"),
        ("GET", "/v1/flux-dev"),
        ("GET", "/v2/requests/00000000-0000-0000-0000-000000000000/status"),
        ("GET", "/no/such/path"),
        ("POST", "/upload-asset"),
        ("GET", "/v1/get-user-credits"),
    ],
)
def test_401_comes_before_everything(server: Any, method: str, path: str) -> None:
    refused(server.request(method, path, key=None), 401, "Missing Authorization or x-api-key in header")
    refused(server.request(method, path, key="SG_wrong"), 401, "Unauthorized. API key is invalid or may have expired")


@pytest.mark.parametrize("key", ["", "é".encode(), b"\xff\xfe", "SG_0123456789abcde", "x" * 5000])
def test_odd_keys_are_401(server: Any, key: Any) -> None:
    reply = server.request("GET", "/v1/get-user-credits", key=None, headers={"x-api-key": key})
    assert reply.status_code == 401


def test_a_bearer_token_is_a_key_and_x_api_key_wins(server: Any) -> None:
    good, bad = "Bearer SG_0123456789abcdef", "Bearer SG_wrong"
    assert server.get("/v1/get-user-credits", key=None, headers={"authorization": good}).status_code == 200
    assert server.get("/v1/get-user-credits", headers={"authorization": bad}).status_code == 200
    assert server.get("/v1/get-user-credits", key="SG_wrong", headers={"authorization": good}).status_code == 401


def test_health_and_model_list_need_no_key(server: Any) -> None:
    for path in ("/health/live", "/health/ready", "/inference-model-information/list"):
        assert server.get(path, key=None).status_code == 200


def test_an_unknown_model_is_404_and_a_wrong_method_405(server: Any) -> None:
    refused(server.post("/v1/flux-nonsense", json={"prompt": "x"}), 404, "flux-nonsense", "flux-depth-dev")
    wrong = server.get("/v1/flux-dev")
    refused(wrong, 405, "GET")
    assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("slug", "body", "words"),
    [
        ("flux-dev", {}, ["Prompt is Mandatory and must be string"]),
        ("flux-dev", {"prompt": "x", "steps": 0}, ["steps", "1", "50"]),
        ("flux-dev", {"prompt": "x", "guidance": 10.1}, ["guidance", "0", "10"]),
        ("flux-dev", {"prompt": "x", "aspect_ratio": "7:3"}, ["aspect_ratio", "16:9"]),
        ("flux-dev", {"prompt": "x", "output_format": "gif"}, ["output_format", "webp", "jpg", "png"]),
        ("flux-dev", {"prompt": "x", "seed": -2}, ["seed"]),
        ("flux-dev", {"prompt": "x", "samples": "five"}, ["samples", "1", "4"]),
        ("flux-depth-dev", {"prompt": "x"}, ["control_image"]),
        ("flux-depth-dev", {"prompt": "x", "control_image": "no picture"}, ["control_image"]),
        ("flux-depth-pro", {"prompt": "x", "control_image": "x", "steps": 14}, ["steps", "15", "50"]),
        ("flux-depth-pro", {"prompt": "x", "control_image": "x", "safety_tolerance": 7}, ["safety_tolerance"]),
    ],
)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_bad_input_is_400_and_names_the_parameter(
    server: Any, version: str, slug: str, body: dict[str, Any], words: list[str]
) -> None:
    refused(server.post(f"/{version}/{slug}", json=body), 400, *words)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b"null", "application/json"),
        (b"\xff", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"prompt=x", "text/plain"),
        (b"--x", "multipart/form-data; boundary=x"),
        (b"", "multipart/form-data"),
        (b"", ""),
    ],
)
def test_unreadable_bodies_are_400(server: Any, content: bytes, kind: str) -> None:
    refused(server.post("/v2/flux-dev", content=content, headers={"content-type": kind}), 400)


def test_a_body_over_the_limit_is_413(server: Any) -> None:
    huge = b'{"prompt": "' + b"x" * (33 * 1024 * 1024) + b'"}'
    refused(server.post("/v2/flux-dev", content=huge, headers={"content-type": "application/json"}), 413)


def png(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 30)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_control_images_that_no_size_follows_from_are_400(server: Any) -> None:
    body = {"prompt": "x", "control_image": png(16, 2000)}
    refused(server.post("/v2/flux-depth-dev", json=body), 400, "control_image", "16×2000", "8 times")


def test_tiny_control_images_work(server: Any) -> None:
    body = {"prompt": "x", "control_image": png(1, 1), "megapixels": "match_input", "num_inference_steps": 1}
    reply = server.post("/v1/flux-depth-dev", json=body)
    assert reply.status_code == 200
    assert Image.open(io.BytesIO(reply.content)).size == (32, 32)


def test_urls_that_point_inward_are_400(server: Any) -> None:
    for url in (f"{server.base}/health/live", "http://127.0.0.1:1/x.png", "http://169.254.169.254/latest"):
        refused(server.post("/v2/flux-depth-dev", json={"prompt": "x", "control_image": url}), 400, "Invalid image URL")


@pytest.mark.parametrize("url", ["http://[", "https://[::1", "http://]/x.png", "http://\u2100.example/x", "https://"])
def test_broken_urls_are_400(server: Any, url: str) -> None:
    body = {"prompt": "x", "control_image": url}
    refused(server.post("/v2/flux-depth-dev", json=body), 400, "Invalid image URL")


def test_a_json_body_of_very_many_values_is_400_at_once(server: Any) -> None:
    content = b'{"prompt": "x", "junk": [' + b"[]," * 5_000_000 + b"0]}"
    start = time.monotonic()
    refused(server.post("/v2/flux-dev", content=content, headers={"content-type": "application/json"}), 400, "too many")
    assert time.monotonic() - start < 5


def test_another_keys_request_is_404(server: Any) -> None:
    request_id = server.submit("flux-dev", {"prompt": "x", "steps": 1})
    refused(server.get(f"/v2/requests/{request_id}/status", key=OTHER_KEY), 404, f"Request {request_id} not found")
    server.finish(request_id)


def test_credits_are_spent_on_success_and_their_end_is_406(server: Any) -> None:
    def balance() -> float:
        return float(server.get("/v1/get-user-credits", key=POOR_KEY).json()["credits"])

    body = {"prompt": "x", "steps": 1}
    assert balance() == pytest.approx(0.05)
    first = server.post("/v1/flux-dev", key=POOR_KEY, json=body, headers={"accept": "image/*"})
    assert float(first.headers["x-remaining-credits"]) == pytest.approx(0.05 - 0.0196)
    refused(server.post("/v1/flux-dev", key=POOR_KEY, json={"prompt": "x", "steps": 99}), 400)
    assert server.post("/v1/flux-dev", key=POOR_KEY, json=body).status_code == 200
    for version in ("v1", "v2"):
        short = server.post(f"/{version}/flux-dev", key=POOR_KEY, json=body)
        refused(short, 406, "Insufficient credits", "0.0108", "0.0196")
    assert balance() == pytest.approx(0.05 - 2 * 0.0196)


def test_a_full_queue_is_429_with_retry_after(run_server: Any) -> None:
    with run_server(dummy=True, queue_limit="2", drain_limit_s="0") as server:
        slow = {"prompt": "[step_s=0.1]", "steps": 50}
        replies = [server.post("/v2/flux-dev", json=slow) for _ in range(5)]
        statuses = [reply.status_code for reply in replies]
        assert statuses[:2] == [200, 200]
        assert 429 in statuses
        full = replies[statuses.index(429)]
        refused(full, 429, "queue")
        assert int(full.headers["retry-after"]) > 0


def test_a_blocking_call_that_takes_too_long_is_504_and_its_job_is_cancelled(run_server: Any) -> None:
    with run_server(dummy=True, wait_limit_s="0.3") as server:
        late = server.post("/v1/flux-dev", json={"prompt": "[step_s=0.1]", "steps": 50})
        refused(late, 504, "0.3 s", "/v2")
        assert server.finish(server.submit("flux-dev", {"prompt": "x", "steps": 1}))["status"] == "COMPLETED"
        assert "state=cancelled" in server.log()


def test_v2_can_say_402_when_credits_are_short(run_server: Any) -> None:
    credits = f'{{"{POOR_KEY}": 0.001}}'
    with run_server(wait_ready=False, api_keys=POOR_KEY, credits=credits, no_credits_status_v2="402") as server:
        body = {"prompt": "x", "steps": 1}
        refused(server.post("/v2/flux-dev", key=POOR_KEY, json=body), 402, "Insufficient credits")
        refused(server.post("/v1/flux-dev", key=POOR_KEY, json=body), 406, "Insufficient credits")
