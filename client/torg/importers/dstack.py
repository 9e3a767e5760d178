"""A dstack task: its commands run in one shell, in its image, with the folder of the file as workspace."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torg.importers.amounts import cores, seconds, size
from torg.importers.assembly import Container, assembled
from torg.importers.reading import Part, Reading, pairs_of
from torg.importers.translation import Translation

TITLE = "dstack task"
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
    container = _container(top)
    around: dict[str, Any] = {}
    _limits(top, around)
    if regions := top.texts("regions"):
        around["placement"] = {"regions": list(regions)}
    if _sends_folder(top):
        around["workspace"] = "."
    if (top.whole("nodes") or 1) > 1:
        top.lose("translated for one node; of several: gang: {size: N}, and TORG_RANK tells them apart", "nodes")
    top.lose("a private registry's password would be open to the node", "registry_auth")
    top.lose("a job runs as an unprivileged user, without further rights", "user", "privileged", "docker", "nvcc")
    kept = _volumes(top, container)
    top.lose("a job runs when it is submitted", "schedule")
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
            source, target = part.text("name") or part.text("instance_path") or "", part.text("path", needed=True) or ""
            part.remark("a volume is brought where the job runs", "optional")
            part.finish()
        else:
            source, _, target = str(item).partition(":")
        if not source or source.startswith("/"):
            top.reading.drops.lose(path, str(item), "a folder of a machine that one keeps; name a volume")
        else:
            kept[source] = source
            container.volumes.append({"volume": source, "path": target})
    return kept


def _container(top: Part) -> Container:
    image, name = top.text("image"), top.text("name")
    fields: dict[str, Any] = {"image": image or "host-python"}
    if image is None:
        top.remark("the node's Python is what runs", "python")
        why = "without an image their own runs, with CUDA and conda; here it is the node's Python: name an image"
        top.reading.drops.lose("image", None, why)
    else:
        top.remark("the image's Python is what runs", "python")
    commands = top.texts("commands") or ()
    shell, entrypoint = top.text("shell"), top.text("entrypoint")
    if commands and entrypoint is None:
        fields |= {"command": [shell or "/bin/sh", "-c"], "args": [" && ".join(commands)]}
    elif entrypoint is not None:
        import shlex

        fields |= {"command": shlex.split(entrypoint), **({"args": list(commands)} if commands else {})}
    elif image is None:
        top.reading.wrong("commands", "is missing")
    if directory := top.text("working_dir"):
        if directory.startswith("/"):
            fields["workdir"] = directory
        else:
            top.lose("a job starts in its workspace; write an absolute path", "working_dir")
    elif image is not None and not _sends_folder(top):
        fields["workdir"] = "image"
    if env := _environment(top):
        fields["env"] = env
    places = {"command": "shell" if shell else "commands", "args": "commands", "workdir": "working_dir"}
    places |= {"image": "image", "env": "env", **{f"env.{key}": f"env.{key}" for key in env}}
    container = Container(name or "task", "", fields, places)
    for number, item in enumerate(top.texts("ports") or ()):
        target = item.rpartition(":")[2]
        if target.isdigit():
            container.ports.append(({"port": int(target)}, f"ports.{number}"))
        else:
            top.reading.wrong(f"ports.{number}", "not a port", item)
    _resources(top.part("resources"), container)
    return container


def _environment(top: Part) -> dict[str, str]:
    env = pairs_of(top, "env")
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
            if source in {".", "./"}:
                sends = True
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
    low = str(value).rpartition(":")[2].partition("..")[0].strip()  # x86:4.. names an architecture too
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
    container.min_vram = _least(gpu, "memory", _binary)
    gpu.lose("kinds are named as NVIDIA's driver names them: see torg offers, then write resources.gpu_class", "name")
    gpu.lose("it is the memory of each GPU that is asked for", "total_memory")
    gpu.lose("write it as resources.min_compute_capability", "compute_capability")
    if gpu.raw("vendor") not in (None, "nvidia"):
        gpu.lose("GPUs are NVIDIA's", "vendor")
    gpu.finish()


def _short_gpu(part: Part, text: str, container: Container) -> None:
    """`24GB`, `A100:2`, `A100:80GB:2`, `H100,H200:1..`, or a count."""
    container.gpus = 1
    for piece in text.split(":"):
        low = piece.partition("..")[0]
        if low.isdigit():
            container.gpus = int(low)
        elif re.fullmatch(r"[0-9.]+ ?[GMT]i?B?", low, re.IGNORECASE):
            container.min_vram = _binary(low)
        elif piece and piece.lower() != "nvidia":
            why = "kinds are named as NVIDIA's driver names them: see torg offers, then write resources.gpu_class"
            part.reading.drops.lose(part.at("gpu"), piece, why)


def _binary(value: object) -> str:
    return size(value, bare_is_binary=True)
