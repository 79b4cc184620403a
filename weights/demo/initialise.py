"""Fixed random parameters: the same seed gives the same numbers whatever was drawn before."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def draw(make: Callable[[], Model], *, seed: int) -> Model:
    """The module that `make` gives, in float32 and eval mode, with every parameter set from `seed`.

    Matrices and kernels are normal with standard deviation 1/√fan_in, which keeps activations near unit size through
    any depth; biases are 0, scales of norms 1. torch's global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        module = make().float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1 / math.sqrt(parameter[0].numel()), generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return module.requires_grad_(False)
