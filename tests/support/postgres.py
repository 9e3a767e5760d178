"""A real PostgreSQL of the tests' own: started once, on a Unix socket in a temporary folder. Every test has a database to itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from tests.support.networks import Place
from torg_marketplace.storage.engine import create_engine
from torg_marketplace.storage.schema import upgrade

TEMPLATE = "torg_template"
# Durability is PostgreSQL's own promise, tested by its authors; without waiting for disks our tests are ten times faster.
_EMPTY = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid();
SELECT format('TRUNCATE %s RESTART IDENTITY CASCADE', string_agg(quote_ident(relname), ', ')) FROM pg_class
 WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname != 'alembic_version' AND pg_relation_size(oid) > 0
HAVING count(*) > 0 \\gexec
"""  # DELETE is quicker, but rows that come after would lie where there is room, and queries without an order tell
QUICK = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "60"}


@dataclass(frozen=True)
class Postgres:
    programs: Path
    socket_folder: Path
    user: str
    pid: int = 0  # of the server itself; its connections are its children
    numbers: Iterator[int] = field(default_factory=count)
    emptied: list[str] = field(default_factory=list)  # databases that were lent before
    crash: Callable[[], None] = lambda: None  # kills it as a power cut would, and starts it again
    send: Callable[[signal.Signals], None] = lambda _: None  # to the server and all its connections
    place: Place | None = None  # where it listens also at a TCP port

    def url(self, database: str) -> str:
        return f"postgresql+asyncpg://{self.user}@/{database}?host={self.socket_folder}"

    def url_from_afar(self, url: str) -> str:
        """Of the same database, for who is in another place."""
        assert self.place is not None
        return url.replace("@/", f"@{self.place.address}/").partition("?")[0]

    def new_database(self) -> str:
        """A database with all migrations applied; its URL."""
        return self.url(self._new())

    def _new(self) -> str:
        name = f"test_{next(self.numbers)}"
        self._create(name, f"--template={TEMPLATE}")
        return name

    @contextmanager
    def lent_database(self) -> Iterator[str]:
        """As a new one, and given back: emptying one takes a tenth of the time that making one does. Not for who changes its tables."""
        name = self.emptied.pop() if self.emptied else self._new()
        yield self.url(name)
        psql: list[str | Path] = [self.programs / "psql", "-h", self.socket_folder, "-U", self.user, "-d", name]
        _run([*psql, "-qAt", "-v", "ON_ERROR_STOP=1"], stdin=_EMPTY)
        self.emptied.append(name)

    def make_template(self) -> None:
        asyncio.run(_migrate(self._create(TEMPLATE)))

    def _create(self, name: str, *options: str) -> str:
        _run([self.programs / "createdb", "-h", self.socket_folder, "-U", self.user, *options, name])
        return self.url(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@contextmanager
def running_postgres(place: Place | None = None) -> Iterator[Postgres]:
    """On a Unix socket and, in a place, at that place's address. Skips the test where Debian's package `postgresql` is missing."""
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="torg-postgres-"))
    user, as_user = _owner(folder)
    data, settings = folder / "data", [f"-c{name}={value}" for name, value in QUICK.items()]
    listen = f"listen_addresses={place.address if place else ''}"
    server: list[str | Path] = [programs / "postgres", "-D", data, "-k", folder, "-c", listen, *settings]
    if place is not None:
        as_user = place.command(*as_user)
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with (folder / "log").open("ab") as log:
            processes.append(subprocess.Popen([*as_user, *server], stdout=log, stderr=log, cwd="/"))

    def started() -> bool:
        asked: list[str | Path] = [programs / "pg_isready", "-h", folder, "-t", "0"]
        return subprocess.run(asked, cwd="/", capture_output=True, check=False).returncode == 0

    def wait() -> None:
        until = time.monotonic() + 120
        while not started():
            assert time.monotonic() < until, (folder / "log").read_text()[-2000:]
            time.sleep(0.1)
            if processes[-1].poll() is not None:  # after a crash, the connections of the old one have still to end
                start()

    def crash() -> None:
        processes[-1].kill()
        processes[-1].wait(timeout=120)
        start()
        wait()

    def send(number: signal.Signals) -> None:
        server_pid = processes[-1].pid
        connections = Path(f"/proc/{server_pid}/task/{server_pid}/children").read_text().split()
        for pid in (server_pid, *map(int, connections)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    try:
        _run([*as_user, programs / "initdb", "-D", data, "-U", user, "--auth=trust", "--no-sync", "--encoding=UTF8"])
        if place is not None:
            with (data / "pg_hba.conf").open("a") as file:
                file.write("host all all 10.77.0.0/16 trust\n")
        try:
            start()
            wait()
            postgres = Postgres(programs, folder, user, processes[-1].pid, crash=crash, send=send, place=place)
            postgres.make_template()
            yield postgres
        finally:
            send(signal.SIGCONT)
            processes[-1].terminate()  # to setpriv or PostgreSQL itself: the same process
            processes[-1].wait(timeout=120)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _migrate(url: str) -> None:
    engine = create_engine(url)
    try:
        await upgrade(engine)
    finally:
        await engine.dispose()


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.skip("PostgreSQL's server is not installed (Debian: postgresql)")
    return found[-1].parent


def _owner(folder: Path) -> tuple[str, list[str]]:
    """PostgreSQL refuses to run as root: its Debian user then owns the folder, and the command that becomes it comes first."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name, []
    entry = pwd.getpwnam("postgres")
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    return "postgres", ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]


def _run(argv: list[str | Path], *, stdin: str = "") -> None:
    done = subprocess.run(argv, cwd="/", input=stdin, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{argv[0]} failed: {done.stdout}{done.stderr}"
