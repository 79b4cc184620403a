"""A job in Segmind's words: status strings, metrics, result bodies and headers.

Field names and cases are those of Segmind's API pages and of what the Python SDK 1.3.0 reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pipelines.request import OutputFile
from server.accounts import MICRO
from server.jobs.model import Job, State
from server.jobs.service import Progress
from server.media.results import MEDIA_TYPES

DEMO_NOTICE = "Drawn with the built-in demo weights: colour textures made by code, not a picture of the prompt."

CANCELLED_TEXT = "The request was cancelled."

EXPOSED_HEADERS = (
    "x-remaining-credits",
    "x-cost",
    "x-request-id",
    "x-generation-time",
    "x-seed-value",
    "x-rate-limit-reset-at-utc",
    "x-output-metadata",
    "x-output-urls",
    "x-depth-map-url",
    "x-model",
    "x-tier",
    "x-prompt-upsampling",
    "x-prompt-unseen-tokens",
    "x-together",
    "x-safety-check",
    "x-safety-flagged",
    "x-demo-weights",
    "retry-after",
)


def status_word(job: Job) -> str:
    """QUEUED, PROCESSING, COMPLETED or FAILED.

    A job that went back to the queue because its worker died stays PROCESSING: for its caller, status only moves on.
    """
    if job.state is State.SUCCEEDED:
        return "COMPLETED"
    if job.state.final:
        return "FAILED"
    return "PROCESSING" if job.state is State.RUNNING or job.attempt else "QUEUED"


def status_code(job: Job) -> int:
    """422 for FAILED, 200 for everything else."""
    return 422 if status_word(job) == "FAILED" else 200


def submit_body(job: Job, base: str) -> dict[str, Any]:
    return {
        "request_id": job.id,
        "status": "QUEUED",
        "poll_url": f"{base}/v1/requests/{job.id}",
        **_urls(job, base),
    }


def status_body(job: Job, base: str, balance_micro_usd: int, progress: Progress | None = None) -> dict[str, Any]:
    """The light body that clients poll: no output in it. `progress`, while it runs, is an addition to Segmind's."""
    body: dict[str, Any] = {
        "status": status_word(job),
        "request_id": job.id,
        "metrics": metrics(job, balance_micro_usd),
        **_urls(job, base),
    }
    if body["status"] == "FAILED":
        body["error"] = error_text(job)
    if body["status"] == "PROCESSING" and progress is not None:
        body["progress"] = {
            "step": progress.step,
            "steps": progress.steps,
            "seconds_per_step": round(progress.step_s, 4),
        }
    return body


def result_body(job: Job, base: str, balance_micro_usd: int, *, demo: bool) -> dict[str, Any]:
    """The result; while there is none, and when there will be none, the status body."""
    body = status_body(job, base, balance_micro_usd)
    if job.result is None or body["status"] != "COMPLETED":
        return body
    images = [image_entry(image, base) for image in job.result.images]
    body |= {
        "output": images[0]["url"],
        "images": images,
        "seed": str(job.request.seed),
        "prompt": job.result.notes.get("prompt", job.request.prompt),
        "model": job.request.model,
        "tier": job.result.notes.get("tier", ""),
        "timings": {stage: round(seconds, 4) for stage, seconds in job.result.timings_s.items()},
    }
    if job.result.depth_map:
        body["depth_map"] = image_entry(job.result.depth_map, base)
    body["safety"] = {
        "check": job.result.notes.get("safety", "unavailable"),
        "flagged": job.result.notes.get("flagged", []),
    }
    if job.result.notes.get("loras"):
        body["lora_notes"] = job.result.notes["loras"]
    if job.result.notes.get("unseen_tokens"):
        body["prompt_unseen_tokens"] = job.result.notes["unseen_tokens"]
    if job.result.notes.get("together"):
        body["together"] = job.result.notes["together"]
    if demo:
        body["notice"] = DEMO_NOTICE
    return body


