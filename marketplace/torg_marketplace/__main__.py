"""`torg-marketplace`: init, serve, reconcile, unblock, proof, openapi, simulate, and what the operator does about credit and API keys."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop

from torg_marketplace import operator_backup, operator_cases, operator_evidence, operator_nodes
from torg_marketplace.app import configure_logging, database_url, make_app, make_keys, open_beside, serve
from torg_marketplace.flow.judge_proof import lift_ban, proofs_of, replay
from torg_marketplace.flow.reconcile import blocked_vaults, lost_payouts, reconcile, unblock, watch_fee_payer
from torg_marketplace.operator_accounts import COMMANDS, add_options, options_of, run_account_command
from torg_marketplace.roles import ROLES
from torg_marketplace.settings import Settings
from torg_marketplace.simulation import command as simulation
from torg_marketplace.storage.engine import create_engine
from torg_marketplace.storage.schema import migrate
from torg_protocol.errors import TorgError
from torg_protocol.money import format_amount


def main() -> None:
    arguments = _parser().parse_args()
    try:
        sys.exit(_run(arguments))
    except TorgError as error:
        sys.exit(f"torg-marketplace: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "openapi":
        _print(json.dumps(make_app(None).openapi(), indent=2))
        return 0
    if arguments.command == "simulate":
        return simulation.run(arguments)
    settings = Settings.read(_given(arguments))
    configure_logging(settings)
    match arguments.command:
        case "init":
            identity, capture = make_keys(settings)
            _print(
                json.dumps(
                    {
                        "marketplace": str(identity.pubkey()),
                        "capture_key": str(capture.pubkey()),
                        "data": str(settings.data),
                    }
                )
            )
            return 0
        case "reconcile":
            return asyncio.run(_reconcile(settings, as_json=arguments.json))
        case "unblock":
            return asyncio.run(_unblock(settings, arguments.vault, because=arguments.because))
        case "proof":
            return asyncio.run(_proof(settings, arguments))
        case "serve":
            uvloop.run(serve(settings))
            return 0
        case "migrate":
            return asyncio.run(_migrate(settings, arguments.to))
        case name:
            return asyncio.run(_runner_of(name)(arguments, settings, _print))


def _runner_of(name: str) -> Callable[[argparse.Namespace, Settings, Callable[[str], None]], Coroutine[Any, Any, int]]:
    for commands, runner in (
        (operator_backup.COMMANDS, operator_backup.run_backup_command),
        (operator_cases.COMMANDS, operator_cases.run_case_command),
        (operator_evidence.COMMANDS, operator_evidence.run_evidence_command),
        (operator_nodes.COMMANDS, operator_nodes.run_node_command),
    ):
        if name in commands:
            return runner
    return run_account_command


async def _reconcile(settings: Settings, *, as_json: bool) -> int:
    """0: books and chain agree to the unit."""
    async with open_beside(settings, asks_chain=True) as edge:
        differences = await reconcile(edge.market)
        lamports = await watch_fee_payer(edge.market)
        stopped, lost = await blocked_vaults(edge.market), await lost_payouts(edge.market)
    if as_json:
        found = [asdict(item) for item in differences]
        _print(json.dumps({"differences": found, "stopped": stopped, "lost": lost, "fee_payer_lamports": lamports}))
    else:
        lines = [str(difference) for difference in differences]
        lines += [f"payouts of {vault} are stopped: {why}" for vault, why in stopped.items()]
        lines += [f"{amount} base units were lost when {vault} was closed" for vault, amount in lost.items()]
        lines.append(f"{len(differences)} differences; the fee payer holds {format_amount(lamports, 9)} SOL")
        _print("\n".join(lines))
    return 1 if differences else 0


async def _unblock(settings: Settings, vault: str, *, because: str) -> int:
    async with open_beside(settings, asks_chain=True) as edge:
        await unblock(edge.market, vault, because=because)
    _print(f"payouts of {vault} go on")
    return 0


async def _migrate(settings: Settings, revision: str) -> int:
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = create_engine(database_url(settings))
    try:
        before, after = await migrate(engine, revision)
    finally:
        await engine.dispose()
    _print(json.dumps({"from": before, "to": after}))
    return 0


async def _proof(settings: Settings, arguments: argparse.Namespace) -> int:
    """`replay` exits with 1 when the kept evidence gives another finding than the one that counted."""
    async with open_beside(settings, asks_chain=False) as edge:
        match arguments.action:
            case "replay":
                then, now = await replay(edge.market, arguments.id)
                _print(
                    json.dumps(
                        {"found": then.model_dump(), "replayed": now.model_dump(), "same": then == now}, indent=2
                    )
                )
                return 0 if then == now else 1
            case "list":
                _print(json.dumps(await proofs_of(edge.market, arguments.id), indent=2))
            case _:
                await lift_ban(edge.market, arguments.id)
                _print(f"{arguments.id} is unproven and may take work again once it proves its hardware")
    return 0


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Only what was said on the command line: the rest is the environment's and the defaults'."""
    return {
        name: value
        for name, value in vars(arguments).items()
        if value is not None
        and name
        not in {"command", "json", "vault", "because", "action", "id", "stop", "to"}
        | options_of(arguments.command)
        | operator_cases.options_of(arguments.command)
        | operator_evidence.options_of(arguments.command)
        | operator_backup.options_of(arguments.command)
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torg-marketplace", description="A GPU compute marketplace in one process.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("openapi", help="print the API's OpenAPI document")
    simulation.add_options(commands.add_parser("simulate", help="whole markets under faults, in virtual time"))
    for name, text in (
        ("init", "make the data folder and its keys"),
        ("serve", "run the marketplace"),
        ("reconcile", "compare the books with the chain"),
        ("proof", "proofs of hardware: list those of a node, replay one from its evidence, lift a ban"),
        ("unblock", "let payouts of a vault go on, once books and chain agree again"),
        ("migrate", "bring the database to a schema revision; for going back, stop the marketplace first"),
        *operator_evidence.COMMANDS.items(),
        *operator_nodes.COMMANDS.items(),
        *operator_cases.COMMANDS.items(),
        *operator_backup.COMMANDS.items(),
        *COMMANDS.items(),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--data", type=Path, required=True, help="folder of keys, database and blobs")
        command.add_argument("--json", action="store_true", help="JSON output (init, credit and keys always are)")
        command.add_argument("--rpc-url", help="an RPC node of the chain; default: a localnet on port 8899")
        command.add_argument("--log-format", choices=["text", "json"])
        if name == "serve":
            _add_serve_options(command)
        elif name == "proof":
            command.add_argument("action", choices=["list", "replay", "lift"])
            command.add_argument("id", help="of a node (list, lift) or of a proof (replay)")
        elif name == "migrate":
            command.add_argument(
                "--to", default="head", help='a revision like "0007", "head" (default) or "base" (nothing left)'
            )
        elif name == "unblock":
            command.add_argument("--vault", required=True)
            command.add_argument("--because", required=True, help="what you found; it goes to the log")
        elif name in operator_evidence.COMMANDS:
            operator_evidence.add_options(name, command)
        elif name in operator_nodes.COMMANDS:
            operator_nodes.add_options(name, command)
        elif name in operator_backup.COMMANDS:
            operator_backup.add_options(name, command)
        elif name in operator_cases.COMMANDS:
            operator_cases.add_options(name, command)
        elif name in COMMANDS:
            add_options(name, command)
    return parser


def _add_serve_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host")
    command.add_argument("--port", type=int, help="0 takes a free one")
    command.add_argument("--public-url", help="how nodes and clients reach this, when not by host and port")
    command.add_argument(
        "--role", choices=["all", *ROLES], help="what this process does of a marketplace of several; default: all"
    )
    command.add_argument(
        "--bus-url", help="a NATS server over which its processes talk, for example nats://127.0.0.1:4222"
    )
    command.add_argument("--blobs", help="where blobs are kept: s3://BUCKET/PREFIX; default: files in the data folder")
    command.add_argument("--blobs-endpoint", help="of an S3 service that is not Amazon's: https://HOST")
    command.add_argument("--metrics-port", type=int, help="Prometheus metrics on 127.0.0.1; 0 takes a free port")
    command.add_argument("--otlp-endpoint", help="an OpenTelemetry collector, for example http://127.0.0.1:4318")
    command.add_argument(
        "--drain", help='after SIGTERM, go on serving for so long while /readyz says no; default "0s", at once'
    )
    command.add_argument("--name")
    command.add_argument("--heartbeat", help='how often nodes report, for example "10s"')
    command.add_argument(
        "--settlement-age", help='earned money is captured at the latest after this, for example "10m"'
    )
    command.add_argument("--usage-interval", help='how often usage is countersigned, for example "10m"')
    command.add_argument(
        "--preempt-grace", help='what a spot job has from the signal to the kill when it makes room; default "2m"'
    )
    command.add_argument(
        "--spot-protected",
        help='what a spot job runs at least before it makes room, doubled each time that it did; default "1m"',
    )
    command.add_argument("--keep-history", help='logs and events of closed jobs, for example "90d"; default: for good')
    command.add_argument("--keep-blobs", help='what closed jobs read and wrote, for example "30d"; default: for good')
    command.add_argument(
        "--keep-unused", help='named data and volumes that no job uses, for example "90d"; default: for good'
    )
    command.add_argument(
        "--max-kept-bytes", type=int, help="of one account's named data and volumes; default: no limit"
    )
    command.add_argument(
        "--keep-evidence", help='with --keep-blobs, files of jobs whose work was looked at, at least; default "30d"'
    )
    command.add_argument("--fee-basis-points", type=int)
    command.add_argument(
        "--proof-interval", help='mean time between proofs of a node\'s hardware, "0s" for none; default "1h"'
    )
    command.add_argument("--workloads", type=Path, help="catalogue folder; default: the one that came with the package")


def _print(text: str) -> None:
    print(text)  # noqa: T201 - a command's answer


if __name__ == "__main__":
    main()
