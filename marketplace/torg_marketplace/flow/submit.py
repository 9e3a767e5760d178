"""Submit: a spec becomes a job with a hold on its client's vault, once per idempotency key."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import assert_never

from sqlalchemy import func, select

from torg_marketplace.flow import vaults
from torg_marketplace.flow.bans import bans_on, check_allowed, read_bans
from torg_marketplace.flow.blobs import check_readable, check_stored, use_blob
from torg_marketplace.flow.credit import hold_credit, sign_credit_cap
from torg_marketplace.flow.crowd import Reads
from torg_marketplace.flow.data import note_data_used, pin_data
from torg_marketplace.flow.live import live_engine
from torg_marketplace.flow.notes import Note
from torg_marketplace.flow.quotas import check_spend, check_submissions, check_undecided
from torg_marketplace.flow.quote import price_of, wanted
from torg_marketplace.flow.rows import job_row
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.flow.views import view_of
from torg_marketplace.flow.volumes import name_volumes
from torg_marketplace.matching.engine import Engine
from torg_marketplace.matching.explain import explain, fitting
from torg_marketplace.ports import CatalogueEntry
from torg_marketplace.rules import quotes
from torg_marketplace.rules.leases import latest_lease_end_ms
from torg_marketplace.rules.replay import check_replay_policy
from torg_marketplace.rules.verification import CatalogueFacts, check_activation_policy, check_metric_policy
from torg_marketplace.storage.among import among
from torg_marketplace.storage.events import add_job_born
from torg_marketplace.storage.models import IdempotencyRow, JobRow
from torg_protocol.api import JobView, SubmitRequest
from torg_protocol.caps import SignedCap
from torg_protocol.errors import Conflict, Infeasible, Invalid, NotFound
from torg_protocol.ids import AccountId, JobId, QuoteId
from torg_protocol.jobspec import (
    JobSpec,
    VerifyActivation,
    VerifyMetric,
    VerifyNone,
    VerifyQuorum,
    VerifyReplay,
    load_job_spec,
)
from torg_protocol.sealing import check_job_key
from torg_protocol.secrets import check_secret_names
from torg_protocol.states import OPEN_JOB_STATES, JobState


@dataclass(frozen=True, slots=True)
class _Terms:
    price_ceiling: int
    max_amount: int


async def submit(
    market: Market,
    account: AccountId,
    request: SubmitRequest,
    idempotency_key: str | None,
    body_digest: str,
    *,
    api_key: str | None = None,
) -> JobView:
    """The job, queued; the same one again for the same idempotency key and body. Without a cap, the API key's credit pays.

    Raises Invalid (spec_invalid, blob_missing, ...), Infeasible when no registered node could ever run it, Conflict
    (idempotency_key_reused, cap_stale, vault_underfunded, quote_expired, too_many_jobs, spend_cap_reached, credit_exhausted), Forbidden (wallet_banned,
    image_banned), RateLimited (submissions_per_day_reached, spend_per_hour_reached, undecided_per_day_reached). What only has to wait is queued.
    """
    began_ms = market.clock.now_ms()
    if request.cap is None and api_key is None:
        raise Invalid(
            "a wallet signs a cap with each job", code="cap_missing", field="cap", hint="the torg client does"
        )
    spec = load_job_spec(request.spec)
    check_secret_names(spec, spec.secrets.names if spec.secrets else ())
    check_job_key(spec)
    if spec.named_data() or spec.blobs() or spec.image_archives:
        async with market.reading() as unit:
            if (known := await _known(unit, account, idempotency_key, body_digest)) is not None:
                return known  # its data may be gone by now
            spec = await pin_data(unit, account, spec)
        await _check_data(market, account, spec)
    engine = await live_engine(market, but_for_room=True)  # what has to wait is queued

    async def admit(unit: Unit) -> JobView:
        if (known := await _known(unit, account, idempotency_key, body_digest)) is not None:
            return known
        _check_verification(market, spec)
        await check_allowed(unit, account, spec)
        await _check_open_jobs(unit, account)
        terms = await _terms(unit, engine, account, spec, request.quote_id)
        await check_submissions(unit, account)
        await check_spend(unit, account, terms.max_amount)
        if spec.verify.policy != "none":
            await check_undecided(unit, account)
        job = await _admit(unit, account, spec, request.cap, terms, api_key)
        if idempotency_key is not None:
            unit.session.write(
                IdempotencyRow,
                account=account,
                key=idempotency_key,
                body_digest=body_digest,
                job_id=job.job_id,
                created_at_ms=unit.now_ms,
            )
        unit.trace("submit", job.job_id, began_ms)
        unit.wake("match")
        return await view_of(unit, job)

    reads = _reads(account, spec, request.cap, idempotency_key)
    return await market.shared(admit, stage="submit", reads=reads)


def _reads(account: AccountId, spec: JobSpec, cap: SignedCap | None, key: str | None) -> list[Reads]:
    return [
        Reads(_read_keys, [(account, key)] if key is not None else []),
        Reads(read_bans, bans_on(account, spec)),
        Reads(_count_open_jobs, [account]),
        Reads(vaults.read_vaults, [cap.vault] if cap is not None else []),
    ]


async def _check_data(market: Market, account: AccountId, spec: JobSpec) -> None:
    for field, blob in spec.blobs():
        await check_stored(market, account, blob, field=f"{field}.digest")
    for digest in spec.image_archives:
        await check_readable(market, account, digest, field="image")


async def _admit(
    unit: Unit, account: AccountId, spec: JobSpec, signed: SignedCap | None, terms: _Terms, api_key: str | None
) -> JobRow:
    """The job with its maximum held: of the vault whose cap the client signed, or of the operator's for a key with credit."""
    lease_end_s = latest_lease_end_ms(spec, unit.now_ms) // 1000
    cap = signed or await sign_credit_cap(unit, terms.max_amount, lease_end_s)
    job = await _add_job(unit, account, spec, cap, terms)
    payer = account
    if signed is None and api_key is not None:
        await hold_credit(unit, job.id, account, api_key, terms.max_amount)
        payer = AccountId(cap.signer)
    await vaults.admit(
        unit,
        job_id=job.id,
        account=payer,
        cap=cap,
        max_amount=terms.max_amount,
        lease_end_latest_s=lease_end_s,
    )
    return job


