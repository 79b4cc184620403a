"""How many bytes the models take in each precision, from the shapes that their files' headers tell. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Literal

Precision = Literal["full", "fp8", "fp8-all", "nf4"]
"""How a transformer's weights lie in memory; computing is always in the full precision.

full: as computed with. fp8: the blocks' matrices in float8_e4m3fn with a scale for each row, the modulation (AdaLN)
matrices in full, since they steer every token. fp8-all: those too. nf4: bitsandbytes' 4 bits with one float32 scale
for 64 values.
"""

NF4_BYTES = 0.5 + 4 / 64
"""Per value (bitsandbytes, "nf4" without double quantisation)."""

_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.", "double_blocks.", "single_blocks.")
_MODULATION = (".norm1.linear.", ".norm1_context.linear.", ".norm.linear.", "_mod.lin.", ".modulation.lin.")


@dataclass(frozen=True, slots=True)
class TransformerSize:
    """Values of a transformer. matrices: of linear layers in its blocks but the modulation; modulation: of those.

    fixed_bytes: what it takes where its file is quantised already (GGUF, nf4), so that no plan can change it.
    """

    parameters: int
    matrices: int
    modulation: int
    fixed_bytes: int | None = None

    def size_bytes(self, precision: Precision, value_bytes: int) -> int:
        """value_bytes: of one value in full precision, 2 for bfloat16 and 4 for float32."""
        if self.fixed_bytes is not None:
            return self.fixed_bytes
        small, each = {
            "full": (0, 0.0),
            "fp8": (self.matrices, 1.0),
            "fp8-all": (self.matrices + self.modulation, 1.0),
            "nf4": (self.matrices + self.modulation, NF4_BYTES),
        }[precision]
        return round(small * each) + (self.parameters - small) * value_bytes


def transformer_size(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> TransformerSize:
    """Counts by tensor name, in diffusers' or black-forest-labs' naming."""
    total = matrices = modulation = 0
    for name, shape in shapes:
        count = prod(shape)
        total += count
        if name.startswith(_BLOCKS) and len(shape) == 2:
            if any(part in name for part in _MODULATION):
                modulation += count
            else:
                matrices += count
    return TransformerSize(total, matrices, modulation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Everything that a server loads.

    transformers: by model name. text: values of T5 and CLIP. vae: values. Both are held in the computing precision.
    depth_bytes, safety_bytes, upsampler_bytes: of the helper models, 0 where there is none.
    depth_lora_bytes: what a depth model takes that is made of flux-dev and its control LoRA; 0 where there is none.
    lora_slot_bytes: of the LoRA slot in each transformer, 0 without a LoRA folder. fast_copies: whether the fast tiers
    have the blocks' matrices once more, in fp8, beside transformers that are held in full.
    """

    transformers: dict[str, TransformerSize]
    text: int
    vae: int
    depth_bytes: int = 0
    safety_bytes: int = 0
    upsampler_bytes: int = 0
    depth_lora_bytes: int = 0
    lora_slot_bytes: int = 0
    fast_copies: bool = False
    value_bytes: int = field(default=2)

    def transformer_bytes(self, precision: Precision) -> dict[str, int]:
        """By model name, with everything that belongs to it."""
        return {name: self._one_bytes(size, precision) for name, size in self.transformers.items()}

    def _one_bytes(self, size: TransformerSize, precision: Precision) -> int:
        has_copy = self.fast_copies and precision == "full" and size.fixed_bytes is None
        copy_bytes = size.matrices if has_copy else 0
        return size.size_bytes(precision, self.value_bytes) + self.lora_slot_bytes + copy_bytes

    @property
    def text_bytes(self) -> int:
        return self.text * self.value_bytes

    @property
    def vae_bytes(self) -> int:
        return self.vae * self.value_bytes

    @property
    def helper_bytes(self) -> int:
        """Depth estimator, safety checker and prompt upsampler together."""
        return self.depth_bytes + self.safety_bytes + self.upsampler_bytes


_BLOCK_MATRICES = 19 * (2 * (4 + 8) * 3072**2) + 38 * ((3 + 4 + 5) * 3072**2)
_BLOCK_MODULATION = 19 * (2 * 6 * 3072**2) + 38 * (3 * 3072**2)

FULL_SIZE = Footprint(
    transformers={
        "flux-dev": TransformerSize(11_901_408_320, _BLOCK_MATRICES, _BLOCK_MODULATION),
        "flux-depth-dev": TransformerSize(11_901_604_928, _BLOCK_MATRICES, _BLOCK_MODULATION),
    },
    text=4_762_310_656 + 123_060_480,
    vae=83_819_683,
    depth_bytes=4 * 335_315_649,
    safety_bytes=4 * (303_981_588 + 85_800_194),
)
"""FLUX.1-dev, FLUX.1-Depth-dev, Depth Anything v1 Large and both classifiers as published; in bfloat16, the helpers in
float32. A test compares these counts with the networks themselves.
"""
