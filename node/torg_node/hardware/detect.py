"""Which library knows this host's GPUs."""

from __future__ import annotations

from torg_node.hardware.amd import Amd
from torg_node.hardware.gpus import GpuLibrary
from torg_node.hardware.nvidia import Nvidia


def open_gpus() -> GpuLibrary | None:
    """NVIDIA's before AMD's: one node offers GPUs of one vendor. None where there is no GPU to speak of."""
    nvidia = Nvidia.open()
    return nvidia if nvidia is not None else Amd.open()
