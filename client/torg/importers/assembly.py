"""From containers, as any format describes them, to one job: its only container, or its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torg.importers.gpu_models import gpu_class_of, names_of_drivers
from torg.importers.resources import resources_for
from torg.importers.translation import Drops, Translation, name_of
from torg_protocol.quantities import parse_size_bytes

_MOST_PORTS = 16


@dataclass(slots=True)
class Container:
    """`fields`: image, command, args, workdir, env by our names. `ports`: ours, with their places. `volumes`: (volume, path)."""

    name: str
    path: str
    fields: dict[str, Any]
    places: dict[str, str] = field(default_factory=dict)  # where fields came from, if not `path`.FIELD
    ports: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)
    depends_on: list[dict[str, str]] = field(default_factory=list)  # by their names
    restart: Any = None
    group: str | None = None
    gpus: int = 0
    min_vram: str | None = None
    min_compute_capability: str | None = None
    gpu_models: tuple[str, ...] = ()  # names of drivers, any of which will do; none: any GPU
    cpus: str | None = None
    memory: str | None = None
    shm: str | None = None
    disk: str | None = None

    @property
    def needs_a_task(self) -> bool:
        return bool(self.volumes or self.restart or self.group)


def assembled(
    format_name: str,
    title: str,
    containers: Sequence[Container],
    drops: Drops,
    *,
    name: str | None = None,
    volumes: Sequence[str] = (),
    around: Mapping[str, Any] | None = None,
    apart: str | None = None,
    kept: Mapping[str, str] | None = None,
) -> Translation:
    """`around`: further fields of the job. `kept`: of the volumes those that outlive it, with the names that they have then. `apart`: why several containers lose something by having networks of their own."""
    alone = len(containers) == 1
    if alone and not containers[0].needs_a_task:
        job, origins = _one(containers[0], drops)
    else:
        job, origins = _several(containers, list(volumes), kept or {}, drops)
        if apart and (beside := _beside_each_other(containers)):
            drops.lose(containers[1].path.rpartition(".")[0] or "$", beside, apart)
    spec = {"version": 1, "name": name_of(name, containers[0].name), **job, "resources": _resources(containers, drops)}
    spec |= around or {}
    return Translation(format_name, title, spec, tuple(drops.items), origins)


def _beside_each_other(containers: Sequence[Container]) -> list[str]:
    """The names of those that may run at the same time as another one: of no other stage, and not begun after its end."""
    known = {item.name: item for item in containers}
    pairs = (
        (one, other)
        for number, one in enumerate(containers)
        for other in containers[number + 1 :]
        if one.group == other.group
        and not _begins_after(one, other.name, known)
        and not _begins_after(other, one.name, known)
    )
    names = {item.name for pair in pairs for item in pair}
    return [item.name for item in containers if item.name in names]


def waits_for_itself(containers: Sequence[Container]) -> tuple[str, ...] | None:
    """A way from a container by what it waits for to itself: of the first that has one."""
    wants = {item.name: [other["task"] for other in item.depends_on] for item in containers}
    for start in wants:
        ways: list[tuple[str, ...]] = [(start,)]
        seen = set[str]()
        while ways:
            way = ways.pop()
            for other in wants.get(way[-1], ()):
                if other == start:
                    return (*way, start)
                if other not in seen:
                    seen.add(other)
                    ways.append((*way, other))
    return None


def _begins_after(one: Container, ended: str, known: Mapping[str, Container], seen: tuple[str, ...] = ()) -> bool:
    return any(
        (item["task"] == ended and item["until"] == "succeeded")
        or (item["task"] not in seen and _begins_after(known[item["task"]], ended, known, (*seen, one.name)))
        for item in one.depends_on
    )


def want_models(container: Container, models: Sequence[tuple[str, str]], drops: Drops) -> None:
    """`models`: where each stands, and its name; any of them will do. One that is not known is lost."""
    found: list[str] = []
    for path, model in models:
        names = names_of_drivers(model)
        found += names
        if not names:
            drops.lose(
                path, model, "no GPU that is known here by this name: see torg offers, then write resources.gpu_class"
            )
    if found:
        container.gpu_models = tuple(dict.fromkeys(found))
        drops.remark(
            models[0][0],
            [model for _, model in models],
            "it is resources.gpu_class, by the names that drivers give: see torg offers",
        )


def _one(container: Container, drops: Drops) -> tuple[dict[str, Any], dict[str, str]]:
    job = dict(container.fields)
    origins = _serve(job, container, drops, _MOST_PORTS, "") if container.ports else {}
    return job, {**_origins(container), **origins}


def _serve(made: dict[str, Any], container: Container, drops: Drops, most: int, prefix: str) -> dict[str, str]:
    """Its ports, up to what a job may serve; and where they came from."""
    for _, path in container.ports[most:]:
        drops.lose(path, "", f"a job serves at most {_MOST_PORTS} ports")
    if taken := container.ports[:most]:
        made["ports"] = [port for port, _ in taken]
    return {f"{prefix}ports.{number}": path for number, (_, path) in enumerate(taken)}


def _several(
    containers: Sequence[Container], volumes: list[str], kept: Mapping[str, str], drops: Drops
) -> tuple[dict[str, Any], dict[str, str]]:
    names = _names(containers)
    tasks, origins = [], dict[str, str]()
    for number, container in enumerate(containers):
        task = {"name": names[container.name], **container.fields}
        if container.group:
            task["group"] = container.group
        if container.depends_on:
            task["depends_on"] = [{**item, "task": names[item["task"]]} for item in container.depends_on]
        if container.restart:
            task["restart"] = container.restart
        if container.volumes:
            task["volumes"] = [
                {**item, "volume": name_of(kept.get(item["volume"], item["volume"]))} for item in container.volumes
            ]
        if any(item.gpus for item in containers):
            task["gpu"] = container.gpus > 0
        tasks.append(task)
        origins |= {f"tasks.{number}.{ours}": theirs for ours, theirs in _origins(container).items()}
        origins[f"tasks.{number}"] = container.path
        if container.ports:
            left = _MOST_PORTS - sum(len(item.get("ports", ())) for item in tasks)
            origins |= _serve(task, container, drops, left, f"tasks.{number}.")
    mounts = [mount for container in containers for mount in container.volumes]
    used = {mount["volume"] for mount in mounts}
    written = {mount["volume"] for mount in mounts if not mount.get("read_only")}
    made: dict[str, dict[str, Any]] = {
        name_of(volume): {} for volume in volumes if volume in used and volume not in kept
    }
    for volume, name in kept.items():
        if volume in used:
            made[name_of(name)] = {"keep": True} | ({} if volume in written else {"read_only": True})
    return {"tasks": tasks, **({"volumes": made} if made else {})}, origins


def _names(containers: Sequence[Container]) -> dict[str, str]:
    """By what their author wrote: what fits ours, each once."""
    names: dict[str, str] = {}
    for container in containers:
        name, number = name_of(container.name), 1
        while name in names.values():
            number += 1
            name = f"{name_of(container.name)[:58]}-{number}"
        names[container.name] = name
    return names


def _origins(container: Container) -> dict[str, str]:
    return {name: container.places.get(name, f"{container.path}.{name}") for name in container.fields}


def _resources(containers: Sequence[Container], drops: Drops) -> dict[str, Any]:
    """The sum of what containers ask for, as if they ran beside each other; GPUs are shared, so of them the most."""
    width = len({item.group for item in containers}) if all(item.group for item in containers) else 1
    at_once = max(1, len(containers) // width) if width > 1 else len(containers)
    gpus = max(item.gpus for item in containers)
    vram = max((item.min_vram for item in containers if item.min_vram), key=parse_size_bytes, default=None)
    given: dict[str, Any] = {
        "gpu_class": _gpu_class(containers, drops),
        "min_compute_capability": next((one for item in containers if (one := item.min_compute_capability)), None),
        "cpus": _sum_of_cores([item.cpus for item in containers]),
        **{name: _sum_of_sizes([getattr(item, name) for item in containers]) for name in ("memory", "shm", "disk")},
    }
    return resources_for(gpus=gpus, min_vram=vram, at_once=at_once, **given)


def _gpu_class(containers: Sequence[Container], drops: Drops) -> str | None:
    """All run on one node, whose GPUs are of one kind."""
    asked = [item for item in containers if item.gpus and item.gpu_models]
    if not asked:
        return None
    common = [name for name in asked[0].gpu_models if all(name in item.gpu_models for item in asked)]
    if not common:
        drops.lose(asked[1].path, asked[1].gpu_models, "another container wants other GPUs, and a node has one kind")
        return gpu_class_of(asked[0].gpu_models)
    return gpu_class_of(common)


def _sum_of_cores(asked: Sequence[str | None]) -> str | None:
    said = [Fraction(one) for one in asked if one is not None]
    return None if not said else f"{float(sum(said) + len(asked) - len(said)):g}"


def _sum_of_sizes(asked: Sequence[str | None]) -> str | None:
    """None when nobody says; then the default is taken."""
    from torg.importers.amounts import size_text

    said = [parse_size_bytes(one) for one in asked if one is not None]
    return size_text(sum(said)) if said else None
