"""Sorting what went wrong in the worker: the request, memory, or a device that cannot be trusted any more."""

from __future__ import annotations

import gc
from typing import Literal

import torch

FaultKind = Literal["input", "out_of_memory", "fatal", "unknown"]
"""input: this request can never work. out_of_memory: memory may be free again once references are dropped.
fatal: the CUDA context is poisoned and only a new process helps. unknown: a self-test must tell."""

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


def classify(error: BaseException) -> FaultKind:
    """The kind of an exception that came out of the engine.

    After an illegal address, launch failure or device assert every further CUDA call in the process gives the same
    error (CUDA runtime API, cudaErrorIllegalAddress and its kin), so those are fatal. Out of memory is not.
    """
    if isinstance(error, BadRequest):
        return "input"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out_of_memory"
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
