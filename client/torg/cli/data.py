"""data put, get, ls, rm."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import click

from torg.cli.follow import transfer_bar
from torg.cli.groups import Group
from torg.cli.present import age, duration, size, table
from torg.cli.session import Session, command, on_interrupt
from torg_protocol.cases import QuotaView


@click.group(cls=Group)
def data() -> None:
    """Data that stays in the marketplace's store for more than one job, by name.

    A job reads it with torg run --data NAME:PATH.
    """


@data.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Default: the name of the file or folder.")
@command
async def put(session: Session, path: Path, name: str | None) -> None:
    """Upload a folder or a file. What the store has from you already is not sent again. A name that is there already
    stands for the new data from then on."""
    name = name or path.resolve().name.lower()
    async with session.client() as client:
        with going_on(f"torg data put {path} --name {name}"), transfer_bar(session) as on_progress:
            view = await client.put_data(name, path, on_progress=on_progress)
    session.show(view.model_dump(), f"{view.name}  {size(view.size_bytes)}  {view.digest}")


@data.command()
@click.argument("name")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to unpack to; default: the name, here.")
@command
async def get(session: Session, name: str, output: Path | None) -> None:
    """Download data by its name to a new folder, checked against its digest. Run it again after a broken connection: it goes on where it stopped."""
    target = output or Path(name)
    async with session.client() as client:
        with going_on(f"torg data get {name} -o {target}"), transfer_bar(session) as on_progress:
            view = await client.get_data(name, target, on_progress=on_progress)
    session.show({**view.model_dump(), "path": str(target)}, f"{target}  {size(view.size_bytes)}")


def going_on(again: str) -> AbstractContextManager[None]:
    """Ctrl-C loses nothing of a transfer: says how to take it up."""
    return on_interrupt(f"what has arrived is kept; go on:  {again}")


@data.command()
@command
async def ls(session: Session) -> None:
    """List the data that you keep in the store: names, sizes, when each expires, and how much your quota leaves."""
    async with session.client() as client:
        page = await client.kept_data()
    found, stored_bytes, quota = page.data, page.stored_bytes, page.kept
    total_bytes = sum(item.size_bytes for item in found)
    now_ms = session.now_ms()
    rows = [
        (
            item.name,
            size(item.size_bytes),
            age(now_ms - item.named_at_ms),
            until(item.expires_at_ms, now_ms),
            item.digest[:19],
        )
        for item in found
    ]
    heads = ("NAME", "SIZE", "NAMED", "EXPIRES", "DIGEST")
    text = table(heads, rows) if rows else "nothing is kept; begin with: torg data put PATH --name NAME"
    document = {"data": [item.model_dump() for item in found], "total_bytes": total_bytes, "stored_bytes": stored_bytes}
    document |= {"kept": quota.model_dump() if quota is not None else None}
    text = f"{text}\n{size(total_bytes)} in all" if rows else text
    session.show(
        document,
        f"{text}{quota_line(quota)}\nthe store holds {size(stored_bytes)} of yours, workspaces of jobs included",
    )


def quota_line(quota: QuotaView | None) -> str:
    """How much is kept of what may be, if there is a limit."""
    if quota is None or quota.limit is None:
        return ""
    return f"\n{size(quota.used)} of {size(quota.limit)} are used by named data and volumes"


def until(at_ms: int | None, now_ms: int) -> str:
    """When something goes that nobody uses."""
    return "never" if at_ms is None else f"in {duration(max(0, at_ms - now_ms))}"


@data.command()
@click.argument("name")
@command
async def rm(session: Session, name: str) -> None:
    """Remove data by its name. Jobs that use it keep it."""
    async with session.client() as client:
        view = await client.remove_data(name)
    session.show(view.model_dump(), f"{view.name} is gone")
