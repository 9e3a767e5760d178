"""Verification by quorum: equal outputs are paid, others cost stake, and no more replicas run than are needed."""

from __future__ import annotations

import pytest

from tests.flow.test_replay_by_nodes import payouts
from tests.flow.test_slash import STAKE, join_with_stake, slashes
from tests.support.actors import Client, Node, join, let_pass, make_client, make_node, spec
from tests.support.market import World
from torg_marketplace.flow.blobs import may_read_blob, plan_upload
from torg_marketplace.flow.evidence import list_evidence, replay_evidence, show_evidence
from torg_marketplace.flow.grant import SameOwner, grant
from torg_marketplace.flow.lease_events import on_lease_event
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.rows import job_row
from torg_marketplace.flow.verify import verify_pending
from torg_protocol.api import BlobUploadRequest, JobView
from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import Conflict, Infeasible, Invalid
from torg_protocol.messages import Accepted, LeaseEvent, Refused, Released, Reported
from torg_protocol.states import EndReason, JobState, LeaseState
from torg_protocol.usage import verify_receipt

PRICE = 3_600_000  # one base unit per useful millisecond
RIGHT, WRONG = b"the result", b"something else"


def quorum_spec(replicas: int = 3, **changes: object) -> dict[str, object]:
    members = {"verify": {"policy": "quorum", "replicas": replicas}, "outputs": ["result.txt"]}
    return spec(**members | changes)


async def granted_next(world: World, nodes: list[Node]) -> Node:
    """Who is given the next replica."""
    assert await match_pending(world.market) == 1
    for node in nodes:
        node.read()
    (node,) = [node for node in nodes if node.held]
    return node


async def at_work_next(world: World, nodes: list[Node]) -> Node:
    """Who works on the next replica, for ten seconds already."""
    node = await granted_next(world, nodes)
    await node.ok(Accepted())
    node.lease.state = LeaseState.PREPARING
    await node.start()
    world.advance(seconds=10)
    return node


async def run_next(world: World, nodes: list[Node], output: bytes) -> Node:
    """The next replica, wherever it was granted."""
    node = await at_work_next(world, nodes)
    await node.finish(outputs={"result.txt": output})
    await verify_pending(world.market)
    node.read()
    node.held.clear()
    return node


async def quorum(world: World, outputs: list[bytes], replicas: int = 3) -> tuple[Client, list[Node], JobView]:
    """A job whose replicas hand over these outputs, in this order; each on a node of its own, with stake."""
    nodes, client = [await join_with_stake(world) for _ in range(replicas)], await make_client(world)
    job = await client.submit(quorum_spec(replicas))
    ran = [await run_next(world, nodes, output) for output in outputs]
    assert len({node.id for node in ran}) == len(outputs), "no node runs two replicas"
    for node in nodes:
        node.read()
    return client, ran, await client.job(job.job_id)


async def client_can_read(world: World, client: Client, data: bytes) -> bool:
    async with world.market.reading() as unit:
        return await may_read_blob(unit, client.account, sha256_digest(data))


def upload_of(data: bytes) -> BlobUploadRequest:
    return BlobUploadRequest(digest=sha256_digest(data), size_bytes=len(data))


async def refused_unsent(node: Node, body: Reported) -> str:
    """The code with which an event is refused that names blobs which the node has not sent."""
    held = node.lease
    event = LeaseEvent(
        lease_id=held.grant.lease_id,
        fence=held.grant.fence,
        sequence=held.sent + 1,
        at_ms=node.world.clock.now_ms(),
        body=body,
    )
    answer = await on_lease_event(node.world.market, node.id, event)
    assert isinstance(answer, Refused)
    return str(answer.problem["code"])


async def test_two_equal_ones_of_three_are_enough_and_the_third_never_runs(world: World) -> None:
    client, _, view = await quorum(world, [RIGHT, RIGHT])
    assert (view.state, view.final_amount) == (JobState.SUCCEEDED, 20_000)
    assert [lease.state for lease in view.leases] == [LeaseState.VERIFIED, LeaseState.VERIFIED]
    assert await match_pending(world.market) == 0
    receipts = await client.receipts(view.job_id)
    assert [item.receipt.verdict.result for item in receipts] == ["passed", "passed"]
    assert receipts[0].receipt.verdict.measured["agree"] == "2"
    assert all(verify_receipt(item, marketplace=world.market.public_key) == [] for item in receipts)
    assert await client_can_read(world, client, RIGHT)
    assert await slashes(world) == []


