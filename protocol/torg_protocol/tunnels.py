"""A tunnel: bytes between a job's client and its node, carried by a gateway of the marketplace that both dial (WebSocket).

    client   GET /v1/tunnels/jobs/{job_id}   signed by the job's client
    node     is told `OpenTunnel` over its channel, and dials GET /v1/tunnels/{tunnel_id}, signed by itself
    member   GET /v1/tunnels/leases/{lease_id}/ranks/{rank}   of a gang, signed by the lease's node: to another member, as clients to nodes

The first message to the client is text, `TunnelOpen` or `TunnelRefused`; the node's first message is one of them too. All that follows
is binary and is passed on as it is: an SSH session, in which the node is the server with its wallet key as host key and the client logs in with
its own. Whoever carries it sees neither.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from torg_protocol.documents import Wire
from torg_protocol.ids import LeaseId, NodeId

TUNNELS_PATH = "/v1/tunnels"
SSH_USER = "torg"  # of a job of several tasks: "torg+NAME" for one of them
_TASK_USER = re.compile(r"torg\+(.+)")


class TunnelOpen(Wire):
    type: Literal["open"] = "open"
    lease_id: LeaseId
    node: NodeId  # the SSH host key that the client must find


class TunnelRefused(Wire):
    """`problem` is RFC 9457."""

    type: Literal["refused"] = "refused"
    problem: dict[str, Any]


TunnelAnswer = Annotated[TunnelOpen | TunnelRefused, Field(discriminator="type")]
TUNNEL_ANSWER: TypeAdapter[TunnelAnswer] = TypeAdapter(TunnelAnswer)


def client_path(job_id: str) -> str:
    return f"{TUNNELS_PATH}/jobs/{job_id}"


def peer_path(lease_id: str, rank: int) -> str:
    return f"{TUNNELS_PATH}/leases/{lease_id}/ranks/{rank}"


def node_path(tunnel_id: str) -> str:
    return f"{TUNNELS_PATH}/{tunnel_id}"


def ssh_user(task: str | None) -> str:
    return SSH_USER if task is None else f"{SSH_USER}+{task}"


def task_of_user(user: str) -> str | None:
    """None: no task is named."""
    found = _TASK_USER.fullmatch(user)
    return found[1] if found else None
