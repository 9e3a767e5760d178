"""The marketplace under load: all roles in one process, or each in its own beside a bus."""

from __future__ import annotations

from dataclasses import dataclass, field

from scripts.market_processes import Running, script, start
from tests.support.small_market import SmallMarket


class LoadMarket(SmallMarket):
    async def start_node(self, env: object = None) -> None:
        """None with a container: the load brings its own."""

    @property
    def pids(self) -> dict[str, int]:
        """By what they are called in the figures."""
        assert self.marketplace is not None
        assert self.localnet is not None
        return {"marketplace": self.marketplace.process.pid, "chain": self.localnet.process.pid}


@dataclass
class RolesLoadMarket(LoadMarket):
    """What else a role's process needs to know, the others' work, it learns from the database and the bus."""

    bus_url: str = ""
    others: dict[str, Running] = field(default_factory=dict)

    async def start_marketplace(self) -> None:
        self.marketplace = await self._start_role("api")  # makes the keys
        self.url = self.marketplace.ready["url"]
        for role in ("matcher", "worker"):
            self.others[role] = await self._start_role(role)

    async def stop(self) -> None:
        for running in self.others.values():
            await running.stop()
        await super().stop()

    @property
    def pids(self) -> dict[str, int]:
        return super().pids | {role: running.process.pid for role, running in self.others.items()}

    async def _start_role(self, role: str) -> Running:
        argv = [script("torg-marketplace"), "serve", "--data", str(self.folder / "marketplace"), "--role", role]
        argv += ["--rpc-url", self.rpc_url, "--bus-url", self.bus_url, "--port", "0"]
        argv += ["--proof-interval", self.proof_interval, *self.options]
        env = {"TORG_MARKETPLACE_DATABASE_URL": self.database_url or ""}
        return await start(role, argv, self.folder / f"{role}.log", env=env)
