"""`torg rent`: one node, directly. Opens a vault, raises the cap while the command runs, takes the rest back at the end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click

from torg.cli.container_options import GPUS, IMAGE, MAX_DURATION
from torg.cli.groups import Group
from torg.cli.present import Coin, coin_of, duration, narrow_table
from torg.cli.session import Session, command
from torg.cli.terminal import columns, say
from torg.rental import Closing, NodeApi, Renting, check_offer, find_node, new_row, packed
from torg.rental_journal import RentalJournal, RentalRow
from torg.rental_output import save_outputs
from torg.spec_file import SpecFile, spec_from_mapping
from torg_chain.wallet import load_keypair
from torg_protocol.errors import Invalid, TorgError, Unavailable
from torg_protocol.rentals import RentalEnd, RentalOffer, RentalState, RentalView

_OK, _FAILED, _TORG_FAILED = 0, 1, 125
_LONGEST_TICK_S = 1.0
_STREAMS = ("stdout", "stderr")
RPC_URL = click.option(
    "--rpc-url", metavar="URL", default="http://127.0.0.1:8899", show_default=True, help="RPC node of the chain."
)
OUTPUT = click.option(
    "-o",
    "--output",
    "destination",
    type=click.Path(file_okay=False, path_type=Path),
    help="Outputs go here at the end.",
)


@click.command()
@click.argument("argv", nargs=-1, metavar="-- COMMAND...")
@click.option(
    "--node", required=True, metavar="NODE", help="KEY@HOST:PORT or URL; the KEY alone once it is known here."
)
@RPC_URL
@click.option("--program", metavar="ADDRESS", help="The vault program that you trust; default: the localnet's.")
@click.option("--max-cost", metavar="AMOUNT", help="The deposit; default: what --max-duration costs.")
@MAX_DURATION
@IMAGE
@click.option("--workspace", type=click.Path(file_okay=False, path_type=Path), help="Directory that is sent along.")
@GPUS
@click.option("--cpus", metavar="CORES", default="1", show_default=True, help="CPU cores.")
@click.option(
    "--memory", metavar="SIZE", default="1GiB", show_default=True, help="Memory; a command that takes more is stopped."
)
@click.option("--disk", metavar="SIZE", default="1GiB", show_default=True, help="For all that it writes.")
@click.option("--env", "-e", multiple=True, metavar="NAME=VALUE", help="A variable for it; may be repeated.")
@OUTPUT
@command
async def rent(
    session: Session, argv: tuple[str, ...], node: str, rpc_url: str, program: str | None, **options: Any
) -> None:
    """Rent a node directly and run a command there, with no marketplace in between.

    What the node may take rises by the minute while the command runs; Ctrl-C stops it and takes the rest back. The exit code is the
    command's own; 125 means that torg or the node failed.

    \b
    torg rent --node KEY@10.0.0.5:8750 --max-duration 2h -o results -- python train.py
    """
    if not argv:
        raise click.UsageError("Missing argument '-- COMMAND...' (like: torg rent --node NODE -- python train.py).")
    session.passes_exit_code()
    journal, keypair = _journal(session), load_keypair(session.config.key_path)
    spec_file = _spec(argv, options)
    unpacked = spec_file.check()
    url, key = find_node(journal, node)
    asking = NodeApi(url, keypair)
    try:
        offer = await asking.offer()
        await asking.ask(unpacked)
    finally:
        await asking.aclose()
    network = await check_offer(offer, key, rpc_url, program)
    journal.remember_node(offer.node, url)
    money = coin_of(network.mint, network.decimals)
    deposit = _deposit(offer, money, spec_file, options["max_cost"])
    row = new_row(offer, url, network, deposit)
    rate_text = f"{money.text(offer.price_per_gpu_hour)} an hour, paid {duration(offer.interval_ms)} ahead"
    session.hint(f"node {offer.node}: {rate_text}; deposit {money.text(deposit)}")
    async with Renting(session.config, keypair, journal, row) as renting:
        await renting.check_wallet(money.text(deposit))
        with tempfile.TemporaryDirectory() as folder:
            spec, archive = packed(spec_file, Path(folder))
            await renting.open_vault(offer.min_grace_s)
            session.hint(f"rental {row.rental_id}; vault {renting.row.vault}")
            try:
                view = await renting.start(offer, spec)
                if archive is not None and spec.workspace is not None and view.needs_workspace:
                    await renting.node.send_workspace(row.rental_id, spec.workspace.digest, archive)
            except TorgError:
                _say_closing(session, money, renting.row, await renting.close())
                raise
        code = await _follow_and_close(session, money, renting, view, options["destination"])
    sys.exit(code)


@click.group(cls=Group)
def rentals() -> None:
    """Direct rentals of this computer: list, resume, close."""


@rentals.command(name="list")
@command
async def list_(session: Session) -> None:
    """All of them, newest first, with what may still be in their vaults."""
    rows = _journal(session).rentals()
    cells = []
    for row in rows:
        money = coin_of(row.network.mint, row.network.decimals)
        cells.append(
            (row.rental_id, row.state, row.node, money.text(row.deposit), money.text(row.cap), money.text(row.paid))
        )
    value = [
        {
            "rental_id": row.rental_id,
            "state": row.state,
            "node": row.node,
            "vault": row.vault,
            "deposit": row.deposit,
            "cap": row.cap,
            "paid": row.paid,
        }
        for row in rows
    ]
    headings = ("rental", "state", "node", "deposit", "authorised", "paid")
    text, _ = narrow_table(headings, cells, columns(), ("authorised",), "node")
    session.show(value, text if rows else "no rentals")


@rentals.command()
@click.argument("rental")
@OUTPUT
@command
async def resume(session: Session, rental: str, destination: Path | None) -> None:
    """Go on with a rental whose torg was killed: raise its cap again, show its output, take the rest back at the end."""
    session.passes_exit_code()
    async with _renting(session, rental) as (renting, money):
        view = await renting.node.view(renting.row.rental_id)
        code = await _follow_and_close(session, money, renting, view, destination)
    sys.exit(code)


@rentals.command()
@click.argument("rental")
@click.option("--no-wait", is_flag=True, help="Do not wait for the first minute of a vault's life to pass.")
@command
async def close(session: Session, rental: str, no_wait: bool) -> None:
    """Stop it and take the rest back: at once when the node agrees, else by the grace period: run it again after that."""
    async with _renting(session, rental) as (renting, money):
        with contextlib.suppress(TorgError):  # it is gone, or knows nothing of it
            view = await renting.node.stop(renting.row.rental_id)
            await _ended(renting, view)
        _say_closing(session, money, renting.row, await renting.close(wait=not no_wait))


@contextlib.asynccontextmanager
async def _renting(session: Session, rental: str) -> AsyncIterator[tuple[Renting, Coin]]:
    journal = _journal(session)
    row = journal.rental(rental)
    async with Renting(session.config, load_keypair(session.config.key_path), journal, row) as renting:
        yield renting, coin_of(row.network.mint, row.network.decimals)


def _journal(session: Session) -> RentalJournal:
    return RentalJournal(session.config.journal_path)


# --- while it runs --------------------------------------------------------------------------------------------------


async def _follow_and_close(
    session: Session, money: Coin, renting: Renting, view: RentalView, destination: Path | None
) -> int:
    """Ctrl-C asks the node to stop, once; a second one leaves at once, and the journal knows how to go on."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        if stop.is_set():
            say(f"torg: left as it is; to get the rest: torg rentals close {renting.row.rental_id}", err=True)
            loop.remove_signal_handler(signal.SIGINT)
            for task in asyncio.all_tasks(loop):
                task.cancel()
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        ended = await _follow(session, renting, view, stop)
        if ended is not None and ended.outputs is not None and destination is not None:
            await save_outputs(renting.node, renting.row.rental_id, ended.outputs, destination)
            session.hint(f"outputs in {destination}")
        if ended is not None:
            with contextlib.suppress(TorgError):
                ended = await renting.pay_up(ended)
        session.hint("taking the rest back; no vault closes in the first minute of its life")
        closing = await renting.close()
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    _say_end(session, money, renting.row, ended, closing)
    return _exit_code(ended)


