"""Several small requests in one batch: near what each draws alone, and none hurts another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines import warmup
from pipelines.attempt import Fault, attempt_together
from pipelines.components import Components, Folders, load_components
from pipelines.engine import Engine
from pipelines.fault_switches import FaultyEngine
from pipelines.faults import BadRequest, Cancelled, Flagged, NotFinite
from pipelines.order import Asked, Generated
from pipelines.request import GenerationRequest, Lora
from pipelines.safety import Verdict
from pipelines.source import SourceImage
from pipelines.speed.blocks import compile_blocks, graphs_compiled
from pipelines.spool import Spool
from pipelines.watch import StepReport

FAR = {"exact": (2, 0.01), "fast": (16, 0.5)}
"""Largest and mean distance, of 255, between a picture in company and alone: float32 adds in another order, and in
`fast` a difference in the last bit can turn over the rounding to fp8."""

DEV = GenerationRequest(model="flux-dev", prompt="a red fox", width=96, height=64, steps=4, guidance=3.5, seed=3)
DEPTH = replace(DEV, model="flux-depth-dev", guidance=10.0)
PHOTO = SourceImage(Image.linear_gradient("L").resize((128, 96)).convert("RGB"), "gradient")
TURNED = SourceImage(PHOTO.picture.rotate(180), "turned")


@pytest.fixture(scope="module")
def components(demo_weights: Path) -> Components:
    return load(demo_weights)


def load(demo: Path, **more: Any) -> Components:
    folders = Folders(
        models={"flux-dev": demo / "FLUX.1-dev", "flux-depth-dev": demo / "FLUX.1-Depth-dev"},
        depth_estimator=demo / "depth-anything-large-hf",
        **more,
    )
    return load_components(folders, device=torch.device("cpu"), dtype=torch.float32, fast=True)


@pytest.fixture
def engine(components: Components) -> Engine:
    return Engine(components)


def mixed(base: GenerationRequest) -> list[Asked]:
    """Four of one company that differ in all that may differ."""
    takes_control = base.model == "flux-depth-dev"
    requests = [
        base,
        replace(base, seed=9, guidance=1.0, prompt="a lighthouse in a storm"),
        replace(base, seed=4, prompt="", preprocess=False, output_format="jpg"),
        replace(base, seed=2**32 - 1, guidance=7.0, return_depth=takes_control),
    ]
    pictures = (PHOTO, TURNED, PHOTO, TURNED) if takes_control else (None,) * 4
    return [Asked(request=each, control_image=picture) for each, picture in zip(requests, pictures, strict=True)]


def alone(engine: Engine, asked: Asked) -> torch.Tensor:
    made = engine.generate(asked.request, control_image=asked.control_image, init_image=asked.init_image)
    return made.images[0].pixels


def check_near(outcomes: list[Generated | Exception], engine: Engine, asked: list[Asked], tier: str) -> None:
    for outcome, each in zip(outcomes, asked, strict=True):
        assert isinstance(outcome, Generated)
        far = (outcome.images[0].pixels.float() - alone(engine, each).float()).abs()
        print(
            f"{each.request.model} {tier} of {len(asked)}: {far.max():g} at most, {far.mean():.4f} in the mean of 255"
        )
        assert far.max() <= FAR[tier][0]
        assert far.mean() <= FAR[tier][1]


@pytest.mark.parametrize(
    ("base", "tier"),
    [
        (DEV, "exact"),
        (DEPTH, "fast"),
        pytest.param(DEV, "fast", marks=pytest.mark.soak),
        pytest.param(DEPTH, "exact", marks=pytest.mark.soak),
    ],
)
def test_each_draws_in_company_what_it_draws_alone(engine: Engine, base: GenerationRequest, tier: str) -> None:
    asked = mixed(replace(base, tier=tier))
    for count in (2, 4):
        outcomes = engine.generate_together(asked[:count])
        check_near(outcomes, engine, asked[:count], tier)
        assert {(made.together, made.tier) for made in outcomes if isinstance(made, Generated)} == {(count, tier)}
    if base is DEPTH:
        assert [made.depth_map is not None for made in outcomes if isinstance(made, Generated)] == [False] * 3 + [True]


def test_they_are_one_call_of_the_transformer_at_each_step(
    engine: Engine, components: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    transformer = components.transformers["flux-dev"]
    forward = transformer.forward

    def counted(**given: Any) -> Any:
        batches.append(len(given["hidden_states"]))
        return forward(**given)

    monkeypatch.setattr(transformer, "forward", counted)
    engine.generate_together(mixed(DEV))
    assert batches == [4] * 4


def test_init_images_of_one_first_step_go_together(engine: Engine) -> None:
    base = replace(DEV, init_image="x", strength=0.5)
    asked = [Asked(request=replace(base, seed=seed), init_image=picture) for seed, picture in ((1, PHOTO), (2, TURNED))]
    check_near(engine.generate_together(asked), engine, asked, "exact")


def test_a_batch_of_one_is_the_single_request_to_the_bit(engine: Engine) -> None:
    for asked in (mixed(DEV)[0], mixed(DEPTH)[1]):
        [outcome] = engine.generate_together([asked])
        assert isinstance(outcome, Generated)
        assert torch.equal(outcome.images[0].pixels, alone(engine, asked))
        assert outcome.together == 1


@pytest.mark.parametrize("other", [{"width": 64}, {"steps": 5}, {"tier": "fast"}, {"num_outputs": 2}], ids=str)
def test_strangers_are_not_drawn_together(engine: Engine, other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not of one company"):
        engine.generate_together([Asked(request=DEV), Asked(request=replace(DEV, **other))])


def test_every_request_hears_its_own_steps(engine: Engine) -> None:
    heard: list[list[StepReport]] = [[], [], []]
    asked = [Asked(request=replace(DEV, seed=i), on_step=heard[i].append) for i in range(3)]
    outcomes = engine.generate_together(asked)
    for reports, made in zip(heard, outcomes, strict=True):
        assert isinstance(made, Generated)
        assert [(report.step, report.steps) for report in reports] == [(step, 4) for step in (1, 2, 3, 4)]
        assert {"text", "denoise", "decode"} <= set(made.timings_s)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_cancel_ends_one_at_the_next_step_and_leaves_its_mates(engine: Engine, after: int) -> None:
    steps: list[StepReport] = []
    asked = mixed(DEV)[:3]
    asked[1] = replace(asked[1], on_step=steps.append, cancelled=lambda: len(steps) >= after)
    outcomes = engine.generate_together(asked)
    assert isinstance(outcomes[1], Cancelled)
    assert len(steps) == after
    check_near([outcomes[0], outcomes[2]], engine, [asked[0], asked[2]], "exact")


def test_when_all_are_cancelled_nothing_is_drawn_on(engine: Engine, components: Components, monkeypatch: Any) -> None:
    steps: list[StepReport] = []
    monkeypatch.setattr(components.vae, "decode", lambda *_, **__: pytest.fail("decoded for nobody"))
    asked = [replace(each, on_step=steps.append, cancelled=lambda: len(steps) >= 6) for each in mixed(DEV)[:3]]
    assert [type(outcome) for outcome in engine.generate_together(asked)] == [Cancelled] * 3
    assert len(steps) == 6


def test_a_bad_request_hurts_nobody_else(engine: Engine) -> None:
    asked = mixed(DEPTH)[:3]
    asked[0] = replace(asked[0], control_image=None)
    outcomes = engine.generate_together(asked)
    assert isinstance(outcomes[0], BadRequest)
    check_near(outcomes[1:], engine, asked[1:], "exact")


def test_a_picture_that_cannot_be_read_hurts_nobody_else(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    PHOTO.picture.save(tmp_path / "inputs" / "good.png")
    (tmp_path / "inputs" / "bad.png").write_bytes(b"no picture")
    requests = [replace(DEPTH, control_image=name) for name in ("bad.png", "good.png")]
    bad, good = Spool(folder=tmp_path).compute_together(engine, [Asked(request=each) for each in requests])
    assert isinstance(bad, BadRequest)
    assert "control_image is not a PNG" in str(bad)
    check_near([good], engine, [Asked(request=requests[1], control_image=PHOTO)], "exact")


def test_loras_are_shared_and_so_is_their_refusal(demo_weights: Path, lora_folder: Path) -> None:
    engine = Engine(load(demo_weights, loras=lora_folder))
    asked = [replace(each, request=replace(each.request, loras=(Lora(name="style"),))) for each in mixed(DEV)]
    check_near(engine.generate_together(asked), engine, asked, "exact")
    nameless = [replace(each, request=replace(each.request, loras=(Lora(name="none"),))) for each in asked]
    assert [type(outcome) for outcome in engine.generate_together(nameless)] == [BadRequest] * 4


def test_a_nan_is_judged_for_each_picture(engine: Engine, components: Components, monkeypatch: Any) -> None:
    transformer = components.transformers["flux-dev"]
    forward = transformer.forward

    def spoiled(**given: Any) -> Any:
        output = forward(**given)[0].clone()
        output[1, 0, 0] = torch.nan
        return (output,)

    asked = mixed(DEV)[:3]
    with monkeypatch.context() as patch:
        patch.setattr(transformer, "forward", spoiled)
        outcomes = engine.generate_together(asked)
    assert isinstance(outcomes[1], NotFinite)
    check_near([outcomes[0], outcomes[2]], engine, [asked[0], asked[2]], "exact")


class FlagsTolerance:
    """A safety checker that flags what is asked for at this tolerance."""

    def check(self, images: list[torch.Tensor], tolerance: int) -> list[Verdict]:
        return [Verdict(tolerance == 1, 0.0, 0.0) for _ in images]


def test_safety_is_judged_for_each_request_by_its_own_settings(components: Components) -> None:
    engine = Engine(replace(components, safety=FlagsTolerance()))
    requests = [replace(DEV, seed=7, safety_tolerance=1), DEV, replace(DEV, check_safety=False)]
    flagged, checked, unchecked = engine.generate_together([Asked(request=each) for each in requests])
    assert isinstance(flagged, Flagged)
    assert isinstance(checked, Generated)
    assert isinstance(unchecked, Generated)
    assert (checked.safety, unchecked.safety) == ("checked", "off")


# When the batch fails as a whole.


def together(engine: Engine, prompts: list[str]) -> list[Generated | Fault]:
    asked = [Asked(request=replace(DEV, prompt=prompt)) for prompt in prompts]

    def draw_alone(request: GenerationRequest) -> Callable[[], Generated]:
        return lambda: engine.generate(request)

    return list(
        attempt_together(engine, lambda: engine.generate_together(asked), [draw_alone(each.request) for each in asked])
    )


@pytest.mark.soak
@pytest.mark.parametrize("fault", ["out_of_memory", "unknown"])
def test_after_a_fault_of_the_batch_each_is_drawn_alone(components: Components, fault: str) -> None:
    engine = FaultyEngine(components)
    outcomes = together(engine, ["a fox", f"[fault:{fault}@2]", "a boat"])
    assert isinstance(outcomes[1], Fault)
    assert outcomes[1].kind == fault
    for outcome, prompt in ((outcomes[0], "a fox"), (outcomes[2], "a boat")):
        assert isinstance(outcome, Generated)
        assert outcome.together == 1
        assert torch.equal(outcome.images[0].pixels, alone(engine, Asked(request=replace(DEV, prompt=prompt))))


def test_memory_that_lacks_for_the_batch_only_costs_nobody_a_picture(components: Components) -> None:
    outcomes = together(FaultyEngine(components), ["a fox", "[fault:out_of_memory_once]"])
    assert [outcome.together for outcome in outcomes if isinstance(outcome, Generated)] == [1, 1]


def test_a_lost_device_is_lost_for_all(components: Components) -> None:
    outcomes = together(FaultyEngine(components), ["a fox", "[fault:device]"])
    assert [outcome.kind for outcome in outcomes if isinstance(outcome, Fault)] == ["fatal", "fatal"]


# Compiled blocks.


def trace(parts: Components) -> None:
    """Blocks that dynamo traces; the code that it makes of them runs as it is."""
    torch._dynamo.reset()
    for network in (*parts.transformers.values(), *parts.fast.values()):
        compile_blocks(network, backend="eager")
    for shelf in parts.shelves.values():
        shelf._compiled = True  # every LoRA then has the whole slot's shape


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(warmup, "declared_sizes", lambda model: [(96, 64), (64, 80)])
    yield
    torch._dynamo.reset()


@pytest.mark.soak
@pytest.mark.usefixtures("small_sizes")
def test_a_warm_batch_leaves_nothing_to_compile_for_others_and_for_one_that_shrinks(demo_weights: Path) -> None:
    folders = Folders(models={"flux-dev": demo_weights / "FLUX.1-dev"})
    parts = load_components(folders, device=torch.device("cpu"), dtype=torch.float32)
    trace(parts)
    engine = Engine(parts)
    warmup.warm_up_together(engine, "flux-dev", 4, ("exact",))
    before = graphs_compiled()
    steps: list[StepReport] = []
    leaving = [
        replace(each, on_step=steps.append if not i else each.on_step, cancelled=lambda i=i: len(steps) > i > 1)
        for i, each in enumerate(mixed(DEV))
    ]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for width, height in ((64, 64), (128, 96)):
            for count in (2, 3, 4):
                engine.generate_together(mixed(replace(DEV, width=width, height=height, steps=1))[:count])
        outcomes = engine.generate_together(leaving)
    assert graphs_compiled() == before
    assert [type(outcome) for outcome in outcomes] == [Generated, Generated, Cancelled, Cancelled]


@pytest.mark.soak
@pytest.mark.usefixtures("small_sizes")
def test_the_warm_up_leaves_nothing_to_compile_for_any_batch(demo_weights: Path, lora_folder: Path) -> None:
    parts = load(demo_weights, loras=lora_folder)
    trace(parts)
    engine = Engine(parts)
    tiers = ("exact", "fast")
    warmup.warm_up_sizes(engine, max_pixels=2**20, together=4, together_tiers=tiers)
    before = graphs_compiled()
    asked = [
        replace(base, tier=tier, loras=loras, width=width, height=height, steps=2)
        for base in (DEV, DEPTH)
        for tier in tiers
        for loras in ((), (Lora(name="style"),))
        for width, height in ((64, 64), (128, 96), (64, 160))
    ]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for wanted in asked:
            for count in (1, 2, 3, 4):
                outcomes = engine.generate_together(mixed(wanted)[:count])
                assert all(isinstance(outcome, Generated) for outcome in outcomes)
    print(f"{before} graphs, {graphs_compiled() - before} more for batches of 2, 3 and 4 at three other sizes")
    assert graphs_compiled() == before
