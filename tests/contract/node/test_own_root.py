"""A container that is root of a user namespace: what it gets, and what it must not get. Each refusal is what an attacker would try."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.executors import Bench, ExecutorKind, isolating_kinds
from tests.support.image_files import BUSYBOX, busybox, layer, write_image
from tests.support.waiting import until
from torg_host.disk import QuotaDisk
from torg_host.sandbox.own_root import FIRST_HOST_ID
from torg_node.executors.errors import LaunchRefused
from torg_node.executors.port import Capabilities, ExitReason, InsideCommand, Mount
from torg_node.executors.probes import OWN_ROOT_PROBE, check_walls, with_own_root

MIB = 1 << 20
SANDBOX = [kind for kind in isolating_kinds() if kind.values[0].name == "sandbox"]
NOTHING = Capabilities("sandbox", "", "sandbox", (), ())
pytestmark = [
    pytest.mark.parametrize("kind", SANDBOX),
    pytest.mark.root,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox is not installed (Debian: busybox-static)"),
]


@pytest.fixture
async def bench(kind: ExecutorKind, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with kind.connect(request, tmp_path) as executor:
        yield Bench(kind, executor, tmp_path)
        await executor.reap(frozenset())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    quota = QuotaDisk(tmp_path / "lease", 32 * MIB)
    state = quota.open()
    assert state.enforced, state.why
    try:
        yield state.files
    finally:
        quota.remove()


ACCOUNTS = layer(
    ("etc/passwd", b"root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv/web:/bin/sh\n"),
    ("etc/group", b"root:x:0:\nweb:x:44:\nstaff:x:50:\n"),
    ("root", None),
    ("data", None),
)


async def an_image(bench: Bench, user: str = "", *layers: bytes) -> str:
    config = {"Env": ["PATH=/bin"], "Cmd": ["id"], "User": user}
    archive, staging = bench.root / "image.tar", bench.root / "staging"
    write_image(archive, [busybox(*TOOLS), ACCOUNTS, *layers], config=config)
    staging.mkdir()
    found = await bench.executor.load_archive(archive, staging, 64 * MIB)
    folder = staging.rename(bench.root.resolve() / "kept")
    return (await bench.executor.prepare_loaded(folder, found)).reference


TOOLS: list[Any] = [
    (f"bin/{name}", "-> busybox")
    for name in ("chown", "mkdir", "touch", "stat", "su", "setuidgid", "mknod", "dd", "rm", "mv", "sleep", "ln", "env")
]


async def said(bench: Bench, disk: Path, script: str, image: str, *, name: str = "job", **changes: Any) -> str:
    """What a shell in it says, both streams."""
    ended = await bench.run(
        *("sh", "-c", script), image=image, own_root=disk / "roots" / "job", workdir="/", name=name, **changes
    )
    await bench.executor.remove(ended.handle)
    return ended.text() + ended.text("stderr")


async def test_the_probe_holds_and_without_a_quota_nothing_is_offered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await with_own_root(bench.executor, NOTHING)
    assert (found.verified, found.not_offered) == ((OWN_ROOT_PROBE,), ())

    monkeypatch.setattr(QuotaDisk, "_make", lambda _self: "no loop devices here")
    found = await with_own_root(bench.executor, NOTHING)
    assert (found.verified, found.not_offered) == ((), ("own-root: no loop devices here",))
    check_walls(found)


async def test_root_writes_changes_owners_becomes_others_and_finds_it_all_gone_next_time(
    bench: Bench, disk: Path
) -> None:
    image = await an_image(bench)
    script = (
        "id -u; echo $HOME; cat /etc/hosts; touch /new /etc/added; chown 33:44 /new; stat -c %u:%g /new;"
        "echo changed > /etc/passwd; ls /etc; touch /tmp/x; mkdir /data/sub; ls -d /data/sub"
    )
    first = await said(bench, disk, script, image)
    assert first.splitlines() == [
        *("0", "/root", "127.0.0.1 localhost torg", "::1 localhost", "33:44"),
        *("added", "group", "hosts", "passwd", "/data/sub"),
    ]  # fmt: skip
    assert await said(bench, disk, "ls /new /etc/added; cat /etc/passwd", image, name="next") == (
        "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv/web:/bin/sh\n"
        "ls: /new: No such file or directory\nls: /etc/added: No such file or directory\n"
    )


@pytest.mark.parametrize(
    ("user", "wanted"),
    [("", "0 0 /root"), ("web", "33 44 /srv/web"), ("33", "33 44 /srv/web"), ("web:staff", "33 50 /srv/web"), ("1234:5", "1234 5 /")],
)  # fmt: skip
async def test_the_images_own_user_is_honoured(bench: Bench, disk: Path, user: str, wanted: str) -> None:
    work = disk / "work"
    work.mkdir()
    (work / "input").write_text("x")
    (work / "input").chmod(0o400)
    image = await an_image(bench, user)
    script = "echo $(id -u) $(id -g) $HOME; cat /job/input; touch /job/mine && echo; env | grep -c Cap; touch /bin/x"
    lines = (await said(bench, disk, script, image, mounts=(Mount(work, "/job", writable=True),))).splitlines()
    assert lines[:2] == [wanted, "x"]
    assert (work / "mine").stat().st_uid == FIRST_HOST_ID + int(wanted.split(maxsplit=1)[0])
    if user:
        assert any("/bin/x: Permission denied" in line for line in lines)


@pytest.mark.parametrize("user", ["nobody-here", "65535", "-1", "99999", "٣"])
async def test_a_user_that_there_is_not_is_refused(bench: Bench, disk: Path, user: str) -> None:
    image = await an_image(bench, user)
    with pytest.raises(LaunchRefused) as refused:
        await said(bench, disk, "id", image)
    assert (refused.value.code, refused.value.value) == ("image_user_unknown", user)


async def test_a_link_to_the_hosts_accounts_is_not_followed(bench: Bench, disk: Path) -> None:
    image = await an_image(bench, "daemon", layer(("etc/passwd", f"-> {'../' * 40}etc/passwd")))
    with pytest.raises(LaunchRefused) as refused:
        await said(bench, disk, "id", image)
    assert refused.value.code == "image_user_unknown"


async def test_what_is_written_is_bounded_and_full_is_said(bench: Bench, disk: Path) -> None:
    image = await an_image(bench)
    ended = await bench.run(
        *("dd", "if=/dev/zero", "of=/data/fill", "bs=1024k", "count=100"), image=image, own_root=disk / "roots" / "job", workdir="/"
    )  # fmt: skip
    assert (ended.exit.reason, ended.exit.code) == (ExitReason.DISK_FULL, 1)
    used = os.statvfs(disk)
    assert used.f_blocks * used.f_frsize <= 32 * MIB


async def test_outside_it_is_nobody(bench: Bench, disk: Path) -> None:
    image = await an_image(bench)
    handle = await bench.start("sleep", "600", image=image, own_root=disk / "roots" / "job", workdir="/")
    ids = {
        line.split()[0]: {int(one) for one in line.split()[1:]}
        for line in (Path("/proc") / str(await _pid_of(bench, "sleep")) / "status").read_text().splitlines()
        if line.startswith(("Uid:", "Gid:"))
    }
    assert ids == {"Uid:": {FIRST_HOST_ID}, "Gid:": {FIRST_HOST_ID}}
    await bench.executor.stop(handle, 0)


async def test_a_program_that_is_started_inside_has_the_same_rights(bench: Bench, disk: Path) -> None:
    image = await an_image(bench)
    handle = await bench.start("sleep", "600", image=image, own_root=disk / "roots" / "job", workdir="/")
    command = InsideCommand(
        ("sh", "-c", "id -u; touch /x && chown 33 /x && ls /x; mknod /b b 7 0; cat /proc/self/status")
    )
    program = await bench.executor.run_inside(handle, command)
    output = b""
    while (piece := await program.read()) is not None:
        output += piece[1]
    await program.wait()
    await program.close()
    await bench.executor.stop(handle, 0)
    text = output.decode()
    assert "mknod: /b: Operation not permitted" in text
    assert [line for line in text.splitlines() if line in ("0", "/x")] == ["0", "/x"]
    sets = {line.split()[0]: line.split()[1] for line in text.splitlines() if line.startswith(("Cap", "NoNewPrivs"))}
    assert sets.pop("NoNewPrivs:") == "1"
    assert set(sets.values()) == {"00000000000004fb"}


async def test_owners_in_the_image_count_and_what_lies_outside_of_it_cannot_be_made_writable(
    bench: Bench, disk: Path
) -> None:
    """A folder below the image that points out of it: bubblewrap meets it when it makes the places of mounts."""
    outside = bench.root / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    evil = layer(("job", f"-> {outside}"), ("inputs", "-> /oldroot/proc/sys/kernel"))
    image = await an_image(bench, "", evil)
    work, inputs = disk / "work", disk / "inputs"
    work.mkdir()
    inputs.mkdir()
    mounts = (Mount(work, "/job", writable=True), Mount(inputs, "/inputs"))
    try:
        text = await said(bench, disk, "touch /job/here; ls -a /inputs", image, mounts=mounts)
    except Exception:  # noqa: BLE001  not to start is as good
        text = ""
    assert list(outside.iterdir()) == []
    assert "core_pattern" not in text


async def test_a_layer_that_an_earlier_task_planted_is_gone_and_links_are_not_followed(
    bench: Bench, disk: Path
) -> None:
    image, target = await an_image(bench), bench.root / "precious"
    target.mkdir()
    (target / "file").write_text("x")
    (disk / "roots").mkdir()
    (disk / "roots" / "job").symlink_to(target)
    with pytest.raises(Exception):  # noqa: B017  whatever it is called, nothing ran there
        await said(bench, disk, "touch /planted", image)
    assert [path.name for path in target.iterdir()] == ["file"]


async def test_a_deadline_ends_all_of_it_although_root_could_ignore_signals(bench: Bench, disk: Path) -> None:
    image = await an_image(bench)
    ended = await bench.run(
        *("sh", "-c", "trap '' TERM; while true; do sleep 1; done"), image=image, own_root=disk / "roots" / "job",
        workdir="/", max_duration_ms=1000,
    )  # fmt: skip
    assert ended.exit.reason is ExitReason.MAX_DURATION
    assert ended.exit.finished_at_ms - ended.exit.started_at_ms < 60_000


async def test_an_image_whose_files_belong_to_others_is_refused(bench: Bench, disk: Path) -> None:
    reference = await an_image(bench)
    os.chown(Path(reference.removeprefix("loaded:")) / "rootfs", 0, 0)
    spec = bench.spec("true", image=reference, workdir="/")
    with pytest.raises(LaunchRefused) as refused:
        await bench.executor.start(replace(spec, own_root=disk / "roots" / "job"))
    assert refused.value.code == "own_root_unavailable"


async def _pid_of(bench: Bench, program: str) -> int:
    """Once the container has come to it: a start is over a moment before."""
    await until(lambda: _pids_of(bench, program) != [])
    return _pids_of(bench, program)[0]


def _pids_of(bench: Bench, program: str) -> list[int]:
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                if bench.token.encode() in (directory / "environ").read_bytes():
                    words = (directory / "cmdline").read_bytes().split(b"\0")
                    if words[0] == program.encode():
                        found.append(int(directory.name))
            except OSError:
                continue
    return found
