"""LoRA files in one folder: which there are, and what their headers tell before anything is loaded. No torch.

A safetensors file begins with the name and shape of every tensor in it (https://github.com/huggingface/safetensors).
The layouts are told apart by the same marks in the same order as in diffusers' `FluxLoraLoaderMixin.lora_state_dict`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

Layout = Literal["kohya", "xlabs", "bfl-control", "fal", "diffusers"]
"""Whose names a file uses: kohya-ss/sd-scripts (ComfyUI's too), XLabs-AI/x-flux, black-forest-labs' control LoRAs,
fal's Kontext trainer, or diffusers and peft."""

SUFFIX = ".safetensors"
NAMES_SHOWN = 20
TEXT_SHOWN = 200
"""Characters of a foreign text that a message repeats."""

_LAYOUTS: tuple[tuple[str, Layout], ...] = (
    (".lora_down.weight", "kohya"),
    ("processor", "xlabs"),
    ("query_norm.scale", "bfl-control"),
    ("base_model", "fal"),
    ("lora", "diffusers"),
)
_OTHER_ADAPTERS = {
    ".lokr_": "LoKr",
    ".hada_": "LoHa",
    ".oft_": "OFT",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
}
_UNET = re.compile(r"(down|up|mid|input|output|middle)_blocks?[._]")
_UNET_CONTEXT = re.compile(r"attn2[._]to_k\.(lora_down|lora_A|lora\.down)\.weight$")
_UNET_NAMES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}
"""By the width of the text that cross-attention reads."""

_FLUX = re.compile(
    r"(double|single|transformer)_blocks[._]|(img|txt|time|vector|guidance)_in[._]|final_layer[._]"
    r"|(x|context)_embedder\.|time_text_embed\.|norm_out\.|proj_out\."
)
_TEXT = ("lora_te", "text_encoder")
_NORMS = re.compile(r"\bnorm_(added_)?[qk]\.|query_norm\.scale$")
_INPUT = re.compile(r"(x_embedder|img_in)\.(lora_down|lora_A|lora\.down)\.weight$")


class UnusableLora(ValueError):
    """A LoRA that is not there or cannot be used. The text names it and says why; it is fit for the client."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a LoRA file's header tells.

    name: the file's stem. shapes: of every tensor, by the file's own names.
    """

    path: Path
    layout: Layout
    shapes: dict[str, tuple[int, ...]]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def text_tensors(self) -> int:
        """Tensors that are meant for a text encoder."""
        return sum(key.startswith(_TEXT) for key in self.shapes)

    @property
    def is_control(self) -> bool:
        """True for a control LoRA: beside its low-rank layers it replaces the attention's norm scales."""
        return any(_NORMS.search(key) for key in self.shapes)

    @property
    def input_width(self) -> int | None:
        """Packed latent channels that it reads: 64 text to image, 128 control, 384 Fill. None: it leaves them alone."""
        return next((shape[1] for key, shape in self.shapes.items() if _INPUT.search(key) and len(shape) > 1), None)


def available(folder: Path) -> list[tuple[str, int]]:
    """Name and size in bytes of every LoRA file directly in `folder`, by name. Raises OSError as the disk does.

    The name is the file's stem. Hidden files and links that lead out of the folder are not listed. No header is read.
    """
    return sorted((name, path.stat().st_size) for name, path in _files(folder).items())


def find(folder: Path, name: str) -> Path:
    """The file of that name, which `available` lists. Raises UnusableLora with the names that there are, OSError."""
    files = _files(folder)
    if name in files:
        return files[name]
    known = sorted(files)
    more = f" and {len(known) - NAMES_SHOWN} more" if len(known) > NAMES_SHOWN else ""
    raise UnusableLora(f"lora {shown(name)} is unknown; available: {', '.join(known[:NAMES_SHOWN]) or 'none'}{more}")


def _files(folder: Path) -> dict[str, Path]:
    """Files by name. A client's name is only ever looked up here, so it cannot be a path."""
    root = folder.resolve()
    return {path.stem: path for path in root.iterdir() if _belongs(path, root)}


def _belongs(path: Path, root: Path) -> bool:
    target = path.resolve()
    named = path.suffix == target.suffix == SUFFIX and not path.name.startswith(".")
    return named and target.parent == root and target.is_file()


def shown(text: object) -> str:
    """A foreign text in quotes, on one line and not too long."""
    line = " ".join(str(text).split())
    return repr(line if len(line) <= TEXT_SHOWN else f"{line[:TEXT_SHOWN]}…")


def read_header(path: Path) -> Header:
    """Reads names and shapes only. Raises UnusableLora for a damaged file and for one that is no LoRA for FLUX.1."""
    try:
        with safe_open(path, framework="np") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise UnusableLora(f"lora {path.stem} is damaged or cannot be read: {shown(error)}") from error
    refusal = _refusal(shapes)
    if refusal:
        raise UnusableLora(f"lora {path.stem} {refusal}")
    layout = next(layout for mark, layout in _LAYOUTS if any(mark in key for key in shapes))
    return Header(path, layout, shapes)


def _refusal(shapes: dict[str, tuple[int, ...]]) -> str | None:
    other = next((kind for mark, kind in _OTHER_ADAPTERS.items() if any(mark in key for key in shapes)), None)
    if other:
        return f"is a {other}; only plain LoRA is supported"
    if not any("lora" in key for key in shapes):
        return "holds no LoRA weights"
    if any(_UNET.search(key) for key in shapes):
        return f"was made for {_unet_name(shapes)}, not for FLUX.1"
    if not any(_FLUX.search(key) for key in shapes):
        return f"changes no layer of FLUX.1; it holds {shown(next(iter(shapes)))}"
    return None


def _unet_name(shapes: dict[str, tuple[int, ...]]) -> str:
    widths = [shape[1] for key, shape in shapes.items() if _UNET_CONTEXT.search(key) and len(shape) > 1]
    return _UNET_NAMES.get(widths[0] if widths else 0, "Stable Diffusion")


def check_input(header: Header, channels: int) -> None:
    """Raises UnusableLora when it cannot be added to a transformer that reads `channels` packed latent channels.

    64 channels fit into 128: what it knows of them are the noisy latents, which come first.
    """
    width = header.input_width
    if header.is_control:
        raise UnusableLora(f"lora {header.name} {_control_refusal(width, channels)}")
    if width is not None and width not in (channels, 64):
        made_for = {384: "FLUX.1-Fill", 128: "a control model"}.get(width, "another model")
        raise UnusableLora(
            f"lora {header.name} was made for {made_for}: it reads {width} input channels, this model {channels}"
        )


def _control_refusal(width: int | None, channels: int) -> str:
    if width == channels:
        return (
            "is a control LoRA, which makes a depth or canny model of FLUX.1-dev; this model already is one, and both "
            "together draw noise"
        )
    return (
        f"is a control LoRA: it reads {width} input channels, this model {channels}; it makes another model of "
        "FLUX.1-dev and cannot be added to a request"
    )
