"""The node channel: JSON messages over one WebSocket that the node dials.

Events of a lease (`LeaseEvent`) carry a sequence number per lease, are journalled by the node and resent until acknowledged:
delivered at least once, applied once. `Progress` and `LogLines` are best effort; logs carry byte offsets, and the whole log is
a blob of the report. Every message about a lease carries its fence: a stale one is dropped and answered with a directive.
"""

from __future__ import annotations

import operator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, model_validator

from torg_protocol.caps import Commitment, SignedCap, SignedOrder
from torg_protocol.documents import Document, Wire
from torg_protocol.ids import AccountId, Digest, JobId, LeaseId, NodeId
from torg_protocol.jobspec import BlobRef, JobSpec
from torg_protocol.offers import SignedOffer
from torg_protocol.ports import MAX_PORTS, PortState
from torg_protocol.proofs import (
    ProofAsked,
    ProofChallenge,
    ProofCommitted,
    ProofJudged,
    ProofOpened,
    ProofReady,
    ProofWanted,
)
from torg_protocol.refunds import SignedRefund
from torg_protocol.results import MAX_RESULTS, ResultValue
from torg_protocol.states import EndReason, LeaseState
from torg_protocol.suspensions import NodeSuspended, Suspension
from torg_protocol.tasks import MAX_TASKS, TASK_NAME, TaskState
from torg_protocol.usage import OutputFile, ResourceUse, SignedReceipt, SignedUsage, UsageRecord
from torg_protocol.volumes import MAX_VOLUMES, VOLUME_NAME

MAX_TASK_LOGS = 16 * MAX_TASKS  # in a report


class CheckpointRef(Wire):
    """A durable checkpoint: tar + zstd of one directory that the job wrote. `useful_ms` is the attempt's useful time when
    the job finished writing it: work up to there is not lost any more."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    blob: BlobRef
    useful_ms: int = Field(ge=0)
    written_at_ms: int


class VolumeAtStart(Wire):
    """What an attempt begins with in a volume that is kept. `blob` None: nothing is in it yet."""

    name: str = Field(pattern=VOLUME_NAME)
    generation: int = Field(ge=0)
    blob: BlobRef | None = None


class VolumeSnapshot(Wire):
    """What was in a volume: tar + zstd of it, or why it could not be kept."""

    name: str = Field(pattern=VOLUME_NAME)
    blob: BlobRef | None = None
    problem: str = Field(default="", max_length=500)

    @model_validator(mode="after")
    def _is_one(self) -> VolumeSnapshot:
        if (self.blob is None) == (not self.problem):
            raise ValueError("a snapshot is a blob, or the problem with it")
        return self


def _is_none(value: object) -> bool:
    return value is None


def _is_empty(value: tuple[object, ...]) -> bool:
    return not value


class GangPlace(Wire):
    """A lease's place in its gang: `size` leases of one attempt, each on another node."""

    rank: int = Field(ge=0)
    size: int = Field(ge=2)
    nodes: tuple[NodeId, ...]  # of all members, by rank: they know each other by these keys

    @model_validator(mode="after")
    def _is_whole(self) -> GangPlace:
        if len(self.nodes) != self.size or self.rank >= self.size:
            raise ValueError("a gang has one node for each rank")
        return self


class Grant(Document):
    """A lease, signed by the marketplace. The node accepts or declines within `accept_within_ms`."""

    KIND: ClassVar[str] = "grant"

    lease_id: LeaseId
    fence: int = Field(ge=1)  # generation of the job; a higher one makes this grant stale
    job_id: JobId
    attempt: int = Field(ge=1)
    client: AccountId
    node: NodeId
    marketplace: str
    spec: JobSpec
    price_per_gpu_hour: int = Field(ge=0)  # where the job shares a GPU: of its part
    billable_gpus: int = Field(ge=1)
    max_amount: int = Field(ge=0)  # base units; at this the node stops the lease (reason budget)
    max_duration_ms: int = Field(gt=0)  # what is left of the job's max_duration for this attempt
    usage_interval_ms: int = Field(gt=0)
    granted_at_ms: int
    accept_within_ms: int = Field(gt=0)
    resume_from: CheckpointRef | None = None
    cap: SignedCap
    commitment: Commitment
    commitment_signature: str
    gang: GangPlace | None = Field(default=None, exclude_if=_is_none)  # None: a lease by itself
    volumes: tuple[VolumeAtStart, ...] = Field(default=(), exclude_if=_is_empty)  # those of the spec that are kept


class SignedGrant(Wire):
    grant: Grant
    signature: str


# --- events of a lease, node -> marketplace -------------------------------------------------------------------------


class Accepted(Wire):
    kind: Literal["accepted"] = "accepted"


class Declined(Wire):
    kind: Literal["declined"] = "declined"
    detail: str
    code: str = ""  # stable, of what the node found wrong with the grant


class Started(Wire):
    """The (first) container runs: useful time begins here. `image_digest`: of several images the digest of the list of their digests."""

    kind: Literal["started"] = "started"
    started_at_ms: int
    image_digest: str
    executor: str
    isolation: str
    gpu_uuids: tuple[str, ...] = ()


