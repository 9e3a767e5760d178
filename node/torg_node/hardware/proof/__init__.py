"""The prover: a child process per proof (`python -m torg_node.hardware.proof`), so that torch, its threads and a device's memory are gone
with it and the agent stays small.

    paths.py     how this machine computes: torch on CUDA, torch on the CPU, or NumPy alone
    __main__.py  the child: lines of JSON in and out
    child.py     the agent's side of it
"""
