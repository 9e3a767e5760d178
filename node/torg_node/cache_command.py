"""`torg-node cache ls | rm | prune`: what is kept for the next job. Works beside a running agent; what a lease uses stays."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import asdict

from torg_node.cache import Cache, CacheEntry, ForgetImage, names_in_use, remove, trim
from torg_node.executors.choose import choose_executor
from torg_node.executors.port import Executor
from torg_node.settings import Settings
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.quantities import parse_size_bytes


def add_cache_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=["ls", "rm", "prune"], help="list, remove one, remove the least lately used")
    command.add_argument(
        "digest",
        nargs="?",
        help="for rm: the digest as ls names it, or its beginning; or the name of an image that was pulled",
    )
    command.add_argument("--to", metavar="SIZE", default="0B", help='for prune: what may stay, for example "5GiB"')


async def cache_command(settings: Settings, arguments: argparse.Namespace, node_label: str) -> str:
    """What to print. Raises NotFound `not_cached`, Conflict `in_use`, Invalid for what is no size."""
    cache = Cache(settings.cache_path, settings.cache_bytes)
    in_use = names_in_use(settings.journal_path)
    if arguments.action == "ls":
        return _listed(cache.entries(), in_use, settings.cache_bytes, as_json=arguments.json)
    async with _forgetting(settings, node_label) as forget:
        if arguments.action == "rm":
            gone = [_named(cache, arguments.digest or "", in_use)]
            await remove(cache, forget, gone[0])
        else:
            gone = await trim(cache, forget, in_use, _size(arguments.to))
    if arguments.json:
        return json.dumps([asdict(entry) for entry in gone])
    return f"removed {len(gone)}, {_mebibytes(sum(entry.size_bytes for entry in gone))}"


@contextlib.asynccontextmanager
async def _forgetting(settings: Settings, node_label: str) -> AsyncIterator[ForgetImage]:
    """Connects to the engine only if an image lies there."""
    opened: list[Executor] = []

    async def forget(reference: str, only_if: str | None = None) -> None:
        if not opened:
            chosen = await choose_executor(
                settings.executor,
                settings.data / "containers",
                node_label=node_label,
                docker_socket=settings.engine_socket,
            )
            opened.append(chosen.executor)
        await opened[0].forget_image(reference, only_if)

    try:
        yield forget
    finally:
        for executor in opened:
            await executor.close()


def _listed(entries: list[CacheEntry], in_use: Collection[str], budget_bytes: int, *, as_json: bool) -> str:
    if as_json:
        return json.dumps([{**asdict(entry), "in_use": entry.is_among(in_use)} for entry in entries])
    now_ms = time.time_ns() // 1_000_000
    lines = [
        f"{entry.digest[:19]:<19}  {entry.kind:<6}  {_mebibytes(entry.size_bytes):>10}  "
        f"used {max(0, now_ms - entry.used_at_ms) // 60_000} min ago{'  in use' if entry.is_among(in_use) else ''}"
        + (f"  {entry.engine_image}" if entry.kind == "pulled" else "")
        for entry in entries
    ]
    total = sum(entry.size_bytes for entry in entries)
    return "\n".join([*lines, f"{len(entries)} kept, {_mebibytes(total)} of {_mebibytes(budget_bytes)}"])


def _named(cache: Cache, start: str, in_use: Collection[str]) -> CacheEntry:
    found = [
        entry for entry in cache.entries() if start and (entry.digest.startswith(start) or entry.engine_image == start)
    ]
    if len(found) != 1:
        why = "several digests begin like this" if found else "nothing of that digest or name is kept"
        raise NotFound(why, code="not_cached", field="digest", value=start, hint="see torg-node cache ls")
    if found[0].is_among(in_use):
        raise Conflict(
            "a lease or a rental uses it", code="in_use", field="digest", value=start, hint="wait for it to end"
        )
    return found[0]


def _size(text: str) -> int:
    try:
        return parse_size_bytes(text)
    except ValueError as error:
        raise Invalid(str(error), code="size_invalid", field="--to", value=text, hint="write it like 5GiB") from error


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
