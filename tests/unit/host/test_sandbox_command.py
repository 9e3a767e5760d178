"""The container as bubblewrap's options: what must be there, in which order, and which specs are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from torg_host.sandbox.command import ContainerSpec, Isolation, SandboxLimits, check, plan
from torg_host.sandbox.images import Image, SandboxMount
from torg_protocol.errors import Invalid

MIB = 1 << 20
IMAGE = Image(
    "host-python",
    (SandboxMount(Path("/usr"), "/usr"), SandboxMount(Path("/home/me/venv"), "/opt/venv")),
    (("usr/bin", "/bin"),),
    (("PATH", "/opt/venv/bin:/usr/bin"),),
    has_etc=False,
)
LIMITS = SandboxLimits(memory_bytes=256 * MIB, cpu_millis=500, disk_bytes=1 << 30, shm_bytes=32 * MIB, pids=100)
ROOT = Isolation(Path("/usr/bin/bwrap"), user=(65534, 65534), cgroups=True)
PLAIN_USER = Isolation(Path("/usr/bin/bwrap"), user=None, cgroups=False)


def spec(**changes: Any) -> ContainerSpec:
    fields: dict[str, Any] = {"command": ("python", "x.py"), "image": IMAGE, "limits": LIMITS, "max_duration_ms": 1000}
    return ContainerSpec(**{**fields, **changes})


def the_plan(isolation: Isolation, **changes: Any) -> dict[str, Any]:
    return plan(spec(**changes), Path("/state/job"), isolation, "torg/x-job")


def after(options: list[str], *sequence: str) -> int:
    """Where `sequence` starts in the options; fails when it is not there."""
    width = len(sequence)
    return next(at for at in range(len(options)) if tuple(options[at : at + width]) == sequence)


def test_every_namespace_is_new_and_nothing_is_inherited() -> None:
    options = the_plan(ROOT)["options"]

    for wanted in (
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
    ):
        assert wanted in options
    assert after(options, "--cap-drop", "ALL")
    assert "--share-net" not in options


def test_every_file_system_in_memory_is_sized() -> None:
    options = the_plan(ROOT)["options"]

    assert after(options, "--size", str(128 * MIB), "--tmpfs", "/tmp")
    assert after(options, "--size", str(32 * MIB), "--tmpfs", "/dev/shm")
    assert options.count("--tmpfs") == options.count("--size") == 2


def test_root_and_dev_become_read_only_after_all_mounts() -> None:
    mounts = (SandboxMount(Path("/data/ws"), "/workspace", writable=True),)
    options = the_plan(ROOT, mounts=mounts)["options"]

    last_mount = max(at for at, option in enumerate(options) if option in {"--bind", "--ro-bind", "--tmpfs", "--dev"})
    assert after(options, "--remount-ro", "/dev", "--remount-ro", "/") > last_mount


def test_only_writable_mounts_are_writable() -> None:
    mounts = (
        SandboxMount(Path("/data/ws"), "/workspace", writable=True),
        SandboxMount(Path("/data/in"), "/inputs"),
    )
    options = the_plan(PLAIN_USER, mounts=mounts)["options"]

    assert after(options, "--bind", "/data/ws", "/workspace")
    assert after(options, "--ro-bind", "/data/in", "/inputs")
    assert options.count("--bind") == 1


def test_as_root_sources_are_named_inside_the_private_root_only() -> None:
    planned = the_plan(ROOT, mounts=(SandboxMount(Path("/root/secret-home/ws"), "/workspace"),))

    assert "/root/secret-home/ws" not in planned["options"]
    places = {source: place for source, place, _ in planned["private_root"]["binds"]}
    assert after(planned["options"], "--ro-bind", places["/root/secret-home/ws"], "/workspace")
    assert (planned["uid"], planned["gid"]) == (65534, 65534)


def test_as_root_limits_are_the_control_groups() -> None:
    planned = the_plan(ROOT)

    assert planned["cgroup"] == {"name": "torg/x-job", "memory_bytes": 256 * MIB, "pids": 102, "cpu_millis": 500}
    assert planned["rlimits"] == {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 1 << 30}


def test_as_a_plain_user_limits_are_rlimits() -> None:
    planned = the_plan(PLAIN_USER)

    assert (planned["cgroup"], planned["private_root"], planned["uid"]) == (None, None, None)
    assert planned["rlimits"]["RLIMIT_AS"] == 256 * MIB
    assert planned["rlimits"]["RLIMIT_NPROC"] == 100


def test_the_spec_overrides_the_images_environment() -> None:
    options = the_plan(ROOT, env={"PATH": "/mine", "A": "b"})["options"]

    assert after(options, "--setenv", "PATH", "/mine")
    assert after(options, "--setenv", "A", "b")
    assert options.count("PATH") == 1


@pytest.mark.parametrize(
    ("changes", "code", "value"),
    [
        ({"command": ()}, "bad_command", None),
        ({"command": ("a\0b",)}, "bad_command", None),
        ({"env": {"A=B": "c"}}, "bad_env", "A=B"),
        ({"env": {"A": "\0"}}, "bad_env", "A"),
        ({"workdir": "relative"}, "bad_workdir", "relative"),
        *(
            ({"mounts": (SandboxMount(Path("/x"), target),)}, "bad_mount", target)
            for target in (
                "relative",
                "/",
                "/a/../b",
                "/a//b",
                "/proc/x",
                "/dev/shm/x",
                "/sys",
                "/etc/x",
                "/usr",
                "/usr/x",
            )
        ),
        *(
            ({"mounts": (SandboxMount(Path("/x"), target),)}, "bad_mount", target)
            for target in ("/opt", "/opt/venv", "/bin/x")
        ),
    ],
)
def test_what_could_only_fail_or_mislead_is_refused(changes: dict[str, Any], code: str, value: str | None) -> None:
    with pytest.raises(Invalid) as refusal:
        check(spec(**changes))

    assert (refusal.value.code, refusal.value.value) == (code, value)


def test_places_of_their_own_are_fine() -> None:
    targets = ("/workspace", "/inputs/a/b", "/opt/data", "/tmp/x")
    check(spec(mounts=tuple(SandboxMount(Path("/x"), target) for target in targets)))
