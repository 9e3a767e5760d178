"""The client's side of the vault: open, deposit, sign caps, close. Closing needs only an RPC address, not the marketplace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from solders.keypair import Keypair
from solders.pubkey import Pubkey

from torg.config import ClientConfig, pinned
from torg.journal import Journal, VaultEntry
from torg.transport import Transport
from torg_chain import vault_operations
from torg_chain.network import Network
from torg_chain.rpc import ChainClient
from torg_chain.vault import VaultState
from torg_chain.wallet import create_keypair, load_keypair
from torg_protocol.api import MarketInfo, SettlementView, VaultView
from torg_protocol.caps import SignedCap
from torg_protocol.errors import Unavailable
from torg_protocol.ids import VaultAddress
from torg_protocol.vault_messages import CapMessage, sign_message

_HOUR_S = 3600


class Vaults:
    def __init__(
        self,
        config: ClientConfig,
        keypair: Keypair,
        transport: Transport,
        journal: Journal,
        market: Callable[[], Awaitable[MarketInfo]],
    ) -> None:
        self._config = config
        self._keypair = keypair
        self._transport = transport
        self._journal = journal
        self._market = market

    async def open(self, deposit: int, *, grace_s: int | None = None) -> VaultEntry:
        """Opens a vault under the marketplace's operator config and deposits `deposit` base units; waits until finalized.

        The cap signer is the session key, made here when there is none. Raises the chain room's errors when the wallet lacks
        tokens or lamports.
        """
        market = await self._market()
        signer = self._session_key()
        grace = grace_s if grace_s is not None else max(market.min_vault_grace_s, _HOUR_S)
        network = _network(market)
        async with ChainClient(network.rpc_url) as chain:
            salt, address = await vault_operations.open_vault(
                chain, network, depositor=self._keypair, signer=signer.pubkey(), grace_s=grace, deposit=deposit
            )
        entry = VaultEntry(str(address), market.marketplace, salt, grace, str(signer.pubkey()))
        self._journal.add_vault(entry, time.time_ns() // 1_000_000)
        await self._registered(entry.address)
        return entry

    async def deposit(self, entry: VaultEntry, amount: int) -> None:
        network = _network(await self._market())
        async with ChainClient(network.rpc_url) as chain:
            await vault_operations.deposit(
                chain, network, depositor=self._keypair, vault=Pubkey.from_string(entry.address), amount=amount
            )
        await self._registered(entry.address)

    async def status(self, address: str) -> VaultView:
        """What the chain (finalized) and the marketplace say of this vault."""
        return VaultView.model_validate(await self._transport.request("PUT", f"/v1/vaults/{address}", body={}))

    async def settlements(self, address: str) -> tuple[SettlementView, ...]:
        answer = await self._transport.request("GET", f"/v1/vaults/{address}/settlements")
        return tuple(SettlementView.model_validate(item) for item in answer)

    async def start_close(self, entry: VaultEntry, network: Network) -> None:
        """Starts the grace period after which everything that is not settled comes back. Needs no marketplace."""
        async with ChainClient(network.rpc_url) as chain:
            await vault_operations.start_close(
                chain, network, depositor=self._keypair, vault=Pubkey.from_string(entry.address)
            )

    async def finish_close(self, entry: VaultEntry, network: Network) -> None:
        """Returns the rest and all rent to the depositor. Raises TransactionRejected before the grace has passed."""
        async with ChainClient(network.rpc_url) as chain:
            await vault_operations.finish_close(
                chain, network, depositor=self._keypair, vault=Pubkey.from_string(entry.address)
            )
        self._journal.close_vault(entry.address)

    async def on_chain(self, entry: VaultEntry, network: Network) -> VaultState:
        """The finalized state, read without the marketplace."""
        async with ChainClient(network.rpc_url) as chain:
            return await chain.existing_vault(entry.address)

    async def network(self) -> Network:
        return _network(await self._market())

    async def remembered_network(self) -> Network:
        """The marketplace's network, or, when it does not answer any more, what it was at the last contact."""
        try:
            return await self.network()
        except Unavailable:
            return Network.model_validate(pinned(self._config)["chain"])

    async def sign_cap(self, entry: VaultEntry, cap: int, valid_until_s: int) -> SignedCap:
        market = await self._market()
        message = CapMessage(
            chain_id=_network(market).chain_id,
            vault=bytes(Pubkey.from_string(entry.address)),
            cap=cap,
            valid_until=valid_until_s,
        )
        signer = self._session_key()
        return SignedCap(
            vault=VaultAddress(entry.address),
            cap=cap,
            valid_until_s=valid_until_s,
            signer=str(signer.pubkey()),
            signature=str(sign_message(signer, message)),
        )

    def _session_key(self) -> Keypair:
        path = self._config.session_key_path
        return load_keypair(path) if path.exists() else create_keypair(path)

    async def _registered(self, address: str) -> None:
        """The marketplace counts finalized deposits only, and may see them a moment later than we do."""
        deadline = time.monotonic() + 60
        while True:
            try:
                await self.status(address)
                return
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.5)


def _network(market: MarketInfo) -> Network:
    return Network.model_validate(market.chain.wire())
