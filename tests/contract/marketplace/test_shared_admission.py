"""Two processes of a marketplace (here: two of what each of them has) count signatures and requests together, in a real PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import make_url

from tests.support.postgres import Postgres, postgres, running_postgres
from tests.support.waiting import eventually
from torg_marketplace.rules.limits import Quota
from torg_marketplace.storage import shared_admission
from torg_marketplace.storage.shared_admission import SharedAdmission
from torg_protocol.errors import RateLimited, Unauthorized, Unavailable
from torg_protocol.httpsig import MAX_CLOCK_SKEW_S, VerifiedSignature

__all__ = ["postgres"]
NOW_S = 1_800_000_000
PER_MINUTE = 6  # one in ten seconds


@pytest_asyncio.fixture
async def replicas(postgres: Postgres) -> AsyncIterator[tuple[SharedAdmission, SharedAdmission]]:
    url = await with_time_that_stands_still(postgres.new_database())
    both = SharedAdmission(url, PER_MINUTE), SharedAdmission(url, PER_MINUTE)
    yield both
    for replica in both:
        await replica.aclose()


async def with_time_that_stands_still(url: str) -> str:
    """In this database, from the next connection on: on a slow machine a bucket would fill while it is asked."""
    connection = await _connect(url)
    try:
        await connection.execute(
            "CREATE SCHEMA still; CREATE FUNCTION still.now() RETURNS timestamptz LANGUAGE sql STABLE"
            " AS $$ SELECT timestamptz '2027-01-15 08:00+00' $$;"
            f" ALTER DATABASE {make_url(url).database} SET search_path = still, public, pg_catalog"
        )
    finally:
        await connection.close()
    return url


def signature(nonce: str, key: str = "alice") -> VerifiedSignature:
    return VerifiedSignature(key, NOW_S, nonce)


def assert_left(quota: Quota | None, left: int, full_in_s: int) -> None:
    """The bucket fills while it is asked: on a busy machine it may be full sooner, by less than what one request takes."""
    assert quota is not None
    assert (quota.per_minute, quota.left) == (PER_MINUTE, left)
    assert full_in_s - 60 / PER_MINUTE < quota.full_in_s <= full_in_s


async def outcomes(*requests: object) -> list[str]:
    """Codes of errors, "ok" for who was let in."""
    answers = await asyncio.gather(*requests, return_exceptions=True)  # type: ignore[call-overload]
    return ["ok" if isinstance(answer, Quota | None) else answer.code for answer in answers]


async def test_a_signature_is_good_once_at_whichever_replica(replicas: tuple[SharedAdmission, SharedAdmission]) -> None:
    one, other = replicas
    await one.admit(signature=signature("n1"))
    for replica in replicas:
        with pytest.raises(Unauthorized) as caught:
            await replica.admit(signature=signature("n1"))
        assert (caught.value.code, caught.value.value) == ("signature_replayed", "n1")
    await other.admit(signature=signature("n2"))
    await other.admit(signature=signature("n1", key="bob"))


async def test_of_many_replays_at_once_one_is_let_in(replicas: tuple[SharedAdmission, SharedAdmission]) -> None:
    requests = [replica.admit(signature=signature(f"n{n % 5}")) for n in range(40) for replica in replicas]
    said = await outcomes(*requests)
    assert (said.count("ok"), said.count("signature_replayed")) == (5, 75)


async def test_a_limit_holds_over_both_replicas(replicas: tuple[SharedAdmission, SharedAdmission]) -> None:
    one, other = replicas
    quotas = [await replica.admit(caller="carol") for replica in (one, other, one)]
    for quota, left, full_in_s in zip(quotas, (5, 4, 3), (10, 20, 30), strict=True):
        assert_left(quota, left, full_in_s)
    said = await outcomes(*(replica.admit(caller=caller) for _ in range(9) for replica in replicas for caller in "cd"))
    assert said.count("ok") == 2 * PER_MINUTE
    said = await outcomes(*(replica.admit(caller="carol") for _ in range(9) for replica in replicas))
    assert (said.count("ok"), said.count("rate_limited")) == (3, 15)
    with pytest.raises(RateLimited) as caught:
        await other.admit(caller="carol")
    assert 0 < caught.value.to_problem()["retry_after_s"] <= 10


async def test_a_bucket_fills_up_again(postgres: Postgres) -> None:
    url = await with_time_that_stands_still(postgres.new_database())
    replica = SharedAdmission(url, PER_MINUTE)
    connection = await _connect(url)
    try:
        said = [(await outcomes(replica.admit(caller="dave")))[0] for _ in range(7)]
        assert said == ["ok"] * 6 + ["rate_limited"]
        await connection.execute("UPDATE request_buckets SET counted_at_s = counted_at_s - 21")
        assert_left(await replica.admit(caller="dave"), 1, 49)
        await connection.execute(
            "UPDATE request_buckets SET counted_at_s = counted_at_s + 3600"
        )  # a clock that was set
        assert await outcomes(replica.admit(caller="dave"), replica.admit(caller="dave")) == ["ok", "rate_limited"]
    finally:
        await connection.close()
        await replica.aclose()


async def test_what_nobody_asks_for_any_more_is_forgotten(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.new_database()
    replica = SharedAdmission(url, PER_MINUTE)
    connection = await _connect(url)
    try:
        now_s = int(time.time())
        for nonce, created_s in (("old", now_s - 2 * MAX_CLOCK_SKEW_S - 60), ("new", now_s)):
            await replica.admit(signature=VerifiedSignature("alice", created_s, nonce), caller=nonce)
        await connection.execute("UPDATE request_buckets SET counted_at_s = counted_at_s - 3600 WHERE caller = 'old'")
        monkeypatch.setattr(shared_admission, "_FORGET_EVERY_S", 0.0)
        await replica.admit(caller="last")
        assert [row["nonce"] for row in await connection.fetch("SELECT nonce FROM request_nonces")] == ["new"]
        callers = await connection.fetch("SELECT caller FROM request_buckets ORDER BY caller")
        assert [row["caller"] for row in callers] == ["last", "new"]
    finally:
        await connection.close()
        await replica.aclose()


async def test_a_replayed_request_counts_against_nobody(replicas: tuple[SharedAdmission, SharedAdmission]) -> None:
    """Else whoever caught one request of somebody could keep him from asking."""
    one, other = replicas
    replay = replace(signature("n1", key="erin"))
    await one.admit(signature=replay, caller="erin")
    said = await outcomes(*(replica.admit(signature=replay, caller="erin") for _ in range(20) for replica in replicas))
    assert said == ["signature_replayed"] * 40
    assert_left(await other.admit(signature=signature("n2", key="erin"), caller="erin"), 4, 20)


async def test_a_connection_that_breaks_in_a_question_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver calls that an internal error of its own."""

    async def breaks(*_: object, **__: object) -> None:
        raise asyncpg.InternalClientError("got result for unknown protocol state")

    monkeypatch.setattr(asyncpg, "connect", breaks)
    monkeypatch.setattr(shared_admission, "_TOGETHER", 1)
    replica = SharedAdmission("postgresql+asyncpg://nobody@127.0.0.1:1/none", PER_MINUTE)
    async with asyncio.timeout(150):
        said = await outcomes(*(replica.admit(caller="gina") for _ in range(3)))
    assert said == ["database_unavailable"] * 3
    await replica.aclose()


