"""The simulation notices bugs: some are put in here, all by `make mutations`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.mutate import PATCHES, applied, hunt


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_every_mutation_still_applies(patch: Path, tmp_path: Path) -> None:
    package = applied(patch, tmp_path) / "torg_marketplace"

    (changed,) = [line[6:] for line in patch.read_text().splitlines() if line.startswith("+++ b/")]
    source = (tmp_path / changed).read_text()
    compile(source, changed, "exec")
    assert package.is_dir()


@pytest.mark.parametrize(
    "name", ["13_units_outlive_their_lease", "17_moves_leave_no_end", "31_answers_of_a_crowd_are_mixed_up"]
)
def test_a_bug_is_noticed(name: str) -> None:
    (patch,) = [patch for patch in PATCHES if patch.stem == name]

    assert hunt(patch, seeds=5) is not None
