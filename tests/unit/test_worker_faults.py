"""What the supervisor makes of faults: waits, alarm, limits, and what may be logged."""

from __future__ import annotations

import pytest

from server.worker.hiding import hide
from server.worker.protocol import Run
from server.worker.record import ALARM_FAILURES, ALARM_WINDOW_S, LifeRecord
from server.worker.step_limit import LEAST_S, StepLimit

MEGAPIXEL = 1_000_000


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def record(clock: Clock) -> LifeRecord:
    return LifeRecord(clock)


def test_the_waits_grow_with_the_failures_in_a_row(record: LifeRecord) -> None:
    waits = [record.wait_s]
    for _ in range(6):
        record.note_end("device")
        waits.append(record.wait_s)
    assert waits == [0, 0, 1, 5, 30, 30, 30]


def test_a_picture_ends_the_waits_and_the_life_that_drew_it_is_no_failure(record: LifeRecord) -> None:
    for _ in range(4):
        record.note_end("device")
    record.note_picture()
    assert record.wait_s == 0
    record.note_end("crashed")
    assert record.wait_s == 0
    record.note_end("crashed")
    record.note_end("crashed")
    assert record.wait_s == 1
    assert record.restarts == {"device": 4, "crashed": 3}


@pytest.mark.parametrize(("failures", "alarm"), [(ALARM_FAILURES - 1, False), (ALARM_FAILURES, True)])
def test_five_failures_raise_the_alarm(record: LifeRecord, failures: int, alarm: bool) -> None:
    for _ in range(failures):
        record.note_end("load")
    assert record.alarm is alarm


@pytest.mark.parametrize(("spread_s", "alarm"), [(ALARM_WINDOW_S, True), (ALARM_WINDOW_S + 1, False)])
def test_only_failures_within_the_window_count(record: LifeRecord, clock: Clock, spread_s: float, alarm: bool) -> None:
    for _ in range(ALARM_FAILURES):
        record.note_end("load")
        clock.now_s += spread_s / ALARM_FAILURES
    clock.now_s = spread_s
    assert record.alarm is alarm


def test_a_picture_ends_the_alarm(record: LifeRecord) -> None:
    for _ in range(ALARM_FAILURES):
        record.note_end("load")
    record.note_picture()
    assert not record.alarm


def test_a_jobs_failure_tells_no_prompt_of_its_mates() -> None:
    from pipelines.attempt import Fault
    from server.worker.main import _failure

    runs = [Run(job=name, attempt=1, request={"prompt": f"a secret {name}"}) for name in ("fox", "boat")]
    fault = Fault("unknown", "cannot tokenize 'a secret boat' beside 'a secret fox'")
    failed = _failure(None, runs, runs[0], fault, 1.0)  # type: ignore[arg-type]
    assert failed.job == "fox"
    assert "cannot tokenize" in failed.message
    assert "secret" not in failed.message


# The step limit.


def test_the_operators_own_limit_is_the_limit() -> None:
    limit = StepLimit(3.0)
    limit.warmed_up(100.0)
    limit.observe(100.0, pixels=MEGAPIXEL)
    assert limit.limit_s(pixels=MEGAPIXEL) == 3.0


def test_without_a_step_the_warm_up_stands_for_one() -> None:
    limit = StepLimit(None)
    assert limit.limit_s(pixels=MEGAPIXEL) == LEAST_S == 30
    limit.warmed_up(1.0)
    assert limit.limit_s(pixels=MEGAPIXEL) == 30
    limit.warmed_up(4.0)
    assert limit.limit_s(pixels=MEGAPIXEL) == 80


def test_the_limit_is_twenty_median_steps_and_at_least_thirty_seconds() -> None:
    limit = StepLimit(None)
    limit.warmed_up(1000.0)
    for step_s in (2.0, 2.5, 900.0):
        limit.observe(step_s, pixels=MEGAPIXEL)
    assert limit.limit_s(pixels=MEGAPIXEL) == pytest.approx(50)
    for _ in range(3):
        limit.observe(0.1, pixels=MEGAPIXEL)
    for _ in range(98):
        limit.observe(0.2, pixels=MEGAPIXEL)
    assert limit.limit_s(pixels=MEGAPIXEL) == 30


def test_a_large_picture_after_small_ones_gets_more_time() -> None:
    limit = StepLimit(None)
    limit.observe(2.0, pixels=MEGAPIXEL // 4)
    assert limit.limit_s(pixels=4 * MEGAPIXEL) == pytest.approx(20 * 2 * 16)


def test_nonsense_is_not_observed() -> None:
    limit = StepLimit(None)
    limit.observe(-5.0, pixels=MEGAPIXEL)
    limit.observe(5.0, pixels=0)
    assert limit.limit_s(pixels=MEGAPIXEL) == 30


# Logs.

PROMPT = 'a "very" secret fox\nin the snow\tof café'


@pytest.mark.parametrize(
    "text",
    [
        f"ValueError: cannot tokenise {PROMPT}",
        f"ValueError: cannot tokenise {PROMPT!r}",
        "ValueError: in the snow\tof café",
        'KeyError: "a \\"very\\" secret fox\\nin the snow\\tof caf\\u00e9"',
    ],
)
def test_no_form_of_the_prompt_is_logged(text: str) -> None:
    hidden = hide(text, PROMPT)
    assert "fox" not in hidden
    assert "snow" not in hidden
    assert "Error: " in hidden


def test_of_several_prompts_none_is_logged_nor_half_of_one() -> None:
    hidden = hide("drew a red fox in snow, then a red fox", "a red fox", "a red fox in snow", "")
    assert hidden == "drew (prompt of 17 characters), then (prompt of 9 characters)"


def test_a_prompt_of_a_letter_does_not_spoil_the_words() -> None:
    assert hide("out of memory: example", "e") == "out of memory: example"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("no file in /home/ann/weights/vae.safetensors here", "no file in …/vae.safetensors here"),
        ("['/srv/data/a.png', '/srv/b']", "['…/a.png', '…/b']"),
        ("see https://pytorch.org/docs/stable/x.html", "see https://pytorch.org/docs/stable/x.html"),
        ("3 / 4 and/or n/a", "3 / 4 and/or n/a"),
    ],
)
def test_folders_are_cut_and_addresses_are_not(text: str, hidden: str) -> None:
    assert hide(text) == hidden
