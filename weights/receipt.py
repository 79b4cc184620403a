"""What is known of the files in a weights folder: a small JSON file in it, written by `pull` and `import`.

The hub's own records are read too: those that `hf download --local-dir` leaves, and the blob names of its cache.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .fingerprint import Fingerprint, named_by_hub

NAME = ".flux-server.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One file. verified: whether its content was compared with the fingerprint after it was written."""

    fingerprint: Fingerprint
    verified: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """repository and commit: where the files come from, empty where unknown. files: by path, with slashes.

    complete: False from the beginning of a pull to its end, so that one that was stopped is known.
    """

    repository: str = ""
    commit: str = ""
    files: dict[str, Entry] = field(default_factory=dict)
    complete: bool = True

    def with_file(self, path: str, entry: Entry) -> Receipt:
        """The same with one more or another entry."""
        return replace(self, files={**self.files, path: entry})

    def without(self, paths: set[str]) -> Receipt:
        """The same without these files."""
        return replace(self, files={path: entry for path, entry in self.files.items() if path not in paths})


def read_receipt(folder: Path) -> Receipt:
    """The receipt in `folder`; an empty one where there is none or it cannot be understood."""
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        files = {path: _entry(entry) for path, entry in content["files"].items()}
        if content["format"] != FORMAT:
            return Receipt()
        return Receipt(content["repository"], content["commit"], files, bool(content["complete"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Receipt()


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Puts the receipt into `folder`, whole or not at all. Raises OSError."""
    content = {
        "format": FORMAT,
        "repository": receipt.repository,
        "commit": receipt.commit,
        "complete": receipt.complete,
        "files": {path: _to_json(entry) for path, entry in sorted(receipt.files.items())},
    }
    write_json(folder / NAME, content)


def write_json(path: Path, content: Any) -> None:
    """Replaces the file at `path`, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, path)


def expected(folder: Path, path: str, receipt: Receipt) -> Fingerprint | None:
    """What is written down about the file at `path` in `folder`: in the receipt, else by the hub's client; or None."""
    if path in receipt.files:
        return receipt.files[path].fingerprint
    return _from_client(folder, path) or _from_blob(folder / path)


def _from_client(folder: Path, path: str) -> Fingerprint | None:
    """The second line that `hf download --local-dir` wrote: the file's ETag. The first is the commit."""
    record = folder / ".cache" / "huggingface" / "download" / f"{path}.metadata"
    try:
        lines = record.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    return named_by_hub(lines[1].strip()) if len(lines) > 1 else None


def _from_blob(path: Path) -> Fingerprint | None:
    """The name that the cache gives a content, where `path` leads there."""
    target = path.resolve()
    return named_by_hub(target.name) if target.parent.name == "blobs" else None


def _entry(entry: dict[str, Any]) -> Entry:
    return Entry(Fingerprint(entry["bytes"], entry.get("sha256"), entry.get("git_sha1")), bool(entry["verified"]))


def _to_json(entry: Entry) -> dict[str, Any]:
    known = {"sha256": entry.fingerprint.sha256, "git_sha1": entry.fingerprint.git_sha1}
    hashes = {name: value for name, value in known.items() if value}
    return {"bytes": entry.fingerprint.size, **hashes, "verified": entry.verified}
