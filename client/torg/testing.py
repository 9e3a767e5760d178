"""A whole market for the tests of your own program: chain, marketplace and one node, as processes on loopback, in a folder.

    with torg.testing.local_market() as market, market.client() as client:
        assert client.run(lambda: 6 * 7) == 42

Needs `pip install 'torg[localnet,marketplace,node,functions]'` and what the node's executor needs (bubblewrap, or a container engine).
Starting takes a few seconds: make it once per test session. The tokens are play money, the payments and proofs are the real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solders.keypair import Keypair

from torg.client import AsyncClient
from torg.config import ClientConfig
from torg.sync import Client
from torg_chain.rpc import ChainClient
from torg_chain.wallet import save_keypair
from torg_protocol.errors import Invalid, Unavailable

_STARTED_WITHIN_S = 60.0
_STOPPED_WITHIN_S = 20.0
_TOKEN = 1_000_000  # base units of the localnet's token


_BROUGHT_BY = {"aiohttp": "localnet", "fastapi": "marketplace", "aiodocker": "node"}  # one package of each role


def _check_roles() -> None:
    """Raises Invalid `local_market_incomplete`."""
    missing = {role: package for package, role in _BROUGHT_BY.items() if importlib.util.find_spec(package) is None}
    if missing:
        raise Invalid(
            f"a market needs all roles on this machine; not installed: {', '.join(missing)}",
            code="local_market_incomplete",
            field="roles",
            value=next(iter(missing)),
            hint="pip install 'torg[localnet,marketplace,node,functions]'",
        )


@dataclass
class LocalMarket:
    """`url`: the marketplace's. Logs of the three processes are below `folder`."""

    folder: Path
    url: str = ""
    rpc_url: str = ""
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)
    _clients: int = 0

    def config(self, *, deposit_tokens: int = 10) -> ClientConfig:
        """A new client's home, with a key, tokens, and a vault that holds `deposit_tokens`."""
        self._clients += 1
        home = self.folder / f"client-{self._clients}"
        asyncio.run(self._fund(home, deposit_tokens * _TOKEN))
        return ClientConfig(home, self.url)

    def client(self, *, deposit_tokens: int = 10) -> Client:
        return Client(self.config(deposit_tokens=deposit_tokens))

    async def _fund(self, home: Path, deposit: int) -> None:
        keypair = Keypair()
        save_keypair(keypair, home / "wallet.json")
        async with ChainClient(self.rpc_url) as chain:
            await chain.faucet(keypair.pubkey(), 2 * deposit)
        async with AsyncClient(ClientConfig(home, self.url)) as client:
            await client.vaults.open(deposit)

    def _start(self) -> None:
        localnet = self._process("torg-localnet", "--data", "localnet", "--port", "0", "--slot-ms", "50")
        self.rpc_url = str(localnet["rpc_url"])
        marketplace = self._process(
            *("torg-marketplace", "serve", "--data", "marketplace", "--rpc-url", self.rpc_url, "--port", "0"),
            *("--heartbeat", "5s"),  # silent for three of them, on a busy machine, the only node would get no work
            *("--settlement-age", "1s"),
        )
        self.url = str(marketplace["url"])
        node = ("--data", "node", "--marketplace", self.url, "--price", "1.00", "--yes", "--json")
        subprocess.run([_script("torg-node"), "init", *node], cwd=self.folder, check=True, stdout=subprocess.DEVNULL)
        self._process("torg-node", "start", "--data", "node")

    def _process(self, name: str, *arguments: str) -> dict[str, Any]:
        """Starts a daemon of ours in its own session; returns the JSON line that says it is ready."""
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [_script(name), *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._processes.append(process)
        stdout = process.stdout
        if stdout is not None and select.select([stdout], [], [], _STARTED_WITHIN_S)[0]:
            with contextlib.suppress(ValueError):
                ready: dict[str, Any] = json.loads(stdout.readline())
                return ready
        said = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
        raise Unavailable(f"{name} did not start:\n{said}", code="local_market_failed", field="process", value=name)

    def _stop(self) -> None:
        """The node first, so that no job outlives its market."""
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(_STOPPED_WITHIN_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


@contextlib.contextmanager
def local_market(folder: Path | None = None) -> Iterator[LocalMarket]:
    """Started at the beginning, stopped and (without `folder`) removed at the end. Raises Unavailable `local_market_failed`
    with what the process said; Invalid `local_market_incomplete` where the packages of a role are missing."""
    _check_roles()
    market = LocalMarket(folder or Path(tempfile.mkdtemp(prefix="torg-market-")))
    market.folder.mkdir(parents=True, exist_ok=True)
    try:
        market._start()  # noqa: SLF001 - its own module
        yield market
    finally:
        market._stop()  # noqa: SLF001
        if folder is None:
            _remove(market.folder)


def _remove(folder: Path) -> None:
    """A node's disks may still be going away."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _script(name: str) -> str:
    """Of this environment."""
    return str(Path(sys.executable).with_name(name))
