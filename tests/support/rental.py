"""A node that is rented directly, and its client: localnet, torg-node, torg as processes, and no marketplace anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solders.keypair import Keypair
from solders.pubkey import Pubkey

from scripts.market_processes import Running, call, remove_containers, script, start, tail
from tests.support.ports import own_port
from tests.support.small_market import TUSD
from torg.rental_journal import RentalJournal, RentalRow
from torg_chain import vault_operations
from torg_chain.network import LOCALNET_MINT
from torg_chain.rpc import ChainClient
from torg_chain.wallet import load_keypair, save_keypair
from torg_node.rental.book import RentalBook, RentalEntry

PRICE_PER_HOUR = 3_600 * TUSD // 100  # a hundredth of a token each second


@dataclass
class DirectRental:
    folder: Path
    interval_s: int
    wallet: Keypair = field(default_factory=Keypair)
    localnet: Running | None = None
    node: Running | None = None
    rpc_url: str = ""
    address: str = ""

    @property
    def node_folder(self) -> Path:
        return self.folder / "node"

    @property
    def node_key(self) -> Keypair:
        return load_keypair(self.node_folder / "node.json")

    @property
    def home(self) -> Path:
        return self.folder / "client"

    async def set_up(self) -> None:
        argv = [
            "--data",
            str(self.folder / "localnet"),
            "--port",
            str(own_port()),
            "--slot-ms",
            "50",
            "--finalize-after-slots",
            "3",
        ]
        self.localnet = await start("localnet", [script("torg-localnet"), *argv], self.folder / "localnet.log")
        self.rpc_url = self.localnet.ready["rpc_url"]
        init = [
            "init",
            "--data",
            str(self.node_folder),
            "--rpc-url",
            self.rpc_url,
            "--price",
            "36",
            "--executor",
            "sandbox",
        ]
        init += [
            "--rental-interval",
            str(self.interval_s),
            "--rental-address",
            f"127.0.0.1:{own_port()}",
            "--yes",
            "--json",
        ]
        await call([script("torg-node"), *init])
        save_keypair(self.wallet, self.home / "wallet.json")
        async with ChainClient(self.rpc_url) as chain:
            await chain.faucet(self.wallet.pubkey(), 20 * TUSD)
            await chain.localnet("requestAirdrop", [str(self.node_key.pubkey()), 10**9])
        await self.start_node()

    async def start_node(self) -> None:
        argv = [script("torg-node"), "start", "--data", str(self.node_folder)]
        self.node = await start("node", argv, self.folder / "node.log")
        self.address = self.node.ready["rental_address"]

    async def stop(self) -> None:
        if self.node is not None:
            await self.node.stop()
        await remove_containers(self.node_folder)
        if self.localnet is not None:
            await self.localnet.stop()

    # --- the client ---------------------------------------------------------------------------------------------------

    async def torg(self, *arguments: str, check: bool = True) -> tuple[int, dict[str, Any]]:
        code, out = await call([script("torg"), "--home", str(self.home), "--json", *arguments], check=check)
        return code, json.loads(out.strip().splitlines()[-1])

    def rent_argv(self, *options: str, command: list[str]) -> list[str]:
        where = ["--node", f"http://{self.address}", "--rpc-url", self.rpc_url, "--memory", "128MiB", "--disk", "32MiB"]
        where += ["--max-duration", "5m"]
        return [script("torg"), "--home", str(self.home), "--json", "rent", *where, *options, "--", *command]

    async def renting(self, *options: str, command: list[str]) -> Client:
        """`torg rent`, left running."""
        return await self.process(*self.rent_argv(*options, command=command)[4:])

    async def process(self, *arguments: str) -> Client:
        log = self.folder / "rent.log"
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                script("torg"),
                "--home",
                str(self.home),
                "--json",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                start_new_session=True,
            )
        return Client(process, log)

    def rows(self) -> list[RentalRow]:
        return RentalJournal(self.home / "journal.db").rentals()

    def row(self) -> RentalRow:
        return self.rows()[0]

    def entry(self) -> RentalEntry | None:
        book = RentalBook(self.node_folder / "journal.sqlite")
        try:
            found = book.all()
        finally:
            book.close()
        return found[0] if found else None

    async def start_close(self, vault: Pubkey) -> None:
        """By the wallet itself, and not a word to the node."""
        row = self.row()
        async with ChainClient(self.rpc_url) as chain:
            await vault_operations.start_close(chain, row.network, depositor=self.wallet, vault=vault)

    async def tokens(self, owner: Pubkey) -> int:
        async with ChainClient(self.rpc_url) as chain:
            return await chain.token_balance(owner, Pubkey.from_string(LOCALNET_MINT))


@dataclass
class Client:
    process: asyncio.subprocess.Process
    log: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    async def ended(self) -> tuple[int, dict[str, Any]]:
        assert self.process.stdout is not None
        out = await self.process.stdout.read()
        code = await self.process.wait()
        self.events = [json.loads(line) for line in out.decode().splitlines()]
        assert self.events, tail(self.log)
        return code, self.events[-1]

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()


@contextlib.asynccontextmanager
async def direct_rental(folder: Path, *, interval_s: int) -> AsyncIterator[DirectRental]:
    rental = DirectRental(folder, interval_s)
    try:
        await rental.set_up()
        yield rental
    finally:
        await rental.stop()
