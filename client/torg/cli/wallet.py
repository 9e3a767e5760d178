"""`torg wallet` and `torg keys`: the one key to start with. A secret is never printed."""

from __future__ import annotations

from pathlib import Path

import click
from solders.pubkey import Pubkey

from torg.cli.groups import Group
from torg.cli.present import coin_of
from torg.cli.session import Session, asking, command
from torg_chain.network import LOCALNET_MINT
from torg_chain.wallet import (
    PHRASE_PATH,
    create_keypair,
    import_keypair,
    keypair_from_phrase,
    load_keypair,
    save_keypair,
)
from torg_host.age import ssh_public_key
from torg_protocol.errors import Conflict, Invalid
from torg_protocol.money import format_amount

RPC_URL = click.option("--rpc-url", metavar="URL", help="Ask this RPC node of the chain, and no marketplace.")
MINT = click.option("--mint", default=LOCALNET_MINT, show_default=True, help="With --rpc-url: the token.")


@click.group(cls=Group)
def wallet() -> None:
    """The key that is your wallet and your identity."""


@wallet.command()
@command
async def new(session: Session) -> None:
    """Make a new key, readable by you alone (mode 0600). Never overwrites one."""
    _refuse_second(session)
    path = session.config.key_path
    keypair = create_keypair(path)
    session.show(
        {"address": str(keypair.pubkey()), "path": str(path)},
        f"{keypair.pubkey()}\nkept in {path}: make a backup of it, nobody else has one",
    )
    session.hint("test tokens on a localnet:  torg wallet faucet    then:  torg vault open --deposit 5")


@wallet.command(name="import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option(
    "--phrase", is_flag=True, help="Ask for a seed phrase (12 to 24 words) instead; never on the command line."
)
@click.option(
    "--derivation-path",
    default=PHRASE_PATH,
    show_default=True,
    help='Of the phrase\'s key; "none" for phrases of solana-keygen, which has no path.',
)
@command
async def import_(session: Session, file: Path | None, phrase: bool, derivation_path: str) -> None:
    """Take over a solana-keygen file, a file with a base58 secret, or a seed phrase."""
    _refuse_second(session)
    if phrase == (file is not None):
        raise Invalid(
            "name a key file, or ask for a phrase",
            code="wallet_source_missing",
            field="FILE",
            hint="torg wallet import --phrase",
        )
    if file is not None:
        keypair = import_keypair(file, session.config.key_path)
    else:
        with asking():
            words = click.prompt("seed phrase", hide_input=True, err=True)
        keypair = keypair_from_phrase(words, derivation_path=None if derivation_path == "none" else derivation_path)
        save_keypair(keypair, session.config.key_path)
    session.show({"address": str(keypair.pubkey()), "path": str(session.config.key_path)}, str(keypair.pubkey()))
    if phrase:
        session.hint("not the address that you know? another --derivation-path gives another one")


def _pubkey(text: str) -> Pubkey:
    try:
        return Pubkey.from_string(text)
    except ValueError:
        raise Invalid("not an address", code="address_invalid", field="--mint", value=text, hint="base58") from None


def _refuse_second(session: Session) -> None:
    path = session.config.key_path
    if path.exists():
        raise Conflict(
            "there is a wallet already",
            code="wallet_exists",
            field="home",
            value=str(path),
            hint="it is never overwritten; for a second one name another --home",
        )


@wallet.command()
@RPC_URL
@MINT
@command
async def show(session: Session, rpc_url: str | None, mint: str) -> None:
    """Your wallet's address and balances."""
    from torg_chain.rpc import ChainClient

    async with session.client() as client:
        key = client.keypair.pubkey()
        if rpc_url is None:
            network = await client.vaults.network()
            rpc_url, mint = network.rpc_url, network.mint
        async with ChainClient(rpc_url) as chain:
            money = coin_of(mint, await chain.mint_decimals(_pubkey(mint)))
            tokens, lamports = await chain.token_balance(key, _pubkey(mint)), await chain.lamports(key)
        address = str(key)
    session.show(
        {"address": address, "tokens": tokens, "lamports": lamports},
        f"{address}\n  {money.text(tokens)}\n  {format_amount(lamports, 9)} SOL (for fees)",
    )
    if lamports == 0:
        session.hint("opening a vault needs a little SOL for fees and rent; on a localnet:  torg wallet faucet")


@wallet.command()
@command
async def address(session: Session) -> None:
    """Your wallet's address. Needs no network."""
    key = load_keypair(session.config.key_path)
    session.show({"address": str(key.pubkey())}, str(key.pubkey()))


@wallet.command()
@click.option("--amount", default="10", show_default=True, help="Test tokens.")
@RPC_URL
@command
async def faucet(session: Session, amount: str, rpc_url: str | None) -> None:
    """Get test tokens and fees. Only a localnet has a faucet."""
    from torg_chain.rpc import ChainClient

    async with session.client() as client:
        mint = LOCALNET_MINT
        if rpc_url is None:
            network = await client.vaults.network()
            rpc_url, mint = network.rpc_url, network.mint
        async with ChainClient(rpc_url) as chain:
            money = coin_of(mint, await chain.mint_decimals(_pubkey(mint)))
            wanted = money.parse(amount, "amount")
            await chain.faucet(client.keypair.pubkey(), wanted)
    session.show({"tokens": wanted}, f"{money.text(wanted)} and fees are yours")


@click.command()
@command
async def keys(session: Session) -> None:
    """Your public keys in every form that others ask for. Needs no network; shows no secret."""
    key = load_keypair(session.config.key_path)
    forms = {"wallet": str(key.pubkey()), "ssh": ssh_public_key(key.pubkey()), "file": str(session.config.key_path)}
    lines = [
        f"wallet and identity  {forms['wallet']}",
        f"ssh, and age         {forms['ssh']}",
        f"kept in              {forms['file']}",
    ]
    if session.config.session_key_path.exists():
        forms["session"] = str(load_keypair(session.config.session_key_path).pubkey())
        lines.append(f"session (signs caps) {forms['session']}")
    session.show(forms, "\n".join(lines))
