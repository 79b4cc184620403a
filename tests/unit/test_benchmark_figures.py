"""The benchmarks' arithmetic against values known from elsewhere."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks import throughput, tiers
from benchmarks.calls import depth_call
from benchmarks.ceiling import measure_tflops
from benchmarks.client import Reply
from benchmarks.compiled import OurCompiled, StockCompiled
from benchmarks.figures import percentile
from benchmarks.flops import Shape, step_tflop, tokens
from benchmarks.likeness import floats_of, psnr_db, ssim
from benchmarks.logs import WorkSpan
from benchmarks.overhead import Measured, row

FLUX = Shape(width=3072, blocks=57)


@pytest.mark.parametrize(("percent", "value"), [(1, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)])
def test_percentile_is_the_nearest_rank(percent: float, value: int) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == value


def test_percentile_of_few_values_is_the_largest() -> None:
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0


@pytest.mark.parametrize(
    ("width", "height", "tflop"), [(1024, 1024, 74.4), (512, 512, 21.5), (1344, 768, 73.1), (1440, 1440, 163)]
)
def test_work_of_a_step_is_what_is_known_of_flux(width: int, height: int, tflop: float) -> None:
    assert step_tflop(FLUX, width, height) == pytest.approx(tflop, rel=0.005)


def test_a_batch_counts_as_one_piece_of_computing() -> None:
    """Three jobs in one batch, then one alone: 2 s and 1 s of computing in 4 s."""
    spans = [WorkSpan("a", 10.0, 2.0), WorkSpan("b", 10.0, 1.9), WorkSpan("c", 10.001, 1.9), WorkSpan("d", 13.0, 1.0)]
    results = [{"images": [{}], "timings": {"denoise": 1.5}, "together": 3} for _ in range(3)]
    results.append({"images": [{}], "timings": {"denoise": 0.5}})
    figures = throughput.row(depth_call(), results, spans, throughput.Busy())
    assert (figures.wall_s, figures.pictures_per_s, figures.together_mean) == (4.0, 1.0, 2.0)
    assert (figures.computed_share, figures.step_share) == (0.75, 0.5)
    assert (figures.gap_median_ms, figures.gap_p99_ms) == (1000.0, 1000.0)


def test_a_shape_is_read_from_a_transformers_configuration() -> None:
    config = SimpleNamespace(num_attention_heads=24, attention_head_dim=128, num_layers=19, num_single_layers=38)
    assert Shape.of(SimpleNamespace(config=config)) == FLUX
    assert tokens(1024, 1024) == 4608


def test_the_ceiling_counts_what_it_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that gives a second to each look at it makes the figure the work of what ran between two looks."""
    looks = iter(range(100))
    monkeypatch.setattr("benchmarks.ceiling.time.perf_counter", lambda: float(next(looks)))
    shape, cpu = Shape(width=64, blocks=1), torch.device("cpu")
    measured = measure_tflops(shape, 64, 64, cpu, torch.float32, least_s=1.0)
    assert measured == pytest.approx(2 * 12 * 64**2 * (512 + 16) / 1e12)


def test_psnr_of_noise_does_not_wrap_around() -> None:
    """Independent uniform noise: mean squared difference 1/6, so 7.78 dB. Bytes that wrap would say 28."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(3, 256, 256, generator=generator) for _ in range(2))
    assert psnr_db(one, other) == pytest.approx(10 * math.log10(6), abs=0.05)


def test_psnr_of_a_known_difference() -> None:
    one = torch.full((3, 16, 16), 0.5)
    assert psnr_db(one, one + 0.1) == pytest.approx(20.0, abs=1e-3)


def test_equal_pictures_have_no_psnr_and_full_similarity() -> None:
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="infinite"):
        psnr_db(picture, picture.clone())
    assert ssim(picture, picture.clone()) == pytest.approx(1.0)
    assert ssim(picture, 1 - picture) < 0.1


def test_decoded_pictures_are_collected_before_rounding() -> None:
    class Vae:
        def decode(self, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            return (latents,)

    vae = Vae()
    with floats_of(vae) as pictures:
        vae.decode(torch.tensor([[[[-1.0, 0.001, 3.0]]]]), return_dict=False)
    vae.decode(torch.zeros(1, 1, 1, 1), return_dict=False)
    assert [picture.tolist() for picture in pictures] == [[[pytest.approx([0.0, 0.5005, 1.0])]]]


def test_overhead_is_wait_minus_computing_of_the_same_call() -> None:
    waits_and_parts = [(0.30, 0.10), (0.20, 0.15), (0.50, 0.20)]
    measured = Measured([Reply(b"", wait, part) for wait, part in waits_and_parts], [4.0, 2.0])
    bare = Measured([Reply(b"", 0.12, None)], [8.0])
    figures = row(depth_call(), "server", 1, measured, bare)
    assert (figures.median_ms, figures.p99_ms, figures.requests_per_s) == (300, 500, 3.0)
    assert figures.outside_the_worker_ms == 200
    assert figures.above_bare_ms == 180
    crowded = row(depth_call(), "server", 4, measured, None)
    assert crowded.above_bare_ms is None
    assert crowded.outside_the_worker_ms is None


def test_a_tier_is_asked_for_by_its_name() -> None:
    wanted = {"model": "flux-dev", "prompt": "", "width": 16, "height": 16, "steps": 1, "guidance": 1.0, "seed": 0}
    assert tiers.request_for("turbo", **wanted).tier == "turbo"
    with pytest.raises(ValueError, match="unknown tier imagined"):
        tiers.names("exact,imagined")


def test_compiled_blocks_are_eager_outside_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    class Block(torch.nn.Module):
        def forward(self) -> None:
            called.append("eager")

    class Transformer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def compile_repeated_blocks(self, **_: object) -> None:
            self.block._compiled_call_impl = lambda: called.append("compiled")  # type: ignore[assignment]

    transformer = Transformer()
    compiled = StockCompiled(transformer)
    transformer.block()
    with compiled.on():
        transformer.block()
    transformer.block()
    assert called == ["eager", "compiled", "eager"]


def test_our_compiled_blocks_are_eager_outside_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Block(torch.nn.Module):
        def forward(self) -> str:
            return "eager"

    def compile_blocks(transformer: SimpleNamespace) -> None:
        transformer.transformer_blocks[0].forward = lambda: "compiled"

    def compile_decoder(vae: SimpleNamespace) -> None:
        vae.decoder.forward = lambda: "compiled"

    monkeypatch.setattr("pipelines.speed.blocks.compile_blocks", compile_blocks)
    monkeypatch.setattr("pipelines.speed.blocks.compile_decoder", compile_decoder)
    block, decoder = Block(), Block()
    vae = SimpleNamespace(decoder=decoder, device=torch.device("cpu"))
    compiled = OurCompiled(SimpleNamespace(transformer_blocks=[block], single_transformer_blocks=[]), vae)
    before = block(), decoder()
    with compiled.on():
        during = block(), decoder()
    assert (before, during, (block(), decoder())) == (("eager",) * 2, ("compiled",) * 2, ("eager",) * 2)
