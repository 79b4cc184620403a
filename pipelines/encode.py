"""Pixels → the bytes of a JPEG, WebP or PNG file, with how the picture was made inside when that is wanted."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .request import GenerationRequest, OutputFormat
from .speed.tiers import EXACT

PNG_LEVEL = 1
"""zlib level. Level 6 takes several times as long for about a tenth fewer bytes on photographs."""

WEBP_METHOD = 2
"""Pillow's own, 4, takes about twice as long (at 1024×1024 some 35 ms more) for a twentieth fewer bytes and the same
likeness."""

SOFTWARE = "flux-local-server"

_LOSSY: dict[str, tuple[str, dict[str, int]]] = {"webp": ("WEBP", {"method": WEBP_METHOD}), "jpg": ("JPEG", {})}

_EXIF_SOFTWARE = 0x0131
_EXIF_IFD = 0x8769
_EXIF_USER_COMMENT = 0x9286


def encode_image(
    pixels: torch.Tensor, output_format: OutputFormat, quality: int, parameters: str | None = None
) -> bytes:
    """uint8 [H, W, 3] on the CPU → file bytes.

    quality: 0–100 as Pillow takes it, for jpg and webp; png is lossless.
    parameters: text to put inside, see `describe`; None for none.
    """
    picture = Image.fromarray(pixels.numpy())
    buffer = io.BytesIO()
    if output_format == "png":
        picture.save(buffer, "PNG", compress_level=PNG_LEVEL, pnginfo=_png_text(parameters))
    else:
        kind, options = _LOSSY[output_format]
        picture.save(buffer, kind, quality=quality, **options, **_exif(parameters))
    return buffer.getvalue()


def describe(request: GenerationRequest, prompt: str, seed: int, tier: str = "") -> str:
    """How a picture was made, in the text form that image tools of this field read (stable-diffusion-webui's
    `parameters`): the prompt, then one line of settings.
    """
    settings: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": "Euler",
        "CFG scale": 1,
        "Distilled CFG Scale": f"{request.guidance:g}",
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model": request.model,
    }
    if tier not in ("", EXACT.name):
        settings["Tier"] = tier
    if request.init_image:
        settings["Denoising strength"] = f"{request.strength:g}"
    if request.loras:
        settings["Lora"] = " ".join(f"{lora.name}:{lora.scale:g}" for lora in request.loras)
    return f"{prompt}\n" + ", ".join(f"{name}: {value}" for name, value in settings.items())


def _png_text(parameters: str | None) -> PngInfo | None:
    if parameters is None:
        return None
    text = PngInfo()
    text.add_itxt("parameters", parameters)
    text.add_text("Software", SOFTWARE)
    return text


def _exif(parameters: str | None) -> dict[str, bytes]:
    if parameters is None:
        return {}
    exif = Image.Exif()
    exif[_EXIF_SOFTWARE] = SOFTWARE
    exif.get_ifd(_EXIF_IFD)[_EXIF_USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be", "replace")
    return {"exif": exif.tobytes()}
