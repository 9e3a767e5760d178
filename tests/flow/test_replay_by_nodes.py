"""A segment is executed again on nodes of other owners: who is asked, who pays, who is believed, and what lying costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from sqlalchemy import func, select

from tests.flow.test_replay import PRICE, replay_spec
from tests.support.actors import Client, Node, join, let_pass, make_client, make_node
from tests.support.credit import open_credit_vault
from tests.support.market import World
from tests.support.replays import COPIED, EXECUTED, JUNK, KnowingReplayer, execute
from torg_marketplace.flow import vaults
from torg_marketplace.flow.collateral import look_at_collaterals
from torg_marketplace.flow.erase import erase_account
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.planted import advance_planted
from torg_marketplace.flow.replay_checks import AUDIT, PLANTED
from torg_marketplace.flow.reputation import node_reputation
from torg_marketplace.flow.rows import spec_of
from torg_marketplace.flow.verify import verify_pending
from torg_marketplace.rules.replay import longest_replay_ms
from torg_marketplace.simulation.collateral import stake
from torg_marketplace.storage import ledger
from torg_marketplace.storage.audit_models import ReplayAnswerRow, ReplayCheckRow, SlashRow
from torg_marketplace.storage.models import JobRow
from torg_marketplace.storage.money_models import CapRow, CommitmentRow, PayoutRow
from torg_protocol.ids import Digest, JobId
from torg_protocol.messages import Granted
from torg_protocol.states import EndReason, JobState, LeaseState
from torg_protocol.usage import verify_receipt

WEIGHTS = b"weights"


@dataclass
class Trial:
    """One lease that is audited, everything of it a lie or nothing."""

    world: World
    replayer: KnowingReplayer
    worker: Node
    client: Client
    verifiers: list[Node]
    job_id: JobId
    operator_vault: str

    async def verify(self) -> int:
        return await verify_pending(self.world.market)

    def waiting(self) -> list[Node]:
        """Verifiers that were given a segment."""
        granted = {node_id for node_id, message in self.world.links.unread() if message == "Granted"}
        return [node for node in self.verifiers if node.id in granted]

    async def asked(self) -> Node:
        (only,) = self.waiting()  # one after the other
        return only

    async def asked_for(self, purpose: str) -> list[Node]:
        """Verifiers who are at a segment of this kind."""
        query = select(ReplayAnswerRow.node_id).join(
            ReplayCheckRow, ReplayCheckRow.check_id == ReplayAnswerRow.check_id
        )
        query = query.where(ReplayAnswerRow.state == "open", ReplayCheckRow.purpose == purpose)
        async with self.world.market.reading() as unit:
            ids = set(await unit.session.scalars(query))
        return [node for node in self.verifiers if node.id in ids]

    async def executes(self, node: Node, weights: bytes = EXECUTED) -> None:
        """Quickly: nobody sends heartbeats meanwhile."""
        await execute(node, weights, seconds=2)
        await self.verify()
        await self.verify()  # what the answer woke

    async def answer(self, weights: bytes) -> Node:
        node = await self.asked()
        await execute(node, weights)
        await self.verify()
        return node

    async def state(self) -> tuple[str, str]:
        view = await self.client.job(self.job_id)
        return view.state, view.leases[0].state

    def read_all(self) -> None:
        for node in [self.worker, *self.verifiers]:
            node.read()


async def audited(
    world: World,
    *,
    lies: bool = False,
    verifiers: int = 3,
    same_owner: int = 0,
    credit: bool = True,
    planted: int = 0,
    here_below_ms: int = 0,
    segments: int = 1,
    unplanted_here_below_ms: int = 0,
    unplanted_owners: int = 1,
    slow: bool = False,
) -> Trial:
    changes = {"replay_here_below_ms": here_below_ms, "planted_permille": planted}
    changes |= {"unplanted_here_below_ms": unplanted_here_below_ms, "unplanted_owners": unplanted_owners}
    policy = world.market.policy.model_copy(update=changes)
    replayer, key = KnowingReplayer(world, slow=slow), world.random.keypair()
    market = replace(world.market, replayer=replayer, policy=policy, credit_key=key if credit else None)
    world = replace(world, market=market)
    replayer.world = world
    vault = await open_credit_vault(world, key) if credit else ""
    worker, client = await join(world, price=PRICE), await make_client(world)
    verify = {"policy": "replay", "catalogue": "rnn", "segments": segments}
    job = await client.submit(replay_spec(world, verify=verify))
    claims = await trains(worker)
    others = [await with_stake(world) for _ in range(verifiers)]
    for _ in range(same_owner):
        node = make_node(world, price=PRICE)
        node.offer = node.offer.model_copy(update={"payout_address": worker.offer.payout_address})
        await node.connect()
        others.append(node)
    await look_at_collaterals(world.market)
    world.advance(seconds=10)
    await worker.finish(outputs={"model.safetensors": WEIGHTS})
    replayer.lies = {*claims, world.blobs.put(WEIGHTS).digest} if lies else set()
    await verify_pending(world.market)
    return Trial(world, replayer, worker, client, others, job.job_id, vault)


async def trains(worker: Node) -> list[Digest]:
    """Three checkpoints of a job that only this node can have got."""
    await match_pending(worker.world.market)
    await worker.accept_and_start()
    claims = []
    for number in range(1, 4):
        worker.world.advance(seconds=10)
        claims.append((await worker.checkpoint(f"step-{number:08d}")).blob.digest)
    return claims


async def with_stake(world: World) -> Node:
    node, owner = make_node(world, price=PRICE), world.random.keypair().pubkey()
    address = stake(world.chain.vaults, world.market.network, node.key.pubkey(), owner, 10_000_000)
    node.offer = node.offer.model_copy(update={"collateral": address})
    await node.connect()
    return node


async def answers(world: World) -> list[ReplayAnswerRow]:
    async with world.market.reading() as unit:
        return list(await unit.session.scalars(select(ReplayAnswerRow).order_by(ReplayAnswerRow.answer_id)))


async def payouts(world: World) -> dict[str, int]:
    """Waiting ones by payee and vault."""
    async with world.market.reading() as unit:
        rows = await unit.session.scalars(select(PayoutRow))
        found: dict[str, int] = {}
        for row in rows:
            found[row.payout_address] = found.get(row.payout_address, 0) + row.amount
        assert await ledger.problems(unit.session) == []
        return found


async def reputation(trial: Trial, node: Node) -> tuple[int, int]:
    async with trial.world.market.reading() as unit:
        found = await node_reputation(unit, node.id)
    return found.leases_kept, found.leases_broken


async def test_a_node_of_another_owner_executes_it_and_is_paid_by_the_operator(world: World) -> None:
    trial = await audited(world)
    assert await trial.state() == (JobState.VERIFYING, LeaseState.REPORTED)
    verifier = await trial.asked()
    await execute(verifier)
    assert await trial.verify() == 1
    trial.read_all()

    assert await trial.state() == (JobState.SUCCEEDED, LeaseState.VERIFIED)
    assert trial.replayer.executed == [], "we have executed nothing"
    (row,) = await answers(trial.world)
    assert (row.node_id, row.state, row.distance, row.outvoted) == (verifier.id, "answered", "0.0", False)
    paid = await payouts(trial.world)
    assert paid[verifier.offer.payout_address] == 9_800, "ten seconds, less the fee"
    assert paid[trial.worker.offer.payout_address] == 39_200
    receipt = verifier.receipts[-1]
    assert verify_receipt(receipt, marketplace=trial.world.market.public_key) == []
    assert receipt.receipt.vault == trial.operator_vault, "the client's vault pays for its own job alone"
    (receipt,) = await trial.client.receipts(trial.job_id)
    assert receipt.receipt.verdict.measured["replays_by_nodes"] == "1"


async def test_audits_at_once_do_not_wait_for_each_others_settlement(world: World) -> None:
    """A replay costs much less than it may cost: what is left of its range is too small for the next one until it is settled."""
    trial = await audited(world, verifiers=4)
    for number in range(3):
        worker, client = await join(trial.world, price=PRICE), await make_client(trial.world)
        verify = {"policy": "replay", "catalogue": "rnn", "segments": 1}
        await client.submit(replay_spec(trial.world, verify=verify, placement={"nodes": [worker.id]}))
        await trains(worker)
        trial.world.advance(seconds=10)
        await worker.finish(outputs={"model.safetensors": WEIGHTS})
        await trial.verify()
        trial.verifiers.append(worker)  # it may be asked about the next one
        if number == 1:  # three are at it, on three ranges: that in the middle is decided first
            (_, second, _) = await answers(trial.world)
            quick = next(node for node in trial.verifiers if node.id == second.node_id)
            await trial.executes(quick)
    rows = await answers(trial.world)
    assert [row.state for row in rows] == ["open", "answered", "open", "open"], "all are asked of nodes"
    assert trial.replayer.executed == []
    async with trial.world.market.reading() as unit:
        ranges = list(
            await unit.session.scalars(select(CommitmentRow).where(CommitmentRow.vault == trial.operator_vault))
        )
        caps = list(await unit.session.scalars(select(CapRow.cap).where(CapRow.vault == trial.operator_vault)))
    ranges.sort(key=lambda row: row.lower)
    assert all(before.upper <= after.lower for before, after in pairwise(ranges))
    assert max(caps) == ranges[-1].upper, "no cap is higher than the ranges that it is for"
    trial.read_all()


async def test_who_executes_it_gets_where_it_begins_and_never_where_it_ended(world: World) -> None:
    trial = await audited(world)
    verifier = await trial.asked()
    (message,) = verifier.read()
    assert isinstance(message, Granted)
    grant = message.signed.grant
    async with trial.world.market.reading() as unit:
        check = (await unit.session.scalars(select(ReplayCheckRow))).one()
    end = Digest(check.end["blob"]["digest"]) if check.end else trial.world.blobs.put(WEIGHTS).digest
    assert end not in grant.model_dump_json()
    assert (grant.resume_from.wire() if grant.resume_from else None) == check.start
    assert grant.spec.command[-2:] == ("python", "train.py")
    assert grant.spec.command[3] == (check.end["name"] if check.end else "")
    assert grant.spec.workspace is not None
    trial.read_all()


async def test_never_on_a_node_of_the_same_owner(world: World) -> None:
    trial = await audited(world, verifiers=0, same_owner=2)
    assert await trial.state() == (JobState.SUCCEEDED, LeaseState.VERIFIED)
    assert len(trial.replayer.executed) == 1
    trial.read_all()


@pytest.mark.parametrize("credit", [True, False])
async def test_without_nodes_or_money_we_execute_it_ourselves(world: World, credit: bool) -> None:
    trial = await audited(world, verifiers=0 if credit else 2, credit=credit)
    assert await trial.state() == (JobState.SUCCEEDED, LeaseState.VERIFIED)
    assert len(trial.replayer.executed) == 1
    trial.read_all()


async def test_who_accuses_falsely_is_outvoted_and_loses_pay_name_and_stake(world: World) -> None:
    trial = await audited(world)
    accuser = await trial.answer(JUNK)
    assert await trial.state() == (JobState.VERIFYING, LeaseState.REPORTED), "nobody is believed alone"
    honest = await trial.answer(EXECUTED)
    trial.read_all()

    assert honest is not accuser
    assert len(trial.replayer.executed) == 1, "nobody is blamed before we have executed it ourselves"
    assert await trial.state() == (JobState.SUCCEEDED, LeaseState.VERIFIED)
    paid = await payouts(trial.world)
    assert accuser.offer.payout_address not in paid
    assert paid[honest.offer.payout_address] == 9_800
    assert await reputation(trial, accuser) == (1, 1)
    async with trial.world.market.reading() as unit:
        (slash,) = (await unit.session.scalars(select(SlashRow))).all()
        job = await unit.session.get_one(JobRow, trial.job_id)
    assert (slash.node_id, slash.amount) == (accuser.id, 15 * 10_000)
    assert slash.client_vault == job.vault, "never the operator, who pays for replays"


async def test_a_lying_lease_is_found_by_two_nodes_and_confirmed_by_us(world: World) -> None:
    trial = await audited(world, lies=True)
    honest = [await trial.answer(EXECUTED), await trial.answer(EXECUTED)]
    trial.read_all()
    assert len(trial.replayer.executed) == 1
    assert (await trial.state())[1] == LeaseState.REJECTED
    paid = await payouts(trial.world)
    assert trial.worker.offer.payout_address not in paid
    assert all(paid[node.offer.payout_address] == 9_800 for node in honest)


async def test_a_friend_who_says_the_same_of_a_lie_is_found_when_another_was_asked_first(world: World) -> None:
    trial = await audited(world, lies=True)
    await trial.answer(EXECUTED)
    friend = await trial.answer(COPIED)
    trial.read_all()
    assert (await trial.state())[1] == LeaseState.REJECTED
    assert await reputation(trial, friend) == (1, 1)
    assert friend.offer.payout_address not in await payouts(trial.world)


async def test_two_accusers_in_league_do_not_take_an_honest_nodes_stake(world: World) -> None:
    trial = await audited(world)
    liars = [await trial.answer(JUNK), await trial.answer(JUNK)]
    trial.read_all()
    assert await trial.state() == (JobState.SUCCEEDED, LeaseState.VERIFIED)
    assert [await reputation(trial, liar) for liar in liars] == [(1, 1), (1, 1)]
    assert not {liar.offer.payout_address for liar in liars} & (await payouts(trial.world)).keys()


async def test_a_node_that_comes_to_nothing_is_not_paid_and_another_is_asked(world: World) -> None:
    trial = await audited(world)
    first = await trial.asked()
    await first.accept_and_start()
    trial.world.advance(seconds=10)
    await first.finish(EndReason.FAILED_EXIT, exit_code=1)
    first.read()
    await let_pass(trial.world, seconds=10, nodes=tuple(trial.verifiers))
    await trial.verify()
    second = await trial.answer(EXECUTED)
    trial.read_all()
    assert second is not first
    assert await trial.state() == (JobState.SUCCEEDED, LeaseState.VERIFIED)
    assert first.offer.payout_address not in await payouts(trial.world)


async def test_when_time_is_nearly_over_we_do_not_wait_for_a_node_and_pay_it_all_the_same(world: World) -> None:
    trial = await audited(world)
    slow = await trial.asked()
    await slow.accept_and_start()
    window_s = trial.world.market.policy.verification_window_s
    await let_pass(trial.world, seconds=window_s * 3 // 4, nodes=(trial.worker, *trial.verifiers))
    await trial.verify()
    assert await trial.state() == (JobState.SUCCEEDED, LeaseState.VERIFIED)
    await slow.finish(outputs={"answer.safetensors": EXECUTED, "segment.json": b"{}"})
    await trial.verify()
    trial.read_all()
    assert (await payouts(trial.world))[slow.offer.payout_address] > 0


async def test_if_we_cannot_confirm_what_two_nodes_say_nobody_is_blamed_and_they_are_paid(world: World) -> None:
    trial = await audited(world, lies=True)
    trial.replayer.broken = True
    honest = [await trial.answer(EXECUTED), await trial.answer(EXECUTED)]
    for _ in range(trial.world.market.policy.verify_attempts):
        trial.world.advance(ms=trial.world.market.policy.verify_retry_ms)
        await trial.verify()
    trial.read_all()
    assert await trial.state() == (JobState.FAILED, LeaseState.INCONCLUSIVE)
    paid = await payouts(trial.world)
    assert paid.keys() == {node.offer.payout_address for node in honest} | {"fee"}


async def test_short_segments_are_executed_by_ourselves(world: World) -> None:
    trial = await audited(world, here_below_ms=10_001)
    trial.read_all()
    assert await trial.state() == (JobState.SUCCEEDED, LeaseState.VERIFIED)
    assert len(trial.replayer.executed) == 1


async def segments_answered(world: World) -> list[tuple[int, bool]]:
    """The number of each that was executed again, and whether by a node."""
    async with world.market.reading() as unit:
        query = select(ReplayCheckRow.segment, ReplayAnswerRow.node_id)
        query = query.join(ReplayCheckRow, ReplayCheckRow.check_id == ReplayAnswerRow.check_id)
        rows = (await unit.session.execute(query.where(ReplayAnswerRow.state == "answered"))).all()
    return sorted((number, node_id is not None) for number, node_id in rows)


async def test_what_cannot_be_planted_is_executed_by_ourselves(world: World) -> None:
    trial = await audited(world, segments=4, unplanted_here_below_ms=10_001, unplanted_owners=2)
    while (await trial.state())[0] == JobState.VERIFYING:
        await trial.executes(await trial.asked())
    trial.read_all()
    assert await trial.state() == (JobState.SUCCEEDED, LeaseState.VERIFIED)
    assert await segments_answered(trial.world) == [(0, False), (1, False), (2, True), (3, True)]


async def test_where_that_takes_too_long_two_owners_must_say_the_same(world: World) -> None:
    trial = await audited(world, segments=4, unplanted_owners=2)
    while (await trial.state())[0] == JobState.VERIFYING:
        await trial.executes(await trial.asked())
    trial.read_all()
    assert await trial.state() == (JobState.SUCCEEDED, LeaseState.VERIFIED)
    assert await segments_answered(trial.world) == [*[(0, True)] * 2, *[(1, True)] * 2, (2, True), (3, True)]
    assert trial.replayer.executed == []


async def test_a_friend_alone_does_not_acquit_a_lie_among_them(world: World) -> None:
    trial = await audited(world, lies=True, segments=4, unplanted_owners=2)
    friends = []
    while (await trial.state())[0] == JobState.VERIFYING:
        asked = await trial.asked()
        async with trial.world.market.reading() as unit:
            query = select(ReplayCheckRow.segment, func.count()).join(
                ReplayAnswerRow, ReplayAnswerRow.check_id == ReplayCheckRow.check_id
            )
            open_check = select(ReplayAnswerRow.check_id).where(ReplayAnswerRow.state == "open")
            query = query.where(ReplayCheckRow.check_id.in_(open_check)).group_by(ReplayCheckRow.segment)
            ((number, count),) = (await unit.session.execute(query)).all()
        is_friend = number > 1 or count == 1  # of all but the second who is asked of the first two segments
        friends += [asked] if is_friend else []
        await trial.executes(asked, COPIED if is_friend else EXECUTED)
    trial.read_all()
    assert (await trial.state())[1] == LeaseState.REJECTED
    assert await reputation(trial, friends[-1]) != (1, 0)


async def test_without_a_second_owner_and_beyond_us_one_nodes_word_is_all_there_is(world: World) -> None:
    trial = await audited(world, verifiers=1, segments=4, unplanted_owners=2)
    trial.replayer.broken = True
    while (await trial.state())[0] == JobState.VERIFYING:
        await trial.executes(await trial.asked())
    trial.read_all()
    assert await trial.state() == (JobState.SUCCEEDED, LeaseState.VERIFIED)
    assert await segments_answered(trial.world) == [(number, True) for number in range(4)]


@pytest.mark.parametrize(("weights", "outvoted"), [(EXECUTED, False), (JUNK, True), (COPIED, True)])
async def test_a_planted_segment_finds_who_does_not_execute(world: World, weights: bytes, outvoted: bool) -> None:
    # Whoever was asked about the lease is not asked about what is planted.
    trial = await audited(world, verifiers=6, planted=1000, segments=3)  # of four, two of which can be planted
    while (await trial.state())[0] == JobState.VERIFYING:
        (auditor,) = await trial.asked_for(AUDIT)
        await trial.executes(auditor)
    suspect, *_ = await trial.asked_for(PLANTED)
    before = await reputation(trial, suspect)
    await trial.executes(suspect, weights)
    while asked := await trial.asked_for(PLANTED):
        await trial.executes(asked[0])
    trial.read_all()
    assert (await reputation(trial, suspect))[1] - before[1] == int(outvoted)
    async with trial.world.market.reading() as unit:
        owners = list(await unit.session.scalars(select(ReplayAnswerRow.payout_address)))
        checks = (await unit.session.scalars(select(ReplayCheckRow))).all()
    assert {check.verdict for check in checks} == {"passed"}
    assert len([check for check in checks if check.purpose == PLANTED]) > 0
    assert len(set(owners)) == len(owners), "who was asked about this lease before could compare"
    assert await trial.state() == (JobState.SUCCEEDED, LeaseState.VERIFIED)
    assert (suspect.offer.payout_address in await payouts(trial.world)) or outvoted


@pytest.mark.parametrize("number", [2, 3])  # the last one leads to the outputs
async def test_a_planted_segment_has_the_time_of_the_real_one(world: World, number: int) -> None:
    """Else its node could tell by max_duration that its answer is known, and execute only such ones."""
    trial = await audited(world, here_below_ms=10_001, segments=4)  # of 10 s each, executed by ourselves
    async with trial.world.market.transaction() as unit:
        query = select(ReplayCheckRow).where(ReplayCheckRow.segment == number)
        real = (await unit.session.scalars(query)).one()
        kept = {name: getattr(real, name) for name in ("lease_id", "segment", "start", "end", "model", "created_at_ms")}
        unit.session.add(ReplayCheckRow(check_id=unit.new_id("check"), purpose=PLANTED, verdict="", **kept))
    await advance_planted(trial.world.market)
    trial.read_all()
    async with trial.world.market.reading() as unit:
        given = (await unit.session.scalars(select(JobRow).where(JobRow.checks_job.is_not(None)))).one()
    assert spec_of(given).limits.max_duration == longest_replay_ms(10_000)


async def test_erasing_a_client_leaves_the_verdict_and_nothing_of_its_files(world: World) -> None:
    trial = await audited(world)
    await execute(await trial.asked())
    await trial.verify()
    trial.read_all()
    await erase_account(trial.world.market, trial.client.account)
    async with trial.world.market.reading() as unit:
        (check,) = (await unit.session.scalars(select(ReplayCheckRow))).all()
        (replay,) = (await unit.session.scalars(select(JobRow).where(JobRow.checks_job.is_not(None)))).all()
    assert (check.verdict, check.start, check.end, check.model, check.detail) == ("passed", None, None, None, "")
    assert replay.spec["command"] == ["true"]
    (row,) = await answers(trial.world)
    assert (row.answer, row.distance) == (None, "0.0")
    assert trial.world.blobs.stored.keys() == set(), (
        "its checkpoints, its outputs, and what the other node made of them"
    )


async def test_an_error_of_the_ledger_is_not_taken_for_a_node_that_is_busy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise ledger.LedgerError("a posting must add up to zero", code="not_zero")

    monkeypatch.setattr(vaults, "admit", refused)
    with pytest.raises(ledger.LedgerError):
        await audited(world)
