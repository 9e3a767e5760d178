"""Answers proofs of hardware: a task and a prover process per proof, beside whatever leases run.

The owner's machine is guarded: so many proofs an hour at most, so much memory and time for one. What the marketplace established is kept in
the journal for `torg-node status` and `doctor`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable

from pydantic import BaseModel

from torg_node.hardware.proof.child import ProofFailed, started_prover
from torg_node.journal import Journal
from torg_protocol.ids import NodeId
from torg_protocol.offers import Inventory
from torg_protocol.proofs import (
    ProofAsked,
    ProofChallenge,
    ProofCommitted,
    ProofJudged,
    ProofOpened,
    ProofReady,
    ProofStatus,
    ProofWanted,
)

log = logging.getLogger(__name__)
STATUS_FACT = "hardware_proof"
MOST_PER_HOUR = 40
MOST_CPU_BYTES = 256 << 20
MOST_ANSWER_MS = 180_000
_MOST_WAIT_S = 120.0  # between two messages of the marketplace

ProofMessage = ProofWanted | ProofChallenge | ProofAsked | ProofJudged


class Proving:
    def __init__(
        self,
        node: NodeId,
        inventory: Inventory,
        journal: Journal,
        send: Callable[[BaseModel], Awaitable[bool]],
        *,
        path: str = "auto",
    ) -> None:
        self._node, self._inventory, self._journal, self._send, self._path = node, inventory, journal, send, path
        self._running: dict[str, tuple[asyncio.Task[None], asyncio.Queue[ProofChallenge | ProofAsked]]] = {}
        self._begun: deque[float] = deque(maxlen=MOST_PER_HOUR)

    def take(self, message: ProofMessage) -> None:
        """Returns at once. What belongs to no running proof is dropped: the marketplace asks again."""
        match message:
            case ProofWanted():
                self._begin(message)
            case ProofChallenge() | ProofAsked():
                if message.proof_id in self._running:
                    self._running[message.proof_id][1].put_nowait(message)
            case ProofJudged():
                self._judged(message)

    async def aclose(self) -> None:
        tasks = [task for task, _ in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, wanted: ProofWanted) -> None:
        now_s = time.monotonic()
        if len(self._begun) == MOST_PER_HOUR and now_s - self._begun[0] < 3600:
            log.warning("more than %d proofs of hardware in an hour: declined", MOST_PER_HOUR)
            return
        if wanted.proof_id in self._running:
            return
        self._begun.append(now_s)
        queue: asyncio.Queue[ProofChallenge | ProofAsked] = asyncio.Queue()
        task = asyncio.create_task(self._prove(wanted, queue), name=wanted.proof_id)
        self._running[wanted.proof_id] = (task, queue)
        task.add_done_callback(lambda _: self._running.pop(wanted.proof_id, None))

    async def _prove(self, wanted: ProofWanted, queue: asyncio.Queue[ProofChallenge | ProofAsked]) -> None:
        try:
            async with started_prover(wanted.unit, path=self._path) as prover:
                await self._send(ProofReady(proof_id=wanted.proof_id))
                challenge = await _next(queue)
                if not isinstance(challenge, ProofChallenge):
                    raise ProofFailed("rows were asked for before the challenge")
                self._check(challenge)
                async with asyncio.timeout(challenge.answer_within_ms / 1000):
                    root = await prover.commit_chain(challenge, self._node)
                    await self._commit(wanted, prover.arithmetic, root=root)
                    await self._commit(wanted, prover.arithmetic, lanes=await prover.commit_walk())
                asked = await _next(queue)
                if isinstance(asked, ProofAsked):
                    opened = await prover.open(asked.blocks)
                    await self._send(ProofOpened(proof_id=wanted.proof_id, blocks=opened))
        except TimeoutError:
            log.warning("%s: the proof of %s was not finished in time", wanted.proof_id, wanted.unit)
        except (ProofFailed, OSError, ValueError) as error:
            log.warning("%s: %s cannot be proven here: %s", wanted.proof_id, wanted.unit, error)

    async def _commit(self, wanted: ProofWanted, arithmetic: str, **what: str) -> None:
        phase = "chain" if "root" in what else "walk"
        body = {"proof_id": wanted.proof_id, "phase": phase, "arithmetic": arithmetic, **what}
        await self._send(ProofCommitted.model_validate(body))

    def _check(self, challenge: ProofChallenge) -> None:
        """Raises ProofFailed for what would hurt this machine."""
        if challenge.answer_within_ms > MOST_ANSWER_MS:
            raise ProofFailed(f"a proof of {challenge.answer_within_ms} ms is too long")
        most = MOST_CPU_BYTES
        if challenge.unit.startswith("gpu:"):
            number = int(challenge.unit.partition(":")[2])
            if number >= len(self._inventory.gpus):
                raise ProofFailed(f"there is no {challenge.unit}")
            most = self._inventory.gpus[number].vram_bytes
        if challenge.walk.size_bytes > most:
            raise ProofFailed(f"it asks for {challenge.walk.size_bytes} bytes of {most}")

    def _judged(self, judged: ProofJudged) -> None:
        self._journal.set_fact(STATUS_FACT, judged.status.model_dump_json())
        level = logging.INFO if judged.passed else logging.WARNING
        log.log(level, "proof of hardware: %s (%s)", judged.detail, judged.status.state)


def kept_status(journal: Journal) -> ProofStatus | None:
    """What the marketplace established last; None before any proof."""
    text = journal.fact(STATUS_FACT)
    return None if text is None else ProofStatus.model_validate_json(text)


def proof_lines(status: ProofStatus | None) -> list[str]:
    """For people."""
    if status is None:
        return ["hardware is not proven yet; the marketplace asks at a time of its choice"]
    lines = [f"{status.state}: {status.detail}" if status.detail else status.state]
    lines += [
        f"{unit.unit}  at least {unit.gops} billion int8 operations/s, {unit.memory_bytes >> 20} MiB filled and walked"
        f" ({unit.arithmetic})"
        for unit in status.units
        if unit.gops or unit.memory_bytes  # of one that answered nothing in time nothing is known
    ]
    return lines


async def _next(queue: asyncio.Queue[ProofChallenge | ProofAsked]) -> ProofChallenge | ProofAsked:
    async with asyncio.timeout(_MOST_WAIT_S):
        return await queue.get()
