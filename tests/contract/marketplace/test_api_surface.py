"""What an integrator relies on over real HTTP: one error format, pages, entity tags, waiting, resuming, limits, API keys."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.actors import TUSD, join, spec
from tests.support.api_server import ServedWorld, served_world
from torg_protocol.accounts import Scope

CAPPED = {"limits": {"max_duration": "1h", "max_cost": "1"}}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedWorld]:
    async with served_world(tmp_path) as served:
        await join(served.world)
        yield served


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Status and code, of what must be problem details."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert body["status"] == answer.status_code
    assert body["type"] == f"urn:torg:error:{body['code']}"
    assert body["title"]
    return answer.status_code, body["code"]


async def submitted(http: httpx.AsyncClient, key: str | None = None, **changes: Any) -> dict[str, Any]:
    headers = {"idempotency-key": key} if key else {}
    answer = await http.post("/v1/jobs", json={"spec": spec(**{**CAPPED, **changes})}, headers=headers)
    assert answer.status_code == 201, answer.text
    job: dict[str, Any] = answer.json()
    return job


@pytest.mark.parametrize(
    ("method", "path", "content", "expected"),
    [
        ("GET", "/v1/nothing", None, (404, "not_found")),
        ("DELETE", "/v1/jobs", None, (405, "method_not_allowed")),
        ("GET", "/v1/jobs/../../etc", None, (404, "not_found")),
        ("GET", "/v1/jobs/job_x", None, (422, "request_invalid")),
        ("GET", "/v1/jobs?limit=0", None, (422, "request_invalid")),
        ("GET", "/v1/jobs?state=paused", None, (422, "request_invalid")),
        ("POST", "/v1/quotes", b"{", (422, "request_invalid")),
        ("POST", "/v1/quotes", b'{"spec": {}, "extra": 1}', (422, "request_invalid")),
        ("POST", "/v1/quotes", b'{"spec": {}}', (422, "spec_invalid")),
        (
            "POST",
            "/v1/quotes",
            b'{"spec": {"version": 1, "command": ["x"], "resources": {"cpus": NaN}}}',
            (422, "request_invalid"),
        ),
        (
            "POST",
            "/v1/quotes",
            b'{"spec": {"version": 1, "command": ["x"], "resources": {"cpus": 1e400}}}',
            (422, "request_invalid"),
        ),
        ("POST", "/v1/quotes", b'{"spec": {"version": 1, "command": ["\\ud800"]}}', (422, "request_invalid")),
        ("POST", "/v1/quotes", b'{"spec": {"version": 1, "command": ["a\\u0000b"]}}', (422, "request_invalid")),
        ("POST", "/v1/quotes", b'{"spec": {"version": 1, "command": ["\xff"]}}', (422, "request_invalid")),
        ("POST", "/v1/quotes", b'{"spec":' + b"[" * 100_000, (422, "request_invalid")),
        ("POST", "/v1/quotes", None, (422, "request_invalid")),
        ("GET", "/v1/jobs?sate=failed", None, (422, "request_invalid")),
        ("GET", "/v1/credit?limit=1", None, (422, "request_invalid")),
        ("POST", "/v1/quotes", b" " * ((1 << 20) + 1), (413, "body_too_large")),
        ("POST", "/v1/keys", b'{"name": "x", "spend_cap": 1}', (403, "wallet_needed")),
    ],
)
async def test_every_error_is_a_problem_with_a_stable_code(
    served: ServedWorld, method: str, path: str, content: bytes | None, expected: tuple[int, str]
) -> None:
    async with served.bearer((await served.api_key()).secret) as http:
        headers = {"content-type": "application/json"}
        answer = await http.request(method, path, content=content, headers=headers)
        assert problem(answer) == expected
        if expected[0] == 405:
            assert "GET" in answer.headers["allow"]
        assert answer.json().get("hint") or expected[1] == "spec_invalid"


async def test_a_misspelt_parameter_is_refused_by_its_name_and_never_without_effect(served: ServedWorld) -> None:
    async with served.bearer((await served.api_key()).secret) as http:
        answer = (await http.get("/v1/jobs?sate=failed")).json()
        bytes_url = (await http.get("/v1/market?fresh=1")).json()
    assert (answer["field"], answer["value"]) == ("query.sate", "failed")
    assert answer["hint"] == 'did you mean "state"?'
    assert bytes_url["hint"] == "this operation takes none"


@pytest.mark.parametrize("header", ["If-Match", "If-Unmodified-Since"])
async def test_a_precondition_that_nothing_checks_is_refused_and_nothing_is_done(
    served: ServedWorld, header: str
) -> None:
    async with served.bearer((await served.api_key()).secret) as http:
        job = {"spec": spec(limits={"max_duration": "1h", "max_cost": "1"})}
        answer = await http.post("/v1/jobs", json=job, headers={header: '"old"'})
        there = (await http.get("/v1/jobs")).json()["jobs"]
    assert problem(answer) == (422, "precondition_unsupported")
    assert there == []


async def test_what_may_be_a_password_where_a_secrets_name_belongs_is_not_repeated(served: ServedWorld) -> None:
    registries = {"r.example": {"username": "ME", "password": "hunter2 pw"}}
    async with served.bearer((await served.api_key()).secret) as http:
        answer = await http.post("/v1/quotes", json={"spec": spec(image="r.example/x", registries=registries)})
    assert problem(answer) == (422, "spec_invalid")
    assert answer.json()["field"] == "registries.r.example.password"
    assert "hunter2" not in answer.text


async def test_what_is_no_id_is_named_and_where_ids_are_found(served: ServedWorld) -> None:
    async with served.bearer((await served.api_key()).secret) as http:
        answer = (await http.get("/v1/jobs/job_x")).json()
    assert (answer["field"], answer["value"], answer["title"]) == ("path.job_id", "job_x", "this is no job id")
    assert "torg ps" in answer["hint"]


async def test_a_key_submits_under_its_credit_and_what_the_job_did_not_cost_comes_back(served: ServedWorld) -> None:
    key = await served.api_key()
    async with served.bearer(key.secret) as http:
        job = await submitted(http)
        credit = (await http.get("/v1/credit")).json()
        assert (credit["held"], credit["available"]) == (job["max_amount"], 50 * TUSD - job["max_amount"])
        assert job["client"] == "acct_test"

        cancelled = (await http.post(f"/v1/jobs/{job['job_id']}/cancel")).json()
        assert cancelled["state"] == "cancelled"
        assert (await http.get("/v1/credit")).json() == {
            "account": "acct_test",
            "granted": 50 * TUSD,
            "spent": 0,
            "held": 0,
            "available": 50 * TUSD,
        }


async def test_neither_the_keys_cap_nor_the_accounts_credit_can_be_overdrawn(served: ServedWorld) -> None:
    small = await served.api_key(name="small", spend_cap=TUSD)
    async with served.bearer(small.secret) as http:
        await submitted(http)
        answer = await http.post("/v1/jobs", json={"spec": spec(**CAPPED)})
        assert problem(answer) == (409, "spend_cap_reached")
        assert (await http.get("/v1/credit")).json()["held"] == (await http.get("/v1/jobs")).json()["jobs"][0][
            "max_amount"
        ]
    poor = await served.api_key(account="acct_poor", credit=TUSD // 2, spend_cap=9 * TUSD)
    async with served.bearer(poor.secret) as http:
        assert problem(await http.post("/v1/jobs", json={"spec": spec(**CAPPED)})) == (409, "credit_exhausted")
        assert (await http.get("/v1/jobs")).json()["jobs"] == []


async def test_many_submissions_at_once_stay_within_the_cap(served: ServedWorld) -> None:
    key = await served.api_key(spend_cap=3 * TUSD)
    async with served.bearer(key.secret) as http:
        answers = await asyncio.gather(*(http.post("/v1/jobs", json={"spec": spec(**CAPPED)}) for _ in range(8)))
        assert sorted(answer.status_code for answer in answers) == [201] * 3 + [409] * 5


async def test_the_same_idempotency_key_is_the_same_job_and_another_body_a_conflict(served: ServedWorld) -> None:
    async with served.bearer((await served.api_key()).secret) as http:
        first, again = await submitted(http, "one"), await submitted(http, "one")
        assert first["job_id"] == again["job_id"]
        other = await http.post(
            "/v1/jobs", json={"spec": spec(**CAPPED, name="other")}, headers={"idempotency-key": "one"}
        )
        assert problem(other) == (409, "idempotency_key_reused")


async def test_a_wallet_makes_lists_and_revokes_keys_and_the_secret_is_kept_as_a_hash(served: ServedWorld) -> None:
    async with served.wallet() as http:
        made = (await http.post("/v1/keys", json={"name": "ci", "spend_cap": 5, "scopes": ["jobs:read"]})).json()
        twice = await http.post("/v1/keys", json={"name": "ci", "spend_cap": 5})
        assert problem(twice) == (409, "key_name_taken")
        assert made["key"]["account"] == served.client.account
        stored = await served.world.market.sessions().connection()
        dump = str((await stored.exec_driver_sql("SELECT * FROM api_keys")).all())
        await stored.close()
        assert made["secret"] not in dump
        assert hashlib.sha256(made["secret"].encode()).hexdigest() in dump
        async with served.bearer(made["secret"]) as bearer:
            assert (await bearer.get("/v1/jobs")).status_code == 200
            assert problem(await bearer.post("/v1/quotes", json={"spec": spec()})) == (403, "api_key_scope")
            revoked = (await http.delete(f"/v1/keys/{made['key']['key_id']}")).json()
            assert revoked["revoked_at_ms"] is not None
            assert problem(await bearer.get("/v1/jobs")) == (401, "api_key_revoked")
        (listed,) = (await http.get("/v1/keys")).json()["keys"]
        assert listed["key_id"] == made["key"]["key_id"]


async def test_keys_expire_and_wrong_secrets_are_refused(served: ServedWorld) -> None:
    key = await served.api_key(expires_in_s=60)
    async with served.bearer(key.secret[:-1] + "!") as http:
        assert problem(await http.get("/v1/jobs")) == (401, "api_key_unknown")
    async with served.http(headers={"authorization": "Basic eA=="}) as http:
        assert problem(await http.get("/v1/jobs")) == (401, "api_key_malformed")
    served.world.clock.advance(60_000)
    async with served.bearer(key.secret) as http:
        assert problem(await http.get("/v1/jobs")) == (401, "api_key_expired")


async def test_a_key_sees_its_own_account_only(served: ServedWorld) -> None:
    one, other = await served.api_key(), await served.api_key(account="acct_other")
    async with served.bearer(one.secret) as mine, served.bearer(other.secret) as theirs:
        job = await submitted(mine)
        assert problem(await theirs.get(f"/v1/jobs/{job['job_id']}")) == (404, "job_unknown")
        assert (await theirs.get("/v1/jobs")).json()["jobs"] == []


async def test_pages_and_filters(served: ServedWorld) -> None:
    async with served.bearer((await served.api_key()).secret) as http:
        made = []
        for name in ("a", "b", "a", "c", "a"):
            made.append((await submitted(http, name=name))["job_id"])
            served.world.clock.advance(1)
        seen: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = (await http.get("/v1/jobs", params={"limit": "2", **cursor})).json()
            seen += [job["job_id"] for job in page["jobs"]]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert seen == made[::-1]
        named = (await http.get("/v1/jobs", params={"name": "a", "state": ["queued", "leased"]})).json()["jobs"]
        assert [job["job_id"] for job in named] == [made[4], made[2], made[0]]
        assert (await http.get("/v1/jobs", params={"state": "failed"})).json()["jobs"] == []
        offers = (await http.get("/v1/offers", params={"max_price_per_gpu_hour": "0"})).json()
        assert offers == {"offers": [], "next_cursor": None}


async def test_a_body_that_is_no_json_is_told_so_and_from_where(served: ServedWorld) -> None:
    async with served.bearer((await served.api_key()).secret) as http:
        json_type = {"content-type": "application/json"}
        broken = (await http.post("/v1/quotes", content=b'{"spec": ', headers=json_type)).json()
        assert broken["field"] == "body"
        assert "not JSON, from character 9 on" in broken["title"]
        form = (await http.post("/v1/quotes", data={"spec": "x"})).json()
        assert (form["field"], form["hint"]) == ("body", "send one, and with it Content-Type: application/json")
    async with served.http() as nobody:
        assert "Authorization: Bearer torgkey_" in (await nobody.get("/v1/jobs")).json()["hint"]


async def test_entity_tags_and_waiting(served: ServedWorld) -> None:
    async with served.bearer((await served.api_key()).secret) as http:
        job = await submitted(http)
        path = f"/v1/jobs/{job['job_id']}"
        first = await http.get(path)
        tag = {"if-none-match": first.headers["etag"]}
        same = await http.get(path, headers=tag)
        assert (same.status_code, same.content) == (304, b"")
        started = time.monotonic()
        assert (await http.get(path, headers=tag, params={"wait": "1"})).status_code == 304
        assert time.monotonic() - started >= 1

        changed, closed = (
            asyncio.create_task(http.get(path, headers=tag, params={"wait": "30"})),
            asyncio.create_task(http.get(path, params={"wait": "30"})),
        )
        await asyncio.sleep(0.1)
        await http.post(f"{path}/cancel")
        assert (await changed).json()["state"] == (await closed).json()["state"] == "cancelled"
        receipts = await http.get(f"{path}/receipts")
        again = await http.get(f"{path}/receipts", headers={"if-none-match": receipts.headers["etag"]})
        assert again.status_code == 304


async def test_events_resume_after_the_last_one_seen(served: ServedWorld) -> None:
    async with served.bearer((await served.api_key()).secret) as http:
        path = f"/v1/jobs/{(await submitted(http))['job_id']}"
        await http.post(f"{path}/cancel")
        whole = (await http.get(f"{path}/events")).text
        events = [json.loads(line.removeprefix("data: ")) for line in whole.splitlines() if line.startswith("data: ")]
        assert len(events) >= 2
        rest = (await http.get(f"{path}/events", headers={"last-event-id": str(events[0]["id"])})).text
        assert rest == whole[whole.index(f"id: {events[1]['id']}") :]


async def test_who_asks_too_much_is_told_how_long_to_wait(tmp_path: Path) -> None:
    async with served_world(tmp_path, requests_per_minute=3) as served, served.http() as http:
        answers = [await http.get("/v1/market") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[0].headers["ratelimit-policy"] == '"requests";q=3;w=60'
        assert [answer.headers["ratelimit"].split(";")[1] for answer in answers[:3]] == ["r=2", "r=1", "r=0"]
        assert problem(answers[3]) == (429, "rate_limited")
        assert 0 < int(answers[3].headers["retry-after"]) <= 20
        async with served.bearer((await served.api_key()).secret) as other:
            assert (await other.get("/v1/jobs")).status_code == 200


async def test_a_download_goes_on_where_it_broke(served: ServedWorld) -> None:
    data = bytes(range(256)) * 100
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    async with served.bearer((await served.api_key(scopes=[Scope.DATA_READ, Scope.DATA_WRITE])).secret) as http:
        upload = (await http.post("/v1/blobs", json={"digest": digest, "size_bytes": len(data)})).json()
        assert (await http.put(upload["url"], content=data)).status_code == 204
        url = (await http.get(f"/v1/blobs/{digest}")).json()["url"]
        part = await http.get(url, headers={"range": "bytes=25000-"})
        assert (part.status_code, part.content) == (206, data[25_000:])
        assert part.headers["content-range"] == f"bytes 25000-{len(data) - 1}/{len(data)}"
        assert (await http.get(url, headers={"range": "bytes=99999999-"})).status_code == 200
