"""What the marketplace thinks of this node, and why: for its owner, asked of the marketplace."""

from __future__ import annotations

import time

import httpx

from torg_protocol.api import NodeReputation
from torg_protocol.errors import NotFound, Unavailable

_WITHIN_S = 15.0


def fetch_reputation(marketplace_url: str, node: str) -> NodeReputation:
    """Raises NotFound `node_unknown` before the node has ever connected, Unavailable when the marketplace does not answer as one."""
    try:
        answer = httpx.get(f"{marketplace_url}/v1/nodes/{node}/reputation", timeout=_WITHIN_S)
    except httpx.HTTPError as error:
        raise Unavailable(
            f"the marketplace does not answer: {error}",
            code="marketplace_unreachable",
            field="marketplace_url",
            value=marketplace_url,
            hint="is it running? the address is in config.toml",
        ) from error
    if answer.status_code == 404:
        raise NotFound(
            "the marketplace does not know this node yet",
            code="node_unknown",
            field="node",
            value=node,
            hint="it does once the node has connected: torg-node start",
        )
    if answer.is_error:
        raise Unavailable(
            f"the marketplace answered {answer.status_code} {answer.reason_phrase}",
            code="reputation_unavailable",
            field="marketplace_url",
            value=marketplace_url,
            hint="try again later",
        )
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
