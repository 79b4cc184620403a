"""Speed tiers, step cache and compiled blocks on the demo weights: what changes, what does not, what may not leak."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines import assembly, components, warmup
from pipelines.assembly import Wishes, assemble
from pipelines.components import Components, Folders, load_components
from pipelines.engine import Engine, Generated
from pipelines.faults import BadRequest, Cancelled
from pipelines.memory.plans import RECIPES, Recipe
from pipelines.request import GenerationRequest, Lora
from pipelines.source import SourceImage
from pipelines.speed import blocks
from pipelines.speed.blocks import compile_blocks, compile_decoder, graphs_compiled
from pipelines.watch import StepReport

CPU = torch.device("cpu")
BY_NAME = {recipe.name: recipe for recipe in RECIPES}


def load(demo: Path, recipe: Recipe = BY_NAME["resident"], **more: Any) -> Components:
    folders = Folders(
        models={"flux-dev": demo / "FLUX.1-dev", "flux-depth-dev": demo / "FLUX.1-Depth-dev"},
        depth_estimator=demo / "depth-anything-large-hf",
        loras=more.pop("loras", None),
    )
    return load_components(folders, device=CPU, dtype=torch.float32, recipe=recipe, fast=True, **more)


def generate(parts: Components, tier: str = "", model: str = "flux-dev", side: int = 96, **more: Any) -> Generated:
    photo = SourceImage(Image.linear_gradient("L").resize((side, side)).convert("RGB"), "gradient")
    hooks = {name: more.pop(name) for name in ("on_step", "cancelled") if name in more}
    settings = {"prompt": "a", "steps": 8, "guidance": 3.5, "seed": 1, "height": side, **more}
    request = GenerationRequest(model=model, width=side, tier=tier, **settings)
    control = photo if model == "flux-depth-dev" else None
    return Engine(parts).generate(request, control_image=control, **hooks)


def pixels(parts: Components, tier: str = "", **more: Any) -> torch.Tensor:
    return generate(parts, tier, **more).images[0].pixels


@pytest.fixture(scope="module")
def parts(demo_weights: Path) -> Components:
    return load(demo_weights)


@pytest.mark.parametrize("model", ["flux-dev", "flux-depth-dev"])
def test_each_tier_draws_its_own_picture_near_the_exact_one(parts: Components, model: str) -> None:
    drawn = {tier: generate(parts, tier, model) for tier in ("exact", "fast", "turbo")}
    assert {tier: result.tier for tier, result in drawn.items()} == {tier: tier for tier in drawn}
    exact = drawn["exact"].images[0].pixels
    for tier in ("fast", "turbo"):
        far = float((drawn[tier].images[0].pixels.float() - exact.float()).abs().mean())
        print(f"{model} {tier}: mean distance {far:.2f} of 255")
        assert 0 < far < 24


def test_the_default_is_exact_and_go_fast_takes_fast(parts: Components) -> None:
    assert generate(parts).tier == "exact"
    assert generate(parts, prefer_fast=True).tier == "fast"
    assert torch.equal(pixels(parts), pixels(parts, "exact"))
    assert torch.equal(pixels(parts, prefer_fast=True), pixels(parts, "fast"))


def test_a_plan_in_fp8_says_so_and_needs_no_copy(demo_weights: Path) -> None:
    held = load(demo_weights, BY_NAME["fp8"])
    assert held.tiers == ("fp8", "fast", "turbo")
    assert held.fast["flux-dev"] is held.transformers["flux-dev"]
    assert generate(held).tier == "fp8"
    with pytest.raises(BadRequest, match="exact is not offered by this server; it offers fp8, fast, turbo"):
        generate(held, "exact")
    assert not torch.equal(pixels(held), pixels(held, "fast"))


def test_the_copy_shares_everything_but_the_matrices(parts: Components) -> None:
    own = {id(value) for value in parts.transformers["flux-dev"].parameters()}
    added = [value for value in parts.fast["flux-dev"].parameters() if id(value) not in own]
    assert added
    assert {value.dtype for value in added} == {torch.float8_e4m3fn, torch.float32}
    assert all(value.ndim == 2 for value in added)


def test_a_server_without_fast_tiers_falls_back_for_go_fast_and_refuses_by_name(demo_weights: Path) -> None:
    folders = Folders(models={"flux-dev": demo_weights / "FLUX.1-dev"})
    plain = load_components(folders, device=CPU, dtype=torch.float32)
    assert generate(plain, prefer_fast=True).tier == "exact"
    with pytest.raises(BadRequest, match="turbo is not offered"):
        generate(plain, "turbo")


def test_the_step_cache_takes_steps_short(parts: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    last = parts.fast["flux-dev"].single_transformer_blocks[-1]
    monkeypatch.setattr(last, "forward", lambda *a, _inner=last.forward, **k: (calls.append(1), _inner(*a, **k))[1])
    generate(parts, "fast", steps=20)
    whole = len(calls)
    calls.clear()
    generate(parts, "turbo", steps=20)
    print(f"last block: {len(calls)} of {whole} steps")
    assert whole == 20
    assert 0 < len(calls) < whole


@pytest.mark.parametrize("end", ["cancel", "error"])
def test_no_state_of_the_step_cache_leaks(parts: Components, end: str) -> None:
    alone = {side: pixels(parts, "turbo", side=side) for side in (96, 64)}
    steps: list[StepReport] = []

    def fail(step: StepReport) -> None:
        steps.append(step)
        if end == "error" and step.step == 3:
            raise RuntimeError("broken")

    with pytest.raises((Cancelled, RuntimeError)):
        generate(parts, "turbo", on_step=fail, cancelled=lambda: end == "cancel" and len(steps) == 3)
    for side in (96, 64):
        assert torch.equal(pixels(parts, "turbo", side=side), alone[side])
    assert torch.equal(pixels(parts, "fast"), pixels(parts, "fast"))
    assert not any(hasattr(module, "_diffusers_hook") and module._diffusers_hook.hooks for module in blocks_of(parts))


def blocks_of(parts: Components) -> Iterator[Any]:
    for network in parts.fast.values():
        yield from network.transformer_blocks
        yield from network.single_transformer_blocks


def test_images_of_one_request_do_not_share_a_step_cache(parts: Components) -> None:
    both = generate(parts, "turbo", num_outputs=2, seed=5)
    assert torch.equal(both.images[1].pixels, pixels(parts, "turbo", seed=6))


def test_a_lora_works_in_every_tier_and_leaves_none_behind(demo_weights: Path, lora_folder: Path) -> None:
    parts = load(demo_weights, loras=lora_folder)
    for tier in ("exact", "fast", "turbo"):
        plain = pixels(parts, tier)
        styled = pixels(parts, tier, loras=(Lora(name="style"),))
        assert not torch.equal(plain, styled)
        assert torch.equal(pixels(parts, tier), plain)


@pytest.fixture(scope="module")
def compiled(demo_weights: Path, lora_folder: Path) -> Iterator[Components]:
    """With blocks that dynamo traces; the code that it makes of them runs as it is."""
    torch._dynamo.reset()
    parts = load(demo_weights, loras=lora_folder)
    for network in (*parts.transformers.values(), *parts.fast.values()):
        compile_blocks(network, backend="eager")
    compile_decoder(parts.vae, backend="eager")
    for shelf in parts.shelves.values():
        shelf._compiled = True
    yield parts
    torch._dynamo.reset()


def test_compiled_blocks_draw_the_same_pictures(compiled: Components, parts: Components) -> None:
    for tier in ("exact", "fast", "turbo"):
        assert torch.equal(pixels(compiled, tier), pixels(parts, tier))


def test_nothing_is_compiled_after_the_warm_up(compiled: Components) -> None:
    """Two sizes of different shape warm up; then every other size runs on what was compiled.

    One of them is small and one is not: on the CPU torch takes another convolution for maps of up to 160 values.
    """
    style = (Lora(name="style"),)
    wanted: list[dict[str, Any]] = [
        {"model": model, "tier": tier, "loras": loras}
        for model in ("flux-dev", "flux-depth-dev")
        for tier in ("exact", "fast", "turbo")
        for loras in ((), style)
    ]
    for asked in wanted:
        for side, height in ((96, 64), (96, 160)):
            generate(compiled, side=side, height=height, steps=2, **asked)
    before = graphs_compiled()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for asked in wanted:
            for side, height in ((64, 64), (160, 128)):
                generate(compiled, side=side, height=height, steps=2, **asked)
    print(f"{before} graphs")
    assert graphs_compiled() == before
    assert before <= 2 * blocks.GRAPHS_PER_BLOCK


def compile_with(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """What is compiled from now on, is compiled by that backend."""
    for name in ("compile_blocks", "compile_decoder"):
        monkeypatch.setattr(components, name, partial(getattr(blocks, name), backend=backend))


def test_warming_up_leaves_nothing_to_compile_for_any_declared_size(
    demo_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real warm-up and the real end of compiling, with a backend that takes no time."""
    torch._dynamo.reset()
    compile_with(monkeypatch, "eager")
    monkeypatch.setattr(warmup, "declared_sizes", lambda model: [(96, 64), (64, 64), (64, 128)])
    folders = Folders(models={"flux-dev": demo_weights / "FLUX.1-dev"})
    try:
        ready = assemble(folders, Wishes(device="cpu", dtype="float32", fast_tiers="on", compiled="on"))
        assert ready.engine.tiers == ("exact", "fast", "turbo")
        assert ready.graphs > 0
        request = GenerationRequest(
            model="flux-dev", prompt="a", width=128, height=96, steps=3, guidance=3.5, seed=1, num_outputs=2
        )
        for tier in ready.engine.tiers:
            ready.engine.generate(replace(request, tier=tier))
        assert graphs_compiled() == ready.graphs
    finally:
        torch.compiler.set_stance("default")
        torch._dynamo.reset()


def test_where_nothing_can_be_compiled_the_engine_is_ready_all_the_same(
    demo_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: Any) -> Any:
        raise RuntimeError("Failed to find C compiler")

    torch._dynamo.reset()
    compile_with(monkeypatch, no_compiler)
    monkeypatch.setattr(assembly, "_compiles", lambda *_: True)
    folders = Folders(models={"flux-dev": demo_weights / "FLUX.1-dev"})
    told: list[str] = []
    try:
        ready = assemble(folders, Wishes(device="cpu", dtype="float32"), tell=told.append)
        assert any("cannot be compiled here" in doing and "C compiler" in doing for doing in told)
        request = GenerationRequest(model="flux-dev", prompt="a", width=64, height=64, steps=1, guidance=3.5, seed=1)
        assert ready.engine.generate(request).images
        assert (ready.together, ready.together_tiers) == (1, ()), "auto never batches on a processor"
        torch.compiler.set_stance("default")
        with pytest.raises(Exception, match="C compiler"):
            assemble(folders, Wishes(device="cpu", dtype="float32", compiled="on"))
    finally:
        torch.compiler.set_stance("default")
        torch._dynamo.reset()
