"""How long a worker takes until it can draw, phase by phase, beside what disk and card can do with the same bytes.

    python benchmarks/load.py --weights demo                              # the small built-in family, anywhere
    python benchmarks/load.py --weights random --folder DIR --output …    # writes full-size random weights first
    python benchmarks/load.py --weights DIR                               # weights that are there, in any form

Every run is a fresh process, as a worker is: interpreter, imports, memory plan, each component (read and placed), one
small picture per model. Before each run the files are dropped from the page cache where that can be done, and what
stayed is said. In turn with the runs the same files are read from the disk one after the other, and on CUDA pinned host
memory is copied to the card. Random weights need a CUDA card, which makes them, and about 60 GB of disk.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

# As the worker sets them, before the libraries read them.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_ENABLE_PARALLEL_LOADING": "1", "OMP_WAIT_POLICY": "PASSIVE"}
os.environ |= {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}

REPOSITORY = Path(__file__).parents[1]
RANDOM_BYTES = 60 * 10**9
BLOCK_BYTES = 16 << 20
COPY_BYTES = 1 << 30
DEMO = {"transformer": "transformer-dev", "text_encoder": "clip-l", "text_encoder_2": "t5-xxl", "vae": "vae"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--weights", default="demo", help="demo, random, or a weights folder")
    options.add_argument("--folder", type=Path, help="where random weights are written, and kept")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--output", type=Path)
    options.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        load_once(given.child)
        return
    with weights_folder(given.weights, given.folder) as folder:
        measured = measure(folder, given.runs)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(measured.pop("gpu")),
        "weights": given.weights if given.weights in ("demo", "random") else "folder",
        "runs": given.runs,
        **measured,
    }
    print(json.dumps(report, indent=2))
    if given.output:
        given.output.write_text(json.dumps(report, indent=2) + "\n")


def measure(folder: Path, runs: int) -> dict[str, Any]:
    """Medians over the runs, each with a plain read of the same files before it."""
    files = weight_files(folder)
    loads, reads, resident = [], [], []
    for _ in range(runs):
        resident.append(drop_from_cache(files))
        reads.append(read_all(files))
        resident.append(drop_from_cache(files))
        loads.append(run_child(folder))
    size = sum(path.stat().st_size for path in files)
    seconds = statistics.median(reads)
    return {
        "gpu": loads[0]["gpu"],
        "device": loads[0]["device"],
        "plan": loads[0]["plan"],
        "page_cache": {"dropped": max(resident) < 0.01, "most_resident_after_drop": round(max(resident), 4)},
        "plain_read": rate(size, seconds),
        "pinned_copy": loads[-1]["pinned_copy"],
        "phases": [median_phase(rows) for rows in zip(*(load["phases"] for load in loads), strict=True)],
        "until_ready_s": round(statistics.median(sum(p["seconds"] for p in load["phases"]) for load in loads), 3),
    }


def median_phase(rows: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    seconds = statistics.median(row["seconds"] for row in rows)
    spread = [round(min(row["seconds"] for row in rows), 4), round(max(row["seconds"] for row in rows), 4)]
    sizes = rate(rows[0]["bytes"], seconds) if rows[0]["bytes"] else {"seconds": round(seconds, 4)}
    return {"phase": rows[0]["phase"], **sizes, "least_and_most_s": spread}


def rate(size: int, seconds: float) -> dict[str, Any]:
    return {"bytes": size, "seconds": round(seconds, 4), "bytes_per_s": round(size / seconds)}


def run_child(folder: Path) -> dict[str, Any]:
    """One load in a process of its own, with the time that it took to come up as the first phase."""
    command = [sys.executable, str(Path(__file__)), "--child", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"loading failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    # Both processes read the same clock of the machine.
    found["phases"].insert(0, {"phase": "process start", "seconds": found.pop("began") - start, "bytes": 0})
    return found


class Phases:
    """Times what happens, on the device too."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def time(self, phase: str) -> Iterator[dict[str, Any]]:
        row: dict[str, Any] = {"phase": phase, "seconds": 0.0, "bytes": 0}
        start = time.monotonic()
        yield row
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        row["seconds"] = time.monotonic() - start
        self.rows.append(row)


