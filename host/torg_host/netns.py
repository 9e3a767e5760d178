# The sandbox's shim imports this, and pathlib alone would cost it 6 ms per job.
"""A listener inside a container's network namespace, made from outside and handed to a process that stays outside.

The container has no route and needs no program, no mount and no port of the host: it finds a listener on its own loopback, and what
accepts there lives in the host's network. Run as a module (`python -m torg_host.netns PID PORT FD`) or called in a fork; never in a
process that goes on, since it changes the network namespace of whoever calls it. A process that goes on asks `torg_host.network_thread`.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import sys

_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000
_NS_GET_USERNS = 0xB701
_IP_FREEBIND = 15  # the loopback of a namespace that is just being made may not be up yet
_BACKLOG = 128


def hand_over_listener(pid: int, port: int, channel: int) -> None:
    """Listens on 127.0.0.1:`port` in the namespace of `pid` and sends the listener, and a pidfd of `pid`, over the Unix socket `channel`.

    Raises OSError: no such process, no right to enter, no listener. The caller is in the other namespace afterwards.
    """
    pidfd = os.pidfd_open(pid)
    enter_network(pid)
    with socket.socket() as listener:
        listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(_BACKLOG)
        with socket.socket(fileno=os.dup(channel)) as far:
            socket.send_fds(far, [b"listener"], [listener.fileno(), pidfd])
    os.close(pidfd)


def receive_listener(channel: socket.socket) -> tuple[socket.socket, int] | None:
    """The listener and the pidfd that somebody handed over; None when the other side has closed. Blocks as the channel does."""
    _, descriptors, _, _ = socket.recv_fds(channel, 64, 2)
    if len(descriptors) != 2:
        return None
    listener = socket.socket(fileno=descriptors[0])
    listener.setblocking(False)
    return listener, descriptors[1]


def enter_network(pid: int) -> None:
    """The calling thread is in the network of `pid` afterwards. As root at once; as the plain user who made the container, by way of the user namespace that owns the network.
    Raises OSError, also where that network is the caller's own."""
    libc = ctypes.CDLL(None, use_errno=True)
    network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if os.path.samestat(os.fstat(network), os.stat("/proc/self/ns/net")):  # noqa: PTH116
            raise OSError(0, "the process has no network namespace of its own")
        if libc.setns(network, _CLONE_NEWNET) == 0:
            return
        owner = fcntl.ioctl(network, _NS_GET_USERNS)
        try:
            if libc.setns(owner, _CLONE_NEWUSER) != 0 or libc.setns(network, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter the network of process {pid}")
        finally:
            os.close(owner)
    finally:
        os.close(network)


if __name__ == "__main__":
    hand_over_listener(*map(int, sys.argv[1:4]))
