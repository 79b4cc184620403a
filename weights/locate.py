"""Finds models under a weights directory, and says exactly what is wrong with those that cannot be used.

Three ways of lying there are known: `<root>/FLUX.1-dev`, `<root>/black-forest-labs/FLUX.1-dev`, and the hub client's
download cache, `<root>/models--black-forest-labs--FLUX.1-dev/snapshots/<revision>`, with or without `hub/` before it.
The first complete folder counts. Where there is none, a model is put together from single files (`single_files`), with
parts that other models' folders have. Nothing is loaded and nothing is downloaded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .completeness import classifier_problem, flux_problem, quantised_transformer_problem
from .single_files import Found, assemble, single_files
from .sources import ModelSources, Source

DEPTH_ESTIMATOR = "LiheYoung/depth-anything-large-hf"
SAFETY_CONCEPTS = "CompVis/stable-diffusion-safety-checker"
NSFW_DETECTOR = "Falconsai/nsfw_image_detection"
DEPTH_LORA = "black-forest-labs/FLUX.1-Depth-dev-lora"
DEPTH_LORA_FILE = "flux1-depth-dev-lora.safetensors"
TEXT_ENCODERS = "comfyanonymous/flux_text_encoders"
TOKENIZERS = {"t5_tokenizer": "google/t5-v1_1-xxl", "clip_tokenizer": "openai/clip-vit-large-patch14"}
"""Where Black Forest Labs' own code takes its tokenizers from (black-forest-labs/flux, `util.py`)."""

CONTROL_IN_CHANNELS = 128
"""A transformer that reads this many channels is steered by a control image, so its model needs a depth estimator."""


@dataclass(frozen=True, slots=True)
class WantedEstimator:
    """Which depth estimator to look for. files: checkpoints that must lie in its repository's folder; without any, the
    folder must be in transformers' layout. name: what `weights pull` calls it, where that is not the repository."""

    repository: str = DEPTH_ESTIMATOR
    files: tuple[str, ...] = ()
    name: str = ""

    def problem(self, folder: Path) -> str | None:
        """The first thing that `folder` lacks, or None."""
        if not self.files:
            return classifier_problem(folder)
        return next((f"{name} is missing" for name in self.files if not (folder / name).is_file()), None)


class WeightsMissing(LookupError):
    """Weights that are needed are not there. The text says what is missing, where it was looked for, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """What was found under `root`.

    models: where each usable model's components lie, by model name.
    depth_estimator: folder of the wanted one. safety_concepts, nsfw_detector: folders in transformers' layout. None
        where absent or incomplete.
    depth_lora: the control LoRA's file, which makes a depth model of flux-dev.
    problems: one sentence for each thing that was asked for or begun and cannot be used.
    """

    root: Path
    models: dict[str, ModelSources]
    depth_estimator: Path | None
    safety_concepts: Path | None
    nsfw_detector: Path | None
    problems: tuple[str, ...]
    depth_lora: Path | None = None

    def sources(self, name: str) -> ModelSources:
        """Those of model `name`. Raises WeightsMissing, with that model's problems, where it is not usable."""
        if name in self.models:
            return self.models[name]
        reasons = (problem for problem in self.problems if problem.startswith(f"{name}: "))
        raise WeightsMissing("\n".join((f"{name} has no usable weights under {self.root}.", *reasons)))


def locate(
    root: Path,
    repositories: Mapping[str, str],
    in_channels: Mapping[str, int] | None = None,
    *,
    estimator: WantedEstimator = WantedEstimator(),
) -> Located:
    """Looks under `root` for each model of `repositories` (model name to hub repository) and for the helper models.

    in_channels: packed channels that a model's transformer must read, by model name; models not named are not checked.
    A control model is listed, with a problem, also where the depth estimator is not: it still takes ready depth maps.
    Where nothing is found, the result is empty and its problems say why. Raises OSError where `root` cannot be read.
    """
    models, problems = _find_models(root, repositories, in_channels or {})
    depth_estimator, wrong_depth = find_folder(root, estimator.repository, (), estimator.problem)
    safety_concepts, wrong_concepts = find_folder(root, SAFETY_CONCEPTS, ("safety-concepts",), classifier_problem)
    nsfw_detector, wrong_detector = find_folder(root, NSFW_DETECTOR, ("nsfw-image-detection",), classifier_problem)
    problems += [f"depth estimator: {text}" for text in wrong_depth]
    problems += [f"safety checker: {text}" for text in (*wrong_concepts, *wrong_detector)]
    if depth_estimator is None:
        control_models = (name for name in models if (in_channels or {}).get(name) == CONTROL_IN_CHANNELS)
        problems += [
            f"{name}: takes ready depth maps only, without the depth estimator. "
            f"{_absent(root, estimator.repository, estimator.name or estimator.repository)}"
            for name in control_models
        ]
    return Located(
        root=root,
        models=models,
        depth_estimator=depth_estimator,
        safety_concepts=safety_concepts,
        nsfw_detector=nsfw_detector,
        problems=tuple(problems),
        depth_lora=_depth_lora(root),
    )


