"""Amounts are integers in base units of one SPL token. Decimal strings exist only at the edges, and are strict."""

from __future__ import annotations

import re

from torg_protocol.errors import Invalid

MAX_U64 = 2**64 - 1
MS_PER_HOUR = 3_600_000

_DECIMAL = re.compile(r"(0|[1-9][0-9]*)(?:\.([0-9]+))?")


def parse_amount(text: str, decimals: int, *, field: str = "amount") -> int:
    """ "1.25" with 6 decimals is 1_250_000. Refuses signs, exponents, spaces, extra decimals and what exceeds u64."""
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise Invalid(
            "not a decimal amount",
            code="amount_invalid",
            field=field,
            value=text,
            hint='write it like "1.25": digits and one point',
        )
    whole, fraction = match.group(1), match.group(2) or ""
    if len(fraction) > decimals:
        raise Invalid(
            f"more than {decimals} decimals",
            code="amount_too_precise",
            field=field,
            value=text,
            hint=f"this token has {decimals} decimals",
        )
    amount = int(whole) * int(10**decimals) + int(fraction.ljust(decimals, "0") or "0")
    if amount > MAX_U64:
        raise Invalid("amount does not fit the token", code="amount_too_large", field=field, value=text)
    return amount


def format_amount(amount: int, decimals: int) -> str:
    """Base units as a decimal string without superfluous zeros: 1_250_000 with 6 decimals is "1.25"."""
    sign, digits = ("-" if amount < 0 else ""), str(abs(amount)).rjust(decimals + 1, "0")
    if decimals == 0:
        return sign + digits
    return (sign + digits[:-decimals] + "." + digits[-decimals:]).rstrip("0").rstrip(".")


def cost(price_per_gpu_hour: int, billable_gpus: int, useful_ms: int) -> int:
    """Price of useful time in base units, rounded down once. A CPU-only job counts as one billable GPU (its slot)."""
    return price_per_gpu_hour * billable_gpus * useful_ms // MS_PER_HOUR
