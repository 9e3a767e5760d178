"""A program of a role whose packages are not here says so in a sentence; a module of ours that is missing is a defect."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from torg_protocol.role import begin


@pytest.mark.parametrize("place", ["import", "run"])
def test_what_is_missing_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    needs = "import a_package_of_nobody\n"
    source = f"{needs}\ndef main(): pass\n" if place == "import" else f"def main():\n    {needs}"
    (tmp_path / f"role_by_{place}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        begin("torg-node", f"role_by_{place}", "node")
    assert ended.value.code == (
        "torg-node: a_package_of_nobody is not installed [role_incomplete]\n  pip install 'torg[node]'"
    )
    sys.modules.pop(f"role_by_{place}", None)


def test_a_module_of_ours_that_is_missing_is_not_explained_away() -> None:
    with pytest.raises(ModuleNotFoundError):
        begin("torg-node", "torg_gone.__main__", "node")
