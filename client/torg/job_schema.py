"""JSON Schema of the job file as people write it: for editors, and for whoever writes job files by program.

The schema says what one can see in a single field; what holds between fields (cycles, memory that does not suffice) `torg validate` says.
"""

from __future__ import annotations

from typing import Any

from torg.secret_sources import SECRET_NAME
from torg_protocol.jobspec import JobSpec

_WORKSPACE = {
    "anyOf": [{"type": "string"}, {"type": "null"}],
    "default": None,
    "description": "A directory, relative to this file; null: no files. Packed without what .gitignore and .torgignore name.",
}
_SECRETS = {
    "type": "object",
    "patternProperties": {
        f"^{SECRET_NAME.pattern}$": {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {kind: {"type": "string"}},
                    "required": [kind],
                    "additionalProperties": False,
                }
                for kind in ("env", "file")
            ]
        }
    },
    "additionalProperties": False,
    "description": "Where each secret is on this computer; sealed at submission to the nodes that may run the job.",
}

_SEALED = {
    "type": "boolean",
    "default": False,
    "description": "Encrypt workspace, outputs, logs and checkpoints; only placement.nodes and this wallet can read them.",
}


def job_schema() -> dict[str, Any]:
    """Draft 2020-12. Made from the model, so it knows what the model knows."""
    schema = JobSpec.model_json_schema(mode="validation")
    schema["properties"] |= {"workspace": _WORKSPACE, "secrets": _SECRETS, "sealed": _SEALED}
    by_name, _ = schema["properties"]["volumes"]["anyOf"]
    by_name["additionalProperties"] = False
    for name in ("BlobRef", "Sealed", "SealedSecrets"):
        schema["$defs"].pop(name, None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Torg job file",
        "description": "A job for Torg: one container, or several as `tasks`.",
    }
