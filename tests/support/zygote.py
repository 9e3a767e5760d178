"""Processes that have torch imported before they start: a parent that imports once and forks for each run.

A training script run this way is a real process, with its own directory, environment, output and signals; what it is spared are
two seconds of imports. `python -m tests.support.zygote` is the parent; `Zygote` speaks with it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_POLL_S = 0.002


class Zygote:
    """One at a time may speak with it. `close` kills what it started and is still there."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.support.zygote"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._running: list[ForkedProcess] = []

    def start(
        self, directory: Path, arguments: Sequence[str], env: Mapping[str, str], kill_after_checkpoint: int = 0
    ) -> ForkedProcess:
        """`arguments` are a script in `directory` and its options. With `kill_after_checkpoint` N the process is killed
        (SIGKILL) at the moment when the Nth checkpoint has appeared."""
        out, error = directory.parent / f"{directory.name}.out", directory.parent / f"{directory.name}.err"
        answer = self.ask(
            start=list(arguments),
            directory=str(directory),
            env=dict(env),
            out=str(out),
            error=str(error),
            kill_after_checkpoint=kill_after_checkpoint,
        )
        process = ForkedProcess(self, answer["pid"], out, error)
        self._running.append(process)
        return process

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        for process in self._running:
            if process.returncode is None:
                process.kill()
                process.communicate(timeout=240)
        self._process.communicate(timeout=240)


@dataclass
class ForkedProcess:
    """What `subprocess.Popen` offers, as far as tests use it."""

    zygote: Zygote
    pid: int
    out: Path
    error: Path
    returncode: int | None = None

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it printed, once it has ended. Raises TimeoutError."""
        if self.returncode is None:
            self.returncode = self.zygote.ask(wait=self.pid, timeout_s=timeout)["code"]
        if self.returncode is None:
            raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
        return self.out.read_text(), self.error.read_text()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        if self.returncode is None:  # it is a zombie at least: its number cannot be another's
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


# --- the parent ---------------------------------------------------------------------------------------------------------


IMPORTED = (
    "torch",
    "safetensors.torch",
    "sklearn.datasets",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "sklearn.neighbors",
    "statsmodels.datasets",
    "pmdarima.datasets",
    "matplotlib.backends.backend_agg",
)


def serve() -> None:
    for module in IMPORTED:
        importlib.import_module(module)
    for line in sys.stdin:
        question = json.loads(line)
        answer = {"pid": _fork(question)} if "start" in question else {"code": _wait(question)}
        print(json.dumps(answer), flush=True)


def _wait(question: Mapping[str, Any]) -> int | None:
    deadline = time.monotonic() + question["timeout_s"]
    while time.monotonic() < deadline:
        pid, status = os.waitpid(question["wait"], os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_POLL_S)
    return None


def _fork(question: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = _run(question)
    except BaseException:  # noqa: BLE001  # the child must not fall back into the parent's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(question: Mapping[str, Any]) -> int:
    for descriptor, path in ((0, "/dev/null"), (1, question["out"]), (2, question["error"])):
        opened = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_TRUNC if descriptor else 0), 0o644)
        os.dup2(opened, descriptor)
    os.chdir(question["directory"])
    os.environ.clear()
    os.environ.update(question["env"])
    sys.path[0] = question["directory"]
    sys.argv = question["start"]
    if question["kill_after_checkpoint"]:
        _kill_after_checkpoint(question["kill_after_checkpoint"])
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stopped:
        if stopped.code is None or isinstance(stopped.code, int):
            return stopped.code or 0
        print(stopped.code, file=sys.stderr)
        return 1
    return 0


def _kill_after_checkpoint(number: int) -> None:
    rename, seen = Path.rename, 0

    def rename_and_count(path: Path, target: Path) -> Path:
        nonlocal seen
        renamed = rename(path, target)
        seen += target.name.startswith("step-")
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return renamed

    setattr(Path, "rename", rename_and_count)  # noqa: B010  # in this process alone


if __name__ == "__main__":
    serve()
