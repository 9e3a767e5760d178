"""The blocking client is what its source says."""

from __future__ import annotations

from scripts.sync_client import CLIENT, generated


def test_the_file_is_what_the_script_writes() -> None:
    assert (CLIENT / "sync.py").read_text() == generated(), "run: python -m scripts.sync_client"
