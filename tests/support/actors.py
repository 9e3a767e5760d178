"""The people of the tests: a client with a vault, and a node that plays its part message by message."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from solders.keypair import Keypair
from solders.pubkey import Pubkey

from tests.support.market import World
from tests.support.money import open_vault
from torg_marketplace.flow.cancel import cancel
from torg_marketplace.flow.lease_events import blobs_named_by, on_lease_event
from torg_marketplace.flow.liveness import sweep
from torg_marketplace.flow.nodes import on_disconnect, on_heartbeat, on_hello
from torg_marketplace.flow.quote import quote
from torg_marketplace.flow.receipts import on_receipt_signed, receipts
from torg_marketplace.flow.submit import submit
from torg_marketplace.flow.vaults import refresh_vault
from torg_marketplace.flow.views import job_events, job_view
from torg_marketplace.rules.leases import latest_lease_end_ms
from torg_protocol.api import JobEvent, JobView, Quote, SubmitRequest
from torg_protocol.canonical import digest_of
from torg_protocol.caps import SignedCap
from torg_protocol.ids import AccountId, JobId, LeaseId, NodeId, VaultAddress
from torg_protocol.jobspec import JobSpec, load_job_spec
from torg_protocol.messages import (
    Abandon,
    Accepted,
    Acknowledge,
    CheckpointRef,
    CheckpointStored,
    Exited,
    Grant,
    Granted,
    Heartbeat,
    HeldLease,
    Hello,
    LeaseEvent,
    LeaseEventBody,
    ReceiptIssued,
    ReceiptSigned,
    Refused,
    Reported,
    Started,
    Stop,
    ToNode,
    UsageClaimed,
    UsageCountersigned,
    Welcome,
)
from torg_protocol.money import cost
from torg_protocol.offers import GpuInfo, Inventory, Offer, SignedOffer
from torg_protocol.states import EndReason, LeaseState
from torg_protocol.suspensions import NodeSuspended, Suspension
from torg_protocol.usage import OutputFile, SignedReceipt, UsageRecord
from torg_protocol.vault_messages import CapMessage, sign_message
from torg_protocol.versions import PROTOCOL_VERSION

M = TypeVar("M", bound=ToNode)
TUSD = 1_000_000


def spec(**changes: Any) -> dict[str, Any]:
    """A small CPU job; changes are top-level members."""
    return {"version": 1, "command": ["python", "train.py"]} | changes


@dataclass
class Client:
    world: World
    key: Keypair
    vault: VaultAddress
    cap: int = 0

    @property
    def account(self) -> AccountId:
        return AccountId(str(self.key.pubkey()))

    async def quote(self, raw: dict[str, Any]) -> Quote:
        return await quote(self.world.market, self.account, load_job_spec(raw))

    async def submit(
        self, raw: dict[str, Any], *, key: str | None = None, cap: SignedCap | None = None, quote: Quote | None = None
    ) -> JobView:
        """Signs a cap that covers the job as quoted, unless given one."""
        if cap is None:
            price = quote or await self.quote(raw)
            cap = self.signed_cap(load_job_spec(raw), price.max_amount or 0)
        if (workspace := load_job_spec(raw).workspace) is not None:
            await self.world.blobs.sent_by(self.world.market, self.account, [workspace])
        request = SubmitRequest(spec=raw, quote_id=quote.quote_id if quote is not None else None, cap=cap)
        return await submit(self.world.market, self.account, request, key, digest_of(request.spec))

    def signed_cap(self, spec: JobSpec, more: int, *, margin_s: int = 3 * 3600) -> SignedCap:
        self.cap += more
        market = self.world.market
        valid_until_s = latest_lease_end_ms(spec, self.world.clock.now_ms()) // 1000 + margin_s
        message = CapMessage(
            chain_id=market.network.chain_id,
            vault=bytes(Pubkey.from_string(self.vault)),
            cap=self.cap,
            valid_until=valid_until_s,
        )
        return SignedCap(
            vault=self.vault,
            cap=self.cap,
            valid_until_s=valid_until_s,
            signer=str(self.key.pubkey()),
            signature=str(sign_message(self.key, message)),
        )

    async def job(self, job_id: JobId) -> JobView:
        async with self.world.market.reading() as unit:
            return await job_view(unit, self.account, job_id)

    async def events(self, job_id: JobId) -> tuple[JobEvent, ...]:
        async with self.world.market.reading() as unit:
            return await job_events(unit, self.account, job_id)

    async def receipts(self, job_id: JobId) -> tuple[SignedReceipt, ...]:
        async with self.world.market.reading() as unit:
            return (await receipts(unit, self.account, job_id)).receipts

    async def cancel(self, job_id: JobId) -> JobView:
        async with self.world.market.transaction() as unit:
            return await cancel(unit, self.account, job_id)


async def make_client(world: World, *, deposit: int = 100 * TUSD) -> Client:
    key = world.random.keypair()
    vault = open_vault(world.chain, world.market.network, depositor=key.pubkey(), signer=key.pubkey(), balance=deposit)
    await refresh_vault(world.market, vault)
    return Client(world, key, VaultAddress(vault))


@dataclass
class Held:
    """A lease in the node's journal."""

    grant: Grant
    sent: int = 0
    state: LeaseState = LeaseState.GRANTED
    started_at_ms: int = 0
    claims: list[UsageRecord] = field(default_factory=list)