async def _known(unit: Unit, account: AccountId, key: str | None, body_digest: str) -> JobView | None:
    row = None if key is None else await unit.session.get(IdempotencyRow, (account, key))
    if row is None:
        return None
    if row.body_digest != body_digest:
        raise Conflict(
            "this idempotency key was used for another request",
            code="idempotency_key_reused",
            field="idempotency-key",
            value=key,
            hint="use a fresh key for a new job",
            job_id=row.job_id,
        )
    return await view_of(unit, await job_row(unit, row.job_id))


async def _read_keys(unit: Unit, keys: Collection[tuple[AccountId, str]]) -> None:
    """Of submissions that may be repeated."""
    asked = {"accounts": [account for account, _ in keys], "keys": [key for _, key in keys]}
    with unit.session.no_autoflush:
        found = (await unit.session.scalars(_KEYS, asked)).all()
    for key in set(keys) - {(AccountId(row.account), row.key) for row in found}:
        unit.note_absent(IdempotencyRow, key)


_KEYS = select(IdempotencyRow).where(
    among(IdempotencyRow.account, "accounts"),
    among(IdempotencyRow.key, "keys"),
)


def _check_verification(market: Market, spec: JobSpec) -> None:
    match spec.verify:
        case VerifyMetric():
            entry = market.catalogue.entry(spec.verify.catalogue)
            check_metric_policy(spec, spec.verify, None if entry is None else _facts(entry))
        case VerifyActivation():
            entry = market.catalogue.entry(spec.verify.catalogue)
            check_activation_policy(spec, spec.verify, None if entry is None else _facts(entry))
        case VerifyReplay():
            if market.replayer is None:
                raise Invalid(
                    "this marketplace cannot execute segments again",
                    code="replay_unavailable",
                    field="verify.policy",
                    value="replay",
                    hint="its operator has to install torch; or use verify: {policy: none}",
                )
            check_replay_policy(spec, spec.verify, market.catalogue.replayable(spec.verify.catalogue))
        case VerifyNone() | VerifyQuorum():
            pass
        case _:
            assert_never(spec.verify)


def _facts(entry: CatalogueEntry) -> CatalogueFacts:
    return CatalogueFacts(
        name=entry.name,
        workspace_digest=entry.workspace_digest,
        metric=entry.metric,
        target=entry.target,
        better=entry.better,
        required_outputs=entry.required_outputs,
        policy=entry.policy,
        command=entry.command,
    )


async def _count_open_jobs(unit: Unit, accounts: Collection[AccountId]) -> None:
    with unit.session.no_autoflush:
        found = (await unit.session.execute(_OPEN_JOBS, {"accounts": list(accounts)})).all()
    counts = {row[0]: row[1] for row in found}
    for account in accounts:
        unit.noted[_OPEN, account] = counts.get(account, 0)


