"""Runs untrusted programs under bubblewrap. Read in this order:

    images.py    what a container's root is made of: the host's own Python, or an unpacked image
    command.py   the container as bubblewrap's options, and the shim's plan; pure
    launch.py    writes the plan into a state directory and starts the shim
    shim.py      the small process beside each container: logs, deadline, stop, how it ended; outlives whoever started it
    child.py, private_root.py, output.py, watch.py, processes.py   the shim's parts
    container.py a started container seen from outside: wait, stop, logs, remove; needs only the state directory
    inside.py, enter.py  a further program in a running container, or a connection to a port in it
    oneshot.py   run a program to its end and get what it printed

The names below are imported when they are asked for: the shim imports this package, and should start quickly.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torg_host.sandbox.command import SandboxLimits
    from torg_host.sandbox.errors import SandboxUnavailable
    from torg_host.sandbox.images import SandboxMount
    from torg_host.sandbox.oneshot import CompletedRun, run_sandboxed

__all__ = ["CompletedRun", "SandboxLimits", "SandboxMount", "SandboxUnavailable", "run_sandboxed"]
_HOMES = {
    "CompletedRun": "oneshot",
    "SandboxLimits": "command",
    "SandboxMount": "images",
    "SandboxUnavailable": "errors",
    "run_sandboxed": "oneshot",
}


def __getattr__(name: str) -> object:
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    found: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    return found
