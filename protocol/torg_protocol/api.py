"""Bodies of the REST API, shared by marketplace and client. Paths are in docs/reference/api.md and the served OpenAPI."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WrapValidator

from torg_protocol.caps import SignedCap
from torg_protocol.data import InputFile
from torg_protocol.documents import View, Wire
from torg_protocol.errors import NotFound
from torg_protocol.event_kinds import EventKind
from torg_protocol.ids import DIGEST, AccountId, Digest, JobId, LeaseId, NodeId, QuoteId, VaultAddress
from torg_protocol.jobspec import MAX_DURATION_MS, BlobRef, JobSpec
from torg_protocol.open_values import read_what_is_known
from torg_protocol.ports import PortState
from torg_protocol.proofs import ProofStatus
from torg_protocol.quantities import DurationMs
from torg_protocol.refunds import RefundCause
from torg_protocol.results import ResultValue
from torg_protocol.states import EndReason, JobState, LeaseState, Liveness, NodeState
from torg_protocol.tasks import TaskState
from torg_protocol.usage import OutputFile, SignedReceipt
from torg_protocol.volumes import JobVolume

MAX_BLOB_PIECES = 32_768
MAX_PIECES_ASKED = 256


def _is_nothing(value: object) -> bool:
    """Members that came later are left out where they say nothing: clients from before refuse what they do not know."""
    return not value


class ChainInfo(View):
    """The same fields as torg_chain's Network: where the money is."""

    rpc_url: str
    genesis_hash: str
    program_id: str
    mint: str
    decimals: int
    operator_config: str


class MarketInfo(View):
    """GET /v1/market"""

    name: str
    marketplace: str  # public key; pin it
    protocol_versions: tuple[int, ...]
    chain: ChainInfo
    heartbeat_ms: int
    usage_interval_ms: int
    verification_window_s: int  # a cap must stay valid this long, and the settlement age, after a lease's end
    settlement_max_age_s: int
    min_vault_grace_s: int
    fee_basis_points: int


class QuoteRequest(Wire):
    """POST /v1/quotes. `spec` is loose here, so that a bad one gets our error and not the framework's."""

    spec: dict[str, Any]


class ConstraintFailure(View):
    """One hard constraint, how many nodes it removed, and what would fit. `nodes_without_it` would do if this one were given
    up and all others kept; the cheapest of them asks `cheapest_without_it` per GPU-hour."""

    constraint: str
    asked: str
    nodes_removed: int
    best_available: str | None = None
    nodes_without_it: int = 0
    cheapest_without_it: int | None = None


class StartEstimate(View):
    """When a job would begin to run if it were submitted now. `basis` says in words what the figures rest on.

    `room_expected_ms`, `room_latest_ms`: until a node has room; 0: now; None: nobody can say. `prepare_ms`: from there to the
    container's start: image and inputs are fetched; nobody pays for it.
    """

    room_expected_ms: int | None
    room_latest_ms: int | None
    prepare_ms: int | None
    jobs_ahead: int = 0
    basis: tuple[str, ...] = ()


class ReferencePrice(View):
    """What a class of GPU was worth in the call auction of a minute, in base units per
    GPU-hour. `price_per_gpu_hour` is None when nobody waited for what was free, or would not pay what was asked. Nobody is charged this
    price: jobs pay the ask of the node that they run on."""

    gpu_class: str
    at_ms: int
    price_per_gpu_hour: int | None
    gpus: int  # that changed hands in the auction
    best_bid: int | None
    best_ask: int | None
    gpus_offered: int
    gpus_wanted: int


class Quote(View):
    """`feasible` False: nothing can run this now; `constraints` says why, the decisive one first."""

    quote_id: QuoteId
    feasible: bool
    waiting: bool = False  # feasible, but every fitting node is busy
    nodes_considered: int
    nodes_fitting: int
    nodes_at_once: int = 1  # of a gang; prices and GPUs are of each, `max_amount` is of all together
    cheapest_price_per_gpu_hour: int | None = None
    dearest_price_per_gpu_hour: int | None = None
    billable_gpus: int
    max_amount: int | None = None  # base units that a submit will hold
    # What of it pays verification at the most; left out where that costs nothing.
    verification_amount: int = Field(default=0, exclude_if=_is_nothing)
    expires_at_ms: int
    start: StartEstimate | None = None  # of a feasible job
    # Throughput of the slowest class that it may land on, 10^9 int8 operations per second and unit; left out when one of them is unproven.
    # A lease that is measured below its own class is given back in proportion.
    least_proven_gops: int = Field(default=0, exclude_if=_is_nothing)
    reference_prices: tuple[ReferencePrice, ...] = Field(default=(), exclude_if=_is_nothing)  # of the classes that fit
    inputs: tuple[InputFile, ...] = Field(default=(), exclude_if=_is_nothing)  # what names stand for now
    constraints: tuple[ConstraintFailure, ...] = ()
    hint: str | None = None


