"""Faults on demand, for tests: an engine that fails as the prompt says. Installed with the demo weights only.

    a red fox [fault:out_of_memory]        after the first step
    a red fox [fault:device@3]             after step 3
    a red fox [fault:slow=0.25]            0.25 s longer per step

What real faults do beyond raising is done too: after a device fault every call in the process gives the same error.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch

from .engine import Engine
from .order import Asked, Generated
from .watch import StepReport

_MARKER = re.compile(r"\[fault:(?P<name>\w+)(?:@(?P<step>\d+))?(?:=(?P<value>[\d.]+))?\]")

DEVICE_FAULT = "CUDA error: an illegal memory access was encountered"
EXIT_STATUS = 9


@dataclass(frozen=True, slots=True)
class Fault:
    """name: a key of FAULTS. step: after which it happens, counted from 1. value: its number, if it has one."""

    name: str
    step: int = 1
    value: float = 0.0


def find_fault(prompt: str) -> Fault | None:
    """The fault that a prompt asks for. Raises KeyError for a name that is none."""
    found = _MARKER.search(prompt)
    if found is None:
        return None
    if found["name"] not in FAULTS:
        raise KeyError(f"no such fault: {found['name']}; there are {', '.join(FAULTS)}")
    return Fault(found["name"], int(found["step"] or 1), float(found["value"] or 0))


class FaultyEngine(Engine):
    """The engine, and the faults that prompts ask for."""

    _poison: tuple[type[Exception], str] | None = None
    """What every call gives from now on: exceptions are made anew, since one that is kept keeps its tensors."""
    _happened: frozenset[str] = frozenset()

    def generate_together(self, asked: Sequence[Asked]) -> list[Generated | Exception]:
        self._fail_if_poisoned()
        return super().generate_together([self._with_fault(each) for each in asked])

    def _with_fault(self, asked: Asked) -> Asked:
        fault = find_fault(asked.request.prompt)

        def on_step_or_fault(report: StepReport) -> None:
            asked.on_step(report)
            if fault and (fault.name == "slow" or report.step == fault.step):
                FAULTS[fault.name](self, fault)

        return replace(asked, on_step=on_step_or_fault)

    def _fail_if_poisoned(self) -> None:
        if self._poison:
            kind, text = self._poison
            raise kind(text)

    def _slow(self, fault: Fault) -> None:
        time.sleep(fault.value)

    def _out_of_memory(self, _: Fault) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (fault switch)")

    def _out_of_memory_once(self, fault: Fault) -> None:
        """In this process; the second attempt goes through."""
        if fault.name not in self._happened:
            self._happened |= {fault.name}
            self._out_of_memory(fault)

    def _device(self, _: Fault) -> None:
        self._poison = (torch.AcceleratorError, DEVICE_FAULT)
        self._fail_if_poisoned()

    def _unknown(self, _: Fault) -> NoReturn:
        raise RuntimeError("something that nobody knows (fault switch)")

    def _unknown_and_broken(self, fault: Fault) -> NoReturn:
        """An error that nobody knows, after which nothing works any more."""
        self._poison = (RuntimeError, "something that nobody knows, still (fault switch)")
        self._unknown(fault)

    def _hang(self, _: Fault) -> None:
        threading.Event().wait()

    def _exit(self, _: Fault) -> NoReturn:
        os._exit(EXIT_STATUS)

    def _full_card(self, _: Fault) -> None:
        """A true out-of-memory error of the device: twice what it has is asked for."""
        total_bytes = torch.cuda.mem_get_info()[1]
        torch.empty(2 * total_bytes, dtype=torch.uint8, device="cuda")

    def _device_assert(self, _: Fault) -> None:
        """A true device-side assert: an index out of range, and the wait in which it is reported."""
        torch.zeros(1, device="cuda")[torch.tensor([10], device="cuda")]
        torch.cuda.synchronize()


FAULTS: dict[str, Callable[[FaultyEngine, Fault], None]] = {
    "slow": FaultyEngine._slow,
    "out_of_memory": FaultyEngine._out_of_memory,
    "out_of_memory_once": FaultyEngine._out_of_memory_once,
    "device": FaultyEngine._device,
    "unknown": FaultyEngine._unknown,
    "unknown_and_broken": FaultyEngine._unknown_and_broken,
    "hang": FaultyEngine._hang,
    "exit": FaultyEngine._exit,
    "full_card": FaultyEngine._full_card,
    "device_assert": FaultyEngine._device_assert,
}
