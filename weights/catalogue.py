"""Which weights there are, where they come from and what they cost: `catalogue.toml` as dataclasses. No network."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .completeness import classifier_problem, flux_problem
from .errors import UnknownModel

Layout = Literal["flux", "transformers", "files"]
"""flux: a pipeline in diffusers' layout. transformers: one model. files: exactly the files that are listed."""

BUILT_IN = Path(__file__).with_name("catalogue.toml")


@dataclass(frozen=True, slots=True)
class Licence:
    """name: as the authors write it. page: where the text is. ask: whether it must be accepted before a download."""

    key: str
    name: str
    page: str
    ask: bool


@dataclass(frozen=True, slots=True)
class KnownFile:
    """One file as it is known without asking. path: in the repository, with slashes.

    size: bytes, None where unknown. exact: False where the size is for planning only. sha256: hex, None where unknown.
    """

    path: str
    size: int | None = None
    exact: bool = False
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A component that several models have in common. of: the model whose repository the files are known from.

    folders: of the diffusers layout that belong to it.
    """

    name: str
    of: str
    folders: tuple[str, ...]
    files: tuple[KnownFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One thing that can be pulled.

    revision: a commit where one is pinned, else a branch or reference of the repository.
    in_channels: packed channels that a FLUX transformer reads, None for other layouts.
    folders: names, beside the repository's own, under which its folder is looked for.
    files: what is known of its own files; the hub may list more. Those of `parts` come on top (`known_files`).
    """

    name: str
    title: str
    repository: str
    licence: Licence
    layout: Layout
    revision: str = "main"
    gated: bool = False
    in_channels: int | None = None
    aliases: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    files: tuple[KnownFile, ...] = ()

    @property
    def folder_name(self) -> str:
        """The folder that `pull` and `import` make in the weights folder: the repository's name without its owner."""
        return self.repository.rpartition("/")[2]

    @property
    def page(self) -> str:
        """The page on which a gated repository's terms are accepted. A mirror has none of its own."""
        return f"https://huggingface.co/{self.repository}"

    def known_files(self) -> tuple[KnownFile, ...]:
        """Own files and those of the shared parts. Another repository's files are the same only as far as is known."""
        shared = (file if part.of == self.name else _estimated(file) for part in self.parts for file in part.files)
        return (*self.files, *shared)

    def known_file(self, path: str) -> KnownFile | None:
        """What is known of the file at `path`, or None."""
        return next((file for file in self.known_files() if file.path == path), None)

    def part_of(self, path: str) -> Part | None:
        """The shared part that the file at `path` belongs to, or None."""
        return next((part for part in self.parts if path.partition("/")[0] in part.folders), None)

    def problem(self, folder: Path) -> str | None:
        """The first thing that `folder` lacks to be this model, beginning with its path in the folder, or None."""
        if self.layout == "flux":
            return flux_problem(folder, self.in_channels)
        if self.layout == "transformers":
            return classifier_problem(folder)
        return next((f"{file.path} is missing" for file in self.files if not (folder / file.path).is_file()), None)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """models: by name, in the order of the table. sets: names that stand for several. single_files: known by hash."""

    models: Mapping[str, Model]
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    single_files: tuple[KnownFile, ...] = ()

    def find(self, names: Iterable[str]) -> list[Model]:
        """The models that names, aliases and sets stand for, each once, in the order asked. Raises UnknownModel."""
        expanded = (single for name in names for single in self.sets.get(name, (name,)))
        return list({model.name: model for model in map(self._find, expanded)}.values())

    def _find(self, name: str) -> Model:
        if name in self.models:
            return self.models[name]
        for model in self.models.values():
            if name in (*model.aliases, model.repository):
                return model
        known = [*self.models, *self.sets]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
        raise UnknownModel(f"no model is called {name}; did you mean {', '.join(near)}?")


def read_catalogue(path: Path = BUILT_IN) -> Catalogue:
    """The table at `path`. Raises OSError where it cannot be read and ValueError where it is no such table."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        return _catalogue(table)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no table of weights: {type(error).__name__} {error}") from error


def _catalogue(table: dict[str, Any]) -> Catalogue:
    licences = {key: Licence(key=key, **entry) for key, entry in table["licences"].items()}
    parts = {name: _part(name, entry) for name, entry in table.get("parts", {}).items()}
    models = {name: _model(name, entry, licences, parts) for name, entry in table["models"].items()}
    sets = {name: tuple(names) for name, names in table.get("sets", {}).items()}
    return Catalogue(models, sets, tuple(_file(entry) for entry in table.get("single_files", ())))


def _part(name: str, entry: dict[str, Any]) -> Part:
    return Part(name, entry["of"], tuple(entry["folders"]), tuple(map(_file, entry["files"])))


def _model(name: str, entry: dict[str, Any], licences: dict[str, Licence], parts: dict[str, Part]) -> Model:
    lists: dict[str, Any] = {key: tuple(entry[key]) for key in ("aliases", "folders") if key in entry}
    made: dict[str, Any] = {
        "licence": licences[entry["licence"]],
        "parts": tuple(parts[part] for part in entry.get("parts", ())),
        "files": tuple(_file(file) for file in entry.get("files", ())),
    }
    return Model(**{**entry, **lists, **made, "name": name})


def _file(entry: dict[str, Any]) -> KnownFile:
    exact = entry.get("bytes")
    return KnownFile(entry["path"], exact or entry.get("about_bytes"), exact is not None, entry.get("sha256"))


def _estimated(file: KnownFile) -> KnownFile:
    return replace(file, exact=False, sha256=None)
