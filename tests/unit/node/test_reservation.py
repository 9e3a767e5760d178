"""The host's ledger: no two leases on one slot, ever; and what is promised to a lease stays its own over restarts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from torg_node.allocation import WHOLE_MILLI, Assignment, Capacity, Claim, Cpu, NoRoom
from torg_node.reservation import Reservations
from torg_protocol.ids import LeaseId
from torg_protocol.offers import GpuInfo

GIB = 1 << 30


def gpu(
    uuid: str, vram_gib: int = 24, *, parent: str | None = None, capability: str = "8.9", model: str = "SIMULATED"
) -> GpuInfo:
    return GpuInfo(uuid=uuid, model=model, vram_bytes=vram_gib * GIB, compute_capability=capability, mig_parent=parent)


def capacity(*gpus: GpuInfo, cores: int = 8, slots: int = 4, gpu_slices: int = 1) -> Capacity:
    return Capacity(
        gpus=gpus,
        cpus=tuple(Cpu(number, number // 4) for number in range(cores)),
        cpu_millis=cores * 1000,
        memory_bytes=64 * GIB,
        disk_bytes=100 * GIB,
        slots=slots,
        gpu_slices=gpu_slices,
    )


def claim(gpus: int = 0, *, client: str = "anna", cpus: int = 1000, **more: object) -> Claim:
    return Claim(client, gpus, cpus, GIB, GIB, **more)  # type: ignore[arg-type]  # the test's


Open = Callable[..., Reservations]


@pytest.fixture
def opened(tmp_path: Path, request: pytest.FixtureRequest) -> Open:
    def open_ledger(has: Capacity, node: str = "node-a") -> Reservations:
        ledger = Reservations(tmp_path / "host.sqlite", node, has)
        request.addfinalizer(ledger.close)
        return ledger

    return open_ledger


def test_a_restarted_agent_finds_the_same_gpu_for_the_same_lease(opened: Open) -> None:
    has = capacity(gpu("g0"), gpu("g1"))
    before = opened(has)
    before.reserve(LeaseId("one"), claim(1))
    second = before.reserve(LeaseId("two"), claim(1))
    before.release(LeaseId("one"))  # g0 is free, and the lease "two" runs on g1

    after = opened(has)

    assert after.keep_only({LeaseId("two")}) == ()
    assert after.reserve(LeaseId("two"), claim(1)) == second
    assert after.reserve(LeaseId("three"), claim(1)).gpu_uuids == ("g0",)


def test_what_is_out_is_said_by_what_is_offered(opened: Open) -> None:
    """A card that rests takes its slices with it; of GPUs that this node does not offer it says nothing."""
    ledger = opened(capacity(gpu("g0"), gpu("slice", parent="card"), gpu("g2")))
    assert ledger.gpus_out() == ()
    ledger.rest("card", "is hot")
    ledger.cordon("elsewhere", "fell off the bus")
    ledger.cordon("g2", "2 uncorrected ECC errors since boot")
    assert ledger.gpus_out() == ("slice", "g2")
    ledger.back("card")
    assert ledger.gpus_out() == ("g2",)


def test_what_the_journal_has_ended_is_given_back_at_start(opened: Open) -> None:
    has = capacity(gpu("g0"))
    opened(has).reserve(LeaseId("ended"), claim(1))
    assert opened(has).keep_only(set()) == ("ended",)
    assert opened(has).reserve(LeaseId("next"), claim(1)).gpu_uuids == ("g0",)


def test_a_second_marketplace_is_told_that_the_gpu_is_held(opened: Open) -> None:
    has = capacity(gpu("g0"))
    ours, theirs = opened(has), opened(has, node="node-b")
    ours.reserve(LeaseId("ours"), claim(1))

    with pytest.raises(NoRoom, match="1 GPUs asked, 0 free that fit; another marketplace's leases hold a part"):
        theirs.reserve(LeaseId("theirs"), claim(1))
    theirs.release(LeaseId("ours"))
    assert theirs.keep_only(set()) == ()
    assert [item.lease_id for item in theirs.held()] == ["ours"]

    ours.release(LeaseId("ours"))
    assert theirs.reserve(LeaseId("theirs"), claim(1)).gpu_uuids == ("g0",)


def test_slots_are_each_nodes_own_and_the_host_s_memory_is_shared(opened: Open) -> None:
    has = capacity(slots=1)
    opened(has).reserve(LeaseId("a"), Claim("anna", 0, 1000, 40 * GIB, GIB))
    with pytest.raises(NoRoom, match="all 1 slots are taken"):
        opened(has).reserve(LeaseId("b"), claim())
    other = opened(has, node="node-b")
    with pytest.raises(NoRoom, match=r"memory \(bytes\): .* asked, .* free; another"):
        other.reserve(LeaseId("c"), Claim("anna", 0, 1000, 40 * GIB, GIB))
    other.reserve(LeaseId("d"), claim())


def test_the_smallest_gpu_that_does_is_given(opened: Open) -> None:
    ledger = opened(capacity(gpu("big", 80), gpu("small", 24), gpu("old", 48, capability="7.5")))
    assert ledger.reserve(LeaseId("a"), claim(1, min_vram=40 * GIB, min_compute_capability="8.0")).gpu_uuids == ("big",)
    assert ledger.reserve(LeaseId("b"), claim(1)).gpu_uuids == ("small",)
    with pytest.raises(NoRoom):
        ledger.reserve(LeaseId("c"), claim(1, min_compute_capability="8.0"))


def test_a_gpu_and_its_slices_are_never_both_leased(opened: Open) -> None:
    """An owner may switch MIG on while the whole GPU is leased: both are in the ledger's view then."""
    ledger = opened(capacity(gpu("g0"), gpu("mig-a", 10, parent="g0"), gpu("mig-b", 10, parent="g0")))
    assert ledger.reserve(LeaseId("slice"), claim(1)).gpu_uuids == ("mig-a",)
    assert ledger.reserve(LeaseId("sibling"), claim(1)).gpu_uuids == ("mig-b",)
    with pytest.raises(NoRoom):
        ledger.reserve(LeaseId("whole"), claim(1))
    assert ledger.leases_on("g0") == ("slice", "sibling")


