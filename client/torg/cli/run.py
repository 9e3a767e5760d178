"""`torg run [options] -- command`: this directory as the workspace, logs live, results down."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from torg.cli.container_options import GPUS, IMAGE, MAX_DURATION
from torg.cli.follow import exit_code_of, follow_job, pull_results, transfer_bar
from torg.cli.gang_options import GANG, alone_together, gang_of, resized
from torg.cli.imports import told
from torg.cli.jobs import ALLOW_DROPPED, KEY, VAULT, say_interrupted
from torg.cli.session import Session, command
from torg.secret_sources import SECRET_NAME
from torg.spec_file import SpecFile, read_spec_file, spec_from_mapping
from torg.workloads import workload_file
from torg_protocol.errors import Invalid

_JOB_FILES = (".json", ".yaml", ".yml")


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("argv", nargs=-1, metavar="-- COMMAND...")
@click.option("--name", metavar="NAME", default="run", show_default=True, help="Name of the job.")
@click.option(
    "--workload",
    metavar="NAME",
    help="A job of the catalogue (torg examples); what follows -- is added to its options.",
)
@IMAGE
@click.option(
    "--workspace",
    default=".",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory that is sent along, without what .gitignore and .torgignore name.",
)
@click.option("--no-workspace", is_flag=True, help="Send no files.")
@GPUS
@click.option(
    "--gpu-fraction",
    metavar="PART",
    help="Part of one GPU, for example 0.5, for that part of its price, shared with other jobs of yours.",
)
@click.option("--min-vram", metavar="SIZE", help='Per GPU, for example "24GiB".')
@click.option("--gpu-class", metavar="CLASS", help="Only this kind of GPU; see torg offers.")
@click.option("--cpus", metavar="CORES", default="1", show_default=True, help='CPU cores, for example 4 or "0.5".')
@click.option(
    "--memory", metavar="SIZE", default="1GiB", show_default=True, help="Memory; a job that takes more is stopped."
)
@click.option(
    "--disk", metavar="SIZE", default="1GiB", show_default=True, help="Disk, for the workspace and all that it writes."
)
@click.option(
    "--root", is_flag=True, help="Run as the user that the image names, or as its root, free to write all of its files."
)
@MAX_DURATION
@click.option(
    "--max-cost", metavar="AMOUNT", help='Never pay more than this in all, in the market\'s token, for example "0.50".'
)
@click.option("--max-price", metavar="AMOUNT", help="Pay at most this per GPU-hour.")
@click.option(
    "--spot", is_flag=True, help="Cheaper, on nodes with a spot price; others may preempt it, and it is resumed."
)
@click.option(
    "--checkpoint",
    is_flag=True,
    help="It writes checkpoints to $TORG_CHECKPOINT_DIR; should its node be lost, it resumes from the newest.",
)
@GANG
@click.option("--env", "-e", multiple=True, metavar="NAME=VALUE", help="A variable for the job; may be repeated.")
@click.option(
    "--secret",
    "secret_sources",
    multiple=True,
    metavar="NAME[=env:VAR|file:PATH]",
    help="A file in $TORG_SECRETS_DIR, sealed to the nodes that may run the job; alone: the variable of that name.",
)
@click.option(
    "--registry",
    "registries",
    multiple=True,
    metavar="HOST=USERNAME:PASSWORD",
    help="Secrets, or variables, that hold the credentials for the image's registry; HOST=TOKEN: a bearer token. May be repeated.",
)
@click.option(
    "--data",
    "data_places",
    multiple=True,
    metavar="NAME:PATH",
    help="Data that you keep (torg data ls), read-only at PATH; may be repeated.",
)
@click.option(
    "--volume",
    "-v",
    "volumes",
    multiple=True,
    metavar="NAME:PATH[:ro]",
    help="A volume of yours (torg volume ls), made at first use; what the job writes at PATH the next one finds. May be repeated.",
)
@click.option(
    "--sealed",
    is_flag=True,
    help="Encrypt workspace, outputs and logs: only the nodes of --node and this wallet can read them.",
)
@click.option(
    "--node", "nodes", multiple=True, metavar="NODE", help="Only this node; may be repeated. See torg offers."
)
@click.option(
    "--keep",
    "outputs",
    multiple=True,
    metavar="PATH",
    help="A file or folder that it writes to $TORG_OUTPUT_DIR and that you want back; may be repeated.",
)
@click.option(
    "--output",
    "-o",
    "destination",
    type=click.Path(file_okay=False, path_type=Path),
    help="Pull results here when done.",
)
@click.option("--overwrite", is_flag=True, help="With -o: replace files that are there with other content.")
@VAULT
@KEY
@click.option("--detach", is_flag=True, help="Do not follow; print the job id.")
@ALLOW_DROPPED
@command
async def run(
    session: Session,
    argv: tuple[str, ...],
    destination: Path | None,
    overwrite: bool,
    vault: str | None,
    idempotency_key: str | None,
    detach: bool,
    workload: str | None,
    allow_dropped: bool,
    **options: Any,
) -> None:
    """Run a command on the market with this directory as its workspace; or a job file, ours or another platform's.

    The exit code is the command's own; 125 means that torg itself failed.

    \b
    torg run -- python train.py
    torg run --gpus 1 --min-vram 24GiB --keep model.bin -o results -- python train.py --epochs 3
    torg run --data mnist:/data -- python train.py
    torg run -v runs:/runs -- python train.py --out /runs
    torg run --gang 2 --checkpoint -- python train.py
    torg run --workload rnn -o results
    torg run job.yaml
    """
    session.passes_exit_code()
    spec_file = told(session, _spec_file(workload, argv, options), allow_dropped=allow_dropped)
    if "gang" in spec_file.raw and (hint := alone_together(argv, spec_file.workspace)):
        session.hint(f"hint: {hint}")
    key = idempotency_key or secrets.token_hex(16)
    async with session.client() as client:
        try:
            with transfer_bar(session) as on_progress:
                job = await client.submit(spec_file, vault=vault, idempotency_key=key, on_progress=on_progress)
        except asyncio.CancelledError:
            say_interrupted("torg run ...", key)
            raise
        if detach:
            session.show(job.wire(), job.job_id)
            session.hint(f"follow it:  torg logs -f {job.job_id}")
            return
        job = await follow_job(session, client, job)
        if destination is not None and job.outputs:
            files = await pull_results(session, client, job.job_id, destination, overwrite=overwrite)
            session.hint(f"{len(files)} files in {destination}")
    sys.exit(exit_code_of(job))


def _spec_file(workload: str | None, argv: tuple[str, ...], options: dict[str, Any]) -> SpecFile:
    if workload:
        return _of_catalogue(workload, argv, options)
    file = Path(argv[0]) if len(argv) == 1 and Path(argv[0]).suffix in _JOB_FILES else None
    if file is not None and file.is_file():
        _refuse_decided(options, "the job file decides this", f"leave it out, or change {file}")
        return read_spec_file(file)
    if file is not None and not file.exists():  # or it would be tried as a program, on somebody's machine
        raise Invalid(
            "there is no such job file",
            code="spec_not_found",
            field="file",
            value=argv[0],
            hint="give the path of a job.yaml; `torg init` writes one. A command has arguments or another name",
        )
    return _of_command(argv, options)


def _of_command(argv: tuple[str, ...], options: dict[str, Any]) -> SpecFile:
    if not argv:
        raise click.UsageError(
            "Missing argument '-- COMMAND...' (like: torg run -- python train.py), or --workload NAME."
        )
    return spec_from_mapping(_spec(argv, options), base=Path.cwd())


def _of_catalogue(workload: str, argv: tuple[str, ...], options: dict[str, Any]) -> SpecFile:
    """The workload's job.yaml decides everything but further options of its command, and how many nodes share it. Raises Invalid for what it decides."""
    hint = f"leave it out, or change a copy: torg examples {workload} -w job.yaml"
    size = options.pop("gang")
    _refuse_decided(options, "the workload's job file decides this", hint)
    spec_file = read_spec_file(workload_file(workload))
    raw = {**spec_file.raw, "command": [*spec_file.raw["command"], *argv]}
    return replace(spec_file, raw=raw if size is None else resized(raw, workload, size))


