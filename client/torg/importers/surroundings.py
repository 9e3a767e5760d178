"""What is around a file on its author's machine, and which docker-compose reads along: variables of the shell, `.env`, other files of variables.

Only what the file names is looked up, and every value that is taken is told by its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

_LONGEST_FILE = 64 << 10
_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*(?:[=:]\s*(.*?))?\s*")
_QUOTED = re.compile(r"""(['"])(.*?)\1\s*(?:\s#.*)?""")


@dataclass(frozen=True)
class Surroundings:
    """`folder`: of the file; None: there is no file, and nothing around it."""

    folder: Path | None = None
    shell: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _dotenv(self) -> Mapping[str, str | None]:
        try:
            return self.file_of_variables(".env")
        except OSError:
            return {}

    def variable(self, name: str) -> str | None:
        """The shell's value goes before that of `.env`."""
        return self.shell.get(name, self._dotenv.get(name))

    def file_of_variables(self, name: str) -> dict[str, str | None]:
        """NAME=VALUE in each line; None: a name without a value. Raises OSError (also for what is no text, or too long)."""
        if self.folder is None:
            raise FileNotFoundError(name)
        try:
            with (self.folder / Path(name).expanduser()).open("rb") as file:
                read = file.read(_LONGEST_FILE + 1)
        except (RuntimeError, ValueError) as error:  # no such home; a null byte
            raise OSError(str(error)) from None
        if len(read) > _LONGEST_FILE:
            raise OSError("it is too long for a file of variables")
        try:
            lines = read.decode("utf-8").splitlines()
        except UnicodeDecodeError:
            raise OSError("it is not text") from None
        matches = (_LINE.fullmatch(line) for line in lines)
        return {match[1]: _plain(match[2]) for match in matches if match is not None}


def around(folder: Path) -> Surroundings:
    return Surroundings(folder, os.environ)


def _plain(written: str | None) -> str | None:
    if written is None:
        return None
    quoted = _QUOTED.fullmatch(written)
    if quoted is None:
        return re.sub(r"\s+#.*", "", written)
    return quoted[2].replace("\\n", "\n") if quoted[1] == '"' else quoted[2]
