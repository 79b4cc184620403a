"""Everything that crosses the line between the server and its worker: small, versioned, JSON-able dataclasses.

One message is one line of JSON. Pictures cross as files in the spool folder. The child knows nothing of its parent but
this file, so the same worker can serve another kind of queue on another machine.

    down   Load · Run · RunTogether · Prepare · Cancel · Shutdown
    up     Hello · Loading · Ready · Step · Drawn · Done · Failed · Fatal
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipelines.request import GenerationRequest, GenerationResult

PROTOCOL_VERSION = 5

Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Load these weights and warm up. Answered by Ready or Fatal.

    models: `weights.sources.ModelSources` as JSON, by model name; the folders are None where there is nothing to load.
    depth_estimator_name, depth_map_mode: as in `pipelines.depth_catalogue`; the mode may be "auto".
    metadata: write into each picture how it was made. memory_plan: a plan's name, or auto. memory_limit_bytes: of the
    device, None for all that is free. fast_tiers, compiled, attention, prepare_ahead, batching: as in
    `pipelines.assembly`. compile_cache: folder for what the compiler makes. fault_switches: let a prompt ask for a
    fault, as `pipelines.fault_switches` says; demo weights only.
    """

    version: int
    models: dict[str, dict[str, Any]]
    depth_estimator: str | None
    depth_estimator_name: str
    depth_map_mode: str
    safety_concepts: str | None
    nsfw_detector: str | None
    upsampler: str | None
    loras: str | None
    depth_lora: str | None
    depth_lora_scale: float
    spool: str
    metadata: bool
    device: str
    dtype: str
    memory_plan: str
    memory_limit_bytes: int | None
    fast_tiers: Switch
    compiled: Switch
    attention: str
    prepare_ahead: Switch
    batching: Switch
    compile_cache: str
    fault_switches: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Compute one request. `attempt` comes back in every message about it."""

    job: str
    attempt: int
    request: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTogether:
    """Compute these Runs, given as JSON, in one batch: all of one `pipelines.company`, at most as many as Ready says.

    Each is answered as if it had come alone. Where the batch fails as a whole, each is computed by itself.
    """

    runs: list[dict[str, Any]]

    @property
    def members(self) -> list[Run]:
        return [Run(**run) for run in self.runs]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """While a job runs: this one will probably be next. Its text, depth map and latents may be computed beforehand.

    It promises nothing and is not answered. The job's Run computes whatever is missing, and a newer Prepare takes the
    place of one that has not begun.
    """

    job: str
    request: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop this job before its next step. Answered by the job's Failed with kind "cancelled", or by its Done."""

    job: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """Leave once idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The libraries are imported; no model and no device is touched before Load comes."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """On the way to Ready. doing: what the worker is at, in words for the operator."""

    doing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Loaded and warmed up: one small generation per model has run.

    plan, plan_line: the memory plan's name, and what it means in one line. max_pixels: the largest picture it holds.
    takes_turns: whether models have to come to the device one after the other, so that a change between them costs.
    tiers: that requests may ask for, the default first. graphs: that were compiled in the warm-up. prepares: whether a
    Prepare is of use. together: most requests that may come in one RunTogether, 1 for never; together_tiers: the tiers
    that it may be done in.
    """

    version: int
    models: list[str]
    device: str
    safety_checker: bool
    load_s: float
    warmup_s: float
    plan: str
    plan_line: str
    max_pixels: int
    takes_turns: bool
    tiers: list[str]
    graphs: int
    prepares: bool
    together: int
    together_tiers: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`step` of `steps` is done; `step_s` seconds for this one. Not every step is told (`worker.steps`)."""

    job: str
    attempt: int
    step: int
    steps: int
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The job is done with the device: the next Run may come while its pictures are encoded. Done or Failed follows."""

    job: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Finished. The result's files lie in the spool's output folder. compute_s: seconds from Run to here, of a batch
    the whole time.

    plan: name of the memory plan that holds now. recompiles: graphs that were compiled since Ready. memory_bytes: of
    the device, by kind (allocated, reserved, peak of this job). hits, misses: of the caches, by name, since the last
    Done.
    """

    job: str
    attempt: int
    result: dict[str, Any]
    compute_s: float
    plan: str = ""
    recompiles: int = 0
    memory_bytes: dict[str, int] = field(default_factory=dict)
    hits: dict[str, int] = field(default_factory=dict)
    misses: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The job ended without pictures; the worker goes on.

    kind: input, safety, out_of_memory, not_finite, unknown or cancelled.
    message: for the client where the kind is input, safety or not_finite; else for the log, without prompt and folders.
    """

    job: str
    attempt: int
    kind: str
    message: str
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fatal:
    """This process cannot go on and leaves now.

    reason: load, device or protocol. message: for the log, without prompt and folders.
    """

    reason: str
    message: str
    job: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


Down = Load | Run | RunTogether | Prepare | Cancel | Shutdown
Up = Hello | Loading | Ready | Step | Drawn | Done | Failed | Fatal

_TYPES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Load,
        Run,
        RunTogether,
        Prepare,
        Cancel,
        Shutdown,
        Hello,
        Loading,
        Ready,
        Step,
        Drawn,
        Done,
        Failed,
        Fatal,
    )
}


class ProtocolError(ValueError):
    """A line that is no message of this protocol."""


def encode(message: Down | Up) -> bytes:
    """One message as one line of UTF-8 JSON with its newline."""
    return json.dumps({"type": type(message).__name__, **asdict(message)}, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Any:
    """The message that a line holds. Raises ProtocolError for anything else."""
    try:
        fields = json.loads(line)
        return _TYPES[fields.pop("type")](**fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"not a message of protocol {PROTOCOL_VERSION}: {line[:200]!r}") from error


def run_message(job: str, attempt: int, request: GenerationRequest) -> Run:
    return Run(job=job, attempt=attempt, request=request.to_json())


def prepare_message(job: str, request: GenerationRequest) -> Prepare:
    return Prepare(job=job, request=request.to_json())


def together_message(runs: Sequence[Run]) -> RunTogether:
    return RunTogether(runs=[asdict(run) for run in runs])


def result_of(message: Done) -> GenerationResult:
    return GenerationResult.from_json(message.result)
