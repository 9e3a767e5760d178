"""`torg-node update`: the next release beside the one that runs, tried, switched to by a link, and switched back from by itself.

    ~/torg/current -> release-20260312-101500        what the service starts: ~/torg/current/bin/torg-node
    ~/torg/release-20260312-101500                   a virtual environment each
    ~/torg/release-20260301-090000

An agent that is replaced leaves its leases running, so neither way costs any. Healthy is an agent that runs from the wanted release, has its
connection, and lives on for a while. Journal and ledger are the same for both: a release adds to their tables, the one before ignores that.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torg_host.sandbox.processes import start_time
from torg_node.journal import Journal
from torg_node.settings import Settings
from torg_protocol.errors import Conflict, Invalid, TorgError, Unavailable

Say = Callable[[str], None]
READY_FACT = "agent_ready"
PREVIOUS_FACT = "previous_release"
_PROGRAM = Path("bin/torg-node")
_UNIT = "torg-node"
_STEADY_S = 5.0
_BACK_WITHIN_S = 300.0  # a machine under load takes its time, and there is nothing else to go back to
_POLL_S = 0.2
_CHECK_WITHIN_S, _INSTALL_WITHIN_S, _RESTART_WITHIN_S = 600, 3_600, 120
_TAIL_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class Update:
    """`link`: what the agent is started through. `restart`: the command that starts it anew."""

    settings: Settings
    link: Path
    restart: tuple[str, ...]
    within_s: float = 120.0


def say_ready(journal: Journal) -> None:
    """By an agent that has its connection: which one it is, for whoever updates it."""
    journal.set_fact(READY_FACT, json.dumps({"pid": os.getpid(), "release": str(Path(sys.prefix).resolve())}))


def update(plan: Update, release: Path, say: Say) -> None:
    """Checks the release, switches, and waits until its agent is healthy; otherwise everything is as before. Raises Conflict
    `self_check_failed` (nothing was switched), `update_rolled_back`. Ctrl-C goes back too."""
    old, new = plan.link.resolve(), release.resolve()
    if old == new:
        raise Conflict("that is the release that runs", code="release_is_current", field="release", value=str(release))
    check(plan.settings, new)
    say(f"{new.name} can take over; switching")
    try:
        _switch(plan, new)
        _await_health(plan, new)
    except BaseException as error:
        say(f"{new.name} is not healthy ({str(error) or type(error).__name__}): going back to {old.name}")
        _go_back(plan, old, error)
        raise
    with contextlib.closing(Journal(plan.settings.journal_path)) as journal:
        journal.set_fact(PREVIOUS_FACT, str(old))
    say(f"{new.name} runs; back to {old.name} by: torg-node update --back")


def check(settings: Settings, release: Path) -> None:
    """Raises Invalid `release_invalid`, Conflict `self_check_failed`."""
    program = release / _PROGRAM
    if not os.access(program, os.X_OK):
        raise Invalid(
            "there is no torg-node", code="release_invalid", field="release", value=str(release), hint=f"no {program}"
        )
    done = _run([str(program), "self-check", "--data", str(settings.data)], _CHECK_WITHIN_S)
    if done.returncode != 0:
        raise Conflict(
            f"the release says that it cannot take over; nothing was switched\n{_tail(done)}",
            code="self_check_failed",
            field="release",
            value=str(release),
        )


def install(link: Path, package: str, say: Say) -> Path:
    """A virtual environment beside the others, with the package in it. Raises Unavailable `install_failed`, and leaves nothing then."""
    release = link.parent.resolve() / time.strftime("release-%Y%m%d-%H%M%S")
    say(f"installing {package} into {release}")
    try:
        for command in (
            [sys.executable, "-m", "venv", str(release)],
            [str(release / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package],
        ):
            done = _run(command, _INSTALL_WITHIN_S)
            if done.returncode != 0:
                raise Unavailable(
                    f"{package} could not be installed\n{_tail(done)}",
                    code="install_failed",
                    field="package",
                    value=package,
                )
    except BaseException:
        shutil.rmtree(release, ignore_errors=True)
        raise
    return release


def previous_release(settings: Settings) -> Path:
    """Raises Conflict `no_previous_release`."""
    with contextlib.closing(Journal(settings.journal_path)) as journal:
        known = journal.fact(PREVIOUS_FACT)
    if not known or not Path(known).is_dir():
        raise Conflict(
            "no release before this one is known",
            code="no_previous_release",
            field="back",
            value=known or "",
            hint="an update remembers what ran before it; --release DIR switches to any that is installed",
        )
    return Path(known)


def link_of_own_program(argv0: str) -> Path:
    """The link through which this program was started. Raises Invalid `not_by_link`."""
    found = shutil.which(argv0) if os.sep not in argv0 else argv0
    release = Path(found or argv0).absolute().parent.parent
    if release.is_symlink():
        return release
    raise Invalid(
        "this program was not started through a link that could be switched",
        code="not_by_link",
        field="link",
        value=str(release),
        hint=f"ln -s {release} {release.parent}/current, start the agent by {release.parent}/current/{_PROGRAM}, or name a --link",
    )


def restart_command(given: str | None) -> tuple[str, ...]:
    """Raises Invalid `restart_unknown`."""
    if given is not None:
        return tuple(shlex.split(given))
    if shutil.which("systemctl") and _run(["systemctl", "is-active", "--quiet", _UNIT], 30).returncode == 0:
        return ("systemctl", "restart", _UNIT)
    raise Invalid(
        "how is the agent started anew here?",
        code="restart_unknown",
        field="restart",
        hint='--restart "COMMAND"; with torg-node install-service it is known',
    )


# --- parts -----------------------------------------------------------------------------------------------------------


def _switch(plan: Update, release: Path) -> None:
    """The link is one or the other at any moment. Raises Conflict `restart_failed`."""
    partial = plan.link.with_name(f".{plan.link.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(release)
    partial.replace(plan.link)
    done = _run(list(plan.restart), _RESTART_WITHIN_S)
    if done.returncode != 0:
        raise Conflict(
            f"the agent could not be started anew: {shlex.join(plan.restart)}\n{_tail(done)}",
            code="restart_failed",
            field="restart",
            value=shlex.join(plan.restart),
        )


def _await_health(plan: Update, release: Path) -> None:
    """Raises Conflict `agent_not_healthy`, with what is known of it."""
    deadline, healthy_since = time.monotonic() + plan.within_s, None
    with contextlib.closing(Journal(plan.settings.journal_path)) as journal:
        while time.monotonic() < deadline:
            why = _what_lacks(journal, release)
            now = time.monotonic()
            healthy_since = None if why else healthy_since or now
            if healthy_since is not None and now - healthy_since >= _STEADY_S:
                return
            time.sleep(_POLL_S)
    raise Conflict(
        f"within {plan.within_s:g} s: {why or 'it did not stay'}",
        code="agent_not_healthy",
        field="release",
        value=str(release),
    )


def _what_lacks(journal: Journal, release: Path) -> str | None:
    ready = json.loads(journal.fact(READY_FACT) or "{}")
    pid = journal.fact("agent_pid")
    if pid is None or start_time(int(pid)) is None:
        return "no agent runs"
    if ready.get("pid") != int(pid):
        return "its agent has no connection"
    if ready.get("release") != str(release):
        return f"the agent that runs is that of {ready.get('release')}: is it started through the link?"
    return None


def _go_back(plan: Update, old: Path, because: BaseException) -> None:
    try:
        _switch(plan, old)
        _await_health(replace(plan, within_s=max(plan.within_s, _BACK_WITHIN_S)), old)
    except TorgError as error:
        raise Conflict(
            f"the new release is not healthy, and going back to {old.name} met: {error.message}",
            code="update_stuck",
            field="release",
            value=str(old),
            hint=f"the link names {old.name} again: look at the agent's log, then start it",
        ) from because
    if isinstance(because, TorgError):
        raise Conflict(
            f"the new release was not healthy, {old.name} runs again: {because.message}",
            code="update_rolled_back",
            field="release",
            value=str(old),
        ) from because


def _run(command: list[str], within_s: float) -> subprocess.CompletedProcess[str]:
    """Its output goes to a file: an agent that it leaves behind would hold a pipe open."""
    with tempfile.TemporaryFile() as output:
        code = 124
        try:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=within_s, check=False
            ).returncode
        except FileNotFoundError as error:
            return subprocess.CompletedProcess(command, 127, str(error))
        except subprocess.TimeoutExpired:
            output.write(f"\nit took longer than {within_s:g} s".encode())
        output.seek(0)
        return subprocess.CompletedProcess(command, code, output.read().decode(errors="replace"))


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.strip()[-_TAIL_CHARACTERS:]
