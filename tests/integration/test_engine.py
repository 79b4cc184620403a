"""The engine around the arithmetic: several images, cancel, errors, caches, what is refused."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from pipelines import spool as spool_module
from pipelines.components import Components, Folders, load_components
from pipelines.engine import Engine
from pipelines.faults import BadRequest, Cancelled, Flagged, NotFinite
from pipelines.memory.plans import RECIPES
from pipelines.order import Asked
from pipelines.request import GenerationRequest
from pipelines.safety import Verdict
from pipelines.source import SourceImage
from pipelines.spool import Spool
from pipelines.watch import StepReport

DEV = GenerationRequest(model="flux-dev", prompt="a red fox", width=64, height=64, steps=4, guidance=3.5, seed=3)
DEPTH = replace(DEV, model="flux-depth-dev", guidance=10.0)


@pytest.fixture(scope="module")
def components(demo_weights: Path) -> Components:
    folders = Folders(
        models={"flux-dev": demo_weights / "FLUX.1-dev", "flux-depth-dev": demo_weights / "FLUX.1-Depth-dev"},
        depth_estimator=demo_weights / "depth-anything-large-hf",
    )
    return load_components(folders, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def engine(components: Components) -> Engine:
    for cache in (components.text.cache, components.control.cache, components.init.cache):
        cache.clear()
    return Engine(components)


@pytest.fixture(scope="module")
def photo() -> SourceImage:
    from skimage import data

    return SourceImage(Image.fromarray(data.coffee()), key="coffee")


def pixels(engine: Engine, request: GenerationRequest, **sources: Any) -> list[torch.Tensor]:
    return [drawn.pixels for drawn in engine.generate(request, **sources).images]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("request_", [DEV, DEPTH])
def test_n_images_equal_n_singles(engine: Engine, photo: SourceImage, request_: GenerationRequest) -> None:
    control = photo if request_.model == "flux-depth-dev" else None
    together = pixels(engine, replace(request_, num_outputs=4, seed=2**32 - 2), control_image=control)
    seeds = [2**32 - 2, 2**32 - 1, 0, 1]
    singles = [pixels(engine, replace(request_, seed=seed), control_image=control)[0] for seed in seeds]
    assert same(together, singles)
    assert not torch.equal(together[0], together[1])


def test_progress_counts_every_step_of_every_image(engine: Engine) -> None:
    reports: list[StepReport] = []
    engine.generate(replace(DEV, num_outputs=2), on_step=reports.append)
    assert [(report.step, report.steps) for report in reports] == [(step, 8) for step in range(1, 9)]
    assert all(report.step_s > 0 for report in reports)


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_a_cancel_takes_effect_before_the_next_step(engine: Engine, after: int) -> None:
    reports: list[StepReport] = []
    with pytest.raises(Cancelled):
        engine.generate(replace(DEV, num_outputs=2), on_step=reports.append, cancelled=lambda: len(reports) >= after)
    assert len(reports) == after


def interrupted(engine: Engine, how: Callable[[StepReport], None], photo: SourceImage) -> None:
    """A request of another size that ends in the middle."""
    with pytest.raises(ZeroDivisionError):
        engine.generate(replace(DEPTH, width=96, height=64), control_image=photo, on_step=how)


def cancel(engine: Engine) -> None:
    seen: list[StepReport] = []
    with pytest.raises(Cancelled):
        engine.generate(replace(DEV, width=128), on_step=seen.append, cancelled=lambda: len(seen) == 2)


def test_ten_cancels_and_ten_errors_leave_no_trace(engine: Engine, photo: SourceImage) -> None:
    def fail(report: StepReport) -> None:
        if report.step == 2:
            raise ZeroDivisionError

    before = pixels(engine, DEV) + pixels(engine, DEPTH, control_image=photo)
    process = psutil.Process()
    cancel(engine)
    interrupted(engine, fail, photo)
    gc.collect()
    memory = process.memory_info().rss
    for _ in range(10):
        cancel(engine)
        interrupted(engine, fail, photo)
    gc.collect()
    grown = (process.memory_info().rss - memory) / 2**20
    print(f"memory grew by {grown:.1f} MiB over ten cancels and ten errors")
    assert grown < 16
    assert same(before, pixels(engine, DEV) + pixels(engine, DEPTH, control_image=photo))


def test_a_nan_is_an_error_and_not_a_black_picture(engine: Engine, components: Components, monkeypatch: Any) -> None:
    transformer = components.transformers["flux-dev"]
    forward = transformer.forward

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)[0].clone()
        output[0, 0, 0] = torch.nan
        return (output,)

    with monkeypatch.context() as patch:
        patch.setattr(transformer, "forward", spoiled)
        with pytest.raises(NotFinite, match="not finite"):
            engine.generate(DEV)
    assert pixels(engine, DEV)[0].float().std() > 0


class CountingEncode:
    """Counts the VAE's encodes."""

    def __init__(self, vae: Any) -> None:
        self._encode, self.count = vae.encode, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return self._encode(*args, **kwargs)


