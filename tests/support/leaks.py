"""What the processes and containers of a test leave on this host: looked for around every test that runs any.

Only what carries this test session's own paths, process number or engine counts, so other runs on the machine neither hide a leak nor make one
up. Whatever was there before a test (a market that a whole module shares) is no leak of that test; it is one of the module.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import engine
from tests.support.searching import control_groups, matching
from torg_host.sandbox.launch import cgroup_name
from torg_host.sandbox.spare import TAKEN
from torg_node.executors.docker_spare import SPARE

GONE_WITHIN_S = 60.0  # an agent cleans up after it has reported, and a busy machine takes its time
_ENGINE_NETWORKS = {"bridge", "host", "none"}
_ENGINE_CHILDREN = {"containerd-shim", "containerd-shim-runc-v2", "docker-proxy", "runsc-sandbox", "runsc-gofer"}
_UNIX_SOCKET = re.compile(r"^u_str\s+ESTAB.*\s(\d+)\s+\S+\s+(\d+)\s+users:(.*)$")
_OWNER = re.compile(r"pid=(\d+)")
_AGENT = "torg-node"
_DEPTHS = ("*", "*/*", "*/*/*")  # below the session's folder, where data folders of nodes lie


@pytest.fixture(scope="session")
def own_temp() -> Iterator[Path]:
    """Where the processes that tests start make their temporary files."""
    folder = Path(tempfile.mkdtemp(prefix="torg-tmp-"))
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    yield folder
    if before is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before
    shutil.rmtree(folder)


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing(own_temp: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with nothing_left_behind(tmp_path_factory.getbasetemp(), own_temp):
        yield


@pytest.fixture(autouse=True)
def leaves_nothing(
    module_leaves_nothing: None, own_temp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    with nothing_left_behind(tmp_path_factory.getbasetemp(), own_temp):
        yield


@contextlib.contextmanager
def nothing_left_behind(base: Path, temp: Path, within_s: float = GONE_WITHIN_S) -> Iterator[None]:
    """Fails with names when what was not there before is not gone soon after."""
    before = survey(base, temp)
    yield
    deadline = time.monotonic() + within_s
    while left := _new(before, survey(base, temp)):
        assert time.monotonic() < deadline, "left behind:\n" + "\n".join(line[:300] for line in left)
        time.sleep(0.05)


def _new(before: frozenset[str], now: frozenset[str]) -> list[str]:
    """What is there now and was not. A process in the place of one that is gone, which a test killed and started again, is no leak of it."""
    gone = Counter(_program(line) for line in before - now if line.startswith("process "))
    found = []
    for line in sorted(now - before):
        if line.startswith("process ") and gone[_program(line)]:
            gone[_program(line)] -= 1
        else:
            found.append(line)
    return found


def _program(line: str) -> str:
    """What a process runs, without what another start of the same is given anew: its number, and a port that was the system's choice."""
    return re.sub(r"--port \d+", "--port", line.partition(": ")[2])


def survey(base: Path, temp: Path) -> frozenset[str]:
    """Everything of this test session that a host would have to get rid of, one line each."""
    base = base.resolve()
    nodes = [folder.parent for depth in _DEPTHS for folder in matching(base, f"{depth}/containers")]
    state_roots = [folder for depth in _DEPTHS for folder in matching(base, f"{depth}/sandbox") if folder.is_dir()]
    processes = list(_processes((str(base), str(temp))))
    found = [
        *processes,
        *_tunnels((str(base), str(temp))),
        *_cgroups([*state_roots, *(node / "containers" / "sandbox" for node in nodes)]),
        *_mounts((str(base), str(temp))),
        *_loop_devices((str(base), str(temp))),
        *_networks(),
        *(f"temporary {path}" for path in temp.iterdir()),
    ]
    for node in nodes:
        found += _of_node(node, is_served=any(str(node) in process for process in processes))
    if engine.running is not None:
        agent_lives = any(_AGENT in process for process in processes)
        found += _of_engine(engine.running, with_spares=not agent_lives)
    return frozenset(found)


# --- the host --------------------------------------------------------------------------------------------------------


def _processes(marks: tuple[str, ...]) -> Iterator[str]:
    for pid, command in _own_processes(marks):
        yield f"process {pid}: {command}"


def _tunnels(marks: tuple[str, ...]) -> Iterator[str]:
    """Within an agent a tunnel is a pair of Unix sockets: SSH at one end, the relay's line at the other. An event loop has a pair too, which is
    there before and after; so pairs are counted. Agents alone are looked at: a marketplace that was
    killed and started again has other pairs than it had before."""
    commands = {pid: command for pid, command in _own_processes(marks) if _AGENT in command}
    if not commands:
        return
    listing = subprocess.run(["ss", "-xanpH"], capture_output=True, text=True, check=True).stdout
    ends: dict[tuple[str, str], set[str]] = {}
    for line in listing.splitlines():
        if match := _UNIX_SOCKET.search(line):
            inode, peer, owners = match.groups()
            ends.setdefault((min(inode, peer), max(inode, peer)), set()).update(_OWNER.findall(owners))
    pairs = Counter(owners.pop() for inodes, owners in ends.items() if len(owners) == 1 and inodes[0] != "0")
    for pid, command in commands.items():
        for number in range(pairs[pid]):
            yield f"tunnel or event loop of {command[:200]} ({number + 1})"


