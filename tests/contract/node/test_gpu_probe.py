"""A node with SIMULATED GPUs (NVML and the engine's hook) offers those that a container of its engine was seen to get, and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from solders.keypair import Keypair

from scripts.market_processes import call, script
from tests.support import simulated_nvml
from tests.support.engine import docker_executor
from tests.support.gpu_engine import SMI, engine_with_simulated_gpus
from tests.support.node_settings import settings_in
from torg_chain.wallet import save_keypair
from torg_node.executors.probes import check_walls
from torg_node.settings import write_settings

pytestmark = [pytest.mark.engine, pytest.mark.root]
OTHER = "#!/bin/sh\necho 'GPU 0: SIMULATED GPU (UUID: GPU-of-somebody-else)'\n"


async def _doctor(folder: Path, engine: Path) -> dict[str, Any]:
    """What the owner of a host with two GPUs sees."""
    library = folder / "nvml"
    library.mkdir()
    environment = {"LD_LIBRARY_PATH": str(simulated_nvml.build(library)), "TORG_SIMULATED_GPUS": "2"}
    settings = settings_in(folder / "node", executor="docker", engine_socket=engine)
    save_keypair(Keypair(), settings.key_path)
    write_settings(settings)
    doctor = [script("torg-node"), "doctor", "--data", str(settings.data), "--json"]
    _, text = await call(doctor, env=environment, check=False)
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("smi", "complaint"), [(SMI, None), (OTHER, "sees ['GPU-of-somebody-else']")], ids=["right", "wrong"]
)
async def test_the_agents_probe_asks_the_engine_for_every_gpu_and_looks_what_came(
    tmp_path: Path, smi: str, complaint: str | None
) -> None:
    with engine_with_simulated_gpus(tmp_path, smi) as engine:
        found = await _doctor(tmp_path, engine)
    failed = [line for line in found["failed"] if line.startswith("gpu:")]

    assert "SIMULATED" in str(found["hardware"]), "the owner sees what is there, lent or not"
    if complaint is None:
        assert (failed, found["not_offered"]) == ([], [])
        return
    assert len(failed) == 1
    assert "promised ['GPU-SIMULATED-0', 'GPU-SIMULATED-1']" in failed[0]
    assert complaint in failed[0]
    assert [line for line in found["not_offered"] if line.startswith("GPUs: the container engine did not give")]


async def test_an_engine_without_a_toolkit_leaves_a_node_that_offers_processors(
    engine_socket: Path,
    tmp_path: Path,
) -> None:
    async with docker_executor(engine_socket, tmp_path, gpu_uuids=["GPU-1"]) as executor:
        found = await executor.probe()

    assert not found.gpu
    check_walls(found)  # an owner with a broken toolkit still lends the rest
