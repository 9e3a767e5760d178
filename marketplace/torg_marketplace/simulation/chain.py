"""A chain with a bad day: transactions that land late, never, or while the answer gets lost; forks that drop what was confirmed.

It decodes the very transactions that the settlement signs, and keeps the vault program's promises: settled as expected, within
cap and balance, cap signed and not expired. A capture that breaks one of them is refused, and remembered as `attempts`: an
honest marketplace never tries. What the real program refuses is tested against the real program.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from solders.hash import Hash
from solders.instruction import CompiledInstruction
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction

from torg_chain.captures import LandedCapture, captures_in
from torg_chain.errors import ChainBehind, ChainUnavailable, TransactionExpired, TransactionRejected
from torg_chain.network import LOCALNET_PROGRAM_ID, Network
from torg_chain.rpc import SignatureStatus, TransactionStatus
from torg_chain.vault import OperatorConfig, VaultState, find_vault, token_account_of
from torg_marketplace.simulation.collateral import SimulatedCollaterals
from torg_protocol.vault_messages import CAP_DOMAIN

BLOCKHASH_LIFE_SLOTS = 150
FINAL_AFTER_SLOTS, CONFIRMED_AFTER_SLOTS = 32, 2
SLOT_MS = 400
_SLASH_STEPS = (b"\x09", b"\x0a", b"\x0b")


@dataclass(frozen=True, slots=True)
class _Capture:
    signature: str
    vault: str
    expected_settled: int
    payments: tuple[tuple[Pubkey, int], ...]
    skipped: frozenset[int]
    valid_until_slot: int
    raw: bytes

    @property
    def total(self) -> int:
        return sum(amount for _, amount in self.payments)


@dataclass
class SimulatedChain:
    """`finalized` is what `vault` answers; `landed` are captures that a fork may still drop, with the slot they landed in."""

    chance: random.Random
    start_ms: int
    now_ms: int
    finalized: dict[str, VaultState] = field(default_factory=dict)
    landed: list[tuple[int, _Capture]] = field(default_factory=list)
    late: list[tuple[int, _Capture]] = field(default_factory=list)  # lands at this slot, unless it has expired by then
    failed: dict[str, int] = field(default_factory=dict)  # in a block, and refused; the slot
    paid: dict[Pubkey, int] = field(default_factory=dict)  # finalized, by token account
    captures: dict[str, _Capture] = field(default_factory=dict)  # finalized, by signature
    slots: dict[str, int] = field(default_factory=dict)  # that these landed in
    unpayable: set[Pubkey] = field(default_factory=set)
    attempts: list[str] = field(default_factory=list)  # captures that nobody may make
    down: bool = False
    lose: float = 0.0
    delay: float = 0.0
    lose_answer: float = 0.0
    lag: float = 0.0  # how often the node that is asked about a vault has not seen its newest change
    before: dict[str, tuple[int, VaultState]] = field(default_factory=dict)  # what such a node answers, and as of when
    collaterals: SimulatedCollaterals = field(init=False)
    fee_owner: Pubkey = field(default_factory=lambda: Pubkey(hashlib.sha256(b"fees").digest()))

    def __post_init__(self) -> None:
        self.collaterals = SimulatedCollaterals(self.finalized)

    # --- time ---------------------------------------------------------------------------------------------------------

    @property
    def slot(self) -> int:
        return 10_000 + (self.now_ms - self.start_ms) // SLOT_MS

    @property
    def height(self) -> int:
        """The finalized block height."""
        return self.slot - FINAL_AFTER_SLOTS

    def advance_to(self, now_ms: int) -> None:
        self.now_ms = now_ms
        due = [item for item in self.late if item[0] <= self.slot]
        self.late = [item for item in self.late if item[0] > self.slot]
        for slot, capture in due:
            if slot <= capture.valid_until_slot:
                self._include(slot, capture)
        for slot, capture in list(self.landed):
            if self._is_final(slot):
                self.landed.remove((slot, capture))
                self._finalize(capture, slot)

    def fork(self, *, again: float = 0.5) -> None:
        """Everything that is not final never happened; so much of it will be included once more, in another order perhaps."""
        dropped, self.landed = self.landed, []
        self.failed = {signature: slot for signature, slot in self.failed.items() if self._is_final(slot)}
        chance = random.Random(f"fork at {self.slot}")
        self.late += [(self.slot + chance.randrange(1, 20), item) for _, item in dropped if chance.random() < again]

    def calm(self) -> None:
        self.down, self.lose, self.delay, self.lose_answer, self.lag = False, 0.0, 0.0, 0.0, 0.0
        self.unpayable.clear()

    # --- what the marketplace asks -------------------------------------------------------------------------------------

    async def vault(self, address: str, *, min_slot: int = 0) -> VaultState | None:
        self._answer()
        slot, state = self.height, self.finalized.get(address)
        if self.lag and self.chance.random() < self.lag and address in self.before:
            slot, state = self.before[address]
        if slot < min_slot:
            raise ChainBehind(f"the RPC node is behind: it is at slot {slot}, and not yet at slot {min_slot}")
        return None if state is None else replace(state, slot=slot)

    async def operator_config(self, address: Pubkey) -> OperatorConfig | None:
        self._answer()
        return OperatorConfig(address, address, address, self.fee_owner)

    async def accounts_exist(self, addresses: list[Pubkey]) -> list[bool]:
        self._answer()
        return [True for _ in addresses]

    async def latest_blockhash(self) -> tuple[Hash, int]:
        self._answer()
        return _blockhash(self.slot), self.slot + BLOCKHASH_LIFE_SLOTS

    async def block_height(self) -> int:
        self._answer()
        return self.height

    async def send(self, raw: bytes) -> str:
        self._answer()
        transaction = VersionedTransaction.from_bytes(raw)
        signature = str(transaction.signatures[0])
        if any(bytes(item.data)[:1] in _SLASH_STEPS for item in transaction.message.instructions):
            return self._slash(transaction, signature)
        if signature in self.captures or any(item.signature == signature for _, item in self.landed + self.late):
            return signature
        capture = self._decode(transaction, signature, raw)
        if (refusal := self._refusal(capture)) is not None:
            raise TransactionRejected("capture refused", error_name=refusal)
        dice = self.chance.random()
        if dice < self.lose:
            return signature
        if dice < self.lose + self.delay:
            self.late.append((self.slot + self.chance.randrange(1, 2 * BLOCKHASH_LIFE_SLOTS), capture))
            return signature
        self.landed.append((self.slot, capture))
        if self.chance.random() < self.lose_answer:
            raise ChainUnavailable("the answer got lost")
        return signature

    async def signature_status(self, signature: str) -> SignatureStatus:
        self._answer()
        if signature in self.captures:
            return SignatureStatus(TransactionStatus.FINALIZED, slot=self.slots[signature])
        for _, capture in self.landed:
            if capture.signature == signature:
                confirmed = self.is_confirmed(signature)
                return SignatureStatus(TransactionStatus.CONFIRMED if confirmed else TransactionStatus.PROCESSED)
        return SignatureStatus(TransactionStatus.FAILED if signature in self.failed else TransactionStatus.NOT_FOUND)

    async def skipped_payees(self, signature: str) -> frozenset[int] | None:
        self._answer()
        capture = self.captures.get(signature)
        return None if capture is None else capture.skipped

    async def landed_captures(
        self,
        program_id: Pubkey,
        vault: str,
        *,
        from_settled: int,
        min_slot: int = 0,  # noqa: ARG002 - the port's; this node is never behind
    ) -> list[LandedCapture]:
        self._answer()
        if any(capture.vault == vault for _, capture in self.landed):
            raise ChainUnavailable("a capture is not final yet", code="vault_in_motion")
        return [
            LandedCapture(capture.signature, arguments, capture.skipped, self.slots[capture.signature])
            for capture in self.captures.values()
            for arguments in captures_in(capture.raw, program_id, vault)
            if arguments.expected_settled >= from_settled
        ]

    async def priority_fee(self, accounts: list[Pubkey]) -> int:  # noqa: ARG002 - the port's
        self._answer()
        return 0

    async def lamports(self, address: Pubkey) -> int:  # noqa: ARG002 - the port's
        self._answer()
        return 10**9

    async def unix_time_s(self) -> int:
        self._answer()
        return self.now_ms // 1000

    # --- what is true --------------------------------------------------------------------------------------------------

    def is_confirmed(self, signature: str) -> bool:
        """Or final."""
        found = [slot for slot, item in self.landed if item.signature == signature]
        return signature in self.captures or any(slot + CONFIRMED_AFTER_SLOTS <= self.slot for slot in found)

    # --- what depositors do --------------------------------------------------------------------------------------------

    def open_vault(self, network: Network, depositor: Pubkey, balance: int) -> str:
        salt = 1_000 + len(self.finalized)
        state = fresh_vault(network, depositor=depositor, signer=depositor, balance=balance, salt=salt)
        self.finalized[str(state.address)] = state
        return str(state.address)

    def land(self, raw: bytes, vault: str) -> bool:
        """Somebody who is paid by it sends an order in a transaction of its own. Whether it has landed."""
        transaction = VersionedTransaction.from_bytes(raw)
        signature = str(Signature(hashlib.sha512(raw + struct.pack("<Q", self.slot)).digest()))
        capture = self._decoded(transaction, signature, raw, valid_until_slot=self.slot)
        if capture.vault != vault or self._refusal(capture) is not None:
            return False
        self.landed.append((self.slot, capture))
        return True

    def start_close(self, address: str) -> None:
        state = self.finalized[address]
        self._change(replace(state, close_at=self.now_ms // 1000 + state.grace_s), self.height)

    def finish_close(self, address: str) -> None:
        """After the grace the depositor has the rest, and the account is gone."""
        if 0 < self.finalized[address].close_at <= self.now_ms // 1000:
            self.before[address] = self.height - 1, self.finalized.pop(address)

    def deposit(self, address: str, amount: int) -> None:
        state = self.finalized[address]
        self._change(replace(state, balance=state.balance + amount), self.height)

    # --- inside --------------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        if self.down:
            raise ChainUnavailable("the chain's RPC node does not answer")

    def _is_final(self, slot: int) -> bool:
        return slot + FINAL_AFTER_SLOTS <= self.slot

    def _include(self, slot: int, capture: _Capture) -> None:
        """In a block. What the program refuses there has failed, and has paid its fee."""
        if self._refusal(capture) is None:
            self.landed.append((slot, capture))
        else:
            self.failed[capture.signature] = slot

    def _slash(self, transaction: VersionedTransaction, signature: str) -> str:
        """Final at once, or lost; its answer may be lost too."""
        if self.chance.random() < self.lose:
            return signature
        self.collaterals.take(transaction, Pubkey.from_string(LOCALNET_PROGRAM_ID), self.now_ms // 1000)
        if self.chance.random() < self.lose_answer:
            raise ChainUnavailable("the answer got lost")
        return signature

    def _decode(self, transaction: VersionedTransaction, signature: str, raw: bytes) -> _Capture:
        recent = transaction.message.recent_blockhash
        ages = range(BLOCKHASH_LIFE_SLOTS + 1)
        issued = next((self.slot - age for age in ages if _blockhash(self.slot - age) == recent), None)
        if issued is None:
            raise TransactionExpired("the transaction's blockhash is dead")
        return self._decoded(transaction, signature, raw, valid_until_slot=issued + BLOCKHASH_LIFE_SLOTS)

    def _decoded(
        self, transaction: VersionedTransaction, signature: str, raw: bytes, *, valid_until_slot: int
    ) -> _Capture:
        message = transaction.message
        keys = list(message.account_keys)
        (found,) = [item for item in message.instructions if bytes(item.data)[:1] == b"\x03" and len(item.accounts) > 6]
        data, accounts = bytes(found.data), [keys[index] for index in found.accounts]
        expected, count = struct.unpack_from("<QB", data, 3)
        amounts = struct.unpack_from(f"<{count}Q", data, 12)
        payees = list(zip(accounts[6:], amounts, strict=True))
        skipped = frozenset(index for index, (account, _) in enumerate(payees) if account in self.unpayable)
        capture = _Capture(
            signature=signature,
            vault=str(accounts[0]),
            expected_settled=expected,
            payments=tuple(payee for index, payee in enumerate(payees) if index not in skipped),
            skipped=skipped,
            valid_until_slot=valid_until_slot,
            raw=raw,
        )
        self._check_cap(message.instructions, capture)
        return capture

    def _check_cap(self, instructions: Sequence[CompiledInstruction], capture: _Capture) -> None:
        raw = next(bytes(item.data) for item in instructions if CAP_DOMAIN in bytes(item.data))
        start = raw.index(CAP_DOMAIN) + len(CAP_DOMAIN) + 64
        cap, valid_until_s = struct.unpack_from("<Qq", raw, start)
        if capture.expected_settled + capture.total > cap:
            self.attempts.append(f"a capture of {capture.expected_settled + capture.total} above the cap {cap}")
        if valid_until_s * 1000 < self.now_ms:
            self.attempts.append("a capture under a cap that has expired")

    def _refusal(self, capture: _Capture) -> str | None:
        state, settled = self.finalized[capture.vault], self._settled(capture.vault)
        if settled != capture.expected_settled:
            return "E_STALE"
        if capture.total == 0:
            return "E_NOTHING_PAYABLE"
        return "E_OVER_BALANCE" if capture.total > state.balance else None

    def _change(self, changed: VaultState, slot: int) -> None:
        vault = str(changed.address)
        self.before[vault], self.finalized[vault] = (slot - 1, self.finalized[vault]), changed

    def _settled(self, vault: str) -> int:
        return self.finalized[vault].settled + sum(item.total for _, item in self.landed if item.vault == vault)

    def _finalize(self, capture: _Capture, slot: int) -> None:
        state = self.finalized[capture.vault]
        paid = replace(state, settled=state.settled + capture.total, balance=state.balance - capture.total)
        self._change(paid, slot)
        self.captures[capture.signature], self.slots[capture.signature] = capture, slot
        for account, amount in capture.payments:
            self.paid[account] = self.paid.get(account, 0) + amount


def _blockhash(slot: int) -> Hash:
    return Hash(hashlib.sha256(struct.pack("<Q", slot)).digest())


def fresh_vault(
    network: Network, *, depositor: Pubkey, signer: Pubkey, balance: int, salt: int, grace_s: int = 24 * 3600
) -> VaultState:
    """As it is once opening and deposit are finalized."""
    address, _ = find_vault(network.program_pubkey, depositor, network.operator_pubkey, salt)
    return VaultState(
        address=address,
        kind=0,
        grace_s=grace_s,
        depositor=depositor,
        config=network.operator_pubkey,
        mint=network.mint_pubkey,
        token_account=token_account_of(address, network.mint_pubkey),
        signer=signer,
        next_signer=Pubkey.default(),
        chain_id=network.chain_id,
        roots=bytes(32),
        salt=salt,
        settled=0,
        close_at=0,
        next_signer_at=0,
        captures=0,
        balance=balance,
    )
