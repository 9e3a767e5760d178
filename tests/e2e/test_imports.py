"""Files of other platforms, submitted unmodified to a market whose node runs images made from Debian's packages."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from scripts.market_processes import script
from tests.support.docker_market import DockerMarket, answer, load_debian_images, ready
from tests.support.engine import engine_socket
from tests.support.small_market import running_market
from torg.client import AsyncClient
from torg.spec_file import read_spec_file
from torg_protocol.api import JobView
from torg_protocol.states import JobState
from torg_protocol.tasks import TaskState

__all__ = ["engine_socket"]
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.engine, pytest.mark.root, pytest.mark.slow]
IMAGES = ("ubuntu", "nginx")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(engine_socket: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncClient]:
    await load_debian_images(engine_socket, IMAGES)
    market = DockerMarket(tmp_path_factory.mktemp("market"), engine=engine_socket, images=IMAGES)
    async with running_market(market.folder, market=market), market.client() as client:
        yield client


def operation(name: str, image: str = "ubuntu", **fields: Any) -> dict[str, Any]:
    execution = fields.pop("execution", {})
    return {"type": "container/run", "id": name, "args": {"image": image, **fields}, "execution": execution}


async def submitted(client: AsyncClient, folder: Path, *ops: dict[str, Any], **around: Any) -> JobView:
    file = folder / "nosana-job.json"
    file.write_text(json.dumps({"version": "0.1", "type": "container", **around, "ops": list(ops)}))
    return await client.submit(read_spec_file(file))


async def test_hello_world_says_hello(client: AsyncClient, tmp_path: Path) -> None:
    job = await submitted(client, tmp_path, operation("hello-world", cmd=["echo", "hello", "world"]))
    job = await client.wait(job.job_id)

    assert (job.state, job.leases[0].exit_code) == (JobState.SUCCEEDED, 0)
    assert await client.logs(job.job_id) == "hello world\n"


async def test_torg_run_takes_the_file_prints_what_the_job_prints_and_passes_its_exit_code_on(
    client: AsyncClient, tmp_path: Path
) -> None:
    file = tmp_path / "nosana-job.json"
    file.write_text(
        json.dumps({"version": "0.1", "type": "container", "ops": [operation("x", cmd="echo over there; exit 4")]})
    )
    ours = ("--home", str(client.config.home), "--marketplace", client.config.marketplace_url)

    process = await asyncio.create_subprocess_exec(
        script("torg"), *ours, "run", str(file), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(150):
        out, err = await process.communicate()

    assert (process.returncode, out.decode()) == (4, "over there\n"), err.decode()
    assert "Nosana job definition: lost 0" in err.decode()


async def test_results_of_one_operation_are_the_words_of_the_next(client: AsyncClient, tmp_path: Path) -> None:
    say = operation("say", cmd="echo 'word: one'; echo 'word: two'")
    say["results"] = {"word": "(?<=word: ).*"}
    use = operation("use", cmd=["sh", "-c", 'test "$1,$2" = one,two', "sh", "%%ops.say.results.word%%"])

    job = await client.wait((await submitted(client, tmp_path, say, use)).job_id)

    assert job.state is JobState.SUCCEEDED, job
    assert dict(job.leases[0].tasks[0].results) == {"word": ("one", "two")}


async def test_a_text_runs_in_a_shell_with_the_variables_of_global(client: AsyncClient, tmp_path: Path) -> None:
    shared = {"env": {"GREETING": "hello"}, "work_dir": "/usr", "variables": {"NAME": "market"}}
    text = "echo $GREETING %%global.variables.NAME%% from $PWD; exit 3"

    job = await submitted(client, tmp_path, operation("shell", cmd=text), **{"global": shared})
    job = await client.wait(job.job_id)

    assert (job.state, job.leases[0].exit_code) == (JobState.FAILED, 3)
    assert await client.logs(job.job_id) == "hello market from /usr\n"


async def test_operations_run_one_after_the_other_and_share_a_volume(client: AsyncClient, tmp_path: Path) -> None:
    volume = {"type": "container/create-volume", "id": "make", "args": {"name": "shared"}}
    mounts = [{"name": "shared", "dest": "/shared"}]
    write = operation("write", cmd="echo kept > /shared/note", volumes=mounts)
    read = operation("read", cmd="test $(cat /shared/note) = kept", volumes=mounts)

    job = await client.wait((await submitted(client, tmp_path, volume, write, read)).job_id)

    assert job.state is JobState.SUCCEEDED, job
    assert [(task.task, task.state) for task in job.leases[0].tasks] == [
        ("write", TaskState.SUCCEEDED),
        ("read", TaskState.SUCCEEDED),
    ]


async def test_nginx_serves_and_passes_its_health_check(client: AsyncClient, tmp_path: Path) -> None:
    check = {"type": "http", "path": "/", "method": "GET", "expected_status": 200, "continuous": True}
    serve = operation("nginx", "nginx", cmd=[], expose=[{"port": 80, "health_checks": [check]}])

    job = await submitted(client, tmp_path, serve)
    (port,) = job.spec.ports
    (found,) = (await ready(client, job.job_id)).leases[-1].ports  # as the node's own check says
    head = await answer(client, job.job_id, port)
    await client.cancel(job.job_id)
    await client.wait(job.job_id)

    assert (found.port, found.detail) == (80, "")
    assert (port.port, port.health.http, port.health.expect_status) == (80, "/", 200)
    assert re.match(r"HTTP/1\.1 200 OK\r\n", head)
    assert "Server: nginx/1." in head


async def test_a_compose_file_runs_its_services_in_the_order_of_their_dependencies(
    client: AsyncClient, tmp_path: Path
) -> None:
    (tmp_path / "docker-compose.yml").write_text("""
services:
  check:
    image: ubuntu
    command: grep -q made /data/file
    volumes: ["data:/data"]
    depends_on: {make: {condition: service_completed_successfully}}
  make:
    image: ubuntu
    command: bash -c 'echo made > /data/file'
    volumes: ["data:/data"]
volumes: {data: {}}
""")
    spec_file = replace(
        read_spec_file(tmp_path / "docker-compose.yml"), allow_dropped=True
    )  # no network between services

    job = await client.wait((await client.submit(spec_file)).job_id)

    assert job.state is JobState.SUCCEEDED, job
