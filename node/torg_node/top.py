"""`torg-node top`: one screen, read from the journal, the host's ledger and the GPUs' library, so that it works beside the agent and without it."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from torg_chain.wallet import load_keypair
from torg_node.allocation import Capacity
from torg_node.earnings import earning_rows, net_since
from torg_node.hardware.detect import lent, open_gpus
from torg_node.hardware.gpus import GpuLibrary, GpuReading
from torg_node.journal import Journal, LeaseEntry
from torg_node.money import exposure
from torg_node.owner import DRAIN_FACT, local_time
from torg_node.reservation import Reservations
from torg_node.settings import Settings
from torg_node.status import read_status
from torg_protocol.money import format_amount

_DECISIONS = 20
_WIDTH_WITHOUT_TERMINAL = 120


def run_top(settings: Settings, *, once: bool, every_s: float) -> int:
    """Until Ctrl-C. Without a terminal, or with `once`, one screen."""
    gpus = open_gpus(settings.gpus)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)
    try:
        if once or not console.is_terminal:
            console.print(screen(settings, gpus, time.time_ns() // 1_000_000))
            return 0
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(screen(settings, gpus, time.time_ns() // 1_000_000), refresh=True)
                time.sleep(max(0.2, every_s))
    except KeyboardInterrupt:
        return 0
    finally:
        if gpus is not None:
            gpus.close()


def screen(settings: Settings, gpus: GpuLibrary | None, now_ms: int) -> RenderableType:
    node = str(load_keypair(settings.key_path).pubkey())
    journal = Journal(settings.journal_path)
    try:
        return Group(
            _head(settings, journal, node, now_ms),
            _money(settings, journal, now_ms),
            _gpus(settings, node, gpus),
            _leases(settings, journal, now_ms),
            _decisions(journal),
        )
    finally:
        journal.close()


def _head(settings: Settings, journal: Journal, node: str, now_ms: int) -> Text:
    pid = read_status(settings, node).agent_pid
    state = f"running (process {pid})" if pid else "NOT RUNNING: torg-node start"
    if journal.fact(DRAIN_FACT) == "yes":
        state += ", draining (torg-node resume)"
    elif journal.is_paused:
        state += ", paused (torg-node resume)"
    now = local_time(now_ms)
    if (until := settings.rules.quiet_until(now)) is not None:
        state += f", quiet hours until {until:%a %H:%M}"
    elif (begins := settings.rules.next_quiet(now)) is not None:
        state += f", quiet hours from {begins:%a %H:%M}"
    return Text(f"{node}  {state}", style="bold")


def _money(settings: Settings, journal: Journal, now_ms: int) -> Text:
    rows, decimals = earning_rows(journal), settings.network.decimals
    midnight = local_time(now_ms).replace(hour=0, minute=0, second=0, microsecond=0)
    today = net_since(rows, midnight)
    settled, unsettled = sum(journal.captured().values()), exposure(journal)
    undecided = sum(row.net for row in rows if row.state == "undecided")
    parts = (("today", today), ("unsettled", unsettled), ("waiting for a verdict", undecided), ("settled", settled))
    return Text("   ".join(f"{name} {format_amount(amount, decimals)}" for name, amount in parts))


def _gpus(settings: Settings, node: str, gpus: GpuLibrary | None) -> RenderableType:
    if gpus is None:
        return Text("no GPU that its driver's library tells of", style="dim")
    units = lent(gpus.units(), settings.gpus)
    physical = dict.fromkeys(unit.info.mig_parent or unit.info.uuid for unit in units)
    readings = {reading.uuid: reading for reading in gpus.read(tuple(physical))}
    ledger = Reservations(settings.host_ledger_path, node, Capacity((), (), 0, 0, 0, 0))
    try:
        cordons, resting = ledger.cordons(), ledger.expected_back()
        held = {uuid: item.lease_id for item in ledger.held() for uuid in item.assignment.gpu_uuids}
    finally:
        ledger.close()
    table = Table("GPU", "model", "temperature", "lease", "out of service", box=None, pad_edge=False)
    for unit in units:
        uuid = unit.info.uuid
        card = unit.info.mig_parent or uuid
        reading = readings.get(card, GpuReading(uuid))
        warmth = (
            "lost" if reading.is_lost else f"{reading.temperature_c} C" if reading.temperature_c is not None else "-"
        )
        if reading.slowed_by_heat:
            warmth += ", slowed"
        out = cordons.get(uuid) or cordons.get(card, "")
        out += " (back by itself)" if out and {uuid, card} & resting else ""
        table.add_row(uuid[:16], unit.info.model, warmth, held.get(uuid, "-"), out)
    return table


def _leases(settings: Settings, journal: Journal, now_ms: int) -> RenderableType:
    entries = journal.open_leases()
    if not entries:
        return Text("no lease needs this host now", style="dim")
    table = Table("lease", "job", "state", "since", "pays per hour", "image", box=None, pad_edge=False)
    for entry in entries:
        grant = entry.signed.grant
        hourly = format_amount(grant.price_per_gpu_hour * grant.billable_gpus, settings.network.decimals)
        table.add_row(
            grant.lease_id, grant.spec.name, str(entry.state), _age(entry, now_ms), hourly, grant.spec.image[:40]
        )
    return table


def _decisions(journal: Journal) -> RenderableType:
    decisions = journal.decisions(_DECISIONS)
    if not decisions:
        return Text("no grant has come yet: is the price right? torg-node init suggests one", style="dim")
    table = Table("grant of", "lease", "taken", "because", box=None, pad_edge=False)
    for decision in decisions:
        at = datetime.fromtimestamp(decision.at_ms / 1000, tz=UTC).astimezone()
        why = "" if decision.taken else f"{decision.code or 'declined'}: {decision.detail}"
        table.add_row(f"{at:%d %b %H:%M:%S}", decision.lease_id, "yes" if decision.taken else "no", why[:100])
    return table


def _age(entry: LeaseEntry, now_ms: int) -> str:
    started_at_ms = entry.handle.started_at_ms if entry.handle is not None else entry.signed.grant.granted_at_ms
    minutes, seconds = divmod(max(0, now_ms - started_at_ms) // 1000, 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{seconds:02d}s"
