"""Descriptions of the models for programs: Segmind's model information list and OpenAPI request bodies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .body import JSON, MULTIPART, URLENCODED
from .fields import Field, Picture
from .models import SegmindModel, model_of

LIST_KEY = "Inference Segmind Model Information List With Details"
"""The one key of the list's reply, as Segmind's service spells it and clients look it up."""

_BOUNDS = {"minimum": "min", "maximum": "max", "enum": "options"}


def model_information_list(slugs: Iterable[str]) -> dict[str, Any]:
    """What `models.list` of the Segmind Python SDK 1.3.0 answers, for these slugs in this order.

    Rows have the keys that clients read from Segmind's own list; `parameters_schema` is a JSON schema. Pictures of the
    models are null, for none lies outside this server. Raises NotFound for a slug that no model has.
    """
    return {LIST_KEY: [_information(model_of(slug)) for slug in slugs]}


def request_body_openapi(slug: str) -> dict[str, Any]:
    """The OpenAPI 3.1 requestBody object of a model's POST, in the three content types that `read_body` takes.

    Raises NotFound for a slug that no model has.
    """
    model = model_of(slug)
    form = _schema(model)
    uploads = {field.name: _upload(field) for field in model.fields.values() if isinstance(field, Picture)}
    multipart = {**form, "properties": form["properties"] | uploads}
    schemas = {JSON: form, MULTIPART: multipart, URLENCODED: form}
    return {"required": True, "content": {kind: {"schema": schema} for kind, schema in schemas.items()}}


def _information(model: SegmindModel) -> dict[str, Any]:
    return {
        "title": model.title,
        "type": "imageToImage" if "control_image" in model.fields else "textToImage",
        "description": model.description,
        "slug": model.slug,
        "parameters": {
            field.name: _parameter(field, order, affects_pricing=attribute == "num_outputs")
            for order, (attribute, field) in enumerate(model.fields.items())
        },
        "parameters_schema": _schema(model),
        "is_depreciated": False,
        "is_visible": True,
        "is_new": False,
        "thumbnail": None,
        "thumbnail_image": None,
        "default_image_output": None,
    }


def _parameter(field: Field, order: int, *, affects_pricing: bool) -> dict[str, Any]:
    schema = field.schema()
    return {
        "label": field.name.replace("_", " ").capitalize(),
        "description": field.description,
        "isRequired": field.required,
        "affectsPricing": affects_pricing,
        "displayOrder": order,
        "default": schema.get("default"),
        **{name: schema[keyword] for keyword, name in _BOUNDS.items() if keyword in schema},
    }


def _schema(model: SegmindModel) -> dict[str, Any]:
    fields = model.fields.values()
    return {
        "type": "object",
        "title": model.title,
        "properties": {field.name: field.schema() for field in fields},
        "required": [field.name for field in fields if field.required],
    }


def _upload(field: Field) -> dict[str, Any]:
    return {
        "anyOf": [{"type": "string", "format": "binary"}, {"type": "string"}],
        "description": field.description,
    }
