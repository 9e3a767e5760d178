"""Values in the shapes that Solana RPC clients expect."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Sequence
from typing import Any

import solders.transaction_status as ts
from solders.account import Account
from solders.pubkey import Pubkey
from solders.transaction_metadata import TransactionMetadata
from spl.token.constants import TOKEN_PROGRAM_ID

RENT_EPOCH_NEVER = 18446744073709551615
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def error_json(error: Any) -> Any:
    """A TransactionError as RPC prints it: {"InstructionError": [i, {"Custom": n}]} or a bare name."""
    if error is None:
        return None
    if isinstance(error, ts.TransactionErrorInstructionError):
        inner = error.err
        name = {"Custom": inner.code} if isinstance(inner, ts.InstructionErrorCustom) else str(inner).rsplit(".", 1)[-1]
        return {"InstructionError": [error.index, name]}
    if isinstance(error, ts.TransactionErrorInsufficientFundsForRent):
        return {"InsufficientFundsForRent": {"account_index": error.account_index}}
    if isinstance(error, ts.TransactionErrorDuplicateInstruction):
        return {"DuplicateInstruction": error.index}
    return str(error).rsplit(".", 1)[-1]


def account_json(account: Account | None, encoding: str) -> dict[str, Any] | None:
    if account is None:
        return None
    data = bytes(account.data)
    encoded = [base58_encode(data), "base58"] if encoding == "base58" else [base64.b64encode(data).decode(), "base64"]
    return {
        "lamports": account.lamports,
        "owner": str(account.owner),
        "executable": account.executable,
        "rentEpoch": RENT_EPOCH_NEVER,
        "space": len(data),
        "data": encoded,
    }


def token_amount_json(amount: int, decimals: int) -> dict[str, Any]:
    digits = str(amount).rjust(decimals + 1, "0")
    text = (digits[:-decimals] + "." + digits[-decimals:]).rstrip("0").rstrip(".") if decimals else digits
    return {"amount": str(amount), "decimals": decimals, "uiAmount": amount / 10**decimals, "uiAmountString": text}


def token_account_amount(account: Account | None) -> int | None:
    """Base units in a classic SPL token account; None when it is not one."""
    if account is None or account.owner != TOKEN_PROGRAM_ID or len(account.data) != 165:
        return None
    return int(struct.unpack_from("<Q", bytes(account.data), 64)[0])


def token_balances_json(
    accounts: Sequence[Account | None], decimals_of: Callable[[Pubkey], int]
) -> list[dict[str, Any]]:
    """As getTransaction lists them: one entry for each account of the transaction that holds tokens."""
    balances = []
    for index, account in enumerate(accounts):
        amount = token_account_amount(account)
        if amount is None or account is None:
            continue
        mint, owner = Pubkey(bytes(account.data)[:32]), Pubkey(bytes(account.data)[32:64])
        balances.append(
            {
                "accountIndex": index,
                "mint": str(mint),
                "owner": str(owner),
                "programId": str(TOKEN_PROGRAM_ID),
                "uiTokenAmount": token_amount_json(amount, decimals_of(mint)),
            }
        )
    return balances


def return_data_json(meta: TransactionMetadata) -> dict[str, Any] | None:
    returned = meta.return_data()
    if not returned.data:
        return None
    return {"programId": str(returned.program_id), "data": [base64.b64encode(returned.data).decode(), "base64"]}


def decode_transaction(text: str, encoding: str) -> bytes:
    """Raises ValueError."""
    return base64.b64decode(text, validate=True) if encoding == "base64" else base58_decode(text)


def base58_encode(data: bytes) -> str:
    number, text = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _ALPHABET[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


def base58_decode(text: str) -> bytes:
    number = 0
    for character in text:
        number = number * 58 + _ALPHABET.index(character)
    return b"\0" * (len(text) - len(text.lstrip("1"))) + number.to_bytes((number.bit_length() + 7) // 8, "big")
