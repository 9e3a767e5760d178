"""Which library knows this host's GPUs, and which of them this node lends.

An offer has one class of hardware and one price, so a node offers GPUs of one vendor. Where there are both, two nodes share the host and its ledger;
`gpus` in the config says which GPUs are whose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torg_node.hardware.amd import Amd
from torg_node.hardware.gpus import GpuFacts, GpuLibrary
from torg_node.hardware.nvidia import Nvidia
from torg_protocol.errors import Invalid

NVIDIA, AMD = "nvidia", "amd"
Open = Callable[[], GpuLibrary | None]


def open_gpus(wanted: Sequence[str] = (), openers: Sequence[Open] = (Nvidia.open, Amd.open)) -> GpuLibrary | None:
    """The first vendor's that has one of the `wanted`; of a host with both NVIDIA's, when nothing is named. None where there is no such GPU.

    Raises Invalid `gpus_of_two_vendors`.
    """
    found: list[GpuLibrary] = []
    for opener in openers:
        if found and not wanted:
            break
        library = opener()
        if library is None:
            continue
        if not wanted or lent(library.units(), wanted):
            found.append(library)
        else:
            library.close()
    if len(found) > 1:
        for library in found:
            library.close()
        raise Invalid(
            "they are of two vendors, and an offer has one class and one price",
            code="gpus_of_two_vendors",
            field="gpus",
            value=", ".join(wanted),
            hint="make a node for each: torg-node init --gpus nvidia, torg-node init --gpus amd --data DIR, both with one --reservations FILE",
        )
    return found[0] if found else None


def open_lent(wanted: Sequence[str]) -> tuple[GpuLibrary | None, tuple[GpuFacts, ...]]:
    """As `open_gpus`, and the GPUs that are lent."""
    library = open_gpus(wanted)
    return library, lent(library.units(), wanted) if library is not None else ()


def all_told(openers: Sequence[Open] = (Nvidia.open, Amd.open)) -> tuple[GpuFacts, ...]:
    """What the libraries of all vendors tell of."""
    found: list[GpuFacts] = []
    for opener in openers:
        if (library := opener()) is not None:
            found += library.units()
            library.close()
    return tuple(found)


def lent(units: Sequence[GpuFacts], wanted: Sequence[str]) -> tuple[GpuFacts, ...]:
    """`wanted`: a vendor, a model or a UUID each, in any case; of a GPU that is cut into slices its UUID means all of them. Empty: all."""
    asked = {name.lower() for name in wanted}
    return tuple(unit for unit in units if not wanted or _names_of(unit) & asked)


def unknown(units: Sequence[GpuFacts], wanted: Sequence[str]) -> tuple[str, ...]:
    """Of the `wanted` those that name no GPU that is here."""
    known = {name for unit in units for name in _names_of(unit)}
    return tuple(name for name in wanted if name.lower() not in known)


def _names_of(unit: GpuFacts) -> set[str]:
    gpu = unit.info
    vendor = NVIDIA if gpu.gfx_target is None else AMD
    return {vendor, gpu.model.lower(), gpu.uuid.lower(), *([gpu.mig_parent.lower()] if gpu.mig_parent else [])}
