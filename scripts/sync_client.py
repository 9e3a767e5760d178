"""Writes client/torg/sync.py, the blocking Client, from AsyncClient: one source for both.

    python -m scripts.sync_client

Each public coroutine becomes a method of the same signature; each async iterator an iterator. A test compares the file with this.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[1] / "client" / "torg"
_LEFT_OUT = {"aclose", "submission"}  # `close` is written by hand; a Submission is a conversation of coroutines
_HEAD = '''\
"""The same client for code without an event loop. Each call runs on one private loop in a background thread.

Written by scripts/sync_client.py from client.py and kept.py: change those, then run `python -m scripts.sync_client`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from solders.keypair import Keypair

from torg.client import AsyncClient, R, T
from torg.config import ClientConfig
from torg.kept import StageProgress
from torg.spec_file import SpecFile
{imports}


class Client:
    """Blocking twin of AsyncClient: same names, same errors. Safe to use from several threads."""

    def __init__(self, config: ClientConfig | None = None, keypair: Keypair | None = None) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="torg-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._run(_build(config, keypair))
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Safe to repeat. In a process that was forked off nothing is this client's to close."""
        if self._why_unusable() is None:
            self._run(self._client.aclose())
            self._stop()

'''
_TAIL = '''\
    def _run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Ctrl-C reaches the coroutine as its cancellation."""
        if (error := self._why_unusable()) is not None:
            coroutine.close()
            raise error
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _iterate(self, items: AsyncIterator[R]) -> Iterator[R]:
        async def following() -> tuple[R] | None:
            async for item in items:
                return (item,)
            return None

        async def ending() -> None:
            if (aclose := getattr(items, "aclose", None)) is not None:
                await aclose()

        try:
            while (found := self._run(following())) is not None:
                yield found[0]
        finally:
            if self._why_unusable() is None:
                self._run(ending())

    def _why_unusable(self) -> TorgError | None:
        """What would wait for a loop that nobody runs here, and so for ever."""
        if os.getpid() != self._pid:
            what, code, hint = "made by another process", "client_forked", "make one after the fork, in each process"
        elif self._loop.is_closed():
            what, code, hint = "closed", "client_closed", "make another, or keep it open for as long as it is used"
        elif threading.current_thread() is self._thread:
            what, code, hint = "busy with the call whose callback this is", "client_busy", "call it after that has returned"
        else:
            return None
        return Conflict(f"this client is {what}", code=code, field="client", hint=hint)

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()


async def _build(config: ClientConfig | None, keypair: Keypair | None) -> AsyncClient:
    return AsyncClient(config, keypair)
'''


def generated() -> str:
    modules = [ast.parse((CLIENT / name).read_text()) for name in ("client.py", "kept.py")]
    statements = [node for module in modules for node in module.body]
    sources = [
        node for node in statements if isinstance(node, ast.ClassDef) and node.name in {"AsyncClient", "KeptData"}
    ]
    methods = [
        _method(node)
        for source in sources
        for node in source.body
        if isinstance(node, ast.AsyncFunctionDef) and not node.name.startswith("_") and node.name not in _LEFT_OUT
    ]
    imports = "\n".join(
        ast.unparse(node)
        for node in statements
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torg_protocol")
    ).replace("\\\n", "\n")
    text = _HEAD.replace("{imports}", imports) + "\n".join(methods) + _TAIL
    return _formatted(text)


def _method(node: ast.AsyncFunctionDef) -> str:
    arguments = node.args
    returns = ast.unparse(node.returns) if node.returns is not None else "None"
    streams = returns.startswith("AsyncIterator[")
    passed = [argument.arg for argument in arguments.args[1:]]
    if arguments.vararg is not None:
        passed.append(f"*{arguments.vararg.arg}")
    passed += [f"{argument.arg}={argument.arg}" for argument in arguments.kwonlyargs]
    if arguments.kwarg is not None:
        passed.append(f"**{arguments.kwarg.arg}")
    call = f"self._client.{node.name}({', '.join(passed)})"
    signature = f"    def {node.name}({ast.unparse(arguments)}) -> {returns.replace('AsyncIterator', 'Iterator')}:"
    body = f"        return self.{'_iterate' if streams else '_run'}({call})"
    return f"{signature}\n        {_docstring(node)}\n{body}\n" if _docstring(node) else f"{signature}\n{body}\n"


def _docstring(node: ast.AsyncFunctionDef) -> str:
    text = ast.get_docstring(node, clean=False)
    return "" if text is None else f'"""{text}"""'


def _formatted(text: str) -> str:
    """As `make format` would leave it: unused imports removed, sorted, wrapped."""
    ruff = [str(Path(sys.executable).with_name("ruff"))]
    name = ["--stdin-filename", str(CLIENT / "sync.py")]
    for step in (["check", "--fix-only", "--quiet", *name, "-"], ["format", "--quiet", *name, "-"]):
        text = subprocess.run([*ruff, *step], input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    (CLIENT / "sync.py").write_text(generated())
