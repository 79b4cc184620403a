"""What `flux-server weights` prints: the same facts as text and as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weights.catalogue import Licence, Model
from weights.importing import Found, Linked
from weights.licence import accepted
from weights.pull import Pulled
from weights.stock import Holding
from weights.verify import GOOD, ModelCheck


def as_json(content: Mapping[str, Any]) -> str:
    """Indented JSON; paths as text."""
    return json.dumps(content, indent=2, ensure_ascii=False, default=str)


def gigabytes(size: int | None) -> str:
    """A number of bytes for people, in decimal units."""
    if size is None:
        return "unknown size"
    unit = next((unit for unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= unit[0]), (1, "bytes"))
    return f"{size / unit[0]:.1f} {unit[1]}" if unit[0] > 1 else f"{size} bytes"


def free_bytes(root: Path) -> int:
    """Room on the disk that `root` is or will be on."""
    return shutil.disk_usage(next(folder for folder in (root, *root.resolve().parents) if folder.exists())).free


def stock_json(root: Path, holdings: Iterable[Holding], singles: Iterable[Found]) -> dict[str, Any]:
    """Everything that `ls` knows."""
    record = accepted(root)
    return {
        "root": root,
        "free_bytes": free_bytes(root),
        "models": [_holding_json(holding, record) for holding in holdings],
        "imported": [asdict(found) for found in singles],
    }


def stock_lines(
    root: Path, holdings: Sequence[Holding], singles: Iterable[Found], wanted: Container[str]
) -> Iterator[str]:
    """One line for each model that is here or among `wanted`, and one for each imported file."""
    yield f"{root} ({gigabytes(free_bytes(root))} free on its disk)"
    rows = [row for row in holdings if row.state != "missing" or row.model.name in wanted]
    yield from map(_holding_line, rows)
    yield from (f"  imported   {found_line(found)}{_unless_loaded(found)}" for found in singles)
    if hidden := len(holdings) - len(rows):
        yield f"  {hidden} more can be pulled: flux-server weights ls --all"


def _holding_json(holding: Holding, record: Mapping[str, Any]) -> dict[str, Any]:
    model = holding.model
    licence = {**asdict(model.licence), "accepted": record.get(model.licence.key)}
    about = ("name", "title", "repository", "revision", "gated")
    sizes = ("state", "folder", "here_bytes", "pull_bytes", "part_bytes", "shared_bytes", "problem")
    facts = {name: getattr(model, name) for name in about} | {name: getattr(holding, name) for name in sizes}
    return {**facts, "licence": licence}


def _holding_line(holding: Holding) -> str:
    model = holding.model
    head = f"  {holding.state:<10} {model.name:<24}"
    if holding.state == "here":
        return f"{head} {gigabytes(holding.here_bytes)}  {holding.folder}"
    parts = [f"{gigabytes(holding.pull_bytes)} to pull"]
    if holding.part_bytes:
        parts.append(f"{gigabytes(holding.part_bytes)} of it once for all models that share it")
    if holding.shared_bytes:
        parts.append(f"{gigabytes(holding.shared_bytes)} linked to another model's")
    if holding.here_bytes:
        parts.append(f"{gigabytes(holding.here_bytes)} here")
    return f"{head} {', '.join(parts)} ({model.licence.name}{', gated' if model.gated else ''})"


def _unless_loaded(found: Found) -> str:
    return "" if found.loadable else f": not loaded: {found.why_not}"


def found_line(found: Found) -> str:
    precision = f", {found.precision}" if found.precision else ""
    return f"{found.path}: {found.what} ({found.form}{precision})"


def linked_json(linked: Linked) -> dict[str, Any]:
    return {**asdict(linked.found), "target": linked.target, "note": linked.note}


def linked_lines(linked: Linked) -> list[str]:
    lines = [found_line(linked.found)]
    if linked.target:
        lines.append(f"  linked in {linked.target}")
    can = "can load it" if linked.found.loadable else "cannot load it"
    note = linked.note or linked.found.why_not
    return [*lines, f"  this version {can}" + (f": {note}" if note else "")]


def pulled_json(pulled: Pulled) -> dict[str, Any]:
    return asdict(pulled)


def pulled_line(pulled: Pulled) -> str:
    if not pulled.commit:
        return f"{pulled.name}: already complete in {pulled.folder}"
    parts = [f"{gigabytes(pulled.downloaded_bytes)} downloaded"]
    if pulled.resumed_bytes:
        parts.append(f"{gigabytes(pulled.resumed_bytes)} there from before")
    if pulled.linked:
        parts.append(f"{gigabytes(pulled.linked_bytes)} linked to another model's")
    return f"{pulled.name}: complete in {pulled.folder} ({', '.join(parts)})"


def check_json(check: ModelCheck) -> dict[str, Any]:
    return asdict(check) | {"good": check.good}


def check_lines(check: ModelCheck) -> list[str]:
    size = sum(file.size or 0 for file in check.files)
    depth = "contents compared" if check.full else "sizes and forms; --full compares contents"
    verdict = "good" if check.good else "BAD"
    head = f"{verdict:<4} {check.name}: {len(check.files)} files, {gigabytes(size)} in {check.folder} ({depth})"
    bad = [f"       {file.state}: {file.path}: {file.detail}" for file in check.files if file.state not in GOOD]
    unproven = [file for file in check.files if file.state == "unproven"]
    if bad:
        bad.append(f"       flux-server weights pull {check.name} fetches what is not good again")
    note = f"       {len(unproven)} of them have no published hash to compare with" if unproven else ""
    return [head, *bad, *([note] if note else [])]


def licence_line(licence: Licence, models: Iterable[Model]) -> str:
    """The licence with its page and the models that it covers."""
    return f"{', '.join(model.name for model in models)}: {licence.name}, {licence.page}"