def test_one_lease_never_gets_a_gpu_and_its_own_slice(opened: Open) -> None:
    """Found by the random lives below."""
    ledger = opened(capacity(gpu("g0"), gpu("mig-a", 10, parent="g0"), gpu("mig-b", 10, parent="g0")))
    with pytest.raises(NoRoom, match="3 GPUs asked, 2 free"):
        ledger.reserve(LeaseId("three"), claim(3))
    assert ledger.reserve(LeaseId("two"), claim(2)).gpu_uuids == ("mig-a", "mig-b")


def test_time_slices_are_shared_by_one_client_only(opened: Open) -> None:
    ledger = opened(capacity(gpu("g0"), gpu("g1"), gpu_slices=3))
    half = {"gpu_milli": 500}
    assert ledger.reserve(LeaseId("a1"), claim(1, **half)).gpu_uuids == ("g0",)
    assert ledger.reserve(LeaseId("b1"), claim(1, client="bert", **half)).gpu_uuids == ("g1",)
    assert ledger.reserve(LeaseId("a2"), claim(1, **half)).gpu_uuids == ("g0",)
    with pytest.raises(NoRoom, match="500/1000"):
        ledger.reserve(LeaseId("a3"), claim(1, **half))
    with pytest.raises(NoRoom, match="1 GPUs asked, 0 free"):
        ledger.reserve(LeaseId("whole"), claim(1))


def test_time_slices_need_the_owners_word(opened: Open) -> None:
    with pytest.raises(NoRoom, match="shares no GPUs"):
        opened(capacity(gpu("g0"))).reserve(LeaseId("a"), claim(1, gpu_milli=500))


def test_a_gpu_is_cut_no_finer_than_its_owner_says(opened: Open) -> None:
    ledger = opened(capacity(gpu("g0"), gpu_slices=3))
    with pytest.raises(NoRoom, match="250/1000 of a GPU asked; this node cuts none into more than 3"):
        ledger.reserve(LeaseId("a"), claim(1, gpu_milli=250))
    for lease in ("a", "b", "c"):
        assert ledger.reserve(LeaseId(lease), claim(1, gpu_milli=333)).gpu_uuids == ("g0",)
    with pytest.raises(NoRoom, match="333/1000"):
        ledger.reserve(LeaseId("d"), claim(1, gpu_milli=333))


