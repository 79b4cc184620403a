"""The demo tokenizers: one token per byte or letter, with the lengths and special tokens of FLUX's own."""

from __future__ import annotations

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, T5Tokenizer

CLIP_LENGTH = 77
T5_LENGTH = 512


def clip_tokenizer() -> CLIPTokenizer:
    """Every UTF-8 byte is a token, inside a word or ending it, as in the first 512 entries of CLIP's vocabulary.

    Nothing is unknown; letters are lower-cased. The end token has the highest id, where CLIP's pooling looks for it.
    """
    alphabet = sorted(ByteLevel.alphabet())
    pieces = [*alphabet, *(byte + "</w>" for byte in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], model_max_length=CLIP_LENGTH
    )


def t5_tokenizer() -> T5Tokenizer:
    """Every printable ASCII character is a token, upper and lower case apart; a word's start is one too.

    Runs of other characters are the unknown token.
    """
    printable = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in printable)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_LENGTH)
