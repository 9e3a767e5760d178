"""A real NATS server of the tests' own, on loopback, at a free port."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.networks import Place
from tests.support.ports import own_port


@contextmanager
def running_nats() -> Iterator[str]:
    """Its URL. Skips the test where Debian's package `nats-server` is missing."""
    with nats_server() as server:
        yield server.url


@dataclass
class NatsServer:
    program: str
    folder: Path
    url: str = ""
    process: subprocess.Popen[bytes] | None = None
    place: Place | None = None

    def start(self) -> None:
        """At the same port each time."""
        port = self.url.rpartition(":")[2] or str(own_port())
        address = self.place.address if self.place is not None else "127.0.0.1"
        command = [self.program, "--addr", address, "--port", port, "--ports_file_dir", str(self.folder)]
        command = self.place.command(*command) if self.place is not None else command
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.url = _url(self.process, self.folder)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=120)

    def send(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)


@contextmanager
def nats_server(place: Place | None = None) -> Iterator[NatsServer]:
    """One that a test may kill or freeze. Skips the test where Debian's package `nats-server` is missing."""
    program = shutil.which("nats-server", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("the NATS server is not installed (Debian: nats-server)")
    with tempfile.TemporaryDirectory(prefix="torg-nats-") as name:
        server = NatsServer(program, Path(name), place=place)
        try:
            server.start()
            yield server
        finally:
            if server.process is not None:
                server.send(signal.SIGCONT)
                server.process.terminate()
                server.process.wait(timeout=120)


def _url(process: subprocess.Popen[bytes], folder: Path) -> str:
    file = folder / f"nats-server_{process.pid}.ports"
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if file.exists() and (text := file.read_text()).strip():
            return str(json.loads(text)["nats"][0])
        time.sleep(0.02)
    raise AssertionError(f"NATS did not start: {(folder / 'log').read_text()}")
