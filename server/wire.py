"""uvicorn's HTTP protocol with the bounds that it lacks: on a request's head, on pipelining, on connections, on time.

What is refused here never becomes a request, so no key is asked for; the reply is the error envelope all the same.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

BODY_SHARE = 8
"""Bytes of framing that a chunked body may have for each byte in it; six is what one byte a chunk takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WireLimits:
    """connections: open at once; one more is refused with 503.

    head_bytes: of a request line with its headers, and of what else is no body. One received piece, at most 256 KiB,
        may hold more.
    pipelined: requests that a connection may send ahead.
    head_s: until a head is complete, from the connection's begin or the last reply's end.
    send_s: a reply may stand still for want of a reader.
    """

    connections: int = 512
    head_bytes: int = 64 * 1024
    pipelined: int = 16
    head_s: float = 30.0
    send_s: float = 60.0


def bounded_http(limits: WireLimits, on_refused: Callable[[str], None] = lambda _: None) -> Any:
    """What uvicorn makes a protocol with for each connection. on_refused: called with the code of each refusal."""
    return partial(BoundedHttp, limits=limits, on_refused=on_refused)


class BoundedHttp(HttpToolsProtocol):
    def __init__(self, *args: Any, limits: WireLimits, on_refused: Callable[[str], None], **named: Any) -> None:
        super().__init__(*args, **named)
        self._limits, self._on_refused = limits, on_refused
        self._framing_bytes = 0
        self._begun = False
        self._head_limit: asyncio.TimerHandle | None = None
        self._send_limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            text = f"This server has {self._limits.connections} connections open already. Try again in a moment."
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too_many_connections", text)
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        self._reply_moves()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._framing_bytes += len(data)
        super().data_received(data)
        if self._framing_bytes > self._limits.head_bytes and not self.transport.is_closing():
            self.send_400_response(f"The request's head is larger than {self._limits.head_bytes} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if len(self.pipeline) >= self._limits.pipelined:
            raise ValueError("too many requests sent ahead")  # the parser stops, and what it was fed is refused
        self._begun = True
        self._expect_head()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._framing_bytes, self._begun = 0, False
        self._head_came()

    def on_body(self, body: bytes) -> None:
        self._framing_bytes = max(0, self._framing_bytes - BODY_SHARE * len(body))
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reply_moves()
        self._send_limit = self.loop.call_later(self._limits.send_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reply_moves()

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, "invalid_input", msg)

    def _refuse(self, status: HTTPStatus, code: str, text: str) -> None:
        body = json.dumps({"error": text, "message": text, "code": code}).encode()
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *(["retry-after: 5"] if status is HTTPStatus.SERVICE_UNAVAILABLE else []),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()
        self._on_refused(code)

    def _expect_head(self) -> None:
        """From here on a complete head is due. One that is due already is not due any later."""
        if self._head_limit is None:
            self._head_limit = self.loop.call_later(self._limits.head_s, self._give_up)

    def _head_came(self) -> None:
        if self._head_limit is not None:
            self._head_limit.cancel()
            self._head_limit = None

    def _reply_moves(self) -> None:
        if self._send_limit is not None:
            self._send_limit.cancel()
            self._send_limit = None

    def _give_up(self) -> None:
        self._head_limit = None
        if self.transport.is_closing():
            return
        if self.flow.read_paused:  # what is missing may have come; it is not looked at before the reply under way ends
            self._expect_head()
        elif self._begun and (self.cycle is None or self.cycle.response_complete):
            text = f"The request's head did not arrive within {self._limits.head_s:g} s."
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", text)
        else:
            self.transport.close()
