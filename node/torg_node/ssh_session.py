"""One SSH session: a program in the container, with its streams, its terminal, its signals and its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import asyncssh

from torg_node.executors.errors import ExecutorError
from torg_node.executors.port import Executor, Handle, InsideCommand, InsideProgram

_READ_BYTES = 64 << 10
CANNOT_START = 126
_LOOK_FOR_SIGNALS_S = 0.1
_SHELL = "command -v bash >/dev/null 2>&1 && exec bash -i; exec sh -i"
_PASSED_ON = ("LANG", "LC_", "TERM", "COLORTERM")


class ServedSession:
    def __init__(self, executor: Executor, handle: Handle, process: asyncssh.SSHServerProcess[bytes]) -> None:
        self._executor, self._handle, self._process = executor, handle, process
        self._program: InsideProgram | None = None

    async def run(self) -> None:
        """Until the program has ended and all that it said is passed on, or the client has gone; then nothing of it is left."""
        process = self._process
        try:
            self._program = await self._executor.run_inside(self._handle, _command(process))
        except ExecutorError as error:
            process.stderr.write(f"torg: {error.message}\n".encode())
            process.exit(CANNOT_START)
            return
        listening = asyncio.create_task(self._pass_on_input(self._program))
        try:
            await self._pass_on_output(self._program)
            process.exit(await self._program.wait())
        except (BrokenPipeError, ConnectionError):
            pass  # the client has gone
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await self.close()

    async def close(self) -> None:
        if self._program is not None:
            await self._program.close()

    async def _pass_on_output(self, program: InsideProgram) -> None:
        while (piece := await program.read()) is not None:
            stream, data = piece
            writer = self._process.stdout if stream == "stdout" else self._process.stderr
            writer.write(data)
            await writer.drain()

    async def _pass_on_input(self, program: InsideProgram) -> None:
        """Until the client has gone, which ends the program. After the end of its input signals still come."""
        is_open = True
        while True:
            try:
                data = await self._process.stdin.read(_READ_BYTES)
            except asyncssh.TerminalSizeChanged as change:
                await program.resize(change.height, change.width)
            except asyncssh.SignalReceived as received:
                with contextlib.suppress(KeyError):
                    await program.signal(signal.Signals[f"SIG{received.signal}"])
            except asyncssh.BreakReceived:
                await program.signal(signal.SIGINT)
            except (asyncssh.Error, OSError):
                break
            else:
                if data:
                    await program.write(data)
                elif is_open:
                    is_open = False
                    await program.write_eof()
                elif await self._is_closed_within(_LOOK_FOR_SIGNALS_S):  # at its end the library reads nothing at once
                    break
        await program.close()

    async def _is_closed_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.channel.wait_closed()
                return True
        return False


def _command(process: asyncssh.SSHServerProcess[bytes]) -> InsideCommand:
    """As `sshd` does: a command is the shell's to understand; without one it is a shell."""
    env = {name: text for name, text in process.env.items() if name.startswith(_PASSED_ON)}
    terminal = None
    if (kind := process.get_terminal_type()) is not None:
        columns, rows, *_ = process.get_terminal_size()
        terminal = (rows or 24, columns or 80)
        env["TERM"] = kind or "dumb"
    return InsideCommand(("sh", "-c", _SHELL if process.command is None else process.command), env, terminal)
