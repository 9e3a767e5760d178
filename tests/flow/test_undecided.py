"""Work that comes to no verdict is free of charge, so it is bounded: else a client whose jobs never agree would have it all for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flow.test_quorum import quorum_spec, run_next
from tests.support.actors import join, make_client, spec
from tests.support.market import open_world
from torg_marketplace.flow.quotas import account_view
from torg_marketplace.rules.policy import MarketPolicy
from torg_protocol.errors import RateLimited
from torg_protocol.states import JobState


async def test_a_client_whose_replicas_never_agree_comes_to_an_end(tmp_path: Path) -> None:
    async with open_world(tmp_path, policy=MarketPolicy(max_undecided_per_day=2)) as world:
        nodes, client, other = [await join(world) for _ in range(3)], await make_client(world), await make_client(world)
        for number in range(2):
            job = await client.submit(quorum_spec())
            for replica in range(3):
                await run_next(world, nodes, f"{number} {replica}".encode())
            assert (await client.job(job.job_id)).state is JobState.FAILED

        with pytest.raises(RateLimited) as refused:
            await client.submit(quorum_spec())
        assert (refused.value.code, refused.value.field, refused.value.value) == (
            "undecided_per_day_reached",
            "verify.policy",
            2,
        )
        assert refused.value.data["retry_after_s"] > 23 * 3600
        async with world.market.reading() as unit:
            used = {
                quota.name: (quota.used, quota.limit) for quota in (await account_view(unit, client.account)).quotas
            }
        assert used["undecided_per_day"] == (2, 2)
        await client.submit(spec())  # without a policy work is paid as it is done
        await other.submit(quorum_spec())

        world.advance(seconds=24 * 3600)
        for node in nodes:
            await node.heartbeat()
        await client.submit(quorum_spec())


async def test_decided_ones_do_not_count(tmp_path: Path) -> None:
    async with open_world(tmp_path, policy=MarketPolicy(max_undecided_per_day=1)) as world:
        nodes, client = [await join(world) for _ in range(3)], await make_client(world)
        for _ in range(3):
            job = await client.submit(quorum_spec())
            await run_next(world, nodes, b"the same")
            await run_next(world, nodes, b"the same")
            assert (await client.job(job.job_id)).state is JobState.SUCCEEDED
