"""Submissions in open loop: each at its time, whether or not those before were answered, as people arrive."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from solders.keypair import Keypair

from torg_protocol.caps import SignedCap
from torg_protocol.httpsig import RequestParts, sign_request


@dataclass(frozen=True, slots=True)
class Payer:
    """A wallet with a funded vault, and a cap over all of it."""

    key: Keypair
    cap: SignedCap


@dataclass
class Load:
    """What was asked, and when. Times are of the monotonic clock, in seconds; latencies in milliseconds."""

    asked_at: dict[str, float] = field(default_factory=dict)  # job -> when it was due
    latencies_ms: list[float] = field(default_factory=list)
    settled_at: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def on_receipt(self, job_id: str) -> None:
        self.settled_at.setdefault(job_id, time.perf_counter())

    @property
    def unsettled(self) -> int:
        return len(self.asked_at.keys() - self.settled_at.keys())

    def settled_between(self, began: float, until: float) -> int:
        """Whoever asked for them: `settled_at` may be shared with parts before."""
        return sum(began < at <= until for at in self.settled_at.values())


class Submitter:
    def __init__(self, url: str, payers: list[Payer], spec: dict[str, Any], http: aiohttp.ClientSession) -> None:
        self._url, self._payers, self._http = url, payers, http
        self._bodies = [json.dumps({"spec": spec, "cap": payer.cap.wire()}).encode() for payer in payers]
        self._authority = url.partition("://")[2]
        self._turn = 0

    async def submit(self, load: Load, due: float) -> None:
        """Counted from `due`, the time at which it should have been sent."""
        self._turn += 1
        payer, body = (items[self._turn % len(self._payers)] for items in (self._payers, self._bodies))
        headers = {"content-type": "application/json", "idempotency-key": secrets.token_hex(12)}
        parts = RequestParts("POST", self._authority, "/v1/jobs", "?", headers, body)
        headers |= sign_request(payer.key, parts, created_s=int(time.time()), nonce=secrets.token_urlsafe(18))
        try:
            async with self._http.post(f"{self._url}/v1/jobs", data=body, headers=headers) as response:
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError) as error:
            load.errors.append(repr(error))
            return
        if response.status != 201:
            load.errors.append(f"{response.status}: {answer}")
            return
        load.asked_at[answer["job_id"]] = due
        load.latencies_ms.append((time.perf_counter() - due) * 1000)


async def open_loop(submitter: Submitter, load: Load, *, per_second: float, seconds: float) -> None:
    """Returns when all were answered."""
    began = time.perf_counter()
    asked: list[asyncio.Task[None]] = []
    for number in range(int(per_second * seconds)):
        due = began + number / per_second
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asked.append(asyncio.create_task(submitter.submit(load, due)))
    await asyncio.gather(*asked)


async def closed_loop(submitter: Submitter, load: Load, *, in_flight: int, seconds: float) -> float:
    """As fast as it goes with at most `in_flight` jobs unsettled; jobs settled per second."""
    began = time.perf_counter()
    until = began + seconds
    asked: set[asyncio.Task[None]] = set()
    while (now := time.perf_counter()) < until:
        for _ in range(in_flight - load.unsettled - len(asked)):
            task = asyncio.create_task(submitter.submit(load, now))
            asked.add(task)
            task.add_done_callback(asked.discard)
        await asyncio.sleep(0.01)
    await asyncio.gather(*asked)
    return load.settled_between(began, until) / seconds


async def wait_until(condition: Callable[[], bool], *, within_s: float) -> bool:
    until = time.perf_counter() + within_s
    while not condition():
        if time.perf_counter() > until:
            return False
        await asyncio.sleep(0.05)
    return True
