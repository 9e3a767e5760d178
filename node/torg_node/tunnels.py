"""Tunnels into running containers: for each that the marketplace asks for, this node dials the gateway and is an SSH server over that line.

Only the lease's client gets in, by its wallet's key; it may run programs in its container and reach ports on the container's loopback,
nothing else. A tunnel ends with the container.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import asyncssh
from asyncssh.forward import SSHForwarder
from solders.keypair import Keypair

from torg_host.tunnel.dial import Dialled, dialled
from torg_host.tunnel.ssh_keys import ALGORITHMS, private_ssh_key, public_ssh_key
from torg_node.executors.errors import ExecutorError
from torg_node.executors.port import Executor, Handle
from torg_node.gang_lines import PeerServer
from torg_node.lease import Lease
from torg_node.ssh_session import CANNOT_START, ServedSession
from torg_protocol.errors import Conflict, TorgError, Unavailable
from torg_protocol.ids import LeaseId
from torg_protocol.messages import OpenTunnel
from torg_protocol.tunnels import TunnelOpen, TunnelRefused, node_path, task_of_user

log = logging.getLogger(__name__)
TUNNELS_OF_ONE_LEASE = 16
_TRIES, _FIRST_PAUSE_S = 4, 0.2  # the client waits 15 s
_LOGIN_WITHIN_S, _KEEPALIVE_S = 15, 15
_LOOK_FOR_END_S = 0.5
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "")


class Tunnels:
    """`lease_of` finds a lease that this node holds. One event loop; `close` ends all."""

    def __init__(
        self, url: str, keypair: Keypair, executor: Executor, lease_of: Callable[[LeaseId], Lease | None]
    ) -> None:
        self._url, self._keypair, self._executor, self._lease_of = url, keypair, executor, lease_of
        self._tasks: dict[asyncio.Task[None], LeaseId] = {}

    def open(self, message: OpenTunnel) -> None:
        task = asyncio.create_task(self._open(message), name=f"tunnel of {message.lease_id}")
        self._tasks[task] = message.lease_id
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _open(self, message: OpenTunnel) -> None:
        try:
            await self._dial_and_serve(message)
        except (TorgError, OSError, asyncssh.Error) as error:
            log.warning("%s: a tunnel broke: %s", message.lease_id, error)
        except Exception:  # of one tunnel, which must not be more than that
            log.exception("%s: a tunnel failed", message.lease_id)

    async def _dial_and_serve(self, message: OpenTunnel) -> None:
        for attempt in range(_TRIES):
            try:
                async with dialled(self._url, node_path(message.tunnel_id), self._keypair) as line:
                    await self._serve(line, message)
                    return
            except Unavailable as error:
                if error.code != "gateway_unreachable" or attempt == _TRIES - 1:
                    raise
            await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt * random.uniform(0.7, 1.3))  # noqa: S311 - jitter

    async def _serve(self, line: Dialled, message: OpenTunnel) -> None:
        lease = self._lease_of(message.lease_id)
        refusal = self._refusal(lease, message)
        if lease is None or refusal is not None:
            problem = (refusal or _not_running(message.lease_id)).to_problem()
            await line.answer(TunnelRefused(problem=problem))
            return
        await line.answer(TunnelOpen(lease_id=lease.id, node=lease.grant.node))
        async with line.as_socket() as stream:
            server = self._server(lease, message)
            connection = await serve_ssh(stream, server, self._keypair)
            log.info("%s: connected by a tunnel", lease.id)
            try:
                await _first_of(connection.wait_closed(), _ended(self._executor, lease))
            finally:
                connection.close()
                await server.close()
                connection.abort()
                log.info("%s: a tunnel has ended", lease.id)

    def _server(self, lease: Lease, message: OpenTunnel) -> LeaseServer | PeerServer:
        place, network = lease.grant.gang, lease.gang_network
        if message.from_rank is not None and place is not None and network is not None:
            return PeerServer(network, place, message.from_rank)
        return LeaseServer(self._executor, lease)

    def _refusal(self, lease: Lease | None, message: OpenTunnel) -> TorgError | None:
        if lease is None or lease.exit is not None or (lease.handle is None and lease.tasks_started_at_ms is None):
            return _not_running(message.lease_id)
        if message.from_rank is not None:
            place = lease.grant.gang
            is_peer = place is not None and message.from_rank in set(range(place.size)) - {place.rank}
            return None if is_peer and lease.gang_network is not None else _not_running(message.lease_id)
        if sum(lease_id == message.lease_id for lease_id in self._tasks.values()) > TUNNELS_OF_ONE_LEASE:
            return Conflict(
                f"this job has {TUNNELS_OF_ONE_LEASE} tunnels open", code="too_many_tunnels", hint="close some of them"
            )
        return None


async def serve_ssh(
    stream: socket.socket, server: LeaseServer | PeerServer, keypair: Keypair
) -> asyncssh.SSHServerConnection:
    """Speaks SSH as a server on `stream`; returns when the client has logged in. Raises asyncssh.Error for anybody else."""
    return await asyncssh.run_server(
        stream,
        config=None,
        server_factory=lambda: server,
        server_host_keys=[private_ssh_key(keypair)],
        process_factory=server.run_program if isinstance(server, LeaseServer) else None,
        encoding=None,
        line_editor=False,
        agent_forwarding=False,
        x11_forwarding=False,
        login_timeout=_LOGIN_WITHIN_S,
        keepalive_interval=_KEEPALIVE_S,
        **ALGORITHMS,
    )


class LeaseServer(asyncssh.SSHServer):
    """One SSH connection of one lease's client. Who one is, the key says; the user's name says which task is meant."""

    def __init__(self, executor: Executor, lease: Lease) -> None:
        self._executor, self._lease = executor, lease
        self._client_key = public_ssh_key(lease.grant.client)
        self._task: str | None = None
        self._sessions: set[ServedSession] = set()

    def begin_auth(self, username: str) -> bool:
        self._task = task_of_user(username)
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        return key.public_data == self._client_key.public_data

    async def connection_requested(  # type: ignore[override]  # a forwarder has all methods of a session
        self,
        dest_host: str,
        dest_port: int,
        orig_host: str,  # noqa: ARG002
        orig_port: int,  # noqa: ARG002
    ) -> SSHForwarder:
        if dest_host not in _LOOPBACK:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "only the container's own 127.0.0.1 can be reached"
            )
        try:
            inside = await self._executor.dial(container_of(self._lease, self._task, dest_port), dest_port)
        except (ExecutorError, Conflict) as error:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, error.message) from error
        _, peer = await asyncio.get_running_loop().create_connection(SSHForwarder, sock=inside)
        return SSHForwarder(peer)

    async def run_program(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        try:
            handle = container_of(self._lease, self._task)
        except Conflict as error:
            process.stderr.write(f"torg: {error.message} {error.hint or ''}\n".encode())
            process.exit(CANNOT_START)
            return
        session = ServedSession(self._executor, handle, process)
        self._sessions.add(session)
        try:
            await session.run()
        finally:
            self._sessions.discard(session)

    async def close(self) -> None:
        await asyncio.gather(*(session.close() for session in list(self._sessions)))


def container_of(lease: Lease, task: str | None, port: int | None = None) -> Handle:
    """The container that is meant: the job's only one, the named task's, the one that declares the port, the only one that runs. Raises
    Conflict `task_not_running`, `task_not_named`."""
    if lease.handle is not None and task is None:
        return lease.handle
    running = lease.task_handles
    if task is not None:
        if task not in running:
            names = ", ".join(running) or "none"
            raise Conflict(
                f'no task "{task}" runs now',
                code="task_not_running",
                field="task",
                value=task,
                hint=f"running: {names}",
            )
        return running[task]
    serving = [name for name, declared in lease.spec.declared_ports if declared.port == port and name in running]
    candidates = serving or list(running)
    if len(candidates) == 1:
        return running[candidates[0]]
    raise Conflict(
        "which task is meant?" if candidates else "none of the job's tasks runs now",
        code="task_not_named" if candidates else "task_not_running",
        field="task",
        hint=f"name one: --task {' | '.join(candidates)}" if candidates else "try again in a moment",
    )


def _not_running(lease_id: LeaseId) -> TorgError:
    return Conflict("its container does not run", code="job_not_running", field="lease_id", value=lease_id)


async def _ended(executor: Executor, lease: Lease) -> None:
    if lease.handle is not None:
        with contextlib.suppress(ExecutorError):  # it is gone: that is an end too
            await executor.wait(lease.handle)
        return
    while lease.exit is None:  # noqa: ASYNC110  tasks come and go; the tunnel lasts as long as the job
        await asyncio.sleep(_LOOK_FOR_END_S)


async def _first_of(*awaitables: Coroutine[Any, Any, object]) -> None:
    tasks = {asyncio.ensure_future(awaitable) for awaitable in awaitables}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
