"""Which imported jobs get a way out, and that it is always told."""

from __future__ import annotations

from typing import Any

import pytest

from torg.importers.registry import translation_of


def translation(**args: Any) -> Any:
    raw = {"version": "0.1", "type": "container", "ops": [{"type": "container/run", "id": "x", "args": args}]}
    return translation_of(raw)


@pytest.mark.parametrize("image", ["ubuntu", "docker.io/library/debian:12", "python@sha256:" + "0" * 64, "nginx:1.25"])
def test_base_images_that_speak_of_no_network_have_none(image: str) -> None:
    found = translation(image=image, cmd=["echo", "hello"])

    assert "network" not in found.spec
    about = [(item.path, item.value) for item in found.dropped if item.path != "root"]
    assert about == [("network", "none")]


@pytest.mark.parametrize(
    ("image", "cmd"),
    [
        ("vllm/vllm-openai:v0.10.2", []),
        ("ghcr.io/ubuntu", []),
        ("ubuntu", "curl example.org"),
        ("python:3.12", "pip install x && python train.py"),
        ("ubuntu", ["fetch", "https://example.org/x"]),
    ],
)
def test_all_others_reach_the_internet_as_there(image: str, cmd: Any) -> None:
    found = translation(image=image, cmd=cmd)

    assert found.spec["network"] == "open"
    assert found.dropped[-1].path == "network"
    assert not found.dropped[-1].changes_meaning
