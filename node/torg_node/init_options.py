"""The options of `torg-node init`: what it would ask, and what it never asks."""

from __future__ import annotations

import argparse
from pathlib import Path

from torg_chain.network import LOCALNET_MINT, LOCALNET_PROGRAM_ID
from torg_node.setup import DEFAULT_RENTAL_ADDRESS
from torg_node.sweep_command import add_sweep_plan_options


def add_init_options(command: argparse.ArgumentParser) -> None:
    market = command.add_mutually_exclusive_group()
    market.add_argument("--marketplace", help="its address")
    market.add_argument("--rpc-url", help="no marketplace, only direct rentals: an RPC node of the chain")
    command.add_argument("--program", default=LOCALNET_PROGRAM_ID, help="with --rpc-url: the vault program's address")
    command.add_argument("--mint", default=LOCALNET_MINT, help="with --rpc-url: the token that is paid in")
    command.add_argument(
        "--rental-address",
        help=f"host:port where clients rent this node directly; with --rpc-url {DEFAULT_RENTAL_ADDRESS} by default",
    )
    command.add_argument(
        "--rental-interval", type=int, default=60, help="seconds that direct rentals are paid ahead; default 60"
    )
    command.add_argument(
        "--price",
        help='tokens per GPU and hour (per slot and hour without one), for example "0.80"; default: what the market suggests',
    )
    command.add_argument(
        "--spot-price",
        help="the same for spot jobs, which a job at the full price may preempt; at most --price. Default: takes none",
    )
    command.add_argument("--kwh-price", help="tokens that a kWh costs you: for the break-even")
    command.add_argument(
        "--watts", type=int, help="what this machine draws when it works; default: its GPUs' power limits"
    )
    command.add_argument(
        "--payout", help="wallet that is paid; best one whose key is not on this machine. Default: the node's key"
    )
    command.add_argument("--slots", type=int, default=1, help="jobs at once that want no GPU")
    command.add_argument("--executor", choices=["auto", "docker", "sandbox"], default="auto")
    command.add_argument(
        "--engine-socket", type=full_path, help="of the container engine, when it is not in the usual place"
    )
    command.add_argument(
        "--gpus",
        action="append",
        metavar="NAME",
        help="lend these GPUs alone: nvidia, amd, a model or a UUID; again for more. Default: all, of both vendors NVIDIA's",
    )
    command.add_argument(
        "--reservations",
        type=full_path,
        metavar="FILE",
        help="this host's ledger, when several nodes share the host: the same for all",
    )
    command.add_argument("--max-unpaid", default="10", help="tokens of undecided work at which no more is taken")
    command.add_argument(
        "--egress",
        choices=["none", "allow", "open"],
        default="none",
        help="what jobs may reach through this node: nothing, what their job file lists, or the public internet",
    )
    add_sweep_plan_options(command)
    command.add_argument("--yes", action="store_true", help="ask nothing")


def full_path(text: str) -> Path:
    """Resolved: executors mount what lies below only by its real, absolute place, and the next start may be elsewhere."""
    return Path(text).expanduser().resolve()
