"""An Akash SDL: the services that its deployment names, with their compute profiles."""

from __future__ import annotations

from typing import Any

from torg.importers.amounts import card_memory, cores, size, size_text
from torg.importers.assembly import Container, assembled, want_models
from torg.importers.logins import take_login
from torg.importers.reading import Part, Reading, pairs_of
from torg.importers.references import expanded
from torg.importers.translation import Translation
from torg_protocol.quantities import parse_size_bytes

TITLE = "Akash SDL"
APART = "each task has a network of its own: services do not reach each other"
_VERSIONS = ("2.0", "2.1")


def translate(raw: dict[str, Any]) -> Translation:
    """Raises Invalid (code "spec_invalid") with all problems."""
    reading = Reading(TITLE)
    top = Part(reading, raw)
    version = str(top.raw("version"))
    if version not in _VERSIONS:
        reading.wrong("version", f"not one of: {', '.join(_VERSIONS)}", version)
    profiles = top.part("profiles")
    compute = dict(profiles.named("compute"))
    regions = _placements(profiles)
    profiles.finish()
    services = dict(top.named("services"))
    around: dict[str, Any] = {"placement": {"regions": regions}} if regions else {}
    containers = list(_deployed(top, services, compute, around))
    top.lose("IP addresses are not leased", "endpoints")
    top.remark("files and headers of their tools", "include")
    top.finish()
    if not containers and not reading.problems:
        reading.wrong("deployment", "names no service")
    reading.refuse()
    volumes = [mount["volume"] for container in containers for mount in container.volumes]
    return assembled("akash", TITLE, containers, reading.drops, volumes=volumes, around=around, apart=APART)


def _placements(profiles: Part) -> list[str]:
    regions: list[str] = []
    for _, placement in profiles.named("placement"):
        attributes = placement.part("attributes")
        if region := attributes.text("region"):
            regions.append(region)
        known = {"region"} | ({"host"} if attributes.value.get("host") == "akash" else set())
        attributes.remark("that it is one of their network's providers", *(known - {"region"}))
        attributes.lose("providers' own words for themselves", *(key for key in attributes.value if key not in known))
        placement.remark(
            "auditors of their network; nodes prove their hardware themselves, see placement.min_reliability_percent",
            "signedBy",
        )
        placement.remark("their price per block and coin; ours is limits.max_price_per_hour", "pricing")
        placement.finish()
    return regions


def _deployed(
    top: Part, services: dict[str, Part], compute: dict[str, Part], around: dict[str, Any]
) -> list[Container]:
    containers: dict[str, Container] = {}
    for name, places in top.named("deployment"):
        for placement in list(places.value):
            chosen = places.part(str(placement))
            profile = chosen.text("profile", needed=True) or ""
            if (chosen.whole("count") or 1) > 1:
                chosen.lose("a job runs each service once", "count")
            chosen.finish()
            if name not in services:
                top.reading.wrong(places.path, "there is no such service", name)
            elif profile not in compute:
                top.reading.wrong(chosen.at("profile"), "there is no such compute profile", profile)
            elif name not in containers:
                containers[name] = _service(name, services[name], compute[profile], around)
    for name, part in services.items():
        if name not in containers:
            top.reading.drops.lose(part.path, name, "the deployment does not name it")
    return list(containers.values())


def _service(name: str, part: Part, profile: Part, around: dict[str, Any]) -> Container:
    here = part.path
    fields: dict[str, Any] = {"image": part.text("image", needed=True) or "", "workdir": "image"}
    env: dict[str, str] = {}
    for variable, value in pairs_of(part, "env", bare="").items():
        env[variable] = expanded(value, env)
    for key in ("command", "args"):
        if words := part.texts(key):
            fields[key] = [expanded(word, env) for word in words]
    if env:
        fields["env"] = env
    container = Container(name, here, fields)
    for exposed in part.parts("expose"):
        _expose(exposed, container)
    resources = profile.part("resources")
    storage = _resources(resources, container)
    parameters = part.part("params")
    for disk, mount in parameters.named("storage"):
        path = mount.text("mount")
        read_only = bool(mount.flag("readOnly"))
        mount.finish()
        if disk not in storage:
            part.reading.wrong(mount.path, "the compute profile has no such storage", disk)
        elif storage[disk] == "ram" and path == "/dev/shm":  # noqa: S108  # of the container
            continue
        elif path:
            container.volumes.append({"volume": disk, "path": path, **({"read_only": True} if read_only else {})})
    parameters.remark("rights that their provider grants", "permissions")
    parameters.finish()
    if part.has("credentials"):
        take_login(part.part("credentials"), fields["image"], around)
    part.raw("credentials")
    part.remark("not in effect there either", "dependencies", "depends_on")
    part.finish()
    profile.finish()
    return container


