"""The cluster's rules around LiteSVM, which by itself keeps one blockhash and forgets old signatures.

We keep our own window of 150 blockhashes, refuse any signature that was ever processed, and age transactions through processed,
confirmed and finalized by slots: readers see accounts as of the level that they ask for, and a fork can take back what is not
finalized (`reorg`). Everything that changes state goes through the journal, so a restart is a replay.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.resources
import struct
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solders.account import Account
from solders.clock import Clock
from solders.hash import Hash
from solders.litesvm import LiteSVM
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction
from solders.transaction_metadata import FailedTransactionMetadata, TransactionMetadata
from spl.token.constants import TOKEN_PROGRAM_ID

from torg_chain.localnet.accounts import NoSuchTable, TransactionAccounts, accounts_of
from torg_chain.localnet.encoding import error_json
from torg_chain.localnet.store import Store
from torg_chain.localnet.undo import UndoLog
from torg_chain.network import LOCALNET_MINT, LOCALNET_PROGRAM_ID
from torg_chain.vault import token_account_of

BLOCKHASH_WINDOW = 150
MAX_TRANSACTION_BYTES = 1232
MINT_DECIMALS = 6
FAUCET_LIMIT = 1_000_000 * 10**MINT_DECIMALS
FAUCET_LAMPORTS = 10**9
_TOKEN_ACCOUNT_RENT, _MINT_RENT = 2_039_280, 1_461_600
# Refused before execution: no fee is taken and the signature stays unused.
_NOT_PROCESSED = {
    "SignatureFailure",
    "SanitizeFailure",
    "AccountNotFound",
    "BlockhashNotFound",
    "InsufficientFundsForFee",
    "TooManyAccountLocks",
    "InvalidAccountForFee",
    "ProgramAccountNotFound",
}


class Refused(Exception):
    """A request that the cluster does not process. `reason` is a TransactionError name, or None for malformed input."""

    def __init__(self, message: str, reason: Any = None, logs: list[str] | None = None, units: int = 0) -> None:
        super().__init__(message)
        self.reason, self.logs, self.units = reason, logs or [], units


@dataclass(frozen=True, slots=True)
class Landed:
    """A transaction in the ledger, successful or failed."""

    raw: bytes
    slot: int
    time_s: int
    error: Any
    meta: TransactionMetadata
    accounts: TransactionAccounts
    before: list[Account | None]
    after: list[Account | None]


class Cluster:
    def __init__(self, store: Store, *, confirm_after_slots: int = 1, finalize_after_slots: int = 4) -> None:
        self._svm = LiteSVM().with_blockhash_check(False).with_transaction_history(0)
        self._store = store
        self._confirm_after, self._finalize_after = confirm_after_slots, finalize_after_slots
        self.genesis = Hash(hashlib.sha256(b"torg localnet").digest())
        self.blockhashes: OrderedDict[str, int] = OrderedDict()
        self.landed: OrderedDict[str, Landed] = OrderedDict()
        self.by_address: defaultdict[str, list[str]] = defaultdict(list)
        self._undo = UndoLog()
        self._slot_hashes_at = 0
        self.slot = int(self._svm.get_clock().slot)
        self.unix_time_s = 0
        self._make_genesis()
        self._replay()

    # --- time -------------------------------------------------------------------------------------------------------

    def tick(self, unix_time_s: int, slots: int = 1) -> None:
        """`slots` pass; the chain's clock moves to `unix_time_s`, never back."""
        for _ in range(slots):
            self._advance(max(unix_time_s, self.unix_time_s))
        self._store.write_clock(self.slot, self.unix_time_s)

    def advance_slots(self, count: int) -> None:
        """Tests only: slots pass, the clock stands."""
        if not 1 <= count <= 10_000:
            raise Refused("1 to 10,000 slots can pass at once")
        self.tick(self.unix_time_s, slots=count)

    def advance_clock(self, seconds: int) -> None:
        """Tests only: the chain's clock jumps ahead and stays ahead."""
        if seconds < 0:
            raise Refused("the clock goes forward only")
        self._advance(self.unix_time_s + seconds)
        self._store.write_clock(self.slot, self.unix_time_s)

    def level(self, slot: int) -> str:
        age = self.slot - slot
        return (
            "finalized" if age >= self._finalize_after else "confirmed" if age >= self._confirm_after else "processed"
        )

    def slot_at(self, level: str) -> int:
        """The newest slot of a commitment level; an unknown level is taken for "finalized"."""
        return self.slot - {"processed": 0, "confirmed": self._confirm_after}.get(level, self._finalize_after)

    @property
    def deepest_reorg(self) -> int:
        """In slots: what is finalized stays."""
        return self._finalize_after

    def blockhash_at(self, level: str) -> tuple[str, int]:
        """The newest blockhash of that level, and the last block height at which it is taken."""
        limit = self.slot_at(level)
        for blockhash, slot in reversed(self.blockhashes.items()):
            if slot <= limit:
                return blockhash, slot + BLOCKHASH_WINDOW - 1
        blockhash, slot = next(reversed(self.blockhashes.items()))
        return blockhash, slot + BLOCKHASH_WINDOW - 1

    # --- accounts ---------------------------------------------------------------------------------------------------

    def account(self, address: Pubkey, level: str = "processed") -> Account | None:
        newest = self._svm.get_account(address)
        return newest if level == "processed" else self._undo.as_of(address, self.slot_at(level), newest)

    def lamports(self, address: Pubkey, level: str = "processed") -> int:
        account = self.account(address, level)
        return 0 if account is None else account.lamports

    def rent(self, size: int) -> int:
        return int(self._svm.minimum_balance_for_rent_exemption(size))

    def program_accounts(self, program: Pubkey, level: str = "processed") -> list[tuple[Pubkey, Account]]:
        now = dict(self._svm.get_program_accounts(program))
        touched = set() if level == "processed" else self._undo.addresses_after(self.slot_at(level))
        then = {key: self.account(key, level) for key in now.keys() | touched}
        return [(key, account) for key, account in then.items() if account is not None and account.owner == program]

    def airdrop(self, address: Pubkey, lamports: int) -> str:
        """New lamports, as the faucet of a test cluster gives them. Returns a signature that names the gift."""
        if not 0 < lamports <= 1000 * 10**9:
            raise Refused("an airdrop is more than 0 and at most 1,000 SOL")
        return self._faucet_entry({"k": "airdrop", "to": str(address), "lamports": lamports})

    def faucet(self, owner: Pubkey, amount: int) -> str:
        """Test tokens to the owner's associated token account (made when missing), and lamports for fees."""
        if not 0 < amount <= FAUCET_LIMIT:
            raise Refused(f"the faucet gives more than 0 and at most {FAUCET_LIMIT} base units at once")
        return self._faucet_entry({"k": "faucet", "to": str(owner), "amount": amount})

    # --- transactions -----------------------------------------------------------------------------------------------

    def check(self, transaction: VersionedTransaction) -> None:
        """Raises Refused for what a validator refuses before execution."""
        if len(bytes(transaction)) > MAX_TRANSACTION_BYTES:
            raise Refused(f"transaction too large: {len(bytes(transaction))} bytes (max {MAX_TRANSACTION_BYTES})")
        if str(transaction.signatures[0]) in self.landed:
            raise Refused(
                "Transaction simulation failed: This transaction has already been processed", "AlreadyProcessed"
            )
        if str(transaction.message.recent_blockhash) not in self.blockhashes:
            raise Refused("Transaction simulation failed: Blockhash not found", "BlockhashNotFound")

    def simulate(self, transaction: VersionedTransaction, *, verify: bool = True) -> Any:
        self._accounts_of(transaction)
        self._svm = self._svm.with_sigverify(verify)
        try:
            return self._svm.simulate_transaction(transaction)
        finally:
            self._svm = self._svm.with_sigverify(True)

    def submit(self, transaction: VersionedTransaction) -> str:
        """Executes and remembers. Raises Refused when nothing was processed; a program's failure is a landed transaction."""
        self.check(transaction)
        landed = self._execute(transaction, self.slot, self.unix_time_s)
        if isinstance(landed.error, str) and landed.error in _NOT_PROCESSED:
            raise Refused(f"Transaction simulation failed: {landed.error}", landed.error, list(landed.meta.logs()))
        self._remember(landed)
        self._write_time()
        entry = {"k": "tx", "raw": base64.b64encode(landed.raw).decode(), "slot": landed.slot, "time": landed.time_s}
        self._store.append(entry)
        return str(transaction.signatures[0])

    def reorg(self, slots: int) -> list[bytes]:
        """The newest `slots` slots were a dead fork: their transactions never happened and their blockhashes are not taken.
        What is finalized stays. Returns the transactions, which may land again, oldest first."""
        if not 1 <= slots <= self.deepest_reorg:
            raise Refused(f"a fork takes back 1 to {self.deepest_reorg} slots; what is finalized stays")
        self._write_time()
        self._store.append({"k": "reorg", "slots": slots})
        return self._reorg(slots)

    def land_again(self, dropped: list[bytes]) -> int:
        """On the live fork. How many did: the rest is not valid there."""
        landed = 0
        for raw in dropped:
            with contextlib.suppress(Refused):
                self.submit(VersionedTransaction.from_bytes(raw))
                landed += 1
        return landed

    # --- parts ------------------------------------------------------------------------------------------------------

    def _make_genesis(self) -> None:
        program = importlib.resources.files("torg_chain").joinpath("vault_program.so").read_bytes()
        self._svm.add_program(Pubkey.from_string(LOCALNET_PROGRAM_ID), program)
        no_authority = bytes(36)
        supply = 0
        mint = no_authority + struct.pack("<QBB", supply, MINT_DECIMALS, 1) + no_authority
        self._svm.set_account(Pubkey.from_string(LOCALNET_MINT), Account(_MINT_RENT, mint, TOKEN_PROGRAM_ID, False, 0))
        self._advance(0)

    def _replay(self) -> None:
        for entry in self._store.replay():
            match entry["k"]:
                case "time":
                    self._resume_at(entry["slot"], entry["time"])
                case "tx":
                    transaction = VersionedTransaction.from_bytes(base64.b64decode(entry["raw"]))
                    self._remember(self._execute(transaction, entry["slot"], entry["time"]))
                case "airdrop" | "faucet":
                    self._give(entry)
                case "reorg":
                    self._reorg(entry["slots"])
                case unknown:
                    raise ValueError(f"the localnet's journal has an entry of unknown kind {unknown!r}")
        self._resume_at(*self._store.read_clock())

    def _resume_at(self, slot: int, unix_time_s: int) -> None:
        """Only the newest blockhashes matter: a long quiet time needs no walk through it."""
        self.slot = max(self.slot, slot - BLOCKHASH_WINDOW)
        while self.slot < slot:
            self._advance(unix_time_s)
        self._advance_clock_to(max(self.unix_time_s, unix_time_s))

    def _advance(self, unix_time_s: int) -> None:
        self.slot += 1
        self._advance_clock_to(unix_time_s)
        blockhash = Hash(hashlib.sha256(bytes(self.genesis) + struct.pack("<Q", self.slot)).digest())
        self.blockhashes[str(blockhash)] = self.slot
        while len(self.blockhashes) > BLOCKHASH_WINDOW:
            self.blockhashes.popitem(last=False)
        self._svm.expire_blockhash()
        self._undo.forget(self.slot_at("finalized"))

    def _reorg(self, slots: int) -> list[bytes]:
        fork_begins_after = self.slot - slots
        dropped = []
        for change in self._undo.take_after(fork_begins_after):
            landed = self.landed.pop(change.signature)
            dropped.append(landed.raw)
            for key in dict.fromkeys(map(str, landed.accounts.keys)):
                self.by_address[key].remove(change.signature)
            for address, account in change.before.items():
                self._svm.set_account(address, account or _NO_ACCOUNT)
        for blockhash, slot in list(self.blockhashes.items()):
            # The newest one stays the live fork's: a cluster is never without a blockhash.
            if fork_begins_after < slot < self.slot:
                del self.blockhashes[blockhash]
        return dropped[::-1]

    def _advance_clock_to(self, unix_time_s: int) -> None:
        self.unix_time_s = unix_time_s
        clock = self._svm.get_clock()
        epoch_start, epoch, leader_epoch = clock.epoch_start_timestamp, clock.epoch, clock.leader_schedule_epoch
        self._svm.set_clock(Clock(self.slot, epoch_start, epoch, leader_epoch, unix_time_s))

    def _write_time(self) -> None:
        """So that a replay executes the next entry at the same slot and time."""
        self._store.append({"k": "time", "slot": self.slot, "time": self.unix_time_s}, durable=False)

    def _faucet_entry(self, entry: dict[str, Any]) -> str:
        entry["n"] = len(self.landed) + len(self.by_address["faucet"])
        self._write_time()
        self._store.append(entry)
        return self._give(entry)

    def _give(self, entry: dict[str, Any]) -> str:
        to = Pubkey.from_string(entry["to"])
        self.by_address["faucet"].append(entry["to"])
        if entry["k"] == "airdrop":
            self._change(to, lambda account: _with_lamports(account, entry["lamports"]))
        else:
            mint, amount = Pubkey.from_string(LOCALNET_MINT), entry["amount"]
            self._change(to, lambda account: _with_lamports(account, FAUCET_LAMPORTS))
            self._change(token_account_of(to, mint), lambda account: _with_tokens(account, mint, to, amount))
            self._change(mint, lambda account: _with_supply(account, amount))
        return _gift_signature(entry)

    def _change(self, address: Pubkey, change: Callable[[Account | None], Account]) -> None:
        """The faucet's gifts are final at once, seen at every level and on every fork."""
        self._svm.set_account(address, change(self.account(address)))
        self._undo.rewrite(address, change)

    def _execute(self, transaction: VersionedTransaction, slot: int, time_s: int) -> Landed:
        named = self._accounts_of(transaction)
        before = [self.account(key) for key in named.keys]
        writable = set(named.writable)
        result = self._svm.send_transaction(transaction)
        meta = result.meta() if isinstance(result, FailedTransactionMetadata) else result
        error = error_json(result.err()) if isinstance(result, FailedTransactionMetadata) else None
        after = [self.account(key) for key in named.keys]
        if not (isinstance(error, str) and error in _NOT_PROCESSED):
            was = {key: account for key, account in zip(named.keys, before, strict=True) if key in writable}
            self._undo.note(slot, str(transaction.signatures[0]), was)
        return Landed(bytes(transaction), slot, time_s, error, meta, named, before, after)

    def _remember(self, landed: Landed) -> None:
        signature = str(VersionedTransaction.from_bytes(landed.raw).signatures[0])
        self.landed[signature] = landed
        for key in dict.fromkeys(map(str, landed.accounts.keys)):
            self.by_address[key].append(signature)

    def _accounts_of(self, transaction: VersionedTransaction) -> TransactionAccounts:
        """Also brings the SlotHashes sysvar up to date, which the lookup table program reads."""
        if self._slot_hashes_at != self.slot:
            self._slot_hashes_at = self.slot
            newest_first = reversed(self.blockhashes.items())
            self._svm.set_slot_hashes([(slot, Hash.from_string(blockhash)) for blockhash, slot in newest_first])
        try:
            return accounts_of(transaction.message, self.account)
        except NoSuchTable as missing:
            reason = "AddressLookupTableNotFound"
            raise Refused(f"Transaction simulation failed: {reason}", reason) from missing


