"""Making something in the network of another process, by a process that stays in its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torg_host.netns import enter_network

T = TypeVar("T")


def in_network_of(pid: int, make: Callable[[], T]) -> T:
    """What `make` returns, called in the network of process `pid`: a socket or an interface belongs for good to the network in which it was made.

    Blocks for as long as `make` does. Raises OSError where that network cannot be entered, and what `make` raises.
    """

    def enter_and_make() -> T:
        enter_network(pid)
        return make()

    with ThreadPoolExecutor(
        1
    ) as thread:  # which has changed its network: it ends here and is never used for anything else
        return thread.submit(enter_and_make).result()
