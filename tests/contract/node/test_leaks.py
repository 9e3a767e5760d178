"""The look-out for leaks sees each kind of thing that a node may leave on a host."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.leaks import nothing_left_behind
from tests.support.networks import star
from torg_host.disk import QuotaDisk
from torg_host.sandbox.launch import cgroup_name
from torg_node.steps.open_secrets import _of_node

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounts and control groups need root")]
Undo = Callable[[], object]


def _process(base: Path, _temp: Path) -> Undo:
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()", str(base)], stdin=pipe, stdout=pipe)
    assert child.stdout is not None
    child.stdout.readline()  # a program that was only just started has an empty command line for a moment
    return lambda: (child.kill(), child.communicate())


def _disk(base: Path, _temp: Path) -> Undo:
    disk = QuotaDisk(base / "disk", 8 << 20)
    assert disk.open().enforced
    return disk.remove


def _control_group(base: Path, _temp: Path) -> Undo:
    (base / "market/node/containers/sandbox").mkdir(parents=True)
    found = [path for path in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")) if (path / "cgroup.procs").exists()]
    group = found[0] / cgroup_name(base.resolve() / "market/node/containers/sandbox/job")
    group.mkdir(parents=True)
    return group.rmdir


def _network(_base: Path, _temp: Path) -> Undo:
    network = star("a")
    network.__enter__()
    return lambda: network.__exit__(None, None, None)


def _temporary(_base: Path, temp: Path) -> Undo:
    (temp / "torg-replay-x").mkdir()
    return (temp / "torg-replay-x").rmdir


def _secrets(base: Path, _temp: Path) -> Undo:
    (base / "market/node/containers").mkdir(parents=True)
    folder = _of_node((base / "market/node").resolve())
    folder.mkdir()
    return folder.rmdir


def _state(base: Path, temp: Path) -> Undo:
    folder = base / "market/node/leases/one"
    folder.mkdir(parents=True)
    (base / "market/node/containers").mkdir()
    end_agent = _process(base / "market/node", temp)
    return lambda: (end_agent(), folder.rmdir())


def _reservation(base: Path, temp: Path) -> Undo:
    (base / "node/containers").mkdir(parents=True)
    database = sqlite3.connect(base / "node/reservations.sqlite", isolation_level=None)
    database.execute("CREATE TABLE reservations (lease_id TEXT)")
    database.execute("INSERT INTO reservations VALUES ('lease-1')")
    end_agent = _process(base / "node", temp)
    return lambda: (end_agent(), database.execute("DELETE FROM reservations"), database.close())


@pytest.mark.parametrize(
    ("leave", "named"),
    [
        (_process, "process "),
        (_disk, "loop device "),
        (_disk, "mount "),
        (_control_group, "cgroup "),
        (_network, "network namespace "),
        (_temporary, "temporary "),
        (_secrets, "secrets "),
        (_state, "state "),
        (_reservation, "reservation "),
    ],
    ids=lambda value: value.strip() if isinstance(value, str) else "",
)
def test_what_is_left_is_named_and_what_was_there_before_is_not(
    leave: Callable[[Path, Path], Undo], named: str, tmp_path: Path
) -> None:
    base, temp = tmp_path / "base", tmp_path / "temp"
    base.mkdir()
    temp.mkdir()
    undo: list[Undo] = []
    try:
        with (
            pytest.raises(AssertionError, match=f"\n{named}"),
            nothing_left_behind(base, temp, within_s=0),
        ):
            undo.append(leave(base, temp))
        with nothing_left_behind(base, temp, within_s=0):
            pass
    finally:
        for step in undo:
            step()


def test_what_is_started_again_is_excused_by_what_went_and_nothing_else_is(tmp_path: Path) -> None:
    base, temp = tmp_path / "base", tmp_path / "temp"
    base.mkdir()
    temp.mkdir()
    program = "print(flush=True); input()"

    def start(name: str, port: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", program, str(base), name, "--port", str(port)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        return child

    def end(child: subprocess.Popen[bytes]) -> None:
        child.kill()
        child.communicate()

    children = [start("api", 0)]

    def start_again(*more: tuple[str, int]) -> None:
        end(children.pop())
        children.extend(start(*each) for each in (("api", 4711), *more))

    try:
        with nothing_left_behind(base, temp, within_s=0):
            start_again()
        with (
            pytest.raises(AssertionError, match=r"^left behind:\nprocess \d+: [^\n]* other --port 4712$"),
            nothing_left_behind(base, temp, within_s=0),
        ):
            start_again(("other", 4712))
        with (
            pytest.raises(AssertionError, match=r"^left behind:\nprocess \d+: [^\n]* other --port 4712$"),
            nothing_left_behind(base, temp, within_s=0),
        ):
            children.append(start("other", 4712))
    finally:
        for child in children:
            end(child)


def test_one_more_tunnel_of_an_agent_that_was_there_before_is_named(tmp_path: Path) -> None:
    base, temp = tmp_path / "base", tmp_path / "temp"
    base.mkdir()
    temp.mkdir()
    program = "import socket\nkept = []\nfor line in iter(input, ''):\n    kept.append(socket.socketpair())\n    print(flush=True)"
    command = [sys.executable, "-c", program, str(base), "torg-node"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None

        def opens_one() -> None:
            print("open", file=agent.stdin, flush=True)
            assert agent.stdout is not None
            agent.stdout.readline()

        opens_one()
        with nothing_left_behind(base, temp, within_s=0):
            pass
        with (
            pytest.raises(AssertionError, match=r"(?s)^left behind:\ntunnel .* \(2\)$"),
            nothing_left_behind(base, temp, within_s=0),
        ):
            opens_one()
        print(file=agent.stdin, flush=True)
