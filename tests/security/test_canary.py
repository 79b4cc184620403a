"""Nothing that a caller sends comes out where others look: logs, figures, error texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

CANARIES = {
    place: f"canary{place}{index}zq"
    for index, place in enumerate(
        [
            "key",
            "wrongkey",
            "prompt",
            "url",
            "query",
            "header",
            "idempotency",
            "body",
            "filename",
            "picture",
            "value",
            "id",
        ]
    )
}
KEY = f"SG-{CANARIES['key']}"


@pytest.fixture(scope="module")
def own(run_server: Any) -> Iterator[Any]:
    with run_server(api_keys=KEY, log_level="debug", log_format="json") as running:
        yield running


def send(server: Any, method: str, path: str, *, key: str | None = KEY, **options: Any) -> Any:
    headers = {
        "user-agent": CANARIES["header"],
        "x-anything": CANARIES["header"],
        "cookie": CANARIES["header"],
        **options.pop("headers", {}),
    }
    return server.request(method, f"{path}?{CANARIES['query']}=1", key=key, headers=headers, **options)


def provoke(server: Any) -> list[Any]:
    """Every kind of request that carries canaries; the replies to the refused ones."""
    prompt = f"a {CANARIES['prompt']} in snow"
    good = {"prompt": prompt, "steps": 1, "unknown": CANARIES["body"], CANARIES["body"]: 1}
    keyed = {"idempotency-key": CANARIES["idempotency"]}
    url = f"https://user:{CANARIES['url']}@{CANARIES['url']}.invalid/{CANARIES['url']}.png?{CANARIES['url']}"
    depth = {"prompt": prompt, "megapixels": "match_input", "num_inference_steps": 1}
    upload = {"control_image": (f"{CANARIES['filename']}.png", CANARIES["picture"].encode())}
    assert send(server, "POST", "/v1/flux-dev", json=good, headers=keyed).status_code == 200
    assert send(server, "POST", "/v2/flux-dev", json=good, headers=keyed).status_code == 200
    refused = [
        send(server, "POST", "/v2/flux-dev", json={**good, "prompt": "other"}, headers=keyed),
        send(server, "POST", "/v2/flux-dev", json=good, key=CANARIES["wrongkey"]),
        send(server, "POST", "/v2/flux-dev", json=good, headers={"authorization": CANARIES["wrongkey"]}, key=None),
        send(server, "POST", "/v2/flux-dev", json={**good, "steps": 10**9}),
        send(server, "POST", "/v2/flux-dev", content=f'{{"prompt": "{prompt}"'.encode()),
        send(server, "POST", "/v2/flux-depth-dev", json={**depth, "control_image": url}),
        send(server, "POST", "/v2/flux-depth-dev", json={**depth, "control_image": CANARIES["picture"]}),
        send(server, "POST", "/v2/flux-depth-dev", data=depth, files=upload),
        send(server, "POST", "/upload-asset", files=upload),
        send(server, "POST", "/upload-asset", json={"data_urls": [f"data:image/png;base64,{CANARIES['picture']}"]}),
        send(server, "POST", "/v2/flux-dev", json={**good, "loras": [{"name": "a", CANARIES["body"]: 1}]}),
        send(server, "GET", "/v2/requests/unknown/status"),
        send(server, "DELETE", "/v2/flux-dev"),
    ]
    # These errors repeat the wrong value to the one who sent it; the log does not.
    send(server, "POST", "/v2/flux-dev", json={**good, "aspect_ratio": CANARIES["value"]})
    send(server, "POST", "/v2/flux-dev", content=b"x", headers={"content-type": CANARIES["header"]})
    return refused


def test_no_canary_is_seen_again(own: Any) -> None:
    refused = provoke(own)
    assert all(400 <= reply.status_code < 500 for reply in refused), [reply.status_code for reply in refused]
    shown = {
        "log": own.log(),
        "metrics": send(own, "GET", "/metrics").text,
        "errors": "".join(reply.text + str(dict(reply.headers)) for reply in refused),
    }
    assert "flux_rejected_total" in shown["metrics"]
    assert "request refused" in shown["log"]
    hits = [(place, name) for place, text in shown.items() for name, word in CANARIES.items() if word in text.lower()]
    print(f"{len(hits)} of {len(CANARIES)} canaries seen in {sum(map(len, shown.values()))} characters")
    assert hits == []


def test_every_line_about_a_job_has_its_id_and_requests_are_tied_to_it(own: Any) -> None:
    reply = own.post("/v1/flux-dev", json={"prompt": "x", "steps": 1}, key=KEY)
    job_id = reply.headers["x-request-id"]
    lines = [json.loads(line) for line in own.log().splitlines() if line.startswith("{")]
    of_job = [line for line in lines if line.get("job") == job_id]
    assert {line["event"] for line in of_job} >= {"job accepted", "job started", "job ended"}
    assert next(line for line in of_job if line["event"] == "job accepted")["request"]
    refused = own.post("/v1/flux-dev", json={}, key=KEY)
    lines = [json.loads(line) for line in own.log().splitlines() if line.startswith("{")]
    told = next(line for line in lines if line.get("request") == refused.headers["x-request-id"])
    assert (told["code"], told["parameter"], told["status"]) == ("invalid_input", "prompt", 400)
