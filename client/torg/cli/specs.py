"""Job files: init, examples, validate, quote."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import click

from torg.cli.examples import EXAMPLES, starter
from torg.cli.present import Coin, coin, duration, table
from torg.cli.session import Session, command
from torg.workloads import workload_file, workloads
from torg_protocol.api import Quote, ReferencePrice, StartEstimate
from torg_protocol.errors import Conflict, NotFound
from torg_protocol.job_cost import verification_permille
from torg_protocol.jobspec import JobSpec
from torg_protocol.quantities import format_cpu_millis

FILE = click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
_NO_SINGLE_CHANGE = "\nno single change would do"
FORCE = click.option("--force", is_flag=True, help="Replace a file that is there.")


@click.command()
@click.argument("file", default="job.yaml", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--gpus", default=0, show_default=True, type=click.IntRange(0, 64), help="GPUs that the job needs.")
@click.option("--name", metavar="NAME", help="Name of the job; default: this directory's.")
@FORCE
@command
async def init(session: Session, file: Path, gpus: int, name: str | None, force: bool) -> None:
    """Write a commented job.yaml to start from."""
    schema = _keep_schema(session.config.home)
    text = starter(name or Path.cwd().name, gpus, schema)
    _write(file, text, force=force)
    session.show({"file": str(file)}, f"{file} is written: edit its command")
    session.hint(f"then:  torg validate {file}    torg quote {file}    torg submit {file} --wait")


def _keep_schema(home: Path) -> Path | None:
    """Where editors find the job file's schema on this computer; None when it cannot be written."""
    from torg.job_schema import job_schema

    file = (home / "job.schema.json").resolve()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_text(json.dumps(job_schema(), indent=1))
    except OSError:
        return None
    return file


