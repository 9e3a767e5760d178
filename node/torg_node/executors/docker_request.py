"""What the engine is asked for: the hardened body of a job's container, and of the alarm that ends it on time.

Pure: values in, JSON out. Every field that protects the host is set here and nowhere else.

**The alarm.** Docker has no deadline. A job's container therefore joins the PID namespace of a second, tiny container that only
sleeps; when its sleep is over, its PID 1 ends and the kernel kills everything in the namespace. This needs neither the agent nor
a process on the host, survives an agent that runs in a container itself, and cannot be disarmed by the job (other user id, no
capabilities). One may run before its job is there (docker_spare). It also reaps the job's orphans (the engine's own init is its PID 1) and spares the job the rules of PID 1, which
ignores SIGTERM by default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

from torg_node.executors.docker_engine import GpuDriver
from torg_node.executors.port import LaunchSpec, Mount

LABEL_NODE = "torg.node"
LABEL_NAME = "torg.container"
LABEL_ROLE = "torg.role"
LABEL_MAX_DURATION = "torg.max-duration-ms"
LABEL_DISK = "torg.disk-bytes"
LABEL_LOG = "torg.log-bytes"
ROLE_JOB, ROLE_ALARM = "job", "alarm"

JOB_USER_ID = 65534
_ALARM_USER_ID = 65533  # so that the job may not signal the alarm
ALARM_ALLOWANCE_MS = 20_000  # the alarm starts before the job; a job never loses time to a slow start below this
ARMED = b"armed\n"  # what a spare alarm answers
_ALARM_MEMORY_BYTES = 32 << 20
_LOG_FILES = 2  # the engine rotates at half of the limit
_MIN_LOG_FILE_BYTES = 32 << 10  # room for a piece of a line
_OPEN_FILES = 8192
_GVISOR_THREADS = 512  # its kernel's own, which the host counts too
_MIN_SCRATCH_BYTES = 16 << 20
HOSTNAME = "torg"


@dataclass(frozen=True, slots=True)
class RunnableImage:
    """A local image and what a container of it needs beside its layers."""

    image_id: str
    volumes: tuple[
        str, ...
    ] = ()  # declared by the image; each becomes bounded memory instead of an unbounded host folder
    mounts: tuple[Mount, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)  # defaults; the launch overrides them
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    workdir: str = "/"


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What is the same for all containers of one node."""

    node_label: str
    seccomp: Mapping[str, Any]
    gpu_driver: GpuDriver
    runtime: str | None = None
    gpu_devices: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by UUID, of GPUs that no runtime knows


