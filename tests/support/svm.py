"""The real vault program beside the real SPL Token program in LiteSVM, with parties that can be honest or not.

A refusal is told by its exact name: the vault program's own error, or what the runtime says.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from solders.account import Account
from solders.clock import Clock
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.litesvm import LiteSVM
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.system_program import CreateAccountParams, create_account
from solders.transaction import VersionedTransaction
from solders.transaction_metadata import FailedTransactionMetadata
from solders.transaction_status import InstructionErrorCustom, TransactionErrorInstructionError
from spl.token import models as token_models
from spl.token.constants import TOKEN_PROGRAM_ID
from spl.token.instructions import (
    close_account,
    create_idempotent_associated_token_account,
    freeze_account,
    initialize_account3,
    initialize_mint2,
    mint_to,
    transfer_checked,
)

from torg_chain import instructions as program
from torg_chain.errors import PROGRAM_ERRORS
from torg_chain.vault import (
    CONFIG_SIZE,
    SALT_WINDOW_SLOTS,
    OperatorConfig,
    VaultKind,
    VaultState,
    find_config,
    find_vault,
    parse_config,
    parse_vault,
    size_of,
    token_account_of,
)
from torg_protocol.vault_messages import CapMessage, OrderMessage, sign_message

PROGRAM_ID = Pubkey.from_string("TorgVau1t1111111111111111111111111111111111")
CHAIN_ID = bytes(range(32))
START_SLOT, START_S = 435_888_000, 1_800_000_000
HOUR_S = 3600
DECIMALS = 6


class Refused(Exception):
    """`name`: the vault program's error, or the runtime's. `by_instruction`: which of the transaction's failed."""

    def __init__(self, name: str, by_instruction: int | None, logs: list[str]) -> None:
        super().__init__(f"{name} in instruction {by_instruction}\n" + "\n".join(logs))
        self.name, self.by_instruction = name, by_instruction


@dataclass(frozen=True)
class Landed:
    units: int
    size: int
    fee: int
    return_data: bytes
    raw: bytes


@dataclass(frozen=True)
class Operator:
    admin: Keypair
    capture_key: Keypair
    fee_owner: Keypair
    config: Pubkey

    def with_capture_key(self, key: Keypair) -> Operator:
        return replace(self, capture_key=key)


@dataclass(frozen=True)
class Vault:
    """A vault with the keys that rule it."""

    address: Pubkey
    salt: int
    depositor: Keypair
    session: Keypair
    operator: Operator
    mint: Pubkey

    @property
    def tokens(self) -> Pubkey:
        return token_account_of(self.address, self.mint)


