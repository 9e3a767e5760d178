"""The objects of a Kubernetes file beside the one that becomes a job: what of them it takes along, and why the rest is not made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torg.importers.reading import Part
from torg.importers.references import expanded
from torg.importers.translation import Drops

WORKLOADS = {("batch/v1", "Job"), ("v1", "Pod"), ("apps/v1", "Deployment")}
Settings = Mapping[str, Mapping[str, str]]  # by ConfigMap

_NO_CLUSTER = "there is no cluster"
_REACHED = "a job's port is reached under an address of its own: torg port-forward"
_LEFT_OUT = {
    "ConfigMap": "variables that name it have its values; as files it does not travel: put them into the workspace",
    "Secret": "it is not sent, as it would be open to the node: a job file has secrets",
    "Service": _REACHED,
    "Ingress": _REACHED,
    "PersistentVolumeClaim": "a volume of this name is made at its first use",
    "PersistentVolume": "volumes are kept in the marketplace's store",
    **dict.fromkeys(
        ("Namespace", "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "PriorityClass"),
        _NO_CLUSTER,
    ),
    **dict.fromkeys(("LimitRange", "ResourceQuota", "PodDisruptionBudget", "StorageClass"), _NO_CLUSTER),
}
_LOST = {
    "NetworkPolicy": "whom a job may reach it says itself: network",
    "HorizontalPodAutoscaler": "a job runs once; submit it as often as it shall run",
}


@dataclass(frozen=True, slots=True)
class Other:
    """A document beside the job's. `line`: where it begins."""

    raw: Mapping[str, Any]
    line: int

    @property
    def kind(self) -> str:
        return str(self.raw.get("kind"))

    @property
    def name(self) -> str:
        metadata = self.raw.get("metadata")
        return str(metadata.get("name")) if isinstance(metadata, Mapping) else "?"


def workloads_in(raws: Sequence[Mapping[str, Any]]) -> list[int]:
    """Which of these documents would become a job. Where none does: the first that is nothing that stands beside one."""
    found = [number for number, raw in enumerate(raws) if (raw.get("apiVersion"), raw.get("kind")) in WORKLOADS]
    return found or [number for number, raw in enumerate(raws) if raw.get("kind") not in _LEFT_OUT][:1] or [0]


def tell(others: Sequence[Other], drops: Drops) -> None:
    """Each by its kind and name; never what is in it, which may be a secret."""
    for other in others:
        path, value = f"{other.kind}/{other.name}", f"line {other.line}"
        if (why := _LEFT_OUT.get(other.kind)) is not None:
            drops.remark(path, value, why)
        else:
            drops.lose(path, value, _LOST.get(other.kind, "no such object is made here"))


def settings_of(others: Sequence[Other]) -> Settings:
    """What the ConfigMaps of the file hold."""
    maps = [(other.name, other.raw.get("data")) for other in others if other.kind == "ConfigMap"]
    return {
        name: {str(key): str(value) for key, value in data.items() if value is not None}
        for name, data in maps
        if isinstance(data, Mapping)
    }


def environment_of(container: Part, settings: Settings) -> dict[str, str]:
    """`envFrom`, then `env`, which counts where both say something."""
    env: dict[str, str] = {}
    for source in container.parts("envFrom"):
        prefix, reference = source.text("prefix") or "", source.part("configMapRef")
        found = settings.get(reference.text("name") or "")
        if found is not None:
            env |= _named(source, {f"{prefix}{key}": value for key, value in found.items()})
            reference.flag("optional")
            reference.finish()
        else:
            source.lose("what a cluster keeps is not known here", "configMapRef", "secretRef")
        source.raw("secretRef")
        source.finish()
    for item in container.parts("env"):
        name = item.text("name", needed=True) or ""
        if (value := _of_settings(item, settings)) is not None:
            env[name] = value
        elif item.has("valueFrom"):
            item.lose("what a cluster knows, or keeps secret, is not known here", "valueFrom")
        else:
            env[name] = expanded(str(item.raw("value") or ""), env)
        item.raw("valueFrom"), item.raw("value")
        item.finish()
    return env


def _named(source: Part, values: Mapping[str, str]) -> dict[str, str]:
    """Without what can be no variable here: mostly files, which a cluster hands over as variables too."""
    fit = {name: value for name, value in values.items() if name.isascii() and name.isidentifier()}
    for name in sorted(values.keys() - fit.keys()):
        source.reading.drops.remark(
            source.at("configMapRef"), name, "a job's variables have names of letters, digits and _"
        )
    return fit


def _of_settings(item: Part, settings: Settings) -> str | None:
    """Of a variable that names a key of a ConfigMap of this file: its value."""
    source = item.value.get("valueFrom")
    reference = source.get("configMapKeyRef") if isinstance(source, Mapping) else None
    if not isinstance(reference, Mapping):
        return None
    return settings.get(str(reference.get("name")), {}).get(str(reference.get("key")))
