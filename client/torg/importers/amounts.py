"""Sizes, cores and durations as other platforms write them, in our words. ValueError for what is none."""

from __future__ import annotations

import math
import re
from fractions import Fraction

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_BINARY = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
_LARGEST = 1 << 50  # no machine has more, and sums of them are still sizes
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def size(value: object, *, bare_is_binary: bool) -> str:
    """`512Mi`, `1.5GB`, `1g` or a number of bytes. `bare_is_binary`: whether `m`, `g` and `GB` count in powers of two, as engines do,
    or of ten, as Kubernetes does; with an i they always are powers of two."""
    match = None if isinstance(value, bool) else _AMOUNT.fullmatch(str(value).strip())
    if match is None:
        raise ValueError("not a size")
    unit = match.group(2).lower()
    letter = unit.removesuffix("b").removesuffix("i")
    binary = "i" in unit or (bare_is_binary and letter != "")
    scale = (_BINARY if binary else _DECIMAL).get(letter)
    if scale is None or len(unit) > len("kib"):
        raise ValueError("not a size")
    found = math.ceil(Fraction(match.group(1)) * scale)
    if found > _LARGEST:
        raise ValueError("too large")
    return size_text(found)


def card_memory(value: object) -> str:
    """A GPU's memory as it is sold: `80Gi` as `80GB` is that of a card with 80 GB on its box, of which its driver reports less than 80 GiB."""
    return size(re.sub(r"(?<=[KMGTkmgt])i", "", str(value)), bare_is_binary=False)


def size_text(size_bytes: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes and size_bytes % scale == 0:
            return f"{size_bytes // scale}{unit}"
    return f"{size_bytes}B"


def cores(value: object) -> str:
    """`2`, `0.5` or `500m`; finer than a thousandth is rounded up."""
    match = None if isinstance(value, bool) else re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(m?)", str(value).strip())
    if match is None:
        raise ValueError("not a number of cores")
    millis = math.ceil(Fraction(match.group(1)) * (1 if match.group(2) else 1000))
    whole, rest = divmod(max(millis, 1), 1000)
    return f"{whole}.{rest:03d}".rstrip("0").rstrip(".")


def seconds(value: object) -> str:
    """`90s`, `1h30m`, `2d` or a number of seconds."""
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]+|(?:[0-9]+[smhdw])+", text):
        raise ValueError("not a duration")
    if text.isdigit():
        return f"{int(text)}s"
    return f"{sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r'([0-9]+)([smhdw])', text))}s"
