"""What a hardened container refuses, each attempt made from inside one and answered with its exact error."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.support.engine import docker_executor, launch, limits, run_to_end

pytestmark = [pytest.mark.engine, pytest.mark.root]

ATTEMPTS = r"""
import ctypes, errno, json, os, platform, resource, socket
libc = ctypes.CDLL(None, use_errno=True)
CALLS = {  # x86_64, aarch64
    "io_uring_setup": (425, 425), "keyctl": (250, 219), "userfaultfd": (323, 282), "perf_event_open": (298, 241), "bpf": (321, 280),
    "ptrace": (101, 117), "mount": (165, 40), "setns": (308, 268), "unshare": (272, 97), "open_by_handle_at": (304, 265),
    "process_vm_readv": (310, 270), "clone3": (435, 435), "reboot": (169, 142),
}
def syscall(name, *arguments):
    number = CALLS[name][platform.machine() == "aarch64"]
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), name)
def file(path, mode):
    with open(path, mode):
        pass
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
ATTEMPTS = {
    "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "vsock socket": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "connect off the host": lambda: socket.create_connection(("192.0.2.77", 80), 1),
    "connect to the metadata service": lambda: socket.create_connection(("169.254.169.254", 80), 1),
    "mknod": lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0)),
    "chroot": lambda: os.chroot("/tmp"),
    "become root": lambda: os.setuid(0),
    "negative nice": lambda: os.nice(-5),
    "real-time scheduling": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "write the root": lambda: file("/escape", "w"),
    "write /usr": lambda: file("/usr/escape", "w"),
    "write the Python environment": lambda: file("/opt/venv/escape", "w"),
    "write a kernel setting": lambda: file("/proc/sys/kernel/core_pattern", "w"),
    "read kernel memory": lambda: file("/proc/kcore", "r"),
    "read the kernel log": lambda: file("/dev/kmsg", "r"),
    "read the host's disk": lambda: file("/dev/vda", "r"),
    "read the host's passwords": lambda: file("/etc/shadow", "r"),
    "kill the alarm": lambda: os.kill(1, 9),
    "read the alarm's memory": lambda: file("/proc/1/mem", "r"),
    "change a cgroup": lambda: file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "w"),
    "raise the open files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (10**6, 10**6)),
    "new user namespace": lambda: syscall("unshare", CLONE_NEWUSER),
    "new network namespace": lambda: syscall("unshare", CLONE_NEWNET),
    "ptrace": lambda: syscall("ptrace", 16, 1, 0, 0),
    **{name: (lambda name=name: syscall(name, 0, 0, 0, 0, 0)) for name in (
        "io_uring_setup", "keyctl", "userfaultfd", "perf_event_open", "bpf", "mount", "setns", "open_by_handle_at",
        "process_vm_readv", "clone3", "reboot")},
}
answers = {}
for name, attempt in ATTEMPTS.items():
    try:
        attempt()
        answers[name] = "allowed"
    except OSError as error:
        answers[name] = errno.errorcode.get(error.errno, str(error))
    except ValueError as error:
        answers[name] = str(error)
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines())
answers["state"] = {name: status[name].strip() for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Groups")}
answers["state"]["uid"] = os.getuid()
answers["state"]["interfaces"] = [name for _, name in socket.if_nameindex()]
answers["state"]["foreign processes"] = sorted(
    open(f"/proc/{pid}/cmdline").read().split("\0")[0] for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid())
print(json.dumps(answers))
"""

EXPECTED = {
    "raw socket": "EPERM",
    "packet socket": "EPERM",
    "vsock socket": "EPERM",
    "connect off the host": "ENETUNREACH",
    "connect to the metadata service": "ENETUNREACH",
    "mknod": "EPERM",
    "chroot": "EPERM",
    "become root": "EPERM",
    "negative nice": "EPERM",
    "real-time scheduling": "EPERM",
    "write the root": "EROFS",
    "write /usr": "EROFS",
    "write the Python environment": "EROFS",
    "write a kernel setting": "EROFS",
    "read the kernel log": "ENOENT",
    "read the host's disk": "ENOENT",
    "read the host's passwords": "ENOENT",
    "kill the alarm": "EPERM",
    "read the alarm's memory": "EACCES",
    "raise the open files": "not allowed to raise maximum limit",
    "new user namespace": "EPERM",
    "new network namespace": "EPERM",
    "ptrace": "EPERM",
    "io_uring_setup": "EPERM",
    "keyctl": "EPERM",
    "userfaultfd": "EPERM",
    "perf_event_open": "EPERM",
    "bpf": "EPERM",
    "mount": "EPERM",
    "setns": "EPERM",
    "open_by_handle_at": "EPERM",
    "process_vm_readv": "EPERM",
    "clone3": "ENOSYS",
    "reboot": "EPERM",
}


@pytest.fixture(scope="module")
def answers(engine_socket: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    async def ask() -> dict[str, object]:
        async with docker_executor(engine_socket, tmp_path_factory.mktemp("state")) as executor:
            outcome = await run_to_end(executor, launch("hardening", ["python", "-c", ATTEMPTS]))
        assert outcome.exit.code == 0, outcome.stderr
        found: dict[str, object] = json.loads(outcome.stdout)
        return found

    return asyncio.run(ask())


@pytest.mark.parametrize("attempt", EXPECTED)
def test_an_attempt_from_inside_is_refused(answers: dict[str, object], attempt: str) -> None:
    assert answers[attempt] == EXPECTED[attempt]


def test_what_only_some_kernels_have_is_masked_there(answers: dict[str, object]) -> None:
    assert answers["change a cgroup"] in {"EROFS", "ENOENT"}  # cgroup v2 has no such file
    assert answers["read kernel memory"] in {"EACCES", "ENOENT"}  # a kernel may be built without


def test_the_process_has_no_privileges_and_sees_nobody(answers: dict[str, object]) -> None:
    none = "0000000000000000"
    assert answers["state"] == {
        "CapEff": none,
        "CapBnd": none,
        "NoNewPrivs": "1",
        "Seccomp": "2",
        "Groups": "65534",
        "uid": 65534,
        "interfaces": ["lo"],
        "foreign processes": ["/sbin/docker-init", "/usr/bin/sleep"],
    }


FORKS = """
import os, signal, sys
children = []
try:
    while True:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)
