"""docker-compose files: each feature translated or named as dropped, each mistake with its field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.importers.formats import left_out, lost, problems, spec_of
from torg.importers.registry import translation_of
from torg.importers.surroundings import Surroundings
from torg.spec_file import read_spec_file
from torg_protocol.ports import Port


def service(**fields: Any) -> dict[str, Any]:
    return {"services": {"main": {"image": "debian", **fields}}}


def test_one_service_is_a_job() -> None:
    text = """
name: demo
services:
  web:
    image: nginx:1.25
    entrypoint: /entry.sh --fast
    command: ["-g", "daemon off;"]
    working_dir: /srv
    environment: {A: 1, DEBUG: true, NAME: "x y"}
    ports: ["8080:80", "127.0.0.1:9001:9000/tcp", {target: 7000, published: "7001"}, "3000-3001"]
    shm_size: 64m
    deploy:
      resources:
        limits: {cpus: "0.5", memory: 512M}
"""
    spec = spec_of(text, "compose")

    assert (spec.name, spec.image, spec.workdir) == ("demo", "nginx:1.25", "/srv")
    assert (spec.command, spec.args) == (("/entry.sh", "--fast"), ("-g", "daemon off;"))
    assert spec.env == {"A": "1", "DEBUG": "true", "NAME": "x y"}
    assert [port.port for port in spec.ports] == [80, 9000, 7000, 3000, 3001]
    assert (spec.resources.cpus, spec.resources.memory, spec.resources.shm) == (500, 512 << 20, 64 << 20)
    assert lost(text, "compose") == []


def test_several_services_are_tasks() -> None:
    text = """
services:
  prepare:
    image: busybox
    command: sh -c "echo ready > /data/x"
    volumes: ["data:/data"]
  main:
    image: busybox
    volumes: [{type: volume, source: data, target: /data, read_only: true}]
    depends_on: {prepare: {condition: service_completed_successfully}}
    restart: on-failure:3
volumes:
  data:
"""
    spec = spec_of(text, "compose")
    prepare, main = spec.tasks

    assert prepare.args == ("sh", "-c", "echo ready > /data/x")
    assert [(item.task, item.until) for item in main.depends_on] == [("prepare", "succeeded")]
    assert [(mount.volume, mount.path, mount.read_only) for mount in main.volumes] == [("data", "/data", True)]
    assert (main.restart.policy, main.restart.max_restarts) == ("on-failure", 3)
    assert spec.volumes["data"].keep, "as it outlives the containers there"
    assert lost(text, "compose") == [], "one ends before the other begins"


def test_volumes_by_name_are_kept() -> None:
    text = """
services:
  main:
    image: busybox
    command: ls
    volumes: ["db:/db", "models:/models:ro", "/cache"]
volumes:
  db: {name: prod_db}
  models: {external: true}
  unused:
