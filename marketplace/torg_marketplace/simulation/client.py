"""A simulated client: its key, its vault, its own books, and the mischief that clients are up to."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from solders.keypair import Keypair
from solders.pubkey import Pubkey

from torg_marketplace.flow.cancel import cancel
from torg_marketplace.flow.extend import extend
from torg_marketplace.flow.quote import quote
from torg_marketplace.flow.submit import submit
from torg_marketplace.flow.vaults import refresh_vault
from torg_marketplace.flow.views import job_view
from torg_marketplace.rules.leases import latest_lease_end_ms
from torg_marketplace.simulation.volumes import NAMES
from torg_marketplace.simulation.world import WORKLOAD, World
from torg_protocol.api import ExtendRequest, JobView, Quote, SubmitRequest
from torg_protocol.canonical import digest_of
from torg_protocol.caps import SignedCap
from torg_protocol.errors import TorgError
from torg_protocol.ids import AccountId, JobId, VaultAddress
from torg_protocol.job_cost import verification_permille
from torg_protocol.jobspec import JobSpec, load_job_spec
from torg_protocol.money import cost, parse_amount
from torg_protocol.states import OPEN_JOB_STATES
from torg_protocol.vault_messages import CapMessage, sign_message

_CAP_MARGIN_S = 3 * 3600


@dataclass
class SimulatedClient:
    world: World
    key: Keypair
    vault: VaultAddress
    deposited: int
    cap: int = 0  # the highest that it ever signed
    kept: list[tuple[dict[str, Any], Quote]] = field(default_factory=list)  # quotes for later
    jobs: list[JobId] = field(default_factory=list)
    keys: dict[str, JobId] = field(default_factory=dict)
    wanted: dict[JobId, int] = field(default_factory=dict)  # what the job may cost at most, as the client was told
    cancelled: list[JobId] = field(default_factory=list)  # by its own will, and it asks again as long as they go on
    asked_to_end_ms: dict[JobId, int] = field(default_factory=dict)  # when the marketplace first took it
    refused: TorgError | None = None  # its newest submission
    leaves_since_ms: int | None = None  # since when the marketplace knows that it closes its vault

    @property
    def account(self) -> AccountId:
        return AccountId(str(self.key.pubkey()))

    async def submit(self, chance: random.Random, *, spot: bool | None = None) -> list[str]:
        """A job under a fresh cap. Returns what the marketplace should not have done."""
        raw = random_spec(self.world, chance, spot=spot)
        spec = load_job_spec(raw)
        quoted = await quote(self.world.market, self.account, spec)
        most = quoted.max_amount or 0
        request = SubmitRequest(spec=raw, quote_id=quoted.quote_id, cap=self._sign_cap(spec, more=most))
        key = f"key-{len(self.keys)}"
        if spec.workspace is not None:
            await self.world.blobs.sent_by(self.world.market, self.account, [spec.workspace])
        committed = self._committed()  # others may end meanwhile, which makes it less
        view = await self._send(request, key)
        if view is None:
            return self._wrongly_refused(most, committed)
        if self.leaves_since_ms is not None:
            return [f"{view.job_id} was admitted, and its vault is being closed"]
        if view.max_amount != most:
            return [f"{view.job_id} was quoted {most} at most, and may cost {view.max_amount}"]
        self.jobs.append(view.job_id)
        self.keys[key], self.wanted[view.job_id] = view.job_id, most
        if chance.random() < 0.3:  # the answer got lost: the same again
            again = await self._send(request, key)
            if again is None or again.job_id != view.job_id:
                return [f"key {key} gave two jobs"]
        return []

    async def overspend(self, chance: random.Random) -> list[str]:
        """A job that cap, signature or deposit does not cover, or a key that was used for another one."""
        raw = random_spec(self.world, chance)
        spec = load_job_spec(raw)
        quoted = await quote(self.world.market, self.account, spec)
        if not quoted.max_amount:
            return []
        dice = chance.randrange(5)
        if dice == 4:
            return await self._submit_late(raw, quoted)
        if dice == 0:  # one base unit too little
            cap = self._sign(spec, self._committed() + quoted.max_amount - 1)
        elif dice == 1:  # a figure that nobody signed
            cap = self._sign_cap(spec, more=quoted.max_amount).model_copy(update={"cap": self.cap + 10**9})
        elif dice == 2:  # it expires while the job may still run
            cap = self._sign_cap(spec, more=quoted.max_amount, margin_s=0)
        elif self.keys:
            request = SubmitRequest(spec=raw | {"name": "other"}, cap=self._sign_cap(spec, more=0))
            view = await self._send(request, chance.choice(sorted(self.keys)))
            return [] if view is None else ["a used key took another request"]
        else:
            return []
        view = await self._send(SubmitRequest(spec=raw, quote_id=quoted.quote_id, cap=cap), None)
        return [] if view is None else [f"{view.job_id} was admitted under a cap that does not hold (case {dice})"]

    async def _submit_late(self, raw: dict[str, Any], quoted: Quote) -> list[str]:
        """Under an earlier quote whose time is over; this one is kept for later."""
        self.kept.append((raw, quoted))
        raw, quoted = self.kept[0]
        if self.world.clock.time_ms < quoted.expires_at_ms:
            return []
        del self.kept[0]
        cap = self._sign_cap(load_job_spec(raw), more=quoted.max_amount or 0)
        view = await self._send(SubmitRequest(spec=raw, quote_id=quoted.quote_id, cap=cap), None)
        return [] if view is None else [f"{view.job_id} was admitted under a quote that had expired"]

    async def extend(self, chance: random.Random) -> list[str]:
        """One of its jobs may last longer, under a fresh cap; sometimes the same again."""
        if not self.jobs:
            return []
        job_id = chance.choice(self.jobs)
        async with self.world.market.reading() as unit:
            job = await job_view(unit, self.account, job_id)
        longer_ms = job.max_duration_ms + chance.choice([10_000, 60_000, 300_000])
        spec = job.spec
        longer = spec.model_copy(update={"limits": spec.limits.model_copy(update={"max_duration": longer_ms})})
        price = spec.resources.price_of(job.price_ceiling)
        more = spec.nodes_at_once * spec.replicas * cost(price, spec.resources.billable_gpus, longer_ms)
        more += more * verification_permille(spec) // 1000
        if spec.limits.max_cost is not None:
            more = min(more, parse_amount(spec.limits.max_cost, 6))
        short = chance.random() < 0.2  # one base unit less than it takes
        cap = self._sign_cap(longer, more=max(0, more - job.max_amount))
        if short:
            cap = self._sign(longer, self._committed() + more - job.max_amount - 1)
        request = ExtendRequest.model_validate({"max_duration": f"{longer_ms}ms", "cap": cap})
        for _ in range(chance.choice([1, 2])):
            try:
                async with self.world.market.transaction() as unit:
                    view = await extend(unit, self.account, job_id, request)
            except TorgError:
                return []
            if self.leaves_since_ms is not None:
                return [f"{job_id} was extended, and its vault is being closed"]
            if short and more > job.max_amount:
                return [f"{job_id} was extended under a cap that does not cover it"]
            self.wanted[job_id] = max(self.wanted[job_id], more)
            if view.max_amount != max(more, job.max_amount) or view.max_duration_ms != longer_ms:
                return [f"{job_id} was extended to {view.max_amount} and {view.max_duration_ms} ms"]
        return []

    async def cancel(self, chance: random.Random) -> None:
        if not self.jobs:
            return
        out_of_reach = [job_id for job_id in self.jobs if job_id in self._out_of_reach()]
        job_id = chance.choice(out_of_reach or self.jobs)
        if await self._cancel(job_id) and random.Random(job_id).random() < 0.5:
            self.cancelled.append(job_id)

    async def insist(self) -> None:
        """Some are impatient: it changes nothing that they cancel again what has not stopped yet."""
        self.cancelled = [job_id for job_id in self.cancelled if await self._cancel(job_id)]

    async def _cancel(self, job_id: JobId) -> bool:
        """Whether that may take a while. False: it is over, or is being verified."""
        try:
            async with self.world.market.transaction() as unit:
                view = await cancel(unit, self.account, job_id)
        except TorgError:
            return False
        self.asked_to_end_ms.setdefault(job_id, self.world.clock.time_ms)
        return view.state in OPEN_JOB_STATES

    def _out_of_reach(self) -> set[str]:
        """Jobs that run where nobody can tell the node to stop them."""
        query = (
            "SELECT job_id FROM leases JOIN nodes USING (node_id) WHERE liveness != 'alive' "
            "AND leases.state IN ('granted', 'preparing', 'running', 'stopping')"
        )
        return {str(job_id) for (job_id,) in self.world.database.execute(query)}

    async def deposit(self, amount: int) -> None:
        self.receive(amount)
        if not self.world.chain.down:
            await refresh_vault(self.world.market, self.vault)

    def receive(self, amount: int) -> None:
        """In its vault; the marketplace sees it when it looks."""
        self.world.chain.deposit(self.vault, amount)
        self.deposited += amount

    async def _send(self, request: SubmitRequest, key: str | None) -> JobView | None:
        try:
            return await submit(self.world.market, self.account, request, key, digest_of(request.spec))
        except TorgError as error:
            self.refused = error
            return None

    def _wrongly_refused(self, most: int, committed: int) -> list[str]:
        """Its caps cover all that it asks for: only the vault's deposits may not."""
        code = "" if self.refused is None else self.refused.code
        query = "SELECT deposits FROM vaults WHERE address = ?"
        deposits = int(self.world.database.execute(query, (self.vault,)).fetchone()[0])
        if code == "cap_stale" or (code == "vault_underfunded" and committed + most <= deposits):
            return [f"{self.account} asks for {most} beside {committed} of {deposits}, and is told {code}"]
        return []

    def _committed(self) -> int:
        query = "SELECT final_total + open_maximum FROM vaults WHERE address = ?"
        return int(self.world.database.execute(query, (self.vault,)).fetchone()[0])

    def _sign_cap(self, spec: JobSpec, *, more: int, margin_s: int = _CAP_MARGIN_S) -> SignedCap:
        """Covers everything so far and `more`; the books count a cap as given away once it is signed."""
        self.cap += more
        return self._sign(spec, self.cap, margin_s=margin_s)

    def _sign(self, spec: JobSpec, cap: int, *, margin_s: int = _CAP_MARGIN_S) -> SignedCap:
        market = self.world.market
        valid_until_s = latest_lease_end_ms(spec, self.world.clock.time_ms) // 1000 + margin_s
        message = CapMessage(market.network.chain_id, bytes(Pubkey.from_string(self.vault)), cap, valid_until_s)
        return SignedCap(
            vault=self.vault,
            cap=cap,
            valid_until_s=valid_until_s,
            signer=str(self.key.pubkey()),
            signature=str(sign_message(self.key, message)),
        )


