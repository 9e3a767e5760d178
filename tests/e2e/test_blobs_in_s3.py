"""A marketplace whose blobs are in a bucket: a real job, and a bucket that is away when its result is to be stored. S3 is SIMULATED by moto."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.s3 import CREDENTIALS, running_s3
from tests.support.small_market import WAIT_FOR_GO, SmallMarket, let_go, running_market, submit
from tests.support.waiting import eventually
from torg_protocol.states import JobState

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(900)]

CONTENT = bytes(range(256)) * (9 << 12)  # more than one part of an upload
CODE = f"""
print("begun", flush=True)
{WAIT_FOR_GO}
open(os.environ["TORG_OUTPUT_DIR"] + "/model.bin", "wb").write(bytes(range(256)) * (9 << 12))
"""


async def test_a_job_delivers_through_a_bucket_that_was_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with running_s3() as s3:
        market = SmallMarket(tmp_path, options=("--blobs", s3.url(), "--blobs-endpoint", s3.endpoint))
        async with running_market(tmp_path, market=market), market.client() as client:
            job = await submit(client, ["python", "-c", CODE], outputs=["model.bin"])

            async def has_begun() -> bool:
                return "begun" in await client.logs(job.job_id)

            async def is_missed() -> bool:
                return s3.url() in (tmp_path / "marketplace.log").read_text()

            await eventually(has_begun)
            with s3.away():
                let_go(tmp_path / "node")
                await eventually(is_missed)
            done = await client.wait(job.job_id)

            assert (done.state, len(done.leases)) == (JobState.SUCCEEDED, 1)
            (path,) = await client.pull(job.job_id, tmp_path / "out")
            assert path.read_bytes() == CONTENT
            assert len(s3.names()) >= 2  # the output and the log, at least
            assert not (tmp_path / "marketplace" / "blobs" / "objects").exists()
