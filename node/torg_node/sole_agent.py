"""One agent per data folder: two would take turns at the marketplace, each with newer offers, and write one journal."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from torg_protocol.errors import Conflict

LOCK_NAME = "agent.lock"
_POLL_S = 0.1


def be_the_only_agent(data: Path, *, patience_s: float = 10.0) -> Callable[[], None]:
    """Until what it returns is called, or this process is gone in whatever way: the kernel keeps the lock. An agent that is ending is
    waited for, `patience_s` at most. Raises Conflict `node_running`."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(data / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up_at = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < give_up_at:
                time.sleep(_POLL_S)
                continue
            owner = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise Conflict(
                f"an agent runs on this folder already (process {owner or 'unknown'})",
                code="node_running",
                field="data",
                value=str(data),
                hint="stop that one first; a second node has a folder of its own: torg-node init --data DIR",
            ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return lambda: os.close(descriptor)
