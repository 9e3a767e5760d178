"""The SDK: everything a person with work does, as typed coroutines. The CLI is thin over this.

async with torg.AsyncClient() as client:
    job = await client.submit(torg.read_spec_file(Path("job.yaml")))
    async for event in client.follow(job.job_id): ...
    await client.pull(job.job_id, Path("results"))
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from solders.keypair import Keypair

from torg.blobs import BlobTransfer
from torg.config import ClientConfig, load_config, pin_or_check
from torg.errors import Conflict, JobFailed, ReceiptInvalid
from torg.journal import Journal
from torg.spec_file import SpecFile
from torg.transport import ByteProgress, Transport
from torg.vaults import Vaults
from torg_chain.wallet import load_keypair
from torg_protocol.api import JobEvent, JobPage, JobReceipts, JobView, MarketInfo, NodeView, Quote
from torg_protocol.caps import SignedCap
from torg_protocol.jobspec import JobSpec
from torg_protocol.states import OPEN_JOB_STATES, JobState
from torg_protocol.usage import SignedReceipt, verify_receipt

StageProgress = Callable[[str, int, int], None]  # what is being moved, bytes done, bytes in all


class AsyncClient:
    """One key at one marketplace. Use it as a context manager, from one event loop.

    Reads the configuration and the key of `home` (see torg.config). The first request pins the marketplace's identity; a later
    change of it raises Forbidden `marketplace_changed` before anything is signed.
    """

    def __init__(self, config: ClientConfig | None = None, keypair: Keypair | None = None) -> None:
        self.config = config or load_config()
        self.keypair = keypair or load_keypair(self.config.key_path)
        self._transport = Transport(self.config.marketplace_url, self.keypair)
        self._blobs = BlobTransfer(self._transport)
        self._journal: Journal | None = None
        self._market: MarketInfo | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._transport.aclose()

    @property
    def journal(self) -> Journal:
        if self._journal is None:
            self._journal = Journal(self.config.journal_path)
        return self._journal

    @property
    def vaults(self) -> Vaults:
        return Vaults(self.config, self.keypair, self._transport, self.journal, self.market)

    async def market(self) -> MarketInfo:
        """The marketplace's public facts; asked once, then remembered."""
        if self._market is None:
            info = MarketInfo.model_validate(await self._transport.request("GET", "/v1/market"))
            pin_or_check(self.config, info)
            self._market = info
        return self._market

    async def offers(self) -> tuple[NodeView, ...]:
        return tuple(NodeView.model_validate(item) for item in await self._transport.request("GET", "/v1/offers"))

    # --- jobs -------------------------------------------------------------------------------------------------------

    async def quote(self, spec: JobSpec) -> Quote:
        """Whether, where and for how much this can run now; if not, which constraint removes how many nodes."""
        await self.market()
        return Quote.model_validate(await self._transport.request("POST", "/v1/quotes", body={"spec": spec.wire()}))

    async def submit(
        self,
        file: SpecFile,
        *,
        vault: str | None = None,
        idempotency_key: str | None = None,
        on_progress: StageProgress | None = None,
    ) -> JobView:
        """Packs and uploads the workspace, asks for a quote, signs a cap that covers this job, submits.

        Safe to call again with the same `idempotency_key`: the same job comes back. Raises Infeasible when nothing on the
        market can run it, Conflict `vault_underfunded` when the vault cannot cover it, NotFound `no_vault` when there is none.
        """
        file.check()
        market = await self.market()
        entry = self.journal.vault(market.marketplace, vault)
        spec = await self._upload_workspace(file, on_progress)
        quote = await self.quote(spec)
        if not quote.feasible:
            raise _infeasible(quote)
        max_amount = quote.max_amount or 0
        key = idempotency_key or secrets.token_hex(16)
        await self._settle_journal(entry.address)
        cap_amount = self.journal.reserve(
            vault=entry.address, idempotency_key=key, name=spec.name, max_amount=max_amount, now_ms=_now_ms()
        )
        valid_until_s = _now_ms() // 1000 + _cap_lifetime_s(spec, market)
        cap = await self.vaults.sign_cap(entry, cap_amount, valid_until_s)
        return await self._post_job(spec, quote, cap, key)

    async def job(self, job_id: str) -> JobView:
        return JobView.model_validate(await self._transport.request("GET", f"/v1/jobs/{job_id}"))

    async def jobs(self, *, limit: int = 50, cursor: str | None = None) -> JobPage:
        query = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        return JobPage.model_validate(await self._transport.request("GET", "/v1/jobs", query=query))

    async def cancel(self, job_id: str) -> JobView:
        """Stops the job; useful seconds until then are billed. Raises Conflict when it has reported or ended already."""
        return JobView.model_validate(await self._transport.request("POST", f"/v1/jobs/{job_id}/cancel", body={}))

    async def follow(self, job_id: str, *, after: int = 0) -> AsyncIterator[JobEvent]:
        """States, progress, logs and checkpoints as they happen, until the job has ended. Survives reconnects."""
        async for raw in self._transport.events(f"/v1/jobs/{job_id}/events", last_event_id=after):
            yield JobEvent.model_validate(raw)

    async def logs(self, job_id: str, stream: str = "stdout") -> str:
        return await self._transport.text(f"/v1/jobs/{job_id}/logs", {"stream": stream})

    async def wait(self, job_id: str, *, check: bool = False) -> JobView:
        """Returns when the job has ended; with `check`, raises JobFailed unless it succeeded."""
        async for _ in self.follow(job_id):
            pass
        job = await self.job(job_id)
        await self._record_receipts(job)
        if check and job.state is not JobState.SUCCEEDED:
            raise JobFailed(
                f"{job.name}: {job.state}", code="job_failed", job_id=job_id, reason=str(job.reason), detail=job.detail
            )
        return job

    async def pull(self, job_id: str, destination: Path, *, on_progress: StageProgress | None = None) -> list[Path]:
        """Downloads the outputs into `destination`, each checked against its digest before it gets its name."""
        job = await self.job(job_id)
        fetched = []
        for output in job.outputs:
            target = _safe_target(destination, output.path)
            await self._blobs.fetch(output.digest, target, _named(on_progress, output.path))
            fetched.append(target)
        return fetched

    async def receipts(self, job_id: str) -> tuple[SignedReceipt, ...]:
        """All receipts of a job, each verified. Raises ReceiptInvalid when one does not hold."""
        market = await self.market()
        answer = JobReceipts.model_validate(await self._transport.request("GET", f"/v1/jobs/{job_id}/receipts"))
        for signed in answer.receipts:
            if problems := verify_receipt(signed, marketplace=market.marketplace):
                raise ReceiptInvalid("; ".join(problems), lease_id=signed.receipt.lease_id, problems=problems)
        return answer.receipts

    # --- parts ------------------------------------------------------------------------------------------------------

    async def _upload_workspace(self, file: SpecFile, on_progress: StageProgress | None) -> JobSpec:
        if file.workspace is None:
            return file.with_workspace(None, 0)
        from torg_host.archive import pack

        with tempfile.TemporaryDirectory(prefix="torg-") as scratch:
            archive = Path(scratch) / "workspace.tar.zst"
            packed = pack(file.workspace, archive)
            await self._blobs.store(packed.digest, archive, _named(on_progress, "workspace"))
        return file.with_workspace(packed.digest, packed.size_bytes)

    async def _post_job(self, spec: JobSpec, quote: Quote, cap: SignedCap, key: str) -> JobView:
        body: dict[str, Any] = {"spec": spec.wire(), "quote_id": quote.quote_id, "cap": cap.wire()}
        try:
            job = JobView.model_validate(
                await self._transport.request("POST", "/v1/jobs", body=body, idempotency_key=key)
            )
        except Conflict as error:
            if error.code != "idempotency_key_reused":
                self.journal.refused(key)
            raise
        self.journal.submitted(key, job.job_id)
        return job

    async def _settle_journal(self, vault: str) -> None:
        """Replaces the maxima of jobs that have ended since by what their receipts say, so that the next cap is tight."""
        for job_id in self.journal.open_job_ids(vault):
            job = await self.job(job_id)
            if job.state not in OPEN_JOB_STATES:
                await self._record_receipts(job)

    async def _record_receipts(self, job: JobView) -> None:
        receipts = await self.receipts(job.job_id)
        for signed in receipts:
            receipt = signed.receipt
            self.journal.add_receipt(
                lease_id=receipt.lease_id, job_id=receipt.job_id, amount=receipt.amount, body=signed.model_dump_json()
            )
        if {lease.lease_id for lease in job.leases} <= {signed.receipt.lease_id for signed in receipts}:
            self.journal.ended(job.job_id)