def test_a_share_of_a_gpu_outlives_a_restart_beside_its_sibling(opened: Open) -> None:
    has = capacity(gpu("g0"), gpu_slices=2)
    for lease in ("a", "b"):
        opened(has).reserve(LeaseId(lease), claim(1, gpu_milli=500))
    after = opened(has)
    assert after.keep_only({LeaseId("b")}) == ("a",)
    assert after.reserve(LeaseId("b"), claim(1, gpu_milli=500)).gpu_uuids == ("g0",)
    with pytest.raises(NoRoom, match="may share"):
        after.reserve(LeaseId("c"), claim(1, client="bert", gpu_milli=500))


def test_whole_cores_are_pinned_within_one_numa_node(opened: Open) -> None:
    ledger = opened(capacity(cores=8, slots=9))
    assert ledger.reserve(LeaseId("a"), claim(cpus=3000)).cpus == (0, 1, 2)
    assert ledger.reserve(LeaseId("b"), claim(cpus=2000)).cpus == (4, 5)
    assert ledger.reserve(LeaseId("c"), claim(cpus=500)).cpus == ()
    assert ledger.reserve(LeaseId("d"), claim(cpus=2000)).cpus == (6, 7)
    with pytest.raises(NoRoom, match=r"CPU \(millis\): 1000 asked, 500 of 8000 free"):
        ledger.reserve(LeaseId("e"), claim(cpus=1000))


def test_the_cores_of_a_gpu_lease_are_near_its_gpu_where_there_are_enough(opened: Open) -> None:
    has = replace(capacity(gpu("far", 24), gpu("near", 80), cores=8), numa_node_of={"far": 0, "near": 1})
    ledger = opened(has)
    assert ledger.reserve(LeaseId("a"), claim(1, cpus=2000, min_vram=40 * GIB)) == Assignment(("near",), (4, 5))
    assert ledger.reserve(LeaseId("b"), claim(1, cpus=3000)) == Assignment(("far",), (0, 1, 2))
    ledger.release(LeaseId("a"))
    ledger.reserve(LeaseId("c"), claim(cpus=2000))
    # Node 1 has two cores left: a lease that fits nowhere near its GPU begins there and takes the rest from elsewhere.
    assert ledger.reserve(LeaseId("d"), claim(1, cpus=3000, min_vram=40 * GIB)) == Assignment(("near",), (3, 6, 7))


def test_shares_of_a_gpu_have_cores_of_their_own(opened: Open) -> None:
    has = replace(capacity(gpu("g0"), gpu_slices=2, cores=8), numa_node_of={"g0": 1})
    ledger = opened(has)
    assert ledger.reserve(LeaseId("a"), claim(1, cpus=2000, gpu_milli=500)).cpus == (4, 5)
    assert ledger.reserve(LeaseId("b"), claim(1, cpus=2000, gpu_milli=500)).cpus == (6, 7)


def test_a_cordoned_gpu_goes_to_nobody_until_it_is_back(opened: Open) -> None:
    has = capacity(gpu("g0"), gpu("mig", 10, parent="p"))
    ledger = opened(has)
    assert ledger.cordon("g0", "Xid 79")
    assert ledger.cordon("p", "uncorrectable ECC errors")
    assert not ledger.cordon("g0", "later reason")
    with pytest.raises(NoRoom, match=r"out of service: g0 \(Xid 79\)"):
        opened(has).reserve(LeaseId("a"), claim(1))
    assert ledger.uncordon("g0")
    assert ledger.reserve(LeaseId("a"), claim(1)).gpu_uuids == ("g0",)


def test_a_running_lease_keeps_its_gpu_when_the_ledger_is_another_file(opened: Open) -> None:
    """A new choice would be g0, which the container does not have."""
    ledger = opened(capacity(gpu("g0"), gpu("g1"), gpu_slices=2))
    assert ledger.adopt(LeaseId("a"), claim(1), ("g1",))
    assert ledger.adopt(LeaseId("a"), claim(1), ("g1",)), "safe to repeat"
    assert ledger.assignment(LeaseId("a")).gpu_uuids == ledger.reserve(LeaseId("a"), claim(1)).gpu_uuids == ("g1",)
    assert ledger.reserve(LeaseId("b"), claim(1)).gpu_uuids == ("g0",)


