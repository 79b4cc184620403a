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

# Run in a process of its own: this one never imports torch.
_PROBE = """
import json, torch
cuda = torch.cuda.is_available()
card = torch.cuda.get_device_properties(0) if cuda else None
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda, "card": card.name if card else None,
    "capability": list(torch.cuda.get_device_capability(0)) if cuda else None,
    "free": torch.cuda.mem_get_info(0)[0] if cuda else 0, "total": card.total_memory if card else 0,
}))
"""


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
    yield _compute()
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


def _compute() -> Finding:
    probed = subprocess.run([sys.executable, "-P", "-c", _PROBE], capture_output=True, text=True, check=False)  # noqa: S603
    if probed.returncode:
        reason = (probed.stderr.strip().splitlines() or ["no output"])[-1]
        advice = "reinstall torch; torch and torchvision must be of the same build"
        return Finding(name="torch", state="bad", text=f"cannot be imported: {reason}", advice=advice)
    found = json.loads(probed.stdout)
    if found["card"] is None:
        advice = "it works, slowly; real weights on the CPU take minutes per step. For a card, check `nvidia-smi`"
        return Finding(name="torch", state="warn", text=f"{found['torch']}, no CUDA card in reach", advice=advice)
    text = (
        f"{found['torch']}, CUDA {found['cuda']}, {found['card']} with {found['free'] / 1e9:.1f} of"
        f" {found['total'] / 1e9:.1f} GB free"
    )
    if found["capability"] < [8, 0]:
        advice = "the card has no fast bfloat16; expect it to be slow"
        return Finding(name="torch", state="warn", text=text, advice=advice)
    return Finding(name="torch", state="good", text=text)


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
