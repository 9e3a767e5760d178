"""Into a running job: programs in its container and its ports, by SSH through the marketplace's gateway, which sees ciphertext only.

    async with open_tunnel(client, job_id) as tunnel:
        process = await tunnel.start("nvidia-smi")

    async with forward_ports(client, job_id, [PortPair(8888, 0)]) as ports: ...

Both ends are known by their wallets' keys: the node accepts the job's client alone, and the client only the node that has the lease, as the
marketplace names it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import asyncssh

from torg.client import AsyncClient
from torg_host.tunnel.dial import dialled
from torg_host.tunnel.ssh_keys import ALGORITHMS, private_ssh_key, public_ssh_key
from torg_protocol.errors import Conflict, Forbidden, TorgError, Unavailable
from torg_protocol.tunnels import TunnelOpen, client_path, ssh_user

_LOGIN_WITHIN_S, _KEEPALIVE_S = 20, 15
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.3, 10.0
_PIECE_BYTES = 128 << 10
# The job, or the right to reach it, is gone: trying again does not help.
_FINAL = frozenset({"job_unknown", "job_not_running", "node_key_wrong", "tunnel_login_refused"})


@dataclass(frozen=True, slots=True)
class PortPair:
    """`local` 0: any that is free."""

    remote: int
    local: int


class Tunnel:
    """An SSH connection to one lease's node. Ends with its container."""

    def __init__(self, opened: TunnelOpen, connection: asyncssh.SSHClientConnection) -> None:
        self.opened, self.connection = opened, connection

    async def start(
        self, command: str | None, *, terminal: tuple[str, int, int] | None = None
    ) -> asyncssh.SSHClientProcess[bytes]:
        """A program in the container, as its shell understands it; None: a shell. `terminal`: kind, columns, rows.

        Raises Unavailable `tunnel_broken`."""
        kind, columns, rows = terminal or (None, 0, 0)
        try:
            return await self.connection.create_process(
                command,
                encoding=None,
                request_pty="force" if terminal else False,
                term_type=kind,
                term_size=(columns, rows, 0, 0) if terminal else (),
            )
        except asyncssh.Error as error:
            raise _broken(error) from error

    async def connect(self, port: int) -> tuple[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]]:
        """To a port on the container's loopback. Raises asyncssh.ChannelOpenError when nobody listens there."""
        return await self.connection.open_connection("127.0.0.1", port, encoding=None)


@contextlib.asynccontextmanager
async def open_tunnel(client: AsyncClient, job_id: str, task: str | None = None) -> AsyncIterator[Tunnel]:
    """`task`: of a job of several, the one that is meant; None: the only one that runs, or that declares a port. Raises what the marketplace or the node says (NotFound job_unknown, Conflict job_not_running, Unavailable node_away), Forbidden
    node_key_wrong, Unavailable gateway_unreachable or tunnel_broken."""
    await client.market()  # the pinned one, or an error
    async with dialled(client.config.marketplace_url, client_path(job_id), client.keypair) as line:
        opened = await line.receive_answer()
        async with line.as_socket() as stream:
            try:
                connection = await asyncssh.run_client(
                    stream,
                    config=None,
                    host=opened.node,
                    username=ssh_user(task),
                    client_keys=[private_ssh_key(client.keypair)],
                    known_hosts=([public_ssh_key(opened.node)], [], []),
                    server_host_key_algs=["ssh-ed25519"],
                    agent_path=None,
                    preferred_auth="publickey",
                    login_timeout=_LOGIN_WITHIN_S,
                    keepalive_interval=_KEEPALIVE_S,
                    **ALGORITHMS,
                )
            except asyncssh.HostKeyNotVerifiable as error:
                raise Forbidden(
                    "somebody else answers in the node's place",
                    code="node_key_wrong",
                    field="node",
                    value=opened.node,
                    hint="the gateway, or who answers behind it, is not to be trusted",
                ) from error
            except asyncssh.PermissionDenied as error:
                raise Forbidden("the node does not know your key", code="tunnel_login_refused") from error
            except (asyncssh.Error, OSError) as error:
                raise _broken(error) from error
            try:
                yield Tunnel(opened, connection)
            finally:
                connection.close()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2):
                        await connection.wait_closed()
                connection.abort()


class PortForwarding:
    """Local ports that stay open while the tunnel behind them breaks and comes back."""

    def __init__(
        self, client: AsyncClient, job_id: str, on_change: Callable[[str], None], task: str | None = None
    ) -> None:
        self._client, self._job_id, self._on_change, self._task = client, job_id, on_change, task
        self._tunnel: asyncio.Future[Tunnel] = asyncio.get_running_loop().create_future()
        self._servers: list[asyncio.Server] = []

    async def listen(self, pairs: Sequence[PortPair]) -> list[PortPair]:
        """The pairs with the ports that were found. Raises Conflict port_taken."""
        found = []
        for pair in pairs:
            try:
                carry = functools.partial(self._carry, pair.remote)
                server = await asyncio.start_server(carry, "127.0.0.1", pair.local)
            except OSError as error:
                raise Conflict(
                    f"cannot listen on 127.0.0.1:{pair.local}: {error.strerror}",
                    code="port_taken",
                    field="port",
                    value=pair.local,
                    hint=f"choose another: {pair.remote}:LOCAL, or {pair.remote}:0 for any that is free",
                ) from error
            self._servers.append(server)
            found.append(PortPair(pair.remote, server.sockets[0].getsockname()[1]))
        return found

    async def run(self) -> None:
        """Until the job ends (Conflict job_not_running) or cancelled. What breaks is dialled again, with back-off and jitter."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with open_tunnel(self._client, self._job_id, self._task) as tunnel:
                    self._tunnel.set_result(tunnel)
                    self._on_change("connected")
                    pause_s = _FIRST_PAUSE_S
                    await tunnel.connection.wait_closed()
                self._on_change("the tunnel broke; trying again")
            except TorgError as error:
                if error.code in _FINAL:
                    raise
                self._on_change(f"{error.message}; trying again")
            finally:
                if self._tunnel.done():
                    self._tunnel = asyncio.get_running_loop().create_future()
            await asyncio.sleep(pause_s * random.uniform(0.7, 1.3))  # noqa: S311 - jitter
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def close(self) -> None:
        for server in self._servers:
            server.close()
        self._tunnel.cancel()

    async def _carry(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One local connection; it waits for a tunnel that is not there just now."""
        try:
            tunnel = await asyncio.shield(self._tunnel)
            far_reader, far_writer = await tunnel.connect(port)
        except asyncssh.ChannelOpenError as error:
            self._on_change(error.reason)
            writer.close()
            return
        except (asyncssh.Error, asyncio.CancelledError):
            writer.close()
            return
        pumps = [asyncio.create_task(_pump(reader, far_writer)), asyncio.create_task(_pump(far_reader, writer))]
        try:
            await asyncio.gather(*pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            far_writer.close()
            writer.close()


async def _pump(
    reader: asyncio.StreamReader | asyncssh.SSHReader[bytes], writer: asyncio.StreamWriter | asyncssh.SSHWriter[bytes]
) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await reader.read(_PIECE_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


def _broken(error: Exception) -> Unavailable:
    return Unavailable(
        f"the tunnel broke: {str(error) or type(error).__name__}", code="tunnel_broken", hint="try again"
    )
