"""What a registry says before a pull: names as engines read them, lists of platforms, and registries that want a token from everybody."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.scripted_server import Answer, Request, as_json, scripted_server
from torg_node.executors.errors import ImageForbidden
from torg_node.registry import packed_bytes
from torg_protocol.registries import ImageName

DIGEST = "sha256:" + "a" * 64
MANIFEST: dict[str, Any] = {"config": {"size": 7}, "layers": [{"size": 100}, {"size": 2_000}]}


@pytest.mark.parametrize(
    ("text", "registry", "repository", "reference"),
    [
        ("nginx", "docker.io", "library/nginx", "latest"),
        ("nginx:1.25", "docker.io", "library/nginx", "1.25"),
        ("org/model:v1", "docker.io", "org/model", "v1"),
        ("ghcr.io/org/deep/name", "ghcr.io", "org/deep/name", "latest"),
        ("localhost/x:1", "localhost", "x", "1"),
        ("10.0.0.1:5000/x:1", "10.0.0.1:5000", "x", "1"),
        (f"registry.example/x:1@{DIGEST}", "registry.example", "x", DIGEST),
    ],
)
def test_names_are_read_as_engines_read_them(text: str, registry: str, repository: str, reference: str) -> None:
    assert ImageName.parse(text) == ImageName(registry, repository, reference)


def test_only_this_host_is_asked_in_the_clear() -> None:
    assert ImageName.parse("127.0.0.1:5000/x").base_url == "http://127.0.0.1:5000/v2/x"
    assert ImageName.parse("[::1]:5000/x").base_url == "http://[::1]:5000/v2/x"
    assert ImageName.parse("10.0.0.1:5000/x").base_url == "https://10.0.0.1:5000/v2/x"
    assert ImageName.parse("nginx").base_url == "https://registry-1.docker.io/v2/library/nginx"


async def test_of_a_list_of_platforms_this_ones_manifest_counts_behind_a_token_for_everybody() -> None:
    index = {
        "manifests": [
            {"digest": "sha256:other", "platform": {"os": "linux", "architecture": "arm64"}},
            {"digest": "sha256:attestation"},
            {"digest": DIGEST, "platform": {"os": "linux", "architecture": "amd64"}},
        ]
    }

    def script(request: Request) -> Answer | str:
        path = request.path.removeprefix(
            server.url
        )  # on a connection that is used again the proxy passes on what it gets
        if path.startswith("/token?"):
            assert path == "/token?service=reg&scope=repository%3Aorg%2Fx%3Apull"
            return as_json({"access_token": "for-everybody"})
        if request.headers.get("authorization") != "Bearer for-everybody":
            challenge = f'Bearer realm="{server.url}/token",service="reg",scope="repository:org/x:pull"'
            return Answer(401, headers={"www-authenticate": challenge})
        return as_json(
            {f"/v2/org/x/manifests/{name}": found for name, found in (("1", index), (DIGEST, MANIFEST))}[path]
        )

    async with scripted_server(script) as server:
        host = server.url.removeprefix("http://")
        assert await packed_bytes(f"{host}/org/x:1", "amd64", [host]) == 2_107
        assert await packed_bytes(f"{host}/org/x:1", "riscv64", [host]) is None
    assert all(request.method == "GET" for request in server.requests)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(404),
        Answer(401, headers={"www-authenticate": "Basic realm=x"}),
        Answer(401, headers={"www-authenticate": 'Bearer realm="file:///etc/passwd"'}),
        Answer(500),
        Answer(200, b"no JSON"),
        as_json({"config": {}, "layers": []}),
        as_json({"manifests": [{"platform": {"os": "linux", "architecture": "amd64"}}]}),
        as_json([1]),
    ],
    ids=["absent", "password", "odd-realm", "broken", "no-json", "no-size", "no-digest", "list"],
)
async def test_what_is_not_told_is_unknown(answer: Answer) -> None:
    async with scripted_server(lambda _: answer) as server:
        host = server.url.removeprefix("http://")
        assert await packed_bytes(f"{host}/x:1", "amd64", [host]) is None
    assert server.requests, "it was asked"


async def test_nobody_is_asked_at_a_private_address() -> None:
    async with scripted_server(lambda _: as_json(MANIFEST)) as server:
        with pytest.raises(ImageForbidden) as caught:
            await packed_bytes(f"{server.url.removeprefix('http://')}/x:1", "amd64")
    assert (caught.value.code, server.requests) == ("registry_private", [])
