"""Sealed jobs: what a job reads and writes is encrypted with age, so that neither marketplace nor store can read it.

Each submission makes a key of its own. The workspace is encrypted to it; its private half travels among the job's sealed secrets
(torg_protocol.secrets), to the nodes that the client chose and nobody else, and is none of the files that the job sees. Outputs and logs are
encrypted to the client's wallet key, checkpoints to the job's key, so that another of the chosen nodes can go on. Of several tasks each has logs of
its own; what they cut out of them as results stays on the node, for the tasks after them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from torg_protocol.errors import Invalid
from torg_protocol.inputs import BlobInput, DataInput
from torg_protocol.strict import Strict

if TYPE_CHECKING:
    from torg_protocol.jobspec import JobSpec

JOB_KEY = "TORG_JOB_KEY"  # under this name the job's key is among its secrets


class Sealed(Strict):
    """`recipient`: public half of the job's key, as age writes it."""

    recipient: str = Field(pattern=r"^age1[02-9ac-hj-np-z]{58}$")


def sealed_problems(spec: JobSpec) -> list[tuple[str, str]]:
    """What a sealed job cannot have: fields and sentences."""
    in_store = [field for field, item in spec.placed_inputs() if isinstance(item, BlobInput | DataInput)]
    found = [
        (field, "the store can read what it keeps; in a sealed job send it in the workspace") for field in in_store
    ]
    if spec.verify.policy != "none":
        found.append(("verify.policy", "the marketplace cannot open a sealed job to verify it; write policy: none"))
    if spec.kept_volumes:
        found.append(
            ("volumes", "the store could read them, and the next job has another key; send data in the workspace")
        )
    if not spec.placement.nodes:
        found.append(("placement.nodes", "is missing: a sealed job names the nodes that may open it (torg offers)"))
    return found


def check_job_key(spec: JobSpec) -> None:
    """Raises Invalid `job_key_missing`: nobody could open this job."""
    if spec.sealed is not None and (spec.secrets is None or JOB_KEY not in spec.secrets.names):
        raise Invalid(
            "a sealed job's key is among its secrets",
            code="job_key_missing",
            field="secrets.names",
            hint=f"seal the private half of sealed.recipient under the name {JOB_KEY}; torg run --sealed does",
        )
