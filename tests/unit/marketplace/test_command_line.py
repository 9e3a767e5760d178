"""What `torg-marketplace` loads before it knows what it is asked for, and afterwards for one small command."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from torg_marketplace.command_line import ROOM_OF, parser, settings_in
from torg_marketplace.opening import open_beside
from torg_marketplace.settings import Settings
from torg_protocol.errors import NotFound


def loaded_after(imports: str) -> set[str]:
    ask = f"import sys, {imports}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_help_loads_neither_database_nor_chain_nor_server() -> None:
    loaded = loaded_after("torg_marketplace.__main__")

    assert "argparse" in loaded
    assert not loaded & {"alembic", "fastapi", "httpx", "numpy", "solana", "sqlalchemy", "starlette", "uvicorn"}


def test_commands_of_the_operator_load_no_http_server() -> None:
    rooms = sorted(f"torg_marketplace.{room}" for room in set(ROOM_OF.values()))
    loaded = loaded_after(", ".join(["torg_marketplace.__main__", *rooms]))

    assert "sqlalchemy" in loaded
    assert not loaded & {"fastapi", "starlette", "uvicorn"}


def test_every_command_has_a_module_that_executes_it() -> None:
    assert "inspect" in ROOM_OF
    for room in set(ROOM_OF.values()):
        assert callable(importlib.import_module(f"torg_marketplace.{room}").run_command)


def test_only_options_that_are_settings_are_taken_for_settings() -> None:
    made = parser().parse_args(["key-create", "ci", "--data", "/data", "--spend-cap", "1", "--rpc-url", "http://rpc"])
    assert {name: str(value) for name, value in settings_in(made).items()} == {"data": "/data", "rpc_url": "http://rpc"}

    served = parser().parse_args(["serve", "--data", "/data", "--name", "market", "--port", "0", "--json"])
    assert {name: str(value) for name, value in settings_in(served).items()} == {
        "data": "/data",
        "name": "market",
        "port": "0",
    }


async def test_a_mistyped_folder_becomes_no_marketplace(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as unknown:
        async with open_beside(Settings(data=tmp_path / "marketplaec"), asks_chain=False):
            pass
    assert unknown.value.code == "data_folder_unknown"
    assert not list(tmp_path.iterdir())