@pytest.fixture
def encodes(components: Components, monkeypatch: pytest.MonkeyPatch) -> CountingEncode:
    counting = CountingEncode(components.vae)
    monkeypatch.setattr(components.vae, "encode", counting)
    return counting


def test_a_control_image_is_encoded_once_for_four_outputs_and_not_at_all_again(
    engine: Engine, components: Components, photo: SourceImage, encodes: CountingEncode
) -> None:
    hits = components.control.cache.hits
    first = pixels(engine, replace(DEPTH, num_outputs=4), control_image=photo)
    assert encodes.count == 1
    again = pixels(engine, replace(DEPTH, num_outputs=4), control_image=photo)
    assert encodes.count == 1
    assert components.control.cache.hits == hits + 1
    assert same(first, again)


def test_another_size_picture_or_way_is_encoded_anew(
    engine: Engine, photo: SourceImage, encodes: CountingEncode
) -> None:
    engine.generate(DEPTH, control_image=photo)
    engine.generate(replace(DEPTH, width=96), control_image=photo)
    engine.generate(replace(DEPTH, preprocess=False), control_image=photo)
    engine.generate(DEPTH, control_image=SourceImage(photo.picture.rotate(180), key="turned"))
    assert encodes.count == 4


def test_a_prompt_is_encoded_once(engine: Engine, components: Components) -> None:
    misses, hits = components.text.cache.misses, components.text.cache.hits
    engine.generate(DEV)
    engine.generate(replace(DEV, seed=8))
    assert (components.text.cache.misses, components.text.cache.hits) == (misses + 1, hits + 1)


