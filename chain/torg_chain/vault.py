"""The vault program's accounts, read: byte layouts as in chain/program/SPEC.md, derived addresses."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from solders.pubkey import Pubkey
from spl.token.instructions import get_associated_token_address

from torg_protocol.errors import Invalid

CONFIG_SIZE, VAULT_SIZE = 104, 304
CONFIG_SEED, VAULT_SEED = b"torg-op1", b"torg-vl1"
MINIMUM_GRACE_S, MAXIMUM_GRACE_S = 3600, 90 * 86400
SALT_WINDOW_SLOTS = 1500
MAX_PAYEES = 16
_TAG_CONFIG, _TAG_VAULT = 1, 2
_CONFIG = struct.Struct("<BB6x32s32s32s")
_VAULT = struct.Struct("<BBBxI32s32s32s32s32s32s32s32sQQqqQ")


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    address: Pubkey
    admin: Pubkey
    capture_key: Pubkey
    fee_owner: Pubkey


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

    def signer_at(self, unix_time_s: int) -> Pubkey:
        """Whose caps count at that time."""
        return self.next_signer if self.next_signer_at and unix_time_s >= self.next_signer_at else self.signer


def parse_config(address: Pubkey, data: bytes) -> OperatorConfig:
    if len(data) != CONFIG_SIZE or data[0] != _TAG_CONFIG:
        raise Invalid("not an operator config", code="not_operator_config", field="address", value=str(address))
    _, _, admin, capture_key, fee_owner = _CONFIG.unpack(data)
    return OperatorConfig(address, Pubkey(admin), Pubkey(capture_key), Pubkey(fee_owner))


def parse_vault(address: Pubkey, data: bytes, balance: int) -> VaultState:
    if len(data) != VAULT_SIZE or data[0] != _TAG_VAULT:
        raise Invalid("not a vault", code="not_a_vault", field="address", value=str(address))
    _, _, kind, grace_s, *rest = _VAULT.unpack(data)
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
    )


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
