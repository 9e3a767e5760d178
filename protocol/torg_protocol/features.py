"""What a job can ask for that not every version of the node channel has: a node that speaks an older one could not even read the grant.

One line per feature: the version that brought it, its name as people say it, and whether a job asks for it. A node gets no job that asks for a
feature which came after its version; quotes say so. What only a marketplace or a client needs to know is not listed.
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
    since: int
    name: str  # in a sentence: "protocol 1 has no {name}"
    is_asked: Callable[[JobSpec, Collection[str]], bool]  # what comes with the grant: digests beside those in the spec


def _names_pieces(spec: JobSpec, brings: Collection[str]) -> bool:
    return any(map(names_pieces, (*(blob.digest for _, blob in spec.blobs()), *brings)))


FEATURES = (
    Feature(2, "named volumes", lambda spec, _: any(volume != Volume() for volume in spec.volumes.values())),
    Feature(2, "blobs named by their pieces", _names_pieces),
    Feature(2, "ports of tasks", lambda spec, _: any(task.ports for task in spec.tasks)),
    Feature(2, "parts of a GPU", lambda spec, _: spec.resources.is_share),
    Feature(2, "spot jobs", lambda spec, _: spec.spot),
    Feature(2, "gangs", lambda spec, _: spec.gang is not None),
    Feature(2, "sealed jobs of several tasks", lambda spec, _: spec.sealed is not None and bool(spec.tasks)),
    Feature(2, "verification by quorum", lambda spec, _: spec.verify.policy == "quorum"),
    # Metrics and replays are older; their price, in the receipt that the node has to read, is not.
    Feature(2, "a price of verification", lambda spec, _: verification_permille(spec) > 0),
)


def features_asked(spec: JobSpec, brings: Collection[str] = ()) -> tuple[Feature, ...]:
    """Those that not every version which is still spoken has. `brings`: digests that come with the grant beside those in the spec: of
    the checkpoint that it resumes from, of what is in its volumes."""
    return tuple(each for each in FEATURES if each.since > OLDEST_PROTOCOL_VERSION and each.is_asked(spec, brings))


def version_needed(features: Collection[Feature]) -> int:
    """The oldest version of the node channel that has all of them."""
    return max((each.since for each in features), default=OLDEST_PROTOCOL_VERSION)