class TaskMoved(Wire):
    """A task of a job of several. `run` counts its containers from 1; 0: none was started. `exit_code` is of the container that ended last."""

    kind: Literal["task"] = "task"
    task: str = Field(pattern=TASK_NAME)
    state: TaskState
    run: int = Field(ge=0)
    exit_code: int | None = None
    detail: str = Field(default="", max_length=2_000)
    results: dict[str, ResultValue] = Field(
        default_factory=dict, max_length=MAX_RESULTS
    )  # of the newest run, at its end


class CheckpointStored(Wire):
    kind: Literal["checkpoint"] = "checkpoint"
    checkpoint: CheckpointRef


class VolumesStored(Wire):
    """Snapshots of the volumes that the job writes. Before the end: taken while nothing in them changed, for an attempt that takes over. At the
    end: what the containers left; whether it becomes a generation follows from how the lease ends."""

    kind: Literal["volumes"] = "volumes"
    volumes: tuple[VolumeSnapshot, ...] = Field(min_length=1, max_length=MAX_VOLUMES)
    at_end: bool


class UsageClaimed(Wire):
    kind: Literal["usage"] = "usage"
    record: UsageRecord
    node_signature: str


class Exited(Wire):
    """The container ended: useful time ends here. Outputs and the report follow."""

    kind: Literal["exited"] = "exited"
    reason: EndReason
    exit_code: int | None
    started_at_ms: int
    finished_at_ms: int
    peak_memory_bytes: int | None = None
    detail: str = ""
    use: ResourceUse | None = None


class TaskLog(Wire):
    task: str = Field(pattern=TASK_NAME)
    run: int = Field(ge=1)
    stream: Literal["stdout", "stderr"]
    blob: BlobRef


class Reported(Wire):
    """All output blobs are stored; the node may vanish now. `stdout` and `stderr` are the whole (bounded) logs."""

    kind: Literal["reported"] = "reported"
    reason: EndReason
    exit_code: int | None
    outputs: tuple[OutputFile, ...]
    missing_outputs: tuple[str, ...] = ()
    stdout: BlobRef | None = None
    stderr: BlobRef | None = None
    progress: BlobRef | None = None
    task_logs: tuple[TaskLog, ...] = Field(
        default=(), max_length=MAX_TASK_LOGS
    )  # of a job of several tasks, instead of stdout and stderr


class Released(Wire):
    """The lease ends without a result: could not start, drained, host protection, or told to abandon."""

    kind: Literal["released"] = "released"
    reason: EndReason
    detail: str = ""


LeaseEventBody = Annotated[
    Accepted
    | Declined
    | Started
    | TaskMoved
    | CheckpointStored
    | VolumesStored
    | UsageClaimed
    | Exited
    | Reported
    | Released,
    Field(discriminator="kind"),
]


class LeaseEvent(Wire):
    type: Literal["lease_event"] = "lease_event"
    lease_id: LeaseId
    fence: int
    sequence: int = Field(ge=1)
    at_ms: int
    body: LeaseEventBody


# --- other messages, node -> marketplace ----------------------------------------------------------------------------


class HeldLease(Wire):
    lease_id: LeaseId
    fence: int
    state: LeaseState
    reason: EndReason | None = None


# UUIDs of offered GPUs and MIG slices that get no new lease now: broken, or too hot. Leases that hold one go on.
GpusOut = Annotated[tuple[str, ...], Field(max_length=256, exclude_if=operator.not_)]


class Hello(Wire):
    """First message after connecting: what this node offers and which leases its journal holds."""

    type: Literal["hello"] = "hello"
    protocol_version: int
    node_version: str
    offer: SignedOffer
    draining: bool = False
    leases: tuple[HeldLease, ...] = ()
    warm: tuple[str, ...] | None = Field(
        default=None, max_length=64
    )  # images and digests that are on its disk; None: it does not say
    gpus_out: GpusOut = ()


class Heartbeat(Wire):
    type: Literal["heartbeat"] = "heartbeat"
    at_ms: int
    leases: tuple[HeldLease, ...] = ()
    draining: bool = False
    gpus_out: GpusOut = ()
    # What it has been told of that; the marketplace repeats itself where that is not how it is.
    suspensions: tuple[Suspension, ...] = Field(default=(), max_length=16, exclude_if=operator.not_)


class Progress(Wire):
    """`kind` "step": the job's own progress object; "preparing": {"step", "done_bytes", "total_bytes"}."""

    type: Literal["progress"] = "progress"
    lease_id: LeaseId
    fence: int
    at_ms: int
    kind: Literal["step", "preparing"]
    data: dict[str, Any]


class LogLines(Wire):
    """Of a job of several tasks with the task's name and the run; offsets are then those of that run."""

    type: Literal["log"] = "log"
    lease_id: LeaseId
    fence: int
    at_ms: int
    stream: Literal["stdout", "stderr"]
    offset: int = Field(ge=0)  # bytes from the stream's start
    text: str
    task: str | None = Field(default=None, pattern=TASK_NAME)
    run: int = Field(default=1, ge=1)


