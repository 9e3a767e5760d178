"""One lease on this host: what the steps share, and the only way in which they speak to the marketplace.

Imported by the steps; knows nothing of them. Events are journalled before they are sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel
from solders.keypair import Keypair

from torg_chain.rpc import ChainClient
from torg_host.disk import DiskState
from torg_node.allocation import Assignment, Claim
from torg_node.blob_transfer import BlobTransfer
from torg_node.cache import Cache
from torg_node.executors.port import Executor, Exit, Handle, PreparedImage, RegistryAuth
from torg_node.hardware.rapl import CpuEnergy
from torg_node.journal import Journal
from torg_node.reservation import Reservations
from torg_node.settings import Settings
from torg_protocol.ids import LeaseId
from torg_protocol.jobspec import BlobRef, JobSpec
from torg_protocol.messages import Grant, LeaseEventBody, Progress, SignedGrant
from torg_protocol.network import egress_kind
from torg_protocol.offers import Offer
from torg_protocol.states import EndReason, LeaseState
from torg_protocol.usage import OutputFile

if TYPE_CHECKING:
    from torg_node.gang_network import GangNetwork

# Where a job finds its folders inside the container; the same for every executor.
WORK, CHECKPOINT, OUTPUT, TORG = "/work", "/checkpoint", "/output", "/torg"
SECRETS = "/run/secrets"  # as in other platforms


class LeaseEnded(Exception):
    """A step cannot go on: the lease is released for this reason."""

    def __init__(self, reason: EndReason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Declined(Exception):
    """The grant is not taken; no penalty, and the detail tells the market why. `code` is stable."""

    def __init__(self, detail: str, code: str = "") -> None:
        super().__init__(detail)
        self.code = code


class Abandoned(Exception):
    """The marketplace gave this lease to somebody else: everything of it goes, nothing is said any more."""


@dataclass(frozen=True, slots=True)
class Node:
    """What all leases of this node share."""

    settings: Settings
    keypair: Keypair
    journal: Journal
    executor: Executor
    isolation: str
    blobs: BlobTransfer
    cache: Cache
    chain: ChainClient
    reservations: Reservations
    gpu_energy_mj: Callable[[Sequence[str]], dict[str, int]]  # by UUID; blocks
    cpu_energy: Callable[[], CpuEnergy | None]  # blocks
    offer: Callable[[], Offer]
    send: Callable[[BaseModel], Awaitable[bool]]
    now_ms: Callable[[], int]
    steady_ms: Callable[[], int]  # by which leases are timed, see `clock`


@dataclass
class Lease:
    """Mutable while its steps run, one task at a time; `request_stop` and `abandon` come from the agent."""

    node: Node
    signed: SignedGrant
    handle: Handle | None = None
    images: dict[str, PreparedImage] = field(default_factory=dict)  # by the name that the spec gives
    task_handles: dict[str, Handle] = field(default_factory=dict)  # of a job of several tasks: those that run now
    tasks_started_at_ms: int | None = None  # of a job of several tasks: its first container
    exit: Exit | None = None
    disk_begun: asyncio.Future[DiskState] | None = None
    outputs: list[OutputFile] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # what of the output folder is no output, with the reason
    stop_requested: asyncio.Event = field(default_factory=asyncio.Event)
    stop_reason: EndReason | None = None
    stop_grace_ms: int = 30_000
    log_was_cut: bool = False  # the marketplace was away when the last of it was to be sent
    stored_checkpoints: set[str] = field(default_factory=set)
    stored_volumes: dict[str, BlobRef | None] = field(
        default_factory=dict
    )  # while it runs, the newest of all that it writes
    job_key: str = ""  # of a sealed job, once its secrets are open; in memory only
    registry_auth: dict[str, RegistryAuth] = field(default_factory=dict)  # by registry, once its secrets are open
    gang_network: GangNetwork | None = None  # while its container runs
    gang_left: set[int] = field(default_factory=set)  # ranks that are gone for good

    @property
    def grant(self) -> Grant:
        return self.signed.grant

    @property
    def spec(self) -> JobSpec:
        return self.signed.grant.spec

    @property
    def id(self) -> LeaseId:
        return self.signed.grant.lease_id

    @property
    def started_at_ms(self) -> int | None:
        """Since when it works, by this node's clock; None: no container was started yet, or not found again yet."""
        return self.handle.started_at_ms if self.handle is not None else self.tasks_started_at_ms

    def image_of(self, name: str) -> PreparedImage:
        """Raises LeaseEnded when it was not prepared."""
        if name not in self.images:
            raise LeaseEnded(EndReason.START_FAILED, f"the image {name} was not prepared")
        return self.images[name]

    @property
    def claim(self) -> Claim:
        return Claim.of(self.grant.client, self.spec)

    @property
    def assignment(self) -> Assignment:
        """What of this host is reserved for it."""
        return self.node.reservations.assignment(self.id)

    @property
    def folder(self) -> Path:
        """Everything that this lease keeps on disk."""
        return self.node.settings.leases_path / self.id

    @property
    def files(self) -> Path:
        """What the job sees, on its own bounded disk: work, checkpoint, output, torg."""
        return self.folder / "disk" / "files"

    @property
    def has_egress(self) -> bool:
        return egress_kind(self.spec.network) != "none"

    @property
    def hands_over(self) -> bool:
        """Of a gang rank 0 alone writes checkpoints and outputs."""
        return self.grant.gang is None or self.grant.gang.rank == 0

    @property
    def container_name(self) -> str:
        return self.id.replace("_", "-")

    def request_stop(self, reason: EndReason, grace_ms: int) -> None:
        """The first reason counts. Safe to repeat."""
        if self.stop_reason is None:
            self.stop_reason, self.stop_grace_ms = reason, grace_ms
            self.stop_requested.set()

    def go_on_without(self, ranks: Iterable[int]) -> None:
        """Other members of its gang are gone for good. Safe to repeat."""
        self.gang_left |= set(ranks)
        if self.gang_network is not None:
            for rank in self.gang_left:
                self.gang_network.leave(rank)

    def check_not_stopped(self) -> None:
        """Between two steps before the container runs. Raises LeaseEnded with the reason of the stop."""
        if self.stop_reason is not None:
            raise LeaseEnded(self.stop_reason, "stopped before the container was started")

    async def say(self, body: LeaseEventBody, then: LeaseState | None = None, handle: Handle | None = None) -> None:
        """Journals an event, and the state and the container that begin with it, then sends it if there is a connection; otherwise it goes with
        the next one."""
        with self.node.journal.at_once():
            event = self.node.journal.add_event(self.id, self.grant.fence, self.node.now_ms(), body)
            if then is not None:
                self.set_state(then)
            if handle is not None:
                self.node.journal.set_handle(self.id, handle)
        await self.node.send(event)

    async def preparing(self, step: str, done_bytes: int = 0, total_bytes: int | None = None) -> None:
        """Best effort: what the node is busy with before the container runs."""
        data = {"step": step, "done_bytes": done_bytes, "total_bytes": total_bytes}
        await self.node.send(
            Progress(lease_id=self.id, fence=self.grant.fence, at_ms=self.node.now_ms(), kind="preparing", data=data)
        )

    def set_state(self, state: LeaseState, reason: EndReason | None = None) -> None:
        self.node.journal.set_state(self.id, state, reason)
