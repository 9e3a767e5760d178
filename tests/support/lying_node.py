"""The real agent, and yet a liar: it works as asked, and hands over something else. `python -m tests.support.lying_node start --data ...`

Every output's second half is zeros, which leaves a safetensors file readable. For end-to-end tests of verification.
"""

from __future__ import annotations

from torg_node.__main__ import main
from torg_node.lease import Lease
from torg_node.steps.collect_outputs import CollectOutputs

_honest = CollectOutputs.do


async def _lie(step: CollectOutputs, lease: Lease) -> None:
    for path in (lease.files / "output").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    await _honest(step, lease)


setattr(CollectOutputs, "do", _lie)  # noqa: B010 - what makes it a liar, and no type checker believes it

if __name__ == "__main__":
    main()
