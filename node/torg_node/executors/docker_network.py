"""The one thing that a job's network may hold: a listener of its lease's proxy, on the job's own loopback.

The job shares the alarm's network, which is nothing but a loopback and exists before the job runs. The agent enters it from the
host, so it must be root there and see the engine's processes; where it does not, there is no way out for jobs.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torg_node.executors.errors import ExecutorError
from torg_node.executors.port import PROXY_PORT


async def hand_over_listener(container: Mapping[str, Any] | None, proxy: socket.socket) -> None:
    """`container`: the running alarm, as the engine describes it. Raises ExecutorError `egress_unavailable`."""
    if container is None:
        raise _unavailable("this runtime's network cannot be entered")
    pid = int(container["State"]["Pid"])
    if not await asyncio.to_thread(_is_process_of, pid, str(container["Id"])):
        raise _unavailable("the engine's processes are not this host's")
    entering = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-m", "torg_host.netns", str(pid), str(PROXY_PORT), str(proxy.fileno())),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=[proxy.fileno()],
    )
    _, errors = await entering.communicate()
    if entering.returncode != 0:
        raise _unavailable(errors.decode(errors="replace").strip().rpartition("\n")[2])


def _is_process_of(pid: int, container_id: str) -> bool:
    """An engine elsewhere counts its processes otherwise: the same number here may be anybody."""
    try:
        return pid > 0 and container_id in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


def _unavailable(why: str) -> ExecutorError:
    return ExecutorError(f"a job has no way out of its container here: {why}", code="egress_unavailable")
