"""Kubernetes Jobs and Pods: each feature translated or named as dropped, each mistake with its field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.importers.formats import left_out, lost, problems, spec_of
from torg.spec_file import SpecFile, read_spec_file
from torg_protocol.errors import Invalid


def job(*containers: dict[str, Any], pod: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    template = {"spec": {"restartPolicy": "Never", "containers": list(containers), **(pod or {})}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "demo"},
        "spec": {**spec, "template": template},
    }


def container(name: str = "main", **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": "debian", **fields}


def deployment(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            **spec,
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": list(containers)}},
        },
    }


def test_a_job_of_one_container() -> None:
    raw = job(
        container(
            command=["python", "-c", "print($(N), '$(UNSET)', '$$(N)')"],
            args=["$(N)"],
            env=[{"name": "N", "value": "7"}],
            workingDir="/srv",
            resources={"requests": {"cpu": "250m"}, "limits": {"memory": "1Gi", "nvidia.com/gpu": 2, "ephemeral-storage": "2G"}},
        ),
        backoffLimit=4,
        activeDeadlineSeconds=600,
    )  # fmt: skip
    spec = spec_of(raw, "kubernetes")

    assert spec.command == ("python", "-c", "print(7, '$(UNSET)', '$(N)')")
    assert (spec.args, spec.env, spec.workdir, spec.name) == (("7",), {"N": "7"}, "/srv", "demo")
    assert (spec.resources.cpus, spec.resources.memory, spec.resources.disk) == (250, 1 << 30, 2 * 10**9)
    assert (spec.resources.gpus, spec.retry.on_failure, spec.limits.max_duration) == (2, 4, 600_000)
    assert lost(raw, "kubernetes") == []


def test_backoff_that_is_not_said_is_six_and_ours_ends_at_ten() -> None:
    assert spec_of(job(container()), "kubernetes").retry.on_failure == 6
    assert spec_of(job(container(), backoffLimit=50), "kubernetes").retry.on_failure == 10


def test_init_containers_are_stages_before_the_others() -> None:
    pod = {"initContainers": [container("first"), container("second")], "volumes": [{"name": "v", "emptyDir": {}}]}
    mounts = [{"name": "v", "mountPath": "/v"}]

    spec = spec_of(job(container(volumeMounts=mounts), pod=pod), "kubernetes")

    assert [(task.name, task.group) for task in spec.tasks] == [
        ("first", "first"),
        ("second", "second"),
        ("main", "containers"),
    ]
    assert [mount.path for mount in spec.tasks[2].volumes] == ["/v"]


def test_claims_are_volumes_that_are_kept() -> None:
    pod = {
        "volumes": [
            {"name": "v", "persistentVolumeClaim": {"claimName": "runs-claim"}},
            {"name": "m", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
        ]
    }
    mounts = [{"name": "v", "mountPath": "/v"}, {"name": "m", "mountPath": "/m", "readOnly": True}]

    spec = spec_of(job(container(volumeMounts=mounts), pod=pod), "kubernetes")

    assert {name: (item.keep, item.read_only) for name, item in spec.volumes.items()} == {
        "runs-claim": (True, False),
        "models": (True, True),
    }
    assert [(mount.volume, mount.path) for mount in spec.tasks[0].volumes] == [("runs-claim", "/v"), ("models", "/m")]


def test_restart_on_failure_starts_the_container_again_not_the_job() -> None:
    spec = spec_of(job(container(), pod={"restartPolicy": "OnFailure"}, backoffLimit=2), "kubernetes")

    assert (spec.tasks[0].restart.policy, spec.tasks[0].restart.max_restarts) == ("on-failure", 2)
    assert spec.retry.on_failure == 0


def test_a_pod_with_a_port_and_a_readiness_check() -> None:
    probe = {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 5}
    serving = container(ports=[{"name": "http", "containerPort": 8080}], readinessProbe=probe)
    raw = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"restartPolicy": "Never", "containers": [serving]},
    }

    (port,) = spec_of(raw, "kubernetes").ports

    assert (port.port, port.health.http) == (8080, "/ready")


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (job(container(), completions=5), "spec.completions"),
        (job(container(), parallelism=2), "spec.parallelism"),
        (
            job(container(envFrom=[{"secretRef": {"name": "s"}}])),
            "spec.template.spec.containers.0.envFrom.0.secretRef",
        ),
        (
            job(container(envFrom=[{"configMapRef": {"name": "elsewhere"}}])),
            "spec.template.spec.containers.0.envFrom.0.configMapRef",
        ),
        (deployment(container(), replicas=3), "spec.replicas"),
        (
            job(container(env=[{"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}])),
            "spec.template.spec.containers.0.env.0.valueFrom",
        ),
        (job(container(securityContext={"privileged": True})), "spec.template.spec.containers.0.securityContext"),
        (job(container(), pod={"nodeSelector": {"gpu": "a100"}}), "spec.template.spec.nodeSelector"),
        (job(container(), pod={"hostNetwork": True}), "spec.template.spec.hostNetwork"),
        (
            job(container(), pod={"volumes": [{"name": "c", "configMap": {"name": "c"}}]}),
            "spec.template.spec.volumes.0.configMap",
        ),
        (job(container("a"), container("b")), "spec.template.spec.containers"),
        (
            job(container(resources={"limits": {"amd.com/gpu": 1}})),
            "spec.template.spec.containers.0.resources.limits.amd.com/gpu",
        ),
    ],
)
def test_what_has_no_counterpart_is_lost_by_name(raw: dict[str, Any], path: str) -> None:
    assert path in lost(raw, "kubernetes")


@pytest.mark.parametrize(
    ("raw", "field", "message"),
    [
        (job(container(imagee="x")), "spec.template.spec.containers.0.imagee", "unknown key"),
        (job(), "spec.template.spec.containers", "is missing"),
        (job({"name": "x"}), "spec.template.spec.containers.0.image", "is missing"),
        (
            job(container(resources={"limits": {"memory": "big"}})),
            "spec.template.spec.containers.0.resources.limits.memory",
            "not a size",
        ),
        (
            job(container(volumeMounts=[{"name": "ghost", "mountPath": "/x"}])),
            "spec.template.spec.containers.0.volumeMounts.0.name",
            "there is no such volume",
        ),
        (job(container(), backoffLimit="often"), "spec.backoffLimit", "a whole number is expected"),
        (
            {"apiVersion": "apps/v1", "kind": "StatefulSet", "spec": {}},
            "kind",
            "only a batch/v1 Job, a v1 Pod or an apps/v1 Deployment becomes a job",
        ),
    ],
)
def test_mistakes_are_named_by_field(raw: dict[str, Any], field: str, message: str) -> None:
    assert problems(raw)[field] == message


def test_an_object_as_a_cluster_shows_it_is_read() -> None:
    raw = job(container())
    raw["metadata"] |= {
        "uid": "1-2",
        "resourceVersion": "7",
        "generation": 1,
        "managedFields": [{}],
        "selfLink": "/x",
        "generateName": "job-",
    }
    raw["spec"]["template"]["spec"] |= {
        "priority": 0,
        "readinessGates": [{"conditionType": "a"}],
        "overhead": {"cpu": "1m"},
    }
    raw["status"] = {"succeeded": 1}

    assert lost(raw, "kubernetes") == []


def test_two_dollars_are_one_and_a_shells_own_parentheses_stay() -> None:
    words = ["echo $$ $(A) $$(A) $(date)"]
    spec = spec_of(job(container(args=words, env=[{"name": "A", "value": "1"}])), "kubernetes")

    assert spec.args == ("echo $ 1 $(A) $(date)",)


@pytest.mark.parametrize("kind", ["nvidia.com/gpu", "amd.com/gpu"])
def test_gpus_of_either_maker_are_gpus(kind: str) -> None:
    assert spec_of(job(container(resources={"limits": {kind: "2"}})), "kubernetes").resources.gpus == 2


@pytest.mark.parametrize("kind", ["rdma/ib", "hugepages-2Mi", "nvidia.com/mig-1g.10gb"])
def test_another_device_is_lost_by_name(kind: str) -> None:
    assert lost(job(container(resources={"limits": {kind: "1"}})), "kubernetes") == [
        f"spec.template.spec.containers.0.resources.limits.{kind}"
    ]


def test_an_object_without_its_kind_is_refused_as_one() -> None:
    assert problems({"apiVersion": "batch/v1", "spec": {}})["kind"] == "is missing"


def test_an_init_container_and_one_container_never_run_at_once() -> None:
    assert lost(job(container(), pod={"initContainers": [container("first")]}), "kubernetes") == []
    assert lost(job(container("a"), container("b"), pod={"initContainers": [container("first")]}), "kubernetes") == [
        "spec.template.spec.containers"
    ]


def test_a_deployment_runs_until_its_time_is_over() -> None:
    serving = container(ports=[{"containerPort": 80}])
    raw = deployment(serving, replicas=1, selector={"matchLabels": {"app": "web"}}, strategy={"type": "Recreate"})

    (task,) = spec_of(raw, "kubernetes").tasks

    assert (task.restart.policy, [port.port for port in task.ports]) == ("always", [80])
    assert lost(raw, "kubernetes") == []
    assert "kind" in left_out(raw, "kubernetes")


# --- files of several documents -----------------------------------------------------------------------------------------

BESIDE = """\
---
# Source: chart/templates/settings.yaml
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {EPOCHS: "3", MODEL: small, app.properties: "a=b"}
---
apiVersion: v1
kind: Secret
metadata: {name: token}
stringData: {TOKEN: hush}
---
apiVersion: batch/v1
kind: Job
metadata: {name: train}
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
        - name: main
          image: debian
          args: [$(RUN_EPOCHS)]
          envFrom: [{prefix: RUN_, configMapRef: {name: settings}}]
          env:
            - {name: RUN_MODEL, value: large}
            - {name: SIZE, valueFrom: {configMapKeyRef: {name: settings, key: MODEL}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80}]}
