"""Fetch the inputs: blobs from the store, everything else from the internet by the strict client, onto the job's bounded disk."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import shutil
from collections.abc import Awaitable
from pathlib import Path
from typing import assert_never

from torg_host.archive import UnpackLimits
from torg_node.executors.port import Mount
from torg_node.input_client import Allowance, InputClient, InputInvalid, InputUnavailable
from torg_node.input_sources import Credentials, fetch_hugging_face, fetch_ollama, fetch_s3, fetch_url
from torg_node.lease import Lease, LeaseEnded
from torg_node.steps.make_workspace import bring, fetch, give_to_job
from torg_node.steps.open_secrets import secrets_folder
from torg_protocol.errors import TorgError
from torg_protocol.inputs import (
    BlobInput,
    DataInput,
    FetchedInput,
    HuggingFaceInput,
    Input,
    OllamaInput,
    S3Input,
    UrlInput,
)
from torg_protocol.jobspec import BlobRef, JobSpec
from torg_protocol.states import EndReason

_READY = ".inputs-ready"


class FetchInputs:
    name = "fetch the inputs"

    async def do(self, lease: Lease) -> None:
        """What is wrong with an input is the job's fault; what does not answer may answer another node. After a restart what is not
        complete begins anew."""
        placed = _placed(lease.spec)
        if not placed or (lease.folder / _READY).exists():
            return
        shutil.rmtree(_folder(lease), ignore_errors=True)
        _folder(lease).mkdir()
        allowance = Allowance(lease.spec.resources.disk)
        for number, (_, item) in enumerate(placed):
            await lease.preparing(f"input {item.path}")
            await _unless_stopped(lease, _fetched(lease, item, _folder(lease) / str(number), allowance))
        await asyncio.to_thread(give_to_job, _folder(lease))
        (lease.folder / _READY).touch()

    async def undo(self, lease: Lease) -> None:
        """They go with the job's disk."""


def _placed(spec: JobSpec) -> list[tuple[str | None, Input]]:
    """The job's own, and those of its tasks with the task's name; by their numbers they are found on disk."""
    return [(None, item) for item in spec.inputs] + [(task.name, item) for task in spec.tasks for item in task.inputs]


def input_mounts(lease: Lease, task: str | None = None) -> tuple[Mount, ...]:
    """What the job sees of them; a task also its own."""
    return tuple(
        Mount(_folder(lease) / str(number), item.path)
        for number, (owner, item) in enumerate(_placed(lease.spec))
        if owner in {None, task}
    )


def _folder(lease: Lease) -> Path:
    return lease.files / "inputs"


async def _unless_stopped(lease: Lease, fetching: Awaitable[None]) -> None:
    work = asyncio.ensure_future(fetching)
    stopping = asyncio.ensure_future(lease.stop_requested.wait())
    try:
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        lease.check_not_stopped()
        await work
    finally:
        for task in (work, stopping):
            task.cancel()
        await asyncio.gather(work, stopping, return_exceptions=True)


async def _fetched(lease: Lease, item: Input, target: Path, allowance: Allowance) -> None:
    credentials: Credentials = {}
    try:
        match item:
            case BlobInput():
                await _blob(lease, item, target, allowance)
            case DataInput():
                raise InputInvalid("its name was never resolved to a blob")
            case _:
                credentials = await asyncio.to_thread(_credentials, lease, item)
                await _from_outside(lease, item, target, allowance, credentials)
    except (InputInvalid, TorgError) as error:
        raise LeaseEnded(EndReason.INPUT_INVALID, f"input {item.path}: {_told(error, credentials)}") from None
    except InputUnavailable as error:
        raise LeaseEnded(EndReason.START_FAILED, f"input {item.path}: {_told(error, credentials)}") from None
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        detail = f"input {item.path}: the inputs do not fit into resources.disk"
        raise LeaseEnded(EndReason.INPUT_INVALID, detail) from error


async def _blob(lease: Lease, item: BlobInput, target: Path, allowance: Allowance) -> None:
    blob = BlobRef(digest=item.digest, size_bytes=item.size_bytes)
    if item.unpack:
        await bring(lease, blob, target, UnpackLimits(max_bytes=allowance.left_bytes), keep=True)
    else:
        allowance.take(item.size_bytes)
        incoming = (
            lease.folder / "incoming.blob"
        )  # the cache links to files of its own file system; the job gets a copy
        try:
            await fetch(lease, blob, incoming, keep=True)
            await asyncio.to_thread(shutil.copyfile, incoming, target)
        finally:
            incoming.unlink(missing_ok=True)


def _credentials(lease: Lease, item: FetchedInput) -> Credentials:
    """Raises InputInvalid for a secret that is no text."""
    found = {}
    for field, name in item.secret_fields:
        try:
            text = (secrets_folder(lease) / name).read_text(encoding="ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            text = ""
        if not text or not text.isprintable():
            raise InputInvalid(f"{field}: the secret {name} is not one line of text")
        found[field] = text
    return found


def _told(error: Exception, credentials: Credentials) -> str:
    """What a server answers may repeat what it was given, and the marketplace reads why a lease ended."""
    text = str(error)
    for value in credentials.values():
        text = text.replace(value, "...")
    return text


async def _from_outside(
    lease: Lease,
    item: UrlInput | S3Input | HuggingFaceInput | OllamaInput,
    target: Path,
    allowance: Allowance,
    credentials: Credentials,
) -> None:
    settings = lease.node.settings
    mirrors = tuple(f"{url.host}:{url.port}" for url in (settings.hugging_face_url, settings.ollama_url))
    client = InputClient(
        allow=None if settings.egress == "open" else (*item.hosts, *mirrors),
        allowance=allowance,
        opened=tuple(ipaddress.ip_network(str(network)) for network in settings.egress_networks),
        bytes_per_s=settings.egress_bytes_per_s,
    )
    async with client:
        match item:
            case UrlInput():
                await fetch_url(client, item, target, credentials)
            case S3Input():
                await fetch_s3(client, item, target, credentials)
            case HuggingFaceInput():
                site = str(settings.hugging_face_url).rstrip("/")
                await fetch_hugging_face(client, item, target, site, credentials)
            case OllamaInput():
                await fetch_ollama(client, item, target, str(settings.ollama_url).rstrip("/"))
            case _:
                assert_never(item)
