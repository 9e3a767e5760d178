"""`torg-node self-check`: whether this release could take over this node, tried without touching it.

For an update: the new release runs it beside the old one's agent, which goes on. Journal and ledger are read as copies, since a newer release may
change their tables.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from torg_chain.wallet import load_keypair
from torg_node.allocation import Capacity
from torg_node.journal import Journal
from torg_node.reservation import Reservations
from torg_node.settings import Settings
from torg_protocol.api import MarketInfo
from torg_protocol.errors import TorgError
from torg_protocol.versions import SPOKEN

_WITHIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Check:
    """`problem` None: it holds, and `found` says what."""

    name: str
    found: str
    problem: str | None = None


def self_check(settings: Settings, walls: Callable[[], str]) -> tuple[Check, ...]:
    """`walls` says which isolation was tried, and raises TorgError where it does not hold."""
    return (
        _checked("key", lambda: str(load_keypair(settings.key_path).pubkey())),
        _checked("journal", lambda: _read_journal(settings)),
        _checked("ledger", lambda: _read_ledger(settings)),
        _checked("protocol", lambda: _agree(settings)),
        _checked("isolation", walls),
    )


def as_text(checks: tuple[Check, ...]) -> str:
    lines = [
        f"  {'FAILED' if check.problem else 'holds ':<6}  {check.name:<9}  {check.problem or check.found}"
        for check in checks
    ]
    failed = sum(check.problem is not None for check in checks)
    return "\n".join(
        [*lines, f"{failed} of {len(checks)} do not hold: do not switch to it" if failed else "it can take over"]
    )


def as_json(checks: tuple[Check, ...]) -> str:
    return json.dumps([{"name": item.name, "found": item.found, "problem": item.problem} for item in checks])


def _checked(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, look())
    except TorgError as error:
        return Check(name, "", f"{error.message} [{error.code}]")
    except (OSError, ValueError, sqlite3.Error, httpx.HTTPError) as error:
        return Check(name, "", str(error) or type(error).__name__)


def _read_journal(settings: Settings) -> str:
    with _copy(settings.journal_path) as path, contextlib.closing(Journal(path)) as journal:
        leases = journal.open_leases()
        for entry in leases:
            journal.usage(entry.signed.grant.lease_id)
        undecided, orders = journal.undecided_leases(), journal.orders()
        return f"{len(leases)} running leases, {len(undecided)} undecided, {len(orders)} orders"


def _read_ledger(settings: Settings) -> str:
    if not settings.host_ledger_path.exists():
        return "none yet"
    with _copy(settings.host_ledger_path) as path:
        ledger = Reservations(path, "", Capacity((), (), 0, 0, 0, 0))
        with contextlib.closing(ledger):
            return f"{len(ledger.held())} reservations"


def _agree(settings: Settings) -> str:
    if not settings.marketplace_url:
        return "no marketplace"
    answer = httpx.get(f"{settings.marketplace_url}/v1/market", timeout=_WITHIN_S)
    answer.raise_for_status()
    theirs = MarketInfo.model_validate_json(answer.content).protocol_versions
    common = sorted(set(theirs) & set(SPOKEN))
    if not common:
        raise ValueError(f"the marketplace speaks {_list(theirs)}, this release {_list(SPOKEN)}")
    return f"version {common[-1]}"


@contextlib.contextmanager
def _copy(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="torg-check-") as folder:
        copy = Path(folder) / path.name
        with (
            contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_WITHIN_S)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        yield copy


def _list(versions: tuple[int, ...]) -> str:
    return " and ".join(map(str, versions))
