"""How alike two pictures are. All take float32 [3, H, W] in 0–1 on the CPU, of the same size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"
"""torchvision's file name of the network under LPIPS, in torch's own cache folder."""


def psnr_db(reference: torch.Tensor, picture: torch.Tensor) -> float:
    """10·log₁₀(1 / mean squared difference), in float64. Raises ValueError for equal pictures, where it is infinite.

    Differences of unsigned bytes would wrap around: two pictures of noise then score 28 dB instead of 8.
    """
    error = torch.mean((reference.double() - picture.double()) ** 2)
    if error == 0:
        raise ValueError("the pictures are equal, so their PSNR is infinite")
    return float(-10 * torch.log10(error))


def ssim(reference: torch.Tensor, picture: torch.Tensor) -> float:
    """Structural similarity, scikit-image's with its default window; 1 for equal pictures."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(reference.numpy(), picture.numpy(), channel_axis=0, data_range=1.0))


@cache
def lpips_or_none() -> Callable[[torch.Tensor, torch.Tensor], float] | None:
    """LPIPS (AlexNet), 0 for equal pictures; None unless the package and its weights are on this machine."""
    if find_spec("lpips") is None or not (Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE).is_file():
        return None
    import lpips

    network = lpips.LPIPS(net="alex", verbose=False).eval()

    def distance(reference: torch.Tensor, picture: torch.Tensor) -> float:
        with torch.inference_mode():
            return float(network(reference[None] * 2 - 1, picture[None] * 2 - 1))

    return distance


@contextmanager
def floats_of(vae: Any) -> Iterator[list[torch.Tensor]]:
    """Collects what the VAE decodes while the block runs, as pictures in 0–1 before they are rounded to 8 bits."""
    collected: list[torch.Tensor] = []
    decode = vae.decode

    def decode_and_keep(*arguments: Any, **options: Any) -> Any:
        decoded = decode(*arguments, **options)
        picture = (decoded[0] * 0.5 + 0.5).clamp(0, 1).float()
        collected.extend(picture.cpu().unbind(0))
        return decoded

    vae.decode = decode_and_keep
    try:
        yield collected
    finally:
        vae.decode = decode
