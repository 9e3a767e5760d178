"""One proxy process per lease: it parses what strangers send, so it has neither the node's key nor root, and it outlives the agent.

It needs no reaping. It waits for a listener (`torg_host.netns`) and ends when its channel closes without one; after that it ends
with the container whose pidfd came along. Its counters are a small file that the agent reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import json
import logging
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torg_host.netns import receive_listener
from torg_node.egress.flow_limit import FlowLimit
from torg_node.egress.proxy import PORT, EgressProxy
from torg_node.egress.rules import EgressRules

PROXY_USER = 65532  # neither the job's nor the alarm's
_PR_SET_NO_NEW_PRIVS = 38
_OPEN_FILES = 1024
_COUNT_EVERY_S = 1.0
_CHANNEL = 0  # its standard input
# Sent bytes and received bytes, padded: rewritten in place, so a reader never sees half of it.
_RECORD = '{{"sent_bytes": {:>20}, "received_bytes": {:>20}}}\n'


@dataclass(frozen=True, slots=True)
class EgressUse:
    """Through the lease's proxy, as the job sees it."""

    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class EgressOrder:
    """What a lease's proxy is to do. `allow` None: every name. `opened`: networks in CIDR form."""

    allow: tuple[str, ...] | None
    bytes_per_s: int
    opened: tuple[str, ...] = ()


def start_proxy(order: EgressOrder, folder: Path) -> socket.socket:
    """Starts it and returns the channel over which a listener is to be handed to it. Closing the channel before ends it."""
    ours, theirs = socket.socketpair()
    with theirs, (folder / "egress.json").open("wb") as counters, (folder / "egress.log").open("ab") as errors:
        config = {
            "allow": order.allow,
            "bytes_per_s": order.bytes_per_s,
            "opened": order.opened,
            "counters": counters.fileno(),
        }
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "torg_node.egress.process", json.dumps(config)],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd="/",
            env={},
            start_new_session=True,
            pass_fds=[counters.fileno()],
        )
    threading.Thread(target=process.wait, name="egress proxy", daemon=True).start()  # no zombie while this agent lives
    return ours


def read_use(folder: Path) -> EgressUse | None:
    """None when the lease had no proxy, or it never got so far."""
    try:
        found = json.loads((folder / "egress.json").read_text())
        return EgressUse(int(found["sent_bytes"]), int(found["received_bytes"]))
    except (OSError, ValueError, KeyError):
        return None


# --- inside the process ----------------------------------------------------------------------------------------------


def main(config: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    _give_up_privileges()
    channel = socket.socket(fileno=_CHANNEL)
    handed = receive_listener(channel)
    channel.close()
    if handed is None:
        return
    rules = EgressRules(
        tuple(config["allow"]) if config["allow"] is not None else None,
        tuple(ipaddress.ip_network(text) for text in config["opened"]),
    )
    limit = FlowLimit(config["bytes_per_s"], time.monotonic)
    proxy = EgressProxy(rules, limit, counted=lambda: _write(config["counters"], limit))
    asyncio.run(_serve(proxy, limit, *handed, config["counters"]))


async def _serve(proxy: EgressProxy, limit: FlowLimit, listener: socket.socket, pidfd: int, counters: int) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    server = await proxy.serve(listener)
    while not ended.is_set():
        _write(counters, limit)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_COUNT_EVERY_S):
                await ended.wait()
    asyncio.get_running_loop().remove_reader(pidfd)
    server.close()
    await proxy.close()
    _write(counters, limit)


def _write(counters: int, limit: FlowLimit) -> None:
    os.pwrite(counters, _RECORD.format(limit.sent_bytes, limit.received_bytes).encode(), 0)


def _give_up_privileges() -> None:
    """After all imports: the interpreter itself may be readable for root only."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    socket.getaddrinfo("localhost", PORT)  # loads what the resolver needs
    "name".encode("idna")
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(PROXY_USER, PROXY_USER, PROXY_USER)
        os.setresuid(PROXY_USER, PROXY_USER, PROXY_USER)
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
