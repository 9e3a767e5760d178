"""`torg-node`: init, start, status, settle, doctor, pause, resume, cache, uncordon."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from solders.pubkey import Pubkey

from torg_chain.rpc import ChainClient
from torg_chain.wallet import load_keypair
from torg_host.tracing import export_to
from torg_node import owner_commands
from torg_node.agent import Agent
from torg_node.allocation import Capacity
from torg_node.cache_command import add_cache_options, cache_command
from torg_node.clock import SteadyClock, wall_ms
from torg_node.command_line import COMMAND, CommandLine
from torg_node.doctor import Findings
from torg_node.executors.choose import choose_executor
from torg_node.executors.port import Capabilities, Executor
from torg_node.executors.probes import check_walls, with_egress, with_own_root
from torg_node.hardware.detect import all_told, open_lent
from torg_node.hardware.gpus import GpuFacts, GpuLibrary
from torg_node.hardware.health import KernelLog
from torg_node.hardware.heat import HeatRule
from torg_node.hardware.inventory import capacity_of, take_inventory
from torg_node.hardware.rapl import Rapl
from torg_node.hardware.sensors import Sensors
from torg_node.hardware.survey import describe, disagreements, not_here
from torg_node.init_options import add_init_options, full_path
from torg_node.journal import Journal
from torg_node.logs import LogFormat, set_up_logging
from torg_node.money import land_orders, look_at_captures
from torg_node.owner import DRAIN_FACT
from torg_node.proving import kept_status
from torg_node.questions import answers_of, asker
from torg_node.reputation import as_text, fetch_reputation
from torg_node.reservation import Reservations
from torg_node.self_check import as_json as checks_as_json
from torg_node.self_check import as_text as checks_as_text
from torg_node.self_check import self_check
from torg_node.settings import Settings, load_settings
from torg_node.setup import DEFAULT_RENTAL_ADDRESS, check_is_new, initialise
from torg_node.sole_agent import be_the_only_agent
from torg_node.status import read_status
from torg_node.sweep_command import confirm_plan, plan_of
from torg_node.update import say_ready
from torg_protocol.errors import TorgError
from torg_protocol.money import format_amount
from torg_protocol.offers import Inventory
from torg_protocol.role import VERSION_HELP, VERSION_OPTION, release
from torg_protocol.states import LeaseState


def main() -> None:
    arguments = _parser().parse_args()
    try:
        sys.exit(_run(arguments))
    except TorgError as error:
        sys.exit(f"torg-node: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _run(arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "init":
            return _init(arguments)
        case "start":
            return _start_alone(arguments)
        case "status":
            return _status(arguments)
        case "settle":
            return asyncio.run(_settle(load_settings(arguments.data), arguments.rpc_url, as_json=arguments.json))
        case "cache":
            settings = load_settings(arguments.data)
            label = str(load_keypair(settings.key_path).pubkey())
            _print(asyncio.run(cache_command(settings, arguments, label)))
            return 0
        case "reputation":
            return _reputation(arguments)
        case "pause" | "resume":
            return _pause(load_settings(arguments.data), paused=arguments.command == "pause")
        case name if name in owner_commands.COMMANDS:
            return owner_commands.run(arguments, _print)
        case "uncordon":
            return _uncordon(load_settings(arguments.data), arguments.gpu)
        case "self-check":
            return asyncio.run(_self_check(load_settings(arguments.data), as_json=arguments.json))
        case _:
            return asyncio.run(_doctor(load_settings(arguments.data), as_json=arguments.json))


def _init(arguments: argparse.Namespace) -> int:
    check_is_new(arguments.data)
    answers = answers_of(arguments, asker(arguments), lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201
    plan = plan_of(arguments, answers.market.network.decimals)
    settings = initialise(
        arguments.data,
        answers.market,
        price=answers.price,
        payout=answers.payout,
        slots=arguments.slots,
        executor=arguments.executor,
        max_unpaid=arguments.max_unpaid,
        engine_socket=arguments.engine_socket,
        gpus=tuple(arguments.gpus or ()),
        reservations_path=arguments.reservations,
        egress=arguments.egress,
        rental_address=arguments.rental_address or (None if answers.market.url else DEFAULT_RENTAL_ADDRESS),
        rental_interval_s=arguments.rental_interval,
        rules=answers.rules,
        spot_price=arguments.spot_price,
        sweep=plan,
    )
    node = str(load_keypair(settings.key_path).pubkey())
    if plan is not None:  # named on the command line, by whoever may name it
        confirm_plan(settings, plan)
    if settings.gpus and (missing := not_here(settings.gpus, all_told())) is not None:
        print(missing, file=sys.stderr, flush=True)  # noqa: T201
    made = {"node": node, "payout_address": settings.payout_address, "data": str(settings.data)}
    if arguments.json:
        _print(json.dumps(made))
        return 0
    price = format_amount(settings.price_per_gpu_hour, settings.network.decimals)
    own = (
        ""
        if settings.payout_address != node
        else "  (this node's own key: torg-node sweep moves it, --payout WALLET avoids it)"
    )
    _print(f"node {node} is ready: torg-node start --data {settings.data}")
    _print(
        f"  asks     {price} per GPU-hour (per slot and hour without one)\n  paid to  {settings.payout_address}{own}"
    )
    return 0


def _start_alone(arguments: argparse.Namespace) -> int:
    settings = load_settings(arguments.data)
    release = be_the_only_agent(settings.data)
    try:
        return asyncio.run(_start(settings, stop_leases=arguments.stop_leases, log_format=arguments.log_format))
    finally:
        release()


async def _start(settings: Settings, *, stop_leases: bool, log_format: LogFormat) -> int:
    """SIGTERM or Ctrl-C detaches: running containers go on, and the next start takes them over."""
    set_up_logging(log_format)
    keypair = load_keypair(settings.key_path)
    stop_traces = _send_traces(settings, str(keypair.pubkey()))
    settings.leases_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    journal = Journal(settings.journal_path)
    clock = SteadyClock(journal)
    library, units = open_lent(settings.gpus)
    executor, capabilities = await _executor(settings, units, clock.now_ms)
    if capabilities.failed:  # once more: a machine under load may be too slow for a probe
        capabilities = await executor.probe()
    capabilities = await _with_extras(settings, executor, capabilities, units)
    for failure in capabilities.failed:
        logging.getLogger(__name__).warning("a probe failed: %s", failure)
    for lacking in capabilities.not_offered:
        logging.getLogger(__name__).warning("not offered: %s", lacking)
    check_walls(capabilities)
    lent = units if capabilities.gpu else ()
    journal.set_fact("agent_pid", str(os.getpid()))
    for doubt in disagreements(units, wanted=settings.gpus):
        logging.getLogger(__name__).warning("hardware: %s", doubt)
    inventory = take_inventory(settings.leases_path, settings.offered_disk_bytes, lent)
    sensors, reservations = _sensors(settings, library, units), _ledger(settings, inventory, lent)
    agent = Agent(settings, keypair, journal, executor, capabilities, inventory, reservations, sensors, clock)
    stop_metrics = _serve_metrics(settings, agent, reservations.capacity)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    running = asyncio.create_task(agent.run())
    stopping = asyncio.create_task(stop.wait())
    connecting = asyncio.create_task(agent.connected.wait())
    await asyncio.wait({running, stopping, connecting}, return_when=asyncio.FIRST_COMPLETED)
    if connecting.done():
        say_ready(journal)
        ready = {
            "node": str(keypair.pubkey()),
            "payout_address": settings.payout_address,
            "executor": executor.name,
            "isolation": capabilities.isolation,
            "gpu_class": inventory.gpu_class,
            "rental_address": agent.rental.address if agent.rental else None,
        }
        _print(json.dumps(ready))
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if stop_leases and not running.done():
        await agent.stop_leases()
    for task in (running, stopping, connecting):
        task.cancel()
    failed = (await asyncio.gather(running, return_exceptions=True))[0]
    await executor.close()
    await asyncio.to_thread(stop_metrics)
    await asyncio.to_thread(stop_traces)
    sensors.close()
    reservations.close()
    journal.close()
    if isinstance(failed, BaseExceptionGroup):
        raise failed.exceptions[0]
    return 0


async def _with_extras(
    settings: Settings, executor: Executor, found: Capabilities, units: Sequence[GpuFacts]
) -> Capabilities:
    """What its owner lends beside the walls, each tried before it is offered; and GPUs that no container could have."""
    if units and not executor.gives_gpus:
        lacking = (
            f"GPUs: the {executor.name} executor cannot pass them on; install Docker and the NVIDIA container toolkit"
        )
        found = replace(found, not_offered=(*found.not_offered, lacking))
    elif units and not found.gpu:
        lacking = "GPUs: the container engine did not give them to a probe (see what failed); install the NVIDIA container toolkit, or look at its CDI specification"
        found = replace(found, not_offered=(*found.not_offered, lacking))
    if settings.egress != "none":
        found = await with_egress(executor, found)
    return await with_own_root(executor, found) if settings.own_root else found


def _serve_metrics(settings: Settings, agent: Agent, capacity: Capacity) -> Callable[[], None]:
    """A port that is taken costs the owner the metrics, not the node."""
    if settings.metrics_port is None:
        return lambda: None
    from torg_node.metrics import serve_metrics

    node = str(load_keypair(settings.key_path).pubkey())
    try:
        port, stop = serve_metrics(settings, node, capacity, lambda: agent.is_connected, settings.metrics_port)
    except OSError as error:
        logging.getLogger(__name__).warning("no metrics on port %d: %s", settings.metrics_port, error.strerror)
        return lambda: None
    logging.getLogger(__name__).info("metrics: http://127.0.0.1:%d/metrics", port)
    return stop


def _send_traces(settings: Settings, node: str) -> Callable[[], None]:
    """Raises Invalid `otel_missing`."""
    if settings.otlp_endpoint is None:
        return lambda: None
    return export_to(settings.otlp_endpoint, "torg-node", node, field="otlp_endpoint")


def _status(arguments: argparse.Namespace) -> int:
    settings = load_settings(arguments.data)
    status = read_status(settings, str(load_keypair(settings.key_path).pubkey()))
    _print(json.dumps(status.as_json()) if arguments.json else status.as_text(settings.network.decimals))
    return 0


async def _settle(settings: Settings, rpc_url: str | None, *, as_json: bool) -> int:
    """Lands what is held, now. 0 when all of it was landed, or nothing was there to land."""
    keypair, journal = load_keypair(settings.key_path), Journal(settings.journal_path)
    network = settings.network.model_copy(update={"rpc_url": rpc_url or settings.network.rpc_url})
    try:
        async with ChainClient(network.rpc_url) as chain:
            payout = Pubkey.from_string(settings.payout_address)
            await look_at_captures(chain, settings, journal, now_ms=wall_ms())
            found = await land_orders(chain, network, journal, payout=payout, fee_payer=keypair)
            await look_at_captures(chain, settings, journal, now_ms=wall_ms())
    finally:
        journal.close()
    if as_json:
        _print(json.dumps([asdict(item) for item in found]))
    else:
        lines = [
            f"{item.vault}  {format_amount(item.amount, network.decimals)}  {item.signature or 'NOT LANDED: ' + item.detail}"
            for item in found
        ]
        _print("\n".join(lines) or "no order is held that still could be landed")
    return 0 if all(item.signature for item in found) else 1


async def _doctor(settings: Settings, *, as_json: bool) -> int:
    _, units = open_lent(settings.gpus)
    executor, capabilities = await _executor(settings, units)
    lent = units if capabilities.gpu else ()
    capabilities = await _with_extras(settings, executor, capabilities, units)
    await executor.close()
    inventory = take_inventory(settings.data, settings.offered_disk_bytes, lent)
    ledger = _ledger(settings, inventory, lent)
    journal = Journal(settings.journal_path)
    hardware, doubts = describe(inventory, units), tuple(disagreements(units, wanted=settings.gpus))
    findings = Findings(capabilities, hardware, doubts, ledger.cordons(), ledger.expected_back(), kept_status(journal))
    journal.close()
    ledger.close()
    _print(findings.as_json() if as_json else findings.as_text())
    return 0 if findings.is_sound else 1


async def _self_check(settings: Settings, *, as_json: bool) -> int:
    """Beside a running agent, which goes on."""
    trouble: TorgError | None = None
    isolation = ""
    try:
        executor, capabilities = await _executor(settings)
        await executor.close()
        check_walls(capabilities)
        isolation = f"{capabilities.executor} {capabilities.version}"
    except TorgError as error:
        trouble = error

    def walls() -> str:
        if trouble is not None:
            raise trouble
        return isolation

    checks = await asyncio.to_thread(self_check, settings, walls)
    _print(checks_as_json(checks) if as_json else checks_as_text(checks))
    return 1 if any(check.problem for check in checks) else 0


def _reputation(arguments: argparse.Namespace) -> int:
    settings = load_settings(arguments.data)
    found = fetch_reputation(settings.marketplace_url, str(load_keypair(settings.key_path).pubkey()))
    _print(found.model_dump_json() if arguments.json else as_text(found))
    return 0


def _pause(settings: Settings, *, paused: bool) -> int:
    """Works beside a running agent, which says so with its next heartbeat and declines until then. Safe to repeat."""
    journal = Journal(settings.journal_path)
    changed = journal.set_paused(paused)
    if not paused and journal.fact(DRAIN_FACT) == "yes":
        journal.set_fact(DRAIN_FACT, "no")
        changed = True
    running = sum(entry.state in {LeaseState.RUNNING, LeaseState.STOPPING} for entry in journal.open_leases())
    journal.close()
    state = f"paused; {running} running leases go on to their end" if paused else "takes leases"
    _print(state if changed else f"{state} (nothing changed)")
    return 0


def _uncordon(settings: Settings, gpu_uuid: str) -> int:
    ledger = Reservations(settings.host_ledger_path, "", Capacity((), (), 0, 0, 0, 0))
    known = ledger.uncordon(gpu_uuid)
    ledger.close()
    _print(f"{gpu_uuid} is back in service" if known else f"{gpu_uuid} was not out of service")
    return 0 if known else 1


def _sensors(settings: Settings, library: GpuLibrary | None, units: Sequence[GpuFacts]) -> Sensors:
    heat = HeatRule(settings.heat_rest_after_s, settings.heat_back_after_s)
    return Sensors(library, units, KernelLog(), Rapl(), heat)


def _ledger(settings: Settings, inventory: Inventory, units: Sequence[GpuFacts]) -> Reservations:
    capacity = capacity_of(inventory, units, settings.slots, gpu_slices=settings.gpu_slices)
    return Reservations(settings.host_ledger_path, str(load_keypair(settings.key_path).pubkey()), capacity)


async def _executor(
    settings: Settings, units: Sequence[GpuFacts] = (), now_ms: Callable[[], int] = wall_ms
) -> tuple[Executor, Capabilities]:
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    node_label = str(load_keypair(settings.key_path).pubkey())
    chosen = await choose_executor(
        settings.executor,
        settings.data / "containers",
        node_label=node_label,
        docker_socket=settings.engine_socket,
        docker_runtime=settings.container_runtime,
        local_images=settings.local_images,
        gpu_uuids=[unit.info.uuid for unit in units],
        gpu_devices={unit.info.uuid: unit.device_nodes for unit in units if unit.device_nodes},
        now_ms=now_ms,
    )
    logging.getLogger(__name__).info("executor %s: %s", chosen.executor.name, chosen.why)
    return chosen.executor, await chosen.executor.probe()


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="torg-node",
        description="Earn with your machine: run leased jobs in containers.  First steps: init, doctor, start.",
    )
    parser.add_argument(VERSION_OPTION, action="version", version=release("torg-node"), help=VERSION_HELP)
    commands = parser.add_subparsers(dest="command", required=True, metavar=COMMAND, title="commands")
    for name, text in (
        ("init", "make a node: key, pinned marketplace, config"),
        ("start", "run the agent in the foreground"),
        ("status", "leases, earnings and what is not paid yet"),
        ("settle", "land the orders that this node holds; needs no marketplace, only an RPC node of the chain"),
        ("reputation", "what the marketplace thinks of this node, and why"),
        ("pause", "take no further leases; those that run go on"),
        ("resume", "take leases again"),
        ("cache", "inputs and images that are kept for the next job"),
        ("uncordon", "put a GPU back into service"),
        ("self-check", "whether this release can take over this node; for updates, beside the running agent"),
        ("doctor", "what this machine is, and what its isolation really keeps"),
        *owner_commands.COMMANDS.items(),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument(
            "--data", type=full_path, default=Path.home() / ".torg-node", help="folder of key, config and journal"
        )
        if name != "start":
            command.add_argument("--json", action="store_true")
        if name == "start":
            command.add_argument(
                "--stop-leases", action="store_true", help="at the end, end running leases instead of leaving them"
            )
        if name == "settle":
            command.add_argument("--rpc-url", help="an RPC node of the chain; default: the one in the config")
        if name == "start":
            command.add_argument("--log-format", choices=["text", "json"], default="text")
        if name == "cache":
            add_cache_options(command)
        owner_commands.add_options(name, command)
        if name == "uncordon":
            command.add_argument("gpu", help="its UUID, as torg-node doctor names it")
        if name == "init":
            add_init_options(command)
    return parser


def _print(text: str) -> None:
    try:
        print(text, flush=True)  # noqa: T201 - a command's answer
    except BrokenPipeError:  # `torg-node status | head -1`: whoever read has read enough, and an agent goes on without
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
