"""The shapes of `replies`, for the API's description. What is absent is absent rather than null."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from .catalogue import LIST_KEY

_exact = with_config(ConfigDict(extra="forbid"))


@_exact
class ErrorBody(TypedDict):
    """What went wrong and what to do. `code` is for programs; `error` and `message` are the same text."""

    error: str
    message: str
    code: str
    parameter: NotRequired[str]
    incident: NotRequired[str]


@_exact
class Submitted(TypedDict):
    request_id: str
    status: Literal["QUEUED"]
    poll_url: str
    status_url: str
    response_url: str


@_exact
class Figures(TypedDict):
    """Seconds and USD; empty until the job is final."""

    inference_time: NotRequired[float]
    queue_time: NotRequired[float]
    total_time: NotRequired[float]
    cost: NotRequired[float]
    remaining_credits: NotRequired[float]
    retry_count: NotRequired[int]


@_exact
class StepsDone(TypedDict):
    step: int
    steps: int
    seconds_per_step: float


class _OfJob(TypedDict):
    request_id: str
    metrics: Figures
    status_url: str
    response_url: str


@_exact
class Pending(_OfJob):
    status: Literal["QUEUED", "PROCESSING"]
    progress: NotRequired[StepsDone]


@_exact
class FailedJob(_OfJob):
    status: Literal["FAILED"]
    error: str


@_exact
class Done(_OfJob):
    """The light body of a finished request: no output in it."""

    status: Literal["COMPLETED"]


@_exact
class PictureEntry(TypedDict):
    url: str
    content_type: str
    file_name: str
    file_size: str
    width: int
    height: int
    seed: str


@_exact
class Safety(TypedDict):
    check: str
    flagged: list[int]


class _Completed(_OfJob):
    status: Literal["COMPLETED"]
    output: str
    images: list[PictureEntry]
    seed: str
    prompt: str
    model: str
    tier: str
    timings: dict[str, float]
    depth_map: NotRequired[PictureEntry]
    safety: Safety
    lora_notes: NotRequired[list[Any]]
    prompt_unseen_tokens: NotRequired[int]
    together: NotRequired[int]
    notice: NotRequired[str]


@_exact
class Completed(_Completed):
    """A result with the addresses of its pictures."""


@_exact
class Drawn(_Completed):
    """v1's JSON form: the result with the pictures in it, as base64; `image` is a list only for several."""

    image: str | list[str]
    infer_time: float
    outputs: int
    image_format: str


Credits = TypedDict("Credits", {"credits": float, "free-credits": float})
_exact(Credits)


@_exact
class Uploaded(TypedDict):
    file_urls: list[str]
    message: str


@_exact
class ModelInformation(TypedDict):
    title: str
    slug: str
    type: Literal["textToImage", "imageToImage"]
    description: str
    parameters: dict[str, Any]
    parameters_schema: dict[str, Any]
    is_depreciated: bool
    is_visible: bool
    is_new: bool
    thumbnail: None
    thumbnail_image: None
    default_image_output: None


ModelList = TypedDict("ModelList", {LIST_KEY: list[ModelInformation]})  # type: ignore[misc]
_exact(ModelList)

RESULT = Pending | Completed
STATUS = Pending | Done
