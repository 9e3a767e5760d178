"""The client's side of the vault: open, deposit, sign caps, close. Closing needs only an RPC address, not the marketplace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from solders.keypair import Keypair
from solders.pubkey import Pubkey

from torg.config import ClientConfig, pinned
from torg.journal import Journal, VaultEntry
from torg.session_key import session_key
from torg.transport import Transport
from torg_chain import vault_operations
from torg_chain.errors import TransactionExpired, TransactionRejected
from torg_chain.network import Network
from torg_chain.rpc import ChainClient
from torg_chain.vault import SALT_WINDOW_SLOTS, VaultKind, VaultState
from torg_protocol.api import MarketInfo, SettlementPage, SettlementView, Statement, VaultView
from torg_protocol.caps import SignedCap
from torg_protocol.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from torg_protocol.ids import VaultAddress
from torg_protocol.vault_messages import CapMessage, sign_message

_HOUR_S = 3600
_FINALITY_SLOTS = 150  # more than any cluster lags behind its newest slot


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

        The cap signer is the session key, made here when there is none. The vault is in the journal before anything is sent. Raises
        Conflict `vault_was_opened` when an earlier call that was cut off turns out to have opened one, `wallet_underfunded`, `wallet_without_sol`.
        """
        market = await self._market()
        if found := await self.find_cut_off():
            raise Conflict(
                "an earlier `vault open` that was cut off did open a vault",
                code="vault_was_opened",
                field="vault",
                value=found[0].address,
                hint="it is yours to use now: torg vault status; run this again if you want another one besides",
            )
        signer = session_key(self._config)
        grace = grace_s if grace_s is not None else max(market.min_vault_grace_s, _HOUR_S)
        network = _network(market)
        entries: list[VaultEntry] = []

        def write_down(salt: int, address: Pubkey) -> None:
            entries.append(VaultEntry(str(address), market.marketplace, salt, grace, str(signer.pubkey())))
            self._journal.add_vault(entries[0], time.time_ns() // 1_000_000, opening=True)

        try:
            async with ChainClient(network.rpc_url) as chain:
                await vault_operations.check_wallet_has(
                    chain, network, self._keypair.pubkey(), deposit, opens=VaultKind.CLIENT
                )
                await vault_operations.open_vault(
                    chain,
                    network,
                    depositor=self._keypair,
                    signer=signer.pubkey(),
                    grace_s=grace,
                    deposit=deposit,
                    before_sending=write_down,
                )
        except (TransactionRejected, TransactionExpired):
            for entry in entries:
                self._journal.vault_never_opened(entry.address)
            raise
        self._journal.vault_opened(entries[0].address)
        await self._registered(entries[0].address)
        return entries[0]

    async def find_cut_off(self) -> list[VaultEntry]:
        """Vaults whose opening was sent without an answer ever seen, and which are on the chain: from now on they are in use.

        Those that can never appear any more are forgotten; what may still land stays as it is.
        """
        market = await self._market()
        found: list[VaultEntry] = []
        if not (pending := self._journal.opening_vaults(market.marketplace)):
            return found
        async with ChainClient(market.chain.rpc_url) as chain:
            for entry in pending:
                if await chain.vault(entry.address) is not None:
                    self._journal.vault_opened(entry.address)
                    found.append(entry)
                elif await chain.slot() > entry.salt + SALT_WINDOW_SLOTS + _FINALITY_SLOTS:
                    self._journal.vault_never_opened(entry.address)
        return found

    async def add(self, address: str) -> VaultEntry:
        """Takes a vault that this journal does not know (another computer's, or a lost journal's) from the chain into it.

        Raises VaultNotFound; Forbidden `vault_not_yours`; Invalid `vault_wrong_operator`, `vault_other_session_key`.
        """
        market = await self._market()
        network = _network(market)
        async with ChainClient(network.rpc_url) as chain:
            state = await chain.existing_vault(_pubkey(address))
        signer = str(session_key(self._config).pubkey())
        if state.depositor != self._keypair.pubkey():
            raise Forbidden("this vault is somebody else's", code="vault_not_yours", field="vault", value=address)
        if str(state.config) != network.operator_config:
            raise Invalid(
                "this vault is for another marketplace", code="vault_wrong_operator", field="vault", value=address
            )
        if str(state.signer) != signer:
            raise Invalid(
                "this vault takes caps from another session key",
                code="vault_other_session_key",
                field="vault",
                value=address,
                hint=f"bring {self._config.session_key_path.name} of the computer that opened it to {self._config.home}",
            )
        entry = VaultEntry(address, market.marketplace, state.salt, state.grace_s, signer)
        self._journal.add_vault(entry, time.time_ns() // 1_000_000)
        return entry

    async def deposit(self, entry: VaultEntry, amount: int) -> None:
        """Raises Conflict `wallet_underfunded`, `wallet_without_sol`."""
        network = _network(await self._market())
        async with ChainClient(network.rpc_url) as chain:
            await vault_operations.check_wallet_has(chain, network, self._keypair.pubkey(), amount)
            await vault_operations.deposit(
                chain, network, depositor=self._keypair, vault=Pubkey.from_string(entry.address), amount=amount
            )
        await self._registered(entry.address)

    async def status(self, address: str) -> VaultView:
        """What the chain (finalized) and the marketplace say of this vault."""
        return await self._transport.ask(VaultView, "PUT", f"/v1/vaults/{address}", body={})

    async def settlements(self, address: str) -> tuple[SettlementView, ...]:
        path = f"/v1/vaults/{address}/settlements"
        pages = [page.settlements async for page in self._transport.ask_pages(SettlementPage, path)]
        return tuple(settlement for page in pages for settlement in page)

    async def statement(self, address: str, *, since_ms: int = 0) -> Statement:
        """All that moved since then, with the causes, in one piece."""
        path = f"/v1/vaults/{address}/statement"
        pages = [page async for page in self._transport.ask_pages(Statement, path, {"since_ms": str(since_ms)})]
        lines = tuple(line for page in pages for line in page.lines)
        return pages[-1].model_copy(update={"lines": lines, "next_cursor": None})

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

    async def chain_time_s(self, network: Network) -> int:
        """The chain's clock, which decides when a grace period is over."""
        async with ChainClient(network.rpc_url) as chain:
            return await chain.unix_time_s()

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
        signer = session_key(self._config)
        return SignedCap(
            vault=VaultAddress(entry.address),
            cap=cap,
            valid_until_s=valid_until_s,
            signer=str(signer.pubkey()),
            signature=str(sign_message(signer, message)),
        )

    async def _registered(self, address: str) -> None:
        """The marketplace counts finalized deposits only, and may see them a moment later than we do."""
        deadline = time.monotonic() + 60
        while True:
            try:
                await self.status(address)
                return
            except (Unavailable, NotFound):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.5)


def _pubkey(address: str) -> Pubkey:
    try:
        return Pubkey.from_string(address)
    except ValueError:
        raise Invalid(
            "not a vault's address", code="vault_address_invalid", field="vault", value=address, hint="base58, 32 bytes"
        ) from None


def _network(market: MarketInfo) -> Network:
    return Network.model_validate(market.chain.wire())
