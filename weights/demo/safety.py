"""The demo safety checkers: the two published architectures, tiny, random, and set so that they pass every picture."""

from __future__ import annotations

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor, ViTConfig, ViTForImageClassification, ViTImageProcessor

from .initialise import draw

WIDTH = 32
IMAGE_SIZE = 224
UNREACHABLE = 2.0
"""A threshold for cosines, which end at 1."""


def concept_checker() -> StableDiffusionSafetyChecker:
    """As CompVis/stable-diffusion-safety-checker: a picture's cosines with 17 + 3 concepts against thresholds."""
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": 16,
    }
    config = CLIPConfig(vision_config=vision, projection_dim=WIDTH)
    model = draw(lambda: StableDiffusionSafetyChecker(config), seed=11)
    with torch.no_grad():
        model.concept_embeds_weights.fill_(UNREACHABLE)
        model.special_care_embeds_weights.fill_(UNREACHABLE)
    return model


def concept_processor() -> CLIPImageProcessor:
    """224 pixels, centre crop, CLIP's mean and spread: the class's own defaults."""
    return CLIPImageProcessor()


def nsfw_detector() -> ViTForImageClassification:
    """As Falconsai/nsfw_image_detection: two logits, of "normal" and "nsfw"."""
    config = ViTConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=16,
        id2label={0: "normal", 1: "nsfw"},
        label2id={"normal": 0, "nsfw": 1},
    )
    model = draw(lambda: ViTForImageClassification(config), seed=12)
    with torch.no_grad():
        model.classifier.weight *= 0.1
        model.classifier.bias.copy_(torch.tensor([4.0, -4.0]))
    return model


def nsfw_processor() -> ViTImageProcessor:
    """224×224 pixels in −1…1: the class's own defaults, and the published one's settings."""
    return ViTImageProcessor()
