"""What the marketplace keeps from this node, and why: for its owner's eyes. Kept in the journal, so that `torg-node status` knows it too."""

from __future__ import annotations

import logging

from pydantic import TypeAdapter

from torg_node.journal import Journal
from torg_protocol.suspensions import NodeSuspended, Suspension, in_words

log = logging.getLogger(__name__)
_FACT = "suspensions"
_SUSPENSIONS: TypeAdapter[tuple[Suspension, ...]] = TypeAdapter(tuple[Suspension, ...])
_WAYS_OUT = {
    "operator": "ask the operator of the marketplace, and name this node",
    "ban": "its leases were stopped; ask the operator of the marketplace, and name this node",
    "proof": "see what torg-node doctor finds and that nothing else uses the GPUs; then ask the operator to lift it (torg-marketplace proof lift)",
}


class Standing:
    """`suspensions`: as the marketplace has said last."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.suspensions = kept_suspensions(journal)
        if self.suspensions:
            log.warning("when it was heard of last, this node was suspended %s", in_words(self.suspensions))

    def take(self, told: NodeSuspended) -> None:
        """Raises sqlite3.OperationalError; the marketplace says it again then."""
        if told.suspensions == self.suspensions:
            return
        self._journal.set_fact(_FACT, _SUSPENSIONS.dump_json(told.suspensions).decode())
        self.suspensions = told.suspensions
        if told.suspensions:
            log.warning("the marketplace gives this node no new leases: suspended %s", in_words(told.suspensions))
        else:
            log.info("this node is not suspended any more: the marketplace gives it leases again")


def kept_suspensions(journal: Journal) -> tuple[Suspension, ...]:
    """As the agent has heard last."""
    text = journal.fact(_FACT)
    return () if text is None else _SUSPENSIONS.validate_json(text)


def standing_lines(suspensions: tuple[Suspension, ...]) -> list[str]:
    """For people; nothing while it gets leases as any other."""
    lines = []
    for each in suspensions:
        lines += [each.in_words(), f"  what to do: {_WAYS_OUT.get(each.by, _WAYS_OUT['operator'])}"]
    return [*lines, "no new leases until then; what runs is paid as before"] if lines else []
