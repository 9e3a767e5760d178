"""Open the secrets: unsealed with this node's key into memory, as files that only the job's container sees.

Those that are for the registries of its images stay with the lease and become no files. The others lie on a tmpfs of this host, never on a disk, and are gone with the lease. In arguments, environment, journal and logs there is
nothing of them but their names.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from torg_node.executors.port import RegistryAuth
from torg_node.lease import Lease, LeaseEnded
from torg_node.steps.make_workspace import JOB_USER
from torg_protocol.errors import TorgError
from torg_protocol.ids import LeaseId
from torg_protocol.registries import RegistryLogin
from torg_protocol.sealing import JOB_KEY, check_job_key
from torg_protocol.secrets import secrets_in
from torg_protocol.states import EndReason

MEMORY = Path("/dev/shm")  # noqa: S108  memory is the point


class OpenSecrets:
    name = "open the secrets"

    async def do(self, lease: Lease) -> None:
        """After a restart of the agent they are still there."""
        sealed = lease.spec.secrets
        if sealed is None:
            return
        from torg_host.age import unseal  # ciphers, for those who seal

        folder = secrets_folder(lease)
        try:
            content = unseal(sealed.data, lease.node.keypair)
            values = secrets_in(content, lease.spec, lease.grant.client)
            check_job_key(lease.spec)
        except TorgError as error:
            raise LeaseEnded(EndReason.INPUT_INVALID, str(error)) from None
        lease.job_key = values.pop(JOB_KEY, b"").decode("ascii", errors="replace")
        lease.registry_auth = {host: _auth(host, login, values) for host, login in lease.spec.registries.items()}
        for name in lease.spec.secrets_of_registries():
            values.pop(name, None)
        # Not in a thread, which a cancelled step would leave behind: it could write after `undo` has removed.
        _write(folder, values)

    async def undo(self, lease: Lease) -> None:
        if lease.spec.secrets is not None:
            _remove(secrets_folder(lease))


def _auth(host: str, login: RegistryLogin, values: Mapping[str, bytes]) -> RegistryAuth:
    """Raises LeaseEnded for a secret that is no text."""
    found = {}
    for part, name in login.secret_fields:
        text = values.get(name, b"").decode(errors="replace").strip()
        if not text or not text.isprintable():
            detail = f"registries.{host}.{part}: the secret {name} is not one line of text [registry_login_invalid]"
            raise LeaseEnded(EndReason.INPUT_INVALID, detail)
        found[part] = text
    return RegistryAuth(**found)


def secrets_folder(lease: Lease) -> Path:
    """Of this lease; exists only for one that has secrets."""
    return _of_node(lease.node.settings.data) / lease.id


def forget_secrets(data: Path, keep: frozenset[LeaseId]) -> None:
    """What an agent that was killed left of leases that are over."""
    folder = _of_node(data)
    for item in folder.iterdir() if folder.is_dir() else ():
        if item.name not in keep:
            shutil.rmtree(item, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()  # when nothing stays


def _of_node(data: Path) -> Path:
    return MEMORY / f"torg-{hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:16]}"


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()  # when it was the last


def _write(folder: Path, values: dict[str, bytes]) -> None:
    """Readable for the job's user alone, and for nobody before they are complete."""
    if folder.exists():
        return
    parent = folder.parent
    parent.mkdir(mode=0o711, exist_ok=True)
    if parent.is_symlink() or parent.stat().st_uid != os.geteuid():
        raise LeaseEnded(EndReason.START_FAILED, f"{parent} is not this node's")
    partial = parent / f".{folder.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(mode=0o700)
    except FileNotFoundError:  # another lease has just removed the empty parent
        parent.mkdir(mode=0o711, exist_ok=True)
        partial.mkdir(mode=0o700)
    for name, value in values.items():
        descriptor = os.open(partial / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400)
        with os.fdopen(descriptor, "wb") as file:
            file.write(value)
        if os.geteuid() == 0:
            os.chown(partial / name, *JOB_USER)
    if os.geteuid() == 0:
        os.chown(partial, *JOB_USER)
    partial.chmod(0o500)
    partial.rename(folder)
