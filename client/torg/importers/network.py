"""Whether an imported job gets a way out. On the other platforms every container reaches the whole internet; here most nodes lend none.

A job gets `network: open`, and with it only nodes that lend their network, unless all that it runs are plain base images and nothing in
the file speaks of the network. What was decided is always told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from torg.importers.translation import Dropped

_PLAIN = {"alpine", "archlinux", "bash", "busybox", "centos", "debian", "fedora", "hello-world", "httpd", "nginx", "perl", "python", "ubuntu"}  # fmt: skip
_OFFICIAL = re.compile(
    r"(?:(?:docker\.io|registry\.hub\.docker\.com|index\.docker\.io)/)?(?:library/)?([a-z0-9-]+)(?:[:@].*)?"
)
_SPEAKS_OF_IT = re.compile(r"\b(?:https?|s3|gs|ftp|git)://|\b(?:curl|wget|pip3?|apt|apt-get|apk|dnf|git|npm|npx|yarn|conda|uv|hf|huggingface-cli|ssh|scp|rsync|cargo|go get)\b")  # fmt: skip


def network_of(job: Mapping[str, Any]) -> tuple[str | None, Dropped]:
    """What `network` should be, None: as it is without; and the remark about it. `job`: a translation."""
    containers = job.get("tasks") or [job]
    images = {str(item.get("image", job.get("image", ""))) for item in containers}
    others = sorted(image for image in images if not _is_plain(image))
    said = _SPEAKS_OF_IT.search(
        json.dumps([[item.get(key) for key in ("command", "args", "env")] for item in containers])
    )
    if not others and said is None:
        why = "they reach the internet there; nothing here asks for it, so the job has none (network: open gives it)"
        return None, Dropped("network", "none", why, changes_meaning=False)
    found = f"{said.group()} in the file" if said else f"image {others[0]}"
    why = f"as there, because of {found}; only nodes that lend their network take the job (network: none: any node)"
    return "open", Dropped("network", "open", why, changes_meaning=False)


def official_name(image: str) -> str | None:
    """Of an image of the official library, without registry, tag and digest."""
    match = _OFFICIAL.fullmatch(image)
    return match.group(1) if match is not None else None


def _is_plain(image: str) -> bool:
    return image == "host-python" or official_name(image) in _PLAIN
