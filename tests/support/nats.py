"""A real NATS server of the tests' own, on loopback, at a free port."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def running_nats() -> Iterator[str]:
    """Its URL. Skips the test where Debian's package `nats-server` is missing."""
    program = shutil.which("nats-server", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("the NATS server is not installed (Debian: nats-server)")
    with tempfile.TemporaryDirectory(prefix="torg-nats-") as name:
        folder = Path(name)
        command = [program, "--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir", name]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield _url(process, folder)
        finally:
            process.terminate()
            process.wait(timeout=30)


def _url(process: subprocess.Popen[bytes], folder: Path) -> str:
    file = folder / f"nats-server_{process.pid}.ports"
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if file.exists() and (text := file.read_text()).strip():
            return str(json.loads(text)["nats"][0])
        time.sleep(0.02)
    raise AssertionError(f"NATS did not start: {(folder / 'log').read_text()}")
