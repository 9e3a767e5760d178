"""What `torg-node update` refuses before it touches anything, and what the service names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.node_settings import settings_in
from torg_node.service import own_program, unit_text
from torg_node.update import check, link_of_own_program, previous_release, restart_command
from torg_protocol.errors import Conflict, Invalid


def make_linked(folder: Path) -> Path:
    (folder / "1/bin").mkdir(parents=True)
    (folder / "1/bin/torg-node").touch(mode=0o755)
    (folder / "current").symlink_to("1")
    return folder / "current/bin/torg-node"


def test_the_link_is_the_one_through_which_it_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = make_linked(tmp_path)
    assert link_of_own_program(str(program)) == tmp_path / "current"
    monkeypatch.setenv("PATH", str(program.parent))
    assert link_of_own_program("torg-node") == tmp_path / "current"
    with pytest.raises(Invalid) as refused:
        link_of_own_program(str(tmp_path / "1/bin/torg-node"))
    assert refused.value.code == "not_by_link"


def test_the_unit_names_the_link_and_not_the_release_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = make_linked(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert f"ExecStart={program} start" in unit_text(settings_in(tmp_path), own_program())


def test_what_is_no_release_and_what_nobody_can_restart_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path)
    with pytest.raises(Invalid) as invalid:
        check(settings, tmp_path)
    assert invalid.value.code == "release_invalid"
    with pytest.raises(Conflict) as unknown:
        previous_release(settings)
    assert unknown.value.code == "no_previous_release"
    assert restart_command("sh -c 'exit 0'") == ("sh", "-c", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Invalid) as no_service:
        restart_command(None)
    assert no_service.value.code == "restart_unknown"