@dataclass
class Node:
    world: World
    key: Keypair
    offer: Offer
    protocol_version: int = PROTOCOL_VERSION
    held: dict[LeaseId, Held] = field(default_factory=dict)
    receipts: list[SignedReceipt] = field(default_factory=list)
    countersigned: list[UsageCountersigned] = field(default_factory=list)
    suspensions: tuple[Suspension, ...] = ()

    @property
    def id(self) -> NodeId:
        return NodeId(str(self.key.pubkey()))

    # --- connection -------------------------------------------------------------------------------------------------

    async def connect(self, *, draining: bool = False) -> Welcome:
        self.world.links.connect(self.id)
        async with self.world.market.transaction() as unit:
            return await on_hello(unit, self.id, self.hello(draining=draining))

    def hello(self, *, draining: bool = False) -> Hello:
        signed = SignedOffer(offer=self.offer, signature=self.offer.sign(self.key))
        return Hello(
            protocol_version=self.protocol_version,
            node_version="test",
            offer=signed,
            draining=draining,
            leases=self._held_leases(),
        )

    async def disconnect(self) -> None:
        self.world.links.disconnect(self.id)
        async with self.world.market.transaction() as unit:
            await on_disconnect(unit, self.id)

    async def heartbeat(self, *, draining: bool = False) -> None:
        async with self.world.market.transaction() as unit:
            beat = Heartbeat(
                at_ms=self.world.clock.now_ms(),
                leases=self._held_leases(),
                draining=draining,
                suspensions=self.suspensions,
            )
            await on_heartbeat(unit, self.id, beat)

    def read(self) -> list[ToNode]:
        """Takes all messages; grants, records and receipts are remembered."""
        messages = self.world.links.take_all(self.id)
        for message in messages:
            match message:
                case Granted() if message.signed.grant.lease_id not in self.held:
                    self.held[message.signed.grant.lease_id] = Held(message.signed.grant)
                case UsageCountersigned():
                    self.countersigned.append(message)
                case ReceiptIssued():
                    self.receipts.append(message.receipt)
                    self.held.pop(message.receipt.receipt.lease_id, None)
                case Abandon():
                    self.held.pop(message.lease_id, None)
                case Stop() if message.lease_id in self.held:
                    self.held[message.lease_id].state = LeaseState.STOPPING
                case NodeSuspended():
                    self.suspensions = message.suspensions
                case _:
                    pass
        return messages

    def expect(self, kind: type[M]) -> M:
        """The only message that waits, beside what its owner is told."""
        messages = [message for message in self.read() if not isinstance(message, NodeSuspended)]
        assert [type(message) for message in messages] == [kind], messages
        only = messages[0]
        assert isinstance(only, kind)
        return only

    @property
    def lease(self) -> Held:
        (only,) = self.held.values()
        return only

    # --- events of the one lease that it holds -----------------------------------------------------------------------

    async def tell(self, body: LeaseEventBody, *, sequence: int | None = None, fence: int | None = None) -> Any:
        """Sends the next event (or one again), and returns the answer."""
        held = self.lease
        held.sent += sequence is None
        event = LeaseEvent(
            lease_id=held.grant.lease_id,
            fence=fence or held.grant.fence,
            sequence=sequence or held.sent,
            at_ms=self.world.clock.now_ms(),
            body=body,
        )
        if blobs := [blob for _, blob in blobs_named_by(body)]:
            await self.world.blobs.sent_by(self.world.market, self.id, blobs)
        return await on_lease_event(self.world.market, self.id, event)

    async def ok(self, body: LeaseEventBody) -> None:
        answer = await self.tell(body)
        assert isinstance(answer, Acknowledge), answer

    async def refused(self, body: LeaseEventBody, **how: Any) -> str:
        answer = await self.tell(body, **how)
        assert isinstance(answer, Refused), answer
        return str(answer.problem["code"])

    async def accept(self) -> None:
        self.expect(Granted)
        await self.ok(Accepted())
        self.lease.state = LeaseState.PREPARING

    async def start(self, *, gpu_uuids: tuple[str, ...] = ()) -> None:
        held = self.lease
        held.state, held.started_at_ms = LeaseState.RUNNING, self.world.clock.now_ms()
        await self.ok(self.started(gpu_uuids))

    def started(self, gpu_uuids: tuple[str, ...] = ()) -> Started:
        return Started(
            started_at_ms=self.lease.started_at_ms,
            image_digest="sha256:" + "1" * 64,
            executor="fake",
            isolation="sandbox",
            gpu_uuids=gpu_uuids,
        )

    async def accept_and_start(self) -> None:
        await self.accept()
        await self.start()

    async def checkpoint(self, name: str = "one", *, useful_ms: int | None = None) -> CheckpointRef:
        ref = CheckpointRef(
            name=name,
            blob=self.world.blobs.put(f"checkpoint {name} of {self.lease.grant.lease_id}".encode()),
            useful_ms=self.useful_ms if useful_ms is None else useful_ms,
            written_at_ms=self.world.clock.now_ms(),
        )
        await self.ok(CheckpointStored(checkpoint=ref))
        return ref

    @property
    def useful_ms(self) -> int:
        return self.world.clock.now_ms() - self.lease.started_at_ms

    def claim(self, *, useful_ms: int | None = None, final: bool = False, held: Held | None = None) -> UsageClaimed:
        """The next record, from where the last claim ended."""
        held, now_ms = held or self.lease, self.world.clock.now_ms()
        start_ms = held.claims[-1].end_ms if held.claims else held.started_at_ms
        useful = now_ms - start_ms if useful_ms is None else useful_ms
        record = UsageRecord(
            lease_id=held.grant.lease_id,
            sequence=len(held.claims) + 1,
            job_id=held.grant.job_id,
            attempt=held.grant.attempt,
            node=self.id,
            vault=held.grant.commitment.vault,
            start_ms=start_ms,
            end_ms=max(now_ms, start_ms + useful),
            useful_ms=useful,
            price_per_gpu_hour=held.grant.price_per_gpu_hour,
            billable_gpus=held.grant.billable_gpus,
            amount=cost(held.grant.price_per_gpu_hour, held.grant.billable_gpus, useful),
            final=final,
        )
        held.claims.append(record)
        return UsageClaimed(record=record, node_signature=record.sign(self.key))

    async def exit(self, reason: EndReason = EndReason.COMPLETED, exit_code: int | None = 0) -> None:
        """The container ends now: EXITED and the final usage record."""
        now_ms = self.world.clock.now_ms()
        exited = Exited(
            reason=reason, exit_code=exit_code, started_at_ms=self.lease.started_at_ms, finished_at_ms=now_ms
        )
        await self.ok(exited)
        await self.ok(self.claim(final=True))

    def report(
        self,
        reason: EndReason = EndReason.COMPLETED,
        exit_code: int | None = 0,
        outputs: dict[str, bytes] | None = None,
    ) -> Reported:
        files = []
        for path, data in (outputs or {}).items():
            ref = self.world.blobs.put(data)
            files.append(OutputFile(path=path, digest=ref.digest, size_bytes=ref.size_bytes))
        return Reported(reason=reason, exit_code=exit_code, outputs=tuple(files))

    async def finish(
        self,
        reason: EndReason = EndReason.COMPLETED,
        exit_code: int | None = 0,
        outputs: dict[str, bytes] | None = None,
    ) -> None:
        await self.exit(reason, exit_code)
        await self.ok(self.report(reason, exit_code, outputs))

    async def sign_receipt(self, signed: SignedReceipt) -> None:
        receipt = signed.receipt
        message = ReceiptSigned(
            lease_id=receipt.lease_id, receipt_digest=receipt.digest, signature=receipt.sign(self.key)
        )
        async with self.world.market.transaction() as unit:
            await on_receipt_signed(unit, self.id, message)

    def _held_leases(self) -> tuple[HeldLease, ...]:
        return tuple(
            HeldLease(lease_id=lease_id, fence=held.grant.fence, state=held.state)
            for lease_id, held in self.held.items()
        )


