"""Ledger postings per second, checked and written once, against a bare INSERT of the same rows: python -m benchmarks.ledger [--quick]

A posting is one row and two entries. `Each by itself`: one transaction per posting, as a flow that books one thing has it. `In tens`:
ten postings per transaction, where nothing hides behind the commit. Both ways of writing alternate in rounds on one database; the
ratio is the median of the rounds' ratios. PostgreSQL runs without fsync, which makes commits cheap and the comparison harder on us;
SQLite runs as the marketplace opens it (WAL, synchronous=FULL).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from benchmarks.report import Figure, conclude
from tests.support.postgres import running_postgres
from torg_marketplace.storage import ledger
from torg_marketplace.storage.engine import Sessions, create_engine
from torg_marketplace.storage.money_models import EntryRow, PostingRow
from torg_marketplace.storage.schema import upgrade

Write = Callable[[AsyncSession, str], Awaitable[None]]
LEAST_RATIO = 0.5
GROUPS = {"each by itself": 1, "in tens": 10}


async def checked(session: AsyncSession, key: str) -> None:
    entries = ledger.move(ledger.free("vault"), ledger.held(key), 7)
    assert await ledger.post(session, key=key, cause="benchmark", entries=entries, at_ms=1)


async def bare(session: AsyncSession, key: str) -> None:
    await session.execute(insert(PostingRow).values(key=key, cause="benchmark", at_ms=1))
    accounts = (ledger.free("vault"), -7), (ledger.held(key), 7)
    rows = [
        {"posting": key, "number": number, "account": account, "amount": amount}
        for number, (account, amount) in enumerate(accounts)
    ]
    await session.execute(insert(EntryRow), rows)


async def per_second(
    sessions: async_sessionmaker[AsyncSession], write: Write, name: str, count: int, group: int
) -> float:
    began = time.perf_counter()
    for start in range(0, count, group):
        async with sessions() as session, session.begin():
            for number in range(start, start + group):
                await write(session, f"{name}:{number}")
    return count / (time.perf_counter() - began)


async def measure(url: str, database: str, *, count: int, rounds: int) -> list[Figure]:
    engine = create_engine(url)
    try:
        await upgrade(engine)
        sessions, figures = Sessions(engine), []
        for label, group in GROUPS.items():
            rates: dict[str, list[float]] = {"checked": [], "bare": []}
            for number in range(rounds + 1):
                for kind, write in (("checked", checked), ("bare", bare)):
                    rate = await per_second(sessions, write, f"{label}:{kind}:{number}", count, group)
                    rates[kind] += [rate] if number else []  # the first round warms up
            ratio = median(ours / theirs for ours, theirs in zip(rates["checked"], rates["bare"], strict=True))
            name = f"{database}, {label}"
            figures += [
                Figure(f"{name}: postings", median(rates["checked"]), "per second"),
                Figure(f"{name}: bare INSERT", median(rates["bare"]), "per second"),
                Figure(f"{name}: ratio", ratio, "of bare", LEAST_RATIO, "least"),
            ]
        async with sessions() as session:
            assert await ledger.balance(session, ledger.free("vault")) < 0, "both ways wrote"
            problems = await ledger.problems(session)
        # Out of nothing came what was spent: the check of all books sees the overdrawn source, and nothing else.
        assert [problem.split(" by ")[0] for problem in problems] == ["account free:vault is overdrawn"], problems
        return figures
    finally:
        await engine.dispose()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer postings and rounds")
    quick = parser.parse_args().quick
    count, rounds = (200, 3) if quick else (1_000, 7)
    with tempfile.TemporaryDirectory(prefix="torg-ledger-") as folder:
        url = f"sqlite:///{Path(folder) / 'ledger.sqlite'}"
        figures = asyncio.run(measure(url, "SQLite", count=count, rounds=rounds))
    with running_postgres() as server:
        figures += asyncio.run(measure(server.new_database(), "PostgreSQL", count=count, rounds=rounds))
    return conclude("ledger", figures)


if __name__ == "__main__":
    sys.exit(main())
