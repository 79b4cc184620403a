"""Fetches a picture that a client names by URL: from the public internet only, bounded in bytes, time and redirects.

Every connection, a redirect's too, is opened by `_CheckedDialling`. It resolves the name once, checks every answer and
dials exactly a checked address, so that what the name server says a second time cannot matter. The Host header, the TLS
server name and the name in the certificate stay those of the URL.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import httpcore2
import httpx2

from ..errors import InvalidInput, Unavailable
from .address_policy import refusal

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port to addresses. Raises OSError or UnicodeError when the name has none."""

PUBLIC_PORTS = frozenset({80, 443})

_HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?|[0-9a-f:.]*:[0-9a-f:.]*")
_HEADERS = [
    (b"User-Agent", b"flux-local-server"),
    (b"Accept", b"image/png, image/jpeg, image/webp, */*;q=0.1"),
    (b"Accept-Encoding", b"identity"),
    (b"Connection", b"close"),
]
_INSTEAD = "or send the picture itself, as base64 or as an upload."
_MALFORMED = f"it is not a complete http:// or https:// address. Correct it, {_INSTEAD}"
# One text for an unknown name, a blocked address, a closed port and a silent one, so that answers cannot map a network.
_UNREACHABLE = f"it could not be reached. Use an address that anyone on the internet can open, {_INSTEAD}"

log = logging.getLogger(__name__)
logging.getLogger("httpcore2").setLevel(logging.INFO)  # its DEBUG lines hold whole headers, a redirect's query included


