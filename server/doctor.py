"""What on this machine would stop the server from working, one finding a line, each with what to do about it."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from .settings import Settings

DISTRIBUTION = "flux-local-server"
PACKAGES = ("server", "pipelines", "weights")

_MARKS = {"good": "ok  ", "warn": "note", "bad": "BAD "}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """state: good, warn (works, with a restriction) or bad (does not work). advice: what to do unless good."""

    name: str
    state: Literal["good", "warn", "bad"]
    text: str
    advice: str = ""

    def line(self) -> str:
        advice = f"  → {self.advice}" if self.advice else ""
        return f"{_MARKS[self.state]} {self.name}: {self.text}{advice}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(settings: Settings) -> list[Finding]:
    """Every finding, in the order in which a person would look."""
    return list(_examine(settings))


def _examine(settings: Settings) -> Iterator[Finding]:
    yield _python()
    yield _ownership()
    yield from _compute(settings)
    yield _sqlite()
    yield _data_dir(settings.data_dir)
    yield _disk(settings)
    yield from _weights(settings)
    yield _port(settings)


def _python() -> Finding:
    text = ".".join(map(str, sys.version_info[:3]))
    return Finding(name="python", state="good", text=text)


def _ownership() -> Finding:
    """Another distribution that ships a folder of the same name would overwrite ours without a word."""
    owners = metadata.packages_distributions()
    foreign = {name: sorted(set(owners.get(name, [])) - {DISTRIBUTION}) for name in PACKAGES}
    clashes = [f"{name} is also in {', '.join(others)}" for name, others in foreign.items() if others]
    if clashes:
        advice = "install this server into an environment of its own"
        return Finding(name="packages", state="bad", text="; ".join(clashes), advice=advice)
    return Finding(name="packages", state="good", text=f"{', '.join(PACKAGES)} belong to {DISTRIBUTION}")


def _compute(settings: Settings) -> Iterator[Finding]:
    """torch, card, driver, attention and memory plan, asked of a process of its own: this one never imports torch."""
    from .app import find_weights, load_message

    load = load_message(settings, find_weights(settings), settings.data_dir)
    command = [sys.executable, "-P", "-m", "pipelines.probe"]
    probed = subprocess.run(command, input=json.dumps(asdict(load)), capture_output=True, text=True, check=False)  # noqa: S603
    if probed.returncode:
        reason = (probed.stderr.strip().splitlines() or ["no output"])[-1]
        advice = "reinstall torch; torch and torchvision must be of the same build"
        yield Finding(name="torch", state="bad", text=f"cannot be used: {reason}", advice=advice)
        return
    found = json.loads(probed.stdout)
    yield Finding(name="torch", state="good", text=f"{found['torch']}, built for CUDA {found['cuda'] or '(none)'}")
    yield _card(found) if found["card"] else _no_card(found)
    yield Finding(name="attention", state="good", text=", ".join(found["attention"]))
    yield _plan(found, has_weights=bool(load.models))


def _card(found: dict[str, Any]) -> Finding:
    text = (
        f"{found['card']}, driver {_driver() or 'unknown'}, {found['free_bytes'] / 1e9:.1f} of"
        f" {found['total_bytes'] / 1e9:.1f} GB free"
    )
    if found["capability"] < [8, 0]:
        advice = "the card has no fast bfloat16; expect it to be slow"
        return Finding(name="card", state="warn", text=text, advice=advice)
    return Finding(name="card", state="good", text=text)


def _no_card(found: dict[str, Any]) -> Finding:
    text = (
        f"no CUDA card in reach; {found['device']} reaches {found['matrix_tflops']:g} TFLOP/s, so a step at 1024×1024"
        f" with real weights takes {found['least_step_s']:g} s at the very least, a picture 28 of them"
    )
    driver = _driver()
    advice = (
        f"driver {driver} is there: this torch is not built for it, or the card is hidden (CUDA_VISIBLE_DEVICES)"
        if driver
        else "it works, slowly; for a card, install NVIDIA's driver and check `nvidia-smi`"
    )
    return Finding(name="card", state="warn", text=text, advice=advice)


def _driver() -> str:
    """NVIDIA's driver version, empty where there is none."""
    if not (tool := shutil.which("nvidia-smi")):
        return ""
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    return (subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines() or [""])[0].strip()  # noqa: S603


def _plan(found: dict[str, Any], *, has_weights: bool) -> Finding:
    if found["plan"] is None:
        advice = "free device or host memory, or serve one model only"
        state: Literal["warn", "bad"] = "bad" if has_weights else "warn"
        return Finding(
            name="memory plan", state=state, text=f"for {found['plan_for']}: {found['plan_line']}", advice=advice
        )
    text = f"for {found['plan_for']}: {found['dtype']}, {found['plan_line']}"
    return Finding(name="memory plan", state="good", text=text)


def _sqlite() -> Finding:
    return Finding(name="sqlite", state="good", text=sqlite3.sqlite_version)


def _data_dir(folder: Path) -> Finding:
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        advice = "choose another with --data-dir"
        return Finding(name="data folder", state="bad", text=f"{folder}: {error.strerror}", advice=advice)
    return Finding(name="data folder", state="good", text=str(folder.resolve()))


def _disk(settings: Settings) -> Finding:
    folder = next(path for path in (settings.data_dir, *settings.data_dir.resolve().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free"
    if free < settings.min_free_bytes:
        advice = f"free some space; below {settings.min_free_bytes / 1e9:.1f} GB new work is refused"
        return Finding(name="disk", state="bad", text=text, advice=advice)
    return Finding(name="disk", state="good", text=text)


def _weights(settings: Settings) -> Iterator[Finding]:
    from .app import find_weights

    found = find_weights(settings)
    for name, sources in found.models.items():
        yield Finding(name="weights", state="good", text=f"{name} in {sources.home}")
    for problem in found.problems:
        state: Literal["warn", "bad"] = "warn" if found.models or settings.weights_dir is None else "bad"
        yield Finding(name="weights", state=state, text=problem)


def _port(settings: Settings) -> Finding:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            text = f"{settings.host}:{settings.port}: {error.strerror}"
            return Finding(name="port", state="warn", text=text, advice="another program has it; choose another --port")
    return Finding(name="port", state="good", text=f"{settings.host}:{settings.port} is free")
