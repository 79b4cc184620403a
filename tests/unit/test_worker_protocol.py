"""The line between server and worker: every message survives the crossing, and nothing else is taken for one."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.request import GenerationRequest, GenerationResult, OutputFile
from server.worker import protocol
from server.worker.protocol import (
    Cancel,
    Done,
    Drawn,
    Failed,
    Fatal,
    Hello,
    Load,
    Loading,
    Prepare,
    ProtocolError,
    Ready,
    Run,
    RunTogether,
    Shutdown,
    Step,
    decode,
    encode,
    result_of,
    run_message,
    together_message,
)
from weights.sources import ModelSources

ODD_TEXT = 'line\nbreak\r\n\u2028\x00 "quoted" \\ ü 🐈 \ud800'


def filled(kind: type[Any], **given: Any) -> Any:
    """A message with what matters here; its other required fields hold something of their type."""
    samples = {"str": "x", "int": 1, "float": 0.5, "bool": True, "dict": {"a": "b"}, "list": ["a"], "Switch": "auto"}
    required = [field for field in fields(kind) if field.default is field.default_factory]
    return kind(**{field.name: samples[re.split(r"\W", str(field.type))[0]] for field in required} | given)


MESSAGES = [
    filled(
        Load,
        models={"flux-dev": ModelSources.in_folder(Path("/w/dev")).to_json()},
        depth_estimator="/w/depth",
        device="cuda:1",
    ),
    filled(Load, models={}, depth_estimator=None, spool=ODD_TEXT),
    Run(job="a", attempt=3, request={"prompt": ODD_TEXT, "steps": 4, "nested": {"list": [1, 2.5, None, True]}}),
    Prepare(job="b", request={"prompt": ODD_TEXT, "steps": 4}),
    RunTogether(runs=[{"job": "a", "attempt": 1, "request": {"prompt": ODD_TEXT}}]),
    Cancel(job="a", attempt=3),
    Shutdown(),
    Hello(version=2),
    Loading(doing="warming up"),
    Drawn(job="a", attempt=3),
    filled(Ready, models=["flux-dev", "flux-depth-dev"], load_s=1.25),
    Step(job="a", attempt=3, step=1, steps=4, step_s=0.125),
    Done(job="a", attempt=3, result={"images": [], "timings_s": {"text": 0.1}}, compute_s=9.75),
    Failed(job="a", attempt=3, kind="input", message=ODD_TEXT, compute_s=0.25),
    Failed(job="a", attempt=3, kind="cancelled", message=""),
    Fatal(reason="device", message=ODD_TEXT, job="a", detail={"code": 700}),
    Fatal(reason="load", message="no weights"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_went_in(message: Any) -> None:
    decoded = decode(encode(message))
    assert type(decoded) is type(message)
    assert decoded == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_one_line_of_json(message: Any) -> None:
    line = encode(message)
    assert line.endswith(b"\n")
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert json.loads(line)["type"] == type(message).__name__


def test_runs_that_go_together_come_out_as_they_went_in() -> None:
    runs = [Run(job=name, attempt=2, request={"prompt": ODD_TEXT, "loras": [{"name": name}]}) for name in "abc"]
    assert decode(encode(together_message(runs))).members == runs


def test_every_kind_of_message_is_tried_here() -> None:
    kinds = {*get_args(protocol.Down), *get_args(protocol.Up)}
    assert {type(message) for message in MESSAGES} == kinds
    assert set(get_args(protocol.Down)).isdisjoint(get_args(protocol.Up))


@pytest.mark.parametrize("kind", get_args(protocol.Up), ids=lambda kind: kind.__name__)
def test_what_a_worker_says_of_a_job_names_the_attempt(kind: type[Any]) -> None:
    names = {field.name for field in fields(kind)}
    assert kind in (Hello, Loading, Ready, Fatal) or {"job", "attempt"} <= names


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"garbage",
        b"\xff\xfe\x00",
        b"null",
        b"7",
        b'"Shutdown"',
        b"[]",
        b'["type"]',
        b"{}",
        b'{"type":null}',
        b'{"type":[]}',
        b'{"type":{}}',
        b'{"type":"Unknown"}',
        b'{"type":"shutdown"}',
        b'{"type":"ProtocolError"}',
        b'{"type":"Shutdown","extra":1}',
        b'{"type":"Cancel","job":"a"}',
        b'{"type":"Cancel","job":"a","attempt":1,"more":2}',
        b'{"job":"a","attempt":1}',
        b'{"type":"Shutdown"',
        b'{"type":"Shutdown"}{"type":"Shutdown"}',
        b"7" * 10_000,
        pytest.param(b"[" * 200_000, id="deeply nested"),
        pytest.param(b'{"type":"Shutdown","a":' * 100_000, id="deeply nested objects"),
    ],
)
def test_anything_else_is_refused_by_name(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(line)


def test_the_refusal_quotes_no_more_than_the_beginning() -> None:
    with pytest.raises(ProtocolError) as refused:
        decode(b"x" * 1_000_000)
    assert "xxx" in str(refused.value)
    assert len(str(refused.value)) < 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
NAMES = st.sampled_from(["type", "kind", "job", "attempt", "step", "steps", "step_s", "reason", "message", "version"])
KINDS = st.sampled_from([kind.__name__ for kind in (*get_args(protocol.Down), *get_args(protocol.Up))])


@settings(max_examples=60, deadline=None)
@given(st.binary() | st.dictionaries(NAMES, KINDS | JSON).map(lambda value: json.dumps(value).encode()))
def test_no_line_does_more_than_be_refused(line: bytes) -> None:
    try:
        message = decode(line)
    except ProtocolError:
        return
    assert isinstance(message, (*get_args(protocol.Down), *get_args(protocol.Up)))


def test_a_request_and_a_result_survive_the_crossing() -> None:
    request = GenerationRequest(
        model="flux-depth-dev",
        prompt=ODD_TEXT,
        width=1360,
        height=768,
        steps=17,
        guidance=3.3000000000000003,
        seed=2**32 - 1,
        control_image="c0ffee.webp",
        output_format="webp",
    )
    run = decode(encode(run_message("a", 2, request)))
    assert (run.job, run.attempt) == ("a", 2)
    assert GenerationRequest.from_json(run.request) == request

    image = OutputFile(
        index=0, seed=7, file="a.2.0.png", format="png", width=64, height=48, size_bytes=9, sha256="ab" * 32
    )
    result = GenerationResult(images=(image,), depth_map=image, timings_s={"text": 0.5}, notes={"unseen_tokens": 3})
    done = decode(encode(Done(job="a", attempt=2, result=result.to_json(), compute_s=1.5)))
    assert result_of(done) == result
