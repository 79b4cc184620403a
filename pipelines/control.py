"""Control image → depth map → control latents, computed once per picture, size and way, then cached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from .cache import TensorCache
from .decode import encode_picture, picture_tensor, to_uint8
from .depth import DepthEstimator, DepthMap

CACHE_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Control:
    """What steers a depth picture. latents: [1, L, 64] on the device. depth_map: uint8 [H, W, 3] on the CPU."""

    latents: torch.Tensor
    depth_map: torch.Tensor


class ControlEncoder:
    """Prepares control latents. The estimator may be None when only ready depth maps are passed in."""

    def __init__(self, vae: Any, estimator: DepthEstimator | None, *, dtype: torch.dtype) -> None:
        self._vae, self._estimator, self._dtype = vae, estimator, dtype
        self.cache = TensorCache[Control](CACHE_BYTES, lambda c: (c.latents, c.depth_map))

    @property
    def estimates(self) -> bool:
        """Whether there is an estimator."""
        return self._estimator is not None

    @property
    def modules(self) -> tuple[Any, ...]:
        """The estimator's networks."""
        return self._estimator.modules if self._estimator else ()

    def depth_map(self, picture: Image.Image, width: int, height: int, *, preprocess: bool) -> DepthMap:
        """The map that steers: estimated from a photo, or `picture` itself when it already is a depth map."""
        if not preprocess:
            return DepthMap(picture_tensor(picture, width, height))
        if self._estimator is None:
            raise LookupError("no depth estimator is loaded; pass a ready depth map with preprocess=false")
        return self._estimator.estimate(picture, width, height)

    def encode(self, depth_map: DepthMap) -> Control:
        latents = encode_picture(self._vae, depth_map.picture).to(self._dtype)
        return Control(latents, to_uint8(depth_map.picture)[0].cpu())
