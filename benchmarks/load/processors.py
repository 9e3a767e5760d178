"""Processor time of processes and of what they started, from /proc; and what a marketplace says of its stages."""

from __future__ import annotations

import os
import urllib.request
from collections import defaultdict
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def processor_s(pid: int) -> float:
    """Of the process and all its living descendants."""
    children: dict[int, list[int]] = defaultdict(list)
    spent: dict[int, float] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children[int(fields[1])].append(int(folder.name))
        # A server that starts a process per connection: what ended ones spent is in their parent's cutime and cstime.
        spent[int(folder.name)] = sum(int(field) for field in fields[11:15]) * _TICK_S
    total, todo = 0.0, [pid]
    while todo:
        current = todo.pop()
        total += spent.get(current, 0.0)
        todo += children[current]
    return total


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def stages(metrics_port: int) -> dict[str, tuple[float, float]]:
    """Stage -> calls, processor seconds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("torg_stage_"):
                found[sample.labels["stage"]][sample.name] = sample.value
    return {
        stage: (values["torg_stage_calls_total"], values["torg_stage_processor_seconds_total"])
        for stage, values in found.items()
    }
