"""How long `reconcile` takes over the books of 100,000 receipts: python -m benchmarks.reconcile [--quick]

Books as a market leaves them: for each job a hold, its earning, its acceptance and the release of the rest; captures of eight
payees; 200 vaults; on SQLite. One vault has lost seven base units, which must be found and named, and nothing else. The chain's
answers come from memory: what an RPC node takes for one question per vault is not in the figure. For information: how fast a
client's or node's audit checks receipts, all signatures, sums and Merkle roots included, on one core.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from solders.keypair import Keypair
from sqlalchemy import insert

from benchmarks.report import Figure, conclude
from tests.support.market import World, open_world
from tests.support.money import open_vault
from tests.support.receipts import make_receipt
from torg_marketplace.flow.reconcile import reconcile
from torg_marketplace.flow.vaults import refresh_vault
from torg_marketplace.storage import ledger
from torg_marketplace.storage.money_models import EntryRow, HoldRow, PayoutRow, PostingRow, SettlementRow, VaultRow
from torg_protocol.canonical import sha256_digest
from torg_protocol.usage import verify_receipt

RECEIPTS, QUICK_RECEIPTS, PER_VAULT, AUDITED = 100_000, 10_000, 500, 2_000
JOB_COSTS, JOB_HOLDS, FEE = 1_000, 2_500, 20
MOST_S = 30.0
LOST = 7


class Books:
    """Rows by table, for one bulk INSERT each."""

    def __init__(self) -> None:
        self.rows: dict[Any, list[dict[str, Any]]] = {
            table: [] for table in (PostingRow, EntryRow, HoldRow, SettlementRow, PayoutRow)
        }

    def post(self, key: str, *entries: ledger.Entry) -> None:
        self.rows[PostingRow].append({"key": key, "cause": "benchmark", "at_ms": 1})
        self.rows[EntryRow] += [
            {"posting": key, "number": number, "account": entry.account, "amount": entry.amount}
            for number, entry in enumerate(entries)
        ]

    def job(self, vault: str, job: str, wallet: str, settlement: str) -> None:
        free, held, pending = ledger.free(vault), ledger.held(job), ledger.pending(f"lease-{job}")
        self.post(f"hold:{job}", *ledger.move(free, held, JOB_HOLDS))
        self.post(f"earn:{job}", *ledger.move(held, pending, JOB_COSTS))
        node, fee = ledger.payable(vault, wallet), ledger.payable(vault, "fee")
        shares = ledger.Entry(node, JOB_COSTS - FEE), ledger.Entry(fee, FEE)
        self.post(f"payable:{job}", ledger.Entry(pending, -JOB_COSTS), *shares)
        self.post(f"release:{job}", *ledger.move(held, free, JOB_HOLDS - JOB_COSTS))
        hold = {"job_id": job, "vault": vault, "max_amount": JOB_HOLDS, "billed": JOB_COSTS, "open": False}
        self.rows[HoldRow].append(hold)
        for address, amount in ((wallet, JOB_COSTS - FEE), ("fee", FEE)):
            self.rows[PayoutRow].append(
                {
                    "payout_id": f"{job}:{address[:4]}",
                    "vault": vault,
                    "lease_id": f"lease-{job}",
                    "payout_address": address,
                    "amount": amount,
                    "record_digest": sha256_digest(job.encode()),
                    "state": "finalized",
                    "settlement_id": settlement,
                    "created_at_ms": 1,
                    "note": "",
                }
            )

    def capture(self, vault: str, settlement: str, before: int, paid: dict[str, int]) -> None:
        total = sum(paid.values())
        entries = [ledger.Entry(ledger.payable(vault, address), -amount) for address, amount in paid.items()]
        self.post(f"capture:{settlement}", *entries, ledger.Entry(ledger.chain(vault), total))
        self.rows[SettlementRow].append(
            {
                "settlement_id": settlement,
                "vault": vault,
                "state": "finalized",
                "expected_settled": before,
                "amount": total,
                "payees": [list(item) for item in paid.items()],
                "token_accounts": [],
                "payout_ids": [],
                "root": sha256_digest(settlement.encode()),
                "raw": b"",
                "signature": settlement,
                "last_valid_block_height": 1,
                "created_at_ms": before,
                "detail": "",
                "outcome": {"paid": total, "skipped": []},
            }
        )


async def fill(world: World, receipts: int) -> None:
    """Every vault gets its share of the jobs, seven nodes, and a capture for each hundred jobs."""
    per_vault, books, moved = PER_VAULT, Books(), {}
    for number in range(receipts // PER_VAULT):
        owner = Keypair().pubkey()
        vault = open_vault(
            world.chain, world.market.network, depositor=owner, signer=owner, balance=per_vault * JOB_HOLDS
        )
        await refresh_vault(world.market, vault)
        settled, paid = 0, dict[str, int]()
        for index in range(per_vault):
            wallet, settlement = f"wallet-{number}-{index % 7}", f"settle-{number}-{index // 100}"
            books.job(vault, f"job-{number}-{index}", wallet, settlement)
            paid[wallet] = paid.get(wallet, 0) + JOB_COSTS - FEE
            paid["fee"] = paid.get("fee", 0) + FEE
            if index % 100 == 99 or index == per_vault - 1:
                books.capture(vault, settlement, settled, paid)
                settled, paid = settled + sum(paid.values()), {}
        moved[vault] = settled
    async with world.market.transaction() as unit:
        for table, rows in books.rows.items():
            for start in range(0, len(rows), 20_000):
                await unit.session.execute(insert(table), rows[start : start + 20_000])
        for vault, settled in moved.items():
            row = await unit.session.get_one(VaultRow, vault)
            row.chain_settled, row.chain_balance, row.final_total = settled, row.chain_balance - settled, settled
    for vault, settled in moved.items():
        state = world.chain.vaults[vault]
        world.chain.vaults[vault] = replace(state, settled=settled, balance=state.balance - settled)
    robbed = min(moved)
    state = world.chain.vaults[robbed]
    world.chain.vaults[robbed] = replace(state, balance=state.balance - LOST)


async def reconcile_s(receipts: int) -> tuple[float, int]:
    """Seconds, and ledger entries."""
    with tempfile.TemporaryDirectory(prefix="torg-reconcile-") as folder:
        async with open_world(Path(folder)) as world:
            await fill(world, receipts)
            began = time.perf_counter()
            found = await reconcile(world.market)
            took = time.perf_counter() - began
            assert [(item.what, item.chain - item.books) for item in found] == [("balance", -LOST)], found
            return took, receipts * 9


def audited_per_second(count: int) -> float:
    marketplace, node = Keypair(), Keypair()
    receipts = [make_receipt(marketplace, node, number) for number in range(count)]
    began = time.perf_counter()
    assert all(verify_receipt(item, marketplace=str(marketplace.pubkey())) == [] for item in receipts)
    return count / (time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_RECEIPTS} receipts; the target is scaled with them"
    )
    receipts = QUICK_RECEIPTS if parser.parse_args().quick else RECEIPTS
    took, entries = asyncio.run(reconcile_s(receipts))
    figures = [
        Figure(f"reconcile {receipts:,} receipts", took, "s", MOST_S * receipts / RECEIPTS, "most"),
        Figure("ledger entries read", float(entries), "entries"),
        Figure("audit of receipts with two records", audited_per_second(AUDITED), "receipts per second"),
    ]
    return conclude("reconcile", figures)


if __name__ == "__main__":
    sys.exit(main())
