"""The agent's command line: what its owner writes, as the rest of the node needs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from torg_node.__main__ import _parser


def test_a_relative_data_folder_is_made_absolute_and_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)

    assert _parser().parse_args(["start", "--data", "link/node"]).data == tmp_path.resolve() / "real/node"
