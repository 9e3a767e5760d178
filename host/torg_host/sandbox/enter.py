# Started once per command: only what it needs is imported.
# ruff: noqa: PTH123
"""A further program in a running container: `python -m torg_host.sandbox.enter STATE_DIR PID CONTROL_FD`.

The program gets what the container's own has: namespaces, control group, user, no capabilities, no new privileges, seccomp filter,
limits, processors, environment. CONTROL_FD is a Unix stream socket: one JSON line of the request comes in (`command`, `env`, `terminal`: rows and
columns, or null), and of a terminal, which is one of the container's own, the master's descriptor goes out. Standard streams are the
program's; SIGINT, SIGTERM and SIGHUP go to its session; its exit code becomes ours, as a shell would say it. It dies with whoever started us.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
import termios
import warnings  # noqa: F401  what searches PATH imports it, when only the container's files can be seen

from torg_host.cgroups import Cgroup, detect
from torg_host.sandbox.child import OOM_SCORE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

NS_GET_USERNS = 0xB701  # the user namespace that owns this namespace
TIOCSPTLCK, TIOCGPTPEER = 0x40045431, 0x5441  # unlock a terminal; get it by its master, whatever the file system shows
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 22, 24, 38, 47
PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL, SECCOMP_MODE_FILTER = 2, 4, 2
LAST_CAPABILITY = 63  # more than any kernel has; unknown ones are refused, which is as good
NAMESPACES = ("net", "ipc", "uts", "cgroup", "mnt")
MAX_REQUEST_BYTES = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> None:
    state_dir, pid, control = arguments[0], int(arguments[1]), socket.socket(fileno=int(arguments[2]))
    control.set_inheritable(False)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    request = _read_request(control)
    with open(f"{state_dir}/plan.json") as file:
        plan = json.load(file)
    with open(f"{state_dir}/seccomp.bpf", "rb") as file:
        program = file.read()
    place = _Place(pid)
    if os.geteuid() != 0:
        _setns(place.owner)  # where a plain user may enter what bubblewrap made for it
    _setns(place.namespaces["pid"])
    ready, ready_far = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready_far)
        _become_program(request, plan, program, place, control, ready)
    os.close(ready)
    try:
        _confine(child, plan)
    except OSError as error:  # it never runs outside of the limits
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        sys.exit(f"torg: {error}")
    os.write(ready_far, b"1")
    os.close(ready_far)
    _forward_signals(child)
    control.close()
    _let_go_of_streams()
    _, status = os.waitpid(child, 0)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


class _Place:
    """Open descriptors of everything that makes up the container, taken before anything is entered."""

    def __init__(self, pid: int) -> None:
        self.namespaces = {name: _open(f"/proc/{pid}/ns/{name}") for name in (*NAMESPACES, "pid", "user")}
        self.root = _open(f"/proc/{pid}/root")
        self.owner = fcntl.ioctl(self.namespaces["mnt"], NS_GET_USERNS)


def _read_request(control: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n") and len(data) < MAX_REQUEST_BYTES:
        if not (piece := control.recv(65536)):
            break
        data += piece
    request: dict[str, Any] = json.loads(data)
    return request


def _confine(child: int, plan: dict[str, Any]) -> None:
    """From outside, where the files are that the container does not see."""
    if plan["cgroup"] is not None:
        hierarchy = detect()
        if hierarchy is None:
            raise OSError(0, "the control groups that the plan names are not there")
        Cgroup(hierarchy, plan["cgroup"]["name"]).add(child)
    with open(f"/proc/{child}/oom_score_adj", "w") as file:
        file.write(OOM_SCORE)
    if plan["cpus"]:
        os.sched_setaffinity(child, plan["cpus"])


def _become_program(
    request: dict[str, Any], plan: dict[str, Any], program: bytes, place: _Place, control: socket.socket, ready: int
) -> NoReturn:
    code = 126
    try:
        if os.read(ready, 1) != b"1":
            os._exit(126)
        os.setsid()
        _enter(plan, place)
        _give_up_privileges(plan["capabilities"])
        if request["terminal"] is not None:
            _take_terminal(control, *request["terminal"])
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        environment, workdir = _surroundings(plan["options"])
        os.chdir(workdir)
        os.umask(0o022)
        _filter_system_calls(program)
        environment.update(request["env"])
        os.execvpe(request["command"][0], request["command"], environment)  # noqa: S606  no shell is wanted
    except FileNotFoundError as error:
        code = 127
        os.write(2, f"torg: {request['command'][0]}: {error.strerror}\n".encode(errors="replace"))
    except BaseException as error:  # noqa: BLE001  there is nobody above: this is a forked child
        os.write(2, f"torg: {request['command'][0]}: {error}\n".encode(errors="replace"))
    finally:
        os._exit(code)


def _enter(plan: dict[str, Any], place: _Place) -> None:
    for name, limit in plan["rlimits"].items():
        which = getattr(resource, name)
        _, hard = resource.getrlimit(which)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(which, (limit, limit))
    if plan["uid"] is not None:
        os.setgroups([])
    for name in NAMESPACES:
        _setns(place.namespaces[name])
    os.fchdir(place.root)
    os.chroot(".")
    _setns(place.namespaces["user"])
    if plan["inside"] is not None:
        uid, gid = plan["inside"]
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


def _give_up_privileges(kept: list[int]) -> None:
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in set(range(LAST_CAPABILITY + 1)) - set(kept):
        _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("=Ii", 0x20080522, 0)  # version 3, this thread
    low = sum(1 << capability for capability in kept)
    sets = struct.pack("=6I", low, low, low, 0, 0, 0)  # effective, permitted, inheritable; then those above 31
    if _libc.capset(ctypes.create_string_buffer(header), ctypes.create_string_buffer(sets)):
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")
    for capability in kept:
        _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0)
    if _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "new privileges cannot be ruled out")


def _take_terminal(control: socket.socket, rows: int, columns: int) -> None:
    """Of the container's own terminals, so that it has a name in there."""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    terminal = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    socket.send_fds(control, [b"t"], [master])
    os.close(master)
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for descriptor in (0, 1, 2):
        os.dup2(terminal, descriptor)
    os.close(terminal)


def _surroundings(options: list[str]) -> tuple[dict[str, str], str]:
    """The environment and the working directory that bubblewrap was told."""
    environment, workdir = {"PATH": os.defpath}, "/"
    for place, option in enumerate(options):
        if option == "--setenv":
            environment[options[place + 1]] = options[place + 2]
        elif option == "--chdir":
            workdir = options[place + 1]
    return environment, workdir


def _filter_system_calls(program: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    code = ctypes.create_string_buffer(program, len(program))
    whole = Program(len(program) // 8, ctypes.addressof(code))
    if _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(whole), 0, 0):
        raise OSError(ctypes.get_errno(), "the seccomp filter was not taken")


def _forward_signals(child: int) -> None:
    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, forward)


def _let_go_of_streams() -> None:
    """They are the program's alone: who reads them sees their end when the program's copies close."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, 0):
        raise OSError(ctypes.get_errno(), f"the container cannot be entered: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(sys.argv[1:])
