"""What a node says about its hardware: the real NVML bindings on a SIMULATED library, sysfs as made-up trees. No GPU was here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import simulated_nvml
from torg_node.hardware.gpus import GpuFacts, GpuReading
from torg_node.hardware.health import KernelLog, broken_xids, why_unfit
from torg_node.hardware.inventory import capacity_of, take_inventory
from torg_node.hardware.nvidia import Nvidia
from torg_node.hardware.sensors import Fitness, Sensors
from torg_node.hardware.survey import describe, disagreements
from torg_node.hardware.topology import cpus_by_numa_node, numa_node_of_pci
from torg_node.proving import proof_lines
from torg_node.steps.energy import difference_mj
from torg_protocol.offers import GpuInfo
from torg_protocol.proofs import ProofStatus, UnitProof

UNITS = """
import json
from dataclasses import asdict
from torg_node.hardware.nvidia import Nvidia
nvidia = Nvidia.open()
print(json.dumps([{**asdict(unit), "info": unit.info.wire()} for unit in nvidia.units()]))
"""
LOOK = """
import json
from pathlib import Path
from torg_node.hardware.health import KernelLog
from torg_node.hardware.nvidia import Nvidia
from torg_node.hardware.sensors import Sensors
nvidia = Nvidia.open()
import os
units = nvidia.units()
os.environ.update(LATER)
print(json.dumps(Sensors(nvidia, units, KernelLog(Path("/dev/null"))).look().broken))
"""


ENERGY = """
import json
from torg_node.hardware.nvidia import Nvidia
nvidia = Nvidia.open()
one = ("GPU-SIMULATED-1",)
print(json.dumps([nvidia.energy_mj(one), nvidia.energy_mj(one), nvidia.energy_mj(("GPU-ELSEWHERE",))]))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_nvml.build(tmp_path_factory.mktemp("nvml"))


def facts(uuid: str = "GPU-0", **changes: object) -> GpuFacts:
    info = GpuInfo(uuid=uuid, model="RTX 4090", vram_bytes=24 << 30, compute_capability="8.9", driver="550.54.14")
    fields: dict[str, object] = {"pci_address": "0000:3b:00.0", "pcie_generation": 4, "pcie_lanes": 16, "ecc_on": None}
    return GpuFacts(info, **{**fields, **changes})  # type: ignore[arg-type]  # the test's


def test_whole_gpus_and_mig_slices_are_units_and_what_a_card_does_not_tell_is_none(library: Path) -> None:
    whole, first, second = simulated_nvml.run(library, UNITS, gpus=2, mig=1)

    assert whole["info"] == {
        "uuid": "GPU-SIMULATED-0",
        "model": "SIMULATED GPU",
        "vram_bytes": 80 << 30,
        "compute_capability": "9.0",
        "driver": "SIMULATED-1.0",
        "mig_parent": None,
    }
    assert (whole["pci_address"], whole["pcie_generation"], whole["pcie_lanes"]) == ("0000:3b:00.0", 5, 16)
    assert whole["ecc_on"] is None
    assert [part["info"]["uuid"] for part in (first, second)] == ["MIG-SIMULATED-1-0", "MIG-SIMULATED-1-1"]
    assert {part["info"]["mig_parent"] for part in (first, second)} == {"GPU-SIMULATED-1"}
    assert first["info"]["vram_bytes"] == 10 << 30


@pytest.mark.parametrize(
    ("later", "unfit"),
    [
        ({}, {}),
        ({"TORG_SIMULATED_LOST": "1"}, {"GPU-SIMULATED-1": "fell off the bus: the driver does not reach it any more"}),
        ({"TORG_SIMULATED_GPUS": "1"}, {"GPU-SIMULATED-1": "fell off the bus: the driver does not reach it any more"}),
        ({"TORG_SIMULATED_ECC": "0:3"}, {"GPU-SIMULATED-0": "3 uncorrected ECC errors since boot"}),
    ],
    ids=["sound", "lost", "not-listed", "ecc"],
)
def test_what_breaks_later_is_noticed_and_named(library: Path, later: dict[str, str], unfit: dict[str, str]) -> None:
    assert simulated_nvml.run(library, LOOK.replace("LATER", repr(later)), gpus=2) == unfit


def test_without_the_library_there_is_no_gpu_and_the_offer_says_cpu(tmp_path: Path) -> None:
    if Nvidia.open() is not None:
        pytest.skip("this machine has an NVIDIA driver")
    inventory = take_inventory(tmp_path, 1 << 30, ())
    assert (inventory.source, inventory.gpu_class, inventory.gpus) == ("cpu", "cpu", ())


def test_a_simulated_gpu_is_never_offered_as_a_real_one(tmp_path: Path) -> None:
    pretended = GpuFacts(GpuInfo(uuid="g", model="SIMULATED GPU", vram_bytes=1), None, None, None, None)
    assert take_inventory(tmp_path, 1 << 30, (pretended,)).source == "simulated"
    assert take_inventory(tmp_path, 1 << 30, (facts(),)).source == "nvml"


def test_xids_that_mean_the_card_are_told_from_those_of_a_program() -> None:
    log = """4,1,2,-;NVRM: Xid (PCI:0000:3B:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
4,2,3,-;NVRM: Xid (PCI:0000:5e:00): 31, pid=77, name=python, Ch 00000008, MMU Fault
4,3,4,-;NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed
"""
    assert broken_xids(log) == {"0000:3b:00.0": "Xid 79: fell off the bus"}


def test_only_what_does_not_pass_breaks_a_gpu() -> None:
    hot = GpuReading("g", temperature_c=94, slowed_by_heat=True, uncorrected_ecc_errors=0, row_remap_failed=False)
    assert why_unfit(hot) is None
    assert why_unfit(GpuReading("g", row_remap_failed=True)) is not None