class ReferencePrices(View):
    """GET /v1/prices?gpu_class=&since_ms=, newest first."""

    prices: tuple[ReferencePrice, ...]


class SubmitRequest(Wire):
    """POST /v1/jobs, with an Idempotency-Key header. The same key and body return the same job; another body is 409.

    `cap` is the client's own signature over what its vault may pay. Without one an API key's credit pays.
    """

    spec: dict[str, Any]
    quote_id: QuoteId | None = None
    cap: SignedCap | None = None


class ExtendRequest(Wire):
    """POST /v1/jobs/{id}/extend. The job may last so long in all, from then on: asking again changes nothing.

    `cap` is the client's signature over what its vault may pay with the larger maximum; left out where an API key's credit pays for the job.
    """

    max_duration: DurationMs = Field(gt=0, le=MAX_DURATION_MS)
    cap: SignedCap | None = None


class TaskView(View):
    """Where a task of a job stands in one attempt. `run`: how many containers were started for it."""

    task: str
    state: TaskState
    run: int = 0
    exit_code: int | None = None
    started_at_ms: int | None = None  # the newest run, by the marketplace's clock
    ended_at_ms: int | None = None
    detail: str = ""
    results: dict[str, ResultValue] = Field(default_factory=dict)  # what its patterns found in its output


class LeaseView(View):
    lease_id: LeaseId
    attempt: int
    rank: int = 0  # in its gang
    node: NodeId
    state: LeaseState
    reason: EndReason | None = None
    exit_code: int | None = None
    detail: str = ""
    price_per_gpu_hour: int
    granted_at_ms: int
    started_at_ms: int | None = None
    exited_at_ms: int | None = None
    stop_reason: EndReason | None = None  # what it was last asked to stop for
    stop_requested_at_ms: int | None = None
    reported_at_ms: int | None = None  # the node's last word
    ended_at_ms: int | None = None  # it holds nothing of its node any more
    decided_at_ms: int | None = None  # money and receipt are final
    billed_ms: int = 0
    unbilled_ms: int = 0
    amount: int = 0
    verification_amount: int = Field(default=0, exclude_if=_is_nothing)  # of the amount
    resumed_from: str | None = None  # checkpoint name
    newest_checkpoint: str | None = None
    tasks: tuple[TaskView, ...] = ()  # of a job of several, in the spec's order
    ports: tuple[PortState, ...] = ()  # declared ones, as the node last found them while it ran
    logs: dict[str, BlobRef] = Field(
        default_factory=dict
    )  # whole ones, once reported: "stdout", "stderr", "TASK.RUN/stdout"


class QueuePlace(View):
    """Where a waiting job stands among all that wait, in the order in which they are tried, and who stands before it. A job that cannot start
    blocks nobody: one behind it may start earlier, elsewhere."""

    place: int  # from 1
    waiting: int  # jobs in all
    bid_more: int  # other accounts' jobs that bid more per GPU-hour
    waited_longer: int  # that bid no more, and have waited longer for it
    by_turn: int  # with the same bid: accounts take turns, those with fewer jobs running first
    own: int  # of the same account
    own_running: int


def _read_spec(raw: object, read: Callable[[object], JobSpec]) -> JobSpec:
    """Of a job that a newer client has submitted: what this reader knows of it. Its digest is `spec_digest` only where that is all."""
    return read_what_is_known(JobSpec, raw) if isinstance(raw, dict) else read(raw)


SpecOfView = Annotated[JobSpec, WrapValidator(_read_spec)]