def _expose(exposed: Part, container: Container) -> None:
    port = exposed.whole("port")
    if port is None:
        exposed.reading.wrong(exposed.at("port"), "is missing")
    elif (exposed.text("proto") or "tcp").lower() == "udp":
        exposed.lose("only TCP is passed on", "proto")
    elif any(isinstance(to, dict) and to.get("global") for to in exposed.items("to")):
        container.ports.append(({"port": port}, exposed.path))
    else:
        exposed.remark("only for other services, which have networks of their own", "port")
    exposed.raw("proto"), exposed.raw("to")
    exposed.remark("a job's port is reached under an address of its own", "as", "accept", "http_options", "ip")
    exposed.finish()


def _resources(resources: Part, container: Container) -> dict[str, str]:
    """Fills in the container's amounts; returns its storages by name: "disk" or "ram". What they call persistent outlives a restart, and ends
    with the lease: as a job's volumes do."""
    cpu, memory, gpu = resources.part("cpu"), resources.part("memory"), resources.part("gpu")
    container.cpus = _amount(cpu, "units", cores)
    container.memory = _amount(memory, "size", _binary)
    cpu.lose("which processor it is cannot be asked for", "attributes")
    for part in (cpu, memory):
        part.finish()
    _gpu(gpu, container)
    kinds: dict[str, str] = {}
    listed = resources.value.get("storage")
    disks = list(resources.parts("storage")) if isinstance(listed, list) else [resources.part("storage")]
    sizes = []
    for disk in disks:
        name = disk.text("name") or "default"
        attributes = disk.part("attributes")
        kinds[name] = "ram" if attributes.text("class") == "ram" else "disk"
        attributes.raw("persistent")
        attributes.finish()
        amount = _amount(disk, "size", _binary)
        if kinds[name] == "ram":
            container.shm = amount
        elif amount:
            sizes.append(amount)
        disk.finish()
    if sizes:
        container.disk = size_text(sum(map(parse_size_bytes, sizes)))
    resources.finish()
    return kinds


def _gpu(gpu: Part, container: Container) -> None:
    container.gpus = int(gpu.whole("units") or 0)
    attributes = gpu.part("attributes")
    vendor = attributes.part("vendor")
    models, rams = list[Any](), list[str | None]()  # any of which will do
    for maker in vendor.value:
        for model in vendor.parts(str(maker)):
            rams.append(_amount(model, "ram", card_memory))
            model.remark("how it is plugged in cannot be asked for", "interface")
            models.append((model.at("model"), model.text("model") or "*"))
            model.finish()
    if all(name != "*" for _, name in models):
        want_models(container, models, gpu.reading.drops)
    if known := [ram for ram in rams if ram]:
        container.min_vram = min(known, key=parse_size_bytes) if len(known) == len(rams) else None
    if foreign := [str(maker) for maker in vendor.value if maker != "nvidia" and not models]:
        gpu.reading.drops.lose(vendor.at(foreign[0]), None, "name its models: a node has GPUs of either maker")
    vendor.finish()
    attributes.finish()
    gpu.finish()


def _amount(part: Part, key: str, read: Any) -> str | None:
    value = part.raw(key)
    if value is None:
        return None
    try:
        text: str = read(value)
        return text
    except ValueError as error:
        part.reading.wrong(part.at(key), str(error), value)
        return None


def _binary(value: object) -> str:
    return size(value, bare_is_binary=False)
