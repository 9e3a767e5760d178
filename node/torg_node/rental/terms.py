"""Whether this node takes a client's terms: what can be said without the chain and without the host's ledger. Pure."""

from __future__ import annotations

from torg_protocol.caps import SignedCap
from torg_protocol.errors import Conflict, Invalid
from torg_protocol.jobspec import JobSpec
from torg_protocol.rentals import RentalOffer, RentalTerms

_CLOCK_SKEW_MS = 300_000


def check_terms(terms: RentalTerms, cap: SignedCap, offer: RentalOffer, now_ms: int) -> None:
    """Raises Conflict with the first thing that does not fit the offer."""
    rate = terms.rate
    for is_wrong, code, name, value, hint in (
        (terms.node != offer.node, "wrong_node", "node", terms.node, f"this is {offer.node}"),
        (
            terms.price_per_gpu_hour < offer.price_per_gpu_hour,
            "price_too_low",
            "price_per_gpu_hour",
            terms.price_per_gpu_hour,
            f"the offer says {offer.price_per_gpu_hour}",
        ),
        (
            terms.interval_ms > offer.interval_ms,
            "interval_too_long",
            "interval_ms",
            terms.interval_ms,
            f"at most {offer.interval_ms}",
        ),
        (
            abs(now_ms - terms.agreed_at_ms) > _CLOCK_SKEW_MS,
            "terms_stale",
            "agreed_at_ms",
            terms.agreed_at_ms,
            "ask for the offer again; are both clocks right?",
        ),
        (
            cap.cap < min(rate.amount(rate.interval_ms), terms.max_amount),
            "cap_too_low",
            "cap",
            cap.cap,
            "the first cap covers one interval",
        ),
    ):
        if is_wrong:
            raise Conflict("the node does not take these terms", code=code, field=name, value=value, hint=hint)


def check_spec(spec: JobSpec, isolation: tuple[str, ...], *, own_root: bool) -> None:
    """Raises Invalid for what a rental does not give."""
    for is_wrong, name, value, hint in (
        (
            spec.verify.policy != "none",
            "verify",
            spec.verify.policy,
            "nobody stands between you and the node to verify",
        ),
        (spec.network != "none", "network", str(spec.network), "a rental's container has no network"),
        (spec.resources.is_share, "resources.gpu_fraction", "", "a rental has its GPU to itself"),
        (bool(spec.tasks), "tasks", len(spec.tasks), "a rental runs one container"),
        (bool(spec.ports), "ports", len(spec.ports), "a rental serves no ports"),
        (bool(spec.volumes), "volumes", ", ".join(spec.volumes), "a rental has no store that could keep them"),
        (spec.sealed is not None, "sealed", "", "a rental's workspace goes to the node itself and to nobody else"),
        (spec.secrets is not None, "secrets", "", "a rental opens no secrets"),
        (bool(spec.registries), "registries", ", ".join(spec.registries), "a rental opens no secrets"),
        (spec.root and not own_root, "root", "true", "this node gives no job a root of its own"),
        (spec.isolation not in isolation, "isolation", spec.isolation, f"this node has {', '.join(isolation)}"),
    ):
        if is_wrong:
            raise Invalid("a rental does not give this", code="rental_unsupported", field=name, value=value, hint=hint)
