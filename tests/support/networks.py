"""Networks of a test's own: parties that all reach one place in the middle, and not each other."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MIDDLE_ADDRESS = "10.77.0.1"  # of the middle, from wherever one looks


@dataclass(frozen=True)
class Place:
    """One network namespace."""

    name: str
    address: str

    def command(self, *argv: str) -> list[str]:
        """The same command, run there. Not `ip netns exec`, which would hide the control groups."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *argv]


@contextlib.contextmanager
def star(*names: str) -> Iterator[tuple[Place, ...]]:
    """The middle first, then the parties by name. Nothing forwards. All of it is gone afterwards, processes are the caller's."""
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
        yield tuple(places)
    finally:
        for place in reversed(places):
            subprocess.run(["ip", "netns", "delete", place.name], check=False, capture_output=True)


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
