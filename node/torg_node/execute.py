"""One lease from grant to report, as one list of steps.

Each step moves forward with `do`; at the end, however it came, every step's `undo` runs in reverse order, also when one of them fails,
so that nothing of the lease is left on this host. A restarted agent runs the same list again: steps know what was done before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from typing import assert_never

from torg_host import tracing
from torg_host.tracing import Span
from torg_node.journal import is_disk_full
from torg_node.lease import Abandoned, Declined, Lease, LeaseEnded
from torg_node.steps import Step
from torg_node.steps.check_grant import CheckGrant, CheckVault
from torg_node.steps.collect_outputs import CollectOutputs
from torg_node.steps.fetch_inputs import FetchInputs
from torg_node.steps.make_workspace import BeginDisk, MakeWorkspace
from torg_node.steps.open_secrets import OpenSecrets
from torg_node.steps.prepare_image import PrepareImage
from torg_node.steps.report import Report
from torg_node.steps.reserve import Reserve
from torg_node.steps.run_tasks import RunTasks
from torg_node.steps.start_container import StartContainer
from torg_node.steps.volumes import BringVolumes, KeepVolumes
from torg_node.steps.watch import Watch
from torg_protocol import messages
from torg_protocol.states import EndReason, LeaseState

log = logging.getLogger(__name__)
_LOOK_FOR_ROOM_EVERY_S = 2.0

_BEFORE: tuple[Step, ...] = (
    CheckGrant(),
    BeginDisk(),
    CheckVault(),
    Reserve(),
    OpenSecrets(),
    PrepareImage(),
    MakeWorkspace(),
    BringVolumes(),
    FetchInputs(),
)
_AFTER: tuple[Step, ...] = (CollectOutputs(), KeepVolumes(), Report())
STEPS: tuple[Step, ...] = (*_BEFORE, StartContainer(), Watch(), *_AFTER)
STEPS_OF_SEVERAL_TASKS: tuple[Step, ...] = (*_BEFORE, RunTasks(), *_AFTER)


async def execute(lease: Lease) -> None:
    """Runs the lease to its end. Only cancellation (the agent detaches: the container goes on) leaves it open.

    A host whose disk is full cannot write down what it does: the lease waits for room and goes through its steps again, as after a restart."""
    while True:
        try:
            await _run(lease)
            return
        except (OSError, sqlite3.OperationalError) as error:
            if not is_disk_full(error):
                raise
            log.error("%s: this host's disk is full (%s): waiting for room", lease.id, error)  # noqa: TRY400 - said again and again
        await asyncio.sleep(_LOOK_FOR_ROOM_EVERY_S)


async def _run(lease: Lease) -> None:
    """Raises what `is_disk_full` knows once there is something to lose; and whatever the last words meet."""
    try:
        for step in steps_of(lease):
            log.info("%s: %s", lease.id, step.name)
            with _traced(lease, step):
                await step.do(lease)
    except (Declined, LeaseEnded, Abandoned) as ending:
        await _say_ending(lease, ending)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        if is_disk_full(error) and lease.started_at_ms is not None:
            raise
        log.exception("%s: a step failed", lease.id)
        await _say_ending(lease, LeaseEnded(EndReason.START_FAILED, f"{type(error).__name__}: {error}"))
    await clean_up(lease)
    lease.node.journal.finish(lease.id)


@contextlib.contextmanager
def _traced(lease: Lease, step: Step) -> Iterator[None]:
    """A span of the job's trace, also for a step that fails; after a restart a step that had been begun has another one."""
    began_ms, how = lease.node.now_ms(), "done"
    try:
        yield
    except BaseException as error:
        how = type(error).__name__
        raise
    finally:
        if tracing.is_on():
            about = {"lease_id": lease.id, "node": lease.grant.node, "outcome": how}
            tracing.emit(Span(f"node: {step.name}", lease.grant.job_id, began_ms, lease.node.now_ms(), about))


def steps_of(lease: Lease) -> tuple[Step, ...]:
    return STEPS_OF_SEVERAL_TASKS if lease.spec.tasks else STEPS


async def clean_up(lease: Lease) -> None:
    """Every undo, in reverse, whatever happens to the others."""
    for step in reversed(steps_of(lease)):
        try:
            await step.undo(lease)
        except Exception:
            log.exception("%s: could not undo: %s", lease.id, step.name)


async def _say_ending(lease: Lease, ending: Declined | LeaseEnded | Abandoned) -> None:
    match ending:
        case Declined():
            log.info("%s: declined: %s", lease.id, ending)
            await lease.say(messages.Declined(detail=str(ending), code=ending.code))
            lease.set_state(LeaseState.RELEASED, EndReason.DECLINED)
        case LeaseEnded():
            log.warning("%s: released (%s): %s", lease.id, ending.reason, ending.detail)
            if not lease.node.journal.has_said(lease.id, ["reported", "released", "declined"]):
                await lease.say(messages.Released(reason=ending.reason, detail=ending.detail))
            lease.set_state(LeaseState.RELEASED, ending.reason)
        case Abandoned():
            log.warning("%s: the marketplace gave it to somebody else", lease.id)
            lease.set_state(LeaseState.REVOKED, EndReason.STALE)
        case _:
            assert_never(ending)
