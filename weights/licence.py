"""Licences that must be accepted before their weights are fetched, and the record of who did: `licences.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .catalogue import Licence, Model
from .receipt import write_json

NAME = "licences.json"


def to_accept(root: Path, models: Iterable[Model]) -> dict[Licence, list[Model]]:
    """The licences of `models` that ask for acceptance and have none on record under `root`, with their models."""
    recorded = accepted(root)
    wanted: dict[Licence, list[Model]] = {}
    for model in models:
        if model.licence.ask and model.repository not in recorded.get(model.licence.key, {}).get("repositories", ()):
            wanted.setdefault(model.licence, []).append(model)
    return wanted


def accepted(root: Path) -> dict[str, Any]:
    """The record: by licence key its name, page, repositories, and who accepted it when and how. Empty without one.

    Raises ValueError for a record that cannot be understood: it is not written over.
    """
    try:
        record = json.loads((root / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        record = None
    if not isinstance(record, dict) or not all(isinstance(entry, dict) for entry in record.values()):
        raise ValueError(f"{root / NAME} is no record of licences; move it away")
    return record


def record_acceptance(root: Path, licence: Licence, models: Iterable[Model], how: str) -> None:
    """Notes that whoever runs this process accepted `licence` for `models`. how: in words, for the record.

    Raises OSError where `root` cannot be written.
    """
    record = accepted(root)
    before = record.get(licence.key, {}).get("repositories", ())
    record[licence.key] = {
        "name": licence.name,
        "page": licence.page,
        "repositories": sorted({*before, *(model.repository for model in models)}),
        "accepted_by": _account(),
        "accepted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "how": how,
    }
    write_json(root / NAME, record)


def _account() -> str:
    """The name of the account that runs this process, where the system tells one."""
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return "unknown"
