"""Who calls, and what they may spend. Keys are compared by hash; a caller's id says nothing about the key."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from .errors import Unauthorized
from .settings import Settings

MICRO = 1_000_000
"""Money is kept in whole millionths of a dollar."""

OPEN_CALLER = "open"
"""Everyone, on a server without keys."""

NO_KEY = "Missing Authorization or x-api-key in header"
BAD_KEY = (
    "Unauthorized. API key is invalid or may have expired."
    " The keys of this server are set with FLUX_API_KEYS where it runs."
)


@dataclass(frozen=True, slots=True)
class Caller:
    """One API key's holder. budget_micro_usd: what it may spend in all, None for no limit."""

    id: str
    budget_micro_usd: int | None


class Accounts:
    def __init__(self, settings: Settings) -> None:
        self._callers = [
            (_digest(key), Caller(_digest(key).hex()[:24], _budget(settings.credits.get(key))))
            for key in settings.api_keys
        ]
        self._allow_bearer = settings.allow_bearer
        self._unlimited_micro_usd = round(settings.unlimited_balance * MICRO)

    @property
    def open(self) -> bool:
        """True when no keys are set: everyone is let in (the server then listens on loopback only)."""
        return not self._callers

    def identify(self, api_key: str | None, authorization: str | None) -> Caller:
        """The caller whose key the headers carry; `x-api-key` wins over a bearer token.

        Raises Unauthorized. On an open server everyone is one caller, with or without a key.
        """
        if self.open:
            return Caller(OPEN_CALLER, None)
        key = api_key or (_bearer(authorization) if self._allow_bearer else None)
        if not key:
            raise Unauthorized(NO_KEY)
        return self._match(_digest(key))

    def balance_micro_usd(self, caller: Caller, spent_micro_usd: int) -> int:
        """What is left to spend; a large constant for a caller without a budget."""
        if caller.budget_micro_usd is None:
            return self._unlimited_micro_usd
        return caller.budget_micro_usd - spent_micro_usd

    def _match(self, digest: bytes) -> Caller:
        # Looks at every key, so that the time taken does not tell which one matched.
        found = None
        for known, caller in self._callers:
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise Unauthorized(BAD_KEY)
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _budget(usd: float | None) -> int | None:
    return None if usd is None else round(usd * MICRO)


def _bearer(authorization: str | None) -> str | None:
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
