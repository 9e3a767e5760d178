"""`torg audit`: were you charged rightly? From your own files, and the chain; the marketplace is not asked."""

from __future__ import annotations

from pathlib import Path

import click

from torg.audit import Audit, VaultOnChain, audit_books, audit_vault
from torg.cli.present import Coin, coin_of
from torg.cli.session import Session, command
from torg.config import pinned
from torg.journal import Journal
from torg_chain.wallet import load_keypair
from torg_protocol.caps import OverlapProof
from torg_protocol.errors import Invalid


@click.command()
@click.option("--rpc-url", metavar="URL", help="Also compare with the chain through this RPC node.")
@click.option(
    "--chain", "use_chain", is_flag=True, help="Also compare with the chain, through the RPC node of the last contact."
)
@click.option(
    "--proof",
    "proof_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Only check a node's proof that a marketplace promised one part of a vault twice.",
)
@command
async def audit(session: Session, rpc_url: str | None, use_chain: bool, proof_file: Path | None) -> None:
    """Check all receipts, and the chain, without trusting the marketplace.

    Every signature, every sum, every Merkle root, each job against the maximum that you agreed to, and with --chain or --rpc-url
    what has left your vaults against all of that. Exit code 1 when something is wrong.
    """
    if proof_file is not None:
        _check_proof(session, proof_file)
        return
    pin = pinned(session.config)
    client = str(load_keypair(session.config.key_path).pubkey())
    journal = Journal(session.config.journal_path)
    report = audit_books(journal, marketplace=pin["marketplace"], client=client)
    if rpc_url or use_chain:
        await _add_chain(report, journal, pin["marketplace"], rpc_url or pin["chain"]["rpc_url"], client)
    session.show(
        {
            "receipts": report.receipts,
            "usage_records": report.usage_records,
            "paid": report.paid,
            "vaults_on_chain": report.checked_on_chain,
            "holds": not report.problems,
            "findings": [{"kind": item.kind, "where": item.where, "text": item.text} for item in report.findings],
        },
        _text(report, coin_of(pin["chain"]["mint"], pin["chain"]["decimals"])),
    )
    if not (rpc_url or use_chain):
        session.hint("compare with the chain as well:  torg audit --chain")
    if report.problems:
        raise click.exceptions.Exit(1)


def _check_proof(session: Session, file: Path) -> None:
    """Raises Invalid `proof_not_found` or `proof_malformed`."""
    try:
        proof = OverlapProof.model_validate_json(file.read_bytes())
    except OSError as error:
        raise Invalid(
            f"cannot read it: {error.strerror}", code="proof_not_found", field="--proof", value=str(file)
        ) from error
    except ValueError as error:
        raise Invalid("this is not a proof", code="proof_malformed", field="--proof", value=str(file)) from error
    problems, first, second = proof.problems(), proof.first.commitment, proof.second.commitment
    answer = f"it proves nothing: {'; '.join(problems)}"
    if not problems:
        answer = (
            f"{proof.operator} promised base units {max(first.committed_before, second.committed_before)} to"
            f" {min(first.committed_after, second.committed_after)} of vault {first.vault} to both {first.lease_id} and {second.lease_id}"
        )
    session.show({"proves": not problems, "operator": proof.operator, "problems": problems}, answer)
    if problems:
        raise click.exceptions.Exit(1)
    session.hint("its only answer: the first lease's final usage record or receipt, from before the second promise")


async def _add_chain(report: Audit, journal: Journal, marketplace: str, rpc_url: str, client: str) -> None:
    from torg_chain.rpc import ChainClient

    async with ChainClient(rpc_url) as chain:
        for entry in journal.all_vaults(marketplace):
            state = await chain.vault(entry.address)
            found = None
            if state is not None:
                found = VaultOnChain(state.settled, state.balance, str(state.depositor), str(state.signer))
            audit_vault(report, journal, entry, found, client=client)


def _text(report: Audit, money: Coin) -> str:
    lines = [
        f"{'PROBLEM' if item.kind == 'problem' else 'note   '}  {item.where}: {item.text}" for item in report.findings
    ]
    seen = f"{report.receipts} receipts with {report.usage_records} usage records, {money.text(report.paid)} in all"
    seen += f"; {report.checked_on_chain} vaults on chain" if report.checked_on_chain else ""
    verdict = f"{len(report.problems)} problems" if report.problems else "everything holds"
    return "\n".join([*lines, f"{seen}: {verdict}"])
