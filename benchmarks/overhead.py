"""What the server adds to the engine: the same requests, bare and through HTTP, side by side in one run.

    python benchmarks/overhead.py [--requests 30] [--output results/…json]

A request's cost outside the model is what its caller waits minus what the worker computed, in the very same call. Both
come from one run on one machine, so neither noise nor warm-up favours a side. Beside it stands the bare
engine in this process, on the same weights and requests, with file encoding but no server, no store and no queue.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import httpx2

REPOSITORY = Path(__file__).parents[1]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=int, default=30)
    options.add_argument("--output", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given.requests)
    report = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **environment(), "rows": rows}
    print_table(rows)
    if given.output:
        given.output.write_text(json.dumps(report, indent=2) + "\n")


def measure(folder: Path, count: int) -> list[dict[str, Any]]:
    """A row per kind of call: medians in milliseconds of the caller's wait, the worker's part and the bare engine."""
    weights = build_weights(folder)
    photo = save_photo(folder / "photo.jpg")
    bare = BareEngine(weights, folder)
    process, base = start_server(weights, folder / "data")
    try:
        with httpx2.Client(base_url=base, timeout=120, trust_env=False) as client:
            dev = {"prompt": "a red fox", "steps": 4, "aspect_ratio": "1:1"}
            depth = {"prompt": "a red fox", "num_inference_steps": "4", "megapixels": "0.25"}

            def call_dev() -> httpx2.Response:
                return client.post("/v1/flux-dev", json=dev, headers={"accept": "image/*"})

            def call_depth() -> httpx2.Response:
                return client.post("/v1/flux-depth-dev", data=depth, files={"control_image": photo})

            return [
                row("flux-dev 1024×1024, 4 steps, JSON in, WebP out", count, call_dev, lambda: bare.dev(4)),
                row("flux-depth-dev 608×416, 4 steps, file in, JPEG out", count, call_depth, lambda: bare.depth(4)),
            ]
    finally:
        process.terminate()
        process.wait(60)


def row(name: str, count: int, call: Callable[[], httpx2.Response], bare: Callable[[], float]) -> dict[str, Any]:
    """Alternates the two sides, so that a slow spell of the machine hits both."""
    call()
    bare()
    waits, computed, engine = [], [], []
    for _ in range(count):
        start = time.perf_counter()
        reply = call().raise_for_status()
        waits.append(time.perf_counter() - start)
        computed.append(float(reply.headers["x-generation-time"]))
        engine.append(bare())
    overheads = [wait - part for wait, part in zip(waits, computed, strict=True)]
    return {
        "call": name,
        "requests": count,
        "wait_ms": milliseconds(statistics.median(waits)),
        "worker_ms": milliseconds(statistics.median(computed)),
        "bare_engine_ms": milliseconds(statistics.median(engine)),
        "outside_the_worker_ms": milliseconds(statistics.median(overheads)),
        "outside_the_worker_p90_ms": milliseconds(statistics.quantiles(overheads, n=10)[-1]),
        "wait_minus_bare_ms": milliseconds(statistics.median(waits) - statistics.median(engine)),
    }


class BareEngine:
    """The engine in this process, writing encoded files as the worker does."""

    def __init__(self, weights: Path, folder: Path) -> None:
        import torch

        from pipelines.components import Folders, load_components
        from pipelines.engine import Engine
        from pipelines.spool import Spool

        self._spool = Spool(folder=folder / "bare")
        (folder / "bare" / "outputs").mkdir(parents=True)
        (folder / "bare" / "inputs").mkdir()
        (folder / "bare" / "inputs" / "photo.jpg").write_bytes((folder / "photo.jpg").read_bytes())
        models = {"flux-dev": weights / "FLUX.1-dev", "flux-depth-dev": weights / "FLUX.1-Depth-dev"}
        folders = Folders(
            models=models,
            depth_estimator=weights / "depth-anything-large-hf",
            safety_concepts=weights / "safety-concepts",
            nsfw_detector=weights / "nsfw-image-detection",
        )
        parts = load_components(folders, device=torch.device("cpu"), dtype=torch.float32)
        self._engine = Engine(parts)

    def dev(self, steps: int) -> float:
        return self._draw(model="flux-dev", width=1024, height=1024, steps=steps, guidance=3.0, output_format="webp")

    def depth(self, steps: int) -> float:
        return self._draw(
            model="flux-depth-dev",
            width=608,
            height=416,
            steps=steps,
            guidance=10.0,
            output_format="jpg",
            control_image="photo.jpg",
        )

    def _draw(self, **fields: Any) -> float:
        from pipelines.request import GenerationRequest

        request = GenerationRequest(prompt="a red fox", seed=46588, **fields)
        start = time.perf_counter()
        self._spool.draw(self._engine, request, name="bare")
        return time.perf_counter() - start


def build_weights(folder: Path) -> Path:
    command = [sys.executable, "-P", "-m", "weights.demo", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(built.stdout.strip().splitlines()[-1])


def save_photo(path: Path) -> bytes:
    from PIL import Image
    from skimage import data

    Image.fromarray(data.coffee()).save(path, quality=90)
    return path.read_bytes()


def start_server(weights: Path, data_dir: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-P", "-m", "server", "serve", "--port", "0"]
    command += ["--weights", str(weights), "--data-dir", str(data_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    base = next(word for word in process.stdout.readline().split() if word.startswith("http://"))
    until = time.monotonic() + 300
    while time.monotonic() < until:
        with suppress(httpx2.TransportError):
            if httpx2.get(f"{base}/health/ready", trust_env=False).status_code == 200:
                return process, base
        time.sleep(0.1)
    raise SystemExit("the server did not become ready")


def environment() -> dict[str, Any]:
    """What a figure means nothing without."""
    from importlib.metadata import version

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    packages = ("torch", "diffusers", "transformers", "fastapi", "uvicorn")
    return {
        "commit": commit.stdout.strip() or None,
        "hardware": {"machine": platform.machine(), "processor": processor(), "cores": os.cpu_count(), "gpu": None},
        "driver": None,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 2)


def print_table(rows: list[dict[str, Any]]) -> None:
    for figures in rows:
        print(figures["call"])
        for name, value in figures.items():
            if name != "call":
                print(f"  {name:28} {value}")


if __name__ == "__main__":
    main()