@pytest.mark.parametrize("liar", [0, 1])
async def test_who_hands_over_something_else_is_not_paid_and_loses_stake(world: World, liar: int) -> None:
    outputs = [RIGHT, RIGHT]
    outputs.insert(liar, WRONG)
    client, ran, view = await quorum(world, outputs)
    assert (view.state, view.final_amount) == (JobState.SUCCEEDED, 20_000)
    assert [lease.state for lease in view.leases].index(LeaseState.REJECTED) == liar
    (slash,) = await slashes(world)
    assert slash.node_id == ran[liar].id
    assert 0 < slash.amount <= STAKE
    assert await client_can_read(world, client, RIGHT)
    assert not await client_can_read(world, client, WRONG)
    assert [item.digest for item in view.outputs] == [sha256_digest(RIGHT)]


async def test_when_all_differ_nobody_is_paid_and_nobody_is_blamed(world: World) -> None:
    client, _, view = await quorum(world, [b"one", b"two", b"three"])
    assert (view.state, view.final_amount, view.outputs) == (JobState.FAILED, 0, ())
    assert {lease.state for lease in view.leases} == {LeaseState.INCONCLUSIVE}
    assert await slashes(world) == []
    assert not await client_can_read(world, client, b"one")


async def test_it_stops_as_soon_as_no_majority_can_come_about_any_more(world: World) -> None:
    _, _, view = await quorum(world, [b"1", b"2", b"3", b"4"], replicas=5)
    assert (view.state, len(view.leases)) == (JobState.FAILED, 4)


async def test_a_tie_is_nobodys_majority(world: World) -> None:
    client, _, view = await quorum(world, [RIGHT, RIGHT, WRONG, WRONG], replicas=4)
    assert (view.state, view.final_amount, view.outputs) == (JobState.FAILED, 0, ())
    assert {lease.state for lease in view.leases} == {LeaseState.INCONCLUSIVE}
    assert (await slashes(world), await payouts(world)) == ([], {})
    assert not await client_can_read(world, client, RIGHT)


async def test_those_who_agree_are_paid_each_for_its_own_time_and_nobody_else(world: World) -> None:
    _, ran, _ = await quorum(world, [RIGHT, WRONG, RIGHT])
    paid = await payouts(world)
    owners = [node.offer.payout_address for node in ran]
    assert paid == {owners[0]: 9_800, owners[2]: 9_800, "fee": 400}


async def test_a_copier_finds_nothing_to_copy(world: World) -> None:
    """Its answer is one of few, and another has handed over the right one: neither by guessing nor with a digest that somebody gave it does the
    second node get at it."""
    nodes, client = [await join(world, price=PRICE) for _ in range(3)], await make_client(world)
    given = world.blobs.put(b"to work on")
    await world.blobs.sent_by(world.market, client.account, [given])
    inputs = [{"kind": "blob", "path": "/data", "digest": given.digest, "size_bytes": given.size_bytes}]
    job = await client.submit(quorum_spec(inputs=inputs))
    await run_next(world, nodes, RIGHT)
    copier = await at_work_next(world, nodes)

    answers = [await plan_upload(world.market, copier.id, upload_of(guess)) for guess in (RIGHT, WRONG)]
    assert all(answer.url is not None for answer in answers), "both would have to be sent: which is right, nobody says"
    report = copier.report(outputs={"result.txt": RIGHT})  # its bytes were never sent
    assert await refused_unsent(copier, report) == "blob_missing"
    async with world.market.reading() as unit:
        assert not await may_read_blob(unit, copier.id, sha256_digest(RIGHT))
        assert await may_read_blob(unit, copier.id, given.digest)
    view = await client.job(job.job_id)
    assert sha256_digest(RIGHT) not in view.model_dump_json(), "nor does the API show it to anybody"
    await client.cancel(job.job_id)
    for node in nodes:
        node.read()


async def test_what_was_given_may_be_read_though_another_replica_handed_over_the_same(world: World) -> None:
    nodes, client = [await join(world, price=PRICE) for _ in range(3)], await make_client(world)
    given = world.blobs.put(RIGHT)
    await world.blobs.sent_by(world.market, client.account, [given])
    job = await client.submit(
        quorum_spec(inputs=[{"kind": "blob", "path": "/data", "digest": given.digest, "size_bytes": given.size_bytes}])
    )
    await run_next(world, nodes, RIGHT)
    second = await granted_next(world, nodes)
    async with world.market.reading() as unit:
        assert await may_read_blob(unit, second.id, given.digest)
    await client.cancel(job.job_id)
    for node in nodes:
        node.read()


