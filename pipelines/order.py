"""Requests on their way through the engine: what they bring, what became of them, and several that go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch

from .control import Control
from .faults import BadRequest, Cancelled, Flagged, NotFinite
from .picture import UnusablePicture
from .request import GenerationRequest
from .source import Source
from .text import EncodedPrompt
from .watch import StepReport, Watch


@dataclass(frozen=True, slots=True)
class Drawn:
    """One picture, uint8 [H, W, 3] on the CPU; `index` is its place in the request.

    encoded: its file, where somebody makes one while the engine goes on.
    """

    index: int
    pixels: torch.Tensor
    encoded: Future[bytes] | None = None


@dataclass(slots=True)
class Generated:
    """What a request gave.

    images: in order of their index; flagged ones are left out, and their indexes are in `flagged`.
    depth_map: uint8 [H, W, 3] on the CPU, when it was asked for. prompt: what was drawn, rewritten or not.
    safety: "checked", "off" (the request said so) or "unavailable" (no classifiers are loaded). tier: that ran.
    together: how many requests were drawn in one batch with this one, itself included.
    """

    prompt: str
    images: list[Drawn] = field(default_factory=list)
    depth_map: torch.Tensor | None = None
    flagged: tuple[int, ...] = ()
    safety: str = "unavailable"
    unseen_tokens: int = 0
    lora_notes: tuple[str, ...] = ()
    tier: str = ""
    together: int = 1
    timings_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What all images of a request share."""

    text: EncodedPrompt
    control: Control | None
    init_latents: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request with its pictures and whoever follows it.

    on_step is called after each step; cancelled is asked before each step and between stages. encode is called with
    each picture as soon as there are pixels, its safety not known yet, and with what is known of the whole so far.
    """

    request: GenerationRequest
    control_image: Source | None = None
    init_image: Source | None = None
    on_step: Callable[[StepReport], None] = lambda _: None
    cancelled: Callable[[], bool] = lambda: False
    encode: Callable[[Generated, int, torch.Tensor], Future[bytes] | None] = lambda _generated, _index, _pixels: None


class NobodyLeft(Exception):
    """Every order of a group has ended before its time."""


class Order:
    """One request under way.

    request: as it will be drawn. conditions, generated: once it is prepared. error: why it ended without pictures.
    """

    conditions: Conditions
    generated: Generated

    def __init__(self, asked: Asked, device: torch.device) -> None:
        self.asked, self.request = asked, asked.request
        steps = (self.request.steps - self.request.first_step) * self.request.num_outputs
        self.watch = Watch(steps, asked.on_step, asked.cancelled, device)
        self.error: Exception | None = None

    @contextmanager
    def judged(self) -> Iterator[None]:
        """What concerns this request alone ends it and nothing else. Every other exception is raised."""
        try:
            yield
        except (BadRequest, Cancelled, Flagged, NotFinite) as error:
            # An exception that is kept would keep, by its traceback, the tensors that it saw.
            self.error = error.with_traceback(None)
        except UnusablePicture as error:
            self.error = BadRequest(f"{'control_image' if self.asked.control_image else 'image'} {error}")

    def outcome(self) -> Generated | Exception:
        return self.error or self.generated


class Group:
    """Orders that are denoised together; those that ended are not among `orders` any more."""

    def __init__(self, orders: Sequence[Order]) -> None:
        self.orders = list(orders)

    def obey(self) -> list[int]:
        """Lets go of the orders that were cancelled or have ended. Returns the places of the others among those before.

        Raises NobodyLeft.
        """
        for order in self.orders:
            with order.judged():
                order.watch.obey()
        places = [place for place, order in enumerate(self.orders) if order.error is None]
        self.orders = [self.orders[place] for place in places]
        if not self.orders:
            raise NobodyLeft
        return places

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of all at once; each has its whole time. Raises NobodyLeft."""
        self.obey()
        with ExitStack() as stack:
            for order in self.orders:
                stack.enter_context(order.watch.timed(name))
            yield

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step of all is ordered in the block."""
        with ExitStack() as stack:
            for order in reversed(self.orders):  # they report in order, since they leave the other way round
                stack.enter_context(order.watch.step())
            yield

    def finish_steps(self) -> None:
        for order in self.orders:
            order.watch.finish_steps()

    def refuse(self, error: BadRequest) -> None:
        """Ends all for a reason that they share."""
        for order in self.orders:
            order.error = error.with_traceback(None)
