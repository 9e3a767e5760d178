"""The node's config file: what is written is what is read, and what its owner adds."""

from __future__ import annotations

from pathlib import Path

from torg_marketplace.simulation.world import SeededRandomness, made_up_network
from torg_node.settings import CONFIG_NAME, Settings, load_settings, write_settings


def _settings(folder: Path, **changes: object) -> Settings:
    required = {
        "data": folder,
        "marketplace_url": "http://127.0.0.1:8700",
        "marketplace_key": "key",
        "network": made_up_network(SeededRandomness(1)),
        "price_per_gpu_hour": 800_000,
        "payout_address": "wallet",
        "max_unpaid": 10_000_000,
    }
    return Settings.model_validate({**required, **changes})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for settings in (
        _settings(tmp_path),
        _settings(
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
    write_settings(_settings(tmp_path))
    file = tmp_path / CONFIG_NAME
    file.write_text(file.read_text().replace("gpu_slices = 1", "time_slices = true"))

    assert load_settings(tmp_path).gpu_slices == 1


def test_the_owner_lists_local_images(tmp_path: Path) -> None:
    write_settings(_settings(tmp_path))
    file = tmp_path / CONFIG_NAME
    file.write_text(file.read_text().replace("local_images = []", 'local_images = ["torg/busybox:1"]'))

    assert load_settings(tmp_path).local_images == ("torg/busybox:1",)
