"""Tokenizers as `weights pull tokenizers` leaves them: the older files of T5's and CLIP's first publishers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece

from pipelines.loading import load_clip_tokenizer, load_t5_tokenizer
from weights.demo.tokenizers import clip_tokenizer

PHRASE = "a red fox in the snow, 3!"


def test_t5_from_its_sentencepiece_model(tmp_path: Path) -> None:
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"{PHRASE} {index}" for index in range(200)]),
        model_writer=trained,
        vocab_size=45,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=3,
    )
    extra = [f"<extra_id_{index}>" for index in range(100)]
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "additional_special_tokens": extra}
    (tmp_path / "spiece.model").write_bytes(trained.getvalue())
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    config = {**tokens, "extra_ids": 100, "sp_model_kwargs": {}, "tokenizer_class": "T5Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_t5_tokenizer(tmp_path)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue()).encode(PHRASE)
    assert len(pieces) > 5
    assert tokenizer(PHRASE).input_ids == [*pieces, 1]
    assert tokenizer(PHRASE, padding="max_length", max_length=64).input_ids[-1] == 0


def test_clip_from_its_vocabulary_and_merges(tmp_path: Path) -> None:
    known = clip_tokenizer()
    start, end = ({"content": f"<|{word}oftext|>", "lstrip": False, "normalized": True} for word in ("start", "end"))
    tokens = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": "<|endoftext|>"}
    (tmp_path / "vocab.json").write_text(json.dumps(known.get_vocab()))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    typed = {
        name: {**value, "__type": "AddedToken"} if isinstance(value, dict) else value for name, value in tokens.items()
    }
    config = {**typed, "do_lower_case": True, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_clip_tokenizer(tmp_path)
    assert tokenizer(PHRASE).input_ids == known(PHRASE).input_ids
    assert tokenizer(PHRASE, padding="max_length").input_ids == known(PHRASE, padding="max_length").input_ids
    assert tokenizer.model_max_length == 77
