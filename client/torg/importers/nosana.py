"""A Nosana job definition as our job spec.

One `container/run` becomes a job of one container, several become its tasks; `container/create-volume` its volumes. What an operation
does not say itself comes from `global`; a GPU there is a GPU for all.
"""

from __future__ import annotations

import math
from typing import Any

from torg.importers.nosana_containers import job_of_one, job_of_tasks, port_numbers
from torg.importers.nosana_literals import variables_filled_in
from torg.importers.nosana_schema import Definition, RunOperation
from torg.importers.nosana_values import has_literals
from torg.importers.resources import resources_for
from torg.importers.strict import checked, problem, refusal
from torg.importers.translation import Drops, Translation, name_of

TITLE = "Nosana job definition"


def translate(raw: dict[str, Any]) -> Translation:
    """Raises Invalid (code "spec_invalid") for what their own validator, or their node, would refuse."""
    checked(Definition, raw, TITLE)
    filled, problems = variables_filled_in(raw, (raw.get("global") or {}).get("variables") or {})
    if problems:
        raise refusal(TITLE, problems)
    definition = checked(Definition, filled, TITLE)
    if problems := _contradictions(definition):
        raise refusal(TITLE, problems)
    drops = Drops()
    _drop_around(definition, drops)
    runs = list(definition.runs())
    if _is_one_container(definition):
        job, origins = job_of_one(*runs[0], definition, drops)
        width = 1
    else:
        job, origins = job_of_tasks(definition, drops)
        width = _most_at_once(definition)
    for number, operation in runs:
        _drop_of_operation(number, operation, drops, alone=len(runs) == 1)
    resources = resources_for(
        gpus=_gpus(definition),
        min_vram=_vram(definition),
        at_once=width,
        models=any(op.args.resources for _, op in runs),
    )
    spec = {"version": 1, "name": name_of(runs[0][1].id), **job, "resources": resources}
    return Translation("nosana", TITLE, spec, tuple(drops.items), {**origins, "resources.min_vram": "meta"})


def _is_one_container(definition: Definition) -> bool:
    """As a task it can start again, have volumes and results, and know its job."""
    runs = [operation for _, operation in definition.runs()]
    first, args = runs[0], runs[0].args
    needs_task = args.volumes or args.restart_policy not in (None, "no") or first.results or has_literals(first)
    return len(runs) == 1 and not needs_task


def _most_at_once(definition: Definition) -> int:
    groups = [operation.execution.group or operation.id for _, operation in definition.runs()]
    return max(groups.count(group) for group in groups)


def _gpus(definition: Definition) -> int:
    """Their jobs get all GPUs of a node, which has one."""
    return int(definition.shared.gpu or any(op.args.gpu for _, op in definition.runs()))


def _vram(definition: Definition) -> str | None:
    """What the file says that it needs. There nobody looks at it before the job runs out of memory; here it is a condition."""
    asked_mb = [amount * 1000 for _, op in definition.runs() if (amount := _number(op.args.required_vram))]
    for name in ("system_requirements", "system_resources"):
        said = definition.meta.get(name)
        if isinstance(said, dict):
            asked_mb += [value for value in [_number(said.get("vram_total_mb"))] if value]
            asked_mb += [value * 1000 for value in [_number(said.get("required_vram"))] if value]
    return f"{math.ceil(max(asked_mb))}MB" if asked_mb else None


