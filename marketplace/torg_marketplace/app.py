"""The composition root: serves what settings ask for. With `opening.py`, which builds engines and picks implementations; nothing else does any of that."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from torg_host.tracing import export_to
from torg_marketplace.api import account, channel, contract, health, jobs, keys, market, problems, webhooks
from torg_marketplace.api import blobs as blob_routes
from torg_marketplace.api import data as data_routes
from torg_marketplace.api import sign_in as sign_in_routes
from torg_marketplace.api import volumes as volume_routes
from torg_marketplace.api.bodies import GatheringProtocol
from torg_marketplace.api.context import Edge
from torg_marketplace.api.limits import Bounds, LocalAdmission, RateLimiter
from torg_marketplace.flow.liveness import on_startup
from torg_marketplace.flow.sign_in import SignIn
from torg_marketplace.gateway import tunnels
from torg_marketplace.gateway.relay import Tunnels
from torg_marketplace.metrics import serve_metrics
from torg_marketplace.opening import database_url, open_market, patiently
from torg_marketplace.ports import Admission
from torg_marketplace.roles import check_roles, working
from torg_marketplace.settings import Settings
from torg_marketplace.storage.nonces import NonceStore
from torg_marketplace.storage.shared_admission import SharedAdmission

_SHUTDOWN_S = 3
_COLLECT_AFTER = 20_000  # objects more than there were; Python's own 700 are what a few jobs make
# Longer than clients and proxies keep theirs (15 and 60 s are usual): who closes first must be who sends, or a request meets a closed line.
KEEP_ALIVE_S = 75


@asynccontextmanager
async def open_admission(settings: Settings) -> AsyncIterator[Admission]:
    """On PostgreSQL there may be other processes, which count together."""
    url = database_url(settings)
    if url.startswith("postgresql"):
        shared = SharedAdmission(url, settings.requests_per_minute)
        try:
            yield shared
        finally:
            await shared.aclose()
    else:
        nonces = NonceStore(settings.data / "nonces.sqlite")
        try:
            yield LocalAdmission(nonces, RateLimiter(settings.requests_per_minute))
        finally:
            nonces.close()


async def serve(settings: Settings) -> None:
    """Runs the marketplace until SIGTERM or SIGINT; prints one JSON line when it is ready."""
    check_roles(settings)
    listener = listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    url = settings.public_url or f"http://{host}:{port}"
    async with AsyncExitStack() as stack:
        if settings.otlp_endpoint is not None:
            stop_traces = export_to(settings.otlp_endpoint, "torg-marketplace", settings.role)
            stack.push_async_callback(asyncio.to_thread, stop_traces)
        edge = await stack.enter_async_context(open_edge(settings, url))
        await patiently(edge.blobs.probe)
        if settings.role == "all":
            await on_startup(edge.market)
        app = make_app(edge, settings.role)
        server = DrainingServer(_uvicorn_config(app), edge.ending, settings.drain / 1000)
        serving = asyncio.create_task(server.serve([listener]))
        at_work = await stack.enter_async_context(working(edge, settings))
        ready: dict[str, str | int] = {
            "url": url,
            "marketplace": edge.market.public_key,
            "operator_config": edge.market.network.operator_config,
        }
        if settings.metrics_port is not None:
            ready["metrics_port"], stop_metrics = serve_metrics(
                settings.metrics_port,
                lambda: len(edge.hub.connected()),
                lambda: edge.market.vitals.fee_payer_lamports,
            )
            stack.callback(stop_metrics)
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn offers no event for it
            await asyncio.sleep(0.01)
        _collect_less()
        print(json.dumps(ready), flush=True)  # noqa: T201 - the one line that says where it listens
        try:
            await asyncio.wait({serving, at_work}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.should_exit = True
            edge.hub.close_all()
            app.state.tunnels.close_all()
            await serving
        if at_work.done() and not at_work.cancelled() and (error := at_work.exception()) is not None:
            raise error  # loops end only so: whoever supervises this process has to start it again


def _collect_less() -> None:
    """Python looks for cycles among all that lives, again and again, and everybody waits meanwhile. What start-up has made (modules, models,
    routes) stays in any case: it is looked through once more and then never again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


def listen(host: str, port: int) -> socket.socket:
    """asyncio switches Nagle's algorithm off only on sockets that say they are TCP, which `create_server`'s do not: with it on, an answer of
    two writes waits for the other side's delayed acknowledgement, 40 ms."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


@asynccontextmanager
async def open_edge(settings: Settings, url: str) -> AsyncIterator[Edge]:
    """Everything that the HTTP layer and the workers share; the database is migrated, the operator's config is on chain."""
    async with open_market(settings, url) as opened, open_admission(settings) as admission:
        secret = hashlib.sha256(b"torg sign-in" + bytes(opened.market.identity)).digest()
        sign_in = SignIn.at(url, settings.sign_in_domains, secret)
        yield Edge(opened.market, opened.hub, opened.blobs, admission, sign_in=sign_in)


def make_app(edge: Edge | None, role: str = "all") -> FastAPI:
    """What a process of this role serves. `edge` None: only for printing the OpenAPI document."""
    app = FastAPI(generate_unique_id_function=contract.operation_id, redirect_slashes=False)
    app.state.edge, app.state.tunnels = edge, Tunnels()
    parts = [health]
    if role in {"all", "api"}:
        parts = [
            market,
            health,
            jobs,
            account,
            blob_routes,
            data_routes,
            volume_routes,
            keys,
            sign_in_routes,
            webhooks,
            channel,
        ]
    if role in {"all", "gateway"}:
        parts.append(tunnels)
    routers = [module.router for module in parts]
    for router in routers:
        app.include_router(router, responses=contract.PROBLEMS)
    problems.install(app, routers)
    app.add_middleware(Bounds)
    if edge is not None and edge.sign_in.origins:
        app.add_middleware(CORSMiddleware, allow_origins=edge.sign_in.origins, allow_methods=["*"], allow_headers=["*"])
    app.openapi = lambda: contract.document(app, routers)  # type: ignore[method-assign] # FastAPI's own way to extend it
    return app


class DrainingServer(uvicorn.Server):
    """At the first SIGTERM says that it is not ready, so that a balancer sends nobody here any more, and ends `drain_s` later; a second
    one, or SIGINT, ends it at once. SIGTERM is not raised again afterwards, which is uvicorn's way: it would end the process before its loops
    and connections have ended."""

    def __init__(self, config: uvicorn.Config, ending: asyncio.Event, drain_s: float) -> None:
        super().__init__(config)
        self._ending, self._drain_s = ending, drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        is_first = not self._ending.is_set()
        self._ending.set()
        if sig != signal.SIGTERM:
            super().handle_exit(sig, frame)
        elif is_first and self._drain_s > 0:
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(loop.call_later, self._drain_s, self._end)
        else:
            self._end()

    def _end(self) -> None:
        self.should_exit = True


def _uvicorn_config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        http=GatheringProtocol,
        timeout_graceful_shutdown=_SHUTDOWN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        ws="websockets-sansio",
        ws_max_size=4 << 20,
        lifespan="off",
    )
