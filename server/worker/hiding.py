"""What a worker says of a fault, made fit for a log: without the prompts it works on and without folder names."""

from __future__ import annotations

import json
import re

SHORTEST_PROMPT = 6
"""Shorter prompts, and shorter lines of prompts, are not looked for: they would be found in every other word."""

_FOLDERS = re.compile(r"""(?<![\w:/.…])/(?:[^\s/'"`:,;()<>\x00]+/)+""")


def hide(text: str, *prompts: str) -> str:
    """`text` without the prompts, be it whole, a line of one, or as `repr` or JSON write it, and without folders."""
    pieces = [(piece, len(prompt)) for prompt in prompts for piece in _pieces(prompt)]
    # The longest first, so that no half of one is left.
    for piece, length in sorted(pieces, key=lambda piece: len(piece[0]), reverse=True):
        text = text.replace(piece, f"(prompt of {length} characters)")
    return _FOLDERS.sub("…/", text)


def _pieces(prompt: str) -> list[str]:
    forms = {prompt, repr(prompt)[1:-1], json.dumps(prompt)[1:-1], *prompt.splitlines()}
    return [form for form in forms if len(form) >= SHORTEST_PROMPT]
