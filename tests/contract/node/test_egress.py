"""A container's way out, on every executor that isolates: its lease's proxy on its own loopback, and nothing beside it."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.executors import Bench, ExecutorKind, isolating_kinds, left_behind, python
from tests.support.waiting import until
from torg_node.egress.process import PROXY_USER, EgressOrder, EgressUse, read_use, start_proxy
from torg_node.executors.port import PROXY_PORT, Capabilities
from torg_node.executors.probes import EGRESS_PROBE, with_egress

pytestmark = [pytest.mark.parametrize("kind", isolating_kinds()), pytest.mark.root]
PROXY = {"http_proxy": f"http://127.0.0.1:{PROXY_PORT}", "no_proxy": ""}
FETCH = """
import sys, urllib.request, urllib.error
for url in sys.argv[1:]:
    try:
        print(urllib.request.urlopen(url, timeout=100).read().decode())
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode().strip())
    except OSError as error:
        print(error)
"""


@pytest.fixture
async def bench(kind: ExecutorKind, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with kind.connect(request, tmp_path) as executor:
        bench = Bench(kind, executor, tmp_path)
        yield bench
        await executor.reap(frozenset())
    await until(lambda: left_behind(tmp_path, bench.token) == [] and proxies() == [])


@pytest.fixture
def origin() -> Iterator[str]:
    """A server on this host's loopback, which only an owner who lends it makes reachable."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if self.path == "/away" else 200)
            if self.path == "/away":
                self.send_header("Location", "http://169.254.169.254/latest/meta-data/")
            self.end_headers()
            self.wfile.write(b"fetched")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def proxies() -> list[int]:
    """Processes of proxies that this test process started."""
    found = []
    for directory in Path("/proc").iterdir():
        try:
            status = (directory / "stat").read_text().rpartition(")")[2].split() if directory.name.isdigit() else []
            if status and int(status[1]) == os.getpid() and b"egress.process" in (directory / "cmdline").read_bytes():
                found.append(int(directory.name))
        except OSError:
            continue
    return found


async def test_the_probe_holds(bench: Bench) -> None:
    found = await with_egress(bench.executor, Capabilities("x", "1", "sandbox", (), ()))

    assert (found.verified, found.failed) == ((EGRESS_PROBE,), ())


async def test_what_the_owner_lends_is_reached_and_counted(bench: Bench, origin: str) -> None:
    with start_proxy(EgressOrder(None, 0, ("127.0.0.1/32",)), bench.root) as channel:
        ended = await bench.run(*python(FETCH), origin, f"{origin}/away", proxy=channel, env=PROXY)

    assert ended.text().splitlines() == ["fetched", "403 torg: 169.254.169.254:80 is not on the public internet"]
    use = read_use(bench.root)
    assert use is not None
    assert 100 < use.sent_bytes < 2000
    assert 50 < use.received_bytes < 2000


async def test_the_host_stays_out_of_reach_by_the_proxy_and_around_it(bench: Bench, origin: str) -> None:
    around = (
        "import socket, sys; print(socket.socket().connect_ex(('127.0.0.1', int(sys.argv.pop(1).rpartition(':')[2]))))"
    )
    with start_proxy(EgressOrder(None, 0), bench.root) as channel:
        ended = await bench.run(*python(f"{around}\n{FETCH}"), origin, origin, proxy=channel, env=PROXY)

    refused, answer = ended.text().splitlines()
    assert refused == "111"  # the container's own loopback holds the proxy and nothing else
    assert answer.startswith("403 ")
    assert answer.endswith("is not on the public internet")


async def test_a_job_without_egress_finds_no_proxy(bench: Bench) -> None:
    ended = await bench.run(*python(f"import socket; print(socket.socket().connect_ex(('127.0.0.1', {PROXY_PORT})))"))

    assert ended.text() == "111\n"


async def test_the_proxy_has_no_rights_and_ends_with_its_container(bench: Bench) -> None:
    with start_proxy(EgressOrder(None, 0), bench.root) as channel:
        handle = await bench.start("sleep", "600", proxy=channel)
    (pid,) = proxies()
    await until(lambda: read_use(bench.root) is not None)  # it serves
    status = Path(f"/proc/{pid}/status").read_text()

    assert f"Uid:\t{PROXY_USER}\t{PROXY_USER}\t{PROXY_USER}\t{PROXY_USER}\n" in status
    assert "CapEff:\t0000000000000000\n" in status
    assert "NoNewPrivs:\t1\n" in status
    await bench.executor.stop(handle, 0)
    await bench.executor.remove(handle)
    await until(lambda: proxies() == [])


async def test_a_proxy_whose_container_never_starts_ends_too(bench: Bench) -> None:
    start_proxy(EgressOrder(None, 0), bench.root).close()

    await until(lambda: proxies() == [])
    assert read_use(bench.root) in {None, EgressUse()}


async def test_nobody_takes_the_listener_then_the_job_does_not_run(bench: Bench) -> None:
    """A proxy that is gone is no reason to run a job without the way out that it was promised."""
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(Exception, match=r"way out|no way"):
        await bench.start("sleep", "600", proxy=ours)
