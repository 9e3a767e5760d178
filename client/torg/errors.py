"""Errors that only the client raises. Everything a server says comes as the protocol's own error tree."""

from __future__ import annotations

from torg_protocol.errors import Conflict, Invalid, NotFound, TorgError, Unavailable


class DigestMismatch(TorgError):
    """What arrived is not what was named. Nothing of it was kept."""

    default_code = "digest_mismatch"


class ReceiptInvalid(TorgError):
    """A receipt does not hold; `data["problems"]` says why."""

    default_code = "receipt_invalid"


class JobFailed(TorgError):
    """Raised by `wait(..., check=True)`: the job ended, and not in SUCCEEDED."""

    default_code = "job_failed"


__all__ = [
    "Conflict",
    "DigestMismatch",
    "Invalid",
    "JobFailed",
    "NotFound",
    "ReceiptInvalid",
    "TorgError",
    "Unavailable",
]
