"""Which addresses count as the public internet."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from torg_host.addresses import is_neighbour, is_own, is_public, neighbour_ranges


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("9.9.9.9", True),
        ("2620:fe::fe", True),
        *((address, False) for address in ("10.1.2.3", "172.16.0.1", "192.168.1.1", "127.0.0.1", "0.0.0.0")),  # noqa: S104
        *(
            (address, False)
            for address in ("169.254.169.254", "100.64.0.1", "224.0.0.1", "239.1.1.1", "255.255.255.255")
        ),
        *((address, False) for address in ("::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1")),
        *((address, False) for address in ("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe")),
        *((address, False) for address in ("2002:7f00:1::", "2001:0:1::", "198.18.0.1", "192.0.0.1")),
    ],
)
def test_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_the_host_itself_is_known_whatever_its_address() -> None:
    assert is_own(ipaddress.ip_address("127.0.0.1"))
    assert not is_own(ipaddress.ip_address("9.9.9.9"))


def test_neighbours_are_read_from_the_kernels_routes_also_where_they_have_public_addresses(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(
        "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
        "eth0 00000000 0101A8C0 0003 0 0 0 00000000 0 0 0\n"  # default, by a router
        "eth0 00090909 00000000 0001 0 0 0 00FFFFFF 0 0 0\n"  # 9.9.9.0/24, on the wire
        "tun0 00000000 00000000 0001 0 0 0 00000080 0 0 0\n"  # 0.0.0.0/1 of a VPN
    )
    (tmp_path / "ipv6_route").write_text(
        "2620000000fe00000000000000000000 30 "
        + "0" * 32
        + " 00 "
        + "0" * 32
        + " 00000100 00000001 00000000 00000001 eth0\n"
    )

    near = neighbour_ranges(tmp_path)

    assert [str(found) for found in near] == ["9.9.9.0/24", "2620:0:fe::/48"]
    assert is_neighbour(ipaddress.ip_address("9.9.9.9"), near)
    assert not is_neighbour(ipaddress.ip_address("8.8.8.8"), near)
    assert neighbour_ranges(tmp_path / "nothing") == ()
