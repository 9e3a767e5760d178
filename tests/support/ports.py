"""TCP ports for servers that must be told theirs, or that come back at the one they had.

A port that the system chose is anybody's as soon as nobody listens: in the moment before a server takes it, or in the seconds until one that was
killed is started again, the system may give it to another process. So these are outside of the range from which it chooses.
"""

from __future__ import annotations

import os
import socket
from itertools import count
from pathlib import Path

_FIRST, _PER_WORKER = 10_000, 5_000  # workers of one session take theirs from ranges of their own
_numbers = count(os.getpid() * 7)  # sessions side by side begin at different ones


def own_port() -> int:
    """Free now, and given to nobody else in this session; nor by the system to anybody, unless it chooses from all there are."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = _FIRST + worker % 4 * _PER_WORKER
    ports = (first + next(_numbers) % _PER_WORKER for _ in range(_PER_WORKER))
    free = (port for port in ports if _is_free(port))
    found = next(free)
    return found if not low <= found <= high else next((port for port in free if not low <= port <= high), found)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as servers do: what is left of closed connections is in nobody's way
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
