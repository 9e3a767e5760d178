"""Into a running job with real processes: a client and a node that cannot reach each other, and a gateway that both can."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from scripts.market_processes import script
from tests.support.searching import matching
from tests.support.small_market import SmallMarket, submit, submit_raw
from torg.client import AsyncClient
from torg_protocol.api import JobView
from torg_protocol.errors import Conflict
from torg_protocol.states import JobState, LeaseState
from torg_protocol.tasks import TaskState

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.sandbox,
    pytest.mark.root,
    pytest.mark.timeout(900),
]
SERVER = (
    "import socket; s = socket.create_server(('127.0.0.1', 8888)); print('up', flush=True)\n"
    "while True:\n c, _ = s.accept(); c.sendall(c.recv(100).upper()); c.close()"
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def job(client: AsyncClient) -> AsyncIterator[JobView]:
    """One job for all tests that leave it as it is."""
    ports = [{"port": 8888, "name": "echo", "health": {"tcp": True, "every": "1s"}}, {"port": 9}]
    async with serving(client, ports=ports, limits={"max_duration": "10m"}) as job:
        yield job


@contextlib.asynccontextmanager
async def serving(client: AsyncClient, **fields: object) -> AsyncIterator[JobView]:
    """A job that answers on port 8888; ended afterwards."""
    job = await submit(client, ["python", "-c", SERVER], **fields)
    try:
        async with asyncio.timeout(150):
            while "up" not in await client.logs(job.job_id):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield await client.job(job.job_id)
    finally:
        with contextlib.suppress(Conflict):
            await client.cancel(job.job_id)
        await client.wait(job.job_id)


async def torg(client: AsyncClient, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    process = await _torg_process(client, *arguments)
    async with asyncio.timeout(150):
        out, err = await process.communicate(stdin)
    return process.returncode or 0, out.decode(), err.decode()


async def _torg_process(client: AsyncClient, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        script("torg"),
        *("--home", str(client.config.home), "--marketplace", client.config.marketplace_url),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_exec_passes_streams_and_the_exit_code(client: AsyncClient, job: JobView) -> None:
    assert await torg(client, "exec", job.job_id, "--", "sh", "-c", "echo 'in here'; echo there >&2; exit 7") == (
        7,
        "in here\n",
        "there\n",
    )
    assert await torg(client, "exec", "-i", job.job_id, "--", "cat", stdin=b"hello\n" * 20_000) == (
        0,
        "hello\n" * 20_000,
        "",
    )
    code, _, said = await torg(client, "exec", job.job_id, "--", "no-such-program")
    assert (code, "no-such-program" in said) == (127, True)


async def test_a_port_is_ready_when_its_check_passes(client: AsyncClient, job: JobView) -> None:
    async with asyncio.timeout(150):
        async for event in client.follow(job.job_id):
            if event.kind == "ports" and event.data["ports"][0]["ready"] and event.data["ports"][1]["detail"]:
                break
    echo, closed = (await client.job(job.job_id)).leases[-1].ports
    assert (echo.port, echo.name, echo.ready, echo.detail) == (8888, "echo", True, "")
    assert (closed.port, closed.ready) == (9, False)
    assert "nobody listens on port 9" in closed.detail
    _, shown, _ = await torg(client, "show", job.job_id)
    assert "ports: echo 8888 ready, 9 not ready (nobody listens" in shown


async def test_a_stranger_finds_no_door(market: SmallMarket, job: JobView) -> None:
    async with market.client() as stranger:
        code, out, said = await torg(stranger, "exec", job.job_id, "--", "id")
    assert (code, out) == (125, "")
    assert "job_unknown" in said


async def test_a_shell_in_a_terminal_knows_its_size_hears_ctrl_c_and_ends_with_its_code(
    client: AsyncClient, job: JobView
) -> None:
    terminal, far = pty.openpty()
    os.set_blocking(terminal, False)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    process = await asyncio.create_subprocess_exec(
        script("torg"),
        *("--home", str(client.config.home), "--marketplace", client.config.marketplace_url, "ssh", job.job_id),
        stdin=far,
        stdout=far,
        stderr=far,
        start_new_session=True,
    )
    os.close(far)
    said = Said(terminal)
    try:
        await said.until("$")
        os.write(terminal, b"tty; stty size; sleep 5000\r")
        await said.until("33 99\r\n")
        os.write(terminal, b"\x03")
        os.write(terminal, b"echo interrupted with $?\r")
        await said.until("interrupted with 130\r\n")
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 111, 0, 0))
        process.send_signal(signal.SIGWINCH)
        os.write(terminal, b"while ! stty size | grep '44 111'; do sleep 0.05; done; exit 9\r")
        async with asyncio.timeout(150):
            assert await process.wait() == 9
        assert "/dev/pts/" in said.text
    finally:
        os.close(terminal)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_program_in_a_terminal_hears_the_keys_without_being_asked_for_input(
    client: AsyncClient, job: JobView
) -> None:
    terminal, far = pty.openpty()
    os.set_blocking(terminal, False)
    process = await asyncio.create_subprocess_exec(
        script("torg"),
        *("--home", str(client.config.home), "--marketplace", client.config.marketplace_url),
        *("exec", "-t", job.job_id, "--", "sh", "-c", "echo here; exec sleep 5000"),
        stdin=far,
        stdout=far,
        stderr=far,
        start_new_session=True,
    )
    os.close(far)
    try:
        await Said(terminal).until("here")
        os.write(terminal, b"\x03")
        async with asyncio.timeout(150):
            assert await process.wait() == 130
    finally:
        os.close(terminal)
        if process.returncode is None:
            process.kill()
            await process.wait()


class Said:
    """What came out of a terminal until now."""

    def __init__(self, terminal: int) -> None:
        self._terminal, self.text = terminal, ""

    async def until(self, wanted: str) -> None:
        try:
            async with asyncio.timeout(150):
                while wanted not in self.text:
                    with contextlib.suppress(BlockingIOError):
                        self.text += os.read(self._terminal, 4096).decode(errors="replace")
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{wanted!r} is not in {self.text!r}") from None


async def test_ctrl_c_reaches_a_command_without_a_terminal(client: AsyncClient, job: JobView) -> None:
    script_text = "trap 'echo stopped; exit 4' INT; echo ready; while :; do sleep 0.05; done"
    process = await _torg_process(client, "exec", job.job_id, "--", "sh", "-c", script_text)
    assert process.stdout is not None
    async with asyncio.timeout(150):
        assert await process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert await process.stdout.read() == b"stopped\n"
        assert await process.wait() == 4


@contextlib.asynccontextmanager
async def forwarding(
    client: AsyncClient, job_id: str, *ports: str
) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
    """The local port of the first pair."""
    process = await _torg_process(client, "--json", "port-forward", job_id, *ports)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(150):
            line = await process.stdout.readline()
        yield json.loads(line)["ports"][0]["local"], process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        async with asyncio.timeout(150):
            await process.communicate()


async def ask(port: int, text: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text)
    async with asyncio.timeout(150):
        answer = await reader.read()
    writer.close()
    return answer


async def test_ports_are_forwarded_for_many_at_once_and_ctrl_c_ends_it(client: AsyncClient, job: JobView) -> None:
    async with forwarding(client, job.job_id, "8888:0") as (port, process):
        assert await asyncio.gather(*(ask(port, b"abc%d" % n) for n in range(20))) == [b"ABC%d" % n for n in range(20)]
    assert process.returncode == 130
    async with forwarding(client, job.job_id) as (port, _):
        assert (port, await ask(port, b"declared")) == (8888, b"DECLARED")
        code, _, said = await torg(client, "port-forward", job.job_id, "8888")
        assert (code, "port_taken" in said) == (1, True)
    async with forwarding(client, job.job_id, "9:0") as (port, _):
        assert await ask(port, b"nobody listens") == b""


def _commands_with(text: str) -> list[str]:
    found = []
    for path in matching(Path("/proc"), "[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in command and "torg" not in command:
                found.append(command)
    return found


async def test_the_tunnel_comes_back_after_the_marketplace_was_killed(
    market: SmallMarket, client: AsyncClient, job: JobView
) -> None:
    async with forwarding(client, job.job_id, "8888:0") as (port, _):
        assert await ask(port, b"before") == b"BEFORE"
        assert market.marketplace is not None
        await market.marketplace.kill()
        await market.start_marketplace()
        answer = b""
        async with asyncio.timeout(150):
            while answer != b"AFTER":  # a connection of the old tunnel ends empty
                answer = await ask(port, b"after")
        assert (await client.job(job.job_id)).leases[-1].state is LeaseState.RUNNING


async def test_nothing_is_left_when_the_job_ends(client: AsyncClient, job: JobView) -> None:
    """The last one of the shared job."""
    async with forwarding(client, job.job_id, "8888:0") as (port, forwarder):
        assert await ask(port, b"x") == b"X"
        sleeper = await _torg_process(client, "exec", job.job_id, "--", "sh", "-c", "echo $$ here; exec sleep 54321")
        assert sleeper.stdout is not None
        async with asyncio.timeout(150):
            await sleeper.stdout.readline()
            await client.cancel(job.job_id)
            assert (await client.wait(job.job_id)).state is JobState.CANCELLED
            _, said = await sleeper.communicate()
            assert (sleeper.returncode in {125, 137}, said) != (False, b"")
            assert await forwarder.wait() == 1
            while _commands_with("sleep 54321"):  # noqa: ASYNC110 - its last process goes a moment after its last word
                await asyncio.sleep(0.05)
        with pytest.raises(ConnectionRefusedError):
            await ask(port, b"x")
        code, _, said_after = await torg(client, "exec", job.job_id, "--", "id")
        assert (code, "job_not_running" in said_after) == (125, True)


async def test_tasks_serve_ports_of_their_own_and_each_is_reached_by_its_name(client: AsyncClient) -> None:
    """After the shared job, which had the node's only slot."""
    other = SERVER.replace("upper", "title")
    port = [{"port": 8888, "health": {"tcp": True, "every": "1s"}}]
    tasks = [
        {"name": "up", "command": ["python", "-c", SERVER], "ports": port},
        {"name": "title", "command": ["python", "-c", other], "ports": [*port, {"port": 9}]},
        {"name": "silent", "command": ["sleep", "600"], "depends_on": [{"task": "up", "until": "ready"}]},
    ]
    job = await submit_raw(
        client, {"tasks": tasks, "limits": {"max_duration": "10m"}, "resources": {"memory": "256MiB"}}
    )
    try:
        states = dict[tuple[str | None, int], bool]()
        async with asyncio.timeout(150):
            while not (states.get(("up", 8888)) and states.get(("title", 8888))):
                await asyncio.sleep(0.1)
                leases = (await client.job(job.job_id)).leases
                states = {(port.task, port.port): port.ready for port in leases[-1].ports} if leases else {}
        assert states == {("up", 8888): True, ("title", 8888): True, ("title", 9): False}

        async with asyncio.timeout(150):
            while {task.state for task in (await client.job(job.job_id)).leases[-1].tasks} != {TaskState.RUNNING}:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        for task, answer in (("up", b"ABC"), ("title", b"Abc")):
            async with forwarding(client, job.job_id, "8888:0", "--task", task) as (port_, _):
                assert await ask(port_, b"abc") == answer
        code, out, _ = await torg(client, "exec", job.job_id, "--task", "title", "--", "sh", "-c", "echo $TORG_TASK")
        assert (code, out) == (0, "title\n")
        code, _, said = await torg(client, "exec", job.job_id, "--", "id")
        assert (code, "--task up | title | silent" in said) == (126, True), said
        code, _, said = await torg(client, "exec", job.job_id, "--task", "none", "--", "id")
        assert (code, 'no task "none" runs now' in said) == (126, True), said
        async with forwarding(client, job.job_id, "9:0") as (port_, _):
            assert await ask(port_, b"x") == b""
    finally:
        await client.cancel(job.job_id)
        await client.wait(job.job_id)
