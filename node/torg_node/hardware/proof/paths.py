"""How this machine computes the proof. All paths give the same digests; they differ in speed alone.

torch is optional and never imported by the agent itself: this module loads it by name, in the prover's own process.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from torg_host.hardware_proof.arithmetic import (
    DIGEST_FACTORS,
    EXACT_COLUMNS,
    PARTNER_WEIGHT,
    Arithmetic,
    Int64s,
    NumpyArithmetic,
    Words,
    keys_of,
    round_constant,
)

_MASK = 0xFFFFFFFF


class NoDevice(RuntimeError):
    """The unit that was asked for cannot be computed on here."""


def choose_path(unit: str, *, wanted: str = "auto") -> Arithmetic:
    """`wanted`: auto, numpy, torch-int8, torch-float32. A GPU needs torch with CUDA; a CPU takes torch when it is there. Raises NoDevice."""
    has_torch = importlib.util.find_spec("torch") is not None
    integers = {"torch-int8": True, "torch-float32": False}.get(wanted)
    if unit.startswith("gpu:"):
        if not has_torch:
            raise NoDevice("a GPU is proven through torch, which is not installed")
        return TorchArithmetic(f"cuda:{unit.partition(':')[2]}", integers=integers)
    if wanted == "numpy" or (wanted == "auto" and not has_torch):
        return NumpyArithmetic()
    return TorchArithmetic("cpu", integers=integers)


class TorchArithmetic:
    """int8 products where the device's kernel is exact (asked of it at the start), float32 in exact blocks elsewhere. `integers` None: int8 only
    where it is faster too, as it is not on processors without instructions for it (some ten times slower with AVX2 alone)."""

    def __init__(self, device: str, *, integers: bool | None = None) -> None:
        self._torch: Any = importlib.import_module("torch")
        if device.startswith("cuda") and not self._torch.cuda.is_available():
            raise NoDevice("torch sees no CUDA device")
        self._device = self._torch.device(device)
        self._torch.backends.cuda.matmul.allow_tf32 = False
        self._integers = integers is not False and self._int8_is_exact()
        if integers is None:
            self._integers = self._integers and self._int8_is_faster()
        self.name = f"torch {'int8' if self._integers else 'float32'} {self._device.type}"

    def entries(self, seed: bytes, rows: Any, width: int) -> Any:
        torch = self._torch
        first, second, third = keys_of(seed)
        row = self._mix((rows * 0x9E3779B1 + first) & _MASK)[:, None]
        number = torch.arange(width // 4, dtype=torch.int64, device=self._device)
        column = (self._mix((number * 0x85EBCA77 + second) & _MASK) * 0xC2B2AE35 & _MASK)[None, :]
        hashes = self._mix(row ^ column ^ third)
        found = torch.empty((len(rows), width), dtype=torch.int8, device=self._device)
        for place in range(4):
            found[:, place::4] = ((((hashes >> 8 * place) & 255) * 255 >> 8) - 127).to(torch.int8)
        return found

    def factor(self, seed: bytes, width: int) -> Any:
        entries = self.entries(seed, self.numbers(0, width), width)
        return entries if self._integers else entries.float()

    def narrowed(self, x: Any, factor: Any, number: int, partner: Any = None) -> Any:
        y = self._product(x, factor)
        if partner is not None:
            y += partner.to(self._torch.int32) * PARTNER_WEIGHT
        y += round_constant(number)
        y ^= (y >> 9) ^ (y >> 17)
        return y.bitwise_and_(255).sub_(128).clamp_(min=-127).to(self._torch.int8)

    def row_digests(self, x: Any) -> Int64s:
        torch = self._torch
        first, second, third = DIGEST_FACTORS
        weights = torch.arange(1, x.shape[1] + 1, dtype=torch.int64, device=self._device) * first
        parts = []
        for rows in x.split(2048):  # eight bytes per entry: in parts
            v = (rows.to(torch.int64) ^ weights) * second
            v = (v ^ (v >> 29)) * third
            parts.append((v ^ (v >> 32)).sum(dim=1))
        digests: Int64s = torch.cat(parts).cpu().numpy()
        return digests

    def numbers(self, first: int, end: int) -> Any:
        return self._torch.arange(first, end, dtype=self._torch.int64, device=self._device)

    def memory(self, rows: int, width: int) -> Any:
        return self._torch.empty((rows, width), dtype=self._torch.int8, device=self._device)

    def flipped(self, x: Any) -> Any:
        return x.flip(0)

    def lanes(self, key: int, count: int) -> Any:
        return self._mix((self.numbers(0, count) * 0x9E3779B1 + key) & _MASK)

    def step(self, rows: Any, states: Any, number: int) -> Any:
        torch = self._torch
        words = rows.contiguous().view(torch.int32)
        columns = self._signed(self._mix(self.numbers(0, words.shape[1]) * 0x85EBCA77 & _MASK))
        v = (words ^ self._signed(states)[:, None] ^ columns[None, :]).to(torch.int64) * DIGEST_FACTORS[1]
        total = (v ^ (v >> 29)).sum(dim=1)
        return self._mix(((total ^ (total >> 32)) & _MASK) ^ states ^ number)

    def words(self, states: Any) -> Words:
        return np.asarray(states.cpu().numpy()).astype("<u4")

    def _product(self, x: Any, factor: Any) -> Any:
        return self._int8_product(x, factor) if self._integers else self._float_product(x, factor)

    def _float_product(self, x: Any, factor: Any) -> Any:
        floats, total = x.float(), None
        for first in range(0, factor.shape[0], EXACT_COLUMNS):
            part = floats[:, first : first + EXACT_COLUMNS] @ factor[first : first + EXACT_COLUMNS]
            part = part.to(self._torch.int32)
            total = part if total is None else total + part
        return total

    def _int8_product(self, x: Any, factor: Any) -> Any:
        """CUDA's kernel wants more than 16 rows: fewer are padded."""
        if x.shape[0] > 16:
            return self._torch._int_mm(x.contiguous(), factor)  # noqa: SLF001 - torch's only int8 product with int32 sums
        padded = self._torch.zeros((32, x.shape[1]), dtype=x.dtype, device=x.device)
        padded[: x.shape[0]] = x
        return self._torch._int_mm(padded, factor)[: x.shape[0]]  # noqa: SLF001 - as above

    def _int8_is_exact(self) -> bool:
        """Kernels without wide accumulation saturate on extremes; then float32 in blocks is the way."""
        torch = self._torch
        try:
            extremes = torch.full((32, 512), 127, dtype=torch.int8, device=self._device)
            extremes[1::2] = -127
            found = self._int8_product(extremes, extremes.new_full((512, 64), 127))
            signs = torch.ones(32, dtype=torch.int32, device=self._device)
            signs[1::2] = -1
            return bool((found == (signs * 512 * 127 * 127)[:, None]).all())
        except RuntimeError:  # no such kernel for this device
            return False

    def _int8_is_faster(self) -> bool:
        x = self._torch.ones((256, 512), dtype=self._torch.int8, device=self._device)
        factor = self._torch.ones((512, 512), dtype=self._torch.int8, device=self._device)
        return self._seconds_of(lambda: self._int8_product(x, factor)) < self._seconds_of(
            lambda: self._float_product(x, factor.float())
        )

    @staticmethod
    def _seconds_of(product: Callable[[], Any]) -> float:
        """The best of three; what is read of the result ends the wait for the device."""
        taken = []
        for _ in range(4):  # the first one loads kernels
            began_s = time.perf_counter()
            product()[0, 0].item()
            taken.append(time.perf_counter() - began_s)
        return min(taken[1:])

    def _mix(self, x: Any) -> Any:
        """On int64 that hold 32-bit words."""
        x = x ^ (x >> 16)
        x = x * 0x7FEB352D & _MASK
        x = x ^ (x >> 15)
        x = x * 0x846CA68B & _MASK
        return x ^ (x >> 16)

    def _signed(self, words: Any) -> Any:
        return ((words ^ 0x80000000) - 0x80000000).to(self._torch.int32)
