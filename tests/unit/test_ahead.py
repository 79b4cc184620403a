"""Who may compute beside whom."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipelines.ahead import RoomBeside

CPU = torch.device("cpu")
LIMIT_S = 5.0


@pytest.mark.parametrize(("pixels", "may"), [(100, True), (101, False)])
def test_beside_a_picture_that_fills_the_memory_nothing_is_prepared(pixels: int, may: bool) -> None:
    room = RoomBeside(CPU, 100)
    with room.drawing(pixels), room.preparing() as now:
        assert now is may
    with room.preparing() as now:
        assert now
        assert torch.is_inference_mode_enabled()


def test_without_room_nothing_is_prepared() -> None:
    with RoomBeside(CPU, 0).preparing() as now:
        assert not now


@pytest.mark.parametrize("what", ["moving", "drawing"])
def test_who_needs_all_memory_waits_for_what_is_being_prepared(what: str) -> None:
    room, begun, go_on, order = RoomBeside(CPU, 100), threading.Event(), threading.Event(), list[str]()

    def prepare() -> None:
        with room.preparing() as now:
            assert now
            begun.set()
            assert go_on.wait(LIMIT_S)
            order.append("prepared")

    def take_all() -> None:
        with room.moving() if what == "moving" else room.drawing(101):
            order.append(what)

    with ThreadPoolExecutor(2) as threads:
        preparing = threads.submit(prepare)
        assert begun.wait(LIMIT_S)
        taking = threads.submit(take_all)
        with room.drawing(100):  # a small one waits for nobody
            order.append("small")
        go_on.set()
        preparing.result(LIMIT_S)
        taking.result(LIMIT_S)
    assert order == ["small", "prepared", what]
