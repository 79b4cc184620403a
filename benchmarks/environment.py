"""What a figure means nothing without: the machine, its driver and libraries, the state of the code, the load.

Imports no torch; a benchmark that computes in its own process passes on what torch says of the card.
"""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

REPOSITORY = Path(__file__).parents[1]

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "fastapi", "uvicorn", "pillow", "litserve")


class Part(BaseModel):
    """A part of a report. Unknown names are refused, so that a misspelt figure is an error and not a lost one."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Card(Part):
    """One CUDA card as nvidia-smi names it. power_limit_w is what it may draw, which bounds its clocks."""

    name: str
    memory_bytes: int
    power_limit_w: float | None


class Hardware(Part):
    """cores: those that this process may use. memory_bytes: of the whole machine, None where it is not known."""

    machine: str
    processor: str
    cores: int
    memory_bytes: int | None
    cards: tuple[Card, ...]


class Code(Part):
    """The commit that ran. dirty: the working tree differed from it; None where this is no git checkout."""

    commit: str | None
    dirty: bool | None


class Environment(Part):
    hardware: Hardware
    driver: str | None
    versions: dict[str, str]
    code: Code


def environment() -> Environment:
    cards, driver = _cards()
    hardware = Hardware(
        machine=platform.machine(),
        processor=_processor(),
        cores=_cores(),
        memory_bytes=_memory_bytes(),
        cards=cards,
    )
    return Environment(hardware=hardware, driver=driver, versions=_versions(), code=_code())


def load_average() -> float | None:
    """Processes that ran or wanted to over the last minute, those of the benchmark itself included."""
    with suppress(OSError, AttributeError):
        return round(os.getloadavg()[0], 2)
    return None


def _cards() -> tuple[tuple[Card, ...], str | None]:
    """The cards and the driver's version; nothing where nvidia-smi is not there or finds none."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,power.limit,driver_version", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return (), None
    rows = [[field.strip() for field in line.split(",")] for line in asked.stdout.splitlines() if line.strip()]
    cards = tuple(
        Card(name=name, memory_bytes=int(memory) * 2**20, power_limit_w=_number(power))
        for name, memory, power, _ in rows
    )
    return cards, rows[0][3] if rows else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int | None:
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _code() -> Code:
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return Code(commit=commit.strip() if commit else None, dirty=None if changes is None else bool(changes.strip()))


def _git(*command: str) -> str | None:
    try:
        asked = subprocess.run(["git", *command], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return asked.stdout