def json_body(job: Job, base: str, balance_micro_usd: int, encoded: list[str], *, demo: bool) -> dict[str, Any]:
    """v1's JSON form: the result with the pictures in it, a superset of every shape that clients read.

    encoded: the pictures as base64 without a data-URI prefix, in order. `image` is a list only for several.
    """
    return {
        **result_body(job, base, balance_micro_usd, demo=demo),
        "image": encoded[0] if len(encoded) == 1 else encoded,
        "infer_time": round(job.compute_s or 0.0, 4),
        "outputs": len(encoded),
        "image_format": job.request.output_format,
    }


def metrics(job: Job, balance_micro_usd: int) -> dict[str, Any]:
    """Seconds and USD; empty until the job is final, cost and balance only when it succeeded."""
    if not job.state.final:
        return {}
    figures: dict[str, Any] = {
        "inference_time": round(job.compute_s or 0.0, 4),
        "queue_time": round(job.queue_s or 0.0, 4),
        "total_time": round(job.total_s or 0.0, 4),
    }
    if job.state is State.SUCCEEDED:
        figures |= {"cost": job.price_micro_usd / MICRO, "remaining_credits": balance_micro_usd / MICRO}
    if job.attempt > 1:
        figures["retry_count"] = job.attempt - 1
    return figures


def headers(job: Job, base: str, balance_micro_usd: int, *, demo: bool, rate_full_in_s: float) -> dict[str, str]:
    """The headers of a v1 success. rate_full_in_s: until the caller's rate limit has forgotten what was sent."""
    assert job.result is not None
    images = job.result.images
    values = {
        "x-request-id": job.id,
        "x-remaining-credits": usd(balance_micro_usd),
        "x-cost": usd(job.price_micro_usd),
        "x-generation-time": f"{job.compute_s or 0.0:.4f}",
        "x-seed-value": str(job.request.seed),
        "x-rate-limit-reset-at-utc": (datetime.now(UTC) + timedelta(seconds=rate_full_in_s)).isoformat(
            timespec="seconds"
        ),
        "x-output-metadata": json.dumps({"height": images[0].height, "width": images[0].width, "samples": len(images)}),
        "x-model": job.request.model,
    }
    if len(images) > 1:
        values["x-output-urls"] = ", ".join(file_url(image, base) for image in images)
    if job.result.depth_map:
        values["x-depth-map-url"] = file_url(job.result.depth_map, base)
    notes = job.result.notes
    values["x-tier"] = notes.get("tier", "")
    values["x-safety-check"] = notes.get("safety", "unavailable")
    if notes.get("flagged"):
        values["x-safety-flagged"] = ", ".join(map(str, notes["flagged"]))
    if job.request.upsample_prompt:
        values["x-prompt-upsampling"] = "done" if "prompt" in notes else "unavailable; the prompt was used as it is"
    if notes.get("unseen_tokens"):
        values["x-prompt-unseen-tokens"] = str(notes["unseen_tokens"])
    if notes.get("together"):
        values["x-together"] = str(notes["together"])
    if demo:
        values["x-demo-weights"] = "true"
    return values


def image_entry(image: OutputFile, base: str) -> dict[str, Any]:
    """One picture as Segmind's data model lists it; `file_size` is text there."""
    return {
        "url": file_url(image, base),
        "content_type": MEDIA_TYPES[image.format],
        "file_name": image.file,
        "file_size": str(image.size_bytes),
        "width": image.width,
        "height": image.height,
        "seed": str(image.seed),
    }


def file_url(image: OutputFile, base: str) -> str:
    return f"{base}/files/{image.file}"


def error_text(job: Job) -> str:
    return CANCELLED_TEXT if job.state is State.CANCELLED else job.error_text or "The request failed."


def error_body(message: str, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The error envelope. The SDK shows the text of the top-level `error`, which must be a string."""
    return {"error": message, "message": message, **(fields or {})}


def usd(micro_usd: int) -> str:
    """Dollars as text without trailing zeros or exponent."""
    return f"{micro_usd / MICRO:.6f}".rstrip("0").rstrip(".")


def _urls(job: Job, base: str) -> dict[str, str]:
    return {
        "status_url": f"{base}/v2/requests/{job.id}/status",
        "response_url": f"{base}/v2/requests/{job.id}",
    }