async def _follow(session: Session, renting: Renting, view: RentalView, stop: asyncio.Event) -> RentalView | None:
    """Prints both logs and keeps the cap ahead of the work. None: the node was silent for an interval, and gets no more."""
    rental_id, interval_s = renting.row.rental_id, renting.terms.interval_ms / 1000
    offsets = dict.fromkeys(_STREAMS, 0)
    loop = asyncio.get_running_loop()
    heard_at, asked_to_stop = loop.time(), False
    while True:
        try:
            if stop.is_set() and not asked_to_stop:
                view, asked_to_stop = await renting.node.stop(rental_id), True
            view = await renting.keep_up(view)
            await _print_logs(session, renting.node, rental_id, offsets)
            heard_at = loop.time()
        except Unavailable as error:
            if loop.time() - heard_at > 2 * interval_s:
                session.hint(f"the node is silent and gets no further caps: {error.message}")
                return None
        except TorgError as error:
            session.hint(f"the node knows nothing of this rental any more: {error.message}")
            return None
        if view.state is RentalState.ENDED and loop.time() - heard_at < interval_s:
            return view
        if view.state is RentalState.CLOSED:
            return view
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(_LONGEST_TICK_S, interval_s / 4)):
                await (asyncio.sleep(interval_s) if asked_to_stop else stop.wait())