@dataclass
class World:
    """One chain with one mint. `bank` pays fees, mints and freezes. Time stands still unless `wait` is called."""

    svm: LiteSVM = field(default_factory=LiteSVM)
    program_id: Pubkey = PROGRAM_ID
    deploy: bool = True
    slot: int = START_SLOT
    now_s: int = START_S
    _keys: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        if self.deploy:
            self.svm.add_program(self.program_id, vault_program())
        self.bank = self.wallet(10**14)
        self.wait(slots=0)
        self.mint = self.new_mint()
        self.operator = self.new_operator()

    # --- time and parties -------------------------------------------------------------------------------------------

    def wait(self, seconds: int = 0, slots: int = 1) -> None:
        self.slot, self.now_s = self.slot + slots, self.now_s + seconds
        clock = self.svm.get_clock()
        self.svm.set_clock(
            Clock(self.slot, clock.epoch_start_timestamp, clock.epoch, clock.leader_schedule_epoch, self.now_s)
        )

    def key(self) -> Keypair:
        """Keys in a fixed order, so that a failure can be repeated."""
        return Keypair.from_seed(struct.pack("<Q24x", next(self._keys)))

    def wallet(self, lamports: int = 10**10) -> Keypair:
        keypair = self.key()
        self.svm.airdrop(keypair.pubkey(), lamports)
        return keypair

    def rent(self, size: int) -> int:
        return int(self.svm.minimum_balance_for_rent_exemption(size))

    def new_operator(self, *, admin: Keypair | None = None) -> Operator:
        admin, capture_key, fee_owner = admin or self.wallet(), self.wallet(), self.key()
        config, _ = find_config(self.program_id, admin.pubkey())
        self.send(
            [
                program.init_config(
                    self.program_id,
                    admin.pubkey(),
                    capture_key.pubkey(),
                    fee_owner.pubkey(),
                    self.rent(CONFIG_SIZE),
                )
            ],
            [admin],
        )
        return Operator(admin, capture_key, fee_owner, config)

    # --- tokens -----------------------------------------------------------------------------------------------------

    def new_mint(self) -> Pubkey:
        mint = self.key()
        create = CreateAccountParams(
            from_pubkey=self.bank.pubkey(),
            to_pubkey=mint.pubkey(),
            lamports=self.rent(82),
            space=82,
            owner=TOKEN_PROGRAM_ID,
        )
        bank = self.bank.pubkey()
        initialize = token_models.InitializeMint2Params(
            program_id=TOKEN_PROGRAM_ID,
            mint=mint.pubkey(),
            decimals=DECIMALS,
            mint_authority=bank,
            freeze_authority=bank,
        )
        self.send([create_account(create), initialize_mint2(initialize)], [self.bank, mint])
        return mint.pubkey()

    def token_account(self, owner: Pubkey, mint: Pubkey | None = None, *, amount: int = 0) -> Pubkey:
        """The owner's associated token account, made when missing, with `amount` newly minted."""
        mint = mint or self.mint
        address = token_account_of(owner, mint)
        made = [create_idempotent_associated_token_account(self.bank.pubkey(), owner, mint)]
        self.send([*made, *([self._mint_to(mint, address, amount)] if amount else [])], [self.bank])
        return address

    def extra_token_account(self, owner: Pubkey, mint: Pubkey | None = None) -> Pubkey:
        """A token account at an address of its own, not the associated one."""
        key = self.key()
        create = CreateAccountParams(
            from_pubkey=self.bank.pubkey(),
            to_pubkey=key.pubkey(),
            lamports=self.rent(165),
            space=165,
            owner=TOKEN_PROGRAM_ID,
        )
        initialize = token_models.InitializeAccount3Params(
            program_id=TOKEN_PROGRAM_ID, account=key.pubkey(), mint=mint or self.mint, owner=owner
        )
        self.send([create_account(create), initialize_account3(initialize)], [self.bank, key])
        return key.pubkey()

    def _mint_to(self, mint: Pubkey, to: Pubkey, amount: int) -> Instruction:
        return mint_to(
            token_models.MintToParams(
                program_id=TOKEN_PROGRAM_ID, mint=mint, dest=to, mint_authority=self.bank.pubkey(), amount=amount
            )
        )

    def mint_into(self, account: Pubkey, amount: int, mint: Pubkey | None = None) -> None:
        """New tokens into that very account: how the world's parties get money, and how anybody deposits."""
        self.send([self._mint_to(mint or self.mint, account, amount)], [self.bank])

    def transfer(self, owner: Keypair, to: Pubkey, amount: int) -> Instruction:
        return transfer_checked(
            token_models.TransferCheckedParams(
                program_id=TOKEN_PROGRAM_ID,
                source=token_account_of(owner.pubkey(), self.mint),
                mint=self.mint,
                dest=to,
                owner=owner.pubkey(),
                amount=amount,
                decimals=DECIMALS,
            )
        )

    def freeze(self, account: Pubkey, mint: Pubkey | None = None) -> None:
        frozen = token_models.FreezeAccountParams(
            program_id=TOKEN_PROGRAM_ID, account=account, mint=mint or self.mint, authority=self.bank.pubkey()
        )
        self.send([freeze_account(frozen)], [self.bank])

    def close_token_account(self, owner: Keypair, account: Pubkey) -> None:
        closed = token_models.CloseAccountParams(
            program_id=TOKEN_PROGRAM_ID, account=account, dest=owner.pubkey(), owner=owner.pubkey()
        )
        self.send([close_account(closed)], [owner])

    def balance(self, account: Pubkey) -> int:
        """Base units in a token account; 0 when there is none."""
        found = self.svm.get_account(account)
        return int.from_bytes(found.data[64:72], "little") if found and len(found.data) == 165 else 0

    # --- the vault program ------------------------------------------------------------------------------------------

    def open_vault(
        self,
        *,
        deposit: int = 10_000_000,
        grace_s: int = HOUR_S,
        depositor: Keypair | None = None,
        operator: Operator | None = None,
        session: Keypair | None = None,
        kind: VaultKind = VaultKind.CLIENT,
    ) -> Vault:
        depositor, operator = depositor or self.wallet(), operator or self.operator
        while True:  # one vault per slot and depositor
            address, _ = find_vault(self.program_id, depositor.pubkey(), operator.config, self.slot)
            if not self.exists(address):
                break
            self.wait()
        vault = Vault(address, self.slot, depositor, session or self.key(), operator, self.mint)
        self.send(self.opening(vault, grace_s=grace_s, kind=kind), [depositor])
        if deposit:
            self.mint_into(vault.tokens, deposit)
        return vault

    def planned(self, depositor: Keypair, *, salt: int | None = None) -> Vault:
        """A vault that is not open yet."""
        salt = self.slot if salt is None else salt
        address, _ = find_vault(self.program_id, depositor.pubkey(), self.operator.config, salt)
        return Vault(address, salt, depositor, self.key(), self.operator, self.mint)

    def pass_salt_window(self) -> None:
        self.wait(slots=SALT_WINDOW_SLOTS + 1)

    def opening(
        self,
        vault: Vault,
        *,
        grace_s: int = HOUR_S,
        kind: VaultKind = VaultKind.CLIENT,
        rent_lamports: int | None = None,
    ) -> list[Instruction]:
        owner = vault.depositor.pubkey()
        return [
            create_idempotent_associated_token_account(owner, vault.address, vault.mint),
            program.open_vault(
                self.program_id,
                depositor=owner,
                config=vault.operator.config,
                mint=vault.mint,
                salt=vault.salt,
                grace_s=grace_s,
                signer=vault.session.pubkey(),
                chain_id=CHAIN_ID,
                rent_lamports=self.rent(size_of(kind)) if rent_lamports is None else rent_lamports,
                kind=kind,
            ),
        ]

    def cap(
        self,
        vault: Vault,
        cap: int,
        *,
        valid_for_s: int = 600,
        signer: Keypair | None = None,
        chain_id: bytes = CHAIN_ID,
        address: Pubkey | None = None,
    ) -> Instruction:
        """The client's signed cap as the precompile instruction that carries it."""
        message = CapMessage(chain_id, bytes(address or vault.address), cap, self.now_s + valid_for_s)
        signer = signer or vault.session
        return program.ed25519_verify(signer.pubkey(), sign_message(signer, message), message.to_bytes())

    def order(
        self,
        vault: Vault,
        payees: Sequence[tuple[Pubkey, int]],
        *,
        expected: int | None = None,
        root: bytes = bytes(32),
        signer: Keypair | None = None,
        chain_id: bytes = CHAIN_ID,
        address: Pubkey | None = None,
    ) -> Instruction:
        """The operator's order, signed off-chain, which anybody may submit."""
        settled = self.state(vault).settled if expected is None else expected
        keys = tuple((bytes(key), amount) for key, amount in payees)
        message = OrderMessage(chain_id, bytes(address or vault.address), settled, keys, root)
        signer = signer or vault.operator.capture_key
        return program.ed25519_verify(signer.pubkey(), sign_message(signer, message), message.to_bytes())

    def capturing(
        self,
        vault: Vault,
        payees: Sequence[tuple[Pubkey, int]],
        *,
        before: Sequence[Instruction],
        expected: int | None = None,
        root: bytes = bytes(32),
        cap_index: int = 0,
        order_index: int = program.CAPTURE_KEY_SIGNS,
        accounts: Mapping[int, Pubkey] | None = None,
    ) -> list[Instruction]:
        """`before`: the precompile instructions. `accounts`: what a cheat puts in the place of the right ones."""
        by_message = order_index != program.CAPTURE_KEY_SIGNS
        capture = program.capture(
            self.program_id,
            vault=vault.address,
            token_account=vault.tokens,
            config=vault.operator.config,
            payees=payees,
            expected_settled=self.state(vault).settled if expected is None else expected,
            root=root,
            cap_instruction=cap_index,
            order_instruction=order_index,
            capture_key=None if by_message else vault.operator.capture_key.pubkey(),
        )
        return [*before, with_accounts(capture, accounts or {})]

    def capture(
        self,
        vault: Vault,
        payees: Sequence[tuple[Pubkey, int]],
        *,
        cap: Instruction | int = 10**12,
        expected: int | None = None,
        root: bytes = bytes(32),
        accounts: Mapping[int, Pubkey] | None = None,
    ) -> Landed:
        """As the operator does it: the capture key signs the transaction and pays for it."""
        carried = self.cap(vault, cap) if isinstance(cap, int) else cap
        built = self.capturing(vault, payees, before=[carried], expected=expected, root=root, accounts=accounts)
        return self.send(built, [vault.operator.capture_key])

    def capture_by_order(
        self,
        vault: Vault,
        payees: Sequence[tuple[Pubkey, int]],
        *,
        order: Instruction,
        cap: Instruction | int = 10**12,
        expected: int | None = None,
        root: bytes = bytes(32),
    ) -> Landed:
        """As a stranger does it, who holds the cap and the operator's order."""
        carried = self.cap(vault, cap) if isinstance(cap, int) else cap
        built = self.capturing(vault, payees, before=[carried, order], expected=expected, root=root, order_index=1)
        return self.send(built, [self.bank])

    def start_close(self, vault: Vault) -> Landed:
        owner = vault.depositor
        return self.send([program.start_close(self.program_id, vault.address, owner.pubkey())], [owner])

    def finish_close(self, vault: Vault, *, agreed_by: Keypair | None = None) -> Landed:
        owner = vault.depositor
        agreement = (vault.operator.config, agreed_by.pubkey()) if agreed_by else None
        self.token_account(owner.pubkey())
        closing = program.finish_close(
            self.program_id, vault=vault.address, depositor=owner.pubkey(), mint=vault.mint, agreed_by=agreement
        )
        return self.send([closing], [owner, *([agreed_by] if agreed_by else [])])

    def state(self, vault: Vault) -> VaultState:
        found = self.svm.get_account(vault.address)
        assert found is not None
        return parse_vault(vault.address, bytes(found.data), self.balance(vault.tokens))

    def config(self, operator: Operator) -> OperatorConfig:
        found = self.svm.get_account(operator.config)
        assert found is not None
        return parse_config(operator.config, bytes(found.data))

    def exists(self, address: Pubkey) -> bool:
        found = self.svm.get_account(address)
        return found is not None and found.lamports > 0

    def put(self, address: Pubkey, data: bytes, owner: Pubkey) -> None:
        """An account out of nothing: what an attacker could create with a program of its own."""
        self.svm.set_account(address, Account(10**9, data, owner, False, 0))

    # --- transactions -----------------------------------------------------------------------------------------------

    def sign(self, instructions: Sequence[Instruction], signers: Sequence[Keypair]) -> VersionedTransaction:
        """Under a new blockhash, so that no two transactions are the same by accident. The first signer pays."""
        self.svm.expire_blockhash()
        message = MessageV0.try_compile(signers[0].pubkey(), list(instructions), [], self.svm.latest_blockhash())
        unique = list({keypair.pubkey(): keypair for keypair in signers}.values())
        return VersionedTransaction(message, unique)

    def send(self, instructions: Sequence[Instruction], signers: Sequence[Keypair]) -> Landed:
        return self.submit(self.sign(instructions, signers))

    def submit(self, transaction: VersionedTransaction) -> Landed:
        """Raises Refused."""
        result = self.svm.send_transaction(transaction)
        if isinstance(result, FailedTransactionMetadata):
            raise refusal(result)
        raw = bytes(transaction)
        return Landed(
            int(result.compute_units_consumed()), len(raw), int(result.fee()), bytes(result.return_data().data), raw
        )

    @contextlib.contextmanager
    def refused(self, name: str) -> Iterator[None]:
        """What happens inside must be refused with exactly this error, and nothing may have moved."""
        vaults = self._program_accounts()
        with pytest.raises(Refused) as caught:
            yield
        assert caught.value.name == name, f"refused, but not with {name}: {caught.value}"
        assert self._program_accounts() == vaults

    def _program_accounts(self) -> dict[str, bytes]:
        owned = [*self.svm.get_program_accounts(self.program_id)]
        return {str(address): bytes(account.data) for address, account in owned}


def vault_program() -> bytes:
    return importlib.resources.files("torg_chain").joinpath("vault_program.so").read_bytes()


def with_accounts(instruction: Instruction, accounts: Mapping[int, Pubkey]) -> Instruction:
    """The same instruction with other accounts at these places."""
    metas = list(instruction.accounts)
    for index, key in accounts.items():
        metas[index] = AccountMeta(key, metas[index].is_signer, metas[index].is_writable)
    return Instruction(instruction.program_id, bytes(instruction.data), metas)


def refusal(failed: FailedTransactionMetadata) -> Refused:
    error, logs = failed.err(), list(failed.meta().logs())
    if not isinstance(error, TransactionErrorInstructionError):
        return Refused(_variant(error), None, logs)
    inner = error.err
    if isinstance(inner, InstructionErrorCustom):
        return Refused(PROGRAM_ERRORS.get(inner.code, f"Custom({inner.code})"), error.index, logs)
    return Refused(_variant(inner), error.index, logs)


def _variant(error: object) -> str:
    """An enum member without fields, or a class with some."""
    name = str(error).rpartition(".")[2] if "Fieldless" in str(error) else type(error).__name__
    return name.removeprefix("TransactionError").removeprefix("InstructionError")
