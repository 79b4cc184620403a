"""The engine beside stock diffusers pipelines on the very same modules, alternating in one run.

    python benchmarks/latency.py --weights random --output results/…json   # full size, random values, needs a CUDA card
    python benchmarks/latency.py --weights demo --side 256 --steps 4       # the small built-in family, anywhere

Random full-size weights have true latency and memory without any download; their pictures mean nothing. Times are whole
requests with prompt and control latents already in the cache, as a second request of a user has it; `first_s` is the
first one, caches empty. Nothing is compiled or quantised.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from overhead import build_weights, environment
from PIL import Image

from pipelines.components import Components, Folders, load_components, pick_device, pick_dtype
from pipelines.control import ControlEncoder
from pipelines.depth import DepthEstimator
from pipelines.engine import Engine, SourceImage
from pipelines.init_image import InitEncoder
from pipelines.request import GenerationRequest
from pipelines.text import TextEncoder

PROMPT = "a red fox in snow"
SEED = 46588


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--weights", choices=("random", "demo"), required=True)
    options.add_argument("--side", type=int, default=1024)
    options.add_argument("--steps", type=int, default=28)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--output", type=Path)
    given = options.parse_args()
    device = pick_device()
    with tempfile.TemporaryDirectory() as folder:
        demo = build_weights(Path(folder))
        build = random_components if given.weights == "random" else demo_components
        parts = build(demo, device, pick_dtype("auto", device))
        rows = [measure(parts, model, given.side, given.steps, given.repeats) for model in parts.transformers]
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(),
        **card(device),
        "weights": given.weights,
        "rows": rows,
    }
    print(json.dumps(rows, indent=2))
    if given.output:
        given.output.write_text(json.dumps(report, indent=2) + "\n")


def demo_components(demo: Path, device: torch.device, dtype: torch.dtype) -> Components:
    folders = Folders(
        models={"flux-dev": demo / "FLUX.1-dev", "flux-depth-dev": demo / "FLUX.1-Depth-dev"},
        depth_estimator=demo / "depth-anything-large-hf",
    )
    return load_components(folders, device=device, dtype=dtype)


def random_components(demo: Path, device: torch.device, dtype: torch.dtype) -> Components:
    """Full-size modules with random values, and the demo family's tokenizers: their ids are in every vocabulary."""
    from transformers import AutoImageProcessor, CLIPTokenizer, T5TokenizerFast

    from pipelines.depth.pretrained import PretrainedDisparity
    from weights.full_size import SCHEDULER, build_on_meta, materialise

    if device.type != "cuda":
        raise SystemExit("full-size random weights need a CUDA card; try --weights demo")

    def make(component: str, precision: torch.dtype) -> Any:
        return materialise(build_on_meta(component), device, precision, seed=0).eval().requires_grad_(False)

    dev = demo / "FLUX.1-dev"
    vae = make("vae", dtype)
    processor = AutoImageProcessor.from_pretrained(demo / "depth-anything-large-hf", backend="pil")
    estimator = DepthEstimator(
        PretrainedDisparity(make("depth-anything-large", torch.float32), processor, "near-large"), "minmax"
    )
    text = TextEncoder(
        CLIPTokenizer.from_pretrained(dev / "tokenizer"),
        make("clip-l", dtype),
        T5TokenizerFast.from_pretrained(dev / "tokenizer_2"),
        make("t5-xxl", dtype),
        device=device,
        dtype=dtype,
    )
    return Components(
        device=device,
        dtype=dtype,
        text=text,
        vae=vae,
        control=ControlEncoder(vae, estimator, dtype=dtype),
        init=InitEncoder(vae, dtype=dtype),
        scheduler_config=dict(SCHEDULER),
        transformers={
            "flux-dev": make("transformer-dev", dtype),
            "flux-depth-dev": make("transformer-depth-dev", dtype),
        },
    )


def measure(parts: Components, model: str, side: int, steps: int, repeats: int) -> dict[str, Any]:
    """Medians in seconds of the engine and of the stock pipeline, and the engine's stages on an empty cache."""
    request = GenerationRequest(
        model=model, prompt=PROMPT, width=side, height=side, steps=steps, guidance=3.5, seed=SEED
    )
    engine = Engine(parts)
    photo = SourceImage(Image.linear_gradient("L").resize((side, side)).convert("RGB"), "gradient")
    sources = {"control_image": photo} if model == "flux-depth-dev" else {}
    if parts.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first_s, first = timed(parts.device, lambda: engine.generate(request, **sources))
    stock = stock_pipeline(parts, request)
    timed(parts.device, stock)
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(timed(parts.device, lambda: engine.generate(request, **sources))[0])
        theirs.append(timed(parts.device, stock)[0])
    return {
        "model": model,
        "size": f"{side}x{side}",
        "steps": steps,
        "engine_s": round(statistics.median(ours), 4),
        "stock_diffusers_eager_s": round(statistics.median(theirs), 4),
        "ratio": round(statistics.median(ours) / statistics.median(theirs), 4),
        "first_s": round(first_s, 4),
        "first_stages_s": {stage: round(seconds, 4) for stage, seconds in first.timings_s.items()},
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if parts.device.type == "cuda" else None,
    }


def stock_pipeline(parts: Components, request: GenerationRequest) -> Callable[[], Any]:
    """diffusers' own pipeline on the same modules, given the same embeddings and control latents."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxControlPipeline, FluxPipeline

    kind = FluxControlPipeline if request.model == "flux-depth-dev" else FluxPipeline
    pipeline = kind(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(parts.scheduler_config),
        vae=parts.vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=parts.transformers[request.model],
    )
    pipeline.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        text = parts.text.encode(request.prompt)
    inputs: dict[str, Any] = {"prompt_embeds": text.embeds, "pooled_prompt_embeds": text.pooled}
    if request.model == "flux-depth-dev":
        length = (request.width // 16) * (request.height // 16)
        inputs["control_image"] = torch.randn(1, length, 64, device=parts.device, dtype=parts.dtype)

    def run() -> Any:
        return pipeline(
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            **inputs,
        )

    return run


def timed(device: torch.device, call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, value


def card(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"card": None}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "card": torch.cuda.get_device_name(device),
        "driver": driver or None,
        "cuda": torch.version.cuda,
        "total_memory_bytes": torch.cuda.get_device_properties(device).total_memory,
    }


if __name__ == "__main__":
    main()