"""
    spec = spec_of(text, "compose")

    assert spec.written_volumes == ("prod_db",)
    assert (spec.volumes["models"].keep, spec.volumes["models"].read_only) == (True, True)
    assert not spec.volumes["main-3"].keep
    assert len(spec.volumes) == 3
    assert lost(text, "compose") == []


def test_folders_without_a_name_are_empty_volumes() -> None:
    spec = spec_of(service(volumes=["/cache"], tmpfs="/run"), "compose")

    assert [mount.path for mount in spec.tasks[0].volumes] == ["/cache", "/run"]


@pytest.mark.parametrize(
    ("fields", "gpus"),
    [
        ({"gpus": "all"}, 1),
        ({"gpus": [{"driver": "nvidia", "count": 2}]}, 2),
        ({"deploy": {"resources": {"reservations": {"devices": [{"capabilities": ["gpu"], "count": "all"}]}}}}, 1),
        ({"deploy": {"resources": {"reservations": {"devices": [{"capabilities": ["gpu"], "device_ids": ["0", "3"]}]}}}}, 2),
    ],
)  # fmt: skip
def test_gpus(fields: dict[str, Any], gpus: int) -> None:
    assert spec_of(service(**fields), "compose").resources.gpus == gpus


def test_variables_with_a_default_have_it_and_others_are_lost() -> None:
    raw = service(image="app:${TAG:-1.0}", command=["$$HOME", "${WHO}"])

    assert (spec_of(raw, "compose").image, spec_of(raw, "compose").args) == ("app:1.0", ("$HOME", ""))
    assert lost(raw, "compose") == ["services.main.command.1"]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"volumes": ["./src:/app"]}, "services.main.volumes.0"),
        ({"ports": ["53:53/udp"]}, "services.main.ports.0"),
        ({"privileged": True}, "services.main.privileged"),
        ({"user": "1000"}, "services.main.user"),
        ({"env_file": ".env"}, "services.main.env_file"),
        ({"network_mode": "host"}, "services.main.network_mode"),
        ({"secrets": ["key"]}, "services.main.secrets"),
        ({"extends": {"service": "x"}}, "services.main.extends"),
        ({"environment": ["HOME"]}, "services.main.environment.0"),
        ({"deploy": {"replicas": 3}}, "services.main.deploy.replicas"),
        ({"devices": ["/dev/kvm"]}, "services.main.devices"),
        ({"models": {"llm": {}}}, "services.main.models"),
    ],
)
def test_what_has_no_counterpart_is_lost_by_name(fields: dict[str, Any], path: str) -> None:
    assert lost(service(**fields), "compose") == [path]


@pytest.mark.parametrize("field", ["container_name", "labels", "logging", "networks"])
def test_habits_are_remarks(field: str) -> None:
    raw = service(**{field: ["x"]})

    assert (lost(raw, "compose"), left_out(raw, "compose")) == ([], [f"services.main.{field}"])


def two(**main: Any) -> dict[str, Any]:
    raw = service(**main)
    raw["services"]["late"] = {"image": "debian", "depends_on": {"main": {"condition": "service_healthy"}}}
    return raw


def test_waiting_for_the_health_of_a_service_without_a_port_is_lost() -> None:
    assert "services.late.depends_on.main.condition" in lost(two(), "compose")
    assert "services.late.depends_on.main.condition" in lost(
        two(healthcheck={"test": ["CMD", "pg_isready"], "retries": 3}), "compose"
    )


@pytest.mark.parametrize(
    ("test", "port"),
    [
        (["CMD", "curl", "-f", "http://localhost:8080/health"], {"port": 8080, "health": {"http": "/health", "every": "90s"}}),
        (["CMD-SHELL", "curl -fsS http://127.0.0.1:8080/ready?x=1 || exit 1"], {"port": 8080, "health": {"http": "/ready?x=1", "every": "90s"}}),
        ("wget -qO- http://localhost:9000", {"port": 9000, "health": {"http": "/", "every": "90s"}}),
    ],
)  # fmt: skip
def test_a_check_that_asks_its_own_port_is_the_ports_and_others_wait_for_it(test: Any, port: dict[str, Any]) -> None:
    raw = two(ports=["8080:8080"], healthcheck={"test": test, "interval": "1m30s", "retries": 5})
    by_name = {task.name: task for task in spec_of(raw, "compose").tasks}

    assert Port.model_validate(port) in by_name["main"].ports
    assert [(item.task, item.until) for item in by_name["late"].depends_on] == [("main", "ready")]
    assert not [path for path in lost(raw, "compose") if "depends_on" in path or "healthcheck" in path]
    assert "services.main.healthcheck.retries" in left_out(raw, "compose")


def test_a_check_that_is_a_command_is_told_and_the_port_is_asked_instead() -> None:
    raw = two(ports=["5432"], healthcheck={"test": ["CMD", "pg_isready"], "interval": "5s"})

    assert "services.main.healthcheck.test" in left_out(raw, "compose")
    assert not [path for path in lost(raw, "compose") if "depends_on" in path]


@pytest.mark.parametrize("check", [{"disable": True}, {"test": ["NONE"]}, {"test": "NONE"}])
def test_no_check_is_nothing_to_tell(check: dict[str, Any]) -> None:
    raw = service(healthcheck=check)
    assert [path for path in left_out(raw, "compose") if "healthcheck" in path] == []


@pytest.mark.parametrize(
    ("raw", "field", "message"),
    [
        (service(imagee="x"), "services.main.imagee", "unknown key"),
        (service(command='echo "'), "services.main.command", "cannot be split into words: No closing quotation"),
        (service(ports=["http"]), "services.main.ports.0", "not a port"),
        (service(restart="sometimes"), "services.main.restart", "not one of: no, always, unless-stopped, on-failure, on-failure:N"),
        (service(mem_limit="lots"), "services.main.mem_limit", "not a size"),
        (service(cpus="many"), "services.main.cpus", "not a number of cores"),
        (service(volumes=["ghost:/x"]), "services.main.volumes.0", "there is no such volume"),
        (service(depends_on=["ghost"]), "services.main.depends_on", "there is no such service"),
        ({"services": {"main": {"command": "x"}}}, "services.main.image", "is missing"),
        ({"services": {"main": []}}, "services.main", "a mapping is expected"),
        ({"services": {}}, "services", "is missing"),
        ({**service(), "volume": {}}, "volume", "unknown key"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_field(raw: dict[str, Any], field: str, message: str) -> None:
    assert problems(raw)[field] == message


def test_extensions_are_remarks() -> None:
    assert left_out({**service(), "x-common": {"a": 1}}, "compose") == ["x-common"]
    assert left_out({**service(), "version": "3.8"}, "compose") == []


def test_a_service_with_a_profile_waits_to_be_asked_for() -> None:
    raw = {
        "services": {
            "main": {"image": "debian", "depends_on": ["base"]},
            "base": {"image": "debian", "profiles": ["extra"]},
            "debug": {"image": "busybox", "profiles": ["debug"]},
        }
    }

    assert [task.name for task in spec_of(raw, "compose").tasks] == ["main", "base"]
    assert "services.debug.profiles" in left_out(raw, "compose")


def test_where_all_services_have_profiles_all_are_taken() -> None:
    raw = {"services": {name: {"image": "debian", "profiles": [name]} for name in ("a", "b")}}

    assert [task.name for task in spec_of(raw, "compose").tasks] == ["a", "b"]


def test_an_external_volume_as_older_files_name_it() -> None:
    raw = {
        "services": {"main": {"image": "debian", "volumes": ["data:/data"], "restart": ""}},
        "volumes": {"data": {"external": {"name": "shared"}}},
    }

    assert [*spec_of(raw, "compose").volumes] == ["shared"]


def test_a_service_that_is_only_built_is_translated_and_its_image_lost() -> None:
    raw = {"services": {"Web_App": {"build": {"context": "."}, "command": "serve", "ports": ["80"]}}}

    assert (spec_of(raw, "compose").image, spec_of(raw, "compose").args) == ("web_app", ("serve",))
    assert lost(raw, "compose") == ["services.Web_App.build"]


COMPOSE = """
services:
  main:
    image: debian:${TAG:-12}
    command: echo ${GREETING} ${NOBODY-else} ${TAG:+tagged} $$HOME
    environment: [TOKEN, LEVEL=own]
    env_file: [first.env, {path: second.env}, {path: gone.env, required: false}]
