"""What a worker says of a fault, made fit for a log: without the prompt it was drawing and without folder names."""

from __future__ import annotations

import json
import re

SHORTEST_PROMPT = 6
"""Shorter prompts, and shorter lines of prompts, are not looked for: they would be found in every other word."""

_FOLDERS = re.compile(r"""(?<![\w:/.…])/(?:[^\s/'"`:,;()<>\x00]+/)+""")


def hide(text: str, prompt: str = "") -> str:
    """`text` without the prompt, be it whole, a line of it, or as `repr` or JSON write it, and without folders."""
    for piece in _pieces(prompt):
        text = text.replace(piece, f"(prompt of {len(prompt)} characters)")
    return _FOLDERS.sub("…/", text)


def _pieces(prompt: str) -> list[str]:
    """The longest first, so that no half of one is left."""
    forms = {prompt, repr(prompt)[1:-1], json.dumps(prompt)[1:-1], *prompt.splitlines()}
    return sorted((form for form in forms if len(form) >= SHORTEST_PROMPT), key=len, reverse=True)
