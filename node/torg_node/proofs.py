"""Proofs of an operator's cheating, kept as files that anybody can check: `torg audit --proof FILE`."""

from __future__ import annotations

import logging
from pathlib import Path

from torg_protocol.caps import OverlapProof

log = logging.getLogger(__name__)


def publish(proof: OverlapProof, folder: Path) -> Path:
    """Writes it below `folder`, whole or not at all; safe to repeat. Publishing it further is the owner's choice."""
    first, second = proof.first.commitment, proof.second.commitment
    path = folder / f"overlap-{first.lease_id}-{second.lease_id}.json"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = path.with_suffix(".part")
    written.write_text(proof.model_dump_json(indent=2) + "\n")
    written.replace(path)
    log.error("vault %s was promised twice by %s: the proof is in %s", first.vault, proof.operator, path)
    return path