@click.command()
@click.argument("name", required=False)
@click.option("-w", "--write", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write it to a file.")
@FORCE
@command
async def examples(session: Session, name: str | None, file: Path | None, force: bool) -> None:
    """Ready-made job files and the catalogue's workloads: a list, or the text of one of them."""
    catalogue = workloads()
    if name is None:
        what = {key: example.what for key, example in EXAMPLES.items()} | catalogue
        session.show(what, table(("example", "what it shows"), list(what.items())))
        session.hint("one of them:  torg examples NAME    as a file:  torg examples NAME -w job.yaml")
        session.hint("the catalogue's:  torg run --workload NAME    for example " + ", ".join(catalogue))
        return
    if name not in EXAMPLES and name not in catalogue:
        raise NotFound(
            "no such example",
            code="example_unknown",
            field="name",
            value=name,
            hint="there are: " + ", ".join([*EXAMPLES, *catalogue]),
        )
    text = EXAMPLES[name].text if name in EXAMPLES else _text_of(workload_file(name))
    if file is not None:
        _write(file, text, force=force)
    session.show(
        {"name": name, "text": text, "file": str(file) if file else None}, f"{file}" if file else text.rstrip()
    )


def _text_of(job_file: Path) -> str:
    """As it stands, but for the workspace, which is named in full: the text works wherever it is written to."""
    return re.sub(r"(?m)^workspace: \.$", f"workspace: {job_file.parent}", job_file.read_text())


def _write(file: Path, text: str, *, force: bool) -> None:
    try:
        with file.open("w" if force else "x") as handle:
            handle.write(text)
    except FileExistsError:
        raise Conflict(
            "there is a file of that name already",
            code="file_exists",
            field="file",
            value=str(file),
            hint="name another one, or replace it with --force",
        ) from None


def _print_schema(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from torg.job_schema import job_schema

        click.echo(json.dumps(job_schema(), indent=2))
        ctx.exit(0)


@click.command()
@FILE
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON Schema of job files instead.",
)
@command
async def validate(session: Session, file: Path) -> None:
    """Check a job file without submitting it. Needs no network."""
    from torg.spec_file import read_spec_file

    spec_file = read_spec_file(file)
    spec, translation = spec_file.check(), spec_file.translation
    if translation is None:
        session.show({"valid": True, "spec": spec.wire()}, f"{file}: valid ({spec.name})")
    else:
        from torg.cli.imports import dropped_text

        dropped = [item.wire() for item in translation.dropped]
        answer = {"valid": True, "format": translation.format, "spec": spec.wire(), "dropped": dropped}
        session.show(answer, f"{file}: valid {translation.title} ({spec.name})")
        session.hint(dropped_text(translation))
    session.hint(f"what would it cost:  torg quote {file}")


@click.command()
@FILE
@command
async def quote(session: Session, file: Path) -> None:
    """Can it run, where, for how much? Nothing is submitted. Exit code 1 when nothing on the market can run it."""
    from torg.spec_file import read_spec_file

    spec = read_spec_file(file).check()
    async with session.client() as client:
        market = await client.market()
        answer = await client.quote(spec)
    session.show(answer.wire(), quote_text(spec, answer, coin(market), on_credit=session.config.api_key is not None))
    if not answer.feasible:
        sys.exit(1)
    session.hint(f"submit it:  torg submit {file} --wait")


def quote_text(spec: JobSpec, answer: Quote, money: Coin, *, on_credit: bool = False) -> str:
    if not answer.feasible:
        head = f"{spec.name}: no node can run this ({answer.nodes_considered} on the market)"
        hint = f"\nhint: {answer.hint}" if answer.hint else ""
        relaxed = "".join(f"\n  {line}" for line in _relaxed(answer, money))
        return (
            f"{head}\n{_constraints_table(answer)}"
            + (f"\nit could run:{relaxed}" if relaxed else _NO_SINGLE_CHANGE)
            + hint
        )
    low, high = (money.text(price) for price in (answer.cheapest_price_per_gpu_hour, answer.dearest_price_per_gpu_hour))
    when = "when a node is free" if answer.waiting else "now"
    prices = low if low == high else f"{low} to {high}"
    at_once = f", on {answer.nodes_at_once} nodes at once" if answer.nodes_at_once > 1 else ""
    part = spec.resources.gpu_fraction if spec.resources.is_share else 1000 * answer.billable_gpus
    held = "of your account's credit" if on_credit else "in your vault"
    lines = [
        f"{spec.name}: can run {when} on {answer.nodes_fitting} of {answer.nodes_considered} nodes",
        f"  price per GPU-hour  {prices}, x {format_cpu_millis(part)}{at_once}",
        f"  never more than     {money.text(answer.max_amount)}  (held {held}; what is not used comes back)",
    ]
    if answer.nodes_at_once > 1:
        lines.append(
            f"  all or nothing      that is for {answer.nodes_at_once} nodes together; until so many are free nothing runs or costs"
        )
    lines += [_reference_line(item, money) for item in answer.reference_prices]
    if answer.verification_amount:
        share = verification_permille(spec)
        words = f"{share // 10}.{share % 10} % of what its time costs: {spec.verify.policy}"
        lines.append(f"  verification in it  {money.text(answer.verification_amount)}  ({words})")
    if answer.least_proven_gops:
        proven = f"at least {answer.least_proven_gops:,} billion int8 operations/s of each GPU (or machine)"
        lines.append(f"  proven class        {proven}; slower is given back in proportion")
    lines += [f"  input               {item.path}  {item.name or ''}  {item.digest}" for item in answer.inputs]
    if answer.start is not None:
        lines += _start_lines(answer.start)
    if answer.waiting and any(item.nodes_without_it for item in answer.constraints):
        lines += ["", "more nodes would do:", *(f"  {line}" for line in _relaxed(answer, money))]
    return "\n".join(lines)


def _relaxed(answer: Quote, money: Coin) -> list[str]:
    """What to give up, one thing at a time, who would take the job then, and from which price."""
    return [
        f"without {item.constraint} {item.asked}"
        + (f" (there is {item.best_available})" if item.best_available else "")
        + f": on {item.nodes_without_it} more node{'s' if item.nodes_without_it > 1 else ''}, from {money.text(item.cheapest_without_it)} per GPU-hour"
        for item in answer.constraints
        if item.nodes_without_it
    ]


def _reference_line(item: ReferencePrice, money: Coin) -> str:
    """What the class is worth by the newest minute's auction; where nobody waited, who would have met whom."""
    if item.price_per_gpu_hour is not None:
        worth = f"{money.text(item.price_per_gpu_hour)}  ({item.gpu_class}, in the newest minute's auction)"
    else:
        asked = "nothing is free" if item.best_ask is None else f"offered from {money.text(item.best_ask)}"
        bid = "nobody waits for it" if item.best_bid is None else f"the best bid is {money.text(item.best_bid)}"
        worth = f"none  ({item.gpu_class}: {asked}, {bid})"
    return f"  reference price     {worth}"


def _constraints_table(answer: Quote) -> str:
    rows = [
        (
            item.constraint,
            item.asked,
            str(item.nodes_removed),
            item.best_available or "-",
        )
        for item in answer.constraints
    ]
    return table(("constraint", "asked", "nodes removed", "best available"), rows)


def _start_lines(start: StartEstimate) -> list[str]:
    def words(span_ms: int | None) -> str:
        return "unknown" if span_ms is None else duration(span_ms)

    if start.room_latest_ms == 0:
        room = "at once"
    elif start.room_expected_ms is None:
        room = "unknown: more jobs wait than nodes will be free"
    else:
        room = f"expected in {words(start.room_expected_ms)}, at the latest in {words(start.room_latest_ms)}"
    prepared = "unknown" if start.prepare_ms is None else f"about {words(start.prepare_ms)}"
    lines = [f"  a node has room     {room}", f"  image and inputs    {prepared}  (nobody pays for it)"]
    return lines + [f"    {line}" for line in start.basis]
