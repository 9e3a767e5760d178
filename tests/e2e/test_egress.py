"""A job with a way out, from its job file to its receipt."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.small_market import SmallMarket, run, running_market
from torg.client import AsyncClient
from torg_protocol.states import EndReason, JobState
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

        def do_GET(self) -> None:
            if self.path == "/index.html?private" and self.headers["authorization"] != "Bearer t0ken":
                self.send_error(401, f"not for {self.headers['authorization']}")
            else:
                super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_inputs_are_fetched_by_the_node_and_the_job_reads_them_without_a_network(
    client: AsyncClient, origin: str, tmp_path: Path
) -> None:
    digest = "sha256:" + hashlib.sha256(b"from outside").hexdigest()
    by_url = {"kind": "url", "url": f"http://{origin}/index.html", "digest": digest, "path": "/data/by-url"}
    private = {**by_url, "url": f"{by_url['url']}?private", "bearer_token": "TOKEN", "path": "/data/private"}
    (tmp_path / "token").write_text("t0ken\n")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/note").write_text("from the store")
    kept = await client.put_data("kept", tmp_path / "kept")
    blob = {"kind": "blob", "digest": kept.digest, "size_bytes": kept.size_bytes, "unpack": True, "path": "/data/kept"}
    as_it_is = {**blob, "unpack": False, "path": "/data/kept.tar.zst"}
    by_name = {"data": "kept", "path": "/data/by-name"}
    code = (
        "for path in ('by-url', 'private', 'kept/note', 'by-name/note'): print(open('/data/' + path).read())\n"
        "print(len(open('/data/kept.tar.zst', 'rb').read()))\n"
        "open('/data/by-url', 'a')"
    )
    secrets = {"TOKEN": {"file": str(tmp_path / "token")}}
    job = await run(client, ["python", "-c", code], inputs=[by_url, private, blob, as_it_is, by_name], secrets=secrets)

    assert await client.logs(job.job_id) == "from outside\n" * 2 + "from the store\n" * 2 + f"{kept.size_bytes}\n"
    (receipt,) = await client.receipts(job.job_id)
    assert [item.digest for item in receipt.receipt.inputs] == [digest, digest, *[kept.digest] * 3]
    assert receipt.receipt.inputs[-1].name == "kept"
    assert "Read-only file system" in await client.logs(job.job_id, "stderr")


async def test_an_input_that_is_not_what_was_promised_fails_the_job_before_it_costs(
    client: AsyncClient, origin: str
) -> None:
    by_url = {"kind": "url", "url": f"http://{origin}/", "digest": "sha256:" + "0" * 64, "path": "/data/by-url"}
    job = await run(client, ["true"], inputs=[by_url])

    assert (job.state, job.reason, job.final_amount) == (JobState.FAILED, EndReason.INPUT_INVALID, 0)
    assert "its digest is sha256:" in job.detail


async def test_why_a_fetch_failed_is_told_without_the_secret_that_a_server_repeats(
    client: AsyncClient, origin: str, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("wr0ng-t0ken")
    url = f"http://{origin}/index.html?private"
    private = {"kind": "url", "url": url, "digest": "sha256:" + "0" * 64, "path": "/data/x", "bearer_token": "TOKEN"}
    job = await run(client, ["true"], inputs=[private], secrets={"TOKEN": {"file": str(tmp_path / "token")}})

    assert job.reason is EndReason.INPUT_INVALID
    assert "not for these credentials" in job.detail
    assert "wr0ng-t0ken" not in job.model_dump_json()


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
