"""The depth estimators that can be chosen, by name: where they come from and what their output means.

Importing this imports no torch, so that the server process can check a name and look for the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["depth-anything", "dpt", "zoedepth", "annotator"]
"""How an estimator is loaded and fed. annotator: a detector of controlnet-aux; the others come with transformers."""

Polarity = Literal["near-large", "far-large"]
"""near-large: disparity of some scale, 8-bit levels included. far-large: metres."""

MapMode = Literal["bfl-raw", "minmax"]
"""bfl-raw: value / 127.5 − 1, made for Depth Anything v1 Large, whose output lives in 0…255 (black-forest-labs/flux,
`DepthImageEncoder`). minmax: stretched to the full range, for every other estimator (diffusers' documented recipe)."""

DEFAULT_ESTIMATOR = "depth-anything-v1-large"
"""The one that FLUX.1-Depth-dev was published with."""


class UnknownEstimator(ValueError):
    """No depth estimator has that name. The text lists the names there are."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One file of a repository. sha256 is in hex, None where no public source vouches for it."""

    file: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorSpec:
    """One estimator.

    repository: on the Hugging Face hub. default_mode: how its output becomes a map unless an operator says otherwise.
    licence: of the weights. checkpoints: the files that are read; empty for transformers' own layout.
    """

    name: str
    repository: str
    family: Family
    polarity: Polarity = "near-large"
    default_mode: MapMode = "minmax"
    licence: str
    checkpoints: tuple[Checkpoint, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the checkpoint files; empty for transformers' own layout."""
        return tuple(checkpoint.file for checkpoint in self.checkpoints)


def find_estimator(name: str) -> EstimatorSpec:
    """The estimator called `name`. Raises UnknownEstimator."""
    try:
        return ESTIMATORS[name]
    except KeyError:
        raise UnknownEstimator(f"no depth estimator is called {name}; choose one of {', '.join(ESTIMATORS)}") from None


def resolve_mode(name: str, choice: str) -> MapMode:
    """The map mode that an operator's `choice` means for the estimator called `name`; "auto" is the estimator's own.

    Raises UnknownEstimator, and ValueError for a choice that is none.
    """
    modes: dict[str, MapMode] = {"auto": find_estimator(name).default_mode, "bfl-raw": "bfl-raw", "minmax": "minmax"}
    if choice not in modes:
        raise ValueError(f"no depth map mode is called {choice}; choose one of {', '.join(modes)}")
    return modes[choice]


def mode_warning(name: str, choice: str) -> str | None:
    """A sentence for an operator whose choice is allowed and hardly meant, else None. Raises as resolve_mode does."""
    if resolve_mode(name, choice) == "minmax" or name == DEFAULT_ESTIMATOR:
        return None
    return (
        f"depth map mode bfl-raw is made for {DEFAULT_ESTIMATOR}, whose output lives in 0 to 255; maps of {name} may "
        "come out almost black. Choose auto or minmax."
    )


APACHE, NON_COMMERCIAL, MIT = "Apache-2.0", "CC-BY-NC-4.0", "MIT"
ANNOTATORS = "lllyasviel/Annotators"


def _depth_anything_v1(size: str) -> EstimatorSpec:
    name = f"depth-anything-v1-{size}"
    return EstimatorSpec(
        name=name,
        repository=f"LiheYoung/depth-anything-{size}-hf",
        family="depth-anything",
        default_mode="bfl-raw" if name == DEFAULT_ESTIMATOR else "minmax",
        licence=APACHE,
    )


def _depth_anything_v2(size: str, scene: str | None = None) -> EstimatorSpec:
    kind = f"metric-{scene}-" if scene else ""
    return EstimatorSpec(
        name=f"depth-anything-v2-{kind}{size}",
        repository=f"depth-anything/Depth-Anything-V2-{kind.title()}{size.title()}-hf",
        family="depth-anything",
        polarity="far-large" if scene else "near-large",
        licence=APACHE if size == "small" else NON_COMMERCIAL,
    )


def _dpt(name: str) -> EstimatorSpec:
    return EstimatorSpec(name=name, repository=f"Intel/{name}", family="dpt", licence=APACHE)


def _zoedepth(name: str) -> EstimatorSpec:
    return EstimatorSpec(name=name, repository=f"Intel/{name}", family="zoedepth", polarity="far-large", licence=MIT)


def _annotator(name: str, file: str, sha256: str | None, licence: str) -> EstimatorSpec:
    return EstimatorSpec(
        name=name,
        repository=ANNOTATORS,
        family="annotator",
        licence=licence,
        checkpoints=(Checkpoint(file, sha256),),
    )


SIZES = ("small", "base", "large")

ESTIMATORS: dict[str, EstimatorSpec] = {
    spec.name: spec
    for spec in (
        *(_depth_anything_v1(size) for size in SIZES),
        *(_depth_anything_v2(size) for size in SIZES),
        *(_depth_anything_v2(size, scene) for scene in ("indoor", "outdoor") for size in SIZES),
        *(_dpt(name) for name in ("dpt-large", "dpt-hybrid-midas")),
        *(_zoedepth(name) for name in ("zoedepth-nyu", "zoedepth-kitti", "zoedepth-nyu-kitti")),
        _annotator(
            "midas",
            "dpt_hybrid-midas-501f0c75.pt",
            "501f0c75b3bca7daec6b3682c5054c09b366765aef6fa3a09d03a5cb4b230853",
            MIT,
        ),
        _annotator("zoe", "ZoeD_M12_N.pt", None, MIT),
        _annotator(
            "leres",
            "res101.pth",
            "1d696b2ef3e8336b057d0c15bc82d2fecef821bfebe5ef9d7671a5ec5dde520b",
            "non-commercial, Adobe Research (aim-uofa/AdelaiDepth)",
        ),
    )
}
"""By name, in the order in which they are offered."""
