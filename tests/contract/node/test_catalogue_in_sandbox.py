"""Workloads of the catalogue where most of them run: in the sandbox, which has none of the host's files but the interpreter and its packages."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.workload_runs import prepare, run_in_sandbox, target_of

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="limits of a job need control groups")]


@pytest.mark.parametrize("name", ["embeddings", "inference", "rl"])
async def test_a_workload_reaches_its_quick_target_in_the_sandbox(name: str, tmp_path: Path) -> None:
    """One reads all of the standard library, one what a package ships, one no file at all. The first once followed a link of Debian's into
    /etc, and failed on every such node; the tests on the host did not notice."""
    root = prepare(name, tmp_path)

    run = await run_in_sandbox(name, root, quick=True)

    assert run.succeeded, f"{run.reason}, code {run.code}: {run.stderr[-2000:].decode(errors='replace')}"
    assert b"Fontconfig" not in run.stderr, "it complained to the client, of a file of the node's that it did not find"
    target, metrics = target_of(name), json.loads((root / "outputs/metrics.json").read_text())
    value, quick = metrics[target["metric"]], target["quick"]
    assert quick.get("least", value) <= value <= quick.get("most", value)
    assert (root / "outputs/plot.png").read_bytes().startswith(b"\x89PNG")
