"""A node that fails its audit loses what stood behind the lease, once, to the client; whoever passes loses nothing."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from solders.pubkey import Pubkey
from sqlalchemy import select

from tests.flow.test_replay import FAR, PRICE, SAME, ScriptedReplayer, replay_spec
from tests.support.actors import Client, Node, make_client, make_node
from tests.support.market import World
from torg_chain.errors import ChainUnavailable
from torg_chain.vault import DISPUTE_DELAY_S
from torg_marketplace.flow.collateral import free_stake, look_at_collaterals
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.slash import RESEND_AFTER_MS, advance_slashes, cancel_slash
from torg_marketplace.flow.verify import verify_pending
from torg_marketplace.ports import EvaluationFailed
from torg_marketplace.rules.audit import MOST_STAKE_REWARDS
from torg_marketplace.simulation.collateral import stake
from torg_marketplace.storage.audit_models import CollateralRow, SlashRow
from torg_marketplace.storage.models import LeaseRow
from torg_protocol.audits import AuditDraw, check_draw, commitment_root
from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import Conflict, TorgError
from torg_protocol.ids import JobId
from torg_protocol.states import JobState, SlashState

STAKE = 10_000_000
REWARD = 20_000  # of the lease below


@pytest.fixture
def replayer() -> ScriptedReplayer:
    return ScriptedReplayer()


@pytest.fixture
def market(world: World, replayer: ScriptedReplayer) -> World:
    return replace(world, market=replace(world.market, replayer=replayer))


async def join_with_stake(world: World, amount: int = STAKE) -> Node:
    node, owner = make_node(world, price=PRICE), world.random.keypair().pubkey()
    address = stake(world.chain.vaults, world.market.network, node.key.pubkey(), owner, amount)
    node.offer = node.offer.model_copy(update={"collateral": address})
    await node.connect()
    await look_at_collaterals(world.market)
    return node


async def work(world: World, node: Node, client: Client) -> JobId:
    job = await client.submit(replay_spec(world))
    await match_pending(world.market)
    await node.accept_and_start()
    for number in (1, 2):
        world.advance(seconds=10)
        await node.checkpoint(f"step-{number:08d}")
    await node.finish(outputs={"model.safetensors": b"weights"})
    return job.job_id


async def slashes(world: World) -> list[SlashRow]:
    async with world.market.reading() as unit:
        return list(await unit.session.scalars(select(SlashRow).order_by(SlashRow.created_at_ms)))


async def only_slash(world: World) -> SlashRow:
    (row,) = await slashes(world)
    return row


async def failed_audit(world: World, replayer: ScriptedReplayer, amount: int = STAKE) -> tuple[Client, Node, JobId]:
    node, client = await join_with_stake(world, amount), await make_client(world)
    job_id = await work(world, node, client)
    replayer.script.extend([FAR, FAR])
    assert await verify_pending(world.market) == 1
    node.read()
    return client, node, job_id


def pass_the_delay(world: World, seconds: int = DISPUTE_DELAY_S) -> None:
    world.chain.time_s += seconds
    world.chain.expire_blockhashes()
    world.advance(seconds=seconds)


async def advance_patiently(world: World, times: int = 3) -> None:
    for _ in range(times):
        with contextlib.suppress(ChainUnavailable):  # the loop logs it and comes back
            await advance_slashes(world.market)
        world.advance(ms=RESEND_AFTER_MS)


async def test_a_failed_audit_takes_the_stake_behind_the_lease_once_and_gives_it_to_the_client(
    market: World, replayer: ScriptedReplayer
) -> None:
    client, node, _ = await failed_audit(market, replayer)
    row = await only_slash(market)
    wanted = MOST_STAKE_REWARDS * REWARD
    assert (row.state, row.amount) == (SlashState.WANTED, wanted)
    await advance_slashes(market.market)  # sends the proposal
    assert await advance_slashes(market.market) == 1  # and sees it
    assert (await only_slash(market)).state == SlashState.PROPOSED
    await advance_patiently(market)
    assert market.chain.collaterals.executed == [], "the node has a day to object"

    pass_the_delay(market)
    await advance_patiently(market)
    row = await only_slash(market)
    assert row.state == SlashState.EXECUTED
    root = bytes.fromhex(row.evidence_root.removeprefix("sha256:"))
    assert market.chain.collaterals.executed == [(row.collateral, root, wanted, client.key.pubkey())]
    assert market.chain.vaults[row.collateral].balance == STAKE - wanted
    async with market.market.reading() as unit:
        assert await free_stake(unit, node.id) == STAKE - wanted
    pass_the_delay(market)
    await advance_patiently(market)
    assert len(market.chain.collaterals.executed) == 1


async def test_work_that_passes_costs_no_stake_and_frees_what_was_kept_aside(
    market: World, replayer: ScriptedReplayer
) -> None:
    node, client = await join_with_stake(market), await make_client(market)
    await work(market, node, client)
    replayer.script.append(SAME)
    await verify_pending(market.market)
    node.read()
    assert await slashes(market) == []
    async with market.market.reading() as unit:
        assert await free_stake(unit, node.id) == STAKE


async def test_the_job_runs_again_elsewhere_and_its_client_pays_nothing_for_the_lie(
    market: World, replayer: ScriptedReplayer
) -> None:
    client, _, job_id = await failed_audit(market, replayer)
    assert await match_pending(market.market) == 0, "the culprit does not get it again"
    other = make_node(market, price=PRICE)
    await other.connect()
    assert await match_pending(market.market) == 1
    await other.accept_and_start()
    market.advance(seconds=10)
    await other.finish(outputs={"model.safetensors": b"weights"})
    replayer.script.append(SAME)
    await verify_pending(market.market)
    other.read()
    view = await client.job(job_id)
    assert (view.state, view.final_amount) == (JobState.SUCCEEDED, 10_200)


@pytest.mark.parametrize(("lost", "unanswered", "down"), [(2, 0, False), (0, 2, False), (1, 1, True)])
async def test_whatever_gets_lost_on_the_way_it_is_taken_once(
    market: World, replayer: ScriptedReplayer, lost: int, unanswered: int, down: bool
) -> None:
    await failed_audit(market, replayer)
    for _ in range(2):
        market.chain.lose_next, market.chain.answer_lost_next, market.chain.down = lost, unanswered, down
        await advance_patiently(market)
        market.chain.down = False
        await advance_patiently(market, times=6)
        pass_the_delay(market)
        await advance_patiently(market, times=2)
    assert (await only_slash(market)).state == SlashState.EXECUTED
    assert len(market.chain.collaterals.executed) == 1


async def test_a_proposal_that_nobody_executes_in_time_is_made_again(market: World, replayer: ScriptedReplayer) -> None:
    await failed_audit(market, replayer)
    await advance_patiently(market)
    pass_the_delay(market, 2 * DISPUTE_DELAY_S + 1)  # the marketplace was away
    await advance_patiently(market, times=5)
    assert (await only_slash(market)).state == SlashState.PROPOSED
    assert market.chain.collaterals.executed == []
    pass_the_delay(market)
    await advance_patiently(market)
    assert len(market.chain.collaterals.executed) == 1


async def test_the_operator_can_take_it_back_within_the_day(market: World, replayer: ScriptedReplayer) -> None:
    await failed_audit(market, replayer)
    await advance_patiently(market)
    row = await only_slash(market)
    await cancel_slash(market.market, row.slash_id, because="our replayer was broken")
    assert market.chain.vaults[row.collateral].slash is None
    pass_the_delay(market)
    await advance_patiently(market)
    assert ((await only_slash(market)).state, market.chain.collaterals.executed) == (SlashState.CANCELLED, [])
    with pytest.raises(Conflict) as refused:
        await cancel_slash(market.market, row.slash_id, because="again")
    assert refused.value.code == "illegal_move"
    with pytest.raises(TorgError) as unknown:
        await cancel_slash(market.market, "slash_0", because="none")
    assert unknown.value.code == "slash_unknown"


async def test_two_slashes_of_one_collateral_wait_for_each_other(market: World, replayer: ScriptedReplayer) -> None:
    client, node, _ = await failed_audit(market, replayer)
    second = await make_client(market)
    await work(market, node, second)
    replayer.script.extend([FAR, FAR])
    await verify_pending(market.market)
    node.read()
    await advance_patiently(market)
    assert sorted(row.state for row in await slashes(market)) == [SlashState.PROPOSED, SlashState.WANTED]
    for _ in range(2):
        pass_the_delay(market)
        await advance_patiently(market, times=5)
    got = {beneficiary for *_, beneficiary in market.chain.collaterals.executed}
    assert got == {client.key.pubkey(), second.key.pubkey()}


async def test_a_small_stake_is_taken_whole_and_never_twice(market: World, replayer: ScriptedReplayer) -> None:
    _, node, _ = await failed_audit(market, replayer, amount=7_000)
    assert (await only_slash(market)).amount == 7_000
    await work(market, node, await make_client(market))
    replayer.script.extend([FAR, FAR])
    await verify_pending(market.market)
    node.read()
    assert len(await slashes(market)) == 1, "nothing was left to stand behind the second"


async def test_what_is_kept_aside_for_one_lease_does_not_stand_behind_another(
    market: World, replayer: ScriptedReplayer
) -> None:
    """Two leases that await their verdicts: had both the whole stake behind them, one of them would have none."""
    node, clients = await join_with_stake(market), [await make_client(market) for _ in range(2)]
    replayer.script.extend([EvaluationFailed("not now")] * 8)
    for number, client in enumerate(clients, 1):
        await work(market, node, client)
        await verify_pending(market.market)
        async with market.market.reading() as unit:
            kept = list(await unit.session.scalars(select(LeaseRow.stake).where(LeaseRow.decided_at_ms.is_(None))))
            assert len(kept) == number
            assert await free_stake(unit, node.id) == STAKE - sum(kept) < STAKE
        node.read()
        node.held.clear()  # its work on this one is done


async def test_a_collateral_of_somebody_else_or_one_that_closes_does_not_count(market: World) -> None:
    node = await join_with_stake(market)
    address = node.offer.collateral
    assert address is not None
    state = market.chain.vaults[address]
    wrong = [
        replace(state, kind=0),
        replace(state, signer=Pubkey.default()),
        replace(state, config=Pubkey.default()),
        replace(state, close_at=market.chain.time_s + DISPUTE_DELAY_S),
    ]
    for other in wrong:
        market.chain.vaults[address] = other
        await look_at_collaterals(market.market)
        async with market.market.reading() as unit:
            row = await unit.session.get_one(CollateralRow, node.id)
            assert (row.counted, await free_stake(unit, node.id)) == (0, 0)
    node.offer = node.offer.model_copy(update={"collateral": None, "sequence": 2})
    await node.connect()
    async with market.market.reading() as unit:
        assert await unit.session.get(CollateralRow, node.id) is None


async def test_a_receipt_lets_its_node_check_that_the_audit_was_drawn_fairly(
    market: World, replayer: ScriptedReplayer
) -> None:
    node, client = await join_with_stake(market), await make_client(market)
    job_id = await work(market, node, client)
    replayer.script.append(SAME)
    await verify_pending(market.market)
    node.read()
    (signed,) = await client.receipts(job_id)
    shown = signed.receipt.verdict.measured
    lease_id = signed.receipt.lease_id
    checkpoints = [sha256_digest(f"checkpoint step-{n:08d} of {lease_id}".encode()) for n in (1, 2)]
    root = commitment_root(checkpoints, [item.digest for item in signed.receipt.outputs])
    draw = AuditDraw(lease_id=lease_id, committed=root)
    permille = int(shown["audit_permille"])
    assert (permille, shown["audit_stake"], shown["audit_committed"]) == (1000, str(MOST_STAKE_REWARDS * REWARD), root)
    assert check_draw(draw, shown["audit_draw"], market.market.public_key, permille, audited=True) == []
    other = draw.model_copy(update={"committed": sha256_digest(b"other results")})
    assert check_draw(other, shown["audit_draw"], market.market.public_key, permille, audited=False) == [
        "the draw is not signed by the marketplace",
        "the draw says otherwise",
    ]
