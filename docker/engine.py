#!/usr/bin/env python3
"""A private container engine: Debian's dockerd without systemd, without a bridge, with every file under one folder.

    python docker/engine.py start --state-dir DIR     prints the socket's path; installs docker.io when it is missing (and says so)
    python docker/engine.py stop  --state-dir DIR     ends it and leaves no process, mount, cgroup or file behind

Both are safe to repeat. The engine is told to leave the network alone (no bridge, no firewall rules, no IP forwarding): our jobs
have no network. Needs root. Standard library only.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
SOCKET_PATH_MAX = 107  # of a Unix socket's address
# What dockerd makes outside its folders; taken away again when it was not there before and nobody else put anything in.
STRAY_FILES = (Path("/etc/docker/key.json"),)
STRAY_FOLDERS = (
    Path("/etc/docker"),
    Path("/run/docker/plugins"),
    Path("/run/docker"),
    Path("/run/containerd/s"),
    Path("/run/containerd"),
)
CGROUP_ROOT = Path("/sys/fs/cgroup")
ENGINE_PROGRAMS = {
    "dockerd",
    "containerd",
    "containerd-shim-runc-v2",
    "containerd-shim",
    "docker-proxy",
    "runsc-sandbox",
}


class EngineFailed(Exception):
    """Says what failed and, where there is one, what the engine's log ends with."""


class PrivateEngine:
    """One engine, wholly described by its state folder: any process may stop what another started."""

    def __init__(self, state_dir: Path, *, live_restore: bool = False) -> None:
        """`live_restore`: containers outlive the engine's restarts."""
        self.state_dir = state_dir.resolve()
        self._live_restore = live_restore
        self.socket_path = self.state_dir / "docker.sock"
        self.pid_file = self.state_dir / "docker.pid"
        self.log_file = self.state_dir / "engine.log"
        self._config_file = self.state_dir / "daemon.json"
        self._strays_file = self.state_dir / "strays.json"
        # The daemons' TMPDIR, where they dump their stacks when they are slow to end. gVisor's sandboxes pass through it as nobody.
        self._dumps = Path("/tmp") / f"torg-engine-{hashlib.sha256(bytes(self.state_dir)).hexdigest()[:12]}"  # noqa: S108
        self._cgroup = "torg-engine-" + hashlib.sha256(str(self.state_dir).encode()).hexdigest()[:12]

    def start(self) -> Path:
        """Returns the socket's path once the engine answers. Raises EngineFailed."""
        if self.answers():
            return self.socket_path
        if os.geteuid() != 0:
            raise EngineFailed(
                "starting a private engine needs root; or name the socket of an engine that already runs"
            )
        if len(str(self.socket_path)) > SOCKET_PATH_MAX:
            raise EngineFailed(f"{self.socket_path} is too long for a socket's address; choose a shorter --state-dir")
        self.stop()
        if self.state_dir.exists() and any(self.state_dir.iterdir()):
            raise EngineFailed(f"{self.state_dir} holds something else; choose an empty or new --state-dir")
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        strays = [str(path) for path in (*STRAY_FILES, *STRAY_FOLDERS) if not path.exists()]
        self._strays_file.write_text(json.dumps(strays))
        self._config_file.write_text(json.dumps(self._config(), indent=2))
        return self._come_up()

    def start_again(self) -> Path:
        """After `end_daemon`, on what it left. Raises EngineFailed."""
        return self._come_up()

    def end_daemon(self, number: signal.Signals) -> None:
        """The engine alone, as an update or a crash ends it: what becomes of its containers is the engine's own business."""
        end_processes(self._daemon_pids(), number)
        # The containerd that it started dies with it, though not at once. The next dockerd would take a process that nobody has reaped
        # for one that still runs.
        containerd = str(self.state_dir / "exec" / "containerd" / "containerd.toml")
        end_processes(processes_naming(containerd), signal.SIGKILL)
        (self.state_dir / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)
        self.pid_file.unlink(missing_ok=True)

    def _come_up(self) -> Path:
        process = self._launch(dockerd_path())
        if not wait_until(lambda: self.answers() or process.poll() is not None, START_TIMEOUT_S) or not self.answers():
            log = "\n".join(self.log_file.read_text(errors="replace").splitlines()[-8:])
            self.stop()
            raise EngineFailed(f"dockerd did not come up within {START_TIMEOUT_S:.0f} s; its log ends:\n{log}")
        return self.socket_path

    def stop(self) -> None:
        """Ends the engine with all its containers and removes the state folder. No-op where no engine was started."""
        if not self._strays_file.exists():
            return
        if self.answers():
            self._remove_containers()
        end_processes(self._daemon_pids(), signal.SIGTERM)
        end_processes(processes_naming(f"{self.state_dir}/"), signal.SIGKILL)
        unmount_below(self.state_dir)
        remove_cgroups(self._cgroup)
        strays = json.loads(self._strays_file.read_text())
        shutil.rmtree(self.state_dir)
        shutil.rmtree(self._dumps, ignore_errors=True)
        remove_strays({Path(path) for path in strays})

    def answers(self) -> bool:
        try:
            return self.call("GET", "/_ping")[0] == http.HTTPStatus.OK
        except OSError:
            return False

    def call(self, method: str, path: str) -> tuple[int, bytes]:
        """One request to the engine's API. Raises OSError when nothing listens."""
        connection = http.client.HTTPConnection("engine", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(30)
            connection.sock.connect(str(self.socket_path))
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def _config(self) -> dict[str, object]:
        return {
            "data-root": str(self.state_dir / "data"),
            "exec-root": str(self.state_dir / "exec"),
            "pidfile": str(self.pid_file),
            "hosts": [f"unix://{self.socket_path}"],
            "cgroup-parent": f"/{self._cgroup}",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "bridge": "none",
            "iptables": False,
            "ip6tables": False,
            "ip-forward": False,
            "ip-masq": False,
            "no-new-privileges": True,
            "shutdown-timeout": 5,
            "live-restore": self._live_restore,
            "runtimes": _optional_runtimes(),
        }

    def _launch(self, dockerd: str) -> subprocess.Popen[bytes]:
        command = [dockerd, "--config-file", str(self._config_file)]
        self._dumps.mkdir(mode=0o711, exist_ok=True)
        environment = {**os.environ, "TMPDIR": str(self._dumps)}
        with self.log_file.open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env=environment,
            )

    def _remove_containers(self) -> None:
        _status, listing = self.call("GET", "/containers/json?all=true")
        for container in json.loads(listing):
            self.call("DELETE", f"/containers/{container['Id']}?force=true&v=true")

    def _daemon_pids(self) -> list[int]:
        """From the command line, not the pid file: a pid file may outlive its process and name a stranger."""
        return [pid for pid in processes_naming(str(self._config_file)) if pid != os.getpid()]