def test_pictures_are_encoded_before_their_safety_is_known(
    components: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those that turn out to be flagged are not written."""

    class Flags:
        def check(self, pictures: list[torch.Tensor], _tolerance: int) -> list[Verdict]:
            assert len(pictures) == 2
            return [Verdict(True, 0.9, 0.0), Verdict(False, 0.0, 0.0)]

    begun: list[int] = []
    submit = spool_module._encoders.submit
    monkeypatch.setattr(spool_module._encoders, "submit", lambda *task: [begun.append(1), submit(*task)][1])
    (tmp_path / "outputs").mkdir()
    spool, request = Spool(folder=tmp_path), replace(DEV, num_outputs=2, output_format="png")
    flagging = Engine(replace(components, safety=Flags()))  # type: ignore[arg-type]
    result = spool.write(generated := spool.compute(flagging, Asked(request=request)), request, name="a")
    assert len(begun) == 2
    assert [file.name for file in (tmp_path / "outputs").iterdir()] == ["a.1.png"]
    with Image.open(tmp_path / "outputs" / "a.1.png") as written:
        assert torch.equal(torch.from_numpy(np.array(written)), generated.images[0].pixels)
        assert "Seed: 4" in written.info["parameters"]
    assert (result.images[0].index, result.images[0].seed, generated.flagged) == (1, 4, (0,))


def test_a_known_picture_is_not_even_read_again(engine: Engine, tmp_path: Path) -> None:
    from skimage import data

    spool = Spool(folder=tmp_path)
    file = tmp_path / "inputs" / "photo.png"
    file.parent.mkdir()
    Image.fromarray(data.coffee()).save(file)
    request = replace(DEPTH, control_image=file.name)
    first = spool.compute(engine, Asked(request=request))
    file.write_bytes(b"no picture")
    assert same(
        [d.pixels for d in first.images], [d.pixels for d in spool.compute(engine, Asked(request=request)).images]
    )
    with pytest.raises(BadRequest, match="control_image is not a PNG"):
        spool.compute(engine, Asked(request=replace(request, width=DEPTH.width // 2)))


INIT = replace(DEV, init_image="coffee", strength=0.5, steps=2)


def preparing(components: Components) -> Engine:
    """An engine with empty caches that prepares beside pictures of up to a hundred pixels a side."""
    for cache in (components.text.cache, components.control.cache, components.init.cache):
        cache.clear()
    return Engine(components, ahead_pixels=100 * 100)


@pytest.mark.parametrize(
    ("request_", "source", "used"),
    [(DEV, None, {"text"}), (DEPTH, "control_image", {"text", "control"}), (INIT, "init_image", {"text", "init"})],
)
def test_a_request_that_was_prepared_while_another_was_drawn_gives_the_same_picture(
    components: Components, photo: SourceImage, request_: GenerationRequest, source: str | None, used: set[str]
) -> None:
    sources = {source: photo} if source else {}
    wanted = pixels(preparing(components), request_, **sources)
    engine, told = preparing(components), list[bool]()

    def prepare_at_first_step(report: StepReport) -> None:
        if report.step == 1:
            with ThreadPoolExecutor(1) as thread:
                told.append(thread.submit(engine.prepare, request_, **sources).result(60))

    engine.generate(replace(DEV, prompt="another"), on_step=prepare_at_first_step)
    before = engine.cache_counts()
    assert same(pixels(engine, request_, **sources), wanted)
    after = engine.cache_counts()
    assert told == [True]
    assert {name for name in after if after[name][0] > before[name][0]} == used
    assert [misses for _, misses in after.values()] == [misses for _, misses in before.values()]


def test_of_pictures_larger_than_the_reference_only_the_prompt_is_prepared(
    components: Components, photo: SourceImage
) -> None:
    engine = preparing(components)
    assert engine.prepare(replace(DEPTH, width=1440, height=1440), control_image=photo)
    assert components.text.cache.used_bytes > 0
    assert components.control.cache.used_bytes == 0


def test_nothing_is_prepared_where_a_smaller_plan_moves_the_encoders_or_the_prompt_is_rewritten(
    components: Components,
) -> None:
    assert not Engine(components).prepares, "a default engine draws alone"
    assert preparing(components).prepares
    moved = replace(components, recipe=next(recipe for recipe in RECIPES if recipe.name == "lean"))
    rewrites = replace(components, upsampler=object())
    assert not preparing(moved).prepares
    assert not preparing(moved).prepare(DEV)
    assert not preparing(rewrites).prepare(replace(DEV, upsample_prompt=True))
    assert components.text.cache.used_bytes == 0
    assert preparing(rewrites).prepare(DEV)


def test_what_cannot_be_drawn_is_not_prepared(components: Components) -> None:
    with pytest.raises(BadRequest, match="needs a control image"):
        preparing(components).prepare(DEPTH)


def test_the_cache_stays_within_its_bytes(components: Components) -> None:
    from pipelines.cache import TensorCache

    cache = TensorCache[torch.Tensor](1000, lambda tensor: (tensor,))
    for key in range(10):
        cache.get_or_compute(key, lambda: torch.zeros(100))
    assert cache.used_bytes == 800
    assert cache.get_or_compute("large", lambda: torch.zeros(1000)).numel() == 1000
    assert cache.used_bytes == 800


def test_unseen_tokens_are_counted(engine: Engine) -> None:
    assert engine.generate(DEV).unseen_tokens == 0
    assert engine.generate(replace(DEV, prompt="fox " * 600)).unseen_tokens > 0


def test_return_depth_gives_a_map_of_the_outputs_size(engine: Engine, photo: SourceImage) -> None:
    generated = engine.generate(replace(DEPTH, width=128, height=96, return_depth=True), control_image=photo)
    assert generated.depth_map is not None
    assert generated.depth_map.shape == (96, 128, 3)
    assert generated.depth_map.float().std() > 20
    assert engine.generate(DEPTH, control_image=photo).depth_map is None


@pytest.mark.parametrize(
    ("request_", "sources", "words"),
    [
        (replace(DEV, model="flux-nonsense"), {}, "flux-nonsense"),
        (DEPTH, {}, "needs a control image"),
        (DEPTH, {"control_image": "photo", "init_image": "photo"}, "takes no init image"),
    ],
)
def test_what_cannot_be_computed_is_a_bad_request(
    engine: Engine, photo: SourceImage, request_: GenerationRequest, sources: dict[str, str], words: str
) -> None:
    with pytest.raises(BadRequest, match=words):
        engine.generate(request_, **dict.fromkeys(sources, photo))


class FlagsSome:
    """A safety checker that flags the pictures at these indexes."""

    def __init__(self, *indexes: int) -> None:
        self._indexes = indexes
        self.asked: list[tuple[int, int]] = []

    def check(self, images: list[torch.Tensor], tolerance: int) -> list[Verdict]:
        self.asked.append((len(images), tolerance))
        return [Verdict(index in self._indexes, 0.0, 0.0) for index in range(len(images))]


def test_flagged_pictures_are_dropped_and_the_others_keep_their_index(components: Components) -> None:
    checker = FlagsSome(0, 2)
    engine = Engine(replace(components, safety=checker))
    unchecked = Engine(components).generate(replace(DEV, num_outputs=4))
    generated = engine.generate(replace(DEV, num_outputs=4, safety_tolerance=5))
    assert unchecked.safety == "unavailable"
    assert (generated.safety, generated.flagged) == ("checked", (0, 2))
    assert [drawn.index for drawn in generated.images] == [1, 3]
    assert torch.equal(generated.images[0].pixels, unchecked.images[1].pixels)
    assert checker.asked == [(4, 5)]


def test_when_all_are_flagged_there_is_no_result(components: Components) -> None:
    engine = Engine(replace(components, safety=FlagsSome(0, 1)))
    with pytest.raises(Flagged, match="safety"):
        engine.generate(replace(DEV, num_outputs=2))
    assert len(engine.generate(replace(DEV, num_outputs=2, check_safety=False)).images) == 2
