"""The demo text encoders: CLIP's pooled vector and T5's sequence, 32 wide, with random weights."""

from __future__ import annotations

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from .initialise import draw

WIDTH = 32


def clip_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's text model for the tokenizer's ids, B×77 to a pooled B×32, in float32."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return draw(lambda: CLIPTextModel(config), seed=1)


def t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """T5's encoder for the tokenizer's ids, B×L to B×L×32, in float32."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=16,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = draw(lambda: T5EncoderModel(config), seed=2)
    with torch.no_grad():
        model.shared.weight[tokenizer.pad_token_id] = 0  # padding then says what the words say; most tokens are padding
    return model
