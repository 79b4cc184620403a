"""The safety check: the reference's decisions, the tolerance table, batches, and that nothing passes by accident."""

from __future__ import annotations

import json
import math
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from pipelines.safety import TOLERANCES, Classifier, SafetyChecker, Verdict, concept_scores, load_safety_checker
from weights.demo import safety as demo
from weights.locate import WeightsMissing

Measured = tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]

NEVER, ALWAYS = 1.0, -2.0
"""Thresholds for cosines that no picture and every picture is above."""

SIZES = ((32, 32), (1440, 224), (224, 1440), (256, 192), (640, 480))
"""Widths and heights."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Layers this small gain nothing from more threads, and waiting for each other on a busy machine costs seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo family's two classifiers on disk."""
    root = tmp_path_factory.mktemp("safety")
    for part in (demo.concept_checker(), demo.concept_processor()):
        part.save_pretrained(root / "concepts")
    for part in (demo.nsfw_detector(), demo.nsfw_processor()):
        part.save_pretrained(root / "nsfw")
    return root / "concepts", root / "nsfw"


@pytest.fixture
def concepts() -> Any:
    return demo.concept_checker()


@pytest.fixture
def detector() -> Any:
    return demo.nsfw_detector()


@pytest.fixture
def pictures() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randint(256, (h // 8, w // 8, 3), generator=generator, dtype=torch.uint8) for w, h in SIZES]
    return [part.repeat_interleave(8, 0).repeat_interleave(8, 1) for part in noise]


def checker_of(concepts: Any, detector: Any) -> SafetyChecker:
    return SafetyChecker(Classifier(concepts, CLIPImageProcessorPil()), Classifier(detector, ViTImageProcessorPil()))


def set_thresholds(concepts: Any, concept: Any, special: Any = NEVER) -> None:
    concepts.concept_embeds_weights.copy_(torch.as_tensor(concept).expand(17))
    concepts.special_care_embeds_weights.copy_(torch.as_tensor(special).expand(3))


def set_bias(detector: Any, normal: float, nsfw: float) -> None:
    detector.classifier.bias.copy_(torch.tensor([normal, nsfw]))


class FixedLogits:
    """A detector that says the same of every picture."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(id2label={0: "normal", 1: "nsfw"})

    def __init__(self, normal: float, nsfw: float) -> None:
        self._logits = torch.tensor([[normal, nsfw]])

    def __call__(self, pixels: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self._logits.expand(len(pixels), 2))


# --- concept scores against diffusers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> Measured:
    """A checker, six random pictures' pixels, and the cosines of the first with 17 and with 3 concepts."""
    concepts = demo.concept_checker()
    pixels = torch.randn(6, 3, 224, 224, generator=torch.Generator().manual_seed(5))
    embeds = concepts.visual_projection(concepts.vision_model(pixels[:1]).pooler_output)
    cosines = (torch.cosine_similarity(embeds, row) for row in (concepts.concept_embeds, concepts.special_care_embeds))
    return concepts, pixels, *cosines


def diffusers_flags(concepts: Any, pixels: torch.Tensor) -> list[bool]:
    _, flags = concepts(clip_input=pixels, images=[torch.zeros(1) for _ in pixels])
    return [bool(flag) for flag in flags]


def offsets(size: int) -> st.SearchStrategy[list[float]]:
    """How far thresholds lie above a picture's cosines: the nearest often where rounding to three decimals decides."""
    nearest = st.integers(-24, 24).map(lambda halves: halves * 0.0005) | st.floats(-0.03, 0.03)
    others = st.lists(st.sampled_from([0.0, 0.0005, 0.001]) | st.floats(0, 0.5), min_size=size, max_size=size)
    return st.builds(lambda least, more: [least + value for value in more], nearest, others)


@settings(deadline=None, max_examples=60)
@given(concept=offsets(17), special=offsets(3))
@example(concept=[0.005] * 17, special=[-0.1] * 3)
@example(concept=[0.005] * 17, special=[0.1] * 3)
@example(concept=[-0.0005] * 17, special=[0.1] * 3)
@example(concept=[0.0095] * 17, special=[-0.0005, 0.1, -0.0015])
def test_concepts_flag_exactly_where_diffusers_does(
    measured: Measured, concept: list[float], special: list[float]
) -> None:
    concepts, pixels, cosines, special_cosines = measured
    set_thresholds(concepts, cosines + torch.tensor(concept), special_cosines + torch.tensor(special))
    ours = [score > 0 for score in concept_scores(concepts, pixels).tolist()]
    assert ours == diffusers_flags(concepts, pixels)


def test_special_care_adds_a_hundredth(measured: Measured) -> None:
    concepts, pixels, cosines, special_cosines = measured
    set_thresholds(concepts, cosines + 0.005, special_cosines + 0.1)
    assert concept_scores(concepts, pixels[:1]).item() == pytest.approx(-0.005)
    set_thresholds(concepts, cosines + 0.005, special_cosines - torch.tensor([-0.1, 0.1, -0.1]))
    assert concept_scores(concepts, pixels[:1]).item() == pytest.approx(0.005)


def test_the_score_is_that_of_the_worst_concept(
    measured: Measured,
) -> None:
    concepts, pixels, cosines, _ = measured
    above = torch.full([17], -0.2)
    above[11] = 0.123
    set_thresholds(concepts, cosines - above)
    assert concept_scores(concepts, pixels[:1]).item() == pytest.approx(0.123)


# --- the verdict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concept", [NEVER, ALWAYS])
@pytest.mark.parametrize("nsfw", [-9.0, 9.0])
def test_the_default_wants_both_and_the_strictest_either(
    concepts: Any, detector: Any, pictures: list[torch.Tensor], concept: float, nsfw: float
) -> None:
    set_thresholds(concepts, concept)
    set_bias(detector, -nsfw, nsfw)
    checker = checker_of(concepts, detector)
    objections = (concept == ALWAYS, nsfw > 0)
    assert [verdict.flagged for verdict in checker.check(pictures)] == [all(objections)] * len(pictures)
    assert [verdict.flagged for verdict in checker.check(pictures, 1)] == [any(objections)] * len(pictures)
    assert [verdict.flagged for verdict in checker.check(pictures, 6)] == [all(objections)] * len(pictures)


def test_the_loaded_checker_decides_as_the_reference_does(
    folders: tuple[Path, Path], concepts: Any, detector: Any, pictures: list[torch.Tensor], tmp_path: Path
) -> None:
    """The recipe of cog-flux in its own words, where both classifiers are made to be of two minds."""
    scores = [verdict.concept_score for verdict in checker_of(concepts, detector).check(pictures)]
    set_thresholds(concepts, demo.UNREACHABLE + sorted(scores)[2] + 0.001)
    images = [Image.fromarray(picture.numpy()) for picture in pictures]
    clip_input = CLIPImageProcessorPil()(images, return_tensors="pt").pixel_values
    _, suspicious = concepts(clip_input=clip_input, images=[picture.numpy() for picture in pictures])
    set_bias(detector, 0.0, 0.0)
    logits = detector(**ViTImageProcessorPil()(images, return_tensors="pt")).logits
    set_bias(detector, *(-logits.mean(0)).tolist())
    logits = detector(**ViTImageProcessorPil()(images, return_tensors="pt")).logits
    unsafe = [detector.config.id2label[int(index)] != "normal" for index in logits.argmax(-1)]
    assert {*suspicious} == {*unsafe} == {True, False}

    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders]
    for model, copy in zip((concepts, detector), copies, strict=True):
        model.save_pretrained(copy)
    checker = load_safety_checker(copies[0], copies[1], "cpu")
    assert checker is not None
    verdicts = checker.check(pictures)
    assert [verdict.flagged for verdict in verdicts] == [a and b for a, b in zip(suspicious, unsafe, strict=True)]
    assert [verdict.nsfw_probability for verdict in verdicts] == pytest.approx(logits.softmax(-1)[:, 1].tolist())


@settings(deadline=None, max_examples=60)
@given(*[st.floats(-50, 50, width=32).map(lambda value: value if abs(value) > 1e-6 else 0.0)] * 2)
@example(0.5, 0.5 + 2**-24)
@example(20.0, 20.000002)
def test_the_detector_objects_where_nsfw_is_its_argmax(normal: float, nsfw: float) -> None:
    checker = checker_of(ScoreOfOne(), FixedLogits(normal, nsfw))
    (verdict,) = checker.check(torch.zeros(1, 4, 4, 3, dtype=torch.uint8))
    assert verdict.flagged == bool(torch.tensor([normal, nsfw]).argmax())


class ScoreOfOne:
    """A concept model whose every cosine is 1, over thresholds of 0."""

    device, dtype = torch.device("cpu"), torch.float32
    concept_embeds, concept_embeds_weights = torch.ones(17, 4), torch.zeros(17)
    special_care_embeds, special_care_embeds_weights = torch.ones(3, 4), torch.zeros(3)

    def vision_model(self, pixels: torch.Tensor) -> Any:
        return SimpleNamespace(pooler_output=torch.ones(len(pixels), 4))

    def visual_projection(self, pooled: torch.Tensor) -> torch.Tensor:
        return pooled


def test_a_batch_gives_what_its_pictures_give_alone(concepts: Any, detector: Any, pictures: list[torch.Tensor]) -> None:
    set_thresholds(concepts, 0.0, 0.0)
    checker = checker_of(concepts, detector)
    together = checker.check(pictures, 1)
    alone = [checker.check([picture], 1)[0] for picture in pictures]
    assert [verdict.flagged for verdict in together] == [verdict.flagged for verdict in alone]
    for name, tolerance in (("concept_score", 0.0011), ("nsfw_probability", 1e-6)):  # one step of the rounding
        assert [getattr(v, name) for v in together] == pytest.approx([getattr(v, name) for v in alone], abs=tolerance)
    assert len({verdict.nsfw_probability for verdict in together}) == len(pictures)


def test_one_forward_pass_of_each_classifier(concepts: Any, detector: Any, pictures: list[torch.Tensor]) -> None:
    passes: list[str] = []
    for name, model in (("concepts", concepts.vision_model), ("detector", detector)):
        model.register_forward_hook(lambda *_, name=name: passes.append(name))
    checker_of(concepts, detector).check(pictures)
    assert sorted(passes) == ["concepts", "detector"]


def test_a_stacked_batch_is_the_same_as_its_list_and_stays_as_it_is(concepts: Any, detector: Any) -> None:
    set_thresholds(concepts, ALWAYS)
    set_bias(detector, -9, 9)
    checker = checker_of(concepts, detector)
    batch = torch.randint(256, (3, 64, 96, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    before = batch.clone()
    verdicts = checker.check(batch)
    assert verdicts == checker.check(list(batch))
    assert all(verdict.flagged for verdict in verdicts)
    assert torch.equal(batch, before)


def test_views_and_other_layouts_are_read_as_they_look(concepts: Any, detector: Any) -> None:
    checker = checker_of(concepts, detector)
    channels_first = torch.randint(256, (3, 48, 80), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    view = channels_first.permute(1, 2, 0)
    assert checker.check([view]) == checker.check([view.contiguous()])


@pytest.mark.parametrize("height", [1, 3, 4])
def test_a_picture_as_low_as_its_channels_are_many_is_not_turned(concepts: Any, detector: Any, height: int) -> None:
    row = torch.arange(120, dtype=torch.uint8).reshape(1, 40, 3).repeat(height, 1, 1)
    image = Image.fromarray(row.numpy()).resize((224 * 40 // height, 224), Image.Resampling.BICUBIC)
    taken = CLIPImageProcessorPil()(image, return_tensors="pt").pixel_values
    assert torch.equal(Classifier(concepts, CLIPImageProcessorPil()).pixels([image]), taken)
    assert len(checker_of(concepts, detector).check([row])) == 1


def test_labels_in_the_other_order(concepts: Any, pictures: list[torch.Tensor]) -> None:
    detector = FixedLogits(3.0, -3.0)
    detector.config = SimpleNamespace(id2label={0: "nsfw", 1: "normal"})
    (verdict,) = checker_of(concepts, detector).check(pictures[:1], 1)
    assert verdict.flagged
    assert verdict.nsfw_probability == pytest.approx(1 / (1 + math.exp(-6)))


def test_no_pictures_no_verdicts(concepts: Any, detector: Any) -> None:
    checker = checker_of(concepts, detector)
    assert checker.check([]) == checker.check(torch.zeros(0, 8, 8, 3, dtype=torch.uint8)) == []


# --- tolerances -------------------------------------------------------------------------------------------------------

scores = st.floats(-1, 1) | st.integers(-40, 40).map(lambda value: value / 1000) | st.floats()
probabilities = st.floats(0, 1) | st.sampled_from([0.5, 0.7, 0.85, 0.95, 0.99]) | st.floats()


@given(score=scores, probability=probabilities)
def test_what_one_tolerance_flags_every_stricter_one_flags(score: float, probability: float) -> None:
    flags = [TOLERANCES[tolerance].flags(score, probability) for tolerance in range(1, 7)]
    assert flags == sorted(flags, reverse=True)


@pytest.mark.parametrize(
    ("score", "probability", "highest"),
    [
        (0.0, 0.5, 0),
        (-0.3, 0.51, 1),
        (0.001, 0.01, 1),
        (-0.001, 1.0, 1),
        (0.001, 0.51, 2),
        (0.3, 0.7, 2),
        (0.001, 0.71, 3),
        (0.3, 0.85, 3),
        (0.001, 0.86, 4),
        (0.01, 1.0, 4),
        (0.3, 0.95, 4),
        (0.011, 0.96, 5),
        (0.02, 1.0, 5),
        (0.3, 0.99, 5),
        (0.021, 0.991, 6),
        *((odd, 0.0, 6) for odd in (math.nan, math.inf, -math.inf)),
        *((-1.0, odd, 6) for odd in (math.nan, math.inf, -math.inf)),
    ],
)
def test_the_most_permissive_tolerance_that_flags(score: float, probability: float, highest: int) -> None:
    assert [t for t in TOLERANCES if TOLERANCES[t].flags(score, probability)] == list(range(1, highest + 1))


def test_the_tolerance_asked_for_is_the_one_that_decides(concepts: Any, pictures: list[torch.Tensor]) -> None:
    set_thresholds(concepts, ALWAYS)
    logit = math.log(0.9 / 0.1)
    checker = checker_of(concepts, FixedLogits(0.0, logit))
    flags = {tolerance: checker.check(pictures[:1], tolerance)[0].flagged for tolerance in TOLERANCES}
    assert flags == {1: True, 2: True, 3: True, 4: True, 5: False, 6: False}
    assert checker.check(pictures[:1]) == checker.check(pictures[:1], 2)


@pytest.mark.parametrize("tolerance", [0, 7, -1])
def test_a_tolerance_outside_the_table_is_refused(concepts: Any, detector: Any, tolerance: int) -> None:
    with pytest.raises(KeyError):
        checker_of(concepts, detector).check([], tolerance)


# --- nothing passes by accident ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["visual_projection.weight", "special_care_embeds", "concept_embeds_weights"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_concept_scores_that_are_not_finite_flag(
    concepts: Any, detector: Any, pictures: list[torch.Tensor], part: str, value: float
) -> None:
    concepts.get_parameter(part).view(-1)[0] = value
    for tolerance in TOLERANCES:
        verdicts = checker_of(concepts, detector).check(pictures[:2], tolerance)
        assert [verdict.flagged for verdict in verdicts] == [True, True]
        assert all(math.isnan(verdict.concept_score) for verdict in verdicts)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_logits_that_are_not_finite_flag(concepts: Any, pictures: list[torch.Tensor], odd: float, place: int) -> None:
    checker = checker_of(concepts, FixedLogits(*((odd, 0.0) if place == 0 else (0.0, odd))))
    for tolerance in TOLERANCES:
        (verdict,) = checker.check(pictures[:1], tolerance)
        assert verdict.flagged
        assert math.isnan(verdict.nsfw_probability)


@pytest.mark.parametrize("failing", ["concepts", "detector"])
def test_an_error_in_either_classifier_is_raised(
    concepts: Any, detector: Any, pictures: list[torch.Tensor], failing: str
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    (concepts.vision_model if failing == "concepts" else detector).register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        checker_of(concepts, detector).check(pictures)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(8, 8, 3),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(8, 8, 1, dtype=torch.uint8),
        torch.zeros(8, 8, 4, dtype=torch.uint8),
        torch.zeros(8, 8, dtype=torch.uint8),
        torch.zeros(1, 8, 8, 3, dtype=torch.uint8),
    ],
    ids=lambda image: f"{image.dtype} {list(image.shape)}",
)
def test_other_tensors_are_refused(concepts: Any, detector: Any, image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
        checker_of(concepts, detector).check([image])


def test_a_detector_of_something_else_is_refused(concepts: Any, detector: Any) -> None:
    detector.config.id2label = {0: "cat", 1: "nsfw"}
    with pytest.raises(ValueError, match=r"\['cat', 'nsfw'\]"):
        checker_of(concepts, detector)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_the_demo_checker_passes_everything(folders: tuple[Path, Path], pictures: list[torch.Tensor]) -> None:
    checker = load_safety_checker(*folders, torch.device("cpu"))
    assert checker is not None
    for tolerance in TOLERANCES:
        assert not any(verdict.flagged for verdict in checker.check(pictures, tolerance))


def test_one_folder_alone_gives_no_checker(folders: tuple[Path, Path]) -> None:
    assert load_safety_checker(None, None, "cpu") is None
    assert load_safety_checker(folders[0], None, "cpu") is None
    assert load_safety_checker(None, folders[1], "cpu") is None


def test_loading_asks_no_network(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert load_safety_checker(*folders, "cpu") is not None


@pytest.mark.parametrize("broken", [0, 1])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json", "."])
def test_a_file_that_is_missing_is_an_error(folders: tuple[Path, Path], tmp_path: Path, broken: int, name: str) -> None:
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders]
    missing = copies[broken] / name
    shutil.rmtree(missing) if missing.is_dir() else missing.unlink()
    with pytest.raises(WeightsMissing, match="is missing"):
        load_safety_checker(copies[0], copies[1], "cpu")


def test_pickles_are_not_read(folders: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders[0], tmp_path / "concepts")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsMissing, match="is a pickle"):
        load_safety_checker(folder, folders[1], "cpu")


@pytest.mark.parametrize(
    ("broken", "tensor"), [(0, "special_care_embeds_weights"), (0, "visual_projection.weight"), (1, "classifier.bias")]
)
def test_weights_that_are_not_all_there_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, broken: int, tensor: str
) -> None:
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders]
    file = copies[broken] / "model.safetensors"
    tensors = load_file(file)
    del tensors[tensor]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(WeightsMissing, match=f"1 tensors are missing, {tensor} among them"):
        load_safety_checker(copies[0], copies[1], "cpu")


def test_the_published_repositorys_older_names_are_understood(
    folders: tuple[Path, Path], pictures: list[torch.Tensor], tmp_path: Path
) -> None:
    """CompVis' folder nests the vision model twice, stores its position numbers, and has an extractor's settings."""
    folder = shutil.copytree(folders[0], tmp_path / "concepts")
    tensors = {
        name.replace("vision_model.", "vision_model.vision_model.", 1): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    tensors["vision_model.vision_model.embeddings.position_ids"] = torch.arange(197)[None]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    kept = {name: settings[name] for name in ("do_center_crop", "do_normalize", "do_resize", "image_mean", "image_std")}
    older = kept | {"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 224, "resample": 3, "size": 224}
    (folder / "preprocessor_config.json").write_text(json.dumps(older))
    assert _verdicts(folder, folders[1], pictures) == _verdicts(*folders, pictures)


def _verdicts(concepts: Path, nsfw: Path, pictures: list[torch.Tensor]) -> list[Verdict]:
    checker = load_safety_checker(concepts, nsfw, "cpu")
    assert checker is not None
    return checker.check(pictures)
