import json
from typing import Any

import pytest

from server.api.segmind.catalogue import LIST_KEY, model_information_list, request_body_openapi
from server.api.segmind.models import MODELS, parse
from server.errors import NotFound

CONTENT_TYPES = ("application/json", "multipart/form-data", "application/x-www-form-urlencoded")


def rows(*slugs: str) -> list[dict[str, Any]]:
    listed: dict[str, Any] = json.loads(json.dumps(model_information_list(slugs)))
    assert list(listed) == ["Inference Segmind Model Information List With Details"] == [LIST_KEY]
    found: list[dict[str, Any]] = listed[LIST_KEY]
    return found


def test_the_list_has_the_asked_models_in_order() -> None:
    assert [row["slug"] for row in rows("flux-depth-pro", "flux-dev")] == ["flux-depth-pro", "flux-dev"]
    assert rows() == []


def test_rows_have_what_clients_read() -> None:
    flux_dev, depth_dev, depth_pro = rows(*MODELS)
    assert (flux_dev["title"], flux_dev["type"]) == ("Flux.1 Dev", "textToImage")
    assert (depth_dev["title"], depth_dev["type"]) == ("Flux Depth Dev", "imageToImage")
    assert (depth_pro["title"], depth_pro["type"]) == ("Flux Depth Pro", "imageToImage")
    for row in (flux_dev, depth_dev, depth_pro):
        assert {"title", "type", "description", "slug", "parameters", "parameters_schema", "thumbnail"} <= set(row)
        assert row["is_depreciated"] is False
        assert "://" not in json.dumps({**row, "parameters": None, "parameters_schema": None})


@pytest.mark.parametrize("slug", MODELS)
def test_parameters_come_from_the_field_table(slug: str) -> None:
    (row,) = rows(slug)
    names = [field.name for field in MODELS[slug].fields.values()]
    assert list(row["parameters"]) == list(row["parameters_schema"]["properties"]) == names
    for field in MODELS[slug].fields.values():
        parameter = row["parameters"][field.name]
        assert parameter["isRequired"] is field.required
        assert parameter["default"] == field.schema().get("default")
        assert parameter["description"] == field.description != ""
        assert row["parameters_schema"]["properties"][field.name] == field.schema()


def test_parameters_name_bounds_values_and_price() -> None:
    flux_dev, depth_dev, depth_pro = (row["parameters"] for row in rows(*MODELS))
    assert (flux_dev["guidance"]["min"], flux_dev["guidance"]["max"], flux_dev["guidance"]["default"]) == (0, 10, 3.0)
    assert depth_dev["megapixels"]["options"] == ["1", "0.25", "match_input"]
    assert (depth_pro["steps"]["min"], depth_pro["steps"]["max"]) == (15, 50)
    priced = [name for row in (flux_dev, depth_dev, depth_pro) for name in row if row[name]["affectsPricing"]]
    assert priced == ["samples", "num_outputs"]


def test_extensions_say_that_they_are() -> None:
    depth_dev, depth_pro = (row["parameters"] for row in rows("flux-depth-dev", "flux-depth-pro"))
    for name in ("preprocess", "return_depth", "base64", "base_64"):
        assert depth_dev[name]["description"].startswith("Extension: ")
    assert depth_pro["output_quality"]["description"].startswith("Extension: ")
    assert not depth_dev["output_quality"]["description"].startswith("Extension: ")


@pytest.mark.parametrize("slug", MODELS)
def test_request_bodies(slug: str) -> None:
    body = json.loads(json.dumps(request_body_openapi(slug)))
    assert body["required"] is True
    assert tuple(body["content"]) == CONTENT_TYPES
    for media_type in body["content"].values():
        schema = media_type["schema"]
        assert schema["required"] == [field.name for field in MODELS[slug].fields.values() if field.required]
        assert set(schema["required"]) <= set(schema["properties"])
        assert "additionalProperties" not in schema


@pytest.mark.parametrize("slug", ["flux-depth-dev", "flux-depth-pro"])
def test_only_multipart_takes_a_file(slug: str) -> None:
    pictures = [
        media_type["schema"]["properties"]["control_image"]
        for media_type in request_body_openapi(slug)["content"].values()
    ]
    assert pictures[0] == pictures[2] == MODELS[slug].fields["control_image"].schema()
    assert pictures[1]["anyOf"] == [{"type": "string", "format": "binary"}, {"type": "string"}]


@pytest.mark.parametrize("slug", MODELS)
def test_the_schemas_defaults_are_what_an_absent_parameter_means(slug: str) -> None:
    properties = request_body_openapi(slug)["content"]["application/json"]["schema"]["properties"]
    required = {"prompt": "a", "control_image": "https://host/a.png"}
    defaults = {name: schema["default"] for name, schema in properties.items() if "default" in schema}
    assert parse(slug, required | defaults, draw_seed=int) == parse(slug, required, draw_seed=int)


def test_unknown_slugs() -> None:
    with pytest.raises(NotFound):
        model_information_list(["flux-dev", "nothing"])
    with pytest.raises(NotFound):
        request_body_openapi("nothing")
