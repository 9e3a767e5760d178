"""A node's key and config survive its disk; nobody opens the file without the password."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from solders.keypair import Keypair

from tests.support.node_settings import settings_in
from torg_chain.wallet import load_keypair, save_keypair
from torg_node.key_backup import back_up, restore
from torg_node.owner_rules import OwnerRules
from torg_node.service import install, unit_text
from torg_node.settings import Settings, load_settings, write_settings
from torg_protocol.errors import Conflict, Invalid, TorgError

PASSWORD = "correct horse"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    data = tmp_path / "node"
    data.mkdir()
    save_keypair(Keypair(), data / "node.json")
    rules = OwnerRules(quiet_hours=["sat,sun 22:00-07:00"], deny=("network",), max_duration="6h")  # type: ignore[arg-type]
    settings = settings_in(data, payout_address=str(Keypair().pubkey()), rules=rules)
    write_settings(settings)
    return settings


def test_rules_survive_the_config_file(settings: Settings) -> None:
    assert load_settings(settings.data) == settings


def test_what_was_backed_up_comes_back(settings: Settings, tmp_path: Path) -> None:
    key, file = load_keypair(settings.key_path), tmp_path / "backup"
    back_up(settings, file, PASSWORD)
    secret = "".join(json.dumps(list(bytes(key))))[1:40]
    shutil.rmtree(settings.data)
    restore(file, settings.data, PASSWORD)

    assert load_settings(settings.data) == settings
    assert load_keypair(settings.key_path) == key
    assert [path.stat().st_mode & 0o777 for path in (file, settings.key_path)] == [0o600, 0o600]
    assert secret not in file.read_text()


def test_a_wrong_password_or_a_changed_file_opens_nothing(settings: Settings, tmp_path: Path) -> None:
    file, empty = tmp_path / "backup", tmp_path / "empty"
    back_up(settings, file, PASSWORD)
    with pytest.raises(Invalid) as wrong:
        restore(file, empty, "correct house")
    content = json.loads(file.read_text())
    content["sealed"] = content["sealed"][:-8] + "AAAAAAA="
    file.write_text(json.dumps(content))
    with pytest.raises(Invalid) as changed:
        restore(file, empty, PASSWORD)
    file.write_text("{}")
    with pytest.raises(Invalid) as other:
        restore(file, empty, PASSWORD)

    assert [error.value.code for error in (wrong, changed, other)] == [
        "password_wrong",
        "password_wrong",
        "backup_invalid",
    ]
    assert not empty.exists()


def test_nothing_is_written_over(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    back_up(settings, file, PASSWORD)
    codes = []
    for attempt in (
        lambda: back_up(settings, file, PASSWORD),
        lambda: restore(file, settings.data, PASSWORD),
        lambda: back_up(settings, tmp_path / "other", "short"),
    ):
        with pytest.raises(TorgError) as refused:
            attempt()
        codes.append(refused.value.code)
    assert codes == ["backup_exists", "node_exists", "password_short"]


def test_the_unit_is_one_that_systemd_understands(settings: Settings, tmp_path: Path) -> None:
    """systemd itself does not run here: `systemd-analyze verify` reads the unit as it would."""
    program = Path("/bin/true")
    unit = tmp_path / "torg-node.service"
    unit.write_text(unit_text(settings, program))
    assert f"ExecStart={program} start --data {settings.data}" in unit.read_text()
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "torg-node.service:" not in verified.stderr  # of other units of this machine it may complain


def test_a_unit_is_not_written_over_nor_with_a_path_that_it_would_misread(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "units"
    install(settings, folder)
    with pytest.raises(Conflict) as there:
        install(settings, folder)
    install(settings, folder, replace=True)
    odd = settings.model_copy(update={"data": tmp_path / "my node"})
    with pytest.raises(Invalid) as unfit:
        unit_text(odd, Path("/bin/true"))
    assert (there.value.code, unfit.value.code) == ("unit_exists", "path_unfit")
