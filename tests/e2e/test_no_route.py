"""A client and a node in networks of their own, between which no packet goes: both reach the marketplace, and it is enough."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.market_processes import call, start
from tests.support.networks import MIDDLE_ADDRESS, Place, link_of, star
from tests.support.star_market import star_market

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes networks"),
]
SERVER = (
    "import socket; s = socket.create_server(('127.0.0.1', 8888)); print('up', flush=True)\n"
    "while True:\n c, _ = s.accept(); c.sendall(c.recv(100).upper()); c.close()"
)


async def test_commands_and_ports_reach_a_job_that_no_packet_reaches(tmp_path: Path) -> None:
    with star("client", "node") as (middle, client, node):
        async with star_market(tmp_path, middle, node) as market:
            torg = await market.client(client)
            job_file = tmp_path / "job.json"
            job = {"version": 1, "command": ["python", "-c", SERVER], "limits": {"max_duration": "5m"}}
            job_file.write_text(json.dumps({**job, "resources": {"memory": "128MiB", "disk": "32MiB"}}))
            job_id = await _submitted(torg, job_file)
            async with asyncio.timeout(150):
                while "up" not in (await call([*torg, "logs", job_id]))[1]:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)

            assert _reaches(client, MIDDLE_ADDRESS)
            assert not _reaches(client, node.address)
            assert not _reaches(node, client.address)
            assert await call([*torg, "exec", job_id, "--", "echo", "through"]) == (0, "through\n")
            forwarding = await start("forward", [*torg, "--json", "port-forward", job_id, "8888:7777"], tmp_path / "f")
            try:
                asked = client.command(sys.executable, "-c", _ASK, "7777")
                assert (await call(asked))[1] == "THERE AND BACK\n"
            finally:
                await forwarding.stop()
            await call([*torg, "cancel", job_id])
            await call([*torg, "wait", job_id], check=False)
            await _a_job_survives_a_network_that_flaps(torg, node, job_file)
    assert f"torg{os.getpid()}-" not in (await call(["ip", "netns", "list"]))[1]


async def _submitted(torg: list[str], job_file: Path) -> str:
    """Again, while the only node gets no work: on a busy machine it may be silent for three heartbeats, which are short here."""
    async with asyncio.timeout(150):
        while True:
            code, said = await call([*torg, "--json", "submit", str(job_file)], check=False)
            if code == 0:
                return str(json.loads(said)["job_id"])
            assert "infeasible" in said, said


async def _a_job_survives_a_network_that_flaps(torg: list[str], node: Place, job_file: Path) -> None:
    """Twice as long as the three heartbeats after which a node counts as unknown."""
    count = "import time\nfor n in range(40):\n    print(n, flush=True)\n    time.sleep(0.25)"
    job = {**json.loads(job_file.read_text()), "command": ["python", "-c", count]}
    job_file.write_text(json.dumps(job))
    job_id = await _submitted(torg, job_file)
    async with asyncio.timeout(150):
        while "2\n" not in (await call([*torg, "logs", job_id]))[1]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    for _ in range(3):
        for state in ("down", "up"):
            await call(node.command("ip", "link", "set", link_of(node), state))
            await asyncio.sleep(1.6 if state == "down" else 0.4)
    # Routes went with the link.
    await call(node.command("ip", "route", "replace", "default", "via", node.address.rsplit(".", 1)[0] + ".1"))
    async with asyncio.timeout(150):
        await call([*torg, "wait", job_id])
    ended = json.loads((await call([*torg, "--json", "show", job_id]))[1])
    assert (ended["state"], len(ended["leases"])) == ("succeeded", 1)
    assert (await call([*torg, "logs", job_id]))[1] == "".join(f"{n}\n" for n in range(40))


_ASK = (
    "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 20);"
    " s.sendall(b'there and back'); print(s.recv(100).decode())"
)


def _reaches(place: Place, address: str) -> bool:
    """A refused connection would be a packet that came back."""
    probe = (
        "import socket, sys\n"
        "try: socket.create_connection((sys.argv[1], 9), 1)\n"
        "except ConnectionRefusedError: pass\n"
        "except OSError: sys.exit(1)"
    )
    return subprocess.run(place.command(sys.executable, "-c", probe, address), check=False).returncode == 0