@pytest.mark.parametrize(
    ("standing", "kept", "keeps"),
    [
        (claim(1), claim(1), False),
        (claim(1, gpu_milli=500), claim(1, gpu_milli=500), True),
        (claim(1, gpu_milli=700), claim(1, gpu_milli=500), False),
        (claim(1, gpu_milli=500), claim(1, gpu_milli=500, client="bert"), False),
        (claim(1, gpu_milli=500), claim(1), False),
        (claim(0), claim(0, cpus=999_000), True),
    ],
    ids=["whole", "shares", "too-large", "strangers", "whole-on-share", "no-gpu"],
)
def test_it_ends_when_somebody_was_given_its_gpu_meanwhile(
    opened: Open, standing: Claim, kept: Claim, keeps: bool
) -> None:
    ledger = opened(capacity(gpu("g0"), gpu_slices=2))
    ledger.reserve(LeaseId("first"), standing)
    assert ledger.adopt(LeaseId("second"), kept, ("g0",) if kept.gpus else ()) is keeps
    assert {item.lease_id for item in ledger.held()} == {"first", *(["second"] if keeps else [])}


def test_a_gpu_that_rests_comes_back_by_itself_and_a_broken_one_does_not(opened: Open) -> None:
    ledger = opened(capacity(gpu("g0"), gpu("mig", 10, parent="p"), gpu_slices=2))
    assert ledger.rest("g0", "hot")
    assert not ledger.rest("g0", "hotter")
    ledger.rest("p", "hot too")
    with pytest.raises(NoRoom, match=r"may share; out of service: g0 \(hot\), p \(hot too\)"):
        ledger.reserve(LeaseId("a"), claim(1, gpu_milli=500))
    assert ledger.expected_back() == {"g0", "p"}

    ledger.cordon("g0", "Xid 79")
    assert (ledger.cordons(), ledger.expected_back()) == ({"g0": "Xid 79", "p": "hot too"}, {"p"})
    assert ledger.back("g0")
    assert not ledger.back("g0")
    assert ledger.cordons()["g0"] == "Xid 79"
    ledger.rest("g0", "hot")
    assert ledger.uncordon("g0"), "its owner has the last word, whatever was wrong"
    assert ledger.cordons() == {"p": "hot too"}


# --- random lives ----------------------------------------------------------------------------------------------------

HOST = capacity(
    gpu("g0", 24),
    gpu("g1", 80, model="H100"),
    gpu("m0", 10, parent="g2"),
    gpu("m1", 10, parent="g2"),
    gpu("g2", 40),
    cores=6,
    slots=3,
    gpu_slices=3,
)
CLAIMS = st.builds(
    Claim,
    client=st.sampled_from(["anna", "bert"]),
    gpus=st.integers(0, 3),
    cpu_millis=st.sampled_from([250, 500, 1000, 1500, 2000, 3000]),
    memory_bytes=st.integers(1, 30).map(lambda gib: gib * GIB),
    disk_bytes=st.integers(1, 40).map(lambda gib: gib * GIB),
    gpu_milli=st.sampled_from([WHOLE_MILLI, WHOLE_MILLI, 300, 333, 500, 700]),
    min_vram=st.sampled_from([None, 20 * GIB]),
    gpu_class=st.sampled_from([None, None, "h100", "a100|H100", "simulated"]),
)


