"""What the engine is asked for, and how its answers are read. Pure; the hardening itself is proven from inside elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine import MIB, launch, limits
from torg_node.executors.docker_archive import File, Folder, ImageConfig, Link, image_archive
from torg_node.executors.docker_cgroup import memory_group
from torg_node.executors.docker_exit import Ending, Witness, engine_time_ms, exit_of, has_ended
from torg_node.executors.docker_gpu import visible_gpus
from torg_node.executors.docker_request import (
    ALARM_ALLOWANCE_MS,
    NodeSettings,
    RunnableImage,
    alarm_body,
    device_requests,
    job_body,
    spare_alarm_body,
)
from torg_node.executors.port import ExitReason, Mount

SECCOMP = {"defaultAction": "SCMP_ACT_ERRNO"}
NODE = NodeSettings("node-a", SECCOMP, "nvidia")
IMAGE = RunnableImage("sha256:abc", volumes=("/data",), env={"PATH": "/opt/venv/bin", "HOME": "/root"})
GPUS = ("GPU-1", "GPU-2")
CUT_INTO_SLICES = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)
  MIG 1g.5gb      Device  0: (UUID: MIG-a)
  MIG 1g.5gb      Device  1: (UUID: MIG-b)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-2)
"""


def test_the_hardened_body_as_a_whole(tmp_path: Path) -> None:
    spec = launch("job-1", ["train", "--fast"], mounts=(Mount(tmp_path, "/workspace", writable=True),), limits=limits())

    host = job_body(spec, IMAGE, NODE, "alarm-id")["HostConfig"]

    assert host == {
        "NetworkMode": "none",
        "Dns": ["127.0.0.1"],
        "DnsSearch": ["."],
        "ReadonlyRootfs": True,
        "Privileged": False,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={json.dumps(SECCOMP)}"],
        "IpcMode": "private",
        "PidMode": "container:alarm-id",
        "CgroupnsMode": "private",
        "Memory": 256 * MIB,
        "MemorySwap": 256 * MIB,
        "NanoCpus": 1_000_000_000,
        "CpusetCpus": "",
        "PidsLimit": 512,
        "ShmSize": 64 * MIB,
        "OomScoreAdj": 500,
        "Ulimits": [
            {"Name": "nofile", "Soft": 8192, "Hard": 8192},
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "fsize", "Soft": 64 * MIB, "Hard": 64 * MIB},
        ],
        "Tmpfs": {
            "/tmp": f"rw,nosuid,nodev,exec,size={64 * MIB},mode=1777",
            "/data": f"rw,nosuid,nodev,exec,size={64 * MIB},mode=1777",
        },
        "Mounts": [
            {
                "Type": "bind",
                "Source": str(tmp_path),
                "Target": "/workspace",
                "ReadOnly": False,
                "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
            }
        ],
        "LogConfig": {
            "Type": "local",
            "Config": {"max-size": str(8 * MIB), "max-file": "2", "compress": "false"},
        },
        "DeviceRequests": [],
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
    }


def test_the_job_runs_its_own_command_as_nobody_and_the_node_has_the_last_word_on_labels_and_gpus() -> None:
    labels = {"torg.node": "somebody-else", "torg.lease": "lease-9"}
    env = {"HOME": "/workspace", "NVIDIA_VISIBLE_DEVICES": "all"}

    body = job_body(launch("job-1", ["train"], env=env, labels=labels), IMAGE, NODE, "alarm-id")

    assert (body["Entrypoint"], body["Cmd"], body["User"]) == (["train"], [], "65534:65534")
    assert body["Healthcheck"] == {"Test": ["NONE"]}
    assert body["Labels"]["torg.node"] == "node-a"
    assert body["Labels"]["torg.lease"] == "lease-9"
    assert set(body["Env"]) == {"HOME=/workspace", "LANG=C.UTF-8", "PATH=/opt/venv/bin", "NVIDIA_VISIBLE_DEVICES=void"}


