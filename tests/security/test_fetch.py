"""Fetching a client's URL reaches the public internet only, and ends in time whatever the other side does."""

import asyncio
import contextlib
import gzip
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpcore2
import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.errors import InvalidInput, Unavailable
from server.media.fetch import Fetcher, FetchPolicy, FetchRefused

UNREACHABLE = "Invalid image URL: it could not be reached."
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npicture"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n"

NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody. Reading the system's authorities takes longer than most of these tests."""

NAMES = {
    "private.test": ["10.0.0.1"],
    "loopback.test": ["127.0.0.1"],
    "six.test": ["::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "nat64.test": ["64:ff9b::7f00:1"],
    "metadata.test": ["169.254.169.254"],
    "mixed.test": ["93.184.216.34", "127.0.0.1"],
    "mixed-first.test": ["127.0.0.1", "93.184.216.34"],
    "mixed-six.test": ["2606:2800:220:1::1", "fd00::1"],
    "zone.test": ["fe80::1%lo"],
    "odd.test": ["127.1"],
    "empty.test": [],
}

ODD_HOSTS = """
127.0.0.1 127.1 127.0.1 127.0.0.2 127.255.255.254 127.000.000.001 2130706433 0x7f000001 0x7F.1 0x7f.0.0.1 0177.1
0177.0.0.1 017700000001 0177.0.0x1 0 0x0 0.0.0.0 localhost LOCALHOST localhost. 127.0.0.1. 127。0。0。1 １２７.0.0.1
①②⑦.0.0.1 locaⓛhost 127.0.0.1%00.public.test 127%2e0%2e0%2e1 %31%32%37.0.0.1 %6cocalhost 127.0.0.1\\ 1e3 127..1
[::1] [::] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1] [::ffff:0:127.0.0.1] [64:ff9b::7f00:1]
[64:ff9b:1::127.0.0.1] [2002:7f00:1::] [2001:0:4136:e378:8000:63bf:80ff:fffe] [2a00:1450::5efe:7f00:1] [fc00::1]
[fd00:ec2::254] [fe80::1] [fe80::1%25lo] [fe80::1%lo] [::1%25lo] [fec0::1] [ff02::1] [::1 [] [127.0.0.1]
10.0.0.1 172.16.0.1 192.168.0.1 169.254.169.254 0xa9fea9fe 2852039166 169.254.43518 100.64.0.1 100.100.100.200
168.63.129.16 192.0.0.192 198.18.0.1 192.0.2.1 203.0.113.1 224.0.0.1 240.0.0.1 255.255.255.255
user@127.0.0.1 user:word@127.0.0.1 public.test@127.0.0.1 public.test:80@127.0.0.1 a@b@127.0.0.1 @127.0.0.1
127.0.0.1\\@public.test public.test\\@127.0.0.1
"""
HOSTILE_HOSTS = [
    *ODD_HOSTS.split(),
    *NAMES,
    "unknown.test",
    "a" * 64 + ".test",
    ("a" * 60 + ".") * 5 + "test",
    "-",
    ".",
]

HOSTILE_URLS = [
    *(f"http://{host}:PORT/picture.png" for host in HOSTILE_HOSTS),
    "https://127.0.0.1:PORT/",
    "https://loopback.test:PORT/",
    *(f"{scheme}://127.0.0.1:PORT/" for scheme in ("ftp", "gopher", "dict", "ws", "wss", "ldap", "unix", "httpx", "")),
    "file:///etc/passwd",
    "file://127.0.0.1:PORT/etc/passwd",
    "data:text/plain,hello",
    "//127.0.0.1:PORT/",
    "127.0.0.1:PORT/",
    "http:127.0.0.1:PORT/",
    "http:/127.0.0.1:PORT/",
    "http:///127.0.0.1:PORT/",
    "http:\\\\127.0.0.1:PORT\\",
    "http://:PORT/",
    "http://",
    "",
    " http://127.0.0.1:PORT/",
    "http://127.0.0.1:PORT/\r\nHost: public.test",
    "http://127.0.0.1\t:PORT/",
    "http://127.0.0.1:PORT" + "/a" * 40_000,
    *(f"http://public.test:{port}/" for port in ("22", "6379", "8080", "0", "-1", "65536", "٨٠80", "80x", "80:80")),
]


async def resolve(host: str, port: int) -> list[str]:
    """The names of these tests, and what the system makes of odd spellings of an address."""
    if host in NAMES:
        return NAMES[host]
    if host.endswith("test"):
        raise socket.gaierror("unknown name")
    return [str(answer[4][0]) for answer in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


async def fetched(
    url: str, *, resolve: Any = resolve, ssl_context: ssl.SSLContext | None = NO_AUTHORITIES, **bounds: Any
) -> bytes:
    fetcher = Fetcher(FetchPolicy(**bounds), resolve=resolve, ssl_context=ssl_context)
    try:
        return await fetcher.fetch(url)
    finally:
        await fetcher.aclose()


class Trap:
    """Listens on every address of this machine and must never be connected to."""

    def __init__(self) -> None:
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        self._socket = socket.create_server(("", 0), family=family, dualstack_ipv6=family == socket.AF_INET6)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]

    def connections(self) -> int:
        """Connections since the last call; the kernel has completed them without any help of ours."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.accept()[0].close()
                count += 1
        return count

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trap]:
    """A listener whose port counts as a public one, so that nothing but the address can save it."""
    trap = Trap()
    monkeypatch.setattr("server.media.fetch.PUBLIC_PORTS", frozenset({80, 443, trap.port}))
    yield trap
    trap.close()


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every address that a connection is attempted to; none of them is."""
    seen: list[tuple[str, int]] = []

    async def connect_tcp(_: Any, host: str, port: int, *__: Any) -> httpcore2.AsyncNetworkStream:
        seen.append((host, port))
        raise httpcore2.ConnectError("closed")

    monkeypatch.setattr(httpcore2.AnyIOBackend, "connect_tcp", connect_tcp)
    return seen


Answer = bytes | Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Site:
    """A web server on loopback with one answer per path, and for every other path the one of "*"."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        self.answers = answers
        self.heads: list[str] = []
        self.port = 0
        self.open = 0
        self.most_open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            await self.answer(self.heads[-1].split()[1], reader, writer)
        self.open -= 1
        writer.close()

    async def answer(self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = self.answers.get(path.partition("?")[0], self.answers.get("*", b""))
        if isinstance(answer, bytes):
            writer.write(answer)
        else:
            await answer(reader, writer)
        await writer.drain()

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def fetched(self, path: str = "/", **bounds: Any) -> bytes:
        return await fetched(self.url(path), private_hosts=(f"127.0.0.1:{self.port}",), **bounds)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def site(answer: Answer = OK, *, tls: ssl.SSLContext | None = None, **answers: Answer) -> AsyncIterator[Site]:
    site = Site({"*": answer} | {f"/{path}": value for path, value in answers.items()})
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        await site.until(lambda: site.open == 0)


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


def with_header(header: str, body: bytes = b"picture") -> bytes:
    return f"HTTP/1.1 200 OK\r\n{header}\r\n\r\n".encode() + body


def refused(answer: Answer, text: str, **bounds: Any) -> Site:
    """Fetches the answer, which must be refused with that text within the time limit and a second."""

    async def run() -> Site:
        async with site(answer) as host:
            start = time.monotonic()
            with pytest.raises(FetchRefused, match=rf"^Invalid image URL: {text}"):
                await host.fetched(**bounds)
            assert time.monotonic() - start <= bounds.get("total_s", 1.0) + 1
            return host

    return asyncio.run(run())


# Addresses


def test_there_are_enough_hostile_urls() -> None:
    assert len(set(HOSTILE_URLS)) == len(HOSTILE_URLS) >= 60


def test_the_trap_sees_connections_by_every_loopback_name(trap: Trap) -> None:
    for host in ("127.0.0.1", "localhost", "0.0.0.0"):
        socket.create_connection((host, trap.port)).close()
    assert trap.connections() == 3


@pytest.mark.parametrize("url", HOSTILE_URLS, ids=lambda url: ascii(url)[:60])
def test_hostile_urls_are_refused_and_connect_to_nothing(url: str, trap: Trap) -> None:
    with pytest.raises(FetchRefused, match=r"^Invalid image URL: .+\. [A-Z].+\.$"):
        asyncio.run(fetched(url.replace("PORT", str(trap.port))))
    assert trap.connections() == 0


def test_hostile_urls_do_not_get_as_far_as_dialling(trap: Trap, dialled: list[tuple[str, int]]) -> None:
    async def run() -> None:
        for url in HOSTILE_URLS:
            with contextlib.suppress(FetchRefused):
                await fetched(url.replace("PORT", str(trap.port)))

    asyncio.run(run())
    assert dialled == []


def test_a_public_name_is_resolved_once_and_dialled_by_the_checked_address(dialled: list[tuple[str, int]]) -> None:
    answers = iter([["93.184.216.34", "2606:2800:220:1::1"], ["127.0.0.1"], ["127.0.0.1"]])

    async def rebinding(host: str, port: int) -> list[str]:
        return next(answers)

    with pytest.raises(FetchRefused, match=UNREACHABLE):
        asyncio.run(fetched("https://public.test/a.png", resolve=rebinding))
    assert dialled == [("93.184.216.34", 443), ("2606:2800:220:1::1", 443)]
    assert next(answers) == ["127.0.0.1"]


def test_blocked_closed_and_unknown_read_the_same(trap: Trap) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closing:
        closed = f"127.0.0.1:{closing.getsockname()[1]}"
    texts = set()
    for url in (f"http://127.0.0.1:{trap.port}/", f"http://{closed}/", "http://unknown.test/", "http://private.test/"):
        with pytest.raises(FetchRefused) as caught:
            asyncio.run(fetched(url, private_hosts=(closed,)))
        texts.add(caught.value.message)
    assert len(texts) == 1


def test_the_system_resolver_is_used_by_default(trap: Trap) -> None:
    for host in ("localhost", "127.1"):
        with pytest.raises(FetchRefused, match=UNREACHABLE):
            asyncio.run(fetched(f"http://{host}:{trap.port}/", resolve=None))
    assert trap.connections() == 0


def test_environment_proxies_are_not_used(trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{trap.port}")

    async def run() -> bytes:
        async with site() as host:
            return await host.fetched()

    assert asyncio.run(run()) == b"picture"
    assert trap.connections() == 0


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), st.tuples(st.text(), st.text()).map(lambda parts: f"http://{parts[0]}:80/{parts[1]}")))
@example("http://[fe80::1%ü]/")
@example("http://xn--a/")
@example("http://xn--ü.test/")
@example("http://\ud800/")
@example("http://a/\ud800?\ud800")
@example("http://a:" + "9" * 5000)
def test_whatever_text_stands_for_a_url_is_refused_as_one(url: str) -> None:
    async def nowhere(host: str, port: int) -> list[str]:
        raise socket.gaierror("unknown name")

    policies: tuple[dict[str, Any], ...] = ({}, {"allow_hosts": ("a",)}, {"private_hosts": ("a",)})
    for bounds in policies:
        with pytest.raises(FetchRefused):
            asyncio.run(fetched(url, resolve=nowhere, **bounds))


# Hosts and ports


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://user@8.8.8.8/", "it holds a user name or password"),
        ("https://user:word@8.8.8.8/", "it holds a user name or password"),
        ("http://8.8.8.8:8080/", "only ports 80 and 443 are fetched from"),
        ("https://8.8.8.8:22/", "only ports 80 and 443 are fetched from"),
        ("http://8.8.8.8:0/", "only ports 80 and 443 are fetched from"),
        ("ftp://8.8.8.8/", "it is not a complete http:// or https:// address"),
    ],
)
def test_public_addresses_are_not_dialled_for_other_reasons(
    url: str, text: str, dialled: list[tuple[str, int]]
) -> None:
    with pytest.raises(FetchRefused, match=f"^Invalid image URL: {text}"):
        asyncio.run(fetched(url))
    assert dialled == []


@pytest.mark.parametrize("url", ["http://8.8.8.8/", "HTTP://8.8.8.8:80/", "http://8.8.8.8:443", "http://134744072/"])
def test_public_addresses_are_dialled(url: str, dialled: list[tuple[str, int]]) -> None:
    with pytest.raises(FetchRefused, match=UNREACHABLE):
        asyncio.run(fetched(url))
    assert [host for host, _ in dialled] == ["8.8.8.8"]


def test_private_hosts_are_exact_about_name_and_port() -> None:
    policy = FetchPolicy(private_hosts=("minio:9000", "files.lan", "[fd00::1]:81"))
    reached = [("minio", 9000), ("files.lan", 80), ("files.lan", 443), ("FD00::1", 81)]
    assert all(policy.is_private_host(*place) for place in reached)
    refused = [
        ("minio", 80),
        ("minio", 90),
        ("files.lan", 22),
        ("a.files.lan", 80),
        ("fd00::1", 80),
        ("fd00::1:81", 80),
    ]
    assert not any(policy.is_private_host(*place) for place in refused)


def test_allowed_hosts() -> None:
    policy = FetchPolicy(allow_hosts=("a.example.org", "*.example.com"))
    allowed = ("a.example.org", "a.example.org.", "x.example.com", "x.y.example.com")
    assert all(policy.allows_host(host) for host in allowed)
    assert not any(map(policy.allows_host, ("example.org", "b.a.example.org", "example.com", "xexample.com", "")))
    assert FetchPolicy().allows_host("anything")


def test_hosts_off_the_list_are_not_even_resolved(dialled: list[tuple[str, int]]) -> None:
    with pytest.raises(FetchRefused, match=r"^Invalid image URL: its host is not one that this server fetches from\."):
        asyncio.run(fetched("http://8.8.8.8/", resolve=None, allow_hosts=("a.example.org",)))
    assert dialled == []


def test_switched_off() -> None:
    with pytest.raises(FetchRefused, match=r"^Invalid image URL: this server fetches no URLs\. Send the picture"):
        asyncio.run(fetched("http://127.0.0.1/", enabled=False, private_hosts=("127.0.0.1",)))


def test_refusals_are_bad_requests() -> None:
    assert issubclass(FetchRefused, InvalidInput)
    assert FetchRefused("it is bad.").http_status == 400


# Redirects


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:PORT/",
        "http://localhost:PORT/",
        "http://2130706433:PORT/",
        "http://[::1]:PORT/",
        "//127.1:PORT/",
        "http://loopback.test:PORT/",
        "http://user@127.0.0.1:PORT/",
        "http://metadata.test/latest/meta-data/",
        "http://127.0.0.1:22/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:PORT/_",
        "http://[::1",
        "http://exämple\udcff.test/",
    ],
)
def test_redirects_to_private_places_are_refused(location: str, trap: Trap) -> None:
    answer = redirect("HERE").replace(b"HERE", location.replace("PORT", str(trap.port)).encode("utf-8", "replace"))
    host = refused(answer, r".+\. [A-Z]")
    assert len(host.heads) == 1
    assert trap.connections() == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_three_redirects_are_followed(status: int) -> None:
    async def run() -> None:
        async with site(OK, a=redirect("/b", status), b=redirect("c?x=1", status)) as host:
            host.answers["/c"] = redirect(host.url("/d"), status)
            assert await host.fetched("/a") == b"picture"
            assert [head.split()[1] for head in host.heads] == ["/a", "/b", "/c?x=1", "/d"]

    asyncio.run(run())


@pytest.mark.parametrize("location", ["/", "?again", ""])
def test_redirect_loops_end(location: str) -> None:
    assert len(refused(redirect(location), "it redirects more than 3 times").heads) == 4


# TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    (tmp_path / "certificate.pem").write_text(CERTIFICATE)
    return tmp_path / "certificate.pem"


async def over_tls(
    certificate: Path, host: str, *, answer: Answer = OK, trusted: bool = True
) -> tuple[bytes, str, str]:
    """What was fetched from a site on loopback that is `pictures.test`, the Host header and the TLS server name."""
    names: list[str] = []
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    server.sni_callback = lambda _, name, __: names.append(str(name))
    client = ssl.create_default_context(cafile=str(certificate)) if trusted else None
    async with site(answer, tls=server) as there:
        bounds = {"private_hosts": (f"{host}:{there.port}", f"127.0.0.1:{there.port}")}
        url, here = f"https://{host}:{there.port}/", lambda *_: asyncio.sleep(0, ["127.0.0.1"])
        data = await fetched(url, resolve=here, ssl_context=client, **bounds)
        return data, there.heads[0].split("Host: ")[1].split("\r\n")[0].split(":")[0], names[0]


def test_host_header_server_name_and_certificate_stay_those_of_the_url(certificate: Path) -> None:
    answer = asyncio.run(over_tls(certificate, "pictures.test"))
    assert answer == (b"picture", "pictures.test", "pictures.test")


def test_other_names_and_unknown_authorities_are_refused(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with pytest.raises(FetchRefused, match=UNREACHABLE):
        asyncio.run(over_tls(certificate, "other.test"))
    with pytest.raises(FetchRefused, match=UNREACHABLE):
        asyncio.run(over_tls(certificate, "pictures.test", trusted=False))


def test_https_does_not_lead_to_http(certificate: Path) -> None:
    with pytest.raises(FetchRefused, match="from https to http"):
        asyncio.run(over_tls(certificate, "pictures.test", answer=redirect("http://127.0.0.1/")))


# Bodies


def test_a_good_answer_and_what_was_asked_for() -> None:
    async def run() -> None:
        async with site() as host:
            assert await host.fetched("/a%20b.png?x=1&y=ä#part") == b"picture"
            lines = host.heads[0].split("\r\n")
            assert lines[0] == "GET /a%20b.png?x=1&y=%C3%A4 HTTP/1.1"
            assert f"Host: 127.0.0.1:{host.port}" in lines
            assert "Accept-Encoding: identity" in lines
            assert not any(line.lower().startswith(("cookie", "authorization", "referer")) for line in lines)

    asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        with_header("Content-Length: 7"),
        with_header("Connection: close"),
        with_header("Content-Encoding: identity\r\nContent-Length: 7"),
        with_header("Transfer-Encoding: chunked", b"3\r\npic\r\n4\r\nture\r\n0\r\n\r\n"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    ],
)
def test_framings(answer: bytes) -> None:
    async def run() -> bytes:
        async with site(answer) as host:
            return await host.fetched(max_bytes=7)

    assert asyncio.run(run()) == b"picture"


@pytest.mark.parametrize(
    "answer",
    [
        with_header("Content-Length: 8", b"pictures"),
        with_header("Content-Length: 99999999999999999999", b""),
        with_header("Connection: close", b"pictures"),
        with_header("Transfer-Encoding: chunked", b"8\r\npictures\r\n0\r\n\r\n"),
    ],
)
def test_one_byte_too_many(answer: bytes) -> None:
    refused(answer, "the picture is larger than .* MiB. Send a smaller one", max_bytes=7)


@pytest.mark.parametrize("status", [201, 204, 206, 304, 401, 404, 500])
def test_other_statuses(status: int) -> None:
    refused(f"HTTP/1.1 {status} Odd\r\nContent-Length: 0\r\n\r\n".encode(), f"its server answered with status {status}")


def test_compressed_bodies_are_refused_unread() -> None:
    bomb = gzip.compress(bytes(8 << 20))
    for encoding in ("gzip", "deflate", "br", "identity, gzip", "GZIP"):
        refused(
            with_header(f"Content-Encoding: {encoding}\r\nContent-Length: {len(bomb)}", bomb),
            "its server sends it comp",
        )


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npic",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: 8\r\n\r\npictures",
        b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\npicture",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\npicture",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000 + b"\r\n\r\n",
    ],
)
def test_broken_answers(answer: bytes) -> None:
    refused(answer, "its server broke off its answer")


def test_an_endless_body_ends_and_takes_no_more_memory_than_the_limit() -> None:
    process, rss = psutil.Process(), [psutil.Process().memory_info().rss]

    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ENDLESS)
        while True:
            writer.write(bytes(1 << 18))
            await writer.drain()
            rss.append(process.memory_info().rss)

    refused(endless, "the picture is larger than 20 MiB", total_s=10.0)
    assert max(rss) - rss[0] <= 32 << 20


def test_a_byte_at_a_time_ends_at_the_total_time() -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ENDLESS)
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    refused(drip, "it took longer than 0.3 s", total_s=0.3, idle_s=0.2)


def test_headers_without_end_end_at_the_total_time() -> None:
    async def hints(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.001)

    refused(hints, "it took longer than 0.3 s", total_s=0.3, idle_s=0.2)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200", ENDLESS, OK[:-3]])
def test_silence_ends_at_the_idle_time(start: bytes) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        await reader.read()

    refused(silent, "its server was silent for 0.1 s", total_s=2.0, idle_s=0.1)


def test_a_lookup_that_hangs_ends_at_the_total_time() -> None:
    async def hang(host: str, port: int) -> list[str]:
        await asyncio.get_running_loop().create_future()
        return []

    with pytest.raises(FetchRefused, match="longer than"):
        asyncio.run(fetched("http://public.test/", resolve=hang, total_s=0.1))


# Many at once


def held(opened: asyncio.Event) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone, go = asyncio.ensure_future(reader.read()), asyncio.ensure_future(opened.wait())
        _, waiting = await asyncio.wait((gone, go), return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        writer.write(OK)

    return answer


def test_no_more_fetches_at_once_than_allowed() -> None:
    async def run() -> None:
        opened = asyncio.Event()
        async with site(held(opened)) as host:
            fetcher = Fetcher(
                FetchPolicy(private_hosts=(f"127.0.0.1:{host.port}",), concurrency=2), ssl_context=NO_AUTHORITIES
            )
            fetches = [asyncio.create_task(fetcher.fetch(host.url())) for _ in range(6)]
            await host.until(lambda: host.open == 2)
            opened.set()
            assert await asyncio.gather(*fetches) == [b"picture"] * 6
            assert host.most_open == 2
            await fetcher.aclose()

    asyncio.run(run())


def test_a_fetch_that_gets_no_turn_is_told_to_come_again() -> None:
    async def run() -> None:
        async with site(held(asyncio.Event())) as host:
            policy = FetchPolicy(private_hosts=(f"127.0.0.1:{host.port}",), concurrency=1, total_s=0.2)
            fetcher = Fetcher(policy, ssl_context=NO_AUTHORITIES)
            first, *others = await asyncio.gather(*(fetcher.fetch(host.url()) for _ in "123"), return_exceptions=True)
            assert isinstance(first, FetchRefused)
            assert any(isinstance(other, Unavailable) and other.retry_after_s for other in others)
            await fetcher.aclose()

    asyncio.run(run())


def test_a_client_that_goes_away_frees_its_place() -> None:
    async def run() -> None:
        opened = asyncio.Event()
        async with site(held(opened)) as host:
            fetcher = Fetcher(
                FetchPolicy(private_hosts=(f"127.0.0.1:{host.port}",), concurrency=1), ssl_context=NO_AUTHORITIES
            )
            gone = asyncio.create_task(fetcher.fetch(host.url()))
            await host.until(lambda: host.open == 1)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            opened.set()
            assert await fetcher.fetch(host.url()) == b"picture"
            await fetcher.aclose()

    asyncio.run(run())


# Logs


def test_no_log_line_holds_a_query(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with site(OK, a=redirect("/b?token=canary")) as host:
            await host.fetched("/a?token=canary")
            with pytest.raises(FetchRefused):
                await fetched("http://loopback.test/?token=canary")

    with caplog.at_level(logging.DEBUG):
        asyncio.run(run())
    assert "loopback.test: its address 127.0.0.1 is loopback" in caplog.text
    assert "canary" not in caplog.text


CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgoo3pw2nk1OYfPgED
WPn8oOuwyBUyG/vAGUCIdv0XQ5ehRANCAAR3JN/HFf0ljGiH68VOZywbhMLlHoFu
sTiSw00JX6n3f7D8FpICXDt6wPaKU1hLe5JP3Nvztnwli+GF6U0NzYOx
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBbTCCAROgAwIBAgIBATAKBggqhkjOPQQDAjAYMRYwFAYDVQQDDA1waWN0dXJl
cy50ZXN0MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAYMRYwFAYD
VQQDDA1waWN0dXJlcy50ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEdyTf
xxX9JYxoh+vFTmcsG4TC5R6BbrE4ksNNCV+p93+w/BaSAlw7esD2ilNYS3uST9zb
87Z8JYvhhelNDc2DsaNMMEowGAYDVR0RBBEwD4INcGljdHVyZXMudGVzdDAPBgNV
HRMBAf8EBTADAQH/MB0GA1UdDgQWBBQ4fDnsDUjWp+mS0t7KMiVk0TQdOjAKBggq
hkjOPQQDAgNIADBFAiEA7ZOalJsO64P6Ej0fRsgBwOHFrgji7QHt3xterJwcu8oC
IBXuClxYB4d++rOqhfJpu9B2BJInpzgI7fn/EkKDKHrG
-----END CERTIFICATE-----
"""
"""A key that signs itself as `pictures.test`, made for these tests and used for nothing else."""
