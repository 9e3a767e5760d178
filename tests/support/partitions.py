"""A marketplace in processes of one role each, two nodes, PostgreSQL and NATS, every one in a network of its own: the middle can lose what one of
them says to another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.market_processes import Running, call, remove_containers, script, start
from tests.support.chaos import PROCESSES, RolesMarket
from tests.support.nats import nats_server
from tests.support.networks import Place, entered, lost_between, relay_command, star
from tests.support.postgres import running_postgres
from tests.support.searching import control_groups
from torg_host.sandbox.launch import cgroup_name

NODES = ("node 1", "node 2")


@dataclass
class PartitionedMarket(RolesMarket):
    middle: Place | None = None
    relay: Running | None = None

    async def start_localnet(self) -> None:
        """In the middle, where nobody is cut off from it."""
        await super().start_localnet()
        assert self.middle is not None
        self.relay = await start("relay", relay_command(self.ports["localnet"]), self.folder / "relay.log")
        self.rpc_url = f"http://{self.middle.address}:{self.ports['localnet']}"

    @property
    def agent(self) -> Running:
        return self.processes["node 1"]

    async def start_node(self, env: object = None) -> None:
        """Those that do not run."""
        for name in NODES:
            data, place = str(self.folder / name), self.places[name]
            if (running := self.processes.get(name)) is not None and running.process.returncode is None:
                continue
            if running is None:
                init = [script("torg-node"), "init", "--data", data, "--marketplace", self.url, "--price", "1", "--yes"]
                await call(place.command(*init, "--executor", "sandbox"))
            argv = place.command(script("torg-node"), "start", "--data", data)
            self.processes[name] = await start(name, argv, self.folder / f"{name}.log")

    async def stop(self) -> None:
        await super().stop()
        for name in NODES:
            await remove_containers(self.folder / name)
        if self.relay is not None:
            await self.relay.stop()

    @contextlib.contextmanager
    def cut(self, name: str, *others: str) -> Iterator[None]:
        """Meanwhile nothing gets through between one and the others."""
        with self.unheard(*((name, other) for other in others), *((other, name) for other in others)):
            yield

    @contextlib.contextmanager
    def unheard(self, *pairs: tuple[str, str]) -> Iterator[None]:
        """Meanwhile what the first of a pair says does not get through to the second."""
        assert self.middle is not None
        with lost_between(self.middle, *((self.places[one], self.places[other]) for one, other in pairs)):
            yield

    def containers(self, node: str) -> list[str]:
        """Control groups of those that run there now."""
        prefix = cgroup_name(self.folder / node / "containers" / "sandbox" / "any").removesuffix("any")
        return sorted({group.name for group in control_groups(prefix) if _processes_in(group)})

    async def node_of(self, job_id: str) -> str | None:
        """Where its newest lease is at work."""
        leases = await self.ask(
            "SELECT node_id, state FROM leases WHERE job_id = $1 ORDER BY attempt DESC LIMIT 1", job_id
        )
        if not leases or leases[0]["state"] != "running":
            return None
        keys = {self.processes[name].ready["node"]: name for name in NODES}
        return keys[leases[0]["node_id"]]


def _processes_in(group: Path) -> str:
    """None in one that was removed since it was listed: reading it says ENOENT, or ENODEV where it was open already."""
    try:
        return (group / "cgroup.procs").read_text().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def partitioned_market(folder: Path) -> Iterator[PartitionedMarket]:
    """Not started yet. The test is in the middle as long as it lasts."""
    names = ["postgres", "nats", *PROCESSES, *NODES]
    with star(*(name.replace(" ", "-") for name in names), forwards=True) as (middle, *parties):
        places = dict(zip(names, parties, strict=True))
        with running_postgres(places["postgres"]) as postgres, nats_server(places["nats"]) as nats, entered(middle):
            url = postgres.new_database()
            yield PartitionedMarket(folder, url, nats=nats, postgres=postgres, places=places, middle=middle)
