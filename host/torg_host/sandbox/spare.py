"""A shim that is started before it is needed, so that a container need not wait for an interpreter and its imports.

It waits on a socket for what a shim is told, and ends when the other end closes: it does not outlive whoever keeps it. Taken, it is a shim like any other.
"""

# ruff: noqa: PTH123 - the waiting shim imports this, see `shim`
from __future__ import annotations

import json
import os
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from typing import NoReturn

WAITING, TAKEN = "torg-spare", "torg-shim"  # as `ps` names it
_MAX_MESSAGE_BYTES = 8192
_FILES = 3


class Spares:
    """Keeps one. Safe from several threads: whoever comes second starts a shim of his own. `close` it."""

    def __init__(self, start: Callable[[int], subprocess.Popen[bytes]]) -> None:
        """`start` starts a waiting shim that inherits a socket's descriptor."""
        import threading

        self._start, self._lock, self._is_closed = start, threading.Lock(), False
        self._spare: tuple[subprocess.Popen[bytes], socket.socket] | None = None

    def fill(self) -> None:
        """Safe to repeat. Blocks for as long as a fork takes."""
        with self._lock:
            if self._spare is not None or self._is_closed:
                return
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    self._spare = self._start(theirs.fileno()), ours
                except BaseException:
                    ours.close()
                    raise

    def take(self, state_dir: str, files: list[int]) -> bool:
        """Makes the waiting shim that container's. False: there is none, or it has died; nothing was started then. `files` are the three
        descriptors that a shim is told, -1 for one that is not there."""
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is None:
            return False
        process, ours = spare
        with ours:
            there = [file for file in files if file >= 0]
            told = {"state_dir": state_dir, "there": [file >= 0 for file in files]}
            try:
                socket.send_fds(ours, [json.dumps(told).encode()], there)
                process.wait()  # the one that became the shim belongs to nobody
            except OSError:
                process.kill()
                process.wait()
                return False
        return process.returncode == 0

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            spare, self._spare = self._spare, None
        if spare is not None:
            process, ours = spare
            ours.close()
            process.wait()


def wait_and_become(arguments: list[str], main: Callable[[list[str]], None]) -> None:
    """In the waiting process: its first argument is the socket's descriptor. What follows names its keeper, for whoever reads `ps`."""
    _call_oneself(WAITING)
    channel = socket.socket(fileno=int(arguments[0]))
    data, received, _, _ = socket.recv_fds(channel, _MAX_MESSAGE_BYTES, _FILES)
    if not data:
        _leave()
    told = json.loads(data)
    channel.close()
    files = iter(received)
    numbers = [str(next(files)) if there else "-1" for there in told["there"]]
    log = os.open(f"{told['state_dir']}/shim.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    _call_oneself(TAKEN)
    main([told["state_dir"], *numbers])


def _call_oneself(name: str) -> None:
    with open("/proc/self/comm", "w") as file:
        file.write(name)


def _leave() -> NoReturn:
    sys.stdout.flush()
    os._exit(0)
