"""A dstack task: its commands run in one shell, in its image, with the folder of the file as workspace."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torg.importers.amounts import card_memory, cores, seconds, size
from torg.importers.assembly import Container, assembled, want_models
from torg.importers.dstack_shell import (
    default_image,
    exported_secrets,
    exports,
    joined,
    python_of,
    secrets_of,
    with_python,
)
from torg.importers.logins import take_login
from torg.importers.reading import Part, Reading, pairs_of
from torg.importers.translation import Translation

TITLE = "dstack task"
_INSIDE = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][\w.@+ /-]*")  # a path below the folder of the file, kept as it is
_SECRET = re.compile(r"\$\{\{\s*[^}]*\}\}")
_CLOUD = ("backends", "availability_zones", "instance_types", "instances", "reservation", "spot_policy", "idle_duration", "creation_policy", "fleets", "single_branch", "backend_options", "termination_idle_time", "termination_policy")  # fmt: skip


def translate(raw: dict[str, Any]) -> Translation:
    """Raises Invalid (code "spec_invalid") with all problems."""
    reading = Reading(TITLE)
    top = Part(reading, raw)
    if (kind := top.text("type", needed=True)) != "task":
        reading.wrong(
            "type", "only a task becomes a job", kind, "a service's command can be written as a task with ports"
        )
        reading.refuse()
    around: dict[str, Any] = {}
    if _sends_folder(top):
        around["workspace"] = "."
    if top.raw("groups") is not None:
        reading.wrong("groups", "a job runs the same commands on all of its nodes", None, "write a task for each group")
        reading.refuse()
    container = _container(top, around, nodes=_nodes(top, around))
    _limits(top, around)
    if regions := top.texts("regions"):
        around["placement"] = {"regions": list(regions)}
    if top.has("registry_auth"):
        take_login(top.part("registry_auth"), container.fields["image"], around)
    top.lose("a job runs as an unprivileged user, without further rights", "user", "privileged", "docker", "home_dir")
    kept = _volumes(top, container)
    top.lose("a job runs when it is submitted", "schedule")
    top.lose("their server is not reached from here", "dstack")
    top.lose("write it among the commands", "setup")
    top.lose("profiles of another file are not read", "profile", "env_file")
    top.lose("nothing is asked of a task from outside", "probes", "https", "gateway")
    top.lose("a job is stopped at its limits, not for what its GPU does", "utilization_policy")
    top.remark("which machine of which cloud; here nodes make offers (spot: true takes their spot prices)", *_CLOUD)
    top.remark("of several nodes", "startup_order", "stop_criteria")
    top.remark("the node says how long a job has to stop", "stop_duration")
    top.remark("among your own jobs write placement.priority", "priority")
    top.remark("nothing is kept beside a job's name", "tags")
    top.finish()
    reading.refuse()
    name = top.value.get("name")
    return assembled(
        "dstack",
        TITLE,
        [container],
        reading.drops,
        name=str(name or "task"),
        around=around,
        kept=kept,
    )


def _volumes(top: Part, container: Container) -> dict[str, str]:
    """Network volumes outlive a task here too. Folders of an instance are of a machine that one keeps."""
    kept: dict[str, str] = {}
    for number, item in enumerate(top.items("volumes")):
        path = f"{top.at('volumes')}.{number}"
        if isinstance(item, dict):
            part = Part(top.reading, item, path)
            source = _volume_name(part) or part.text("instance_path") or ""
            target = part.text("path", needed=True) or ""
            part.remark("a volume is brought where the job runs", "optional")
            part.finish()
        else:
            source, _, target = str(item).partition(":")
            if not target:
                top.reading.wrong(path, "not NAME:PATH", item)
                continue
        if not source or source.startswith("/"):
            top.reading.drops.lose(path, str(item), "a folder of a machine that one keeps; name a volume")
        else:
            kept[source] = source
            container.volumes.append({"volume": source, "path": target})
    return kept


def _volume_name(part: Part) -> str | None:
    """Of several, which are the same in different regions there, the first."""
    if not isinstance(part.value.get("name"), list):
        return part.text("name")
    first, *others = part.texts("name") or ("",)
    if others:
        part.reading.drops.remark(part.at("name"), others, "a volume follows its job to any region: one is enough")
    return first


def _container(top: Part, around: dict[str, Any], *, nodes: int) -> Container:
    name = top.text("name") or "task"
    image, shell, entrypoint = top.text("image"), top.text("shell"), top.text("entrypoint")
    fields: dict[str, Any] = {"image": image or default_image(nvcc=bool(top.flag("nvcc")))}
    container = Container(name, "", fields)
    _resources(top.part("resources"), container)
    in_shell = entrypoint is None and bool(top.value.get("commands"))
    secrets = secrets_of(top) if in_shell else {}
    if env := _environment(top, secrets):
        fields["env"] = env
    commands = top.texts("commands") or ()
    if in_shell:
        before = [with_python(python_of(top.value.get("python")))] if image is None else []
        before += exports(commands, nodes=nodes, gpus=container.gpus, name=name, top=top)
        words = joined([*before, *exported_secrets(secrets), *commands])
        fields |= {"command": [shell or ("/bin/sh" if image else "/bin/bash"), "-c"], "args": [words]}
    elif entrypoint is not None:
        fields |= {"command": _split(entrypoint, top), **({"args": list(commands)} if commands else {})}
    elif image is None:
        top.reading.wrong("commands", "is missing")
    if secrets:
        around["secrets"] = {secret: {"env": secret} for secret in secrets}
    _around_python(top, image)
    if directory := top.text("working_dir"):
        if directory.startswith("/"):
            fields["workdir"] = directory
        else:
            top.lose("a job starts in its workspace; write an absolute path", "working_dir")
    elif not around.get("workspace"):
        fields["workdir"] = "image"
    places = {field: field for field in ("image", "env", *(f"env.{key}" for key in env))}
    first = "entrypoint" if entrypoint is not None else "shell" if shell else "commands"
    container.places = {**places, "command": first, "args": "commands", "workdir": "working_dir"}
    _ports(top, container)
    return container


def _split(entrypoint: str, top: Part) -> list[str]:
    import shlex

    try:
        return shlex.split(entrypoint)
    except ValueError as error:
        top.reading.wrong("entrypoint", f"cannot be split into words: {error}", entrypoint)
        return []


def _around_python(top: Part, image: str | None) -> None:
    top.raw("python"), top.raw("nvcc")
    if image is None:
        top.reading.drops.remark(
            "image", default_image(nvcc=bool(top.value.get("nvcc"))), "their default; name another one to start sooner"
        )
    else:
        top.remark("the image's Python is what runs", "python")
        top.remark("the image's tools are what there is", "nvcc")


def _nodes(top: Part, around: dict[str, Any]) -> int:
    """Several nodes are a gang, in which every member runs the commands and knows its rank."""
    nodes = top.whole("nodes") or 1
    if nodes > 1 and top.value.get("volumes"):
        top.lose("several nodes share no volume: translated for one", "nodes")
        return 1
    if nodes > 1:
        around["gang"] = {"size": nodes}
    return nodes


def _ports(top: Part, container: Container) -> None:
    for number, item in enumerate(top.texts("ports") or ()):
        target = item.rpartition(":")[2]
        if target.isdigit():
            container.ports.append(({"port": int(target)}, f"ports.{number}"))
        else:
            top.reading.wrong(f"ports.{number}", "not a port", item)


def _environment(top: Part, secrets: Mapping[str, str]) -> dict[str, str]:
    env = pairs_of(top, "env", bare="" if secrets else None)
    for name, path in secrets.items():
        env.pop(name, None)
        why = "read from this shell when the job is submitted, sealed to the nodes that fit it, and exported before the commands"
        top.reading.drops.remark(path, name, why)
    for name, value in list(env.items()):
        if _SECRET.search(value):
            top.reading.drops.lose(f"env.{name}", name, "a secret or a value of their server, which is not known here")
            del env[name]
    return env


def _sends_folder(top: Part) -> bool:
    """Whether the folder of the file goes along: `files` or `repos` that are this very folder."""
    sends = False
    for key in ("files", "repos"):
        listed = top.raw(key)
        for number, item in enumerate(listed if isinstance(listed, list) else ()):
            source = str(item.get("local_path", item.get("path", "")) if isinstance(item, dict) else item).partition(
                ":"
            )[0]
            whole = str(item) if not isinstance(item, dict) else source if len(item) == 1 else ""
            if source in {".", "./"} and whole.rpartition(":")[2] in {".", "./"}:
                sends = True
            elif key == "files" and _INSIDE.fullmatch(whole):
                sends = True
                top.reading.drops.remark(
                    f"{key}.{number}",
                    item,
                    "the whole folder of this file is sent along, without what .torgignore names",
                )
            elif not any(drop.path == f"{key}.{number}" for drop in top.reading.drops.items):
                top.reading.drops.lose(f"{key}.{number}", item, "only the folder of this file itself is sent along")
    return sends


def _limits(top: Part, around: dict[str, Any]) -> None:
    duration = top.raw("max_duration")
    if duration not in (None, "off", False, -1):
        try:
            around["limits"] = {"max_duration": seconds(duration)}
        except ValueError as error:
            top.reading.wrong("max_duration", str(error), duration, "write it like 2h")
    if (price := top.raw("max_price")) is not None:
        top.reading.drops.remark(
            "max_price", price, "in dollars per hour and machine; ours is limits.max_price_per_hour, in tokens per GPU"
        )
    retry = top.raw("retry")
    if isinstance(retry, dict):
        part = top.part("retry")
        events = part.texts("on_events") or ()
        if "error" in events:
            around["retry"] = {"on_failure": 3}
        part.remark("how often is bounded, not how long", "duration")
        part.finish()
    elif retry is True:
        around["retry"] = {"on_failure": 3}


def _resources(part: Part, container: Container) -> None:
    amounts: tuple[tuple[str, str, Callable[[object], str]], ...] = (
        ("cpu", "cpus", cores),
        ("memory", "memory", _binary),
        ("shm_size", "shm", _binary),
    )
    for theirs, ours, read in amounts:
        if (text := _least(part, theirs, read)) is not None:
            setattr(container, ours, text)
    disk = part.raw("disk")
    if isinstance(disk, dict):
        inner = part.part("disk")
        container.disk = _least(inner, "size", _binary)
        inner.finish()
    elif disk is not None:
        container.disk = _least(part, "disk", _binary)
    gpu = part.raw("gpu")
    if isinstance(gpu, dict):
        _gpu(part.part("gpu"), container)
    elif gpu is not None:
        _short_gpu(part, str(gpu), container)
    part.finish()


def _least(part: Part, key: str, read: Callable[[object], str]) -> str | None:
    """Of a range `2..8`, `16GB..` or `..8` the lower end, which is what a job must have."""
    value = part.raw(key)
    if value is None:
        return None
    if isinstance(value, dict):
        value = value.get("min", value.get("count"))
        if value is None:
            return None
    named, _, amount = str(value).rpartition(":")  # arm:4.. names an architecture too
    if named not in {"", "x86"}:
        part.reading.drops.lose(part.at(key), named, "which processor it is cannot be asked for")
    low = amount.partition("..")[0].strip()
    if not low:
        return None
    try:
        return read(low)
    except ValueError as error:
        part.reading.wrong(part.at(key), str(error), value)
        return None


def _gpu(gpu: Part, container: Container) -> None:
    count = _least(gpu, "count", cores)
    container.gpus = int(float(count)) if count else 1
    container.min_vram = _least(gpu, "memory", card_memory)
    names = gpu.raw("name")
    listed = names if isinstance(names, list) else str(names or "").split(",")
    want_models(container, [(gpu.at("name"), str(name).strip()) for name in listed if name], gpu.reading.drops)
    gpu.lose("it is the memory of each GPU that is asked for", "total_memory")
    _compute_capability(gpu, container)
    if str(gpu.raw("vendor") or "nvidia").lower() != "nvidia" and not container.gpu_models:
        gpu.lose("name its models: a node has GPUs of either maker", "vendor")
    gpu.finish()


def _compute_capability(gpu: Part, container: Container) -> None:
    """`7.5`, or `[7, 5]`."""
    value = gpu.raw("compute_capability")
    if value is None:
        return
    text = ".".join(map(str, value)) if isinstance(value, list) else str(value)
    match = re.fullmatch(r"([0-9]{1,2})(\.[0-9])?", text)
    if match is None:
        gpu.reading.wrong(gpu.at("compute_capability"), "not like 7.5", value)
    else:
        container.min_compute_capability = match.group(1) + (match.group(2) or ".0")


def _short_gpu(part: Part, text: str, container: Container) -> None:
    """`24GB`, `A100:2`, `A100:80GB:2`, `H100,H200:1..`, or a count."""
    container.gpus = 1
    for piece in text.split(":"):
        low = piece.partition("..")[0]
        if low.isdigit():
            container.gpus = int(low)
        elif re.fullmatch(r"[0-9.]+ ?[GMT]i?B?", low, re.IGNORECASE):
            container.min_vram = card_memory(low)
        elif piece and piece.lower() not in {"nvidia", "amd"}:
            models = [(part.at("gpu"), name.strip()) for name in piece.split(",") if name.strip()]
            want_models(container, models, part.reading.drops)


def _binary(value: object) -> str:
    return size(value, bare_is_binary=True)
