"""exec, ssh, port-forward: into a running job."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from torg.cli.session import JOB, Session, command, resolve
from torg_protocol.errors import Conflict, Invalid, Unavailable
from torg_protocol.states import JobState

if TYPE_CHECKING:
    import asyncssh

    from torg.tunnel import PortPair

_READ_BYTES = 32 << 10
TASK = click.option("--task", metavar="NAME", help="Of a job of several tasks: which one.")


@click.command(name="exec", context_settings={"ignore_unknown_options": True})
@JOB
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND...")
@TASK
@click.option("-i", "--stdin", "with_input", is_flag=True, help="Pass standard input on.")
@click.option(
    "-t", "--tty", "with_terminal", is_flag=True, help="In a terminal of the container; keys go there, Ctrl-C too."
)
@command
async def exec(  # noqa: A001 - the command's name
    session: Session,
    job_id: str,
    program: tuple[str, ...],
    task: str | None,
    with_input: bool,
    with_terminal: bool,
) -> None:
    """Run a command in a running job's container; its exit code becomes this command's.

    It has the job's own user, limits and files, and ends with the job.
    """
    session.passes_exit_code()
    line = "exec " + shlex.join(program)  # in the shell's place: signals are the program's alone
    # In a terminal of its own the keys go to the program, Ctrl-C among them: without them nothing here could end it.
    with_input = with_input or (with_terminal and sys.stdin.isatty())
    sys.exit(await _run_inside(session, job_id, task, line, with_input=with_input, with_terminal=with_terminal))


@click.command()
@JOB
@TASK
@command
async def ssh(session: Session, job_id: str, task: str | None) -> None:
    """A shell in a running job's container."""
    session.passes_exit_code()
    is_terminal = sys.stdin.isatty()
    sys.exit(await _run_inside(session, job_id, task, None, with_input=True, with_terminal=is_terminal))


@click.command(name="port-forward")
@JOB
@click.argument("ports", nargs=-1, metavar="[PORT[:LOCAL]]...")
@TASK
@command
async def port_forward(session: Session, job_id: str, ports: tuple[str, ...], task: str | None) -> None:
    """Reach ports of a running job at this computer's 127.0.0.1, until Ctrl-C or the job's end.

    PORT is the job's, LOCAL this computer's (default: the same; 0: any that is free). Without PORT: all that its job file declares.
    """
    from torg.tunnel import PortForwarding

    pairs = [_pair(text) for text in ports]
    async with session.client() as client:
        job_id = await resolve(client, job_id)
        job = await client.job(job_id)
        if job.state is not JobState.LEASED:
            raise Conflict(
                f"the job does not run now (it is {job.state})",
                code="job_not_running",
                field="job",
                value=job_id,
                hint="ports can be reached while its container runs: torg show " + job_id,
            )
        if not pairs:
            declared = [port.port for owner, port in job.spec.declared_ports if task in {None, owner}]
            pairs = _declared(job_id, list(dict.fromkeys(declared)))
        forwarding = PortForwarding(client, job_id, session.hint, task)
        try:
            found = await forwarding.listen(pairs)
            lines = [f"127.0.0.1:{pair.local} is port {pair.remote} of {job_id}" for pair in found]
            session.show({"ports": [{"port": pair.remote, "local": pair.local} for pair in found]}, "\n".join(lines))
            sys.stdout.flush()
            await forwarding.run()
        finally:
            forwarding.close()


def _pair(text: str) -> PortPair:
    from torg.tunnel import PortPair

    remote, _, local = text.partition(":")
    try:
        pair = PortPair(int(remote), int(local) if local else int(remote))
    except ValueError:
        pair = PortPair(0, 0)
    if not (1 <= pair.remote <= 65535 and 0 <= pair.local <= 65535):
        raise Invalid("not a port", code="port_invalid", field="port", value=text, hint="write 8888, or 8888:9999")
    return pair


def _declared(job_id: str, ports: list[int]) -> list[PortPair]:
    from torg.tunnel import PortPair

    if not ports:
        raise Invalid(
            "the job declares no ports",
            code="port_missing",
            field="port",
            value=job_id,
            hint=f"name one: torg port-forward {job_id} 8888   (or write `ports:` in the job file)",
        )
    return [PortPair(port, port) for port in ports]


async def _run_inside(
    session: Session, job_id: str, task: str | None, line: str | None, *, with_input: bool, with_terminal: bool
) -> int:
    from torg.tunnel import open_tunnel

    async with session.client() as client:
        job_id = await resolve(client, job_id)
        async with open_tunnel(client, job_id, task) as tunnel:
            terminal = (os.environ.get("TERM", "xterm"), *_terminal_size()) if with_terminal else None
            process = await tunnel.start(line, terminal=terminal)
            with _raw_terminal() if with_terminal else contextlib.nullcontext(), _passing_on(process, with_terminal):
                return await _carry(process, with_input=with_input)


async def _carry(process: asyncssh.SSHClientProcess[bytes], *, with_input: bool) -> int:
    """Its streams are ours; returns its exit code. Raises Unavailable `tunnel_broken` when it ends without one."""
    outputs = [
        asyncio.create_task(_copy_out(process.stdout, sys.stdout.fileno())),
        asyncio.create_task(_copy_out(process.stderr, sys.stderr.fileno())),
    ]
    listening = asyncio.create_task(_copy_in(process.stdin)) if with_input else None
    if listening is None:
        process.stdin.write_eof()
    try:
        await asyncio.gather(*outputs)
        await process.wait_closed()
    finally:
        for task in (*outputs, *([listening] if listening else [])):
            task.cancel()
        await asyncio.gather(*outputs, *([listening] if listening else []), return_exceptions=True)
    if process.returncode is None:
        raise Unavailable(
            "the connection ended before the command did",
            code="tunnel_broken",
            hint="the job may have ended (torg show), or its node has no connection just now",
        )
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


async def _copy_out(reader: asyncssh.SSHReader[bytes], descriptor: int) -> None:
    while data := await reader.read(_READ_BYTES):
        await asyncio.to_thread(_write_all, descriptor, data)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


async def _copy_in(writer: asyncssh.SSHWriter[bytes]) -> None:
    """Our standard input, whatever it is: a terminal, a pipe, or a file, which no event loop can wait for."""
    descriptor = sys.stdin.fileno()
    while True:
        with contextlib.suppress(PermissionError):  # a plain file is always ready
            await _readable(descriptor)
        data = os.read(descriptor, _READ_BYTES)
        if not data:
            writer.write_eof()
            return
        writer.write(data)
        await writer.drain()


async def _readable(descriptor: int) -> None:
    """One notice for one wait: a second one would have us read, and block, where nothing is."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()

    def notice() -> None:
        loop.remove_reader(descriptor)
        ready.set()

    loop.add_reader(descriptor, notice)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Keys go to the other side as they are typed, Ctrl-C too. What the terminal was like comes back, whatever happens."""
    descriptor = sys.stdin.fileno()
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _passing_on(process: asyncssh.SSHClientProcess[bytes], with_terminal: bool) -> Iterator[None]:
    """Window sizes, and without a terminal Ctrl-C: a second one ends us instead."""
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        process.send_signal("INT")

    if with_terminal:
        loop.add_signal_handler(signal.SIGWINCH, lambda: process.change_terminal_size(*_terminal_size()))
    else:
        loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH if with_terminal else signal.SIGINT)


def _terminal_size() -> tuple[int, int]:
    """Columns and rows."""
    for stream in (sys.stdout, sys.stdin, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            size = os.get_terminal_size(stream.fileno())
            return size.columns, size.lines
    return 80, 24