def _own_processes(marks: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Process number and command of those that name this session's folders, in their arguments, environment or working directory."""
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == os.getpid():
            continue
        try:
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            said = command + (directory / "environ").read_bytes().decode(errors="replace")
            said += str((directory / "cwd").readlink())
        except OSError:  # it has just ended
            continue
        if command and is_kept_spare(directory):
            continue
        if command and any(mark in said for mark in marks) and not _is_shared(command):
            yield directory.name, command


def is_kept_spare(process: Path) -> bool:
    """Whether it is the shim that waits for its living agent's next container; there always is another one. Or whether it has just ended."""
    try:
        stat, command = (process / "stat").read_text(), (process / "cmdline").read_text()
    except OSError:
        return True
    name, parent = stat.partition("(")[2].rpartition(")")[0], int(stat.rpartition(")")[2].split()[1])
    return "wait_and_become" in command and name != TAKEN and parent != 1


def _is_shared(command: str) -> bool:
    """What a whole session shares stays: engine (its containers' shims and proxies do not), database, bus."""
    return Path(command.split(maxsplit=1)[0].rstrip(":")).name in {"dockerd", "containerd", "postgres", "nats-server"}


def _cgroups(state_roots: Iterable[Path]) -> Iterator[str]:
    for root in set(state_roots):
        for path in control_groups(cgroup_name(root / "any").removesuffix("any")):
            yield f"cgroup {path}"


def _mounts(marks: tuple[str, ...]) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if any(mark in line for mark in marks):
            yield f"mount {line.split()[4]}"


def _loop_devices(marks: tuple[str, ...]) -> Iterator[str]:
    for backing in matching(Path("/sys/block"), "loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            file = backing.read_text().strip()
            if any(mark in file for mark in marks):
                yield f"loop device {backing.parents[1].name}: {file}"


def _networks() -> Iterator[str]:
    """Network namespaces that `tests.support.networks` names after this process."""
    for path in matching(Path("/run/netns"), f"torg{os.getpid()}-*"):
        yield f"network namespace {path.name}"


# --- a node's data folder --------------------------------------------------------------------------------------------


def _of_node(node: Path, *, is_served: bool) -> Iterator[str]:
    """What an agent that runs should have cleaned up. What one left that was stopped in the middle is for the next to take over."""
    secrets = Path("/dev/shm") / f"torg-{hashlib.sha256(os.fsencode(node)).hexdigest()[:16]}"
    if secrets.exists():
        yield f"secrets {secrets}"
    if not is_served:
        return
    for folder in ("leases", "rentals", "containers/sandbox", "containers/docker"):
        for item in matching(node / folder, "*"):
            yield f"state {item}"
    ledger = node / "reservations.sqlite"
    if ledger.exists():
        with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=30)) as database:
            for (lease_id,) in database.execute("SELECT lease_id FROM reservations"):
                yield f"reservation {lease_id} of {node}"


# --- the engine ------------------------------------------------------------------------------------------------------


def _of_engine(state_dir: Path, *, with_spares: bool) -> Iterator[str]:
    """Of the session's own engine every container counts, whoever started it, and every network and volume. A living agent always keeps a
    spare alarm, now this one and then that: those count when there is no agent."""
    spares = []
    for container in _ask(state_dir / "docker.sock", "/containers/json?all=1"):
        name, state = container["Names"][0], container["State"]
        if name.startswith(f"/{SPARE}") and not with_spares:
            spares.append(container["Id"])
        else:
            yield f"container {name} ({state})"
    for network in _ask(state_dir / "docker.sock", "/networks"):
        if network["Name"] not in _ENGINE_NETWORKS:
            yield f"engine network {network['Name']}"
    for volume in _ask(state_dir / "docker.sock", "/volumes")["Volumes"] or ():
        yield f"volume {volume['Name']}"
    listing = subprocess.run(["ps", "-eo", "pid=,comm=,args="], capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        of_spare = any(spare in line for spare in spares)
        if str(state_dir) in line and any(name in line for name in _ENGINE_CHILDREN) and not of_spare:
            yield f"engine process {line.strip()[:200]}"


def _ask(socket_path: Path, path: str) -> Any:
    connection = http.client.HTTPConnection("engine", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(socket_path))
    with contextlib.closing(connection):
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())


__all__ = ["leaves_nothing", "module_leaves_nothing", "nothing_left_behind", "own_temp", "survey"]
