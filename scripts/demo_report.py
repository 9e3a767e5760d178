"""The end of the demo: receipts checked where nothing of the market is reachable, and who had what before and after."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.market_processes import ProcessFailed, call, script

Torg = Callable[..., Awaitable[Any]]


async def verify_offline(torg: Torg, job_id: str, home: Path, marketplace_key: str) -> list[dict[str, Any]]:
    """Writes the receipts to a file and verifies them in fresh processes; as root, in a network namespace with nothing in it.

    Raises ProcessFailed if they do not hold, or if they still hold with one byte changed.
    """
    file, forged = home / "receipts.json", home / "forged.json"
    receipts: list[dict[str, Any]] = await torg("receipt", "show", job_id, "-o", str(file))
    text = file.read_text()
    at = text.index('"amount": ') + len('"amount": ')
    forged.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
    isolated = ["unshare", "--net"] if os.geteuid() == 0 else []
    verify = [*isolated, script("torg"), "receipt", "verify"]
    await call([*verify, str(file), "--marketplace-key", marketplace_key])
    code, _ = await call([*verify, str(forged), "--marketplace-key", marketplace_key], check=False)
    if code == 0:
        raise ProcessFailed("a forged receipt was accepted")
    return receipts


def closing_table(
    console: Console,
    *,
    before: dict[str, int],
    after: dict[str, int],
    job: dict[str, Any],
    settlements: list[dict[str, Any]],
    names: dict[str, str],
) -> None:
    parties = Table(title="who had what, on chain (tUSD)", title_justify="left")
    for heading in ("party", "before", "after", "change"):
        parties.add_column(heading, justify="left" if heading == "party" else "right")
    for party in dict.fromkeys([*before, *after]):
        had, has = before.get(party, 0), after.get(party, 0)
        parties.add_row(party, _tokens(had), _tokens(has), f"{(has - had) / 1e6:+.6f}" if has != had else "0")
    total_before, total_after = sum(before.values()), sum(after.values())
    parties.add_row(
        "sum",
        _tokens(total_before),
        _tokens(total_after),
        f"{(total_after - total_before) / 1e6:+.6f}",
        end_section=True,
    )
    console.print(parties)

    attempts = Table(title=f"job {job['job_id']}: {job['state']}", title_justify="left")
    for heading in ("attempt", "node", "ended", "billed s", "not billed s", "cost (tUSD)", "resumed from"):
        attempts.add_column(
            heading, justify="right" if heading in {"billed s", "not billed s", "cost (tUSD)"} else "left"
        )
    for lease in job["leases"]:
        attempts.add_row(
            str(lease["attempt"]),
            names.get(lease["node"], lease["node"][:8]),
            f"{lease['state']} ({lease['reason']})",
            f"{lease['billed_ms'] / 1000:.3f}",
            f"{lease['unbilled_ms'] / 1000:.3f}",
            _tokens(lease["amount"]),
            lease["resumed_from"] or "-",
        )
    console.print(attempts)
    for item in settlements:
        console.print(f"settled {_tokens(item['amount'])} tUSD: {item['signature']}", highlight=False, soft_wrap=True)
    console.print(
        f"verdicts: {json.dumps(job.get('reason'))}, outputs: {', '.join(output['path'] for output in job['outputs'])}",
        highlight=False,
    )


def _tokens(amount: int) -> str:
    return f"{amount / 1e6:.6f}"
