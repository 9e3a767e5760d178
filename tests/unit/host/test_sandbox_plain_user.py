"""The sandbox without root: no control groups, rlimits instead, and the same refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import torg_host
import torg_protocol

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.root,  # to become somebody else
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed (Debian: bubblewrap)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a plain user"),
]
SYSTEM_PYTHON = "/usr/bin/python3"
NOBODY = 65534

RUNS = """
import asyncio, json, sys
from torg_host.sandbox import SandboxLimits, run_sandboxed
from torg_host.sandbox.launch import isolation_here
limits = SandboxLimits(memory_bytes=128 << 20, pids=40, disk_bytes=16 << 20)
forks = '''
import os, time
made = 0
try:
    while made < 400:
        if os.fork() == 0: time.sleep(300)
        made += 1
except OSError as error:
    print(made, error.errno)
'''
async def main():
    isolation = isolation_here()
    answers = {"isolation": [isolation.user, isolation.cgroups]}
    for name, program in {
        "identity": "import os; print(os.getuid(), os.access('/proc/sys/kernel/core_pattern', os.W_OK))",
        "memory": "x = bytearray(b'x') * (1 << 30)",
        "forks": forks,
        "disk": "import os; f = open('/tmp/f', 'wb', 0); [f.write(bytes(1 << 20)) for _ in range(64)]",
        "unshare": "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.unshare(0x10000000), ctypes.get_errno())",
    }.items():
        run = await run_sandboxed(["python3", "-c", program], limits=limits, timeout_s=100)
        answers[name] = [run.reason, run.code, run.stdout.decode(), run.stderr.decode()[-200:]]
    slow = await run_sandboxed(["sleep", "60"], limits=limits, timeout_s=0.3)
    answers["slow"] = [slow.reason, slow.code]
    print(json.dumps(answers))
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, list[object]]]:
    """One process of user 65534 that runs everything. The packages are copied to where that user can read them."""
    import pyseccomp

    place = Path(tempfile.mkdtemp(prefix="torg-plain-user-"))
    try:
        for package in (torg_host, torg_protocol):
            source = Path(next(iter(package.__path__)))
            shutil.copytree(source, place / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(pyseccomp.__file__, place)
        for path in [place, *place.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        done = subprocess.run(
            [SYSTEM_PYTHON, "-c", RUNS],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)
    finally:
        shutil.rmtree(place)


def test_it_says_that_there_are_no_control_groups(answers: dict[str, list[object]]) -> None:
    assert answers["isolation"] == [None, False]


def test_the_job_is_the_user_and_no_more(answers: dict[str, list[object]]) -> None:
    assert answers["identity"][:3] == ["exited", 0, f"{NOBODY} False\n"]
    assert answers["unshare"][2] == "-1 1\n"  # EPERM


def test_memory_is_bounded_by_an_rlimit(answers: dict[str, list[object]]) -> None:
    assert answers["memory"][:2] == ["exited", 1]
    assert str(answers["memory"][3]).endswith("MemoryError\n")


def test_forks_are_bounded_by_an_rlimit(answers: dict[str, list[object]]) -> None:
    made, number = str(answers["forks"][2]).split()
    assert int(made) <= 40
    assert int(number) == 11  # EAGAIN


def test_disk_and_time_are_bounded(answers: dict[str, list[object]]) -> None:
    assert answers["disk"][1] == 1
    assert "No space left on device" in str(answers["disk"][3])
    assert answers["slow"] == ["max_duration", 143]
