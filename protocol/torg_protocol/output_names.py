"""Names of outputs: what a node hands over under a name, and what a client writes under it. The client trusts no node to have asked."""

from __future__ import annotations

_LONGEST_PART_BYTES = 255


def output_name_problem(path: str) -> str | None:
    """None for a relative path that can be written below any folder, read in any terminal, and sent as JSON."""
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return "not a plain relative path"
    # Halves of surrogate pairs, of names that are no UTF-8, are not printable.
    if not path.isprintable() or "\\" in path:
        return "it has characters that no file name needs"
    if any(len(part.encode()) > _LONGEST_PART_BYTES for part in parts):
        return "a name in it is too long"
    return None