class FetchRefused(InvalidInput):
    """A URL that gave no picture. The text begins "Invalid image URL: " and says what to do instead."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Invalid image URL: {reason}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPolicy:
    """What may be fetched, and its bounds. Host names are in lower case; IPv6 addresses stand in brackets.

    enabled: False refuses every URL.
    allow_hosts: when not empty, the only hosts fetched from: exact names, or "*.example.org" for every name below it.
    private_hosts: "host" (on ports 80 and 443) or "host:port", spelled as in the URL, that may be fetched from whatever
        their address is; they need no entry in allow_hosts.
    max_bytes: size of a picture as sent. idle_s: seconds without a byte. concurrency: fetches at one time.
    total_s: seconds for one fetch with its redirects; as long again may pass before its turn comes.
    """

    enabled: bool = True
    allow_hosts: tuple[str, ...] = ()
    private_hosts: tuple[str, ...] = ()
    max_bytes: int = 20 * 1024 * 1024
    total_s: float = 20.0
    idle_s: float = 5.0
    max_redirects: int = 3
    concurrency: int = 4

    def is_private_host(self, host: str, port: int) -> bool:
        """Whether `private_hosts` covers `host` at `port`."""
        name = f"[{host}]".lower() if ":" in host else host
        return f"{name}:{port}" in self.private_hosts or (port in PUBLIC_PORTS and name in self.private_hosts)

    def allows_host(self, host: str) -> bool:
        """Whether `allow_hosts` is empty or covers `host`."""
        name = f"[{host}]".lower() if ":" in host else host.removesuffix(".")
        below = (entry[1:] for entry in self.allow_hosts if entry.startswith("*."))
        return not self.allow_hosts or name in self.allow_hosts or name.endswith(tuple(below))


class Fetcher:
    """Fetches pictures under one policy, for one event loop.

    resolve: in place of the system's name resolution. ssl_context: in place of the system's certificate authorities.
    """

    def __init__(
        self, policy: FetchPolicy, *, resolve: Resolve | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self.policy = policy
        # Threads of its own: a lookup that hangs cannot be stopped, and must not hold those of the rest of the server.
        self._threads = ThreadPoolExecutor(policy.concurrency, thread_name_prefix="resolve")
        self._turns = asyncio.Semaphore(policy.concurrency)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl_context or httpx2.create_ssl_context(trust_env=False),
            max_connections=None,  # the turns bound them
            max_keepalive_connections=0,
            network_backend=_CheckedDialling(policy, resolve or partial(_resolve, self._threads)),
        )

    async def fetch(self, url: str) -> bytes:
        """What `url` gives, whatever it is.

        Raises FetchRefused when that cannot be had, and Unavailable when too many other fetches are before this one.
        """
        if not self.policy.enabled:
            raise FetchRefused("this server fetches no URLs. Send the picture itself, as base64 or as an upload.")
        async with self._turn():
            try:
                async with asyncio.timeout(self.policy.total_s):
                    return await self._follow(_parse(url))
            except TimeoutError:
                text = f"it took longer than {self.policy.total_s:g} s. Use a faster server, {_INSTEAD}"
                raise FetchRefused(text) from None

    async def aclose(self) -> None:
        """Closes the connections. Lookups under way end by themselves."""
        await self._pool.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.policy.total_s):
                await self._turns.acquire()
        except TimeoutError:
            raise Unavailable("Too many pictures are being fetched. Try again.", retry_after_s=5) from None
        try:
            yield
        finally:
            self._turns.release()

    async def _follow(self, url: httpx2.URL) -> bytes:
        for _ in range(self.policy.max_redirects + 1):
            self._check(url)
            answer = await self._get(url)
            if isinstance(answer, bytes):
                return answer
            scheme, url = url.scheme, _parse(answer, base=url)
            if (scheme, url.scheme) == ("https", "http"):
                raise FetchRefused("it redirects from https to http. Use the final address.")
        raise FetchRefused(f"it redirects more than {self.policy.max_redirects} times. Use the final address.")

    def _check(self, url: httpx2.URL) -> None:
        host, port = url.raw_host.decode("ascii"), url.port
        if port is None:
            port = 443 if url.scheme == "https" else 80
        if url.userinfo:
            raise FetchRefused(f"it holds a user name or password. Use an address without them, {_INSTEAD}")
        if self.policy.is_private_host(host, port):
            return
        if not self.policy.allows_host(host):
            raise FetchRefused(f"its host is not one that this server fetches from. Use one that is, {_INSTEAD}")
        if port not in PUBLIC_PORTS:
            raise FetchRefused(f"only ports 80 and 443 are fetched from. Use an address on them, {_INSTEAD}")

    async def _get(self, url: httpx2.URL) -> bytes | str:
        """The body of a good answer, or the Location of a redirect."""
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        headers = [(b"Host", url.netloc), *_HEADERS]
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), self.policy.idle_s)
        try:
            async with self._pool.stream("GET", target, headers=headers, extensions={"timeout": timeouts}) as answer:
                if answer.status in (301, 302, 303, 307, 308):
                    return _header(answer, b"location")
                _check_answer(answer)
                return await self._body(answer)
        except (httpcore2.ReadTimeout, httpcore2.WriteTimeout):
            raise FetchRefused(f"its server was silent for {self.policy.idle_s:g} s. Try again, {_INSTEAD}") from None
        except (httpcore2.ConnectError, httpcore2.TimeoutException):
            raise FetchRefused(_UNREACHABLE) from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError):
            raise FetchRefused(f"its server broke off its answer. Try again, {_INSTEAD}") from None

    async def _body(self, answer: httpcore2.Response) -> bytes:
        limit, length = self.policy.max_bytes, 0
        body: list[bytes] = []  # a buffer that grows would be moved, and be there twice meanwhile
        too_large = FetchRefused(f"the picture is larger than {limit / 2**20:.3g} MiB. Send a smaller one.")
        if int(_header(answer, b"content-length") or 0) > limit:
            raise too_large
        async with aclosing(answer.aiter_stream()) as parts:
            async for part in parts:
                length += len(part)
                if length > limit:
                    raise too_large
                body.append(part)
        return b"".join(body)


class _CheckedDialling(httpcore2.AsyncNetworkBackend):
    """Opens connections to checked addresses only. Names reach it undialled; nothing below it resolves any."""

    def __init__(self, policy: FetchPolicy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve
        self._dialler = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        for address in await self._addresses(host, port):
            try:
                return await self._dialler.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        raise httpcore2.ConnectError("no address answers")

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError("the name has no address") from error
        if not self._policy.is_private_host(host, port):
            for address in addresses:
                if reason := refusal(address):
                    log.info("not dialling %s: its address %s is %s", host, address, reason)
                    raise httpcore2.ConnectError("blocked")
        return addresses


async def _resolve(threads: ThreadPoolExecutor, host: str, port: int) -> Sequence[str]:
    lookup = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    return [str(answer[4][0]) for answer in await asyncio.get_running_loop().run_in_executor(threads, lookup)]


def _parse(text: str, base: httpx2.URL | None = None) -> httpx2.URL:
    try:
        url = httpx2.URL(text) if base is None else base.join(text)
        if url.scheme in ("http", "https") and _HOST.fullmatch(url.raw_host.decode("ascii")):
            return url
    except (httpx2.InvalidURL, ValueError):  # ValueError: lone surrogates, and odd characters in an IPv6 zone
        pass
    raise FetchRefused(_MALFORMED)


def _header(answer: httpcore2.Response, name: bytes) -> str:
    return b", ".join(value for key, value in answer.headers if key.lower() == name).decode("utf-8", "replace")


def _check_answer(answer: httpcore2.Response) -> None:
    if answer.status != 200:
        raise FetchRefused(f"its server answered with status {answer.status}. Use a working address, {_INSTEAD}")
    encoding = _header(answer, b"content-encoding").lower()
    if encoding not in ("", "identity"):
        raise FetchRefused(f"its server sends it compressed. Use the address of the picture file itself, {_INSTEAD}")
