"""The agent's command line: what its owner writes, as the rest of the node needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from torg_node.__main__ import _parser


def test_a_relative_data_folder_is_made_absolute_and_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)

    assert _parser().parse_args(["start", "--data", "link/node"]).data == tmp_path.resolve() / "real/node"


def test_an_idle_agent_does_not_carry_what_only_some_leases_need() -> None:
    """Each of these is megabytes for as long as the agent lives; `python -m benchmarks.node_idle` weighs the whole."""
    sometimes = {"aiohttp", "asyncssh", "cryptography", "obstore", "prometheus_client", "pyrage"}
    ask = f"import sys, torg_node.__main__; print(*{sometimes} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True, timeout=120)
    assert loaded.stdout.split() == []
