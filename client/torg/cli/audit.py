"""`torg audit`: were you charged rightly? From your own files, and the chain; the marketplace is not asked."""

from __future__ import annotations

import click

from torg.audit import Audit, VaultOnChain, audit_books, audit_vault
from torg.cli.present import Coin, coin_of
from torg.cli.session import Session, command
from torg.config import pinned
from torg.journal import Journal
from torg_chain.wallet import load_keypair


@click.command()
@click.option("--rpc-url", metavar="URL", help="Also compare with the chain through this RPC node.")
@click.option(
    "--chain", "use_chain", is_flag=True, help="Also compare with the chain, through the RPC node of the last contact."
)
@command
async def audit(session: Session, rpc_url: str | None, use_chain: bool) -> None:
    """Check all receipts, and the chain, without trusting the marketplace.

    Every signature, every sum, every Merkle root, each job against the maximum that you agreed to, and with --chain or --rpc-url
    what has left your vaults against all of that. Exit code 1 when something is wrong.
    """
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
