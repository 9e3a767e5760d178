"""Control groups: version 2 against a made-up tree, version 1 (or whatever this host has) for real."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from torg_host.cgroups import Cgroup, CgroupError, Hierarchy, detect

MIB = 1 << 20


# --- version 2, on a directory tree that looks like the kernel's -----------------------------------------------------

V2_FILES = (
    "memory.max",
    "memory.swap.max",
    "pids.max",
    "cpu.max",
    "cgroup.procs",
    "cgroup.kill",
    "cgroup.subtree_control",
)


@pytest.fixture
def v2(tmp_path: Path) -> Hierarchy:
    for directory in (tmp_path, tmp_path / "torg", tmp_path / "torg" / "job"):
        directory.mkdir(exist_ok=True)
        for name in V2_FILES:
            (directory / name).write_text("")
    return Hierarchy(2, dict.fromkeys(("memory", "pids", "cpu"), str(tmp_path)))


def test_v2_limits_go_into_one_directory_whose_parents_hand_controllers_down(v2: Hierarchy, tmp_path: Path) -> None:
    Cgroup(v2, "torg/job").create(memory_bytes=64 * MIB, pids=20, cpu_millis=1500)

    job = tmp_path / "torg" / "job"
    assert (job / "memory.max").read_text() == str(64 * MIB)
    assert (job / "memory.swap.max").read_text() == "0"
    assert (job / "pids.max").read_text() == "20"
    assert (job / "cpu.max").read_text() == "150000 100000"
    for parent in (tmp_path, tmp_path / "torg"):
        assert (parent / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert (job / "cgroup.subtree_control").read_text() == ""


def test_v2_reads_what_the_kernel_counted(v2: Hierarchy, tmp_path: Path) -> None:
    group = Cgroup(v2, "torg/job")
    events = tmp_path / "torg" / "job" / "memory.events"

    assert (group.oom_kills(), group.host_oom_kills(), group.peak_memory_bytes()) == (0, 0, None)
    events.write_text("low 0\nhigh 0\nmax 31\noom 2\noom_kill 3\noom_group_kill 0\n")
    assert (group.oom_kills(), group.host_oom_kills()) == (3, 0)
    events.write_text("low 0\nhigh 0\nmax 0\noom 0\noom_kill 1\n")
    assert (group.oom_kills(), group.host_oom_kills()) == (0, 1)
    (tmp_path / "torg" / "job" / "memory.peak").write_text("12345\n")
    assert group.peak_memory_bytes() == 12345


def test_v2_kills_through_the_kernels_own_switch(v2: Hierarchy, tmp_path: Path) -> None:
    assert Cgroup(v2, "torg/job").kill_all()

    assert (tmp_path / "torg" / "job" / "cgroup.kill").read_text() == "1"
    assert (tmp_path / "torg" / "job" / "pids.max").read_text() == "0"


def test_a_refused_write_names_the_file(v2: Hierarchy, tmp_path: Path) -> None:
    (tmp_path / "torg" / "job" / "pids.max").unlink()

    with pytest.raises(CgroupError, match=r"writing '20' to .*/torg/job/pids\.max: No such file or directory"):
        Cgroup(v2, "torg/job").create(memory_bytes=MIB, pids=20, cpu_millis=1000)


@pytest.mark.parametrize("name", ["", "/torg", "torg/../../etc"])
def test_names_stay_below_the_root(name: str, v2: Hierarchy) -> None:
    with pytest.raises(ValueError, match="not a group name"):
        Cgroup(v2, name)


# --- which version ---------------------------------------------------------------------------------------------------


def test_a_v2_host(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"31 23 0:27 / {tmp_path} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n")

    found = detect(str(mountinfo))

    assert found is not None
    assert (found.version, found.roots["pids"]) == (2, str(tmp_path))


def test_a_hybrid_host_whose_v2_tree_has_no_controllers_is_v1(tmp_path: Path) -> None:
    for name in ("memory", "pids", "cpu", "unified"):
        (tmp_path / name).mkdir()
    (tmp_path / "unified" / "cgroup.controllers").write_text("hugetlb\n")
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(
        f"1 2 0:1 / {tmp_path}/unified rw - cgroup2 cgroup2 rw\n"
        f"1 2 0:2 / {tmp_path}/memory rw - cgroup cgroup rw,memory\n"
        f"1 2 0:3 / {tmp_path}/pids rw - cgroup cgroup rw,pids\n"
        f"1 2 0:4 / {tmp_path}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    )

    found = detect(str(mountinfo))

    assert found is not None
    assert (found.version, found.roots["cpu"]) == (1, f"{tmp_path}/cpu")


def test_a_host_without_the_controllers_has_none(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu io\n")
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"31 23 0:27 / {tmp_path} rw - cgroup2 cgroup2 rw\n")

    assert detect(str(mountinfo)) is None


# --- for real --------------------------------------------------------------------------------------------------------


@pytest.fixture
def group() -> Iterator[Cgroup]:
    hierarchy = detect() if os.geteuid() == 0 else None
    if hierarchy is None:
        pytest.skip("control groups need root and the memory, pids and cpu controllers")
    group = Cgroup(hierarchy, f"torg-test-{os.getpid()}/job")
    yield group
    assert group.remove()
    assert not group.exists()
    assert not any(Path(root, f"torg-test-{os.getpid()}").exists() for root in hierarchy.roots.values())


def in_group(group: Cgroup, action: str) -> int:
    """A child that joins the group and runs `action`; its wait status. `exec` needs no Python of ours in the child."""
    pid = os.fork()
    if pid == 0:
        group.join()
        os.execv("/usr/bin/python3", ["python3", "-I", "-S", "-c", action])  # noqa: S606  no shell is wanted
    return pid


@pytest.mark.root
def test_the_kernel_kills_at_the_limit_and_counts_it(group: Cgroup) -> None:
    group.create(memory_bytes=32 * MIB, pids=10, cpu_millis=1000)

    _, status = os.waitpid(in_group(group, "x = bytearray(b'x') * (100 << 20)"), 0)

    assert os.WTERMSIG(status) == 9
    assert (group.oom_kills(), group.host_oom_kills()) == (1, 0)
    peak = group.peak_memory_bytes()
    assert peak is not None
    assert 28 * MIB < peak <= 32 * MIB


@pytest.mark.root
def test_a_job_within_its_limit_counts_nothing(group: Cgroup) -> None:
    group.create(memory_bytes=64 * MIB, pids=10, cpu_millis=1000)

    _, status = os.waitpid(in_group(group, "x = bytearray(b'x') * (10 << 20)"), 0)

    assert status == 0
    assert (group.oom_kills(), group.host_oom_kills()) == (0, 0)


@pytest.mark.root
def test_killing_reaches_every_process_even_of_a_fork_bomb(group: Cgroup) -> None:
    group.create(memory_bytes=256 * MIB, pids=40, cpu_millis=1000)
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    pid = in_group(group, bomb)
    deadline = time.monotonic() + 60
    while len(group.processes()) < 40 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(group.processes()) == 40

    assert group.kill_all()

    os.waitpid(pid, 0)
    assert group.processes() == []


@pytest.mark.root
def test_create_and_remove_are_safe_to_repeat(group: Cgroup) -> None:
    for pids in (10, 20):
        group.create(memory_bytes=32 * MIB, pids=pids, cpu_millis=1000)
    assert group.exists()
    for _ in range(2):
        assert group.remove()
    assert not group.exists()
    assert group.oom_kills() == 0
