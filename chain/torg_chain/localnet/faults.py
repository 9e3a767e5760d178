"""What a cluster does to its users on a bad day: transactions that are accepted and never land, and forks that take back what
was confirmed. By number (`torg_drop`, `torg_reorg`) for tests, by chance (`--drop`, `--reorg`) for simulations.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field

from torg_chain.localnet.cluster import Cluster, Refused

log = logging.getLogger(__name__)


@dataclass
class Faults:
    """`drop` and `reorg` are probabilities: of each transaction sent, and of each slot."""

    drop: float = 0.0
    reorg: float = 0.0
    chance: random.Random = field(default_factory=random.Random)
    drop_next: int = 0

    def drop_the_next(self, count: int) -> None:
        if count < 0:
            raise Refused("a number of transactions to drop is 0 or more")
        self.drop_next = count

    def drops(self) -> bool:
        """Whether the transaction that was just sent is lost on its way to the leader."""
        if self.drop_next:
            self.drop_next -= 1
            return True
        return self.drop > 0 and self.chance.random() < self.drop

    def at_slot(self, cluster: Cluster) -> None:
        """Now and then the newest slots turn out to be a dead fork. Half of what was on it lands again on the live one."""
        if self.reorg > 0 and self.chance.random() < self.reorg:
            depth = self.chance.randint(1, cluster.deepest_reorg)
            dropped = cluster.reorg(depth)
            landed = cluster.land_again([raw for raw in dropped if self.chance.random() < 0.5])
            if dropped:
                log.warning("fork: %d transactions of %d slots dropped, %d landed again", len(dropped), depth, landed)
