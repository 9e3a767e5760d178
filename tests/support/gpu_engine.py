"""A container engine that gives out SIMULATED GPUs. Real: dockerd, its `nvidia` device driver and how it calls NVIDIA's hook. Made up: the hook,
which mounts no devices but an nvidia-smi, and that program, which names the GPUs that the engine was asked for."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.engine import run_engine_script

SMI = """#!/bin/sh
number=0
for uuid in $(echo "$NVIDIA_VISIBLE_DEVICES" | tr , " "); do
    echo "GPU $number: SIMULATED GPU (UUID: $uuid)"
    number=$((number + 1))
done
"""
_HOOK = """#!{python}
import json, os, pathlib, subprocess, sys

state = json.load(sys.stdin)
root = json.loads((pathlib.Path(state["bundle"]) / "config.json").read_text())["root"]["path"]
place = os.path.join(state["bundle"], root, "usr/local/bin")
script = f'test -d {{place}} || exit 0; mount -t tmpfs -o mode=755 tmpfs {{place}}; cat > {{place}}/nvidia-smi; chmod 755 {{place}}/nvidia-smi'
enter = ["/usr/bin/nsenter", "--target", str(state["pid"]), "--mount", "/bin/sh", "-c", script]
done = subprocess.run(enter, input={smi!r}, text=True, env={{"PATH": "/usr/bin:/bin"}})
sys.exit(done.returncode)
"""


@contextmanager
def engine_with_simulated_gpus(folder: Path, smi: str = SMI) -> Iterator[Path]:
    """The socket of an engine of its own. `smi`: what a container finds as /usr/local/bin/nvidia-smi, if its image has that folder."""
    programs = folder / "programs"
    programs.mkdir()
    hook = programs / "nvidia-container-runtime-hook"
    hook.write_text(_HOOK.format(python=sys.executable, smi=smi))
    hook.chmod(0o755)
    with tempfile.TemporaryDirectory(prefix="torg-gpu-engine-") as state:
        try:
            with pytest.MonkeyPatch.context() as patched:
                patched.setenv("PATH", str(programs), prepend=":")
                socket = Path(run_engine_script("start", Path(state) / "engine"))
            yield socket
        finally:
            run_engine_script("stop", Path(state) / "engine")
