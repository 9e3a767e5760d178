"""Starts a container: state directory, plan, shim. What is in a state directory:

plan.json, seccomp.bpf, stdin, etc/, root/  written here before the shim starts
shim.json                              which process the shim is
program.json                           which process the container's program is
logs/                                  see `output`
stop.json                              a request to stop; the shim renames it
exit.json                              how it ended; its presence means that all is over
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import re
import select
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from torg_host import cgroups
from torg_host.sandbox.command import ContainerSpec, Isolation, check, etc_files, plan
from torg_host.sandbox.container import Container
from torg_host.sandbox.errors import SandboxStartFailed, SandboxUnavailable
from torg_host.sandbox.images import SandboxMount
from torg_host.sandbox.own_root import give_to
from torg_host.sandbox.spare import Spares
from torg_host.seccomp import bpf_program
from torg_protocol.errors import Conflict, Invalid, Unavailable

JOB_USER = (65534, 65534)
CGROUP_PARENT = "torg"
OLDEST_BWRAP = (0, 8)  # --size, --perms, --disable-userns
START_TIMEOUT_S = 90.0  # longer than the shim itself waits, whose word says more
# The shim needs nothing but the standard library and this package; skipping `site` makes it start in half the time.
SHIM = "import sys; sys.path.insert(0, sys.argv[1]); from torg_host.sandbox.shim import main; main(sys.argv[2:])"
SPARE_SHIM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from torg_host.sandbox import private_root, shim, spare;"
    " spare.wait_and_become(sys.argv[2:], shim.main)"
)
PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


def isolation_here(user: tuple[int, int] = JOB_USER) -> Isolation:
    """What this host offers now. Raises SandboxUnavailable without bubblewrap, or without what builds the seccomp filter."""
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxUnavailable("bubblewrap is not installed", hint="Install it: apt-get install bubblewrap.")
    bwrap = Path(found).resolve()
    if (version := bwrap_version(bwrap)) < OLDEST_BWRAP:
        raise SandboxUnavailable(
            f"bubblewrap {'.'.join(map(str, version))} is too old: it bounds neither memory file systems nor user namespaces",
            field="bwrap",
            value=str(bwrap),
            hint=f"Version {'.'.join(map(str, OLDEST_BWRAP))} or newer is needed.",
        )
    try:
        bpf_program()
    except Unavailable as error:
        raise SandboxUnavailable(error.message, code=error.code, hint=error.hint) from error
    is_root = os.geteuid() == 0
    hierarchy = cgroups.detect() if is_root else None
    return Isolation(bwrap, user if is_root else None, hierarchy is not None)


@functools.cache
def bwrap_version(bwrap: Path) -> tuple[int, ...]:
    """(0, 8, 0), or () for something that does not answer like bubblewrap."""
    done = subprocess.run([bwrap, "--version"], capture_output=True, text=True, timeout=10, check=False)
    words = re.fullmatch(r"bubblewrap (\d+(?:\.\d+)*)\s*", done.stdout)
    return tuple(int(number) for number in words[1].split(".")) if words else ()


async def launch(
    spec: ContainerSpec,
    state_dir: Path,
    *,
    isolation: Isolation | None = None,
    lifeline: int = -1,
    channel: int = -1,
    spares: Spares | None = None,
) -> Container:
    """Starts the container and returns once its program runs. `state_dir` must not exist; its name is the container's.

    As root, writable mounts are given to the job's user, with all that is in them. Raises Invalid (the spec), Conflict
    `already_running`, SandboxUnavailable (of which SandboxStartFailed is one); on all of them nothing is left behind. When cancelled it first finishes starting, so
    that the caller finds a whole container to remove. `lifeline`: a descriptor (inherited); when its other end closes the container is killed and
    its state directory deleted. `channel`: a Unix socket (inherited); who holds its other end is handed a listener on the container's
    own loopback, see `torg_host.netns`. It needs `spec.listener_port`. `spares`: a shim that waits is taken, and the next one started.
    """
    here = isolation or isolation_here()
    starting = asyncio.ensure_future(
        asyncio.to_thread(_launch, spec, state_dir.absolute(), here, lifeline, channel, spares)
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait([starting])
        raise


def cgroup_name(state_dir: Path) -> str:
    """Unique on this host, and found again from the state directory alone."""
    return _cgroup_prefix(state_dir.parent) + state_dir.name


def _cgroup_prefix(state_root: Path) -> str:
    return f"{CGROUP_PARENT}/{hashlib.sha256(os.fsencode(state_root)).hexdigest()[:8]}-"


def sweep(state_root: Path) -> None:
    """Removes control groups whose container's state directory is gone: a shim was killed and somebody deleted its files.

    Blocks; safe at any time, since a container's directory exists before its group.
    """
    hierarchy = cgroups.detect() if os.geteuid() == 0 else None
    prefix = _cgroup_prefix(state_root.resolve())
    if hierarchy is None:
        return
    for name in cgroups.names_below(hierarchy, CGROUP_PARENT):
        if name.startswith(prefix) and not (state_root / name.removeprefix(prefix)).exists():
            cgroups.Cgroup(hierarchy, name).remove()


def spare_shims(state_root: Path) -> Spares:
    """For the containers below `state_root`. Each is started by `launch`, once it has been filled."""

    def start(channel: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", "-c", SPARE_SHIM, PACKAGE_PARENT, str(channel), str(state_root)]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},
            start_new_session=True,
            pass_fds=[channel],
        )

    return Spares(start)


def _launch(
    spec: ContainerSpec, state_dir: Path, isolation: Isolation, lifeline: int, channel: int, spares: Spares | None
) -> Container:
    state_dir = state_dir.parent.resolve() / state_dir.name
    check(spec)
    if spec.own_root is not None and isolation.user is None:
        raise Invalid(
            "a root of its own can be given to a container by a node that runs as root only",
            code="own_root_unavailable",
            field="root",
            value=True,
        )
    _check_sources(spec.mounts)
    try:
        state_dir.mkdir(mode=0o700)
    except FileExistsError as error:
        raise Conflict(
            "a container of this name exists", code="already_running", field="name", value=state_dir.name
        ) from error
    try:
        _prepare(spec, state_dir, isolation)
        answer = _start_shim(state_dir, lifeline, channel, spares)
    except BaseException:
        shutil.rmtree(state_dir, ignore_errors=True)
        raise
    if "failed" in answer:
        shutil.rmtree(state_dir, ignore_errors=True)
        raise SandboxStartFailed(f"the container did not start: {answer['failed']}", field="name", value=state_dir.name)
    return Container(state_dir)


def _prepare(spec: ContainerSpec, state_dir: Path, isolation: Isolation) -> None:
    for name in ("logs", "root", "etc"):
        (state_dir / name).mkdir(mode=0o755)
    uid, gid = isolation.user or (os.getuid(), os.getgid())
    for name, text in etc_files(uid, gid).items():
        (state_dir / "etc" / name).write_text(text)
        (state_dir / "etc" / name).chmod(0o644)
    (state_dir / "stdin").write_bytes(spec.stdin)
    (state_dir / "seccomp.bpf").write_bytes(bpf_program())
    steps = plan(spec, state_dir, isolation, cgroup_name(state_dir))
    if (own_root := spec.own_root) is not None:
        own_root.lay_out()
        guard = "quotas" if _is_quota(own_root.layer, spec.limits.disk_bytes) else "watched"
        steps["disk"][guard].append(str(own_root.layer))
        for bind in spec.mounts:
            give_to(bind.source, own_root.host_uid, own_root.host_gid)
    for bind in spec.mounts:
        if bind.writable:
            guard = "quotas" if _is_quota(bind.source, spec.limits.disk_bytes) else "watched"
            steps["disk"][guard].append(str(bind.source))
            if isolation.user is not None and own_root is None:
                _give_to(bind.source, uid, gid)
    plan_file = state_dir / "plan.json"
    plan_file.touch(mode=0o600)  # it holds the job's environment
    plan_file.write_text(json.dumps(steps))


def _start_shim(state_dir: Path, lifeline: int, channel: int, spares: Spares | None) -> dict[str, Any]:
    near, far = os.pipe()
    if spares is not None and spares.take(str(state_dir), [far, lifeline, channel]):
        os.close(far)
        try:
            return _read_answer(near, state_dir)
        finally:
            os.close(near)
    descriptors = [str(far), str(lifeline), str(channel)]
    command = [sys.executable, "-I", "-S", "-c", SHIM, PACKAGE_PARENT, str(state_dir), *descriptors]
    try:
        with (state_dir / "shim.log").open("ab") as log:
            try:
                starter = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env={},
                    start_new_session=True,
                    pass_fds=[descriptor for descriptor in (far, lifeline, channel) if descriptor >= 0],
                )
            finally:
                os.close(far)
        starter.wait()
        return _read_answer(near, state_dir)
    finally:
        os.close(near)


def _read_answer(near: int, state_dir: Path) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        poll = select.poll()
        poll.register(near, select.POLLIN)
        piece = os.read(near, 65536) if poll.poll(START_TIMEOUT_S * 1000) else b""
        if not piece:
            tail = (state_dir / "shim.log").read_text(errors="replace")[-2000:]
            return {"failed": f"the shim said nothing. {tail}".strip()}
        data += piece
    answer: dict[str, Any] = json.loads(data)
    return answer


def _check_sources(mounts: tuple[SandboxMount, ...]) -> None:
    for bind in mounts:
        source = str(bind.source)
        if not bind.source.exists():
            raise Invalid("a mount's source is missing", code="bad_mount", field="mounts", value=source)
        if os.path.realpath(source) != source:
            raise Invalid(
                "a mount's source is a link, or behind one",
                code="bad_mount",
                field="mounts",
                value=source,
                hint="An earlier task may have planted it. If it is yours, pass the resolved path.",
            )


def _is_quota(source: Path, limit_bytes: int) -> bool:
    """A file system that is no larger than the limit guards it better than any watching."""
    status = os.statvfs(source)
    return status.f_blocks * status.f_frsize <= limit_bytes


def _give_to(root: Path, uid: int, gid: int) -> None:
    """By descriptors and never through links: the tree may hold what an earlier task of the job planted."""
    descriptor = os.open(root, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.fchown(descriptor, uid, gid)
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return
        for _, directories, files, at in os.fwalk(".", dir_fd=descriptor, follow_symlinks=False):
            for name in directories + files:
                os.chown(name, uid, gid, dir_fd=at, follow_symlinks=False)
    finally:
        os.close(descriptor)
