"""What handlers need, hung on the application by the composition root."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from torg_marketplace.api.hub import Hub
from torg_marketplace.flow.blobs import UploadNotes
from torg_marketplace.flow.pulse import Pulse
from torg_marketplace.flow.sign_in import SignIn
from torg_marketplace.flow.unit import Market
from torg_marketplace.ports import Admission
from torg_marketplace.storage.blobs import StoredBlobs


@dataclass(frozen=True, slots=True)
class Edge:
    market: Market
    hub: Hub
    blobs: StoredBlobs
    admission: Admission
    pulse: Pulse = field(default_factory=Pulse)
    uploads: UploadNotes = field(default_factory=UploadNotes)
    sign_in: SignIn = field(default_factory=lambda: SignIn(("localhost",), secrets.token_bytes(32)))
    ending: asyncio.Event = field(default_factory=asyncio.Event)  # set once this process was asked to end
    vaults_seen_ms: dict[str, int] = field(
        default_factory=dict
    )  # address -> when the chain was asked, as far as known here


def edge_of(connection: HTTPConnection) -> Edge:
    edge: Edge = connection.app.state.edge
    return edge


async def _edge(request: Request) -> Edge:  # what is not a coroutine, FastAPI runs on a thread
    return edge_of(request)


TheEdge = Annotated[Edge, Depends(_edge)]
