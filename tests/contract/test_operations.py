"""What operators see and set: /metrics, limits for each key, which routes there are and who may use them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

KEY, OTHER_KEY = "SG_0123456789abcdef", "SG_fedcba9876543210"
BODY = {"prompt": "x", "steps": 1}


@pytest.fixture(scope="module")
def own(run_server: Any) -> Iterator[Any]:
    settings = {"rate_per_minute": "6", "rate_burst": "4", "queued_per_key": "2"}
    with run_server(api_keys=f"{KEY},{OTHER_KEY}", **settings) as running:
        yield running


def figure(server: Any, name: str, **labels: str) -> float:
    reply = server.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return 0.0


def test_metrics_follow_what_happens(own: Any) -> None:
    before = {
        status: figure(own, "flux_http_requests_total", route="/v1/flux-dev", status=status)
        for status in ("200", "400")
    }
    done = own.post("/v1/flux-dev", json=BODY, key=OTHER_KEY).json()
    assert own.post("/v1/flux-dev", json={"steps": 1}, key=OTHER_KEY).status_code == 400
    assert own.get("/no/such/page").status_code == 404
    assert own.get("/v2/requests/abc", key="SG_wrong").status_code == 401
    after = {
        status: figure(own, "flux_http_requests_total", route="/v1/flux-dev", status=status)
        for status in ("200", "400")
    }
    assert {status: after[status] - before[status] for status in after} == {"200": 1, "400": 1}
    assert own.get("/v2/requests/abc").status_code == 404
    assert figure(own, "flux_http_requests_total", route="/v2/requests/{request_id}", status="404") == 1
    assert figure(own, "flux_http_requests_total", route="unmatched", status="404") == 1
    assert figure(own, "flux_http_requests_total", route="unmatched", status="401") == 1
    assert figure(own, "flux_rejected_total", code="invalid_input") == 1
    assert figure(own, "flux_jobs_ended_total", state="succeeded") == 1
    assert figure(own, "flux_jobs", state="succeeded") == 1
    assert figure(own, "flux_job_stage_seconds_count", stage="denoise", model="flux-dev") == 1
    assert figure(own, "flux_job_stage_seconds_sum", stage="total") == pytest.approx(
        done["metrics"]["total_time"], abs=0.001
    )
    assert figure(own, "flux_ready") == 1
    assert figure(own, "flux_disk_bytes", kind="files") >= int(done["images"][0]["file_size"])
    assert figure(own, "flux_disk_bytes", kind="database") > 0


def test_metrics_want_a_key(own: Any) -> None:
    assert own.get("/metrics", key=None).status_code == 401


def test_a_key_over_its_rate_is_429_and_another_is_not(own: Any) -> None:
    # Refused bodies count too, and leave no jobs.
    replies = [own.post("/v1/flux-dev", json={}) for _ in range(6)]
    statuses = [reply.status_code for reply in replies]
    assert statuses[:4] == [400] * 4
    late = replies[statuses.index(429)]
    assert late.json()["code"] == "rate_limited"
    assert 1 <= int(late.headers["retry-after"]) <= 10
    assert own.post("/upload-asset", json={}).status_code == 429
    assert own.get("/v2/requests/unknown/status").status_code == 404
    assert own.post("/v1/flux-dev", json={}, key=OTHER_KEY).status_code == 400


def test_a_key_with_too_many_waiting_jobs_is_429_and_another_is_not(run_server: Any) -> None:
    slow = {"prompt": "[step_s=0.1]", "steps": 50}
    with run_server(dummy=True, api_keys=f"{KEY},{OTHER_KEY}", queued_per_key="2", drain_limit_s="0") as server:
        replies = [server.post("/v2/flux-dev", json=slow) for _ in range(5)]
        statuses = [reply.status_code for reply in replies]
        assert statuses[:2] == [200, 200]
        late = replies[statuses.index(429)]
        assert late.json()["code"] == "too_many_queued"
        assert int(late.headers["retry-after"]) > 0
        assert server.post("/v2/flux-dev", json=slow, key=OTHER_KEY).status_code == 200


def test_a_job_over_a_deadline_is_failed_by_name(run_server: Any) -> None:
    slow = {"prompt": "[step_s=0.1]", "steps": 50}
    with run_server(dummy=True, run_limit_s="1", queue_ttl_s="1.5", drain_limit_s="0") as server:
        worker = server.worker_pid()
        runs = server.submit("flux-dev", slow)
        waits = [server.submit("flux-dev", slow) for _ in range(3)]
        ended = server.finish(runs)
        assert (ended["status"], "ran for longer than the 1 s" in ended["error"]) == ("FAILED", True)
        texts = [server.finish(request_id)["error"] for request_id in waits]
        assert any("waited longer than the 1.5 s" in text for text in texts)
        blocking = server.post("/v1/flux-dev", json=slow)
        assert (blocking.status_code, blocking.json()["code"]) == (504, "run_timeout")
        assert server.worker_pid() == worker


# Which routes there are, and who may use them.

PUBLIC = {
    "GET /health/live",
    "GET /health/ready",
    "GET /files/{name}",
    "HEAD /files/{name}",
    "GET /openapi.json",
    "HEAD /openapi.json",
    "GET /inference-model-information/list",
}
WITH_KEY = {
    *(
        f"POST /{version}/{model}"
        for version in ("v1", "v2")
        for model in ("flux-dev", "flux-depth-dev", "flux-depth-pro")
    ),
    "GET /v2/requests/{request_id}",
    "GET /v2/requests/{request_id}/status",
    "GET /v1/requests/{request_id}",
    "GET /v1/get-user-credits",
    "POST /upload-asset",
    "GET /metrics",
}
FOR_THE_OPERATOR = {"POST /admin/jobs/{job_id}/cancel", "POST /admin/jobs/{job_id}/retry"}


def routes_of(app: Any) -> set[str]:
    found = set()

    def walk(routes: Any) -> None:
        for route in routes:
            if hasattr(route, "path"):
                found.update(f"{method} {route.path}" for method in route.methods)
            else:
                walk(route.original_router.routes)

    walk(app.routes)
    return found


def test_there_are_no_other_routes() -> None:
    from server.app import create_app
    from server.settings import Settings

    assert routes_of(create_app(Settings())) == PUBLIC | WITH_KEY | FOR_THE_OPERATOR
    assert routes_of(create_app(Settings(admin=False))) == PUBLIC | WITH_KEY


@pytest.mark.parametrize("route", sorted(WITH_KEY | FOR_THE_OPERATOR))
@pytest.mark.parametrize("key", [None, "SG_wrong", "é", "", "k" * 60_000])
def test_without_a_key_nothing_but_the_public_ones_answers(own: Any, route: str, key: str | None) -> None:
    method, path = route.split()
    headers = {} if key is None else {"x-api-key": key.encode("utf-8")}
    reply = own.request(method, re.sub(r"\{\w+\}", "a", path), key=None, headers=headers)
    assert reply.status_code == 401, (route, reply.text)


def test_two_keys_cannot_read_each_other(own: Any) -> None:
    request_id = own.submit("flux-dev", BODY, key=OTHER_KEY)
    unknown = "00000000-0000-4000-8000-000000000000"
    crossed = 0
    for path in ("/v2/requests/{}", "/v2/requests/{}/status", "/v1/requests/{}"):
        strange, absent = own.get(path.format(request_id)), own.get(path.format(unknown))
        assert (strange.status_code, absent.status_code) == (404, 404)
        assert strange.json()["error"].replace(request_id, unknown) == absent.json()["error"]
        crossed += strange.status_code == 200
    print(f"{crossed} cross reads over 3 routes")
