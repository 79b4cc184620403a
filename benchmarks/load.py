"""How long a worker takes until it can draw, phase by phase, beside what disk and card can do with the same bytes.

    python -m benchmarks.load --weights demo              # the small built-in family, anywhere
    python -m benchmarks.load --weights random [--save]   # FLUX.1-dev at full size, random values (34 GB), a CUDA card
    python -m benchmarks.load --weights FOLDER            # weights that are there, in any form

Every run is a fresh process, as a worker is: interpreter, imports, memory plan, each component (read and placed), one
small picture per model. Before each run the files are dropped from the page cache where that can be done, and what
stayed is said. In turn with the runs the same files are read from the disk one after the other, and on CUDA pinned host
memory is copied to the card.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.environment import REPOSITORY
from benchmarks.places import HELP, kind_of, weights_folder
from benchmarks.rows import LoadRow

# As the worker sets them, before the libraries read them.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_ENABLE_PARALLEL_LOADING": "1", "OMP_WAIT_POLICY": "PASSIVE"}
os.environ |= {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}

BLOCK_BYTES = 16 << 20
COPY_BYTES = 1 << 30
LOADERS = ("load_transformer", "load_t5", "load_clip", "load_vae", "load_estimator", "load_safety_checker")


def main() -> None:
    options = report.arguments(__doc__)
    options.add_argument("--weights", default="demo", help=HELP)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        load_once(given.child)
        return
    run = report.Run(given)
    with tempfile.TemporaryDirectory() as scratch:
        rows, device = measure(weights_folder(given.weights, Path(scratch)), 1 if given.quick else given.runs)
    run.finish(report.LoadReport, rows, weights=kind_of(given.weights), device=device)


def measure(folder: Path, runs: int) -> tuple[list[LoadRow], str]:
    """The bounds and each phase, as medians over the runs, and the device. Each run comes after a plain read."""
    files = weight_files(folder)
    loads, reads, resident = [], [], 0.0
    for _ in range(runs):
        resident = max(resident, drop_from_cache(files))
        reads.append(read_all(files))
        resident = max(resident, drop_from_cache(files))
        loads.append(run_child(folder))
    size = sum(path.stat().st_size for path in files)
    plain = row("plain read of the same files", reads, size, resident)
    phases = [
        row(same[0]["phase"], [phase["seconds"] for phase in same], same[0]["bytes"], resident)
        for same in zip(*(load["phases"] for load in loads), strict=True)
    ]
    whole = [sum(phase["seconds"] for phase in load["phases"]) for load in loads]
    copies = loads[-1]["copies_s"]
    pinned = [row("pinned host memory to card", copies, COPY_BYTES, resident)] if copies else []
    return [plain, *pinned, *phases, row("until ready", whole, 0, resident)], loads[0]["device"]


def row(phase: str, seconds: list[float], size: int, resident: float) -> LoadRow:
    median = statistics.median(seconds)
    return LoadRow(
        phase=phase,
        bytes=size or None,
        median_s=round(median, 4),
        least_s=round(min(seconds), 4),
        most_s=round(max(seconds), 4),
        bytes_per_s=round(size / median) if size else None,
        cached_before=round(resident, 4),
    )


def run_child(folder: Path) -> dict[str, Any]:
    """One load in a process of its own, with the time that it took to come up as the first phase."""
    command = [sys.executable, "-m", "benchmarks.load", "--child", str(folder.resolve())]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
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
    print(json.dumps({"began": began, "phases": phases.rows, "device": str(device), "copies_s": pinned_copies(device)}))


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


def timed(phases: Phases, name: str, load: Callable[..., Any]) -> Callable[..., Any]:
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


def pinned_copies(device: Any) -> list[float]:
    """Seconds of copies of COPY_BYTES from pinned host memory to the card, warm; none without a card."""
    import torch

    if device.type != "cuda":
        return []
    host = torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device=device)
    seconds = []
    for _ in range(6):
        torch.cuda.synchronize()
        start = time.monotonic()
        there.copy_(host, non_blocking=True)
        torch.cuda.synchronize()
        seconds.append(time.monotonic() - start)
    return seconds[1:]


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


if __name__ == "__main__":
    main()
