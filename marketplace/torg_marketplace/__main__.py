"""`torg-marketplace`: init, serve, reconcile, openapi, and what the operator does about credit and API keys."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from torg_marketplace.app import configure_logging, make_app, make_keys, open_edge, serve
from torg_marketplace.flow.reconcile import reconcile
from torg_marketplace.operator_accounts import COMMANDS, add_options, options_of, run_account_command
from torg_marketplace.settings import Settings
from torg_protocol.errors import TorgError


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
            return asyncio.run(_reconcile(settings))
        case "serve":
            asyncio.run(serve(settings))
            return 0
        case _:
            return asyncio.run(run_account_command(arguments, settings, _print))


async def _reconcile(settings: Settings) -> int:
    async with open_edge(settings, "") as edge:
        differences = await reconcile(edge.market)
    for difference in differences:
        _print(str(difference))
    _print(f"{len(differences)} differences")
    return 1 if differences else 0


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Only what was said on the command line: the rest is the environment's and the defaults'."""
    return {
        name: value
        for name, value in vars(arguments).items()
        if value is not None and name not in {"command", "json"} | options_of(arguments.command)
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torg-marketplace", description="A GPU compute marketplace in one process.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("openapi", help="print the API's OpenAPI document")
    for name, text in (
        ("init", "make the data folder and its keys"),
        ("serve", "run the marketplace"),
        ("reconcile", "compare the books with the chain"),
        *COMMANDS.items(),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--data", type=Path, required=True, help="folder of keys, database and blobs")
        command.add_argument("--json", action="store_true", help="JSON output (init, credit and keys always are)")
        command.add_argument("--rpc-url", help="an RPC node of the chain; default: a localnet on port 8899")
        command.add_argument("--log-format", choices=["text", "json"])
        if name == "serve":
            _add_serve_options(command)
        elif name in COMMANDS:
            add_options(name, command)
    return parser


def _add_serve_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host")
    command.add_argument("--port", type=int, help="0 takes a free one")
    command.add_argument("--public-url", help="how nodes and clients reach this, when not by host and port")
    command.add_argument("--name")
    command.add_argument("--heartbeat", help='how often nodes report, for example "10s"')
    command.add_argument(
        "--settlement-age", help='earned money is captured at the latest after this, for example "10m"'
    )
    command.add_argument("--usage-interval", help='how often usage is countersigned, for example "10m"')
    command.add_argument("--fee-basis-points", type=int)
    command.add_argument("--workloads", type=Path, help="catalogue folder; default: the one that came with the package")


def _print(text: str) -> None:
    print(text)  # noqa: T201 - a command's answer


if __name__ == "__main__":
    main()
