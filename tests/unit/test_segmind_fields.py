import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.segmind.fields import SEED_MAX, Choice, Field, Flag, Integer, Number, Picture, Seed, Text
from server.api.segmind.values import ABSENT
from server.errors import InvalidInput

INTEGER = Integer(name="steps", description="Steps.", default=25, low=1, high=50)
NUMBER = Number(name="guidance", description="Guidance.", default=3.0, low=0, high=10)
CHOICE = Choice(
    name="megapixels", description="Size.", default="1", values=("1", "0.25", "match_input"), aliases={"one": "1"}
)
FLAG = Flag(name="preprocess", description="Preprocess.", default=True)
TEXT = Text(name="prompt", description="Prompt.", max_length=20)
PICTURE = Picture(name="control_image", description="Picture.")
SEED = Seed(name="seed", description="Seed.", default=46588)

FIELDS: tuple[Field, ...] = (INTEGER, NUMBER, CHOICE, FLAG, TEXT, PICTURE, SEED)
OPTIONAL: tuple[Any, ...] = (INTEGER, NUMBER, CHOICE, FLAG, SEED)

NOT_NUMBERS = [
    *(True, False),
    *(math.nan, math.inf, -math.inf),
    "nan",
    "inf",
    "1e999",
    "seven",
    "7,0",
    "1_0",
    "٧",
    "0x7",
    "--7",
    ".",
    "7" * 5000,
    [],
    [7],
    {},
    {"a": 7},
    b"7",
    10**400,
    -(10**400),
]


def refusal(field: Field, value: object) -> str:
    with pytest.raises(InvalidInput) as refused:
        field.read(value)
    assert refused.value.parameter == field.name
    assert refused.value.http_status == 400
    return refused.value.message


@pytest.mark.parametrize("field", OPTIONAL)
@pytest.mark.parametrize("blank", [ABSENT, "", "   ", "\t\n"])
def test_blank_means_the_default(field: Any, blank: object) -> None:
    assert field.read(blank) == field.default


@pytest.mark.parametrize("field", [INTEGER, NUMBER, CHOICE, FLAG])
def test_null_means_the_default(field: Any) -> None:
    assert field.read(None) == field.default


@pytest.mark.parametrize("value", [7, 7.0, "7", "7.0", "7e0", " 7 ", "+7", "007", "70e-1", "7."])
def test_integer_spellings(value: object) -> None:
    read = INTEGER.read(value)
    assert read == 7
    assert type(read) is int


@pytest.mark.parametrize("value", [*NOT_NUMBERS, 7.5, "7.5", 0, 51, "0", "51", -1, 1e300])
def test_integer_refusals(value: object) -> None:
    assert refusal(INTEGER, value).startswith("steps should be an integer between 1 and 50; got ")


@pytest.mark.parametrize(
    ("value", "read"), [(3.5, 3.5), ("3.5", 3.5), (3, 3.0), (" 3e0", 3.0), (".5", 0.5), (0, 0.0), (10, 10.0)]
)
def test_number_spellings(value: object, read: float) -> None:
    assert NUMBER.read(value) == read
    assert type(NUMBER.read(value)) is float


@pytest.mark.parametrize("value", [*NOT_NUMBERS, -0.001, 10.001, "11"])
def test_number_refusals(value: object) -> None:
    assert refusal(NUMBER, value).startswith("guidance should be a number between 0 and 10; got ")


def test_number_bounds_print_as_people_write_them() -> None:
    field = Number(name="x", description="", default=0.5, low=0.25, high=1.0)
    assert refusal(field, 2) == "x should be a number between 0.25 and 1; got 2"


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("1", "1"),
        (1, "1"),
        (1.0, "1"),
        ("1.0", "1"),
        (0.25, "0.25"),
        ("0.250", "0.25"),
        (" match_input ", "match_input"),
        ("one", "1"),
    ],
)
def test_choice_spellings(value: object, read: str) -> None:
    assert CHOICE.read(value) == read


@pytest.mark.parametrize("value", ["2", 2, 0.5, True, "MATCH_INPUT", [], {}, b"1", math.nan, 10**400])
def test_choice_refusals(value: object) -> None:
    assert refusal(CHOICE, value).startswith("megapixels should be one of 1, 0.25, match_input; got ")


@pytest.mark.parametrize("value", [True, "True", "true", "TRUE", "1", 1, 1.0, "1.0", "yes", "Yes", "on", " ON "])
def test_true_spellings(value: object) -> None:
    assert FLAG.read(value) is True


