"""Lines between the members of a gang: SSH from node to node over the gateway, which sees ciphertext. See gang_network for what goes over
them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

import asyncssh
from solders.keypair import Keypair

from torg_host.tunnel.dial import dialled
from torg_host.tunnel.ssh_keys import ALGORITHMS, private_ssh_key, public_ssh_key
from torg_node.gang_network import CHANNEL, GangNetwork
from torg_protocol.errors import TorgError
from torg_protocol.ids import LeaseId
from torg_protocol.messages import GangPlace
from torg_protocol.tunnels import SSH_USER, peer_path

log = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 3.0
_LOGIN_WITHIN_S, _KEEPALIVE_S = 20, 15


class GangLines:
    """The lines that this member dials: to all lower ranks, again and again while they break and the other is there."""

    def __init__(self, url: str, keypair: Keypair, lease_id: LeaseId, place: GangPlace, network: GangNetwork) -> None:
        self._url, self._keypair = url, keypair
        self._lease_id, self._place, self._network = lease_id, place, network

    async def run(self) -> None:
        """Until cancelled. TCP connections inside outlive a line that breaks: what was lost on the way is sent again."""
        async with asyncio.TaskGroup() as group:
            for other in range(self._place.rank):
                group.create_task(self._keep(other))

    async def _keep(self, other: int) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._network.has_left(other):
            try:
                await self._dial(other)
                pause_s = _FIRST_PAUSE_S
            except (TorgError, OSError, asyncssh.Error) as error:
                log.info("%s: no line to rank %s yet: %s", self._lease_id, other, error)
            await asyncio.sleep(pause_s * random.uniform(0.7, 1.3))  # noqa: S311 - jitter
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)

    async def _dial(self, other: int) -> None:
        async with dialled(self._url, peer_path(self._lease_id, other), self._keypair) as line:
            await line.receive_answer()
            async with line.as_socket() as stream:
                connection = await asyncssh.run_client(
                    stream,
                    config=None,
                    host=self._place.nodes[other],
                    username=SSH_USER,
                    client_keys=[private_ssh_key(self._keypair)],
                    known_hosts=([public_ssh_key(self._place.nodes[other])], [], []),
                    server_host_key_algs=["ssh-ed25519"],
                    agent_path=None,
                    preferred_auth="publickey",
                    login_timeout=_LOGIN_WITHIN_S,
                    keepalive_interval=_KEEPALIVE_S,
                    **ALGORITHMS,
                )
                try:
                    reader, writer = await connection.open_connection(CHANNEL, 1, encoding=None)
                    await self._network.carry(other, reader, writer)
                finally:
                    connection.abort()


class PeerServer(asyncssh.SSHServer):
    """The other end: one member that was dialled by another one, which gets the line of packets and nothing else."""

    def __init__(self, network: GangNetwork, place: GangPlace, other: int) -> None:
        self._network, self._other = network, other
        self._key = public_ssh_key(place.nodes[other])

    def begin_auth(self, username: str) -> bool:  # noqa: ARG002  who one is, the key says
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        return key.public_data == self._key.public_data

    def connection_requested(
        self,
        dest_host: str,
        dest_port: int,  # noqa: ARG002
        orig_host: str,  # noqa: ARG002
        orig_port: int,  # noqa: ARG002
    ) -> Callable[[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]], Awaitable[None]]:
        if dest_host != CHANNEL:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "members exchange packets only")
        return self._carry

    async def _carry(self, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
        await self._network.carry(self._other, reader, writer)

    async def close(self) -> None:
        """Nothing of its own is left."""
