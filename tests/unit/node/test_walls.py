"""Which failed probes keep a node from offering itself."""

from __future__ import annotations

import pytest

from torg_node.executors.errors import ExecutorUnavailable
from torg_node.executors.port import Capabilities
from torg_node.executors.probes import check_walls


def _found(*failed: str) -> Capabilities:
    return Capabilities("sandbox", "bubblewrap 0.8.0", "sandbox", ("seccomp",), failed)


def test_a_missing_wall_is_refused_by_name() -> None:
    with pytest.raises(ExecutorUnavailable) as refused:
        check_walls(_found("memory-limit: none", "no-network: reached the host", "not-host-root: uid 0"))

    assert refused.value.code == "isolation_broken"
    assert refused.value.message.endswith("no-network: reached the host; not-host-root: uid 0")


def test_a_missing_limit_is_left_out_of_the_offer_and_no_more() -> None:
    check_walls(_found("memory-limit: rlimits bound each process only"))
