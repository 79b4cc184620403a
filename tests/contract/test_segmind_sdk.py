"""Segmind's own Python SDK against a real server: the pages' samples, unchanged but for the host."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import segmind
from PIL import Image
from segmind import InferenceFailed, SegmindClient
from segmind.exceptions import SegmindError
from segmind.files import Files

KEY = "SG_0123456789abcdef"

DEV: dict[str, Any] = {
    "prompt": "detailed cinematic dof render of an old dusty detailed CRT monitor on a wooden desk in a dim room with "
    "items around, messy dirty room. On the screen are the letters “FLUX dev” glowing softly. High detail hard surface "
    "render",
    "samples": 1,
    "guidance": 3.5,
    "steps": 25,
    "prompt_strength": 0.8,
    "aspect_ratio": "1:1",
    "seed": 46588,
    "output_format": "webp",
    "output_quality": 80,
}

DEPTH: dict[str, Any] = {
    "seed": 85412,
    "prompt": "spiderman lecture, photorealistic",
    "guidance": 10,
    "megapixels": "1",
    "num_outputs": 1,
    "output_format": "jpg",
    "output_quality": 80,
    "num_inference_steps": 28,
    "disable_safety_checker": False,
}


@contextmanager
def sdk(base: str, key: str = KEY) -> Iterator[SegmindClient]:
    """The SDK's client, its connections closed afterwards."""
    client = SegmindClient(api_key=key, base_url=f"{base}/v1", timeout=120.0)
    with client._client:
        yield client


@pytest.fixture
def client(server: Any) -> Iterator[SegmindClient]:
    with sdk(server.base) as connected:
        yield connected


def picture_at(url: str) -> Image.Image:
    """Downloads as Segmind's users do: without a key."""
    reply = httpx2.get(url, trust_env=False)
    assert reply.status_code == 200
    picture = Image.open(io.BytesIO(reply.content))
    picture.load()
    return picture


def test_the_flux_dev_page_runs(client: SegmindClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmind, "_default_client", client)
    result = segmind.run("flux-dev", **DEV)
    assert result["status"] == "COMPLETED"
    assert result["metrics"]["inference_time"] > 0
    picture = picture_at(result.get("output"))
    assert (picture.format, picture.size) == ("WEBP", (1024, 1024))
    assert result["images"][0]["url"] == result["output"]
    assert result["seed"] == "46588"


def test_the_flux_depth_dev_page_runs(client: SegmindClient, picture_host: str) -> None:
    payload = {**DEPTH, "control_image": f"{picture_host}/photo.jpg"}
    job = client.submit_async("flux-depth-dev", **payload)
    assert job.request_id
    result = job.wait(timeout=600, interval=0.1)
    assert result["status"] == "COMPLETED"
    picture = picture_at(result["output"])
    assert (picture.format, picture.size) == ("JPEG", (1248, 832))


def test_run_sync_gives_the_picture(client: SegmindClient, picture_host: str) -> None:
    reply = client.run_sync(
        "flux-depth-dev",
        prompt="x",
        num_inference_steps=1,
        megapixels="0.25",
        control_image=f"{picture_host}/photo.jpg",
    )
    assert reply.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(reply.content)).size == (608, 416)


def test_run_sync_of_flux_dev_gives_json(client: SegmindClient) -> None:
    body = client.run_sync("flux-dev", prompt="x", steps=1).json()
    assert body["status"] == "COMPLETED"
    assert body["outputs"] == 1


def test_a_bad_parameter_is_a_segmind_error_with_a_readable_detail(client: SegmindClient) -> None:
    with pytest.raises(SegmindError) as caught:
        client.run("flux-dev", prompt="x", steps=51)
    assert "steps" in str(caught.value)
    assert "1 and 50" in str(caught.value)


def test_a_failed_job_is_inference_failed_with_a_readable_detail(run_server: Any) -> None:
    """The step limit is far below what a picture takes, so the server ends the job."""
    with run_server(step_limit_s="0.02") as server, sdk(server.base) as client:
        job = client.submit_async("flux-dev", prompt="x", steps=50)
        with pytest.raises(InferenceFailed) as caught:
            job.wait(interval=0.1)
    assert isinstance(caught.value.detail, str)
    assert "0.02 s" in caught.value.detail


def test_a_wrong_key_is_a_segmind_error(server: Any) -> None:
    with sdk(server.base, "SG_wrong") as client, pytest.raises(SegmindError) as caught:
        client.run("flux-dev", prompt="x")
    assert "API key is invalid" in str(caught.value)


def test_uploads_give_urls_that_work_as_control_image(
    client: SegmindClient, server: Any, photo: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Files, "STORAGE_BASE_URL", server.base)
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo)
    uploaded = client.files.upload([str(path), str(path)])
    assert uploaded["message"] == "Files uploaded successfully"
    assert len(uploaded["file_urls"]) == 2
    result = client.submit_async(
        "flux-depth-dev", prompt="x", control_image=uploaded["file_urls"][0], num_inference_steps=1, megapixels="0.25"
    ).wait(interval=0.1)
    assert picture_at(result["output"]).size == (608, 416)


def test_the_model_list_has_the_long_key(client: SegmindClient, server: Any) -> None:
    body = server.get("/inference-model-information/list", key=None).json()
    (rows,) = body.values()
    assert {row["slug"] for row in rows} == {"flux-dev", "flux-depth-dev", "flux-depth-pro"}
