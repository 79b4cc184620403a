"""The check of finished pictures: two classifiers and how strictly their scores are read.

As replicate/cog-flux `predict.py`, which asks both and drops a picture that both object to:

- CompVis/stable-diffusion-safety-checker: CLIP's cosines of the picture with 17 concepts, less a threshold each. One of
  3 special care concepts above its own threshold adds 0.01 to all 17. The middle square of the picture is seen.
- Falconsai/nsfw_image_detection: a ViT's probability of "nsfw" rather than "normal". The whole picture is seen.

Prompt and control image are not looked at. flux-depth-pro's `safety_tolerance` says when a picture is flagged:

1  either classifier objects at all
2  both object: any concept above its threshold, and "nsfw" more likely than "normal". The reference, and the default
3  as 2, and "nsfw" is above 0.70
4  as 2, and "nsfw" is above 0.85, the limit of black-forest-labs/flux `cli.py`
5  some concept is more than 0.01 above its threshold, and "nsfw" above 0.95
6  some concept is more than 0.02 above its threshold, and "nsfw" above 0.99

A picture that is flagged at one tolerance is flagged at every lower one. A score that is not finite flags at all of
them, and an error is raised as it is: neither ever passes a picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModelForImageClassification

from weights.completeness import classifier_problem
from weights.locate import WeightsMissing

from .request import DEFAULT_SAFETY_TOLERANCE

SPECIAL_CARE = 0.01
LABELS = {"normal", "nsfw"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Strictness:
    """Flags where the concept score and the probability of "nsfw" are above these limits: both, or either of them."""

    concept_score: float = 0.0
    nsfw_probability: float = 0.5
    either: bool = False

    def flags(self, concept_score: float, nsfw_probability: float) -> bool:
        """Whether a picture with these scores is flagged. Always, where one of them is not finite."""
        if not (math.isfinite(concept_score) and math.isfinite(nsfw_probability)):
            return True
        objections = (concept_score > self.concept_score, nsfw_probability > self.nsfw_probability)
        return any(objections) if self.either else all(objections)


TOLERANCES = {
    1: Strictness(either=True),
    2: Strictness(),
    3: Strictness(nsfw_probability=0.70),
    4: Strictness(nsfw_probability=0.85),
    5: Strictness(concept_score=0.01, nsfw_probability=0.95),
    6: Strictness(concept_score=0.02, nsfw_probability=0.99),
}
"""What each `safety_tolerance` means, from strict to permissive."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the check says of one picture.

    concept_score: the highest of the 17 cosines less their thresholds, special care added, to three decimals.
    nsfw_probability: 0…1. Either score is NaN where its classifier gave something that is not finite.
    """

    flagged: bool
    concept_score: float
    nsfw_probability: float


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model in transformers' layout and the image processor that belongs to it."""

    model: Any
    processor: Any

    def pixels(self, pictures: list[Image.Image]) -> torch.Tensor:
        """RGB pictures of any sizes → [B, 3, S, S] as the model reads them, on its device."""
        pixels: torch.Tensor = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        return pixels.to(device=self.model.device, dtype=self.model.dtype)


