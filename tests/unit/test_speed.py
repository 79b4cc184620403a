"""Speed parts that need no network: tiers, the pace, kernels by card, what is warmed up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)

from pipelines import components
from pipelines.speed import attention, pace
from pipelines.speed.pace import Pace
from pipelines.speed.tiers import FAST, TIERS, choose, offered
from pipelines.warmup import declared_sizes
from pipelines.watch import StepReport, Watch

CARD, CPU = torch.device("cuda"), torch.device("cpu")


def test_the_exact_tier_is_the_default_where_weights_are_held_in_full() -> None:
    assert offered("full", fp8_products=True) == ("exact", "fast", "turbo")
    assert offered("full", fp8_products=False) == ("exact",)
    assert offered("fp8-all", fp8_products=True) == ("fp8-all", "fast", "turbo")
    assert offered("nf4", fp8_products=False) == ("nf4",)


def test_a_tier_is_chosen_or_refused_by_name() -> None:
    all_three = ("exact", "fast", "turbo")
    assert choose("", prefer_fast=False, offered=all_three).name == "exact"
    assert choose("", prefer_fast=True, offered=all_three) == FAST
    assert choose("", prefer_fast=True, offered=("exact",)).name == "exact"
    assert choose("turbo", prefer_fast=True, offered=all_three) == TIERS["turbo"]
    with pytest.raises(ValueError, match="it offers exact"):
        choose("fast", prefer_fast=False, offered=("exact",))


def test_flux_dev_warms_ten_lengths_and_depth_the_shapes_of_photos() -> None:
    lengths = [width * height // 256 for width, height in declared_sizes("flux-dev")]
    assert lengths == [4096, 4032, 3952, 3840, 3808, 1024, 1008, 988, 960, 952]
    depth = declared_sizes("flux-depth-dev")
    assert (1024, 1024) in depth
    assert {1344 * 768, 1152 * 864, 1248 * 832} <= {width * height for width, height in depth}


@pytest.mark.parametrize(
    ("capability", "installed", "kernel"),
    [
        ((8, 0), True, "native"),
        ((8, 9), True, "native"),
        ((9, 0), True, "_flash_3"),
        ((9, 0), False, "_native_cudnn"),
        ((10, 0), True, "_native_cudnn"),
    ],
)
def test_kernels_by_card(
    capability: tuple[int, int], installed: bool, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(attention, "find_spec", lambda _: object() if installed else None)
    assert attention.attention_backend(CARD) == kernel
    assert attention.attention_backend(CPU) == "native"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Any:
    """diffusers' kernels by name, put back afterwards."""
    kept = _AttentionBackendRegistry
    for table in ("_backends", "_constraints", "_supported_arg_names"):
        monkeypatch.setattr(kept, table, dict(getattr(kept, table)))
    return kept


def test_cudnn_is_called_without_a_switch_for_the_whole_process(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played on tensors without memory, for which there is no kernel to run and no card to be had."""
    monkeypatch.setattr(attention, "attention_backend", lambda *_: attention.CUDNN)
    monkeypatch.setattr(torch.nn.attention, "sdpa_kernel", lambda *_: pytest.fail("a switch was turned"))
    x = torch.empty(1, 20, 4, 128, device="meta", dtype=torch.bfloat16)
    kernel = AttentionBackendName(attention.CUDNN)
    with pytest.raises(pytest.fail.Exception):
        dispatch_attention_fn(x, x, x, backend=kernel)
    assert not attention.switches_for_all(torch.device("meta"), torch.bfloat16)
    assert dispatch_attention_fn(x, x, x, backend=kernel).shape == x.shape
    whole = torch.compile(attention.cudnn_attention, fullgraph=True, backend="eager")
    assert whole(x, x, x).shape == x.shape


def test_where_cudnn_cannot_be_called_by_name_nothing_is_changed(
    registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(registry._backends)
    assert not attention.switches_for_all(CPU, torch.float32), "other kernels need no switch"
    monkeypatch.setattr(attention, "attention_backend", lambda *_: attention.CUDNN)
    assert attention.switches_for_all(CPU, torch.bfloat16)
    assert registry._backends == before


class FakeCard:
    """A card that takes its time: an event is done only when somebody waits for it."""

    def __init__(self) -> None:
        self.ordered = self.done = 0

    def event(self) -> Any:
        card = self

        class Event:
            def record(self) -> None:
                card.ordered += 1

            def synchronize(self) -> None:
                card.done += 1

        return Event()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> FakeCard:
    fake = FakeCard()
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    return fake


def test_at_most_two_steps_are_ordered_ahead_of_the_card(card: FakeCard) -> None:
    kept = Pace(CARD)
    ahead = []
    for _ in range(10):
        kept.ordered()
        ahead.append(card.ordered - card.done)
        assert kept.done == card.done
    assert ahead == [1, *[pace.AHEAD + 1] * 9]
    kept.finish()
    assert kept.done == 10


def test_progress_says_what_the_card_has_done_and_cancel_comes_within_two_steps(card: FakeCard) -> None:
    reports: list[StepReport] = []
    watch = Watch(6, reports.append, lambda: False, CARD)
    for _ in range(6):
        with watch.step():
            pass
    assert [report.step for report in reports] == [1, 2, 3, 4]
    watch.finish_steps()
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert all(report.steps == 6 and report.step_s >= 0 for report in reports)


def test_on_the_processor_a_step_is_done_when_it_returns() -> None:
    reports: list[StepReport] = []
    watch = Watch(2, reports.append, lambda: False, CPU)
    for _ in range(2):
        with watch.step():
            pass
    assert [report.step for report in reports] == [1, 2]


@pytest.mark.parametrize(("wanted", "used"), [("auto", ["best"]), ("native", [])])
def test_an_operator_can_leave_the_kernel_to_torch(
    wanted: str, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    monkeypatch.setattr(components, "attention_backend", lambda *_: "best")
    monkeypatch.setattr(components, "use_attention", lambda _, backend: taken.append(backend))
    network = SimpleNamespace(config=SimpleNamespace(attention_head_dim=128))
    parts: Any = SimpleNamespace(transformers={"flux-dev": network}, fast={}, device=CARD, dtype=torch.bfloat16)
    components.quicken(parts, compiled=False, attention=wanted)
    assert taken == used
