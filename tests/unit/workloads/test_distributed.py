"""Several nodes learn what one does: the same batches, shared out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.ports import own_port
from tests.support.workload_runs import Machine
from tests.support.zygote import Zygote

TOLERANCE = 1e-4  # of a weight; measured 2e-6 after 12 epochs: numbers are added in another order
QUICK = ("--epochs", "2")


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_weights_of_a_gang_are_those_of_one_node(zygote: Zygote, tmp_path: Path, size: int) -> None:
    alone = Machine(zygote, "distributed", tmp_path / "alone")
    code, _, error = alone.run(*QUICK)
    assert code == 0, error

    members = [Machine(zygote, "distributed", tmp_path / f"rank-{rank}") for rank in range(size)]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(own_port()), "WORLD_SIZE": str(size)}
    running = [member.start(*QUICK, env=meeting | {"RANK": str(rank)}) for rank, member in enumerate(members)]
    ends = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0] * size, ends

    weights = [load_file(machine.outputs / "model.safetensors") for machine in (alone, *members)]
    for name, tensor in weights[0].items():
        assert all(np.array_equal(other[name], weights[1][name]) for other in weights[2:]), name
        assert np.abs(tensor - weights[1][name]).max() < TOLERANCE, name
    assert members[0].metrics()["nodes"] == size
