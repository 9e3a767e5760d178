"""What the how-to shows of `torg-node doctor` is what it says today."""

from __future__ import annotations

import asyncio

import pytest

from scripts.doctor_in_docs import DOCUMENT, block_of, doctor_says, names_in


@pytest.mark.root
@pytest.mark.sandbox
async def test_the_how_to_shows_each_line_that_the_doctor_says() -> None:
    said = await asyncio.to_thread(doctor_says)
    if "FAILED" in said:  # a machine under load may be too slow for a probe; the agent too asks twice
        said = await asyncio.to_thread(doctor_says)

    shown = names_in(block_of(DOCUMENT.read_text()))
    assert shown == names_in(said), "write it anew: .venv/bin/python -m scripts.doctor_in_docs"


def test_values_differ_from_machine_to_machine_and_names_do_not() -> None:
    one = "this machine\n  cpu    AMD EPYC, 2 cores\n  network eth0  speed not established\n  holds   no-mount"
    other = (
        "this machine\n  cpu    Intel, 8 cores\n  network eno1  1 Gbit/s\n  network lan2  1 Gbit/s\n  holds   no-mount"
    )

    assert names_in(one) == names_in(other) == ["this machine", "cpu", "network", "holds no-mount"]
    assert names_in(one) != names_in(one.replace("no-mount", "no-network"))
