"""Files of other platforms, submitted unmodified to a market whose node runs images made from Debian's packages."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from scripts.market_processes import call, script
from tests.support.debian_images import load_debian_images
from tests.support.engine import engine_socket
from tests.support.small_market import SmallMarket, running_market
from torg.client import AsyncClient
from torg.spec_file import read_spec_file
from torg_protocol.api import JobView
from torg_protocol.states import JobState

__all__ = ["engine_socket"]
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.engine, pytest.mark.root, pytest.mark.slow]
IMAGES = ("ubuntu", "nginx")


class DockerMarket(SmallMarket):
    engine: Path

    async def start_node(self, env: Any = None) -> None:
        data = self.folder / "node"
        init = ["init", "--data", str(data), "--marketplace", self.url, "--price", "1.00", "--max-unpaid", "10"]
        init += ["--executor", "docker", "--engine-socket", str(self.engine), "--yes", "--json"]
        await call([script("torg-node"), *init])
        config = (data / "config.toml").read_text()
        listed = ", ".join(f'"{name}:latest"' for name in IMAGES)
        (data / "config.toml").write_text(re.sub(r"(?m)^local_images = .*$", f"local_images = [{listed}]", config))
        await super().start_node(env)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(engine_socket: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncClient]:
    await load_debian_images(engine_socket, IMAGES)
    market = DockerMarket(tmp_path_factory.mktemp("market"))
    market.engine = engine_socket
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


async def test_a_text_runs_in_a_shell_with_the_variables_of_global(client: AsyncClient, tmp_path: Path) -> None:
    shared = {"env": {"GREETING": "hello"}, "work_dir": "/usr", "variables": {"NAME": "market"}}
    text = "echo $GREETING %%global.variables.NAME%% from $PWD; exit 3"

    job = await submitted(client, tmp_path, operation("shell", cmd=text), **{"global": shared})
    job = await client.wait(job.job_id)

    assert (job.state, job.leases[0].exit_code) == (JobState.FAILED, 3)
    assert await client.logs(job.job_id) == "hello market from /usr\n"
