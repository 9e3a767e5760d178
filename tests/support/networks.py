"""Networks of a test's own: parties that all reach one place in the middle and, if it forwards, each other through it: until it loses
what goes from one to another."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MIDDLE_ADDRESS = "10.77.0.1"  # of the middle, from wherever one looks
_CLONE_NEWNET = 0x40000000
_RELAY = """
import asyncio, json, sys
async def pump(reader, writer):
    while data := await reader.read(65536): writer.write(data); await writer.drain()
    writer.close()
async def serve(reader, writer):
    far = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    await asyncio.gather(pump(reader, far[1]), pump(far[0], writer), return_exceptions=True)
async def main():
    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]))
    print(json.dumps({}), flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@dataclass(frozen=True)
class Place:
    """One network namespace."""

    name: str
    address: str

    def command(self, *argv: str) -> list[str]:
        """The same command, run there. Not `ip netns exec`, which would hide the control groups."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *argv]


@contextlib.contextmanager
def star(*names: str, forwards: bool = False) -> Iterator[tuple[Place, ...]]:
    """The middle first, then the parties by name. All of it is gone afterwards, processes are the caller's."""
    prefix = f"torg{os.getpid()}"
    middle = Place(f"{prefix}-middle", MIDDLE_ADDRESS)
    places = [middle]
    try:
        _ip("netns", "add", middle.name)
        _inside(middle, "link", "set", "lo", "up")
        _inside(middle, "addr", "add", f"{MIDDLE_ADDRESS}/32", "dev", "lo")
        for number, name in enumerate(names, start=1):
            party = Place(f"{prefix}-{name}", f"10.77.{number}.2")
            places.append(party)
            _ip("netns", "add", party.name)
            ours, theirs = f"tm{number}p{os.getpid()}"[:15], f"tp{number}p{os.getpid()}"[:15]
            _ip("link", "add", ours, "netns", middle.name, "type", "veth", "peer", "name", theirs, "netns", party.name)
            for place, link, address in ((middle, ours, f"10.77.{number}.1"), (party, theirs, party.address)):
                _inside(place, "addr", "add", f"{address}/24", "dev", link)
                _inside(place, "link", "set", link, "up")
            _inside(party, "link", "set", "lo", "up")
            _inside(party, "route", "add", "default", "via", f"10.77.{number}.1")
        if forwards:
            _run(middle.command("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"))
        yield tuple(places)
    finally:
        for place in reversed(places):
            subprocess.run(["ip", "netns", "delete", place.name], check=False, capture_output=True)


@contextlib.contextmanager
def lost_between(middle: Place, *pairs: tuple[Place, Place]) -> Iterator[None]:
    """Meanwhile a middle that forwards loses, without a word, what the first of a pair sends to the second; what comes back it lets through."""
    rules: list[tuple[str, ...]] = [
        ("from", sender.address, "to", receiver.address, "blackhole") for sender, receiver in pairs
    ]
    added: list[tuple[str, ...]] = []
    try:
        for rule in rules:
            _inside(middle, "rule", "add", *rule)
            added.append(rule)
        yield
    finally:
        for rule in added:
            _inside(middle, "rule", "del", *rule)


@contextlib.contextmanager
def unplugged(middle: Place, party: Place) -> Iterator[None]:
    """Meanwhile the party's link has no carrier, as with a cable that was pulled."""
    theirs = link_of(party)
    ours = "tm" + theirs.removeprefix("tp")
    _inside(middle, "link", "set", ours, "down")
    try:
        yield
    finally:
        _inside(middle, "link", "set", ours, "up")


@contextlib.contextmanager
def entered(place: Place) -> Iterator[None]:
    """Meanwhile this thread, and every process that it starts, is there; its sockets of before stay where they were made."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(namespace: int) -> None:
        if libc.setns(namespace, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{place.name}").open() as there:
        enter(there.fileno())
        try:
            yield
        finally:
            enter(home.fileno())


def relay_command(port: int) -> list[str]:
    """What, run in the middle, makes a port of its loopback a port of its address. Prints a JSON line when it does."""
    return [sys.executable, "-c", _RELAY, MIDDLE_ADDRESS, str(port)]


def link_of(place: Place) -> str:
    """A party's one link to the middle."""
    listing = subprocess.run(
        place.command("ip", "-o", "link", "show", "type", "veth"), check=True, capture_output=True, text=True
    ).stdout
    return listing.split()[1].partition("@")[0]


def _inside(place: Place, *arguments: str) -> None:
    _run(place.command("ip", *arguments))


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr}")
