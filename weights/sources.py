"""Where each component of a model is loaded from: what `locate` finds and the worker is told. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Form = Literal["folder", "safetensors", "gguf"]
"""folder: as diffusers or transformers save a component, with its config.json. The others: one file, without one."""


@dataclass(frozen=True, slots=True)
class Source:
    """One component's weights.

    path: the folder or the file. prefix: what the names of its tensors begin with, in a file that holds other
    components too.
    """

    path: Path
    form: Form = "folder"
    prefix: str = ""

    def to_json(self) -> dict[str, str]:
        # Not resolved: a link of the hub's cache leads to a file without a suffix, and libraries go by suffixes.
        return {"path": str(self.path.absolute()), "form": self.form, "prefix": self.prefix}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Source:
        """What `to_json` gave. Raises KeyError and TypeError for anything else."""
        return cls(Path(fields["path"]), fields["form"], fields["prefix"])


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSources:
    """One FLUX model, component by component.

    clip_tokenizer, t5_tokenizer, scheduler: folders. scheduler: None for the published one, which is built in.
    """

    transformer: Source
    t5: Source
    clip: Source
    vae: Source
    t5_tokenizer: Path
    clip_tokenizer: Path
    scheduler: Path | None = None

    @classmethod
    def in_folder(cls, folder: Path) -> ModelSources:
        """Those of a folder in diffusers' layout, whether they are there or not."""
        return cls(
            transformer=Source(folder / "transformer"),
            t5=Source(folder / "text_encoder_2"),
            clip=Source(folder / "text_encoder"),
            vae=Source(folder / "vae"),
            t5_tokenizer=folder / "tokenizer_2",
            clip_tokenizer=folder / "tokenizer",
            scheduler=folder / "scheduler",
        )

    @property
    def home(self) -> Path:
        """The model's folder, or the file that its transformer is in."""
        return self.transformer.path.parent if self.transformer.form == "folder" else self.transformer.path

    def to_json(self) -> dict[str, Any]:
        """With absolute paths, for another process on this machine."""
        return {
            "transformer": self.transformer.to_json(),
            "t5": self.t5.to_json(),
            "clip": self.clip.to_json(),
            "vae": self.vae.to_json(),
            "t5_tokenizer": str(self.t5_tokenizer.absolute()),
            "clip_tokenizer": str(self.clip_tokenizer.absolute()),
            "scheduler": str(self.scheduler.absolute()) if self.scheduler else None,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ModelSources:
        """What `to_json` gave. Raises KeyError and TypeError for anything else."""
        components = {name: Source.from_json(fields[name]) for name in ("transformer", "t5", "clip", "vae")}
        scheduler = fields["scheduler"]
        return cls(
            **components,
            t5_tokenizer=Path(fields["t5_tokenizer"]),
            clip_tokenizer=Path(fields["clip_tokenizer"]),
            scheduler=Path(scheduler) if scheduler else None,
        )
