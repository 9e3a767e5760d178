"""What an account may commit within an hour: by new jobs and by extensions of older ones alike."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.actors import TUSD, Client, join, make_client, spec
from tests.support.market import open_world
from torg_marketplace.flow.extend import extend
from torg_marketplace.flow.quotas import HOUR_MS, account_view
from torg_marketplace.flow.retention import forget_counted
from torg_marketplace.rules.policy import MarketPolicy
from torg_protocol.api import ExtendRequest, JobView
from torg_protocol.errors import RateLimited
from torg_protocol.ids import JobId
from torg_protocol.job_cost import full_cost

MINUTE_MS = 60_000
PRICE = 3_600_000  # one base unit per millisecond: a minute costs 60,000


async def longer(client: Client, job_id: JobId, minutes: int) -> JobView:
    """By so many minutes, under a cap that allows for it."""
    job = await client.job(job_id)
    most_ms = job.max_duration_ms + minutes * MINUTE_MS
    more = full_cost(job.spec, PRICE, most_ms) - job.max_amount
    limits = job.spec.limits.model_copy(update={"max_duration": most_ms})
    cap = client.signed_cap(job.spec.model_copy(update={"limits": limits}), more)
    request = ExtendRequest.model_validate({"max_duration": f"{most_ms}ms", "cap": cap})
    try:
        async with client.world.market.transaction() as unit:
            return await extend(unit, client.account, job_id, request)
    except RateLimited:
        client.cap -= more
        raise


async def test_extensions_of_old_jobs_count_in_the_hour_in_which_they_were_asked_for(
    tmp_path: Path, database_url: str
) -> None:
    policy = MarketPolicy(max_spend_per_hour=600_000, max_submissions_per_day=1)
    async with open_world(tmp_path, policy=policy, database_url=database_url) as world:
        node, client = await join(world, price=PRICE), await make_client(world, deposit=100 * TUSD)
        old = await client.submit(spec(limits={"max_duration": "1m", "queue_timeout": "2d"}))
        world.advance(ms=2 * HOUR_MS)
        await longer(client, old.job_id, 6)  # is no submission
        world.advance(ms=20 * MINUTE_MS)

        with pytest.raises(RateLimited) as refused:
            await longer(client, old.job_id, 5)

        assert (refused.value.code, refused.value.data["retry_after_s"]) == ("spend_per_hour_reached", 40 * 60)
        async with world.market.reading() as unit:
            quotas = {quota.name: quota for quota in (await account_view(unit, client.account)).quotas}
        assert quotas["spend_per_hour"].used == 360_000
        world.advance(ms=40 * MINUTE_MS)
        await longer(client, old.job_id, 5)
        assert await forget_counted(world.market) == 0
        world.advance(ms=24 * HOUR_MS + 1)
        assert await forget_counted(world.market) == 2
        node.read()


@pytest.mark.parametrize("seed", range(4))
async def test_no_hour_has_more_than_is_allowed_whatever_is_submitted_and_extended(tmp_path: Path, seed: int) -> None:
    chance, most = random.Random(seed), 1_200_000
    async with open_world(tmp_path, policy=MarketPolicy(max_spend_per_hour=most)) as world:
        node, client = await join(world, price=PRICE), await make_client(world, deposit=100 * TUSD)
        jobs: list[JobId] = []
        taken: list[tuple[int, int]] = []  # when, how much
        refused = 0
        for _ in range(60):
            world.advance(ms=chance.randrange(20 * MINUTE_MS))
            minutes, before = chance.randint(1, 9), await used(client)
            assert before == sum(amount for at_ms, amount in taken if at_ms > world.clock.time_ms - HOUR_MS)
            try:
                if jobs and chance.random() < 0.6:
                    await longer(client, chance.choice(jobs), minutes)
                else:
                    limits = {"max_duration": f"{minutes}m", "queue_timeout": "20d"}
                    jobs.append((await client.submit(spec(limits=limits))).job_id)
            except RateLimited:
                assert before + minutes * MINUTE_MS > most
                refused += 1
            else:
                taken.append((world.clock.time_ms, minutes * MINUTE_MS))
        assert refused > 3
        for end_ms, _ in taken:
            assert sum(amount for at_ms, amount in taken if end_ms - HOUR_MS < at_ms <= end_ms) <= most
        node.read()


async def used(client: Client) -> int:
    async with client.world.market.reading() as unit:
        view = await account_view(unit, client.account)
    return next(quota.used for quota in view.quotas if quota.name == "spend_per_hour")
