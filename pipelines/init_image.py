"""The picture that an image-to-image generation starts from, as latents."""

from __future__ import annotations

from typing import Any

import torch

from .cache import TensorCache
from .decode import encode_picture, picture_tensor
from .source import Source

CACHE_BYTES = 64 * 1024 * 1024


class InitEncoder:
    """Encodes init images; repeats come from a cache. Takes the VAE distribution's mode, so repeats are equal."""

    def __init__(self, vae: Any, *, dtype: torch.dtype) -> None:
        self._vae, self._dtype = vae, dtype
        self.cache = TensorCache[torch.Tensor](CACHE_BYTES, lambda latents: (latents,))

    def encode(self, image: Source, width: int, height: int) -> torch.Tensor:
        """RGB picture, stretched to `width` × `height` with Lanczos → packed latents [1, L, 64]."""

        def compute() -> torch.Tensor:
            return encode_picture(self._vae, picture_tensor(image.picture, width, height)).to(self._dtype)

        return self.cache.get_or_compute((image.key, width, height), compute)
