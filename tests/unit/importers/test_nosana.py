"""Nosana job definitions: each feature translated or named as dropped, each mistake with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from torg.importers.registry import translation_of
from torg.importers.translation import Translation
from torg.spec_file import read_spec_file
from torg_protocol.errors import Invalid
from torg_protocol.jobspec import load_job_spec


def definition(*ops: dict[str, Any], **around: Any) -> dict[str, Any]:
    return {"version": "0.1", "type": "container", **around, "ops": list(ops)}


def op(name: str = "main", *, results: Any = None, execution: Any = None, **args: Any) -> dict[str, Any]:
    extra = {key: value for key, value in (("results", results), ("execution", execution)) if value is not None}
    return {"type": "container/run", "id": name, "args": {"image": "ubuntu", **args}, **extra}


def translated(raw: dict[str, Any]) -> Translation:
    translation = translation_of(raw)
    assert translation is not None
    load_job_spec(translation.spec)
    return translation


def lost(raw: dict[str, Any]) -> list[str]:
    return [item.path for item in translated(raw).lost]


def problems(raw: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    with pytest.raises(Invalid) as refused:
        translation_of(raw)
    assert refused.value.code == "spec_invalid"
    return {item["field"]: (item["message"], item["hint"]) for item in refused.value.data["problems"]}


@pytest.mark.parametrize(
    ("args", "command", "arguments"),
    [
        ({}, (), ()),
        ({"cmd": []}, (), ()),
        ({"cmd": ["echo", "a b"]}, (), ("echo", "a b")),
        ({"cmd": "echo $HOME"}, (), ("/bin/sh", "-c", "echo $HOME")),
        ({"entrypoint": "bash", "cmd": ["-c", "true"]}, ("bash",), ("-c", "true")),
        ({"entrypoint": ["bash", "-c"], "cmd": ["true"]}, ("bash", "-c"), ("true",)),
        ({"entrypoint": ["__remove-if-empty__"], "cmd": ["__remove-if-empty__", "x"]}, (), ("x",)),
    ],
)
def test_entrypoint_is_our_command_and_cmd_its_arguments(
    args: dict[str, Any], command: tuple[str, ...], arguments: tuple[str, ...]
) -> None:
    spec = load_job_spec(translated(definition(op(**args))).spec)

    assert (spec.command, spec.args, spec.workdir) == (command, arguments, "image")


def test_what_an_operation_leaves_open_comes_from_global() -> None:
    shared = {
        "image": "debian",
        "gpu": True,
        "entrypoint": ["sh"],
        "env": {"A": "1", "B": "1"},
        "work_dir": "/srv",
    }
    operation = {"type": "container/run", "id": "x", "args": {"env": {"B": "2"}}}

    spec = translated(definition(operation, **{"global": shared})).spec

    assert (spec["image"], spec["command"], spec["workdir"]) == ("debian", ["sh"], "/srv")
    assert spec["env"] == {"A": "1", "B": "2"}
    assert spec["resources"]["gpus"] == 1


@pytest.mark.parametrize("word", ["global", "globals"])
def test_variables_of_the_file_are_filled_in_wherever_they_stand(word: str) -> None:
    literal = f"%%{word}.variables.MODEL%%"
    raw = definition(
        op(cmd=["run", f"--model={literal}"], env={"M": literal}), **{"global": {"variables": {"MODEL": "m:1"}}}
    )

    spec = translated(raw).spec

    assert spec["args"] == ["run", "--model=m:1"]
    assert spec["env"] == {"M": "m:1"}


def test_json_in_a_variable_is_spread_into_lists_and_mappings() -> None:
    variables = {"ENV": '{"A": "1", "B": "1"}', "PAIRS": '[{"key": "C", "value": "3"}]'}
    env = {"A": "0", "__spread__": "%%global.variables.ENV%%", "B": "2"}

    assert translated(definition(op(env=env), **{"global": {"variables": variables}})).spec["env"] == {
        "A": "1",
        "B": "2",
    }
    pairs = {"D": "4", "__spread__": "%%global.variables.PAIRS%%"}
    assert translated(definition(op(env=pairs), **{"global": {"variables": variables}})).spec["env"] == {
        "D": "4",
        "C": "3",
    }


def test_an_unknown_variable_is_named_with_those_that_are_there() -> None:
    raw = definition(op(cmd=["%%global.variables.MODLE%%"]), **{"global": {"variables": {"MODEL": "m"}}})

    assert problems(raw) == {"ops.0.args.cmd.0": ('there is no variable "MODLE"', "global.variables has: MODEL")}


def test_literals_become_expressions_and_wait_for_what_they_need() -> None:
    results = {"port": "(?<=port: ).*", "pair": {"regex": "(a)(b)", "logType": ["stderr"]}}
    group = {"group": "one"}
    raw = definition(
        op("Say", cmd="echo port: 80", results=results, execution=group),
        op(
            "use",
            cmd=["--port", "%%ops.Say.results.port%%", "id-%%globals.job%%"],
            env={"H": "%%global.host%%", "P": "%%global.project%%"},
            execution={**group, "depends_on": ["Say"]},
        ),
    )

    say, use = load_job_spec(translated(raw).spec).tasks

    assert translated(raw).lost == ()
    assert (say.results["port"].regex, say.results["port"].streams) == ("(?<=port: ).*", ("stdout", "stderr"))
    assert (say.results["pair"].regex, say.results["pair"].streams) == ("((a)(b))", ("stderr",))
    assert use.args == ("--port", "${{ tasks.say.results.port }}", "id-${{ job.id }}")
    assert use.env == {"H": "${{ node.id }}", "P": "${{ client.id }}"}
    assert [(item.task, item.until) for item in use.depends_on] == [("say", "succeeded")]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"cmd": ["%%ops.a.host%%"]}, "ops.1.args.cmd"),
        ({"cmd": ["%%global.frps_address%%"]}, "ops.1.args.cmd"),
        ({"env": {"__spread__": "%%ops.a.results.k%%", "A": "1"}}, "ops.1.args.env.__spread__"),
        ({"entrypoint": ["__remove-if-empty__", "%%ops.a.results.k%%"]}, "ops.1.args.entrypoint"),
        ({"image": "%%ops.a.results.k%%"}, "ops.1.args.image"),
        ({"resources": [{"__spread__": "%%ops.a.results.k%%"}]}, "ops.1.args.resources.0"),
        ({"expose": [{"__spread__": "%%ops.a.results.k%%"}]}, "ops.1.args.expose.0"),
    ],
)
def test_what_only_the_run_can_fill_in_is_lost(fields: dict[str, Any], path: str) -> None:
    assert lost(definition(op("a", results={"k": "x"}), op("b", **fields))) == [path]


def test_a_pattern_that_is_none_is_left_out_and_one_of_other_streams_lost() -> None:
    raw = definition(op(results={"bad": "(", "node": {"regex": "x", "logType": ["nodeerr"]}, "good": "x"}))

    assert list(load_job_spec(translated(raw).spec).tasks[0].results) == ["good"]
    assert lost(raw) == ["ops.0.results.node"]
    assert "ops.0.results.bad" in [item.path for item in translated(raw).dropped]


def test_resources_are_inputs() -> None:
    raw = definition(
        op(
            resources=[
                {"type": "HF", "repo": "a/b", "target": "/m/", "files": ["x.bin"], "revision": "v1"},
                {"type": "Ollama", "model": "gemma3:4b"},
                {"type": "S3", "url": "s3://bucket/prefix", "target": "/s"},
                {"type": "S3", "bucket": "other", "url": "https://s3.example.org", "target": "/t"},
                {"type": "S3", "buckets": [{"url": "s3://one"}, {"url": "s3://two", "files": ["f"]}], "target": "/u"},
            ]
        )
    )
    spec = load_job_spec(translated(raw).spec)

    assert [item.kind for item in spec.inputs] == ["huggingface", "ollama", "s3", "s3", "s3"]
    assert [item.path for item in spec.inputs][:3] == ["/m", "/ollama-models", "/s"]
    assert spec.env == {"OLLAMA_MODELS": "/ollama-models"}
    assert spec.resources.disk >= 50 << 30
    assert lost(raw) == ["ops.0.args.resources.4"]  # the second bucket, at the place of the first


@pytest.mark.parametrize(
    "meta",
    [
        {"system_requirements": {"vram_total_mb": 17408}},
        {"system_resources": {"required_vram": 17.408}},
        {"system_requirements": {"vram_total_mb": "17408", "required_cuda": ["12.8"]}},
    ],
)
def test_the_memory_that_a_file_says_it_needs_becomes_a_condition(meta: dict[str, Any]) -> None:
    spec = load_job_spec(translated(definition(op(gpu=True), meta=meta)).spec)

    assert (spec.resources.gpus, spec.resources.min_vram) == (1, 17_408_000_000)
    assert spec.resources.memory > 8 << 30


def test_remarks_do_not_stop_a_job_but_are_told() -> None:
    raw = definition(op(output="/out"), meta={"trigger": "cli"}, deployment_id="d")

    translation = translated(raw)

    assert translation.lost == ()
    assert [item.path for item in translation.dropped] == [
        "meta.trigger",
        "deployment_id",
        "ops.0.args.output",
        "network",
    ]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"authentication": {"docker": {"username": "u", "password": "p"}}}, "ops.0.args.authentication"),
        ({"execution": {"stop_if_dependent_stops": True}}, "ops.0.execution.stop_if_dependent_stops"),
        (
            {"resources": [{"type": "HF", "repo": "a/b", "target": "/m", "accessToken": "t"}]},
            "ops.0.args.resources.0.accessToken",
        ),
        (
            {"resources": [{"type": "S3", "url": "https://example.org/x", "target": "/m"}]},
            "ops.0.args.resources.0.url",
        ),
        (
            {"resources": [{"type": "S3", "url": "s3://bucket/k", "target": "/m", "allowWrite": True}]},
            "ops.0.args.resources.0.allowWrite",
        ),
    ],
)
def test_what_has_no_counterpart_is_lost_by_name(fields: dict[str, Any], path: str) -> None:
    assert lost(definition(op(**fields))) == [path]


def test_secrets_are_not_repeated_in_what_was_dropped() -> None:
    login = {"docker": {"username": "u", "password": "hunter2"}}

    assert "hunter2" not in str([item.wire() for item in translated(definition(op(authentication=login))).dropped])


def test_several_operations_are_tasks_in_groups_that_wait_as_they_do_there() -> None:
    volume = {"type": "container/create-volume", "id": "make", "args": {"name": "Data"}}
    raw = definition(
        volume,
        op("Write", volumes=[{"name": "Data", "dest": "/data"}], execution={"group": "one"}),
        op("read", gpu=True, volumes=[{"name": "Data", "dest": "/data"}], execution={"group": "one", "depends_on": ["Write"], "timeout": 5}),
        op("later", cmd="exit 3", restart_policy={"policy": "on-failure", "restart_tries": 2}),
        **{"global": {"env": {"A": "1"}}},
    )  # fmt: skip

    spec = load_job_spec(translated(raw).spec)

    assert translated(raw).lost == ()
    assert set(spec.volumes) == {"data"}
    write, read, later = spec.tasks
    assert (write.name, write.group, later.group) == ("write", "one", "later")
    assert [(item.task, item.until) for item in read.depends_on] == [("write", "started")]
    assert [(mount.volume, mount.path) for mount in read.volumes] == [("data", "/data")]
    assert (read.timeout, read.gpu, write.gpu, spec.resources.gpus) == (5_000, True, False, 1)
    assert (later.restart.policy, later.restart.max_restarts, later.args) == (
        "on-failure",
        2,
        ("/bin/sh", "-c", "exit 3"),
    )
    assert later.env == {"A": "1"}


def test_names_that_become_equal_stay_apart() -> None:
    spec = load_job_spec(translated(definition(op("A"), op("a"), op("a%"))).spec)

    assert [task.name for task in spec.tasks] == ["a", "a-2", "a-3"]


@pytest.mark.parametrize(
    ("policy", "ours"), [("always", "always"), ("unless-stopped", "always"), ("on-failure", "on-failure")]
)
def test_one_operation_that_starts_again_is_a_task(policy: str, ours: str) -> None:
    (task,) = load_job_spec(translated(definition(op(restart_policy=policy))).spec).tasks

    assert task.restart.policy == ours


def test_exposed_ports_with_their_checks() -> None:
    get = {"type": "http", "path": "/ok", "method": "GET", "expected_status": 204, "continuous": True}
    post = {**get, "method": "POST", "body": {"a": 1}}
    raw = definition(op(expose=[8000, "8001-8002", {"port": 80, "health_checks": [post, get]}]), meta={})

    translation = translated(raw)
    ports = load_job_spec(translation.spec).ports

    assert [(port.port, port.health.http, port.health.expect_status) for port in ports] == [
        (8000, None, None),
        (8001, None, None),
        (8002, None, None),
        (80, "/ok", 204),
    ]
    assert [item.path for item in translation.dropped] == ["ops.0.args.expose.2.health_checks.0", "network"]


def test_ports_of_several_operations_are_their_tasks_and_too_many_are_lost() -> None:
    assert lost(definition(op(expose="8000-8100"))) == ["ops.0.args.expose.0"]
    raw = definition(op("a", expose=80), op("b", expose=[80, "90-91"]), op("c", expose="100-114"))
    assert lost(raw) == ["ops.2.args.expose.0"]
    spec = load_job_spec(translated(raw).spec)
    assert [(task, port.port) for task, port in spec.declared_ports] == [("a", 80), ("b", 80), ("b", 90), ("b", 91)]


def test_what_serves_may_start_again_have_volumes_and_results_and_know_its_job() -> None:
    more = {"restart_policy": "always", "results": {"k": "x"}, "cmd": ["%%global.job%%"]}
    raw = definition(op(expose=80, **more))
    spec = load_job_spec(translated(raw).spec)
    assert lost(raw) == []
    assert [port.port for port in spec.tasks[0].ports] == [80]
    assert spec.tasks[0].restart.policy == "always"


def test_who_waits_for_a_health_check_does_so_here() -> None:
    checked = {
        "port": 80,
        "health_checks": [{"type": "http", "method": "GET", "path": "/", "expected_status": 200, "continuous": False}],
    }
    group = {"group": "g"}
    raw = definition(op("a", expose=[checked], execution=group), op("b", execution={**group, "depends_on": ["a"]}))
    assert lost(raw) == []
    (wait,) = load_job_spec(translated(raw).spec).tasks[1].depends_on
    assert (wait.task, wait.until) == ("a", "ready")


def test_a_timeout_is_the_longest_duration() -> None:
    assert translated(definition(op(execution={"timeout": 90}))).spec["limits"] == {"max_duration": "90s"}


@pytest.mark.parametrize(
    ("operation", "field", "message"),
    [
        ({**op(), "agrs": 1}, "ops.0.agrs", "unknown key"),
        (op(gpu="yes"), "ops.0.args.gpu", "true or false is expected"),
        (op(cmd=[1]), "ops.0.args.cmd", "item 0 is not a text"),
        (op(env={"A": 1}), "ops.0.args.env.A", "a text is expected"),
        (op("a b"), "ops.0.id", "an id has at least one character and no spaces"),
        (op(expose=0), "ops.0.args.expose", "not a port: 1 to 65535"),
        (op(expose="9-8"), "ops.0.args.expose", 'not a port: write a number, a range like "8000-8010" or a literal'),
        (op(expose=[80, "79-81"]), "ops.0.args.expose.1", "exposed twice"),
        (op(expose=[{"port": 80, "health_checks": [{"type": "tcp"}]}]), "ops.0.args.expose.0.health_checks.0", "not one of: 'http', 'websocket'"),
        (op(volumes=[{"name": "v", "dest": "/v"}]), "ops.0.args.volumes.0.name", "no such volume"),
        (op(restart_policy="sometimes"), "ops.0.args.restart_policy", "not one of: 'no', 'always', 'unless-stopped' or 'on-failure'"),
        (op(execution={"depends_on": ["ghost"]}), "ops.0.execution.depends_on.0", "not in this group"),
        (op(resources=[{"type": "HF", "target": "/m"}]), "ops.0.args.resources.0.repo", "is missing"),
        (op(resources=[{"type": "FTP"}]), "ops.0.args.resources.0", "its type is not one of: S3, HF, Ollama"),
        (op(image=None), "ops.0.args.image", "is missing"),
        (op(results={"k": {"regex": "x", "logType": ["log"]}}), "ops.0.results.k.logType.0", "not one of: 'stdin', 'stdout', 'stderr' or 'nodeerr'"),
        ({"type": "container/stop", "id": "x"}, "ops.0", "not one of: 'container/run', 'container/create-volume'"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_field(operation: dict[str, Any], field: str, message: str) -> None:
    assert problems(definition(operation))[field][0] == message


def test_two_operations_of_one_name_and_none_at_all() -> None:
    assert problems(definition(op("a"), op("a")))["ops.1.id"] == ("there twice", "ops.0 has it too")
    assert "ops" in problems(definition())
    volume = {"type": "container/create-volume", "id": "v", "args": {"name": "v"}}
    assert problems(definition(volume)) == {"ops": ("nothing runs: there is no container/run operation", None)}


def test_a_near_miss_gets_a_suggestion() -> None:
    assert problems(definition(op(gpuu=True)))["ops.0.args.gpuu"] == ("unknown key", 'did you mean "gpu"?')
    assert problems({**definition(op()), "metta": {}})["metta"][1] == 'did you mean "meta"?'


def test_a_file_is_refused_with_line_and_column_in_its_authors_words(tmp_path: Path) -> None:
    raw = definition(op(env={"TORG_X": "1"}), op("second", cmd=3))
    file = tmp_path / "nosana.json"
    file.write_text(json.dumps(raw, indent=2))

    with pytest.raises(Invalid) as refused:
        read_spec_file(file).check()

    (problem,) = refused.value.data["problems"]
    line = next(number for number, text in enumerate(file.read_text().splitlines(), 1) if '"cmd": 3' in text)
    assert (problem["field"], problem["line"]) == ("ops.1.args.cmd", line)


def test_what_only_our_spec_forbids_is_told_by_their_line_too(tmp_path: Path) -> None:
    file = tmp_path / "nosana.json"
    file.write_text(json.dumps(definition(op(env={"TORG_X": "1"})), indent=2))

    with pytest.raises(Invalid, match="TORG_") as refused:
        read_spec_file(file).check()

    assert refused.value.field == "ops.0.args.env"
    assert refused.value.data["problems"][0]["line"] == 10


def test_a_job_file_of_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("version: 1\ncommand: [python]\n")

    assert read_spec_file(tmp_path / "job.yaml").translation is None


def test_what_lost_meaning_is_not_submitted_unless_that_is_allowed(tmp_path: Path) -> None:
    from dataclasses import replace

    (tmp_path / "n.json").write_text(json.dumps(definition(op(expose="8000-8100"))))
    spec_file = read_spec_file(tmp_path / "n.json")

    assert spec_file.check().image == "ubuntu"
    with pytest.raises(Invalid, match="at most 16 ports") as refused:
        spec_file.with_workspace(None, 0)
    assert (refused.value.code, refused.value.field) == ("import_incomplete", "ops.0.args.expose.0")
    assert replace(spec_file, allow_dropped=True).with_workspace(None, 0).image == "ubuntu"


def test_a_stream_that_no_result_is_read_from_is_told() -> None:
    raw = definition(op(results={"both": {"regex": "x", "logType": ["stdout", "nodeerr"]}}))

    assert "ops.0.results.both.logType" in lost(raw)


def test_a_server_starts_before_those_that_it_serves() -> None:
    check = {
        "type": "http",
        "path": "/",
        "method": "GET",
        "expected_status": 200,
    }  # without `continuous`, as in older files
    serving = {"group": "pair", "depends_on": ["client"], "stop_if_dependent_stops": True}
    raw = definition(
        op("client", execution={"group": "pair"}),
        op("server", expose=[{"port": 80, "health_checks": [check]}], execution=serving),
    )
    client, server = load_job_spec(translated(raw).spec).tasks

    assert [(item.task, item.until) for item in client.depends_on] == [("server", "ready")]
    assert not server.depends_on
    assert lost(raw) == ["ops.1.execution.stop_if_dependent_stops"]


def test_variables_are_filled_into_the_names_of_results() -> None:
    raw = definition(
        op("a", results={"%%global.variables.V%%_speed": "x"}),
        op("b", cmd="%%ops.a.results.fast_speed%%"),
        **{"global": {"variables": {"V": "fast"}}},
    )

    assert [*load_job_spec(translated(raw).spec).tasks[0].results] == ["fast_speed"]
