"""Which of a host's GPUs a node lends: of one vendor, or those that its owner names; and that a lease gets those of the class it asks for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from torg_node.allocation import Capacity, Claim, NoRoom, allocate
from torg_node.hardware.detect import Open, all_told, lent, open_gpus, unknown
from torg_node.hardware.gpus import GpuFacts, GpuLibrary, GpuReading
from torg_node.hardware.inventory import take_inventory
from torg_node.hardware.survey import describe, not_here
from torg_protocol.errors import Invalid
from torg_protocol.offers import GpuInfo

GIB = 1 << 30


def card(uuid: str, model: str, vram_gib: int, *, amd: bool = False, parent: str | None = None) -> GpuFacts:
    info = GpuInfo(
        uuid=uuid, model=model, vram_bytes=vram_gib * GIB, gfx_target="gfx90a" if amd else None, mig_parent=parent
    )
    return GpuFacts(info, f"0000:{5 if amd else 3}b:00.0", None, None, None)


LARGE, SMALL = card("GPU-1", "RTX 4090", 24), card("GPU-2", "RTX 3060", 12)
INSTINCT = card("51ff", "Instinct MI210", 64, amd=True)


class Library:
    """SIMULATED, as far as it is asked here."""

    def __init__(self, *units: GpuFacts) -> None:
        self._units, self.is_open = units, True

    def units(self) -> tuple[GpuFacts, ...]:
        return self._units

    def close(self) -> None:
        self.is_open = False

    def read(self, expected: tuple[str, ...]) -> tuple[GpuReading, ...]:
        raise NotImplementedError

    def power_limit_watts(self) -> int | None:
        raise NotImplementedError

    def energy_mj(self, uuids: Sequence[str]) -> dict[str, int]:
        raise NotImplementedError

    def processes(self, uuids: Sequence[str]) -> set[int]:
        raise NotImplementedError


def vendors(nvidia: GpuLibrary | None, amd: GpuLibrary | None) -> tuple[Open, Open]:
    return lambda: nvidia, lambda: amd


@pytest.mark.parametrize(
    ("wanted", "uuids"),
    [
        ((), ["GPU-1", "GPU-2"]),
        (("nvidia",), ["GPU-1", "GPU-2"]),
        (("rtx 4090",), ["GPU-1"]),
        (("gpu-2",), ["GPU-2"]),
        (("AMD",), ["51ff"]),
        (("Instinct MI210", "GPU-9"), ["51ff"]),
    ],
)
def test_a_host_of_both_vendors_lends_those_of_one_and_closes_the_other(
    wanted: Sequence[str], uuids: list[str]
) -> None:
    nvidia, amd = Library(LARGE, SMALL), Library(INSTINCT)
    found = open_gpus(wanted, vendors(nvidia, amd))

    assert found is not None
    assert [unit.info.uuid for unit in lent(found.units(), wanted)] == uuids
    if wanted:
        assert [library.is_open for library in (nvidia, amd)] == [found is nvidia, found is amd]


def test_gpus_of_two_vendors_are_two_nodes() -> None:
    nvidia, amd = Library(LARGE), Library(INSTINCT)
    with pytest.raises(Invalid) as caught:
        open_gpus(["RTX 4090", "51ff"], vendors(nvidia, amd))
    assert (caught.value.code, caught.value.field) == ("gpus_of_two_vendors", "gpus")
    assert not nvidia.is_open
    assert not amd.is_open


def test_a_name_that_no_gpu_has_is_told_and_lends_nothing() -> None:
    assert open_gpus(["RTX 5090"], vendors(Library(LARGE), None)) is None
    assert unknown((LARGE,), ["RTX 4090", "RTX 5090"]) == ("RTX 5090",)


def test_the_uuid_of_a_gpu_that_is_cut_means_its_slices() -> None:
    slices = card("MIG-1", "1g.10gb", 10, parent="GPU-8"), card("MIG-2", "1g.10gb", 10, parent="GPU-9")
    assert lent(slices, ["GPU-8"]) == slices[:1]


@pytest.mark.parametrize(
    ("units", "address", "why"),
    [
        ((LARGE,), "0000:5b:00.0", "AMD, .*torg-node init --gpus amd --data DIR, both with one reservations_path"),
        ((INSTINCT,), "0000:3b:00.0", "NVIDIA, .*torg-node init --gpus nvidia --data DIR"),
        ((), "0000:3b:00.0", "NVIDIA, seen by the kernel and not offered: no driver tells of it"),
    ],
)
def test_doctor_says_how_the_other_vendors_are_offered(
    tmp_path: Path, units: tuple[GpuFacts, ...], address: str, why: str
) -> None:
    for place, vendor in (("0000:3b:00.0", "0x10de"), ("0000:5b:00.0", "0x1002")):
        folder = tmp_path / "sys/bus/pci/devices" / place
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text("0x030200\n")
    lines = describe(take_inventory(tmp_path, 1 << 30, units), units, tmp_path)
    assert re.match(why, lines[f"gpu {address}"])


@pytest.mark.parametrize(("asked", "given"), [("RTX 4090", "GPU-1"), ("a100|rtx 3060", "GPU-2"), (None, "GPU-2")])
@pytest.mark.parametrize("milli", [1000, 500])
def test_a_lease_gets_the_class_that_it_asks_for_on_a_host_with_several(
    asked: str | None, given: str, milli: int
) -> None:
    has = Capacity((LARGE.info, SMALL.info), (), 8000, GIB, GIB, slots=1, gpu_slices=2)
    claim = Claim("anna", 1, 1000, 1, 1, gpu_milli=milli, gpu_class=asked)
    found = allocate(claim, has, (), node="n", cordoned={})
    assert found.gpu_uuids == (("GPU-1",) if asked is None and milli == 500 else (given,))

    two = Claim("anna", 2, 1000, 1, 1, gpu_class="RTX 4090")
    with pytest.raises(NoRoom, match="2 GPUs asked, 1 free that fit"):
        allocate(two, has, (), node="n", cordoned={})


def test_a_name_that_is_no_gpus_here_is_told_with_what_was_looked_for_and_the_way_out(tmp_path: Path) -> None:
    told = all_told(vendors(Library(LARGE), Library(INSTINCT)))
    assert [unit.info.uuid for unit in told] == ["GPU-1", "51ff"]
    assert not_here(["amd", "rtx 4090"], told, tmp_path) is None
    assert "name one of those that are there" in str(not_here(["H100"], told, tmp_path))
    assert "RTX 4090 (GPU-1), Instinct MI210 (51ff)" in str(not_here(["H100"], told, tmp_path))

    nothing = str(not_here(["nvidia"], (), tmp_path))
    assert "no GPU here is called nvidia: looked for NVIDIA's by NVML" in nothing
    assert "the kernel sees  none" in nothing
    assert "is the card in this machine?" in nothing

    device = tmp_path / "sys/bus/pci/devices/0000:3b:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    driverless = str(not_here(["nvidia"], (), tmp_path))
    assert "the kernel sees  NVIDIA at 0000:3b:00.0" in driverless
    assert "install its driver" in driverless
