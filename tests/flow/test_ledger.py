"""The ledger under any sequence of what a market does with money: always zero-sum, nothing overdrawn, everything once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from tests.support.actors import TUSD, join, make_client, spec
from tests.support.market import World, open_world
from tests.support.postgres import Postgres, postgres
from torg_marketplace.simulation.world import SeededRandomness
from torg_marketplace.storage import ledger
from torg_marketplace.storage.engine import Sessions, create_engine
from torg_marketplace.storage.ledger import Entry, LedgerError
from torg_marketplace.storage.money_models import VaultRow
from torg_protocol.errors import Conflict
from torg_protocol.jobspec import load_job_spec

__all__ = ["postgres"]

ACTIONS = st.sampled_from(["deposit", "hold", "earn", "accept", "refund", "release", "capture", "withdraw", "again"])
STEPS = st.lists(st.tuples(ACTIONS, st.integers(0, 3), st.integers(1, 1_000)), max_size=25)


@dataclass
class Model:
    """The same moves on a dictionary. A move that its source cannot bear is not made, as a market's rules see to."""

    balances: dict[str, int] = field(default_factory=dict)
    posted: list[tuple[str, list[Entry]]] = field(default_factory=list)

    def move(self, action: str, which: int, amount: int) -> list[Entry]:
        chain, free = ledger.chain("v"), ledger.free("v")
        held, pending, payable = ledger.held(f"j{which}"), ledger.pending(f"l{which}"), ledger.payable("v", f"n{which}")
        source, target = {
            "deposit": (chain, free),
            "hold": (free, held),
            "earn": (held, pending),
            "accept": (pending, payable),
            "refund": (pending, held),
            "release": (held, free),
            "capture": (payable, chain),
            "withdraw": (free, chain),
        }[action]
        if source != chain:
            amount = min(amount, self.balances.get(source, 0))
        entries = ledger.move(source, target, amount)
        for entry in entries:
            self.balances[entry.account] = self.balances.get(entry.account, 0) + entry.amount
        return entries if amount else []


async def _play(session: AsyncSession, steps: list[tuple[str, int, int]], prefix: str) -> None:
    model = Model()
    for number, (action, which, amount) in enumerate(steps):
        if action == "again":
            for key, entries in model.posted[-2:]:
                assert not await ledger.post(session, key=key, cause="again", entries=entries, at_ms=2)
            continue
        if entries := model.move(action, which, amount):
            key = f"{prefix}:{number}"
            assert await ledger.post(session, key=key, cause=action, entries=entries, at_ms=1)
            model.posted.append((key, entries))
    assert await ledger.problems(session) == []
    found = {account: await ledger.balance(session, account) for account in model.balances}
    assert found == model.balances
    assert sum(found.values()) == 0
    assert min((amount for account, amount in found.items() if not account.startswith("chain:")), default=0) >= 0


async def test_any_sequence_of_moves_leaves_books_that_hold(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        loop, runs = asyncio.get_running_loop(), iter(range(10_000))

        async def play(steps: list[tuple[str, int, int]]) -> None:
            async with world.market.sessions() as session:
                await _play(session, steps, f"run{next(runs)}")
                await session.rollback()

        @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(STEPS)
        def every(steps: list[tuple[str, int, int]]) -> None:
            asyncio.run_coroutine_threadsafe(play(steps), loop).result(timeout=240)

        await asyncio.to_thread(every)


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ([Entry("a", 1), Entry("b", -2)], "not_zero"),
        ([Entry("a", 0)], "empty"),
        ([], "empty"),
        ([Entry("a", 2**63), Entry("b", -(2**63))], "amount_out_of_range"),
    ],
)
async def test_a_posting_that_cannot_be_right_is_refused(world: World, entries: list[Entry], code: str) -> None:
    async with world.market.reading() as unit:
        with pytest.raises(LedgerError) as caught:
            await ledger.post(unit.session, key="one", cause="a test", entries=entries, at_ms=1)
    assert caught.value.code == code


async def test_a_key_stands_for_one_posting(world: World) -> None:
    async with world.market.transaction() as unit:
        first = ledger.move("free:v", "held:j", 5)
        await ledger.post(
            unit.session, key="deposit", cause="a test", entries=ledger.move("chain:v", "free:v", 5), at_ms=1
        )
        assert await ledger.post(unit.session, key="one", cause="a test", entries=first, at_ms=1)
        assert not await ledger.post(unit.session, key="one", cause="a test", entries=first, at_ms=2)
        with pytest.raises(LedgerError) as caught:
            await ledger.post(
                unit.session, key="one", cause="a test", entries=ledger.move("free:v", "held:j", 4), at_ms=3
            )
        assert caught.value.code == "key_reused"
        assert await ledger.balance(unit.session, "held:j") == 5


async def test_three_replicas_on_one_database_never_admit_more_than_the_vault_holds(
    tmp_path: Path, postgres: Postgres
) -> None:
    """Fifty submissions at once under one cap, spread over three processes' worth of engines, locks and ids."""
    url = postgres.new_database()
    async with open_world(tmp_path, database_url=url) as world:
        await join(world, slots=100, price=TUSD)
        job = spec(limits={"max_duration": "1h"})
        client = await make_client(world, deposit=20 * TUSD)
        price = (await client.quote(job)).max_amount or 0
        engines = [create_engine(url) for _ in range(3)]
        replicas = [
            replace(
                world,
                market=replace(
                    world.market,
                    sessions=Sessions(engine),
                    writer=asyncio.Lock(),
                    random=SeededRandomness(100 + number),
                ),
            )
            for number, engine in enumerate(engines)
        ]
        try:
            client.cap = 20 * TUSD  # all that is there: one cap for all fifty
            cap = client.signed_cap(load_job_spec(job), 0)
            answers = await asyncio.gather(
                *(replace(client, world=replicas[number % 3]).submit(job, cap=cap) for number in range(50)),
                return_exceptions=True,
            )
        finally:
            for engine in engines:
                await engine.dispose()
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert {answer.code for answer in refused if isinstance(answer, Conflict)} <= {"vault_underfunded", "cap_stale"}
        assert len(answers) - len(refused) == 20 * TUSD // price
        async with world.market.reading() as unit:
            row = await unit.session.get_one(VaultRow, client.vault)
            assert row.open_maximum == (len(answers) - len(refused)) * price
            assert await ledger.problems(unit.session) == []
