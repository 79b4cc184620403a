"""A weights folder with FLUX.1-dev in full size and random values (34 GB), loaded by the server as real ones are.

    python -m benchmarks.random_folder FOLDER

The values are drawn on the CUDA card. Tokenizers and scheduler are the demo family's; there are no safety checkers.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.places import build_demo_weights

PARTS = {
    "transformer": "transformer-dev",
    "text_encoder": "clip-l",
    "text_encoder_2": "t5-xxl",
    "vae": "vae",
}
"""Folders of diffusers' layout, and the full-size component that lies in each."""

NEEDED_BYTES = 36 * 10**9


def main() -> None:
    import torch

    from weights.full_size import build_on_meta, materialise

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    root = options.parse_args().folder
    if not torch.cuda.is_available():
        raise SystemExit("full-size random weights need a CUDA card; try --weights demo")
    root.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(root).free < NEEDED_BYTES:
        raise SystemExit(f"{root} has less than the {NEEDED_BYTES / 1e9:.0f} GB free that the folder takes; set TMPDIR")
    with tempfile.TemporaryDirectory() as scratch:
        demo = build_demo_weights(Path(scratch))
        write(root, demo, lambda component: materialise(build_on_meta(component), "cuda", torch.bfloat16, seed=0))
    print(root)


def write(root: Path, demo: Path, make: Callable[[str], Any]) -> None:
    """Writes <root>/FLUX.1-dev. demo: the demo family's folder. make: a module by its name in `weights.full_size`; one
    is held at a time."""
    folder = root / "FLUX.1-dev"
    shutil.copytree(demo / "FLUX.1-dev", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for part, component in PARTS.items():
        make(component).save_pretrained(folder / part)


if __name__ == "__main__":
    main()
