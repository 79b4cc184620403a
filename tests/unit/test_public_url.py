"""The base of the URLs in replies: where the client itself would say that this server is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from server.api.public_url import public_base
from server.guard import client_is_trusted
from server.settings import Settings

PROXY = "10.0.0.7"
FORWARDED = {
    "x-forwarded-proto": "https",
    "x-forwarded-host": "flux.example",
    "x-forwarded-prefix": "/img",
}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def request(
    headers: dict[str, str] | None = None, *, client: tuple[str, int] | None = (PROXY, 5), **scope: Any
) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    defaults = {"type": "http", "method": "GET", "scheme": "http", "path": "/", "query_string": b"", "root_path": ""}
    return Request({**defaults, "headers": raw, "client": client, "server": ("127.0.0.1", 8000), **scope})


def base(headers: dict[str, str] | None = None, *, trusted: str = "", public_url: str | None = None, **of: Any) -> str:
    return public_base(request(headers, **of), Settings(trusted_proxies=trusted, public_url=public_url))


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8123", "gpu.lan", "[::1]:8000", "flux.example:443"])
def test_the_host_is_the_one_that_the_client_asked_for(host: str) -> None:
    assert base({"host": host}) == f"http://{host}"


def test_the_scheme_is_the_connections_own() -> None:
    assert base({"host": "gpu.lan"}, scheme="https") == "https://gpu.lan"


@pytest.mark.parametrize("headers", [{}, {"host": ""}])
@pytest.mark.parametrize(
    ("server", "own"), [(("127.0.0.1", 8000), "127.0.0.1:8000"), (("::1", 80), "[::1]:80"), (None, "127.0.0.1:80")]
)
def test_without_a_host_header_it_is_the_address_that_was_reached(
    headers: dict[str, str], server: tuple[str, int] | None, own: str
) -> None:
    assert base(headers, server=server) == f"http://{own}"


def test_forwarded_headers_of_a_trusted_proxy_are_believed() -> None:
    assert base({"host": "inner:8000", **FORWARDED}, trusted="10.0.0.0/8") == "https://flux.example/img"


@pytest.mark.parametrize("missing", FORWARDED)
def test_each_forwarded_header_stands_for_itself(missing: str) -> None:
    given = {name: value for name, value in FORWARDED.items() if name != missing}
    expected = {
        "x-forwarded-proto": "http://flux.example/img",
        "x-forwarded-host": "https://inner:8000/img",
        "x-forwarded-prefix": "https://flux.example",
    }
    assert base({"host": "inner:8000", **given}, trusted=PROXY) == expected[missing]


@pytest.mark.parametrize("trusted", ["", "10.0.0.8", "10.0.1.0/24", "::/0", "192.168.0.0/16,127.0.0.1"])
def test_forwarded_headers_of_anyone_else_are_ignored(trusted: str) -> None:
    assert base({"host": "inner:8000", **FORWARDED}, trusted=trusted) == "http://inner:8000"


@pytest.mark.parametrize("client", [None, ("testclient", 1), ("", 0)])
def test_a_peer_without_an_address_is_nobody(client: tuple[str, int] | None) -> None:
    assert base({"host": "inner:8000", **FORWARDED}, trusted="0.0.0.0/0,::/0", client=client) == "http://inner:8000"


def test_of_a_chain_of_proxies_the_first_counts() -> None:
    chain = {"x-forwarded-proto": "https, http", "x-forwarded-host": " outer.example , inner.example"}
    assert base({"host": "inner:8000", **chain}, trusted=PROXY) == "https://outer.example"


def test_empty_forwarded_headers_count_as_none() -> None:
    empty = {"x-forwarded-proto": "", "x-forwarded-host": " , x", "x-forwarded-prefix": ""}
    assert base({"host": "inner:8000", **empty}, trusted=PROXY) == "http://inner:8000"


@pytest.mark.parametrize(
    ("prefix", "end"), [("/", ""), ("/img/", "/img"), ("/a/b", "/a/b"), ("/a/b//", "/a/b"), ("img", "/img")]
)
def test_the_prefix_is_part_of_the_path(prefix: str, end: str) -> None:
    headers = {"host": "flux.example", "x-forwarded-prefix": prefix}
    assert base(headers, trusted=PROXY) == f"http://flux.example{end}"


def test_a_set_public_url_wins_over_everything() -> None:
    headers = {"host": "inner:8000", **FORWARDED}
    assert base(headers, trusted=PROXY, public_url="https://set.example/flux/") == "https://set.example/flux"


@pytest.mark.parametrize(
    ("address", "network", "trusted"),
    [
        ("10.0.0.7", "10.0.0.7", True),
        ("10.0.0.7", "10.0.0.0/29", True),
        ("10.0.0.8", "10.0.0.0/29", False),
        ("10.0.0.7", "10.0.0.1/8", True),
        ("::1", "::1", True),
        ("fd00::5", "fd00::/8", True),
        ("::1", "127.0.0.1", False),
        ("10.0.0.7", "::/0", False),
        # How a peer looks to a server that listens on both families at once.
        ("::ffff:10.0.0.7", "10.0.0.0/8", True),
        ("::ffff:11.0.0.7", "10.0.0.0/8", False),
    ],
)
def test_a_proxy_is_trusted_by_its_network(address: str, network: str, trusted: bool) -> None:
    assert client_is_trusted(request(client=(address, 1)), (network,)) is trusted
    assert client_is_trusted(request(client=(address, 1)), ("203.0.113.1", network)) is trusted
    assert client_is_trusted(request(client=(address, 1)), ()) is False
