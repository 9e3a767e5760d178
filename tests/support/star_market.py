"""A market whose parties are in networks of their own (tests.support.networks): all reach the marketplace in the middle, nobody anybody else."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from scripts.market_processes import Running, call, remove_containers, script, start
from tests.support.networks import MIDDLE_ADDRESS, Place, relay_command


@dataclass
class StarMarket:
    """`url` is the same from everywhere."""

    folder: Path
    url: str
    nodes: dict[str, Running] = field(default_factory=dict)  # by the name of the place that each is in

    def data_of(self, place: Place) -> Path:
        return self.folder / place.name

    async def start_node(self, place: Place) -> Running:
        data = str(self.data_of(place))
        options = ("--marketplace", self.url, "--price", "1", "--executor", "sandbox", "--max-unpaid", "10", "--yes")
        await call(place.command(script("torg-node"), "init", "--data", data, *options))
        argv = place.command(script("torg-node"), "start", "--data", data)
        self.nodes[place.name] = await start("node", argv, self.folder / f"{place.name}.log")
        return self.nodes[place.name]

    async def lose(self, place: Place) -> None:
        """The machine is gone: its agent, and all that ran on it."""
        await self.nodes[place.name].kill()
        await remove_containers(self.data_of(place))

    async def client(self, place: Place) -> list[str]:
        """A new client with money in a vault: the beginning of its commands."""
        torg = place.command(script("torg"), "--home", str(self.folder / "home"), "--marketplace", self.url)
        for arguments in (["wallet", "new"], ["wallet", "faucet"], ["vault", "open", "--deposit", "5"]):
            await call([*torg, *arguments])
        return torg


@contextlib.asynccontextmanager
async def star_market(folder: Path, middle: Place, *nodes: Place, heartbeat: str = "1s") -> AsyncIterator[StarMarket]:
    """With a node in each of these places. All that it starts ends with it."""
    running: list[Running] = []

    async def run(name: str, *argv: str) -> Running:
        running.append(await start(name, middle.command(*argv), folder / f"{name}.log"))
        return running[-1]

    market = StarMarket(folder, "")
    try:
        slots = ("--slot-ms", "50", "--finalize-after-slots", "3")
        localnet = await run(
            "localnet", script("torg-localnet"), "--data", str(folder / "localnet"), "--port", "0", *slots
        )
        rpc_port = localnet.ready["rpc_url"].rsplit(":", 1)[1]
        await run("relay", *relay_command(int(rpc_port)))
        serving = await run(
            "marketplace",
            *(script("torg-marketplace"), "serve", "--data", str(folder / "marketplace"), "--host", MIDDLE_ADDRESS),
            *("--port", "0", "--rpc-url", f"http://{MIDDLE_ADDRESS}:{rpc_port}", "--heartbeat", heartbeat),
            *("--proof-interval", "0s"),
        )
        market.url = serving.ready["url"]
        for place in nodes:
            await market.start_node(place)
        yield market
    finally:
        for process in market.nodes.values():
            await process.stop()
        for name in market.nodes:
            await remove_containers(folder / name)
        for process in reversed(running):
            await process.stop()
