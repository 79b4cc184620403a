"""Compiling: the transformer's blocks, one graph for the 19 double ones and one for the 38 single ones, and the VAE's
decoder, one graph; any size.

The blocks' own `forward` is compiled, not the call around it: hooks that a step cache puts there stay outside the
graph. The length of the sequence is dynamic, so that one graph serves every size.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.fx.experimental import _config as symbolic_shapes

GRAPHS_PER_BLOCK = 32
"""More than the states a block has: held or fast, with and without LoRAs, of two models. Beyond torch's own limit of 8
it would fall back to eager without a word."""


def compile_blocks(transformer: Any, *, backend: str = "inductor") -> None:
    """Compiles on first use. Do it last: after quantising, LoRA slots and copies that share weights."""
    for block in chain(transformer.transformer_blocks, transformer.single_transformer_blocks):
        _compile(block, backend)


def compile_decoder(vae: Any, *, backend: str = "inductor") -> None:
    """Compiles on first use. On a card the decoder's weights are laid out channels last, as its convolutions compute;
    with sizes that are not fixed the compiler leaves the layout as it is."""
    if vae.device.type == "cuda":
        vae.decoder.to(memory_format=torch.channels_last)
    _compile(vae.decoder, backend)


def _compile(module: Any, backend: str) -> None:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS_PER_BLOCK)
    # Else dimensions that happen to be equal in warm-up are taken for the same one: at 1024×1024 there are 4096 tokens,
    # which is also T5's width, and the next size would compile anew.
    symbolic_shapes.use_duck_shape = False
    module.forward = torch.compile(module.forward, fullgraph=True, dynamic=True, backend=backend)


def graphs_compiled() -> int:
    """How many graphs this process has compiled so far."""
    return int(counters["stats"]["unique_graphs"])


def compile_no_more() -> None:
    """From now on what has no graph yet runs as it is: nobody waits for a compiler while a request runs."""
    torch.compiler.set_stance("eager_on_recompile")


def compile_nothing() -> None:
    """From now on every block runs as it is, compiled or not."""
    torch.compiler.set_stance("force_eager")
