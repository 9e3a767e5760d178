"""Operations as containers: the job's only one, or its tasks.

Their node runs `cmd` as the arguments of `entrypoint`, or of the image's own; a `cmd` that is one text goes through `/bin/sh -c`.
Operations without a group are stages of their own, one after the other; in a group they start together, or once what they depend on
runs, or is healthy where it has health checks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torg.importers.nosana_literals import without_marker
from torg.importers.nosana_schema import (
    LITERAL,
    REMOVE_IF_EMPTY,
    Definition,
    ExposedPort,
    Global,
    HttpCheck,
    RestartOnFailure,
    RunOperation,
)
from torg.importers.nosana_values import inputs_of, results_of, results_wanted, with_expressions
from torg.importers.translation import Drops, name_of

_MOST_PORTS = 16  # of a job
_RESTARTS = {"no": "never", "always": "always", "unless-stopped": "always", "on-failure": "on-failure"}

Part = tuple[dict[str, Any], dict[str, str]]  # of a job file, and where its fields came from


def job_of_one(number: int, operation: RunOperation, definition: Definition, drops: Drops) -> Part:
    args, here = operation.args, f"ops.{number}"
    job, origins = _container(number, operation, definition.shared, drops)
    if operation.execution.timeout is not None:
        job["limits"] = {"max_duration": f"{math.ceil(operation.execution.timeout)}s"}
        origins["limits.max_duration"] = f"{here}.execution.timeout"
    origins |= _serve(job, operation, f"{here}.args.expose", drops, _MOST_PORTS)
    if args.private:
        drops.remark(f"{here}.args.private", True, "here nobody but you reaches a job's ports")
    return job, origins


def job_of_tasks(definition: Definition, drops: Drops) -> Part:
    names, volumes = (
        _unique([op.id for op in definition.ops]),
        _unique([op.args.name for _, op in definition.volumes()]),
    )
    tasks, origins, served = list[dict[str, Any]](), {"tasks": "ops"}, 0
    for position, (number, operation) in enumerate(definition.runs()):
        task, fields = _task(number, operation, definition, names, volumes, drops)
        tasks.append({"name": names[operation.id], **task})
        origins |= {f"tasks.{position}.{ours}": theirs for ours, theirs in fields.items()}
        origins[f"tasks.{position}"] = f"ops.{number}"
        path = f"ops.{number}.args.expose"
        places = _serve(tasks[-1], operation, path, drops, _MOST_PORTS - served)
        origins |= {f"tasks.{position}.{ours}": theirs for ours, theirs in places.items()}
        served += len(tasks[-1].get("ports", ()))
        if operation.args.private:
            drops.remark(f"ops.{number}.args.private", True, "here nobody but you reaches a job's ports")
    return {"tasks": tasks, **({"volumes": {name: {} for name in volumes.values()}} if volumes else {})}, origins


def _unique(wanted: list[str]) -> dict[str, str]:
    """By what their author wrote: what fits our names, each once."""
    names: dict[str, str] = {}
    for one in wanted:
        name, number = name_of(one), 1
        while name in names.values() and one not in names:
            number += 1
            name = f"{name_of(one)[:58]}-{number}"
        names.setdefault(one, name)
    return names


def _task(
    number: int,
    operation: RunOperation,
    definition: Definition,
    names: dict[str, str],
    volumes: dict[str, str],
    drops: Drops,
) -> Part:
    shared = definition.shared
    checked = {one.id for _, one in definition.runs() for port in one.args.expose if getattr(port, "health_checks", ())}
    task, origins = _container(number, operation, shared, drops)
    task = with_expressions(task, origins, names, drops)
    args, execution, here = operation.args, operation.execution, f"ops.{number}"
    if results := results_of(operation, f"{here}.results", drops):
        task["results"] = results
        origins["results"] = f"{here}.results"
    task["group"] = (execution.group or operation.id)[:63]
    task["gpu"] = args.gpu or shared.gpu
    if others := _waits_for(operation, definition):
        wanted = results_wanted(operation)  # which are there once the other one has ended
        until = {
            other: "succeeded" if other in wanted else "ready" if other in checked else "started" for other in others
        }
        task["depends_on"] = [{"task": names[other], "until": until[other]} for other in others]
    if execution.timeout is not None:
        task["timeout"] = f"{math.ceil(execution.timeout)}s"
    if args.restart_policy not in (None, "no"):
        task["restart"] = _restart(args.restart_policy)
    if args.volumes:
        task["volumes"] = [{"volume": volumes[volume.name], "path": volume.dest} for volume in args.volumes]
    places = {"group": "group", "depends_on": "depends_on", "timeout": "timeout"}
    origins |= {ours: f"{here}.execution.{theirs}" for ours, theirs in places.items()}
    origins |= {"volumes": f"{here}.args.volumes", "restart": f"{here}.args.restart_policy"}
    origins["restart.max_restarts"] = f"{here}.args.restart_policy.restart_tries"
    for place in range(len(args.volumes)):
        origins[f"volumes.{place}.path"] = f"{here}.args.volumes.{place}.dest"
    return task, origins


def _waits_for(operation: RunOperation, definition: Definition) -> list[str]:
    """The ids of what has to run first. An operation that stops when what it depends on stops serves it: there it starts before them."""
    execution = operation.execution
    own = () if execution.stop_if_dependent_stops else execution.depends_on
    servers = [
        other.id
        for _, other in definition.runs()
        if other.execution.stop_if_dependent_stops and operation.id in other.execution.depends_on
    ]
    return list(dict.fromkeys([*own, *servers]))


def _container(number: int, operation: RunOperation, shared: Global, drops: Drops) -> Part:
    args, here = operation.args, f"ops.{number}.args"
    entrypoint = _as_list(args.entrypoint)
    if entrypoint and REMOVE_IF_EMPTY in entrypoint and any(LITERAL.search(word) for word in entrypoint):
        drops.lose(f"{here}.entrypoint", list(entrypoint), "whether there is one is known before the job runs")
        entrypoint = None
    entrypoint = without_marker(entrypoint) or _as_list(shared.entrypoint)
    inputs, found, sources = inputs_of(operation, f"{here}.resources", drops)
    env = {**found, **shared.env, **args.env}
    cmd = ("/bin/sh", "-c", args.cmd) if isinstance(args.cmd, str) else without_marker(args.cmd)
    container = {
        "image": args.image or shared.image,
        **({"command": list(entrypoint)} if entrypoint else {}),
        **({"args": list(cmd)} if cmd else {}),
        "workdir": args.work_dir or shared.work_dir or "image",
        **({"env": env} if env else {}),
        **({"inputs": inputs} if inputs else {}),
    }
    origins = {
        "image": f"{here}.image" if args.image else "global.image",
        "command": f"{here}.entrypoint" if args.entrypoint else "global.entrypoint",
        "args": f"{here}.cmd",
        "workdir": f"{here}.work_dir" if args.work_dir else "global.work_dir",
        **{f"env.{name}": f"global.env.{name}" for name in shared.env},
        **{f"env.{name}": f"{here}.env.{name}" for name in args.env},
        "env": f"{here}.env",
        "inputs": f"{here}.resources",
        **sources,
    }
    return container, origins


def _as_list(words: Any) -> tuple[str, ...] | None:
    return (words,) if isinstance(words, str) else words


def _restart(policy: Any) -> Any:
    if isinstance(policy, RestartOnFailure):
        tries = {"max_restarts": policy.restart_tries} if policy.restart_tries else {}
        return {"policy": "on-failure", **tries}
    return _RESTARTS[policy]


# --- ports ----------------------------------------------------------------------------------------------------------


def port_numbers(item: Any) -> range:
    """Of one entry of `expose`; empty for what only the run knows."""
    port = getattr(item, "port", item)
    if isinstance(port, int):
        return range(port, port + 1)
    if isinstance(port, str) and "%" not in port:
        first, _, last = port.partition("-")
        return range(int(first), int(last) + 1)
    return range(0)


def _serve(
    made: dict[str, Any], operation: RunOperation, path: str, drops: Drops, most: int = _MOST_PORTS
) -> dict[str, str]:
    """Its ports, up to what a job may serve; and where they came from."""
    found = list(_ports(operation, path, drops, most))
    if found:
        made["ports"] = [port for port, *_ in found]
    origins = {f"ports.{number}": place for number, (_, place, _) in enumerate(found)}
    origins |= {f"ports.{number}.health.http": f"{check}.path" for number, (*_, check) in enumerate(found)}
    return {"ports": path, **origins}


def _ports(operation: RunOperation, path: str, drops: Drops, most: int) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Each with its place, and its check's."""
    made = 0
    for place, item in enumerate(operation.args.expose):
        here, numbers = f"{path}.{place}", port_numbers(item)
        if not numbers:
            drops.lose(here, _port_text(item), "which ports a job serves is known before it runs")
            continue
        if made + len(numbers) > most:
            drops.lose(here, _port_text(item), f"a job serves at most {_MOST_PORTS} ports")
            continue
        made += len(numbers)
        health, checked = _health(item, here, drops) if isinstance(item, ExposedPort) else (None, here)
        for number in numbers:
            yield {"port": number, **({"health": health} if health else {})}, here, checked


def _health(port: ExposedPort, path: str, drops: Drops) -> tuple[dict[str, Any] | None, str]:
    """The first check that is a plain GET, and where it stands; a port without one is asked for a connection."""
    found, checked = None, path
    if port.type != "web":
        drops.remark(f"{path}.type", port.type, "every port is passed on as it is")
    for place, check in enumerate(port.health_checks):
        here = f"{path}.health_checks.{place}"
        if found is None and isinstance(check, HttpCheck) and check.method == "GET" and check.body is None:
            found, checked = {"http": check.path, "expect_status": check.expected_status}, here
            if check.headers:
                drops.remark(f"{here}.headers", list(check.headers), "a health check sends no headers of its own")
        else:
            kind = f"{check.method} {check.path}" if isinstance(check, HttpCheck) else check.type
            drops.remark(here, kind, "a port has one health check: GET, or an accepted connection")
    return found, checked


def _port_text(item: Any) -> str:
    return str(getattr(item, "port", getattr(item, "spread", item)))
