"""What an executor does for the agent: run one job's container on this host, and prove what it isolates.

Two implementations run strangers' code (`docker`, `sandbox`); a third (`process`) runs only the node owner's own jobs, in
tests. All three pass the same behavioural contract suite (`tests/contract/node/`).

A container must outlive the agent: a restarted agent calls `reattach` with the handle from its journal and goes on.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Protocol

OWN_ROOT_EXECUTOR = OWN_ROOT_ISOLATION = (
    "sandbox"  # what runs containers with a root of their own, beside an engine too
)
PROXY_PORT = 3128  # a container's network has no route; all it may have is a listener on its own loopback


class ExitReason(enum.StrEnum):
    """Why the container ended, as the executor knows it (not as the engine's flags claim it)."""

    EXITED = "exited"  # by itself, any exit code
    OOM = "oom"  # the kernel killed it at its own memory limit
    MAX_DURATION = "max_duration"  # the executor's deadline; enforced even while the agent is dead
    STOPPED = "stopped"  # `stop` was called
    KILLED = "killed"  # by something else: the host, a person
    DISK_FULL = "disk_full"  # writes failed at the job's disk limit and the job failed


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    memory_bytes: int
    cpu_millis: int  # 1000 = one core
    disk_bytes: int
    shm_bytes: int = 64 << 20
    pids: int = 512
    log_bytes: int = 16 << 20  # newest kept; the oldest are dropped


@dataclass(frozen=True, slots=True)
class Mount:
    """A host directory or file that the container sees."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Everything needed to start one container. `name` is unique per lease and shows in the engine's list."""

    name: str
    image: str  # what `prepare` returned in PreparedImage.reference
    command: tuple[str, ...]  # empty: the image's entrypoint
    env: Mapping[str, str]
    workdir: str  # empty: the image's own
    mounts: tuple[Mount, ...]
    limits: ResourceLimits
    max_duration_ms: int
    gpu_uuids: tuple[str, ...] = ()
    cpus: tuple[int, ...] = ()  # processors to run on; empty: any
    proxy: socket.socket | None = (
        None  # of a process that takes a listener on PROXY_PORT of the container's own loopback
    )
    labels: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()  # after the command; with neither, the image's own
    # Of a container that runs as the image's own user, root of a user namespace if it names none, and may write to all of its files: an
    # own folder on the job's disk, which takes what it writes. None: as nobody, on read-only files.
    own_root: Path | None = None


@dataclass(frozen=True, slots=True)
class RegistryAuth:
    """What a job shows to the registry of its image: a user's name and password, or a bearer token. In memory only."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    def without(self, text: str) -> str:
        """Registries may repeat what they were told, and others read why a lease ended."""
        for value in filter(None, (self.password, self.token)):
            text = text.replace(value, "...")
        return text


@dataclass(frozen=True, slots=True)
class PreparedImage:
    reference: str  # what `start` takes
    digest: str  # "sha256:..." of what really runs; in the receipt
    size_bytes: int = 0  # in the container engine, unpacked
    names: tuple[str, ...] = ()  # by which the container engine knows it


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """Of an archive. `engine_image`: its id in the container engine, where it takes `size_bytes`; None: it lies in the folder."""

    digest: str
    engine_image: str | None = None
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Handle:
    """Names a started container across restarts of the agent. Plain data: goes into the journal as JSON."""

    executor: str
    name: str
    ref: str  # engine's container id, or the shim's state directory
    started_at_ms: int


@dataclass(frozen=True, slots=True)
class Exit:
    reason: ExitReason
    code: int | None
    started_at_ms: int
    finished_at_ms: int
    peak_memory_bytes: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LogChunk:
    """A piece of one stream. `offset` is in bytes from the stream's start, so a follower can go on where it stopped."""

    stream: str  # "stdout" | "stderr"
    offset: int
    data: bytes
    at_ms: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What was verified on this host by probes at start. An offer declares only what is here."""

    executor: str
    version: str
    isolation: str  # "sandbox" | "container" | "gvisor" | "process"
    verified: tuple[
        str, ...
    ]  # names of probes that passed, for example "no-network", "memory-limit", "no-new-privileges"
    failed: tuple[str, ...]  # names of probes that did not, each with its reason after a colon
    gpu: bool = False
    not_offered: tuple[str, ...] = ()  # what this host cannot give, and need not: each with its reason after a colon


@dataclass(frozen=True, slots=True)
class InsideCommand:
    """A further program in a running container. `terminal`: rows and columns; None: plain streams."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)  # beside the container's own
    terminal: tuple[int, int] | None = None


class InsideProgram(Protocol):
    """What `Executor.run_inside` started. `close` it, whatever happens."""

    async def read(self) -> tuple[str, bytes] | None:
        """A piece of "stdout" or "stderr" (a terminal has only the former); None at the end of both."""
        ...

    async def write(self, data: bytes) -> None:
        """To its standard input; dropped when it does not read any more."""
        ...

    async def write_eof(self) -> None: ...

    async def resize(self, rows: int, columns: int) -> None: ...

    async def signal(self, number: int) -> None: ...

    async def wait(self) -> int:
        """Its exit code, 128 + n after signal n."""
        ...

    async def close(self) -> None:
        """Ends it if it runs. Safe to repeat."""
        ...


class Executor(Protocol):
    """Safe to call from one event loop. Every method but `logs` may raise `ExecutorError` (stable code, reason)."""

    name: str
    gives_gpus: bool  # whether a container can have GPUs of this host at all

    async def probe(self) -> Capabilities:
        """Runs probe containers and says what held. Slow (seconds); called at agent start and by `torg-node doctor`."""
        ...

    async def prepare(
        self,
        image: str,
        on_progress: ProgressCallback | None = None,
        *,
        auth: RegistryAuth | None = None,
        anew: bool = False,
    ) -> PreparedImage:
        """Makes the image runnable here. Safe to repeat. `auth`: for its registry, if it must be asked; with `anew` it is, whatever is here.
        Raises `ImageNotFound`, `ImageForbidden` or `RegistryRefused`."""
        ...

    async def must_pull(self, image: str) -> bool:
        """Whether `prepare` would have to fetch it from a registry."""
        ...

    async def load_archive(self, archive: Path, folder: Path, max_bytes: int) -> LoadedImage:
        """Makes the image of an archive (OCI or docker save) runnable; what it needs on disk goes to `folder`, which is empty and may be moved
        afterwards. Raises Invalid `image_archive_invalid`, TooLarge `image_too_large`."""
        ...

    async def prepare_loaded(self, folder: Path, loaded: LoadedImage) -> PreparedImage:
        """What `load_archive` made, perhaps of an agent before this one. Raises ImageNotFound when it is gone."""
        ...

    async def forget_image(self, reference: str, only_if: str | None = None) -> None:
        """Takes an image that was prepared here from this host; with `only_if` a name, if that is what it stands for still. Safe to repeat;
        an image that a container uses stays, with an error."""
        ...

    async def start(self, launch: LaunchSpec) -> Handle:
        """Starts the container; returns once it runs. Calling it again with a live name raises `AlreadyRunning`; with `own_root` LaunchRefused
        `own_root_unavailable` where it cannot be given safely."""
        ...

    async def reattach(self, handle: Handle) -> bool:
        """True when this container still exists here (running or ended, not yet removed)."""
        ...

    def logs(self, handle: Handle, *, stdout_from: int = 0, stderr_from: int = 0) -> AsyncIterator[LogChunk]:
        """Follows both streams from the given byte offsets until the container ended and all was read."""
        ...

    async def wait(self, handle: Handle) -> Exit:
        """Returns when the container ended; at once when it already has. Safe to call many times."""
        ...

    async def run_inside(self, handle: Handle, command: InsideCommand) -> InsideProgram:
        """Starts a program beside the job's own, with the same limits and rights. Raises ExecutorError `not_running`."""
        ...

    async def dial(self, handle: Handle, port: int) -> socket.socket:
        """A non-blocking socket that is connected to 127.0.0.1:`port` in the container's own network. Raises ExecutorError:
        `not_running`, `port_closed` when nobody listens there."""
        ...

    async def open_interface(self, handle: Handle, address: IPv4Interface) -> int:
        """One network interface more in the container; its descriptor is the caller's (torg_host.overlay). Raises ExecutorError:
        `not_running`, `gang_unavailable` where this host cannot."""
        ...

    async def stop(self, handle: Handle, grace_ms: int) -> None:
        """SIGTERM to the job's main process, SIGKILL to all of it after the grace. No-op when ended or unknown."""
        ...

    async def remove(self, handle: Handle) -> None:
        """Deletes every trace (container, cgroup, state directory). Safe to repeat and on unknown handles."""
        ...

    async def reap(self, keep: frozenset[str]) -> tuple[str, ...]:
        """Stops and removes every container of this node whose name is not in `keep`; returns their names."""
        ...

    async def close(self) -> None:
        """Lets go of connections and watchers; containers go on."""
        ...


class ProgressCallback(Protocol):
    def __call__(self, done_bytes: int, total_bytes: int | None, message: str) -> None: ...
