"""Linear layers held in fp8: how near they stay, and that they multiply in the way they are told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipelines.fp8 import FP8, LARGEST, Fp8Linear, hold_linears, multiplying_in_fp8, to_fp8


def layer(inputs: int = 64, outputs: int = 96, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, dtype=dtype).requires_grad_(False)
    linear.weight.data *= torch.logspace(-4, 1, outputs)[:, None].to(dtype)  # rows of very different sizes
    return linear


def test_values_come_back_within_the_rounding_of_three_bits() -> None:
    values = torch.randn(32, 256) * torch.logspace(-6, 3, 32)[:, None]
    small, scale = to_fp8(values)
    back = small.float() * scale
    assert small.dtype == FP8
    largest = values.abs().amax(dim=1, keepdim=True)
    normal = values.abs() > largest / LARGEST * 2**-6  # below, fp8 counts in even steps
    assert float(((back - values).abs() / values.abs())[normal].max()) <= 2**-4
    assert bool(((back - values).abs() <= largest / LARGEST * 2**-9)[~normal].all())


def test_rows_of_zeros_and_the_largest_values_stay_finite() -> None:
    small, scale = to_fp8(torch.tensor([[0.0, 0.0], [3e38, -3e38]]))
    assert torch.equal(small[0].float(), torch.zeros(2))
    assert torch.isfinite(small.float() * scale).all()


def test_a_scale_for_each_row_is_nearer_than_a_bare_cast() -> None:
    linear = layer(dtype=torch.float32)
    held = Fp8Linear(linear)
    weight = linear.weight.detach()
    ours = (held.weight.float() * held.scale - weight).norm()
    bare = (weight.to(FP8).float() - weight).norm()
    print(f"distance {float(ours):.4f}, of a bare cast {float(bare):.4f}")
    assert ours < bare


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_of_multiplying_are_near_the_layer(dtype: torch.dtype) -> None:
    linear = layer(dtype=dtype)
    held = Fp8Linear(linear)
    x = torch.randn(2, 7, 64, dtype=dtype)
    wanted = linear(x).float()
    as_held = held(x).float()
    with multiplying_in_fp8(held):
        fast = held(x).float()
    assert held(x).dtype == dtype
    far = [float((one - wanted).norm() / wanted.norm()) for one in (as_held, fast)]
    print(f"relative distance: as held {far[0]:.4f}, in fp8 {far[1]:.4f}")
    assert 0 < far[0] < 0.05
    assert far[0] < far[1] < 0.08
    assert torch.equal(held(x).float(), as_held)


def test_the_multiplication_in_fp8_is_that_of_the_held_values() -> None:
    held = Fp8Linear(layer())
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    values, scales = to_fp8(x)
    wanted = (values.double() * scales) @ (held.weight.double() * held.scale).t() + held.bias
    with multiplying_in_fp8(held):
        got = held(x)
    torch.testing.assert_close(got.double(), wanted, rtol=0.01, atol=0.01)


def test_fp8_ends_with_the_block_also_after_an_error() -> None:
    module = nn.Sequential(layer(), nn.ReLU())
    hold_linears(module, lambda path: path == "0")
    with pytest.raises(RuntimeError), multiplying_in_fp8(module):  # noqa: PT012
        assert module[0].multiplies_in_fp8
        raise RuntimeError
    assert not module[0].multiplies_in_fp8


def test_the_layer_it_was_made_of_is_left_alone() -> None:
    linear = layer()
    before = linear.weight.clone()
    held = Fp8Linear(linear)
    assert torch.equal(linear.weight, before)
    assert held.bias is linear.bias
