"""Health checks of docker-compose. There a check is a command in the container; here a port is asked from outside of the task's program. A
command that only asks an address of the container itself (curl, wget) says the same thing, and is translated; any other is not run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from torg.importers.assembly import Container
from torg.importers.reading import Part

_ASKS = re.compile(
    r"\b(?:curl|wget)\b.*?\bhttp://(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(?::([0-9]{1,5}))?(/[^\s'\"|;&]*)?"
)
_NO_SHORTER_S = 1
_PACE = ("interval", "timeout", "retries", "start_period", "start_interval")


def read_health(part: Part, container: Container) -> None:
    """A port with a GET where the check is one; else what is lost of it is told."""
    if not part.has("healthcheck"):
        part.raw("healthcheck")
        return
    check = part.part("healthcheck")
    test, disabled = check.raw("test"), check.flag("disable")
    is_off = disabled or test in (None, "NONE", ["NONE"])
    asked = None if is_off else _ASKS.search(_line(test))
    if asked is not None:
        port, path = int(asked[1] or 80), asked[2] or "/"
        health: dict[str, Any] = {"http": path}
        if (every := _seconds(check.raw("interval"))) is not None:
            health["every"] = f"{max(every, _NO_SHORTER_S)}s"
        _give(container, port, health, check.at("test"))
        check.remark(
            "a port is asked again until it answers, and has one pause between two questions",
            "retries",
            "start_period",
            "start_interval",
            "timeout",
        )
    elif not is_off:
        check.remark("no command is run to check health: a port is asked for a connection", "test")
        check.remark("of a check that is not run", *_PACE)
    for key in _PACE:
        check.raw(key)
    check.finish()


def wait_until_healthy(container: Container, known: Mapping[str, Container], part: Part) -> None:
    """`service_healthy` becomes `until: ready` where the other service has a port that can be ready."""
    for item in container.depends_on:
        other = known.get(item["task"])
        if item["until"] == "ready" and other is not None and not other.ports:
            item["until"] = "started"
            part.reading.drops.lose(
                f"{container.path}.depends_on.{item['task']}.condition",
                "service_healthy",
                "the other service has no port that could be asked; it starts once the other one runs, healthy or not",
            )


def _line(test: Any) -> str:
    if isinstance(test, Sequence) and not isinstance(test, str):
        words = [str(word) for word in test]
        return words[1] if words[:1] == ["CMD-SHELL"] and len(words) == 2 else shlex.join(words)
    return str(test)


def _give(container: Container, number: int, health: dict[str, Any], path: str) -> None:
    """To the port if it is there; else the port comes with it: within the job it is reached without being published."""
    for place, (port, where) in enumerate(container.ports):
        if port["port"] == number:
            container.ports[place] = ({**port, "health": health}, where)
            return
    container.ports.append(({"port": number, "health": health}, path))


def _seconds(value: Any) -> int | None:
    """Of Go's durations, as compose has them: 1m30s. None: the node's own pause."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:\d+ms)?", str(value or ""))
    if found is None or not any(found.groups()):
        return None
    hours, minutes, seconds = (float(group or 0) for group in found.groups())
    return min(int(hours * 3600 + minutes * 60 + seconds), 3600)
