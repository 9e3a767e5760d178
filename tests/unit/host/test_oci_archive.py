"""An image archive is read without trust, and unpacked into its own folder and nowhere else."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.support.image_files import layer, sha256, write_image
from torg_host.oci_archive import check_image_archive, read_image, write_docker_archive
from torg_host.oci_unpack import unpack_image
from torg_protocol.errors import Invalid, TooLarge

PLAIN = layer(("etc", None), ("etc/motd", b"hello"), ("lib", "-> usr/lib"), ("usr/lib", None))


def unpacked(tmp_path: Path, *layers: bytes, max_bytes: int = 1 << 20) -> Path:
    write_image(tmp_path / "image.tar", list(layers))
    root = tmp_path / "root"
    root.mkdir()
    unpack_image(read_image(tmp_path / "image.tar"), root, max_bytes)
    return root


@pytest.mark.parametrize("kind", ["oci", "docker"])
@pytest.mark.parametrize("compressed", [False, True])
def test_both_layouts_are_read_and_rewritten_for_engines(tmp_path: Path, kind: str, compressed: bool) -> None:
    digest = write_image(tmp_path / "image.tar", [PLAIN, layer(("a", b"1"))], kind=kind, compressed=compressed)

    image = read_image(tmp_path / "image.tar")
    rewritten = io.BytesIO()
    write_docker_archive(image, rewritten, 1 << 20)
    (tmp_path / "again.tar").write_bytes(rewritten.getvalue())

    assert image.digest == read_image(tmp_path / "again.tar").digest == digest
    assert image.config["Cmd"] == ["sh", "-c", "echo default"]
    root = tmp_path / "root"
    root.mkdir()
    unpack_image(image, root, 1 << 20)
    assert (root / "etc/motd").read_text() == "hello"
    assert (root / "a").read_text() == "1"


def test_upper_layers_replace_remove_and_hide(tmp_path: Path) -> None:
    below = layer(("d", None), ("d/old", b"1"), ("d/gone", b"2"), ("f", b"file"), ("s", None), ("s/x", b"x"))
    above = layer(
        ("d/.wh.gone", b""),
        ("d/old", b"new"),
        ("f", None),
        ("f/inside", b"3"),
        ("s/new", b"4"),
        ("s/.wh..wh..opq", b""),
    )
    root = unpacked(tmp_path, below, above)

    assert {str(path.relative_to(root)) for path in root.rglob("*")} == {"d", "d/old", "f", "f/inside", "s", "s/new"}
    assert (root / "d/old").read_text() == "new"


def test_links_lead_inside_only(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    climbing = os.path.relpath(tmp_path / "outside", tmp_path / "root")
    root = unpacked(
        tmp_path,
        PLAIN,
        layer(("lib/found", b"1"), ("abs", f"-> {tmp_path / 'outside'}"), ("climb", f"-> {climbing}")),
        layer(("abs/evil", b"2"), ("climb/evil", b"3"), ("hard", "=> etc/motd"), ("lib/gone/.wh.x", b"")),
    )

    assert (root / "usr/lib/found").read_text() == "1"
    assert list((tmp_path / "outside").iterdir()) == []
    assert (root / "hard").read_text() == "hello"


@pytest.mark.parametrize(
    "entries",
    [
        [("../evil", b"x")],
        [("a/../../evil", b"x")],
        [("hard", "=> ../../etc/passwd")],
        [("hard", "=> nothing-there")],
        [("circle", "-> circle"), ("circle/x", b"x")],
    ],
)
def test_layers_that_mean_harm_are_refused(tmp_path: Path, entries: list[tuple[str, bytes | str | None]]) -> None:
    with pytest.raises(Invalid) as refused:
        unpacked(tmp_path, layer(*entries))

    assert refused.value.code == "image_archive_invalid"
    assert not (tmp_path / "evil").exists()


def test_devices_and_set_user_id_bits_are_left_out(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, mode in (
            ("sda", tarfile.BLKTYPE, 0o666),
            ("pipe", tarfile.FIFOTYPE, 0o666),
            ("su", tarfile.REGTYPE, 0o4755),
        ):
            header = tarfile.TarInfo(name)
            header.type, header.mode, header.devmajor = kind, mode, 8
            tar.addfile(header)
    root = unpacked(tmp_path, buffer.getvalue())

    assert [path.name for path in root.iterdir()] == ["su"]
    assert (root / "su").stat().st_mode & 0o7777 == 0o755


def test_more_than_the_limit_is_refused_also_when_it_is_packed_small(tmp_path: Path) -> None:
    bomb = layer(("zeros", bytes(4 << 20)))
    write_image(tmp_path / "bomb.tar", [bomb], compressed=True)
    image = read_image(tmp_path / "bomb.tar")
    root = tmp_path / "root"
    root.mkdir()

    for load in (
        lambda: unpack_image(image, root, 1 << 20),
        lambda: write_docker_archive(image, io.BytesIO(), 1 << 20),
    ):
        with pytest.raises(TooLarge) as refused:
            load()
        assert refused.value.code == "image_too_large"


def test_what_does_not_match_its_digest_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "layers.tar", [PLAIN], diff_ids=[sha256(b"other")])
    image = read_image(tmp_path / "layers.tar")
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(Invalid, match="a layer is not what the image says"):
        unpack_image(image, root, 1 << 20)

    write_image(tmp_path / "blobs.tar", [PLAIN])
    data = (tmp_path / "blobs.tar").read_bytes()
    (tmp_path / "blobs.tar").write_bytes(data.replace(b"FROM_IMAGE=yes", b"FROM_IMAGE=not"))
    with pytest.raises(Invalid, match="has other content"):
        read_image(tmp_path / "blobs.tar")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": "s390x"}, "it is for linux/s390x"),
        ({"os": "windows"}, "it is for windows"),
        ({"diff_ids": []}, "0 named"),
    ],
)
def test_what_cannot_run_here_is_refused(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    write_image(tmp_path / "image.tar", [PLAIN], **changes)

    with pytest.raises(Invalid, match=says):
        read_image(tmp_path / "image.tar")


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, PLAIN])
def test_what_is_no_image_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "image.tar").write_bytes(data)

    with pytest.raises(Invalid) as refused:
        read_image(tmp_path / "image.tar")
    assert refused.value.code == "image_archive_invalid"


@pytest.mark.parametrize(
    ("packer", "pack"),
    [("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress), ("zstd", zstandard.compress)],
)
def test_a_compressed_archive_is_refused_before_it_is_sent(
    tmp_path: Path, packer: str, pack: Callable[[bytes], bytes]
) -> None:
    plain, packed = tmp_path / "image.tar", tmp_path / "image.tar.packed"
    write_image(plain, [layer(("a", b"a"))])
    packed.write_bytes(pack(plain.read_bytes()))

    check_image_archive(plain)
    with pytest.raises(Invalid) as refused:
        check_image_archive(packed)
    assert (refused.value.code, refused.value.field, refused.value.value) == (
        "image_archive_compressed",
        "image",
        str(packed),
    )
    assert f"{packer} -dk image.tar.packed" in (refused.value.hint or "")


@pytest.mark.parametrize("content", [b"", b"no archive", layer(("etc/passwd", b"root"))])
def test_a_file_that_is_no_image_is_refused_before_it_is_sent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image.tar").write_bytes(content)

    with pytest.raises(Invalid) as refused:
        check_image_archive(tmp_path / "image.tar")
    assert refused.value.code == "image_archive_invalid"
