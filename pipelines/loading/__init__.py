"""Components from disk, one function each, offline: folders in diffusers' layout and the single files people have."""

from .refusals import UnusableWeights
from .scheduler import load_scheduler_config
from .storage import is_quantised
from .text import load_clip, load_clip_tokenizer, load_t5, load_t5_tokenizer
from .transformer import load_transformer
from .vae import load_vae

__all__ = [
    "UnusableWeights",
    "is_quantised",
    "load_clip",
    "load_clip_tokenizer",
    "load_scheduler_config",
    "load_t5",
    "load_t5_tokenizer",
    "load_transformer",
    "load_vae",
]
