"""NVIDIA GPUs by NVML. No library or no driver means no GPU; a figure that a card does not give is left out, not guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torg_protocol.offers import GpuInfo

T = TypeVar("T")


def find_nvidia_gpus() -> tuple[GpuInfo, ...]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded, pynvml.NVMLError_NoPermission):
        return ()
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        count = pynvml.nvmlDeviceGetCount()
        return tuple(_read(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index), driver) for index in range(count))
    finally:
        pynvml.nvmlShutdown()


def _read(pynvml: Any, handle: Any, driver: str) -> GpuInfo:
    capability = _optional(pynvml, lambda: pynvml.nvmlDeviceGetCudaComputeCapability(handle))
    return GpuInfo(
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        model=_text(pynvml.nvmlDeviceGetName(handle)),
        vram_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        driver=driver,
    )


def _optional(pynvml: Any, read: Callable[[], T]) -> T | None:
    try:
        return read()
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
