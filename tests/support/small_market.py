"""A whole market of real processes for end-to-end tests: localnet, marketplace, one node with the sandbox; and a client with a vault."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from solders.keypair import Keypair

from scripts.market_processes import Running, call, remove_containers, script, start
from tests.support.ports import own_port
from tests.support.searching import matching
from tests.support.waiting import until
from torg.client import AsyncClient
from torg.config import ClientConfig
from torg.spec_file import SpecFile, spec_from_mapping
from torg_chain.rpc import ChainClient
from torg_chain.wallet import save_keypair
from torg_protocol.api import JobView

TUSD = 1_000_000


@dataclass
class SmallMarket:
    folder: Path
    database_url: str | None = None  # of the marketplace; default: its own SQLite
    max_unpaid: str = "10"  # of the node, in tokens
    price: str = "1.00"  # of the node, in tokens per hour
    spot_price: str | None = None
    mint: str = ""  # default: the localnet's own
    usage_interval: str = "10m"
    egress: str = "none"  # of the node; with anything else it also lends this host's loopback, where tests serve
    proof_interval: str = "0s"  # of hardware: most tests want nobody to compute beside them
    slot_ms: int = 50  # of the localnet
    heartbeat: str = (
        "3s"  # after three of them a silent node gets no work: on a busy machine an agent has to wait for its turn
    )
    node_settings: Mapping[str, int] = field(default_factory=dict)  # what `torg-node init` has no option for
    marketplace_env: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()  # more of `torg-marketplace serve`; the last of two wins
    localnet: Running | None = None
    marketplace: Running | None = None
    node: Running | None = None
    ports: dict[str, int] = field(default_factory=dict)
    rpc_url: str = ""
    url: str = ""

    async def start_localnet(self) -> None:
        argv = [
            script("torg-localnet"),
            "--data",
            str(self.folder / "localnet"),
            "--port",
            str(self.ports.get("localnet") or own_port()),
        ]
        argv += ["--slot-ms", str(self.slot_ms), "--finalize-after-slots", "3"]
        self.localnet = await start("localnet", argv, self.folder / "localnet.log")
        self.rpc_url = self.localnet.ready["rpc_url"]
        self.ports["localnet"] = int(self.rpc_url.rsplit(":", 1)[1])

    async def start_marketplace(self) -> None:
        argv = [
            script("torg-marketplace"),
            "serve",
            "--data",
            str(self.folder / "marketplace"),
            "--rpc-url",
            self.rpc_url,
        ]
        argv += [
            "--port",
            str(self.ports.get("marketplace") or own_port()),
            "--heartbeat",
            self.heartbeat,
            "--settlement-age",
            "1s",
        ]
        argv += ["--usage-interval", self.usage_interval, "--proof-interval", self.proof_interval, *self.options]
        env = {"TORG_MARKETPLACE_DATABASE_URL": self.database_url} if self.database_url else {}
        env |= {"TORG_MARKETPLACE_MINT": self.mint} if self.mint else {}
        env |= self.marketplace_env
        self.marketplace = await start("marketplace", argv, self.folder / "marketplace.log", env=env)
        self.url = self.marketplace.ready["url"]
        self.ports["marketplace"] = int(self.url.rsplit(":", 1)[1])

    async def start_node(self, env: Mapping[str, str] | None = None) -> None:
        data = self.folder / "node"
        if not (data / "config.toml").exists():
            init = [
                "init",
                "--data",
                str(data),
                "--marketplace",
                self.url,
                "--price",
                self.price,
                "--executor",
                "sandbox",
                "--max-unpaid",
                self.max_unpaid,
                "--yes",
                "--json",
            ]
            spot = [] if self.spot_price is None else ["--spot-price", self.spot_price]
            await call([script("torg-node"), *init, "--egress", self.egress, *spot])
            if self.egress != "none":
                config = data / "config.toml"
                config.write_text(
                    config.read_text().replace("egress_networks = []", 'egress_networks = ["127.0.0.1/32"]')
                )
        for name, value in self.node_settings.items():
            config = data / "config.toml"
            config.write_text(re.sub(rf"^{name} = .*$", f"{name} = {value}", config.read_text(), flags=re.MULTILINE))
        self.node = await start(
            "node", [script("torg-node"), "start", "--data", str(data)], self.folder / "node.log", env=env
        )

    async def stop(self) -> None:
        """Ends everything, leases first, so that no container outlives the test."""
        if self.node is not None:
            await self.node.stop()
        await remove_containers(self.folder / "node")
        for running in (self.marketplace, self.localnet):
            if running is not None:
                await running.stop()

    @contextlib.asynccontextmanager
    async def client(self, *, deposit: int = 5 * TUSD) -> AsyncIterator[AsyncClient]:
        """A new client with its own key, tokens and vault."""
        keypair = Keypair()
        home = self.folder / f"client-{keypair.pubkey()}"
        save_keypair(keypair, home / "wallet.json")
        async with ChainClient(self.rpc_url) as chain:
            await chain.faucet(keypair.pubkey(), 20 * TUSD)
        async with AsyncClient(ClientConfig(home, self.url)) as client:
            await client.vaults.open(deposit)
            yield client


@contextlib.asynccontextmanager
async def running_market(
    folder: Path, database_url: str | None = None, *, market: SmallMarket | None = None
) -> AsyncIterator[SmallMarket]:
    market = market or SmallMarket(folder, database_url)
    try:
        await market.start_localnet()
        await market.start_marketplace()
        await market.start_node()
        yield market
    finally:
        await market.stop()


async def submit(client: AsyncClient, command: list[str], **fields: object) -> JobView:
    """A small job; `fields` override the spec's top level."""
    return await submit_raw(client, {"command": command, **fields})


async def submit_raw(client: AsyncClient, fields: Mapping[str, object]) -> JobView:
    """A small job; `fields` are its spec's top level, where they differ from it."""
    return await client.submit(spec_of_small_job(client, fields))


def spec_of_small_job(client: AsyncClient, fields: Mapping[str, object]) -> SpecFile:
    raw: dict[str, object] = {
        "version": 1,
        "name": "test",
        "resources": {"memory": "128MiB", "disk": "32MiB"},
        "limits": {"max_duration": "5m"},
        "lease_grace": "10s",
    }
    return spec_from_mapping({**raw, **fields}, base=client.config.home)


async def run(client: AsyncClient, command: list[str], **fields: object) -> JobView:
    job = await submit(client, command, **fields)
    return await client.wait(job.job_id)


def let_go(folder: Path) -> None:
    """Makes the file `go` in the work folder of the only container below `folder`, which waits for it (WAIT_FOR_GO)."""
    (work,) = matching(folder, "*/*/disk/files/work")  # of a lease or a rental
    (work / "go").touch()


async def until_ended(node: Path) -> None:
    """Until one of the node's containers has; its result is there until the marketplace has it."""
    await until(lambda: bool(matching(node, "containers/sandbox/*/exit.json")), within_s=150)


WAIT_FOR_GO = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)\n"

__all__ = [
    "TUSD",
    "WAIT_FOR_GO",
    "SmallMarket",
    "let_go",
    "run",
    "running_market",
    "submit",
    "submit_raw",
    "until_ended",
]
