"""What an imported job asks for where its file says nothing: other platforms give a container the whole machine.

Here a job names its share, and is stopped when it takes more; so a job with a GPU is given what such jobs commonly need.
"""

from __future__ import annotations

from typing import Any

_WITHOUT_GPU = {"cpus": 1, "memory": 1, "disk": 1}  # cores and GiB
_WITH_GPU = {"cpus": 4, "memory": 16, "disk": 50, "shm": 4}


def resources_for(
    *, gpus: int = 0, min_vram: str | None = None, at_once: int = 1, models: bool = False, **given: Any
) -> dict[str, Any]:
    """`models`: it reads models, which need room with or without a GPU. `at_once`: how many containers run beside each other. `given`: what the file does say, by our names; None is not said."""
    said = {name: value for name, value in given.items() if value is not None}
    gpu = {"gpus": gpus, **({"min_vram": min_vram} if min_vram else {})} if gpus else {}
    common = {name: amount * at_once for name, amount in (_WITH_GPU if gpus or models else _WITHOUT_GPU).items()}
    sizes = {name: str(amount) if name == "cpus" else f"{amount}GiB" for name, amount in common.items()}
    if "memory" in said:
        sizes.pop("shm", None)  # which counts as memory
    return {**gpu, **sizes, **said}
