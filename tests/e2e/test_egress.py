"""A job with a way out, from its job file to its receipt."""

from __future__ import annotations

import http.server
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.small_market import SmallMarket, run, running_market
from torg.client import AsyncClient
from torg_protocol.states import JobState
from torg_protocol.usage import verify_receipt

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.sandbox, pytest.mark.root]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncClient]:
    folder = tmp_path_factory.mktemp("market")
    async with running_market(folder, market=SmallMarket(folder, egress="open")) as market, market.client() as client:
        yield client


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "index.html").write_text("from outside")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]  # the server's three

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


CODE = """
import sys, urllib.request, urllib.error
for url in sys.argv[1:]:
    try:
        print(urllib.request.urlopen(url).read().decode())
    except urllib.error.HTTPError as error:
        print(error.read().decode().strip())
"""


async def test_open_means_what_the_owner_lends_and_the_receipt_counts(client: AsyncClient, origin: str) -> None:
    urls = [f"http://{origin}/", "http://169.254.169.254/latest/"]
    job = await run(client, ["python", "-c", CODE, *urls], network="open", env={"no_proxy": ""})

    assert (job.state, await client.logs(job.job_id)) == (
        JobState.SUCCEEDED,
        "from outside\ntorg: 169.254.169.254:80 is not on the public internet\n",
    )
    (receipt,) = await client.receipts(job.job_id)
    assert verify_receipt(receipt) == []
    assert receipt.receipt.use is not None
    assert receipt.receipt.use.egress_received_bytes is not None
    assert receipt.receipt.use.egress_received_bytes > len("from outside")


async def test_a_list_holds_for_names_and_ports(client: AsyncClient, origin: str) -> None:
    network = {"egress": "allow", "allow": ["pypi.org:443"]}
    urls = ["http://pypi.org/", f"http://{origin}/"]
    job = await run(client, ["python", "-c", CODE, *urls], network=network, env={"no_proxy": ""})

    assert (await client.logs(job.job_id)).splitlines() == [
        "torg: pypi.org:80 is not on the job's list (network.allow)",
        f"torg: {origin} is not on the job's list (network.allow)",
    ]
