"""Detectors of controlnet-aux: MiDaS, ZoeDepth and LeReS, with the checkpoints of lllyasviel/Annotators.

Importing this imports controlnet_aux, with every detector that it has. Its own `from_pretrained` is not used: it asks
the network for files, reads pickles as the environment says, and accepts checkpoints that leave a model half random.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

from weights.fingerprint import Fingerprint

from ..depth_catalogue import EstimatorSpec
from .disparity import stretch_photo

with warnings.catch_warnings():
    # About missing extras and old import paths of detectors that are not used here.
    warnings.simplefilter("ignore")
    from controlnet_aux import LeresDetector, MidasDetector, ZoeDetector
    from controlnet_aux.leres.leres.multi_depth_model_woauxi import RelDepthModel
    from controlnet_aux.midas.midas.dpt_depth import DPTDepthModel
    from controlnet_aux.zoe.zoedepth.models.zoedepth.zoedepth_v1 import ZoeDepth
    from controlnet_aux.zoe.zoedepth.utils.config import get_config

SHORT_SIDE, LONG_SIDE = 512, 2048
"""Pixels that a detector sees: controlnet_aux's default for the short side, and a bound on the long one."""

State = dict[str, torch.Tensor]


class AnnotatorDisparity:
    """A detector's 8-bit levels, near is bright, taken as they are."""

    def __init__(self, detector: Any, *, short_side: int = SHORT_SIDE, long_side: int = LONG_SIDE) -> None:
        self.detector, self.short_side, self.long_side = detector, short_side, long_side

    @property
    def modules(self) -> tuple[Any, ...]:
        return (self.detector.model,)

    def disparity(self, photo: Image.Image, width: int, height: int) -> torch.Tensor:
        """As DisparityModel; values 0…255 on the CPU."""
        seen = stretch_photo(photo, width, height)
        side = min(self.short_side, self.long_side * min(seen.size) // max(seen.size))
        # The detectors divide by the spread of what they found, which a blank picture may not have.
        with np.errstate(all="ignore"):
            levels = self.detector(np.asarray(seen), detect_resolution=side, image_resolution=side, output_type="np")
        return torch.from_numpy(levels[..., 0].astype(np.float32))[None]


def load_annotator(spec: EstimatorSpec, folder: Path, device: torch.device) -> AnnotatorDisparity:
    """The detector of `spec` from its checkpoint file in `folder`, in float32 on `device`.

    Raises FileNotFoundError that names a missing file and ValueError for one that is not the published one, damaged,
    holds anything but weights, or belongs to another model. Nothing of a checkpoint is executed, nor downloaded.
    """
    (checkpoint,) = spec.checkpoints
    path = folder / checkpoint.file
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: hf download {spec.repository} {checkpoint.file} --local-dir {folder}"
        )
    check_content(path, checkpoint.sha256)
    detector_type, build, unwrap = _DETECTORS[spec.name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _fill(build, _read(path, unwrap), path)
    detector: Any = detector_type(model.to(device))
    return AnnotatorDisparity(detector)


def check_content(path: Path, sha256: str | None) -> None:
    """Raises ValueError unless the pickle at `path` has the content that is vouched for. It is read, never opened.

    sha256: in hex, of the published file. Where None is known, a file beside it, `<name>.sha256` in the form that
    sha256sum writes, says which content its owner trusts.
    """
    beside = path.with_name(path.name + ".sha256")
    wanted = sha256 or _first_word(beside)
    if not wanted:
        raise ValueError(
            f"{path} is a pickle whose published content is not known here; "
            f"if you trust it, vouch for it: (cd {path.parent} && sha256sum {path.name} > {beside.name})"
        )
    if not Fingerprint(sha256=wanted).matches(path):
        whose = "the published file" if sha256 else f"the file that {beside.name} vouches for"
        raise ValueError(f"{path} is not {whose}, whose sha256 is {wanted}; pickles of other content are not opened")


def _first_word(path: Path) -> str:
    words = path.read_text(encoding="utf-8").split() if path.is_file() else []
    return words[0] if words else ""


def _read(path: Path, unwrap: Callable[[Any], State]) -> State:
    try:
        return unwrap(torch.load(path, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or holds more than weights: {error}") from error


def _fill(build: Callable[[], torch.nn.Module], state: State, path: Path) -> torch.nn.Module:
    with _WithoutRandomWeights():
        model = build()
    # Not the model's own method: ZoeDepth overrides it to accept anything. Keys too many are harmless; older timm saved
    # relative_position_index, which newer computes.
    try:
        missing = torch.nn.Module.load_state_dict(model, state, strict=False, assign=True).missing_keys
    except RuntimeError as error:
        raise ValueError(f"{path} is another model's: {error}") from error
    if missing:
        raise ValueError(f"{path} is another model's: {len(missing)} weights are missing, the first is {missing[0]}")
    return model.float().eval().requires_grad_(False)


class _WithoutRandomWeights(TorchFunctionMode):
    """Leaves new parameters as memory holds them: drawing what a checkpoint replaces takes longer than reading it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else (kwargs or {}).get("tensor")
        changes_in_place = func.__name__.endswith("_") and not func.__name__.endswith("__")
        if changes_in_place and isinstance(first, torch.nn.Parameter):
            return first
        return func(*args, **(kwargs or {}))


def _midas() -> Any:
    return DPTDepthModel(path=None, backbone="vitb_rn50_384", non_negative=True)


def _zoe() -> Any:
    return ZoeDepth.build_from_config(get_config("zoedepth", "infer"))


def _leres() -> Any:
    return RelDepthModel(backbone="resnext101")


def _leres_detector(model: torch.nn.Module) -> Any:
    # Its second network only serves the boost mode, which is not used.
    return LeresDetector(model, None)


def _without_module(state: State) -> State:
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


_DETECTORS: dict[str, tuple[Callable[[Any], Any], Callable[[], Any], Callable[[Any], State]]] = {
    "midas": (MidasDetector, _midas, lambda file: file.get("model", file)),
    "zoe": (ZoeDetector, _zoe, lambda file: file["model"]),
    "leres": (_leres_detector, _leres, lambda file: _without_module(file["depth_model"])),
}
"""Of each: the detector around a model, the empty model, and where its weights lie in its checkpoint file."""
