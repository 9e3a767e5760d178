"""What the probes run inside a container: tries each thing that must be refused, exactly as a hostile job would.

Standard library only, since it runs on any Python 3.10+ in any image; the agent passes this file's text to `python -c`. Prints one JSON
object: for each probe `null` when everything was refused as it must be, otherwise what was not.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import socket
import stat
import sys
import time

METADATA_ADDRESS = ("169.254.169.254", 80)  # never reached: without a route nothing is sent, and a route is a failure
AF_VSOCK, CLONE_NEWUSER, CLONE_NEWNET = 40, 0x10000000, 0x40000000
# System call numbers: x86-64, and the table that newer architectures (aarch64) share.
CALLS = {
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "mount": (165, 40),
    "open_tree": (428, 428),
    "pivot_root": (155, 41),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
}
PIECE = bytes(1 << 20)
SEEN_BY_THE_ENGINE_S = 0.5
PR_GET_NO_NEW_PRIVS = 39
OWN_ROOT_CAPABILITIES = 0x4FB  # over its own files, processes, ids and low ports


def inspect(host_port: int, agent_start_time: str) -> dict[str, str | None]:
    return {
        "no-network": _network(host_port),
        "no-new-privileges": _privileges(),
        "not-host-root": _host_root(),
        "seccomp": _seccomp(),
        "no-mount": _all_refused("mount", "open_tree", "pivot_root"),
        "no-namespaces": _namespaces(),
        "no-raw-sockets": _sockets(),
        "no-io-uring": _all_refused("io_uring_setup"),
        "no-keyrings": _all_refused("keyctl", "add_key"),
        "no-tracing": _all_refused("ptrace", "process_vm_readv", "perf_event_open", "bpf", "userfaultfd"),
        "no-kernel-loading": _all_refused("kexec_load", "init_module"),
        "proc-and-sys-read-only": _kernel_files(),
        "root-read-only": _root(),
        "own-processes-only": _processes(agent_start_time),
        "no-host-files": _host_files(),
    }


def inspect_own_root(host_port: int, agent_start_time: str, limit_bytes: int) -> str | None:
    """As root of a user namespace, with a root directory of its own: the first thing that was not refused, or not given."""
    walls = inspect(host_port, agent_start_time)
    given = (
        "no-new-privileges",
        "root-read-only",
        "no-host-files",
    )  # here there are some, and files of the container's own
    found = [f"{name}: {reason}" for name, reason in walls.items() if reason is not None and name not in given]
    found += [reason for reason in (_few_privileges(), _devices(), _kernel_memory()) if reason is not None]
    if not found and (reason := fill("/", limit_bytes)) is not None:
        found.append(reason)
    return "; ".join(found) or None


def fill(directory: str, limit_bytes: int) -> str | None:
    """Writes files of 1 MiB until that fails; says so when it does not in time."""
    written = 0
    try:
        while written <= 2 * limit_bytes:
            path = f"{directory}/fill-{written}"
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
            try:
                written += os.write(descriptor, PIECE)
            finally:
                os.close(descriptor)
    except OSError as error:
        wanted = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and written <= limit_bytes
        return None if wanted else f"{written} bytes in {directory}, then {error.strerror}"
    return f"{written} bytes fit into {directory}, the limit is {limit_bytes}"


def fork_bomb(limit: int) -> str | None:
    """Forks until that fails; children wait and end with this process."""
    made = 0
    while made <= 2 * limit:
        try:
            if os.fork() == 0:
                time.sleep(30)
                os._exit(0)
        except OSError as error:
            return None if error.errno == errno.EAGAIN and made <= limit else f"{made} forks, then {error.strerror}"
        made += 1
    return f"{made} forks, the limit is {limit}"


def memory_hog(limit_bytes: int) -> str:
    """Never returns where the limit works."""
    # An engine notes why it lost a container only from when it has noted its start: one that is killed in its first moment has no reason.
    time.sleep(SEEN_BY_THE_ENGINE_S)
    kept = [bytearray(b"x") * len(PIECE) for _ in range(4 * limit_bytes // len(PIECE))]
    return f"{len(kept)} MiB allocated, the limit is {limit_bytes} bytes"


def disk_hog(directory: str, limit_bytes: int) -> str:
    """One file without end. Returns where the limit works only by ending the job."""
    written = 0
    with open(f"{directory}/hog", "wb", buffering=0) as file:  # noqa: PTH123  as a job would
        while written <= 4 * limit_bytes:
            written += file.write(PIECE)
    return f"{written} bytes written, the limit is {limit_bytes}"


def _network(host_port: int) -> str | None:
    with open("/proc/net/dev") as file:  # noqa: PTH123
        interfaces = [line.partition(":")[0].strip() for line in file if ":" in line]
    if interfaces != ["lo"]:
        return f"interfaces {interfaces}"
    no_way = (errno.ENETUNREACH, errno.EHOSTUNREACH)  # Linux, gVisor
    for address, wanted in ((("127.0.0.1", host_port), (errno.ECONNREFUSED,)), (METADATA_ADDRESS, no_way)):
        with socket.socket() as connection:
            connection.settimeout(1)
            found = connection.connect_ex(address)
        if found not in wanted:
            return f"connecting to {address[0]}: {_error(found)}"
    return None


def egress(proxy_port: int, host_port: int) -> str | None:
    """The proxy answers, and refuses the host's own loopback; around it there is nothing."""
    if (reason := _network(host_port)) is not None:
        return reason
    with socket.socket() as connection:
        connection.settimeout(5)
        if found := connection.connect_ex(("127.0.0.1", proxy_port)):
            return f"the proxy: {_error(found)}"
        connection.sendall(f"CONNECT 127.0.0.1:{host_port} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        answer = connection.recv(4096).decode(errors="replace").partition("\r\n")[0]
    return None if answer.startswith("HTTP/1.1 403 ") else f"the proxy lets a job reach this host: {answer!r}"


def _privileges() -> str | None:
    status = _status()
    wrong = [
        f"{name} {status[name]}"
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        if int(status.get(name, "0"), 16)  # gVisor knows no ambient ones
    ]
    if ctypes.CDLL(None).prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1:
        wrong.append("new privileges are possible")
    return ", ".join(wrong) or None


def _few_privileges() -> str | None:
    status = _status()
    wrong = [
        f"{name} {status[name]}"
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        if int(status.get(name, "0"), 16) & ~OWN_ROOT_CAPABILITIES
    ]
    if ctypes.CDLL(None).prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1:
        wrong.append("new privileges are possible")
    if os.getuid() != 0:
        wrong.append(f"it is user {os.getuid()} and not root")
    return ", ".join(wrong) or None


def _devices() -> str | None:
    """Made by root, a device would be the host's own."""
    for kind, number in ((stat.S_IFBLK, os.makedev(7, 0)), (stat.S_IFCHR, os.makedev(1, 1))):
        try:
            os.mknod("/torg-probe-device", kind | 0o600, number)
        except OSError as error:
            if error.errno == errno.EPERM:
                continue
            return f"mknod: {_error(error.errno or 0)}"
        return "a device file was made"
    return None


def _kernel_memory() -> str | None:
    return _first_readable("/proc/kcore", "/dev/mem", "/dev/kmsg", "/proc/kmsg")


def _host_root() -> str | None:
    """A setting that makes the host run a file as root. Which user the host sees, the agent reads off a file made here:
    from inside, nested user namespaces show only the next one's view."""
    with open("/scratch/owner", "w"):  # noqa: PTH123
        pass
    return _writable("/proc/sys/kernel/core_pattern")


def _seccomp() -> str | None:
    mode = _status()["Seccomp"]
    return None if mode == "2" else f"mode {mode}"


def _namespaces() -> str | None:
    library = ctypes.CDLL(None, use_errno=True)
    for flag in (CLONE_NEWUSER, CLONE_NEWUSER | CLONE_NEWNET):
        if library.unshare(flag) == 0 or ctypes.get_errno() != errno.EPERM:
            return f"unshare({flag:#x}): {_error(ctypes.get_errno())}"
    return None


def _sockets() -> str | None:
    kinds = [
        ("raw", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        ("packet", socket.AF_PACKET, socket.SOCK_RAW, 0),
        ("vsock", AF_VSOCK, socket.SOCK_STREAM, 0),
        ("alg", socket.AF_ALG, socket.SOCK_SEQPACKET, 0),
    ]
    for name, family, kind, protocol in kinds:
        try:
            socket.socket(family, kind, protocol).close()
            return f"a {name} socket was made"
        except OSError as error:
            if error.errno != errno.EPERM:
                return f"{name} socket: {_error(error.errno or 0)}"
    return None


def _kernel_files() -> str | None:
    files = ("/proc/sys/kernel/hostname", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger")
    directories = filter(os.path.isdir, ("/sys/kernel", "/sys/fs/cgroup", "/sys/power"))
    return next(filter(None, [*map(_writable, files), *map(_creatable, directories)]), None)


def _root() -> str | None:
    return next(filter(None, (_creatable(directory) for directory in ("/", "/usr", "/etc", "/dev"))), None)


def _processes(agent_start_time: str) -> str | None:
    pids = [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
                if file.read().rpartition(")")[2].split()[19] == agent_start_time:
                    return "the agent's process is visible"
        except OSError:
            continue
    return None if len(pids) <= 8 else f"{len(pids)} processes are visible"


def _host_files() -> str | None:
    return _first_readable("/proc/kcore", "/dev/mem", "/dev/kmsg", "/proc/1/root/etc/shadow", "/etc/shadow")


def _first_readable(*paths: str) -> str | None:
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            if os.read(descriptor, 1):
                return f"{path} is readable"
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return None


def _all_refused(*names: str) -> str | None:
    """Each call must answer EPERM whatever its arguments: so it is the filter that refuses, not the arguments."""
    library = ctypes.CDLL(None, use_errno=True)
    column = 0 if platform.machine() == "x86_64" else 1
    for name in names:
        if library.syscall(CALLS[name][column], 0, 0, 0, 0, 0, 0) != -1:
            return f"{name} was allowed"
        if ctypes.get_errno() != errno.EPERM:
            return f"{name}: {_error(ctypes.get_errno())}"
    return None


def _writable(path: str) -> str | None:
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError as error:
        allowed = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
        return None if allowed else f"{path}: {_error(error.errno or 0)}"
    return f"{path} opens for writing"


def _creatable(directory: str) -> str | None:
    try:
        os.close(os.open(f"{directory}/torg-probe", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except OSError as error:
        allowed = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)
        return None if allowed else f"{directory}: {_error(error.errno or 0)}"
    return f"a file can be made in {directory}"


def _status() -> dict[str, str]:
    with open("/proc/self/status") as file:  # noqa: PTH123
        return {name: text.strip() for name, _, text in (line.partition(":") for line in file)}


def _error(number: int) -> str:
    return errno.errorcode.get(number, str(number)) if number else "success"


def main(arguments: list[str]) -> None:
    findings: dict[str, str | None]
    match arguments:
        case ["inspect", host_port, agent_start_time, shm_bytes, tmp_bytes]:
            findings = inspect(int(host_port), agent_start_time)
            findings["shm-limit"] = fill("/dev/shm", int(shm_bytes))  # noqa: S108
            findings["tmp-limit"] = fill("/tmp", int(tmp_bytes))  # noqa: S108
        case ["forks", limit]:
            findings = {"pids-limit": fork_bomb(int(limit))}
        case ["memory", limit_bytes]:
            findings = {"memory-limit": memory_hog(int(limit_bytes))}
        case ["disk", directory, limit_bytes]:
            findings = {"disk-limit": disk_hog(directory, int(limit_bytes))}
        case ["kernel", host_release]:
            own = os.uname().release
            findings = {"own-kernel": None if own != host_release else f"the host's kernel answers: {own}"}
        case ["own-root", host_port, agent_start_time, limit_bytes]:
            reason = inspect_own_root(int(host_port), agent_start_time, int(limit_bytes))
            findings = {"own-root": reason}
        case ["egress", proxy_port, host_port]:
            findings = {"egress": egress(int(proxy_port), int(host_port))}
        case _:
            raise SystemExit("not a probe")
    sys.stdout.write(json.dumps(findings))


if __name__ == "__main__":
    main(sys.argv[1:])