def _find_models(
    root: Path, repositories: Mapping[str, str], in_channels: Mapping[str, int]
) -> tuple[dict[str, ModelSources], list[str]]:
    """Sources by model name, and a sentence for each thing that is missing."""
    places = [folder for repository in repositories.values() for folder in candidates(root, repository, ())]
    files = single_files(root, [*places, *candidates(root, TEXT_ENCODERS, ())])
    models: dict[str, ModelSources] = {}
    problems: list[str] = []
    for name, repository in repositories.items():
        folder, wrong = find_folder(root, repository, (), partial(flux_problem, in_channels=in_channels.get(name)))
        if folder:
            models[name] = ModelSources.in_folder(folder)
            continue
        sources, missing = _put_together(root, name, repository, in_channels.get(name), files, places)
        if sources:
            models[name] = sources
        problems += [f"{name}: {text}" for text in ([] if sources else missing or wrong or [_nowhere(root, name)])]
    if len(models) < len(repositories):
        problems += [f"single file {found.path} is not used: {found.why_not}" for found in files if _concerns(found)]
    return models, problems


def _concerns(found: Found) -> bool:
    """Whether somebody who misses a model would want to know why this file does not help."""
    return not found.loadable and (found.form == "damaged file" or found.component not in ("lora", "other"))


def _put_together(
    root: Path, name: str, repository: str, channels: int | None, files: list[Found], places: list[Path]
) -> tuple[ModelSources | None, list[str]]:
    quantised = [
        Source(folder / "transformer")
        for folder in candidates(root, repository, ())
        if quantised_transformer_problem(folder, channels) is None
    ]
    tokenizers = {kind: list(candidates(root, source, ())) for kind, source in TOKENIZERS.items()}
    return assemble(name, quantised, files, places, tokenizers)


def _depth_lora(root: Path) -> Path | None:
    places = (folder / DEPTH_LORA_FILE for folder in candidates(root, DEPTH_LORA, ()))
    return next((place for place in places if place.is_file()), None)


def find_folder(
    root: Path, repository: str, other_names: tuple[str, ...], problem_of: Callable[[Path], str | None]
) -> tuple[Path | None, list[str]]:
    """The first folder without a problem and no problems, or None and the problem of each folder that is there."""
    problems = []
    for folder in candidates(root, repository, other_names):
        problem = problem_of(folder)
        if problem is None:
            return folder, []
        problems.append(f"{folder}: {problem}.")
    return None, problems


def candidates(root: Path, repository: str, other_names: tuple[str, ...]) -> Iterator[Path]:
    """The folders under `root` that may hold `repository` and are there, the most deliberate places first."""
    name = repository.rpartition("/")[2]
    yield from (folder for place in (name, repository, *other_names) if (folder := root / place).is_dir())
    cached = "models--" + repository.replace("/", "--")
    for cache in (root / cached, root / "hub" / cached):
        yield from _snapshots(cache)


def _snapshots(cache: Path) -> list[Path]:
    """Downloaded revisions in the hub client's cache: the one that `main` was last, then the newest first."""
    try:
        main = (cache / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        main = ""
    revisions = [folder for folder in (cache / "snapshots").glob("*") if folder.is_dir()]
    return sorted(revisions, key=lambda folder: (folder.name == main, folder.stat().st_mtime), reverse=True)


def _nowhere(root: Path, name: str) -> str:
    return f"not found. Looked for its folder and for single files under {root}. Run: flux-server weights pull {name}"


def _absent(root: Path, repository: str, name_to_pull: str) -> str:
    name = repository.rpartition("/")[2]
    cached = "models--" + repository.replace("/", "--")
    return (
        f"Looked for {name}, {repository}, {cached} and hub/{cached} under {root}. "
        f"Run: flux-server weights pull {name_to_pull}"
    )
