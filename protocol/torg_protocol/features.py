"""What a job can ask for that not every version of the node channel has: a node that speaks an older one could not even read the grant.

Of each feature: the version that brought it, its name as people say it, whether a job asks for it, and what it brought into the grant. A node
gets no job that asks for a feature which came after its version; quotes say so. What only a marketplace or a client needs to know is not listed.
A test compares what a grant can say with what it could in the oldest spoken version, and wants each difference here or in `READ_BY_OLDER`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from torg_protocol.ids import names_pieces
from torg_protocol.job_cost import verification_permille
from torg_protocol.jobspec import JobSpec
from torg_protocol.versions import OLDEST_PROTOCOL_VERSION
from torg_protocol.volumes import Volume


class Feature(NamedTuple):
    """`brings`: what the grant and the job file in it can say since then, as that test writes it, with `*` for any text: "Model.*",
    "Model.field is 'value'", "Model.field maxLength 512". What needs no new field, value or limit brings nothing."""

    since: int
    name: str  # in a sentence: "protocol 1 has no {name}"
    is_asked: Callable[[JobSpec, Collection[str]], bool]  # what comes with the grant: digests beside those in the spec
    brings: tuple[str, ...] = ()


def _names_pieces(spec: JobSpec, brings: Collection[str]) -> bool:
    return any(map(names_pieces, (*(blob.digest for _, blob in spec.blobs()), *brings)))


def _waits_until_ready(spec: JobSpec) -> bool:
    return any(dependency.until == "ready" for task in spec.tasks for dependency in task.depends_on)


FEATURES = (
    Feature(
        2,
        "named volumes",
        lambda spec, _: any(volume != Volume() for volume in spec.volumes.values()),
        ("Volume.*", "Grant.volumes *", "VolumeAtStart.*"),
    ),
    Feature(2, "blobs named by their pieces", _names_pieces),
    Feature(2, "ports of tasks", lambda spec, _: any(task.ports for task in spec.tasks), ("Task.ports *",)),
    Feature(
        2, "waiting for a task's ports", lambda spec, _: _waits_until_ready(spec), ("Dependency.until is 'ready'",)
    ),
    Feature(2, "parts of a GPU", lambda spec, _: spec.resources.is_share, ("Resources.gpu_fraction *",)),
    Feature(
        2,
        "long lists of GPU classes",
        lambda spec, _: len(spec.resources.gpu_class or "") > _GPU_CLASS_OF_1,
        ("Resources.gpu_class maxLength 512",),
    ),
    Feature(
        2, "private registries", lambda spec, _: bool(spec.registries), ("JobSpec.registries *", "RegistryLogin.*")
    ),
    Feature(2, "spot jobs", lambda spec, _: spec.spot, ("JobSpec.spot *",)),
    Feature(
        2, "gangs", lambda spec, _: spec.gang is not None, ("JobSpec.gang *", "Gang.*", "Grant.gang *", "GangPlace.*")
    ),
    Feature(2, "sealed jobs of several tasks", lambda spec, _: spec.sealed is not None and bool(spec.tasks)),
    Feature(
        2,
        "verification by quorum",
        lambda spec, _: spec.verify.policy == "quorum",
        ("JobSpec.verify of VerifyQuorum", "VerifyQuorum.*"),
    ),
    # Metrics and replays are older; their price, in the receipt that the node has to read, is not.
    Feature(
        2,
        "a price of verification",
        lambda spec, _: verification_permille(spec) > 0,
        ("JobSpec.verify of VerifyActivation", "VerifyActivation.*"),
    ),
)
_GPU_CLASS_OF_1 = 64  # characters

# Models of the grant and the job file that had another name then: names of models do not travel.
CALLED_BEFORE = {"HealthCheck": "Health"}
# What is new since the oldest version that is spoken, and read by a node of that one all the same: why.
READ_BY_OLDER = {
    "Port.health of HealthCheck": "which was called Health",
    "JobSpec.volumes type array": "a short way to write them, which is not what is sent",
    "JobSpec.volumes type string": "the same",
}


def features_asked(spec: JobSpec, brings: Collection[str] = ()) -> tuple[Feature, ...]:
    """Those that not every version which is still spoken has. `brings`: digests that come with the grant beside those in the spec: of
    the checkpoint that it resumes from, of what is in its volumes."""
    return tuple(each for each in FEATURES if each.since > OLDEST_PROTOCOL_VERSION and each.is_asked(spec, brings))


def version_needed(features: Collection[Feature]) -> int:
    """The oldest version of the node channel that has all of them."""
    return max((each.since for each in features), default=OLDEST_PROTOCOL_VERSION)
