"""Which model goes next where models have to take turns on the device. Pure."""

from __future__ import annotations

MAX_PASSING = 4
"""Jobs that may go before one that waits for the other model: the bound of its extra wait."""


class Turns:
    """Prefers the model that is on the device, for a while. A change of models costs seconds, waiting is bounded."""

    def __init__(self) -> None:
        self._model: str | None = None
        self._in_a_row = 0

    @property
    def preferred(self) -> str | None:
        """The model whose jobs may go first; None for strictly first come, first served."""
        return self._model if self._in_a_row <= MAX_PASSING else None

    def took(self, model: str) -> None:
        """A job of this model is the next to run."""
        self._in_a_row = self._in_a_row + 1 if model == self._model else 1
        self._model = model