async def test_without_limits_nothing_is_asked_of_the_database() -> None:
    nowhere = SharedAdmission("postgresql+asyncpg://nobody@127.0.0.1:1/none", 0)
    assert await nowhere.admit(caller="frank") is None
    with pytest.raises(Unavailable) as caught:
        await nowhere.admit(signature=signature("n1"))
    assert caught.value.code == "database_unavailable"
    await nowhere.aclose()


@pytest.fixture(scope="module")
def own_postgres() -> object:
    with running_postgres() as server:
        yield server


async def _connect(url: str) -> asyncpg.Connection:
    return await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string())


async def _is_on_disk(url: str) -> bool:
    """What was committed without waiting for it."""
    connection = await _connect(url)
    try:
        return bool(await connection.fetchval("SELECT pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()"))
    finally:
        await connection.close()


async def test_after_a_crash_of_the_database_signatures_are_known_and_buckets_full(own_postgres: Postgres) -> None:
    url = own_postgres.new_database()
    replica = SharedAdmission(url, PER_MINUTE)
    await replica.admit(signature=signature("n1"), caller="gina")
    await eventually(lambda: _is_on_disk(url))
    await asyncio.to_thread(own_postgres.crash)
    assert await outcomes(replica.admit(signature=signature("n1"), caller="gina")) == ["signature_replayed"]
    assert_left(await replica.admit(signature=signature("n2"), caller="gina"), 5, 10)
    await replica.aclose()
