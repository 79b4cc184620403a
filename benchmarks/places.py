"""Which weights a benchmark runs with, and where they lie. Imports no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

from benchmarks.environment import REPOSITORY
from weights.demo import is_demo

Weights = Literal["demo", "random", "real"]

HELP = (
    "demo: the small built-in family; random: full size with random values (a CUDA card), true in time and memory, its"
    " pictures mean nothing; else a folder of models"
)


def kind_of(weights: str) -> Weights:
    """weights: "demo", "random", or a folder, which may itself hold the demo family."""
    if weights in ("demo", "random"):
        return "demo" if weights == "demo" else "random"
    return "demo" if is_demo(Path(weights)) else "real"


def weights_folder(weights: str, scratch: Path) -> Path:
    """The folder that a server is given; random weights are written into `scratch` first. Raises SystemExit where
    they cannot be."""
    if weights == "random":
        command = [sys.executable, "-m", "benchmarks.random_folder", str(scratch / "random")]
        if subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=False).returncode:
            raise SystemExit("the random weights could not be written; the lines above say why")
        return scratch / "random"
    return build_demo_weights(scratch) if weights == "demo" else Path(weights)


def build_demo_weights(folder: Path) -> Path:
    """Builds the demo weights in a process of its own, so that this one stays without torch. Returns their folder."""
    command = [sys.executable, "-P", "-m", "weights.demo", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(built.stdout.strip().splitlines()[-1])
