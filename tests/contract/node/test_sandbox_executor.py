"""What the sandbox executor says and refuses beyond the port's contract, and how an executor is chosen."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.executors import LIMITS, left_behind
from tests.support.waiting import until
from torg_host.sandbox.launch import isolation_here
from torg_host.sandbox.spare import TAKEN
from torg_node.executors import choose
from torg_node.executors.choose import choose_executor
from torg_node.executors.errors import ExecutorError, ExecutorUnavailable, ImageForbidden, ImageNotFound, LaunchRefused
from torg_node.executors.port import Handle, LaunchSpec, Mount
from torg_node.executors.probes import INSPECTED
from torg_node.executors.process import ProcessExecutor
from torg_node.executors.sandbox import SandboxExecutor

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed (Debian: bubblewrap)"),
]


def a_launch(**changes: object) -> LaunchSpec:
    fields: dict[str, object] = {
        "name": "job",
        "image": "host-python",
        "command": ("true",),
        "env": {},
        "workdir": "/tmp",
        "mounts": (),
        "limits": LIMITS,
        "max_duration_ms": 300_000,
    }
    return LaunchSpec(**{**fields, **changes})  # type: ignore[arg-type]  # the test's


@pytest.mark.root
async def test_every_probe_passes_here(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("memory and process limits need root")
    executor = SandboxExecutor(tmp_path / "state")

    found = await executor.probe()

    assert found.failed == ()
    assert set(found.verified) == {*INSPECTED, "pids-limit", "memory-limit", "disk-limit"}
    assert (found.executor, found.isolation, found.gpu) == ("sandbox", "sandbox", False)
    assert found.version.startswith("bubblewrap ")
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.root
async def test_probes_notice_a_sandbox_that_is_weaker_than_it_looks(tmp_path: Path) -> None:
    """Bubblewrap started by root as it is: everything looks well from inside, but for the host the job is root."""
    weak = replace(isolation_here(), user=None, cgroups=False)

    found = await SandboxExecutor(tmp_path / "state", isolation=weak).probe()

    failed = {reason.partition(":")[0] for reason in found.failed}
    assert failed >= {"not-host-root", "memory-limit"}
    assert {"no-network", "no-mount", "seccomp"} <= set(found.verified)


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"gpu_uuids": ("GPU-1",)}, "gpu_not_supported", "gpu_uuids"),
        ({"name": "../escape"}, "launch_refused", "name"),
        ({"name": ""}, "launch_refused", "name"),
        ({"command": ()}, "bad_command", "command"),
        ({"mounts": (Mount(Path("/etc"), "/usr/x"),)}, "bad_mount", "mounts"),
        ({"mounts": (Mount(Path("/no/such"), "/x"),)}, "bad_mount", "mounts"),
    ],
)
async def test_a_launch_that_cannot_be_kept_is_refused(
    changes: dict[str, object], code: str, field: str, tmp_path: Path
) -> None:
    executor = SandboxExecutor(tmp_path / "state")

    with pytest.raises(LaunchRefused) as refusal:
        await executor.start(a_launch(**changes))

    assert (refusal.value.code, refusal.value.field) == (code, field)
    assert list((tmp_path / "state").iterdir()) == []


async def test_only_images_below_the_owners_directory_run(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "tiny" / "bin").mkdir(parents=True)
    (images / "sneaky").symlink_to("/")
    executor = SandboxExecutor(tmp_path / "state", image_root=images)

    prepared = await executor.prepare(f"oci-dir:{images}/tiny")
    assert prepared.reference == f"oci-dir:{images}/tiny"
    assert prepared.digest.startswith("sha256:")
    for image in ("oci-dir:/", f"oci-dir:{images}/../..", f"oci-dir:{images}/sneaky"):
        with pytest.raises(ImageForbidden) as refusal:
            await executor.prepare(image)
        assert refusal.value.value == image
    with pytest.raises(ImageNotFound):
        await executor.prepare(f"oci-dir:{images}/none")
    with pytest.raises(ImageForbidden):
        await SandboxExecutor(tmp_path / "other").start(a_launch(image=f"oci-dir:{images}/tiny"))


async def test_an_owner_may_keep_the_hosts_python_to_himself(tmp_path: Path) -> None:
    executor = SandboxExecutor(tmp_path / "state", host_python_allowed=False)

    with pytest.raises(ImageForbidden) as refusal:
        await executor.prepare("host-python")

    assert refusal.value.code == "image_forbidden"


async def test_a_journal_from_elsewhere_cannot_make_it_delete_other_directories(tmp_path: Path) -> None:
    executor = SandboxExecutor(tmp_path / "state")
    (tmp_path / "precious").mkdir()

    await executor.remove(Handle("sandbox", "job", str(tmp_path / "precious"), 0))
    with pytest.raises(ExecutorError) as refusal:
        await executor.remove(Handle("sandbox", "../precious", str(tmp_path / "precious"), 0))

    assert refusal.value.code == "unknown_container"
    assert (tmp_path / "precious").is_dir()


async def test_the_shim_that_waits_is_taken_once_and_ends_with_its_keeper(tmp_path: Path) -> None:
    executor = SandboxExecutor(tmp_path / "state", keeps_spare=True)
    names: list[str] = []
    for number in range(3):  # the first finds none
        handle = await executor.start(a_launch(name=f"job-{number}", command=("sleep", "600")))
        shim = json.loads((tmp_path / "state" / handle.name / "shim.json").read_text())
        names.append(Path(f"/proc/{shim['pid']}/comm").read_text().strip())
        await executor.stop(handle, 0)
        await asyncio.gather(*executor._filling)
    (spare, _) = executor._spares._spare
    spare.kill()  # died while it waited: the next container starts a shim of its own
    handle = await executor.start(a_launch(name="job-3"))
    assert (await executor.wait(handle)).code == 0
    await executor.reap(frozenset())
    await asyncio.gather(*executor._filling)
    (last, _) = executor._spares._spare
    await executor.close()

    assert names[1:] == [TAKEN, TAKEN]
    assert last.poll() == 0
    assert left_behind(tmp_path, "no-token") == []


async def test_two_nodes_on_one_host_do_not_meet(tmp_path: Path) -> None:
    first, second = SandboxExecutor(tmp_path / "first"), SandboxExecutor(tmp_path / "second")
    handle = await first.start(a_launch(command=("sleep", "600")))
    other = await second.start(a_launch(command=("sleep", "600")))

    assert await second.reap(frozenset()) == ("job",)
    assert await first.reattach(handle)
    assert not await second.reattach(other)
    await first.remove(handle)
    assert left_behind(tmp_path, "no-token") == []


@pytest.mark.root
async def test_reap_finds_control_groups_whose_files_somebody_deleted(tmp_path: Path) -> None:
    executor = SandboxExecutor(tmp_path / "sandbox")
    handle = await executor.start(a_launch(command=("sleep", "600")))
    os.kill(json.loads((tmp_path / "sandbox" / "job" / "shim.json").read_text())["pid"], signal.SIGKILL)
    await until(lambda: not any(line.startswith("process") for line in left_behind(tmp_path, "no-token")))
    shutil.rmtree(tmp_path / "sandbox" / "job")
    kept = await executor.start(a_launch(name="kept", command=("sleep", "600")))
    assert any(handle.name in line for line in left_behind(tmp_path, "no-token"))

    assert await executor.reap(frozenset({"kept"})) == ()

    left = left_behind(tmp_path, "no-token")
    assert [line for line in left if line.endswith("-job")] == []
    assert [line for line in left if line.endswith("-kept")] != []
    await executor.remove(kept)


def test_the_process_executor_wants_to_be_told_whose_jobs_it_runs(tmp_path: Path) -> None:
    with pytest.raises(LaunchRefused) as refusal:
        ProcessExecutor(tmp_path)

    assert refusal.value.code == "no_isolation"


# --- which executor --------------------------------------------------------------------------------------------------


async def test_auto_takes_the_sandbox_where_no_engine_answers_and_says_so(tmp_path: Path) -> None:
    chosen = await choose_executor("auto", tmp_path, node_label="n", docker_socket=tmp_path / "none.sock")

    assert chosen.executor.name == "sandbox"
    assert chosen.why.startswith("no container engine (")
    assert "limits by " in chosen.why


async def test_docker_alone_is_never_replaced_by_something_weaker(tmp_path: Path) -> None:
    with pytest.raises(ExecutorUnavailable) as refusal:
        await choose_executor("docker", tmp_path, node_label="n", docker_socket=tmp_path / "none.sock")

    assert refusal.value.code == "executor_unavailable"


async def test_auto_refuses_with_both_reasons_where_nothing_can_isolate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "isolation_here", _no_bubblewrap)

    with pytest.raises(ExecutorUnavailable) as refusal:
        await choose_executor("auto", tmp_path, node_label="n", docker_socket=tmp_path / "none.sock")

    assert "docker: " in refusal.value.message
    assert "sandbox: bubblewrap is not installed" in refusal.value.message


def _no_bubblewrap() -> object:
    from torg_host.sandbox.errors import SandboxUnavailable

    raise SandboxUnavailable("bubblewrap is not installed")
