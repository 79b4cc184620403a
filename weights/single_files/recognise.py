"""Single files, told by the names and shapes of their tensors.

Names as in black-forest-labs/flux (`double_blocks`), diffusers (`transformer_blocks`), ComfyUI (the prefix
`model.diffusion_model.`, `text_encoders.`, `vae.`), llama.cpp's converter for T5 (`enc.blk`), transformers for T5 and
CLIP, Nunchaku (`wscales`) and bitsandbytes (`quant_state`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..completeness import PICKLE_SUFFIXES
from ..headers import READERS, Broken, Tensor, WeightsFile
from .found import Component, Found, Part
from .loadable import parts_in, quantisation_problem, shape_problem

Tensors = Mapping[str, Tensor]

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
NAMES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F8_E4M3": "fp8 (e4m3)", "F8_E5M2": "fp8 (e5m2)", "I8": "int8"}
SUFFIXES = (*READERS, *PICKLE_SUFFIXES)


def recognise_file(path: Path) -> Found:
    """What the weights file at `path` is; an unknown kind of file is found as "other". Raises OSError."""
    if path.suffix in PICKLE_SUFFIXES:
        why = "a pickle can run code when it is loaded; only safetensors and GGUF are read"
        return Found(path=path, form="pickle", what="unknown", component="other", why_not=why)
    if path.suffix not in READERS:
        return Found(path=path, form="file", what="unknown", component="other", why_not="it is no weights file")
    try:
        return _describe(path, READERS[path.suffix](path))
    except Broken as error:
        return Found(path=path, form="damaged file", what="unknown", component="other", why_not=f"it {error}")


def _describe(path: Path, file: WeightsFile) -> Found:
    tensors = _without_prefix(file.tensors)
    for kind in (_everything, _lora, _transformer, _vae, _t5, _clip):
        if told := kind(tensors, file.tensors):
            what, component, model = told
            parts = {} if component == "lora" else parts_in(file)
            why_not = _why_not(file, component, model, parts)
            return Found(
                path=path,
                form="GGUF file" if file.format == "gguf" else "single file",
                what=what,
                component=component,
                model=model,
                precision=_precision(file),
                loadable=not why_not,
                why_not=why_not,
                parts={} if why_not else parts,
            )
    why = "its tensors are not those of a FLUX.1 component"
    return Found(path=path, form="file", what="unknown", component="other", precision=_precision(file), why_not=why)


Told = tuple[str, Component, str | None]


def _everything(tensors: Tensors, raw: Tensors) -> Told | None:
    others = ("text_encoders.", "conditioner.", "vae.", "first_stage_model.")
    if not any(name.startswith(others) for name in raw) or not (told := _transformer(tensors, raw)):
        return None
    return f"{told[0]} with text encoders and VAE in one file", "pipeline", told[2]


def _lora(tensors: Tensors, raw: Tensors) -> Told | None:
    if not any(".lora_A." in name or ".lora_down." in name or ".lora.down." in name for name in raw):
        return None
    inputs = [
        tensors[name].shape[-1]
        for name in tensors
        if name.endswith(("img_in.lora_A.weight", "x_embedder.lora_A.weight"))
    ]
    if inputs == [128]:
        return "FLUX.1 control LoRA for depth (one for canny looks the same)", "lora", "flux-depth-lora"
    return "LoRA", "lora", None


def _transformer(tensors: Tensors, raw: Tensors) -> Told | None:
    if "double_blocks.0.img_attn.proj.bias" in tensors or "double_blocks.0.img_attn.qkv.weight" in tensors:
        return _flux(tensors, "img_in.weight", "guidance_in.in_layer.weight")
    if "transformer_blocks.0.attn.to_out.0.bias" in tensors or "transformer_blocks.0.attn.to_q.weight" in tensors:
        return _flux(tensors, "x_embedder.weight", "time_text_embed.guidance_embedder.linear_1.weight")
    if any(name.startswith("transformer_blocks.") and name.endswith((".wscales", ".qweight")) for name in tensors):
        return "FLUX.1 transformer of Nunchaku (SVDQuant)", "transformer", None
    return None


def _flux(tensors: Tensors, image_input: str, guidance: str) -> Told:
    """The kind of FLUX.1 by the channels that its image input reads, as diffusers tells them apart."""
    shape = tensors[image_input].shape if image_input in tensors else ()
    channels = shape[1] if len(shape) == 2 else 0
    if channels == 64:
        kind, model = ("[dev]", "flux-dev") if guidance in tensors else ("[schnell]", None)
    else:
        kinds = {128: ("Depth [dev] (Canny looks the same)", "flux-depth-dev"), 384: ("Fill [dev]", None)}
        kind, model = kinds.get(channels, ("of a kind that its header does not tell", None))
    return f"FLUX.1 {kind} transformer", "transformer", model


def _vae(tensors: Tensors, raw: Tensors) -> Told | None:
    latents = tensors.get("decoder.conv_in.weight")
    if latents is None or not any(name.startswith("encoder.") for name in tensors):
        return None
    if latents.shape[1:2] != (16,):
        return "VAE of another model", "vae", None
    original = "encoder.down.0.block.0.conv1.weight" in tensors
    return f"VAE of FLUX.1, {'original' if original else 'diffusers'} names", "vae", "flux-dev"


def _t5(tensors: Tensors, raw: Tensors) -> Told | None:
    first = tensors.get("encoder.block.0.layer.0.SelfAttention.q.weight") or tensors.get("enc.blk.0.attn_q.weight")
    if first is None:
        return None
    if 4096 not in first.shape:
        return "T5 of another size than XXL", "text-encoder", None
    return "T5-XXL text encoder", "text-encoder", "flux-dev"


def _clip(tensors: Tensors, raw: Tensors) -> Told | None:
    first = tensors.get("text_model.encoder.layers.0.self_attn.q_proj.weight")
    if first is None:
        return None
    if first.shape[-1] != 768:
        return "CLIP of another size than L", "text-encoder", None
    return "CLIP-L text encoder", "text-encoder", "flux-dev"


def _without_prefix(tensors: Tensors) -> Tensors:
    prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in tensors)), "")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _precision(file: WeightsFile) -> str:
    if any("quant_state" in name for name in file.tensors):
        return "nf4 (bitsandbytes)"
    if any(name.endswith(".wscales") for name in file.tensors):
        return "int4 or fp4 (SVDQuant)"
    dtype = file.main_dtype()
    scaled = any(name.endswith((".scale_weight", ".weight_scale")) for name in file.tensors)
    return NAMES.get(dtype, dtype) + (" with scales" if scaled else "")


def _why_not(file: WeightsFile, component: Component, model: str | None, parts: Mapping[Part, str]) -> str:
    if component == "lora":
        if model == "flux-depth-lora" and file.format == "safetensors":
            return ""
        return "LoRAs are no weights of their own: name their folder with FLUX_LORA_DIR"
    if problem := quantisation_problem(file):
        return problem
    return shape_problem(file, parts) if model else "it is not one of the models that this server runs"
