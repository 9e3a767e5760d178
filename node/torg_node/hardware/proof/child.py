"""The agent's side of a prover process: started, asked, and always ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from torg_protocol.ids import Digest, NodeId
from torg_protocol.proofs import OpenedBlock, ProofChallenge

_LINE_BYTES = 8 << 20
READY_WITHIN_S = 120.0
# A CPU is proven on one core: leases keep the others, and threads that wait for each other on a busy machine measure nothing.
_ONE_CORE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ProofFailed(RuntimeError):
    """This machine could not do it, in the prover's words."""


class Prover:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.arithmetic = ""

    async def commit_chain(self, challenge: ProofChallenge, node: NodeId) -> Digest:
        await self._say({"challenge": challenge.wire(), "node": node})
        return Digest((await self.hear())["root"])

    async def commit_walk(self) -> str:
        return str((await self.hear())["lanes"])

    async def open(self, blocks: tuple[int, ...]) -> tuple[OpenedBlock, ...]:
        await self._say({"blocks": blocks})
        return tuple(OpenedBlock.model_validate(block) for block in (await self.hear())["blocks"])

    async def hear(self) -> dict[str, Any]:
        """Raises ProofFailed."""
        if self._process.stdout is None:
            raise ProofFailed("no pipe")
        line = await self._process.stdout.readline()
        if not line:
            raise ProofFailed(f"the prover ended with code {await self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ProofFailed(str(answer["error"]))
        return answer

    async def _say(self, order: object) -> None:
        if self._process.stdin is None:
            raise ProofFailed("no pipe")
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # `hear` says how it ended
            await self._process.stdin.drain()


@asynccontextmanager
async def started_prover(unit: str, *, path: str = "auto") -> AsyncIterator[Prover]:
    """Ready, with its libraries loaded. Killed at the end if it has not ended. Raises ProofFailed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "torg_node.hardware.proof",
        unit,
        "--path",
        path,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, **(_ONE_CORE if unit == "cpu" else {})},
        limit=_LINE_BYTES,
    )
    try:
        prover = Prover(process)
        async with asyncio.timeout(READY_WITHIN_S):
            prover.arithmetic = str((await prover.hear())["ready"])
        yield prover
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
