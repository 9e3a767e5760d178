"""SIMULATED S3: moto's server on loopback, in a thread of this process, with one bucket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from moto.server import ThreadedMotoServer

from tests.support.ports import own_port

_WITHIN_S = 120  # moto loads all that it knows of S3 at the first request, which takes seconds
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@dataclass
class SimulatedS3:
    server: ThreadedMotoServer
    endpoint: str
    bucket: str = "market"

    def url(self, prefix: str = "blobs") -> str:
        return f"s3://{self.bucket}/{prefix}"

    def names(self) -> list[str]:
        """Of all objects."""
        listing = httpx.get(f"{self.endpoint}/{self.bucket}?list-type=2", trust_env=False, timeout=_WITHIN_S).text
        return [part.partition("</Key>")[0] for part in listing.split("<Key>")[1:]]

    @contextmanager
    def away(self) -> Iterator[None]:
        """It listens no more, and comes back at the same address with all that it had."""
        _, port = self.server.get_host_and_port()
        self.server.stop()
        try:
            yield
        finally:
            self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
            self.server.start()


@contextmanager
def running_s3() -> Iterator[SimulatedS3]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=own_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    s3 = SimulatedS3(server, f"http://{host}:{port}")
    try:
        httpx.put(f"{s3.endpoint}/{s3.bucket}", trust_env=False, timeout=_WITHIN_S).raise_for_status()
        yield s3
    finally:
        s3.server.stop()