class HostLedger(RuleBasedStateMachine):
    """Two nodes share a host; grants, releases, crashes of either agent and cordons come in any order."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.nodes: dict[str, Reservations] = {}
        self.promised: dict[str, tuple[str, Claim, Assignment]] = {}
        self.count = 0
        for node in ("node-a", "node-b"):
            self._open(node)

    def _open(self, node: str) -> None:
        self.nodes[node] = Reservations(Path(self.folder.name) / "host.sqlite", node, HOST)

    @rule(node=st.sampled_from(["node-a", "node-b"]), asked=CLAIMS)
    def grant(self, node: str, asked: Claim) -> None:
        self.count += 1
        lease = LeaseId(f"lease-{self.count}")
        try:
            given = self.nodes[node].reserve(lease, asked)
        except NoRoom:
            return
        away = self.nodes[node].cordons()
        for unit in HOST.gpus:
            assert unit.uuid not in given.gpu_uuids or not {unit.uuid, unit.mig_parent} & away.keys()
        self.promised[lease] = (node, asked, given)

    @rule(data=st.data())
    def granted_again(self, data: st.DataObject) -> None:
        if self.promised:
            lease = data.draw(st.sampled_from(sorted(self.promised)))
            node, asked, given = self.promised[lease]
            assert self.nodes[node].reserve(LeaseId(lease), asked) == given

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.promised:
            lease = data.draw(st.sampled_from(sorted(self.promised)))
            self.nodes[self.promised.pop(lease)[0]].release(LeaseId(lease))

    @rule(node=st.sampled_from(["node-a", "node-b"]), data=st.data())
    def crash(self, node: str, data: st.DataObject) -> None:
        """The agent dies; of its leases some had ended by the journal, but were not given back yet."""
        self.nodes[node].close()
        own = sorted(lease for lease, (owner, _, _) in self.promised.items() if owner == node)
        ended = set(data.draw(st.lists(st.sampled_from(own), unique=True))) if own else set()
        self._open(node)
        assert set(self.nodes[node].keep_only({LeaseId(lease) for lease in own} - ended)) == ended
        for lease in ended:
            del self.promised[lease]

    @rule(uuid=st.sampled_from(["g0", "g2", "m0"]), node=st.sampled_from(["node-a", "node-b"]), is_hot=st.booleans())
    def cordon(self, uuid: str, node: str, *, is_hot: bool) -> None:
        if is_hot:
            self.nodes[node].rest(uuid, "test")
        else:
            self.nodes[node].cordon(uuid, "test")

    @rule(node=st.sampled_from(["node-a", "node-b"]))
    def all_cool(self, node: str) -> None:
        """Whoever notices; what is broken stays out."""
        broken = set(self.nodes[node].cordons()) - self.nodes[node].expected_back()
        for uuid in self.nodes[node].resting():
            self.nodes[node].back(uuid)
        assert set(self.nodes[node].cordons()) == broken

    @rule()
    def all_in_service(self) -> None:
        for uuid in self.nodes["node-b"].cordons():
            self.nodes["node-b"].uncordon(uuid)

    @invariant()
    def nothing_is_promised_twice(self) -> None:
        if not hasattr(self, "nodes"):
            return
        standing = self.nodes["node-b"].held()
        assert {item.lease_id: (item.node, item.claim, item.assignment) for item in standing} == self.promised
        cores = [number for item in standing for number in item.assignment.cpus]
        assert len(cores) == len(set(cores))
        assert sum(item.claim.cpu_millis for item in standing) <= HOST.cpu_millis
        assert sum(item.claim.memory_bytes for item in standing) <= HOST.memory_bytes
        assert sum(item.claim.disk_bytes for item in standing) <= HOST.disk_bytes
        for unit in HOST.gpus:
            users = [item for item in standing if unit.uuid in item.assignment.gpu_uuids]
            assert sum(item.claim.gpu_milli for item in users) <= WHOLE_MILLI
            assert len({item.claim.client for item in users}) <= 1
            assert all(item.claim.gpu_milli >= WHOLE_MILLI // HOST.gpu_slices for item in users)
            for item in users:
                assert item.claim.min_vram is None or unit.vram_bytes >= item.claim.min_vram
                assert item.claim.gpu_class is None or unit.model.lower() in item.claim.gpu_class.lower().split("|")
        whole = any("g2" in item.assignment.gpu_uuids for item in standing)
        assert not whole or not any({"m0", "m1"} & set(item.assignment.gpu_uuids) for item in standing)

    def teardown(self) -> None:
        for ledger in getattr(self, "nodes", {}).values():
            ledger.close()
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestHostLedger = HostLedger.TestCase
TestHostLedger.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
