"""Two API processes of one marketplace are one to who asks: a signature is good once, and a limit holds, whichever of them is asked."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from solders.keypair import Keypair

from scripts.market_processes import script, start
from tests.support.nats import running_nats
from tests.support.postgres import Postgres, postgres
from tests.support.small_market import SmallMarket
from torg_protocol.httpsig import RequestParts, sign_request

__all__ = ["postgres"]
pytestmark = pytest.mark.timeout(900)
PER_MINUTE = 10
AUTHORITY = "torg.example"  # the name of the balancer before them, which is what clients sign


@pytest.fixture
async def replicas(tmp_path: Path, postgres: Postgres) -> AsyncIterator[tuple[str, str]]:
    market = SmallMarket(tmp_path)
    running = []
    with running_nats() as bus_url:
        try:
            await market.start_localnet()
            env = {
                "TORG_MARKETPLACE_DATABASE_URL": postgres.new_database(),
                "TORG_MARKETPLACE_REQUESTS_PER_MINUTE": str(PER_MINUTE),
            }
            for name in ("a", "b"):
                argv = [script("torg-marketplace"), "serve", "--role", "api", "--port", "0", "--bus-url", bus_url]
                argv += ["--data", str(tmp_path / name / "data"), "--rpc-url", market.rpc_url]
                if name == "b":  # another folder with the same keys: the two share nothing on disk
                    (tmp_path / name / "data").mkdir(mode=0o700, parents=True)
                    for key in (tmp_path / "a" / "data").glob("*.json"):
                        (tmp_path / name / "data" / key.name).write_bytes(key.read_bytes())
                        (tmp_path / name / "data" / key.name).chmod(0o600)
                running.append(await start(f"api {name}", argv, tmp_path / f"{name}.log", env=env))
            yield running[0].ready["url"], running[1].ready["url"]
        finally:
            for process in running:
                await process.stop()
            await market.stop()


def signed(key: Keypair) -> dict[str, str]:
    parts = RequestParts("GET", AUTHORITY, "/v1/jobs", "?", {}, b"")
    headers = sign_request(key, parts, created_s=int(time.time()), nonce=secrets.token_urlsafe(18))
    return {"host": AUTHORITY, **headers}


async def test_signatures_and_requests_are_counted_over_both(replicas: tuple[str, str]) -> None:
    alice, bob = Keypair(), Keypair()
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:

        async def ask(replica: str, headers: dict[str, str]) -> tuple[int, str | None]:
            answer = await http.get(f"{replica}/v1/jobs", headers=headers)
            return answer.status_code, None if answer.is_success else answer.json()["code"]

        caught = signed(alice)
        assert await ask(replicas[0], caught) == (200, None)
        assert [await ask(replica, caught) for replica in replicas] == [(401, "signature_replayed")] * 2

        flood = [ask(replica, signed(bob)) for _ in range(PER_MINUTE) for replica in replicas]
        began_s = time.monotonic()
        said = await asyncio.gather(*flood)
        refilled = (time.monotonic() - began_s) * PER_MINUTE / 60
        let_in = said.count((200, None))
        assert said.count((429, "rate_limited")) == 2 * PER_MINUTE - let_in
        assert PER_MINUTE <= let_in <= PER_MINUTE + refilled
        assert await ask(replicas[1], signed(alice)) == (200, None)
