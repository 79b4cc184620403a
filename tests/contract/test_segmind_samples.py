"""The `requests` samples of Segmind's pages, unchanged but for the host, and the raw HTTP around them."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
import requests
from PIL import Image

KEY = "SG_0123456789abcdef"


def open_picture(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def test_the_flux_dev_sample(server: Any) -> None:
    url = f"{server.base}/v1/flux-dev"
    headers = {"x-api-key": KEY, "Content-Type": "application/json"}
    data = {
        "prompt": "detailed cinematic dof render of an old dusty detailed CRT monitor on a wooden desk in a dim room "
        "with items around, messy dirty room. On the screen are the letters “FLUX dev” glowing softly. High detail "
        "hard surface render",
        "samples": 1,
        "guidance": 3.5,
        "steps": 25,
        "prompt_strength": 0.8,
        "aspect_ratio": "1:1",
        "seed": 46588,
        "output_format": "webp",
        "output_quality": 80,
    }
    response = requests.post(url, headers=headers, json=data)
    assert response.status_code == 200
    result = response.json()
    print(json.dumps(result, indent=2)[:300])
    picture = open_picture(base64.b64decode(result["image"]))
    assert (picture.format, picture.size) == ("WEBP", (1024, 1024))


@pytest.mark.parametrize("form", ["file", "uri"])
def test_the_flux_depth_pro_sample(server: Any, photo: bytes, picture_host: str, form: str) -> None:
    api_key = KEY
    url = f"{server.base}/v1/flux-depth-pro"
    data: dict[str, Any] = {}
    files: dict[str, Any] = {}
    data["seed"] = 96522
    data["steps"] = 40
    data["prompt"] = (
        "American man, smiling, waving, eyeglasses, casual clothing, sitting at desk, laptop, home office, indoor, "
        "daylight, modern decor, house plants, bookshelf, natural lighting"
    )
    data["guidance"] = 7
    if form == "file":
        files["control_image"] = io.BytesIO(photo)
    else:
        data["control_image"] = f"{picture_host}/photo.jpg"
    data["output_format"] = "jpg"
    data["safety_tolerance"] = 2
    data["prompt_upsampling"] = False
    headers = {"x-api-key": api_key}
    response = requests.post(url, data=data, files=files, headers=headers)
    assert response.headers["content-type"] == "image/jpeg"
    picture = open_picture(response.content)
    assert (picture.format, picture.size) == ("JPEG", (1248, 832))
    assert response.headers["x-model"] == "flux-depth-dev"


def test_the_header_set_of_a_v1_picture(server: Any) -> None:
    reply = server.post(
        "/v1/flux-dev", json={"prompt": "x", "steps": 1, "seed": 5}, headers={"accept": "image/webp,*/*;q=0.1"}
    )
    assert reply.headers["content-type"] == "image/webp"
    assert int(reply.headers["content-length"]) == len(reply.content)
    assert float(reply.headers["x-remaining-credits"]) == 1_000_000
    assert float(reply.headers["x-cost"]) == 0.0196
    assert float(reply.headers["x-generation-time"]) > 0
    assert reply.headers["x-seed-value"] == "5"
    assert reply.headers["x-request-id"]
    assert reply.headers["x-rate-limit-reset-at-utc"]
    assert json.loads(reply.headers["x-output-metadata"]) == {"height": 1024, "width": 1024, "samples": 1}
    assert reply.headers["x-demo-weights"] == "true"


def test_several_outputs_on_v1(server: Any) -> None:
    body = {"prompt": "x", "steps": 1, "samples": 2, "seed": 9}
    as_json = server.post("/v1/flux-dev", json=body).json()
    assert len(as_json["image"]) == len(as_json["images"]) == 2
    assert [image["seed"] for image in as_json["images"]] == ["9", "10"]
    assert as_json["metrics"]["cost"] == pytest.approx(2 * 0.0196)
    as_image = server.post("/v1/flux-dev", json=body, headers={"accept": "image/*"})
    assert as_image.content == base64.b64decode(as_json["image"][0])
    assert len(as_image.headers["x-output-urls"].split(", ")) == 2


def test_base64_turns_a_depth_reply_into_json(server: Any, photo: bytes) -> None:
    body = {
        "prompt": "x",
        "num_inference_steps": 1,
        "megapixels": 0.25,
        "base64": True,
        "control_image": base64.b64encode(photo).decode(),
    }
    reply = server.post("/v1/flux-depth-dev", json=body).json()
    assert open_picture(base64.b64decode(reply["image"])).size == (608, 416)
    assert reply["image_format"] == "jpg"


def test_v2_replies_have_exactly_the_documented_shapes(server: Any) -> None:
    submitted = server.post("/v2/flux-dev", json={"prompt": "x", "steps": 2}).json()
    request_id = submitted["request_id"]
    assert submitted == {
        "request_id": request_id,
        "status": "QUEUED",
        "poll_url": f"{server.base}/v1/requests/{request_id}",
        "status_url": f"{server.base}/v2/requests/{request_id}/status",
        "response_url": f"{server.base}/v2/requests/{request_id}",
    }
    result = server.finish(request_id)
    status = server.status(request_id)
    assert set(status) == {"status", "request_id", "metrics", "status_url", "response_url"}
    assert set(status["metrics"]) == {"inference_time", "queue_time", "total_time", "cost", "remaining_credits"}
    assert result["output"] == result["images"][0]["url"]
    assert result["images"][0] | {"url": "", "file_name": "", "file_size": ""} == {
        "url": "",
        "content_type": "image/webp",
        "file_name": "",
        "file_size": "",
        "width": 1024,
        "height": 1024,
        "seed": "46588",
    }
    assert isinstance(result["images"][0]["file_size"], str)
    assert set(result["timings"]) == {"text", "place", "denoise", "decode", "safety", "encode"}
    assert "error" not in result
    assert server.get(f"/v1/requests/{request_id}").json() == server.get(f"/v2/requests/{request_id}").json()


def test_a_waiting_request_has_empty_metrics_and_no_output(server: Any) -> None:
    running = [server.submit("flux-dev", {"prompt": "x", "steps": 4}) for _ in range(3)]
    last = server.get(f"/v2/requests/{running[-1]}").json()
    assert last["status"] == "QUEUED"
    assert last["metrics"] == {}
    assert "output" not in last
    for request_id in running:
        server.finish(request_id)


def test_the_status_of_a_running_request_shows_its_steps(server: Any) -> None:
    request_id = server.submit("flux-dev", {"prompt": "x", "steps": 10, "samples": 2})
    seen = []
    while (status := server.status(request_id))["status"] != "COMPLETED":
        assert status["metrics"] == {}
        if "progress" in status:
            seen.append(status["progress"]["step"])
            assert status["progress"]["steps"] == 20
            assert status["progress"]["seconds_per_step"] > 0
    assert len(seen) > 3
    assert seen == sorted(seen)


@pytest.mark.parametrize("value", ["", "not-an-id", "%00", "00000000-0000-0000-0000-000000000000", "x" * 3000])
def test_unknown_requests_are_404_on_all_three_addresses(server: Any, value: str) -> None:
    for path in (f"/v2/requests/{value}/status", f"/v2/requests/{value}", f"/v1/requests/{value}"):
        reply = server.get(path)
        assert reply.status_code == 404, (path[:80], reply.text)
        assert isinstance(reply.json()["error"], str)


def test_return_depth_gives_the_map_at_the_output_size(server: Any, photo: bytes) -> None:
    data = {"prompt": "x", "num_inference_steps": "1", "megapixels": "0.25", "return_depth": "true"}
    reply = server.post("/v1/flux-depth-dev", data=data, files={"control_image": photo})
    depth_map = open_picture(server.get(reply.headers["x-depth-map-url"], key=None).content)
    assert (depth_map.format, depth_map.size) == ("PNG", (608, 416))
    low, high = depth_map.convert("L").getextrema()
    assert high - low > 50


def test_a_depth_map_can_be_passed_back_in(server: Any, photo: bytes) -> None:
    data = {"prompt": "x", "num_inference_steps": "1", "megapixels": "0.25", "return_depth": "1"}
    first = server.post("/v1/flux-depth-dev", data=data, files={"control_image": photo})
    given = {**data, "preprocess": "false", "control_image": first.headers["x-depth-map-url"], "return_depth": "1"}
    second = server.post("/v1/flux-depth-dev", data=given)
    maps = [server.get(reply.headers["x-depth-map-url"], key=None).content for reply in (first, second)]
    assert open_picture(maps[0]).tobytes() == open_picture(maps[1]).tobytes()


def test_absolute_urls_follow_the_host_that_the_client_used(server: Any) -> None:
    port = server.base.rsplit(":", 1)[1]
    reply = server.post("/v2/flux-dev", json={"prompt": "x", "steps": 1}, headers={"host": f"box.example:{port}"})
    assert reply.json()["status_url"].startswith(f"http://box.example:{port}/v2/requests/")
    server.finish(reply.json()["request_id"])


def test_forwarded_headers_of_strangers_are_not_believed(server: Any) -> None:
    headers = {"x-forwarded-proto": "https", "x-forwarded-host": "evil.example", "x-forwarded-prefix": "/p"}
    reply = server.post("/v2/flux-dev", json={"prompt": "x", "steps": 1}, headers=headers)
    assert reply.json()["status_url"].startswith(server.base)
    server.finish(reply.json()["request_id"])


def test_nothing_redirects(server: Any) -> None:
    with_slash = server.post("/v2/flux-dev/", json={"prompt": "x", "steps": 1})
    assert with_slash.status_code == 200
    server.finish(with_slash.json()["request_id"])
