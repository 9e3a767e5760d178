"""The SDK with an API key instead of a wallet, against the real API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.actors import TUSD, join, spec
from tests.support.api_server import ServedWorld, served_world
from torg.client import AsyncClient
from torg.config import ClientConfig, load_config
from torg.spec_file import spec_from_mapping
from torg_marketplace.flow.api_keys import revoke_api_key
from torg_marketplace.flow.match import match_pending
from torg_marketplace.storage import ledger
from torg_protocol.accounts import Scope
from torg_protocol.errors import Conflict, Forbidden, Invalid, Unauthorized
from torg_protocol.states import JobState

HOUR_MS = 3_600_000


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedWorld]:
    async with served_world(tmp_path) as opened:
        yield opened


def by_key(served: ServedWorld, home: Path, secret: str) -> AsyncClient:
    return AsyncClient(ClientConfig(home, served.url, api_key=secret))


async def test_a_job_from_quote_to_receipt_without_wallet_or_journal(served: ServedWorld, tmp_path: Path) -> None:
    node = await join(served.world)
    file = spec_from_mapping(spec(), base=tmp_path)
    async with by_key(served, tmp_path / "home", (await served.api_key()).secret) as client:
        quote = await client.quote(file.with_workspace(None, 0))
        job = await client.submit(file, idempotency_key="one")
        again = await client.submit(file, idempotency_key="one")
        await match_pending(served.world.market)
        await node.accept_and_start()
        await node.finish()
        receipts = await client.receipts(job.job_id)

        assert quote.feasible
        assert again.job_id == job.job_id
        assert (await client.job(job.job_id)).state is JobState.SUCCEEDED
        assert [receipt.receipt.job_id for receipt in receipts] == [job.job_id]
        assert [item.job_id for item in (await client.jobs()).jobs] == [job.job_id]
    assert not (tmp_path / "home" / "journal.db").exists()


async def test_a_keys_job_lasts_longer_out_of_its_credit(served: ServedWorld, tmp_path: Path) -> None:
    """What the extension may cost is held of key and account, once, and comes back; what they do not have left is refused, and nothing changes."""
    await join(served.world)
    file = spec_from_mapping(spec(limits={"max_duration": "1h"}), base=tmp_path)
    key = await served.api_key(spend_cap=1_000 * TUSD)
    async with by_key(served, tmp_path / "home", key.secret) as client, served.bearer(key.secret) as http:
        job = await client.submit(file)
        longer = await client.extend(job.job_id, HOUR_MS)
        assert (longer.max_duration_ms, longer.max_amount) == (2 * HOUR_MS, 2 * job.max_amount)
        assert (await http.get("/v1/credit")).json()["held"] == longer.max_amount
        again = await http.post(f"/v1/jobs/{job.job_id}/extend", json={"max_duration": "2h"})
        assert again.json()["max_amount"] == longer.max_amount
        with pytest.raises(Conflict) as exhausted:
            await client.extend(job.job_id, 100 * HOUR_MS)
        assert exhausted.value.code == "credit_exhausted"
        assert (await client.job(job.job_id)).max_duration_ms == 2 * HOUR_MS
        assert (await http.get("/v1/credit")).json()["held"] == longer.max_amount
        cap = served.client.signed_cap(job.spec, longer.max_amount).wire()
        refused = await http.post(f"/v1/jobs/{job.job_id}/extend", json={"max_duration": "3h", "cap": cap})
        assert (refused.status_code, refused.json()["code"]) == (409, "extend_on_credit")
        await client.cancel(job.job_id)
        credit = (await http.get("/v1/credit")).json()
        assert (credit["held"], credit["spent"]) == (0, 0)
    async with served.world.market.reading() as unit:
        assert await ledger.problems(unit.session) == []


async def test_what_a_key_cannot_do_is_said(served: ServedWorld, tmp_path: Path) -> None:
    await join(served.world)
    file = spec_from_mapping(spec(), base=tmp_path)
    async with by_key(served, tmp_path / "home", (await served.api_key(credit=1)).secret) as poor:
        with pytest.raises(Conflict) as capped:
            await poor.submit(file)
        with pytest.raises(Conflict) as walletless:
            await poor.submit(file, vault="mine")
        with pytest.raises(Conflict):
            await poor.vaults.open(1)
    reader = await served.api_key(account="acct_other", scopes=[Scope.JOBS_READ])
    async with by_key(served, tmp_path / "home", reader.secret) as client:
        with pytest.raises(Forbidden) as scope:
            await client.submit(file)
    assert capped.value.code == "spend_cap_reached"
    assert (walletless.value.code, scope.value.code) == ("wallet_needed", "api_key_scope")


@pytest.mark.parametrize("end", ["api_key_revoked", "api_key_expired"])
async def test_a_key_that_is_over_follows_no_longer(
    served: ServedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """A stream lasts as long as its job, which may be days: who had the key read on for as long."""
    monkeypatch.setattr("torg_marketplace.api.jobs._COMMENT_EVERY_S", 0.05)
    await join(served.world)
    key = await served.api_key(expires_in_s=3600)
    async with by_key(served, tmp_path / "home", key.secret) as client:
        job = await client.submit(spec_from_mapping(spec(), base=tmp_path))
        events = client.follow(job.job_id)
        assert (await anext(events)).kind == "job"
        if end == "api_key_revoked":
            async with served.world.market.transaction() as unit:
                await revoke_api_key(unit, None, key.key.key_id)
        else:
            served.world.clock.time_ms += HOUR_MS
        with pytest.raises(Unauthorized) as refused:
            async for _ in events:
                pass
        assert refused.value.code == end


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8700", "http://localhost:1", "http://[::1]:1", "https://market.example"]
)
def test_a_key_goes_where_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> None:
    monkeypatch.setenv("TORG_API_KEY", "torgkey_secret")
    config = load_config(tmp_path, url)
    assert config.api_key == "torgkey_secret"
    assert "secret" not in repr(config)


@pytest.mark.parametrize("url", ["http://market.example", "http://10.0.0.1:8700", "http://127.0.0.1.example.org"])
def test_a_key_never_goes_over_a_network_in_clear(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> None:
    monkeypatch.setenv("TORG_API_KEY", "torgkey_secret")
    with pytest.raises(Invalid) as refused:
        load_config(tmp_path, url)
    assert refused.value.code == "api_key_in_clear"
    assert "secret" not in str(refused.value)
