"""What can go wrong between us and a chain, each with a stable code."""

from __future__ import annotations

from torg_protocol.errors import Conflict, Invalid, NotFound, Unavailable

# The vault program's own errors (chain/program/state.h), by number.
PROGRAM_ERRORS = {
    1: "E_DATA",
    2: "E_ACCOUNTS",
    3: "E_SIGNER",
    4: "E_NOT_OURS",
    5: "E_WRONG_ACCOUNT",
    6: "E_ADDRESS",
    7: "E_TOKEN_ACCOUNT",
    8: "E_KIND",
    9: "E_GRACE",
    10: "E_SALT",
    11: "E_CAP_SIGNATURE",
    12: "E_CAP_EXPIRED",
    13: "E_ORDER",
    14: "E_STALE",
    15: "E_OVER_CAP",
    16: "E_OVER_BALANCE",
    17: "E_NOTHING_PAYABLE",
    18: "E_OVERFLOW",
    19: "E_STATE",
    20: "E_TOO_EARLY",
    21: "E_CPI",
    22: "E_CLOCK",
}


class ChainUnavailable(Unavailable):
    """The RPC node does not answer. Nothing is known about what was sent: resend the same bytes."""

    default_code = "chain_unavailable"


class TransactionRejected(Conflict):
    """The cluster refused it. `error_name` is the vault program's error where it was that program's."""

    default_code = "transaction_rejected"

    def __init__(self, message: str, *, error_name: str | None = None, logs: list[str] | None = None) -> None:
        super().__init__(message, error_name=error_name, logs=logs or [])
        self.error_name = error_name


class TransactionExpired(Conflict):
    """Its blockhash is dead and it never landed: it can be rebuilt."""

    default_code = "transaction_expired"


class TransactionTooLarge(Invalid):
    default_code = "transaction_too_large"


class WalletError(Invalid):
    default_code = "wallet_invalid"


class VaultNotFound(NotFound):
    default_code = "vault_unknown"