---
"""


def file_of(tmp_path: Path, text: str) -> SpecFile:
    (tmp_path / "all.yaml").write_text(text)
    return read_spec_file(tmp_path / "all.yaml")


def test_of_several_objects_the_job_is_taken_with_its_settings_and_the_others_are_named(tmp_path: Path) -> None:
    read = file_of(tmp_path, BESIDE)
    assert read.translation is not None
    spec, dropped = read.check(), {item.path: item for item in read.translation.dropped}

    assert (spec.name, spec.args) == ("train", ("3",))
    assert spec.env == {"RUN_EPOCHS": "3", "RUN_MODEL": "large", "SIZE": "small"}
    assert read.translation.lost == ()
    assert [dropped[path].value for path in ("ConfigMap/settings", "Secret/token", "Service/web")] == [
        "line 1",
        "line 7",
        "line 28",
    ]
    assert dropped["spec.template.spec.containers.0.envFrom.0.configMapRef"].value == "RUN_app.properties"
    assert "hush" not in str(read.translation)


def test_an_object_that_nobody_makes_here_is_lost_by_name(tmp_path: Path) -> None:
    read = file_of(tmp_path, BESIDE + "apiVersion: kueue.x-k8s.io/v1beta1\nkind: LocalQueue\nmetadata: {name: q}\n")
    assert read.translation is not None
    assert [item.path for item in read.translation.lost] == ["LocalQueue/q"]


def test_a_mistake_in_the_job_of_several_objects_is_on_its_line(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as refused:
        file_of(tmp_path, BESIDE.replace("image: debian", "imagee: debian"))
    assert {(item["line"], item["field"].rpartition(".")[2]) for item in refused.value.data["problems"]} == {
        (21, "image"),
        (22, "imagee"),
    }


def test_two_jobs_in_a_file_are_refused_at_the_second(tmp_path: Path) -> None:
    second = BESIDE.split("---\n")[3]
    with pytest.raises(Invalid) as refused:
        file_of(tmp_path, BESIDE + second)
    assert (refused.value.code, refused.value.data["line"]) == ("spec_several_documents", 33)


def test_objects_without_a_job_are_refused_by_the_kind_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as refused:
        file_of(tmp_path, BESIDE.replace("kind: Job", "kind: StatefulSet"))
    assert (refused.value.field, refused.value.value) == ("kind", "batch/v1 StatefulSet")
    assert refused.value.data["problems"][0]["line"] == 14
