"""The figures of each benchmark, one class per kind of row. What a name means is said here and nowhere else.

Names carry their units. None means that it was not measured, or does not exist there; it never means zero.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from benchmarks.environment import Part

Side = Literal["server", "litserve", "fastapi", "bare engine"]


class OverheadRow(Part):
    """One side under one number of clients, each of which asks again when it has its answer.

    median_ms, p99_ms: what a client waited for its picture. above_bare_ms: median minus that of the bare engine in the
    same run; for one client only, since several wait for each other and not for the server. compute_ms: the worker's
    own median. outside_the_worker_ms: median over the calls of wait minus computing in that very call, one client only.
    """

    call: str
    side: Side
    clients: int
    requests: int
    median_ms: float
    p99_ms: float
    requests_per_s: float
    above_bare_ms: float | None = None
    compute_ms: float | None = None
    outside_the_worker_ms: float | None = None


class PollsRow(Part):
    """Status polls beside a running job, the server and its worker on a core each, the polling clients on the server's.

    job_alone_s, job_polled_s: medians of the job's computing without and with polls, in alternation. slowed: their
    ratio minus one. worker_processor_*: the same of the worker's processor time, which other programs cannot stretch.
    """

    call: str
    clients: int
    jobs: int
    polls: int
    polls_per_s: float
    poll_median_ms: float
    poll_p99_ms: float
    job_alone_s: float
    job_polled_s: float
    slowed: float
    worker_processor_alone_s: float
    worker_processor_polled_s: float
    worker_processor_more: float
    server_core: int
    worker_core: int


class LatencyRow(Part):
    """One model at one tier and size, beside stock diffusers on the same modules; all sides alternate in one run.

    offered: the engine has this tier; where it has not, nothing else is measured. compiled: the engine's own blocks.
    warm_s: median of whole requests with
    the prompt and control latents cached, from request to encoded file, every stage of which is in warm_stages_s.
    first_s, first_stages_s: the first request, with empty caches. stock_*: diffusers' pipeline given the same
    embeddings and control latents, to a PIL picture in memory; compiled by regions (compile_repeated_blocks), its
    compilation apart in stock_compile_s. ratio_to_*: warm_s over theirs, so less than 1 is faster. peak_memory_bytes:
    the most device memory that tensors took in the engine's requests; stock_peak_memory_bytes in diffusers'.
    ceiling_tflops: matrix products of this model's own shapes, measured in the same run. work_tflop: of one request.
    limit_s: work over ceiling, and limit_share: limit over warm_s. hosted_s: what the hosted service's page showed.
    """

    model: str
    tier: str
    offered: bool
    compiled: bool | None = None
    width: int
    height: int
    steps: int
    repeats: int = 0
    warm_s: float | None = None
    warm_stages_s: dict[str, float] = Field(default_factory=dict)
    first_s: float | None = None
    first_stages_s: dict[str, float] = Field(default_factory=dict)
    stock_eager_s: float | None = None
    stock_compiled_s: float | None = None
    stock_compile_s: float | None = None
    stock_compiled_note: str | None = None
    ratio_to_eager: float | None = None
    ratio_to_compiled: float | None = None
    peak_memory_bytes: int | None = None
    stock_peak_memory_bytes: int | None = None
    ceiling_tflops: float | None = None
    work_tflop: float | None = None
    limit_s: float | None = None
    limit_share: float | None = None
    hosted_s: float | None = None


class ThroughputRow(Part):
    """Jobs back to back through the real server, the queue never empty.

    computed_share: the workers' computing over the time from the first job's start to the last one's end. step_share:
    the same for denoising steps alone. gap_*_ms: what passes between two jobs' computing: from when a job was handed
    to the worker plus what it computed, to when the next one was handed to it.
    device_busy_percent: mean of nvidia-smi's utilisation, which counts any time in which a kernel ran.

    Jobs that were drawn in one batch count as one piece of computing. together_mean: jobs in a batch.
    """

    model: str
    width: int
    height: int
    steps: int
    jobs: int
    pictures: int
    wall_s: float
    pictures_per_s: float
    computed_share: float
    step_share: float
    gap_median_ms: float
    gap_p99_ms: float
    device_busy_percent: float | None = None
    together_mean: float | None = None


class LeverRow(Part):
    """Pictures a second from a full queue, by the median of `rounds` starts of the server with the setting off and on.

    ratio: on over off, so more than 1 is faster. together_mean: jobs in a batch, with it on. Each job has a prompt and
    a photo of its own.
    """

    setting: str
    model: str
    width: int
    height: int
    steps: int
    jobs: int
    rounds: int
    off_pictures_per_s: float
    on_pictures_per_s: float
    ratio: float
    together_mean: float | None = None


class ColdStartRow(Part):
    """One start of the server, all times from the start of its process.

    start: 1 is the first one, with an empty cache folder for compiled code; 2 keeps it. listening_s: the port is open.
    live_s: /health/live answers. worker_started_s: the worker process exists. imports_s: its interpreter and libraries;
    load_s: plan and weights; warmup_s: the small pictures after it. ready_s: /health/ready says so. first_picture_s: a
    first caller, who asked when it was ready, has the whole picture; first_request_s is what that caller waited.
    """

    start: int
    model: str
    listening_s: float
    live_s: float
    worker_started_s: float
    imports_s: float
    load_s: float
    warmup_s: float
    ready_s: float
    first_request_s: float
    first_picture_s: float


class LoadRow(Part):
    """One phase of a worker's way to its first picture, or one of the bounds beside them.

    bytes: of the values that were placed; of the files, for the plain read. cached_before: the largest part of the
    files' pages that was still in memory, 0…1, after the page cache was asked to drop them; 0 means a cold start.
    """

    phase: str
    bytes: int | None
    median_s: float
    least_s: float
    most_s: float
    bytes_per_s: int | None
    cached_before: float


class QualityRow(Part):
    """Pictures of one tier against the exact ones: same weights, prompts and seeds.

    reference: what they are compared with. identical: how many are equal to the last bit, in float before rounding to
    8 bits. psnr_db_*: of the floats in 0–1; None where all are identical, for it is infinite then. ssim_*: structural
    similarity of the floats (scikit-image). lpips_*: learned distance, where its weights are on this machine.
    """

    model: str
    tier: str
    reference: str
    offered: bool
    pictures: int = 0
    identical: int | None = None
    psnr_db_median: float | None = None
    psnr_db_worst: float | None = None
    ssim_median: float | None = None
    ssim_worst: float | None = None
    lpips_median: float | None = None
    lpips_worst: float | None = None
    note: str | None = None
