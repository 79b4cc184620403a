"""Model folders as diffusers and transformers save them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..catalogue import Catalogue, Model
from ..single_files import Found

OTHER_KINDS = ("canny", "fill", "schnell", "redux", "kontext", "krea", "onnx")
"""Relatives of the two models whose configuration may be the same: known only by their names."""

BITSANDBYTES = "bitsandbytes"
INSTALL_BITSANDBYTES = "pip install 'flux-local-server[nf4]'"

ARCHITECTURES = {"StableDiffusionSafetyChecker": "safety-concepts"}


def recognise_folder(folder: Path, catalogue: Catalogue, name: str = "") -> Found | None:
    """What the model folder is, or None where it is none. name: of its repository, where that is known."""
    name = name or folder.name
    if (folder / "transformer" / "config.json").is_file():
        return _flux(folder, catalogue, name)
    if (folder / "config.json").is_file():
        return _helper(folder, catalogue, name)
    return None


def _flux(folder: Path, catalogue: Catalogue, name: str) -> Found:
    config = read_json(folder / "transformer" / "config.json")
    model, what = _kind(config, catalogue, f"{name} {read_json(folder / 'model_index.json').get('_name_or_path', '')}")
    quantised = _quantised(folder)
    return Found(
        path=folder,
        form="diffusers folder",
        what=what,
        component="pipeline",
        model=model.name if model else None,
        precision=quantised or "as saved",
        loadable=not (why_not := _why_not(folder, model, quantised)),
        why_not=why_not,
    )


def _kind(config: dict[str, Any], catalogue: Catalogue, names: str) -> tuple[Model | None, str]:
    """The catalogue's model with this transformer, and words for it."""
    if other := next((kind for kind in OTHER_KINDS if kind in names.lower()), None):
        return None, f"FLUX.1 {other}"
    channels, guided = config.get("in_channels", 64), config.get("guidance_embeds", False)
    fitting = [model for model in catalogue.models.values() if model.layout == "flux" and model.in_channels == channels]
    if not fitting or not guided:
        return None, f"FLUX.1 with {channels} input channels" + ("" if guided else ", without guidance: schnell")
    note = " (Canny looks the same)" if channels == 128 and "depth" not in names.lower() else ""
    return fitting[0], fitting[0].title + note


def _quantised(folder: Path) -> str:
    """How the transformer or T5 is quantised, empty where neither is."""
    for part in ("transformer", "text_encoder_2"):
        if quantisation := read_json(folder / part / "config.json").get("quantization_config"):
            four_bits = quantisation.get("load_in_4bit") or quantisation.get("_load_in_4bit")
            return f"{quantisation.get('quant_method', 'quantised')}{' 4 bit' if four_bits else ''}"
    return ""


def _why_not(folder: Path, model: Model | None, quantised: str) -> str:
    if model is None:
        return "it is not one of the models that this server runs"
    if quantised and not quantised.startswith(BITSANDBYTES):
        return f"this version loads no folders quantised by {quantised}"
    if quantised and find_spec(BITSANDBYTES) is None:
        return f"it needs bitsandbytes: {INSTALL_BITSANDBYTES}"
    if problem := model.problem(folder):
        return f"{problem}; `pull {model.name}` fetches what is missing"
    return ""


def _helper(folder: Path, catalogue: Catalogue, name: str) -> Found | None:
    config = read_json(folder / "config.json")
    model = _by_name(catalogue, name) or _by_architecture(catalogue, config)
    if model is None:
        return None
    problem = model.problem(folder)
    why_not = f"{problem}; `pull {model.name}` fetches what is missing" if problem else ""
    return Found(
        path=folder,
        form="transformers folder",
        what=model.title,
        component="helper",
        model=model.name,
        precision="as saved",
        loadable=problem is None,
        why_not=why_not,
    )


def _by_name(catalogue: Catalogue, name: str) -> Model | None:
    helpers = (model for model in catalogue.models.values() if model.layout == "transformers")
    return next((model for model in helpers if name in (model.folder_name, model.repository, *model.folders)), None)


def _by_architecture(catalogue: Catalogue, config: dict[str, Any]) -> Model | None:
    labels = set(config["id2label"].values()) if isinstance(config.get("id2label"), dict) else set()
    if labels == {"normal", "nsfw"}:
        return catalogue.models.get("nsfw-detector")
    names = (ARCHITECTURES.get(str(name), "") for name in config.get("architectures") or ())
    return next((catalogue.models[name] for name in names if name in catalogue.models), None)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