async def test_its_evidence_is_listed_shown_and_counted_again_from_the_files(world: World) -> None:
    _, ran, view = await quorum(world, [RIGHT, WRONG, RIGHT])
    async with world.market.reading() as unit:
        found = [
            [item for item in await list_evidence(unit, about=about, limit=10) if item["kind"] == "quorum"]
            for about in (None, view.job_id, view.leases[1].lease_id, ran[2].id, "somebody else")
        ]
        shown = await show_evidence(unit, view.job_id)
    (item,) = found[0]
    assert found[1:] == [[item]] * 3 + [[]]
    assert (item["id"], item["result"]) == (view.job_id, "passed")
    assert item["detail"] == "2 of 3 replicas agree, 1 failed; 3 asked for"
    assert [replica["node_id"] for replica in shown["replicas"]] == [node.id for node in ran]
    assert len({replica["vote"] for replica in shown["replicas"]}) == 2

    again = await replay_evidence(world.market, view.job_id)
    assert again.now == {ran[0].id: "passed", ran[1].id: "failed", ran[2].id: "passed"}
    assert again.same
    world.blobs.stored[sha256_digest(WRONG)] = (
        RIGHT  # a store that has lost what counted: the files themselves are read
    )
    assert (await replay_evidence(world.market, view.job_id)).now[ran[1].id] == "passed"
    del world.blobs.stored[sha256_digest(WRONG)]
    with pytest.raises(Conflict) as gone:
        await replay_evidence(world.market, view.job_id)
    assert gone.value.code == "evidence_gone"


async def test_the_quote_holds_each_replicas_share_and_a_lease_gets_no_more(world: World) -> None:
    nodes, client = [await join(world, price=PRICE) for _ in range(3)], await make_client(world)
    single, threefold = await client.quote(spec()), await client.quote(quorum_spec())
    assert threefold.max_amount == 3 * (single.max_amount or 0)
    job = await client.submit(quorum_spec())
    node = await run_next(world, nodes, RIGHT)
    view = await client.job(job.job_id)
    assert (view.state, view.leases[0].state, view.leases[0].node) == (JobState.QUEUED, LeaseState.REPORTED, node.id)
    assert not await client_can_read(world, client, RIGHT), "sealed while other replicas may still be made"
    await client.cancel(job.job_id)
    view = await client.job(job.job_id)
    assert (view.state, view.final_amount) == (JobState.CANCELLED, 10_000)
    assert await client_can_read(world, client, RIGHT), "it is paid for"
    for each in nodes:
        each.read()


async def test_one_owner_does_not_run_two_replicas(world: World) -> None:
    nodes = [await join(world, price=PRICE) for _ in range(3)]
    twin = nodes[1]
    twin.offer = twin.offer.model_copy(update={"payout_address": nodes[0].offer.payout_address, "sequence": 2})
    await twin.connect()
    client = await make_client(world)
    job = await client.submit(quorum_spec(limits={"max_duration": "1h", "queue_timeout": "60s"}))
    first = await run_next(world, nodes, RIGHT)
    if first is nodes[2]:
        second = await run_next(world, nodes, WRONG)
        assert second is not nodes[2]
    else:
        assert await run_next(world, nodes, WRONG) is nodes[2]
    assert await match_pending(world.market) == 0
    await let_pass(world, seconds=80, nodes=tuple(nodes))
    view = await client.job(job.job_id)
    assert (view.state, view.final_amount) == (JobState.EXPIRED, 0), (
        "no third owner: nothing is known, nobody is charged"
    )
    assert {lease.state for lease in view.leases} == {LeaseState.INCONCLUSIVE}
    for node in nodes:
        node.read()