@pytest.mark.parametrize("value", [False, "False", "false", "0", 0, 0.0, "0.0", "no", "off", " Off"])
def test_false_spellings(value: object) -> None:
    assert FLAG.read(value) is False


@pytest.mark.parametrize("value", [2, -1, 0.5, "2", "maybe", "tru", [], [True], {}, b"1", math.nan])
def test_flag_refusals(value: object) -> None:
    assert refusal(FLAG, value).startswith("preprocess should be true or false; got ")


@pytest.mark.parametrize("value", ["a", " a ", "x" * 20, "\n", "0", "null"])
def test_text_is_kept_as_it_is(value: str) -> None:
    assert TEXT.read(value) == value


@pytest.mark.parametrize("value", [ABSENT, None, "", 7, True, [], ["a"], {}, b"a"])
def test_a_missing_prompt_has_the_services_own_words(value: object) -> None:
    assert refusal(TEXT, value) == "Prompt is Mandatory and must be string"


def test_text_refusals() -> None:
    assert refusal(TEXT, "x" * 21) == "prompt should be at most 20 characters long; got 21 characters"
    assert refusal(TEXT, "\ud800") == "prompt should be valid Unicode; got half of a surrogate pair"


@pytest.mark.parametrize(
    "value", ["https://host/a.png", "aGVsbG8=", "data:image/png;base64,AA==", b"\x89PNG", "https://host/ü"]
)
def test_picture_forms(value: str | bytes) -> None:
    assert PICTURE.read(value) == value
    assert PICTURE.read(f" {value} \n" if isinstance(value, str) else value) == value


@pytest.mark.parametrize("value", [ABSENT, None, "", "  ", b""])
def test_a_missing_picture_is_asked_for(value: object) -> None:
    assert refusal(PICTURE, value).startswith("control_image is mandatory: pass ")


@pytest.mark.parametrize(
    "value", [7, 0, False, [], ["https://host/a.png"], {}, {"url": "https://host/a.png"}, "\udc00"]
)
def test_picture_refusals(value: object) -> None:
    assert refusal(PICTURE, value).startswith("control_image should be an http(s) URL, ")


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (0, 0),
        ("0", 0),
        (42, 42),
        ("42", 42),
        (42.0, 42),
        (2**32 - 1, 2**32 - 1),
        (2**32, 0),
        (2**32 + 5, 5),
        (SEED_MAX, 2**32 - 1),
        (str(SEED_MAX), 2**32 - 1),
        (-1, None),
        ("-1", None),
        (-1.0, None),
        (None, None),
    ],
)
def test_seeds(value: object, read: int | None) -> None:
    assert SEED.read(value) == read


@pytest.mark.parametrize("value", [-2, "-2", SEED_MAX + 1, str(SEED_MAX + 1), 0.5, *NOT_NUMBERS])
def test_seed_refusals(value: object) -> None:
    assert refusal(SEED, value).startswith(
        "seed should be an integer between -1 (random) and 9223372036854775807; got "
    )


@pytest.mark.parametrize("field", FIELDS)
def test_schemas_are_json_with_a_description_and_the_default(field: Any) -> None:
    schema = json.loads(json.dumps(field.schema()))
    assert schema["description"] == field.description
    assert schema.get("default") == getattr(field, "default", None)
    assert field.required is ("default" not in schema)


def test_schemas_name_bounds_and_values() -> None:
    assert INTEGER.schema() == {"type": "integer", "minimum": 1, "maximum": 50, "default": 25, "description": "Steps."}
    assert NUMBER.schema()["type"] == "number"
    assert CHOICE.schema()["enum"] == ["1", "0.25", "match_input"]
    assert FLAG.schema()["type"] == "boolean"
    assert TEXT.schema()["maxLength"] == 20
    assert PICTURE.schema()["type"] == "string"
    assert (SEED.schema()["minimum"], SEED.schema()["maximum"]) == (-1, SEED_MAX)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.from_regex(r"\A\s*[-+]?[0-9.]{0,5}([eE][-+]?[0-9]{0,3})?\s*\Z")
    | st.binary(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=5,
)


def outcome(field: Field, value: object) -> object:
    try:
        return field.read(value)
    except InvalidInput as refused:
        return refused


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: type(field).__name__)
@settings(deadline=None)
@given(value=JSON_VALUES)
def test_any_value_is_read_or_refused_in_words(field: Field, value: object) -> None:
    read = outcome(field, value)
    if isinstance(read, InvalidInput):
        assert read.parameter == field.name
        assert len(read.message.encode()) < 400
    else:
        assert field.read(read) == read
