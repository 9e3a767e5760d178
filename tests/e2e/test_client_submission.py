"""Submitting against a real marketplace while answers get lost, processes die between two writes, and many submit at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.scripted_server import lossy_relay
from tests.support.small_market import TUSD, SmallMarket, submit
from torg.client import AsyncClient
from torg.config import ClientConfig
from torg.errors import Conflict, ReceiptInvalid, Unavailable
from torg.journal import Journal
from torg.spec_file import SpecFile, spec_from_mapping
from torg_protocol.errors import NotFound
from torg_protocol.states import JobState

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.sandbox, pytest.mark.root]

PRICE = TUSD  # per GPU-hour, as small_market's node asks
ONE_MINUTE_MAXIMUM = PRICE // 60


@pytest_asyncio.fixture(loop_scope="module")
async def client(market: SmallMarket) -> AsyncIterator[AsyncClient]:
    async with market.client() as client:
        yield client


def spec(base: Path, name: str = "test", **fields: object) -> SpecFile:
    raw: dict[str, object] = {
        "version": 1,
        "name": name,
        "command": ["true"],
        "resources": {"memory": "128MiB", "disk": "32MiB"},
        "limits": {"max_duration": "1m"},
    }
    return spec_from_mapping({**raw, **fields}, base=base)


async def vault_of(client: AsyncClient) -> str:
    return client.journal.vault((await client.market()).marketplace).address


async def jobs_of(client: AsyncClient) -> list[str]:
    return [job.job_id for job in (await client.jobs(limit=200)).jobs]


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def dying(monkeypatch: pytest.MonkeyPatch, method: str, *, after: bool) -> None:
    """The process ends just before, or just after, the journal writes this."""
    real: Callable[..., Any] = getattr(Journal, method)

    def write(self: Journal, *args: Any, **kwargs: Any) -> Any:
        if after:
            real(self, *args, **kwargs)
        raise Killed

    monkeypatch.setattr(Journal, method, write)


async def test_an_answer_that_is_lost_on_its_way_makes_no_second_job(market: SmallMarket, client: AsyncClient) -> None:
    async with lossy_relay(market.ports["marketplace"]) as relay:
        relay.lose("POST", "/v1/jobs", 2)
        async with AsyncClient(ClientConfig(client.config.home, relay.url)) as behind:
            job = await behind.submit(spec(client.config.home))

        assert relay.forwarded.count(("POST", "/v1/jobs")) == 3
    assert await jobs_of(client) == [job.job_id]
    assert client.journal.unanswered(await vault_of(client)) == []


async def test_when_no_answer_ever_comes_the_key_finds_the_job_again(market: SmallMarket, client: AsyncClient) -> None:
    async with lossy_relay(market.ports["marketplace"]) as relay:
        relay.lose("POST", "/v1/jobs", 99)
        async with AsyncClient(ClientConfig(client.config.home, relay.url)) as behind:
            with pytest.raises(Unavailable) as refused:
                await behind.submit(spec(client.config.home), idempotency_key="my-key")

    assert (refused.value.code, refused.value.value) == ("submission_unanswered", "my-key")
    assert "--idempotency-key my-key" in (refused.value.hint or "")
    assert client.journal.cap(await vault_of(client)) == ONE_MINUTE_MAXIMUM  # it may be there: it counts

    job = await client.submit(spec(client.config.home), idempotency_key="my-key")
    assert await jobs_of(client) == [job.job_id]
    again = await client.submit(spec(client.config.home), idempotency_key="my-key")
    assert again.job_id == job.job_id


async def test_a_key_stands_for_one_spec(client: AsyncClient) -> None:
    job = await client.submit(spec(client.config.home), idempotency_key="k")

    with pytest.raises(Conflict) as refused:
        await client.submit(spec(client.config.home, name="other"), idempotency_key="k")
    assert (refused.value.code, refused.value.data["job_id"]) == ("idempotency_key_reused", job.job_id)
    assert await jobs_of(client) == [job.job_id]


@pytest.mark.parametrize(
    ("method", "after"), [("reserve", False), ("reserve", True), ("submitted", False), ("submitted", True)]
)
async def test_a_crash_between_any_two_writes_is_healed_by_submitting_again(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch, method: str, after: bool
) -> None:
    vault = await vault_of(client)
    with monkeypatch.context() as crash:
        dying(crash, method, after=after)
        with pytest.raises(Killed):
            await client.submit(spec(client.config.home), idempotency_key="k")

    async with AsyncClient(client.config) as next_process:
        job = await next_process.submit(spec(client.config.home), idempotency_key="k")
        assert await jobs_of(next_process) == [job.job_id]
        assert next_process.journal.unanswered(vault) == []
        assert next_process.journal.cap(vault) <= ONE_MINUTE_MAXIMUM


@pytest.mark.parametrize("accepted", [False, True], ids=["never-sent", "accepted"])
async def test_what_a_crash_left_open_is_cleared_up_by_later_submissions_under_other_keys(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch, accepted: bool
) -> None:
    vault = await vault_of(client)
    with monkeypatch.context() as crash:
        dying(crash, "submitted" if accepted else "reserve", after=not accepted)
        with pytest.raises(Killed):
            await client.submit(spec(client.config.home))
    assert len(client.journal.unanswered(vault)) == 1

    # Soon after, it might still be on its way: it counts. Ten minutes on, its quote has expired.
    ten_minutes_ms = 600_000
    async with AsyncClient(client.config, now_ms=lambda: time.time_ns() // 1_000_000 + ten_minutes_ms) as later:
        await later.submit(spec(client.config.home, name="second"))
        assert later.journal.unanswered(vault) == []
        known = {entry.job_id for entry in later.journal.jobs(vault)}
        assert known == set(await jobs_of(later))
        assert len(known) == (2 if accepted else 1)


async def test_fifty_submissions_at_once_under_one_vault_all_get_in_and_the_cap_covers_them_exactly(
    client: AsyncClient,
) -> None:
    vault = await vault_of(client)
    # None of them ends meanwhile: what ended would count with what it cost.
    limits = {"limits": {"max_duration": "5m", "max_price_per_hour": "1"}, "command": ["sleep", "600"]}
    maximum = PRICE // 12
    terminals = [AsyncClient(client.config) for _ in range(5)]
    try:
        jobs = await asyncio.gather(
            *(
                terminals[number % 5].submit(spec(client.config.home, name=f"job-{number}", **limits))
                for number in range(50)
            )
        )
        assert len({job.job_id for job in jobs}) == 50
        assert client.journal.cap(vault) == 50 * maximum
        assert (await client.vaults.status(vault)).newest_cap <= 50 * maximum
    finally:
        for terminal in terminals:
            await terminal.aclose()
        await asyncio.gather(*(client.cancel(job_id) for job_id in await jobs_of(client)))


async def test_what_ended_counts_with_its_receipts_in_the_next_cap(client: AsyncClient) -> None:
    vault = await vault_of(client)
    job = await submit(client, ["true"])
    ended = await client.wait(job.job_id)

    assert ended.state is JobState.SUCCEEDED
    assert client.journal.cap(vault) == ended.final_amount
    assert [receipt.job_id for receipt in client.journal.receipts()] == [job.job_id]


async def test_refusals_of_every_kind_leave_nothing_on_the_books(client: AsyncClient) -> None:
    vault = await vault_of(client)
    with pytest.raises(Conflict) as poor:
        await client.submit(spec(client.config.home, limits={"max_duration": "10h"}))
    assert poor.value.code == "vault_underfunded"
    assert "torg vault deposit 5" in (poor.value.hint or "")

    catalogue = {"policy": "metric", "catalogue": "nothing", "metric": "accuracy", "target": "0.5"}
    with pytest.raises(Exception) as invalid:
        await client.submit(spec(client.config.home, verify=catalogue))
    assert invalid.value.status in {404, 422}  # type: ignore[attr-defined]  # every error here is a TorgError

    assert client.journal.cap(vault) == 0
    assert client.journal.jobs(vault) == []


async def test_jobs_from_another_computer_are_refused_first_and_adopted_when_the_user_says_so(
    market: SmallMarket, client: AsyncClient, tmp_path: Path
) -> None:
    await submit(client, ["sleep", "600"], limits={"max_duration": "5m"})
    for name in ("wallet.json", "session.json"):
        (tmp_path / name).write_bytes((client.config.home / name).read_bytes())
        (tmp_path / name).chmod(0o600)
    vault = await vault_of(client)
    async with AsyncClient(ClientConfig(tmp_path, market.url)) as other_computer:
        with pytest.raises(NotFound) as no_vault:
            await submit(other_computer, ["true"])
        assert no_vault.value.code == "no_vault"

        await other_computer.vaults.add(vault)
        with pytest.raises(Conflict) as stale:
            await submit(other_computer, ["true"])
        assert stale.value.code == "cap_stale"
        assert "torg vault adopt" in (stale.value.hint or "")

        unknown = await (await other_computer.submission()).unknown_jobs()
        assert [job.job_id for job in unknown] == await jobs_of(client)
        for job in unknown:
            other_computer.journal.adopt(
                vault=vault, job_id=job.job_id, name=job.name, max_amount=job.max_amount, now_ms=1
            )
        assert (await submit(other_computer, ["true"])).state is JobState.QUEUED
    for job_id in await jobs_of(client):
        await client.cancel(job_id)


@pytest.mark.parametrize("after", [False, True], ids=["before-the-journal", "after-sending"])
async def test_a_deposit_is_never_in_a_vault_that_nobody_knows(
    market: SmallMarket, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    async with market.client() as client:
        first = await vault_of(client)
        with monkeypatch.context() as crash:
            dying(crash, "vault_opened" if after else "add_vault", after=False)
            with pytest.raises(Killed):
                await client.vaults.open(TUSD)

        async with AsyncClient(client.config) as next_process:
            if not after:  # nothing was sent
                assert next_process.journal.opening_vaults((await client.market()).marketplace) == []
                return
            with pytest.raises(Conflict) as found:
                await next_process.vaults.open(TUSD)
            assert found.value.code == "vault_was_opened"
            assert await vault_of(next_process) == found.value.value != first
            assert (await next_process.vaults.status(str(found.value.value))).chain_balance == TUSD


async def test_a_vault_of_somebody_else_is_not_taken_over(market: SmallMarket, client: AsyncClient) -> None:
    async with market.client() as stranger:
        with pytest.raises(Exception) as refused:
            await client.vaults.add(await vault_of(stranger))
    assert refused.value.code == "vault_not_yours"  # type: ignore[attr-defined]  # a TorgError


async def test_receipts_of_another_job_are_not_booked(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = await submit(client, ["true"]), await submit(client, ["true"], name="second")
    await client.wait(first.job_id)
    await client.wait(second.job_id)
    real = client._transport.request

    async def crossed(method: str, path: str, **options: Any) -> Any:
        return await real(method, path.replace(f"{second.job_id}/receipts", f"{first.job_id}/receipts"), **options)

    monkeypatch.setattr(client._transport, "request", crossed)
    with pytest.raises(ReceiptInvalid) as refused:
        await client.receipts(second.job_id)
    assert f"job is {first.job_id}, not {second.job_id}" in refused.value.message
