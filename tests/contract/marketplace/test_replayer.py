"""A workload's segments executed again in the real sandbox: honest ones come out bit for bit, others do not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.trained import Trained, train
from torg_host.archive import pack, unpack
from torg_marketplace.ports import EvaluationFailed, TookTooLong
from torg_marketplace.replay_segment import STATE
from torg_marketplace.rules.replay import Segment
from torg_marketplace.workers.replayer import SandboxReplayer, kept_waiting_s_of_host

OPTIMIZER = "state.optimizer."
pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train("health", ["--epochs", "8"], tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize("number", [2, -1])
async def test_honest_segments_come_out_bit_for_bit(trained: Trained, number: int) -> None:
    found = await SandboxReplayer(trained.blobs).replay(trained.spec, trained.segments[number], trained.model)

    assert (found.value, found.bit_equal, found.passes) == (0.0, True, True), found.detail


async def test_what_a_node_stored_because_it_was_asked_to_stop_is_executed_up_to_there(tmp_path: Path) -> None:
    """The job writes none there by itself: a drained or preempted honest node was found to have made it up."""
    trained = train("health", ["--epochs", "3"], tmp_path, stopped_at="step-00000030")
    assert [item.name for item in trained.stored] == ["step-00000026", "step-00000030", "step-00000039"]
    found = await SandboxReplayer(trained.blobs).replay(trained.spec, trained.segments[1], trained.model)
    assert found.bit_equal, found.detail


async def test_a_copied_checkpoint_and_a_foreign_model_are_far_off(trained: Trained) -> None:
    segment = trained.segments[2]
    assert segment.start is not None
    assert segment.end is not None
    copied = segment.end.model_copy(update={"blob": segment.start.blob})
    replayer = SandboxReplayer(trained.blobs)
    found = await replayer.replay(trained.spec, Segment(2, segment.start, copied), trained.model)
    assert found.value is None or found.value > 0.5
    assert not found.passes

    outputs = trained.segments[-1]
    foreign = trained.blobs.put(b"not a model").digest
    found = await replayer.replay(trained.spec, outputs, foreign)
    assert (found.value, found.passes) == (None, False)
    assert "cannot be read" in found.detail


async def test_an_optimizer_that_begins_from_nothing_is_the_fault_of_who_handed_it_over(
    trained: Trained, tmp_path: Path
) -> None:
    """Only weights were compared: it passed, and the honest node that went on from it trained otherwise than its client had asked for."""
    segment = trained.segments[2]
    assert segment.end is not None
    archive, folder = tmp_path / "end.tar.zst", tmp_path / "end"
    archive.write_bytes(trained.blobs.stored[segment.end.blob.digest])
    unpack(archive, folder)
    tensors = load_file(folder / STATE)
    zeroed = {name: np.zeros_like(value) if name.startswith(OPTIMIZER) else value for name, value in tensors.items()}
    assert any(value.any() for name, value in tensors.items() if name.startswith(OPTIMIZER))
    save_file(zeroed, folder / STATE)
    pack(folder, archive)
    spoiled = segment.end.model_copy(update={"blob": trained.blobs.put(archive.read_bytes())})

    found = await SandboxReplayer(trained.blobs).replay(trained.spec, Segment(2, segment.start, spoiled), trained.model)
    assert not found.passes
    assert OPTIMIZER in found.detail


async def test_a_checkpoint_of_another_run_does_not_resume(trained: Trained) -> None:
    other = trained.spec.model_copy(update={"command": ("python", "train.py", "--epochs", "9")})
    found = await SandboxReplayer(trained.blobs).replay(other, trained.segments[2], trained.model)

    assert (found.value, found.passes) == (None, False)
    assert "use the same options again" in found.detail


@pytest.mark.parametrize("name", ["made-up", "step-00000000", "step-99999999"])
async def test_a_name_that_the_job_never_comes_to_is_the_nodes_fault_whatever_the_time(
    trained: Trained, name: str
) -> None:
    """A long training never came to it, and our time was over."""
    segment = trained.segments[1]
    assert segment.end is not None
    made_up = Segment(1, segment.start, segment.end.model_copy(update={"name": name}))
    found = await SandboxReplayer(trained.blobs).replay(trained.spec, made_up, trained.model)
    assert (found.value, found.passes) == (None, False)
    assert "there is none of that name" in found.detail


async def test_an_end_that_is_not_reached_in_three_times_what_it_took_is_given_up(trained: Trained) -> None:
    segment = trained.segments[-1]
    slow = Segment(segment.number, segment.start, None, over_after_ms=1)
    idle = SandboxReplayer(trained.blobs, kept_waiting_s=lambda: 0.0)
    with pytest.raises(TookTooLong, match="not there after 0 s"):
        await idle.replay(trained.spec, slow, trained.model)


@pytest.mark.parametrize("kept_waiting_s", [time.monotonic, lambda: None], ids=["busy", "cannot tell"])
async def test_a_machine_that_keeps_the_replay_waiting_blames_nobody(
    trained: Trained, kept_waiting_s: Callable[[], float | None]
) -> None:
    segment = trained.segments[-1]
    slow = Segment(segment.number, segment.start, None, over_after_ms=1)
    replayer = SandboxReplayer(trained.blobs, kept_waiting_s=kept_waiting_s)
    found = await replayer.replay(trained.spec, slow, trained.model)
    assert found.bit_equal, found.detail

    hasty = SandboxReplayer(trained.blobs, kept_waiting_s=kept_waiting_s, timeout_s=0.4)
    with pytest.raises(EvaluationFailed, match="took longer"):  # our own time is over before
        await hasty.replay(trained.spec, slow, trained.model)


async def test_a_machine_that_cannot_run_the_job_at_all_blames_nobody(trained: Trained) -> None:
    """Its first segment said so, every other one blamed the node: from a claimed checkpoint the job came to nothing."""
    small = trained.spec.model_copy(
        update={"resources": trained.spec.resources.model_copy(update={"memory": 32 << 20})}
    )
    with pytest.raises(EvaluationFailed, match="cannot be run here"):
        await SandboxReplayer(trained.blobs).replay(small, trained.segments[2], trained.model)


def test_how_long_this_host_keeps_others_waiting_is_told_and_never_falls() -> None:
    first = kept_waiting_s_of_host()
    if first is None:
        pytest.skip("this kernel does not count it")
    second = kept_waiting_s_of_host()
    assert second is not None
    assert 0 <= first <= second
