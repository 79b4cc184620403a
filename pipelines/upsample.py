"""Prompt upsampling: a local language model makes a short prompt richer before it is drawn.

Any causal model that transformers can load from a folder works; an instruction-tuned one with a chat template follows
the instruction best. Decoding is greedy, so the same prompt is always rewritten in the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

INSTRUCTION = (
    "Rewrite this image description so that it is richer in visual detail: subject, setting, light, colours, style."
    " Keep its meaning and every object in it. Answer with the description alone, in at most 120 words."
)
MAX_NEW_TOKENS = 200
MAX_CHARACTERS = 2000


class PromptUpsampler:
    """Rewrites prompts with a loaded causal language model and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer

    @property
    def modules(self) -> tuple[Any, ...]:
        return (self._model,)

    def rewrite(self, prompt: str) -> str:
        """The richer prompt, at most 2000 characters; the prompt as it is when the model has nothing to say."""
        tokens = self._tokenizer(self._question(prompt), return_tensors="pt").to(self._model.device)
        asked = tokens["input_ids"].shape[1]
        answer = self._model.generate(
            **tokens, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=self._padding()
        )
        text = self._tokenizer.decode(answer[0, asked:], skip_special_tokens=True)
        return " ".join(text.split())[:MAX_CHARACTERS] or prompt

    def _question(self, prompt: str) -> str:
        if self._tokenizer.chat_template is None:
            return f"{INSTRUCTION}\n\nDescription: {prompt}\n\nRicher description:"
        question = [{"role": "user", "content": f"{INSTRUCTION}\n\n{prompt}"}]
        chat: str = self._tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        return chat

    def _padding(self) -> int | None:
        pad: int | None = self._tokenizer.pad_token_id
        return self._tokenizer.eos_token_id if pad is None else pad


def load_upsampler(folder: Path, device: torch.device, dtype: torch.dtype) -> PromptUpsampler:
    """Loads model and tokenizer from a local folder, offline, safetensors only. Raises OSError when it holds none."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
    return PromptUpsampler(model.to(device).eval().requires_grad_(False), tokenizer)
