"""From a spec to a job that the marketplace has, under a cap that the client's own journal justifies.

The order of writes makes every crash harmless: the job is in the journal before it is sent, so no cap is ever too small for it;
if no answer comes, its maximum keeps counting until the marketplace either shows the job or can no longer accept it (the quote
that it named has expired). Sending again under the same idempotency key gives the same job, never a second one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from torg.errors import ReceiptInvalid
from torg.journal import JobEntry, Journal, VaultEntry
from torg.transport import Transport
from torg_protocol.api import JobPage, JobReceipts, JobView, MarketInfo, Quote
from torg_protocol.errors import Conflict, Infeasible, Invalid, NotFound, TorgError, Unavailable
from torg_protocol.httpsig import MAX_CLOCK_SKEW_S
from torg_protocol.job_cost import full_cost
from torg_protocol.jobspec import SPOT_PATIENCE_MS, JobSpec
from torg_protocol.money import format_amount, parse_amount
from torg_protocol.usage import SignedReceipt, verify_receipt

if TYPE_CHECKING:
    from torg.vaults import Vaults

_SKEW_MS = MAX_CLOCK_SKEW_S * 1000
_ANSWER_EXPECTED_WITHIN_MS = 180_000  # longer than all retries of one submission together
_QUESTIONS_AT_ONCE = 8
_PAGES_AT_MOST = 50


class Quotes:
    """Asks what a job would cost, and takes no answer that its spec does not allow."""

    def __init__(self, transport: Transport, market: MarketInfo) -> None:
        self._transport = transport
        self._market = market

    async def quote(self, spec: JobSpec) -> Quote:
        """A feasible quote within the spec's own limits. Raises Infeasible; Invalid `quote_over_limit`."""
        answer = await self._transport.ask(Quote, "POST", "/v1/quotes", body={"spec": spec.wire()}, safe_to_repeat=True)
        if not answer.feasible:
            raise infeasible(answer)
        check_quote(spec, answer, self._market.chain.decimals)
        return answer


class Books(Quotes):
    """Enters what jobs have cost into the journal, from their verified receipts."""

    def __init__(self, transport: Transport, journal: Journal, market: MarketInfo) -> None:
        super().__init__(transport, market)
        self._journal = journal

    async def record_receipts(self, job: JobView) -> tuple[SignedReceipt, ...]:
        """Keeps a job's verified receipts; once it is closed and all are there, it counts with them."""
        receipts = await fetch_receipts(self._transport, self._market, job)
        for signed in receipts:
            receipt = signed.receipt
            self._journal.add_receipt(
                lease_id=receipt.lease_id,
                job_id=receipt.job_id,
                amount=min(receipt.amount, 2**62),
                body=signed.model_dump_json(),
            )
        complete = {lease.lease_id for lease in job.leases} <= {signed.receipt.lease_id for signed in receipts}
        if job.final_amount is not None and complete:
            self._journal.ended(job.job_id)
        return receipts