def _number(value: object) -> float | None:
    """None for what is no amount: their files say "24GB" as well."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if 0 < number < math.inf else None


# --- what their node would refuse -----------------------------------------------------------------------------------


def _contradictions(definition: Definition) -> list[dict[str, Any]]:
    problems: list[dict[str, Any]] = []
    first: dict[str, int] = {}
    for number, op in enumerate(definition.ops):
        if op.id in first:
            problems.append(problem(f"ops.{number}.id", "there twice", op.id, f"ops.{first[op.id]} has it too"))
        first.setdefault(op.id, number)
    groups = {op.id: op.execution.group or op.id for op in definition.ops}
    volumes = {op.args.name for _, op in definition.volumes()}
    if not any(True for _ in definition.runs()):
        problems.append(problem("ops", "nothing runs: there is no container/run operation"))
    for number, op in definition.runs():
        here = f"ops.{number}"
        if not (op.args.image or definition.shared.image):
            problems.append(problem(f"{here}.args.image", "is missing"))
        for place, wanted in enumerate(op.execution.depends_on):
            if groups.get(wanted) != groups[op.id]:
                hint = "there is no such operation" if wanted not in groups else "it is in another group"
                problems.append(problem(f"{here}.execution.depends_on.{place}", "not in this group", wanted, hint))
            elif (circle := _way_back(op, wanted, definition)) is not None:
                hint = "take one of these out"
                problems.append(
                    problem(f"{here}.execution.depends_on.{place}", f"waits for itself: {circle}", wanted, hint)
                )
        for place, volume in enumerate(op.args.volumes):
            if volume.name not in volumes:
                hint = "a container/create-volume operation makes it"
                problems.append(problem(f"{here}.args.volumes.{place}.name", "no such volume", volume.name, hint))
        problems += _port_problems(op, f"{here}.args.expose")
    return problems


def _way_back(start: RunOperation, wanted: str, definition: Definition) -> str | None:
    """From an operation by what it depends on to itself, if it leads there; told once, of the one that stands first."""
    order = {op.id: number for number, op in reversed([*definition.runs()])}
    wants = {op.id: op.execution.depends_on for _, op in definition.runs()}
    ways: list[tuple[str, ...]] = [(start.id, wanted)]
    seen = {wanted}
    while ways:
        way = ways.pop()
        if way[-1] == start.id:
            return " -> ".join(way) if all(order[start.id] <= order[one] for one in way) else None
        for one in wants.get(way[-1], ()):
            if one not in seen:
                seen.add(one)
                ways.append((*way, one))
    return None


def _port_problems(operation: RunOperation, path: str) -> list[dict[str, Any]]:
    taken: set[int] = set()
    problems = []
    for number, item in enumerate(operation.args.expose):
        ports = set(port_numbers(item))
        if taken & ports:
            problems.append(problem(f"{path}.{number}", "exposed twice", min(taken & ports), "each port once"))
        taken |= ports
    return problems


# --- what has no place here -----------------------------------------------------------------------------------------


def _drop_around(definition: Definition, drops: Drops) -> None:
    for key, value in definition.meta.items():
        rest = _without_amounts(key, value) if isinstance(value, dict) else value
        if rest:
            drops.remark(f"meta.{key}", rest, "advice to their website, which nothing enforces")
    if definition.deployment_id is not None:
        drops.remark("deployment_id", definition.deployment_id, "names replicas of a service; this is one job")
    if definition.logistics is not None:
        drops.lose("logistics", "...", "the definition and its results travel by the marketplace here")
    if definition.ssh is not None and definition.ssh.public_keys:
        drops.lose("ssh.public_keys", len(definition.ssh.public_keys), "jobs take no logins of foreign keys")


def _without_amounts(key: str, said: dict[str, Any]) -> dict[str, Any]:
    """Of what their website is told that which `_vram` does not use."""
    used = ("vram_total_mb", "required_vram") if key in ("system_requirements", "system_resources") else ()
    return {name: value for name, value in said.items() if name not in used or _number(value) is None}


def _drop_of_operation(number: int, operation: RunOperation, drops: Drops, *, alone: bool) -> None:
    here, args = f"ops.{number}", operation.args
    if args.authentication is not None:
        drops.lose(
            f"{here}.args.authentication",
            "...",
            "not taken from a file: write registries, and secrets that are read from variables",
        )
    if args.aliases and alone:
        drops.remark(f"{here}.args.aliases", args.aliases, "names for other operations, of which there are none")
    elif args.aliases:
        drops.lose(f"{here}.args.aliases", args.aliases, "each task has a network of its own")
    if operation.execution.stop_if_dependent_stops:
        drops.lose(f"{here}.execution.stop_if_dependent_stops", True, "a task that ended stops no other one")
    if isinstance(args.cmd, tuple) and len(args.cmd) == 1 and " " in args.cmd[0] and args.entrypoint is None:
        drops.remark(f"{here}.args.cmd", args.cmd[0], "one word with blanks: no shell takes it apart, there as here")
    if args.output is not None:
        drops.remark(f"{here}.args.output", args.output, "their own programs refuse it; write to $TORG_OUTPUT_DIR")
