"""The demo depth estimator: Depth Anything's geometry, 32 wide; bright parts of a photo come out near."""

from __future__ import annotations

import torch
from torch import nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

from .initialise import draw

WIDTH = 32


def depth_estimator() -> DepthAnythingForDepthEstimation:
    """The model in float32: B×3×H×W, sides multiples of 14, to a B×H×W map in 0…255, near is large.

    That range is the one of the large published checkpoint (LiheYoung/depth-anything-large-hf); it comes from the
    metric head, a sigmoid times max_depth, because the relative head's ReLU would leave random weights without bounds.
    """
    model = draw(lambda: DepthAnythingForDepthEstimation(_config()), seed=7)
    with torch.no_grad():
        _see_flat_patches(model.backbone.embeddings.patch_embeddings.projection)
        for name, parameter in model.named_parameters():
            if "layer_scale" in name:
                parameter *= 0.3  # a patch stays itself: attention adds little from elsewhere
        for module in model.modules():
            if isinstance(module, nn.ConvTranspose2d):
                _enlarge_evenly(module)
        model.head.conv3.weight *= 2
        model.head.conv3.bias.fill_(-1.5)
    return model


def image_processor() -> DPTImageProcessor:
    """As published: 518 pixels for the short side, sides multiples of 14, ImageNet's mean and spread."""
    return DPTImageProcessor(
        size={"height": 518, "width": 518},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


def _config() -> DepthAnythingConfig:
    backbone = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=518,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    return DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=WIDTH,
        neck_hidden_sizes=[8, 16, 16, WIDTH],
        fusion_hidden_size=16,
        head_hidden_size=8,
        depth_estimation_type="metric",
        max_depth=255,
    )


def _see_flat_patches(projection: nn.Conv2d) -> None:
    """Makes the embedding depend on a patch's mean colour alone, and in degrees: the norm after it would keep only the
    sign of a brightness without a constant beside it."""
    weight = projection.weight
    weight.copy_(weight.mean((2, 3), keepdim=True).expand_as(weight))
    assert projection.bias is not None
    projection.bias.normal_(generator=torch.Generator().manual_seed(1))


def _enlarge_evenly(module: nn.ConvTranspose2d) -> None:
    """Makes all pixels that come from one pixel alike; random kernels would lay a grid over the map."""
    weight = module.weight
    weight.copy_((weight.mean((2, 3), keepdim=True) * 4 * module.stride[0]).expand_as(weight))
