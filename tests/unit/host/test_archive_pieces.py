"""An archive's pieces: what they are of, and how few of them a small change of the tree touches."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from torg_host.archive import PackedTree, Piece, digest_of_file, pack, size_of_tree, unpack
from torg_host.archive_pieces import LARGEST_PIECE_BYTES, PieceWriter
from torg_protocol.canonical import sha256_digest
from torg_protocol.pieces import digest_of_pieces

MIB = 1 << 20


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def many_small_files(root: Path) -> Path:
    for number in range(600):
        path = root / f"package{number % 20}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(8 << 10, number))
    return root


def new_share(before: PackedTree, after: PackedTree) -> float:
    """The part of an archive that a store which has another one lacks."""
    known = {piece.digest for piece in before.pieces}
    return sum(piece.size_bytes for piece in after.pieces if piece.digest not in known) / after.size_bytes


def test_the_pieces_are_the_archive_and_each_is_what_its_name_says(tmp_path: Path) -> None:
    root = many_small_files(tmp_path / "tree")
    (root / "weights.bin").write_bytes(noise(9 * MIB, 1))
    (root / "zeros.bin").write_bytes(bytes(9 * MIB))

    packed = pack(root, tmp_path / "archive")

    data = (tmp_path / "archive").read_bytes()
    cuts = [data[piece.offset : piece.offset + piece.size_bytes] for piece in packed.pieces]
    assert b"".join(cuts) == data
    assert [sha256_digest(cut) for cut in cuts] == [piece.digest for piece in packed.pieces]
    assert all(len(zstandard.decompress(cut)) <= LARGEST_PIECE_BYTES for cut in cuts)
    assert len(cuts) > 6
    unpack(tmp_path / "archive", tmp_path / "copy")
    assert (tmp_path / "copy" / "weights.bin").read_bytes() == noise(9 * MIB, 1)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda root: (root / "package3" / "module3.py").write_text("changed"), id="one small file changes"
        ),
        pytest.param(lambda root: (root / "package3" / "a-new-one.py").write_bytes(noise(5000, 7)), id="one more"),
        pytest.param(lambda root: (root / "package19" / "module599.py").unlink(), id="one less"),
    ],
)
def test_a_small_change_among_many_small_files_touches_little(tmp_path: Path, change: object) -> None:
    root = many_small_files(tmp_path / "tree")
    before = pack(root, tmp_path / "before")

    change(root)  # type: ignore[operator]  # one of the functions above

    assert 0 < new_share(before, pack(root, tmp_path / "after")) < 0.25


def test_a_change_in_one_of_many_large_files_touches_one_piece_of_it(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(8):
        (root / f"shard-{number}.bin").write_bytes(noise(10 * MIB, number))
    before = pack(root, tmp_path / "before")

    shard = bytearray((root / "shard-3.bin").read_bytes())
    shard[5 * MIB] ^= 1
    (root / "shard-3.bin").write_bytes(shard)
    after = pack(root, tmp_path / "after")

    assert 0 < new_share(before, after) <= 1.01 * LARGEST_PIECE_BYTES / after.size_bytes


def test_files_before_a_large_one_do_not_move_its_pieces(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "weights.bin").write_bytes(noise(20 * MIB, 1))
    before = pack(root, tmp_path / "before")

    (root / "a-note.txt").write_text("new, and earlier in the order of names")

    assert new_share(before, pack(root, tmp_path / "after")) < 0.01


@given(writes=st.lists(st.binary(max_size=64), max_size=20), cuts=st.sets(st.integers(0, 20)))
def test_whatever_is_written_comes_out_again(writes: list[bytes], cuts: set[int]) -> None:
    frames: list[bytes] = []
    with PieceWriter(lambda _, frame, __: frames.append(frame)) as writer:
        for number, data in enumerate(writes):
            if number in cuts:
                writer.cut()
            assert writer.write(data) == len(data)
        writer.finish()

    data = b"".join(frames)
    assert b"".join(zstandard.decompress(data[p.offset : p.offset + p.size_bytes]) for p in writer.pieces) == b"".join(
        writes
    )
    assert writer.digest == (sha256_digest(data) if len(frames) == 1 else digest_of_pieces(writer.pieces))
    assert (writer.size_bytes, writer.tell()) == (len(data), sum(map(len, writes)))


def test_what_does_not_compress_costs_no_more_than_its_frame_and_text_is_compressed(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "weights.bin").write_bytes(noise(8 * MIB, 2))
    weights = pack(root, tmp_path / "weights")
    (root / "weights.bin").write_bytes(b"the same words again\n" * 400_000)

    assert 8 * MIB < weights.size_bytes < 8 * MIB + 8192
    assert pack(root, tmp_path / "text").size_bytes < MIB
    assert pack(root, tmp_path / "again") == pack(root, tmp_path / "text")  # whichever thread took which piece


def test_a_file_is_named_by_pieces_only_when_each_is_right_and_nothing_follows(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "weights.bin").write_bytes(noise(9 * MIB, 3))
    packed, archive = pack(root, tmp_path / "archive"), tmp_path / "archive"
    whole = archive.read_bytes()

    assert digest_of_file(archive, packed.pieces) == packed.digest == digest_of_pieces(packed.pieces)
    for damaged in (whole[:-1], whole + b"x", whole[: 5 * MIB] + b"x" + whole[5 * MIB + 1 :], b""):
        archive.write_bytes(damaged)
        assert digest_of_file(archive, packed.pieces) != packed.digest
    with pytest.raises(ValueError, match="pieces:"):
        digest_of_pieces([Piece(packed.digest, 0, 1), *packed.pieces])


def test_the_size_of_a_tree_is_what_is_packed_of_it(tmp_path: Path) -> None:
    root = many_small_files(tmp_path / "tree")
    (root / ".torgignore").write_text("package3/\n")
    (root / "link").symlink_to("package1")

    assert size_of_tree(root) == pack(root, tmp_path / "archive").unpacked_bytes


def test_one_file_is_packed_as_a_tree_of_its_own_and_a_link_to_it_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b\n")
    (tmp_path / "link.csv").symlink_to("data.csv")
    for name in ("data.csv", "link.csv"):
        pack(tmp_path / name, tmp_path / f"{name}.tar.zst")
        unpack(tmp_path / f"{name}.tar.zst", tmp_path / f"out-{name}")

        assert {file.name: file.read_text() for file in (tmp_path / f"out-{name}").iterdir()} == {name: "a,b\n"}