async def _ended(renting: Renting, view: RentalView) -> None:
    """Waits for the end and authorises what is owed."""
    async with asyncio.timeout(60):
        while view.state not in {RentalState.ENDED, RentalState.CLOSED}:
            await asyncio.sleep(0.3)
            view = await renting.node.view(renting.row.rental_id)
    await renting.pay_up(view)


async def _print_logs(session: Session, node: NodeApi, rental_id: str, offsets: dict[str, int]) -> None:
    for stream in _STREAMS:
        while data := await node.log(rental_id, stream, offsets[stream]):
            offsets[stream] += len(data)
            if session.as_json:
                text = data.decode(errors="replace")
                session.show(
                    {"event": "log", "stream": stream, "offset": offsets[stream] - len(data), "text": text}, ""
                )
            else:
                out = sys.stdout.buffer if stream == "stdout" else sys.stderr.buffer
                out.write(data)
                out.flush()


# --- what is said ---------------------------------------------------------------------------------------------------


def _say_end(session: Session, money: Coin, row: RentalRow, view: RentalView | None, closing: Closing) -> None:
    if session.as_json:
        value = {
            "rental_id": row.rental_id,
            "node": row.node,
            "vault": row.vault,
            "end": view.end if view else None,
            "exit_code": view.exit_code if view else None,
            "useful_ms": view.useful_ms if view else None,
            "authorised": row.cap,
            "paid": closing.paid,
            "returned": closing.returned,
            "detail": closing.detail,
        }
        session.show(value, "")
        return
    if view is not None:
        why = "" if view.end is RentalEnd.COMPLETED else f": {view.detail}" if view.detail else ""
        session.hint(f"ended ({view.end}{why}) after {duration(view.useful_ms)}")
    _say_closing(session, money, row, closing)


def _say_closing(session: Session, money: Coin, row: RentalRow, closing: Closing) -> None:
    if session.as_json:
        session.show(
            {"rental_id": row.rental_id, "paid": closing.paid, "returned": closing.returned, "detail": closing.detail},
            "",
        )
        return
    if closing.returned is not None:
        session.hint(f"paid {money.text(closing.paid)}; {money.text(closing.returned)} came back")
    else:
        session.hint(f"{closing.detail}: torg rentals close {row.rental_id}")


def _exit_code(view: RentalView | None) -> int:
    if view is None:
        return _TORG_FAILED
    if view.end in {RentalEnd.COMPLETED, RentalEnd.FAILED_EXIT} and view.exit_code is not None:
        return view.exit_code
    if view.end is RentalEnd.STOPPED:
        return 130
    return _TORG_FAILED if view.end in {RentalEnd.HOST, RentalEnd.START_FAILED, RentalEnd.UNPAID} else _FAILED


# --- what is asked for ----------------------------------------------------------------------------------------------


def _spec(argv: tuple[str, ...], options: dict[str, Any]) -> SpecFile:
    pairs = [item.partition("=") for item in options["env"]]
    for name, separator, _ in pairs:
        if not separator:
            raise Invalid("not NAME=VALUE", code="env_invalid", field="--env", value=name, hint="like -e EPOCHS=10")
    raw: dict[str, Any] = {
        "version": 1,
        "name": "rental",
        "image": options["image"],
        "command": list(argv),
        "resources": {name: options[name] for name in ("gpus", "cpus", "memory", "disk")},
        "limits": {"max_duration": options["max_duration"]},
        "env": {name: value for name, _, value in pairs},
    }
    if options["workspace"] is not None:
        raw["workspace"] = str(options["workspace"])
    return spec_from_mapping(raw, base=Path.cwd())


def _deposit(offer: RentalOffer, money: Coin, spec_file: SpecFile, max_cost: str | None) -> int:
    if max_cost is not None:
        return money.parse(max_cost, "--max-cost")
    spec = spec_file.check()
    whole_ms = spec.limits.max_duration
    price = offer.price_per_gpu_hour * spec.resources.billable_gpus
    return max(1, -(-price * whole_ms // 3_600_000))
