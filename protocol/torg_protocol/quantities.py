"""Durations, sizes and decimals as people write them in a job spec, integers inside.

"15m" is 900_000 ms, "1500MiB" is 1_572_864_000 bytes. A bare number is refused: the unit is never guessed. On the wire a
value is written in its base unit ("900000ms", "1572864000B"), so that equal specs have equal digests.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_DURATION_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE_BYTES = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)")


def parse_duration_ms(value: object) -> int:
    return _parse(value, _DURATION_MS, "a duration", "15m", "ms, s, m, h, d")


def parse_size_bytes(value: object) -> int:
    return _parse(value, _SIZE_BYTES, "a size", "512MiB", "B, KiB, MiB, GiB, TiB, kB, MB, GB, TB")


def as_written(amount: int, like: str) -> str | None:
    """`amount` base units as people write them, in what `like` is a quantity of: ("9999h", 2_592_000_000 ms) is "30d". None: `like` is none."""
    match = _QUANTITY.fullmatch(like.strip())
    for units in (_DURATION_MS, _SIZE_BYTES):
        if match is not None and match.group(2) in units:
            best = max(
                (factor, unit) for unit, factor in units.items() if amount % factor == 0 and factor <= max(amount, 1)
            )
            return f"{amount // best[0]}{best[1]}"
    return None


def parse_cpu_millis(value: object) -> int:
    """1, 0.5 or "0.5" cores as thousandths of a core; at most three decimals."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError('not a number of cores; write 1 or "0.5"')
    match = re.fullmatch(r"([0-9]{1,5})(?:\.([0-9]{1,3}))?", str(value))
    if match is None:
        raise ValueError('not a number of cores; write 1 or "0.5" (at most three decimals)')
    return int(match.group(1)) * 1000 + int((match.group(2) or "0").ljust(3, "0"))


def parse_gpu_millis(value: object) -> int:
    """1, 0.5 or "0.5" of a GPU as thousandths of it; at most three decimals, at most 1."""
    match = None
    if not isinstance(value, bool) and isinstance(value, int | float | str):
        match = re.fullmatch(r"([01])(?:\.([0-9]{1,3}))?", str(value))
    millis = 0 if match is None else int(match.group(1)) * 1000 + int((match.group(2) or "0").ljust(3, "0"))
    if not 0 < millis <= 1000:
        raise ValueError('not a part of a GPU; write 0.5 or "0.25": above 0, at most 1, at most three decimals')
    return millis


def format_cpu_millis(millis: int) -> str:
    whole, rest = divmod(millis, 1000)
    return f"{whole}.{rest:03d}".rstrip("0").rstrip(".")


def _parse(value: object, units: dict[str, int], what: str, example: str, allowed: str) -> int:
    if not isinstance(value, str) or (match := _QUANTITY.fullmatch(value.strip())) is None:
        raise ValueError(f'not {what}; write a number and a unit, like "{example}" ({allowed})')
    number, unit = match.groups()
    if unit not in units:
        raise ValueError(f'unknown unit "{unit}"; use one of {allowed}')
    whole, _, fraction = number.partition(".")
    scaled = int(whole + fraction) * units[unit]
    result, remainder = divmod(scaled, int(10 ** len(fraction)))
    if remainder:
        raise ValueError("finer than one base unit")
    if result > 2**62:
        raise ValueError("too large")
    return result


DurationMs = Annotated[
    int,
    BeforeValidator(parse_duration_ms),
    PlainSerializer(lambda ms: f"{ms}ms", return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9.]+\s*(ms|s|m|h|d)$", "examples": ["15m"]}),
]
SizeBytes = Annotated[
    int,
    BeforeValidator(parse_size_bytes),
    PlainSerializer(lambda size: f"{size}B", return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9.]+\s*(B|[KMGT]iB|[kMGT]B)$", "examples": ["512MiB"]}),
]
CpuMillis = Annotated[
    int,
    BeforeValidator(parse_cpu_millis),
    PlainSerializer(format_cpu_millis, return_type=str),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}], "examples": [1, "0.5"]}),
]
GpuMillis = Annotated[
    int,
    BeforeValidator(parse_gpu_millis),
    PlainSerializer(format_cpu_millis, return_type=str),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}], "examples": [0.5, "0.25"]}),
]
DecimalText = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, int) and not isinstance(value, bool) else value),
    WithJsonSchema({"type": "string", "pattern": r"^(0|[1-9][0-9]*)(\.[0-9]+)?$", "examples": ["0.50"]}),
]
