"""Opens a market as settings describe it: keys, chain, database, blobs, bus, and what chooses between implementations. The server does so for as long
as it runs, a command of the operator for a moment; neither HTTP nor its models are loaded for the latter."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from sqlalchemy.ext.asyncio import AsyncEngine

from torg_chain.network import LOCALNET_MINT, LOCALNET_PROGRAM_ID, Network
from torg_chain.rpc import ChainClient
from torg_chain.vault_operations import ensure_operator_config
from torg_chain.wallet import create_keypair, load_keypair
from torg_marketplace.api.hub import Hub
from torg_marketplace.bus import BusLinks, join_bus, open_bus
from torg_marketplace.clock import HostClock
from torg_marketplace.flow.unit import Market
from torg_marketplace.settings import Settings
from torg_marketplace.storage.blobs import StoredBlobs, bucket_blobs, local_blobs
from torg_marketplace.storage.engine import Sessions, create_engine
from torg_marketplace.storage.schema import require_current, upgrade
from torg_marketplace.workers.catalogue import FolderCatalogue
from torg_marketplace.workers.evaluator import SandboxEvaluator
from torg_marketplace.workers.replayer import SandboxReplayer
from torg_protocol.errors import Conflict, NotFound, Unavailable

T = TypeVar("T")
log = logging.getLogger(__name__)
_FEES_LAMPORTS = 10**9
_NETWORK_FILE, _IDENTITY_FILE = "network.json", "identity.json"


@dataclass(frozen=True, slots=True)
class Opened:
    """A market with what only its server uses besides."""

    market: Market
    hub: Hub
    blobs: StoredBlobs


@asynccontextmanager
async def open_market(settings: Settings, url: str) -> AsyncIterator[Opened]:
    """The database is migrated, the operator's config is on chain; what is not there yet is waited for."""
    async with _open(settings, url, _network_when_there, upgrade) as opened:
        yield opened


@asynccontextmanager
async def open_beside(settings: Settings, *, asks_chain: bool) -> AsyncIterator[Market]:
    """The same for one command of the operator, beside a market that runs or not: nobody is waited for. Without `asks_chain` the command is
    about the database alone, and an RPC node that is away is none of its business. Raises NotFound `data_folder_unknown`, Unavailable
    `chain_unavailable`, Conflict `chain_other`, `schema_older`, `schema_newer`."""
    if not (settings.data / _IDENTITY_FILE).exists():
        raise NotFound(
            "there is no marketplace in this folder",
            code="data_folder_unknown",
            field="--data",
            value=str(settings.data),
            hint="name the one that torg-marketplace serve is given, or make it: torg-marketplace init; nothing was changed",
        )
    async with _open(settings, "", _network_now if asks_chain else _network_known, require_current) as opened:
        yield opened.market


class SystemRandomness:
    def bits(self, count: int) -> int:
        return secrets.randbits(count)


def make_keys(settings: Settings) -> tuple[Keypair, Keypair]:
    """Identity and capture key, made at first use. Raises WalletError for unreadable ones."""
    keys = []
    for name in (_IDENTITY_FILE, "capture.json"):
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


_FindNetwork = Callable[[Settings, ChainClient, Keypair, Keypair], Awaitable[Network]]
_SeeToSchema = Callable[[AsyncEngine], Awaitable[None]]


@asynccontextmanager
async def _open(
    settings: Settings, url: str, find_network: _FindNetwork, see_to_schema: _SeeToSchema
) -> AsyncIterator[Opened]:
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity, capture_key = make_keys(settings)
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(ChainClient(settings.rpc_url))
        network = await find_network(settings, chain, identity, capture_key)
        engine = create_engine(database_url(settings))
        stack.push_async_callback(engine.dispose)
        await see_to_schema(engine)
        blobs = open_blobs(settings, identity, url)
        catalogue = FolderCatalogue(settings.workloads)
        hub = Hub()
        bus = None
        if settings.bus_url is not None:
            bus = await stack.enter_async_context(open_bus(settings.bus_url, str(identity.pubkey())))
        links = BusLinks(hub, bus) if bus is not None else None
        market = Market(
            sessions=Sessions(engine),
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
        if bus is not None and links is not None:
            await join_bus(market, links, bus)
        yield Opened(market, hub, blobs)


async def _network_when_there(
    settings: Settings, chain: ChainClient, identity: Keypair, capture_key: Keypair
) -> Network:
    """Waits for the RPC node."""
    await patiently(chain.genesis_hash)
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
            error.message,
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


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """A marketplace that starts before what it needs waits for it."""
    while True:
        try:
            return await ask()
        except Unavailable as error:
            log.warning("%s; waiting for it", error.message)
            await asyncio.sleep(1)
