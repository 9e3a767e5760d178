"""Writes docs/reference/states.md from the tables of torg_protocol.states: `python -m scripts.states_page`.

The tables are the truth. A test compares the committed page with what this prints.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from pathlib import Path

from torg_protocol import states
from torg_protocol.states import OUTCOMES, EndReason, Exclusion

PAGE = Path(__file__).resolve().parents[1] / "docs/reference/states.md"
MACHINES: Mapping[str, tuple[str, Mapping[enum.StrEnum, frozenset[enum.StrEnum]]]] = {
    "Job": ("What the client wants.", {**states.JOB_MOVES}),
    "Lease": ("One try at a job on one node.", {**states.LEASE_MOVES}),
    "Payout": ("One payment to one payee.", {**states.PAYOUT_MOVES}),
    "Settlement": ("One capture transaction with its payouts.", {**states.SETTLEMENT_MOVES}),
    "Slash": ("What is taken of a node's collateral after a failed audit.", {**states.SLASH_MOVES}),
    "Node": ("Whether a node gets new leases.", {**states.NODE_MOVES}),
}
HEAD = """\
# States

Made by `python -m scripts.states_page` from [states.py](../../protocol/torg_protocol/states.py), where each state is explained. Every
move is written as an event row; a move that is not here is refused with the code `illegal_move`.
"""
ENDS = """\
## Why a lease ends, and what follows

One table decides it all. "billed": `full`, every useful second; `checkpoint`, useful seconds up to the newest durable checkpoint from
which a later attempt resumes; `none`, nothing. A job that goes back to `queued` ends as `failed` when its attempts are used up. "excluded":
whether this node gets this job again: `lasting`, no more; `passing`, after a minute, then two, four, up to sixteen
([declines.py](../../marketplace/torg_marketplace/rules/declines.py) says which words of a node that declines are for good).
"""


def page() -> str:
    return "\n".join([HEAD, *_machines(), ENDS, *_outcomes()]) + "\n"


def _machines() -> Iterator[str]:
    for name, (meaning, moves) in MACHINES.items():
        yield f"## {name}\n\n{meaning}\n\n```mermaid\nstateDiagram-v2"
        yield f"  [*] --> {next(iter(moves))}"
        for state, following in moves.items():
            yield from (f"  {state} --> {to}" for to in sorted(following))
            if not following:
                yield f"  {state} --> [*]"
        yield "```\n"


def _outcomes() -> Iterator[str]:
    yield "| reason | lease | job | billed | fault | excluded |"
    yield "|---|---|---|---|---|---|"
    for reason in EndReason:
        outcome = OUTCOMES[reason]
        excluded = outcome.excludes if outcome.excludes is not Exclusion.NO else ""
        cells = (reason, outcome.lease, outcome.job, outcome.billing, outcome.fault, excluded)
        yield "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page())
