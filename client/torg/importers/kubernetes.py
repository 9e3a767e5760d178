"""A Kubernetes Job, Pod or Deployment: its containers are a job's container or tasks, its init containers stages before them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torg.importers.amounts import cores, size
from torg.importers.assembly import Container, assembled
from torg.importers.kubernetes_objects import WORKLOADS, Other, Settings, environment_of, settings_of, tell
from torg.importers.reading import Part, Reading
from torg.importers.references import expanded
from torg.importers.translation import Translation

TITLE = "Kubernetes file"
APART = "each task has a network of its own: containers of this pod do not reach each other on localhost"
GPUS = ("nvidia.com/gpu", "amd.com/gpu")
_OF_A_CLUSTER = ("creationTimestamp", "uid", "resourceVersion", "generation", "managedFields", "selfLink", "clusterName", "deletionTimestamp", "deletionGracePeriodSeconds")  # fmt: skip
_AMOUNTS_OF = {"cpu": "cpus", "memory": "memory", "ephemeral-storage": "disk"}
_AMOUNTS = {*_AMOUNTS_OF, *GPUS}
_MOST_TRIES = 10
_DEFAULT_BACKOFF = 6
_POD_HABITS = ("dnsPolicy", "enableServiceLinks", "priorityClassName", "schedulerName", "terminationGracePeriodSeconds", "tolerations", "automountServiceAccountToken", "hostname", "subdomain", "preemptionPolicy", "setHostnameAsFQDN", "priority", "overhead", "readinessGates", "schedulingGates", "os", "hostUsers")  # fmt: skip
_ROLLOUT = ("strategy", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds", "paused")
_CONTAINER_HABITS = ("imagePullPolicy", "terminationMessagePath", "terminationMessagePolicy", "stdin", "stdinOnce", "tty", "resizePolicy")  # fmt: skip


def translate(raw: dict[str, Any], others: Sequence[Other] = ()) -> Translation:
    """`others`: the other objects of the file. Raises Invalid (code "spec_invalid") with all problems."""
    reading = Reading(TITLE)
    top = Part(reading, raw)
    version, kind = top.text("apiVersion", needed=True), top.text("kind", needed=True)
    reading.refuse()
    if (version, kind) not in WORKLOADS:
        reading.wrong(
            "kind",
            "only a batch/v1 Job, a v1 Pod or an apps/v1 Deployment becomes a job",
            f"{version} {kind}",
            "give its pod template as a Job",
        )
        reading.refuse()
    metadata = top.part("metadata")
    name, prefix = metadata.text("name"), metadata.text("generateName")
    metadata.remark("there is no cluster", "namespace", "labels", "annotations", "finalizers", "ownerReferences")
    _skip(metadata, _OF_A_CLUSTER)
    metadata.finish()
    top.raw("status")
    around: dict[str, Any] = {}
    pod = top.part("spec")
    if kind == "Job":
        pod = _job(pod, around)
    elif kind == "Deployment":
        pod = _deployment(pod)
    claims: dict[str, str] = {}
    containers = _pod(pod, around, claims, settings_of(others))
    top.finish()
    tell(others, reading.drops)
    reading.refuse()
    volumes = [volume["volume"] for container in containers for volume in container.volumes]
    return assembled(
        "kubernetes",
        TITLE,
        containers,
        reading.drops,
        name=name or prefix,
        volumes=volumes,
        around=around,
        apart=APART,
        kept=claims,
    )


def _skip(part: Part, keys: tuple[str, ...]) -> None:
    """What a cluster writes into the objects that it has: nobody asked for it."""
    for key in keys:
        part.raw(key)


def _job(job: Part, around: dict[str, Any]) -> Part:
    """Fills in limits and retries; returns the pod's part."""
    for key in ("completions", "parallelism"):
        if (job.whole(key) or 1) > 1:
            job.lose("a job runs once; submit it as often as it shall run", key)
    backoff = job.whole("backoffLimit")
    around["retry"] = {"on_failure": min(_DEFAULT_BACKOFF if backoff is None else backoff, _MOST_TRIES)}
    if (seconds := job.whole("activeDeadlineSeconds")) is not None:
        around["limits"] = {"max_duration": f"{seconds}s"}
    if job.flag("suspend"):
        job.lose("a job is queued at once", "suspend")
    if job.raw("completionMode") == "Indexed":
        job.lose("a job runs once, without an index", "completionMode")
    job.lose(
        "which exit codes are tried again is not told apart",
        "podFailurePolicy",
        "successPolicy",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    )
    job.remark("the marketplace keeps jobs as long as it keeps all", "ttlSecondsAfterFinished", "podReplacementPolicy")
    job.remark("there is no cluster", "selector", "manualSelector", "managedBy")
    return _template(job)


