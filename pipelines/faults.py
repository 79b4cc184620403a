"""Sorting what went wrong in the worker: the request, memory, or a device that cannot be trusted any more."""

from __future__ import annotations

import gc
from typing import Literal

import torch

FaultKind = Literal["cancelled", "input", "safety", "not_finite", "out_of_memory", "fatal", "unknown"]
"""input: this request can never work. safety: every picture was flagged. not_finite: the model gave NaN or infinity.
out_of_memory: memory may be free again once references are dropped. fatal: the CUDA context is poisoned and only a new
process helps. unknown: none of these."""

_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "alloc_failed", "not enough memory")
_FATAL_TEXTS = (
    "cuda error",
    "device-side assert",
    "illegal memory access",
    "unspecified launch failure",
    "cudnn_status_execution_failed",
    "cublas_status_execution_failed",
    "uncorrectable ecc error",
)


class BadRequest(ValueError):
    """The request cannot be computed. The text tells the client why."""


class Cancelled(Exception):
    """The request was cancelled; it stopped between two steps."""


class Flagged(ValueError):
    """The safety classifiers flagged every picture of the request."""


class NotFinite(ArithmeticError):
    """The model gave values that are not finite, so there is no picture to show."""


_KINDS: tuple[tuple[type[BaseException], FaultKind], ...] = (
    (Cancelled, "cancelled"),
    (BadRequest, "input"),
    (Flagged, "safety"),
    (NotFinite, "not_finite"),
    (torch.OutOfMemoryError, "out_of_memory"),
    (MemoryError, "out_of_memory"),
)


def classify(error: BaseException) -> FaultKind:
    """The kind of an exception that came out of the engine.

    After an illegal address, launch failure or device assert every further CUDA call in the process gives the same
    error (CUDA runtime API, cudaErrorIllegalAddress and its kin), so those are fatal. Out of memory is not.
    """
    for type_, kind in _KINDS:
        if isinstance(error, type_):
            return kind
    text = str(error).lower()
    if isinstance(error, RuntimeError):
        if any(phrase in text for phrase in _MEMORY_TEXTS):
            return "out_of_memory"
        if isinstance(error, torch.AcceleratorError) or any(phrase in text for phrase in _FATAL_TEXTS):
            return "fatal"
    return "unknown"


def release_memory() -> None:
    """Gives unreferenced device memory back. Call it outside except blocks: a traceback holds the tensors it saw."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
