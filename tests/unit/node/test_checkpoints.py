"""What is kept of a checkpoint's folder: everything that the next attempt could want."""

from __future__ import annotations

import socket
from pathlib import Path

from torg_host.archive import unpack
from torg_node.steps.checkpoints import packed_checkpoint


def test_a_checkpoint_is_kept_whole_whatever_ignore_files_are_in_it(tmp_path: Path) -> None:
    folder, archive, back = tmp_path / "step-3", tmp_path / "checkpoint.tar.zst", tmp_path / "back"
    files = {
        ".gitignore": b"*\n",
        ".torgignore": b"*.bin\n",
        "model.bin": b"weights",
        "repository/.git/HEAD": b"ref: x\n",
        "repository/.gitignore": b"cache/\n",
        "repository/cache/tokens": b"t",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "newest").symlink_to("model.bin")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "s"))
        packed = packed_checkpoint(folder, archive)
    unpack(archive, back)

    found = {str(path.relative_to(back)): path.read_bytes() for path in back.rglob("*") if path.is_file()}
    assert found == {**files, "newest": b"weights"}
    assert packed.skipped == ("s",)
