"""The one tree of errors that reach a client.

ServerError
├── InvalidInput 400            a parameter or body that cannot be used
├── SafetyBlocked 400           every picture was flagged
├── Unauthorized 401 · Forbidden 403 · NotFound 404 · MethodNotAllowed 405
├── InsufficientCredits 406
├── RequestTimeout 408 · Conflict 409 · PayloadTooLarge 413
├── KeyReused 422               an idempotency key came back with another request
├── TooManyRequests 429
├── ModelFailed 500             the model or the engine broke, not the client
├── WorkerCrashed 502           the worker process died twice with this job
├── Unavailable 503             starting, draining, out of memory, disk floor
├── WaitTimeout 504             a blocking call waited longer than allowed
│   └── QueueTimeout · RunTimeout · StepTimeout   the job itself did
└── InsufficientStorage 507

Each class carries a machine-readable `code`, an HTTP status and whether trying again can help. A dialect owns the one
function that turns an error into its own body.
"""

from __future__ import annotations


class ServerError(Exception):
    """Something went wrong in the server. The log has the details under this request's id."""

    code = "internal_error"
    http_status = 500
    retryable = False

    def __init__(self, message: str | None = None, *, retry_after_s: int | None = None) -> None:
        self.message = message or (self.__doc__ or "").strip()
        self.retry_after_s = retry_after_s
        super().__init__(self.message)


class InvalidInput(ServerError):
    """The request cannot be used as it is."""

    code = "invalid_input"
    http_status = 400

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class SafetyBlocked(ServerError):
    """The safety checker flagged every generated image."""

    code = "safety_blocked"
    http_status = 400


class Unauthorized(ServerError):
    """Unauthorized."""

    code = "unauthorized"
    http_status = 401


class Forbidden(ServerError):
    """This key is not permitted to do that."""

    code = "forbidden"
    http_status = 403


class NotFound(ServerError):
    """Not found."""

    code = "not_found"
    http_status = 404


class MethodNotAllowed(ServerError):
    """This method is not allowed here."""

    code = "method_not_allowed"
    http_status = 405


class InsufficientCredits(ServerError):
    """Insufficient credits."""

    code = "insufficient_credits"
    http_status = 406


class RequestTimeout(ServerError):
    """The request's body did not arrive in time."""

    code = "request_timeout"
    http_status = 408


class Conflict(ServerError):
    """The job is not in a state in which that can be done."""

    code = "conflict"
    http_status = 409


class KeyReused(ServerError):
    """This Idempotency-Key was already used with another request. Use a new key for a new request."""

    code = "idempotency_key_reused"
    http_status = 422


class PayloadTooLarge(ServerError):
    """The request's body is too large."""

    code = "payload_too_large"
    http_status = 413


class TooManyRequests(ServerError):
    """Too many requests."""

    code = "too_many_requests"
    http_status = 429
    retryable = True


class ModelFailed(ServerError):
    """The model could not finish this picture."""

    code = "model_failed"
    http_status = 500


class WorkerCrashed(ServerError):
    """The worker process died twice while drawing this picture, so it is not tried again."""

    code = "worker_crashed"
    http_status = 502
    retryable = True


class Unavailable(ServerError):
    """The server cannot take this now."""

    code = "unavailable"
    http_status = 503
    retryable = True


class OutOfMemory(Unavailable):
    """The GPU ran out of memory with this picture. Ask for a smaller size or fewer outputs."""

    code = "out_of_memory"


class WaitTimeout(ServerError):
    """The picture was not ready in time."""

    code = "timeout"
    http_status = 504
    retryable = True


class QueueTimeout(WaitTimeout):
    """The job waited in the queue for longer than this server allows."""

    code = "queue_timeout"


class RunTimeout(WaitTimeout):
    """The job ran for longer than this server allows."""

    code = "run_timeout"


class StepTimeout(WaitTimeout):
    """The worker stopped making progress with this picture and was replaced."""

    code = "step_timeout"


class InsufficientStorage(ServerError):
    """The server's disk is nearly full; free some space in its data directory."""

    code = "insufficient_storage"
    http_status = 507
    retryable = True


JOB_ERRORS: dict[str, type[ServerError]] = {
    error.code: error
    for error in (
        SafetyBlocked,
        ModelFailed,
        WorkerCrashed,
        OutOfMemory,
        WaitTimeout,
        QueueTimeout,
        RunTimeout,
        StepTimeout,
        InsufficientStorage,
    )
}
"""Errors that a job can end in, by the code that its row holds."""


def job_error(code: str, message: str) -> ServerError:
    """The error that a failed job's row stands for: InvalidInput for `invalid_input`, ModelFailed for unknown codes."""
    if code == InvalidInput.code:
        return InvalidInput(message)
    return JOB_ERRORS.get(code, ModelFailed)(message)
