"""Real processes, a real engine, and Debian's registry behind a password: a job pulls its image with its own credentials, and nobody else with them."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.e2e.test_secrets import kept_in_memory
from tests.support.docker_market import DockerMarket
from tests.support.docker_registry import Login, running_registry
from tests.support.engine import engine_client, engine_socket
from tests.support.searching import places_that_hold
from tests.support.small_market import submit
from tests.support.waiting import until
from torg.cli.__main__ import cli
from torg.client import AsyncClient
from torg_node.executors.docker_archive import File
from torg_protocol.api import JobView
from torg_protocol.states import OUTCOMES, EndReason, Fault, JobState

pytestmark = [pytest.mark.engine, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]
__all__ = ["engine_socket"]
SEES = ["sh", "-c", "ls /run/secrets; cat /run/secrets/OTHER"]


async def test_a_job_pulls_with_its_own_credentials_and_a_strangers_job_does_not(
    engine_socket: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    login = Login()
    async with running_registry(tmp_path / "registry", login) as registry, engine_client(engine_socket) as engine:
        image = await registry.push(engine, engine_socket, "trainer", File("of", os.urandom(8)))
        market = DockerMarket(tmp_path / "market", engine=engine_socket, private_registries=[registry.host])
        try:
            await market.start_localnet()
            await market.start_marketplace()
            await market.start_node()
            for name, value in (("USER", login.username), ("WORD", login.password), ("GUESS", "guessed-in-vain")):
                monkeypatch.setenv(f"THE_{name}", value)  # now: the market's processes are not to inherit it
            async with market.client() as anna, market.client() as bert:
                done = await _run(anna, image, registry.host, "THE_WORD")
                assert done.state is JobState.SUCCEEDED, done.leases[-1].detail
                assert await anna.logs(done.job_id) == f"OTHER\n{login.username}"
                told = json.dumps([done.wire(), await _shown(market, anna, done.job_id)])
                assert login.password not in told
                assert places_that_hold(login.password.encode(), market.folder) == []

                guessed = await _run(bert, image, registry.host, "THE_GUESS")
                _is_the_jobs_own_mistake(guessed, "registry_login_refused")
                without = await _run(bert, image, None, "THE_GUESS")
                _is_the_jobs_own_mistake(without, "registry_login_needed")
                with_his_own = await _run(bert, image, registry.host, "THE_WORD")
                assert with_his_own.state is JobState.SUCCEEDED
                leases = {lease.lease_id for job in (done, guessed, without, with_his_own) for lease in job.leases}
                await until(lambda: not [path for path in kept_in_memory() if path.name in leases])
        finally:
            await market.stop()
            await engine.images.delete(image, force=True)


async def _run(client: AsyncClient, image: str, registry: str | None, password: str) -> JobView:
    secrets = {"OTHER": {"env": "THE_USER"}}
    fields: dict[str, object] = {"image": image, "isolation": "container"}
    if registry is not None:
        secrets |= {"USERNAME": {"env": "THE_USER"}, "PASSWORD": {"env": password}}
        fields["registries"] = {registry: {"username": "USERNAME", "password": "PASSWORD"}}
    job = await submit(client, SEES, secrets=secrets, **fields)
    return await client.wait(job.job_id)


async def _shown(market: DockerMarket, client: AsyncClient, job_id: str) -> list[str]:
    """What commands print of the job."""
    env = {**os.environ, "TORG_HOME": str(client.config.home), "TORG_MARKETPLACE": market.url}
    commands = (["show", job_id], ["receipt", job_id], ["--json", "show", job_id])
    return [(await asyncio.to_thread(CliRunner().invoke, cli, command, env=env)).output for command in commands]


def _is_the_jobs_own_mistake(job: JobView, code: str) -> None:
    assert (job.state, job.reason) == (JobState.FAILED, EndReason.INPUT_INVALID)
    assert len(job.leases) == 1, "no other node is asked"
    assert OUTCOMES[EndReason.INPUT_INVALID].fault is Fault.JOB
    assert code in job.leases[-1].detail
    assert "guessed-in-vain" not in json.dumps(job.wire())