def load_once(folder: Path) -> None:
    """In the child: everything that a worker does before it says that it is ready, printed as JSON."""
    began, phases = time.monotonic(), Phases()
    with phases.time("imports"):
        import torch

        from pipelines.components import Folders, load_components, measure_folders, pick_device
        from pipelines.depth_catalogue import resolve_mode
        from pipelines.engine import Engine
        from pipelines.memory.planning import plan_here
        from pipelines.warmup import warm_up
    with phases.time("device"):
        device = pick_device()
        torch.zeros(1, device=device)
    load = what_to_load(folder)
    folders = Folders.from_json(load)
    with phases.time("plan"):
        plan, dtype = plan_here(partial(measure_folders, folders), device, "auto", wanted="auto", limit_bytes=None)
    with timed_loaders(phases), phases.time("everything else") as rest:
        parts = load_components(
            folders,
            device=device,
            dtype=dtype,
            recipe=plan.recipe,
            depth_estimator=load["depth_estimator_name"],
            depth_map_mode=resolve_mode(load["depth_estimator_name"], load["depth_map_mode"]),
        )
    loaders = [row for row in phases.rows if row["phase"].startswith("load ")]
    rest["seconds"] -= sum(row["seconds"] for row in loaders)
    with phases.time("warm-up"):
        warm_up(Engine(parts, max_pixels=plan.max_pixels))
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    report = {"began": began, "phases": phases.rows, "device": str(device), "gpu": card, "plan": plan.name}
    print(json.dumps({**report, "pinned_copy": pinned_copy(device)}))


def what_to_load(folder: Path) -> dict[str, Any]:
    """As the server tells its worker. Raises SystemExit where no model is."""
    from server.app import find_weights, load_message
    from server.settings import Settings

    settings = Settings(weights_dir=folder)
    found = find_weights(settings)
    if not found.models:
        raise SystemExit("\n".join(found.problems))
    return asdict(load_message(settings, found, folder))


@contextmanager
def timed_loaders(phases: Phases) -> Iterator[None]:
    """Times each call that loads one component, where the composition makes it."""
    from pipelines import components

    originals = {name: getattr(components, name) for name in vars(components) if name in LOADERS}
    for name, load in originals.items():
        setattr(components, name, timed(phases, name, load))
    try:
        yield
    finally:
        for name, load in originals.items():
            setattr(components, name, load)


LOADERS = ("load_transformer", "load_t5", "load_clip", "load_vae", "load_estimator", "load_safety_checker")


def timed(phases: Phases, name: str, load: Any) -> Any:
    def call(source: Any, *arguments: Any, **options: Any) -> Any:
        with phases.time(name.replace("_", " ", 1).replace("_", "-")) as row:
            model = load(source, *arguments, **options)
            # Helpers are no modules; their bytes are not counted.
            if hasattr(model, "parameters"):
                row["bytes"] = sum(tensor.nbytes for tensor in model.parameters())
            if hasattr(source, "path"):
                row["phase"] += f" {source.path.parent.name}" if source.form == "folder" else f" {source.path.name}"
        return model

    return call


def pinned_copy(device: Any) -> dict[str, Any] | None:
    """What the card takes in from pinned host memory; None without one."""
    import torch

    if device.type != "cuda":
        return None
    host = torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device=device)
    seconds = []
    for _ in range(6):
        torch.cuda.synchronize()
        start = time.monotonic()
        there.copy_(host, non_blocking=True)
        torch.cuda.synchronize()
        seconds.append(time.monotonic() - start)
    return rate(COPY_BYTES, statistics.median(seconds[1:]))


