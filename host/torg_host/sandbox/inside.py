"""Into a running container from outside: a further program in it (`start_inside`), or a socket in its network (`connect_inside`).

Both need the container's program to be running. `enter.py` does the entering, in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

from torg_host.network_thread import in_network_of
from torg_host.sandbox import processes
from torg_host.sandbox.errors import SandboxUnavailable
from torg_host.sandbox.launch import PACKAGE_PARENT
from torg_protocol.errors import Conflict

ENTER = "import sys; sys.path.insert(0, sys.argv[1]); from torg_host.sandbox.enter import main; main(sys.argv[2:])"
READ_BYTES = 64 << 10
STARTS_WITHIN_S = 60.0


class InsideProcess:
    """A program that was started in a container. `stdout`, `stderr` (None with a terminal) and `stdin` are its streams, or its terminal's."""

    def __init__(self, process: asyncio.subprocess.Process, master: int | None) -> None:
        self._process = process
        self._master = master
        self.stdout: asyncio.StreamReader
        self.stderr: asyncio.StreamReader | None = process.stderr
        self.stdin: asyncio.StreamWriter
        self._transports: list[asyncio.BaseTransport] = []

    async def open_streams(self) -> None:
        if self._master is None:
            if self._process.stdout is None or self._process.stdin is None:
                raise RuntimeError("started without pipes")
            self.stdout, self.stdin = self._process.stdout, self._process.stdin
            return
        loop = asyncio.get_running_loop()
        self.stdout, self.stderr = asyncio.StreamReader(), None
        reading = os.fdopen(os.dup(self._master), "rb", buffering=0)
        protocol = asyncio.StreamReaderProtocol(self.stdout)
        self._transports.append((await loop.connect_read_pipe(lambda: protocol, reading))[0])
        writing = os.fdopen(os.dup(self._master), "wb", buffering=0)
        transport, mixin = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, writing)
        self._transports.append(transport)
        self.stdin = asyncio.StreamWriter(transport, mixin, None, loop)

    def resize(self, rows: int, columns: int) -> None:
        if self._master is not None:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def signal(self, number: int) -> None:
        """To its whole session. Nothing when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def wait(self) -> int:
        """Its exit code; 128 + n when signal n ended it."""
        code = await self._process.wait()
        return 128 - code if code < 0 else code

    async def close(self) -> None:
        """Ends it if it still runs: hang-up first, as when a terminal is closed, then SIGKILL. Safe to repeat."""
        for transport in self._transports:
            transport.close()
        if self._master is not None:
            os.close(self._master)
            self._master = None
        elif not self.stdin.is_closing():
            self.stdin.close()
        if self._process.returncode is None:
            self.signal(signal.SIGHUP)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._process.wait()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()  # what it runs dies with it
            await self._process.wait()


async def start_inside(
    state_dir: Path, command: Sequence[str], env: Mapping[str, str], terminal: tuple[int, int] | None
) -> InsideProcess:
    """`terminal`: rows and columns, or None for pipes. Raises Conflict `not_running`, SandboxUnavailable."""
    if os.geteuid() != 0 and os.access(os.path.realpath(sys.executable), os.W_OK):
        # A job of the same user could then write to it through /proc while it becomes the job's program.
        raise SandboxUnavailable(
            "this node's Python is writable by the user that runs jobs: no program can be started in a running container",
            code="inside_unsafe",
            hint="run the node with a Python that belongs to root, for example Debian's",
        )
    pid = main_pid(state_dir)
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = await _start_helper(state_dir, pid, theirs.fileno(), with_pipes=terminal is None)
        try:
            request = {"command": list(command), "env": dict(env), "terminal": terminal}
            ours.sendall(json.dumps(request).encode() + b"\n")
            master = await asyncio.to_thread(_receive_master, ours) if terminal is not None else None
        except BaseException:
            process.kill()
            raise
    finally:
        ours.close()
    if terminal is not None and master is None:
        await process.wait()
        raise SandboxUnavailable("no terminal could be made in the container", code="inside_failed")
    started = InsideProcess(process, master)
    await started.open_streams()
    return started


async def _start_helper(state_dir: Path, pid: int, control: int, *, with_pipes: bool) -> asyncio.subprocess.Process:
    pipes = asyncio.subprocess.PIPE if with_pipes else asyncio.subprocess.DEVNULL
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", ENTER, PACKAGE_PARENT, str(state_dir), str(pid), str(control)),
        stdin=pipes,
        stdout=pipes,
        stderr=pipes
        if with_pipes
        else None,  # what cannot be said on a terminal that is not there yet goes to our own log
        cwd="/",
        env={},
        start_new_session=True,
        pass_fds=[control],
    )


def _receive_master(control: socket.socket) -> int | None:
    """None when the program could not be started: its exit code says so."""
    control.settimeout(STARTS_WITHIN_S)
    try:
        _, descriptors, _, _ = socket.recv_fds(control, 16, 1)
    except OSError:
        return None
    return descriptors[0] if descriptors else None


def main_pid(state_dir: Path) -> int:
    """Of the container's program. Raises Conflict `not_running` when it has ended, or was never started."""
    try:
        program = json.loads((state_dir / "program.json").read_text())
    except FileNotFoundError:
        program = None
    if program is None or program["boot_id"] != processes.boot_id():
        raise _not_running(state_dir)
    if processes.start_time(program["pid"]) != program["start_time"]:
        raise _not_running(state_dir)
    return int(program["pid"])


def _not_running(state_dir: Path) -> Conflict:
    return Conflict("the container does not run", code="not_running", field="name", value=state_dir.name)


async def connect_inside(pid: int, port: int) -> socket.socket:
    """Connected to 127.0.0.1:`port` in the network of process `pid`, non-blocking. Raises OSError, ConnectionRefusedError among them,
    and SandboxUnavailable without root: another user may not enter a network from within a program of several threads."""
    if os.geteuid() != 0:
        raise SandboxUnavailable(
            "ports of a job are reached by a node that runs as root only",
            code="inside_needs_root",
            hint="run torg-node as root",
        )
    made = await asyncio.to_thread(in_network_of, pid, socket.socket)
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
    except BaseException:
        made.close()
        raise
    return made


__all__ = ["InsideProcess", "connect_inside", "main_pid", "start_inside"]
