"""Quote: whether, where and for how much a job can run, before anybody commits to anything."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace

import numpy as np

from torg_marketplace.flow.bans import check_allowed_lately
from torg_marketplace.flow.data import pin_data
from torg_marketplace.flow.estimate import start_estimate
from torg_marketplace.flow.live import live_engine
from torg_marketplace.flow.prices import newest_prices
from torg_marketplace.flow.rows import demand_for
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.matching.engine import Engine
from torg_marketplace.matching.explain import Explanation, explain
from torg_marketplace.matching.fleet import Rows
from torg_marketplace.matching.gangs import group_prices
from torg_marketplace.matching.snapshot import Demand
from torg_marketplace.rules import pricing, quotes
from torg_protocol.api import Quote, ReferencePrice
from torg_protocol.ids import AccountId, QuoteId
from torg_protocol.job_cost import verification_price, work_within
from torg_protocol.jobspec import JobSpec
from torg_protocol.money import parse_amount


@dataclass(frozen=True, slots=True)
class Appraisal:
    """What the market can do for a spec. `ceiling` and `max_amount` are None when no registered node fits."""

    demand: Demand
    explanation: Explanation
    ceiling: int | None
    max_amount: int | None


async def quote(market: Market, account: AccountId, spec: JobSpec) -> Quote:
    """Keeps its price ceiling until it expires: submit with its id. Answers from the live book, and writes nothing. It is for what names of data
    stand for now: a job that is submitted after one has moved needs another quote. Raises Invalid for malformed amounts, `data_unknown`."""
    engine = await live_engine(market)
    async with market.reading() as unit:
        await check_allowed_lately(unit, account, spec)
        spec = await pin_data(unit, account, spec)
        appraisal = appraise(engine, account, spec, market.policy.decimals)
        explanation, ceiling = appraisal.explanation, appraisal.ceiling
        start = None
        if explanation.live.size:
            demand = replace(appraisal.demand, price_limit=ceiling)
            start = await start_estimate(unit, engine.of(spec), explanation, demand)
        reference = await _reference_prices(unit, engine, explanation)
        expires_at_ms = unit.now_ms + unit.policy.quote_ttl_ms
        quote_id = _promise(unit, account, spec, appraisal, expires_at_ms)
    fitting = explanation.fitting_prices
    within = 0 if ceiling is None else bisect_right(fitting, ceiling)
    return Quote(
        quote_id=quote_id,
        feasible=bool(explanation.live.size),
        waiting=bool(explanation.live.size) and not explanation.free.size,
        nodes_considered=explanation.considered,
        nodes_fitting=explanation.fitting.size,
        nodes_at_once=spec.nodes_at_once,
        cheapest_price_per_gpu_hour=fitting[0] if within else None,
        dearest_price_per_gpu_hour=fitting[within - 1] if within else None,
        billable_gpus=spec.resources.billable_gpus,
        max_amount=appraisal.max_amount,
        verification_amount=verification_price(spec, work_within(spec, appraisal.max_amount or 0)),
        expires_at_ms=expires_at_ms,
        start=start,
        least_proven_gops=_least_proven(engine, explanation),
        reference_prices=reference,
        inputs=spec.input_files(),
        constraints=explanation.failures,
        hint=None if explanation.free.size else explanation.hint,
    )


def appraise(engine: Engine, account: AccountId, spec: JobSpec, decimals: int) -> Appraisal:
    demand = wanted(account, spec, decimals)
    explanation = explain(engine.of(spec).fleet, demand, decimals)
    return Appraisal(demand, explanation, *price_of(engine, spec, explanation.fitting, decimals))


def wanted(account: AccountId, spec: JobSpec, decimals: int) -> Demand:
    """What a spec asks of the nodes of the moment."""
    most = spec.limits.max_cost
    amount_limit = None if most is None else parse_amount(most, decimals, field="limits.max_cost")
    return demand_for(spec, account, pricing.max_price(spec, decimals), amount_limit)


def price_of(engine: Engine, spec: JobSpec, fitting: Rows, decimals: int) -> tuple[int | None, int | None]:
    """Price ceiling and most that it may cost on these nodes; None when there are too few of them."""
    prices = group_prices(engine.of(spec).fleet, fitting, spec.gang)
    tries = spec.retry.max_attempts + spec.replicas - 1
    ceiling = pricing.price_ceiling(prices, pricing.max_price(spec, decimals), tries, at_once=spec.nodes_at_once)
    return ceiling, None if ceiling is None else pricing.max_amount(spec, ceiling, decimals)


def _least_proven(engine: Engine, explanation: Explanation) -> int:
    rows = explanation.live
    return int(engine.fleet.proven_gops[rows].min()) if rows.size else 0


async def _reference_prices(unit: Unit, engine: Engine, explanation: Explanation) -> tuple[ReferencePrice, ...]:
    """Of the newest minute, for the classes of the nodes that fit."""
    fleet = engine.fleet
    classes = {fleet.class_names[number] for number in np.unique(fleet.gpu_class[explanation.fitting]).tolist()}
    return tuple(item for item in await newest_prices(unit) if item.gpu_class in classes) if classes else ()


def _promise(unit: Unit, account: AccountId, spec: JobSpec, appraisal: Appraisal, expires_at_ms: int) -> QuoteId:
    """What is infeasible is not promised: its id says nothing."""
    if appraisal.ceiling is None or appraisal.max_amount is None:
        return QuoteId(unit.new_id("quote"))
    return quotes.quote_id(
        quotes.quote_key(bytes(unit.market.identity)),
        account,
        spec.digest,
        price_ceiling=appraisal.ceiling,
        max_amount=appraisal.max_amount,
        expires_at_ms=expires_at_ms,
    )
