"""The prover's own process. One line of JSON after the other:

-> {"ready": "torch int8 cpu"}                 libraries are loaded, the device is warm
<- {"challenge": ProofChallenge, "node": id}   work begins
-> {"root": digest}  then  {"lanes": base64}
<- {"blocks": [numbers]}
-> {"blocks": [OpenedBlock]}                   and it ends; so it does when its input closes

{"error": text} instead of any answer, and exit code 1, when this machine cannot do it.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from typing import Any

from torg_host.hardware_proof.arithmetic import Arithmetic
from torg_host.hardware_proof.chain import prove_chain
from torg_host.hardware_proof.opening import commit, open_blocks
from torg_host.hardware_proof.walk import fill, walk
from torg_node.hardware.proof.paths import NoDevice, choose_path
from torg_protocol.ids import NodeId
from torg_protocol.proofs import ChainTask, ProofChallenge, WalkTask


def main() -> int:
    parser = argparse.ArgumentParser(prog="torg_node.hardware.proof")
    parser.add_argument("unit")
    parser.add_argument("--path", default="auto", choices=["auto", "numpy", "torch-int8", "torch-float32"])
    arguments = parser.parse_args()
    try:
        arithmetic = choose_path(arguments.unit, wanted=arguments.path)
        _warm_up(arithmetic)
        _say(ready=arithmetic.name)
        _serve(arithmetic)
    except (
        NoDevice,
        MemoryError,
        RuntimeError,
        ValueError,
        IndexError,
    ) as error:  # RuntimeError: torch's own, out of memory
        _say(error=str(error)[:500])
        return 1
    return 0


def _serve(arithmetic: Arithmetic) -> None:
    order = _hear()
    if order is None:
        return
    challenge, node = ProofChallenge.model_validate(order["challenge"]), NodeId(order["node"])
    factor = arithmetic.factor(challenge.shared_seed("B"), challenge.chain.width)
    digests = prove_chain(arithmetic, challenge.chain, challenge.seed("X", node), factor)
    _say(root=commit(digests))
    seed = challenge.seed("space", node)
    memory = fill(arithmetic, challenge.walk, seed, arithmetic.factor(challenge.shared_seed("F"), challenge.walk.width))
    lanes = walk(arithmetic, challenge.walk, seed, memory)
    _say(lanes=base64.b64encode(lanes.tobytes()).decode())
    del memory
    asked = _hear()
    if asked is not None:
        _say(blocks=[block.wire() for block in open_blocks(digests, asked["blocks"])])


def _warm_up(arithmetic: Arithmetic) -> None:
    """Kernels are chosen and loaded at their first use."""
    factor = arithmetic.factor(b"warm", 1024)
    prove_chain(arithmetic, ChainTask(rows=256, width=1024, rounds=2), b"warm", factor)
    task = WalkTask(rows=64, width=64, passes=1, lanes=4, steps=2)
    walk(arithmetic, task, b"warm", fill(arithmetic, task, b"warm", arithmetic.factor(b"warm", 64)))


def _hear() -> dict[str, Any] | None:
    line = sys.stdin.readline()
    if not line.strip():
        return None
    order: dict[str, Any] = json.loads(line)
    return order


def _say(**answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
