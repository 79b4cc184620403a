"""Compiled and eager blocks of one transformer in turns, so that both are measured in one run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Protocol

import torch


class Turns(Protocol):
    """Something that is on for as long as a block runs, and off outside."""

    def on(self) -> Any:
        """A context manager."""


class StockCompiled:
    """As diffusers' pages advise: `compile_repeated_blocks`.

    Relies on torch.nn.Module.compile keeping the compiled call beside the eager one in `_compiled_call_impl`.
    """

    def __init__(self, transformer: Any) -> None:
        transformer.compile_repeated_blocks(fullgraph=True)
        self._calls = [
            (module, module._compiled_call_impl)
            for module in transformer.modules()
            if module._compiled_call_impl is not None
        ]
        self._switch(on=False)

    @contextmanager
    def on(self) -> Iterator[None]:
        self._switch(on=True)
        try:
            yield
        finally:
            self._switch(on=False)

    def _switch(self, *, on: bool) -> None:
        for module, compiled in self._calls:
            module._compiled_call_impl = compiled if on else None


class OurCompiled:
    """As the server does it: `pipelines.speed.blocks`, which replaces the `forward` of the blocks and of the decoder.

    Outside its turn the decoder's weights lie as stock diffusers has them.
    """

    def __init__(self, transformer: Any, vae: Any) -> None:
        from pipelines.speed.blocks import compile_blocks, compile_decoder

        self._decoder, self._on_card = vae.decoder, vae.device.type == "cuda"
        self._modules = [*chain(transformer.transformer_blocks, transformer.single_transformer_blocks), vae.decoder]
        self._eager = [module.forward for module in self._modules]
        compile_blocks(transformer)
        compile_decoder(vae)
        self._compiled = [module.forward for module in self._modules]
        self._switch(on=False)

    @contextmanager
    def on(self) -> Iterator[None]:
        self._switch(on=True)
        try:
            yield
        finally:
            self._switch(on=False)

    def _switch(self, *, on: bool) -> None:
        for module, forward in zip(self._modules, self._compiled if on else self._eager, strict=True):
            module.forward = forward
        if self._on_card:
            self._decoder.to(memory_format=torch.channels_last if on else torch.contiguous_format)


class StockAttention:
    """torch's own choice of attention kernel, which diffusers has by default, where the engine has chosen another."""

    def __init__(self, transformer: Any, engines_own: str) -> None:
        self._transformer, self._own = transformer, engines_own

    @contextmanager
    def on(self) -> Iterator[None]:
        from pipelines.speed.attention import NATIVE, use_attention

        if self._own == NATIVE:
            yield
            return
        use_attention(self._transformer, NATIVE)
        try:
            yield
        finally:
            use_attention(self._transformer, self._own)
