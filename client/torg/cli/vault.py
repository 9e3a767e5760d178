"""`torg vault`: the deposit that pays for jobs, capped by your signature, returned when you close."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from torg.cli.groups import Group
from torg.cli.present import coin, coin_of, duration, table
from torg.cli.session import Session, asking, command
from torg.cli.terminal import say
from torg.client import AsyncClient
from torg.config import pinned
from torg.journal import VaultEntry
from torg_chain.network import Network
from torg_protocol.api import StatementFigures
from torg_protocol.errors import Conflict, Invalid
from torg_protocol.money import format_amount
from torg_protocol.quantities import parse_duration_ms

ADDRESS = click.option("--vault", "address", metavar="ADDRESS", help="Default: the newest.")


@click.group(cls=Group)
def vault() -> None:
    """Open, fund, inspect and close the vault that pays for jobs."""


@vault.command(name="open")
@click.option("--deposit", required=True, metavar="AMOUNT", help='In tokens, for example "5".')
@click.option(
    "--grace",
    "grace_s",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="Between asking for the rest and getting it; default: what the market needs.",
)
@command
async def open_(session: Session, deposit: str, grace_s: int | None) -> None:
    """Open a vault and put a deposit in: what jobs cost is paid from it, and never more than you signed for."""
    async with session.client() as client:
        market = await client.market()
        money = coin(market)
        amount = money.parse(deposit, "--deposit")
        if grace_s is not None and grace_s < market.min_vault_grace_s:
            raise Conflict(
                "too short for this market: work could not be verified and settled in it",
                code="vault_grace_too_short",
                field="--grace",
                value=grace_s,
                hint=f"at least {market.min_vault_grace_s} seconds, which is the default",
            )
        entry = await client.vaults.open(amount, grace_s=grace_s)
    session.show(
        {"vault": entry.address, "deposit": amount, "grace_s": entry.grace_s},
        f"vault {entry.address} holds {money.text(amount)}; closing it takes {duration(entry.grace_s * 1000)}",
    )
    session.hint("now:  torg submit job.yaml --wait    or:  torg run -- python train.py")


@vault.command()
@click.argument("amount")
@ADDRESS
@click.option("--qr", is_flag=True, help="Pay with a wallet app: shows a Solana Pay code and waits for the payment.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the wallet app's payment.",
)
@command
async def deposit(session: Session, amount: str, address: str | None, qr: bool, timeout_s: int) -> None:
    """Put more into a vault: from this wallet, or with --qr from any other."""
    async with session.client() as client:
        market = await client.market()
        money = coin(market)
        entry = client.journal.vault(market.marketplace, address)
        value = money.parse(amount, "amount")
        if qr:
            value = await _by_wallet_app(session, client, entry, value, timeout_s)
        else:
            await client.vaults.deposit(entry, value)
    session.show({"vault": entry.address, "deposited": value}, f"deposited {money.text(value)} in {entry.address}")


async def _by_wallet_app(session: Session, client: AsyncClient, entry: VaultEntry, amount: int, timeout_s: int) -> int:
    """Shows code and URL on standard error, returns the base units that came."""
    import segno
    from solders.keypair import Keypair
    from solders.pubkey import Pubkey

    from torg_chain.pay import transfer_request, wait_for_payment
    from torg_chain.rpc import ChainClient

    network = await client.vaults.network()
    vault_address, reference = Pubkey.from_string(entry.address), Keypair().pubkey()
    async with ChainClient(network.rpc_url) as chain:
        await chain.existing_vault(vault_address)  # paid into a vault that is not final, money could be stranded
        url = transfer_request(network, vault_address, amount, reference, label=f"Torg vault {entry.address[:8]}")
        if not session.as_json:
            segno.make(url, error="m").terminal(out=sys.stderr, compact=True, border=2)
        say(url, err=True)
        came = await wait_for_payment(chain, network, vault_address, amount, reference, timeout_s=timeout_s)
    await client.vaults.status(entry.address)
    return came


@vault.command()
@ADDRESS
@click.option("--rpc-url", metavar="URL", help="Ask only this RPC node of the chain, and no marketplace.")
@command
async def status(session: Session, address: str | None, rpc_url: str | None) -> None:
    """What is in the vault, what of it is promised to jobs, what was paid."""
    if rpc_url is not None:
        await _status_on_chain(session, address, rpc_url)
        return
    async with session.client() as client:
        market = await client.market()
        await client.vaults.find_cut_off()
        entry = client.journal.vault(market.marketplace, address)
        view = await client.vaults.status(entry.address)
        authorised = client.journal.cap(entry.address)
    money = coin(market)
    available = max(0, view.chain_settled + view.chain_balance - view.final_total - view.open_maximum)
    text = (
        f"vault {view.vault}\n"
        f"  available     {money.text(available)} for new jobs\n"
        f"  on chain      {money.text(view.chain_balance)} in it, {money.text(view.chain_settled)} paid out so far\n"
        f"  your journal  {money.text(authorised)} authorised (ended jobs at cost, open jobs at their maximum)\n"
        f"  marketplace   {money.text(view.final_total)} for ended jobs, {money.text(view.open_maximum)} held for open ones,"
        f" {money.text(view.unsettled)} earned and not captured yet"
    )
    session.show({**view.wire(), "journal_cap": authorised}, text)
    if view.close_at_s:
        left_ms = view.close_at_s * 1000 - session.now_ms()
        when = f"in {duration(left_ms)}" if left_ms > 0 else "now"
        session.hint(f"closing: the rest can be taken {when}:  torg vault close --vault {view.vault}")


@vault.command()
@ADDRESS
@click.option("--since", metavar="DURATION", help="Only what moved lately, for example 7d; default: all.")
@command
async def statement(session: Session, address: str | None, since: str | None) -> None:
    """Every movement of the vault's money, with its cause, between two balances."""
    since_ms = 0 if since is None else max(0, session.now_ms() - _duration_ms(since, "--since"))
    async with session.client() as client:
        market = await client.market()
        entry = client.journal.vault(market.marketplace, address)
        found = await client.vaults.statement(entry.address, since_ms=since_ms)
    money = coin(market)

    def row(when: str, cause: str, figures: StatementFigures) -> list[str]:
        amounts = (figures.free, figures.held, figures.owed, figures.in_vault)
        return [when, cause, *(format_amount(amount, money.decimals) for amount in amounts)]

    rows = [row("", "balance before", found.opening)]
    for line in found.lines:
        about = f" ({line.job_id or line.lease_id})" if line.job_id or line.lease_id else ""
        cause = line.cause if len(line.cause) <= _LONGEST_CAUSE else f"{line.cause[:_LONGEST_CAUSE]}…"
        rows.append(row(_utc(line.at_ms), cause if about[2:-1] in cause else f"{cause}{about}", line.moved))
    rows.append(row("", "balance now", found.closing))
    credit = f"\n{format_amount(found.closing.credit, money.decimals)} is credit: fees of later jobs are lower by it"
    headings = ("when (UTC)", "what", "free", "held", "owed", "in vault")
    session.show(
        found.wire(),
        f"vault {found.vault}, {money.symbol}\n{table(headings, rows)}{credit if found.closing.credit else ''}",
    )


