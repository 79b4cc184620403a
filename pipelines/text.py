"""Prompt → embeddings: T5 for the sequence, CLIP for one pooled vector, as FluxPipeline.encode_prompt does it.

T5 is padded to 512 tokens without an attention mask; CLIP sees the first 77 tokens only, which costs a long prompt
nothing but CLIP's share. What T5 cannot see is counted and reported, never cut in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from .cache import TensorCache

T5_TOKENS = 512
CLIP_TOKENS = 77
CACHE_BYTES = 256 * 1024 * 1024
"""Some sixty prompts of the full-size model (512 × 4096 in bfloat16 is 4 MiB)."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """What the transformer reads of a prompt.

    embeds: [1, 512, joint width]. pooled: [1, pooled width]. ids: zeros [512, 3].
    tokens: T5 tokens of the whole prompt, its end token included; more than 512 means that the rest was not seen.
    """

    embeds: torch.Tensor
    pooled: torch.Tensor
    ids: torch.Tensor
    tokens: int

    @property
    def unseen_tokens(self) -> int:
        return max(self.tokens - T5_TOKENS, 0)


class TextEncoder:
    """Encodes prompts on the encoders' device and hands the embeddings over on `device`; repeats come from a cache."""

    def __init__(
        self,
        tokenizer: Any,
        encoder: Any,
        tokenizer_2: Any,
        encoder_2: Any,
        *,
        device: torch.device,
        dtype: torch.dtype,
        present: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """present: entered while the encoders compute, for encoders that are elsewhere at other times."""
        self._clip_tokenizer, self._clip = tokenizer, encoder
        self._t5_tokenizer, self._t5 = tokenizer_2, encoder_2
        self._device, self._dtype, self._present = device, dtype, present
        self.cache = TensorCache[EncodedPrompt](CACHE_BYTES, lambda p: (p.embeds, p.pooled, p.ids))

    @property
    def modules(self) -> tuple[Any, ...]:
        """CLIP and T5."""
        return self._clip, self._t5

    def encode(self, prompt: str) -> EncodedPrompt:
        return self.cache.get_or_compute(prompt, lambda: self._encode(prompt))

    def _encode(self, prompt: str) -> EncodedPrompt:
        # Truncation is left to us: asking the tokenizer for the whole prompt is also what counts its tokens.
        tokens = len(self._t5_tokenizer(prompt, truncation=False, verbose=False).input_ids)
        with self._present():
            embeds, pooled = self._t5_embeds(prompt), self._clip_pooled(prompt)
        return EncodedPrompt(
            embeds=embeds,
            pooled=pooled,
            ids=torch.zeros(T5_TOKENS, 3, device=self._device, dtype=self._dtype),
            tokens=tokens,
        )

    def _t5_embeds(self, prompt: str) -> torch.Tensor:
        ids = _token_ids(self._t5_tokenizer, prompt, T5_TOKENS)
        embeds: torch.Tensor = self._t5(ids.to(self._t5.device), output_hidden_states=False)[0]
        return embeds.to(device=self._device, dtype=self._dtype)

    def _clip_pooled(self, prompt: str) -> torch.Tensor:
        ids = _token_ids(self._clip_tokenizer, prompt, CLIP_TOKENS)
        pooled: torch.Tensor = self._clip(ids.to(self._clip.device), output_hidden_states=False).pooler_output
        return pooled.to(device=self._device, dtype=self._dtype)


def _token_ids(tokenizer: Any, prompt: str, length: int) -> torch.Tensor:
    tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: torch.Tensor = tokens.input_ids
    return ids