async def test_an_owner_who_brings_another_node_afterwards_does_not_vote_again(world: World) -> None:
    """Who is excluded was settled when the first replica was in: this node was not there yet."""
    nodes = [await join(world, price=PRICE) for _ in range(3)]
    client = await make_client(world)
    job = await client.submit(quorum_spec())
    first = await run_next(world, nodes, RIGHT)
    twin = make_node(world, price=PRICE // 10)
    twin.offer = twin.offer.model_copy(update={"payout_address": first.offer.payout_address})
    await twin.connect()
    with pytest.raises(SameOwner):
        async with world.market.transaction() as unit:
            await grant(unit, await job_row(unit, job.job_id), [twin.id])
    assert (await match_pending(world.market) or await match_pending(world.market)) == 1, "the twin may be drawn, once"
    for node in nodes:
        node.read()
    (second,) = [node for node in nodes if node.held]
    await second.ok(Accepted())
    await second.start()
    await second.finish(outputs={"result.txt": RIGHT})
    await verify_pending(world.market)
    view = await client.job(job.job_id)
    assert (view.state, len(view.leases)) == (JobState.SUCCEEDED, 2)
    for node in (*nodes, twin):
        node.read()


async def test_who_asks_the_least_is_not_given_every_replica(world: World) -> None:
    """Two names of one owner, cheaper than all others, would agree on anything."""
    cheap = [await join(world, price=PRICE // 10) for _ in range(2)]
    dear = [await join(world, price=PRICE) for _ in range(6)]
    client, firsts = await make_client(world), list[Node]()
    for _ in range(8):
        await client.submit(quorum_spec(limits={"max_duration": "1m"}))
        firsts.append(await run_next(world, [*cheap, *dear], RIGHT))
        await run_next(world, [*cheap, *dear], RIGHT)
    assert any(node not in cheap for node in firsts)
    assert len({node.id for node in firsts}) > 2
    for node in (*cheap, *dear):
        node.read()


async def test_a_quorum_needs_nodes_outputs_and_no_checkpoints(world: World) -> None:
    node, client = await join(world, price=PRICE), await make_client(world)
    await join(world, price=PRICE)
    with pytest.raises(Infeasible) as too_few:
        await client.submit(quorum_spec())
    assert (too_few.value.code, too_few.value.field) == ("quorum_too_large", "verify.replicas")
    for changes, field in (({"checkpoint": {"enabled": True}}, "verify"), ({"outputs": []}, "outputs")):
        with pytest.raises(Invalid) as refused:
            await client.quote(quorum_spec(**changes))
        assert refused.value.field == field
    node.read()


async def test_a_replica_that_was_ready_before_its_cancel_reached_it_is_the_last_one(world: World) -> None:
    nodes, client = [await join(world, price=PRICE) for _ in range(3)], await make_client(world)
    job = await client.submit(quorum_spec())
    await match_pending(world.market)
    for each in nodes:
        each.read()
    (node,) = [each for each in nodes if each.held]
    await node.ok(Accepted())
    node.lease.state = LeaseState.PREPARING
    await node.start()
    world.advance(seconds=10)
    await node.disconnect()
    await client.cancel(job.job_id)
    await node.finish(outputs={"result.txt": RIGHT})

    view = await client.job(job.job_id)
    assert (view.state, view.final_amount) == (JobState.CANCELLED, 10_000)
    assert await match_pending(world.market) == 0


async def end_next(world: World, nodes: list[Node], reason: EndReason, exit_code: int | None = None) -> Node:
    """The next replica ends without a result."""
    node = await at_work_next(world, nodes)
    await node.finish(reason, exit_code, outputs={"half.txt": b"half of a file"})
    await verify_pending(world.market)
    node.read()
    node.held.clear()
    return node


@pytest.mark.parametrize("silent", [0, 1])
async def test_a_replica_that_never_hands_over_is_replaced_and_the_others_are_paid(world: World, silent: int) -> None:
    """It runs and is never heard of again; its node is left out, and a third one's word decides."""
    nodes, client = [await join(world, price=PRICE) for _ in range(4)], await make_client(world)
    job = await client.submit(quorum_spec(lease_grace="60s"))
    ran = [await run_next(world, nodes, RIGHT) for _ in range(silent)]
    mute = await at_work_next(world, nodes)
    others = [node for node in nodes if node is not mute]
    await let_pass(world, seconds=80, nodes=tuple(others))
    mute.held.clear()
    ran += [await run_next(world, others, RIGHT) for _ in range(2 - silent)]

    view = await client.job(job.job_id)
    assert (view.state, view.final_amount) == (JobState.SUCCEEDED, 20_000)
    assert mute.id not in {node.id for node in ran}
    assert {lease.node: lease.state for lease in view.leases}[mute.id] is LeaseState.LOST
    assert await payouts(world) == {node.offer.payout_address: 9_800 for node in ran} | {"fee": 400}
    for node in nodes:
        node.read()


async def test_when_nobody_is_left_to_replace_a_silent_replica_the_job_ends(world: World) -> None:
    nodes, client = [await join(world, price=PRICE) for _ in range(3)], await make_client(world)
    limits = {"max_duration": "10m", "queue_timeout": "60s"}
    job = await client.submit(quorum_spec(lease_grace="60s", limits=limits))
    await run_next(world, nodes, RIGHT)
    heard = nodes
    for _ in range(2):
        mute = await at_work_next(world, nodes)
        heard = [node for node in heard if node is not mute]
        await let_pass(world, seconds=80, nodes=tuple(heard))
        mute.held.clear()
    assert await match_pending(world.market) == 0
    await let_pass(world, seconds=80, nodes=tuple(heard))

    view = await client.job(job.job_id)
    assert (view.state, view.final_amount) == (JobState.EXPIRED, 0)
    assert await payouts(world) == {}
    for node in nodes:
        node.read()


@pytest.mark.parametrize("liar", [0, 1])
async def test_one_who_says_that_the_job_failed_is_not_believed_and_ends_nothing(world: World, liar: int) -> None:
    """It was paid for it, and the job was over: nobody else was."""
    nodes, client = [await join_with_stake(world) for _ in range(3)], await make_client(world)
    job = await client.submit(quorum_spec())
    ran = [await run_next(world, nodes, RIGHT) for _ in range(liar)]
    failed = await end_next(world, nodes, EndReason.FAILED_EXIT, 1)
    ran += [await run_next(world, nodes, RIGHT) for _ in range(2 - liar)]

    view = await client.job(job.job_id)
    assert (view.state, view.final_amount) == (JobState.SUCCEEDED, 20_000)
    states = {lease.node: lease.state for lease in view.leases}
    assert states[failed.id] is LeaseState.INCONCLUSIVE
    assert await payouts(world) == {node.offer.payout_address: 9_800 for node in ran} | {"fee": 400}
    assert await slashes(world) == [], "a machine may be too small for it: not paid, and not blamed"
    assert not await client_can_read(world, client, b"half of a file")
    for node in nodes:
        node.read()


async def test_two_who_fail_alike_are_right_about_the_job_and_are_paid(world: World) -> None:
    """Else a client would have free work by a job that says its result and then fails."""
    nodes, client = [await join(world, price=PRICE) for _ in range(3)], await make_client(world)
    job = await client.submit(quorum_spec(retry={"on_failure": 2}))
    ran = [await end_next(world, nodes, EndReason.FAILED_EXIT, 3) for _ in range(2)]

    view = await client.job(job.job_id)
    assert (view.state, view.reason, view.final_amount) == (JobState.FAILED, EndReason.FAILED_EXIT, 20_000)
    assert await payouts(world) == {node.offer.payout_address: 9_800 for node in ran} | {"fee": 400}
    receipts = await client.receipts(job.job_id)
    assert [item.receipt.verdict.result for item in receipts] == ["passed", "passed"]
    assert all(verify_receipt(item, marketplace=world.market.public_key) == [] for item in receipts)
    again = await replay_evidence(world.market, job.job_id)
    assert (again.same, set(again.now.values())) == (True, {"passed"})
    for node in nodes:
        node.read()


async def test_two_who_fail_otherwise_do_not_agree(world: World) -> None:
    nodes, client = [await join_with_stake(world) for _ in range(3)], await make_client(world)
    job = await client.submit(quorum_spec())
    for reason, code in ((EndReason.FAILED_EXIT, 1), (EndReason.FAILED_EXIT, 2), (EndReason.OOM, None)):
        await end_next(world, nodes, reason, code)
    view = await client.job(job.job_id)
    assert (view.state, view.final_amount, await slashes(world)) == (JobState.FAILED, 0, [])
    for node in nodes:
        node.read()


async def test_who_cannot_find_what_another_replica_has_run_leaves_it_to_others(world: World) -> None:
    """It ended the job, and who had run it was not paid."""
    nodes, client = [await join(world, price=PRICE) for _ in range(3)], await make_client(world)
    job = await client.submit(quorum_spec())
    await run_next(world, nodes, RIGHT)
    node = await granted_next(world, nodes)
    await node.ok(Accepted())
    await node.ok(Released(reason=EndReason.INPUT_INVALID, detail="no such input"))
    node.held.clear()
    view = await client.job(job.job_id)
    assert (view.state, view.leases[-1].state) == (JobState.QUEUED, LeaseState.RELEASED)
    await run_next(world, [each for each in nodes if each is not node], RIGHT)
    assert (await client.job(job.job_id)).state is JobState.SUCCEEDED
    for each in nodes:
        each.read()