def _cap_lifetime_s(spec: JobSpec, market: MarketInfo) -> int:
    """Until the last lease can have ended, been verified and settled, plus an hour for what nobody planned."""
    attempts = spec.retry.max_attempts
    leases_s = (spec.limits.queue_timeout + attempts * (spec.limits.max_duration + spec.lease_grace)) // 1000
    return leases_s + market.verification_window_s + market.settlement_max_age_s + 3600


def _infeasible(quote: Quote) -> Exception:
    from torg_protocol.errors import Infeasible

    lines = [
        f"{item.constraint}: asked {item.asked}, removed {item.nodes_removed} of {quote.nodes_considered} nodes"
        + (f"; best available: {item.best_available}" if item.best_available else "")
        for item in quote.constraints
    ]
    first = quote.constraints[0] if quote.constraints else None
    return Infeasible(
        "no node on this market can run the job" + "".join(f"\n  - {line}" for line in lines),
        field=first.constraint if first else None,
        value=first.asked if first else None,
        hint=quote.hint,
        constraints=[item.wire() for item in quote.constraints],
    )


def _safe_target(destination: Path, relative: str) -> Path:
    """Output paths come from a stranger's machine: never outside the destination."""
    target = (destination / relative).resolve()
    if not target.is_relative_to(destination.resolve()):
        raise ReceiptInvalid(
            "an output's path leaves the destination", code="output_path_unsafe", field="path", value=relative
        )
    return target


def _named(on_progress: StageProgress | None, what: str) -> ByteProgress | None:
    return None if on_progress is None else lambda done, total: on_progress(what, done, total)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
