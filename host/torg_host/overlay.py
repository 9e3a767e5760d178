"""One network interface more in a container's network: what is written to it comes out of a descriptor that the agent holds, packet by
packet (a TUN device of Linux). The container needs no capability for it, and gets no route but to the addresses of that one network.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from ipaddress import IPv4Interface
from pathlib import Path

from torg_host.network_thread import in_network_of

INTERFACE = "torg0"
MTU_BYTES = 65_000  # bytes go through a tunnel that cuts them anyway: large packets cost less
_TUN = Path("/dev/net/tun")
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8916, 0x891C, 0x8922, 0x8913, 0x8914
_IFF_UP, _IFF_RUNNING = 0x1, 0x40


def why_not() -> str | None:
    """What this host lacks for it; None: nothing."""
    if os.geteuid() != 0:
        return "the node does not run as root"
    return None if _TUN.exists() else f"this host has no {_TUN}"


def open_interface(pid: int, address: IPv4Interface) -> int:
    """Makes `torg0` with this address in the network of process `pid`. The descriptor is non-blocking and the caller's; the interface is
    gone when it is closed. Blocks for a moment. Raises OSError."""
    return in_network_of(pid, lambda: _make(address))


def _make(address: IPv4Interface) -> int:
    descriptor = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI))
        _configure(address)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _configure(address: IPv4Interface) -> None:
    """As `ip address add` and `ip link set up` do, by the older calls that need no message format."""
    name = INTERFACE.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for call, value in ((_SIOCSIFADDR, address.ip), (_SIOCSIFNETMASK, address.netmask)):
            fcntl.ioctl(control, call, struct.pack("16sHH4s16x", name, socket.AF_INET, 0, value.packed))
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si20x", name, MTU_BYTES))
        flags = struct.unpack("16sH22x", fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16s24x", name)))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name, flags | _IFF_UP | _IFF_RUNNING))
