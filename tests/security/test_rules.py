"""Rules that hold for every operation of the description: keys, owners, headers, and what errors may say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from proofs.clients import depth
from proofs.waiting import until

ROOT = Path(__file__).parents[2]
DUMMY = (str(ROOT / "tests" / "reliability" / "dummy_server.py"),)
KEY, OTHER_KEY = "SG_0123456789abcdef", "SG_fedcba9876543210"
SECRET = "a prompt that only its owner may read"
SECURITY_HEADERS = {"x-content-type-options": "nosniff", "x-frame-options": "DENY", "referrer-policy": "no-referrer"}
OPERATIONS = [
    (method.upper(), path, operation["security"] != [])
    for path, operations in json.loads((ROOT / "openapi.json").read_text())["paths"].items()
    for method, operation in operations.items()
]


@pytest.fixture(scope="module")
def own(run_server: Any) -> Iterator[Any]:
    with run_server(program=DUMMY, api_keys=f"{KEY},{OTHER_KEY}") as running:
        yield running


ODD_KEYS: dict[str, dict[str, bytes]] = {
    "missing": {},
    "empty": {"x-api-key": b""},
    "é": {"x-api-key": "é".encode()},
    "é in Latin-1": {"x-api-key": "é".encode("latin-1")},
    "no text": {"x-api-key": b"\xff\xfe"},
    "one character less": {"x-api-key": KEY[:-1].encode()},
    "one more": {"x-api-key": f"{KEY}0".encode()},
    "in capitals": {"x-api-key": KEY.upper().encode()},
    "both keys": {"x-api-key": f"{KEY},{OTHER_KEY}".encode()},
    "60 kB": {"x-api-key": b"k" * 60_000},
    "wrong scheme": {"authorization": f"Basic {KEY}".encode()},
    "wrong scheme too": {"authorization": f"Token {KEY}".encode()},
    "no key after the scheme": {"authorization": b"Bearer"},
    "é after the scheme": {"authorization": "Bearer é".encode()},
}


@pytest.mark.parametrize("name", ODD_KEYS)
def test_odd_keys_are_401_on_every_operation_that_wants_one(own: Any, name: str) -> None:
    closed = [(method, path) for method, path, wants_key in OPERATIONS if wants_key]
    assert len(closed) >= 12
    for method, path in closed:
        reply = own.request(method, path.replace("{request_id}", "x"), key=None, headers=ODD_KEYS[name])
        assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized"), (method, path)


def test_a_key_of_a_megabyte_is_no_key(own: Any) -> None:
    """It makes the head larger than any may be: refused before it is a request, or the connection just ends."""
    try:
        reply = own.get("/v1/get-user-credits", key=None, headers={"x-api-key": b"k" * 1_000_000})
    except httpx2.TransportError:
        return
    print(f"a key of 1 MB: {reply.status_code}")
    assert reply.status_code in (400, 401)


def test_two_keys_cannot_read_each_other_on_any_operation(own: Any) -> None:
    """Everything that one key can ask with another's ids, also after both have done work."""
    body, named = depth(SECRET), {"idempotency-key": "shared by chance"}
    job = own.post("/v2/flux-depth-dev", json=body, headers=named).json()["request_id"]
    file = own.finish(job)["output"].rpartition("/")[2]
    theirs = own.post("/v2/flux-depth-dev", json=body, headers=named, key=OTHER_KEY).json()["request_id"]
    own_secrets = (job, file, SECRET)
    asked, read = 0, []
    for method, path, wants_key in OPERATIONS:
        if not wants_key or path == "/metrics":
            continue
        reply = own.request(method, path.replace("{request_id}", job), key=OTHER_KEY, headers=named)
        asked += 1
        said = reply.text.replace(f"Request {job} not found", "").replace(f"request ID {job} Not Found", "")
        read += [(method, path, secret) for secret in own_secrets if secret in said]
        if "{request_id}" in path:
            assert reply.status_code == 404
    print(f"{asked} operations with another key's ids: {len(read)} cross reads")
    assert theirs != job
    assert asked >= 11
    assert read == []
    assert all(secret not in own.get("/metrics", key=OTHER_KEY).text for secret in own_secrets)


def test_every_answer_has_the_security_headers_and_no_credentials_for_other_origins(own: Any) -> None:
    origin = {"origin": "https://elsewhere.example"}
    for method, path, _ in OPERATIONS:
        for key in (KEY, None):
            for asked in (method, "OPTIONS", "DELETE"):
                reply = own.request(asked, path, key=key, headers={**origin, "access-control-request-method": "POST"})
                given = {name: reply.headers.get(name) for name in SECURITY_HEADERS}
                if asked != "OPTIONS":
                    assert given == SECURITY_HEADERS, (asked, path, reply.status_code)
                assert "access-control-allow-credentials" not in reply.headers
                assert reply.headers.get("access-control-allow-origin") in ("*", None)
                assert "set-cookie" not in reply.headers
                assert "server" not in reply.headers


def test_errors_hold_no_traceback_and_no_path_of_this_machine(own: Any, demo_weights: Path) -> None:
    poisonous = own.submit("flux-depth-dev", depth("[exit]"))
    odd = {"{request_id}": "../../etc/passwd", "{name}": "..%2f..%2fjobs.sqlite3"}
    strange = []
    for method, path, _ in OPERATIONS:
        for name, value in odd.items():
            path = path.replace(name, value)
        strange.append(own.request(method, path, content=b"\x00{" * 9))
    strange += [
        own.get(path) for path in ("/files/..%2f..%2fjobs.sqlite3", "/%00", "/" + "a" * 5000, "/v2/requests/%ff")
    ]
    failed = own.finish(poisonous)
    texts = [reply.text for reply in strange if reply.status_code >= 400] + [json.dumps(failed)]
    inner = (
        str(ROOT),
        str(own.data_dir),
        str(demo_weights),
        str(Path.home()),
        sys.prefix,
        "Traceback",
        'File "',
        ".py",
    )
    seen = [(word, text[:200]) for text in texts for word in inner if word in text]
    print(f"{len(texts)} error bodies, {len(seen)} with a traceback or a path of this machine")
    assert failed["status"] == "FAILED"
    assert len(texts) >= 15
    assert seen == []
    assert all(reply.status_code < 500 for reply in strange if not reply.url.path.startswith("/health"))


def test_a_public_address_without_a_key_is_refused_by_the_command_itself(demo_weights: Path, tmp_path: Path) -> None:
    """As an operator meets it: no port is opened, and the one line says what to do."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUX_")}
    command = [sys.executable, "-P", "-m", "server", "serve", "--port", "0", "--weights", str(demo_weights)]
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        refused = subprocess.run(
            [*command, "--host", host, "--data-dir", str(tmp_path / "data")],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert refused.returncode != 0
        assert "listening" not in refused.stdout
        assert re.search(rf"refusing to listen on {re.escape(host)} without an API key", refused.stderr)
        assert "FLUX_API_KEYS" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_the_worker_is_back_after_all_this(own: Any) -> None:
    until(lambda: own.get("/health/ready").status_code == 200, 60, "a worker is ready")
    assert own.finish(own.submit("flux-depth-dev", depth()))["status"] == "COMPLETED"
