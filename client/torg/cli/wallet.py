"""`torg wallet`: the one key to start with."""

from __future__ import annotations

from pathlib import Path

import click

from torg.cli.session import Session, command, money, parse_money
from torg_chain.rpc import ChainClient
from torg_chain.wallet import create_keypair, import_keypair, load_keypair
from torg_protocol.errors import Conflict
from torg_protocol.money import format_amount


@click.group()
def wallet() -> None:
    """The key that is your wallet and your identity."""


@wallet.command()
@command
async def new(session: Session) -> None:
    """Make a new key (mode 0600). Refuses to overwrite one."""
    path = session.config.key_path
    if path.exists():
        raise Conflict(
            "there is a wallet already", code="wallet_exists", field="home", value=str(path), hint="use another --home"
        )
    keypair = create_keypair(path)
    session.show(
        {"address": str(keypair.pubkey()), "path": str(path)},
        f"{keypair.pubkey()}\nkept in {path}: make a backup of it",
    )


@wallet.command(name="import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@command
async def import_(session: Session, file: Path) -> None:
    """Take over a solana-keygen file, or a file with a base58 secret."""
    keypair = import_keypair(file, session.config.key_path)
    session.show({"address": str(keypair.pubkey())}, str(keypair.pubkey()))


@wallet.command()
@command
async def show(session: Session) -> None:
    """Address and balances."""
    async with session.client() as client:
        network = await client.vaults.network()
        async with ChainClient(network.rpc_url) as chain:
            tokens = await chain.token_balance(client.keypair.pubkey(), network.mint_pubkey)
            lamports = await chain.lamports(client.keypair.pubkey())
        address = str(client.keypair.pubkey())
    session.show(
        {"address": address, "tokens": tokens, "lamports": lamports},
        f"{address}\n  {money(tokens, network.decimals)}\n  {format_amount(lamports, 9)} SOL (for fees)",
    )


@wallet.command()
@command
async def address(session: Session) -> None:
    """Only the address; needs no network."""
    key = load_keypair(session.config.key_path)
    session.show({"address": str(key.pubkey())}, str(key.pubkey()))


@wallet.command()
@click.option("--amount", default="10", show_default=True, help="Test tokens.")
@command
async def faucet(session: Session, amount: str) -> None:
    """Get test tokens and fees. Only a localnet has a faucet."""
    async with session.client() as client:
        network = await client.vaults.network()
        wanted = parse_money(amount, network.decimals, "amount")
        async with ChainClient(network.rpc_url) as chain:
            await chain.faucet(client.keypair.pubkey(), wanted)
    session.show({"tokens": wanted}, f"{money(wanted, network.decimals)} and fees are yours")
