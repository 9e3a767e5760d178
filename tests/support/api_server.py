"""A marketplace's real HTTP server over a `World`: flows, database and API are real; chain and node links are the world's."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from solders.keypair import Keypair

from tests.support.actors import TUSD, Client, make_client
from tests.support.credit import open_credit_vault
from tests.support.market import World, open_world
from torg_marketplace.api.context import Edge
from torg_marketplace.api.hub import Hub
from torg_marketplace.api.limits import LocalAdmission, RateLimiter
from torg_marketplace.app import listen, make_app
from torg_marketplace.flow.api_keys import create_api_key
from torg_marketplace.flow.credit import grant_credit
from torg_marketplace.rules.policy import MarketPolicy
from torg_marketplace.storage.blobs import StoredBlobs, local_blobs
from torg_marketplace.storage.nonces import NonceStore
from torg_protocol.accounts import ApiKeyRequest, NewApiKey
from torg_protocol.httpsig import RequestParts, sign_request
from torg_protocol.ids import AccountId


class WalletAuth(httpx.Auth):
    """Signs each request as a wallet does (RFC 9421)."""

    requires_request_body = True

    def __init__(self, key: Keypair) -> None:
        self._key = key
        self._nonce = 0

    def auth_flow(self, request: httpx.Request) -> Any:
        self._nonce += 1
        parts = RequestParts(
            method=request.method,
            authority=request.headers["host"],
            path=request.url.raw_path.decode().partition("?")[0],
            query=f"?{request.url.query.decode()}",
            headers={name: value for name, value in request.headers.items() if name == "idempotency-key"},
            body=request.content,
        )
        nonce = f"nonce-{id(self)}-{self._nonce:020}"
        request.headers.update(sign_request(self._key, parts, created_s=int(time.time()), nonce=nonce))
        yield request


@dataclass
class ServedWorld:
    world: World
    client: Client  # a wallet with a vault
    url: str

    def http(self, auth: httpx.Auth | None = None, headers: Mapping[str, str] | None = None) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, auth=auth, headers=headers, trust_env=False, timeout=120)

    def wallet(self) -> httpx.AsyncClient:
        return self.http(WalletAuth(self.client.key))

    def bearer(self, secret: str) -> httpx.AsyncClient:
        return self.http(headers={"authorization": f"Bearer {secret}"})

    async def api_key(self, *, credit: int = 50 * TUSD, account: str = "acct_test", **request: Any) -> NewApiKey:
        """A key of an account without a wallet, which the operator has credited."""
        wanted = ApiKeyRequest.model_validate({"name": "test", "spend_cap": credit, **request})
        async with self.world.market.transaction() as unit:
            if credit:
                await grant_credit(unit, AccountId(account), credit)
            return await create_api_key(unit, AccountId(account), wanted)


@asynccontextmanager
async def served_world(
    folder: Path,
    *,
    requests_per_minute: int = 0,
    policy: MarketPolicy | None = None,
    blobs: StoredBlobs | None = None,  # default: files in the folder
) -> AsyncIterator[ServedWorld]:
    """Its clock stands at the time of the start: signatures made in the next minutes are fresh."""
    async with open_world(folder, policy=policy) as opened:
        opened.clock.time_ms = time.time_ns() // 1_000_000
        blobs = blobs or local_blobs(folder / "blobs", b"secret", max_bytes=1 << 30)
        credit_key = opened.random.keypair()
        market = dataclasses.replace(opened.market, blobs=blobs, credit_key=credit_key)
        world = dataclasses.replace(opened, market=market)
        await open_credit_vault(world, credit_key)
        nonces = NonceStore(folder / "nonces.sqlite")
        edge = Edge(market, Hub(), blobs, LocalAdmission(nonces, RateLimiter(requests_per_minute)))
        try:
            async with serving(edge) as url:
                blobs.base_url = url
                yield ServedWorld(world, await make_client(world), url)
        finally:
            nonces.close()


@asynccontextmanager
async def serving(edge: Edge) -> AsyncIterator[str]:
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        make_app(edge), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