def _deployment(deployment: Part) -> Part:
    """What is to run for ever; returns the pod's part."""
    if (deployment.whole("replicas") or 1) > 1:
        deployment.lose("a job runs once; submit it as often as it shall run", "replicas")
    deployment.reading.drops.remark("kind", "Deployment", "it runs until limits.max_duration is over: torg extend")
    deployment.remark("there is no cluster", "selector")
    deployment.remark("a job is not replaced while it runs", *_ROLLOUT)
    return _template(deployment)


def _template(owner: Part) -> Part:
    template = owner.part("template")
    template.part("metadata")
    pod = template.part("spec")
    template.finish()
    owner.finish()
    return pod


def _pod(pod: Part, around: dict[str, Any], claims: dict[str, str], settings: Settings) -> list[Container]:
    policy = pod.text("restartPolicy") or "Always"
    retries = around.pop("retry", {"on_failure": 0})["on_failure"]
    if policy == "OnFailure":
        restart: Any = {"policy": "on-failure", "max_restarts": retries or 1} if retries else None
    else:
        restart = "always" if policy == "Always" else None
        if policy == "Never" and retries:
            around["retry"] = {"on_failure": retries}
    if (seconds := pod.whole("activeDeadlineSeconds")) is not None:
        around.setdefault("limits", {"max_duration": f"{seconds}s"})
    volumes = dict(_volumes(pod, claims))
    before = [_container(part, volumes, settings) for part in pod.parts("initContainers")]
    main = [_container(part, volumes, settings) for part in pod.parts("containers")]
    if not main:
        pod.reading.wrong(pod.at("containers"), "is missing")
    for container in main:
        container.restart = restart
        container.group = "containers" if before else None
    for container in before:
        container.group = container.name
    pod.lose(
        "a node is chosen by its resources; write them, or placement.regions",
        "nodeSelector",
        "affinity",
        "nodeName",
        "topologySpreadConstraints",
        "runtimeClassName",
        "resourceClaims",
    )
    pod.lose(
        "a job never shares parts of the node, or of its neighbours",
        "hostNetwork",
        "hostPID",
        "hostIPC",
        "shareProcessNamespace",
    )
    pod.lose("a container says what it needs: write them there", "resources")
    pod.lose("nothing is added to a job that runs", "ephemeralContainers")
    why = "what the cluster keeps is not known here; in a job file: registries: {HOST: {username: SECRET, password: SECRET}}"
    pod.lose(why, "imagePullSecrets")
    pod.lose("a job runs as an unprivileged user, without further rights", "securityContext")
    pod.lose("names and addresses are the node's", "hostAliases", "dnsConfig")
    pod.remark("there is no cluster to be asked", "serviceAccountName", "serviceAccount")
    pod.remark("without effect on what the job computes", *_POD_HABITS)
    pod.finish()
    return [*before, *main]


def _volumes(pod: Part, claims: dict[str, str]) -> Iterator[tuple[str, str | None]]:
    """By name: "disk", "memory", or None for what has no place here. Persistent volumes are "disk", and in `claims` with their claim's name."""
    for volume in pod.parts("volumes"):
        name = volume.text("name", needed=True) or ""
        if "emptyDir" in volume.value:
            folder = volume.part("emptyDir")
            yield name, "memory" if folder.text("medium") == "Memory" else "disk"
            folder.remark("the job's disk is the limit of all", "sizeLimit")
            folder.finish()
        elif "persistentVolumeClaim" in volume.value:
            claim = volume.part("persistentVolumeClaim")
            claims[name] = claim.text("claimName", needed=True) or ""
            claim.remark("what only reads says so at its mount", "readOnly")
            claim.finish()
            yield name, "disk"
        else:
            kind = next((key for key in volume.value if key != "name"), "")
            volume.lose(
                "only emptyDir and claims are made; files travel in the workspace",
                *(key for key in volume.value if key != "name"),
            )
            yield name, None if kind else "disk"
        volume.finish()


