"""`make demo`: a real training job goes all the way, and its node is killed on the way.

Real parts, real processes, different keys: a localnet (the Solana runtime), a marketplace, two nodes. A convolutional net is trained on
handwritten digits in a hardened container; the first node is killed mid-training; the job resumes from its checkpoint on the second; the
marketplace recomputes the accuracy; the vault pays on chain; the receipt is verified offline; the client gets the rest back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from scripts.demo_report import closing_table, verify_offline
from scripts.market_processes import ProcessFailed, Running, call, remove_containers, script, start

ROOT = Path(__file__).resolve().parents[1]
HEARTBEAT, GRACE = "2s", "8s"
EPOCHS = 45
KILL_AFTER_CHECKPOINTS = 3
KILL_EPOCHS_LATER = 3  # so that some work is lost, and not billed
TRAINING_TIMEOUT_S = 420.0  # some ten times what it takes


@dataclass
class Market:
    """What the demo has started, and what it learns on the way."""

    console: Console
    executor: str
    home: Path
    url: str = ""
    marketplace_key: str = ""
    rpc_url: str = ""
    nodes: dict[str, Running] = field(default_factory=dict)  # by public key
    node_names: dict[str, str] = field(default_factory=dict)
    step_seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, title: str) -> Any:
        self.console.print(f"[bold]▸ {title}[/bold]")
        began = time.monotonic()
        yield
        self.step_seconds[title] = time.monotonic() - began
        self.console.print(f"  [dim]{self.step_seconds[title]:.1f} s[/dim]")

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False, soft_wrap=True)

    async def torg(self, *arguments: str) -> Any:
        """The client's CLI with --json, as a user's terminal would run it."""
        _, out = await call(
            [script("torg"), "--json", "--home", str(self.home / "client"), "--marketplace", self.url, *arguments]
        )
        return json.loads(out.splitlines()[-1])

    def name_of(self, node: str) -> str:
        return self.node_names.get(node, node[:8])


async def main(arguments: argparse.Namespace) -> None:
    console = Console(force_terminal=False if arguments.headless else None, width=140 if arguments.headless else None)
    market = Market(console, arguments.executor, arguments.home.resolve())
    empty(market.home)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(clean_up_nodes, market.home)
        if arguments.executor == "docker":
            await stack.enter_async_context(engine(market))
        with market.step("start a localnet, a marketplace and two nodes, each a process with its own key"):
            await start_market(market, stack)
        with market.step("client: wallet, test tokens, a vault with a deposit of 5 tUSD on chain"):
            await fund_client(market)
        before = await balances(market)
        with market.step("quote, then submit: train a CNN on handwritten digits"):
            job_id = await submit_training(market)
        with market.step("train, and kill the first node on the way"):
            try:
                async with asyncio.timeout(TRAINING_TIMEOUT_S):
                    await follow_and_kill(market, job_id)
            except TimeoutError as error:
                raise ProcessFailed(
                    f"the job did not end in {TRAINING_TIMEOUT_S:.0f} s: see {market.home}/logs"
                ) from error
        with market.step("a second job: torg run -- python -c ..."):
            await run_one_liner(market)
        with market.step("settle on chain"):
            settlements = await wait_for_settlement(market)
        with market.step("verify the receipts in a fresh process, without marketplace or network"):
            receipts = await verify_offline(market.torg, job_id, market.home, market.marketplace_key)
            market.say(f"{len(receipts)} receipts hold; with one byte changed they do not")
        with market.step("close the vault: the rest goes back to the client"):
            await close_vault(market)
        after = await balances(market)
        job = await market.torg("show", job_id)
        closing_table(
            market.console, before=before, after=after, job=job, settlements=settlements, names=market.node_names
        )
        for title, seconds in market.step_seconds.items():
            market.console.print(f"  {seconds:6.1f} s  {title}", style="dim", highlight=False)
    console.print("everything that the demo started is stopped")


async def start_market(market: Market, stack: AsyncExitStack) -> None:
    async def daemon(name: str, *argv: str) -> Running:
        running = await start(name, argv, market.home / "logs" / f"{name}.log")
        stack.push_async_callback(running.stop)
        return running

    localnet = await daemon(
        "localnet", script("torg-localnet"), "--data", str(market.home / "localnet"), "--port", "0", "--slot-ms", "200"
    )
    market.rpc_url = localnet.ready["rpc_url"]
    data = str(market.home / "marketplace")
    await call([script("torg-marketplace"), "init", "--data", data, "--json"])
    serve = ["serve", "--data", data, "--port", "0", "--rpc-url", market.rpc_url]
    serve += ["--heartbeat", HEARTBEAT, "--settlement-age", "2s"]
    marketplace = await daemon("marketplace", script("torg-marketplace"), *serve)
    market.url, market.marketplace_key = marketplace.ready["url"], marketplace.ready["marketplace"]
    prices = {"node A": "0.90", "node B": "1.20"}
    try:
        async with asyncio.TaskGroup() as starting:
            nodes = {name: starting.create_task(start_node(market, name, prices[name], daemon)) for name in prices}
    except ExceptionGroup as group:  # the first failure says why; the other node was stopped because of it
        raise group.exceptions[0] from group
    for name, task in nodes.items():
        node, ready = task.result(), task.result().ready
        market.nodes[ready["node"]], market.node_names[ready["node"]] = node, name
        market.say(
            f"{name}: {prices[name]} tUSD per hour, executor {ready['executor']}, verified isolation {ready['isolation']}"
        )
    market.say(
        f"the demo shortens two times: heartbeat {HEARTBEAT} (normally 10 s), lease grace {GRACE} (normally 5 min)"
    )


async def start_node(market: Market, name: str, price: str, daemon: Callable[..., Awaitable[Running]]) -> Running:
    folder = market.home / name.replace(" ", "-")
    init = ["init", "--data", str(folder), "--marketplace", market.url, "--price", price]
    init += ["--executor", market.executor, "--yes", "--json"]
    init += ["--engine-socket", str(market.home / "engine/docker.sock")] if market.executor == "docker" else []
    await call([script("torg-node"), *init])
    return await daemon(folder.name, script("torg-node"), "start", "--data", str(folder))


async def fund_client(market: Market) -> None:
    await market.torg("wallet", "new")
    await market.torg("login")
    await market.torg("wallet", "faucet", "--amount", "20")
    vault = await market.torg("vault", "open", "--deposit", "5")
    market.say(f"vault {vault['vault']}, grace {vault['grace_s']} s")


async def submit_training(market: Market) -> str:
    spec = yaml.safe_load((ROOT / "workloads/cnn/job.yaml").read_text())
    spec["workspace"] = str(ROOT / "workloads/cnn")
    spec["command"] = [*spec["command"][:2], "--epochs", str(EPOCHS)]
    spec["lease_grace"] = GRACE
    file = market.home / "job.yaml"
    file.write_text(yaml.safe_dump(spec))
    quote = await market.torg("quote", str(file))
    market.say(
        f"{quote['nodes_fitting']} of {quote['nodes_considered']} nodes can run it; never more than {quote['max_amount'] / 1e6:.6f} tUSD"
    )
    job = await market.torg("submit", str(file))
    market.say(f"{job['job_id']}: {quote['max_amount'] / 1e6:.6f} tUSD held, by a cap that the client signed")
    return str(job["job_id"])


async def follow_and_kill(market: Market, job_id: str) -> None:
    """Prints the job's story; after a few safe checkpoints kills its node, agent and container, without warning."""
    checkpoints, epoch, kill_at_epoch, killed, node, printed, newest = 0, 0, None, False, "", -1, ""
    async for event in events(market, job_id):
        data = event["data"]
        match event["kind"]:
            case "lease":
                node = data.get("node", node)
                market.say(
                    f"attempt {data.get('attempt')} on {market.name_of(node)}: {data.get('state')} {data.get('reason') or ''}".rstrip()
                )
            case "progress":
                epoch = int(data.get("epoch", 0))
                if epoch // 10 != printed:
                    printed = epoch // 10
                    market.say(
                        f"  epoch {epoch}: loss {data.get('loss', 0):.4f}, accuracy {data.get('accuracy', 0):.4f}"
                    )
                if kill_at_epoch is not None and epoch >= kill_at_epoch and not killed:
                    killed = True
                    market.say(
                        f"[bold red]{newest} is safe, and work goes on: now {market.name_of(node)} is killed, agent and container[/bold red]"
                    )
                    await market.nodes[node].kill()
                    await kill_containers(market, market.node_names[node])
            case "checkpoint":
                checkpoints, newest = checkpoints + 1, f"checkpoint {data.get('name')}"
                if checkpoints == KILL_AFTER_CHECKPOINTS:
                    kill_at_epoch = epoch + KILL_EPOCHS_LATER
            case "job":
                market.say(f"job: {data.get('state')} {data.get('reason') or ''}".rstrip())
    job = await market.torg("wait", job_id)
    if job["state"] != "succeeded" or not killed or len(job["leases"]) < 2:
        raise ProcessFailed(
            f"the job did not take the planned way: {job['state']}, {len(job['leases'])} attempts, {job['detail']}"
        )
    await market.torg("pull", job_id, "-o", str(market.home / "results"))
    metrics = json.loads((market.home / "results/metrics.json").read_text())
    market.say(
        f"results in {market.home.name}/results: model.safetensors, loss.png, accuracy {metrics['accuracy']:.4f} on held-out digits"
    )


