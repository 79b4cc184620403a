"""What a hostile picture, body or web server can make a real server spend: little time and memory, no connection."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from proofs.clients import GREY_PNG, depth
from proofs.figures import MIB, PeakMemory

DUMMY = (str(Path(__file__).parents[1] / "reliability" / "dummy_server.py"),)
REFUSED_S, PICTURE_MIB, FETCH_MIB = 0.1, 20, 32
FETCH_TOTAL_S, FETCH_IDLE_S = 20.0, 5.0
BUSY_S = 1.0
"""What may pass beyond a limit."""

ODD_HOSTS = """
127.0.0.1 127.1 127.0.1 2130706433 0x7f000001 0x7f.0.0.1 0177.0.0.1 017700000001 0 0.0.0.0 localhost LOCALHOST
localhost. 127.0.0.1. 127。0。0。1 １２７.0.0.1 ①②⑦.0.0.1 locaⓛhost 127%2e0%2e0%2e1 %6cocalhost 127.255.255.254
127.000.000.001 [::1] [::] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1] [64:ff9b::7f00:1]
[2002:7f00:1::] [fe80::1] [fe80::1%25lo] [::1%25lo] [fc00::1] [fd00:ec2::254] [ff02::1] 10.0.0.1 172.16.0.1
192.168.0.1 169.254.169.254 0xa9fea9fe 2852039166 100.64.0.1 168.63.129.16 192.0.0.192 198.18.0.1 224.0.0.1
240.0.0.1 255.255.255.255 user@127.0.0.1 user:word@localhost a@b@127.0.0.1 @127.0.0.1 127.0.0.1\\@example.org
example.org@127.0.0.1 127..1 1e3 - .
"""


class Site:
    """A web server of this machine that counts connections and answers by path."""

    def __init__(self) -> None:
        self.connections = 0
        site = self

        class Handler(BaseHTTPRequestHandler):
            def setup(self) -> None:
                site.connections += 1
                super().setup()

            def do_GET(self) -> None:
                with suppress(OSError):  # the server hangs up, as it should
                    getattr(site, self.path.strip("/").partition("?")[0])(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = _listening(Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def begin(self, request: BaseHTTPRequestHandler, status: int = 200, **headers: str) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()

    def bomb(self, request: BaseHTTPRequestHandler) -> None:
        packed = gzip.compress(bytes(64 * MIB))
        self.begin(request, content_encoding="gzip", content_type="image/png", content_length=str(len(packed)))
        request.wfile.write(packed)

    def endless(self, request: BaseHTTPRequestHandler) -> None:
        self.begin(request, content_type="image/png")
        while True:
            request.wfile.write(bytes(1 << 18))

    def drip(self, request: BaseHTTPRequestHandler) -> None:
        self.begin(request, content_type="image/png")
        while True:
            request.wfile.write(b"x")
            time.sleep(1)  # one byte a second is what is tried

    def silent(self, request: BaseHTTPRequestHandler) -> None:
        self.begin(request, content_type="image/png")
        request.rfile.read(1)

    def picture(self, request: BaseHTTPRequestHandler) -> None:
        self.begin(request, content_type="image/png")
        request.wfile.write(base64.b64decode(GREY_PNG))

    def inward(self, request: BaseHTTPRequestHandler) -> None:
        self.begin(request, 302, location=f"http://169.254.169.254:{self.port}/endless")


def _listening(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    """On port 80 where that can be had, since other ports are refused before their address is looked at."""
    with suppress(OSError):
        return ThreadingHTTPServer(("127.0.0.1", 80), handler)
    return ThreadingHTTPServer(("127.0.0.1", 0), handler)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture(scope="module")
def own(run_server: Any) -> Iterator[Any]:
    with run_server(program=DUMMY) as running:
        first = running.post("/v2/flux-depth-dev", json=depth())  # so that what is imported at first use is there
        assert first.status_code == 200
        yield running


def png_of(width: int, height: int) -> bytes:
    """A PNG of black pixels: its rows compress to almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_picture_that_unpacks_to_half_a_gigabyte_is_refused_by_its_header(own: Any) -> None:
    bomb = png_of(13_000, 13_000)
    body = {**depth(), "control_image": base64.b64encode(bomb).decode()}
    own.post("/v2/flux-depth-dev", json=body)
    peak, took_s = PeakMemory(own.process.pid), []
    for _ in range(5):
        start = time.monotonic()
        reply = own.post("/v2/flux-depth-dev", json=body)
        took_s.append(time.monotonic() - start)
        assert reply.status_code == 400
        assert "13000×13000" in reply.json()["error"]
    grown = peak.grown_bytes() / MIB
    print(
        f"a PNG of {len(bomb)} bytes, 13,000×13,000: refused in {1000 * min(took_s):.0f} ms, memory + {grown:.1f} MiB"
    )
    assert min(took_s) <= REFUSED_S
    assert grown <= PICTURE_MIB