async def meddle(world: World, victim: SimulatedClient, chance: random.Random) -> list[str]:
    """Somebody with a key of its own, and nothing else, looks at a job of another client's, cancels it or makes it last longer."""
    if not victim.jobs:
        return []
    stranger, job_id = AccountId(str(Keypair.from_seed(chance.randbytes(32)).pubkey())), chance.choice(victim.jobs)
    longer = ExtendRequest.model_validate({"max_duration": "24h"})
    for what in ("look", "cancel", "extend"):
        try:
            async with world.market.transaction() as unit:
                if what == "look":
                    await job_view(unit, stranger, job_id)
                elif what == "cancel":
                    await cancel(unit, stranger, job_id)
                else:
                    await extend(unit, stranger, job_id, longer)
        except TorgError as error:
            if error.code != "job_unknown":
                return [f"{stranger} may not {what} {job_id}, and is told {error.code}"]
        else:
            return [f"{stranger} may {what} {job_id}, which is {victim.account}'s"]
    return []


async def make_client(world: World, *, deposit: int) -> SimulatedClient:
    key = world.randomness.keypair()
    vault = world.chain.open_vault(world.market.network, key.pubkey(), deposit)
    await refresh_vault(world.market, vault)
    return SimulatedClient(world, key, VaultAddress(vault), deposit)


