"""`torg-marketplace`: init, serve, openapi, simulate, and what the operator does beside a marketplace that runs. Each loads what it needs, and no more:
`command_line.py` knows them all without that."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import sys

from torg_marketplace.command_line import INTERRUPTED, ROOM_OF, parser, settings_in
from torg_marketplace.logs import configure_logging
from torg_marketplace.settings import Settings
from torg_protocol.errors import TorgError


def main() -> None:
    arguments = parser().parse_args()
    try:
        sys.exit(_run(arguments))
    except TorgError as error:
        sys.exit(f"torg-marketplace: {error}")
    except KeyboardInterrupt:
        left = INTERRUPTED.get(arguments.command, "it was done as a whole, or not at all")
        print(f"torg-marketplace: interrupted: {left}", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "openapi":
        return _openapi()
    if arguments.command == "simulate":
        return _simulate(arguments)
    settings = Settings.read(settings_in(arguments))
    configure_logging(settings)
    match arguments.command:
        case "init":
            return _init(settings)
        case "serve":
            return _serve(settings)
        case name:
            room = importlib.import_module(f"torg_marketplace.{ROOM_OF[name]}")
            code: int = asyncio.run(room.run_command(arguments, settings, _print))
            return code


def _openapi() -> int:
    from torg_marketplace.app import make_app

    _print(json.dumps(make_app(None).openapi(), indent=2))
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    from torg_marketplace.simulation import command

    return command.run(arguments)


def _init(settings: Settings) -> int:
    from torg_marketplace.opening import make_keys

    identity, capture = make_keys(settings)
    keys = {"marketplace": str(identity.pubkey()), "capture_key": str(capture.pubkey()), "data": str(settings.data)}
    _print(json.dumps(keys))
    return 0


def _serve(settings: Settings) -> int:
    import uvloop

    from torg_marketplace.app import serve

    uvloop.run(serve(settings))
    return 0


def _print(text: str) -> None:
    try:
        print(text, flush=True)  # noqa: T201 - a command's answer
    except BrokenPipeError:  # `torg-marketplace openapi | head`: whoever read has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
