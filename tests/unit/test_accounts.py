"""Who is let in, and what may be spent."""

from __future__ import annotations

from typing import Any

import pytest

from server.accounts import BAD_KEY, MICRO, NO_KEY, OPEN_CALLER, Accounts, Caller
from server.errors import Unauthorized
from server.settings import Settings

KEY, OTHER = "SG_0123456789abcdef", "SG_fedcba9876543210"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)


def accounts(*keys: str, **settings: Any) -> Accounts:
    return Accounts(Settings(api_keys=keys, **settings))


def test_a_key_is_recognised_in_either_header() -> None:
    both = accounts(KEY, OTHER)
    assert both.identify(KEY, None) == both.identify(None, f"Bearer {KEY}")
    assert both.identify(KEY, None) != both.identify(OTHER, None)


@pytest.mark.parametrize("spelling", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer   {}  "])
def test_the_scheme_may_be_spelt_in_any_case(spelling: str) -> None:
    assert accounts(KEY).identify(None, spelling.format(KEY)) == accounts(KEY).identify(KEY, None)


def test_x_api_key_wins_over_a_bearer_token() -> None:
    both = accounts(KEY, OTHER)
    assert both.identify(KEY, f"Bearer {OTHER}") == both.identify(KEY, None)
    assert both.identify(KEY, "Bearer wrong") == both.identify(KEY, None)
    with pytest.raises(Unauthorized, match="invalid"):
        both.identify("wrong", f"Bearer {KEY}")


def test_an_empty_x_api_key_counts_as_none() -> None:
    assert accounts(KEY).identify("", f"Bearer {KEY}") == accounts(KEY).identify(KEY, None)


@pytest.mark.parametrize(
    ("api_key", "authorization"),
    [
        (None, None),
        ("", None),
        (None, ""),
        ("", ""),
        (None, "Bearer"),
        (None, "Bearer "),
        (None, f"Basic {KEY}"),
        (None, KEY),
    ],
)
def test_a_call_without_a_key_is_told_so(api_key: str | None, authorization: str | None) -> None:
    with pytest.raises(Unauthorized) as refused:
        accounts(KEY).identify(api_key, authorization)
    assert refused.value.message == NO_KEY
    assert refused.value.http_status == 401


@pytest.mark.parametrize(
    "key",
    [
        KEY[:-1],
        KEY + "0",
        KEY.lower(),
        KEY.upper(),
        f" {KEY}",
        f"{KEY},{OTHER}",
        "é",
        "\udcff",
        "\x00",
        "x" * 1_000_000,
        "None",
    ],
    ids=lambda key: ascii(key[:20]),
)
def test_a_wrong_key_is_refused_whatever_it_looks_like(key: str) -> None:
    for headers in ((key, None), (None, f"Bearer {key}x")):
        with pytest.raises(Unauthorized) as refused:
            accounts(KEY, OTHER).identify(*headers)
        assert refused.value.message == BAD_KEY


def test_the_refusal_does_not_repeat_the_key() -> None:
    with pytest.raises(Unauthorized) as refused:
        accounts(KEY).identify("SG_secretsecret", None)
    assert "secretsecret" not in str(refused.value)


def test_bearer_tokens_can_be_turned_off() -> None:
    strict = accounts(KEY, allow_bearer=False)
    with pytest.raises(Unauthorized) as refused:
        strict.identify(None, f"Bearer {KEY}")
    assert refused.value.message == NO_KEY
    assert strict.identify(KEY, None)


@pytest.mark.parametrize("position", range(3))
def test_every_key_of_the_list_is_known(position: int) -> None:
    keys = ("SG_one", "SG_two", "SG_three")
    assert accounts(*keys).identify(keys[position], None) == accounts(keys[position]).identify(keys[position], None)


def test_a_callers_id_is_the_same_after_a_restart_and_says_nothing_about_the_key() -> None:
    caller = accounts(KEY, OTHER).identify(KEY, None)
    assert caller.id == accounts(OTHER, KEY).identify(KEY, None).id
    assert len(caller.id) == 24
    assert KEY[3:] not in caller.id
    assert caller.id != OPEN_CALLER


@pytest.mark.parametrize("headers", [(None, None), ("anything", None), (None, "Bearer x"), ("", "")])
def test_on_an_open_server_everyone_is_one_caller_without_limit(headers: tuple[str | None, str | None]) -> None:
    assert accounts().open
    assert accounts().identify(*headers) == Caller(OPEN_CALLER, None)
    assert not accounts(KEY).open


def test_a_budget_belongs_to_its_key() -> None:
    both = accounts(KEY, OTHER, credits={OTHER: 0.05})
    assert both.identify(KEY, None).budget_micro_usd is None
    assert both.identify(OTHER, None).budget_micro_usd == 50_000


def test_a_budget_of_nothing_is_not_no_budget() -> None:
    assert accounts(KEY, credits={KEY: 0.0}).identify(KEY, None).budget_micro_usd == 0


@pytest.mark.parametrize(
    ("usd", "micro"), [(0.1 + 0.2, 300_000), (0.000001, 1), (1.1, 1_100_000), (12.3456789, 12_345_679)]
)
def test_budgets_are_whole_millionths_without_drift(usd: float, micro: int) -> None:
    budget = accounts(KEY, credits={KEY: usd}).identify(KEY, None).budget_micro_usd
    assert budget == micro
    assert isinstance(budget, int)


def test_the_balance_is_the_budget_less_what_was_spent() -> None:
    some = accounts(KEY, unlimited_balance=25.5)
    assert some.balance_micro_usd(Caller("a", 100), 30) == 70
    assert some.balance_micro_usd(Caller("a", 100), 100) == 0
    assert some.balance_micro_usd(Caller("a", 0), 0) == 0
    assert some.balance_micro_usd(Caller("a", None), 10**15) == 25_500_000 == 25.5 * MICRO
