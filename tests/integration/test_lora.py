"""LoRAs change a transformer for one request as diffusers would and leave no trace; a control LoRA makes another model.

The references are diffusers' own `load_lora_weights` on a copy. In float64 both must agree to 1e-9 of values around 10,
which no wrong factor, order or missing layer survives; in float32, where the sums run in another order, to 1e-3.
"""

from __future__ import annotations

import copy
import gc
import json
import math
import os
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from diffusers import FluxControlPipeline, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.faults import BadRequest, Cancelled, classify
from pipelines.lora import shelf as shelf_module
from pipelines.lora.branch import Branch, layer_shapes
from pipelines.lora.depth import depth_from_lora
from pipelines.lora.files import UnusableLora, available, read_header
from pipelines.lora.shelf import LoraShelf
from pipelines.lora.weights import load_weights

EXACT = 1e-9
"""Largest difference allowed in float64."""
FLOAT32 = 1e-3
"""Largest difference allowed in float32."""
NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")


@pytest.fixture(scope="module")
def dev(demo_weights: Path) -> Any:
    return _frozen(FluxTransformer2DModel.from_pretrained(demo_weights / "FLUX.1-dev" / "transformer"))


@pytest.fixture(scope="module")
def full_depth(demo_weights: Path) -> Any:
    return _frozen(FluxTransformer2DModel.from_pretrained(demo_weights / "FLUX.1-Depth-dev" / "transformer"))