def random_spec(world: World, chance: random.Random, *, spot: bool | None = None) -> dict[str, Any]:
    """Small jobs with every option that changes how they end."""
    raw: dict[str, Any] = {
        "version": 1,
        "command": ["python", "train.py"],
        "checkpoint": {"enabled": chance.random() < 0.7},
        "lease_grace": f"{chance.choice([15, 60, 300])}s",
        "retry": {"max_attempts": chance.randrange(1, 4), "on_failure": chance.randrange(0, 3)},
        "limits": {
            "max_duration": f"{chance.choice([20, 60, 300])}s",
            "queue_timeout": f"{chance.choice([60, 300])}s",
        },
    }
    if chance.random() < 0.3:
        raw["resources"] = {"gpus": 1}
    if spot is True or (spot is None and chance.random() < 0.3):
        raw["spot"] = True
    if chance.random() < 0.25:
        raw["limits"]["max_cost"] = "0.02"
    if chance.random() < 0.35:
        raw |= {
            "workspace": world.workspace.model_dump(mode="json"),
            "verify": {"policy": "metric", "catalogue": WORKLOAD, "metric": "accuracy", "target": "0.95"},
            "outputs": ["model.safetensors"],
        }
    elif chance.random() < 0.25:
        raw |= {"checkpoint": {"enabled": False}, "outputs": ["model.safetensors"]}
        raw |= {"verify": {"policy": "quorum", "replicas": chance.choice([3, 4])}}
    elif chance.random() < 0.3 and raw["checkpoint"]["enabled"]:
        raw |= {
            "workspace": world.workspace.model_dump(mode="json"),
            "verify": {"policy": "replay", "catalogue": WORKLOAD},
            "outputs": ["model.safetensors"],
        }
    elif chance.random() < 0.4 and "spot" not in raw:
        dice = chance.random()
        raw["gang"] = {"size": 2, "same_region": dice < 0.2}
        if dice > 0.5 and raw["checkpoint"]["enabled"]:
            raw["gang"]["min_size"] = 1
    if world.keeps_volumes and "verify" not in raw:
        raw["volumes"] = [f"{name}:/{name}" for name in NAMES if chance.random() < 0.5]
    if world.shares_gpus and not {"gang", "spot"} & raw.keys():
        raw["resources"] = {"gpus": 1, "gpu_fraction": chance.choice(["1", "0.5", "0.5", "0.334", "0.3"])}
    return raw
