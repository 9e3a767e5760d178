"""A real localnet for tests: in its own process, killed and restarted at will; and the vault program inside LiteSVM."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from solders.keypair import Keypair

from tests.support.ports import own_port
from torg_chain import vault_operations
from torg_chain.network import LOCALNET_MINT, LOCALNET_PROGRAM_ID, Network
from torg_chain.rpc import ChainClient
from torg_chain.vault import find_config

STILL = 3_600_000


@dataclass
class LocalnetProcess:
    """`port` stays the same over restarts, so that clients find it again."""

    data: Path
    slot_ms: int
    arguments: tuple[str, ...] = ()
    port: int = 0
    rpc_url: str = ""
    genesis_hash: str = ""
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    async def start(self) -> None:
        port = str(self.port or own_port())
        command = [sys.executable, "-m", "torg_chain.localnet", "--data", str(self.data), "--port", port]
        command += ["--slot-ms", str(self.slot_ms), "--finalize-after-slots", "3", *self.arguments]
        self.process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), timeout=180)
        ready = json.loads(line)
        self.rpc_url, self.genesis_hash = ready["rpc_url"], ready["genesis_hash"]
        self.port = int(self.rpc_url.rsplit(":", 1)[1])

    async def kill(self) -> None:
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            await asyncio.wait_for(self.process.wait(), timeout=180)
        if self.process is not None:
            self.process._transport.close()  # type: ignore[attr-defined]  # frees the pipe at once, not at collection
        self.process = None


@contextlib.asynccontextmanager
async def running_localnet(data: Path, *arguments: str, slot_ms: int = 50) -> AsyncIterator[LocalnetProcess]:
    """With `slot_ms=STILL`, slots pass only when a test says so (`torg_advance_slots`)."""
    localnet = LocalnetProcess(data, slot_ms, arguments)
    await localnet.start()
    try:
        yield localnet
    finally:
        await localnet.stop()


@dataclass(frozen=True)
class Operator:
    admin: Keypair
    capture_key: Keypair
    fee_owner: Keypair


def make_operator() -> Operator:
    return Operator(Keypair(), Keypair(), Keypair())


async def make_network(chain: ChainClient, operator: Operator, genesis_hash: str) -> Network:
    """Gives the operator fees and creates its config; returns the network that parties then agree on."""
    network = localnet_network(chain.rpc_url, genesis_hash, operator)
    await chain.faucet(operator.admin.pubkey(), 1)
    await chain.faucet(operator.capture_key.pubkey(), 1)
    await vault_operations.ensure_operator_config(
        chain,
        network.program_pubkey,
        admin=operator.admin,
        capture_key=operator.capture_key.pubkey(),
        fee_owner=operator.fee_owner.pubkey(),
    )
    return network


def localnet_network(rpc_url: str, genesis_hash: str, operator: Operator) -> Network:
    from solders.pubkey import Pubkey

    config, _ = find_config(Pubkey.from_string(LOCALNET_PROGRAM_ID), operator.admin.pubkey())
    return Network(
        rpc_url=rpc_url,
        genesis_hash=genesis_hash,
        program_id=LOCALNET_PROGRAM_ID,
        mint=LOCALNET_MINT,
        decimals=6,
        operator_config=str(config),
    )
