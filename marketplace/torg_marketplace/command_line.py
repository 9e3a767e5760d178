"""What `torg-marketplace` understands: its commands and their options, without anything that executes them. So `--help` starts quickly,
and a command loads only what it needs itself."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from torg_marketplace.rules.bans import KINDS
from torg_marketplace.settings import ROLES
from torg_protocol.accounts import Scope
from torg_protocol.refunds import RefundCause
from torg_protocol.role import VERSION_HELP, VERSION_OPTION, release

OWN = {
    "init": "make the data folder and its keys",
    "serve": "run the marketplace",
}
BOOKS = {
    "reconcile": "compare the books with the chain",
    "unblock": "let payouts of a vault go on, once books and chain agree again",
}
PROOFS = {"proof": "proofs of hardware: list those of a node, replay one from its evidence, lift a ban"}
EVIDENCE = {
    "evidence": "what verdicts and proofs of hardware rest on, newest first",
    "evidence-show": "all that is kept of one",
    "evidence-replay": "judge one again from what is kept; exit code 1 when that gives something else",
}
NODES = {
    "nodes": "all of them, suspended and lost ones too",
    "node-suspend": "give a node no new leases; with --stop also end those that it runs, whose jobs go elsewhere",
    "node-resume": "take that back",
    "slashes": "what is taken of nodes' collaterals after failed audits, newest first",
    "slash-cancel": "take a slash back, within the day before it is executed",
    "inspect": "everything that is known of a job, a lease or a node, with its newest events",
}
CASES = {
    "refund": "give back part of what a lease cost",
    "refunds": "what was given back, newest first",
    "dispute": "what clients object to: list, or decide one",
    "ban": "an image, a wallet or a node that is not served any more",
    "unban": "take a ban back",
    "bans": "what is banned, and why",
    "abuse": "reports of abuse: list, or close one",
    "erase": "delete an account's data; receipts and ledger stay",
}
BACKUP = {
    "migrate": "bring the database to a schema revision; for going back, stop the marketplace first",
    "backup": "write the database as it is now to a file; safe beside a marketplace that runs",
    "restore": "put a backup in the database's place; stop the marketplace first, and run recover afterwards",
    "recover": "after a restore: book what the chain did since the backup, and compare",
    "replay-events": "a job's states again from its events, compared with what is stored",
}
ACCOUNTS = {
    "credit-open": "open and fund the vault that pays for jobs of API keys",
    "credit-grant": "let an account spend that much more of it",
    "credit-show": "what an account may spend",
    "key-create": "make an API key for an account",
    "key-list": "the API keys of an account, with what they have spent",
    "key-revoke": "end an API key now",
}


# What Ctrl-C left of a command that takes longer; any other is one transaction, or changes nothing.
INTERRUPTED = {
    "backup": "no backup was written",
    "restore": "the database is as it was",
    "migrate": "the database is as it was",
    "recover": "what was booked stays booked; run it again",
    "erase": "what was deleted is gone, the rest is there; run it again",
    "simulate": "nothing is left of it",
}

_ROOMS = {
    "operator_books": BOOKS,
    "operator_proofs": PROOFS,
    "operator_evidence": EVIDENCE,
    "operator_nodes": NODES,
    "operator_cases": CASES,
    "operator_backup": BACKUP,
    "operator_accounts": ACCOUNTS,
}
ROOM_OF = {name: room for room, commands in _ROOMS.items() for name in commands}  # the module that executes it


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torg-marketplace", description="A GPU compute marketplace in one process.")
    parser.add_argument(VERSION_OPTION, action="version", version=release("torg-marketplace"), help=VERSION_HELP)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("openapi", help="print the API's OpenAPI document")
    _add_simulate_options(commands.add_parser("simulate", help="whole markets under faults, in virtual time"))
    for room, words in {"": OWN, **_ROOMS}.items():
        for name, text in words.items():
            command = commands.add_parser(name, help=text)
            command.add_argument("--data", type=Path, required=True, help="folder of keys, database and blobs")
            command.add_argument("--json", action="store_true", help="JSON output (init, credit and keys always are)")
            command.add_argument("--rpc-url", help="an RPC node of the chain; default: a localnet on port 8899")
            command.add_argument("--log-format", choices=["text", "json"])
            _ADD[room](name, command)
    return parser


def settings_in(arguments: argparse.Namespace) -> dict[str, Any]:
    """Only what was said on the command line: the rest is the environment's and the defaults'."""
    said = {name: value for name, value in vars(arguments).items() if value is not None}
    if arguments.command == "serve":
        return {name: value for name, value in said.items() if name not in {"command", "json"}}
    return {name: value for name, value in said.items() if name in {"data", "rpc_url", "log_format"}}


def _add_simulate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, default=0, help="the first seed")
    command.add_argument("--seeds", type=int, default=20, help="how many seeds, one market each")
    command.add_argument("--nodes", type=int, help="nodes per market; default: a few, differing by seed")
    command.add_argument("--steps", type=int, default=80, help="steps per market")
    command.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")


def _add_own_options(name: str, command: argparse.ArgumentParser) -> None:
    if name == "serve":
        _add_serve_options(command)


def _add_books_options(name: str, command: argparse.ArgumentParser) -> None:
    if name == "unblock":
        command.add_argument("--vault", required=True)
        command.add_argument("--because", required=True, help="what you found; it goes to the log")


def _add_proofs_options(name: str, command: argparse.ArgumentParser) -> None:
    del name
    command.add_argument("action", choices=["list", "replay", "lift"])
    command.add_argument("id", help="of a node (list, lift) or of a proof (replay)")


def _add_evidence_options(name: str, command: argparse.ArgumentParser) -> None:
    if name == "evidence":
        command.add_argument("--about", help="a job, a lease or a node; default: all")
        command.add_argument("--limit", type=int, default=50, help="default: 50")
    else:
        command.add_argument("id", help="check_..., lease_... or proof_...")


def _add_nodes_options(name: str, command: argparse.ArgumentParser) -> None:
    if name in {"nodes", "slashes"}:
        return
    of = {"inspect": "job_..., lease_... or a node's address", "slash-cancel": "slash_..."}
    command.add_argument("id", help=of.get(name, "the node's address"))
    if name != "inspect":
        command.add_argument("--because", required=True, help="why; it goes into the node's history")
    if name == "node-suspend":
        command.add_argument(
            "--stop", action="store_true", help="leases end with a checkpoint, their jobs are queued again"
        )


def _add_cases_options(name: str, command: argparse.ArgumentParser) -> None:
    if name == "refund":
        command.add_argument("lease", help="lease_...; torg-marketplace inspect job_... shows those of a job")
        command.add_argument(
            "--amount", required=True, help='tokens, for example "1.50", or a share of its price: "40%%"'
        )
        command.add_argument("--cause", required=True, choices=[str(cause) for cause in RefundCause])
        command.add_argument("--note", default="", help="for the client and the node")
        command.add_argument(
            "--subject", help="what the refund is about; the same cause and subject happen once (default: the lease)"
        )

    elif name in {"dispute", "abuse"}:
        verb = "decide" if name == "dispute" else "close"
        command.add_argument("action", choices=["list", verb])
        command.add_argument("id", nargs="?", help=f"of the one to {verb}")
        command.add_argument("--note", default="", help="why; both sides read it")
        if name == "dispute":
            command.add_argument("--refund", help='share of the price that goes back: "40%%"; "0%%" rejects')
    elif name == "erase":
        command.add_argument("account", help="a wallet's address or acct_...")
    elif name in {"ban", "unban"}:
        command.add_argument("kind", choices=KINDS)
        command.add_argument("subject", help="an image (name, name:tag, digest), a wallet's or a node's address")
        command.add_argument("--because", required=True, help="why; those who are refused read it")


def _add_backup_options(name: str, command: argparse.ArgumentParser) -> None:
    match name:
        case "migrate":
            command.add_argument(
                "--to", default="head", help='a revision like "0007", "head" (default) or "base" (nothing left)'
            )
        case "backup" | "restore":
            command.add_argument("file", type=Path)
        case "replay-events":
            command.add_argument("job", help="job_...")
        case _:
            pass


def _add_accounts_options(name: str, command: argparse.ArgumentParser) -> None:
    match name:
        case "credit-open":
            command.add_argument("--deposit", required=True, help='tokens, for example "100"')
        case "credit-grant":
            command.add_argument("account")
            command.add_argument("amount", help='tokens, for example "10"')
            command.add_argument("--take-back", action="store_true", help="of what is neither spent nor held, instead")
        case "credit-show" | "key-list":
            command.add_argument("account")
        case "key-create":
            command.add_argument("name", help="for people; unique among the account's keys")
            command.add_argument("--account", help="a wallet's address or acct_...; default: a new account")
            command.add_argument(
                "--credit", help="tokens that the account may spend from now on, besides what it may already"
            )
            command.add_argument("--spend-cap", required=True, help="tokens that jobs of this key may cost in all")
            command.add_argument("--expires", default="90d", help='for example "90d"')
            command.add_argument(
                "--scope", action="append", choices=[scope.value for scope in Scope], help="repeat it; default: all"
            )
        case _:
            command.add_argument("key", help="key_...")


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


_ADD = {
    "": _add_own_options,
    "operator_books": _add_books_options,
    "operator_proofs": _add_proofs_options,
    "operator_evidence": _add_evidence_options,
    "operator_nodes": _add_nodes_options,
    "operator_cases": _add_cases_options,
    "operator_backup": _add_backup_options,
    "operator_accounts": _add_accounts_options,
}
