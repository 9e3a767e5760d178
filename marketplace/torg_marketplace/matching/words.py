"""What constraints say to people: sizes, levels and the best that some nodes have."""

from __future__ import annotations

import numpy as np

from torg_marketplace.matching.fleet import ISOLATION_LEVELS, SANDBOX_WITH_ROOT, Fleet, Rows
from torg_marketplace.matching.snapshot import WHOLE_MILLI, Demand
from torg_protocol.network import EGRESS_KINDS
from torg_protocol.quantities import format_cpu_millis


def gib(size_bytes: int) -> str:
    """Sizes as people read them: "1.5 GiB", one decimal, rounded down."""
    tenths = size_bytes * 10 >> 30
    return f"{tenths // 10}.{tenths % 10} GiB" if tenths >= 10 else f"{size_bytes >> 20} MiB"


def permille(value: int) -> str:
    return f"{value // 10}.{value % 10} %"


def classes(fleet: Fleet, rows: Rows) -> str:
    return ", ".join(sorted({fleet.class_names[code] for code in np.unique(fleet.gpu_class[rows]).tolist()}))


def regions(fleet: Fleet, rows: Rows) -> str:
    found = set(np.unique(fleet.region[rows]).tolist())
    return ", ".join(sorted(word.removeprefix("region ") for word, code in fleet.codes.items() if code in found))


def isolation_levels(fleet: Fleet, rows: Rows) -> str:
    bits = np.unique(fleet.isolation[rows]).tolist()
    levels = {level for place, level in enumerate(ISOLATION_LEVELS) if any(value >> place & 1 for value in bits)}
    return ", ".join(sorted(levels - {SANDBOX_WITH_ROOT})) or "none"


def networks(fleet: Fleet, rows: Rows) -> str:
    bits = np.unique(fleet.egress[rows]).tolist()
    return (
        ", ".join(kind for place, kind in enumerate(EGRESS_KINDS) if any(value >> place & 1 for value in bits))
        or "none"
    )


def most_vram(fleet: Fleet, rows: Rows) -> str:
    most = int(fleet.vram[rows].max(initial=0))
    return gib(most) if most else "no GPU"


def features(demand: Demand) -> str:
    """That not every version of the protocol has."""
    return ", ".join(each.name for each in demand.features)


def smallest_share(fleet: Fleet, rows: Rows) -> str:
    least = int(fleet.least_gpu_milli[rows].min())
    return f"{format_cpu_millis(least)} of a GPU at least" if least < WHOLE_MILLI else "whole GPUs only"


def best_capability(fleet: Fleet, rows: Rows) -> str:
    if not fleet.gpus_total[rows].any():
        return "no GPU"
    best = int(fleet.capability[rows].max(initial=0))
    return f"{best // 1000}.{best % 1000}"