def weight_files(folder: Path) -> list[Path]:
    """Every weights file under the folder once, whatever its names."""
    paths = (path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".sft", ".gguf", ".pt"))
    return list({(path.stat().st_dev, path.stat().st_ino): path for path in paths}.values())


def read_all(files: Iterable[Path]) -> float:
    """Seconds to read the files from beginning to end, one after the other."""
    buffer = bytearray(BLOCK_BYTES)
    start = time.monotonic()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.monotonic() - start


def drop_from_cache(files: Iterable[Path]) -> float:
    """Asks the kernel to forget the files, and returns the part of their pages that is still in memory, 0…1."""
    there, pages = 0, 0
    for path in files:
        with path.open("rb+" if os.access(path, os.W_OK) else "rb") as file:
            with suppress(OSError):
                os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = pages_in_memory(file.fileno(), path.stat().st_size)
        there, pages = there + sum(byte & 1 for byte in found), pages + len(found)
    return there / max(pages, 1)


def pages_in_memory(descriptor: int, size: int) -> bytes:
    """A byte per page, odd where the page is in memory (mincore(2)); on other systems than Linux all count as such."""
    count = -(-size // mmap.PAGESIZE)
    if not sys.platform.startswith("linux") or not size:
        return b"\1" * count
    libc, result = ctypes.CDLL(None, use_errno=True), (ctypes.c_ubyte * count)()
    with mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as area:
        address = ctypes.c_char.from_buffer(area)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(address)), ctypes.c_size_t(size), result)
        del address
    return b"\1" * count if failed else bytes(result)


@contextmanager
def weights_folder(kind: str, folder: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        if kind == "demo":
            yield build_demo(Path(scratch))
        elif kind == "random":
            if folder is None:
                raise SystemExit("--weights random needs --folder DIR, on a disk with 60 GB free")
            yield folder if (folder / "FLUX.1-Depth-dev" / "transformer").is_dir() else write_random(folder)
        else:
            yield Path(kind)


def build_demo(folder: Path) -> Path:
    command = [sys.executable, "-P", "-m", "weights.demo", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    built = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return Path(built.stdout.strip().splitlines()[-1])


def write_random(folder: Path) -> Path:
    """Both models at full size in bfloat16, with random values, in the layout that they are published in.

    Raises SystemExit without a CUDA card or without room.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < RANDOM_BYTES:
        raise SystemExit(f"random weights take {RANDOM_BYTES / 1e9:.0f} GB and {folder} has {free / 1e9:.1f} GB free")
    if not torch.cuda.is_available():
        raise SystemExit("full-size random weights are made on a CUDA card; try --weights demo")
    shutil.copytree(build_demo(folder / "demo"), folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "demo")
    (folder / "demo.json").unlink()
    dev, depth = folder / "FLUX.1-dev", folder / "FLUX.1-Depth-dev"
    save_random(depth / "transformer", "transformer-depth-dev")
    for part, component in DEMO.items():
        save_random(dev / part, component)
        if part != "transformer":
            shutil.rmtree(depth / part)
            shutil.copytree(dev / part, depth / part, copy_function=os.link)
    return folder


def save_random(folder: Path, component: str) -> None:
    import torch

    from weights.full_size import build_on_meta, materialise

    shutil.rmtree(folder)
    module: Any = materialise(build_on_meta(component), "cuda", torch.bfloat16, seed=1)
    module.save_pretrained(folder, max_shard_size="10GB")


def environment(gpu: str | None) -> dict[str, Any]:
    """What a figure means nothing without."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    packages = ("torch", "diffusers", "transformers", "safetensors", "accelerate")
    return {
        "commit": commit.stdout.strip() or None,
        "hardware": {"machine": platform.machine(), "processor": processor(), "cores": os.cpu_count(), "gpu": gpu},
        "driver": driver() if gpu else None,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "load_average": os.getloadavg()[0],
    }


def processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError):
        return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or None
    return None


if __name__ == "__main__":
    main()
