"""The same client for code without an event loop. Each call runs on one private loop in a background thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from solders.keypair import Keypair

from torg.client import AsyncClient, StageProgress
from torg.config import ClientConfig
from torg.spec_file import SpecFile
from torg_protocol.api import JobEvent, JobPage, JobView, MarketInfo, NodeView, Quote
from torg_protocol.jobspec import JobSpec
from torg_protocol.usage import SignedReceipt

T = TypeVar("T")


class Client:
    """Blocking twin of AsyncClient: same names, same errors. Safe to use from several threads."""

    def __init__(self, config: ClientConfig | None = None, keypair: Keypair | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="torg-client", daemon=True)
        self._thread.start()
        self._client = self._run(_build(config, keypair))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._run(self._client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()

    def market(self) -> MarketInfo:
        return self._run(self._client.market())

    def offers(self) -> tuple[NodeView, ...]:
        return self._run(self._client.offers())

    def quote(self, spec: JobSpec) -> Quote:
        return self._run(self._client.quote(spec))

    def submit(
        self,
        file: SpecFile,
        *,
        vault: str | None = None,
        idempotency_key: str | None = None,
        on_progress: StageProgress | None = None,
    ) -> JobView:
        return self._run(
            self._client.submit(file, vault=vault, idempotency_key=idempotency_key, on_progress=on_progress)
        )

    def job(self, job_id: str) -> JobView:
        return self._run(self._client.job(job_id))

    def jobs(self, *, limit: int = 50, cursor: str | None = None) -> JobPage:
        return self._run(self._client.jobs(limit=limit, cursor=cursor))

    def cancel(self, job_id: str) -> JobView:
        return self._run(self._client.cancel(job_id))

    def logs(self, job_id: str, stream: str = "stdout") -> str:
        return self._run(self._client.logs(job_id, stream))

    def wait(self, job_id: str, *, check: bool = False) -> JobView:
        return self._run(self._client.wait(job_id, check=check))

    def pull(self, job_id: str, destination: Path, *, on_progress: StageProgress | None = None) -> list[Path]:
        return self._run(self._client.pull(job_id, destination, on_progress=on_progress))

    def receipts(self, job_id: str) -> tuple[SignedReceipt, ...]:
        return self._run(self._client.receipts(job_id))

    def follow(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        events = self._client.follow(job_id, after=after)

        async def following() -> JobEvent | None:
            return await anext(events, None)

        while (event := self._run(following())) is not None:
            yield event

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


async def _build(config: ClientConfig | None, keypair: Keypair | None) -> AsyncClient:
    return AsyncClient(config, keypair)
