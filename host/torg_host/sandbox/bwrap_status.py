"""What bubblewrap says about itself: JSON lines on its status descriptor, and its last words on stderr."""

from __future__ import annotations

import json
import os

NOT_FOUND_CODE, NOT_EXECUTABLE_CODE = 127, 126  # what shells answer


class BwrapStatus:
    """`read` takes what is there without waiting. An exit code is only said when the program had been reached."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._said = b""

    def read(self) -> None:
        try:
            while data := os.read(self._descriptor, 4096):
                self._said += data
        except BlockingIOError:
            pass

    def child_pid(self) -> int | None:
        """The container's init, as the host numbers it."""
        return self._value("child-pid")

    def exit_code(self) -> int | None:
        return self._value("exit-code")

    def _value(self, key: str) -> int | None:
        for line in self._said.splitlines():
            try:
                if (number := json.loads(line).get(key)) is not None:
                    return int(number)
            except ValueError:
                continue  # a line not yet complete
        return None


def command_failure(stderr: bytes) -> int | None:
    """The code for a command that could not be executed: the job's own mistake, answered as a shell does. None: not that."""
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.startswith("bwrap: execvp ")]
    if not lines:
        return None
    return NOT_FOUND_CODE if "No such file" in lines[-1] else NOT_EXECUTABLE_CODE
