"""The arithmetic of the proof, exact on every device, and its NumPy path.

An int8 entry is a keyed hash of (row, column): no row is a shift or a sum of others, so there is no shortcut through structure.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

EXACT_COLUMNS = 1024  # products of int8 summed in float32 without rounding: 1024 * 127^2 < 2^24
DIGEST_FACTORS = (-7046029254386353131, -4417276706812531889, -7723592293110705685)  # odd, 64 bits
PARTNER_WEIGHT = 257

Int8s = npt.NDArray[np.int8]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]


class Arithmetic(Protocol):
    """One way to compute; all of them give the same bytes. `Any` is the path's own kind of array."""

    name: str

    def entries(self, seed: bytes, rows: Any, width: int) -> Any:
        """int8 in [-127, 127] of the given rows (an array of row numbers)."""
        ...

    def factor(self, seed: bytes, width: int) -> Any:
        """A square matrix in the form that `product` likes best."""
        ...

    def narrowed(self, x: Any, factor: Any, number: int, partner: Any = None) -> Any:
        """narrow(x @ factor + 257 * partner), int8."""
        ...

    def row_digests(self, x: Any) -> Int64s: ...

    def numbers(self, first: int, end: int) -> Any:
        """Row numbers as an array of the path."""
        ...

    def memory(self, rows: int, width: int) -> Any:
        """int8, uninitialised."""
        ...

    def flipped(self, x: Any) -> Any:
        """Rows in reverse order."""
        ...

    def lanes(self, key: int, count: int) -> Any:
        """First states of the walks: 32-bit words."""
        ...

    def step(self, rows: Any, states: Any, number: int) -> Any:
        """Next states, from the whole content of the rows read and the states before."""
        ...

    def words(self, states: Any) -> Words: ...


def keys_of(seed: bytes) -> tuple[int, int, int]:
    first, second, third = struct.unpack("<III", hashlib.sha256(seed).digest()[:12])
    return first, second, third


def round_constant(number: int) -> int:
    return (number * 40503 + 1) & 0xFFFFFF


def mix32(x: Words) -> Words:
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


class NumpyArithmetic:
    """float32 products in exact blocks: what a verifier without torch uses, and a prover without torch."""

    name = "numpy float32"

    def entries(self, seed: bytes, rows: npt.NDArray[np.int64], width: int) -> Int8s:
        first, second, third = keys_of(seed)
        row = mix32(rows.astype(np.uint32) * np.uint32(0x9E3779B1) + np.uint32(first))[:, None]
        number = np.arange(width // 4, dtype=np.uint32)
        column = mix32(number * np.uint32(0x85EBCA77) + np.uint32(second))[None, :] * np.uint32(0xC2B2AE35)
        hashes = mix32(row ^ column ^ np.uint32(third))
        spread = (hashes.astype("<u4").view(np.uint8).astype(np.uint16) * np.uint16(255)) >> np.uint16(8)
        return (spread.astype(np.int16) - np.int16(127)).astype(np.int8)

    def factor(self, seed: bytes, width: int) -> npt.NDArray[np.float32]:
        return self.entries(seed, np.arange(width), width).astype(np.float32)

    def narrowed(self, x: Int8s, factor: npt.NDArray[np.float32], number: int, partner: Int8s | None = None) -> Int8s:
        y = self._product(x, factor)
        if partner is not None:
            y += partner.astype(np.int32) * np.int32(PARTNER_WEIGHT)
        y += np.int32(round_constant(number))
        y ^= (y >> np.int32(9)) ^ (y >> np.int32(17))
        y &= np.int32(255)
        y -= np.int32(128)
        return np.maximum(y, np.int32(-127)).astype(np.int8)

    def row_digests(self, x: Int8s) -> Int64s:
        first, second, third = DIGEST_FACTORS
        weights = np.arange(1, x.shape[1] + 1, dtype=np.int64) * np.int64(first)
        v = (x.astype(np.int64) ^ weights) * np.int64(second)
        v = (v ^ (v >> np.int64(29))) * np.int64(third)
        return np.asarray((v ^ (v >> np.int64(32))).sum(axis=1, dtype=np.int64))

    def numbers(self, first: int, end: int) -> npt.NDArray[np.int64]:
        return np.arange(first, end, dtype=np.int64)

    def memory(self, rows: int, width: int) -> Int8s:
        return np.empty((rows, width), dtype=np.int8)

    def flipped(self, x: Int8s) -> Int8s:
        return x[::-1]

    def lanes(self, key: int, count: int) -> Int64s:
        return mix32(np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(key)).astype(np.int64)

    def step(self, rows: Int8s, states: Int64s, number: int) -> Int64s:
        words = np.ascontiguousarray(rows).view("<i4")
        columns = mix32(np.arange(words.shape[1], dtype=np.uint32) * np.uint32(0x85EBCA77)).view(np.int32)
        keyed = words ^ states.astype(np.uint32).view(np.int32)[:, None] ^ columns[None, :]
        v = keyed.astype(np.int64) * np.int64(DIGEST_FACTORS[1])
        total = (v ^ (v >> np.int64(29))).sum(axis=1, dtype=np.int64)
        folded = ((total ^ (total >> np.int64(32))) & np.int64(0xFFFFFFFF)) ^ states ^ np.int64(number)
        return mix32(folded.astype(np.uint32)).astype(np.int64)

    def words(self, states: Int64s) -> Words:
        return states.astype("<u4")

    def _product(self, x: Int8s, factor: npt.NDArray[np.float32]) -> Int32s:
        floats = x.astype(np.float32)
        total: Int32s | None = None
        for first in range(0, factor.shape[0], EXACT_COLUMNS):
            part = floats[:, first : first + EXACT_COLUMNS] @ factor[first : first + EXACT_COLUMNS]
            total = part.astype(np.int32) if total is None else total + part.astype(np.int32)
        if total is None:
            raise ValueError("an empty matrix")
        return total
