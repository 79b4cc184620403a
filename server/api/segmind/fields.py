"""Parameters as data: each field reads one value of a request body, refuses it in words, and describes itself.

A value is what JSON or a form can hold: text, a number, a boolean, null, a list, an object, or the bytes of an uploaded
file. Clients stringify freely (forms always, template engines often), so every field takes the text of a value for the
value itself. Absent, null and empty text mean the default, except where a field says otherwise.

The same table feeds validation, OpenAPI and the model information list, so they cannot disagree.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipelines.request import SEED_SPACE, Lora
from server.errors import InvalidInput

from .values import ABSENT, as_integer, as_number, is_blank, is_encodable, shown

SEED_MAX = 2**63 - 1
"""Largest seed that is accepted; seeds are then taken modulo 2³²."""

_PICTURE_FORMS = "an http(s) URL, a data URI, base64 text or a file"
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field(ABC):
    """One parameter. `name` is its key in the body, `description` what people read about it.

    required: a body without it is refused.
    """

    required: ClassVar[bool] = False

    name: str
    description: str

    @abstractmethod
    def read(self, value: object) -> Any:
        """The typed value. Pass ABSENT for a parameter that is not in the body. Raises InvalidInput, nothing else."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """The parameter's JSON schema in its canonical type; `read` takes more spellings than it lists."""

    def _described(self, kind: str, **keywords: object) -> dict[str, Any]:
        return {"type": kind, **keywords, "description": self.description}

    def _refusal(self, expected: str, got: str) -> InvalidInput:
        return InvalidInput(f"{self.name} should be {expected}; got {got}", parameter=self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Integer(Field):
    """A whole number in [low, high]."""

    default: int
    low: int
    high: int

    def read(self, value: object) -> int:
        if is_blank(value):
            return self.default
        number = as_integer(value)
        if number is None or not self.low <= number <= self.high:
            raise self._refusal(f"an integer between {self.low} and {self.high}", shown(value))
        return number

    def schema(self) -> dict[str, Any]:
        return self._described("integer", minimum=self.low, maximum=self.high, default=self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Number(Field):
    """A finite number in [low, high]."""

    default: float
    low: float
    high: float

    def read(self, value: object) -> float:
        if is_blank(value):
            return self.default
        number = as_number(value)
        if number is None or not self.low <= number <= self.high:
            raise self._refusal(f"a number between {self.low:g} and {self.high:g}", shown(value))
        return float(number)

    def schema(self) -> dict[str, Any]:
        return self._described("number", minimum=self.low, maximum=self.high, default=self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Field):
    """One of a few words. A number stands for the word that spells it (1 and 1.0 for "1").

    aliases: accepted spellings that are not listed, each with the value it means.
    """

    default: str
    values: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def read(self, value: object) -> str:
        if is_blank(value):
            return self.default
        for spelling, meaning in ({word: word for word in self.values} | dict(self.aliases)).items():
            if _spells(value, spelling):
                return meaning
        raise self._refusal(f"one of {', '.join(self.values)}", shown(value))

    def schema(self) -> dict[str, Any]:
        return self._described("string", enum=list(self.values), default=self.default)


def _spells(value: object, word: str) -> bool:
    if isinstance(value, str) and value.strip() == word:
        return True
    number = as_number(value)
    return number is not None and number == as_number(word)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag(Field):
    """True or false, also as 1/0 and, in any case, as the words true/false, yes/no, on/off."""

    default: bool

    def read(self, value: object) -> bool:
        if is_blank(value):
            return self.default
        if isinstance(value, bool):
            return value
        word = _WORDS.get(value.strip().lower()) if isinstance(value, str) else None
        meaning = as_number(value) if word is None else word
        if meaning not in (0, 1):
            raise self._refusal("true or false", shown(value))
        return bool(meaning)

    def schema(self) -> dict[str, Any]:
        return self._described("boolean", default=self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text(Field):
    """Mandatory text of 1 to `max_length` characters, kept as it is."""

    required: ClassVar[bool] = True

    max_length: int

    def read(self, value: object) -> str:
        if not isinstance(value, str) or not value:
            raise InvalidInput(f"{self.name.capitalize()} is Mandatory and must be string", parameter=self.name)
        if len(value) > self.max_length:
            raise self._refusal(f"at most {self.max_length} characters long", f"{len(value)} characters")
        if not is_encodable(value):
            raise self._refusal("valid Unicode", "half of a surrogate pair")
        return value

    def schema(self) -> dict[str, Any]:
        return self._described("string", minLength=1, maxLength=self.max_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture(Field):
    """A mandatory picture: the bytes of an uploaded file, or text that is a URL, a data URI or base64.

    The text is not looked into here; errors never repeat it.
    """

    required: ClassVar[bool] = True

    def read(self, value: object) -> str | bytes:
        picture = value.strip() if isinstance(value, str) else value
        if picture is ABSENT or picture is None or (isinstance(picture, str | bytes) and not picture):
            raise InvalidInput(f"{self.name} is mandatory: pass {_PICTURE_FORMS}", parameter=self.name)
        if not isinstance(picture, str | bytes):
            raise self._refusal(_PICTURE_FORMS, shown(picture))
        if isinstance(picture, str) and not is_encodable(picture):
            raise self._refusal(_PICTURE_FORMS, "half of a surrogate pair")
        return picture

    def schema(self) -> dict[str, Any]:
        return self._described("string")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionalPicture(Picture):
    """A picture that may be left out."""

    required: ClassVar[bool] = False

    def read(self, value: object) -> str | bytes | None:  # type: ignore[override]
        absent = value is ABSENT or value is None or (isinstance(value, str | bytes) and not value.strip())
        # Named in full: a slotted dataclass has no cell for a bare super().
        return None if absent else Picture.read(self, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loras(Field):
    """A list of adapters, `[{"name": …, "scale": …}]`, or its JSON text in a form. The scale may be left out."""

    most: int
    low: float
    high: float

    def read(self, value: object) -> tuple[Lora, ...]:
        if is_blank(value):
            return ()
        entries = _from_json_text(value)
        if not isinstance(entries, list) or len(entries) > self.most:
            raise self._refusal(f'a list of at most {self.most} objects like {{"name": "…", "scale": 1}}', shown(value))
        loras = tuple(self._entry(entry) for entry in entries)
        if len({lora.name for lora in loras}) < len(loras):
            raise self._refusal("a list that names each adapter once", shown(value))
        return loras

    def _entry(self, entry: object) -> Lora:
        fields = entry if isinstance(entry, Mapping) else {"name": entry}
        name = fields.get("name")
        if not isinstance(name, str) or not name or not is_encodable(name):
            raise self._refusal("a list whose entries have a name", shown(entry))
        return Lora(name=name, scale=self._scale(fields.get("scale", ABSENT)))

    def _scale(self, value: object) -> float:
        number = Number(name=f"{self.name}.scale", description="", default=1.0, low=self.low, high=self.high)
        try:
            return number.read(value)
        except InvalidInput as refused:
            refused.parameter = self.name
            raise

    def schema(self) -> dict[str, Any]:
        scale = {"type": "number", "minimum": self.low, "maximum": self.high, "default": 1}
        entry = {"type": "object", "properties": {"name": {"type": "string"}, "scale": scale}, "required": ["name"]}
        return self._described("array", items=entry, maxItems=self.most, default=[])


def _from_json_text(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed(Field):
    """A seed: -1 and an explicit null ask for a random one, absent and empty mean the default, 0 is a seed."""

    default: int

    def read(self, value: object) -> int | None:
        """The seed in [0, 2³²), larger ones taken modulo 2³²; None where a random one is asked for."""
        if value is None:
            return None
        seed = self.default if is_blank(value) else as_integer(value)
        if seed is None or not -1 <= seed <= SEED_MAX:
            raise self._refusal(f"an integer between -1 (random) and {SEED_MAX}", shown(value))
        return None if seed == -1 else seed % SEED_SPACE

    def schema(self) -> dict[str, Any]:
        return self._described("integer", minimum=-1, maximum=SEED_MAX, default=self.default)
