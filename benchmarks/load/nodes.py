"""Nodes without containers: each holds a real channel, and answers a grant with the events that a real agent sends, after `run_s`.

Events are sent when they happen, as an agent does: it waits for no acknowledgement, but keeps what was not acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from solders.keypair import Keypair
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from torg_protocol.httpsig import RequestParts, sign_request
from torg_protocol.ids import LeaseId, NodeId
from torg_protocol.messages import (
    CHANNEL_PATH,
    TO_NODE,
    Accepted,
    Acknowledge,
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
    UsageClaimed,
    Welcome,
)
from torg_protocol.money import cost
from torg_protocol.offers import Inventory, Offer, SignedOffer
from torg_protocol.states import EndReason, LeaseState
from torg_protocol.usage import UsageRecord
from torg_protocol.versions import PROTOCOL_VERSION

IMAGE_DIGEST = "sha256:" + "1" * 64


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class LoadNode:
    """`on_receipt(job_id)` is called when the marketplace has decided, billed and receipted a job."""

    url: str
    marketplace: str
    slots: int
    run_s: float
    on_receipt: Callable[[str], None]
    key: Keypair = field(default_factory=Keypair)
    refusals: list[str] = field(default_factory=list)
    unacknowledged: set[tuple[LeaseId, int]] = field(default_factory=set)
    _socket: ClientConnection | None = None
    _seen: set[LeaseId] = field(default_factory=set)
    _held: dict[LeaseId, HeldLease] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _heartbeat_s: float = 10.0

    @property
    def leases(self) -> int:
        return len(self._seen)

    @property
    def id(self) -> NodeId:
        return NodeId(str(self.key.pubkey()))

    async def join(self) -> None:
        """Connects, is welcomed, and from then on works until `leave`."""
        parts = RequestParts("GET", self.url.partition("://")[2], CHANNEL_PATH, "?", {}, b"")
        headers = sign_request(self.key, parts, created_s=int(time.time()), nonce=secrets.token_urlsafe(18))
        address = self.url.replace("http", "ws", 1) + CHANNEL_PATH
        self._socket = await connect(
            address, additional_headers=headers, compression=None, ping_interval=None, proxy=None, open_timeout=60
        )
        await self._send(Hello(protocol_version=PROTOCOL_VERSION, node_version="load", offer=self._offer()))
        welcome = TO_NODE.validate_json(await self._socket.recv())
        if not isinstance(welcome, Welcome):
            raise TypeError(f"not welcome: {welcome}")
        self._heartbeat_s = welcome.heartbeat_ms / 1000
        self._start(self._until_closed(self._read()))
        self._start(self._until_closed(self._beat()))

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            await self._socket.close()

    def _offer(self) -> SignedOffer:
        inventory = Inventory(
            source="simulated",
            gpu_class="cpu",
            cpu_millis=1_000 * self.slots,
            memory_bytes=self.slots << 30,
            disk_bytes=100 << 30,
        )
        offer = Offer(
            node=self.id,
            sequence=1,
            marketplace=self.marketplace,
            price_per_gpu_hour=1_000_000,
            slots=self.slots,
            inventory=inventory,
            executor="fake",
            isolation=("sandbox",),
            payout_address=str(self.key.pubkey()),
            max_unpaid=10**12,
        )
        return SignedOffer(offer=offer, signature=offer.sign(self.key))

    async def _until_closed(self, work: Coroutine[Any, Any, None]) -> None:
        """A marketplace that ends in the middle of the work is an error of that; when all is done, it may."""
        try:
            await work
        except ConnectionClosed as closed:
            if self._held:
                self.refusals.append(f"the channel was closed: {closed}")

    async def _read(self) -> None:
        assert self._socket is not None
        async for raw in self._socket:
            match TO_NODE.validate_json(raw):
                case Granted() as granted:
                    if granted.signed.grant.lease_id not in self._seen:  # a heartbeat that crossed it has it repeated
                        self._seen.add(granted.signed.grant.lease_id)
                        self._start(self._work(granted.signed.grant))
                case Acknowledge() as known:
                    self.unacknowledged.discard((known.lease_id, known.sequence))
                case ReceiptIssued() as issued:
                    receipt = issued.receipt.receipt
                    signature = receipt.sign(self.key)
                    self._held.pop(receipt.lease_id, None)
                    self.on_receipt(receipt.job_id)
                    await self._send(
                        ReceiptSigned(lease_id=receipt.lease_id, receipt_digest=receipt.digest, signature=signature)
                    )
                case Refused() as refused:
                    self.refusals.append(str(refused.problem))
                case _:
                    pass

    async def _beat(self) -> None:
        await asyncio.sleep(self._heartbeat_s * secrets.randbelow(1000) / 1000)  # not all at once
        while True:
            await self._send(Heartbeat(at_ms=now_ms(), leases=tuple(self._held.values())))
            await asyncio.sleep(self._heartbeat_s)

    async def _work(self, grant: Grant) -> None:
        self._held[grant.lease_id] = HeldLease(lease_id=grant.lease_id, fence=grant.fence, state=LeaseState.GRANTED)
        await self._tell(grant, 1, Accepted())
        started_ms = now_ms()
        body = Started(started_at_ms=started_ms, image_digest=IMAGE_DIGEST, executor="fake", isolation="sandbox")
        await self._tell(grant, 2, body)
        await asyncio.sleep(self.run_s)
        ended_ms = now_ms()
        exited = Exited(reason=EndReason.COMPLETED, exit_code=0, started_at_ms=started_ms, finished_at_ms=ended_ms)
        await self._tell(grant, 3, exited)
        await self._tell(grant, 4, self._usage(grant, started_ms, ended_ms))
        await self._tell(grant, 5, Reported(reason=EndReason.COMPLETED, exit_code=0, outputs=()))

    def _usage(self, grant: Grant, started_ms: int, ended_ms: int) -> UsageClaimed:
        useful_ms = ended_ms - started_ms
        record = UsageRecord(
            lease_id=grant.lease_id,
            sequence=1,
            job_id=grant.job_id,
            attempt=grant.attempt,
            node=self.id,
            vault=grant.commitment.vault,
            start_ms=started_ms,
            end_ms=ended_ms,
            useful_ms=useful_ms,
            price_per_gpu_hour=grant.price_per_gpu_hour,
            billable_gpus=grant.billable_gpus,
            amount=cost(grant.price_per_gpu_hour, grant.billable_gpus, useful_ms),
            final=True,
        )
        return UsageClaimed(record=record, node_signature=record.sign(self.key))

    async def _tell(self, grant: Grant, sequence: int, body: LeaseEventBody) -> None:
        event = LeaseEvent(lease_id=grant.lease_id, fence=grant.fence, sequence=sequence, at_ms=now_ms(), body=body)
        self.unacknowledged.add((grant.lease_id, sequence))
        await self._send(event)

    async def _send(self, message: BaseModel) -> None:
        assert self._socket is not None
        await self._socket.send(message.model_dump_json())

    def _start(self, work: object) -> None:
        task = asyncio.create_task(work)  # type: ignore[arg-type]  # a coroutine of this class
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def join_all(nodes: list[LoadNode], *, at_once: int = 50) -> None:
    gate = asyncio.Semaphore(at_once)

    async def join(node: LoadNode) -> None:
        async with gate:
            await node.join()

    await asyncio.gather(*(join(node) for node in nodes))


async def leave_all(nodes: list[LoadNode]) -> None:
    with contextlib.suppress(Exception):
        await asyncio.gather(*(node.leave() for node in nodes))