class Submission(Books):
    """Submits under one vault of one marketplace, and keeps that vault's books tight."""

    def __init__(
        self,
        transport: Transport,
        journal: Journal,
        vaults: Vaults,
        market: MarketInfo,
        entry: VaultEntry,
        now_ms: Callable[[], int],
    ) -> None:
        super().__init__(transport, journal, market)
        self._vaults = vaults
        self._entry = entry
        self._now_ms = now_ms

    def knows(self, key: str) -> bool:
        """Whether `already_submitted` may have an answer."""
        known = self._journal.entry(key)
        return known is not None and known.job_id is not None

    async def already_submitted(self, spec: JobSpec, key: str) -> JobView | None:
        """The job that this key stands for, if the journal knows one. Raises Conflict `idempotency_key_reused` for another spec."""
        known = self._journal.entry(key)
        if known is None or known.job_id is None:
            return None
        return await same_job(self._transport, known.job_id, spec, key)

    async def submit(self, spec: JobSpec, quote: Quote, key: str) -> JobView:
        """Raises what the marketplace answers; Unavailable `submission_unanswered` when nobody here can know whether it has the job."""
        await self.settle_journal()
        self._journal.reserve(
            vault=self._entry.address,
            idempotency_key=key,
            name=spec.name,
            max_amount=quote.max_amount or 0,
            now_ms=self._now_ms(),
            spec_digest=spec.digest,
            dead_after_ms=quote.expires_at_ms,
        )
        while True:
            covered = self._journal.cap(self._entry.address)
            try:
                job = await self._post(spec, quote, key, covered)
            except TorgError as error:
                if error.code == "idempotency_key_reused" and isinstance(error.data.get("job_id"), str):
                    job = await same_job(self._transport, error.data["job_id"], spec, key)
                elif error.code == "cap_stale" and self._journal.cap(self._entry.address) > covered:
                    continue  # another process entered a job meanwhile, and its larger cap arrived before ours
                else:
                    raise self._refusal(error, key, covered) from error
            self._journal.submitted(key, job.job_id, job.max_amount)
            return job

    async def settle_journal(self) -> None:
        """Replaces the maxima of jobs that have ended by what their receipts say, and clears up old unanswered submissions."""
        gate = asyncio.Semaphore(_QUESTIONS_AT_ONCE)

        async def settle(job_id: str) -> None:
            async with gate:
                try:
                    job = await self._transport.ask(JobView, "GET", f"/v1/jobs/{job_id}")
                except NotFound:
                    return  # the marketplace has forgotten it: here it keeps counting
                if job.final_amount is not None:
                    await self.record_receipts(job)

        await asyncio.gather(*(settle(job_id) for job_id in self._journal.open_job_ids(self._entry.address)))
        now_ms = self._now_ms()
        old = [
            entry
            for entry in self._journal.unanswered(self._entry.address)
            if now_ms - entry.submitted_at_ms > _ANSWER_EXPECTED_WITHIN_MS
        ]
        if old:
            await self._resolve(old, now_ms)

    async def unknown_jobs(self) -> list[JobView]:
        """What the marketplace has under this vault and this journal does not: jobs submitted from another computer."""
        known = {entry.job_id for entry in self._journal.jobs(self._entry.address)}
        return [job async for job in self._jobs_since(0) if job.job_id not in known]

    # --- for torg.extension -----------------------------------------------------------------------------------------

    @property
    def journal(self) -> Journal:
        return self._journal

    @property
    def market(self) -> MarketInfo:
        return self._market

    @property
    def decimals(self) -> int:
        return self._market.chain.decimals

    async def post_extension(self, job_id: str, max_duration_ms: int, cap_lifetime_s: int) -> JobView:
        """Under a cap that covers all that the journal counts."""
        valid_until_s = self._now_ms() // 1000 + cap_lifetime_s
        cap = await self._vaults.sign_cap(self._entry, self._journal.cap(self._entry.address), valid_until_s)
        body = {"max_duration": f"{max_duration_ms}ms", "cap": cap.wire()}
        return await self._transport.ask(JobView, "POST", f"/v1/jobs/{job_id}/extend", body=body, safe_to_repeat=True)

    # --- parts ------------------------------------------------------------------------------------------------------

    async def _post(self, spec: JobSpec, quote: Quote, key: str, cap_amount: int) -> JobView:
        valid_until_s = self._now_ms() // 1000 + cap_lifetime_s(spec, self._market)
        cap = await self._vaults.sign_cap(self._entry, cap_amount, valid_until_s)
        body: dict[str, Any] = {"spec": spec.wire(), "quote_id": quote.quote_id, "cap": cap.wire()}
        return await self._transport.ask(JobView, "POST", "/v1/jobs", body=body, idempotency_key=key)

    def _refusal(self, error: TorgError, key: str, covered: int) -> TorgError:
        """Takes a refused job off the books, and turns the refusals that one can mend into words that say how."""
        if isinstance(error, Unavailable) or not 400 <= error.status < 500:
            return unanswered(error, key)
        if error.code != "idempotency_key_reused":
            self._journal.refused(key)
        decimals = self._market.chain.decimals
        if error.code == "vault_underfunded" and isinstance(missing := error.data.get("missing"), int):
            error.hint = f"{format_amount(missing, decimals)} more is needed: torg vault deposit {format_amount(missing, decimals)}"
        if error.code == "cap_stale":
            error.hint = (
                f"your journal justifies {format_amount(covered, decimals)}; the marketplace counts more under this vault. "
                "If you submitted jobs from another computer, look at them and accept them: torg vault adopt"
            )
        return error

    async def _resolve(self, entries: list[JobEntry], now_ms: int) -> None:
        """Finds out what became of submissions whose answer was never seen: a crash, a broken connection, Ctrl-C."""
        since_ms = min(entry.submitted_at_ms for entry in entries) - _SKEW_MS
        known = {entry.job_id for entry in self._journal.jobs(self._entry.address)}
        candidates = [job async for job in self._jobs_since(since_ms) if job.job_id not in known]
        candidates.reverse()  # oldest first, like the entries
        for entry in entries:
            job = next((job for job in candidates if job.spec_digest == entry.spec_digest), None)
            if job is not None:
                candidates.remove(job)
                self._journal.submitted(entry.idempotency_key, job.job_id, job.max_amount)
            elif now_ms > (entry.dead_after_ms or entry.submitted_at_ms) + _SKEW_MS:
                self._journal.refused(entry.idempotency_key)

    async def _jobs_since(self, since_ms: int) -> AsyncIterator[JobView]:
        pages = 0
        async for page in self._transport.ask_pages(JobPage, "/v1/jobs"):
            for job in page.jobs:
                if job.created_at_ms < since_ms:
                    return
                if job.vault == self._entry.address:
                    yield job
            pages += 1
            if pages == _PAGES_AT_MOST:
                return