except OSError as error:
    print(error.errno, len(children))
"""


async def test_forks_stop_at_the_process_limit(engine_socket: Path, tmp_path: Path) -> None:
    async with docker_executor(engine_socket, tmp_path) as executor:
        outcome = await run_to_end(executor, launch("forks", ["python", "-c", FORKS], limits=limits(pids=32)))

    assert outcome.stdout == "11 31\n"  # EAGAIN; with itself 32


FILL = """
import os
for path in ("/tmp/first", "/tmp/second", "/dev/shm/full"):
    try:
        with open(path, "wb") as file:
            while True:
                file.write(bytes(1 << 16))
    except OSError as error:
        print(path, error.errno, os.path.getsize(path) >> 20)
"""


async def test_scratch_and_shared_memory_are_sized_and_so_is_every_file(engine_socket: Path, tmp_path: Path) -> None:
    async with docker_executor(engine_socket, tmp_path) as executor:
        small = limits(memory_bytes=64 << 20, disk_bytes=20 << 20, shm_bytes=8 << 20)
        outcome = await run_to_end(executor, launch("sized", ["python", "-c", FILL], limits=small))

    # EFBIG at the largest file allowed, ENOSPC in what is left of /tmp, ENOSPC in shared memory
    assert outcome.stdout == "/tmp/first 27 20\n/tmp/second 28 0\n/dev/shm/full 28 8\n"
