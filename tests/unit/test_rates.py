"""The rate limit: a bucket for each key, filled at the set pace."""

from __future__ import annotations

import pytest

from server.rates import RateLimited, RateLimits


class HandClock:
    at = 1000.0

    def now(self) -> float:
        return self.at


def taken(limits: RateLimits, owner: str = "ann") -> bool:
    try:
        limits.take(owner)
    except RateLimited:
        return False
    return True


@pytest.mark.parametrize("per_minute", [6.0, 60.0, 90.0, 1000.0])
@pytest.mark.parametrize("asked_per_s", [0.9, 37.0])
def test_what_passes_is_the_set_rate_within_five_percent(per_minute: float, asked_per_s: float) -> None:
    clock = HandClock()
    limits = RateLimits(per_minute=per_minute, burst=5, clock=clock)
    while taken(limits):
        pass
    passed, minutes = 0, 30
    asked = int(minutes * 60 * asked_per_s)
    for _ in range(asked):
        clock.at += 1 / asked_per_s
        passed += taken(limits)
    expected = min(per_minute * minutes, asked)
    print(f"{per_minute:g} a minute, asked {asked_per_s:g} a second: {passed} of {expected:g} passed")
    assert passed == pytest.approx(expected, rel=0.05)


def test_a_burst_passes_at_once_and_not_one_more() -> None:
    limits = RateLimits(per_minute=1.0, burst=3, clock=HandClock())
    assert [taken(limits) for _ in range(5)] == [True, True, True, False, False]


def test_the_refusal_says_when_to_come_back_and_then_it_passes() -> None:
    clock = HandClock()
    limits = RateLimits(per_minute=2.0, burst=1, clock=clock)
    limits.take("ann")
    clock.at += 10.5
    with pytest.raises(RateLimited) as refused:
        limits.take("ann")
    assert (refused.value.http_status, refused.value.code, refused.value.retry_after_s) == (429, "rate_limited", 20)
    clock.at += 20
    assert taken(limits)


def test_asking_in_vain_costs_nothing() -> None:
    clock = HandClock()
    limits = RateLimits(per_minute=60.0, burst=1, clock=clock)
    limits.take("ann")
    assert not any(taken(limits) for _ in range(1000))
    clock.at += 1.0
    assert taken(limits)


def test_another_key_is_not_held_back() -> None:
    limits = RateLimits(per_minute=1.0, burst=2, clock=HandClock())
    assert [taken(limits, "ann") for _ in range(3)] == [True, True, False]
    assert [taken(limits, "ben") for _ in range(3)] == [True, True, False]


def test_a_pause_fills_the_bucket_and_never_more() -> None:
    clock = HandClock()
    limits = RateLimits(per_minute=60.0, burst=2, clock=clock)
    limits.take("ann")
    assert limits.full_in_s("ann") == pytest.approx(1.0)
    clock.at += 86_400
    assert limits.full_in_s("ann") == 0.0
    assert [taken(limits) for _ in range(3)] == [True, True, False]


def test_without_a_limit_everything_passes() -> None:
    limits = RateLimits(per_minute=None, burst=1, clock=HandClock())
    assert all(taken(limits) for _ in range(10_000))
    assert limits.full_in_s("ann") == 0.0
