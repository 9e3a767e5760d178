"""One typed builder per instruction of the vault program, and the Ed25519 precompile that carries signed messages."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from solders.instruction import AccountMeta, Instruction
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import ID as SYSTEM_PROGRAM
from spl.token.constants import ASSOCIATED_TOKEN_PROGRAM_ID, TOKEN_PROGRAM_ID

from torg_chain.vault import VaultKind, find_config, find_vault, token_account_of

ED25519_PROGRAM = Pubkey.from_string("Ed25519SigVerify111111111111111111111111111")
INSTRUCTIONS_SYSVAR = Pubkey.from_string("Sysvar1nstructions1111111111111111111111111")
CAPTURE_KEY_SIGNS = 0xFF  # instead of an Ed25519 order: the capture key signs the transaction


def init_config(
    program_id: Pubkey, admin: Pubkey, capture_key: Pubkey, fee_owner: Pubkey, rent_lamports: int
) -> Instruction:
    address, bump = find_config(program_id, admin)
    data = struct.pack("<BBQ", 0, bump, rent_lamports) + bytes(capture_key) + bytes(fee_owner)
    return Instruction(program_id, data, [_signer(admin, pays=True), _writable(address), _read(SYSTEM_PROGRAM)])


def set_capture_key(program_id: Pubkey, config: Pubkey, admin: Pubkey, capture_key: Pubkey) -> Instruction:
    return Instruction(program_id, b"\x01" + bytes(capture_key), [_writable(config), _signer(admin)])


def open_vault(
    program_id: Pubkey,
    *,
    depositor: Pubkey,
    config: Pubkey,
    mint: Pubkey,
    salt: int,
    grace_s: int,
    signer: Pubkey,
    chain_id: bytes,
    rent_lamports: int,
    kind: VaultKind = VaultKind.CLIENT,
) -> Instruction:
    """`rent_lamports`: of `size_of(kind)` bytes. The vault's token account must exist already (create_associated_token_account in the same transaction)."""
    vault, bump = find_vault(program_id, depositor, config, salt)
    token_account, token_bump = Pubkey.find_program_address(
        [bytes(vault), bytes(TOKEN_PROGRAM_ID), bytes(mint)], ASSOCIATED_TOKEN_PROGRAM_ID
    )
    data = struct.pack("<BBBBIQQ", 2, kind, bump, token_bump, grace_s, salt, rent_lamports) + bytes(signer) + chain_id
    accounts = [
        _signer(depositor, pays=True),
        _writable(vault),
        _read(token_account),
        _read(config),
        _read(SYSTEM_PROGRAM),
    ]
    return Instruction(program_id, data, accounts)


def capture(
    program_id: Pubkey,
    *,
    vault: Pubkey,
    token_account: Pubkey,
    config: Pubkey,
    payees: Sequence[tuple[Pubkey, int]],
    expected_settled: int,
    root: bytes,
    cap_instruction: int,
    order_instruction: int = CAPTURE_KEY_SIGNS,
    capture_key: Pubkey | None = None,
) -> Instruction:
    """`payees`: token accounts and amounts. The indices say which instructions of the transaction are the Ed25519 ones."""
    amounts = b"".join(struct.pack("<Q", amount) for _, amount in payees)
    data = struct.pack("<BBBQB", 3, cap_instruction, order_instruction, expected_settled, len(payees)) + amounts + root
    order_signer = AccountMeta(capture_key or SYSTEM_PROGRAM, capture_key is not None, False)
    accounts = [
        _writable(vault),
        _writable(token_account),
        _read(config),
        _read(INSTRUCTIONS_SYSVAR),
        _read(TOKEN_PROGRAM_ID),
        order_signer,
        *(_writable(key) for key, _ in payees),
    ]
    return Instruction(program_id, data, accounts)


def start_close(program_id: Pubkey, vault: Pubkey, depositor: Pubkey) -> Instruction:
    return Instruction(program_id, b"\x04", [_writable(vault), _signer(depositor)])


