"""Volumes: directories that the containers of a job share, and that may outlive it.

    volumes: ["mydata:/data", "models:/models:ro"]      # kept under these names of the account, seen at these paths

    volumes:
      mydata: {keep: true, path: /data, max_size: 20GiB}   # the same in full
      scratch: {}                                          # empty at the start, gone with the lease; for the tasks that mount it

**What is kept.** A volume with `keep` is the account's. A job that names it, on whichever node, begins with its newest generation, and what
the job leaves in it becomes the next one when the job ends in order: with exit code 0, cancelled, or out of time or money. A job that fails
leaves the last generation as it was; what it wrote can be had from the job (`torg volume get NAME --job JOB`).

**Who writes.** One job at a time: another one that would write waits in the queue until the first is over. Jobs that mount it read-only
wait for nobody, and see the generation that was the newest when their attempt began.
"""

from __future__ import annotations

import operator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from torg_protocol.cases import QuotaView
from torg_protocol.documents import View, Wire
from torg_protocol.ids import DIGEST, Digest, JobId
from torg_protocol.inputs import JOB_FOLDERS
from torg_protocol.quantities import SizeBytes
from torg_protocol.strict import Strict, check_container_path

VOLUME_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
MAX_VOLUMES = 32  # of a job


def _is_none(value: object) -> bool:
    return value is None


class Volume(Strict):
    """A directory on the job's disk. `NAME: {}` is empty at the start, goes with the lease, and is seen by the tasks that mount it.

    `keep`: it is the account's volume of this name, and outlives the job. `path`: where every container of the job sees it. `read_only`: of one
    that is kept: many jobs may read it at once. `max_size`: of one that is kept, how much may be in it when the job ends; default, and at
    most, the job's disk. `NAME: PATH` is short for `{keep: true, path: PATH}`, and `NAME: PATH:ro` for the same with `read_only`."""

    keep: bool = Field(default=False, exclude_if=operator.not_)
    path: str | None = Field(default=None, max_length=512, exclude_if=_is_none)
    read_only: bool = Field(default=False, exclude_if=operator.not_)
    max_size: SizeBytes | None = Field(default=None, gt=0, exclude_if=_is_none)

    @field_validator("path")
    @classmethod
    def _is_container_path(cls, path: str | None) -> str | None:
        if path is None:
            return None
        path = check_container_path(path)
        if any(path == folder or path.startswith(f"{folder}/") for folder in JOB_FOLDERS):
            raise ValueError(f"{path} is in a folder of the job; choose another one, /data for instance")
        return path

    @property
    def is_written(self) -> bool:
        """Whether the job makes its next generation."""
        return self.keep and not self.read_only


def _in_full(value: Any) -> Any:
    """`PATH` or `PATH:ro` as a mapping; everything else as it is."""
    if not isinstance(value, str):
        return value
    path, colon, mode = value.partition(":")
    if colon and mode not in {"ro", "rw"}:
        raise ValueError(f'"{value}": after the path comes :ro or nothing')
    return {"keep": True, "path": path, **({"read_only": True} if mode == "ro" else {})}


def _by_name(value: Any) -> Any:
    """A list of `NAME:PATH[:ro]`, as other tools write it, by name; everything else as it is."""
    if not isinstance(value, list | tuple):
        return value
    found: dict[str, Any] = {}
    for item in value:
        if not isinstance(item, str) or ":" not in item:
            raise ValueError(f'"{item}": write NAME:PATH, or NAME:PATH:ro to only read it')
        name, _, rest = item.partition(":")
        if name in found:
            raise ValueError(f'"{name}" is listed twice')
        found[name] = rest
    return found


ShortVolume = Annotated[Volume, BeforeValidator(_in_full, json_schema_input_type=Volume | str)]
_Name = Annotated[str, Field(pattern=VOLUME_NAME)]
Volumes = Annotated[
    dict[_Name, ShortVolume],
    BeforeValidator(_by_name, json_schema_input_type=dict[_Name, Volume | str] | tuple[str, ...]),
]


def volume_problems(volumes: dict[str, Volume], *, disk_bytes: int, has_tasks: bool) -> list[tuple[str, str]]:
    """What is wrong with a job's volumes: fields and sentences."""
    found: list[tuple[str, str]] = []
    paths: dict[str, str] = {}
    for name, volume in volumes.items():
        here = f"volumes.{name}"
        if not volume.keep:
            if not has_tasks:
                found.append((here, "one command has its workspace; a volume of it is kept: write keep: true"))
            if volume.read_only or volume.max_size is not None:
                field = "read_only" if volume.read_only else "max_size"
                found.append((f"{here}.{field}", "is for a volume that is kept; add keep: true"))
        if volume.path is None and not has_tasks:
            found.append((f"{here}.path", "is missing: where the container sees it, /data for instance"))
        if volume.path is not None and (other := paths.setdefault(volume.path, name)) != name:
            found.append((f"{here}.path", f'"{other}" is there too'))
        if volume.max_size is not None and volume.max_size > disk_bytes:
            found.append((f"{here}.max_size", "is more than resources.disk, on which it lies"))
    return found


class VolumeRequest(Wire):
    """PUT /v1/volumes/{name}. The blob was uploaded before: a directory tree as tar + zstd, as workspaces are. `generation`: that of the volume
    as the caller knows it (0: there is none yet); null: whatever it is."""

    digest: Digest = Field(pattern=DIGEST)
    size_bytes: int = Field(ge=0, le=2**63 - 1)
    generation: int | None = Field(default=None, ge=0)


class VolumeView(View):
    """`generation` 0: nothing was stored in it yet. `writer`: the open job whose end makes the next generation; `users`: all open jobs that name
    it."""

    name: str
    generation: int
    digest: Digest | None = None
    size_bytes: int = 0  # as it is stored, packed
    made_by: JobId | None = None  # which job left it so; null: it was put there
    created_at_ms: int
    stored_at_ms: int | None = None  # the newest generation
    used_at_ms: int
    expires_at_ms: int | None = None  # when it goes unless it is used before; null: never
    writer: JobId | None = None
    users: tuple[JobId, ...] = ()


class VolumePage(View):
    """GET /v1/volumes"""

    volumes: tuple[VolumeView, ...]
    next_cursor: str | None = None
    total_bytes: int  # of the newest generations of all volumes of the account
    kept: QuotaView | None = None  # volumes and named data together, against what the account may keep


class JobVolume(View):
    """What a job had of a volume. `read_generation`: with which its newest attempt began. `written_generation`: which one it made; null: none, or
    not yet. `digest`: what it stored last, also when that became no generation."""

    name: str
    read_only: bool = False
    read_generation: int | None = None
    written_generation: int | None = None
    digest: Digest | None = None
    size_bytes: int = 0
    detail: str = ""  # why what was in it at the end is not kept
