"""From folders and an operator's wishes to an engine that is ready: plan, load, quicken, warm up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from .company import batching_tiers, most_together
from .components import Folders, load_components, measure_folders, pick_device
from .depth_catalogue import DEFAULT_ESTIMATOR, resolve_mode
from .engine import Engine
from .faults import release_memory
from .heap import keep_freed_memory
from .memory.planning import Switch, plan_here
from .memory.plans import Plan
from .speed.attention import NATIVE, switches_for_all
from .speed.blocks import compile_no_more, compile_nothing, graphs_compiled
from .warmup import warm_up, warm_up_sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What an operator can decide. Each has "auto", which looks at the machine.

    device: auto, cpu, cuda, cuda:1, mps. dtype: auto, bfloat16, float32. memory_plan: auto or a plan's name.
    memory_limit_bytes: of the device. fast_tiers: fp8 copies for the fast tiers. compiled: blocks compiled before the
    engine is ready. attention: auto for the card's best kernel, native for torch's own choice. prepare_ahead: the next
    request's inputs are prepared while one is drawn, where the plan allows it. batching: small pictures drawn together,
    as `batching_tiers` says.
    """

    device: str = "auto"
    dtype: str = "auto"
    memory_plan: str = "auto"
    memory_limit_bytes: int | None = None
    fast_tiers: Switch = "auto"
    compiled: Switch = "auto"
    attention: str = "auto"
    prepare_ahead: Switch = "auto"
    batching: Switch = "auto"
    depth_estimator: str = DEFAULT_ESTIMATOR
    depth_map_mode: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """load_s, warmup_s: seconds. graphs: compiled by the end of the warm-up.

    together: how many small pictures may be drawn in one batch, 1 for never; together_tiers: in these tiers.
    """

    engine: Engine
    plan: Plan
    device: str
    load_s: float
    warmup_s: float
    graphs: int
    together: int
    together_tiers: tuple[str, ...]


def assemble(
    folders: Folders,
    wishes: Wishes,
    *,
    engine_type: type[Engine] = Engine,
    tell: Callable[[str], None] = lambda _: None,
) -> Assembled:
    """An engine that has drawn with every model, in every state that a request can ask for.

    tell: hears, in words for the operator, what is being done. Raises NoPlan, UnusableWeights, OSError, ValueError, and
    what torch raises.
    """
    start = time.monotonic()
    device = pick_device(wishes.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # events, counters and kernels without a device of their own go there
    plan, dtype = plan_here(
        partial(measure_folders, folders),
        device,
        wishes.dtype,
        wanted=wishes.memory_plan,
        limit_bytes=wishes.memory_limit_bytes,
        fast=wishes.fast_tiers,
    )
    compiled = _compiles(plan, wishes, device)
    tell(f"loading {', '.join(folders.models)} (plan {plan.name})")
    parts = load_components(
        folders,
        device=device,
        dtype=dtype,
        recipe=plan.recipe,
        fast=plan.fast,
        compiled=compiled,
        attention=wishes.attention,
        depth_estimator=wishes.depth_estimator,
        depth_map_mode=resolve_mode(wishes.depth_estimator, wishes.depth_map_mode),
    )
    ahead_pixels = plan.ahead_pixels if _prepares(wishes, device, dtype) else 0
    engine = engine_type(parts, max_pixels=plan.max_pixels, ahead_pixels=ahead_pixels)
    together_tiers = batching_tiers(wishes.batching, engine.tiers, on_card=device.type == "cuda")
    together = most_together(plan.max_pixels) if together_tiers else 1
    if device.type == "cpu":
        keep_freed_memory()
    loaded = time.monotonic()
    tell("drawing a small picture with each model" + (", compiling first" if compiled else ""))
    if compiled and not _compiled_warm_up(engine, tell, must=wishes.compiled == "on"):
        compiled = False
        compile_nothing()
        release_memory()
    if compiled:
        warm_up_sizes(engine, max_pixels=plan.max_pixels, together=together, together_tiers=together_tiers, tell=tell)
        compile_no_more()
    else:
        warm_up(engine)
    return Assembled(
        engine=engine,
        plan=plan,
        device=str(device),
        load_s=loaded - start,
        warmup_s=time.monotonic() - loaded,
        graphs=graphs_compiled(),
        together=together,
        together_tiers=together_tiers if together > 1 else (),
    )


def _compiles(plan: Plan, wishes: Wishes, device: torch.device) -> bool:
    # Streamed blocks move while they compute, which the compiler does not know of.
    if plan.recipe.transformers == "stream":
        return False
    return wishes.compiled == "on" or (wishes.compiled == "auto" and device.type == "cuda")


def _prepares(wishes: Wishes, device: torch.device, dtype: torch.dtype) -> bool:
    # On a processor both threads would share the cores, and nothing would be won.
    wanted = wishes.prepare_ahead == "on" or (wishes.prepare_ahead == "auto" and device.type == "cuda")
    return wanted and (wishes.attention == NATIVE or not switches_for_all(device, dtype))


def _compiled_warm_up(engine: Engine, tell: Callable[[str], None], *, must: bool) -> bool:
    """Whether the blocks can be compiled here: without a C compiler, triton or a kind of weights that it can read they
    cannot, and are slower, not useless. must: raise what is wrong instead."""
    try:
        warm_up(engine)
    except Exception as error:
        if must:
            raise
        tell(f"blocks cannot be compiled here ({type(error).__name__}: {str(error)[:200]}); going on without")
        return False
    return True