async def fetch_receipts(transport: Transport, market: MarketInfo, job: JobView) -> tuple[SignedReceipt, ...]:
    """A job's receipts, each verified and each about this very job. Raises ReceiptInvalid when one does not hold."""
    answer = await transport.ask(JobReceipts, "GET", f"/v1/jobs/{job.job_id}/receipts")
    for signed in answer.receipts:
        receipt = signed.receipt
        problems = verify_receipt(signed, marketplace=market.marketplace)
        problems += [
            f"{name} is {actual}, not {wanted}"
            for name, actual, wanted in (
                ("job", receipt.job_id, job.job_id),
                ("vault", receipt.vault, job.vault),
                ("client", receipt.client, job.client),
                ("spec", receipt.spec_digest, job.spec_digest),
            )
            if actual != wanted
        ]
        if problems:
            raise ReceiptInvalid(
                "; ".join(problems),
                field="lease_id",
                value=receipt.lease_id,
                lease_id=receipt.lease_id,
                problems=problems,
            )
    return answer.receipts


async def same_job(transport: Transport, job_id: str, spec: JobSpec, key: str) -> JobView:
    """The job that an idempotency key stands for. Raises Conflict `idempotency_key_reused` when it is of another spec."""
    job = await transport.ask(JobView, "GET", f"/v1/jobs/{job_id}")
    # What is sealed never looks the same: what else is asked for must be.
    if job.spec.without_what_is_sealed().digest != spec.without_what_is_sealed().digest:
        raise Conflict(
            "this idempotency key was used for another job",
            code="idempotency_key_reused",
            field="idempotency-key",
            value=key,
            hint=f"it stands for {job_id}; use a fresh key for a new job",
            job_id=job_id,
        )
    return job


def unanswered(error: TorgError, key: str) -> Unavailable:
    return Unavailable(
        f"the marketplace did not answer the submission: {error.message}",
        code="submission_unanswered",
        field="idempotency-key",
        value=key,
        hint=f"see whether it is in `torg ps`; submitting again with --idempotency-key {key} never makes a second job",
    )


def check_quote(spec: JobSpec, quote: Quote, decimals: int) -> None:
    """A quote may never ask for more than the spec's own limits allow: the cap that will be signed rests on it."""
    limits, bounds = spec.limits, []
    if limits.max_cost is not None:
        bounds.append(("limits.max_cost", parse_amount(limits.max_cost, decimals, field="limits.max_cost")))
    if limits.max_price_per_hour is not None:
        price = parse_amount(limits.max_price_per_hour, decimals, field="limits.max_price_per_hour")
        bounds.append(("limits.max_price_per_hour", full_cost(spec, price, limits.max_duration)))
    for field, most in bounds:
        if (quote.max_amount or 0) > most:
            raise Invalid(
                f"the marketplace quoted up to {format_amount(quote.max_amount or 0, decimals)} tokens; your limit allows {format_amount(most, decimals)}",
                code="quote_over_limit",
                field=field,
                value=format_amount(quote.max_amount or 0, decimals),
                hint="nothing was signed; this marketplace does not keep to your limits",
            )


def cap_lifetime_s(spec: JobSpec, market: MarketInfo) -> int:
    """Until the last lease can have ended, been verified and settled, plus an hour for what nobody planned."""
    attempts = spec.retry.max_attempts
    attempts += spec.replicas - 1
    queued_ms = spec.replicas * spec.limits.queue_timeout
    leases_s = (queued_ms + attempts * (spec.limits.max_duration + spec.lease_grace)) // 1000
    leases_s += SPOT_PATIENCE_MS // 1000 if spec.spot else 0
    return leases_s + market.verification_window_s + market.settlement_max_age_s + 3600


def infeasible(quote: Quote) -> Infeasible:
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