def _refuse_decided(options: dict[str, Any], message: str, hint: str) -> None:
    context = click.get_current_context()
    given = [name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        option = max(next(param.opts for param in context.command.params if param.name == given[0]), key=len)
        raise Invalid(message, code="option_conflict", field=option, value=str(options[given[0]]), hint=hint)


def _spec(argv: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    resources = {"gpus": options["gpus"], "cpus": options["cpus"], "memory": options["memory"], "disk": options["disk"]}
    resources |= {name: options[name] for name in ("gpu_fraction", "min_vram", "gpu_class") if options[name]}
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
        "outputs": list(options["outputs"]),
    } | gang_of(options)
    if options["root"]:
        spec["root"] = True
    if options["spot"]:
        spec["spot"] = True
    if options["checkpoint"]:
        spec["checkpoint"] = {"enabled": True}
    if options["secret_sources"]:
        spec["secrets"] = dict(_secret(item) for item in options["secret_sources"])
    for item in options["registries"]:
        known = spec.setdefault("secrets", {})
        host, login = _registry(item, known)
        spec.setdefault("registries", {})[host] = login
        known |= {name: {"env": name} for name in login.values() if name not in known}
    if options["sealed"]:
        if not options["nodes"]:
            raise Invalid(
                "a sealed job names the nodes that may open it",
                code="sealed_needs_nodes",
                field="--node",
                hint="torg offers lists them; then --node NODE, more than once for several",
            )
        spec["sealed"] = True
    if options["nodes"]:
        spec["placement"] = {"nodes": list(options["nodes"])}
    if options["data_places"]:
        spec["inputs"] = [_placed_data(item) for item in options["data_places"]]
    if options["volumes"]:
        spec["volumes"] = list(options["volumes"])
    if not options["no_workspace"]:
        spec["workspace"] = str(options["workspace"])
    return spec


def _secret(item: str) -> tuple[str, dict[str, str]]:
    name, separator, source = item.partition("=")
    kind, colon, place = source.partition(":")
    if not separator:
        return name, {"env": name}
    if kind not in {"env", "file"} or not colon or not place:
        raise Invalid(  # what was given may be the secret itself: it is not repeated
            "says where the secret is, not what it is",
            code="secret_invalid",
            field="--secret",
            value=name,
            hint=f"write it like --secret {name}=env:{name} or --secret {name}=file:PATH",
        )
    return name, {kind: place}


def _registry(item: str, known: Collection[str]) -> tuple[str, dict[str, str]]:
    host, _, written = item.partition("=")
    username, colon, password = written.partition(":")
    names = (username, password) if colon else (username,)
    if not all(SECRET_NAME.fullmatch(name) and (name in known or name in os.environ) for name in names):
        raise Invalid(  # what was given may be the password itself: it is not repeated
            "says which secrets, or which variables that are set here, hold the credentials, not what they are",
            code="registry_invalid",
            field="--registry",
            value=host,
            hint=f"write it like --registry {host or 'ghcr.io'}=REGISTRY_USER:REGISTRY_PASSWORD",
        )
    return host, {"username": username, "password": password} if colon else {"token": username}


def _placed_data(item: str) -> dict[str, str]:
    name, _, path = item.partition(":")
    if not path.startswith("/"):
        raise Invalid(
            "not NAME:PATH",
            code="data_place_invalid",
            field="--data",
            value=item,
            hint=f"write it like --data {name or 'NAME'}:/data",
        )
    return {"data": name, "path": path}


def _pair(item: str) -> tuple[str, str]:
    name, separator, value = item.partition("=")
    if not separator:
        raise Invalid(
            "not NAME=VALUE", code="env_invalid", field="--env", value=item, hint="write it like -e EPOCHS=10"
        )
    return name, value
