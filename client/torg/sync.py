"""The same client for code without an event loop. Each call runs on one private loop in a background thread.

Written by scripts/sync_client.py from client.py and kept.py: change those, then run `python -m scripts.sync_client`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from solders.keypair import Keypair

from torg.client import AsyncClient, R, T
from torg.config import ClientConfig
from torg.kept import StageProgress
from torg.spec_file import SpecFile
from torg_protocol.api import (
    JobEvent,
    JobPage,
    JobView,
    MarketInfo,
    NodeView,
    Quote,
    ReferencePrice,
)
from torg_protocol.cases import AbuseView, AccountView, DisputeView, ErasureView, QuotaView
from torg_protocol.data import DataPage, DataView
from torg_protocol.errors import Conflict, TorgError
from torg_protocol.jobspec import JobSpec
from torg_protocol.refunds import RefundView
from torg_protocol.usage import SignedReceipt
from torg_protocol.volumes import JobVolume, VolumePage, VolumeView


class Client:
    """Blocking twin of AsyncClient: same names, same errors. Safe to use from several threads."""

    def __init__(self, config: ClientConfig | None = None, keypair: Keypair | None = None) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="torg-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._run(_build(config, keypair))
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Safe to repeat. In a process that was forked off nothing is this client's to close."""
        if self._why_unusable() is None:
            self._run(self._client.aclose())
            self._stop()

    def market(self) -> MarketInfo:
        """The marketplace's public facts; asked once, then remembered."""
        return self._run(self._client.market())

    def offers(self) -> tuple[NodeView, ...]:
        """What nodes offer now, all pages of it."""
        return self._run(self._client.offers())

    def prices(self) -> tuple[ReferencePrice, ...]:
        """Reference prices of the newest minute, by class: nobody pays them, they say what a class is worth."""
        return self._run(self._client.prices())

    def quote(self, spec: JobSpec) -> Quote:
        """Whether, where and for how much this can run now; if not, which constraint removes how many nodes. `inputs`: what the names of
        data in it stand for now."""
        return self._run(self._client.quote(spec))

    def submit(
        self,
        file: SpecFile,
        *,
        vault: str | None = None,
        idempotency_key: str | None = None,
        on_progress: StageProgress | None = None,
    ) -> JobView:
        """Asks for a quote, packs and uploads the workspace, signs a cap that covers this job, submits.

        Safe to call again with the same `idempotency_key`: the same job comes back. Nothing is uploaded for a job that nothing on
        the market can run. Raises Infeasible; Conflict `vault_underfunded`; NotFound `no_vault`; Unavailable
        `submission_unanswered` when nobody here can know whether the marketplace has it (its message says how to find out).
        """
        return self._run(
            self._client.submit(file, vault=vault, idempotency_key=idempotency_key, on_progress=on_progress)
        )

    def resubmit(self, job_id: str, *, vault: str | None = None, idempotency_key: str | None = None) -> JobView:
        """The same spec and workspace as a new job, under a new quote. Raises what `submit` raises; Invalid `blob_missing` when the
        store no longer has the workspace; Unavailable `answer_malformed` when the spec has members of a newer release than this client's,
        which would be lost."""
        return self._run(self._client.resubmit(job_id, vault=vault, idempotency_key=idempotency_key))

    def job(self, job_id: str) -> JobView:
        return self._run(self._client.job(job_id))

    def jobs(self, *, limit: int = 50, cursor: str | None = None, state: str | None = None) -> JobPage:
        """One page, newest first: its `jobs`, and the `next_cursor`, at which another one begins. `all_jobs` goes through all pages."""
        return self._run(self._client.jobs(limit=limit, cursor=cursor, state=state))

    def all_jobs(self, *, state: str | None = None) -> Iterator[JobView]:
        """Newest first, page by page as they are taken."""
        return self._iterate(self._client.all_jobs(state=state))

    def cancel(self, job_id: str) -> JobView:
        """Stops the job; useful seconds until then are billed. Raises Conflict when it has reported or ended already."""
        return self._run(self._client.cancel(job_id))

    def extend(self, job_id: str, by_ms: int) -> JobView:
        """Lets an open job last so much longer, under a larger cap. A queued one has a larger limit; a running one goes on from its newest
        checkpoint when its time is over. Raises Conflict (extend_needs_checkpoints, extend_verified, job_ended, vault_underfunded),
        NotFound `job_not_in_journal`; with an API key, whose credit holds more then, credit_exhausted or spend_cap_reached."""
        return self._run(self._client.extend(job_id, by_ms))

    def follow(self, job_id: str, *, after: int = 0, on_gap: Callable[[str], None] | None = None) -> Iterator[JobEvent]:
        """States, progress, logs and checkpoints as they happen, until the job has ended. Survives reconnects, of which
        `on_gap` is told."""
        return self._iterate(self._client.follow(job_id, after=after, on_gap=on_gap))

    def logs(self, job_id: str, stream: str = "stdout", *, task: str | None = None) -> str:
        """The live log. Of a job of several tasks: of one as it wrote it, or of all with the task's name before each line. A sealed job has
        none: of it this is the newest attempt's whole log, decrypted, and empty until that has ended."""
        return self._run(self._client.logs(job_id, stream, task=task))

    def save_log(
        self, job_id: str, target: Path, stream: str = "stdout", *, attempt: int | None = None, task: str | None = None
    ) -> Path:
        """Downloads an attempt's whole log, by default the newest's, as the job wrote it, checked against its digest. Raises NotFound
        `log_not_stored` until the attempt has ended."""
        return self._run(self._client.save_log(job_id, target, stream, attempt=attempt, task=task))

    def wait(self, job_id: str, *, check: bool = False) -> JobView:
        """Returns when the job has ended; with `check`, raises JobFailed unless it succeeded."""
        return self._run(self._client.wait(job_id, check=check))

    def pull(
        self, job_id: str, destination: Path, *, overwrite: bool = False, on_progress: StageProgress | None = None
    ) -> list[Path]:
        """Downloads the outputs into `destination`, each checked against its digest before it gets its name.

        Resumes what an earlier call left unfinished and skips what is there already. Raises Conflict `output_exists` before
        anything is downloaded when a file of that name with other content is there, unless `overwrite`; ReceiptInvalid
        `output_path_unsafe` when an output's name would leave `destination`. Those of a sealed job are decrypted with this wallet; what is
        there of them already is not recognised.
        """
        return self._run(self._client.pull(job_id, destination, overwrite=overwrite, on_progress=on_progress))

    def run(
        self,
        function: Callable[..., R],
        *arguments: Any,
        spec: Mapping[str, Any] | None = None,
        vault: str | None = None,
        idempotency_key: str | None = None,
        **named: Any,
    ) -> R:
        """Runs the call as a job and returns its value: JSON values and bytes; tuples come back as lists (see torg.functions).

        `spec`: members of a job spec, such as {"resources": {"gpus": 1}, "limits": {"max_duration": "10m"}}. Cancelled when this
        is cancelled. Raises FunctionFailed (it raised: `remote_traceback`; python_version_mismatch; function_result_not_plain), JobFailed,
        Invalid `function_not_picklable`, and what `submit` raises.
        """
        return self._run(
            self._client.run(function, *arguments, spec=spec, vault=vault, idempotency_key=idempotency_key, **named)
        )

    def map(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        *,
        spec: Mapping[str, Any] | None = None,
        vault: str | None = None,
        at_once: int = 8,
    ) -> Iterator[R]:
        """One job per item, at most `at_once` open, results in the order of `items`. The first failure is raised, and cancels the rest."""
        return self._iterate(self._client.map(function, items, spec=spec, vault=vault, at_once=at_once))

    def refunds(self, job_id: str | None = None) -> tuple[RefundView, ...]:
        """What was given back to this account, oldest first, each with the marketplace's verified signature. Raises ReceiptInvalid
        `refund_invalid`."""
        return self._run(self._client.refunds(job_id))

    def account(self) -> AccountView:
        """Who this is at the marketplace, and how much of what it may do is used."""
        return self._run(self._client.account())

    def erase(self) -> ErasureView:
        """Erases this account's data at the marketplace: specs, blobs, logs, events, names; receipts and ledger stay. Safe to repeat.
        Raises Conflict jobs_open, dispute_open."""
        return self._run(self._client.erase())

    def dispute(self, job_id: str, reason: str) -> DisputeView:
        """Objects to what a finished job cost; a person decides. Safe to repeat. Raises Conflict dispute_too_early, dispute_too_late,
        dispute_exists, nothing_to_dispute."""
        return self._run(self._client.dispute(job_id, reason))

    def disputes(self) -> tuple[DisputeView, ...]:
        """Newest first, with their decisions."""
        return self._run(self._client.disputes())

    def report_abuse(self, subject: str, reason: str) -> AbuseView:
        """Tells the operator of a job (its id) or a node (its address) that does harm. Safe to repeat."""
        return self._run(self._client.report_abuse(subject, reason))

    def receipts(self, job_id: str) -> tuple[SignedReceipt, ...]:
        """All receipts of a job, each verified, and kept in a wallet's journal. Raises ReceiptInvalid when one does not hold."""
        return self._run(self._client.receipts(job_id))

    def put_data(self, name: str, source: Path, *, on_progress: StageProgress | None = None) -> DataView:
        """Uploads what the store lacks of a folder or file and names it; a name that is there moves. Safe to repeat."""
        return self._run(self._client.put_data(name, source, on_progress=on_progress))

    def get_data(self, name: str, destination: Path, *, on_progress: StageProgress | None = None) -> DataView:
        """Unpacks it as `destination`, absent or empty before; goes on where an earlier call was cut off. Raises NotFound
        `data_unknown`, Conflict `destination_exists`."""
        return self._run(self._client.get_data(name, destination, on_progress=on_progress))

    def kept_data(self) -> DataPage:
        """All named data, by name, with what the account keeps in all."""
        return self._run(self._client.kept_data())

    def list_data(self) -> tuple[DataView, ...]:
        """All named data, by name."""
        return self._run(self._client.list_data())

    def stored_bytes(self) -> int:
        """All that this account has sent and the store still has: named data, workspaces of jobs, and for a day what nothing refers to."""
        return self._run(self._client.stored_bytes())

    def storage_quota(self) -> QuotaView | None:
        """How much of what this account may keep it does, named data and volumes together. None: the marketplace does not say."""
        return self._run(self._client.storage_quota())

    def remove_data(self, name: str) -> DataView:
        """Takes a name away; jobs that use the data keep it. Raises NotFound `data_unknown`."""
        return self._run(self._client.remove_data(name))

    def kept_volumes(self) -> VolumePage:
        """All volumes, by name, with what the account keeps in all."""
        return self._run(self._client.kept_volumes())

    def list_volumes(self) -> tuple[VolumeView, ...]:
        """All volumes, by name."""
        return self._run(self._client.list_volumes())

    def volume(self, name: str) -> VolumeView:
        """Its newest generation, which job writes it, and which jobs use it. Raises NotFound `volume_unknown`."""
        return self._run(self._client.volume(name))

    def put_volume(
        self, name: str, source: Path, *, generation: int | None = None, on_progress: StageProgress | None = None
    ) -> VolumeView:
        """What is in a folder, or one file, becomes the volume's next generation; one that is not there is made. `generation`: which one it must be
        at before (0: it must not be there). Safe to repeat. Raises Conflict `volume_busy` while a job writes it, `volume_moved`."""
        return self._run(self._client.put_volume(name, source, generation=generation, on_progress=on_progress))

    def get_volume(self, name: str, destination: Path, *, on_progress: StageProgress | None = None) -> VolumeView:
        """Unpacks its newest generation as `destination`, absent or empty before. Raises NotFound `volume_unknown`, `volume_empty`; Conflict
        `destination_exists`."""
        return self._run(self._client.get_volume(name, destination, on_progress=on_progress))

    def get_job_volume(
        self, job_id: str, name: str, destination: Path, *, on_progress: StageProgress | None = None
    ) -> JobVolume:
        """The same of what this job stored last, also when it failed and that became no generation."""
        return self._run(self._client.get_job_volume(job_id, name, destination, on_progress=on_progress))

    def remove_volume(self, name: str) -> VolumeView:
        """Deletes it with what is in it. Raises NotFound `volume_unknown`, Conflict `volume_in_use` while open jobs name it."""
        return self._run(self._client.remove_volume(name))

    def _run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Ctrl-C reaches the coroutine as its cancellation."""
        if (error := self._why_unusable()) is not None:
            coroutine.close()
            raise error
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _iterate(self, items: AsyncIterator[R]) -> Iterator[R]:
        async def following() -> tuple[R] | None:
            async for item in items:
                return (item,)
            return None

        async def ending() -> None:
            if (aclose := getattr(items, "aclose", None)) is not None:
                await aclose()

        try:
            while (found := self._run(following())) is not None:
                yield found[0]
        finally:
            if self._why_unusable() is None:
                self._run(ending())

    def _why_unusable(self) -> TorgError | None:
        """What would wait for a loop that nobody runs here, and so for ever."""
        if os.getpid() != self._pid:
            what, code, hint = "made by another process", "client_forked", "make one after the fork, in each process"
        elif self._loop.is_closed():
            what, code, hint = "closed", "client_closed", "make another, or keep it open for as long as it is used"
        elif threading.current_thread() is self._thread:
            what, code, hint = (
                "busy with the call whose callback this is",
                "client_busy",
                "call it after that has returned",
            )
        else:
            return None
        return Conflict(f"this client is {what}", code=code, field="client", hint=hint)

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()


async def _build(config: ClientConfig | None, keypair: Keypair | None) -> AsyncClient:
    return AsyncClient(config, keypair)
