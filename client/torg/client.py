"""The SDK: everything a person with work does, as typed coroutines. The CLI is thin over this.

async with torg.AsyncClient() as client:
    job = await client.submit(torg.read_spec_file(Path("job.yaml")))
    async for event in client.follow(job.job_id): ...
    await client.pull(job.job_id, Path("results"))
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, get_args

from solders.keypair import Keypair

from torg.config import ClientConfig, load_config, pin_or_check
from torg.errors import JobFailed, ReceiptInvalid
from torg.journal import Journal
from torg.kept import KeptData, StageProgress, of_stage
from torg.packing import Packed, ready
from torg.spec_file import SpecFile
from torg.transport import ByteProgress, Transport
from torg_chain.wallet import load_keypair
from torg_protocol.api import (
    JobEvent,
    JobPage,
    JobView,
    MarketInfo,
    NodeView,
    OfferPage,
    Quote,
    ReferencePrice,
    ReferencePrices,
)
from torg_protocol.cases import AbuseView, AccountView, DisputePage, DisputeView, ErasureView
from torg_protocol.errors import Conflict, Invalid, NotFound, TorgError
from torg_protocol.event_kinds import EventKind
from torg_protocol.ids import AccountId, Digest, hex_of
from torg_protocol.jobspec import BlobRef, JobSpec
from torg_protocol.refunds import RefundPage, RefundView
from torg_protocol.states import JobState
from torg_protocol.task_lines import TaskLines
from torg_protocol.usage import SignedReceipt

if TYPE_CHECKING:
    from torg.credit import CreditSubmission
    from torg.submission import Submission
    from torg.vaults import Vaults

R = TypeVar("R")
T = TypeVar("T")

_REQUOTE_WHEN_LEFT_MS = 30_000
_EVENT_KINDS = frozenset(get_args(EventKind))
_JOB_ID = re.compile(r"job_[0-9a-z]{26}")


class AsyncClient(KeptData):
    """One key at one marketplace. Use it as a context manager, from one event loop.

    Reads the configuration and the key of `home` (see torg.config). With an API key in the configuration (TORG_API_KEY) there is no
    wallet: the operator's credit pays, and nothing is kept in a journal. The first request pins the marketplace's identity; a later
    change of it raises Forbidden `marketplace_changed` before anything is signed.
    """

    def __init__(
        self,
        config: ClientConfig | None = None,
        keypair: Keypair | None = None,
        *,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        self.config = config or load_config()
        api_key = self.config.api_key if keypair is None else None
        self._keypair = keypair or (None if api_key else load_keypair(self.config.key_path))
        self._transport = Transport(self.config.marketplace_url, self._keypair, api_key=api_key)
        self._journal: Journal | None = None
        self._market: MarketInfo | None = None
        self._now_ms = now_ms or _now_ms

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._transport.aclose()

    @property
    def keypair(self) -> Keypair:
        """The wallet. Raises Conflict `wallet_needed` for a client with an API key."""
        if self._keypair is None:
            raise Conflict(
                "this needs a wallet, and TORG_API_KEY stands for none",
                code="wallet_needed",
                field="TORG_API_KEY",
                hint="unset TORG_API_KEY to act by the wallet of this computer",
            )
        return self._keypair

    @property
    def journal(self) -> Journal:
        if self._journal is None:
            self._journal = Journal(self.config.journal_path)
        return self._journal

    @property
    def vaults(self) -> Vaults:
        from torg.vaults import Vaults  # the chain's libraries load slowly, and most commands need none

        return Vaults(self.config, self.keypair, self._transport, self.journal, self.market)

    async def market(self) -> MarketInfo:
        """The marketplace's public facts; asked once, then remembered."""
        if self._market is None:
            info = await self._transport.ask(MarketInfo, "GET", "/v1/market")
            pin_or_check(self.config, info.wire())
            self._market = info
        return self._market

    async def offers(self) -> tuple[NodeView, ...]:
        """What nodes offer now, all pages of it."""
        pages = [page.offers async for page in self._transport.ask_pages(OfferPage, "/v1/offers")]
        return tuple(offer for page in pages for offer in page)

    async def prices(self) -> tuple[ReferencePrice, ...]:
        """Reference prices of the newest minute, by class: nobody pays them, they say what a class is worth."""
        return (await self._transport.ask(ReferencePrices, "GET", "/v1/prices")).prices

    # --- jobs -------------------------------------------------------------------------------------------------------

    async def quote(self, spec: JobSpec) -> Quote:
        """Whether, where and for how much this can run now; if not, which constraint removes how many nodes. `inputs`: what the names of
        data in it stand for now."""
        await self.market()
        return await self._transport.ask(Quote, "POST", "/v1/quotes", body={"spec": spec.wire()}, safe_to_repeat=True)

    async def submit(
        self,
        file: SpecFile,
        *,
        vault: str | None = None,
        idempotency_key: str | None = None,
        on_progress: StageProgress | None = None,
    ) -> JobView:
        """Asks for a quote, packs and uploads the workspace, signs a cap that covers this job, submits.

        Safe to call again with the same `idempotency_key`: the same job comes back. Nothing is uploaded for a job that nothing on
        the market can run. Raises Infeasible; Conflict `vault_underfunded`; NotFound `no_vault`; Unavailable
        `submission_unanswered` when nobody here can know whether the marketplace has it (its message says how to find out).
        """
        checked = file.check()
        file.refuse_lost()
        submission = await self._rail(vault)
        pinned = await self._pinned(checked, file)
        key = idempotency_key or secrets.token_hex(16)
        with ready(file, name_it=submission.knows(key)) as packed:
            spec = packed.spec.model_copy(update={"inputs": pinned.inputs, "tasks": pinned.tasks})
            if (job := await submission.already_submitted(spec, key)) is not None:
                return job
            if file.secrets or packed.secrets:
                spec = await self._with_secrets(spec, file, packed.secrets)
            quote = await submission.quote(spec)
            if (image := file.image_archive()) is not None:
                await self._blobs.store(image[0], image[1], of_stage(on_progress, "image"))
            stored = await self._store_workspace(file, packed, of_stage(on_progress, "workspace"))
        if stored != spec.workspace or quote.expires_at_ms - self._now_ms() < _REQUOTE_WHEN_LEFT_MS:
            spec = spec.model_copy(update={"workspace": stored})
            quote = await submission.quote(spec)
        return await submission.submit(spec, quote, key)

    async def _store_workspace(self, file: SpecFile, packed: Packed, on_bytes: ByteProgress | None) -> BlobRef | None:
        if packed.archive is not None and packed.spec.workspace is not None:
            await self._blobs.store(packed.spec.workspace.digest, packed.archive, on_bytes)
            return packed.spec.workspace
        if file.workspace is None:
            return packed.spec.workspace
        tree = await self._blobs.store_tree(file.workspace, on_bytes)
        return BlobRef(digest=Digest(tree.digest), size_bytes=tree.size_bytes)

    async def _pinned(self, spec: JobSpec, file: SpecFile) -> JobSpec:
        """With blobs for names of data. Raises Invalid `data_unknown` with the line of the job file."""
        try:
            return await self._data.pin(spec) if spec.named_data() else spec
        except Invalid as error:
            raise file.explain(error) from error

    async def _with_secrets(self, spec: JobSpec, file: SpecFile, more: Mapping[str, bytes]) -> JobSpec:
        from torg.secret_sources import seal_secrets

        offers = () if spec.placement.nodes else await self.offers()
        return seal_secrets(spec, file.secrets, offers, AccountId(str(self.keypair.pubkey())), more)

    async def resubmit(self, job_id: str, *, vault: str | None = None, idempotency_key: str | None = None) -> JobView:
        """The same spec and workspace as a new job, under a new quote. Raises what `submit` raises; Invalid `blob_missing` when the
        store no longer has the workspace; Unavailable `answer_malformed` when the spec has members of a newer release than this client's,
        which would be lost."""
        spec = await self._transport.read(_whole_spec, "GET", f"/v1/jobs/{_id(job_id)}")
        submission = await self._rail(vault)
        key = idempotency_key or secrets.token_hex(16)
        if (job := await submission.already_submitted(spec, key)) is not None:
            return job
        return await submission.submit(spec, await submission.quote(spec), key)

    async def submission(self, vault: str | None = None) -> Submission:
        """The vault's books and what is submitted under it. Raises NotFound `no_vault`, `vault_unknown`; Conflict `wallet_needed`."""
        from torg.submission import Submission

        vaults, market = self.vaults, await self.market()
        entry = self.journal.vault(market.marketplace, vault)
        return Submission(self._transport, self.journal, vaults, market, entry, self._now_ms)

    async def _rail(self, vault: str | None) -> Submission | CreditSubmission:
        """How jobs of this client are paid."""
        if self._keypair is not None or vault is not None:
            return await self.submission(vault)
        from torg.credit import CreditSubmission

        return CreditSubmission(self._transport, await self.market())

    async def job(self, job_id: str) -> JobView:
        return await self._transport.ask(JobView, "GET", f"/v1/jobs/{_id(job_id)}")

    async def jobs(self, *, limit: int = 50, cursor: str | None = None, state: str | None = None) -> JobPage:
        """One page, newest first: its `jobs`, and the `next_cursor`, at which another one begins. `all_jobs` goes through all pages."""
        query = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {}) | ({"state": state} if state else {})
        return await self._transport.ask(JobPage, "GET", "/v1/jobs", query=query)

    async def all_jobs(self, *, state: str | None = None) -> AsyncIterator[JobView]:
        """Newest first, page by page as they are taken."""
        page = await self.jobs(limit=200, state=state)
        for job in page.jobs:
            yield job
        while page.next_cursor is not None:
            page = await self.jobs(limit=200, cursor=page.next_cursor, state=state)
            for job in page.jobs:
                yield job

    async def cancel(self, job_id: str) -> JobView:
        """Stops the job; useful seconds until then are billed. Raises Conflict when it has reported or ended already."""
        return await self._transport.ask(
            JobView, "POST", f"/v1/jobs/{_id(job_id)}/cancel", body={}, safe_to_repeat=True
        )

    async def extend(self, job_id: str, by_ms: int) -> JobView:
        """Lets an open job last so much longer, under a larger cap. A queued one has a larger limit; a running one goes on from its newest
        checkpoint when its time is over. Raises Conflict (extend_needs_checkpoints, extend_verified, job_ended, vault_underfunded),
        NotFound `job_not_in_journal`; with an API key, whose credit holds more then, credit_exhausted or spend_cap_reached."""
        from torg.extension import extend, extend_on_credit

        job = await self.job(job_id)
        if self._keypair is None:
            return await extend_on_credit(self._transport, job, by_ms)
        return await extend(await self.submission(job.vault), job, by_ms)

    async def follow(
        self, job_id: str, *, after: int = 0, on_gap: Callable[[str], None] | None = None
    ) -> AsyncIterator[JobEvent]:
        """States, progress, logs and checkpoints as they happen, until the job has ended. Survives reconnects, of which
        `on_gap` is told."""
        path = f"/v1/jobs/{_id(job_id)}/events"
        async for raw in self._transport.events(path, last_event_id=after, on_gap=on_gap):
            if raw.get("kind") in _EVENT_KINDS:  # a newer marketplace tells of more
                yield JobEvent.model_validate(raw)

    async def logs(self, job_id: str, stream: str = "stdout", *, task: str | None = None) -> str:
        """The live log. Of a job of several tasks: of one as it wrote it, or of all with the task's name before each line. A sealed job has
        none: of it this is the newest attempt's whole log, decrypted, and empty until that has ended."""
        query = {"stream": stream} | ({"task": task} if task is not None else {})
        text = await self._transport.text(f"/v1/jobs/{_id(job_id)}/logs", query)
        if text or (spec := (await self.job(job_id)).spec).sealed is None:
            return text
        if task is not None or not spec.tasks:
            return await self._sealed_log(job_id, stream, task)
        lines = TaskLines(max(len(item.name) for item in spec.tasks))
        texts = [
            lines.take(item.name, stream, await self._sealed_log(job_id, stream, item.name)) for item in spec.tasks
        ]
        return "".join(texts) + lines.rest()

    async def _sealed_log(self, job_id: str, stream: str, task: str | None) -> str:
        """Empty until it is stored."""
        with tempfile.TemporaryDirectory(prefix="torg-") as scratch, contextlib.suppress(NotFound):
            file = await self.save_log(job_id, Path(scratch) / "log", stream, task=task)
            return file.read_text(errors="replace")
        return ""

    async def save_log(
        self,
        job_id: str,
        target: Path,
        stream: str = "stdout",
        *,
        attempt: int | None = None,
        task: str | None = None,
    ) -> Path:
        """Downloads an attempt's whole log, by default the newest's, as the job wrote it, checked against its digest. Raises NotFound
        `log_not_stored` until the attempt has ended."""
        job = await self.job(job_id)
        blob = job.whole_log(stream, attempt=attempt, task=task)
        await self._fetch(job, blob.digest, target, target.absolute().parent, None)
        return target

    async def _fetch(
        self, job: JobView, digest: str, target: Path, scratch: Path, on_bytes: ByteProgress | None
    ) -> None:
        """A file that the job's node stored for this client; of a sealed job it is decrypted before it gets its name."""
        if job.spec.sealed is None:
            await self._blobs.fetch(digest, target, scratch, on_bytes)
            return
        from torg_host.age import unseal_file

        sealed = scratch / f".torg-{hex_of(digest)[:32]}.age"
        opened = sealed.with_suffix(".open")
        try:
            await self._blobs.fetch(digest, sealed, scratch, on_bytes)
            await asyncio.to_thread(unseal_file, sealed, opened, self.keypair)
            target.parent.mkdir(parents=True, exist_ok=True)
            opened.replace(target)
        finally:
            sealed.unlink(missing_ok=True)
            opened.unlink(missing_ok=True)

    async def wait(self, job_id: str, *, check: bool = False) -> JobView:
        """Returns when the job has ended; with `check`, raises JobFailed unless it succeeded."""
        async for _ in self.follow(job_id):
            pass
        job = await self.job(job_id)
        await self.receipts(job_id)
        if check and job.state is not JobState.SUCCEEDED:
            raise JobFailed(
                f"{job.name}: {job.state}", code="job_failed", job_id=job_id, reason=str(job.reason), detail=job.detail
            )
        return job

    async def pull(
        self, job_id: str, destination: Path, *, overwrite: bool = False, on_progress: StageProgress | None = None
    ) -> list[Path]:
        """Downloads the outputs into `destination`, each checked against its digest before it gets its name.

        Resumes what an earlier call left unfinished and skips what is there already. Raises Conflict `output_exists` before
        anything is downloaded when a file of that name with other content is there, unless `overwrite`; ReceiptInvalid
        `output_path_unsafe` when an output's name would leave `destination`. Those of a sealed job are decrypted with this wallet; what is
        there of them already is not recognised.
        """
        from torg.outputs import plan_downloads

        job = await self.job(job_id)
        planned = plan_downloads(job.outputs, destination, overwrite=overwrite)
        for item in planned:
            if not item.is_there:
                progress = of_stage(on_progress, item.output.path)
                await self._fetch(job, item.output.digest, item.target, destination, progress)
        return [item.target for item in planned]

    # --- functions --------------------------------------------------------------------------------------------------

    async def run(
        self,
        function: Callable[..., R],
        *arguments: Any,
        spec: Mapping[str, Any] | None = None,
        vault: str | None = None,
        idempotency_key: str | None = None,
        **named: Any,
    ) -> R:
        """Runs the call as a job and returns its value: JSON values and bytes; tuples come back as lists (see torg.functions).

        `spec`: members of a job spec, such as {"resources": {"gpus": 1}, "limits": {"max_duration": "10m"}}. Cancelled when this
        is cancelled. Raises FunctionFailed (it raised: `remote_traceback`; python_version_mismatch; function_result_not_plain), JobFailed,
        Invalid `function_not_picklable`, and what `submit` raises.
        """
        from torg.functions import RESULT, failure_of, function_job, read_result

        with tempfile.TemporaryDirectory(prefix="torg-function-") as scratch:
            folder = Path(scratch)
            (folder / "workspace").mkdir()
            file = function_job(folder / "workspace", function, arguments, named, spec or {})
            job = await self.submit(file, vault=vault, idempotency_key=idempotency_key)
            try:
                job = await self.wait(job.job_id)
            except asyncio.CancelledError:
                with contextlib.suppress(TorgError):
                    await self.cancel(job.job_id)
                raise
            if job.state is not JobState.SUCCEEDED:
                raise failure_of(job, await self.logs(job.job_id, "stderr"))
            await self.pull(job.job_id, folder / "outputs")
            value: R = read_result(folder / "outputs" / RESULT)
            return value

    async def map(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        *,
        spec: Mapping[str, Any] | None = None,
        vault: str | None = None,
        at_once: int = 8,
    ) -> AsyncIterator[R]:
        """One job per item, at most `at_once` open, results in the order of `items`. The first failure is raised, and cancels the rest."""
        waiting: deque[asyncio.Task[R]] = deque()
        try:
            for item in items:
                if len(waiting) >= max(1, at_once):
                    yield await waiting.popleft()
                waiting.append(asyncio.create_task(self.run(function, item, spec=spec, vault=vault)))
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def refunds(self, job_id: str | None = None) -> tuple[RefundView, ...]:
        """What was given back to this account, oldest first, each with the marketplace's verified signature. Raises ReceiptInvalid
        `refund_invalid`."""
        query = {} if job_id is None else {"job_id": _id(job_id)}
        market = await self.market()
        pages = self._transport.ask_pages(RefundPage, "/v1/refunds", query)
        found = [item async for page in pages for item in page.refunds]
        for item in found:
            if problems := item.signed.problems(marketplace=market.marketplace):
                raise ReceiptInvalid(
                    f"a refund does not hold: {'; '.join(problems)}",
                    code="refund_invalid",
                    field="refund_id",
                    value=item.signed.refund.refund_id,
                )
        return tuple(found)

    async def account(self) -> AccountView:
        """Who this is at the marketplace, and how much of what it may do is used."""
        return await self._transport.ask(AccountView, "GET", "/v1/account")

    async def erase(self) -> ErasureView:
        """Erases this account's data at the marketplace: specs, blobs, logs, events, names; receipts and ledger stay. Safe to repeat.
        Raises Conflict jobs_open, dispute_open."""
        return await self._transport.ask(ErasureView, "DELETE", "/v1/account/data")

    async def dispute(self, job_id: str, reason: str) -> DisputeView:
        """Objects to what a finished job cost; a person decides. Safe to repeat. Raises Conflict dispute_too_early, dispute_too_late,
        dispute_exists, nothing_to_dispute."""
        return await self._transport.ask(
            DisputeView, "POST", f"/v1/jobs/{_id(job_id)}/dispute", body={"reason": reason}, safe_to_repeat=True
        )

    async def disputes(self) -> tuple[DisputeView, ...]:
        """Newest first, with their decisions."""
        return (await self._transport.ask(DisputePage, "GET", "/v1/disputes")).disputes

    async def report_abuse(self, subject: str, reason: str) -> AbuseView:
        """Tells the operator of a job (its id) or a node (its address) that does harm. Safe to repeat."""
        body = {"subject": subject, "reason": reason}
        return await self._transport.ask(AbuseView, "POST", "/v1/abuse-reports", body=body, safe_to_repeat=True)

    async def receipts(self, job_id: str) -> tuple[SignedReceipt, ...]:
        """All receipts of a job, each verified, and kept in a wallet's journal. Raises ReceiptInvalid when one does not hold."""
        from torg.submission import Books, fetch_receipts

        if self._keypair is None:
            return await fetch_receipts(self._transport, await self.market(), await self.job(job_id))
        return await Books(self._transport, self.journal, await self.market()).record_receipts(await self.job(job_id))


def _whole_spec(job: Mapping[str, Any]) -> JobSpec:
    return JobSpec.model_validate(job["spec"])


def _id(job_id: str) -> str:
    """A job id as part of a path: nothing that a user types may change which path is asked."""
    if not _JOB_ID.fullmatch(job_id):
        raise Invalid(
            "not a job id",
            code="job_id_invalid",
            field="job",
            value=job_id,
            hint="it is job_ and 26 characters, whole, as torg ps shows it; `last` is the newest job",
        )
    return job_id


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
