"""What the marketplace thinks of this node, and why: for its owner, asked of the marketplace."""

from __future__ import annotations

import time

import httpx

from torg_protocol.api import NodeReputation
from torg_protocol.errors import Unavailable

_WITHIN_S = 15.0


def fetch_reputation(marketplace_url: str, node: str) -> NodeReputation:
    """Raises Unavailable when the marketplace does not answer, or does not know this node."""
    try:
        answer = httpx.get(f"{marketplace_url}/v1/nodes/{node}/reputation", timeout=_WITHIN_S)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise Unavailable(
            f"the marketplace tells nothing of this node: {error}",
            code="reputation_unavailable",
            field="marketplace",
            value=marketplace_url,
            hint="it knows a node once it has connected: torg-node start",
        ) from error
    return NodeReputation.model_validate_json(answer.content)


def as_text(found: NodeReputation) -> str:
    kept = f"{found.leases_kept} leases seen through, {found.leases_broken} broken, as of late"
    lines = [f"reputation {found.permille / 10:.1f} % ({kept}); hardware {found.proof.state}"]
    for change in found.changes:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(change.at_ms / 1000))
        lines.append(
            f"  {at}  {change.was_permille / 10:.1f} -> {change.now_permille / 10:.1f} %  {change.because}  {change.lease_id}"
        )
    return "\n".join(lines)
