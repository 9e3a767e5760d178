"""`torg vault`: the deposit that pays for jobs, capped by your signature, returned when you close."""

from __future__ import annotations

from pathlib import Path

import click

from torg.cli.session import Session, command, duration, money, parse_money, table
from torg.client import AsyncClient
from torg.config import pinned
from torg.journal import VaultEntry
from torg_chain.network import Network


@click.group()
def vault() -> None:
    """Open, fund, inspect and close the vault that pays for jobs."""


@vault.command(name="open")
@click.option("--deposit", required=True, help='Amount in tokens, for example "5".')
@click.option(
    "--grace",
    "grace_s",
    type=int,
    help="Seconds between asking for the rest and getting it; default: what the market needs.",
)
@command
async def open_(session: Session, deposit: str, grace_s: int | None) -> None:
    """Open a vault and put a deposit in."""
    async with session.client() as client:
        decimals = (await client.market()).chain.decimals
        amount = parse_money(deposit, decimals, "deposit")
        entry = await client.vaults.open(amount, grace_s=grace_s)
    session.show(
        {"vault": entry.address, "deposit": amount, "grace_s": entry.grace_s},
        f"vault {entry.address} holds {money(amount, decimals)}; closing takes {duration(entry.grace_s * 1000)}",
    )


@vault.command()
@click.argument("amount")
@click.option("--vault", "address", help="Default: the newest.")
@command
async def deposit(session: Session, amount: str, address: str | None) -> None:
    """Put more into a vault."""
    async with session.client() as client:
        market = await client.market()
        entry = client.journal.vault(market.marketplace, address)
        value = parse_money(amount, market.chain.decimals, "amount")
        await client.vaults.deposit(entry, value)
    session.show({"vault": entry.address, "deposited": value}, f"deposited {money(value, market.chain.decimals)}")


@vault.command()
@click.option("--vault", "address", help="Default: the newest.")
@command
async def status(session: Session, address: str | None) -> None:
    """What is in it, what is promised, what was paid."""
    async with session.client() as client:
        market = await client.market()
        entry = client.journal.vault(market.marketplace, address)
        view = await client.vaults.status(entry.address)
        authorised = client.journal.cap(entry.address)
    decimals = market.chain.decimals
    text = (
        f"vault {view.vault}\n"
        f"  on chain      {money(view.chain_balance, decimals)} in it, {money(view.chain_settled, decimals)} paid out so far\n"
        f"  your journal  {money(authorised, decimals)} authorised (ended jobs at cost, open jobs at their maximum)\n"
        f"  marketplace   {money(view.final_total, decimals)} for ended jobs, {money(view.open_maximum, decimals)} held for open ones,"
        f" {money(view.unsettled, decimals)} earned and not captured yet"
    )
    closing = f"\n  closing: the rest can be taken from unix time {view.close_at_s}" if view.close_at_s else ""
    session.show({**view.wire(), "journal_cap": authorised}, text + closing)


@vault.command()
@click.option("--vault", "address", help="Default: the newest.")
@command
async def settlements(session: Session, address: str | None) -> None:
    """The captures: which transaction paid whom how much."""
    async with session.client() as client:
        market = await client.market()
        entry = client.journal.vault(market.marketplace, address)
        found = await client.vaults.settlements(entry.address)
    rows = [
        (item.state, money(item.amount, market.chain.decimals), str(len(item.payouts)), item.signature)
        for item in found
    ]
    session.show([item.wire() for item in found], table(("state", "amount", "payouts", "transaction"), rows))


@vault.command()
@click.option("--vault", "address", help="Default: the newest.")
@click.option(
    "--network",
    "network_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Network file, when the marketplace is gone.",
)
@command
async def close(session: Session, address: str | None, network_file: Path | None) -> None:
    """Get the rest back: starts the grace period; after it, run it again to finish. Needs no marketplace."""
    async with session.client() as client:
        entry, network = await _vault_and_network(session, client, address, network_file)
        state = await client.vaults.on_chain(entry, network)
        if state.close_at == 0:
            await client.vaults.start_close(entry, network)
            session.show(
                {"vault": entry.address, "closing": True},
                f"closing {entry.address}: in {duration(entry.grace_s * 1000)} run this again to get the rest back",
            )
            return
        await client.vaults.finish_close(entry, network)
    session.show(
        {"vault": entry.address, "closed": True},
        f"{entry.address} is closed: {money(state.balance, network.decimals)} came back",
    )


async def _vault_and_network(
    session: Session, client: AsyncClient, address: str | None, network_file: Path | None
) -> tuple[VaultEntry, Network]:
    """From the marketplace when it answers, else from what was remembered at the last contact."""
    network = (
        Network.model_validate_json(network_file.read_bytes())
        if network_file
        else await client.vaults.remembered_network()
    )
    return client.journal.vault(pinned(session.config)["marketplace"], address), network
