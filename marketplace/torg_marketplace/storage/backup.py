"""Backup and restore of the database: SQLite's online backup, PostgreSQL's own tools (`pg_dump`, `pg_restore`: Debian postgresql-client).

A backup is one moment of the database; writers go on meanwhile. Keys and blobs are files of the data folder, or the bucket's matter.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from sqlalchemy import make_url

from torg_host.durable_files import move_for_good
from torg_protocol.errors import Conflict, Invalid, NotFound, Unavailable

_TOOL_S = 3_600


def back_up(database_url: str, file: Path, settled: Callable[[], object] = lambda: None) -> None:
    """Writes a new file, whole or not at all; one that is there already is not touched. `settled` is called when nothing is taken back any more,
    whoever interrupts. Raises Conflict backup_exists, Unavailable backup_failed."""
    if file.exists():
        raise Conflict(
            "there is a file already", code="backup_exists", field="file", value=str(file), hint="name another one"
        )
    partial = file.with_name(file.name + ".partial")
    try:
        if (path := _sqlite_path(database_url)) is None:
            _run("pg_dump", "--format=custom", f"--file={partial}", _postgres_url(database_url))
        elif path.exists():
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(partial)) as target:
                source.backup(target)
                target.execute("PRAGMA journal_mode = DELETE")  # one file, nothing beside it
        else:
            raise NotFound("there is no database yet", code="database_missing", field="--data", value=str(path))
        settled()
        move_for_good(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def restore(database_url: str, file: Path, settled: Callable[[], object] = lambda: None) -> Path | None:
    """Puts a backup in the database's place, or leaves it as it was; no process of the marketplace may run. Returns where SQLite's former database
    is now. `settled` is called when nothing is taken back any more, whoever interrupts.

    Raises NotFound backup_missing, Invalid backup_unreadable, Conflict database_in_use (SQLite), Unavailable backup_failed.
    """
    if not file.is_file():
        raise NotFound("no such backup", code="backup_missing", field="file", value=str(file))
    if (path := _sqlite_path(database_url)) is None:
        _check_alone(_postgres_url(database_url))
        options = ("--clean", "--if-exists", "--single-transaction", "--no-owner")
        _run("pg_restore", *options, f"--dbname={_postgres_url(database_url)}", str(file))
        return None
    _check(file)
    if path.exists():
        _check_unused(path)
    copied = path.with_name(path.name + ".partial")
    try:
        shutil.copyfile(file, copied)
        if path.exists():
            _check_unused(path)  # somebody may have begun meanwhile
        settled()
        aside = _set_aside(path)
        move_for_good(copied, path)
    finally:
        copied.unlink(missing_ok=True)
    return aside


def _set_aside(path: Path) -> Path | None:
    """The database, with what lies beside one that is damaged, or gone."""
    aside = None
    if path.exists():
        aside = _free_name(path)
        path.rename(aside)
    for leftover in ("-wal", "-shm"):
        beside = path.with_name(path.name + leftover)
        if aside is not None and beside.exists():
            beside.rename(aside.with_name(aside.name + leftover))
        beside.unlink(missing_ok=True)
    return aside


def _check_alone(url: str) -> None:
    """A running marketplace is always connected. It would go on with what it remembers of the database that was."""
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    count = int(_run("psql", "--no-psqlrc", "-At", "-c", f"SELECT count(*) {others}", url))
    if count:
        raise Conflict(
            f"{count} connections to this database are open",
            code="database_in_use",
            field="DATABASE_URL",
            hint="stop all processes of the marketplace first, and whoever else is connected: "
            "SELECT pid, client_addr, query FROM pg_stat_activity",
        )


def _check_unused(path: Path) -> None:
    """Leaves the write-ahead log, which SQLite does only when nobody else has the file open; it is whole then. A damaged file is nobody's."""
    try:
        with closing(sqlite3.connect(path)) as current:
            current.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.OperationalError as error:
        raise Conflict(
            f"a process of the marketplace works on this database: {error}",
            code="database_in_use",
            field="--data",
            value=str(path),
            hint="stop all of them first; what they wrote from now on would be lost",
        ) from error
    except sqlite3.DatabaseError:
        return


def _check(file: Path) -> None:
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            whole = connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            connection.execute("SELECT 1 FROM vaults LIMIT 1")
    except sqlite3.DatabaseError as error:
        raise _unreadable(file, str(error)) from error
    if not whole:
        raise _unreadable(file, "it is damaged")


def _unreadable(file: Path, why: str) -> Invalid:
    return Invalid(
        f"this is no backup of a marketplace: {why}", code="backup_unreadable", field="file", value=str(file)
    )


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.before-restore-{number}") for number in range(1, 10_000))
    return next(name for name in names if not name.exists())


def _sqlite_path(database_url: str) -> Path | None:
    url = make_url(database_url)
    return Path(str(url.database)) if url.drivername.startswith("sqlite") else None


def _postgres_url(database_url: str) -> str:
    return make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)


# Who interrupts this process interrupts the tool, which is killed if it does not end; the server takes back what was not committed.
def _run(tool: str, *arguments: str) -> str:
    try:
        done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=_TOOL_S, check=False)
    except FileNotFoundError as error:
        raise Unavailable(
            f"{tool} is not installed", code="backup_failed", field="file", hint="Debian: apt install postgresql-client"
        ) from error
    if done.returncode != 0:
        raise Unavailable(f"{tool} failed: {done.stderr.strip()[-500:]}", code="backup_failed", field="file")
    return done.stdout