def test_the_kernel_log_is_read_from_now_on(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_text("NVRM: Xid (PCI:0000:3b:00): 79, of the last boot\n")
    kernel_log = KernelLog(path)
    assert kernel_log.news() == ""
    with path.open("a") as file:
        file.write("news\n")
    assert kernel_log.news() == "news\n"
    kernel_log.close()
    assert not KernelLog(tmp_path / "none").is_readable


def test_a_machine_without_gpus_has_nothing_to_look_at() -> None:
    assert Sensors(None, (), KernelLog(Path("/nowhere"))).look() == Fitness()


# --- the kernel's view -----------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sysfs as a two-socket host with one NVIDIA and one AMD card has it."""
    for address, vendor, kind, node in (
        ("0000:3b:00.0", "0x10de", "0x030200", 1),
        ("0000:5e:00.0", "0x1002", "0x038000", 0),
        ("0000:00:1f.0", "0x8086", "0x060100", -1),
    ):
        folder = tmp_path / "sys/bus/pci/devices" / address
        folder.mkdir(parents=True)
        for name, text in (("vendor", vendor), ("class", kind), ("numa_node", node)):
            (folder / name).write_text(f"{text}\n")
    for number, cpus in ((0, "0-1,4"), (1, "2-3")):
        folder = tmp_path / f"sys/devices/system/node/node{number}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{cpus}\n")
    for name, speed in (("eth0", "10000"), ("wlan0", "-1")):
        (tmp_path / "sys/class/net" / name / "device").mkdir(parents=True)
        (tmp_path / "sys/class/net" / name / "speed").write_text(f"{speed}\n")
    (tmp_path / "sys/class/net/docker0").mkdir()
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu\n"
    )
    return tmp_path


def test_processors_and_gpus_are_placed_on_their_numa_nodes(root: Path) -> None:
    assert cpus_by_numa_node(root, [0, 1, 2, 3]) == {0: 0, 1: 0, 2: 1, 3: 1}
    assert numa_node_of_pci("0000:3B:00.0", root) == 1
    assert numa_node_of_pci("0000:00:1f.0", root) is None
    assert cpus_by_numa_node(root / "nothing", [5]) == {5: 0}


def test_what_nvml_says_is_compared_with_the_kernel(root: Path) -> None:
    assert disagreements([facts()], root) == []
    assert disagreements([facts("GPU-9", pci_address="0000:5e:00.0")], root) == [
        "GPU-9: the kernel knows no NVIDIA device at 0000:5e:00.0"
    ]
    assert disagreements([facts(pci_address=None)], root) == ["GPU-0: its place on the PCI bus is not established"]
    (root / "proc/driver/nvidia/version").unlink()
    assert disagreements([facts()], root) == ["NVML says driver 550.54.14, the kernel says none"]


def test_a_gpu_that_its_owner_names_and_no_driver_tells_of_needs_the_owner(tmp_path: Path) -> None:
    """`doctor` ends with 1 when anything needs its owner; a monitor heard nothing of a card that had gone."""
    (doubt,) = disagreements([], tmp_path, wanted=["nvidia"])
    assert "names nvidia, and no driver tells of such a GPU here" in doubt


def test_the_owner_reads_what_is_known_and_what_is_not(root: Path) -> None:
    inventory = take_inventory(root, 1 << 30, (facts(),))
    lines = describe(inventory, (facts(pcie_generation=None),), root)

    assert lines["gpu GPU-0"] == (
        "RTX 4090, 24.0 GiB, compute capability 8.9, driver 550.54.14, at 0000:3b:00.0, not established, ECC not established"
    )
    assert lines["network eth0"] == "10000 Mbit/s"
    assert lines["network wlan0"] == "speed not established"
    assert "network docker0" not in lines
    assert "not offered" in lines["gpu 0000:5e:00.0"]


def test_capacity_has_the_processors_of_this_process(tmp_path: Path) -> None:
    has = capacity_of(take_inventory(tmp_path, 1 << 30, ()), (), 2, gpu_slices=1)
    assert [cpu.number for cpu in has.cpus] == sorted(cpus_by_numa_node())
    assert has.cpu_millis == len(has.cpus) * 1000


def test_energy_is_read_from_the_cards_own_counters(library: Path) -> None:
    before, after, nothing = simulated_nvml.run(library, ENERGY, gpus=2)

    assert set(before) == set(after) == {"GPU-SIMULATED-1"}
    assert difference_mj(("GPU-SIMULATED-1",), before, after) == 2000  # each of the two cards was asked once in between
    assert nothing == {}


@pytest.mark.parametrize(
    ("before", "after", "used_mj"),
    [
        ({"a": 5, "b": 7}, {"a": 6, "b": 9}, 3),
        ({"a": 5}, {"a": 6, "b": 9}, None),  # one card does not count, or is a slice
        ({"a": 5, "b": 7}, {"a": 6}, None),  # lost meanwhile
        ({"a": 5, "b": 7}, {"a": 0, "b": 9}, None),  # its driver was loaded again
    ],
)
def test_energy_that_cannot_be_told_is_not_guessed(
    before: dict[str, int], after: dict[str, int], used_mj: int | None
) -> None:
    assert difference_mj(("a", "b"), before, after) == used_mj


def test_of_a_unit_that_answered_no_proof_in_time_no_figures_are_said() -> None:
    """It said "at least 0 billion int8 operations/s, 0 MiB filled and walked ()"."""
    late = ProofStatus(state="unproven", detail="no whole answer within the time", units=(UnitProof(unit="cpu"),))
    assert proof_lines(late) == ["unproven: no whole answer within the time"]
