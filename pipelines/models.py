"""The models that the engine computes, as data: what each needs on disk and which limits hold for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model.

    repository: the hub name of its diffusers-layout folder.
    takes_control: True when a control image steers it (its transformer then reads 128 channels, not 64).
    """

    name: str
    repository: str
    takes_control: bool

    @property
    def transformer_in_channels(self) -> int:
        """Packed latent channels that the transformer reads (black-forest-labs/flux: img_in 64, depth 128)."""
        return 128 if self.takes_control else 64


FLUX_DEV = ModelSpec(name="flux-dev", repository="black-forest-labs/FLUX.1-dev", takes_control=False)
FLUX_DEPTH_DEV = ModelSpec(name="flux-depth-dev", repository="black-forest-labs/FLUX.1-Depth-dev", takes_control=True)

MODELS = {spec.name: spec for spec in (FLUX_DEV, FLUX_DEPTH_DEV)}
