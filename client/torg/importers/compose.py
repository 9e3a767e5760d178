"""A docker-compose file: one service is a job, several are its tasks.

A job's containers share a node, a disk and volumes, but have a network each; services that talk to each other are therefore lost as
such, and told. `docs/reference/importers.md` has the table.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

from torg.importers.amounts import cores, size
from torg.importers.assembly import Container, assembled, waits_for_itself
from torg.importers.compose_extends import extended
from torg.importers.compose_health import read_health, wait_until_healthy
from torg.importers.compose_variables import environment_of, interpolated
from torg.importers.reading import Part, Reading
from torg.importers.surroundings import Surroundings
from torg.importers.translation import Translation, name_of

TITLE = "docker-compose file"
APART = "each task has a network of its own: services do not reach each other"
_UNTIL = {"service_started": "started", "service_healthy": "ready", "service_completed_successfully": "succeeded"}
_ALL_GPUS = "a job names how many, and that is one here: resources.gpus asks for more"
_WALLS = ("user", "privileged", "cap_add", "devices", "userns_mode", "pid", "ipc", "cgroup", "cgroup_parent", "uts", "sysctls", "security_opt", "group_add", "device_cgroup_rules")  # fmt: skip
_HABITS = ("container_name", "hostname", "domainname", "labels", "logging", "stdin_open", "tty", "init", "pull_policy", "isolation", "stop_grace_period", "stop_signal", "label_file", "annotations", "attach", "read_only", "cap_drop", "runtime", "oom_score_adj", "oom_kill_disable", "memswap_limit", "mem_swappiness", "cpu_shares", "storage_opt", "develop", "networks", "links", "mac_address")  # fmt: skip


def translate(raw: dict[str, Any], surroundings: Surroundings | None = None) -> Translation:
    """Raises Invalid (code "spec_invalid") with all problems."""
    reading, surroundings = Reading(TITLE), surroundings or Surroundings()
    filled = interpolated(raw, "", reading, surroundings)
    top = Part(reading, {**filled, "services": extended(filled["services"])})
    top.raw("version")  # obsolete there too
    name = top.text("name")
    kept = {volume: _volume(volume, part) for volume, part in top.named("volumes")}
    volumes = list(kept)
    top.remark("services have no network between them, and none outwards unless the job says so", "networks")
    top.lose("files and secrets of the author's machine do not travel", "secrets", "configs")
    top.lose("other files are not read; put all into one", "include")
    top.lose("nothing is provided from outside of the containers", "models")
    containers = [
        _service(service, part, volumes, surroundings) for service, part in _started(dict(top.named("services")))
    ]
    if not containers:
        reading.wrong("services", "is missing")
    top.finish()
    known = {container.name: container for container in containers}
    for container in containers:
        for item in container.depends_on:
            if item["task"] not in known:
                reading.wrong(f"{container.path}.depends_on", "there is no such service", item["task"])
        wait_until_healthy(container, known, top)
    if (circle := waits_for_itself(containers)) is not None:
        message, hint = f"waits for itself: {' -> '.join(circle)}", "take one of these out"
        reading.wrong(f"{known[circle[0]].path}.depends_on", message, circle[1], hint)
    reading.refuse()
    return assembled("compose", TITLE, containers, reading.drops, name=name, volumes=volumes, apart=APART, kept=kept)


def _started(services: dict[str, Part]) -> list[tuple[str, Part]]:
    """Those that start when no profile is asked for, and what they depend on; all, where every one has a profile."""
    wanted = [name for name, part in services.items() if not part.value.get("profiles")] or list(services)
    for name in wanted:
        depends_on = services[name].value.get("depends_on")
        others = map(str, depends_on) if isinstance(depends_on, list | dict) else ()
        wanted += [other for other in others if other in services and other not in wanted]
    for name, part in services.items():
        if name not in wanted:
            why = "it has a profile, and starts only when that is asked for: take profiles away to have it too"
            part.reading.drops.remark(part.at("profiles"), part.value["profiles"], why)
    return [(name, part) for name, part in services.items() if name in wanted]


def _volume(name: str, part: Part) -> str:
    """Under which name it outlives the job, as it outlives the containers there."""
    older = (
        part.part("external") if isinstance(part.value.get("external"), dict) else None
    )  # {name: N}, until file version 3.4
    if older is None:
        part.flag("external")
    found = part.text("name") or (older and older.text("name")) or name
    if older is not None:
        older.finish()
    part.remark("the volume is kept in the marketplace's store", "driver", "driver_opts", "labels")
    part.finish()
    return found


def _service(name: str, part: Part, volumes: list[str], surroundings: Surroundings) -> Container:
    reading, here = part.reading, part.path
    image = part.text("image")
    if image is None and part.has("build"):
        part.lose("no image is built here: build it, push it, and name it instead of this one", "build")
        image = name_of(name)
    elif image is None:
        hint = "what it extends is in another file, or is itself: put both into one" if part.has("extends") else None
        reading.wrong(part.at("image"), "is missing", None, hint)
    else:
        part.remark("the image is pulled, not built", "build")
    fields: dict[str, Any] = {"image": image or "", "workdir": part.text("working_dir") or "image"}
    for theirs, ours in (("entrypoint", "command"), ("command", "args")):
        if words := _words(part, theirs):
            fields[ours] = words
    if env := environment_of(part, surroundings):
        fields["env"] = env
    places = {"command": f"{here}.entrypoint", "args": f"{here}.command", "workdir": f"{here}.working_dir"}
    places |= {"env": f"{here}.environment", **{f"env.{key}": f"{here}.environment.{key}" for key in env}}
    container = Container(name, here, fields, places)
    _resources(part, container)
    _ports(part, container)
    read_health(part, container)
    _mounts(part, container, volumes)
    _dependencies(part, container)
    container.restart = _restart(part)
    _drop_rest(part)
    return container


def _words(part: Part, key: str) -> list[str] | None:
    """A text is split as a shell would split it, but no shell runs it."""
    value = part.raw(key)
    if isinstance(value, str):
        try:
            return shlex.split(value)
        except ValueError as error:
            part.reading.wrong(part.at(key), f"cannot be split into words: {error}", value)
            return None
    return list(part.texts(key) or ())


def _resources(part: Part, container: Container) -> None:
    deploy = part.part("deploy")
    asked = deploy.part("resources")
    limits, reserved = asked.part("limits"), asked.part("reservations")
    amounts = (
        ("cpus", ((part, "cpus"), (limits, "cpus"), (reserved, "cpus"))),
        ("memory", ((part, "mem_limit"), (limits, "memory"), (part, "mem_reservation"), (reserved, "memory"))),
        ("shm", ((part, "shm_size"),)),
    )
    for ours, places in amounts:
        for owner, key in places:
            value = owner.raw(key)
            if value is None:
                continue
            try:
                text = cores(value) if ours == "cpus" else size(value, bare_is_binary=True)
            except ValueError as error:
                part.reading.wrong(owner.at(key), str(error), value)
                continue
            if getattr(container, ours) is None:
                setattr(container, ours, text)
    _gpus(part, reserved, container)
    for one in (limits, reserved):
        one.remark("the node bounds processes itself", "pids")
        one.lose("only GPUs are passed on", "generic_resources")
        one.finish()
    asked.finish()
    for owner, key in ((deploy, "replicas"), (part, "scale")):
        if (replicas := owner.whole(key)) not in (None, 1):
            owner.reading.drops.lose(owner.at(key), replicas, "a job runs each service once")
    deploy.remark(
        "what a swarm does with services",
        "mode",
        "placement",
        "labels",
        "update_config",
        "rollback_config",
        "endpoint_mode",
    )
    deploy.remark("restart, beside it, is what counts", "restart_policy")
    deploy.finish()


def _gpus(part: Part, reserved: Part, container: Container) -> None:
    for device in reserved.parts("devices"):
        _device(device, container)
    gpus = part.raw("gpus")
    if gpus == "all":
        container.gpus = 1
        part.reading.drops.remark(part.at("gpus"), gpus, _ALL_GPUS)
    elif isinstance(gpus, list):
        for device in part.parts("gpus"):
            _device(device, container)


def _device(device: Part, container: Container) -> None:
    capabilities = device.texts("capabilities") or ("gpu",)
    ids, count = device.texts("device_ids"), device.raw("count")
    if "gpu" not in capabilities:
        device.reading.drops.lose(device.path, capabilities, "only GPUs are passed on")
    elif ids:
        container.gpus = len(ids)
    elif isinstance(count, int) and count > 0:
        container.gpus = count
    else:  # "all", -1, or nothing, which is the same
        container.gpus = 1
        device.reading.drops.remark(device.at("count"), "all" if count is None else count, _ALL_GPUS)
    device.remark("GPUs are NVIDIA's", "driver", "options")
    device.finish()


def _ports(part: Part, container: Container) -> None:
    for number, item in enumerate(part.items("ports")):
        path = f"{part.at('ports')}.{number}"
        if isinstance(item, dict):
            long = Part(part.reading, item, path)
            target, protocol = str(long.raw("target") or ""), long.text("protocol") or "tcp"
            long.remark(
                "a job's port is reached under an address of its own",
                "published",
                "host_ip",
                "mode",
                "name",
                "app_protocol",
            )
            long.finish()
        else:
            address, _, protocol = str(item).partition("/")
            target, protocol = address.rpartition(":")[2], protocol or "tcp"
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", target)
        if match is None:
            part.reading.wrong(path, "not a port", str(item))
        elif protocol != "tcp":
            part.reading.drops.lose(path, str(item), "only TCP is passed on")
        else:
            last = int(match.group(2) or match.group(1))
            container.ports += [({"port": port}, path) for port in range(int(match.group(1)), last + 1)]
    part.remark("for other services, which have networks of their own", "expose")


def _mounts(part: Part, container: Container, volumes: list[str]) -> None:
    for number, item in enumerate(part.items("volumes")):
        path = f"{part.at('volumes')}.{number}"
        if isinstance(item, dict):
            long = Part(part.reading, item, path)
            source, target = long.text("source") or "", long.text("target", needed=True) or ""
            kind, read_only = long.text("type") or "volume", bool(long.flag("read_only"))
            long.remark("details of the mount", "bind", "volume", "tmpfs", "consistency")
            long.finish()
        else:
            pieces = str(item).split(":")
            source, target = (pieces[0], pieces[1]) if len(pieces) > 1 else ("", pieces[0])
            read_only = len(pieces) > 2 and "ro" in pieces[2].split(",")  # SOURCE:TARGET:OPTIONS
            kind = "bind" if source.startswith((".", "/", "~")) else "volume"
        if kind == "volume" and source in volumes:
            container.volumes.append({"volume": source, "path": target, **({"read_only": True} if read_only else {})})
        elif kind == "volume" and source:
            part.reading.wrong(path, "there is no such volume", source, "name it under volumes, at the top")
        elif kind == "bind":
            part.reading.drops.lose(path, str(item), "a folder of the author's machine; workspace: sends one along")
        else:
            _empty_folder(container, target, volumes)
    tmpfs = part.raw("tmpfs")
    for target in [tmpfs] if isinstance(tmpfs, str) else part.items("tmpfs"):
        _empty_folder(container, str(target).partition(":")[0], volumes)


def _empty_folder(container: Container, target: str, volumes: list[str]) -> None:
    """A volume without a name, of this service alone."""
    name = f"{container.name}-{len(container.volumes) + 1}"
    volumes.append(name)
    container.volumes.append({"volume": name, "path": target})


def _dependencies(part: Part, container: Container) -> None:
    value = part.raw("depends_on")
    if isinstance(value, list):
        container.depends_on = [{"task": str(name), "until": "started"} for name in value]
        return
    for name, condition in part.named("depends_on"):
        kind = condition.text("condition") or "service_started"
        if kind not in _UNTIL:
            part.reading.wrong(condition.at("condition"), f"not one of: {', '.join(_UNTIL)}", kind)
            continue
        container.depends_on.append({"task": name, "until": _UNTIL[kind]})
        condition.remark("a dependency is always required, and restarts nothing", "required", "restart")
        condition.finish()


def _restart(part: Part) -> Any:
    value = part.raw("restart")
    policy, _, tries = str(value or "no").partition(":")
    if policy == "no":
        return None
    if policy in {"always", "unless-stopped"}:
        return "always"
    if policy == "on-failure":
        return {"policy": policy, "max_restarts": int(tries)} if tries.isdigit() and int(tries) else policy
    part.reading.wrong(part.at("restart"), "not one of: no, always, unless-stopped, on-failure, on-failure:N", value)
    return None


def _drop_rest(part: Part) -> None:
    mode = part.raw("network_mode")
    if mode not in (None, "none", "bridge"):
        part.reading.drops.lose(part.at("network_mode"), mode, "a job never shares a network with the node or others")
    part.lose("a job runs as an unprivileged user, without further rights", *_WALLS)
    part.lose("files and secrets of the author's machine do not travel", "secrets", "configs", "credential_spec")
    part.lose("only a service of this file is extended: put both into one", "extends")
    part.lose("another service's definition is not read", "volumes_from", "external_links")
    part.lose("names and addresses are the node's", "extra_hosts", "dns", "dns_search", "dns_opt")
    part.lose("limits are the node's", "ulimits", "blkio_config", "pids_limit", "cpuset", "cpu_quota", "cpu_period")
    part.lose("nothing runs beside the command", "post_start", "pre_stop")
    part.lose("nothing is provided from outside of the containers", "models", "provider", "use_api_socket")
    part.texts("profiles")
    if str(part.value.get("platform", "linux/amd64")).removeprefix("linux/") in {"amd64", "x86_64", "linux"}:
        part.remark("nodes have x86-64 processors", "platform")
    else:
        part.lose("nodes have x86-64 processors, and no other one is asked for", "platform")
    part.remark("a habit of the engine, without effect on what the job computes", *_HABITS)
    part.finish()
