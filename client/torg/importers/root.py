"""Whether an imported job is root in its container. On the other platforms every container is what its image makes of it, root as a rule,
and may write to all of its files.

A job gets `root: true`, and with it only nodes that can give that, unless all that it runs are images of plain shells and nothing in the
file speaks of what only root does. No container has a root and a GPU, so a job with GPUs goes on as nobody. What was decided is told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from torg.importers.network import official_name
from torg.importers.translation import Dropped

_PLAIN = {"alpine", "bash", "busybox", "centos", "debian", "fedora", "hello-world", "perl", "python", "ubuntu"}
_SPEAKS_OF_IT = re.compile(
    r"\b(?:pip3?|apt|apt-get|apk|dpkg|dnf|npm|yarn|conda|uv|chown|useradd|adduser|groupadd|su|gosu|whoami|mkdir|install)\b|>\s*/(?!dev/)"
)


def root_of(job: Mapping[str, Any]) -> tuple[bool, Dropped | None]:
    """Whether `root` should be set, and the remark about it. `job`: a translation."""
    containers = job.get("tasks") or [job]
    images = {str(item.get("image", job.get("image", ""))) for item in containers}
    others = sorted(image for image in images if image != "host-python" and official_name(image) not in _PLAIN)
    said = _SPEAKS_OF_IT.search(json.dumps([[item.get(key) for key in ("command", "args")] for item in containers]))
    if not others and said is None:
        return False, None
    found = f"{said.group().strip()} in the file" if said else f"image {others[0]}"
    if job.get("resources", {}).get("gpus"):
        why = f"it may want to be root, because of {found}; with a GPU it is nobody, and writes to /tmp and its folders"
        return False, Dropped("root", "false", why, changes_meaning=False)
    why = f"as there, because of {found}; only nodes that give a root take the job (root: false: any node)"
    return True, Dropped("root", "true", why, changes_meaning=False)
