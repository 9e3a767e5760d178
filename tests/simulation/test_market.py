"""A seeded market with everything that goes wrong: promises are checked after every step. A failure names its seed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.market import World, open_world
from tests.support.postgres import Postgres, postgres
from tests.support.simulation import broken_promises, receipt_problems, start_simulation
from torg_protocol.states import OPEN_JOB_STATES

__all__ = ["postgres"]

# A longer hunt: TORG_SIMULATION_SEEDS=200 TORG_SIMULATION_STEPS=300 pytest tests/simulation -n auto
SEEDS = int(os.environ.get("TORG_SIMULATION_SEEDS", "10"))
STEPS = int(os.environ.get("TORG_SIMULATION_STEPS", "60"))


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_promises_hold_whatever_happens(tmp_path: Path, seed: int) -> None:
    async with open_world(tmp_path, seed=seed) as world:
        await _promises_hold(world, seed)


@pytest.mark.parametrize("seed", range(1000, 1000 + SEEDS // 5))
async def test_they_hold_on_postgresql_too(tmp_path: Path, seed: int, postgres: Postgres) -> None:
    async with open_world(tmp_path, seed=seed, database_url=postgres.new_database()) as world:
        await _promises_hold(world, seed)


async def _promises_hold(world: World, seed: int) -> None:
    simulation = await start_simulation(world, seed)
    for step in range(STEPS):
        await simulation.step()
        async with world.market.reading() as unit:
            assert await broken_promises(unit) == [], f"seed {seed}, step {step}"

    await simulation.wind_down()
    async with world.market.reading() as unit:
        assert await broken_promises(unit) == [], f"seed {seed}, in the end"
        assert await receipt_problems(unit) == [], f"seed {seed}, in the end"
    views = [await client.job(job_id) for client, job_id in simulation.jobs]
    assert [view.job_id for view in views if view.state in OPEN_JOB_STATES] == []
    assert [view.job_id for view in views if view.final_amount is None] == []
    paid = sum(world.chain.paid.values())
    assert paid == sum(view.final_amount or 0 for view in views), f"seed {seed}: what was billed was paid, once"
