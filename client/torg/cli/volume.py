"""volume ls, show, get, put, rm."""

from __future__ import annotations

from pathlib import Path

import click

from torg.cli.data import going_on, quota_line, until
from torg.cli.follow import transfer_bar
from torg.cli.groups import Group
from torg.cli.present import age, size, table
from torg.cli.session import JobParameter, Session, command, resolve
from torg_protocol.volumes import VolumeView

_OUTPUT = click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder to unpack to; default: the name, here."
)


@click.group(cls=Group)
def volume() -> None:
    """Volumes: folders that outlive a job and follow it to the next node. A job writes one with torg run -v NAME:/data -- COMMAND."""


@volume.command()
@command
async def ls(session: Session) -> None:
    """All volumes, with what is in them and who writes them."""
    async with session.client() as client:
        page = await client.kept_volumes()
    found, quota = page.volumes, page.kept
    now_ms = session.now_ms()
    rows = [
        (
            item.name,
            size(item.size_bytes),
            str(item.generation),
            age(now_ms - item.stored_at_ms) if item.stored_at_ms is not None else "-",
            until(item.expires_at_ms, now_ms),
            item.writer or (f"{len(item.users)} reading" if item.users else "-"),
        )
        for item in found
    ]
    heads = ("NAME", "SIZE", "GENERATION", "STORED", "EXPIRES", "IN USE BY")
    text = table(heads, rows) if rows else "no volumes yet; a job makes one: torg run -v NAME:/data -- COMMAND"
    total_bytes = sum(item.size_bytes for item in found)
    session.show(
        {
            "volumes": [item.model_dump() for item in found],
            "total_bytes": total_bytes,
            "kept": quota.model_dump() if quota is not None else None,
        },
        (f"{text}\n{size(total_bytes)} in all" if rows else text) + quota_line(quota),
    )


@volume.command()
@click.argument("name")
@command
async def show(session: Session, name: str) -> None:
    """One volume: its newest generation, who made it, and which jobs use it."""
    async with session.client() as client:
        view = await client.volume(name)
    session.show(view.model_dump(), _in_words(view, session.now_ms()))


def _in_words(view: VolumeView, now_ms: int) -> str:
    lines = [("name", view.name), ("generation", str(view.generation) if view.generation else "none yet")]
    if view.digest is not None and view.stored_at_ms is not None:
        lines += [
            ("size", size(view.size_bytes)),
            ("digest", view.digest),
            ("stored", f"{age(now_ms - view.stored_at_ms)} ago, by {view.made_by or 'torg volume put'}"),
        ]
    lines.append(("written by", view.writer or "nobody now"))
    lines.append(("expires", until(view.expires_at_ms, now_ms)))
    lines += [("used by", job) for job in view.users]
    return "\n".join(f"{label + ':':<12} {text}" for label, text in lines)


@volume.command()
@click.argument("name")
@_OUTPUT
@click.option("--job", metavar="JOB", type=JobParameter(), help="What this job stored of it last, also when it failed.")
@command
async def get(session: Session, name: str, output: Path | None, job: str | None) -> None:
    """Download what is in a volume to a new folder, checked against its digest."""
    target = output or Path(name)
    async with session.client() as client:
        with going_on(f"torg volume get {name} -o {target}"), transfer_bar(session) as on_progress:
            view = (
                await client.get_volume(name, target, on_progress=on_progress)
                if job is None
                else await client.get_job_volume(await resolve(client, job), name, target, on_progress=on_progress)
            )
    session.show({**view.model_dump(), "path": str(target)}, f"{target}  {size(view.size_bytes)}")


@volume.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Default: the name of the folder.")
@click.option("--new", is_flag=True, help="Refuse if there is a volume of this name.")
@command
async def put(session: Session, path: Path, name: str | None, new: bool) -> None:
    """Upload a folder as what the next job finds in the volume. What the store has from you already is not sent again."""
    name = name or path.resolve().name.lower()
    async with session.client() as client:
        with going_on(f"torg volume put {path} --name {name}"), transfer_bar(session) as on_progress:
            view = await client.put_volume(name, path, generation=0 if new else None, on_progress=on_progress)
    session.show(view.model_dump(), f"{view.name}  generation {view.generation}  {size(view.size_bytes)}")


@volume.command()
@click.argument("name")
@command
async def rm(session: Session, name: str) -> None:
    """Delete a volume that no open job uses, with what is in it."""
    async with session.client() as client:
        view = await client.remove_volume(name)
    session.show(view.model_dump(), f"{view.name} is gone")
