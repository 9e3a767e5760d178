"""A chain for flow tests: vaults in memory, captures applied as the vault program would, faults on demand.

It decodes the very transactions that the settlement worker signs. What the real program refuses is tested against the real program.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field, replace

from solders.hash import Hash
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

from torg_chain.captures import LandedCapture, captures_in
from torg_chain.errors import ChainBehind, ChainUnavailable, TransactionExpired, TransactionRejected
from torg_chain.network import LOCALNET_PROGRAM_ID, Network
from torg_chain.rpc import SignatureStatus, TransactionStatus
from torg_chain.vault import OperatorConfig, VaultState
from torg_marketplace.simulation.chain import fresh_vault
from torg_marketplace.simulation.collateral import SimulatedCollaterals
from torg_marketplace.simulation.world import START_MS

BLOCKHASH_LIFE = 150


@dataclass
class FakeChain:
    """`down`: nobody answers. `lose_next`: that many sends are accepted and never land. `answer_lost_next`: that many sends
    land, and the answer does not arrive. `unpayable`: token accounts that a capture must skip."""

    vaults: dict[str, VaultState] = field(default_factory=dict)
    fee_owner: Pubkey = field(default_factory=lambda: Pubkey(hashlib.sha256(b"fees").digest()))
    height: int = 1_000
    down: bool = False
    lose_next: int = 0
    answer_lost_next: int = 0
    level: TransactionStatus = TransactionStatus.FINALIZED
    unpayable: set[Pubkey] = field(default_factory=set)
    paid: dict[Pubkey, int] = field(default_factory=dict)
    sends: list[str] = field(default_factory=list)
    landed: dict[str, frozenset[int]] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)  # that they landed in
    behind: tuple[int, dict[str, VaultState]] | None = (
        None  # the slot of the RPC node that is asked for vaults, and what it knows
    )
    history_behind: int | None = None  # the slot of the RPC node that is asked for transactions
    raw: dict[str, bytes] = field(default_factory=dict)
    recent_priority_fee: int = 0
    collaterals: SimulatedCollaterals = field(init=False)
    fee_payer_lamports: int = 10**9
    time_s: int = START_MS // 1000

    def __post_init__(self) -> None:
        self.collaterals = SimulatedCollaterals(self.vaults)

    async def vault(self, address: str, *, min_slot: int = 0) -> VaultState | None:
        """As of now; or, of a node behind that has not seen the newest block, as of before its newest change."""
        self._answer()
        slot, vaults = self.behind or (self.height, self.vaults)
        if slot < min_slot:
            raise ChainBehind(f"the RPC node is behind: it is at slot {slot}, and not yet at slot {min_slot}")
        state = vaults.get(address)
        return None if state is None else replace(state, slot=slot)

    async def operator_config(self, address: Pubkey) -> OperatorConfig | None:
        self._answer()
        return OperatorConfig(address, address, address, self.fee_owner)

    async def accounts_exist(self, addresses: list[Pubkey]) -> list[bool]:
        self._answer()
        return [True for _ in addresses]

    async def latest_blockhash(self) -> tuple[Hash, int]:
        self._answer()
        return Hash(hashlib.sha256(struct.pack("<Q", self.height)).digest()), self.height + BLOCKHASH_LIFE

    async def block_height(self) -> int:
        self._answer()
        return self.height

    async def send(self, raw: bytes) -> str:
        self._answer()
        transaction = VersionedTransaction.from_bytes(raw)
        signature = str(transaction.signatures[0])
        self.sends.append(signature)
        if signature in self.landed:
            return signature
        recent = {Hash(hashlib.sha256(struct.pack("<Q", self.height - age)).digest()) for age in range(BLOCKHASH_LIFE)}
        if transaction.message.recent_blockhash not in recent:
            raise TransactionExpired("the transaction's blockhash is dead")
        if self.lose_next:
            self.lose_next -= 1
            return signature
        self.height += 1
        self.landed[signature], self.slots[signature] = self._effect(transaction), self.height
        self.raw[signature] = raw
        if self.answer_lost_next:
            self.answer_lost_next -= 1
            raise ChainUnavailable("the answer got lost")
        return signature

    async def signature_status(self, signature: str) -> SignatureStatus:
        self._answer()
        if signature not in self.landed:
            return SignatureStatus(TransactionStatus.NOT_FOUND)
        return SignatureStatus(self.level, slot=self.slots[signature])

    async def landed_captures(
        self, program_id: Pubkey, vault: str, *, from_settled: int, min_slot: int = 0
    ) -> list[LandedCapture]:
        self._answer()
        slot = self.history_behind or self.height
        if slot < min_slot:
            raise ChainBehind(f"the RPC node is behind: it is at slot {slot}, and not yet at slot {min_slot}")
        return [
            LandedCapture(signature, arguments, self.landed[signature], self.slots[signature])
            for signature, raw in self.raw.items()
            for arguments in captures_in(raw, program_id, vault)
            if arguments.expected_settled >= from_settled and self.slots[signature] <= slot
        ]

    async def priority_fee(self, accounts: list[Pubkey]) -> int:
        self._answer()
        return self.recent_priority_fee

    async def lamports(self, address: Pubkey) -> int:
        self._answer()
        return self.fee_payer_lamports

    async def unix_time_s(self) -> int:
        self._answer()
        return self.time_s

    async def skipped_payees(self, signature: str) -> frozenset[int] | None:
        self._answer()
        return self.landed.get(signature)

    def expire_blockhashes(self) -> None:
        self.height += BLOCKHASH_LIFE + 1

    def deposit(self, address: str, amount: int) -> None:
        state = self.vaults[address]
        self.vaults[address] = replace(state, balance=state.balance + amount)
        self.height += 1

    def fall_behind(self) -> None:
        """From now on vaults are asked of a node that sees nothing of what happens."""
        self.behind = self.height, dict(self.vaults)

    def _answer(self) -> None:
        if self.down:
            raise ChainUnavailable("the chain's RPC node does not answer")

    def _effect(self, transaction: VersionedTransaction) -> frozenset[int]:
        if self.collaterals.take(transaction, Pubkey.from_string(LOCALNET_PROGRAM_ID), self.time_s):
            return frozenset()
        return self._capture(transaction)

    def _capture(self, transaction: VersionedTransaction) -> frozenset[int]:
        message = transaction.message
        keys = list(message.account_keys)
        found = [item for item in message.instructions if bytes(item.data)[:1] == b"\x03" and len(item.accounts) > 6]
        assert len(found) == 1, "exactly one capture per transaction"
        data, accounts = bytes(found[0].data), [keys[index] for index in found[0].accounts]
        expected, count = struct.unpack_from("<QB", data, 3)
        amounts = struct.unpack_from(f"<{count}Q", data, 12)
        state = self.vaults[str(accounts[0])]
        if state.settled != expected:
            raise TransactionRejected("capture refused", error_name="E_STALE")
        skipped = frozenset(index for index, account in enumerate(accounts[6:]) if account in self.unpayable)
        paid = [
            (account, amount)
            for index, (account, amount) in enumerate(zip(accounts[6:], amounts, strict=True))
            if index not in skipped
        ]
        total = sum(amount for _, amount in paid)
        if total == 0 or total > state.balance:
            raise TransactionRejected("capture refused", error_name="E_OVER_BALANCE" if total else "E_NOTHING_PAYABLE")
        for account, amount in paid:
            self.paid[account] = self.paid.get(account, 0) + amount
        self.vaults[str(state.address)] = replace(state, settled=state.settled + total, balance=state.balance - total)
        return skipped


def open_vault(
    chain: FakeChain, network: Network, *, depositor: Pubkey, signer: Pubkey, balance: int, grace_s: int = 24 * 3600
) -> str:
    """A vault with a finalized deposit; returns its address."""
    salt = 1_000 + len(chain.vaults)
    state = fresh_vault(network, depositor=depositor, signer=signer, balance=balance, salt=salt, grace_s=grace_s)
    chain.vaults[str(state.address)] = state
    return str(state.address)
