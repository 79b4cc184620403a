"""`flux-server demo`: a server with demo weights, driven by Segmind's own SDK with the samples of the model pages."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from .settings import environment_without_settings

START_LIMIT_S = 300.0

DEPTH_SAMPLE: dict[str, Any] = {
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
"""The sample of Segmind's flux-depth-dev page; its control_image is our photograph."""

DEV_SAMPLE: dict[str, Any] = {
    "prompt": "detailed cinematic dof render of an old dusty detailed CRT monitor on a wooden desk in a dim room with"
    " items around, messy dirty room. On the screen are the letters “FLUX dev” glowing softly. High detail hard surface"
    " render",
    "samples": 1,
    "guidance": 3.5,
    "steps": 25,
    "prompt_strength": 0.8,
    "aspect_ratio": "1:1",
    "seed": 46588,
    "output_format": "webp",
    "output_quality": 80,
}
"""The sample of Segmind's flux-dev page."""


def run_demo(output: Path, *, once: bool) -> int:
    """Draws both samples into `output` and, unless `once`, serves on until Ctrl-C. Returns the exit status."""
    try:
        from segmind import SegmindClient
        from segmind.files import Files
        from skimage import data
    except ImportError as error:
        print(f"The demo needs {error.name}: pip install 'flux-local-server[demo]'", file=sys.stderr)
        return 2
    output.mkdir(parents=True, exist_ok=True)
    photo = output / "photo.jpg"
    _save_photo(data.coffee(), photo)
    print("A server with small weights made by code: it draws colour textures, everything around the model is real.\n")
    with _server(output / "server-data") as (process, base):
        client = SegmindClient(api_key="SG_0123456789abcdef", base_url=f"{base}/v1")
        # The SDK's upload goes to a host of its own, whatever the base URL.
        Files.STORAGE_BASE_URL = base
        with client._client:
            _draw(client, photo, output)
        _say_how_with_curl(base, photo)
        if once:
            return 0
        print(f"\nServing on {base} until Ctrl-C.")
        return _wait(process)


def _save_photo(pixels: Any, path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path, quality=92)


def _draw(client: Any, photo: Path, output: Path) -> None:
    uploaded = client.files.upload(str(photo))["file_urls"][0]
    print(f"{photo}: a real photograph, uploaded to {uploaded}")
    depth = _run(client, "flux-depth-dev", {**DEPTH_SAMPLE, "control_image": uploaded, "return_depth": True})
    _download(depth["depth_map"]["url"], output / "depth-map.png", "its depth map, made by the server")
    _download(depth["output"], output / "flux-depth-dev.jpg", _story(depth))
    dev = _run(client, "flux-dev", DEV_SAMPLE)
    _download(dev["output"], output / "flux-dev.webp", _story(dev))


def _run(client: Any, slug: str, sample: dict[str, Any]) -> dict[str, Any]:
    print(f"\n{slug}: the page's sample, submitted by the segmind SDK")
    result: dict[str, Any] = client.submit_async(slug, **sample).wait(timeout=600, interval=0.25)
    return result


def _story(result: dict[str, Any]) -> str:
    metrics = result["metrics"]
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in result["timings"].items())
    return (
        f"waited {metrics['queue_time']:.2f} s, drawn in {metrics['inference_time']:.2f} s ({stages});"
        f" on Segmind it would have cost ${metrics['cost']}"
    )


def _download(url: str, path: Path, story: str) -> None:
    """Saves a picture and says its size: a download that is no picture ends the demo with an error."""
    from PIL import Image

    path.write_bytes(httpx2.get(url, trust_env=False).raise_for_status().content)
    with Image.open(path) as picture:
        picture.load()
        print(f"{path}: {picture.width}×{picture.height}, {story}")


def _say_how_with_curl(base: str, photo: Path) -> None:
    print(
        f"""
The same with curl, blocking and with a file:
  curl {base}/v1/flux-depth-dev -F prompt='spiderman lecture' -F control_image=@{photo} -o picture.jpg
and as submit and poll:
  curl {base}/v2/flux-dev -H 'content-type: application/json' -d '{{"prompt": "a red fox in snow"}}'"""
    )


@contextmanager
def _server(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process with demo weights on a free port, ready to draw; it ends with the context."""
    started = time.monotonic()
    command = [sys.executable, "-P", "-m", "server", "serve", "--demo", "--port", "0", "--data-dir", str(data_dir)]
    log = data_dir.with_suffix(".log").open("w")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment_without_settings(),
        start_new_session=True,
    )
    try:
        base = _base_of(process)
        _wait_ready(process, base)
        print(f"server ready on {base} after {time.monotonic() - started:.1f} s (its log: {log.name})")
        yield process, base
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()


def _base_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"listening on (http://\S+)", line):
            return found.group(1)
    raise SystemExit("The server did not start; its log says why.")


def _wait_ready(process: subprocess.Popen[str], base: str) -> None:
    until, detail = time.monotonic() + START_LIMIT_S, "its log says why"
    while time.monotonic() < until and process.poll() is None:
        try:
            health = httpx2.get(f"{base}/health/ready", trust_env=False)
            if health.status_code == 200:
                return
            detail = health.json()["detail"]
        except httpx2.TransportError:
            pass
        if detail.startswith("load:"):  # it would be tried again and again
            break
        time.sleep(0.1)
    raise SystemExit(f"The server did not become ready: {detail}")


def _wait(process: subprocess.Popen[str]) -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:
        print("\nStopping.")
        return 0
