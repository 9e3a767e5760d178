"""The proof's arithmetic: the same on every path, replayable in part, and without structure that a shortcut could use."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torg_host.hardware_proof.arithmetic import NumpyArithmetic
from torg_host.hardware_proof.chain import prove_chain, replay_rows
from torg_host.hardware_proof.opening import commit, open_blocks, opened_digests
from torg_host.hardware_proof.walk import centre, fill, replay_lanes, rows_after, walk
from torg_node.hardware.proof.paths import NoDevice, TorchArithmetic, choose_path
from torg_protocol.ids import Digest
from torg_protocol.proofs import ChainTask, WalkTask

NUMPY = NumpyArithmetic()


@pytest.fixture(scope="module", params=["torch-int8", "torch-float32"])
def other(request: pytest.FixtureRequest) -> TorchArithmetic:
    found = choose_path("cpu", wanted=request.param)
    assert isinstance(found, TorchArithmetic)
    return found


@pytest.mark.parametrize(("width", "rounds"), [(64, 6), (1024, 3), (2048, 2)])
def test_every_path_gives_the_same_row_digests(other: TorchArithmetic, width: int, rounds: int) -> None:
    task = ChainTask(rows=256, width=width, rounds=rounds)
    mine = prove_chain(NUMPY, task, b"seed", NUMPY.factor(b"B", width))
    theirs = prove_chain(other, task, b"seed", other.factor(b"B", width), rows_at_once=100)

    assert (mine == theirs).all()
    assert len(set(mine.tolist())) == task.rows


@pytest.mark.parametrize("rows", [16, 257, 1000])
def test_every_path_walks_the_same_way(other: TorchArithmetic, rows: int) -> None:
    task = WalkTask(rows=rows, width=64, passes=3, lanes=40, steps=10)
    mine = walk(NUMPY, task, b"seed", fill(NUMPY, task, b"seed", NUMPY.factor(b"F", 64), rows_at_once=7))
    theirs = walk(other, task, b"seed", fill(other, task, b"seed", other.factor(b"F", 64)))

    assert (mine == theirs).all()


def test_rows_are_replayed_alone_and_one_wrong_number_shows() -> None:
    task = ChainTask(rows=512, width=128, rounds=9)
    factor = NUMPY.factor(b"B", 128)
    digests = prove_chain(NUMPY, task, b"seed", factor)
    rows = [0, 17, 255, 256, 511]

    assert (replay_rows(task, b"seed", factor, rows) == digests[rows]).all()
    assert not (replay_rows(task, b"other seed", factor, rows) == digests[rows]).any()
    assert not (replay_rows(task.model_copy(update={"rounds": 8}), b"seed", factor, rows) == digests[rows]).any()


@settings(deadline=None, max_examples=15)
@given(rows=st.integers(16, 300), passes=st.integers(1, 4), seed=st.binary(min_size=1, max_size=8))
def test_any_row_of_the_filled_memory_can_be_computed_alone(rows: int, passes: int, seed: bytes) -> None:
    task = WalkTask(rows=rows, width=64, passes=passes, lanes=8, steps=3)
    factor = NUMPY.factor(b"F", 64)
    memory = fill(NUMPY, task, seed, factor, rows_at_once=13)
    every = np.arange(rows, dtype=np.int64)

    assert (rows_after(NUMPY, task, seed, factor, every, passes) == memory).all()
    assert all(0 <= centre(seed, number, rows) < rows for number in range(passes))
    assert (replay_lanes(task, seed, factor, [0, 3, 7]) == walk(NUMPY, task, seed, memory)[[0, 3, 7]]).all()


def test_a_walk_reads_every_byte_of_a_row() -> None:
    rows = NUMPY.entries(b"seed", np.arange(4), 64)
    states = np.array([5, 5, 5, 5], dtype=np.int64)
    before = NUMPY.step(rows, states, 3)
    for column in range(64):
        changed = rows.copy()
        changed[:, column] ^= 1
        assert not (NUMPY.step(changed, states, 3) == before).any()
    assert not (NUMPY.step(rows, states + 1, 3) == before).any(), "the key is part of what is read"


def test_entries_have_no_structure_that_saves_work() -> None:
    """Full rank, also of what is left when each row is compared with its neighbour shifted by one (Hankel, Toeplitz): generators
    with such a displacement let n^2 operations pass for n^3."""
    x = NUMPY.entries(b"seed", np.arange(256), 256).astype(np.float64)
    for structure in (x, x[1:, :-1] - x[:-1, 1:], x[1:, 1:] - x[:-1, :-1]):
        assert np.linalg.matrix_rank(structure) == min(structure.shape)
    assert set(np.unique(x)) == set(range(-127, 128))


def test_a_long_chain_keeps_its_variety() -> None:
    factor, x = NUMPY.factor(b"B", 128), NUMPY.entries(b"seed", np.arange(256), 128)
    for number in range(500):
        x = NUMPY.narrowed(x, factor, number)
    shares = np.bincount(x.astype(np.int64).ravel() + 127) / x.size
    entropy = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()

    assert entropy > 7.9
    assert len(np.unique(x, axis=0)) == 256


def test_openings_belong_to_their_commitment() -> None:
    task = ChainTask(rows=1024, width=64, rounds=1)
    digests = prove_chain(NUMPY, task, b"seed", NUMPY.factor(b"B", 64))
    root, rows = commit(digests), [1, 300, 1023]
    opened = open_blocks(digests, {0, 1, 3})

    assert opened_digests(task, root, opened, rows) == {row: int(digests[row]) for row in rows}
    assert opened_digests(task, root, opened[:2], rows) is None, "a block is missing"
    changed = digests.copy()
    changed[300] ^= 1
    assert opened_digests(task, root, open_blocks(changed, {0, 1, 3}), rows) is None
    garbled = opened[0].model_copy(update={"digests": "!"})
    assert opened_digests(task, root, (garbled, *opened[1:]), rows) is None
    assert opened_digests(task, Digest("sha256:" + "0" * 64), opened, rows) is None
    with pytest.raises(IndexError):
        open_blocks(digests, {4})


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(NoDevice):
        choose_path("gpu:0")


def test_int8_is_taken_where_its_kernel_is_the_faster_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With AVX2 alone it takes some ten times as long as float32: such nodes ran out of their time to answer."""
    seconds = iter([3.0, 1.0])
    monkeypatch.setattr(TorchArithmetic, "_seconds_of", lambda _self, _product: next(seconds))
    assert choose_path("cpu").name == "torch float32 cpu"
    assert choose_path("cpu", wanted="torch-int8").name == "torch int8 cpu", "who asks for it gets it"
