"""Looking through folders that come and go meanwhile raises nothing, and misses nothing that stays."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.searching import matching


def test_a_folder_that_goes_while_it_is_looked_for_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("goes", "stays"):
        (tmp_path / name / ".inside").mkdir(parents=True)
    scandir = os.scandir

    def as_it_goes(place: Any) -> Any:
        if Path(str(place)).name == "goes":
            shutil.rmtree(tmp_path / "goes", ignore_errors=True)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", as_it_goes)

    assert matching(tmp_path, "*/*", "**/.inside") == [tmp_path / "stays" / ".inside"]
    assert not (tmp_path / "goes").exists()
