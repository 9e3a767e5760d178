"""Commands of the owner's life with a node: drain, earnings, top, sweep, backup, restore, install-service."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from torg_node.earnings import EarningRow, MonthRow, as_csv, as_json, as_table, by_month, earning_rows
from torg_node.journal import Journal
from torg_node.owner import DRAIN_FACT
from torg_node.service import SYSTEM_FOLDER, install, own_program, unit_text
from torg_node.settings import load_settings
from torg_node.sweep_command import add_sweep_options, summary, sweep_command
from torg_protocol.errors import Invalid

Print = Callable[[str], None]
_POLL_S = 0.5
COMMANDS = {
    "drain": "end running leases with their grace and take no more, until resume",
    "earnings": "what this node has earned, by month; --export for each record",
    "top": "live: leases, GPUs, earnings, and why grants were or were not taken",
    "sweep": "what the node's own key holds, to a cold wallet: the plan and its sweeps; --now, --dry-run, --confirm",
    "stake": "put tokens at stake behind this node's work: audits become rarer, and a failed one takes of it",
    "unstake": "ask for what is at stake back, and take it when its grace is over",
    "update": "the next release: installed beside this one, checked, switched to, and back by itself when it is not healthy",
    "backup": "key and config in one file under a password",
    "restore": "a node from such a file",
    "install-service": "a systemd unit that keeps the agent running",
}


def add_options(name: str, command: argparse.ArgumentParser) -> None:
    match name:
        case "drain":
            command.add_argument("--wait", action="store_true", help="until no lease runs any more")
        case "earnings":
            command.add_argument("--export", choices=["csv", "json"], help="each record, amounts in tokens")
            command.add_argument("--by-month", action="store_true", help="with --export: months instead of records")
        case "top":
            command.add_argument("--once", action="store_true", help="print once and leave")
            command.add_argument("--every", type=float, default=2.0, metavar="SECONDS")
        case "sweep":
            add_sweep_options(command)
        case "stake" | "unstake":
            if name == "stake":
                command.add_argument("amount", help="in tokens; added to what is there")
            command.add_argument(
                "--wallet", type=Path, help="that stakes, and gets the rest back; default: this node's key"
            )
        case "update":
            which = command.add_mutually_exclusive_group()
            which.add_argument(
                "--package", default="torg[node]", help="what pip installs; default: the newest torg[node]"
            )
            which.add_argument("--release", type=Path, metavar="DIR", help="a virtual environment that has it already")
            which.add_argument("--back", action="store_true", help="to the release before this one")
            command.add_argument(
                "--link", type=Path, help="what the agent is started through; default: as this command"
            )
            command.add_argument(
                "--restart", metavar="COMMAND", help="default: systemctl restart torg-node, if it runs"
            )
            command.add_argument("--within", type=float, default=120.0, metavar="SECONDS", help="to become healthy")
        case "backup" | "restore":
            command.add_argument("file", type=Path)
            command.add_argument("--password-file", type=Path, help="default: asked for, or TORG_BACKUP_PASSWORD")
        case "install-service":
            command.add_argument("--print", action="store_true", dest="print_only", help="print it, write nothing")
            command.add_argument("--replace", action="store_true", help="write over an older one")
        case _:
            pass  # it has none of its own


def run(arguments: argparse.Namespace, say: Print) -> int:
    match arguments.command:
        case "drain":
            return _drain(arguments, say)
        case "earnings":
            return _earnings(arguments, say)
        case "top":
            from torg_node.top import run_top

            return run_top(load_settings(arguments.data), once=arguments.once, every_s=arguments.every)
        case "sweep":
            return sweep_command(arguments, say)
        case "stake" | "unstake":
            from torg_node.stake import stake_command

            return stake_command(arguments, say)
        case "update":
            return _update(arguments, say)
        case "backup":
            from torg_node.key_backup import back_up

            back_up(load_settings(arguments.data), arguments.file, _password(arguments, twice=True))
            say(
                _answer(
                    arguments, {"file": str(arguments.file)}, f"{arguments.file}: keep it, and its password, elsewhere"
                )
            )
            return 0
        case "restore":
            from torg_node.key_backup import restore

            restore(arguments.file, arguments.data, _password(arguments, twice=False))
            next_step = f"torg-node start --data {arguments.data}"
            say(_answer(arguments, {"data": str(arguments.data)}, f"the node is back: {next_step}"))
            return 0
        case _:
            return _install_service(arguments, say)


def _drain(arguments: argparse.Namespace, say: Print) -> int:
    """Works beside a running agent, which ends its leases within a second or two. Safe to repeat."""
    journal = Journal(load_settings(arguments.data).journal_path)
    try:
        journal.set_paused(True)
        journal.set_fact(DRAIN_FACT, "yes")
        while arguments.wait and journal.open_leases():
            time.sleep(_POLL_S)
        left = len(journal.open_leases())
    finally:
        journal.close()
    text = "drained: no lease needs this host" if not left else f"draining: {left} leases end with their grace"
    say(_answer(arguments, {"leases": left}, f"{text}; torg-node resume takes leases again"))
    return 0


def _earnings(arguments: argparse.Namespace, say: Print) -> int:
    settings = load_settings(arguments.data)
    journal = Journal(settings.journal_path)
    try:
        rows, swept = earning_rows(journal), summary(settings, journal)
    finally:
        journal.close()
    decimals, months = settings.network.decimals, by_month(rows)
    export = arguments.export or ("json" if arguments.json else None)
    if export is None:
        say(as_table(months, decimals) + (f"\nsweep: {swept}" if swept else ""))
        return 0
    wanted, kind = (months, MonthRow) if arguments.by_month else (rows, EarningRow)
    text = as_csv(wanted, decimals, kind) if export == "csv" else as_json(wanted, decimals)
    say(text.rstrip("\n"))
    return 0


def _update(arguments: argparse.Namespace, say: Print) -> int:
    from torg_node import update

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    settings = load_settings(arguments.data)
    link = Path(os.path.abspath(arguments.link)) if arguments.link else update.link_of_own_program(sys.argv[0])  # noqa: PTH100 - not through it
    restart = update.restart_command(arguments.restart)
    if arguments.back:
        release = update.previous_release(settings)
    else:
        release = arguments.release or update.install(link, arguments.package, progress)
    update.update(update.Update(settings, link, restart, arguments.within), release, progress)
    say(_answer(arguments, {"release": str(release.resolve())}, f"updated: {release.resolve().name}"))
    return 0


def _install_service(arguments: argparse.Namespace, say: Print) -> int:
    settings = load_settings(arguments.data)
    if arguments.print_only:
        say(unit_text(settings, own_program()))
        return 0
    path = install(settings, SYSTEM_FOLDER, replace=arguments.replace)
    next_step = "systemctl daemon-reload && systemctl enable --now torg-node"
    say(_answer(arguments, {"unit": str(path)}, f"{path} is written; now: {next_step}"))
    return 0


def _password(arguments: argparse.Namespace, *, twice: bool) -> str:
    if arguments.password_file is not None:
        try:
            return str(arguments.password_file.read_text().rstrip("\n"))
        except OSError as error:
            raise Invalid(
                f"the password file cannot be read: {error.strerror}",
                code="password_unreadable",
                field="password-file",
                value=str(arguments.password_file),
            ) from error
    if (password := os.environ.get("TORG_BACKUP_PASSWORD")) is not None:
        return password
    if not sys.stdin.isatty():
        raise Invalid(
            "there is no terminal to ask for the password",
            code="password_missing",
            field="password",
            hint="--password-file FILE, or TORG_BACKUP_PASSWORD",
        )
    password = getpass.getpass("password of the backup: ")
    if twice and getpass.getpass("again: ") != password:
        raise Invalid("the two are not the same", code="password_mistyped", field="password")
    return password


def _answer(arguments: argparse.Namespace, value: dict[str, object], text: str) -> str:
    return json.dumps(value) if arguments.json else text
