"""The composition root: reads settings, builds engines, picks implementations, serves. Nothing else does any of that."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from types import FrameType
from typing import TypeVar

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from starlette.middleware.cors import CORSMiddleware

from torg_chain.network import LOCALNET_MINT, LOCALNET_PROGRAM_ID, Network
from torg_chain.rpc import ChainClient
from torg_chain.vault_operations import ensure_operator_config
from torg_chain.wallet import create_keypair, load_keypair
from torg_host.tracing import export_to
from torg_marketplace.api import account, channel, contract, health, jobs, keys, market, problems, webhooks
from torg_marketplace.api import blobs as blob_routes
from torg_marketplace.api import data as data_routes
from torg_marketplace.api import sign_in as sign_in_routes
from torg_marketplace.api import volumes as volume_routes
from torg_marketplace.api.bodies import GatheringProtocol
from torg_marketplace.api.context import Edge
from torg_marketplace.api.hub import Hub
from torg_marketplace.api.limits import Bounds, LocalAdmission, RateLimiter
from torg_marketplace.bus import BusLinks, open_bus
from torg_marketplace.clock import HostClock
from torg_marketplace.flow.liveness import on_startup
from torg_marketplace.flow.sign_in import SignIn
from torg_marketplace.flow.unit import Market
from torg_marketplace.gateway import tunnels
from torg_marketplace.gateway.relay import Tunnels
from torg_marketplace.logs import JsonLines, TextLines
from torg_marketplace.metrics import serve_metrics
from torg_marketplace.ports import Admission
from torg_marketplace.roles import check_roles, join_bus, working
from torg_marketplace.settings import Settings
from torg_marketplace.storage.blobs import StoredBlobs, bucket_blobs, local_blobs
from torg_marketplace.storage.engine import create_engine, create_sessions
from torg_marketplace.storage.nonces import NonceStore
from torg_marketplace.storage.schema import upgrade
from torg_marketplace.storage.shared_admission import SharedAdmission
from torg_marketplace.workers.catalogue import FolderCatalogue
from torg_marketplace.workers.evaluator import SandboxEvaluator
from torg_marketplace.workers.replayer import SandboxReplayer
from torg_protocol.errors import Conflict, Unavailable

T = TypeVar("T")
log = logging.getLogger(__name__)
_FEES_LAMPORTS = 10**9
_SHUTDOWN_S = 3
_NETWORK_FILE = "network.json"


class SystemRandomness:
    def bits(self, count: int) -> int:
        return secrets.randbits(count)


def make_keys(settings: Settings) -> tuple[Keypair, Keypair]:
    """Identity and capture key, made at first use. Raises WalletError for unreadable ones."""
    keys = []
    for name in ("identity.json", "capture.json"):
        path = settings.data / name
        keys.append(load_keypair(path) if path.exists() else create_keypair(path))
    return keys[0], keys[1]


def make_credit_key(settings: Settings) -> Keypair:
    """The operator's own wallet that pays for jobs of API keys; made at first use."""
    path = settings.data / "credit.json"
    return load_keypair(path) if path.exists() else create_keypair(path)


def database_url(settings: Settings) -> str:
    return settings.database_url or f"sqlite:///{settings.data / 'marketplace.sqlite'}"


def open_blobs(settings: Settings, identity: Keypair, url: str) -> StoredBlobs:
    folder, bounds = settings.data / "blobs", {"max_bytes": settings.max_blob_bytes}
    secret = hashlib.sha256(b"torg blob urls" + bytes(identity)).digest()
    if settings.blobs is None:
        blobs = local_blobs(folder, secret, **bounds)
    else:
        blobs = bucket_blobs(settings.blobs, settings.blobs_endpoint, folder, secret, **bounds)
    blobs.base_url = url
    return blobs


@asynccontextmanager
async def open_admission(settings: Settings) -> AsyncIterator[Admission]:
    """On PostgreSQL there may be other processes, which count together."""
    url = database_url(settings)
    if url.startswith("postgresql"):
        shared = SharedAdmission(url, settings.requests_per_minute)
        try:
            yield shared
        finally:
            await shared.aclose()
    else:
        nonces = NonceStore(settings.data / "nonces.sqlite")
        try:
            yield LocalAdmission(nonces, RateLimiter(settings.requests_per_minute))
        finally:
            nonces.close()


