"""What an account keeps beyond its jobs: how much it may be, and how long it stays when nobody uses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.actors import Client, join, make_client, spec
from tests.support.market import World, open_world
from torg_marketplace.flow.data import data_page, name_data
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.quotas import account_view
from torg_marketplace.flow.retention import forget_unused
from torg_marketplace.flow.volume_names import put_volume, volume_page
from torg_marketplace.rules.policy import MarketPolicy
from torg_protocol.data import DataRequest
from torg_protocol.errors import Conflict
from torg_protocol.volumes import VolumeRequest

DAY_MS = 86_400_000


async def keep(world: World, client: Client, name: str, size_bytes: int, *, volume: bool = False) -> None:
    blob = world.blobs.put(name.encode() + b"x" * (size_bytes - len(name)))
    await world.blobs.sent_by(world.market, client.account, [blob])
    if volume:
        asked = VolumeRequest(digest=blob.digest, size_bytes=size_bytes)
        await put_volume(world.market, client.account, name, asked)
    else:
        await name_data(world.market, client.account, name, DataRequest(digest=blob.digest, size_bytes=size_bytes))


async def names(world: World, client: Client) -> list[str]:
    async with world.market.reading() as unit:
        data = await data_page(unit, client.account, cursor=None, limit=50)
        volumes = await volume_page(unit, client.account, cursor=None, limit=50)
    return [item.name for item in (*data.data, *volumes.volumes)]


async def test_names_and_volumes_share_one_quota(tmp_path: Path) -> None:
    async with open_world(tmp_path, policy=MarketPolicy(max_kept_bytes_per_account=1000)) as world:
        await join(world)
        client, other = await make_client(world), await make_client(world)
        await keep(world, client, "set", 400)
        await keep(world, client, "runs", 500, volume=True)
        for volume in (False, True):
            with pytest.raises(Conflict) as reached:
                await keep(world, client, "more", 101, volume=volume)
            assert (reached.value.code, reached.value.data["used_bytes"]) == ("storage_quota_reached", 900)
        await keep(world, client, "set", 300)  # what takes the place of more is taken
        await keep(world, client, "runs", 700, volume=True)
        with pytest.raises(Conflict) as full:
            await client.submit(spec(volumes=["more:/data"]))
        assert (full.value.code, full.value.field) == ("storage_quota_reached", "volumes")
        await client.submit(spec(volumes=["runs:/data:ro"]))
        await keep(world, other, "set", 1000)
        async with world.market.reading() as unit:
            page = await volume_page(unit, client.account, cursor=None, limit=50)
            account = await account_view(unit, client.account)
        assert page.kept is not None
        assert page.kept in account.quotas
        assert (page.kept.used, page.kept.limit) == (1000, 1000)


async def test_what_no_job_uses_goes_after_its_time(tmp_path: Path, database_url: str) -> None:
    policy = MarketPolicy(keep_unused_ms=10 * DAY_MS, forget_node_after_ms=1000 * DAY_MS)
    async with open_world(tmp_path, database_url=database_url, policy=policy) as world:
        node, client = await join(world), await make_client(world)
        for name in ("old", "read"):
            await keep(world, client, name, 20)
            await keep(world, client, f"{name}-volume", 20, volume=True)
        world.advance(ms=9 * DAY_MS)
        await node.heartbeat()
        async with world.market.reading() as unit:
            page = await data_page(unit, client.account, cursor=None, limit=50)
        assert {item.expires_at_ms for item in page.data} == {world.clock.now_ms() + DAY_MS}
        reads = spec(inputs=[{"data": "read", "path": "/data"}], volumes=["read-volume:/v:ro"])
        job = await client.submit(reads)
        assert await match_pending(world.market) == 1
        assert await forget_unused(world.market) == 0
        world.advance(ms=2 * DAY_MS)
        assert await forget_unused(world.market) == 2
        assert await names(world, client) == ["read", "read-volume"]

        world.advance(ms=20 * DAY_MS)
        assert await forget_unused(world.market) == 1
        assert await names(world, client) == ["read-volume"], "its job is not over"
        await client.cancel(job.job_id)
        node.read()
        assert await forget_unused(world.market) == 0
