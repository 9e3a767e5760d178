"""`torg run [options] -- command`: this directory as the workspace, logs live, results down."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from torg.cli.follow import exit_code_of, follow_job, transfer_bar
from torg.cli.session import Session, command
from torg.spec_file import spec_from_mapping
from torg_protocol.errors import Invalid
from torg_protocol.states import JobState


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("argv", nargs=-1, required=True)
@click.option("--name", default="run", show_default=True)
@click.option("--image", default="host-python", show_default=True)
@click.option("--workspace", default=".", show_default=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--no-workspace", is_flag=True, help="Send no files.")
@click.option("--gpus", default=0, show_default=True)
@click.option("--min-vram", help='Per GPU, for example "24GiB".')
@click.option("--cpus", default="1", show_default=True)
@click.option("--memory", default="1GiB", show_default=True)
@click.option("--disk", default="1GiB", show_default=True)
@click.option("--max-duration", default="1h", show_default=True)
@click.option("--max-cost", help='Never pay more, for example "0.50".')
@click.option("--max-price", help="Per GPU-hour.")
@click.option("--env", "-e", multiple=True, metavar="NAME=VALUE")
@click.option(
    "--output",
    "-o",
    "destination",
    type=click.Path(file_okay=False, path_type=Path),
    help="Pull results here when done.",
)
@click.option("--vault", help="Vault to pay from; default: the newest.")
@click.option("--detach", is_flag=True, help="Do not follow; print the job id.")
@command
async def run(
    session: Session, argv: tuple[str, ...], destination: Path | None, vault: str | None, detach: bool, **options: Any
) -> None:
    """Run a command on the market with this directory as its workspace.

    \b
    torg run -- python train.py
    torg run --gpus 1 --min-vram 24GiB -o results -- python train.py --epochs 3
    """
    spec_file = spec_from_mapping(_spec(argv, options), base=Path.cwd())
    async with session.client() as client:
        with transfer_bar(session) as on_progress:
            job = await client.submit(spec_file, vault=vault, on_progress=on_progress)
        if detach:
            session.show(job.wire(), job.job_id)
            return
        job = await follow_job(session, client, job)
        if destination is not None and job.state is JobState.SUCCEEDED:
            with transfer_bar(session) as on_progress:
                files = await client.pull(job.job_id, destination, on_progress=on_progress)
            click.echo(f"{len(files)} files in {destination}", err=True)
    sys.exit(exit_code_of(job))


def _spec(argv: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    resources = {"gpus": options["gpus"], "cpus": options["cpus"], "memory": options["memory"], "disk": options["disk"]}
    if options["min_vram"]:
        resources["min_vram"] = options["min_vram"]
    limits = {"max_duration": options["max_duration"]}
    limits |= {"max_cost": options["max_cost"]} if options["max_cost"] else {}
    limits |= {"max_price_per_hour": options["max_price"]} if options["max_price"] else {}
    spec: dict[str, Any] = {
        "version": 1,
        "name": options["name"],
        "image": options["image"],
        "command": list(argv),
        "resources": resources,
        "limits": limits,
        "env": dict(_pair(item) for item in options["env"]),
    }
    if not options["no_workspace"]:
        spec["workspace"] = str(options["workspace"])
    return spec


def _pair(item: str) -> tuple[str, str]:
    name, separator, value = item.partition("=")
    if not separator:
        raise Invalid("not NAME=VALUE", code="env_invalid", field="--env", value=item)
    return name, value
