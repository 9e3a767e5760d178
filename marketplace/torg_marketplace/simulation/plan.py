"""A seed becomes a market and a list of steps. Each step carries its own dice, so that a step does the same whatever is left out
before it: that is what makes a failing list shrink."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, replace


class Kind(enum.StrEnum):
    # the parties
    NODE = "node"  # one round of a node's life
    CROWD = "crowd"  # all nodes and clients at the same time: what they say shares transactions
    SUBMIT = "submit"
    CANCEL = "cancel"
    EXTEND = "extend"
    OVERSPEND = "overspend"
    RUSH = "rush"  # spot jobs take what there is, then jobs at the full price come
    DEPOSIT = "deposit"
    DISPUTE = "dispute"
    DECIDE = "decide"  # a person decides a dispute, or gives something back
    LEAVE = "leave"  # a client begins to close its vault
    # the marketplace's workers
    MATCH = "match"
    SWEEP = "sweep"
    VERIFY = "verify"
    SETTLE = "settle"
    RECONCILE = "reconcile"
    HOUSEKEEPING = "housekeeping"  # garbage, what is forgotten, webhooks
    # faults
    CRASH = "crash"
    CUT_OFF = "cut_off"
    STALL = "stall"
    DRAIN = "drain"
    HAUNT = "haunt"  # a stale fence comes back
    IMPERSONATE = "impersonate"
    STALE_GRANT = "stale_grant"  # a matcher that lost its lock grants what it saw long ago
    OUTAGE = "outage"  # the marketplace is killed and comes back
    CHAIN_WEATHER = "chain_weather"
    FORK = "fork"
    LONG_SILENCE = "long_silence"


_WEIGHTS = {
    Kind.NODE: 36,
    Kind.SUBMIT: 9,
    Kind.CANCEL: 2,
    Kind.EXTEND: 3,
    Kind.OVERSPEND: 2,
    Kind.RUSH: 1,
    Kind.DEPOSIT: 1,
    Kind.MATCH: 11,
    Kind.SWEEP: 8,
    Kind.VERIFY: 6,
    Kind.SETTLE: 9,
    Kind.RECONCILE: 1,
    Kind.CRASH: 2,
    Kind.CUT_OFF: 2,
    Kind.STALL: 1,
    Kind.DRAIN: 1,
    Kind.HAUNT: 3,
    Kind.IMPERSONATE: 1,
    Kind.STALE_GRANT: 2,
    Kind.OUTAGE: 1,
    Kind.CHAIN_WEATHER: 2,
    Kind.FORK: 1,
    Kind.LONG_SILENCE: 1,
}


_CASES = [Kind.DISPUTE, Kind.DECIDE]
_CASE_EVERY = 8  # steps, about
_CROWD_EVERY = 5  # rounds of nodes, about
_HOUSEKEEPING_EVERY = 8  # steps, about
_LEAVE_EVERY = 60  # steps, about


@dataclass(frozen=True, slots=True)
class Step:
    """`after_ms` of virtual time pass before it. `who` picks among the parties, `dice` decides the rest."""

    number: int
    kind: Kind
    who: int
    dice: int
    after_ms: int

    def __str__(self) -> str:
        return f"{self.number}: {self.kind} who={self.who} dice={self.dice} after={self.after_ms} ms"


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    nodes: int
    clients: int
    steps: tuple[Step, ...]

    def only(self, steps: tuple[Step, ...]) -> Plan:
        return replace(self, steps=steps)


def make_plan(seed: int, *, nodes: int | None = None, steps: int = 80) -> Plan:
    """With few nodes, parties meet more often: small markets find more than large ones, step for step."""
    chance = random.Random(seed)
    count = nodes if nodes is not None else chance.randrange(2, 6)
    kinds, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    made = tuple(
        Step(
            number=number,
            kind=kind,
            who=chance.randrange(1_000_000),
            dice=chance.getrandbits(32),
            after_ms=_pause_ms(chance, count),
        )
        for number, kind in enumerate(chance.choices(kinds, weights, k=steps))
    )
    return Plan(seed, count, max(1, count // 3), _with_chores(seed, _with_cases(seed, _with_crowds(seed, made))))


def _with_crowds(seed: int, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Sometimes it is not one node whose turn it is, but everybody's."""
    chance = random.Random(f"crowds of {seed}")
    return tuple(
        replace(step, kind=Kind.CROWD) if step.kind is Kind.NODE and chance.randrange(_CROWD_EVERY) == 0 else step
        for step in steps
    )


def _with_cases(seed: int, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Cases come in between, drawn apart from all the rest, and take no time: what a seed did before there were any it still does."""
    chance, made = random.Random(f"cases of {seed}"), list[Step]()
    for step in steps:
        made.append(step)
        if chance.randrange(_CASE_EVERY) == 0:
            kind, who = chance.choice(_CASES), chance.randrange(1_000_000)
            made.append(Step(step.number, kind, who, chance.getrandbits(32), after_ms=0))
    return tuple(made)


def keeps_house(seed: int) -> bool:
    """Whether in this market garbage is collected, history forgotten, webhooks told, vaults closed, and nodes of the chain lag."""
    return seed % 7 == 1


def _with_chores(seed: int, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """As cases do, in some markets."""
    if not keeps_house(seed):
        return steps
    chance, made = random.Random(f"chores of {seed}"), list[Step]()
    for step in steps:
        made.append(step)
        for kind, every in ((Kind.HOUSEKEEPING, _HOUSEKEEPING_EVERY), (Kind.LEAVE, _LEAVE_EVERY)):
            if chance.randrange(every) == 0:
                who = chance.randrange(1_000_000)
                made.append(Step(step.number, kind, who, chance.getrandbits(32), after_ms=0))
    return tuple(made)


def _pause_ms(chance: random.Random, nodes: int) -> int:
    """In a large market more happens in the same time."""
    return chance.randrange(200, 6_000) * 4 // max(4, nodes)
