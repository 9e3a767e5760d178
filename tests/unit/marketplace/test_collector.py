"""Python's collector of cycles stops everybody: it must not look through what start-up made again and again."""

from __future__ import annotations

import gc

from torg_marketplace.app import _collect_less

OF_STARTUP = 50_000  # objects at least: modules, models, routes


def test_what_startup_made_is_not_looked_through_again() -> None:
    before = gc.get_threshold()
    try:
        _collect_less()
        assert gc.get_freeze_count() > OF_STARTUP
        assert len(gc.get_objects()) < gc.get_freeze_count() / 10
        assert gc.get_threshold()[0] > before[0]
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
