"""The same request gives the same pixels, whichever way it comes in; seeds do what the README says."""

from __future__ import annotations

import base64
import hashlib
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

DEV = {"prompt": "a red fox", "steps": 2, "seed": 7, "output_format": "png"}
DEPTH = {
    "prompt": "a red fox",
    "num_inference_steps": 2,
    "seed": 7,
    "output_format": "png",
    "megapixels": "0.25",
}


def pixels(data: bytes) -> str:
    """A picture's size and pixels, as one hash."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    return f"{picture.size} {hashlib.sha256(picture.tobytes()).hexdigest()}"


def v1_bytes(server: Any, slug: str, **options: Any) -> bytes:
    reply = server.post(f"/v1/{slug}", headers={"accept": "image/*"}, **options)
    assert reply.status_code == 200, reply.text
    return bytes(reply.content)


def v2_images(server: Any, slug: str, body: dict[str, Any]) -> list[bytes]:
    result = server.finish(server.submit(slug, body))
    assert result["status"] == "COMPLETED", result
    return [server.get(image["url"], key=None).content for image in result["images"]]


@pytest.fixture(scope="module")
def depth_pixels(server: Any, photo: bytes) -> str:
    return pixels(v1_bytes(server, "flux-depth-dev", data=as_text(DEPTH), files={"control_image": photo}))


def as_text(body: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in body.items()}


def test_flux_dev_through_json_urlencoded_multipart_v1_and_v2(server: Any) -> None:
    wanted = pixels(v1_bytes(server, "flux-dev", json=DEV))
    assert pixels(v1_bytes(server, "flux-dev", data=as_text(DEV))) == wanted
    multipart = {name: (None, value) for name, value in as_text(DEV).items()}
    assert pixels(v1_bytes(server, "flux-dev", files=multipart)) == wanted
    assert pixels(base64.b64decode(server.post("/v1/flux-dev", json=DEV).json()["image"])) == wanted
    assert [pixels(image) for image in v2_images(server, "flux-dev", DEV)] == [wanted]


def test_control_image_as_base64_data_uri_url_and_upload(
    server: Any, photo: bytes, picture_host: str, depth_pixels: str
) -> None:
    text = base64.b64encode(photo).decode()
    uploaded = server.post("/upload-asset", json={"data_urls": [f"data:image/jpeg;base64,{text}"]}).json()
    forms = [text, f"data:image/jpeg;base64,{text}", f"{picture_host}/photo.jpg", uploaded["file_urls"][0]]
    for form in forms:
        reply = v1_bytes(server, "flux-depth-dev", json={**DEPTH, "control_image": form})
        assert pixels(reply) == depth_pixels, form[:60]
    as_form = v1_bytes(server, "flux-depth-dev", data={**as_text(DEPTH), "control_image": forms[2]})
    assert pixels(as_form) == depth_pixels
    v2 = v2_images(server, "flux-depth-dev", {**DEPTH, "control_image": forms[3]})
    assert [pixels(image) for image in v2] == [depth_pixels]


def test_an_upload_can_be_a_multipart_file(server: Any, photo: bytes, depth_pixels: str) -> None:
    url = server.post("/upload-asset", files={"file": photo}).json()["file_urls"][0]
    assert pixels(v1_bytes(server, "flux-depth-dev", json={**DEPTH, "control_image": url})) == depth_pixels


def test_an_exif_turned_photo_gives_the_upright_picture(server: Any, photo: bytes) -> None:
    upright = Image.open(io.BytesIO(photo))
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    lying.save(buffer, "PNG", exif=exif)
    reply = v1_bytes(server, "flux-depth-dev", data=as_text(DEPTH), files={"control_image": buffer.getvalue()})
    assert Image.open(io.BytesIO(reply)).size == (608, 416)


def test_flux_depth_pro_is_drawn_by_the_depth_model(server: Any, photo: bytes) -> None:
    body = {"prompt": "a red fox", "steps": 15, "seed": 7, "guidance": 10, "output_format": "png"}
    pro = v1_bytes(server, "flux-depth-pro", data=as_text(body), files={"control_image": photo})
    dev_body = {**DEPTH, "num_inference_steps": 15, "megapixels": "1", "guidance": 10}
    dev = v1_bytes(server, "flux-depth-dev", data=as_text(dev_body), files={"control_image": photo})
    assert pixels(pro) == pixels(dev)


def test_image_i_of_n_is_the_single_image_of_seed_plus_i(server: Any) -> None:
    several = v2_images(server, "flux-dev", {**DEV, "samples": 3})
    singles = [v2_images(server, "flux-dev", {**DEV, "seed": 7 + index})[0] for index in range(3)]
    assert [pixels(image) for image in several] == [pixels(image) for image in singles]
    assert len({pixels(image) for image in several}) == 3


def test_seeds_wrap_at_two_to_the_thirty_second(server: Any) -> None:
    last, first = v2_images(server, "flux-dev", {**DEV, "seed": 2**32 - 1, "samples": 2})
    assert pixels(first) == pixels(v2_images(server, "flux-dev", {**DEV, "seed": 0})[0])
    assert pixels(last) != pixels(first)


def test_seed_zero_is_a_seed(server: Any) -> None:
    first, again = (server.post("/v1/flux-dev", json={**DEV, "seed": 0}).json() for _ in range(2))
    assert first["seed"] == "0"
    assert first["image"] == again["image"]


def test_seed_minus_one_is_random_and_told(server: Any) -> None:
    replies = [server.post("/v1/flux-dev", json={**DEV, "seed": -1}).json() for _ in range(2)]
    assert replies[0]["seed"] != replies[1]["seed"]
    again = server.post("/v1/flux-dev", json={**DEV, "seed": int(replies[0]["seed"])}).json()
    assert again["image"] == replies[0]["image"]


def test_an_absent_seed_is_the_pages_default(server: Any) -> None:
    body = {name: value for name, value in DEV.items() if name != "seed"}
    assert server.post("/v1/flux-dev", json=body).json()["seed"] == "46588"


def test_png_and_webp_and_jpg_hold_the_same_picture(server: Any) -> None:
    images = {
        kind: np.asarray(
            Image.open(
                io.BytesIO(v1_bytes(server, "flux-dev", json={**DEV, "output_format": kind, "output_quality": 95}))
            )
        ).astype(float)
        for kind in ("png", "webp", "jpg")
    }
    assert np.abs(images["png"] - images["webp"]).mean() < 12
    assert np.abs(images["png"] - images["jpg"]).mean() < 12