@pytest.mark.parametrize(
    ("command", "args", "entrypoint_and_cmd"),
    [
        ((), (), (["/entry.sh"], ["serve"])),
        ((), ("--port", "1"), (["/entry.sh"], ["--port", "1"])),
        (("sh", "-c"), ("true",), (["sh", "-c"], ["true"])),
        (("sh",), (), (["sh"], [])),
    ],
    ids=["image's own", "arguments for its entrypoint", "both given", "command alone"],
)
def test_what_runs_is_the_images_own_unless_the_job_says_otherwise(
    command: tuple[str, ...], args: tuple[str, ...], entrypoint_and_cmd: tuple[list[str], list[str]]
) -> None:
    image = RunnableImage("sha256:1", entrypoint=("/entry.sh",), cmd=("serve",), workdir="/srv")

    body = job_body(launch("job-1", command, args=args, workdir=""), image, NODE, "alarm-id")

    assert (body["Entrypoint"], body["Cmd"]) == entrypoint_and_cmd
    assert body["WorkingDir"] == "/srv"


def test_a_gpu_job_asks_for_exactly_its_gpus() -> None:
    body = job_body(launch("job-1", ["train"], gpu_uuids=GPUS), IMAGE, NODE, "alarm-id")

    assert body["HostConfig"]["DeviceRequests"] == [
        {"Driver": "nvidia", "DeviceIDs": ["GPU-1", "GPU-2"], "Capabilities": [["gpu", "compute", "utility"]]}
    ]
    assert "NVIDIA_VISIBLE_DEVICES=GPU-1,GPU-2" in body["Env"]