def job_body(launch: LaunchSpec, image: RunnableImage, node: NodeSettings, alarm_id: str | None) -> dict[str, Any]:
    """`alarm_id`: the running alarm's container, or None for a runtime with a kernel of its own (gVisor)."""
    limits = launch.limits
    # /tmp lives in memory and counts as the job's memory: half of it at most.
    scratch_bytes = min(limits.disk_bytes, max(_MIN_SCRATCH_BYTES, limits.memory_bytes // 2))
    largest_file = max(limits.disk_bytes, limits.shm_bytes, scratch_bytes)
    pids = limits.pids + (_GVISOR_THREADS if alarm_id is None else 0)
    host = _hardened(node, memory_bytes=limits.memory_bytes, pids=pids, largest_file_bytes=largest_file)
    host |= {
        "NanoCpus": limits.cpu_millis * 1_000_000,
        "CpusetCpus": ",".join(map(str, launch.cpus)),
        "ShmSize": limits.shm_bytes,
        "Tmpfs": {path: _tmpfs(scratch_bytes) for path in ("/tmp", *image.volumes)},  # noqa: S108  # inside the container
        "Mounts": [_bind(mount) for mount in (*image.mounts, *launch.mounts)],
        "LogConfig": _bounded_log(limits.log_bytes),
        **_gpus(launch.gpu_uuids, node),
        **({"PidMode": f"container:{alarm_id}"} if alarm_id else {"Init": True}),
        **(_shared_loopback(alarm_id) if launch.proxy and alarm_id else {}),
        **({"Runtime": node.runtime} if node.runtime else {}),
    }
    body = _body(node, ROLE_JOB, _labels_of(launch)) | {
        "Image": image.image_id,
        **dict(zip(("Entrypoint", "Cmd"), command_of(launch, image), strict=True)),
        "Env": [f"{name}={value}" for name, value in _environment(launch, image, node).items()],
        "WorkingDir": launch.workdir or image.workdir,
        "User": f"{JOB_USER_ID}:{JOB_USER_ID}",
        "HostConfig": host,
    }
    if launch.proxy:
        del body["Hostname"]  # comes with the network
    return body


def _shared_loopback(alarm_id: str) -> dict[str, Any]:
    """The alarm's network, which is nothing but a loopback: it exists before the job runs, and so does the listener on it."""
    return {"NetworkMode": f"container:{alarm_id}", "Dns": [], "DnsSearch": []}


def command_of(launch: LaunchSpec, image: RunnableImage) -> tuple[list[str], list[str]]:
    """Entrypoint and arguments, never left to the engine. A command replaces the image's entrypoint (whose script then does not
    run) and its default arguments; arguments alone replace only the latter."""
    if launch.command:
        return list(launch.command), list(launch.args)
    return list(image.entrypoint), list(launch.args or image.cmd)


def alarm_body(launch: LaunchSpec, sleeper: RunnableImage, node: NodeSettings) -> dict[str, Any]:
    """Sleeps for the job's longest time and a little more, then ends the namespace in which the job runs."""
    command = ["/usr/bin/sleep", f"{alarm_sleep_s(launch):.3f}"]
    return _body(node, ROLE_ALARM, _labels_of(launch)) | _sleeper(command, sleeper, node)


def spare_alarm_body(sleeper: RunnableImage, node: NodeSettings) -> dict[str, Any]:
    """Does the same once it was told how long, over its input; ends when that is closed before."""
    told = f'read -r seconds || exit 0; echo {ARMED.decode().strip()}; exec /usr/bin/sleep "$seconds"'
    body = _body(node, ROLE_ALARM, {LABEL_NAME: ""}) | _sleeper(["/usr/bin/sh", "-c", told], sleeper, node)
    return body | {"OpenStdin": True, "StdinOnce": True, "AttachStdin": True, "AttachStdout": True}


def alarm_sleep_s(launch: LaunchSpec) -> float:
    return (launch.max_duration_ms + ALARM_ALLOWANCE_MS) / 1000


def _sleeper(command: list[str], sleeper: RunnableImage, node: NodeSettings) -> dict[str, Any]:
    host = _hardened(node, memory_bytes=_ALARM_MEMORY_BYTES, pids=8, largest_file_bytes=0)
    host |= {"Init": True, "Mounts": [_bind(mount) for mount in sleeper.mounts], "LogConfig": {"Type": "none"}}
    return {
        "Image": sleeper.image_id,
        "Entrypoint": command,
        "Cmd": [],
        "User": f"{_ALARM_USER_ID}:{_ALARM_USER_ID}",
        "HostConfig": host,
    }


def alarm_name(name: str) -> str:
    return f"{name}-alarm"


def _gpus(gpu_uuids: Sequence[str], node: NodeSettings) -> dict[str, Any]:
    nodes = device_nodes(gpu_uuids, node.gpu_devices)
    if not nodes:
        return {"DeviceRequests": device_requests(gpu_uuids, node.gpu_driver)}
    return {
        "Devices": [{"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"} for path in nodes],
        "GroupAdd": sorted(
            map(str, {Path(path).stat().st_gid for path in nodes if Path(path).exists()} - {0})
        ),  # video, render
    }


def device_nodes(gpu_uuids: Sequence[str], known: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Of these GPUs, each once: the compute device and the render node of each. Empty for GPUs that the engine's runtime gives."""
    return tuple(dict.fromkeys(path for uuid in gpu_uuids for path in known.get(uuid, ())))


def device_requests(gpu_uuids: Sequence[str], driver: GpuDriver) -> list[dict[str, Any]]:
    """Exactly these GPUs, never a count: a count would let the engine choose one that another lease holds."""
    if not gpu_uuids:
        return []
    match driver:
        case "nvidia":
            wanted = {"Capabilities": [["gpu", "compute", "utility"]], "DeviceIDs": list(gpu_uuids)}
        case "cdi":
            wanted = {"DeviceIDs": [f"nvidia.com/gpu={uuid}" for uuid in gpu_uuids]}
        case _:
            assert_never(driver)
    return [{"Driver": driver, **wanted}]


def _labels_of(launch: LaunchSpec) -> dict[str, str]:
    """All are always set: an image may carry labels of its own, which must not speak for us."""
    return {
        **launch.labels,
        LABEL_NAME: launch.name,
        LABEL_MAX_DURATION: str(launch.max_duration_ms),
        LABEL_DISK: str(launch.limits.disk_bytes),
        LABEL_LOG: str(launch.limits.log_bytes),
    }


def _body(node: NodeSettings, role: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "Labels": {**labels, LABEL_NODE: node.node_label, LABEL_ROLE: role},
        "Hostname": HOSTNAME,
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},  # an image's health check would run code that nobody asked for
        "Tty": False,
        "OpenStdin": False,
    }


def _hardened(node: NodeSettings, *, memory_bytes: int, pids: int, largest_file_bytes: int) -> dict[str, Any]:
    return {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "Privileged": False,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={json.dumps(node.seccomp)}"],
        "Dns": ["127.0.0.1"],  # otherwise the engine copies the host's resolver and search domains into the container
        "DnsSearch": ["."],
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "Memory": memory_bytes,
        "MemorySwap": memory_bytes,  # equal: no swap
        "PidsLimit": pids,
        "OomScoreAdj": 500,  # when the host itself runs short, a job goes first
        "Ulimits": [
            {"Name": "nofile", "Soft": _OPEN_FILES, "Hard": _OPEN_FILES},
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "fsize", "Soft": largest_file_bytes, "Hard": largest_file_bytes},
        ],
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
    }


def _environment(launch: LaunchSpec, image: RunnableImage, node: NodeSettings) -> dict[str, str]:
    # A host whose default runtime is nvidia's gives out every GPU by this variable alone, so it is never left to a job.
    gpus = ",".join(launch.gpu_uuids) if launch.gpu_uuids and node.gpu_driver == "nvidia" else "void"
    return {"HOME": "/tmp", "LANG": "C.UTF-8", **image.env, **launch.env, "NVIDIA_VISIBLE_DEVICES": gpus}  # noqa: S108  # inside the container


def _bind(mount: Mount) -> dict[str, Any]:
    # Not recursive: a read-only bind does not make what is mounted below it read-only.
    return {
        "Type": "bind",
        "Source": str(mount.source),
        "Target": mount.target,
        "ReadOnly": not mount.writable,
        "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
    }


def _tmpfs(size_bytes: int) -> str:
    return f"rw,nosuid,nodev,exec,size={size_bytes},mode=1777"  # exec: compilers of kernels write and load code here


def _bounded_log(log_bytes: int) -> dict[str, Any]:
    # "local" keeps bytes as they are; "json-file" keeps text and replaces whatever is no UTF-8.
    size_bytes = max(log_bytes // _LOG_FILES, _MIN_LOG_FILE_BYTES)
    return {
        "Type": "local",
        "Config": {"max-size": str(size_bytes), "max-file": str(_LOG_FILES), "compress": "false"},
    }
