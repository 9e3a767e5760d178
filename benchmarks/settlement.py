"""What settling costs: `python -m benchmarks.settlement [--quick]`.

1,000 jobs of one client over 10 nodes, really executed in the Solana runtime with the compiled vault program. Fees are summed from
what the runtime charged; both sides must have paid every node to the unit, or nothing is printed.

    vault   lamports per job = (open + captures * (transaction signature + cap signature) + start_close + finish_close) / jobs
                             = (5,000 + captures * 10,000 + 10,000) / 1,000
    rival   one transaction that lists the job and locks its price, one that finishes it and pays the node: (5,000 + 5,000) per job.
            A lower bound of that pattern: no account per job (its rent comes on top), a single signer, no program.

Not counted on either side: priority fees, the rent of the nodes' token accounts (each pays once for good), the vault's rent (returned).

Second: authorizations (a client's signed cap, parsed from its text form as it arrives) verified per second of one core, against the bare
signature check of the same library.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature

from benchmarks.report import Figure, conclude
from tests.support.svm import HOUR_S, Vault, World
from torg_chain.transactions import MAX_TRANSACTION_BYTES
from torg_chain.vault import SALT_WINDOW_SLOTS
from torg_protocol.vault_messages import CapMessage, sign_message, verify_message

JOBS, NODES, PRICE = 1_000, 10, 1_234
CHEAPER_AT_LEAST = {1: 250.0, 10: 40.0, 100: None}
VERIFIED_PER_S = 15_000
DEPOSIT = 2 * JOBS * PRICE


@dataclass(frozen=True)
class Paid:
    """Fees of a whole run in lamports, and the largest transaction in bytes."""

    lamports: int
    largest: int


def settle_with_vault(captures: int) -> Paid:
    """Open, deposit, work, capture so many times, close, take the rest."""
    world = World()
    nodes = [world.token_account(world.key().pubkey()) for _ in range(NODES)]
    client = world.wallet()
    home = world.token_account(client.pubkey(), amount=DEPOSIT)
    vault = Vault(world.planned(client).address, world.slot, client, world.key(), world.operator, world.mint)
    landed = [world.send([*world.opening(vault), world.transfer(client, vault.tokens, DEPOSIT)], [client])]
    for owed in shares(captures):
        done = world.state(vault).settled
        payees = [(node, jobs * PRICE) for node, jobs in zip(nodes, owed, strict=True) if jobs]
        landed.append(world.capture(vault, payees, cap=done + sum(owed) * PRICE, root=bytes(32)))
    landed.append(world.start_close(vault))
    world.wait(seconds=HOUR_S, slots=SALT_WINDOW_SLOTS + 1)
    landed.append(world.finish_close(vault))
    check(world, nodes, home)
    return Paid(sum(one.fee for one in landed), max(one.size for one in landed))


def shares(captures: int) -> list[list[int]]:
    """Jobs per node for each capture; job number n runs on node n % NODES."""
    batches = [[0] * NODES for _ in range(captures)]
    for job in range(JOBS):
        batches[job * captures // JOBS][job % NODES] += 1
    return batches


def settle_job_by_job() -> Paid:
    """Each job: the client locks its price with the market, which pays the node when the job is done."""
    world = World()
    nodes = [world.token_account(world.key().pubkey()) for _ in range(NODES)]
    client, market = world.wallet(), world.wallet()
    home, escrow = world.token_account(client.pubkey(), amount=DEPOSIT), world.token_account(market.pubkey())
    landed = []
    for job in range(JOBS):
        landed.append(world.send([world.transfer(client, escrow, PRICE)], [client]))
        landed.append(world.send([world.transfer(market, nodes[job % NODES], PRICE)], [market]))
    check(world, nodes, home)
    return Paid(sum(one.fee for one in landed), max(one.size for one in landed))


def check(world: World, nodes: list[Pubkey], home: Pubkey) -> None:
    paid = [world.balance(node) for node in nodes]
    if paid != [JOBS // NODES * PRICE] * NODES or world.balance(home) != DEPOSIT - JOBS * PRICE:
        raise SystemExit(f"not everybody was paid to the unit: {paid}, rest {world.balance(home)}")


def per_cpu_second(step: Callable[[], None], count: int) -> float:
    began = time.process_time()
    step()
    return count / (time.process_time() - began)


def verification_rates(rounds: int, count: int) -> tuple[float, float]:
    """Ours and the bare check's, each the median of paired rounds."""
    signer = Keypair()
    caps = [CapMessage(bytes(32), bytes(signer.pubkey()), n, 2_000_000_000) for n in range(count)]
    texts = [str(sign_message(signer, cap)) for cap in caps]
    raw = [(Signature.from_string(text), cap.to_bytes()) for text, cap in zip(texts, caps, strict=True)]
    key, name = signer.pubkey(), str(signer.pubkey())

    def ours() -> None:
        if not all(verify_message(cap, text, name) for cap, text in zip(caps, texts, strict=True)):
            raise SystemExit("a true signature was refused")

    def bare() -> None:
        if not all(signature.verify(key, message) for signature, message in raw):
            raise SystemExit("a true signature was refused")

    pairs = [(per_cpu_second(ours, count), per_cpu_second(bare, count)) for _ in range(rounds)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds of the signature check")
    asked = parser.parse_args()
    rival = settle_job_by_job()
    figures = [Figure("rival_lamports_per_job", rival.lamports / JOBS, "lamports")]
    largest = 0
    for captures, bound in CHEAPER_AT_LEAST.items():
        vault = settle_with_vault(captures)
        largest = max(largest, vault.largest)
        figures.append(Figure(f"lamports_per_job_{captures}_captures", vault.lamports / JOBS, "lamports"))
        ratio = rival.lamports / vault.lamports
        figures.append(Figure(f"times_cheaper_{captures}_captures", ratio, "x", bound, "least"))
    figures.append(Figure("largest_transaction", largest, "bytes", MAX_TRANSACTION_BYTES))
    ours, bare = verification_rates(3 if asked.quick else 9, 2_000 if asked.quick else 20_000)
    figures.append(Figure("authorizations_verified_per_core", ours, "1/s", VERIFIED_PER_S, "least"))
    figures.append(Figure("share_of_bare_signature_check", ours / bare, "x"))
    return conclude(
        "settlement",
        figures,
        notes=[
            f"{JOBS:,} jobs of 1 client over {NODES} nodes; set-up and close included; fees as the runtime charged them.",
            "vault: (5,000 + captures x 10,000 + 10,000) / jobs; rival: 2 x 5,000 per job, its rent not counted.",
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