"""


def test_variables_come_from_the_shell_and_the_files_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compose.yml").write_text(COMPOSE)
    (tmp_path / ".env").write_text("# of the project\nTAG=11\nexport GREETING='good # day'\n")
    (tmp_path / "first.env").write_text('A=1\nB="two words" # said\nLEVEL=file\n')
    (tmp_path / "second.env").write_text("A=2 # later\nTOKEN\nC=\nD\n")
    monkeypatch.setenv("TAG", "10")
    monkeypatch.setenv("TOKEN", "t0k")
    spec_file = read_spec_file(tmp_path / "compose.yml")
    spec, translation = spec_file.check(), spec_file.translation

    assert spec.image == "debian:10"
    assert spec.args == ("echo", "good", "#", "day", "else", "tagged", "$HOME")
    assert spec.env == {"A": "2", "B": "two words", "C": "", "LEVEL": "own", "TOKEN": "t0k"}
    assert translation is not None
    assert not translation.lost
    assert "services.main.environment.0" in [item.path for item in translation.dropped]
    assert "t0k" not in str([item.wire() for item in translation.dropped])


@pytest.mark.parametrize(
    ("written", "unset", "empty", "there"),
    [
        ("$A", "", "", "x"),
        ("${A-d}", "d", "", "x"),
        ("${A:-d}", "d", "d", "x"),
        ("${A+d}", "", "d", "d"),
        ("${A:+d}", "", "", "d"),
        ("${A?why}", "", "", "x"),
        ("${A:?why}", "", "", "x"),
    ],
)
def test_variables_are_filled_in_as_docker_compose_does(written: str, unset: str, empty: str, there: str) -> None:
    raw = {"services": {"main": {"image": "debian", "environment": {"GOT": f"<{written}>"}}}}
    shells: list[dict[str, str]] = [{}, {"A": ""}, {"A": "x"}]
    found = [translation_of(raw, Surroundings(None, shell)) for shell in shells]

    assert [one.spec["env"]["GOT"] for one in found if one] == [f"<{value}>" for value in (unset, empty, there)]
    needs_one = written[-2:] != "d}"
    is_lost_when_empty = needs_one and ":" in written
    assert [bool(one.lost) for one in found if one] == [needs_one, is_lost_when_empty, False]


def test_what_is_neither_in_the_shell_nor_in_a_file_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compose.yml").write_text(COMPOSE)
    for name in ("TAG", "GREETING", "NOBODY", "TOKEN"):
        monkeypatch.delenv(name, raising=False)
    translation = read_spec_file(tmp_path / "compose.yml").translation

    assert translation is not None
    assert sorted(item.path for item in translation.lost) == [
        "services.main.command",
        "services.main.env_file.0",
        "services.main.env_file.1",
        "services.main.environment.0",
    ]


@pytest.mark.parametrize("name", ["\0", "~nobody-here/x", "..", "x" * 5000])
def test_a_file_of_variables_that_is_none_is_lost(tmp_path: Path, name: str) -> None:
    translation = translation_of(
        {"services": {"main": {"image": "debian", "env_file": [name]}}}, Surroundings(tmp_path)
    )

    assert translation is not None
    assert [item.path for item in translation.lost] == ["services.main.env_file.0"]


@pytest.mark.parametrize("name", [7, None, {"path": 7}, {"required": False}])
def test_the_name_of_a_file_of_variables_is_a_text(name: Any) -> None:
    raw = {"services": {"main": {"image": "debian", "env_file": [name]}}}

    assert next(iter(problems(raw))).startswith("services.main.env_file.0")


def test_a_service_extends_another_one_of_the_file() -> None:
    base = {"image": "debian", "command": ["a"], "environment": ["A=1", "B=1"], "ports": ["80"], "labels": {"x": "1"}}
    middle = {"extends": "base", "environment": {"B": 2}, "ports": ["81"], "command": ["b", "c"]}
    main = {"extends": {"service": "middle"}, "environment": ["C=3"]}
    spec = spec_of({"services": {"main": main, "middle": middle, "base": base}}, "compose").tasks[0]

    assert (spec.image, spec.args, spec.env) == ("debian", ("b", "c"), {"A": "1", "B": "2", "C": "3"})
    assert [port.port for port in spec.ports] == [80, 81]


def test_what_extends_another_file_or_itself_is_told() -> None:
    other = {"services": {"main": {"image": "debian", "extends": {"file": "x.yml", "service": "a"}}}}

    assert lost(other, "compose") == ["services.main.extends"]
    assert problems({"services": {"a": {"extends": "b"}, "b": {"extends": "a"}}}) == {
        "services.a.image": "is missing",
        "services.b.image": "is missing",
    }


def test_services_that_never_run_at_once_need_no_network_between_them() -> None:
    done = {"condition": "service_completed_successfully"}
    services = {
        "fetch": {"image": "debian"},
        "train": {"image": "debian", "depends_on": {"fetch": done}},
        "report": {"image": "debian", "depends_on": {"train": done}},
    }

    assert lost({"services": services}, "compose") == []
    assert lost({"services": {**services, "watch": {"image": "debian", "depends_on": ["train"]}}}, "compose") == [
        "services"
    ]


@pytest.mark.parametrize(
    ("waits", "circle"),
    [
        ({"a": ["a"]}, "a -> a"),
        (
            {"a": ["b"], "b": {"c": {"condition": "service_completed_successfully"}}, "c": ["d", "a"]},
            "a -> b -> c -> a",
        ),
    ],
)
def test_services_that_wait_for_themselves_are_told_where(waits: dict[str, Any], circle: str) -> None:
    services = {name: {"image": "debian", "depends_on": waits.get(name, [])} for name in ("a", "b", "c", "d")}
    assert problems({"services": services}) == {"services.a.depends_on": f"waits for itself: {circle}"}


@pytest.mark.parametrize("device", [{"count": "all"}, {"count": -1}, {}])
def test_all_gpus_are_one_and_that_is_said(device: dict[str, Any]) -> None:
    raw = service(gpus=[{"capabilities": ["gpu"], **device}])
    assert spec_of(raw, "compose").resources.gpus == 1
    assert "services.main.gpus.0.count" in left_out(raw, "compose")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"platform": "linux/arm64"}, "services.main.platform"),
        ({"deploy": {"replicas": 0}}, "services.main.deploy.replicas"),
        ({"scale": 0}, "services.main.scale"),
        ({"uts": "host"}, "services.main.uts"),
        (
            {
                "deploy": {
                    "resources": {
                        "reservations": {"generic_resources": [{"discrete_resource_spec": {"kind": "g", "value": 1}}]}
                    }
                }
            },
            "services.main.deploy.resources.reservations.generic_resources",
        ),
    ],
)
def test_odd_keys_are_lost_by_name(fields: dict[str, Any], path: str) -> None:
    assert lost(service(**fields), "compose") == [path]


def test_keys_without_effect_on_the_job_are_remarks() -> None:
    raw = service(platform="linux/amd64", isolation="default", label_file="labels", deploy={"mode": "global"})
    assert lost(raw, "compose") == []
    assert {
        "services.main.platform",
        "services.main.isolation",
        "services.main.label_file",
        "services.main.deploy.mode",
    } <= {*left_out(raw, "compose")}


def test_services_whose_names_become_one_are_two_tasks() -> None:
    raw = {"services": {"Web": {"image": "debian"}, "web": {"image": "debian"}}}
    assert [one.name for one in spec_of(raw, "compose").tasks] == ["web", "web-2"]