def test_an_engine_with_cdi_is_asked_by_device_name() -> None:
    assert device_requests(GPUS, "cdi") == [
        {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2"]}
    ]
    assert device_requests((), "cdi") == []


def test_gvisor_gets_an_init_of_its_own_and_room_for_its_kernels_threads() -> None:
    node = NodeSettings("node-a", SECCOMP, "nvidia", runtime="runsc")
    host = job_body(launch("job-1", ["train"], limits=limits(pids=64)), IMAGE, node, None)["HostConfig"]

    assert (host["Runtime"], host["Init"], host["PidsLimit"]) == ("runsc", True, 64 + 512)
    assert "PidMode" not in host


def test_the_alarm_sleeps_a_little_longer_than_the_job_may_run_and_is_hardened_too() -> None:
    body = alarm_body(launch("job-1", ["train"], max_duration_ms=90_500), RunnableImage("sha256:abc"), NODE)

    assert body["Entrypoint"] == ["/usr/bin/sleep", f"{90.5 + ALARM_ALLOWANCE_MS / 1000:.3f}"]
    assert body["User"] == "65533:65533"
    assert body["HostConfig"]["Init"] is True
    assert body["HostConfig"]["CapDrop"] == ["ALL"]
    assert body["HostConfig"]["Memory"] == 32 * MIB


def test_a_spare_alarm_is_the_same_but_for_what_it_waits_for() -> None:
    sleeper = RunnableImage("sha256:abc")
    body, usual = spare_alarm_body(sleeper, NODE), alarm_body(launch("job-1", ["train"]), sleeper, NODE)

    assert body["HostConfig"] == usual["HostConfig"]
    assert body["User"] == usual["User"]
    assert (body["OpenStdin"], body["StdinOnce"]) == (True, True), "it ends when its agent is gone"
    assert (usual["OpenStdin"], usual["Labels"]["torg.role"], body["Labels"]["torg.role"]) == (False, "alarm", "alarm")


@pytest.mark.parametrize(
    ("listing", "visible"),
    [
        ("GPU 0: NVIDIA H100 (UUID: GPU-1)\nGPU 1: NVIDIA H100 (UUID: GPU-2)\n", {"GPU-1", "GPU-2"}),
        (CUT_INTO_SLICES, {"MIG-a", "MIG-b", "GPU-2"}),
        ("No devices found.\n", set()),
        ("", set()),
    ],
)
def test_the_usable_devices_in_a_listing(listing: str, visible: set[str]) -> None:
    assert visible_gpus(listing) == visible


def container(
    code: int, *, status: str = "exited", oom: bool = False, error: str = "", seconds: int = 10
) -> dict[str, Any]:
    return {
        "Created": "2026-03-01T09:59:59.5Z",
        "Config": {"Entrypoint": ["train"]},
        "State": {
            "Status": status,
            "ExitCode": code,
            "OOMKilled": oom,
            "Error": error,
            "StartedAt": "2026-03-01T10:00:00.123456789Z",
            "FinishedAt": f"2026-03-01T10:00:{seconds:02d}.123456789Z",
        },
    }


@pytest.mark.parametrize(
    ("ended", "witness", "reason"),
    [
        (container(0), Witness(60_000), ExitReason.EXITED),
        (container(1), Witness(60_000), ExitReason.EXITED),
        (container(137), Witness(60_000), ExitReason.EXITED),
        (container(137), Witness(60_000, killed_by_others=True), ExitReason.KILLED),
        (container(137, oom=True), Witness(60_000), ExitReason.OOM),
        (container(1), Witness(60_000, oom_kills=1), ExitReason.OOM),
        (container(0, oom=True), Witness(60_000, oom_kills=1), ExitReason.EXITED),
        (container(137), Witness(10_000), ExitReason.MAX_DURATION),
        (container(0), Witness(10_000), ExitReason.EXITED),
        (container(0), Witness(60_000, ending=Ending(ExitReason.STOPPED)), ExitReason.STOPPED),
        (container(137, oom=True), Witness(60_000, ending=Ending(ExitReason.STOPPED)), ExitReason.STOPPED),
        (container(1), Witness(60_000, disk_full=True), ExitReason.DISK_FULL),
        (container(0), Witness(60_000, disk_full=True), ExitReason.EXITED),
    ],
)
def test_the_reason_for_an_end(ended: dict[str, Any], witness: Witness, reason: ExitReason) -> None:
    assert exit_of(ended, witness).reason is reason


def test_what_ends_at_once_does_not_end_before_it_starts() -> None:
    ended = container(0)
    ended["State"] |= {"StartedAt": "2026-01-01T00:00:01.007Z", "FinishedAt": "2026-01-01T00:00:01.003Z"}

    result = exit_of(ended, Witness(60_000))

    assert result.finished_at_ms == result.started_at_ms == engine_time_ms("2026-01-01T00:00:01.007Z")


def test_only_a_failure_that_names_the_jobs_command_is_the_jobs() -> None:
    jobs = container(
        127, status="created", error='runc create failed: exec: "train": executable file not found in $PATH'
    )
    hosts = container(
        127, status="created", error='runc create failed: exec: "/sbin/docker-init": no such file or directory'
    )

    assert has_ended(jobs)
    assert not has_ended(hosts)
    ended = exit_of(jobs, Witness(60_000))
    assert (ended.reason, ended.code) == (ExitReason.EXITED, 127)
    assert ended.started_at_ms == ended.finished_at_ms == 1772359199500


def test_the_engines_times_are_read_to_the_millisecond() -> None:
    assert engine_time_ms("2026-03-01T10:00:00.123456789Z") == 1772359200123
    assert engine_time_ms("0001-01-01T00:00:00Z") == 0


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("11:pids:/p/x\n10:memory:/docker/abc\n0::/\n", "docker/abc"),
        ("0::/system.slice/docker-abc.scope\n", "system.slice/docker-abc.scope"),
        ("4:cpu,memory:/a\n", "a"),
        ("", ""),
    ],
)
def test_the_memory_group_on_both_kinds_of_cgroups(text: str, group: str) -> None:
    assert memory_group(text) == group


def test_equal_images_are_equal_to_the_byte() -> None:
    entries = [Folder("bin"), File("bin/tool", b"#!/bin/sh\n", 0o755), Link("sh", "bin/tool")]
    first, second = (image_archive("a/b:1", entries, ImageConfig("amd64")) for _ in range(2))
    other = image_archive("a/b:1", entries, ImageConfig("arm64"))

    assert first == second
    assert other.image_id != first.image_id