def empty(home: Path) -> None:
    """Raises ProcessFailed rather than delete a folder that no demo made."""
    made_here = home / ".torg-demo"
    if home.exists() and any(home.iterdir()) and not made_here.exists():
        raise ProcessFailed(f"{home} is not empty, and no demo made it: name another folder with --home, or empty it")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    made_here.touch()


async def clean_up_nodes(home: Path) -> None:
    """The killed node never comes back to clean up after itself, as it would in life."""
    for folder in home.glob("node-*"):
        await remove_containers(folder)


async def kill_containers(market: Market, name: str) -> None:
    """What a power cut does: the containers of that node are gone as well, and so is whatever watched over them."""
    folder = str(market.home / name.replace(" ", "-"))
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if folder.encode() in entry.read_bytes():
                os.kill(int(entry.parent.name), signal.SIGKILL)
    if market.executor == "docker":
        docker = ["docker", "-H", f"unix://{market.home}/engine/docker.sock"]
        _, listed = await call([*docker, "ps", "-q"])
        if listed.split():
            await call([*docker, "kill", *listed.split()], check=False)


async def events(market: Market, job_id: str) -> AsyncIterator[dict[str, Any]]:
    argv = [
        script("torg"),
        "--json",
        "--home",
        str(market.home / "client"),
        "--marketplace",
        market.url,
        "logs",
        "-f",
        job_id,
    ]
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, limit=1 << 22
    )
    stdout = process.stdout or asyncio.StreamReader()
    try:
        async for line in stdout:
            event = json.loads(line)
            if "kind" in event:
                yield event
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        await process.wait()


