"""A program of a role whose packages are not here says so in a sentence; a module of ours that is missing is a defect."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
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


@pytest.mark.parametrize(
    ("program", "module"),
    [
        ("torg", "torg.cli.__main__"),
        ("torg-node", "torg_node.start"),
        ("torg-node", "torg_node.__main__"),
        ("torg-marketplace", "torg_marketplace.start"),
        ("torg-marketplace", "torg_marketplace.__main__"),
        ("torg-localnet", "torg_chain.localnet.start"),
    ],
)
def test_every_program_says_its_release_in_one_form(
    program: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--version"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main()
    assert not ended.value.code
    assert capsys.readouterr().out == f"{program} {version('torg')}\n"


def test_the_release_is_said_without_the_packages_of_the_role(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["torg-node", "--version"])
    with pytest.raises(SystemExit):
        begin("torg-node", "torg_gone.__main__", "node")
    assert capsys.readouterr().out.startswith("torg-node ")
