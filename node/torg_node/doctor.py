"""`torg-node doctor`: what this machine is, what its parts disagree about, and which walls around a job were found to hold."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from torg_node.executors.port import Capabilities
from torg_node.proving import proof_lines
from torg_protocol.proofs import ProofStatus


@dataclass(frozen=True, slots=True)
class Findings:
    """`cordons`: reason by GPU; of those that are `resting` the agent expects that it passes. Whatever `failed`, `disagreements` or
    `cordons` name deserves its owner's attention."""

    capabilities: Capabilities
    hardware: dict[str, str]
    disagreements: tuple[str, ...]
    cordons: dict[str, str]
    resting: Collection[str] = ()
    proof: ProofStatus | None = None  # what the marketplace established last

    @property
    def is_sound(self) -> bool:
        return not (self.capabilities.failed or self.disagreements or self.cordons)

    def as_json(self) -> str:
        found = self.capabilities
        return json.dumps(
            {
                "executor": found.executor,
                "verified": found.verified,
                "failed": found.failed,
                "not_offered": found.not_offered,
                "hardware": self.hardware,
                "disagreements": self.disagreements,
                "cordons": self.cordons,
                "resting": sorted(self.resting),
                "proof": self.proof.wire() if self.proof else None,
            }
        )

    def as_text(self) -> str:
        found = self.capabilities
        width = max(map(len, self.hardware), default=0)
        lines = [f"  {name:<{width}}  {text}" for name, text in self.hardware.items()]
        lines += [f"  DISAGREE  {text}" for text in self.disagreements]
        lines += [
            f"  OUT OF SERVICE  {uuid}: {reason} ({_way_back(uuid, self.resting)})"
            for uuid, reason in self.cordons.items()
        ]
        lines += [f"  proof   {text}" for text in proof_lines(self.proof)]
        lines += [f"{found.executor} {found.version}, isolation {found.isolation}"]
        lines += [f"  holds   {name}" for name in found.verified]
        lines += [f"  FAILED  {text}" for text in found.failed]
        lines += [f"  not offered  {text}" for text in found.not_offered]
        return "\n".join(["this machine", *lines])


def _way_back(uuid: str, resting: Collection[str]) -> str:
    return "back by itself when it stays cool" if uuid in resting else f"torg-node uncordon {uuid}"