async def serve(settings: Settings) -> None:
    """Runs the marketplace until SIGTERM or SIGINT; prints one JSON line when it is ready."""
    check_roles(settings)
    listener = listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    url = settings.public_url or f"http://{host}:{port}"
    async with AsyncExitStack() as stack:
        if settings.otlp_endpoint is not None:
            stop_traces = export_to(settings.otlp_endpoint, "torg-marketplace", settings.role)
            stack.push_async_callback(asyncio.to_thread, stop_traces)
        edge = await stack.enter_async_context(open_edge(settings, url))
        await _patiently(edge.blobs.probe)
        if settings.role == "all":
            await on_startup(edge.market)
        app = make_app(edge, settings.role)
        server = DrainingServer(_uvicorn_config(app), edge.ending, settings.drain / 1000)
        serving = asyncio.create_task(server.serve([listener]))
        at_work = await stack.enter_async_context(working(edge, settings))
        ready: dict[str, str | int] = {
            "url": url,
            "marketplace": edge.market.public_key,
            "operator_config": edge.market.network.operator_config,
        }
        if settings.metrics_port is not None:
            ready["metrics_port"], stop_metrics = serve_metrics(
                settings.metrics_port,
                lambda: len(edge.hub.connected()),
                lambda: edge.market.vitals.fee_payer_lamports,
            )
            stack.callback(stop_metrics)
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn offers no event for it
            await asyncio.sleep(0.01)
        print(json.dumps(ready), flush=True)  # noqa: T201 - the one line that says where it listens
        try:
            await asyncio.wait({serving, at_work}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.should_exit = True
            edge.hub.close_all()
            app.state.tunnels.close_all()
            await serving
        if at_work.done() and not at_work.cancelled() and (error := at_work.exception()) is not None:
            raise error  # loops end only so: whoever supervises this process has to start it again


def listen(host: str, port: int) -> socket.socket:
    """asyncio switches Nagle's algorithm off only on sockets that say they are TCP, which `create_server`'s do not: with it on, an answer of
    two writes waits for the other side's delayed acknowledgement, 40 ms."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


@asynccontextmanager
async def open_edge(settings: Settings, url: str) -> AsyncIterator[Edge]:
    """Everything that the HTTP layer and the workers share; the database is migrated, the operator's config is on chain."""
    async with _open(settings, url, _network_when_there) as edge:
        yield edge


@asynccontextmanager
async def open_beside(settings: Settings, *, asks_chain: bool) -> AsyncIterator[Edge]:
    """The same for one command of the operator, beside a market that runs or not: nobody is waited for. Without `asks_chain` the command is
    about the database alone, and an RPC node that is away is none of its business. Raises Unavailable `chain_unavailable`, Conflict
    `chain_other`."""
    async with _open(settings, "", _network_now if asks_chain else _network_known) as edge:
        yield edge


_FindNetwork = Callable[[Settings, ChainClient, Keypair, Keypair], Awaitable[Network]]


@asynccontextmanager
async def _open(settings: Settings, url: str, find_network: _FindNetwork) -> AsyncIterator[Edge]:
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity, capture_key = make_keys(settings)
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(ChainClient(settings.rpc_url))
        network = await find_network(settings, chain, identity, capture_key)
        engine = create_engine(database_url(settings))
        stack.push_async_callback(engine.dispose)
        await upgrade(engine)
        blobs = open_blobs(settings, identity, url)
        catalogue = FolderCatalogue(settings.workloads)
        hub = Hub()
        bus = None
        if settings.bus_url is not None:
            bus = await stack.enter_async_context(open_bus(settings.bus_url, str(identity.pubkey())))
        links = BusLinks(hub, bus) if bus is not None else None
        admission = await stack.enter_async_context(open_admission(settings))
        the_market = Market(
            sessions=create_sessions(engine),
            clock=HostClock(),
            random=SystemRandomness(),
            identity=identity,
            capture_key=capture_key,
            network=network,
            chain=chain,
            blobs=blobs,
            links=links or hub,
            catalogue=catalogue,
            evaluator=SandboxEvaluator(catalogue, blobs),
            replayer=SandboxReplayer(blobs) if importlib.util.find_spec("torch") is not None else None,
            policy=settings.policy(network.decimals),
            credit_key=make_credit_key(settings),
        )
        secret = hashlib.sha256(b"torg sign-in" + bytes(identity)).digest()
        sign_in = SignIn.at(url, settings.sign_in_domains, secret)
        edge = Edge(the_market, hub, blobs, admission, sign_in=sign_in)
        if bus is not None and links is not None:
            await join_bus(edge, links, bus)
        yield edge


def make_app(edge: Edge | None, role: str = "all") -> FastAPI:
    """What a process of this role serves. `edge` None: only for printing the OpenAPI document."""
    app = FastAPI(generate_unique_id_function=contract.operation_id, redirect_slashes=False)
    app.state.edge, app.state.tunnels = edge, Tunnels()
    parts = [health]
    if role in {"all", "api"}:
        parts = [
            market,
            health,
            jobs,
            account,
            blob_routes,
            data_routes,
            volume_routes,
            keys,
            sign_in_routes,
            webhooks,
            channel,
        ]
    if role in {"all", "gateway"}:
        parts.append(tunnels)
    routers = [module.router for module in parts]
    for router in routers:
        app.include_router(router, responses=contract.PROBLEMS)
    problems.install(app, routers)
    app.add_middleware(Bounds)
    if edge is not None and edge.sign_in.origins:
        app.add_middleware(CORSMiddleware, allow_origins=edge.sign_in.origins, allow_methods=["*"], allow_headers=["*"])
    app.openapi = lambda: contract.document(app, routers)  # type: ignore[method-assign] # FastAPI's own way to extend it
    return app


async def _network_when_there(
    settings: Settings, chain: ChainClient, identity: Keypair, capture_key: Keypair
) -> Network:
    """Waits for the RPC node."""
    await _patiently(chain.genesis_hash)
    return await _network(settings, chain, identity, capture_key)


async def _network_now(settings: Settings, chain: ChainClient, identity: Keypair, capture_key: Keypair) -> Network:
    """Asks whether it is there, and still the chain that the books are about."""
    try:
        genesis = await chain.genesis_hash()
        known = _read_network(settings)
        if known is None:
            return await _network(settings, chain, identity, capture_key)
    except Unavailable as error:
        raise Unavailable(
            f"the chain's RPC node does not answer: {error.message}",
            code="chain_unavailable",
            field="--rpc-url",
            value=settings.rpc_url,
            hint="start it, or name another with --rpc-url or TORG_MARKETPLACE_RPC_URL; nothing was changed",
        ) from error
    if known.genesis_hash != genesis:
        raise Conflict(
            "this RPC node is of another chain than the books",
            code="chain_other",
            field="--rpc-url",
            value=settings.rpc_url,
            hint=f"the books are about the chain whose genesis hash is {known.genesis_hash}",
        )
    return known


async def _network_known(settings: Settings, chain: ChainClient, identity: Keypair, capture_key: Keypair) -> Network:
    """As a marketplace that was served here has found it; of one that never was, the chain must tell."""
    return _read_network(settings) or await _network_now(settings, chain, identity, capture_key)


def _read_network(settings: Settings) -> Network | None:
    """What was found out about the chain, unless the settings now name another program or mint."""
    try:
        known = Network.model_validate_json((settings.data / _NETWORK_FILE).read_text())
    except (FileNotFoundError, ValidationError):
        return None
    asked = (settings.program_id or LOCALNET_PROGRAM_ID, settings.mint or LOCALNET_MINT)
    return known.model_copy(update={"rpc_url": settings.rpc_url}) if (known.program_id, known.mint) == asked else None


def _keep_network(settings: Settings, network: Network) -> None:
    """Beside the keys, for commands that need no chain. Written as a whole or not at all: others may read it now."""
    path = settings.data / _NETWORK_FILE
    fresh = path.with_suffix(f".{os.getpid()}.new")
    fresh.write_text(network.model_dump_json())
    fresh.replace(path)


async def _network(settings: Settings, chain: ChainClient, identity: Keypair, capture_key: Keypair) -> Network:
    """Sees to the operator's config, and on a localnet to fees."""
    genesis = await chain.genesis_hash()
    program = Pubkey.from_string(settings.program_id or LOCALNET_PROGRAM_ID)
    mint = settings.mint or LOCALNET_MINT
    if settings.program_id is None:
        for key in (identity, capture_key):
            if await chain.lamports(key.pubkey()) < _FEES_LAMPORTS // 10:
                await chain.localnet("requestAirdrop", [str(key.pubkey()), _FEES_LAMPORTS])
    config = await ensure_operator_config(
        chain, program, admin=identity, capture_key=capture_key.pubkey(), fee_owner=identity.pubkey()
    )
    network = Network(
        rpc_url=settings.rpc_url,
        genesis_hash=genesis,
        program_id=str(program),
        mint=mint,
        decimals=await chain.mint_decimals(Pubkey.from_string(mint)),
        operator_config=str(config),
    )
    _keep_network(settings, network)
    return network


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """A marketplace that starts before what it needs waits for it."""
    while True:
        try:
            return await ask()
        except Unavailable as error:
            log.warning("%s; waiting for it", error.message)
            await asyncio.sleep(1)


class DrainingServer(uvicorn.Server):
    """At the first SIGTERM says that it is not ready, so that a balancer sends nobody here any more, and ends `drain_s` later; a second
    one, or SIGINT, ends it at once. SIGTERM is not raised again afterwards, which is uvicorn's way: it would end the process before its loops
    and connections have ended."""

    def __init__(self, config: uvicorn.Config, ending: asyncio.Event, drain_s: float) -> None:
        super().__init__(config)
        self._ending, self._drain_s = ending, drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        is_first = not self._ending.is_set()
        self._ending.set()
        if sig != signal.SIGTERM:
            super().handle_exit(sig, frame)
        elif is_first and self._drain_s > 0:
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(loop.call_later, self._drain_s, self._end)
        else:
            self._end()

    def _end(self) -> None:
        self.should_exit = True


def _uvicorn_config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        http=GatheringProtocol,
        timeout_graceful_shutdown=_SHUTDOWN_S,
        ws="websockets-sansio",
        ws_max_size=4 << 20,
        lifespan="off",
    )


def configure_logging(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    # Which revisions it runs is told, what it assumes about the database is not.
    logging.getLogger("alembic.runtime.migration").addFilter(lambda record: record.getMessage().startswith("Running"))
