"""A job's own disk: it holds what it should, no more, and leaves nothing."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from torg_host.disk import QuotaDisk

MIB = 1 << 20


def loop_devices(directory: Path) -> list[str]:
    listing = subprocess.run(["losetup", "--list", "--noheadings"], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if str(directory) in line]


def fill(path: Path) -> tuple[int | None, int]:
    """Writes until that fails; the error and the bytes written."""
    written = 0
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                written += file.write(bytes(MIB))
        except OSError as error:
            return error.errno, written


@pytest.mark.root
def test_it_fills_up_at_its_size_and_is_gone_afterwards(tmp_path: Path) -> None:
    disk = QuotaDisk(tmp_path / "disk", 16 * MIB, owner=(65534, 65534))
    state = disk.open()
    assert state.enforced
    assert (state.files.stat().st_uid, list(state.files.iterdir())) == (65534, [])

    error, written = fill(state.files / "big")
    assert error == errno.ENOSPC
    assert 14 * MIB < written <= 16 * MIB
    mounted = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(state.files) in line)
    assert "nosuid,nodev" in mounted

    for _ in range(2):
        disk.remove()
    assert not (tmp_path / "disk").exists()
    assert loop_devices(tmp_path) == []


@pytest.mark.root
def test_a_restarted_agent_finds_it_again(tmp_path: Path) -> None:
    first = QuotaDisk(tmp_path / "disk", 16 * MIB)
    (first.open().files / "checkpoint").write_text("step 100")

    again = QuotaDisk(tmp_path / "disk", 16 * MIB)
    assert (again.open().files / "checkpoint").read_text() == "step 100"
    assert len(loop_devices(tmp_path)) == 1

    subprocess.run(["umount", str(again.files)], check=True)  # as after a restart of the host
    assert not (again.files / "checkpoint").exists()
    assert (again.open().files / "checkpoint").read_text() == "step 100"

    again.remove()
    assert loop_devices(tmp_path) == []


@pytest.mark.root
def test_a_folder_with_blanks_in_its_name_is_a_folder(tmp_path: Path) -> None:
    disk = QuotaDisk(tmp_path / "my node" / "disk", 16 * MIB)
    disk.open()
    assert disk.is_mounted()

    disk.remove()
    assert not (tmp_path / "my node" / "disk").exists()
    assert loop_devices(tmp_path) == []


@pytest.mark.root
def test_a_half_made_image_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "disk.img.partial").write_bytes(b"killed while making it")
    disk = QuotaDisk(tmp_path / "disk", 16 * MIB)
    try:
        assert disk.open().enforced
    finally:
        disk.remove()


@pytest.mark.root
def test_disks_of_a_size_are_copies_of_one_blank_and_know_nothing_of_each_other(tmp_path: Path) -> None:
    blanks = tmp_path / "blanks"
    disks = [QuotaDisk(tmp_path / name, 16 * MIB, blanks=blanks) for name in ("first", "second")]
    try:
        assert all(disk.open().enforced for disk in disks)
        error, written = fill(disks[0].files / "big")
        assert (error, 14 * MIB < written <= 16 * MIB) == (errno.ENOSPC, True)
        assert list(disks[1].files.iterdir()) == []
        assert fill(disks[1].files / "big")[1] == written
        (blank,) = blanks.iterdir()
        assert (blank.stat().st_size, blank.stat().st_blocks * 512 < MIB) == (16 * MIB, True)
        assert len(loop_devices(tmp_path)) == 2
    finally:
        for disk in disks:
            disk.remove()
    assert loop_devices(tmp_path) == []


@pytest.mark.root
def test_a_blank_is_its_owners(tmp_path: Path) -> None:
    for owner in ((65534, 65534), (1, 2)):
        disk = QuotaDisk(tmp_path / "disk", 16 * MIB, owner=owner, blanks=tmp_path / "blanks")
        try:
            status = disk.open().files.stat()
            assert (status.st_uid, status.st_gid) == owner
        finally:
            disk.remove()


@pytest.mark.root
@pytest.mark.parametrize("spoiled", [b"", bytes(16 * MIB)], ids=["cut", "zeros"])
def test_a_blank_that_the_host_lost_is_made_anew(tmp_path: Path, spoiled: bytes) -> None:
    blanks = tmp_path / "blanks"
    disk = QuotaDisk(tmp_path / "disk", 16 * MIB, blanks=blanks)
    disk.open()
    disk.remove()
    (blank,) = blanks.iterdir()
    blank.write_bytes(spoiled)
    try:
        assert disk.open().enforced
        assert not blank.exists()
    finally:
        disk.remove()
    assert loop_devices(tmp_path) == []


@pytest.mark.root
def test_blanks_are_few(tmp_path: Path) -> None:
    for number in range(18):
        QuotaDisk(tmp_path / "disk", (8 + number) * MIB, blanks=tmp_path / "blanks")._copy_blank()
    sizes = {path.stat().st_size // MIB for path in (tmp_path / "blanks").iterdir()}
    assert sizes == set(range(10, 26))


@pytest.mark.root
def test_without_the_kernels_own_calls_the_tool_mounts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(image: Path, target: Path) -> None:
        raise OSError(errno.EINVAL, "no LOOP_CONFIGURE before Linux 5.8")

    monkeypatch.setattr("torg_host.disk.mount_ext4", refuse)
    disk = QuotaDisk(tmp_path / "disk", 16 * MIB)
    assert disk.open().enforced
    disk.remove()
    assert loop_devices(tmp_path) == []


def test_without_mkfs_it_says_that_nothing_is_enforced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torg_host.disk.TOOL_PATH", str(tmp_path))
    disk = QuotaDisk(tmp_path / "disk", 16 * MIB)

    state = disk.open()

    assert not state.enforced
    assert state.why in {"mkfs.ext4 is not installed", "disk quotas need root"}
    (state.files / "works").write_text("all the same")
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["files"]
    disk.remove()
    assert not (tmp_path / "disk").exists()
