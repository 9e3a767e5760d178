"""What an imported job asks for where its file says nothing: other platforms give a container the whole machine.

Here a job names its share, and is stopped when it takes more; so a job with a GPU is given what such jobs commonly need.
"""

from __future__ import annotations

from typing import Any

_WITHOUT_GPU = {"cpus": "1", "memory": "1GiB", "disk": "1GiB"}
_WITH_GPU = {"cpus": "4", "memory": "16GiB", "disk": "50GiB", "shm": "4GiB"}


def resources_for(*, gpus: int = 0, min_vram: str | None = None, **given: Any) -> dict[str, Any]:
    """`given`: what the file does say, by our names; None is not said."""
    said = {name: value for name, value in given.items() if value is not None}
    gpu = {"gpus": gpus, **({"min_vram": min_vram} if min_vram else {})} if gpus else {}
    return {**gpu, **(_WITH_GPU if gpus else _WITHOUT_GPU), **said}