def dockerd_path() -> str:
    """Where dockerd is; installs Debian's package when it is nowhere."""
    search = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    found = shutil.which("dockerd", path=search)
    if found is None:
        say("no dockerd on this machine: installing Debian's docker.io (about 250 MB)")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (
            ["update", "-qq"],
            ["install", "-y", "-qq", "--no-install-recommends", "docker.io", "iptables"],
        ):
            done = subprocess.run(["apt-get", *arguments], env=environment, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise EngineFailed(f"apt-get {arguments[0]} failed:\n{done.stderr.strip()[-800:]}")
        found = shutil.which("dockerd", path=search)
    if found is None:
        raise EngineFailed("docker.io is installed but dockerd is not on PATH")
    return found


def _optional_runtimes() -> dict[str, object]:
    """gVisor, where it is installed; the ptrace platform needs no /dev/kvm."""
    runsc = shutil.which("runsc")
    return {"runsc": {"path": runsc, "runtimeArgs": ["--platform=ptrace", "--network=none"]}} if runsc else {}


def processes_naming(text: str) -> list[int]:
    """Processes of an engine that have `text` in an argument; this one and its parent left out."""
    mine = {os.getpid(), os.getppid()}
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) not in mine:
            try:
                arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            program = Path(arguments[0]).name
            if program in ENGINE_PROGRAMS and any(text in argument for argument in arguments):
                found.append(int(folder.name))
    return found


ENGINE_PROGRAMS = {
    "dockerd",
    "containerd",
    "containerd-shim-runc-v2",
    "containerd-shim",
    "docker-proxy",
    "runsc-sandbox",
}


def end_processes(pids: list[int], first: signal.Signals) -> None:
    """Sends `first`, waits, then kills; returns when all are gone (zombies count as gone)."""
    for pid in pids:
        _signal(pid, first)
    if not wait_until(lambda: not any(_alive(pid) for pid in pids), STOP_TIMEOUT_S):
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        wait_until(lambda: not any(_alive(pid) for pid in pids), STOP_TIMEOUT_S)


def unmount_below(folder: Path) -> None:
    """Deepest first, lazily: nothing there is worth keeping."""
    mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in sorted((path for path in mounts if path.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", target], check=False, capture_output=True)


def remove_cgroups(name: str) -> None:
    """Every cgroup of that name, with its children, in each hierarchy (v1 has many, v2 one)."""
    for top in (CGROUP_ROOT / name, *(folder / name for folder in CGROUP_ROOT.iterdir() if folder.is_dir())):
        if top.is_dir():
            for folder, _folders, _files in os.walk(top, topdown=False):
                wait_until(functools.partial(_removed, Path(folder)), 5.0)


def remove_strays(paths: set[Path]) -> None:
    for path in STRAY_FILES:
        if path in paths:
            path.unlink(missing_ok=True)
    for path in STRAY_FOLDERS:
        if path in paths and path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def say(text: str) -> None:
    sys.stderr.write(f"engine: {text}\n")
    sys.stderr.flush()


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


def main() -> int:
    parser = argparse.ArgumentParser(description="A private container engine for demos and tests.")
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("--state-dir", type=Path, required=True)
    arguments = parser.parse_args()
    engine = PrivateEngine(arguments.state_dir)
    try:
        if arguments.action == "start":
            sys.stdout.write(f"{engine.start()}\n")
        else:
            engine.stop()
    except EngineFailed as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