def make_node(
    world: World,
    *,
    price: int = TUSD,
    gpus: int = 0,
    slots: int = 1,
    vram_gib: int = 24,
    gpu_class: str | None = None,
    isolation: tuple[str, ...] = ("sandbox",),
    max_unpaid: int = 1_000 * TUSD,
    memory_gib: int = 16,
    gpu_slices: int = 1,
) -> Node:
    key = world.random.keypair()
    inventory = Inventory(
        source="simulated",
        gpu_class=gpu_class or ("rtx-4090" if gpus else "cpu"),
        gpus=tuple(
            GpuInfo(uuid=f"GPU-{number}", model="RTX 4090", vram_bytes=vram_gib << 30, compute_capability="8.9")
            for number in range(gpus)
        ),
        cpu_millis=8_000,
        memory_bytes=memory_gib << 30,
        disk_bytes=100 << 30,
    )
    offer = Offer(
        node=NodeId(str(key.pubkey())),
        sequence=1,
        marketplace=world.market.public_key,
        price_per_gpu_hour=price,
        slots=slots,
        inventory=inventory,
        executor="fake",
        isolation=isolation,
        payout_address=str(world.random.keypair().pubkey()),
        max_unpaid=max_unpaid,
        gpu_slices=gpu_slices,
    )
    return Node(world, key, offer)


async def join(world: World, **offer: Any) -> Node:
    """A node that is connected and has read its welcome."""
    node = make_node(world, **offer)
    await node.connect()
    return node


async def let_pass(world: World, *, seconds: int, nodes: tuple[Node, ...] = (), step_s: int = 10) -> None:
    """Time passes as it does: the marketplace sweeps, and `nodes` (and only they) are heard of."""
    for _ in range(seconds // step_s):
        world.advance(seconds=step_s)
        for node in nodes:
            await node.heartbeat()
        await sweep(world.market)
