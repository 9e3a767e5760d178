"""Programs in an engine's containers are ended although the engine tells their process ids late."""

from __future__ import annotations

import asyncio
from typing import Any

from torg_node.executors.docker_inside import DockerProgram


class LateExec:
    """As an engine answers about a program that it is just starting; then as it is. SIMULATED: the answers; the program is real."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process, self._asked = process, 0

    async def inspect(self) -> dict[str, Any]:
        self._asked += 1
        starting = {"Running": True, "Pid": 0, "ExitCode": None}
        code = self._process.returncode
        return starting if self._asked < 4 else {"Running": code is None, "Pid": self._process.pid, "ExitCode": code}


class NoStream:
    async def close(self) -> None:
        """There is none."""


async def test_one_that_is_left_while_it_starts_ends_too() -> None:
    process = await asyncio.create_subprocess_exec("sleep", "600")
    await DockerProgram(LateExec(process), NoStream(), is_terminal=False).close()  # type: ignore[arg-type]
    try:
        assert process.returncode is not None
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
