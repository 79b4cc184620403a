"""The worker's preparing thread: one after the other, the last one counts, and nothing it meets harms the worker."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from server.worker.preparing import Preparer
from server.worker.protocol import Prepare

LIMIT_S = 5.0


def prepare(name: str, prompt: str = "a red fox") -> Prepare:
    return Prepare(job=name, request={"name": name, "prompt": prompt})


class Slow:
    """Notes what it prepares; the first takes until it is told to go on."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.done = threading.Event(), threading.Event(), threading.Event()
        self.names: list[str] = []

    def __call__(self, request: dict[str, Any]) -> None:
        self.names.append(request["name"])
        self.begun.set()
        assert self.go_on.wait(LIMIT_S)
        if request["name"] == "last":
            self.done.set()


def test_a_newer_one_takes_the_place_of_one_that_has_not_begun() -> None:
    slow = Slow()
    preparer = Preparer(slow)
    preparer.take(prepare("first"))
    assert slow.begun.wait(LIMIT_S)
    preparer.take(prepare("too late"))
    preparer.take(prepare("last"))
    slow.go_on.set()
    assert slow.done.wait(LIMIT_S)
    assert slow.names == ["first", "last"]


def test_what_has_not_begun_when_a_job_runs_is_forgotten() -> None:
    slow = Slow()
    preparer = Preparer(slow)
    preparer.take(prepare("first"))
    assert slow.begun.wait(LIMIT_S)
    preparer.take(prepare("its turn has come"))
    preparer.drop()
    slow.go_on.set()
    preparer.take(prepare("last"))
    assert slow.done.wait(LIMIT_S)
    assert slow.names == ["first", "last"]


def test_a_fault_is_told_once_without_the_prompt_and_the_next_one_is_prepared(
    capfd: pytest.CaptureFixture[str],
) -> None:
    prepared = threading.Event()

    def fail(request: dict[str, Any]) -> None:
        if request["name"] == "last":
            prepared.set()
        else:
            raise RuntimeError(f"no memory in /srv/weights/ for {request['prompt']}")

    preparer = Preparer(fail)
    for name in ("one", "two", "last"):
        preparer.take(prepare(name))
        if preparer._last:
            preparer._last.result(LIMIT_S)
    assert prepared.is_set()
    text = capfd.readouterr().err
    assert text.count("could not be prepared ahead") == 1
    assert "RuntimeError: no memory in …/ for (prompt of 9 characters)" in text
