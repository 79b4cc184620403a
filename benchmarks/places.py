"""Which weights a benchmark runs with, and where they lie. Imports no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

from weights.demo import is_demo

Weights = Literal["demo", "random", "real"]

SERVED_HELP = "demo: the small built-in family; else a folder of models"

HELP = (
    f"{SERVED_HELP}; random: full size with random values (a CUDA card), true in time and memory, its pictures mean"
    " nothing"
)


def kind_of(weights: str) -> Weights:
    """weights: "demo", "random", or a folder, which may itself hold the demo family."""
    if weights in ("demo", "random"):
        return "demo" if weights == "demo" else "random"
    return "demo" if is_demo(Path(weights)) else "real"


def weights_folder(weights: str, scratch: Path) -> Path:
    """The folder that a server is given. Raises SystemExit for random weights, which are not on disk."""
    if weights == "random":
        raise SystemExit("the server loads weights from disk; pass a folder of models, or demo")
    return build_demo_weights(scratch) if weights == "demo" else Path(weights)


def build_demo_weights(folder: Path) -> Path:
    """Builds the demo weights in a process of its own, so that this one stays without torch. Returns their folder."""
    command = [sys.executable, "-P", "-m", "weights.demo", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(built.stdout.strip().splitlines()[-1])
