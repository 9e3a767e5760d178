"""Output names come from strangers: none of them writes outside the folder, and nothing of the user's is overwritten unasked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from torg.errors import ReceiptInvalid
from torg.outputs import plan_downloads
from torg_protocol.errors import Conflict
from torg_protocol.ids import Digest
from torg_protocol.usage import OutputFile


def output(path: str, content: bytes = b"new") -> OutputFile:
    digest = Digest("sha256:" + hashlib.sha256(content).hexdigest())
    return OutputFile(path=path, digest=digest, size_bytes=len(content))


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "",
        ".",
        "..",
        "a//b",
        "a/",
        "./a",
        "a/./b",
        "a\x00b",
        "a\nb",
        "a\x1b[2J",
        "a\u202eb",
        "a\\b",
        "n" * 256,
        "a/" + "é" * 128,
    ],
)
def test_names_that_are_not_plain_are_refused_before_anything_is_written(tmp_path: Path, path: str) -> None:
    with pytest.raises(ReceiptInvalid) as refused:
        plan_downloads([output("fine"), output(path)], tmp_path / "out", overwrite=True)

    assert (refused.value.code, refused.value.field) == ("output_path_unsafe", "path")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("paths", [["a", "a"], ["a", "a/b"], ["a/b", "a"], ["x/a/b", "x/a"]])
def test_outputs_that_claim_one_place_are_refused(tmp_path: Path, paths: list[str]) -> None:
    with pytest.raises(ReceiptInvalid) as refused:
        plan_downloads([output(path) for path in paths], tmp_path, overwrite=True)
    assert refused.value.code == "output_path_unsafe"


@pytest.mark.parametrize("path", ["link/x", "link/deeper/x", "inside/../x"])
def test_links_in_the_folder_lead_nowhere(tmp_path: Path, path: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ReceiptInvalid) as refused:
        plan_downloads([output(path)], folder, overwrite=True)
    assert refused.value.code == "output_path_unsafe"


def test_ordinary_names_in_folders_of_their_own_are_fine(tmp_path: Path) -> None:
    planned = plan_downloads([output("model.bin"), output("a/b/c.txt"), output("a/b2")], tmp_path, overwrite=False)

    assert [item.target for item in planned] == [tmp_path / "model.bin", tmp_path / "a/b/c.txt", tmp_path / "a/b2"]
    assert not any(item.is_there for item in planned)


def test_what_is_there_with_the_same_bytes_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"new")

    (item,) = plan_downloads([output("a")], tmp_path, overwrite=False)
    assert item.is_there


@pytest.mark.parametrize("there", [b"old", b"older", b""])
def test_another_file_of_that_name_is_kept_unless_the_user_says_so(tmp_path: Path, there: bytes) -> None:
    (tmp_path / "a").write_bytes(there)

    with pytest.raises(Conflict) as refused:
        plan_downloads([output("a")], tmp_path, overwrite=False)
    assert (refused.value.code, refused.value.value) == ("output_exists", str(tmp_path / "a"))
    assert "--overwrite" in (refused.value.hint or "")

    (item,) = plan_downloads([output("a")], tmp_path, overwrite=True)
    assert not item.is_there


def test_a_file_where_a_folder_is_needed_is_named_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for folder, named in (("out", "out/a"), ("file", "file")):
        with pytest.raises(Conflict) as refused:
            plan_downloads([output("first"), output("a/b/c")], tmp_path / folder, overwrite=True)
        assert (refused.value.code, refused.value.value) == ("output_exists", str(tmp_path / named))


def test_a_folder_in_the_way_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for overwrite in (False, True):
        with pytest.raises(Conflict) as refused:
            plan_downloads([output("a")], tmp_path, overwrite=overwrite)
        assert refused.value.code == "output_exists"


def test_a_link_of_that_name_counts_as_another_file_even_with_the_right_bytes_behind_it(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"new")
    (tmp_path / "a").symlink_to(tmp_path / "real")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")

    for name in ("a", "broken"):
        with pytest.raises(Conflict) as refused:
            plan_downloads([output(name)], tmp_path, overwrite=False)
        assert refused.value.code == "output_exists"
