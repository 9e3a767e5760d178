"""What a job left in its output folder, and what of it is no output."""

from __future__ import annotations

import os
from pathlib import Path

from torg_node.steps import collect_outputs
from torg_node.steps.collect_outputs import left_out_in_words
from torg_protocol.usage import OutputFile


def test_only_regular_files_with_names_that_a_client_would_write_are_outputs(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("model.bin", "sub/a b", "ünï😀", "-rf", "new\nline", "esc\x1b[31m", "back\\slash"):
        (tmp_path / name).write_text("x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")).write_text(
        "x"
    )  # no UTF-8: once it failed the job, after all its work
    (tmp_path / "host").symlink_to("/etc/passwd")
    (tmp_path / "tree").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe")

    found, left_out = collect_outputs._regular_files(tmp_path)

    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert sorted(names) == ["-rf", "model.bin", "sub/a b", "ünï😀"]
    assert [OutputFile(path=name, digest="sha256:0", size_bytes=1).model_dump_json() for name in names]
    why = dict(item.rsplit(" (", 1) for item in left_out)
    assert why == {
        "'bad\\udcff'": "it has characters that no file name needs)",
        "'new\\nline'": "it has characters that no file name needs)",
        "'esc\\x1b[31m'": "it has characters that no file name needs)",
        "'back\\\\slash'": "it has characters that no file name needs)",
        "'host'": "a link)",
        "'tree'": "a link)",
        "'pipe'": "no regular file)",
    }
    words = left_out_in_words(left_out)
    assert words.startswith("not among the outputs: ")
    assert words.endswith("and 2 more")
    assert words.isascii()
    assert words.isprintable()


def test_nothing_is_said_where_nothing_was_left_out() -> None:
    assert left_out_in_words([]) == ""
