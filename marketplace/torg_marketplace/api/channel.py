"""The node channel: hello, welcome, then messages both ways until one side goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from itertools import groupby
from typing import assert_never

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from torg_marketplace.api.auth import dialling_party
from torg_marketplace.api.context import Edge, edge_of
from torg_marketplace.api.hub import Connection
from torg_marketplace.flow.crowd import Reads
from torg_marketplace.flow.lease_events import on_lease_events
from torg_marketplace.flow.nodes import on_disconnect, on_hello
from torg_marketplace.flow.prove import on_proof_answer
from torg_marketplace.flow.receipts import on_receipt_signed, read_receipts
from torg_marketplace.flow.stream import on_log, on_ports, on_progress
from torg_marketplace.stages import measured
from torg_protocol.errors import Invalid, TorgError
from torg_protocol.ids import NodeId
from torg_protocol.messages import (
    CHANNEL_PATH,
    FROM_NODE,
    FromNode,
    Heartbeat,
    Hello,
    LeaseEvent,
    LogLines,
    PortsState,
    Progress,
    ReceiptSigned,
    Refused,
)
from torg_protocol.proofs import ProofCommitted, ProofOpened, ProofReady
from torg_protocol.versions import version_of_connection

log = logging.getLogger(__name__)
router = APIRouter()
HELLO_WITHIN_S = 10.0
_ARRIVED = 64  # messages that wait for being applied; more wait in the socket
_POLICY_VIOLATION = 1008


@router.websocket(CHANNEL_PATH)
async def node_channel(socket: WebSocket) -> None:
    edge = edge_of(socket)
    try:
        account = await dialling_party(socket)
    except TorgError as error:
        await socket.accept()
        await _refuse(socket, error)
        return
    await socket.accept()
    connection = Connection(NodeId(account), socket)
    try:
        await _serve(edge, socket, connection)
    except (WebSocketDisconnect, RuntimeError):
        pass  # it went; RuntimeError is what starlette says when sending to one that has gone
    finally:
        edge.hub.leave(connection)
        with contextlib.suppress(TorgError):
            async with edge.market.transaction() as unit:
                await on_disconnect(unit, connection.node_id, connection.since_ms)


async def _serve(edge: Edge, socket: WebSocket, connection: Connection) -> None:
    """Joins the hub before the hello is applied, so that what it queues finds its way, after the welcome."""
    try:
        hello = _parse(await asyncio.wait_for(socket.receive_text(), HELLO_WITHIN_S))
        if not isinstance(hello, Hello):
            raise Invalid("the first message must be a hello", code="hello_expected", field="type", value=hello.type)
        connection.version = version_of_connection(hello.protocol_version)
        edge.hub.join(connection)
        async with edge.market.transaction() as unit:
            welcome = await on_hello(unit, connection.node_id, hello)
            connection.since_ms = unit.now_ms
    except TorgError as error:
        await _refuse(socket, error)
        return
    except TimeoutError:
        await socket.close(_POLICY_VIOLATION)
        return
    await connection.send_now(welcome)
    arrived: asyncio.Queue[str | None] = asyncio.Queue(_ARRIVED)
    receiving = asyncio.create_task(_receive(socket, arrived))
    reading = asyncio.create_task(_read(edge, connection, arrived))
    pumping = asyncio.create_task(connection.pump())
    replaced = asyncio.create_task(connection.replaced.wait())
    tasks = {reading, pumping, replaced}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (receiving, *tasks):
            task.cancel()
        results = await asyncio.gather(receiving, *tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect | RuntimeError):
            log.error("node %s: the channel broke", connection.node_id, exc_info=result)
    with contextlib.suppress(RuntimeError):
        await socket.close()


async def _receive(socket: WebSocket, arrived: asyncio.Queue[str | None]) -> None:
    """None when the node has gone: what it said before is still applied."""
    try:
        while True:
            await arrived.put(await socket.receive_text())
    except (WebSocketDisconnect, RuntimeError):
        await arrived.put(None)


async def _read(edge: Edge, connection: Connection, arrived: asyncio.Queue[str | None]) -> None:
    """Applies what comes, in order; events of leases that have come meanwhile together."""
    while True:
        texts = [await arrived.get()]
        while not arrived.empty():
            texts.append(arrived.get_nowait())
        for _, messages in groupby(_understood(connection, texts), key=lambda message: message.type):
            together = list(messages)
            await measured(f"channel {together[0].type}", _apply(edge, connection, together))
        if None in texts:
            return


def _understood(connection: Connection, texts: list[str | None]) -> Iterator[FromNode]:
    for text in texts:
        try:
            if text is not None:
                yield _parse(text)
        except TorgError as error:
            connection.put(Refused(problem=error.to_problem()))


async def _apply(edge: Edge, connection: Connection, messages: list[FromNode]) -> None:
    """Messages of one type."""
    node_id, market = connection.node_id, edge.market
    if events := [message for message in messages if isinstance(message, LeaseEvent)]:
        try:
            for answer in await on_lease_events(market, node_id, events):
                connection.put(answer)
        except TorgError as error:
            connection.put(Refused(problem=error.to_problem()))
        return
    for message in messages:
        try:
            await _apply_one(edge, node_id, message)
        except TorgError as error:
            connection.put(Refused(problem=error.to_problem()))


async def _apply_one(edge: Edge, node_id: NodeId, message: FromNode) -> None:
    market = edge.market
    match message:
        case LeaseEvent():
            raise TypeError("events of leases are applied together")
        case Heartbeat():
            edge.pulse.beat(node_id, message, market.clock.now_ms())
        case Progress():
            await market.shared(lambda unit: on_progress(unit, node_id, message), stage="progress")
        case LogLines():
            await market.shared(lambda unit: on_log(unit, node_id, message), stage="logs")
        case PortsState():
            await market.shared(lambda unit: on_ports(unit, node_id, message), stage="ports")
        case ReceiptSigned():
            reads = [Reads(read_receipts, [message.lease_id])]
            await market.shared(lambda unit: on_receipt_signed(unit, node_id, message), stage="receipts", reads=reads)
        case ProofReady() | ProofCommitted() | ProofOpened():
            await on_proof_answer(market, node_id, message)
        case Hello():
            raise Invalid("hello is only the first message", code="hello_repeated", field="type", value="hello")
        case _:
            assert_never(message)


def _parse(text: str) -> FromNode:
    try:
        return FROM_NODE.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise Invalid(
            f"malformed message: {first['msg']}",
            code="message_malformed",
            field=".".join(str(part) for part in first["loc"]),
        ) from error


async def _refuse(socket: WebSocket, error: TorgError) -> None:
    await socket.send_text(Refused(problem=error.to_problem(), fatal=True).model_dump_json())
    await socket.close(_POLICY_VIOLATION)
