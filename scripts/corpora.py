"""How much of other platforms' public job files is taken over: reads every file below $TORG_CORPORA, prints a table, ends with 1 if one fails.

    TORG_CORPORA=DIR python -m scripts.corpora

A file must be recognised, valid and translate to a valid spec. Beside that two scores: files that lose nothing, and values (the leaves of
a document) that are not part of anything lost.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torg.importers.translation import Translation
from torg.spec_file import read_spec_file
from torg.spec_source import parse_documents
from torg_protocol.errors import TorgError

_FOLDERS = ("nosana-jobs", "compose", "kubernetes", "akash", "dstack")
_SUFFIXES = {".json", ".yaml", ".yml"}


@dataclass
class Score:
    files: int = 0
    translated: int = 0
    whole: int = 0
    values: int = 0
    values_kept: int = 0
    why_lost: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, raw: Any, translation: Translation) -> None:
        paths = [item.path for item in translation.lost]
        leaves = list(leaves_of(raw))
        lost = [leaf for leaf in leaves if any(leaf == path or leaf.startswith(f"{path}.") for path in paths)]
        self.translated += 1
        self.whole += not paths
        self.values += len(leaves)
        self.values_kept += len(leaves) - len(lost)
        for why in {item.why for item in translation.lost}:
            self.why_lost[why] += 1

    def row(self, name: str) -> str:
        share = 100 * self.values_kept / self.values if self.values else 0.0
        return f"| {name} | {self.files} | {self.translated} | {self.whole} | {share:.1f}% |"


def job_files(root: Path) -> list[Path]:
    """Below the folders that are known by name, or, where there is none of them, below the root."""
    folders = [root / name for name in _FOLDERS if (root / name).is_dir()] or [root]
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in _SUFFIXES)


def leaves_of(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves_of(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from leaves_of(inner, f"{path}.{number}" if path else str(number))
    else:
        yield path


def main() -> int:
    root = os.environ.get("TORG_CORPORA")
    if not root or not Path(root).is_dir():
        sys.stderr.write("set TORG_CORPORA to a folder with job files of other platforms, one folder for each\n")
        return 2
    scores: dict[str, Score] = defaultdict(Score)
    failed = []
    for path in job_files(Path(root)):
        try:
            score = read(path, scores)
        except TorgError as error:
            failed.append(f"{path.relative_to(root)}: {error}")
            continue
        if not score:
            failed.append(f"{path.relative_to(root)}: of no platform that is known")
    sys.stdout.write("| format | files | valid and translated | nothing lost | values kept |\n|---|---|---|---|---|\n")
    for name, score in sorted(scores.items()):
        sys.stdout.write(score.row(name) + "\n")
    for name, score in sorted(scores.items()):
        for why, files in sorted(score.why_lost.items(), key=lambda item: -item[1]):
            sys.stdout.write(f"{name}: lost in {files} files: {why}\n")
    sys.stdout.write("".join(f"FAILED {line}\n" for line in failed))
    return 1 if failed or not scores else 0


def read(path: Path, scores: dict[str, Score]) -> Score | None:
    """None: of no format that is known. Raises TorgError for a file that is refused; it counts as one that was not translated."""
    from torg.importers.registry import format_of, jobs_among

    text = path.read_text(encoding="utf-8", errors="replace")
    documents = [document.raw for document in parse_documents(text, str(path))]
    raw = documents[jobs_among(documents)[0]]
    name = format_of(raw)
    if name is None:
        return None
    score = scores[name]
    score.files += 1
    spec_file = read_spec_file(path)
    spec_file.check()
    if spec_file.translation is not None:
        score.add(raw, spec_file.translation)
    return score


if __name__ == "__main__":
    sys.exit(main())
