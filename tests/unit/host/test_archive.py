"""Packing is reproducible; unpacking refuses everything that could leave the destination or fill the disk."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import zstandard

from torg_host.archive import UnpackLimits, pack, sha256_file, unpack
from torg_protocol.errors import Conflict, Invalid, TooLarge, TorgError


def member(name: str, data: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    if info.type != tarfile.REGTYPE:
        info.size, data = 0, b""
    return info, data


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def archive_of(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """An archive exactly as hostile as asked: tarfile adds members without looking at their names."""
    path = tmp_path / "hostile.tar.zst"
    with (
        path.open("wb") as file,
        zstandard.ZstdCompressor().stream_writer(file) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def a_tree(root: Path) -> Path:
    (root / "src" / "deep").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "src" / "main.py").write_text("print(1)\n")
    (root / "src" / "deep" / "run.sh").write_text("#!/bin/sh\n")
    (root / "src" / "deep" / "run.sh").chmod(0o700)
    (root / "ünïcode name").write_bytes(b"\0" * 5000)
    (root / ("long-" * 40)).write_text("a name beyond the 100 bytes of old tar")
    (root / "latest").symlink_to("src/deep")
    (root / "src" / "up").symlink_to("../empty")
    return root


def listing(root: Path) -> dict[str, object]:
    return {
        str(path.relative_to(root)): path.readlink()
        if path.is_symlink()
        else (path.stat().st_mode & 0o7777, path.read_bytes())
        if path.is_file()
        else "directory"
        for path in root.rglob("*")
    }


def test_a_tree_survives_the_round_trip(tmp_path: Path) -> None:
    root = a_tree(tmp_path / "tree")

    packed = pack(root, tmp_path / "tree.tar.zst")
    unpacked = unpack(tmp_path / "tree.tar.zst", tmp_path / "copy")

    assert packed.files == unpacked.files == 4
    assert packed.unpacked_bytes == unpacked.unpacked_bytes
    assert packed.size_bytes == (tmp_path / "tree.tar.zst").stat().st_size
    assert packed.digest == sha256_file(tmp_path / "tree.tar.zst")
    before, after = listing(root), listing(tmp_path / "copy")
    before["src/deep/run.sh"] = (0o755, b"#!/bin/sh\n")  # 0700 is normalised
    assert after == before


def test_equal_trees_give_equal_bytes(tmp_path: Path) -> None:
    first, second = a_tree(tmp_path / "first"), tmp_path / "second"
    a_tree(second)
    for path in second.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    (second / "src" / "main.py").chmod(0o600)

    digests = {pack(root, tmp_path / "out").digest for root in (first, second, first)}

    assert len(digests) == 1


def test_one_changed_byte_changes_the_digest(tmp_path: Path) -> None:
    root = a_tree(tmp_path / "tree")
    before = pack(root, tmp_path / "out").digest
    (root / "src" / "main.py").write_text("print(2)\n")

    assert pack(root, tmp_path / "out").digest != before


HOSTILE = {
    "absolute": ([member("/etc/passwd")], "archive_absolute_path", "/etc/passwd"),
    "parent": ([member("../escape")], "archive_parent_path", "../escape"),
    "hidden parent": ([member("a/b/../../../escape")], "archive_parent_path", "a/b/../../../escape"),
    "absolute link": ([link("l", "/etc")], "archive_link_outside", "l"),
    "climbing link": ([link("a/l", "../../etc")], "archive_link_outside", "a/l"),
    "link through a link": ([link("here", "."), link("l", "here/..")], "archive_link_outside", "l"),
    "file through a link": ([link("l", "."), member("l/x")], "archive_through_link", "l/x"),
    "link over a directory": ([member("d/x"), link("d", ".")], "archive_duplicate", "d"),
    "link over a file": ([member("f"), link("f", "g")], "archive_duplicate", "f"),
    "same name twice": ([member("f"), member("./f")], "archive_duplicate", "f"),
    "file as directory": ([member("f"), member("f/x")], "archive_broken", "f/x"),
    "hard link": ([member("f"), member("h", type=tarfile.LNKTYPE, linkname="f")], "archive_member_kind", "h"),
    "device": ([member("d", type=tarfile.CHRTYPE, devmajor=1, devminor=3)], "archive_member_kind", "d"),
    "pipe": ([member("p", type=tarfile.FIFOTYPE)], "archive_member_kind", "p"),
    "setuid": ([member("s", mode=0o4755)], "archive_setuid", "s"),
    "setgid": ([member("s", mode=0o2755)], "archive_setuid", "s"),
    "long part": ([member("n" * 300)], "archive_name_too_long", "n" * 80 + "..."),
    "long path": ([member("/".join(["n" * 50] * 30))], "archive_name_too_long", ("n" * 50 + "/" + "n" * 29) + "..."),
    "deep": ([member("/".join("d" * 100))], "archive_too_deep", "/".join("d" * 100)),
}


@pytest.mark.parametrize("case", HOSTILE, ids=lambda name: name.replace(" ", "-"))
def test_hostile_members_are_refused_by_name_and_leave_nothing(case: str, tmp_path: Path) -> None:
    members, code, name = HOSTILE[case]
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = archive_of(tmp_path, member("innocent", b"first"), *members)

    with pytest.raises(TorgError) as refusal:
        unpack(archive, inside / "out")

    assert (refusal.value.code, refusal.value.value) == (code, name)
    assert list(inside.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostile.tar.zst", "inside"]


def test_too_many_files(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, *[member(f"f{number}") for number in range(11)])

    with pytest.raises(TooLarge) as refusal:
        unpack(archive, tmp_path / "out", UnpackLimits(max_files=10))

    assert (refusal.value.code, refusal.value.value) == ("archive_too_many_files", "f10")
    assert not (tmp_path / "out").exists()


def test_a_compression_bomb_stops_at_the_limit_without_being_written(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, member("bomb", bytes(50 << 20)))
    assert archive.stat().st_size < 100_000

    with pytest.raises(TooLarge) as refusal:
        unpack(archive, tmp_path / "out", UnpackLimits(max_bytes=1 << 20))

    assert (refusal.value.code, refusal.value.value) == ("archive_too_large", "bomb")


def test_a_header_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("f")
    info.pax_headers = {"comment": "A" * (4 << 20)}

    with pytest.raises(Invalid) as refusal:
        unpack(archive_of(tmp_path, (info, b"")), tmp_path / "out")

    assert refusal.value.code == "archive_broken"
    assert "headers too large" in refusal.value.message


@pytest.mark.parametrize("keep", [0, 10, 200, -5])
def test_a_damaged_archive_is_refused(keep: int, tmp_path: Path) -> None:
    pack(a_tree(tmp_path / "tree"), tmp_path / "whole")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:keep])

    with pytest.raises(Invalid) as refusal:
        unpack(tmp_path / "cut", tmp_path / "out")

    assert refusal.value.code == "archive_broken"
    assert not (tmp_path / "out").exists()


def test_unpacking_that_is_not_wanted_any_more_stops_and_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(50):
        (root / f"file-{number}").write_bytes(os.urandom(20_000))
    pack(root, tmp_path / "tree.tar.zst")
    there = sorted(tmp_path.iterdir())
    asked, unpacking = [], []

    def is_wanted() -> bool:
        asked.append(1)
        unpacking.extend(item for item in tmp_path.iterdir() if ".unpacking-" in item.name)
        return len(asked) < 40

    with pytest.raises(InterruptedError):
        unpack(tmp_path / "tree.tar.zst", tmp_path / "copy", is_wanted=is_wanted)
    assert (len(asked), bool(unpacking)) == (40, True)
    assert sorted(tmp_path.iterdir()) == there


def test_a_full_destination_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")

    with pytest.raises(Conflict) as refusal:
        unpack(archive_of(tmp_path, member("f")), tmp_path / "out")

    assert refusal.value.code == "archive_destination_exists"
    assert (tmp_path / "out" / "mine").read_text() == "keep"


def test_packing_refuses_what_unpacking_would(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "passwd").symlink_to("/etc/passwd")

    with pytest.raises(Invalid) as refusal:
        pack(root, tmp_path / "out")

    assert (refusal.value.code, refusal.value.value) == ("archive_link_outside", "passwd")
    assert not (tmp_path / "out").exists()


def test_packing_a_jobs_output_skips_odd_things_and_lists_them(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "model.bin").write_bytes(b"weights")
    (root / "passwd").symlink_to("/etc/passwd")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "sock"))
        packed = pack(root, tmp_path / "out", skip_odd=True)

    unpack(tmp_path / "out", tmp_path / "copy")
    assert packed.skipped == ("passwd", "pipe", "sock")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["model.bin"]


def test_packing_stops_at_the_limit(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 40)  # takes no disk, would take hours to read

    with pytest.raises(TooLarge) as refusal:
        pack(root, tmp_path / "out", limits=UnpackLimits(max_bytes=1 << 30))

    assert (refusal.value.code, refusal.value.value) == ("archive_too_large", "sparse")


def test_ignored_files_stay_at_home(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / ".git").mkdir(parents=True)
    (root / "data").mkdir()
    (root / ".git" / "config").write_text("secret")
    (root / ".gitignore").write_text("*.log\n/data/\n")
    (root / "a.log").write_text("noise")
    (root / "data" / "big").write_text("noise")
    (root / "main.py").write_text("kept")
    (root / "sub").mkdir()
    (root / "sub" / ".gitignore").write_text("!keep.log\nlocal\n")
    (root / "sub" / "keep.log").write_text("kept")
    (root / "sub" / "local").write_text("noise")

    pack(root, tmp_path / "out")
    unpack(tmp_path / "out", tmp_path / "copy")
    packed_all = pack(root, tmp_path / "all", ignore=False)

    kept = sorted(str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file())
    assert kept == [".gitignore", "main.py", "sub/.gitignore", "sub/keep.log"]
    assert packed_all.files == 8


def test_torgignore_replaces_gitignore(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / ".gitignore").write_text("dataset\n")
    (root / ".torgignore").write_text("notes\n")
    (root / "dataset").write_text("kept: the job needs it, git does not")
    (root / "notes").write_text("left out")

    pack(root, tmp_path / "out")
    unpack(tmp_path / "out", tmp_path / "copy")

    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [".gitignore", ".torgignore", "dataset"]


@pytest.mark.parametrize("name", [".torgignore", ".gitignore", "below/.torgignore"])
def test_rules_that_cannot_be_read_stop_the_packing(name: str, tmp_path: Path) -> None:
    """They name what is to stay at home: secrets would go up if they were read over."""
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / ".torgignore").write_text("") if "below" in name else None
    (tmp_path / "rules-of-all").write_text("*.key\n")
    (tree / "wallet.key").write_text("secret")

    (tree / name).symlink_to("../../rules-of-all" if "below" in name else "../rules-of-all")
    assert _refusal(tree) == ("ignore_file_unreadable", name)
    (tree / name).unlink()
    (tree / name).write_bytes(b"#" * (1 << 20) + b"\n*.key\n")
    assert _refusal(tree) == ("ignore_file_unreadable", name)
    (tree / name).unlink()
    (tree / name).mkdir()
    assert _refusal(tree) == ("ignore_file_unreadable", name)


def test_a_file_that_may_not_be_read_is_named_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "theirs").write_text("x")
    opened = os.open

    def refuse(path: str, flags: int, **more: int) -> int:
        if path == "theirs":
            raise PermissionError(13, "Permission denied", path)
        return opened(path, flags, **more)

    monkeypatch.setattr(os, "open", refuse)  # root reads everything
    assert _refusal(tmp_path / "tree") == ("archive_unreadable", "sub/theirs")


def _refusal(tree: Path) -> tuple[str, object]:
    target = tree.with_name("tree.tar.zst")
    with pytest.raises(Invalid) as refused:
        pack(tree, target)
    assert refused.value.hint
    assert not target.exists()
    return refused.value.code, refused.value.value


def test_a_directory_that_keeps_turning_into_a_link_never_gives_away_what_it_points_at(tmp_path: Path) -> None:
    """What a job does while the agent, as root, packs its outputs."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("TOP SECRET")
    root = tmp_path / "tree"
    (root / "spare").mkdir(parents=True)
    (root / "spare" / "key").write_text("harmless")
    flip = f"""
import os
os.chdir({str(root)!r})
while True:
    os.rename("spare", "outputs")
    os.rename("outputs", "spare")
    os.symlink({str(secret)!r}, "outputs")
    os.unlink("outputs")
"""
    flipper = subprocess.Popen([sys.executable, "-c", flip])
    try:
        packed, refusals = 0, set()
        enough, deadline = time.monotonic() + 1, time.monotonic() + 120
        while time.monotonic() < (enough if refusals and packed else deadline):
            try:
                pack(root, tmp_path / "out", skip_odd=True)
            except Conflict as error:
                refusals.add(error.code)
                continue
            packed += 1
            unpack(tmp_path / "out", tmp_path / f"copy-{packed}")
            for path in (tmp_path / f"copy-{packed}").rglob("key"):
                assert path.read_text() == "harmless"
    finally:
        flipper.kill()
        flipper.wait()
    assert packed > 0
    assert refusals == {"archive_changed"}
