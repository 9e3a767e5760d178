"""AMD GPUs: amdsmi's real bindings on a SIMULATED library, the kernel's view as made-up trees. No such GPU was here."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import simulated_amdsmi
from torg_node.executors.docker_request import device_nodes
from torg_node.hardware.amd import Amd
from torg_node.hardware.gpus import GpuFacts
from torg_node.hardware.inventory import take_inventory
from torg_node.hardware.kfd import gfx_name
from torg_node.hardware.survey import describe, disagreements
from torg_protocol.offers import GpuInfo

_OPEN = """
import json
from dataclasses import asdict
from pathlib import Path
from torg_node.hardware.amd import Amd
amd = Amd.open(Path("/dev/null"))  # stands for /dev/kfd
"""
UNITS = _OPEN + "print(json.dumps([{**asdict(unit), 'info': unit.info.wire()} for unit in amd.units()]))"
LIFE = (
    _OPEN
    + """
first, second = (unit.info.uuid for unit in amd.units())
before, after = amd.energy_mj([first]), amd.energy_mj([first, second])
readings = [asdict(reading) for reading in amd.read((first, second, "gone"))]
print(json.dumps([before, after, readings, amd.power_limit_watts(), sorted(amd.processes([first]))]))
amd.close()
"""
)
FIRST, SECOND = "51ff740c-0000-1000-80SIMULATED-0", "51ff740c-0000-1000-80SIMULATED-1"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_amdsmi.build(tmp_path_factory.mktemp("amdsmi"))


def facts(**changes: Any) -> GpuFacts:
    info = GpuInfo(uuid="one", model="Instinct MI210", vram_bytes=64 << 30, driver="6.1", gfx_target="gfx90a")
    made = GpuFacts(info, "0000:3b:00.0", 4, 16, None, ("/dev/kfd", "/dev/dri/renderD128"))
    return replace(made, **changes)


def kernel(root: Path, **changes: str) -> Path:
    """A kernel with one such card, as /sys shows it."""
    node = root / "sys/class/kfd/kfd/topology/nodes/1"
    (node / "mem_banks/0").mkdir(parents=True)
    properties = {"gfx_target_version": "90010", "drm_render_minor": "128"} | changes
    node.joinpath("properties").write_text("".join(f"{name} {value}\n" for name, value in properties.items()))
    size = changes.get("size", str(64 << 30))
    node.joinpath("mem_banks/0/properties").write_text(f"heap_type 1\nsize_in_bytes {size}\n")
    device = root / "sys/bus/pci/devices/0000:3b:00.0"
    device.mkdir(parents=True)
    device.joinpath("vendor").write_text("0x1002\n")
    device.joinpath("class").write_text("0x038000\n")
    return root


def test_cards_are_units_with_the_device_nodes_that_a_container_needs(library: Path) -> None:
    first, second = simulated_amdsmi.run(library, UNITS, gpus=2)

    assert first["info"] == {
        "uuid": FIRST,
        "model": "SIMULATED Instinct",
        "vram_bytes": 64 << 30,
        "compute_capability": None,
        "driver": "SIMULATED-6.1",
        "gfx_target": "gfx90a",
        "mig_parent": None,
    }
    assert (first["pci_address"], first["pcie_generation"], first["ecc_on"]) == ("0000:3b:00.0", None, None)
    assert second["device_nodes"] == ["/dev/kfd", "/dev/dri/renderD129"]


def test_a_card_that_cannot_be_given_by_itself_is_no_unit(library: Path) -> None:
    (only,) = simulated_amdsmi.run(library, UNITS, gpus=2, no_render=0)
    assert only["info"]["uuid"] == SECOND


def test_how_they_are_and_what_they_consume(library: Path) -> None:
    before, after, readings, watts, processes = simulated_amdsmi.run(library, LIFE, gpus=2, ecc=3)

    assert list(before) == list(after) == [FIRST], "the other card does not count"
    assert 0 < after[FIRST] - before[FIRST] < 10_000
    assert [reading["is_lost"] for reading in readings] == [False, False, True]
    assert [reading["uncorrected_ecc_errors"] for reading in readings[:2]] == [0, 3]
    assert readings[0]["temperature_c"] == 61
    assert (watts, processes) == (1000, [])


@pytest.mark.parametrize(
    ("says", "slowed"),
    [
        ({}, [(None, None), (None, None)]),
        ({"violation": 1}, [(False, False), (True, False)]),
        ({"throttled": 0}, [(True, False), (False, True)]),
    ],
    ids=["not-told", "violations", "throttle-status"],
)
def test_slowdown_by_heat_is_told_from_that_by_power(
    library: Path, says: dict[str, int], slowed: list[tuple[bool | None, bool | None]]
) -> None:
    readings = simulated_amdsmi.run(library, LIFE, gpus=2, **says)[2]
    assert [(reading["slowed_by_heat"], reading["slowed_by_power"]) for reading in readings[:2]] == slowed


def test_without_a_compute_device_nothing_is_imported(tmp_path: Path) -> None:
    assert Amd.open(tmp_path / "kfd") is None


def test_bindings_without_the_library_are_said_and_are_no_gpu(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ROCM_PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert Amd.open(Path("/dev/null")) is None
    assert "libamd_smi.so is not one that can be used" in caplog.text
    assert capsys.readouterr().out == ""


def test_the_offer_says_who_told(tmp_path: Path) -> None:
    assert take_inventory(tmp_path, 1 << 30, (facts(),)).source == "amdsmi"
    pretended = facts(info=facts().info.model_copy(update={"model": "SIMULATED Instinct"}))
    assert take_inventory(tmp_path, 1 << 30, (pretended,)).source == "simulated"


@pytest.mark.parametrize(
    ("version", "name"), [(90010, "gfx90a"), (90402, "gfx942"), (100300, "gfx1030"), (110000, "gfx1100")]
)
def test_the_kernels_number_is_the_compilers_name(version: int, name: str) -> None:
    assert gfx_name(version) == name


@pytest.mark.parametrize(
    ("kernel_says", "doubt"),
    [
        ({}, None),
        ({"gfx_target_version": "100300"}, "one: its library says gfx90a, the kernel says gfx1030"),
        ({"size": str(16 << 30)}, f"one: its library says {64 << 30} bytes of memory, the kernel has {16 << 30}"),
        ({"drm_render_minor": "200"}, "one: the kernel knows no compute device behind renderD128"),
    ],
    ids=["agrees", "architecture", "memory", "no-device"],
)
def test_the_kernel_has_the_last_word(tmp_path: Path, kernel_says: dict[str, str], doubt: str | None) -> None:
    assert disagreements([facts()], kernel(tmp_path, **kernel_says)) == ([] if doubt is None else [doubt])


def test_doctor_names_the_card_and_says_of_one_without_a_library_what_is_missing(tmp_path: Path) -> None:
    root = kernel(tmp_path)
    inventory = take_inventory(tmp_path, 1 << 30, (facts(),))
    with_library = describe(inventory, (facts(),), root)
    without = describe(take_inventory(tmp_path, 1 << 30, ()), (), root)

    assert with_library["gpu one"].startswith(
        "Instinct MI210, 64.0 GiB, gfx90a, driver 6.1, at 0000:3b:00.0, PCIe 4 x16"
    )
    assert "gpu 0000:3b:00.0" not in with_library
    assert "pip install 'torg[amd]'" in without["gpu 0000:3b:00.0"]


def test_the_compute_device_is_given_once_and_only_the_leases_own_render_nodes() -> None:
    known = {"one": ("/dev/kfd", "/dev/dri/renderD128"), "two": ("/dev/kfd", "/dev/dri/renderD129")}
    assert device_nodes(["one", "two"], known) == ("/dev/kfd", "/dev/dri/renderD128", "/dev/dri/renderD129")
    assert device_nodes(["two"], known) == ("/dev/kfd", "/dev/dri/renderD129")
    assert device_nodes(["GPU-nvidia"], known) == ()
