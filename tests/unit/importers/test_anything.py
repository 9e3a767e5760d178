"""Whatever stands anywhere in a file of another platform: a translation, or an error of the tree; never a traceback."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.importers import test_akash, test_compose, test_dstack, test_kubernetes, test_nosana
from torg.importers.registry import translation_of
from torg.spec_file import spec_from_mapping
from torg_protocol.errors import Invalid, TorgError

PROBE = {"httpGet": {"path": "/", "port": 80}}
DOCUMENTS: dict[str, dict[str, Any]] = {
    "nosana": test_nosana.definition(
        {"type": "container/create-volume", "id": "v", "args": {"name": "v"}},
        test_nosana.op(
            "a",
            cmd=["x", "%%global.variables.V%%"],
            entrypoint="sh",
            env={"A": "1", "__spread__": "%%global.variables.J%%"},
            gpu=True,
            expose=[{"port": 80, "type": "web", "health_checks": [{"type": "http", "path": "/", "method": "GET", "expected_status": 200, "continuous": True}]}],
            volumes=[{"name": "v", "dest": "/v"}],
            resources=[{"type": "HF", "repo": "a/b", "target": "/m"}, {"type": "S3", "url": "s3://bucket/k", "target": "/s"}, {"type": "Ollama", "model": "m"}],
            restart_policy={"policy": "on-failure", "restart_tries": 2},
            authentication={"docker": {"username": "u"}},
            results={"k": {"regex": "x", "logType": ["stdout"]}},
            execution={"group": "g", "timeout": 5},
        ),
        test_nosana.op("b", cmd="%%ops.a.results.k%%", execution={"group": "g", "depends_on": ["a"]}),
        meta={"system_requirements": {"vram_total_mb": 1000}},
        **{"global": {"variables": {"V": "v", "J": '{"B": "2"}'}, "env": {"C": "3"}}},
    ),
    "compose": {"services": {"other": {"image": "debian"}} | test_compose.service(
        command="a b", environment=["A=1"], env_file=["a", {"path": "b"}], profiles=["p"], ports=["80:80", {"target": 81}], volumes=["/x", {"type": "bind", "source": "./a", "target": "/a"}],
        depends_on={"other": {"condition": "service_started"}}, restart="always", tmpfs=["/t"], gpus=[{"count": 1}],
        deploy={"replicas": 1, "resources": {"limits": {"cpus": "1", "memory": "1g"}, "reservations": {"devices": [{"capabilities": ["gpu"]}]}}},
    )["services"]},
    "kubernetes": test_kubernetes.job(
        test_kubernetes.container(
            command=["x", "$(A)"], env=[{"name": "A", "value": "1"}], ports=[{"containerPort": 80}], readinessProbe=PROBE,
            resources={"limits": {"cpu": 1, "memory": "1Gi", "nvidia.com/gpu": 1}}, volumeMounts=[{"name": "v", "mountPath": "/v"}],
        ),
        pod={"volumes": [{"name": "v", "emptyDir": {}}], "initContainers": [test_kubernetes.container("first")]},
        backoffLimit=1,
    ),
    "akash": test_akash.sdl(
        {"expose": [{"port": 80, "to": [{"global": True}]}], "env": ["A=1"], "params": {"storage": {"default": {"mount": "/d"}}}},
        {"gpu": {"units": 1, "attributes": {"vendor": {"nvidia": [{"model": "a100", "ram": "80Gi"}]}}}, "storage": [{"size": "1Gi"}]},
    ),
    "dstack": test_dstack.task(
        env={"A": "1", "T": None}, ports=["80:80"], files=["."], nodes=2, python=3.12, retry={"on_events": ["error"]}, max_duration="1h",
        resources={"gpu": {"name": ["A100"], "count": 1}, "cpu": "1..2", "memory": "1GB", "disk": {"size": "1GB"}},
    ),
}  # fmt: skip
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**20), st.floats(allow_nan=False), st.text(max_size=6),
    st.sampled_from(["%%ops.a.results.k%%", "%%global.variables.V%%", "${X:?}", "1..", "..", "8000-9", "(", "[", "-1", "NaN", "1e9Gi", "a=b", ":", "../x"]),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)), max_size=2),
    st.dictionaries(st.text(max_size=4), st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=2),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def put(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    owner: Any = document
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value


@pytest.mark.parametrize("name", DOCUMENTS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_translation_or_an_error_of_the_tree(name: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    document = copy.deepcopy(DOCUMENTS[name])
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(list(places(document))))
        put(document, place, data.draw(JUNK))
    try:
        translation = translation_of(document)
        if translation is not None:
            spec_from_mapping(translation.spec, base=tmp_path_factory.getbasetemp()).check()
    except TorgError:
        pass


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("key", [1, None, True, 1.5])
def test_a_key_that_is_no_text_is_refused_by_its_name(name: str, key: object) -> None:
    """YAML reads `1:`, `:` and `on:` so."""
    document: dict[Any, Any] = {**copy.deepcopy(DOCUMENTS[name]), key: "x"}

    with pytest.raises(Invalid) as refused:
        translation_of(document)
    assert str(key) in [item["field"] for item in refused.value.data["problems"]]


@pytest.mark.parametrize("amount", ["9999999999Gi", 10**20])
def test_an_amount_that_no_machine_has_is_refused_by_its_field(amount: object) -> None:
    raw = test_kubernetes.job(test_kubernetes.container(resources={"limits": {"memory": amount}}))

    with pytest.raises(Invalid) as refused:
        translation_of(raw)
    assert [item["message"] for item in refused.value.data["problems"]] == ["too large"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_each_document_as_it_stands_is_taken(name: str) -> None:
    translation = translation_of(copy.deepcopy(DOCUMENTS[name]))

    assert translation is not None
    assert translation.format == name
