"""dstack tasks: each feature translated or named as dropped, each mistake with its field."""

from __future__ import annotations

import subprocess
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
        ("24GB", 1, 24 * 10**9, 0),
        ("A100:80GB:2", 2, 80 * 10**9, 0),
        ("H100,H200:1..4", 1, None, 0),
        ("nvidia:4:16GB", 4, 16 * 10**9, 0),
        ("tt-galaxy-wh:2", 2, None, 1),
        (4, 4, None, 0),
        ({"name": ["A100"], "count": "2..4", "memory": "40GB.."}, 2, 40 * 10**9, 0),
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
        ({"privileged": True}, "privileged"),
        ({"volumes": ["/mnt/disk:/data"]}, "volumes.0"),
        ({"env": ["HF_TOKEN"], "entrypoint": "train"}, "env.0"),
        ({"nodes": 2, "volumes": ["v:/data"]}, "nodes"),
        ({"commands": ["mpirun --hostfile $DSTACK_MPI_HOSTFILE x"]}, "commands"),
        ({"resources": {"cpu": "arm:4.."}}, "resources.cpu"),
        ({"repos": [".."]}, "repos.0"),
        ({"dstack": True}, "dstack"),
        ({"env": {"K": "${{ secrets.k }}"}}, "env.K"),
        ({"files": ["../other:/x"]}, "files.0"),
        ({"working_dir": "src"}, "working_dir"),
        ({"utilization_policy": {"min_gpu_utilization": 20}}, "utilization_policy"),
    ],
)
def test_what_has_no_counterpart_is_lost_by_name(fields: dict[str, Any], path: str) -> None:
    assert lost(task(**fields), "dstack") == [path]


def test_a_registrys_credentials_are_read_from_the_variables_that_it_names() -> None:
    login = {"username": "octocat", "password": "${{ env.GH_TOKEN }}"}
    translation = translated(task(image="ghcr.io/org/x:1", registry_auth=login), "dstack")

    assert translation.spec["registries"]["ghcr.io"]["password"] == "REGISTRY_GHCR_IO_PASSWORD"
    assert translation.spec["secrets"] == {
        "REGISTRY_GHCR_IO_USERNAME": {"env": "REGISTRY_GHCR_IO_USERNAME"},
        "REGISTRY_GHCR_IO_PASSWORD": {"env": "GH_TOKEN"},
    }
    assert translation.lost == ()
    assert "registry_auth" in left_out(task(image="ghcr.io/org/x:1", registry_auth=login), "dstack")


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


def shell_of(raw: dict[str, Any]) -> str:
    return spec_of(raw, "dstack").args[0]


def said_by(script: str, folder: Path) -> list[str]:
    run = subprocess.run(
        ["/bin/sh", "-c", script],
        env={"PATH": "/usr/bin:/bin", "TORG_SECRETS_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return run.stdout.split("\n")[:-1]


def test_blocks_of_lines_and_commands_in_the_background_are_joined(tmp_path: Path) -> None:
    commands = ["sleep 0 &", "echo one\necho two\n", "echo three"]

    assert said_by(shell_of(task(commands=commands)), tmp_path) == ["one", "two", "three"]


def test_a_variable_of_the_submitting_shell_is_a_secret_that_the_commands_find(tmp_path: Path) -> None:
    raw = task(env=["TOKEN", "A=1"], commands=["echo $TOKEN"])
    (tmp_path / "TOKEN").write_text("it's $HOME")

    assert translated(raw, "dstack").spec["secrets"] == {"TOKEN": {"env": "TOKEN"}}
    assert translated(raw, "dstack").spec["env"] == {"A": "1"}
    assert (lost(raw, "dstack"), "env.0" in left_out(raw, "dstack")) == ([], True)
    assert said_by(shell_of(raw), tmp_path) == ["it's $HOME"]


def test_their_variables_are_known_on_one_node(tmp_path: Path) -> None:
    commands = ["echo $DSTACK_NODE_RANK $DSTACK_NODES_NUM ${DSTACK_GPUS_PER_NODE} $DSTACK_RUN_NAME"]
    raw = task(commands=commands, resources={"gpu": "L4:2"})

    assert said_by(shell_of(raw), tmp_path) == ["0 1 2 train"]


def test_several_nodes_are_a_gang_whose_members_know_their_rank() -> None:
    raw = task(
        nodes=2,
        resources={"gpu": 8},
        commands=["torchrun --node-rank=$DSTACK_NODE_RANK --master-addr=$DSTACK_MASTER_NODE_IP x.py $DSTACK_GPUS_NUM"],
    )
    spec = spec_of(raw, "dstack")

    assert spec.gang is not None
    assert (spec.gang.size, lost(raw, "dstack")) == (2, [])
    assert spec.args[0].startswith(
        'export DSTACK_NODE_RANK="$TORG_RANK" && export DSTACK_MASTER_NODE_IP="$MASTER_ADDR" && export DSTACK_GPUS_NUM="16" && torchrun'
    )


@pytest.mark.parametrize(("python", "version"), [(None, "3.12"), ("3.11", "3.11"), (3.12, "3.12"), (3.1, "3.10")])
def test_without_an_image_their_default_runs_with_its_python(python: Any, version: str) -> None:
    raw = {key: value for key, value in task(python=python).items() if key != "image"}
    spec = spec_of(raw, "dstack")

    assert (spec.image, spec.command) == ("dstackai/base:0.16-base-ubuntu24.04", ("/bin/bash", "-c"))
    assert spec.args[0].startswith(f"uv venv -q --seed -p {version} ")
    assert "image" in left_out(raw, "dstack")
    assert spec_of({**raw, "nvcc": True}, "dstack").image == "dstackai/base:0.16-devel-ubuntu24.04"


def test_a_file_beside_the_task_brings_its_folder() -> None:
    raw = task(files=["train.py", "conf/a.yaml"])

    assert translated(raw, "dstack").spec["workspace"] == "."
    assert lost(raw, "dstack") == []
    assert lost(task(files=["../train.py", ".:elsewhere", "~/.ssh/id"]), "dstack") == ["files.0", "files.1", "files.2"]


def test_groups_of_nodes_are_refused_with_a_way_out() -> None:
    assert problems(task(groups=[{"nodes": 1}])) == {"groups": "a job runs the same commands on all of its nodes"}


@pytest.mark.parametrize("said", [7.5, "7.5", [7, 5]])
def test_a_compute_capability_is_asked_for(said: Any) -> None:
    raw = task(resources={"gpu": {"count": 1, "compute_capability": said}})
    assert spec_of(raw, "dstack").resources.min_compute_capability == "7.5"
    assert lost(raw, "dstack") == []


def test_of_a_volumes_names_in_several_regions_the_first_is_taken() -> None:
    raw = task(volumes=[{"name": ["eu", "us"], "path": "/data"}])
    assert [*spec_of(raw, "dstack").volumes] == ["eu"]
    assert "volumes.0.name" in left_out(raw, "dstack")
    assert problems(task(volumes=["data"])) == {"volumes.0": "not NAME:PATH"}
