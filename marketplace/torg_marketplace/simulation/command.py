"""`torg-marketplace simulate`: seeds, until one breaks something; then the smallest list of steps that does."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from rich.console import Console
from rich.table import Table

from torg_marketplace.simulation.run import Report, shrink, simulate


def run(arguments: argparse.Namespace) -> int:
    """0 when all promises held, 1 with the failing seed and its smallest list of steps."""
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    one = partial(simulate, nodes=arguments.nodes, steps=arguments.steps)
    total, console = Report(), Console(width=120, highlight=False, markup=False)
    try:
        _simulate(one, seeds, arguments.jobs, total)
    except KeyboardInterrupt:
        console.print(_table(total))
        console.print(f"all promises held in the {total.seeds} seeds that were finished")
        raise
    console.print(_table(total))
    if total.failure is None:
        console.print(f"all promises held in seeds {seeds.start} to {seeds.stop - 1}")
        return 0
    console.print(f"seed {total.failure.plan.seed} breaks a promise; looking for the smallest way to do that")
    console.print(str(shrink(total.failure, console.print)))
    return 1


def _simulate(one: Callable[[int], Report], seeds: range, jobs: int, total: Report) -> None:
    if jobs == 1:
        for report in map(one, seeds):
            total.add(report)
            if total.failure:
                break
        return
    with ProcessPoolExecutor(jobs) as pool:
        try:
            for report in pool.map(one, seeds):
                total.add(report)
                if total.failure:
                    break
        finally:
            pool.shutdown(cancel_futures=True)


def _table(report: Report) -> Table:
    table = Table(title="simulated markets", title_justify="left")
    table.add_column("what")
    table.add_column("how much", justify="right")
    waits = sorted(report.waits_ms)
    rows = {
        "seeds": f"{report.seeds}",
        "steps": f"{report.steps}",
        "virtual time": f"{report.virtual_ms / 3_600_000:.1f} h",
        "jobs": ", ".join(f"{count} {state}" for state, count in report.jobs.most_common()),
        "leases ended": ", ".join(f"{count} {reason}" for reason, count in report.reasons.most_common()),
        "wait for a lease, median": f"{waits[len(waits) // 2] / 1000:.1f} s" if waits else "",
        "wait for a lease, 99%": f"{waits[len(waits) * 99 // 100] / 1000:.1f} s" if waits else "",
        "paid on chain": f"{report.paid} base units",
        "given back": f"{report.given_back} base units",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table