class SafetyChecker:
    """Asks both classifiers about pictures, one forward pass of each for all of them.

    concepts: a StableDiffusionSafetyChecker. detector: an image classifier with the labels "normal" and "nsfw".
    Raises ValueError where the detector has others.
    """

    def __init__(self, concepts: Classifier, detector: Classifier) -> None:
        labels = {label: index for index, label in detector.model.config.id2label.items()}
        if set(labels) != LABELS:
            raise ValueError(f"the NSFW detector's labels are {sorted(labels)}, not {sorted(LABELS)}")
        self._concepts, self._detector = concepts, detector
        self._nsfw = labels["nsfw"]

    @property
    def modules(self) -> tuple[Any, ...]:
        """Both classifiers."""
        return self._concepts.model, self._detector.model

    @torch.inference_mode()
    def check(
        self, images: Sequence[torch.Tensor] | torch.Tensor, tolerance: int = DEFAULT_SAFETY_TOLERANCE
    ) -> list[Verdict]:
        """One verdict for each picture, in order. The pictures are left as they are.

        images: uint8 [H, W, 3] each, on any device and of any sizes, or one uint8 [B, H, W, 3].
        tolerance: one of TOLERANCES. Raises KeyError for another, ValueError for other images, and whatever
        transformers and torch raise.
        """
        strictness = TOLERANCES[tolerance]
        pictures = [_picture(image) for image in images]
        if not pictures:
            return []
        scores = concept_scores(self._concepts.model, self._concepts.pixels(pictures))
        logits = self._detector.model(self._detector.pixels(pictures)).logits
        probabilities = _probabilities(logits)[:, self._nsfw]
        return [
            Verdict(strictness.flags(score, probability), score, probability)
            for score, probability in zip(scores.tolist(), probabilities.tolist(), strict=True)
        ]


def concept_scores(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Preprocessed pixels [B, 3, S, S] → float32 [B] on the CPU, above 0 where diffusers' checker would flag.

    diffusers `StableDiffusionSafetyChecker.forward`, its rounding to three decimals included, without its blackening of
    pictures. NaN for a picture with any score that is not finite, which diffusers would pass.
    """
    embeds = model.visual_projection(model.vision_model(pixels).pooler_output)
    special = _above(embeds, model.special_care_embeds, model.special_care_embeds_weights).round(decimals=3)
    care = (special > 0).any(dim=1, keepdim=True).float() * SPECIAL_CARE
    scores = (_above(embeds, model.concept_embeds, model.concept_embeds_weights) + care).round(decimals=3)
    finite = torch.cat([special, scores], dim=1).isfinite().all(dim=1)
    return scores.amax(dim=1).where(finite, math.nan)


def _above(embeds: torch.Tensor, concepts: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    cosines = torch.mm(normalize(embeds), normalize(concepts).t())
    return cosines.float().cpu() - thresholds.float().cpu()


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Softmax in float64: float32 would round a probability just above one half down to it, against the argmax."""
    exact = logits.cpu().double()
    return exact.softmax(dim=1).where(exact.isfinite().all(dim=1, keepdim=True), math.nan)


def _picture(image: torch.Tensor) -> Image.Image:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"pictures to check are uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    return Image.fromarray(image.cpu().numpy())


def load_safety_checker(
    concepts_dir: Path | None, nsfw_dir: Path | None, device: torch.device | str
) -> SafetyChecker | None:
    """The checker from two folders in transformers' layout, or None unless both are given: a verdict needs both scores.

    It computes in float32 on `device`, where the reference has the concepts in float16 and the detector on the CPU: a
    picture costs some 0.2 TFLOP, little beside its drawing, and no score depends on a device by more than rounding.
    Only safetensors are read, and nothing is looked up on a network. Raises WeightsMissing where a folder lacks a file
    or a tensor, ValueError where the detector has other labels, and what transformers raises of damaged files.
    """
    if concepts_dir is None or nsfw_dir is None:
        return None
    return SafetyChecker(
        _load(StableDiffusionSafetyChecker, concepts_dir, device),
        _load(AutoModelForImageClassification, nsfw_dir, device),
    )


def _load(kind: Any, folder: Path, device: torch.device | str) -> Classifier:
    if problem := classifier_problem(folder):
        raise WeightsMissing(f"{folder}: {problem}.")
    model, report = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    # transformers only logs this, and a checker with random numbers in it would pass everything or nothing.
    if missing := report["missing_keys"]:
        raise WeightsMissing(f"{folder}: {len(missing)} tensors are missing, {min(missing)} among them.")
    # The PIL backend is pinned because the torchvision one resizes differently, which would change the scores.
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    return Classifier(model.to(device).eval().requires_grad_(False), processor)