def open_cluster(data: Path, *, finalize_after_slots: int) -> Cluster:
    return Cluster(Store(data / "ledger.jsonl"), finalize_after_slots=finalize_after_slots)


_NO_ACCOUNT = Account(0, b"", Pubkey.default(), False, 0)


def _with_tokens(account: Account | None, mint: Pubkey, owner: Pubkey, amount: int) -> Account:
    data = bytearray(account.data) if account else bytearray(bytes(mint) + bytes(owner) + bytes(101))
    data[108] = 1  # initialized
    struct.pack_into("<Q", data, 64, struct.unpack_from("<Q", data, 64)[0] + amount)
    return Account(account.lamports if account else _TOKEN_ACCOUNT_RENT, bytes(data), TOKEN_PROGRAM_ID, False, 0)


def _with_supply(mint: Account | None, amount: int) -> Account:
    if mint is None:
        raise ValueError("the genesis mint is missing")
    data = bytearray(mint.data)
    struct.pack_into("<Q", data, 36, struct.unpack_from("<Q", data, 36)[0] + amount)
    return Account(mint.lamports, bytes(data), TOKEN_PROGRAM_ID, False, 0)


def _with_lamports(account: Account | None, more: int) -> Account:
    system = Pubkey.default()
    if account is None:
        return Account(more, b"", system, False, 0)
    return Account(account.lamports + more, account.data, account.owner, account.executable, account.rent_epoch)


def _gift_signature(entry: dict[str, Any]) -> str:
    from solders.signature import Signature

    digest = hashlib.sha512(repr(sorted(entry.items())).encode()).digest()
    return str(Signature.from_bytes(digest))
