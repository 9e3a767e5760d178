"""The steps of a lease, one module each: `do` moves forward, `undo` takes back what it left on this host.

`do` is safe to repeat after a restart of the agent. `undo` is safe to repeat, safe when `do` never ran, and never raises for what is
gone already. The list, in order, is in `torg_node.execute`.
"""

from __future__ import annotations

from typing import Protocol

from torg_node.lease import Lease


class Step(Protocol):
    name: str

    async def do(self, lease: Lease) -> None: ...

    async def undo(self, lease: Lease) -> None: ...