async def run_one_liner(market: Market) -> None:
    code = "import sys, platform; print('hello from', platform.system(), 'with python', sys.version.split()[0])"
    argv = [script("torg"), "--home", str(market.home / "client"), "--marketplace", market.url]
    _, out = await call(
        [
            *argv,
            "run",
            "--no-workspace",
            "--max-duration",
            "2m",
            "--memory",
            "256MiB",
            "--disk",
            "64MiB",
            "--",
            "python",
            "-c",
            code,
        ]
    )
    market.say(out.strip().splitlines()[-1])


async def wait_for_settlement(market: Market) -> list[dict[str, Any]]:
    status = await market.torg("vault", "status")
    deadline = time.monotonic() + 60
    while status["unsettled"] > 0 or status["open_maximum"] > 0:
        if time.monotonic() > deadline:
            raise ProcessFailed(f"not settled in time: {status}")
        await asyncio.sleep(0.3)
        status = await market.torg("vault", "status")
    settlements: list[dict[str, Any]] = await market.torg("vault", "settlements")
    for item in settlements:
        market.say(f"capture {item['state']}: {item['amount'] / 1e6:.6f} tUSD in one transaction {item['signature']}")
    return settlements


async def close_vault(market: Market) -> None:
    await market.torg("vault", "close")
    market.say("close started; an hour of grace follows, in which everybody who earned can still be paid")
    market.say("the localnet's clock is moved ahead by that hour (only a localnet can do that)")
    for method, amount in (("torg_advance_slots", 1600), ("torg_advance_clock", 3700)):
        await localnet(market, method, amount)
    await market.torg("vault", "close")


async def localnet(market: Market, method: str, amount: int) -> None:
    from torg_chain.rpc import ChainClient

    async with ChainClient(market.rpc_url) as chain:
        await chain.localnet(method, [amount])


async def balances(market: Market) -> dict[str, int]:
    """What each party has on chain, in base units: client wallet and vault, payout addresses of the nodes, operator's fee account."""
    from solders.pubkey import Pubkey

    from torg_chain.rpc import ChainClient

    wallet, info = await market.torg("wallet", "show"), await market.torg("login")
    found = {"client's wallet": int(wallet["tokens"])}
    async with ChainClient(market.rpc_url) as chain:
        mint = Pubkey.from_string(info["chain"]["mint"])
        operator = await chain.operator_config(Pubkey.from_string(info["chain"]["operator_config"]))
        for key, name in market.node_names.items():
            payout = market.nodes[key].ready["payout_address"]
            found[name] = await chain.token_balance(Pubkey.from_string(payout), mint)
        found["marketplace's fees"] = await chain.token_balance(operator.fee_owner, mint) if operator else 0
        with contextlib.suppress(ProcessFailed):
            found["client's vault"] = int((await market.torg("vault", "status"))["chain_balance"])
    return found


@contextlib.asynccontextmanager
async def engine(market: Market) -> AsyncIterator[None]:
    """Debian's container engine, private to the demo: started here, stopped here."""
    with market.step("start Debian's container engine (installed first when it is missing)"):
        await call(
            [sys.executable, str(ROOT / "docker/engine.py"), "start", "--state-dir", str(market.home / "engine")]
        )
    try:
        yield
    finally:
        await call(
            [sys.executable, str(ROOT / "docker/engine.py"), "stop", "--state-dir", str(market.home / "engine")],
            check=False,
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--executor", choices=["auto", "docker", "sandbox"], default="auto")
    parser.add_argument(
        "--home", type=Path, default=ROOT / ".demo", help="folder for everything that the demo writes (emptied first)"
    )
    parser.add_argument("--headless", action="store_true", help="plain text, fixed width")
    return parser.parse_args()


if __name__ == "__main__":
    # SIGTERM is handled like Ctrl-C, so that a cancelled CI job leaves nothing running either.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        asyncio.run(main(parse()))
    except KeyboardInterrupt:
        sys.exit("interrupted: everything that the demo started is stopped")
    except ProcessFailed as failure:
        sys.exit(f"the demo failed: {failure}")
