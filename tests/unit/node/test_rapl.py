"""Energy of processors, from a SIMULATED powercap tree in the kernel's layout."""

from __future__ import annotations

from pathlib import Path

from torg_node.hardware.rapl import Rapl


def domain(root: Path, name: str, label: str, energy_uj: int, range_uj: int = 1_000_000) -> Path:
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return folder / "energy_uj"


def used_mj(rapl: Rapl) -> int:
    found = rapl.look()
    assert found is not None
    return found.used_mj


def test_packages_are_added_up_and_their_parts_and_the_board_are_not_counted_again(tmp_path: Path) -> None:
    first = domain(tmp_path, "intel-rapl:0", "package-0", 100_000)
    second = domain(tmp_path, "intel-rapl:1", "package-1", 500_000)
    core = domain(tmp_path, "intel-rapl:0:0", "core", 0)
    board = domain(tmp_path, "intel-rapl:2", "psys", 0)
    rapl = Rapl(tmp_path)
    assert used_mj(rapl) == 0
    for counter, energy_uj in ((first, 130_000), (second, 507_000), (core, 20_000), (board, 90_000)):
        counter.write_text(f"{energy_uj}\n")
    assert used_mj(rapl) == 37
    assert used_mj(rapl) == 37


def test_a_counter_that_went_round_goes_on(tmp_path: Path) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 990_000)
    rapl = Rapl(tmp_path)
    counter.write_text("15000\n")
    assert used_mj(rapl) == 25


def test_without_counters_nothing_is_told_and_one_agent_does_not_go_on_with_anothers(tmp_path: Path) -> None:
    assert Rapl(tmp_path).look() is None
    assert not Rapl(tmp_path).is_there
    domain(tmp_path, "intel-rapl:0", "package-0", 0)
    ours, theirs = Rapl(tmp_path).look(), Rapl(tmp_path).look()
    assert ours is not None
    assert theirs is not None
    assert ours.epoch != theirs.epoch
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()  # as for a user who may not
    assert Rapl(tmp_path).look() is None