def fetch(server: Any, url: str) -> tuple[Any, float]:
    start = time.monotonic()
    reply = server.post("/v2/flux-depth-dev", json={**depth(), "control_image": url})
    return reply, time.monotonic() - start


def prove_fetches(run_server: Any, site: Site, limits_s: dict[str, float]) -> None:
    """Fetches hostile answers, all at once; each ends within its limit, and the server's memory stays."""
    with run_server(program=DUMMY, fetch_private_hosts=f"127.0.0.1:{site.port}") as server:
        assert fetch(server, f"http://127.0.0.1:{site.port}/picture")[0].status_code == 200
        assert site.connections == 1
        assert fetch_all(server, site, limits_s) <= FETCH_MIB


def fetch_all(server: Any, site: Site, limits_s: dict[str, float]) -> float:
    """MiB by which the server grew."""
    peak = PeakMemory(server.process.pid)
    with ThreadPoolExecutor(len(limits_s)) as callers:
        urls = [f"http://127.0.0.1:{site.port}/{path}" for path in limits_s]
        ended = dict(zip(limits_s, callers.map(lambda url: fetch(server, url), urls), strict=True))
    grown = peak.grown_bytes() / MIB
    told = {path: f"{reply.status_code} after {took_s:.1f} s" for path, (reply, took_s) in ended.items()}
    print(f"hostile answers: {told}; memory + {grown:.1f} MiB at most")
    for path, (reply, took_s) in ended.items():
        assert reply.status_code == 400, reply.text
        assert "Invalid image URL" in reply.json()["error"]
        assert took_s <= limits_s[path] + BUSY_S
    return grown


def test_hostile_answers_end_and_cost_little_memory(run_server: Any, site: Site) -> None:
    limits_s = {"bomb": FETCH_TOTAL_S, "endless": FETCH_TOTAL_S, "inward": FETCH_IDLE_S}
    prove_fetches(run_server, site, limits_s)


@pytest.mark.soak
def test_a_byte_a_second_and_silence_end_at_their_times(run_server: Any, site: Site) -> None:
    prove_fetches(run_server, site, {"drip": FETCH_TOTAL_S, "silent": FETCH_IDLE_S, "endless": FETCH_TOTAL_S})


def test_urls_that_point_inward_connect_to_nothing(own: Any, site: Site) -> None:
    """Through a real server, which resolves names as the system does. That the site can be reached is seen above."""
    hosts = [*ODD_HOSTS.split(), "a" * 64 + ".test", ("a" * 60 + ".") * 5 + "test"]
    urls = [f"http://{host}:{site.port}/endless" for host in hosts]
    urls += [f"{scheme}://127.0.0.1:{site.port}/endless" for scheme in ("https", "ftp", "gopher", "file", "ws", "dict")]
    urls += ["file:///etc/passwd", f"//127.0.0.1:{site.port}/", f"http:127.0.0.1:{site.port}/", "http://", "http://["]
    replies = [own.post("/v2/flux-depth-dev", json={**depth(), "control_image": url}) for url in urls]
    print(f"{len(urls)} hostile URLs to port {site.port}: {site.connections} connections")
    assert len(set(urls)) >= 60
    assert {reply.status_code for reply in replies} == {400}, {
        url: reply.status_code for url, reply in zip(urls, replies, strict=True) if reply.status_code != 400
    }
    assert site.connections == 0


def test_a_packed_request_body_is_not_unpacked(own: Any) -> None:
    packed = gzip.compress(json.dumps({"prompt": "x", "ignored": "y" * (64 * MIB)}).encode())
    peak = PeakMemory(own.process.pid)
    reply = own.post(
        "/v2/flux-dev", content=packed, headers={"content-type": "application/json", "content-encoding": "gzip"}
    )
    print(
        f"a body of {len(packed)} bytes that unpacks to 64 MiB: {reply.status_code},"
        f" memory + {peak.grown_bytes() / MIB:.1f} MiB"
    )
    assert reply.status_code == 400
    assert peak.grown_bytes() <= FETCH_MIB * MIB
