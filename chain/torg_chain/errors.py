"""What can go wrong between us and a chain, each with a stable code."""

from __future__ import annotations

import enum
from typing import Any

from torg_protocol.errors import Conflict, Invalid, NotFound, Unavailable

# The vault program's own errors (chain/program/state.h), by number.
PROGRAM_ERRORS = {
    7001: "E_DATA",
    7002: "E_ACCOUNTS",
    7003: "E_SIGNER",
    7004: "E_NOT_OURS",
    7005: "E_WRONG_ACCOUNT",
    7006: "E_ADDRESS",
    7007: "E_TOKEN_ACCOUNT",
    7008: "E_KIND",
    7009: "E_GRACE",
    7010: "E_SALT",
    7011: "E_CAP_SIGNATURE",
    7012: "E_CAP_EXPIRED",
    7013: "E_ORDER",
    7014: "E_STALE",
    7015: "E_OVER_CAP",
    7016: "E_OVER_BALANCE",
    7017: "E_NOTHING_PAYABLE",
    7018: "E_OVERFLOW",
    7019: "E_STATE",
    7020: "E_TOO_EARLY",
    7021: "E_CPI",
    7022: "E_CLOCK",
    7023: "E_RENT",
    7024: "E_BENEFICIARY",
    7025: "E_TOO_LATE",
}


BEHIND_HINT = "it is asked again; if it stays behind, name another RPC node"


class Retry(enum.StrEnum):
    """What asking again is good for."""

    SOON = "soon"  # a broken connection, a node that is behind or overloaded
    LATER = "later"  # too many requests: after `retry_after_s`, or some seconds
    NEVER = "never"  # this RPC node will not answer that; another one may


class ChainUnavailable(Unavailable):
    """The RPC node does not answer. Nothing is known about what was sent: resend the same bytes."""

    default_code = "chain_unavailable"

    def __init__(
        self, message: str, *, retry: Retry = Retry.SOON, retry_after_s: float | None = None, **details: Any
    ) -> None:
        super().__init__(message, retry=retry, **details)
        self.retry, self.retry_after_s = retry, retry_after_s


class ChainBehind(ChainUnavailable):
    """This RPC node has not come as far yet as one that answered before: what it says is out of date."""

    default_code = "chain_behind"


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