class JobView(View):
    job_id: JobId
    name: str
    state: JobState
    client: AccountId
    vault: VaultAddress
    spec: SpecOfView
    spec_digest: Digest
    max_amount: int
    max_duration_ms: int = 0  # in all attempts: the spec's, or what it was extended to
    price_ceiling: int = 0  # base units per GPU-hour: no attempt costs more
    final_amount: int | None = None
    created_at_ms: int
    ended_at_ms: int | None = None
    reason: EndReason | None = None
    detail: str = ""
    waiting_for: str | None = None  # why a queued job is not running, in words
    queue: QueuePlace | None = Field(default=None, exclude_if=_is_nothing)  # where one job alone is asked for
    progress: dict[str, Any] | None = None
    leases: tuple[LeaseView, ...] = ()
    outputs: tuple[OutputFile, ...] = ()
    volumes: tuple[JobVolume, ...] = ()  # of the account

    def whole_log(self, stream: str, *, attempt: int | None = None, task: str | None = None) -> BlobRef:
        """Of an attempt, by default the newest that has one; of a task its last run. Raises NotFound `log_not_stored`."""
        for lease in reversed(self.leases):
            if attempt is not None and lease.attempt != attempt:
                continue
            if task is None:
                names = [stream] if stream in lease.logs else []
            else:
                names = [name for name in lease.logs if re.fullmatch(rf"{re.escape(task)}\.\d+/{stream}", name)]
            if names:
                return lease.logs[max(names, key=lambda name: (len(name), name))]
        raise NotFound(
            "no such log is stored",
            code="log_not_stored",
            field="stream",
            value=stream,
            hint="it comes with the end of an attempt, if anything was written; until then there is the live log",
        )


class JobPage(View):
    """GET /v1/jobs. `next_cursor`: the `cursor` of the next page; null on the last one. So on every list."""

    jobs: tuple[JobView, ...]
    next_cursor: str | None = None


class JobEvent(View):
    """One event of GET /v1/jobs/{id}/events (SSE; the id is resumable by Last-Event-ID).

    job, lease, task: moves of states. removed: some of what comes after the id that was asked for is not kept any more.
    """

    id: int
    at_ms: int
    kind: EventKind
    lease_id: LeaseId | None = None
    data: dict[str, Any]


class JobReceipts(View):
    """GET /v1/jobs/{id}/receipts: one per decided lease."""

    receipts: tuple[SignedReceipt, ...]


class VaultView(View):
    """PUT or GET /v1/vaults/{address}. On-chain figures are the finalized ones."""

    vault: VaultAddress
    depositor: AccountId
    signer: str
    chain_balance: int
    chain_settled: int
    close_at_s: int = 0
    grace_s: int
    newest_cap: int = 0
    newest_cap_valid_until_s: int = 0
    final_total: int = 0  # final amounts of ended jobs, ever
    open_maximum: int = 0  # maxima of open jobs
    unsettled: int = 0  # earned by nodes, not captured yet


class PayoutView(View):
    payout_id: str
    lease_id: LeaseId
    payout_address: str
    amount: int
    state: str
    settlement_signature: str | None = None


class SettlementView(View):
    """GET /v1/vaults/{address}/settlements"""

    settlement_id: str
    vault: VaultAddress
    state: str
    amount: int
    signature: str
    expected_settled: int
    payouts: tuple[PayoutView, ...]


class SettlementPage(View):
    """GET /v1/vaults/{address}/settlements, oldest first."""

    settlements: tuple[SettlementView, ...]
    next_cursor: str | None = None


class StatementFigures(View):
    """Base units. free + held + owed = in_vault, of balances and of movements alike."""

    free: int  # the client's, for new jobs
    held: int  # kept aside for open jobs
    owed: int  # earned by nodes and the marketplace, not captured yet
    in_vault: int  # tokens on chain, as the ledger has seen them
    # Refunds of what was captured already: later captures are lower by it. Outside of the sum above; left out when there is none.
    credit: int = Field(default=0, exclude_if=_is_nothing)


class StatementLine(View):
    """One posting of the ledger: why, for which job, and what it moved."""

    at_ms: int
    cause: str
    job_id: JobId | None = None
    lease_id: LeaseId | None = None
    refund: RefundCause | None = Field(default=None, exclude_if=_is_nothing)
    moved: StatementFigures


