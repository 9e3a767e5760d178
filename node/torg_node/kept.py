"""What the marketplace says and the journal keeps: how far it has heard this node, and what is owed to whom."""

from __future__ import annotations

import logging
from typing import assert_never

from torg_node.journal import Journal
from torg_node.settings import Settings
from torg_protocol.messages import Acknowledge, OrderIssued, RefundIssued, UsageCountersigned

log = logging.getLogger(__name__)


def keep(
    message: Acknowledge | UsageCountersigned | OrderIssued | RefundIssued,
    journal: Journal,
    settings: Settings,
    now_ms: int,
) -> None:
    """Safe to repeat. Raises sqlite3.OperationalError."""
    match message:
        case Acknowledge():
            journal.acknowledge(message.lease_id, message.sequence)
        case UsageCountersigned():
            journal.add_usage(message.usage)
        case OrderIssued():
            _keep_order(message, journal, settings, now_ms)
        case RefundIssued():
            _keep_refund(message, journal, settings)
        case _:
            assert_never(message)


def _keep_refund(message: RefundIssued, journal: Journal, settings: Settings) -> None:
    """The marketplace's signed word that part of a lease's price went back: this node is owed so much less."""
    refund = message.refund.refund
    if problems := message.refund.problems(marketplace=settings.marketplace_key):
        log.error("refund %s does not hold: %s", refund.refund_id, "; ".join(problems))
        return
    if journal.lease(refund.lease_id) is not None:
        journal.add_refund(message.refund)


def _keep_order(message: OrderIssued, journal: Journal, settings: Settings, now_ms: int) -> None:
    """What the marketplace is about to land anyway; held in case it never does."""
    order = message.order
    if problems := order.problems(settings.network.chain_id):
        log.error("an order of vault %s does not hold: %s", order.vault, "; ".join(problems))
        return
    journal.keep_order(order, now_ms)
