"""Akash SDL: each feature translated or named as dropped, each mistake with its field."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.importers.formats import left_out, lost, problems, spec_of, translated


def sdl(
    service: dict[str, Any] | None = None, resources: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    sizes = {"cpu": {"units": 0.5}, "memory": {"size": "512Mi"}, "storage": {"size": "1Gi"}, **(resources or {})}
    return {
        "version": "2.0",
        "services": {"web": {"image": "debian", **(service or {})}},
        "profiles": {"compute": {"web": {"resources": sizes}}, "placement": {"here": {"pricing": {"web": {"denom": "uakt", "amount": 1}}}}},
        "deployment": {"web": {"here": {"profile": "web", "count": 1}}},
        **changes,
    }  # fmt: skip


def test_a_deployment_of_one_service() -> None:
    raw = sdl(
        {
            "command": ["sh", "-c"],
            "args": ["serve"],
            "env": ["A=1=2"],
            "expose": [{"port": 8080, "as": 80, "to": [{"global": True}]}, {"port": 9000, "to": [{"service": "x"}]}],
        }
    )
    raw["profiles"]["placement"]["here"]["attributes"] = {"region": "eu-west"}
    spec = spec_of(raw, "akash")

    assert (spec.command, spec.args, spec.env) == (("sh", "-c"), ("serve",), {"A": "1=2"})
    assert [port.port for port in spec.ports] == [8080]
    assert (spec.resources.cpus, spec.resources.memory, spec.resources.disk) == (500, 512 << 20, 1 << 30)
    assert spec.placement.regions == ("eu-west",)
    assert lost(raw, "akash") == []
    assert "profiles.placement.here.pricing" in left_out(raw, "akash")


def test_gpus_with_their_memory() -> None:
    gpu = {"units": 2, "attributes": {"vendor": {"nvidia": [{"model": "a100", "ram": "80Gi"}]}}}
    raw = sdl(resources={"gpu": gpu})

    asked = spec_of(raw, "akash").resources
    assert (asked.gpus, asked.min_vram) == (
        2,
        80 * 10**9,
    )  # as on the card's box: drivers report a bit less than 80 GiB
    assert "NVIDIA A100-SXM4-80GB" in (asked.gpu_class or "").split("|")
    assert lost(raw, "akash") == []


def test_of_several_models_any_will_do_and_one_that_is_not_known_is_lost() -> None:
    models = [{"model": "rtx4090", "ram": "24Gi"}, {"model": "h100", "ram": "80Gi"}, {"model": "zx9"}]
    raw = sdl(resources={"gpu": {"units": 1, "attributes": {"vendor": {"nvidia": models}}}})
    asked = spec_of(raw, "akash").resources

    assert asked.min_vram is None
    assert {"NVIDIA GeForce RTX 4090", "NVIDIA H100 PCIe"} <= {*(asked.gpu_class or "").split("|")}
    assert lost(raw, "akash") == ["profiles.compute.web.resources.gpu.attributes.vendor.nvidia.2.model"]


@pytest.mark.parametrize("vendor", [{"nvidia": None}, {"nvidia": [{"model": "*"}]}])
def test_a_gpu_of_no_certain_model_is_any(vendor: dict[str, Any]) -> None:
    raw = sdl(resources={"gpu": {"units": 1, "attributes": {"vendor": vendor}}})

    assert (spec_of(raw, "akash").resources.gpus, spec_of(raw, "akash").resources.gpu_class) == (1, None)


def test_gpus_of_another_maker_are_lost_unless_a_model_is_named() -> None:
    def of(vendor: dict[str, Any]) -> dict[str, Any]:
        return sdl(resources={"gpu": {"units": 1, "attributes": {"vendor": vendor}}})

    assert lost(of({"amd": None}), "akash") == ["profiles.compute.web.resources.gpu.attributes.vendor.amd"]
    assert spec_of(of({"amd": [{"model": "mi300x"}]}), "akash").resources.gpu_class == "AMD Instinct MI300X"


def test_storages_are_the_disk_volumes_and_shared_memory() -> None:
    storage = [
        {"size": "1Gi"},
        {"name": "data", "size": "2Gi", "attributes": {"persistent": True, "class": "beta3"}},
        {"name": "shm", "size": "256Mi", "attributes": {"class": "ram"}},
    ]
    params = {"storage": {"data": {"mount": "/data"}, "shm": {"mount": "/dev/shm"}}}
    raw = sdl({"params": params}, {"storage": storage})
    spec = spec_of(raw, "akash")

    assert (spec.resources.disk, spec.resources.shm) == (3 << 30, 256 << 20)
    assert [mount.path for mount in spec.tasks[0].volumes] == ["/data"]
    assert (
        lost(raw, "akash") == []
    )  # what is called persistent there ends with the lease, as a volume does with its job


def test_references_and_dollars_are_as_their_providers_read_them() -> None:
    raw = sdl({"env": ["A=1", "B=$(A)2", "EMPTY"], "args": ["kill $$$$; echo $(B) $(date)"]})
    spec = spec_of(raw, "akash")

    assert spec.env == {"A": "1", "B": "12", "EMPTY": ""}
    assert spec.args == ("kill $$; echo 12 $(date)",)


def test_who_vouches_for_their_providers_changes_nothing_for_a_job() -> None:
    raw = sdl()
    raw["profiles"]["placement"]["here"] |= {"signedBy": {"anyOf": ["akash1auditor"]}, "attributes": {"host": "akash"}}

    assert lost(raw, "akash") == []
    assert {"profiles.placement.here.signedBy", "profiles.placement.here.attributes.host"} <= {*left_out(raw, "akash")}


def test_credentials_are_read_from_variables_and_never_from_the_file() -> None:
    login = {"host": "https://index.docker.io/v1/", "username": "u", "password": "plain-text"}
    translation = translated(sdl({"image": "org/private:1", "credentials": login}), "akash")
    names = {"username": "REGISTRY_DOCKER_IO_USERNAME", "password": "REGISTRY_DOCKER_IO_PASSWORD"}

    assert translation.spec["registries"] == {"docker.io": names}
    assert translation.spec["secrets"] == {name: {"env": name} for name in names.values()}
    assert translation.lost == ()
    assert "plain-text" not in str(translation)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (sdl(deployment={"web": {"here": {"profile": "web", "count": 3}}}), "deployment.web.here.count"),
        (sdl({"credentials": {"host": "ghcr.io", "username": "u", "password": "p"}}), "services.web.credentials"),
        (sdl({"expose": [{"port": 53, "proto": "udp"}]}), "services.web.expose.0.proto"),
        (
            sdl(
                profiles={
                    "compute": sdl()["profiles"]["compute"],
                    "placement": {"here": {"attributes": {"host": "mine", "tier": "community"}, "pricing": {}}},
                }
            ),
            "profiles.placement.here.attributes.tier",
        ),
        (sdl(services={"web": {"image": "a"}, "idle": {"image": "b"}}), "services.idle"),
    ],
)
def test_what_has_no_counterpart_is_lost_by_name(raw: dict[str, Any], path: str) -> None:
    assert path in lost(raw, "akash")


@pytest.mark.parametrize(
    ("raw", "field", "message"),
    [
        (sdl(version="3.0"), "version", "not one of: 2.0, 2.1"),
        (sdl({"imagee": "x"}), "services.web.imagee", "unknown key"),
        (sdl(services={"web": {}}), "services.web.image", "is missing"),
        (sdl(deployment={"ghost": {"here": {"profile": "web"}}}), "deployment.ghost", "there is no such service"),
        (
            sdl(deployment={"web": {"here": {"profile": "big"}}}),
            "deployment.web.here.profile",
            "there is no such compute profile",
        ),
        (sdl(resources={"memory": {"size": "x"}}), "profiles.compute.web.resources.memory.size", "not a size"),
        (sdl(deployment={}), "deployment", "names no service"),
    ],
)
def test_mistakes_are_named_by_field(raw: dict[str, Any], field: str, message: str) -> None:
    assert problems(raw)[field] == message
