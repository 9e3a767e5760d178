"""dstack tasks: each feature translated or named as dropped, each mistake with its field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.importers.formats import left_out, lost, problems, spec_of, translated
from torg.spec_file import read_spec_file


def task(**fields: Any) -> dict[str, Any]:
    return {"type": "task", "name": "train", "image": "debian", "commands": ["echo 1", "echo 2"], **fields}


def test_commands_run_in_one_shell_and_stop_at_the_first_failure() -> None:
    spec = spec_of(task(env={"A": 1}, ports=[6006, "8080:80"], max_duration="1h30m", regions=["eu"]), "dstack")

    assert (spec.command, spec.args) == (("/bin/sh", "-c"), ("echo 1 && echo 2",))
    assert [port.port for port in spec.ports] == [6006, 80]
    assert (spec.limits.max_duration, spec.placement.regions) == (5_400_000, ("eu",))
    assert spec_of({**task(), "shell": "bash"}, "dstack").command == ("bash", "-c")


def test_the_folder_of_the_file_goes_along(tmp_path: Path) -> None:
    (tmp_path / ".dstack.yml").write_text("type: task\nimage: debian\ncommands: [ls]\nfiles: ['.']\n")

    spec_file = read_spec_file(tmp_path / ".dstack.yml")

    assert spec_file.workspace == tmp_path.resolve()
    assert spec_file.check().workdir is None


@pytest.mark.parametrize(
    ("gpu", "gpus", "vram", "kinds"),
    [
        ("24GB", 1, 24 << 30, 0),
        ("A100:80GB:2", 2, 80 << 30, 1),
        ("H100,H200:1..4", 1, None, 1),
        (4, 4, None, 0),
        ({"name": ["A100"], "count": "2..4", "memory": "40GB.."}, 2, 40 << 30, 1),
    ],
)
def test_gpus(gpu: Any, gpus: int, vram: int | None, kinds: int) -> None:
    raw = task(resources={"gpu": gpu})
    resources = spec_of(raw, "dstack").resources

    assert (resources.gpus, resources.min_vram, len(lost(raw, "dstack"))) == (gpus, vram, kinds)


def test_of_a_range_the_least_is_asked_for() -> None:
    resources = spec_of(task(resources={"cpu": "4..8", "memory": "16GB..", "disk": {"size": "100GB.."}, "shm_size": "8GB"}), "dstack").resources  # fmt: skip

    assert (resources.cpus, resources.memory >> 30, resources.disk >> 30, resources.shm >> 30) == (4000, 16, 100, 8)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"nodes": 2}, "nodes"),
        ({"privileged": True}, "privileged"),
        ({"registry_auth": {"username": "u", "password": "p"}}, "registry_auth"),
        ({"volumes": ["/mnt/disk:/data"]}, "volumes.0"),
        ({"env": ["HF_TOKEN"]}, "env.0"),
        ({"env": {"K": "${{ secrets.k }}"}}, "env.K"),
        ({"image": None}, "image"),
        ({"files": ["../other:/x"]}, "files.0"),
        ({"working_dir": "src"}, "working_dir"),
        ({"utilization_policy": {"min_gpu_utilization": 20}}, "utilization_policy"),
    ],
)
def test_what_has_no_counterpart_is_lost_by_name(fields: dict[str, Any], path: str) -> None:
    assert lost(task(**fields), "dstack") == [path]


def test_network_volumes_are_kept() -> None:
    spec = spec_of(task(volumes=["v:/data", {"name": "w", "path": "/more"}]), "dstack")

    assert spec.written_volumes == ("v", "w")
    assert [mount.path for mount in spec.tasks[0].volumes] == ["/data", "/more"]


def test_what_chooses_among_clouds_is_a_remark() -> None:
    raw = task(backends=["aws"], spot_policy="auto", retry={"on_events": ["error"], "duration": "1h"}, max_price=2.0)

    assert set(left_out(raw, "dstack")) == {"backends", "spot_policy", "retry.duration", "max_price"}
    assert translated(raw, "dstack").spec["retry"] == {"on_failure": 3}


@pytest.mark.parametrize(
    ("raw", "field", "message"),
    [
        (task(comands=["x"]), "comands", "unknown key"),
        ({"type": "service", "image": "x"}, "type", "only a task becomes a job"),
        (task(max_duration="long"), "max_duration", "not a duration"),
        (task(ports=["http"]), "ports.0", "not a port"),
        (task(resources={"memory": "lots"}), "resources.memory", "not a size"),
        (task(commands="echo"), "commands", "a list is expected"),
        ({"type": "task"}, "commands", "is missing"),
    ],
)
def test_mistakes_are_named_by_field(raw: dict[str, Any], field: str, message: str) -> None:
    assert problems(raw)[field] == message