class Statement(View):
    """GET /v1/vaults/{address}/statement: all that moved between two balances, oldest first."""

    vault: VaultAddress
    since_ms: int
    until_ms: int
    opening: StatementFigures
    closing: StatementFigures
    lines: tuple[StatementLine, ...]
    next_cursor: str | None = None


class NodeView(View):
    """GET /v1/nodes/{id}, and one entry of GET /v1/offers"""

    node: NodeId
    state: NodeState
    liveness: Liveness
    gpu_class: str
    gpus: int
    gpus_free: int | None = None  # whole ones, for a job now; None: the marketplace is older and does not say
    gpus_out: int = 0  # that nobody holds and that get no lease now: broken, or too hot
    cpu_millis: int
    memory_bytes: int
    disk_bytes: int
    price_per_gpu_hour: int
    spot_price_per_gpu_hour: int | None = None  # of jobs that may be preempted; None: it takes none
    slots: int
    slots_free: int
    executor: str
    isolation: tuple[str, ...]
    egress: tuple[str, ...] = ()  # networks beside "none" that a job may ask for
    own_root: bool = False  # whether a job may ask for `root: true`
    protocol_version: int = 0  # newest of the node channel that it speaks; 0: the marketplace is older and does not say
    gpu_slices: int = 1  # how many leases of one client may share a GPU; none takes less than that part of it
    region: str
    inventory_source: str
    proof: ProofStatus | None = None  # what proofs of its hardware established


class ReputationChange(View):
    """One piece of evidence. `because`: why the lease ended."""

    at_ms: int
    lease_id: LeaseId
    because: EndReason
    was_permille: int
    now_permille: int


class NodeReputation(View):
    """GET /v1/nodes/{id}/reputation. The share of its leases that the node saw through, as of late; `changes`: newest first."""

    node: NodeId
    permille: int
    leases_kept: int
    leases_broken: int
    proof: ProofStatus
    changes: tuple[ReputationChange, ...]


class OfferPage(View):
    """GET /v1/offers, by node id."""

    offers: tuple[NodeView, ...]
    next_cursor: str | None = None


class Health(View):
    """GET /healthz, /readyz"""

    status: Literal["ok", "ready"]
    warnings: tuple[str, ...] = Field(default=(), exclude_if=_is_nothing)


class Problem(BaseModel):
    """Every error of this API: RFC 9457 problem details. Programs match `code`, which never changes its meaning; errors
    add members of their own, such as `missing` or `problems`."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(pattern=r"^urn:torg:error:[a-z0-9_]+$")
    title: str
    status: int = Field(ge=400, le=599)
    code: str
    field: str | None = None
    value: Any = None
    hint: str | None = None


class BlobUploadRequest(Wire):
    """POST /v1/blobs. With `pieces`, which in their order are the blob, only those are asked for that this account has not
    sent before. `based_on`: a blob that this account may read, from which it was made: the pieces of that need not be sent either."""

    digest: Digest = Field(pattern=DIGEST)
    size_bytes: int = Field(ge=0)
    pieces: tuple[BlobRef, ...] = Field(default=(), max_length=MAX_BLOB_PIECES)
    based_on: Digest | None = Field(default=None, pattern=DIGEST)


class BlobPieces(Wire):
    """POST /v1/blobs/pieces: some pieces of a blob whose name is not known yet, because the rest of it is still being packed."""

    pieces: tuple[BlobRef, ...] = Field(min_length=1, max_length=MAX_PIECES_ASKED)


class MissingPiece(View):
    digest: Digest
    url: str


class MissingPieces(View):
    """PUT each to its URL. What is not named here is stored."""

    missing: tuple[MissingPiece, ...]


class BlobUpload(View):
    """PUT the bytes to `url`; or PUT each missing piece to its own and then ask again, which puts them together. Neither is there when
    the store has the blob from this account, or from a job of its own. The store checks every digest."""

    digest: Digest
    url: str | None
    missing: tuple[MissingPiece, ...] = ()


class BlobDownload(View):
    """GET /v1/blobs/{digest}. `pieces`: of a blob that is named by them, in their order; `url` gives all of them, one after the other."""

    digest: Digest
    size_bytes: int
    url: str
    pieces: tuple[BlobRef, ...] = Field(default=(), exclude_if=_is_nothing)