_LONGEST_CAUSE = 44  # of a capture's, enough of its signature to find it; --json has all of it


def _duration_ms(text: str, field: str) -> int:
    try:
        return parse_duration_ms(text)
    except ValueError as error:
        raise Invalid(str(error), code="duration_invalid", field=field, value=text) from error


def _utc(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


async def _status_on_chain(session: Session, address: str | None, rpc_url: str) -> None:
    """Authorised by the own journal, captured by the chain, and what of the balance nothing is authorised for."""
    async with session.client() as client:
        entry, network = await _vault_and_network(session, client, address, None, rpc_url)
        state = await client.vaults.on_chain(entry, network)
        authorised = client.journal.cap(entry.address)
    money = coin_of(network.mint, network.decimals)
    free = max(0, state.settled + state.balance - max(authorised, state.settled))
    value = {
        "vault": entry.address,
        "journal_cap": authorised,
        "chain_settled": state.settled,
        "chain_balance": state.balance,
        "free": free,
        "close_at_s": state.close_at,
    }
    text = (
        f"vault {entry.address}, as the chain and your journal say\n"
        f"  authorised    {money.text(authorised)} (ended jobs at cost, open jobs at their maximum)\n"
        f"  captured      {money.text(state.settled)}\n"
        f"  free          {money.text(free)} of {money.text(state.balance)} in it"
    )
    session.show(value, text)


@vault.command(name="list")
@command
async def list_(session: Session) -> None:
    """All vaults of this marketplace that this computer knows, newest first."""
    async with session.client() as client:
        market = await client.market()
        await client.vaults.find_cut_off()
        open_ones = client.journal.vaults(market.marketplace)
        pending = client.journal.opening_vaults(market.marketplace)
        closed = [entry for entry in client.journal.all_vaults(market.marketplace) if entry not in open_ones]
    states = [("open", open_ones), ("opening", pending), ("closed", closed)]
    found = [(entry, state) for state, entries in states for entry in entries]
    rows = [(entry.address, state, duration(entry.grace_s * 1000)) for entry, state in found]
    value = [{"vault": entry.address, "state": state, "grace_s": entry.grace_s} for entry, state in found]
    text = (
        table(("vault", "state", "closing takes"), rows) if rows else "no vaults; open one: torg vault open --deposit 5"
    )
    session.show(value, text)


@vault.command()
@ADDRESS
@command
async def settlements(session: Session, address: str | None) -> None:
    """What the vault has paid: which transaction on chain paid whom how much."""
    async with session.client() as client:
        market = await client.market()
        entry = client.journal.vault(market.marketplace, address)
        found = await client.vaults.settlements(entry.address)
    money = coin(market)
    rows = [(item.state, money.text(item.amount), str(len(item.payouts)), item.signature) for item in found]
    text = table(("state", "amount", "payouts", "transaction"), rows) if rows else "nothing was captured yet"
    session.show([item.wire() for item in found], text)


@vault.command()
@click.argument("address")
@command
async def add(session: Session, address: str) -> None:
    """Make a vault of yours known here: one that another computer opened, or a lost journal knew.

    The session key that it takes caps from must be here too (session.json of the other computer).
    """
    async with session.client() as client:
        entry = await client.vaults.add(address)
    session.show({"vault": entry.address, "grace_s": entry.grace_s}, f"{entry.address} can be used here now")
    session.hint("jobs that are open or were paid under it:  torg vault adopt")


@vault.command()
@ADDRESS
@click.option("--yes", is_flag=True, help="Do not ask.")
@command
async def adopt(session: Session, address: str | None, yes: bool) -> None:
    """Accept jobs that were submitted from another computer, so that caps signed here cover them too.

    The marketplace says which there are; look at them, for accepting one authorises its maximum.
    """
    async with session.client() as client:
        market = await client.market()
        money = coin(market)
        submission = await client.submission(address)
        entry = client.journal.vault(market.marketplace, address)
        jobs = await submission.unknown_jobs()
        rows = [(job.job_id, job.name, str(job.state), money.text(job.max_amount)) for job in jobs]
        if jobs and not yes:
            say(table(("job", "name", "state", "at most"), rows), err=True)
            with asking():
                click.confirm(f"are these {len(jobs)} jobs yours?", abort=True, err=True)
        for job in jobs:
            client.journal.adopt(
                vault=entry.address,
                job_id=job.job_id,
                name=job.name,
                max_amount=job.max_amount,
                now_ms=session.now_ms(),
            )
        await submission.settle_journal()
    session.show({"adopted": [job.job_id for job in jobs]}, f"{len(jobs)} jobs adopted")


@vault.command()
@ADDRESS
@click.option(
    "--network",
    "network_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Network file (JSON), when nothing is remembered of the marketplace.",
)
@click.option("--rpc-url", metavar="URL", help="Another RPC node of the same chain; the marketplace is not asked then.")
@command
async def close(session: Session, address: str | None, network_file: Path | None, rpc_url: str | None) -> None:
    """Get the rest back: starts the grace period; after it, run it again to finish. Needs no marketplace."""
    async with session.client() as client:
        entry, network = await _vault_and_network(session, client, address, network_file, rpc_url)
        money = coin_of(network.mint, network.decimals)
        state = await client.vaults.on_chain(entry, network)
        if state.close_at == 0:
            await client.vaults.start_close(entry, network)
            session.show(
                {"vault": entry.address, "closing": True, "grace_s": entry.grace_s},
                f"closing {entry.address}: in {duration(entry.grace_s * 1000)} run this again to get the rest back",
            )
            session.hint("until then whoever earned something can still be paid; new jobs need another vault")
            return
        now_s = await client.vaults.chain_time_s(network)
        if now_s < state.close_at:
            raise Conflict(
                "the grace period is not over",
                code="vault_grace_running",
                field="vault",
                value=entry.address,
                hint=f"run this again in {duration((state.close_at - now_s) * 1000)}",
            )
        await client.vaults.finish_close(entry, network)
    session.show(
        {"vault": entry.address, "closed": True, "returned": state.balance},
        f"{entry.address} is closed: {money.text(state.balance)} came back",
    )


async def _vault_and_network(
    session: Session, client: AsyncClient, address: str | None, network_file: Path | None, rpc_url: str | None
) -> tuple[VaultEntry, Network]:
    """From the marketplace when it answers, else from what was remembered at the last contact."""
    if network_file is not None:
        network = read_network(network_file)
    elif rpc_url is not None:
        network = Network.model_validate(pinned(session.config)["chain"])
    else:
        network = await client.vaults.remembered_network()
    if rpc_url is not None:
        network = network.model_copy(update={"rpc_url": rpc_url})
    return client.journal.vault(pinned(session.config)["marketplace"], address), network


def read_network(file: Path) -> Network:
    """Raises Invalid `network_malformed`."""
    from torg_protocol.errors import Invalid

    try:
        return Network.model_validate_json(file.read_bytes())
    except ValueError as error:
        raise Invalid(
            "this is not a network file",
            code="network_malformed",
            field="--network",
            value=str(file),
            hint="JSON with rpc_url, genesis_hash, program_id, mint, decimals, operator_config",
        ) from error
