"""Further programs in a running container, and connections to its ports: with real containers of both executors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.executors import MIB, Bench, ExecutorKind, isolating_kinds, left_behind, python
from tests.support.job_logs import read_until
from tests.support.waiting import until
from torg_node.executors.errors import ExecutorError
from torg_node.executors.port import Handle, InsideCommand, InsideProgram

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="enters other users' namespaces")]
on_isolating_kinds = pytest.mark.parametrize("kind", isolating_kinds())
FOREVER = python("import time; time.sleep(600)")


@pytest.fixture
async def bench(kind: ExecutorKind, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with kind.connect(request, tmp_path) as executor:
        bench = Bench(kind, executor, tmp_path)
        yield bench
        await executor.reap(frozenset())
    await until(lambda: left_behind(tmp_path, bench.token) == [])


@contextlib.asynccontextmanager
async def _inside(
    bench: Bench, handle: Handle, *command: str, terminal: tuple[int, int] | None = None
) -> AsyncIterator[InsideProgram]:
    async with asyncio.timeout(180):
        program = await bench.executor.run_inside(handle, InsideCommand(command, {"EXTRA": "more"}, terminal))
        try:
            yield program
        finally:
            await program.close()


async def _output(program: InsideProgram) -> dict[str, str]:
    said = {"stdout": b"", "stderr": b""}
    while (piece := await program.read()) is not None:
        said[piece[0]] += piece[1]
    return {stream: data.decode().replace("\r\n", "\n") for stream, data in said.items()}


@on_isolating_kinds
async def test_a_program_has_the_rights_of_the_job_and_no_more(bench: Bench) -> None:
    look = (
        "import os; status = dict(line.split(':', 1) for line in open('/proc/self/status'));"
        "print(os.getuid(), os.getgid(), os.getcwd(), *(status[key].strip() for key in"
        " ('CapPrm', 'CapEff', 'CapBnd', 'CapInh', 'NoNewPrivs', 'Seccomp')), open('/proc/self/oom_score_adj').read().strip(),"
        " *(os.readlink(f'/proc/self/ns/{name}') for name in ('mnt', 'net', 'pid', 'ipc', 'uts', 'user', 'cgroup')))"
    )
    handle = await bench.start(*python(f"{look}; import time; time.sleep(600)"))
    own = await read_until(bench.executor, handle, "\n")
    async with _inside(bench, handle, *python(look)) as program:
        assert (await _output(program), await program.wait()) == ({"stdout": own, "stderr": ""}, 0)


@on_isolating_kinds
async def test_streams_exit_codes_and_environment_pass_through(bench: Bench) -> None:
    handle = await bench.start(*FOREVER)
    script = 'read line; echo "$line $EXTRA $PYTHONUNBUFFERED"; cat; echo broken >&2; exit 7'
    async with _inside(bench, handle, "sh", "-c", script) as program:
        await program.write(b"hello\nrest")
        await program.write_eof()
        assert await _output(program) == {"stdout": "hello more 1\nrest", "stderr": "broken\n"}
        assert await program.wait() == 7
    async with _inside(bench, handle, "sh", "-c", "kill -9 $$") as program:
        assert (await _output(program), await program.wait()) == ({"stdout": "", "stderr": ""}, 137)
    async with _inside(bench, handle, "no-such-program") as program:
        await _output(program)
        assert await program.wait() in {126, 127}  # engines before 28 say 126


@on_isolating_kinds
async def test_a_terminal_has_a_size_and_hears_ctrl_c(bench: Bench) -> None:
    handle = await bench.start(*FOREVER)
    # An engine's program may run for a moment before the engine has given its terminal the size.
    sized = "while test \"$(stty size)\" = '0 0'; do sleep 0.05; done; stty size"
    script = f"trap 'stty size; exit 5' INT; test -t 0 && {sized}; echo ready; while :; do sleep 0.05; done"
    async with _inside(bench, handle, "sh", "-c", script, terminal=(33, 99)) as program:
        said = b""
        while b"ready" not in said:
            piece = await program.read()
            assert piece is not None
            said += piece[1]
        await program.resize(44, 111)
        await program.write(b"\x03")
        rest = await _output(program)
        assert await program.wait() == 5
    assert said.startswith(b"33 99")
    assert "44 111" in rest["stdout"]


@on_isolating_kinds
async def test_what_nobody_listens_to_any_more_ends(bench: Bench) -> None:
    handle = await bench.start(*FOREVER)
    for terminal in (None, (24, 80)):
        async with _inside(bench, handle, "sh", "-c", "trap '' HUP; sleep 5000 & wait", terminal=terminal):
            pass
    async with _inside(bench, handle, "sh", "-c", "exec ps ax -o args") as program:
        await program.write_eof()
        # Only the shell is owed: what it had put in the background may live until the job ends, in the job's own limits.
        assert "trap" not in (await _output(program))["stdout"].replace("exec ps", "")


@on_isolating_kinds
async def test_its_memory_is_the_jobs(bench: Bench) -> None:
    handle = await bench.start(*FOREVER)
    hog = python(f"x = bytearray({400 * MIB}); x[::4096] = b'x' * len(x[::4096])")
    async with _inside(bench, handle, *hog) as program:
        await _output(program)
        assert await program.wait() == 128 + signal.SIGKILL


@on_isolating_kinds
async def test_a_port_in_the_container_answers_and_a_closed_one_is_named(bench: Bench) -> None:
    serve = (
        "import socket; s = socket.create_server(('127.0.0.1', 8888)); print('up', flush=True)\n"
        "while True:\n c, _ = s.accept(); c.sendall(c.recv(100).upper()); c.close()"
    )
    handle = await bench.start(*python(serve))
    await read_until(bench.executor, handle, "up\n")
    reader, writer = await asyncio.open_connection(sock=await bench.executor.dial(handle, 8888))
    writer.write(b"ping")
    assert await reader.read() == b"PING"
    writer.close()
    with pytest.raises(ExecutorError) as closed:
        await bench.executor.dial(handle, 8889)
    assert closed.value.code == "port_closed"


@on_isolating_kinds
async def test_a_container_that_has_ended_cannot_be_entered(bench: Bench) -> None:
    ended = await bench.run("true")
    with pytest.raises(ExecutorError) as command:
        await bench.executor.run_inside(ended.handle, InsideCommand(("true",)))
    with pytest.raises(ExecutorError) as port:
        await bench.executor.dial(ended.handle, 8888)
    assert (command.value.code, port.value.code) == ("not_running", "not_running")
