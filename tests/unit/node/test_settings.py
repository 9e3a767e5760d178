"""The node's config file: what is written is what is read, and what its owner adds."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.support.node_settings import settings_in
from torg_node.settings import CONFIG_NAME, load_settings, write_settings
from torg_protocol.errors import Invalid


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for settings in (
        settings_in(tmp_path),
        settings_in(
            tmp_path,
            local_images=("mine:1", 'odd"name'),
            private_registries=("10.0.0.7:5000",),
            container_runtime="runsc",
            metrics_port=9464,
            gpu_slices=3,
            reservations_path=Path("/x/host.sqlite"),
            engine_socket=Path("/run/e.sock"),
        ),
    ):
        write_settings(settings)

        assert load_settings(tmp_path) == settings


def test_a_file_from_before_gpu_slices_is_read(tmp_path: Path) -> None:
    write_settings(settings_in(tmp_path))
    file = tmp_path / CONFIG_NAME
    file.write_text(file.read_text().replace("gpu_slices = 1", "time_slices = true"))

    assert "time_slices = true" in file.read_text()
    assert load_settings(tmp_path).gpu_slices == 1


@pytest.mark.parametrize(
    ("written", "instead", "says"),
    [
        ("slots = 1", "slost = 1", ("slost", 1, 'did you mean "slots"?')),
        ("quiet_hours = []", "quite_hours = []", ("rules.quite_hours", None, 'did you mean "quiet_hours"?')),
        ('executor = "auto"', 'executor = "dokcer"', ("executor", "dokcer", None)),
    ],
)
def test_a_typo_is_named_with_its_value_and_what_was_meant(
    tmp_path: Path, written: str, instead: str, says: tuple[str, object, str | None]
) -> None:
    write_settings(settings_in(tmp_path))
    file = tmp_path / CONFIG_NAME
    assert written in file.read_text()
    file.write_text(file.read_text().replace(written, instead))
    with pytest.raises(Invalid) as refused:
        load_settings(tmp_path)
    assert (refused.value.field, refused.value.value, refused.value.hint) == says


def test_the_owner_lists_local_images(tmp_path: Path) -> None:
    write_settings(settings_in(tmp_path))
    file = tmp_path / CONFIG_NAME
    file.write_text(file.read_text().replace("local_images = []", 'local_images = ["torg/busybox:1"]'))

    assert load_settings(tmp_path).local_images == ("torg/busybox:1",)


def test_a_payout_address_that_is_none_is_refused_before_anybody_is_paid(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="not a wallet's address"):
        settings_in(tmp_path, payout_address="YOUR_WALLET")
    write_settings(settings_in(tmp_path))
    file = tmp_path / CONFIG_NAME
    file.write_text(file.read_text().replace("So1111", "So111l"))
    with pytest.raises(Invalid, match=r"payout_address: .*not a wallet's address"):
        load_settings(tmp_path)
