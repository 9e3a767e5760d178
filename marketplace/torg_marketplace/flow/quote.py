"""Quote: whether, where and for how much a job can run, before anybody commits to anything."""

from __future__ import annotations

from dataclasses import dataclass

from torg_marketplace.flow.rows import node_snapshots
from torg_marketplace.flow.unit import Unit
from torg_marketplace.matching.explain import Explanation, explain
from torg_marketplace.matching.snapshot import Demand
from torg_marketplace.rules import pricing
from torg_marketplace.storage.models import QuoteRow
from torg_protocol.api import Quote
from torg_protocol.ids import AccountId, QuoteId
from torg_protocol.jobspec import JobSpec
from torg_protocol.money import parse_amount


@dataclass(frozen=True, slots=True)
class Appraisal:
    """What the market can do for a spec. `ceiling` and `max_amount` are None when no registered node fits."""

    explanation: Explanation
    ceiling: int | None
    max_amount: int | None


async def quote(unit: Unit, account: AccountId, spec: JobSpec) -> Quote:
    """Keeps its price ceiling until it expires: submit with its id. Raises Invalid for malformed amounts."""
    appraisal = await appraise(unit, spec)
    explanation, expires_at_ms = appraisal.explanation, unit.now_ms + unit.policy.quote_ttl_ms
    quote_id = QuoteId(unit.new_id("quote"))
    if appraisal.ceiling is not None and appraisal.max_amount is not None:
        unit.session.add(
            QuoteRow(
                quote_id=quote_id,
                account=account,
                spec_digest=spec.digest,
                price_ceiling=appraisal.ceiling,
                max_amount=appraisal.max_amount,
                expires_at_ms=expires_at_ms,
            )
        )
    prices = [
        price for price in explanation.fitting_prices if appraisal.ceiling is not None and price <= appraisal.ceiling
    ]
    return Quote(
        quote_id=quote_id,
        feasible=bool(explanation.live),
        waiting=bool(explanation.live) and not explanation.free,
        nodes_considered=explanation.considered,
        nodes_fitting=len(explanation.fitting),
        cheapest_price_per_gpu_hour=min(prices, default=None),
        dearest_price_per_gpu_hour=max(prices, default=None),
        billable_gpus=spec.resources.billable_gpus,
        max_amount=appraisal.max_amount,
        expires_at_ms=expires_at_ms,
        constraints=explanation.failures,
        hint=None if explanation.free else explanation.hint,
    )


async def appraise(unit: Unit, spec: JobSpec) -> Appraisal:
    decimals = unit.policy.decimals
    spec_cap = pricing.max_price(spec, decimals)
    most = spec.limits.max_cost
    demand = Demand(
        spec=spec,
        price_limit=spec_cap,
        amount_limit=None if most is None else parse_amount(most, decimals, field="limits.max_cost"),
    )
    explanation = explain(await node_snapshots(unit), demand, decimals)
    ceiling = pricing.price_ceiling(explanation.fitting_prices, spec_cap, spec.retry.max_attempts)
    amount = None if ceiling is None else pricing.max_amount(spec, ceiling, decimals)
    return Appraisal(explanation, ceiling, amount)