class PortsState(Wire):
    """All declared ports of a running lease, sent when one of them changes. Best effort, repeated while it could not be sent."""

    type: Literal["ports"] = "ports"
    lease_id: LeaseId
    fence: int
    at_ms: int
    ports: tuple[PortState, ...] = Field(max_length=MAX_PORTS)


class ReceiptSigned(Wire):
    """The node's signature over a receipt that it got and found right."""

    type: Literal["receipt_signed"] = "receipt_signed"
    lease_id: LeaseId
    receipt_digest: Digest
    signature: str


FromNode = Annotated[
    Hello
    | Heartbeat
    | LeaseEvent
    | Progress
    | LogLines
    | PortsState
    | ReceiptSigned
    | ProofReady
    | ProofCommitted
    | ProofOpened,
    Field(discriminator="type"),
]

# --- marketplace -> node --------------------------------------------------------------------------------------------


class LeaseDirective(Wire):
    """What to do with a lease that the node holds: go on, or stop and drop it (it was given to another)."""

    lease_id: LeaseId
    directive: Literal["continue", "abandon"]
    acknowledged: int = Field(default=0, ge=0)  # highest event sequence that is stored


class Welcome(Wire):
    type: Literal["welcome"] = "welcome"
    protocol_version: int
    marketplace: str
    server_time_ms: int
    heartbeat_ms: int = Field(gt=0)
    fee_basis_points: int = Field(default=0, ge=0, le=10_000)  # of what a record is worth, kept by the marketplace
    leases: tuple[LeaseDirective, ...] = ()


class Granted(Wire):
    type: Literal["grant"] = "grant"
    signed: SignedGrant


class Stop(Wire):
    """Stop the container with grace, upload what exists, report with this reason."""

    type: Literal["stop"] = "stop"
    lease_id: LeaseId
    fence: int
    reason: EndReason
    grace_ms: int = Field(ge=0)


class Abandon(Wire):
    """This lease is not yours any more: stop the container, drop everything, nothing further is paid."""

    type: Literal["abandon"] = "abandon"
    lease_id: LeaseId


class Acknowledge(Wire):
    type: Literal["ack"] = "ack"
    lease_id: LeaseId
    sequence: int


class UsageCountersigned(Wire):
    """May be smaller than claimed: clipped to what the marketplace saw. The node keeps it as its proof of earnings."""

    type: Literal["usage_countersigned"] = "usage_countersigned"
    usage: SignedUsage


class ReceiptIssued(Wire):
    """The lease is decided; the node may forget it once this is stored."""

    type: Literal["receipt"] = "receipt"
    receipt: SignedReceipt


class OrderIssued(Wire):
    """A capture that pays this node is on its way. The node keeps the newest order of each vault: should the marketplace vanish, it
    submits it itself."""

    type: Literal["order"] = "order"
    order: SignedOrder


class RefundIssued(Wire):
    """Part of what a lease cost was given back; `refund.from_node` is what this node is owed less. Repeated at each hello for a while."""

    type: Literal["refund"] = "refund"
    refund: SignedRefund


class OpenTunnel(Wire):
    """The lease's client waits at the gateway: dial `torg_protocol.tunnels.node_path(tunnel_id)`, also to refuse. With `from_rank` it is
    not the client but that member of the lease's gang."""

    type: Literal["open_tunnel"] = "open_tunnel"
    lease_id: LeaseId
    tunnel_id: str
    from_rank: int | None = Field(default=None, exclude_if=_is_none)


class GangMembersLeft(Wire):
    """These members of the lease's gang are gone for good, and it goes on without them: what the job sends them is answered as by a host that
    has none of its connections. All that have left so far; repeated at each hello and heartbeat."""

    type: Literal["gang_members_left"] = "gang_members_left"
    lease_id: LeaseId
    fence: int
    ranks: tuple[int, ...]


class Refused(Wire):
    """Something the node sent could not be taken. `problem` is RFC 9457; the connection closes when `fatal`."""

    type: Literal["refused"] = "refused"
    problem: dict[str, Any]
    fatal: bool = False
    lease_id: LeaseId | None = None
    sequence: int | None = None


ToNode = Annotated[
    Welcome
    | Granted
    | Stop
    | Abandon
    | Acknowledge
    | UsageCountersigned
    | ReceiptIssued
    | OrderIssued
    | RefundIssued
    | OpenTunnel
    | GangMembersLeft
    | NodeSuspended
    | Refused
    | ProofWanted
    | ProofChallenge
    | ProofAsked
    | ProofJudged,
    Field(discriminator="type"),
]

FROM_NODE: TypeAdapter[FromNode] = TypeAdapter(FromNode)
TO_NODE: TypeAdapter[ToNode] = TypeAdapter(ToNode)

# A node talks to its marketplace under this path, authenticated by an RFC 9421 signature on the upgrade request.
CHANNEL_PATH = "/v1/nodes/channel"
