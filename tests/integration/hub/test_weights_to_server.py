"""What `pull` brings is what the server finds: the demo family, published on the hub, pulled and looked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from server.app import find_weights
from server.settings import Settings
from weights.catalogue import read_catalogue
from weights.licence import record_acceptance
from weights.progress import Silent
from weights.pull import pull

FOLDERS = {
    "flux-dev": "FLUX.1-dev",
    "flux-depth-dev": "FLUX.1-Depth-dev",
    "depth-anything-v1-large": "depth-anything-large-hf",
    "safety-concepts": "safety-concepts",
    "nsfw-detector": "nsfw-image-detection",
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_standard_set_is_all_that_the_server_wants(hub_here: Any, demo_weights: Path, tmp_path: Path) -> None:
    catalogue = read_catalogue()
    for name, folder in FOLDERS.items():
        hub_here.publish(catalogue.models[name].repository, contents(demo_weights / folder))
    # The published sizes and hashes are those of real weights.
    models = [replace(model, revision="main", files=(), parts=()) for model in catalogue.find(["standard"])]
    for model in models:
        record_acceptance(tmp_path, model.licence, models, "test")
    pulled = pull(tmp_path, models, catalogue, progress=Silent())
    found = find_weights(Settings(weights_dir=tmp_path))
    assert found.problems == ()
    assert set(found.models) == {"flux-dev", "flux-depth-dev"}
    assert {found.depth_estimator, found.safety_concepts, found.nsfw_detector} <= {item.folder for item in pulled}
    dev, depth = (tmp_path / FOLDERS[name] / "text_encoder_2/model.safetensors" for name in found.models)
    assert dev.samefile(depth)
