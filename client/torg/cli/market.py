"""offers, login."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import click

from torg.cli.present import coin, narrow_table, not_shown, size
from torg.cli.session import Session, command
from torg.cli.terminal import columns
from torg.config import save_marketplace
from torg_protocol.api import MarketInfo, NodeView
from torg_protocol.quantities import format_cpu_millis, parse_size_bytes
from torg_protocol.states import Liveness, NodeState

_SPARE = ("region", "disk", "reference", "spot", "memory", "cpus")  # where a terminal is too narrow
_ORDERS: dict[str, Callable[[NodeView], Any]] = {
    "price": lambda node: (node.price_per_gpu_hour, node.node),
    "free": lambda node: (-(node.gpus_free or 0), -node.slots_free, node.price_per_gpu_hour),
    "memory": lambda node: (-node.memory_bytes, node.price_per_gpu_hour),
    "gpus": lambda node: (-node.gpus, node.price_per_gpu_hour),
    "class": lambda node: (node.gpu_class, node.price_per_gpu_hour),
}


@click.command()
@click.option(
    "--sort", "order", type=click.Choice(list(_ORDERS)), default="price", show_default=True, help="What comes first."
)
@click.option("--gpus", type=click.IntRange(0, 64), help="At least so many GPUs.", metavar="N")
@click.option("--gpu-class", metavar="TEXT", help="Only classes that contain this text.")
@click.option("--max-price", metavar="AMOUNT", help="Per GPU-hour at most.")
@click.option("--memory", metavar="SIZE", help='At least so much memory, for example "32GiB".')
@click.option(
    "--isolation",
    type=click.Choice(["sandbox", "container", "gvisor"]),
    help="Only nodes with this isolation verified.",
)
@click.option("--root", is_flag=True, help="Only nodes where a job may run as root of its container.")
@click.option("--region", metavar="TEXT", help="Only this region.")
@click.option("--spot", is_flag=True, help="Only nodes that take spot jobs; --max-price is of their spot price then.")
@click.option("--free", is_flag=True, help="Only nodes that could start a job now.")
@command
async def offers(session: Session, order: str, max_price: str | None, memory: str | None, **wanted: Any) -> None:
    """What nodes offer, cheapest first unless sorted otherwise. Needs no wallet."""
    async with session.visitor() as client:
        market, nodes, prices = await asyncio.gather(client.market(), client.offers(), client.prices())
    money = coin(market)
    reference = {item.gpu_class: item.price_per_gpu_hour for item in prices}
    price = None if max_price is None else money.parse(max_price, "--max-price")
    least_memory = 0 if memory is None else _size(memory)
    found = [node for node in sorted(nodes, key=_ORDERS[order]) if _fits(node, price, least_memory, wanted)]
    if not found:
        session.show([], f"none of {len(nodes)} offers fits" if nodes else "nobody offers anything here now")
        return
    rows = [
        (
            node.node[:8],
            f"{node.gpus} x {node.gpu_class}" if node.gpus else node.gpu_class,
            money.text(node.price_per_gpu_hour),
            "-" if node.spot_price_per_gpu_hour is None else money.text(node.spot_price_per_gpu_hour),
            money.text(reference.get(node.gpu_class)),
            _free(node),
            format_cpu_millis(node.cpu_millis),
            size(node.memory_bytes),
            size(node.disk_bytes),
            ",".join(node.isolation) + ("+root" if node.own_root else ""),
            node.region or "-",
            _state(node) + _out(node) + _behind(node, market),
        )
        for node in found
    ]
    headings = (
        "node",
        "class",
        "price/GPU-hour",
        "spot",
        "reference",
        "free",
        "cpus",
        "memory",
        "disk",
        "isolation",
        "region",
        "state",
    )
    answer = [{**node.wire(), "reference_price_per_gpu_hour": reference.get(node.gpu_class)} for node in found]
    text, left_out = narrow_table(headings, rows, columns(), _SPARE, "class")
    session.show(answer, text)
    if left_out and not session.as_json:
        session.hint(not_shown(left_out, columns(), "torg offers"))
    if any(node.gpus_out for node in found):
        session.hint("out: GPUs that are broken or too hot; torg-node doctor on that machine says why")
    if any(price is not None for price in reference.values()):
        session.hint("reference: what the class was worth in the newest minute's auction; jobs pay their node's price")


def _fits(node: NodeView, max_price: int | None, least_memory: int, wanted: dict[str, Any]) -> bool:
    return (
        (price := node.spot_price_per_gpu_hour if wanted["spot"] else node.price_per_gpu_hour) is not None
        and (max_price is None or price <= max_price)
        and node.memory_bytes >= least_memory
        and node.gpus >= (wanted["gpus"] or 0)
        and (wanted["gpu_class"] or "").lower() in node.gpu_class.lower()
        and (node.own_root or not wanted["root"])
        and (wanted["isolation"] is None or wanted["isolation"] in node.isolation)
        and (wanted["region"] is None or wanted["region"] == node.region)
        and (not wanted["free"] or (_state(node) == "ready" and _gpus_free(node) >= (wanted["gpus"] or 0)))
    )


def _state(node: NodeView) -> str:
    if node.state is NodeState.ACTIVE and node.liveness is Liveness.ALIVE:
        return "ready" if node.slots_free or node.gpus_free else "busy"
    return str(node.state) if node.state is not NodeState.ACTIVE else f"silent ({node.liveness})"


def _free(node: NodeView) -> str:
    """GPUs, where there are any, and slots for jobs without one."""
    slots = f"{node.slots_free}/{node.slots}"
    return slots if not node.gpus or node.gpus_free is None else f"{node.gpus_free}/{node.gpus} GPUs, {slots}"


def _gpus_free(node: NodeView) -> int:
    return node.gpus if node.gpus_free is None else node.gpus_free


def _out(node: NodeView) -> str:
    return f", {node.gpus_out} out" if node.gpus_out else ""


def _behind(node: NodeView, market: MarketInfo) -> str:
    """Jobs that ask for what came later are not for it (`torg quote` says which)."""
    return f", protocol {node.protocol_version}" if 0 < node.protocol_version < max(market.protocol_versions) else ""


def _size(text: str) -> int:
    from torg_protocol.errors import Invalid

    try:
        return parse_size_bytes(text)
    except ValueError as error:
        raise Invalid(str(error), code="size_invalid", field="--memory", value=text) from None


def _choose(ctx: click.Context, _: click.Parameter, url: str | None) -> None:
    if url is not None:
        ctx.obj["marketplace"] = url


@click.command()
@click.option(
    "--marketplace",
    metavar="URL",
    expose_value=False,
    callback=_choose,
    help="Address of the marketplace, like https://host; default: the one of before, or TORG_MARKETPLACE.",
)
@command
async def login(session: Session) -> None:
    """Choose the marketplace and pin its identity. Needs no wallet."""
    async with session.visitor() as client:
        info = await client.market()
    save_marketplace(session.config)
    session.show(info.wire(), f"{info.name} at {session.config.marketplace_url}\n  key {info.marketplace} (pinned)")
    if session.config.key_path.exists():
        session.hint("what is on offer:  torg offers")
    else:
        session.hint("now a wallet:  torg wallet new   (or take one over: torg wallet import FILE)")