def _frozen(model: Any) -> Any:
    """Copied, because what is mapped from a file may lie so that sums run in another order than in a copy of it."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def call(model: Any, *, tokens: int = 12, seed: int = 0) -> Tensor:
    """The velocity for fixed random inputs, [1, tokens, 64]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(model.dtype)

    ids = torch.stack([torch.zeros(tokens), torch.arange(tokens) // 4, torch.arange(tokens) % 4], dim=1)
    with torch.inference_mode():
        velocity: Tensor = model(
            hidden_states=normal(1, tokens, model.config.in_channels),
            timestep=torch.tensor([0.7], dtype=model.dtype),
            guidance=torch.tensor([3.5]),
            pooled_projections=normal(1, 32),
            encoder_hidden_states=normal(1, 8, 32),
            txt_ids=torch.zeros(8, 3),
            img_ids=ids,
            return_dict=False,
        )[0]
    return velocity


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def lora(
    model: nn.Module, seed: int, *, rank: int = 4, only: str = "", strength: float = 0.1, input_width: int | None = None
) -> dict[str, Tensor]:
    """A random LoRA in diffusers' layout for all linear layers whose path contains `only`."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for path, layer in linears(model).items():
        if only in path:
            width = input_width if input_width and path == "x_embedder" else layer.in_features
            down = torch.randn(rank, width, generator=generator) / math.sqrt(width)
            state[f"transformer.{path}.lora_A.weight"] = down
            state[f"transformer.{path}.lora_B.weight"] = (
                torch.randn(layer.out_features, rank, generator=generator) * strength
            )
    return state


def control_lora(model: nn.Module, seed: int = 3, *, input_width: int = 128) -> dict[str, Tensor]:
    """Like FLUX.1-Depth-dev-lora, in diffusers' layout: every linear layer, biases, a wide image input, norm scales."""
    state = lora(model, seed, input_width=input_width)
    generator = torch.Generator().manual_seed(seed)
    for path, layer in linears(model).items():
        state[f"transformer.{path}.lora_B.bias"] = torch.randn(layer.out_features, generator=generator) * 0.05
    for path, parameter in model.named_parameters():
        if any(f".{norm}." in path for norm in NORMS):
            state[f"transformer.{path}"] = torch.rand(parameter.shape, generator=generator) + 0.5
    return state


@pytest.fixture(scope="module")
def folder(dev: Any, full_depth: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all kinds, good and bad."""
    root = tmp_path_factory.mktemp("loras")
    save_file(lora(dev, 1), root / "ink.safetensors")
    save_file(lora(dev, 2, rank=8), root / "oil.safetensors")
    save_file(lora(dev, 3, rank=2, only="to_q"), root / "thin.safetensors")
    save_file(lora(dev, 4, strength=1e30), root / "huge.safetensors")
    save_file(lora(dev, 5, rank=40), root / "wide.safetensors")
    save_file(control_lora(dev), root / "depth-lora.safetensors")
    save_file(lora(dev, 6, only="x_embedder", input_width=384), root / "fill.safetensors")
    save_file(lora(full_depth, 7, only="x_embedder"), root / "for-depth.safetensors")
    return root


@pytest.fixture
def model(dev: Any) -> Any:
    return copy.deepcopy(dev)


@pytest.fixture
def shelf(model: Any, folder: Path) -> LoraShelf:
    return make_shelf(model, folder)


def make_shelf(model: Any, folder: Path, **options: Any) -> LoraShelf:
    return LoraShelf(model, folder, **{"max_bytes": 1 << 24, "max_rank": 32, **options})


def reference(model: Any, files: dict[Path, float], pipeline: Any = FluxPipeline) -> Any:
    """A copy of the model with LoRA files loaded by diffusers itself."""
    copied = copy.deepcopy(model)
    names = []
    loader = pipeline(None, None, None, None, None, None, copied)
    for file in files:
        names.append(file.stem.replace("-", "_"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
            loader.load_lora_weights(str(file), adapter_name=names[-1])
    copied.set_adapters(names, list(files.values()))
    return copied


# --- what a LoRA does ---


def test_a_lora_changes_the_picture_as_diffusers_does(dev: Any, model: Any, shelf: LoraShelf, folder: Path) -> None:
    before = call(model)
    with shelf.applied([("ink", 0.7)]) as notes:
        with_lora = call(model)
    assert notes == ()
    assert difference(with_lora, before) > 1
    assert difference(with_lora, call(reference(dev, {folder / "ink.safetensors": 0.7}))) < FLOAT32


def test_loras_add_up_as_in_diffusers_to_the_last_digits(dev: Any, folder: Path) -> None:
    model = copy.deepcopy(dev).double()
    with make_shelf(copied := copy.deepcopy(model), folder).applied([("ink", 0.7), ("oil", -0.4), ("thin", 2.0)]):
        ours = call(copied)
    files = {folder / "ink.safetensors": 0.7, folder / "oil.safetensors": -0.4, folder / "thin.safetensors": 2.0}
    assert difference(ours, call(reference(model, files))) < EXACT
    assert difference(ours, call(reference(model, files | {folder / "thin.safetensors": 2.01}))) > 1000 * EXACT


def test_the_order_of_loras_does_not_matter(model: Any, shelf: LoraShelf) -> None:
    with shelf.applied([("ink", 0.5), ("oil", 0.25)]):
        one = call(model)
    with shelf.applied([("oil", 0.25), ("ink", 0.5)]):
        assert torch.equal(call(model), one)


@pytest.mark.parametrize("compiled", [False, True])
def test_scale_0_is_as_if_not_named(dev: Any, folder: Path, compiled: bool) -> None:
    shelf = make_shelf(model := copy.deepcopy(dev), folder, compiled=compiled)
    for loras in ([], [("ink", 0.0)], [("ink", 0), ("oil", -0.0)]):
        with shelf.applied(loras):
            assert torch.equal(call(model), call(dev))
    with shelf.applied([("oil", 0.5)]):
        alone = call(model)
    with shelf.applied([("ink", 0.0), ("oil", 0.5)]):
        assert torch.equal(call(model), alone)


@pytest.mark.parametrize("compiled", [False, True])
def test_afterwards_the_transformer_is_as_before_to_the_bit(dev: Any, folder: Path, compiled: bool) -> None:
    shelf = make_shelf(model := copy.deepcopy(dev), folder, compiled=compiled)
    assert torch.equal(call(model), call(dev))
    for loras in ([("ink", 1.0)], [("oil", -10.0), ("thin", 10)], [("huge", 10.0)]):
        with shelf.applied(loras):
            assert not torch.equal(call(model), call(dev))
        assert torch.equal(call(model), call(dev))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_request_does_not_see_the_lora_of_the_one_before(dev: Any, folder: Path, compiled: bool) -> None:
    def thin(shelf: LoraShelf, model: Any) -> Tensor:
        with shelf.applied([("thin", 1.0)]):
            return call(model)

    fresh = thin(make_shelf(model := copy.deepcopy(dev), folder, compiled=compiled), model)
    used = make_shelf(model := copy.deepcopy(dev), folder, compiled=compiled)
    with used.applied([("huge", 10.0), ("oil", 1.0)]):
        assert not torch.isfinite(call(model)).all()
    assert torch.equal(thin(used, model), fresh)


def test_the_same_loras_again_are_not_copied_again(
    shelf: LoraShelf, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shelf.applied([("ink", 0.5)]):
        first = call(model)
    monkeypatch.setattr(Branch, "fill", None)
    with shelf.applied([]):
        pass
    with shelf.applied([("ink", 0.5)]):
        assert torch.equal(call(model), first)


def test_a_replaced_file_is_read_again(dev: Any, model: Any, tmp_path: Path) -> None:
    shelf = make_shelf(model, tmp_path)
    save_file(lora(dev, 1), tmp_path / "style.safetensors")
    with shelf.applied([("style", 1.0)]):
        first = call(model)
    save_file(lora(dev, 2), tmp_path / "new")
    os.replace(tmp_path / "new", tmp_path / "style.safetensors")
    with shelf.applied([("style", 1.0)]):
        assert difference(call(model), first) > 0.1


def test_a_loaded_lora_no_longer_needs_its_file(dev: Any, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    save_file(lora(dev, 1), file)
    weights = load_weights(read_header(file), layer_shapes(dev), torch.float32)
    up, size = weights.layers["proj_out"].up.clone(), file.stat().st_size
    with file.open("r+b") as opened:
        opened.write(bytes(size))
    assert torch.equal(weights.layers["proj_out"].up, up)


def test_it_works_inside_and_outside_of_inference_mode(model: Any, folder: Path) -> None:
    with torch.inference_mode():
        shelf = make_shelf(model, folder)
        with shelf.applied([("ink", 0.5)]):
            inside = call(model)
        with shelf.applied([("oil", 0.5)]):
            pass
    with shelf.applied([("ink", 0.5)]):
        assert torch.equal(call(model), inside)


# --- what goes wrong in the middle ---


@pytest.mark.parametrize("error", [Cancelled, torch.OutOfMemoryError, KeyboardInterrupt])
def test_whatever_ends_a_request_leaves_no_trace(dev: Any, model: Any, shelf: LoraShelf, error: type) -> None:
    def ends() -> None:
        with shelf.applied([("ink", 1.0)]):
            assert difference(call(model), call(dev)) > 1
            raise error

    with pytest.raises(error):
        ends()
    assert torch.equal(call(model), call(dev))
    with shelf.applied([("ink", 1.0)]):
        assert difference(call(model), call(dev)) > 1


def test_a_failure_while_the_slot_is_filled_leaves_no_trace(
    dev: Any, model: Any, shelf: LoraShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shelf.applied([("ink", 1.0)]):
        right = call(model)
    with monkeypatch.context() as patch:
        real, calls = Branch.fill, iter(range(100))

        def fails_later(branch: Branch, parts: Any, **options: Any) -> None:
            if next(calls) == 7:
                raise torch.OutOfMemoryError
            real(branch, parts, **options)

        patch.setattr(Branch, "fill", fails_later)
        with pytest.raises(torch.OutOfMemoryError), shelf.applied([("oil", 1.0)]):
            raise AssertionError
    assert torch.equal(call(model), call(dev))
    with shelf.applied([("ink", 1.0)]):
        assert torch.equal(call(model), right)


def test_want_of_memory_is_not_called_damage(shelf: LoraShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(FluxPipeline, "lora_state_dict", no_memory)
    with pytest.raises(MemoryError), shelf.applied([("ink", 1.0)]):
        raise AssertionError


# --- compiled blocks ---


class CountingBackend:
    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        forward: Callable[..., Any] = graph.forward
        return forward


def test_compiled_blocks_have_one_graph_with_and_one_without_loras(folder: Path, dev: Any) -> None:
    import torch._dynamo as dynamo

    def draw(model: Any) -> list[Tensor]:
        return [call(model, tokens=tokens) for tokens in (12, 20, 16)]

    eager = copy.deepcopy(dev)
    shelves = make_shelf(eager, folder, compiled=True), make_shelf(model := copy.deepcopy(dev), folder, compiled=True)
    backend = CountingBackend()
    dynamo.reset()
    model.compile_repeated_blocks(fullgraph=True, backend=backend)
    draw(model)
    without = backend.graphs
    with shelves[1].rehearsal():
        draw(model)
    assert 0 < backend.graphs - without <= without
    warm = backend.graphs
    with dynamo.config.patch(error_on_recompile=True):
        for loras in ([("ink", 1.0)], [("oil", -0.5), ("thin", 2.0)], [], [("thin", 0.1)], [("ink", 0.0)]):
            with shelves[0].applied(loras), shelves[1].applied(loras):
                assert all(torch.equal(a, b) for a, b in zip(draw(eager), draw(model), strict=True))
    assert backend.graphs == warm
    dynamo.reset()


# --- memory ---


def test_memory_stays_flat_over_fifty_files(dev: Any, model: Any, tmp_path: Path) -> None:
    save_file(lora(dev, 1, rank=256), tmp_path / "style-00.safetensors")
    for number in range(1, 50):
        os.link(tmp_path / "style-00.safetensors", tmp_path / f"style-{number:02}.safetensors")
    size = load_weights(read_header(tmp_path / "style-00.safetensors"), layer_shapes(dev), torch.float32).size_bytes
    shelf = make_shelf(model, tmp_path, max_bytes=int(2.5 * size), max_rank=256)
    slot = shelf.slot_bytes
    process, alive, resident = psutil.Process(), list[weakref.ref[Tensor]](), list[int]()
    for number in range(50):
        with shelf.applied([(f"style-{number:02}", 1.0)]):
            (_, loaded), *_ = list(shelf.cache._entries.items())[-1:]
            alive.append(weakref.ref(loaded.layers["x_embedder"].down))
            del loaded
        assert shelf.cache.used_bytes <= 2.5 * size
        resident.append(process.memory_info().rss)
    gc.collect()
    assert size > 3e6
    assert sum(reference() is not None for reference in alive) <= 2
    assert max(resident[10:]) - resident[9] < 10 * size  # forty more files were read
    assert shelf.slot_bytes == slot


def test_the_least_recently_used_goes_first(dev: Any, model: Any, folder: Path) -> None:
    size = load_weights(read_header(folder / "ink.safetensors"), layer_shapes(dev), torch.float32).size_bytes
    shelf = make_shelf(model, folder, max_bytes=int(3.5 * size))  # oil is twice as large as ink
    for name in ("ink", "oil", "ink", "thin"):
        with shelf.applied([(name, 1.0)]):
            pass
    assert (shelf.cache.hits, shelf.cache.misses) == (1, 3)
    for name in ("ink", "thin", "oil"):
        with shelf.applied([(name, 1.0)]):
            pass
    assert shelf.cache.used_bytes <= 3.5 * size


def test_more_than_the_cache_holds_can_still_be_used(dev: Any, folder: Path) -> None:
    shelf = make_shelf(model := copy.deepcopy(dev), folder, max_bytes=1000)
    with shelf.applied([("ink", 1.0), ("oil", 1.0)]):
        assert difference(call(model), call(dev)) > 1
    assert shelf.cache.used_bytes == 0


# --- what is refused ---


def refusal(shelf: LoraShelf, *loras: tuple[str, float]) -> str:
    with pytest.raises(BadRequest) as raised, shelf.applied(loras):
        raise AssertionError
    assert classify(raised.value) == "input"
    return str(raised.value)


@pytest.mark.parametrize("name", ["nope", "../ink", "/etc/passwd", "ink.safetensors", "", "sub/inner", "secret", "."])
def test_unknown_names_are_refused_with_those_there_are(dev: Any, model: Any, tmp_path: Path, name: str) -> None:
    root = tmp_path / "loras"
    (root / "sub").mkdir(parents=True)
    for file in (root / "ink", root / "oil", root / "sub" / "inner", tmp_path / "ink", tmp_path / "out", root / ".hid"):
        save_file(lora(dev, 1, only="to_q"), f"{file}.safetensors")
    (root / "secret.safetensors").symlink_to(tmp_path / "out.safetensors")
    (root / "note.txt").write_text("no LoRA")
    (root / "note.safetensors").symlink_to(root / "note.txt")
    (root / "gone.safetensors").symlink_to(root / "nowhere.safetensors")
    text = refusal(make_shelf(model, root), (name, 1.0))
    assert text == f"lora {name!r} is unknown; available: ink, oil"


def test_a_link_within_the_folder_is_another_name(dev: Any, tmp_path: Path) -> None:
    save_file(lora(dev, 1), tmp_path / "ink.safetensors")
    (tmp_path / "alias.safetensors").symlink_to("ink.safetensors")
    size = (tmp_path / "ink.safetensors").stat().st_size
    assert available(tmp_path) == [("alias", size), ("ink", size)]


def test_the_list_of_names_is_bounded(model: Any, tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"n{number:02}.safetensors").touch()
    text = refusal(make_shelf(model, tmp_path), ("x" * 5000 + "\n", 1.0))
    assert text.endswith("n18, n19 and 5 more")
    assert len(text) < 500
    assert "\n" not in text


def test_an_empty_folder_says_so(model: Any, tmp_path: Path) -> None:
    assert refusal(make_shelf(model, tmp_path), ("ink", 1.0)) == "lora 'ink' is unknown; available: none"


def test_a_missing_folder_is_refused_at_once(model: Any, tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        make_shelf(model, tmp_path / "nowhere")
    assert not any(isinstance(module, Branch) for module in model.modules())


@pytest.mark.parametrize(
    ("loras", "text"),
    [
        ([("ink", math.nan)], "lora 'ink': its scale must be a number from -10 to 10"),
        ([("ink", math.inf)], "lora 'ink': its scale must be a number from -10 to 10"),
        ([("ink", -10.01)], "lora 'ink': its scale must be a number from -10 to 10"),
        ([("ink", 1.0), ("ink", 0.5)], "lora 'ink' is named more than once"),
        ([("a", 1.0)] * 5, "5 loras were asked for; at most 4 go into one request"),
        ([("wide", 1.0)], "the ranks of these loras add up to 40; this server takes up to 32"),
        ([("nope", 0.0)], "lora 'nope' is unknown; available:"),
        ([("fill", 1.0)], "lora fill was made for FLUX.1-Fill: it reads 384 input channels, this model 64"),
        (
            [("for-depth", 1.0)],
            "lora for-depth was made for a control model: it reads 128 input channels, this model 64",
        ),
        ([("depth-lora", 1.0)], "lora depth-lora is a control LoRA: it reads 128 input channels, this model 64;"),
    ],
)
def test_what_cannot_be_computed_is_refused(shelf: LoraShelf, loras: list[tuple[str, float]], text: str) -> None:
    assert refusal(shelf, *loras).startswith(text)


def test_a_refused_request_changes_nothing(dev: Any, model: Any, shelf: LoraShelf) -> None:
    refusal(shelf, ("ink", 1.0), ("fill", 1.0))
    assert torch.equal(call(model), call(dev))


def keys(*names: str, width: int = 32) -> dict[str, Tensor]:
    """Pairs of layers that do not exist, in the given layout."""
    return {name: torch.zeros(4, width) if "down" in name or "_A" in name else torch.zeros(width, 4) for name in names}


UNET = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
ALIENS = {
    "sd15": (keys(f"{UNET}.lora_down.weight", f"{UNET}.lora_up.weight", width=768), "was made for Stable Diffusion 1,"),
    "sdxl": (
        keys(f"{UNET}.lora_down.weight", f"{UNET}.lora_up.weight", width=2048),
        "was made for SDXL, not for FLUX.1",
    ),
    "peft-unet": (
        keys("unet.mid_block.resnets.0.conv1.lora_A.weight"),
        "was made for Stable Diffusion, not for FLUX.1",
    ),
    "wan": (keys("diffusion_model.blocks.0.self_attn.q.lora_A.weight"), "changes no layer of FLUX.1; it holds 'diffu"),
    "sd3": (
        keys("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", width=1536)
        | keys("transformer.transformer_blocks.0.attn.to_q.lora_B.weight", width=1536),
        "was made for another model: its layer transformer_blocks.0.attn.to_q maps 1536 values to 1536, this model's",
    ),
    "deep": (
        keys("transformer.transformer_blocks.57.attn.to_q.lora_A.weight")
        | keys("transformer.transformer_blocks.57.attn.to_q.lora_B.weight"),
        "was made for another architecture: this model has no 'transformer_blocks.57.attn.to_q'",
    ),
    "video": (
        keys("lora_unet_double_blocks_0_img_attn_qkv_fused.lora_down.weight"),
        "is damaged or not made for FLUX.1: 'Incompatible keys detected",
    ),
    "text": (
        keys("text_encoder.text_model.encoder.layers.0.proj_out.lora_A.weight"),
        "changes no layer of the transformer",
    ),
    "lokr": (keys("transformer.transformer_blocks.0.attn.to_q.lokr_w1"), "is a LoKr; only plain LoRA is supported"),
    "dora": (keys("lora_unet_double_blocks_0_img_mod_lin.dora_scale"), "is a DoRA; only plain LoRA is supported"),
    "checkpoint": (keys("double_blocks.0.img_attn.qkv.weight"), "holds no LoRA weights"),
    "nothing": ({}, "holds no LoRA weights"),
    "half": (
        keys("transformer.transformer_blocks.0.attn.to_q.lora_A.weight")
        | keys("transformer.transformer_blocks.0.attn.to_k.lora_B.weight"),
        "is damaged: the two parts of transformer_blocks.0.attn.to_q do not belong together",
    ),
    "not-finite": (
        {
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.full((4, 32), math.nan),
            "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.zeros(32, 4),
        },
        "is damaged: it holds values that are not finite",
    ),
}


@pytest.mark.parametrize("kind", ALIENS)
def test_files_for_other_models_are_refused_by_what_they_are(
    shelf: LoraShelf, model: Any, tmp_path: Path, kind: str
) -> None:
    state, text = ALIENS[kind]
    save_file(state, tmp_path / f"{kind}.safetensors")
    assert refusal(make_shelf(model, tmp_path), (kind, 1.0)).startswith(f"lora {kind} {text}")


def test_damaged_files_are_named(dev: Any, model: Any, folder: Path, tmp_path: Path) -> None:
    whole = (folder / "ink.safetensors").read_bytes()
    shelf = make_shelf(model, tmp_path)
    for name, data in {"cut": whole[:-1], "long": whole + b"x", "empty": b"", "noise": os.urandom(4096)}.items():
        (tmp_path / f"{name}.safetensors").write_bytes(data)
        assert refusal(shelf, (name, 1.0)).startswith(f"lora {name} is damaged or cannot be read: ")
    assert torch.equal(call(model), call(dev))


def test_the_full_depth_model_refuses_the_depth_lora_and_takes_others(full_depth: Any, folder: Path) -> None:
    shelf = make_shelf(model := copy.deepcopy(full_depth), folder)
    text = refusal(shelf, ("depth-lora", 1.0))
    assert "this model already is one" in text
    assert "64" not in text
    assert "FLUX.1-Fill" in refusal(shelf, ("fill", 1.0))
    with shelf.applied([("ink", 0.5), ("for-depth", 0.5)]):  # one reads 64 channels, one 128
        assert difference(call(model), call(full_depth)) > 0.1


def test_a_lora_for_64_channels_reads_the_latents_alone_as_in_diffusers(full_depth: Any, folder: Path) -> None:
    model = copy.deepcopy(full_depth).double()
    theirs = call(reference(model, {folder / "ink.safetensors": 0.7}, FluxControlPipeline))
    with make_shelf(model, folder).applied([("ink", 0.7)]):
        assert difference(call(model), theirs) < EXACT


# --- layouts ---


def kohya(generator: torch.Generator, *, alpha: float | None = None) -> dict[str, Tensor]:
    """sd-scripts' names for the small model. Its fused single-block layer is left out: diffusers cuts it at 3072."""
    outs = {"img_attn_qkv": 96, "txt_attn_qkv": 96, "img_attn_proj": 32, "img_mlp_0": 128, "txt_mod_lin": 192}
    layers = {f"lora_unet_double_blocks_0_{name}": (32, out) for name, out in outs.items()}
    layers |= {"lora_unet_single_blocks_0_linear2": (160, 32), "lora_unet_single_blocks_0_modulation_lin": (32, 96)}
    state = {}
    for name, (narrow, wide) in layers.items():
        state[f"{name}.lora_down.weight"] = torch.randn(4, narrow, generator=generator) / 6
        state[f"{name}.lora_up.weight"] = torch.randn(wide, 4, generator=generator) / 6
        state |= {f"{name}.alpha": torch.tensor(alpha)} if alpha else {}
    return state


def xlabs(generator: torch.Generator) -> dict[str, Tensor]:
    outs = {"qkv_lora1": 96, "qkv_lora2": 96, "proj_lora1": 32, "proj_lora2": 32}
    layers = {f"double_blocks.0.processor.{name}": (32, out) for name, out in outs.items()}
    layers |= {"single_blocks.0.processor.qkv_lora": (32, 96), "single_blocks.0.processor.proj_lora": (160, 32)}
    state = {}
    for name, (narrow, wide) in layers.items():
        state[f"{name}.down.weight"] = torch.randn(4, narrow, generator=generator) / 6
        state[f"{name}.up.weight"] = torch.randn(wide, 4, generator=generator) / 6
    return state


def peft_metadata(state: dict[str, Tensor], **config: Any) -> dict[str, str]:
    """What diffusers' training scripts write into the header beside the tensors."""
    config["target_modules"] = [
        key.removeprefix("transformer.").split(".lora_A")[0] for key in state if "lora_A" in key
    ]
    return {"format": "pt", "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in config.items()})}


def layouts(dev: Any) -> dict[str, tuple[dict[str, Tensor], dict[str, str] | None]]:
    generator = torch.Generator().manual_seed(11)
    plain = lora(dev, 12)
    mixed = lora(dev, 13, only="to_q") | lora(dev, 14, rank=2, only="ff.net") | lora(dev, 15, rank=6, only="norm")
    ranks = {"ff.net.2": 2, "net.0.proj": 2, "norm.linear": 6, "norm1.linear": 6, "norm1_context.linear": 6}
    ranks["norm_out.linear"] = 6
    alphas = {
        key.replace("lora_A.weight", "alpha"): torch.tensor(2.0 if "to_" in key else 8.0)
        for key in plain
        if "_A" in key
    }
    old = {k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in lora(dev, 16).items()}
    return {
        "kohya": (kohya(generator), None),
        "kohya-alpha": (kohya(generator, alpha=1.0), None),
        "comfyui": (
            {"diffusion_model.double_blocks.0.img_attn.proj.lora_down.weight": torch.randn(4, 32, generator=generator),
             "diffusion_model.double_blocks.0.img_attn.proj.lora_up.weight": torch.randn(32, 4, generator=generator)},
            None,
        ),
        "xlabs": (xlabs(generator), None),
        "mixed-ranks": (mixed, None),
        "alphas": (plain | alphas, None),
        "metadata": (plain, peft_metadata(plain, r=4, lora_alpha=10, alpha_pattern={"attn.to_k": 3}, use_rslora=True)),
        "mixed-metadata": (mixed, peft_metadata(mixed, r=4, lora_alpha=8, rank_pattern=ranks)),
        "old-diffusers": (old, None),
    }  # fmt: skip


@pytest.mark.parametrize(
    "layout",
    [
        "kohya",
        "kohya-alpha",
        "comfyui",
        "xlabs",
        "mixed-ranks",
        "alphas",
        "metadata",
        "mixed-metadata",
        "old-diffusers",
    ],
)
def test_every_layout_means_what_it_means_to_diffusers(dev: Any, tmp_path: Path, layout: str) -> None:
    state, metadata = layouts(dev)[layout]
    save_file(state, tmp_path / "style.safetensors", metadata=metadata)
    families = {"kohya": "kohya", "kohya-alpha": "kohya", "comfyui": "kohya", "xlabs": "xlabs"}
    assert read_header(tmp_path / "style.safetensors").layout == families.get(layout, "diffusers")
    model = copy.deepcopy(dev).double()
    theirs = call(reference(model, {tmp_path / "style.safetensors": 0.5}))
    without = call(model)
    with make_shelf(model, tmp_path).applied([("style", 0.5)]):
        ours = call(model)
    assert difference(ours, theirs) < EXACT
    assert difference(ours, without) > 0.01


@pytest.mark.parametrize("config", [{"r": 8}, {"r": 0}, {"r": 4, "lora_alpha": math.inf}, {"colour": "red"}])
def test_metadata_that_does_not_fit_is_called_damage(
    dev: Any, model: Any, tmp_path: Path, config: dict[str, Any]
) -> None:
    state = lora(dev, 1)
    save_file(state, tmp_path / "style.safetensors", metadata=peft_metadata(state, **config))
    assert refusal(make_shelf(model, tmp_path), ("style", 1.0)).startswith("lora style is damaged or not made for")


def test_tensors_that_are_not_used_are_noted(model: Any, tmp_path: Path) -> None:
    state = kohya(torch.Generator().manual_seed(1))
    state |= keys("lora_unet_img_in.lora_down.weight", width=64) | keys("lora_unet_img_in.lora_up.weight")
    text = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    state |= keys(f"{text}.lora_down.weight", f"{text}.lora_up.weight")
    save_file(state, tmp_path / "style.safetensors")
    with make_shelf(model, tmp_path).applied([("style", 0.5)]) as notes:
        pass
    assert notes == (
        "lora style: its 2 tensors for text encoders are not used",
        "lora style: 2 of its tensors have no use in diffusers and are not used here",
    )


# --- the published size: shapes alone, no memory ---


@pytest.fixture(scope="module")
def full_size() -> Any:
    with torch.device("meta"):
        return _frozen(FluxTransformer2DModel(guidance_embeds=True))


BFL_DOUBLE = {
    "img_mod.lin": (3072, 18432), "img_attn.qkv": (3072, 9216), "img_attn.proj": (3072, 3072),
    "img_mlp.0": (3072, 12288), "img_mlp.2": (12288, 3072),
}  # fmt: skip
BFL_SINGLE = {"modulation.lin": (3072, 9216), "linear1": (3072, 21504), "linear2": (15360, 3072)}
BFL_OUTER = {
    "img_in": (128, 3072), "txt_in": (4096, 3072), "time_in.in_layer": (256, 3072), "time_in.out_layer": (3072, 3072),
    "vector_in.in_layer": (768, 3072), "vector_in.out_layer": (3072, 3072), "guidance_in.in_layer": (256, 3072),
    "guidance_in.out_layer": (3072, 3072), "final_layer.linear": (3072, 64),
    "final_layer.adaLN_modulation.1": (3072, 6144),
}  # fmt: skip


def bfl_layers() -> dict[str, tuple[int, int]]:
    """(in, out) of every linear layer of FLUX.1 by black-forest-labs' names."""
    image = {f"double_blocks.{i}.{name}": shape for i in range(19) for name, shape in BFL_DOUBLE.items()}
    text = {name.replace(".img_", ".txt_"): shape for name, shape in image.items()}
    single = {f"single_blocks.{i}.{name}": shape for i in range(38) for name, shape in BFL_SINGLE.items()}
    return image | text | single | BFL_OUTER


@pytest.fixture(scope="module")
def bfl_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A control LoRA as published: every name of FLUX.1-Depth-dev-lora, but of rank 2."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    state = {}
    for name, (narrow, wide) in bfl_layers().items():
        state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = normal(2, narrow), normal(wide, 2)
        state[f"{name}.lora_B.bias"] = normal(wide)
    norms = [f"double_blocks.{i}.{side}_attn.norm" for i in range(19) for side in ("img", "txt")]
    for norm in norms + [f"single_blocks.{i}.norm" for i in range(38)]:
        state[f"{norm}.query_norm.scale"], state[f"{norm}.key_norm.scale"] = normal(128), normal(128)
    file = tmp_path_factory.mktemp("bfl") / "flux1-depth-dev-lora.safetensors"
    save_file(state, file)
    return file


def test_the_published_depth_lora_makes_a_depth_model_of_the_full_size(full_size: Any, bfl_file: Path) -> None:
    twin = depth_from_lora(full_size, bfl_file)
    branches = {path: module for path, module in twin.named_modules() if isinstance(module, Branch)}
    assert set(branches) == set(linears(full_size))
    assert (twin.config.in_channels, twin.config.out_channels, full_size.config.in_channels) == (128, 64, 64)
    shared = {id(parameter) for parameter in full_size.parameters()}
    own = sum(parameter.numel() for parameter in twin.parameters() if id(parameter) not in shared)
    assert own == 128 * 3072 + (19 * 4 + 38 * 2) * 128  # the image input and the norm scales


def test_black_forest_labs_names_reach_the_right_layers(full_size: Any, bfl_file: Path) -> None:
    shapes = layer_shapes(full_size) | {"x_embedder": (3072, 128)}
    header = read_header(bfl_file)
    assert (header.layout, header.is_control, header.input_width) == ("bfl-control", True, 128)
    weights = load_weights(header, shapes, torch.bfloat16)
    state = load_file(bfl_file)
    mlp = weights.layers["single_transformer_blocks.37.proj_mlp"]
    assert torch.equal(mlp.up, state["single_blocks.37.linear1.lora_B.weight"][9216:])
    assert torch.equal(mlp.down, state["single_blocks.37.linear1.lora_A.weight"])
    key = weights.layers["transformer_blocks.18.attn.add_k_proj"]
    assert torch.equal(key.up, state["double_blocks.18.txt_attn.qkv.lora_B.weight"][3072:6144])
    last, name = weights.layers["norm_out.linear"], "final_layer.adaLN_modulation.1"
    assert torch.equal(last.up, state[f"{name}.lora_B.weight"].roll(3072, dims=0))  # scale and shift change places
    assert last.bias is not None
    assert torch.equal(last.bias, state[f"{name}.lora_B.bias"].roll(3072))
    # diffusers 0.42 exchanges the halves of the rank as well, on this side only. It stays, to draw the same pictures.
    assert torch.equal(last.down, state[f"{name}.lora_A.weight"].roll(1, dims=0))
    norm = weights.norms["transformer_blocks.3.attn.norm_added_q.weight"]
    assert torch.equal(norm, state["double_blocks.3.txt_attn.norm.query_norm.scale"])
    assert (weights.notes, len(weights.norms)) == ((), 152)


def test_an_incomplete_control_lora_is_called_damaged(full_size: Any, bfl_file: Path, tmp_path: Path) -> None:
    state = load_file(bfl_file)
    del state["double_blocks.7.txt_mlp.2.lora_B.weight"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(UnusableLora, match=r"lora cut is damaged .*double_blocks.7.txt_mlp.2.lora_B.weight"):
        depth_from_lora(full_size, tmp_path / "cut.safetensors")


def test_kohyas_fused_layer_is_cut_into_four(full_size: Any, tmp_path: Path) -> None:
    name = "lora_unet_single_blocks_5_linear1"
    state = {f"{name}.lora_down.weight": torch.randn(3, 3072), f"{name}.lora_up.weight": torch.randn(21504, 3)}
    save_file(state | {f"{name}.alpha": torch.tensor(1.5)}, tmp_path / "style.safetensors")
    weights = load_weights(read_header(tmp_path / "style.safetensors"), layer_shapes(full_size), torch.float32)
    parts = [f"attn.to_{x}" for x in "qkv"] + ["proj_mlp"]
    pairs = [weights.layers[f"single_transformer_blocks.5.{part}"] for part in parts]
    ours = torch.cat([pair.up @ pair.down * pair.scale for pair in pairs])
    whole = state[f"{name}.lora_up.weight"] @ state[f"{name}.lora_down.weight"] * 0.5
    assert torch.allclose(ours, whole, atol=1e-5)


# --- depth from dev and a control LoRA ---


@pytest.mark.parametrize("scale", [1.0, 0.85, 0.0])
def test_depth_from_lora_is_what_diffusers_makes_of_a_copy(dev: Any, folder: Path, scale: float) -> None:
    file = folder / "depth-lora.safetensors"
    theirs = call(reference(dev, {file: scale}, FluxControlPipeline))
    assert difference(call(depth_from_lora(dev, file, scale)), theirs) < FLOAT32
    double = copy.deepcopy(dev).double()
    exact = call(reference(double, {file: scale}, FluxControlPipeline))
    assert difference(call(depth_from_lora(double, file, scale)), exact) < EXACT


def test_depth_from_lora_leaves_dev_as_it_was_and_shares_its_memory(dev: Any, folder: Path) -> None:
    values = {name: value.clone() for name, value in dev.state_dict().items()}
    velocity, config = call(dev), dict(dev.config)
    depth = depth_from_lora(dev, folder / "depth-lora.safetensors")
    call(depth)
    assert torch.equal(call(dev), velocity)
    assert dict(dev.config) == config
    assert dev.state_dict().keys() == values.keys()
    assert all(torch.equal(value, values[name]) for name, value in dev.state_dict().items())
    addresses = {parameter.data_ptr() for parameter in dev.parameters()}
    own = [path for path, parameter in depth.named_parameters() if parameter.data_ptr() not in addresses]
    assert all("norm_" in path or path == "x_embedder.base.weight" for path in own)


def test_loras_go_on_top_of_a_depth_lora(dev: Any, folder: Path) -> None:
    depth = depth_from_lora(copy.deepcopy(dev).double(), folder / "depth-lora.safetensors", 0.85)
    before = call(depth)
    shelf = make_shelf(depth, folder)
    files = {folder / "depth-lora.safetensors": 0.85, folder / "ink.safetensors": 0.25}
    with shelf.applied([("ink", 0.25)]):
        theirs = call(reference(copy.deepcopy(dev).double(), files, FluxControlPipeline))
        assert difference(call(depth), theirs) < EXACT
    assert torch.equal(call(depth), before)
    assert "already is one" in refusal(shelf, ("depth-lora", 1.0))


def test_depth_from_lora_refuses_what_makes_no_depth_model(dev: Any, full_depth: Any, model: Any, folder: Path) -> None:
    with pytest.raises(UnusableLora, match="lora ink is no control LoRA"):
        depth_from_lora(dev, folder / "ink.safetensors")
    with pytest.raises(UnusableLora, match=r"reads 128 input channels; .* reads 256"):
        depth_from_lora(full_depth, folder / "depth-lora.safetensors")
    with pytest.raises(ValueError, match="must be a number"):
        depth_from_lora(dev, folder / "depth-lora.safetensors", math.nan)
    make_shelf(model, folder)
    with pytest.raises(TypeError, match="before a LoraShelf"):
        depth_from_lora(model, folder / "depth-lora.safetensors")


# --- the server's side ---


def test_listing_a_folder_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys, pathlib; from pipelines.lora.files import available, read_header\n"
        f"names = [name for name, _ in available(pathlib.Path({str(folder)!r}))]\n"
        f"assert read_header(pathlib.Path({str(folder / 'fill.safetensors')!r})).input_width == 384\n"
        "assert not {'torch', 'diffusers'} & set(sys.modules), 'heavy imports'; print(*names)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == sorted(file.stem for file in folder.iterdir()), done.stderr


def test_the_limits_are_those_of_the_api() -> None:
    assert (shelf_module.MAX_LORAS, shelf_module.MAX_SCALE) == (4, 10.0)
