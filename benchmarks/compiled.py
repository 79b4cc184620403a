"""Compiled and eager blocks of one transformer in turns, so that both are measured in one run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Protocol


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
    """As the server does it: `pipelines.speed.blocks.compile_blocks`, which replaces the blocks' `forward`."""

    def __init__(self, transformer: Any) -> None:
        from pipelines.speed.blocks import compile_blocks

        self._blocks = list(chain(transformer.transformer_blocks, transformer.single_transformer_blocks))
        self._eager = [block.forward for block in self._blocks]
        compile_blocks(transformer)
        self._compiled = [block.forward for block in self._blocks]
        self._set(self._eager)

    @contextmanager
    def on(self) -> Iterator[None]:
        self._set(self._compiled)
        try:
            yield
        finally:
            self._set(self._eager)

    def _set(self, forwards: list[Any]) -> None:
        for block, forward in zip(self._blocks, forwards, strict=True):
            block.forward = forward


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