def _container(part: Part, volumes: dict[str, str | None], settings: Settings) -> Container:
    name, here = part.text("name", needed=True) or "", part.path
    env = environment_of(part, settings)
    fields: dict[str, Any] = {
        "image": part.text("image", needed=True) or "",
        "workdir": part.text("workingDir") or "image",
    }
    for key in ("command", "args"):
        if words := part.texts(key):
            fields[key] = [expanded(word, env) for word in words]
    if env:
        fields["env"] = env
    container = Container(name, here, fields, {"workdir": f"{here}.workingDir"})
    _amounts(part, container)
    probe = _probe(part)
    for port in part.parts("ports"):
        number = port.whole("containerPort")
        if port.text("protocol") not in (None, "TCP"):
            port.lose("only TCP is passed on", "protocol")
        elif number is None:
            port.reading.wrong(port.at("containerPort"), "is missing")
        else:
            health = {"health": probe[1]} if probe and probe[0] in (number, port.value.get("name")) else {}
            container.ports.append(({"port": number, **health}, port.path))
        port.remark("a job's port is reached under an address of its own", "name", "hostPort", "hostIP")
        port.finish()
    for mount in part.parts("volumeMounts"):
        _mount(mount, container, volumes)
    part.lose("a job runs as an unprivileged user, without further rights", "securityContext")
    part.lose("nothing runs beside the command", "lifecycle", "restartPolicy")
    part.lose("a raw device is not passed on", "volumeDevices")
    part.remark("only a readiness or liveness check by HTTP GET, at a port that is named, is asked", "startupProbe")
    part.remark("without effect on what the job computes", *_CONTAINER_HABITS)
    part.finish()
    return container


def _amounts(part: Part, container: Container) -> None:
    resources = part.part("resources")
    for owner in (resources.part("limits"), resources.part("requests")):  # the limit is what a container may use up
        for theirs, ours in _AMOUNTS_OF.items():
            value = owner.raw(theirs)
            if value is None or getattr(container, ours) is not None:
                continue
            try:
                setattr(container, ours, cores(value) if ours == "cpus" else size(value, bare_is_binary=False))
            except ValueError as error:
                part.reading.wrong(owner.at(theirs), str(error), value)
        container.gpus = container.gpus or sum(owner.whole(kind) or 0 for kind in GPUS)
        owner.lose("whose GPU it is, resources.gpu_class says: see torg offers", "amd.com/gpu")
        owner.lose("no such device is offered", *(key for key in owner.value if str(key) not in _AMOUNTS))
        owner.finish()
    resources.lose("no such device is offered", "claims")
    resources.finish()


def _probe(part: Part) -> tuple[Any, dict[str, Any]] | None:
    """Port (number or name) and health check of the first probe that is a plain GET."""
    found = None
    for key in ("readinessProbe", "livenessProbe"):
        value = part.raw(key)
        get = value.get("httpGet") if isinstance(value, dict) else None
        if (
            isinstance(get, dict)
            and found is None
            and get.get("scheme", "HTTP") == "HTTP"
            and not get.get("httpHeaders")
        ):
            found = (get.get("port"), {"http": str(get.get("path", "/"))})
        elif value is not None:
            part.remark("a port has one health check: GET, or an accepted connection", key)
    return found


def _mount(mount: Part, container: Container, volumes: dict[str, str | None]) -> None:
    name, path = mount.text("name", needed=True) or "", mount.text("mountPath", needed=True) or ""
    read_only = bool(mount.flag("readOnly"))
    if name not in volumes:
        mount.reading.wrong(mount.at("name"), "there is no such volume", name)
    elif volumes[name] == "memory" and path == "/dev/shm":  # noqa: S108  # of the container
        container.shm = container.memory and size(container.memory, bare_is_binary=True)
    elif volumes[name] is not None:
        container.volumes.append({"volume": name, "path": path, **({"read_only": True} if read_only else {})})
    mount.lose("a volume is mounted as a whole", "subPath", "subPathExpr")
    mount.remark("mounts stay inside of the container", "mountPropagation", "recursiveReadOnly")
    mount.finish()