def cancel_close(program_id: Pubkey, vault: Pubkey, depositor: Pubkey) -> Instruction:
    return Instruction(program_id, b"\x05", [_writable(vault), _signer(depositor)])


def finish_close(
    program_id: Pubkey,
    *,
    vault: Pubkey,
    depositor: Pubkey,
    mint: Pubkey,
    agreed_by: tuple[Pubkey, Pubkey] | None = None,
) -> Instruction:
    """`agreed_by`: (config, admin) when the operator's admin co-signs, so that the grace need not be waited for."""
    accounts = [
        _writable(vault),
        _signer(depositor, pays=True),
        _writable(token_account_of(vault, mint)),
        _writable(token_account_of(depositor, mint)),
        _read(TOKEN_PROGRAM_ID),
    ]
    if agreed_by is not None:
        accounts += [_read(agreed_by[0]), _signer(agreed_by[1])]
    return Instruction(program_id, b"\x06", accounts)


def rotate_signer(program_id: Pubkey, vault: Pubkey, depositor: Pubkey, signer: Pubkey) -> Instruction:
    return Instruction(program_id, b"\x07" + bytes(signer), [_writable(vault), _signer(depositor)])


def rescue(program_id: Pubkey, *, depositor: Pubkey, config: Pubkey, mint: Pubkey, salt: int) -> Instruction:
    vault, bump = find_vault(program_id, depositor, config, salt)
    accounts = [
        _writable(vault),
        _signer(depositor, pays=True),
        _writable(token_account_of(vault, mint)),
        _writable(token_account_of(depositor, mint)),
        _read(config),
        _read(TOKEN_PROGRAM_ID),
    ]
    return Instruction(program_id, struct.pack("<BBQ", 8, bump, salt), accounts)


def propose_slash(
    program_id: Pubkey,
    *,
    collateral: Pubkey,
    config: Pubkey,
    admin: Pubkey,
    mint: Pubkey,
    client_vault: Pubkey,
    amount: int,
    evidence_root: bytes,
) -> Instruction:
    """The depositor of `client_vault` is to get `amount`, after the dispute delay."""
    accounts = [
        _writable(collateral),
        _read(config),
        _signer(admin),
        _read(token_account_of(collateral, mint)),
        _read(client_vault),
    ]
    return Instruction(program_id, struct.pack("<BQ", 9, amount) + evidence_root, accounts)


def execute_slash(
    program_id: Pubkey,
    *,
    collateral: Pubkey,
    config: Pubkey,
    admin: Pubkey,
    mint: Pubkey,
    beneficiary: Pubkey,
    to: Pubkey | None = None,
) -> Instruction:
    """`beneficiary`: the wallet that was proposed; `to`: any token account of it, by default the associated one."""
    accounts = [
        _writable(collateral),
        _read(config),
        _signer(admin),
        _writable(token_account_of(collateral, mint)),
        _writable(to or token_account_of(beneficiary, mint)),
        _read(TOKEN_PROGRAM_ID),
    ]
    return Instruction(program_id, b"\x0a", accounts)


def cancel_slash(program_id: Pubkey, *, collateral: Pubkey, config: Pubkey, admin: Pubkey) -> Instruction:
    return Instruction(program_id, b"\x0b", [_writable(collateral), _read(config), _signer(admin)])


def ed25519_verify(signer: Pubkey, signature: Signature, message: bytes) -> Instruction:
    """One signature, all parts inside this instruction (offsets with index 0xffff), as the vault program demands."""
    key_at, signature_at, message_at = 16, 48, 112
    here = 0xFFFF
    offsets = struct.pack("<HHHHHHH", signature_at, here, key_at, here, message_at, len(message), here)
    return Instruction(ED25519_PROGRAM, b"\x01\x00" + offsets + bytes(signer) + bytes(signature) + message, [])


def _signer(key: Pubkey, *, pays: bool = False) -> AccountMeta:
    return AccountMeta(key, True, pays)


def _writable(key: Pubkey) -> AccountMeta:
    return AccountMeta(key, False, True)


def _read(key: Pubkey) -> AccountMeta:
    return AccountMeta(key, False, False)
