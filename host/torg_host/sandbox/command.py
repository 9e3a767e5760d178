"""A container as bubblewrap's options, and the plan that the shim carries out. Pure: values in, values out.

The order of options is the order of mounts; a later one hides an earlier one at the same place. All writable file systems are sized, since
an unsized tmpfs takes host memory that no other limit counts; the root and /dev become read-only last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torg_host.sandbox.images import Image, SandboxMount
from torg_host.sandbox.own_root import FIRST_HOST_ID, IDS, OwnRoot
from torg_protocol.errors import Invalid

HOSTNAME = "torg"
TMP, SHM = "/tmp", "/dev/shm"  # noqa: S108  in the container, where both are new, sized and its own
ROOT_PLACE = "/m/root"  # in the private root: what `own_root` mounts
MIN_TMP_BYTES = 16 << 20
OWN_PROCESSES = 2  # bubblewrap's two, which share the job's control group
DEADLINE_GRACE_MS = 2000
ETC_FILES = ("group", "hosts", "hostname", "nsswitch.conf", "passwd")


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    memory_bytes: int
    cpu_millis: int = 1000  # 1000 = one core
    disk_bytes: int = 1 << 30  # of what is written to writable mounts
    shm_bytes: int = 64 << 20
    pids: int = 512
    log_bytes: int = 16 << 20  # newest kept


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    command: tuple[str, ...]
    image: Image
    limits: SandboxLimits
    max_duration_ms: int
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = TMP
    mounts: tuple[SandboxMount, ...] = ()
    stdin: bytes = b""
    cpus: tuple[
        int, ...
    ] = ()  # processors to run on; empty: any. Advice: a job may undo it, its CPU quota holds all the same
    listener_port: int = 0  # on its loopback, handed over to `launch`'s channel before the program runs; 0: none
    own_root: OwnRoot | None = None  # None: the job's user, and nothing writable but mounts and /tmp


@dataclass(frozen=True, slots=True)
class Isolation:
    """How this host confines a container; see `launch.isolation_here`."""

    bwrap: Path
    user: tuple[int, int] | None  # uid and gid to become; None when the agent is no root itself
    cgroups: bool  # False: rlimits only, which bound memory per process and count all of the user's processes


def tmp_bytes(limits: SandboxLimits) -> int:
    """The container's temporary directory lives in memory and counts as the job's memory: half of it at most."""
    return min(limits.disk_bytes, max(MIN_TMP_BYTES, limits.memory_bytes // 2))


def check(spec: ContainerSpec) -> None:
    """Raises Invalid for a spec that bubblewrap could only fail on, or that would hide what the sandbox itself sets up."""
    if not spec.command or any("\0" in part for part in spec.command):
        raise Invalid("a command needs at least one word and no zero bytes", code="bad_command", field="command")
    for name, text in spec.env.items():
        if not name or "=" in name or "\0" in name + text:
            raise Invalid("not a name or value of an environment variable", code="bad_env", field="env", value=name)
    for bind in spec.mounts:
        _check_target(bind.target, spec.image, hides=spec.own_root is not None and spec.own_root.image is not None)
    if not spec.workdir.startswith("/"):
        raise Invalid("the working directory is not absolute", code="bad_workdir", field="workdir", value=spec.workdir)


def plan(spec: ContainerSpec, state_dir: Path, isolation: Isolation, cgroup_name: str) -> dict[str, Any]:
    """All that the shim needs, as JSON. As root, sources get short places in a private root (see `private_root`)."""
    binds = [*spec.image.binds, *spec.mounts]
    if not spec.image.has_etc:
        binds += [SandboxMount(state_dir / "etc" / name, f"/etc/{name}") for name in ETC_FILES]
    if spec.own_root is not None and spec.own_root.image is not None:
        binds = list(spec.mounts)  # the image's own files are below them
    places = {str(bind.source): str(bind.source) for bind in binds}
    private_root, own_root = None, spec.own_root
    if isolation.user is not None:
        places = {source: f"/m/{number}" for number, source in enumerate(places)}
        private_root = _private_root(places)
        private_root["layers"] = [own_root.mount(ROOT_PLACE)] if own_root is not None else []
    limits = spec.limits
    cgroup = {
        "name": cgroup_name,
        "memory_bytes": limits.memory_bytes,
        "pids": limits.pids + OWN_PROCESSES,
        "cpu_millis": limits.cpu_millis,
    }
    uid, gid = isolation.user or (None, None)
    inside = isolation.user
    if own_root is not None:
        uid, gid, inside = own_root.host_uid, own_root.host_gid, (own_root.uid, own_root.gid)
    return {
        "bwrap": str(isolation.bwrap),
        "options": _options(spec, binds, places),
        "command": list(spec.command),
        "private_root": private_root,
        "uid": uid,
        "gid": gid,
        "inside": inside,
        "capabilities": list(own_root.capabilities.values()) if own_root is not None else [],
        "user_namespace": [FIRST_HOST_ID, IDS] if own_root is not None else None,
        "cpus": list(spec.cpus),
        "listener_port": spec.listener_port,
        "rlimits": _rlimits(limits, isolation),
        "cgroup": cgroup if isolation.cgroups else None,
        "log_bytes": limits.log_bytes,
        "max_duration_ms": spec.max_duration_ms,
        "deadline_grace_ms": DEADLINE_GRACE_MS,
        "disk": {"limit_bytes": limits.disk_bytes, "watched": [], "quotas": []},
        "stdin": str(state_dir / "stdin"),
    }


def etc_files(uid: int, gid: int) -> dict[str, str]:
    """A small /etc: enough for `getpass`, `socket.getfqdn` and the loader, nothing of the host."""
    return {
        "passwd": f"root:x:0:0:root:/:/bin/sh\njob:x:{uid}:{gid}:job:{TMP}:/bin/sh\n",
        "group": f"root:x:0:\njob:x:{gid}:\n",
        "hosts": f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost\n",
        "hostname": f"{HOSTNAME}\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    }


def _options(spec: ContainerSpec, binds: list[SandboxMount], places: Mapping[str, str]) -> list[str]:
    own_root = spec.own_root
    options = ["--die-with-parent", "--new-session", "--clearenv", "--hostname", HOSTNAME]
    if own_root is not None:
        options += own_root.options(ROOT_PLACE)
    else:
        options += ["--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
        options += ["--perms", "1777", "--size", str(tmp_bytes(spec.limits)), "--tmpfs", TMP]
    options += ["--proc", "/proc", "--dev", "/dev"]
    options += ["--perms", "1777", "--size", str(spec.limits.shm_bytes), "--tmpfs", SHM]
    options += ["--dir", "/run", "--dir", "/var"] if not spec.image.covers("/var") else ["--dir", "/run"]
    if own_root is None or own_root.image is None:
        for says, place in spec.image.links:
            options += ["--symlink", says, place]
    if own_root is not None:  # else bubblewrap makes them for its own user alone
        parents = {str(parent) for bind in binds for parent in list(Path(bind.target).parents)[:-1]}
        options += [word for parent in sorted(parents) for word in ("--dir", parent)]
    for bind in binds:
        options += ["--bind" if bind.writable else "--ro-bind", places[str(bind.source)], bind.target]
    # Of /proc, root of a user namespace would own some settings; bubblewrap covers none of them for it.
    options += ["--remount-ro", "/dev", "--remount-ro", "/" if own_root is None else "/proc", "--chdir", spec.workdir]
    whose = {"HOME": TMP, "USER": "job"} if own_root is None else {"HOME": own_root.home}
    environment = {"LANG": "C.UTF-8", **whose, **dict(spec.image.env), **spec.env}
    for name, text in sorted(environment.items()):
        options += ["--setenv", name, text]
    return options


def _private_root(places: Mapping[str, str]) -> dict[str, Any]:
    binds = [[source, place, "tree"] for source, place in places.items()]
    # Bubblewrap's own needs: its binary and libraries, an unmasked /proc (the kernel demands it for a new one), device nodes.
    binds += [["/usr", "/usr", "tree"], ["/proc", "/proc", "one"], ["/dev", "/dev", "one"]]
    links = []
    for name in ("bin", "sbin", "lib", "lib64"):
        root_entry = Path("/") / name
        if root_entry.is_symlink():
            links.append([str(root_entry.readlink()), f"/{name}"])
        elif root_entry.is_dir():
            binds.append([f"/{name}", f"/{name}", "tree"])
    return {"binds": binds, "links": links}


def _rlimits(limits: SandboxLimits, isolation: Isolation) -> dict[str, int]:
    largest_file = max(limits.disk_bytes, limits.shm_bytes, tmp_bytes(limits))
    always = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": largest_file}
    if isolation.cgroups:
        return always
    return {**always, "RLIMIT_AS": limits.memory_bytes, "RLIMIT_NPROC": limits.pids}


def _check_target(target: str, image: Image, *, hides: bool) -> None:
    """`hides`: mounts may lie on the image's own files, which are one tree then."""
    parts = target.split("/")
    if parts[0] != "" or len(parts) < 2 or any(part in {"", ".", ".."} for part in parts[1:]) or "\0" in target:
        raise Invalid("a mount's target is an absolute plain path", code="bad_mount", field="mounts", value=target)
    if parts[1] in {"proc", "dev", "sys"} or (not hides and (parts[1] == "etc" or image.covers(target))):
        raise Invalid(
            f"/{parts[1]} belongs to the image or the sandbox",
            code="bad_mount",
            field="mounts",
            value=target,
            hint="Mount at a directory of its own, such as /workspace.",
        )
