# The shim imports this, and pathlib alone would cost it 6 ms per job.
# ruff: noqa: PTH123
"""The shim's fork on its way to becoming bubblewrap: joins its control group, gets a private root, gives up root, execs."""

from __future__ import annotations

import os
import resource
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from torg_host.cgroups import Cgroup

OOM_SCORE = "500"  # when the whole host is short of memory, jobs go first


class Pipes:
    """The file descriptors between shim and container. `close_far_ends` after the fork."""

    def __init__(self) -> None:
        self.stdout, self.stdout_far = os.pipe()
        self.stderr, self.stderr_far = os.pipe()
        self.status, self.status_far = os.pipe()  # bubblewrap's JSON: child-pid, exit-code
        self.trouble, self.trouble_far = os.pipe()  # why exec was not reached; closes on exec
        self.go_far, self.go = os.pipe()  # bubblewrap waits for a byte before it executes the program, when told to
        for near in (self.stdout, self.stderr, self.status):
            os.set_blocking(near, False)

    def close_far_ends(self) -> None:
        for far in (self.stdout_far, self.stderr_far, self.status_far, self.trouble_far, self.go_far):
            os.close(far)


def spawn(plan: dict[str, Any], state_dir: str, pipes: Pipes, cgroup: Cgroup | None) -> int:
    """Pid of bubblewrap, which has been reached. Raises OSError with the reason otherwise."""
    pid = os.fork()
    if pid == 0:
        _become_bubblewrap(plan, state_dir, pipes, cgroup)
    pipes.close_far_ends()
    with open(pipes.trouble, "rb") as trouble:
        message = trouble.read().decode(errors="replace")
    if message:
        os.waitpid(pid, 0)
        raise OSError(0, message)
    return pid


def _become_bubblewrap(plan: dict[str, Any], state_dir: str, pipes: Pipes, cgroup: Cgroup | None) -> NoReturn:
    try:
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        seccomp = os.open(f"{state_dir}/seccomp.bpf", os.O_RDONLY)
        stdin = os.open(plan["stdin"], os.O_RDONLY)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(OOM_SCORE)
        if cgroup is not None:
            cgroup.join()
        if plan["cpus"]:
            os.sched_setaffinity(0, plan["cpus"])
        user_namespace = _make_user_namespace(plan)
        _enter_private_root(plan, state_dir)
        for name, limit in plan["rlimits"].items():
            _lower_limit(getattr(resource, name), limit)
        if plan["uid"] is not None:
            for pipe in (pipes.stdout_far, pipes.stderr_far):  # so that /dev/stdout can be opened by its name
                os.fchown(pipe, plan["uid"], plan["gid"])
            os.setgroups([])
            os.setresgid(plan["gid"], plan["gid"], plan["gid"])
            os.setresuid(plan["uid"], plan["uid"], plan["uid"])
        os.umask(0o022)
        options = ["--seccomp", str(seccomp), "--json-status-fd", str(pipes.status_far), *plan["options"]]
        for descriptor in user_namespace:
            options = ["--userns", str(descriptor), *options]
        if plan["listener_port"]:
            options += ["--block-fd", str(pipes.go_far)]
            os.set_inheritable(pipes.go_far, True)
        options_file = _options_in_memory(options)
        for descriptor in (seccomp, pipes.status_far, options_file, *user_namespace):
            os.set_inheritable(descriptor, True)
        for source, target in ((stdin, 0), (pipes.stdout_far, 1), (pipes.stderr_far, 2)):
            os.dup2(source, target)
        os.execve(plan["bwrap"], ["bwrap", "--args", str(options_file), "--", *plan["command"]], {})  # noqa: S606  no shell is wanted
    except BaseException as error:  # noqa: BLE001  there is nobody above: this is a forked child
        os.write(pipes.trouble_far, f"{type(error).__name__}: {error}".encode()[:4000])
    finally:
        os._exit(127)


def _enter_private_root(plan: dict[str, Any], state_dir: str) -> None:
    if (root := plan["private_root"]) is None:
        return
    from torg_host.sandbox import private_root

    private_root.enter(f"{state_dir}/root", root["binds"], root["links"], root["layers"])


def _make_user_namespace(plan: dict[str, Any]) -> list[int]:
    """Its descriptor, of a container that has a root of its own; otherwise bubblewrap makes one, of a single id."""
    if plan["user_namespace"] is None:
        return []
    from torg_host.sandbox import user_namespace

    first_host_id, ids = plan["user_namespace"]
    return [user_namespace.make(first_host_id, ids, plan["uid"], plan["gid"])]


def _lower_limit(which: int, limit: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(which, (limit, limit))


def _options_in_memory(options: list[str]) -> int:
    """Options by file: they hold the job's environment, which must not show in the host's process list."""
    descriptor = os.memfd_create("options")
    data = b"".join(option.encode(errors="surrogateescape") + b"\0" for option in options)
    while data:
        data = data[os.write(descriptor, data) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
