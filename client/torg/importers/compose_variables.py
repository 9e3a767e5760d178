"""Variables of docker-compose: `${NAME}` anywhere in the file, `environment`, and `env_file`."""

from __future__ import annotations

import re
from typing import Any

from torg.importers.reading import Part, Reading, pairs_of
from torg.importers.surroundings import Surroundings

_VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(:?[-?+])([^}]*))?\})")
_TAKEN = "its value is that of this shell, or of .env beside the file; it is open to the node"


def interpolated(value: Any, path: str, reading: Reading, surroundings: Surroundings) -> Any:
    """`$NAME` is the shell's, `${NAME:-default}` has a default and `$$` is a dollar; a variable that is not set and has no default is lost."""
    if isinstance(value, dict):
        return {
            key: interpolated(one, f"{path}.{key}" if path else str(key), reading, surroundings)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [interpolated(one, f"{path}.{number}", reading, surroundings) for number, one in enumerate(value)]
    if not isinstance(value, str) or "$" not in value:
        return value

    def replaced(match: re.Match[str]) -> str:
        dollar, plain, braced, operator, default = match.groups()
        if dollar:
            return "$"
        name = plain or braced
        found = surroundings.variable(name)
        if found == "" and (operator or "").startswith(":"):
            found = None  # as if it were not set
        if found is not None:
            reading.drops.remark(path, name, _TAKEN)
        if operator in {"+", ":+"}:
            return "" if found is None else str(default)
        if found is not None:
            return found
        if operator in {"-", ":-"}:
            return str(default)
        reading.drops.lose(
            path,
            match.group(),
            f"{name} comes from the shell of whoever submits, and is not set here: set it, or write it down",
        )
        return ""

    return _VARIABLE.sub(replaced, value)


def environment_of(part: Part, surroundings: Surroundings) -> dict[str, str]:
    """`environment` goes before `env_file`, of whose files the last one does."""
    out: dict[str, str] = {}
    for path, name, is_needed in _files(part):
        try:
            found = surroundings.file_of_variables(name)
        except OSError as error:
            if is_needed:
                part.reading.drops.lose(
                    path, name, f"a file of the author's machine, which cannot be read here: {error.strerror or error}"
                )
            continue
        values = {key: surroundings.variable(key) if value is None else value for key, value in found.items()}
        out |= {key: value for key, value in values.items() if value is not None}
        part.reading.drops.remark(path, name, "its variables are the job's; they are open to the node")
    return out | pairs_of(part, "environment", shell=surroundings.variable)


def _files(part: Part) -> list[tuple[str, str, bool]]:
    """Where each stands, its name, and whether it must be there."""
    value = part.raw("env_file")
    found = []
    for number, item in enumerate(value if isinstance(value, list) else [value] if value is not None else []):
        path = f"{part.at('env_file')}.{number}" if isinstance(value, list) else part.at("env_file")
        if isinstance(item, dict):
            long = Part(part.reading, item, path)
            found.append((path, long.text("path", needed=True) or "", long.flag("required") is not False))
            long.remark("files of variables are read as docker-compose reads them", "format")
            long.finish()
        elif isinstance(item, str):
            found.append((path, item, True))
        else:
            part.reading.wrong(path, "the name of a file is expected", item)
    return found
