"""The real agent, and yet a liar: it works as asked, and hands over something else. `python -m tests.support.lying_node start --data ...`

Every output's second half is zeros, which leaves a safetensors file readable; or, with LIES_ABOUT=checkpoints, all that its checkpoints hold of the
optimizer is, and nothing else. For end-to-end tests of verification.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from torg_node.__main__ import main
from torg_node.lease import Lease
from torg_node.steps.checkpoints import CheckpointKeeper
from torg_node.steps.collect_outputs import CollectOutputs

_honest_outputs, _honest_checkpoint = CollectOutputs.do, CheckpointKeeper._store


async def _lie(step: CollectOutputs, lease: Lease) -> None:
    for path in (lease.files / "output").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    await _honest_outputs(step, lease)


async def _lie_about_checkpoint(keeper: CheckpointKeeper, item: Path) -> None:
    spoiled = shutil.copytree(item, keeper._lease.folder / "spoiled" / item.name)
    for path in spoiled.glob("*.safetensors"):
        tensors = load_file(path)
        spoiled_too = {name: np.zeros_like(value) for name, value in tensors.items() if ".optimizer." in name}
        save_file(tensors | spoiled_too, path)
    await _honest_checkpoint(keeper, spoiled)


# What makes it a liar, and no type checker believes it.
about = os.environ.get("LIES_ABOUT", "outputs")
if about == "outputs":
    setattr(CollectOutputs, "do", _lie)  # noqa: B010
else:
    setattr(CheckpointKeeper, "_store", _lie_about_checkpoint)  # noqa: B010

if __name__ == "__main__":
    main()
