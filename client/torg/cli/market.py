"""offers, login."""

from __future__ import annotations

import click

from torg.cli.session import Session, command, money, table
from torg.config import save_marketplace


@click.command()
@command
async def offers(session: Session) -> None:
    """What nodes offer."""
    async with session.client() as client:
        decimals = (await client.market()).chain.decimals
        nodes = await client.offers()
    rows = [
        (
            node.node[:8],
            f"{node.gpus} x {node.gpu_class}" if node.gpus else node.gpu_class,
            money(node.price_per_gpu_hour, decimals),
            f"{node.slots_free}/{node.slots}",
            f"{node.cpu_millis // 1000}",
            f"{node.memory_bytes >> 30} GiB",
            ",".join(node.isolation),
            f"{node.state}, {node.liveness}",
        )
        for node in nodes
    ]
    session.show(
        [node.wire() for node in nodes],
        table(("node", "class", "price/GPU-hour", "free", "cpus", "memory", "isolation", "state"), rows),
    )


@click.command()
@command
async def login(session: Session) -> None:
    """Choose the marketplace (with --marketplace) and pin its identity."""
    async with session.client() as client:
        info = await client.market()
    save_marketplace(session.config)
    session.show(info.wire(), f"{info.name} at {session.config.marketplace_url}\n  key {info.marketplace} (pinned)")
