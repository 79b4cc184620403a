"""What the config.json files of the published repositories say, as far as it shapes or steers the computation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One network.

    library, class_name: where its class is found.
    config: what the class (diffusers) or its config class (transformers) is called with.
    source: hub repository, and folder in it, that publishes the configuration.
    """

    library: Literal["diffusers", "transformers"]
    class_name: str
    config: Mapping[str, Any]
    source: str


def _transformer(*, in_channels: int, source: str) -> Component:
    """The FLUX.1 transformer: reads `in_channels` packed channels a token, always writes 64.

    The same numbers are FluxParams in black-forest-labs/flux, `util.py`.
    """
    config = {
        "patch_size": 1,
        "in_channels": in_channels,
        "out_channels": 64,  # where it is missing, a control model's head gets as many channels as its input has
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    }
    return Component(library="diffusers", class_name="FluxTransformer2DModel", config=config, source=source)


def _depth_anything(
    *, size: str, width: int, layers: int, out_indices: tuple[int, ...], neck: tuple[int, ...], fusion: int
) -> Component:
    """Depth Anything v1: a DINOv2 with heads of 64 channels, and a DPT head that gives relative disparity."""
    backbone = {
        "model_type": "dinov2",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "image_size": 518,
        "patch_size": 14,
        "out_indices": list(out_indices),
        "reshape_hidden_states": False,
    }
    config = {
        "backbone_config": backbone,
        "reassemble_hidden_size": width,
        "reassemble_factors": [4, 2, 1, 0.5],
        "neck_hidden_sizes": list(neck),
        "fusion_hidden_size": fusion,
        "head_hidden_size": 32,
        "depth_estimation_type": "relative",
    }
    return Component(
        library="transformers",
        class_name="DepthAnythingForDepthEstimation",
        config=config,
        source=f"LiheYoung/depth-anything-{size}-hf",
    )


COMPONENTS: Mapping[str, Component] = {
    "transformer-dev": _transformer(in_channels=64, source="black-forest-labs/FLUX.1-dev/transformer"),
    "transformer-depth-dev": _transformer(in_channels=128, source="black-forest-labs/FLUX.1-Depth-dev/transformer"),
    "t5-xxl": Component(
        library="transformers",
        class_name="T5EncoderModel",
        config={
            "vocab_size": 32128,
            "d_model": 4096,
            "d_kv": 64,
            "d_ff": 10240,
            "num_layers": 24,
            "num_heads": 64,
            "feed_forward_proj": "gated-gelu",
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "layer_norm_epsilon": 1e-6,
            "is_encoder_decoder": False,
            "use_cache": False,
            "tie_word_embeddings": False,
        },
        source="black-forest-labs/FLUX.1-dev/text_encoder_2",
    ),
    "clip-l": Component(
        library="transformers",
        class_name="CLIPTextModel",
        config={
            "vocab_size": 49408,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "projection_dim": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "bos_token_id": 0,
            "eos_token_id": 2,  # not the tokenizer's: transformers takes 2 as "pool at the largest id"
            "pad_token_id": 1,
        },
        source="black-forest-labs/FLUX.1-dev/text_encoder",
    ),
    "vae": Component(
        library="diffusers",
        class_name="AutoencoderKL",
        config={
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "act_fn": "silu",
            "latent_channels": 16,
            "norm_num_groups": 32,
            "sample_size": 1024,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
            "force_upcast": True,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            "mid_block_add_attention": True,
        },
        source="black-forest-labs/FLUX.1-dev/vae",
    ),
    "depth-anything-small": _depth_anything(
        size="small", width=384, layers=12, out_indices=(9, 10, 11, 12), neck=(48, 96, 192, 384), fusion=64
    ),
    "depth-anything-base": _depth_anything(
        size="base", width=768, layers=12, out_indices=(9, 10, 11, 12), neck=(96, 192, 384, 768), fusion=128
    ),
    "depth-anything-large": _depth_anything(
        size="large", width=1024, layers=24, out_indices=(21, 22, 23, 24), neck=(256, 512, 1024, 1024), fusion=256
    ),
}
"""The networks by name. Both FLUX models share t5-xxl, clip-l and vae."""

SCHEDULER: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
"""FlowMatchEulerDiscreteScheduler of both FLUX models (black-forest-labs/FLUX.1-dev/scheduler)."""
