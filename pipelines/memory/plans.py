"""Memory plans: where each part lives and in which precision, chosen from free memory. Torch-free.

A plan is one of a few recipes, best pictures first. `choose_plan` takes the first that fits the card and the host, with
room for one picture of 1024×1024; `Plan.max_pixels` says how large pictures may be.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from ..sizes import MATCH_INPUT_LIMIT
from .activations import (
    DENOISE_TOKEN_BYTES,
    DEPTH_BYTES,
    SAFETY_BYTES,
    TEXT_BYTES,
    TOKEN_PIXELS,
    WORKSPACE_BYTES,
    decode_bytes,
    denoise_bytes,
)
from .footprint import Footprint, Precision

REFERENCE_PIXELS = 1024 * 1024
"""What a plan must have room for."""

SMALL_PIXELS = 256 * 256
"""What the warm-up draws first."""

Residence = Literal["stay", "turns", "visit", "stream"]
"""stay: on the device all the time. turns: transformers, one at a time. visit: comes when it is needed and leaves
afterwards; T5 sends the transformer away meanwhile. stream: its blocks come one after the other, at every step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A way to hold the models. what: in words, for the operator."""

    name: str
    precision: Precision
    transformers: Residence
    text: Residence
    helpers: Residence
    what: str


_ON_DEMAND = "text encoders, depth estimator and safety checker come to the card when they are needed"

RECIPES = (
    Recipe(
        name="resident",
        precision="full",
        transformers="stay",
        text="stay",
        helpers="stay",
        what="everything stays on the card",
    ),
    Recipe(
        name="swap",
        precision="full",
        transformers="turns",
        text="stay",
        helpers="stay",
        what="flux-dev and flux-depth-dev take turns on the card, all else stays there",
    ),
    Recipe(
        name="lean",
        precision="full",
        transformers="turns",
        text="visit",
        helpers="visit",
        what=f"one transformer at a time on the card; {_ON_DEMAND}",
    ),
    Recipe(
        name="fp8-resident",
        precision="fp8",
        transformers="stay",
        text="stay",
        helpers="stay",
        what="transformers held in fp8, everything stays on the card",
    ),
    Recipe(
        name="fp8",
        precision="fp8",
        transformers="turns",
        text="visit",
        helpers="visit",
        what=f"transformers held in fp8, one at a time on the card; {_ON_DEMAND}",
    ),
    Recipe(
        name="fp8-all",
        precision="fp8-all",
        transformers="turns",
        text="visit",
        helpers="visit",
        what=f"transformers held in fp8 with their modulation, one at a time on the card; {_ON_DEMAND}",
    ),
    Recipe(
        name="nf4",
        precision="nf4",
        transformers="turns",
        text="visit",
        helpers="visit",
        what=f"transformers held in 4 bits (nf4), one at a time on the card; {_ON_DEMAND}",
    ),
    Recipe(
        name="stream",
        precision="full",
        transformers="stream",
        text="stream",
        helpers="visit",
        what="the blocks of the transformers and of T5 pass through the card at every step",
    ),
    Recipe(
        name="stream-fp8",
        precision="fp8-all",
        transformers="stream",
        text="stream",
        helpers="visit",
        what="the blocks of the transformers, held in fp8, and of T5 pass through the card at every step",
    ),
)
"""Best first. `stream` draws the same pictures as `resident` on a small card, but waits for the bus at every step."""

RESIDENT = RECIPES[0]

STREAMED_SHARE = 3 / 35
"""Of a streamed network on the card at one time: the block that computes, the next one, and one that leaves. A double
block of FLUX.1 is a 35th of it."""


class NoPlan(ValueError):
    """No memory plan fits this machine. The text says what would."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe with its bytes.

    device: on the card between requests and at its fullest, by component. peaks: of each stage of a 1024×1024 request,
    weights, activations and workspace together. host_bytes: kept in the host's memory for coming and going.
    max_pixels: the largest picture that fits the budget. ahead_pixels: the largest beside which the next request's
    inputs can be prepared, 0 where that cannot be. fast: whether there is room for the fast tiers' copies.
    """

    recipe: Recipe
    device: dict[str, int]
    peaks: dict[str, int]
    host_bytes: int
    budget_bytes: int
    max_pixels: int
    ahead_pixels: int
    fast: bool

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def peak_bytes(self) -> int:
        return max(self.peaks.values())

    def line(self) -> str:
        """The plan in one line for the operator."""
        return (
            f"{self.name}: {self.recipe.what}. {_gb(self.peak_bytes)} of {_gb(self.budget_bytes)} GB of the device at"
            f" 1024×1024, {_gb(self.host_bytes)} GB of the host; pictures up to {self.max_pixels / 1e6:.1f} megapixels"
        )


def make_plan(recipe: Recipe, footprint: Footprint, budget_bytes: int) -> Plan:
    """The bytes of this recipe for these models, whether they fit or not."""
    peaks = stage_peaks(recipe, footprint, REFERENCE_PIXELS)
    return Plan(
        recipe=recipe,
        device=_on_device(recipe, footprint),
        peaks=peaks,
        host_bytes=_host_bytes(recipe, footprint),
        budget_bytes=budget_bytes,
        max_pixels=_max_pixels(recipe, footprint, budget_bytes),
        ahead_pixels=_ahead_pixels(recipe, footprint, budget_bytes),
        fast=footprint.fast_copies,
    )


def choose_plan(
    footprint: Footprint,
    *,
    device_bytes: int,
    host_bytes: int,
    wanted: str = "auto",
    lacking: Collection[Precision] = (),
    one_memory: bool = False,
) -> Plan:
    """The first recipe that fits into free memory of the device and of the host, or the one that is `wanted`.

    lacking: precisions that cannot be had here, such as nf4 without bitsandbytes. one_memory: the device computes in
    the host's memory (CPU, Apple silicon), so nothing is gained by coming and going. A plan that is wanted by name is
    taken whether it fits or not: the operator may know better. Raises NoPlan when none fits, and ValueError for a name
    that is unknown or cannot be had.
    """
    if wanted != "auto":
        return _forced(make_plan(_named(wanted, lacking), footprint, device_bytes))
    usable = (recipe for recipe in RECIPES if recipe.precision not in lacking)
    plans = [
        make_plan(recipe, footprint, device_bytes)
        for recipe in usable
        if recipe.transformers == "stay" or not one_memory
    ]
    for plan in plans:
        if plan.peak_bytes <= device_bytes and plan.host_bytes <= host_bytes:
            return plan
    smallest = min(plans, key=lambda plan: plan.peak_bytes)
    raise NoPlan(
        f"{_gb(device_bytes)} GB of device memory and {_gb(host_bytes)} GB of host memory are free; the smallest plan,"
        f" {smallest.name}, takes {_gb(smallest.peak_bytes)} and {_gb(smallest.host_bytes)} GB. Free memory, serve one"
        " model only, or force a plan with FLUX_MEMORY_PLAN."
    )


def _forced(plan: Plan) -> Plan:
    """A plan that by these counts has no room for even a small picture is tried for all sizes: its operator said so."""
    return plan if plan.max_pixels >= SMALL_PIXELS else replace(plan, max_pixels=MATCH_INPUT_LIMIT**2)


def with_fast_copies(plan: Plan, footprint: Footprint, host_bytes: int) -> Plan:
    """The same plan with the fast tiers' copies of the matrices where they fit as well, else the plan as it is.

    Transformers that are held in fp8 need no copy, and of ones that are quantised otherwise none can be made.
    """
    if plan.recipe.precision == "nf4" or any(size.fixed_bytes for size in footprint.transformers.values()):
        return plan
    larger = make_plan(plan.recipe, replace(footprint, fast_copies=True), plan.budget_bytes)
    fits = larger.peak_bytes <= larger.budget_bytes and larger.host_bytes <= host_bytes
    return larger if fits and plan.recipe.transformers != "stream" else plan


def too_large(width: int, height: int, max_pixels: int) -> str:
    """What a client reads whose picture the plan has no room for."""
    return (
        f"a picture of {width}x{height} needs more memory than this server's plan leaves; it draws up to"
        f" {max_pixels / 1e6:.2f} megapixels. Ask for a smaller one (megapixels, aspect_ratio or the input's size)"
    )


def smaller_recipe(recipe: Recipe) -> Recipe | None:
    """The next recipe that holds the same weights in less of the device: what an out of memory can fall back to."""
    later = RECIPES[RECIPES.index(recipe) + 1 :]
    same = (
        other
        for other in later
        if other.precision == recipe.precision and "stream" not in (other.transformers, recipe.transformers)
    )
    return next(same, None)


def prepares_in_place(recipe: Recipe) -> bool:
    """Whether text encoders and depth estimator are there while a picture is drawn, so that nothing has to move."""
    return recipe.text == "stay" and recipe.helpers == "stay"


def stage_peaks(recipe: Recipe, footprint: Footprint, pixels: int) -> dict[str, int]:
    """The most bytes that each stage of a request has on the device."""
    transformer = _transformers_at_once(recipe, footprint)
    staying = footprint.vae_bytes + WORKSPACE_BYTES
    staying += footprint.text_bytes if recipe.text == "stay" else 0
    staying += footprint.helper_bytes if recipe.helpers == "stay" else 0
    visiting = recipe.helpers != "stay"
    value = footprint.value_bytes
    peaks = {
        "text": staying + TEXT_BYTES + _text_stage(recipe, footprint, transformer),
        "denoise": staying + transformer + denoise_bytes(pixels, value),
        "decode": staying + transformer + decode_bytes(pixels, value),
    }
    if footprint.depth_bytes:
        peaks["depth"] = staying + transformer + DEPTH_BYTES + (footprint.depth_bytes if visiting else 0)
    if footprint.safety_bytes:
        peaks["safety"] = staying + transformer + SAFETY_BYTES + (footprint.safety_bytes if visiting else 0)
    return peaks


def _text_stage(recipe: Recipe, footprint: Footprint, transformer: int) -> int:
    if recipe.text == "stay":
        return transformer
    if recipe.text == "stream":
        return transformer + round(footprint.text_bytes * STREAMED_SHARE)
    return footprint.text_bytes  # the transformer has left


def _transformers_at_once(recipe: Recipe, footprint: Footprint) -> int:
    sizes = footprint.transformer_bytes(recipe.precision)
    if recipe.transformers == "stream":
        return round(max(sizes.values()) * STREAMED_SHARE)
    if recipe.transformers == "turns" and not footprint.depth_lora_bytes:
        return max(sizes.values())
    # A depth model made by a LoRA shares its weights with flux-dev, so both are there together.
    return sum(sizes.values()) + footprint.depth_lora_bytes


def _on_device(recipe: Recipe, footprint: Footprint) -> dict[str, int]:
    staying = {"transformers": _transformers_at_once(recipe, footprint), "vae": footprint.vae_bytes}
    if recipe.text == "stay":
        staying["text encoders"] = footprint.text_bytes
    if recipe.helpers == "stay":
        staying["depth, safety"] = footprint.helper_bytes
    return staying


def _host_bytes(recipe: Recipe, footprint: Footprint) -> int:
    sizes = footprint.transformer_bytes(recipe.precision)
    total = 0
    if recipe.transformers != "stay":
        total += sum(sizes.values()) + footprint.depth_lora_bytes
    if recipe.text != "stay":
        total += footprint.text_bytes
    if recipe.helpers != "stay":
        total += footprint.helper_bytes
    return total


def _max_pixels(recipe: Recipe, footprint: Footprint, budget_bytes: int) -> int:
    """Where the fullest of the stages that grow with the picture meets the budget; both grow in a straight line."""
    empty = stage_peaks(recipe, footprint, 0)
    value = footprint.value_bytes
    per_pixel = {
        "denoise": DENOISE_TOKEN_BYTES * value / TOKEN_PIXELS,
        "decode": decode_bytes(1, value),
    }
    room = (int((budget_bytes - empty[stage]) / each) for stage, each in per_pixel.items())
    return max(min(room), 0)


def _ahead_pixels(recipe: Recipe, footprint: Footprint, budget_bytes: int) -> int:
    """As `max_pixels`, with room left for the preparations, which may last into the decoding."""
    if not prepares_in_place(recipe):
        return 0
    # The reference's encoding takes less than its decoding. Larger pictures are not encoded ahead.
    beside = max(TEXT_BYTES, DEPTH_BYTES, decode_bytes(REFERENCE_PIXELS, footprint.value_bytes))
    pixels = _max_pixels(recipe, footprint, budget_bytes - beside)
    return pixels if pixels >= SMALL_PIXELS else 0


def _named(name: str, lacking: Collection[Precision]) -> Recipe:
    recipe = next((recipe for recipe in RECIPES if recipe.name == name), None)
    if recipe is None:
        raise ValueError(f"memory plan {name!r} is not known; there are auto, {', '.join(r.name for r in RECIPES)}")
    if recipe.precision in lacking:
        raise ValueError(f"memory plan {name} needs bitsandbytes: pip install 'flux-local-server[nf4]'")
    return recipe


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f}"
