"""Whether an imported job is root in its container."""

from __future__ import annotations

from typing import Any

import pytest

from torg.importers.registry import translation_of


def translation(**args: Any) -> Any:
    raw = {"version": "0.1", "type": "container", "ops": [{"type": "container/run", "id": "x", "args": args}]}
    return translation_of(raw)


@pytest.mark.parametrize(
    ("image", "cmd"),
    [
        ("ubuntu", ["echo", "hello"]),
        ("docker.io/library/python:3.12", ["python", "-c", "print(1)"]),
        ("busybox", "x > /dev/null"),
    ],
)
def test_plain_shells_that_speak_of_nothing_that_root_does_run_on_any_node(image: str, cmd: Any) -> None:
    found = translation(image=image, cmd=cmd)
    assert "root" not in found.spec
    assert "root" not in {item.path for item in found.dropped}


@pytest.mark.parametrize(
    ("image", "cmd"),
    [
        ("nginx", []),
        ("jupyter/base-notebook", []),
        ("ubuntu", "apt-get install -y git && make"),
        ("python:3.12", "pip install x && python train.py"),
        ("ubuntu", "echo done > /result"),
        ("ghcr.io/somebody/ubuntu", []),
    ],
)
def test_all_others_are_root_as_there_and_are_told_so(image: str, cmd: Any) -> None:
    found = translation(image=image, cmd=cmd)
    (told,) = [item for item in found.dropped if item.path == "root"]
    assert found.spec["root"] is True
    assert not told.changes_meaning
    assert "only nodes that give a root" in told.why


def test_with_a_gpu_it_is_nobody_and_told_so() -> None:
    found = translation(image="comfyui/comfyui", cmd=[], gpu=True)
    (told,) = [item for item in found.dropped if item.path == "root"]
    assert "root" not in found.spec
    assert (told.value, told.changes_meaning) == ("false", False)
