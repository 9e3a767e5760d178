"""The vault program's accounts, read: byte layouts as in chain/program/SPEC.md, derived addresses."""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from solders.pubkey import Pubkey
from spl.token.instructions import get_associated_token_address

from torg_protocol.errors import Invalid

CONFIG_SIZE, VAULT_SIZE, COLLATERAL_SIZE = 104, 304, 384
CONFIG_SEED, VAULT_SEED = b"torg-op1", b"torg-vl1"
MINIMUM_GRACE_S, MAXIMUM_GRACE_S = 3600, 90 * 86400
DISPUTE_DELAY_S, SLASH_MARGIN_S = 86400, 3600
MINIMUM_COLLATERAL_GRACE_S = DISPUTE_DELAY_S + SLASH_MARGIN_S
SALT_WINDOW_SLOTS = 1500
MAX_PAYEES = 16
# What fits into 1,232 bytes without a lookup table: signed by the capture key, or by an order that anybody may land.
MAX_PAYEES_SIGNED, MAX_PAYEES_BY_ORDER = 14, 8
_TAG_CONFIG, _TAG_VAULT = 1, 2
_CONFIG = struct.Struct("<BB6x32s32s32s")
_VAULT = struct.Struct("<BBBxI32s32s32s32s32s32s32s32sQQqqQ")
_SLASH = struct.Struct("<Qq32s32s")


class VaultKind(enum.IntEnum):
    """What a vault is for: a client's payments, or what a node stakes."""

    CLIENT = 0
    COLLATERAL = 1


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    address: Pubkey
    admin: Pubkey
    capture_key: Pubkey
    fee_owner: Pubkey


@dataclass(frozen=True, slots=True)
class ProposedSlash:
    """What the operator wants to take of a collateral, and give to the wallet `beneficiary`, in base units."""

    amount: int
    execute_at: int  # unix seconds: executable from then on, for DISPUTE_DELAY_S
    evidence_root: bytes
    beneficiary: Pubkey


@dataclass(frozen=True, slots=True)
class VaultState:
    """One vault and its token balance, both in base units, as of one commitment level."""

    address: Pubkey
    kind: int
    grace_s: int
    depositor: Pubkey
    config: Pubkey
    mint: Pubkey
    token_account: Pubkey
    signer: Pubkey
    next_signer: Pubkey
    chain_id: bytes
    roots: bytes
    salt: int
    settled: int
    close_at: int  # unix seconds; 0: not closing
    next_signer_at: int
    captures: int
    balance: int
    slash: ProposedSlash | None = None  # collateral only
    slot: int = field(default=0, compare=False)  # of the answer: all that landed up to it is in here

    def signer_at(self, unix_time_s: int) -> Pubkey:
        """Whose caps count at that time."""
        return self.next_signer if self.next_signer_at and unix_time_s >= self.next_signer_at else self.signer


def parse_config(address: Pubkey, data: bytes) -> OperatorConfig:
    if len(data) != CONFIG_SIZE or data[0] != _TAG_CONFIG:
        raise Invalid("not an operator config", code="not_operator_config", field="address", value=str(address))
    _, _, admin, capture_key, fee_owner = _CONFIG.unpack(data)
    return OperatorConfig(address, Pubkey(admin), Pubkey(capture_key), Pubkey(fee_owner))


def parse_vault(address: Pubkey, data: bytes, balance: int) -> VaultState:
    if len(data) < VAULT_SIZE or data[0] != _TAG_VAULT or len(data) != size_of(data[2]):
        raise Invalid("not a vault", code="not_a_vault", field="address", value=str(address))
    _, _, kind, grace_s, *rest = _VAULT.unpack_from(data)
    (
        depositor,
        config,
        mint,
        token_account,
        signer,
        next_signer,
        chain_id,
        roots,
        salt,
        settled,
        close_at,
        next_at,
        captures,
    ) = rest
    return VaultState(
        address=address,
        kind=kind,
        grace_s=grace_s,
        depositor=Pubkey(depositor),
        config=Pubkey(config),
        mint=Pubkey(mint),
        token_account=Pubkey(token_account),
        signer=Pubkey(signer),
        next_signer=Pubkey(next_signer),
        chain_id=chain_id,
        roots=roots,
        salt=salt,
        settled=settled,
        close_at=close_at,
        next_signer_at=next_at,
        captures=captures,
        balance=balance,
        slash=_parse_slash(data),
    )


def size_of(kind: int) -> int:
    """Bytes of a vault's account."""
    return COLLATERAL_SIZE if kind == VaultKind.COLLATERAL else VAULT_SIZE


def _parse_slash(data: bytes) -> ProposedSlash | None:
    if len(data) != COLLATERAL_SIZE:
        return None
    amount, execute_at, evidence_root, beneficiary = _SLASH.unpack_from(data, VAULT_SIZE)
    return ProposedSlash(amount, execute_at, evidence_root, Pubkey(beneficiary)) if amount else None


def chained(roots: bytes, root: bytes) -> bytes:
    """What `roots` of a vault becomes by a payment for the usage records under `root`."""
    return hashlib.sha256(roots + root).digest()


def chain_of(roots: Iterable[bytes]) -> bytes:
    """`roots` of a vault after these payments, oldest first: whoever has all of them can prove that none is missing."""
    value = bytes(32)
    for root in roots:
        value = chained(value, root)
    return value


def find_config(program_id: Pubkey, admin: Pubkey) -> tuple[Pubkey, int]:
    return Pubkey.find_program_address([CONFIG_SEED, bytes(admin)], program_id)


def find_vault(program_id: Pubkey, depositor: Pubkey, config: Pubkey, salt: int) -> tuple[Pubkey, int]:
    """The address of a vault and its bump. `salt` is the slot at which it is opened."""
    return Pubkey.find_program_address(
        [VAULT_SEED, bytes(depositor), bytes(config), struct.pack("<Q", salt)], program_id
    )


def token_account_of(owner: Pubkey, mint: Pubkey) -> Pubkey:
    """The associated token account: where deposits go and payees are paid."""
    return get_associated_token_address(owner, mint)
