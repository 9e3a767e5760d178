"""A node's settings as `torg-node init` would make them."""

from __future__ import annotations

from pathlib import Path

from torg_marketplace.simulation.world import SeededRandomness, made_up_network
from torg_node.settings import Settings


def settings_in(folder: Path, **changes: object) -> Settings:
    required = {
        "data": folder,
        "marketplace_url": "http://127.0.0.1:8700",
        "marketplace_key": "key",
        "network": made_up_network(SeededRandomness(1)),
        "price_per_gpu_hour": 800_000,
        "payout_address": "So11111111111111111111111111111111111111112",
        "max_unpaid": 10_000_000,
    }
    return Settings.model_validate({**required, **changes})
