"""What every command needs: the client made from the global options, one way to print, one way to fail."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from torg.cli.terminal import say
from torg.config import ClientConfig, load_config
from torg_protocol.errors import Conflict, Infeasible, NotFound, TorgError

if TYPE_CHECKING:
    from torg.client import AsyncClient
    from torg.transport import Transport

FAILED = 1
FAILED_ITSELF = 125  # of commands that pass a job's exit code on: torg failed, not the job


class Session:
    """The global options of this invocation."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.as_json: bool = options["json"]
        self.failure_code = FAILED
        home = options["home"]
        self.config: ClientConfig = load_config(Path(home) if home else None, options["marketplace"])

    def client(self) -> AbstractAsyncContextManager[AsyncClient]:
        from torg.client import AsyncClient

        self._needs_identity()
        return AsyncClient(self.config)

    @contextlib.asynccontextmanager
    async def transport(self) -> AsyncIterator[Transport]:
        """For a command that asks so little that the client and all its models would be most of its time, and with them what the HTTP client
        loads for HTTP/2 and SOCKS. What talks to a chain needs HTTP/2: such a command takes `client`."""
        if "httpx" not in sys.modules:
            for name in ("h2", "socksio"):
                sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None is how an import is declared absent
        from torg.transport import Transport
        from torg_chain.wallet import load_keypair

        self._needs_identity()
        api_key = self.config.api_key
        keypair = None if api_key else load_keypair(self.config.key_path)
        transport = Transport(self.config.marketplace_url, keypair, api_key=api_key)
        try:
            yield transport
        finally:
            await transport.aclose()

    def _needs_identity(self) -> None:
        if self.config.api_key is None and not self.config.key_path.exists():
            raise NotFound(
                "you have no wallet yet",
                code="no_wallet",
                field="home",
                value=str(self.config.home),
                hint="make one: torg wallet new   (or take one over: torg wallet import FILE; or set TORG_API_KEY)",
            )

    def visitor(self) -> AbstractAsyncContextManager[AsyncClient]:
        """For what the marketplace shows to everybody: without a wallet, a key of the moment is as good."""
        from solders.keypair import Keypair

        from torg.client import AsyncClient

        has_key = self.config.api_key is not None or self.config.key_path.exists()
        return AsyncClient(self.config) if has_key else AsyncClient(self.config, Keypair())

    def passes_exit_code(self) -> None:
        """From now on an exit code of 1 could be the job's: failures of our own end with 125, as container engines do it."""
        self.failure_code = FAILED_ITSELF

    def show(self, value: Any, text: str) -> None:
        """Prints `value` as one JSON document or `text` for people."""
        click.echo(json.dumps(value) if self.as_json else text)

    def hint(self, text: str) -> None:
        """What one would do next: for people only, and never in the way of piped output."""
        if not self.as_json:
            say(text, err=True)

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


def command(function: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs an async command. With --json anywhere on the line (also after the command's name) output is JSON.

    Errors of the tree end here: explained once, on standard error, with a stable code and a non-zero exit code.
    """

    @click.option("--json", "json_here", is_flag=True, help="Machine-readable output.")
    @click.pass_obj
    @functools.wraps(function)
    def run(options: dict[str, Any], /, *args: Any, json_here: bool, **kwargs: Any) -> None:
        as_json, session = options["json"] or json_here, None
        try:
            gc.enable()
            session = Session({**options, "json": as_json})
            asyncio.run(function(session, *args, **kwargs))
        except TorgError as error:
            explain(error, as_json=as_json)
            raise click.exceptions.Exit(session.failure_code if session else FAILED) from error
        except OSError as error:
            if isinstance(error, BrokenPipeError) or not error.strerror or os.environ.get("TORG_DEBUG"):
                raise
            explain(_of_system(error), as_json=as_json)
            raise click.exceptions.Exit(session.failure_code if session else FAILED) from error

    return run


def _of_system(error: OSError) -> TorgError:
    """What this computer refused."""
    place = {"field": "path", "value": str(error.filename)} if error.filename else {}
    code, hint = "os_error", None
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        code, hint = (
            "disk_full",
            "make room and run it again: what is whole is kept, and a download goes on where it was",
        )
    elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        hint = "name another place, or get the right to write there"
    return Conflict(error.strerror or str(error), code=code, hint=hint, **place)


def explain(error: TorgError, *, as_json: bool) -> None:
    """What, which field, which value, the way out, and the stable code; with --json the same as problem details."""
    if as_json:
        click.echo(json.dumps(error.to_problem()), err=True)
        return
    problems = error.data.get("problems", [])
    if len(problems) > 1 and all(isinstance(problem, dict) and "field" in problem for problem in problems):
        say(f"torg: {error.data.get('file', 'the job')}: {len(problems)} problems [{error.code}]", err=True)
        for problem in problems:
            say("  " + _problem_line(problem), err=True)
        return
    hint = f"\n  {error.hint}" if error.hint else ""
    named = "" if isinstance(error, Infeasible) or error.value is None else f" ({error.field} = {error.value!r})"
    say(f"torg: {error.message}{named} [{error.code}]{hint}", err=True)


def _problem_line(problem: dict[str, Any]) -> str:
    where = f"line {problem['line']}: " if problem.get("line") else ""
    value = f" (got {problem['value']!r})" if problem.get("value") is not None else ""
    hint = f"; {problem['hint']}" if problem.get("hint") else ""
    return f"{where}{problem['field']}: {problem['message']}{value}{hint}"


@contextlib.contextmanager
def on_interrupt(what_holds: str) -> Iterator[None]:
    """Ctrl-C within is answered with what holds now, before the command ends."""
    try:
        yield
    except asyncio.CancelledError:
        say(f"\n{what_holds}", err=True)
        raise


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Around a question to the user: it blocks the event loop, whose own way with Ctrl-C would wait for the answer."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Seconds(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest clicks
    """A span of time as in job files, or a bare number of seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        from torg_protocol.quantities import parse_duration_ms

        try:
            return parse_duration_ms(value if value.strip()[-1:].isalpha() else f"{value}s") / 1000
        except ValueError as error:
            self.fail(f"{error}", param, ctx)


class JobParameter(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest clicks
    """A job id, or `last` for the newest job. Completes from the journal, without network."""

    name = "job"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        del param
        from click.shell_completion import CompletionItem

        from torg.journal import Journal

        root = ctx.find_root().params
        try:
            config = load_config(Path(root["home"]) if root.get("home") else None, root.get("marketplace"))
            jobs = Journal(config.journal_path).newest_jobs(30) if config.journal_path.exists() else []
        except TorgError:
            return []
        found = [CompletionItem(job.job_id, help=job.name) for job in jobs if str(job.job_id).startswith(incomplete)]
        return found + ([CompletionItem("last", help="the newest job")] if "last".startswith(incomplete) else [])


JOB = click.argument("job_id", metavar="JOB", type=JobParameter())


async def resolve(client: AsyncClient, job_id: str) -> str:
    """`last` is the newest job of this account. Raises NotFound `no_jobs`."""
    if job_id != "last":
        return job_id
    newest = (await client.jobs(limit=1)).jobs
    if not newest:
        raise NotFound("you have no jobs yet", code="no_jobs", field="job", value=job_id, hint="torg submit job.yaml")
    return newest[0].job_id