_OPEN = Note[int]()  # jobs of an account, those of this transaction included
_OPEN_JOBS = (
    select(JobRow.client, func.count())
    .where(among(JobRow.client, "accounts"), JobRow.state.in_(OPEN_JOB_STATES))
    .group_by(JobRow.client)
)


async def _check_open_jobs(unit: Unit, account: AccountId) -> None:
    """Room for one more, which counts from now on."""
    most = unit.policy.max_open_jobs_per_account
    if (_OPEN, account) not in unit.noted:
        await _count_open_jobs(unit, [account])
    if unit.noted[_OPEN, account] >= most:
        raise Conflict(f"you have {most} open jobs", code="too_many_jobs", hint="wait for some to end, or cancel some")
    unit.noted[_OPEN, account] += 1


async def _terms(unit: Unit, engine: Engine, account: AccountId, spec: JobSpec, quote_id: QuoteId | None) -> _Terms:
    if quote_id is not None:
        return await _quoted_terms(unit, engine, account, spec, quote_id)
    decimals, fleet = unit.policy.decimals, engine.of(spec).fleet
    demand = wanted(account, spec, decimals)
    rows = fitting(fleet, demand, decimals)
    if 0 < rows.size < spec.replicas:
        raise Infeasible(
            f"a quorum of {spec.replicas} needs as many nodes, and {rows.size} fit(s)",
            code="quorum_too_large",
            field="verify.replicas",
            value=spec.replicas,
            hint="wait for more nodes, or ask for less: GPUs, memory, a price that more nodes ask",
        )
    ceiling, max_amount = price_of(engine, spec, rows, decimals)
    if ceiling is None or max_amount is None:
        explanation = explain(fleet, demand, decimals)
        raise Infeasible(
            explanation.in_words,
            field=explanation.failures[0].constraint if explanation.failures else None,
            value=explanation.failures[0].asked if explanation.failures else None,
            hint=explanation.hint,
            constraints=[failure.wire() for failure in explanation.failures],
        )
    return _Terms(ceiling, max_amount)


async def _quoted_terms(unit: Unit, engine: Engine, account: AccountId, spec: JobSpec, quote_id: QuoteId) -> _Terms:
    quoted = quotes.terms_of(quotes.quote_key(bytes(unit.market.identity)), account, quote_id)
    if quoted is None:
        return await _terms_without_quote(unit, engine, account, spec, quote_id)
    if not quoted.is_for(spec.digest):
        raise Invalid(
            "this quote is for another spec",
            code="quote_other_spec",
            field="quote_id",
            value=quote_id,
            hint="quote again",
        )
    if quoted.expires_at_ms <= unit.now_ms:
        raise Conflict(
            "this quote has expired", code="quote_expired", field="quote_id", value=quote_id, hint="quote again"
        )
    return _Terms(quoted.price_ceiling, quoted.max_amount)


async def _terms_without_quote(
    unit: Unit, engine: Engine, account: AccountId, spec: JobSpec, quote_id: QuoteId
) -> _Terms:
    """An infeasible quote promises nothing: say again why it is infeasible, or, if that has changed, that it is unknown."""
    await _terms(unit, engine, account, spec, None)
    raise NotFound("no such quote", code="quote_unknown", field="quote_id", value=quote_id, hint="quote again")


async def _add_job(unit: Unit, account: AccountId, spec: JobSpec, cap: SignedCap, terms: _Terms) -> JobRow:
    job = JobRow(
        job_id=JobId(unit.new_id("job")),
        client=account,
        vault=cap.vault,
        name=spec.name,
        state=JobState.QUEUED,
        spec=spec.wire(),
        spec_digest=spec.digest,
        max_amount=terms.max_amount,
        price_ceiling=terms.price_ceiling,
        cap=cap.wire(),
        cap_from_ms=unit.now_ms,
        created_at_ms=unit.now_ms,
        queued_at_ms=unit.now_ms,
        queue_deadline_ms=unit.now_ms + spec.limits.queue_timeout,
    )
    unit.session.add(job)
    add_job_born(unit.session, job, at_ms=unit.now_ms)
    await name_volumes(unit, account, job.id, spec)
    await note_data_used(unit, account, spec)
    for _, blob in spec.blobs():
        await use_blob(unit, blob.digest, job.id, client_may_read=True)
    for digest in spec.image_archives:
        await use_blob(unit, digest, job.id, client_may_read=True)
    return job
