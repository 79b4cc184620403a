"""What makes two calls under one idempotency key the same call."""

from __future__ import annotations

from typing import Any

import pytest

from server.api.segmind.idempotency import fingerprint
from server.api.segmind.models import parse

BASE: dict[str, Any] = {"prompt": "a fox", "seed": 5, "steps": 20}


def print_of(body: dict[str, Any], slug: str = "flux-dev", seed: int = 1) -> str:
    drawn: list[int] = []

    def draw() -> int:
        drawn.append(seed)
        return seed

    call = parse(slug, body, draw_seed=draw)
    return fingerprint(call, drew_seed=bool(drawn))


@pytest.mark.parametrize(
    "same",
    [
        {"steps": "20", "seed": "5"},
        {"unknown": "ignored"},
        {"samples": 1},
        {"base64": False},
    ],
)
def test_other_spellings_of_the_same_request_are_the_same(same: dict[str, Any]) -> None:
    assert print_of({**BASE, **same}) == print_of(BASE)


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "a fox "},
        {"seed": 6},
        {"seed": -1},
        {"steps": 21},
        {"samples": 2},
        {"base64": True},
        {"loras": [{"name": "a"}]},
    ],
)
def test_every_parameter_counts(other: dict[str, Any]) -> None:
    assert print_of({**BASE, **other}) != print_of(BASE)


def test_a_random_seed_is_the_same_request_whatever_was_drawn() -> None:
    random = {**BASE, "seed": -1}
    assert print_of(random, seed=1) == print_of(random, seed=2)
    assert print_of(random, seed=1) != print_of({**BASE, "seed": 1})


def test_models_are_apart_and_uploads_count_by_content() -> None:
    def depth(picture: Any, slug: str = "flux-depth-dev") -> str:
        return print_of({"prompt": "x", "control_image": picture}, slug)

    assert depth(b"one") == depth(b"one") != depth(b"two")
    assert depth("https://example.org/a.png") != depth("https://example.org/b.png")
    assert depth(b"one") != depth(b"one", "flux-depth-pro")
