"""Containers for real: one-shot runs, and what happens when something around a container is killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.support.waiting import until
from torg_host import cgroups
from torg_host.sandbox import SandboxLimits, SandboxMount, SandboxUnavailable, run_sandboxed
from torg_host.sandbox.command import ContainerSpec
from torg_host.sandbox.container import Container
from torg_host.sandbox.errors import SandboxStartFailed
from torg_host.sandbox.images import host_python, oci_directory, tree_digest
from torg_host.sandbox.launch import cgroup_name, launch
from torg_host.sandbox.processes import boot_id, start_time
from torg_protocol.errors import Conflict, Invalid, NotFound

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed (Debian: bubblewrap)"),
]
MIB = 1 << 20
LIMITS = SandboxLimits(memory_bytes=128 * MIB, disk_bytes=64 * MIB, log_bytes=MIB, pids=32)


def sleeper(**changes: object) -> ContainerSpec:
    fields: dict[str, object] = {"command": ("sleep", "60"), "image": host_python(), "limits": LIMITS, **changes}
    return ContainerSpec(max_duration_ms=60_000, **fields)  # type: ignore[arg-type]  # the test's


def shim_pid(container: Container) -> int:
    return int(json.loads((container.state_dir / "shim.json").read_text())["pid"])


def processes_with(text: str) -> list[str]:
    """Command lines of living processes that hold `text` in their command line or environment."""
    found = []
    for directory in Path("/proc").iterdir():
        try:
            if directory.name.isdigit() and text.encode() in (directory / "environ").read_bytes():
                found.append((directory / "cmdline").read_text())
        except OSError:
            continue
    return found


def start_python(program: str, scratch: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(scratch)})


def make_venv(directory: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)


def cgroup_of(state_dir: Path) -> Path | None:
    hierarchy = cgroups.detect()
    return Path(hierarchy.roots["pids"], cgroup_name(state_dir)) if hierarchy and os.geteuid() == 0 else None


# --- one-shot runs ---------------------------------------------------------------------------------------------------


async def test_a_run_gives_back_what_was_printed_and_read() -> None:
    program = "import sys; print(sys.stdin.read().upper()); print('oops', file=sys.stderr); sys.exit(4)"

    run = await run_sandboxed(["python", "-c", program], limits=LIMITS, timeout_s=100, stdin=b"hello")

    assert (run.code, run.reason, run.stdout, run.stderr) == (4, "exited", b"HELLO\n", b"oops\n")
    assert not run.succeeded


async def test_the_interpreters_own_packages_are_there_and_its_version() -> None:
    program = "import sys, pydantic; print(sys.prefix, pydantic.VERSION, '.'.join(map(str, sys.version_info[:3])))"
    import pydantic

    run = await run_sandboxed(["python", "-c", program], limits=LIMITS, timeout_s=100)

    version = ".".join(map(str, sys.version_info[:3]))
    assert run.stdout.decode() == f"/opt/venv {pydantic.VERSION} {version}\n", run.stderr


async def test_a_run_ends_at_its_timeout() -> None:
    run = await run_sandboxed(["sleep", "60"], limits=LIMITS, timeout_s=0.3)

    assert (run.reason, run.code) == ("max_duration", 143)
    assert 300 <= run.duration_ms < 30_000


async def test_a_mount_behind_a_link_is_the_callers_own_business_in_a_run(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "model").write_text("weights")
    (tmp_path / "link").symlink_to("real")

    run = await run_sandboxed(
        ["cat", "/in/model"], mounts=[SandboxMount(tmp_path / "link", "/in")], limits=LIMITS, timeout_s=100
    )

    assert run.stdout == b"weights", run.stderr


async def test_cancelling_the_caller_kills_the_run() -> None:
    token = f"token-{time.monotonic_ns()}"
    run = asyncio.create_task(run_sandboxed(["sleep", "60"], limits=LIMITS, timeout_s=60, env={"TOKEN": token}))
    await until(lambda: processes_with(token) != [])

    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert processes_with(token) == []


async def test_killing_the_caller_kills_the_run(tmp_path: Path) -> None:
    token = f"token-{time.monotonic_ns()}"
    program = f"""
        import asyncio
        from torg_host.sandbox import SandboxLimits, run_sandboxed
        limits = SandboxLimits(memory_bytes=128 << 20)
        asyncio.run(run_sandboxed(["sleep", "60"], limits=limits, timeout_s=60, env={{"TOKEN": {token!r}}}))
    """
    caller = start_python(textwrap.dedent(program), tmp_path)
    await until(lambda: processes_with(token) != [])

    caller.kill()
    caller.wait()

    await until(lambda: processes_with(token) == [])
    await until(lambda: list(tmp_path.iterdir()) == [])  # not even its scratch directory stays


async def test_without_bubblewrap_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(SandboxUnavailable) as refusal:
        await run_sandboxed(["true"], limits=LIMITS, timeout_s=1)

    assert refusal.value.code == "sandbox_unavailable"
    assert "apt-get install bubblewrap" in (refusal.value.hint or "")


async def test_an_old_bubblewrap_is_refused_by_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho bubblewrap 0.6.1\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    with pytest.raises(SandboxUnavailable) as refusal:
        await run_sandboxed(["true"], limits=LIMITS, timeout_s=1)

    assert (refusal.value.code, refusal.value.value) == ("sandbox_unavailable", str(old))
    assert "0.6.1 is too old" in refusal.value.message


# --- the trap of root ------------------------------------------------------------------------------------------------


@pytest.mark.root
async def test_started_by_root_the_job_is_not_root_on_the_host() -> None:
    token = f"token-{time.monotonic_ns()}"
    run = asyncio.create_task(run_sandboxed(["sleep", "600"], limits=LIMITS, timeout_s=600, env={"TOKEN": token}))
    try:
        await until(lambda: _uids_of(token) != set())
        assert _uids_of(token) == {65534}
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


def _uids_of(token: str) -> set[int]:
    uids = set()
    for directory in Path("/proc").iterdir():
        try:
            if directory.name.isdigit() and token.encode() in (directory / "environ").read_bytes():
                uids |= {int(uid) for uid in (directory / "status").read_text().split("Uid:")[1].split()[:4]}
        except OSError:
            continue
    return uids


@pytest.mark.root
async def test_a_virtual_environment_below_a_closed_home_can_be_used(tmp_path: Path) -> None:
    home = tmp_path.resolve() / "home"
    home.mkdir(mode=0o700)
    make_venv(home / "venv")
    package = next((home / "venv" / "lib").iterdir()) / "site-packages" / "only_there.py"
    package.write_text("answer = 42\n")
    image = host_python(home / "venv", Path(sys.base_prefix))

    run = await run_sandboxed(
        ["python", "-c", "import only_there; print(only_there.answer)"], image=image, limits=LIMITS, timeout_s=100
    )
    looked = await run_sandboxed(["ls", str(home)], image=image, limits=LIMITS, timeout_s=100)

    assert run.stdout == b"42\n", run.stderr
    assert b"No such file" in looked.stderr  # only what was bound is there, not the home


# --- start -----------------------------------------------------------------------------------------------------------


async def test_a_planted_link_is_no_mount_source(tmp_path: Path) -> None:
    source = tmp_path.resolve() / "outputs"
    source.symlink_to("/etc")
    mount = SandboxMount(source, "/outputs", writable=True)

    with pytest.raises(Invalid) as refusal:
        await launch(sleeper(mounts=(mount,)), tmp_path / "job")

    assert (refusal.value.code, refusal.value.value) == ("bad_mount", str(source))
    assert Path("/etc").stat().st_uid == 0
    assert not (tmp_path / "job").exists()


@pytest.mark.root
async def test_giving_a_tree_to_the_job_does_not_follow_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("root's")
    workspace = tmp_path.resolve() / "workspace"
    (workspace / "deep").mkdir(parents=True)
    (workspace / "deep" / "link").symlink_to(outside)
    (workspace / "deep" / "file").write_text("job's")

    container = await launch(sleeper(mounts=(SandboxMount(workspace, "/workspace", writable=True),)), tmp_path / "job")
    await container.remove()

    assert outside.stat().st_uid == 0
    assert (workspace / "deep" / "link").lstat().st_uid == 65534
    assert (workspace / "deep" / "file").stat().st_uid == 65534


async def test_what_bubblewrap_cannot_set_up_is_an_error_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(SandboxStartFailed) as failure:
        await launch(sleeper(workdir="/no/such/directory"), tmp_path / "job")

    assert failure.value.code == "sandbox_start_failed"
    assert "Can't chdir to /no/such/directory" in failure.value.message
    assert not (tmp_path / "job").exists()
    group = cgroup_of(tmp_path / "job")
    assert group is None or not group.exists()


async def test_a_name_is_used_once(tmp_path: Path) -> None:
    container = await launch(sleeper(), tmp_path / "job")

    with pytest.raises(Conflict) as refusal:
        await launch(sleeper(), tmp_path / "job")
    assert refusal.value.code == "already_running"
    assert container.exists()
    await container.remove()


# --- violence --------------------------------------------------------------------------------------------------------


async def test_killing_the_shim_ends_the_container_and_the_wait(tmp_path: Path) -> None:
    token = f"token-{time.monotonic_ns()}"
    container = await launch(sleeper(env={"TOKEN": token}), tmp_path / "job")
    waiting = asyncio.create_task(container.wait())
    following = asyncio.create_task(_text(container))
    await asyncio.sleep(0.1)

    os.kill(shim_pid(container), signal.SIGKILL)
    async with asyncio.timeout(150):
        outcome = await waiting
        assert await following == b""
    await until(lambda: processes_with(token) == [])  # bubblewrap's children die an instant after it

    assert (outcome.reason, outcome.code, outcome.detail) == ("killed", None, "its shim was killed")
    assert await container.wait() == outcome
    group = cgroup_of(container.state_dir)
    assert group is None or not group.exists()
    await container.remove()


async def test_killing_bubblewrap_is_reported_as_killed(tmp_path: Path) -> None:
    container = await launch(sleeper(), tmp_path / "job")
    children = Path(f"/proc/{shim_pid(container)}/task/{shim_pid(container)}/children").read_text().split()

    os.kill(int(children[0]), signal.SIGKILL)
    outcome = await container.wait()

    assert (outcome.reason, outcome.code) == ("killed", None)
    await container.remove()


async def test_sigterm_to_the_shim_stops_the_job_gently(tmp_path: Path) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done"
    container = await launch(sleeper(command=("sh", "-c", script)), tmp_path / "job")
    async for _ in container.follow_logs():
        break

    os.kill(shim_pid(container), signal.SIGTERM)
    outcome = await container.wait()

    assert (outcome.reason, outcome.code) == ("killed", 3)
    assert await _text(container) == b"up\nbye\n"
    await container.remove()


@pytest.mark.parametrize("what", ["pid", "boot_id"])
async def test_neither_a_recycled_process_id_nor_another_boot_is_taken_for_the_shim(what: str, tmp_path: Path) -> None:
    container = await launch(sleeper(), tmp_path / "job")
    identity = json.loads((container.state_dir / "shim.json").read_text())
    os.kill(identity["pid"], signal.SIGKILL)
    # A living process has the shim's number now, but it started at another time; or the same time after another boot.
    mine = {"pid": os.getpid(), "start_time": identity["start_time"], "boot_id": identity["boot_id"]}
    after_boot = {**mine, "start_time": start_time(os.getpid()), "boot_id": "another"}
    (container.state_dir / "shim.json").write_text(json.dumps(mine if what == "pid" else after_boot))

    async with asyncio.timeout(150):
        outcome = await container.wait()

    assert (outcome.reason, outcome.detail) == ("killed", "its shim was killed")
    await container.remove()


# --- images ----------------------------------------------------------------------------------------------------------


def busybox_image(root: Path) -> Path:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed (Debian: busybox-static)")
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "tmp").mkdir()
    shutil.copy(busybox, root / "bin" / "busybox")
    (root / "bin" / "sh").symlink_to("busybox")
    (root / "sbin").symlink_to("bin")
    (root / "etc" / "os-release").write_text("NAME=tiny\n")
    return root


async def test_an_unpacked_image_runs_on_its_own_files_only(tmp_path: Path) -> None:
    image = oci_directory(busybox_image(tmp_path.resolve() / "image"))
    script = "busybox cat /etc/os-release; busybox ls /; busybox touch /bin/x"

    run = await run_sandboxed(["sh", "-c", script], image=image, limits=LIMITS, timeout_s=100)

    assert run.stdout.decode().split() == ["NAME=tiny", *["bin", "dev", "etc", "proc", "run", "sbin", "tmp", "var"]]
    assert b"Read-only file system" in run.stderr


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as refusal:
        oci_directory(tmp_path / "none")

    assert (refusal.value.code, refusal.value.value) == ("image_not_found", f"oci-dir:{tmp_path}/none")


def test_the_digest_of_an_image_covers_names_modes_links_and_contents(tmp_path: Path) -> None:
    root = busybox_image(tmp_path / "image")
    digests = [tree_digest(root), tree_digest(root)]
    (root / "etc" / "os-release").write_text("NAME=tinY\n")
    digests.append(tree_digest(root))
    (root / "etc" / "os-release").chmod(0o600)
    digests.append(tree_digest(root))
    (root / "sbin").unlink()
    (root / "sbin").symlink_to("etc")
    digests.append(tree_digest(root))

    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


async def _text(container: Container) -> bytes:
    return b"".join([piece.data async for piece in container.follow_logs()])


async def test_removal_waits_for_the_shim_itself_not_only_for_its_last_word(tmp_path: Path) -> None:
    """A shim that is slow to leave after it wrote how the container ended."""
    slow = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(0.5)")
    identity = {"pid": slow.pid, "start_time": start_time(slow.pid), "boot_id": boot_id()}
    outcome = {"reason": "exited", "code": 0, "started_at_ms": 1, "finished_at_ms": 2, "peak_memory_bytes": None}
    state_dir = tmp_path / "ended"
    state_dir.mkdir()
    for name, value in (("plan", {"cgroup": None}), ("shim", identity), ("exit", {**outcome, "detail": ""})):
        (state_dir / f"{name}.json").write_text(json.dumps(value))

    await Container(state_dir).remove()

    assert start_time(slow.pid) is None
    assert not state_dir.exists()
    assert await asyncio.wait_for(slow.wait(), 60) == 0
